//! Finds the server that has the log: one known server, the primary that Sentinel names, or the
//! server of a cluster that owns the log's slot.
//!
//! Every new connection begins with this search, so that it leads to the new primary after a
//! failover. With Sentinel or a cluster, the search accepts a server only if the server accepts a
//! write that changes nothing. A replica rejects this write, and a server of a cluster that does
//! not own the slot redirects it.

use std::cmp::Reverse;
use std::collections::hash_map::HashMap;
use std::time::Duration;

use futures::StreamExt;
use futures::stream::FuturesUnordered;
use redis::aio::MultiplexedConnection;
use redis::{AsyncConnectionConfig, Client, Cmd, ConnectionAddr, ConnectionInfo, FromRedisValue, RedisError, Value};
use tokio::time::{Instant, timeout_at};

use super::super::{Answer, BackplaneError, in_time};
use super::errors::classify;
use super::redirect::{Address, Redirect, known_host};
use crate::sync::Mutex;

/// The number of servers of a cluster that a search asks at the same time.
const ASKED_AT_ONCE: usize = 3;
/// The maximum number of redirections that one search follows.
const MAX_REDIRECTS: usize = 5;
/// The maximum number of servers of a cluster that the adapter remembers.
const MAX_NODES: usize = 64;

/// How to find the server that has the log.
#[derive(Clone)]
pub(super) enum Topology {
    Server(Client),
    Sentinel(Sentinels),
    Cluster(Cluster),
}

/// The Sentinels of a primary.
#[derive(Clone)]
pub(super) struct Sentinels {
    pub(super) sentinels: Vec<ConnectionInfo>,
    pub(super) primary: String,
    /// The settings of connections to the primary. Its address is replaced.
    pub(super) servers: ConnectionInfo,
}

/// The primary that a Sentinel names, and the version of the configuration that names it, if the
/// Sentinel reports the version.
type Named = (Option<u64>, Address);

/// The servers of a cluster.
pub(super) struct Cluster {
    /// The servers that the application has named.
    seeds: Vec<ConnectionInfo>,
    known: Mutex<Known>,
}

/// What the cluster has said about its servers.
#[derive(Clone, Default)]
struct Known {
    owner: Option<Address>,
    nodes: Vec<Address>,
}

/// The time limits of a connection.
#[derive(Clone, Copy)]
pub(super) struct Limits {
    /// The time limit for connecting.
    pub(super) connect: Duration,
    /// The time limit for each answer, if any.
    pub(super) answer: Option<Duration>,
}

impl Topology {
    /// Connects to the server that has the log. `meta` is a key of the log.
    pub(super) async fn connect(&self, meta: &str, limits: Limits) -> Answer<MultiplexedConnection> {
        let connection = async {
            match self {
                Self::Server(client) => open(client, limits).await,
                Self::Sentinel(sentinels) => sentinels.connect(meta, limits).await,
                Self::Cluster(cluster) => cluster.connect(meta, limits).await,
            }
        };
        in_time(limits.connect, connection).await.map_err(BackplaneError::before_request)
    }

    /// Connects to the server with this address, which a cluster has named.
    pub(super) async fn connect_to(&self, address: &Address, limits: Limits) -> Answer<MultiplexedConnection> {
        let info = match self {
            Self::Server(client) => client.get_connection_info(),
            Self::Sentinel(sentinels) => &sentinels.servers,
            Self::Cluster(cluster) => cluster.settings(),
        };
        open_at(info, address, limits).await.map_err(BackplaneError::before_request)
    }

    /// Returns the redirection of an error, if the adapter follows redirections. Remembers the new
    /// owner of the slot.
    pub(super) fn redirect(&self, error: &RedisError) -> Option<Redirect> {
        let Self::Cluster(cluster) = self else { return None };
        let redirect = Redirect::of(error, &cluster.host())?;
        if let Redirect::Moved(owner) = &redirect {
            cluster.known.lock().owner = Some(owner.clone());
        }
        Some(redirect)
    }

    /// Whether the adapter follows redirections.
    pub(super) fn is_cluster(&self) -> bool {
        matches!(self, Self::Cluster(_))
    }

    /// Whether any connection is encrypted.
    pub(super) fn is_encrypted(&self) -> bool {
        let is_encrypted = |info: &ConnectionInfo| matches!(info.addr(), ConnectionAddr::TcpTls { .. });
        match self {
            Self::Server(client) => is_encrypted(client.get_connection_info()),
            Self::Sentinel(all) => is_encrypted(&all.servers) || all.sentinels.iter().any(is_encrypted),
            Self::Cluster(cluster) => cluster.seeds.iter().any(is_encrypted),
        }
    }

    /// Returns a description without secrets.
    pub(super) fn describe(&self) -> String {
        let list =
            |all: &[ConnectionInfo]| all.iter().map(|info| info.addr().to_string()).collect::<Vec<_>>().join(", ");
        match self {
            Self::Server(client) => format!("redis at {}", client.get_connection_info().addr()),
            Self::Sentinel(Sentinels { sentinels, primary, .. }) => {
                format!("redis primary {primary} of the sentinels at {}", list(sentinels))
            }
            Self::Cluster(cluster) => format!("redis cluster at {}", list(&cluster.seeds)),
        }
    }
}

impl Sentinels {
    /// Asks all Sentinels, and connects to the primary of the newest configuration.
    ///
    /// A Sentinel that is cut off from the others names the old primary after a failover, and the
    /// old primary may still accept writes. So this function waits until more than half of the
    /// Sentinels [decide](decided), and at most for half of the time limit if one has answered.
    async fn connect(&self, meta: &str, limits: Limits) -> Answer<MultiplexedConnection> {
        let enough = self.sentinels.len() / 2 + 1;
        let deadline = Instant::now() + limits.connect / 2;
        let mut answers: FuturesUnordered<_> =
            self.sentinels.iter().map(|sentinel| self.primary(sentinel, limits)).collect();
        let (mut named, mut tried, mut failed) = (Vec::new(), Vec::new(), None);
        loop {
            let answer = if named.is_empty() {
                answers.next().await
            } else {
                timeout_at(deadline, answers.next()).await.unwrap_or_default()
            };
            let is_last = answer.is_none();
            match answer {
                Some(Ok(primary)) => named.push(primary),
                Some(Err(error)) => drop(failed.get_or_insert(error)),
                None => {}
            }
            let primaries = decided(&named, enough).or_else(|| is_last.then(|| newest(&named)));
            for (_, address) in primaries.unwrap_or_default() {
                if tried.contains(&address) {
                    continue;
                }
                match self.connect_to(&address, meta, limits).await {
                    Ok(connection) => return Ok(connection),
                    // The error of a primary says more than that of a Sentinel.
                    Err(error) => failed = Some(error),
                }
                tried.push(address);
            }
            if is_last {
                return Err(failed.unwrap_or_else(|| BackplaneError::unavailable("no Sentinel has answered")));
            }
        }
    }

    /// Asks one Sentinel for the address of the primary, and for the version of the configuration
    /// that names it. The version is `None` if the Sentinel does not report it, for example because
    /// the user may not send `SENTINEL MASTER`.
    async fn primary(&self, sentinel: &ConnectionInfo, limits: Limits) -> Answer<Named> {
        let mut connection = open_info(sentinel.clone(), limits).await?;
        // Ask for the version first. If the primary changes between the two requests, the new
        // address then has the old version. The old address must not have the new one.
        let command = redis::cmd("SENTINEL").arg("MASTER").arg(&self.primary).take();
        let fields = ask::<HashMap<String, String>>(&mut connection, &command, limits).await.unwrap_or_default();
        let version = fields.get("config-epoch").and_then(|epoch| epoch.parse().ok());
        let command = redis::cmd("SENTINEL").arg("GET-MASTER-ADDR-BY-NAME").arg(&self.primary).take();
        let address: Option<Address> = ask(&mut connection, &command, limits).await?;
        let address = address.ok_or_else(|| {
            BackplaneError::unavailable(format!("the Sentinel knows no primary with the name {:?}", self.primary))
        })?;
        Ok((version, address))
    }

    async fn connect_to(&self, address: &Address, meta: &str, limits: Limits) -> Answer<MultiplexedConnection> {
        let mut connection = open_at(&self.servers, address, limits).await?;
        ask::<u64>(&mut connection, &probe(meta), limits).await?;
        Ok(connection)
    }
}

/// Returns the primaries that `enough` Sentinels decide on, or `None` if they do not decide.
///
/// If all answers have a version, the newest one decides. An answer without a version is neither
/// newer nor older than another answer. Then only `enough` Sentinels that name the same primary
/// decide.
fn decided(named: &[Named], enough: usize) -> Option<Vec<(usize, Address)>> {
    if named.len() < enough {
        return None;
    }
    let mut primaries = newest(named);
    if named.iter().any(|(version, _)| version.is_none()) {
        primaries.retain(|(count, _)| *count >= enough);
    }
    (!primaries.is_empty()).then_some(primaries)
}

/// Returns the primaries of the newest configuration, and those whose version is unknown. Each has
/// the number of the Sentinels that name it, and a primary that more Sentinels name comes first.
fn newest(named: &[Named]) -> Vec<(usize, Address)> {
    let newest = named.iter().filter_map(|(version, _)| *version).max();
    let mut primaries: Vec<(usize, Address)> = Vec::new();
    for (_, address) in named.iter().filter(|(version, _)| version.is_none() || *version == newest) {
        match primaries.iter_mut().find(|(_, known)| known == address) {
            Some((count, _)) => *count += 1,
            None => primaries.push((1, address.clone())),
        }
    }
    primaries.sort_by_key(|(count, _)| Reverse(*count));
    primaries
}

impl Cluster {
    pub(super) fn new(seeds: Vec<ConnectionInfo>) -> Self {
        Self { seeds, known: Mutex::default() }
    }

    /// The settings of connections to servers that the cluster has named.
    fn settings(&self) -> &ConnectionInfo {
        // `Redis::cluster` requires a seed.
        &self.seeds[0]
    }

    /// The host of the server that owned the slot last.
    fn host(&self) -> String {
        let owner = self.known.lock().owner.clone();
        owner.map_or_else(|| address_of(self.settings()).0, |(host, _)| host)
    }

    /// Asks the last owner of the slot, and then the other servers in random order.
    async fn connect(&self, meta: &str, limits: Limits) -> Answer<MultiplexedConnection> {
        let Known { owner, nodes } = self.known.lock().clone();
        let mut failed = None;
        if let Some(owner) = &owner {
            // Half of the time remains for the other servers.
            let info = at(self.settings(), owner);
            match in_time(limits.connect / 2, self.connect_through(info, meta, limits)).await {
                Ok(connection) => return Ok(connection),
                Err(error) => failed = Some(error),
            }
        }
        let mut servers = self.seeds.clone();
        let is_new = |address: &&Address| self.seeds.iter().all(|seed| address_of(seed) != **address);
        servers.extend(nodes.iter().filter(is_new).map(|node| at(self.settings(), node)));
        fastrand::shuffle(&mut servers);
        let connections: Vec<_> =
            servers.into_iter().map(|server| self.connect_through(server, meta, limits)).collect();
        let mut connections = futures::stream::iter(connections).buffer_unordered(ASKED_AT_ONCE);
        while let Some(connection) = connections.next().await {
            match connection {
                Ok(connection) => return Ok(connection),
                Err(error) => failed = Some(error),
            }
        }
        Err(failed.unwrap_or_else(|| BackplaneError::unavailable("no server of the cluster has answered")))
    }

    /// Connects to a server, and follows its redirections to the owner of the slot.
    async fn connect_through(
        &self,
        mut info: ConnectionInfo,
        meta: &str,
        limits: Limits,
    ) -> Answer<MultiplexedConnection> {
        for _ in 0..=MAX_REDIRECTS {
            let address = address_of(&info);
            let mut connection = open_info(info, limits).await?;
            let owner = match in_answer_time(limits, probe(meta).query_async::<u64>(&mut connection)).await? {
                Ok(_) => address,
                Err(error) => match Redirect::of(&error, &address.0) {
                    // The server owns the slot, and another server imports it.
                    Some(Redirect::Ask(_)) => address,
                    Some(Redirect::Moved(owner)) => {
                        info = at(self.settings(), &owner);
                        continue;
                    }
                    None => return Err(classify(&error)),
                },
            };
            let nodes = nodes(&mut connection, &owner.0, limits).await;
            let mut known = self.known.lock();
            known.owner = Some(owner);
            if !nodes.is_empty() {
                known.nodes = nodes;
            }
            return Ok(connection);
        }
        Err(BackplaneError::unavailable("the servers of the cluster redirect to each other"))
    }
}

impl Clone for Cluster {
    fn clone(&self) -> Self {
        Self { seeds: self.seeds.clone(), known: Mutex::new(self.known.lock().clone()) }
    }
}

/// Returns the servers of the cluster that the server at `host` knows, and an empty list if the
/// server does not answer, for example because the Redis user may not send `CLUSTER SLOTS`.
async fn nodes(connection: &mut MultiplexedConnection, host: &str, limits: Limits) -> Vec<Address> {
    let command = redis::cmd("CLUSTER").arg("SLOTS").take();
    let ranges = ask::<Vec<Vec<Value>>>(connection, &command, limits).await.unwrap_or_default();
    let mut nodes = Vec::new();
    // Each range has its first and its last slot, and then its servers.
    for node in ranges.into_iter().flat_map(|range| range.into_iter().skip(2)) {
        let Ok(fields) = Vec::<Value>::from_redis_value(node) else { continue };
        let mut fields = fields.into_iter();
        let name = fields.next().map(Option::<String>::from_redis_value);
        let port = fields.next().map(u16::from_redis_value);
        let (Some(Ok(name)), Some(Ok(port))) = (name, port) else { continue };
        let address = (known_host(&name.unwrap_or_default(), host), port);
        if !nodes.contains(&address) && nodes.len() < MAX_NODES {
            nodes.push(address);
        }
    }
    nodes
}

/// Returns a write that changes nothing.
pub(super) fn probe(meta: &str) -> Cmd {
    Cmd::hdel(meta, "-")
}

/// Returns the settings for the server at this address.
fn at(settings: &ConnectionInfo, (host, port): &Address) -> ConnectionInfo {
    let (host, port) = (host.clone(), *port);
    settings.clone().set_addr(match settings.addr() {
        ConnectionAddr::TcpTls { insecure, tls_params, .. } => {
            ConnectionAddr::TcpTls { host, port, insecure: *insecure, tls_params: tls_params.clone() }
        }
        _ => ConnectionAddr::Tcp(host, port),
    })
}

/// Returns the host and the port of a server. `Redis::cluster` rejects the path of a socket.
fn address_of(info: &ConnectionInfo) -> Address {
    match info.addr() {
        ConnectionAddr::Tcp(host, port) | ConnectionAddr::TcpTls { host, port, .. } => (host.clone(), *port),
        _ => Address::default(),
    }
}

async fn open_at(settings: &ConnectionInfo, address: &Address, limits: Limits) -> Answer<MultiplexedConnection> {
    open_info(at(settings, address), limits).await
}

async fn open_info(info: ConnectionInfo, limits: Limits) -> Answer<MultiplexedConnection> {
    open(&Client::open(info).map_err(|error| classify(&error))?, limits).await
}

async fn open(client: &Client, limits: Limits) -> Answer<MultiplexedConnection> {
    let config =
        AsyncConnectionConfig::new().set_connection_timeout(Some(limits.connect)).set_response_timeout(limits.answer);
    client.get_multiplexed_async_connection_with_config(&config).await.map_err(|error| classify(&error))
}

/// Sends a command and waits for the answer, at most for the time limit of connecting.
async fn ask<T: FromRedisValue>(connection: &mut MultiplexedConnection, command: &Cmd, limits: Limits) -> Answer<T> {
    in_answer_time(limits, command.query_async(connection)).await?.map_err(|error| classify(&error))
}

/// Waits for an answer, at most for the time limit of connecting. A connection may have no time
/// limit for answers.
async fn in_answer_time<T>(limits: Limits, answer: impl Future<Output = T>) -> Answer<T> {
    in_time(limits.connect, async { Ok(answer.await) }).await
}

#[cfg(test)]
mod tests {
    use super::*;

    fn named(versions: &[(&str, Option<u64>)]) -> Vec<Named> {
        versions.iter().map(|(host, version)| (*version, ((*host).to_owned(), 1))).collect()
    }

    #[test]
    fn newest_version_decides_and_an_unknown_version_is_not_older() {
        for (versions, expected) in [
            (&[("old", Some(3))][..], None),
            (&[("old", Some(3)), ("new", Some(4))], Some("new")),
            (&[("old", Some(3)), ("new", None)], None),
            (&[("old", Some(3)), ("new", None), ("new", None)], Some("new")),
            (&[("old", None), ("new", Some(4)), ("new", None)], Some("new")),
            (&[("old", Some(3)), ("old", None), ("new", Some(4))], None),
            (&[("old", None), ("new", None)], None),
            (&[("old", None), ("new", None), ("new", None)], Some("new")),
        ] {
            let primaries = decided(&named(versions), 2)
                .map(|primaries| primaries.into_iter().map(|(_, (host, _))| host).collect::<Vec<_>>());
            assert_eq!(primaries, expected.map(|host| vec![host.to_owned()]), "{versions:?}");
        }
        let undecided = newest(&named(&[("a", Some(3)), ("b", None), ("c", Some(4)), ("c", None)]));
        assert_eq!(
            undecided.iter().map(|(count, (host, _))| (*count, &**host)).collect::<Vec<_>>(),
            [(2, "c"), (1, "b")]
        );
    }
}
