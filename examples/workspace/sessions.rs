//! Sessions: a signed cookie for each session, and the access hook of its streams.
//!
//! The demo users have no passwords. A real application checks a password and stores its sessions
//! in a database.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use axum::http::{HeaderMap, header};
use ring::error::Unspecified;
use ring::hmac;
use ring::rand::{SecureRandom, SystemRandom};
use tower_sse::{
    Access, Disconnect, Hub, Public, PublishError, ReceivedEvent, Recheck, Refusal, StreamRequest, Subscription,
    TopicFilter,
};

use crate::events::SessionEnded;
use crate::replica::{Follower, Shared, lock, now};
use crate::{documents, feed, metrics, reports};

/// The topic of the events that end sessions, which every instance follows.
pub(crate) const TOPIC: &str = "sessions";
pub(crate) const LIFETIME: Duration = Duration::from_secs(12 * 3600);
/// The number of ended sessions that the log retains, for instances that start later. Each takes
/// about 300 bytes.
pub(crate) const MAX_ENDED: usize = 50_000;
const COOKIE: &str = "workspace_session";

#[derive(Clone, Copy)]
pub(crate) struct User {
    pub(crate) id: &'static str,
    pub(crate) name: &'static str,
}

pub(crate) const USERS: [User; 3] =
    [User { id: "ada", name: "Ada" }, User { id: "ben", name: "Ben" }, User { id: "cem", name: "Cem" }];

pub(crate) fn user(id: &str) -> Option<User> {
    USERS.into_iter().find(|user| user.id == id)
}

#[derive(Clone)]
pub(crate) struct Session {
    pub(crate) user: User,
    /// A random id. It is useless without the signature of the cookie.
    id: String,
    pub(crate) expires: SystemTime,
}

impl Session {
    /// Returns the topic of all streams of a session. A disconnect of this topic ends them
    /// together, on every instance.
    fn topic(&self) -> String {
        format!("session/{}", self.id)
    }
}

#[derive(Clone)]
pub(crate) struct Sessions {
    hub: Hub,
    key: Arc<hmac::Key>,
    /// The ids of ended sessions, and the times at which they ended.
    ended: Shared<BTreeMap<String, u64>>,
}

impl Sessions {
    pub(crate) fn new(hub: Hub, secret: Option<&str>) -> Result<Self, &'static str> {
        let key = match secret {
            Some(secret) => hmac::Key::new(hmac::HMAC_SHA256, secret.as_bytes()),
            None => hmac::Key::generate(hmac::HMAC_SHA256, &SystemRandom::new()).map_err(|_| "no random numbers")?,
        };
        Ok(Self { hub, key: Arc::new(key), ended: Shared::default() })
    }

    /// Begins a session, and returns the value of `Set-Cookie`. With TLS, the cookie would also be
    /// `Secure`.
    pub(crate) fn begin(&self, user: User) -> Result<String, Unspecified> {
        let mut id = [0; 16];
        SystemRandom::new().fill(&mut id)?;
        let expires = now() / 1000 + LIFETIME.as_secs();
        let claim = format!("{}.{}.{expires}", user.id, hex(&id));
        let signature = hex(hmac::sign(&self.key, claim.as_bytes()).as_ref());
        let max_age = LIFETIME.as_secs();
        Ok(format!("{COOKIE}={claim}.{signature}; Path=/; HttpOnly; SameSite=Lax; Max-Age={max_age}"))
    }

    /// Returns the session of a request, if its cookie is valid.
    pub(crate) fn of(&self, headers: &HeaderMap) -> Option<Session> {
        let cookies = headers.get_all(header::COOKIE).iter().flat_map(|value| value.to_str());
        let mut cookies = cookies.flat_map(|cookies| cookies.split("; ")).filter_map(|cookie| cookie.split_once('='));
        let (claim, signature) = cookies.find(|(name, _)| *name == COOKIE)?.1.rsplit_once('.')?;
        hmac::verify(&self.key, claim.as_bytes(), &unhex(signature)?).ok()?;
        let mut parts = claim.split('.');
        let (user, id, expires) = (user(parts.next()?)?, parts.next()?, parts.next()?.parse().ok()?);
        let session = Session { user, id: id.to_owned(), expires: UNIX_EPOCH + Duration::from_secs(expires) };
        self.is_valid(&session).then_some(session)
    }

    fn is_valid(&self, session: &Session) -> bool {
        session.expires > SystemTime::now() && !lock(&self.ended).contains_key(&session.id)
    }

    /// Ends a session and the streams of all its pages, and returns the value of `Set-Cookie`.
    ///
    /// If the event cannot be published, the method returns the error and the session continues.
    /// Otherwise the browser would lose its cookie while the cookie is still valid on other
    /// instances.
    pub(crate) async fn end(&self, session: &Session) -> Result<String, PublishError> {
        self.hub.topic(TOPIC).send(&SessionEnded { id: session.id.clone() }).await?;
        // Do not wait for the log on this instance: a request that arrives now must not pass.
        lock(&self.ended).insert(session.id.clone(), now());
        let disconnect = Disconnect::block_for(LIFETIME).note("signed out");
        if let Err(error) = self.hub.topic(session.topic()).disconnect(disconnect).await {
            tracing::warn!(%error, "streams of an ended session on other instances stay open until their recheck");
        }
        Ok(format!("{COOKIE}=; Path=/; HttpOnly; SameSite=Lax; Max-Age=0"))
    }
}

/// The access hook. A page requests topics with `/events?topic=documents&topic=reports/ada`.
impl Access for Sessions {
    async fn authorize(&self, request: StreamRequest) -> Result<Subscription, Refusal> {
        let session = self.of(request.headers()).ok_or(Refusal::unauthorized())?;
        let allowed = Public::topics(TopicFilter::exact(documents::TOPIC))
            .or(TopicFilter::exact(feed::TOPIC))
            .or(TopicFilter::exact(metrics::TOPIC))
            .or(TopicFilter::exact(reports::topic(session.user.id)));
        Ok(allowed
            .subscription(&request)?
            .with_user(session.user.id)
            .topic(session.topic())
            .expires_at(session.expires)
            .extension(session))
    }

    /// Ends streams of ended sessions that a disconnect did not reach. The hub calls this method
    /// every 15 seconds.
    async fn recheck(&self, subscription: Subscription) -> Recheck {
        match subscription.extensions().get::<Session>() {
            Some(session) if self.is_valid(session) => Recheck::Keep,
            _ => Recheck::End(Refusal::unauthorized()),
        }
    }
}

impl Follower for Sessions {
    fn topics(&self) -> Vec<String> {
        vec![TOPIC.to_owned()]
    }

    fn apply(&self, event: &ReceivedEvent) {
        let Some(SessionEnded { id }) = SessionEnded::read(event) else { return };
        let mut ended = lock(&self.ended);
        // Forget sessions whose cookies have expired by now.
        let oldest = now().saturating_sub(u64::try_from(LIFETIME.as_millis()).unwrap_or(u64::MAX));
        ended.retain(|_, at| *at > oldest);
        ended.entry(id).or_insert_with(now);
    }

    /// Keeps the ended sessions: a new life of the log must not make their cookies valid again.
    fn clear(&self) {}
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut hex, byte| {
        let _ = write!(hex, "{byte:02x}");
        hex
    })
}

fn unhex(hex: &str) -> Option<Vec<u8>> {
    (0..hex.len()).step_by(2).map(|at| u8::from_str_radix(hex.get(at..at + 2)?, 16).ok()).collect()
}
