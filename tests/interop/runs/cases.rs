//! The cases that every client goes through, and the outcome of each.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use futures::StreamExt;

use super::clients::Client;
use super::driver::{Driver, Job, Report};
use super::gate::Gate;
use super::protocol::{HALF, PARTS, TEXT};
use super::site::{Instance, Next, Plan, Transport, World};

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Case {
    Whole,
    Break,
    Instance,
    Drain,
    Reload,
    Late,
    Refused,
    Stop,
    Will,
    Aborted,
}

/// The number of streams that a client reads at the same time.
const AT_ONCE: usize = 16;
/// The same for a client that waits at least a second before it resumes.
const AT_ONCE_SLOW: usize = 64;
/// The number of breaks that tell what happens at an end of a response. One is not enough: the
/// responses differ in length, because the server sends the events in different chunks.
const AT_AN_END: usize = 5;
/// The number of requests after which a client is taken to repeat them without end.
const ENDLESS: usize = 25;

impl Case {
    pub const ALL: [Self; 10] = [
        Self::Whole,
        Self::Break,
        Self::Instance,
        Self::Drain,
        Self::Reload,
        Self::Late,
        Self::Refused,
        Self::Stop,
        Self::Will,
        Self::Aborted,
    ];

    /// Returns the head of the column of the case.
    pub fn title(self) -> &'static str {
        match self {
            Self::Whole => "Whole",
            Self::Break => "Break",
            Self::Instance => "Other instance",
            Self::Drain => "Drain",
            Self::Reload => "Reload",
            Self::Late => "Too late",
            Self::Refused => "503",
            Self::Stop => "Stop",
            Self::Will => "Last will",
            Self::Aborted => "Aborted",
        }
    }

    /// The cases about reading the whole answer.
    pub const READING: &[Self] = &[Self::Whole, Self::Break, Self::Instance, Self::Drain, Self::Reload];
    /// The cases about refusals and about other ends.
    pub const ENDS: &[Self] = &[Self::Refused, Self::Late, Self::Stop, Self::Will, Self::Aborted];

    /// Returns the description of the case, for the document.
    pub fn meaning(self) -> &'static str {
        match self {
            Self::Whole => "the client reads a run from its first event to its end",
            Self::Break => {
                "the connection breaks within the response, after every byte (in some streams after every third or seventh)"
            }
            Self::Instance => "the connection breaks in the middle, and the next request reaches another instance",
            Self::Drain => "the instance of the reader drains in the middle, while another instance writes the run",
            Self::Reload => "a second page opens in the middle and reads the run from the start, at another instance",
            Self::Late => {
                "the next request after a break, or the reload for a client that does not resume, finds that the run is \
                 forgotten"
            }
            Self::Refused => "an instance that shuts down refuses the first request",
            Self::Stop => "the page calls the stop route of the application at another instance in the middle",
            Self::Will => "the writer is dropped in the middle; the run has a last will",
            Self::Aborted => "the same without a last will",
        }
    }
}

/// The way of the requests to the instances.
#[derive(Clone)]
pub struct Route {
    pub transport: Transport,
    /// The address of an nginx that passes `/<port>/…` on to that port.
    pub nginx: Option<std::net::SocketAddr>,
}

impl Route {
    fn url(&self, addr: std::net::SocketAddr) -> String {
        match (&self.transport, self.nginx) {
            (_, Some(nginx)) => format!("http://{nginx}/{}", addr.port()),
            (Transport::Http2(_), None) => format!("https://{addr}"),
            (_, None) => format!("http://{addr}"),
        }
    }
}

/// One client on one route.
pub struct Scene<'a> {
    pub client: &'static Client,
    pub driver: &'a Driver,
    pub route: &'a Route,
}

/// The conversation of one case.
struct Talk<'a> {
    gate: Gate,
    plan: std::sync::Arc<Plan>,
    job: Job<'a>,
}

impl Talk<'_> {
    /// Waits for the end of the client, and describes it. A client that repeats its request without
    /// end is stopped.
    async fn outcome(&mut self) -> String {
        let plan = &self.plan;
        let endless = async {
            while plan.statuses.lock().unwrap().len() < ENDLESS {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        tokio::select! {
            report = self.job.end() => report.map_or_else(|| "hangs".to_owned(), |report| describe(&report)),
            () = endless => "repeats".to_owned(),
        }
    }

    /// Waits until the page shows half of the text. If it does not, returns what happened instead.
    async fn half(&mut self, page: u64) -> Result<(), String> {
        if self.job.shows_half(page).await { Ok(()) } else { Err(self.outcome().await) }
    }
}

impl Drop for Talk<'_> {
    fn drop(&mut self) {
        // The writer ends too.
        self.plan.next.send_replace(Some(Next::Finish));
    }
}

/// Describes the end of a client.
fn describe(report: &Report) -> String {
    let Report { text, end, note } = report;
    let text = match &text[..] {
        TEXT => "whole",
        HALF => "half",
        "" => "nothing",
        other => other,
    };
    match &end[..] {
        "finished" => text.to_owned(),
        "error" if TEXT.starts_with(&report.text) => {
            if std::env::var_os("INTEROP_CLIENT").is_some() {
                eprintln!("error after {text:?}: {note}");
            }
            "error".to_owned()
        }
        "error" => format!("error after {text:?}"),
        other => other.to_owned(),
    }
}

static NUMBER: AtomicU64 = AtomicU64::new(0);

impl Scene<'_> {
    /// Performs a case, and returns its outcome.
    pub async fn perform(&self, case: Case) -> String {
        match self.case(case).await {
            Ok(outcome) | Err(outcome) => outcome,
        }
    }

    async fn case(&self, case: Case) -> Result<String, String> {
        if case == Case::Break {
            return Ok(self.breaks().await);
        }
        let world = World::start(&self.route.transport, case == Case::Drain).await;
        let World { a, b, closing, lost, .. } = &world;
        let (how, targets): (_, &[&Instance]) = match case {
            Case::Instance | Case::Drain => ("ask", &[a, b]),
            Case::Reload => ("reload", &[a, b]),
            Case::Late if self.client.resumes => ("ask", &[a, lost]),
            Case::Late => ("reload", &[a, lost]),
            Case::Refused => ("ask", &[closing, a]),
            Case::Stop => ("stop", &[a]),
            _ => ("ask", &[a]),
        };
        let gate = Gate::start(targets.iter().map(|instance| instance.addr).collect()).await;
        let pauses = !matches!(case, Case::Whole | Case::Refused);
        let mut talk = self.talk(&world, gate, how, pauses, case == Case::Will);
        match case {
            Case::Instance => {
                talk.half(1).await?;
                talk.gate.break_first(1).await;
                talk.plan.next.send_replace(Some(Next::Finish));
            }
            Case::Drain => {
                talk.half(1).await?;
                world.a.hub.drain(Duration::ZERO).await;
                // The connections of an instance end with its process.
                talk.gate.break_first(1).await;
                talk.plan.next.send_replace(Some(Next::Finish));
            }
            Case::Reload => {
                talk.half(2).await?;
                talk.plan.next.send_replace(Some(Next::Finish));
            }
            Case::Late if self.client.resumes => {
                talk.half(1).await?;
                talk.gate.break_first(1).await;
            }
            Case::Will | Case::Aborted => {
                talk.half(1).await?;
                talk.plan.next.send_replace(Some(Next::Drop));
            }
            Case::Late | Case::Whole | Case::Break | Case::Refused | Case::Stop => {}
        }
        Ok(talk.outcome().await)
    }

    fn talk<'a>(&'a self, world: &'a World, gate: Gate, how: &str, pauses: bool, has_will: bool) -> Talk<'a> {
        let id = format!("c{}", NUMBER.fetch_add(1, Ordering::Relaxed));
        let plan = world.plan(&id, pauses, has_will);
        let direct = match self.route.transport {
            Transport::Http2(_) => format!("https://{}", world.b.addr),
            _ => format!("http://{}", world.b.addr),
        };
        let job = self.driver.job(how, &id, &self.route.url(gate.addr), &direct);
        Talk { gate, plan, job }
    }

    /// Breaks the first response after each byte.
    async fn breaks(&self) -> String {
        let world = World::start(&self.route.transport, false).await;
        let mut outcomes: Vec<(usize, String)> = Vec::new();
        let mut first = 0;
        let at_once = if self.client.is_slow { AT_ONCE_SLOW } else { AT_ONCE };
        let batch = 4 * AT_ONCE;
        // Until the break is behind the end of the response.
        while outcomes.last().is_none_or(|(_, outcome)| outcome != "not torn") {
            let tears = (first..first + batch).map(|tear| tear * self.client.step);
            let some: Vec<_> =
                futures::stream::iter(tears).map(|tear| self.torn(&world, tear)).buffered(at_once).collect().await;
            outcomes.extend(some);
            first += batch;
            assert!(first < 100_000, "the response has no end");
        }
        if std::env::var_os("INTEROP_CLIENT").is_some() {
            let mut kinds: Vec<(&str, Vec<usize>)> = Vec::new();
            for (tear, outcome) in &outcomes {
                match kinds.iter_mut().find(|(kind, _)| kind == outcome) {
                    Some((_, tears)) => tears.push(*tear),
                    None => kinds.push((outcome, vec![*tear])),
                }
            }
            for (kind, tears) in kinds {
                eprintln!(
                    "{}: {kind}: {} times, at {:?}…",
                    self.client.title(),
                    tears.len(),
                    &tears[..tears.len().min(12)]
                );
            }
        }
        summary(&outcomes.into_iter().map(|(_, outcome)| outcome).collect::<Vec<_>>())
    }

    async fn torn(&self, world: &World, tear: usize) -> (usize, String) {
        let gate = Gate::tearing(vec![world.a.addr], tear).await;
        let mut talk = self.talk(world, gate, "ask", false, false);
        let outcome = talk.outcome().await;
        let again = talk.gate.connections() > 1;
        let outcome = match (&outcome[..], again, talk.gate.is_torn()) {
            ("whole", false, false) => "not torn".to_owned(),
            // All that the client needs had arrived.
            ("whole", false, true) => "whole".to_owned(),
            ("whole", true, _) => "resumes".to_owned(),
            ("error", _, true) => "error".to_owned(),
            (other, ..) if is_without_one_part(other) => "loses".to_owned(),
            (other, ..) => format!("{other:?}"),
        };
        (tear, outcome)
    }
}

/// Whether a text is the whole one without one of its parts.
fn is_without_one_part(text: &str) -> bool {
    (0..PARTS.len()).any(|left_out| {
        let parts = PARTS.iter().enumerate().filter(|(number, _)| *number != left_out);
        parts.map(|(_, part)| *part).collect::<String>() == text
    })
}

/// Summarizes the outcomes of breaks, in the order of the bytes: the most frequent one at the first
/// bytes, those in the middle, and the most frequent one at the last bytes.
fn summary(outcomes: &[String]) -> String {
    let torn: Vec<&str> =
        outcomes.iter().map(|outcome| &outcome[..]).filter(|kind| !["not torn", "whole"].contains(kind)).collect();
    if torn.is_empty() {
        return "whole".to_owned();
    }
    let first = most_frequent(&torn[..torn.len().min(AT_AN_END)]);
    let last = most_frequent(&torn[torn.len().saturating_sub(AT_AN_END)..]);
    let middle = &torn[torn.len() * 3 / 10..torn.len() * 7 / 10];
    let mut kinds: Vec<&str> = Vec::new();
    for kind in middle.iter().chain(torn.iter().filter(|kind| !["error", "resumes"].contains(kind))) {
        if !kinds.contains(kind) {
            kinds.push(kind);
        }
    }
    kinds.sort_unstable();
    let middle = kinds.join(" or ");
    if middle == first && middle == last { middle } else { format!("first {first}, then {middle}, last {last}") }
}

fn most_frequent<'a>(kinds: &[&'a str]) -> &'a str {
    let count = |kind: &str| kinds.iter().filter(|other| **other == kind).count();
    kinds.iter().copied().max_by_key(|kind| count(kind)).unwrap()
}
