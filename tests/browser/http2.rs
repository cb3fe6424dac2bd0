//! Many tabs: over HTTP/1.1 a browser has six connections for a site, over HTTP/2 one for all of its streams.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;

use http::Version;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use hyper_util::service::TowerToHyperService;
use serde_json::json;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::crypto::ring::default_provider;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tower_sse::{Event, Hub};

use crate::driver::{Context, Page, browser};
use crate::kit::until;
use crate::site::{Record, everybody};
use crate::source::{CONNECTING, Source};

const TABS: usize = 8;
/// What browsers open to a site, at most.
const CONNECTIONS: usize = 6;

/// A key and a certificate that nobody vouches for, and that are gone afterwards.
struct Certificate(PathBuf);

impl Certificate {
    fn make(name: &str) -> Self {
        let folder = std::env::temp_dir().join(format!("tower-sse-browser-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let made = Command::new("openssl")
            .args(["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2"])
            .args(["-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1", "-keyout"])
            .arg(folder.join("key.pem"))
            .arg("-out")
            .arg(folder.join("certificate.pem"))
            .output()
            .unwrap();
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
        Self(folder)
    }

    /// For a server that speaks this and nothing else.
    fn acceptor(&self, protocol: &str) -> TlsAcceptor {
        let key = PrivateKeyDer::from_pem_file(self.0.join("key.pem")).unwrap();
        let certificate = CertificateDer::from_pem_file(self.0.join("certificate.pem")).unwrap();
        let config = ServerConfig::builder_with_provider(Arc::new(default_provider()));
        let config = config.with_safe_default_protocol_versions().unwrap().with_no_client_auth();
        let mut config = config.with_single_cert(vec![certificate], key).unwrap();
        config.alpn_protocols = vec![protocol.into()];
        TlsAcceptor::from(Arc::new(config))
    }
}

impl Drop for Certificate {
    fn drop(&mut self) {
        drop(std::fs::remove_dir_all(&self.0));
    }
}

struct SecureSite {
    addr: SocketAddr,
    record: Record,
    task: JoinHandle<()>,
    _certificate: Certificate,
}

impl SecureSite {
    async fn start(hub: &Hub, protocol: &'static str) -> Self {
        let certificate = Certificate::make(&protocol.replace('/', "-"));
        let acceptor = certificate.acceptor(protocol);
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let record = Record::default();
        let (hub, app) = (hub.clone(), TowerToHyperService::new(record.around(everybody(hub))));
        let task = tokio::spawn(async move {
            loop {
                let (tcp, _) = listener.accept().await.unwrap();
                // Below TLS, as docs/mounting.md says.
                let (tls, app) = (acceptor.accept(hub.io(tcp)), app.clone());
                tokio::spawn(async move {
                    // A browser opens more than it needs, and breaks some off.
                    let Ok(tls) = tls.await else { return };
                    let server = auto::Builder::new(TokioExecutor::new());
                    drop(server.serve_connection(TokioIo::new(tls), app).await);
                });
            }
        });
        Self { addr, record, task, _certificate: certificate }
    }

    /// Tabs without a stream yet: where each stream has a connection, a page could not even be loaded after six.
    async fn tabs(&self, context: &Context) -> Vec<Page> {
        let mut tabs = Vec::new();
        for _ in 0..TABS {
            tabs.push(context.page(&format!("https://{}/", self.addr)).await);
        }
        tabs
    }
}

impl Drop for SecureSite {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn publish(hub: &Hub, data: &'static str) {
    hub.user("ada").publish(Event::text("news", data)).await.unwrap();
}

#[tokio::test]
async fn over_http_2_eight_tabs_are_all_live() {
    let Some(browser) = browser() else { return };
    let hub = Hub::builder().build().unwrap();
    let site = SecureSite::start(&hub, "h2").await;
    let context = browser.context(json!({ "ignoreHTTPSErrors": true })).await;
    let tabs = site.tabs(&context).await;
    let mut sources = Vec::new();
    for tab in &tabs {
        sources.push(tab.listen("/events", &["news"]).await);
    }
    for source in &sources {
        source.saw("hub.live", 1).await;
    }
    publish(&hub, "to all").await;
    for source in &sources {
        source.saw("news", 1).await;
    }
    assert_eq!(hub.user("ada").count(), TABS);
    assert!(site.record.of("/events").iter().all(|asked| asked.version == Version::HTTP_2));
}

#[tokio::test]
async fn over_http_1_1_six_are_and_the_seventh_waits_until_one_is_closed() {
    let Some(browser) = browser() else { return };
    let hub = Hub::builder().build().unwrap();
    let site = SecureSite::start(&hub, "http/1.1").await;
    let context = browser.context(json!({ "ignoreHTTPSErrors": true })).await;
    let tabs = site.tabs(&context).await;
    let mut sources: Vec<Source<'_>> = Vec::new();
    for tab in &tabs[..CONNECTIONS] {
        let source = tab.listen("/events", &["news"]).await;
        source.saw("hub.live", 1).await;
        sources.push(source);
    }
    let (seventh, eighth) = (tabs[6].listen("/events", &["news"]).await, tabs[7].listen("/events", &["news"]).await);
    publish(&hub, "to six").await;
    for source in &sources {
        source.saw("news", 1).await;
    }
    for source in [&seventh, &eighth] {
        assert_eq!(source.state().await, CONNECTING);
        assert!(source.log().await.is_empty());
    }

    // Each that is closed lets one in, whichever, and not more.
    for served in CONNECTIONS..TABS {
        assert_eq!(site.record.of("/events").len(), served);
        sources.pop().unwrap().close().await;
        until(|| site.record.of("/events").len() > served).await;
    }
    seventh.saw("hub.live", 1).await;
    eighth.saw("hub.live", 1).await;
    until(|| hub.user("ada").count() == CONNECTIONS).await;
    let asked = site.record.of("/events");
    assert!(asked.len() == TABS && asked.iter().all(|asked| asked.version == Version::HTTP_11));
}
