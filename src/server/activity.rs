//! What a connection is doing, and when it has done too little for too long.
//!
//! One [`Activity`] is shared by the parts of a connection, all on one thread: the tap notes what
//! is read and written, the service notes requests, and the connection's task asks [`Activity::check`]
//! whether to go on. Clocks are read when a state changes, not for every byte.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, VecDeque};
use std::future::poll_fn;
use std::rc::Rc;
use std::task::Waker;
use std::time::{Duration, Instant};

use super::framing::Verdict;
use super::turn::Others;
use crate::listener::Bounds;

/// So much must leave within `write_timeout` for a blocked connection to live on.
const MIN_PROGRESS: u64 = 1024;
/// So much must leave for a connection without requests to count as in use: the end of an answer
/// that HTTP/2 has buffered is still on its way then.
const TAIL_PROGRESS: u64 = 4096;
/// How long we go on reading, and throwing away, after our last byte: closing with unread bytes
/// resets the connection and destroys the answer on its way.
const LINGER: Duration = Duration::from_secs(2);
/// So many requests of one connection begin in one turn of its task. Those behind them, pipelined or on
/// other streams, begin as many at a time after everybody else on the core had a turn: a connection gets
/// no more of it than another by sending faster than it is answered. Without that hyper takes 16 pipelined
/// requests at a time and is back at once, 61 times before anybody asks the kernel who else has sent
/// something: 8 ms for one such client.
const AT_ONCE: u32 = 8;
/// When a tunnel is looked at that nothing calls attention to.
const RARELY: Duration = Duration::from_secs(3600);

/// Why we ended a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Cause {
    /// A head took longer than `header_timeout`.
    Header,
    /// No request for `idle_timeout`.
    Idle,
    /// The client did not take what we sent for `write_timeout`.
    Write,
    /// Too many HTTP/2 frames that bring nothing.
    Frames,
    /// Nothing is wrong: our last byte has had its time to arrive.
    Lingered,
}

impl Cause {
    /// The word for metrics and logs.
    pub(super) const fn as_str(self) -> &'static str {
        match self {
            Self::Header => "header_timeout",
            Self::Idle => "idle_timeout",
            Self::Write => "write_timeout",
            Self::Frames => "frame_flood",
            Self::Lingered => "closed",
        }
    }
}

/// The state of a connection.
#[derive(Debug)]
pub(super) struct Activity {
    /// When a request last began or ended, or the connection did.
    last: Cell<Instant>,
    /// Requests under way.
    in_flight: Cell<usize>,
    /// Requests that began in this turn of the connection's task, and those that wait.
    crowd: Cell<u32>,
    /// Requests that wait for a turn.
    waiting: Cell<u32>,
    /// Whether the connection has earned `idle_timeout` instead of `header_timeout`: its first
    /// request, or with HTTP/2 its preface, has arrived.
    begun: Cell<bool>,
    /// On HTTP/1, whether the bytes so far end within a body.
    mid_body: Cell<bool>,
    /// Since when a head is incomplete.
    head_since: Cell<Option<Instant>>,
    /// Bytes sent so far.
    written: Cell<u64>,
    /// The client is not taking what we send: since when, and `written` then.
    blocked: Cell<Option<(Instant, u64)>>,
    tail: Cell<u64>,
    /// Since when we only read on to let the answer arrive.
    lingering: Cell<Option<Instant>>,
    flooded: Cell<bool>,
    draining: Cell<bool>,
    /// The last attempt to read found nothing.
    starving: Cell<bool>,
    /// A parked connection was woken, and the clock beside it has not heard of it.
    woken: Cell<bool>,
    /// What was seen of heads that have not been handed over yet.
    verdicts: RefCell<VecDeque<Verdict>>,
    /// Tunnels under way.
    tunnels: Cell<usize>,
    /// The connection, of HTTP/1, is one.
    released: Cell<bool>,
    streams: RefCell<BTreeMap<u64, Rc<Stream>>>,
    next_stream: Cell<u64>,
}

impl Activity {
    pub(super) fn new() -> Rc<Self> {
        Rc::new(Self {
            last: Cell::new(Instant::now()),
            in_flight: Cell::new(0),
            crowd: Cell::new(0),
            waiting: Cell::new(0),
            begun: Cell::new(false),
            mid_body: Cell::new(false),
            head_since: Cell::new(None),
            written: Cell::new(0),
            blocked: Cell::new(None),
            tail: Cell::new(0),
            lingering: Cell::new(None),
            flooded: Cell::new(false),
            draining: Cell::new(false),
            starving: Cell::new(false),
            woken: Cell::new(false),
            verdicts: RefCell::default(),
            tunnels: Cell::new(0),
            released: Cell::new(false),
            streams: RefCell::default(),
            next_stream: Cell::new(0),
        })
    }

    /// A head was read to its end.
    pub(super) fn head_read(&self, verdict: Verdict) {
        self.verdicts.borrow_mut().push_back(verdict);
    }

    /// What was seen of the head that is handed over now; heads are handed over in their order.
    pub(super) fn next_verdict(&self) -> Option<Verdict> {
        self.verdicts.borrow_mut().pop_front()
    }

    /// The body of the last head is chunked badly. Whether its request can still be refused for it:
    /// not when it has been handed over.
    pub(super) fn spoil(&self) -> bool {
        match self.verdicts.borrow_mut().back_mut() {
            Some(last) => {
                *last = last.spoilt();
                true
            }
            None => false,
        }
    }

    /// Whether the bytes so far end within a head.
    pub(super) fn mid_head(&self, open: bool) {
        match (open, self.head_since.get()) {
            (true, None) => self.head_since.set(Some(Instant::now())),
            (false, Some(_)) => self.head_since.set(None),
            (true, Some(_)) | (false, None) => {}
        }
    }

    /// Whether the bytes so far end within a body of HTTP/1.
    pub(super) fn mid_body(&self, open: bool) {
        self.mid_body.set(open);
    }

    /// Whether a part of the body of the request that was handed over last has not arrived.
    pub(super) fn body_is_open(&self) -> bool {
        // With another head behind it, its body is complete and the open one is that head's.
        self.mid_body.get() && self.verdicts.borrow().is_empty()
    }

    /// Whether bytes came behind the request that was handed over last.
    pub(super) fn more_came(&self) -> bool {
        self.head_since.get().is_some() || !self.verdicts.borrow().is_empty()
    }

    /// The connection is a tunnel from here on; what was seen behind its request was no request.
    pub(super) fn release(&self) {
        self.released.set(true);
        self.head_since.set(None);
        self.mid_body.set(false);
        self.verdicts.borrow_mut().clear();
        self.woken.set(true);
    }

    /// Whether the connection is a tunnel.
    pub(super) fn released(&self) -> bool {
        self.released.get()
    }

    /// How many tunnels are under way.
    pub(super) fn tunnels(&self) -> usize {
        self.tunnels.get()
    }

    /// The preface of HTTP/2 has arrived.
    pub(super) fn begun(&self) {
        if !self.begun.replace(true) {
            self.last.set(Instant::now());
        }
    }

    /// The HTTP/2 budget is spent.
    pub(super) fn flooded(&self) {
        self.flooded.set(true);
    }

    pub(super) fn is_flooded(&self) -> bool {
        self.flooded.get()
    }

    /// Bytes sent so far.
    pub(super) fn written(&self) -> u64 {
        self.written.get()
    }

    /// So many of the bytes that were offered have left.
    pub(super) fn sent(&self, bytes: usize, offered: usize) {
        let written = self.written.get() + u64::try_from(bytes).unwrap_or(u64::MAX);
        self.written.set(written);
        if let Some((_, mark)) = self.blocked.get()
            && (bytes == offered || written - mark >= MIN_PROGRESS)
        {
            self.blocked.set(None);
        }
        if self.in_flight.get() == 0 && written - self.tail.get() >= TAIL_PROGRESS {
            self.tail.set(written);
            self.last.set(Instant::now());
        }
    }

    /// Nothing can be sent now.
    pub(super) fn block(&self) {
        if self.blocked.get().is_none() {
            self.blocked.set(Some((Instant::now(), self.written.get())));
            if self.released.get() {
                self.woken.set(true);
            }
        }
    }

    /// Everything has been sent.
    pub(super) fn unblock(&self) {
        if self.blocked.get().is_some() {
            self.blocked.set(None);
        }
    }

    /// Our last byte has been sent.
    pub(super) fn linger(&self) {
        self.unblock();
        if self.lingering.get().is_none() {
            self.lingering.set(Some(Instant::now()));
        }
    }

    /// No more requests than those under way.
    pub(super) fn drain(&self) {
        self.draining.set(true);
    }

    pub(super) fn draining(&self) -> bool {
        self.draining.get()
    }

    /// Whether no request is under way and none has begun to arrive.
    pub(super) fn quiet(&self) -> bool {
        self.in_flight.get() == 0 && self.head_since.get().is_none()
    }

    /// Whether an attempt to read found nothing.
    pub(super) fn starve(&self, nothing: bool) {
        self.starving.set(nothing);
    }

    /// Since when nothing happens on a connection of HTTP/1, if hyper waits for a request and holds
    /// nothing: everything that was read was used, for hyper asks for more only then and no head or
    /// body is open, every answer was handed over, and what was written has left.
    pub(super) fn at_rest(&self) -> Option<Instant> {
        let rests = self.starving.get()
            && self.quiet()
            && !self.mid_body.get()
            && self.verdicts.borrow().is_empty()
            && self.blocked.get().is_none()
            && self.lingering.get().is_none();
        rests.then(|| self.last.get())
    }

    /// A parked connection was woken.
    pub(super) fn woken(&self) {
        self.woken.set(true);
    }

    /// Whether one was, since this was last asked.
    pub(super) fn take_woken(&self) -> bool {
        self.woken.replace(false)
    }

    /// The connection's task is polled: its turn begins, and those who wait for one are counted in.
    pub(super) fn turn(&self) {
        self.crowd.set(self.waiting.get());
    }

    /// A place in the queue for the request that begins now, if [`AT_ONCE`] others of its own
    /// connection began in this turn or wait in front of it.
    pub(super) fn queue(self: &Rc<Self>) -> Option<Waiting> {
        let before = self.crowd.get();
        self.crowd.set(before.saturating_add(1));
        let turns = before / AT_ONCE;
        (turns > 0).then(|| {
            self.waiting.set(self.waiting.get() + 1);
            Waiting {
                turns,
                activity: Rc::clone(self),
            }
        })
    }

    /// A request begins; it ends when the guard is dropped.
    pub(super) fn request(self: &Rc<Self>) -> InFlight {
        self.begun.set(true);
        self.in_flight.set(self.in_flight.get() + 1);
        InFlight(Rc::clone(self))
    }

    /// A stream of HTTP/2, to be watched until [`Activity::forget`].
    pub(super) fn stream(&self) -> Rc<Stream> {
        let id = self.next_stream.get();
        self.next_stream.set(id + 1);
        let stream = Rc::new(Stream {
            id,
            offered: Cell::new(None),
            cut: Cell::new(false),
            waker: Cell::new(None),
            gone: Cell::new(false),
            other: Cell::new(None),
        });
        self.streams.borrow_mut().insert(id, Rc::clone(&stream));
        stream
    }

    /// The stream has ended.
    pub(super) fn forget(&self, stream: &Stream) {
        self.streams.borrow_mut().remove(&stream.id);
        stream.gone.set(true);
        if let Some(waker) = stream.other.take() {
            waker.wake();
        }
    }

    /// Whether the connection may go on, and when to ask again.
    ///
    /// Streams whose client has taken nothing for `write_timeout` are cut on the way.
    pub(super) fn check(&self, now: Instant, bounds: &Bounds) -> Result<Instant, Cause> {
        if self.flooded.get() {
            return Err(Cause::Frames);
        }
        let header = bounds.header_timeout.get();
        let idle = bounds.idle_timeout.get();
        let write = bounds.write_timeout.get();
        if let Some(since) = self.lingering.get() {
            let end = since + LINGER;
            return if now >= end {
                Err(Cause::Lingered)
            } else {
                Ok(end)
            };
        }
        // A state that changes right after this is found in time: no limit is shorter. A tunnel says so
        // when it is blocked, and nothing else is bound here.
        let mut next = match self.released.get() {
            true => now + RARELY,
            false => now + header.min(idle).min(write),
        };
        let mut limit = |since: Instant, length: Duration, cause: Cause| {
            let end = since + length;
            if now >= end {
                return Err(cause);
            }
            next = next.min(end);
            Ok(())
        };
        if let Some((since, _)) = self.blocked.get() {
            limit(since, write, Cause::Write)?;
        } else if let Some(since) = self.head_since.get() {
            // The next request may have begun to arrive while this one was answered.
            if self.in_flight.get() == 0 {
                limit(since.max(self.last.get()), header, Cause::Header)?;
            }
        } else if self.in_flight.get() == 0 {
            if self.begun.get() {
                limit(self.last.get(), idle, Cause::Idle)?;
            } else {
                limit(self.last.get(), header, Cause::Header)?;
            }
        }
        for stream in self.streams.borrow().values() {
            if let Some(since) = stream.offered.get()
                && limit(since, write, Cause::Write).is_err()
            {
                stream.cut();
            }
        }
        Ok(next)
    }
}

/// A request's place in the queue of its own connection; it is left when this is dropped.
#[derive(Debug)]
pub(super) struct Waiting {
    /// How many turns of others the request lets pass.
    turns: u32,
    activity: Rc<Activity>,
}

impl Waiting {
    /// Lets everybody else on the core go first.
    pub(super) async fn pass(self) {
        for _ in 0..self.turns {
            let mut others = Others::default();
            poll_fn(|cx| others.poll(cx)).await;
        }
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        let waiting = &self.activity.waiting;
        waiting.set(waiting.get().saturating_sub(1));
    }
}

/// A request under way; dropped when its answer has been handed over, or given up.
#[derive(Debug)]
pub(super) struct InFlight(Rc<Activity>);

impl Drop for InFlight {
    fn drop(&mut self) {
        let activity = &self.0;
        activity.in_flight.set(activity.in_flight.get() - 1);
        activity.last.set(Instant::now());
        activity.tail.set(activity.written.get());
    }
}

impl InFlight {
    /// The request has become a tunnel.
    pub(super) fn tunnel(self) -> TunnelInFlight {
        let tunnels = &self.0.tunnels;
        tunnels.set(tunnels.get() + 1);
        TunnelInFlight(self)
    }
}

/// A tunnel under way.
#[derive(Debug)]
pub(super) struct TunnelInFlight(InFlight);

impl Drop for TunnelInFlight {
    fn drop(&mut self) {
        let tunnels = &self.0.0.tunnels;
        tunnels.set(tunnels.get() - 1);
    }
}

/// A stream of HTTP/2. With flow control a client can leave an answer lying without the connection
/// being blocked, so each stream has its own watch.
pub(super) struct Stream {
    id: u64,
    /// Since when a piece of the answer waits for the client; `None` while we wait for the upstream.
    offered: Cell<Option<Instant>>,
    cut: Cell<bool>,
    waker: Cell<Option<Waker>>,
    /// Nobody moves it any more.
    gone: Cell<bool>,
    /// Whoever waits for that.
    other: Cell<Option<Waker>>,
}

impl std::fmt::Debug for Stream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Stream")
            .field("id", &self.id)
            .finish_non_exhaustive()
    }
}

impl Stream {
    /// A piece of the answer is there for the client to take.
    pub(super) fn offer(&self) {
        self.offered.set(Some(Instant::now()));
    }

    /// The client has taken everything there is; the next piece is not there yet.
    pub(super) fn await_upstream(&self) {
        self.offered.set(None);
    }

    /// Whether the stream has to end; otherwise `waker` is told when it has.
    pub(super) fn is_cut(&self, waker: &Waker) -> bool {
        if self.cut.get() {
            return true;
        }
        let kept = match self.waker.take() {
            Some(kept) if kept.will_wake(waker) => kept,
            _ => waker.clone(),
        };
        self.waker.set(Some(kept));
        false
    }

    /// Whether nobody moves the stream any more; otherwise `waker` is told when that is so.
    pub(super) fn is_gone(&self, waker: &Waker) -> bool {
        if self.gone.get() {
            return true;
        }
        let kept = match self.other.take() {
            Some(kept) if kept.will_wake(waker) => kept,
            _ => waker.clone(),
        };
        self.other.set(Some(kept));
        false
    }

    /// Ends the stream with a reset.
    pub(super) fn cut(&self) {
        self.cut.set(true);
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn check(activity: &Activity, after: Duration) -> Result<(), Cause> {
        activity
            .check(Instant::now() + after, &Bounds::default())
            .map(|_| ())
    }

    #[test]
    fn a_new_connection_has_the_header_timeout_and_then_the_idle_timeout() {
        let activity = Activity::new();
        assert_eq!(check(&activity, 9 * SECOND), Ok(()));
        assert_eq!(check(&activity, 11 * SECOND), Err(Cause::Header));
        drop(activity.request());
        assert_eq!(check(&activity, 59 * SECOND), Ok(()));
        assert_eq!(check(&activity, 61 * SECOND), Err(Cause::Idle));
        activity.mid_head(true);
        assert_eq!(check(&activity, 11 * SECOND), Err(Cause::Header));
        activity.mid_head(false);
        assert_eq!(check(&activity, 11 * SECOND), Ok(()));
    }

    #[test]
    fn a_request_under_way_is_not_idle() {
        let activity = Activity::new();
        let request = activity.request();
        activity.mid_head(true);
        assert_eq!(check(&activity, 3600 * SECOND), Ok(()));
        drop(request);
        assert_eq!(check(&activity, 11 * SECOND), Err(Cause::Header));
    }

    #[test]
    fn an_open_body_is_that_of_the_last_head() {
        let activity = Activity::new();
        activity.head_read(Verdict::default());
        activity.mid_body(true);
        // Not handed over yet: the open body is none of the request before.
        assert!(!activity.body_is_open());
        activity.next_verdict();
        assert!(activity.body_is_open());
        activity.mid_body(false);
        assert!(!activity.body_is_open());
    }

    #[test]
    fn a_client_that_takes_nothing_is_given_up_and_one_that_takes_something_is_not() {
        let activity = Activity::new();
        let _request = activity.request();
        activity.sent(100, 1000);
        activity.block();
        activity.sent(10, 1000);
        assert_eq!(check(&activity, 29 * SECOND), Ok(()));
        assert_eq!(check(&activity, 31 * SECOND), Err(Cause::Write));
        activity.sent(2000, 9000);
        assert_eq!(check(&activity, 31 * SECOND), Ok(()));
        activity.block();
        activity.sent(5, 5);
        assert_eq!(check(&activity, 31 * SECOND), Ok(()));
    }

    #[test]
    fn a_stream_that_nobody_reads_is_cut_alone() {
        let activity = Activity::new();
        let _request = activity.request();
        let (slow, live) = (activity.stream(), activity.stream());
        slow.offer();
        live.offer();
        live.await_upstream();
        assert_eq!(check(&activity, 31 * SECOND), Ok(()));
        assert!(slow.is_cut(Waker::noop()));
        assert!(!live.is_cut(Waker::noop()));
        activity.forget(&slow);
        assert_eq!(activity.streams.borrow().len(), 1);
    }

    #[test]
    fn lingering_ends() {
        let activity = Activity::new();
        activity.linger();
        assert_eq!(check(&activity, SECOND), Ok(()));
        assert_eq!(check(&activity, 3 * SECOND), Err(Cause::Lingered));
    }
}
