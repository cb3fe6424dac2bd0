//! The Postgres adapter. It stores the log in tables of the schema `tower_sse`.
//!
//! Transactions of the application insert records into the table `inbox`, without a number and
//! without a lock. Instances move the committed records into the table `log` and number them there.
//!
//! 1. The SQL is in versioned files ([`schema`]). The adapter calls functions of the schema, so
//!    its role needs no rights on tables.
//! 2. Only the function `tower_sse.write` numbers records. It holds the lock of the log until its
//!    transaction ends. A transaction of the application never holds this lock.
//! 3. The adapter replaces a connection that broke, or on which an answer is overdue ([`server`]).
//! 4. Each stream of [`tail`](Backplane::tail) and [`listen`](Backplane::listen) has its own
//!    connection, and polls in addition to the notifications of the server ([`streams`]).
//! 5. Concurrent appends of one runtime become one transaction ([`append`]).
//! 6. An application publishes in its own transaction with its own driver ([`publish`]).

mod append;
mod connection;
mod errors;
mod journals;
mod migrations;
mod publish;
mod queue;
mod read;
mod schema;
mod server;
mod streams;

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::future::BoxFuture;
use futures::stream::BoxStream;
use ring::digest::{SHA256, digest};
use rustls::ClientConfig;
use tokio_postgres::Config;
use tokio_postgres::types::Type;

use self::append::Limits;
use self::connection::{Database, Parameter, get};
pub use self::publish::PublishArguments;
pub use self::schema::Migration;
use self::server::{Settings, Shared, number, seen};
use super::limits::LogLimits;
use super::{
    Answer, Backplane, BackplaneError, ControlMessage, ControlStream, CurrentValue, LogPosition, LogState, NewRecord,
    Range, ReadLimit, Seen, Stored,
};
use crate::macros::opaque_debug;

/// The maximum time for which a shared value is stored.
const MAX_SHARED: Duration = Duration::from_secs(300);
/// The maximum time for which a value is stored that can be taken once. It keeps the time of the
/// expiry representable.
const MAX_DEPOSIT: Duration = Duration::from_secs(366 * 86_400);
/// The maximum length of a namespace in bytes. It is in the index entries of all rows.
const MAX_NAMESPACE: usize = 255;
/// The default interval at which an instance looks for published records.
const POLL: Duration = Duration::from_millis(250);
const MIN_POLL: Duration = Duration::from_millis(1);
const MAX_POLL: Duration = Duration::from_secs(86_400);

/// A log in a PostgreSQL database, for [`HubBuilder::backplane`](crate::HubBuilder::backplane).
///
/// `Postgres` needs the feature `postgres`, PostgreSQL 14 or newer, a database with the encoding
/// UTF8, and the schema `tower_sse` in it ([`migrate`](Self::migrate)). The log is as durable as the
/// tables of the database.
///
/// ```no_run
/// # #[cfg(feature = "postgres")] #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// use tower_sse::Hub;
/// use tower_sse::backplane::Postgres;
///
/// // One role for all is enough for development: `docs/postgres.md` describes separate roles.
/// let log = Postgres::new("postgres://owner:secret@127.0.0.1/shop", "shop")?;
/// log.migrate().await?;
/// let hub = Hub::builder().backplane(log.clone()).build()?;
/// # let _ = hub; Ok(()) }
/// # #[cfg(not(feature = "postgres"))] fn main() {}
/// ```
///
/// # Publishing in a transaction
///
/// A transaction of the application can publish events. If the transaction commits, every stream
/// receives the events. If it is rolled back, no stream receives them. After the commit, call
/// [`wake`](Self::wake): otherwise the instances find the events at their next
/// [poll](Self::poll_interval), 250 ms later at most.
///
/// The crates `tower-sse-tokio-postgres` and `tower-sse-sqlx` have a function for transactions of
/// these drivers. With another driver, execute [`PUBLISH_SQL`](Self::PUBLISH_SQL). With another
/// language, call the SQL function `tower_sse.publish`, which `docs/postgres.md` describes.
///
/// # Connections
///
/// An instance opens its connections when it needs them: two for its streams, one for publishing,
/// one for small requests, one for large reads, and one for runs if it has any. A
/// [`Publisher`](crate::Publisher) opens one. A process that uses the adapter on several tokio
/// runtimes has such connections for each of them.
#[derive(Clone)]
pub struct Postgres {
    shared: Arc<Shared>,
}

impl Postgres {
    /// Creates an adapter for a log in the database at `url`, for example
    /// `postgres://hub:secret@10.0.0.1/shop?sslmode=require`.
    ///
    /// Hubs that use the same database and the same `namespace` share one log. Hubs with other
    /// namespaces in the same database are unrelated. The namespace is a text of at most 255 bytes
    /// without U+0000. The adapter connects when it is first used.
    ///
    /// The URL may name several hosts, and then `target_session_attrs=read-write` finds the primary
    /// after a failover. With `sslmode=require`, the adapter verifies the certificate of the server
    /// with the certificate authorities of the machine, or with those of [`tls`](Self::tls). With
    /// `sslmode=prefer`, the default, it does the same if the server supports TLS, but does not
    /// encrypt connections to this machine.
    ///
    /// # Errors
    ///
    /// Returns an error if `url` is not a Postgres URL with a host, or if the namespace is too long
    /// or contains U+0000. The error does not contain the URL.
    pub fn new(url: &str, namespace: &str) -> Answer<Self> {
        Self::with_database(Database::parse(url)?, namespace)
    }

    /// Creates an adapter with the settings of a [`Config`], for settings that a URL cannot
    /// express.
    ///
    /// `Config` is a type of version 0.7 of the crate `tokio-postgres`. Use the same version in
    /// your application. A later version of `tokio-postgres` is a breaking change of this crate.
    ///
    /// # Errors
    ///
    /// Returns an error if the settings have no host, or if the namespace is too long or contains
    /// U+0000.
    pub fn from_config(config: Config, namespace: &str) -> Answer<Self> {
        Self::with_database(Database::new(config)?, namespace)
    }

    fn with_database(database: Database, namespace: &str) -> Answer<Self> {
        if namespace.contains('\0') || namespace.len() > MAX_NAMESPACE {
            let text = format!("the namespace contains U+0000, or has more than {MAX_NAMESPACE} bytes");
            return Err(BackplaneError::rejected(text));
        }
        Ok(Self {
            shared: Arc::new(Shared::new(Settings {
                database,
                direct: None,
                namespace: namespace.to_owned(),
                limits: LogLimits::default(),
                poll_interval: POLL,
                listens: true,
            })),
        })
    }

    /// Sets the TLS settings, for a private certificate authority or a client certificate. Defaults
    /// to the certificate authorities of the machine.
    ///
    /// The adapter then also encrypts connections to this machine, if the server supports TLS.
    ///
    /// `ClientConfig` is a type of version 0.23 of the crate `rustls`.
    ///
    /// ```no_run
    /// # #[cfg(feature = "postgres")] fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// use tokio_rustls::rustls::pki_types::{CertificateDer, pem::PemObject};
    /// use tokio_rustls::rustls::{ClientConfig, RootCertStore};
    /// use tower_sse::backplane::Postgres;
    ///
    /// let mut roots = RootCertStore::empty();
    /// roots.add(CertificateDer::from_pem_file("ca.pem")?)?;
    /// let tls = ClientConfig::builder().with_root_certificates(roots).with_no_client_auth();
    /// let url = "postgres://hub:secret@db.internal/shop?sslmode=require";
    /// let log = Postgres::new(url, "shop")?.tls(tls);
    /// # let _ = log; Ok(()) }
    /// # #[cfg(not(feature = "postgres"))] fn main() {}
    /// ```
    #[must_use]
    pub fn tls(self, config: ClientConfig) -> Self {
        let config = Arc::new(config);
        self.with(|settings| {
            if let Some(direct) = &mut settings.direct {
                direct.tls = Some(Arc::clone(&config));
            }
            settings.database.tls = Some(config);
        })
    }

    /// Sets another URL for the streams of this adapter: the direct URL of the database, if the URL
    /// of [`new`](Self::new) is that of a pooler such as PgBouncer in transaction mode.
    ///
    /// A stream needs a separate connection to receive notifications. Such a pooler gives each
    /// transaction another connection. Without this setting, call [`poll_only`](Self::poll_only)
    /// behind such a pooler.
    ///
    /// # Errors
    ///
    /// Returns an error if `url` is not a Postgres URL with a host. The error does not contain the
    /// URL.
    pub fn listen_at(self, url: &str) -> Answer<Self> {
        let mut direct = Database::parse(url)?;
        direct.tls.clone_from(&self.shared.settings.database.tls);
        Ok(self.with(|settings| settings.direct = Some(direct)))
    }

    /// Receives no notifications. The streams then only ask the database at every
    /// [`poll_interval`](Self::poll_interval), for records and for control messages. Use this
    /// setting behind a pooler that gives each transaction another connection.
    ///
    /// An event then arrives up to one interval later, except on streams of the process that
    /// published it.
    #[must_use]
    pub fn poll_only(self) -> Self {
        self.with(|settings| settings.listens = false)
    }

    /// Sets the interval at which an instance looks for events that transactions have published.
    /// Defaults to 250 ms. The adapter shortens each interval by up to a half, at random. At least
    /// 1 ms, and at most a day.
    ///
    /// This interval is the longest delay of an event between the commit and the instances, if the
    /// process that publishes does not call [`wake`](Self::wake), for example because it has
    /// crashed after the commit. Each look is one small query.
    #[must_use]
    pub fn poll_interval(self, interval: Duration) -> Self {
        self.with(|settings| settings.poll_interval = interval.clamp(MIN_POLL, MAX_POLL))
    }

    /// Sets the limits of the records and current values that the database retains. Defaults to
    /// [`LogLimits::new`].
    #[must_use]
    pub fn limits(self, limits: LogLimits) -> Self {
        self.with(|settings| settings.limits = LogLimits { timeout: settings.limits.timeout, ..limits })
    }

    /// Sets the time limit for connecting, and for each answer of the server. Defaults to 2 s. A
    /// call that needs several requests can take longer. An append waits for another writer of the
    /// log for at most half of this time.
    #[must_use]
    pub fn timeout(self, timeout: Duration) -> Self {
        self.with(|settings| settings.limits.timeout = timeout)
    }

    fn with(self, change: impl FnOnce(&mut Settings)) -> Self {
        let mut settings = self.shared.settings.clone();
        change(&mut settings);
        Self { shared: Arc::new(Shared::new(settings)) }
    }

    /// Creates the schema `tower_sse`, or changes it to the version that this adapter needs.
    ///
    /// Applies each migration in a separate transaction. Several processes may call this method
    /// at once. The role of the URL needs the right to create a schema in the database, and owns
    /// the schema afterwards. The adapter itself needs fewer rights: `docs/postgres.md` lists them.
    /// To apply the migrations with your own tools, use [`migrations`](Self::migrations).
    ///
    /// Later versions of this crate add migrations, which instances of the earlier version
    /// tolerate. So migrate before you start instances of a later version.
    ///
    /// Cancel safety: a dropped future may have applied some of the migrations. Call the method
    /// again.
    ///
    /// # Errors
    ///
    /// Returns an error if the server is unavailable, if the role may not create or change the
    /// schema, or if the migrations take longer than a minute.
    pub async fn migrate(&self) -> Answer<()> {
        let settings = &self.shared.settings;
        let session = settings.database.connect(settings.limits.timeout, None).await?;
        migrations::migrate(&session).await
    }

    /// Returns the migrations as SQL, for example for a database administrator. Each is also a file
    /// in `src/backplane/postgres/migrations`.
    ///
    /// ```
    /// # #[cfg(feature = "postgres")] {
    /// use tower_sse::backplane::Postgres;
    ///
    /// for migration in Postgres::migrations() {
    ///     println!("-- {}\n{}", migration.name, migration.sql);
    /// }
    /// # }
    /// ```
    #[must_use]
    pub fn migrations() -> &'static [Migration] {
        schema::MIGRATIONS
    }

    /// Makes the instances look for events that a transaction has published. Call it after the
    /// commit.
    ///
    /// The method returns at once, and a task of the current tokio runtime does the work. Calls
    /// share transactions, which begin at least 5 ms apart, and 25 ms if there are many calls. The
    /// task moves a backlog without these pauses. If nothing calls this method, if the server is
    /// unavailable to the task, or if the runtime ends before the task, the instances find the
    /// events at their next [poll](Self::poll_interval). Outside of a runtime, the method does
    /// nothing.
    pub fn wake(&self) {
        append::wake(&self.shared);
    }

    /// The statement that publishes a record in a transaction of the application, for any driver.
    /// Its parameters are the [`publish_arguments`](Self::publish_arguments) of the record.
    ///
    /// The statement inserts one row. It waits for no other transaction, at any isolation level. It
    /// returns one row without a value. Call [`wake`](Self::wake) after the commit.
    ///
    /// The function in this statement can also be a part of a larger statement. The following
    /// statement publishes the record if it deletes a document. The server runs a single statement
    /// as a transaction, so this takes one round trip:
    ///
    /// ```sql
    /// WITH deleted AS (DELETE FROM documents WHERE id = $6 RETURNING id)
    /// SELECT tower_sse.publish_record($1, $2, $3, $4, $5) FROM deleted
    /// ```
    pub const PUBLISH_SQL: &'static str = "SELECT tower_sse.publish_record($1, $2, $3, $4, $5)";

    /// Returns the arguments of [`PUBLISH_SQL`](Self::PUBLISH_SQL) for a record.
    ///
    /// ```
    /// # #[cfg(feature = "postgres")] fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// use tower_sse::backplane::{NewRecord, Postgres, Value};
    ///
    /// let log = Postgres::new("postgres://app@127.0.0.1/shop", "shop")?;
    /// let mut record = NewRecord::new("21.5".into());
    /// record.values = vec![Value::new("boiler", false)];
    ///
    /// let arguments = log.publish_arguments(&record);
    /// assert_eq!((arguments.namespace, arguments.payload), ("shop", &b"21.5"[..]));
    /// assert_eq!((arguments.sets, arguments.removes), (vec!["boiler"], vec![]));
    /// assert_eq!(arguments.idempotency_key, None);
    /// # Ok(()) }
    /// # #[cfg(not(feature = "postgres"))] fn main() {}
    /// ```
    #[must_use]
    pub fn publish_arguments<'a>(&'a self, record: &'a NewRecord) -> PublishArguments<'a> {
        PublishArguments::new(self.namespace(), record)
    }

    /// Returns the namespace, for the SQL functions of the schema.
    #[must_use]
    pub fn namespace(&self) -> &str {
        &self.shared.settings.namespace
    }
}

/// Returns the key under which a value is stored. It is a hash, because the key may be a secret and
/// may be any text.
fn key_of(key: &str) -> Vec<u8> {
    digest(&SHA256, key.as_bytes()).as_ref().to_vec()
}

fn millis(time: Duration, max: Duration) -> i64 {
    i64::try_from(time.min(max).as_millis()).unwrap_or(i64::MAX).max(1)
}

impl Backplane for Postgres {
    fn append(&self, records: Vec<NewRecord>, seen: Option<Seen>) -> BoxFuture<'_, Vec<Answer<LogPosition>>> {
        Box::pin(append::append(&self.shared, records, seen))
    }

    fn state(&self, seen_position: Option<Seen>) -> BoxFuture<'_, Answer<LogState>> {
        Box::pin(async move {
            let shared = &*self.shared;
            let (seen_epoch, seen_number) = seen(seen_position);
            let compared = shared.compared();
            let parameters: [Parameter<'_>; 7] = [
                (&shared.settings.namespace, Type::TEXT),
                (&compared.new_epoch, Type::INT8),
                (&seen_epoch, Type::INT8),
                (&seen_number, Type::INT8),
                (&compared.own_epoch, Type::INT8),
                (&compared.own, Type::INT8),
                (&compared.own_start, Type::BYTEA),
            ];
            let sql = "SELECT epoch, first, last FROM tower_sse.state($1, $2, $3, $4, $5, $6, $7)";
            let row = shared.one(&shared.line, sql, &parameters).await?;
            Ok(LogState {
                epoch: get::<i64>(&row, 0)?.cast_unsigned(),
                first: number(get(&row, 1)?)?,
                last: number(get(&row, 2)?)?,
            })
        })
    }

    fn range(&self, after: u64, limit: ReadLimit) -> BoxFuture<'_, Answer<Range>> {
        Box::pin(read::range(&self.shared, after, limit))
    }

    fn tail(&self, after: u64) -> BoxStream<'static, Answer<Vec<Stored>>> {
        streams::tail(Arc::clone(&self.shared), after)
    }

    fn values(&self) -> BoxFuture<'_, Answer<Vec<CurrentValue>>> {
        Box::pin(read::values(&self.shared))
    }

    fn broadcast(&self, stream: ControlStream, message: Bytes) -> BoxFuture<'_, Answer<()>> {
        Box::pin(async move {
            let shared = &*self.shared;
            let stream: i16 = match stream {
                ControlStream::Commands => 0,
                ControlStream::Presence => 1,
            };
            let (message, wait) = (&message[..], Limits::new(shared).wait_ms);
            let parameters: [Parameter<'_>; 4] = [
                (&shared.settings.namespace, Type::TEXT),
                (&stream, Type::INT2),
                (&message, Type::BYTEA),
                (&wait, Type::INT8),
            ];
            shared.one(&shared.line, "SELECT tower_sse.broadcast($1, $2, $3, $4)", &parameters).await.map(drop)
        })
    }

    fn listen(&self, after: Option<Box<str>>) -> BoxStream<'static, Answer<ControlMessage>> {
        // A mark that is no number is from another adapter. All messages come after it.
        let after = after.map(|mark| mark.parse().unwrap_or(0));
        streams::listen(Arc::clone(&self.shared), after)
    }

    fn put_once(&self, key: &str, payload: Bytes, time: Duration) -> BoxFuture<'_, Answer<()>> {
        let sql = "SELECT tower_sse.put_once($1, $2, $3, $4)";
        self.put(sql, key, payload, millis(time, MAX_DEPOSIT))
    }

    fn take(&self, key: &str) -> BoxFuture<'_, Answer<Option<Bytes>>> {
        let key = key_of(key);
        Box::pin(async move {
            let shared = &*self.shared;
            let parameters: [Parameter<'_>; 2] = [(&shared.settings.namespace, Type::TEXT), (&key, Type::BYTEA)];
            let row = shared.one(&shared.line, "SELECT tower_sse.take($1, $2)", &parameters).await?;
            Ok(get::<Option<Vec<u8>>>(&row, 0)?.map(Bytes::from))
        })
    }

    fn put_shared(&self, key: &str, payload: Bytes, time: Duration) -> BoxFuture<'_, Answer<()>> {
        let sql = "SELECT tower_sse.put_shared($1, $2, $3, $4)";
        self.put(sql, key, payload, millis(time, MAX_SHARED))
    }

    fn get_shared(&self, key: &str) -> BoxFuture<'_, Answer<Option<Bytes>>> {
        let key = key_of(key);
        Box::pin(async move {
            let shared = &*self.shared;
            let parameters: [Parameter<'_>; 2] = [(&shared.settings.namespace, Type::TEXT), (&key, Type::BYTEA)];
            let row = shared.one(&shared.bulk, "SELECT tower_sse.get_shared($1, $2)", &parameters).await?;
            Ok(get::<Option<Vec<u8>>>(&row, 0)?.map(Bytes::from))
        })
    }

    fn describe(&self) -> String {
        self.shared.settings.database.describe()
    }

    fn describe_limits(&self) -> String {
        self.shared.settings.limits.to_string()
    }
}

impl Postgres {
    fn put(&self, sql: &'static str, key: &str, payload: Bytes, ttl_ms: i64) -> BoxFuture<'_, Answer<()>> {
        let key = key_of(key);
        Box::pin(async move {
            let shared = &*self.shared;
            let payload = &payload[..];
            let parameters: [Parameter<'_>; 4] = [
                (&shared.settings.namespace, Type::TEXT),
                (&key, Type::BYTEA),
                (&payload, Type::BYTEA),
                (&ttl_ms, Type::INT8),
            ];
            shared.one(&shared.line, sql, &parameters).await.map(drop)
        })
    }
}

opaque_debug!(|postgres: Postgres| { server: postgres.describe(), namespace: postgres.shared.settings.namespace });
