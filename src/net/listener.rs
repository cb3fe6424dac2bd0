//! The hub's listener for `axum::serve`.

use std::convert::Infallible;
use std::fmt;
use std::future::{Ready, ready};
use std::io;
use std::task::{Context, Poll};

use axum::Extension;
use axum::extract::ConnectInfo;
use axum::middleware::AddExtension;
use axum::serve::{IncomingStream, Listener, ListenerExt, TapIo};
use tower_layer::Layer;
use tower_service::Service;

use super::{SseConnectInfo, SseIo};
use crate::hub::Hub;
use crate::macros::opaque_debug;

/// A listener that wraps each connection with [`Hub::io`]. [`Hub::listener`] returns it inside a
/// [`TapIo`].
///
/// ```no_run
/// use axum::serve::TapIo;
/// use tokio::net::{TcpListener, TcpStream};
/// use tower_sse::{Hub, SseIo, SseListener};
///
/// type Watched = TapIo<SseListener<TcpListener>, fn(&mut SseIo<TcpStream>)>;
///
/// async fn listen(hub: &Hub) -> std::io::Result<Watched> {
///     Ok(hub.listener(TcpListener::bind("127.0.0.1:3000").await?))
/// }
/// # let _ = listen;
/// ```
pub struct SseListener<L> {
    hub: Hub,
    listener: L,
    takeover: bool,
}

impl Hub {
    /// Wraps a listener for `axum::serve`. [`Hub::io`] wraps each of its connections.
    ///
    /// The listener is inside axum's `TapIo`, with a closure that does nothing, so that axum's
    /// `into_make_service_with_connect_info::<SocketAddr>()` still compiles. With HTTP/2, serve an
    /// [`SseMakeService`], so that the hub can cut the connections of stalled clients.
    ///
    /// ```no_run
    /// # use std::time::Duration;
    /// # use tower_sse::Hub;
    /// # async fn example(hub: Hub, app: axum::Router) -> std::io::Result<()> {
    /// let listener = tokio::net::TcpListener::bind("127.0.0.1:3000").await?;
    /// axum::serve(hub.listener(listener), app)
    ///     .with_graceful_shutdown(async move {
    ///         tokio::signal::ctrl_c().await.ok();
    ///         hub.drain(Duration::from_secs(5)).await;
    ///     })
    ///     .await
    /// # }
    /// ```
    #[expect(clippy::type_complexity, reason = "axum's `ConnectInfo` asks for its own `TapIo`")]
    pub fn listener<L: Listener>(&self, listener: L) -> TapIo<SseListener<L>, fn(&mut SseIo<L::Io>)> {
        self.log_start();
        SseListener { hub: self.clone(), listener, takeover: false }.tap_io(|_| {})
    }

    /// Wraps a listener like [`Hub::listener`]. The hub also [takes over the
    /// socket](SseIo::take_over) of each connection that carries a stream.
    ///
    /// An idle stream then takes less than a kilobyte. Await [`Hub::drain`] in the shutdown signal,
    /// because axum's graceful shutdown does not wait for these streams.
    ///
    /// ```no_run
    /// # use std::time::Duration;
    /// # use tower_sse::Hub;
    /// # async fn example(hub: Hub, app: axum::Router) -> std::io::Result<()> {
    /// let listener = tokio::net::TcpListener::bind("127.0.0.1:3000").await?;
    /// axum::serve(hub.listener_with_takeover(listener), app)
    ///     .with_graceful_shutdown(async move {
    ///         tokio::signal::ctrl_c().await.ok();
    ///         hub.drain(Duration::from_secs(5)).await;
    ///     })
    ///     .await
    /// # }
    /// ```
    #[cfg(feature = "takeover")]
    #[doc(alias = "listener_handing_over")]
    #[expect(clippy::type_complexity, reason = "axum's `ConnectInfo` asks for its own `TapIo`")]
    pub fn listener_with_takeover<L: Listener>(&self, listener: L) -> TapIo<SseListener<L>, fn(&mut SseIo<L::Io>)> {
        self.log_start();
        SseListener { hub: self.clone(), listener, takeover: true }.tap_io(|_| {})
    }
}

impl<L: Listener> Listener for SseListener<L> {
    type Io = SseIo<L::Io>;
    type Addr = L::Addr;

    async fn accept(&mut self) -> (Self::Io, Self::Addr) {
        let (stream, address) = self.listener.accept().await;
        let io = self.hub.io(stream);
        #[cfg(feature = "takeover")]
        let io = if self.takeover { io.take_over() } else { io };
        (io, address)
    }

    fn local_addr(&self) -> io::Result<Self::Addr> {
        self.listener.local_addr()
    }
}

/// A make service for `axum::serve` on [`Hub::listener`], which adds [`SseConnectInfo`] to each
/// request.
///
/// The make service also adds `ConnectInfo` with the address of the peer, like axum's
/// `into_make_service_with_connect_info::<SocketAddr>()`. With this make service, the hub knows the
/// socket of every stream, even with HTTP/2.
///
/// ```no_run
/// use axum::Router;
/// use tower_sse::{Hub, Public, SseMakeService, TopicFilter};
/// # async fn example() -> std::io::Result<()> {
///
/// let hub = Hub::builder().build().unwrap();
/// let app = Router::new().route_service("/events", hub.endpoint(Public::topics(TopicFilter::any())));
/// let listener = tokio::net::TcpListener::bind("127.0.0.1:3000").await?;
/// axum::serve(hub.listener(listener), SseMakeService::new(app)).await
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct SseMakeService<S> {
    service: S,
}

impl<S> SseMakeService<S> {
    /// Creates a make service that serves every connection with a clone of `service`.
    #[must_use]
    pub fn new(service: S) -> Self {
        Self { service }
    }
}

// `Connected` of axum's make service cannot be used: it would conflict with axum's implementation
// for the address of every listener.
impl<L, F, S> Service<IncomingStream<'_, TapIo<SseListener<L>, F>>> for SseMakeService<S>
where
    L: Listener,
    L::Addr: Clone + Sync + 'static,
    F: FnMut(&mut SseIo<L::Io>) + Send + 'static,
    S: Clone,
{
    type Response = AddExtension<AddExtension<S, ConnectInfo<L::Addr>>, SseConnectInfo>;
    type Error = Infallible;
    type Future = Ready<Result<Self::Response, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, stream: IncomingStream<'_, TapIo<SseListener<L>, F>>) -> Self::Future {
        let (socket, peer) = (stream.io().connect_info(), ConnectInfo(stream.remote_addr().clone()));
        ready(Ok(Extension(socket).layer(Extension(peer).layer(self.service.clone()))))
    }
}

opaque_debug!(<L: fmt::Debug> |listener: SseListener| { listener: listener.listener });
