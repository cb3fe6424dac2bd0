//! What a publish costs, by how many listen: `cargo bench`. Ratios within one run count, absolute times do not.

#![allow(missing_docs, clippy::unwrap_used, reason = "a benchmark")]

use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use futures::StreamExt;
use tower_sse::{Cursor, Event, Hub, HubStream, Subscription};

/// Listeners that sleep, as bodies on quiet connections do.
fn listeners(hub: &Hub, count: usize) -> Vec<HubStream> {
    let mut cx = std::task::Context::from_waker(futures::task::noop_waker_ref());
    let open = || hub.stream(Subscription::anonymous().topic("t"), Cursor::Absent).unwrap();
    let mut streams: Vec<_> = std::iter::repeat_with(open).take(count).collect();
    for stream in &mut streams {
        while stream.poll_next_unpin(&mut cx).is_ready() {}
    }
    streams
}

/// The call alone: more than 32 listeners are woken by a task, on another thread here.
fn publish(c: &mut Criterion) {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let mut group = c.benchmark_group("publish");
    for count in [0, 1, 10, 1_000, 10_000, 100_000] {
        let hub = Hub::builder().build().unwrap();
        let _entered = runtime.enter();
        let streams = listeners(&hub, count);
        group.bench_function(BenchmarkId::from_parameter(count), |b| {
            b.iter(|| hub.topic("t").publish_now(Event::text("tick", "0123456789")).unwrap());
        });
        drop(streams);
    }
    group.finish();
}

/// A read of one event by each of a thousand, without a socket.
fn deliver(c: &mut Criterion) {
    let mut cx = std::task::Context::from_waker(futures::task::noop_waker_ref());
    let hub = Hub::builder().build().unwrap();
    let mut streams = listeners(&hub, 1_000);
    c.bench_function("deliver to 1000", |b| {
        b.iter(|| {
            hub.topic("t").publish_now(Event::text("tick", "0123456789")).unwrap();
            for stream in &mut streams {
                while stream.poll_next_unpin(&mut cx).is_ready() {}
            }
        });
    });
}

criterion_group!(benches, publish, deliver);
criterion_main!(benches);
