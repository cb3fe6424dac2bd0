//! The events of one answer in the protocol of each client.

use serde_json::{Value, json};
use tower_sse::Event;

/// The text of the answer, in the parts in which it is written.
pub const PARTS: [&str; 4] = ["Good ", "morn", "ing, ", "Ada."];
pub const TEXT: &str = "Good morning, Ada.";
/// The text at which most cases do something.
pub const HALF: &str = "Good morn";

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Protocol {
    /// The stream of `ai`.
    Ai,
    /// AG-UI, also for `TanStack` AI.
    AgUi,
    LangGraph,
    Responses,
    ChatCompletions,
    /// The application's own events, for clients without a protocol.
    Plain,
}

/// The events of one answer.
pub struct Answer {
    /// The events up to [`HALF`].
    pub first: Vec<Event>,
    /// The events after it, without the last.
    pub rest: Vec<Event>,
    pub last: Event,
    /// The last event after a stop.
    pub stopped: Event,
    /// The last event if the writer is dropped.
    pub will: Event,
}

impl Protocol {
    pub fn answer(self, id: &str) -> Answer {
        match self {
            Self::Ai => ai(id),
            Self::AgUi => ag_ui(id),
            Self::LangGraph => langgraph(),
            Self::Responses => responses(id),
            Self::ChatCompletions => chat_completions(id),
            Self::Plain => plain(),
        }
    }
}

fn data(value: &Value) -> Event {
    Event::unnamed(value.to_string())
}

fn named(name: &'static str, value: &Value) -> Event {
    Event::new(name, value.to_string())
}

/// Puts the parts of the text between the events before and after the text.
fn around(mut before: Vec<Event>, part: impl Fn(&str) -> Event, after: Vec<Event>) -> (Vec<Event>, Vec<Event>) {
    before.extend(PARTS[..2].iter().map(|text| part(text)));
    (before, PARTS[2..].iter().map(|text| part(text)).chain(after).collect())
}

fn ai(id: &str) -> Answer {
    let (first, rest) = around(
        vec![
            // Without `messageId`, a stream that is read again from the start doubles the answer.
            data(&json!({"type": "start", "messageId": id})),
            data(&json!({"type": "text-start", "id": "t"})),
        ],
        |text| data(&json!({"type": "text-delta", "id": "t", "delta": text})),
        vec![data(&json!({"type": "text-end", "id": "t"}))],
    );
    Answer {
        first,
        rest,
        last: data(&json!({"type": "finish"})),
        stopped: data(&json!({"type": "abort"})),
        will: data(&json!({"type": "error", "errorText": "interrupted"})),
    }
}

fn ag_ui(id: &str) -> Answer {
    let (first, rest) = around(
        vec![
            data(&json!({"type": "RUN_STARTED", "threadId": "thread", "runId": id})),
            data(&json!({"type": "TEXT_MESSAGE_START", "messageId": "m", "role": "assistant"})),
        ],
        |text| data(&json!({"type": "TEXT_MESSAGE_CONTENT", "messageId": "m", "delta": text})),
        vec![data(&json!({"type": "TEXT_MESSAGE_END", "messageId": "m"}))],
    );
    Answer {
        first,
        rest,
        last: data(&json!({"type": "RUN_FINISHED", "threadId": "thread", "runId": id})),
        stopped: data(&json!({"type": "RUN_ERROR", "message": "stopped"})),
        will: data(&json!({"type": "RUN_ERROR", "message": "interrupted"})),
    }
}

fn langgraph() -> Answer {
    let (first, rest) = around(
        vec![named("metadata", &json!({"run_id": "run-1"}))],
        |text| named("custom", &json!({"delta": text})),
        Vec::new(),
    );
    Answer {
        first,
        rest,
        last: named("end", &Value::Null),
        stopped: named("end", &Value::Null),
        will: named("error", &json!({"error": "Interrupted", "message": "interrupted"})),
    }
}

fn responses(id: &str) -> Answer {
    let item = |text: &str| {
        let content: Vec<Value> = if text.is_empty() {
            Vec::new()
        } else {
            vec![json!({"type": "output_text", "text": text, "annotations": []})]
        };
        let status = if text.is_empty() { "in_progress" } else { "completed" };
        json!({"type": "message", "id": "i", "role": "assistant", "status": status, "content": content})
    };
    let response = |status: &str, text: &str| {
        let output = if text.is_empty() { Vec::new() } else { vec![item(text)] };
        let error = (status == "failed").then(|| json!({"code": "server_error", "message": "interrupted"}));
        let details = (status == "incomplete").then(|| json!({"reason": "max_output_tokens"}));
        json!({
            "id": format!("resp_{id}"), "object": "response", "created_at": 0, "status": status, "model": "m",
            "output": output, "error": error, "incomplete_details": details, "parallel_tool_calls": false,
            "tools": [], "tool_choice": "auto",
        })
    };
    // `sequence_number` is the number of the event in the run.
    let event = |number: usize, name: &'static str, more: Value| {
        let mut value = json!({"type": name, "sequence_number": number});
        value.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        named(name, &value)
    };
    let at = |more: Value| {
        let mut value = json!({"item_id": "i", "output_index": 0, "content_index": 0});
        value.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        value
    };
    let part = json!({"part": {"type": "output_text", "text": "", "annotations": []}});
    let mut events = vec![
        event(0, "response.created", json!({"response": response("in_progress", "")})),
        event(1, "response.output_item.added", json!({"output_index": 0, "item": item("")})),
        event(2, "response.content_part.added", at(part)),
    ];
    for text in PARTS {
        let number = events.len();
        events.push(event(number, "response.output_text.delta", at(json!({"delta": text, "logprobs": []}))));
    }
    let (half, end) = (5, events.len());
    let rest = events.split_off(half);
    Answer {
        first: events,
        rest,
        last: event(end, "response.completed", json!({"response": response("completed", TEXT)})),
        stopped: event(half, "response.incomplete", json!({"response": response("incomplete", HALF)})),
        will: event(half, "response.failed", json!({"response": response("failed", HALF)})),
    }
}

fn chat_completions(id: &str) -> Answer {
    let chunk = |delta: Value, reason: Option<&str>| {
        data(&json!({
            "id": id, "object": "chat.completion.chunk", "created": 0, "model": "m",
            "choices": [{"index": 0, "delta": delta, "finish_reason": reason}],
        }))
    };
    let (first, rest) = around(
        vec![chunk(json!({"role": "assistant"}), None)],
        |text| chunk(json!({"content": text}), None),
        vec![chunk(json!({}), Some("stop"))],
    );
    Answer {
        first,
        rest,
        last: Event::unnamed("[DONE]"),
        stopped: chunk(json!({}), Some("length")),
        will: data(&json!({"error": {"message": "interrupted"}})),
    }
}

fn plain() -> Answer {
    let (first, rest) = around(Vec::new(), |text| Event::new("delta", text.to_owned()), Vec::new());
    Answer {
        first,
        rest,
        last: Event::new("done", "whole"),
        stopped: Event::new("done", "stopped"),
        will: Event::new("failed", "interrupted"),
    }
}
