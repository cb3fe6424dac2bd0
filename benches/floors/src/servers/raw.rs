//! A server without a framework: an epoll loop that encodes each event once and writes it to each
//! connection.
//!
//! The plain kind writes each event when it is published. The coalescing kind first reads all
//! requests, and then writes all events since the last write to each connection.

use std::collections::{HashMap, VecDeque};
use std::io::{ErrorKind, Read, Write};
use std::net::TcpListener;

use mio::net::{TcpListener as Listener, TcpStream};
use mio::{Events, Interest, Poll, Token};

use super::{Address, EVENT, Order, fields};

const LISTENER: Token = Token(usize::MAX);
/// The minimum number of bytes of a channel that are retained for slow connections.
const KEPT: usize = 256 * 1024;
const ID: &str = "1.f100a0001000.";
const HEAD: &[u8] = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ncache-control: no-cache, no-store, \
no-transform\r\nx-accel-buffering: no\r\nx-content-type-options: nosniff\r\ntransfer-encoding: chunked\r\n\
date: Mon, 01 Jan 2024 00:00:00 GMT\r\n\r\n";

struct Connection {
    socket: TcpStream,
    /// The beginning of a request.
    request: Vec<u8>,
    out: Out,
}

/// The output of a connection.
enum Out {
    /// Responses to POSTs.
    Responses(Vec<u8>),
    /// A place in a channel's log, and whether the socket's send buffer is full.
    Stream { channel: usize, cursor: u64, full: bool },
}

/// The chunks of one topic or user.
#[derive(Default)]
struct Channel {
    log: Vec<u8>,
    /// The place of the first byte of the log.
    begin: u64,
    listeners: Vec<usize>,
    count: u64,
    is_dirty: bool,
}

impl Channel {
    fn end(&self) -> u64 {
        self.begin + self.log.len() as u64
    }

    fn append(&mut self, data: &[u8]) {
        if self.log.len() >= 2 * KEPT {
            self.log.drain(..KEPT);
            self.begin += KEPT as u64;
        }
        self.count += 1;
        let mut number = itoa::Buffer::new();
        let number = number.format(self.count);
        let size = "event: \ndata: \nid: \n\n".len() + EVENT.len() + data.len() + ID.len() + number.len();
        write!(self.log, "{size:x}\r\nevent: {EVENT}\ndata: ").unwrap();
        self.log.extend_from_slice(data);
        write!(self.log, "\nid: {ID}{number}\n\n\r\n").unwrap();
    }
}

struct Raw {
    coalescing: bool,
    poll: Poll,
    connections: Vec<Option<Connection>>,
    free: Vec<usize>,
    names: HashMap<String, usize>,
    channels: Vec<Channel>,
    dirty: VecDeque<usize>,
}

pub fn serve(listener: TcpListener, coalescing: bool) {
    let mut raw = Raw {
        coalescing,
        poll: Poll::new().unwrap(),
        connections: Vec::new(),
        free: Vec::new(),
        names: HashMap::new(),
        channels: Vec::new(),
        dirty: VecDeque::new(),
    };
    let mut listener = Listener::from_std(listener);
    raw.poll.registry().register(&mut listener, LISTENER, Interest::READABLE).unwrap();
    let mut ready = Events::with_capacity(1024);
    let mut buffer = vec![0; 64 * 1024];
    loop {
        raw.poll.poll(&mut ready, None).unwrap();
        for event in &ready {
            if event.token() == LISTENER {
                raw.accept(&listener);
                continue;
            }
            let index = event.token().0;
            if event.is_writable() {
                raw.write(index);
            }
            if event.is_readable() {
                raw.read(index, &mut buffer);
            }
        }
        while let Some(channel) = raw.dirty.pop_front() {
            raw.channels[channel].is_dirty = false;
            raw.write_all(channel);
        }
    }
}

impl Raw {
    fn accept(&mut self, listener: &Listener) {
        loop {
            let mut socket = match listener.accept() {
                Ok((socket, _)) => socket,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return,
                Err(error) => panic!("accept: {error}"),
            };
            socket.set_nodelay(true).unwrap();
            let index = self.free.pop().unwrap_or_else(|| {
                self.connections.push(None);
                self.connections.len() - 1
            });
            let interest = Interest::READABLE | Interest::WRITABLE;
            self.poll.registry().register(&mut socket, Token(index), interest).unwrap();
            let connection = Connection { socket, request: Vec::new(), out: Out::Responses(Vec::new()) };
            self.connections[index] = Some(connection);
        }
    }

    fn read(&mut self, index: usize, buffer: &mut [u8]) {
        loop {
            let Some(connection) = &mut self.connections[index] else { return };
            match connection.socket.read(buffer) {
                Ok(0) => return self.close(index),
                Ok(count) => connection.request.extend_from_slice(&buffer[..count]),
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(_) => return self.close(index),
            }
        }
        let Some(connection) = &mut self.connections[index] else { return };
        let requests = std::mem::take(&mut connection.request);
        let mut rest = &requests[..];
        while let Some(size) = self.request(index, rest) {
            rest = &rest[size..];
        }
        if let Some(connection) = &mut self.connections[index] {
            connection.request.extend_from_slice(rest);
        }
        self.write(index);
    }

    /// Handles the first request, and returns its size, or `None` if it is not complete.
    fn request(&mut self, index: usize, input: &[u8]) -> Option<usize> {
        let end = memchr::memmem::find(input, b"\r\n\r\n")? + 4;
        let head = std::str::from_utf8(&input[..end]).unwrap();
        let target = head.split(' ').nth(1).unwrap();
        let query = target.split_once('?').map_or("", |(_, query)| query);
        if head.starts_with("GET ") {
            self.subscribe(index, query);
            return Some(end);
        }
        let length = head.lines().find_map(|line| line.strip_prefix("Content-Length: "));
        let size = end + length.map_or(0, |length| length.parse().unwrap());
        let body = input.get(end..size)?;
        let order = Order::parse(query);
        if order.many {
            order.lines(body).for_each(|(address, data)| self.publish(address, &body[data]));
        } else {
            self.publish(order.address, body);
        }
        if let Some(Connection { out: Out::Responses(responses), .. }) = &mut self.connections[index] {
            responses.extend_from_slice(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n");
        }
        Some(size)
    }

    fn channel(&mut self, address: Address<'_>) -> usize {
        *self.names.entry(address.key()).or_insert_with(|| {
            self.channels.push(Channel::default());
            self.channels.len() - 1
        })
    }

    fn subscribe(&mut self, index: usize, query: &str) {
        let (name, value) = fields(query).next().unwrap();
        let channel = self.channel(if name == "user" { Address::User(value) } else { Address::Topic(value) });
        self.channels[channel].listeners.push(index);
        let cursor = self.channels[channel].end();
        let connection = self.connections[index].as_mut().unwrap();
        connection.out = Out::Stream { channel, cursor, full: false };
        // The send buffer of a new connection has room for the head.
        if connection.socket.write(HEAD).ok() != Some(HEAD.len()) {
            self.close(index);
        }
    }

    fn publish(&mut self, address: Address<'_>, data: &[u8]) {
        let index = self.channel(address);
        self.channels[index].append(data);
        if !self.coalescing {
            self.write_all(index);
        } else if !std::mem::replace(&mut self.channels[index].is_dirty, true) {
            self.dirty.push_back(index);
        }
    }

    fn write_all(&mut self, channel: usize) {
        for place in 0..self.channels[channel].listeners.len() {
            let listener = self.channels[channel].listeners[place];
            if let Some(Connection { out: Out::Stream { full: false, .. }, .. }) = &self.connections[listener] {
                self.write(listener);
            }
        }
    }

    fn write(&mut self, index: usize) {
        let Some(connection) = &mut self.connections[index] else { return };
        let written = match &mut connection.out {
            Out::Responses(responses) if responses.is_empty() => return,
            Out::Responses(responses) => match connection.socket.write(responses) {
                Ok(count) => {
                    responses.drain(..count);
                    Ok(())
                }
                Err(error) => Err(error),
            },
            Out::Stream { channel, cursor, full } => {
                let channel = &self.channels[*channel];
                // The log no longer has the bytes at the cursor, which may be within a chunk, so
                // the connection is closed.
                let Some(from) = cursor.checked_sub(channel.begin) else { return self.close(index) };
                let pending = &channel.log[from as usize..];
                if pending.is_empty() {
                    *full = false;
                    return;
                }
                match connection.socket.write(pending) {
                    Ok(count) => {
                        *cursor += count as u64;
                        *full = count < pending.len();
                        Ok(())
                    }
                    Err(error) => {
                        *full = true;
                        Err(error)
                    }
                }
            }
        };
        match written {
            Err(error) if error.kind() != ErrorKind::WouldBlock => self.close(index),
            _ => {}
        }
    }

    fn close(&mut self, index: usize) {
        let Some(connection) = self.connections[index].take() else { return };
        if let Out::Stream { channel, .. } = connection.out {
            self.channels[channel].listeners.retain(|listener| *listener != index);
        }
        self.free.push(index);
    }
}
