//! Who gets what, who is sent away, and that nobody is taken for somebody else.

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

use crate::kit::access::as_asked;
use crate::kit::page::Page;
use crate::kit::{Reply, Server, get, http2, parsed, reply, send, soon};

const SECOND: Duration = Duration::from_secs(1);
const HOUR: Duration = Duration::from_secs(3600);
/// Of the hub's clock.
const A_TICK: Duration = Duration::from_millis(1);

async fn start() -> (Hub, Server) {
    start_as(Hub::builder(), |_| as_asked).await
}

async fn start_as<M, A: IntoAccess<M>>(builder: HubBuilder, access: impl FnOnce(&Hub) -> A) -> (Hub, Server) {
    let hub = builder.build().unwrap();
    let app = Router::new().route_service("/events", hub.endpoint(access(&hub)));
    let server = Server::start(&hub, app).await;
    (hub, server)
}

impl Page {
    /// [`open`](Self::open) over HTTP/2.
    async fn open_2(addr: SocketAddr, path: &str) -> Self {
        let request = Request::get(format!("http://test{path}")).body(http_body_util::Full::default()).unwrap();
        Self::of(reply(soon(http2(addr).await.send_request(request)).await.unwrap())).await
    }

    /// Over both versions of HTTP.
    async fn tabs(addr: SocketAddr, path: &str) -> [Self; 2] {
        [Self::open(addr, path).await, Self::open_2(addr, path).await]
    }
}

async fn publish(target: Target<'_>, data: &str) {
    target.publish(Event::unnamed(data.to_owned())).await.unwrap();
}

async fn come_back(addr: SocketAddr, path: &str, id: &str) -> Reply {
    send(addr, Request::get(path).header("last-event-id", id).body("").unwrap()).await
}

/// Asks until it is told to stay away no more.
async fn when_let_in(addr: SocketAddr, path: &str, id: &str) -> Reply {
    soon(async {
        loop {
            let reply = come_back(addr, path, id).await;
            if reply.status != StatusCode::NO_CONTENT {
                return reply;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await
}

// Addressing.

#[tokio::test]
async fn every_tab_of_a_user_gets_what_is_sent_to_the_user() {
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
async fn a_tab_that_caused_an_event_is_left_out() {
    let (hub, server) = start().await;
    let [mut author, mut other] = Page::tabs(server.addr, "/events?user=ada&topic=a").await;
    publish(hub.user("ada").and(hub.topic("a")).except(&author.connection), "news").await;
    publish(hub.everyone(), "after").await;
    assert_eq!(author.reads().await, "after");
    assert_eq!(other.reads().await, "news");
}

// Disconnects.

#[tokio::test]
async fn a_disconnected_user_is_told_why_and_others_stay() {
    let (hub, server) = start().await;
    let tabs = Page::tabs(server.addr, "/events?user=ada").await;
    let [mut ben, mut nobody] =
        [Page::open(server.addr, "/events?user=ben").await, Page::open(server.addr, "/events").await];
    assert_eq!(hub.stats().connections, 4);

    assert_eq!(hub.user("ada").disconnect(Disconnect::now().note("renew \"it\"")).await.unwrap().connections, 2);
    assert_eq!(hub.stats().connections, 2);
    assert_eq!((hub.user("ada").count(), hub.user("ben").count()), (0, 1));

    for tab in tabs {
        let id = tab.events.last_id.clone();
        let (bye, id_then) = tab.bye().await;
        assert_eq!(parsed(&bye), json!({"reason": "disconnected", "reconnect": "now", "note": "renew \"it\""}));
        assert_eq!(id_then, id, "it goes on from where it was");
    }
    assert_eq!(hub.stats().ended(EndReason::Disconnected), 2);
    publish(hub.everyone(), "after").await;
    assert_eq!(ben.reads().await, "after");
    assert_eq!(nobody.reads().await, "after");
}

#[tokio::test]
async fn the_retry_says_when_to_come_back() {
    const TEN: Duration = Duration::from_secs(10);
    for (disconnect, word, retry) in [
        // One to two times the hub's.
        (Disconnect::now(), "now", Some(SECOND * 2..=SECOND * 4)),
        (Disconnect::reconnect_after(TEN), "later", Some(TEN..=TEN * 3 / 2)),
        // Within the hub's range.
        (Disconnect::reconnect_after(HOUR * 24), "later", Some(HOUR..=HOUR)),
        (Disconnect::reconnect_after(Duration::ZERO), "later", Some(SECOND / 10..=SECOND / 10)),
        (Disconnect::block_for(HOUR), "never", None),
    ] {
        let (hub, server) = start_as(Hub::builder(), |_| as_asked).await;
        for page in Page::tabs(server.addr, "/events?user=ada").await {
            assert_eq!(hub.connection(&page.connection).disconnect(disconnect.clone()).await.unwrap().connections, 1);
            let (bye, _) = page.bye().await;
            assert_eq!(parsed(&bye), json!({"reason": "disconnected", "reconnect": word}));
            let fits = |range: &RangeInclusive<Duration>| bye.retry.is_some_and(|retry| range.contains(&retry));
            assert!(retry.as_ref().map_or(bye.retry.is_none(), fits), "{disconnect:?}: {:?}", bye.retry);
        }
    }
}

#[tokio::test]
async fn a_disconnect_reaches_its_target_and_nobody_else() {
    type Aim = for<'a> fn(&'a Hub, &str) -> Target<'a>;
    let aims: [(Aim, &[usize]); 5] = [
        (|hub, _| hub.user("ada"), &[0, 1]),
        (|hub, first| hub.connection(first), &[0]),
        (|hub, _| hub.topic("a"), &[1, 2]),
        (|hub, first| hub.user("ben").and(hub.connection(first)), &[0, 3]),
        (|hub, _| hub.everyone(), &[0, 1, 2, 3]),
    ];
    for (aim, disconnected) in aims {
        let (hub, server) = start().await;
        let mut pages = Vec::new();
        for path in ["?user=ada", "?user=ada&topic=a", "?topic=a", "?user=ben&topic=ada"] {
            pages.push(Page::open(server.addr, &format!("/events{path}")).await);
        }
        let target = aim(&hub, &pages[0].connection);
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
async fn nobody_is_there_to_be_disconnected() {
    let (hub, server) = start().await;
    let page = Page::open(server.addr, "/events?user=ada").await;
    let connection = page.connection.clone();
    for target in [hub.user("ben"), hub.topic("ada"), hub.connection("0".repeat(32))] {
        assert_eq!(target.disconnect(Disconnect::now()).await.unwrap().connections, 0);
    }
    assert_eq!(hub.connection(&connection).disconnect(Disconnect::now()).await.unwrap().connections, 1);
    assert_eq!(hub.connection(&connection).disconnect(Disconnect::now()).await.unwrap().connections, 0, "it has gone");
    page.bye().await;
}

#[tokio::test]
async fn a_disconnect_that_cannot_be_told_is_refused() {
    let (hub, server) = start().await;
    let mut page = Page::open(server.addr, "/events?user=ada").await;
    let refused = |outcome: Result<Receipt, CommandError>| outcome.unwrap_err().to_string();
    let note = "x".repeat(Disconnect::MAX_NOTE_BYTES + 1);
    assert!(refused(hub.user("ada").disconnect(Disconnect::now().note(note)).await).contains("note"));
    assert!(refused(hub.user("").disconnect(Disconnect::now()).await).contains("user"));
    assert!(refused(hub.user("ada").and(hub.topic("a\n")).disconnect(Disconnect::now()).await).contains("topic"));
    publish(hub.user("ada"), "still here").await;
    assert_eq!(page.reads().await, "still here");
}

#[tokio::test]
async fn the_excepted_connection_stays() {
    let (hub, server) = start().await;
    let [mut here, there] = Page::tabs(server.addr, "/events?user=ada&topic=a").await;
    let target = hub.user("ada").and(hub.topic("a")).except(&here.connection);
    assert_eq!(target.disconnect(Disconnect::now()).await.unwrap().connections, 1);
    there.bye().await;
    publish(hub.user("ada"), "only here").await;
    assert_eq!(here.reads().await, "only here");
}

#[tokio::test]
async fn what_waits_when_the_disconnect_comes_is_for_the_next_connection() {
    let (hub, server) = start().await;
    let [old, young] = Page::tabs(server.addr, "/events?user=ada").await;
    // The server has no chance to write in between: nothing here waits.
    let waits = ["1", "2", "3"];
    for n in waits {
        hub.user("ada").publish_now(Event::unnamed(n)).unwrap();
    }
    hub.user("ada").disconnect(Disconnect::now()).now_or_never().expect("it never waits").unwrap();
    for page in [old, young] {
        let (_, id) = page.bye().await;
        let mut events = come_back(server.addr, "/events?user=ada", &id).await.events();
        assert_eq!(events.next().await.event, "hub.hello");
        for n in waits {
            assert_eq!(events.next().await.data, n);
        }
        assert_eq!(events.next().await.event, "hub.live");
    }
}

// Staying away.

#[tokio::test]
async fn a_disconnected_user_comes_back_when_the_time_is_over() {
    let (hub, server) = start().await;
    let [page, other] = Page::tabs(server.addr, "/events?user=ada").await;
    let before = page.events.last_id.clone();
    let since = Instant::now();
    // Long enough for the requests below on a busy machine.
    let away = 4 * SECOND;
    hub.user("ada").disconnect(Disconnect::block_for(away)).await.unwrap();
    let (_, barred) = page.bye().await;
    other.bye().await;
    for id in ["", &before, &barred, "nonsense"] {
        let reply = come_back(server.addr, "/events?user=ada&topic=a", id).await;
        assert_eq!(reply.status, StatusCode::NO_CONTENT, "{id:?}");
        assert_eq!(reply.text().await, "");
    }
    assert!(hub.subscribe(Subscription::for_user("ada"), None).unwrap_err().is_banned());
    Page::open(server.addr, "/events?user=ben&topic=ada").await;
    assert!(since.elapsed() < away, "this machine is too slow for the test");

    let mut again = Page::of(when_let_in(server.addr, "/events?user=ada", "").await).await;
    assert!(since.elapsed() >= away - A_TICK);
    publish(hub.user("ada"), "welcome").await;
    assert_eq!(again.reads().await, "welcome");
}

#[tokio::test]
async fn a_disconnected_connection_stays_away_and_a_new_page_does_not() {
    for path in ["/events?user=ada", "/events", "/events?topic=a"] {
        let (hub, server) = start().await;
        for page in Page::tabs(server.addr, path).await {
            let connection = page.connection.clone();
            assert_eq!(
                hub.connection(&connection).disconnect(Disconnect::block_for(HOUR)).await.unwrap().connections,
                1
            );
            let (_, barred) = page.bye().await;
            assert_eq!(come_back(server.addr, path, &barred).await.status, StatusCode::NO_CONTENT);
            // The id says it, whoever brings it and wherever to, also in the query.
            let elsewhere = format!("/events?user=ben&last_event_id={barred}");
            assert_eq!(get(server.addr, &elsewhere).await.status, StatusCode::NO_CONTENT);
            Page::open(server.addr, path).await;
        }
    }
}

#[tokio::test]
async fn the_id_that_a_bye_leaves_holds_for_the_whole_time() {
    let (hub, server) = start().await;
    for within in [Duration::from_millis(300), Duration::from_millis(700), SECOND * 3 / 2] {
        let page = Page::open(server.addr, "/events").await;
        let at_least = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap() + within;
        hub.connection(&page.connection).disconnect(Disconnect::block_for(within)).await.unwrap();
        let (_, barred) = page.bye().await;
        let until = Duration::from_secs(barred.strip_prefix("0.").unwrap().parse().unwrap());
        assert!(until >= at_least, "{barred} is {:?} short of {within:?}", at_least - until);
    }
}

#[tokio::test]
async fn the_id_that_a_bye_leaves_is_worth_nothing_when_the_time_is_over() {
    let (hub, server) = start().await;
    let page = Page::open(server.addr, "/events").await;
    hub.connection(&page.connection).disconnect(Disconnect::block_for(SECOND)).await.unwrap();
    let (_, barred) = page.bye().await;
    let mut events = when_let_in(server.addr, "/events", &barred).await.events();
    assert_eq!(parsed(&events.next().await)["cursor"], "refused");
    assert_eq!(events.next().await.event, "hub.gap", "nobody knows what it has missed");
    assert_eq!(events.next().await.event, "hub.live");
}

#[tokio::test]
async fn whoever_asks_for_a_closed_topic_or_hub_stays_away() {
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
async fn a_user_is_kept_out_before_there_is_a_connection() {
    let (hub, server) = start().await;
    assert_eq!(hub.user("ada").disconnect(Disconnect::block_for(HOUR)).await.unwrap().connections, 0);
    assert_eq!(get(server.addr, "/events?user=ada").await.status, StatusCode::NO_CONTENT);
    // A milder one does not shorten it.
    hub.user("ada").disconnect(Disconnect::now()).await.unwrap();
    assert_eq!(get(server.addr, "/events?user=ada").await.status, StatusCode::NO_CONTENT);
}

#[tokio::test]
async fn a_head_says_of_who_is_to_stay_away_what_a_stream_would() {
    let (hub, server) = start().await;
    hub.user("ada").disconnect(Disconnect::block_for(HOUR)).await.unwrap();
    for (path, status) in [("/events?user=ada", StatusCode::NO_CONTENT), ("/events?user=ben", StatusCode::OK)] {
        assert_eq!(send(server.addr, Request::head(path).body("").unwrap()).await.status, status, "{path}");
    }
}

// Requests that are being decided.

/// Decides at once, and says so only when it is let.
#[derive(Clone, Default)]
struct Gate {
    decided: Arc<Notify>,
    open: Arc<Gauge>,
}

struct Gauge(Semaphore);

impl Default for Gauge {
    fn default() -> Self {
        Self(Semaphore::new(0))
    }
}

impl Access for Gate {
    async fn authorize(&self, request: StreamRequest) -> Result<Subscription, Refusal> {
        let decided = as_asked(request).await;
        self.decided.notify_one();
        drop(self.open.0.acquire().await);
        decided
    }
}

/// Begins a request, disconnects while it is being decided, and returns the answer.
async fn disconnected_meanwhile(path: &'static str, disconnect: impl AsyncFnOnce(&Hub)) -> (Hub, Server, Reply) {
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
async fn who_was_let_in_by_what_was_true_before_the_disconnect_asks_anew() {
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
        disconnected_meanwhile(PATH, of_user).await,
        disconnected_meanwhile(PATH, of_topic).await,
        disconnected_meanwhile(PATH, of_everyone).await,
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
async fn who_is_told_to_stay_away_while_being_let_in_does() {
    let disconnect = async |hub: &Hub| assert!(hub.user("ada").disconnect(Disconnect::block_for(HOUR)).await.is_ok());
    let (_hub, _server, reply) = disconnected_meanwhile("/events?user=ada", disconnect).await;
    assert_eq!(reply.status, StatusCode::NO_CONTENT);
}

#[tokio::test]
async fn a_disconnect_of_somebody_else_holds_nobody_up() {
    let disconnect = async |hub: &Hub| {
        hub.user("a").and(hub.topic("ada")).and(hub.user("ad")).disconnect(Disconnect::now()).await.unwrap();
    };
    let (_hub, _server, reply) = disconnected_meanwhile("/events?user=ada&topic=a", disconnect).await;
    Page::of(reply).await;
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
async fn a_disconnect_takes_the_tickets_of_its_target_away() {
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
        assert_eq!(get(addr, &path).await.status, StatusCode::NO_CONTENT, "a new one does not help");
    }
}

// Isolation.

/// What a joined string, a pattern or a careless comparison would confuse.
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
async fn no_name_is_taken_for_another_over_sockets() {
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
async fn who_comes_and_goes_is_told_to_the_own_topic_alone() {
    let (hub, server) = start_as(Hub::builder().presence_for(TopicFilter::any()), |_| as_asked).await;
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
    // Names that are close to each other are next to each other; a few are enough to meet often.
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

/// A connection as it should be, beside the one that is.
struct Modelled {
    stream: Subscriber,
    user: Option<usize>,
    topics: BTreeSet<usize>,
    expected: Vec<String>,
    received: Vec<String>,
}

impl Modelled {
    fn is(&self, name: Name) -> bool {
        match name {
            Name::User(user) => self.user == Some(user),
            Name::Topic(topic) => self.topics.contains(&topic),
        }
    }

    /// Takes what is there.
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

/// The hub, and in the same words what should come of it.
struct World {
    hub: Hub,
    open: Vec<Modelled>,
    user_topics: BTreeMap<usize, BTreeSet<usize>>,
    published: usize,
}

impl World {
    fn new() -> Self {
        Self { hub: Hub::builder().build().unwrap(), open: Vec::new(), user_topics: BTreeMap::new(), published: 0 }
    }

    fn of_user(&mut self, user: usize) -> impl Iterator<Item = &mut Modelled> {
        self.open.iter_mut().filter(move |page| page.is(Name::User(user)))
    }

    fn take(&mut self, step: Step) {
        let hub = self.hub.clone();
        match step {
            Step::Open(user, topics) => self.come(user, topics),
            Step::Publish(names) => {
                self.published += 1;
                let data = self.published.to_string();
                let targets = names.iter().map(|name| name.target(&hub));
                at_once(targets.reduce(Target::and).unwrap().publish(Event::unnamed(data.clone()))).unwrap();
                let hears = |page: &&mut Modelled| names.iter().any(|name| page.is(*name));
                self.open.iter_mut().filter(hears).for_each(|page| page.expected.push(data.clone()));
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

    fn come(&mut self, user: Option<usize>, mut topics: BTreeSet<usize>) {
        let mut subscription = Subscription::anonymous().with_topics(topics.iter().map(|topic| NAMES[*topic]));
        if let Some(user) = user {
            subscription = subscription.with_user(NAMES[user]);
            topics.extend(self.user_topics.get(&user).into_iter().flatten());
        }
        let stream = self.hub.subscribe(subscription, None).unwrap();
        self.open.push(Modelled { stream, user, topics, expected: Vec::new(), received: Vec::new() });
    }

    fn disconnect(&mut self, target: Target<'_>, is_meant: impl Fn(&Modelled) -> bool) {
        let disconnected = at_once(target.disconnect(Disconnect::now()));
        let (gone, stay) = std::mem::take(&mut self.open).into_iter().partition::<Vec<_>, _>(is_meant);
        assert_eq!(disconnected.unwrap().connections, gone.len());
        self.open = stay;
        for mut page in gone {
            page.expected.push("disconnected".to_owned());
            page.drain();
            assert_eq!(page.received, page.expected);
        }
    }

    /// What everybody has, and who is seen where.
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
    command.now_or_never().expect("on one instance it never waits")
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn what_happens_to_one_name_happens_to_no_other(steps in proptest::collection::vec(step(), 1..60)) {
        let mut world = World::new();
        for step in steps {
            world.take(step);
            world.check();
        }
    }
}

#[test]
fn no_stream_slips_past_a_topic_that_is_closed_while_it_opens() {
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
async fn a_stream_that_is_ending_already_is_kept_away_by_a_disconnect_that_is_stricter() {
    let hub = Hub::builder().build().unwrap();
    let ending = async |disconnect: Option<Disconnect>| {
        let mut page = hub.subscribe(Subscription::for_user("ada"), None).unwrap();
        // It is told to end, and has not looked yet.
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
