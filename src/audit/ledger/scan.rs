//! Segments on disk, read line by line.

use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Read as _};
use std::path::{Path, PathBuf};

use super::lines::{self, Chain, Hash, MAX_LINE, NOTHING, Opening, Own};

const PREFIX: &str = "segment-";
const SUFFIX: &str = ".jsonl";

/// A segment by its number.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::audit) struct Segment {
    pub(super) number: u64,
    pub(super) path: PathBuf,
    pub(super) bytes: u64,
}

/// The file of a segment.
pub(super) fn path_of(folder: &Path, number: u64) -> PathBuf {
    folder.join(format!("{PREFIX}{number:016}{SUFFIX}"))
}

/// All segments of a folder, in order.
///
/// # Errors
/// The system's.
pub(super) fn segments(folder: &Path) -> io::Result<Vec<Segment>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let name = entry.file_name();
        let number = name
            .to_str()
            .and_then(|name| name.strip_prefix(PREFIX)?.strip_suffix(SUFFIX))
            .filter(|digits| digits.len() == 16)
            .and_then(|digits| digits.parse().ok());
        if let Some(number) = number {
            found.push(Segment {
                number,
                path: entry.path(),
                bytes: entry.metadata()?.len(),
            });
        }
    }
    found.sort_by_key(|segment| segment.number);
    Ok(found)
}

/// What the first line of a segment says; `None` when it opens none. Reads on from there.
///
/// # Errors
/// The system's.
pub(super) fn opening(file: &File) -> io::Result<Option<Opening>> {
    // Far more than the line is ever long.
    let mut first = Vec::new();
    BufReader::new(file.take(1 << 16)).read_until(b'\n', &mut first)?;
    let text = first.strip_suffix(b"\n").unwrap_or_default();
    Ok(lines::read(text).and_then(|read| match read.own {
        Own::Ledger(opening) => Some(opening),
        Own::Block(_) | Own::Seal(_) | Own::Dropped(_) | Own::Note(_) => None,
    }))
}

/// What was read of a segment.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Next {
    /// A line with its line break.
    Line,
    /// Bytes at the end without a line break.
    Torn,
    /// More than [`MAX_LINE`] bytes without a line break.
    TooLong,
    End,
}

/// Goes through a segment's lines.
#[derive(Debug)]
pub(super) struct Lines {
    file: BufReader<File>,
    /// The line that was read last, with its line break.
    pub(super) line: Vec<u8>,
    /// Its number, from 1.
    pub(super) number: u64,
    /// Bytes up to its end.
    pub(super) read: u64,
}

impl Lines {
    /// # Errors
    /// The system's.
    pub(super) fn open(path: &Path) -> io::Result<Self> {
        Ok(Self {
            file: BufReader::with_capacity(1 << 18, File::open(path)?),
            line: Vec::new(),
            number: 0,
            read: 0,
        })
    }

    /// Reads the next line into `line`.
    ///
    /// # Errors
    /// The system's.
    pub(super) fn next(&mut self) -> io::Result<Next> {
        self.line.clear();
        let most = u64::try_from(MAX_LINE).unwrap_or(u64::MAX);
        let mut part = (&mut self.file).take(most);
        let read = part.read_until(b'\n', &mut self.line)?;
        if read == 0 {
            return Ok(Next::End);
        }
        self.number += 1;
        self.read += u64::try_from(read).unwrap_or(u64::MAX);
        Ok(match self.line.last() {
            Some(b'\n') => Next::Line,
            _ if read == MAX_LINE => Next::TooLong,
            _ => Next::Torn,
        })
    }

    /// The line without its line break.
    pub(super) fn text(&self) -> &[u8] {
        self.line.strip_suffix(b"\n").unwrap_or(&self.line)
    }
}

/// How a segment ends, for whoever goes on writing.
#[derive(Debug)]
pub(super) struct End {
    pub(super) id: String,
    /// The last hash.
    pub(super) hash: Hash,
    /// The number of the last record that a block closes.
    pub(super) records: u64,
    /// How many of them are sealed.
    pub(super) sealed: u64,
    /// Bytes up to the end of the last line of the ledger's own.
    pub(super) closed: u64,
    /// Records after it.
    pub(super) open: Vec<u8>,
    /// Bytes of a line that was begun after them.
    pub(super) torn: u64,
    /// Why nothing more may be written here.
    pub(super) broken: Option<String>,
}

/// Reads a whole segment for its end; `None` when it has no opening.
///
/// # Errors
/// The system's.
pub(super) fn end(path: &Path) -> io::Result<Option<End>> {
    let mut lines = Lines::open(path)?;
    if lines.next()? != Next::Line {
        return Ok(None);
    }
    let opening = match lines::read(lines.text()) {
        Some(read) => match &read.own {
            Own::Ledger(opening) => {
                let previous = lines::unhex(opening.previous.as_bytes()).unwrap_or(NOTHING);
                let mut chain = Chain::after(previous);
                let sound = chain.close(read.before_hash) == read.hash;
                Some((opening.clone(), chain, sound))
            }
            Own::Block(_) | Own::Seal(_) | Own::Dropped(_) | Own::Note(_) => None,
        },
        None => None,
    };
    let Some((opening, mut chain, sound)) = opening else {
        return Ok(None);
    };
    let mut end = End {
        id: opening.id,
        hash: chain.hash(),
        records: opening.next.saturating_sub(1),
        sealed: 0,
        closed: lines.read,
        open: Vec::new(),
        torn: 0,
        broken: (!sound).then(|| "its first line was changed".to_owned()),
    };
    loop {
        match lines.next()? {
            Next::End => return Ok(Some(end)),
            Next::Torn => {
                end.torn = u64::try_from(lines.line.len()).unwrap_or(u64::MAX);
                return Ok(Some(end));
            }
            Next::TooLong => {
                end.broken
                    .get_or_insert(format!("line {} is too long", lines.number));
                return Ok(Some(end));
            }
            Next::Line => {}
        }
        let Some(read) = lines::read(lines.text()) else {
            end.open.extend_from_slice(&lines.line);
            continue;
        };
        chain.feed(&end.open);
        end.open.clear();
        if chain.close(read.before_hash) != read.hash {
            let why = format!("the hash in line {} is another one", lines.number);
            end.broken.get_or_insert(why);
            chain = Chain::after(read.hash);
        }
        match &read.own {
            Own::Block(block) => {
                end.records = block.first.saturating_add(block.records).saturating_sub(1);
            }
            Own::Seal(seal) => end.sealed = seal.records,
            Own::Dropped(_) | Own::Note(_) | Own::Ledger(_) => {}
        }
        end.hash = chain.hash();
        end.closed = lines.read;
    }
}
