use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response, Result};
use axum::routing::post;
use axum::{Json, Router};
use futures::StreamExt;
use futures::stream::BoxStream;
use serde_json::{Value, json};
use tower_sse::{
    Event, EventStream, Hub, Ids, Run, RunError, RunReader, RunState, RunWriter, StreamRequest, Subscription,
};

/// Returns the words of the answer to a question.
pub type Model = fn(&Value) -> BoxStream<'static, String>;

#[derive(Clone)]
struct App {
    hub: Hub,
    model: Model,
    /// The newest run of each thread. An application with several instances has it in its database.
    runs: Arc<Mutex<HashMap<String, String>>>,
}

pub fn routes(hub: Hub, model: Model) -> Router {
    Router::new().route("/tanstack", post(ask).get(read)).route("/tanstack/stop", post(stop)).with_state(App {
        hub,
        model,
        runs: Arc::default(),
    })
}

impl App {
    /// The newest run of a thread, with its name.
    fn newest(&self, thread: &str) -> Option<(String, Run)> {
        let id = self.runs.lock().unwrap_or_else(PoisonError::into_inner).get(thread)?.clone();
        Some((id.clone(), self.hub.run(format!("tanstack/{id}"))))
    }

    /// TanStack AI reads line by line, so each event begins with its id.
    fn stream(&self, request: StreamRequest, reader: RunReader) -> EventStream {
        self.hub.respond(request, Subscription::run(reader).bare().ids(Ids::First))
    }
}

/// The client names the run in a header, and resumes with the same `POST`.
async fn ask(State(app): State<App>, request: StreamRequest, Json(input): Json<Value>) -> Result<EventStream> {
    let id = request.headers().get("x-run-id").and_then(|id| id.to_str().ok()).unwrap_or_default().to_owned();
    if id.is_empty() {
        return Err(StatusCode::BAD_REQUEST.into()); // otherwise all such clients would share one run
    }
    let thread = input["threadId"].as_str().unwrap_or_default().to_owned();
    let run = app.hub.run(format!("tanstack/{id}"));
    let interrupted = event(json!({ "type": "RUN_ERROR", "message": "interrupted" }));
    if let Some(writer) = run.begin_for(&request).last_will(interrupted).await? {
        app.runs.lock().unwrap_or_else(PoisonError::into_inner).insert(thread.clone(), id.clone());
        tokio::spawn(answer(writer, thread, id, (app.model)(&input)));
    }
    Ok(app.stream(request, run.reader().await?))
}

async fn answer(
    writer: RunWriter,
    thread: String,
    id: String,
    mut words: BoxStream<'static, String>,
) -> std::result::Result<(), RunError> {
    writer.publish(event(json!({ "type": "RUN_STARTED", "threadId": thread, "runId": id }))).await?;
    writer.publish(event(json!({ "type": "TEXT_MESSAGE_START", "messageId": id, "role": "assistant" }))).await?;
    loop {
        let word = tokio::select! {
            () = writer.stopped() => {
                return writer.finish_with(event(json!({ "type": "RUN_ERROR", "message": "stopped" }))).await;
            }
            word = words.next() => word,
        };
        let Some(word) = word else { break };
        writer.publish(event(json!({ "type": "TEXT_MESSAGE_CONTENT", "messageId": id, "delta": word }))).await?;
    }
    writer.publish(event(json!({ "type": "TEXT_MESSAGE_END", "messageId": id }))).await?;
    writer.finish_with(event(json!({ "type": "RUN_FINISHED", "threadId": thread, "runId": id }))).await
}

/// With `threadId`, the messages of a thread and its active run, for a page that loads. With `runId`,
/// the stream of a run.
async fn read(State(app): State<App>, request: StreamRequest) -> Result<Response> {
    let thread = request.query_values("threadId").next().map(std::borrow::Cow::into_owned);
    if let Some(thread) = thread {
        let mut active = Value::Null;
        if let Some((id, run)) = app.newest(&thread)
            && run.state().await? == RunState::Active
        {
            active = json!({ "runId": id });
        }
        return Ok(Json(json!({ "messages": [], "activeRun": active })).into_response());
    }
    let id = request.query_values("runId").next().unwrap_or_default().into_owned();
    let reader = app.hub.run(format!("tanstack/{id}")).reader().await?;
    if reader.is_missing() {
        return Err(StatusCode::NOT_FOUND.into());
    }
    Ok(IntoResponse::into_response(app.stream(request, reader)))
}

async fn stop(State(app): State<App>, request: StreamRequest) -> Result<()> {
    let thread = request.query_values("threadId").next().unwrap_or_default().into_owned();
    if let Some((_, run)) = app.newest(&thread) {
        run.stop().await?;
    }
    Ok(())
}

fn event(event: Value) -> Event {
    Event::unnamed(event.to_string())
}
