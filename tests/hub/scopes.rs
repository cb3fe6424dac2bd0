//! Scopes of one hub: nothing crosses from one scope to another, whatever their names are.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use axum::Router;
use futures::FutureExt;
use http::{Request, StatusCode};
use proptest::prelude::*;
use tower_sse::{
    Disconnect, EndReason, Event, Hub, OverLimit, ReceivedEvent, Recheck, Refusal, Run, RunState, RunWriter, Scope,
    StreamRequest, Subscriber, SubscriberItem, Subscription, Target, TopicFilter, UserId,
};

use crate::kit::page::Page;
use crate::kit::{Server, get, parsed, resume, send, subscribe};

const HOUR: Duration = Duration::from_secs(3600);
/// The limit on the connections of a user, and of a scope.
const PER_USER: usize = 2;
const PER_SCOPE: usize = 5;

/// Names that look like another scope and name in one text.
const NAMES: [&str; 7] = ["a", "b", "a/b", "a:b", "b/a", "[\"a\",\"b\"]", "a\u{2028}b"];

fn name() -> impl Strategy<Value = String> {
    prop_oneof![8 => prop::sample::select(&NAMES[..]).prop_map(str::to_owned), 1 => "[^\\p{Cc}]{1,4}"]
}

/// A target in a scope. `None` is the root scope.
#[derive(Clone, Debug)]
struct Aim {
    scope: Option<String>,
    to: To,
}

#[derive(Clone, Debug)]
enum To {
    Topic(String),
    User(String),
    Everyone,
    /// A stream of any scope, by its place in the list.
    Connection(prop::sample::Index),
}

#[derive(Clone, Debug)]
enum Step {
    Open {
        scope: Option<String>,
        user: Option<String>,
        key: Option<String>,
        topics: BTreeSet<String>,
        way: Way,
    },
    Close(prop::sample::Index),
    Publish(Aim),
    /// Publishes to the union of two targets, without one stream.
    PublishToBoth(Aim, Aim, prop::sample::Index),
    PublishToAll,
    DisconnectAll,
    /// Begins a run in a scope.
    Begin(Option<String>, String),
    Join(Aim, String),
    Leave(Aim, String),
    Disconnect(Aim, bool),
}

/// The way in which a subscription is put into its scope.
#[derive(Clone, Copy, Debug)]
enum Way {
    BeforeItsNames,
    AfterItsNames,
    ByTheHandle,
    ByATicket,
}

fn way() -> impl Strategy<Value = Way> {
    prop::sample::select(&[Way::BeforeItsNames, Way::AfterItsNames, Way::ByTheHandle, Way::ByATicket][..])
}

fn aim() -> impl Strategy<Value = Aim> {
    let to = prop_oneof![
        3 => name().prop_map(To::Topic),
        3 => name().prop_map(To::User),
        1 => Just(To::Everyone),
        2 => any::<prop::sample::Index>().prop_map(To::Connection),
    ];
    (prop::option::of(name()), to).prop_map(|(scope, to)| Aim { scope, to })
}

fn step() -> impl Strategy<Value = Step> {
    let topics = prop::collection::btree_set(name(), 0..4);
    prop_oneof![
        6 => (prop::option::of(name()), prop::option::of(name()), prop::option::weighted(0.2, name()), topics, way())
            .prop_map(|(scope, user, key, topics, way)| Step::Open { scope, user, key, topics, way }),
        1 => any::<prop::sample::Index>().prop_map(Step::Close),
        6 => aim().prop_map(Step::Publish),
        2 => (aim(), aim(), any::<prop::sample::Index>()).prop_map(|(a, b, except)| Step::PublishToBoth(a, b, except)),
        1 => Just(Step::PublishToAll),
        1 => Just(Step::DisconnectAll),
        1 => (prop::option::of(name()), name()).prop_map(|(scope, run)| Step::Begin(scope, run)),
        2 => (aim(), name()).prop_map(|(aim, topic)| Step::Join(aim, topic)),
        2 => (aim(), name()).prop_map(|(aim, topic)| Step::Leave(aim, topic)),
        1 => (aim(), any::<bool>()).prop_map(|(aim, bans)| Step::Disconnect(aim, bans)),
    ]
}

/// An open stream, and what the model expects of it.
struct Stream {
    stream: Subscriber,
    scope: Option<String>,
    user: Option<String>,
    key: Option<String>,
    topics: BTreeSet<String>,
    expected: Vec<String>,
}

/// A scope with a user or a topic of it. `None` stands for everyone.
type Banned = (Option<String>, Option<(bool, String)>);

/// A hub, and a model of it that keeps a list of streams and compares names and scopes as pairs.
struct World {
    hub: Hub,
    streams: Vec<Stream>,
    bans: BTreeSet<Banned>,
    /// The topics that a user was made to join.
    joined: BTreeSet<(Option<String>, String, String)>,
    /// The active runs, each by its scope and its name.
    runs: BTreeMap<(Option<String>, String), RunWriter>,
    published: usize,
}

impl World {
    fn new() -> Self {
        let hub = Hub::builder()
            .presence_grace(HOUR)
            .max_connections_per_user(PER_USER, OverLimit::Refuse)
            .max_connections_per_scope(PER_SCOPE, OverLimit::Refuse)
            .build()
            .unwrap();
        let (bans, joined) = (BTreeSet::new(), BTreeSet::new());
        Self { hub, streams: Vec::new(), bans, joined, runs: BTreeMap::new(), published: 0 }
    }

    /// Calls `with` with the target of an aim.
    fn target<R>(&self, aim: &Aim, with: impl FnOnce(Target<'_>) -> R) -> R {
        let id = |index: &prop::sample::Index| match &self.streams[..] {
            [] => "0".repeat(32).parse().unwrap(),
            streams => index.get(streams).stream.connection(),
        };
        let hub = &self.hub;
        let scope = aim.scope.as_ref().map(|scope| hub.scope(scope));
        with(match (&scope, &aim.to) {
            (None, To::Topic(topic)) => hub.topic(topic),
            (None, To::User(user)) => hub.user(user),
            (None, To::Everyone) => hub.everyone(),
            (None, To::Connection(index)) => hub.connection(id(index)),
            (Some(scope), To::Topic(topic)) => scope.topic(topic),
            (Some(scope), To::User(user)) => scope.user(user),
            (Some(scope), To::Everyone) => scope.everyone(),
            (Some(scope), To::Connection(index)) => scope.connection(id(index)),
        })
    }

    /// Returns whether the model expects a stream to belong to an aim.
    fn is_reached(&self, aim: &Aim, at: usize) -> bool {
        let stream = &self.streams[at];
        stream.scope == aim.scope
            && match &aim.to {
                To::Topic(topic) => stream.topics.contains(topic),
                To::User(user) => stream.user.as_ref() == Some(user),
                To::Everyone => true,
                To::Connection(index) => index.index(self.streams.len()) == at,
            }
    }

    fn reached(&self, aim: &Aim) -> Vec<usize> {
        (0..self.streams.len()).filter(|at| self.is_reached(aim, *at)).collect()
    }

    fn event(&mut self) -> String {
        self.published += 1;
        self.published.to_string()
    }

    fn run(&mut self, step: Step) {
        match step {
            Step::Open { scope, user, key, topics, way } => self.open(scope, user, key, topics, way),
            Step::Close(index) if !self.streams.is_empty() => {
                drop(self.streams.swap_remove(index.index(self.streams.len())));
            }
            Step::Close(_) => {}
            Step::Publish(aim) => {
                let data = self.event();
                let reached = self.reached(&aim);
                let event = Event::unnamed(data.clone());
                let receipt = self.target(&aim, |target| target.publish_now(event)).unwrap();
                assert_eq!(receipt.connections, reached.len(), "{aim:?}");
                reached.into_iter().for_each(|at| self.streams[at].expected.push(data.clone()));
            }
            Step::PublishToAll => {
                let data = self.event();
                let receipt = self.hub.all_scopes().everyone().publish_now(Event::unnamed(data.clone())).unwrap();
                assert_eq!(receipt.connections, self.streams.len());
                self.streams.iter_mut().for_each(|stream| stream.expected.push(data.clone()));
            }
            Step::PublishToBoth(one, two, except) => self.publish_to_both(&one, &two, &except),
            Step::DisconnectAll => {
                let all = self.hub.all_scopes().everyone();
                let receipt = all.disconnect(Disconnect::now()).now_or_never().unwrap().unwrap();
                assert_eq!(receipt.connections, self.streams.len());
                for mut ended in self.streams.drain(..) {
                    assert_eq!(read(&mut ended.stream).1, Some(EndReason::Disconnected));
                }
            }
            Step::Begin(scope, name) => {
                let begun = self.run_of(scope.as_deref(), &name).begin().into_future().now_or_never().unwrap();
                let is_active = self.runs.contains_key(&(scope.clone(), name.clone()));
                assert_eq!(begun.is_err(), is_active, "{scope:?} {name}");
                self.runs.extend(begun.ok().map(|writer| ((scope, name), writer)));
                self.check_runs();
            }
            Step::Join(aim, topic) => {
                self.target(&aim, |target| target.join(topic.as_str()).into_future().now_or_never()).unwrap().unwrap();
                if let To::User(user) = &aim.to {
                    self.joined.insert((aim.scope.clone(), user.clone(), topic.clone()));
                }
                for at in self.reached(&aim) {
                    self.streams[at].topics.insert(topic.clone());
                }
            }
            Step::Leave(aim, topic) => {
                self.target(&aim, |target| target.leave(topic.as_str()).now_or_never()).unwrap().unwrap();
                if let To::User(user) = &aim.to {
                    self.joined.remove(&(aim.scope.clone(), user.clone(), topic.clone()));
                }
                for at in self.reached(&aim) {
                    self.streams[at].topics.remove(&topic);
                }
            }
            Step::Disconnect(aim, bans) => self.disconnect(&aim, bans),
        }
    }

    fn run_of(&self, scope: Option<&str>, name: &str) -> Run {
        scope.map_or_else(|| self.hub.run(name), |scope| self.hub.scope(scope).run(name))
    }

    fn publish_to_both(&mut self, one: &Aim, two: &Aim, except: &prop::sample::Index) {
        let data = self.event();
        let left_out = (!self.streams.is_empty()).then(|| except.index(self.streams.len()));
        let is_reached = |at: &usize| (self.is_reached(one, *at) || self.is_reached(two, *at)) && left_out != Some(*at);
        let reached: Vec<_> = (0..self.streams.len()).filter(is_reached).collect();
        let (count, published) = self.target(one, |one| {
            self.target(two, |two| {
                let both = one.and(two);
                let both = match left_out {
                    Some(at) => both.except(self.streams[at].stream.connection()),
                    None => both,
                };
                (both.count(), both.publish_now(Event::unnamed(data.clone())))
            })
        });
        assert_eq!(published.is_ok(), one.scope == two.scope, "{one:?} {two:?}");
        if published.is_ok() {
            assert_eq!(count, reached.len(), "{one:?} {two:?}");
            reached.into_iter().for_each(|at| self.streams[at].expected.push(data.clone()));
        } else {
            assert_eq!(count, 0);
        }
    }

    /// Creates a ticket in a scope, and returns the subscription that it redeems to.
    fn redeemed(&self, scope: Option<&str>, subscription: Subscription) -> Subscription {
        let ticket = match scope {
            Some(scope) => self.hub.scope(scope).ticket(subscription, HOUR).now_or_never(),
            None => self.hub.ticket(subscription, HOUR).now_or_never(),
        };
        let ticket = ticket.unwrap().unwrap();
        let request = Request::get(format!("/events?ticket={}", ticket.as_str())).body(()).unwrap();
        self.hub.redeem(&StreamRequest::from_request(&request)).now_or_never().unwrap().unwrap()
    }

    fn open(
        &mut self,
        scope: Option<String>,
        user: Option<String>,
        key: Option<String>,
        mut topics: BTreeSet<String>,
        way: Way,
    ) {
        let add = |to: Subscription| {
            let with_user = user.iter().fold(to, Subscription::with_user);
            key.iter().fold(with_user, Subscription::counted_as).with_topics(&topics)
        };
        let empty = Subscription::anonymous;
        let opened = match (&scope, way) {
            (Some(scope), Way::BeforeItsNames) => self.hub.subscribe(add(empty().in_scope(scope)), None),
            (Some(scope), Way::AfterItsNames) => self.hub.subscribe(add(empty()).in_scope(scope), None),
            (Some(scope), Way::ByTheHandle) => self.hub.scope(scope).subscribe(add(empty()), None),
            (scope, Way::ByATicket) => self.hub.subscribe(self.redeemed(scope.as_deref(), add(empty())), None),
            (None, _) => self.hub.subscribe(add(empty()), None),
        };
        let counted_as = |user: &Option<String>, key: &Option<String>| match key {
            Some(key) => Some((false, key.clone())),
            None => user.clone().map(|user| (true, user)),
        };
        let counted = counted_as(&user, &key);
        let of_user = |stream: &&Stream| {
            stream.scope == scope && counted.is_some() && counted_as(&stream.user, &stream.key) == counted
        };
        let of_scope = |stream: &&Stream| stream.scope == scope && scope.is_some();
        let is_full = self.streams.iter().filter(of_user).count() >= PER_USER
            || self.streams.iter().filter(of_scope).count() >= PER_SCOPE;
        let names = topics.iter().map(|topic| Some((false, topic.clone())));
        let mut names = names.chain(user.iter().map(|user| Some((true, user.clone())))).chain([None]);
        let is_banned = names.any(|name| self.bans.contains(&(scope.clone(), name)));
        match opened {
            Err(error) => assert!(is_banned && error.is_banned() || is_full && error.is_over_limit(), "{error}"),
            Ok(stream) => {
                assert!(!is_banned && !is_full);
                let is_banned = |topic: &String| self.bans.contains(&(scope.clone(), Some((false, topic.clone()))));
                let joined = self.joined.iter().filter(|(of, name, _)| *of == scope && Some(name) == user.as_ref());
                topics.extend(joined.map(|(_, _, topic)| topic.clone()).filter(|topic| !is_banned(topic)));
                self.streams.push(Stream { stream, scope, user, key, topics, expected: Vec::new() });
            }
        }
    }

    fn disconnect(&mut self, aim: &Aim, bans: bool) {
        let reached = self.reached(aim);
        let disconnect = if bans { Disconnect::block_for(HOUR) } else { Disconnect::now() };
        let receipt = self.target(aim, |target| target.disconnect(disconnect).now_or_never()).unwrap().unwrap();
        assert_eq!(receipt.connections, reached.len(), "{aim:?}");
        let name = match &aim.to {
            To::Topic(topic) => Some((false, topic.clone())),
            To::User(user) => Some((true, user.clone())),
            To::Everyone | To::Connection(_) => None,
        };
        if bans && !matches!(aim.to, To::Connection(_)) {
            self.bans.insert((aim.scope.clone(), name));
        }
        for at in reached.into_iter().rev() {
            let mut ended = self.streams.remove(at);
            assert_eq!(read(&mut ended.stream).1, Some(EndReason::Disconnected), "{aim:?}");
        }
    }

    fn check_runs(&self) {
        for name in NAMES {
            for scope in NAMES.map(Some).into_iter().chain([None]) {
                let state = self.run_of(scope, name).state().now_or_never().unwrap().unwrap();
                let is_active = self.runs.contains_key(&(scope.map(str::to_owned), name.to_owned()));
                assert_eq!(state != RunState::None, is_active, "{scope:?} {name}");
            }
        }
    }

    /// Compares the hub with the model.
    fn check(&mut self) {
        for stream in &mut self.streams {
            let (events, ended) = read(&mut stream.stream);
            assert_eq!((events, ended), (std::mem::take(&mut stream.expected), None), "{:?}", stream.scope);
        }
        let scopes: BTreeSet<_> = self.streams.iter().map(|stream| stream.scope.clone()).chain([None]).collect();
        for scope in scopes {
            let aims = NAMES.map(|name| [To::Topic(name.into()), To::User(name.into())]);
            for to in aims.into_iter().flatten().chain([To::Everyone]) {
                let aim = Aim { scope: scope.clone(), to };
                let reached = self.reached(&aim);
                let users: BTreeSet<_> = reached.iter().filter_map(|at| self.streams[*at].user.clone()).collect();
                self.target(&aim, |target| {
                    assert_eq!(target.count(), reached.len(), "{aim:?}");
                    let members = target.presence().members;
                    assert!(members.iter().all(|member| member.user.scope() == scope.as_deref()), "{members:?}");
                    let members: BTreeSet<_> = members.iter().map(|member| member.user.to_string()).collect();
                    assert_eq!(members, users, "{aim:?}");
                });
            }
            if let Some(scope) = &scope {
                let is_of = |stream: &&Stream| stream.scope.as_ref() == Some(scope);
                let streams: Vec<_> = self.streams.iter().filter(is_of).collect();
                let stats = self.hub.scope(scope).stats();
                let topics: BTreeSet<_> = streams.iter().flat_map(|stream| &stream.topics).collect();
                let users: BTreeSet<_> = streams.iter().filter_map(|stream| stream.user.as_ref()).collect();
                assert_eq!((stats.connections, stats.users, stats.topics), (streams.len(), users.len(), topics.len()));
            }
        }
        assert_eq!(self.hub.all_scopes().everyone().count(), self.streams.len());
    }
}

/// Reads the events that a stream has now, and the reason of its end.
fn read(stream: &mut Subscriber) -> (Vec<String>, Option<EndReason>) {
    let mut events = Vec::new();
    loop {
        match stream.next().now_or_never().flatten() {
            Some(SubscriberItem::Event(event)) => events.push(event.data),
            Some(SubscriberItem::End(reason)) => return (events, Some(reason)),
            Some(SubscriberItem::Live(_)) => {}
            None => return (events, None),
            other => panic!("{other:?}"),
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn nothing_crosses_from_one_scope_to_another(steps in prop::collection::vec(step(), 1..60)) {
        let mut world = World::new();
        for step in steps {
            world.run(step);
            world.check();
        }
    }
}

fn open(scope: &Scope, subscription: Subscription) -> Subscriber {
    scope.subscribe(subscription, None).unwrap()
}

#[tokio::test]
async fn scope_with_an_invalid_name_is_an_error_and_reaches_no_connection() {
    let hub = Hub::builder().build().unwrap();
    let _page = hub.subscribe(Subscription::for_user("ada").topic("news"), None).unwrap();
    for name in [String::new(), "x".repeat(256), "a\u{1}b".into(), "\n".into()] {
        let scope = hub.scope(&name);
        for target in [scope.topic("news"), scope.user("ada"), scope.everyone()] {
            assert_eq!(target.count(), 0, "{name:?}");
            let error = target.publish(Event::unnamed("x")).await.unwrap_err();
            assert!(error.is_invalid() && error.to_string().starts_with("scope "), "{error}");
        }
        let error = scope.subscribe(Subscription::anonymous(), None).unwrap_err();
        assert!(error.is_invalid() && error.to_string().starts_with("scope "), "{error}");
        assert!(hub.subscribe(Subscription::anonymous().in_scope(&name), None).unwrap_err().is_invalid());
        assert!(scope.run("r").begin().await.is_err());
        assert_eq!((scope.stats().connections, scope.connections().len()), (0, 0));
    }
    assert!(hub.scope("x".repeat(255)).topic("news").publish(Event::unnamed("x")).await.is_ok());
}

#[tokio::test]
async fn name_of_one_scope_is_an_error_in_another() {
    let hub = Hub::builder().build().unwrap();
    let (acme, globex) = (hub.scope("acme"), hub.scope("globex"));
    let _page = open(&acme, Subscription::for_user("ada").topic("news"));
    let ada: UserId = acme.everyone().presence().members[0].user.clone();
    let news = acme.connections()[0].topics[0].clone();
    assert_eq!((ada.scope(), news.scope(), acme.connections()[0].scope()), (Some("acme"), Some("acme"), Some("acme")));
    assert_eq!((acme.user(&ada).count(), acme.topic(&news).count()), (1, 1));
    for target in [hub.user(&ada), hub.topic(&news), globex.user(&ada), globex.topic(&news)] {
        let error = target.publish(Event::unnamed("x")).await.unwrap_err();
        assert!(error.to_string().ends_with("belongs to another scope"), "{error}");
    }
    // A name of the hub is valid in its own scope, whatever the order is.
    for subscription in [
        Subscription::for_user(&ada).topic(&news).in_scope("acme"),
        Subscription::anonymous().in_scope("acme").with_user(&ada).topic(&news),
    ] {
        assert_eq!(hub.subscribe(subscription, None).unwrap().next().await.map(|_| ()), Some(()));
    }
    drop(open(&acme, Subscription::for_user(&ada).topic(&news)));
    acme.ticket(Subscription::for_user(&ada), HOUR).await.unwrap();
    for subscription in [
        Subscription::for_user(&ada),
        Subscription::for_user(&ada).in_scope("globex"),
        Subscription::for_user("bob").topic("news").topic(&news),
        Subscription::anonymous().topic(&news).in_scope("globex"),
        Subscription::anonymous().topic(&news),
        Subscription::anonymous().in_scope("globex").topic(&news),
        Subscription::anonymous().in_scope("globex").in_scope("acme"),
    ] {
        let error = hub.subscribe(subscription, None).unwrap_err();
        assert!(error.to_string().ends_with("belongs to another scope"), "{error}");
    }
    let error = globex.subscribe(Subscription::anonymous().in_scope("acme"), None).unwrap_err();
    assert_eq!(error.to_string(), "subscription belongs to another scope");
    assert!(hub.user("ada").join(&news).await.is_err() && hub.user("ada").leave(&news).await.is_err());
    assert_ne!(ada, UserId::try_from("ada").unwrap());
}

#[tokio::test]
async fn union_of_targets_of_two_scopes_is_an_error() {
    let hub = Hub::builder().build().unwrap();
    let (acme, globex) = (hub.scope("acme"), hub.scope("globex"));
    let unions = [
        acme.topic("t").and(globex.topic("t")),
        acme.topic("t").and(hub.topic("t")),
        hub.topic("t").and(acme.topic("t")),
        acme.topic("t").and(hub.all_scopes().everyone()),
        hub.all_scopes().everyone().and(hub.topic("t")),
    ];
    for union in unions {
        let error = union.publish(Event::unnamed("x")).await.unwrap_err();
        assert_eq!(error.to_string(), "target belongs to another scope");
    }
    let page = open(&acme, Subscription::for_user("ada").topic("t"));
    let union = acme.topic("t").and(acme.user("ada")).and(acme.connection(page.connection()));
    assert_eq!(union.clone().publish(Event::unnamed("x")).await.unwrap().connections, 3);
    assert_eq!(union.count(), 1);
}

#[tokio::test]
async fn target_of_all_scopes_publishes_and_disconnects_but_does_not_join() {
    let hub = Hub::builder().build().unwrap();
    let acme = hub.scope("acme");
    let mut pages = [open(&acme, Subscription::anonymous()), hub.subscribe(Subscription::anonymous(), None).unwrap()];
    let all = || hub.all_scopes().everyone();
    assert_eq!(all().publish(Event::unnamed("x")).await.unwrap().connections, 2);
    let error = all().join("t").await.unwrap_err();
    assert_eq!(error.to_string(), "target is of all scopes, and a topic is of one scope");
    assert!(all().leave("t").await.is_err());
    assert_eq!(all().except(pages[0].connection()).count(), 1);
    assert_eq!(pages.each_mut().map(|page| read(page).0), [["x"], ["x"]]);
    assert_eq!(all().disconnect(Disconnect::block_for(HOUR)).await.unwrap().connections, 2);
    assert_eq!(pages.each_mut().map(|page| read(page).1), [Some(EndReason::Disconnected); 2]);
    for scope in [acme, hub.scope("new")] {
        assert!(scope.subscribe(Subscription::anonymous(), None).unwrap_err().is_banned());
    }
    assert!(hub.subscribe(Subscription::anonymous(), None).unwrap_err().is_banned());
}

#[tokio::test]
async fn hub_that_requires_scopes_rejects_every_use_without_a_scope() {
    let hub = Hub::builder().require_scope().build().unwrap();
    let missing = "scope is missing";
    assert_eq!(hub.subscribe(Subscription::for_user("ada"), None).unwrap_err().to_string(), missing);
    assert_eq!(hub.ticket(Subscription::for_user("ada"), HOUR).await.unwrap_err().to_string(), missing);
    for target in [hub.topic("t"), hub.user("ada"), hub.everyone(), hub.connection("0".repeat(32))] {
        assert_eq!(target.publish(Event::unnamed("x")).await.unwrap_err().to_string(), missing);
    }
    assert_eq!(hub.run("r").begin().await.unwrap_err().to_string(), missing);
    let page = open(&hub.scope("acme"), Subscription::for_user("ada"));
    assert_eq!(hub.all_scopes().everyone().publish(Event::unnamed("x")).await.unwrap().connections, 1);
    drop(page);
    // An access hook that forgets the scope fails at the first request.
    let access = |_: StreamRequest| async { Ok::<_, Refusal>(Subscription::for_user("ada")) };
    let server = Server::start(&hub, Router::new().route_service("/events", hub.endpoint(access))).await;
    let reply = get(server.addr, "/events").await;
    assert_eq!(reply.status, StatusCode::BAD_REQUEST);
}

#[tokio::test]
async fn presence_events_stay_in_their_scope() {
    let hub = Hub::builder().presence_for(TopicFilter::exact("room")).build().unwrap();
    let in_room = |user: &str| Subscription::for_user(user).topic("room");
    let mut watchers = [
        open(&hub.scope("acme"), Subscription::anonymous().topic("room")),
        open(&hub.scope("globex"), Subscription::anonymous().topic("room")),
        hub.subscribe(Subscription::anonymous().topic("room"), None).unwrap(),
    ];
    let _ada = open(&hub.scope("acme"), in_room("ada"));
    let _other_ada = open(&hub.scope("globex"), in_room("ada"));
    for (watcher, expected) in watchers.iter_mut().zip([1, 1, 0]) {
        let (events, _) = read(watcher);
        assert_eq!(events, vec![r#"{"topic":"room","user":"ada"}"#; expected]);
    }
}

#[tokio::test]
async fn limits_of_a_scope_do_not_count_connections_of_another() {
    let hub = Hub::builder()
        .max_connections_per_scope(2, OverLimit::CloseOldest)
        .max_connections_of_scope("large", 3)
        .max_connections_per_user(1, OverLimit::Refuse)
        .build()
        .unwrap();
    let open = |scope: &str| hub.scope(scope).subscribe(Subscription::anonymous(), None).unwrap();
    let mut acme: Vec<_> = (0..3).map(|_| open("acme")).collect();
    let mut large: Vec<_> = (0..4).map(|_| open("large")).collect();
    let root: Vec<_> = (0..4).map(|_| hub.subscribe(Subscription::anonymous(), None).unwrap()).collect();
    let ends = |pages: &mut Vec<Subscriber>| pages.iter_mut().map(|page| read(page).1).collect::<Vec<_>>();
    assert_eq!(ends(&mut acme), [Some(EndReason::Limit), None, None]);
    assert_eq!(ends(&mut large), [Some(EndReason::Limit), None, None, None]);
    assert_eq!((root.len(), hub.everyone().count()), (4, 4));
    // The limit per user and per key applies to each scope for itself.
    for key in [Subscription::for_user("ada"), Subscription::anonymous().counted_as("192.0.2.1")] {
        let pages: Vec<_> = ["a", "b"].map(|scope| hub.scope(scope).subscribe(key.clone(), None).unwrap()).into();
        assert!(hub.scope("a").subscribe(key.clone(), None).unwrap_err().is_over_limit());
        drop((pages, hub.subscribe(key, None).unwrap()));
    }
    for invalid in [
        Hub::builder().max_connections_per_scope(0, OverLimit::Refuse),
        Hub::builder().max_connections_of_scope("a", 0),
        Hub::builder().max_connections_of_scope("", 1),
    ] {
        assert!(invalid.build().is_err());
    }
}

#[tokio::test]
async fn runs_of_one_name_in_two_scopes_are_two_runs() {
    let hub = Hub::builder().build().unwrap();
    let (acme, globex) = (hub.scope("acme"), hub.scope("globex"));
    let writer = acme.run("answer").begin().await.unwrap();
    for other in [globex.run("answer"), hub.run("answer")] {
        assert_eq!(other.state().await.unwrap(), RunState::None);
        assert!(!other.stop().await.unwrap() && other.reader().await.unwrap().is_missing());
    }
    drop(globex.run("answer").begin().await.unwrap());
    writer.publish(Event::unnamed("Hel")).await.unwrap();
    let reader = acme.run("answer").reader().await.unwrap();
    // The subscription of a run has the scope of the run.
    let subscription = Subscription::run(reader.clone()).with_user("ada");
    assert_eq!((subscription.scope(), subscription.user().and_then(UserId::scope)), (Some("acme"), Some("acme")));
    let mut page = hub.subscribe(subscription, None).unwrap();
    assert_eq!(read(&mut page).0, ["Hel"]);
    assert_eq!((acme.stats().users, globex.stats().connections), (1, 0));
    // The stream of a run is a connection, and has no target.
    assert_eq!((acme.stats().connections, acme.everyone().count(), acme.user("ada").count()), (1, 0, 0));
    assert!(hub.subscribe(Subscription::run(reader).in_scope("globex"), None).unwrap_err().is_invalid());
    let of_root = hub.run("root").reader().await.unwrap();
    assert!(hub.subscribe(Subscription::run(of_root).in_scope("acme"), None).unwrap_err().is_invalid());
}

/// Takes the scope, the user and the topics of a stream from its query.
async fn by_tenant(request: StreamRequest) -> Result<Subscription, Refusal> {
    let subscription = Subscription::anonymous().may_join(TopicFilter::any());
    let subscription = request.query_values("user").fold(subscription, Subscription::with_user);
    let subscription = request.query_values("topic").fold(subscription, Subscription::topic);
    Ok(request.query_values("tenant").fold(subscription, Subscription::in_scope))
}

async fn start(hub: &Hub) -> Server {
    let app = Router::new().fallback_service(hub.endpoint(by_tenant).allow_topic_changes());
    Server::start(hub, app).await
}

#[tokio::test]
async fn page_joins_topics_of_its_own_scope_only() {
    let hub = Hub::builder().build().unwrap();
    let server = start(&hub).await;
    let mut page = Page::open(server.addr, "/events?tenant=acme").await;
    let id = page.connection.clone();
    let change = async |tenant: &str| {
        let path = format!("/events/{id}/topics?join=news{tenant}");
        send(server.addr, Request::post(path).body("").unwrap()).await.status
    };
    // An anonymous page of another scope, or of no scope, has no access to the connection.
    assert_eq!(change("&tenant=globex").await, StatusCode::NOT_FOUND);
    assert_eq!(change("").await, StatusCode::NOT_FOUND);
    assert_eq!(change("&tenant=acme").await, StatusCode::OK);
    assert_eq!((hub.topic("news").count(), hub.scope("globex").topic("news").count()), (0, 0));
    assert_eq!(hub.scope("acme").topic("news").count(), 1);
    for (scope, data) in [(None, "root"), (Some("globex"), "globex"), (Some("acme"), "acme")] {
        let event = Event::unnamed(data);
        match scope {
            None => hub.topic("news").publish(event).await.unwrap(),
            Some(scope) => hub.scope(scope).topic("news").publish(event).await.unwrap(),
        };
    }
    assert_eq!(page.reads().await, "acme");
}

#[tokio::test]
async fn cursor_from_another_scope_resumes_with_events_of_the_new_scope_only() {
    let hub = Hub::builder().build().unwrap();
    let server = start(&hub).await;
    let mut page = subscribe(server.addr, "/events?tenant=acme&user=ada&topic=news").await;
    let publish = async |scope: &str, data: &str| {
        let scope = hub.scope(scope);
        let target = scope.topic("news").and(scope.user("ada")).and(scope.everyone());
        target.publish(Event::unnamed(data.to_owned())).await.unwrap();
    };
    publish("acme", "1").await;
    let cursor = page.next_own().await.id;
    publish("acme", "2").await;
    publish("globex", "3").await;
    hub.topic("news").and(hub.everyone()).publish(Event::unnamed("4")).await.unwrap();
    let path = |tenant: &str| format!("/events?user=ada&topic=news{tenant}");
    for (tenant, expected) in [("&tenant=globex", "3"), ("", "4"), ("&tenant=acme", "2")] {
        let events = resume(server.addr, &path(tenant), &cursor).await.caught_up().await;
        let own: Vec<_> = events.iter().filter(|event| event.event == "message").map(|event| &event.data).collect();
        assert_eq!(own, [expected], "{tenant}");
    }
}

#[tokio::test]
async fn id_of_a_ban_does_not_ban_in_another_scope() {
    let hub = Hub::builder().build().unwrap();
    let server = start(&hub).await;
    let path = |tenant: &str| format!("/events?user=ada{tenant}");
    let tenants = ["", "&tenant=acme", "&tenant=globex"];
    for banned in tenants {
        let mut page = Page::open(server.addr, &path(banned)).await;
        let id = page.connection.clone();
        let disconnect = Disconnect::block_for(HOUR);
        match banned.strip_prefix("&tenant=") {
            None => hub.connection(id).disconnect(disconnect).await.unwrap(),
            Some(scope) => hub.scope(scope).connection(id).disconnect(disconnect).await.unwrap(),
        };
        let bye = page.events.next().await;
        let bye = if bye.event == "hub.live" { page.events.next().await } else { bye };
        assert_eq!(bye.event, "hub.bye");
        for tenant in tenants {
            let request = Request::get(path(tenant)).header("last-event-id", &bye.id).body("").unwrap();
            let status = send(server.addr, request).await.status;
            assert_eq!(status == StatusCode::NO_CONTENT, tenant == banned, "{banned} {tenant} {status}");
        }
    }
}

#[tokio::test]
async fn ticket_opens_a_stream_of_its_scope_and_no_other() {
    let hub = Hub::builder().build().unwrap();
    let redeeming = hub.clone();
    let access = move |request: StreamRequest| {
        let hub = redeeming.clone();
        async move { hub.redeem(&request).await }
    };
    let server = Server::start(&hub, Router::new().route_service("/events", hub.endpoint(access))).await;
    let acme = hub.scope("acme");
    let ticket = acme.ticket(Subscription::for_user("ada").topic("news"), HOUR).await.unwrap();
    let of_another = hub.scope("globex").ticket(Subscription::for_user("ada").in_scope("acme"), HOUR).await;
    assert!(of_another.unwrap_err().is_invalid());
    // Disconnects of the same names in other scopes leave the ticket valid.
    hub.user("ada").disconnect(Disconnect::block_for(HOUR)).await.unwrap();
    hub.scope("globex").topic("news").disconnect(Disconnect::block_for(HOUR)).await.unwrap();
    let _page = subscribe(server.addr, &format!("/events?ticket={}", ticket.as_str())).await;
    assert_eq!((acme.user("ada").count(), acme.topic("news").count(), hub.everyone().count()), (1, 1, 0));
}

#[tokio::test]
async fn redeemed_ticket_does_not_move_into_the_scope_of_the_request() {
    let hub = Hub::builder().build().unwrap();
    let redeeming = hub.clone();
    let access = move |request: StreamRequest| {
        let hub = redeeming.clone();
        async move { Ok::<_, Refusal>(hub.redeem(&request).await?.in_scope("acme")) }
    };
    let server = Server::start(&hub, Router::new().route_service("/events", hub.endpoint(access))).await;
    let ada = || Subscription::for_user("ada");
    let of_others = [hub.ticket(ada(), HOUR).await, hub.scope("globex").ticket(ada(), HOUR).await];
    for ticket in of_others {
        let reply = get(server.addr, &format!("/events?ticket={}", ticket.unwrap().as_str())).await;
        assert_eq!(reply.status, StatusCode::BAD_REQUEST);
    }
    let ticket = hub.scope("acme").ticket(ada(), HOUR).await.unwrap();
    let _page = subscribe(server.addr, &format!("/events?ticket={}", ticket.as_str())).await;
    assert_eq!((hub.connections().len(), hub.scope("acme").user("ada").count()), (1, 1));
}

#[tokio::test]
async fn batch_of_a_scope_rejects_targets_of_another() {
    let hub = Hub::builder().build().unwrap();
    let (acme, globex) = (hub.scope("acme"), hub.scope("globex"));
    let mut pages = [open(&acme, Subscription::for_user("ada")), open(&globex, Subscription::for_user("ada"))];
    let targets = [
        acme.user("ada"),
        globex.user("ada"),
        hub.user("ada"),
        hub.everyone(),
        hub.all_scopes().everyone(),
        acme.everyone(),
    ];
    let receipts = acme.publish_many(targets.map(|target| (target, Event::unnamed("x")))).await;
    let errors = receipts.into_iter().map(|receipt| receipt.err().map(|error| error.to_string()));
    let other = Some("target belongs to another scope".to_owned());
    assert_eq!(errors.collect::<Vec<_>>(), [None, other.clone(), other.clone(), other.clone(), other, None]);
    assert_eq!(pages.each_mut().map(|page| read(page).0.len()), [2, 0]);
    assert_eq!((acme.name(), hub.scope("").name().is_err()), (Ok("acme"), true));
}

#[tokio::test]
async fn recheck_that_returns_another_scope_ends_the_stream() {
    struct Moves(&'static str);
    impl tower_sse::Access for Moves {
        async fn authorize(&self, _: StreamRequest) -> Result<Subscription, Refusal> {
            Ok(Subscription::for_user("ada").in_scope("acme").topic("news"))
        }

        async fn recheck(&self, subscription: Subscription) -> Recheck {
            assert_eq!(subscription.scope(), Some("acme"));
            // The name that the hub returns keeps its scope.
            let found = Subscription::for_user(subscription.user().unwrap()).topic("news");
            Recheck::Narrow(if self.0.is_empty() { found } else { found.in_scope(self.0) })
        }
    }
    for (scope, ends) in [("globex", true), ("", true), ("acme", false)] {
        let hub = Hub::builder().recheck_every(Duration::from_millis(10)).build().unwrap();
        let server = Server::start(&hub, Router::new().route_service("/events", hub.endpoint(Moves(scope)))).await;
        let mut page = subscribe(server.addr, "/events").await;
        if ends {
            let bye = page.next().await;
            assert_eq!((&*bye.event, &parsed(&bye)["reason"]), ("hub.bye", &"revoked".into()), "{scope}");
        } else {
            let acme = hub.scope("acme");
            acme.topic("news").publish(Event::unnamed("kept")).await.unwrap();
            assert_eq!(page.next_own().await.data, "kept");
        }
    }
}

#[tokio::test]
async fn events_of_a_scope_name_their_topic_with_its_scope() {
    let hub = Hub::builder().build().unwrap();
    let acme = hub.scope("acme");
    let mut page = open(&acme, Subscription::anonymous().topic("news"));
    acme.topic("news").publish(Event::unnamed("x")).await.unwrap();
    let ReceivedEvent { topic, .. } = page.next_event().await.unwrap();
    assert_eq!(topic.unwrap().scope(), Some("acme"));
}
