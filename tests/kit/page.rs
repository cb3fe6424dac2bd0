//! A client with one open stream, like a page in a browser.

#![allow(dead_code, unreachable_pub, reason = "each test binary uses a part of it")]

use std::net::SocketAddr;

use super::{Events, Reply, Sse, get, parsed, topics_of};

/// An open stream, after its `hub.hello`.
pub struct Page {
    pub events: Events,
    pub connection: String,
    /// The topics of `hub.hello`, sorted.
    pub topics: Vec<String>,
}

impl Page {
    /// Reads `hub.hello` only.
    pub async fn after_hello(reply: Reply) -> Self {
        let mut events = reply.events();
        let hello = events.next().await;
        assert_eq!(hello.event, "hub.hello", "{hello:?}");
        let connection = parsed(&hello)["connection"].as_str().unwrap().to_owned();
        Self { events, connection, topics: topics_of(&hello) }
    }

    /// Reads until the stream has caught up.
    pub async fn caught_up(reply: Reply) -> Self {
        let mut page = Self::after_hello(reply).await;
        page.events.caught_up().await;
        page
    }

    /// Opens a stream and reads until it has caught up.
    pub async fn open(addr: SocketAddr, path: &str) -> Self {
        Self::caught_up(get(addr, path).await).await
    }

    /// Returns the data of the next event of the application.
    pub async fn reads(&mut self) -> String {
        self.events.next_own().await.data
    }

    /// Reads `hub.bye`, which has to be the next and last event. Returns it, and the last event id
    /// that a browser has then.
    pub async fn bye(mut self) -> (Sse, String) {
        let bye = self.events.next().await;
        assert_eq!(bye.event, "hub.bye", "{bye:?}");
        let id = self.events.last_id.clone();
        assert_eq!(self.events.rest().await, []);
        (bye, id)
    }
}
