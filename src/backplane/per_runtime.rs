//! A value for each tokio runtime.
//!
//! A broker client's connection is driven by a task on the runtime that made it. If that runtime is blocked
//! or not driven, no call over the connection gets an answer. So a connection is only used on its own runtime.

use std::sync::Arc;

use tokio::runtime::{Handle, Id};

use crate::sync::Mutex;

/// How many runtimes are remembered. A program with more of them makes connections more often.
const MOST: usize = 16;

#[derive(Debug, Default)]
pub(super) struct PerRuntime<T>(Mutex<Vec<(Option<Id>, Arc<T>)>>);

impl<T: Default> PerRuntime<T> {
    /// The value of the current runtime. The one that was not used for longest goes if there are too many.
    pub(super) fn here(&self) -> Arc<T> {
        let current = Handle::try_current().ok().map(|runtime| runtime.id());
        let mut values = self.0.lock();
        let found = values.iter().position(|(runtime, _)| *runtime == current);
        let value = match found {
            Some(index) => values.remove(index),
            None => (current, Arc::default()),
        };
        if values.len() == MOST {
            values.remove(0);
        }
        let here = Arc::clone(&value.1);
        values.push(value);
        here
    }
}
