//! Push events from your Rust services to browsers over [Server-Sent Events].
//!
//! A [`Hub`] is a handle that you clone into your services. A [tower] [layer](Hub::layer) serves
//! the streams. The browser reads them with its own `EventSource`. The hub retains recent events in
//! one ordered log, so that a client that reconnects receives the events that it missed.
//!
//! The repository has a guide (`docs/README.md`), recipes (`docs/recipes.md`), a glossary
//! (`docs/glossary.md`), and a list of the guarantees with their tests (`docs/guarantees.md`).
//!
//! [Server-Sent Events]: https://html.spec.whatwg.org/multipage/server-sent-events.html
//! [tower]: https://github.com/tower-rs/tower
//!
//! # Getting started
//!
//! ```no_run
//! use axum::{Router, extract::State, routing::post};
//! use tower_sse::{Event, Hub, Public, PublishError, TopicFilter};
//!
//! async fn post_headline(State(hub): State<Hub>, text: String) -> Result<(), PublishError> {
//!     hub.topic("news").publish(Event::new("headline", text)).await?;
//!     Ok(()) // an error becomes a response: 400, 413, 500 or 503
//! }
//!
//! #[tokio::main]
//! async fn main() -> Result<(), Box<dyn std::error::Error>> {
//!     let hub = Hub::builder().build()?;
//!     let app = Router::new()
//!         .route("/headlines", post(post_headline))
//!         .with_state(hub.clone())
//!         .layer(hub.layer("/events", Public::topics(TopicFilter::exact("news"))));
//!     let listener = tokio::net::TcpListener::bind("127.0.0.1:3000").await?;
//!     axum::serve(hub.listener(listener), app).await?;
//!     Ok(())
//! }
//! ```
//!
//! On the page:
//!
//! ```js
//! const events = new EventSource("/events?topic=news");
//! events.addEventListener("headline", e => showHeadline(e.data));
//! events.addEventListener("hub.gap", () => location.reload()); // events were lost
//! ```
//!
//! `docs/guide/start.md` continues from here.
//!
//! # Targets
//!
//! [`Hub::topic`], [`Hub::user`], [`Hub::connection`] and [`Hub::everyone`] return a [`Target`].
//! [`Target::and`] unites targets, and each connection receives one copy. [`Target::except`]
//! excludes a connection, for example the connection of the page that caused the event.
//!
//! [`Target::publish`] returns when the log has the event. It never waits for a reader, and its
//! cost does not grow with the number of connections. Its [`Receipt`] has the event's position and
//! counts the listening connections of this instance. [`Target::publish_now`] is for code that
//! cannot await, and needs the log of this process. [`Hub::publish_many`] publishes several events
//! in order. [`PublishError::is_invalid`] is true if the hub can never accept the event, so that a
//! retry is useless.
//!
//! ```
//! # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! use tower_sse::{Event, Hub};
//!
//! let hub = Hub::builder().build()?;
//! let target = hub.user("ada").and(hub.topic("audit"));
//! let receipt = target.publish(Event::new("document.deleted", "7")).await?;
//! assert_eq!(receipt.connections, 0); // no connection listens, which is not an error
//! # Ok(()) }
//! ```
//!
//! # Authorization
//!
//! An [`Access`] hook turns each [`StreamRequest`] into a [`Subscription`] or a [`Refusal`]. The
//! hook has no default. Grant open access explicitly with [`Public`].
//!
//! ```
//! use tower_sse::{Refusal, StreamRequest, Subscription};
//!
//! async fn access(request: StreamRequest) -> Result<Subscription, Refusal> {
//!     // A session layer that runs before the hub's layer has put the user's id into the extensions.
//!     let user = request.extensions().get::<u64>().copied().ok_or(Refusal::unauthorized())?;
//!     Ok(Subscription::for_user(user).topic("news"))
//! }
//! # let _ = tower_sse::Hub::builder().build().unwrap().endpoint(access);
//! ```
//!
//! - The hub calls the hook for every request for a stream that it does not refuse itself, also
//!   when a client reconnects.
//! - [`Access::recheck`] re-authorizes open streams periodically.
//! - [`Subscription::expires_in`] limits the lifetime of a stream.
//! - [`Target::disconnect`] ends streams at once, and [`Disconnect`] sets when clients may
//!   reconnect.
//! - By default, the hub rejects requests from pages of other origins.
//!   [`HubBuilder::allow_cross_origin`] allows an origin.
//! - [Tickets](Hub::ticket) authorize clients that cannot send cookies or headers.
//!
//! # Mounting
//!
//! | Mount | Use it when |
//! |---|---|
//! | [`Hub::layer`] | one path is a stream, and every other request passes through unchanged |
//! | [`Hub::endpoint`] | the stream is a route like any other |
//! | [`Hub::respond`] | a handler creates the response, because its extractors authenticate the user |
//!
//! All three make the same checks of the request. A stream of [`Hub::respond`] has no
//! [recheck](Access::recheck). `docs/mounting.md` lists the operations of an axum router after
//! which a layer does not receive all requests.
//!
//! # Resume and loss
//!
//! The `id` of an event is its [`Position`] in the log. When a browser reconnects, it sends the
//! last id that it received as `Last-Event-ID`. It then receives every permitted event after that
//! position that the log retains. If an event is no longer retained, the stream reports the loss
//! with [`hub.gap`](#control-events). [`Retention`] sets what the log retains for each audience: a
//! short window, the newest events, or the newest event of each [key](Event::key). By default, the
//! log retains for each topic at most 1,024 events and 1 MiB, none older than 5 minutes.
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
//! // A page that reconnects with the third id receives the fourth event.
//! let mut page = hub.subscribe(Subscription::anonymous().topic("news"), ids[2])?;
//! let Some(SubscriberItem::Event(event)) = page.next().await else { panic!("no event") };
//! assert_eq!(event.data, "3");
//!
//! // The second event is no longer retained. A page that reconnects with the first id
//! // receives a gap, and then the events that are retained.
//! let mut page = hub.subscribe(Subscription::anonymous().topic("news"), ids[0])?;
//! let Some(SubscriberItem::Gap { reason, .. }) = page.next().await else { panic!("no gap") };
//! assert_eq!(reason, GapReason::Trimmed);
//! let Some(SubscriberItem::Event(event)) = page.next().await else { panic!("no event") };
//! assert_eq!(event.data, "2");
//! # Ok(()) }
//! ```
//!
//! To render a page without missing an event, the server first takes [`Hub::position`] and then
//! queries the data. The page opens its stream with that position in `?last_event_id=`. A stream
//! without a position can [start](Subscription::start) with the newest retained events.
//!
//! The hub has no queue for each reader, so the retention bounds its memory. A reader that is too
//! slow receives a gap or is disconnected ([`LagPolicy`]). With [`Retention::latest_per_key`], a
//! slow reader skips outdated values and receives the last value of each key.
//!
//! # Control events
//!
//! The hub sends control events, whose names start with `hub.`. Their data is JSON, to which fields
//! may be added later.
//!
//! | Event | Data | Sent |
//! |---|---|---|
//! | `hub.hello` | `connection`, `cursor` (`fresh`, `resuming`, `refused`), `topics`, `instance` if named | first, with `retry` |
//! | `hub.live` | `{}`, or the `topics` after a change | when the stream has caught up, after a change of its topics, after `hub.stale`, and on a long quiet stream. Its id stands for all earlier events |
//! | `hub.gap` | `reason` (see [`GapReason`]), `topics` | when events are no longer retained: fetch the state again |
//! | `hub.refused` | `reason` (see [`RefusalReason`]), `retry_ms` | instead of a stream: reconnect after `retry_ms` |
//! | `hub.stale` | `{}` | when the hub cannot follow the shared log. `hub.live` follows when the hub can follow the log again |
//! | `hub.expiring` | `in_ms` | shortly before the subscription expires |
//! | `hub.joined`, `hub.left` | `topic`, `user`, `data` if attached | in topics with [presence events](HubBuilder::presence_for) |
//! | `hub.bye` | `reason` (see [`EndReason`]), `reconnect`: `now`, `later`, `never`; `note` if set | last, when the hub ends the stream |
//!
//! # Presence
//!
//! [`Target::presence`] returns the connected users, and [`Target::count`] counts connections.
//! [`Target::is_online`] is also true for a grace period after the last connection of a user has
//! ended. [`Hub::connections`] lists the connections of this instance, and [`Hub::lifecycle`]
//! reports when they start and end. [`Target::join`] and [`Target::leave`] change the topics of
//! open streams. With [`SseLayer::allow_topic_changes`], a page can change the topics of its own
//! stream.
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
//! assert!(hub.user("ada").is_online()); // within the grace period: the user may reconnect
//! # drop(two);
//! # Ok(()) }
//! ```
//!
//! # Graceful shutdown
//!
//! A server waits for its open requests, and event streams do not end by themselves. [`Hub::drain`]
//! ends the streams. It tells each client to reconnect after a random time within the window. Await
//! `drain` inside the future of `with_graceful_shutdown`.
//!
//! ```
//! # use tower_sse::Hub;
//! # async fn serve(hub: Hub, app: axum::Router) -> std::io::Result<()> {
//! # let listener = tokio::net::TcpListener::bind("127.0.0.1:3000").await?;
//! axum::serve(hub.listener(listener), app)
//!     .with_graceful_shutdown(async move {
//!         tokio::signal::ctrl_c().await.ok(); // also wait for SIGTERM on Unix
//!         hub.drain(std::time::Duration::from_secs(5)).await;
//!     })
//!     .await
//! # }
//! ```
//!
//! `Hub::listener` and [`Hub::io`] watch the sockets below the server. They close the socket of a
//! client that takes no bytes for [`HubBuilder::write_deadline`] while bytes wait. They also let
//! [`Hub::drain`] cut connections that do not end, so that no stream keeps the process running.
//! [`Hub::is_ready`] is for a readiness probe, and [`Hub::stats`] is for metrics.
//!
//! # Several instances
//!
//! A [`Backplane`](backplane::Backplane) gives a hub a log that several instances share:
//! [`HubBuilder::backplane`]. Every instance delivers the events of all instances, and a client can
//! resume on any instance. A [`Publisher`] is for programs that only publish, for example a worker.
//!
//! ```
//! # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! use tower_sse::backplane::Memory;
//! use tower_sse::{Event, Hub, HubBuilder, Retention, TopicFilter};
//!
//! // All instances and workers need the same settings.
//! fn settings(log: Memory) -> HubBuilder {
//!     Hub::builder()
//!         .retention_for(TopicFilter::prefix("reports/"), Retention::latest_per_key())
//!         .backplane(log)
//! }
//!
//! let log = Memory::new(); // in production `Redis`, `Nats` or `Postgres`, in several processes
//! let (one, two) = (settings(log.clone()).build()?, settings(log.clone()).build()?);
//! let worker = settings(log).publisher()?;
//! worker.topic("reports/7").publish(Event::new("progress", "40").key("progress")).await?;
//! # let _ = (one, two);
//! # Ok(()) }
//! ```
//!
//! `docs/guide/scaling.md` has settings, costs and limits. With `Postgres`, a transaction of the
//! application can publish events: `docs/postgres.md`.
//!
//! # Testing
//!
//! [`Hub::subscribe`] opens a stream within the process, as in the examples above. The endpoint and
//! the service of the layer are tower services, so a test can call them without a socket.
//! `docs/guide/testing.md` has examples.
//!
//! # Features
//!
//! All features are additive. The last column is the number of crates that tower-sse with this
//! feature adds, including itself, to an application that already depends on axum, serde, tokio
//! (`full`) and tracing (57 crates). Without any feature, the number is also 13.
//!
//! | Feature | Default | Adds | Crates |
//! |---|---|---|---|
//! | `axum` | yes | `StreamRequest`, `Hub` and `ConnectionId` as extractors; `EventStream` and errors as responses. Depends on axum-core only | 13 |
//! | `axum-listener` | yes | `Hub::listener` and `SseMakeService` for `axum::serve` | 13 |
//! | `derive` | no | `#[derive(Message)]`: typed events | 14 |
//! | `metrics` | no | metrics through the facade of the crate `metrics`, and `Hub::record_metrics`. `docs/metrics.md` lists them | 16 |
//! | `nats` | no | `backplane::Nats`: several instances through a NATS server with JetStream | 101 |
//! | `openapi` | no | `StreamSchema`: a stream with its events in an OpenAPI document. Depends on utoipa | 17 |
//! | `postgres` | no | `backplane::Postgres`: several instances through a PostgreSQL database, and publishing in transactions | 62 |
//! | `redis` | no | `backplane::Redis`: several instances through a Redis server | 60 |
//! | `takeover` | no | `SseIo::take_over` and `Hub::listener_with_takeover`: less memory for idle streams, on Unix | 13 |
//! | `test-kit` | no | `test_kit`: a client, a log with faults and checks, for the tests of applications | 16 |
//! | `typescript` | no | `TypeScript`: a module with the types of the events, for pages. Depends on ts-rs | 18 |
//! | `uuid` | no | conversions from `Uuid` to `Topic` and `UserId` | 14 |

#![cfg_attr(docsrs, feature(doc_cfg))]
#![cfg_attr(
    not(all(unix, feature = "takeover")),
    allow(dead_code, reason = "a body always has the code to offer its stream, which only `takeover` on Unix uses")
)]

/// Compiles the code in the README as doctests.
#[cfg(all(doctest, feature = "axum-listener"))]
#[doc = include_str!("../README.md")]
struct Readme;

/// Compiles the Rust code in the documents as doctests. `tests/docs.rs` checks that every document
/// with Rust code is in this list.
#[cfg(all(doctest, feature = "axum-listener"))]
mod documents {
    #[doc = include_str!("../docs/adapters.md")]
    struct Adapters;
    #[doc = include_str!("../docs/comparison.md")]
    struct Comparison;
    #[doc = include_str!("../docs/deployment.md")]
    struct Deployment;
    #[doc = include_str!("../docs/faq.md")]
    struct Faq;
    #[doc = include_str!("../docs/from-broadcast.md")]
    struct FromBroadcast;
    #[doc = include_str!("../docs/from-signalr.md")]
    struct FromSignalR;
    #[doc = include_str!("../docs/from-socketioxide.md")]
    struct FromSocketioxide;
    #[doc = include_str!("../docs/hypermedia.md")]
    struct Hypermedia;
    #[doc = include_str!("../docs/leaving.md")]
    struct Leaving;
    #[doc = include_str!("../docs/metrics.md")]
    struct MetricsPage;
    #[doc = include_str!("../docs/mounting.md")]
    struct Mounting;
    #[doc = include_str!("../docs/postgres.md")]
    struct PostgresPage;
    #[doc = include_str!("../docs/recipes.md")]
    struct Recipes;
    #[doc = include_str!("../docs/scaling.md")]
    struct Brokers;

    #[doc = include_str!("../docs/guide/authorization.md")]
    struct Authorization;
    #[doc = include_str!("../docs/guide/identity.md")]
    struct Identity;
    #[doc = include_str!("../docs/guide/presence.md")]
    struct Presence;
    #[doc = include_str!("../docs/guide/tenants.md")]
    struct Tenants;
    #[doc = include_str!("../docs/guide/retention.md")]
    struct Retention;
    #[doc = include_str!("../docs/guide/runs.md")]
    struct Runs;
    #[doc = include_str!("../docs/guide/scaling.md")]
    struct Scaling;
    #[doc = include_str!("../docs/guide/sending.md")]
    struct Sending;
    #[doc = include_str!("../docs/guide/sessions.md")]
    struct Sessions;
    #[doc = include_str!("../docs/guide/shutdown.md")]
    struct Shutdown;
    #[doc = include_str!("../docs/guide/slow-readers.md")]
    struct SlowReaders;
    #[doc = include_str!("../docs/guide/start.md")]
    struct Start;
    #[doc = include_str!("../docs/guide/testing.md")]
    struct Testing;
    #[doc = include_str!("../docs/guide/typed-events.md")]
    struct TypedEvents;
}

pub mod backplane;
#[cfg(any(feature = "openapi", feature = "typescript"))]
mod describe;
#[cfg(feature = "axum")]
mod extract;
mod hub;
mod log;
mod macros;
mod mount;
mod net;
mod sync;
#[cfg(feature = "test-kit")]
pub mod test_kit;
mod types;
mod wire;

#[cfg(any(feature = "openapi", feature = "typescript"))]
pub use crate::describe::DescribeError;
#[cfg(feature = "openapi")]
pub use crate::describe::StreamSchema;
#[cfg(feature = "typescript")]
pub use crate::describe::TypeScript;
#[cfg(feature = "axum")]
pub use crate::extract::MissingHub;
pub use crate::hub::{
    AllScopes, BeginRun, ConnectionInfo, Drained, Hub, HubBuilder, Join, Lifecycle, LifecycleEvent, Member,
    NextEventError, OverLimit, Presence, Publisher, Receipt, ReceivedEvent, Run, RunReader, RunWriter, Scope,
    ScopeStats, Stats, Subscriber, SubscriberItem, Target, Ticket, TypedTarget,
};
pub use crate::mount::{
    Access, AccessFn, BeginRunFor, EndpointFuture, EventBody, EventStream, IntoAccess, Public, ResponseBody,
    ResponseFuture, SseEndpoint, SseLayer, SseService, StreamRequest,
};
pub use crate::net::{SseConnectInfo, SseIo};
#[cfg(feature = "axum-listener")]
pub use crate::net::{SseListener, SseMakeService};
pub use crate::types::disconnect::Disconnect;
pub use crate::types::error::{BuildError, CommandError, InvalidName, PublishError};
pub use crate::types::event::Event;
pub use crate::types::last_event_id::Cursor;
pub use crate::types::message::Message;
pub use crate::types::name::{ConnectionId, Topic, UserId};
pub use crate::types::position::{InvalidPosition, Position};
pub use crate::types::reason::{EndReason, GapReason, RefusalReason, UnknownReason};
pub use crate::types::recheck::Recheck;
pub use crate::types::refusal::Refusal;
pub use crate::types::retention::{LagPolicy, Retention};
pub use crate::types::run::{RunEnd, RunState};
pub use crate::types::run_error::RunError;
pub use crate::types::subscription::{Ids, Start, StreamEnd, Subscription};
pub use crate::types::subscription_error::SubscriptionError;
pub use crate::types::topic_filter::TopicFilter;
pub use crate::types::typed_topic::{Carries, TypedTopic};
#[cfg(feature = "derive")]
pub use tower_sse_derive::{Message, TypedTopic};

/// For the code that the macros write.
#[doc(hidden)]
pub mod __private {
    pub use serde::Serialize;

    pub use crate::types::message::check_event_name;
    pub use crate::types::typed_topic::{push_field, read_field};
}
