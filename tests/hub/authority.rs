//! Who may read is looked at again while a stream is open, when it comes back, and when a ticket is redeemed; and whose
//! pages may ask at all.

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
    SubscriberItem, Subscription, Ticket, TopicFilter,
};

use crate::kit::access::asked_for;
use crate::kit::{Events, Reply, Server, Sse, get, parsed, resume, send, soon, subscribe, until};

/// How often open streams are asked about.
const EVERY: Duration = Duration::from_millis(100);
const SECOND: Duration = Duration::from_secs(1);
/// How many tickets of one user may wait.
const TICKETS_OF_A_USER: usize = 64;

// ---------------------------------------------------------------------------------------------------------------------
// A hook that lets in whoever says who they are, and says of open streams what a test has it say

struct Door<F> {
    hub: Hub,
    verdict: F,
}

/// What the hook attaches beside the data.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Session(u32);

/// What the query says, with data and an extension.
fn with_session(request: &StreamRequest) -> Subscription {
    let mut subscription = asked_for(request);
    for user in request.query_values("user") {
        subscription = subscription.data(&json!({ "name": user }));
    }
    subscription.extension(Session(7))
}

impl<F, Fut> Access for Door<F>
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

fn hurried() -> HubBuilder {
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
        let door = Door { hub: hub.clone(), verdict };
        Router::new().route_service("/events", hub.endpoint(door))
    })
    .await
}

/// A hook that keeps everything, until a test has it say something else.
#[derive(Clone)]
struct Says {
    verdict: Arc<Mutex<Recheck>>,
    asked: Arc<AtomicUsize>,
}

impl Default for Says {
    fn default() -> Self {
        Self { verdict: Arc::new(Mutex::new(Recheck::Keep)), asked: Arc::default() }
    }
}

impl Says {
    fn now(&self, verdict: Recheck) {
        *self.verdict.lock().unwrap() = verdict;
    }

    fn asked(&self) -> usize {
        self.asked.load(Ordering::SeqCst)
    }

    async fn serve(&self, builder: HubBuilder) -> (Hub, Server) {
        let says = self.clone();
        serve(builder, move |_| {
            says.asked.fetch_add(1, Ordering::SeqCst);
            ready(says.verdict.lock().unwrap().clone())
        })
        .await
    }
}

/// Reads on to the goodbye, which is the last.
async fn bye(events: Events) -> Sse {
    let last = events.rest().await.pop().expect("no goodbye");
    assert_eq!(last.event, "hub.bye");
    last
}

async fn publish(hub: &Hub, topic: &str, data: &str) {
    hub.topic(topic).publish(Event::unnamed(data.to_owned())).await.unwrap();
}

// ---------------------------------------------------------------------------------------------------------------------
// Verdicts

#[tokio::test]
async fn a_revoked_stream_ends_within_an_interval_and_may_come_back_to_be_decided_anew() {
    let says = Says::default();
    let (hub, server) = says.serve(hurried()).await;
    let events = subscribe(server.addr, "/events?user=ada&topic=t").await;
    let last_id = events.last_id.clone();
    until(|| says.asked() > 0).await;
    let since = Instant::now();
    says.now(Recheck::End(Refusal::unauthorized()));
    let bye = bye(events).await;
    assert!(since.elapsed() < EVERY * 10, "{:?}", since.elapsed());
    assert_eq!(parsed(&bye), json!({ "reason": "revoked", "reconnect": "now" }));
    // It goes on from where it was.
    assert_eq!(bye.id, last_id);
    assert!(bye.retry.is_some());
    assert_eq!((hub.topic("t").count(), hub.user("ada").count()), (0, 0));
}

#[tokio::test]
async fn a_stream_that_is_refused_for_later_is_told_when() {
    let later = Refusal::retry_later(RefusalReason::Busy).retry(5 * SECOND);
    let (_hub, server) = serve(hurried(), move |_| ready(Recheck::End(later.clone()))).await;
    let bye = bye(subscribe(server.addr, "/events?topic=t").await).await;
    assert_eq!(parsed(&bye), json!({ "reason": "revoked", "reconnect": "later" }));
    let retry = bye.retry.unwrap();
    assert!(retry >= 5 * SECOND && retry <= 8 * SECOND, "{retry:?}");
}

#[tokio::test]
async fn a_stream_that_is_refused_for_ever_is_answered_204_when_it_returns_with_the_id_of_the_goodbye() {
    let (_hub, server) = serve(hurried(), |_| ready(Recheck::End(Refusal::gone()))).await;
    let bye = bye(subscribe(server.addr, "/events?topic=t").await).await;
    assert_eq!(parsed(&bye), json!({ "reason": "revoked", "reconnect": "never" }));
    let again = Request::get("/events?topic=t").header("last-event-id", &bye.id).body("").unwrap();
    assert_eq!(send(server.addr, again).await.status, StatusCode::NO_CONTENT);
    // A new page of the same person is let in, and looked at again.
    assert_eq!(get(server.addr, "/events?topic=t").await.status, StatusCode::OK);
}

#[tokio::test]
async fn a_narrowed_stream_loses_topics_keeps_the_others_and_hears_which() {
    let says = Says::default();
    let (hub, server) = says.serve(hurried()).await;
    let mut events = subscribe(server.addr, "/events?user=ada&topic=a&topic=b&topic=c").await;
    // What is in it beyond what the stream has is not added.
    says.now(Recheck::Narrow(Subscription::for_user("ada").with_topics(["b", "d"])));
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
async fn what_waits_of_a_topic_that_was_taken_away_is_not_written() {
    const RECORDS: usize = 200;
    let says = Says::default();
    let wide = Retention::replay().count(2 * RECORDS).bytes(64 << 20);
    let (hub, server) = says.serve(hurried().topic_retention(wide)).await;
    let mut events = subscribe(server.addr, "/events?topic=secret&topic=open").await;
    // Far more than the buffers between us and a client that does not read.
    let large = "x".repeat(200_000);
    for _ in 0..RECORDS {
        hub.topic("secret").publish(Event::new("secret", large.clone())).await.unwrap();
    }
    says.now(Recheck::Narrow(Subscription::anonymous().topic("open")));
    until(|| hub.topic("secret").count() == 0).await;
    hub.topic("open").publish(Event::unnamed("still here")).await.unwrap();
    let mut secrets = 0;
    let open = loop {
        let event = events.next_own().await;
        match event.event.as_str() {
            "secret" => secrets += 1,
            _ => break event,
        }
    };
    assert_eq!(open.data, "still here");
    assert!(secrets < RECORDS / 2, "{secrets} of {RECORDS} were written");
}

#[tokio::test]
async fn who_loses_a_topic_that_tells_who_comes_and_goes_has_left_it() {
    let says = Says::default();
    let builder = hurried().presence_for(TopicFilter::exact("room")).presence_grace(EVERY);
    let (hub, server) = says.serve(builder).await;
    let _ada = subscribe(server.addr, "/events?user=ada&topic=room&topic=other").await;
    // What is said of ada suits nobody else, so it is somebody in this process who watches.
    let mut watcher = hub.subscribe(Subscription::anonymous().topic("room"), None).unwrap();
    says.now(Recheck::Narrow(Subscription::for_user("ada").topic("other")));
    let left = loop {
        match soon(watcher.next()).await.unwrap() {
            SubscriberItem::Event(event) => break event,
            SubscriberItem::Live(_) => {}
            other => panic!("{other:?}"),
        }
    };
    assert_eq!((left.name.as_str(), left.data.as_str()), ("hub.left", r#"{"topic":"room","user":"ada"}"#));
}

#[tokio::test]
async fn a_narrowed_stream_may_be_given_more_time() {
    let renewed = |subscription: Subscription| {
        let topics = subscription.topics().to_vec();
        ready(Recheck::Narrow(Subscription::anonymous().with_topics(topics).expires_in(60 * SECOND)))
    };
    let (hub, server) = serve(hurried(), renewed).await;
    let since = Instant::now();
    let mut events = subscribe(server.addr, "/events?topic=t&expires_ms=600").await;
    tokio::time::sleep_until((since + Duration::from_millis(900)).into()).await;
    publish(&hub, "t", "alive").await;
    assert_eq!(events.next_own().await.data, "alive");
}

#[tokio::test]
async fn a_narrowed_stream_may_be_given_less_time() {
    let shortened = |_| ready(Recheck::Narrow(Subscription::anonymous().topic("t").expires_in(Duration::ZERO)));
    let (_hub, server) = serve(hurried(), shortened).await;
    let bye = bye(subscribe(server.addr, "/events?topic=t&expires_ms=3600000").await).await;
    assert_eq!(parsed(&bye), json!({ "reason": "expired", "reconnect": "now" }));
}

#[tokio::test]
async fn a_verdict_that_hands_back_the_same_time_is_no_news() {
    // Asked about twenty times in its last two seconds.
    let (_hub, server) = serve(hurried(), |subscription| ready(Recheck::Narrow(subscription))).await;
    let events = subscribe(server.addr, "/events?topic=t&expires_ms=2000").await.rest().await;
    let notices = events.iter().filter(|event| event.event == "hub.expiring").count();
    assert_eq!((notices, parsed(events.last().unwrap())["reason"].as_str()), (1, Some("expired")), "{events:?}");
}

#[tokio::test]
async fn a_stream_that_turns_out_to_be_somebody_elses_ends() {
    for other in [Subscription::for_user("ben").topic("t"), Subscription::anonymous().topic("t")] {
        let (_hub, server) = serve(hurried(), move |_| ready(Recheck::Narrow(other.clone()))).await;
        let bye = bye(subscribe(server.addr, "/events?user=ada&topic=t").await).await;
        assert_eq!(parsed(&bye), json!({ "reason": "revoked", "reconnect": "now" }));
    }
}

#[tokio::test]
async fn what_is_settled_is_not_asked_about_again_and_what_is_kept_is() {
    let asked = Arc::new(Mutex::new(Vec::new()));
    let notes = Arc::clone(&asked);
    let (_hub, server) = serve(hurried(), move |subscription| {
        let user = subscription.user().unwrap().to_string();
        notes.lock().unwrap().push(user.clone());
        ready(if user == "settled" { Recheck::Settled } else { Recheck::Keep })
    })
    .await;
    let count = |user: &str| asked.lock().unwrap().iter().filter(|asked| *asked == user).count();
    let _settled = subscribe(server.addr, "/events?user=settled").await;
    let _kept = subscribe(server.addr, "/events?user=kept").await;
    until(|| count("kept") >= 8).await;
    assert_eq!(count("settled"), 1);
}

#[tokio::test]
async fn a_closure_is_asked_once_for_each_request() {
    let asked = Arc::new(AtomicUsize::new(0));
    let says = Says::default();
    let (_hub, server) = serve_access(hurried(), |hub| {
        let (asked, says) = (Arc::clone(&asked), says.clone());
        let closure = move |request: StreamRequest| {
            asked.fetch_add(1, Ordering::SeqCst);
            ready(Ok(with_session(&request)))
        };
        let clock = move |_| {
            says.asked.fetch_add(1, Ordering::SeqCst);
            ready(Recheck::Keep)
        };
        let door = Door { hub: hub.clone(), verdict: clock };
        Router::new().route_service("/closure", hub.endpoint(closure)).route_service("/door", hub.endpoint(door))
    })
    .await;
    let _closure = subscribe(server.addr, "/closure?topic=t").await;
    let _door = subscribe(server.addr, "/door?topic=t").await;
    until(|| says.asked() >= 5).await;
    assert_eq!(asked.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn the_hook_sees_what_the_stream_has_now() {
    let seen = Arc::new(Mutex::new(None));
    let last = Arc::clone(&seen);
    let (hub, server) = serve(hurried(), move |subscription| {
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

// ---------------------------------------------------------------------------------------------------------------------
// A hook that fails

#[derive(Clone, Copy)]
enum Failure {
    Panic,
    Silence,
}

impl Failure {
    async fn happen(self) -> Recheck {
        match self {
            Self::Panic => panic!("the hook's own"),
            Self::Silence => futures::future::pending().await,
        }
    }
}

/// A hook that fails of the streams of `bad` whenever `fails` says so of the number of the question; how often it was
/// asked about them.
async fn failing(failure: Failure, fails: fn(usize) -> bool) -> (Hub, Server, Arc<AtomicUsize>) {
    let asked = Arc::new(AtomicUsize::new(0));
    let number = Arc::clone(&asked);
    let builder = hurried().access_timeout(Duration::from_millis(50));
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
    (hub, server, asked)
}

#[tokio::test]
async fn a_hook_that_fails_now_and_then_leaves_the_stream_open() {
    for failure in [Failure::Panic, Failure::Silence] {
        let (hub, server, asked) = failing(failure, |number| number % 2 == 0).await;
        let mut events = subscribe(server.addr, "/events?user=bad&topic=t").await;
        until(|| asked.load(Ordering::SeqCst) >= 6).await;
        publish(&hub, "t", "still here").await;
        assert_eq!(events.next_own().await.data, "still here");
    }
}

#[tokio::test]
async fn a_hook_that_fails_twice_in_a_row_ends_the_stream_and_no_other() {
    for failure in [Failure::Panic, Failure::Silence] {
        let (hub, server, asked) = failing(failure, |_| true).await;
        let mut other = subscribe(server.addr, "/events?user=good&topic=t").await;
        let bye = bye(subscribe(server.addr, "/events?user=bad&topic=t").await).await;
        assert_eq!(parsed(&bye), json!({ "reason": "revoked", "reconnect": "now" }));
        assert_eq!(asked.load(Ordering::SeqCst), 2);
        publish(&hub, "t", "still here").await;
        assert_eq!(other.next_own().await.data, "still here");
    }
}

#[tokio::test]
async fn sixty_four_streams_are_asked_about_at_once_and_all_get_their_turn() {
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
    let (_hub, server) = serve(hurried(), move |subscription| {
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

// ---------------------------------------------------------------------------------------------------------------------
// Coming back

#[tokio::test]
async fn a_resume_yields_only_what_may_be_read_now() {
    let is_revoked = Arc::new(AtomicBool::new(false));
    let revoked = Arc::clone(&is_revoked);
    let (hub, server) = serve_access(hurried(), |hub| {
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
async fn a_busy_stream_is_told_of_its_end_and_ends_by_its_time() {
    let (hub, server) = serve(hurried(), |_| ready(Recheck::Settled)).await;
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
    assert!(expiring + 1 < at("hub.bye"), "nothing came between");
    assert_eq!(parsed(events.last().unwrap()), json!({ "reason": "expired", "reconnect": "now" }));
}

// ---------------------------------------------------------------------------------------------------------------------
// Tickets

async fn ticket(hub: &Hub, subscription: Subscription) -> Ticket {
    hub.ticket(subscription, 60 * SECOND).await.unwrap()
}

fn with_ticket(ticket: &Ticket) -> String {
    format!("/events?ticket={}", ticket.as_str())
}

/// All that a client can tell one answer from another by.
async fn face(reply: Reply) -> (StatusCode, HeaderMap, String) {
    let (status, mut headers) = (reply.status, reply.headers.clone());
    headers.remove("date");
    (status, headers, reply.text().await)
}

#[tokio::test]
async fn a_ticket_opens_the_stream_that_it_was_made_for() {
    let says = Says::default();
    let (hub, server) = says.serve(hurried()).await;
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
async fn a_ticket_that_is_spent_unknown_malformed_void_or_over_is_answered_all_the_same() {
    let says = Says::default();
    let (hub, server) = says.serve(hurried()).await;
    let over = hub.ticket(Subscription::for_user("ben"), 3 * SECOND).await.unwrap();
    let expired = hub.ticket(Subscription::for_user("ben").expires_in(SECOND / 10), 60 * SECOND).await.unwrap();
    let spent = ticket(&hub, Subscription::for_user("ben")).await;
    let void = ticket(&hub, Subscription::for_user("ada")).await;
    let void_by_topic = ticket(&hub, Subscription::for_user("ben").topic("closed")).await;
    assert_eq!(get(server.addr, &with_ticket(&spent)).await.status, StatusCode::OK);
    hub.user("ada").disconnect(Disconnect::now()).await.unwrap();
    hub.topic("closed").disconnect(Disconnect::now()).await.unwrap();
    tokio::time::sleep(3 * SECOND + SECOND / 10).await;
    let expected = face(get(server.addr, "/events?ticket=").await).await;
    assert_eq!(expected.0, StatusCode::UNAUTHORIZED);
    let malformed = ["0", "x", "%00", "%FF", "-0000000000000000000000000000001", "+0000000000000000000000000000001"]
        .map(String::from);
    let unknown = ["0".repeat(32), "f".repeat(32), "F".repeat(32), "0".repeat(33), "0".repeat(5000)];
    let made = [over, expired, spent, void, void_by_topic].map(|ticket| ticket.as_str().to_owned());
    for ticket in malformed.into_iter().chain(unknown).chain(made) {
        let answer = face(get(server.addr, &format!("/events?ticket={ticket}")).await).await;
        assert_eq!(answer, expected, "{ticket}");
    }
}

#[tokio::test]
async fn of_simultaneous_redemptions_one_wins() {
    let says = Says::default();
    let (hub, server) = says.serve(hurried()).await;
    for _ in 0..20 {
        let path = with_ticket(&ticket(&hub, Subscription::for_user("ada")).await);
        let replies = join_all((0..4).map(|_| get(server.addr, &path))).await;
        let count = |status| replies.iter().filter(|reply| reply.status == status).count();
        assert_eq!((count(StatusCode::OK), count(StatusCode::UNAUTHORIZED)), (1, 3));
    }
}

#[tokio::test]
async fn a_ticket_is_looked_at_again_when_it_is_redeemed() {
    let says = Says::default();
    let (hub, server) = says.serve(hurried()).await;
    let redeemed = async |verdict| {
        let ticket = ticket(&hub, Subscription::for_user("ada").with_topics(["a", "b", "c"])).await;
        says.now(verdict);
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
async fn the_time_of_a_tickets_subscription_counts_from_the_issue() {
    let says = Says::default();
    let (hub, server) = says.serve(hurried()).await;
    let since = Instant::now();
    let ticket = ticket(&hub, Subscription::for_user("ada").expires_in(3 * SECOND)).await;
    tokio::time::sleep_until((since + 5 * SECOND / 2).into()).await;
    let bye = bye(get(server.addr, &with_ticket(&ticket)).await.events()).await;
    assert_eq!(parsed(&bye)["reason"], "expired");
    // Counted from the redemption, the stream would not end before 2.5 and nine tenths of 3 seconds.
    assert!(since.elapsed() < 5 * SECOND, "{:?}", since.elapsed());
}

#[tokio::test]
async fn a_ticket_lives_between_a_second_and_an_hour() {
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
async fn a_ticket_carries_what_can_travel_to_another_instance() {
    let hub = Hub::builder().build().unwrap();
    let subscription = Subscription::for_user("ada").data("ada").extension(Session(7));
    let ticket = hub.ticket(subscription, SECOND).await.unwrap();
    let request = Request::get(with_ticket(&ticket)).body(()).unwrap();
    let redeemed = hub.redeem(&StreamRequest::from_request(&request)).await.unwrap();
    assert_eq!(redeemed.data_json(), Some("\"ada\""));
    assert_eq!(redeemed.extensions().get::<Session>(), None);
}

#[tokio::test]
async fn too_many_tickets_are_refused_until_one_is_redeemed_or_over() {
    let says = Says::default();
    let (hub, server) = says.serve(hurried()).await;
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
    let _fourth = issued(60 * SECOND).await.expect("the second one is over");
}

/// Redeems the ticket of a request. Then it does what the test says.
#[derive(Clone)]
struct Redeems {
    hub: Hub,
    then: Arc<Mutex<Then>>,
    redeemed: Arc<tokio::sync::Notify>,
}

#[derive(Clone, Copy, PartialEq)]
enum Then {
    LetsIn,
    SaysLater,
    Forbids,
    Hangs,
    HangsInRecheck,
    Panics,
    BuildsAnother,
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
            Then::LetsIn | Then::HangsInRecheck => Ok(subscription),
            Then::SaysLater => Err(Refusal::retry_later(RefusalReason::Busy)),
            Then::Forbids => Err(Refusal::forbidden()),
            Then::Hangs => futures::future::pending().await,
            Then::Panics => panic!("the hook's own"),
            Then::BuildsAnother => Ok(Subscription::for_user(subscription.user().unwrap())),
        }
    }

    async fn recheck(&self, _: Subscription) -> Recheck {
        let hangs = *self.then.lock().unwrap() == Then::HangsInRecheck;
        if hangs { futures::future::pending().await } else { Recheck::Settled }
    }
}

async fn serve_redeeming(builder: HubBuilder) -> (Hub, Server, Redeems) {
    let hub = builder.build().unwrap();
    let hook = Redeems { hub: hub.clone(), then: Arc::new(Mutex::new(Then::LetsIn)), redeemed: Arc::default() };
    let layer = hub.layer("/events", hook.clone()).allow_topic_changes();
    let server = Server::start(&hub, Router::new().route("/", axum_get(async || "")).layer(layer)).await;
    (hub, server, hook)
}

#[tokio::test]
async fn a_ticket_is_good_again_when_its_request_gets_no_stream() {
    let (hub, server, hook) = serve_redeeming(hurried().access_timeout(SECOND / 10)).await;
    for (then, expected) in [
        (Then::SaysLater, StatusCode::OK),
        (Then::Hangs, StatusCode::OK),
        (Then::HangsInRecheck, StatusCode::OK),
        (Then::Forbids, StatusCode::FORBIDDEN),
        (Then::Panics, StatusCode::INTERNAL_SERVER_ERROR),
    ] {
        let path = with_ticket(&ticket(&hub, Subscription::for_user("ada")).await);
        hook.now(then);
        // Browsers come back with the same URL after a retryable refusal.
        for _ in 0..2 {
            let refused = get(server.addr, &path).await;
            assert_eq!(refused.status, expected);
            if expected == StatusCode::OK {
                assert_eq!(refused.events().next().await.event, "hub.refused");
            }
        }
        hook.now(Then::LetsIn);
        let opened = get(server.addr, &path).await;
        assert_eq!(opened.status, StatusCode::OK);
        assert_eq!(opened.events().next().await.event, "hub.hello");
        assert_eq!(get(server.addr, &path).await.status, StatusCode::UNAUTHORIZED, "a ticket opens one stream");
    }
}

#[tokio::test]
async fn a_ticket_is_good_again_when_its_client_leaves_before_the_hook_decides() {
    let (hub, server, hook) = serve_redeeming(hurried()).await;
    let path = with_ticket(&ticket(&hub, Subscription::for_user("ada")).await);
    hook.now(Then::Hangs);
    let request = Request::get(path.as_str()).body(()).unwrap();
    let endpoint = hub.endpoint(hook.clone());
    let asking = tokio::spawn(tower::ServiceExt::oneshot(endpoint, request));
    soon(hook.redeemed.notified()).await;
    asking.abort();
    assert!(soon(asking).await.is_err());
    hook.now(Then::LetsIn);
    assert_eq!(get(server.addr, &path).await.status, StatusCode::OK);
}

#[tokio::test]
async fn a_ticket_is_good_again_when_a_change_of_topics_is_refused() {
    let (hub, server, hook) = serve_redeeming(hurried()).await;
    let subscription = || Subscription::for_user("ada").may_join(TopicFilter::prefix("open/"));
    let _page = subscribe(server.addr, &with_ticket(&ticket(&hub, subscription()).await)).await;
    let id = hub.connections()[0].id;
    let ticket = ticket(&hub, subscription()).await;
    let change = |topic| {
        let path = format!("/events/{id}/topics?join={topic}&ticket={}", ticket.as_str());
        send(server.addr, Request::post(path).body("").unwrap())
    };
    hook.now(Then::SaysLater);
    assert_eq!(change("open/1").await.status, StatusCode::SERVICE_UNAVAILABLE);
    hook.now(Then::LetsIn);
    assert_eq!(change("secret").await.status, StatusCode::FORBIDDEN);
    assert_eq!(change("open/1").await.status, StatusCode::OK);
    assert_eq!(change("open/2").await.status, StatusCode::UNAUTHORIZED, "a ticket is good for one change");
}

#[tokio::test]
async fn a_ticket_is_spent_when_the_hook_builds_a_subscription_of_its_own_from_it() {
    let (hub, server, hook) = serve_redeeming(hurried()).await;
    hook.now(Then::BuildsAnother);
    let path = with_ticket(&ticket(&hub, Subscription::for_user("ada")).await);
    assert_eq!(get(server.addr, &path).await.status, StatusCode::OK);
    assert_eq!(get(server.addr, &path).await.status, StatusCode::UNAUTHORIZED);
}

#[tokio::test]
async fn a_ticket_that_was_given_back_is_void_after_a_disconnect_and_over_in_its_time() {
    let (hub, server, hook) = serve_redeeming(hurried()).await;
    let void = with_ticket(&ticket(&hub, Subscription::for_user("ada")).await);
    let over = with_ticket(&hub.ticket(Subscription::for_user("ben"), 3 * SECOND).await.unwrap());
    hook.now(Then::SaysLater);
    for path in [&void, &over] {
        assert_eq!(get(server.addr, path).await.events().next().await.event, "hub.refused");
    }
    hook.now(Then::LetsIn);
    hub.user("ada").disconnect(Disconnect::now()).await.unwrap();
    assert_eq!(get(server.addr, &void).await.status, StatusCode::UNAUTHORIZED);
    tokio::time::sleep(3 * SECOND + SECOND / 10).await;
    assert_eq!(get(server.addr, &over).await.status, StatusCode::UNAUTHORIZED);
}

/// A user who was demoted after the ticket was made.
#[tokio::test]
async fn a_narrowed_ticket_lets_a_page_join_what_both_it_and_the_hook_allow() {
    let says = Says::default();
    let (hub, server) = serve_access(hurried().recheck_every(3600 * SECOND), |hub| {
        let verdicts = says.clone();
        let verdict = move |_| ready(verdicts.verdict.lock().unwrap().clone());
        let door = Door { hub: hub.clone(), verdict };
        Router::new().route("/", axum_get(async || "")).layer(hub.layer("/events", door).allow_topic_changes())
    })
    .await;
    let _page = subscribe(server.addr, "/events?user=ada").await;
    let id = hub.connections()[0].id;
    let may_join = |subscription: Subscription| {
        let rules = ["rooms/", "documents/a/", "wide"].map(TopicFilter::prefix);
        rules.into_iter().fold(subscription, Subscription::may_join).may_join(TopicFilter::exact("exact/1"))
    };
    says.now(Recheck::Narrow(
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
async fn one_user_cannot_take_all_tickets() {
    let hub = Hub::builder().build().unwrap();
    let issued = async |user: &str| hub.ticket(Subscription::for_user(user), 60 * SECOND).await;
    for _ in 0..TICKETS_OF_A_USER {
        issued("ada").await.unwrap();
    }
    assert!(issued("ada").await.unwrap_err().is_over_limit());
    issued("ben").await.expect("the tickets of another user are no reason");
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

// ---------------------------------------------------------------------------------------------------------------------
// Whose pages may ask

async fn handler(State(hub): State<Hub>, request: StreamRequest) -> EventStream {
    hub.respond(request, Subscription::anonymous().topic("t"))
}

/// All three mountings, and how often a hook was asked.
async fn mounted(builder: HubBuilder) -> (Server, Arc<AtomicUsize>) {
    let asked = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&asked);
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
    (server, asked)
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

/// The answer to a page that sends these headers.
async fn as_page(server: &Server, path: &str, headers: &[(&str, &str)]) -> Reply {
    let request = headers.iter().fold(Request::get(path), |request, (name, value)| request.header(*name, *value));
    send(server.addr, request.body("").unwrap()).await
}

#[tokio::test]
async fn a_page_of_another_origin_is_forbidden_before_anybody_is_asked() {
    let (server, asked) = mounted(Hub::builder().allow_cross_origin(LISTED)).await;
    for path in MOUNTINGS {
        for headers in FOREIGN {
            let reply = as_page(&server, path, headers).await;
            assert_eq!(reply.status, StatusCode::FORBIDDEN, "{path} {headers:?}");
            assert_eq!(reply.text().await, "the origin of this page is not allowed\n", "{path} {headers:?}");
        }
    }
    assert_eq!(asked.load(Ordering::SeqCst), 0);
}

#[tokio::test]
async fn the_sites_own_pages_those_that_are_listed_and_clients_that_are_no_browsers_may() {
    let (server, _) = mounted(Hub::builder().allow_cross_origin(LISTED)).await;
    for path in MOUNTINGS {
        for headers in OWN {
            assert_eq!(as_page(&server, path, headers).await.status, StatusCode::OK, "{path} {headers:?}");
        }
    }
}

#[tokio::test]
async fn pages_of_application_shells_and_extensions_may_when_they_are_listed() {
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
async fn where_any_origin_is_allowed_every_page_may() {
    let (server, _) = mounted(Hub::builder().allow_any_origin()).await;
    for path in MOUNTINGS {
        for headers in FOREIGN.into_iter().chain(OWN) {
            assert_eq!(as_page(&server, path, headers).await.status, StatusCode::OK, "{path} {headers:?}");
        }
    }
}

#[tokio::test]
async fn a_narrowing_leaves_what_a_page_may_join() {
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
    let asked = Arc::new(AtomicUsize::new(0));
    let hook = Documents(Arc::clone(&asked));
    let (hub, server) =
        serve_access(hurried(), |hub| Router::new().layer(hub.layer("/events", hook).allow_topic_changes())).await;
    let _page = subscribe(server.addr, "/events").await;
    let id = hub.connections()[0].id;
    let join = |topic| Request::post(format!("/events/{id}/topics?join={topic}")).body("").unwrap();
    assert_eq!(send(server.addr, join("documents/7")).await.status, StatusCode::OK);
    hub.connection(id).join("given/8").await.unwrap();
    let before = asked.load(Ordering::SeqCst);
    until(|| asked.load(Ordering::SeqCst) > before + 1).await;
    let topics = || hub.connections()[0].topics.iter().map(ToString::to_string).collect::<Vec<_>>();
    assert_eq!(topics(), ["news", "documents/7"], "what the hook knows nothing of is taken away");
}

/// The hub's work goes on where streams are, also when the runtime that it was on is gone and nobody publishes.
#[test]
fn rechecks_go_on_when_a_runtime_dies() {
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
    // The work is where streams were opened last.
    dies.block_on(open(hub.clone()));
    stays.block_on(open(hub.clone()));
    dies.block_on(open(hub.clone()));
    drop(dies);
    let before = ASKED.load(Ordering::SeqCst);
    stays.block_on(until(|| ASKED.load(Ordering::SeqCst) > before + 3));
}
