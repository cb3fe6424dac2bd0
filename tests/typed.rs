//! Typed events: `#[derive(Message)]`, `send`, and `ReceivedEvent::message`.

#![allow(clippy::unwrap_used, clippy::panic, reason = "these are tests, helpers and all")]

use futures::FutureExt;
use proptest::prelude::*;
use serde::{Deserialize, Serialize};
use tower_sse::{
    Event, Hub, Message, ReceivedEvent, Retention, Subscriber, SubscriberItem, Subscription, TopicFilter, TypedTopic,
};

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, Message)]
#[message(event = "document.deleted", key = "id")]
#[serde(rename_all = "camelCase")]
struct DocumentDeleted {
    id: u64,
    deleted_by: String,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, Message)]
#[message(event = "words", key = "1")]
struct Words(Vec<String>, String);

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, Message)]
#[serde(rename_all_fields = "camelCase")]
enum Order {
    #[message(event = "order.paid", key = "order_id")]
    Paid { order_id: u64, cents: u32 },
    #[message(event = "order.shipped")]
    Shipped(String),
    #[message(event = "order.split", key = "0")]
    Split(u64, u64),
    #[message(event = "order.list.changed")]
    ListChanged,
    #[message(event = "order.nested")]
    Nested(Option<Box<Order>>),
}

#[derive(Debug, Serialize, Message)]
#[message(event = "borrowed")]
struct Borrowed<'a, T: Serialize> {
    text: &'a str,
    other: T,
}

#[derive(Clone, Debug, PartialEq, TypedTopic)]
#[topic(name = "tenants/{tenant}/orders/{id}", carries(Order, DocumentDeleted))]
struct OrderTopic {
    tenant: String,
    id: u64,
}

#[derive(Debug, PartialEq, TypedTopic)]
#[topic(name = "news")]
struct News;

/// The names of the variables of the macro, and a raw identifier.
#[derive(Debug, PartialEq, TypedTopic)]
#[topic(name = "{topic}/{segments}/{name}/{read}/{written}/{type}")]
struct Hygiene {
    topic: String,
    segments: u8,
    name: u8,
    read: u8,
    written: u8,
    r#type: u8,
}

#[derive(Debug, Serialize, Message)]
#[message(event = "hygiene", key = "type")]
struct HygieneOfMessage {
    key: u8,
    r#type: u8,
}

/// An enum that is serialized in another form.
#[derive(Message)]
enum Tagged {
    #[message(event = "tagged")]
    Tagged { id: u64 },
}

impl Serialize for Tagged {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let Self::Tagged { id } = self;
        serde_json::json!({ "kind": "Tagged", "id": id }).serialize(serializer)
    }
}

/// A type that implements the trait by hand.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct ByHand(u8);

impl Message for ByHand {
    const EVENTS: &'static [&'static str] = &["by.hand"];

    fn event(&self) -> &'static str {
        "by.hand"
    }
}

async fn next_event(page: &mut Subscriber) -> ReceivedEvent {
    loop {
        match page.next().await {
            Some(SubscriberItem::Event(event)) => return event,
            Some(SubscriberItem::Live(_)) => {}
            other => panic!("no event: {other:?}"),
        }
    }
}

/// Sends a message to a user. Returns the event as the user's page receives it.
async fn sent<M: Message>(message: &M) -> ReceivedEvent {
    let hub = Hub::builder().build().unwrap();
    let mut page = hub.subscribe(Subscription::for_user("ada"), None).unwrap();
    hub.user("ada").send(message).await.unwrap();
    next_event(&mut page).await
}

#[tokio::test]
async fn a_message_is_an_event_with_the_name_of_its_type_and_its_value_as_json() {
    let shape = |event: ReceivedEvent| (event.name, event.data);
    let shape_of = async |order| shape(sent::<Order>(&order).await);
    let is = |name: &str, data: &str| (name.to_owned(), data.to_owned());

    let deleted = DocumentDeleted { id: 7, deleted_by: "ben".into() };
    assert_eq!(shape(sent(&deleted).await), is("document.deleted", r#"{"id":7,"deletedBy":"ben"}"#));
    assert_eq!(shape(sent(&Words(vec!["a".into()], "k".into())).await), is("words", r#"[["a"],"k"]"#));
    assert_eq!(shape(sent(&Borrowed { text: "a", other: 1 }).await), is("borrowed", r#"{"text":"a","other":1}"#));
    assert_eq!(shape(sent(&ByHand(3)).await), is("by.hand", "3"));
    let paid = Order::Paid { order_id: 8, cents: 990 };
    assert_eq!(shape_of(paid.clone()).await, is("order.paid", r#"{"orderId":8,"cents":990}"#));
    assert_eq!(shape_of(Order::Shipped("a\"}\n".into())).await, is("order.shipped", r#""a\"}\n""#));
    assert_eq!(shape_of(Order::Split(1, 2)).await, is("order.split", "[1,2]"));
    assert_eq!(shape_of(Order::ListChanged).await, is("order.list.changed", "null"));
    let nested = Order::Nested(Some(Box::new(paid)));
    assert_eq!(shape_of(nested).await, is("order.nested", r#"{"Paid":{"orderId":8,"cents":990}}"#));
}

#[test]
fn the_type_knows_its_events_and_the_value_its_key() {
    assert_eq!(DocumentDeleted::EVENTS, ["document.deleted"]);
    let names = ["order.paid", "order.shipped", "order.split", "order.list.changed", "order.nested"];
    assert_eq!(Order::EVENTS, names);
    assert_eq!(DocumentDeleted { id: 7, deleted_by: String::new() }.key().as_deref(), Some("7"));
    assert_eq!(Words(Vec::new(), "k".into()).key().as_deref(), Some("k"));
    assert_eq!(Order::Paid { order_id: 8, cents: 1 }.key().as_deref(), Some("8"));
    assert_eq!(Order::Split(1, 2).key().as_deref(), Some("1"));
    assert_eq!(Order::Shipped("post".into()).key(), None);
}

/// The data would otherwise be lost without an error.
#[test]
fn an_enum_in_another_form_is_an_error() {
    let error = Tagged::Tagged { id: 7 }.to_event().unwrap_err();
    assert!(error.is_invalid(), "{error}");
}

#[test]
fn fields_may_have_any_name() {
    let topic = Hygiene { topic: "a".into(), segments: 1, name: 2, read: 3, written: 4, r#type: 5 };
    assert_eq!(topic.to_topic().unwrap().as_str(), "a/1/2/3/4/5");
    assert_eq!(Hygiene::from_topic("a/1/2/3/4/5"), Some(topic));
    assert_eq!(HygieneOfMessage { key: 1, r#type: 2 }.key().as_deref(), Some("2"));
}

#[tokio::test]
async fn the_key_of_a_message_is_the_key_of_a_current_value() {
    let hub =
        Hub::builder().retention_for(TopicFilter::exact("documents"), Retention::latest_per_key()).build().unwrap();
    for (id, by) in [(7, "ada"), (8, "ben"), (7, "cyd")] {
        hub.topic("documents").send(&DocumentDeleted { id, deleted_by: by.into() }).await.unwrap();
    }
    let mut page = hub.subscribe(Subscription::anonymous().topic("documents"), None).unwrap();
    let mut current = Vec::new();
    for _ in 0..2 {
        current.push(next_event(&mut page).await.message::<DocumentDeleted>().unwrap().unwrap());
    }
    let expected = [(8, "ben"), (7, "cyd")].map(|(id, by)| DocumentDeleted { id, deleted_by: by.into() });
    assert_eq!(current, expected);
}

#[tokio::test]
async fn a_run_has_the_messages_of_its_writer() {
    let hub = Hub::builder().build().unwrap();
    let run = hub.run("orders/8");
    let writer = run.begin().await.unwrap();
    assert_eq!(writer.send(&Order::Split(1, 2)).await.unwrap(), 0);
    assert_eq!(writer.send(&ByHand(3)).await.unwrap(), 1);
    let mut page = hub.subscribe(Subscription::run(run.reader().await.unwrap()), None).unwrap();
    assert_eq!(next_event(&mut page).await.message().unwrap(), Some(Order::Split(1, 2)));
    assert_eq!(next_event(&mut page).await.message().unwrap(), Some(ByHand(3)));
    writer.finish().await.unwrap();
}

#[tokio::test]
async fn an_event_of_another_name_is_none_and_other_data_is_an_error() {
    let hub = Hub::builder().build().unwrap();
    let mut page = hub.subscribe(Subscription::for_user("ada"), None).unwrap();
    for event in [Event::new("order", "1"), Event::unnamed("{}"), Event::new("Paid", r#"{"orderId":8,"cents":1}"#)] {
        hub.user("ada").publish(event).await.unwrap();
        assert_eq!(next_event(&mut page).await.message::<Order>().unwrap(), None);
    }
    // The last one would add a second variant to the JSON of the enum.
    for data in ["", "7", "{\"orderId\":8}", "not JSON", r#"{"orderId":8,"cents":1},"Shipped":"x""#] {
        hub.user("ada").publish(Event::new("order.paid", data)).await.unwrap();
        assert!(next_event(&mut page).await.message::<Order>().is_err(), "{data}");
    }
}

#[tokio::test]
async fn a_typed_topic_is_the_topic_of_its_name() {
    let log = tower_sse::backplane::Memory::new();
    let hub = Hub::builder().backplane(log.clone()).build().unwrap();
    while !hub.is_ready() {
        tokio::time::sleep(std::time::Duration::from_millis(1)).await;
    }
    let publisher = tower_sse::Publisher::new(log).unwrap();
    let topic = OrderTopic { tenant: "acme".into(), id: 7 };
    let mut page = hub.subscribe(Subscription::anonymous().topic("tenants/acme/orders/7"), None).unwrap();
    hub.typed_topic(&topic).send(&Order::Split(1, 2)).await.unwrap();
    publisher.typed_topic(&topic).send(&Order::Split(3, 4)).await.unwrap();
    hub.typed_topic(&topic).untyped().publish(Event::new("order.split", "[5,6]")).await.unwrap();
    for expected in [(1, 2), (3, 4), (5, 6)] {
        let event = next_event(&mut page).await;
        assert_eq!(event.message().unwrap(), Some(Order::Split(expected.0, expected.1)));
        assert_eq!(OrderTopic::from_topic(event.topic.unwrap().as_str()).as_ref(), Some(&topic));
    }
}

/// Otherwise a client that chooses the text of a field would choose another topic.
#[tokio::test]
async fn the_text_of_a_field_is_one_segment() {
    let hub = Hub::builder().build().unwrap();
    for tenant in ["", "a/b", "/", "line\nbreak"] {
        let topic = OrderTopic { tenant: tenant.into(), id: 7 };
        assert!(topic.to_topic().is_err(), "{tenant:?}");
        assert!(hub.typed_topic(&topic).send(&Order::Split(1, 2)).await.unwrap_err().is_invalid(), "{tenant:?}");
    }
    for name in [
        "",
        "tenants/acme/orders",
        "tenants/acme/orders/",
        "tenants/acme/orders/7/8",
        "tenants//orders/7",
        "tenants/acme/orders/+7",
        "tenants/acme/orders/07",
        "tenants/acme/orders/x",
        "Tenants/acme/orders/7",
        "/tenants/acme/orders/7",
    ] {
        assert_eq!(OrderTopic::from_topic(name), None, "{name:?}");
    }
    assert_eq!(OrderTopic::NAME, "tenants/{tenant}/orders/{id}");
    assert_eq!((News::from_topic("news"), News::from_topic("news/")), (Some(News), None));
    assert_eq!(News.to_topic().unwrap().as_str(), "news");
}

fn orders() -> impl Strategy<Value = Order> {
    let leaf = prop_oneof![
        (any::<u64>(), any::<u32>()).prop_map(|(order_id, cents)| Order::Paid { order_id, cents }),
        any::<String>().prop_map(Order::Shipped),
        (any::<u64>(), any::<u64>()).prop_map(|(a, b)| Order::Split(a, b)),
        Just(Order::ListChanged),
        Just(Order::Nested(None)),
    ];
    leaf.prop_recursive(3, 8, 1, |inner| inner.prop_map(|order| Order::Nested(Some(Box::new(order)))))
}

proptest! {
    #[test]
    fn the_name_of_a_typed_topic_is_read_as_the_value_that_wrote_it(tenant in ".*", id: u64) {
        let topic = OrderTopic { tenant, id };
        if let Ok(name) = topic.to_topic() {
            prop_assert_eq!(OrderTopic::from_topic(name.as_str()), Some(topic));
        }
    }

    /// Two names of one value would be two topics.
    #[test]
    fn a_name_that_a_typed_topic_reads_is_the_name_that_it_writes(name in "tenants/.{0,5}/orders/.{0,3}") {
        if let Some(topic) = OrderTopic::from_topic(&name) {
            let written = topic.to_topic().unwrap();
            prop_assert_eq!(written.as_str(), name);
        }
    }

    #[test]
    fn a_message_is_parsed_to_the_value_that_was_sent(order in orders()) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let event = runtime.block_on(sent(&order));
        prop_assert_eq!(event.message::<Order>().unwrap(), Some(order));
    }
}

#[test]
fn an_invalid_topic_converts_into_the_error_of_subscribe() {
    #[derive(TypedTopic)]
    #[topic(name = "rooms/{room}")]
    struct RoomTopic {
        room: String,
    }

    fn watch(hub: &Hub, room: &str) -> Result<(), tower_sse::SubscriptionError> {
        let topic = RoomTopic { room: room.to_owned() }.to_topic()?;
        hub.subscribe(Subscription::anonymous().topic(topic), None).map(drop)
    }

    let hub = Hub::builder().build().unwrap();
    assert!(watch(&hub, "lobby").is_ok());
    let error = watch(&hub, "a/b").unwrap_err();
    assert!(error.is_invalid() && error.status_code() == 400, "{error}");
}

#[tokio::test]
async fn a_removal_has_json_as_data_and_removes_the_value_of_its_key() {
    let hub =
        Hub::builder().retention_for(TopicFilter::exact("documents"), Retention::latest_per_key()).build().unwrap();
    let documents = || hub.topic("documents");
    let deleted = DocumentDeleted { id: 7, deleted_by: "ben".into() };
    documents().publish(Event::new("document", "a").key("7")).await.unwrap();
    documents().publish(Event::new("document", "b").key("8")).await.unwrap();
    let mut open = hub.subscribe(Subscription::anonymous().topic("documents"), None).unwrap();
    documents().publish(deleted.to_removal().unwrap()).await.unwrap();

    // A page that is opened now gets only the other value.
    let mut new = hub.subscribe(Subscription::anonymous().topic("documents"), None).unwrap();
    assert_eq!(new.next_event().await.unwrap().data, "b");
    assert!(new.next_event().now_or_never().is_none());
    // Open pages get the removal.
    let mut received = Vec::new();
    while let Some(event) = open.next_event().now_or_never() {
        received.push(event.unwrap());
    }
    let last = received.last().unwrap();
    assert_eq!((&*last.name, &*last.data), ("document.deleted", r#"{"id":7,"deletedBy":"ben"}"#));
    assert_eq!(last.message().unwrap(), Some(deleted));
}

#[test]
fn a_removal_without_a_key_is_an_error() {
    let error = Order::ListChanged.to_removal().unwrap_err();
    assert!(error.is_invalid());
    assert_eq!(error.to_string(), "key is empty");
}
