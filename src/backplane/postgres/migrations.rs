//! Applies the migrations of the schema.

use std::time::Duration;

use tokio_postgres::types::Type;

use super::super::{Answer, BackplaneError};
use super::connection::Session;
use super::errors::classify;
use super::schema::{MIGRATIONS, Migration};

/// The time limit of a migration. It may have to wait for another process that migrates.
const LIMIT: Duration = Duration::from_secs(60);

/// Applies the migrations that the database does not have yet. Each is one transaction.
pub(super) async fn migrate(session: &Session) -> Answer<()> {
    let work = async {
        for migration in MIGRATIONS {
            apply(session, migration).await.map_err(|error| classify(&error).in_part(migration.name))?;
        }
        Ok(())
    };
    tokio::time::timeout(LIMIT, work)
        .await
        .unwrap_or_else(|_| Err(BackplaneError::unknown("the migration takes too long")))
}

async fn apply(session: &Session, migration: &Migration) -> Result<(), tokio_postgres::Error> {
    let client = &session.client;
    client.batch_execute("BEGIN ISOLATION LEVEL READ COMMITTED; SELECT pg_advisory_xact_lock(hashtextextended('tower_sse migrations', 0))").await?;
    // The lock comes first: another process may have applied the migration in the meantime.
    let exists = client.query_typed_one("SELECT to_regclass('tower_sse.migrations') IS NOT NULL", &[]).await?;
    let is_applied = exists.try_get(0)?
        && client
            .query_typed_one(
                "SELECT EXISTS (SELECT FROM tower_sse.migrations WHERE version = $1)",
                &[(&migration.version, Type::INT4)],
            )
            .await?
            .try_get(0)?;
    if !is_applied {
        client.batch_execute(migration.sql).await?;
        tracing::info!(name: "sse.log.migrated", migration = migration.name, "applied a migration of the schema tower_sse");
    }
    client.batch_execute("COMMIT").await
}
