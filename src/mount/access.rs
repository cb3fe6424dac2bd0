//! The access hook: the application's answer to a request for a stream.

use std::fmt;
use std::future::{Future, ready};
use std::sync::Arc;

use super::StreamRequest;
use crate::types::{Recheck, Refusal, Subscription};

/// Turns a request into a [`Subscription`] or a [`Refusal`].
///
/// Each way to mount a hub takes an access hook: an async function or closure, or a type that implements this trait and
/// holds what the decision needs. [`IntoAccess`] lets both pass.
///
/// ```
/// use tower_sse::{Access, Refusal, StreamRequest, Subscription};
///
/// # #[derive(Clone)] struct Pool;
/// # impl Pool { async fn user_of(&self, _: &str) -> Option<u64> { None } }
/// struct Sessions {
///     pool: Pool,
/// }
///
/// impl Access for Sessions {
///     async fn authorize(&self, request: StreamRequest) -> Result<Subscription, Refusal> {
///         let cookie = request.headers().get("cookie").and_then(|value| value.to_str().ok());
///         let user = self.pool.user_of(cookie.unwrap_or_default()).await.ok_or(Refusal::unauthorized())?;
///         Ok(Subscription::for_user(user).topic("news"))
///     }
/// }
///
/// # let hub = tower_sse::Hub::builder().build().unwrap();
/// let _ = hub.endpoint(Sessions { pool: Pool });
/// let _ = hub.endpoint(|request: StreamRequest| async move {
///     let session = request.extensions().get::<u64>().copied().ok_or(Refusal::unauthorized())?;
///     Ok(Subscription::for_user(session))
/// });
/// let _ = hub.endpoint(async |_: StreamRequest| Ok(Subscription::anonymous().topic("news")));
/// ```
///
/// A closure that captures something clones it for each request: `move |request| { let pool =
/// pool.clone(); async move { … } }`.
///
/// It is asked for every request, also for one that resumes: what a client could read yesterday does not matter. It may
/// publish. If it takes longer than [`HubBuilder::access_timeout`](crate::HubBuilder::access_timeout) it is dropped and
/// the client is told to come back; if it panics, that request is answered `500`. A timeout layer
/// outside that is shorter answers first, with a status after which browsers give up.
pub trait Access: Send + Sync + 'static {
    /// Whether the hub calls [`recheck`](Self::recheck). False for functions, closures and
    /// [`Public`](crate::Public). Defaults to true.
    const RECHECKS: bool = true;

    /// Decides about a request. Dropped at any await when the client leaves or the time is over.
    #[doc(alias = "connect")]
    fn authorize(&self, request: StreamRequest) -> impl Future<Output = Result<Subscription, Refusal>> + Send;

    /// Decides again, while a stream is open: is the session still there, the role still the same? Asked about every
    /// stream that this hook let in, every
    /// [`HubBuilder::recheck_every`](crate::HubBuilder::recheck_every), 64
    /// at a time. Defaults to [`Recheck::Settled`]: never
    /// again. A closure has no other.
    ///
    /// `subscription` is what the stream has now: the user, the topics in force, also those joined later,
    /// the expiry, and the data and extensions that were attached to it, for example the id of the session.
    ///
    /// So between a revocation and silence there is at most one interval and the time that the hook takes,
    /// as long as it keeps up with the number of streams (else a warning is logged). A recheck that panics
    /// or takes longer than [`HubBuilder::access_timeout`](crate::HubBuilder::access_timeout) is repeated
    /// an interval after it began, and the second failure in a row ends the stream: at most two intervals
    /// and one timeout, if the timeout is the shorter. What was written before may still be on its way.
    /// Where that is too long, [`Target::disconnect`](crate::Target::disconnect) acts at once.
    fn recheck(&self, subscription: Subscription) -> impl Future<Output = Recheck> + Send {
        drop(subscription);
        ready(Recheck::Settled)
    }
}

impl<A: Access> Access for Arc<A> {
    const RECHECKS: bool = A::RECHECKS;

    fn authorize(&self, request: StreamRequest) -> impl Future<Output = Result<Subscription, Refusal>> + Send {
        A::authorize(self, request)
    }

    fn recheck(&self, subscription: Subscription) -> impl Future<Output = Recheck> + Send {
        A::recheck(self, subscription)
    }
}

/// What a mounting takes as its access hook: a type that implements [`Access`], or an async function or closure from
/// [`StreamRequest`] to `Result<Subscription, Refusal>`.
///
/// The compiler finds `Marker`. It keeps the two kinds apart.
#[diagnostic::on_unimplemented(
    message = "`{Self}` is no access hook",
    label = "no access hook",
    note = "an access hook is `async fn(StreamRequest) -> Result<Subscription, Refusal>`, or a type that implements `Access`",
    note = "a closure needs the type of its argument: `|request: StreamRequest| async move {{ … }}`"
)]
pub trait IntoAccess<Marker> {
    /// The hook.
    type Access: Access;

    /// Converts into the hook.
    fn into_access(self) -> Self::Access;
}

impl<A: Access> IntoAccess<marker::OfType> for A {
    type Access = A;

    fn into_access(self) -> A {
        self
    }
}

impl<F, Fut> IntoAccess<marker::OfFunction> for F
where
    F: Fn(StreamRequest) -> Fut + Send + Sync + 'static,
    Fut: Future<Output = Result<Subscription, Refusal>> + Send,
{
    type Access = AccessFn<F>;

    fn into_access(self) -> AccessFn<F> {
        AccessFn(self)
    }
}

/// An [`Access`] hook made of a function or a closure, by [`IntoAccess`]. It never rechecks.
#[derive(Clone, Copy)]
pub struct AccessFn<F>(F);

impl<F> fmt::Debug for AccessFn<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("AccessFn")
    }
}

impl<F, Fut> Access for AccessFn<F>
where
    F: Fn(StreamRequest) -> Fut + Send + Sync + 'static,
    Fut: Future<Output = Result<Subscription, Refusal>> + Send,
{
    const RECHECKS: bool = false;

    fn authorize(&self, request: StreamRequest) -> impl Future<Output = Result<Subscription, Refusal>> + Send {
        (self.0)(request)
    }
}

/// The markers of [`IntoAccess`].
mod marker {
    #[derive(Debug)]
    pub enum OfType {}
    #[derive(Debug)]
    pub enum OfFunction {}
}
