//! What each user was told, and has read or not.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use tower_sse::{Event, Hub, Position, PublishError, ReceivedEvent, Target};

use crate::replica::{Follower, Shared, lock, now, publish_all, value};
use crate::sessions::User;

/// For instances, not for pages: these hear of their own user.
pub(crate) const TOPIC: &str = "notifications";
const MOST: usize = 50;

#[derive(Clone, Serialize, Deserialize)]
pub(crate) struct Notification {
    id: String,
    user: String,
    text: String,
    /// The page that it is about.
    href: String,
    at: u64,
    read: bool,
}

impl Notification {
    /// `about` is the id of what happened: said twice, it is one notification.
    pub(crate) fn new(about: &str, user: &str, text: String, href: &str) -> Self {
        Self { id: about.to_owned(), user: user.to_owned(), text, href: href.to_owned(), at: now(), read: false }
    }

    /// To every page that the user has open, and to the instances. Publishing one again with the same id replaces it.
    pub(crate) fn send<'a>(&self, hub: &'a Hub) -> Result<(Target<'a>, Event), PublishError> {
        let event = Event::json("notification", self)?.key(self.id.clone());
        Ok((hub.user(&*self.user).and(hub.topic(TOPIC)), event))
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

    /// The newest last.
    pub(crate) fn of(&self, user: User) -> Vec<Notification> {
        lock(&self.by_user).get(user.id).cloned().unwrap_or_default()
    }

    /// Marks all of them, on every page of the user.
    pub(crate) async fn read(&self, user: User) -> Result<Option<Position>, PublishError> {
        let unread = self.of(user).into_iter().filter(|notification| !notification.read);
        let read = unread.map(|notification| Notification { read: true, ..notification }.send(&self.hub));
        publish_all(&self.hub, read.collect::<Result<Vec<_>, _>>()?).await
    }
}

impl Follower for Notifications {
    fn topics(&self) -> Vec<String> {
        vec![TOPIC.to_owned()]
    }

    fn apply(&self, event: &ReceivedEvent) {
        let Some(notification) = value::<Notification>(event, "notification") else { return };
        let mut by_user = lock(&self.by_user);
        let mine = by_user.entry(notification.user.clone()).or_default();
        match mine.iter_mut().find(|known| known.id == notification.id) {
            Some(known) => *known = notification,
            None => mine.push(notification),
        }
        mine.sort_by_key(|notification| notification.at);
        let excess = mine.len().saturating_sub(MOST);
        mine.drain(..excess);
    }

    fn clear(&self) {
        lock(&self.by_user).clear();
    }
}
