//! The routes of a document, read one by one.
//!
//! `serde_yaml` notes every event of a text before it makes a value of the first, which takes forty
//! times the size of the text, and the value itself takes fifteen times; with thousands of routes that
//! is more than all that is compiled from them. So the text of each route is cut out and read alone. The
//! values are those of the whole: nothing in one part of a document without anchors changes another.
//! Whenever there is doubt about that, or about a route, nothing was read here, and the whole document
//! is read at once; so problems are found and told in one way.

use std::ops::Range;

use serde::Deserialize;
use serde_yaml::Value;

use super::read::MAX_ROUTES;
use crate::route::RouteConfig;
use crate::schema::Turn;

/// Where the items of a list of blocks stand in a text, in characters.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct List {
    /// Its bracket; without brackets, the dash of its first item, or what follows that.
    pub(super) begin: usize,
    pub(super) items: Vec<Item>,
    /// How many values the whole document has, keys included.
    pub(super) values: usize,
}

/// One block of the list.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Item {
    /// Up to its closing brace, or to whatever follows a block without braces.
    pub(super) place: Range<usize>,
    /// Where its first line begins, in characters from the left.
    pub(super) column: usize,
    /// How many values it has, itself and keys included.
    pub(super) values: usize,
}

/// What a document says: its routes, and the rest of it.
pub(super) struct Apart {
    /// With an empty list in the place of the routes.
    pub(super) rest: Value,
    pub(super) routes: Vec<RouteConfig>,
}

/// Reads a document whose routes are this list. `None` when in doubt.
pub(super) fn read(text: &str, list: &List) -> Option<Apart> {
    if list.items.is_empty() || list.items.len() > MAX_ROUTES {
        return None;
    }
    let mut cut = Cut::new(text);
    let mut begin = cut.byte(list.begin)?;
    let mut end = begin;
    let brackets = text.get(begin..)?.starts_with('[');
    if !brackets && !text.get(begin..)?.starts_with('-') {
        begin = text.get(..begin)?.rfind('-')?;
    }
    let mut routes = Vec::with_capacity(list.items.len());
    let mut turn = Turn::begin();
    let mut read = 0;
    for item in &list.items {
        let place = cut.byte(item.place.start)?..cut.byte(item.place.end)?;
        let (block, behind) = alone(text, place, item.column)?;
        let value: Value = serde_yaml::from_str(&block).ok()?;
        if values(&value) != item.values {
            return None;
        }
        (end, read) = (behind, read + item.values);
        routes.push(RouteConfig::deserialize(value).ok()?);
        turn.pause();
    }
    if brackets {
        let left = text.get(end..)?.trim_start();
        let left = left.strip_prefix(',').unwrap_or(left).trim_start();
        end = text.len() - left.strip_prefix(']')?.len();
    }
    let rest = [text.get(..begin)?, " []\n", text.get(end..)?].concat();
    let rest: Value = serde_yaml::from_str(&rest).ok()?;
    (values(&rest) + read == list.values).then_some(Apart { rest, routes })
}

/// A block as a document of its own, as far from the left as it was, and where it ends.
fn alone(text: &str, place: Range<usize>, column: usize) -> Option<(String, usize)> {
    let line = text.get(..place.start)?.rsplit('\n').next()?;
    // Or it was counted in another way than here.
    if line.chars().count() != column {
        return None;
    }
    let margin = " ".repeat(column);
    if text.get(place.clone())?.starts_with('{') {
        let behind = place.end + 1;
        let block = text.get(place.start..behind)?;
        return block
            .ends_with('}')
            .then(|| ([&*margin, block].concat(), behind));
    }
    // What follows the last line is the margin of the next item.
    let block = text.get(place.clone())?.trim_end_matches([' ', '\t']);
    Some(([&*margin, block].concat(), place.end))
}

/// How many values there are in this one, itself and keys included.
fn values(value: &Value) -> usize {
    match value {
        Value::Sequence(items) => 1 + items.iter().map(values).sum::<usize>(),
        Value::Mapping(entries) => {
            let entry = |(key, value)| values(key) + values(value);
            1 + entries.iter().map(entry).sum::<usize>()
        }
        Value::Tagged(tagged) => values(&tagged.value),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => 1,
    }
}

/// Finds the bytes of characters that are asked for in their order.
struct Cut<'t> {
    rest: std::str::CharIndices<'t>,
    characters: usize,
}

impl<'t> Cut<'t> {
    fn new(text: &'t str) -> Self {
        Self {
            rest: text.char_indices(),
            characters: 0,
        }
    }

    /// The byte where this character begins; `None` when it lies beyond the text, or before one that was
    /// asked for.
    fn byte(&mut self, character: usize) -> Option<usize> {
        let further = character.checked_sub(self.characters)?;
        self.characters = character;
        if let Some(skipped) = further.checked_sub(1) {
            self.rest.nth(skipped)?;
        }
        Some(self.rest.offset())
    }
}

#[cfg(test)]
#[path = "portions_tests.rs"]
mod tests;
