//! Property tests of reconnecting readers whose cursors are older than the memory of the channels,
//! against a list of all records: the shared log.
//!
//! For every reader: received records + records covered by a reported gap = permitted records. Each
//! record comes once and in order. A reader that has not caught up reports a gap only if the shared
//! log has lost a record.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests, helpers and all")]

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;

use crate::log::*;
use crate::types::{Event, Retention, TopicFilter, UserId};
use crate::wire::{Draft, Framing};

const TOPICS: usize = 3;
const READERS: usize = 3;
const EPOCH: Epoch = Epoch(7);

fn address_of(index: usize) -> Address {
    match index {
        0 => Address::User(UserId::try_from("a").unwrap()),
        index => Address::Topic(Topic::try_from(format!("t{index}")).unwrap()),
    }
}

/// Creates a log with rings so small that most reads need the shared log.
fn log(dormant_after: Option<Millis>) -> Log {
    let replay = Retention::replay().count(2);
    let policies = Policies::new(
        vec![(TopicFilter::exact("none"), Retention::live())],
        replay.clone(),
        replay.clone(),
        replay,
        Retention::live(),
    );
    Log::new(EPOCH, policies, Budgets { ring_bytes: 1 << 20, keyed_bytes: 1 << 20, grace: 10, dormant_after })
}

fn entry(to: &BTreeSet<usize>, except: Option<usize>, sequence: u64) -> Entry {
    let framing = Framing { max_payload: 1 << 20 };
    let draft = Draft::encode(&Event::unnamed(sequence.to_string()), &framing).unwrap();
    let mut audience = Audience::default();
    to.iter().for_each(|index| audience.insert(address_of(*index)));
    if let Some(except) = except {
        audience.exclude(ConnectionId::from_bits(except as u128));
    }
    Entry { audience, effect: Effect::Nothing, draft, published: None }
}

#[derive(Clone, Debug)]
enum Step {
    Publish {
        to: BTreeSet<usize>,
        except: Option<usize>,
        poison: bool,
        times: u64,
    },
    /// Drops the oldest records of the shared log.
    Trim {
        count: u64,
    },
    /// Reconnects a reader with a cursor from `back` records ago.
    Return {
        reader: usize,
        on: BTreeSet<usize>,
        back: u64,
    },
    /// Joins one more topic from `back` records ago on.
    Join {
        reader: usize,
        to: usize,
        back: u64,
    },
    Read {
        reader: usize,
        times: usize,
    },
    Leave {
        reader: usize,
        to: usize,
    },
    Apply {
        count: u64,
    },
}

fn step() -> impl Strategy<Value = Step> {
    let some = || proptest::collection::btree_set(0..=TOPICS, 1..3);
    prop_oneof![
        6 => (some(), proptest::option::weighted(0.1, 0..READERS), prop::bool::weighted(0.05), 1..30u64)
            .prop_map(|(to, except, poison, times)| Step::Publish { to, except, poison, times }),
        1 => (0..40u64).prop_map(|count| Step::Trim { count }),
        3 => (0..READERS, some(), 0..150u64).prop_map(|(reader, on, back)| Step::Return { reader, on, back }),
        2 => (0..READERS, 0..=TOPICS, 0..100u64).prop_map(|(reader, to, back)| Step::Join { reader, to, back }),
        1 => (0..READERS, 0..=TOPICS).prop_map(|(reader, to)| Step::Leave { reader, to }),
        4 => (1..60u64).prop_map(|count| Step::Apply { count }),
        6 => (0..READERS, 1..6usize).prop_map(|(reader, times)| Step::Read { reader, times }),
    ]
}

#[derive(Clone)]
struct Stored {
    to: BTreeSet<usize>,
    except: Option<usize>,
    poison: bool,
}

#[derive(Default)]
struct Shared {
    /// All records that were ever published.
    all: BTreeMap<u64, Stored>,
    /// The records that the shared log retains.
    records: BTreeMap<u64, Stored>,
    last: u64,
    first: u64,
    /// The number of records that one read of the shared log returns.
    size: usize,
}

impl Shared {
    fn block(&self, log: &Log, after: u64) -> Arc<Block> {
        let read = |(sequence, stored): (&u64, &Stored)| {
            let entry = entry(&stored.to, stored.except, *sequence);
            (*sequence, if stored.poison { Err(Some(Box::new(entry.audience))) } else { Ok(entry) })
        };
        let records: Vec<_> = self.records.range(after + 1..).take(self.size).map(read).collect();
        Arc::new(log.block(EPOCH, after, log.last(), records, 0).unwrap())
    }
}

struct Reader {
    subscriber: Arc<CursorHandle>,
    /// The cursor with which the reader reconnected, and the channels that it had then. The cursor
    /// covers all records of these channels up to it.
    resumed_with: (u64, BTreeSet<usize>),
    /// Each channel with the number after which the reader reads it.
    on: BTreeMap<usize, u64>,
    received: BTreeSet<u64>,
    /// The newest record that an ordered read returned.
    newest: u64,
    /// The addresses of reported gaps, with the cursor before the report.
    gaps: Vec<(Address, u64)>,
    /// Whether a record that the reader had not read was trimmed or is unreadable, so that a gap
    /// may be reported.
    may_gap: bool,
    /// Whether the reader has caught up. From then on it reads only from memory, and may be too
    /// slow.
    has_caught_up: bool,
    left: BTreeSet<usize>,
}

const UNDECODED: Undecoded = Undecoded { published: None, bytes: 40 };

fn apply_some(shared: &Shared, log: &Log, count: u64, now: Millis) {
    for (n, stored) in shared.all.range(log.last() + 1..).take(count as usize) {
        let audience = entry(&stored.to, None, 0).audience;
        if stored.poison && !log.outline(*n, &audience, UNDECODED, now) {
            log.mark_lost(*n, Some(&audience), now);
        } else if !stored.poison && !log.outline(*n, &audience, UNDECODED, now) {
            log.apply(*n, entry(&stored.to, stored.except, *n), now);
        }
    }
}

/// Reads up to `reads` times. Blocks begin at the requested number or a little before.
fn read(shared: &Shared, log: &Log, reader: &mut Reader, reads: usize) {
    let mut batch = Batch { can_backfill: true, allows_pieces: reads.is_multiple_of(2), ..Batch::default() };
    let mut before = log.cursor(&reader.subscriber);
    for turn in 0..reads {
        log.read(&reader.subscriber, &mut batch);
        if let Some(after) = batch.needs_block_after {
            let start = after.saturating_sub(turn as u64 % 3);
            let mut block = shared.block(log, start);
            // If records after `start` were trimmed, the block may not cover `after`.
            if !block.covers(0, after) {
                block = shared.block(log, after);
            }
            assert!(block.covers(0, after), "a new block always covers the requested number");
            batch.block = Some(block);
            continue;
        }
        let cursor = log.cursor(&reader.subscriber);
        let ordered = batch.ordered;
        let gaps = batch.gap.iter().map(|address| (address.clone(), if ordered { before } else { 0 }));
        reader.gaps.extend(gaps);
        before = cursor;
        if !batch.gap.is_empty() {
            assert!(reader.may_gap, "a gap without loss: {:?}", batch.gap_reason);
        }
        for number in batch.numbers() {
            assert!(reader.received.insert(number) || !reader.left.is_empty(), "{number} came twice");
            if batch.ordered {
                assert!(number > reader.newest, "{number} after {}", reader.newest);
                reader.newest = number;
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 500, ..ProptestConfig::default() })]
    #[test]
    fn reconnecting_readers_receive_every_record_that_memory_or_the_shared_log_retains(steps in proptest::collection::vec(step(), 1..60), size in 1..40usize, dormant_after in prop_oneof![Just(None), Just(Some(0)), Just(Some(10))]) {
        let log = log(dormant_after);
        let mut shared = Shared { first: 1, size, ..Shared::default() };
        let mut readers: Vec<Option<Reader>> = (0..READERS).map(|_| None).collect();
        for (time, step) in steps.into_iter().enumerate() {
            let now = time as u64;
            match step {
                Step::Publish { to, except, poison, times } => {
                    for _ in 0..times {
                        shared.last += 1;
                        let stored = Stored { to: to.clone(), except, poison };
                        shared.records.insert(shared.last, stored.clone());
                        shared.all.insert(shared.last, stored);
                    }
                    if poison {
                        readers.iter_mut().flatten().for_each(|reader| reader.may_gap = true);
                    }
                }
                Step::Leave { reader: index, to } => {
                    if let Some(reader) = &mut readers[index] {
                        log.leave(&reader.subscriber, &address_of(to), now);
                        reader.left.insert(to);
                    }
                }
                Step::Apply { count } => apply_some(&shared, &log, count, now),
                Step::Trim { count } => {
                    shared.first = (shared.first + count).min(shared.last + 1);
                    shared.records = shared.records.split_off(&shared.first);
                    readers.iter_mut().flatten().for_each(|reader| reader.may_gap = true);
                }
                Step::Return { reader: index, on, back } => {
                    let cursor = log.last().saturating_sub(back);
                    let subscriber = Arc::new(CursorHandle::new(ConnectionId::from_bits(index as u128)));
                    if let Some(before) = readers[index].take() {
                        log.close(&before.subscriber, now);
                    }
                    log.open(&subscriber, on.iter().map(|index| address_of(*index)), Begin::After(cursor), now);
                    let poisoned = shared.records.range(cursor + 1..).any(|(_, stored)| stored.poison);
                    let resumed_with = (cursor, on.clone());
                    let on = on.into_iter().map(|index| (index, cursor)).collect();
                    let may_gap = cursor + 1 < shared.first || poisoned;
                    let (received, newest) = (BTreeSet::new(), 0);
                    readers[index] = Some(Reader { subscriber, resumed_with, on, received, newest, gaps: Vec::new(), may_gap, has_caught_up: false, left: BTreeSet::new() });
                }
                Step::Join { reader: index, to, back } => {
                    let since = log.last().saturating_sub(back);
                    let joined = Joined { address: address_of(to), since: Since::After(since), at: None };
                    if let Some(reader) = &mut readers[index]
                        && !reader.left.contains(&to)
                        && log.join(&reader.subscriber, &joined, 100, now).unwrap()
                    {
                        reader.on.insert(to, since);
                        reader.may_gap |= since + 1 < shared.first
                            || shared.records.range(since + 1..).any(|(_, stored)| stored.poison);
                    }
                }
                Step::Read { reader: index, times } => {
                    if let Some(reader) = &mut readers[index] {
                        read(&shared, &log, reader, times);
                        // A reader that has caught up reads no more blocks: if it is too slow then,
                        // a gap is correct.
                        let is_behind = log.cursor(&reader.subscriber) < log.last();
                        reader.has_caught_up |= !is_behind;
                        reader.may_gap |= !is_behind;
                    }
                }
            }
        }
        for reader in readers.iter_mut().flatten() { read(&shared, &log, reader, 3); reader.has_caught_up |= log.cursor(&reader.subscriber) >= log.last(); reader.may_gap |= reader.has_caught_up; }
        apply_some(&shared, &log, u64::MAX >> 2, 1_000);
        for (index, reader) in readers.iter_mut().enumerate() {
            let Some(reader) = reader else { continue };
            read(&shared, &log, reader, 2_000);
            prop_assert_eq!(log.cursor(&reader.subscriber), shared.last, "the reader has not caught up");
            let listens = |to: &usize, number: &u64| reader.on.get(to).is_some_and(|since| number > since);
            let is_permitted = |number: &u64, stored: &Stored| {
                stored.except != Some(index)
                    && stored.to.iter().any(|to| listens(to, number))
                    && (*number > reader.resumed_with.0 || stored.to.is_disjoint(&reader.resumed_with.1))
            };
            for (number, stored) in &shared.all {
                let is_received = reader.received.contains(number);
                if !is_permitted(number, stored) {
                    prop_assert!(!is_received || !reader.left.is_empty(), "{} was not for this reader", number);
                } else if !is_received && stored.to.is_disjoint(&reader.left) {
                    let is_reported = reader.gaps.iter().any(|(address, cursor)| {
                        stored.to.iter().any(|to| listens(to, number) && *address == address_of(*to)) && cursor < number
                    });
                    prop_assert!(is_reported, "{} is missing without a gap", number);
                    let is_lost = stored.poison || *number < shared.first;
                    prop_assert!(is_lost || reader.has_caught_up, "{} is missing, and the shared log has it", number);
                }
            }
        }
    }
}

/// Regression tests of single cases.
mod cases {
    use super::*;

    fn filled(upto: u64) -> (Log, BTreeSet<usize>) {
        let log = log(None);
        let to = BTreeSet::from([1]);
        for n in 1..=upto {
            log.apply(n, entry(&to, None, n), 0);
        }
        (log, to)
    }

    fn block(log: &Log, to: &BTreeSet<usize>, after: u64, numbers: impl IntoIterator<Item = u64>) -> Arc<Block> {
        Arc::new(
            log.block(EPOCH, after, log.last(), numbers.into_iter().map(|n| (n, Ok(entry(to, None, n)))), 0).unwrap(),
        )
    }

    fn all(log: &Log, cursor: u64, mut blocks: impl FnMut(u64) -> Arc<Block>) -> (Vec<u64>, usize) {
        let subscriber = Arc::new(CursorHandle::new(ConnectionId::from_bits(9)));
        log.open(&subscriber, [address_of(1)], Begin::After(cursor), 0);
        let mut batch = Batch { can_backfill: true, ..Batch::default() };
        let (mut got, mut gaps) = (Vec::new(), 0);
        for _ in 0..50 {
            log.read(&subscriber, &mut batch);
            if let Some(after) = batch.needs_block_after {
                batch.block = Some(blocks(after));
                continue;
            }
            gaps += batch.gap.len();
            got.extend(batch.numbers());
        }
        (got, gaps)
    }

    /// Memory has 9 and 10. The read of the shared log returned 1..=3 and 10, because 4..=9 were
    /// dropped during the read.
    #[test]
    fn a_hole_in_a_block_is_reported_as_a_gap() {
        let (log, to) = filled(10);
        let (got, gaps) = all(&log, 0, |after| block(&log, &to, after, (after + 1..=3).chain([10])));
        assert!(gaps > 0, "4..=8 are missing without a gap: {got:?}");
    }

    #[test]
    fn records_in_memory_are_read_when_the_shared_log_is_empty() {
        let (log, to) = filled(10);
        let (got, gaps) = all(&log, 3, |after| block(&log, &to, after, []));
        assert_eq!((got, gaps), (vec![9, 10], 1));
    }

    #[test]
    fn records_in_memory_are_read_when_the_shared_log_has_fewer() {
        let (log, to) = filled(10);
        let (got, gaps) = all(&log, 3, |after| block(&log, &to, after, [10]));
        assert_eq!((got, gaps), (vec![9, 10], 1));
    }

    /// The empty result was read before 11..=13 were published, which the shared log has.
    #[test]
    fn an_empty_block_does_not_cover_later_records() {
        let (log, to) = filled(10);
        let result: [u64; 0] = [];
        for n in 11..=13 {
            log.apply(n, entry(&to, None, n), 0);
        }
        let read = result.into_iter().map(|n| (n, Ok(entry(&to, None, n))));
        let cached = Arc::new(log.block(EPOCH, 0, 10, read, 0).unwrap());
        let (got, gaps) = all(&log, 10, |after| {
            if cached.covers(0, after) { Arc::clone(&cached) } else { block(&log, &to, after, after + 1..=13) }
        });
        assert_eq!((got, gaps), (vec![11, 12, 13], 0));
    }
}
