//! The bytes of a file, line by line, unpacked where that is needed.

use std::fmt;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use flate2::bufread::MultiGzDecoder;

use super::{Fault, MAX_LINE};

/// How much larger than its file gzip may be. Each record has two random ids: a tenth is what records
/// pack to, and a hundredth is not reached by the dullest of them.
pub(super) const MAX_RATIO: u64 = 200;
/// Unpacked bytes of which no more is asked.
const UNSUSPECTED: u64 = 64 << 20;
/// Bytes that are read at once.
const BUFFER: usize = 1 << 18;
/// Bytes of a line that is too long, after which the file is given up.
const MAX_SKIPPED: u64 = 256 << 20;

const GZIP: &[u8] = &[0x1f, 0x8b];
const ZSTD: &[u8] = &[0x28, 0xb5, 0x2f, 0xfd];
const BZIP2: &[u8] = b"BZh";
const XZ: &[u8] = &[0xfd, b'7', b'z', b'X', b'Z', 0];

/// What comes next.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Next {
    /// A line; its line break is left off.
    Line,
    /// Bytes at the end without a line break.
    Torn,
    /// A line beyond the bound; it was skipped.
    TooLong,
    /// The end, or why there is no more.
    Over(Option<Fault>),
}

/// The lines of one file.
pub(super) struct Stream {
    from: Box<dyn BufRead + Send>,
    /// The line that was read last.
    pub(super) line: Vec<u8>,
    /// Its number, from 1.
    pub(super) number: u64,
    taken: Arc<AtomicU64>,
    /// Of gzip: bytes that came out.
    unpacked: Option<u64>,
    packed: Option<&'static str>,
    over: bool,
}

impl fmt::Debug for Stream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The line is a record.
        f.debug_struct("Stream")
            .field("number", &self.number)
            .finish_non_exhaustive()
    }
}

/// Counts what is taken from a file.
struct Counted<R> {
    from: R,
    taken: Arc<AtomicU64>,
}

impl<R: Read> Read for Counted<R> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let read = self.from.read(into)?;
        let bytes = u64::try_from(read).unwrap_or(u64::MAX);
        self.taken.fetch_add(bytes, Ordering::Relaxed);
        Ok(read)
    }
}

impl Stream {
    /// Opens a file and looks at what it begins with.
    pub(super) fn open(path: &Path) -> io::Result<Self> {
        Self::of(File::open(path)?)
    }

    pub(super) fn standard_input() -> io::Result<Self> {
        Self::of(io::stdin())
    }

    pub(super) fn of(from: impl Read + Send + 'static) -> io::Result<Self> {
        let taken = Arc::<AtomicU64>::default();
        let counted = Counted {
            from,
            taken: Arc::clone(&taken),
        };
        let mut buffered = BufReader::with_capacity(BUFFER, counted);
        let begin = buffered.fill_buf()?;
        let gzip = begin.starts_with(GZIP);
        let packed = [(ZSTD, "zstd"), (BZIP2, "bzip2"), (XZ, "xz")]
            .into_iter()
            .find(|(magic, _)| begin.starts_with(magic))
            .map(|(_, how)| how);
        let from: Box<dyn BufRead + Send> = if gzip {
            // Files that were rotated are often several streams, one after another.
            let decoder = MultiGzDecoder::new(buffered);
            Box::new(BufReader::with_capacity(BUFFER, decoder))
        } else {
            Box::new(buffered)
        };
        Ok(Self {
            from,
            line: Vec::new(),
            number: 0,
            taken,
            unpacked: gzip.then_some(0),
            packed,
            over: false,
        })
    }

    /// By which program it is packed, when we do not unpack that.
    pub(super) const fn packed(&self) -> Option<&'static str> {
        self.packed
    }

    /// Bytes that were taken from the file.
    pub(super) fn taken(&self) -> u64 {
        self.taken.load(Ordering::Relaxed)
    }

    /// Reads the next line into `line`.
    pub(super) fn next(&mut self) -> Next {
        self.line.clear();
        if self.over {
            return Next::Over(None);
        }
        let most = u64::try_from(MAX_LINE).unwrap_or(u64::MAX);
        let read = match (&mut self.from)
            .take(most)
            .read_until(b'\n', &mut self.line)
        {
            Ok(read) => read,
            Err(error) => return self.failed(&error),
        };
        if read == 0 {
            return Next::Over(None);
        }
        self.number += 1;
        if self.is_bomb(read) {
            return self.give_up(Fault::Bomb);
        }
        match self.line.last() {
            Some(b'\n') => {
                self.line.pop();
                Next::Line
            }
            Some(_) if read == MAX_LINE => self.skipped(),
            Some(_) | None => {
                self.over = true;
                Next::Torn
            }
        }
    }

    /// Goes to the end of a line that is too long.
    fn skipped(&mut self) -> Next {
        self.line.clear();
        let mut skipped = 0;
        loop {
            let available = match self.from.fill_buf() {
                Ok(available) => available,
                Err(error) => return self.failed(&error),
            };
            let found = memchr::memchr(b'\n', available);
            let length = found.map_or(available.len(), |at| at + 1);
            self.from.consume(length);
            skipped += u64::try_from(length).unwrap_or(u64::MAX);
            if found.is_some() {
                return Next::TooLong;
            }
            if length == 0 || skipped > MAX_SKIPPED {
                self.over = true;
                return Next::TooLong;
            }
            if self.is_bomb(length) {
                return self.give_up(Fault::Bomb);
            }
        }
    }

    fn is_bomb(&mut self, read: usize) -> bool {
        let Some(unpacked) = &mut self.unpacked else {
            return false;
        };
        *unpacked = unpacked.saturating_add(u64::try_from(read).unwrap_or(u64::MAX));
        let taken = self.taken.load(Ordering::Relaxed);
        *unpacked > UNSUSPECTED && *unpacked > taken.saturating_mul(MAX_RATIO)
    }

    fn failed(&mut self, error: &io::Error) -> Next {
        let gzip = self.unpacked.is_some();
        let cut = error.kind() == io::ErrorKind::UnexpectedEof;
        self.give_up(match (gzip, cut) {
            (true, true) => Fault::Torn,
            (true, false) => Fault::Gzip(error.to_string()),
            (false, _) => Fault::Read(error.to_string()),
        })
    }

    fn give_up(&mut self, fault: Fault) -> Next {
        self.line.clear();
        self.over = true;
        Next::Over(Some(fault))
    }
}
