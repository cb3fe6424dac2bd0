//! Open access, by name.

use super::{Access, StreamRequest};
use crate::types::{Refusal, Start, Subscription, Topic, TopicFilter};

/// Open access: everybody may read, without saying who they are, the topics that its rules allow.
///
/// The client chooses with `?topic=a&topic=b`. A topic that no rule allows refuses the whole request, and so do names
/// that are none; a request for no topic gets the events to everyone only. There is no silent default: an
/// application that wants this writes it down.
///
/// ```
/// # let hub = tower_sse::Hub::builder().build().unwrap();
/// use tower_sse::{Public, TopicFilter};
///
/// let endpoint = hub.endpoint(Public::topics(TopicFilter::prefix("public/")));
/// # let _ = endpoint;
/// ```
#[derive(Clone, Debug)]
pub struct Public {
    rules: Vec<TopicFilter>,
    start: Start,
}

impl Public {
    /// Allows the topics that this rule matches.
    #[must_use]
    pub fn topics(rule: TopicFilter) -> Self {
        Self { rules: vec![rule], start: Start::default() }
    }

    /// Allows these too.
    #[must_use]
    pub fn or(mut self, rule: TopicFilter) -> Self {
        self.rules.push(rule);
        self
    }

    /// Sets where a page without a cursor starts. Defaults to [`Start::Live`].
    #[must_use]
    pub fn start(mut self, start: Start) -> Self {
        self.start = start;
        self
    }

    /// What this request gets, for an [`Access`] of one's own that adds to it.
    ///
    /// # Errors
    /// [`Refusal::forbidden`] when a topic is not allowed.
    pub fn subscription(&self, request: &StreamRequest) -> Result<Subscription, Refusal> {
        let mut subscription = Subscription::anonymous().start(self.start);
        for topic in request.query_values("topic") {
            // A name that is none: the same answer as for one that is not allowed.
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
