//! Requests that a server has denied. A server does not answer such a request. It sends an error
//! that names the subject, so that the adapter can report the missing permission.

use std::collections::VecDeque;
use std::sync::Arc;

use futures::FutureExt;
use futures::future::{BoxFuture, Shared};
use tokio::sync::watch;

/// The maximum number of remembered errors.
const REMEMBERED: usize = 32;

/// The latest errors of a connection about missing permissions.
#[derive(Clone)]
pub(super) struct Denials(Arc<watch::Sender<Latest>>);

#[derive(Clone, Default)]
struct Latest {
    /// The number of all errors.
    count: u64,
    texts: VecDeque<String>,
}

/// The reason why the server denied a request.
#[derive(Clone, Debug)]
pub(super) struct Denied(pub(super) Arc<str>);

/// Waits until the server denies a request.
pub(super) type Denial = Shared<BoxFuture<'static, Denied>>;

impl Default for Denials {
    fn default() -> Self {
        Self(Arc::new(watch::Sender::new(Latest::default())))
    }
}

impl Denials {
    /// Notes an error of the server, if it is about a permission.
    pub(super) fn note(&self, error: &str) {
        let Some(at) = error.to_ascii_lowercase().find("permissions violation") else { return };
        self.0.send_modify(|latest| {
            latest.count += 1;
            latest.texts.push_back(error[at..].to_owned());
            if latest.texts.len() > REMEMBERED {
                latest.texts.pop_front();
            }
        });
    }

    /// Waits until the server denies a request on a subject that begins with `subject`, or any
    /// subscription, because the answers of all requests arrive on subscriptions. Only errors after
    /// this call count.
    pub(super) fn denied(&self, subject: &str) -> Denial {
        let mut latest = self.0.subscribe();
        let seen = latest.borrow_and_update().count;
        let publish = format!("for publish to \"{}", subject.to_ascii_lowercase());
        let denied = async move {
            loop {
                if latest.changed().await.is_err() {
                    return std::future::pending().await;
                }
                let now = latest.borrow_and_update().clone();
                let new = usize::try_from(now.count - seen).unwrap_or(usize::MAX).min(now.texts.len());
                let concerns = |text: &&String| {
                    let text = text.to_ascii_lowercase();
                    text.contains("for subscription to") || text.contains(&publish)
                };
                if let Some(text) = now.texts.iter().skip(now.texts.len() - new).find(concerns) {
                    return Denied(format!("the NATS user lacks a permission: {text}").into());
                }
            }
        };
        denied.boxed().shared()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn denied_request_is_matched_by_its_subject_and_by_a_denied_subscription() {
        let denials = Denials::default();
        let error = |subject| format!("nats: Permissions Violation for Publish to \"{subject}\"");
        denials.note(&error("$JS.API.STREAM.INFO.log"));
        let info = denials.denied("$JS.API.STREAM.INFO.log");
        assert!(info.clone().now_or_never().is_none(), "an earlier error counts");
        denials.note(&error("$JS.API.STREAM.INFO.other"));
        denials.note("nats: maximum connections exceeded");
        assert!(info.clone().now_or_never().is_none());
        denials.note(&error("$JS.API.STREAM.INFO.log"));
        denials.note(&error("$JS.API.STREAM.INFO.other"));
        let Denied(text) = info.now_or_never().unwrap();
        assert!(text.contains("STREAM.INFO.log"), "{text}");
        let any = denials.denied("x");
        assert!(any.clone().now_or_never().is_none());
        denials.note("nats: Permissions Violation for Subscription to \"_INBOX.a.*\"");
        assert!(any.now_or_never().unwrap().0.contains("_INBOX.a"));
    }
}
