//! Graceful shutdown, for every example that drains its hub. A copy of an example needs this file.

#![allow(dead_code, reason = "each example calls one of the two functions")]

use std::io;
use std::time::Duration;

use tower_sse::Hub;

/// Returns a future that waits for [`shutdown_signal`], then drains the hub.
///
/// Await it in `with_graceful_shutdown`, and not after `axum::serve`: the server does not return
/// while streams are open. Browsers reconnect at random within `window`.
pub(crate) fn drain_on_signal(hub: Hub, window: Duration) -> io::Result<impl Future<Output = ()> + Send> {
    let signal = shutdown_signal()?;
    Ok(async move {
        signal.await;
        hub.drain(window).await;
    })
}

/// Starts to listen for Ctrl-C and SIGTERM, and returns a future that completes when one arrives.
///
/// Containers and service managers send SIGTERM. A signal that arrives before this call ends the
/// process without a drain.
#[cfg(unix)]
pub(crate) fn shutdown_signal() -> io::Result<impl Future<Output = ()> + Send> {
    use tokio::signal::unix::{SignalKind, signal};
    let (mut interrupt, mut terminate) = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
    Ok(async move {
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
    })
}

/// Returns a future that completes on Ctrl-C.
#[cfg(not(unix))]
pub(crate) fn shutdown_signal() -> io::Result<impl Future<Output = ()> + Send> {
    Ok(async { drop(tokio::signal::ctrl_c().await) })
}
