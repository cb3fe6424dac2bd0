//! The example `quickstart`: a change of documents reaches all tabs of its user.

use http::Request;
use serde_json::{Value, json};
use tower_sse::{Event, Hub};

use crate::example::quickstart::app;
use crate::kit::{Events, Server, get, send};

async fn start() -> (Hub, Server) {
    let hub = Hub::builder().build().unwrap();
    let server = Server::start(&hub, app(&hub)).await;
    (hub, server)
}

async fn open_tab(server: &Server, user: &str) -> Events {
    let request = Request::get("/events").header("cookie", format!("user={user}")).body("").unwrap();
    let mut events = send(server.addr, request).await.events();
    events.caught_up().await;
    events
}

async fn add_document(server: &Server, user: &str, title: &'static str) {
    let request = Request::post("/documents").header("cookie", format!("user={user}")).body(title).unwrap();
    assert_eq!(send(server.addr, request).await.status, 201);
}

async fn documents(server: &Server, user: &str) -> Value {
    let request = Request::get("/documents").header("cookie", format!("user={user}")).body("").unwrap();
    serde_json::from_str(&send(server.addr, request).await.text().await).unwrap()
}

#[tokio::test]
async fn change_of_a_user_reaches_all_tabs_of_the_user_and_no_other_user() {
    let (hub, server) = start().await;
    let mut tabs = [open_tab(&server, "ada").await, open_tab(&server, "ada").await];
    let mut ben = open_tab(&server, "ben").await;
    add_document(&server, "ada", "a letter").await;
    let remove = Request::delete("/documents/1").header("cookie", "user=ada").body("").unwrap();
    assert_eq!(send(server.addr, remove).await.status, 204);
    for tab in &mut tabs {
        let created = tab.next_own().await;
        assert_eq!(created.event, "document.created");
        assert_eq!(serde_json::from_str::<Value>(&created.data).unwrap(), json!({ "id": 1, "title": "a letter" }));
        let deleted = tab.next_own().await;
        assert_eq!(
            (deleted.event.as_str(), deleted.data.as_str()),
            ("document.deleted", r#"{"id":1,"title":"a letter"}"#)
        );
    }
    hub.everyone().publish(Event::unnamed("first event")).await.unwrap();
    assert_eq!(ben.next_own().await.data, "first event");
}

#[tokio::test]
async fn change_between_the_page_and_its_stream_is_delivered() {
    let (_hub, server) = start().await;
    add_document(&server, "ada", "before").await;
    let page = documents(&server, "ada").await;
    assert_eq!(page["documents"], json!([{ "id": 1, "title": "before" }]));
    add_document(&server, "ada", "between").await;
    let path = format!("/events?last_event_id={}", page["position"].as_str().unwrap());
    let request = Request::get(path).header("cookie", "user=ada").body("").unwrap();
    let between = send(server.addr, request).await.events().next_own().await;
    assert!(between.data.contains("between"), "{}", between.data);
}

#[tokio::test]
async fn request_without_a_user_gets_no_stream_and_the_page_signs_a_user_in() {
    let (_hub, server) = start().await;
    assert_eq!(get(server.addr, "/events").await.status, 401);
    let page = get(server.addr, "/").await;
    assert_eq!((page.status.as_u16(), page.header("set-cookie").starts_with("user=ada;")), (200, true));
    let signed_in = get(server.addr, "/as/ben").await;
    assert!(signed_in.header("set-cookie").starts_with("user=ben;"));
    let page = send(server.addr, Request::get("/").header("cookie", "user=ada").body("").unwrap()).await;
    assert!(page.text().await.contains("new EventSource"));
}
