//! The proxies `haproxy` and `caddy`, with the configurations in `docs/deployment.md`.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use tower_sse::Hub;

use crate::kit::processes::{accepts, wait_until_ready};
use crate::kit::{Server, get, skip};
use crate::nginx::free_port;
use crate::{PATH, app, check_guarantees, documented, over_http_1};

#[derive(Clone, Copy)]
struct Kind {
    program: &'static str,
    arguments: &'static [&'static str],
    site: fn(SocketAddr, SocketAddr) -> String,
}

const HAPROXY: Kind = Kind { program: "haproxy", arguments: &["-db", "-f"], site: documented::haproxy };
const CADDY: Kind =
    Kind { program: "caddy", arguments: &["run", "--adapter", "caddyfile", "--config"], site: documented::caddy };

impl Kind {
    fn is_installed(self) -> bool {
        skip::has(self.program, "version")
    }
}

/// A proxy on a free port, with a temporary folder.
struct Proxy {
    addr: SocketAddr,
    folder: PathBuf,
    child: Child,
}

impl Proxy {
    fn start(kind: Kind, application: SocketAddr) -> Self {
        let addr = SocketAddr::from((Ipv4Addr::LOCALHOST, free_port()));
        let folder = std::env::temp_dir().join(format!("tower-sse-{}-{}", kind.program, addr.port()));
        std::fs::create_dir_all(&folder).unwrap();
        let file = folder.join("configuration");
        std::fs::write(&file, (kind.site)(addr, application)).unwrap();
        let mut command = Command::new(kind.program);
        command.args(kind.arguments).arg(file).env("XDG_DATA_HOME", &folder).env("XDG_CONFIG_HOME", &folder);
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        let mut proxy = Self { addr, folder, child };
        wait_until_ready(&mut proxy.child, None, || accepts(addr.port()));
        proxy
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
        drop(std::fs::remove_dir_all(&self.folder));
    }
}

async fn check_guarantees_through(kind: Kind) {
    if !kind.is_installed() {
        return;
    }
    let hub = Hub::builder().build().unwrap();
    let server = Server::start(&hub, app(&hub)).await;
    let proxy = Proxy::start(kind, server.addr);
    check_guarantees(&hub, server, proxy.addr, over_http_1).await;
}

#[tokio::test]
async fn guarantees_hold_through_haproxy() {
    check_guarantees_through(HAPROXY).await;
}

#[tokio::test]
async fn guarantees_hold_through_caddy() {
    check_guarantees_through(CADDY).await;
}

async fn check_refusal_while_application_is_down(kind: Kind) {
    if !kind.is_installed() {
        return;
    }
    let proxy = Proxy::start(kind, SocketAddr::from((Ipv4Addr::LOCALHOST, free_port())));
    // Both proxies wait some time for the application.
    let (stream, other) = tokio::join!(get(proxy.addr, PATH), get(proxy.addr, "/other"));
    assert!(other.status.is_server_error(), "only requests for a stream get the refusal");
    let refused = stream.events().rest().await;
    let [refused] = &refused[..] else { panic!("{refused:?}") };
    let retry = refused.retry.unwrap();
    assert!((Duration::from_secs(1)..=Duration::from_secs(4)).contains(&retry));
    let data = format!(r#"{{"reason":"busy","retry_ms":{}}}"#, retry.as_millis());
    assert_eq!((refused.event.as_str(), &refused.data), ("hub.refused", &data));
}

#[tokio::test]
async fn haproxy_refuses_streams_with_a_retry_time_while_the_application_is_down() {
    check_refusal_while_application_is_down(HAPROXY).await;
}

#[tokio::test]
async fn caddy_refuses_streams_with_a_retry_time_while_the_application_is_down() {
    check_refusal_while_application_is_down(CADDY).await;
}
