//! The names of the described events, each of one type.

use std::any::type_name;
use std::collections::BTreeMap;

use crate::types::{Event, Message};

/// The Rust type of each event.
#[derive(Clone, Debug, Default)]
pub(super) struct EventNames(BTreeMap<&'static str, &'static str>);

impl EventNames {
    /// Adds the events of a type, and reports names that are invalid or of another type. Returns
    /// whether one of the names is new.
    pub(super) fn add<M: Message>(&mut self, problems: &mut Vec<String>) -> bool {
        let rust_type = type_name::<M>();
        let mut is_new = false;
        for event in M::EVENTS {
            match self.0.insert(event, rust_type) {
                None => is_new = true,
                Some(other) if other == rust_type => {}
                Some(other) => {
                    problems.push(format!("the event `{event}` is that of two types, `{other}` and `{rust_type}`"));
                }
            }
            if Event::new(*event, "").check().is_err() {
                problems.push(format!("`{rust_type}`: `{event}` is no valid name of an event"));
            }
        }
        is_new
    }
}
