//! Asking the application's access hook: within its time, and with its panics contained.

use std::future::{Future, poll_fn};
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::task::Poll;

use futures::FutureExt;
use futures::future::BoxFuture;

use super::{Access, StreamRequest};
use crate::hub::Hub;
use crate::types::refusal::Kind;
use crate::types::{Authority, Recheck, Refusal, RefusalReason, Subscription};

/// A hook that keeps its thread for this long without a pause, in milliseconds, has blocked it.
const BLOCKED: u64 = 200;

impl Hub {
    /// What the hook says to a request. What a ticket carries is looked at again, since it may be older than the truth.
    /// The request comes boxed, since every future on its way would have room for it.
    pub(super) async fn ask<A: Access>(
        &self,
        access: &A,
        request: Box<StreamRequest>,
    ) -> Result<Subscription, Refusal> {
        let asked = async move {
            let subscription = access.authorize(*request).await?;
            if subscription.redeemed.is_none() {
                return Ok(subscription);
            }
            Box::pin(self.look_again(access, subscription)).await
        };
        // The hook only reads what it holds; what a panic leaves behind in it is the hook's own affair.
        let mut asked = std::pin::pin!(AssertUnwindSafe(asked).catch_unwind());
        // Most hooks answer at once, and need no timer.
        let mut timer = None;
        let answered = poll_fn(|cx| {
            let begun_at = self.now();
            let polled = asked.as_mut().poll(cx);
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
        match answered.await {
            Some(Ok(answer)) => answer,
            Some(Err(_panic)) => {
                self.counters().hook_panicked(self.now());
                Err(Refusal(Kind::Panicked))
            }
            None => Err(Refusal::retry_later(RefusalReason::Timeout)),
        }
    }

    async fn look_again<A: Access>(&self, access: &A, redeemed: Subscription) -> Result<Subscription, Refusal> {
        match access.recheck(redeemed.clone()).await {
            Recheck::Keep | Recheck::Settled => Ok(redeemed),
            Recheck::Narrow(narrowed) => redeemed.narrowed_to(&narrowed).ok_or(Refusal::forbidden()),
            Recheck::End(refusal) => Err(refusal),
        }
    }
}

/// The hook as the hub knows it.
impl<A: Access> Authority for A {
    fn recheck(self: Arc<Self>, subscription: Subscription) -> BoxFuture<'static, Recheck> {
        async move { Access::recheck(&*self, subscription).await }.boxed()
    }
}
