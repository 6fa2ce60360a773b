//! Bodies that tell a record how far they got.

use std::cell::Cell;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http_body::{Body as HttpBody, Frame, SizeHint};

use super::record::Record;
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
        let frame = ready!(self.body.as_mut().poll_frame(cx));
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

/// The answer's body with the record of its request.
pub(super) struct Followed {
    body: Body,
    record: Record,
    expected: Option<u64>,
}

impl Followed {
    pub(super) fn new(body: Body, record: Record) -> Self {
        Self {
            expected: body.size_hint().exact(),
            body,
            record,
        }
    }

    /// Whether everything there is was handed over. A connection stops asking once it has as many
    /// bytes as it was told of, so the end of the stream may never be polled.
    fn all_sent(&self) -> bool {
        self.body.is_end_stream() || self.expected == Some(self.record.sent_so_far())
    }
}

impl HttpBody for Followed {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let frame = ready!(self.body.as_mut().poll_frame(cx));
        match &frame {
            Some(Ok(frame)) => self.record.sent(frame_length(frame)),
            Some(Err(error)) => self.record.broke(error),
            None => self.record.ended(),
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

impl Drop for Followed {
    // Runs before the record's own destructor, which writes the line.
    fn drop(&mut self) {
        if self.all_sent() {
            self.record.ended();
        }
    }
}
