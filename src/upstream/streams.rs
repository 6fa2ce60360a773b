//! What bounds the two bodies of an exchange, in size and time, whatever the protocol.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http_body::{Body as HttpBody, Frame, SizeHint};
use tokio::time::{Instant, Sleep, sleep_until};

use super::RequestBodyFault;
use super::headers::hops;
use crate::body::Body;
use crate::request::Rules;

/// Why a body ended before its end, for records.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum StreamFault {
    /// Nothing moved in either direction for the route's `idle_timeout`.
    #[error("the exchange with the upstream was idle for too long")]
    Idle,
    /// The exchange took longer than the route's `total_timeout`.
    #[error("the exchange with the upstream took too long")]
    Total,
    /// The client's body failed while the answer was under way.
    #[error("the request body failed: {0}")]
    RequestBody(#[from] RequestBodyFault),
    /// The answer had ended before the client's body did.
    #[error("the exchange with the upstream is over")]
    Over,
}

/// A timer that costs next to nothing while bytes flow: it is moved only when it fires before its
/// time, or when it would fire after it. One that is kept with a connection is registered once for
/// many exchanges.
#[derive(Debug, Default)]
pub struct Alarm(Option<Pin<Box<Sleep>>>);

impl Alarm {
    /// Ready when `due` has passed. To be asked only when there is nothing else to do.
    pub fn poll(&mut self, due: Instant, cx: &mut Context<'_>) -> Poll<()> {
        let sleep = self.0.get_or_insert_with(|| Box::pin(sleep_until(due)));
        if sleep.deadline() > due {
            sleep.as_mut().reset(due);
        }
        loop {
            ready!(sleep.as_mut().poll(cx));
            if due <= Instant::now() {
                return Poll::Ready(());
            }
            sleep.as_mut().reset(due);
        }
    }
}

/// The client's body on its way to the upstream: bounded in size, cleaned of forbidden trailers.
pub(super) struct Upload {
    inner: Body,
    left: u64,
    rules: Arc<Rules>,
    /// When its last piece came.
    moved_at: Instant,
    /// The first piece, until more was taken: a connection may turn out to be closed before
    /// anything is written to it.
    first: First,
}

#[derive(Debug)]
enum First {
    /// Nothing was taken yet, or the first piece was put back.
    Whole(Option<Bytes>),
    Taken(Bytes),
    Gone,
}

impl Upload {
    /// Forwards `inner`, at most `max` bytes of it. `None` if there is nothing in it.
    pub(super) fn new(inner: Body, max: u64, rules: &Arc<Rules>, now: Instant) -> Option<Self> {
        (!inner.is_end_stream()).then(|| Self {
            inner,
            left: max,
            rules: Arc::clone(rules),
            moved_at: now,
            first: First::Whole(None),
        })
    }

    /// When its last piece came, or when the exchange began.
    pub(super) fn moved_at(&self) -> Instant {
        self.moved_at
    }

    /// Begins anew; `false` if too much was taken for that.
    pub(super) fn rewind(&mut self) -> bool {
        match std::mem::replace(&mut self.first, First::Gone) {
            whole @ First::Whole(_) => self.first = whole,
            First::Taken(piece) => {
                // It is counted again when it is taken again.
                self.left = self.left.saturating_add(length(&piece));
                self.first = First::Whole(Some(piece));
            }
            First::Gone => return false,
        }
        true
    }
}

fn length(piece: &Bytes) -> u64 {
    u64::try_from(piece.len()).unwrap_or(u64::MAX)
}

impl std::fmt::Debug for Upload {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Upload")
            .field("left", &self.left)
            .finish_non_exhaustive()
    }
}

impl HttpBody for Upload {
    type Data = Bytes;
    type Error = RequestBodyFault;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, RequestBodyFault>>> {
        let this = &mut *self;
        let put_back = match &mut this.first {
            First::Whole(piece) => piece.take(),
            First::Taken(_) | First::Gone => None,
        };
        let mut frame = match put_back {
            Some(piece) => Frame::data(piece),
            None => match ready!(Pin::new(&mut this.inner).poll_frame(cx)) {
                Some(Ok(frame)) => frame,
                Some(Err(_)) => return Poll::Ready(Some(Err(RequestBodyFault::BrokenOff))),
                None => {
                    this.first = First::Gone;
                    return Poll::Ready(None);
                }
            },
        };
        this.moved_at = Instant::now();
        if let Some(data) = frame.data_ref() {
            match this.left.checked_sub(length(data)) {
                Some(left) => this.left = left,
                None => return Poll::Ready(Some(Err(RequestBodyFault::TooLarge))),
            }
        }
        if let Some(trailers) = frame.trailers_mut() {
            hops::clean_request_trailers(trailers, &this.rules);
        }
        this.first = match (&this.first, frame.data_ref()) {
            (First::Whole(_), Some(data)) => First::Taken(data.clone()),
            _ => First::Gone,
        };
        Poll::Ready(Some(Ok(frame)))
    }

    fn is_end_stream(&self) -> bool {
        !matches!(self.first, First::Whole(Some(_))) && self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        match &self.first {
            First::Whole(Some(piece)) => {
                let hint = self.inner.size_hint();
                let here = length(piece);
                let mut whole = SizeHint::new();
                whole.set_lower(hint.lower().saturating_add(here));
                if let Some(upper) = hint.upper() {
                    whole.set_upper(upper.saturating_add(here));
                }
                whole
            }
            First::Whole(None) | First::Taken(_) | First::Gone => self.inner.size_hint(),
        }
    }
}
