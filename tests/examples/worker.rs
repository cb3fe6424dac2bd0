//! The worker as a process, heard at an instance that is another.
#![cfg(unix)]

use tokio::task::spawn_blocking;

use crate::kit::{get, subscribe};
use crate::process::{Process, example, start_with};
use crate::redis_server::{FORGETFUL, RedisServer};

#[tokio::test]
async fn a_worker_is_heard_and_who_comes_late_gets_the_newest() {
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
async fn a_worker_without_a_broker_says_so() {
    for args in [&[][..], &["http://ada:s3cret@h"]] {
        let worker = spawn_blocking(move || Process::spawn(example("worker"), args)).await.unwrap();
        let (code, _, said) = worker.output().await;
        assert!(code == Some(2) && said.contains("where is the broker?") && !said.contains("s3cret"), "{said}");
    }
}
