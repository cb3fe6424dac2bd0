//! Many tabs: over HTTP/1.1 a browser opens at most six connections to a site, over HTTP/2 one for
//! all streams.

use std::net::SocketAddr;

use http::Version;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use hyper_util::service::TowerToHyperService;
use serde_json::json;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tower_sse::{Event, Hub};

use crate::driver::{Context, Page, browser};
use crate::kit::certificate::Certificate;
use crate::kit::until;
use crate::site::{Record, public_stream};
use crate::source::{CONNECTING, Source};

const TABS: usize = 8;
/// The maximum number of connections of a browser to a site.
const CONNECTIONS: usize = 6;

struct SecureSite {
    addr: SocketAddr,
    record: Record,
    task: JoinHandle<()>,
    _certificate: Certificate,
}

impl SecureSite {
    async fn start(hub: &Hub, protocol: &str) -> Option<Self> {
        let certificate = Certificate::make()?;
        let acceptor = certificate.acceptor(&[protocol]);
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let record = Record::default();
        let (hub, app) = (hub.clone(), TowerToHyperService::new(record.around(public_stream(hub))));
        let task = tokio::spawn(async move {
            loop {
                let (tcp, _) = listener.accept().await.unwrap();
                // `hub.io` is below TLS, as in docs/mounting.md.
                let (tls, app) = (acceptor.accept(hub.io(tcp)), app.clone());
                tokio::spawn(async move {
                    // A browser opens more connections than it needs, and drops some of them.
                    let Ok(tls) = tls.await else { return };
                    let server = auto::Builder::new(TokioExecutor::new());
                    drop(server.serve_connection(TokioIo::new(tls), app).await);
                });
            }
        });
        Some(Self { addr, record, task, _certificate: certificate })
    }

    /// Opens the tabs before any stream. If each stream has a connection, a browser cannot even
    /// load a page after six streams.
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
    hub.user("ada").publish(Event::new("news", data)).await.unwrap();
}

#[tokio::test]
async fn over_http_2_eight_tabs_are_all_live() {
    let Some(browser) = browser() else { return };
    let hub = Hub::builder().build().unwrap();
    let Some(site) = SecureSite::start(&hub, "h2").await else { return };
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
    assert!(site.record.of("/events").iter().all(|request| request.version == Version::HTTP_2));
}

#[tokio::test]
async fn over_http_1_1_the_seventh_stream_waits_until_another_is_closed() {
    let Some(browser) = browser() else { return };
    let hub = Hub::builder().build().unwrap();
    let Some(site) = SecureSite::start(&hub, "http/1.1").await else { return };
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

    // Each closed stream lets exactly one waiting stream open.
    for served in CONNECTIONS..TABS {
        assert_eq!(site.record.of("/events").len(), served);
        sources.pop().unwrap().close().await;
        until(|| site.record.of("/events").len() > served).await;
    }
    seventh.saw("hub.live", 1).await;
    eighth.saw("hub.live", 1).await;
    until(|| hub.user("ada").count() == CONNECTIONS).await;
    let requests = site.record.of("/events");
    assert!(requests.len() == TABS && requests.iter().all(|request| request.version == Version::HTTP_11));
}
