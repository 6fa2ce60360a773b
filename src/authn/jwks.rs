//! The keys of one issuer: fetched ahead, refreshed, kept while the issuer fails, and in the end
//! distrusted. Never sees a request.
//!
//! One task on the control thread fetches; there is no other place that does, so there is never
//! more than one fetch per issuer under way. Requests read the set through an atomic pointer. Only
//! a token whose `kid` is not in the set makes a request wait, for its own short time, and may make
//! the task fetch early, within the rules of `demand`: random `kid`s turn neither us
//! into a flood against the issuer nor the issuer's slowness into ours.
//!
//! What the set is and what is distrusted stands in the `Book`; a second task keeps it on disk, where
//! the operator wants that. Whenever a key that was believed no longer is, the [`Epoch`] moves, so that
//! cached tokens and open streams end with it.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, SystemTime};

use arc_swap::ArcSwap;
use moka::sync::Cache;
use serde::Serialize;
use tokio::sync::{Notify, watch};
use tokio::task::{JoinError, JoinHandle};
use tokio::time::{Instant, sleep, sleep_until, timeout, timeout_at};

use super::algorithm::Algorithm;
use super::book::{Book, Change, Distrust, InForce, KeyName, Origin, Published, Sought, What};
use super::demand::{Demand, Next, Waiting};
use super::kept::{self, Found, Keeping, Kept, Refusal};
use super::keys::{Key, KeySet};
use super::source::{Discovered, LoadError, Loaded, Source};
use crate::clock;
use crate::epoch::Epoch;
use crate::metrics::Metrics;

/// Most `kid`s remembered as absent.
const MAX_MISSING: u64 = 1024;

/// The first pause after a failure; it doubles up to the refresh interval.
const FIRST_RETRY: Duration = Duration::from_secs(1);

/// How long reading what was kept may hold up the first fetch, and how long an operator is told to wait
/// for the disk.
const DISK_WAIT: Duration = Duration::from_secs(5);

/// How long after a file could not be used it is looked at again: somebody may have mended it.
const LOOK_AGAIN: Duration = Duration::from_secs(2);

/// How often an unchanged set is written down again, so that its age on disk is about right.
const KEEP_EVERY: Duration = Duration::from_secs(60);

/// How often keys are fetched, and how long they are believed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Timing {
    /// Longest time between two fetches.
    pub(super) interval: Duration,
    /// Shortest time between two fetches that no request asked for.
    pub(super) minimum: Duration,
    /// How long keys are believed after the last good fetch.
    pub(super) stale_limit: Duration,
    /// How long one request waits for keys.
    pub(super) wait: Duration,
    /// Shortest time from the end of a fetch that was asked for in vain to the next.
    pub(super) cooldown: Duration,
    /// Most fetches a minute that requests ask for in vain.
    pub(super) budget: u32,
    /// How long a key is believed that is no longer published.
    pub(super) retire: Duration,
}

/// Why there is no key for a token.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum NoKey {
    /// The issuer has no such key, as far as we may know.
    Unknown,
    /// The key is not for the token's algorithm.
    Mismatch,
    /// The token has no `kid` and several keys fit.
    Ambiguous,
    /// There are no keys at all.
    Unavailable,
    /// An operator has distrusted the key.
    Distrusted,
}

/// What is known of an issuer's keys, for the admin page.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct KeyStatus {
    /// The issuer's block.
    pub name: Arc<str>,
    /// Usable keys.
    pub keys: usize,
    /// Where they are from.
    pub source: Origin,
    /// Seconds since the last good fetch; none when there was none or the keys are fixed.
    pub age_seconds: Option<u64>,
    /// For how many seconds more they are believed if no fetch succeeds; none when there are none or
    /// they are fixed.
    pub believed_for_seconds: Option<u64>,
    /// Fetches that were tried.
    pub attempts: u64,
    /// Why the last fetch failed, when it did.
    pub last_error: Option<String>,
    /// Keys that are distrusted.
    pub distrusted: usize,
    /// Why the set is not kept on disk as it was asked for.
    pub file_error: Option<String>,
    /// Why nobody knows which keys the file on disk distrusts; the issuer is not ready then.
    pub unread: Option<String>,
    /// Why keys of the set were left out.
    pub notes: Vec<String>,
}

/// One key, for the admin page.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct KeyFacts {
    /// Its `kid`.
    pub kid: Option<Arc<str>>,
    /// Its thumbprint (RFC 7638, SHA-256).
    pub thumbprint: Option<Arc<str>>,
    /// What it may verify.
    pub algorithms: Vec<&'static str>,
    /// When it was first seen, in seconds since 1970.
    pub first_seen: u64,
    /// `believed`, `leaving` (no longer published) or `distrusted`.
    pub state: &'static str,
    /// For how many seconds more it is believed, when it is leaving.
    pub leaves_in_seconds: Option<u64>,
}

/// All keys of an issuer, for the admin page.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct KeyPage {
    /// What is known of the set.
    #[serde(flatten)]
    pub status: KeyStatus,
    /// Its `iss`.
    pub issuer: Arc<str>,
    /// When it was last fetched, in seconds since 1970.
    pub fetched_at: Option<u64>,
    /// Published and leaving keys.
    pub published: Vec<KeyFacts>,
    /// What is distrusted, published or not.
    pub distrust: Vec<Distrust>,
}

/// What became of a wish to distrust a key, or to trust it again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Judged {
    /// The entries that were made or lifted; distrusting a key again tells the entry there was.
    pub keys: Vec<Distrust>,
    /// Whether a restart keeps it so; none when no file is configured.
    pub kept: Option<bool>,
}

/// Why a key was not distrusted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NotJudged {
    /// The issuer's key is a secret of the configuration.
    #[error("the issuer's key is a secret: replace it in the configuration")]
    Secret,
    /// There are too many already.
    #[error("too many keys are distrusted: trust some again that the issuer has given up")]
    Full,
}

/// The keys of one issuer.
#[derive(Debug)]
pub(super) struct KeyStore {
    name: Arc<str>,
    issuer: Arc<str>,
    source: Source,
    timing: Timing,
    metrics: Arc<Metrics>,
    epoch: Arc<Epoch>,
    keeping: Option<Keeping>,
    book: Mutex<Book>,
    current: ArcSwap<InForce>,
    demand: Demand,
    report: Mutex<Report>,
    /// Fetches that ended; waiting requests look again whenever it is sent, risen or not.
    attempts: watch::Sender<u64>,
    wake: Arc<Notify>,
    /// There is something to write down.
    dirty: Arc<Notify>,
    /// One writes at a time, also of two configurations: an older state never overtakes a newer one.
    writing: Arc<tokio::sync::Mutex<()>>,
    /// The store of the configuration before, which writes no more once this one is in force.
    earlier: Weak<Self>,
    /// Stores of the configuration before for the same `iss` under other names, when there is no
    /// `earlier`: what they distrust, this one does.
    kin: Vec<Weak<Self>>,
    started: AtomicBool,
    waiting: Waiting,
    missing: Cache<Arc<str>, Missing>,
}

/// A `kid` that was sought in vain.
#[derive(Debug, Clone, Copy)]
struct Missing {
    /// The set that does not hold it. Another one may.
    version: u64,
    until: Instant,
}

/// What is told of the tasks' work.
#[derive(Debug, Default)]
struct Report {
    last_error: Option<(&'static str, String)>,
    file_error: Option<String>,
    /// Why the file, which is there, was not looked at yet.
    unread: Option<String>,
    /// Whether the file was looked at; what stands in it must not be written over before.
    recovered: bool,
    /// The file is not ours to write.
    foreign: bool,
    kept_at: Option<Instant>,
}

/// The file being read.
type Reading = JoinHandle<Result<Option<Found>, Refusal>>;

/// What the refreshing task remembers from one fetch to the next.
#[derive(Debug, Default)]
struct Refresher {
    discovered: Option<Discovered>,
    failures: u32,
}

impl KeyStore {
    /// A store that begins with `initial`, when it is known already.
    pub(super) fn new(
        name: Arc<str>,
        issuer: Arc<str>,
        source: Source,
        timing: Timing,
        initial: Option<KeySet>,
        metrics: Arc<Metrics>,
    ) -> Self {
        let mut book = Book::default();
        if let Some(set) = initial {
            let (origin, believed) = match source {
                Source::Fixed => (Origin::Secret, None),
                Source::Discovery(..) | Source::Url(..) | Source::File(_) => {
                    (Origin::File, Some(timing.stale_limit))
                }
            };
            let now = (Instant::now(), clock::now());
            book.replace(set, origin, now, believed, Duration::ZERO);
        }
        let in_force = book.render(&InForce::default());
        Self {
            missing: Cache::builder().max_capacity(MAX_MISSING).build(),
            name,
            issuer,
            source,
            demand: Demand::new(timing.budget, timing.cooldown),
            timing,
            metrics,
            epoch: Arc::default(),
            keeping: None,
            book: Mutex::new(book),
            current: ArcSwap::from_pointee(in_force),
            report: Mutex::default(),
            attempts: watch::Sender::new(0),
            wake: Arc::default(),
            dirty: Arc::default(),
            writing: Arc::default(),
            earlier: Weak::new(),
            kin: Vec::new(),
            started: AtomicBool::new(false),
            waiting: Waiting::default(),
        }
    }

    /// The same store, which tells of keys that are no longer believed and keeps the set on disk.
    pub(super) fn with(mut self, epoch: Arc<Epoch>, keeping: Option<Keeping>) -> Self {
        self.epoch = epoch;
        self.keeping = keeping;
        self
    }

    /// Goes on from the store of an earlier configuration: with what is distrusted, and with its keys
    /// when they come from the same place.
    pub(super) fn after(mut self, earlier: &Arc<Self>, same_source: bool) -> Self {
        self.earlier = Arc::downgrade(earlier);
        self.writing = Arc::clone(&earlier.writing);
        let mut own = self.book();
        let before = earlier.book().clone();
        if same_source && own.published.is_empty() {
            *own = before;
        } else {
            own.distrusted = before.distrusted;
        }
        self.current
            .store(Arc::new(own.render(&InForce::default())));
        drop(own);
        self
    }

    /// Takes over what was distrusted for the same issuer under other names: a block that is renamed
    /// must not believe those keys again.
    pub(super) fn heeding(mut self, kin: &[Arc<Self>]) -> Self {
        let mut own = self.book();
        for one in kin {
            own.merge(one.book().distrusted.clone());
        }
        self.current
            .store(Arc::new(own.render(&InForce::default())));
        drop(own);
        if let Some(writer) = kin.iter().find(|one| self.shares_file_with(one)) {
            self.writing = Arc::clone(&writer.writing);
        }
        self.kin = kin.iter().map(Arc::downgrade).collect();
        self
    }

    fn shares_file_with(&self, other: &Self) -> bool {
        match (&self.keeping, &other.keeping) {
            (Some(own), Some(others)) => own.file == others.file,
            _ => false,
        }
    }

    /// Starts the tasks, once. They end when the store is dropped.
    pub(super) fn activate(self: &Arc<Self>, control: &tokio::runtime::Handle) {
        if matches!(self.source, Source::Fixed) || self.started.swap(true, Ordering::Relaxed) {
            return;
        }
        if let Some(earlier) = self.earlier.upgrade() {
            // It may live on with long requests, and learns nothing of what is distrusted from now on.
            earlier.report().foreign = true;
            let distrusted = earlier.book().distrusted.clone();
            self.change(|book| book.merge(distrusted));
        }
        for kin in self.kin.iter().filter_map(Weak::upgrade) {
            if self.shares_file_with(&kin) {
                kin.report().foreign = true;
            }
            let distrusted = kin.book().distrusted.clone();
            self.change(|book| book.merge(distrusted));
        }
        self.demand.want();
        control.spawn(refresh(Arc::downgrade(self), Arc::clone(&self.wake)));
        if self.keeping.is_some() {
            control.spawn(keep(Arc::downgrade(self), Arc::clone(&self.dirty)));
        }
    }

    /// Whether this key is (still) believed.
    pub(super) fn holds(&self, fingerprint: &[u8; 32]) -> bool {
        self.current.load().holds(fingerprint, Instant::now())
    }

    /// As [`KeyStore::key_for`], for what comes from no caller's address.
    ///
    /// # Errors
    /// [`NoKey`].
    pub(super) async fn key(
        &self,
        id: Option<&Arc<str>>,
        algorithm: Algorithm,
    ) -> Result<Arc<Key>, NoKey> {
        let nobody = IpAddr::V4(Ipv4Addr::UNSPECIFIED);
        self.key_for(id, algorithm, nobody).await
    }

    /// The key for a token that came from this address. Known keys never wait; otherwise at most the
    /// configured time.
    ///
    /// Cancel safe: a fetch that was asked for goes on.
    ///
    /// # Errors
    /// [`NoKey`].
    pub(super) async fn key_for(
        &self,
        id: Option<&Arc<str>>,
        algorithm: Algorithm,
        from: IpAddr,
    ) -> Result<Arc<Key>, NoKey> {
        let now = Instant::now();
        let first = self.find(id, algorithm, now);
        if !may_come(&first) || matches!(self.source, Source::Fixed) {
            return first;
        }
        let deadline = now + self.timing.wait;
        // Before anything that costs: this is where storms end.
        if self.demand.is_shut(deadline) {
            self.metrics.jwks_unknown_key(&self.name, "limited");
            return first;
        }
        let name = id.map_or_else(|| Arc::from(algorithm.name()), Arc::clone);
        // Its tokens come for as long as they last, and must not use up what new keys need.
        let gone = self.current.load().gone_since(&name);
        if gone.is_some_and(|since| now < since + self.timing.minimum) {
            self.metrics.jwks_unknown_key(&self.name, "former");
            return first;
        }
        if matches!(first, Err(NoKey::Unknown)) && self.is_missing(&name, now) {
            self.metrics.jwks_unknown_key(&self.name, "remembered");
            return first;
        }
        let Some(_place) = self.waiting.take(from) else {
            self.metrics.jwks_unknown_key(&self.name, "crowded");
            return first;
        };
        self.wait(id, name, algorithm, deadline).await
    }

    /// Waits for a fetch that began after now, or for any that brings the key.
    async fn wait(
        &self,
        id: Option<&Arc<str>>,
        name: Arc<str>,
        algorithm: Algorithm,
        deadline: Instant,
    ) -> Result<Arc<Key>, NoKey> {
        // Before the first look of the loop: an end that comes after it is told.
        let mut ends = self.attempts.subscribe();
        let arrival = self.demand.arrive();
        let mut outcome = "waited";
        loop {
            ends.borrow_and_update();
            // Read before the set: a set that came in between is newer than what is noted as missing.
            let version = self.current.load().version;
            let now = Instant::now();
            let found = self.find(id, algorithm, now);
            if !may_come(&found) || now >= deadline {
                self.metrics.jwks_unknown_key(&self.name, outcome);
                return found;
            }
            let until = match self.demand.next(arrival, now) {
                Next::Wait => deadline,
                Next::Wake => {
                    outcome = "fetch";
                    self.wake.notify_one();
                    deadline
                }
                Next::At(open) if open <= deadline => open,
                Next::At(_) => {
                    self.metrics.jwks_unknown_key(&self.name, "limited");
                    return found;
                }
                Next::Looked(good) => {
                    // The set and the end of its fetch are not told at once: look a last time.
                    let found = self.find(id, algorithm, now);
                    if good && matches!(found, Err(NoKey::Unknown)) {
                        self.miss(name, version, now);
                    }
                    self.metrics.jwks_unknown_key(&self.name, outcome);
                    return found;
                }
            };
            // Whichever comes first, the next look tells.
            let _ = timeout_at(until, ends.changed()).await;
        }
    }

    fn is_missing(&self, name: &Arc<str>, now: Instant) -> bool {
        self.missing.get(name).is_some_and(|missing| {
            missing.version == self.current.load().version && now < missing.until
        })
    }

    /// Remembers a `kid` as sought in vain: so long that tokens which bear it leave room in the budget,
    /// and no longer than a drained budget would hold it up, for somebody may ask for it before it is
    /// published. A former key's tokens come for as long as they last, and it seldom comes back.
    fn miss(&self, name: Arc<str>, version: u64, now: Instant) {
        let lasts = if self.current.load().gone_since(&name).is_some() {
            self.timing.minimum
        } else {
            self.timing.cooldown
        };
        let until = now + lasts.max(self.demand.recovery());
        self.missing.insert(name, Missing { version, until });
    }

    fn find(
        &self,
        id: Option<&Arc<str>>,
        algorithm: Algorithm,
        now: Instant,
    ) -> Result<Arc<Key>, NoKey> {
        // A secret has no name: whatever `kid` the token carries, there is one key.
        let id = id.filter(|_| !matches!(self.source, Source::Fixed));
        match self.current.load().find(id.map(|id| &**id), algorithm, now) {
            Sought::Key(key) => Ok(key),
            Sought::Mismatch => Err(NoKey::Mismatch),
            Sought::Ambiguous => Err(NoKey::Ambiguous),
            Sought::Unknown => Err(NoKey::Unknown),
            Sought::Distrusted => Err(NoKey::Distrusted),
            Sought::Nothing => Err(NoKey::Unavailable),
        }
    }

    /// Believes none of the keys of this name any more: from when this returns, no token that they have
    /// signed passes, verified before or not, and open streams are being judged again. Returns the
    /// entries; [`KeyStore::keep_now`] puts them on disk.
    ///
    /// # Errors
    /// [`NotJudged`]; then nothing has changed.
    pub(super) fn distrust(&self, name: &KeyName) -> Result<Vec<Distrust>, NotJudged> {
        if matches!(self.source, Source::Fixed) {
            return Err(NotJudged::Secret);
        }
        let since = clock::unix_seconds(clock::now());
        let keys = self
            .change(|book| book.distrust(name, since))
            .ok_or(NotJudged::Full)?;
        for one in &keys {
            tracing::warn!(issuer = %self.name, kid = ?one.kid, thumbprint = ?one.thumbprint, "key distrusted");
            self.metrics.jwks_event(&self.name, "distrusted");
        }
        Ok(keys)
    }

    /// Believes the keys of this name again, if the issuer publishes them. Returns what was lifted.
    ///
    /// # Errors
    /// [`NotJudged::Secret`].
    pub(super) fn trust(&self, name: &KeyName) -> Result<Vec<Distrust>, NotJudged> {
        if matches!(self.source, Source::Fixed) {
            return Err(NotJudged::Secret);
        }
        let keys = self.change(|book| book.trust(name));
        for one in &keys {
            tracing::warn!(issuer = %self.name, kid = ?one.kid, thumbprint = ?one.thumbprint, "key trusted again");
            self.metrics.jwks_event(&self.name, "trusted");
        }
        Ok(keys)
    }

    /// What is known now.
    pub(super) fn status(&self) -> KeyStatus {
        let now = Instant::now();
        let keys = self.current.load().len(now);
        let attempts = *self.attempts.borrow();
        let book = self.book();
        let fixed = matches!(self.source, Source::Fixed);
        let report = self.report();
        KeyStatus {
            name: Arc::clone(&self.name),
            keys,
            source: book.origin,
            age_seconds: book.fetched_at.filter(|_| !fixed).map(|at| {
                clock::now()
                    .duration_since(at)
                    .unwrap_or_default()
                    .as_secs()
            }),
            believed_for_seconds: book
                .until
                .filter(|_| keys > 0)
                .map(|until| until.saturating_duration_since(now).as_secs()),
            attempts,
            last_error: report.last_error.as_ref().map(|(_, text)| text.clone()),
            distrusted: book.distrusted.len(),
            file_error: report.file_error.clone(),
            unread: report.unread.clone(),
            notes: book.notes.clone(),
        }
    }

    /// Every key, for the admin page.
    pub(super) fn page(&self) -> KeyPage {
        let status = self.status();
        let now = Instant::now();
        let book = self.book();
        let facts = |key: &Key, first_seen: SystemTime, state, leaves| KeyFacts {
            kid: key.id.clone(),
            thumbprint: key.thumbprint().cloned(),
            algorithms: key.algorithms().iter().map(|one| one.name()).collect(),
            first_seen: clock::unix_seconds(first_seen),
            state,
            leaves_in_seconds: leaves,
        };
        let published = book.published.iter().map(|one: &Published| {
            let distrusted = book.is_distrusted(&one.key);
            let state = if distrusted { "distrusted" } else { "believed" };
            facts(&one.key, one.first_seen, state, None)
        });
        let leaving = book.leaving.iter().map(|one| {
            let left = one.until.saturating_duration_since(now).as_secs();
            facts(&one.key, one.first_seen, "leaving", Some(left))
        });
        KeyPage {
            issuer: Arc::clone(&self.issuer),
            fetched_at: book.fetched_at.map(clock::unix_seconds),
            published: published.chain(leaving).collect(),
            distrust: book.distrusted.clone(),
            status,
        }
    }

    /// Changes what is known, and puts it in force. The one way to do so.
    fn change<R>(&self, edit: impl FnOnce(&mut Book) -> R) -> R {
        let mut book = self.book();
        let result = edit(&mut book);
        let before = self.current.load_full();
        let after = Arc::new(book.render(&before));
        let lost = after.lacks_any_of(&before);
        let keys = after.len(Instant::now());
        self.current.store(after);
        let (fetched_at, origin) = (book.fetched_at, book.origin);
        let distrusted = book.distrusted.len();
        drop(book);
        // Behind the change: whoever is told looks at what is in force by then.
        if lost {
            self.epoch.advance();
        }
        self.metrics.jwks_keys(&self.name, keys, fetched_at);
        self.metrics
            .jwks_standing(&self.name, origin == Origin::Disk, distrusted);
        result
    }

    fn book(&self) -> MutexGuard<'_, Book> {
        // Nothing in the critical sections can panic; if it did, the values would still be good.
        self.book.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn report(&self) -> MutexGuard<'_, Report> {
        // As above.
        self.report.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// One fetch; returns how long to wait for the next.
    async fn attempt(&self, refresher: &mut Refresher) -> Duration {
        let sought = self.demand.begin();
        let outcome = self
            .source
            .load(&self.issuer, &mut refresher.discovered, sought)
            .await;
        let now = Instant::now();
        let (pause, good, fresh) = match outcome {
            Ok(Loaded {
                set,
                lifetime,
                moved,
            }) => {
                refresher.failures = 0;
                self.metrics.jwks_fetch(&self.name, "ok");
                if let Some((old, new)) = moved {
                    tracing::warn!(issuer = %self.name, old = old.as_str(), new = new.as_str(), "the issuer's `jwks_uri` has moved");
                    self.metrics.jwks_event(&self.name, "moved");
                }
                let fresh = self.accept(set, now);
                let pause = lifetime
                    .unwrap_or(self.timing.interval)
                    .clamp(self.timing.minimum, self.timing.interval);
                (pause, true, fresh)
            }
            Err(error) => {
                refresher.failures = refresher.failures.saturating_add(1);
                self.metrics.jwks_fetch(&self.name, error.code());
                self.failed(&error, refresher.failures);
                let pause = FIRST_RETRY
                    .saturating_mul(1 << refresher.failures.saturating_sub(1).min(16))
                    .min(self.timing.interval);
                (pause, false, false)
            }
        };
        self.demand.end(good, fresh, Instant::now());
        self.attempts.send_modify(|attempts| *attempts += 1);
        // A fleet that started together must not fetch together.
        pause.mul_f64(1.0 - rand::random::<f64>() * 0.2)
    }

    /// Puts a set in force; whether it brought a key that was not known.
    fn accept(&self, set: KeySet, now: Instant) -> bool {
        let origin = match self.source {
            Source::File(_) => Origin::File,
            Source::Discovery(..) | Source::Url(..) | Source::Fixed => Origin::Network,
        };
        let (changes, notes) = self.change(|book| {
            let notes = (set.notes != book.notes).then(|| set.notes.clone());
            let believed = Some(self.timing.stale_limit);
            let now = (now, clock::now());
            let changes = book.replace(set, origin, now, believed, self.timing.retire);
            (changes, notes)
        });
        for note in notes.iter().flatten() {
            tracing::warn!(issuer = %self.name, note = %note, "issuer publishes an odd key");
        }
        for change in &changes {
            self.tell(change);
        }
        let mut report = self.report();
        report.last_error = None;
        let due = report
            .kept_at
            .is_none_or(|at| now.duration_since(at) >= KEEP_EVERY);
        if !changes.is_empty() || due {
            self.dirty.notify_one();
        }
        drop(report);
        changes
            .iter()
            .any(|change| matches!(change.what, What::Added | What::Replaced | What::Renamed))
    }

    fn tell(&self, change: &Change) {
        let Change {
            what,
            kid,
            old,
            new,
        } = change;
        let code = what.code();
        // A value, or nothing: not how it is kept here.
        let (kid, old, new) = (kid.as_deref(), old.as_deref(), new.as_deref());
        match what {
            What::Added | What::Removed => {
                tracing::info!(issuer = %self.name, change = code, kid, old, new, "issuer keys changed");
            }
            What::Replaced | What::Renamed | What::Distrusted => {
                tracing::warn!(issuer = %self.name, change = code, kid, old, new, "issuer keys changed");
            }
        }
        self.metrics.jwks_event(&self.name, code);
    }

    fn failed(&self, error: &LoadError, failures: u32) {
        let code = error.code();
        let text = error.full();
        let believed = self.current.load().len(Instant::now()) > 0;
        let news = {
            let mut report = self.report();
            let news = report
                .last_error
                .as_ref()
                .is_none_or(|(last, _)| *last != code);
            report.last_error = Some((code, text.clone()));
            news
        };
        if news {
            tracing::warn!(issuer = %self.name, error = %text, keys_kept = believed, "fetching issuer keys failed");
            if matches!(error, LoadError::Issuer) {
                self.metrics.jwks_event(&self.name, "issuer_mismatch");
            }
        } else {
            tracing::debug!(issuer = %self.name, error = %text, failures, "fetching issuer keys failed again");
        }
        self.sweep();
    }

    /// Gives up what is believed no longer.
    fn sweep(&self) {
        let now = Instant::now();
        if self.book().next_sweep().is_none_or(|at| now < at) {
            return;
        }
        if self.change(|book| book.sweep(now)) {
            tracing::error!(issuer = %self.name, "issuer keys are too old and no longer believed");
            self.metrics.jwks_event(&self.name, "lapsed");
        }
    }

    /// Takes up what was kept on disk, before the first fetch. What cannot be read in time, or not as
    /// it is, is gone after in a task of its own: keys may be distrusted there, and the issuer is not
    /// ready until that is known.
    async fn recover(self: &Arc<Self>) {
        let Some(mut reading) = self.read() else {
            self.report().recovered = true;
            return;
        };
        let reading = match timeout(DISK_WAIT, &mut reading).await {
            Ok(read) => {
                if self.take_up(read) {
                    return;
                }
                None
            }
            Err(_) => {
                self.unread("it could not be read in time");
                Some(reading)
            }
        };
        tokio::spawn(look_again(Arc::downgrade(self), reading));
    }

    /// Begins to read the file, where there is to be one.
    fn read(&self) -> Option<Reading> {
        let file = Arc::clone(&self.keeping.as_ref()?.file);
        let issuer = Arc::clone(&self.issuer);
        Some(tokio::task::spawn_blocking(move || {
            kept::read(&file, &issuer, clock::now())
        }))
    }

    /// Notes, and tells once, that keys may be distrusted on disk that nobody knows of.
    fn unread(&self, why: &str) {
        let Some(keeping) = &self.keeping else {
            return;
        };
        let file = keeping.file.display();
        let text = format!("{file} was not used: {why}");
        let news = {
            let mut report = self.report();
            report.file_error = Some(text.clone());
            report.unread.replace(text.clone()) != Some(text)
        };
        if news {
            tracing::error!(issuer = %self.name, %file, error = why, "the keys kept on disk are not used, and keys distrusted there are not known: mend the file or take it away");
            self.metrics.jwks_event(&self.name, "file_refused");
        }
    }

    /// Takes up what was read; whether the file needs no further look.
    fn take_up(&self, read: Result<Result<Option<Found>, Refusal>, JoinError>) -> bool {
        match read {
            Ok(Ok(Some(found))) => self.resume(found),
            Ok(Ok(None)) => {}
            Ok(Err(refusal)) if refusal.may_hide_distrust() => {
                self.unread(&full(&refusal));
                return false;
            }
            Ok(Err(refusal)) => {
                self.refuse_file(&full(&refusal));
                self.report().foreign = true;
            }
            Err(_) => {
                self.unread("the reading thread failed");
                return false;
            }
        }
        let distrusts = !self.book().distrusted.is_empty();
        let mut report = self.report();
        report.recovered = true;
        let late = report.unread.take().is_some();
        if late && !report.foreign {
            report.file_error = None;
        }
        if late || distrusts {
            self.dirty.notify_one();
        }
        drop(report);
        if late {
            tracing::warn!(issuer = %self.name, "it is known again which keys were distrusted on disk");
        }
        true
    }

    /// Tells why the file is not used as it is.
    fn refuse_file(&self, why: &str) {
        let Some(keeping) = &self.keeping else {
            return;
        };
        let file = keeping.file.display();
        tracing::error!(issuer = %self.name, %file, error = why, "the keys kept on disk are not used");
        self.metrics.jwks_event(&self.name, "file_refused");
        self.report().file_error = Some(format!("{file} was not used: {why}"));
    }

    /// Goes on with what was kept: with the distrust in any case, with the keys where there are none.
    fn resume(&self, found: Found) {
        let Some(keeping) = &self.keeping else {
            return;
        };
        let file = keeping.file.display();
        if found.from_future {
            self.refuse_file(
                "it was written in the future, so a clock is wrong: what it distrusts is heeded all the same",
            );
        }
        let now = Instant::now();
        let left = keeping.keep.checked_sub(found.age);
        let keys = found.published.len();
        let taken = self.change(|book| {
            book.merge(found.distrusted);
            let left = left.filter(|_| book.published.is_empty() && keys > 0)?;
            book.published = found.published;
            book.origin = Origin::Disk;
            book.fetched_at = Some(found.fetched_at);
            book.until = Some(now + left);
            Some(())
        });
        let age = found.age.as_secs();
        if taken.is_some() {
            tracing::warn!(issuer = %self.name, %file, keys, age_seconds = age, "issuer keys are those kept on disk until the issuer answers");
            self.metrics.jwks_event(&self.name, "from_disk");
        } else if left.is_none() && keys > 0 {
            tracing::warn!(issuer = %self.name, %file, age_seconds = age, "the keys kept on disk are too old");
        }
        // Whoever waits for the first fetch may have no need to.
        self.attempts.send_modify(|_| {});
    }

    /// Writes down what is known; whether it is on disk now.
    async fn persist(&self) -> bool {
        let Some(keeping) = self.keeping.clone() else {
            return false;
        };
        let _turn = self.writing.lock().await;
        {
            let report = self.report();
            if report.foreign || !report.recovered {
                return false;
            }
        }
        // Not bounded in time: another one must not begin while this is on its way.
        let kept = Kept::of(&self.book(), &self.issuer);
        let file = Arc::clone(&keeping.file);
        let written = tokio::task::spawn_blocking(move || kept::write(&file, kept)).await;
        let error = match written {
            Ok(Ok(())) => None,
            Ok(Err(error)) => Some(full(&error)),
            Err(_) => Some("the writing thread failed".to_owned()),
        };
        let mut report = self.report();
        report.kept_at = Some(Instant::now());
        let file = keeping.file.display();
        let text = error.map(|error| format!("{file} cannot be written: {error}"));
        if let Some(text) = &text {
            self.metrics.jwks_event(&self.name, "file_failed");
            if report.file_error.as_ref() != Some(text) {
                tracing::error!(issuer = %self.name, error = %text, "issuer keys are not kept on disk");
            }
        }
        report.file_error = text;
        report.file_error.is_none()
    }

    /// Writes down what is known, for somebody who waits; none when no file is configured.
    pub(super) async fn keep_now(self: &Arc<Self>) -> Option<bool> {
        self.keeping.as_ref()?;
        let store = Arc::clone(self);
        // Goes on when the wait is over.
        let written = tokio::spawn(async move { store.persist().await });
        Some(matches!(timeout(DISK_WAIT, written).await, Ok(Ok(true))))
    }
}

impl Drop for KeyStore {
    fn drop(&mut self) {
        // The tasks find nobody to work for and end.
        self.wake.notify_one();
        self.dirty.notify_one();
    }
}

/// Whether the key may be there after another fetch.
fn may_come(found: &Result<Arc<Key>, NoKey>) -> bool {
    matches!(found, Err(NoKey::Unknown | NoKey::Unavailable))
}

/// An error with its causes: for the log and the admin page, never for clients.
fn full(error: &(dyn std::error::Error + 'static)) -> String {
    let causes = std::iter::successors(error.source(), |error| error.source());
    causes.fold(error.to_string(), |text, cause| format!("{text}: {cause}"))
}

async fn refresh(store: Weak<KeyStore>, wake: Arc<Notify>) {
    let mut refresher = Refresher::default();
    if let Some(store) = store.upgrade() {
        store.recover().await;
    }
    loop {
        let pause = match store.upgrade() {
            Some(store) => store.attempt(&mut refresher).await,
            None => return,
        };
        let next = Instant::now() + pause;
        loop {
            let sweep = match store.upgrade() {
                Some(store) => store.book().next_sweep(),
                None => return,
            };
            let until = sweep.map_or(next, |sweep| sweep.min(next));
            tokio::select! {
                () = sleep_until(until) => {}
                () = wake.notified() => {}
            }
            match store.upgrade() {
                // A wake-up may be left over from a fetch that began by the clock at the same moment.
                Some(store) if !store.demand.is_wanted() && Instant::now() < next => store.sweep(),
                Some(_) => break,
                None => return,
            }
        }
    }
}

/// Goes on reading what was kept, until it is read or there is no file.
async fn look_again(store: Weak<KeyStore>, mut reading: Option<Reading>) {
    loop {
        let read = match reading.take() {
            Some(reading) => reading.await,
            None => {
                sleep(LOOK_AGAIN).await;
                match store.upgrade().and_then(|store| store.read()) {
                    Some(reading) => reading.await,
                    None => return,
                }
            }
        };
        match store.upgrade() {
            Some(store) if !store.take_up(read) => {}
            _ => return,
        }
    }
}

async fn keep(store: Weak<KeyStore>, dirty: Arc<Notify>) {
    loop {
        dirty.notified().await;
        match store.upgrade() {
            Some(store) => store.persist().await,
            None => return,
        };
    }
}

#[cfg(test)]
#[path = "jwks_tests.rs"]
mod tests;
