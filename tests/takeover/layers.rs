//! Layers that change or delay a body, as an application may have them.

use std::collections::VecDeque;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::Error;
use axum::body::{Body, Bytes};
use http::Response;
use http_body::{Body as _, Frame, SizeHint};
use tokio::time::Sleep;

use crate::site::Passed;

/// Counts the frames and the end of a body.
pub fn watch(response: Response<Body>, passed: &Arc<Passed>) -> Response<Body> {
    response.map(|inner| Body::new(Watched { inner, passed: Arc::clone(passed), has_ended: false }))
}

struct Watched {
    inner: Body,
    passed: Arc<Passed>,
    has_ended: bool,
}

impl http_body::Body for Watched {
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        let frame = ready!(Pin::new(&mut self.inner).poll_frame(cx));
        match &frame {
            Some(_) => drop(self.passed.frames.fetch_add(1, Ordering::SeqCst)),
            None => {
                self.has_ended = true;
                self.passed.ended.fetch_add(1, Ordering::SeqCst);
            }
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        if !self.has_ended {
            self.passed.dropped.fetch_add(1, Ordering::SeqCst);
        }
    }
}

/// A body of a layer, between the body of the hub and the server.
pub struct Between {
    inner: Body,
    how: How,
    first: bool,
    out: VecDeque<Bytes>,
    kept: Vec<u8>,
    sleep: Option<Pin<Box<Sleep>>>,
    is_pending: bool,
}

#[derive(Clone, Copy, Debug)]
pub enum How {
    /// A text before the first frame, which the server may write together with it.
    Prefix(&'static str),
    /// A text before the first frame, which the server writes alone.
    PrefixAlone(&'static str),
    /// A text after the first frame, which the server may write together with it.
    Suffix(&'static str),
    /// Another first frame of the same length.
    Change,
    /// The first frame as an HTTP/1.1 chunk.
    Chunk,
    /// The first frame in two parts.
    Split,
    /// No frame before this many bytes are buffered.
    HoldBytes(usize),
    /// The first frame only after this time.
    HoldFor(Duration),
    /// A frame only when the next one is ready.
    LookAhead,
    /// The first poll is pending, so that the server writes the head alone.
    HeadFirst,
}

pub fn between(response: Response<Body>, how: How) -> Response<Body> {
    response.map(|inner| {
        Body::new(Between {
            inner,
            how,
            first: true,
            out: VecDeque::new(),
            kept: Vec::new(),
            sleep: None,
            is_pending: matches!(how, How::HeadFirst),
        })
    })
}

impl Between {
    fn take(&mut self, bytes: Bytes) {
        let first = std::mem::replace(&mut self.first, false);
        match self.how {
            How::Prefix(text) if first => self.out.extend([text.into(), bytes]),
            How::Suffix(text) if first => self.out.extend([bytes, text.into()]),
            How::PrefixAlone(text) if first => {
                self.out.push_back(text.into());
                self.kept = bytes.into();
            }
            How::Change if first => {
                let text = String::from_utf8(bytes.into()).unwrap();
                let (name, rest) = text.split_once("retry: ").unwrap();
                let (number, rest) = rest.split_at(1);
                let number = (number.parse::<u8>().unwrap() + 1) % 10;
                self.out.push_back(format!("{name}retry: {number}{rest}").into());
            }
            How::Chunk if first => {
                let text = std::str::from_utf8(&bytes).unwrap();
                self.out.push_back(format!("{:X}\r\n{text}\r\n", text.len()).into());
            }
            How::Split if first => self.out.extend([bytes.slice(..5), bytes.slice(5..)]),
            How::HoldBytes(count) => {
                self.kept.extend_from_slice(&bytes);
                if self.kept.len() >= count {
                    self.out.push_back(std::mem::take(&mut self.kept).into());
                }
            }
            How::HoldFor(time) if first => {
                self.sleep = Some(Box::pin(tokio::time::sleep(time)));
                self.kept = bytes.into();
            }
            How::LookAhead => {
                let before = std::mem::replace(&mut self.kept, bytes.into());
                if !first {
                    self.out.push_back(before.into());
                }
            }
            _ => self.out.push_back(bytes),
        }
    }

    fn release(&mut self) {
        let kept = std::mem::take(&mut self.kept);
        if !kept.is_empty() {
            self.out.push_back(kept.into());
        }
    }
}

impl http_body::Body for Between {
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        loop {
            if std::mem::take(&mut self.is_pending) {
                cx.waker().wake_by_ref();
                return Poll::Pending;
            }
            if let Some(bytes) = self.out.pop_front() {
                self.is_pending = matches!(self.how, How::PrefixAlone(_)) && !self.kept.is_empty();
                return Poll::Ready(Some(Ok(Frame::data(bytes))));
            }
            if matches!(self.how, How::PrefixAlone(_)) && !self.kept.is_empty() {
                self.release();
                continue;
            }
            if let Some(sleep) = &mut self.sleep {
                ready!(sleep.as_mut().poll(cx));
                self.sleep = None;
                self.release();
                continue;
            }
            match ready!(Pin::new(&mut self.inner).poll_frame(cx)) {
                Some(frame) => self.take(frame?.into_data().unwrap()),
                None if self.kept.is_empty() => return Poll::Ready(None),
                None => self.release(),
            }
        }
    }
}

/// Polls the body in another task, which forwards its frames.
pub fn polled_in_another_task(response: Response<Body>) -> Response<Body> {
    response.map(|mut inner| {
        let (sender, receiver) = tokio::sync::mpsc::channel(4);
        tokio::spawn(async move {
            while let Some(frame) = std::future::poll_fn(|cx| Pin::new(&mut inner).poll_frame(cx)).await {
                if sender.send(frame.map(|frame| frame.into_data().unwrap())).await.is_err() {
                    return;
                }
            }
        });
        Body::from_stream(futures::stream::unfold(receiver, async |mut receiver| {
            Some((receiver.recv().await?, receiver))
        }))
    })
}
