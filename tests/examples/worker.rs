//! The example `worker` as a process, and a standalone hub that delivers its events.
#![cfg(unix)]

use tokio::task::spawn_blocking;

use crate::kit::{get, subscribe};
use crate::process::{Process, example, start_with};
use crate::redis_server::{FORGETFUL, RedisServer};

#[tokio::test]
async fn events_of_a_worker_reach_open_pages_and_a_late_page_gets_the_newest() {
    let Some(server) = RedisServer::start(FORGETFUL) else { return };
    let url = server.url();
    let args = ["--listen", "127.0.0.1:0", "--latest", "reports/", "--backplane", &url];
    let (_instance, addr) = start_with(args.map(str::to_owned).to_vec()).await;
    super::instances::ready(addr).await;
    let mut page = subscribe(addr, "/events?topic=reports/7").await;
    let worker = spawn_blocking(move || Process::spawn(example("worker"), &[&url])).await.unwrap();
    for percent in (0..=100).step_by(10) {
        let event = page.next_own().await;
        assert_eq!((event.event, event.data), ("progress".to_owned(), percent.to_string()));
        if percent == 50 {
            let mut late = get(addr, "/events?topic=reports/7").await.events();
            let newest = late.next_own().await;
            assert!(newest.data.parse::<u32>().unwrap() >= 50, "{}", newest.data);
        }
    }
    assert_eq!(page.next_own().await.event, "done");
    assert_eq!(worker.output().await.0, Some(0));
}

#[tokio::test]
async fn worker_without_a_broker_requires_its_url() {
    for args in [&[][..], &["http://ada:s3cret@h"]] {
        let worker = spawn_blocking(move || Process::spawn(example("worker"), args)).await.unwrap();
        let (code, _, error) = worker.output().await;
        assert!(code == Some(2) && error.contains("a broker URL is required") && !error.contains("s3cret"), "{error}");
    }
}
