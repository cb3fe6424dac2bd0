//! The messages of these tests, in every form that serde has for them.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use tower_sse::{Message, StreamSchema, TypeScript};
use ts_rs::TS;
use utoipa::ToSchema;

/// A document was deleted: `documents/*/7`.
#[derive(Serialize, Deserialize, Message, TS, ToSchema)]
#[message(event = "document.deleted", key = "id")]
#[serde(rename_all = "camelCase")]
pub(crate) struct DocumentDeleted {
    pub(crate) id: u32,
    /// The user who deleted it: "ada" | { "ben" } */.
    pub(crate) deleted_by: String,
    pub(crate) note: Option<String>,
}

#[derive(Serialize, Deserialize, Message, TS, ToSchema)]
#[serde(rename_all_fields = "camelCase")]
pub(crate) enum Order {
    #[message(event = "order.paid")]
    // utoipa does not read `rename_all_fields`.
    #[schema(rename_all = "camelCase")]
    Paid { order_id: u32, cents: u32, method: Method },
    #[message(event = "order.shipped")]
    Shipped(Parcel),
    #[message(event = "order.split")]
    Split(u32, u32),
    #[message(event = "order.list.changed")]
    ListChanged,
    #[message(event = "order.nested")]
    #[schema(no_recursion)]
    Nested(Option<Box<Order>>),
}

#[derive(Serialize, Deserialize, TS, ToSchema)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Method {
    Card,
    Invoice { days: u8 },
}

#[derive(Serialize, Deserialize, TS, ToSchema)]
pub(crate) struct Parcel {
    pub(crate) carrier: String,
    #[schema(value_type = BTreeMap<String, f64>)]
    pub(crate) weights: BTreeMap<u64, f64>,
    /// An integer that is too large for JavaScript, as text.
    #[serde(with = "as_text")]
    #[ts(type = "string")]
    #[schema(value_type = String)]
    pub(crate) barcode: u64,
    #[ts(type = "number")]
    pub(crate) at: u64,
}

mod as_text {
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    pub(super) fn serialize<S: Serializer>(number: &u64, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(number)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u64, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(Error::custom)
    }
}

#[derive(Serialize, Deserialize, Message, TS, ToSchema)]
#[message(event = "page")]
pub(crate) struct Page<T> {
    pub(crate) items: Vec<T>,
    pub(crate) more: bool,
}

#[derive(Serialize, Deserialize, Message, TS, ToSchema)]
#[message(event = "words \"quoted\"")]
pub(crate) struct Words(pub(crate) Vec<String>);

#[derive(Serialize, Deserialize, Message, TS, ToSchema)]
#[message(event = "ping")]
pub(crate) struct Ping;

/// The module with all messages.
pub(crate) fn module() -> TypeScript {
    TypeScript::new()
        .message::<DocumentDeleted>()
        .message::<Order>()
        .message::<Page<Parcel>>()
        .message::<Words>()
        .message::<Ping>()
}

/// The schema of a stream with all messages.
pub(crate) fn schema() -> StreamSchema {
    StreamSchema::new()
        .message::<DocumentDeleted>()
        .message::<Order>()
        .message::<Page<Parcel>>()
        .message::<Words>()
        .message::<Ping>()
}

pub(crate) fn parcel() -> Parcel {
    Parcel {
        carrier: "Post".into(),
        weights: [(1, 0.5), (u64::MAX, 2.0)].into(),
        barcode: u64::MAX,
        at: 1_790_000_000_000,
    }
}
