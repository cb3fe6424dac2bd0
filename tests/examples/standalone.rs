//! The example `standalone`: every endpoint, and every refusal.

use std::net::SocketAddr;
use std::time::Duration;

use http::Request;
use serde_json::{Value, json};
use tower_sse::Hub;

use crate::example::standalone::{Options, app, hub};
use crate::kit::{Events, Server, get, http2, reply, send, soon, subscribe, until};
use crate::nats_server::NatsServer;

fn options(args: &str) -> Options {
    Options::parse(args.split_whitespace().map(str::to_owned)).unwrap()
}

async fn start(args: &str) -> (Hub, Server) {
    let options = options(args);
    let hub = hub(&options).unwrap();
    let server = Server::start(&hub, app(&hub, &options)).await;
    (hub, server)
}

async fn post(addr: SocketAddr, path: &str, body: impl Into<String>) -> (u16, String) {
    let request = Request::post(path).body(&*body.into().leak()).unwrap();
    let reply = send(addr, request).await;
    (reply.status.as_u16(), reply.text().await)
}

async fn accepted(addr: SocketAddr, path: &str, body: impl Into<String>) -> Value {
    let (status, text) = post(addr, path, body).await;
    assert_eq!(status, 202, "{text}");
    serde_json::from_str(&text).unwrap()
}

/// Asserts that the response is one line of plain text. Returns the status and the line.
async fn refused(addr: SocketAddr, path: &str, body: impl Into<String>) -> (u16, String) {
    let reply = send(addr, Request::post(path).body(&*body.into().leak()).unwrap()).await;
    let (status, kind) = (reply.status.as_u16(), reply.header("content-type").to_owned());
    let text = reply.text().await;
    assert_eq!(kind, "text/plain; charset=utf-8", "{text}");
    let line = text.strip_suffix('\n').expect("no end of the line");
    assert!(!line.is_empty() && !line.contains(char::is_control), "{text:?}");
    (status, line.to_owned())
}

async fn read(events: &mut Events) -> (String, String) {
    let event = events.next_own().await;
    (event.event, event.data)
}

fn pair(event: &str, data: &str) -> (String, String) {
    (event.to_owned(), data.to_owned())
}

#[tokio::test]
async fn event_reaches_its_target_and_the_response_counts_the_receivers() {
    let (_hub, server) = start("").await;
    let mut a = subscribe(server.addr, "/events?topic=a&topic=b").await;
    let mut ada = subscribe(server.addr, "/events?topic=b&user=ada").await;
    let response = accepted(server.addr, "/topics/a?event=name", "to a").await;
    assert_eq!(response["receivers"], 1);
    assert_eq!(accepted(server.addr, "/topics/b", "to b").await["receivers"], 2);
    assert_eq!(accepted(server.addr, "/users/ada", "to ada").await["receivers"], 1);
    assert_eq!(accepted(server.addr, "/everyone?event=all", "").await["receivers"], 2);
    assert_eq!(accepted(server.addr, "/topics/empty", "x").await["receivers"], 0);
    let first = a.next_own().await;
    assert_eq!((first.event.as_str(), first.data.as_str()), ("name", "to a"));
    assert_eq!(first.id, response["id"]);
    assert_eq!(read(&mut a).await, pair("message", "to b"));
    assert_eq!(read(&mut a).await, pair("all", ""));
    assert_eq!(read(&mut ada).await, pair("message", "to b"));
    assert_eq!(read(&mut ada).await, pair("message", "to ada"));
    assert_eq!(read(&mut ada).await, pair("all", ""));
}

#[tokio::test]
async fn event_arrives_over_http_2() {
    let (_hub, server) = start("").await;
    let mut sender = http2(server.addr).await;
    let request = Request::get("http://test/events?topic=a").body(Default::default()).unwrap();
    let mut events = reply(soon(sender.send_request(request)).await.unwrap()).events();
    events.caught_up().await;
    accepted(server.addr, "/topics/a", "hello").await;
    assert_eq!(read(&mut events).await, pair("message", "hello"));
}

#[tokio::test]
async fn name_in_the_path_may_contain_any_character() {
    let (_hub, server) = start("").await;
    for name in ["a/b", "a//b/", "/", "..", "%2F", "a b+c", "?x=1#y", "*", "{topic}", "тема", "🦀", "a&topic=b"] {
        let query = form_urlencoded::byte_serialize(name.as_bytes()).collect::<String>();
        let path = query.replace('+', "%20").replace('.', "%2E");
        let mut events = subscribe(server.addr, &format!("/events?topic={query}&user={query}")).await;
        assert_eq!(accepted(server.addr, &format!("/topics/{path}"), "t").await["receivers"], 1, "{name}");
        assert_eq!(accepted(server.addr, &format!("/users/{path}"), "u").await["receivers"], 1, "{name}");
        assert_eq!(read(&mut events).await.1, "t");
        assert_eq!(read(&mut events).await.1, "u");
    }
    // A slash needs no encoding.
    let mut events = subscribe(server.addr, "/events?topic=sensors/boiler").await;
    accepted(server.addr, "/topics/sensors/boiler", "21.5").await;
    assert_eq!(read(&mut events).await.1, "21.5");
}

async fn request(addr: SocketAddr, method: &str, path: &str) -> (u16, Value) {
    let reply = send(addr, Request::builder().method(method).uri(path).body("").unwrap()).await;
    let status = reply.status.as_u16();
    let text = reply.text().await;
    (status, serde_json::from_str(&text).unwrap_or_else(|_| Value::String(text.trim_end().to_owned())))
}

#[tokio::test]
async fn disconnected_user_reconnects_when_permitted() {
    let (_hub, server) = start("").await;
    let addr = server.addr;
    for (query, reconnect) in
        [("", "now"), ("?reconnect=later&time=2s", "later"), ("?reconnect=never&time=1s&note=out", "never")]
    {
        // The user has a slash in the name, which the paths have plain and encoded.
        let tabs = [subscribe(addr, "/events?user=a/da").await, subscribe(addr, "/events?user=a/da").await];
        let mut other = subscribe(addr, "/events?user=ben").await;
        let path = if reconnect == "now" { "/users/a/da/connections" } else { "/users/a%2Fda/connections" };
        assert_eq!(request(addr, "DELETE", &format!("{path}{query}")).await, (200, json!({ "disconnected": 2 })));
        for tab in tabs {
            let bye = tab.rest().await.pop().unwrap();
            let data: Value = serde_json::from_str(&bye.data).unwrap();
            assert_eq!(
                (&*bye.event, &data["reason"], &data["reconnect"]),
                ("hub.bye", &json!("disconnected"), &json!(reconnect))
            );
            assert_eq!(data["note"], if reconnect == "never" { json!("out") } else { Value::Null });
        }
        let status = get(addr, "/events?user=a/da").await.status;
        assert_eq!(status, if reconnect == "never" { 204 } else { 200 });
        accepted(addr, "/users/ben", "still here").await;
        assert_eq!(read(&mut other).await.1, "still here");
    }
    soon(async { while get(addr, "/events?user=a/da").await.status != 200 {} }).await;
    for (path, status, line) in [
        ("/users/ada/connections?reconnect=perhaps", 400, "reconnect: neither now, later nor never"),
        ("/users/ada/connections?reconnect=later&time=soon", 400, "time: not a time like 500ms, 5s or 2m"),
        ("/users/ada/connections?time=5s", 400, "time: only with reconnect=later or reconnect=never"),
        ("/users/%00/connections", 400, "user contains the control character U+0000"),
        ("/users/ada", 404, "no such path"),
    ] {
        assert_eq!(request(addr, "DELETE", path).await, (status, json!(line)), "{path}");
    }
    assert_eq!(request(addr, "DELETE", "/users/stranger/connections").await, (200, json!({ "disconnected": 0 })));
}

#[tokio::test]
async fn presence_of_a_topic_lists_each_user_once() {
    let (_hub, server) = start("--presence rooms/").await;
    let addr = server.addr;
    let mut ada = subscribe(addr, "/events?user=ada&topic=rooms/1").await;
    let _second_tab = subscribe(addr, "/events?user=ada&topic=rooms/1").await;
    let _ben = subscribe(addr, "/events?user=ben&topic=rooms/1").await;
    let _anonymous = subscribe(addr, "/events?topic=rooms/1").await;
    for path in ["/topics/rooms/1/presence", "/topics/rooms%2F1/presence"] {
        let (status, presence) = request(addr, "GET", path).await;
        let members = json!([{ "user": "ada", "connections": 2 }, { "user": "ben", "connections": 1 }]);
        assert_eq!((status, &presence["members"], &presence["anonymous"]), (200, &members, &json!(1)));
        assert!(presence["position"].is_string());
    }
    // Skips ada's own `hub.joined`, which may arrive before or after `hub.live`.
    loop {
        let event = ada.next().await;
        if event.event == "hub.joined" && event.data.contains("ben") {
            assert_eq!(
                serde_json::from_str::<Value>(&event.data).unwrap(),
                json!({ "topic": "rooms/1", "user": "ben" })
            );
            break;
        }
    }
    assert_eq!(request(addr, "GET", "/topics/empty/presence").await.1["members"], json!([]));
    assert_eq!(request(addr, "GET", "/topics/%00/presence").await.0, 400);
    assert_eq!(request(addr, "GET", "/topics/rooms/1").await, (405, json!("method not allowed")));
}

#[tokio::test]
async fn page_changes_its_topics_without_reconnecting() {
    let (_hub, server) = start("").await;
    let addr = server.addr;
    let mut page = get(addr, "/events?user=ada&topic=a").await.events();
    let hello: Value = serde_json::from_str(&page.next().await.data).unwrap();
    let path = format!("/events/{}/topics?join=b&leave=a", hello["connection"].as_str().unwrap());
    assert_eq!(request(addr, "POST", &path).await.0, 404, "an anonymous request must not change a stream of ada");
    assert_eq!(request(addr, "POST", &format!("{path}&user=ada")).await, (200, json!({ "topics": ["b"] })));
    assert_eq!(accepted(addr, "/topics/a", "x").await["receivers"], 0);
    accepted(addr, "/topics/b", "y").await;
    assert_eq!(read(&mut page).await.1, "y");
}

#[tokio::test]
async fn disconnect_and_presence_require_the_token() {
    let (_hub, server) = start("--token s3cret").await;
    for (method, path) in [("DELETE", "/users/ada/connections"), ("GET", "/topics/a/presence")] {
        let request = || Request::builder().method(method).uri(path);
        assert_eq!(send(server.addr, request().body("").unwrap()).await.status, 401);
        let request = request().header("authorization", "Bearer s3cret").body("").unwrap();
        assert_eq!(send(server.addr, request).await.status, 200);
    }
}

#[tokio::test]
async fn invalid_event_is_refused_in_one_line_and_uses_no_position() {
    let (hub, server) = start("").await;
    let long = "x".repeat(256);
    for (path, line) in [
        ("/topics/a%0Ab", "topic contains the control character U+000A"),
        (&format!("/topics/{long}"), "topic is longer than 255 bytes"),
        ("/users/%00", "user contains the control character U+0000"),
        ("/topics/%FF", "Invalid URL: Invalid UTF-8 in `topic`"),
        ("/topics/a?event=hub.live", "event name is reserved: `open`, `error` and names that start with `hub.`"),
        ("/topics/a?event=a%0Ab", "event name contains the control character U+000A"),
        ("/everyone?key=", "key is empty"),
    ] {
        assert_eq!(refused(server.addr, path, "x").await, (400, line.to_owned()));
    }
    for query in ["evnt=x", "event=a&event=b", "ev%0A%0Dnt=x"] {
        let (status, line) = refused(server.addr, &format!("/topics/a?{query}"), "x").await;
        assert_eq!(status, 400);
        assert!(line.starts_with("Failed to deserialize query string"), "{line}");
    }
    assert_eq!(hub.stats().published, 0);
    assert!(hub.position().to_string().ends_with(".0"));
}

#[tokio::test]
async fn data_that_is_not_utf_8_is_refused() {
    let (_hub, server) = start("").await;
    let mut sender = http2(server.addr).await;
    let request = Request::post("http://test/topics/a").body(bytes::Bytes::from_static(b"\xc3\x28").into()).unwrap();
    let reply = reply(soon(sender.send_request(request)).await.unwrap());
    assert_eq!((reply.status.as_u16(), reply.text().await), (400, "data is not UTF-8\n".to_owned()));
}

#[tokio::test]
async fn oversized_event_or_batch_is_refused_with_413() {
    let (hub, server) = start("").await;
    let event = refused(server.addr, "/topics/a", "x".repeat(512 * 1024 + 1)).await;
    assert_eq!(event.0, 413);
    assert!(event.1.starts_with("payload of"), "{}", event.1);
    let body = refused(server.addr, "/publish", "\n".repeat((4 << 20) + 1)).await;
    assert_eq!(body, (413, "Failed to buffer the request body: length limit exceeded".to_owned()));
    assert_eq!(hub.stats().published, 0);
}

#[tokio::test]
async fn unknown_paths_and_methods_are_refused_in_one_line() {
    let (_hub, server) = start("").await;
    for path in ["/nothing", "/topics", "/topics/", "/users/"] {
        assert_eq!(refused(server.addr, path, "").await, (404, "no such path".to_owned()), "{path}");
    }
    for path in ["/", "/stats", "/healthz"] {
        assert_eq!(refused(server.addr, path, "").await, (405, "method not allowed".to_owned()), "{path}");
    }
    assert_eq!(refused(server.addr, "/events?topic=a", "").await, (405, "use GET".to_owned()));
    let reply = get(server.addr, "/topics/a").await;
    assert_eq!((reply.status.as_u16(), reply.header("allow")), (405, "POST"));
    assert_eq!(get(server.addr, "/events?topic=").await.status, 403);
    assert_eq!(get(server.addr, "/events?topic=a%0A").await.status, 403);
    assert_eq!(get(server.addr, "/events?topic=a&user=").await.status, 400);
}

#[tokio::test]
async fn batch_is_published_whole_and_in_order() {
    let (hub, server) = start("").await;
    let mut events = subscribe(server.addr, "/events?topic=a&topic=b&user=ada").await;
    let batch = r#"
        {"topic":"a","data":"text\nof two lines"}

        {"topic":"b","event":"json","data":{"n":1.5,"list":[null,true]}}
        {"user":"ada","event":"number","data":42}
        {"topic":"a","key":"k","data":null}
        {"topic":"empty","data":"\"quoted\""}
        {"topic":"b","data":"last"}"#;
    let response = accepted(server.addr, "/publish", batch.replace('\n', "\r\n")).await;
    assert_eq!(response, json!({ "published": 6, "last": hub.position().to_string() }));
    assert_eq!(read(&mut events).await, pair("message", "text\nof two lines"));
    let (name, data) = read(&mut events).await;
    assert_eq!(name, "json");
    assert_eq!(serde_json::from_str::<Value>(&data).unwrap(), json!({ "n": 1.5, "list": [null, true] }));
    assert_eq!(read(&mut events).await, pair("number", "42"));
    assert_eq!(read(&mut events).await, pair("message", "null"));
    assert_eq!(read(&mut events).await, pair("message", "last"));
    assert_eq!(accepted(server.addr, "/publish", " \n\n").await, json!({ "published": 0, "last": null }));
}

#[tokio::test]
async fn batch_with_an_invalid_line_publishes_nothing_and_names_the_line() {
    let (hub, server) = start("").await;
    let good = r#"{"topic":"a","data":"good"}"#;
    let large = format!(r#"{{"topic":"a","data":"{}"}}"#, "x".repeat(512 * 1024));
    for (invalid, reason) in [
        ("{", "column 1: EOF while parsing an object"),
        ("[]", "invalid length 0"),
        ("{} {}", "missing field `data`"),
        (r#"{"topic":"a","data":1} x"#, "trailing characters"),
        (r#"{"topic":"a"}"#, "column 13: missing field `data`"),
        (r#"{"data":1}"#, "exactly one of `topic` and `user` is required"),
        (r#"{"topic":"a","user":"b","data":1}"#, "exactly one of `topic` and `user` is required"),
        (r#"{"topic":"a","data":1,"more":1}"#, "unknown field `more`"),
        (r#"{"topic":"a","data":1,"a\nb":1}"#, "unknown field `a b`"),
        (r#"{"topic":"a","topic":"a","data":1}"#, "duplicate field `topic`"),
        (r#"{"topic":7,"data":1}"#, "expected a string"),
        (r#"{"topic":"","data":1}"#, "topic is empty"),
        (r#"{"user":"a\u0000","data":1}"#, "user contains the control character U+0000"),
        (r#"{"topic":"a","event":"open","data":1}"#, "event name is reserved"),
        (r#"{"topic":"a","key":"","data":1}"#, "key is empty"),
        (&large, "payload of"),
    ] {
        // Blank lines count for the number of the line.
        let batch = format!("{good}\n\n  \n{invalid}\n{good}\n");
        let (status, line) = refused(server.addr, "/publish", batch).await;
        assert_eq!(status, 400, "{line}");
        assert!(line.starts_with("line 4: ") && line.contains(reason), "{line}");
    }
    assert_eq!(hub.stats().published, 0);
    assert!(hub.position().to_string().ends_with(".0"));
}

/// A page of another site could otherwise publish through the browser of a visitor whose network
/// reaches the hub.
#[tokio::test]
async fn page_of_another_origin_neither_publishes_nor_disconnects() {
    let (hub, server) = start("").await;
    let _ada = subscribe(server.addr, "/events?user=ada").await;
    let status_of = async |method: &'static str, path: &'static str, headers: &[(&'static str, &'static str)]| {
        let mut request = Request::builder().method(method).uri(path).header("host", "hub.test:8080");
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        send(server.addr, request.body(r#"{"topic":"a","data":1}"#).unwrap()).await.status.as_u16()
    };
    let writes = [
        ("POST", "/topics/a"),
        ("POST", "/users/a"),
        ("POST", "/everyone"),
        ("POST", "/publish"),
        ("DELETE", "/users/ada/connections"),
    ];
    for (method, path) in writes {
        for headers in [
            &[("origin", "https://evil.test")][..],
            &[("origin", "http://hub.test:8081")],
            &[("origin", "null")],
            &[("sec-fetch-site", "cross-site"), ("origin", "http://hub.test:8080")],
            &[("sec-fetch-site", "same-site")],
        ] {
            assert_eq!(status_of(method, path, headers).await, 403, "{method} {path} {headers:?}");
        }
    }
    assert_eq!((hub.stats().published, hub.stats().connections), (0, 1));
    for headers in [
        &[][..],
        &[("origin", "http://hub.test:8080")],
        &[("origin", "https://HUB.test:8080")],
        &[("sec-fetch-site", "same-origin"), ("origin", "https://in.front.test")],
    ] {
        for (method, path) in writes {
            let status = status_of(method, path, headers).await;
            assert!(status == 200 || status == 202, "{method} {path} {headers:?}: {status}");
        }
    }
}

/// By DNS rebinding, a page can point the name of its own host at the hub. The browser then takes
/// requests to the hub for requests to the page's own site.
#[tokio::test]
async fn request_for_a_host_that_is_not_allowed_is_refused() {
    let (hub, server) = start("--allow-host hub.test --allow-host=localhost:3000").await;
    let status_of = async |method: &str, path: &str, host: &'static str| {
        let request = Request::builder().method(method).uri(path).header("host", host);
        let request = request.header("sec-fetch-site", "same-origin").body(r#"{"topic":"a","data":1}"#).unwrap();
        send(server.addr, request).await.status.as_u16()
    };
    let guarded = [
        ("GET", "/events?topic=a", 200),
        ("POST", "/events/0/topics?join=a", 404),
        ("POST", "/topics/a", 202),
        ("POST", "/users/a", 202),
        ("POST", "/everyone", 202),
        ("POST", "/publish", 202),
        ("DELETE", "/users/a/connections", 200),
        ("GET", "/topics/a/presence", 200),
    ];
    for (method, path, _) in guarded {
        for host in ["evil.test", "evil.test:3000", "localhost", "localhost:3001", "hub.test.evil.test", "a@hub.test"] {
            assert_eq!(status_of(method, path, host).await, 403, "{method} {path} {host}");
        }
    }
    assert_eq!((hub.stats().published, hub.stats().connections), (0, 0));
    for (method, path, status) in guarded {
        for host in ["hub.test", "HUB.test:8080", "localhost:3000"] {
            assert_eq!(status_of(method, path, host).await, status, "{method} {path} {host}");
        }
    }
    assert_eq!(status_of("GET", "/healthz", "evil.test").await, 200);
}

/// The broker may reject one event of a batch and accept the others, so a batch may be published in
/// part.
#[tokio::test]
async fn batch_that_the_broker_accepts_in_part_reports_the_published_count() {
    let folder = std::env::temp_dir().join(format!("tower-sse-standalone-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let config = folder.join("nats.conf");
    std::fs::write(&config, "max_payload: 4096\n").unwrap();
    let Some(broker) = NatsServer::start_with(&["-c", config.to_str().unwrap()]) else { return };
    let (hub, server) = start(&format!("--backplane {}", broker.url())).await;
    until(|| hub.is_ready()).await;
    let mut events = subscribe(server.addr, "/events?topic=a").await;
    let large = "x".repeat(5_000);
    let batch = ["1", large.as_str(), "2", "3"].map(|data| format!(r#"{{"topic":"a","data":"{data}"}}"#)).join("\n");
    let (status, line) = refused(server.addr, "/publish", batch).await;
    assert!(status == 503 && line.starts_with("3 of 4 events were published: "), "{status} {line}");
    for data in ["1", "2", "3"] {
        assert_eq!(read(&mut events).await.1, data);
    }
    std::fs::remove_dir_all(folder).unwrap();
}

#[tokio::test]
async fn disconnect_without_the_broker_is_503() {
    let (_hub, server) = start("--backplane redis://127.0.0.1:1").await;
    assert_eq!(request(server.addr, "DELETE", "/users/ada/connections").await.0, 503);
    assert_eq!(request(server.addr, "DELETE", "/users/%00/connections").await.0, 400);
}

#[tokio::test]
async fn token_is_required_for_every_write_and_no_read() {
    let (hub, server) = start("--token s3cret").await;
    let mut events = subscribe(server.addr, "/events?topic=a").await;
    for path in ["/topics/a", "/users/a", "/everyone", "/publish"] {
        let (status, line) = refused(server.addr, path, r#"{"topic":"a","data":1}"#).await;
        assert_eq!((status, line.as_str()), (401, "the token is missing or wrong"), "{path}");
        for wrong in ["Bearer s3cre", "Bearer s3cret0", "Bearer S3cret", "Bearer ", "Basic s3cret", "s3cret", ""] {
            let request = Request::post(path).header("authorization", wrong).body("x").unwrap();
            let reply = send(server.addr, request).await;
            assert_eq!((reply.status.as_u16(), reply.header("www-authenticate")), (401, "Bearer"), "{wrong}");
        }
    }
    assert_eq!(hub.stats().published, 0);
    for right in ["Bearer s3cret", "bearer s3cret"] {
        let request = Request::post("/topics/a").header("authorization", right).body(right).unwrap();
        assert_eq!(send(server.addr, request).await.status, 202);
        assert_eq!(read(&mut events).await.1, right);
    }
    for path in ["/", "/stats", "/healthz", "/readyz"] {
        assert_eq!(get(server.addr, path).await.status, 200, "{path}");
    }
}

#[tokio::test]
async fn new_page_receives_every_current_value_and_no_old_value() {
    let (_hub, server) = start("--latest sensors/ --latest rooms/").await;
    for (path, data) in
        [("sensors/a?key=k", "1"), ("sensors/a?key=l", "2"), ("sensors/a?key=k", "3"), ("rooms/b?key=k", "4")]
    {
        accepted(server.addr, &format!("/topics/{path}"), data).await;
    }
    accepted(server.addr, "/topics/news?key=k", "not a current value").await;
    let topics = "/events?topic=sensors/a&topic=rooms/b&topic=news";
    let mut events = get(server.addr, topics).await.events();
    assert_eq!(events.next().await.event, "hub.hello");
    let mut values: Vec<_> = events.caught_up().await.into_iter().map(|event| event.data).collect();
    values.sort();
    assert_eq!(values, ["2", "3", "4"]);
}

#[tokio::test]
async fn resuming_page_receives_the_retained_events_and_a_gap_for_the_others() {
    let (_hub, server) = start("--replay-events 3").await;
    let id = subscribe(server.addr, "/events?topic=a").await.last_id;
    let path = format!("/events?topic=a&last_event_id={id}");
    for n in 0..3 {
        accepted(server.addr, "/topics/a", n.to_string()).await;
    }
    let mut whole = get(server.addr, &path).await.events();
    assert_eq!(whole.next().await.event, "hub.hello");
    let data = |events: Vec<_>| events.into_iter().map(|event: crate::kit::Sse| event.data).collect::<Vec<_>>();
    assert_eq!(data(whole.caught_up().await), ["0", "1", "2"]);
    accepted(server.addr, "/topics/a", "3").await;
    let mut part = get(server.addr, &path).await.events();
    assert_eq!(part.next().await.event, "hub.hello");
    let gap = part.next().await;
    assert_eq!(gap.event, "hub.gap");
    assert!(gap.data.contains("trimmed"), "{}", gap.data);
    assert_eq!(data(part.caught_up().await), ["1", "2", "3"]);
}

#[tokio::test]
async fn stats_endpoint_returns_the_counts() {
    let (hub, server) = start("").await;
    let mut events = subscribe(server.addr, "/events?topic=a").await;
    accepted(server.addr, "/topics/a", "x").await;
    read(&mut events).await;
    let stats: Value = serde_json::from_str(&get(server.addr, "/stats").await.text().await).unwrap();
    for (name, count) in [("connections", 1), ("connected", 1), ("published", 1), ("delivered", 1), ("stalled", 0)] {
        assert_eq!(stats[name], count, "{name}");
    }
    assert_eq!(stats["position"], hub.position().to_string());
    assert_eq!(stats["gaps"]["trimmed"], 0);
    assert_eq!(stats["refused"]["draining"], 0);
    assert_eq!(stats["ended"]["client"], 0);
}

#[tokio::test]
async fn drained_hub_is_healthy_but_not_ready_and_refuses_streams() {
    let (hub, server) = start("").await;
    let ready = get(server.addr, "/readyz").await;
    assert_eq!((ready.status.as_u16(), ready.text().await), (200, "ready\n".to_owned()));
    hub.drain(Duration::ZERO).await;
    let ready = get(server.addr, "/readyz").await;
    assert_eq!((ready.status.as_u16(), ready.text().await), (503, "not ready\n".to_owned()));
    assert_eq!(get(server.addr, "/healthz").await.status, 200);
    let mut refusal = get(server.addr, "/events?topic=a").await.events();
    assert_eq!(refusal.next().await.event, "hub.refused");
    assert_eq!(refused(server.addr, "/topics/a", "x").await, (503, "the hub was drained".to_owned()));
    assert_eq!(refused(server.addr, "/publish", r#"{"topic":"a","data":1}"#).await.0, 503);
}

#[tokio::test]
async fn page_loads_no_foreign_resource_and_shows_data_as_text() {
    let (_hub, server) = start("").await;
    let reply = get(server.addr, "/").await;
    assert_eq!(reply.header("content-type"), "text/html; charset=utf-8");
    let page = reply.text().await;
    for foreign in ["http:", "https:", "src=", "@import", "innerHTML", "insertAdjacentHTML", "document.write"] {
        assert!(!page.contains(foreign), "{foreign}");
    }
    assert!(page.contains("textContent"));
}

#[test]
fn command_line_is_parsed_as_documented() {
    let defaults = options("");
    assert_eq!(defaults.listen.to_string(), "127.0.0.1:8080");
    assert_eq!(defaults.drain_window, Duration::from_secs(5));
    assert!(defaults.allow_host.is_empty());
    assert_eq!(options("--allow-host a.test --allow-host=b.test:1").allow_host, ["a.test", "b.test:1"]);
    assert!(defaults.token.is_none() && defaults.latest.is_empty() && defaults.replay_events.is_none());
    let all = options("--listen [::1]:0 --token=a=b --replay-events 7 --latest a/ --latest=b/ --drain-window 500ms");
    assert_eq!(all.listen.to_string(), "[::1]:0");
    assert_eq!(all.replay_events, Some(7));
    assert_eq!(all.latest, ["a/", "b/"]);
    assert_eq!(all.drain_window, Duration::from_millis(500));
    assert_eq!(options("--drain-window 2m").drain_window, Duration::from_secs(120));
    assert!(options("--takeover --drain-window 2m").takeover && !defaults.takeover);
    assert!(options("--help --unknown").help);
    assert!(!format!("{all:?}").contains("a=b"), "`Debug` contains the token");
    assert!(defaults.shared.is_none());
    for (args, adapter) in [
        ("--backplane redis://ada:s3cret@h:1", "Redis"),
        ("--namespace n --backplane=rediss://ada:s3cret@h/2", "Redis"),
        ("--backplane tls://ada:s3cret@h", "Nats"),
        ("--backplane postgres://ada:s3cret@h/d", "Postgres"),
    ] {
        let shared = format!("{:?}", options(args));
        assert!(shared.contains(adapter) && !shared.contains("s3cret"), "{shared}");
    }
}

#[test]
fn error_of_an_invalid_command_line_repeats_no_value() {
    for (args, problem) in [
        ("--verbose", "unknown option --verbose"),
        ("--backplane s3cret", "--backplane: not a URL like redis://h, nats://h or postgres://h/database"),
        ("--backplane http://ada:s3cret@h", "--backplane: not a URL like redis://h, nats://h or postgres://h/database"),
        ("--backplane redis://ada:s3cret@h:port", "--backplane: not a Redis URL"),
        (
            "--backplane postgres://ada:s3cret@h:port",
            "--backplane: not a Postgres URL with known parameters, or too long a namespace",
        ),
        ("--backplane", "--backplane needs a value"),
        ("--namespace a", "--namespace: only with --backplane"),
        ("--tokn=s3cret", "unknown option --tokn"),
        ("s3cret", "a value without an option"),
        ("--token a s3cret", "a value without an option"),
        ("--token", "--token needs a value"),
        ("--token=", "--token needs a value"),
        ("--token --latest", "--token needs a value"),
        ("--token s3cret\u{e9}", "--token: not one word of ASCII"),
        ("--allow-host", "--allow-host needs a value"),
        ("--listen localhost", "--listen: not an address like 127.0.0.1:8080"),
        ("--replay-events 0", "--replay-events: not a number of at least 1"),
        ("--replay-events -1", "--replay-events: not a number of at least 1"),
        ("--drain-window 5", "--drain-window: not a time like 500ms, 5s or 2m"),
        ("--drain-window s", "--drain-window: not a time like 500ms, 5s or 2m"),
        ("--drain-window 5d", "--drain-window: not a time like 500ms, 5s or 2m"),
        ("--drain-window 18446744073709551615m", "--drain-window: not a time like 500ms, 5s or 2m"),
        ("--drain-window 99999999999999999999s", "--drain-window: not a time like 500ms, 5s or 2m"),
    ] {
        assert_eq!(Options::parse(args.split_whitespace().map(str::to_owned)).unwrap_err(), problem);
    }
}
