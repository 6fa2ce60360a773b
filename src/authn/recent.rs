//! The tokens that one worker verified lately: the short way to what the issuers remember.
//!
//! Found by the bytes of the `Authorization` field: a fast hash with a random key leads to a place,
//! and the whole field is compared, so that a collision is a miss and nothing else. That saves the
//! digest, the check of the characters and a shared table: 0.1 µs instead of 0.8 for a token of
//! 900 bytes. An entry is believed on the same terms as the issuer's own ([`Issuer::believes`]). Only
//! tokens come here that the issuer remembers from an earlier request: nobody can push others out
//! with made-up ones, and those that are used once leave nothing on each worker.

use std::cell::RefCell;
use std::collections::HashMap;
use std::collections::hash_map::RandomState;
use std::fmt;
use std::hash::BuildHasher;
use std::sync::{Arc, Weak};
use std::time::SystemTime;

use foldhash::fast::FixedState;
use zeroize::Zeroizing;

use super::cache::Entry;
use super::jwt::Issuer;

/// Most tokens in one of the two generations.
const MAX_TOKENS: usize = 4096;
/// Most bytes that the tokens of one of the two generations cost, estimated; see `Entry`.
const MAX_WEIGHT: u64 = 32 << 20;

/// What one worker remembers; nothing here is shared between threads.
pub struct Recent {
    hasher: FixedState,
    generations: RefCell<Generations>,
}

/// The old generation is given up when the young one is full, so that what is in use stays.
#[derive(Default)]
struct Generations {
    young: Table,
    old: Table,
    /// What `young` costs.
    weight: u64,
}

type Table = HashMap<u64, Seen, FixedState>;

struct Seen {
    field: Zeroizing<Box<[u8]>>,
    /// Weak, so that an issuer of an old configuration goes; its address is not given away meanwhile.
    issuer: Weak<Issuer>,
    entry: Arc<Entry>,
}

impl Default for Recent {
    fn default() -> Self {
        Self {
            // Each worker has its own key, which nobody outside can know.
            hasher: FixedState::with_seed(RandomState::new().hash_one(0_u8)),
            generations: RefCell::default(),
        }
    }
}

impl Recent {
    /// The entry of this very field, if it belongs to one of the issuers and still holds.
    pub(super) fn get(
        &self,
        field: &[u8],
        issuers: &[Arc<Issuer>],
        now: SystemTime,
    ) -> Option<(Arc<Issuer>, Arc<Entry>)> {
        let place = self.hasher.hash_one(field);
        let generations = &mut *self.generations.borrow_mut();
        if !generations.young.contains_key(&place) {
            let seen = generations.old.remove(&place)?;
            generations.add(place, seen);
        }
        let seen = generations.young.get(&place)?;
        if **seen.field != *field {
            return None;
        }
        let issuer = issuers
            .iter()
            .find(|issuer| std::ptr::eq(Arc::as_ptr(issuer), seen.issuer.as_ptr()))?;
        if !issuer.believes(&seen.entry, now) {
            generations.forget(place);
            return None;
        }
        Some((Arc::clone(issuer), Arc::clone(&seen.entry)))
    }

    /// Remembers a verified token by the field it came in.
    pub(super) fn keep(&self, field: &[u8], issuer: &Arc<Issuer>, entry: &Arc<Entry>) {
        let seen = Seen {
            field: Zeroizing::new(field.into()),
            issuer: Arc::downgrade(issuer),
            entry: Arc::clone(entry),
        };
        let place = self.hasher.hash_one(field);
        self.generations.borrow_mut().add(place, seen);
    }

    #[cfg(test)]
    pub(super) fn count(&self) -> usize {
        let generations = self.generations.borrow();
        generations.young.len() + generations.old.len()
    }
}

impl Generations {
    fn add(&mut self, place: u64, seen: Seen) {
        // A token that was verified anew takes the place that it has already.
        self.forget(place);
        let weight = u64::from(seen.entry.weight);
        self.weight += weight;
        if self.weight > MAX_WEIGHT || self.young.len() >= MAX_TOKENS {
            self.weight = weight;
            self.old = std::mem::take(&mut self.young);
        }
        self.young.insert(place, seen);
    }

    fn forget(&mut self, place: u64) {
        if let Some(seen) = self.young.remove(&place) {
            self.weight -= u64::from(seen.entry.weight);
        }
    }
}

impl fmt::Debug for Recent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // It holds tokens.
        f.debug_struct("Recent").finish_non_exhaustive()
    }
}
