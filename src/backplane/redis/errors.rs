//! What the errors of the Redis client mean for a request.

use redis::{ErrorKind, RedisError, ServerErrorKind};

use super::super::BackplaneError;

/// Returns whether the error means that the server is not the primary of the log, or cannot serve
/// the log now. A new connection may reach the primary.
pub(super) fn is_elsewhere(error: &RedisError) -> bool {
    use ServerErrorKind::{Ask, BusyLoading, ClusterDown, MasterDown, Moved, ReadOnly};
    matches!(error.kind(), ErrorKind::Server(ReadOnly | MasterDown | ClusterDown | Moved | Ask | BusyLoading))
        // The server was demoted while a read was waiting for new entries.
        || error.code() == Some("UNBLOCKED")
}

/// Converts an error of the client. The text contains no secrets, because the client omits URLs.
pub(super) fn classify(error: &RedisError) -> BackplaneError {
    let text = error.to_string();
    match error.kind() {
        // The server returns this error before it executes a command or a script.
        ErrorKind::Server(ServerErrorKind::TryAgain) => BackplaneError::unavailable(text),
        // The primary has fewer replicas than `min-replicas-to-write`, and has written nothing.
        _ if error.code() == Some("NOREPLICAS") => BackplaneError::unavailable(text),
        _ if is_elsewhere(error) => BackplaneError::unavailable(text),
        ErrorKind::Server(_)
        | ErrorKind::Extension
        | ErrorKind::AuthenticationFailed
        | ErrorKind::UnexpectedReturnType
        | ErrorKind::InvalidClientConfig
        | ErrorKind::Client => BackplaneError::rejected(text),
        _ if error.is_connection_refusal() => BackplaneError::unavailable(text),
        _ => BackplaneError::unknown(text),
    }
}
