//! News. A page that reconnects receives every post that it missed.

use std::collections::VecDeque;
use std::time::Duration;

use tower_sse::{Hub, Position, ReceivedEvent};

use crate::error::{Error, text};
use crate::events::Post;
use crate::replica::{Follower, Shared, lock, new_id, now, value};
use crate::sessions::User;

pub(crate) const TOPIC: &str = "feed";
pub(crate) const MAX_POSTS: usize = 100;
pub(crate) const MAX_AGE: Duration = Duration::from_secs(3600);
const MAX_TEXT: usize = 500;

#[derive(Clone)]
pub(crate) struct Feed {
    hub: Hub,
    posts: Shared<VecDeque<Post>>,
}

impl Feed {
    pub(crate) fn new(hub: Hub) -> Self {
        Self { hub, posts: Shared::default() }
    }

    /// Returns the posts, the newest last.
    pub(crate) fn list(&self) -> Vec<Post> {
        let mut posts = lock(&self.posts);
        trim(&mut posts);
        posts.iter().cloned().collect()
    }

    pub(crate) async fn post_news(&self, author: User, news: &str) -> Result<Position, Error> {
        let post = Post { id: new_id(), author: author.id.to_owned(), text: text(news, MAX_TEXT)?, at: now() };
        Ok(self.hub.topic(TOPIC).send(&post).await?.position)
    }
}

impl Follower for Feed {
    fn topics(&self) -> Vec<String> {
        vec![TOPIC.to_owned()]
    }

    fn apply(&self, event: &ReceivedEvent) {
        let Some(post) = value::<Post>(event) else { return };
        let mut posts = lock(&self.posts);
        posts.push_back(post);
        trim(&mut posts);
    }

    fn clear(&self) {
        lock(&self.posts).clear();
    }
}

/// Applies the retention of the hub. A shared log may retain older posts.
fn trim(posts: &mut VecDeque<Post>) {
    let oldest = now().saturating_sub(MAX_AGE.as_secs() * 1000);
    while posts.len() > MAX_POSTS || posts.front().is_some_and(|post| post.at < oldest) {
        posts.pop_front();
    }
}
