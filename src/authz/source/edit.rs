//! Texts that are made from others, and which place in the old one each place in the new one is of.

use std::ops::Range;

/// A part of a new text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Piece {
    /// Of the old text.
    Copy(Range<usize>),
    /// New, at the place of this byte of the old text.
    Text(String, usize),
}

/// What stands in the place of a part of the old text.
#[derive(Debug, Clone)]
pub(super) struct Edit {
    pub(super) range: Range<usize>,
    pub(super) pieces: Vec<Piece>,
}

/// Where every part of a text came from.
#[derive(Debug, Clone)]
pub(super) struct Origin {
    /// Begin in the new text, begin in the old one, whether it was copied.
    pub(super) parts: Vec<(usize, usize, bool)>,
    pub(super) new: Lines,
    pub(super) old: Lines,
}

/// The bytes at which lines begin, and the text.
#[derive(Debug, Clone)]
pub(super) struct Lines {
    pub(super) begins: Vec<usize>,
    pub(super) text: String,
}

impl Lines {
    pub(super) fn of(text: &str) -> Self {
        let mut begins = vec![0];
        begins.extend(text.match_indices('\n').map(|(at, _)| at + 1));
        Self {
            begins,
            text: text.to_owned(),
        }
    }

    pub(super) fn offset(&self, (line, column): (usize, usize)) -> usize {
        let end = self.text.len();
        let begin = self
            .begins
            .get(line.saturating_sub(1))
            .copied()
            .unwrap_or(end);
        let rest = self.text.get(begin..).unwrap_or("");
        let within = rest.char_indices().nth(column.saturating_sub(1));
        within.map_or(end, |(at, _)| begin + at)
    }

    pub(super) fn place(&self, offset: usize) -> (usize, usize) {
        let line = self.begins.partition_point(|begin| *begin <= offset);
        let begin = self
            .begins
            .get(line.saturating_sub(1))
            .copied()
            .unwrap_or(0);
        let before = self.text.get(begin..offset).unwrap_or("");
        (line, before.chars().count() + 1)
    }
}

impl Origin {
    pub(super) fn place(&self, at: (usize, usize)) -> (usize, usize) {
        let offset = self.new.offset(at);
        let part = self.parts.partition_point(|(new, ..)| *new <= offset);
        match part.checked_sub(1).and_then(|part| self.parts.get(part)) {
            Some((new, old, true)) => self.old.place(old + (offset - new)),
            Some((_, old, false)) => self.old.place(*old),
            None => at,
        }
    }
}

/// Leads from places in a rewritten module back to the author's.
#[derive(Debug, Clone, Default)]
pub(in crate::authz) struct Map {
    /// The last rewriting first.
    origins: Vec<Origin>,
}

impl Map {
    pub(in crate::authz) fn is_empty(&self) -> bool {
        self.origins.is_empty()
    }

    /// The author's line and column.
    pub(in crate::authz) fn place(&self, at: (usize, usize)) -> (usize, usize) {
        self.origins.iter().fold(at, |at, origin| origin.place(at))
    }

    /// After one rewriting another.
    pub(super) fn then(mut self, pieces: Vec<Piece>, old: &str) -> (Self, String) {
        let mut new = String::new();
        let mut parts = Vec::with_capacity(pieces.len());
        for piece in pieces {
            match piece {
                Piece::Copy(range) => {
                    parts.push((new.len(), range.start, true));
                    new.push_str(old.get(range).unwrap_or(""));
                }
                Piece::Text(text, at) => {
                    parts.push((new.len(), at, false));
                    new.push_str(&text);
                }
            }
        }
        let origin = Origin {
            parts,
            new: Lines::of(&new),
            old: Lines::of(old),
        };
        self.origins.insert(0, origin);
        (self, new)
    }
}

/// The text with these edits; of those that overlap the first counts.
pub(super) fn splice(range: Range<usize>, mut edits: Vec<Edit>) -> Vec<Piece> {
    edits.sort_by_key(|edit| (edit.range.start, edit.range.end));
    let mut pieces = Vec::new();
    let mut at = range.start;
    for edit in edits {
        if edit.range.start < at || edit.range.end > range.end {
            continue;
        }
        if at < edit.range.start {
            pieces.push(Piece::Copy(at..edit.range.start));
        }
        pieces.extend(edit.pieces);
        at = edit.range.end;
    }
    if at < range.end {
        pieces.push(Piece::Copy(at..range.end));
    }
    pieces
}
