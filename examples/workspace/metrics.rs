//! What this process and its machine are doing, once a second. Other systems than Linux say less.

use std::collections::{BTreeMap, VecDeque};
use std::fs::read_to_string;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::time::{MissedTickBehavior, interval};
use tower_sse::{Event, Hub, ReceivedEvent};

use crate::replica::{Follower, Shared, lock, now, value};

pub(crate) const TOPIC: &str = "metrics";
/// Samples of each instance: so many seconds.
const KEPT: usize = 120;

/// One moment of an instance. What the system does not tell is absent.
#[derive(Clone, Serialize, Deserialize)]
struct Sample {
    instance: String,
    at: u64,
    /// Percent of all cores together.
    machine_cpu: Option<f64>,
    process_cpu: Option<f64>,
    /// Bytes.
    machine_memory: Option<u64>,
    machine_memory_total: Option<u64>,
    process_memory: Option<u64>,
    /// Pages that have a stream open.
    connections: usize,
    /// Events handed to streams since the sample before, also to that by which the services read the log.
    delivered: u64,
}

#[derive(Clone)]
pub(crate) struct Metrics {
    by_instance: Shared<BTreeMap<String, VecDeque<Sample>>>,
}

impl Metrics {
    /// Samples on a task of its own, for as long as the runtime lives.
    pub(crate) fn start(hub: Hub, instance: String) -> Self {
        tokio::spawn(async move {
            let mut ticks = interval(Duration::from_secs(1));
            ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
            let (mut busy, mut delivered) = (Busy::now(), 0);
            loop {
                ticks.tick().await;
                let before = std::mem::replace(&mut busy, Busy::now());
                let total = hub.stats().delivered;
                let sample = Sample {
                    instance: instance.clone(),
                    at: now(),
                    machine_cpu: busy.share(&before, |busy| busy.machine),
                    process_cpu: busy.share(&before, |busy| busy.process),
                    machine_memory: meminfo("MemAvailable:").and_then(|free| meminfo("MemTotal:")?.checked_sub(free)),
                    machine_memory_total: meminfo("MemTotal:"),
                    process_memory: kilobytes("/proc/self/status", "VmRSS:"),
                    connections: hub.connections().iter().filter(|connection| connection.user.is_some()).count(),
                    delivered: total - delivered,
                };
                delivered = total;
                // The key is the instance: a new page gets the newest sample of each at once. One that is lost is lost.
                if let Ok(event) = Event::json("sample", &sample) {
                    let _ = hub.topic(TOPIC).publish(event.key(instance.clone())).await;
                }
            }
        });
        Self { by_instance: Shared::default() }
    }

    /// The last two minutes of each instance that is there.
    pub(crate) fn list(&self) -> impl Serialize {
        lock(&self.by_instance).values().flatten().cloned().collect::<Vec<_>>()
    }
}

impl Follower for Metrics {
    fn topics(&self) -> Vec<String> {
        vec![TOPIC.to_owned()]
    }

    fn apply(&self, event: &ReceivedEvent) {
        let Some(sample) = value::<Sample>(event, "sample") else { return };
        let mut by_instance = lock(&self.by_instance);
        let oldest = sample.at.saturating_sub(KEPT as u64 * 1000);
        by_instance.retain(|_, samples| samples.back().is_some_and(|last| last.at > oldest));
        let samples = by_instance.entry(sample.instance.clone()).or_default();
        samples.push_back(sample);
        if samples.len() > KEPT {
            samples.pop_front();
        }
    }

    fn clear(&self) {
        lock(&self.by_instance).clear();
    }
}

/// Processor time since ever, in ticks; all of it, what the machine used, and what this process used.
struct Busy {
    all: Option<u64>,
    machine: Option<u64>,
    process: Option<u64>,
}

impl Busy {
    fn now() -> Self {
        // cpu  user nice system idle iowait irq softirq steal (guest times are counted in user already)
        let stat = read_to_string("/proc/stat").unwrap_or_default();
        let times: Vec<u64> =
            stat.lines().next().unwrap_or_default().split_whitespace().skip(1).take(8).flat_map(str::parse).collect();
        let all = (times.len() == 8).then(|| times.iter().sum());
        // After the name of the program, which may hold spaces: state is the first field, utime and stime are 12 and 13.
        let own = read_to_string("/proc/self/stat").unwrap_or_default();
        let fields: Vec<&str> = own.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
        let ticks = |field: usize| fields.get(field)?.parse::<u64>().ok();
        Self {
            all,
            machine: all.map(|all: u64| all - times[3] - times[4]),
            process: ticks(11).zip(ticks(12)).map(|(user, system)| user + system),
        }
    }

    /// In percent, since another moment.
    fn share(&self, before: &Self, of: fn(&Self) -> Option<u64>) -> Option<f64> {
        let all = self.all?.checked_sub(before.all?).filter(|all| *all > 0)?;
        let part = of(self)?.saturating_sub(of(before)?);
        #[expect(clippy::cast_precision_loss, reason = "for a chart")]
        Some((part as f64 * 100.0 / all as f64).min(100.0))
    }
}

fn meminfo(name: &str) -> Option<u64> {
    kilobytes("/proc/meminfo", name)
}

/// A line like `VmRSS:    1234 kB`, in bytes.
fn kilobytes(file: &str, name: &str) -> Option<u64> {
    let file = read_to_string(file).ok()?;
    let line = file.lines().find_map(|line| line.strip_prefix(name))?;
    Some(line.trim().strip_suffix(" kB")?.parse::<u64>().ok()? * 1024)
}
