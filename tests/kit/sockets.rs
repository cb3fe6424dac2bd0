//! The TCP sockets of this machine.

#![allow(dead_code, unreachable_pub, reason = "each test binary uses a part of it")]

/// Returns the number of open sockets that a server at a port has for its connections, and that its
/// clients have.
///
/// The descriptors of the process would include those of tests that run at the same time.
pub fn open_sockets(port: u16) -> [usize; 2] {
    let lines = std::fs::read_to_string("/proc/self/net/tcp").unwrap();
    let (port, listens) = (format!(":{port:04X}"), "0A");
    let mut counts = [0, 0];
    for line in lines.lines().skip(1) {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let [local, remote, state, inode] = [1, 2, 3, 9].map(|index| fields[index]);
        // A connection whose socket was closed has the inode 0.
        if state == listens || inode == "0" {
            continue;
        }
        counts[0] += usize::from(local.ends_with(&port));
        counts[1] += usize::from(remote.ends_with(&port));
    }
    counts
}
