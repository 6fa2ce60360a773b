//! The way of lines from the workers to the sink, and the thread that empties it.
//!
//! Every worker writes its lines into pages of its own ([`Lane`]), behind a lock that nobody else
//! takes but the writer's thread, which swaps the pages for empty ones on its own tick. So no record
//! wakes a thread, a write to the sink carries many lines, and workers share nothing.
//!
//! A seat is a record's place in memory, from the opening of the request to the sink's word that the
//! line was taken. There are as many seats as the queue has room, so a record with a seat always
//! finds room, and memory is bounded however slow the sink is: when many bytes wait, lines are short.
//! Lanes take seats in blocks; when there are none left, those that another lane has in stock are
//! taken, so the bound is exact both ways.

use std::collections::VecDeque;
use std::io;
use std::pin::pin;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread::{self, Thread};
use std::time::{Duration, Instant};

use tokio::sync::Notify;
use tokio::time::timeout;

use super::line::Second;
use super::sink::{AuditSink, LeftOut};
use super::stage::Stages;
use crate::metrics::Metrics;

/// How long a line waits for company, at most, before it is offered to the sink: what a crash of the
/// process can lose.
const TICK: Duration = Duration::from_millis(20);

/// After so many ticks without a line the writer sleeps until one wakes it.
const QUIET_TICKS: u32 = 50;

/// How often the sink looks after itself, and how long the writer waits after a failure.
const REFRESH_EVERY: Duration = Duration::from_secs(1);

/// How long is gathered what did not come before the sink is told: while records are sampled that is
/// some at each tick, and a line of the ledger each time.
const GATHER: Duration = Duration::from_secs(1);

/// The stack of the writer's thread, in bytes.
const STACK: usize = 8 << 20;

/// The room of a page, in bytes.
const PAGE: usize = 64 * 1024;

/// A page with less room than this is full. Lines are longer only when texts of clients are.
const LEAST_ROOM: usize = 4 * 1024;

/// How many bytes of lines wait in good order, for each seat, and at least. Beyond that, records go
/// without what the policy was asked, which is most of them, until the sink has caught up.
const SEAT_BYTES: usize = 4 * 1024;
const LEAST_BYTES: usize = 16 << 20;

/// The same for one lane between two looks of the writer: this part of it.
const LANE_PART: usize = 8;

/// How many empty pages are kept for later.
const SPARE_PAGES: usize = 16;

/// How many seats a lane takes at once, at most.
const BLOCK: usize = 64;

/// How often a failing sink is complained about.
const COMPLAIN_EVERY: Duration = Duration::from_secs(60);

/// How long the writer goes on trying a failing sink once nobody can send records any more.
const LAST_TRIES: Duration = Duration::from_secs(5);

/// The sending side.
#[derive(Debug)]
pub(super) struct Queue {
    state: Arc<State>,
}

#[derive(Debug)]
struct State {
    capacity: usize,
    /// The writer's thread, to wake it.
    writer: OnceLock<Thread>,
    lanes: Mutex<Lanes>,
    /// Lines that the writer has taken from the lanes, and the sink not from the writer.
    held: AtomicUsize,
    /// The writer sleeps until it is woken.
    resting: AtomicBool,
    /// More bytes wait than should.
    crowded: AtomicBool,
    /// The sink refused at the last try.
    failing: AtomicBool,
    /// Nobody can send any more.
    closed: AtomicBool,
    /// The writer knows of records that did not come, and the sink does not yet.
    untold: AtomicBool,
    /// How many wait until the sink knows everything.
    draining: AtomicUsize,
    /// Told when seats are free again.
    freed: Notify,
    written: Condvar,
    lock: Mutex<()>,
    metrics: Arc<Metrics>,
}

#[derive(Debug)]
struct Lanes {
    list: Vec<Arc<Shared>>,
    /// Seats that no lane has.
    free: usize,
    /// The writer died of a panic: there are no seats any more.
    dead: bool,
}

/// What a lane shares with the writer.
#[derive(Debug)]
struct Shared {
    /// Seats for records to come.
    stock: AtomicUsize,
    /// Its thread has let go of it.
    left: AtomicBool,
    sheets: Mutex<Sheets>,
}

#[derive(Debug, Default)]
struct Sheets {
    /// The page that is being filled.
    text: Vec<u8>,
    /// How much of it is whole lines. There is more only after a panic in the midst of a line.
    whole: usize,
    lines: usize,
    full: Vec<Page>,
    second: Second,
    /// Records that did not come.
    left: LeftOut,
    dead: bool,
}

/// Whole lines on their way to the sink.
#[derive(Debug)]
struct Page {
    text: Vec<u8>,
    lines: usize,
    /// How many bytes the sink has taken, and how many lines are among them.
    taken: usize,
    done: usize,
}

/// One thread's way into a queue.
#[derive(Debug)]
pub(super) struct Lane {
    shared: Arc<Shared>,
    state: Arc<State>,
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Queue {
    /// Begins a queue with its writer thread.
    ///
    /// # Errors
    /// The system's, when there can be no further thread.
    pub(super) fn begin(
        sink: Box<dyn AuditSink>,
        stages: Stages,
        capacity: usize,
        metrics: Arc<Metrics>,
    ) -> io::Result<Self> {
        let state = Arc::new(State {
            capacity,
            writer: OnceLock::new(),
            lanes: Mutex::new(Lanes {
                list: Vec::new(),
                free: capacity,
                dead: false,
            }),
            held: AtomicUsize::new(0),
            resting: AtomicBool::new(false),
            crowded: AtomicBool::new(false),
            failing: AtomicBool::new(false),
            closed: AtomicBool::new(false),
            untold: AtomicBool::new(false),
            draining: AtomicUsize::new(0),
            freed: Notify::new(),
            written: Condvar::new(),
            lock: Mutex::new(()),
            metrics,
        });
        let writer = Writer {
            state: Arc::clone(&state),
            sink,
            stages,
            pages: VecDeque::new(),
            spare: Vec::new(),
            left: LeftOut::default(),
            gathering: None,
            refreshed: None,
            complained: None,
        };
        let thread = thread::Builder::new()
            .name("audit".to_owned())
            // A stage may ask a policy again.
            .stack_size(STACK)
            .spawn(move || writer.run())?;
        // Nobody else sets it.
        let _ = state.writer.set(thread.thread().clone());
        Ok(Self { state })
    }

    /// A way in for the calling thread.
    pub(super) fn lane(&self) -> Lane {
        let mut lanes = locked(&self.state.lanes);
        let shared = Arc::new(Shared {
            stock: AtomicUsize::new(0),
            left: AtomicBool::new(false),
            sheets: Mutex::new(Sheets {
                dead: lanes.dead,
                ..Sheets::default()
            }),
        });
        lanes.list.push(Arc::clone(&shared));
        Lane {
            shared,
            state: Arc::clone(&self.state),
        }
    }

    /// Whether there is a seat at the moment.
    pub(super) fn has_room(&self) -> bool {
        let lanes = locked(&self.state.lanes);
        let stocked = |lane: &Arc<Shared>| lane.stock.load(Ordering::Relaxed) > 0;
        lanes.free > 0 || lanes.list.iter().any(stocked)
    }

    /// Whether the sink failed at the last try.
    pub(super) fn failing(&self) -> bool {
        self.state.failing.load(Ordering::Relaxed)
    }

    /// How many lines wait.
    pub(super) fn waiting(&self) -> usize {
        self.state.waiting()
    }

    /// How much memory the lines in the lanes take.
    #[cfg(test)]
    pub(super) fn bytes(&self) -> usize {
        let lanes = locked(&self.state.lanes);
        let bytes = |lane: &Arc<Shared>| {
            let sheets = locked(&lane.sheets);
            let full: usize = sheets.full.iter().map(|page| page.text.capacity()).sum();
            full + sheets.text.capacity()
        };
        lanes.list.iter().map(bytes).sum()
    }

    /// Waits until the sink has taken every queued line.
    pub(super) fn drain(&self, patience: Duration) -> bool {
        self.state.draining.fetch_add(1, Ordering::Release);
        self.state.wake();
        let guard = locked(&self.state.lock);
        let (_guard, waited) = self
            .state
            .written
            .wait_timeout_while(guard, patience, |()| {
                self.waiting() > 0 || self.state.untold()
            })
            .unwrap_or_else(PoisonError::into_inner);
        self.state.draining.fetch_sub(1, Ordering::Release);
        !waited.timed_out()
    }
}

impl Drop for Queue {
    fn drop(&mut self) {
        self.state.closed.store(true, Ordering::Release);
        self.state.unpark();
    }
}

impl Lane {
    /// Takes a seat for a record, if there is one.
    pub(super) fn sit(&self) -> bool {
        let stock = &self.shared.stock;
        let taken = stock.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |s| s.checked_sub(1));
        taken.is_ok() || self.restock()
    }

    /// Waits until there is a seat, for at most so long. Dropping the future gives nothing up.
    pub(super) async fn wait(&self, patience: Duration) -> bool {
        let seat = async {
            loop {
                let mut freed = pin!(self.state.freed.notified());
                // From here on nothing is missed.
                freed.as_mut().enable();
                if self.sit() {
                    return true;
                }
                if locked(&self.state.lanes).dead {
                    return false;
                }
                freed.await;
            }
        };
        timeout(patience, seat).await.unwrap_or(false)
    }

    /// Whether so many bytes wait that lines should be short.
    pub(super) fn is_crowded(&self) -> bool {
        let state = &*self.state;
        let most = state.most_bytes() / LANE_PART / PAGE;
        state.crowded.load(Ordering::Relaxed) || locked(&self.shared.sheets).full.len() >= most
    }

    /// Gives a seat back: there will be no line.
    pub(super) fn stand_up(&self) {
        self.shared.stock.fetch_add(1, Ordering::Relaxed);
        self.state.freed.notify_waiters();
    }

    /// Counts a record that does not come.
    pub(super) fn left_out(&self, count: impl FnOnce(&mut LeftOut)) {
        let mut sheets = locked(&self.shared.sheets);
        if !sheets.dead {
            count(&mut sheets.left);
        }
        drop(sheets);
        self.found();
    }

    /// Takes a block of seats, one of them for the caller.
    #[cold]
    fn restock(&self) -> bool {
        let state = &*self.state;
        let mut lanes = locked(&state.lanes);
        if lanes.dead {
            return false;
        }
        let block = (state.capacity / 8).clamp(1, BLOCK);
        let mut got = lanes.free.min(block);
        lanes.free -= got;
        let scarce = lanes.free < state.capacity / 2;
        if got == 0 {
            // The last seats may be in the stock of lanes that do not need them now.
            let stocks = lanes.list.iter().map(|lane| &lane.stock);
            got = stocks
                .map(|stock| stock.swap(0, Ordering::Relaxed))
                .find(|&seats| seats > 0)
                .unwrap_or(0);
        }
        let Some(rest) = got.checked_sub(1) else {
            drop(lanes);
            state.wake();
            return false;
        };
        self.shared.stock.fetch_add(rest, Ordering::Relaxed);
        drop(lanes);
        if scarce {
            // A small queue cannot wait for the tick.
            state.wake();
        }
        true
    }

    /// Queues the line of a record that has a seat. `write` appends it, with its line break.
    pub(super) fn send(&self, write: impl FnOnce(&mut Vec<u8>, &mut Second)) {
        let mut sheets = locked(&self.shared.sheets);
        if sheets.dead {
            drop(sheets);
            self.state.metrics.audit_dropped(1);
            return;
        }
        let page = &mut *sheets;
        page.text.truncate(page.whole);
        if page.text.capacity() == 0 {
            page.text.reserve_exact(PAGE);
        }
        write(&mut page.text, &mut page.second);
        page.whole = page.text.len();
        page.lines += 1;
        if page.whole + LEAST_ROOM > PAGE {
            let page = page.turn(Vec::new());
            sheets.full.extend(page);
        }
        drop(sheets);
        self.found();
    }

    /// There is something for the writer.
    fn found(&self) {
        // The lock orders this: either the writer finds the line before it rests, or we see that
        // it rests.
        let resting = &self.state.resting;
        if resting.load(Ordering::Relaxed) && resting.swap(false, Ordering::Relaxed) {
            self.state.wake();
        }
    }
}

impl Drop for Lane {
    fn drop(&mut self) {
        self.shared.left.store(true, Ordering::Release);
    }
}

impl Sheets {
    /// Takes the page that is being filled, if there is anything on it.
    fn turn(&mut self, empty: Vec<u8>) -> Option<Page> {
        let lines = std::mem::take(&mut self.lines);
        self.text.truncate(self.whole);
        self.whole = 0;
        (lines > 0).then(|| Page {
            text: std::mem::replace(&mut self.text, empty),
            lines,
            taken: 0,
            done: 0,
        })
    }

    fn waiting(&self) -> usize {
        self.lines + self.full.iter().map(|page| page.lines).sum::<usize>()
    }
}

impl State {
    /// Makes the writer look at once. A failing sink is left alone until its next turn.
    fn wake(&self) {
        if !self.failing.load(Ordering::Relaxed) {
            self.unpark();
        }
    }

    /// Whether records did not come of which the sink knows nothing yet.
    fn untold(&self) -> bool {
        let lanes = locked(&self.lanes);
        let untold = |lane: &Arc<Shared>| !locked(&lane.sheets).left.is_empty();
        lanes.list.iter().any(untold) || self.untold.load(Ordering::Acquire)
    }

    /// How many bytes wait in good order.
    fn most_bytes(&self) -> usize {
        (self.capacity * SEAT_BYTES).max(LEAST_BYTES)
    }

    fn unpark(&self) {
        if let Some(writer) = self.writer.get() {
            writer.unpark();
        }
    }

    fn waiting(&self) -> usize {
        let lanes = locked(&self.lanes);
        let waiting = |lane: &Arc<Shared>| locked(&lane.sheets).waiting();
        let in_lanes: usize = lanes.list.iter().map(waiting).sum();
        // Read last: the writer counts what it takes before it lets go of the lane.
        in_lanes + self.held.load(Ordering::Acquire)
    }

    /// Lines are with the sink: their seats are free.
    fn gone(&self, lines: usize) {
        locked(&self.lanes).free += lines;
        let before = self.held.fetch_sub(lines, Ordering::Release);
        self.metrics.audit_queued(before.saturating_sub(lines));
        self.freed.notify_waiters();
        self.tell();
    }

    fn tell(&self) {
        drop(locked(&self.lock));
        self.written.notify_all();
    }
}

struct Writer {
    state: Arc<State>,
    sink: Box<dyn AuditSink>,
    stages: Stages,
    /// What the sink has not taken, oldest first.
    pages: VecDeque<Page>,
    /// Empty pages.
    spare: Vec<Vec<u8>>,
    /// What the sink was not told of yet.
    left: LeftOut,
    /// Since when.
    gathering: Option<Instant>,
    refreshed: Option<Instant>,
    complained: Option<Instant>,
}

impl Writer {
    fn run(mut self) {
        let mut last_try: Option<Instant> = None;
        let mut quiet = 0;
        loop {
            let open = !self.state.closed.load(Ordering::Acquire);
            let found = self.collect();
            let turned = self.turn();
            self.weigh();
            match turned {
                Ok(()) if !open => return,
                Ok(()) => {
                    self.recovered();
                    quiet = if found { 0 } else { quiet + 1 };
                    self.rest(quiet);
                }
                Err(error) => {
                    self.complain(&error);
                    // Also with nothing left but counts of what did not come, which are in the metrics.
                    if !open {
                        let until = *last_try.get_or_insert_with(|| Instant::now() + LAST_TRIES);
                        if Instant::now() >= until {
                            let lost = self.lines();
                            self.state.metrics.audit_dropped(count(lost));
                            self.state.gone(lost);
                            return;
                        }
                    }
                    // Nothing cuts this short, or a flood of records would be a flood of tries.
                    let until = Instant::now() + REFRESH_EVERY;
                    while let Some(left) = until.checked_duration_since(Instant::now())
                        && !left.is_zero()
                    {
                        thread::park_timeout(left);
                    }
                }
            }
        }
    }

    /// Waits for the next tick or, when little happens, for somebody to wake us.
    fn rest(&mut self, quiet: u32) {
        if quiet < QUIET_TICKS {
            thread::park_timeout(TICK);
            return;
        }
        self.state.resting.store(true, Ordering::Relaxed);
        // What came before everybody could see that we rest wakes nobody.
        if !self.collect() {
            thread::park_timeout(REFRESH_EVERY);
        }
        self.state.resting.store(false, Ordering::Relaxed);
    }

    /// Takes what is in the lanes, each lane's lines in their order; `false` when there is nothing.
    fn collect(&mut self) -> bool {
        let mut lanes = locked(&self.state.lanes);
        let before = self.pages.len();
        let (mut returned, mut left_out) = (0, LeftOut::default());
        lanes.list.retain(|lane| {
            // Read first: nothing comes after it.
            let left = lane.left.load(Ordering::Acquire);
            let mut sheets = locked(&lane.sheets);
            let waiting = sheets.waiting();
            if waiting > 0 {
                self.state.held.fetch_add(waiting, Ordering::Release);
                self.pages.extend(sheets.full.drain(..));
                let empty = self.spare.pop().unwrap_or_default();
                self.pages.extend(sheets.turn(empty));
            }
            if !sheets.left.is_empty() {
                self.state.untold.store(true, Ordering::Release);
                left_out.add(std::mem::take(&mut sheets.left));
            }
            drop(sheets);
            if left {
                returned += lane.stock.swap(0, Ordering::Relaxed);
            }
            !left
        });
        lanes.free += returned;
        drop(lanes);
        let sampled = left_out.sampled.values().sum();
        self.state.metrics.audit_sampled_out(sampled);
        let told = left_out.is_empty();
        self.left.add(left_out);
        let found = self.pages.len() > before;
        if found && self.stages.any() {
            self.pass(before);
        }
        found || !told
    }

    /// Hands the pages from this one on to the stages. Lines that go no further leave their seats.
    fn pass(&mut self, from: usize) {
        let mut spare = self.spare.pop().unwrap_or_default();
        let (mut gone, mut lost) = (0, 0);
        for page in self.pages.iter_mut().skip(from) {
            let through = self.stages.pass(&mut page.text, &mut spare);
            page.lines = through.kept;
            gone += through.dropped + through.lost;
            lost += through.lost;
        }
        self.keep(Some(spare));
        if lost > 0 {
            self.state.metrics.audit_dropped(count(lost));
            self.left.lost += count(lost);
            self.state.untold.store(true, Ordering::Release);
        }
        if gone > 0 {
            self.state.gone(gone);
        }
    }

    /// Says whether too much waits.
    fn weigh(&self) {
        let bytes: usize = self.pages.iter().map(|page| page.text.len()).sum();
        let crowded = bytes > self.state.most_bytes();
        if self.state.crowded.load(Ordering::Relaxed) != crowded {
            self.state.crowded.store(crowded, Ordering::Relaxed);
        }
    }

    fn lines(&self) -> usize {
        self.pages.iter().map(|page| page.lines - page.done).sum()
    }

    /// Lets the sink look after itself, and hands it what there is.
    fn turn(&mut self) -> io::Result<()> {
        let told = self.tells();
        if self.pages.is_empty() && !told {
            // A file that was rotated is let go of even when there is nothing to write; but none is
            // opened before there is.
            return match self.refreshed {
                Some(_) => self.refresh(),
                None => Ok(()),
            };
        }
        self.refresh()?;
        if told {
            self.sink.left_out(&self.left)?;
            self.left = LeftOut::default();
            self.gathering = None;
            self.state.untold.store(false, Ordering::Release);
            self.state.tell();
        }
        while let Some(page) = self.pages.front_mut() {
            let rest = page.text.get(page.taken..).unwrap_or_default();
            if rest.is_empty() {
                let page = self.pages.pop_front().map(|page| page.text);
                self.keep(page);
                continue;
            }
            match self.sink.write(rest) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(more) => {
                    let lines = page.take(more);
                    self.told(lines);
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Whether the sink is told now of what did not come.
    fn tells(&mut self) -> bool {
        if self.left.is_empty() {
            return false;
        }
        let since = *self.gathering.get_or_insert_with(Instant::now);
        since.elapsed() >= GATHER
            || self.state.draining.load(Ordering::Acquire) > 0
            || self.state.closed.load(Ordering::Acquire)
    }

    fn keep(&mut self, page: Option<Vec<u8>>) {
        if let Some(mut page) = page
            && self.spare.len() < SPARE_PAGES
            && page.capacity() <= 2 * PAGE
        {
            page.clear();
            self.spare.push(page);
        }
    }

    /// So many lines more are with the sink.
    fn told(&mut self, lines: usize) {
        if lines == 0 {
            return;
        }
        self.recovered();
        self.state.metrics.audit_written(count(lines));
        self.state.gone(lines);
    }

    fn recovered(&mut self) {
        if self.state.failing.swap(false, Ordering::Relaxed) {
            tracing::info!("audit records are written again");
            self.complained = None;
        }
    }

    fn refresh(&mut self) -> io::Result<()> {
        if self
            .refreshed
            .is_none_or(|before| before.elapsed() >= REFRESH_EVERY)
        {
            let moved = self.sink.refresh()?;
            self.refreshed = Some(Instant::now());
            if moved && let Some(page) = self.pages.front_mut() {
                page.begin_line_anew();
            }
        }
        Ok(())
    }

    fn complain(&mut self, error: &io::Error) {
        self.state.metrics.audit_error();
        self.state.failing.store(true, Ordering::Relaxed);
        let waiting = self.state.waiting();
        self.state.metrics.audit_queued(waiting);
        if self
            .complained
            .is_none_or(|before| before.elapsed() >= COMPLAIN_EVERY)
        {
            self.complained = Some(Instant::now());
            tracing::error!(%error, waiting,
                "audit records cannot be written; trying again every second");
        }
    }
}

impl Page {
    /// The sink took so many bytes more; gives how many lines became whole by them.
    fn take(&mut self, more: usize) -> usize {
        self.taken += more;
        let done = if self.taken >= self.text.len() {
            self.lines
        } else {
            let taken = self.text.get(..self.taken).unwrap_or_default();
            memchr::memchr_iter(b'\n', taken).count()
        };
        done - std::mem::replace(&mut self.done, done)
    }

    /// A line that was begun went somewhere else.
    fn begin_line_anew(&mut self) {
        let taken = self.text.get(..self.taken).unwrap_or_default();
        self.taken = memchr::memrchr(b'\n', taken).map_or(0, |at| at + 1);
    }
}

/// A writer that died of a panic in its sink takes all seats with it: what it held and what is still
/// sent is counted as lost, and with `when_full: refuse` no request is taken any more.
impl Drop for Writer {
    fn drop(&mut self) {
        if !thread::panicking() {
            return;
        }
        let mut lost = self.lines();
        let mut lanes = locked(&self.state.lanes);
        lanes.dead = true;
        lanes.free = 0;
        for lane in lanes.list.drain(..) {
            let mut sheets = locked(&lane.sheets);
            sheets.dead = true;
            lost += sheets.waiting();
            (sheets.text, sheets.full) = (Vec::new(), Vec::new());
            sheets.left = LeftOut::default();
            (sheets.lines, sheets.whole) = (0, 0);
            lane.stock.store(0, Ordering::Relaxed);
        }
        drop(lanes);
        self.state.failing.store(true, Ordering::Relaxed);
        self.state.held.store(0, Ordering::Release);
        self.state.untold.store(false, Ordering::Release);
        self.state.freed.notify_waiters();
        self.state.metrics.audit_dropped(count(lost));
        self.state.metrics.audit_queued(0);
        self.state.tell();
    }
}

fn count(lines: usize) -> u64 {
    u64::try_from(lines).unwrap_or(u64::MAX)
}
