//! The connection on which the load generator publishes: `POST`s one after the other on one connection, several on their way.

use std::fmt::Arguments;
use std::io::{ErrorKind, Read, Write};

use mio::net::TcpStream;

pub struct Publisher {
    socket: TcpStream,
    out: Vec<u8>,
    written: usize,
    body: Vec<u8>,
    /// The beginning of an answer that has not come completely.
    carried: Vec<u8>,
    posts: u64,
    answers: u64,
    /// What the server says of its publish calls, in nanoseconds.
    times: Vec<f64>,
}

impl Publisher {
    pub fn new(socket: TcpStream) -> Self {
        Self {
            socket,
            out: Vec::new(),
            written: 0,
            body: Vec::new(),
            carried: Vec::new(),
            posts: 0,
            answers: 0,
            times: Vec::new(),
        }
    }

    pub fn posts(&self) -> u64 {
        self.posts
    }

    pub fn unanswered(&self) -> u64 {
        self.posts - self.answers
    }

    pub fn is_answered(&self) -> bool {
        self.posts == self.answers
    }

    pub fn forget_times(&mut self) {
        self.times.clear();
    }

    pub fn times(&self) -> Vec<f64> {
        self.times.clone()
    }

    /// Writes a request behind those that are not written yet.
    pub fn post(&mut self, query: Arguments<'_>, body: impl FnOnce(&mut Vec<u8>)) {
        self.body.clear();
        body(&mut self.body);
        // The name of the event is nchan's affair; the others know it.
        write!(
            self.out,
            "POST /publish?{query} HTTP/1.1\r\nHost: bench\r\nContent-Type: text/plain\r\nX-EventSource-Event: tick\r\n\
             Content-Length: {}\r\n\r\n",
            self.body.len()
        )
        .unwrap();
        self.out.extend_from_slice(&self.body);
        self.posts += 1;
    }

    pub fn flush(&mut self) {
        while self.written < self.out.len() {
            match self.socket.write(&self.out[self.written..]) {
                Ok(count) => self.written += count,
                Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::NotConnected) => return,
                Err(error) => panic!("the server does not take POSTs: {error}"),
            }
        }
        self.out.clear();
        self.written = 0;
    }

    /// Takes answers, and writes on.
    pub fn ready(&mut self, buffer: &mut [u8]) -> Result<(), String> {
        self.flush();
        loop {
            match self.socket.read(buffer) {
                Ok(0) => return Err("the server has ended the connection that publishes".into()),
                Ok(count) => self.carried.extend_from_slice(&buffer[..count]),
                Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::NotConnected) => break,
                Err(error) => return Err(format!("the connection that publishes: {error}")),
            }
        }
        let mut taken = 0;
        while let Some(size) = self.answer(taken)? {
            taken += size;
            self.answers += 1;
        }
        self.carried.drain(..taken);
        Ok(())
    }

    /// The size of the answer that begins there, if it is complete.
    fn answer(&mut self, from: usize) -> Result<Option<usize>, String> {
        let rest = &self.carried[from..];
        let Some(end) = memchr::memmem::find(rest, b"\r\n\r\n") else { return Ok(None) };
        let head = std::str::from_utf8(&rest[..end]).map_err(|error| error.to_string())?;
        if !head.starts_with("HTTP/1.1 2") {
            return Err(format!("a POST was answered {}", head.lines().next().unwrap_or_default()));
        }
        let (mut length, mut time) = (0, None::<f64>);
        for (name, value) in head.lines().skip(1).filter_map(|line| line.split_once(": ")) {
            if name.eq_ignore_ascii_case("content-length") {
                length = value.parse().map_err(|_| "a length that is none")?;
            } else if name.eq_ignore_ascii_case("x-publish-ns") {
                time = value.parse().ok();
            }
        }
        let size = end + 4 + length;
        if rest.len() < size {
            return Ok(None);
        }
        self.times.extend(time);
        Ok(Some(size))
    }
}
