//! Connections to the server.
//!
//! 1. A task of the runtime that opened a connection drives it, and passes notifications on.
//! 2. A connection is checked when it is opened: the schema, the isolation level and the encoding.
//! 3. Requests are single statements without names, so that they also work through a pooler that
//!    gives each transaction another connection.

use std::collections::BTreeSet;
use std::future::poll_fn;
use std::pin::pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use futures::stream::TryStreamExt;
use rustls::{ClientConfig, RootCertStore};
use tokio::sync::watch;
use tokio::task::AbortHandle;
use tokio_postgres::config::{Host, SslMode};
use tokio_postgres::types::{ToSql, Type};
use tokio_postgres::{AsyncMessage, Client, Config, Connection, NoTls, Row, Socket};
use tokio_postgres_rustls::MakeRustlsConnect;

use super::super::{Answer, BackplaneError, in_time};
use super::errors::{classify, classify_connect, is_fatal};
use super::schema::VERSION;
use crate::sync::Mutex;

/// A parameter of a statement, with its type.
pub(super) type Parameter<'a> = (&'a (dyn ToSql + Sync), Type);

/// The address of the database, the credentials and the TLS settings.
#[derive(Clone)]
pub(super) struct Database {
    config: Config,
    /// The TLS settings of the application. Without them, the certificate authorities of the
    /// machine are trusted.
    pub(super) tls: Option<Arc<ClientConfig>>,
    /// The settings that trust these authorities. Reading their files takes long, so it happens
    /// once.
    default_tls: Arc<OnceLock<Arc<ClientConfig>>>,
    /// Whether the adapter has logged that the server may lose acknowledged records.
    is_warned: Arc<AtomicBool>,
}

/// The notifications that a connection has received.
#[derive(Clone, Copy, Default)]
pub(super) struct Notifications {
    /// The number of the newest record in the log.
    pub(super) newest: i64,
    /// How often records were published to the inbox.
    pub(super) inbox: u64,
    /// How often control messages were sent.
    pub(super) control: u64,
}

impl Notifications {
    fn add(&mut self, payload: &str) {
        match payload.strip_prefix("log ").and_then(|number| number.parse().ok()) {
            Some(newest) => self.newest = self.newest.max(newest),
            None if payload == "inbox" => self.inbox += 1,
            None => self.control += 1,
        }
    }
}

/// An open connection.
pub(super) struct Session {
    pub(super) client: Client,
    pub(super) notifications: watch::Receiver<Notifications>,
    pub(super) limit: Duration,
    /// The connector with which a request can be cancelled.
    connector: Option<MakeRustlsConnect>,
    /// Ends the task that drives the connection, and closes the connection.
    driver: AbortHandle,
    open: Mutex<OpenRequests>,
    /// Whether an answer was late, so that the connection is closed soon.
    is_late: AtomicBool,
    is_warned: Arc<AtomicBool>,
}

/// The requests of a connection that wait for their answer. The server answers them in this order.
#[derive(Default)]
struct OpenRequests {
    next: u64,
    numbers: BTreeSet<u64>,
}

/// A request that waits for its answer.
struct OpenRequest<'a> {
    session: &'a Session,
    number: u64,
}

impl<'a> OpenRequest<'a> {
    fn new(session: &'a Session) -> Self {
        let mut open = session.open.lock();
        let number = open.next;
        open.next += 1;
        open.numbers.insert(number);
        Self { session, number }
    }

    /// Whether no earlier request waits for its answer, so that the server works on this one.
    fn is_first(&self) -> bool {
        self.session.open.lock().numbers.first() == Some(&self.number)
    }
}

impl Drop for OpenRequest<'_> {
    fn drop(&mut self) {
        self.session.open.lock().numbers.remove(&self.number);
    }
}

impl Database {
    pub(super) fn parse(url: &str) -> Answer<Self> {
        // tokio-postgres has no such modes. The connector verifies certificate and name in any
        // case.
        let url = url.replace("sslmode=verify-full", "sslmode=require").replace("sslmode=verify-ca", "sslmode=require");
        // The error of tokio-postgres may repeat a part of the URL.
        let config = url.parse().map_err(|_| BackplaneError::rejected("not a Postgres URL"))?;
        Self::new(config)
    }

    pub(super) fn new(mut config: Config) -> Answer<Self> {
        if config.get_hosts().is_empty() && config.get_hostaddrs().is_empty() {
            return Err(BackplaneError::rejected("the Postgres URL has no host"));
        }
        if config.get_application_name().is_none() {
            config.application_name("tower-sse");
        }
        Ok(Self { config, tls: None, default_tls: Arc::default(), is_warned: Arc::default() })
    }

    /// Returns the hosts and the database, without credentials.
    pub(super) fn describe(&self) -> String {
        let mut hosts: Vec<String> = Vec::new();
        for (index, host) in self.config.get_hosts().iter().enumerate() {
            let ports = self.config.get_ports();
            let port = ports.get(index).or(ports.first()).copied().unwrap_or(5432);
            hosts.push(match host {
                Host::Tcp(name) => format!("{name}:{port}"),
                #[cfg(unix)]
                Host::Unix(path) => format!("{}:{port}", path.display()),
            });
        }
        if hosts.is_empty() {
            hosts.extend(self.config.get_hostaddrs().iter().map(ToString::to_string));
        }
        let database = self.config.get_dbname().or(self.config.get_user()).unwrap_or_default();
        format!("postgres://{}/{database}", hosts.join(","))
    }

    /// Whether the connection stays on this machine, so that TLS has no use.
    fn is_local(&self) -> bool {
        let is_loopback = |host: &Host| match host {
            Host::Tcp(name) => {
                name == "localhost" || name.parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback())
            }
            #[cfg(unix)]
            Host::Unix(_) => true,
        };
        self.config.get_hostaddrs().iter().all(std::net::IpAddr::is_loopback)
            && self.config.get_hosts().iter().all(is_loopback)
    }

    /// Returns the connector for TLS, or `None` if the connection is not encrypted.
    fn connector(&self) -> Answer<Option<MakeRustlsConnect>> {
        let is_plain = match self.config.get_ssl_mode() {
            SslMode::Disable => true,
            SslMode::Prefer => self.tls.is_none() && self.is_local(),
            _ => false,
        };
        if is_plain {
            return Ok(None);
        }
        let config = match self.tls.as_ref().or(self.default_tls.get()) {
            Some(config) => config,
            None => {
                let config = Arc::new(default_tls()?);
                self.default_tls.get_or_init(|| config)
            }
        };
        Ok(Some(MakeRustlsConnect::new(ClientConfig::clone(config))))
    }

    /// Opens a connection within a time limit, which also applies to each answer.
    pub(super) async fn connect(&self, limit: Duration, channel: Option<&str>) -> Answer<Session> {
        let connector = self.connector()?;
        let mut config = self.config.clone();
        if config.get_ssl_mode() == SslMode::Prefer && connector.is_none() {
            config.ssl_mode(SslMode::Disable);
        }
        if config.get_connect_timeout().is_none() {
            // So that the adapter reaches the last host although the others do not answer.
            let hosts = config.get_hosts().len().max(config.get_hostaddrs().len()).max(1);
            config.connect_timeout(limit / u32::try_from(hosts).unwrap_or(u32::MAX));
        }
        if config.get_tcp_user_timeout().is_none() {
            config.tcp_user_timeout(limit);
        }
        let connect = async {
            let (client, (notifications, driver)) = match connector.clone() {
                Some(connector) => {
                    let (client, connection) =
                        config.connect(connector).await.map_err(|error| classify_connect(&error))?;
                    (client, drive(connection))
                }
                None => {
                    let (client, connection) = config.connect(NoTls).await.map_err(|error| classify_connect(&error))?;
                    (client, drive(connection))
                }
            };
            let is_warned = Arc::clone(&self.is_warned);
            let session = Session {
                client,
                notifications,
                limit,
                connector,
                driver,
                open: Mutex::default(),
                is_late: AtomicBool::new(false),
                is_warned,
            };
            if let Some(channel) = channel {
                let listen = format!("LISTEN {channel}");
                session.client.batch_execute(&listen).await.map_err(|error| classify(&error).before_request())?;
            }
            Ok(session)
        };
        in_time(limit, connect).await.map_err(BackplaneError::before_request)
    }
}

/// Returns TLS settings that trust the certificate authorities of the machine.
fn default_tls() -> Answer<ClientConfig> {
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
    let config = config.map_err(|error| BackplaneError::rejected(error.to_string()))?;
    Ok(config.with_root_certificates(roots).with_no_client_auth())
}

/// Spawns the task that drives a connection until it ends, or until its client is dropped and all
/// requests are answered.
fn drive<T>(mut connection: Connection<Socket, T>) -> (watch::Receiver<Notifications>, AbortHandle)
where
    T: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + Send + 'static,
{
    let (sender, receiver) = watch::channel(Notifications::default());
    let task = tokio::spawn(async move {
        loop {
            match poll_fn(|context| connection.poll_message(context)).await {
                Some(Ok(AsyncMessage::Notification(notification))) => {
                    sender.send_modify(|received| received.add(notification.payload()));
                }
                Some(Ok(_)) => {}
                Some(Err(_)) | None => return,
            }
        }
    });
    (receiver, task.abort_handle())
}

impl Session {
    /// Checks that the database has the schema and the settings that the adapter needs.
    pub(super) async fn check(&self) -> Answer<()> {
        let sql = "SELECT tower_sse.version(), current_setting('default_transaction_isolation'), \
                   current_setting('server_encoding'), current_setting('synchronous_commit'), current_setting('fsync'), \
                   pg_is_in_recovery()";
        let row = self.one(sql, &[]).await.map_err(BackplaneError::before_request)?;
        let version: Option<i32> = get(&row, 0)?;
        let [isolation, encoding, commit, fsync]: [String; 4] =
            [get(&row, 1)?, get(&row, 2)?, get(&row, 3)?, get(&row, 4)?];
        if version.is_none_or(|version| version < VERSION) {
            let text = format!("the schema `tower_sse` is too old: version {VERSION} is needed. Apply the migrations");
            return Err(BackplaneError::rejected(text));
        }
        if get(&row, 5)? {
            // A URL with several hosts may lead to the primary at the next attempt.
            return Err(BackplaneError::unavailable("the server is a standby"));
        }
        if isolation != "read committed" {
            let text = "the role needs `default_transaction_isolation = 'read committed'`";
            return Err(BackplaneError::rejected(text));
        }
        if encoding != "UTF8" {
            return Err(BackplaneError::rejected("the database needs the encoding UTF8"));
        }
        if (commit == "off" || fsync == "off") && !self.is_warned.swap(true, Ordering::Relaxed) {
            tracing::warn!(name: "sse.log.not_durable",
                synchronous_commit = commit, fsync,
                "a crash of the Postgres server may lose acknowledged events"
            );
        }
        Ok(())
    }

    /// Runs a statement, and returns its rows. The time limit is for each row, so that a large
    /// answer may take longer.
    pub(super) async fn rows(&self, sql: &str, parameters: &[Parameter<'_>]) -> Result<Vec<Row>, Failure> {
        let parameters = parameters.iter().map(|(value, kind)| (*value, kind.clone()));
        let request = OpenRequest::new(self);
        let mut stream = pin!(self.in_time(&request, self.client.query_typed_raw(sql, parameters)).await?);
        let mut rows = Vec::new();
        while let Some(row) = self.in_time(&request, stream.try_next()).await? {
            rows.push(row);
        }
        Ok(rows)
    }

    async fn in_time<T>(
        &self,
        request: &OpenRequest<'_>,
        answer: impl Future<Output = Result<T, tokio_postgres::Error>>,
    ) -> Result<T, Failure> {
        match tokio::time::timeout(self.limit, answer).await {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(error)) => Err(Failure { is_fatal: is_fatal(&error), error: classify(&error) }),
            Err(_) => {
                // Otherwise the request of another caller would be cancelled.
                if request.is_first() && !self.is_late.swap(true, Ordering::Relaxed) {
                    self.cancel_and_close();
                }
                Err(Failure { is_fatal: true, error: BackplaneError::unknown("no answer in time") })
            }
        }
    }

    /// Cancels the request that runs at the server, and closes the connection. A server that waits
    /// for a lock does not notice that the connection is closed, and each attempt would leave a
    /// process there. A pooler or a server that does not answer keeps an open connection.
    fn cancel_and_close(&self) {
        let (token, connector, limit) = (self.client.cancel_token(), self.connector.clone(), self.limit);
        let driver = self.driver.clone();
        tokio::spawn(async move {
            // Without an effect behind a pooler, and if the server does not answer at all.
            let cancel = async || {
                let cancelled = async {
                    match connector.clone() {
                        Some(connector) => token.cancel_query(connector).await,
                        None => token.cancel_query(NoTls).await,
                    }
                };
                let _ = tokio::time::timeout(limit, cancelled).await;
            };
            cancel().await;
            // The requests of other callers may still get their answers. After that, one of them
            // may wait for a lock, too.
            tokio::time::sleep(limit).await;
            if !driver.is_finished() {
                cancel().await;
                driver.abort();
            }
        });
    }

    /// Runs a statement that returns one row.
    pub(super) async fn one(&self, sql: &str, parameters: &[Parameter<'_>]) -> Answer<Row> {
        let mut rows = self.rows(sql, parameters).await.map_err(|failure| failure.error)?;
        rows.pop().ok_or_else(|| BackplaneError::unknown("the server returned no row"))
    }
}

/// A request that failed.
pub(super) struct Failure {
    pub(super) error: BackplaneError,
    /// Whether to replace the connection.
    pub(super) is_fatal: bool,
}

/// Returns a column of a row.
pub(super) fn get<'r, T: tokio_postgres::types::FromSql<'r>>(row: &'r Row, column: usize) -> Answer<T> {
    row.try_get(column).map_err(|error| BackplaneError::unknown(format!("unexpected answer: {error}")))
}

/// Waits until a notification fulfils a condition, at most for `poll`. Returns an error if the
/// connection has ended.
pub(super) async fn notified(
    notifications: &mut watch::Receiver<Notifications>,
    poll: Duration,
    is_new: impl FnMut(&Notifications) -> bool,
) -> Answer<()> {
    match tokio::time::timeout(poll, notifications.wait_for(is_new)).await {
        Ok(Err(_)) => Err(BackplaneError::unknown("the connection has ended")),
        Ok(Ok(_)) | Err(_) => Ok(()),
    }
}
