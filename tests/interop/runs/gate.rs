//! A proxy between one client and the instances, which breaks connections and counts them. Each
//! connection carries one request: over HTTP/1.1 the instances close it after the response, and over
//! HTTP/2 the clients use a new connection for each request.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use memchr::memmem;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::kit::until;

pub struct Gate {
    pub addr: SocketAddr,
    /// The number of connections that were accepted.
    connections: Arc<AtomicUsize>,
    /// The numbers of the connections that are open.
    open: Arc<Mutex<BTreeSet<usize>>>,
    /// The number of connections to break, counted from the first.
    breaks: watch::Sender<usize>,
    /// Whether the first response was torn.
    torn: Arc<AtomicBool>,
    task: JoinHandle<()>,
}

impl Gate {
    /// Starts a proxy. The nth connection goes to the nth target, and all later ones to the last.
    pub async fn start(targets: Vec<SocketAddr>) -> Self {
        Self::with(targets, None).await
    }

    /// Starts a proxy that breaks the first connection after this many bytes of the response's body.
    pub async fn tearing(targets: Vec<SocketAddr>, tear: usize) -> Self {
        Self::with(targets, Some(tear)).await
    }

    async fn with(targets: Vec<SocketAddr>, tear: Option<usize>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let (connections, open) = (Arc::<AtomicUsize>::default(), Arc::<Mutex<BTreeSet<usize>>>::default());
        let breaks = watch::Sender::new(0);
        let torn = Arc::<AtomicBool>::default();
        let task = tokio::spawn({
            let (connections, open) = (Arc::clone(&connections), Arc::clone(&open));
            let (breaks, torn) = (breaks.clone(), Arc::clone(&torn));
            async move {
                loop {
                    let (from, _) = listener.accept().await.unwrap();
                    let number = connections.load(Ordering::SeqCst);
                    open.lock().unwrap().insert(number);
                    connections.store(number + 1, Ordering::SeqCst);
                    let target = targets[number.min(targets.len() - 1)];
                    let tear = tear.filter(|_| number == 0);
                    let tear = tear.map(|after| Tear { after, torn: Arc::clone(&torn) });
                    let (mut breaks, open) = (breaks.subscribe(), Arc::clone(&open));
                    tokio::spawn(async move {
                        let broken = async move { drop(breaks.wait_for(|count| number < *count).await) };
                        pass(from, target, tear, broken).await;
                        open.lock().unwrap().remove(&number);
                    });
                }
            }
        });
        Self { addr, connections, open, breaks, torn, task }
    }

    pub fn connections(&self) -> usize {
        self.connections.load(Ordering::SeqCst)
    }

    pub fn is_torn(&self) -> bool {
        self.torn.load(Ordering::SeqCst)
    }

    /// Breaks the first connections, unless they have ended already, and waits for their ends. Later
    /// ones stay, because a client may resume before this call.
    pub async fn break_first(&self, count: usize) {
        self.breaks.send_replace(count);
        until(|| self.open.lock().unwrap().first().is_none_or(|first| *first >= count)).await;
    }
}

impl Drop for Gate {
    fn drop(&mut self) {
        self.task.abort();
        self.breaks.send_replace(usize::MAX);
    }
}

struct Tear {
    /// The bytes of the body that pass.
    after: usize,
    torn: Arc<AtomicBool>,
}

/// Passes on the bytes of a connection until one side ends it, or until `broken`.
async fn pass(from: TcpStream, target: SocketAddr, tear: Option<Tear>, broken: impl Future<Output = ()>) {
    let Ok(to) = TcpStream::connect(target).await else { return };
    drop((from.set_nodelay(true), to.set_nodelay(true)));
    let ((from_read, from_write), (to_read, to_write)) = (from.into_split(), to.into_split());
    // The end of either direction ends the connection, except that a client may close its half.
    tokio::select! {
        () = requests(from_read, to_write) => {}
        () = responses(to_read, from_write, tear) => {}
        () = broken => {}
    }
}

async fn requests(mut from: OwnedReadHalf, mut to: OwnedWriteHalf) {
    drop(tokio::io::copy(&mut from, &mut to).await);
}

async fn responses(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, mut tear: Option<Tear>) {
    let mut buffer = vec![0; 16 * 1024];
    // The bytes so far, until the head is complete.
    let mut head = Vec::new();
    let mut in_body = false;
    loop {
        let Ok(count @ 1..) = from.read(&mut buffer).await else { return };
        let bytes = &buffer[..count];
        let Some(Tear { after, torn }) = &mut tear else {
            if to.write_all(bytes).await.is_err() {
                return;
            }
            continue;
        };
        let before = if in_body {
            0
        } else {
            let seen = head.len();
            head.extend_from_slice(bytes);
            let Some(end) = memmem::find(&head, b"\r\n\r\n") else {
                drop(to.write_all(bytes).await);
                continue;
            };
            in_body = true;
            end + 4 - seen
        };
        let passed = count.min(before + *after);
        *after -= passed - before;
        if passed < count {
            torn.store(true, Ordering::SeqCst);
        }
        if to.write_all(&bytes[..passed]).await.is_err() || passed < count {
            drop(to.shutdown().await);
            return;
        }
    }
}
