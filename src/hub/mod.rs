//! The hub: the one pipeline from a publisher to every connection.
//!
//! The files of this folder contain the methods that an application calls. Each subfolder has one
//! responsibility. Its `mod.rs` lists its rules, and the file that implements each rule:
//!
//! | Folder | Responsibility |
//! |---|---|
//! | `config` | settings, their defaults and their validation |
//! | `tasks` | background tasks that survive the end of a runtime, and workers |
//! | `connection` | the state of each open connection, bans, sockets |
//! | `peers` | the reports of other instances |
//! | `runs` | the runs that this instance writes or reads |
//! | `membership` | the topics of each connection |
//! | `stream` | the life of one open stream |
//! | `upkeep` | background work of one instance |
//! | `cluster` | work on the shared log |
//! | `tickets` | subscriptions that a client redeems once |
//! | `observe` | counters, statistics, lifecycle events |
//!
//! The file `departures` contains the queue of users and members that have left. `connection`,
//! `peers` and `membership` use it.

mod builder;
mod cluster;
mod command;
mod config;
mod connection;
mod departures;
mod inner;
mod inspect;
#[cfg(feature = "test-kit")]
mod leftovers;
mod membership;
mod observe;
mod peers;
mod presence;
mod publish;
mod publisher;
mod receipt;
mod run;
mod run_reader;
mod run_writer;
mod runs;
mod scope;
mod shutdown;
mod stream;
mod subscriber;
mod target;
mod tasks;
mod tickets;
mod topics;
mod typed_target;
mod upkeep;

pub(crate) use config::origins::{Hosts, Origins};
pub(crate) use config::settings::Settings;
pub(crate) use connection::socket::{Takeover, Transport};
pub(crate) use inner::Inner;
pub(crate) use stream::admission::Request;
pub(crate) use stream::driver::StreamDriver;
pub(crate) use stream::encode::Aborted;
#[cfg(all(unix, feature = "takeover"))]
pub(crate) use stream::encode::Encoded;
pub(crate) use tickets::redeem::{Redemption, Redemptions, Taken};

pub use builder::HubBuilder;
pub use command::Join;
pub use config::limits::OverLimit;
pub use connection::info::ConnectionInfo;
pub use inner::Hub;
pub use observe::lifecycle::{Lifecycle, LifecycleEvent};
pub use observe::stats::Stats;
pub use presence::{Member, Presence};
pub use publisher::Publisher;
pub use receipt::Receipt;
pub use run::{BeginRun, Run};
pub use run_reader::RunReader;
pub use run_writer::RunWriter;
pub use scope::{AllScopes, Scope, ScopeStats};
pub use shutdown::Drained;
pub use subscriber::{NextEventError, ReceivedEvent, Subscriber, SubscriberItem};
pub use target::Target;
pub use tickets::redeem::Ticket;
pub use typed_target::TypedTarget;
