//! The journal's file: opened by one process, read from its beginning, appended to.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, BufRead, BufReader, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{FileExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::line::{Line, MAX_LINE};

/// Only the gateway's own user may read who was revoked.
const MODE: u32 = 0o600;

/// The first line of a journal.
pub(super) const HEADER: &[u8] = b"portcullis-revocations 1\n";

/// How long a process that is about to end may keep the next one waiting.
const LOCK_PATIENCE: Duration = Duration::from_secs(2);

/// How often is looked whether it has ended.
const LOCK_LOOK: Duration = Duration::from_millis(20);

/// How much is read at once.
const CHUNK: usize = 1 << 20;

/// Why a journal cannot be used. Whose fault: the operator's, or the disk's.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// Another process writes to it.
    #[error(
        "the revocation store {} is in use by another process: each gateway needs one of its own",
        .0.display()
    )]
    InUse(PathBuf),
    /// It holds something else.
    #[error(
        "{} is no revocation store: move it away, or name another file in `revocation.store`",
        .0.display()
    )]
    Foreign(PathBuf),
    /// It was damaged, and what follows the damage may have been lost.
    #[error(
        "the revocation store {} is damaged at line {line} (byte {offset}): restore it from a copy, or \
         remove that line and revoke anew what it held; what stands around it is whole",
        .path.display()
    )]
    Damaged {
        /// The file.
        path: PathBuf,
        /// The line, from 1.
        line: u64,
        /// Where the line begins.
        offset: u64,
    },
    /// It holds more than the index may.
    #[error(
        "the revocation store {} holds more than `revocation.max_entries`, {room}: raise it",
        .path.display()
    )]
    Full {
        /// The file.
        path: PathBuf,
        /// How many entries there is room for.
        room: usize,
    },
    /// It cannot be read or written.
    #[error("the revocation store {} cannot be used: {source}", .path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// An open journal.
#[derive(Debug)]
pub(super) struct JournalFile {
    pub(super) path: PathBuf,
    file: File,
    /// Bytes that are written and whole.
    pub(super) length: u64,
    /// Lines, without the header.
    pub(super) lines: u64,
    /// Held as long as the journal is open; beside it, since a compaction replaces the file.
    _lock: File,
}

/// What a reader says of a line.
pub(super) enum Verdict {
    /// Go on.
    Good,
    /// It is not legible though it is whole: written by a later version, perhaps.
    Bad,
    /// There is no room for what it says.
    Full(usize),
}

impl JournalFile {
    /// Opens the journal at `path`, makes it if it is not there, and hands each line to `take`. What
    /// was not completely written when the last process ended is cut off.
    ///
    /// # Errors
    /// [`StoreError`].
    pub(super) fn open(
        path: &Path,
        take: impl FnMut(&Line<'_>) -> Verdict,
    ) -> Result<Self, StoreError> {
        let broken = |source| StoreError::Io {
            path: path.to_path_buf(),
            source,
        };
        let lock = lock(path)?;
        match std::fs::metadata(path) {
            Ok(found) if !found.is_file() => return Err(StoreError::Foreign(path.to_path_buf())),
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(broken(error)),
        }
        // Left over from a compaction that was not finished.
        match std::fs::remove_file(fresh_path(path)) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(broken(error)),
        }
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(MODE)
            .open(path)
            .map_err(broken)?;
        let mode = file.metadata().map_err(broken)?.permissions().mode();
        if mode & 0o077 != 0 {
            tracing::warn!(path = %path.display(), "others could read the revocation store; they cannot any more");
            let only_ours = std::fs::Permissions::from_mode(MODE);
            file.set_permissions(only_ours).map_err(broken)?;
        }
        let (length, lines) = read(path, &file, take)?;
        let end = file.seek(SeekFrom::End(0)).map_err(broken)?;
        if end > length {
            tracing::warn!(
                path = %path.display(),
                bytes = end - length,
                "the revocation store ended in the middle of a line, which was cut off: \
                 nobody was told that it was kept"
            );
            file.set_len(length).map_err(broken)?;
        }
        let mut journal = Self {
            path: path.to_path_buf(),
            file,
            length,
            lines,
            _lock: lock,
        };
        if journal.length == 0 {
            journal.append(HEADER, 0).map_err(broken)?;
            sync_folder(path).map_err(broken)?;
        }
        Ok(journal)
    }

    /// Adds whole lines; on disk when this returns.
    ///
    /// # Errors
    /// The operating system's; then nothing was added.
    pub(super) fn append(&mut self, text: &[u8], lines: u64) -> io::Result<()> {
        // At its place, not at the end: what a failure left behind is written over.
        let written = self
            .file
            .write_all_at(text, self.length)
            .and_then(|()| self.file.sync_data());
        match written {
            Ok(()) => {
                self.length += u64::try_from(text.len()).unwrap_or(0);
                self.lines += lines;
                Ok(())
            }
            Err(error) => {
                // Half a line would be cut at the next start; better not to leave it.
                let _ = self.file.set_len(self.length);
                Err(error)
            }
        }
    }

    /// Has it write somewhere else.
    #[cfg(test)]
    pub(super) fn swap_for_tests(&mut self, file: File) -> File {
        std::mem::replace(&mut self.file, file)
    }

    /// Another reader of the same file.
    pub(super) fn reader(&self) -> io::Result<BufReader<File>> {
        Ok(BufReader::with_capacity(CHUNK, File::open(&self.path)?))
    }

    /// Puts a file that was written aside in the place of this one.
    ///
    /// # Errors
    /// The operating system's; then this one stays.
    pub(super) fn replace(&mut self, fresh: File, length: u64, lines: u64) -> io::Result<()> {
        fresh.sync_all()?;
        std::fs::rename(fresh_path(&self.path), &self.path)?;
        // From here on the new file is the journal, whatever else goes wrong.
        self.file = fresh;
        self.length = length;
        self.lines = lines;
        sync_folder(&self.path)
    }
}

/// Where a compaction writes.
pub(super) fn fresh_path(path: &Path) -> PathBuf {
    suffixed(path, ".new")
}

/// A file that only we can read, for a compaction.
pub(super) fn fresh(path: &Path) -> io::Result<File> {
    OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(true)
        .mode(MODE)
        .open(fresh_path(path))
}

fn suffixed(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

fn lock(path: &Path) -> Result<File, StoreError> {
    let broken = |source| StoreError::Io {
        path: path.to_path_buf(),
        source,
    };
    let lock = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        .mode(MODE)
        .open(suffixed(path, ".lock"))
        .map_err(broken)?;
    let start = Instant::now();
    loop {
        match lock.try_lock() {
            Ok(()) => return Ok(lock),
            Err(TryLockError::WouldBlock) if start.elapsed() < LOCK_PATIENCE => {
                #[expect(clippy::disallowed_methods, reason = "at start; nothing is served yet")]
                std::thread::sleep(LOCK_LOOK);
            }
            Err(TryLockError::WouldBlock) => return Err(StoreError::InUse(path.to_path_buf())),
            Err(TryLockError::Error(error)) => return Err(broken(error)),
        }
    }
}

/// A new name in a folder is only there after a crash when the folder was written too.
fn sync_folder(path: &Path) -> io::Result<()> {
    let folder = match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    };
    File::open(folder)?.sync_all()
}

/// Reads everything; returns how many bytes and lines are whole.
fn read(
    path: &Path,
    file: &File,
    mut take: impl FnMut(&Line<'_>) -> Verdict,
) -> Result<(u64, u64), StoreError> {
    let broken = |source| StoreError::Io {
        path: path.to_path_buf(),
        source,
    };
    let mut reader = BufReader::with_capacity(CHUNK, file);
    let mut text = Vec::with_capacity(MAX_LINE);
    let mut offset = next_line(&mut reader, &mut text).map_err(broken)?;
    if text != HEADER {
        // The first line itself may not have been written to its end.
        return if HEADER.starts_with(&text) {
            Ok((0, 0))
        } else {
            Err(StoreError::Foreign(path.to_path_buf()))
        };
    }
    let (mut lines, mut torn) = (0, None);
    loop {
        let size = next_line(&mut reader, &mut text).map_err(broken)?;
        if size == 0 {
            break;
        }
        let damaged = |(line, offset)| StoreError::Damaged {
            path: path.to_path_buf(),
            line,
            offset,
        };
        // The header is the first.
        let here = (lines + 2, offset);
        match text.strip_suffix(b"\n").and_then(Line::read) {
            // A whole line behind the damage: not an end that was torn off.
            Some(_) if torn.is_some() => return Err(damaged(torn.unwrap_or(here))),
            Some(line) => match take(&line) {
                Verdict::Good => lines += 1,
                Verdict::Bad => return Err(damaged(here)),
                Verdict::Full(room) => {
                    return Err(StoreError::Full {
                        path: path.to_path_buf(),
                        room,
                    });
                }
            },
            None => torn = torn.or(Some(here)),
        }
        offset += size;
    }
    let whole = torn.map_or(offset, |(_, offset)| offset);
    Ok((whole, lines))
}

/// Reads a line with its end, or a part of one that is too long; zero at the end of the file.
pub(super) fn next_line(reader: &mut impl BufRead, text: &mut Vec<u8>) -> io::Result<u64> {
    text.clear();
    let bound = u64::try_from(MAX_LINE).unwrap_or(u64::MAX);
    let size = reader.take(bound).read_until(b'\n', text)?;
    Ok(u64::try_from(size).unwrap_or(0))
}

/// Copies a part of the journal as it is.
pub(super) fn copy(
    from: &mut BufReader<File>,
    to: &mut impl Write,
    start: u64,
    end: u64,
) -> io::Result<u64> {
    from.seek(SeekFrom::Start(start))?;
    io::copy(&mut from.take(end.saturating_sub(start)), to)
}
