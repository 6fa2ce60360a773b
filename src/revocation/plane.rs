//! What is revoked in this process: one plane for all sources, from start to end, across reloads.
//!
//! What was brought entry by entry is in one index; each list has a layer of its own beside it, so
//! that a new edition replaces the old one in one step and touches nobody else's entries.

use std::collections::HashSet;
use std::fmt;
use std::io;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, SystemTime};

use arc_swap::ArcSwap;

use super::entry::Listed;
use super::index::{ALTOGETHER, Index, Inserted, KINDS, Key, Kind, Mark, NEVER, SHARDS};
use super::journal::{Journal, Line, Receipt, StoreError};
use super::recall::Recall;
use super::relay::{Held, REPLICAS, RelayTo, Told};
use super::{Lift, NotTaken, Revocation, RevocationConfig, Target};
use crate::clock::unix_seconds;
use crate::epoch::Epoch;
use crate::metrics::Metrics;

/// Twice the most that an issuer's clock may be from ours, as `authn` bounds it: a token is accepted
/// up to that much after its `exp`, and may say that it was issued that much later than it was.
pub(super) const LEEWAY: Duration = Duration::from_secs(600);

/// Longest name in an entry, in bytes; longer ones are in no identity.
pub(super) const MAX_NAME: usize = 1024;

/// One part in so many of the room is the operators' own.
const OPERATORS_PART: usize = 16;

/// The source of what operators bring.
const OPERATORS: &str = "admin";

/// Any source but the operators.
const FEEDS: &str = "";

/// Longest reason, in bytes.
pub(super) const MAX_REASON: usize = 256;

/// What may be asked of the plane.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// An entry is brought.
    Revoke(Revocation),
    /// An entry is taken back.
    Lift(Lift),
}

/// What is revoked in a process.
pub struct Plane {
    local: Arc<Index>,
    keep: Keep,
    layers: ArcSwap<Vec<Arc<Layer>>>,
    /// Another one after every change that revokes more.
    version: AtomicU64,
    room: AtomicUsize,
    /// Seconds.
    longest_life: AtomicU64,
    /// Whether the last entry found no room.
    full: AtomicBool,
    /// Changes in memory and on disk are made in the same order.
    turn: Arc<Mutex<()>>,
    /// The number of the revocations that are in force.
    reign: AtomicU64,
    /// The names of their feeds.
    feeds: Mutex<Vec<Arc<str>>>,
    /// The numbers of their lists.
    lists: Mutex<Vec<u64>>,
    epoch: Arc<Epoch>,
    metrics: Arc<Metrics>,
    /// Who tells other replicas.
    pub(super) relay: RelayTo,
}

/// Where the texts of entries are, beside the index.
enum Keep {
    /// In memory, as far as they fit.
    Memory(Mutex<Recall>),
    /// On disk, once it is open.
    Store {
        path: PathBuf,
        journal: OnceLock<Journal>,
    },
}

/// A part of what is in force, for a list.
#[derive(Debug, Default)]
pub struct Page {
    /// Entries.
    pub entries: Vec<Listed>,
    /// Where to go on.
    pub next: Option<Place>,
    /// Whether every entry in force can be listed: without a store, only the latest are.
    pub complete: bool,
}

/// A place in the list of what is in force.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place(pub u64, pub u64);

/// What is known of the store, for the admin pages.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct StoreStatus {
    /// The file.
    pub path: PathBuf,
    /// Lines in it.
    pub lines: u64,
    /// Its length.
    pub bytes: u64,
    /// Entries that are in force and wait for the disk.
    pub unsaved: u64,
    /// Whether entries were given up that could not be written: they will be missing after a restart.
    pub lost: bool,
    /// Why the last write failed.
    pub error: Option<String>,
}

/// The entries of one list.
#[derive(Debug)]
pub(super) struct Layer {
    pub(super) name: Arc<str>,
    pub(super) index: Index,
}

/// Changes that are in force, and may not be on disk yet.
#[derive(Debug)]
#[must_use = "an entry that is not kept is gone with the next start"]
pub struct Pending {
    results: Vec<Result<bool, NotTaken>>,
    /// None when nothing has to be written.
    receipt: Option<Arc<Receipt>>,
}

impl Pending {
    /// What became of each change, in their order: whether it changed anything. Returns when they are
    /// on disk, where there is a store.
    ///
    /// Cancel safe: the changes are in force and will be written all the same.
    pub async fn kept(self) -> Vec<Result<bool, NotTaken>> {
        let kept = match &self.receipt {
            Some(receipt) => receipt.kept().await,
            None => true,
        };
        self.told(kept)
    }

    /// As [`Pending::kept`], for threads that may wait.
    pub fn kept_here(self) -> Vec<Result<bool, NotTaken>> {
        let kept = self
            .receipt
            .as_ref()
            .is_none_or(|receipt| receipt.kept_here());
        self.told(kept)
    }

    fn told(self, kept: bool) -> Vec<Result<bool, NotTaken>> {
        let told = |result| match result {
            Ok(_) if !kept => Err(NotTaken::Store),
            other => other,
        };
        self.results.into_iter().map(told).collect()
    }
}

impl Plane {
    pub(super) fn new(config: &RevocationConfig, epoch: Arc<Epoch>, metrics: Arc<Metrics>) -> Self {
        let plane = Self {
            local: Arc::new(Index::new(SHARDS)),
            keep: match &config.store {
                None => Keep::Memory(Mutex::default()),
                Some(path) => Keep::Store {
                    path: path.clone(),
                    journal: OnceLock::new(),
                },
            },
            layers: ArcSwap::default(),
            version: AtomicU64::new(fresh_version()),
            room: AtomicUsize::new(0),
            longest_life: AtomicU64::new(0),
            full: AtomicBool::new(false),
            turn: Arc::default(),
            reign: AtomicU64::new(0),
            feeds: Mutex::default(),
            lists: Mutex::default(),
            epoch,
            metrics,
            relay: RelayTo::default(),
        };
        plane.configure(config);
        plane
    }

    /// Puts the bounds of a configuration in force.
    pub(super) fn configure(&self, config: &RevocationConfig) {
        let room = usize::try_from(config.max_entries).unwrap_or(usize::MAX);
        self.room.store(room, Ordering::Relaxed);
        let life = config.longest_life.get().as_secs();
        self.longest_life.store(life, Ordering::Relaxed);
    }

    /// The revocations of this number are those in force from now on: whether they were not.
    pub(super) fn begin_reign(&self, number: u64) -> bool {
        self.reign.swap(number, Ordering::SeqCst) != number
    }

    pub(super) fn reigns(&self, number: u64) -> bool {
        self.reign.load(Ordering::SeqCst) == number
    }

    /// The names of the feeds from now on; returns those that are gone.
    pub(super) fn replace_feeds(&self, feeds: Vec<Arc<str>>) -> Vec<Arc<str>> {
        let mut known = self.feeds.lock().unwrap_or_else(PoisonError::into_inner);
        let mut gone = std::mem::replace(&mut *known, feeds);
        gone.retain(|name| !known.contains(name));
        gone
    }

    /// Opens the store, if there is one and it is not open yet, and takes what it holds.
    ///
    /// # Errors
    /// [`StoreError`]: nobody may be served, since what was revoked is not known.
    pub(super) fn open(&self) -> Result<(), StoreError> {
        let Keep::Store { path, journal } = &self.keep else {
            return Ok(());
        };
        let _turn = self.turn();
        if journal.get().is_none() {
            let room = self.room.load(Ordering::Relaxed);
            let (index, turn) = (Arc::clone(&self.local), Arc::clone(&self.turn));
            let opened = Journal::open(path, index, turn, room)?;
            // Nobody else can have: it is our turn.
            let _ = journal.set(opened);
            self.changed();
        }
        Ok(())
    }

    /// Makes changes. When this returns they are in force: no request passes that an entry is meant
    /// for, and open streams are being judged again. Whether they outlive the process, the result
    /// tells.
    pub fn apply(&self, changes: Vec<Change>, now: SystemTime) -> Pending {
        let seconds = unix_seconds(now);
        let mut lines = Lines::default();
        let mut revoked = false;
        let _turn = self.turn();
        let results = changes
            .into_iter()
            .map(|change| match change {
                Change::Revoke(revocation) => self
                    .insert(&revocation, now, seconds, &mut lines)
                    .inspect(|changed| revoked |= changed),
                Change::Lift(lift) => Ok(self.remove(&lift, seconds, &mut lines)),
            })
            .collect();
        // Within the turn: whoever finds an entry known because somebody else has just brought it
        // may rely on its being in force.
        if revoked {
            self.changed();
        }
        Pending {
            results,
            receipt: self.hand_over(lines),
        }
    }

    /// A part of what was brought one by one and is in force. Reads the store: to be called where
    /// waiting for a disk holds up nobody.
    ///
    /// # Errors
    /// The operating system's; `NotFound` when the list was written anew since the page before.
    pub fn page(
        &self,
        after: Option<Place>,
        limit: usize,
        now: SystemTime,
        wanted: impl Fn(&Target) -> bool,
    ) -> io::Result<Page> {
        let now = unix_seconds(now);
        let mut entries: Vec<Listed> = Vec::new();
        // What was lifted and came back has two lines.
        let mut seen = HashSet::new();
        let take = |line: &Line<'_>| {
            if !line.target().is_some_and(|target| wanted(&target)) {
                return true;
            }
            if entries.len() >= limit {
                return false;
            }
            if line.key().is_some_and(|key| seen.insert(key)) {
                entries.push(Listed::of(line));
            }
            true
        };
        let (next, complete) = match &self.keep {
            Keep::Memory(recall) => {
                let recall = recall.lock().unwrap_or_else(PoisonError::into_inner);
                let after = after.map_or(0, |Place(_, place)| place);
                let next = recall.page(&self.local, after, now, take);
                (next.map(|place| Place(0, place)), recall.is_complete())
            }
            Keep::Store { journal, .. } => {
                let journal = journal.get().ok_or(io::ErrorKind::NotConnected)?;
                let after = after.map(|Place(file, offset)| (file, offset));
                let next = journal.page(&self.local, after, now, take)?;
                (next.map(|(file, offset)| Place(file, offset)), true)
            }
        };
        Ok(Page {
            entries,
            next,
            complete,
        })
    }

    /// What is known of the store, if there is one.
    pub fn store(&self) -> Option<StoreStatus> {
        let Keep::Store { path, journal } = &self.keep else {
            return None;
        };
        let Some(journal) = journal.get() else {
            return Some(StoreStatus {
                path: path.clone(),
                lines: 0,
                bytes: 0,
                unsaved: 0,
                lost: false,
                error: Some("it is not open".to_owned()),
            });
        };
        let health = journal.health();
        Some(StoreStatus {
            path: path.clone(),
            lines: health.lines.load(Ordering::Relaxed),
            bytes: health.bytes.load(Ordering::Relaxed),
            unsaved: health.unsaved.load(Ordering::Relaxed),
            lost: health.lost.load(Ordering::Relaxed),
            error: health
                .error
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .clone(),
        })
    }

    /// Frees what entries took that have ended, in one of `slices` parts.
    pub(super) fn sweep(&self, slice: usize, slices: usize, now: SystemTime) {
        let now = unix_seconds(now);
        self.local.sweep(slice, slices, now);
        if slice == 0
            && let Keep::Memory(recall) = &self.keep
        {
            let mut recall = recall.lock().unwrap_or_else(PoisonError::into_inner);
            recall.sweep(&self.local, now);
        }
    }

    /// Gives the entries of a list a new edition: in one step, and nobody else's. Not those of a list
    /// that is no longer heard: whether it is.
    pub(super) fn set_layer(&self, (name, number): (&Arc<str>, u64), index: Index) -> bool {
        let _turn = self.turn();
        if !self.hears(number) {
            return false;
        }
        let before = self.layers.load_full();
        let others = before.iter().filter(|layer| layer.name != *name);
        let mut layers: Vec<Arc<Layer>> = others.map(Arc::clone).collect();
        layers.push(Arc::new(Layer {
            name: Arc::clone(name),
            index,
        }));
        self.layers.store(Arc::new(layers));
        self.changed();
        true
    }

    /// Only the lists of these numbers are heard from now on. The entries of others stay until
    /// [`Plane::replace_lists`], for whoever is still judged by them.
    pub(super) fn hear_lists(&self, numbers: Vec<u64>) {
        let _turn = self.turn();
        *self.lists.lock().unwrap_or_else(PoisonError::into_inner) = numbers;
    }

    /// The lists from now on, by name and number: the entries of others are taken away, and what
    /// those find out later is not heard.
    pub(super) fn replace_lists(&self, lists: &[(&Arc<str>, u64)]) {
        self.hear_lists(lists.iter().map(|(_, number)| *number).collect());
        let _turn = self.turn();
        let before = self.layers.load_full();
        let kept: Vec<Arc<Layer>> = before
            .iter()
            .filter(|layer| lists.iter().any(|(name, _)| **name == layer.name))
            .map(Arc::clone)
            .collect();
        if kept.len() < before.len() {
            self.layers.store(Arc::new(kept));
            self.changed();
        }
    }

    /// Whether the list of this number is one of those in force.
    pub(super) fn hears(&self, number: u64) -> bool {
        self.lists
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .contains(&number)
    }

    /// The lists that revoke a target, by name.
    pub fn lists_with(&self, target: &Target, now: SystemTime) -> Vec<Arc<str>> {
        let (key, now) = (target.key(), unix_seconds(now));
        self.layers
            .load()
            .iter()
            .filter(|layer| layer.index.get(key, now).is_some())
            .map(|layer| Arc::clone(&layer.name))
            .collect()
    }

    /// How many entries there are, of lists too, by kind.
    pub fn counts(&self) -> [(&'static str, usize); KINDS] {
        let layers = self.layers.load();
        Kind::ALL.map(|kind| {
            let listed: usize = layers.iter().map(|layer| layer.index.count(kind)).sum();
            (kind.name(), self.local.count(kind) + listed)
        })
    }

    /// Entries that were brought one by one, and the most there may be.
    pub fn occupancy(&self) -> (usize, usize) {
        (self.local.taken(), self.room.load(Ordering::Relaxed))
    }

    /// The version of what is revoked; never zero. To be read before anything is looked up.
    pub(super) fn version(&self) -> u64 {
        self.version.load(Ordering::SeqCst)
    }

    /// Whether there is an entry about this target, whoever brought it.
    pub fn has_entry(&self, target: &Target, now: SystemTime) -> bool {
        self.has(target.kind()) && self.get(target.key(), unix_seconds(now)).is_some()
    }

    /// Whether there may be entries of a kind.
    pub(super) fn has(&self, kind: Kind) -> bool {
        self.local.has(kind) || self.layers.load().iter().any(|layer| layer.index.has(kind))
    }

    /// The furthest that any source revokes by this key.
    pub(super) fn get(&self, key: Key, now: u64) -> Option<u64> {
        let own = self.local.get(key, now).map(|entry| entry.mark);
        let layers = self.layers.load();
        let theirs = layers
            .iter()
            .filter_map(|layer| Some(layer.index.get(key, now)?.mark));
        own.into_iter().chain(theirs).max()
    }

    /// Whether the last entry that was brought found no room.
    pub fn is_full(&self) -> bool {
        self.full.load(Ordering::Relaxed)
    }

    /// More is revoked than before, and it is in force.
    fn changed(&self) {
        // Never back: a caller may have been found clean in the version before.
        self.version.fetch_max(fresh_version(), Ordering::SeqCst);
        self.epoch.advance();
    }

    fn insert(
        &self,
        revocation: &Revocation,
        now: SystemTime,
        seconds: u64,
        lines: &mut Lines,
    ) -> Result<bool, NotTaken> {
        let (key, mark) = self.read(revocation, now)?;
        let target = &revocation.target;
        let (source, reason) = (&*revocation.source, revocation.reason.as_deref());
        let outcome = if mark.until <= seconds {
            Err(NotTaken::Past)
        } else {
            let room = self.room_of(source);
            match self.local.insert(key, mark, seconds, room) {
                Inserted::Full => {
                    self.full.store(true, Ordering::Relaxed);
                    tracing::error!(
                        kind = target.kind_name(),
                        source,
                        entries = room,
                        "the revocation index is full: an entry was refused"
                    );
                    Err(NotTaken::Full)
                }
                Inserted::Known(mark) => {
                    // It may be one of those that could not be written.
                    if self.is_forgetful() {
                        lines.add(&Line::revoke(target, mark, seconds, source, reason));
                    }
                    Ok(false)
                }
                Inserted::Changed(mark) => {
                    self.full.store(false, Ordering::Relaxed);
                    lines.add(&Line::revoke(target, mark, seconds, source, reason));
                    self.relay.tell(source, || {
                        Told::Revoked(Held {
                            target: target.clone(),
                            mark: (mark.mark != ALTOGETHER).then_some(mark.mark),
                            until: (mark.until != NEVER).then_some(mark.until),
                            at: seconds,
                            reason: reason.map(str::to_owned),
                        })
                    });
                    tracing::info!(
                        kind = target.kind_name(),
                        issuer = target.issuer(),
                        name = target.name(),
                        source,
                        reason,
                        "revoked"
                    );
                    Ok(true)
                }
            }
        };
        let word = match outcome {
            Ok(true) => "taken",
            Ok(false) => "known",
            Err(NotTaken::Full) => "full",
            Err(NotTaken::Past) => "past",
            Err(NotTaken::Nothing | NotTaken::Store) => "refused",
        };
        self.metrics.revocation(source, word);
        outcome
    }

    fn remove(&self, lift: &Lift, seconds: u64, lines: &mut Lines) -> bool {
        let key = lift.target.key();
        let there = self.local.lift(key, seconds);
        if there && self.local.taken() >= self.room_of(FEEDS) {
            self.local.tidy(key, seconds);
        }
        if there || self.is_forgetful() {
            lines.add(&Line::lift(lift, seconds));
        }
        if there {
            self.relay
                .tell(&lift.source, || Told::Lifted(lift.clone(), seconds));
            tracing::info!(
                kind = lift.target.kind_name(),
                issuer = lift.target.issuer(),
                name = lift.target.name(),
                source = &*lift.source,
                reason = lift.reason.as_deref(),
                "revocation lifted"
            );
            self.metrics.revocation(&lift.source, "lifted");
        }
        there
    }

    /// How many entries there may be for a source to bring another one. Whoever can log in and out can
    /// have a feed bring entries; operators can revoke all the same, and so can those of other
    /// replicas, where feeds are bounded likewise.
    fn room_of(&self, source: &str) -> usize {
        let room = self.room.load(Ordering::Relaxed);
        match source {
            OPERATORS | REPLICAS => room,
            _ => room - room / OPERATORS_PART,
        }
    }

    /// Hands lines to the store; none when nothing has to be waited for.
    fn hand_over(&self, lines: Lines) -> Option<Arc<Receipt>> {
        if lines.count == 0 {
            return None;
        }
        match &self.keep {
            Keep::Memory(recall) => {
                let mut recall = recall.lock().unwrap_or_else(PoisonError::into_inner);
                recall.add_all(&lines.text);
                None
            }
            Keep::Store { journal, .. } => Some(match journal.get() {
                Some(journal) => journal.keep(lines.text, lines.count),
                None => Receipt::refused(),
            }),
        }
    }

    /// Whether something that is in force may be missing from the store.
    fn is_forgetful(&self) -> bool {
        self.store()
            .is_some_and(|store| store.unsaved > 0 || store.lost || store.error.is_some())
    }

    /// What an entry says, in the terms of the index.
    fn read(&self, revocation: &Revocation, now: SystemTime) -> Result<(Key, Mark), NotTaken> {
        marks(revocation, |kind, before| self.end(kind, before, now))
    }

    /// What an entry of a list says: without an end it is held as long as it is listed.
    pub(super) fn read_listed(revocation: &Revocation) -> Result<(Key, Mark), NotTaken> {
        marks(revocation, |_, _| None)
    }

    /// When everything that an entry revokes has ended by itself; `None` for never.
    fn end(&self, kind: Kind, before: Option<SystemTime>, now: SystemTime) -> Option<SystemTime> {
        let life = Duration::from_secs(self.longest_life.load(Ordering::Relaxed));
        let issued = match (kind, before) {
            // Whoever has the key can sign what they like, and what is revoked altogether can be
            // issued again at any time.
            (Kind::Key | Kind::Certificate, _) | (Kind::Subject | Kind::Client, None) => None,
            (Kind::Subject | Kind::Client, Some(before)) => Some(before.max(now)),
            (Kind::Token | Kind::Session | Kind::Version, _) => Some(now),
        };
        issued?.checked_add(life)
    }

    fn turn(&self) -> MutexGuard<'_, ()> {
        self.turn.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What an entry says, in the terms of the index; `end` is asked when it does not say until when.
fn marks(
    revocation: &Revocation,
    end: impl FnOnce(Kind, Option<SystemTime>) -> Option<SystemTime>,
) -> Result<(Key, Mark), NotTaken> {
    let Revocation { target, before, .. } = revocation;
    if !target.is_legible() {
        return Err(NotTaken::Nothing);
    }
    let before = before.filter(|_| matches!(target.kind(), Kind::Subject | Kind::Client));
    let mark = match target.kind() {
        Kind::Version => revocation.minimum.ok_or(NotTaken::Nothing)?,
        Kind::Token
        | Kind::Session
        | Kind::Subject
        | Kind::Client
        | Kind::Key
        | Kind::Certificate => before.map_or(ALTOGETHER, unix_seconds),
    };
    let until = revocation.until.or_else(|| end(target.kind(), before));
    let until = until.map_or(NEVER, |until| {
        // The second that has begun counts in full.
        unix_seconds(until).saturating_add(LEEWAY.as_secs() + 1)
    });
    Ok((target.key(), Mark { mark, until }))
}

/// Lines that are to be kept.
#[derive(Default)]
struct Lines {
    text: Vec<u8>,
    count: u64,
}

impl Lines {
    fn add(&mut self, line: &Line<'_>) {
        line.write(&mut self.text);
        self.count += 1;
    }
}

/// No two planes of a process, and no two states of one, have the same version: an identity that was
/// found clean in one is not taken for clean in another.
pub(super) fn fresh_version() -> u64 {
    static LAST: AtomicU64 = AtomicU64::new(0);
    LAST.fetch_add(1, Ordering::SeqCst) + 1
}

impl Target {
    /// What is called `name` among this kind of an issuer's; `None` for a kind that is none.
    pub(super) fn of(kind: &str, issuer: String, name: String) -> Option<Self> {
        Some(match kind {
            "token" => Self::Token {
                issuer,
                token_id: name,
            },
            "subject" => Self::Subject {
                issuer,
                subject: name,
            },
            "session" => Self::Session {
                issuer,
                session: name,
            },
            "client" => Self::Client {
                issuer,
                client: name,
            },
            "key" => Self::Key {
                issuer,
                key_id: name,
            },
            "certificate" => Self::Certificate {
                issuer,
                serial: name,
            },
            "version" => Self::Version {
                issuer,
                subject: name,
            },
            _ => return None,
        })
    }

    pub(super) const fn kind(&self) -> Kind {
        match self {
            Self::Token { .. } => Kind::Token,
            Self::Subject { .. } => Kind::Subject,
            Self::Session { .. } => Kind::Session,
            Self::Client { .. } => Kind::Client,
            Self::Key { .. } => Kind::Key,
            Self::Certificate { .. } => Kind::Certificate,
            Self::Version { .. } => Kind::Version,
        }
    }

    /// Its kind in a word: `token`, `subject`, `session`, `client`, `key`, `certificate`, `version`.
    pub const fn kind_name(&self) -> &'static str {
        self.kind().name()
    }

    /// Whose it is.
    pub fn issuer(&self) -> &str {
        match self {
            Self::Token { issuer, .. }
            | Self::Subject { issuer, .. }
            | Self::Session { issuer, .. }
            | Self::Client { issuer, .. }
            | Self::Key { issuer, .. }
            | Self::Certificate { issuer, .. }
            | Self::Version { issuer, .. } => issuer,
        }
    }

    /// The name that the issuer gave it.
    pub fn name(&self) -> &str {
        match self {
            Self::Token { token_id, .. } => token_id,
            Self::Subject { subject, .. } | Self::Version { subject, .. } => subject,
            Self::Session { session, .. } => session,
            Self::Client { client, .. } => client,
            Self::Key { key_id, .. } => key_id,
            Self::Certificate { serial, .. } => serial,
        }
    }

    pub(super) fn key(&self) -> Key {
        Key::new(self.kind(), self.issuer(), self.name())
    }

    /// Whether an identity could have such names.
    pub(super) fn is_legible(&self) -> bool {
        // As certificates give them; see `tls`.
        let serial = |serial: &str| {
            serial == "0"
                || (!serial.starts_with('0')
                    && serial
                        .bytes()
                        .all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b)))
        };
        is_name(self.issuer())
            && is_name(self.name())
            && (self.kind() != Kind::Certificate || serial(self.name()))
    }
}

fn is_name(text: &str) -> bool {
    !text.is_empty() && text.len() <= MAX_NAME && !text.chars().any(char::is_control)
}

impl fmt::Debug for Plane {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Plane")
            .field("local", &self.local)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
#[path = "plane_tests.rs"]
mod tests;
