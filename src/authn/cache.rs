//! Tokens that were verified already, and tokens whose signature was found wrong.
//!
//! Keyed by SHA-256 of the token's bytes. When there is no more room, a token is remembered at its
//! second use. A hit is believed only while its key is still among the issuer's keys and the request's
//! clock lies within the token's terms; a changed configuration brings a new cache. Proof of possession
//! is not part of an entry: it is asked of every request.

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant, SystemTime};

use moka::Expiry;
use moka::sync::Cache;

use super::Identity;
use super::claims::Terms;

/// SHA-256 of a token.
pub(super) type Digest = [u8; 32];

/// Most tokens remembered as wrongly signed.
const MAX_REFUSED: u64 = 4096;

/// How long they are remembered.
const REFUSED_LIFETIME: Duration = Duration::from_secs(30);

/// What an entry costs besides its claims: identity, names, map nodes.
const FIXED_COST: usize = 1024;

/// A parsed claim costs so many times its text, at most: one node of a map for a member of three
/// or four bytes, and its text as records tell it.
const CLAIM_COST: usize = 10;

/// A verified token.
#[derive(Debug)]
pub(super) struct Entry {
    pub(super) identity: Arc<Identity>,
    pub(super) terms: Terms,
    /// The key that signed it.
    pub(super) key: [u8; 32],
    /// When its lifetime in a cache is over.
    kept_until: SystemTime,
    lifetime: Duration,
    /// What it costs, in bytes, estimated.
    pub(super) weight: u32,
}

impl Entry {
    /// Whether the request's clock lies within the token's terms.
    fn is_valid(&self, now: SystemTime) -> bool {
        self.terms.valid_from <= now && now < self.terms.valid_until
    }

    /// Whether it may still be remembered, and is valid.
    pub(super) fn lasts(&self, now: SystemTime) -> bool {
        now < self.kept_until && self.is_valid(now)
    }
}

/// The bounds of a cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Bounds {
    /// Most tokens; zero keeps none.
    pub(super) entries: u64,
    /// Most bytes, estimated.
    pub(super) memory: u64,
    /// Longest time that an entry is kept.
    pub(super) lifetime: Duration,
}

/// The tokens of one issuer.
#[derive(Debug)]
pub(super) struct TokenCache {
    verified: Cache<Digest, Arc<Entry>>,
    refused: Cache<Digest, [u8; 32]>,
    uses: FirstUses,
    bounds: Bounds,
}

impl TokenCache {
    pub(super) fn new(bounds: Bounds) -> Self {
        let capacity = if bounds.entries == 0 {
            0
        } else {
            bounds.memory
        };
        Self {
            verified: Cache::builder()
                .max_capacity(capacity)
                .weigher(|_, entry: &Arc<Entry>| entry.weight)
                .expire_after(Lifetimes)
                .build(),
            refused: Cache::builder()
                .max_capacity(MAX_REFUSED)
                .time_to_live(REFUSED_LIFETIME)
                .build(),
            uses: FirstUses::default(),
            bounds,
        }
    }

    /// The entry of a token, if it holds at this time and its key is still there.
    pub(super) fn get(
        &self,
        digest: &Digest,
        now: SystemTime,
        is_key: impl Fn(&[u8; 32]) -> bool,
    ) -> Option<Arc<Entry>> {
        if !self.is_on() {
            return None;
        }
        let entry = self.verified.get(digest)?;
        if !is_key(&entry.key) {
            self.verified.invalidate(digest);
            return None;
        }
        entry.is_valid(now).then_some(entry)
    }

    /// Makes the entry of a verified token, and remembers it unless the cache is off.
    pub(super) fn keep(
        &self,
        digest: Digest,
        identity: Arc<Identity>,
        terms: Terms,
        key: [u8; 32],
        token_length: usize,
        now: SystemTime,
    ) -> Arc<Entry> {
        let share = self.bounds.memory.checked_div(self.bounds.entries);
        // The weight bounds both: no entry weighs less than its share of the memory.
        let cost = u64::try_from(FIXED_COST + CLAIM_COST * token_length).unwrap_or(u64::MAX);
        let weight = u32::try_from(cost.max(share.unwrap_or(0))).unwrap_or(u32::MAX);
        let left = terms.valid_until.duration_since(now).unwrap_or_default();
        let lifetime = left.min(self.bounds.lifetime);
        let entry = Arc::new(Entry {
            identity,
            terms,
            key,
            kept_until: now + lifetime,
            lifetime,
            weight,
        });
        if self.is_on() && self.admits(&digest, weight) {
            self.verified.insert(digest, Arc::clone(&entry));
        }
        entry
    }

    /// While there is room, every token is remembered; in a full cache only those that come again, for
    /// tokens that are used once would push out those that are used often, and cost more to remember
    /// and to forget than they save.
    fn admits(&self, digest: &Digest, weight: u32) -> bool {
        self.verified.weighted_size() + u64::from(weight) <= self.bounds.memory
            || self.uses.came_before(digest)
    }

    /// Whether tokens are remembered at all.
    fn is_on(&self) -> bool {
        self.bounds.entries > 0
    }

    /// Whether this token was found to be wrongly signed under this key a short time ago.
    pub(super) fn is_refused(&self, digest: &Digest, key: &[u8; 32]) -> bool {
        self.refused
            .get(digest)
            .is_some_and(|refused| refused == *key)
    }

    /// Remembers a token as wrongly signed under this key.
    pub(super) fn refuse(&self, digest: Digest, key: [u8; 32]) {
        self.refused.insert(digest, key);
    }

    #[cfg(test)]
    pub(super) fn counts(&self) -> (u64, u64) {
        self.verified.run_pending_tasks();
        self.refused.run_pending_tasks();
        (self.verified.entry_count(), self.refused.entry_count())
    }
}

/// Which tokens came while there was no room for them: marks, made of digests, in so many places.
/// Two tokens that share a place forget each other; two that share a mark, one pair in 4 billion,
/// cost a place in the cache.
#[derive(Debug, Default)]
struct FirstUses(OnceLock<Box<[AtomicU32]>>);

impl FirstUses {
    const PLACES: usize = 1 << 14;

    /// Whether this token came before, and was not forgotten; from now on it did.
    fn came_before(&self, digest: &Digest) -> bool {
        let [a, b, c, d, e, f, g, h, ..] = *digest;
        let place = usize::try_from(u32::from_le_bytes([a, b, c, d])).unwrap_or_default();
        let mark = u32::from_le_bytes([e, f, g, h]);
        let places = self
            .0
            .get_or_init(|| (0..Self::PLACES).map(|_| AtomicU32::new(0)).collect());
        places
            .get(place % Self::PLACES)
            .is_some_and(|last| last.swap(mark, Ordering::Relaxed) == mark)
    }
}

#[derive(Debug)]
struct Lifetimes;

impl Expiry<Digest, Arc<Entry>> for Lifetimes {
    fn expire_after_create(&self, _: &Digest, entry: &Arc<Entry>, _: Instant) -> Option<Duration> {
        Some(entry.lifetime)
    }

    fn expire_after_update(
        &self,
        _: &Digest,
        entry: &Arc<Entry>,
        _: Instant,
        _: Option<Duration>,
    ) -> Option<Duration> {
        Some(entry.lifetime)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_cache_remembers_a_token_at_its_second_use_and_one_with_room_at_its_first() {
        let bounds = Bounds {
            entries: 2,
            memory: 1 << 20,
            lifetime: Duration::from_secs(100),
        };
        let cache = TokenCache::new(bounds);
        let now = crate::clock::now();
        let used = |token: u8| {
            let digest = [token; 32];
            let entry = cache.get(&digest, now, |_| true);
            if entry.is_none() {
                let until = now + Duration::from_secs(60);
                let claims = crate::document::Value::new_object();
                let identity = Identity::for_tests("alice", claims, until);
                cache.keep(digest, identity, Terms::until(until), [0; 32], 100, now);
            }
            cache.verified.contains_key(&digest)
        };
        assert!(used(1) && used(2), "there was room");
        assert_eq!(cache.counts().0, 2);
        for token in 3..100 {
            assert!(!used(token), "used once");
        }
        assert!(used(1) && used(2), "nobody pushed them out");
        assert!(used(99), "used again");
        assert!(cache.counts().0 <= 2);
    }

    #[test]
    fn what_has_lapsed_makes_room_for_tokens_at_their_first_use() {
        let bounds = Bounds {
            entries: 2,
            memory: 1 << 20,
            lifetime: Duration::from_millis(20),
        };
        let cache = TokenCache::new(bounds);
        let begun = Instant::now();
        let mut tokens = 0_u32..;
        let mut used_once = || {
            let mut digest = [0; 32];
            let number = tokens.next().unwrap_or_default().to_le_bytes();
            for place in digest.chunks_exact_mut(4) {
                place.copy_from_slice(&number);
            }
            let now = crate::clock::now();
            assert!(cache.get(&digest, now, |_| true).is_none());
            let until = now + Duration::from_secs(60);
            let claims = crate::document::Value::new_object();
            let identity = Identity::for_tests("alice", claims, until);
            cache.keep(digest, identity, Terms::until(until), [0; 32], 100, now);
            cache.verified.contains_key(&digest)
        };
        // Until it is full, which moka counts a little later, and then until it is not.
        while used_once() {
            assert!(begun.elapsed() < Duration::from_secs(20), "never full");
        }
        while !used_once() {
            assert!(begun.elapsed() < Duration::from_secs(20), "full for ever");
        }
    }

    #[test]
    fn only_the_very_token_came_before() {
        let uses = FirstUses::default();
        assert!(!uses.came_before(&[1; 32]));
        assert!(uses.came_before(&[1; 32]));
        let mut other = [1; 32];
        other[7] = 2;
        assert!(!uses.came_before(&other), "another mark");
        assert!(!uses.came_before(&[1; 32]), "it lost its place");
        assert!(!uses.came_before(&[2; 32]));
        assert!(uses.came_before(&[1; 32]));
    }
}
