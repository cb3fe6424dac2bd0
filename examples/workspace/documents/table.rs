//! Documents in a table of Postgres. A change and its events are one transaction: either both
//! happen or none.

use std::sync::Arc;

use tokio::sync::{Mutex, MutexGuard};
use tokio_postgres::{Client, Config, NoTls, Row, Transaction};
use tower_sse::backplane::{NewRecord, Postgres};
use tower_sse::{Event, Target};
use tower_sse_tokio_postgres::publish;

use crate::error::Error;
use crate::events::Document;
use crate::options::Database;

/// The statements that create the table. The lock lets several instances start at the same time.
const SCHEMA: &str = "
    BEGIN;
    SELECT pg_advisory_xact_lock(hashtext('workspace'));
    CREATE SCHEMA IF NOT EXISTS workspace;
    CREATE TABLE IF NOT EXISTS workspace.documents (
      id text PRIMARY KEY,
      title text NOT NULL,
      owner text NOT NULL,
      created bigint NOT NULL
    );
    COMMIT";

#[derive(Clone)]
pub(crate) struct Table {
    /// The log of the hub, in the same database.
    log: Postgres,
    config: Arc<Config>,
    /// The connection. An application with more traffic has a pool.
    client: Arc<Mutex<Client>>,
}

impl Table {
    /// Creates the schema of the log and the table, if they do not exist.
    pub(super) async fn open(database: &Database) -> Result<Self, Box<dyn std::error::Error>> {
        let Database { log, config } = database.clone();
        log.migrate().await?;
        let client = connect(&config).await?;
        client.batch_execute(SCHEMA).await?;
        Ok(Self { log, config, client: Arc::new(Mutex::new(client)) })
    }

    pub(super) async fn list(&self) -> Result<Vec<Document>, Error> {
        let rows = self.client().await?.query("SELECT id, title, owner, created FROM workspace.documents", &[]).await?;
        let document = |row: &Row| {
            let created: i64 = row.try_get(3)?;
            let [id, title, owner] = [row.try_get(0)?, row.try_get(1)?, row.try_get(2)?];
            Ok(Document { id, title, owner, created: created.cast_unsigned() })
        };
        rows.iter().map(document).collect()
    }

    /// Stores a document and publishes the event about it, unless the document exists.
    pub(super) async fn insert(&self, document: &Document, created: Vec<(Target<'_>, Event)>) -> Result<(), Error> {
        let Document { id, title, owner, created: time } = document;
        let records = prepare(created)?;
        let mut client = self.client().await?;
        let transaction = client.transaction().await?;
        let sql = "INSERT INTO workspace.documents (id, title, owner, created)
            VALUES ($1, $2, $3, $4) ON CONFLICT DO NOTHING";
        if transaction.execute(sql, &[id, title, owner, &time.cast_signed()]).await? == 1 {
            self.commit(transaction, &records).await?;
        }
        Ok(())
    }

    /// Deletes a document and publishes the events about it.
    pub(super) async fn delete(&self, id: &str, deleted: Vec<(Target<'_>, Event)>) -> Result<(), Error> {
        let records = prepare(deleted)?;
        let mut client = self.client().await?;
        let transaction = client.transaction().await?;
        if transaction.execute("DELETE FROM workspace.documents WHERE id = $1", &[&id]).await? == 0 {
            // Another request has deleted the document. Dropping the transaction rolls it back.
            return Err(Error::Missing);
        }
        self.commit(transaction, &records).await
    }

    /// Publishes the records in the transaction, and commits it.
    async fn commit(&self, transaction: Transaction<'_>, records: &[NewRecord]) -> Result<(), Error> {
        for record in records {
            publish(&transaction, &self.log, record).await?;
        }
        transaction.commit().await?;
        // If the process crashes before this call, the instances find the events at the next poll.
        self.log.wake();
        Ok(())
    }

    /// Returns the connection. Replaces it if it has failed.
    async fn client(&self) -> Result<MutexGuard<'_, Client>, tokio_postgres::Error> {
        let mut client = self.client.lock().await;
        if client.is_closed() {
            *client = connect(&self.config).await?;
        }
        Ok(client)
    }
}

async fn connect(config: &Config) -> Result<Client, tokio_postgres::Error> {
    let (client, connection) = config.connect(NoTls).await?;
    tokio::spawn(connection);
    Ok(client)
}

/// Checks and encodes the events, before the transaction begins.
fn prepare(events: Vec<(Target<'_>, Event)>) -> Result<Vec<NewRecord>, Error> {
    Ok(events.into_iter().map(|(target, event)| target.prepare(event)).collect::<Result<_, _>>()?)
}
