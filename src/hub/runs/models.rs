//! Property tests of runs against simple references.

#![allow(clippy::unwrap_used, reason = "tests, helpers and all")]

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::Waker;

use futures::FutureExt;
use proptest::prelude::*;

use super::content::{Entry, Over, RunContent};
use super::exchange::Exchange;
use crate::hub::peers::message::{InstanceId, RunNews};
use crate::log::{Listener, Millis};
use crate::types::{ConnectionId, Epoch, Event, Ids, RunEnd, Topic};
use crate::wire::{Draft, Framing};

const READERS: usize = 3;
const EPOCH: u64 = 0xab;
/// The bounds of one step of a reader.
const MAX_EVENTS: usize = 64;
const MAX_BYTES: usize = 64 * 1024;

/// A reader that counts how often it is woken.
struct Counted {
    id: ConnectionId,
    woken: AtomicUsize,
}

impl Listener for Counted {
    fn id(&self) -> ConnectionId {
        self.id
    }

    fn notify(&self, _: Millis) -> Option<Waker> {
        self.woken.fetch_add(1, Ordering::Relaxed);
        None
    }
}

#[derive(Clone, Debug)]
enum Step {
    /// An entry whose number is `skew` too high, with events of these sizes.
    Apply {
        skew: i64,
        sizes: Vec<usize>,
        end: Option<RunEnd>,
    },
    Read(usize),
    /// A reader leaves, and the next one resumes anywhere, perhaps a few events ahead.
    Resume(usize, u64),
    Lose,
    Stop,
}

fn step() -> impl Strategy<Value = Step> {
    let skew = prop_oneof![8 => Just(0_i64), 1 => -2..0_i64, 1 => 1..3_i64];
    let size = prop_oneof![20 => 0..200_usize, 1 => 20_000..90_000_usize];
    let sizes = prop_oneof![6 => prop::collection::vec(size, 0..4), 1 => prop::collection::vec(0..20_usize, 50..140)];
    let ends = prop_oneof![Just(RunEnd::Finished), Just(RunEnd::Failed), Just(RunEnd::Stopped), Just(RunEnd::Aborted)];
    let end = prop::option::weighted(0.05, ends);
    prop_oneof![
        10 => (skew, sizes, end).prop_map(|(skew, sizes, end)| Step::Apply { skew, sizes, end }),
        10 => (0..READERS).prop_map(Step::Read),
        2 => (0..READERS, any::<u64>()).prop_map(|(reader, at)| Step::Resume(reader, at)),
        1 => Just(Step::Lose),
        1 => Just(Step::Stop),
    ]
}

/// The reference of a run.
#[derive(Default)]
struct Model {
    events: Vec<String>,
    entries: u64,
    over: Option<Over>,
    lost: bool,
    stopped: bool,
    /// The number of changes that wake every reader.
    changes: usize,
}

/// Checks one step of a reader at `cursor`. Returns the cursor after the step.
fn read(run: &RunContent, model: &Model, cursor: u64) -> u64 {
    let part = run.read(cursor);
    let is_ahead = cursor > model.events.len() as u64;
    assert_eq!(part.is_ahead, is_ahead);
    let from = usize::try_from(cursor).unwrap().min(model.events.len());
    let rest = &model.events[from..];
    let count = part.frames.len();
    assert!(count <= rest.len() && count <= MAX_EVENTS);
    assert_eq!(count == 0, rest.is_empty(), "a step makes progress");
    let mut bytes = 0;
    for (index, (frame, data)) in part.frames.iter().zip(rest).enumerate() {
        assert_eq!(frame.decode(), (String::new(), data.clone()));
        let mut written = Vec::new();
        frame.write(&mut written, Ids::Last);
        let id = format!("id: 1.{EPOCH:x}.{}\n\n", from + index + 1);
        assert!(String::from_utf8(written).unwrap().ends_with(&id), "{id}");
        bytes += frame.len();
    }
    assert!(bytes <= MAX_BYTES || count == 1, "{bytes} bytes in {count} events");
    // The end comes together with the last event, and not before.
    let is_last = count == rest.len();
    assert_eq!(part.over, model.over.clone().filter(|_| is_last));
    assert_eq!(part.lost, model.lost && is_last);
    cursor + count as u64
}

fn check(run: &RunContent, model: &Model, readers: &[Arc<Counted>]) {
    let progress = run.progress();
    assert_eq!((progress.events, progress.entries), (model.events.len() as u64, model.entries));
    assert_eq!((progress.end, progress.lost), (model.over.as_ref().map(|over| over.end), model.lost));
    let is_over = model.over.is_some() || model.lost;
    assert_eq!(run.is_active(), !is_over);
    assert_eq!(run.is_asked_to_stop(), model.stopped);
    assert_eq!(run.asked_to_stop().now_or_never().is_some(), model.stopped || is_over, "the writer learns the end");
    for reader in readers {
        assert_eq!(reader.woken.load(Ordering::Relaxed), model.changes);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 500, ..ProptestConfig::default() })]

    #[test]
    fn readers_receive_every_event_once_and_then_the_end(steps in prop::collection::vec(step(), 1..80)) {
        let framing = Framing { max_payload: 1 << 20 };
        let run = RunContent::new(Epoch(EPOCH), InstanceId(1), None);
        let mut model = Model::default();
        let readers: Vec<_> = (0..READERS as u128)
            .map(|n| Arc::new(Counted { id: ConnectionId::from_bits(n), woken: AtomicUsize::new(0) }))
            .collect();
        readers.iter().for_each(|reader| run.listen(Arc::clone(reader) as _));
        let mut cursors = [0; READERS];
        for step in steps {
            match step {
                Step::Apply { skew, sizes, end } => {
                    let first = model.events.len();
                    let data: Vec<_> =
                        sizes.iter().enumerate().map(|(n, size)| format!("{} {}", first + n, "x".repeat(*size))).collect();
                    let encode = |data: &String| Draft::encode(&Event::unnamed(data.clone()), &framing).unwrap();
                    let over = end.map(|end| Over { end, note: None });
                    let entry = Entry { drafts: data.iter().map(encode).collect(), over: over.clone() };
                    let number = (model.entries + 1).saturating_add_signed(skew);
                    let applied = run.apply(number, entry, 0);
                    let fits = number == model.entries + 1 && model.over.is_none() && !model.lost;
                    assert_eq!(applied, fits.then_some(first as u64));
                    if fits {
                        model.events.extend(data);
                        model.entries += 1;
                        model.over = over;
                        model.changes += 1;
                    }
                }
                Step::Read(reader) => cursors[reader] = read(&run, &model, cursors[reader]),
                Step::Resume(reader, at) => {
                    cursors[reader] = at % (model.events.len() as u64 + 3);
                    run.unlisten(readers[reader].id);
                    run.listen(Arc::clone(&readers[reader]) as _);
                }
                Step::Lose => {
                    let is_new = run.lose(0);
                    assert_eq!(is_new, model.over.is_none() && !model.lost);
                    model.lost |= is_new;
                    model.changes += usize::from(is_new);
                }
                Step::Stop => {
                    run.ask_to_stop();
                    model.stopped = true;
                }
            }
            check(&run, &model, &readers);
        }
        // Each reader then reads to the end in steps.
        for mut cursor in cursors {
            while cursor < model.events.len() as u64 {
                cursor = read(&run, &model, cursor);
            }
            read(&run, &model, cursor);
        }
    }

    /// A broadcast takes the news, and puts them back if it fails. Meanwhile further entries and
    /// further runs are noted.
    #[test]
    fn the_newest_news_of_a_name_are_announced(
        steps in prop::collection::vec((0..3_usize, 0..10_u8), 1..60),
    ) {
        let mut exchange = Exchange::new(0);
        let names: Vec<Topic> = ["a", "b", "c"].map(|name| Topic::try_from(name).unwrap()).into();
        let mut newest = [None::<RunNews>; 3];
        let mut announced = [None::<RunNews>; 3];
        let mut taken = Vec::new();
        for (name, step) in steps {
            match step {
                // The writer appends.
                0..5 => {
                    let news = newest[name].get_or_insert(RunNews { id: Epoch(1), entries: 0 });
                    news.entries += 1;
                    exchange.note(&names[name], *news);
                }
                // The next run of the name begins.
                5..7 => {
                    let id = newest[name].map_or(1, |news| news.id.0 + 1);
                    let news = RunNews { id: Epoch(id), entries: 1 };
                    newest[name] = Some(news);
                    exchange.note(&names[name], news);
                }
                // A broadcast begins.
                7 if taken.is_empty() => taken.extend(std::mem::take(&mut exchange.changed)),
                // It succeeds.
                7 | 8 => {
                    for (topic, news) in std::mem::take(&mut taken) {
                        announced[names.iter().position(|name| *name == topic).unwrap()] = Some(news);
                    }
                }
                // It fails.
                _ => exchange.put_back(std::mem::take(&mut taken)),
            }
        }
        exchange.put_back(taken);
        for (index, name) in names.iter().enumerate() {
            match exchange.changed.get(name) {
                Some(news) => assert_eq!(Some(*news), newest[index]),
                None => assert_eq!(announced[index], newest[index]),
            }
        }
    }
}
