//! An access hook that grants each request what its query asks for.

#![allow(dead_code, unreachable_pub, reason = "each test binary uses a part of it")]

use std::time::Duration;

use tower_sse::{Ids, Refusal, StreamRequest, Subscription};

/// Builds the subscription that the query names: `?user=ada&topic=a&topic=b&expires_ms=500`,
/// and the bare profile with `?bare&ids=first`.
pub fn from_query(request: &StreamRequest) -> Subscription {
    let mut subscription = Subscription::anonymous().with_topics(request.query_values("topic"));
    if let Some(user) = request.query_values("user").next() {
        subscription = subscription.with_user(user);
    }
    if let Some(millis) = request.query_values("expires_ms").next() {
        subscription = subscription.expires_in(Duration::from_millis(millis.parse().unwrap()));
    }
    if request.query_values("bare").next().is_some() {
        subscription = subscription.bare();
    }
    match request.query_values("ids").next().as_deref() {
        Some("first") => subscription.ids(Ids::First),
        Some("none") => subscription.ids(Ids::None),
        _ => subscription,
    }
}

/// Grants each request the subscription that its query names.
pub async fn by_query(request: StreamRequest) -> Result<Subscription, Refusal> {
    Ok(from_query(&request))
}
