//! Background tasks that continue on another runtime when their own runtime stops.
//!
//! A runtime that is blocked, or that no thread drives, does not drop its tasks. So the hub finds a
//! stopped task by the age of its last poll, and a worker on another runtime replaces it.
//!
//! 1. One task runs in a slot at a time, and a replaced task does no more work ([`slot`]).
//! 2. Each kind of work has one background task, which runs while there is work ([`background`]).
//! 3. Each runtime that polls streams has a worker. Workers ring the alarms of streams, wake
//!    listeners, and restart the tasks of all slots ([`workers`]).
//! 4. Tasks that use a broker pause between attempts ([`back_off`]).

pub(super) mod back_off;
pub(super) mod background;
pub(super) mod slot;
pub(super) mod workers;
