//! The connections that are open on this instance, and the users that they belong to.
//!
//! 1. A connection is in `handles` and, if it has a user, among that user's, or in neither: both change under one lock.
//! 2. Limits are judged under that lock too, so that no number of simultaneous requests passes them.
//! 3. A user is remembered for the grace after the last connection, with the topics that it was made to join.

use std::borrow::Borrow;
use std::collections::btree_map::BTreeMap;
use std::collections::hash_map::HashMap;
use std::collections::hash_set::HashSet;
use std::hash::{BuildHasherDefault, Hash, Hasher};
use std::sync::Arc;

use smallvec::SmallVec;
use tokio::sync::Notify;

use super::handle::ConnectionHandle;
use crate::hub::config::limits::{Limits, OverLimit};
use crate::hub::departures::Departures;
use crate::log::{Millis, Since, TooManyTopics};
use crate::macros::give_memory_back;
use crate::sync::{AtomicUsize, Mutex, Ordering};
use crate::types::{ConnectionId, Topic, UserId};

#[derive(Debug)]
pub(crate) struct Registry {
    table: Mutex<Table>,
    limits: Limits,
    /// How many of the connections are written to a network.
    networked: AtomicUsize,
    emptied: Notify,
}

#[derive(Debug, Default)]
struct Table {
    handles: HashSet<ById, BuildHasherDefault<AsIs>>,
    users: HashMap<UserId, User>,
    /// Connections that are counted by a key, in the order in which they were opened; kept only where that limits them.
    by_key: HashMap<Arc<str>, Handles>,
    /// Users without a connection.
    idle: Departures<UserId>,
    /// By age; kept only where the oldest may have to go.
    by_age: BTreeMap<u64, ConnectionId>,
    opened: u64,
}

#[derive(Debug, Default)]
struct User {
    /// In the order in which they were opened.
    handles: SmallVec<[Arc<ConnectionHandle>; 1]>,
    /// How many of them are counted by a key and not by this user.
    keyed: usize,
    /// Since when it has none, while it stands in the queue of those.
    idle_since: Option<Millis>,
    /// When the last one ended. One who was only made to join a topic was never there.
    left_at: Option<Millis>,
    topics: Vec<UserTopic>,
}

/// A topic that all connections of a user have.
#[derive(Clone, Debug)]
pub(in crate::hub) struct UserTopic {
    pub(in crate::hub) topic: Topic,
    pub(in crate::hub) since: Since,
    /// Where the log was when it was joined.
    pub(in crate::hub) at: u64,
}

/// A connection in a set of them, looked up by its id: half the room of a map.
#[derive(Debug)]
struct ById(Arc<ConnectionHandle>);

impl Borrow<ConnectionId> for ById {
    fn borrow(&self) -> &ConnectionId {
        self.0.subscriber.id()
    }
}

impl Hash for ById {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.0.id().hash(state);
    }
}

impl PartialEq for ById {
    fn eq(&self, other: &Self) -> bool {
        self.0.id() == other.0.id()
    }
}

impl Eq for ById {}

/// Takes a connection out of a list in the order in which they were opened. Returns whether it was there.
fn remove_from(handles: &mut Handles, handle: &ConnectionHandle) -> bool {
    let opened = |other: &Arc<ConnectionHandle>| other.opened.load(Ordering::Relaxed);
    let index = handles.binary_search_by_key(&handle.opened.load(Ordering::Relaxed), opened);
    index.map(|index| handles.remove(index)).is_ok()
}

impl Table {
    /// How many connections count with a new one, and the oldest of them.
    fn counted_with(&self, handle: &ConnectionHandle) -> (usize, Option<&Arc<ConnectionHandle>>) {
        if let Some(key) = handle.counted_as() {
            return self.by_key.get(key).map_or((0, None), |handles| (handles.len(), handles.first()));
        }
        let Some(user) = handle.user().and_then(|user| self.users.get(user)) else { return (0, None) };
        let oldest = user.handles.iter().find(|handle| handle.counted_as().is_none());
        (user.handles.len() - user.keyed, oldest)
    }

    fn handle(&self, id: ConnectionId) -> Option<Arc<ConnectionHandle>> {
        self.handles.get(&id).map(|ById(handle)| Arc::clone(handle))
    }

    /// Forgets up to `most` users whose grace is over. Returns whether there may be more.
    fn forget_users(&mut self, now: Millis, most: usize) -> bool {
        for _ in 0..most {
            let Some((since, name)) = self.idle.pop_due(now) else { return false };
            // It may have been there again meanwhile, and have left again.
            if self.users.get(&name).is_some_and(|user| user.handles.is_empty() && user.idle_since == Some(since)) {
                self.users.remove(&name);
            }
        }
        true
    }
}

/// The numbers of connections are random already.
#[derive(Clone, Copy, Debug, Default)]
struct AsIs(u64);

impl Hasher for AsIs {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for word in bytes.chunks(8) {
            self.0 = word.iter().fold(self.0, |hash, &byte| hash.rotate_left(8) ^ u64::from(byte));
        }
    }

    fn write_u128(&mut self, number: u128) {
        self.0 = number as u64;
    }
}

/// How many users one turn of the housekeeping forgets.
const SWEEP: usize = 1024;

pub(in crate::hub) type Handles = SmallVec<[Arc<ConnectionHandle>; 1]>;

/// A limit is reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::hub) struct Full;

impl User {
    /// Forgets what the user was made to join if its grace is over, because no sweep may have come
    /// yet. Returns whether the user begins anew: its grace is over, or there was no such user.
    fn forget_if_over(&mut self, idle: &Departures<UserId>, now: Millis) -> bool {
        let is_over = self.handles.is_empty() && self.idle_since.is_none_or(|since| idle.is_over(since, now));
        if is_over {
            self.topics.clear();
        }
        is_over
    }
}

impl Registry {
    pub(in crate::hub) fn new(limits: Limits, grace: Millis) -> Self {
        let table = Table { idle: Departures::new(grace), ..Table::default() };
        Self { table: Mutex::new(table), limits, networked: AtomicUsize::new(0), emptied: Notify::new() }
    }

    pub(crate) fn len(&self) -> usize {
        self.table.lock().handles.len()
    }

    pub(crate) fn find(&self, id: ConnectionId) -> Option<Arc<ConnectionHandle>> {
        self.table.lock().handle(id)
    }

    pub(in crate::hub) fn find_all(&self, ids: impl IntoIterator<Item = ConnectionId>) -> Handles {
        let table = self.table.lock();
        ids.into_iter().filter_map(|id| table.handle(id)).collect()
    }

    pub(in crate::hub) fn of_user(&self, user: &UserId) -> Handles {
        self.table.lock().users.get(user).map(|user| user.handles.clone()).unwrap_or_default()
    }

    /// Whether the user has a connection, or had one less than the grace ago.
    pub(in crate::hub) fn is_online(&self, user: &UserId, now: Millis) -> bool {
        let table = self.table.lock();
        let was_there = |user: &User| user.left_at.is_some_and(|since| !table.idle.is_over(since, now));
        table.users.get(user).is_some_and(|user| !user.handles.is_empty() || was_there(user))
    }

    /// How many users are remembered.
    pub(in crate::hub) fn users(&self) -> usize {
        self.table.lock().users.len()
    }

    /// Lets a connection in. Those that had to make room are returned; they are out of the registry already.
    /// `elsewhere` is how many connections its user has on other instances; what is counted by a key has none.
    pub(in crate::hub) fn insert(
        &self,
        handle: &Arc<ConnectionHandle>,
        elsewhere: usize,
        now: Millis,
    ) -> Result<Handles, Full> {
        let table = &mut *self.table.lock();
        // So that users go as fast as they come, also where nobody keeps house.
        table.forget_users(now, 2);
        let mut displaced = Handles::new();
        if let Some((limit, policy)) = self.limits.per_user {
            let (count, oldest) = table.counted_with(handle);
            if count + elsewhere >= limit {
                match policy {
                    OverLimit::Refuse => return Err(Full),
                    OverLimit::CloseOldest => displaced.extend(oldest.cloned()),
                }
            }
        }
        match self.limits.total {
            Some((limit, policy)) if table.handles.len() - displaced.len() >= limit => {
                if policy == OverLimit::Refuse {
                    return Err(Full);
                }
                let others = table.by_age.values().filter(|id| displaced.iter().all(|gone| gone.id() != **id));
                let oldest = others.filter_map(|id| table.handle(*id)).next();
                displaced.extend(oldest);
            }
            _ => {}
        }
        displaced.retain(|oldest| oldest.leave_registry());
        for oldest in &displaced {
            self.take_out(table, oldest, now);
        }

        table.opened += 1;
        let opened = table.opened;
        handle.opened.store(opened, Ordering::Relaxed);
        if matches!(self.limits.total, Some((_, OverLimit::CloseOldest))) {
            table.by_age.insert(opened, handle.id());
        }
        table.handles.insert(ById(Arc::clone(handle)));
        self.networked.fetch_add(usize::from(handle.to_network), Ordering::AcqRel);
        if let Some(key) = self.key_of(handle) {
            table.by_key.entry(Arc::clone(key)).or_default().push(Arc::clone(handle));
        }
        if let Some(user) = handle.user() {
            let user = table.users.entry(user.clone()).or_default();
            user.forget_if_over(&table.idle, now);
            user.handles.push(Arc::clone(handle));
            user.keyed += usize::from(handle.counted_as().is_some());
            user.idle_since = None;
        }
        Ok(displaced)
    }

    /// Takes it out; false if it was out already.
    pub(in crate::hub) fn remove(&self, handle: &ConnectionHandle, now: Millis) -> bool {
        if !handle.leave_registry() {
            return false;
        }
        self.take_out(&mut self.table.lock(), handle, now);
        true
    }

    fn take_out(&self, table: &mut Table, handle: &ConnectionHandle, now: Millis) {
        table.handles.remove(&handle.id());
        table.by_age.remove(&handle.opened.load(Ordering::Relaxed));
        give_memory_back!(table.handles);
        if let Some(key) = self.key_of(handle)
            && let Some(handles) = table.by_key.get_mut(key)
        {
            remove_from(handles, handle);
            if handles.is_empty() {
                table.by_key.remove(key);
            }
        }
        if let Some(name) = handle.user()
            && let Some(user) = table.users.get_mut(name)
        {
            if remove_from(&mut user.handles, handle) && handle.counted_as().is_some() {
                user.keyed -= 1;
            }
            if user.handles.is_empty() {
                // One that was refused after all was never there.
                if handle.was_there() {
                    user.left_at = Some(now);
                }
                user.idle_since = Some(now);
                table.idle.push(now, name.clone());
            }
        }
        if handle.to_network && self.networked.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.emptied.notify_waiters();
        }
    }

    /// The key that a connection is counted by, if something limits it by that.
    fn key_of<'a>(&self, handle: &'a ConnectionHandle) -> Option<&'a Arc<str>> {
        handle.counted_as().filter(|_| self.limits.per_user.is_some())
    }

    pub(in crate::hub) fn all(&self) -> Vec<Arc<ConnectionHandle>> {
        self.table.lock().handles.iter().map(|ById(handle)| Arc::clone(handle)).collect()
    }

    /// Makes a user join a topic: for those connections that are returned, and for those to come. A user
    /// who is not there is remembered for the grace.
    pub(in crate::hub) fn join_user(
        &self,
        name: &UserId,
        joined: UserTopic,
        max_topics: usize,
        now: Millis,
    ) -> Result<Handles, TooManyTopics> {
        let table = &mut *self.table.lock();
        let user = table.users.entry(name.clone()).or_default();
        if user.forget_if_over(&table.idle, now) {
            user.idle_since = Some(now);
            table.idle.push(now, name.clone());
        }
        if !user.topics.iter().any(|other| other.topic == joined.topic) {
            if user.topics.len() >= max_topics {
                return Err(TooManyTopics);
            }
            user.topics.push(joined);
        }
        Ok(user.handles.clone())
    }

    /// The reverse: it is no topic of this user any more, and these connections are to leave it.
    pub(in crate::hub) fn leave_user(&self, name: &UserId, topic: &Topic) -> Handles {
        let mut table = self.table.lock();
        let Some(user) = table.users.get_mut(name) else { return Handles::new() };
        user.topics.retain(|joined| joined.topic != *topic);
        user.handles.clone()
    }

    /// What a user was made to join.
    pub(in crate::hub) fn user_topics(&self, name: &UserId) -> Vec<UserTopic> {
        self.table.lock().users.get(name).map(|user| user.topics.clone()).unwrap_or_default()
    }

    /// Forgets users who have been without a connection for the grace, some of them if there are many. Returns whether
    /// there are more.
    pub(in crate::hub) fn sweep(&self, now: Millis) -> bool {
        let mut table = self.table.lock();
        let more = table.forget_users(now, SWEEP);
        give_memory_back!(table.users);
        more
    }

    /// About when a [`sweep`](Self::sweep) has something to do. A little late, so that those who left one
    /// after the other are forgotten together: how long a user counts as there is judged by the time, not by this.
    pub(in crate::hub) fn next_due(&self) -> Option<Millis> {
        let idle = &self.table.lock().idle;
        Some(idle.next_due()?.saturating_add(idle.grace / 4))
    }

    /// Until nobody is connected over a network.
    pub(in crate::hub) async fn emptied(&self) {
        loop {
            let emptied = self.emptied.notified();
            let mut emptied = std::pin::pin!(emptied);
            emptied.as_mut().enable();
            if self.networked.load(Ordering::Acquire) == 0 {
                return;
            }
            emptied.await;
        }
    }
}
