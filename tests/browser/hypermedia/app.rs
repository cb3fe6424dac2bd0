use std::sync::{Arc, Mutex};

use axum::extract::State;
use axum::http::header::CACHE_CONTROL;
use axum::response::{Html, IntoResponse};
use axum::{Router, routing::get};
use tower_sse::{Event, EventStream, Hub, PublishError, StreamRequest, Subscription};

#[derive(Clone)]
struct App {
    hub: Hub,
    head: String,                         // the markup above its blank line
    feed: String,                         // the markup below its blank line
    headlines: Arc<Mutex<Vec<Headline>>>, // instead of a database; the newest first
}

#[derive(Clone)]
struct Headline {
    id: u64,
    text: String,
}

fn routes(app: App) -> Router {
    Router::new().route("/news", get(page)).route("/feed", get(feed)).route("/events", get(events)).with_state(app)
}

async fn page(State(app): State<App>) -> impl IntoResponse {
    let html = format!("<!doctype html><head>{}</head><body>{}</body>", app.head, app.render());
    ([(CACHE_CONTROL, "no-store")], Html(html))
}

async fn feed(State(app): State<App>) -> impl IntoResponse {
    // With this mode, Datastar opens a new stream also if the position is the same.
    ([("cache-control", "no-store"), ("datastar-mode", "replace")], Html(app.render()))
}

async fn events(State(app): State<App>, request: StreamRequest) -> EventStream {
    app.hub.respond(request, subscription())
}

async fn post_headline(app: &App, headline: Headline) -> Result<(), PublishError> {
    app.headlines.lock().unwrap().insert(0, headline.clone()); // first store, then publish
    for event in headline_events(&headline) {
        app.hub.topic("news").publish(event).await?;
    }
    Ok(())
}

impl App {
    fn render(&self) -> String {
        let position = self.hub.position().to_string(); // first the position, then the query
        let items: String = self.headlines.lock().unwrap().iter().map(item).collect();
        self.feed.replace("{position}", &position).replace("{items}", &items)
    }
}

fn item(headline: &Headline) -> String {
    format!("<li id='headline-{}'>{}</li>", headline.id, escape(&headline.text))
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('"', "&quot;").replace('\'', "&#39;")
}
