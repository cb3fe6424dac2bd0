//! nginx with the module nchan, from Debian's `libnginx-mod-nchan`, with a temporary configuration.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use super::{BACKLOG, Options};

const MODULE: &str = "/usr/lib/nginx/modules/ngx_nchan_module.so";

/// Whether nginx and nchan are installed.
pub fn is_installed() -> bool {
    Path::new(MODULE).exists() && program().is_some()
}

/// Returns the nginx program. The `PATH` of many users lacks `/usr/sbin`.
fn program() -> Option<&'static str> {
    let starts =
        |program: &&str| Command::new(program).arg("-v").stdout(Stdio::null()).stderr(Stdio::null()).status().is_ok();
    ["nginx", "/usr/sbin/nginx"].into_iter().find(starts)
}

/// Writes a configuration. Returns the command that starts nginx, its address and its folder. nchan
/// does not work in a single process without a master.
pub fn prepare(options: Options) -> (Command, SocketAddr, PathBuf) {
    static NUMBER: AtomicU32 = AtomicU32::new(0);
    let number = NUMBER.fetch_add(1, Ordering::Relaxed);
    let folder = std::env::temp_dir().join(format!("tower-sse-nchan-{}-{number}", std::process::id()));
    fs::create_dir_all(&folder).unwrap();
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let address = listener.local_addr().unwrap();
    drop(listener);
    let send_buffer = options.send_buffer.map(|bytes| format!(" sndbuf={bytes}")).unwrap_or_default();
    let temporary: String = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
        .map(|name| format!("    {name}_temp_path {}/{name};\n", folder.display()))
        .concat();
    let text = format!(
        "load_module {MODULE};
daemon off;
worker_processes 1;
user root;
worker_rlimit_nofile 20000;
pid {folder}/pid;
error_log {folder}/error.log warn;
events {{ worker_connections 19000; }}
http {{
    access_log off;
{temporary}    tcp_nodelay on;
    keepalive_requests 1000000000;
    keepalive_timeout 600s;
    client_body_in_single_buffer on;
    nchan_shared_memory_size 512M;
    nchan_message_buffer_length 256;
    nchan_message_timeout 30s;
    server {{
        listen {address} backlog={BACKLOG}{send_buffer};
        location = /events {{
            nchan_subscriber eventsource;
            nchan_subscriber_first_message newest;
            nchan_channel_id $arg_topic$arg_user;
        }}
        location = /publish {{
            nchan_publisher http;
            nchan_channel_id $arg_topic$arg_user;
        }}
    }}
}}
",
        folder = folder.display()
    );
    let path = folder.join("nginx.conf");
    fs::write(&path, text).unwrap();
    let mut command = Command::new(program().expect("nginx is not installed"));
    command.arg("-e").arg(folder.join("error.log")).arg("-p").arg(&folder).arg("-c").arg(path);
    (command, address, folder)
}

/// Waits until nginx accepts connections, and returns its worker process.
pub fn worker(master: u32, address: SocketAddr) -> u32 {
    let begun = Instant::now();
    loop {
        assert!(begun.elapsed() < Duration::from_secs(20), "nginx does not accept connections");
        let children = fs::read_to_string(format!("/proc/{master}/task/{master}/children")).unwrap_or_default();
        let mut children = children.split_whitespace();
        if let (Some(worker), None) = (children.next(), children.next())
            && TcpStream::connect(address).is_ok()
        {
            return worker.parse().unwrap();
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Stops nginx by SIGTERM, because the worker of a killed master continues to run.
pub fn stop(master: u32) {
    drop(Command::new("kill").args(["-TERM", &master.to_string()]).status());
}
