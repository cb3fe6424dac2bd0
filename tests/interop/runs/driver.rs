//! The process of a client, which performs many jobs. `node/runs/jobs.mjs` describes a job.

use std::collections::HashMap;
use std::process::Stdio;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::process::{Child, Command};
use tokio::sync::mpsc;

use super::clients::Client;
use super::protocol::HALF;

/// The limit for each step of a client: above the delays of all attempts of a client together. The
/// delays of `LangGraph` are random, and can add up to a minute.
const ACTS_WITHIN: Duration = Duration::from_secs(120);

type Jobs = Arc<Mutex<HashMap<u64, mpsc::UnboundedSender<Value>>>>;

pub struct Driver {
    client: &'static Client,
    jobs: Jobs,
    next: AtomicU64,
    input: mpsc::UnboundedSender<String>,
    _child: Child,
}

/// What a client reported at its end.
#[derive(Clone, Debug)]
pub struct Report {
    pub text: String,
    /// `finished`, `error`, `nothing` or `none`.
    pub end: String,
    pub note: String,
}

impl Driver {
    pub fn start(client: &'static Client, http2: bool) -> Self {
        let [program, arguments @ ..] = &client.command()[..] else { panic!("no program") };
        let mut command = Command::new(program);
        command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).kill_on_drop(true);
        command.env("PYTHONDONTWRITEBYTECODE", "1");
        if http2 {
            command.env("RUNS_HTTP2", "1");
        }
        if std::env::var_os("INTEROP_CLIENT").is_none() {
            // Hide the warnings of the client, unless the test runs only this client.
            command.stderr(Stdio::null());
        }
        let mut child = command.spawn().unwrap();
        let (mut stdin, stdout) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
        let (input, mut lines) = mpsc::unbounded_channel::<String>();
        tokio::spawn(async move {
            while let Some(line) = lines.recv().await {
                if stdin.write_all(line.as_bytes()).await.is_err() {
                    return;
                }
            }
        });
        let jobs = Jobs::default();
        tokio::spawn({
            let jobs = Arc::clone(&jobs);
            async move {
                let mut lines = BufReader::new(stdout).lines();
                while let Ok(Some(line)) = lines.next_line().await {
                    let line: Value = serde_json::from_str(&line).unwrap_or_else(|_| panic!("no JSON: {line}"));
                    let job = line["job"].as_u64().unwrap();
                    // The test may have lost interest in the job.
                    if let Some(job) = jobs.lock().unwrap().get(&job) {
                        drop(job.send(line));
                    }
                }
            }
        });
        Self { client, jobs, next: AtomicU64::new(0), input, _child: child }
    }

    /// Starts a job.
    pub fn job(&self, how: &str, id: &str, base: &str, direct: &str) -> Job<'_> {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let (sender, lines) = mpsc::unbounded_channel();
        self.jobs.lock().unwrap().insert(number, sender);
        let job = json!({
            "job": number, "client": self.client.variant_in_script, "how": how, "id": id,
            "base": base, "direct": direct, "half": HALF,
        });
        drop(self.input.send(format!("{job}\n")));
        Job { driver: self, number, lines, report: None }
    }
}

pub struct Job<'a> {
    driver: &'a Driver,
    number: u64,
    lines: mpsc::UnboundedReceiver<Value>,
    report: Option<Report>,
}

impl Job<'_> {
    /// Reads the next line. Returns `false` after the last, or if the client takes too long.
    async fn line(&mut self, mut reads: impl FnMut(&Value)) -> bool {
        let Ok(Some(line)) = tokio::time::timeout(ACTS_WITHIN, self.lines.recv()).await else { return false };
        reads(&line);
        if line.get("end").is_some() {
            let text = |name: &str| line[name].as_str().unwrap_or_default().to_owned();
            self.report = Some(Report { text: text("text"), end: text("end"), note: text("note") });
        }
        true
    }

    /// Waits until a page shows half of the text. Returns `false` if the client ends first.
    pub async fn shows_half(&mut self, page: u64) -> bool {
        let mut shows = false;
        while !shows && self.report.is_none() {
            if !self.line(|line| shows = line["page"] == page && line["text"] == HALF).await {
                return false;
            }
        }
        shows
    }

    /// Waits for the end, and returns `None` if there is none.
    pub async fn end(&mut self) -> Option<Report> {
        while self.report.is_none() {
            if !self.line(|_| ()).await {
                break;
            }
        }
        self.report.clone()
    }
}

impl Drop for Job<'_> {
    fn drop(&mut self) {
        self.driver.jobs.lock().unwrap().remove(&self.number);
        if self.report.is_none() {
            drop(self.driver.input.send(format!("{}\n", json!({"cancel": self.number}))));
        }
    }
}
