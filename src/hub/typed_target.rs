//! The target of typed events: a topic that carries certain messages only.

use std::marker::PhantomData;

use super::target::Target;
use super::{Hub, Publisher, Receipt};
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

impl Hub {
    /// Returns a target for the messages of a [`TypedTopic`]. A topic with an invalid name is an
    /// error of `send`. [`TypedTopic`] has an example.
    pub fn typed_topic<T: TypedTopic>(&self, topic: &T) -> TypedTarget<'_, T> {
        let audience = topic.to_topic().map(|topic| Address::Topic(topic).into());
        TypedTarget { target: Target { source: self, audience }, topic: PhantomData }
    }
}

impl Publisher {
    /// Returns a target for the messages of a [`TypedTopic`], as [`Hub::typed_topic`].
    pub fn typed_topic<T: TypedTopic>(&self, topic: &T) -> TypedTarget<'_, T, Self> {
        let audience = topic.to_topic().map(|topic| Address::Topic(topic).into());
        TypedTarget { target: Target { source: self, audience }, topic: PhantomData }
    }
}

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
