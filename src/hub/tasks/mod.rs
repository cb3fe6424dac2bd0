//! Background tasks that outlive the runtime on which they were started.
//!
//! A runtime that is blocked, or that no thread drives, drops nothing. So a task that has stopped is
//! noticed by its age, and a worker on another runtime replaces it.
//!
//! 1. One task runs in a slot at a time, and a task that was replaced does nothing more ([`slot`]).
//! 2. Each kind of work has one background task, which runs while there is work ([`background`]).
//! 3. Each runtime that polls streams has a worker. Workers ring the alarms of streams, wake listeners
//!    and look after all slots ([`workers`]).
//! 4. Tasks that talk to a broker wait between attempts ([`back_off`]).

pub(super) mod back_off;
pub(super) mod background;
pub(super) mod slot;
pub(super) mod workers;
