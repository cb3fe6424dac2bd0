//! The example `chat` as a process: the requests that its page sends, and two instances.
#![cfg(unix)]

use std::net::{Ipv4Addr, SocketAddr};

use http::Request;
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio::task::spawn_blocking;

use crate::kit::{Reply, get, parsed, port, send, soon};
use crate::process::{Process, example};
use crate::redis_server::{FORGETFUL, RedisServer};

#[path = "../../examples/chat/model.rs"]
mod model;

const QUESTION: &str = "Why do ships float?";

struct Chat {
    process: Process,
    addr: SocketAddr,
}

impl Chat {
    /// Starts an instance, and waits until it is ready.
    async fn start(args: &[&str]) -> Self {
        // The build comes first, because another process could take a free port during it.
        let program = spawn_blocking(|| example("chat")).await.unwrap();
        let addr = SocketAddr::from((Ipv4Addr::LOCALHOST, port::free_port()));
        let args: Vec<String> = args.iter().map(ToString::to_string).chain([addr.to_string()]).collect();
        let spawn = move || Process::spawn(program, &args.iter().map(String::as_str).collect::<Vec<_>>());
        let process = spawn_blocking(spawn).await.unwrap();
        soon(async {
            while TcpStream::connect(addr).await.is_err() || get(addr, "/readyz").await.status != 200 {
                tokio::time::sleep(std::time::Duration::from_millis(5)).await;
            }
        })
        .await;
        Self { process, addr }
    }

    async fn ask(&self, question: &str) -> Reply {
        let body: &str = json!({ "text": question }).to_string().leak();
        let request = Request::post("/chats/tea/messages").header("content-type", "application/json");
        send(self.addr, request.body(body).unwrap()).await
    }

    async fn stop(&self, number: u32) -> u16 {
        let request = Request::post(format!("/chats/tea/answers/{number}/stop"));
        send(self.addr, request.body("").unwrap()).await.status.as_u16()
    }

    async fn history(&self) -> Value {
        serde_json::from_str(&get(self.addr, "/chats/tea").await.text().await).unwrap()
    }
}

/// Reads the stream of an answer to its end. Returns the words, and the reason of the end.
async fn read_answer(addr: SocketAddr, path: &str) -> (Vec<String>, String) {
    let events = get(addr, path).await.events().rest().await;
    let words = events.iter().filter(|event| event.event == "word").map(|event| event.data.clone()).collect();
    let bye = events.last().unwrap();
    assert_eq!(bye.event, "hub.bye");
    (words, parsed(bye)["reason"].as_str().unwrap().to_owned())
}

#[tokio::test]
async fn question_gets_the_address_of_its_answer_which_has_every_word_and_an_end() {
    let chat = Chat::start(&[]).await;
    let reply = chat.ask(QUESTION).await;
    assert_eq!(reply.status, 202);
    assert_eq!(reply.header("location"), "answers/0/stream");
    let expected = model::answer(QUESTION);
    assert_eq!(read_answer(chat.addr, "/chats/tea/answers/0/stream").await, (expected.clone(), "finished".to_owned()));
    let history = chat.history().await;
    assert_eq!(history["messages"][0]["answer"], expected.join(" "));
    assert_eq!(history["active"], Value::Null);
}

#[tokio::test]
async fn question_during_an_answer_is_refused() {
    let chat = Chat::start(&[]).await;
    assert_eq!(chat.ask(QUESTION).await.status, 202);
    assert_eq!(chat.ask("And why do bridges not float?").await.status, 409);
    let history = chat.history().await;
    assert_eq!((history["messages"].as_array().unwrap().len(), &history["active"]), (1, &json!(0)));
}

#[tokio::test]
async fn stop_ends_the_answer_so_that_the_next_question_is_accepted() {
    let chat = Chat::start(&[]).await;
    assert_eq!(chat.stop(0).await, 404);
    assert_eq!(chat.ask(QUESTION).await.status, 202);
    assert_eq!(chat.stop(0).await, 202);
    let (words, reason) = read_answer(chat.addr, "/chats/tea/answers/0/stream").await;
    assert_eq!(reason, "stopped");
    assert!(words.len() < model::answer(QUESTION).len());
    assert_eq!(chat.history().await["messages"][0]["state"], "stopped");
    let next = chat.ask(QUESTION).await;
    assert_eq!((next.status.as_u16(), next.header("location")), (202, "answers/1/stream"));
}

#[tokio::test]
async fn question_without_text_or_with_too_much_text_is_refused() {
    let chat = Chat::start(&[]).await;
    for question in [" ", &"long ".repeat(101)] {
        assert_eq!(chat.ask(question).await.status, 400);
    }
}

#[tokio::test]
async fn two_instances_accept_one_of_two_questions_at_the_same_time() {
    let Some(redis) = RedisServer::start(FORGETFUL) else { return };
    let url = redis.url();
    let shared = ["--backplane", &url];
    let (one, two) = tokio::join!(Chat::start(&shared), Chat::start(&shared));
    let (first, second) = tokio::join!(one.ask(QUESTION), two.ask(QUESTION));
    let mut statuses = [first.status.as_u16(), second.status.as_u16()];
    statuses.sort_unstable();
    assert_eq!(statuses, [202, 409]);
}

#[tokio::test]
async fn history_does_not_need_the_instance_that_wrote_it() {
    let Some(redis) = RedisServer::start(FORGETFUL) else { return };
    let url = redis.url();
    let shared = ["--backplane", &url];
    let (one, two) = tokio::join!(Chat::start(&shared), Chat::start(&shared));
    assert_eq!(one.ask(QUESTION).await.status, 202);
    read_answer(one.addr, "/chats/tea/answers/0/stream").await;
    assert_eq!(one.ask(QUESTION).await.status, 202);
    one.process.signal("-KILL");
    // The other instance ends the answer when the lease of the killed instance ends.
    assert_eq!(read_answer(two.addr, "/chats/tea/answers/1/stream").await.1, "aborted");
    let late = Chat::start(&shared).await;
    for instance in [&two, &late] {
        let history = instance.history().await;
        let states: Vec<_> = history["messages"].as_array().unwrap().iter().map(|message| &message["state"]).collect();
        assert_eq!(states, ["finished", "interrupted"]);
        assert_eq!(history["messages"][0]["answer"], model::answer(QUESTION).join(" "));
    }
    assert_eq!(late.ask(QUESTION).await.status, 202);
}

#[tokio::test]
async fn shutdown_waits_for_the_answers_of_the_instance() {
    let chat = Chat::start(&[]).await;
    assert_eq!(chat.ask(QUESTION).await.status, 202);
    let answer = get(chat.addr, "/chats/tea/answers/0/stream").await;
    chat.process.signal("-TERM");
    let events = answer.events().rest().await;
    assert_eq!(events.iter().filter(|event| event.event == "word").count(), model::answer(QUESTION).len());
    let (code, _, errors) = chat.process.output().await;
    assert_eq!((code, errors.as_str()), (Some(0), ""));
}

#[tokio::test]
async fn page_loads_only_its_own_files_and_parses_no_text_as_html() {
    let chat = Chat::start(&[]).await;
    for (path, kind) in [("/", "text/html"), ("/page.css", "text/css"), ("/page.js", "text/javascript")] {
        let file = get(chat.addr, path).await;
        assert_eq!((file.status.as_u16(), file.header("content-type")), (200, &*format!("{kind}; charset=utf-8")));
        let text = file.text().await;
        for foreign in ["https:", "src=\"h", "@import", "innerHTML", "insertAdjacentHTML"] {
            assert!(!text.contains(foreign), "{path}: {foreign}");
        }
    }
}
