//! The rules of every name.

use super::error::{InvalidName, NameProblem};

/// The maximum length of a topic, a user or a key, in bytes.
pub(crate) const MAX_NAME_BYTES: usize = 255;

/// Checks the rules of every name: not empty, not longer than `limit` bytes, no control characters.
/// `field` is the kind of the name in the error.
pub(crate) fn check(field: &'static str, value: &str, limit: usize) -> Result<(), InvalidName> {
    let problem = if value.is_empty() {
        NameProblem::Empty
    } else if value.len() > limit {
        NameProblem::TooLong { limit }
    } else if let Some(control) = value.chars().find(|c| c.is_control()) {
        NameProblem::Control(control)
    } else {
        return Ok(());
    };
    Err(InvalidName::new(field, problem))
}
