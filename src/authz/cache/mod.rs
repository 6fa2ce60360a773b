//! Answers given before, of one policy, on one core.
//!
//! A question is the bytes that [`crate::authz::cache::projection`] writes; an answer is given again only to a
//! question of exactly the same bytes. Only answers are kept, a yes and the policy's own no, never
//! what went wrong. An answer is forgotten when the credential ends that it was given for, when the
//! policy asked to be asked again, when a comparison with the time may come out differently, and
//! after the configured time.
//!
//! The memory has two generations: what is used moves to the younger; when that is full the older is
//! dropped and the younger takes its place. Whoever asks ever new questions makes others' answers
//! be forgotten, which costs them an evaluation, and nothing else.

pub(in crate::authz) mod projection;
#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::mem;
use std::sync::{Arc, Weak};
use std::time::{Duration, SystemTime};

use foldhash::fast::RandomState;

use crate::authn::Identity;
use crate::authz::answer::Face;
use crate::authz::{Advice, Gave};

/// Longest question that is kept, in bytes.
pub(in crate::authz) const MAX_QUESTION: usize = 4 * 1024;
/// What an answer costs beside its texts: its place in the map, and that of the identity's address.
const FIXED_COST: usize = 192 + size_of::<Identity>();

/// The bounds of a memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::authz) struct Bounds {
    pub(in crate::authz) entries: usize,
    pub(in crate::authz) bytes: usize,
    pub(in crate::authz) lifetime: Duration,
}

/// What is kept of an evaluation: its meaning, and what the entry point gave.
#[derive(Debug, Clone)]
pub(in crate::authz) enum Answer {
    Allow(Arc<Advice>, Option<Gave>),
    Deny(Arc<Face>, Option<Gave>),
}

#[derive(Debug)]
struct Kept {
    answer: Answer,
    /// From when and until when it may be given again.
    from: SystemTime,
    until: SystemTime,
    cost: usize,
    /// Keeps the identity's address, which is in the question, from being given to another.
    _identity: Option<Weak<Identity>>,
}

/// The answers of one policy on one core.
#[derive(Debug)]
pub(in crate::authz) struct Answers {
    bounds: Bounds,
    young: Generation,
    old: Generation,
}

#[derive(Debug, Default)]
struct Generation {
    // Hashed fast, with a key of its own, for clients choose parts of the questions; and compared.
    answers: HashMap<Box<[u8]>, Kept, RandomState>,
    cost: usize,
}

impl Answers {
    pub(in crate::authz) fn new(bounds: Bounds) -> Self {
        Self {
            bounds,
            young: Generation::default(),
            old: Generation::default(),
        }
    }

    /// The answer to this question, if one holds now.
    pub(in crate::authz) fn get(&mut self, question: &[u8], now: SystemTime) -> Option<Answer> {
        if let Some(kept) = self.young.answers.get(question) {
            return kept.given(now);
        }
        let (question, kept) = self.old.answers.remove_entry(question)?;
        self.old.cost = self.old.cost.saturating_sub(kept.cost);
        let answer = kept.given(now)?;
        self.insert(question, kept);
        Some(answer)
    }

    /// Keeps an answer; `size` is what it weighs itself, and `most` how long it may be kept at most.
    pub(in crate::authz) fn keep(
        &mut self,
        question: &[u8],
        answer: Answer,
        size: usize,
        identity: Option<&Arc<Identity>>,
        now: SystemTime,
        most: Option<Duration>,
    ) {
        let cost = FIXED_COST
            .saturating_add(question.len())
            .saturating_add(size);
        // One answer must not push out all others.
        if cost > self.bounds.bytes / 16 {
            return;
        }
        let asked_again = match &answer {
            Answer::Allow(advice, _) => advice.recheck_after,
            Answer::Deny(..) => None,
        };
        let lifetime = self
            .bounds
            .lifetime
            .min(asked_again.unwrap_or(Duration::MAX))
            .min(most.unwrap_or(Duration::MAX));
        if lifetime.is_zero() {
            return;
        }
        let Some(mut until) = now.checked_add(lifetime) else {
            return;
        };
        if let Some(identity) = identity {
            until = until.min(identity.valid_until);
        }
        let kept = Kept {
            answer,
            from: now,
            until,
            cost,
            _identity: identity.map(Arc::downgrade),
        };
        self.insert(question.into(), kept);
    }

    fn insert(&mut self, question: Box<[u8]>, kept: Kept) {
        let full = self.young.answers.len() >= (self.bounds.entries / 2).max(1)
            || self.young.cost.saturating_add(kept.cost) > self.bounds.bytes / 2;
        if full {
            mem::swap(&mut self.young, &mut self.old);
            self.young.clear();
        }
        self.young.cost += kept.cost;
        if let Some(before) = self.young.answers.insert(question, kept) {
            self.young.cost = self.young.cost.saturating_sub(before.cost);
        }
    }

    #[cfg(test)]
    pub(in crate::authz) fn size(&self) -> (usize, usize) {
        (
            self.young.answers.len() + self.old.answers.len(),
            self.young.cost + self.old.cost,
        )
    }
}

impl Generation {
    /// Keeps the map's own memory: it is needed again at once.
    fn clear(&mut self) {
        self.answers.clear();
        self.cost = 0;
    }
}

impl Kept {
    fn given(&self, now: SystemTime) -> Option<Answer> {
        (self.from <= now && now < self.until).then(|| self.answer.clone())
    }
}
