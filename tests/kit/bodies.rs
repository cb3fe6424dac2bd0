//! Bodies of open streams without a server, polled by hand, and a minimal body that delivers the
//! same chunks, as the baseline of comparisons.

#![allow(dead_code, unreachable_pub, reason = "each test and benchmark uses a part of it")]

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Wake, Waker};

use bytes::Bytes;
use futures::FutureExt;
use http::Request;
use http_body::{Body, Frame};
use tower::Service;
use tower_sse::{EventBody, Hub, Public, Run, SseEndpoint, StreamRequest, Subscription, TopicFilter};

/// A waker that only counts how often it is woken. It is reference-counted like the waker of a
/// task.
#[derive(Debug, Default)]
pub struct Woken(pub AtomicUsize);

impl Wake for Woken {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

/// The head of a request as a browser sends it.
pub fn request(query: &str, last_event_id: Option<&str>) -> Request<()> {
    let request = Request::get(format!("/events?{query}"))
        .header("host", "127.0.0.1:3000")
        .header("user-agent", "Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/140.0")
        .header("accept", "text/event-stream")
        .header("accept-encoding", "gzip, deflate, br")
        .header("accept-language", "en-US,en;q=0.9")
        .header("cache-control", "no-cache")
        .header("sec-fetch-site", "same-origin")
        .header("cookie", "session=0123456789abcdef0123456789abcdef");
    let request = match last_event_id {
        Some(id) => request.header("last-event-id", id),
        None => request,
    };
    request.body(()).unwrap()
}

pub fn endpoint(hub: &Hub) -> SseEndpoint {
    hub.endpoint(Public::topics(TopicFilter::any()))
}

/// Sends the request and returns the body of the response. The access hook is ready at once.
pub fn open(endpoint: &mut SseEndpoint, request: Request<()>) -> EventBody {
    let response = endpoint
        .call(request)
        .now_or_never()
        .expect("the access hook is ready at once")
        .expect("the endpoint never fails");
    response.into_body()
}

/// Polls a body once and returns its bytes, or `None` if it is pending.
pub fn take<B: Body<Data = Bytes> + Unpin>(body: &mut B, waker: &Waker) -> Option<Bytes> {
    match Pin::new(body).poll_frame(&mut Context::from_waker(waker)) {
        Poll::Ready(Some(Ok(frame))) => frame.into_data().ok(),
        Poll::Ready(_) => panic!("the stream ended"),
        Poll::Pending => None,
    }
}

/// Reads until the body is pending. Returns the number of chunks.
pub fn drain<B: Body<Data = Bytes> + Unpin>(body: &mut B, waker: &Waker) -> usize {
    std::iter::from_fn(|| take(body, waker)).count()
}

/// One stream that has read everything and waits, boxed like the bodies in a server.
pub struct Sleeper {
    pub body: Pin<Box<EventBody>>,
    pub waker: Waker,
}

pub fn sleeper(endpoint: &mut SseEndpoint, request: Request<()>) -> Sleeper {
    let waker = Waker::from(Arc::new(Woken::default()));
    let mut body = Box::pin(open(endpoint, request));
    drain(&mut body, &waker);
    Sleeper { body, waker }
}

pub fn sleepers(hub: &Hub, count: usize) -> Vec<Sleeper> {
    let mut endpoint = endpoint(hub);
    (0..count).map(|_| sleeper(&mut endpoint, request("topic=t", None))).collect()
}

/// A stream of a run without a shared log that has read everything and waits. Must be called in a
/// runtime.
pub fn reader(run: &Run, hub: &Hub) -> Sleeper {
    let waker = Waker::from(Arc::new(Woken::default()));
    let found = run.reader().now_or_never().expect("without a broker, no call waits").unwrap();
    let stream = hub.respond(StreamRequest::from_request(&request("", None)), Subscription::run(found));
    let mut body = Box::pin(stream.into_response().into_body());
    drain(&mut body, &waker);
    Sleeper { body, waker }
}

/// The baseline: encoded chunks that all bodies of one topic share, and the wakers of these bodies.
#[derive(Debug, Default)]
pub struct Floor {
    ring: Mutex<(u64, VecDeque<Bytes>)>,
    wakers: Mutex<Vec<Waker>>,
}

/// The smallest possible body: a cursor into the shared chunks.
#[derive(Debug)]
pub struct FloorBody {
    floor: Arc<Floor>,
    cursor: u64,
}

impl Floor {
    /// Adds a chunk, drops the oldest above 64, and wakes every waiting body.
    pub fn publish(&self, chunk: Bytes) {
        {
            let mut ring = self.ring.lock().unwrap();
            ring.0 += 1;
            ring.1.push_back(chunk);
            if ring.1.len() > 64 {
                ring.1.pop_front();
            }
        }
        let wakers = std::mem::take(&mut *self.wakers.lock().unwrap());
        wakers.into_iter().for_each(Waker::wake);
    }

    pub fn body(self: &Arc<Self>) -> FloorBody {
        FloorBody { floor: Arc::clone(self), cursor: self.ring.lock().unwrap().0 }
    }
}

impl Body for FloorBody {
    type Data = Bytes;
    type Error = std::convert::Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, std::convert::Infallible>>> {
        let floor = Arc::clone(&self.floor);
        let ring = floor.ring.lock().unwrap();
        if self.cursor == ring.0 {
            floor.wakers.lock().unwrap().push(cx.waker().clone());
            return Poll::Pending;
        }
        let behind = (ring.0 - self.cursor) as usize;
        let chunk = ring.1[ring.1.len() - behind.min(ring.1.len())].clone();
        self.cursor += 1;
        Poll::Ready(Some(Ok(Frame::data(chunk))))
    }
}
