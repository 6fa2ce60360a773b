//! The two bodies of an exchange over HTTP/2. hyper's connection task takes the one, the client's
//! connection takes the other; [`Exchange`] ties them together so that neither outlives the other.

use std::cell::{Cell, RefCell};
use std::fmt;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker, ready};
use std::time::Duration;

use bytes::Bytes;
use http_body::{Body as HttpBody, Frame, SizeHint};
use hyper::body::Incoming;
use tokio::time::Instant;

use crate::body::BodyError;
use crate::upstream::RequestBodyFault;
use crate::upstream::headers::hops;
use crate::upstream::pool::Stream;
use crate::upstream::streams::{Alarm, StreamFault, Upload};

/// What the two bodies of one exchange know of each other.
#[derive(Debug)]
pub(in crate::upstream) struct Exchange {
    moved_at: Cell<Instant>,
    idle: Duration,
    ends_at: Instant,
    fault: Cell<Option<RequestBodyFault>>,
    sent: Cell<bool>,
    over: Cell<bool>,
    sender: RefCell<Option<Waker>>,
}

impl Exchange {
    /// An exchange that began now.
    pub(in crate::upstream) fn begin(idle: Duration, ends_at: Instant) -> Rc<Self> {
        Rc::new(Self {
            moved_at: Cell::new(Instant::now()),
            idle,
            ends_at,
            fault: Cell::new(None),
            sent: Cell::new(false),
            over: Cell::new(false),
            sender: RefCell::new(None),
        })
    }

    /// When something moved last in either direction.
    pub(super) fn moved_at(&self) -> Instant {
        self.moved_at.get()
    }

    /// What went wrong with the client's body.
    pub(super) fn fault(&self) -> Option<RequestBodyFault> {
        self.fault.get()
    }

    /// Whether the client's body was handed over to its last byte.
    pub(super) fn sent(&self) -> bool {
        self.sent.get()
    }

    /// Ends the exchange: a request body that is still under way stops here.
    pub(in crate::upstream) fn end(&self) {
        self.over.set(true);
        let sender = self.sender.borrow_mut().take();
        if let Some(sender) = sender {
            sender.wake();
        }
    }

    fn touch(&self) {
        self.moved_at.set(Instant::now());
    }

    /// When the exchange is to be given up if nothing moves until then.
    fn due(&self) -> Instant {
        (self.moved_at.get() + self.idle).min(self.ends_at)
    }

    fn expired(&self) -> StreamFault {
        if Instant::now() >= self.ends_at {
            StreamFault::Total
        } else {
            StreamFault::Idle
        }
    }
}

/// The client's body on its way to the upstream.
pub(in crate::upstream) struct Outbound {
    upload: Option<Upload>,
    exchange: Rc<Exchange>,
    alarm: Alarm,
}

impl Outbound {
    /// The body of this exchange's request, if it has one.
    pub(in crate::upstream) fn new(upload: Option<Upload>, exchange: Rc<Exchange>) -> Self {
        if upload.is_none() {
            exchange.sent.set(true);
        }
        Self {
            upload,
            exchange,
            alarm: Alarm::default(),
        }
    }

    /// The client's body, of which nothing was taken.
    pub(super) fn take_back(self) -> Option<Upload> {
        self.upload
    }

    fn fail(&self, fault: RequestBodyFault) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        self.exchange.fault.set(Some(fault));
        Poll::Ready(Some(Err(fault.into())))
    }
}

impl fmt::Debug for Outbound {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Outbound").finish_non_exhaustive()
    }
}

impl HttpBody for Outbound {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let this = &mut *self;
        if this.exchange.over.get() {
            return Poll::Ready(Some(Err(StreamFault::Over.into())));
        }
        let Some(upload) = &mut this.upload else {
            return Poll::Ready(None);
        };
        match Pin::new(&mut *upload).poll_frame(cx) {
            Poll::Ready(Some(Ok(frame))) => {
                this.exchange.touch();
                if upload.is_end_stream() {
                    this.exchange.sent.set(true);
                }
                Poll::Ready(Some(Ok(frame)))
            }
            Poll::Ready(Some(Err(fault))) => this.fail(fault),
            Poll::Ready(None) => {
                this.exchange.sent.set(true);
                Poll::Ready(None)
            }
            Poll::Pending => {
                let mut sender = this.exchange.sender.borrow_mut();
                if !sender.as_ref().is_some_and(|w| w.will_wake(cx.waker())) {
                    *sender = Some(cx.waker().clone());
                }
                drop(sender);
                ready!(this.alarm.poll(this.exchange.due(), cx));
                this.fail(RequestBodyFault::TooSlow)
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.upload.as_ref().is_none_or(HttpBody::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        match &self.upload {
            Some(upload) => upload.size_hint(),
            None => SizeHint::with_exact(0),
        }
    }
}

/// The upstream's body on its way to the client. Dropping it before its end ends the exchange.
pub(super) struct Answer {
    inner: Incoming,
    exchange: Rc<Exchange>,
    stream: Option<Stream>,
    alarm: Alarm,
}

impl Answer {
    /// Relays `inner`, the answer on `stream`.
    pub(super) fn new(inner: Incoming, exchange: Rc<Exchange>, stream: Stream) -> Self {
        Self {
            inner,
            exchange,
            stream: Some(stream),
            alarm: Alarm::default(),
        }
    }

    fn give_up(
        &mut self,
        fault: impl Into<BodyError>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        self.stream = None;
        Poll::Ready(Some(Err(fault.into())))
    }
}

impl fmt::Debug for Answer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Answer").finish_non_exhaustive()
    }
}

impl HttpBody for Answer {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let this = &mut *self;
        match Pin::new(&mut this.inner).poll_frame(cx) {
            Poll::Ready(Some(Ok(mut frame))) => {
                this.exchange.touch();
                // A body that never stops moving is still bounded.
                if this.exchange.moved_at.get() >= this.exchange.ends_at {
                    return this.give_up(StreamFault::Total);
                }
                if let Some(trailers) = frame.trailers_mut() {
                    hops::clean_answer_trailers(trailers);
                }
                if this.inner.is_end_stream() {
                    this.stream = None;
                }
                Poll::Ready(Some(Ok(frame)))
            }
            Poll::Ready(None) => {
                this.stream = None;
                Poll::Ready(None)
            }
            Poll::Ready(Some(Err(error))) => match this.exchange.fault() {
                Some(fault) => this.give_up(StreamFault::from(fault)),
                None => this.give_up(error),
            },
            Poll::Pending if this.stream.is_none() => Poll::Pending,
            Poll::Pending => {
                ready!(this.alarm.poll(this.exchange.due(), cx));
                let fault = this.exchange.expired();
                this.give_up(fault)
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}
