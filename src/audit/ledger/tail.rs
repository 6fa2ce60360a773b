//! Reading along: records of a ledger that is being written, in their order, from where somebody left off.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Seek, SeekFrom, Take};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::lines::{self, MAX_LINE, Own};
use super::{Head, scan};

/// How much of a segment is read at once.
const BUFFER: usize = 128 * 1024;

/// A place in a ledger: behind a record.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(in crate::audit) struct Position {
    /// Which ledger.
    pub(in crate::audit) ledger: String,
    /// The number of the record.
    pub(in crate::audit) record: u64,
    /// Where its line ends.
    pub(in crate::audit) segment: u64,
    pub(in crate::audit) offset: u64,
}

impl Position {
    /// Behind everything.
    pub(in crate::audit) fn of(head: &Head) -> Self {
        Self {
            ledger: head.id.clone(),
            record: head.records,
            segment: head.segment,
            offset: head.bytes,
        }
    }
}

/// What comes next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::audit) enum Found {
    /// A record, in [`Tail::line`].
    Record,
    /// So many records are no longer there.
    Missing(u64),
    /// Nothing, for now.
    End,
}

/// Reads records up to the head.
#[derive(Debug)]
pub(in crate::audit) struct Tail {
    folder: PathBuf,
    at: Position,
    /// Records up to this number were handed out.
    after: u64,
    file: Option<BufReader<Take<File>>>,
    line: Vec<u8>,
}

impl Tail {
    /// Goes on behind this position; without one, with the first record there is.
    pub(in crate::audit) fn open(folder: PathBuf, from: Option<Position>, head: &Head) -> Self {
        let mut at = from.unwrap_or_default();
        if !at.ledger.is_empty()
            && at.ledger != head.id
            && !stands(&folder, &at).unwrap_or_default()
        {
            // Numbers of another ledger mean nothing here: nothing of this one is known to be there.
            tracing::warn!(folder = %folder.display(), shipped = at.record, records = head.records,
                "another ledger is in this folder than was shipped: shipping begins with its first record");
            at = Position::default();
        }
        let place = |at: &Position| (at.segment, at.offset);
        let end = Position::of(head);
        if at.ledger == head.id && (at.record > end.record || place(&at) > place(&end)) {
            // A crash of the machine took records that had been shipped before they were on the disk.
            tracing::warn!(folder = %folder.display(), shipped = at.record, records = head.records,
                "more records were shipped than the audit ledger has: shipping goes on at its end");
            at = end;
        }
        Self {
            folder,
            after: at.record,
            at,
            file: None,
            line: Vec::new(),
        }
    }

    /// The line that was found, with its line break.
    pub(in crate::audit) fn line(&self) -> &[u8] {
        &self.line
    }

    /// Behind the record that was found last.
    pub(in crate::audit) fn position(&self) -> &Position {
        &self.at
    }

    /// Finds the next record, up to the head.
    ///
    /// # Errors
    /// The system's. The same is tried again the next time.
    pub(in crate::audit) fn next(&mut self, head: &Head) -> io::Result<Found> {
        loop {
            let Some(file) = &mut self.file else {
                match self.begin(head)? {
                    Some(Found::Record) => continue,
                    Some(found) => return Ok(found),
                    None => return Ok(Found::End),
                }
            };
            // Not a byte beyond what is whole: what comes after may yet be taken back.
            let whole = if self.at.segment == head.segment {
                head.bytes
            } else {
                u64::MAX
            };
            let fetched = self.at.offset + length(file.buffer());
            file.get_mut().set_limit(whole.saturating_sub(fetched));
            self.line.clear();
            let most = u64::try_from(MAX_LINE).unwrap_or(u64::MAX);
            let read = file.by_ref().take(most).read_until(b'\n', &mut self.line)?;
            if read == 0 {
                if self.at.segment >= head.segment {
                    return Ok(Found::End);
                }
                self.file = None;
                self.at.segment += 1;
                self.at.offset = 0;
                continue;
            }
            self.at.offset += length(&self.line);
            let Some(text) = self.line.strip_suffix(b"\n") else {
                // Torn, in a segment that was left like this: it is no record.
                continue;
            };
            match own(text) {
                Some(Own::Block(block)) => {
                    let last = block.first.saturating_add(block.records).saturating_sub(1);
                    let missing = last.saturating_sub(self.at.record);
                    self.at.record += missing;
                    if missing > 0 && self.at.record > self.after {
                        self.after = self.at.record;
                        return Ok(Found::Missing(missing));
                    }
                }
                Some(_) => {}
                None => {
                    self.at.record += 1;
                    if self.at.record > self.after {
                        self.after = self.at.record;
                        return Ok(Found::Record);
                    }
                }
            }
        }
    }

    /// Opens the segment that is read next. `Record` when it is open, `None` when there is none.
    fn begin(&mut self, head: &Head) -> io::Result<Option<Found>> {
        let segments = scan::segments(&self.folder)?;
        let next = segments
            .iter()
            .find(|found| found.number >= self.at.segment);
        let Some(next) = next.filter(|found| found.number <= head.segment) else {
            return Ok(None);
        };
        let mut file = File::open(&next.path)?;
        let opening = scan::opening(&file)?;
        let before = opening
            .as_ref()
            .map(|opening| opening.next.saturating_sub(1));
        if let Some(opening) = opening
            && opening.id != self.at.ledger
        {
            if !self.at.ledger.is_empty() {
                tracing::warn!(folder = %self.folder.display(),
                    "another ledger is in this folder than was shipped: shipping begins anew");
            }
            self.at = Position {
                ledger: opening.id,
                record: before.unwrap_or_default(),
                segment: next.number,
                offset: 0,
            };
            self.after = self.at.record;
        }
        let resumed = next.number == self.at.segment
            && self.at.offset > 0
            && resume(&mut file, self.at.offset)?;
        if !resumed {
            file.seek(SeekFrom::Start(0))?;
            (self.at.segment, self.at.offset) = (next.number, 0);
            // What was handed out before is skipped by its number.
            self.at.record = before.unwrap_or(self.at.record);
        }
        // No byte before it is known how many are whole.
        self.file = Some(BufReader::with_capacity(BUFFER, file.take(0)));
        let missing = self.at.record.saturating_sub(self.after);
        if missing > 0 {
            self.after = self.at.record;
            return Ok(Some(Found::Missing(missing)));
        }
        Ok(Some(Found::Record))
    }
}

/// Whether the segment of a position is there, and of its ledger.
fn stands(folder: &Path, at: &Position) -> io::Result<bool> {
    let opening = scan::opening(&File::open(scan::path_of(folder, at.segment))?)?;
    Ok(opening.is_some_and(|opening| opening.id == at.ledger))
}

/// Goes to where a line ended; `false` when none ends there.
fn resume(file: &mut File, offset: u64) -> io::Result<bool> {
    let Some(before) = offset.checked_sub(1) else {
        return Ok(false);
    };
    file.seek(SeekFrom::Start(before))?;
    let mut byte = [0];
    let found = file.read(&mut byte)?;
    Ok(found == 1 && byte == *b"\n")
}

/// A line of the ledger's own. Records are told from them by their first bytes, without reading on.
fn own(line: &[u8]) -> Option<Own> {
    const KINDS: [&[u8]; 5] = [
        b"{\"block\":",
        b"{\"seal\":",
        b"{\"ledger\":",
        b"{\"dropped\":",
        b"{\"note\":",
    ];
    KINDS
        .iter()
        .any(|kind| line.starts_with(kind))
        .then(|| lines::read(line).map(|read| read.own))
        .flatten()
}

fn length(bytes: &[u8]) -> u64 {
    u64::try_from(bytes.len()).unwrap_or(u64::MAX)
}
