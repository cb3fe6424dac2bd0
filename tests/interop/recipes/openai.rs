use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::response::Result;
use axum::routing::{get, post};
use axum::{Json, Router};
use futures::StreamExt;
use futures::stream::BoxStream;
use serde_json::{Value, json};
use tower_sse::{Event, EventStream, Hub, RunError, RunWriter, StreamRequest, Subscription};
use uuid::Uuid;

/// Returns the words of the answer to a question.
pub type Model = fn(&Value) -> BoxStream<'static, String>;

pub fn routes(hub: Hub, model: Model) -> Router {
    Router::new()
        .route("/v1/responses", post(ask))
        .route("/v1/responses/{id}", get(read))
        .route("/v1/responses/{id}/cancel", post(stop))
        .with_state((hub, model))
}

type App = State<(Hub, Model)>;

async fn ask(State((hub, model)): App, request: StreamRequest, Json(input): Json<Value>) -> Result<EventStream> {
    let id = format!("resp_{}", Uuid::new_v4().simple()); // no client can guess it
    let run = hub.run(format!("responses/{id}"));
    let failure = json!({ "code": "server_error", "message": "interrupted" });
    // The number of the last will is unknown at the start. The client does not check it.
    let interrupted = response(0, "failed", &id, "", failure);
    if let Some(writer) = run.begin_for(&request).last_will(interrupted).await? {
        tokio::spawn(answer(writer, id, model(&input)));
    }
    Ok(hub.respond(request, Subscription::run(run.reader().await?).bare()))
}

/// `sequence_number` is the number of the event in the run.
async fn answer(
    writer: RunWriter,
    id: String,
    mut words: BoxStream<'static, String>,
) -> std::result::Result<(), RunError> {
    let mut number = writer.publish(response(0, "created", &id, "", Value::Null)).await?;
    let item = json!({ "id": "msg", "type": "message", "role": "assistant", "status": "in_progress", "content": [] });
    for (kind, fields) in [
        ("output_item.added", json!({ "output_index": 0, "item": item })),
        ("content_part.added", json!({ "output_index": 0, "content_index": 0, "item_id": "msg", "part": part("") })),
    ] {
        number = writer.publish(event(number + 1, kind, fields)).await?;
    }
    let mut text = String::new();
    loop {
        let word = tokio::select! {
            () = writer.stopped() => {
                return writer.finish_with(response(number + 1, "incomplete", &id, &text, Value::Null)).await;
            }
            word = words.next() => word,
        };
        let Some(word) = word else { break };
        text += &word;
        let delta = json!({ "output_index": 0, "content_index": 0, "item_id": "msg", "delta": word, "logprobs": [] });
        number = writer.publish(event(number + 1, "output_text.delta", delta)).await?;
    }
    writer.finish_with(response(number + 1, "completed", &id, &text, Value::Null)).await
}

/// The rest of a response: the caller has the events up to `starting_after`.
async fn read(State((hub, _)): App, Path(id): Path<String>, request: StreamRequest) -> Result<EventStream> {
    let reader = hub.run(format!("responses/{id}")).reader().await?;
    if reader.is_missing() {
        return Err(StatusCode::NOT_FOUND.into());
    }
    let after = request.query_values("starting_after").next().and_then(|number| number.parse().ok());
    let stream = Subscription::run(reader).bare();
    let stream = match after {
        Some(number) => stream.after_event(number),
        None => stream,
    };
    Ok(hub.respond(request, stream))
}

async fn stop(State((hub, _)): App, Path(id): Path<String>) -> Result<Json<Value>> {
    hub.run(format!("responses/{id}")).stop().await?;
    Ok(Json(json!({ "id": id, "object": "response" })))
}

fn part(text: &str) -> Value {
    json!({ "type": "output_text", "text": text, "annotations": [] })
}

fn event(number: u64, kind: &str, mut fields: Value) -> Event {
    let kind = format!("response.{kind}");
    fields["type"] = kind.clone().into();
    fields["sequence_number"] = number.into();
    Event::new(kind, fields.to_string())
}

/// An event with the whole response.
fn response(number: u64, status: &str, id: &str, text: &str, error: Value) -> Event {
    let content = if text.is_empty() { json!([]) } else { json!([part(text)]) };
    let message =
        json!({ "id": "msg", "type": "message", "role": "assistant", "status": "completed", "content": content });
    let state = if status == "created" { "in_progress" } else { status };
    let response = json!({
        "id": id, "object": "response", "created_at": 0, "status": state, "model": "words", "error": error,
        "output": if status == "created" { json!([]) } else { json!([message]) },
    });
    event(number, status, json!({ "response": response }))
}
