//! The notifications of each user, read and unread.

use std::collections::BTreeMap;

use tower_sse::{Event, Hub, Message, Position, PublishError, ReceivedEvent, Target};

use crate::events::Notification;
use crate::replica::{Follower, Shared, lock, now, publish_all, value};
use crate::sessions::User;

/// The topic that the instances follow. Pages receive the notifications of their user instead.
pub(crate) const TOPIC: &str = "notifications";
const MAX_NOTIFICATIONS: usize = 50;

impl Notification {
    /// Creates a notification. `id` is the id of its subject, for example of the deleted document.
    /// A second notification with the same id replaces the first.
    pub(crate) fn new(id: &str, user: &str, text: String, href: &str) -> Self {
        Self { id: id.to_owned(), user: user.to_owned(), text, href: href.to_owned(), at: now(), read: false }
    }

    /// Returns the event, and its target: every open page of the user, and the instances.
    pub(crate) fn addressed<'a>(&self, hub: &'a Hub) -> Result<(Target<'a>, Event), PublishError> {
        Ok((hub.user(&*self.user).and(hub.topic(TOPIC)), self.to_event()?))
    }
}

#[derive(Clone)]
pub(crate) struct Notifications {
    hub: Hub,
    by_user: Shared<BTreeMap<String, Vec<Notification>>>,
}

impl Notifications {
    pub(crate) fn new(hub: Hub) -> Self {
        Self { hub, by_user: Shared::default() }
    }

    /// Returns the notifications of a user, the newest last.
    pub(crate) fn of(&self, user: User) -> Vec<Notification> {
        lock(&self.by_user).get(user.id).cloned().unwrap_or_default()
    }

    /// Marks all notifications of a user as read, on every page of the user.
    pub(crate) async fn mark_all_read(&self, user: User) -> Result<Option<Position>, PublishError> {
        let unread = self.of(user).into_iter().filter(|notification| !notification.read);
        let read = unread.map(|notification| Notification { read: true, ..notification }.addressed(&self.hub));
        publish_all(&self.hub, read.collect::<Result<Vec<_>, _>>()?).await
    }
}

impl Follower for Notifications {
    fn topics(&self) -> Vec<String> {
        vec![TOPIC.to_owned()]
    }

    fn apply(&self, event: &ReceivedEvent) {
        let Some(notification) = value::<Notification>(event) else { return };
        let mut by_user = lock(&self.by_user);
        let mine = by_user.entry(notification.user.clone()).or_default();
        match mine.iter_mut().find(|known| known.id == notification.id) {
            Some(known) => *known = notification,
            None => mine.push(notification),
        }
        mine.sort_by_key(|notification| notification.at);
        let excess = mine.len().saturating_sub(MAX_NOTIFICATIONS);
        mine.drain(..excess);
    }

    fn clear(&self) {
        lock(&self.by_user).clear();
    }
}
