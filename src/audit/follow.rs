//! Bodies that tell a record how far they got.

use std::cell::Cell;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http_body::{Body as HttpBody, Frame, SizeHint};

use super::record::Facts;
use crate::body::{Body, BodyError};

/// The client's body, counted.
pub(super) struct Counted {
    body: Body,
    bytes: Rc<Cell<u64>>,
}

impl Counted {
    pub(super) fn new(body: Body, bytes: Rc<Cell<u64>>) -> Self {
        Self { body, bytes }
    }
}

impl HttpBody for Counted {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let frame = ready!(Pin::new(&mut self.body).poll_frame(cx));
        if let Some(Ok(frame)) = &frame {
            self.bytes
                .set(self.bytes.get().saturating_add(frame_length(frame)));
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

fn frame_length(frame: &Frame<Bytes>) -> u64 {
    let length = frame.data_ref().map_or(0, Bytes::len);
    u64::try_from(length).unwrap_or(u64::MAX)
}

/// The answer's body, which the record follows to its end: they are one thing, made once.
impl HttpBody for Facts {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let Some(body) = &mut self.body else {
            return Poll::Ready(None);
        };
        let frame = ready!(Pin::new(body).poll_frame(cx));
        match &frame {
            Some(Ok(frame)) => {
                self.bytes_out = self.bytes_out.saturating_add(frame_length(frame));
            }
            Some(Err(error)) => self.broke(error),
            None => self.ended(),
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.as_ref().is_none_or(|body| body.is_end_stream())
    }

    fn size_hint(&self) -> SizeHint {
        self.body
            .as_ref()
            .map_or_else(|| SizeHint::with_exact(0), |body| body.size_hint())
    }
}

impl Facts {
    /// Whether everything there is was handed over. A connection stops asking once it has as many
    /// bytes as it was told of, so the end of the stream may never be polled.
    pub(super) fn all_sent(&self) -> bool {
        self.is_end_stream() || self.expected == Some(self.bytes_out)
    }
}
