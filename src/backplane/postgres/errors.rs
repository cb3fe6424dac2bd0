//! Errors of the server and of the connection.

use std::error::Error;

use tokio_postgres::error::{DbError, Severity, SqlState};

use super::super::BackplaneError;

/// Returns the error of a request that was sent.
pub(super) fn classify(error: &tokio_postgres::Error) -> BackplaneError {
    let Some(answer) = error.as_db_error() else {
        return BackplaneError::unknown(describe(error));
    };
    let text = format!("{} ({})", answer.message(), answer.code().code());
    match answer.code() {
        // The server may have committed before it ended the connection.
        _ if ends_session(answer) => BackplaneError::unknown(text),
        // A pooler returns an error of this class when its connection to the server breaks.
        code if code.code().starts_with("08") => BackplaneError::unknown(text),
        code if is_missing(code) => BackplaneError::rejected(format!(
            "{text}: the schema `tower_sse` is missing or too old. Apply the migrations"
        )),
        code if is_temporary(code) => BackplaneError::unavailable(text),
        _ => BackplaneError::rejected(text),
    }
}

/// Returns the error of an attempt to connect.
pub(super) fn classify_connect(error: &tokio_postgres::Error) -> BackplaneError {
    let text = describe(error);
    match error.code() {
        Some(code) if code.code().starts_with("28") || *code == SqlState::UNDEFINED_DATABASE => {
            BackplaneError::rejected(text)
        }
        _ => BackplaneError::unavailable(text),
    }
}

/// Whether the connection can no longer be used after this error, or leads to a server that cannot
/// append records.
pub(super) fn is_fatal(error: &tokio_postgres::Error) -> bool {
    error.as_db_error().is_none_or(|answer| {
        let code = answer.code();
        *code == SqlState::READ_ONLY_SQL_TRANSACTION || code.code().starts_with("08") || ends_session(answer)
    })
}

/// Whether the server has ended the connection with this error.
fn ends_session(error: &DbError) -> bool {
    matches!(error.parsed_severity(), Some(Severity::Fatal | Severity::Panic))
}

/// Whether the server has no function, table or schema of this name.
fn is_missing(code: &SqlState) -> bool {
    [&SqlState::UNDEFINED_FUNCTION, &SqlState::UNDEFINED_TABLE, &SqlState::INVALID_SCHEMA_NAME].contains(&code)
}

/// Whether the same request may succeed later. The server has rolled the transaction back.
fn is_temporary(code: &SqlState) -> bool {
    let temporary = [
        &SqlState::READ_ONLY_SQL_TRANSACTION,
        &SqlState::LOCK_NOT_AVAILABLE,
        &SqlState::QUERY_CANCELED,
        &SqlState::CANNOT_CONNECT_NOW,
    ];
    // A full disk, too many connections and other resources, and conflicts between transactions.
    let classes = ["53", "40"];
    temporary.contains(&code) || classes.contains(&&code.code()[..2])
}

/// Returns the text of an error with its causes. The texts of tokio-postgres have no secrets.
fn describe(error: &tokio_postgres::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}
