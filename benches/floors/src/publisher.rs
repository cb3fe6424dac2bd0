//! The connection on which the load generator publishes: pipelined `POST`s on one connection.

use std::fmt::Arguments;
use std::io::{ErrorKind, Read, Write};

use mio::net::TcpStream;

pub struct Publisher {
    socket: TcpStream,
    out: Vec<u8>,
    written: usize,
    body: Vec<u8>,
    /// The beginning of a response that is not complete.
    carried: Vec<u8>,
    posts: u64,
    responses: u64,
    /// The durations of the publish calls, as the server reports them, in nanoseconds.
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
            responses: 0,
            times: Vec::new(),
        }
    }

    pub fn posts(&self) -> u64 {
        self.posts
    }

    pub fn unanswered(&self) -> u64 {
        self.posts - self.responses
    }

    pub fn is_answered(&self) -> bool {
        self.posts == self.responses
    }

    pub fn forget_times(&mut self) {
        self.times.clear();
    }

    pub fn times(&self) -> Vec<f64> {
        self.times.clone()
    }

    /// Appends a request to the bytes that are to be written.
    pub fn post(&mut self, query: Arguments<'_>, body: impl FnOnce(&mut Vec<u8>)) {
        self.body.clear();
        body(&mut self.body);
        // nchan takes the name of the event from the header. The other servers have a constant
        // name.
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
                Err(error) => panic!("cannot write a POST: {error}"),
            }
        }
        self.out.clear();
        self.written = 0;
    }

    /// Continues to write requests, and reads responses.
    pub fn ready(&mut self, buffer: &mut [u8]) -> Result<(), String> {
        self.flush();
        loop {
            match self.socket.read(buffer) {
                Ok(0) => return Err("the server closed the publisher's connection".into()),
                Ok(count) => self.carried.extend_from_slice(&buffer[..count]),
                Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::NotConnected) => break,
                Err(error) => return Err(format!("the publisher's connection: {error}")),
            }
        }
        let mut taken = 0;
        while let Some(size) = self.response(taken)? {
            taken += size;
            self.responses += 1;
        }
        self.carried.drain(..taken);
        Ok(())
    }

    /// Reads the response at this place, and returns its size, or `None` if it is not complete.
    fn response(&mut self, from: usize) -> Result<Option<usize>, String> {
        let rest = &self.carried[from..];
        let Some(end) = memchr::memmem::find(rest, b"\r\n\r\n") else { return Ok(None) };
        let head = std::str::from_utf8(&rest[..end]).map_err(|error| error.to_string())?;
        if !head.starts_with("HTTP/1.1 2") {
            return Err(format!("the response to a POST is {}", head.lines().next().unwrap_or_default()));
        }
        let (mut length, mut time) = (0, None::<f64>);
        for (name, value) in head.lines().skip(1).filter_map(|line| line.split_once(": ")) {
            if name.eq_ignore_ascii_case("content-length") {
                length = value.parse().map_err(|_| "the content-length is not a number")?;
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
