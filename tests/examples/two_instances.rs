//! A page at either instance hears what is said at both, and says which one serves it.

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

async fn say(server: &Server, text: &'static str) {
    assert_eq!(send(server.addr, Request::post("/say").body(text).unwrap()).await.status, 200);
}

#[tokio::test]
async fn what_is_said_at_one_is_heard_at_both_and_a_page_moves_between_them() {
    let log = Memory::new();
    let ((_a, at_a), (b, at_b)) = (start("A", &log).await, start("B", &log).await);
    let mut page = get(at_b.addr, "/events?topic=talk").await.events();
    let hello = page.next().await;
    assert!(hello.event == "hub.hello" && hello.data.contains(r#""instance":"B""#), "{}", hello.data);
    page.caught_up().await;
    say(&at_a, "one").await;
    say(&at_b, "two").await;
    assert_eq!(page.next_own().await.data, r#"{"text":"one","through":"A"}"#);
    assert_eq!(page.next_own().await.data, r#"{"text":"two","through":"B"}"#);

    soon(b.drain(std::time::Duration::ZERO)).await;
    assert_eq!(get(at_b.addr, "/ready").await.status, 503);
    say(&at_a, "while it moves").await;
    let id = page.last_id.clone();
    assert_eq!(page.rest().await.pop().unwrap().event, "hub.bye");
    let mut page = resume(at_a.addr, "/events?topic=talk", &id).await;
    let hello = page.next().await;
    assert!(hello.data.contains(r#""instance":"A""#) && hello.data.contains("resuming"), "{}", hello.data);
    assert_eq!(page.next().await.data, r#"{"text":"while it moves","through":"A"}"#);
}

#[tokio::test]
async fn a_page_of_one_may_listen_at_the_other_and_no_other_site_may() {
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
