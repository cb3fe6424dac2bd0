//! The type of a request for a stream.

use std::borrow::Cow;
use std::net::SocketAddr;
use std::sync::Arc;

use http::request::Parts;
use http::{Extensions, HeaderMap, Method, Request, Uri};

use crate::hub::{Hub, Redemption, Redemptions, Transport};
use crate::macros::opaque_debug;
use crate::net::SseConnectInfo;
use crate::types::{Cursor, DisconnectClock};

/// A request for a stream, without its body. An [`Access`](crate::Access) hook receives it and
/// decides about the stream. A handler extracts it and passes it to [`Hub::respond`].
///
/// ```
/// use http::Request;
/// use tower_sse::{Cursor, StreamRequest};
///
/// let request = Request::get("/events?topic=news&topic=documents/7").header("last-event-id", "1.5eed.42");
/// let request = StreamRequest::from_request(&request.body(())?);
/// assert_eq!(request.query_values("topic").collect::<Vec<_>>(), ["news", "documents/7"]);
/// assert_eq!(request.cursor(), Cursor::At("1.5eed.42".parse()?));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[doc(alias = "Connect")]
#[derive(Clone)]
pub struct StreamRequest {
    pub(super) head: Parts,
    /// The time at which this value was created. A disconnect after this time applies to the
    /// request, even while the access hook runs.
    pub(super) asked_at: DisconnectClock,
    pub(super) transport: Option<Arc<Transport>>,
    /// The list of tickets that the access hook redeems. Set if the hub calls an access hook and
    /// the query may have a ticket.
    pub(super) redemptions: Option<Arc<Redemptions>>,
}

impl StreamRequest {
    /// Creates a stream request from any request, without reading its body.
    pub fn from_request<B>(request: &Request<B>) -> Self {
        let mut head = Request::new(()).into_parts().0;
        head.method = request.method().clone();
        head.uri = request.uri().clone();
        head.version = request.version();
        head.headers = request.headers().clone();
        head.extensions = request.extensions().clone();
        Self::from_parts(head)
    }

    /// Creates a stream request from the head of a request.
    ///
    /// ```
    /// use tower_sse::StreamRequest;
    ///
    /// let (parts, _body) = http::Request::get("/events?topic=news").body(())?.into_parts();
    /// let request = StreamRequest::from_parts(parts);
    /// assert_eq!(request.query(), Some("topic=news"));
    /// # Ok::<(), http::Error>(())
    /// ```
    #[must_use]
    pub fn from_parts(parts: Parts) -> Self {
        // Set if the server adds `SseConnectInfo` to each request.
        let transport = parts.extensions.get::<SseConnectInfo>().map(|info| Arc::clone(&info.transport));
        Self { head: parts, asked_at: DisconnectClock::now(), transport, redemptions: None }
    }

    /// Creates a stream request from a request that the server passes to a service. Finds the
    /// socket of the request by `SseConnectInfo` in the request, or by the current task if this
    /// task polls the socket.
    pub(super) fn with_socket<B>(hub: &Hub, request: Request<B>) -> Self {
        let mut stream_request = Self::from_parts(request.into_parts().0);
        if !stream_request.transport.as_ref().is_some_and(|transport| hub.transports().contains(transport)) {
            // The socket of another hub still has the address of the peer.
            stream_request.transport = hub.transports().find_by_task().or(stream_request.transport);
        }
        stream_request
    }

    /// Starts to record the tickets that the access hook redeems. Dropping the returned redemption
    /// gives the tickets back, unless they were spent. Returns `None` if the query has no ticket.
    pub(super) fn start_redemption(&mut self) -> Option<Redemption> {
        if !self.may_have_field(b"ticket") {
            return None;
        }
        let redemption = Redemption::new();
        self.redemptions = Some(redemption.redemptions());
        Some(redemption)
    }

    /// Returns the method. An access hook receives only `GET` and `HEAD`. A `HEAD` request receives
    /// only the head of the response and opens no stream.
    #[must_use]
    pub fn method(&self) -> &Method {
        &self.head.method
    }

    /// Returns the target of the request.
    #[must_use]
    pub fn uri(&self) -> &Uri {
        &self.head.uri
    }

    /// Returns the headers. A browser's `EventSource` sends cookies, but a page cannot make it send
    /// other headers.
    #[must_use]
    pub fn headers(&self) -> &HeaderMap {
        &self.head.headers
    }

    /// Returns the extensions, with the values that outer layers have added, for example a session.
    #[must_use]
    pub fn extensions(&self) -> &Extensions {
        &self.head.extensions
    }

    /// Returns the query of the URI, without decoding.
    #[must_use]
    pub fn query(&self) -> Option<&str> {
        self.head.uri.query()
    }

    /// Returns the decoded values of all query fields with this name, in the order of the query.
    pub fn query_values<'a>(&'a self, name: &'a str) -> impl Iterator<Item = Cow<'a, str>> {
        let query = self.query().unwrap_or_default();
        form_urlencoded::parse(query.as_bytes()).filter(move |(field, _)| field == name).map(|(_, value)| value)
    }

    /// Returns the address of the peer of the socket, if it is known. Behind a proxy, the peer is
    /// the proxy.
    ///
    /// The address comes from one of these sources, in this order:
    ///
    /// 1. axum's `ConnectInfo<SocketAddr>` in the request, if the feature `axum-listener` is on;
    /// 2. the socket that the hub has wrapped with [`Hub::io`] or its listener, if the request has
    ///    an [`SseConnectInfo`], or if the server calls the layer or the
    ///    endpoint in the task that polls the socket.
    #[must_use]
    pub fn peer_addr(&self) -> Option<SocketAddr> {
        #[cfg(feature = "axum-listener")]
        if let Some(info) = self.head.extensions.get::<axum::extract::ConnectInfo<SocketAddr>>() {
            return Some(info.0);
        }
        self.transport.as_ref()?.peer()
    }

    /// Returns the point from which the client resumes: the `Last-Event-ID` header, else the
    /// `last_event_id` field of the query. A browser sends the header when it reconnects. The query
    /// field is for a page that opens a new `EventSource` and wants to resume.
    #[must_use]
    pub fn cursor(&self) -> Cursor {
        match self.head.headers.get("last-event-id") {
            Some(value) if !value.is_empty() => Cursor::parse(value.as_bytes()),
            _ if !self.may_have_field(b"last_event_id") => Cursor::Absent,
            _ => self.query_values("last_event_id").next().map_or(Cursor::Absent, |id| Cursor::parse(id.as_bytes())),
        }
    }
}

impl StreamRequest {
    /// Returns false if the query cannot have a field of this name. This check is faster than
    /// decoding, and most queries do not have the field.
    fn may_have_field(&self, name: &[u8]) -> bool {
        let query = self.query().unwrap_or_default().as_bytes();
        memchr::memchr(b'%', query).is_some() || memchr::memmem::find(query, name).is_some()
    }
}

// Omits the headers and the query, because they may contain credentials.
opaque_debug!(|request: StreamRequest| {
    method: request.head.method,
    path: request.head.uri.path(),
    cursor: request.cursor(),
    peer_addr: request.peer_addr(),
});
