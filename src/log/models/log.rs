//! Property tests of the log against a simple reference: a list of all records that were ever
//! published.
//!
//! For every reader: received records + records covered by a reported gap = permitted records.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests, helpers and all")]

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use proptest::prelude::*;

use crate::log::*;
use crate::types::{Event, Retention, Start, Topic, TopicFilter, UserId};
use crate::wire::{Draft, Framing};

const GRACE: Millis = 10_000;
const AGE: Millis = 3_000;

fn address(index: usize) -> Address {
    match index {
        0 => Address::Everyone(crate::types::ScopeName::ROOT),
        // A user with the same name as a topic.
        1 => Address::User(UserId::try_from("a").unwrap()),
        2 => Address::Topic(Topic::try_from("a").unwrap()),
        3 => Address::Topic(Topic::try_from("latest/b").unwrap()),
        _ => Address::Topic(Topic::try_from("short/c").unwrap()),
    }
}

const CHANNELS: usize = 5;
const TOPICS: usize = 2;
const LATEST: usize = 3;
const KEYS: usize = 3;

fn policies() -> Policies {
    let age = Duration::from_millis(AGE);
    let replay = Retention::replay().count(8).age(age);
    Policies::new(
        vec![
            (TopicFilter::prefix("latest/"), Retention::latest_per_key().count(KEYS).with_live_window(age)),
            (TopicFilter::prefix("short/"), Retention::replay().count(2).age(age)),
        ],
        replay.clone(),
        replay.clone(),
        replay,
        Retention::live().with_live_window(age),
    )
}

fn framing() -> Framing {
    Framing { max_payload: 1 << 20 }
}

fn entry(to: usize, effect: Effect) -> Entry {
    let draft = Draft::encode(&Event::unnamed("x"), &framing()).unwrap();
    Entry { audience: address(to).into(), effect, draft, published: None }
}

#[derive(Clone, Debug)]
enum Step {
    Publish {
        to: BTreeSet<usize>,
        key: Option<u8>,
        removes: bool,
        except: Option<usize>,
        size: usize,
    },
    /// Closes the connection and opens it again, with or without its cursor, on other channels.
    Reopen {
        reader: usize,
        on: BTreeSet<usize>,
        keeps_cursor: bool,
        start: Start,
    },
    Read {
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
    /// Leaves some topics and joins others in one step. If `is_refused` is true, `confirm` returns
    /// an error.
    Change {
        reader: usize,
        leave: BTreeSet<usize>,
        join: BTreeSet<usize>,
        back: Option<u64>,
        is_refused: bool,
        limit: usize,
    },
    Wait {
        millis: u64,
    },
}

const READERS: usize = 3;

fn step() -> impl Strategy<Value = Step> {
    let topics = || proptest::collection::btree_set(TOPICS..CHANNELS, 0..3);
    let channels = || proptest::collection::btree_set(0..CHANNELS, 1..3);
    let start = prop_oneof![Just(Start::Live), (0..6usize).prop_map(Start::Last), Just(Start::Oldest)];
    prop_oneof![
        8 => (channels(), proptest::option::of(0..5u8), prop::bool::weighted(0.2), proptest::option::weighted(0.1, 0..READERS), prop_oneof![9 => Just(10usize), 1 => Just(40_000)])
            .prop_map(|(to, key, removes, except, size)| Step::Publish { to, removes: removes && key.is_some(), key, except, size }),
        2 => (0..READERS, channels(), any::<bool>(), start)
            .prop_map(|(reader, on, keeps_cursor, start)| Step::Reopen { reader, on, keeps_cursor, start }),
        4 => (0..READERS).prop_map(|reader| Step::Read { reader }),
        2 => (0..READERS, 0..CHANNELS, proptest::option::of(0..20u64)).prop_map(|(reader, to, back)| Step::Join { reader, to, back }),
        1 => (0..READERS, 0..CHANNELS).prop_map(|(reader, from)| Step::Leave { reader, from }),
        2 => (0..READERS, topics(), topics(), proptest::option::of(0..20u64), prop::bool::weighted(0.2), 1..4usize)
            .prop_map(|(reader, leave, join, back, is_refused, limit)| Step::Change { reader, leave, join, back, is_refused, limit }),
        1 => prop_oneof![4 => 0..500u64, 1 => Just(AGE + 1), 1 => Just(AGE + GRACE + 1)].prop_map(|millis| Step::Wait { millis }),
    ]
}

/// A record in the reference.
#[derive(Clone, Debug)]
struct Published {
    to: BTreeSet<usize>,
    key: Option<u8>,
    removes: bool,
    except: Option<usize>,
}

/// One reader, with the records that it has received and may still expect.
struct Client {
    id: ConnectionId,
    subscriber: Arc<CursorHandle>,
    /// Each channel with the number after which the reader reads it.
    on: BTreeMap<usize, u64>,
    cursor: u64,
    received: BTreeSet<u64>,
    /// By channel: the number up to which a gap was reported.
    gaps: BTreeMap<usize, u64>,
    /// By channel that the reader joined: the records up to its cursor that are to be replayed.
    due: BTreeMap<usize, BTreeSet<u64>>,
    /// Whether the reader has left a channel. A record that the reader received through that
    /// channel may then come again through another channel.
    has_left: bool,
}

impl Published {
    /// Returns whether the record sets a current value of the `latest_per_key` channel.
    fn is_value(&self) -> bool {
        self.key.is_some() && !self.removes && self.to.contains(&LATEST)
    }
}

/// Returns whether a newer record with the same key has replaced a value.
fn is_outdated(published: &[Published], sequence: u64) -> bool {
    let record = &published[sequence as usize - 1];
    record.is_value()
        && published[sequence as usize..].iter().any(|later| later.to.contains(&LATEST) && later.key == record.key)
}

struct World {
    log: Log,
    now: Millis,
    published: Vec<Published>,
    clients: Vec<Client>,
    ids: u128,
    keys: usize,
}

impl World {
    fn new(ring_budget: usize) -> Self {
        let budgets = Budgets { ring_bytes: ring_budget, keyed_bytes: 1 << 20, grace: GRACE, dormant_after: None };
        let mut world = Self {
            log: Log::new(Epoch(1), policies(), budgets),
            now: 0,
            published: Vec::new(),
            clients: Vec::new(),
            ids: 0,
            keys: KEYS,
        };
        for reader in 0..READERS {
            world.open(reader, &BTreeSet::from([reader % CHANNELS]), Begin::Fresh(Start::Live));
        }
        world
    }

    fn open(&mut self, reader: usize, on: &BTreeSet<usize>, begin: Begin) {
        self.ids += 1;
        let id = ConnectionId::from_bits(self.ids);
        let subscriber = Arc::new(CursorHandle::new(id));
        let visible_through = self.log.open(&subscriber, on.iter().map(|&index| address(index)), begin, self.now);
        let cursor = self.log.cursor(&subscriber);
        assert!(cursor <= visible_through);
        // Records that were dropped before a new reader was opened are no loss for it, unless it
        // starts with `Start::Oldest`.
        let is_excused = |&&channel: &&usize| match begin {
            Begin::Fresh(Start::Oldest) => channel == LATEST,
            Begin::Fresh(_) | Begin::Unreported(_) => true,
            Begin::After(_) => false,
        };
        let excused = |&channel: &usize| (channel, subscriber.reader.lock().reported_through(&address(channel)));
        let gaps = on.iter().filter(is_excused).map(excused).collect();
        let client = Client {
            id,
            subscriber,
            on: on
                .iter()
                .map(|&channel| (channel, if matches!(begin, Begin::Fresh(_)) { cursor } else { 0 }))
                .collect(),
            cursor,
            received: BTreeSet::new(),
            gaps,
            due: BTreeMap::new(),
            has_left: false,
        };
        if reader < self.clients.len() {
            self.clients[reader] = client;
        } else {
            self.clients.push(client);
        }
    }

    fn step(&mut self, step: &Step) {
        match step {
            Step::Publish { to, key, removes, except, size } => {
                let mut audience = Audience::default();
                to.iter().for_each(|&index| audience.insert(address(index)));
                if let Some(reader) = except {
                    audience.exclude(self.clients[*reader].id);
                }
                let draft = Draft::encode(&Event::unnamed("x".repeat(*size)), &framing()).unwrap();
                let key_name = || Arc::from(key.unwrap().to_string());
                let effect = match (key, removes) {
                    (None, _) => Effect::Nothing,
                    (Some(_), false) => Effect::Sets(key_name()),
                    (Some(_), true) => Effect::Removes(key_name()),
                };
                let listening = self
                    .clients
                    .iter()
                    .flat_map(|client| client.on.keys().filter(|channel| to.contains(channel)))
                    .count();
                let appended = self.log.append([Entry { audience, effect, draft, published: None }], self.now);
                self.published.push(Published { to: to.clone(), key: *key, removes: *removes, except: *except });
                assert_eq!(appended[0].position.sequence(), self.published.len() as u64);
                assert_eq!(appended[0].receivers, listening);
            }
            Step::Reopen { reader, on, keeps_cursor, start } => {
                let cursor = self.log.cursor(&self.clients[*reader].subscriber);
                self.log.close(&self.clients[*reader].subscriber, self.now);
                // The new connection has a new id, so a record that excluded the old connection
                // does not exclude the new connection.
                for record in &mut self.published {
                    record.except = record.except.filter(|except| except != reader);
                }
                let begin = if *keeps_cursor { Begin::After(cursor) } else { Begin::Fresh(*start) };
                self.open(*reader, on, begin);
                self.read_start(*reader, begin);
            }
            Step::Read { reader } => self.read(*reader),
            Step::Join { reader, to, back } => self.join(*reader, *to, *back),
            Step::Leave { reader, from } => {
                let client = &mut self.clients[*reader];
                let left = self.log.leave(&client.subscriber, &address(*from), self.now);
                assert_eq!(left, client.on.remove(from).is_some());
                client.due.remove(from);
                client.gaps.remove(from);
                client.has_left |= left;
            }
            Step::Change { reader, leave, join, back, is_refused, limit } => {
                self.change(*reader, leave, join, *back, *is_refused, *limit);
            }
            Step::Wait { millis } => {
                self.now += millis;
                while self.log.sweep(self.now) == Swept::More {}
            }
        }
    }

    fn since(&self, back: Option<u64>) -> Since {
        let visible_through = self.published.len() as u64;
        back.map_or(Since::Now, |back| Since::After(visible_through.saturating_sub(back)))
    }

    fn join(&mut self, reader: usize, to: usize, back: Option<u64>) {
        let since = self.since(back);
        let client = &mut self.clients[reader];
        let joined = Joined { address: address(to), since, at: None };
        let joined = self.log.join(&client.subscriber, &joined, 3, self.now);
        let topics = client.on.keys().filter(|&&channel| channel >= 2).count();
        if !client.on.contains_key(&to) && to >= 2 && topics >= 3 {
            assert_eq!(joined, Err(TooManyTopics));
            return;
        }
        assert_eq!(joined, Ok(!client.on.contains_key(&to)));
        if joined == Ok(true) {
            self.has_joined(reader, to, since);
        }
    }

    /// Changes topics, and checks that the whole change or nothing was carried out.
    fn change(
        &mut self,
        reader: usize,
        leave: &BTreeSet<usize>,
        join: &BTreeSet<usize>,
        back: Option<u64>,
        is_refused: bool,
        limit: usize,
    ) {
        let since = self.since(back);
        let client = &mut self.clients[reader];
        let topic = |index: &usize| address(*index).topic().unwrap().clone();
        let leaving: Vec<Topic> = leave.iter().map(topic).collect();
        let joining: Vec<_> = join.iter().map(|index| Joining { topic: topic(index), since, after: 0 }).collect();
        let had: BTreeSet<usize> = client.on.keys().copied().filter(|channel| *channel >= TOPICS).collect();
        let has: BTreeSet<usize> = had.difference(leave).chain(join).copied().collect();
        let confirm = || if is_refused { Err(None) } else { Ok(()) };
        let changed = self.log.change(&client.subscriber, &leaving, &joining, limit, self.now, confirm);
        let topics = self.log.topics(&client.subscriber).into_iter().collect::<BTreeSet<_>>();
        if has.len() > limit || is_refused {
            assert_eq!(changed.unwrap_err(), (has.len() > limit).then_some(TooManyTopics));
            assert_eq!(topics, had.iter().map(topic).collect());
            return;
        }
        let changed = changed.unwrap();
        assert_eq!(topics, has.iter().map(topic).collect());
        assert_eq!(changed.topics.len(), has.len());
        assert_eq!(changed.left.len() + has.len(), changed.joined.len() + had.len());
        for channel in leave.intersection(&had) {
            client.on.remove(channel);
            client.due.remove(channel);
            client.gaps.remove(channel);
            client.has_left = true;
        }
        for channel in join.iter().filter(|channel| !had.contains(channel) || leave.contains(channel)) {
            self.has_joined(reader, *channel, since);
        }
    }

    fn has_joined(&mut self, reader: usize, to: usize, since: Since) {
        let client = &mut self.clients[reader];
        let visible_through = self.published.len() as u64;
        let values: BTreeSet<u64> = Self::current_values(&self.published, self.keys);
        let upto = |sequence: &u64| *sequence <= client.cursor;
        let (since, due) = match since {
            Since::After(after) => {
                let come = |sequence: u64| {
                    client.on.iter().any(|(channel, since)| {
                        self.published[sequence as usize - 1].to.contains(channel)
                            && *since < sequence
                            && !client.due.get(channel).is_some_and(|due| due.contains(&sequence))
                    })
                };
                let missed = (after + 1..=client.cursor)
                    .filter(|&sequence| self.published[sequence as usize - 1].to.contains(&to) && !come(sequence));
                (after, missed.collect())
            }
            Since::Now if to == LATEST && !values.is_empty() => {
                (client.cursor, values.into_iter().filter(upto).collect())
            }
            Since::Now | Since::Refused(_) => (visible_through, BTreeSet::new()),
        };
        let excused = client.subscriber.reader.lock().reported_through(&address(to));
        client.on.insert(to, since);
        client.gaps.insert(to, excused);
        client.due.insert(to, due);
    }

    /// Checks one batch of a replay after a join: it has only due records, and when the replay is
    /// over no record is due.
    fn check_replay(&mut self, reader: usize, batch: &Batch) {
        let current = Self::current_values(&self.published, self.keys);
        let (published, client) = (&self.published, &mut self.clients[reader]);
        for address in &batch.gap {
            assert_eq!(batch.gap_reason, Some(GapReason::Trimmed));
            let channel = (0..CHANNELS).find(|&index| self::address(index) == *address).unwrap();
            client.gaps.insert(channel, client.subscriber.reader.lock().reported_through(address));
        }
        for picked in &batch.records {
            let sequence = picked.record.sequence;
            let record = &published[sequence as usize - 1];
            assert!(record.except != Some(reader), "{sequence} was not for this reader");
            let mut was_due = false;
            for (channel, due) in &mut client.due {
                was_due |= record.to.contains(channel) && due.remove(&sequence);
            }
            let again = client.has_left || record.is_value();
            assert!(was_due || again && record.to.iter().any(|channel| client.on.contains_key(channel)));
            assert!(client.received.insert(sequence) || again, "{sequence} came twice");
        }
        if self.log.settled(&client.subscriber).is_some() {
            for (channel, due) in std::mem::take(&mut client.due) {
                for sequence in due {
                    let record = &published[sequence as usize - 1];
                    let excused = record.except == Some(reader)
                        || client.gaps.get(&channel).is_some_and(|reported| *reported >= sequence)
                        || (channel == LATEST && record.is_value() && !current.contains(&sequence))
                        || is_outdated(published, sequence);
                    assert!(excused, "{sequence} was not replayed");
                }
            }
        }
    }

    /// Checks the start of a new stream: it receives exactly the current values, each once and
    /// without an id. If it asked for more history than is retained, it first reports a gap.
    fn read_start(&mut self, reader: usize, begin: Begin) {
        let Begin::Fresh(from) = begin else { return };
        let client = &mut self.clients[reader];
        let start = client.cursor;
        let (mut values, mut gaps, mut events) = (BTreeSet::new(), BTreeSet::new(), 0);
        let mut batch = Batch { allows_pieces: reader.is_multiple_of(2), ..Batch::default() };
        loop {
            let before = self.log.cursor(&client.subscriber);
            self.log.read(&client.subscriber, &mut batch);
            if batch.ordered {
                // The replay is over, so this read is checked like any other ordered read.
                let after = self.log.cursor(&client.subscriber);
                Self::check(&self.published, client, reader, before, after, &batch);
                let is_event = |number: &u64| {
                    let record = &self.published[*number as usize - 1];
                    // A record that the history has dropped may still come as a current value.
                    client.on.keys().filter(|channel| record.to.contains(channel)).any(|&channel| match channel {
                        LATEST => !record.is_value(),
                        _ => *number > client.subscriber.reader.lock().reported_through(&address(channel)),
                    })
                };
                events += batch.numbers().iter().filter(|number| is_event(number)).count();
                if self.log.lag(&client.subscriber) == 0 {
                    break;
                }
                continue;
            }
            assert!(batch.gap.is_empty() || values.is_empty() && events == 0, "the gap comes first");
            for address in &batch.gap {
                assert_eq!(batch.gap_reason, Some(GapReason::Trimmed));
                let channel = (0..CHANNELS).find(|&index| self::address(index) == *address).unwrap();
                client.gaps.insert(channel, client.subscriber.reader.lock().reported_through(address));
                gaps.insert(channel);
            }
            values.extend(batch.records.iter().map(|picked| picked.record.sequence));
        }
        let wants_more = match from {
            Start::Live => false,
            Start::Last(count) => events < count,
            Start::Oldest => true,
        };
        let has_dropped = |&channel: &usize| client.subscriber.reader.lock().reported_through(&address(channel)) > 0;
        let dropped = client.on.keys().copied().filter(|&channel| channel != LATEST).filter(has_dropped);
        assert_eq!(gaps, dropped.filter(|_| wants_more).collect());
        let current: BTreeSet<u64> = Self::current_values(&self.published, self.keys)
            .into_iter()
            .filter(|&sequence| sequence <= start && client.on.contains_key(&LATEST))
            .filter(|&sequence| self.published[sequence as usize - 1].except != Some(reader))
            .collect();
        assert_eq!(values, current);
    }

    /// Returns the newest record of each key, within the bound on keys.
    fn current_values(published: &[Published], keys: usize) -> BTreeSet<u64> {
        let mut by_key: BTreeMap<u8, u64> = BTreeMap::new();
        for (index, record) in published.iter().enumerate().filter(|(_, record)| record.to.contains(&LATEST)) {
            let Some(key) = record.key else { continue };
            by_key.remove(&key);
            if !record.removes {
                by_key.insert(key, index as u64 + 1);
            }
            if by_key.len() > keys {
                let oldest = *by_key.iter().min_by_key(|(_, sequence)| **sequence).unwrap().0;
                by_key.remove(&oldest);
            }
        }
        by_key.into_values().collect()
    }

    fn read(&mut self, reader: usize) {
        let client = &mut self.clients[reader];
        let before = self.log.cursor(&client.subscriber);
        let mut batch = Batch { allows_pieces: reader.is_multiple_of(2), ..Batch::default() };
        self.log.read(&client.subscriber, &mut batch);
        let after = self.log.cursor(&client.subscriber);
        if batch.ordered {
            // An ordered read means that the replay is over.
            self.check_replay(reader, &Batch::default());
            Self::check(&self.published, &mut self.clients[reader], reader, before, after, &batch);
        } else {
            assert_eq!(before, after, "the cursor moved before everything was replayed");
            self.check_replay(reader, &batch);
        }
    }

    /// Checks the records between two cursors: every permitted record was received once and in
    /// order, or was covered by a reported gap, or was replaced by a newer value of its key.
    fn check(published: &[Published], client: &mut Client, reader: usize, before: u64, after: u64, batch: &Batch) {
        assert!(before <= after, "the cursor went back");
        let numbers = batch.numbers();
        assert!(numbers.is_sorted_by(|a, b| a < b), "{numbers:?}");
        assert!(numbers.iter().all(|&number| before < number && number <= after));
        for address in &batch.gap {
            let channel = (0..CHANNELS).find(|&index| self::address(index) == *address).unwrap();
            assert!(client.on.contains_key(&channel), "a gap for a channel that the reader does not have");
            let reported_through = client.subscriber.reader.lock().reported_through(address);
            assert!(reported_through > before, "a gap for records that the reader has read");
            client.gaps.insert(channel, reported_through);
        }
        for sequence in before + 1..=after {
            let record = &published[sequence as usize - 1];
            let by: Vec<usize> = client
                .on
                .iter()
                .filter(|&(channel, since)| record.to.contains(channel) && sequence > *since)
                .map(|(channel, _)| *channel)
                .collect();
            let permitted = !by.is_empty() && record.except != Some(reader);
            let came = numbers.contains(&sequence);
            assert!(permitted || !came, "{sequence} was not for this reader");
            if came {
                assert!(client.received.insert(sequence), "{sequence} came twice");
            } else if permitted {
                let excused = by.iter().all(|channel| {
                    (*channel == LATEST && is_outdated(published, sequence))
                        || client.gaps.get(channel).is_some_and(|reported| *reported >= sequence)
                });
                assert!(excused, "{sequence} was lost without a gap");
            }
        }
        client.cursor = after;
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2_000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn readers_receive_every_permitted_record_or_a_gap(
        steps in proptest::collection::vec(step(), 1..120),
        ring_budget in prop_oneof![Just(1usize << 30), Just(60_000)],
    ) {
        let mut world = World::new(ring_budget);
        for step in &steps {
            world.step(step);
        }
        for reader in 0..READERS {
            while world.log.lag(&world.clients[reader].subscriber) > 0
                || world.log.settled(&world.clients[reader].subscriber).is_none()
            {
                world.read(reader);
            }
        }
        // When all readers have left and the age and the grace period have passed, the log is
        // empty.
        for client in &world.clients {
            world.log.close(&client.subscriber, world.now);
        }
        world.now += AGE + GRACE + 1;
        while world.log.sweep(world.now) == Swept::More {}
        world.now += GRACE + 1;
        while world.log.sweep(world.now) == Swept::More {}
        let usage = world.log.usage();
        prop_assert_eq!(usage.ring_bytes, 0);
        prop_assert!(usage.channels <= 2, "everyone, and latest/b with its values");
    }

    /// No record is dropped in this test, so every permitted record must be received and no gap
    /// reported.
    #[test]
    fn readers_receive_every_permitted_record_without_a_gap_when_nothing_is_dropped(steps in proptest::collection::vec(step(), 1..120)) {
        let roomy = Retention::replay().count(10_000).bytes(1 << 30);
        let policies = Policies::new(
            vec![(TopicFilter::prefix("latest/"), Retention::latest_per_key().with_live_window(Duration::from_secs(3_600)))],
            roomy.clone(), roomy.clone(), roomy.clone(), roomy,
        );
        let mut world = World::new(1 << 30);
        world.clients.clear();
        world.keys = usize::MAX;
        world.log = Log::new(Epoch(1), policies, Budgets { ring_bytes: 1 << 30, keyed_bytes: 1 << 30, grace: 1 << 40, dormant_after: None });
        for reader in 0..READERS {
            world.open(reader, &BTreeSet::from([reader]), Begin::Fresh(Start::Live));
        }
        for step in steps.iter().filter(|step| !matches!(step, Step::Wait { .. })) {
            world.step(step);
        }
        for reader in 0..READERS {
            while world.log.lag(&world.clients[reader].subscriber) > 0
                || world.log.settled(&world.clients[reader].subscriber).is_none()
            {
                world.read(reader);
            }
            prop_assert!(world.clients[reader].gaps.values().all(|&reported| reported == 0));
            prop_assert!(world.clients[reader].due.values().all(BTreeSet::is_empty));
        }
    }
}

/// A loaded value is newer than the records before it, which are applied later.
#[test]
fn a_loaded_value_survives_older_removals() {
    let log = World::new(1 << 20).log;
    let entry = |effect| entry(LATEST, effect);
    log.begin_epoch(Epoch(2), 4, vec![(9, entry(Effect::Sets("k".into())))], 0);
    let page = Arc::new(CursorHandle::new(ConnectionId::from_bits(1)));
    log.apply(5, entry(Effect::Removes("k".into())), 0);
    log.apply(10, entry(Effect::Nothing), 0);
    log.open(&page, [address(LATEST)], Begin::Fresh(Start::Live), 0);
    let mut batch = Batch::default();
    log.read(&page, &mut batch);
    let positions: Vec<_> = batch.records.iter().map(|picked| log.at(picked.record.sequence).sequence()).collect();
    assert_eq!(positions, [9]);
}

#[test]
fn a_value_that_a_history_has_dropped_does_not_count_as_an_event_of_the_history() {
    let mut world = World::new(1 << 30);
    let publish = |to: &[usize], key| Step::Publish {
        to: to.iter().copied().collect(),
        key,
        removes: false,
        except: None,
        size: 10,
    };
    let short = CHANNELS - 1;
    let on = BTreeSet::from([LATEST, short]);
    for (to, key) in [(&[LATEST][..], None), (&[LATEST, short], Some(0)), (&[short], None), (&[short], None)] {
        world.step(&publish(to, key));
    }
    world.step(&Step::Reopen { reader: 0, on, keeps_cursor: false, start: Start::Last(4) });
}

/// Freeing the records of a full hub under the sequencer's lock would block every publisher.
#[test]
fn records_of_an_earlier_epoch_are_freed_after_the_lock() {
    let entry = |effect| entry(LATEST, effect);
    let is_held = |record: &std::sync::Weak<store::Record>| record.strong_count() > 0;
    for forget in [Sequencer::forget_all, Sequencer::forget_values] {
        let log = World::new(1 << 20).log;
        log.append([entry(Effect::Sets("k".into())), entry(Effect::Nothing)], 0);
        let channel = log.sequencer.lock().find_channel(&address(LATEST)).unwrap();
        let records: Vec<_> = {
            let store = channel.store.lock();
            store.values_between(0, 9).chain(store.ring_between(0, 9)).map(Arc::downgrade).collect()
        };
        assert_eq!(records.len(), 2);
        log.locked(|sequencer| {
            forget(sequencer);
            assert!(channel.store.lock().values_between(0, 9).next().is_none());
            assert!(records.iter().all(is_held));
        });
        assert!(!is_held(&records[0]));
    }
}

#[test]
fn a_new_epoch_frees_the_records_of_the_epoch_before() {
    let log = World::new(1 << 20).log;
    log.append([entry(TOPICS, Effect::Nothing)], 0);
    let channel = log.sequencer.lock().find_channel(&address(TOPICS)).unwrap();
    let record = channel.store.lock().ring_between(0, 9).map(Arc::downgrade).next().unwrap();
    log.begin_epoch(Epoch(2), 0, Vec::new(), 0);
    assert_eq!(record.strong_count(), 0);
}
