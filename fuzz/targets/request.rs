//! Any query, id and `Accept` header: the hub responds without a panic, and permits only topics
//! that the filter matches.
#![no_main]

use http::{HeaderValue, Request, Uri};
use libfuzzer_sys::fuzz_target;
use tower_sse::{Public, StreamRequest, Topic, TopicFilter};

fuzz_target!(|input: (&str, &[u8], &[u8])| {
    let (query, last_event_id, accept) = input;
    let Ok(uri) = format!("/events?{query}").parse::<Uri>() else { return };
    let mut request = Request::get(uri).body(()).unwrap();
    for (name, value) in [("last-event-id", last_event_id), ("accept", accept)] {
        if let Ok(value) = HeaderValue::from_bytes(value) {
            request.headers_mut().insert(name, value);
        }
    }
    let stream_request = StreamRequest::from_request(&request);
    let _ = stream_request.cursor();
    let rule = TopicFilter::prefix("public/");
    if let Ok(subscription) = Public::topics(rule.clone()).subscription(&stream_request) {
        assert!(subscription.topics().iter().all(|topic: &Topic| rule.matches(topic)));
    }
    let hub = tower_sse::Hub::builder().build().unwrap();
    let response = hub.respond(stream_request, tower_sse::Subscription::anonymous()).into_response();
    // 204 is the answer to the id of a banned client, which the fuzzer finds at times.
    assert!(matches!(response.status().as_u16(), 200 | 204 | 406));
});
