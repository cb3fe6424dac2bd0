//! Targets, disconnects, bans and tickets, and the isolation of users and topics from each other.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use axum::Router;
use futures::FutureExt;
use http::{Request, StatusCode};
use proptest::prelude::*;
use serde_json::json;
use tokio::sync::{Notify, Semaphore};
use tower_sse::{
    Access, CommandError, Disconnect, EndReason, Event, Hub, HubBuilder, IntoAccess, Receipt, Refusal, RefusalReason,
    StreamRequest, Subscriber, SubscriberItem, Subscription, Target, TopicFilter, UserId,
};

use crate::kit::access::by_query;
use crate::kit::page::Page;
use crate::kit::{Reply, Server, get, http2, parsed, reply, send, soon};

const SECOND: Duration = Duration::from_secs(1);
const HOUR: Duration = Duration::from_secs(3600);
/// The resolution of the hub's clock.
const A_TICK: Duration = Duration::from_millis(1);

async fn start() -> (Hub, Server) {
    start_as(Hub::builder(), |_| by_query).await
}

async fn start_as<M, A: IntoAccess<M>>(builder: HubBuilder, access: impl FnOnce(&Hub) -> A) -> (Hub, Server) {
    let hub = builder.build().unwrap();
    let app = Router::new().route_service("/events", hub.endpoint(access(&hub)));
    let server = Server::start(&hub, app).await;
    (hub, server)
}

impl Page {
    /// Opens a stream over HTTP/2, and reads until it has caught up.
    async fn open_2(addr: SocketAddr, path: &str) -> Self {
        let request = Request::get(format!("http://test{path}")).body(http_body_util::Full::default()).unwrap();
        Self::caught_up(reply(soon(http2(addr).await.send_request(request)).await.unwrap())).await
    }

    /// Opens one stream over HTTP/1.1 and one over HTTP/2.
    async fn tabs(addr: SocketAddr, path: &str) -> [Self; 2] {
        [Self::open(addr, path).await, Self::open_2(addr, path).await]
    }
}

async fn publish(target: Target<'_>, data: &str) {
    target.publish(Event::unnamed(data.to_owned())).await.unwrap();
}

async fn reconnect(addr: SocketAddr, path: &str, id: &str) -> Reply {
    send(addr, Request::get(path).header("last-event-id", id).body("").unwrap()).await
}

/// Repeats the request until the response is not 204.
async fn reconnect_after_ban(addr: SocketAddr, path: &str, id: &str) -> Reply {
    soon(async {
        loop {
            let reply = reconnect(addr, path, id).await;
            if reply.status != StatusCode::NO_CONTENT {
                return reply;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await
}

// Targets.

#[tokio::test]
async fn every_tab_of_a_user_receives_events_for_the_user() {
    let (hub, server) = start().await;
    let [one, two] = Page::tabs(server.addr, "/events?user=ada").await;
    let [three, four] = Page::tabs(server.addr, "/events?user=ada&topic=a").await;
    let [ben, _] = Page::tabs(server.addr, "/events?user=ben&topic=ada").await;
    publish(hub.user("ada"), "for ada").await;
    publish(hub.everyone(), "for all").await;
    for mut tab in [one, two, three, four] {
        assert_eq!(tab.reads().await, "for ada");
        assert_eq!(tab.reads().await, "for all");
    }
    let mut ben = ben;
    assert_eq!(ben.reads().await, "for all");
}

#[tokio::test]
async fn a_union_reaches_each_connection_once() {
    let (hub, server) = start().await;
    let mut tabs = Vec::new();
    for path in ["?user=ada&topic=a&topic=b", "?user=ada", "?topic=a&topic=b", "?user=ben&topic=b"] {
        tabs.extend(Page::tabs(server.addr, &format!("/events{path}")).await);
    }
    let mut outsider = Page::open(server.addr, "/events?user=b&topic=ada").await;
    let union = || hub.user("ada").and(hub.topic("a")).and(hub.topic("b"));
    publish(union(), "union").await;
    assert_eq!(union().count(), tabs.len());
    publish(hub.everyone(), "after").await;
    for tab in &mut tabs {
        assert_eq!(tab.reads().await, "union");
        assert_eq!(tab.reads().await, "after");
    }
    assert_eq!(outsider.reads().await, "after");
}

#[tokio::test]
async fn an_excluded_connection_does_not_receive_the_event() {
    let (hub, server) = start().await;
    let [mut author, mut other] = Page::tabs(server.addr, "/events?user=ada&topic=a").await;
    publish(hub.user("ada").and(hub.topic("a")).except(&author.connection), "news").await;
    publish(hub.everyone(), "after").await;
    assert_eq!(author.reads().await, "after");
    assert_eq!(other.reads().await, "news");
}

// Disconnects.

#[tokio::test]
async fn a_disconnect_ends_the_streams_of_the_user_with_a_reason_and_a_note() {
    let (hub, server) = start().await;
    let tabs = Page::tabs(server.addr, "/events?user=ada").await;
    let [mut ben, mut anonymous] =
        [Page::open(server.addr, "/events?user=ben").await, Page::open(server.addr, "/events").await];
    assert_eq!(hub.stats().connections, 4);

    assert_eq!(hub.user("ada").disconnect(Disconnect::now().note("renew \"it\"")).await.unwrap().connections, 2);
    assert_eq!(hub.stats().connections, 2);
    assert_eq!((hub.user("ada").count(), hub.user("ben").count()), (0, 1));

    for tab in tabs {
        let id = tab.events.last_id.clone();
        let (bye, id_then) = tab.bye().await;
        assert_eq!(parsed(&bye), json!({"reason": "disconnected", "reconnect": "now", "note": "renew \"it\""}));
        assert_eq!(id_then, id, "the client resumes after its last event");
    }
    assert_eq!(hub.stats().ended(EndReason::Disconnected), 2);
    publish(hub.everyone(), "after").await;
    assert_eq!(ben.reads().await, "after");
    assert_eq!(anonymous.reads().await, "after");
}

#[tokio::test]
async fn a_disconnect_sets_the_retry_time() {
    const TEN: Duration = Duration::from_secs(10);
    for (disconnect, word, retry) in [
        // One to two times the retry time of the hub.
        (Disconnect::now(), "now", Some(SECOND * 2..=SECOND * 4)),
        (Disconnect::reconnect_after(TEN), "later", Some(TEN..=TEN * 3 / 2)),
        // The hub limits the time to 0.1 s to 1 h.
        (Disconnect::reconnect_after(HOUR * 24), "later", Some(HOUR..=HOUR)),
        (Disconnect::reconnect_after(Duration::ZERO), "later", Some(SECOND / 10..=SECOND / 10)),
        (Disconnect::block_for(HOUR), "never", None),
    ] {
        let (hub, server) = start_as(Hub::builder(), |_| by_query).await;
        for page in Page::tabs(server.addr, "/events?user=ada").await {
            assert_eq!(hub.connection(&page.connection).disconnect(disconnect.clone()).await.unwrap().connections, 1);
            let (bye, _) = page.bye().await;
            assert_eq!(parsed(&bye), json!({"reason": "disconnected", "reconnect": word}));
            let is_in = |range: &RangeInclusive<Duration>| bye.retry.is_some_and(|retry| range.contains(&retry));
            assert!(retry.as_ref().map_or(bye.retry.is_none(), is_in), "{disconnect:?}: {:?}", bye.retry);
        }
    }
}

#[tokio::test]
async fn a_disconnect_reaches_only_its_target() {
    type ToTarget = for<'a> fn(&'a Hub, &str) -> Target<'a>;
    let targets: [(ToTarget, &[usize]); 5] = [
        (|hub, _| hub.user("ada"), &[0, 1]),
        (|hub, first| hub.connection(first), &[0]),
        (|hub, _| hub.topic("a"), &[1, 2]),
        (|hub, first| hub.user("ben").and(hub.connection(first)), &[0, 3]),
        (|hub, _| hub.everyone(), &[0, 1, 2, 3]),
    ];
    for (to_target, disconnected) in targets {
        let (hub, server) = start().await;
        let mut pages = Vec::new();
        for path in ["?user=ada", "?user=ada&topic=a", "?topic=a", "?user=ben&topic=ada"] {
            pages.push(Page::open(server.addr, &format!("/events{path}")).await);
        }
        let target = to_target(&hub, &pages[0].connection);
        assert_eq!(target.disconnect(Disconnect::now()).await.unwrap().connections, disconnected.len());
        assert_eq!(hub.stats().connections, pages.len() - disconnected.len());
        publish(hub.everyone(), "after").await;
        for (index, mut page) in pages.into_iter().enumerate() {
            if disconnected.contains(&index) {
                assert_eq!(parsed(&page.bye().await.0)["reason"], "disconnected");
            } else {
                assert_eq!(page.reads().await, "after");
            }
        }
    }
}

#[tokio::test]
async fn a_disconnect_counts_zero_connections_when_its_target_is_not_connected() {
    let (hub, server) = start().await;
    let page = Page::open(server.addr, "/events?user=ada").await;
    let connection = page.connection.clone();
    for target in [hub.user("ben"), hub.topic("ada"), hub.connection("0".repeat(32))] {
        assert_eq!(target.disconnect(Disconnect::now()).await.unwrap().connections, 0);
    }
    assert_eq!(hub.connection(&connection).disconnect(Disconnect::now()).await.unwrap().connections, 1);
    assert_eq!(
        hub.connection(&connection).disconnect(Disconnect::now()).await.unwrap().connections,
        0,
        "the connection has ended"
    );
    page.bye().await;
}

#[tokio::test]
async fn a_disconnect_with_an_invalid_name_or_note_is_refused() {
    let (hub, server) = start().await;
    let mut page = Page::open(server.addr, "/events?user=ada").await;
    let refused = |outcome: Result<Receipt, CommandError>| outcome.unwrap_err().to_string();
    let note = "x".repeat(Disconnect::MAX_NOTE_BYTES + 1);
    assert!(refused(hub.user("ada").disconnect(Disconnect::now().note(note)).await).contains("note"));
    assert!(refused(hub.user("").disconnect(Disconnect::now()).await).contains("user"));
    assert!(refused(hub.user("ada").and(hub.topic("a\n")).disconnect(Disconnect::now()).await).contains("topic"));
    publish(hub.user("ada"), "headline").await;
    assert_eq!(page.reads().await, "headline");
}

#[tokio::test]
async fn an_excluded_connection_is_not_disconnected() {
    let (hub, server) = start().await;
    let [mut excluded, target_tab] = Page::tabs(server.addr, "/events?user=ada&topic=a").await;
    let target = hub.user("ada").and(hub.topic("a")).except(&excluded.connection);
    assert_eq!(target.disconnect(Disconnect::now()).await.unwrap().connections, 1);
    target_tab.bye().await;
    publish(hub.user("ada"), "headline").await;
    assert_eq!(excluded.reads().await, "headline");
}

#[tokio::test]
async fn events_that_are_pending_at_a_disconnect_are_delivered_after_the_reconnect() {
    let (hub, server) = start().await;
    let [first, second] = Page::tabs(server.addr, "/events?user=ada").await;
    // Nothing awaits from here to the disconnect, so the server cannot write the events before it.
    let pending = ["1", "2", "3"];
    for n in pending {
        hub.user("ada").publish_now(Event::unnamed(n)).unwrap();
    }
    hub.user("ada")
        .disconnect(Disconnect::now())
        .now_or_never()
        .expect("a command on one instance is ready at once")
        .unwrap();
    for page in [first, second] {
        let (_, id) = page.bye().await;
        let mut events = reconnect(server.addr, "/events?user=ada", &id).await.events();
        assert_eq!(events.next().await.event, "hub.hello");
        for n in pending {
            assert_eq!(events.next().await.data, n);
        }
        assert_eq!(events.next().await.event, "hub.live");
    }
}

// Bans.

#[tokio::test]
async fn a_banned_user_gets_204_until_the_ban_ends() {
    let (hub, server) = start().await;
    let [page, other] = Page::tabs(server.addr, "/events?user=ada").await;
    let before = page.events.last_id.clone();
    let since = Instant::now();
    // Long enough for the requests below on a busy machine.
    let ban = 4 * SECOND;
    hub.user("ada").disconnect(Disconnect::block_for(ban)).await.unwrap();
    let (_, banned) = page.bye().await;
    other.bye().await;
    for id in ["", &before, &banned, "nonsense"] {
        let reply = reconnect(server.addr, "/events?user=ada&topic=a", id).await;
        assert_eq!(reply.status, StatusCode::NO_CONTENT, "{id:?}");
        assert_eq!(reply.text().await, "");
    }
    assert!(hub.subscribe(Subscription::for_user("ada"), None).unwrap_err().is_banned());
    Page::open(server.addr, "/events?user=ben&topic=ada").await;
    assert!(since.elapsed() < ban, "the requests took longer than the ban");

    let mut again = Page::caught_up(reconnect_after_ban(server.addr, "/events?user=ada", "").await).await;
    assert!(since.elapsed() >= ban - A_TICK);
    publish(hub.user("ada"), "welcome").await;
    assert_eq!(again.reads().await, "welcome");
}

#[tokio::test]
async fn a_banned_connection_gets_204_and_a_new_page_gets_a_stream() {
    for path in ["/events?user=ada", "/events", "/events?topic=a"] {
        let (hub, server) = start().await;
        for page in Page::tabs(server.addr, path).await {
            let connection = page.connection.clone();
            assert_eq!(
                hub.connection(&connection).disconnect(Disconnect::block_for(HOUR)).await.unwrap().connections,
                1
            );
            let (_, banned) = page.bye().await;
            assert_eq!(reconnect(server.addr, path, &banned).await.status, StatusCode::NO_CONTENT);
            // The id contains the ban, so it applies to every user and topic, also when it is in
            // the query.
            let elsewhere = format!("/events?user=ben&last_event_id={banned}");
            assert_eq!(get(server.addr, &elsewhere).await.status, StatusCode::NO_CONTENT);
            Page::open(server.addr, path).await;
        }
    }
}

#[tokio::test]
async fn the_id_of_a_banned_client_covers_the_whole_ban() {
    let (hub, server) = start().await;
    for within in [Duration::from_millis(300), Duration::from_millis(700), SECOND * 3 / 2] {
        let page = Page::open(server.addr, "/events").await;
        let at_least = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap() + within;
        hub.connection(&page.connection).disconnect(Disconnect::block_for(within)).await.unwrap();
        let (_, banned) = page.bye().await;
        let until = Duration::from_secs(banned.strip_prefix("0.").unwrap().parse().unwrap());
        assert!(until >= at_least, "{banned} ends {:?} before {within:?} have passed", at_least - until);
    }
}

#[tokio::test]
async fn the_id_of_a_banned_client_leads_to_a_gap_when_the_ban_is_over() {
    let (hub, server) = start().await;
    let page = Page::open(server.addr, "/events").await;
    hub.connection(&page.connection).disconnect(Disconnect::block_for(SECOND)).await.unwrap();
    let (_, banned) = page.bye().await;
    let mut events = reconnect_after_ban(server.addr, "/events", &banned).await.events();
    assert_eq!(parsed(&events.next().await)["cursor"], "refused");
    assert_eq!(
        events.next().await.event,
        "hub.gap",
        "the id of a banned client has no position, so the loss is unknown"
    );
    assert_eq!(events.next().await.event, "hub.live");
}

#[tokio::test]
async fn a_request_for_a_banned_topic_or_a_banned_hub_gets_204() {
    let (hub, server) = start().await;
    let addr = server.addr;
    let page = Page::open(addr, "/events?topic=a").await;
    hub.topic("a").disconnect(Disconnect::block_for(HOUR)).await.unwrap();
    page.bye().await;
    for path in ["/events?topic=a", "/events?user=ada&topic=b&topic=a"] {
        assert_eq!(get(addr, path).await.status, StatusCode::NO_CONTENT);
    }
    let page = Page::open(addr, "/events?user=a&topic=b").await;
    hub.everyone().disconnect(Disconnect::block_for(HOUR)).await.unwrap();
    page.bye().await;
    assert_eq!(get(addr, "/events?user=new").await.status, StatusCode::NO_CONTENT);
}

#[tokio::test]
async fn a_user_is_banned_without_an_open_connection() {
    let (hub, server) = start().await;
    assert_eq!(hub.user("ada").disconnect(Disconnect::block_for(HOUR)).await.unwrap().connections, 0);
    assert_eq!(get(server.addr, "/events?user=ada").await.status, StatusCode::NO_CONTENT);
    // A later disconnect without a ban does not shorten the ban.
    hub.user("ada").disconnect(Disconnect::now()).await.unwrap();
    assert_eq!(get(server.addr, "/events?user=ada").await.status, StatusCode::NO_CONTENT);
}

#[tokio::test]
async fn a_head_request_of_a_banned_user_gets_204_like_a_stream() {
    let (hub, server) = start().await;
    hub.user("ada").disconnect(Disconnect::block_for(HOUR)).await.unwrap();
    for (path, status) in [("/events?user=ada", StatusCode::NO_CONTENT), ("/events?user=ben", StatusCode::OK)] {
        assert_eq!(send(server.addr, Request::head(path).body("").unwrap()).await.status, status, "{path}");
    }
}

// Disconnects while a request is being authorized.

/// An access hook that decides at once, and returns its decision when the test opens the gate.
#[derive(Clone, Default)]
struct Gate {
    decided: Arc<Notify>,
    open: Arc<Closed>,
}

/// A semaphore without permits.
struct Closed(Semaphore);

impl Default for Closed {
    fn default() -> Self {
        Self(Semaphore::new(0))
    }
}

impl Access for Gate {
    async fn authorize(&self, request: StreamRequest) -> Result<Subscription, Refusal> {
        let decided = by_query(request).await;
        self.decided.notify_one();
        drop(self.open.0.acquire().await);
        decided
    }
}

/// Sends a request, runs `disconnect` while the hook decides, and returns the response.
async fn disconnect_during_authorization(
    path: &'static str,
    disconnect: impl AsyncFnOnce(&Hub),
) -> (Hub, Server, Reply) {
    let gate = Gate::default();
    let (hub, server) = start_as(Hub::builder(), |_| gate.clone()).await;
    let addr = server.addr;
    let asking = tokio::spawn(async move { get(addr, path).await });
    soon(gate.decided.notified()).await;
    disconnect(&hub).await;
    gate.open.0.add_permits(1000);
    let reply = soon(asking).await.unwrap();
    (hub, server, reply)
}

#[tokio::test]
async fn a_request_that_was_authorized_before_a_disconnect_is_refused_for_now() {
    async fn of_user(hub: &Hub) {
        hub.user("ada").disconnect(Disconnect::now()).await.unwrap();
    }
    async fn of_topic(hub: &Hub) {
        hub.topic("a").disconnect(Disconnect::reconnect_after(HOUR)).await.unwrap();
    }
    async fn of_everyone(hub: &Hub) {
        hub.everyone().disconnect(Disconnect::now()).await.unwrap();
    }
    const PATH: &str = "/events?user=ada&topic=a";
    for (hub, server, reply) in [
        disconnect_during_authorization(PATH, of_user).await,
        disconnect_during_authorization(PATH, of_topic).await,
        disconnect_during_authorization(PATH, of_everyone).await,
    ] {
        let refused = reply.events().rest().await;
        assert_eq!(refused.len(), 1);
        assert_eq!(refused[0].event, "hub.refused");
        assert_eq!(parsed(&refused[0])["reason"], "disconnected");
        assert!(refused[0].retry.is_some());
        assert_eq!(hub.stats().refused(RefusalReason::Disconnected), 1);
        assert_eq!(hub.stats().connections, 0);

        let mut again = Page::open(server.addr, PATH).await;
        publish(hub.user("ada"), "welcome").await;
        assert_eq!(again.reads().await, "welcome");
    }
}

#[tokio::test]
async fn a_request_gets_204_when_its_user_is_banned_during_authorization() {
    let disconnect = async |hub: &Hub| assert!(hub.user("ada").disconnect(Disconnect::block_for(HOUR)).await.is_ok());
    let (_hub, _server, reply) = disconnect_during_authorization("/events?user=ada", disconnect).await;
    assert_eq!(reply.status, StatusCode::NO_CONTENT);
}

#[tokio::test]
async fn a_disconnect_of_another_target_does_not_refuse_a_request() {
    let disconnect = async |hub: &Hub| {
        hub.user("a").and(hub.topic("ada")).and(hub.user("ad")).disconnect(Disconnect::now()).await.unwrap();
    };
    let (_hub, _server, reply) = disconnect_during_authorization("/events?user=ada&topic=a", disconnect).await;
    Page::caught_up(reply).await;
}

// Tickets.

struct Redeems(Hub);

impl Access for Redeems {
    async fn authorize(&self, request: StreamRequest) -> Result<Subscription, Refusal> {
        self.0.redeem(&request).await
    }
}

async fn ticket(hub: &Hub, subscription: Subscription) -> String {
    let ticket = hub.ticket(subscription, Duration::from_secs(60)).await.unwrap();
    format!("/events?ticket={}", ticket.as_str())
}

#[tokio::test]
async fn a_ticket_opens_one_stream() {
    let (hub, server) = start_as(Hub::builder(), |hub| Redeems(hub.clone())).await;
    let path = ticket(&hub, Subscription::for_user("ada").topic("a")).await;
    let mut page = Page::open(server.addr, &path).await;
    publish(hub.user("ada").and(hub.topic("a")), "in").await;
    assert_eq!(page.reads().await, "in");
    for spent in [path.as_str(), "/events?ticket=", "/events"] {
        let reply = get(server.addr, spent).await;
        assert_eq!((reply.status, reply.text().await.as_str()), (StatusCode::UNAUTHORIZED, "sign in first\n"));
    }
}

#[tokio::test]
async fn a_disconnect_revokes_the_tickets_of_its_target() {
    let (hub, server) = start_as(Hub::builder(), |hub| Redeems(hub.clone())).await;
    let addr = server.addr;
    let ada = || Subscription::for_user("ada").topic("a");
    for target in [hub.user("ada"), hub.topic("a"), hub.everyone(), hub.user("ben").and(hub.user("ada"))] {
        let path = ticket(&hub, ada()).await;
        target.disconnect(Disconnect::now()).await.unwrap();
        assert_eq!(get(addr, &path).await.status, StatusCode::UNAUTHORIZED);
    }
    let connection = Page::open(addr, &ticket(&hub, ada()).await).await.connection;
    for other in [hub.user("a"), hub.topic("ada"), hub.user("ben"), hub.connection(connection)] {
        let path = ticket(&hub, ada()).await;
        other.disconnect(Disconnect::now()).await.unwrap();
        assert_eq!(parsed(&get(addr, &path).await.events().next().await)["topics"], json!(["a"]));
    }
    let before = ticket(&hub, ada()).await;
    hub.user("ada").disconnect(Disconnect::block_for(HOUR)).await.unwrap();
    for path in [before, ticket(&hub, ada()).await] {
        assert_eq!(get(addr, &path).await.status, StatusCode::NO_CONTENT, "a ticket does not bypass a ban");
    }
}

// Isolation.

/// Names that a joined string, a pattern or a careless comparison would confuse.
const NAMES: [&str; 24] = [
    "a",
    "a:b",
    "a/b",
    "a.b",
    "a,b",
    "a b",
    "a|b",
    "b",
    "ab",
    "A",
    "user:a",
    "topic:a",
    "user",
    "*",
    "a*",
    ">",
    "a.>",
    " ",
    "a ",
    "{a}",
    "%61",
    "\u{e4}",
    "a\u{308}",
    "\u{1f980}",
];

#[tokio::test]
async fn events_reach_only_their_exact_user_or_topic_over_sockets() {
    let (hub, server) = start().await;
    let mut pages = Vec::new();
    for name in NAMES {
        for field in ["user", "topic"] {
            let query = form_urlencoded::Serializer::new(String::new()).append_pair(field, name).finish();
            let page = Page::open(server.addr, &format!("/events?{query}")).await;
            pages.push((format!("{field} {name}"), page));
        }
    }
    for name in NAMES {
        assert_eq!((hub.user(name).count(), hub.topic(name).count()), (1, 1));
        publish(hub.user(name), &format!("user {name}")).await;
        publish(hub.topic(name), &format!("topic {name}")).await;
    }
    publish(hub.everyone(), "end").await;
    for (own, page) in &mut pages {
        assert_eq!(page.reads().await, *own);
        assert_eq!(page.reads().await, "end", "for {own}");
    }
}

#[tokio::test]
async fn presence_events_reach_only_their_own_topic() {
    let (hub, server) = start_as(Hub::builder().presence_for(TopicFilter::any()), |_| by_query).await;
    let mut watching = Page::open(server.addr, "/events?topic=a").await;
    let mut elsewhere = Page::open(server.addr, "/events?topic=a%3Ab").await;
    let _one = Page::open(server.addr, "/events?user=b%3Ac&topic=a").await;
    let _two = Page::open(server.addr, "/events?user=c&topic=a%3Ab").await;
    publish(hub.everyone(), "end").await;
    for (page, topic, user) in [(&mut watching, "a", "b:c"), (&mut elsewhere, "a:b", "c")] {
        let joined = page.events.next().await;
        assert_eq!(joined.event, "hub.joined");
        assert_eq!(parsed(&joined), json!({"topic": topic, "user": user}));
        assert_eq!(page.events.next().await.data, "end");
        let members: Vec<_> = hub.topic(topic).presence().members.into_iter().map(|member| member.user).collect();
        assert_eq!(members.iter().map(UserId::as_str).collect::<Vec<_>>(), [user]);
    }
}

#[derive(Clone, Debug)]
enum Step {
    Open(Option<usize>, BTreeSet<usize>),
    Publish(BTreeSet<Name>),
    Join(usize, usize),
    Leave(usize, usize),
    JoinUser(usize, usize),
    LeaveUser(usize, usize),
    Disconnect(Name),
    DisconnectConnection(usize),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Name {
    User(usize),
    Topic(usize),
}

impl Name {
    fn target(self, hub: &Hub) -> Target<'_> {
        match self {
            Self::User(user) => hub.user(NAMES[user]),
            Self::Topic(topic) => hub.topic(NAMES[topic]),
        }
    }
}

fn step() -> impl Strategy<Value = Step> {
    // Similar names are next to each other in the list. Most steps use the first four, so that
    // steps often meet on the same name.
    let index = 0..NAMES.len();
    let near = prop_oneof![3 => 0..4usize, 1 => index];
    let name = prop_oneof![near.clone().prop_map(Name::User), near.clone().prop_map(Name::Topic)];
    let names = proptest::collection::btree_set(name.clone(), 1..4);
    let topics = proptest::collection::btree_set(near.clone(), 0..4);
    let connection = 0..6usize;
    prop_oneof![
        4 => (proptest::option::of(near.clone()), topics).prop_map(|(user, topics)| Step::Open(user, topics)),
        6 => names.prop_map(Step::Publish),
        2 => (connection.clone(), near.clone()).prop_map(|(c, t)| Step::Join(c, t)),
        2 => (connection.clone(), near.clone()).prop_map(|(c, t)| Step::Leave(c, t)),
        1 => (near.clone(), near.clone()).prop_map(|(u, t)| Step::JoinUser(u, t)),
        1 => (near.clone(), near).prop_map(|(u, t)| Step::LeaveUser(u, t)),
        1 => name.prop_map(Step::Disconnect),
        1 => connection.prop_map(Step::DisconnectConnection),
    ]
}

/// A connection, with the state that the model expects of it.
struct ModelConnection {
    stream: Subscriber,
    user: Option<usize>,
    topics: BTreeSet<usize>,
    expected: Vec<String>,
    received: Vec<String>,
}

impl ModelConnection {
    fn is(&self, name: Name) -> bool {
        match name {
            Name::User(user) => self.user == Some(user),
            Name::Topic(topic) => self.topics.contains(&topic),
        }
    }

    /// Reads every item that is ready.
    fn drain(&mut self) {
        while let Some(Some(item)) = self.stream.next().now_or_never() {
            match item {
                SubscriberItem::Event(event) => self.received.push(event.data),
                SubscriberItem::Gap { .. } => self.received.push("gap".to_owned()),
                SubscriberItem::End(reason) => self.received.push(reason.to_string()),
                _ => {}
            }
        }
    }
}

/// The hub, and a model of it.
struct Model {
    hub: Hub,
    open: Vec<ModelConnection>,
    user_topics: BTreeMap<usize, BTreeSet<usize>>,
    published: usize,
}

impl Model {
    fn new() -> Self {
        Self { hub: Hub::builder().build().unwrap(), open: Vec::new(), user_topics: BTreeMap::new(), published: 0 }
    }

    fn of_user(&mut self, user: usize) -> impl Iterator<Item = &mut ModelConnection> {
        self.open.iter_mut().filter(move |page| page.is(Name::User(user)))
    }

    fn take(&mut self, step: Step) {
        let hub = self.hub.clone();
        match step {
            Step::Open(user, topics) => self.open_stream(user, topics),
            Step::Publish(names) => {
                self.published += 1;
                let data = self.published.to_string();
                let targets = names.iter().map(|name| name.target(&hub));
                at_once(targets.reduce(Target::and).unwrap().publish(Event::unnamed(data.clone()))).unwrap();
                let is_receiver = |page: &&mut ModelConnection| names.iter().any(|name| page.is(*name));
                self.open.iter_mut().filter(is_receiver).for_each(|page| page.expected.push(data.clone()));
            }
            Step::Join(connection, topic) => {
                let Some(page) = self.open.get_mut(connection) else { return };
                let joined = at_once(hub.connection(page.stream.connection()).join(NAMES[topic]).into_future());
                assert_eq!(joined.unwrap().connections, usize::from(page.topics.insert(topic)));
            }
            Step::Leave(connection, topic) => {
                let Some(page) = self.open.get_mut(connection) else { return };
                let left = at_once(hub.connection(page.stream.connection()).leave(NAMES[topic]));
                assert_eq!(left.unwrap().connections, usize::from(page.topics.remove(&topic)));
            }
            Step::JoinUser(user, topic) => {
                self.user_topics.entry(user).or_default().insert(topic);
                let joined = at_once(hub.user(NAMES[user]).join(NAMES[topic]).into_future());
                let new = self.of_user(user).filter_map(|page| page.topics.insert(topic).then_some(()));
                assert_eq!(joined.unwrap().connections, new.count());
            }
            Step::LeaveUser(user, topic) => {
                self.user_topics.entry(user).or_default().remove(&topic);
                let left = at_once(hub.user(NAMES[user]).leave(NAMES[topic]));
                let had = self.of_user(user).filter_map(|page| page.topics.remove(&topic).then_some(()));
                assert_eq!(left.unwrap().connections, had.count());
            }
            Step::Disconnect(name) => self.disconnect(name.target(&hub), |page| page.is(name)),
            Step::DisconnectConnection(connection) => {
                let Some(page) = self.open.get(connection) else { return };
                let id = page.stream.connection();
                self.disconnect(hub.connection(id), |page| page.stream.connection() == id);
            }
        }
    }

    fn open_stream(&mut self, user: Option<usize>, mut topics: BTreeSet<usize>) {
        let mut subscription = Subscription::anonymous().with_topics(topics.iter().map(|topic| NAMES[*topic]));
        if let Some(user) = user {
            subscription = subscription.with_user(NAMES[user]);
            topics.extend(self.user_topics.get(&user).into_iter().flatten());
        }
        let stream = self.hub.subscribe(subscription, None).unwrap();
        self.open.push(ModelConnection { stream, user, topics, expected: Vec::new(), received: Vec::new() });
    }

    fn disconnect(&mut self, target: Target<'_>, is_targeted: impl Fn(&ModelConnection) -> bool) {
        let disconnected = at_once(target.disconnect(Disconnect::now()));
        let (gone, stay) = std::mem::take(&mut self.open).into_iter().partition::<Vec<_>, _>(is_targeted);
        assert_eq!(disconnected.unwrap().connections, gone.len());
        self.open = stay;
        for mut page in gone {
            page.expected.push("disconnected".to_owned());
            page.drain();
            assert_eq!(page.received, page.expected);
        }
    }

    /// Compares the events, counts and presence of the hub with the model.
    fn check(&mut self) {
        for page in &mut self.open {
            page.drain();
            assert_eq!(page.received, page.expected);
        }
        for index in 0..NAMES.len() {
            for name in [Name::User(index), Name::Topic(index)] {
                let there = || self.open.iter().filter(|page| page.is(name));
                let target = name.target(&self.hub);
                assert_eq!((target.count(), target.has_subscribers()), (there().count(), there().next().is_some()));
                let presence = target.presence();
                let users: BTreeSet<_> = there().filter_map(|page| page.user).map(|user| NAMES[user]).collect();
                let seen: Vec<_> = presence.members.iter().map(|member| member.user.as_str()).collect();
                assert_eq!(seen, users.into_iter().collect::<Vec<_>>());
                assert_eq!(presence.anonymous, there().filter(|page| page.user.is_none()).count());
            }
        }
        assert_eq!(self.hub.stats().connections, self.open.len());
    }
}

fn at_once<F: Future>(command: F) -> F::Output {
    command.now_or_never().expect("a command on one instance is ready at once")
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn commands_and_events_affect_only_their_exact_user_or_topic(steps in proptest::collection::vec(step(), 1..60)) {
        let mut model = Model::new();
        for step in steps {
            model.take(step);
            model.check();
        }
    }
}

#[test]
fn a_ban_of_a_topic_also_ends_a_stream_that_opens_at_the_same_time() {
    let hub = Hub::builder().build().unwrap();
    for round in 0..5_000 {
        let topic = format!("t{round}");
        let go = std::sync::Barrier::new(2);
        std::thread::scope(|scope| {
            let opened = scope.spawn(|| {
                go.wait();
                hub.subscribe(Subscription::for_user("ada").topic(topic.as_str()), None)
            });
            go.wait();
            at_once(hub.topic(topic.as_str()).disconnect(Disconnect::block_for(Duration::from_secs(1)))).unwrap();
            let opened = opened.join().unwrap();
            assert_eq!(hub.topic(topic.as_str()).count(), 0, "round {round}: {opened:?}");
        });
    }
}

#[tokio::test]
async fn a_stream_that_is_ending_ends_as_disconnected_when_it_is_banned() {
    let hub = Hub::builder().build().unwrap();
    let ending = async |disconnect: Option<Disconnect>| {
        let mut page = hub.subscribe(Subscription::for_user("ada"), None).unwrap();
        // The drain ends the stream, which has not been polled since.
        hub.drain(Duration::ZERO).await;
        if let Some(disconnect) = disconnect {
            assert_eq!(hub.connection(page.connection()).disconnect(disconnect).await.unwrap().connections, 1);
        }
        soon(page.next()).await
    };
    assert_eq!(
        ending(Some(Disconnect::block_for(Duration::from_secs(1)))).await,
        Some(SubscriberItem::End(EndReason::Disconnected))
    );
}
