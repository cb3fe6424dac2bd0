use axum::extract::{Query, State};
use axum::response::Result;
use axum::routing::post;
use axum::{Json, Router};
use futures::StreamExt;
use futures::stream::BoxStream;
use serde::Deserialize;
use serde_json::{Value, json};
use tower_sse::{Event, EventStream, Hub, Ids, RunError, RunWriter, StreamRequest, Subscription};
use uuid::Uuid;

/// Returns the words of the answer to a question.
pub type Model = fn(&Value) -> BoxStream<'static, String>;

pub fn routes(hub: Hub, model: Model) -> Router {
    Router::new()
        .route("/v1/chat/completions", post(ask))
        .route("/v1/chat/completions/stop", post(stop))
        .with_state((hub, model))
}

type App = State<(Hub, Model)>;

/// The run, in the query of a URL.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Named {
    run_id: String,
}

async fn ask(State((hub, model)): App, request: StreamRequest, Json(input): Json<Value>) -> Result<EventStream> {
    // Every chunk has the id, so the page knows what to stop.
    let id = format!("chatcmpl-{}", Uuid::new_v4().simple()); // no client can guess it
    let run = hub.run(format!("completions/{id}"));
    let interrupted = Event::unnamed(json!({ "error": { "message": "interrupted" } }).to_string());
    if let Some(writer) = run.begin_for(&request).last_will(interrupted).await? {
        tokio::spawn(answer(writer, id, model(&input)));
    }
    // The protocol has no request that resumes, so its events need no ids.
    Ok(hub.respond(request, Subscription::run(run.reader().await?).bare().ids(Ids::None)))
}

async fn answer(
    writer: RunWriter,
    id: String,
    mut words: BoxStream<'static, String>,
) -> std::result::Result<(), RunError> {
    writer.publish(chunk(&id, json!({ "role": "assistant" }), None)).await?;
    loop {
        let word = tokio::select! {
            () = writer.stopped() => break,
            word = words.next() => word,
        };
        let Some(word) = word else { break };
        writer.publish(chunk(&id, json!({ "content": word }), None)).await?;
    }
    writer.publish(chunk(&id, json!({}), Some("stop"))).await?;
    writer.finish_with(Event::unnamed("[DONE]")).await
}

async fn stop(State((hub, _)): App, Query(named): Query<Named>) -> Result<()> {
    hub.run(format!("completions/{}", named.run_id)).stop().await?;
    Ok(())
}

fn chunk(id: &str, delta: Value, finish_reason: Option<&str>) -> Event {
    let choice = json!({ "index": 0, "delta": delta, "finish_reason": finish_reason });
    let chunk = json!({
        "id": id, "object": "chat.completion.chunk", "created": 0, "model": "words", "choices": [choice],
    });
    Event::unnamed(chunk.to_string())
}
