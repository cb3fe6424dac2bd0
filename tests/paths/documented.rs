//! The configurations in `docs/deployment.md`, with their addresses replaced by those of a test.

use std::net::SocketAddr;

const PAGE: &str = include_str!("../../docs/deployment.md");

fn block(language: &str) -> &'static str {
    let (_, block) = PAGE.split_once(&format!("```{language}\n")).unwrap();
    block.split_once("```").unwrap().0
}

/// Replaces `from` by `to`. Panics unless `text` contains `from` exactly `times` times.
pub fn replaced(text: &str, times: usize, from: &str, to: &str) -> String {
    assert_eq!(text.matches(from).count(), times, "{from}");
    text.replace(from, to)
}

/// Returns the content of `/etc/nginx/conf.d/app.conf`.
pub fn nginx(listen: SocketAddr, application: SocketAddr) -> String {
    let site = replaced(block("nginx"), 1, "listen 80;", &format!("listen {listen};"));
    replaced(&site, 1, "127.0.0.1:3000", &application.to_string())
}

pub fn haproxy(listen: SocketAddr, application: SocketAddr) -> String {
    let all = replaced(block("haproxy"), 1, "bind :80", &format!("bind {listen}"));
    replaced(&all, 2, "127.0.0.1:3000", &application.to_string())
}

pub fn caddy(listen: SocketAddr, application: SocketAddr) -> String {
    let site = replaced(block("caddyfile"), 1, "http://app.example", &format!("http://:{}", listen.port()));
    // The admin endpoint has a fixed port, which another process may use.
    format!("{{\n\tadmin off\n}}\n{}", replaced(&site, 1, "127.0.0.1:3000", &application.to_string()))
}
