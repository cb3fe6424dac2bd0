//! Commands between instances.
//!
//! A disconnect and a leave are carried out when they arrive. A join or a change of topics waits
//! until this instance's log has reached the position at which the command was issued, at most for
//! the publish timeout. Before a leave, the waiting commands that join the same topic are carried
//! out. Otherwise these commands would take effect after the leave.

use super::shared_log::SharedLog;
use crate::backplane::Answer;
use crate::hub::Hub;
use crate::hub::peers::message::Body;
use crate::log::{Millis, millis};
use crate::types::{Action, Command};

/// The maximum number of commands that wait for the log. Further commands do not wait.
const MAX_QUEUED: usize = 10_000;

impl Hub {
    /// Broadcasts a command to the other instances.
    pub(in crate::hub) async fn broadcast_command(&self, shared: &SharedLog, command: Command) -> Answer<()> {
        self.inner.ensure_shared_log();
        self.broadcast(shared, Body::Command(command)).await
    }

    /// Carries out a command of another instance. Queues a join or a change of topics if this
    /// instance's log has not reached the position at which the command was issued.
    pub(super) fn carry_out_or_queue(&self, shared: &SharedLog, command: Command) {
        match &command.action {
            Action::Disconnect(_) => return self.carry_out_received(&command),
            Action::Leave(topic) => {
                // Hold the lock until the leave is carried out, so that another thread does not
                // carry out a queued join after it.
                let mut queue = shared.commands.lock();
                queue.retain(|(_, queued)| {
                    let is_join_of_topic = queued.joins(topic);
                    if is_join_of_topic {
                        self.carry_out_received(queued);
                    }
                    !is_join_of_topic
                });
                return self.carry_out_received(&command);
            }
            Action::Join(..) | Action::Change(_) => {}
        }
        let until = self.now().saturating_add(millis(self.settings().publish_timeout));
        let mut queue = shared.commands.lock();
        if queue.len() < MAX_QUEUED {
            queue.push_back((until, command));
        } else {
            self.carry_out_received(&command);
        }
        drop(queue);
        self.carry_out_queued(shared);
    }

    /// Carries out queued commands whose position is reached or whose wait has ended. Stops at the
    /// first other command, so that the order stays the same. Holds the lock of the queue, because
    /// the follow task and the control task both call this method.
    pub(in crate::hub) fn carry_out_queued(&self, shared: &SharedLog) {
        let mut queue = shared.commands.lock();
        let is_due = |(until, command): &(Millis, Command)| *until <= self.now() || !self.is_ahead(command);
        while queue.front().is_some_and(is_due) {
            queue.pop_front().iter().for_each(|(_, command)| self.carry_out_received(command));
        }
    }

    /// Carries out a command of another instance. Logs an error and does not return it, because the
    /// caller of the command is on the other instance.
    fn carry_out_received(&self, command: &Command) {
        if let Err(error) = self.carry_out(command) {
            tracing::debug!(name: "sse.command.incomplete", %error, "a command of another instance was not fully carried out");
        }
    }

    /// Returns whether a command was issued at a position that this instance's log has not reached.
    fn is_ahead(&self, command: &Command) -> bool {
        self.log().number(command.issued_at).is_some_and(|number| number > self.log().last())
    }
}
