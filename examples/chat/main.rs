//! A chat whose answers grow word by word. Each answer is a run: it begins with a question, has one
//! writer and ends. An open answer survives a reload of the page, a dropped network and a deploy.
//!
//! ```sh
//! cargo run --example chat           # then open http://127.0.0.1:3000
//! ```
//!
//! Copy the address of the page into a second tab: both tabs show the same answer. With two
//! instances, a question at one is answered at both. Kill the instance that writes an answer, and
//! the page at the other instance reports within about seven seconds that the answer was
//! interrupted:
//!
//! ```sh
//! cargo run --features redis --example chat -- --backplane redis://127.0.0.1:6379 127.0.0.1:3001
//! cargo run --features redis --example chat -- --backplane redis://127.0.0.1:6379 127.0.0.1:3002
//! ```

#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a program with a console")]

mod chats;
mod model;
mod options;
#[path = "../shared/shutdown.rs"]
mod shutdown;
mod web;

use std::error::Error;
use std::process::ExitCode;
use std::time::Duration;

use tokio::net::TcpListener;
use tokio::time::timeout;
use tower_sse::{Hub, Retention, TopicFilter};

use chats::Chats;
use options::Options;
use shutdown::shutdown_signal;

/// The time after which the other instances end the answers of an instance that died. The default
/// of 15 s is a long time in a chat.
const PEER_TIMEOUT: Duration = Duration::from_secs(5);
/// The time for which an instance remembers a chat that nothing happens in.
const CHAT_AGE: Duration = Duration::from_secs(24 * 3600);
/// The time that the answers of this instance have to end before a shutdown.
const LAST_ANSWERS: Duration = Duration::from_secs(20);
/// The time over which browsers reconnect after the drain.
const WINDOW: Duration = Duration::from_secs(1);

async fn run(options: Options) -> Result<(), Box<dyn Error>> {
    let signal = shutdown_signal()?;
    let listener = TcpListener::bind(options.listen).await.map_err(|error| format!("{}: {error}", options.listen))?;
    let address = listener.local_addr()?;
    let settings = Hub::builder()
        .instance_name(address.to_string())
        .retry(Duration::from_secs(1))
        .peer_timeout(PEER_TIMEOUT)
        .retention_for(TopicFilter::prefix(chats::TOPICS), Retention::latest_per_key().age(CHAT_AGE));
    let hub = options.configure(settings).build()?;
    let chats = Chats::new(hub.clone());
    println!("open http://{address}");
    axum::serve(hub.listener(listener), web::router(chats.clone()))
        .with_graceful_shutdown(async move {
            signal.await;
            // A drained hub publishes nothing, so the answers end first.
            let _ = timeout(LAST_ANSWERS, chats.stop()).await;
            hub.drain(WINDOW).await;
        })
        .await?;
    Ok(())
}

#[tokio::main]
async fn main() -> ExitCode {
    let options = match Options::parse(std::env::args().skip(1)) {
        Ok(options) => options,
        Err(problem) => {
            eprintln!("{problem}\n\n{}", options::USAGE);
            return ExitCode::from(2);
        }
    };
    match run(options).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}
