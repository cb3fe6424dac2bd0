//! Who may read what: the application's answer to a request for a stream.

use std::future::{Future, ready};

use super::StreamRequest;
use crate::types::{Recheck, Refusal, Subscription};

/// Turns a request into a [`Subscription`] or a [`Refusal`].
///
/// Implemented for closures, and easily for a struct that holds what the decision needs:
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
///     async fn connect(&self, request: StreamRequest) -> Result<Subscription, Refusal> {
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
    /// Whether [`recheck`](Self::recheck) has anything to say; it is not asked where this is false. It is
    /// for closures and for [`Public`](crate::Public). Defaults to true.
    const RECHECKS: bool = true;

    /// Decides. Dropped at any await when the client leaves or the time is over.
    fn connect(&self, request: StreamRequest) -> impl Future<Output = Result<Subscription, Refusal>> + Send;

    /// Decides again, while a stream is open: is the session still there, the role still the same? Asked about every
    /// stream that this hook let in, again and again, every
    /// [`HubBuilder::recheck_every`](crate::HubBuilder::recheck_every), about
    /// [`HubBuilder::max_rechecks`](crate::HubBuilder::max_rechecks) at a time. Defaults to [`Recheck::Settled`]: never
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

impl<F, Fut> Access for F
where
    F: Fn(StreamRequest) -> Fut + Send + Sync + 'static,
    Fut: Future<Output = Result<Subscription, Refusal>> + Send,
{
    const RECHECKS: bool = false;

    fn connect(&self, request: StreamRequest) -> impl Future<Output = Result<Subscription, Refusal>> + Send {
        self(request)
    }
}
