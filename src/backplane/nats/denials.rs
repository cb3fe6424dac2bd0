//! Requests that a server has denied. A server does not answer such a request. It sends an error
//! that names the subject, so that the adapter can report the missing permission.

use std::collections::VecDeque;
use std::sync::Arc;

use futures::FutureExt;
use futures::future::{BoxFuture, Shared};
use tokio::sync::watch;

/// The maximum number of remembered errors. One call sends at most this number of records before it
/// waits for an answer.
const REMEMBERED: usize = 1024;

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

    /// Returns the current end of the errors. Only later errors count.
    pub(super) fn since(&self) -> Since {
        let mut latest = self.0.subscribe();
        let count = latest.borrow_and_update().count;
        Since { latest, count }
    }
}

/// A place in the errors of a connection.
#[derive(Clone)]
pub(super) struct Since {
    latest: watch::Receiver<Latest>,
    /// The number of all errors before this place.
    count: u64,
}

impl Since {
    /// Waits until the server denies a request on a subject that begins with `subject`, or any
    /// subscription, because the answers of all requests arrive on subscriptions.
    pub(super) fn request(&self, subject: &str) -> Denial {
        let publish = format!("for publish to \"{}", subject.to_ascii_lowercase());
        self.find(move |text| text.contains("for subscription to") || text.contains(&publish))
    }

    /// Waits until the server denies a message on exactly this subject. An error about another
    /// subject does not count, because the server may have stored the message.
    pub(super) fn message(&self, subject: &str) -> Denial {
        let publish = format!("for publish to \"{}\"", subject.to_ascii_lowercase());
        self.find(move |text| text.contains(&publish))
    }

    fn find(&self, concerns: impl Fn(&str) -> bool + Send + 'static) -> Denial {
        let Self { mut latest, count } = self.clone();
        let denied = async move {
            loop {
                {
                    let now = latest.borrow_and_update();
                    let new = usize::try_from(now.count - count).unwrap_or(usize::MAX).min(now.texts.len());
                    let mut texts = now.texts.iter().skip(now.texts.len() - new);
                    if let Some(text) = texts.find(|text| concerns(&text.to_ascii_lowercase())) {
                        return Denied(format!("the NATS user lacks a permission: {text}").into());
                    }
                }
                if latest.changed().await.is_err() {
                    return std::future::pending().await;
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
        let info = denials.since().request("$JS.API.STREAM.INFO.log");
        assert!(info.clone().now_or_never().is_none(), "an earlier error counts");
        denials.note(&error("$JS.API.STREAM.INFO.other"));
        denials.note("nats: maximum connections exceeded");
        assert!(info.clone().now_or_never().is_none());
        denials.note(&error("$JS.API.STREAM.INFO.log"));
        denials.note(&error("$JS.API.STREAM.INFO.other"));
        let Denied(text) = info.now_or_never().unwrap();
        assert!(text.contains("STREAM.INFO.log"), "{text}");
        let any = denials.since().request("x");
        assert!(any.clone().now_or_never().is_none());
        denials.note("nats: Permissions Violation for Subscription to \"_INBOX.a.*\"");
        assert!(any.now_or_never().unwrap().0.contains("_INBOX.a"));
    }

    #[test]
    fn denied_message_is_matched_only_by_its_whole_subject() {
        let denials = Denials::default();
        let message = denials.since().message("n.v.ab");
        for subject in ["n.v.abc", "n.v.a", "n.r.ab"] {
            denials.note(&format!("nats: Permissions Violation for Publish to \"{subject}\""));
        }
        denials.note("nats: Permissions Violation for Subscription to \"_INBOX.a.*\"");
        assert!(message.clone().now_or_never().is_none());
        denials.note("nats: Permissions Violation for Publish to \"n.v.ab\"");
        assert!(message.now_or_never().is_some());
    }
}
