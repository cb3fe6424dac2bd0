//! Integration with axum handlers: `StreamRequest`, `Hub` and `ConnectionId` as extractors,
//! `EventStream` and the errors as responses.

use std::convert::Infallible;

use axum_core::body::Body;
use axum_core::extract::{FromRequestParts, OptionalFromRequestParts};
use axum_core::response::{IntoResponse, Response};
use http::StatusCode;
use http::header::RETRY_AFTER;
use http::request::Parts;

use crate::hub::Hub;
use crate::mount::{EventStream, StreamRequest};
use crate::types::{CommandError, ConnectionId, InvalidName, NameProblem, PublishError, RunError, SubscriptionError};

impl<S: Sync> FromRequestParts<S> for StreamRequest {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Infallible> {
        Ok(Self::from_parts(parts.clone()))
    }
}

/// Extracts the hub from the request's extensions, where
/// [`SseLayer::provide`](crate::SseLayer::provide) puts it.
///
/// ```
/// use axum::{Router, routing::post};
/// use tower_sse::{Event, Hub, Public, PublishError, TopicFilter};
///
/// async fn post_headline(hub: Hub, text: String) -> Result<(), PublishError> {
///     hub.topic("news").publish(Event::new("headline", text)).await?;
///     Ok(())
/// }
///
/// let hub = Hub::builder().build().unwrap();
/// let app: Router = Router::new()
///     .route("/headlines", post(post_headline))
///     .layer(hub.layer("/events", Public::topics(TopicFilter::exact("news"))).provide());
/// # let _ = app;
/// ```
///
/// A handler can also extract `State<Hub>` if the router state contains the hub. This needs no
/// `provide`.
impl<S: Sync> FromRequestParts<S> for Hub {
    type Rejection = MissingHub;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, MissingHub> {
        parts.extensions.get::<Self>().cloned().ok_or(MissingHub)
    }
}

/// Extracts the id of the page's connection from the header [`ConnectionId::HEADER`].
///
/// A request without the header, or with an invalid id, receives `400`. If clients without a stream
/// also call the handler, it takes `Option<ConnectionId>`.
///
/// ```
/// use axum::extract::State;
/// use tower_sse::{ConnectionId, Event, Hub, PublishError};
///
/// async fn rename(State(hub): State<Hub>, page: Option<ConnectionId>, title: String) -> Result<(), PublishError> {
///     let mut readers = hub.topic("documents/7");
///     if let Some(page) = page {
///         readers = readers.except(page); // this page already shows the new title
///     }
///     readers.publish(Event::new("document.renamed", title)).await?;
///     Ok(())
/// }
/// # let _: axum::Router<Hub> = axum::Router::new().route("/", axum::routing::post(rename));
/// ```
impl<S: Sync> FromRequestParts<S> for ConnectionId {
    type Rejection = InvalidName;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, InvalidName> {
        const FIELD: &str = "header sse-connection";
        let id = parts.headers.get(Self::HEADER).ok_or(InvalidName::new(FIELD, NameProblem::Missing))?;
        let id = id.to_str().ok().and_then(|id| id.parse().ok());
        id.ok_or(InvalidName::new(FIELD, NameProblem::Malformed))
    }
}

/// Extracts the id if the request has the header, and `None` otherwise. A request with an invalid
/// id receives `400`.
impl<S: Sync> OptionalFromRequestParts<S> for ConnectionId {
    type Rejection = InvalidName;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Option<Self>, InvalidName> {
        if !parts.headers.contains_key(Self::HEADER) {
            return Ok(None);
        }
        <Self as FromRequestParts<S>>::from_request_parts(parts, state).await.map(Some)
    }
}

/// The rejection, with the status `500`, of a request without a `Hub` in its extensions.
///
/// ```
/// use axum::extract::FromRequestParts;
/// use tower_sse::{Hub, MissingHub};
///
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), http::Error> {
/// let (mut parts, ()) = http::Request::get("/").body(())?.into_parts();
/// let rejection: MissingHub = Hub::from_request_parts(&mut parts, &()).await.unwrap_err();
/// assert!(rejection.to_string().starts_with("no Hub in the request"));
/// # Ok(()) }
/// ```
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct MissingHub;

impl std::fmt::Display for MissingHub {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("no Hub in the request: wrap this route in `hub.layer(…).provide()`")
    }
}

impl std::error::Error for MissingHub {}

impl IntoResponse for MissingHub {
    fn into_response(self) -> Response {
        (StatusCode::INTERNAL_SERVER_ERROR, self.to_string()).into_response()
    }
}

/// Responds with `400`, because an invalid name in a request is an error of the client.
impl IntoResponse for InvalidName {
    fn into_response(self) -> Response {
        (StatusCode::BAD_REQUEST, self.to_string()).into_response()
    }
}

/// Implements `IntoResponse` for errors whose text is safe to send to a client: it contains no
/// name, no data and no cause.
macro_rules! into_response {
    ($($error:ident),*) => {$(
        /// Responds with the [status](Self::status_code) and the text of the error.
        impl IntoResponse for $error {
            fn into_response(self) -> Response {
                (self.status_code(), self.to_string()).into_response()
            }
        }
    )*};
}

into_response!(PublishError, CommandError, SubscriptionError);

/// Responds with the [status](Self::status_code) and the text of the error, and with `Retry-After`
/// if a [retry](Self::retry_after) may succeed.
impl IntoResponse for RunError {
    fn into_response(self) -> Response {
        let mut response = (self.status_code(), self.to_string()).into_response();
        if let Some(retry) = self.retry_after() {
            let seconds = retry.as_secs() + u64::from(retry.subsec_nanos() > 0);
            response.headers_mut().insert(RETRY_AFTER, seconds.max(1).into());
        }
        response
    }
}

impl IntoResponse for EventStream {
    fn into_response(self) -> Response {
        Self::into_response(self).map(Body::new)
    }
}
