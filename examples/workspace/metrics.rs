//! Figures of the process and of the machine, sampled once a second. Some are available only on
//! Linux.

use std::collections::{BTreeMap, VecDeque};
use std::fs::read_to_string;
use std::time::Duration;

use serde::Serialize;
use tokio::time::{MissedTickBehavior, interval};
use tower_sse::{Hub, ReceivedEvent};

use crate::events::Sample;
use crate::replica::{Follower, Shared, lock, now, value};

pub(crate) const TOPIC: &str = "metrics";
/// The number of samples of each instance, one for each second.
const MAX_SAMPLES: usize = 120;

#[derive(Clone)]
pub(crate) struct Metrics {
    by_instance: Shared<BTreeMap<String, VecDeque<Sample>>>,
}

impl Metrics {
    /// Spawns a task that publishes samples until the runtime ends.
    pub(crate) fn start(hub: Hub, instance: String) -> Self {
        tokio::spawn(async move {
            let mut ticks = interval(Duration::from_secs(1));
            ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
            let (mut cpu, mut delivered) = (CpuTimes::now(), 0);
            loop {
                ticks.tick().await;
                let before = std::mem::replace(&mut cpu, CpuTimes::now());
                let total = hub.stats().delivered;
                let sample = Sample {
                    instance: instance.clone(),
                    at: now(),
                    machine_cpu: cpu.share(&before, |cpu| cpu.machine),
                    process_cpu: cpu.share(&before, |cpu| cpu.process),
                    machine_memory: meminfo("MemAvailable:").and_then(|free| meminfo("MemTotal:")?.checked_sub(free)),
                    machine_memory_total: meminfo("MemTotal:"),
                    process_memory: kilobytes("/proc/self/status", "VmRSS:"),
                    connections: hub.connections().iter().filter(|connection| connection.user.is_some()).count(),
                    delivered: total - delivered,
                };
                delivered = total;
                // With the instance as key, a new page receives the newest sample of each instance.
                // The result is ignored: the next sample follows in a second.
                let _ = hub.topic(TOPIC).send(&sample).await;
            }
        });
        Self { by_instance: Shared::default() }
    }

    /// Returns the samples of the last two minutes, of every running instance.
    pub(crate) fn list(&self) -> impl Serialize {
        lock(&self.by_instance).values().flatten().cloned().collect::<Vec<_>>()
    }
}

impl Follower for Metrics {
    fn topics(&self) -> Vec<String> {
        vec![TOPIC.to_owned()]
    }

    fn apply(&self, event: &ReceivedEvent) {
        let Some(sample) = value::<Sample>(event) else { return };
        let mut by_instance = lock(&self.by_instance);
        let oldest = sample.at.saturating_sub(MAX_SAMPLES as u64 * 1000);
        by_instance.retain(|_, samples| samples.back().is_some_and(|last| last.at > oldest));
        let samples = by_instance.entry(sample.instance.clone()).or_default();
        samples.push_back(sample);
        if samples.len() > MAX_SAMPLES {
            samples.pop_front();
        }
    }

    fn clear(&self) {
        lock(&self.by_instance).clear();
    }
}

/// Processor time in ticks: the total since boot including idle time, the part that the machine
/// used, and the part that this process used.
struct CpuTimes {
    all: Option<u64>,
    machine: Option<u64>,
    process: Option<u64>,
}

impl CpuTimes {
    fn now() -> Self {
        // cpu  user nice system idle iowait irq softirq steal (`user` includes the guest times)
        let stat = read_to_string("/proc/stat").unwrap_or_default();
        let times: Vec<u64> =
            stat.lines().next().unwrap_or_default().split_whitespace().skip(1).take(8).flat_map(str::parse).collect();
        let all = (times.len() == 8).then(|| times.iter().sum());
        // The name of the program, in parentheses, may contain spaces. After it, `state` is field
        // 1, and `utime` and `stime` are the fields 12 and 13.
        let own = read_to_string("/proc/self/stat").unwrap_or_default();
        let fields: Vec<&str> = own.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
        let ticks = |field: usize| fields.get(field)?.parse::<u64>().ok();
        Self {
            all,
            machine: all.map(|all: u64| all - times[3] - times[4]),
            process: ticks(11).zip(ticks(12)).map(|(user, system)| user + system),
        }
    }

    /// Returns the percentage of one figure since an earlier time.
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

/// Reads a line like `VmRSS:    1234 kB` from a file, in bytes.
fn kilobytes(file: &str, name: &str) -> Option<u64> {
    let file = read_to_string(file).ok()?;
    let line = file.lines().find_map(|line| line.strip_prefix(name))?;
    Some(line.trim().strip_suffix(" kB")?.parse::<u64>().ok()? * 1024)
}
