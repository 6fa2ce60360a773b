//! The revocation lists of a listener: those of files, which came with the configuration, and those
//! that were fetched since.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use arc_swap::ArcSwap;

use super::chain::{Authority, Link};
use super::list::{List, ListError};

/// Most places that lists are fetched from.
pub(super) const MAX_POINTS: usize = 64;

/// What the lists say of one certificate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Status {
    /// It is on none, and this holds for so long.
    Good(SystemTime),
    /// It is on one.
    Revoked,
    /// There is no list of its issuer that can be believed now.
    Unknown,
}

type ByIssuer = HashMap<Box<[u8]>, Vec<Arc<List>>>;

/// All lists that may be believed.
#[derive(Debug, Default)]
pub(super) struct Lists {
    files: Vec<Arc<List>>,
    fetched: Mutex<HashMap<Arc<str>, Slot>>,
    /// All of them by their issuer's name.
    in_force: ArcSwap<ByIssuer>,
}

/// The lists of one place.
#[derive(Debug, Clone, Default)]
struct Slot {
    /// The last one that is known to be signed by its authority.
    good: Option<Arc<List>>,
    /// A newer one whose authority's key has not been seen yet: that of an intermediate comes with the
    /// first chain through it. It never takes the good one's place before it is verified.
    candidate: Option<Arc<List>>,
}

impl Slot {
    /// Makes a candidate that was verified meanwhile the good one.
    fn settle(&mut self) {
        if self
            .candidate
            .as_ref()
            .is_some_and(|list| list.is_believed())
        {
            self.good = self.candidate.take();
        }
    }

    fn newest(&self) -> Option<&Arc<List>> {
        self.candidate.as_ref().or(self.good.as_ref())
    }
}

/// What came of a fetched list.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Taken {
    /// Whether it is another one than before.
    pub changed: bool,
    /// When it was issued.
    pub issued: SystemTime,
    /// When it stops being believed.
    pub ends: SystemTime,
    /// How many certificates it lists.
    pub entries: usize,
    /// Whether its signature is known to be good; else the first chain through its authority tells.
    pub verified: bool,
}

impl Lists {
    /// Begins with the lists of files and with what an earlier configuration has fetched from places
    /// that are still to be used.
    pub(super) fn new(
        files: Vec<Arc<List>>,
        previous: Option<&Self>,
        wanted: impl Fn(&str) -> bool,
    ) -> Self {
        let fetched = previous.map(|previous| {
            let fetched = previous.fetched();
            fetched
                .iter()
                .filter(|(place, _)| wanted(place))
                .map(|(place, slot)| (Arc::clone(place), slot.clone()))
                .collect()
        });
        let lists = Self {
            files,
            fetched: Mutex::new(fetched.unwrap_or_default()),
            in_force: ArcSwap::default(),
        };
        lists.publish(&lists.fetched());
        lists
    }

    fn fetched(&self) -> MutexGuard<'_, HashMap<Arc<str>, Slot>> {
        self.fetched.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn publish(&self, fetched: &HashMap<Arc<str>, Slot>) {
        let mut by_issuer = ByIssuer::new();
        let slots = fetched
            .values()
            .flat_map(|slot| slot.good.iter().chain(&slot.candidate));
        for list in self.files.iter().chain(slots) {
            by_issuer
                .entry(list.issuer.clone())
                .or_default()
                .push(Arc::clone(list));
        }
        self.in_force.store(Arc::new(by_issuer));
    }

    /// Whether there is any list at all.
    pub(super) fn is_empty(&self) -> bool {
        self.in_force.load().is_empty()
    }

    /// Takes a list that was fetched from `place`. `known` are the authorities of its issuer's name
    /// whose keys are known; `all` says that there can be no others.
    ///
    /// # Errors
    /// [`ListError`]; the list that was held before goes on being held.
    pub(super) fn take(
        &self,
        place: &Arc<str>,
        list: List,
        known: &[Arc<Authority>],
        all: bool,
        now: SystemTime,
    ) -> Result<Taken, ListError> {
        let mut taken = Taken {
            changed: true,
            issued: list.issued(),
            ends: list.ends(),
            entries: list.len(),
            verified: true,
        };
        let mut fetched = self.fetched();
        if !fetched.contains_key(place) && fetched.len() >= MAX_POINTS {
            return Err(ListError::TooMany);
        }
        let slot = fetched.entry(Arc::clone(place)).or_default();
        slot.settle();
        if let Some(held) = slot.newest().filter(|held| held.sha256 == list.sha256) {
            taken.changed = false;
            taken.verified = held.is_believed();
            return match held.timely(now) {
                Ok(()) => Ok(taken),
                Err(error) => Err(error),
            };
        }
        list.timely(now)?;
        let signed = known.iter().any(|authority| list.is_by(authority));
        if !signed && all {
            return Err(ListError::Signature);
        }
        if let Some(good) = &slot.good
            && good.same_scope(&list)
            && good.supersedes(&list)
        {
            return Err(ListError::Older);
        }
        taken.verified = signed;
        if signed {
            slot.good = Some(Arc::new(list));
            slot.candidate = None;
        } else {
            slot.candidate = Some(Arc::new(list));
        }
        self.publish(&fetched);
        Ok(taken)
    }

    /// Lets go of what was fetched from a place.
    pub(super) fn forget(&self, place: &str) {
        let mut fetched = self.fetched();
        if fetched.remove(place).is_some() {
            self.publish(&fetched);
        }
    }

    /// What the lists say of a certificate: of each scope the newest list that its issuer has signed
    /// speaks. On a list that has expired a serial number is revoked all the same.
    pub(super) fn status(&self, link: &Link, now: SystemTime) -> Status {
        let in_force = self.in_force.load();
        let Some(lists) = in_force.get(&link.issuer.name) else {
            return Status::Unknown;
        };
        let mut status = Status::Unknown;
        let speaks = |list: &Arc<List>| list.covers(link) && list.is_by(&link.issuer);
        for list in lists.iter().filter(|list| speaks(list)) {
            let newer = |other: &&Arc<List>| {
                other.same_scope(list) && other.supersedes(list) && speaks(other)
            };
            if lists.iter().find(newer).is_some() {
                continue;
            }
            if list.lists(&link.serial) {
                return Status::Revoked;
            }
            if list.next_update > now {
                // With several, all have to say so, and the first to end decides.
                let until = match status {
                    Status::Good(until) => until.min(list.next_update),
                    Status::Unknown | Status::Revoked => list.next_update,
                };
                status = Status::Good(until);
            }
        }
        status
    }

    /// Whether a believed list of this authority is in force at this time.
    pub(super) fn has(&self, authority: &Authority, now: SystemTime) -> bool {
        let in_force = self.in_force.load();
        in_force.get(&authority.name).is_some_and(|lists| {
            lists
                .iter()
                .any(|list| list.next_update > now && list.is_by(authority))
        })
    }

    /// The list of a place, for operators.
    pub(super) fn of(&self, place: &str) -> Option<Arc<List>> {
        let fetched = self.fetched();
        fetched.get(place).and_then(|slot| slot.newest().cloned())
    }
}
