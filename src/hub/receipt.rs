//! What every verb of a target returns.

use crate::types::Position;

/// The outcome of a publish, a join, a leave or a disconnect that succeeded.
#[doc(alias = "Published")]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Receipt {
    /// The place in the log: of the event, which is also the `id` that browsers get with it, or the place at which a
    /// command was given.
    pub position: Position,
    /// How many connections of this instance are concerned. Other instances have connections of their own, so this is
    /// no count of all receivers. A [`Publisher`](crate::Publisher) has none.
    ///
    /// - After a publish: the connections that listen to the target, counted without a walk. Exact for one target, an
    ///   upper bound for several, because a connection that listens to two of them counts twice, and with
    ///   [`Target::except`](crate::Target::except). Zero is exact.
    /// - After a join or a leave: the connections whose topics have changed.
    /// - After a disconnect: the connections that end.
    #[doc(alias = "receivers")]
    pub connections: usize,
    /// Whether the event had a [key](crate::Event::key) in vain: the retention of none of its targets keeps the newest
    /// event of each key. The hub also logs a warning. Always false for commands.
    pub key_ignored: bool,
}
