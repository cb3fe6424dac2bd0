//! The schema `tower_sse`, as versioned SQL files.

/// A file of SQL that creates or changes the schema `tower_sse`, from
/// [`Postgres::migrations`](super::Postgres::migrations).
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct Migration {
    /// The version of the schema after this migration, from 1 on.
    pub version: i32,
    /// The name of the file, for example `001_log.sql`.
    pub name: &'static str,
    /// The statements. Run them in one transaction.
    pub sql: &'static str,
}

/// All migrations, in the order of their versions.
pub(super) const MIGRATIONS: &[Migration] = &[
    Migration { version: 1, name: "001_log.sql", sql: include_str!("migrations/001_log.sql") },
    Migration { version: 2, name: "002_publish.sql", sql: include_str!("migrations/002_publish.sql") },
    Migration { version: 3, name: "003_control.sql", sql: include_str!("migrations/003_control.sql") },
    Migration { version: 4, name: "004_journals.sql", sql: include_str!("migrations/004_journals.sql") },
    Migration { version: 5, name: "005_upkeep.sql", sql: include_str!("migrations/005_upkeep.sql") },
];

/// The version of the schema that the adapter needs.
pub(super) const VERSION: i32 = 5;
