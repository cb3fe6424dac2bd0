//! Calls of the access hook, with a time limit and with panics contained.

use std::future::{Future, poll_fn};
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::task::Poll;

use futures::FutureExt;
use futures::future::BoxFuture;
use tracing::Instrument;

use super::{Access, StreamRequest};
use crate::hub::Hub;
use crate::types::refusal::Kind;
use crate::types::{Authority, Recheck, Refusal, RefusalReason, Subscription};

/// The time in milliseconds after which a single poll of the hook counts as blocking its thread.
const BLOCKED: u64 = 200;

impl Hub {
    /// Calls the access hook for a request.
    ///
    /// A subscription from a ticket is also rechecked, because permissions may have changed since
    /// the ticket was created. The request is boxed, because otherwise each future that carries the
    /// request would reserve space for it.
    pub(super) async fn authorize<A: Access>(
        &self,
        access: &A,
        request: Box<StreamRequest>,
    ) -> Result<Subscription, Refusal> {
        let decision = async move {
            let subscription = access.authorize(*request).await?;
            if subscription.redeemed.is_none() {
                return Ok(subscription);
            }
            Box::pin(self.recheck_redeemed(access, subscription)).await
        };
        let decision = decision.instrument(tracing::debug_span!("sse.access"));
        // Unwind safe: a panic can leave only the hook's own state inconsistent, and the hub does
        // not depend on that state.
        let mut decision = std::pin::pin!(AssertUnwindSafe(decision).catch_unwind());
        // Create the timer only if the hook does not answer in its first poll, because most hooks
        // do.
        let mut timer = None;
        let timed = poll_fn(|cx| {
            let begun_at = self.now();
            let polled = decision.as_mut().poll(cx);
            let now = self.now();
            if now.saturating_sub(begun_at) >= BLOCKED {
                self.counters().hook_blocked(now - begun_at, now);
            }
            match polled {
                Poll::Ready(answer) => Poll::Ready(Some(answer)),
                Poll::Pending => {
                    let timer =
                        timer.get_or_insert_with(|| Box::pin(tokio::time::sleep(self.settings().access_timeout)));
                    timer.as_mut().poll(cx).map(|()| None)
                }
            }
        });
        match timed.await {
            Some(Ok(answer)) => answer,
            Some(Err(_panic)) => {
                self.counters().hook_panicked(self.now());
                Err(Refusal(Kind::Panicked))
            }
            None => Err(Refusal::retry_later(RefusalReason::Timeout)),
        }
    }

    /// Calls the recheck of the access hook for the subscription of a ticket.
    async fn recheck_redeemed<A: Access>(&self, access: &A, redeemed: Subscription) -> Result<Subscription, Refusal> {
        match access.recheck(redeemed.clone()).await {
            Recheck::Keep | Recheck::Settled => Ok(redeemed),
            Recheck::Narrow(narrowed) => redeemed.narrowed_to(&narrowed).ok_or(Refusal::forbidden()),
            Recheck::End(refusal) => Err(refusal),
        }
    }
}

/// Lets the module `hub` recheck streams without the type of their access hook.
impl<A: Access> Authority for A {
    fn recheck(self: Arc<Self>, subscription: Subscription) -> BoxFuture<'static, Recheck> {
        async move { Access::recheck(&*self, subscription).await }.boxed()
    }
}
