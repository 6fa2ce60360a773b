//! Counting: one limit over many keys, failures of authentication, limits that policies ask for.

use std::collections::HashMap;
use std::collections::hash_map::RandomState;
use std::hash::BuildHasher;
use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, LazyLock, OnceLock, PoisonError, RwLock, Weak};
use std::time::Duration;

use tokio::runtime::Handle;

use super::gcra::{Gcra, Prefixes};
use super::rate::{By, Rate};
use super::store::{Budget, Meter};
use super::{Exceeded, FailureLimitConfig, LimitConfig, Quota};
use crate::authn::Caller;
use crate::authz::AskedLimit;
use crate::document::{self, Value};
use crate::metrics::Metrics;

/// How often stale keys are collected.
const COLLECT_EVERY: Duration = Duration::from_secs(10);

/// How many different rates policies may ask for at one time. A policy that computes rates from the
/// request is refused its limit beyond that, and so is the request: the limit cannot be kept.
pub(super) const MAX_ASKED_RATES: usize = 256;

/// How many keys all limits of policies together remember.
pub(super) const MAX_ASKED_KEYS: usize = 1_000_000;

/// The parts of a request that limits count by.
#[derive(Debug, Clone, Copy)]
pub(super) struct Facts<'a> {
    pub(super) address: IpAddr,
    pub(super) route: &'a str,
    pub(super) caller: Option<CallerFacts<'a>>,
}

/// The parts of an identity that limits count by.
#[derive(Debug, Clone, Copy)]
pub(super) struct CallerFacts<'a> {
    pub(super) issuer: &'a str,
    pub(super) subject: &'a str,
    pub(super) client: Option<&'a str>,
    pub(super) claims: &'a Value,
    /// What was made of issuer and subject by [`subject`], kept with the identity.
    pub(super) key: &'a OnceLock<u64>,
}

impl<'a> CallerFacts<'a> {
    pub(super) fn of(caller: &'a Caller) -> Option<Self> {
        caller.identity().map(|identity| Self {
            issuer: &identity.issuer,
            subject: &identity.subject,
            client: identity.client.as_deref(),
            claims: &identity.claims,
            key: &identity.counted_as,
        })
    }
}

/// One compiled limit with its counters.
#[derive(Debug)]
pub struct Limiter {
    name: Arc<str>,
    pub(super) config: LimitConfig,
    prefixes: Prefixes,
    gcra: Gcra,
    seed: RandomState,
    metrics: Arc<Metrics>,
    active: AtomicBool,
}

impl Limiter {
    pub(super) fn new(
        name: &str,
        config: LimitConfig,
        metrics: Arc<Metrics>,
        meter: Meter,
    ) -> Option<Self> {
        let gcra = Gcra::new(
            name,
            config.rate.requests(),
            config.rate.period(),
            config.burst.unwrap_or(config.rate.requests()),
            Budget::new(config.max_keys),
            meter,
        )?;
        Some(Self {
            name: name.into(),
            prefixes: Prefixes {
                v4: config.ipv4_prefix,
                v6: config.ipv6_prefix,
            },
            config,
            gcra,
            seed: RandomState::new(),
            metrics,
            active: AtomicBool::new(false),
        })
    }

    /// The limit's block in the configuration.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// What it counts by.
    pub fn by(&self) -> &By {
        &self.config.by
    }

    /// How many keys it remembers now.
    pub fn keys(&self) -> usize {
        self.gcra.keys()
    }

    /// What it allows.
    pub fn terms(&self) -> &LimitConfig {
        &self.config
    }

    pub(super) fn check(&self, facts: &Facts<'_>) -> Result<Quota, Exceeded> {
        let checked = self.gcra.check(self.key(facts));
        if checked.is_err() {
            self.metrics.limited(&self.name);
        }
        checked
    }

    /// The keyed hash of what is counted together. Every kind of key begins with its own word, so
    /// that a subject can never be spelled like an address. Keys are compared by this hash alone: with
    /// one that callers can make collide, somebody could use up another's quota. Hence SipHash.
    fn key(&self, facts: &Facts<'_>) -> u64 {
        let seed = &self.seed;
        match (&self.config.by, facts.caller) {
            (By::Route, _) => seed.hash_one(("route", facts.route)),
            (By::Address, _) | (_, None) => {
                seed.hash_one(("address", self.prefixes.network(facts.address)))
            }
            (By::Subject, Some(caller)) => subject(caller),
            (By::Issuer, Some(caller)) => seed.hash_one(("issuer", caller.issuer)),
            (By::Client, Some(caller)) => match caller.client {
                Some(client) => seed.hash_one(("client", caller.issuer, client)),
                None => subject(caller),
            },
            (By::Claim(path), Some(caller)) => match document::claim(caller.claims, path) {
                Some(value) => match document::text(value) {
                    Some(text) => seed.hash_one(("claim", caller.issuer, text)),
                    None => seed.hash_one(("json", caller.issuer, value.to_string())),
                },
                None => subject(caller),
            },
        }
    }

    /// Starts collecting stale keys on the control thread; ends when the limiter is dropped. Safe
    /// to call again.
    pub fn activate(self: &Arc<Self>, control: &Handle) {
        if !self.active.swap(true, Ordering::Relaxed) {
            control.spawn(collect(Arc::downgrade(self), COLLECT_EVERY));
        }
    }
}

/// The key of a caller, made once for an identity: all limits, each with counters of its own, know it by
/// the same one, whose seed is of this process.
fn subject(caller: CallerFacts<'_>) -> u64 {
    static SEED: LazyLock<RandomState> = LazyLock::new(RandomState::new);
    let make = || SEED.hash_one(("subject", caller.issuer, caller.subject));
    *caller.key.get_or_init(make)
}

/// Something whose stale keys are collected from time to time.
pub(super) trait Collected: Send + Sync + 'static {
    fn collect(&self);
}

pub(super) async fn collect<T: Collected>(what: Weak<T>, every: Duration) {
    let mut tick = tokio::time::interval(every);
    loop {
        tick.tick().await;
        match what.upgrade() {
            Some(what) => what.collect(),
            None => return,
        }
    }
}

impl Collected for Limiter {
    fn collect(&self) {
        self.gcra.collect();
        self.metrics.limit_keys(&self.name, self.keys());
        match self.gcra.take_overflowed() {
            0 => {}
            requests => {
                self.metrics.limit_overflowed(&self.name, requests);
                tracing::warn!(
                    limit = %self.name,
                    requests,
                    "a limit remembers all the keys it may; newcomers share one quota"
                );
            }
        }
    }
}

/// Slows down addresses that failed to authenticate too often.
#[derive(Debug)]
pub struct FailureLimiter {
    pub(super) config: FailureLimitConfig,
    prefixes: Prefixes,
    gcra: Gcra,
    seed: RandomState,
    metrics: Arc<Metrics>,
    active: AtomicBool,
}

impl FailureLimiter {
    /// What it is called in answers, records and metrics.
    pub const NAME: &'static str = "authentication_failures";

    pub(super) fn new(
        config: FailureLimitConfig,
        metrics: Arc<Metrics>,
        meter: Meter,
    ) -> Option<Self> {
        let gcra = Gcra::new(
            Self::NAME,
            config.rate.requests(),
            config.rate.period(),
            config.burst,
            Budget::new(config.max_keys),
            meter,
        )?;
        Some(Self {
            prefixes: Prefixes {
                v4: config.ipv4_prefix,
                v6: config.ipv6_prefix,
            },
            config,
            gcra,
            seed: RandomState::new(),
            metrics,
            active: AtomicBool::new(false),
        })
    }

    /// How many addresses it remembers now.
    pub fn keys(&self) -> usize {
        self.gcra.keys()
    }

    /// What it allows.
    pub fn terms(&self) -> &FailureLimitConfig {
        &self.config
    }

    /// Whether it may remember any address: mostly nobody has failed for a while, and then there is
    /// nothing to look up.
    pub(super) fn knows_any(&self) -> bool {
        self.gcra.keys_at_most() > 0
    }

    /// Turns the address away while its failures are used up. Counts nothing: somebody who keeps
    /// knocking is let in as soon as somebody who waited would be, but not sooner.
    pub(super) fn check(&self, address: IpAddr) -> Result<(), Exceeded> {
        if !self.knows_any() {
            return Ok(());
        }
        match self.gcra.wait(self.key(address)) {
            None => Ok(()),
            Some(wait) => {
                self.metrics.limited(Self::NAME);
                Err(self.gcra.exceeded(wait))
            }
        }
    }

    /// Counts one failure.
    pub(super) fn failed(&self, address: IpAddr) {
        // A request that was under way when the last cell was used cannot cost more than is there.
        let _ = self.gcra.check(self.key(address));
    }

    fn key(&self, address: IpAddr) -> u64 {
        self.seed.hash_one(self.prefixes.network(address))
    }

    /// Starts collecting stale keys on the control thread; see [`Limiter::activate`].
    pub fn activate(self: &Arc<Self>, control: &Handle) {
        if !self.active.swap(true, Ordering::Relaxed) {
            control.spawn(collect(Arc::downgrade(self), COLLECT_EVERY));
        }
    }
}

impl Collected for FailureLimiter {
    fn collect(&self) {
        self.gcra.collect();
        self.metrics.limit_keys(Self::NAME, self.gcra.keys());
        match self.gcra.take_overflowed() {
            0 => {}
            requests => self.metrics.limit_overflowed(Self::NAME, requests),
        }
    }
}

type Class = (u32, Duration, u32);

/// The counters of limits that policies ask for. They belong to the process, not to a configuration.
#[derive(Debug)]
pub struct AskedLimits {
    name: Arc<str>,
    classes: RwLock<HashMap<Class, Arc<Gcra>>>,
    budget: Arc<Budget>,
    seed: RandomState,
    meter: Meter,
    metrics: Arc<Metrics>,
    active: AtomicBool,
}

impl Default for AskedLimits {
    fn default() -> Self {
        Self::new(Arc::default(), Meter::running())
    }
}

impl AskedLimits {
    /// What it is called in answers, records and metrics.
    pub const NAME: &'static str = "policy";

    pub(super) fn new(metrics: Arc<Metrics>, meter: Meter) -> Self {
        Self {
            name: Self::NAME.into(),
            classes: RwLock::default(),
            budget: Budget::new(MAX_ASKED_KEYS),
            seed: RandomState::new(),
            meter,
            metrics,
            active: AtomicBool::new(false),
        }
    }

    pub(super) fn check(&self, policy: &str, asked: &AskedLimit) -> Result<Quota, Exceeded> {
        let checked = match self.class((asked.rate, asked.per, asked.burst)) {
            Some(gcra) => gcra.check(self.seed.hash_one((policy, &asked.key))),
            // A limit that cannot be kept (rate zero, absurd window, too many different rates) is
            // taken as used up: the policy asked for less, not for none.
            None => Err(Exceeded {
                limit: Arc::clone(&self.name),
                retry_after: Duration::from_secs(1),
                quota: Quota::default(),
            }),
        };
        if checked.is_err() {
            self.metrics.limited(Self::NAME);
        }
        checked
    }

    fn class(&self, class: Class) -> Option<Arc<Gcra>> {
        let known = self.classes.read().unwrap_or_else(PoisonError::into_inner);
        if let Some(gcra) = known.get(&class) {
            return Some(Arc::clone(gcra));
        }
        drop(known);
        let (requests, per, burst) = class;
        let mut known = self.classes.write().unwrap_or_else(PoisonError::into_inner);
        if !known.contains_key(&class) && known.len() >= MAX_ASKED_RATES {
            return None;
        }
        let budget = Arc::clone(&self.budget);
        let fresh = || {
            Gcra::new(Self::NAME, requests, per, burst, budget, self.meter.clone()).map(Arc::new)
        };
        match known.get(&class) {
            Some(gcra) => Some(Arc::clone(gcra)),
            None => {
                let gcra = fresh()?;
                known.insert(class, Arc::clone(&gcra));
                Some(gcra)
            }
        }
    }

    /// Starts collecting stale keys on the control thread; see [`Limiter::activate`].
    pub fn activate(self: &Arc<Self>, control: &Handle) {
        if !self.active.swap(true, Ordering::Relaxed) {
            control.spawn(collect(Arc::downgrade(self), COLLECT_EVERY));
        }
    }
}

impl Collected for AskedLimits {
    fn collect(&self) {
        let classes: Vec<_> = {
            let classes = self.classes.read().unwrap_or_else(PoisonError::into_inner);
            classes.values().map(Arc::clone).collect()
        };
        let (mut keys, mut overflowed) = (0, 0);
        for gcra in &classes {
            gcra.collect();
            keys += gcra.keys();
            overflowed += gcra.take_overflowed();
        }
        drop(classes);
        // Whoever holds a second handle is about to count: that class stays.
        self.classes
            .write()
            .unwrap_or_else(PoisonError::into_inner)
            .retain(|_, gcra| Arc::strong_count(gcra) > 1 || gcra.keys() > 0);
        self.metrics.limit_keys(Self::NAME, keys);
        if overflowed > 0 {
            self.metrics.limit_overflowed(Self::NAME, overflowed);
        }
    }
}

/// So many requests a minute, for the default of [`FailureLimitConfig`].
pub(super) const fn default_failure_rate() -> Rate {
    Rate::per_minute(10)
}
