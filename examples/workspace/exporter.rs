//! The metrics of the hub and of its process, for Prometheus: `GET /metrics`.

use std::error::Error;
use std::time::Duration;

use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};
use tokio::time::sleep;
use tower_sse::Hub;

/// The upper bounds of the buckets of most durations, in seconds.
const SHORT: &[f64] = &[0.001, 0.005, 0.025, 0.1, 0.5, 2.5];
/// The upper bounds of the buckets of the time for which streams are open, in seconds.
const LONG: &[f64] = &[1.0, 10.0, 60.0, 600.0, 3_600.0, 86_400.0];

/// The time between two upkeeps of the recorder.
const UPKEEP: Duration = Duration::from_secs(5);

#[derive(Clone)]
pub(crate) struct Exporter {
    prometheus: PrometheusHandle,
}

impl Exporter {
    /// Installs the recorder of this process. A hub that is built later sends its metrics there.
    pub(crate) fn install() -> Result<Self, Box<dyn Error>> {
        let prometheus = PrometheusBuilder::new()
            .with_recommended_naming(true)
            .set_buckets_for_metric(Matcher::Full("sse.server.connection.duration".into()), LONG)?
            .set_buckets_for_metric(Matcher::Prefix("sse.server.".into()), SHORT)?
            .install_recorder()?;
        let kept = prometheus.clone();
        tokio::spawn(async move {
            // Moves durations into their buckets, also while nothing scrapes the metrics. Otherwise
            // they would take more and more memory.
            loop {
                sleep(UPKEEP).await;
                kept.run_upkeep();
            }
        });
        Ok(Self { prometheus })
    }

    /// Returns the metrics as Prometheus reads them.
    pub(crate) fn render(&self, hub: &Hub) -> String {
        hub.record_metrics();
        self.prometheus.render()
    }
}
