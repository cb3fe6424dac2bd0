//! The state that a hub holds, as lines of text: for the checks of the test kit after all
//! connections were closed.

use std::sync::{Arc, Weak};

use super::{Hub, Inner};
use crate::types::{Address, ScopeName, Scoped, Topic};

impl Hub {
    /// Returns a line for each part of the state that a connection should have taken with it.
    pub(crate) fn connection_state(&self) -> Vec<String> {
        let mut lines = Vec::new();
        for connection in self.connections() {
            let user = connection.user.as_ref().map_or("an anonymous user", |user| user.as_str());
            let topics: Vec<_> = connection.topics.iter().map(Topic::as_str).collect();
            let (id, age) = (connection.id, connection.open_for);
            lines.push(format!("the connection {id} of {user} with the topics {topics:?}, open for {age:?}"));
        }
        let (by_key, by_age, in_scopes) = self.registry().indexed();
        note_count(&mut lines, by_key, "connections that count for a limit by key");
        note_count(&mut lines, by_age, "connections that count for the limit in total");
        note_count(&mut lines, in_scopes, "connections in the list of their scope");
        for (user, connections, is_forgotten) in self.registry().all_users() {
            if connections > 0 || !is_forgotten {
                let scope = scope_of(Some(user.scope_name()));
                lines.push(format!(
                    "the user {user}{scope}, whose grace period has not begun (connections: {connections})"
                ));
            }
        }
        for (topic, user, connections) in self.inner.presences.roster.lock().all() {
            if connections > 0 {
                let scope = scope_of(Some(topic.scope_name()));
                lines.push(format!("the member {user} of the topic {topic}{scope} (connections: {connections})"));
            }
        }
        for (address, listeners, _) in self.log().channels() {
            note_count(&mut lines, listeners, &format!("listeners of {}", name_of(&address)));
        }
        for (name, run) in self.inner.runs.all() {
            note_count(
                &mut lines,
                run.listening(),
                &format!("readers of the run {name}{}", scope_of(Some(name.scope_name()))),
            );
        }
        let (streams, waiting) = self.transports().streams();
        note_count(&mut lines, streams, "streams on open sockets");
        note_count(&mut lines, waiting, "streams that wait for a socket");
        if self.log().has_deferred() {
            lines.push("listeners that wait to be woken".into());
        }
        lines
    }

    /// Returns a line for each part of the state that the hub keeps for a limited time.
    pub(crate) fn kept_state(&self) -> Vec<String> {
        let mut lines = Vec::new();
        for (user, ..) in self.registry().all_users() {
            lines.push(format!("the user {user}{}", scope_of(Some(user.scope_name()))));
        }
        for (topic, user, _) in self.inner.presences.roster.lock().all() {
            lines.push(format!("the member {user} of the topic {topic}{}", scope_of(Some(topic.scope_name()))));
        }
        for (address, _, retains) in self.log().channels() {
            match (retains, &address) {
                (true, _) => lines.push(format!("retained events or values of {}", name_of(&address))),
                // The hub always has this channel.
                (false, Address::Everyone(scope)) if scope.is_root() => {}
                (false, _) => lines.push(format!("the empty channel of {}", name_of(&address))),
            }
        }
        for (name, run) in self.inner.runs.all() {
            let state = if run.is_active() { "active" } else { "ended" };
            lines.push(format!("the {state} run {name}{}", scope_of(Some(name.scope_name()))));
        }
        note_count(&mut lines, self.inner.rechecks.len(), "scheduled rechecks");
        lines
    }

    /// Drops this handle, and returns a reference that does not keep the hub.
    pub(crate) fn into_weak(self) -> WeakHub {
        WeakHub(Arc::downgrade(&self.inner))
    }
}

/// A reference that does not keep the hub.
pub(crate) struct WeakHub(Weak<Inner>);

impl WeakHub {
    /// Returns a line for the owners of the hub, and one for each part of the state of connections.
    /// Returns no line if the hub was freed.
    pub(crate) fn owners(&self) -> Vec<String> {
        let owners = self.0.strong_count();
        let Some(inner) = self.0.upgrade() else { return Vec::new() };
        let mut lines = vec![format!("clones of the hub, in handles, layers, streams or tasks: {owners}")];
        lines.extend(Hub { inner }.connection_state());
        lines
    }
}

fn note_count(lines: &mut Vec<String>, count: usize, what: &str) {
    if count > 0 {
        lines.push(format!("{what}: {count}"));
    }
}

fn name_of(address: &Address) -> String {
    let name = match address {
        Address::Topic(topic) => format!("the topic {topic}"),
        Address::User(user) => format!("the user {user}"),
        Address::Connection(id, _) => format!("the connection {id}"),
        Address::Everyone(_) => "everyone".into(),
        Address::EveryScope => "everyone in all scopes".into(),
    };
    name + &scope_of(address.scope())
}

/// Returns the words for a scope behind a name, which are empty for the root scope.
fn scope_of(scope: Option<&ScopeName>) -> String {
    scope.and_then(ScopeName::as_str).map(|scope| format!(" in the scope {scope}")).unwrap_or_default()
}
