//! The connection to the server that has the log, for commands that a cluster may redirect.

use std::sync::Arc;

use redis::RedisError;
use redis::aio::MultiplexedConnection;
use tokio::sync::Mutex;

use super::super::{Answer, BackplaneError, in_time};
use super::redirect::{Address, Connection, Redirect};
use super::topology::{Limits, Topology};

/// A connection to the server that has the log. Clones share the connection.
#[derive(Clone)]
pub(super) struct RoutedConnection {
    owner: MultiplexedConnection,
    limits: Limits,
    /// The connection to the server that imports the slot of the log. It stays open until the
    /// connection to the owner is dropped. So a slot that is being moved costs one more connection
    /// for each connection to the owner, and not one for each command.
    importer: Arc<Mutex<Option<(Address, MultiplexedConnection)>>>,
}

impl RoutedConnection {
    pub(super) fn new(owner: MultiplexedConnection, limits: Limits) -> Self {
        Self { owner, limits, importer: Arc::default() }
    }

    /// Runs a command. If the server answers that another server of the cluster has the keys of
    /// this one command, runs the command again there.
    ///
    /// A command may consist of several requests. All of them go to one server: a redirection of a
    /// later request runs the command again from its beginning.
    pub(super) async fn run<T, F: Future<Output = Result<T, RedisError>>>(
        &self,
        topology: &Topology,
        command: &impl Fn(Connection) -> F,
    ) -> Answer<Result<T, RedisError>> {
        let answer = command(Connection::new(self.owner.clone())).await;
        match answer.as_ref().err().and_then(|error| topology.redirect(error)) {
            Some(Redirect::Ask(importer)) => {
                let connection = self.connect_to(topology, importer).await?;
                Ok(command(Connection::asking(connection)).await)
            }
            Some(Redirect::Moved(_)) | None => Ok(answer),
        }
    }

    /// Returns the connection to the server that imports the slot. One caller connects, and the
    /// others wait for its connection. The time limit covers this wait, so that a server that does
    /// not answer delays no caller by more than one time limit.
    async fn connect_to(&self, topology: &Topology, importer: Address) -> Answer<MultiplexedConnection> {
        let connection = async {
            let mut current = self.importer.lock().await;
            if let Some((address, connection)) = &*current
                && *address == importer
            {
                return Ok(connection.clone());
            }
            let connection = topology.connect_to(&importer, self.limits).await?;
            *current = Some((importer, connection.clone()));
            Ok(connection)
        };
        in_time(self.limits.connect, connection).await.map_err(BackplaneError::before_request)
    }
}
