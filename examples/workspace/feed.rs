//! News. Every post counts, so who comes back after a break gets each that was missed.

use std::collections::VecDeque;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tower_sse::{Event, Hub, Position, ReceivedEvent};

use crate::error::{Error, text};
use crate::replica::{Follower, Shared, lock, new_id, now, value};
use crate::sessions::User;

pub(crate) const TOPIC: &str = "feed";
pub(crate) const KEPT: usize = 100;
pub(crate) const KEPT_FOR: Duration = Duration::from_secs(3600);
const LONGEST: usize = 500;

#[derive(Clone, Serialize, Deserialize)]
pub(crate) struct Post {
    id: String,
    author: String,
    text: String,
    at: u64,
}

#[derive(Clone)]
pub(crate) struct Feed {
    hub: Hub,
    posts: Shared<VecDeque<Post>>,
}

impl Feed {
    pub(crate) fn new(hub: Hub) -> Self {
        Self { hub, posts: Shared::default() }
    }

    /// The newest last.
    pub(crate) fn list(&self) -> Vec<Post> {
        let mut posts = lock(&self.posts);
        trim(&mut posts);
        posts.iter().cloned().collect()
    }

    pub(crate) async fn post(&self, author: User, words: &str) -> Result<Position, Error> {
        let post = Post { id: new_id(), author: author.id.to_owned(), text: text(words, LONGEST)?, at: now() };
        Ok(self.hub.topic(TOPIC).publish(Event::json("post", &post)?).await?.position)
    }
}

impl Follower for Feed {
    fn topics(&self) -> Vec<String> {
        vec![TOPIC.to_owned()]
    }

    fn apply(&self, event: &ReceivedEvent) {
        let Some(post) = value::<Post>(event, "post") else { return };
        let mut posts = lock(&self.posts);
        posts.push_back(post);
        trim(&mut posts);
    }

    fn clear(&self) {
        lock(&self.posts).clear();
    }
}

/// As the hub does, and also what a shared log has kept for longer.
fn trim(posts: &mut VecDeque<Post>) {
    let oldest = now().saturating_sub(KEPT_FOR.as_secs() * 1000);
    while posts.len() > KEPT || posts.front().is_some_and(|post| post.at < oldest) {
        posts.pop_front();
    }
}
