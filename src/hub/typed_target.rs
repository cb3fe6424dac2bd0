//! The target of typed events: a topic that carries certain messages only.

use std::marker::PhantomData;

use super::target::{Handle, Source, Target, aim};
use super::{Hub, Publisher, Receipt, Scope};
use crate::types::{Address, Carries, Message, PublishError, TypedTopic};

/// A topic as a target that accepts only the messages of its type: [`Hub::typed_topic`].
#[derive(Debug)]
#[must_use = "a target does nothing by itself"]
pub struct TypedTarget<'a, T, S = Hub> {
    target: Target<'a, S>,
    topic: PhantomData<fn(T)>,
}

impl<'a, T, S> TypedTarget<'a, T, S> {
    /// Returns the plain target, for other events, exclusions and commands.
    pub fn untyped(self) -> Target<'a, S> {
        self.target
    }
}

macro_rules! typed_topic {
    ($handle:ty, $source:ty $(, $generic:ident)?) => {
        #[allow(private_bounds, reason = "only hubs and publishers have scopes")]
        impl$(<$generic: Source>)? $handle {
            /// Returns a target for the messages of a [`TypedTopic`]. A topic with an invalid name
            /// is an error of `send`. [`TypedTopic`] has an example.
            pub fn typed_topic<T: TypedTopic>(&self, topic: &T) -> TypedTarget<'_, T, $source> {
                let audience = topic.to_topic().and_then(|topic| aim(self, topic, Address::Topic));
                TypedTarget { target: Target { source: self.source(), audience }, topic: PhantomData }
            }
        }
    };
}

typed_topic!(Hub, Hub);
typed_topic!(Publisher, Publisher);
typed_topic!(Scope<S>, S, S);

impl<'a, T> TypedTarget<'a, T> {
    /// Publishes a message that the topic carries, as [`Target::send`].
    pub fn send<M: Message>(
        self,
        message: &M,
    ) -> impl Future<Output = Result<Receipt, PublishError>> + Send + use<'a, T, M>
    where
        T: Carries<M>,
    {
        self.target.send(message)
    }
}

impl<'a, T> TypedTarget<'a, T, Publisher> {
    /// Publishes a message that the topic carries, as [`Target::send`].
    pub fn send<M: Message>(
        self,
        message: &M,
    ) -> impl Future<Output = Result<Receipt, PublishError>> + Send + use<'a, T, M>
    where
        T: Carries<M>,
    {
        self.target.send(message)
    }
}
