//! Without the feature `json` there is no log but that of this process: records on a broker are JSON.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use crate::hub::Hub;
use crate::hub::connection::handle::Link;
use crate::hub::tickets::redeem::{NotTaken, Taken};
use crate::log::{Block, Millis};
use crate::types::audience::{Address, Audience};
use crate::types::command::Command;
use crate::types::error::PublishError;
use crate::types::event::Event;
use crate::types::name::{ConnectionId, Topic, UserId};
use crate::types::position::Position;
use crate::types::subscription::{Redeemed, Subscription, SubscriptionError};

#[derive(Debug)]
pub(in crate::hub) enum SharedLog {}

impl SharedLog {
    pub(in crate::hub) fn is_loaded(&self) -> bool {
        match *self {}
    }

    pub(in crate::hub) fn is_stale(&self) -> bool {
        match *self {}
    }

    pub(in crate::hub) fn is_ready(&self, _: Millis) -> bool {
        match *self {}
    }

    pub(in crate::hub) fn epochs(&self) -> u16 {
        match *self {}
    }

    pub(in crate::hub) fn skipped(&self) -> u64 {
        match *self {}
    }

    pub(in crate::hub) fn most_ahead(&self) -> u64 {
        match *self {}
    }

    pub(in crate::hub) fn changed(&self, _: ConnectionId) {
        match *self {}
    }

    pub(in crate::hub) fn others(&self, _: &Audience) -> Vec<(Option<UserId>, Option<Arc<str>>)> {
        match *self {}
    }

    pub(in crate::hub) fn others_at(&self, _: &Address) -> usize {
        match *self {}
    }

    pub(in crate::hub) fn find(&self, _: ConnectionId) -> Option<(Option<UserId>, Vec<Topic>)> {
        match *self {}
    }

    pub(in crate::hub) fn instances(&self) -> usize {
        match *self {}
    }

    pub(in crate::hub) fn announce(&self, _: Topic, _: UserId, _: Event) {
        match *self {}
    }

    pub(in crate::hub) fn is_member(&self, _: &Topic, _: &UserId, _: Millis) -> bool {
        match *self {}
    }

    pub(in crate::hub) fn speaks_for(&self, _: &Topic, _: &UserId, _: Millis) -> bool {
        match *self {}
    }

    pub(in crate::hub) fn leaving(&self, _: &Topic, _: Millis) -> Vec<UserId> {
        match *self {}
    }

    pub(in crate::hub) fn settled_position(&self) -> Option<Position> {
        match *self {}
    }

    pub(in crate::hub) fn look_back(&self, _: u64, _: u64, _: &Arc<Link>, _: Millis) -> Option<Arc<Block>> {
        match *self {}
    }

    pub(in crate::hub) fn is_online(&self, _: &UserId, _: Millis) -> bool {
        match *self {}
    }
}

impl Hub {
    pub(in crate::hub) async fn append_shared(
        &self,
        shared: &SharedLog,
        _: Vec<(Audience, Event)>,
    ) -> Vec<Result<Position, PublishError>> {
        match *shared {}
    }
}

impl Hub {
    pub(in crate::hub) async fn tell_command(&self, shared: &SharedLog, _: Command) -> Result<(), Infallible> {
        match *shared {}
    }

    pub(in crate::hub) async fn tell_bye(&self, shared: &SharedLog) {
        match *shared {}
    }
}

impl Hub {
    pub(in crate::hub) async fn make_shared(
        &self,
        shared: &SharedLog,
        _: u128,
        _: &Subscription,
        _: Duration,
    ) -> Result<(), SubscriptionError> {
        match *shared {}
    }

    pub(in crate::hub) async fn take_shared(&self, shared: &SharedLog, _: u128) -> Result<Taken, NotTaken> {
        match *shared {}
    }

    pub(in crate::hub) fn give_back_shared(&self, _: Redeemed, _: SystemTime, _: Subscription) {}
}
