//! The hub's listener for `axum::serve`.

use std::fmt;
use std::io;

use axum::serve::{Listener, ListenerExt, TapIo};

use super::SseIo;
use crate::hub::Hub;

/// A listener whose connections the hub watches over: inside the [`TapIo`] that [`Hub::listener`] returns.
pub struct SseListener<L> {
    hub: Hub,
    inner: L,
    hands_over: bool,
}

impl Hub {
    /// Wraps a listener for `axum::serve`: each connection is what [`Hub::io`] makes of it.
    ///
    /// It comes inside axum's own `TapIo`, so that `ConnectInfo<SocketAddr>` goes on to compile; the closure in it does
    /// nothing.
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
        SseListener { hub: self.clone(), inner: listener, hands_over: false }.tap_io(|_| {})
    }

    /// The same, and each connection also [hands its socket over](SseIo::hand_over) to the hub for as long as a stream lasts:
    /// an idle one takes less than a kilobyte then. Await [`Hub::drain`] in the shutdown signal, since axum does not know of
    /// these streams.
    ///
    /// ```no_run
    /// # use std::time::Duration;
    /// # use tower_sse::Hub;
    /// # async fn example(hub: Hub, app: axum::Router) -> std::io::Result<()> {
    /// let listener = tokio::net::TcpListener::bind("127.0.0.1:3000").await?;
    /// axum::serve(hub.listener_handing_over(listener), app)
    ///     .with_graceful_shutdown(async move {
    ///         tokio::signal::ctrl_c().await.ok();
    ///         hub.drain(Duration::from_secs(5)).await;
    ///     })
    ///     .await
    /// # }
    /// ```
    #[expect(clippy::type_complexity, reason = "axum's `ConnectInfo` asks for its own `TapIo`")]
    pub fn listener_handing_over<L: Listener>(&self, listener: L) -> TapIo<SseListener<L>, fn(&mut SseIo<L::Io>)> {
        SseListener { hub: self.clone(), inner: listener, hands_over: true }.tap_io(|_| {})
    }
}

impl<L: Listener> Listener for SseListener<L> {
    type Io = SseIo<L::Io>;
    type Addr = L::Addr;

    async fn accept(&mut self) -> (Self::Io, Self::Addr) {
        let (stream, address) = self.inner.accept().await;
        let io = self.hub.io(stream);
        (if self.hands_over { io.hand_over() } else { io }, address)
    }

    fn local_addr(&self) -> io::Result<Self::Addr> {
        self.inner.local_addr()
    }
}

impl<L: fmt::Debug> fmt::Debug for SseListener<L> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SseListener").field("inner", &self.inner).finish_non_exhaustive()
    }
}
