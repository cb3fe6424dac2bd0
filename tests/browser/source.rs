//! An `EventSource` in `page.html`, and its events.

use serde::Deserialize;
use serde_json::{Value, json};

use crate::driver::Page;

/// The control events of the hub. A page receives only events for whose names it has a listener.
const HUB_EVENTS: [&str; 7] =
    ["hub.hello", "hub.live", "hub.gap", "hub.refused", "hub.stale", "hub.expiring", "hub.bye"];

pub const CONNECTING: u64 = 0;
pub const OPEN: u64 = 1;
pub const CLOSED: u64 = 2;

pub struct Source<'a> {
    page: &'a Page,
    index: u64,
}

/// A call of a listener. `open` and `error` are in one order with the events, and have no data.
#[derive(Clone, Debug, Deserialize)]
pub struct Seen {
    #[serde(rename = "type")]
    pub name: String,
    pub data: Option<String>,
    pub id: Option<String>,
    pub origin: Option<String>,
    /// The `readyState` at that time.
    pub state: u64,
    /// In milliseconds, by the page's own clock.
    pub at: f64,
}

impl Seen {
    pub fn json(&self) -> Value {
        serde_json::from_str(self.data.as_deref().unwrap()).unwrap()
    }
}

impl Page {
    /// Opens a stream with listeners for the control events and for `names`.
    pub async fn listen(&self, url: &str, names: &[&str]) -> Source<'_> {
        self.listen_as(url, names, json!({})).await
    }

    /// Opens a stream with options of `EventSource`.
    pub async fn listen_as(&self, url: &str, names: &[&str], options: Value) -> Source<'_> {
        let names: Vec<&str> = HUB_EVENTS.iter().chain(names).copied().collect();
        let index = self.eval(&format!("listen({}, {}, {options})", json!(url), json!(names))).await;
        Source { page: self, index: index.as_u64().unwrap() }
    }
}

impl<'a> Source<'a> {
    /// Waits until this many events of a name have come since the page was loaded.
    #[track_caller]
    pub fn saw(&self, name: &str, times: usize) -> impl Future<Output = ()> + use<'a> {
        let log = format!("streams[{}].log", self.index);
        self.page.until(&format!("{log}.filter(event => event.type === {}).length >= {times}", json!(name)))
    }

    #[track_caller]
    pub fn reaches(&self, state: u64) -> impl Future<Output = ()> + use<'a> {
        self.page.until(&format!("streams[{}].source.readyState === {state}", self.index))
    }

    pub async fn state(&self) -> u64 {
        self.page.eval(&format!("streams[{}].source.readyState", self.index)).await.as_u64().unwrap()
    }

    pub async fn log(&self) -> Vec<Seen> {
        serde_json::from_value(self.page.eval(&format!("streams[{}].log", self.index)).await).unwrap()
    }

    /// Returns the events of a name.
    pub async fn all(&self, name: &str) -> Vec<Seen> {
        self.log().await.into_iter().filter(|event| event.name == name).collect()
    }

    /// Returns the data of the events of a name.
    pub async fn data(&self, name: &str) -> Vec<String> {
        self.all(name).await.into_iter().map(|event| event.data.unwrap()).collect()
    }

    /// Returns the names of all events, in order.
    pub async fn names(&self) -> Vec<String> {
        self.log().await.into_iter().map(|event| event.name).collect()
    }

    pub async fn close(&self) {
        self.page.eval(&format!("streams[{}].source.close()", self.index)).await;
    }
}
