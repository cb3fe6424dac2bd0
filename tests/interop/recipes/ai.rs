use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response, Result};
use axum::routing::{get, post};
use axum::{Json, Router};
use futures::StreamExt;
use futures::stream::BoxStream;
use serde_json::{Value, json};
use tower_sse::{Event, EventStream, Hub, RunError, RunWriter, StreamRequest, Subscription};

/// Returns the words of the answer to a question.
pub type Model = fn(&Value) -> BoxStream<'static, String>;

pub fn routes(hub: Hub, model: Model) -> Router {
    Router::new()
        .route("/api/chat", post(ask))
        .route("/api/chat/{id}/stream", get(resume))
        .route("/api/chat/{id}/stop", post(stop))
        .with_state((hub, model))
}

type App = State<(Hub, Model)>;

async fn ask(State((hub, model)): App, request: StreamRequest, Json(chat): Json<Value>) -> Result<Response> {
    let Some(id) = chat["id"].as_str().filter(|id| !id.is_empty()) else {
        return Err(StatusCode::BAD_REQUEST.into());
    };
    let run = hub.run(format!("chats/{id}"));
    let interrupted = chunk(json!({ "type": "error", "errorText": "interrupted" }));
    let Some(writer) = run.begin_for(&request).last_will(interrupted).await? else {
        return Err(StatusCode::CONFLICT.into()); // the last answer has not ended
    };
    tokio::spawn(answer(writer, model(&chat)));
    let stream = hub.respond(request, Subscription::run(run.reader().await?).bare());
    Ok(([("x-vercel-ai-ui-message-stream", "v1")], stream).into_response())
}

async fn answer(writer: RunWriter, mut words: BoxStream<'static, String>) -> std::result::Result<(), RunError> {
    // With a `messageId`, a page that reads the answer again replaces it and does not repeat it.
    let id = format!("{:016x}", fastrand::u64(..));
    writer.publish(chunk(json!({ "type": "start", "messageId": id }))).await?;
    writer.publish(chunk(json!({ "type": "text-start", "id": "text" }))).await?;
    loop {
        let word = tokio::select! {
            () = writer.stopped() => return writer.finish_with(chunk(json!({ "type": "abort" }))).await,
            word = words.next() => word,
        };
        let Some(word) = word else { break };
        writer.publish(chunk(json!({ "type": "text-delta", "id": "text", "delta": word }))).await?;
    }
    writer.publish(chunk(json!({ "type": "text-end", "id": "text" }))).await?;
    writer.finish_with(chunk(json!({ "type": "finish" }))).await
}

async fn resume(State((hub, _)): App, Path(id): Path<String>, request: StreamRequest) -> Result<EventStream> {
    let reader = hub.run(format!("chats/{id}")).reader().await?;
    // A page whose stream broke needs the rest also after the end, and would take `204` for a success.
    if request.query_values("ended").next().is_some() {
        if reader.is_missing() {
            return Err(StatusCode::NOT_FOUND.into());
        }
        return Ok(hub.respond(request, Subscription::run(reader).bare()));
    }
    // A page that loads has the messages of ended answers.
    Ok(hub.respond(request, Subscription::run(reader).bare().only_while_active()))
}

async fn stop(State((hub, _)): App, Path(id): Path<String>) -> Result<()> {
    hub.run(format!("chats/{id}")).stop().await?;
    Ok(())
}

fn chunk(chunk: Value) -> Event {
    Event::unnamed(chunk.to_string())
}
