//! The chats. This service knows nothing of HTTP.
//!
//! 1. Each answer is a run. One task writes its words, and any number of pages read them.
//! 2. The messages of a chat are current values of a topic, with the number of the message as key.
//!    So every instance knows them, and a page that opens later receives all of them.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tower_sse::{
    Event, Hub, PublishError, Run, RunError, RunState, RunWriter, SubscriberItem, Subscription, SubscriptionError,
};

use crate::model;

/// The prefix of the topics and of the runs.
pub(crate) const TOPICS: &str = "chats/";
/// The pause before each word.
const PAUSE: Duration = Duration::from_millis(80);
/// The maximum number of answers that this instance writes at once.
const MAX_ANSWERS: u32 = 1_000;
/// The maximum length of a question, in characters.
const MAX_QUESTION: usize = 500;

/// A question and its answer.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Message {
    /// The place in the chat, from 0. It also names the run of the answer.
    pub(crate) number: u32,
    /// The time of the question, in milliseconds since the Unix epoch. A page uses it as identity:
    /// the numbers begin again if the server forgets the chat.
    asked: u64,
    question: String,
    /// The whole answer, or an empty text until it has ended. Until then only the run has the text.
    answer: String,
    pub(crate) state: AnswerState,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum AnswerState {
    Growing,
    Finished,
    Stopped,
    /// The writer ended without a word. The service derives this state from the run, because a
    /// process that was killed publishes nothing.
    Interrupted,
}

/// The error of [`Chats::ask`] and [`Chats::messages`].
#[derive(Debug)]
pub(crate) enum Error {
    /// The question is empty or too long.
    Invalid,
    /// The answer to the last question is still growing.
    Growing,
    /// The instance cannot answer now: it is busy, starting or shutting down.
    Busy,
    Subscribe(SubscriptionError),
    Publish(PublishError),
    Run(RunError),
}

impl From<SubscriptionError> for Error {
    fn from(error: SubscriptionError) -> Self {
        Self::Subscribe(error)
    }
}

impl From<PublishError> for Error {
    fn from(error: PublishError) -> Self {
        Self::Publish(error)
    }
}

impl From<RunError> for Error {
    fn from(error: RunError) -> Self {
        Self::Run(error)
    }
}

#[derive(Clone)]
pub(crate) struct Chats {
    pub(crate) hub: Hub,
    places: Arc<Semaphore>,
}

impl Chats {
    pub(crate) fn new(hub: Hub) -> Self {
        Self { hub, places: Arc::new(Semaphore::new(MAX_ANSWERS as usize)) }
    }

    /// Returns the run of an answer.
    pub(crate) fn answer(&self, chat: &str, number: u32) -> Run {
        self.hub.run(format!("{TOPICS}{chat}/answers/{number}"))
    }

    /// Returns the messages of a chat in their order.
    pub(crate) async fn messages(&self, chat: &str) -> Result<Vec<Message>, Error> {
        let topic = Subscription::anonymous().topic(topic(chat));
        let mut items = self.hub.subscribe(topic, None)?;
        let mut messages = BTreeMap::new();
        loop {
            match items.next().await {
                Some(SubscriberItem::Event(event)) => {
                    let Ok(message) = serde_json::from_str::<Message>(&event.data) else { continue };
                    messages.insert(message.number, message);
                }
                Some(SubscriberItem::Live(_)) => break,
                Some(SubscriberItem::Gap { .. }) => {}
                _ => return Err(Error::Busy),
            }
        }
        let mut messages: Vec<_> = messages.into_values().collect();
        for message in messages.iter_mut().filter(|message| message.state == AnswerState::Growing) {
            if self.answer(chat, message.number).state().await? != RunState::Active {
                message.state = AnswerState::Interrupted;
            }
        }
        Ok(messages)
    }

    /// Begins the answer to a question, and returns its number.
    pub(crate) async fn ask(&self, chat: &str, question: &str) -> Result<u32, Error> {
        let question = question.trim();
        if question.is_empty() || question.chars().count() > MAX_QUESTION {
            return Err(Error::Invalid);
        }
        let place = Arc::clone(&self.places).try_acquire_owned().map_err(|_| Error::Busy)?;
        let messages = self.messages(chat).await?;
        if messages.iter().any(|message| message.state == AnswerState::Growing) {
            return Err(Error::Growing);
        }
        let message = Message {
            number: messages.last().map_or(0, |last| last.number + 1),
            asked: now(),
            question: question.to_owned(),
            answer: String::new(),
            state: AnswerState::Growing,
        };
        // Two instances that receive a question at the same time choose the same number. The second
        // `begin` then fails, because the run is active.
        let interrupted = Event::new("interrupted", "The answer was interrupted.");
        let writer = self.answer(chat, message.number).begin().last_will(interrupted).await?;
        self.publish_message(chat, &message).await?;
        let number = message.number;
        tokio::spawn(self.clone().write(chat.to_owned(), message, writer, place));
        Ok(number)
    }

    /// Writes an answer. If the writer is dropped before its end, the hub publishes the last will.
    async fn write(self, chat: String, message: Message, writer: RunWriter, _place: OwnedSemaphorePermit) {
        let number = message.number;
        if let Err(error) = self.write_words(&chat, message, writer).await {
            eprintln!("answer {number} of chat {chat} was interrupted: {error}");
        }
    }

    async fn write_words(
        &self,
        chat: &str,
        mut message: Message,
        writer: RunWriter,
    ) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
        let mut words = model::answer(&message.question).into_iter();
        let mut written = Vec::new();
        message.state = loop {
            tokio::select! {
                () = writer.stopped() => break AnswerState::Stopped,
                () = tokio::time::sleep(PAUSE) => {}
            }
            let Some(word) = words.next() else { break AnswerState::Finished };
            writer.publish(Event::new("word", word.clone())).await?;
            written.push(word);
        };
        message.answer = written.join(" ");
        // Before the end of the run: a page that has read the end finds the whole message.
        self.publish_message(chat, &message).await?;
        writer.finish().await?;
        Ok(())
    }

    async fn publish_message(&self, chat: &str, message: &Message) -> Result<(), PublishError> {
        let event = Event::json("message", message)?.key(message.number.to_string());
        self.hub.topic(topic(chat)).publish(event).await.map(drop)
    }

    /// Begins no more answers, and returns when those of this instance have ended.
    pub(crate) async fn stop(&self) {
        if let Ok(places) = self.places.acquire_many(MAX_ANSWERS).await {
            places.forget();
        }
    }
}

/// Returns the topic of the messages of a chat.
pub(crate) fn topic(chat: &str) -> String {
    format!("{TOPICS}{chat}")
}

/// Returns the time in milliseconds since the Unix epoch, as JavaScript counts it.
fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| u64::try_from(time.as_millis()).unwrap_or(u64::MAX))
}
