//! Any published event: it is rejected and uses no position, or an in-process stream and an
//! independent parser of the wire read it back, with normalized line breaks.
#![no_main]

use eventsource_stream::Eventsource;
use futures::{FutureExt, StreamExt, stream};
use http_body_util::BodyExt;
use libfuzzer_sys::fuzz_target;
use tower_sse::{Cursor, Event, Hub, StreamRequest, SubscriberItem, Subscription};

fuzz_target!(|input: (&str, &str, Option<&str>)| {
    let (name, data, key) = input;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    let hub = Hub::builder().build().unwrap();
    let mut event = Event::new(name.to_owned(), data.to_owned());
    if let Some(key) = key {
        event = event.key(key.to_owned());
    }
    let subscription = || Subscription::anonymous().topic("t");
    let mut local = hub.subscribe(subscription(), Cursor::Absent).unwrap();
    let request = http::Request::get("/").body(()).unwrap();
    let body = hub.respond(StreamRequest::from_request(&request), subscription()).into_response().into_body();
    if hub.topic("t").publish_now(event).is_err() {
        assert!(hub.position().to_string().ends_with(".0"), "a rejected event used a position");
        return;
    }
    let read = data.replace("\r\n", "\n").replace('\r', "\n");

    let Some(SubscriberItem::Event(received)) = local.next().now_or_never().flatten() else { panic!("no event") };
    assert_eq!((received.name.as_str(), received.data.as_str()), (name, read.as_str()));

    let bytes = runtime.block_on(async {
        let mut body = std::pin::pin!(body);
        let mut bytes = Vec::new();
        // `hub.hello`, the event and `hub.live`.
        for _ in 0..3 {
            bytes.extend(body.frame().await.unwrap().unwrap().into_data().unwrap());
        }
        bytes
    });
    let chunks = bytes.chunks(1).map(|byte| Ok::<_, std::convert::Infallible>(byte.to_vec()));
    let events: Vec<_> = stream::iter(chunks).eventsource().map(Result::unwrap).collect().now_or_never().unwrap();
    assert_eq!(events.len(), 3);
    assert_eq!(events[1].event, if name.is_empty() { "message" } else { name });
    assert_eq!(events[1].data, read);
});
