//! The rights of the roles of instances and of applications.

use std::time::Duration;

use tower_sse::backplane::{BackplaneError, Postgres};
use tower_sse::test_kit::check_backplane;

use crate::kit::broker::Broker;
use crate::kit::pgbouncer::PgBouncer;
use crate::kit::postgres::PostgresServer;
use crate::nats_access::use_everything;
use crate::{listening, scopes};

/// Returns the statements with which `docs/postgres.md` grants the rights of a role.
fn rights(role: &str) -> Vec<&'static str> {
    let docs = include_str!("../../docs/postgres.md");
    let granted = format!(" TO {role};");
    docs.lines().filter(|line| line.starts_with("GRANT ") && line.ends_with(&granted)).collect()
}

/// Starts a server on which the role `hub` has the rights of instances only, and the role `app`
/// those of applications.
fn start() -> Option<PostgresServer> {
    let server = PostgresServer::start(&[])?;
    server.psql("REVOKE ALL ON SCHEMA tower_sse FROM hub; REVOKE ALL ON ALL FUNCTIONS IN SCHEMA tower_sse FROM hub");
    server.psql("CREATE ROLE app LOGIN");
    server.psql(&rights("hub").join("\n"));
    server.psql(&rights("app").join("\n"));
    Some(server)
}

/// The pooler gives each transaction another connection.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn adapter_keeps_the_contract_behind_a_pooler_with_the_least_rights() {
    let Some(server) = start() else { return };
    let Some(pooler) = PgBouncer::start(&server, "transaction") else { return };
    let log = |name: &str| Postgres::new(&pooler.url(), name).unwrap().poll_only().timeout(Duration::from_secs(10));
    check_backplane(log).await;
}

#[tokio::test]
async fn instances_work_with_the_least_rights() {
    let Some(server) = start() else { return };
    scopes::nothing_crosses_between_instances(Broker::log(&server, "scopes")).await;
    listening::presence_is_the_same_on_every_instance(Broker::log(&server, "presence")).await;
}

#[tokio::test]
async fn each_right_of_instances_is_needed_and_a_missing_one_is_named() {
    let Some(server) = start() else { return };
    let log = || Broker::log(&server, "n");
    let errors = use_everything(&log(), Duration::from_secs(10)).await;
    assert!(errors.is_empty(), "{errors:?}");
    let rights = rights("hub");
    assert_eq!(rights.len(), 18, "{rights:?}");
    for right in rights {
        server.psql(&right.replacen("GRANT", "REVOKE", 1).replace(" TO hub", " FROM hub"));
        let named = match right.split(['.', '(']).nth(1) {
            Some("clean") => {
                // A stream calls it once a minute.
                let error = server.try_psql_as("hub", "SELECT tower_sse.clean('n')").unwrap_err();
                assert!(error.contains("permission denied for function clean"), "{error}");
                server.psql(right);
                continue;
            }
            Some(function) => format!("permission denied for function {function} "),
            None => "permission denied for schema tower_sse ".to_owned(),
        };
        let errors = use_everything(&log().timeout(Duration::from_secs(1)), Duration::from_millis(500)).await;
        let is_named = |error: &BackplaneError| error.is_rejected() && error.to_string().contains(&named);
        assert!(errors.iter().any(is_named), "without {right} {named}: {errors:?}");
        server.psql(right);
    }
}

#[tokio::test]
async fn roles_of_instances_and_applications_have_no_right_on_tables() {
    let Some(server) = start() else { return };
    let of_schema = "relnamespace = 'tower_sse'::regnamespace AND relkind";
    let tables = server.psql(&format!("SELECT relname FROM pg_class WHERE {of_schema} IN ('r', 'v')"));
    for table in tables.lines() {
        for role in ["hub", "app"] {
            let error = server.try_psql_as(role, &format!("SELECT FROM tower_sse.{table}")).unwrap_err();
            assert!(error.contains("permission denied"), "{role}: {error}");
        }
    }
    let granted = format!("SELECT count(*) FROM pg_class WHERE {of_schema} IN ('r', 'v', 'S') AND relacl IS NOT NULL");
    assert_eq!(server.psql(&granted), "0");
    server.psql_as("app", "SELECT tower_sse.publish('n', topic => 't', key => 'k', scope => 's', wake => true)");
    server.psql_as("app", "SELECT tower_sse.publish_record('n', '{\"v\":1,\"to\":{\"everyone\":true}}')");
    let error = server.try_psql_as("app", "SELECT tower_sse.range('n', 0, 10, 1000)").unwrap_err();
    assert!(error.contains("permission denied for function range"), "{error}");
}
