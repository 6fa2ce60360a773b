//! The table that every request may look into: what is revoked, by the hash of its names.
//!
//! Readers never wait, not even while the table grows. An entry is four words that are read and
//! written as atomics, and a byte that a reader looks at first and that is written last. A shard that
//! has to grow is copied aside and swapped in, so that a reader finds the old one or the new one, each
//! whole. Writers of one shard take turns.
//!
//! There are many shards so that copying one is short: with ten million entries a shard holds some
//! 2,400 of 33 bytes. A shard grows by a quarter when it is three quarters full, so an entry costs 44
//! to 56 bytes ([`MAX_BYTES_PER_ENTRY`]) in tables; the allocator keeps some of the tables that were
//! outgrown for a while: in all it is 55 bytes with ten million entries and 86 with one million.

use std::fmt;
use std::hash::Hasher;
use std::sync::atomic::{AtomicU8, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use arc_swap::ArcSwap;
use siphasher::sip128::{Hasher128, SipHasher24};

/// Shards of an index that grows entry by entry. A power of two.
pub(super) const SHARDS: usize = 4096;

/// The most memory that an entry costs in tables, in bytes: 33, in a shard that is at least three
/// fifths full.
pub const MAX_BYTES_PER_ENTRY: usize = 56;

/// A shard grows when it would become fuller than this.
const FULLEST: (usize, usize) = (3, 4);

/// How full a shard is after it has grown.
const GROWN: (usize, usize) = (3, 5);

/// The least slots of a shard that holds anything.
const LEAST_SLOTS: usize = 8;

/// A mark that every credential is under.
pub(super) const ALTOGETHER: u64 = u64::MAX;

/// An end that never comes.
pub(super) const NEVER: u64 = u64::MAX;

/// What kind of thing an entry revokes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Kind {
    Token,
    Session,
    Subject,
    Client,
    Key,
    Version,
    Certificate,
}

/// How many kinds there are.
pub(super) const KINDS: usize = 7;

impl Kind {
    pub(super) const ALL: [Self; KINDS] = [
        Self::Token,
        Self::Session,
        Self::Subject,
        Self::Client,
        Self::Key,
        Self::Version,
        Self::Certificate,
    ];

    /// Its place in tables.
    pub(super) const fn place(self) -> usize {
        match self {
            Self::Token => 0,
            Self::Session => 1,
            Self::Subject => 2,
            Self::Client => 3,
            Self::Key => 4,
            Self::Version => 5,
            Self::Certificate => 6,
        }
    }

    /// The number that stands for it in keys; never zero.
    const fn tag(self) -> u64 {
        match self {
            Self::Token => 1,
            Self::Session => 2,
            Self::Subject => 3,
            Self::Client => 4,
            Self::Key => 5,
            Self::Version => 6,
            Self::Certificate => 7,
        }
    }

    fn of(upper: u64) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.tag() == upper & TAG)
    }

    /// Its name in requests, records and metrics.
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Token => "token",
            Self::Session => "session",
            Self::Subject => "subject",
            Self::Client => "client",
            Self::Key => "key",
            Self::Version => "version",
            Self::Certificate => "certificate",
        }
    }
}

/// The bits of a key that say its kind.
const TAG: u64 = 0b111;

/// What an entry is found by: 125 bits of a keyed hash of issuer and name, and the kind. Names are
/// not compared: among 10 million entries the odds that a look-up meets a stranger's are one in 10^30,
/// and nobody without the key can search for such names.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Key {
    upper: u64,
    lower: u64,
}

impl Key {
    pub(super) fn new(kind: Kind, issuer: &str, name: &str) -> Self {
        // One for the process, so that a hash that was remembered stays good across reloads.
        static SECRET: OnceLock<(u64, u64)> = OnceLock::new();
        let (first, second) = *SECRET.get_or_init(rand::random);
        let mut hasher = SipHasher24::new_with_keys(first, second);
        // With its length before it the issuer cannot borrow from the name.
        hasher.write_u64(u64::try_from(issuer.len()).unwrap_or(u64::MAX));
        hasher.write(issuer.as_bytes());
        hasher.write(name.as_bytes());
        let hash = hasher.finish128();
        Self {
            upper: (hash.h1 & !TAG) | kind.tag(),
            lower: hash.h2,
        }
    }

    /// The key as a number; never zero.
    pub(super) fn number(self) -> u128 {
        u128::from(self.upper) << 64 | u128::from(self.lower)
    }

    pub(super) fn of_number(number: u128) -> Option<Self> {
        let upper = u64::try_from(number >> 64).ok()?;
        let lower = u64::try_from(number & u128::from(u64::MAX)).ok()?;
        (upper != 0).then_some(Self { upper, lower })
    }

    /// One of 255 bytes; bits that say neither the shard nor the place in it.
    fn tag(self) -> u8 {
        u8::try_from(self.lower & 0xff).unwrap_or(0).max(1)
    }

    fn kind(self) -> Option<Kind> {
        Kind::of(self.upper)
    }

    /// A place among `places`, the same for the same hash: a multiplication instead of a division.
    fn place(hash: u64, places: usize) -> usize {
        let places = u128::try_from(places).unwrap_or(0);
        usize::try_from((u128::from(hash) * places) >> 64).unwrap_or(0)
    }
}

/// What an entry says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Mark {
    /// What was issued up to this second (or has a lower version) is revoked; [`ALTOGETHER`].
    pub(super) mark: u64,
    /// The second from which on the entry means nothing; [`NEVER`].
    pub(super) until: u64,
}

/// What became of an entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Inserted {
    /// It is new, or says more than what was there: this is in force now.
    Changed(Mark),
    /// As much was revoked already, by this.
    Known(Mark),
    /// There is no room.
    Full,
}

/// The entries.
pub(super) struct Index {
    shards: Box<[Shard]>,
    /// Slots that are taken, also by entries that ended and were not swept yet.
    taken: AtomicUsize,
    /// Entries by kind, also those that ended and were not swept yet.
    entries: [AtomicUsize; KINDS],
}

struct Shard {
    table: ArcSwap<Table>,
    writing: Mutex<Writing>,
}

/// What only writers of a shard need.
struct Writing {
    /// Slots that are taken.
    taken: usize,
    /// Slots of entries that were lifted.
    lifted: usize,
    /// No entry ends before this second.
    earliest: u64,
}

/// Slots, and a byte for each that tells most of those apart that are somebody else's: a look-up that
/// finds nothing, which is nearly every one, reads one line of these and no slot.
struct Table {
    /// Zero while the slot is free; written behind the slot, and never again.
    tags: Box<[AtomicU8]>,
    slots: Box<[Slot]>,
}

/// All zero while it is free. The key is written before the slot's tag, and never again.
#[derive(Default)]
struct Slot {
    upper: AtomicU64,
    lower: AtomicU64,
    mark: AtomicU64,
    /// Zero when the entry was lifted.
    until: AtomicU64,
}

impl Slot {
    fn read(&self) -> Mark {
        // Before the mark: what made an entry longer has its mark in place already.
        let until = self.until.load(Ordering::Acquire);
        Mark {
            mark: self.mark.load(Ordering::Acquire),
            until,
        }
    }

    fn write(&self, mark: Mark) {
        self.mark.store(mark.mark, Ordering::Release);
        self.until.store(mark.until, Ordering::Release);
    }

    fn publish(&self, key: Key, mark: Mark) {
        self.write(mark);
        self.lower.store(key.lower, Ordering::Relaxed);
        self.upper.store(key.upper, Ordering::Relaxed);
    }

    fn is_of(&self, key: Key) -> bool {
        self.upper.load(Ordering::Relaxed) == key.upper
            && self.lower.load(Ordering::Relaxed) == key.lower
    }
}

/// A place in a table.
struct Place<'t> {
    tag: &'t AtomicU8,
    slot: &'t Slot,
}

impl Place<'_> {
    /// Makes an entry that readers can find. The slot is free, and it is the caller's turn.
    fn publish(&self, key: Key, mark: Mark) {
        self.slot.publish(key, mark);
        self.tag.store(key.tag(), Ordering::Release);
    }
}

impl Table {
    fn new(slots: usize) -> Self {
        Self {
            tags: (0..slots).map(|_| AtomicU8::new(0)).collect(),
            slots: (0..slots).map(|_| Slot::default()).collect(),
        }
    }

    /// The slot of a key.
    fn find(&self, key: Key) -> Option<&Slot> {
        let (place, there) = self.seek(key)?;
        there.then_some(place.slot)
    }

    /// The place of a key, or the free one where it would go; `None` in a table without free ones.
    fn seek(&self, key: Key) -> Option<(Place<'_>, bool)> {
        let start = Key::place(key.upper, self.slots.len());
        self.probe(start, self.slots.len(), key)
            .or_else(|| self.probe(0, start, key))
    }

    fn probe(&self, start: usize, end: usize, key: Key) -> Option<(Place<'_>, bool)> {
        let wanted = key.tag();
        let tags = self.tags.get(start..end)?;
        for (offset, tag) in tags.iter().enumerate() {
            let found = tag.load(Ordering::Acquire);
            if found != 0 && found != wanted {
                continue;
            }
            let slot = self.slots.get(start + offset)?;
            if found == 0 || slot.is_of(key) {
                return Some((Place { tag, slot }, found != 0));
            }
        }
        None
    }
}

impl Shard {
    fn new() -> Self {
        Self {
            table: ArcSwap::from_pointee(Table::new(0)),
            writing: Mutex::new(Writing {
                taken: 0,
                lifted: 0,
                earliest: NEVER,
            }),
        }
    }

    fn writing(&self) -> MutexGuard<'_, Writing> {
        // Nothing in the critical sections panics; if it did, the numbers would be no worse.
        self.writing.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Index {
    /// An empty index; `shards` is a power of two.
    pub(super) fn new(shards: usize) -> Self {
        Self {
            shards: (0..shards).map(|_| Shard::new()).collect(),
            taken: AtomicUsize::new(0),
            entries: Default::default(),
        }
    }

    /// Slots that are taken: what the bound on entries is held against.
    pub(super) fn taken(&self) -> usize {
        self.taken.load(Ordering::Relaxed)
    }

    /// How many entries of a kind there are.
    pub(super) fn count(&self, kind: Kind) -> usize {
        self.entries
            .get(kind.place())
            .map_or(0, |count| count.load(Ordering::Relaxed))
    }

    /// Whether there may be entries of a kind: for requests, which mostly need not look.
    pub(super) fn has(&self, kind: Kind) -> bool {
        self.count(kind) > 0
    }

    /// What the entry of a key says at this second. Never waits.
    pub(super) fn get(&self, key: Key, now: u64) -> Option<Mark> {
        let table = self.shard(key)?.table.load();
        let mark = table.find(key)?.read();
        (now < mark.until).then_some(mark)
    }

    /// Takes an entry, unless more than `room` would be there. Entries of one key add up: the later
    /// mark and the later end hold.
    pub(super) fn insert(&self, key: Key, new: Mark, now: u64, room: usize) -> Inserted {
        let Some(shard) = self.shard(key) else {
            return Inserted::Full;
        };
        let mut writing = shard.writing();
        let table = shard.table.load_full();
        if let Some(slot) = table.find(key) {
            let old = slot.read();
            let lifted = old.until == 0;
            let merged = if now < old.until {
                Mark {
                    mark: old.mark.max(new.mark),
                    until: old.until.max(new.until),
                }
            } else {
                new
            };
            if merged == old {
                return Inserted::Known(old);
            }
            if lifted {
                writing.lifted -= 1;
                self.add(key);
            }
            writing.earliest = writing.earliest.min(merged.until);
            slot.write(merged);
            return Inserted::Changed(merged);
        }
        if self.taken() >= room {
            return Inserted::Full;
        }
        let table = if is_too_full(writing.taken + 1, table.slots.len()) {
            self.rebuild(shard, &mut writing, &table, 1, now)
        } else {
            table
        };
        let Some((place, false)) = table.seek(key) else {
            // A table that has just been found to have a free slot has one.
            return Inserted::Full;
        };
        self.add(key);
        self.taken.fetch_add(1, Ordering::Relaxed);
        writing.taken += 1;
        writing.earliest = writing.earliest.min(new.until);
        place.publish(key, new);
        Inserted::Changed(new)
    }

    /// Takes an entry back. Whether there was one.
    pub(super) fn lift(&self, key: Key, now: u64) -> bool {
        let Some(shard) = self.shard(key) else {
            return false;
        };
        let mut writing = shard.writing();
        let table = shard.table.load();
        let Some(slot) = table.find(key) else {
            return false;
        };
        let old = slot.read();
        if old.until == 0 {
            return false;
        }
        slot.until.store(0, Ordering::Release);
        writing.lifted += 1;
        self.remove(key);
        now < old.until
    }

    /// Frees the slots of entries that have ended, where this one is: room is needed now.
    pub(super) fn tidy(&self, key: Key, now: u64) {
        if let Some(shard) = self.shard(key) {
            let mut writing = shard.writing();
            let table = shard.table.load_full();
            self.rebuild(shard, &mut writing, &table, 0, now);
        }
    }

    /// Frees the slots of entries that have ended, in one slice of the shards: `slice` of `slices`.
    pub(super) fn sweep(&self, slice: usize, slices: usize, now: u64) {
        for shard in self.shards.iter().skip(slice).step_by(slices.max(1)) {
            let mut writing = shard.writing();
            if writing.lifted > 0 || writing.earliest <= now {
                let table = shard.table.load_full();
                self.rebuild(shard, &mut writing, &table, 0, now);
            }
        }
    }

    /// Copies what still holds at `now` into a table with room for `more`, and swaps that in.
    fn rebuild(
        &self,
        shard: &Shard,
        writing: &mut Writing,
        old: &Table,
        more: usize,
        now: u64,
    ) -> Arc<Table> {
        let holds = |slot: &&Slot| {
            let until = slot.until.load(Ordering::Relaxed);
            slot.upper.load(Ordering::Relaxed) != 0 && until != 0 && now < until
        };
        let kept = old.slots.iter().filter(holds).count();
        let table = Arc::new(Table::new(slots_for(kept + more)));
        let mut earliest = NEVER;
        for slot in &old.slots {
            let key = Key {
                upper: slot.upper.load(Ordering::Relaxed),
                lower: slot.lower.load(Ordering::Relaxed),
            };
            if holds(&slot) {
                let mark = slot.read();
                earliest = earliest.min(mark.until);
                if let Some((free, false)) = table.seek(key) {
                    free.publish(key, mark);
                }
            } else if slot.until.load(Ordering::Relaxed) != 0 {
                self.remove(key);
            }
        }
        self.taken
            .fetch_sub(writing.taken - kept, Ordering::Relaxed);
        *writing = Writing {
            taken: kept,
            lifted: 0,
            earliest,
        };
        shard.table.store(Arc::clone(&table));
        table
    }

    fn shard(&self, key: Key) -> Option<&Shard> {
        self.shards.get(Key::place(key.lower, self.shards.len()))
    }

    fn add(&self, key: Key) {
        if let Some(count) = key.kind().and_then(|kind| self.entries.get(kind.place())) {
            count.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn remove(&self, key: Key) {
        if let Some(count) = key.kind().and_then(|kind| self.entries.get(kind.place())) {
            count.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

const fn is_too_full(taken: usize, slots: usize) -> bool {
    taken * FULLEST.1 > slots * FULLEST.0
}

const fn slots_for(entries: usize) -> usize {
    let slots = (entries * GROWN.1).div_ceil(GROWN.0);
    if entries == 0 {
        0
    } else if slots < LEAST_SLOTS {
        LEAST_SLOTS
    } else {
        slots
    }
}

impl fmt::Debug for Index {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Index")
            .field("taken", &self.taken())
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
#[path = "index_tests.rs"]
mod tests;
