//! Who sends when: as fast as answers come (closed loop), or at fixed times (open loop).
//!
//! In the open loop a latency counts from the moment at which the request was due, so that a peer
//! that stalls is charged for all requests that should have gone out meanwhile.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::io;
use std::time::{Duration, Instant};

use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create,
    timerfd_settime,
};
use tokio::io::unix::AsyncFd;
use tokio::sync::Notify;

use super::book::Book;

/// What the load is at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Phase {
    /// Requests that are not counted.
    Warm,
    /// No new requests, none have ended.
    Rest,
    /// Requests that are counted.
    Measure,
}

/// One request to send.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Job {
    /// Which token: a number that only grows.
    pub(crate) number: usize,
    /// When it was due.
    pub(crate) due: Instant,
}

/// What a connection may do next.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Turn {
    /// Send this.
    Send(Job),
    /// Wait for [`Pace::changed`].
    Wait,
}

/// Shared by all connections.
#[derive(Debug)]
pub(crate) struct Pace {
    phase: Cell<Phase>,
    /// Open loop: what is due. Closed loop: none.
    due: Option<RefCell<VecDeque<Instant>>>,
    next: Cell<usize>,
    /// Tokens that there are to use once each; no request goes beyond.
    last: usize,
    under_way: Cell<usize>,
    pub(crate) changed: Notify,
    pub(crate) book: RefCell<Book>,
    last_answer: Cell<Instant>,
}

impl Pace {
    /// `last`: how many requests there may be altogether.
    pub(crate) fn new(open: bool, last: usize) -> Self {
        Self {
            phase: Cell::new(Phase::Rest),
            due: open.then(RefCell::default),
            next: Cell::new(0),
            last,
            under_way: Cell::new(0),
            changed: Notify::new(),
            book: RefCell::default(),
            last_answer: Cell::new(Instant::now()),
        }
    }

    /// Begins a phase.
    pub(crate) fn enter(&self, phase: Phase) {
        self.phase.set(phase);
        if phase == Phase::Measure {
            *self.book.borrow_mut() = Book::default();
        }
        if let (Some(due), Phase::Rest) = (&self.due, phase) {
            self.book.borrow_mut().unsent += due.borrow().len() as u64;
            due.borrow_mut().clear();
        }
        self.changed.notify_waiters();
    }

    /// What the caller may do now.
    pub(crate) fn turn(&self) -> Turn {
        match self.phase.get() {
            Phase::Rest => return Turn::Wait,
            Phase::Warm | Phase::Measure => {}
        }
        let number = self.next.get();
        if number >= self.last {
            return Turn::Wait;
        }
        let due = match &self.due {
            None => Instant::now(),
            Some(due) => match due.borrow_mut().pop_front() {
                Some(due) => due,
                None => return Turn::Wait,
            },
        };
        self.next.set(number + 1);
        self.under_way.set(self.under_way.get() + 1);
        Turn::Send(Job { number, due })
    }

    /// Whether no request will be sent for want of tokens.
    pub(crate) fn exhausted(&self) -> bool {
        self.next.get() >= self.last
    }

    /// An answer came.
    pub(crate) fn answered(&self, job: Job, status: u16) {
        let now = Instant::now();
        self.under_way.set(self.under_way.get() - 1);
        self.last_answer.set(now);
        let mut book = self.book.borrow_mut();
        *book.statuses.entry(status).or_default() += 1;
        book.latency.record(now - job.due);
    }

    /// No answer came.
    pub(crate) fn failed(&self, error: &io::Error) {
        self.under_way.set(self.under_way.get() - 1);
        self.error(error);
    }

    /// Something went wrong outside of requests.
    pub(crate) fn error(&self, error: &io::Error) {
        *self
            .book
            .borrow_mut()
            .errors
            .entry(error.to_string())
            .or_default() += 1;
    }

    /// Waits until nothing is under way, `longest` at most.
    pub(crate) async fn quiet(&self, longest: Duration) {
        let end = Instant::now() + longest;
        while self.under_way.get() > 0 && Instant::now() < end {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }

    /// When the last answer came.
    pub(crate) fn last_answer(&self) -> Instant {
        self.last_answer.get()
    }
}

/// Makes requests due at a fixed rate, with equal gaps.
pub(crate) async fn drive(pace: &Pace, rate: f64) -> io::Result<()> {
    let gap = Duration::from_secs_f64(1.0 / rate);
    // The runtime's timers are off by a millisecond.
    let timer = timerfd_create(TimerfdClockId::Monotonic, TimerfdFlags::NONBLOCK)?;
    let spec = Timespec {
        tv_sec: i64::try_from(gap.as_secs()).unwrap_or(i64::MAX),
        tv_nsec: i64::from(gap.subsec_nanos()),
    };
    timerfd_settime(
        &timer,
        TimerfdTimerFlags::empty(),
        &Itimerspec {
            it_interval: spec,
            it_value: spec,
        },
    )?;
    // The replacement needs unsafe code; an owned descriptor is what its contract asks for.
    #[expect(deprecated, reason = "the descriptor is owned and never exchanged")]
    let timer = AsyncFd::new(timer)?;
    let mut due = Instant::now() + gap;
    loop {
        let mut ready = timer.readable().await?;
        let mut ticks = [0; 8];
        if rustix::io::read(timer.get_ref(), &mut ticks).is_err() {
            ready.clear_ready();
            continue;
        }
        let now = Instant::now();
        while due <= now {
            if let (Phase::Warm | Phase::Measure, Some(queue)) = (pace.phase.get(), &pace.due) {
                queue.borrow_mut().push_back(due);
                pace.changed.notify_one();
            }
            due += gap;
        }
    }
}
