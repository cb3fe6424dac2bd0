//! The scenes that every client goes through, and the outcome of each case.

use std::sync::Arc;
use std::time::Duration;

use serde_json::Value;
use tower_sse::{Disconnect, Hub, HubBuilder, StreamEnd};

use crate::Outcome;
use crate::case::Case;
use crate::client::{Client, Installed, Reconnects};
use crate::deviation;
use crate::run::{Answer, Run, Seen};
use crate::sent::SAMPLES;

/// A `retry` between the default delays of the clients: some wait at most a second, others at least
/// three.
const RETRY: Duration = Duration::from_millis(1500);
/// A `retry` for scenes in which the delay matters little.
const SHORT: Duration = Duration::from_millis(300);

/// A client in a scene.
struct Scene<'a> {
    client: &'a Client,
    installed: &'a Installed,
    outcome: Outcome,
    /// The delay of each reconnect, and the `retry` that the client received.
    waits: Vec<(Duration, Duration)>,
}

pub async fn all(client: &'static Client, installed: Arc<Installed>) -> Outcome {
    let mut scene = Scene { client, installed: &installed, outcome: Outcome::new(), waits: Vec::new() };
    scene.reading().await;
    scene.large().await;
    scene.cut().await;
    scene.ends(Case::Clean, StreamEnd::Clean).await;
    scene.ends(Case::Aborted, StreamEnd::Abort).await;
    scene.busy().await;
    scene.unauthorized().await;
    scene.never().await;
    // A busy machine makes one wait look late, but not each of three.
    for _ in 0..2 {
        if scene.is_late() && deviation::of(client, Case::Retry).is_none() {
            scene.waits.retain(|wait| !is_late(wait));
            scene.cut().await;
        }
    }
    scene.retry();
    scene.outcome
}

/// Whether the client waited much longer than `retry`. Only long waits count, because a busy
/// machine makes short ones look late.
fn is_late((waited, retry): &(Duration, Duration)) -> bool {
    *retry >= RETRY && *waited > retry.mul_f64(1.8)
}

impl Scene<'_> {
    async fn start(&self, hub: HubBuilder, end: StreamEnd, answers: &[Answer], last: &str) -> Run {
        Run::start(self.client, self.installed, hub, end, answers, last).await
    }

    /// Records an outcome. The first outcome of a case that is not `ok` counts.
    fn note(&mut self, case: Case, outcome: impl Into<String>) {
        let noted = self.outcome.entry(case).or_insert_with(|| "ok".to_owned());
        if noted == "ok" {
            *noted = outcome.into();
        }
    }

    /// All cases about bytes, with heartbeats in between.
    async fn reading(&mut self) {
        let hub = Hub::builder().retry(SHORT).heartbeat(SHORT);
        let run = self.start(hub, self.client.end, &[Answer::Stream], "hub.bye").await;
        let mut ids = Vec::new();
        for (n, sample) in SAMPLES.iter().enumerate() {
            if n % 7 == 0 {
                run.heartbeat().await;
            }
            ids.push(run.publish(sample.name, sample.data).await);
        }
        run.heartbeat().await;
        let last = run.publish("", "after a heartbeat").await;
        run.sees("after a heartbeat").await;
        run.disconnect(Disconnect::now()).await;
        run.until(|record| record.exited).await;

        let seen = run.seen();
        let [hello, live, ..] = &seen[..] else { panic!("{}: nothing was seen", self.client.title()) };
        let cursor = serde_json::from_str::<Value>(&hello.data).map(|data| data["cursor"] == "fresh");
        let is_hello = hello.name == "hub.hello" && cursor.unwrap_or(false);
        let is_live = live.name == "hub.live" && live.data == "{}" && !live.id.is_empty();
        self.note(Case::Hello, if is_hello && is_live { "ok".to_owned() } else { format!("{hello:?}, {live:?}") });

        let own: Vec<&Seen> = seen.iter().filter(|seen| !seen.name.starts_with("hub.")).collect();
        for (sample, id) in SAMPLES.iter().zip(&ids) {
            let got = own.iter().find(|seen| seen.id == *id);
            let name = if sample.name.is_empty() { "message" } else { sample.name };
            let outcome = match got {
                Some(seen) if seen.name != name => format!("the name {:?} for {name:?}", seen.name),
                Some(seen) if seen.data != sample.seen => format!("{:?} for {:?}", seen.data, sample.seen),
                Some(_) => "ok".to_owned(),
                None => format!("nothing for {:?}", sample.data),
            };
            self.note(sample.case, outcome);
        }

        let whole = own.last().is_some_and(|seen| seen.id == last && seen.data == "after a heartbeat");
        let extra = own.len().saturating_sub(SAMPLES.len() + 1);
        self.note(
            Case::Heartbeats,
            match (whole, extra) {
                (true, 0) => "ok".to_owned(),
                (true, _) => "events that were not sent".to_owned(),
                (false, _) => "does not see what comes after them".to_owned(),
            },
        );
        self.note(
            Case::Ids,
            match seen.iter().find(|seen| seen.name == "hub.bye") {
                Some(bye) if bye.id == last => "ok".to_owned(),
                Some(bye) => format!("has the id {:?}", bye.id),
                None => "does not see the event".to_owned(),
            },
        );
    }

    async fn large(&mut self) {
        let run = self.start(Hub::builder().retry(SHORT), self.client.end, &[Answer::Stream], "end").await;
        let large: &'static str = "0123456789abcdef".repeat(200_000 / 16).leak();
        run.publish("", large).await;
        run.publish("end", "after it").await;
        let left = run.until(|record| record.exited).await;
        let seen: Vec<_> = own(&run).into_iter().map(|seen| seen.data).collect();
        self.note(
            Case::Large,
            if seen == [large, "after it"] {
                "ok".to_owned()
            } else if left {
                format!("gives up: {}", run.closed().unwrap_or_default())
            } else {
                format!("{:?} bytes", seen.iter().map(String::len).collect::<Vec<_>>())
            },
        );
    }

    /// The connection breaks within a frame, and events are published before the client reconnects.
    async fn cut(&mut self) {
        let run = self.start(Hub::builder().retry(RETRY), StreamEnd::Clean, &[Answer::Stream], "end").await;
        run.publish("", "a").await;
        let id = run.publish("note", "b").await;
        run.cut_at(b"data: half");
        run.publish("", "half\nof it").await;
        assert!(run.until(|record| record.ends.len() == 1).await, "{}: not cut", self.client.title());
        run.publish("", "c").await;
        let back = run.until(|record| record.requests.len() == 2).await;
        if !back {
            self.note(Case::Resume, without_reconnect(&run));
            return;
        }
        run.publish("", "d").await;
        run.publish("end", "").await;
        run.until(|record| record.exited).await;
        let sent = run.look(|record| record.requests[1].last_event_id.clone()).unwrap_or_default();
        self.note(
            Case::Resume,
            if sent == id {
                in_order(&run, &["a", "b", "half\nof it", "c", "d", ""])
            } else {
                format!("comes back with the id {sent:?}")
            },
        );
        self.waited(&run);
        self.check_reconnects(&run);
    }

    async fn ends(&mut self, case: Case, end: StreamEnd) {
        // The hub tells the client to reconnect after one to two times this.
        let retry = if end == self.client.end { RETRY } else { SHORT };
        let run = self.start(Hub::builder().retry(retry), end, &[Answer::Stream], "end").await;
        run.publish("", "a").await;
        run.sees("a").await;
        run.disconnect(Disconnect::now()).await;
        assert!(run.until(|record| record.ends.len() == 1).await, "{}: not ended", self.client.title());
        run.publish("", "b").await;
        let back = run.until(|record| record.requests.len() == 2).await;
        if !back {
            self.note(case, without_reconnect(&run));
            return;
        }
        run.publish("end", "c").await;
        run.until(|record| record.exited).await;
        let bye = run.seen().iter().any(|seen| seen.name == "hub.bye" && seen.data.contains(r#""reconnect":"now""#));
        self.note(case, if bye { in_order(&run, &["a", "b", "c"]) } else { "does not see `hub.bye`".to_owned() });
        self.waited(&run);
        self.check_reconnects(&run);
    }

    async fn busy(&mut self) {
        let answers = [Answer::Busy(SHORT), Answer::Stream];
        let run = self.start(Hub::builder(), self.client.end, &answers, "end").await;
        let back = run.until(|record| record.requests.len() == 2).await;
        if !back {
            self.note(Case::Busy, without_reconnect(&run));
            return;
        }
        run.publish("end", "").await;
        run.until(|record| record.exited).await;
        let refused =
            run.seen().iter().any(|seen| seen.name == "hub.refused" && seen.data.contains(r#""reason":"busy""#));
        self.note(Case::Busy, if refused { in_order(&run, &[""]) } else { "does not see `hub.refused`".to_owned() });
        self.waited(&run);
        self.check_reconnects(&run);
    }

    async fn unauthorized(&mut self) {
        let run = self.start(Hub::builder(), self.client.end, &[Answer::Login], "end").await;
        let twice = run.until(|record| record.requests.len() > 1).await;
        assert_eq!(run.look(|record| record.requests[0].status), 401);
        let often = twice && run.until(|record| record.requests.len() > 2).await;
        self.note(
            Case::Unauthorized,
            match (twice, often) {
                (false, _) => "ok",
                (true, false) => "asks twice",
                (true, true) => "asks again and again",
            },
        );
    }

    async fn never(&mut self) {
        let run = self.start(Hub::builder().retry(SHORT), self.client.end, &[Answer::Stream], "end").await;
        run.disconnect(Disconnect::block_for(Duration::from_secs(600))).await;
        let back = run.until(|record| record.requests.len() > 1).await;
        if back {
            assert_eq!(run.look(|record| record.requests[1].status), 204);
        }
        let again = run.until(|record| record.requests.len() > 2).await;
        self.note(Case::Never, if again { "asks again" } else { "ok" });
    }

    /// Records the delay of the reconnect.
    fn waited(&mut self, run: &Run) {
        self.waits.push(run.look(|record| {
            let ended = record.ends[0];
            (record.requests[1].at.duration_since(ended.at), ended.retry.expect("`hub.hello` has one"))
        }));
    }

    fn is_late(&self) -> bool {
        self.waits.iter().any(is_late)
    }

    fn retry(&mut self) {
        let early = self.waits.iter().any(|(waited, retry)| *waited < retry.mul_f64(0.97));
        self.note(
            Case::Retry,
            match (early, self.is_late()) {
                (true, _) => "comes back earlier",
                (false, true) => "comes back later",
                (false, false) => "ok",
            },
        );
    }

    /// Checks the documented way to reconnect: by the client or by the caller.
    fn check_reconnects(&self, run: &Run) {
        let returns = run.look(|record| record.requests.len()) - 1;
        let by_caller = run.by_the_caller();
        let is_so = match self.client.reconnects {
            Reconnects::Itself => by_caller == 0,
            Reconnects::Caller => by_caller == returns,
            Reconnects::Either => by_caller <= returns,
        };
        assert!(is_so, "{}: {by_caller} of {returns} times the caller reconnects", self.client.title());
    }
}

fn own(run: &Run) -> Vec<Seen> {
    run.seen().into_iter().filter(|seen| !seen.name.starts_with("hub.")).collect()
}

fn in_order(run: &Run, expected: &[&str]) -> String {
    let seen: Vec<_> = own(run).into_iter().map(|seen| seen.data).collect();
    if seen == expected { "ok".to_owned() } else { format!("{seen:?}") }
}

/// Describes a client that does not reconnect.
fn without_reconnect(run: &Run) -> String {
    run.closed().map_or_else(|| "does not reconnect".to_owned(), |why| format!("gives up: {why}"))
}
