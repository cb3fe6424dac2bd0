//! The names of the described events, each of one type.

use std::any::{TypeId, type_name};
use std::collections::BTreeMap;

use crate::types::{Event, Message};

/// The Rust type of each event.
#[derive(Clone, Debug, Default)]
pub(super) struct EventNames(BTreeMap<&'static str, (TypeId, &'static str)>);

impl EventNames {
    /// Adds the events of a type, and reports names that are invalid or that another type has.
    /// Returns whether one of the names is new.
    pub(super) fn add<M: Message + 'static>(&mut self, problems: &mut Vec<String>) -> bool {
        let rust_type = type_name::<M>();
        let mut is_new = false;
        for event in M::EVENTS {
            match self.0.insert(event, (TypeId::of::<M>(), rust_type)) {
                None => is_new = true,
                Some((other, _)) if other == TypeId::of::<M>() => {}
                Some((_, other)) => {
                    problems.push(format!("two types have the event `{event}`: `{other}` and `{rust_type}`"));
                }
            }
            if Event::new(*event, "").check().is_err() {
                problems.push(format!("`{rust_type}`: the event name `{event}` is invalid"));
            }
        }
        is_new
    }
}
