//! A port for a server of a test's own.

#![allow(dead_code, unreachable_pub, reason = "each test binary uses a part of it")]

use std::net::{Ipv4Addr, TcpListener, UdpSocket};
use std::sync::atomic::{AtomicU32, Ordering};

/// A port for a server that is another process: below those that the system gives to connections, any of which could take
/// it between this look and the server's.
///
/// Whoever takes one keeps the UDP port of that number for as long as this process lives, so that nobody else who asks here
/// takes the same: other test processes run beside.
pub fn free_port() -> u16 {
    static NUMBER: AtomicU32 = AtomicU32::new(0);
    loop {
        let number = std::process::id().wrapping_mul(97).wrapping_add(NUMBER.fetch_add(1, Ordering::Relaxed));
        let port = 10_000 + u16::try_from(number % 20_000).unwrap();
        let Ok(taken) = UdpSocket::bind((Ipv4Addr::LOCALHOST, port)) else { continue };
        if TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok() {
            std::mem::forget(taken);
            return port;
        }
    }
}
