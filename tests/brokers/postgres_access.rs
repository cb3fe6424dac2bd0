//! TLS, passwords and client certificates.

use std::path::PathBuf;
use std::sync::Arc;

use tokio_rustls::rustls::crypto::ring::default_provider;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::rustls::{ClientConfig, RootCertStore};
use tower_sse::backplane::{Backplane, BackplaneError, LogState, NewRecord, Postgres};

use crate::kit::certificate::make_authority;
use crate::kit::postgres::PostgresServer;
use crate::kit::{skip, soon};

/// Begins with a character that a URL has to encode.
const PASSWORD: &str = "%24ecret-horse";

/// A server that requires TLS, and the folder of its certificates.
struct Secured {
    server: PostgresServer,
    folder: PathBuf,
}

impl Secured {
    /// Starts a server with a certificate of the authority, and a rule for the role `hub`.
    fn start(certificate: &str, rule: &str) -> Option<Self> {
        if !skip::has("openssl", "version") {
            return None;
        }
        let mut server = PostgresServer::start(&[])?;
        server.psql("ALTER ROLE hub PASSWORD '$ecret-horse'");
        let folder = server.folder().join("certificates");
        std::fs::create_dir(&folder).unwrap();
        make_authority(&folder);
        let read = |name: &str| std::fs::read_to_string(folder.join(name)).unwrap();
        let rules = format!("host all postgres 127.0.0.1/32 trust\nhostssl all hub 127.0.0.1/32 {rule}\n");
        for (setting, file, content) in [
            ("ssl_cert_file", "server.pem", read(&format!("{certificate}.pem"))),
            ("ssl_key_file", "server.key", read(&format!("{certificate}.key"))),
            ("ssl_ca_file", "ca.pem", read("ca.pem")),
            ("hba_file", "rules", rules),
        ] {
            let path = server.write(file, &content);
            server.set(&format!("{setting}={path}"));
        }
        server.set("ssl=on");
        server.stop();
        server.restart();
        Some(Self { server, folder })
    }

    fn log(&self, password: &str, settings: &str) -> Postgres {
        let url = format!("postgres://hub{password}@127.0.0.1:{}/postgres?{settings}", self.server.port);
        Postgres::new(&url, "n").unwrap()
    }

    /// Returns settings that trust the authority. `client` is the certificate of the client.
    fn tls(&self, client: Option<&str>) -> ClientConfig {
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_file(self.folder.join("ca.pem")).unwrap()).unwrap();
        let config = ClientConfig::builder_with_provider(Arc::new(default_provider()));
        let config = config.with_safe_default_protocol_versions().unwrap().with_root_certificates(roots);
        let Some(client) = client else { return config.with_no_client_auth() };
        let [certificate, key] = ["pem", "key"].map(|kind| self.folder.join(format!("{client}.{kind}")));
        let certificate = CertificateDer::from_pem_file(certificate).unwrap();
        config.with_client_auth_cert(vec![certificate], PrivateKeyDer::from_pem_file(key).unwrap()).unwrap()
    }
}

async fn state(log: &Postgres) -> Result<LogState, BackplaneError> {
    soon(log.state(None)).await
}

/// Checks that the texts of a failed adapter contain no secret, and returns the text of its error.
async fn error_text(log: &Postgres) -> (BackplaneError, String) {
    let error = state(log).await.unwrap_err();
    let text = error.to_string();
    for text in [format!("{text} {error:?}"), log.describe(), format!("{log:?}")] {
        assert!(!text.contains("ecret") && !text.contains("PRIVATE"), "{text}");
    }
    assert!(!error.is_unknown(), "{error}");
    (error, text)
}

#[tokio::test]
async fn a_server_of_a_private_authority_is_verified_and_a_password_signs_in() {
    let Some(secured) = Secured::start("server", "scram-sha-256") else { return };
    let password = format!(":{PASSWORD}");
    let encrypted = "SELECT count(*) FROM pg_stat_ssl JOIN pg_stat_activity USING (pid) WHERE usename = 'hub' AND ssl";
    for mode in ["sslmode=require", "sslmode=prefer", ""] {
        let log = secured.log(&password, mode).tls(secured.tls(None));
        state(&log).await.unwrap();
        assert_eq!(secured.server.psql(encrypted), "1", "{mode}");
        assert!(soon(log.append(vec![NewRecord::new("x".into())], None)).await.remove(0).is_ok());
        drop(log);
        let closed = || secured.server.psql("SELECT count(*) FROM pg_stat_activity WHERE usename = 'hub'") == "0";
        crate::kit::until(closed).await;
    }
    // Without the authority.
    let (_, text) = error_text(&secured.log(&password, "sslmode=require")).await;
    assert!(text.contains("certificate") && text.contains("UnknownIssuer"), "{text}");
    // The server requires TLS.
    let (error, text) = error_text(&secured.log(&password, "sslmode=disable").tls(secured.tls(None))).await;
    assert!(error.is_rejected() && text.contains("no encryption"), "{text}");
    // A wrong password, and none.
    let (error, text) = error_text(&secured.log(":wr0ng-secret", "sslmode=require").tls(secured.tls(None))).await;
    assert!(
        error.is_rejected() && text.contains("password authentication failed") && !text.contains("wr0ng"),
        "{text}"
    );
    let (_, text) = error_text(&secured.log("", "sslmode=require").tls(secured.tls(None))).await;
    assert!(text.contains("password"), "{text}");
}

#[tokio::test]
async fn a_server_with_the_certificate_of_another_host_is_not_used() {
    let Some(secured) = Secured::start("elsewhere", "scram-sha-256") else { return };
    let (_, text) = error_text(&secured.log(&format!(":{PASSWORD}"), "sslmode=require").tls(secured.tls(None))).await;
    assert!(text.contains("certificate"), "{text}");
}

#[tokio::test]
async fn a_client_certificate_signs_in() {
    let Some(secured) = Secured::start("server", "cert") else { return };
    state(&secured.log("", "sslmode=require").tls(secured.tls(Some("client")))).await.unwrap();
    // Without a certificate, and with that of another role.
    let (error, text) = error_text(&secured.log("", "sslmode=require").tls(secured.tls(None))).await;
    assert!(error.is_rejected() && text.contains("certificate"), "{text}");
    let (error, text) = error_text(&secured.log("", "sslmode=require").tls(secured.tls(Some("server")))).await;
    assert!(error.is_rejected() && text.contains("certificate"), "{text}");
}
