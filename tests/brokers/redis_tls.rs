//! Redis servers with a private certificate authority that require client certificates.

use std::path::Path;
use std::process::Command;

use redis::{Client, ClientTlsConfig, TlsCertificates};
use tower_sse::backplane::{Backplane, NewRecord, Redis};

use crate::kit::{port, skip, soon};
use crate::redis_server::RedisServer;

fn openssl(folder: &Path, arguments: &str) {
    let output = Command::new("openssl").current_dir(folder).args(arguments.split(' ')).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

/// Creates a certificate authority, and a certificate of it for the server and one for the client.
fn make_certificates(folder: &Path) {
    let key = "-newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2";
    openssl(folder, &format!("req -x509 {key} -subj /CN=authority -keyout ca.key -out ca.pem"));
    std::fs::write(folder.join("names"), "subjectAltName=IP:127.0.0.1").unwrap();
    for name in ["server", "client"] {
        openssl(folder, &format!("req {key} -subj /CN={name} -keyout {name}.key -out {name}.csr"));
        let sign = "-CA ca.pem -CAkey ca.key -CAcreateserial -days 2 -extfile names";
        openssl(folder, &format!("x509 -req -in {name}.csr {sign} -out {name}.pem"));
    }
}

#[tokio::test]
async fn a_client_with_a_private_authority_and_a_client_certificate_connects() {
    if !skip::has("openssl", "version") {
        return;
    }
    let tls = port::free_port().to_string();
    let mut folder = None;
    let server = RedisServer::start_with(|path| {
        make_certificates(path);
        folder = Some(path.to_owned());
        let file = |name: &str| path.join(name).to_str().unwrap().to_owned();
        let options = [
            ("--tls-port", tls.clone()),
            ("--tls-cert-file", file("server.pem")),
            ("--tls-key-file", file("server.key")),
            ("--tls-ca-cert-file", file("ca.pem")),
            ("--tls-auth-clients", "yes".to_owned()),
            ("--save", String::new()),
        ];
        options.into_iter().flat_map(|(name, value)| [name.to_owned(), value]).collect()
    });
    let (Some(_server), Some(folder)) = (server, folder) else { return };
    let read = |name: &str| std::fs::read(folder.join(name)).unwrap();
    let url = format!("rediss://127.0.0.1:{tls}");
    let certificate = || ClientTlsConfig { client_cert: read("client.pem"), client_key: read("client.key") };
    let client =
        |root_cert, client_tls| Client::build_with_tls(&*url, TlsCertificates { client_tls, root_cert }).unwrap();
    let trusted = client(Some(read("ca.pem")), Some(certificate()));
    let log = Redis::from_client(trusted.clone(), "n");
    let placed = soon(log.append(vec![NewRecord::new("x".into())], None)).await.pop().unwrap().unwrap();
    assert_eq!(placed.sequence, 1);
    // The settings also apply to servers that a cluster names.
    let log = Redis::cluster([trusted.get_connection_info().clone()], "n").unwrap();
    assert_eq!(soon(log.state(None)).await.unwrap().last, 1);
    // One client does not trust the authority. The server rejects the other, which has no
    // certificate.
    for client in [client(None, Some(certificate())), client(Some(read("ca.pem")), None)] {
        let error = soon(Redis::from_client(client, "n").state(None)).await.unwrap_err();
        assert!(!error.is_unknown() && !error.to_string().contains("PRIVATE KEY"), "{error}");
    }
}
