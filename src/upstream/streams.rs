//! The two bodies of an exchange: bounded in size and time, cleaned of forbidden trailers, and tied
//! together so that neither outlives the other.

use std::cell::{Cell, RefCell};
use std::fmt;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, Waker, ready};
use std::time::Duration;

use bytes::Bytes;
use http_body::{Body as HttpBody, Frame, SizeHint};
use hyper::body::Incoming;
use tokio::time::{Instant, Sleep, sleep_until};

use super::RequestBodyFault;
use super::headers::hops;
use super::pool::Lease;
use crate::body::{self, Body, BodyError};
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

/// What the two bodies of one exchange know of each other.
#[derive(Debug)]
pub(super) struct Exchange {
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
    pub(super) fn begin(idle: Duration, total: Duration) -> Rc<Self> {
        let now = Instant::now();
        Rc::new(Self {
            moved_at: Cell::new(now),
            idle,
            ends_at: now + total,
            fault: Cell::new(None),
            sent: Cell::new(false),
            over: Cell::new(false),
            sender: RefCell::new(None),
        })
    }

    /// When the whole exchange has to be over.
    pub(super) fn ends_at(&self) -> Instant {
        self.ends_at
    }

    /// What went wrong with the client's body.
    pub(super) fn fault(&self) -> Option<RequestBodyFault> {
        self.fault.get()
    }

    /// Whether the client's body was handed over to its last byte.
    pub(super) fn sent(&self) -> bool {
        self.sent.get()
    }

    /// Begins another attempt.
    pub(super) fn reopen(&self) {
        self.over.set(false);
    }

    /// Ends the exchange: a request body that is still under way stops here.
    pub(super) fn end(&self) {
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

/// A timer that costs nothing while bytes flow: it is set once, and looks at the exchange's clock
/// only when it fires.
#[derive(Default)]
struct Watch(Option<Pin<Box<Sleep>>>);

impl Watch {
    fn poll(&mut self, exchange: &Exchange, cx: &mut Context<'_>) -> Poll<()> {
        let sleep = self
            .0
            .get_or_insert_with(|| Box::pin(sleep_until(exchange.due())));
        loop {
            ready!(sleep.as_mut().poll(cx));
            let due = exchange.due();
            if due <= Instant::now() {
                return Poll::Ready(());
            }
            sleep.as_mut().reset(due);
        }
    }
}

/// The client's body on its way to the upstream.
pub(super) struct Outbound {
    inner: Body,
    exchange: Rc<Exchange>,
    left: u64,
    watch: Watch,
    rules: Arc<Rules>,
}

impl Outbound {
    /// Forwards `inner`, at most `max` bytes of it.
    pub(super) fn new(inner: Body, max: u64, exchange: Rc<Exchange>, rules: Arc<Rules>) -> Self {
        if inner.is_end_stream() {
            exchange.sent.set(true);
        }
        Self {
            inner,
            exchange,
            left: max,
            watch: Watch::default(),
            rules,
        }
    }

    /// The same again, for a request that had no body and is sent anew.
    pub(super) fn empty_again(exchange: Rc<Exchange>, rules: Arc<Rules>) -> Self {
        Self::new(body::empty(), 0, exchange, rules)
    }

    fn fail(&self, fault: RequestBodyFault) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        self.exchange.fault.set(Some(fault));
        Poll::Ready(Some(Err(fault.into())))
    }
}

impl fmt::Debug for Outbound {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Outbound")
            .field("left", &self.left)
            .finish_non_exhaustive()
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
        let mut frame = match this.inner.as_mut().poll_frame(cx) {
            Poll::Ready(Some(Ok(frame))) => frame,
            Poll::Ready(Some(Err(_))) => return this.fail(RequestBodyFault::BrokenOff),
            Poll::Ready(None) => {
                this.exchange.sent.set(true);
                return Poll::Ready(None);
            }
            Poll::Pending => {
                let mut sender = this.exchange.sender.borrow_mut();
                if !sender.as_ref().is_some_and(|w| w.will_wake(cx.waker())) {
                    *sender = Some(cx.waker().clone());
                }
                drop(sender);
                ready!(this.watch.poll(&this.exchange, cx));
                return this.fail(RequestBodyFault::TooSlow);
            }
        };
        this.exchange.touch();
        if let Some(data) = frame.data_ref() {
            let length = u64::try_from(data.len()).unwrap_or(u64::MAX);
            match this.left.checked_sub(length) {
                Some(left) => this.left = left,
                None => return this.fail(RequestBodyFault::TooLarge),
            }
        }
        if let Some(trailers) = frame.trailers_mut() {
            hops::clean_request_trailers(trailers, &this.rules);
        }
        if this.inner.is_end_stream() {
            this.exchange.sent.set(true);
        }
        Poll::Ready(Some(Ok(frame)))
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

/// The upstream's body on its way to the client. Dropping it before its end ends the exchange.
pub(super) struct Answer {
    inner: Incoming,
    exchange: Rc<Exchange>,
    lease: Option<Lease>,
    watch: Watch,
}

impl Answer {
    /// Relays `inner`; the connection goes back to its pool when it has been read to its end.
    pub(super) fn new(inner: Incoming, exchange: Rc<Exchange>, lease: Lease) -> Self {
        Self {
            inner,
            exchange,
            lease: Some(lease),
            watch: Watch::default(),
        }
    }

    fn finish(&mut self) {
        if let Some(lease) = self.lease.take() {
            lease.finish();
        }
    }

    fn give_up(
        &mut self,
        fault: impl Into<BodyError>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        self.lease = None;
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
                    this.finish();
                }
                Poll::Ready(Some(Ok(frame)))
            }
            Poll::Ready(None) => {
                this.finish();
                Poll::Ready(None)
            }
            Poll::Ready(Some(Err(error))) => match this.exchange.fault() {
                Some(fault) => this.give_up(StreamFault::from(fault)),
                None => this.give_up(error),
            },
            Poll::Pending if this.lease.is_none() => Poll::Pending,
            Poll::Pending => {
                ready!(this.watch.poll(&this.exchange, cx));
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
