//! Instances behind PgBouncer, which gives each transaction another connection of the server.

use std::time::Duration;

use tower_sse::backplane::{Backplane, NewRecord, Postgres};

use crate::kit::broker::REQUEST_LIMIT;
use crate::kit::pgbouncer::PgBouncer;
use crate::kit::postgres::PostgresServer;
use crate::kit::sockets::open_sockets;
use crate::kit::{soon, until};
use crate::{instances, listening, scopes};

/// More clients than connections, so that clients exchange connections all the time.
fn start(server: &PostgresServer) -> Option<PgBouncer> {
    PgBouncer::start_with(server, "pool_mode = transaction\ndefault_pool_size = 3\n")
}

fn polling(pooler: &PgBouncer, name: &str) -> Postgres {
    Postgres::new(&pooler.url(), name).unwrap().poll_only().poll_interval(Duration::from_millis(10))
}

fn listening(pooler: &PgBouncer, server: &PostgresServer, name: &str) -> Postgres {
    Postgres::new(&pooler.url(), name).unwrap().listen_at(&server.url()).unwrap()
}

async fn instances_work_together(log: impl Fn(&str) -> Postgres) {
    let log = |name: &str| log(name).timeout(REQUEST_LIMIT);
    instances::each_instance_delivers_the_events_of_the_other(log("events")).await;
    listening::presence_is_the_same_on_every_instance(log("presence")).await;
    listening::a_disconnect_reaches_every_instance(log("disconnects")).await;
    listening::joins_reach_every_instance(log("joins")).await;
    listening::a_ticket_is_redeemed_once_on_any_instance(log("tickets")).await;
    scopes::nothing_crosses_between_instances(log("scopes and runs")).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn instances_work_together_behind_a_pooler_when_they_poll() {
    let Some(server) = PostgresServer::start(&[]) else { return };
    let Some(pooler) = start(&server) else { return };
    instances_work_together(|name| polling(&pooler, name)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn instances_work_together_behind_a_pooler_when_they_listen_elsewhere() {
    let Some(server) = PostgresServer::start(&[]) else { return };
    let Some(pooler) = start(&server) else { return };
    instances_work_together(|name| listening(&pooler, &server, name)).await;
}

/// The server has committed the record on its disk when it dies. The pooler answers for it.
#[tokio::test]
async fn a_publish_whose_commit_is_interrupted_behind_a_pooler_has_an_unknown_outcome() {
    let Some(mut server) = PostgresServer::start(&[]) else { return };
    let Some(pooler) = start(&server) else { return };
    let own = polling(&pooler, "n").timeout(Duration::from_secs(15));
    soon(own.state(None)).await.unwrap();
    server.psql("ALTER SYSTEM SET synchronous_standby_names = 'missing'; SELECT pg_reload_conf()");
    until(|| server.psql("SHOW synchronous_standby_names") == "missing").await;
    let append = tokio::spawn({
        let own = own.clone();
        async move { own.append(vec![NewRecord::new("x".into())], None).await.remove(0) }
    });
    until(|| server.psql("SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'SyncRep'") == "1").await;
    server.psql("ALTER SYSTEM RESET synchronous_standby_names");
    server.kill();
    let error = soon(append).await.unwrap().unwrap_err();
    assert!(error.is_unknown(), "{error}");
    server.restart();
    let last = async {
        loop {
            if let Ok(state) = own.state(None).await {
                return state.last;
            }
        }
    };
    assert_eq!(soon(last).await, 1);
}

/// The pooler accepts connections, and its server does not answer.
#[tokio::test]
async fn requests_without_an_answer_leave_no_connections_at_a_pooler() {
    let Some(server) = PostgresServer::start(&[]) else { return };
    let Some(pooler) = start(&server) else { return };
    // The pooler logs in at the server, which may take longer than the time limit below.
    soon(polling(&pooler, "n").state(None)).await.unwrap();
    let own = polling(&pooler, "n").timeout(Duration::from_millis(100));
    server.pause();
    for _ in 0..20 {
        soon(own.append(vec![NewRecord::new("x".into())], None)).await.remove(0).unwrap_err();
    }
    let [_, connections] = open_sockets(pooler.port);
    assert!(connections <= 8, "{connections} connections");
    server.resume();
}
