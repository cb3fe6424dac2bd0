//! The instances of an application that answers every client in its protocol.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::body::Body;
use axum::extract::{Path, Query, Request, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::middleware::map_request;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use hyper_util::service::TowerToHyperService;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_rustls::TlsAcceptor;
use tower_sse::backplane::Memory;
use tower_sse::{Event, Hub, HubBuilder, Ids, RunError, RunState, RunWriter, StreamRequest, Subscription};

use super::protocol::{Answer, Protocol};
use crate::kit::soon;

/// The time after which clients retry. Short, because many cases retry.
const RETRY: Duration = Duration::from_millis(100);

/// The way to the instances.
#[derive(Clone)]
pub enum Transport {
    Http1,
    Takeover,
    /// HTTP/2 over TLS.
    Http2(TlsAcceptor),
}

/// The plan of the answer in one conversation.
pub struct Plan {
    pub has_will: bool,
    /// Whether the writer waits at half of the text for [`Plan::next`].
    pub pauses: bool,
    pub next: watch::Sender<Option<Next>>,
    /// The statuses of the streams, in the order of the requests.
    pub statuses: Mutex<Vec<u16>>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    Finish,
    Drop,
}

impl Plan {
    fn status(&self, status: StatusCode) {
        self.statuses.lock().unwrap().push(status.as_u16());
    }
}

#[derive(Default)]
struct Shared {
    plans: Mutex<HashMap<String, Arc<Plan>>>,
    /// The runs of conversations whose client chooses the id of the run.
    chosen: Mutex<HashMap<String, String>>,
}

/// Two instances with one log, an instance that shuts down, and one that knows no run.
pub struct World {
    pub a: Instance,
    pub b: Instance,
    pub closing: Instance,
    pub lost: Instance,
    shared: Arc<Shared>,
}

impl World {
    /// Starts the instances. Instance A writes its runs through B if `elsewhere` is set.
    pub async fn start(transport: &Transport, elsewhere: bool) -> Self {
        let log = Memory::new();
        let shared = Arc::<Shared>::default();
        let build = |builder: HubBuilder| builder.retry(RETRY).build().unwrap();
        let [a, b, closing] = [(); 3].map(|()| build(Hub::builder().backplane(log.clone())));
        let lost = build(Hub::builder());
        soon(async {
            while ![&a, &b, &closing].iter().all(|hub| hub.is_ready()) {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        })
        .await;
        closing.drain(Duration::ZERO).await;
        let start = async |hub: &Hub, writer: &Hub| Instance::start(hub, writer, &shared, transport).await;
        let a_writes = if elsewhere { &b } else { &a };
        Self {
            a: start(&a, a_writes).await,
            b: start(&b, &b).await,
            closing: start(&closing, &closing).await,
            lost: start(&lost, &lost).await,
            shared,
        }
    }

    pub fn plan(&self, id: &str, pauses: bool, has_will: bool) -> Arc<Plan> {
        let plan = Plan { has_will, pauses, next: watch::Sender::new(None), statuses: Mutex::default() };
        let plan = Arc::new(plan);
        self.shared.plans.lock().unwrap().insert(id.to_owned(), Arc::clone(&plan));
        plan
    }
}

pub struct Instance {
    pub hub: Hub,
    pub addr: SocketAddr,
    task: JoinHandle<()>,
}

impl Instance {
    async fn start(hub: &Hub, writer: &Hub, shared: &Arc<Shared>, transport: &Transport) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let site = Site { hub: hub.clone(), writer: writer.clone(), shared: Arc::clone(shared) };
        let app = routes(site);
        let task = match transport {
            Transport::Http1 | Transport::Takeover => {
                // One request for each connection, so that a test can route each request.
                let app = app.layer(axum::middleware::map_response(async |mut response: Response| {
                    response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
                    response
                }));
                let listener = match transport {
                    Transport::Takeover => hub.listener_with_takeover(listener),
                    _ => hub.listener(listener),
                };
                tokio::spawn(async move { axum::serve(listener, app).await.unwrap() })
            }
            Transport::Http2(acceptor) => tokio::spawn(serve_tls(hub.clone(), listener, acceptor.clone(), app)),
        };
        Self { hub: hub.clone(), addr, task }
    }
}

impl Drop for Instance {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn serve_tls(hub: Hub, listener: TcpListener, acceptor: TlsAcceptor, app: Router) {
    loop {
        let (tcp, _) = listener.accept().await.unwrap();
        let (hub, acceptor, app) = (hub.clone(), acceptor.clone(), app.clone());
        tokio::spawn(async move {
            let Ok(tls) = acceptor.accept(hub.io(tcp)).await else { return };
            let service = TowerToHyperService::new(app);
            drop(auto::Builder::new(TokioExecutor::new()).serve_connection(TokioIo::new(tls), service).await);
        });
    }
}

#[derive(Clone)]
struct Site {
    hub: Hub,
    /// The instance that writes the runs.
    writer: Hub,
    shared: Arc<Shared>,
}

/// A request for the stream of a run.
struct Ask<'a> {
    protocol: Protocol,
    /// The id of the conversation.
    id: &'a str,
    /// The name of the run.
    name: String,
    request: StreamRequest,
}

impl Site {
    fn plan(&self, id: &str) -> Option<Arc<Plan>> {
        self.shared.plans.lock().unwrap().get(id).cloned()
    }

    /// Begins the run, unless the request resumes it, and responds with its stream.
    async fn begin(&self, ask: Ask<'_>, form: impl FnOnce(Subscription) -> Subscription) -> Response {
        let begun = self.begin_for(&ask).await;
        match begun {
            Ok(()) => self.read(ask, form).await,
            Err(error) => self.reply(ask.id, error.into_response()),
        }
    }

    async fn begin_for(&self, ask: &Ask<'_>) -> Result<(), RunError> {
        let Some(plan) = self.plan(ask.id) else { return Ok(()) };
        let answer = ask.protocol.answer(ask.id);
        let run = self.writer.run(ask.name.clone());
        let begin = run.begin_for(&ask.request);
        let begin = if plan.has_will { begin.last_will(answer.will.clone()) } else { begin };
        if let Some(writer) = begin.await? {
            tokio::spawn(write(writer, answer, plan));
        }
        Ok(())
    }

    /// Responds with the stream of a run that has begun.
    async fn read(&self, ask: Ask<'_>, form: impl FnOnce(Subscription) -> Subscription) -> Response {
        let response = match self.hub.run(ask.name).reader().await {
            Ok(reader) => {
                let stream = form(Subscription::run(reader).bare());
                self.hub.respond(ask.request, stream).into_response().map(Body::new)
            }
            Err(error) => error.into_response(),
        };
        self.reply(ask.id, response)
    }

    /// As `read`, with `404` instead of `204` if the run is unknown.
    async fn read_known(&self, ask: Ask<'_>, form: impl FnOnce(Subscription) -> Subscription) -> Response {
        match self.hub.run(ask.name.clone()).state().await {
            Ok(RunState::None) => self.reply(ask.id, StatusCode::NOT_FOUND.into_response()),
            Ok(_) => self.read(ask, form).await,
            Err(error) => self.reply(ask.id, error.into_response()),
        }
    }

    fn reply(&self, id: &str, response: Response) -> Response {
        if let Some(plan) = self.plan(id) {
            plan.status(response.status());
        }
        response
    }

    async fn stop(&self, name: String) -> Response {
        match self.hub.run(name).stop().await {
            Ok(true) => Json(json!({})).into_response(),
            Ok(false) => StatusCode::NOT_FOUND.into_response(),
            Err(error) => error.into_response(),
        }
    }
}

/// Writes an answer.
async fn write(writer: RunWriter, answer: Answer, plan: Arc<Plan>) -> Result<(), RunError> {
    let Answer { first, rest, last, stopped, .. } = answer;
    publish(&writer, first).await?;
    if plan.pauses {
        let is_stopped = tokio::select! {
            () = writer.stopped() => true,
            () = next(&plan) => false,
        };
        if is_stopped {
            return writer.finish_with(stopped).await;
        }
        if *plan.next.borrow() == Some(Next::Drop) {
            // The writer is dropped, as in a task that panics.
            return Ok(());
        }
    }
    publish(&writer, rest).await?;
    writer.finish_with(last).await
}

/// Waits for the next step of the plan.
async fn next(plan: &Plan) {
    drop(plan.next.subscribe().wait_for(Option::is_some).await);
}

async fn publish(writer: &RunWriter, events: Vec<Event>) -> Result<(), RunError> {
    for event in events {
        writer.publish(event).await?;
    }
    Ok(())
}

fn routes(site: Site) -> Router {
    Router::new()
        .route("/api/chat", post(ai_ask))
        .route("/api/chat/{id}/stream", get(ai_stream))
        .route(
            "/api/chat/{id}/stop",
            post(async |State(site): State<Site>, Path(id): Path<String>| site.stop(id).await),
        )
        .route("/agent", post(ag_ui_ask).get(ag_ui_join))
        .route("/agent/stop", post(stop_by_query))
        .route("/tanstack", post(tanstack_ask).get(tanstack_get))
        .route("/tanstack/stop", post(tanstack_stop))
        .route("/threads/{thread}/runs/stream", post(langgraph_ask))
        .route("/threads/{thread}/runs/{run}/stream", get(langgraph_stream).layer(map_request(from_the_start)))
        .route("/threads/{thread}/runs/{run}", get(langgraph_state))
        .route("/threads/{thread}/runs/{run}/cancel", post(langgraph_cancel))
        .route("/v1/responses", post(openai_ask))
        .route("/v1/responses/{id}", get(openai_stream))
        .route("/v1/responses/{id}/cancel", post(openai_cancel))
        .route("/v1/chat/completions", post(chat_completions))
        .route("/v1/chat/completions/stop", post(stop_by_query))
        .route("/answers/{id}", post(plain_ask).get(plain_stream))
        .route("/answers/{id}/begin", post(plain_begin))
        .route("/answers/{id}/stop", post(async |State(site): State<Site>, Path(id): Path<String>| site.stop(id).await))
        .with_state(site)
}

type Parameters = Query<HashMap<String, String>>;

async fn stop_by_query(State(site): State<Site>, Query(query): Parameters) -> Response {
    site.stop(query["runId"].clone()).await
}

async fn ai_ask(State(site): State<Site>, request: StreamRequest, Json(input): Json<Value>) -> Response {
    let id = input["id"].as_str().unwrap_or_default();
    let response = site.begin(Ask { protocol: Protocol::Ai, id, name: id.to_owned(), request }, |stream| stream).await;
    ([("x-vercel-ai-ui-message-stream", "v1")], response).into_response()
}

async fn ai_stream(
    State(site): State<Site>,
    Path(id): Path<String>,
    Query(query): Parameters,
    request: StreamRequest,
) -> Response {
    // A page that loads has the messages of ended answers. A page that resumes after a break needs
    // the rest also after the end, and must not take `204` for the end.
    let ask = Ask { protocol: Protocol::Ai, id: &id, name: id.clone(), request };
    if query.contains_key("ended") {
        return site.read_known(ask, |stream| stream).await;
    }
    site.read(ask, Subscription::only_while_active).await
}

async fn ag_ui_ask(State(site): State<Site>, request: StreamRequest, Json(input): Json<Value>) -> Response {
    let id = input["runId"].as_str().unwrap_or_default();
    site.begin(Ask { protocol: Protocol::AgUi, id, name: id.to_owned(), request }, |stream| stream).await
}

async fn ag_ui_join(State(site): State<Site>, Query(query): Parameters, request: StreamRequest) -> Response {
    let id = &query["runId"];
    site.read_known(Ask { protocol: Protocol::AgUi, id, name: id.clone(), request }, |stream| stream).await
}

async fn tanstack_ask(
    State(site): State<Site>,
    headers: HeaderMap,
    request: StreamRequest,
    Json(input): Json<Value>,
) -> Response {
    let thread = input["threadId"].as_str().unwrap_or_default();
    let name = headers.get("x-run-id").and_then(|id| id.to_str().ok()).unwrap_or_default().to_owned();
    site.shared.chosen.lock().unwrap().insert(thread.to_owned(), name.clone());
    let ask = Ask { protocol: Protocol::AgUi, id: thread, name, request };
    site.begin(ask, |stream| stream.ids(Ids::First)).await
}

async fn tanstack_get(State(site): State<Site>, Query(query): Parameters, request: StreamRequest) -> Response {
    if let Some(thread) = query.get("threadId") {
        let run = site.shared.chosen.lock().unwrap().get(thread).cloned();
        let active = match &run {
            Some(run) => matches!(site.hub.run(run.clone()).state().await, Ok(RunState::Active)),
            None => false,
        };
        let run = run.filter(|_| active).map(|run| json!({"runId": run}));
        return Json(json!({"messages": [], "activeRun": run})).into_response();
    }
    let name = query["runId"].clone();
    let thread = site.shared.chosen.lock().unwrap().iter().find(|(_, run)| **run == name).map(|(id, _)| id.clone());
    let ask = Ask { protocol: Protocol::AgUi, id: &thread.unwrap_or_default(), name, request };
    site.read(ask, |stream| stream.ids(Ids::First)).await
}

async fn tanstack_stop(State(site): State<Site>, Query(query): Parameters) -> Response {
    let run = site.shared.chosen.lock().unwrap().get(&query["threadId"]).cloned();
    site.stop(run.unwrap_or_default()).await
}

fn with_location(thread: &str, response: Response) -> Response {
    ([(header::LOCATION, format!("/threads/{thread}/runs/run-1/stream"))], response).into_response()
}

async fn langgraph_ask(State(site): State<Site>, Path(thread): Path<String>, request: StreamRequest) -> Response {
    let ask = Ask { protocol: Protocol::LangGraph, id: &thread, name: thread.clone(), request };
    let response = site.begin(ask, |stream| stream).await;
    with_location(&thread, response)
}

type ThreadRun = Path<(String, String)>;

async fn langgraph_stream(State(site): State<Site>, Path((thread, _)): ThreadRun, request: StreamRequest) -> Response {
    let ask = Ask { protocol: Protocol::LangGraph, id: &thread, name: thread.clone(), request };
    let response = site.read_known(ask, |stream| stream).await;
    with_location(&thread, response)
}

/// `useStream` sends the id `-1` if it has none.
async fn from_the_start(mut request: Request) -> Request {
    if request.headers().get("last-event-id").is_some_and(|id| id == "-1") {
        request.headers_mut().remove("last-event-id");
    }
    request
}

async fn langgraph_state(State(site): State<Site>, Path((thread, run)): ThreadRun) -> Response {
    let status = match site.hub.run(thread).state().await {
        Ok(RunState::Active) => "running",
        Ok(RunState::Ended(_)) => "success",
        Ok(_) => return StatusCode::NOT_FOUND.into_response(),
        Err(error) => return error.into_response(),
    };
    Json(json!({"run_id": run, "status": status})).into_response()
}

async fn langgraph_cancel(State(site): State<Site>, Path((thread, _)): ThreadRun) -> Response {
    site.stop(thread).await
}

async fn openai_ask(State(site): State<Site>, request: StreamRequest, Json(input): Json<Value>) -> Response {
    let id = input["input"].as_str().unwrap_or_default();
    let name = format!("resp_{id}");
    site.begin(Ask { protocol: Protocol::Responses, id, name, request }, |stream| stream).await
}

async fn openai_stream(
    State(site): State<Site>,
    Path(name): Path<String>,
    Query(query): Parameters,
    request: StreamRequest,
) -> Response {
    let after = query.get("starting_after").and_then(|number| number.parse().ok());
    let id = name.trim_start_matches("resp_");
    let ask = Ask { protocol: Protocol::Responses, id, name: name.clone(), request };
    let form = |stream: Subscription| match after {
        Some(number) => stream.after_event(number),
        None => stream,
    };
    site.read_known(ask, form).await
}

async fn openai_cancel(State(site): State<Site>, Path(name): Path<String>) -> Response {
    site.stop(name).await
}

async fn chat_completions(State(site): State<Site>, request: StreamRequest, Json(input): Json<Value>) -> Response {
    let id = input["messages"][0]["content"].as_str().unwrap_or_default();
    let ask = Ask { protocol: Protocol::ChatCompletions, id, name: id.to_owned(), request };
    site.begin(ask, |stream| stream).await
}

async fn plain_ask(State(site): State<Site>, Path(id): Path<String>, request: StreamRequest) -> Response {
    site.begin(Ask { protocol: Protocol::Plain, id: &id, name: id.clone(), request }, |stream| stream).await
}

async fn plain_stream(State(site): State<Site>, Path(id): Path<String>, request: StreamRequest) -> Response {
    site.read(Ask { protocol: Protocol::Plain, id: &id, name: id.clone(), request }, |stream| stream).await
}

/// Begins a run for a client that cannot send `POST` for its stream.
async fn plain_begin(State(site): State<Site>, Path(id): Path<String>, request: StreamRequest) -> Response {
    let ask = Ask { protocol: Protocol::Plain, id: &id, name: id.clone(), request };
    match site.begin_for(&ask).await {
        Ok(()) => Json(json!({})).into_response(),
        Err(error) => error.into_response(),
    }
}
