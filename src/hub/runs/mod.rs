//! The runs that this instance writes or reads: their events, their ends and their readers.
//!
//! A run is not part of the log. Its events have separate numbers, and they stay until the run
//! is forgotten.
//!
//! 1. A run's events are only added at the end, and none is removed while a reader can read the run
//!    ([`content`]). So the number of the next event is a complete cursor.
//! 2. The end is set once, together with the last event. A reader that has read all events and
//!    finds no end is woken by the next change ([`content`]).
//! 3. A name leads to the newest run of that name. A reader of an earlier run keeps that run
//!    ([`table`]).
//! 4. An entry of a journal is one append of a writer: events, and the end if there is one
//!    ([`entry`]). Instances number the events of a journal in the same order.
//! 5. A run ends without its writer only if its instance is gone, or has dropped the writer
//!    ([`owners`], [`exchange`]).
//!
//! Only [`local`] uses `Inner`. `cluster/runs.rs` exchanges runs with the broker.

pub(in crate::hub) mod content;
pub(in crate::hub) mod entry;
pub(in crate::hub) mod exchange;
pub(in crate::hub) mod found;
#[cfg(all(test, tower_sse_loom))]
mod interleavings;
pub(in crate::hub) mod local;
#[cfg(all(test, not(tower_sse_loom)))]
mod models;
pub(in crate::hub) mod owners;
pub(in crate::hub) mod table;
