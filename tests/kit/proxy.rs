//! A proxy between an instance and its broker that injects network faults.

#![allow(dead_code, unreachable_pub, reason = "each test binary uses a part of it")]

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    Passes,
    /// Every chunk is delayed by this time.
    Delays(Duration),
    /// Bytes from the broker are held back. The connections stay open.
    StallsAnswers,
    /// Bytes to the broker are held back. The connections stay open.
    StallsRequests,
    /// All connections are closed, also new ones.
    Resets,
}

pub struct Proxy {
    pub port: u16,
    target: Arc<AtomicU16>,
    mode: Arc<watch::Sender<Mode>>,
    task: JoinHandle<()>,
}

impl Proxy {
    pub async fn start(target: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let mode = Arc::new(watch::Sender::new(Mode::Passes));
        let target = Arc::new(AtomicU16::new(target));
        let task = tokio::spawn({
            let (mode, target) = (Arc::clone(&mode), Arc::clone(&target));
            async move {
                loop {
                    let (from, _) = listener.accept().await.unwrap();
                    let to =
                        TcpStream::connect(SocketAddr::from(([127, 0, 0, 1], target.load(Ordering::SeqCst)))).await;
                    // The broker may be down.
                    let Ok(to) = to else { continue };
                    let ((from_read, from_write), (to_read, to_write)) = (from.into_split(), to.into_split());
                    tokio::spawn(pump(from_read, to_write, mode.subscribe(), Mode::StallsRequests));
                    tokio::spawn(pump(to_read, from_write, mode.subscribe(), Mode::StallsAnswers));
                }
            }
        });
        Self { port, target, mode, task }
    }

    pub fn set(&self, mode: Mode) {
        self.mode.send_replace(mode);
    }

    /// Sends new connections to another broker. Open connections do not change.
    pub fn set_target(&self, target: u16) {
        self.target.store(target, Ordering::SeqCst);
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn pump(
    mut from: tokio::net::tcp::OwnedReadHalf,
    mut to: tokio::net::tcp::OwnedWriteHalf,
    mut mode: watch::Receiver<Mode>,
    stalls: Mode,
) {
    let mut buffer = vec![0; 16 * 1024];
    let mut breaks = mode.clone();
    loop {
        let count = tokio::select! {
            read = from.read(&mut buffer) => {
                let Ok(count @ 1..) = read else { return };
                count
            }
            // The pumps of both directions return, which closes both sockets.
            _ = breaks.wait_for(|mode| *mode == Mode::Resets) => return,
        };
        let delay = *mode.borrow_and_update();
        if let Mode::Delays(time) = delay {
            tokio::time::sleep(time).await;
        }
        let passes = mode.wait_for(|mode| *mode != stalls).await.is_ok();
        if !passes || to.write_all(&buffer[..count]).await.is_err() {
            return;
        }
    }
}
