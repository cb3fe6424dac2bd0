//! The minimal event stream on axum and on hyper, the *floor*: a body that is a cursor into a ring
//! of events that are encoded once.

use std::collections::HashMap;
use std::convert::Infallible;
use std::net::TcpListener;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Waker};
use std::time::Instant;

use ::axum::Router;
use ::axum::body::Body as AxumBody;
use ::axum::extract::{RawQuery, State};
use ::axum::routing::{get, post};
use ::axum::serve::ListenerExt;
use ::hyper::server::conn::http1;
use ::hyper::service::service_fn;
use bytes::{Bytes, BytesMut};
use http::{HeaderMap, Method, Request, Response};
use http_body::{Body, Frame};
use http_body_util::{BodyExt, Either, Full};
use hyper_util::rt::TokioIo;

use super::{Address, EVENT, Order, fields, head, published};

/// The number of events in a ring.
const RING: u64 = 1024;
/// A prefix with which ids are as long as the crate's.
const ID: &str = "1.f100a0001000.";

#[derive(Default)]
struct Channel(Mutex<Inner>);

#[derive(Default)]
struct Inner {
    ring: Vec<Bytes>,
    /// The number of events so far.
    head: u64,
    /// The wakers of the bodies that wait for the next event.
    sleeping: Vec<Waker>,
    /// The number of times that the bodies were woken.
    sleep: u64,
    /// The empty list of the last woken bodies, which keeps its allocation.
    woken: Vec<Waker>,
}

impl Channel {
    fn publish(&self, data: &[u8]) {
        let mut inner = self.0.lock().unwrap();
        let number = inner.head + 1;
        let mut event = Vec::with_capacity(data.len() + 64);
        for part in [b"event: ", EVENT.as_bytes(), b"\ndata: ", data, b"\nid: ", ID.as_bytes()] {
            event.extend_from_slice(part);
        }
        event.extend_from_slice(itoa::Buffer::new().format(number).as_bytes());
        event.extend_from_slice(b"\n\n");
        let place = (inner.head % RING) as usize;
        if place < inner.ring.len() {
            inner.ring[place] = event.into();
        } else {
            inner.ring.push(event.into());
        }
        inner.head = number;
        inner.sleep += 1;
        let room = std::mem::take(&mut inner.woken);
        let mut sleeping = std::mem::replace(&mut inner.sleeping, room);
        drop(inner);
        sleeping.drain(..).for_each(Waker::wake);
        self.0.lock().unwrap().woken = sleeping;
    }
}

/// The body of a stream.
struct Events {
    channel: Arc<Channel>,
    cursor: u64,
    /// The value of `sleep` for which this body has registered its waker.
    sleeps: Option<u64>,
}

impl Body for Events {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let this = &mut *self;
        let mut inner = this.channel.0.lock().unwrap();
        let from = this.cursor.max(inner.head.saturating_sub(RING));
        let bytes = match inner.head - from {
            0 => {
                if this.sleeps != Some(inner.sleep) {
                    this.sleeps = Some(inner.sleep);
                    inner.sleeping.push(cx.waker().clone());
                }
                return Poll::Pending;
            }
            1 => inner.ring[(from % RING) as usize].clone(),
            _ => {
                let events = (from..inner.head).map(|number| &inner.ring[(number % RING) as usize]);
                let mut all = BytesMut::with_capacity(events.clone().map(Bytes::len).sum());
                events.for_each(|event| all.extend_from_slice(event));
                all.freeze()
            }
        };
        this.cursor = inner.head;
        Poll::Ready(Some(Ok(Frame::data(bytes))))
    }
}

#[derive(Clone, Default)]
struct Floor(Arc<Mutex<HashMap<String, Arc<Channel>>>>);

impl Floor {
    fn channel(&self, address: Address<'_>) -> Arc<Channel> {
        self.0.lock().unwrap().entry(address.key()).or_default().clone()
    }

    fn events(&self, query: &str, headers: &HeaderMap) -> Response<Events> {
        let (name, value) = fields(query).next().unwrap();
        let channel = self.channel(if name == "user" { Address::User(value) } else { Address::Topic(value) });
        let id = headers.get("last-event-id").and_then(|id| id.to_str().ok()?.strip_prefix(ID)?.parse().ok());
        let cursor = id.unwrap_or_else(|| channel.0.lock().unwrap().head);
        let mut response = Response::new(Events { channel, cursor, sleeps: None });
        head(response.headers_mut());
        response
    }

    fn publish(&self, query: &str, body: &[u8]) -> Response<Bytes> {
        let order = Order::parse(query);
        let begun = Instant::now();
        if order.many {
            order.lines(body).for_each(|(address, data)| self.channel(address).publish(&body[data]));
        } else {
            self.channel(order.address).publish(body);
        }
        published(begun)
    }
}

pub async fn axum(listener: TcpListener) {
    let events = async |State(floor): State<Floor>, RawQuery(query): RawQuery, headers: HeaderMap| {
        floor.events(&query.unwrap_or_default(), &headers).map(AxumBody::new)
    };
    let publish = async |State(floor): State<Floor>, RawQuery(query): RawQuery, body: Bytes| {
        floor.publish(&query.unwrap_or_default(), &body).map(AxumBody::from)
    };
    let app = Router::new().route("/events", get(events)).route("/publish", post(publish)).with_state(Floor::default());
    let listener = tokio::net::TcpListener::from_std(listener).unwrap();
    let listener = listener.tap_io(|tcp| tcp.set_nodelay(true).unwrap());
    ::axum::serve(listener, app).await.unwrap();
}

pub async fn hyper(listener: TcpListener) {
    let floor = Floor::default();
    let listener = tokio::net::TcpListener::from_std(listener).unwrap();
    loop {
        let (tcp, _) = listener.accept().await.unwrap();
        tcp.set_nodelay(true).unwrap();
        let floor = floor.clone();
        let handle = move |request: Request<::hyper::body::Incoming>| {
            let floor = floor.clone();
            async move {
                let (parts, body) = request.into_parts();
                let query = parts.uri.query().unwrap_or_default();
                Ok::<_, Infallible>(if parts.method == Method::POST {
                    let body = body.collect().await.unwrap().to_bytes();
                    floor.publish(query, &body).map(|bytes| Either::Right(Full::new(bytes)))
                } else {
                    floor.events(query, &parts.headers).map(Either::Left)
                })
            }
        };
        tokio::spawn(http1::Builder::new().serve_connection(TokioIo::new(tcp), service_fn(handle)));
    }
}
