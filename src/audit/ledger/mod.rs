//! A folder of records that nobody changes unseen.
//!
//! Records are appended to segments, files of lines. A hash runs through all of them, and is signed
//! at intervals (the format is told in `lines`): a record that is changed, missing, doubled or moved
//! is found by [`verify`], which says where. What a process that was killed left unfinished is cut to
//! its last whole line and closed by the next one. There is one ledger for a folder, whichever
//! configurations write to it, and one process, which holds a lock.

mod keys;
mod lines;
mod scan;
mod tail;
#[cfg(test)]
mod tests;
mod verify;

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant, SystemTime};

use rand::Rng;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use tokio::sync::watch;

use super::event::Labels;
use super::ship::{Fleet, Ships};
use super::sink::{AuditSink, FILE_MODE, LeftOut};
use crate::clock;
use crate::schema::{Compile, Size, Span};

pub(super) use lines::{Note, Undelivered};
pub(super) use tail::{Found, Position, Tail};

pub use keys::PublicKey;
pub use verify::{Finding, Report, verify};

use keys::SealingKey;
use lines::{Block, Chain, Dropped, Opening, Own, Seal};

/// How far a ledger is written.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Head {
    /// Which ledger.
    pub(super) id: String,
    /// The segment that is being written; 0 before there is one.
    pub(super) segment: u64,
    /// How many of its bytes are whole.
    pub(super) bytes: u64,
    /// The number of the last record.
    pub(super) records: u64,
}

/// The files of a ledger in their order, with their sizes; none when the folder is no ledger.
///
/// # Errors
/// The system's.
pub(super) fn segment_files(folder: &Path) -> io::Result<Vec<(PathBuf, u64)>> {
    let segments = scan::segments(folder)?.into_iter();
    Ok(segments
        .map(|segment| (segment.path, segment.bytes))
        .collect())
}

/// Whether a line, without its line break, is the ledger's own and no record.
pub(super) fn is_its_own(line: &[u8]) -> bool {
    lines::read(line).is_some()
}

/// Of the folder, when we make it.
const FOLDER_MODE: u32 = 0o750;

/// In the folder; held while a process writes.
const LOCK: &str = "ledger.lock";

/// In the folder, when segments are removed one day: room to say so on a full disk.
const RESERVE: &str = "ledger.reserve";

/// Its size in bytes: far more than a note and a seal.
const RESERVED: u64 = 64 * 1024;

/// Bounds of `segment`.
const SEGMENT: (Size, Size) = (Size::kib(64), Size::mib(4096));

/// Longest `seal_every`: what a running gateway has not signed for twice as long was tampered with.
const LONGEST_SEAL: Span = Span::seconds(60);

/// Longest `sync`.
const LONGEST_SYNC: Span = Span::seconds(3600);

const MAKE_KEY: &str = "make one: openssl genpkey -algorithm ed25519 -out audit-key.pem";

/// How often is looked for segments that have become too old.
const LOOK: Duration = Duration::from_secs(60);

/// When the wall clock and the steady one have drifted apart by more, nothing is removed for its age.
const MAX_DRIFT: Duration = Duration::from_secs(3600);

/// `ledger`: records in a folder, chained by hashes and signed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct LedgerConfig {
    /// The folder, made when it is not there. Nothing else may write to it.
    pub folder: PathBuf,
    /// PEM file with the Ed25519 private key that signs, as `openssl genpkey -algorithm ed25519`
    /// makes it. Without one, records are chained and not signed: who can write the folder could
    /// make a chain of other records.
    #[serde(default)]
    pub key: Option<PathBuf>,
    /// How often what was written is signed, at most `1m`.
    #[serde(default = "default_seal_every")]
    pub seal_every: Span,
    /// How often what was written is forced to the disk, at most `1h`; `0s` after every batch. A
    /// crash of the machine can lose what was not; a crash of the process cannot.
    #[serde(default = "default_sync")]
    pub sync: Span,
    /// The size at which a segment is closed and the next begun, `64KiB` to `4GiB`.
    #[serde(default = "default_segment")]
    pub segment: Size,
    /// When old segments are removed. By default never.
    #[serde(default)]
    pub keep: KeepConfig,
}

/// How long segments are kept. Either may be left out; what exceeds one of them is removed, the
/// oldest segment first, and the ledger says so.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct KeepConfig {
    /// Most bytes of all segments together.
    pub size: Option<Size>,
    /// How long after its last record a segment stays.
    pub time: Option<Span>,
}

const fn default_seal_every() -> Span {
    Span::seconds(10)
}

const fn default_sync() -> Span {
    Span::seconds(1)
}

const fn default_segment() -> Size {
    Size::mib(64)
}

impl LedgerConfig {
    /// Resolves paths and reports what is wrong; gives the thumbprint of the key.
    pub(super) fn check(&mut self, cx: &mut Compile) -> Option<String> {
        self.folder = cx.place_of(&self.folder);
        for (key, span, longest) in [
            ("seal_every", self.seal_every, LONGEST_SEAL),
            ("sync", self.sync, LONGEST_SYNC),
        ] {
            if span > longest {
                cx.at(key, |cx| {
                    cx.problem_help(format!("{span} is longer than {longest}"), "shorten it");
                });
            }
        }
        if !(SEGMENT.0..=SEGMENT.1).contains(&self.segment) {
            cx.at("segment", |cx| {
                let text = format!(
                    "{} is not between {} and {}",
                    self.segment, SEGMENT.0, SEGMENT.1
                );
                cx.problem_help(text, "the default is 64MiB");
            });
        }
        if self.keep.size.is_some_and(|size| size < self.segment) {
            cx.at("keep", |cx| {
                cx.problem_help(
                    "the folder may hold less than one segment",
                    "make `keep.size` a few times `segment`, or make segments smaller",
                );
            });
        }
        if self.folder.exists() && !self.folder.is_dir() {
            cx.at("folder", |cx| {
                let text = format!("{} is not a folder", self.folder.display());
                cx.problem_help(text, "name a folder that the ledger has for itself");
            });
        }
        cx.at("key", |cx| {
            let Some(file) = &mut self.key else {
                cx.warning("is not set: records are chained, but not signed", MAKE_KEY);
                return None;
            };
            let pem = cx.read(file).map(zeroize::Zeroizing::new)?;
            *file = cx.resolve(file);
            let key = SealingKey::from_pem(&pem);
            if key.is_none() {
                let text = format!("{} holds no Ed25519 private key", file.display());
                cx.problem_help(text, MAKE_KEY);
            }
            key.map(|key| key.kid)
        })
    }

    fn settings(&self) -> io::Result<Settings> {
        let key = self.key.as_ref().map(|file| {
            let pem = zeroize::Zeroizing::new(fs::read(file)?);
            SealingKey::from_pem(&pem)
                .map(Arc::new)
                .ok_or_else(|| io::Error::other(format!("{} holds no Ed25519 key", file.display())))
        });
        Ok(Settings {
            key: key.transpose()?,
            seal_every: self.seal_every.get(),
            sync: self.sync.get(),
            segment: self.segment.get(),
            keep: self.keep.clone(),
        })
    }
}

#[derive(Debug, Clone)]
struct Settings {
    key: Option<Arc<SealingKey>>,
    seal_every: Duration,
    sync: Duration,
    segment: u64,
    keep: KeepConfig,
}

/// The ledgers of this process by folder: a reload must not open one twice.
static LEDGERS: LazyLock<Mutex<Vec<Known>>> = LazyLock::new(Mutex::default);

/// A ledger by its folder.
type Known = (PathBuf, Weak<Mutex<Ledger>>);

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A way to write to a ledger.
#[derive(Debug, Clone)]
pub(super) struct Pen {
    ledger: Arc<Mutex<Ledger>>,
    /// Who ships what is in it.
    fleet: Arc<Fleet>,
    settings: Settings,
}

impl Pen {
    /// The ledger of this folder. One that is written already keeps its settings until
    /// [`Pen::adopt`].
    ///
    /// # Errors
    /// Why nothing can be written there.
    pub(super) fn new(config: &LedgerConfig, ships: &Ships) -> io::Result<Self> {
        let settings = config.settings()?;
        if !config.folder.exists() {
            DirBuilder::new()
                .recursive(true)
                .mode(FOLDER_MODE)
                .create(&config.folder)?;
        }
        let folder = config.folder.canonicalize()?;
        let mut ledgers = locked(&LEDGERS);
        ledgers.retain(|(_, ledger)| ledger.strong_count() > 0);
        let known = ledgers.iter().find(|(path, _)| *path == folder);
        if let Some(ledger) = known.and_then(|(_, ledger)| ledger.upgrade()) {
            let fleet = Arc::clone(&locked(&ledger).fleet);
            return Ok(Self {
                ledger,
                fleet,
                settings,
            });
        }
        let mut ledger = Ledger::new(folder.clone(), settings.clone());
        ledger.open()?;
        ledger.publish();
        let fleet = Arc::clone(&ledger.fleet);
        // Known before anything may be removed for its age.
        fleet.prepare(ships, &folder, &ledger.head.borrow(), true);
        let ledger = Arc::new(Mutex::new(ledger));
        ledgers.push((folder, Arc::downgrade(&ledger)));
        Ok(Self {
            ledger,
            fleet,
            settings,
        })
    }

    /// The configuration that this pen is of is in force: so are its key and bounds, and its ships.
    pub(super) fn adopt(&self, ships: &Ships, labels: &Labels) {
        let (folder, head) = {
            let mut ledger = locked(&self.ledger);
            ledger.change(self.settings.clone());
            (ledger.folder.clone(), ledger.head.subscribe())
        };
        self.fleet
            .adopt(ships, &folder, &head, &self.notebook(), labels);
    }

    /// How far it is written.
    #[cfg(test)]
    pub(super) fn head(&self) -> Head {
        locked(&self.ledger).head.borrow().clone()
    }

    /// Who ships what is in it.
    pub(super) fn fleet(&self) -> &Fleet {
        &self.fleet
    }

    /// Whether both write to the same ledger.
    pub(super) fn is_same(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.ledger, &other.ledger)
    }

    fn notebook(&self) -> Notebook {
        Notebook(Arc::downgrade(&self.ledger))
    }

    /// Signs and forces to the disk what was written: for the end of the program.
    pub(super) fn rest(&self) {
        let mut ledger = locked(&self.ledger);
        if let Err(error) = ledger.seal().and_then(|()| ledger.sync()) {
            tracing::error!(%error, "the end of the audit ledger could not be signed");
        }
        ledger.publish();
    }
}

/// Where it is written what became of records: a ledger, for as long as it is there.
#[derive(Debug, Clone)]
pub(super) struct Notebook(Weak<Mutex<Ledger>>);

impl Notebook {
    /// Writes a note into the ledger.
    ///
    /// # Errors
    /// Why it could not be written.
    pub(super) fn note(&self, undelivered: Undelivered) -> io::Result<()> {
        self.write(Note {
            undelivered: Some(undelivered),
            ..Note::default()
        })
    }

    /// Writes into the ledger what only a sink has.
    ///
    /// # Errors
    /// Why it could not be written.
    pub(super) fn note_ahead(&self, ahead: Undelivered) -> io::Result<()> {
        self.write(Note {
            ahead: Some(ahead),
            ..Note::default()
        })
    }

    fn write(&self, note: Note) -> io::Result<()> {
        let Some(ledger) = self.0.upgrade() else {
            return Ok(());
        };
        let mut ledger = locked(&ledger);
        let noted = ledger.note(note);
        ledger.publish();
        noted
    }
}

impl AuditSink for Pen {
    fn write(&mut self, lines: &[u8]) -> io::Result<usize> {
        // Only whole lines: what was begun would be lost to the chain.
        let whole = memchr::memrchr(b'\n', lines).map_or(0, |at| at + 1);
        let whole = lines.get(..whole).unwrap_or_default();
        let mut ledger = locked(&self.ledger);
        let appended = ledger.append(whole);
        ledger.publish();
        appended.map(|()| whole.len())
    }

    fn refresh(&mut self) -> io::Result<bool> {
        let mut ledger = locked(&self.ledger);
        let tended = ledger.tend();
        ledger.publish();
        tended.map(|()| false)
    }

    fn left_out(&mut self, left: &LeftOut) -> io::Result<()> {
        let mut ledger = locked(&self.ledger);
        let noted = ledger.note(Note {
            lost: left.lost,
            sampled: left.sampled.clone(),
            ..Note::default()
        });
        ledger.publish();
        noted
    }
}

/// A folder that is being written.
#[derive(Debug)]
struct Ledger {
    folder: PathBuf,
    settings: Settings,
    /// Held for as long as we write.
    lock: Option<File>,
    open: Option<Open>,
    sealed_at: Instant,
    synced_at: Instant,
    looked_at: Option<Instant>,
    /// Both clocks when we began.
    begun: (SystemTime, Instant),
    /// Tells who reads along how far it is written.
    head: watch::Sender<Head>,
    /// Who ships what is in it.
    fleet: Arc<Fleet>,
}

/// The segment that is being written.
#[derive(Debug)]
struct Open {
    file: File,
    id: String,
    segment: u64,
    /// Bytes that are whole.
    bytes: u64,
    chain: Chain,
    /// The number of the last record.
    records: u64,
    /// The number of the last record under a seal.
    sealed: u64,
    /// There is something that was not forced to the disk.
    dirty: bool,
    /// The file ends in the midst of something, and could not be cut.
    torn: bool,
    /// It was said that segments go, and not signed yet.
    noted: bool,
}

impl Ledger {
    fn new(folder: PathBuf, settings: Settings) -> Self {
        let now = Instant::now();
        Self {
            folder,
            settings,
            lock: None,
            open: None,
            sealed_at: now,
            synced_at: now,
            looked_at: None,
            begun: (clock::now(), now),
            head: watch::Sender::new(Head::default()),
            fleet: Arc::default(),
        }
    }

    /// Tells how far it is written.
    fn publish(&self) {
        let Some(open) = &self.open else {
            return;
        };
        self.head.send_if_modified(|head| {
            let moved = (head.segment, head.bytes) != (open.segment, open.bytes);
            if moved {
                head.id.clone_from(&open.id);
                head.segment = open.segment;
                head.bytes = open.bytes;
                head.records = open.records;
            }
            moved
        });
    }

    /// Writes down what became of records. It is signed with the next seal.
    fn note(&mut self, note: Note) -> io::Result<()> {
        let open = self.open()?;
        open.own(&Own::Note(Note {
            time: now(),
            ..note
        }))?;
        open.noted = true;
        Ok(())
    }

    /// Takes new settings. The key before signs that another one follows.
    fn change(&mut self, settings: Settings) {
        let kid = |settings: &Settings| settings.key.as_ref().map(|key| key.kid.clone());
        if kid(&self.settings).is_some() && kid(&self.settings) != kid(&settings) {
            let next = settings.key.as_ref().map(|key| key.public.x());
            if let Err(error) = self.seal_for(next) {
                tracing::error!(%error, "the audit ledger's key was changed without a signature by the one before");
            }
        }
        self.settings = settings;
    }

    /// Opens the last segment, or the first; closes what a process before us left open.
    fn open(&mut self) -> io::Result<&mut Open> {
        if self.lock.is_none() {
            let lock = OpenOptions::new()
                .create(true)
                .truncate(false)
                .write(true)
                .mode(FILE_MODE)
                .open(self.folder.join(LOCK))?;
            lock.try_lock().map_err(|error| {
                let text = format!(
                    "{} is written by another process: {error}",
                    self.folder.display()
                );
                io::Error::new(io::ErrorKind::ResourceBusy, text)
            })?;
            self.lock = Some(lock);
        }
        if self.open.as_ref().is_none_or(|open| open.torn) {
            self.open = None;
            self.open = Some(self.recover()?);
        }
        self.open
            .as_mut()
            .ok_or_else(|| io::Error::other("the ledger is not open"))
    }

    fn recover(&self) -> io::Result<Open> {
        let mut segments = scan::segments(&self.folder)?;
        let mut broken = None;
        while let Some(last) = segments.last() {
            let Some(end) = scan::end(&last.path)? else {
                // Begun and not even opened: nothing is lost with it. What is no ledger stays.
                if last.bytes == 0 || unopened(&last.path)? {
                    fs::remove_file(&last.path)?;
                    segments.pop();
                    continue;
                }
                let text = format!("{} is no segment of a ledger", last.path.display());
                return Err(io::Error::other(text));
            };
            if let Some(why) = end.broken {
                tracing::error!(segment = %last.path.display(), why,
                    "the audit ledger was changed: records go to a new segment");
                broken = Some(why);
                return self.begin(
                    end.id,
                    last.number + 1,
                    Chain::after(end.hash),
                    end.records,
                    broken,
                );
            }
            let file = OpenOptions::new().append(true).open(&last.path)?;
            let mut open = Open {
                file,
                id: end.id,
                segment: last.number,
                bytes: end.closed,
                chain: Chain::after(end.hash),
                records: end.records,
                sealed: end.sealed,
                dirty: true,
                torn: false,
                noted: true,
            };
            if end.torn > 0 || !end.open.is_empty() {
                tracing::warn!(segment = %last.path.display(), torn = end.torn,
                    "the last process did not end the audit ledger: closing it");
                open.file.set_len(end.closed)?;
                open.append(&end.open, true, end.torn)?;
            }
            return Ok(open);
        }
        let id = lines::hex(&rand::rng().random::<[u8; 16]>());
        self.begin(id, 1, Chain::after(lines::NOTHING), 0, broken)
    }

    /// Begins a segment.
    fn begin(
        &self,
        id: String,
        segment: u64,
        chain: Chain,
        records: u64,
        broken: Option<String>,
    ) -> io::Result<Open> {
        let path = scan::path_of(&self.folder, segment);
        let file = OpenOptions::new()
            .append(true)
            .create_new(true)
            .mode(FILE_MODE)
            .open(&path)?;
        let mut open = Open {
            file,
            id: id.clone(),
            segment,
            bytes: 0,
            records,
            sealed: records,
            dirty: true,
            torn: false,
            noted: false,
            chain: chain.clone(),
        };
        let opening = Own::Ledger(Opening {
            version: 1,
            id,
            segment,
            next: records + 1,
            time: now(),
            previous: lines::hex(&chain.hash()),
            broken,
        });
        if let Err(error) = open.own(&opening) {
            let _ = fs::remove_file(&path);
            return Err(error);
        }
        // The folder's entry too is to survive.
        File::open(&self.folder)?.sync_all()?;
        Ok(open)
    }

    fn append(&mut self, lines: &[u8]) -> io::Result<()> {
        if lines.is_empty() {
            return Ok(());
        }
        let segment = self.settings.segment;
        if self.open()?.bytes >= segment {
            self.turn()?;
        }
        self.open()?.append(lines, false, 0)?;
        if self.settings.sync.is_zero() {
            self.sync()?;
        }
        Ok(())
    }

    /// Ends the segment, and begins the next.
    fn turn(&mut self) -> io::Result<()> {
        self.seal()?;
        self.sync()?;
        if let Some(open) = &self.open {
            let next = self.begin(
                open.id.clone(),
                open.segment + 1,
                open.chain.clone(),
                open.records,
                None,
            );
            let left = |error: &io::Error| error.kind() == io::ErrorKind::AlreadyExists;
            if next.as_ref().is_err_and(left) {
                // Of a try that failed: recovering clears it away.
                self.open = None;
            }
            self.open = Some(next?);
            self.looked_at = None;
        }
        Ok(())
    }

    /// What has to be done from time to time.
    fn tend(&mut self) -> io::Result<()> {
        self.present()?;
        self.open()?;
        let mut done = Ok(());
        if self.sealed_at.elapsed() >= self.settings.seal_every {
            done = self.seal();
        }
        if self.synced_at.elapsed() >= self.settings.sync {
            done = done.and(self.sync());
        }
        // What cannot be written may want the room of what need not be kept.
        if done.is_err() || self.looked_at.is_none_or(|at| at.elapsed() >= LOOK) {
            let retired = self.retire();
            self.looked_at = retired.is_ok().then(Instant::now);
            done = done.and(retired);
        }
        done
    }

    /// Writes, and once more without the reserve when there is no room.
    fn at_any_rate(&mut self, write: impl Fn(&mut Self) -> io::Result<()>) -> io::Result<()> {
        let written = write(self);
        let full = |error: &io::Error| {
            let kind = error.kind();
            kind == io::ErrorKind::StorageFull || kind == io::ErrorKind::QuotaExceeded
        };
        if written.as_ref().is_err_and(full) && fs::remove_file(self.folder.join(RESERVE)).is_ok() {
            return write(self);
        }
        written
    }

    /// Makes the reserve when it is not there. A disk that has no room for it is told by whoever
    /// writes records.
    fn reserve(&self) {
        let path = self.folder.join(RESERVE);
        if fs::metadata(&path).is_ok_and(|found| found.len() >= RESERVED) {
            return;
        }
        let made = OpenOptions::new()
            .create(true)
            .truncate(true)
            .write(true)
            .mode(FILE_MODE)
            .open(&path)
            .and_then(|mut file| {
                let mut left = RESERVED;
                while left > 0 {
                    // By chance, so that it takes room where files are compressed.
                    file.write_all(&rand::rng().random::<[u8; 32]>())?;
                    left = left.saturating_sub(32);
                }
                file.sync_all()
            });
        if let Err(error) = made {
            tracing::debug!(%error, "the audit ledger's reserve could not be made");
        }
    }

    /// Whether the file that is written is the one in the folder. One that was moved away or removed
    /// is missed: records go on in the next segment, which says so.
    fn present(&mut self) -> io::Result<()> {
        let Some(open) = &self.open else {
            return Ok(());
        };
        let path = scan::path_of(&self.folder, open.segment);
        let held = open.file.metadata()?;
        if fs::metadata(&path)
            .is_ok_and(|found| (found.dev(), found.ino()) == (held.dev(), held.ino()))
        {
            return Ok(());
        }
        tracing::error!(segment = %path.display(),
            "the segment of the audit ledger that is being written was taken away: records go to a new one");
        let next = self.begin(
            open.id.clone(),
            open.segment + 1,
            open.chain.clone(),
            open.records,
            Some(format!(
                "segment {} was taken away while it was written",
                open.segment
            )),
        )?;
        self.open = Some(next);
        Ok(())
    }

    fn seal(&mut self) -> io::Result<()> {
        self.seal_for(None)
    }

    /// Signs what was not signed yet; in any case when another key follows.
    fn seal_for(&mut self, next_key: Option<String>) -> io::Result<()> {
        let (Some(open), Some(key)) = (&mut self.open, &self.settings.key) else {
            return Ok(());
        };
        if open.sealed == open.records && next_key.is_none() && !open.noted {
            return Ok(());
        }
        open.signed(key, next_key)?;
        self.sealed_at = Instant::now();
        let hash = lines::hex(&open.chain.hash());
        tracing::debug!(records = open.records, hash, "audit ledger signed");
        Ok(())
    }

    fn sync(&mut self) -> io::Result<()> {
        if let Some(open) = &mut self.open
            && open.dirty
        {
            open.file.sync_data()?;
            open.dirty = false;
        }
        self.synced_at = Instant::now();
        Ok(())
    }

    /// Removes what need not be kept any more, having said so.
    fn retire(&mut self) -> io::Result<()> {
        let keep = self.settings.keep.clone();
        if keep == KeepConfig::default() {
            return Ok(());
        }
        self.reserve();
        let segments = scan::segments(&self.folder)?;
        let mut total: u64 = segments.iter().map(|segment| segment.bytes).sum();
        let steady = self.steady();
        let slowest = self.fleet.slowest();
        let (mut gone, mut records) = (Vec::new(), 0);
        // The last one is being written.
        for (segment, next) in segments.iter().zip(segments.iter().skip(1)) {
            let large = keep.size.is_some_and(|size| total > size.get());
            let old = steady
                && keep.time.is_some_and(|time| {
                    let modified = fs::metadata(&segment.path).and_then(|found| found.modified());
                    modified.is_ok_and(|at| {
                        clock::now()
                            .duration_since(at)
                            .is_ok_and(|age| age > time.get())
                    })
                });
            if !large && !old {
                break;
            }
            let opening = scan::opening(&File::open(&next.path)?)?;
            let last = opening.map_or(records, |opening| opening.next.saturating_sub(1));
            // Age alone takes nothing from a sink that has not got it yet.
            if !large && slowest.is_some_and(|shipped| shipped < last) {
                break;
            }
            total -= segment.bytes;
            records = last;
            gone.push(segment.clone());
        }
        let (Some(first), Some(last)) = (gone.first(), gone.last()) else {
            return Ok(());
        };
        for undelivered in self.fleet.robbed(records) {
            let (first, last) = undelivered.records;
            let sink = undelivered.sink.clone();
            tracing::error!(
                sink,
                first,
                last,
                "records are removed that this sink has not got: the ledger's `keep.size` leaves no room for them"
            );
            self.at_any_rate(|ledger| {
                ledger.note(Note {
                    undelivered: Some(undelivered.clone()),
                    ..Note::default()
                })
            })?;
            self.fleet.noted(&sink, last);
        }
        let note = Own::Dropped(Dropped {
            segments: (first.number, last.number),
            last: records,
            time: now(),
        });
        self.at_any_rate(|ledger| {
            let open = ledger.open()?;
            open.own(&note)?;
            // A note that nobody signed could be anybody's.
            open.noted = true;
            Ok(())
        })?;
        self.at_any_rate(Self::seal)?;
        self.sync()?;
        for segment in &gone {
            fs::remove_file(&segment.path)?;
        }
        tracing::info!(
            segments = gone.len(),
            records,
            "old audit segments were removed, up to this record"
        );
        Ok(())
    }

    /// Whether the wall clock went as far as the steady one since we began: a clock that was set
    /// forward would make everything look old.
    fn steady(&self) -> bool {
        let (wall, instant) = self.begun;
        let steady = instant.elapsed();
        clock::now()
            .duration_since(wall)
            .is_ok_and(|passed| passed.abs_diff(steady) <= MAX_DRIFT)
    }
}

impl Open {
    /// Appends records and what closes them: all or nothing.
    fn append(&mut self, lines: &[u8], recovered: bool, torn: u64) -> io::Result<()> {
        let (count, checksums) = lines::checksums(lines);
        let block = Own::Block(Block {
            first: self.records + 1,
            records: count,
            time: now(),
            recovered,
            torn,
            lines: checksums,
        });
        let mut chain = self.chain.clone();
        chain.feed(lines);
        let mut bytes = lines.to_vec();
        chain.write(&block, &mut bytes, |_| String::new())?;
        self.put(&bytes)?;
        self.chain = chain;
        self.records += count;
        Ok(())
    }

    /// Appends a line of the ledger's own.
    fn own(&mut self, own: &Own) -> io::Result<()> {
        let mut chain = self.chain.clone();
        let mut bytes = Vec::new();
        chain.write(own, &mut bytes, |_| String::new())?;
        self.put(&bytes)?;
        self.chain = chain;
        Ok(())
    }

    fn signed(&mut self, key: &SealingKey, next_key: Option<String>) -> io::Result<()> {
        let seal = Own::Seal(Seal {
            records: self.records,
            time: now(),
            kid: key.kid.clone(),
            next_key,
            signature: String::new(),
        });
        let mut chain = self.chain.clone();
        let mut bytes = Vec::new();
        chain.write(&seal, &mut bytes, |message| key.sign(message))?;
        self.put(&bytes)?;
        self.chain = chain;
        self.sealed = self.records;
        self.noted = false;
        Ok(())
    }

    /// Writes all, or takes back what was written.
    fn put(&mut self, bytes: &[u8]) -> io::Result<()> {
        let written = self.file.write_all(bytes);
        if let Err(error) = written {
            self.torn = self.file.set_len(self.bytes).is_err();
            return Err(error);
        }
        self.bytes += u64::try_from(bytes.len()).unwrap_or(u64::MAX);
        self.dirty = true;
        Ok(())
    }
}

/// Whether a segment's first line was begun, by us, and not ended.
fn unopened(path: &Path) -> io::Result<bool> {
    let text = fs::read(path)?;
    Ok(!text.contains(&b'\n') && b"{\"ledger\":".starts_with(text.get(..10).unwrap_or(&text)))
}

fn now() -> String {
    OffsetDateTime::from(clock::now())
        .format(&Rfc3339)
        .unwrap_or_default()
}
