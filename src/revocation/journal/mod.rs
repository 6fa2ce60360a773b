//! The plane's memory across restarts: a file of lines, appended to by a thread of its own.
//!
//! Whoever brings an entry is told "kept" after `fdatasync`; what is brought meanwhile is written
//! together. While the disk fails, entries are in force and wait in memory, up to [`MAX_WAITING`], to
//! be written after all. When more than half of the lines say nothing any more, the others are copied
//! to a new file, a few at a time between two appends, and that takes the old one's place.

mod file;
mod line;

use std::collections::HashSet;
use std::fs::File;
use std::io::{self, BufReader, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TryRecvError, sync_channel};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use tokio::sync::Notify;

pub use file::StoreError;
use file::{HEADER, JournalFile, Verdict, copy, fresh, next_line};
pub(super) use line::{Line, Op};

use super::index::{Index, Inserted, Key};
use crate::clock;

/// Batches that wait for the disk at most; further ones are in force and not kept.
const MAX_BATCHES: usize = 4096;

/// Bytes that are written at once.
const MAX_WRITE: usize = 1 << 20;

/// Bytes that wait in memory while the disk fails.
const MAX_WAITING: usize = 8 << 20;

/// How long whoever brought an entry waits to hear that it was kept.
const PATIENCE: Duration = Duration::from_secs(10);

/// How often a disk that failed is tried again.
const RETRY: Duration = Duration::from_secs(1);

/// How often is looked whether lines have become void by time.
const LOOK: Duration = Duration::from_secs(30);

/// A journal with fewer void lines is left alone.
const LEAST_VOID: u64 = 1024;

/// Lines that are copied between two appends: a few milliseconds.
const STEP: usize = 4096;

/// Lines of the journal as they are read for a list, at most, so that a page comes soon.
const MAX_SCANNED: usize = 200_000;

/// Tells whoever brought something whether it was kept.
#[derive(Debug, Default)]
pub(super) struct Receipt {
    outcome: Mutex<Option<bool>>,
    told: Condvar,
    notify: Notify,
}

impl Receipt {
    /// Of something that nobody will keep.
    pub(super) fn refused() -> Arc<Self> {
        let receipt = Self::default();
        receipt.tell(false);
        Arc::new(receipt)
    }

    fn tell(&self, kept: bool) {
        *self.outcome.lock().unwrap_or_else(PoisonError::into_inner) = Some(kept);
        self.told.notify_all();
        self.notify.notify_one();
    }

    /// Whether it was kept, as far as is known in time.
    pub(super) async fn kept(&self) -> bool {
        let waited = tokio::time::timeout(PATIENCE, async {
            loop {
                let outcome = *self.outcome.lock().unwrap_or_else(PoisonError::into_inner);
                if let Some(kept) = outcome {
                    return kept;
                }
                self.notify.notified().await;
            }
        });
        waited.await.unwrap_or(false)
    }

    /// As [`Receipt::kept`], for threads that may wait.
    pub(super) fn kept_here(&self) -> bool {
        let outcome = self.outcome.lock().unwrap_or_else(PoisonError::into_inner);
        self.told
            .wait_timeout_while(outcome, PATIENCE, |outcome| outcome.is_none())
            .is_ok_and(|(outcome, _)| outcome.unwrap_or(false))
    }
}

/// Lines to be kept.
struct Batch {
    text: Vec<u8>,
    lines: u64,
    receipt: Arc<Receipt>,
}

/// What is known of the journal, for the admin pages.
#[derive(Debug, Default)]
pub(super) struct Health {
    /// Lines in the file.
    pub(super) lines: AtomicU64,
    /// Bytes of the file.
    pub(super) bytes: AtomicU64,
    /// Lines that are in force and not on disk.
    pub(super) unsaved: AtomicU64,
    /// Whether lines were given up: they will be missing after a restart.
    pub(super) lost: AtomicBool,
    /// Why the last write failed.
    pub(super) error: Mutex<Option<String>>,
}

/// The journal of a process. Dropping it waits until what was brought is written.
#[derive(Debug)]
pub(super) struct Journal {
    path: PathBuf,
    batches: Option<SyncSender<Batch>>,
    health: Arc<Health>,
    thread: Option<JoinHandle<()>>,
}

impl Journal {
    /// Opens the journal, takes what it holds into the index, and starts to write. `turn` is held by
    /// whoever changes the index and hands the change over.
    ///
    /// # Errors
    /// [`StoreError`].
    pub(super) fn open(
        path: &Path,
        index: Arc<Index>,
        turn: Arc<Mutex<()>>,
        room: usize,
    ) -> Result<Self, StoreError> {
        let start = Instant::now();
        let now = clock::unix_seconds(clock::now());
        let file = JournalFile::open(path, |line| take(line, &index, now, room))?;
        tracing::info!(
            path = %path.display(),
            lines = file.lines,
            entries = index.taken(),
            took = ?start.elapsed(),
            "revocations were read from the store"
        );
        let health = Arc::new(Health::default());
        let (batches, received) = sync_channel(MAX_BATCHES);
        let mut writer = Writer {
            file,
            index,
            turn,
            health: Arc::clone(&health),
            waiting: Vec::new(),
            waiting_lines: 0,
            compaction: None,
            pause_until: Instant::now(),
            least: 0,
        };
        writer.publish();
        let thread = std::thread::Builder::new()
            .name("revocations".to_owned())
            .spawn(move || writer.run(&received))
            .map_err(|source| StoreError::Io {
                path: path.to_path_buf(),
                source,
            })?;
        Ok(Self {
            path: path.to_path_buf(),
            batches: Some(batches),
            health,
            thread: Some(thread),
        })
    }

    /// Hands lines over to be kept, in the order of the calls. Never waits.
    pub(super) fn keep(&self, text: Vec<u8>, lines: u64) -> Arc<Receipt> {
        let receipt = Arc::new(Receipt::default());
        let batch = Batch {
            text,
            lines,
            receipt: Arc::clone(&receipt),
        };
        let sent = self
            .batches
            .as_ref()
            .is_some_and(|batches| batches.try_send(batch).is_ok());
        if !sent {
            self.health.lost.store(true, Ordering::Relaxed);
            receipt.tell(false);
        }
        receipt
    }

    pub(super) fn health(&self) -> &Health {
        &self.health
    }

    /// Some of the lines in force, for a page of a list; see [`page`]. Blocks.
    pub(super) fn page(
        &self,
        index: &Index,
        after: Option<(u64, u64)>,
        now: u64,
        wanted: impl FnMut(&Line<'_>) -> bool,
    ) -> io::Result<Option<(u64, u64)>> {
        page(&self.path, index, after, now, wanted)
    }
}

impl Drop for Journal {
    fn drop(&mut self) {
        drop(self.batches.take());
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the revocation store's thread panicked");
        }
    }
}

/// What a line does to the index at start.
fn take(line: &Line<'_>, index: &Index, now: u64, room: usize) -> Verdict {
    let Some(key) = line.key() else {
        return Verdict::Bad;
    };
    match line.op {
        Op::Lift => {
            index.lift(key, now);
        }
        Op::Revoke if line.mark().until <= now => {}
        Op::Revoke => {
            if index.insert(key, line.mark(), now, room) == Inserted::Full {
                return Verdict::Full(room);
            }
        }
    }
    Verdict::Good
}

/// Whether a line is what is in force about its target.
pub(super) fn holds(line: &Line<'_>, index: &Index, now: u64) -> bool {
    line.op == Op::Revoke
        && line
            .key()
            .and_then(|key| index.get(key, now))
            .is_some_and(|mark| mark == line.mark())
}

/// Offers lines in force to `wanted`, from behind the place `after`, until that says no. Returns the
/// place to go on from; none at the end. A place is the file's number and an offset in it: when the
/// file was replaced meanwhile, the place is an error of the kind `NotFound`.
fn page(
    path: &Path,
    index: &Index,
    after: Option<(u64, u64)>,
    now: u64,
    mut wanted: impl FnMut(&Line<'_>) -> bool,
) -> io::Result<Option<(u64, u64)>> {
    use std::io::Seek;
    use std::os::unix::fs::MetadataExt;
    let file = File::open(path)?;
    let number = file.metadata()?.ino();
    let mut reader = BufReader::with_capacity(256 << 10, file);
    let start = u64::try_from(HEADER.len()).unwrap_or(0);
    let mut offset = match after {
        None => start,
        Some((of, offset)) if of == number && offset >= start => offset,
        Some(_) => return Err(io::ErrorKind::NotFound.into()),
    };
    reader.seek(io::SeekFrom::Start(offset))?;
    let mut text = Vec::new();
    for _ in 0..MAX_SCANNED {
        let size = next_line(&mut reader, &mut text)?;
        let Some(whole) = text.strip_suffix(b"\n").filter(|_| size > 0) else {
            return Ok(None);
        };
        if let Some(line) = Line::read(whole)
            && holds(&line, index, now)
            && !wanted(&line)
        {
            return Ok(Some((number, offset)));
        }
        offset += size;
    }
    Ok(Some((number, offset)))
}

/// The thread that writes.
struct Writer {
    file: JournalFile,
    index: Arc<Index>,
    turn: Arc<Mutex<()>>,
    health: Arc<Health>,
    /// Lines that could not be written yet.
    waiting: Vec<u8>,
    waiting_lines: u64,
    compaction: Option<Compaction>,
    /// No compaction before.
    pause_until: Instant,
    /// Lines that the last compaction left: it does not tell two that say the same apart.
    least: u64,
}

/// A copy of the lines that are in force.
struct Compaction {
    from: BufReader<File>,
    /// How far the copy has come, and how far it goes; what was written since is copied as it is.
    offset: u64,
    end: u64,
    to: BufWriter<File>,
    length: u64,
    lines: u64,
    /// The targets of lines that were written with what the index knows instead.
    raised: HashSet<Key>,
}

impl Writer {
    fn run(&mut self, batches: &Receiver<Batch>) {
        loop {
            let patience = if self.compaction.is_some() {
                Duration::ZERO
            } else if self.waiting.is_empty() {
                LOOK
            } else {
                RETRY
            };
            match batches.recv_timeout(patience) {
                Ok(first) => self.take(first, batches),
                Err(RecvTimeoutError::Timeout) if !self.waiting.is_empty() => {
                    self.write(Vec::new());
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => {
                    self.write(Vec::new());
                    return;
                }
            }
            self.compact(batches);
            self.publish();
        }
    }

    /// Writes a batch, and those behind it that came meanwhile.
    fn take(&mut self, first: Batch, batches: &Receiver<Batch>) {
        let mut receipts = vec![first.receipt];
        self.waiting.extend_from_slice(&first.text);
        self.waiting_lines += first.lines;
        let start = self.waiting.len();
        while self.waiting.len() < start + MAX_WRITE {
            match batches.try_recv() {
                Ok(batch) => {
                    self.waiting.extend_from_slice(&batch.text);
                    self.waiting_lines += batch.lines;
                    receipts.push(batch.receipt);
                }
                Err(TryRecvError::Empty | TryRecvError::Disconnected) => break,
            }
        }
        self.write(receipts);
    }

    /// Writes what waits, and tells those who brought the last of it.
    fn write(&mut self, receipts: Vec<Arc<Receipt>>) {
        let kept = if self.waiting.is_empty() {
            Ok(())
        } else {
            self.file.append(&self.waiting, self.waiting_lines)
        };
        let mut error = self
            .health
            .error
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        match &kept {
            Ok(()) => {
                if error.take().is_some() {
                    tracing::info!(
                        lines = self.waiting_lines,
                        "the revocation store can be written again"
                    );
                }
                self.waiting.clear();
                self.waiting_lines = 0;
            }
            Err(failure) => {
                if error.is_none() {
                    tracing::error!(
                        path = %self.file.path.display(),
                        error = %failure,
                        "the revocation store cannot be written: what is revoked now is in force, and \
                         lost with a restart"
                    );
                }
                *error = Some(failure.to_string());
                if self.waiting.len() > MAX_WAITING {
                    tracing::error!(
                        lines = self.waiting_lines,
                        "revocations are given up that could not be written: they are in force until \
                         the next restart"
                    );
                    self.health.lost.store(true, Ordering::Relaxed);
                    self.waiting.clear();
                    self.waiting_lines = 0;
                }
            }
        }
        drop(error);
        self.publish();
        for receipt in receipts {
            receipt.tell(kept.is_ok());
        }
    }

    fn publish(&self) {
        let health = &self.health;
        health.lines.store(self.file.lines, Ordering::Relaxed);
        health.bytes.store(self.file.length, Ordering::Relaxed);
        health.unsaved.store(self.waiting_lines, Ordering::Relaxed);
    }

    /// A step of a compaction, or the beginning of one when more than half of the lines are void.
    fn compact(&mut self, batches: &Receiver<Batch>) {
        let outcome = match self.compaction.take() {
            None if self.is_worth_it() => self.begin().map(Some),
            None => Ok(None),
            Some(compaction) => self.step(compaction, batches),
        };
        match outcome {
            Ok(compaction) => self.compaction = compaction,
            Err(error) => {
                tracing::warn!(%error, "the revocation store could not be made smaller");
                self.pause_until = Instant::now() + LOOK;
            }
        }
    }

    fn is_worth_it(&self) -> bool {
        let entries = u64::try_from(self.index.taken()).unwrap_or(u64::MAX);
        let needed = entries.max(self.least);
        let void = self.file.lines.saturating_sub(needed);
        void > needed.max(LEAST_VOID)
            && self.waiting.is_empty()
            && Instant::now() >= self.pause_until
    }

    fn begin(&self) -> io::Result<Compaction> {
        let mut to = BufWriter::with_capacity(256 << 10, fresh(&self.file.path)?);
        to.write_all(HEADER)?;
        let mut from = self.file.reader()?;
        let length = u64::try_from(HEADER.len()).unwrap_or(0);
        copy(&mut from, &mut io::sink(), 0, length)?;
        Ok(Compaction {
            from,
            offset: length,
            end: self.file.length,
            to,
            length,
            lines: 0,
            raised: HashSet::new(),
        })
    }

    fn step(
        &mut self,
        mut compaction: Compaction,
        batches: &Receiver<Batch>,
    ) -> io::Result<Option<Compaction>> {
        let now = clock::unix_seconds(clock::now());
        let mut text = Vec::new();
        for _ in 0..STEP {
            if compaction.offset >= compaction.end {
                return self.finish(compaction, batches).map(|()| None);
            }
            let size = next_line(&mut compaction.from, &mut text)?;
            let line = text.strip_suffix(b"\n").and_then(Line::read);
            // It was whole when it was written.
            let line = line.ok_or(io::ErrorKind::InvalidData)?;
            if holds(&line, &self.index, now) {
                compaction.to.write_all(&text)?;
                compaction.length += size;
                compaction.lines += 1;
            } else if let Some(raised) = self.raised(&line, &mut compaction.raised, now) {
                let mut text = Vec::new();
                raised.write(&mut text);
                compaction.to.write_all(&text)?;
                compaction.length += u64::try_from(text.len()).unwrap_or(0);
                compaction.lines += 1;
            }
            compaction.offset += size;
        }
        // A little at a time, so that the last one is short.
        compaction.to.flush()?;
        compaction.to.get_ref().sync_data()?;
        Ok(Some(compaction))
    }

    /// What the index knows about the target of a line that says less, when the line that said so may
    /// have been given up: once for each target. Otherwise that line stands further on.
    fn raised<'l>(
        &self,
        line: &Line<'l>,
        written: &mut HashSet<Key>,
        now: u64,
    ) -> Option<Line<'l>> {
        if line.op != Op::Revoke || !self.health.lost.load(Ordering::Relaxed) {
            return None;
        }
        let key = line.key()?;
        let mark = self.index.get(key, now)?;
        written.insert(key).then(|| line.with(mark))
    }

    fn finish(&mut self, mut compaction: Compaction, batches: &Receiver<Batch>) -> io::Result<()> {
        // A line may have been left out because the index knew more already, and that must not be lost
        // with a crash now: everything that the index knew is handed over once its turn has ended, and
        // written before the files change places.
        drop(self.turn.lock().unwrap_or_else(PoisonError::into_inner));
        while let Ok(batch) = batches.try_recv() {
            self.take(batch, batches);
        }
        if !self.waiting.is_empty() {
            return Err(io::Error::other("it cannot be written to"));
        }
        let (start, end) = (compaction.end, self.file.length);
        let before = self.file.lines;
        compaction.length += copy(&mut compaction.from, &mut compaction.to, start, end)?;
        // Counted, not read again: what was appended since the copy began.
        let appended = count_lines(&mut compaction.from, start, end)?;
        let to = compaction
            .to
            .into_inner()
            .map_err(|error| error.into_error())?;
        self.file
            .replace(to, compaction.length, compaction.lines + appended)?;
        self.least = self.file.lines;
        tracing::info!(
            before,
            after = self.file.lines,
            "the revocation store was made smaller"
        );
        Ok(())
    }
}

fn count_lines(from: &mut BufReader<File>, start: u64, end: u64) -> io::Result<u64> {
    struct Count(u64);
    impl Write for Count {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let ends = bytes.iter().filter(|byte| **byte == b'\n').count();
            self.0 += u64::try_from(ends).unwrap_or(0);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    let mut count = Count(0);
    copy(from, &mut count, start, end)?;
    Ok(count.0)
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
