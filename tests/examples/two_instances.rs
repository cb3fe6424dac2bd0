//! The example `two_instances`: a page at either instance receives the messages of both, and shows
//! the instance that serves it.

use http::Request;
use tower_sse::Hub;
use tower_sse::backplane::Memory;

use crate::example::two_instances::Instance;
use crate::kit::{Server, get, resume, send, soon, until};

async fn start(name: &str, log: &Memory) -> (Hub, Server) {
    let all = ["127.0.0.1:3001", "127.0.0.1:3002"].map(|address| address.parse().unwrap());
    let instance = Instance::new(name, &all);
    let hub = instance.settings().backplane(log.clone()).build().unwrap();
    let server = Server::start(&hub, instance.app(&hub)).await;
    until(|| hub.is_ready()).await;
    (hub, server)
}

async fn post_message(server: &Server, text: &'static str) {
    assert_eq!(send(server.addr, Request::post("/messages").body(text).unwrap()).await.status, 200);
}

#[tokio::test]
async fn message_to_one_instance_reaches_both_and_a_page_moves_between_them() {
    let log = Memory::new();
    let ((_a, at_a), (b, at_b)) = (start("A", &log).await, start("B", &log).await);
    let mut page = get(at_b.addr, "/events?topic=talk").await.events();
    let hello = page.next().await;
    assert!(hello.event == "hub.hello" && hello.data.contains(r#""instance":"B""#), "{}", hello.data);
    page.caught_up().await;
    post_message(&at_a, "one").await;
    post_message(&at_b, "two").await;
    assert_eq!(page.next_own().await.data, r#"{"text":"one","instance":"A"}"#);
    assert_eq!(page.next_own().await.data, r#"{"text":"two","instance":"B"}"#);

    soon(b.drain(std::time::Duration::ZERO)).await;
    assert_eq!(get(at_b.addr, "/ready").await.status, 503);
    post_message(&at_a, "during the move").await;
    let id = page.last_id.clone();
    assert_eq!(page.rest().await.pop().unwrap().event, "hub.bye");
    let mut page = resume(at_a.addr, "/events?topic=talk", &id).await;
    let hello = page.next().await;
    assert!(hello.data.contains(r#""instance":"A""#) && hello.data.contains("resuming"), "{}", hello.data);
    assert_eq!(page.next().await.data, r#"{"text":"during the move","instance":"A"}"#);
}

#[tokio::test]
async fn page_of_one_instance_may_read_from_the_other_and_other_sites_may_not() {
    let (_hub, server) = start("A", &Memory::new()).await;
    for (origin, status) in [("http://127.0.0.1:3002", 200), ("http://evil.example", 403)] {
        let request = Request::get("/events?topic=talk").header("origin", origin).header("host", "127.0.0.1:3001");
        let reply = send(server.addr, request.body("").unwrap()).await;
        assert_eq!(reply.status, status);
        assert_eq!(reply.header("access-control-allow-origin"), if status == 200 { origin } else { "" });
    }
    let page = get(server.addr, "/").await.text().await;
    for foreign in ["https:", "src=", "@import", "innerHTML", "insertAdjacentHTML"] {
        assert!(!page.contains(foreign), "{foreign}");
    }
}
