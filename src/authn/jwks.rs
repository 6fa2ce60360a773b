//! The keys of one issuer: fetched ahead, refreshed, kept while the issuer fails, and in the end
//! distrusted. Never sees a request.
//!
//! One task on the control thread fetches; there is no other place that does, so there is never
//! more than one fetch per issuer under way. Requests read the set through an atomic pointer. Only
//! a token whose `kid` is not in the set makes a request wait, for its own short time, and may make
//! the task fetch early: at most once per cool-down (which counts failures too) and within a
//! budget, so that random `kid`s turn neither us into a flood against the issuer nor the issuer's
//! slowness into ours.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use arc_swap::ArcSwap;
use moka::sync::Cache;
use serde::Serialize;
use tokio::sync::{Notify, watch};
use tokio::time::{Instant, sleep_until, timeout};

use super::algorithm::Algorithm;
use super::keys::{Found, Key, KeySet};
use super::source::{Discovered, LoadError, Source};
use crate::metrics::Metrics;

/// Most requests that wait for one fetch; more are answered at once.
const MAX_WAITING: usize = 256;

/// Most `kid`s remembered as absent.
const MAX_MISSING: u64 = 1024;

/// The window of the budget.
const BUDGET_WINDOW: Duration = Duration::from_secs(60);

/// The first pause after a failure; it doubles up to the refresh interval.
const FIRST_RETRY: Duration = Duration::from_secs(1);

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
    /// Shortest time from the end of a fetch, good or bad, to one that a request asks for.
    pub(super) cooldown: Duration,
    /// Most fetches a minute that requests ask for.
    pub(super) budget: u32,
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
}

/// What is known of an issuer's keys, for the admin page.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct KeyStatus {
    /// The issuer's block.
    pub name: Arc<str>,
    /// Usable keys.
    pub keys: usize,
    /// Seconds since the last good fetch; none when there was none or the keys are fixed.
    pub age_seconds: Option<u64>,
    /// Fetches that were tried.
    pub attempts: u64,
    /// Why the last fetch failed, when it did.
    pub last_error: Option<String>,
    /// Why keys of the set were left out.
    pub notes: Vec<String>,
}

/// The keys of one issuer.
#[derive(Debug)]
pub(super) struct KeyStore {
    name: Arc<str>,
    issuer: Arc<str>,
    source: Source,
    timing: Timing,
    metrics: Arc<Metrics>,
    current: ArcSwap<Loaded>,
    demand: Mutex<Demand>,
    attempts: watch::Sender<u64>,
    wake: Arc<Notify>,
    started: AtomicBool,
    waiting: AtomicUsize,
    missing: Cache<Arc<str>, ()>,
}

#[derive(Debug, Default)]
struct Loaded {
    set: KeySet,
    /// The last good fetch.
    at: Option<Instant>,
}

#[derive(Debug)]
struct Demand {
    /// A fetch is under way or asked for.
    under_way: bool,
    /// Whether it was asked for because of an unknown key. Only such a fetch begins a cooldown: one
    /// that came by itself must not keep a fresh key waiting.
    asked: bool,
    ended: Option<Instant>,
    window: Instant,
    used: u32,
    last_error: Option<(&'static str, String)>,
}

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
        let at = initial.is_some().then(Instant::now);
        Self {
            missing: Cache::builder()
                .max_capacity(MAX_MISSING)
                .time_to_live(timing.cooldown.max(timing.minimum))
                .build(),
            name,
            issuer,
            source,
            timing,
            metrics,
            current: ArcSwap::from_pointee(Loaded {
                set: initial.unwrap_or_default(),
                at,
            }),
            demand: Mutex::new(Demand {
                under_way: false,
                asked: false,
                ended: None,
                window: Instant::now(),
                used: 0,
                last_error: None,
            }),
            attempts: watch::Sender::new(0),
            wake: Arc::new(Notify::new()),
            started: AtomicBool::new(false),
            waiting: AtomicUsize::new(0),
        }
    }

    /// Starts the refreshing task, once. It ends when the store is dropped.
    pub(super) fn activate(self: &Arc<Self>, control: &tokio::runtime::Handle) {
        if matches!(self.source, Source::Fixed) || self.started.swap(true, Ordering::Relaxed) {
            return;
        }
        self.demand().under_way = true;
        control.spawn(refresh(Arc::downgrade(self), Arc::clone(&self.wake)));
    }

    /// Whether this key is (still) among the keys.
    pub(super) fn holds(&self, fingerprint: &[u8; 32]) -> bool {
        let loaded = self.current.load();
        self.is_believed(&loaded) && loaded.set.holds(fingerprint)
    }

    /// The key for a token. Known keys never wait; otherwise at most the configured time.
    ///
    /// Cancel safe: a fetch that was asked for goes on.
    ///
    /// # Errors
    /// [`NoKey`].
    pub(super) async fn key(
        &self,
        id: Option<&Arc<str>>,
        algorithm: Algorithm,
    ) -> Result<Arc<Key>, NoKey> {
        let first = self.find(id, algorithm);
        if !matches!(first, Err(NoKey::Unknown | NoKey::Unavailable))
            || matches!(self.source, Source::Fixed)
        {
            return first;
        }
        let name = id.map_or_else(|| Arc::from(algorithm.name()), Arc::clone);
        if matches!(first, Err(NoKey::Unknown)) && self.missing.contains_key(&name) {
            self.metrics.jwks_unknown_key(&self.name, "remembered");
            return first;
        }
        // Subscribed before asking: a fetch that ends in between is not missed.
        let mut attempts = self.attempts.subscribe();
        let Some(_place) = Place::take(&self.waiting) else {
            self.metrics.jwks_unknown_key(&self.name, "crowded");
            return first;
        };
        if !self.ask() {
            self.metrics.jwks_unknown_key(&self.name, "limited");
            return self.find(id, algorithm);
        }
        self.metrics.jwks_unknown_key(&self.name, "fetch");
        let ended = timeout(self.timing.wait, attempts.changed()).await.is_ok();
        let second = self.find(id, algorithm);
        let absent = matches!(second, Err(NoKey::Unknown));
        if ended && absent && self.demand().last_error.is_none() {
            self.missing.insert(name, ());
        }
        second
    }

    /// What is known now.
    pub(super) fn status(&self) -> KeyStatus {
        let loaded = self.current.load();
        KeyStatus {
            name: Arc::clone(&self.name),
            keys: if self.is_believed(&loaded) {
                loaded.set.len()
            } else {
                0
            },
            age_seconds: loaded
                .at
                .filter(|_| !matches!(self.source, Source::Fixed))
                .map(|at| at.elapsed().as_secs()),
            attempts: *self.attempts.borrow(),
            last_error: self
                .demand()
                .last_error
                .as_ref()
                .map(|(_, text)| text.clone()),
            notes: loaded.set.notes.clone(),
        }
    }

    fn find(&self, id: Option<&Arc<str>>, algorithm: Algorithm) -> Result<Arc<Key>, NoKey> {
        let loaded = self.current.load();
        if !self.is_believed(&loaded) {
            return Err(NoKey::Unavailable);
        }
        // A secret has no name: whatever `kid` the token carries, there is one key.
        let id = id.filter(|_| !matches!(self.source, Source::Fixed));
        match loaded.set.find(id.map(|id| &**id), algorithm) {
            Found::Key(key) => Ok(Arc::clone(key)),
            Found::Mismatch => Err(NoKey::Mismatch),
            Found::Ambiguous => Err(NoKey::Ambiguous),
            Found::Unknown => Err(NoKey::Unknown),
        }
    }

    /// Judged at every look-up, not only by the task: keys age even if the task should not run.
    fn is_believed(&self, loaded: &Loaded) -> bool {
        match (&self.source, loaded.at) {
            (Source::Fixed, _) => true,
            (_, Some(at)) => loaded.set.len() > 0 && at.elapsed() <= self.timing.stale_limit,
            (_, None) => false,
        }
    }

    /// Whether a fetch is under way or may begin now.
    fn ask(&self) -> bool {
        let mut demand = self.demand();
        if demand.under_way {
            return true;
        }
        let now = Instant::now();
        if demand
            .ended
            .is_some_and(|ended| now.duration_since(ended) < self.timing.cooldown)
        {
            return false;
        }
        if now.duration_since(demand.window) >= BUDGET_WINDOW {
            demand.window = now;
            demand.used = 0;
        }
        if demand.used >= self.timing.budget {
            return false;
        }
        demand.used += 1;
        demand.under_way = true;
        demand.asked = true;
        self.wake.notify_one();
        true
    }

    fn demand(&self) -> MutexGuard<'_, Demand> {
        // Nothing in the critical sections can panic; if it did, the values would still be good.
        self.demand.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// One fetch; returns how long to wait for the next.
    async fn attempt(&self, refresher: &mut Refresher) -> Duration {
        self.demand().under_way = true;
        let outcome = self
            .source
            .load(&self.issuer, &mut refresher.discovered)
            .await;
        let now = Instant::now();
        let pause = match outcome {
            Ok((set, lifetime)) => {
                refresher.failures = 0;
                self.metrics.jwks_fetch(&self.name, "ok");
                self.accept(set, now);
                self.demand().last_error = None;
                lifetime
                    .unwrap_or(self.timing.interval)
                    .clamp(self.timing.minimum, self.timing.interval)
            }
            Err(error) => {
                refresher.discovered = None;
                refresher.failures = refresher.failures.saturating_add(1);
                self.metrics.jwks_fetch(&self.name, error.code());
                self.failed(&error, refresher.failures);
                FIRST_RETRY
                    .saturating_mul(1 << refresher.failures.saturating_sub(1).min(16))
                    .min(self.timing.interval)
            }
        };
        {
            let mut demand = self.demand();
            demand.under_way = false;
            if std::mem::take(&mut demand.asked) {
                demand.ended = Some(now);
            }
        }
        self.attempts.send_modify(|attempts| *attempts += 1);
        // A fleet that started together must not fetch together.
        pause.mul_f64(1.0 - rand::random::<f64>() * 0.2)
    }

    fn accept(&self, set: KeySet, now: Instant) {
        let before = self.current.load_full();
        let changed = !set.fingerprints().eq(before.set.fingerprints());
        if changed {
            self.missing.invalidate_all();
            tracing::info!(issuer = %self.name, keys = set.len(), "issuer keys changed");
        }
        if set.notes != before.set.notes {
            for note in &set.notes {
                tracing::warn!(issuer = %self.name, note = %note, "issuer publishes an odd key");
            }
        }
        self.metrics.jwks_keys(&self.name, set.len());
        self.current.store(Arc::new(Loaded { set, at: Some(now) }));
    }

    fn failed(&self, error: &LoadError, failures: u32) {
        let code = error.code();
        let text = error.full();
        let loaded = self.current.load();
        let believed = self.is_believed(&loaded);
        let news = {
            let mut demand = self.demand();
            let news = demand
                .last_error
                .as_ref()
                .is_none_or(|(last, _)| *last != code);
            demand.last_error = Some((code, text.clone()));
            news
        };
        if news {
            tracing::warn!(issuer = %self.name, error = %text, keys_kept = believed, "fetching issuer keys failed");
        } else {
            tracing::debug!(issuer = %self.name, error = %text, failures, "fetching issuer keys failed again");
        }
        if !believed && loaded.set.len() > 0 {
            tracing::error!(issuer = %self.name, "issuer keys are older than the stale limit and no longer believed");
            self.metrics.jwks_keys(&self.name, 0);
            self.current.store(Arc::default());
        }
    }
}

impl Drop for KeyStore {
    fn drop(&mut self) {
        // The task finds nobody to work for and ends.
        self.wake.notify_one();
    }
}

/// One of the places for waiting requests.
struct Place<'s>(&'s AtomicUsize);

impl<'s> Place<'s> {
    fn take(waiting: &'s AtomicUsize) -> Option<Self> {
        let place = Self(waiting);
        // Over the bound the place is dropped, which gives it back.
        (waiting.fetch_add(1, Ordering::Relaxed) < MAX_WAITING).then_some(place)
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

async fn refresh(store: Weak<KeyStore>, wake: Arc<Notify>) {
    let mut refresher = Refresher::default();
    loop {
        let pause = match store.upgrade() {
            Some(store) => store.attempt(&mut refresher).await,
            None => return,
        };
        let next = Instant::now() + pause;
        loop {
            tokio::select! {
                () = sleep_until(next) => break,
                () = wake.notified() => {}
            }
            // A wake-up may be left over from a fetch that began by the clock at the same moment.
            match store.upgrade() {
                Some(store) if !store.demand().under_way => {}
                Some(_) => break,
                None => return,
            }
        }
    }
}

#[cfg(test)]
#[path = "jwks_tests.rs"]
mod tests;
