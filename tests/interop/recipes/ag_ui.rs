use axum::extract::{Query, State};
use axum::http::StatusCode;
use axum::response::Result;
use axum::routing::post;
use axum::{Json, Router};
use futures::StreamExt;
use futures::stream::BoxStream;
use serde::Deserialize;
use serde_json::{Value, json};
use tower_sse::{Event, EventStream, Hub, RunError, RunWriter, StreamRequest, Subscription};

/// Returns the words of the answer to a question.
pub type Model = fn(&Value) -> BoxStream<'static, String>;

pub fn routes(hub: Hub, model: Model) -> Router {
    Router::new().route("/agent", post(ask).get(read)).route("/agent/stop", post(stop)).with_state((hub, model))
}

type App = State<(Hub, Model)>;

/// The run, in the query of a URL.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Named {
    run_id: String,
}

async fn ask(State((hub, model)): App, request: StreamRequest, Json(input): Json<Value>) -> Result<EventStream> {
    let Some(id) = input["runId"].as_str().filter(|id| !id.is_empty()).map(str::to_owned) else {
        return Err(StatusCode::BAD_REQUEST.into());
    };
    let run = hub.run(format!("agent/{id}"));
    let interrupted = event(json!({ "type": "RUN_ERROR", "message": "interrupted" }));
    if let Some(writer) = run.begin_for(&request).last_will(interrupted).await? {
        tokio::spawn(answer(writer, input["threadId"].clone(), id, model(&input)));
    }
    Ok(hub.respond(request, Subscription::run(run.reader().await?).bare()))
}

async fn answer(
    writer: RunWriter,
    thread: Value,
    id: String,
    mut words: BoxStream<'static, String>,
) -> std::result::Result<(), RunError> {
    writer.publish(event(json!({ "type": "RUN_STARTED", "threadId": thread, "runId": id }))).await?;
    writer.publish(event(json!({ "type": "TEXT_MESSAGE_START", "messageId": id, "role": "assistant" }))).await?;
    loop {
        let word = tokio::select! {
            // AG-UI has no event for a stop. The page asked for it, and hides the error.
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

/// For a reload, and for the rest after a break.
async fn read(State((hub, _)): App, Query(named): Query<Named>, request: StreamRequest) -> Result<EventStream> {
    let reader = hub.run(format!("agent/{}", named.run_id)).reader().await?;
    if reader.is_missing() {
        return Err(StatusCode::NOT_FOUND.into()); // the agent would take `204` for a success
    }
    Ok(hub.respond(request, Subscription::run(reader).bare()))
}

async fn stop(State((hub, _)): App, Query(named): Query<Named>) -> Result<()> {
    hub.run(format!("agent/{}", named.run_id)).stop().await?;
    Ok(())
}

fn event(event: Value) -> Event {
    Event::unnamed(event.to_string())
}
