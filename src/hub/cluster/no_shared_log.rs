//! Without the feature `json` no log is shared, because records on a broker are JSON.

use std::convert::Infallible;
use std::sync::Arc;

use crate::hub::Hub;
use crate::hub::connection::handle::ConnectionHandle;
use crate::log::{Block, Millis};
use crate::types::{Address, Audience, Command, ConnectionId, Event, Position, PublishError, Topic, UserId};

/// It has no value, so none of its methods is ever called.
pub(in crate::hub) enum SharedLog {}

macro_rules! never_called {
    ($(fn $name:ident($($argument:ty),*) -> $returns:ty;)* $(async fn $of_hub:ident($($given:ty),*) -> $gives:ty;)*) => {
        impl SharedLog {
            $(pub(in crate::hub) fn $name(&self, $(_: $argument),*) -> $returns { match *self {} })*
        }
        impl Hub {
            $(pub(in crate::hub) async fn $of_hub(&self, none: &SharedLog, $(_: $given),*) -> $gives { match *none {} })*
        }
    };
}

never_called! {
    fn is_loaded() -> bool;
    fn is_stale() -> bool;
    fn is_ready(Millis) -> bool;
    fn epochs() -> u16;
    fn skipped() -> u64;
    fn most_ahead() -> u64;
    fn changed(ConnectionId) -> ();
    fn others(&Audience) -> Vec<(Option<UserId>, Option<Arc<str>>)>;
    fn others_at(&Address) -> usize;
    fn find(ConnectionId) -> Option<(Option<UserId>, Vec<Topic>)>;
    fn instances() -> usize;
    fn announce(Topic, UserId, Event) -> ();
    fn is_member(&Topic, &UserId, Millis) -> bool;
    fn speaks_for(&Topic, &UserId, Millis) -> bool;
    fn leaving(&Topic, Millis) -> Vec<UserId>;
    fn settled_position() -> Option<Position>;
    fn look_back(u64, u64, &Arc<ConnectionHandle>, Millis) -> Option<Arc<Block>>;
    fn is_online(&UserId, Millis) -> bool;
    async fn append_shared(Vec<(Audience, Event)>) -> Vec<Result<Position, PublishError>>;
    async fn tell_command(Command) -> Result<(), Infallible>;
    async fn tell_bye() -> ();
}
