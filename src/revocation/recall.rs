//! The texts of entries where there is no store: as many as fit, for the admin page's list.
//!
//! What is revoked does not rest on it: that is in the index.

use std::collections::VecDeque;

use super::index::Index;
use super::journal::{Line, holds};

/// Bytes of text that are remembered: some 40,000 entries.
const MAX_TEXT: usize = 8 << 20;

#[derive(Debug, Default)]
pub(super) struct Recall {
    lines: VecDeque<(u64, Box<[u8]>)>,
    bytes: usize,
    next: u64,
    /// Whether there were more than fit.
    forgotten: bool,
}

impl Recall {
    /// Remembers lines.
    pub(super) fn add_all(&mut self, lines: &[u8]) {
        for line in lines.split_inclusive(|byte| *byte == b'\n') {
            self.bytes += line.len();
            self.lines.push_back((self.next, line.into()));
            self.next += 1;
        }
        while self.bytes > MAX_TEXT {
            let Some((_, oldest)) = self.lines.pop_front() else {
                break;
            };
            self.bytes -= oldest.len();
            self.forgotten = true;
        }
    }

    /// Forgets lines that say nothing any more.
    pub(super) fn sweep(&mut self, index: &Index, now: u64) {
        self.lines
            .retain(|(_, text)| read(text).is_some_and(|line| holds(&line, index, now)));
        self.bytes = self.lines.iter().map(|(_, text)| text.len()).sum();
    }

    /// Offers lines in force to `wanted`, from the place `after` on, until that says no; returns the
    /// place to go on from.
    pub(super) fn page(
        &self,
        index: &Index,
        after: u64,
        now: u64,
        mut wanted: impl FnMut(&Line<'_>) -> bool,
    ) -> Option<u64> {
        let start = self.lines.partition_point(|(place, _)| *place < after);
        self.lines.iter().skip(start).find_map(|(place, text)| {
            let line = read(text)?;
            (holds(&line, index, now) && !wanted(&line)).then_some(*place)
        })
    }

    /// Whether all entries in force can be listed.
    pub(super) const fn is_complete(&self) -> bool {
        !self.forgotten
    }
}

fn read(text: &[u8]) -> Option<Line<'_>> {
    Line::read(text.strip_suffix(b"\n")?)
}
