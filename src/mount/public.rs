//! Open access to topics by name.

use super::{Access, StreamRequest};
use crate::types::{Refusal, Start, Subscription, Topic, TopicFilter};

/// An access hook for open access: every client may read, without authentication, the topics that
/// the filters allow.
///
/// The client selects topics with `?topic=a&topic=b`. If one topic is not allowed or has an invalid
/// name, the hook refuses the whole request. A stream without topics receives only the events for
/// everyone and for its connection. Open access is never a default: an application that wants it
/// names this type.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// use http::Request;
/// use tower::ServiceExt;
/// use tower_sse::{Hub, Public, TopicFilter};
///
/// let hub = Hub::builder().build()?;
/// let access = Public::topics(TopicFilter::prefix("public/")).or(TopicFilter::exact("news"));
/// let request = Request::get("/events?topic=news&topic=public/weather").body(())?;
/// assert_eq!(hub.endpoint(access).oneshot(request).await?.status(), 200);
/// # Ok(()) }
/// ```
#[derive(Clone, Debug)]
pub struct Public {
    rules: Vec<TopicFilter>,
    start: Start,
}

impl Public {
    /// Creates a hook that allows the topics that this filter matches.
    #[must_use]
    pub fn topics(rule: TopicFilter) -> Self {
        Self { rules: vec![rule], start: Start::default() }
    }

    /// Also allows the topics that this filter matches.
    #[must_use]
    pub fn or(mut self, rule: TopicFilter) -> Self {
        self.rules.push(rule);
        self
    }

    /// Sets the point from which a client without a cursor reads. Defaults to [`Start::Live`].
    #[must_use]
    pub fn start(mut self, start: Start) -> Self {
        self.start = start;
        self
    }

    /// Returns the subscription for this request, for an [`Access`] hook of the application that
    /// adds to it.
    ///
    /// ```
    /// use tower_sse::{Public, Refusal, StreamRequest, Subscription, TopicFilter};
    ///
    /// let public = Public::topics(TopicFilter::exact("news"));
    /// let hub = tower_sse::Hub::builder().build().unwrap();
    /// let endpoint = hub.endpoint(move |request: StreamRequest| {
    ///     let user = request.extensions().get::<u64>().copied();
    ///     let subscription = public.subscription(&request);
    ///     async move { Ok(match user { Some(user) => subscription?.with_user(user), None => subscription? }) }
    /// });
    /// # let _ = endpoint;
    /// ```
    ///
    /// # Errors
    ///
    /// Returns [`Refusal::forbidden`] if a topic is not allowed or has an invalid name.
    pub fn subscription(&self, request: &StreamRequest) -> Result<Subscription, Refusal> {
        let mut subscription = Subscription::anonymous().start(self.start);
        for topic in request.query_values("topic") {
            // The same refusal for an invalid name as for a topic that is not allowed.
            let topic = Topic::try_from(topic).map_err(|_| Refusal::forbidden())?;
            if !self.rules.iter().any(|rule| rule.matches(&topic)) {
                return Err(Refusal::forbidden());
            }
            subscription.topics.insert(topic);
        }
        Ok(subscription)
    }
}

impl Access for Public {
    const RECHECKS: bool = false;

    async fn authorize(&self, request: StreamRequest) -> Result<Subscription, Refusal> {
        self.subscription(&request)
    }
}
