//! What outlives reloads of a candidate: what was counted, and whether it went back.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, TryLockError, Weak};
use std::time::{Duration, Instant};

use tokio::runtime::Handle;
use tokio::time::MissedTickBehavior;

use super::Candidate;
use super::band::Band;
use super::book::{Back, Book};
use super::report::Report;
use crate::authz::Policy;
use crate::clock;
use crate::epoch::Epoch;
use crate::metrics::CandidateMetrics;
use crate::schema::Compile;

/// How often a candidate that decides is judged.
pub(super) const LOOK: Duration = Duration::from_millis(500);

/// One candidate with one text, beside one text of its policy.
#[derive(Debug)]
pub(super) struct State {
    name: Arc<str>,
    of: Arc<str>,
    /// The candidate's, and its policy's.
    texts: (String, String),
    /// Read for every request that it would decide.
    back: AtomicBool,
    why: Mutex<Option<Back>>,
    report: Mutex<Report>,
    pub(super) metrics: CandidateMetrics,
    /// By what it is judged while it decides.
    judged_by: Mutex<Option<JudgedBy>>,
    followed: AtomicBool,
    /// Whether it is said that it stays in spite of its band.
    held: AtomicBool,
}

#[derive(Debug)]
struct JudgedBy {
    band: Band,
    epoch: Arc<Epoch>,
    book: Arc<Book>,
}

fn open<T>(lock: &Mutex<T>) -> MutexGuard<'_, T> {
    lock.lock().unwrap_or_else(PoisonError::into_inner)
}

impl State {
    /// What was counted before, if the texts are the same; otherwise a new one, which went back if that
    /// is written of this text.
    pub(super) fn carried(
        name: &str,
        policy: &Policy,
        active: &Policy,
        previous: Option<&Arc<Self>>,
        book: &Arc<Book>,
        cx: &Compile,
    ) -> Arc<Self> {
        let texts = (policy.text().to_owned(), active.text().to_owned());
        let of = &active.decided_by.policy;
        if let Some(previous) = previous
            && previous.texts == texts
            && previous.of == *of
        {
            return Arc::clone(previous);
        }
        let now = clock::unix_seconds(clock::now());
        let back = Some(&texts.0)
            .filter(|text| !text.is_empty())
            .and_then(|text| book.entry(name, text, now));
        Arc::new(Self {
            name: name.into(),
            of: Arc::clone(of),
            texts,
            back: AtomicBool::new(back.is_some()),
            why: Mutex::new(back),
            report: Mutex::default(),
            metrics: cx.metrics.candidate(name),
            judged_by: Mutex::default(),
            followed: AtomicBool::new(false),
            held: AtomicBool::new(false),
        })
    }

    pub(super) fn report(&self) -> MutexGuard<'_, Report> {
        open(&self.report)
    }

    /// [`State::report`], unless somebody has it.
    pub(super) fn report_now(&self) -> Option<MutexGuard<'_, Report>> {
        match self.report.try_lock() {
            Ok(report) => Some(report),
            Err(TryLockError::Poisoned(poisoned)) => Some(poisoned.into_inner()),
            Err(TryLockError::WouldBlock) => None,
        }
    }

    pub(super) fn is_back(&self) -> bool {
        self.back.load(Ordering::Acquire)
    }

    /// When and why it went back.
    pub(super) fn back(&self) -> Option<Back> {
        open(&self.why).clone()
    }

    pub(super) fn text(&self) -> &str {
        &self.texts.0
    }

    /// The configuration with this candidate is in force: it is judged by its band from now on.
    pub(super) fn follow(
        self: &Arc<Self>,
        candidate: &Candidate,
        book: &Arc<Book>,
        control: &Handle,
    ) {
        // It may have gone back, or been resumed, under the configuration before while this one was
        // compiled.
        let now = clock::unix_seconds(clock::now());
        let entry = Some(self.text()).filter(|text| !text.is_empty());
        let entry = entry.and_then(|text| book.entry(&self.name, text, now));
        self.back.store(entry.is_some(), Ordering::Release);
        *open(&self.why) = entry;
        self.metrics.back(candidate.enforces() && self.is_back());
        *open(&self.judged_by) = candidate.side.as_ref().map(|_| JudgedBy {
            band: candidate.band.clone(),
            epoch: Arc::clone(&candidate.epoch),
            book: Arc::clone(book),
        });
        if candidate.side.is_some() && !self.followed.swap(true, Ordering::AcqRel) {
            control.spawn(looked_after(Arc::downgrade(self)));
        }
    }

    /// Another one has taken its place: it is not judged any more.
    pub(super) fn let_go(&self) {
        *open(&self.judged_by) = None;
    }

    /// Judges it by what came in since the last look.
    fn look(&self, second: u64) {
        // Held until it has gone back: whoever lets go of it waits for that.
        let judged_by = open(&self.judged_by);
        let Some(by) = &*judged_by else {
            return;
        };
        let (left, held) = {
            let mut report = self.report();
            let report = &mut *report;
            let more = report.judged.less(report.seen);
            report.seen = report.judged;
            let denied = std::mem::take(&mut report.denied);
            report.window.take(second, more, &denied, &by.band);
            (report.window.left(&by.band), report.window.held(&by.band))
        };
        if self.held.swap(held.is_some(), Ordering::AcqRel) != held.is_some()
            && let Some(why) = held
        {
            tracing::warn!(candidate = %self.name, policy = %self.of, %why, "a few callers are denied often");
        }
        if let Some(left) = left
            && !self.is_back()
        {
            self.go_back(left.edge, left.to_string(), by);
        }
    }

    fn go_back(&self, edge: &'static str, why: String, by: &JudgedBy) {
        let back = Back {
            text: self.texts.0.clone(),
            since: clock::unix_seconds(clock::now()),
            edge: edge.to_owned(),
            why,
        };
        by.book.put(&self.name, back.clone());
        let why = back.why.clone();
        *open(&self.why) = Some(back);
        self.back.store(true, Ordering::Release);
        self.metrics.went_back(edge);
        // Behind the change: streams that it let in are judged again, by its policy.
        by.epoch.advance();
        tracing::error!(
            candidate = %self.name,
            policy = %self.of,
            %why,
            "a candidate went back: its policy decides again until somebody resumes it or its text changes"
        );
        save(&by.book);
    }

    /// Lets it go back by order. Whether that changed anything.
    pub(super) fn send_back(&self) -> bool {
        let judged_by = open(&self.judged_by);
        let Some(by) = &*judged_by else {
            return false;
        };
        if self.is_back() {
            return false;
        }
        self.go_back("order", "somebody sent it back".to_owned(), by);
        true
    }

    /// Lets it decide again. Whether it had gone back.
    pub(super) fn resume(&self, book: &Arc<Book>, epoch: &Epoch) -> bool {
        let was = self.is_back();
        self.report().judge_anew();
        *open(&self.why) = None;
        book.strike(&self.name);
        self.back.store(false, Ordering::Release);
        self.metrics.back(false);
        if was {
            epoch.advance();
            tracing::info!(candidate = %self.name, policy = %self.of, "a candidate was resumed");
            save(book);
        }
        was
    }
}

/// Writes the book without holding anybody up. Always called on the control thread's runtime.
pub(super) fn save(book: &Arc<Book>) {
    if !book.is_kept() {
        return;
    }
    let book = Arc::clone(book);
    match Handle::try_current() {
        Ok(control) => drop(control.spawn_blocking(move || book.save())),
        Err(_) => book.save(),
    }
}

async fn looked_after(state: Weak<State>) {
    let began = Instant::now();
    let mut ticks = tokio::time::interval(LOOK);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let Some(state) = state.upgrade() else {
            return;
        };
        state.look(began.elapsed().as_secs());
    }
}
