//! What is known of one issuer's keys: published, leaving, distrusted. No I/O, no tasks.
//!
//! The book is written under a lock by whoever learns something; what requests read is made from it
//! ([`Book::render`]) and swapped in whole.
//!
//! **Distrust** is about material. An operator names a `kid`, and what is written down is the thumbprint
//! (RFC 7638) of the key that has it: the same material under another `kid` is not believed either,
//! while new material under the same `kid` is. An issuer that names its key `default` can so recover by
//! replacing it, and nothing is lost: what the old key has signed does not verify with the new one. Where
//! no published key has the `kid`, there is no material to go by, and the name itself is refused.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use super::algorithm::Algorithm;
use super::keys::{Found, Key, KeySet};

/// Most keys of one issuer that are distrusted at one time.
pub(super) const MAX_DISTRUSTED: usize = 100;

/// How many names of former keys are remembered.
const MAX_FORMER: usize = 256;

/// Where the set in force is from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Origin {
    /// There is none.
    None,
    /// The issuer.
    Network,
    /// What was kept on disk when the issuer could last be reached.
    Disk,
    /// A key file of the configuration.
    File,
    /// A secret of the configuration.
    Secret,
}

/// A key that is published.
#[derive(Debug, Clone)]
pub(super) struct Published {
    pub(super) key: Arc<Key>,
    pub(super) first_seen: SystemTime,
}

/// A key that is no longer published and still believed for a while.
#[derive(Debug, Clone)]
pub(super) struct Leaving {
    pub(super) key: Arc<Key>,
    pub(super) first_seen: SystemTime,
    pub(super) until: Instant,
}

/// A key that is not believed, whatever the issuer publishes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Distrust {
    /// Its `kid` when it was distrusted, if it had one.
    pub kid: Option<Arc<str>>,
    /// Its thumbprint (RFC 7638, SHA-256); none when no published key had the `kid`, which is then
    /// refused itself.
    pub thumbprint: Option<Arc<str>>,
    /// Since when, in seconds since 1970.
    pub since: u64,
}

impl Distrust {
    fn means(&self, key: &Key) -> bool {
        match &self.thumbprint {
            Some(thumbprint) => key.thumbprint() == Some(thumbprint),
            None => self.kid.is_some() && self.kid == key.id,
        }
    }

    fn is_named(&self, name: &KeyName) -> bool {
        let same = |asked: &Option<Arc<str>>, own: &Option<Arc<str>>| {
            asked.is_none() || asked.as_deref() == own.as_deref()
        };
        same(&name.kid, &self.kid) && same(&name.thumbprint, &self.thumbprint)
    }
}

/// Which key is meant. Whoever gives both means one that has both.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct KeyName {
    /// Its `kid`.
    pub kid: Option<Arc<str>>,
    /// Its thumbprint (RFC 7638, SHA-256).
    pub thumbprint: Option<Arc<str>>,
}

impl KeyName {
    fn is_of(&self, key: &Key) -> bool {
        self.kid
            .as_ref()
            .is_none_or(|kid| key.id.as_ref() == Some(kid))
            && self
                .thumbprint
                .as_ref()
                .is_none_or(|thumbprint| key.thumbprint() == Some(thumbprint))
    }
}

/// Everything that is known of the keys.
#[derive(Debug, Clone)]
pub(super) struct Book {
    pub(super) published: Vec<Published>,
    pub(super) leaving: Vec<Leaving>,
    pub(super) distrusted: Vec<Distrust>,
    /// Names of keys that are gone, and since when.
    former: VecDeque<(Arc<str>, Instant)>,
    pub(super) notes: Vec<String>,
    pub(super) origin: Origin,
    /// When the issuer last gave a good set.
    pub(super) fetched_at: Option<SystemTime>,
    /// How long the set is believed; `None` for ever.
    pub(super) until: Option<Instant>,
    version: u64,
}

impl Default for Book {
    fn default() -> Self {
        Self {
            published: Vec::new(),
            leaving: Vec::new(),
            distrusted: Vec::new(),
            former: VecDeque::new(),
            notes: Vec::new(),
            origin: Origin::None,
            fetched_at: None,
            until: None,
            version: 0,
        }
    }
}

/// What became of a key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Change {
    pub(super) what: What,
    pub(super) kid: Option<Arc<str>>,
    pub(super) old: Option<Arc<str>>,
    pub(super) new: Option<Arc<str>>,
}

/// What can become of a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum What {
    /// It was not there before.
    Added,
    /// It is there no more.
    Removed,
    /// Its `kid` is that of other material, or of the same with other algorithms.
    Replaced,
    /// Its material is published under another `kid`.
    Renamed,
    /// It is published and not believed.
    Distrusted,
}

impl What {
    /// A stable word for metrics.
    pub(super) const fn code(self) -> &'static str {
        match self {
            Self::Added => "added",
            Self::Removed => "removed",
            Self::Replaced => "replaced",
            Self::Renamed => "renamed",
            Self::Distrusted => "distrusted_published",
        }
    }
}

impl Book {
    /// The names and times of a set that is new to the book; keys that it knows keep theirs.
    fn seen(&self, key: &Key, now: SystemTime) -> SystemTime {
        let published = self.published.iter().map(|one| (&one.key, one.first_seen));
        let leaving = self.leaving.iter().map(|one| (&one.key, one.first_seen));
        published
            .chain(leaving)
            .find(|(known, _)| known.fingerprint == key.fingerprint)
            .map_or(now, |(_, first_seen)| first_seen)
    }

    /// Takes a set that the issuer gave now; keys that are not in it are believed for `retire` more,
    /// unless their name is used for another.
    pub(super) fn replace(
        &mut self,
        set: KeySet,
        origin: Origin,
        (now, at): (Instant, SystemTime),
        believed: Option<Duration>,
        retire: Duration,
    ) -> Vec<Change> {
        let published: Vec<_> = set
            .keys
            .into_iter()
            .map(|key| Published {
                first_seen: self.seen(&key, at),
                key,
            })
            .collect();
        let changes = self.compare(&published);
        let gone = self.published.iter().filter(|old| {
            !published
                .iter()
                .any(|new| new.key.fingerprint == old.key.fingerprint)
        });
        let until = now + retire;
        let mut leaving: Vec<_> = gone
            .filter(|old| !self.is_distrusted(&old.key))
            .map(|old| Leaving {
                key: Arc::clone(&old.key),
                first_seen: old.first_seen,
                until,
            })
            .collect();
        for left in &leaving {
            if let Some(id) = &left.key.id {
                if self.former.len() >= MAX_FORMER {
                    self.former.pop_front();
                }
                self.former.push_back((Arc::clone(id), now));
            }
        }
        leaving.append(&mut self.leaving);
        leaving.retain(|left| {
            now < left.until
                && left.key.id.is_some()
                && !published.iter().any(|new| {
                    new.key.id == left.key.id || new.key.fingerprint == left.key.fingerprint
                })
        });
        // The latest stay; an issuer that rotates faster than that is believed in its present only.
        leaving.truncate(super::keys::MAX_KEYS);
        self.leaving = leaving;
        self.former.retain(|(former, _)| {
            !published
                .iter()
                .any(|new| new.key.id.as_ref() == Some(former))
        });
        self.published = published;
        self.notes = set.notes;
        self.origin = origin;
        self.fetched_at = Some(at);
        self.until = believed.map(|believed| now + believed);
        changes
    }

    fn compare(&self, published: &[Published]) -> Vec<Change> {
        let old_of = |new: &Published| {
            self.published.iter().find(|old| {
                new.key.id.is_some()
                    && old.key.id == new.key.id
                    && old.key.fingerprint != new.key.fingerprint
            })
        };
        let mut changes = Vec::new();
        for new in published {
            if self
                .published
                .iter()
                .any(|old| old.key.fingerprint == new.key.fingerprint)
            {
                continue;
            }
            let twin = self.published.iter().find(|old| {
                old.key.thumbprint() == new.key.thumbprint() && old.key.id != new.key.id
            });
            let (what, old) = match (old_of(new), twin) {
                (Some(old), _) => (What::Replaced, Some(old)),
                (None, Some(twin)) => (What::Renamed, Some(twin)),
                (None, None) => (What::Added, None),
            };
            changes.push(Change {
                what,
                kid: new.key.id.clone(),
                old: old.and_then(|old| old.key.thumbprint().cloned()),
                new: new.key.thumbprint().cloned(),
            });
            if self.is_distrusted(&new.key) {
                changes.push(Change {
                    what: What::Distrusted,
                    kid: new.key.id.clone(),
                    old: None,
                    new: new.key.thumbprint().cloned(),
                });
            }
        }
        for old in &self.published {
            let kept = published.iter().any(|new| {
                new.key.fingerprint == old.key.fingerprint
                    || (new.key.id.is_some() && new.key.id == old.key.id)
            });
            if !kept {
                changes.push(Change {
                    what: What::Removed,
                    kid: old.key.id.clone(),
                    old: old.key.thumbprint().cloned(),
                    new: None,
                });
            }
        }
        changes
    }

    /// Whether this key is published and not to be believed.
    pub(super) fn is_distrusted(&self, key: &Key) -> bool {
        self.distrusted.iter().any(|distrust| distrust.means(key))
    }

    /// Distrusts the keys of this name; `None` when there is no room for that. Those that were
    /// distrusted before are told too.
    pub(super) fn distrust(&mut self, name: &KeyName, since: u64) -> Option<Vec<Distrust>> {
        let published = self.published.iter().map(|one| &one.key);
        let leaving = self.leaving.iter().map(|one| &one.key);
        let mut named: Vec<_> = published
            .chain(leaving)
            .filter(|key| name.is_of(key))
            .map(|key| Distrust {
                kid: key.id.clone(),
                thumbprint: key.thumbprint().cloned(),
                since,
            })
            .collect();
        if named.is_empty() {
            named.push(Distrust {
                kid: name.kid.clone(),
                thumbprint: name.thumbprint.clone(),
                since,
            });
        }
        let mut added = self.distrusted.clone();
        for new in &mut named {
            let known = added
                .iter()
                .find(|old| old.kid == new.kid && old.thumbprint == new.thumbprint);
            match known {
                Some(known) => *new = known.clone(),
                None => added.push(new.clone()),
            }
        }
        if added.len() > MAX_DISTRUSTED {
            return None;
        }
        self.distrusted = added;
        self.leaving
            .retain(|left| !self.distrusted.iter().any(|one| one.means(&left.key)));
        Some(named)
    }

    /// Takes over what was distrusted elsewhere.
    pub(super) fn merge(&mut self, distrusted: Vec<Distrust>) {
        for distrust in distrusted {
            if !self.distrusted.contains(&distrust) {
                self.distrusted.push(distrust);
            }
        }
        self.leaving
            .retain(|left| !self.distrusted.iter().any(|one| one.means(&left.key)));
    }

    /// Believes the keys of this name again; returns what was lifted.
    pub(super) fn trust(&mut self, name: &KeyName) -> Vec<Distrust> {
        let (lifted, kept) = std::mem::take(&mut self.distrusted)
            .into_iter()
            .partition(|distrust| distrust.is_named(name));
        self.distrusted = kept;
        lifted
    }

    /// Forgets what is believed no longer because of its age; whether the set itself was.
    pub(super) fn sweep(&mut self, now: Instant) -> bool {
        self.leaving.retain(|left| now < left.until);
        let lapsed = self.until.is_some_and(|until| until < now);
        if lapsed {
            self.published.clear();
            self.leaving.clear();
            self.until = None;
            self.origin = Origin::None;
        }
        lapsed
    }

    /// When there is next something to sweep.
    pub(super) fn next_sweep(&self) -> Option<Instant> {
        let leaving = self.leaving.iter().map(|left| left.until);
        // Past the moment, which is still believed.
        let set = self.until.map(|until| until + Duration::from_millis(1));
        leaving.chain(set).min()
    }

    /// What requests read.
    pub(super) fn render(&mut self, before: &InForce) -> InForce {
        let keys: Vec<_> = self
            .published
            .iter()
            .filter(|one| !self.is_distrusted(&one.key))
            .map(|one| Arc::clone(&one.key))
            .collect();
        let set = KeySet::of(keys);
        let leaving = self.leaving.clone();
        let blocked: Vec<_> = self
            .distrusted
            .iter()
            .filter(|one| one.thumbprint.is_none())
            .filter_map(|one| one.kid.clone())
            .collect();
        let published = self.published.iter().map(|one| &one.key);
        let refused: Vec<_> = published
            .filter(|key| self.is_distrusted(key))
            .map(|key| key.id.clone())
            .chain(self.distrusted.iter().map(|one| one.kid.clone()))
            .flatten()
            .collect();
        let changed = !set.fingerprints().eq(before.set.fingerprints())
            || before.refused != refused
            || before.blocked != blocked;
        if changed {
            self.version += 1;
        }
        InForce {
            set,
            leaving,
            refused,
            blocked,
            former: self.former.iter().cloned().collect(),
            until: self.until,
            version: self.version,
        }
    }
}

/// The keys in force, as requests see them.
#[derive(Debug, Default)]
pub(super) struct InForce {
    set: KeySet,
    leaving: Vec<Leaving>,
    /// Names of distrusted keys, old and new: a token that bears one is not asked after.
    refused: Vec<Arc<str>>,
    /// Names that are distrusted whatever key has them.
    blocked: Vec<Arc<str>>,
    former: Vec<(Arc<str>, Instant)>,
    until: Option<Instant>,
    /// Rises when keys come, go or are distrusted.
    pub(super) version: u64,
}

/// What a look-up finds.
#[derive(Debug)]
pub(super) enum Sought {
    /// The key.
    Key(Arc<Key>),
    /// It is there and is not for this algorithm.
    Mismatch,
    /// Several fit a token that names none.
    Ambiguous,
    /// No such key.
    Unknown,
    /// The token is signed with a key that is distrusted, or says so.
    Distrusted,
    /// There are no keys.
    Nothing,
}

impl InForce {
    /// How many keys are believed.
    pub(super) fn len(&self, now: Instant) -> usize {
        if self.is_believed(now) {
            self.set.len()
        } else {
            0
        }
    }

    /// Whether there are keys young enough to be believed. Judged at every look-up, not only by the
    /// task that sweeps: keys age even if that should not run.
    fn is_believed(&self, now: Instant) -> bool {
        self.set.len() + self.leaving.len() > 0 && self.until.is_none_or(|until| now <= until)
    }

    /// Whether this key is believed.
    pub(super) fn holds(&self, fingerprint: &[u8; 32], now: Instant) -> bool {
        self.is_believed(now)
            && (self.set.holds(fingerprint)
                || self
                    .leaving
                    .iter()
                    .any(|left| left.key.fingerprint == *fingerprint && now < left.until))
    }

    /// Whether a key that was in force before is so no more, age left aside.
    pub(super) fn lacks_any_of(&self, before: &Self) -> bool {
        let had = |set: &Self, fingerprint: &[u8; 32]| {
            set.set.holds(fingerprint)
                || set
                    .leaving
                    .iter()
                    .any(|left| left.key.fingerprint == *fingerprint)
        };
        before
            .set
            .fingerprints()
            .chain(before.leaving.iter().map(|left| &left.key.fingerprint))
            .any(|fingerprint| !had(self, fingerprint))
    }

    /// Since when a key of this name is gone, if one was here.
    pub(super) fn gone_since(&self, id: &str) -> Option<Instant> {
        let former = self.former.iter().find(|(former, _)| **former == *id);
        former.map(|(_, since)| *since)
    }

    /// The key for a token.
    pub(super) fn find(&self, id: Option<&str>, algorithm: Algorithm, now: Instant) -> Sought {
        let is_in =
            |names: &[Arc<str>]| id.is_some_and(|id| names.iter().any(|name| **name == *id));
        if is_in(&self.blocked) {
            return Sought::Distrusted;
        }
        if !self.is_believed(now) {
            return if is_in(&self.refused) {
                Sought::Distrusted
            } else {
                Sought::Nothing
            };
        }
        match self.set.find(id, algorithm) {
            Found::Key(key) => Sought::Key(Arc::clone(key)),
            Found::Mismatch => Sought::Mismatch,
            Found::Ambiguous => Sought::Ambiguous,
            Found::Unknown => {
                let left = self
                    .leaving
                    .iter()
                    .find(|left| id.is_some() && left.key.id.as_deref() == id && now < left.until);
                match left {
                    Some(left) if left.key.fits(algorithm) => Sought::Key(Arc::clone(&left.key)),
                    Some(_) => Sought::Mismatch,
                    None if is_in(&self.refused) => Sought::Distrusted,
                    None => Sought::Unknown,
                }
            }
        }
    }
}

#[cfg(test)]
#[path = "book_tests.rs"]
mod tests;
