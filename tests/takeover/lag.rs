//! Readers that fall behind the retained events.

use std::time::Duration;

use tower_sse::{Event, GapReason, Hub, Retention};

use crate::deadline::takes_no_more;
use crate::site::Site;

#[tokio::test]
async fn a_slow_reader_receives_one_gap_and_continues() {
    const EVENTS: usize = 300;
    let brief = Retention::replay().count(20).bytes(64 << 20);
    let site = Site::narrow(Hub::builder().topic_retention(brief), |app| app).await;
    let peer = site.narrow_stream().await;
    let event = |n| Event::unnamed(format!("{n} {}", "x".repeat(10_000)));
    for n in 0..20 {
        site.hub.topic("t").publish(event(n)).await.unwrap();
        tokio::task::yield_now().await;
    }
    takes_no_more(&site.hub).await;
    // Without an `await`, so that this single thread reads nothing in between.
    for n in 20..EVENTS {
        site.hub.topic("t").publish_now(event(n)).unwrap();
    }
    let mut events = peer.reader.events();
    let (mut numbers, mut gaps) = (Vec::new(), 0);
    while numbers.last() != Some(&(EVENTS - 1)) {
        let event = events.next().await;
        match event.event.as_str() {
            "message" => numbers.push(event.data.split_once(' ').unwrap().0.parse::<usize>().unwrap()),
            "hub.gap" => {
                assert!(event.data.contains("lagged") && event.data.contains("\"t\""), "{}", event.data);
                gaps += 1;
                // The retained events follow.
                numbers.push(events.next().await.data.split_once(' ').unwrap().0.parse().unwrap());
                assert!(*numbers.last().unwrap() <= EVENTS - 20);
            }
            _ => {}
        }
    }
    let jumps = numbers.windows(2).filter(|pair| pair[1] != pair[0] + 1).count();
    assert!(numbers.is_sorted() && jumps == 1 && gaps == 1, "{gaps} gaps: {numbers:?}");
    assert_eq!(site.hub.stats().gaps(GapReason::Lagged), 1);
    site.delivers_as_taken(&mut events).await;
}

/// Heartbeats do not pile up while other bytes wait.
#[tokio::test]
async fn a_stuck_reader_gets_no_heartbeats_until_it_reads_again() {
    let beat = Duration::from_millis(20);
    let wide = Retention::replay().bytes(64 << 20);
    let site = Site::start(Hub::builder().heartbeat(beat).visible_heartbeat().topic_retention(wide)).await;
    let peer = site.narrow_stream().await;
    for n in 0..40 {
        site.publish("t", format!("{n} {}", "x".repeat(200_000))).await;
    }
    takes_no_more(&site.hub).await;
    tokio::time::sleep(20 * beat).await;
    let mut events = peer.reader.events();
    let mut beats = 0;
    let mut n = 0;
    while n < 40 {
        let event = events.next().await;
        if event.event == "hub.live" {
            beats += usize::from(n > 1);
        } else if event.event == "message" {
            assert!(event.data.starts_with(&format!("{n} ")));
            n += 1;
        }
    }
    assert!(beats < 5, "{beats}");
    // Heartbeats continue.
    while events.next().await.event != "hub.live" {}
}
