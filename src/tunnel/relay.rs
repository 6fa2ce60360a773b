//! The two directions of a tunnel.
//!
//! One future moves both, and belongs to one worker. It holds no buffer while nothing is under way:
//! what is read goes through one buffer of the thread straight to the other side, and only what that
//! does not take at once is kept, up to that buffer's size. While something is kept nothing more is
//! read in that direction, so whoever is slow slows the other side down and nobody else.

use std::cell::{Cell, RefCell};
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::Instant;

use super::frames::{Frames, Side, close};
use crate::upstream::Alarm;

/// Most bytes that are read at a time, and so most that are kept of one direction.
pub(super) const PIECE: usize = 16 * 1024;
/// How often a direction may go on before others have their turn.
const ROUNDS: usize = 16;
/// How long the end of a frame is waited for before a tunnel is closed in the middle of it.
const FRAME_PATIENCE: Duration = Duration::from_secs(1);
/// How long a WebSocket of which one side has hung up may go on.
const HALF_PATIENCE: Duration = Duration::from_secs(2);
/// How long a client has to hang up after our Close: closing first destroys what is on its way.
const LINGER: Duration = Duration::from_secs(1);

thread_local! {
    static SCRATCH: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// The client's end of a tunnel.
pub trait Near: AsyncRead + AsyncWrite + Unpin {
    /// Ready when the client is gone without having said so in the stream.
    fn poll_gone(&mut self, cx: &mut Context<'_>) -> Poll<()>;

    /// Ends the stream at once, in a way that cannot be taken for its end.
    fn reset(&mut self);
}

/// What goes through a tunnel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// Frames.
    WebSocket,
    /// Anything.
    Bytes,
}

impl Kind {
    /// The word for metrics.
    pub(super) const fn as_str(self) -> &'static str {
        match self {
            Self::WebSocket => "websocket",
            Self::Bytes => "connect",
        }
    }
}

/// How long a tunnel may live.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Limits {
    /// Without a byte in either direction.
    pub(super) idle: Duration,
    /// Altogether.
    pub(super) total: Duration,
}

/// Where the bytes that went through are counted.
#[derive(Debug, Default)]
pub(super) struct Counts {
    /// The client's.
    pub(super) received: Rc<Cell<u64>>,
    /// The upstream's.
    pub(super) sent: Rc<Cell<u64>>,
}

/// The order to end a tunnel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Stop {
    /// How that is called in records.
    pub(super) how: Ended,
    /// What a WebSocket's client is told: one of RFC 6455 section 7.4.1.
    pub(super) code: u16,
    /// Why; for the client too.
    pub(super) reason: Box<str>,
    /// How long that may take.
    pub(super) patience: Duration,
}

/// How a tunnel ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ended {
    /// By both sides.
    Complete,
    /// The client broke off.
    ClientGone,
    /// The upstream broke off.
    UpstreamBroke,
    /// No byte came for too long.
    Idle,
    /// It has lived for as long as it may.
    Total,
    /// Its permission has ended.
    Lapsed,
    /// The gateway leaves.
    Drained,
    /// One side sent what is no WebSocket.
    Violation,
}

impl Ended {
    /// The word for records and metrics.
    pub(super) const fn as_str(self) -> &'static str {
        match self {
            Self::Complete => "complete",
            Self::ClientGone => "client_gone",
            Self::UpstreamBroke => "upstream_broke",
            Self::Idle => "idle_timeout",
            Self::Total => "total_timeout",
            Self::Lapsed => "lapsed",
            Self::Drained => "drained",
            Self::Violation => "protocol_violation",
        }
    }
}

impl Stop {
    /// A tunnel whose permission has ended; `reason` must be fit for the client.
    pub(super) fn lapsed(reason: &str) -> Self {
        Self {
            how: Ended::Lapsed,
            code: 1008,
            reason: reason.into(),
            patience: FRAME_PATIENCE,
        }
    }

    /// The gateway leaves, and everything still open is cut in a moment.
    pub(super) fn drained() -> Self {
        Self {
            how: Ended::Drained,
            code: 1001,
            reason: "going_away".into(),
            patience: FRAME_PATIENCE / 4,
        }
    }

    fn limit(how: Ended) -> Self {
        Self {
            how,
            code: 1001,
            reason: how.as_str().into(),
            patience: FRAME_PATIENCE,
        }
    }

    fn violation() -> Self {
        Self {
            how: Ended::Violation,
            code: 1002,
            reason: Box::default(),
            patience: FRAME_PATIENCE,
        }
    }
}

/// A tunnel under way; ready when it has ended.
pub(super) struct Relay<N, F> {
    near: N,
    far: F,
    kind: Kind,
    up: Lane,
    down: Lane,
    counts: Counts,
    idle: Duration,
    moved_at: Instant,
    ends_at: Instant,
    /// Since one side has hung up: until when the other may go on, and how that is called.
    half: Option<(Instant, Ended)>,
    alarm: Alarm,
    stop: Pin<Box<dyn Future<Output = Stop>>>,
    phase: Phase,
    /// The Close frame for the client, while one is to be sent.
    goodbye: Vec<u8>,
    patience: Duration,
}

/// How far a tunnel's life is.
#[derive(Debug, Clone, Copy)]
enum Phase {
    Open,
    /// What is under way is finished until then, and a Close is said.
    Closing(Ended, Instant),
    /// Everything is said; the client hangs up until then.
    Lingering(Ended, Instant),
}

/// One direction.
#[derive(Debug)]
struct Lane {
    /// What was read and not taken by the other side.
    held: Vec<u8>,
    /// How much of that was taken.
    taken: usize,
    frames: Option<Frames>,
    reading: Reading,
    /// Whether something was written and not flushed.
    dirty: bool,
    /// Whether anything moved since this was last asked.
    moved: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Reading {
    On,
    /// To the end of the frame under way.
    Frame,
    /// Nothing more; what is held is written, and that was all.
    Off,
    /// And the other side knows it.
    Done,
}

/// What is wrong with a direction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fault {
    Read,
    Write,
    Violation,
}

impl Lane {
    fn new(frames: Option<Frames>) -> Self {
        Self {
            held: Vec::new(),
            taken: 0,
            frames,
            reading: Reading::On,
            dirty: false,
            moved: false,
        }
    }

    /// Whether another frame may be written behind what is held.
    fn between(&self) -> bool {
        self.frames
            .is_some_and(|frames| frames.between() && !frames.closed())
    }

    /// Says a last frame behind what is held.
    fn last(&mut self, frame: &[u8]) {
        self.held.extend_from_slice(frame);
        self.reading = Reading::Off;
    }

    /// Moves bytes; ready when the direction is at its end, or the frame that is waited for.
    fn poll<R, W>(
        &mut self,
        from: &mut R,
        to: &mut W,
        count: &Cell<u64>,
        scratch: &mut [u8],
        cx: &mut Context<'_>,
    ) -> Poll<Result<(), Fault>>
    where
        R: AsyncRead + Unpin,
        W: AsyncWrite + Unpin,
    {
        for _ in 0..ROUNDS {
            ready!(self.poll_held(to, cx)).map_err(|_| Fault::Write)?;
            let room = match (self.reading, &self.frames) {
                (Reading::Done, _) => return Poll::Ready(Ok(())),
                (Reading::Off, _) => {
                    ready!(Pin::new(to).poll_shutdown(cx)).map_err(|_| Fault::Write)?;
                    self.reading = Reading::Done;
                    return Poll::Ready(Ok(()));
                }
                (Reading::Frame, Some(frames)) if !frames.between() => {
                    usize::try_from(frames.missing()).unwrap_or(usize::MAX)
                }
                (Reading::Frame, _) => return Poll::Ready(Ok(())),
                (Reading::On, _) => usize::MAX,
            };
            let room = room.min(scratch.len());
            let mut buf = ReadBuf::new(scratch.get_mut(..room).unwrap_or_default());
            match Pin::new(&mut *from).poll_read(cx, &mut buf) {
                Poll::Ready(Ok(())) => {}
                Poll::Ready(Err(_)) => return Poll::Ready(Err(Fault::Read)),
                Poll::Pending => {
                    if self.dirty
                        && let Poll::Ready(flushed) = Pin::new(to).poll_flush(cx)
                    {
                        flushed.map_err(|_| Fault::Write)?;
                        self.dirty = false;
                    }
                    return Poll::Pending;
                }
            }
            let piece = buf.filled();
            if piece.is_empty() {
                self.reading = Reading::Off;
                continue;
            }
            if let Some(frames) = &mut self.frames {
                // Kept as it was if this is refused: none of it goes on.
                let mut next = *frames;
                next.follow(piece).map_err(|_| Fault::Violation)?;
                *frames = next;
            }
            let length = u64::try_from(piece.len()).unwrap_or(u64::MAX);
            count.set(count.get().saturating_add(length));
            self.moved = true;
            self.dirty = true;
            let written = match Pin::new(&mut *to).poll_write(cx, piece) {
                Poll::Ready(Ok(written)) => written,
                Poll::Ready(Err(_)) => return Poll::Ready(Err(Fault::Write)),
                Poll::Pending => 0,
            };
            if let Some(left @ [_, ..]) = piece.get(written..) {
                self.held = left.to_vec();
                self.taken = 0;
            }
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    fn poll_held<W: AsyncWrite + Unpin>(
        &mut self,
        to: &mut W,
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<()>> {
        while let Some(left @ [_, ..]) = self.held.get(self.taken..) {
            self.dirty = true;
            match ready!(Pin::new(&mut *to).poll_write(cx, left))? {
                0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                written => self.taken += written,
            }
            self.moved = true;
        }
        self.taken = 0;
        if self.held.capacity() > 0 {
            self.held = Vec::new();
        }
        Poll::Ready(Ok(()))
    }
}

impl<N: Near, F: AsyncRead + AsyncWrite + Unpin> Relay<N, F> {
    /// A tunnel that is open now. `stop` is the order to end it.
    pub(super) fn new(
        near: N,
        far: F,
        kind: Kind,
        limits: Limits,
        counts: Counts,
        stop: Pin<Box<dyn Future<Output = Stop>>>,
    ) -> Self {
        let now = Instant::now();
        let frames = |side| (kind == Kind::WebSocket).then_some(Frames::of(side));
        Self {
            near,
            far,
            kind,
            up: Lane::new(frames(Side::Client)),
            down: Lane::new(frames(Side::Upstream)),
            counts,
            idle: limits.idle,
            moved_at: now,
            ends_at: now + limits.total,
            half: None,
            alarm: Alarm::default(),
            stop,
            phase: Phase::Open,
            goodbye: Vec::new(),
            patience: FRAME_PATIENCE,
        }
    }

    fn poll_open(&mut self, scratch: &mut [u8], cx: &mut Context<'_>) -> Poll<Ended> {
        if let Poll::Ready(stop) = self.stop.as_mut().poll(cx) {
            return self.begin_to_close(&stop, scratch, cx);
        }
        if self.near.poll_gone(cx).is_ready() {
            return Poll::Ready(Ended::ClientGone);
        }
        let Self {
            near, far, counts, ..
        } = self;
        let up = self.up.poll(near, far, &counts.received, scratch, cx);
        let down = self.down.poll(far, near, &counts.sent, scratch, cx);
        if std::mem::take(&mut self.up.moved) | std::mem::take(&mut self.down.moved) {
            self.moved_at = Instant::now();
        }
        let fault = match (up, down) {
            (Poll::Ready(Ok(())), Poll::Ready(Ok(()))) => {
                let how = self.half.map_or(Ended::Complete, |(_, how)| how);
                return Poll::Ready(how);
            }
            (Poll::Ready(Err(Fault::Violation)), _) | (_, Poll::Ready(Err(Fault::Violation))) => {
                return self.begin_to_close(&Stop::violation(), scratch, cx);
            }
            (Poll::Ready(Err(Fault::Read)), _) | (_, Poll::Ready(Err(Fault::Write))) => {
                Some(Ended::ClientGone)
            }
            (Poll::Ready(Err(Fault::Write)), _) | (_, Poll::Ready(Err(Fault::Read))) => {
                Some(Ended::UpstreamBroke)
            }
            (Poll::Ready(Ok(())), Poll::Pending) => {
                self.hung_up(Ended::ClientGone);
                None
            }
            (Poll::Pending, Poll::Ready(Ok(()))) => {
                self.hung_up(Ended::UpstreamBroke);
                None
            }
            (Poll::Pending, Poll::Pending) => None,
        };
        if let Some(how) = fault {
            // What was said to its end may have been followed by anything.
            let how = if self.said_goodbye() {
                Ended::Complete
            } else {
                how
            };
            self.near.reset();
            return Poll::Ready(how);
        }
        let mut due = (self.moved_at + self.idle).min(self.ends_at);
        if let Some((until, _)) = self.half {
            due = due.min(until);
        }
        ready!(self.alarm.poll(due, cx));
        match self.half {
            Some((_, how)) => Poll::Ready(how),
            None => {
                let how = if due == self.ends_at {
                    Ended::Total
                } else {
                    Ended::Idle
                };
                self.begin_to_close(&Stop::limit(how), scratch, cx)
            }
        }
    }

    /// One side has said its last byte. What a WebSocket says after that nobody answers; other
    /// protocols have a use for it.
    fn hung_up(&mut self, how: Ended) {
        if self.kind == Kind::WebSocket && self.half.is_none() {
            let how = if self.said_goodbye() {
                Ended::Complete
            } else {
                how
            };
            self.half = Some((Instant::now() + HALF_PATIENCE, how));
        }
    }

    /// Whether one of the two has sent a Close frame.
    fn said_goodbye(&self) -> bool {
        let closed = |lane: &Lane| lane.frames.is_some_and(|frames| frames.closed());
        closed(&self.up) || closed(&self.down)
    }

    /// Says goodbye as soon as that can be understood. Nothing more of the client's goes on; the
    /// upstream may finish its frame, or the client could not read what we say.
    fn begin_to_close(
        &mut self,
        stop: &Stop,
        scratch: &mut [u8],
        cx: &mut Context<'_>,
    ) -> Poll<Ended> {
        if self.kind == Kind::Bytes {
            self.near.reset();
            return Poll::Ready(stop.how);
        }
        if self.up.between() {
            // RFC 6455 section 7.4.1: to the upstream it is the client that goes away.
            let frame = close(Side::Client, 1001, &stop.reason);
            self.up.last(&frame);
        } else if self.up.reading != Reading::Done {
            self.up.reading = Reading::Off;
        }
        if self.down.reading == Reading::On {
            self.down.reading = Reading::Frame;
        }
        self.goodbye = close(Side::Upstream, stop.code, &stop.reason);
        self.patience = stop.patience;
        let until = Instant::now() + stop.patience;
        self.phase = Phase::Closing(stop.how, until);
        self.poll_closing(stop.how, until, scratch, cx)
    }

    fn poll_closing(
        &mut self,
        how: Ended,
        until: Instant,
        scratch: &mut [u8],
        cx: &mut Context<'_>,
    ) -> Poll<Ended> {
        let Self {
            near, far, counts, ..
        } = self;
        // Whether the upstream hears it changes nothing for the client.
        let up = self.up.poll(near, far, &counts.received, scratch, cx);
        let up = up.is_ready();
        loop {
            let down = self.down.poll(far, near, &counts.sent, scratch, cx);
            match down {
                Poll::Ready(Ok(())) if self.down.reading == Reading::Frame => {
                    let goodbye = std::mem::take(&mut self.goodbye);
                    if self.down.between() {
                        self.down.last(&goodbye);
                    } else {
                        self.down.reading = Reading::Off;
                    }
                }
                Poll::Ready(Ok(())) if up => {
                    let until = Instant::now() + LINGER.min(self.patience);
                    self.phase = Phase::Lingering(how, until);
                    return self.poll_lingering(how, until, scratch, cx);
                }
                Poll::Ready(Err(_)) => break,
                Poll::Ready(Ok(())) | Poll::Pending => {
                    ready!(self.alarm.poll(until, cx));
                    break;
                }
            }
        }
        self.near.reset();
        Poll::Ready(how)
    }

    /// Throws away what the client still says, until it hangs up.
    fn poll_lingering(
        &mut self,
        how: Ended,
        until: Instant,
        scratch: &mut [u8],
        cx: &mut Context<'_>,
    ) -> Poll<Ended> {
        for _ in 0..ROUNDS {
            let mut buf = ReadBuf::new(scratch);
            match Pin::new(&mut self.near).poll_read(cx, &mut buf) {
                Poll::Ready(Ok(())) if !buf.filled().is_empty() => {}
                Poll::Ready(_) => return Poll::Ready(how),
                Poll::Pending => {
                    ready!(self.alarm.poll(until, cx));
                    return Poll::Ready(how);
                }
            }
        }
        if Instant::now() >= until {
            return Poll::Ready(how);
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }
}

impl<N: Near, F: AsyncRead + AsyncWrite + Unpin> Future for Relay<N, F> {
    type Output = Ended;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Ended> {
        let me = self.get_mut();
        let mut scratch = SCRATCH.take();
        scratch.resize(PIECE, 0);
        let ended = match me.phase {
            Phase::Open => me.poll_open(&mut scratch, cx),
            Phase::Closing(how, until) => me.poll_closing(how, until, &mut scratch, cx),
            Phase::Lingering(how, until) => me.poll_lingering(how, until, &mut scratch, cx),
        };
        SCRATCH.set(scratch);
        ended
    }
}
