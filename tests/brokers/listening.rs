//! Who is listening, across instances: disconnects, joins, presence and counts reach whichever instance a client is on.

use std::time::Duration;

use axum::Router;
use http::{Request, StatusCode};
use serde_json::{Value, json};
use tower_sse::backplane::{Backplane, Memory};
use tower_sse::{
    Disconnect, Event, Hub, HubBuilder, OverLimit, Refusal, RefusalReason, StreamRequest, Subscription, Ticket,
    TopicFilter,
};

use crate::kit::access::from_query;
use crate::kit::broker::for_each_broker;
use crate::kit::page::Page;
use crate::kit::{Server, get, parsed, send, soon, until};

struct Instance {
    hub: Hub,
    server: Server,
}

/// Believes the query. Each user has data, and a page may join what is open.
async fn access(request: StreamRequest) -> Result<Subscription, Refusal> {
    let user = request.query_values("user");
    let subscription = from_query(&request).may_join(TopicFilter::prefix("open/"));
    Ok(user.fold(subscription, |subscription, user| subscription.data(&json!({ "name": user }))))
}

fn builder() -> HubBuilder {
    let brief = Duration::from_millis(600);
    Hub::builder()
        .probe_interval(Duration::from_millis(100))
        .peer_timeout(brief)
        .presence_grace(Duration::from_millis(300))
}

impl Instance {
    async fn start(builder: HubBuilder, log: impl Backplane) -> Self {
        let hub = builder.backplane(log).build().unwrap();
        let layered = Router::new()
            .route("/", axum::routing::get(|| async {}))
            .layer(hub.layer("/events", access).allow_topic_changes());
        let server = Server::start(&hub, layered).await;
        until(|| hub.is_ready()).await;
        Self { hub, server }
    }

    async fn open(&self, query: &str) -> Page {
        Page::open(self.server.addr, &format!("/events?{query}")).await
    }
}

async fn pair(log: impl Backplane + Clone) -> (Instance, Instance) {
    let one = Instance::start(builder(), log.clone()).await;
    let two = Instance::start(builder(), log).await;
    until(|| one.hub.stats().others == 1 && two.hub.stats().others == 1).await;
    (one, two)
}

impl Page {
    /// The topics in force, once they have changed.
    async fn topics(&mut self) -> Value {
        loop {
            let event = self.events.next().await;
            if event.event == "hub.live" && event.data.contains("topics") {
                return serde_json::from_str::<Value>(&event.data).unwrap()["topics"].take();
            }
        }
    }

    async fn goodbye(self) -> Value {
        let bye = self.events.rest().await.pop().unwrap();
        assert_eq!(bye.event, "hub.bye");
        parsed(&bye)
    }
}

async fn presence_is_the_same_everywhere(log: impl Backplane + Clone) {
    let (one, two) = pair(log.clone()).await;
    let ada = one.open("user=ada&topic=t").await;
    let ada_two = two.open("user=ada&topic=t").await;
    let _ben = two.open("user=ben&topic=t").await;
    let _nobody = one.open("topic=t").await;
    // One that starts later asks.
    let three = Instance::start(builder(), log).await;
    for hub in [&one.hub, &two.hub, &three.hub] {
        until(|| hub.topic("t").count() == 4).await;
        let presence = serde_json::to_value(hub.topic("t").presence()).unwrap();
        assert_eq!(
            presence["members"],
            json!([
                { "user": "ada", "connections": 2, "data": { "name": "ada" } },
                { "user": "ben", "connections": 1, "data": { "name": "ben" } },
            ])
        );
        assert_eq!(presence["anonymous"], 1);
        assert!(hub.user("ada").is_online() && hub.user("ben").has_subscribers() && !hub.user("cem").is_online());
        assert_eq!((hub.user("ada").count(), hub.everyone().count()), (2, 4));
        assert_eq!(hub.topic("t").and(hub.user("ada")).except(&ada.connection).count(), 3);
        assert!(!hub.topic("u").has_subscribers());
    }
    drop((ada, ada_two));
    for hub in [&one.hub, &two.hub, &three.hub] {
        until(|| hub.user("ada").count() == 0).await;
        until(|| !hub.user("ada").is_online()).await;
        assert!(hub.user("ben").is_online());
    }
}

async fn a_disconnect_reaches_every_instance(log: impl Backplane + Clone) {
    let (one, two) = pair(log).await;
    for (disconnect, reconnect) in
        [(Disconnect::now(), "now"), (Disconnect::block_for(Duration::from_secs(60)).note("out"), "never")]
    {
        let (here, there) = (one.open("user=ada").await, two.open("user=ada").await);
        let begun = std::time::Instant::now();
        assert_eq!(one.hub.user("ada").disconnect(disconnect).await.unwrap().connections, 1, "of this instance");
        for page in [here, there] {
            let bye = page.goodbye().await;
            assert_eq!((&bye["reason"], &bye["reconnect"]), (&json!("disconnected"), &json!(reconnect)));
        }
        assert!(begun.elapsed() < Duration::from_secs(10), "the promise is a second");
    }
    for instance in [&one, &two] {
        assert_eq!(get(instance.server.addr, "/events?user=ada").await.status, StatusCode::NO_CONTENT);
        assert_eq!(get(instance.server.addr, "/events?user=ben").await.status, StatusCode::OK);
    }
    // A single connection, by its id, from elsewhere.
    let page = two.open("topic=t").await;
    one.hub.connection(&page.connection).disconnect(Disconnect::now()).await.unwrap();
    assert_eq!(page.goodbye().await["reason"], "disconnected");
}

async fn joins_reach_every_instance(log: impl Backplane + Clone) {
    let (one, two) = pair(log).await;
    let (mut here, mut there) = (one.open("user=ada").await, two.open("user=ada").await);
    let before = two.hub.topic("t").publish(Event::unnamed("before")).await.unwrap().position;
    two.hub.topic("t").publish(Event::unnamed("missed")).await.unwrap();
    one.hub.user("ada").join("t").since(before).await.unwrap();
    for page in [&mut here, &mut there] {
        // In any order: the instance may not have read so far when it was told.
        let (mut missed, mut told) = (0, 0);
        while missed + told < 2 {
            let event = page.events.next().await;
            missed += u32::from(event.data == "missed");
            told += u32::from(event.event == "hub.live" && event.data.contains("\"t\""));
        }
        assert_eq!((missed, told), (1, 1));
    }
    one.hub.topic("t").publish(Event::unnamed("live")).await.unwrap();
    assert_eq!((here.events.next_own().await.data, there.events.next_own().await.data), ("live".into(), "live".into()));
    // To come, on either.
    let later = get(two.server.addr, "/events?user=ada").await.events().next().await;
    assert!(later.data.contains("\"topics\":[\"t\"]"), "{}", later.data);
    two.hub.user("ada").leave("t").await.unwrap();
    for page in [&mut here, &mut there] {
        assert_eq!(page.topics().await, json!([]));
    }
    one.hub.connection(&there.connection).join("mine").await.unwrap();
    assert_eq!(there.topics().await, json!(["mine"]));
}

async fn a_page_changes_its_topics_at_whichever_instance_its_request_meets(log: impl Backplane + Clone) {
    let (one, two) = pair(log).await;
    let mut page = one.open("user=ada&topic=a").await;
    let path = |id: &str| format!("/events/{id}/topics?join=open/b&leave=a&user=ada");
    let reply = send(two.server.addr, Request::post(path(&page.connection)).body("").unwrap()).await;
    assert_eq!((reply.status.as_u16(), reply.text().await), (200, "{\"topics\":[\"open/b\"]}".to_owned()));
    while page.topics().await != json!(["open/b"]) {}
    two.hub.topic("open/b").publish(Event::unnamed("x")).await.unwrap();
    assert_eq!(page.events.next_own().await.data, "x");
    // Somebody else's, from elsewhere, looks like one that is not there.
    let foreign = path(&page.connection).replace("ada", "ben");
    let unknown = path("0123456789abcdef0123456789abcdef");
    let foreign = send(two.server.addr, Request::post(foreign).body("").unwrap()).await;
    let unknown = send(two.server.addr, Request::post(unknown).body("").unwrap()).await;
    assert_eq!((foreign.status, unknown.status), (StatusCode::NOT_FOUND, StatusCode::NOT_FOUND));
    assert_eq!(foreign.text().await, unknown.text().await);
}

/// One command for all of it, which the other instance carries out as if the page had asked there.
async fn a_change_at_another_instance_is_made_whole_or_not_at_all(log: impl Backplane + Clone) {
    let one = Instance::start(builder().max_topics(3), log.clone()).await;
    let two = Instance::start(builder(), log).await;
    until(|| one.hub.stats().others == 1 && two.hub.stats().others == 1).await;
    let mut page = one.open("user=ada&topic=a&topic=b&topic=c").await;
    let connection = page.connection.clone();
    let change = async |query: &str| {
        let path = format!("/events/{connection}/topics?user=ada&{query}");
        let reply = send(two.server.addr, Request::post(path).body("").unwrap()).await;
        assert_eq!(reply.status, StatusCode::OK);
        reply.text().await
    };
    let before = one.hub.position();
    two.hub.topic("open/y").publish(Event::unnamed("missed")).await.unwrap();
    until(|| one.hub.position() > before).await;
    // The page is told once, of all three and without the two.
    let changed = change(&format!("join=open/x&join=open/y&join=open/z&leave=a&leave=b&leave=c&since={before}")).await;
    assert_eq!(changed, "{\"topics\":[\"open/x\",\"open/y\",\"open/z\"]}");
    let mut told = Vec::new();
    while !(told.contains(&"missed".to_owned()) && told.len() > 1) {
        let event = page.events.next().await;
        if event.event == "message" || (event.event == "hub.live" && event.data.contains("topics")) {
            told.push(event.data);
        }
    }
    told.sort();
    assert_eq!(told, ["missed", "{\"topics\":[\"open/x\",\"open/y\",\"open/z\"]}"]);
    until(|| two.hub.topic("open/z").count() == 1).await;
    // Where the page is it may have three: nothing of this comes of it, neither what is left nor the one that had room.
    change("join=open/1&join=open/2&leave=open/x").await;
    // Behind it, in the order in which they were given.
    change("leave=open/z").await;
    assert_eq!(page.topics().await, json!(["open/x", "open/y"]));
    assert_eq!(one.hub.topic("open/1").count() + one.hub.topic("open/2").count(), 0);
}

async fn an_instance_that_dies_is_gone_after_its_lease_and_one_that_leaves_at_once(log: impl Backplane + Clone) {
    let one = Instance::start(builder(), log.clone()).await;
    // On a runtime of its own, which will be gone without a word.
    let theirs = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let dies = theirs.spawn(Instance::start(builder(), log.clone())).await.unwrap();
    let leaves = Instance::start(builder().peer_timeout(Duration::from_secs(600)), log).await;
    let _ada = dies.open("user=ada").await;
    let _ben = leaves.open("user=ben").await;
    until(|| one.hub.user("ada").count() == 1 && one.hub.user("ben").count() == 1).await;
    leaves.hub.drain(Duration::ZERO).await;
    until(|| one.hub.user("ben").count() == 0).await;
    assert_eq!(one.hub.user("ada").count(), 1);
    theirs.shutdown_background();
    until(|| one.hub.user("ada").count() == 0 && one.hub.stats().others == 0).await;
    drop(dies);
}

async fn connections_of_a_user_are_bounded_across_instances(log: impl Backplane + Clone) {
    let bounded = || builder().max_connections_per_user(2, OverLimit::Refuse);
    let one = Instance::start(bounded(), log.clone()).await;
    let two = Instance::start(bounded(), log).await;
    let _pages = [one.open("user=ada").await, one.open("user=ada").await];
    until(|| two.hub.user("ada").count() == 2).await;
    let refused = get(two.server.addr, "/events?user=ada").await.events().next().await;
    assert!(refused.event == "hub.refused" && refused.data.contains("limit"), "{}", refused.data);
    assert_eq!(get(two.server.addr, "/events?user=ben").await.events().next().await.event, "hub.hello");
}

/// Redeemed once, on whichever instance; void after a disconnect from any.
async fn a_ticket_is_redeemed_once_on_any_instance(log: impl Backplane + Clone) {
    let (one, two) = pair(log).await;
    let door = async |hub: &Hub| {
        let tickets = hub.clone();
        let endpoint = hub.endpoint(move |request: StreamRequest| {
            let hub = tickets.clone();
            async move { hub.redeem(&request).await }
        });
        Server::start(hub, Router::new().route_service("/events", endpoint)).await
    };
    let doors = [door(&one.hub).await, door(&two.hub).await];
    for round in 0..4 {
        let subscription = Subscription::for_user("ada").topic("t").data(&json!({ "n": round }));
        let ticket = one.hub.ticket(subscription, Duration::from_secs(30)).await.unwrap();
        let path = format!("/events?ticket={}", ticket.as_str());
        // Both at once.
        let asked = futures::future::join_all([0, 1, 0, 1].map(|n| get(doors[n].addr, &path))).await;
        let statuses: Vec<_> = asked.iter().map(|reply| reply.status.as_u16()).collect();
        assert_eq!(statuses.iter().filter(|status| **status == 200).count(), 1, "{statuses:?}");
        assert_eq!(statuses.iter().filter(|status| **status == 401).count(), 3);
        let mut events = asked.into_iter().find(|reply| reply.status == 200).unwrap().events();
        assert!(events.next().await.data.contains("\"topics\":[\"t\"]"));
    }
    let ticket = one.hub.ticket(Subscription::for_user("ada"), Duration::from_secs(30)).await.unwrap();
    let (mut here, mut there) = (one.open("user=ada").await, two.open("user=ada").await);
    two.hub.user("ada").disconnect(Disconnect::now()).await.unwrap();
    // Each has heard of it.
    for page in [&mut here, &mut there] {
        while page.events.next().await.event != "hub.bye" {}
    }
    for door in &doors {
        assert_eq!(
            get(door.addr, &format!("/events?ticket={}", ticket.as_str())).await.status,
            StatusCode::UNAUTHORIZED
        );
    }
}

/// A browser that is told to come back does so with the same URL, perhaps to another instance.
async fn a_ticket_is_good_again_at_any_instance_when_its_request_gets_no_stream(log: impl Backplane + Clone) {
    #[derive(Clone, Copy)]
    enum Then {
        LetsIn,
        SaysLater,
        Hangs,
    }
    let brief = || builder().access_timeout(Duration::from_millis(200));
    let one = Instance::start(brief(), log.clone()).await;
    let two = Instance::start(brief(), log).await;
    let door = async |hub: &Hub, then: Then| {
        let tickets = hub.clone();
        let endpoint = hub.endpoint(move |request: StreamRequest| {
            let hub = tickets.clone();
            async move {
                let subscription = hub.redeem(&request).await?;
                match then {
                    Then::LetsIn => Ok(subscription),
                    Then::SaysLater => Err(Refusal::retry_later(RefusalReason::Busy)),
                    Then::Hangs => std::future::pending().await,
                }
            }
        });
        Server::start(hub, Router::new().route_service("/events", endpoint)).await
    };
    let opens = door(&two.hub, Then::LetsIn).await;
    let path = |ticket: &Ticket| format!("/events?ticket={}", ticket.as_str());
    let comes_back = async |ticket: &Ticket| loop {
        let reply = get(opens.addr, &path(ticket)).await;
        if reply.status == StatusCode::OK {
            return reply.events().next().await;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    };
    for then in [Then::SaysLater, Then::Hangs] {
        let refuses = door(&one.hub, then).await;
        let ticket = one.hub.ticket(Subscription::for_user("ada"), Duration::from_secs(60)).await.unwrap();
        assert_eq!(get(refuses.addr, &path(&ticket)).await.events().next().await.event, "hub.refused");
        assert_eq!(soon(comes_back(&ticket)).await.event, "hub.hello");
        assert_eq!(get(opens.addr, &path(&ticket)).await.status, StatusCode::UNAUTHORIZED);
    }
    // A request that is dropped while the broker answers.
    let ticket = one.hub.ticket(Subscription::for_user("ada"), Duration::from_secs(60)).await.unwrap();
    let request = Request::get(path(&ticket)).body(()).unwrap();
    drop(futures::FutureExt::now_or_never(one.hub.redeem(&StreamRequest::from_request(&request))));
    assert_eq!(soon(comes_back(&ticket)).await.event, "hub.hello");
    // A ticket that was given back is as old as it was.
    let refuses = door(&one.hub, Then::SaysLater).await;
    let ticket = one.hub.ticket(Subscription::for_user("ada"), Duration::from_secs(60)).await.unwrap();
    let mut page = two.open("user=ada").await;
    assert_eq!(get(refuses.addr, &path(&ticket)).await.events().next().await.event, "hub.refused");
    one.hub.user("ada").disconnect(Disconnect::now()).await.unwrap();
    while page.events.next().await.event != "hub.bye" {}
    assert_eq!(get(opens.addr, &path(&ticket)).await.status, StatusCode::UNAUTHORIZED);
}

/// Those that lie on the broker too, by whoever made them.
async fn tickets_that_wait_are_bounded(log: impl Backplane + Clone) {
    let one = Instance::start(builder(), log.clone()).await;
    let two = Instance::start(builder(), log).await;
    let issued = async |at: &Instance, ttl| at.hub.ticket(Subscription::for_user("ada"), ttl).await;
    let long = Duration::from_secs(60);
    // Of one user 64 may wait.
    for _ in 0..62 {
        issued(&one, long).await.unwrap();
    }
    let [first, second] = [issued(&one, long).await.unwrap(), issued(&one, Duration::from_secs(1)).await.unwrap()];
    assert!(issued(&one, long).await.unwrap_err().is_over_limit());
    issued(&two, long).await.unwrap();
    let redeemed = async |at: &Instance, ticket: &Ticket| {
        let request = Request::get(format!("/?ticket={}", ticket.as_str())).body(()).unwrap();
        at.hub.redeem(&StreamRequest::from_request(&request)).await
    };
    redeemed(&one, &first).await.unwrap();
    issued(&one, long).await.unwrap();
    // Of one that is redeemed elsewhere it does not know before its time is over.
    redeemed(&two, &second).await.unwrap();
    assert!(issued(&one, long).await.unwrap_err().is_over_limit());
    let room = async {
        while issued(&one, long).await.is_err() {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    soon(room).await;
}

/// What a topic tells: one join and one leave of a user, whichever instances it is on, and none for a move between them.
async fn a_topic_tells_who_comes_and_goes_across_instances(log: impl Backplane + Clone) {
    let tells = || builder().presence_for(TopicFilter::prefix("rooms/"));
    let one = Instance::start(tells(), log.clone()).await;
    let two = Instance::start(tells(), log.clone()).await;
    until(|| one.hub.stats().others == 1 && two.hub.stats().others == 1).await;
    let mut watcher = one.open("topic=rooms/1").await;
    // Two instances that a user leaves at the same time may both say so, one after its grace and one after the other's:
    // rather twice than not at all.
    let mut left = std::collections::BTreeSet::new();
    let mut tiding = async |watcher: &mut Page| loop {
        let event = watcher.events.next().await;
        if event.event == "hub.joined" || event.event == "hub.left" {
            let data: Value = serde_json::from_str(&event.data).unwrap();
            let tiding = (event.event, data["user"].as_str().unwrap().to_owned());
            if tiding.0 == "hub.joined" || left.insert(tiding.1.clone()) {
                return tiding;
            }
        }
    };
    let pair = |event: &str, user: &str| (event.to_owned(), user.to_owned());
    let ada = two.open("user=ada&topic=rooms/1").await;
    assert_eq!(tiding(&mut watcher).await, pair("hub.joined", "ada"));
    until(|| one.hub.user("ada").count() == 1).await;
    // Another tab elsewhere, then a move: nothing is said.
    let ada_too = one.open("user=ada&topic=rooms/1").await;
    drop(ada);
    until(|| one.hub.topic("rooms/1").count() == 2).await;
    let ada = two.open("user=ada&topic=rooms/1").await;
    until(|| one.hub.user("ada").count() == 2).await;
    drop(ada_too);
    let _ben = one.open("user=ben&topic=rooms/1").await;
    assert_eq!(tiding(&mut watcher).await, pair("hub.joined", "ben"));
    for hub in [&one.hub, &two.hub] {
        until(|| hub.topic("rooms/1").presence().members.len() == 2).await;
    }
    drop(ada);
    assert_eq!(tiding(&mut watcher).await, pair("hub.left", "ada"));
    // An instance that dies: one of the others speaks for who was there.
    let theirs = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let dies = theirs.spawn(Instance::start(tells(), log)).await.unwrap();
    let _cem = dies.open("user=cem&topic=rooms/1").await;
    assert_eq!(tiding(&mut watcher).await, pair("hub.joined", "cem"));
    until(|| one.hub.user("cem").count() == 1 && two.hub.user("cem").count() == 1).await;
    theirs.shutdown_background();
    assert_eq!(tiding(&mut watcher).await, pair("hub.left", "cem"));
    drop(dies);
    // The event may come before this instance has heard that the other one is dead.
    let members = || one.hub.topic("rooms/1").presence().members;
    until(|| members().iter().map(|member| member.user.as_str().to_owned()).eq(["ben"])).await;
}

/// The hub waits for an unknown connection, since another instance may not have sent it yet.
#[tokio::test]
async fn changes_of_topics_wait_for_an_unknown_connection_no_faster_than_streams_are_opened() {
    const RATE: u32 = 2;
    let one = Instance::start(builder().max_connects_per_second(RATE), Memory::new()).await;
    let since = std::time::Instant::now();
    let change = async |n: u32| {
        let path = format!("/events/{n:032x}/topics?join=open/1");
        send(one.server.addr, Request::post(path).body("").unwrap()).await.status
    };
    let statuses = soon(futures::future::join_all((0..30).map(change))).await;
    let count = |status| statuses.iter().filter(|had| **had == status).count();
    let (waited, refused) = (count(StatusCode::NOT_FOUND), count(StatusCode::SERVICE_UNAVAILABLE));
    let allowed = RATE as usize + 1 + (since.elapsed().as_secs_f64() * f64::from(RATE)) as usize;
    assert_eq!(waited + refused, 30, "{statuses:?}");
    assert!((RATE as usize..=allowed).contains(&waited), "{waited} waited where {allowed} are allowed");
}

for_each_broker!(presence_is_the_same_everywhere(log): memory, redis, nats);
for_each_broker!(a_disconnect_reaches_every_instance(log): memory, redis, nats);
for_each_broker!(joins_reach_every_instance(log): memory, redis, nats);
for_each_broker!(a_page_changes_its_topics_at_whichever_instance_its_request_meets(log): memory, redis, nats);
for_each_broker!(a_change_at_another_instance_is_made_whole_or_not_at_all(log): memory, redis, nats);
for_each_broker!(an_instance_that_dies_is_gone_after_its_lease_and_one_that_leaves_at_once(log): memory, redis, nats);
for_each_broker!(connections_of_a_user_are_bounded_across_instances(log): memory, redis, nats);
for_each_broker!(a_ticket_is_redeemed_once_on_any_instance(log): memory, redis, nats);
for_each_broker!(a_ticket_is_good_again_at_any_instance_when_its_request_gets_no_stream(log): memory, redis, nats);
for_each_broker!(tickets_that_wait_are_bounded(log): memory, redis, nats);
for_each_broker!(a_topic_tells_who_comes_and_goes_across_instances(log): memory, redis, nats);
