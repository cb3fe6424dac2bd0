//! A proxy in front of a NATS server that rewrites requests and answers of JSON, as a member of a
//! cluster may send them.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use serde_json::{Value as Json, json};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tower_sse::backplane::Nats;

use crate::nats_server::NatsServer;

/// The name of a member in descriptions of streams.
pub(crate) const LEADER: &str = "one";

/// Changes a request, which has its subject, or an answer, which has none.
type Rewrite = dyn Fn(Option<&str>, &mut Json) + Send + Sync;

/// Starts a proxy in front of a server, which then looks like a member of a cluster with a current
/// version. Returns an adapter that uses the proxy.
pub(crate) async fn member(
    server: &NatsServer,
    rewrite: impl Fn(Option<&str>, &mut Json) + Send + Sync + 'static,
) -> Nats {
    let rewrite = move |subject: Option<&str>, json: &mut Json| {
        if is_info(json) && json["config"].is_object() {
            json["cluster"] = json!({ "name": "test", "leader": LEADER });
        }
        rewrite(subject, json);
    };
    Nats::new(&proxy(server.port, MEMBER, Arc::new(rewrite)).await, "n").unwrap()
}

/// Starts a proxy in front of a server that announces itself in this way. Returns an adapter that
/// uses the proxy.
pub(crate) async fn announcing(
    announced: Announced,
    server: &NatsServer,
    rewrite: impl Fn(Option<&str>, &mut Json) + Send + Sync + 'static,
) -> Nats {
    Nats::new(&proxy(server.port, announced, Arc::new(rewrite)).await, "n").unwrap()
}

/// What a server announces about itself.
#[derive(Clone, Copy)]
pub(crate) struct Announced {
    pub(crate) version: &'static str,
    /// The name of the cluster.
    pub(crate) cluster: Option<&'static str>,
}

pub(crate) const MEMBER: Announced = Announced { version: "2.15.1", cluster: Some("test") };
pub(crate) const SINGLE: Announced = Announced { version: "2.10.0", cluster: None };

/// Whether this is the description of a stream, or the error in place of one.
pub(crate) fn is_info(json: &Json) -> bool {
    json["type"].as_str().is_some_and(|kind| kind.ends_with(".stream_info_response"))
}

pub(crate) fn is_info_of(json: &Json, stream: &str) -> bool {
    is_info(json) && json["config"]["name"] == stream
}

/// Whether this is the answer to a request for a message with such a subject.
pub(crate) fn is_message_of(json: &Json, part_of_subject: &str) -> bool {
    let is_message = json["type"].as_str().is_some_and(|kind| kind.ends_with(".stream_msg_get_response"));
    is_message && json["message"]["subject"].as_str().is_some_and(|subject| subject.contains(part_of_subject))
}

/// Lowers the last number in the description of the log by 100.
pub(crate) fn lower(json: &mut Json) {
    if is_info_of(json, "tower-sse-log_n") {
        json["state"]["last_seq"] = json!(json["state"]["last_seq"].as_u64().unwrap() - 100);
    }
}

/// Sets a number to zero, if the message has this field.
pub(crate) fn set_to_zero(json: &mut Json, field: &str) {
    if json[field].is_u64() {
        json[field] = json!(0);
    }
}

pub(crate) fn set_no_message(json: &mut Json) {
    set_error(json, 404, 10037, "no message found");
}

pub(crate) fn set_no_stream(json: &mut Json) {
    set_error(json, 404, 10059, "stream not found");
}

/// Counts down. Returns false when the counter has reached zero.
pub(crate) fn count_down(left: &AtomicUsize) -> bool {
    left.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1)).is_ok()
}

fn set_error(json: &mut Json, code: u64, err_code: u64, description: &str) {
    let kind = json["type"].take();
    *json = json!({ "type": kind, "error": { "code": code, "err_code": err_code, "description": description } });
}

async fn proxy(port: u16, announced: Announced, rewrite: Arc<Rewrite>) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("nats://{}", listener.local_addr().unwrap());
    tokio::spawn(async move {
        while let Ok((client, _)) = listener.accept().await {
            let (requests, to_client) = client.into_split();
            let (answers, to_server) = TcpStream::connect(("127.0.0.1", port)).await.unwrap().into_split();
            for (from, mut to) in [(requests, to_server), (answers, to_client)] {
                let rewrite = Arc::clone(&rewrite);
                tokio::spawn(async move {
                    let mut from = BufReader::new(from);
                    while let Some(bytes) = frame(&mut from, announced, &*rewrite).await {
                        if to.write_all(&bytes).await.is_err() {
                            return;
                        }
                    }
                });
            }
        }
    });
    url
}

/// Reads one line and, if it announces a message, the message. Rewrites a message of JSON.
async fn frame(
    from: &mut BufReader<impl AsyncReadExt + Unpin>,
    announced: Announced,
    rewrite: &Rewrite,
) -> Option<Vec<u8>> {
    let mut line = String::new();
    from.read_line(&mut line).await.ok().filter(|&count| count > 0)?;
    if let Some(info) = line.strip_prefix("INFO ") {
        let mut info: Json = serde_json::from_str(info).unwrap();
        info["cluster"] = json!(announced.cluster);
        info["version"] = json!(announced.version);
        return Some(format!("INFO {info}\r\n").into_bytes());
    }
    let has_message = ["MSG ", "HMSG ", "PUB ", "HPUB "].iter().any(|verb| line.starts_with(verb));
    let Some((head, length)) = line.trim_end().rsplit_once(' ').filter(|_| has_message) else {
        return Some(line.into_bytes());
    };
    let mut message = vec![0; length.parse::<usize>().unwrap() + 2];
    from.read_exact(&mut message).await.ok()?;
    let subject = head.strip_prefix("PUB ").and_then(|head| head.split(' ').next());
    if let Ok(mut json @ Json::Object(_)) = serde_json::from_slice(&message[..message.len() - 2]) {
        rewrite(subject, &mut json);
        let json = json.to_string();
        return Some(format!("{head} {}\r\n{json}\r\n", json.len()).into_bytes());
    }
    Some([line.into_bytes(), message].concat())
}
