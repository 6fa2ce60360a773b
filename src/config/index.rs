//! The shape of the file before its meaning: where each part stands, and what YAML allows that a
//! configuration must not use.
//!
//! `serde_yaml` reads the values. It tells no positions for values that were already read, takes the
//! last of two equal keys in typed maps, and follows aliases. So a second, event-based parser goes
//! over the text first, notes positions, and refuses duplicate keys, tags, several documents, and
//! nesting or aliases beyond bounds. Where the two parsers should ever disagree, the values are
//! those of `serde_yaml`, and only a position is off.

use std::borrow::Cow;
use std::collections::HashMap;

use saphyr_parser::{Event, Marker, Parser};

use super::portions::{Item, List};
use crate::schema::{Position, Positions, Turn};

/// How deep blocks may nest.
pub(super) const MAX_DEPTH: usize = 32;

/// How many values a document may have, aliases written out.
pub(super) const MAX_NODES: usize = 500_000;

/// How many aliases (`*name`) a document may have.
pub(super) const MAX_ALIASES: usize = 1_000;

/// The list that may be read item by item.
const ROUTES: &str = "routes";

/// How many events are taken before the clock is looked at.
const EVENTS: usize = 64;

/// A mistake in the text itself.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Fault {
    pub(super) at: Option<Position>,
    pub(super) path: String,
    pub(super) message: String,
    pub(super) help: Option<String>,
}

/// Goes over the text once and finds every fault; in a text without any, also where its routes stand,
/// if all of them are blocks that can be read apart from the rest.
pub(super) fn look(text: &str) -> (Vec<Fault>, Option<List>) {
    let scan = scan(text, None);
    let list = scan
        .routes
        .filter(|_| scan.faults.is_empty() && scan.documents == 1 && scan.anchors.is_empty());
    let list = list.map(|list| List {
        values: scan.nodes,
        ..list
    });
    (scan.faults, list)
}

/// Where the parts of a text stand, as far as it can be read. With many routes this is larger than all
/// that is compiled from them, so it is done only when there is something to say about one.
pub(super) fn positions(text: &str) -> Positions {
    scan(text, Some(Positions::default()))
        .positions
        .unwrap_or_default()
}

fn scan(text: &str, positions: Option<Positions>) -> Scan {
    let mut scan = Scan {
        positions,
        ..Scan::default()
    };
    if let Some(fault) = control_character(text) {
        scan.faults.push(fault);
        return scan;
    }
    let (text, ahead) = begun(text);
    let position = |at: &Marker| Position {
        line: at.line(),
        column: match at.line() {
            1 => at.col().saturating_sub(ahead) + 1,
            _ => at.col() + 1,
        },
    };
    let mut turn = Turn::begin();
    for (number, event) in Parser::new_from_str(&text).enumerate() {
        if number % EVENTS == 0 {
            turn.pause();
        }
        match event {
            Ok((event, span)) => {
                let character = span.start.index().saturating_sub(ahead);
                let at = position(&span.start);
                if scan.event(event, at, character).is_none() {
                    break;
                }
            }
            Err(error) => {
                scan.faults.push(Fault {
                    at: Some(position(error.marker())),
                    path: String::new(),
                    message: format!("this is not YAML: {}", error.info()),
                    help: Some("check indentation, quotes and brackets around here".to_owned()),
                });
                break;
            }
        }
    }
    scan
}

/// The text as it is parsed, and how many characters its first line has more.
///
/// A `{` with nothing before it may open a key, and the parser holds all that follows back until it
/// knows: the whole of a document that is written as JSON, at about 30 times its size. Behind the mark
/// that begins a document it opens no key.
fn begun(text: &str) -> (Cow<'_, str>, usize) {
    const MARK: &str = "--- ";
    if text.starts_with(['{', '[']) {
        (Cow::Owned([MARK, text].concat()), MARK.len())
    } else {
        (Cow::Borrowed(text), 0)
    }
}

/// Control characters are not YAML, and parsers treat them differently.
fn control_character(text: &str) -> Option<Fault> {
    let odd = |c: char| c.is_control() && !matches!(c, '\n' | '\r' | '\t' | '\u{85}');
    let (index, c) = text.char_indices().find(|(_, c)| odd(*c))?;
    Some(Fault {
        at: Some(position_of(text.get(..index).unwrap_or_default())),
        path: String::new(),
        message: format!(
            "the control character U+{:04X} does not belong into the file",
            u32::from(c)
        ),
        help: None,
    })
}

/// The position right after `before`.
pub(super) fn position_of(before: &str) -> Position {
    let line = before.matches('\n').count() + 1;
    let last = before.rsplit('\n').next().unwrap_or_default();
    Position {
        line,
        column: last.chars().count() + 1,
    }
}

#[derive(Debug, Default)]
struct Scan {
    /// Absent when they are not wanted.
    positions: Option<Positions>,
    faults: Vec<Fault>,
    stack: Vec<Frame>,
    documents: usize,
    nodes: usize,
    aliases: usize,
    /// Anchor to the number of values under it.
    anchors: HashMap<usize, usize>,
    /// The items of the root's `routes`.
    routes: Option<List>,
}

#[derive(Debug)]
struct Frame {
    path: String,
    /// The anchor on this block, 0 for none.
    anchor: usize,
    /// `nodes` when the block began.
    began: usize,
    kind: Kind,
}

#[derive(Debug)]
enum Kind {
    Sequence {
        next: usize,
    },
    Mapping {
        /// With the line of each.
        seen: HashMap<String, usize>,
        key: Option<(String, Position)>,
    },
}

impl Scan {
    /// Takes one event; `None` when it makes no sense to go on.
    fn event(&mut self, event: Event<'_>, at: Position, character: usize) -> Option<()> {
        match event {
            Event::Nothing | Event::StreamStart | Event::StreamEnd | Event::DocumentEnd => {}
            Event::DocumentStart(_) => {
                self.documents += 1;
                if self.documents > 1 {
                    let help = "everything after the line `---` would be ignored: remove it";
                    self.fault(at, String::new(), "the file holds several documents", help);
                    return None;
                }
            }
            Event::Alias(anchor) => {
                self.aliases += 1;
                let size = self.anchors.get(&anchor).copied();
                let Some(size) = size else {
                    // The anchor's block is still open: the document would contain itself.
                    let path = self.place(at);
                    self.fault(
                        at,
                        path,
                        "the alias refers to a block that contains it",
                        "write it out",
                    );
                    return None;
                };
                self.nodes = self.nodes.saturating_add(size);
                self.value(at, 0)?;
                if self.aliases > MAX_ALIASES {
                    let message = format!("more than {MAX_ALIASES} aliases");
                    self.fault(at, String::new(), message, "write them out");
                    return None;
                }
            }
            Event::Scalar(text, _, anchor, tag) => {
                if tag.is_some() {
                    self.tag(at);
                }
                if self.expects_key() {
                    self.nodes = self.nodes.saturating_add(1);
                    self.key(text.into_owned(), at);
                } else {
                    self.value(at, anchor)?;
                }
            }
            Event::SequenceStart(anchor, tag) => {
                self.open(at, anchor, tag.is_some(), Kind::Sequence { next: 0 })?;
                self.opened(character, at);
            }
            Event::MappingStart(anchor, tag) => {
                let kind = Kind::Mapping {
                    seen: HashMap::new(),
                    key: None,
                };
                self.open(at, anchor, tag.is_some(), kind)?;
                self.opened(character, at);
            }
            Event::SequenceEnd | Event::MappingEnd => self.close(character),
        }
        if self.nodes > MAX_NODES {
            let message = format!("the file has more than {MAX_NODES} values, aliases written out");
            self.fault(
                at,
                String::new(),
                message,
                "aliases that hold aliases multiply: write them out",
            );
            return None;
        }
        Some(())
    }

    fn fault(&mut self, at: Position, path: String, message: impl Into<String>, help: &str) {
        let help = Some(help.to_owned());
        self.faults.push(Fault {
            at: Some(at),
            path,
            message: message.into(),
            help,
        });
    }

    fn tag(&mut self, at: Position) {
        self.fault(
            at,
            String::new(),
            "tags (`!name`) are not used in this file",
            "remove the tag",
        );
    }

    fn expects_key(&self) -> bool {
        matches!(
            self.stack.last(),
            Some(Frame {
                kind: Kind::Mapping { key: None, .. },
                ..
            })
        )
    }

    fn key(&mut self, text: String, at: Position) {
        let Some(Frame {
            path,
            kind: Kind::Mapping { seen, key },
            ..
        }) = self.stack.last_mut()
        else {
            return;
        };
        let first = seen.get(&text).copied();
        if first.is_none() {
            seen.insert(text.clone(), at.line);
        }
        let full = join(path, &text);
        *key = Some((text, at));
        if let Some(first) = first {
            let message = format!("the key is there twice, first on line {first}");
            self.fault(at, full, message, "remove one of the two, or rename it");
        } else if let Some(positions) = &mut self.positions {
            positions.insert_key(full, at);
        }
    }

    /// Finds out where the coming value belongs, and notes its position.
    fn place(&mut self, at: Position) -> String {
        let (path, position) = match self.stack.last_mut() {
            None => (String::new(), at),
            Some(Frame { path, kind, .. }) => match kind {
                Kind::Sequence { next } => {
                    let index = *next;
                    *next += 1;
                    (format!("{path}[{index}]"), at)
                }
                Kind::Mapping { key, .. } => match key.take() {
                    // A block that begins below its key is known by the key.
                    Some((name, key_at)) if key_at.line != at.line => (join(path, &name), key_at),
                    Some((name, _)) => (join(path, &name), at),
                    None => return String::new(),
                },
            },
        };
        if let Some(positions) = &mut self.positions {
            positions.insert(path.clone(), position);
        }
        path
    }

    fn value(&mut self, at: Position, anchor: usize) -> Option<()> {
        self.nodes = self.nodes.saturating_add(1);
        if self.expects_key() {
            self.fault(
                at,
                String::new(),
                "a key must be plain text",
                "write the key out",
            );
            return None;
        }
        self.place(at);
        if anchor != 0 {
            self.anchors.insert(anchor, 1);
        }
        Some(())
    }

    fn open(&mut self, at: Position, anchor: usize, tagged: bool, kind: Kind) -> Option<()> {
        if tagged {
            self.tag(at);
        }
        if self.expects_key() {
            let help = "did you mean to quote it?";
            self.fault(at, String::new(), "a key must be plain text", help);
            return None;
        }
        let path = self.place(at);
        if self.stack.len() >= MAX_DEPTH {
            let message = format!("blocks nest deeper than {MAX_DEPTH}");
            self.fault(
                at,
                String::new(),
                message,
                "no part of the configuration nests that deep",
            );
            return None;
        }
        self.stack.push(Frame {
            path,
            anchor,
            began: self.nodes,
            kind,
        });
        self.nodes = self.nodes.saturating_add(1);
        Some(())
    }

    /// A block has been opened that begins with this character: notes the root's `routes` and their items.
    fn opened(&mut self, character: usize, at: Position) {
        let place = character..character;
        match self.stack.as_slice() {
            [_, list] if matches!(list.kind, Kind::Sequence { .. }) && list.path == ROUTES => {
                self.routes = Some(List {
                    begin: character,
                    ..List::default()
                });
            }
            [_, list, item] if list.path == ROUTES => {
                if let (Some(routes), Kind::Mapping { .. }) = (&mut self.routes, &item.kind) {
                    let column = at.column - 1;
                    routes.items.push(Item {
                        place,
                        column,
                        values: 0,
                    });
                }
            }
            _ => {}
        }
    }

    fn close(&mut self, character: usize) {
        let Some(frame) = self.stack.pop() else {
            return;
        };
        let values = self.nodes - frame.began;
        if frame.anchor != 0 {
            self.anchors.insert(frame.anchor, values);
        }
        match (&mut self.routes, self.stack.as_slice(), &frame.kind) {
            (Some(routes), [_, list], Kind::Mapping { .. }) if list.path == ROUTES => {
                if let Some(item) = routes.items.last_mut() {
                    item.place.end = character;
                    item.values = values;
                }
            }
            // Some of them are no blocks.
            (Some(routes), [_], Kind::Sequence { next })
                if frame.path == ROUTES && routes.items.len() != *next =>
            {
                self.routes = None;
            }
            _ => {}
        }
    }
}

fn join(path: &str, key: &str) -> String {
    if path.is_empty() {
        key.to_owned()
    } else {
        format!("{path}.{key}")
    }
}
