//! Any control message at the broker: an instance skips what it cannot read, and carries out the
//! command that follows.
#![no_main]

use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use tower_sse::backplane::{Backplane, ControlStream, Memory};
use tower_sse::{Cursor, Disconnect, EndReason, Hub, SubscriberItem, Subscription};

static RUNTIME: LazyLock<tokio::runtime::Runtime> =
    LazyLock::new(|| tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap());

fuzz_target!(|bytes: &[u8]| {
    RUNTIME.block_on(async {
        let log = Memory::new();
        let [one, two] = [(); 2].map(|()| Hub::builder().backplane(log.clone()).build().unwrap());
        while !one.is_ready() || !two.is_ready() {
            tokio::time::sleep(std::time::Duration::from_millis(1)).await;
        }
        // The version of the format and the sender, so that the rest is read as names and entries.
        let message: Vec<u8> = [1, 7, 0, 0, 0, 0, 0, 0, 0].iter().chain(bytes).copied().collect();
        for stream in [ControlStream::Commands, ControlStream::Presence] {
            log.broadcast(stream, bytes.to_vec().into()).await.unwrap();
            log.broadcast(stream, message.clone().into()).await.unwrap();
        }
        let Ok(mut page) = one.subscribe(Subscription::for_user("ada"), Cursor::Absent) else { return };
        two.user("ada").disconnect(Disconnect::now()).await.unwrap();
        // The message may itself be a command that ends the stream.
        while !matches!(page.next().await, Some(SubscriberItem::End(EndReason::Disconnected)) | None) {}
    });
});
