//! An nginx for one test, on a free port and with a temporary folder.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

use crate::kit::processes::{accepts, wait_until_ready};
use crate::kit::{port, skip};

pub use port::free_port;

/// Returns a minimal site with one `proxy_pass`, and `more` directives in its location.
pub fn plain(listen: SocketAddr, application: SocketAddr, more: &str) -> String {
    format!("server {{ listen {listen}; location / {{ proxy_pass http://{application}; {more} }} }}")
}

pub struct Nginx {
    pub addr: SocketAddr,
    folder: PathBuf,
    child: Option<Child>,
}

/// Whether `nginx` is installed. If not, reports the test as skipped.
pub fn is_installed() -> bool {
    skip::has("nginx", "-v")
}

impl Nginx {
    /// Starts nginx. `site` receives the address to listen on, and returns the content of the
    /// `http` block.
    pub fn start(site: impl FnOnce(SocketAddr) -> String) -> Self {
        Self::start_with("", site)
    }

    /// Starts nginx with additional directives of the main context.
    pub fn start_with(main: &str, site: impl FnOnce(SocketAddr) -> String) -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let folder = std::env::temp_dir().join(format!("tower-sse-nginx-{}-{number}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let addr = SocketAddr::from((Ipv4Addr::LOCALHOST, free_port()));
        let here = folder.display();
        let temporary: String = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
            .map(|kind| format!("{kind}_temp_path {kind};"))
            .concat();
        let configuration = format!(
            "daemon off; worker_processes 1; pid {here}/nginx.pid; error_log {here}/error.log info; {main}
             events {{ worker_connections 1024; }}
             http {{ access_log off; {temporary}\n{}\n}}\n",
            site(addr)
        );
        std::fs::write(folder.join("nginx.conf"), configuration).unwrap();
        let mut nginx = Self { addr, folder, child: None };
        nginx.restart();
        nginx
    }

    /// Starts nginx again, with the same port and configuration.
    pub fn restart(&mut self) {
        assert!(self.child.is_none());
        let mut command = Command::new("nginx");
        command.arg("-p").arg(&self.folder).arg("-c").arg(self.folder.join("nginx.conf"));
        let log = self.folder.join("error.log");
        command.arg("-e").arg(&log).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let child = self.child.insert(command.spawn().unwrap());
        wait_until_ready(child, Some(&log), || accepts(self.addr.port()));
    }

    /// Stops nginx at once, as when its machine is shut down.
    pub fn stop(&mut self) {
        if let Some(mut child) = self.child.take() {
            signal("-TERM", child.id());
            drop(child.wait());
        }
    }

    /// Reloads the configuration, like `nginx -s reload`.
    pub fn reload(&self) {
        signal("-HUP", self.child.as_ref().unwrap().id());
    }

    /// Returns the process ids of the workers, which carry the connections.
    pub fn workers(&self) -> Vec<u32> {
        let parent = self.child.as_ref().unwrap().id().to_string();
        let output = Command::new("pgrep").args(["-P", &parent]).output().unwrap();
        String::from_utf8(output.stdout).unwrap().lines().map(|pid| pid.parse().unwrap()).collect()
    }

    /// Kills the workers, as a crash would. nginx starts new ones.
    pub fn kill_workers(&self) {
        self.workers().into_iter().for_each(|pid| signal("-KILL", pid));
    }
}

fn signal(signal: &str, pid: u32) {
    assert!(Command::new("kill").args([signal, &pid.to_string()]).status().unwrap().success());
}

impl Drop for Nginx {
    fn drop(&mut self) {
        self.stop();
        drop(std::fs::remove_dir_all(&self.folder));
    }
}
