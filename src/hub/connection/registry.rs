//! The open connections of this instance, by id, user and age.
//!
//! [`Table`] has all connections, under one lock. No other lock is taken while that lock is held.
//!
//! 1. A connection with a user is in `handles` and in the list of the user, or in neither, because
//!    both change under the lock.
//! 2. Limits are checked under the same lock, so that no number of simultaneous requests exceeds
//!    them.
//! 3. A connection of a scope is in the list of its scope, and its user is a user of the scope. The
//!    root scope has no list, so that connections without a scope cost no more.
//! 4. The registry keeps a user for the grace period after the last connection has closed, together
//!    with the topics that the application made the user join. So a client that reconnects within
//!    the grace period has these topics again.

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
use crate::macros::shrink_if_sparse;
use crate::sync::{AtomicUsize, Mutex, Ordering};
use crate::types::{ConnectionId, ScopeName, ScopedText, Topic, UserId};

/// The registry of connections and users.
#[derive(Debug)]
pub(crate) struct Registry {
    table: Mutex<Table>,
    limits: Limits,
    /// The number of connections that go to a network. Written under the lock of the table, and
    /// read without it by a drain.
    networked: AtomicUsize,
    /// Notified when `networked` becomes zero.
    emptied: Notify,
}

#[derive(Debug, Default)]
struct Table {
    handles: HashSet<ById, BuildHasherDefault<IdHasher>>,
    users: HashMap<UserId, User>,
    /// Connections that limits count by a key, in the order in which they were opened. Empty unless
    /// connections per user are limited.
    by_key: HashMap<ScopedText, Handles>,
    /// The connections of each scope except the root scope, in the order in which they were opened.
    by_scope: HashMap<ScopeName, BTreeMap<u64, Arc<ConnectionHandle>>>,
    /// The departures of users, each until its grace period is over. A user may have reconnected
    /// since.
    idle: Departures<UserId>,
    /// Connections in the order in which they were opened. Empty unless the total limit closes the
    /// oldest connection.
    by_age: BTreeMap<u64, ConnectionId>,
    /// The number of connections that were opened since the hub was built.
    opened: u64,
}

#[derive(Debug, Default)]
struct User {
    /// The open connections, in the order in which they were opened.
    handles: SmallVec<[Arc<ConnectionHandle>; 1]>,
    /// The number of `handles` that limits count by a key, and not by this user.
    keyed: usize,
    /// The time since which the user has no connection, as in the queue `Table::idle`. `None` while
    /// the user has a connection.
    idle_since: Option<Millis>,
    /// The time at which the user's last admitted connection closed. `None` if there was no such
    /// time, for example for a user who is here only because the application made the user join a
    /// topic.
    left_at: Option<Millis>,
    /// The topics that the application made the user join.
    topics: Vec<UserTopic>,
}

/// A topic that the application made a user join. It applies to all connections of the user.
#[derive(Clone, Debug)]
pub(in crate::hub) struct UserTopic {
    pub(in crate::hub) topic: Topic,
    pub(in crate::hub) since: Since,
    /// The newest number of the log at the time of the join.
    pub(in crate::hub) at: u64,
}

/// A connection in a set, found by its id. A map with the id as a key would take twice the memory.
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

/// Removes a connection from a list that is sorted by the order of opening. Returns whether the
/// list contained it.
fn remove_from(handles: &mut Handles, handle: &ConnectionHandle) -> bool {
    let opened = |other: &Arc<ConnectionHandle>| other.opened.load(Ordering::Relaxed);
    let index = handles.binary_search_by_key(&handle.opened.load(Ordering::Relaxed), opened);
    index.map(|index| handles.remove(index)).is_ok()
}

impl Table {
    /// Returns the number of open connections that share the limit of a new connection, and the
    /// oldest of them.
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

    /// Forgets up to `most` users whose grace period is over. Returns whether there may be more.
    fn forget_users(&mut self, now: Millis, most: usize) -> bool {
        for _ in 0..most {
            let Some((since, name)) = self.idle.pop_due(now) else { return false };
            // The user may have reconnected since. If the user has left again, a later entry is in
            // the queue.
            if self.users.get(&name).is_some_and(|user| user.handles.is_empty() && user.idle_since == Some(since)) {
                self.users.remove(&name);
            }
        }
        true
    }
}

/// A hasher that uses the connection id itself, because the id is random.
#[derive(Clone, Copy, Debug, Default)]
struct IdHasher(u64);

impl Hasher for IdHasher {
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

/// The maximum number of users that one sweep forgets.
const SWEEP: usize = 1024;

pub(in crate::hub) type Handles = SmallVec<[Arc<ConnectionHandle>; 1]>;

/// The error of a connection that would exceed a limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::hub) struct Full;

impl User {
    /// Forgets the joined topics of a user whose grace period is over, in case no sweep has run
    /// since. Returns whether the user is new: the grace period is over, or the entry was just
    /// created.
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

    /// Returns whether the limit on all connections is reached and refuses new ones.
    pub(crate) fn is_full(&self) -> bool {
        matches!(self.limits.total, Some((limit, OverLimit::Refuse)) if self.len() >= limit)
    }

    pub(crate) fn len(&self) -> usize {
        self.table.lock().handles.len()
    }

    pub(crate) fn find(&self, id: ConnectionId) -> Option<Arc<ConnectionHandle>> {
        self.table.lock().handle(id)
    }

    /// Returns the open connections with these ids.
    pub(in crate::hub) fn find_all(&self, ids: impl IntoIterator<Item = ConnectionId>) -> Handles {
        let table = self.table.lock();
        ids.into_iter().filter_map(|id| table.handle(id)).collect()
    }

    pub(in crate::hub) fn of_user(&self, user: &UserId) -> Handles {
        self.table.lock().users.get(user).map(|user| user.handles.clone()).unwrap_or_default()
    }

    /// Returns whether the user has a connection to this instance, or had a connection within the
    /// grace period.
    pub(in crate::hub) fn is_online(&self, user: &UserId, now: Millis) -> bool {
        let table = self.table.lock();
        let was_recent = |user: &User| user.left_at.is_some_and(|since| !table.idle.is_over(since, now));
        table.users.get(user).is_some_and(|user| !user.handles.is_empty() || was_recent(user))
    }

    /// Returns the number of connections that limits count by a key, the number of connections in
    /// the order of their age, and the number of connections in the lists of scopes.
    #[cfg(feature = "test-kit")]
    pub(in crate::hub) fn indexed(&self) -> (usize, usize, usize) {
        let table = self.table.lock();
        let in_scopes = table.by_scope.values().map(BTreeMap::len).sum();
        (table.by_key.values().map(SmallVec::len).sum(), table.by_age.len(), in_scopes)
    }

    /// Returns the users, each with the number of connections and whether the registry will forget
    /// the user after the grace period.
    #[cfg(feature = "test-kit")]
    pub(in crate::hub) fn all_users(&self) -> Vec<(UserId, usize, bool)> {
        let table = self.table.lock();
        let state = |(name, user): (&UserId, &User)| (name.clone(), user.handles.len(), user.idle_since.is_some());
        table.users.iter().map(state).collect()
    }

    /// Returns the number of users in the registry, including those within their grace period.
    pub(in crate::hub) fn users(&self) -> usize {
        self.table.lock().users.len()
    }

    /// Adds a connection. Returns the connections that it displaces, which have left the registry.
    ///
    /// `elsewhere` is the number of connections that the user has on other instances. It is zero
    /// for a connection that is counted by a key, because instances do not exchange keys.
    ///
    /// # Errors
    ///
    /// If a limit is reached whose policy is to refuse the new connection.
    pub(in crate::hub) fn insert(
        &self,
        handle: &Arc<ConnectionHandle>,
        elsewhere: usize,
        now: Millis,
    ) -> Result<Handles, Full> {
        let table = &mut *self.table.lock();
        // Each insert removes up to two idle users, so that the table stays bounded even if no
        // housekeeping runs.
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
        if let Some((limit, policy)) = self.limits.of_scope(handle.scope())
            && let Some(open) = table.by_scope.get(handle.scope())
            && open.len() - displaced.len() >= limit
        {
            if policy == OverLimit::Refuse {
                return Err(Full);
            }
            let is_displaced = |open: &&Arc<ConnectionHandle>| displaced.iter().any(|gone| gone.id() == open.id());
            let oldest = open.values().find(|open| !is_displaced(open)).cloned();
            displaced.extend(oldest);
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
        if !handle.scope().is_root() {
            table.by_scope.entry(handle.scope().clone()).or_default().insert(opened, Arc::clone(handle));
        }
        if let Some(key) = self.key_of(handle) {
            table.by_key.entry(key.clone()).or_default().push(Arc::clone(handle));
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

    /// Removes a connection. Returns false if it has already left the registry.
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
        shrink_if_sparse!(table.handles);
        if let Some(open) = table.by_scope.get_mut(handle.scope()) {
            open.remove(&handle.opened.load(Ordering::Relaxed));
            if open.is_empty() {
                table.by_scope.remove(handle.scope());
                shrink_if_sparse!(table.by_scope);
            }
        }
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
                // A connection that was refused after it had entered the registry does not make the
                // user count as online.
                if handle.is_admitted() {
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

    /// Returns the key by which a limit counts the connection, if there are both a key and a limit.
    fn key_of<'a>(&self, handle: &'a ConnectionHandle) -> Option<&'a ScopedText> {
        handle.counted_as().filter(|_| self.limits.per_user.is_some())
    }

    /// Returns the open connections of a scope.
    pub(in crate::hub) fn all_in(&self, scope: &ScopeName) -> Handles {
        let table = self.table.lock();
        if scope.is_root() {
            let all = table.handles.iter().map(|ById(handle)| handle);
            return all.filter(|handle| handle.scope().is_root()).cloned().collect();
        }
        table.by_scope.get(scope).into_iter().flat_map(BTreeMap::values).cloned().collect()
    }

    /// Returns the open connections of all scopes except the root scope.
    pub(in crate::hub) fn all_in_scopes(&self) -> Handles {
        self.table.lock().by_scope.values().flat_map(BTreeMap::values).cloned().collect()
    }

    /// Returns the open connections, of every scope.
    pub(in crate::hub) fn all(&self) -> Vec<Arc<ConnectionHandle>> {
        self.table.lock().handles.iter().map(|ById(handle)| Arc::clone(handle)).collect()
    }

    /// Adds a topic to a user, for all future connections. Returns the open connections of the
    /// user. A user without a connection is kept for the grace period.
    ///
    /// # Errors
    ///
    /// If the user has already joined `max_topics` other topics.
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

    /// Removes a topic from a user, for all future connections. Returns the open connections of the
    /// user.
    pub(in crate::hub) fn leave_user(&self, name: &UserId, topic: &Topic) -> Handles {
        let mut table = self.table.lock();
        let Some(user) = table.users.get_mut(name) else { return Handles::new() };
        user.topics.retain(|joined| joined.topic != *topic);
        user.handles.clone()
    }

    /// Returns the topics that the application made a user join.
    pub(in crate::hub) fn user_topics(&self, name: &UserId) -> Vec<UserTopic> {
        self.table.lock().users.get(name).map(|user| user.topics.clone()).unwrap_or_default()
    }

    /// Forgets a bounded number of users whose grace period is over. Returns whether there may be
    /// more.
    pub(in crate::hub) fn sweep(&self, now: Millis) -> bool {
        let mut table = self.table.lock();
        let more = table.forget_users(now, SWEEP);
        shrink_if_sparse!(table.users);
        more
    }

    /// Returns the time at which the next [`sweep`](Self::sweep) is due. It is a quarter of the
    /// grace period late, so that one sweep forgets several users. This does not keep a user online
    /// for longer, because [`is_online`](Self::is_online) compares the times.
    pub(in crate::hub) fn next_due(&self) -> Option<Millis> {
        let idle = &self.table.lock().idle;
        Some(idle.next_due()?.saturating_add(idle.grace / 4))
    }

    /// Waits until no connection goes to a network.
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
