//! Authorization of open streams, of reconnects and of tickets, and the check of the origin of a
//! page.

use std::collections::BTreeSet;
use std::future::{Future, ready};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use axum::Router;
use axum::extract::State;
use axum::routing::get as axum_get;
use futures::future::join_all;
use http::{HeaderMap, Request, StatusCode};
use serde_json::{Value, json};
use tower_sse::{
    Access, Disconnect, Event, EventStream, Hub, HubBuilder, Recheck, Refusal, RefusalReason, Retention, StreamRequest,
    Subscription, Ticket, TopicFilter,
};

use crate::kit::access::from_query;
use crate::kit::{Events, Reply, Server, Sse, get, parsed, resume, send, soon, subscribe, until};

/// The interval of rechecks.
const EVERY: Duration = Duration::from_millis(100);
const SECOND: Duration = Duration::from_secs(1);
/// The limit of unredeemed tickets of one user.
const TICKETS_OF_A_USER: usize = 64;

// -------------------------------------------------------------------------------------------------
// An access hook that grants what the query asks for, with rechecks that a test decides

struct QueryAccess<F> {
    hub: Hub,
    verdict: F,
}

/// An extension of the subscription.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Session(u32);

/// Builds the subscription that the query names, with data and an extension.
fn with_session(request: &StreamRequest) -> Subscription {
    let mut subscription = from_query(request);
    for user in request.query_values("user") {
        subscription = subscription.data(&json!({ "name": user }));
    }
    subscription.extension(Session(7))
}

impl<F, Fut> Access for QueryAccess<F>
where
    F: Fn(Subscription) -> Fut + Send + Sync + 'static,
    Fut: Future<Output = Recheck> + Send + 'static,
{
    async fn authorize(&self, request: StreamRequest) -> Result<Subscription, Refusal> {
        if request.has_ticket() { self.hub.redeem(&request).await } else { Ok(with_session(&request)) }
    }

    fn recheck(&self, subscription: Subscription) -> impl Future<Output = Recheck> + Send {
        (self.verdict)(subscription)
    }
}

fn frequent_rechecks() -> HubBuilder {
    Hub::builder().recheck_every(EVERY).retry(Duration::from_millis(100))
}

async fn serve_access(builder: HubBuilder, access: impl FnOnce(&Hub) -> Router) -> (Hub, Server) {
    let hub = builder.build().unwrap();
    let server = Server::start(&hub, access(&hub)).await;
    (hub, server)
}

async fn serve<F, Fut>(builder: HubBuilder, verdict: F) -> (Hub, Server)
where
    F: Fn(Subscription) -> Fut + Send + Sync + 'static,
    Fut: Future<Output = Recheck> + Send + 'static,
{
    serve_access(builder, |hub| {
        let access = QueryAccess { hub: hub.clone(), verdict };
        Router::new().route_service("/events", hub.endpoint(access))
    })
    .await
}

/// A hook whose rechecks return `Keep` until a test sets another verdict.
#[derive(Clone)]
struct Verdicts {
    verdict: Arc<Mutex<Recheck>>,
    calls: Arc<AtomicUsize>,
}

impl Default for Verdicts {
    fn default() -> Self {
        Self { verdict: Arc::new(Mutex::new(Recheck::Keep)), calls: Arc::default() }
    }
}

impl Verdicts {
    fn now(&self, verdict: Recheck) {
        *self.verdict.lock().unwrap() = verdict;
    }

    fn calls(&self) -> usize {
        self.calls.load(Ordering::SeqCst)
    }

    async fn serve(&self, builder: HubBuilder) -> (Hub, Server) {
        let verdicts = self.clone();
        serve(builder, move |_| {
            verdicts.calls.fetch_add(1, Ordering::SeqCst);
            ready(verdicts.verdict.lock().unwrap().clone())
        })
        .await
    }
}

/// Reads to the end and returns the last event, which has to be `hub.bye`.
async fn bye(events: Events) -> Sse {
    let last = events.rest().await.pop().expect("the stream has no events");
    assert_eq!(last.event, "hub.bye");
    last
}

async fn publish(hub: &Hub, topic: &str, data: &str) {
    hub.topic(topic).publish(Event::unnamed(data.to_owned())).await.unwrap();
}

// -------------------------------------------------------------------------------------------------
// Verdicts

#[tokio::test]
async fn a_revoked_stream_ends_within_a_recheck_interval_and_may_reconnect() {
    let verdicts = Verdicts::default();
    let (hub, server) = verdicts.serve(frequent_rechecks()).await;
    let events = subscribe(server.addr, "/events?user=ada&topic=t").await;
    let last_id = events.last_id.clone();
    until(|| verdicts.calls() > 0).await;
    let since = Instant::now();
    verdicts.now(Recheck::End(Refusal::unauthorized()));
    let bye = bye(events).await;
    assert!(since.elapsed() < EVERY * 10, "{:?}", since.elapsed());
    assert_eq!(parsed(&bye), json!({ "reason": "revoked", "reconnect": "now" }));
    assert_eq!(bye.id, last_id, "the client resumes after its last event");
    assert!(bye.retry.is_some());
    assert_eq!((hub.topic("t").count(), hub.user("ada").count()), (0, 0));
}

#[tokio::test]
async fn a_recheck_that_refuses_for_now_ends_the_stream_with_its_retry_time() {
    let later = Refusal::retry_later(RefusalReason::Busy).retry(5 * SECOND);
    let (_hub, server) = serve(frequent_rechecks(), move |_| ready(Recheck::End(later.clone()))).await;
    let bye = bye(subscribe(server.addr, "/events?topic=t").await).await;
    assert_eq!(parsed(&bye), json!({ "reason": "revoked", "reconnect": "later" }));
    let retry = bye.retry.unwrap();
    assert!(retry >= 5 * SECOND && retry <= 8 * SECOND, "{retry:?}");
}

#[tokio::test]
async fn a_recheck_that_refuses_permanently_ends_the_stream_and_its_reconnect_gets_204() {
    let (_hub, server) = serve(frequent_rechecks(), |_| ready(Recheck::End(Refusal::gone()))).await;
    let bye = bye(subscribe(server.addr, "/events?topic=t").await).await;
    assert_eq!(parsed(&bye), json!({ "reason": "revoked", "reconnect": "never" }));
    let again = Request::get("/events?topic=t").header("last-event-id", &bye.id).body("").unwrap();
    assert_eq!(send(server.addr, again).await.status, StatusCode::NO_CONTENT);
    // A new page of the same user gets a stream, which is rechecked separately.
    assert_eq!(get(server.addr, "/events?topic=t").await.status, StatusCode::OK);
}

#[tokio::test]
async fn a_narrowed_stream_keeps_the_common_topics_and_lists_them_in_hub_live() {
    let verdicts = Verdicts::default();
    let (hub, server) = verdicts.serve(frequent_rechecks()).await;
    let mut events = subscribe(server.addr, "/events?user=ada&topic=a&topic=b&topic=c").await;
    // The stream does not have the topic `d`, so the hub does not add it.
    verdicts.now(Recheck::Narrow(Subscription::for_user("ada").with_topics(["b", "d"])));
    until(|| hub.topic("a").count() == 0 && hub.topic("c").count() == 0).await;
    for topic in ["a", "c", "d", "b"] {
        publish(&hub, topic, topic).await;
    }
    hub.user("ada").publish(Event::unnamed("to ada")).await.unwrap();
    let (mut topics, mut own) = (Value::Null, Vec::new());
    while own.len() < 2 {
        let event = events.next().await;
        match event.event.as_str() {
            "hub.live" => topics = parsed(&event)["topics"].clone(),
            _ => own.push(event.data),
        }
    }
    assert_eq!((topics, own), (json!(["b"]), vec!["b".to_owned(), "to ada".to_owned()]));
}

#[tokio::test]
async fn a_removed_topic_is_no_longer_delivered_even_if_its_events_are_pending() {
    const RECORDS: usize = 200;
    let verdicts = Verdicts::default();
    let wide = Retention::replay().count(2 * RECORDS).bytes(64 << 20);
    let (hub, server) = verdicts.serve(frequent_rechecks().topic_retention(wide)).await;
    let mut events = subscribe(server.addr, "/events?topic=secret&topic=open").await;
    // Far more than the buffers of the sockets hold.
    let large = "x".repeat(200_000);
    for _ in 0..RECORDS {
        hub.topic("secret").publish(Event::new("secret", large.clone())).await.unwrap();
    }
    verdicts.now(Recheck::Narrow(Subscription::anonymous().topic("open")));
    until(|| hub.topic("secret").count() == 0).await;
    hub.topic("open").publish(Event::unnamed("headline")).await.unwrap();
    let mut secrets = 0;
    let open = loop {
        let event = events.next_own().await;
        match event.event.as_str() {
            "secret" => secrets += 1,
            _ => break event,
        }
    };
    assert_eq!(open.data, "headline");
    assert!(secrets < RECORDS / 2, "{secrets} of {RECORDS} events of the removed topic were written");
}

#[tokio::test]
async fn a_user_whose_stream_loses_a_presence_topic_leaves_it() {
    let verdicts = Verdicts::default();
    let builder = frequent_rechecks().presence_for(TopicFilter::exact("room")).presence_grace(EVERY);
    let (hub, server) = verdicts.serve(builder).await;
    let _ada = subscribe(server.addr, "/events?user=ada&topic=room&topic=other").await;
    // The verdict names ada, so it would end the stream of any other user. A `Subscriber` has no
    // rechecks.
    let mut watcher = hub.subscribe(Subscription::anonymous().topic("room"), None).unwrap();
    verdicts.now(Recheck::Narrow(Subscription::for_user("ada").topic("other")));
    let left = soon(watcher.next_event()).await.unwrap();
    assert_eq!((left.name.as_str(), left.data.as_str()), ("hub.left", r#"{"topic":"room","user":"ada"}"#));
}

#[tokio::test]
async fn a_narrowed_stream_can_get_a_later_expiry() {
    let renewed = |subscription: Subscription| {
        let topics = subscription.topics().to_vec();
        ready(Recheck::Narrow(Subscription::anonymous().with_topics(topics).expires_in(60 * SECOND)))
    };
    let (hub, server) = serve(frequent_rechecks(), renewed).await;
    let since = Instant::now();
    let mut events = subscribe(server.addr, "/events?topic=t&expires_ms=600").await;
    tokio::time::sleep_until((since + Duration::from_millis(900)).into()).await;
    publish(&hub, "t", "alive").await;
    assert_eq!(events.next_own().await.data, "alive");
}

#[tokio::test]
async fn a_narrowed_stream_can_get_an_earlier_expiry() {
    let shortened = |_| ready(Recheck::Narrow(Subscription::anonymous().topic("t").expires_in(Duration::ZERO)));
    let (_hub, server) = serve(frequent_rechecks(), shortened).await;
    let bye = bye(subscribe(server.addr, "/events?topic=t&expires_ms=3600000").await).await;
    assert_eq!(parsed(&bye), json!({ "reason": "expired", "reconnect": "now" }));
}

#[tokio::test]
async fn a_recheck_that_returns_the_same_expiry_repeats_no_notice() {
    // About twenty rechecks within the two seconds of the stream.
    let (_hub, server) = serve(frequent_rechecks(), |subscription| ready(Recheck::Narrow(subscription))).await;
    let events = subscribe(server.addr, "/events?topic=t&expires_ms=2000").await.rest().await;
    let notices = events.iter().filter(|event| event.event == "hub.expiring").count();
    assert_eq!((notices, parsed(events.last().unwrap())["reason"].as_str()), (1, Some("expired")), "{events:?}");
}

#[tokio::test]
async fn a_stream_ends_when_its_recheck_returns_another_user() {
    for other in [Subscription::for_user("ben").topic("t"), Subscription::anonymous().topic("t")] {
        let (_hub, server) = serve(frequent_rechecks(), move |_| ready(Recheck::Narrow(other.clone()))).await;
        let bye = bye(subscribe(server.addr, "/events?user=ada&topic=t").await).await;
        assert_eq!(parsed(&bye), json!({ "reason": "revoked", "reconnect": "now" }));
    }
}

#[tokio::test]
async fn a_settled_stream_is_not_rechecked_again_and_a_kept_stream_is() {
    let calls = Arc::new(Mutex::new(Vec::new()));
    let notes = Arc::clone(&calls);
    let (_hub, server) = serve(frequent_rechecks(), move |subscription| {
        let user = subscription.user().unwrap().to_string();
        notes.lock().unwrap().push(user.clone());
        ready(if user == "settled" { Recheck::Settled } else { Recheck::Keep })
    })
    .await;
    let count = |user: &str| calls.lock().unwrap().iter().filter(|calls| *calls == user).count();
    let _settled = subscribe(server.addr, "/events?user=settled").await;
    let _kept = subscribe(server.addr, "/events?user=kept").await;
    until(|| count("kept") >= 8).await;
    assert_eq!(count("settled"), 1);
}

#[tokio::test]
async fn a_closure_is_called_once_for_each_request() {
    let calls = Arc::new(AtomicUsize::new(0));
    let verdicts = Verdicts::default();
    let (_hub, server) = serve_access(frequent_rechecks(), |hub| {
        let (calls, verdicts) = (Arc::clone(&calls), verdicts.clone());
        let closure = move |request: StreamRequest| {
            calls.fetch_add(1, Ordering::SeqCst);
            ready(Ok(with_session(&request)))
        };
        let recheck = move |_| {
            verdicts.calls.fetch_add(1, Ordering::SeqCst);
            ready(Recheck::Keep)
        };
        let access = QueryAccess { hub: hub.clone(), verdict: recheck };
        Router::new().route_service("/closure", hub.endpoint(closure)).route_service("/access", hub.endpoint(access))
    })
    .await;
    let _closure = subscribe(server.addr, "/closure?topic=t").await;
    let _access = subscribe(server.addr, "/access?topic=t").await;
    until(|| verdicts.calls() >= 5).await;
    assert_eq!(calls.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn a_recheck_receives_the_current_subscription_of_the_stream() {
    let seen = Arc::new(Mutex::new(None));
    let last = Arc::clone(&seen);
    let (hub, server) = serve(frequent_rechecks(), move |subscription| {
        *last.lock().unwrap() = Some(subscription);
        ready(Recheck::Keep)
    })
    .await;
    let _events = subscribe(server.addr, "/events?user=ada&topic=a&topic=b").await;
    hub.user("ada").join("joined").await.unwrap();
    hub.user("ada").leave("a").await.unwrap();
    let topics = || {
        let seen = seen.lock().unwrap();
        let topics = seen.as_ref().map(|seen: &Subscription| seen.topics().to_vec());
        topics.into_iter().flatten().map(|topic| topic.to_string()).collect::<BTreeSet<_>>()
    };
    until(|| topics() == BTreeSet::from(["b".to_owned(), "joined".to_owned()])).await;
    let seen = seen.lock().unwrap().take().unwrap();
    assert_eq!(seen.user().unwrap().as_str(), "ada");
    assert_eq!(seen.data_json(), Some(r#"{"name":"ada"}"#));
    assert_eq!(seen.extensions().get::<Session>(), Some(&Session(7)));
}

// -------------------------------------------------------------------------------------------------
// A hook that fails

#[derive(Clone, Copy)]
enum Failure {
    Panic,
    Hang,
}

impl Failure {
    async fn happen(self) -> Recheck {
        match self {
            Self::Panic => panic!("panic of the hook"),
            Self::Hang => futures::future::pending().await,
        }
    }
}

/// Serves a hook whose rechecks of the user `bad` fail if `fails` is true for the number of the
/// recheck. Also returns the number of rechecks of this user.
async fn failing(failure: Failure, fails: fn(usize) -> bool) -> (Hub, Server, Arc<AtomicUsize>) {
    let calls = Arc::new(AtomicUsize::new(0));
    let number = Arc::clone(&calls);
    let builder = frequent_rechecks().access_timeout(Duration::from_millis(50));
    let (hub, server) = serve(builder, move |subscription| {
        let is_bad = subscription.user().is_some_and(|user| user.as_str() == "bad");
        let number = is_bad.then(|| number.fetch_add(1, Ordering::SeqCst));
        async move {
            match number {
                Some(number) if fails(number) => failure.happen().await,
                _ => Recheck::Keep,
            }
        }
    })
    .await;
    (hub, server, calls)
}

#[tokio::test]
async fn a_recheck_that_fails_once_leaves_the_stream_open() {
    for failure in [Failure::Panic, Failure::Hang] {
        let (hub, server, calls) = failing(failure, |number| number % 2 == 0).await;
        let mut events = subscribe(server.addr, "/events?user=bad&topic=t").await;
        until(|| calls.load(Ordering::SeqCst) >= 6).await;
        publish(&hub, "t", "headline").await;
        assert_eq!(events.next_own().await.data, "headline");
    }
}

#[tokio::test]
async fn a_recheck_that_fails_twice_in_a_row_ends_this_stream_only() {
    for failure in [Failure::Panic, Failure::Hang] {
        let (hub, server, calls) = failing(failure, |_| true).await;
        let mut other = subscribe(server.addr, "/events?user=good&topic=t").await;
        let bye = bye(subscribe(server.addr, "/events?user=bad&topic=t").await).await;
        assert_eq!(parsed(&bye), json!({ "reason": "revoked", "reconnect": "now" }));
        assert_eq!(calls.load(Ordering::SeqCst), 2);
        publish(&hub, "t", "headline").await;
        assert_eq!(other.next_own().await.data, "headline");
    }
}

#[tokio::test]
async fn rechecks_run_64_at_a_time_and_reach_every_stream() {
    const AT_ONCE: usize = 64;
    const STREAMS: usize = 80;
    #[derive(Default)]
    struct Desk {
        now: usize,
        most: usize,
        seen: BTreeSet<String>,
    }
    let desk = Arc::new(Mutex::new(Desk::default()));
    let database = Arc::new(tokio::sync::Semaphore::new(0));
    let (shared, slow) = (Arc::clone(&desk), Arc::clone(&database));
    let (_hub, server) = serve(frequent_rechecks(), move |subscription| {
        let (desk, database) = (Arc::clone(&shared), Arc::clone(&slow));
        async move {
            {
                let mut desk = desk.lock().unwrap();
                desk.now += 1;
                desk.most = desk.most.max(desk.now);
            }
            drop(database.acquire().await);
            let mut desk = desk.lock().unwrap();
            desk.now -= 1;
            desk.seen.insert(subscription.user().unwrap().to_string());
            Recheck::Keep
        }
    })
    .await;
    let paths: Vec<_> = (0..STREAMS).map(|user| format!("/events?user={user}")).collect();
    let _streams = join_all(paths.iter().map(|path| subscribe(server.addr, path))).await;
    until(|| desk.lock().unwrap().now == AT_ONCE).await;
    database.add_permits(STREAMS);
    until(|| desk.lock().unwrap().seen.len() == STREAMS).await;
    assert_eq!(desk.lock().unwrap().most, AT_ONCE);
}

// -------------------------------------------------------------------------------------------------
// Reconnects

#[tokio::test]
async fn a_resume_delivers_only_topics_that_are_permitted_now() {
    let is_revoked = Arc::new(AtomicBool::new(false));
    let revoked = Arc::clone(&is_revoked);
    let (hub, server) = serve_access(frequent_rechecks(), |hub| {
        let access = move |_: StreamRequest| {
            let rest = ["open", "also-open"];
            let subscription = Subscription::for_user("ada").with_topics(rest);
            let revoked = revoked.load(Ordering::SeqCst);
            ready(Ok(if revoked { subscription } else { subscription.topic("secret") }))
        };
        Router::new().route_service("/events", hub.endpoint(access))
    })
    .await;
    let events = subscribe(server.addr, "/events").await;
    let last_id = events.last_id.clone();
    drop(events);
    publish(&hub, "open", "1").await;
    publish(&hub, "secret", "2").await;
    is_revoked.store(true, Ordering::SeqCst);
    publish(&hub, "secret", "3").await;
    publish(&hub, "also-open", "4").await;
    let mut events = resume(server.addr, "/events", &last_id).await;
    publish(&hub, "secret", "5").await;
    let mut came = Vec::new();
    for event in events.caught_up().await {
        match event.event.as_str() {
            "hub.hello" => assert_eq!(parsed(&event)["topics"], json!(["open", "also-open"])),
            _ => came.push(event.data),
        }
    }
    assert_eq!(came, ["1", "4"]);
}

#[tokio::test]
async fn a_busy_stream_receives_a_notice_and_ends_at_its_expiry() {
    let (hub, server) = serve(frequent_rechecks(), |_| ready(Recheck::Settled)).await;
    let publisher = tokio::spawn(async move {
        loop {
            publish(&hub, "t", "x").await;
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    });
    let since = Instant::now();
    let events = get(server.addr, "/events?topic=t&expires_ms=1000").await.events().rest().await;
    let lived = since.elapsed();
    publisher.abort();
    assert!(lived >= Duration::from_millis(890) && lived < 10 * SECOND, "{lived:?}");
    let at = |name| events.iter().position(|event: &Sse| event.event == name).unwrap();
    let expiring = at("hub.expiring");
    let in_ms = parsed(&events[expiring])["in_ms"].as_u64().unwrap();
    assert!((1..=1000).contains(&in_ms), "{in_ms}");
    assert!(expiring + 1 < at("hub.bye"), "no event was delivered after the notice");
    assert_eq!(parsed(events.last().unwrap()), json!({ "reason": "expired", "reconnect": "now" }));
}

// -------------------------------------------------------------------------------------------------
// Tickets

async fn ticket(hub: &Hub, subscription: Subscription) -> Ticket {
    hub.ticket(subscription, 60 * SECOND).await.unwrap()
}

fn with_ticket(ticket: &Ticket) -> String {
    format!("/events?ticket={}", ticket.as_str())
}

/// Everything that a client can see of a response, without its date.
async fn visible(reply: Reply) -> (StatusCode, HeaderMap, String) {
    let (status, mut headers) = (reply.status, reply.headers.clone());
    headers.remove("date");
    (status, headers, reply.text().await)
}

#[tokio::test]
async fn a_ticket_opens_a_stream_with_its_subscription() {
    let verdicts = Verdicts::default();
    let (hub, server) = verdicts.serve(frequent_rechecks()).await;
    let subscription = Subscription::for_user("ada").with_topics(["a", "b"]).data("hi");
    let mut events = get(server.addr, &with_ticket(&ticket(&hub, subscription).await)).await.events();
    assert_eq!(parsed(&events.next().await)["topics"], json!(["a", "b"]));
    let connections = hub.connections();
    assert_eq!((connections.len(), connections[0].user.as_ref().unwrap().as_str()), (1, "ada"));
    assert_eq!(connections[0].data_json(), Some(r#""hi""#));
    publish(&hub, "b", "1").await;
    assert_eq!(events.next_own().await.data, "1");
}

#[tokio::test]
async fn tickets_that_are_spent_unknown_malformed_void_or_expired_get_the_same_response() {
    let verdicts = Verdicts::default();
    let (hub, server) = verdicts.serve(frequent_rechecks()).await;
    let over = hub.ticket(Subscription::for_user("ben"), 3 * SECOND).await.unwrap();
    let expired = hub.ticket(Subscription::for_user("ben").expires_in(SECOND / 10), 60 * SECOND).await.unwrap();
    let spent = ticket(&hub, Subscription::for_user("ben")).await;
    let void = ticket(&hub, Subscription::for_user("ada")).await;
    let void_by_topic = ticket(&hub, Subscription::for_user("ben").topic("closed")).await;
    assert_eq!(get(server.addr, &with_ticket(&spent)).await.status, StatusCode::OK);
    hub.user("ada").disconnect(Disconnect::now()).await.unwrap();
    hub.topic("closed").disconnect(Disconnect::now()).await.unwrap();
    tokio::time::sleep(3 * SECOND + SECOND / 10).await;
    let expected = visible(get(server.addr, "/events?ticket=").await).await;
    assert_eq!(expected.0, StatusCode::UNAUTHORIZED);
    let malformed = ["0", "x", "%00", "%FF", "-0000000000000000000000000000001", "+0000000000000000000000000000001"]
        .map(String::from);
    let unknown = ["0".repeat(32), "f".repeat(32), "F".repeat(32), "0".repeat(33), "0".repeat(5000)];
    let made = [over, expired, spent, void, void_by_topic].map(|ticket| ticket.as_str().to_owned());
    for ticket in malformed.into_iter().chain(unknown).chain(made) {
        let answer = visible(get(server.addr, &format!("/events?ticket={ticket}")).await).await;
        assert_eq!(answer, expected, "{ticket}");
    }
}

#[tokio::test]
async fn a_ticket_opens_one_stream_when_it_is_redeemed_simultaneously() {
    let verdicts = Verdicts::default();
    let (hub, server) = verdicts.serve(frequent_rechecks()).await;
    for _ in 0..20 {
        let path = with_ticket(&ticket(&hub, Subscription::for_user("ada")).await);
        let replies = join_all((0..4).map(|_| get(server.addr, &path))).await;
        let count = |status| replies.iter().filter(|reply| reply.status == status).count();
        assert_eq!((count(StatusCode::OK), count(StatusCode::UNAUTHORIZED)), (1, 3));
    }
}

#[tokio::test]
async fn a_ticket_is_rechecked_when_it_is_redeemed() {
    let verdicts = Verdicts::default();
    let (hub, server) = verdicts.serve(frequent_rechecks()).await;
    let redeemed = async |verdict| {
        let ticket = ticket(&hub, Subscription::for_user("ada").with_topics(["a", "b", "c"])).await;
        verdicts.now(verdict);
        get(server.addr, &with_ticket(&ticket)).await
    };
    assert_eq!(redeemed(Recheck::End(Refusal::forbidden())).await.status, StatusCode::FORBIDDEN);
    assert_eq!(redeemed(Recheck::End(Refusal::gone())).await.status, StatusCode::NO_CONTENT);
    let other = Recheck::Narrow(Subscription::for_user("ben").topic("a"));
    assert_eq!(redeemed(other).await.status, StatusCode::FORBIDDEN);
    let narrowed = Recheck::Narrow(Subscription::for_user("ada").with_topics(["c", "a", "d"]));
    let hello = redeemed(narrowed).await.events().next().await;
    assert_eq!(parsed(&hello)["topics"], json!(["a", "c"]));
    for verdict in [Recheck::Keep, Recheck::Settled] {
        let hello = redeemed(verdict).await.events().next().await;
        assert_eq!(parsed(&hello)["topics"], json!(["a", "b", "c"]));
    }
}

#[tokio::test]
async fn the_expiry_of_a_ticket_subscription_counts_from_the_issue() {
    let verdicts = Verdicts::default();
    let (hub, server) = verdicts.serve(frequent_rechecks()).await;
    let since = Instant::now();
    let ticket = ticket(&hub, Subscription::for_user("ada").expires_in(9 * SECOND)).await;
    tokio::time::sleep_until((since + 4 * SECOND).into()).await;
    let bye = bye(get(server.addr, &with_ticket(&ticket)).await.events()).await;
    assert_eq!(parsed(&bye)["reason"], "expired");
    // If the expiry counted from the redemption, the stream would end after 12.1 s or later.
    assert!(since.elapsed() < 12 * SECOND, "{:?}", since.elapsed());
}

#[tokio::test]
async fn a_ticket_lifetime_is_one_second_to_one_hour() {
    let hub = Hub::builder().build().unwrap();
    let issued = async |ttl| hub.ticket(Subscription::for_user("ada"), ttl).await.map(|_| ());
    for ttl in [Duration::ZERO, Duration::from_millis(999), Duration::from_secs(3601), Duration::MAX] {
        assert!(issued(ttl).await.unwrap_err().is_invalid(), "{ttl:?}");
    }
    for ttl in [SECOND, 3600 * SECOND] {
        assert_eq!(issued(ttl).await, Ok(()), "{ttl:?}");
    }
    let bad = hub.ticket(Subscription::for_user("").topic("t"), SECOND).await;
    assert!(bad.unwrap_err().is_invalid());
}

#[tokio::test]
async fn a_ticket_carries_data_and_no_extensions() {
    let hub = Hub::builder().build().unwrap();
    let subscription = Subscription::for_user("ada").data("ada").extension(Session(7));
    let ticket = hub.ticket(subscription, SECOND).await.unwrap();
    let request = Request::get(with_ticket(&ticket)).body(()).unwrap();
    let redeemed = hub.redeem(&StreamRequest::from_request(&request)).await.unwrap();
    assert_eq!(redeemed.data_json(), Some("\"ada\""));
    assert_eq!(redeemed.extensions().get::<Session>(), None);
}

#[tokio::test]
async fn too_many_tickets_are_refused_until_one_is_redeemed_or_expires() {
    let verdicts = Verdicts::default();
    let (hub, server) = verdicts.serve(frequent_rechecks()).await;
    let issued = async |ttl| hub.ticket(Subscription::for_user("ada"), ttl).await;
    for _ in 0..TICKETS_OF_A_USER - 2 {
        issued(60 * SECOND).await.unwrap();
    }
    let (first, _second) = (issued(60 * SECOND).await.unwrap(), issued(3 * SECOND).await.unwrap());
    assert!(issued(SECOND).await.unwrap_err().is_over_limit());
    assert_eq!(get(server.addr, &with_ticket(&first)).await.status, StatusCode::OK);
    let _third = issued(60 * SECOND).await.unwrap();
    assert!(issued(SECOND).await.unwrap_err().is_over_limit());
    tokio::time::sleep(3 * SECOND + SECOND / 10).await;
    let _fourth = issued(60 * SECOND).await.expect("the second ticket has expired");
}

/// A hook that redeems the ticket of a request, and then behaves as the test has set it.
#[derive(Clone)]
struct Redeems {
    hub: Hub,
    then: Arc<Mutex<Then>>,
    redeemed: Arc<tokio::sync::Notify>,
}

#[derive(Clone, Copy, PartialEq)]
enum Then {
    Grants,
    RefusesForNow,
    Forbids,
    Hangs,
    HangsInRecheck,
    Panics,
    BuildsNewSubscription,
}

impl Redeems {
    fn now(&self, then: Then) {
        *self.then.lock().unwrap() = then;
    }
}

impl Access for Redeems {
    async fn authorize(&self, request: StreamRequest) -> Result<Subscription, Refusal> {
        let subscription = self.hub.redeem(&request).await?;
        self.redeemed.notify_one();
        let then = *self.then.lock().unwrap();
        match then {
            Then::Grants | Then::HangsInRecheck => Ok(subscription),
            Then::RefusesForNow => Err(Refusal::retry_later(RefusalReason::Busy)),
            Then::Forbids => Err(Refusal::forbidden()),
            Then::Hangs => futures::future::pending().await,
            Then::Panics => panic!("panic of the hook"),
            Then::BuildsNewSubscription => Ok(Subscription::for_user(subscription.user().unwrap())),
        }
    }

    async fn recheck(&self, _: Subscription) -> Recheck {
        let hangs = *self.then.lock().unwrap() == Then::HangsInRecheck;
        if hangs { futures::future::pending().await } else { Recheck::Settled }
    }
}

async fn serve_redeeming(builder: HubBuilder) -> (Hub, Server, Redeems) {
    let hub = builder.build().unwrap();
    let hook = Redeems { hub: hub.clone(), then: Arc::new(Mutex::new(Then::Grants)), redeemed: Arc::default() };
    let layer = hub.layer("/events", hook.clone()).allow_topic_changes();
    let server = Server::start(&hub, Router::new().route("/", axum_get(async || "")).layer(layer)).await;
    (hub, server, hook)
}

#[tokio::test]
async fn a_ticket_is_valid_again_when_its_request_gets_no_stream() {
    let (hub, server, hook) = serve_redeeming(frequent_rechecks().access_timeout(SECOND / 10)).await;
    for (then, expected) in [
        (Then::RefusesForNow, StatusCode::OK),
        (Then::Hangs, StatusCode::OK),
        (Then::HangsInRecheck, StatusCode::OK),
        (Then::Forbids, StatusCode::FORBIDDEN),
        (Then::Panics, StatusCode::INTERNAL_SERVER_ERROR),
    ] {
        let path = with_ticket(&ticket(&hub, Subscription::for_user("ada")).await);
        hook.now(then);
        // Browsers reconnect to the same URL after a retryable refusal.
        for _ in 0..2 {
            let refused = get(server.addr, &path).await;
            assert_eq!(refused.status, expected);
            if expected == StatusCode::OK {
                assert_eq!(refused.events().next().await.event, "hub.refused");
            }
        }
        hook.now(Then::Grants);
        let opened = get(server.addr, &path).await;
        assert_eq!(opened.status, StatusCode::OK);
        assert_eq!(opened.events().next().await.event, "hub.hello");
        assert_eq!(get(server.addr, &path).await.status, StatusCode::UNAUTHORIZED, "a ticket opens one stream");
    }
}

#[tokio::test]
async fn a_ticket_is_valid_again_when_its_client_disconnects_before_the_hook_decides() {
    let (hub, server, hook) = serve_redeeming(frequent_rechecks()).await;
    let path = with_ticket(&ticket(&hub, Subscription::for_user("ada")).await);
    hook.now(Then::Hangs);
    let request = Request::get(path.as_str()).body(()).unwrap();
    let endpoint = hub.endpoint(hook.clone());
    let asking = tokio::spawn(tower::ServiceExt::oneshot(endpoint, request));
    soon(hook.redeemed.notified()).await;
    asking.abort();
    assert!(soon(asking).await.is_err());
    hook.now(Then::Grants);
    assert_eq!(get(server.addr, &path).await.status, StatusCode::OK);
}

#[tokio::test]
async fn a_ticket_is_valid_again_when_a_change_of_topics_is_refused() {
    let (hub, server, hook) = serve_redeeming(frequent_rechecks()).await;
    let subscription = || Subscription::for_user("ada").may_join(TopicFilter::prefix("open/"));
    let _page = subscribe(server.addr, &with_ticket(&ticket(&hub, subscription()).await)).await;
    let id = hub.connections()[0].id;
    let ticket = ticket(&hub, subscription()).await;
    let change = |topic| {
        let path = format!("/events/{id}/topics?join={topic}&ticket={}", ticket.as_str());
        send(server.addr, Request::post(path).body("").unwrap())
    };
    hook.now(Then::RefusesForNow);
    assert_eq!(change("open/1").await.status, StatusCode::SERVICE_UNAVAILABLE);
    hook.now(Then::Grants);
    assert_eq!(change("secret").await.status, StatusCode::FORBIDDEN);
    assert_eq!(change("open/1").await.status, StatusCode::OK);
    assert_eq!(change("open/2").await.status, StatusCode::UNAUTHORIZED, "a ticket is valid for one change");
}

#[tokio::test]
async fn a_ticket_is_spent_when_the_hook_returns_another_subscription() {
    let (hub, server, hook) = serve_redeeming(frequent_rechecks()).await;
    hook.now(Then::BuildsNewSubscription);
    let path = with_ticket(&ticket(&hub, Subscription::for_user("ada")).await);
    assert_eq!(get(server.addr, &path).await.status, StatusCode::OK);
    assert_eq!(get(server.addr, &path).await.status, StatusCode::UNAUTHORIZED);
}

#[tokio::test]
async fn a_ticket_that_became_valid_again_ends_with_a_disconnect_and_with_its_lifetime() {
    let (hub, server, hook) = serve_redeeming(frequent_rechecks()).await;
    let void = with_ticket(&ticket(&hub, Subscription::for_user("ada")).await);
    let over = with_ticket(&hub.ticket(Subscription::for_user("ben"), 3 * SECOND).await.unwrap());
    hook.now(Then::RefusesForNow);
    for path in [&void, &over] {
        assert_eq!(get(server.addr, path).await.events().next().await.event, "hub.refused");
    }
    hook.now(Then::Grants);
    hub.user("ada").disconnect(Disconnect::now()).await.unwrap();
    assert_eq!(get(server.addr, &void).await.status, StatusCode::UNAUTHORIZED);
    tokio::time::sleep(3 * SECOND + SECOND / 10).await;
    assert_eq!(get(server.addr, &over).await.status, StatusCode::UNAUTHORIZED);
}

/// The role of the user has changed since the ticket was issued.
#[tokio::test]
async fn a_narrowed_ticket_permits_topics_that_both_it_and_the_hook_permit() {
    let verdicts = Verdicts::default();
    let (hub, server) = serve_access(frequent_rechecks().recheck_every(3600 * SECOND), |hub| {
        let verdicts = verdicts.clone();
        let verdict = move |_| ready(verdicts.verdict.lock().unwrap().clone());
        let access = QueryAccess { hub: hub.clone(), verdict };
        Router::new().route("/", axum_get(async || "")).layer(hub.layer("/events", access).allow_topic_changes())
    })
    .await;
    let _page = subscribe(server.addr, "/events?user=ada").await;
    let id = hub.connections()[0].id;
    let may_join = |subscription: Subscription| {
        let rules = ["rooms/", "documents/a/", "wide"].map(TopicFilter::prefix);
        rules.into_iter().fold(subscription, Subscription::may_join).may_join(TopicFilter::exact("exact/1"))
    };
    verdicts.now(Recheck::Narrow(
        Subscription::for_user("ada")
            .topic("rooms/listed")
            .may_join(TopicFilter::prefix("documents/"))
            .may_join(TopicFilter::prefix("wide/narrow/"))
            .may_join(TopicFilter::exact("wide/one"))
            .may_join(TopicFilter::prefix("exact/")),
    ));
    for (topic, expected) in [
        ("rooms/1", StatusCode::FORBIDDEN),
        ("documents/b/1", StatusCode::FORBIDDEN),
        ("wide/else", StatusCode::FORBIDDEN),
        ("exact/2", StatusCode::FORBIDDEN),
        ("rooms/listed", StatusCode::OK),
        ("documents/a/1", StatusCode::OK),
        ("wide/narrow/1", StatusCode::OK),
        ("wide/one", StatusCode::OK),
        ("exact/1", StatusCode::OK),
    ] {
        let ticket = ticket(&hub, may_join(Subscription::for_user("ada"))).await;
        let path = format!("/events/{id}/topics?join={topic}&ticket={}", ticket.as_str());
        let reply = send(server.addr, Request::post(path).body("").unwrap()).await;
        assert_eq!(reply.status, expected, "{topic}");
        assert_eq!(hub.topic(topic).count(), usize::from(expected == StatusCode::OK), "{topic}");
    }
}

#[tokio::test]
async fn one_user_cannot_use_up_all_tickets() {
    let hub = Hub::builder().build().unwrap();
    let issued = async |user: &str| hub.ticket(Subscription::for_user(user), 60 * SECOND).await;
    for _ in 0..TICKETS_OF_A_USER {
        issued("ada").await.unwrap();
    }
    assert!(issued("ada").await.unwrap_err().is_over_limit());
    issued("ben").await.expect("the tickets of ada do not count for ben");
}

#[tokio::test]
async fn the_tickets_of_all_users_together_are_bounded() {
    let hub = Hub::builder().build().unwrap();
    let issued = async |user: u32| hub.ticket(Subscription::for_user(user), 60 * SECOND).await;
    for user in 0..65_536 {
        issued(user).await.unwrap();
    }
    assert!(issued(65_536).await.unwrap_err().is_over_limit());
}

// -------------------------------------------------------------------------------------------------
// Origins

async fn handler(State(hub): State<Hub>, request: StreamRequest) -> EventStream {
    hub.respond(request, Subscription::anonymous().topic("t"))
}

/// Serves all three mounts, and counts the calls of the hook.
async fn mounted(builder: HubBuilder) -> (Server, Arc<AtomicUsize>) {
    let calls = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&calls);
    let (_, server) = serve_access(builder, |hub| {
        let access = move |_: StreamRequest| {
            counted.fetch_add(1, Ordering::SeqCst);
            ready(Ok(Subscription::anonymous().topic("t")))
        };
        Router::new()
            .route_service("/endpoint", hub.endpoint(access.clone()))
            .route("/handler", axum_get(handler))
            .with_state(hub.clone())
            .layer(hub.layer("/layer", access))
    })
    .await;
    (server, calls)
}

const MOUNTINGS: [&str; 3] = ["/layer", "/endpoint", "/handler"];
const LISTED: &str = "https://app.example";
const FOREIGN: [&[(&str, &str)]; 6] = [
    &[("origin", "https://evil.example")],
    &[("origin", "null")],
    &[("sec-fetch-site", "cross-site")],
    &[("sec-fetch-site", "cross-site"), ("origin", "https://evil.example")],
    &[("sec-fetch-site", "same-site"), ("origin", "https://other.app.example")],
    &[("sec-fetch-site", "same-site")],
];
const OWN: [&[(&str, &str)]; 6] = [
    &[],
    &[("origin", "https://test")],
    &[("sec-fetch-site", "same-origin")],
    &[("sec-fetch-site", "none")],
    &[("origin", LISTED)],
    &[("sec-fetch-site", "cross-site"), ("origin", LISTED)],
];

/// Sends the request of a page with these headers.
async fn as_page(server: &Server, path: &str, headers: &[(&str, &str)]) -> Reply {
    let request = headers.iter().fold(Request::get(path), |request, (name, value)| request.header(*name, *value));
    send(server.addr, request.body("").unwrap()).await
}

#[tokio::test]
async fn a_page_of_another_origin_is_refused_without_a_call_of_the_hook() {
    let (server, calls) = mounted(Hub::builder().allow_cross_origin(LISTED)).await;
    for path in MOUNTINGS {
        for headers in FOREIGN {
            let reply = as_page(&server, path, headers).await;
            assert_eq!(reply.status, StatusCode::FORBIDDEN, "{path} {headers:?}");
            assert_eq!(reply.text().await, "the origin of this page is not allowed\n", "{path} {headers:?}");
        }
    }
    assert_eq!(calls.load(Ordering::SeqCst), 0);
}

#[tokio::test]
async fn pages_of_the_same_site_listed_origins_and_other_clients_are_accepted() {
    let (server, _) = mounted(Hub::builder().allow_cross_origin(LISTED)).await;
    for path in MOUNTINGS {
        for headers in OWN {
            assert_eq!(as_page(&server, path, headers).await.status, StatusCode::OK, "{path} {headers:?}");
        }
    }
}

#[tokio::test]
async fn pages_of_application_shells_and_extensions_are_accepted_when_listed() {
    for origin in [
        "capacitor://localhost",
        "ionic://localhost",
        "tauri://localhost",
        "app://obsidian.md",
        "chrome-extension://aapbdbdomjkkjkaonfhkkikfgjllcleb",
        "moz-extension://12345678-9abc-def0-1234-56789abcdef0",
    ] {
        let (server, _) = mounted(Hub::builder().allow_cross_origin(origin)).await;
        for path in MOUNTINGS {
            for headers in [&[("origin", origin)][..], &[("sec-fetch-site", "cross-site"), ("origin", origin)]] {
                assert_eq!(as_page(&server, path, headers).await.status, StatusCode::OK, "{path} {origin}");
            }
            let other = [("origin", "capacitor://other")];
            assert_eq!(as_page(&server, path, &other).await.status, StatusCode::FORBIDDEN, "{path}");
        }
    }
}

#[tokio::test]
async fn every_page_is_accepted_when_any_origin_is_allowed() {
    let (server, _) = mounted(Hub::builder().allow_any_origin()).await;
    for path in MOUNTINGS {
        for headers in FOREIGN.into_iter().chain(OWN) {
            assert_eq!(as_page(&server, path, headers).await.status, StatusCode::OK, "{path} {headers:?}");
        }
    }
}

#[tokio::test]
async fn a_narrowed_stream_keeps_joined_topics_that_the_hook_permits() {
    struct Documents(Arc<AtomicUsize>);
    fn granted() -> Subscription {
        Subscription::for_user("ada").topic("news").may_join(TopicFilter::prefix("documents/"))
    }
    impl Access for Documents {
        async fn authorize(&self, _: StreamRequest) -> Result<Subscription, Refusal> {
            Ok(granted())
        }
        async fn recheck(&self, _: Subscription) -> Recheck {
            self.0.fetch_add(1, Ordering::SeqCst);
            Recheck::Narrow(granted())
        }
    }
    let calls = Arc::new(AtomicUsize::new(0));
    let hook = Documents(Arc::clone(&calls));
    let (hub, server) =
        serve_access(frequent_rechecks(), |hub| Router::new().layer(hub.layer("/events", hook).allow_topic_changes()))
            .await;
    let _page = subscribe(server.addr, "/events").await;
    let id = hub.connections()[0].id;
    let join = |topic| Request::post(format!("/events/{id}/topics?join={topic}")).body("").unwrap();
    assert_eq!(send(server.addr, join("documents/7")).await.status, StatusCode::OK);
    hub.connection(id).join("given/8").await.unwrap();
    let before = calls.load(Ordering::SeqCst);
    until(|| calls.load(Ordering::SeqCst) > before + 1).await;
    let topics = || hub.connections()[0].topics.iter().map(ToString::to_string).collect::<Vec<_>>();
    assert_eq!(topics(), ["news", "documents/7"], "the recheck removes a topic that the hook does not grant");
}

/// The background tasks move to a runtime with streams when their runtime ends, also without a
/// publish.
#[test]
fn rechecks_continue_when_a_runtime_ends() {
    static ASKED: AtomicUsize = AtomicUsize::new(0);
    struct Counts;
    impl Access for Counts {
        async fn authorize(&self, _: StreamRequest) -> Result<Subscription, Refusal> {
            Ok(Subscription::for_user("ada"))
        }
        async fn recheck(&self, _: Subscription) -> Recheck {
            ASKED.fetch_add(1, Ordering::SeqCst);
            Recheck::Keep
        }
    }
    let builder = Hub::builder().recheck_every(Duration::from_millis(50)).heartbeat(Duration::from_millis(50));
    let hub = builder.build().unwrap();
    let runtime = || tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let open = async |hub: Hub| {
        let request = Request::get("/events").body(()).unwrap();
        let response = tower::ServiceExt::oneshot(hub.endpoint(Counts), request).await.unwrap();
        let mut body = Box::pin(response.into_body());
        tokio::spawn(async move { while http_body_util::BodyExt::frame(&mut body).await.is_some() {} });
    };
    let (stays, dies) = (runtime(), runtime());
    // The background tasks run on the runtime on which a stream was opened last.
    dies.block_on(open(hub.clone()));
    stays.block_on(open(hub.clone()));
    dies.block_on(open(hub.clone()));
    drop(dies);
    let before = ASKED.load(Ordering::SeqCst);
    stays.block_on(until(|| ASKED.load(Ordering::SeqCst) > before + 3));
}
