//! JSON gone through without being read: where values end, and what members an object has.
//!
//! What is found here is a part of a text and no more: whoever takes it reads it by the rules of JSON.

use std::ops::Range;

/// Deepest nesting that is gone through.
const MAX_DEPTH: usize = 256;

/// A line without the white space around it; `None` when there is nothing else.
pub(super) fn trimmed(line: &[u8]) -> Option<Range<usize>> {
    let from = line.iter().position(|byte| !byte.is_ascii_whitespace())?;
    let to = line.iter().rposition(|byte| !byte.is_ascii_whitespace())?;
    Some(from..to + 1)
}

/// The length of the object that the text begins with.
pub(super) fn object_end(text: &[u8]) -> Option<usize> {
    text.starts_with(b"{").then(|| value_end(text))?
}

/// The length of the value that the text begins with.
pub(in crate::audit) fn value_end(text: &[u8]) -> Option<usize> {
    match text.first()? {
        b'"' => string_end(text),
        b'{' | b'[' => nested_end(text),
        _ => {
            let ends = |byte: &u8| matches!(byte, b',' | b'}' | b']') || byte.is_ascii_whitespace();
            let length = text.iter().position(ends).unwrap_or(text.len());
            (length > 0).then_some(length)
        }
    }
}

/// The length of the string that the text begins with, quotation marks included.
fn string_end(text: &[u8]) -> Option<usize> {
    let mut at = 1;
    loop {
        let rest = text.get(at..)?;
        let found = memchr::memchr2(b'"', b'\\', rest)?;
        if rest.get(found) == Some(&b'"') {
            return Some(at + found + 1);
        }
        at += found + 2;
    }
}

fn nested_end(text: &[u8]) -> Option<usize> {
    let mut depth = 0_usize;
    let mut at = 0;
    loop {
        match text.get(at)? {
            b'"' => {
                at += string_end(text.get(at..)?)?;
                continue;
            }
            b'{' | b'[' => {
                depth += 1;
                if depth > MAX_DEPTH {
                    return None;
                }
            }
            b'}' | b']' => {
                depth -= 1;
                if depth == 0 {
                    return Some(at + 1);
                }
            }
            _ => {}
        }
        at += 1;
    }
}

/// The members of an object, each name without its quotation marks and each value as it is written;
/// the last item is `None` when the text is no object.
#[derive(Debug)]
pub(in crate::audit) struct Members<'t> {
    text: &'t [u8],
    at: usize,
    state: State,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    First,
    Next,
    Over,
}

impl<'t> Members<'t> {
    pub(in crate::audit) fn of(text: &'t [u8]) -> Self {
        Self {
            text,
            at: 0,
            state: State::First,
        }
    }

    fn skip(&mut self) {
        let rest = self.text.get(self.at..).unwrap_or_default();
        let white = |byte: &u8| byte.is_ascii_whitespace();
        self.at += rest.iter().take_while(|byte| white(byte)).count();
    }

    fn take(&mut self, byte: u8) -> Option<()> {
        self.skip();
        (self.text.get(self.at) == Some(&byte)).then(|| self.at += 1)
    }

    fn part(&mut self, end: impl FnOnce(&[u8]) -> Option<usize>) -> Option<&'t [u8]> {
        self.skip();
        let rest = self.text.get(self.at..)?;
        let length = end(rest)?;
        self.at += length;
        rest.get(..length)
    }

    fn member(&mut self) -> Option<(&'t [u8], &'t [u8])> {
        self.skip();
        if self.text.get(self.at) != Some(&b'"') {
            return None;
        }
        let name = self.part(string_end)?;
        self.take(b':')?;
        let value = self.part(value_end)?;
        Some((name.get(1..name.len().checked_sub(1)?)?, value))
    }
}

impl<'t> Iterator for Members<'t> {
    type Item = Option<(&'t [u8], &'t [u8])>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.state == State::Over {
            return None;
        }
        let first = self.state == State::First;
        self.state = State::Over;
        if first && self.take(b'{').is_none() {
            return Some(None);
        }
        if self.take(b'}').is_some() {
            self.skip();
            return (self.at < self.text.len()).then_some(None);
        }
        if !first && self.take(b',').is_none() {
            return Some(None);
        }
        let member = self.member();
        if member.is_some() {
            self.state = State::Next;
        }
        Some(member)
    }
}
