//! The access hook, by which the application authorizes requests for streams.

use std::fmt;
use std::future::{Future, ready};
use std::sync::Arc;

use super::StreamRequest;
use crate::types::{Recheck, Refusal, Subscription};

/// A hook that turns a request into a [`Subscription`] or a [`Refusal`].
///
/// [`Hub::layer`](crate::Hub::layer) and [`Hub::endpoint`](crate::Hub::endpoint) take an access
/// hook: an async function or closure, or a type that implements this trait and holds the data that
/// the decision needs. [`IntoAccess`] accepts both.
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
/// A closure that captures a value and uses it in its future clones the value for each request:
/// `move |request| { let pool = pool.clone(); async move { … } }`.
///
/// The hub calls the hook for every request that its own checks do not refuse, even if the client
/// resumes a stream, because permissions may have changed. The hook may publish events. If the hook
/// takes longer than [`HubBuilder::access_timeout`](crate::HubBuilder::access_timeout), the hub
/// drops its future and sends a retryable refusal. If the hook panics, the hub answers that request
/// with `500`. A timeout layer outside of the hub with a shorter time answers first, with a status
/// after which browsers give up.
pub trait Access: Send + Sync + 'static {
    /// Whether the hub calls [`recheck`](Self::recheck) for open streams. Defaults to true. False
    /// for functions, closures and [`Public`](crate::Public).
    const RECHECKS: bool = true;

    /// Decides about a request. The future is dropped, at any of its awaits, if the client
    /// disconnects or the time limit is reached.
    #[doc(alias = "connect")]
    fn authorize(&self, request: StreamRequest) -> impl Future<Output = Result<Subscription, Refusal>> + Send;

    /// Decides again while a stream is open, for example whether the session and the role are still
    /// valid.
    ///
    /// The hub calls this method for every stream that this hook has admitted, once in each
    /// interval of [`HubBuilder::recheck_every`](crate::HubBuilder::recheck_every), and runs at
    /// most 64 calls at a time. The default implementation returns [`Recheck::Settled`]: the hub
    /// does not recheck the stream again. A function or closure always has this default.
    ///
    /// `subscription` is the current state of the stream: the user, the topics in force (also those
    /// that were joined later), the expiry, and the attached data and extensions, for example the
    /// id of the session.
    ///
    /// ```
    /// use tower_sse::{Access, Recheck, Refusal, StreamRequest, Subscription};
    ///
    /// # #[derive(Clone)] struct SessionId(u64);
    /// # struct Store;
    /// # impl Store { async fn has(&self, _: &SessionId) -> bool { true } }
    /// struct Sessions {
    ///     store: Store,
    /// }
    ///
    /// impl Access for Sessions {
    ///     async fn authorize(&self, request: StreamRequest) -> Result<Subscription, Refusal> {
    ///         let session = request.extensions().get::<SessionId>().ok_or(Refusal::unauthorized())?;
    ///         Ok(Subscription::for_user("ada").topic("news").extension(session.clone()))
    ///     }
    ///
    ///     async fn recheck(&self, subscription: Subscription) -> Recheck {
    ///         match subscription.extensions().get::<SessionId>() {
    ///             Some(session) if self.store.has(session).await => Recheck::Keep,
    ///             _ => Recheck::End(Refusal::unauthorized()),
    ///         }
    ///     }
    /// }
    /// # let hub = tower_sse::Hub::builder().build().unwrap();
    /// # let _ = hub.endpoint(Sessions { store: Store });
    /// ```
    ///
    /// After a revocation, a stream ends within one interval and the time that the hook takes, as
    /// long as the hook keeps up with the number of streams. Otherwise the hub logs a warning.
    ///
    /// A recheck fails if it panics or takes longer than
    /// [`HubBuilder::access_timeout`](crate::HubBuilder::access_timeout). The hub repeats a failed
    /// recheck one interval after the recheck began. The second failure in a row ends the stream:
    /// at most two intervals and one timeout after the revocation, if the timeout is shorter than
    /// the interval. Bytes that the hub has written before may still arrive. If this takes too
    /// long, use [`Target::disconnect`](crate::Target::disconnect), which acts at once.
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

/// A conversion into an access hook: from a type that implements [`Access`], or from an async
/// function or closure from [`StreamRequest`] to `Result<Subscription, Refusal>`.
///
/// ```
/// use tower_sse::{Hub, IntoAccess, Refusal, SseEndpoint, StreamRequest, Subscription};
///
/// fn mount_news<M>(hub: &Hub, access: impl IntoAccess<M>) -> SseEndpoint {
///     hub.endpoint(access)
/// }
///
/// async fn access(_: StreamRequest) -> Result<Subscription, Refusal> {
///     Ok(Subscription::anonymous().topic("news"))
/// }
/// let hub = Hub::builder().build().unwrap();
/// let endpoint = mount_news(&hub, access);
/// # let _ = endpoint;
/// ```
///
/// The compiler infers `Marker`, which distinguishes the two kinds.
#[diagnostic::on_unimplemented(
    message = "`{Self}` is not an access hook",
    label = "not an access hook",
    note = "an access hook is `async fn(StreamRequest) -> Result<Subscription, Refusal>`, or a type that implements `Access`",
    note = "a closure needs the type of its argument: `|request: StreamRequest| async move {{ … }}`"
)]
pub trait IntoAccess<Marker> {
    /// The type of the hook.
    type Access: Access;

    /// Converts `self` into the hook.
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

/// An [`Access`] hook that [`IntoAccess`] makes from a function or a closure. The hub does not
/// recheck its streams.
///
/// ```
/// use tower_sse::{AccessFn, IntoAccess, Refusal, StreamRequest, Subscription};
///
/// async fn access(_: StreamRequest) -> Result<Subscription, Refusal> {
///     Ok(Subscription::anonymous().topic("news"))
/// }
/// let hook: AccessFn<_> = access.into_access();
/// # let _ = tower_sse::Hub::builder().build().unwrap().endpoint(hook);
/// ```
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

/// The marker types of [`IntoAccess`].
mod marker {
    #[derive(Debug)]
    pub enum OfType {}
    #[derive(Debug)]
    pub enum OfFunction {}
}
