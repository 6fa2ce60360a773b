//! The generic cell rate algorithm over hashed keys, and the networks that addresses are hashed by.

use std::net::IpAddr;
use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use governor::RateLimiter;
use governor::clock::{Clock, Reference};
use governor::middleware::StateInformationMiddleware;
use governor::nanos::Nanos;
use governor::state::keyed::ShrinkableKeyedStateStore;

use super::store::{Budget, Meter, Shared, Store};
use super::{Exceeded, Quota, Terms};

/// A year: what a full bucket may take to refill. Beyond it the arithmetic of nanoseconds ends.
const LONGEST_WINDOW: Duration = Duration::from_secs(366 * 86_400);

/// The networks that addresses are counted in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Prefixes {
    pub(super) v4: u8,
    pub(super) v6: u8,
}

impl Prefixes {
    /// The address with its host part cleared, and the family.
    pub(super) fn network(self, address: IpAddr) -> (u8, u128) {
        let mask = |bits: u32, prefix: u8| match bits.saturating_sub(u32::from(prefix)) {
            0 => u128::MAX,
            host if host >= 128 => 0,
            host => u128::MAX << host,
        };
        match address.to_canonical() {
            IpAddr::V4(v4) => (4, u128::from(u32::from(v4)) & mask(32, self.v4)),
            IpAddr::V6(v6) => (6, u128::from(v6) & mask(128, self.v6)),
        }
    }
}

/// The generic cell rate algorithm over hashed keys.
#[derive(Debug)]
pub(super) struct Gcra {
    limiter: RateLimiter<u64, Shared, Meter, StateInformationMiddleware>,
    store: Arc<Store>,
    began: Nanos,
    interval: Duration,
    burst: NonZeroU32,
    terms: Arc<Terms>,
}

impl Gcra {
    /// `None` when a full bucket would take longer than [`LONGEST_WINDOW`] to refill.
    pub(super) fn new(
        name: &str,
        requests: u32,
        per: Duration,
        burst: u32,
        budget: Arc<Budget>,
        meter: Meter,
    ) -> Option<Self> {
        let burst = NonZeroU32::new(burst)?;
        let interval = per.checked_div(requests)?.max(Duration::from_nanos(1));
        let window = interval.checked_mul(burst.get())?;
        let quota = governor::Quota::with_period(interval)?.allow_burst(burst);
        let store = Arc::new(Store::new(budget));
        let began = meter.now();
        let terms = Terms::new(name, burst.get().into(), seconds(window).max(1));
        (window <= LONGEST_WINDOW).then(|| Self {
            limiter: RateLimiter::new(quota, Shared(Arc::clone(&store)), meter),
            store,
            began,
            interval,
            burst,
            terms: Arc::new(terms),
        })
    }

    fn quota(&self, remaining: u32, reset: Duration) -> Quota {
        Quota {
            terms: Some(Arc::clone(&self.terms)),
            remaining: remaining.into(),
            reset: seconds(reset),
        }
    }

    /// What to tell somebody who has to wait this long.
    pub(super) fn exceeded(&self, wait: Duration) -> Exceeded {
        // What is missing now is this wait and all but one of the bucket's cells.
        let whole = wait + self.interval * (self.burst.get() - 1);
        Exceeded {
            limit: Arc::clone(&self.terms.name),
            retry_after: wait,
            quota: self.quota(0, whole),
        }
    }

    /// Counts one request.
    pub(super) fn check(&self, key: u64) -> Result<Quota, Exceeded> {
        match self.limiter.check_key(&key) {
            Ok(state) => {
                let remaining = state.remaining_burst_capacity();
                let used = self.burst.get().saturating_sub(remaining);
                Ok(self.quota(remaining, self.interval * used))
            }
            Err(until) => Err(self.exceeded(until.wait_time_from(self.limiter.clock().now()))),
        }
    }

    /// How long the key has to wait, counting nothing; `None` when it need not.
    pub(super) fn wait(&self, key: u64) -> Option<Duration> {
        let arrival = self.store.peek(key)?;
        let tolerance = self.interval * (self.burst.get() - 1);
        let earliest = Duration::from(arrival).saturating_sub(tolerance);
        let now = self.limiter.clock().now().duration_since(self.began).into();
        let wait = earliest.saturating_sub(now);
        (!wait.is_zero()).then_some(wait)
    }

    /// How many keys there are.
    /// As [`Gcra::keys`] or more, when a key is being added; several of one budget count together.
    pub(super) fn keys_at_most(&self) -> usize {
        self.store.budget_used()
    }

    pub(super) fn keys(&self) -> usize {
        self.store.len()
    }

    /// How many requests were counted in the shared bucket since this was last asked.
    pub(super) fn take_overflowed(&self) -> u64 {
        self.store.take_overflowed()
    }

    /// Forgets keys whose quota is whole again.
    pub(super) fn collect(&self) {
        self.limiter.retain_recent();
        self.limiter.shrink_to_fit();
    }
}

fn seconds(span: Duration) -> u64 {
    span.as_secs() + u64::from(span.subsec_nanos() > 0)
}
