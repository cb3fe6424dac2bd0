//! A client of a stream, without a socket.

#![allow(clippy::panic, reason = "a failed expectation panics, as a failed assertion does")]

use std::error::Error;
use std::fmt::{self, Write};
use std::future::poll_fn;
use std::marker::PhantomData;
use std::pin::pin;
use std::task::{Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use eventsource_stream::{Event as Sse, Eventsource};
use futures::stream::BoxStream;
use futures::{Stream, StreamExt};
use http::header::CONTENT_TYPE;
use http::request::Parts;
use http::{HeaderMap, HeaderName, HeaderValue, Request, Response, StatusCode};
use http_body::{Body, Frame};
use serde::de::DeserializeOwned;
use tokio::time::Instant;
use tower_service::Service;

use crate::macros::opaque_debug;
use crate::types::Message;

/// The default of [`TestClient::time_limit`].
const TIME_LIMIT: Duration = Duration::from_secs(5);
const LAST_EVENT_ID: HeaderName = HeaderName::from_static("last-event-id");
/// The events that the failure of an expectation shows.
const SHOWN: usize = 20;
/// The maximum size of the body of a refusal that a test can read.
const MAX_TEXT_BYTES: usize = 64 * 1024;

/// A client that reads a stream of a tower service, and remembers the last id as a browser does.
///
/// Most methods wait for an event. If it does not arrive within the
/// [time limit](Self::time_limit), or if something else arrives, they panic and print what has
/// arrived. With tokio's paused clock, the time limit costs no real time.
///
/// Cancel safety: `expect`, `expect_event`, `expect_nothing` and `next` lose no event if their
/// future is dropped.
pub struct TestClient<S, B> {
    service: S,
    request: Parts,
    events: BoxStream<'static, Result<Sse, String>>,
    headers: HeaderMap,
    /// The events so far, for the text of a failure.
    seen: Vec<TestEvent>,
    last_id: String,
    limit: Duration,
    body: PhantomData<fn(B)>,
}

/// An event as a [`TestClient`] receives it. Events of the hub are events too.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct TestEvent {
    /// The name, or an empty text if the event has none or is named `message`: a client cannot tell
    /// the difference.
    pub name: String,
    /// The data, with every line break as LF.
    pub data: String,
    /// The last id up to this event, as a browser has it. Empty if there was none.
    pub id: String,
}

impl TestEvent {
    /// Returns the event as a value of a [`Message`] type, or `None` if the event has another name.
    ///
    /// # Errors
    ///
    /// Returns an error if the event has the name of the type, but its data is not of the type.
    pub fn message<M: Message + DeserializeOwned>(&self) -> Result<Option<M>, serde_json::Error> {
        let name = if self.name.is_empty() { "message" } else { &self.name };
        M::from_event(name, &self.data)
    }

    fn is_of_hub(&self) -> bool {
        self.name.starts_with("hub.")
    }

    /// Whether the event only says that the stream is open or has caught up.
    fn is_progress(&self) -> bool {
        matches!(&self.name[..], "hub.hello" | "hub.live")
    }
}

impl fmt::Display for TestEvent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = if self.name.is_empty() { "(no name)" } else { &self.name };
        write!(f, "{name}: {:?}", self.data)
    }
}

/// The error of [`TestClient::open`]: the response is no stream.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Refused {
    /// The status of the response.
    pub status: StatusCode,
    /// The headers of the response.
    pub headers: HeaderMap,
    /// The body of the response, up to 64 KiB.
    pub text: String,
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the response is no event stream: {} {:?}", self.status, self.text)
    }
}

impl Error for Refused {}

/// What a client waits for.
enum Arrival {
    Event(TestEvent),
    /// The stream has ended without an error.
    End,
    Break(String),
    /// Nothing has arrived within the time limit.
    Nothing,
}

impl fmt::Display for Arrival {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Event(event) => write!(f, "the event {event}"),
            Self::End => f.write_str("the end of the stream"),
            Self::Break(error) => write!(f, "the end of the stream with the error {error:?}"),
            Self::Nothing => f.write_str("nothing"),
        }
    }
}

impl<S, B, R> TestClient<S, B>
where
    S: Service<Request<B>, Response = Response<R>> + Clone,
    S::Error: fmt::Display,
    B: Default,
    R: Body<Data = Bytes> + Send + 'static,
    R::Error: fmt::Display,
{
    /// Sends a request to a clone of the service, and reads the response as a stream.
    ///
    /// # Errors
    ///
    /// Returns an error if the response is no stream: its status is not `200`, or its content is no
    /// `text/event-stream`.
    ///
    /// # Panics
    ///
    /// Panics if the service fails, or does not respond within 5 s.
    pub async fn open(service: &S, request: Request<B>) -> Result<Self, Refused> {
        let (parts, body) = request.into_parts();
        let (headers, events) = send(service.clone(), Request::from_parts(parts.clone(), body)).await?;
        Ok(Self {
            service: service.clone(),
            request: parts,
            events,
            headers,
            seen: Vec::new(),
            last_id: String::new(),
            limit: TIME_LIMIT,
            body: PhantomData,
        })
    }

    /// Closes the stream and opens it again, with the last id in the header `Last-Event-ID`, as a
    /// browser does. The request has an empty body.
    ///
    /// # Errors
    ///
    /// Returns an error if the response is no stream. The client then has no stream any more.
    ///
    /// # Panics
    ///
    /// Panics if the service fails, or does not respond within 5 s.
    pub async fn reconnect(&mut self) -> Result<(), Refused> {
        // The service sees the end of the old stream before the new request.
        self.events = futures::stream::empty().boxed();
        let mut request = self.request.clone();
        if !self.last_id.is_empty()
            && let Ok(id) = HeaderValue::from_str(&self.last_id)
        {
            request.headers.insert(LAST_EVENT_ID, id);
        }
        (self.headers, self.events) = send(self.service.clone(), Request::from_parts(request, B::default())).await?;
        Ok(())
    }
}

impl<S, B> TestClient<S, B> {
    /// Sets the time limit of each expectation. Defaults to 5 s.
    #[must_use]
    pub fn time_limit(mut self, limit: Duration) -> Self {
        self.limit = limit;
        self
    }

    /// Returns the headers of the response.
    #[must_use]
    pub fn headers(&self) -> &HeaderMap {
        &self.headers
    }

    /// Returns the last id, which the next [`reconnect`](Self::reconnect) sends. Empty if there is
    /// none.
    #[must_use]
    pub fn last_id(&self) -> &str {
        &self.last_id
    }

    /// Closes the stream, as a page that is closed does. Dropping the client does the same.
    pub fn close(self) {}

    /// Waits for the next event, and returns it as a message. Skips `hub.hello` and `hub.live`.
    ///
    /// # Panics
    ///
    /// Panics if the next event is none of `M`, if the stream ends, or after the time limit.
    pub async fn expect<M: Message + DeserializeOwned>(&mut self) -> M {
        let wanted = format!("one of the events {:?} within {:?}", M::EVENTS, self.limit);
        let arrival = self.skip_progress().await;
        if let Arrival::Event(event) = &arrival {
            match event.message() {
                Ok(Some(message)) => return message,
                Ok(None) => {}
                Err(error) => self.fail(&wanted, &format!("{arrival}, whose data is not of the type: {error}")),
            }
        }
        self.fail(&wanted, &arrival.to_string())
    }

    /// Waits for the next event, which has this name, and returns it. Skips `hub.hello` and
    /// `hub.live`, unless the name is one of them.
    ///
    /// # Panics
    ///
    /// Panics if another event arrives, if the stream ends, or after the time limit.
    pub async fn expect_event(&mut self, name: &str) -> TestEvent {
        let until = Instant::now() + self.limit;
        let wanted = if name == "message" { "" } else { name };
        loop {
            match self.arrival(until).await {
                Arrival::Event(event) if event.name == wanted => return event,
                Arrival::Event(event) if event.is_progress() => {}
                arrival => self.fail(&format!("the event {name:?} within {:?}", self.limit), &arrival.to_string()),
            }
        }
    }

    /// Waits this time, and expects no event of the application and no end. Events of the hub do
    /// not count, except `hub.gap`.
    ///
    /// # Panics
    ///
    /// Panics if an event arrives, or if the stream ends.
    pub async fn expect_nothing(&mut self, time: Duration) {
        let until = Instant::now() + time;
        loop {
            match self.arrival(until).await {
                Arrival::Nothing => return,
                Arrival::Event(event) if event.is_of_hub() && event.name != "hub.gap" => {}
                arrival => self.fail(&format!("no event within {time:?}"), &arrival.to_string()),
            }
        }
    }

    /// Waits for the end of the stream, and returns the data of its `hub.bye`. Returns `None` if
    /// the stream has no `hub.bye`, for example because it is bare. An end with an error counts as
    /// an end.
    ///
    /// # Panics
    ///
    /// Panics if an event of the application arrives, or after the time limit.
    pub async fn expect_end(&mut self) -> Option<String> {
        let until = Instant::now() + self.limit;
        let mut bye = None;
        loop {
            match self.arrival(until).await {
                Arrival::End | Arrival::Break(_) => return bye,
                Arrival::Event(event) if event.name == "hub.bye" => bye = Some(event.data),
                Arrival::Event(event) if event.is_of_hub() => {}
                arrival => self.fail(&format!("the end of the stream within {:?}", self.limit), &arrival.to_string()),
            }
        }
    }

    /// Returns the next event of any kind, or `None` after the end of the stream.
    ///
    /// # Panics
    ///
    /// Panics after the time limit.
    pub async fn next(&mut self) -> Option<TestEvent> {
        match self.arrival(Instant::now() + self.limit).await {
            Arrival::Event(event) => Some(event),
            Arrival::End | Arrival::Break(_) => None,
            arrival @ Arrival::Nothing => self.fail(&format!("an event within {:?}", self.limit), &arrival.to_string()),
        }
    }

    async fn skip_progress(&mut self) -> Arrival {
        let until = Instant::now() + self.limit;
        loop {
            match self.arrival(until).await {
                Arrival::Event(event) if event.is_progress() => {}
                arrival => return arrival,
            }
        }
    }

    /// Waits for the next event or the end. An event that is ready arrives also if no time is left.
    async fn arrival(&mut self, until: Instant) -> Arrival {
        let Sse { event, data, id, .. } = match tokio::time::timeout_at(until, self.events.next()).await {
            Err(_) => return Arrival::Nothing,
            Ok(None) => return Arrival::End,
            Ok(Some(Err(error))) => return Arrival::Break(error),
            Ok(Some(Ok(event))) => event,
        };
        if !id.is_empty() {
            self.last_id = id;
        }
        // The parser gives an event without a name the name that a browser uses for it.
        let name = if event == "message" { String::new() } else { event };
        let event = TestEvent { name, data, id: self.last_id.clone() };
        self.seen.push(event.clone());
        Arrival::Event(event)
    }

    fn fail(&self, wanted: &str, arrived: &str) -> ! {
        let mut text = format!("expected {wanted}, but {arrived} arrived");
        let left_out = self.seen.len().saturating_sub(SHOWN);
        text.push_str(if self.seen.is_empty() { "\nno event has arrived so far" } else { "\nall events so far:" });
        if left_out > 0 {
            let _ = write!(text, "\n  ({left_out} earlier ones)");
        }
        for event in &self.seen[left_out..] {
            let _ = write!(text, "\n  {event}");
        }
        panic!("{text}")
    }
}

/// Sends a request. Returns the headers and the events of the response.
async fn send<S, B, R>(
    mut service: S,
    request: Request<B>,
) -> Result<(HeaderMap, BoxStream<'static, Result<Sse, String>>), Refused>
where
    S: Service<Request<B>, Response = Response<R>>,
    S::Error: fmt::Display,
    R: Body<Data = Bytes> + Send + 'static,
    R::Error: fmt::Display,
{
    let respond = async {
        poll_fn(|cx| service.poll_ready(cx)).await?;
        service.call(request).await
    };
    let response = match tokio::time::timeout(TIME_LIMIT, respond).await {
        Ok(Ok(response)) => response,
        Ok(Err(error)) => panic!("the service failed: {error}"),
        Err(_) => panic!("the service did not respond within {TIME_LIMIT:?}"),
    };
    let (head, body) = response.into_parts();
    let is_stream =
        head.headers.get(CONTENT_TYPE).is_some_and(|value| value.as_bytes().starts_with(b"text/event-stream"));
    if head.status != StatusCode::OK || !is_stream {
        let text = text(frames(body)).await;
        return Err(Refused { status: head.status, headers: head.headers, text });
    }
    let events = frames(body).eventsource().map(|event| event.map_err(|error| error.to_string()));
    Ok((head.headers, events.boxed()))
}

/// Returns the data frames of a body.
fn frames<R>(body: R) -> impl Stream<Item = Result<Bytes, String>> + Send + 'static
where
    R: Body<Data = Bytes> + Send + 'static,
    R::Error: fmt::Display,
{
    let mut body = Box::pin(body);
    futures::stream::poll_fn(move |cx| {
        loop {
            match ready!(body.as_mut().poll_frame(cx)).map(|frame| frame.map(Frame::into_data)) {
                Some(Ok(Ok(data))) => return Poll::Ready(Some(Ok(data))),
                // Trailers are no part of the stream.
                Some(Ok(Err(_))) => {}
                Some(Err(error)) => return Poll::Ready(Some(Err(error.to_string()))),
                None => return Poll::Ready(None),
            }
        }
    })
}

/// Reads the text of a refusal within the time limit.
async fn text(frames: impl Stream<Item = Result<Bytes, String>>) -> String {
    let mut frames = pin!(frames);
    let mut bytes = Vec::new();
    let read = async {
        while let Some(Ok(data)) = frames.next().await {
            bytes.extend_from_slice(&data);
            if bytes.len() > MAX_TEXT_BYTES {
                break;
            }
        }
    };
    let _ = tokio::time::timeout(TIME_LIMIT, read).await;
    bytes.truncate(MAX_TEXT_BYTES);
    String::from_utf8_lossy(&bytes).into_owned()
}

opaque_debug!(<S, B> |client: TestClient| { last_id: client.last_id });
