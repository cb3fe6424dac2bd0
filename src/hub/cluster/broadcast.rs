//! Sending control messages.

use bytes::Bytes;

use super::shared_log::SharedLog;
use crate::backplane::{Answer, ControlStream, in_time};
use crate::hub::Hub;
use crate::hub::peers::message::{Body, Message};

impl Hub {
    /// Broadcasts a control message within the publish timeout.
    pub(super) async fn broadcast(&self, shared: &SharedLog, body: Body) -> Answer<()> {
        let bytes = Message::encode(shared.instance_id, &body).into();
        self.broadcast_bytes(shared, stream_of(&body), bytes).await
    }

    /// Broadcasts an encoded control message within the publish timeout. After the goodbye, reports
    /// about this instance are not sent, because they would look like those of an instance that is
    /// alive.
    pub(super) async fn broadcast_bytes(&self, shared: &SharedLog, to: ControlStream, bytes: Bytes) -> Answer<()> {
        if to == ControlStream::Presence && shared.outbox.lock().is_closed {
            return Ok(());
        }
        self.send(shared, to, bytes).await
    }

    /// Broadcasts the goodbye of this instance.
    pub(super) async fn send_goodbye(&self, shared: &SharedLog) -> Answer<()> {
        let goodbye = Message::encode(shared.instance_id, &Body::Goodbye).into();
        self.send(shared, ControlStream::Presence, goodbye).await
    }

    async fn send(&self, shared: &SharedLog, to: ControlStream, bytes: Bytes) -> Answer<()> {
        in_time(self.settings().publish_timeout, shared.backplane.broadcast(to, bytes)).await
    }
}

/// Returns the control stream for an entry.
pub(super) fn stream_of(body: &Body) -> ControlStream {
    match body {
        Body::Command(_) | Body::Stop(..) => ControlStream::Commands,
        _ => ControlStream::Presence,
    }
}
