//! The client of a tower service.

use std::time::Duration;

use axum::Router;
use axum::body::Body;
use http::{Request, StatusCode};
use serde::{Deserialize, Serialize};
use tower_sse::test_kit::TestClient;
use tower_sse::{Disconnect, Event, Hub, Message, Refusal, Retention, StreamRequest, Subscription};

use crate::failure;

#[derive(Debug, PartialEq, Serialize, Deserialize, Message)]
enum Order {
    #[message(event = "order.paid")]
    Paid { cents: u32 },
    #[message(event = "order.shipped")]
    Shipped,
}

#[derive(Debug, PartialEq, Serialize, Deserialize, Message)]
#[message(event = "note")]
struct Note(String);

async fn access(request: StreamRequest) -> Result<Subscription, Refusal> {
    let user = request.query_values("user").next().ok_or(Refusal::unauthorized())?;
    Ok(Subscription::for_user(&*user))
}

fn application() -> (Hub, Router) {
    let hub = Hub::builder().user_retention(Retention::replay()).build().unwrap();
    let app = Router::new().layer(hub.layer("/events", access));
    (hub, app)
}

fn request(uri: &str) -> Request<Body> {
    Request::get(uri).body(Body::empty()).unwrap()
}

#[tokio::test]
async fn a_client_receives_messages_and_resumes_after_the_last_one() {
    let (hub, app) = application();
    let mut page = TestClient::open(&app, request("/events?user=ada")).await.unwrap();
    assert_eq!(page.headers()["content-type"], "text/event-stream");
    hub.user("ada").send(&Order::Paid { cents: 990 }).await.unwrap();
    hub.user("ada").publish(Event::unnamed("two\nlines")).await.unwrap();
    assert_eq!(page.expect::<Order>().await, Order::Paid { cents: 990 });
    let unnamed = page.expect_event("").await;
    assert_eq!((&*unnamed.data, &*unnamed.id), ("two\nlines", page.last_id()));

    hub.user("ada").send(&Order::Shipped).await.unwrap();
    page.reconnect().await.unwrap();
    assert_eq!(page.expect::<Order>().await, Order::Shipped);
    assert_eq!(hub.stats().connections, 1);
    page.close();
    assert_eq!(hub.stats().connections, 0);
}

#[tokio::test(start_paused = true)]
async fn a_missing_event_fails_in_time_and_the_failure_shows_what_arrived() {
    let (hub, app) = application();
    let started = tokio::time::Instant::now();
    let mut page = TestClient::open(&app, request("/events?user=ada")).await.unwrap();
    let text = failure(page.expect::<Note>()).await;
    assert_eq!(started.elapsed(), Duration::from_secs(5));
    assert!(text.starts_with("expected one of the events [\"note\"] within 5s, but nothing arrived\n"), "{text}");
    assert!(text.contains("\n  hub.hello: ") && text.contains("\n  hub.live: "), "{text}");

    hub.user("ada").send(&Order::Paid { cents: 990 }).await.unwrap();
    let text = failure(page.expect::<Note>()).await;
    assert!(text.contains("but the event order.paid: \"{\\\"cents\\\":990}\" arrived"), "{text}");

    hub.user("ada").publish(Event::new("note", "{}")).await.unwrap();
    let text = failure(page.expect::<Note>()).await;
    assert!(text.contains("whose data is not of the type"), "{text}");

    hub.user("ada").disconnect(Disconnect::now()).await.unwrap();
    let text = failure(page.expect::<Note>()).await;
    assert!(text.contains("but the event hub.bye: "), "{text}");
    let text = failure(page.expect_event("note")).await;
    assert!(text.contains("but the end of the stream arrived"), "{text}");
    assert_eq!(page.next().await, None);
}

/// Heartbeats arrive all the time, and do not extend the time limit.
#[tokio::test(start_paused = true)]
async fn the_time_limit_holds_although_heartbeats_arrive() {
    let hub = Hub::builder().heartbeat(Duration::from_secs(1)).visible_heartbeat().build().unwrap();
    let app = Router::new().layer(hub.layer("/events", access));
    let mut page = TestClient::open(&app, request("/events?user=ada")).await.unwrap();
    let started = tokio::time::Instant::now();
    failure(page.expect::<Note>()).await;
    failure(page.expect_event("note")).await;
    failure(page.expect_end()).await;
    assert_eq!(started.elapsed(), Duration::from_secs(15));
}

#[derive(Debug, PartialEq, Serialize, Deserialize, Message)]
#[message(event = "message")]
struct Chat(String);

/// A browser passes an event with this name and one without a name to the same listeners.
#[tokio::test]
async fn an_event_named_message_is_one_without_a_name() {
    let (hub, app) = application();
    let mut page = TestClient::open(&app, request("/events?user=ada")).await.unwrap();
    hub.user("ada").send(&Chat("a".into())).await.unwrap();
    hub.user("ada").send(&Chat("b".into())).await.unwrap();
    assert_eq!(page.expect::<Chat>().await, Chat("a".into()));
    assert_eq!(page.expect_event("message").await.data, "\"b\"");
}

#[tokio::test(start_paused = true)]
async fn a_client_can_expect_that_nothing_arrives() {
    let (hub, app) = application();
    let mut page =
        TestClient::open(&app, request("/events?user=ada")).await.unwrap().time_limit(Duration::from_secs(1));
    hub.user("ben").send(&Order::Shipped).await.unwrap();
    page.expect_nothing(Duration::from_secs(60)).await;
    hub.user("ada").send(&Order::Shipped).await.unwrap();
    // Also without time, an event that was published before arrives.
    let text = failure(page.expect_nothing(Duration::ZERO)).await;
    assert!(text.starts_with("expected no event within") && text.contains("order.shipped"), "{text}");
}

#[tokio::test(start_paused = true)]
async fn a_client_sees_the_end_of_its_stream() {
    let (hub, app) = application();
    let mut page = TestClient::open(&app, request("/events?user=ada")).await.unwrap();
    hub.drain(Duration::ZERO).await;
    assert!(page.expect_end().await.unwrap().contains("\"draining\""));
    // The instance refuses new streams.
    page.reconnect().await.unwrap();
    assert!(page.expect_event("hub.refused").await.data.contains("\"draining\""));
}

#[tokio::test]
async fn a_response_that_is_no_stream_is_an_error_with_its_text() {
    let (_, app) = application();
    let refused = TestClient::open(&app, request("/events")).await.map(drop).unwrap_err();
    assert_eq!((refused.status, &*refused.text), (StatusCode::UNAUTHORIZED, "sign in first\n"));
    assert_eq!(refused.to_string(), "the response is no event stream: 401 Unauthorized \"sign in first\\n\"");
    let refused = TestClient::open(&app, request("/elsewhere")).await.map(drop).unwrap_err();
    assert_eq!(refused.status, StatusCode::NOT_FOUND);
}

#[tokio::test]
async fn a_client_reads_a_run_to_its_end() {
    let hub = Hub::builder().build().unwrap();
    let handler = async |axum::extract::State(hub): axum::extract::State<Hub>, request: StreamRequest| {
        let reader = hub.run("orders/7").reader().await?;
        Ok::<_, tower_sse::RunError>(hub.respond(request, Subscription::run(reader).bare()))
    };
    let app: Router = Router::new().route("/orders/7", axum::routing::post(handler)).with_state(hub.clone());
    let writer = hub.run("orders/7").begin().await.unwrap();
    let mut page = TestClient::open(&app, Request::post("/orders/7").body(Body::empty()).unwrap()).await.unwrap();
    writer.send(&Order::Paid { cents: 1 }).await.unwrap();
    writer.finish_with(Order::Shipped.to_event().unwrap()).await.unwrap();
    assert_eq!(page.expect::<Order>().await, Order::Paid { cents: 1 });
    assert_eq!(page.expect::<Order>().await, Order::Shipped);
    assert_eq!(page.expect_end().await, None);
}
