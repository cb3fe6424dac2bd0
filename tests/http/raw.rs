//! A client on a plain socket, which reads the chunks of a body by hand.

use std::net::SocketAddr;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::kit::soon;

/// A connection with one request.
pub struct Raw {
    tcp: TcpStream,
    /// Bytes that were read and not parsed yet.
    buffer: Vec<u8>,
}

/// The end of a body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// The last chunk has arrived.
    Proper,
    /// The connection has ended without the last chunk.
    Break,
}

impl Raw {
    /// Sends a request without a body. `headers` has one line for each header, each with its CRLF.
    pub async fn open(addr: SocketAddr, method: &str, path: &str, headers: &str) -> Self {
        let mut tcp = TcpStream::connect(addr).await.unwrap();
        let request = format!("{method} {path} HTTP/1.1\r\nhost: test\r\n{headers}\r\n");
        soon(tcp.write_all(request.as_bytes())).await.unwrap();
        Self { tcp, buffer: Vec::new() }
    }

    pub async fn get(addr: SocketAddr, path: &str) -> Self {
        Self::open(addr, "GET", path, "").await
    }

    /// Reads through `end`, and returns the text before it. `None` if the connection ends before.
    async fn up_to(&mut self, end: &str) -> Option<String> {
        loop {
            let found = self.buffer.windows(end.len()).position(|window| window == end.as_bytes());
            if let Some(at) = found {
                let text: Vec<u8> = self.buffer.drain(..at + end.len()).take(at).collect();
                return Some(String::from_utf8(text).unwrap());
            }
            // A reset counts as the end of the connection.
            if !matches!(soon(self.tcp.read_buf(&mut self.buffer)).await, Ok(1..)) {
                return None;
            }
        }
    }

    /// Reads the head, and returns its lines in lower case.
    pub async fn head(&mut self) -> Vec<String> {
        let head = self.up_to("\r\n\r\n").await.unwrap();
        head.split("\r\n").map(str::to_lowercase).collect()
    }

    /// Reads the next chunk.
    pub async fn chunk(&mut self) -> Result<String, End> {
        let size = self.up_to("\r\n").await.ok_or(End::Break)?;
        let size = usize::from_str_radix(&size, 16).unwrap();
        while self.buffer.len() < size + 2 {
            let read = soon(self.tcp.read_buf(&mut self.buffer)).await;
            assert!(matches!(read, Ok(1..)), "the connection ended within a chunk");
        }
        let mut chunk: Vec<u8> = self.buffer.drain(..size + 2).collect();
        assert!(chunk.ends_with(b"\r\n"));
        chunk.truncate(size);
        if chunk.is_empty() { Err(End::Proper) } else { Ok(String::from_utf8(chunk).unwrap()) }
    }

    /// Reads the body until it has at least this many bytes.
    pub async fn bytes(&mut self, count: usize) -> String {
        let mut text = String::new();
        while text.len() < count {
            text.push_str(&self.chunk().await.unwrap());
        }
        text
    }

    /// Reads the rest of the body.
    pub async fn rest(mut self) -> (String, End) {
        let mut text = String::new();
        loop {
            match self.chunk().await {
                Ok(chunk) => text.push_str(&chunk),
                Err(end) => return (text, end),
            }
        }
    }
}
