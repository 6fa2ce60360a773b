//! The memory of a limit: bounded, sharded, collected.
//!
//! governor's own keyed store grows with every key and never forgets one by itself. This one holds
//! at most so many keys; when they are used up, keys that are not in it share one bucket. That is
//! unfair to newcomers during an attack with very many addresses, but it neither grows without end
//! nor gives anybody a fresh quota, and known callers keep theirs.

use std::collections::HashMap;
use std::fmt;
use std::hash::{BuildHasherDefault, Hasher};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use governor::clock::{Clock, QuantaClock, Reference};
use governor::nanos::Nanos;
use governor::state::keyed::ShrinkableKeyedStateStore;
use governor::state::{InMemoryState, NotKeyed, StateStore};

/// Collecting locks one shard at a time: with 64, a shard of a full store holds 16,000 keys, and no
/// request waits longer than it takes to look at those.
const SHARDS: u64 = 64;

/// A shard's memory is given back when less than a quarter of it is used.
const SPARSE: usize = 4;

type Shard = HashMap<u64, InMemoryState, BuildHasherDefault<AlreadyHashed>>;

/// How many keys may be remembered; several stores may share one.
#[derive(Debug)]
pub(super) struct Budget {
    keys: usize,
    used: AtomicUsize,
}

impl Budget {
    pub(super) fn new(keys: usize) -> Arc<Self> {
        Arc::new(Self {
            keys,
            used: AtomicUsize::new(0),
        })
    }

    fn take(&self) -> bool {
        self.used
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |used| {
                (used < self.keys).then_some(used + 1)
            })
            .is_ok()
    }

    fn give_back(&self, keys: usize) {
        self.used.fetch_sub(keys, Ordering::Relaxed);
    }
}

/// The states of one limit's keys.
pub(super) struct Store {
    shards: Vec<RwLock<Shard>>,
    budget: Arc<Budget>,
    overflow: InMemoryState,
    overflowed: AtomicU64,
}

impl fmt::Debug for Store {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Store")
            .field("keys", &self.len())
            .finish_non_exhaustive()
    }
}

impl Store {
    pub(super) fn new(budget: Arc<Budget>) -> Self {
        Self {
            shards: (0..SHARDS).map(|_| RwLock::default()).collect(),
            budget,
            overflow: InMemoryState::default(),
            overflowed: AtomicU64::new(0),
        }
    }

    /// The theoretical arrival time of a key, counting nothing: since the limiter began.
    pub(super) fn peek(&self, key: u64) -> Option<Nanos> {
        let known = self
            .shard(key)
            .and_then(|shard| reading(shard).get(&key).map(read));
        match known {
            Some(tat) => tat,
            None if self.budget.used.load(Ordering::Relaxed) >= self.budget.keys => {
                read(&self.overflow)
            }
            None => None,
        }
    }

    /// How many requests were counted in the shared bucket since this was last asked.
    /// How many keys of the budget are used, by this store and those that share it.
    pub(super) fn budget_used(&self) -> usize {
        self.budget.used.load(Ordering::Relaxed)
    }

    pub(super) fn take_overflowed(&self) -> u64 {
        self.overflowed.swap(0, Ordering::Relaxed)
    }

    fn shard(&self, key: u64) -> Option<&RwLock<Shard>> {
        // The map itself uses the lowest and the highest bits.
        let index = usize::try_from((key >> 32) % SHARDS).ok()?;
        self.shards.get(index)
    }
}

impl StateStore for Store {
    type Key = u64;

    fn measure_and_replace<T, F, E>(&self, key: &u64, f: F) -> Result<T, E>
    where
        F: Fn(Option<Nanos>) -> Result<(T, Nanos), E>,
    {
        let Some(shard) = self.shard(*key) else {
            return self.overflow.measure_and_replace(&NotKeyed::NonKey, f);
        };
        if let Some(state) = reading(shard).get(key) {
            return state.measure_and_replace(&NotKeyed::NonKey, f);
        }
        let mut entries = writing(shard);
        // Another thread may have been here between the locks.
        if !entries.contains_key(key) && !self.budget.take() {
            drop(entries);
            self.overflowed.fetch_add(1, Ordering::Relaxed);
            return self.overflow.measure_and_replace(&NotKeyed::NonKey, f);
        }
        entries
            .entry(*key)
            .or_default()
            .measure_and_replace(&NotKeyed::NonKey, f)
    }
}

impl ShrinkableKeyedStateStore<u64> for Store {
    fn retain_recent(&self, drop_below: Nanos) {
        for shard in &self.shards {
            let mut entries = writing(shard);
            let before = entries.len();
            entries.retain(|_, state| read(state).is_some_and(|tat| tat > drop_below));
            self.budget.give_back(before - entries.len());
        }
    }

    fn shrink_to_fit(&self) {
        for shard in &self.shards {
            let mut entries = writing(shard);
            if entries.capacity() / SPARSE > entries.len() {
                let keep = entries.len().saturating_mul(2);
                entries.shrink_to(keep);
            }
        }
    }

    fn len(&self) -> usize {
        self.shards.iter().map(|shard| reading(shard).len()).sum()
    }

    fn is_empty(&self) -> bool {
        self.shards.iter().all(|shard| reading(shard).is_empty())
    }
}

/// A handle on a store for the limiter, beside the one that looks into it.
#[derive(Debug, Clone)]
pub(super) struct Shared(pub(super) Arc<Store>);

impl StateStore for Shared {
    type Key = u64;

    fn measure_and_replace<T, F, E>(&self, key: &u64, f: F) -> Result<T, E>
    where
        F: Fn(Option<Nanos>) -> Result<(T, Nanos), E>,
    {
        self.0.measure_and_replace(key, f)
    }
}

impl ShrinkableKeyedStateStore<u64> for Shared {
    fn retain_recent(&self, drop_below: Nanos) {
        self.0.retain_recent(drop_below);
    }

    fn shrink_to_fit(&self) {
        self.0.shrink_to_fit();
    }

    fn len(&self) -> usize {
        self.0.len()
    }

    fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl Drop for Store {
    fn drop(&mut self) {
        self.budget.give_back(self.len());
    }
}

/// A state's theoretical arrival time. A measurement that fails changes nothing.
fn read(state: &InMemoryState) -> Option<Nanos> {
    state
        .measure_and_replace(&NotKeyed::NonKey, Err::<((), Nanos), _>)
        .err()
        .flatten()
}

/// A panic while a lock was held leaves the map whole: every change to it is one call.
fn reading(shard: &RwLock<Shard>) -> RwLockReadGuard<'_, Shard> {
    shard.read().unwrap_or_else(PoisonError::into_inner)
}

fn writing(shard: &RwLock<Shard>) -> RwLockWriteGuard<'_, Shard> {
    shard.write().unwrap_or_else(PoisonError::into_inner)
}

/// The keys are keyed hashes already.
#[derive(Default)]
pub(super) struct AlreadyHashed(u64);

impl Hasher for AlreadyHashed {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        // Only `u64` keys come here; anything else still gives a usable value.
        for byte in bytes {
            self.0 = self.0.rotate_left(8) ^ u64::from(*byte);
        }
    }

    fn write_u64(&mut self, key: u64) {
        self.0 = key;
    }
}

/// The clock of limits: nanoseconds since the clock was made. It never goes back, and tests turn it.
#[derive(Debug, Clone)]
pub(super) enum Meter {
    /// Real time.
    Running(QuantaClock, <QuantaClock as Clock>::Instant),
    /// The tests' time.
    #[cfg(test)]
    Turned(Arc<AtomicU64>),
}

impl Meter {
    pub(super) fn running() -> Self {
        let clock = QuantaClock::default();
        let began = clock.now();
        Self::Running(clock, began)
    }
}

impl Clock for Meter {
    type Instant = Nanos;

    fn now(&self) -> Nanos {
        match self {
            Self::Running(clock, began) => clock.now().duration_since(*began),
            #[cfg(test)]
            Self::Turned(nanos) => Nanos::from(nanos.load(Ordering::Relaxed)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(store: &Store, key: u64, tat: u64) -> u64 {
        store
            .measure_and_replace(&key, |old| {
                Ok::<_, ()>((old.map_or(0, |old| old.as_u64()), Nanos::from(tat)))
            })
            .unwrap()
    }

    #[test]
    fn keys_past_the_cap_share_one_bucket_and_known_keys_keep_theirs() {
        let store = Store::new(Budget::new(2));
        assert_eq!(set(&store, 1, 10), 0);
        assert_eq!(set(&store, 2, 20), 0);
        assert_eq!(set(&store, 3, 30), 0);
        assert_eq!(
            set(&store, 4, 40),
            30,
            "the fourth key sees the third one's state"
        );
        assert_eq!(
            set(&store, 1, 11),
            10,
            "a known key is not touched by the overflow"
        );
        assert_eq!(store.len(), 2);
        assert_eq!(store.take_overflowed(), 2);
        assert_eq!(store.take_overflowed(), 0);
        assert_eq!(store.peek(9).map(|n| n.as_u64()), Some(40));
    }

    #[test]
    fn collecting_frees_stale_keys_and_only_those() {
        let store = Store::new(Budget::new(3));
        for (key, tat) in [(1, 10), (2, 20), (3, 30)] {
            set(&store, key, tat);
        }
        store.retain_recent(Nanos::from(20_u64));
        store.shrink_to_fit();
        assert_eq!(store.len(), 1);
        assert_eq!(store.peek(3).map(|n| n.as_u64()), Some(30));
        assert_eq!(store.peek(1), None);
        assert_eq!(set(&store, 7, 70), 0, "there is room again");
        assert_eq!(store.take_overflowed(), 0);
    }

    #[test]
    fn stores_that_share_a_budget_are_bounded_together() {
        let budget = Budget::new(2);
        let (first, second) = (Store::new(Arc::clone(&budget)), Store::new(budget));
        set(&first, 1, 1);
        set(&second, 1, 1);
        set(&second, 2, 1);
        assert_eq!((first.len(), second.len()), (1, 1));
        drop(first);
        set(&second, 2, 1);
        assert_eq!(second.len(), 2);
    }

    #[test]
    fn a_million_clients_cost_no_more_than_the_cap() {
        let store = Store::new(Budget::new(1_000));
        for key in 0..100_000_u64 {
            set(&store, key << 32 | key, 1);
        }
        assert_eq!(store.len(), 1_000);
    }
}
