//! Runs: one writer, any number of readers, and an end. With one instance, and with several that
//! share a `Memory`.

use std::time::Duration;

use http_body_util::BodyExt;
use tower::Service;
use tower_sse::backplane::Memory;
use tower_sse::{
    EndReason, Event, Hub, HubBuilder, Public, Run, RunEnd, RunState, StreamRequest, Subscriber, SubscriberItem,
    Subscription, TopicFilter,
};

/// Reads a stream to its end. Returns the data of its events, and the reason of its end.
async fn read(mut stream: Subscriber) -> (Vec<String>, EndReason) {
    let mut events = Vec::new();
    while let Some(item) = stream.next().await {
        match item {
            SubscriberItem::Event(event) => events.push(event.data),
            SubscriberItem::End(reason) => return (events, reason),
            _ => {}
        }
    }
    panic!("the stream has no end: {events:?}");
}

async fn open(hub: &Hub, run: &Run) -> Subscriber {
    hub.subscribe(Subscription::run(run.reader().await.unwrap()), None).unwrap()
}

/// Returns the next event of a stream.
async fn next_event(stream: &mut Subscriber) -> String {
    stream.next_event().await.unwrap().data
}

fn event(data: impl Into<String>) -> Event {
    Event::unnamed(data.into())
}

/// A hub, and a second hub that may be the same, or another instance.
async fn one_and_two_instances() -> Vec<(&'static str, Hub, Hub)> {
    let alone = Hub::builder().build().unwrap();
    let (one, two) = instances(|builder| builder).await;
    vec![("one instance", alone.clone(), alone), ("two instances", one, two)]
}

async fn instances(settings: impl Fn(HubBuilder) -> HubBuilder) -> (Hub, Hub) {
    let log = Memory::new();
    let build = || settings(Hub::builder()).backplane(log.clone()).build().unwrap();
    let (one, two) = (build(), build());
    while !(one.is_ready() && two.is_ready()) {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    (one, two)
}

fn request(method: &str, cursor: Option<&str>, accept: &str) -> StreamRequest {
    let mut request = http::Request::builder().method(method).uri("/answers/7").header("accept", accept);
    if let Some(cursor) = cursor {
        request = request.header("last-event-id", cursor);
    }
    StreamRequest::from_request(&request.body(()).unwrap())
}

#[tokio::test]
async fn readers_receive_every_event_in_order_and_the_end() {
    for (name, one, two) in one_and_two_instances().await {
        let writer = one.run("answers/7").begin().await.unwrap();
        assert_eq!(writer.publish(event("0")).await.unwrap(), 0);
        let early = open(&two, &two.run("answers/7")).await;
        assert_eq!(writer.publish_many([event("1"), event("2")]).await.unwrap(), 1);
        let late = open(&two, &two.run("answers/7")).await;
        let here = open(&one, &one.run("answers/7")).await;
        writer.finish_with(event("3")).await.unwrap();
        let after = open(&two, &two.run("answers/7")).await;
        for stream in [early, late, here, after] {
            let expected = ["0", "1", "2", "3"].map(str::to_owned).to_vec();
            assert_eq!(read(stream).await, (expected, EndReason::Finished), "{name}");
        }
    }
}

#[tokio::test]
async fn a_run_has_one_writer_and_begins_anew_after_its_end() {
    for (name, one, two) in one_and_two_instances().await {
        let run = one.run("answers/7");
        assert_eq!(run.state().await.unwrap(), RunState::None, "{name}");
        let writer = run.begin().await.unwrap();
        assert!(two.run("answers/7").begin().await.unwrap_err().is_active(), "{name}");
        assert_eq!(two.run("answers/7").state().await.unwrap(), RunState::Active, "{name}");
        writer.fail("out of paper").await.unwrap();
        assert_eq!(two.run("answers/7").state().await.unwrap(), RunState::Ended(RunEnd::Failed), "{name}");
        let second = two.run("answers/7").begin().await.unwrap();
        second.publish(event("second")).await.unwrap();
        second.finish().await.unwrap();
        assert_eq!(read(open(&one, &run).await).await, (vec!["second".to_owned()], EndReason::Finished), "{name}");
    }
}

#[tokio::test]
async fn of_many_simultaneous_beginnings_one_succeeds() {
    for (name, one, two) in one_and_two_instances().await {
        let begin = |hub: &Hub| hub.run("answers/7").begin().into_future();
        let begun = futures::future::join_all((0..16).map(|n| begin(if n % 2 == 0 { &one } else { &two }))).await;
        let writers: Vec<_> = begun.into_iter().filter_map(Result::ok).collect();
        assert_eq!(writers.len(), 1, "{name}");
        assert_eq!(two.run("answers/7").state().await.unwrap(), RunState::Active, "{name}");
    }
}

#[tokio::test]
async fn stop_reaches_the_writer_of_any_instance() {
    for (name, one, two) in one_and_two_instances().await {
        assert!(!two.run("answers/7").stop().await.unwrap(), "{name}: nothing is active");
        let writer = one.run("answers/7").begin().await.unwrap();
        assert!(!writer.is_stopped());
        assert!(two.run("answers/7").stop().await.unwrap(), "{name}");
        writer.stopped().await;
        writer.finish_with(event("stopped here")).await.unwrap();
        let stream = open(&two, &two.run("answers/7")).await;
        assert_eq!(read(stream).await, (vec!["stopped here".to_owned()], EndReason::Stopped), "{name}");
    }
}

#[tokio::test]
async fn a_dropped_writer_ends_its_run_with_the_last_will() {
    for (name, one, two) in one_and_two_instances().await {
        let writer = one.run("answers/7").begin().last_will(event("interrupted")).await.unwrap();
        writer.publish(event("0")).await.unwrap();
        let stream = open(&two, &two.run("answers/7")).await;
        drop(writer);
        let expected = vec!["0".to_owned(), "interrupted".to_owned()];
        assert_eq!(read(stream).await, (expected, EndReason::Aborted), "{name}");
        assert_eq!(two.run("answers/7").state().await.unwrap(), RunState::Ended(RunEnd::Aborted), "{name}");
    }
}

#[tokio::test]
async fn a_begin_that_is_dropped_leaves_no_active_run() {
    let (one, two) = instances(|builder| builder).await;
    for polls in 0..4 {
        let run = one.run(format!("answers/{polls}"));
        let mut begin = run.begin().into_future();
        for _ in 0..polls {
            if futures::poll!(&mut begin).is_ready() {
                break;
            }
            tokio::task::yield_now().await;
        }
        drop(begin);
        while two.run(format!("answers/{polls}")).state().await.unwrap() == RunState::Active {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}

#[tokio::test]
async fn a_drain_ends_the_runs_of_its_instance_with_their_last_wills() {
    for (name, one, two) in one_and_two_instances().await {
        let writer = one.run("answers/7").begin().last_will(event("interrupted")).await.unwrap();
        writer.publish(event("0")).await.unwrap();
        let stream = tokio::spawn(read(open(&two, &two.run("answers/7")).await));
        one.drain(Duration::ZERO).await;
        let expected = vec!["0".to_owned(), "interrupted".to_owned()];
        assert_eq!(stream.await.unwrap(), (expected, EndReason::Aborted), "{name}");
        assert!(writer.publish(event("1")).await.unwrap_err().is_ended(), "{name}");
    }
}

#[tokio::test]
async fn a_run_outlives_the_instance_of_its_reader_and_its_resume_has_the_rest() {
    let (one, two) = instances(|builder| builder).await;
    let writer = one.run("answers/7").begin().await.unwrap();
    writer.publish_many([event("0"), event("1")]).await.unwrap();
    let mut stream = open(&two, &two.run("answers/7")).await;
    let Some(SubscriberItem::Event(first)) = stream.next().await else { panic!("no event") };
    drop(stream);
    let reader = one.run("answers/7").reader().await.unwrap();
    let rest = one.subscribe(Subscription::run(reader), first.position).unwrap();
    writer.finish().await.unwrap();
    assert_eq!(read(rest).await, (vec!["1".to_owned()], EndReason::Finished));
}

#[tokio::test]
async fn a_limit_of_a_run_is_an_error_of_its_writer() {
    let hub = Hub::builder().run_max_events(2).build().unwrap();
    let writer = hub.run("a").begin().await.unwrap();
    writer.publish_many([event("0"), event("1")]).await.unwrap();
    assert!(writer.publish(event("2")).await.unwrap_err().is_over_limit());
    // A writer at a limit can still tell its readers how the run ends.
    writer.finish_with(event("end")).await.unwrap();
    let (events, reason) = read(open(&hub, &hub.run("a")).await).await;
    assert_eq!((&events[..], reason), (&["0".to_owned(), "1".to_owned(), "end".to_owned()][..], EndReason::Finished));

    let hub = Hub::builder().run_max_bytes(64).build().unwrap();
    let writer = hub.run("a").begin().await.unwrap();
    writer.publish(event("0")).await.unwrap();
    assert!(writer.publish(event("x".repeat(64))).await.unwrap_err().is_over_limit());
    writer.finish().await.unwrap();
    assert_eq!(read(open(&hub, &hub.run("a")).await).await.0, ["0"]);
}

#[tokio::test(start_paused = true)]
async fn an_ended_run_is_kept_for_its_time_and_then_forgotten() {
    let hub = Hub::builder().run_keep_for(Duration::from_secs(60)).build().unwrap();
    hub.run("a").begin().await.unwrap().finish_with(event("0")).await.unwrap();
    tokio::time::sleep(Duration::from_secs(59)).await;
    assert_eq!(read(open(&hub, &hub.run("a")).await).await.0, ["0"]);
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert_eq!(hub.run("a").state().await.unwrap(), RunState::None);
}

#[tokio::test]
async fn the_answer_depends_on_the_cursor_and_the_run() {
    const EVENT_SOURCE: &str = "text/event-stream";
    for (name, one, two) in one_and_two_instances().await {
        let ask = async |hub: &Hub, request: StreamRequest| {
            let reader = hub.run("answers/7").reader().await.unwrap();
            hub.respond(request, Subscription::run(reader)).into_response()
        };
        assert_eq!(ask(&two, request("GET", None, EVENT_SOURCE)).await.status(), 204, "{name}: no run");
        assert_eq!(ask(&two, request("GET", Some("1.5.1"), EVENT_SOURCE)).await.status(), 404, "{name}: forgotten");

        let writer = one.run("answers/7").begin().await.unwrap();
        writer.publish_many([event("a"), event("b")]).await.unwrap();
        let mut stream = open(&one, &one.run("answers/7")).await;
        let mut ids = Vec::new();
        while ids.len() < 2 {
            if let Some(SubscriberItem::Event(event)) = stream.next().await {
                ids.push(event.position.to_string());
            }
        }
        assert_eq!(ask(&two, request("GET", Some(&ids[1]), EVENT_SOURCE)).await.status(), 200, "{name}: active");
        assert_eq!(
            ask(&two, request("GET", Some("1.5.1"), EVENT_SOURCE)).await.status(),
            404,
            "{name}: of another run"
        );
        writer.finish().await.unwrap();

        let whole = ask(&two, request("GET", None, EVENT_SOURCE)).await.into_body().collect().await.unwrap();
        let whole = String::from_utf8(whole.to_bytes().to_vec()).unwrap();
        assert!(whole.contains("data: a\n") && whole.contains("data: b\n"), "{name}: {whole}");
        let bye = "event: hub.bye\ndata: {\"reason\":\"finished\",\"reconnect\":\"never\"}\n\n";
        assert!(whole.ends_with(bye), "{name}: {whole}");
        let rest = ask(&two, request("GET", Some(&ids[0]), EVENT_SOURCE)).await.into_body().collect().await.unwrap();
        let rest = String::from_utf8(rest.to_bytes().to_vec()).unwrap();
        assert!(!rest.contains("data: a\n") && rest.contains("data: b\n"), "{name}: {rest}");
        // After the last event, `204` stops an `EventSource`. Other clients receive the end.
        assert_eq!(ask(&two, request("GET", Some(&ids[1]), EVENT_SOURCE)).await.status(), 204, "{name}");
        assert_eq!(ask(&two, request("GET", Some(&ids[1]), "*/*")).await.status(), 200, "{name}");
        let reader = two.run("answers/7").reader().await.unwrap();
        let only_active = two.respond(request("GET", None, "*/*"), Subscription::run(reader).only_while_active());
        let only_active = only_active.into_response();
        assert_eq!(only_active.status(), 204, "{name}");
        // The answer is another one as soon as the next run begins.
        assert_eq!(only_active.headers()["cache-control"], "no-store", "{name}");
    }
}

#[tokio::test]
async fn a_run_begins_once_for_a_request_that_resumes_with_the_same_post() {
    let hub = Hub::builder().build().unwrap();
    let run = hub.run("answers/7");
    assert!(run.begin_for(&request("HEAD", None, "*/*")).await.unwrap().is_none());
    assert!(run.begin_for(&request("POST", Some("1.5.1"), "*/*")).await.unwrap().is_none());
    let writer = run.begin_for(&request("POST", None, "*/*")).await.unwrap();
    assert!(writer.is_some());
    assert!(run.begin_for(&request("POST", None, "*/*")).await.unwrap().is_none());
    hub.drain(Duration::ZERO).await;
    let error = run.begin_for(&request("POST", None, "*/*")).await.unwrap_err();
    assert_eq!((error.status_code().as_u16(), error.retry_after().is_some()), (503, true));
}

/// A handler that begins a run does not begin one for a page that then receives `403`.
#[tokio::test]
async fn a_request_of_another_origin_begins_no_run() {
    let hub = Hub::builder().build().unwrap();
    let run = hub.run("answers/7");
    let foreign = http::Request::post("/answers/7").header("host", "here.example");
    let foreign = foreign.header("origin", "https://elsewhere.example").header("sec-fetch-site", "cross-site");
    let foreign = StreamRequest::from_request(&foreign.body(()).unwrap());
    assert!(run.begin_for(&foreign).await.unwrap().is_none());
    assert_eq!(run.state().await.unwrap(), RunState::None);
    let response = hub.respond(foreign, Subscription::run(run.reader().await.unwrap())).into_response();
    assert_eq!(response.status(), 403);
}

#[tokio::test(start_paused = true)]
async fn a_stream_that_reaches_its_maximum_age_first_reads_the_rest_of_its_run() {
    let hub = Hub::builder().max_connection_age(Duration::from_secs(60)).build().unwrap();
    let writer = hub.run("answers/7").begin().await.unwrap();
    let mut stream = open(&hub, &hub.run("answers/7")).await;
    assert!(matches!(stream.next().await, Some(SubscriberItem::Live(_))));
    // More than a stream reads in one step.
    let events: Vec<String> = (0..200).map(|n| n.to_string()).collect();
    writer.publish_many(events.iter().map(|text| event(text.clone()))).await.unwrap();
    tokio::time::sleep(Duration::from_secs(120)).await;
    assert_eq!(read(stream).await, (events, EndReason::Age));
    writer.finish().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_drain_ends_the_wait_for_a_run() {
    let hub = Hub::builder().build().unwrap();
    let run = hub.run("answers/7");
    let waiting = tokio::spawn(async move { run.reader_within(Duration::from_secs(600)).await.unwrap() });
    tokio::task::yield_now().await;
    let begun = tokio::time::Instant::now();
    hub.drain(Duration::ZERO).await;
    assert!(waiting.await.unwrap().is_missing());
    assert!(begun.elapsed() < Duration::from_secs(3), "{:?}", begun.elapsed());
}

#[tokio::test]
async fn a_reader_waits_for_a_run_to_begin() {
    for (name, one, two) in one_and_two_instances().await {
        let run = two.run("jobs/7");
        let waiting = tokio::spawn(async move { run.reader_within(Duration::from_secs(20)).await.unwrap() });
        tokio::task::yield_now().await;
        let writer = one.run("jobs/7").begin().await.unwrap();
        let reader = waiting.await.unwrap();
        assert!(!reader.is_missing(), "{name}");
        writer.finish().await.unwrap();
        let none = two.run("jobs/8").reader_within(Duration::from_millis(10)).await.unwrap();
        assert!(none.is_missing(), "{name}");
    }
}

#[tokio::test]
async fn a_stream_of_a_run_belongs_to_a_user_without_the_users_events() {
    let hub = Hub::builder().build().unwrap();
    let writer = hub.run("answers/7").begin().await.unwrap();
    let reader = hub.run("answers/7").reader().await.unwrap();
    let mut stream = hub.subscribe(Subscription::run(reader).with_user("ada"), None).unwrap();
    hub.user("ada").publish(event("to the user")).await.unwrap();
    hub.everyone().publish(event("to everyone")).await.unwrap();
    hub.user("ada").join("news").await.unwrap();
    hub.topic("news").publish(event("to the topic")).await.unwrap();
    hub.connection(stream.connection()).publish(event("to the connection")).await.unwrap();
    assert!(hub.connections()[0].topics.is_empty());
    writer.publish(event("of the run")).await.unwrap();
    assert_eq!(next_event(&mut stream).await, "of the run");
    hub.user("ada").disconnect(tower_sse::Disconnect::now()).await.unwrap();
    assert_eq!(read(stream).await.1, EndReason::Disconnected);
}

/// The stream would never have the events of the topic, and the user would count as a member.
#[tokio::test]
async fn a_page_cannot_join_topics_to_a_stream_of_a_run() {
    let hub = Hub::builder().build().unwrap();
    let writer = hub.run("answers/7").begin().await.unwrap();
    let stream = open(&hub, &hub.run("answers/7")).await;
    let mut endpoint = hub.endpoint(Public::topics(TopicFilter::any())).allow_topic_changes();
    let change = format!("/events/{}/topics?join=news", stream.connection());
    let response = endpoint.call(http::Request::post(change).body(()).unwrap()).await.unwrap();
    assert_eq!(response.status(), 404);
    assert!(hub.connections()[0].topics.is_empty());
    writer.finish().await.unwrap();
}

#[tokio::test]
async fn after_event_skips_the_events_up_to_its_number() {
    let hub = Hub::builder().build().unwrap();
    let writer = hub.run("a").begin().await.unwrap();
    writer.publish_many((0..4).map(|n| event(n.to_string()))).await.unwrap();
    writer.finish().await.unwrap();
    for (after, expected) in [(0, vec!["1", "2", "3"]), (2, vec!["3"]), (3, vec![]), (9, vec![]), (u64::MAX, vec![])] {
        let reader = hub.run("a").reader().await.unwrap();
        let stream = hub.subscribe(Subscription::run(reader).after_event(after), None).unwrap();
        assert_eq!(read(stream).await.0, expected, "{after}");
    }
}

#[tokio::test]
async fn invalid_names_and_events_are_errors() {
    let hub = Hub::builder().build().unwrap();
    assert!(hub.run("").begin().await.unwrap_err().is_invalid());
    assert!(hub.run("a\n").reader().await.unwrap_err().is_invalid());
    assert!(hub.run("").state().await.unwrap_err().is_invalid());
    assert!(hub.run("").stop().await.unwrap_err().is_invalid());
    let reserved = || Event::new("hub.live", "");
    assert!(hub.run("a").begin().last_will(reserved()).await.unwrap_err().is_invalid());
    let writer = hub.run("a").begin().await.unwrap();
    assert!(writer.publish(reserved()).await.unwrap_err().is_invalid());
    assert!(writer.publish_many([event("0"), reserved()]).await.unwrap_err().is_invalid());
    writer.finish().await.unwrap();
    assert_eq!(read(open(&hub, &hub.run("a")).await).await.0, Vec::<String>::new());
}

#[tokio::test]
async fn a_publisher_writes_a_run_that_instances_read_and_stop() {
    let log = Memory::new();
    let hub = Hub::builder().backplane(log.clone()).build().unwrap();
    let worker = tower_sse::Publisher::new(log).unwrap();
    while !hub.is_ready() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let writer = worker.run("imports/7").begin_for(&request("POST", None, "*/*")).await.unwrap().unwrap();
    writer.publish(event("0")).await.unwrap();
    let stream = open(&hub, &hub.run("imports/7")).await;
    // The worker has no connections, so it is no peer that could announce their departures.
    assert_eq!(hub.stats().others, 0);
    assert!(hub.run("imports/7").begin().await.unwrap_err().is_active());
    // The worker may not listen to messages yet, so the page asks until the writer has heard it.
    let stop = async {
        loop {
            hub.run("imports/7").stop().await.unwrap();
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::select! {
        () = writer.stopped() => {}
        () = stop => {}
    }
    writer.finish().await.unwrap();
    assert_eq!(read(stream).await, (vec!["0".to_owned()], EndReason::Stopped));
}

#[tokio::test]
async fn the_last_event_and_the_end_leave_in_one_frame() {
    use http_body::Body;
    let hub = Hub::builder().build().unwrap();
    let writer = hub.run("a").begin().await.unwrap();
    let reader = hub.run("a").reader().await.unwrap();
    let mut body = hub.respond(request("GET", None, "*/*"), Subscription::run(reader)).into_response().into_body();
    let hello = body.frame().await.unwrap().unwrap().into_data().unwrap();
    assert!(hello.starts_with(b"event: hub.hello\n"));
    let live = body.frame().await.unwrap().unwrap().into_data().unwrap();
    assert!(live.starts_with(b"event: hub.live\n"));
    writer.finish_with(event("last")).await.unwrap();
    assert!(!body.is_end_stream());
    let last = body.frame().await.unwrap().unwrap().into_data().unwrap();
    let last = std::str::from_utf8(&last).unwrap();
    assert!(last.starts_with("data: last\n") && last.contains("event: hub.bye\n"), "{last}");
    // A server writes the end of the body together with a frame after which the body has ended.
    assert!(body.is_end_stream());
    assert!(body.frame().await.is_none());
}

/// Returns the bytes of a whole body, and whether it ended without an error.
async fn whole(body: tower_sse::EventBody) -> (String, bool) {
    let mut body = std::pin::pin!(body);
    let mut bytes = Vec::new();
    loop {
        match body.frame().await {
            Some(Ok(frame)) => bytes.extend_from_slice(&frame.into_data().unwrap()),
            Some(Err(_)) => return (String::from_utf8(bytes).unwrap(), false),
            None => return (String::from_utf8(bytes).unwrap(), true),
        }
    }
}

#[tokio::test]
async fn a_bare_stream_of_a_run_has_its_events_and_a_proper_end_only_when_the_run_is_over() {
    use tower_sse::Ids;
    let hub = Hub::builder().retry(Duration::from_secs(2)).build().unwrap();
    let run = hub.run("a");
    let respond = async |ids| {
        let subscription = Subscription::run(run.reader().await.unwrap()).bare().ids(ids);
        hub.respond(request("POST", None, "application/json"), subscription).into_response().into_body()
    };
    let writer = run.begin().last_will(Event::new("error", "interrupted")).await.unwrap();
    writer.publish(Event::new("delta", "Hel")).await.unwrap();
    let early = respond(Ids::Last).await;
    let expected = |text: &str, id: &str| text.replace("ID", id.trim_end_matches('1'));
    writer.finish_with(Event::new("delta", "lo")).await.unwrap();
    let (text, is_proper) = whole(early).await;
    assert!(is_proper);
    let id = text.lines().find_map(|line| line.strip_prefix("id: ")).unwrap().to_owned();
    let lines = "retry: 2000\nevent: delta\ndata: Hel\nid: ID1\n\nevent: delta\ndata: lo\nid: ID2\n\n";
    assert_eq!(text, expected(lines, &id));
    let first = "retry: 2000\nid: ID1\nevent: delta\ndata: Hel\n\nid: ID2\nevent: delta\ndata: lo\n\n";
    assert_eq!(whole(respond(Ids::First).await).await, (expected(first, &id), true));
    let none = "retry: 2000\nevent: delta\ndata: Hel\n\nevent: delta\ndata: lo\n\n";
    assert_eq!(whole(respond(Ids::None).await).await, (none.to_owned(), true));

    // With a last will, a run that was aborted ends properly after it.
    let writer = run.begin().last_will(Event::new("error", "interrupted")).await.unwrap();
    let body = respond(Ids::None).await;
    drop(writer);
    assert_eq!(whole(body).await, ("retry: 2000\nevent: error\ndata: interrupted\n\n".to_owned(), true));

    // Without a last will, and when the hub ends the stream of an active run, the stream breaks.
    let writer = run.begin().await.unwrap();
    let body = respond(Ids::None).await;
    drop(writer);
    assert_eq!(whole(body).await, ("retry: 2000\n".to_owned(), false));
    let writer = run.begin().await.unwrap();
    writer.publish(event("0")).await.unwrap();
    let body = respond(Ids::None).await;
    hub.everyone().disconnect(tower_sse::Disconnect::now()).await.unwrap();
    let (text, is_proper) = whole(body).await;
    assert!(text.starts_with("retry: 2000\n") && !text.contains("hub."), "{text}");
    assert!(!is_proper);
}
