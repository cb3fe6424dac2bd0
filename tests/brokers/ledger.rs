//! What publishers and clients know about the records of a log, and the comparison of both: each
//! client received every permitted record that no gap covers, once, and no other record.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fmt;

use tower_sse::Position;

/// An epoch and a number in it.
pub type LogPosition = (u64, u64);

pub fn place(position: Position) -> LogPosition {
    let text = position.to_string();
    let mut parts = text.split('.').skip(1);
    (u64::from_str_radix(parts.next().unwrap(), 16).unwrap(), parts.next().unwrap().parse().unwrap())
}

/// Whether faults of the broker lose records that it had acknowledged or that instances had read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Loss {
    Never,
    /// Some faults lose all records, and others none.
    All,
    /// A fault may lose some of the newest records.
    Newest,
}

/// The records of one publisher, each with a unique number.
#[derive(Default)]
pub struct Written {
    pub acknowledged: Vec<(LogPosition, u64, u8)>,
    pub unknown: HashMap<u64, u8>,
    /// The number of records that were certainly not appended.
    pub failed: usize,
}

impl Written {
    pub fn acknowledge(&mut self, position: Position, number: u64, audience: u8) {
        let place = place(position);
        if let Some((before, ..)) = self.acknowledged.last() {
            assert!(before.0 != place.0 || before.1 < place.1, "{place:?} was acknowledged after {before:?}");
        }
        self.acknowledged.push((place, number, audience));
    }
}

/// The records that a client received in one epoch.
pub struct Epoch {
    pub epoch: u64,
    /// The gap covers the records of this epoch up to this number.
    pub begins: u64,
    pub at: u64,
    pub received: Vec<(u64, u64)>,
}

/// The records of the log, from the results of publishers, the events of clients and the log.
pub struct Ledger {
    /// The audience of each record, by its position and its number.
    records: BTreeMap<(LogPosition, u64), u8>,
    /// For each epoch before the last one, the first position that the log lost later.
    lost_from: HashMap<u64, u64>,
    loss: Loss,
}

impl Ledger {
    /// `log` has all records that the log has at the end, in epoch `last`, by their position.
    /// Required with [`Loss::Newest`].
    pub fn new(written: &[Written], histories: &[&[Epoch]], loss: Loss, last: u64, log: &BTreeMap<u64, u64>) -> Self {
        let acknowledged = || written.iter().flat_map(|written| &written.acknowledged);
        let unknown: HashMap<u64, u8> = written.iter().flat_map(|written| written.unknown.clone()).collect();
        let mut audiences = unknown.clone();
        if loss == Loss::Newest {
            // The log of a new epoch retains the older records of the epoch before it.
            audiences.extend(acknowledged().map(|(_, number, audience)| (*number, *audience)));
        }
        let mut records = BTreeMap::new();
        for (place, number, audience) in acknowledged() {
            records.insert((*place, *number), *audience);
        }
        let received = histories
            .iter()
            .flat_map(|history| history.iter())
            .flat_map(|entry| entry.received.iter().map(|&(at, number)| ((entry.epoch, at), number)));
        for (place, number) in received.chain(log.iter().map(|(at, number)| ((last, *at), *number))) {
            records.entry((place, number)).or_insert_with(|| {
                let audience = audiences.get(&number);
                *audience.unwrap_or_else(|| panic!("{number} is in the log although its publish failed"))
            });
        }
        let (mut lost_from, mut once, mut before) = (HashMap::new(), HashSet::new(), None);
        for (place, number) in records.keys() {
            let (epoch, at) = *place;
            // In the last epoch, the log itself tells which record has a position.
            let is_lost = loss == Loss::Newest && log.get(&at) != Some(number);
            if is_lost && epoch != last {
                lost_from.entry(epoch).or_insert(at);
            }
            // Two servers gave one position to two records. Then the log lost one of them.
            let is_contested = epoch != last && lost_from.get(&epoch).is_some_and(|from| *from <= at);
            assert!(before != Some(*place) || is_contested, "{place:?} means two records, one is {number}");
            before = Some(*place);
            // An idempotency key counts within one epoch, so a record that is repeated after a loss
            // may be there twice.
            let is_repeated = loss == Loss::Newest && unknown.contains_key(number);
            assert!(once.insert((epoch, *number)) || is_repeated, "{number} was appended twice");
        }
        Self { records, lost_from, loss }
    }

    /// Checks that the client received each permitted record that no gap covers, and no record of
    /// others.
    pub fn settle(&self, history: &[Epoch], names: u8) {
        let last = history.last().unwrap().epoch;
        let mut received = HashSet::new();
        for entry in history {
            for &(at, number) in &entry.received {
                let record = ((entry.epoch, at), number);
                assert!(self.records[&record] & names != 0, "{number} was for others");
                received.insert(record);
            }
        }
        for (record, audience) in &self.records {
            if audience & names == 0 || received.contains(record) {
                continue;
            }
            let ((epoch, at), number) = *record;
            let Some(entry) = history.iter().find(|entry| entry.epoch == epoch) else {
                // The gap before the next epoch covers an epoch that the client never reached.
                assert!(self.loss == Loss::Newest && epoch != last, "no gap covers epoch {epoch:x}");
                continue;
            };
            // Covered by the gap at the start of this epoch, or by the gap at its end.
            let is_lost = self.lost_from.get(&epoch).is_some_and(|from| at >= *from);
            let is_covered = at <= entry.begins || epoch != last && (at > entry.at || is_lost);
            assert!(
                is_covered,
                "{number} at {at} of {epoch:x} is missing; read up to {} from {}",
                entry.at, entry.begins
            );
        }
    }

    /// Returns the number of epochs that began without a loss that a publisher or a client noticed.
    /// An instance may have read a lost record that reached no client.
    pub fn unexplained(&self, histories: &[&[Epoch]]) -> usize {
        let all: HashSet<u64> = histories.iter().flat_map(|history| history.iter()).map(|entry| entry.epoch).collect();
        all.len() - 1 - self.lost_from.len()
    }
}

/// The totals that a run prints at its end.
pub struct Totals {
    pub seed: u64,
    pub faults: BTreeMap<&'static str, usize>,
    pub published: usize,
    pub acknowledged: usize,
    pub unknown: usize,
    pub failed: usize,
    pub delivered: usize,
    pub epochs: usize,
    pub gaps: BTreeMap<String, usize>,
    /// The number of epochs that began without a noticed loss.
    pub unexplained: usize,
    /// The number of acknowledged records that the log does not have at the end, if the run has
    /// compared them.
    pub lost: Option<usize>,
}

impl Totals {
    pub fn new(seed: u64, written: &[Written], histories: &[&[Epoch]]) -> Self {
        let sum = |count: fn(&Written) -> usize| written.iter().map(count).sum::<usize>();
        // A record that was repeated until it was acknowledged counts once.
        let unknown = |written: &Written| {
            let acknowledged: HashSet<u64> = written.acknowledged.iter().map(|(_, number, _)| *number).collect();
            written.unknown.keys().filter(|number| !acknowledged.contains(number)).count()
        };
        let (acknowledged, unknown) = (sum(|written| written.acknowledged.len()), sum(unknown));
        let failed = sum(|written| written.failed);
        let epochs = histories.iter().flat_map(|history| history.iter().map(|entry| entry.epoch));
        Self {
            seed,
            faults: BTreeMap::new(),
            published: acknowledged + unknown + failed,
            acknowledged,
            unknown,
            failed,
            delivered: histories.iter().flat_map(|history| history.iter()).map(|entry| entry.received.len()).sum(),
            epochs: epochs.collect::<HashSet<_>>().len(),
            gaps: BTreeMap::new(),
            unexplained: 0,
            lost: None,
        }
    }
}

impl fmt::Display for Totals {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { seed, faults, published, acknowledged, unknown, failed, delivered, epochs, gaps, .. } = self;
        let list = |counts: Vec<String>| if counts.is_empty() { "none".to_owned() } else { counts.join(", ") };
        let faults = list(faults.iter().map(|(kind, count)| format!("{count} {kind}")).collect());
        let gaps = list(gaps.iter().map(|(reason, count)| format!("{count} {reason}")).collect());
        writeln!(f, "SEED={seed}")?;
        writeln!(f, "  faults: {faults}")?;
        write!(f, "  published: {published} ({acknowledged} acknowledged, {unknown} unknown, ")?;
        writeln!(f, "{failed} not appended)")?;
        writeln!(f, "  delivered: {delivered} to all clients; gaps of all clients: {gaps}")?;
        match self.lost {
            Some(_) => writeln!(f, "  epochs: {epochs}, of which {} without a noticed loss", self.unexplained)?,
            None => writeln!(f, "  epochs: {epochs}")?,
        }
        match self.lost {
            Some(lost) => write!(f, "  acknowledged and not in the log at the end: {lost}"),
            None => write!(f, "  acknowledged and not in the log at the end: not compared"),
        }
    }
}
