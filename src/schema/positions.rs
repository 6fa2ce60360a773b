//! Where in the file each part of the document stands.

use std::collections::HashMap;
use std::sync::OnceLock;

/// A place in a text file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Position {
    /// From 1.
    pub line: usize,
    /// In characters, from 1.
    pub column: usize,
}

/// The positions of a document, read when the first of them is asked for.
#[derive(Debug, Default)]
pub struct Placed {
    text: String,
    read: Option<fn(&str) -> Positions>,
    positions: OnceLock<Positions>,
}

impl Placed {
    /// The positions that `read` finds in this text.
    pub fn new(text: String, read: fn(&str) -> Positions) -> Self {
        Self {
            text,
            read: Some(read),
            positions: OnceLock::new(),
        }
    }

    /// The positions; none in a document that is not there.
    pub fn positions(&self) -> &Positions {
        let read = || self.read.map(|read| read(&self.text)).unwrap_or_default();
        self.positions.get_or_init(read)
    }
}

/// Document path (`routes[2].authn[0]`) to position. Filled by the parser of the file.
#[derive(Debug, Default)]
pub struct Positions {
    parts: HashMap<String, Position>,
    keys: HashMap<String, Position>,
}

impl Positions {
    /// Notes where the part at `path` stands.
    pub fn insert(&mut self, path: String, position: Position) {
        self.parts.insert(path, position);
    }

    /// Notes where the key of the part at `path` stands.
    pub fn insert_key(&mut self, path: String, position: Position) {
        self.keys.insert(path, position);
    }

    /// Where the key of the part at `path` stands.
    pub fn locate_key(&self, path: &str) -> Option<Position> {
        self.keys.get(path).copied().or_else(|| self.locate(path))
    }

    /// Where the part at `path` stands, or else the nearest part around it: a key that is missing
    /// has the position of the block that it is missing from.
    pub fn locate(&self, path: &str) -> Option<Position> {
        let mut path = path;
        loop {
            if let Some(position) = self.parts.get(path) {
                return Some(*position);
            }
            if path.is_empty() {
                return None;
            }
            path = path
                .rfind(['.', '['])
                .and_then(|end| path.get(..end))
                .unwrap_or_default();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_part_is_where_the_part_around_it_is() {
        let at = |line| Position { line, column: 1 };
        let mut positions = Positions::default();
        positions.insert(String::new(), at(1));
        positions.insert("routes".into(), at(2));
        positions.insert("routes[0]".into(), at(3));
        assert_eq!(positions.locate("routes[0].authn[1]"), Some(at(3)));
        assert_eq!(positions.locate("routes[1]"), Some(at(2)));
        assert_eq!(positions.locate("listeners"), Some(at(1)));
        assert_eq!(Positions::default().locate("a.b"), None);
    }
}
