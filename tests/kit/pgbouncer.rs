//! The connection pooler PgBouncer in front of a PostgreSQL server.

#![allow(dead_code, unreachable_pub, reason = "each test binary uses a part of it")]

use std::path::PathBuf;
use std::process::{Child, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

use super::postgres::{PostgresServer, psql};
use super::processes::{accepts, as_user, give_away, wait_until_ready};
use super::{port, skip};

pub struct PgBouncer {
    pub port: u16,
    folder: PathBuf,
    process: Child,
}

impl PgBouncer {
    /// Starts a pooler in front of a server, with a mode such as `transaction`. If PgBouncer is not
    /// installed, reports the test as skipped and returns `None`.
    pub fn start(server: &PostgresServer, mode: &str) -> Option<Self> {
        Self::start_with(server, &format!("pool_mode = {mode}\n"))
    }

    /// As [`start`](Self::start), with lines of the configuration such as `default_pool_size = 1`.
    pub fn start_with(server: &PostgresServer, settings: &str) -> Option<Self> {
        // Debian's folder is not in the PATH of most users.
        let in_path = std::env::var_os("PATH").unwrap_or_default();
        let mut folders = std::env::split_paths(&in_path).chain(["/usr/sbin".into()]);
        let Some(program) = folders.find(|folder| folder.join("pgbouncer").exists()) else {
            skip::not_installed("pgbouncer");
            return None;
        };
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let folder = server.folder().join(format!("pgbouncer-{number}"));
        std::fs::create_dir(&folder).unwrap();
        let port = port::free_port();
        let (users, file, log) = (folder.join("users"), folder.join("ini"), folder.join("log"));
        std::fs::write(&users, "\"postgres\" \"\"\n\"owner\" \"\"\n\"hub\" \"\"\n").unwrap();
        // By default, the pooler answers with an error for 15 s after it could not reach the server.
        let lines = format!(
            "[databases]\n* = host=127.0.0.1 port={}\n[pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {port}\n\
             unix_socket_dir =\npidfile = {}\nauth_type = trust\nauth_file = {}\n\
             server_login_retry = 0.1\n{settings}",
            server.port,
            folder.join("pid").display(),
            users.display()
        );
        std::fs::write(&file, lines).unwrap();
        [&folder, &users, &file].into_iter().for_each(|path| give_away(path));
        let output = std::fs::File::create(&log).unwrap();
        let mut command = as_user(&program.join("pgbouncer"), &folder);
        command.arg(file).stdin(Stdio::null()).stdout(output.try_clone().unwrap()).stderr(output);
        let mut pooler = Self { port, folder, process: command.spawn().unwrap() };
        wait_until_ready(&mut pooler.process, Some(&log), || accepts(port));
        Some(pooler)
    }

    /// Returns the URL for the role `hub`.
    pub fn url(&self) -> String {
        format!("postgres://hub@127.0.0.1:{}/postgres", self.port)
    }

    /// Returns what the pooler has logged.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.folder.join("log")).unwrap()
    }

    /// Executes SQL commands through the pooler.
    #[track_caller]
    pub fn psql_as(&self, user: &str, sql: &str) -> String {
        psql(self.port, user, sql).unwrap_or_else(|error| panic!("{sql}: {error}"))
    }
}

impl Drop for PgBouncer {
    fn drop(&mut self) {
        drop(self.process.kill());
        drop(self.process.wait());
        drop(std::fs::remove_dir_all(&self.folder));
    }
}
