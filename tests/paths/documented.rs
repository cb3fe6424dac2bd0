//! The configurations that `docs/deployment.md` shows, with the addresses of a test in the place of theirs.

use std::net::SocketAddr;

const PAGE: &str = include_str!("../../docs/deployment.md");

fn block(language: &str) -> &'static str {
    let (_, block) = PAGE.split_once(&format!("```{language}\n")).unwrap();
    block.split_once("```").unwrap().0
}

/// What is not there cannot be replaced in silence.
pub fn replaced(text: &str, times: usize, from: &str, to: &str) -> String {
    assert_eq!(text.matches(from).count(), times, "{from}");
    text.replace(from, to)
}

/// In the place of `/etc/nginx/conf.d/app.conf`.
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
    // Its administration is on a port that others may have.
    format!("{{\n\tadmin off\n}}\n{}", replaced(&site, 1, "127.0.0.1:3000", &application.to_string()))
}
