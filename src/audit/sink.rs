//! Where records end up.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// Readable by the owner and the group, for a log shipper.
pub(super) const FILE_MODE: u32 = 0o640;

/// Something that takes records. It runs on the writer's own thread and may block there.
pub trait AuditSink: Send + 'static {
    /// Takes some of these bytes and says how many, like [`Write::write`].
    ///
    /// # Errors
    /// Whatever keeps it from taking any. The same bytes are offered again later.
    fn write(&mut self, lines: &[u8]) -> io::Result<usize>;

    /// Called about once a second, and before the first write: time to look after itself. `true`
    /// when a line that was begun has to be begun anew, because it went somewhere else.
    ///
    /// # Errors
    /// Whatever keeps it from being usable.
    fn refresh(&mut self) -> io::Result<bool> {
        Ok(false)
    }

    /// Takes note of records that will not come. Most sinks have no place for that; there are metrics.
    ///
    /// # Errors
    /// Why it could not be written down. The same is offered again later.
    fn left_out(&mut self, left: &LeftOut) -> io::Result<()> {
        let _ = left;
        Ok(())
    }
}

/// How many records did not come, since the last time this was said.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LeftOut {
    /// Lost, for there was no room.
    pub lost: u64,
    /// Left out by sampling, by route.
    pub sampled: BTreeMap<String, u64>,
}

impl LeftOut {
    /// Whether none did.
    pub fn is_empty(&self) -> bool {
        self.lost == 0 && self.sampled.is_empty()
    }

    /// A record of this route was left out.
    pub(super) fn sample(&mut self, route: &str) {
        match self.sampled.get_mut(route) {
            Some(count) => *count += 1,
            None => drop(self.sampled.insert(route.to_owned(), 1)),
        }
    }

    /// Adds what another has.
    pub(super) fn add(&mut self, other: Self) {
        self.lost += other.lost;
        for (route, count) in other.sampled {
            *self.sampled.entry(route).or_default() += count;
        }
    }
}

/// Standard output or standard error.
#[derive(Debug)]
pub(super) enum Standard {
    Output,
    Error,
}

impl AuditSink for Standard {
    fn write(&mut self, lines: &[u8]) -> io::Result<usize> {
        match self {
            Self::Output => {
                let mut output = io::stdout().lock();
                let taken = output.write(lines)?;
                output.flush()?;
                Ok(taken)
            }
            Self::Error => io::stderr().lock().write(lines),
        }
    }
}

/// A file that is appended to, and opened anew when it was moved away or removed.
#[derive(Debug)]
pub(super) struct AppendFile {
    path: PathBuf,
    open: Option<(File, Id)>,
}

/// Device and inode.
type Id = (u64, u64);

impl AppendFile {
    pub(super) const fn new(path: PathBuf) -> Self {
        Self { path, open: None }
    }

    /// Whether records could be written there, without making the file.
    ///
    /// # Errors
    /// Why not.
    pub(super) fn probe(path: &Path) -> io::Result<()> {
        match path.metadata() {
            Ok(found) if found.is_dir() => Err(io::ErrorKind::IsADirectory.into()),
            Ok(_) => OpenOptions::new().append(true).open(path).map(|_| ()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let folder = match path.parent() {
                    Some(folder) if !folder.as_os_str().is_empty() => folder,
                    _ => Path::new("."),
                };
                if folder.metadata()?.is_dir() {
                    Ok(())
                } else {
                    Err(io::ErrorKind::NotADirectory.into())
                }
            }
            Err(error) => Err(error),
        }
    }
}

impl AppendFile {
    /// Forces what was written to the disk.
    ///
    /// # Errors
    /// The system's.
    pub(super) fn sync(&self) -> io::Result<()> {
        match &self.open {
            Some((file, _)) => file.sync_data(),
            None => Ok(()),
        }
    }

    /// Ends a line that a process which was killed left in its midst: what follows is not to become
    /// part of it.
    ///
    /// # Errors
    /// The system's.
    pub(super) fn end_line(&mut self) -> io::Result<()> {
        let Some((file, _)) = &mut self.open else {
            return Ok(());
        };
        let length = file.metadata()?.len();
        let Some(last) = length.checked_sub(1) else {
            return Ok(());
        };
        let mut byte = [0];
        File::open(&self.path)?.read_at(&mut byte, last)?;
        if byte != *b"\n" {
            file.write_all(b"\n")?;
        }
        Ok(())
    }
}

impl AuditSink for AppendFile {
    fn write(&mut self, lines: &[u8]) -> io::Result<usize> {
        match &mut self.open {
            Some((file, _)) => file.write(lines),
            None => Err(io::Error::other("the file is not open")),
        }
    }

    fn refresh(&mut self) -> io::Result<bool> {
        if let Some((_, id)) = &self.open
            && self
                .path
                .metadata()
                .is_ok_and(|found| (found.dev(), found.ino()) == *id)
        {
            return Ok(false);
        }
        let file = OpenOptions::new()
            .append(true)
            .create(true)
            .mode(FILE_MODE)
            .open(&self.path)?;
        let found = file.metadata()?;
        let moved = self.open.is_some();
        self.open = Some((file, (found.dev(), found.ino())));
        Ok(moved)
    }
}
