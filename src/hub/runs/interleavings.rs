//! Models of a run that one thread writes and another one reads, in every order with at most three
//! preemptions: `RUSTFLAGS="--cfg tower_sse_loom" cargo test --release --lib
//! hub::runs::interleavings`.
//!
//! A reader that sleeps although the run has more for it is a deadlock, which loom reports.

#![allow(clippy::unwrap_used, reason = "tests, helpers and all")]

use std::sync::Arc;
use std::task::{Poll, Waker};

use futures::future::poll_fn;
use loom::future::block_on;
use loom::thread;

use super::content::{Entry, Over, RunContent, RunPart};
use crate::hub::peers::message::InstanceId;
use crate::log::{Listener, Millis};
use crate::sync::WakerCell;
use crate::types::{ConnectionId, Epoch, Event, RunEnd};
use crate::wire::{Draft, Framing};

fn model(check: impl Fn() + Send + Sync + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(3);
    builder.check(check);
}

fn run() -> Arc<RunContent> {
    let run = RunContent::new(Epoch(1), InstanceId(1), None);
    run.apply(1, Entry::default(), 0);
    Arc::new(run)
}

/// An entry with one event, and with an end if there is one.
fn entry(end: Option<RunEnd>) -> Entry {
    let framing = Framing { max_payload: 1 << 20 };
    let draft = Draft::encode_for_run(&Event::unnamed("x"), &framing).unwrap();
    Entry { drafts: vec![draft], over: end.map(|end| Over { end, note: None }) }
}

struct Sleeper {
    waker: WakerCell,
}

impl Listener for Sleeper {
    fn id(&self) -> ConnectionId {
        ConnectionId::from_bits(7)
    }

    fn notify(&self, _: Millis) -> Option<Waker> {
        self.waker.take()
    }
}

/// Reads a run to its end, as a stream does. Returns the number of events, and the last part.
fn read(run: &RunContent) -> (u64, RunPart) {
    let sleeper = Arc::new(Sleeper { waker: WakerCell::new() });
    run.listen(sleeper.clone());
    let mut events = 0;
    let last = block_on(poll_fn(|cx| {
        loop {
            sleeper.waker.register(cx.waker());
            let part = run.read(events);
            events += part.frames.len() as u64;
            if part.over.is_some() || part.lost {
                return Poll::Ready(part);
            }
            if part.frames.is_empty() {
                return Poll::Pending;
            }
        }
    }));
    run.unlisten(sleeper.id());
    (events, last)
}

#[test]
fn a_reader_receives_every_event_and_the_end() {
    model(|| {
        let run = run();
        let writer = {
            let run = Arc::clone(&run);
            thread::spawn(move || {
                assert_eq!(run.apply(2, entry(None), 0), Some(0));
                assert_eq!(run.apply(3, entry(Some(RunEnd::Finished)), 0), Some(1));
            })
        };
        let (events, last) = read(&run);
        assert_eq!((events, last.over.map(|over| over.end)), (2, Some(RunEnd::Finished)));
        writer.join().unwrap();
    });
}

/// The writer ends the run while a read of the journal applies the same entry, or another end.
#[test]
fn of_two_ends_one_takes_effect() {
    model(|| {
        let run = run();
        let aborts = {
            let run = Arc::clone(&run);
            thread::spawn(move || run.apply(2, entry(Some(RunEnd::Aborted)), 0).is_some())
        };
        let finishes = run.apply(2, entry(Some(RunEnd::Finished)), 0).is_some();
        let (events, last) = read(&run);
        let aborted = aborts.join().unwrap();
        let end = if finishes { RunEnd::Finished } else { RunEnd::Aborted };
        assert_ne!(finishes, aborted);
        assert_eq!((events, last.over.map(|over| over.end)), (1, Some(end)));
    });
}

#[test]
fn a_run_that_is_lost_wakes_its_reader_unless_it_has_ended() {
    model(|| {
        let run = run();
        let loses = {
            let run = Arc::clone(&run);
            thread::spawn(move || run.lose(0))
        };
        let ends = {
            let run = Arc::clone(&run);
            thread::spawn(move || run.apply(2, entry(Some(RunEnd::Finished)), 0).is_some())
        };
        let (events, last) = read(&run);
        let (lost, ended) = (loses.join().unwrap(), ends.join().unwrap());
        assert_ne!(lost, ended);
        assert_eq!((events, last.lost, last.over.is_some()), (u64::from(ended), lost, ended));
    });
}
