//! Records that go together.

use std::io::{self, Write};
use std::ops::Range;
use std::time::Instant;

use flate2::Compression;
use flate2::write::GzEncoder;

use super::config::{ShipBody, ShipFormat};
use crate::audit::event::{Labels, event};
use crate::audit::ledger::Position;

/// Some records in their order, written as the sink wants them.
#[derive(Debug, Default)]
pub(super) struct Chunk {
    /// One on each line.
    text: Vec<u8>,
    /// Where each ends, and what comes behind it.
    ends: Vec<(usize, Position)>,
    /// When the first came.
    pub(super) since: Option<Instant>,
}

impl Chunk {
    pub(super) fn clear(&mut self) {
        self.text.clear();
        self.ends.clear();
        self.since = None;
    }

    pub(super) fn len(&self) -> usize {
        self.ends.len()
    }

    pub(super) fn bytes(&self) -> usize {
        self.text.len()
    }

    /// Adds a record, with its line break.
    pub(super) fn push(
        &mut self,
        format: ShipFormat,
        labels: &Labels,
        line: &[u8],
        position: Position,
    ) {
        match format {
            ShipFormat::Portcullis => self.text.extend_from_slice(line),
            ShipFormat::Opa => {
                let record = line.strip_suffix(b"\n").unwrap_or(line);
                if !event(record, labels, &mut self.text) {
                    // No event: who has got the one before has got this far.
                    if let Some((_, before)) = self.ends.last_mut() {
                        *before = position;
                    }
                    return;
                }
                self.text.push(b'\n');
            }
        }
        self.ends.push((self.text.len(), position));
        self.since.get_or_insert_with(Instant::now);
    }

    /// How many records from this one on go together: at least one.
    pub(super) fn fitting(&self, from: usize, records: usize, bytes: usize) -> usize {
        let begin = self.begin(from);
        let fitting = self.ends.iter().skip(from).take(records.max(1));
        let fitting = fitting.take_while(|(end, _)| end - begin <= bytes).count();
        from + fitting.max(1).min(self.len() - from)
    }

    fn begin(&self, record: usize) -> usize {
        let before = record
            .checked_sub(1)
            .and_then(|before| self.ends.get(before));
        before.map_or(0, |(end, _)| *end)
    }

    /// Some of the records, one on each line.
    pub(super) fn lines(&self, records: &Range<usize>) -> &[u8] {
        let span = self.begin(records.start)..self.begin(records.end);
        self.text.get(span).unwrap_or_default()
    }

    /// Behind this record.
    pub(super) fn position(&self, record: usize) -> Option<&Position> {
        self.ends.get(record).map(|(_, position)| position)
    }

    /// The body to post.
    ///
    /// # Errors
    /// None but those of memory.
    pub(super) fn body(
        &self,
        records: &Range<usize>,
        body: ShipBody,
        gzip: bool,
    ) -> io::Result<Vec<u8>> {
        let lines = self.lines(records);
        if gzip {
            // Fast: it shares the machine with those who wait for an answer.
            let mut out = GzEncoder::new(Vec::with_capacity(lines.len() / 4), Compression::fast());
            write(lines, body, &mut out)?;
            return out.finish();
        }
        let mut out = Vec::with_capacity(lines.len() + 2);
        write(lines, body, &mut out)?;
        Ok(out)
    }
}

fn write(lines: &[u8], body: ShipBody, out: &mut impl Write) -> io::Result<()> {
    match body {
        ShipBody::Lines => out.write_all(lines),
        ShipBody::Array => {
            let mut before: &[u8] = b"[";
            for line in lines.split_inclusive(|&byte| byte == b'\n') {
                out.write_all(before)?;
                out.write_all(line.strip_suffix(b"\n").unwrap_or(line))?;
                before = b",\n";
            }
            out.write_all(b"]\n")
        }
    }
}
