//! Free ports for the servers of tests.

#![allow(dead_code, unreachable_pub, reason = "each test binary uses a part of it")]

use std::net::{Ipv4Addr, TcpListener, UdpSocket};
use std::sync::atomic::{AtomicU32, Ordering};

/// Returns a free TCP port for a server in another process.
///
/// The port is below the range from which the system assigns ports to connections. Otherwise a
/// connection could take the port before the server binds it. This process keeps the UDP port of
/// the same number until it ends, so that test processes that run at the same time never choose the
/// same port.
pub fn free_port() -> u16 {
    static NUMBER: AtomicU32 = AtomicU32::new(0);
    loop {
        let number = std::process::id().wrapping_mul(97).wrapping_add(NUMBER.fetch_add(1, Ordering::Relaxed));
        let port = 10_000 + u16::try_from(number % 20_000).unwrap();
        let Ok(reservation) = UdpSocket::bind((Ipv4Addr::LOCALHOST, port)) else { continue };
        if TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok() {
            std::mem::forget(reservation);
            return port;
        }
    }
}
