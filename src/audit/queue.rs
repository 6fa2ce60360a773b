//! The queue between requests and the sink, and the thread that empties it.
//!
//! A seat is a record's place in memory, from the opening of the request to the sink's word that the
//! line was taken. There are as many seats as the queue has room, so a record with a seat always
//! fits into the queue, and memory is bounded however slow the sink is.

use std::io;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TryRecvError, sync_channel};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use super::sink::AuditSink;
use crate::metrics::Metrics;

/// How often the sink looks after itself, and how long the writer waits after a failure.
const REFRESH_EVERY: Duration = Duration::from_secs(1);

/// How many bytes are written at once, at most.
const BATCH: usize = 256 * 1024;

/// How often a failing sink is complained about.
const COMPLAIN_EVERY: Duration = Duration::from_secs(60);

/// How long the writer goes on trying a failing sink once nobody can send records any more.
const LAST_TRIES: Duration = Duration::from_secs(5);

/// The sending side.
#[derive(Debug)]
pub(super) struct Queue {
    sender: SyncSender<String>,
    state: Arc<State>,
}

#[derive(Debug)]
pub(super) struct State {
    capacity: usize,
    /// Open records and queued lines.
    seats: AtomicUsize,
    /// Queued lines.
    queued: AtomicUsize,
    /// The sink refused at the last try.
    failing: AtomicBool,
    written: Condvar,
    lock: Mutex<()>,
    metrics: Arc<Metrics>,
}

impl Queue {
    /// Begins a queue with its writer thread.
    ///
    /// # Errors
    /// The system's, when there can be no further thread.
    pub(super) fn begin(
        sink: Box<dyn AuditSink>,
        capacity: usize,
        metrics: Arc<Metrics>,
    ) -> io::Result<Self> {
        let (sender, receiver) = sync_channel(capacity);
        let state = Arc::new(State {
            capacity,
            seats: AtomicUsize::new(0),
            queued: AtomicUsize::new(0),
            failing: AtomicBool::new(false),
            written: Condvar::new(),
            lock: Mutex::new(()),
            metrics,
        });
        let writer = Writer {
            receiver,
            state: Arc::clone(&state),
            sink,
            waiting: Vec::new(),
            lines: 0,
            begun: 0,
            refreshed: None,
            complained: None,
        };
        thread::Builder::new()
            .name("audit".to_owned())
            .spawn(move || writer.run())?;
        Ok(Self { sender, state })
    }

    /// Takes a seat for a record, if there is one.
    pub(super) fn sit(&self) -> bool {
        self.state
            .seats
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |seats| {
                (seats < self.state.capacity).then_some(seats + 1)
            })
            .is_ok()
    }

    /// Whether there is a seat at the moment.
    pub(super) fn has_room(&self) -> bool {
        self.state.seats.load(Ordering::Relaxed) < self.state.capacity
    }

    /// Whether the sink failed at the last try.
    pub(super) fn failing(&self) -> bool {
        self.state.failing.load(Ordering::Relaxed)
    }

    /// How many lines wait.
    pub(super) fn waiting(&self) -> usize {
        self.state.queued.load(Ordering::Acquire)
    }

    /// Queues the line of a record that has a seat.
    pub(super) fn send(&self, line: String) {
        self.state.queued.fetch_add(1, Ordering::Release);
        if self.sender.try_send(line).is_err() {
            // There is room for every seat, so only a writer that died brings us here.
            self.state.gone(1);
            self.state.metrics.audit_dropped(1);
        }
    }

    /// Waits until the sink has taken every queued line.
    pub(super) fn drain(&self, patience: Duration) -> bool {
        let guard = self
            .state
            .lock
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let (_guard, waited) = self
            .state
            .written
            .wait_timeout_while(guard, patience, |()| self.waiting() > 0)
            .unwrap_or_else(PoisonError::into_inner);
        !waited.timed_out()
    }
}

impl State {
    fn gone(&self, lines: usize) {
        self.seats.fetch_sub(lines, Ordering::Relaxed);
        let before = self.queued.fetch_sub(lines, Ordering::Release);
        self.metrics.audit_queued(before.saturating_sub(lines));
        drop(self.lock.lock().unwrap_or_else(PoisonError::into_inner));
        self.written.notify_all();
    }
}

struct Writer {
    receiver: Receiver<String>,
    state: Arc<State>,
    sink: Box<dyn AuditSink>,
    /// Whole lines that the sink has not taken, from the first byte of the first one.
    waiting: Vec<u8>,
    lines: usize,
    /// How much of the first line the sink has taken.
    begun: usize,
    refreshed: Option<Instant>,
    complained: Option<Instant>,
}

impl Writer {
    fn run(mut self) {
        let mut last_try: Option<Instant> = None;
        loop {
            let open = self.gather();
            if !self.waiting.is_empty()
                && let Err(error) = self.write()
            {
                self.complain(&error);
                if !open {
                    let until = *last_try.get_or_insert_with(|| Instant::now() + LAST_TRIES);
                    if Instant::now() >= until {
                        self.state.metrics.audit_dropped(count(self.lines));
                        self.state.gone(self.lines);
                        return;
                    }
                }
                // Nobody wakes this thread: it simply waits before the next try.
                thread::park_timeout(REFRESH_EVERY);
            }
            if !open && self.waiting.is_empty() {
                return;
            }
        }
    }

    /// Takes lines from the queue until there are none or the batch is full; waits for the first.
    /// `false` when nobody can send any more.
    fn gather(&mut self) -> bool {
        if self.waiting.is_empty() {
            match self.receiver.recv_timeout(REFRESH_EVERY) {
                Ok(line) => self.take(&line),
                Err(RecvTimeoutError::Timeout) => {
                    // A file that was rotated is let go of even when there is nothing to write.
                    if self.refreshed.is_some()
                        && let Err(error) = self.refresh()
                    {
                        self.complain(&error);
                    }
                    return true;
                }
                Err(RecvTimeoutError::Disconnected) => return false,
            }
        }
        while self.waiting.len() < BATCH {
            match self.receiver.try_recv() {
                Ok(line) => self.take(&line),
                Err(TryRecvError::Empty) => break,
                Err(TryRecvError::Disconnected) => return false,
            }
        }
        true
    }

    fn take(&mut self, line: &str) {
        self.waiting.extend_from_slice(line.as_bytes());
        self.lines += 1;
    }

    fn write(&mut self) -> io::Result<()> {
        self.refresh()?;
        let mut written = self.begun;
        let result = loop {
            match self.waiting.get(written..) {
                None | Some([]) => break Ok(()),
                Some(rest) => match self.sink.write(rest) {
                    Ok(0) => break Err(io::ErrorKind::WriteZero.into()),
                    Ok(more) => written += more,
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                    Err(error) => break Err(error),
                },
            }
        };
        let taken = self.waiting.get(..written).unwrap_or_default();
        let whole = taken
            .iter()
            .rposition(|&b| b == b'\n')
            .map_or(0, |at| at + 1);
        let lines = taken.iter().filter(|&&b| b == b'\n').count();
        self.waiting.drain(..whole);
        self.begun = written - whole;
        self.lines -= lines;
        if lines > 0 {
            if self.state.failing.swap(false, Ordering::Relaxed) {
                tracing::info!("audit records are written again");
                self.complained = None;
            }
            self.state.metrics.audit_written(count(lines));
            self.state.gone(lines);
        }
        result
    }

    fn refresh(&mut self) -> io::Result<()> {
        if self
            .refreshed
            .is_none_or(|before| before.elapsed() >= REFRESH_EVERY)
        {
            let moved = self.sink.refresh()?;
            self.refreshed = Some(Instant::now());
            if moved {
                self.begun = 0;
            }
        }
        Ok(())
    }

    fn complain(&mut self, error: &io::Error) {
        self.state.metrics.audit_error();
        self.state.failing.store(true, Ordering::Relaxed);
        if self
            .complained
            .is_none_or(|before| before.elapsed() >= COMPLAIN_EVERY)
        {
            self.complained = Some(Instant::now());
            tracing::error!(%error, waiting = self.state.queued.load(Ordering::Relaxed),
                "audit records cannot be written; trying again every second");
        }
    }
}

/// A writer that died of a panic in its sink must not leave seats taken for ever: what it held is
/// counted as lost, and further records are dropped and counted one by one.
impl Drop for Writer {
    fn drop(&mut self) {
        if thread::panicking() {
            self.state.metrics.audit_dropped(count(self.lines));
            self.state.gone(self.lines);
        }
    }
}

fn count(lines: usize) -> u64 {
    u64::try_from(lines).unwrap_or(u64::MAX)
}
