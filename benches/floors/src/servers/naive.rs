//! An application without this crate: axum's `Sse` and tokio's broadcast channel. Each connection
//! formats each event.

use std::collections::HashMap;
use std::convert::Infallible;
use std::net::TcpListener;
use std::sync::{Arc, Mutex};
use std::time::Instant;

use axum::Router;
use axum::body::Body;
use axum::extract::{RawQuery, State};
use axum::response::IntoResponse;
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::routing::{get, post};
use axum::serve::ListenerExt;
use bytes::Bytes;
use futures::stream::{self, SelectAll, Stream, StreamExt};
use tokio::sync::broadcast::{self, error::RecvError};

use super::{Address, EVENT, Order, fields, published};

/// The number of events that a reader of a topic may be behind.
const TOPIC_CAPACITY: usize = 128;
/// The number of events that a reader of user events may be behind.
const USER_CAPACITY: usize = 16;

#[derive(Clone)]
struct Message {
    id: u64,
    data: Arc<str>,
}

#[derive(Clone, Default)]
struct Channels(Arc<Mutex<Inner>>);

#[derive(Default)]
struct Inner {
    channels: HashMap<String, broadcast::Sender<Message>>,
    last: u64,
}

impl Channels {
    fn publish(&self, address: Address<'_>, data: &str) {
        let mut inner = self.0.lock().unwrap();
        inner.last += 1;
        let message = Message { id: inner.last, data: data.into() };
        if let Some(channel) = inner.channels.get(&address.key()) {
            // Sending fails only if the channel has no receiver.
            drop(channel.send(message));
        }
    }

    fn subscribe(&self, address: Address<'_>) -> broadcast::Receiver<Message> {
        let capacity = if matches!(address, Address::User(_)) { USER_CAPACITY } else { TOPIC_CAPACITY };
        let mut inner = self.0.lock().unwrap();
        inner.channels.entry(address.key()).or_insert_with(|| broadcast::channel(capacity).0).subscribe()
    }
}

fn messages(receiver: broadcast::Receiver<Message>) -> impl Stream<Item = Result<Event, Infallible>> + Send + 'static {
    stream::unfold(receiver, |mut receiver| async move {
        loop {
            match receiver.recv().await {
                Ok(message) => {
                    let event = Event::default().event(EVENT).data(&*message.data).id(message.id.to_string());
                    return Some((Ok(event), receiver));
                }
                Err(RecvError::Lagged(_)) => {}
                Err(RecvError::Closed) => return None,
            }
        }
    })
}

async fn events(State(channels): State<Channels>, RawQuery(query): RawQuery) -> axum::response::Response {
    let query = query.unwrap_or_default();
    let mut receivers = fields(&query).map(|(name, value)| {
        channels.subscribe(if name == "user" { Address::User(value) } else { Address::Topic(value) })
    });
    let first = receivers.next().unwrap();
    let rest: Vec<_> = receivers.collect();
    if rest.is_empty() {
        return Sse::new(messages(first)).keep_alive(KeepAlive::default()).into_response();
    }
    let all: SelectAll<_> = rest.into_iter().chain([first]).map(|receiver| messages(receiver).boxed()).collect();
    Sse::new(all).keep_alive(KeepAlive::default()).into_response()
}

async fn publish(State(channels): State<Channels>, RawQuery(query): RawQuery, body: Bytes) -> http::Response<Body> {
    let query = query.unwrap_or_default();
    let order = Order::parse(&query);
    let text = std::str::from_utf8(&body).unwrap();
    let begun = Instant::now();
    if order.many {
        order.lines(&body).for_each(|(address, data)| channels.publish(address, &text[data]));
    } else {
        channels.publish(order.address, text);
    }
    published(begun).map(Body::from)
}

pub async fn serve(listener: TcpListener) {
    let app =
        Router::new().route("/events", get(events)).route("/publish", post(publish)).with_state(Channels::default());
    let listener = tokio::net::TcpListener::from_std(listener).unwrap();
    let listener = listener.tap_io(|tcp| tcp.set_nodelay(true).unwrap());
    axum::serve(listener, app).await.unwrap();
}
