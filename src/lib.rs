//! An embeddable hub for [Server-Sent Events]: push to topics, users, connections or everyone from any service, over
//! plain `text/event-stream`, from any [tower] application.
//!
//! [Server-Sent Events]: https://html.spec.whatwg.org/multipage/server-sent-events.html
//! [tower]: https://github.com/tower-rs/tower
//!
//! # In short
//!
//! A [`Hub`] is a handle to inject wherever something happens. A layer, an endpoint or a handler turns requests into
//! streams. Between them is one ordered log; a stream is a cursor into it, and the `Last-Event-ID` that a browser sends
//! when it reconnects is that cursor. So nothing is lost on a reconnect, and when something is no longer available the
//! stream says so: [`hub.gap`](#what-a-page-hears).
//!
//! ```
//! # #[cfg(feature = "json")] mod example {
//! use axum::extract::{FromRef, Path, State};
//! use axum::{Router, http::StatusCode, routing::delete};
//! use serde::Serialize;
//! use tower_sse::{Connect, Event, Hub, Refusal, Retention, Subscription, TopicRule};
//!
//! #[derive(Clone, FromRef)]
//! struct AppState {
//!     hub: Hub,
//! }
//!
//! #[derive(Serialize)]
//! struct Deleted {
//!     id: u64,
//! }
//!
//! /// Who asks: a session, a token, whatever the application has.
//! async fn access(connect: Connect) -> Result<Subscription, Refusal> {
//!     let cookie = connect.headers().get("cookie").and_then(|value| value.to_str().ok());
//!     let user = cookie.and_then(|cookie| cookie.strip_prefix("user=")).ok_or(Refusal::login())?;
//!     Ok(Subscription::user(user).topic("news"))
//! }
//!
//! async fn delete_document(State(hub): State<Hub>, Path(id): Path<u64>) -> Result<StatusCode, StatusCode> {
//!     let owner = "ada"; // from the database
//!     let event = Event::json("document.deleted", &Deleted { id }).map_err(|_| StatusCode::INTERNAL_SERVER_ERROR)?;
//!     hub.user(owner).publish(event).await.map_err(|_| StatusCode::SERVICE_UNAVAILABLE)?;
//!     Ok(StatusCode::NO_CONTENT)
//! }
//!
//! pub fn app() -> Result<Router, tower_sse::BuildError> {
//!     let hub = Hub::builder()
//!         .retention_for(TopicRule::prefix("sensors/"), Retention::latest_per_key())
//!         .build()?;
//!     Ok(Router::new()
//!         .route("/documents/{id}", delete(delete_document))
//!         .with_state(AppState { hub: hub.clone() })
//!         .layer(hub.layer("/events", access))) // after all routes; sessions and CORS after it
//! }
//! # }
//! # #[cfg(feature = "json")] { let _ = example::app().unwrap(); }
//! ```
//!
//! On the page, the browser's own `EventSource` is enough:
//!
//! ```js
//! const events = new EventSource("/events");
//! events.addEventListener("document.deleted", e => remove(JSON.parse(e.data).id));
//! events.addEventListener("hub.gap", refetch);
//! ```
//!
//! # Sending
//!
//! [`Hub::topic`], [`Hub::user`], [`Hub::connection`] and [`Hub::everyone`] name a [`Target`]; [`Target::and`] unites
//! several (each connection gets one copy) and [`Target::except`] leaves the originator out. [`Target::publish`] says
//! where in the log the event is and how many connections listen; it costs the same for ten listeners and for ten
//! thousand, and never waits for one. [`Target::publish_now`] is for code that cannot await.
//!
//! # Who may read
//!
//! An [`Access`] hook turns each request into a [`Subscription`] or a [`Refusal`]. There is no silent default: open
//! access is spelled [`Public`].
//!
//! [`Access::recheck`] looks again while a stream is open, [`Subscription::expires_in`] ends it by itself, and
//! [`Target::disconnect`] ends it now. [`Target::join`] and [`Target::leave`] change its topics while it is open. Pages of
//! other sites are kept out unless [listed](HubBuilder::allow_origin); [tickets](Hub::ticket) let in who can send no
//! cookie.
//!
//! # Who is there
//!
//! [`Target::presence`], [`Target::count`] and [`Target::is_online`] say who has a stream open, [`Hub::connections`] all
//! about each, and [`Hub::lifecycle`] what becomes of them.
//!
//! # Mounting
//!
//! Three equivalent ways: [`Hub::layer`] answers one path and passes everything else through untouched;
//! [`Hub::endpoint`] is a service for one route; [`Hub::connect`] makes the response inside a handler whose extractors
//! know the user. `docs/mounting.md` in the repository has a table of what hides a layer in an axum router.
//!
//! Below the server, `Hub::listener` (feature `axum-serve`) or [`Hub::io`] watch over the sockets: a deadline for peers
//! that do not read, and a cut that [`Hub::drain`] can pull, so that no stream keeps a process that
//! wants to leave.
//!
//! # What is kept
//!
//! [`Retention`] says what is kept of the events to one audience, for those who come back or fall behind: a short
//! window, the newest events, or the newest of each [key](Event::key). Memory is bounded by these rings, not by readers:
//! a slow one holds no queue.
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
//! | `hub.bye` | `reason` (see [`EndReason`]), `return`: `now`, `later`, `never`, and a `note` | last, where the hub ends the stream |
//!
//! # Several instances
//!
//! A [`Backplane`](backplane::Backplane) shares the log: [`HubBuilder::backplane`]. What one instance publishes all deliver,
//! and a client goes on at whichever it meets. A program that only publishes, a worker or a cron job, has a `Publisher`
//! ([`Hub::publisher`]). `docs/scaling.md` in the repository has topology, settings, costs and limits.
//!
//! # Features
//!
//! | feature | default | what |
//! |---|---|---|
//! | `json` | yes | `Event::json`, `Subscription::data`: values that serialise with serde |
//! | `axum` | yes | `Connect` and `Hub` as extractors, `EventStream` as a response; depends on axum-core only |
//! | `axum-serve` | no | `Hub::listener` for `axum::serve` |
//! | `nats` | no | [`backplane::Nats`]: several instances through a NATS server with JetStream |
//! | `redis` | no | [`backplane::Redis`]: several instances through a Redis server |
//! | `uuid` | no | topics and users from `Uuid` |
//!
//! All are additive.

#![cfg_attr(docsrs, feature(doc_cfg))]
#![cfg_attr(not(feature = "json"), allow(dead_code, reason = "what only a shared log needs, whose records are JSON"))]

/// The code in the README compiles.
#[cfg(all(doctest, feature = "axum-serve", feature = "json"))]
#[doc = include_str!("../README.md")]
struct Readme;

/// And so does that in the documents: each block of Rust is a doctest. `tests/docs.rs` sees to it that none is forgotten.
#[cfg(all(doctest, feature = "axum-serve", feature = "json"))]
mod documents {
    #[doc = include_str!("../docs/comparison.md")]
    struct Comparison;
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

mod audience;
#[cfg(feature = "axum")]
mod axum;
#[cfg(feature = "json")]
pub mod backplane;
mod command;
mod error;
mod event;
mod http;
mod hub;
mod kick;
mod log;
#[cfg(feature = "json")]
mod message;
mod moment;
mod name;
mod position;
mod reason;
#[cfg(feature = "json")]
mod record;
mod refusal;
mod retention;
mod subscription;
mod sync;
#[cfg(feature = "json")]
mod ticket;
mod wire;

#[cfg(feature = "axum")]
pub use crate::axum::MissingHub;
pub use crate::error::{BuildError, CommandError, InvalidName, PublishError};
pub use crate::event::Event;
#[cfg(feature = "axum-serve")]
pub use crate::http::SseListener;
pub use crate::http::{
    Access, Connect, EndpointFuture, EventBody, EventStream, Public, ResponseBody, ResponseFuture, SseEndpoint, SseIo,
    SseLayer, SseService,
};
pub use crate::hub::{
    ConnectionInfo, Drained, Health, Hub, HubBuilder, HubStream, Join, Lifecycle, LifecycleEvent, Member, OverLimit,
    Presence, Published, Received, Recheck, Stats, StreamItem, Target, Ticket,
};
#[cfg(feature = "json")]
pub use crate::hub::{Publisher, Recipients};
pub use crate::kick::Kick;
pub use crate::name::{ConnectionId, Topic, UserId};
pub use crate::position::{Cursor, InvalidPosition, Position};
pub use crate::reason::{EndReason, GapReason, RefusalReason};
pub use crate::refusal::Refusal;
pub use crate::retention::{LagPolicy, Retention, TopicRule};
pub use crate::subscription::{End, Start, Subscription, SubscriptionError};
