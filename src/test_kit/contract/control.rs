//! The rules of control messages, and of single-use and shared values.

use std::pin::pin;
use std::time::Duration;

use bytes::Bytes;
use futures::future::{Either, select, try_join_all};
use tokio::time::sleep;

use super::rule::{Logs, Outcome, PAUSE, bytes, call, ensure, ensure_eq, is_pending, next, text};
use crate::backplane::{Backplane, ControlStream, MAX_SHARED_BYTES};

/// More messages than a listener yields if it continues after its mark.
const MANY: usize = 2_000;
/// More messages than an adapter retains of one control stream.
const DISPLACING: usize = 11_264;

/// Sends a message again and again while a future waits for one, because a listener connects at its
/// first poll, and misses the messages before.
async fn during_broadcasts<T>(
    log: &dyn Backplane,
    message: &'static str,
    received: impl Future<Output = Outcome<T>>,
) -> Outcome<T> {
    let broadcasts = async {
        loop {
            if let Err(error) =
                call(log.broadcast(ControlStream::Presence, Bytes::from_static(message.as_bytes()))).await
            {
                return error;
            }
            sleep(PAUSE).await;
        }
    };
    match select(pin!(received), pin!(broadcasts)).await {
        Either::Left((received, _)) => received,
        Either::Right((error, _)) => Err(error),
    }
}

pub(super) async fn a_listener_without_a_mark_gets_new_messages(logs: &Logs<'_>) -> Outcome {
    let (log, other) = (logs.connect(), logs.connect());
    call(log.broadcast(ControlStream::Commands, Bytes::from_static(b"before"))).await?;
    let (mut one, mut two) = (log.listen(None), other.listen(None));
    ensure!(is_pending(&mut one) && is_pending(&mut two), "a listener yields");
    let received = async { Ok([next(&mut one).await?, next(&mut two).await?]) };
    for control in during_broadcasts(&*log, "now", received).await? {
        ensure_eq!(text(&control.message), "now", "the first message of a listener without a mark");
    }
    Ok(())
}

/// A listener that reconnects continues after the last message that it received.
pub(super) async fn a_listener_with_a_mark_gets_the_messages_after_it(logs: &Logs<'_>) -> Outcome {
    let log = logs.connect();
    let mut listener = log.listen(None);
    ensure!(is_pending(&mut listener), "a listener yields");
    let last = during_broadcasts(&*log, "first", next(&mut listener)).await?;
    drop(listener);
    let expected: Vec<_> = (0..100).map(|n| n.to_string()).collect();
    for message in &expected {
        call(log.broadcast(ControlStream::Presence, bytes(message))).await?;
    }
    let (mut listener, mut received) = (log.listen(Some(last.mark)), Vec::new());
    let mut count = 0;
    while received.len() < expected.len() {
        let control = next(&mut listener).await?;
        count += 1;
        ensure!(count < MANY, "a listener does not yield the messages after its mark within {MANY} messages");
        received.extend(Some(text(&control.message)).filter(|text| text != "first"));
    }
    ensure_eq!(received, expected, "the messages after the mark");
    Ok(())
}

/// A listener that reconnects after many connections have changed still receives every command.
pub(super) async fn presence_messages_displace_no_commands(logs: &Logs<'_>) -> Outcome {
    let log = logs.connect();
    let mut listener = log.listen(None);
    ensure!(is_pending(&mut listener), "a listener yields");
    let first = during_broadcasts(&*log, "first", next(&mut listener)).await?;
    drop(listener);
    for command in ["1", "2"] {
        call(log.broadcast(ControlStream::Commands, bytes(command))).await?;
        for _ in 0..DISPLACING / 512 {
            let presence = (0..512).map(|_| log.broadcast(ControlStream::Presence, Bytes::from_static(b"presence")));
            call(try_join_all(presence)).await?;
        }
    }
    let (mut listener, mut received) = (log.listen(Some(first.mark)), Vec::new());
    for _ in 0..2 * DISPLACING {
        let message = text(&next(&mut listener).await?.message);
        if message.len() == 1 {
            received.push(message);
        }
        if received.len() == 2 {
            break;
        }
    }
    ensure_eq!(received, ["1", "2"], "the commands that were sent before many presence messages");
    Ok(())
}

/// A mark counts for both streams, also if the listener has received no message of one of them.
pub(super) async fn a_mark_is_a_position_in_both_control_streams(logs: &Logs<'_>) -> Outcome {
    let log = logs.connect();
    call(log.broadcast(ControlStream::Commands, Bytes::from_static(b"before"))).await?;
    let mut listener = log.listen(None);
    ensure!(is_pending(&mut listener), "a listener yields");
    let last = during_broadcasts(&*log, "first", next(&mut listener)).await?;
    drop(listener);
    call(log.broadcast(ControlStream::Presence, Bytes::from_static(b"presence"))).await?;
    call(log.broadcast(ControlStream::Commands, Bytes::from_static(b"command"))).await?;
    let (mut listener, mut received, mut count) = (log.listen(Some(last.mark)), Vec::new(), 0);
    while received.len() < 2 {
        received.extend(Some(text(&next(&mut listener).await?.message)).filter(|text| text != "first"));
        count += 1;
        ensure!(count < MANY, "a listener does not yield the messages after its mark within {MANY} messages");
    }
    received.sort_unstable();
    ensure_eq!(received, ["command", "presence"], "the messages of both streams after the mark");
    Ok(())
}

pub(super) async fn a_shared_value_is_read_by_every_caller(logs: &Logs<'_>) -> Outcome {
    let (log, other) = (logs.connect(), logs.connect());
    let minute = Duration::from_secs(60);
    ensure_eq!(call(log.get_shared("a")).await?, None, "the value of a key that was never stored");
    for value in [Bytes::from_static(b"1"), Bytes::new(), Bytes::from(vec![0xff; MAX_SHARED_BYTES])] {
        call(log.put_shared("a", value.clone(), minute)).await?;
        call(other.put_shared("b \n:*>", Bytes::from_static(b"of b"), minute)).await?;
        for reader in [&log, &other, &log] {
            let read = call(reader.get_shared("a")).await?;
            ensure!(read.as_ref() == Some(&value), "a stored value of {} bytes is not read", value.len());
        }
    }
    ensure_eq!(call(log.get_shared("b \n:*>")).await?, Some(bytes("of b")), "the value of another key");
    ensure_eq!(call(log.take("a")).await?, None, "the single-use value of the key of a shared value");
    Ok(())
}

pub(super) async fn a_value_that_is_put_once_is_taken_once(logs: &Logs<'_>) -> Outcome {
    let (log, other) = (logs.connect(), logs.connect());
    let minute = Duration::from_secs(60);
    call(log.put_once("a", Bytes::from_static(b"1"), minute)).await?;
    call(log.put_once("a", Bytes::from_static(b"2"), minute)).await?;
    let callers = (0..10).map(|n| call(if n % 2 == 0 { log.take("a") } else { other.take("a") }));
    let taken: Vec<_> = try_join_all(callers).await?.iter().flatten().map(text).collect();
    ensure_eq!(taken, ["2"], "the values that ten simultaneous callers on two connections took");
    call(log.put_once("d", Bytes::from_static(b"4"), minute)).await?;
    ensure_eq!(call(other.take("d")).await?, Some(bytes("4")), "the value that another connection stored");
    ensure_eq!(call(log.take("d")).await?, None, "the value that another connection took");
    ensure_eq!(call(log.take("b")).await?, None, "the value of a key that was never stored");
    Ok(())
}

pub(super) async fn a_value_that_is_put_once_expires(logs: &Logs<'_>) -> Outcome {
    let log = logs.connect();
    call(log.put_once("kept", Bytes::from_static(b"1"), Duration::from_secs(30))).await?;
    call(log.put_once("c", Bytes::from_static(b"3"), Duration::from_secs(1))).await?;
    sleep(Duration::from_millis(1_100)).await;
    ensure_eq!(call(log.take("kept")).await?, Some(bytes("1")), "a value before its time");
    ensure_eq!(call(log.take("c")).await?, None, "a value after its time");
    Ok(())
}
