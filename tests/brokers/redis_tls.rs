//! Redis servers with a private certificate authority that require client certificates.

use std::path::{Path, PathBuf};

use redis::{Client, ClientTlsConfig, TlsCertificates};
use tower_sse::backplane::{Backplane, NewRecord, Redis};

use crate::kit::certificate::make_authority;
use crate::kit::{port, skip, soon};
use crate::redis_server::RedisServer;

/// Returns the options of a server that accepts encrypted connections on a port, from clients with
/// a certificate. `folder` has the certificates.
fn options(folder: &Path, port: &str) -> Vec<(&'static str, String)> {
    let file = |name: &str| folder.join(name).to_str().unwrap().to_owned();
    vec![
        ("tls-port", port.to_owned()),
        ("tls-cert-file", file("server.pem")),
        ("tls-key-file", file("server.key")),
        ("tls-ca-cert-file", file("ca.pem")),
        ("tls-auth-clients", "yes".to_owned()),
    ]
}

/// Starts a server with new certificates. Returns the folder of the certificates too.
fn start(port: &str) -> Option<(RedisServer, PathBuf)> {
    let mut folder = PathBuf::new();
    let server = RedisServer::start_with(|path| {
        make_authority(path);
        path.clone_into(&mut folder);
        let options = options(path, port).into_iter();
        let options = options.flat_map(|(name, value)| [format!("--{name}"), value]);
        options.chain(["--save".to_owned(), String::new()]).collect()
    })?;
    Some((server, folder))
}

/// Returns a client that trusts the authority, and has a certificate of it.
fn trusted_client(folder: &Path, url: &str) -> Client {
    let read = |name: &str| std::fs::read(folder.join(name)).unwrap();
    let client_tls = Some(ClientTlsConfig { client_cert: read("client.pem"), client_key: read("client.key") });
    Client::build_with_tls(url, TlsCertificates { client_tls, root_cert: Some(read("ca.pem")) }).unwrap()
}

async fn append(log: &Redis) -> u64 {
    soon(log.append(vec![NewRecord::new("x".into())], None)).await.pop().unwrap().unwrap().sequence
}

#[tokio::test]
async fn a_client_with_a_private_authority_and_a_client_certificate_connects() {
    if !skip::has("openssl", "version") {
        return;
    }
    let port = port::free_port().to_string();
    let Some((_server, folder)) = start(&port) else { return };
    let url = format!("rediss://127.0.0.1:{port}");
    let trusted = trusted_client(&folder, &url);
    assert_eq!(append(&Redis::from_client(trusted.clone(), "n")).await, 1);
    // `Redis::cluster` accepts the settings too. The server is no member of a cluster, so it names
    // no other server.
    let log = Redis::cluster([trusted.get_connection_info().clone()], "n").unwrap();
    assert_eq!(soon(log.state(None)).await.unwrap().last, 1);
    // One client does not trust the authority. The server rejects the other, which has no
    // certificate.
    let read = |name: &str| std::fs::read(folder.join(name)).unwrap();
    let certificate = ClientTlsConfig { client_cert: read("client.pem"), client_key: read("client.key") };
    for (root_cert, client_tls) in [(None, Some(certificate)), (Some(read("ca.pem")), None)] {
        let client = Client::build_with_tls(&*url, TlsCertificates { client_tls, root_cert }).unwrap();
        let error = soon(Redis::from_client(client, "n").state(None)).await.unwrap_err();
        assert!(!error.is_unknown() && !error.to_string().contains("PRIVATE KEY"), "{error}");
    }
}

#[tokio::test]
async fn a_sentinel_and_its_servers_may_have_a_private_authority() {
    if !skip::has("openssl", "version") {
        return;
    }
    let [of_server, of_sentinel] = [(); 2].map(|()| port::free_port().to_string());
    let Some((_server, folder)) = start(&of_server) else { return };
    let sentinel = RedisServer::start_with(|own_folder| {
        let mut settings = format!("sentinel monitor main 127.0.0.1 {of_server} 1\ntls-replication yes\n");
        for (name, value) in options(&folder, &of_sentinel) {
            settings.push_str(&format!("{name} {value}\n"));
        }
        let file = own_folder.join("sentinel.conf");
        std::fs::write(&file, settings).unwrap();
        vec![file.to_str().unwrap().to_owned(), "--sentinel".to_owned()]
    });
    let Some(_sentinel) = sentinel else { return };
    let settings = |url: &str| trusted_client(&folder, url).get_connection_info().clone();
    let sentinels = || [settings(&format!("rediss://127.0.0.1:{of_sentinel}"))];
    let log = Redis::sentinel(sentinels(), "main", settings("rediss://any"), "n").unwrap();
    assert_eq!(append(&log).await, 1);
    // The settings of the Sentinels do not apply to the servers.
    let log = Redis::sentinel(sentinels(), "main", "rediss://any", "n").unwrap();
    let error = soon(log.state(None)).await.unwrap_err();
    assert!(!error.is_unknown(), "{error}");
}
