//! One client with a separate server, and a record of both.

use std::pin::Pin;
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use axum::body::Body as AnyBody;
use axum::extract::State;
use axum::routing::get;
use axum::{BoxError, Router};
use bytes::Bytes;
use http::Response;
use http_body::{Body, Frame};
use memchr::memmem;
use serde_json::Value;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::Child;
use tokio::sync::watch;
use tokio::time::Sleep;
use tower_sse::{
    Disconnect, Event, EventBody, Hub, HubBuilder, Refusal, RefusalReason, StreamEnd, StreamRequest, Subscription,
};

use crate::client::{Client, Installed};
use crate::kit::Server;
use crate::sent::NAMES;

/// The limit for the start of an interpreter on a busy machine.
const STARTS_WITHIN: Duration = Duration::from_secs(60);
/// The limit for any action of a client: five times the longest delay of all clients.
const ACTS_WITHIN: Duration = Duration::from_secs(25);

/// The answers to the requests: the nth answer to the nth request, and the last answer to all later
/// ones.
#[derive(Clone, Copy, Debug)]
pub enum Answer {
    Stream,
    Busy(Duration),
    Login,
}

/// The record of a run so far.
#[derive(Default)]
pub struct Record {
    pub requests: Vec<Asked>,
    /// The streams that the server has ended, in any way.
    pub ends: Vec<Ended>,
    pub heartbeats: usize,
    /// The reports of the client, see `node/report.mjs`.
    pub lines: Vec<Value>,
    pub exited: bool,
}

pub struct Asked {
    pub at: Instant,
    pub last_event_id: Option<String>,
    pub status: u16,
}

#[derive(Clone, Copy)]
pub struct Ended {
    pub at: Instant,
    /// The last `retry` of the stream.
    pub retry: Option<Duration>,
}

/// An event as a client delivered it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seen {
    pub name: String,
    pub data: String,
    pub id: String,
}

pub struct Run {
    hub: Hub,
    shared: Arc<Shared>,
    _server: Server,
    client: Child,
}

struct Shared {
    hub: Hub,
    answers: Vec<Answer>,
    record: watch::Sender<Record>,
    cut: Mutex<Option<&'static [u8]>>,
}

impl Run {
    /// Starts the server and the client, and waits for the first request. The client ends after an
    /// event with the name `last`.
    pub async fn start(
        client: &Client,
        installed: &Installed,
        hub: HubBuilder,
        end: StreamEnd,
        answers: &[Answer],
        last: &str,
    ) -> Self {
        let hub = hub.stream_end(end).build().unwrap();
        let record = watch::Sender::new(Record::default());
        let shared = Arc::new(Shared { hub: hub.clone(), answers: answers.to_vec(), record, cut: Mutex::new(None) });
        let app = Router::new().route("/events", get(events)).with_state(Arc::clone(&shared));
        let server = Server::start(&hub, app).await;

        let [program, arguments @ ..] = &client.command(installed)[..] else { panic!("no program") };
        let mut command = tokio::process::Command::new(program);
        command.args(arguments).arg(format!("http://{}/events", server.addr)).arg(last).args(NAMES);
        // A separate process group, so that the processes of a script end with it.
        command.stdin(Stdio::null()).stdout(Stdio::piped()).env("PYTHONDONTWRITEBYTECODE", "1");
        #[cfg(unix)]
        command.process_group(0);
        if std::env::var_os("INTEROP_CLIENT").is_none() {
            // Hide the warnings of the client, unless the test runs only this client.
            command.stderr(Stdio::null());
        }
        let mut client = command.spawn().unwrap();
        let mut lines = BufReader::new(client.stdout.take().unwrap()).lines();
        tokio::spawn({
            let shared = Arc::clone(&shared);
            async move {
                while let Some(line) = lines.next_line().await.unwrap() {
                    let line = serde_json::from_str(&line).unwrap_or_else(|_| panic!("no JSON: {line}"));
                    shared.record.send_modify(|record| record.lines.push(line));
                }
                shared.record.send_modify(|record| record.exited = true);
            }
        });
        let run = Self { hub, shared, _server: server, client };
        assert!(run.within(STARTS_WITHIN, |record| !record.requests.is_empty()).await, "the client sends no request");
        run
    }

    /// Waits until the condition holds. Returns `false` if the client exits first, or takes too
    /// long.
    pub async fn until(&self, holds: impl FnMut(&Record) -> bool) -> bool {
        self.within(ACTS_WITHIN, holds).await
    }

    async fn within(&self, time: Duration, mut holds: impl FnMut(&Record) -> bool) -> bool {
        let mut record = self.shared.record.subscribe();
        let waited = tokio::time::timeout(time, record.wait_for(|record| holds(record) || record.exited)).await;
        drop(waited);
        holds(&self.shared.record.borrow())
    }

    pub fn look<T>(&self, look: impl FnOnce(&Record) -> T) -> T {
        look(&self.shared.record.borrow())
    }

    /// Publishes an event, and returns its id.
    pub async fn publish(&self, name: &'static str, data: &'static str) -> String {
        self.hub.topic("t").publish(Event::new(name, data)).await.unwrap().position.to_string()
    }

    /// Waits for the next heartbeat.
    pub async fn heartbeat(&self) {
        let before = self.look(|record| record.heartbeats);
        assert!(self.until(|record| record.heartbeats > before || record.exited).await, "no heartbeat");
    }

    /// Waits until the client has delivered an event with this data.
    pub async fn sees(&self, data: &str) -> bool {
        self.until(|record| record.lines.iter().any(|line| line["data"] == data)).await
    }

    /// Breaks the connection after these bytes of the next frame that contains them.
    pub fn cut_at(&self, end: &'static [u8]) {
        *self.shared.cut.lock().unwrap() = Some(end);
    }

    pub async fn disconnect(&self, disconnect: Disconnect) {
        self.hub.topic("t").disconnect(disconnect).await.unwrap();
    }

    /// Returns the events that the client has delivered.
    pub fn seen(&self) -> Vec<Seen> {
        self.look(|record| record.lines.iter().filter_map(seen).collect())
    }

    /// Returns the reason that the client reported at its end.
    pub fn closed(&self) -> Option<String> {
        self.look(|record| record.lines.iter().find_map(|line| Some(line["closed"].as_str()?.to_owned())))
    }

    /// Returns how often the script around the client opened the next stream.
    pub fn by_the_caller(&self) -> usize {
        self.look(|record| record.lines.iter().filter(|line| line["again"] == true).count())
    }
}

impl Drop for Run {
    fn drop(&mut self) {
        // Without an id, the process has ended already.
        if let Some(group) = self.client.id() {
            drop(Command::new("kill").args(["-KILL", "--", &format!("-{group}")]).stderr(Stdio::null()).status());
            drop(self.client.start_kill());
        }
    }
}

fn seen(line: &Value) -> Option<Seen> {
    let text = |name: &str| line[name].as_str().unwrap_or_default().to_owned();
    line.get("event")?;
    // Clients report unnamed events with different names, which is no deviation.
    let name = Some(text("event")).filter(|name| !name.is_empty()).unwrap_or_else(|| "message".to_owned());
    Some(Seen { name, data: text("data"), id: text("id") })
}

async fn events(State(shared): State<Arc<Shared>>, request: StreamRequest) -> Response<AnyBody> {
    let number = shared.record.borrow().requests.len();
    let last_event_id = request.headers().get("last-event-id").map(|id| id.to_str().unwrap().to_owned());
    let response = match shared.answers[number.min(shared.answers.len() - 1)] {
        Answer::Stream => shared.hub.respond(request, Subscription::anonymous().topic("t")),
        Answer::Busy(retry) => shared.hub.refuse(Refusal::retry_later(RefusalReason::Busy).retry(retry)),
        Answer::Login => shared.hub.refuse(Refusal::unauthorized()),
    };
    let response = response.into_response();
    let asked = Asked { at: Instant::now(), last_event_id, status: response.status().as_u16() };
    // Recorded after the hub has subscribed the client.
    shared.record.send_modify(|record| record.requests.push(asked));
    response.map(|body| AnyBody::new(Watched { body: Box::pin(body), shared, retry: None, breaks: None }))
}

/// The body of the hub, which records its end and which a test can cut.
struct Watched {
    body: Pin<Box<EventBody>>,
    shared: Arc<Shared>,
    retry: Option<Duration>,
    /// The time of the break, after the server has written the bytes before it.
    breaks: Option<Pin<Box<Sleep>>>,
}

impl Body for Watched {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        if let Some(breaks) = &mut self.breaks {
            ready!(breaks.as_mut().poll(cx));
            self.ended();
            return Poll::Ready(Some(Err("cut by the test".into())));
        }
        let frame = ready!(self.body.as_mut().poll_frame(cx));
        let Some(Ok(data)) = frame.as_ref().map(|frame| frame.as_ref().map(|frame| frame.data_ref().unwrap().clone()))
        else {
            self.ended();
            return Poll::Ready(frame);
        };
        if data.starts_with(b":") {
            self.shared.record.send_modify(|record| record.heartbeats += 1);
        }
        if let Some(at) = memmem::rfind(&data, b"\nretry: ") {
            let digits = data[at + 8..].iter().take_while(|byte| byte.is_ascii_digit());
            self.retry = Some(Duration::from_millis(digits.fold(0, |sum, byte| sum * 10 + u64::from(byte - b'0'))));
        }
        let cut = *self.shared.cut.lock().unwrap();
        if let Some(cut) = cut
            && let Some(at) = memmem::find(&data, cut)
        {
            *self.shared.cut.lock().unwrap() = None;
            self.breaks = Some(Box::pin(tokio::time::sleep(Duration::from_millis(100))));
            return Poll::Ready(Some(Ok(Frame::data(data.slice(..at + cut.len())))));
        }
        Poll::Ready(frame)
    }
}

impl Watched {
    fn ended(&self) {
        let ended = Ended { at: Instant::now(), retry: self.retry };
        self.shared.record.send_modify(|record| record.ends.push(ended));
    }
}
