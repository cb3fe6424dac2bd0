//! Property tests of a log whose channels become dormant, against a log that stores every record.
//!
//! For every reader: both logs return the same records in the same order, and the same gaps. The
//! shared log has all records.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests, helpers and all")]

use std::collections::BTreeSet;
use std::time::Duration;

use proptest::prelude::*;

use crate::log::*;
use crate::types::{AsAddress, Event, Retention, ScopeName, Scoped, Start, TopicFilter, UserId};
use crate::wire::{Draft, Framing};

const EPOCH: Epoch = Epoch(7);
const READERS: usize = 3;
/// The time without listeners after which a channel is dormant.
const DORMANT_AFTER: Millis = 400;
const AGE: Millis = 3_000;

fn address(index: usize) -> Address {
    match index {
        0 => Address::Everyone(ScopeName::ROOT),
        1 => Address::User(UserId::try_from("a").unwrap()),
        index => Address::Topic(Topic::try_from(["a", "short/b", "live/c", "latest/d"][index - 2]).unwrap()),
    }
}

const CHANNELS: usize = 6;

fn log(dormant_after: Option<Millis>) -> Log {
    let age = Duration::from_millis(AGE);
    let replay = Retention::replay().count(8).age(age);
    let live = Retention::live().count(4).with_live_window(age / 2);
    let policies = Policies::new(
        vec![
            (TopicFilter::prefix("short/"), Retention::replay().count(2).age(age)),
            (TopicFilter::prefix("live/"), live.clone()),
            (TopicFilter::prefix("latest/"), Retention::latest_per_key().with_live_window(age)),
        ],
        replay.clone(),
        replay.clone(),
        replay,
        live,
    );
    Log::new(EPOCH, policies, Budgets { ring_bytes: 1 << 30, keyed_bytes: 1 << 30, grace: 10_000, dormant_after })
}

#[derive(Clone, Debug)]
enum Step {
    Publish {
        to: BTreeSet<usize>,
        key: Option<u8>,
        removes: bool,
        except: Option<usize>,
        times: usize,
    },
    /// Closes the connection and opens it again.
    Reopen {
        reader: usize,
        on: BTreeSet<usize>,
        begin: Beginning,
    },
    Close {
        reader: usize,
    },
    /// Joins from now on, or from `back` records ago on.
    Join {
        reader: usize,
        to: usize,
        back: Option<u64>,
    },
    Leave {
        reader: usize,
        from: usize,
    },
    Read {
        reader: usize,
    },
    Wait {
        millis: u64,
    },
}

#[derive(Clone, Copy, Debug)]
enum Beginning {
    Fresh(Start),
    SameCursor,
    /// With a cursor from so many records ago.
    Back(u64),
}

fn step() -> impl Strategy<Value = Step> {
    let channels = || proptest::collection::btree_set(0..CHANNELS, 1..3);
    let start = prop_oneof![Just(Start::Live), (0..12usize).prop_map(Start::Last), Just(Start::Oldest)];
    let begin = prop_oneof![
        start.prop_map(Beginning::Fresh),
        Just(Beginning::SameCursor),
        (0..40u64).prop_map(Beginning::Back)
    ];
    prop_oneof![
        8 => (channels(), proptest::option::of(0..3u8), prop::bool::weighted(0.2), proptest::option::weighted(0.1, 0..READERS), 1..4usize)
            .prop_map(|(to, key, removes, except, times)| Step::Publish { to, removes: removes && key.is_some(), key, except, times }),
        3 => (0..READERS, channels(), begin).prop_map(|(reader, on, begin)| Step::Reopen { reader, on, begin }),
        2 => (0..READERS).prop_map(|reader| Step::Close { reader }),
        2 => (0..READERS, 0..CHANNELS, proptest::option::of(0..30u64)).prop_map(|(reader, to, back)| Step::Join { reader, to, back }),
        1 => (0..READERS, 0..CHANNELS).prop_map(|(reader, from)| Step::Leave { reader, from }),
        4 => (0..READERS).prop_map(|reader| Step::Read { reader }),
        3 => prop_oneof![4 => 0..500u64, 1 => Just(AGE / 2), 1 => Just(AGE + 1)].prop_map(|millis| Step::Wait { millis }),
    ]
}

/// A record of the shared log.
struct Stored {
    audience: Audience,
    effect: Effect,
}

impl Stored {
    fn entry(&self) -> Entry {
        let draft = Draft::encode(&Event::unnamed("x"), &Framing { max_payload: 1 << 20 }).unwrap();
        Entry { audience: self.audience.clone(), effect: self.effect.clone(), draft, published: None }
    }
}

/// The records and gaps that a reader has received. The boolean of a record is whether it came in
/// the order of the cursor.
#[derive(Debug, Default, PartialEq)]
struct Received {
    records: Vec<(u64, bool)>,
    gaps: Vec<(Address, Option<GapReason>)>,
}

struct World {
    /// The log that stores every record, and the log whose channels become dormant.
    logs: [Log; 2],
    shared: Vec<Stored>,
    /// The number of records that one read of the shared log returns.
    block: usize,
    /// The readers, each with its handle in each log.
    readers: Vec<[Arc<CursorHandle>; 2]>,
    now: Millis,
    /// The number of blocks that the readers of each log have requested.
    blocks: [usize; 2],
    outlined: usize,
}

impl World {
    fn new(block: usize) -> Self {
        let logs = [log(None), log(Some(DORMANT_AFTER))];
        let reader = |id| [(); 2].map(|()| Arc::new(CursorHandle::new(ConnectionId::from_bits(id as u128))));
        let readers = (0..READERS).map(reader).collect();
        let world = Self { logs, shared: Vec::new(), block, readers, now: 1_000, blocks: [0; 2], outlined: 0 };
        for reader in &world.readers {
            for (log, handle) in world.logs.iter().zip(reader) {
                log.open(handle, [address(0)], Begin::Fresh(Start::Live), 0);
            }
        }
        world
    }

    fn last(&self) -> u64 {
        self.shared.len() as u64
    }

    fn step(&mut self, step: &Step) {
        match step {
            Step::Publish { to, key, removes, except, times } => {
                let mut audience = Audience::default();
                to.iter().for_each(|index| audience.insert(address(*index)));
                if let Some(reader) = except {
                    audience.exclude(self.readers[*reader][0].id);
                }
                let effect = match key {
                    None => Effect::Nothing,
                    Some(key) if *removes => Effect::Removes(Arc::from(key.to_string())),
                    Some(key) => Effect::Sets(Arc::from(key.to_string())),
                };
                for _ in 0..*times {
                    self.publish(Stored { audience: audience.clone(), effect: effect.clone() });
                }
            }
            Step::Reopen { reader, on, begin } => {
                let cursor = self.logs[0].cursor(&self.readers[*reader][0]);
                self.close(*reader);
                let begin = match begin {
                    Beginning::Fresh(start) => Begin::Fresh(*start),
                    Beginning::SameCursor => Begin::After(cursor),
                    Beginning::Back(back) => Begin::After(self.last().saturating_sub(*back)),
                };
                let id = self.readers[*reader][0].id;
                self.readers[*reader] = [(); 2].map(|()| Arc::new(CursorHandle::new(id)));
                let opened = [0, 1].map(|n| {
                    let (log, handle) = (&self.logs[n], &self.readers[*reader][n]);
                    log.open(handle, on.iter().map(|index| address(*index)), begin, self.now);
                    (log.cursor(handle), log.begins_with_gap(handle, true), log.begins_with_gap(handle, false))
                });
                assert_eq!(opened[0], opened[1], "the cursor, and whether the stream begins with a gap");
            }
            Step::Close { reader } => self.close(*reader),
            Step::Join { reader, to, back } => {
                let since = back.map_or(Since::Now, |back| Since::After(self.last().saturating_sub(back)));
                let joined = Joined { address: address(*to), since, at: None };
                let outcome = [0, 1].map(|n| self.logs[n].join(&self.readers[*reader][n], &joined, 100, self.now));
                assert_eq!(outcome[0], outcome[1]);
            }
            Step::Leave { reader, from } => {
                // The rest of a replay that a leave cuts short depends on the size of the reads.
                self.read(*reader);
                for (log, handle) in self.logs.iter().zip(&self.readers[*reader]) {
                    log.leave(handle, &address(*from), self.now);
                }
            }
            Step::Read { reader } => self.read(*reader),
            Step::Wait { millis } => {
                self.now += millis;
                for log in &self.logs {
                    while log.sweep(self.now) == Swept::More {}
                }
            }
        }
        self.check();
    }

    fn publish(&mut self, stored: Stored) {
        self.shared.push(stored);
        let (sequence, stored) = (self.last(), &self.shared[self.shared.len() - 1]);
        assert!(self.logs[0].apply(sequence, stored.entry(), self.now));
        let undecoded = Undecoded { published: None, bytes: 40 };
        let to = match stored.audience.addresses() {
            [address @ (Address::Topic(_) | Address::User(_))] => Some(address.as_address()),
            _ => None,
        };
        // A hub reads no excluded connections without parsing the record.
        let to = to.filter(|_| stored.audience.excluded().is_empty());
        if to.is_some_and(|to| self.logs[1].outline_for(sequence, to, undecoded, self.now))
            || self.logs[1].outline(sequence, &stored.audience, undecoded, self.now)
        {
            self.outlined += 1;
        } else {
            assert!(self.logs[1].apply(sequence, stored.entry(), self.now));
        }
    }

    fn close(&self, reader: usize) {
        for (log, handle) in self.logs.iter().zip(&self.readers[reader]) {
            log.close(handle, self.now);
        }
    }

    /// Reads until both readers have caught up, and compares what they have received.
    fn read(&mut self, reader: usize) {
        let received = [0, 1].map(|n| self.read_all(reader, n));
        assert_eq!(received[0], received[1]);
    }

    fn read_all(&mut self, reader: usize, n: usize) -> Received {
        let (log, handle) = (&self.logs[n], &self.readers[reader][n]);
        let mut received = Received::default();
        let mut batch = Batch { can_backfill: true, allows_pieces: reader.is_multiple_of(2), ..Batch::default() };
        for turn in 0..10_000 {
            log.read(handle, &mut batch);
            if let Some(after) = batch.needs_block_after {
                self.blocks[n] += 1;
                let after = after.saturating_sub(turn % self.block as u64);
                let records = (after + 1..).zip(&self.shared[after as usize..]).take(self.block);
                let read = records.map(|(number, stored)| (number, Ok(stored.entry())));
                batch.block = Some(Arc::new(log.block(EPOCH, after, log.last(), read, self.now).unwrap()));
                continue;
            }
            let (ordered, reason) = (batch.ordered, batch.gap_reason);
            received.gaps.extend(batch.gap.iter().map(|address| (address.clone(), reason)));
            received.records.extend(batch.numbers().into_iter().map(|number| (number, ordered)));
            if batch.count() == 0 && batch.gap.is_empty() && !batch.has_more && log.settled(handle).is_some() {
                received.gaps.sort_by(|a, b| a.0.cmp(&b.0));
                return received;
            }
        }
        panic!("the reader does not catch up");
    }

    /// Checks the rules of the module `dormancy`.
    fn check(&self) {
        let sequencer = self.logs[1].sequencer.lock();
        let waits = |channel: &&Arc<Channel>| sequencer.dormancy.as_ref().unwrap().is_within_grace(channel);
        let waiting: Vec<_> = sequencer.all().filter(waits).collect();
        assert_eq!(sequencer.dormancy.as_ref().unwrap().queued(), waiting.len(), "one entry for each channel");
        assert!(waiting.iter().all(|channel| channel.listening() == 0 && !channel.is_dormant()));
        for channel in sequencer.all() {
            let store = channel.store.lock();
            let first_record = store.ring_between(0, u64::MAX).next().map_or(u64::MAX, |record| record.sequence);
            assert!(store.outlined_through() < first_record, "an outline after a record");
            assert!(!channel.is_dormant() || first_record == u64::MAX, "a dormant channel with a record");
            assert!(!channel.is_dormant() || channel.listening() == 0, "a dormant channel with a listener");
            assert!(!channel.is_dormant() || !store.has_values(), "a dormant channel with current values");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1_000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn readers_receive_the_same_from_dormant_channels_as_from_channels_with_all_records(
        steps in proptest::collection::vec(step(), 1..80), block in 1..30usize,
    ) {
        let mut world = World::new(block);
        for step in &steps {
            world.step(step);
        }
        for reader in 0..READERS {
            world.read(reader);
        }
        // When all readers have left, and the grace period and the age have passed, nothing is
        // left but the current values.
        (0..READERS).for_each(|reader| world.close(reader));
        for millis in [DORMANT_AFTER, AGE + 1, 10_001] {
            world.step(&Step::Wait { millis });
        }
        prop_assert_eq!(world.logs[1].usage().ring_bytes, 0);
        prop_assert!(world.logs[1].usage().channels <= 2, "everyone, and latest/d with its values");
    }
}

fn publish(to: usize) -> Step {
    Step::Publish { to: BTreeSet::from([to]), key: None, removes: false, except: None, times: 1 }
}

#[test]
fn records_of_an_audience_without_listeners_are_outlined_and_come_from_the_shared_log() {
    let mut world = World::new(10);
    (0..4).for_each(|_| world.step(&publish(2)));
    assert_eq!(world.outlined, 4);
    world.step(&Step::Reopen { reader: 0, on: BTreeSet::from([2]), begin: Beginning::Back(3) });
    // From here on, the channel has a listener.
    world.step(&publish(2));
    assert_eq!(world.outlined, 4);
    let received = world.read_all(0, 1);
    assert_eq!(received, Received { records: [2, 3, 4, 5].map(|number| (number, true)).into(), gaps: Vec::new() });
    assert_eq!(world.blocks, [0, 1]);
}

#[test]
fn a_reader_needs_no_block_when_it_has_missed_no_record_of_its_channels() {
    let mut world = World::new(10);
    world.step(&publish(2));
    (0..300).for_each(|_| world.step(&publish(1)));
    assert_eq!(world.outlined, 301);
    world.step(&Step::Reopen { reader: 0, on: BTreeSet::from([2]), begin: Beginning::Back(300) });
    assert_eq!(world.read_all(0, 1), Received::default());
    // A fresh stream with a history requests only the block with the record.
    world.step(&Step::Reopen { reader: 0, on: BTreeSet::from([2]), begin: Beginning::Fresh(Start::Oldest) });
    assert_eq!(world.read_all(0, 1).records, [(1, true)]);
    assert_eq!(world.blocks, [0, 1]);
}

#[test]
fn a_reader_that_returns_within_the_grace_period_reads_from_memory() {
    let mut world = World::new(10);
    let on = BTreeSet::from([2]);
    world.step(&Step::Reopen { reader: 0, on: on.clone(), begin: Beginning::Fresh(Start::Live) });
    for (millis, blocks) in [(DORMANT_AFTER - 1, 0), (DORMANT_AFTER, 1)] {
        world.step(&Step::Close { reader: 0 });
        world.step(&publish(2));
        world.step(&Step::Wait { millis });
        world.step(&publish(2));
        world.step(&Step::Reopen { reader: 0, on: on.clone(), begin: Beginning::SameCursor });
        world.step(&Step::Read { reader: 0 });
        assert_eq!((world.logs[1].lag(&world.readers[0][1]), world.blocks[1]), (0, blocks));
    }
}

/// Otherwise many users who leave at once would block publishers and new streams a minute later.
#[test]
fn one_sweep_makes_a_bounded_number_of_records_dormant() {
    const RECORDS: usize = 1_000;
    let replay = || Retention::replay().count(RECORDS);
    let policies = Policies::new(Vec::new(), replay(), replay(), replay(), replay());
    let budgets =
        Budgets { ring_bytes: 1 << 30, keyed_bytes: 1 << 30, grace: 10_000, dormant_after: Some(DORMANT_AFTER) };
    let log = Log::new(EPOCH, policies, budgets);
    let handle = Arc::new(CursorHandle::new(ConnectionId::from_bits(1)));
    log.open(&handle, [address(2)], Begin::Fresh(Start::Live), 0);
    let stored = Stored { audience: address(2).into(), effect: Effect::Nothing };
    (1..=RECORDS as u64).for_each(|sequence| assert!(log.apply(sequence, stored.entry(), 0)));
    log.close(&handle, 0);
    let channel = log.sequencer.lock().find_channel(&address(2)).unwrap();
    let records = || channel.store.lock().ring_between(0, u64::MAX).count();
    let mut sweeps = 0;
    while log.sweep(DORMANT_AFTER) == Swept::More {
        sweeps += 1;
        assert_eq!(records(), RECORDS.saturating_sub(256 * sweeps));
    }
    assert_eq!((records(), channel.is_dormant(), sweeps), (0, true, RECORDS / 256));
    assert_eq!(channel.store.lock().newest(RECORDS, 0, u64::MAX).count(), RECORDS);
}

#[test]
fn a_record_of_the_root_scope_is_not_taken_for_one_of_a_dormant_topic_of_another_scope() {
    let log = log(Some(DORMANT_AFTER));
    let root = address(2);
    let scope = ScopeName::named("s").unwrap();
    let scoped = Address::Topic(Topic::try_from("a").unwrap().placed_in(&scope).unwrap());
    let undecoded = Undecoded { published: None, bytes: 40 };
    assert!(log.outline(1, &scoped.clone().into(), undecoded, 0));
    let handle = Arc::new(CursorHandle::new(ConnectionId::from_bits(1)));
    log.open(&handle, [root], Begin::Fresh(Start::Live), 0);
    assert!(!log.outline_for(2, address(2).as_address(), undecoded, 0));
    // The topic of the scope is still dormant.
    assert!(log.outline(2, &scoped.into(), undecoded, 0));
}
