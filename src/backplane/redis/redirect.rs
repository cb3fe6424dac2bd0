//! Redirections of a Redis Cluster: `MOVED` and `ASK`.
//!
//! All keys of a log are in one slot, so one server of the cluster has the log. `MOVED` names the
//! new owner of the slot. `ASK` means that the slot is being moved, and that the server which
//! imports the slot has the keys of this one command.

use futures::FutureExt;
use redis::aio::{ConnectionLike, MultiplexedConnection};
use redis::{Cmd, ErrorKind, Pipeline, RedisError, RedisFuture, ServerErrorKind, Value};

/// The host and the port of a server.
pub(super) type Address = (String, u16);

/// A connection for commands that may be redirected.
pub(super) struct Connection {
    inner: MultiplexedConnection,
    /// Whether to send `ASKING` before each command. Only then the server that imports a slot
    /// carries the command out.
    asks: bool,
}

impl Connection {
    pub(super) fn new(inner: MultiplexedConnection) -> Self {
        Self { inner, asks: false }
    }

    /// Returns a connection to a server that imports the slot.
    pub(super) fn asking(inner: MultiplexedConnection) -> Self {
        Self { inner, asks: true }
    }
}

impl ConnectionLike for Connection {
    fn req_packed_command<'a>(&'a mut self, command: &'a Cmd) -> RedisFuture<'a, Value> {
        if !self.asks {
            return self.inner.req_packed_command(command);
        }
        async move {
            // A pipeline, so that no other command comes between the two.
            let mut both = Pipeline::new();
            both.cmd("ASKING").add_command(command.clone());
            let mut answers = self.inner.req_packed_commands(&both, 1, 1).await?;
            Ok(answers.pop().unwrap_or(Value::Nil))
        }
        .boxed()
    }

    /// Sends a pipeline, never with `ASKING`. The adapter's only pipeline removes old control
    /// messages. It may fail while a slot is being moved.
    fn req_packed_commands<'a>(
        &'a mut self,
        pipeline: &'a Pipeline,
        offset: usize,
        count: usize,
    ) -> RedisFuture<'a, Vec<Value>> {
        self.inner.req_packed_commands(pipeline, offset, count)
    }

    fn get_db(&self) -> i64 {
        self.inner.get_db()
    }
}

/// A redirection to another server of the cluster. The server that sent it has not carried out the
/// command.
pub(super) enum Redirect {
    /// This server owns the slot now.
    Moved(Address),
    /// This server has the keys of this one command.
    Ask(Address),
}

impl Redirect {
    /// Returns the redirection of an answer from the server at `host`, if the answer is one.
    pub(super) fn of(error: &RedisError, host: &str) -> Option<Self> {
        let (address, _) = error.redirect_node()?;
        let (name, port) = address.rsplit_once(':')?;
        let address = (known_host(name, host), port.parse().ok()?);
        match error.kind() {
            ErrorKind::Server(ServerErrorKind::Ask) => Some(Self::Ask(address)),
            _ => Some(Self::Moved(address)),
        }
    }
}

/// Returns the announced name of a host, or `host` if the server does not know the name. Then the
/// client has to use the host that it is connected to.
pub(super) fn known_host(announced: &str, host: &str) -> String {
    if matches!(announced, "" | "?") { host.to_owned() } else { announced.to_owned() }
}
