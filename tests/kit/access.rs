//! An access hook that believes the query.

#![allow(dead_code, unreachable_pub, reason = "each test binary uses a part of it")]

use std::time::Duration;

use tower_sse::{Connect, Refusal, Subscription};

/// The subscription that the query names: `?user=ada&topic=a&topic=b&expires_ms=500`.
pub fn asked_for(connect: &Connect) -> Subscription {
    let mut subscription = Subscription::anonymous().topics(connect.query_values("topic"));
    if let Some(user) = connect.query_values("user").next() {
        subscription = subscription.with_user(user);
    }
    if let Some(millis) = connect.query_values("expires_ms").next() {
        subscription = subscription.expires_in(Duration::from_millis(millis.parse().unwrap()));
    }
    subscription
}

/// Gives each request the subscription that its query names.
pub async fn as_asked(connect: Connect) -> Result<Subscription, Refusal> {
    Ok(asked_for(&connect))
}
