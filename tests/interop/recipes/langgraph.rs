use axum::extract::{Path, Request, State};
use axum::http::{StatusCode, header};
use axum::middleware::map_request;
use axum::response::{IntoResponse, Response, Result};
use axum::routing::{get, post};
use axum::{Json, Router};
use futures::StreamExt;
use futures::stream::BoxStream;
use serde_json::{Value, json};
use tower_sse::{Event, Hub, RunEnd, RunError, RunReader, RunState, RunWriter, StreamRequest, Subscription};

/// Returns the words of the answer to a question.
pub type Model = fn(&Value) -> BoxStream<'static, String>;

pub fn routes(hub: Hub, model: Model) -> Router {
    Router::new()
        .route("/threads/{thread}/runs/stream", post(ask))
        .route("/threads/{thread}/runs/{run}/stream", get(read).layer(map_request(from_the_start)))
        .route("/threads/{thread}/runs/{run}", get(state))
        .route("/threads/{thread}/runs/{run}/cancel", post(stop))
        .with_state((hub, model))
}

type App = State<(Hub, Model)>;

/// This server has one run in each thread, with this id.
const RUN: &str = "run-1";

async fn ask(
    State((hub, model)): App,
    Path(thread): Path<String>,
    request: StreamRequest,
    Json(input): Json<Value>,
) -> Result<Response> {
    let run = hub.run(format!("threads/{thread}"));
    let interrupted = event("error", json!({ "error": "Interrupted", "message": "interrupted" }));
    let Some(writer) = run.begin_for(&request).last_will(interrupted).await? else {
        return Err(StatusCode::CONFLICT.into()); // the last answer has not ended
    };
    tokio::spawn(answer(writer, model(&input)));
    Ok(stream(&hub, &thread, request, run.reader().await?))
}

/// `useStream` sends the id `-1` if it has none.
async fn from_the_start(mut request: Request) -> Request {
    if request.headers().get("last-event-id").is_some_and(|id| id == "-1") {
        request.headers_mut().remove("last-event-id");
    }
    request
}

/// The client resumes only if `Location` names the stream.
fn stream(hub: &Hub, thread: &str, request: StreamRequest, reader: RunReader) -> Response {
    let location = [(header::LOCATION, format!("/threads/{thread}/runs/{RUN}/stream"))];
    (location, hub.respond(request, Subscription::run(reader).bare())).into_response()
}

async fn answer(writer: RunWriter, mut words: BoxStream<'static, String>) -> std::result::Result<(), RunError> {
    writer.publish(event("metadata", json!({ "run_id": RUN }))).await?;
    loop {
        let word = tokio::select! {
            () = writer.stopped() => break,
            word = words.next() => word,
        };
        let Some(word) = word else { break };
        writer.publish(event("custom", json!({ "delta": word }))).await?;
    }
    writer.finish_with(event("end", Value::Null)).await
}

async fn read(
    State((hub, _)): App,
    Path((thread, _)): Path<(String, String)>,
    request: StreamRequest,
) -> Result<Response> {
    let reader = hub.run(format!("threads/{thread}")).reader().await?;
    if reader.is_missing() {
        return Err(StatusCode::NOT_FOUND.into()); // the client throws at `204`
    }
    Ok(stream(&hub, &thread, request, reader))
}

async fn state(State((hub, _)): App, Path((thread, run)): Path<(String, String)>) -> Result<Response> {
    let status = match hub.run(format!("threads/{thread}")).state().await? {
        RunState::Active => "running",
        RunState::Ended(RunEnd::Finished | RunEnd::Stopped) => "success",
        RunState::Ended(_) => "error",
        _ => return Ok(StatusCode::NOT_FOUND.into_response()),
    };
    Ok(Json(json!({ "run_id": run, "status": status })).into_response())
}

async fn stop(State((hub, _)): App, Path((thread, _)): Path<(String, String)>) -> Result<Json<Value>> {
    hub.run(format!("threads/{thread}")).stop().await?;
    Ok(Json(json!({})))
}

fn event(name: &'static str, data: Value) -> Event {
    Event::new(name, data.to_string())
}
