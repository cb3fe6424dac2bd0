//! A cluster of three NATS servers for one test.

#![allow(dead_code, unreachable_pub, reason = "each test binary uses a part of it")]

use std::time::Duration;

use super::failover::soon;
use super::nats::{NatsServer, is_installed, program};
use super::port;
use super::proxy::{Mode, Proxy};

/// The minimum version of the servers of a cluster.
const CLUSTER_VERSION: [u64; 3] = [2, 12, 2];

/// Whether the installed server can be a member of a cluster. The server of a distribution may be
/// too old. `tests/run nats` runs the tests of clusters with the current server in
/// `TOWER_SSE_NATS_SERVER`, which must not be too old.
fn can_cluster() -> bool {
    let output = program().arg("--version").output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let version = text.trim().rsplit('v').next().unwrap_or_default();
    let numbers: Vec<u64> = version.split('.').filter_map(|number| number.parse().ok()).collect();
    let is_enough = numbers.as_slice() >= CLUSTER_VERSION.as_slice();
    assert!(is_enough || std::env::var_os("TOWER_SSE_NATS_SERVER").is_none(), "{text} cannot be part of a cluster");
    is_enough
}

/// Three servers that form a cluster. A proxy is in front of each server for each of the others, so
/// that a test can cut off a server from the others and not from its clients.
pub struct NatsCluster {
    pub servers: [NatsServer; 3],
    /// The proxies from one server to another.
    routes: Vec<(usize, usize, Proxy)>,
}

impl NatsCluster {
    /// Starts a cluster, and waits until it stores messages. Returns `None` without a server, and
    /// if the installed server is too old for a cluster.
    pub async fn start() -> Option<Self> {
        if !is_installed() || !can_cluster() {
            return None;
        }
        let ports = [(); 3].map(|()| port::free_port());
        let mut routes = Vec::new();
        for from in 0..3 {
            for to in (0..3).filter(|&to| to != from) {
                routes.push((from, to, Proxy::start(ports[to]).await));
            }
        }
        let closed = port::free_port();
        let servers = [0, 1, 2].map(|server| {
            let to_others = routes.iter().filter(|(from, ..)| *from == server);
            let urls: Vec<_> = to_others.map(|(.., proxy)| format!("nats://127.0.0.1:{}", proxy.port)).collect();
            NatsServer::start_with(&[
                "--name",
                &format!("n{server}"),
                "--cluster_name",
                "test",
                "--cluster",
                &format!("nats://127.0.0.1:{}", ports[server]),
                "--routes",
                &urls.join(","),
                // Otherwise the servers would tell each other their own ports, and pass the
                // proxies.
                "--cluster_advertise",
                &format!("127.0.0.1:{closed}"),
            ])
            .unwrap()
        });
        let cluster = Self { servers, routes };
        cluster.wait_for(|answer| answer["streams"] == 0, 0, "INFO").await;
        Some(cluster)
    }

    /// The addresses of all servers.
    pub fn url(&self) -> String {
        self.servers.each_ref().map(NatsServer::url).join(",")
    }

    /// Repeats a request to the JetStream API of a server until the answer is as expected. Before
    /// that, there may be no answer.
    pub async fn wait_for(&self, is_expected: impl Fn(&serde_json::Value) -> bool, server: usize, request: &str) {
        soon(async {
            loop {
                let answer = tokio::time::timeout(Duration::from_secs(1), self.servers[server].try_api(request)).await;
                if answer.ok().flatten().is_some_and(|answer| is_expected(&answer)) {
                    return;
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        })
        .await;
    }

    /// Returns the server that leads a stream.
    pub async fn leader(&self, stream: &str) -> usize {
        let request = format!("STREAM.INFO.{stream}");
        soon(async {
            loop {
                for server in self.servers.iter().filter(|server| server.is_running()) {
                    let info = server.try_api(&request);
                    let info = tokio::time::timeout(Duration::from_secs(1), info).await.ok().flatten();
                    let leader =
                        info.and_then(|info| info["cluster"]["leader"].as_str()?.strip_prefix('n')?.parse().ok());
                    if let Some(leader) = leader {
                        return leader;
                    }
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        })
        .await
    }

    /// Waits until all replicas of a stream have all of its messages.
    pub async fn wait_until_current(&self, stream: &str) {
        self.wait_until_current_at(stream, 0).await;
    }

    /// Waits as [`wait_until_current`](Self::wait_until_current), and asks this server.
    pub async fn wait_until_current_at(&self, stream: &str, server: usize) {
        let is_current = |info: &serde_json::Value| {
            let replicas = info["cluster"]["replicas"].as_array();
            info["cluster"]["leader"].is_string()
                && replicas.is_some_and(|replicas| {
                    replicas.len() == 2
                        && replicas.iter().all(|replica| replica["current"] == true && replica["offline"] != true)
                })
        };
        self.wait_for(is_current, server, &format!("STREAM.INFO.{stream}")).await;
    }

    /// Breaks the connections of a server to the others, or allows them again. Its clients stay
    /// connected.
    pub fn cut_off(&self, server: usize, is_cut_off: bool) {
        for (.., proxy) in self.routes.iter().filter(|(from, to, _)| *from == server || *to == server) {
            proxy.set(if is_cut_off { Mode::Resets } else { Mode::Passes });
        }
    }
}
