//! An embeddable hub for [Server-Sent Events]: push to topics, users, connections or everyone from any service, over
//! plain `text/event-stream`, from any [tower] application.
//!
//! [Server-Sent Events]: https://html.spec.whatwg.org/multipage/server-sent-events.html
//! [tower]: https://github.com/tower-rs/tower
//!
//! This page is a tutorial: from the first event to several instances. The repository has a guide by
//! need (`docs/guide.md`), recipes, and every promise with the test that shows it (`docs/guarantees.md`).
//!
//! # The first event
//!
//! A [`Hub`] is a handle to inject wherever something happens. A [layer](Hub::layer) turns requests
//! into streams. Between them is one ordered log.
//!
//! ```
//! use axum::{Router, extract::State, http::StatusCode, routing::post};
//! use tower_sse::{Event, Hub, Public, PublishError, TopicFilter};
//!
//! async fn post_headline(State(hub): State<Hub>, text: String) -> Result<StatusCode, PublishError> {
//!     hub.topic("news").publish(Event::new("headline", text)).await?; // an error is a response: 400, 413 or 503
//!     Ok(StatusCode::ACCEPTED)
//! }
//!
//! fn app(hub: &Hub) -> Router {
//!     Router::new()
//!         .route("/headlines", post(post_headline))
//!         .with_state(hub.clone())
//!         .layer(hub.layer("/events", Public::topics(TopicFilter::exact("news")))) // after all routes
//! }
//! # let hub = Hub::builder().build().unwrap();
//! # let _ = app(&hub);
//! ```
//!
//! What makes a program of it, with axum, `tokio = { version = "1", features = ["full"] }` and this crate:
//!
//! ```no_run
//! # use axum::Router;
//! # use tower_sse::Hub;
//! # fn app(_: &Hub) -> Router { Router::new() }
//! #[tokio::main]
//! async fn main() -> Result<(), Box<dyn std::error::Error>> {
//!     let hub = Hub::builder().build()?;
//!     let listener = tokio::net::TcpListener::bind("127.0.0.1:3000").await?;
//!     axum::serve(hub.listener(listener), app(&hub)).await?;
//!     Ok(())
//! }
//! ```
//!
//! In one terminal `curl -N 'http://127.0.0.1:3000/events?topic=news'`, in another
//! `curl -d 'Bridge closed' http://127.0.0.1:3000/headlines`. The first one prints:
//!
//! ```text
//! event: hub.hello
//! retry: 2000
//! data: {"connection":"6f1b…","cursor":"fresh","topics":["news"]}
//!
//! event: hub.live
//! data: {}
//! id: 1.9f3c5a01b2c3d4e5.0
//!
//! event: headline
//! data: Bridge closed
//! id: 1.9f3c5a01b2c3d4e5.1
//! ```
//!
//! On the page, the browser's own `EventSource` is enough:
//!
//! ```js
//! const events = new EventSource("/events?topic=news");
//! events.addEventListener("headline", e => show(e.data));
//! events.addEventListener("hub.gap", refetch);
//! ```
//!
//! # To whom
//!
//! [`Hub::topic`], [`Hub::user`], [`Hub::connection`] and [`Hub::everyone`] name a [`Target`]; [`Target::and`] unites
//! several (each connection gets one copy) and [`Target::except`] leaves the originator out. [`Target::publish`] says
//! where in the log the event is and how many connections listen; it costs the same for ten listeners and for ten
//! thousand, and never waits for one. [`Target::publish_now`] is for code that cannot await, [`Hub::publish_many`] for
//! many at once. An error says whether the event can never be taken ([`PublishError::is_invalid`]) or not now.
//!
//! ```
//! # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! use tower_sse::{Event, Hub};
//!
//! let hub = Hub::builder().build()?;
//! let to = hub.user("ada").and(hub.topic("audit"));
//! let sent = to.publish(Event::new("document.deleted", "7")).await?;
//! assert_eq!(sent.connections, 0); // no connection listens, which is no error
//! # Ok(()) }
//! ```
//!
//! # Who may read
//!
//! An [`Access`] hook turns each request ([`StreamRequest`]) into a [`Subscription`] or a [`Refusal`]. There is no silent
//! default: open access is spelled [`Public`], as above.
//!
//! ```
//! use tower_sse::{Refusal, StreamRequest, Subscription};
//!
//! async fn access(request: StreamRequest) -> Result<Subscription, Refusal> {
//!     // What a session layer outside put into the request.
//!     let user = request.extensions().get::<u64>().copied().ok_or(Refusal::unauthorized())?;
//!     Ok(Subscription::for_user(user).topic("news"))
//! }
//! # let _ = tower_sse::Hub::builder().build().unwrap().endpoint(access);
//! ```
//!
//! It is asked for every request, also for one that comes back. [`Access::recheck`] looks again while a stream is open,
//! [`Subscription::expires_in`] ends it by itself, and [`Target::disconnect`] ends it now, with a [`Disconnect`] that says
//! whether to come back. Pages of other sites are kept out unless [listed](HubBuilder::allow_cross_origin);
//! [tickets](Hub::ticket) let in who can send no cookie.
//!
//! # Where to mount it
//!
//! Three equivalent ways: [`Hub::layer`] answers one path and passes everything else through untouched;
//! [`Hub::endpoint`] is a service for one route; [`Hub::respond`] makes the response inside a handler whose extractors
//! know the user. `docs/mounting.md` in the repository has a table of what hides a layer in an axum router.
//!
//! # Nothing is lost in silence
//!
//! A stream is a cursor into the log, and the `Last-Event-ID` that a browser sends when it reconnects
//! is that cursor. So nothing is lost on a reconnect within what is kept, and when something is no
//! longer available the stream says so: [`hub.gap`](#what-a-page-hears). [`Retention`] says what is
//! kept of the events to one audience, for those who come back or fall behind: a short window, the
//! newest events, or the newest of each [key](Event::key).
//!
//! ```
//! # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! use tower_sse::{Event, GapReason, Hub, Retention, SubscriberItem, Subscription};
//!
//! let hub = Hub::builder().topic_retention(Retention::replay().count(2)).build()?;
//! let mut ids = Vec::new();
//! for n in 0..4 {
//!     ids.push(hub.topic("news").publish(Event::unnamed(n.to_string())).await?.position);
//! }
//! // A page that comes back with the third id gets the fourth event.
//! let mut page = hub.subscribe(Subscription::anonymous().topic("news"), ids[2])?;
//! let Some(SubscriberItem::Event(event)) = page.next().await else { panic!("no event") };
//! assert_eq!(event.data, "3");
//!
//! // One that comes back with the first is told that the second is not to be had,
//! // and gets the rest.
//! let mut page = hub.subscribe(Subscription::anonymous().topic("news"), ids[0])?;
//! let Some(SubscriberItem::Gap { reason, .. }) = page.next().await else { panic!("no gap") };
//! assert_eq!(reason, GapReason::Trimmed);
//! let Some(SubscriberItem::Event(event)) = page.next().await else { panic!("no event") };
//! assert_eq!(event.data, "2");
//! # Ok(()) }
//! ```
//!
//! A page that renders a state takes [`Hub::position`] first, then queries, and opens the stream with
//! `?last_event_id=` and that position. A new page may [start](Subscription::start) with the newest events.
//!
//! Memory is bounded by these rings, not by readers: a slow one holds no queue, falls behind in them, and is told so
//! ([`LagPolicy`]). With [`Retention::latest_per_key`] it skips what is outdated and always gets the last value.
//!
//! # What a page hears
//!
//! Beside the application's events the hub sends its own, with JSON data to which fields may be added later:
//!
//! | event | data | when |
//! |---|---|---|
//! | `hub.hello` | `connection`, `cursor` (`fresh`, `resuming`, `refused`), `topics`, `instance` if named | first, with `retry` |
//! | `hub.live` | `{}`, or `topics` after they have changed | caught up; its id stands for everything before it |
//! | `hub.gap` | `reason` (see [`GapReason`]), `topics` | records are not to be had: fetch the state anew |
//! | `hub.refused` | `reason` (see [`RefusalReason`]), `retry_ms` | instead of a stream: come back then |
//! | `hub.stale` | `{}` | the shared log cannot be followed now; `hub.live` says when that is over |
//! | `hub.expiring` | `in_ms` | the subscription's time is near its end |
//! | `hub.joined`, `hub.left` | `topic`, `user`, `data` if attached | in topics that [tell](HubBuilder::presence_for) who comes and goes |
//! | `hub.bye` | `reason` (see [`EndReason`]), `reconnect`: `now`, `later`, `never`, and a `note` | last, where the hub ends the stream |
//!
//! # Who is there
//!
//! [`Target::presence`], [`Target::count`] and [`Target::is_online`] say who has a stream open,
//! [`Hub::connections`] all about each, and [`Hub::lifecycle`] what becomes of them. [`Target::join`]
//! and [`Target::leave`] change the topics of a stream while it is open; by [`SseLayer::allow_topic_changes`] a
//! page may change its own.
//!
//! ```
//! # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! use tower_sse::{Disconnect, Hub, Subscription};
//!
//! let hub = Hub::builder().build()?;
//! let one = hub.subscribe(Subscription::for_user("ada"), None)?;
//! let two = hub.subscribe(Subscription::for_user("ada"), None)?;
//! hub.connection(one.connection()).join("documents/7").await?;
//! assert_eq!((hub.user("ada").count(), hub.topic("documents/7").count()), (2, 1));
//!
//! hub.user("ada").disconnect(Disconnect::now().note("signed out")).await?;
//! assert_eq!(hub.user("ada").count(), 0);
//! assert!(hub.user("ada").is_online()); // for a moment yet: a reload is no leave
//! # drop(two);
//! # Ok(()) }
//! ```
//!
//! # Leaving
//!
//! A server waits for its open requests, and streams do not end by themselves. [`Hub::drain`] ends them: awaited inside
//! the future of `with_graceful_shutdown` it sends each page a random time to come back, so that they come spread out.
//!
//! ```
//! # use tower_sse::Hub;
//! # async fn serve(hub: Hub, app: axum::Router) -> std::io::Result<()> {
//! # let listener = tokio::net::TcpListener::bind("127.0.0.1:3000").await?;
//! axum::serve(hub.listener(listener), app)
//!     .with_graceful_shutdown(async move {
//!         tokio::signal::ctrl_c().await.ok(); // and SIGTERM, where there is one
//!         hub.drain(std::time::Duration::from_secs(5)).await;
//!     })
//!     .await
//! # }
//! ```
//!
//! Below the server, `Hub::listener` or [`Hub::io`] watch over the sockets: a deadline for peers
//! that do not read, and a cut that [`Hub::drain`] can pull, so that no stream keeps a process that wants to leave.
//! [`Hub::is_ready`] has the answers for two probes, [`Hub::stats`] the figures.
//!
//! # Several instances
//!
//! A [`Backplane`](backplane::Backplane) shares the log: [`HubBuilder::backplane`]. What one instance
//! publishes all deliver, and a client goes on at whichever it meets. A program that only publishes, a
//! worker or a cron job, has a `Publisher` ([`Publisher::new`]).
//!
//! ```
//! # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! use tower_sse::backplane::Memory;
//! use tower_sse::{Event, Hub, HubBuilder, Retention, TopicFilter};
//!
//! // What instances and workers have to agree on.
//! fn settings(log: Memory) -> HubBuilder {
//!     Hub::builder()
//!         .retention_for(TopicFilter::prefix("reports/"), Retention::latest_per_key())
//!         .backplane(log)
//! }
//!
//! let log = Memory::new(); // in real life `Redis` or `Nats`, in several processes
//! let (one, two) = (settings(log.clone()).build()?, settings(log.clone()).build()?);
//! let worker = settings(log).publisher()?;
//! worker.topic("reports/7").publish(Event::new("progress", "40").key("progress")).await?;
//! # let _ = (one, two);
//! # Ok(()) }
//! ```
//!
//! `docs/scaling.md` in the repository has topology, settings, costs and limits.
//!
//! # Testing
//!
//! [`Hub::subscribe`] reads in the process what a browser with that subscription would get, as above. A request needs no
//! socket either: the layer and the endpoint are services. `docs/guide/testing.md` in the repository has both.
//!
//! # Features
//!
//! | feature | default | what |
//! |---|---|---|
//! | `axum` | yes | `StreamRequest` and `Hub` as extractors, `EventStream` as a response; depends on axum-core only |
//! | `axum-listener` | yes | `Hub::listener` for `axum::serve` |
//! | `nats` | no | `backplane::Nats`: several instances through a NATS server with JetStream |
//! | `redis` | no | `backplane::Redis`: several instances through a Redis server |
//! | `takeover` | no | `SseIo::take_over`, `Hub::listener_with_takeover`: sockets of many idle streams |
//! | `uuid` | no | topics and users from `Uuid` |
//!
//! All are additive.

#![cfg_attr(docsrs, feature(doc_cfg))]
#![cfg_attr(
    not(all(unix, feature = "takeover")),
    allow(dead_code, reason = "streams are offered, and only the feature `takeover` takes sockets, on Unix")
)]

/// The code in the README compiles.
#[cfg(all(doctest, feature = "axum-listener"))]
#[doc = include_str!("../README.md")]
struct Readme;

/// And so does that in the documents: each block of Rust is a doctest. `tests/docs.rs` sees to it that
/// none is forgotten.
#[cfg(all(doctest, feature = "axum-listener"))]
mod documents {
    #[doc = include_str!("../docs/comparison.md")]
    struct Comparison;
    #[doc = include_str!("../docs/deployment.md")]
    struct Deployment;
    #[doc = include_str!("../docs/faq.md")]
    struct Faq;
    #[doc = include_str!("../docs/from-signalr.md")]
    struct FromSignalR;
    #[doc = include_str!("../docs/recipes.md")]
    struct Recipes;

    #[doc = include_str!("../docs/guide/authorization.md")]
    struct Authorization;
    #[doc = include_str!("../docs/guide/identity.md")]
    struct Identity;
    #[doc = include_str!("../docs/guide/presence.md")]
    struct Presence;
    #[doc = include_str!("../docs/guide/retention.md")]
    struct Retention;
    #[doc = include_str!("../docs/guide/scaling.md")]
    struct Scaling;
    #[doc = include_str!("../docs/guide/sending.md")]
    struct Sending;
    #[doc = include_str!("../docs/guide/shutdown.md")]
    struct Shutdown;
    #[doc = include_str!("../docs/guide/slow-readers.md")]
    struct SlowReaders;
    #[doc = include_str!("../docs/guide/start.md")]
    struct Start;
    #[doc = include_str!("../docs/guide/testing.md")]
    struct Testing;
}

pub mod backplane;
#[cfg(feature = "axum")]
mod extract;
mod hub;
mod log;
mod macros;
mod mount;
mod net;
mod sync;
mod types;
mod wire;

#[cfg(feature = "axum")]
pub use crate::extract::MissingHub;
pub use crate::hub::{
    ConnectionInfo, Drained, Hub, HubBuilder, Join, Lifecycle, LifecycleEvent, Member, OverLimit, Presence, Publisher,
    Receipt, ReceivedEvent, Stats, Subscriber, SubscriberItem, Target, Ticket,
};
pub use crate::mount::{
    Access, AccessFn, EndpointFuture, EventBody, EventStream, IntoAccess, Public, ResponseBody, ResponseFuture,
    SseEndpoint, SseLayer, SseService, StreamRequest,
};
pub use crate::net::{SseConnectInfo, SseIo};
#[cfg(feature = "axum-listener")]
pub use crate::net::{SseListener, SseMakeService};
pub use crate::types::disconnect::Disconnect;
pub use crate::types::error::{BuildError, CommandError, InvalidName, PublishError};
pub use crate::types::event::Event;
pub use crate::types::last_event_id::Cursor;
pub use crate::types::name::{ConnectionId, Topic, UserId};
pub use crate::types::position::{InvalidPosition, Position};
pub use crate::types::reason::{EndReason, GapReason, RefusalReason, UnknownReason};
pub use crate::types::recheck::Recheck;
pub use crate::types::refusal::Refusal;
pub use crate::types::retention::{LagPolicy, Retention};
pub use crate::types::subscription::{Start, StreamEnd, Subscription};
pub use crate::types::subscription_error::SubscriptionError;
pub use crate::types::topic_filter::TopicFilter;
