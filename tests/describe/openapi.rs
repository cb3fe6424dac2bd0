//! The schema of a stream in an OpenAPI document: a validator accepts the document, and the schema
//! accepts real events.

use serde::Serialize;
use serde_json::{Value, json};
use tower_sse::{Message, StreamSchema};
use utoipa::openapi::OpenApi as Document;
use utoipa::{OpenApi, ToSchema};

use crate::messages::schema;
use crate::node::Node;
use crate::sent::{Sent, sent};

/// The document of an application, before its stream is described.
#[derive(OpenApi)]
#[openapi(info(title = "Documents", version = "1.0.0"), paths(get_document, events_by_hand))]
struct Application;

#[derive(Serialize, ToSchema)]
#[allow(dead_code, reason = "only its description is used")]
struct Document1 {
    id: u64,
}

#[utoipa::path(get, path = "/documents/{id}", params(("id" = u64, Path)), responses((status = 200, body = Document1)))]
#[allow(dead_code, reason = "only its description is used")]
async fn get_document() {}

/// A handler of the application for the stream.
#[utoipa::path(get, path = "/by-hand", summary = "Events", responses((status = 200), (status = 418, description = "no")))]
#[allow(dead_code, reason = "only its description is used")]
async fn events_by_hand() {}

fn document(schema: &StreamSchema) -> Document {
    let mut document = Application::openapi();
    schema.add_to(&mut document, "/events").unwrap();
    document
}

/// Returns the problems of a document and of events.
fn problems(node: &Node, document: &Value, events: &[Sent]) -> Vec<String> {
    node.write("validate.mjs", include_str!("validate.mjs"));
    node.write("document.json", &document.to_string());
    node.write("events.json", &serde_json::to_string(events).unwrap());
    serde_json::from_str(&node.run("validate.mjs").unwrap()).unwrap()
}

#[tokio::test]
async fn a_validator_accepts_the_document_and_real_events() {
    let Some(node) = Node::in_folder("openapi") else { return };
    let document = serde_json::to_value(document(&schema())).unwrap();
    let sent = sent().await;
    assert_eq!(problems(&node, &document, &sent), [""; 0]);

    // The schema and the validator reject other documents and events.
    let with = |data: &str| Sent { event: "document.deleted".into(), data: data.into(), ..Sent::default() };
    let missing = problems(&node, &document, &[with(r#"{"id":7}"#)]);
    assert_eq!(missing, ["data of document.deleted:  must have required property 'deletedBy'"]);
    let unknown = problems(&node, &document, &[Sent { event: "other".into(), data: "1".into(), ..Sent::default() }]);
    assert!(unknown.contains(&"data of other: not described".to_owned()), "{unknown:?}");
    let pointer = "/paths/~1events/get/responses/200/content/text~1event-stream";
    for (key, value) in [("itemSchema", json!("no schema")), ("itemShema", json!({}))] {
        let mut broken = document.clone();
        broken.pointer_mut(pointer).unwrap()[key] = value;
        assert!(!problems(&node, &broken, &[]).is_empty(), "{key}");
    }
}

#[test]
fn an_operation_of_the_application_keeps_its_other_responses() {
    let mut document = Application::openapi();
    schema().add_to(&mut document, "/by-hand").unwrap();
    let json = serde_json::to_value(&document).unwrap();
    let operation = &json["paths"]["/by-hand"]["get"];
    assert_eq!(operation["summary"], "Events");
    assert_eq!(operation["responses"]["418"]["description"], "no");
    assert!(operation["responses"]["200"]["content"]["text/event-stream"]["itemSchema"]["oneOf"].is_array());
    assert_eq!(json["openapi"], "3.2.0");
}

#[test]
fn two_schemas_with_one_name_or_one_event_are_reported() {
    mod other {
        use super::*;

        #[derive(Serialize, Message, ToSchema)]
        #[message(event = "other.deleted")]
        pub(super) struct DocumentDeleted {
            id: String,
        }
        #[derive(Serialize, Message, ToSchema)]
        #[message(event = "document.deleted")]
        pub(super) struct Other {
            id: String,
        }
        #[derive(ToSchema)]
        #[allow(dead_code, reason = "only its description is used")]
        pub(super) struct Words {
            words: u8,
        }
    }
    let error =
        schema().message::<other::DocumentDeleted>().message::<other::Other>().item_schema().map(drop).unwrap_err();
    assert!(error.is_invalid());
    let text = error.to_string();
    assert!(text.contains("two types have the event `document.deleted`"), "{text}");
    assert!(text.contains("two schemas have the name `DocumentDeleted`"), "{text}");

    let mut document = Application::openapi();
    document
        .components
        .as_mut()
        .unwrap()
        .schemas
        .insert("Words".into(), <other::Words as utoipa::PartialSchema>::schema());
    let before = document.clone();
    let error = schema().add_to(&mut document, "/events").unwrap_err();
    assert!(error.to_string().contains("`Words`") && document == before, "{error}");
}

#[test]
fn a_map_with_integers_as_keys_is_reported() {
    #[derive(Serialize, Message, ToSchema)]
    #[message(event = "weights")]
    struct Weights {
        by_id: std::collections::BTreeMap<u64, f64>,
    }
    let error = StreamSchema::new().message::<Weights>().item_schema().map(drop).unwrap_err();
    assert!(error.to_string().starts_with("`Weights`: `utoipa` describes the keys of a map as integers"), "{error}");
}

/// Otherwise the document would be invalid.
#[test]
fn a_schema_that_is_left_out_is_reported() {
    #[derive(Serialize, ToSchema)]
    struct Inner {
        id: u8,
    }
    #[derive(Serialize, Message, ToSchema)]
    #[message(event = "outer")]
    #[schema(no_recursion)]
    #[allow(dead_code, reason = "only its description is used")]
    struct Outer {
        inner: Inner,
    }
    let mut document = Application::openapi();
    let error = StreamSchema::new().message::<Outer>().add_to(&mut document, "/events").unwrap_err();
    assert_eq!(error.to_string(), "the schema `Inner` is missing: add it to the document");
    document.components.as_mut().unwrap().schemas.insert("Inner".into(), <Inner as utoipa::PartialSchema>::schema());
    StreamSchema::new().message::<Outer>().add_to(&mut document, "/events").unwrap();
}

/// The payload itself refers to the schema: no other schema does.
#[test]
fn a_payload_that_is_left_out_is_reported() {
    #[derive(Serialize, ToSchema)]
    struct Inner {
        id: u8,
    }
    #[derive(Serialize, Message, ToSchema)]
    #[allow(dead_code, reason = "only its description is used")]
    enum Order {
        #[message(event = "shipped")]
        #[schema(no_recursion)]
        Shipped(Inner),
    }
    let mut document = Application::openapi();
    let error = StreamSchema::new().message::<Order>().add_to(&mut document, "/events").unwrap_err();
    assert_eq!(error.to_string(), "the schema `Inner` is missing: add it to the document");
}

#[test]
fn the_default_describes_the_events_of_the_hub() {
    let schemas = StreamSchema::default().schemas().unwrap();
    assert!(schemas == StreamSchema::new().schemas().unwrap() && schemas.contains_key("HubGap"));
}

#[test]
fn an_enum_that_utoipa_describes_in_another_form_is_reported() {
    #[derive(Serialize)]
    #[allow(dead_code, reason = "only its description is used")]
    enum ByHand {
        A { id: u8 },
    }
    impl Message for ByHand {
        const EVENTS: &'static [&'static str] = &["a"];
        const VARIANTS: &'static [&'static str] = &["A"];

        fn event(&self) -> &'static str {
            "a"
        }
    }
    impl utoipa::PartialSchema for ByHand {
        fn schema() -> utoipa::openapi::RefOr<utoipa::openapi::Schema> {
            utoipa::openapi::Schema::Object(utoipa::openapi::Object::new()).into()
        }
    }
    impl ToSchema for ByHand {}
    let error = StreamSchema::new().message::<ByHand>().item_schema().map(drop).unwrap_err();
    assert!(
        error.to_string().ends_with("`utoipa` does not describe the variant `A` in serde's default form"),
        "{error}"
    );
}
