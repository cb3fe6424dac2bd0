//! One value per tokio runtime.
//!
//! A task on the runtime that opened a connection drives the connection. While this runtime is
//! blocked or not driven, no call over the connection gets an answer. So each runtime has its own
//! connection.

use std::sync::Arc;

use tokio::runtime::{Handle, Id};

use crate::sync::Mutex;

/// The maximum number of runtimes with a value. An adapter that is used on more runtimes reconnects
/// more often, because runtimes lose their connections.
const MAX_RUNTIMES: usize = 16;

#[derive(Debug, Default)]
pub(super) struct PerRuntime<T>(Mutex<Vec<(Option<Id>, Arc<T>)>>);

impl<T: Default> PerRuntime<T> {
    /// Returns the value of the current runtime, and creates the value if it does not exist. Beyond
    /// [`MAX_RUNTIMES`], removes the value that was not used for the longest time.
    pub(super) fn here(&self) -> Arc<T> {
        let current = Handle::try_current().ok().map(|runtime| runtime.id());
        let mut values = self.0.lock();
        let found = values.iter().position(|(runtime, _)| *runtime == current);
        let value = match found {
            Some(index) => values.remove(index),
            None => (current, Arc::default()),
        };
        if values.len() == MAX_RUNTIMES {
            values.remove(0);
        }
        let here = Arc::clone(&value.1);
        values.push(value);
        here
    }
}
