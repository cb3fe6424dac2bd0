//! The part of an OpenAPI document that describes a stream.

use std::any::type_name;
use std::collections::{BTreeMap, BTreeSet};

use utoipa::ToSchema;
use utoipa::openapi::path::{OperationBuilder, Parameter, ParameterBuilder, ParameterIn};
use utoipa::openapi::schema::{AnyOfBuilder, Object, ObjectBuilder, OneOfBuilder, SchemaType, Type};
use utoipa::openapi::{
    Content, ContentBuilder, OpenApi, OpenApiVersion, Ref, RefOr, Response, ResponseBuilder, Schema,
};

use super::error::DescribeError;
use super::event_names::EventNames;
use super::hub_events::{Field, HUB_EVENTS, HubEvent, Value};
use crate::macros::opaque_debug;
use crate::types::Message;

type Schemas = BTreeMap<String, RefOr<Schema>>;

/// Describes a stream in an OpenAPI document, version 3.2: the response `text/event-stream` with an
/// `itemSchema` that has one alternative for each event.
///
/// The types need `#[derive(ToSchema)]` of the crate `utoipa` 6. The schemas of the payloads and of
/// their fields are added to the document. The payload of an event of an enum is the content of its
/// variant. The hub's own events are described too.
///
/// ```
/// # #[cfg(feature = "derive")] fn main() -> Result<(), Box<dyn std::error::Error>> {
/// use serde::Serialize;
/// use tower_sse::{Message, StreamSchema};
/// use utoipa::ToSchema;
/// use utoipa::openapi::{Info, OpenApi, Paths};
///
/// #[derive(Serialize, Message, ToSchema)]
/// #[message(event = "document.deleted")]
/// struct DocumentDeleted { id: u64, by: String }
///
/// // With utoipa's macros: `ApiDoc::openapi()`.
/// let mut document = OpenApi::new(Info::new("Documents", "1.0.0"), Paths::new());
/// StreamSchema::new().message::<DocumentDeleted>().add_to(&mut document, "/events")?;
///
/// let json = serde_json::to_value(&document)?;
/// let content = &json["paths"]["/events"]["get"]["responses"]["200"]["content"]["text/event-stream"];
/// let event = &content["itemSchema"]["oneOf"][0]["properties"];
/// assert_eq!(event["event"]["enum"][0], "document.deleted");
/// assert_eq!(event["data"]["contentMediaType"], "application/json");
/// assert_eq!(event["data"]["contentSchema"]["$ref"], "#/components/schemas/DocumentDeleted");
/// assert_eq!(json["components"]["schemas"]["DocumentDeleted"]["required"][0], "id");
/// # Ok(()) }
/// # #[cfg(not(feature = "derive"))] fn main() {}
/// ```
///
/// An item of the stream is an object with the fields of the frame: `event`, `data`, `id` and
/// `retry`. The data is a text, and `contentSchema` describes the JSON in it. Few tools read
/// `itemSchema` yet: a tool that only knows OpenAPI 3.1 rejects the document or ignores the events.
///
/// # Errors
///
/// The methods return an error ([`DescribeError::is_invalid`]) if two types have the same event, or
/// the same name and different schemas, if `utoipa` describes an enum in another form than serde's
/// default, or if it describes the keys of a map as integers. A type gets another name with
/// `#[schema(as = …)]`.
#[derive(Clone)]
#[doc(alias = "openapi")]
#[doc(alias = "utoipa")]
#[doc(alias = "itemSchema")]
pub struct StreamSchema {
    /// The names of the events, and the schemas of their payloads.
    events: Vec<(&'static str, RefOr<Schema>)>,
    names: EventNames,
    schemas: Schemas,
    problems: Vec<String>,
}

impl StreamSchema {
    /// Creates the description of a stream with only the hub's own events.
    #[must_use]
    pub fn new() -> Self {
        let (events, names) = (Vec::new(), EventNames::default());
        let mut new = Self { events, names, schemas: Schemas::new(), problems: Vec::new() };
        for event in HUB_EVENTS {
            new.insert(event.type_name, payload_of_hub(event).into());
        }
        new
    }

    /// Adds the events of a type. A type that was added before is not added again.
    #[must_use]
    pub fn message<M: Message + ToSchema + 'static>(mut self) -> Self {
        if self.names.add::<M>(&mut self.problems) {
            self.add_payloads::<M>();
        }
        self
    }

    fn add_payloads<M: Message + ToSchema>(&mut self) {
        let mut of_fields = Vec::new();
        M::schemas(&mut of_fields);
        for (name, schema) in of_fields {
            self.insert(&name, schema);
        }
        let name = M::name();
        if M::VARIANTS.is_empty() {
            let payload = self.component(&name, M::schema());
            self.events.extend(M::EVENTS.iter().map(|event| (*event, payload.clone())));
            return;
        }
        let union = M::schema();
        if references(&union).contains(&*name) {
            self.insert(&name, union.clone());
        }
        for (event, variant) in M::EVENTS.iter().zip(M::VARIANTS) {
            let Some(content) = content_of_variant(&union, variant) else {
                self.problems.push(format!(
                    "`{}`: `utoipa` does not describe the variant `{variant}` in serde's default form",
                    type_name::<M>()
                ));
                continue;
            };
            let has_fields = matches!(&content, RefOr::T(Schema::Object(object)) if !object.properties.is_empty());
            let payload = if has_fields { self.component(&format!("{name}{variant}"), content) } else { content };
            self.events.push((event, payload));
        }
    }

    /// Adds a schema to the components, and returns a reference to it.
    fn component(&mut self, name: &str, schema: RefOr<Schema>) -> RefOr<Schema> {
        self.insert(name, schema);
        Ref::from_schema_name(name).into()
    }

    fn insert(&mut self, name: &str, schema: RefOr<Schema>) {
        if has_integer_keys(&schema) {
            self.problems.push(format!(
                "`{name}`: `utoipa` describes the keys of a map as integers, but they are texts in JSON. Describe the map \
                 with `#[schema(value_type = HashMap<String, …>)]`"
            ));
        }
        self.problems.extend(insert(&mut self.schemas, name, schema));
    }

    /// Returns the schema of an item of the stream: one alternative for each event.
    ///
    /// # Errors
    ///
    /// Returns an error if the description would be wrong: see [`StreamSchema`].
    pub fn item_schema(&self) -> Result<Schema, DescribeError> {
        DescribeError::of(&self.problems)?;
        let of_application = self.events.iter().map(|(event, payload)| frame(event, None, payload.clone()));
        let of_hub = HUB_EVENTS.iter().map(|HubEvent { name, type_name, doc, .. }| {
            frame(name, Some(doc), Ref::from_schema_name(*type_name).into())
        });
        let union = of_application.chain(of_hub).fold(OneOfBuilder::new(), OneOfBuilder::item);
        Ok(Schema::OneOf(union.build()))
    }

    /// Returns the schemas of the payloads and of their fields, by their names in the components of
    /// the document.
    ///
    /// # Errors
    ///
    /// Returns an error if the description would be wrong: see [`StreamSchema`].
    pub fn schemas(&self) -> Result<BTreeMap<String, RefOr<Schema>>, DescribeError> {
        DescribeError::of(&self.problems)?;
        Ok(self.schemas.clone())
    }

    /// Returns the response with the stream, for a handler that is described by hand. The document
    /// also needs the [`schemas`](Self::schemas).
    ///
    /// # Errors
    ///
    /// Returns an error if the description would be wrong: see [`StreamSchema`].
    pub fn response(&self) -> Result<Response, DescribeError> {
        let content: Content = ContentBuilder::new().item_schema(Some(self.item_schema()?)).build();
        let description = "A stream of events. Ignore events with other names: later versions may send them.";
        Ok(ResponseBuilder::new().description(description).content("text/event-stream", content).build())
    }

    /// Adds the stream to a document, as the operation `GET` of a path, and sets the version of the
    /// document to 3.2. If the document already describes this operation, its response `200` is
    /// replaced, and the rest of it stays.
    ///
    /// The new operation has the parameter `Last-Event-ID` and the responses `200`, `204`, `401`
    /// and `403`. `docs/wire.md` has their meaning.
    ///
    /// # Errors
    ///
    /// Returns an error if the description would be wrong: see [`StreamSchema`]. Also returns an
    /// error if the document has another schema with the name of a payload, or lacks a schema that
    /// a payload refers to. `#[schema(no_recursion)]` leaves such schemas out. After an error, the
    /// document is unchanged.
    pub fn add_to(&self, document: &mut OpenApi, path: &str) -> Result<(), DescribeError> {
        let (response, items) = (self.response()?, self.item_schema()?.into());
        let mut components = document.components.clone().unwrap_or_default();
        let conflicts =
            self.schemas.iter().filter_map(|(name, schema)| insert(&mut components.schemas, name, schema.clone()));
        DescribeError::of(&conflicts.collect::<Vec<_>>())?;
        let referenced: BTreeSet<_> = self.schemas.values().chain([&items]).flat_map(references).collect();
        let missing = referenced.iter().filter(|name| !components.schemas.contains_key(*name));
        let missing = missing.map(|name| format!("the schema `{name}` is missing: add it to the document"));
        DescribeError::of(&missing.collect::<Vec<_>>())?;

        document.openapi = OpenApiVersion::Version32;
        document.components = Some(components);
        let item = document.paths.paths.entry(path.to_owned()).or_default();
        let operation = item.get.get_or_insert_with(|| {
            OperationBuilder::new()
                .summary(Some("Opens a stream of Server-Sent Events"))
                .parameter(last_event_id())
                .response("204", Response::new("Do not reconnect."))
                .response("401", Response::new("Sign in first."))
                .response("403", Response::new("The client may not open this stream."))
                .build()
        });
        operation.responses.responses.insert("200".to_owned(), response.into());
        Ok(())
    }
}

impl Default for StreamSchema {
    fn default() -> Self {
        Self::new()
    }
}

opaque_debug!(|stream: StreamSchema| {
    events: stream.events.iter().map(|(event, _)| event).collect::<Vec<_>>(),
    problems: stream.problems,
});

/// Adds a schema. Returns the problem if there is another one with this name.
fn insert(schemas: &mut Schemas, name: &str, schema: RefOr<Schema>) -> Option<String> {
    match schemas.get(name) {
        Some(other) if *other != schema => {
            Some(format!("two schemas have the name `{name}`. Rename one with `#[schema(as = …)]`"))
        }
        Some(_) => None,
        None => {
            schemas.insert(name.to_owned(), schema);
            None
        }
    }
}

/// Returns the names of the schemas that a schema refers to.
fn references(schema: &RefOr<Schema>) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    visit_objects(&to_json(schema), &mut |fields| {
        let name = fields.get("$ref").and_then(|path| path.as_str()?.strip_prefix("#/components/schemas/"));
        found.extend(name.map(str::to_owned));
    });
    found
}

/// Returns whether a schema has a map whose keys are integers. No JSON has such a map.
fn has_integer_keys(schema: &RefOr<Schema>) -> bool {
    let mut found = false;
    visit_objects(&to_json(schema), &mut |fields| {
        let keys = fields.get("propertyNames").and_then(|keys| keys.get("type")?.as_str());
        found |= matches!(keys, Some("integer" | "number"));
    });
    found
}

/// Returns the JSON of a schema. If it could not be serialized, nor could the document.
fn to_json(schema: &RefOr<Schema>) -> serde_json::Value {
    serde_json::to_value(schema).unwrap_or_default()
}

fn visit_objects(json: &serde_json::Value, visit: &mut impl FnMut(&serde_json::Map<String, serde_json::Value>)) {
    match json {
        serde_json::Value::Object(fields) => {
            visit(fields);
            fields.values().for_each(|value| visit_objects(value, visit));
        }
        serde_json::Value::Array(items) => items.iter().for_each(|item| visit_objects(item, visit)),
        _ => {}
    }
}

/// Returns the schema of the content of a variant, from the schema of an enum in serde's default
/// form. The content of a variant without fields is `null`.
fn content_of_variant(union: &RefOr<Schema>, variant: &str) -> Option<RefOr<Schema>> {
    let RefOr::T(union) = union else { return None };
    let is_alone = |object: &Object| {
        object.enum_values.as_ref().is_some_and(|values| values.iter().any(|value| value.as_str() == Some(variant)))
    };
    let content = |object: &Object| {
        let content = object.properties.get(variant).filter(|_| object.properties.len() == 1);
        content.cloned().or_else(|| is_alone(object).then(|| of_type(Type::Null).build().into()))
    };
    match union {
        Schema::OneOf(union) => union.items.iter().find_map(|item| match item {
            RefOr::T(Schema::Object(object)) => content(object),
            _ => None,
        }),
        // An enum whose variants have no content.
        Schema::Object(object) => content(object),
        _ => None,
    }
}

/// Returns the schema of the frames of an event.
fn frame(event: &str, description: Option<&str>, payload: RefOr<Schema>) -> Schema {
    let mut data = of_type(Type::String).content_media_type("application/json").build();
    data.content_schema = Some(Box::new(payload));
    of_type(Type::Object)
        .title(Some(event))
        .description(description)
        .property("event", of_type(Type::String).enum_values(Some([event])))
        .property("data", data)
        .property("id", of_type(Type::String))
        .property("retry", of_type(Type::Integer).minimum(Some(0)))
        .required("event")
        .required("data")
        .build()
        .into()
}

fn payload_of_hub(event: &HubEvent) -> Schema {
    let payload = of_type(Type::Object).description(Some(event.doc));
    let payload = event.fields.iter().fold(payload, |payload, Field { name, doc, value, is_optional }| {
        let payload = payload.property(*name, value_of_hub(value, doc));
        if *is_optional { payload } else { payload.required(*name) }
    });
    payload.build().into()
}

fn value_of_hub(value: &Value, doc: &str) -> Schema {
    let words = |words: fn() -> Vec<&'static str>| of_type(Type::String).enum_values(Some(words()));
    let object = match value {
        Value::Text => of_type(Type::String),
        Value::Texts => return of_type(Type::String).to_array_builder().description(Some(doc)).build().into(),
        Value::Number => of_type(Type::Integer).minimum(Some(0)),
        Value::Word(known) => words(*known),
        // Later versions may have more words.
        Value::OpenWord(known) => {
            let any = AnyOfBuilder::new().item(words(*known)).item(of_type(Type::String));
            return any.description(Some(doc)).build().into();
        }
        Value::AnyJson => ObjectBuilder::new().schema_type(SchemaType::AnyValue),
    };
    object.description(Some(doc)).build().into()
}

fn of_type(of: Type) -> ObjectBuilder {
    ObjectBuilder::new().schema_type(of)
}

fn last_event_id() -> Parameter {
    ParameterBuilder::new()
        .name("Last-Event-ID")
        .parameter_in(ParameterIn::Header)
        .description(Some("The last id that the client has received, to resume after it."))
        .schema(Some(of_type(Type::String)))
        .build()
}
