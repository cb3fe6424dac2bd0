//! A client on a plain socket. It reads HTTP/1.1 strictly, so that it fails on errors that a
//! tolerant client ignores. An independent parser reads the events.

use std::net::SocketAddr;
use std::time::Duration;

use futures::stream::unfold;
use http::{HeaderMap, HeaderName, HeaderValue};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpSocket, TcpStream};

use crate::kit::{Events, soon};

/// The receive buffer of a narrow peer. With a smaller buffer, TCP itself would be slow.
const NARROW: u32 = 16 * 1024;

pub struct Peer {
    pub reader: Reader,
    pub writer: OwnedWriteHalf,
}

/// The other half of a [`Peer`].
pub struct Reader {
    half: OwnedReadHalf,
    /// Bytes that were read and not parsed yet.
    buffer: Vec<u8>,
    /// Whether the head has `connection: close`.
    closes: bool,
}

#[derive(Debug)]
pub struct Head {
    pub status: String,
    pub headers: HeaderMap,
}

impl Head {
    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |value| value.to_str().unwrap())
    }
}

impl Peer {
    pub async fn connect(addr: SocketAddr) -> Self {
        let tcp = TcpStream::connect(addr).await.unwrap();
        tcp.set_nodelay(true).unwrap();
        Self::over(tcp)
    }

    /// Connects with a small receive window.
    pub async fn narrow(addr: SocketAddr) -> Self {
        let socket = TcpSocket::new_v4().unwrap();
        socket.set_recv_buffer_size(NARROW).unwrap();
        Self::over(socket.connect(addr).await.unwrap())
    }

    fn over(tcp: TcpStream) -> Self {
        let (half, writer) = tcp.into_split();
        Self { reader: Reader { half, buffer: Vec::new(), closes: false }, writer }
    }

    pub async fn send(&mut self, bytes: impl AsRef<[u8]>) {
        soon(self.writer.write_all(bytes.as_ref())).await.unwrap();
    }

    pub async fn get(&mut self, path: &str) {
        self.send(request(path)).await;
    }

    /// Opens a stream, and reads its head and its `hub.hello`.
    pub async fn open(mut self, path: &str) -> (Events, OwnedWriteHalf) {
        self.get(path).await;
        let head = self.reader.head().await;
        assert_eq!((head.status.as_str(), head.header("connection")), ("HTTP/1.1 200 OK", "close"));
        let Self { reader, writer } = self;
        let mut events = reader.events();
        assert_eq!(events.next().await.event, "hub.hello");
        (events, writer)
    }

    pub fn reset(self) {
        let Self { reader, writer } = self;
        let tcp = reader.half.reunite(writer).unwrap();
        socket2::SockRef::from(&tcp).set_linger(Some(Duration::ZERO)).unwrap();
    }
}

pub fn request(path: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nhost: test\r\n\r\n")
}

impl Reader {
    /// Reads more bytes. Returns `false` at the end of the connection.
    async fn more(&mut self) -> Result<bool, String> {
        self.more_at_most(16 * 1024).await
    }

    pub async fn more_at_most(&mut self, count: usize) -> Result<bool, String> {
        let mut piece = vec![0; count];
        let count = soon(self.half.read(&mut piece)).await.map_err(|error| error.to_string())?;
        self.buffer.extend_from_slice(&piece[..count]);
        Ok(count > 0)
    }

    /// Whether the bytes end with a whole chunk of events, and the last of them contain this text.
    pub fn has_read_through(&self, text: &str) -> bool {
        let rest = &self.buffer[self.buffer.len().saturating_sub(256 * 1024)..];
        rest.ends_with(b"\n\n\r\n") && memchr::memmem::find(rest, text.as_bytes()).is_some()
    }

    /// Reads more bytes if any arrive within this time. Returns `false` at the end of the
    /// connection.
    pub async fn more_within(&mut self, time: Duration, count: usize) -> Result<bool, String> {
        tokio::time::timeout(time, self.more_at_most(count)).await.unwrap_or(Ok(true))
    }

    async fn exactly(&mut self, count: usize) -> Result<Vec<u8>, String> {
        while self.buffer.len() < count {
            if !self.more().await? {
                return Err(format!(
                    "the connection ended before {count} bytes: {:?}",
                    String::from_utf8_lossy(&self.buffer)
                ));
            }
        }
        Ok(self.buffer.drain(..count).collect())
    }

    /// Reads through `end`, and returns the text before it.
    async fn up_to(&mut self, end: &[u8]) -> Result<String, String> {
        loop {
            if let Some(at) = self.buffer.windows(end.len()).position(|window| window == end) {
                let bytes = self.exactly(at + end.len()).await?;
                return String::from_utf8(bytes[..at].to_vec()).map_err(|error| error.to_string());
            }
            if !self.more().await? {
                return Err("the connection ended".into());
            }
        }
    }

    pub async fn head(&mut self) -> Head {
        let text = self.up_to(b"\r\n\r\n").await.unwrap();
        let mut lines = text.split("\r\n");
        let status = lines.next().unwrap().to_owned();
        let headers = lines.map(|line| {
            let (name, value) = line.split_once(": ").unwrap();
            (name.parse::<HeaderName>().unwrap(), HeaderValue::from_str(value).unwrap())
        });
        let head = Head { status, headers: headers.collect() };
        self.closes = head.header("connection") == "close";
        head
    }

    /// Reads the next chunk. Returns `None` for the last chunk.
    pub async fn chunk(&mut self) -> Result<Option<Vec<u8>>, String> {
        let size = self.up_to(b"\r\n").await?;
        let size = usize::from_str_radix(&size, 16).map_err(|error| format!("{error}: {size:?}"))?;
        let mut bytes = self.exactly(size + 2).await?;
        if !bytes.ends_with(b"\r\n") {
            return Err(format!("a chunk without its end: {:?}", String::from_utf8_lossy(&bytes)));
        }
        bytes.truncate(size);
        Ok((size > 0).then_some(bytes))
    }

    /// Reads the next chunk. After the last chunk, a connection with `connection: close` must end.
    async fn last_or_chunk(&mut self) -> Result<Option<Vec<u8>>, String> {
        let chunk = self.chunk().await?;
        if chunk.is_none() && self.closes && (self.more().await? || !self.buffer.is_empty()) {
            return Err(format!("bytes after the last chunk: {:?}", String::from_utf8_lossy(&self.buffer)));
        }
        Ok(chunk)
    }

    /// Returns the body as events. An end without the last chunk is an error.
    pub fn events(self) -> Events {
        Events::parse(Box::pin(unfold(Some(self), async |reader| {
            let mut reader = reader?;
            match reader.last_or_chunk().await {
                Ok(Some(bytes)) => Some((Ok(bytes.into()), Some(reader))),
                Ok(None) => None,
                Err(error) => Some((Err(error), None)),
            }
        })))
    }

    /// Reads the body to its end. Returns its text, and whether the last chunk arrived.
    pub async fn text(mut self) -> (String, bool) {
        let mut text = Vec::new();
        let is_proper = loop {
            match self.last_or_chunk().await {
                Ok(Some(bytes)) => text.extend_from_slice(&bytes),
                Ok(None) => break true,
                Err(_) => break false,
            }
        };
        (String::from_utf8(text).unwrap(), is_proper)
    }
}

impl Reader {
    /// Reads a body of this length.
    pub async fn take(&mut self, count: usize) -> Vec<u8> {
        self.exactly(count).await.unwrap()
    }

    /// Reads the head in small portions, with a short pause after each.
    pub async fn head_slowly(&mut self, portion: usize) -> Head {
        while !self.buffer.windows(4).any(|window| window == b"\r\n\r\n") {
            assert!(self.more_at_most(portion).await.unwrap());
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        self.head().await
    }

    /// Returns the events of a body without framing, which ends with the connection.
    pub fn events_to_the_end(self) -> Events {
        Events::parse(Box::pin(unfold(self, async |mut reader| {
            if reader.buffer.is_empty() {
                match reader.more().await {
                    Ok(true) => {}
                    Ok(false) => return None,
                    Err(error) => return Some((Err(error), reader)),
                }
            }
            Some((Ok(std::mem::take(&mut reader.buffer).into()), reader))
        })))
    }
}
