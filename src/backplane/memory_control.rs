//! The control messages of a [`Memory`](super::Memory), in two streams.

use std::collections::vec_deque::VecDeque;

use bytes::Bytes;

use super::{ControlMessage, ControlStream};

/// The maximum number of retained messages of one stream.
const MAX_MESSAGES: usize = 10_000;

/// The control messages.
#[derive(Clone, Default)]
pub(super) struct Control {
    commands: Messages,
    presence: Messages,
}

/// The messages of one stream.
#[derive(Clone, Default)]
struct Messages {
    /// The retained messages, oldest first.
    retained: VecDeque<Bytes>,
    /// The number of messages that were ever sent.
    count: usize,
}

/// The position of a listener: the number of messages of each stream that it has received. Its text
/// is the mark of a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Mark {
    commands: usize,
    presence: usize,
}

impl Mark {
    /// Parses a mark. Returns the position before the oldest messages if the text is no mark of a
    /// `Memory`.
    pub(super) fn parse(text: &str) -> Self {
        let count = |text: &str| text.parse().unwrap_or(0);
        let (commands, presence) = text.split_once(' ').unwrap_or_default();
        Self { commands: count(commands), presence: count(presence) }
    }
}

impl Control {
    pub(super) fn push(&mut self, stream: ControlStream, message: Bytes) {
        match stream {
            ControlStream::Commands => self.commands.push(message),
            ControlStream::Presence => self.presence.push(message),
        }
    }

    /// Returns the position after the newest messages.
    pub(super) fn end(&self) -> Mark {
        Mark { commands: self.commands.count, presence: self.presence.count }
    }

    /// Returns the next message after a position, and moves the position after this message.
    /// Commands come first. Returns `None` if there is no later message.
    pub(super) fn next(&self, after: &mut Mark) -> Option<ControlMessage> {
        let message = match self.commands.next(&mut after.commands) {
            Some(command) => command,
            None => self.presence.next(&mut after.presence)?,
        };
        let Mark { commands, presence } = after;
        Some(ControlMessage { mark: format!("{commands} {presence}").into(), message })
    }
}

impl Messages {
    fn push(&mut self, message: Bytes) {
        if self.retained.len() == MAX_MESSAGES {
            self.retained.pop_front();
        }
        self.retained.push_back(message);
        self.count += 1;
    }

    /// Returns the oldest retained message after the first `count` messages, and sets `count` to
    /// the number of messages up to and including this message.
    fn next(&self, count: &mut usize) -> Option<Bytes> {
        // A count above the number of all messages is of another log.
        let known = if *count > self.count { 0 } else { *count };
        let at = known.max(self.count - self.retained.len());
        let message = self.retained.get(at + self.retained.len() - self.count)?.clone();
        *count = at + 1;
        Some(message)
    }
}
