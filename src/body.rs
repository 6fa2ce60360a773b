//! Bodies: streamed, never gathered, one type for every answer.

use std::fmt;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body::{Body as HttpBody, Frame, SizeHint};

/// What goes wrong while a body streams. The text is for records, never for clients.
pub type BodyError = Box<dyn std::error::Error + Send + Sync>;

/// A body of either direction. It stays on the core that made it, so it need not be `Send`.
pub struct Body(Kind);

enum Kind {
    /// All of it is here.
    Whole(Bytes),
    Stream(Pin<Box<dyn HttpBody<Data = Bytes, Error = BodyError>>>),
}

impl Body {
    /// A body that comes piece by piece.
    pub fn stream(body: impl HttpBody<Data = Bytes, Error = BodyError> + 'static) -> Self {
        Self(Kind::Stream(Box::pin(body)))
    }

    /// A body that comes piece by piece and has its place on the heap.
    pub fn boxed(body: Pin<Box<dyn HttpBody<Data = Bytes, Error = BodyError>>>) -> Self {
        Self(Kind::Stream(body))
    }

    /// Whether all of it is here: nobody has to wait for any of it.
    pub fn is_whole(&self) -> bool {
        matches!(self.0, Kind::Whole(_)) || self.is_end_stream()
    }
}

/// A body without bytes.
pub const fn empty() -> Body {
    Body(Kind::Whole(Bytes::new()))
}

/// A body of these bytes.
pub fn full(bytes: impl Into<Bytes>) -> Body {
    Body(Kind::Whole(bytes.into()))
}

impl HttpBody for Body {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        match &mut self.0 {
            Kind::Stream(body) => body.as_mut().poll_frame(cx),
            Kind::Whole(bytes) if bytes.is_empty() => Poll::Ready(None),
            Kind::Whole(bytes) => Poll::Ready(Some(Ok(Frame::data(std::mem::take(bytes))))),
        }
    }

    fn is_end_stream(&self) -> bool {
        match &self.0 {
            Kind::Whole(bytes) => bytes.is_empty(),
            Kind::Stream(body) => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.0 {
            Kind::Whole(bytes) => {
                SizeHint::with_exact(u64::try_from(bytes.len()).unwrap_or(u64::MAX))
            }
            Kind::Stream(body) => body.size_hint(),
        }
    }
}

impl fmt::Debug for Body {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Body").finish_non_exhaustive()
    }
}
