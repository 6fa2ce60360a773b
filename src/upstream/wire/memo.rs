//! What the last head of a connection was read as. A service says nearly the same every time: a head
//! that is equal byte by byte to the one before is not read again, its values are only shared; and of
//! one that has other values here and there, those alone are read.
//!
//! A head is recalled only if reading it would come to the same. Whatever else arrives, and whatever
//! is wrong with it, is left to [`head::parse`], which knows nothing of this. What the fields say
//! about the end of the message is put together by the same code, for every answer anew.
//!
//! Everything here is a copy: neither this nor an answer that shares its values keeps a buffer that
//! was read into.

use bytes::Bytes;
use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::{StatusCode, Version};

use super::head::{self, Head, Method, Seen};

/// Longest head that is remembered, in bytes: idle connections are many.
pub(super) const MOST_BYTES: usize = 1024;
/// Most fields of one.
pub(super) const MOST_FIELDS: usize = 16;
/// So many answers in a row are unlike what is remembered before another is remembered in its place.
/// That costs as much as to read it once more, and a connection may carry answers of many kinds.
pub(super) const PATIENCE: u8 = 8;

/// The memory of one connection.
#[derive(Debug, Default)]
pub(super) struct Memo {
    last: Option<Box<Last>>,
    /// How many answers in a row had to be read.
    misses: u8,
}

/// A head, and what it was read as.
#[derive(Debug)]
struct Last {
    /// All of it, up to and with the empty line.
    text: Vec<u8>,
    /// How many bytes the status line has, with its end.
    begin: usize,
    version: Version,
    status: StatusCode,
    lines: Vec<Line>,
    /// One field of each name.
    headers: HeaderMap,
    seen: Seen,
}

/// A field.
#[derive(Debug)]
struct Line {
    /// How many bytes it has, with its end.
    size: usize,
    /// How many of them are the name, with its colon.
    colon: usize,
    /// `None` if it must not change: what it says about the message is more than one value.
    name: Option<HeaderName>,
}

impl Memo {
    /// The head that `input` begins with, and how many bytes it has; `None` if it has to be read, or
    /// is not all there.
    pub(super) fn recall(&mut self, input: &[u8], method: Method) -> Option<(usize, Head)> {
        let last = self.last.as_mut()?;
        if !input.starts_with(&last.text) {
            last.change(input)?;
        }
        let (headers, seen) = (last.headers.clone(), last.seen);
        let head = Head::new(last.version, last.status, headers, seen, method).ok()?;
        self.misses = 0;
        Some((last.text.len(), head))
    }

    /// This head, which is valid, had to be read.
    pub(super) fn missed(&mut self, head: &[u8]) {
        self.misses += 1;
        if self.misses >= PATIENCE {
            self.misses = 0;
            self.last = Last::new(head).map(Box::new);
        }
    }
}

impl Last {
    /// `None` if the head is not to be remembered.
    fn new(head: &[u8]) -> Option<Self> {
        if head.len() > MOST_BYTES {
            return None;
        }
        let section = Bytes::copy_from_slice(head);
        let (line, mut rest) = head::line(&section)?;
        let (version, status) = head::status(line).ok()?;
        let mut last = Self {
            text: head.to_vec(),
            begin: head.len() - rest.len(),
            version,
            status,
            lines: Vec::new(),
            headers: HeaderMap::new(),
            seen: Seen::default(),
        };
        while let Some((line, more)) = head::line(rest)
            && !line.is_empty()
        {
            let (name, value) = head::field(&section, line).ok()?;
            // What one client alone may know does not stay here; and which value of a name belongs
            // to which line is not asked.
            let unfit = name == header::SET_COOKIE || last.headers.contains_key(&name);
            if unfit || last.lines.len() == MOST_FIELDS {
                return None;
            }
            if last.seen.keep(&name, &value).ok()? {
                last.headers.insert(name.clone(), value);
            }
            let fixed = name == header::CONNECTION || name == header::TRANSFER_ENCODING;
            last.lines.push(Line {
                size: rest.len() - more.len(),
                colon: memchr::memchr(b':', line)? + 1,
                name: (!fixed).then_some(name),
            });
            rest = more;
        }
        last.lines.shrink_to_fit();
        Some(last)
    }

    /// Becomes the head that `input` begins with, if that has the same fields; else it stays as it is.
    fn change(&mut self, input: &[u8]) -> Option<()> {
        let (begin, mut before) = self.text.split_at_checked(self.begin)?;
        let mut rest = input.strip_prefix(begin)?;
        let mut seen = self.seen;
        let mut changes = Vec::new();
        for line in &mut self.lines {
            let (text, others) = before.split_at_checked(line.size)?;
            before = others;
            if let Some(more) = rest.strip_prefix(text) {
                rest = more;
                continue;
            }
            let name = line.name.clone()?;
            let (value, more) = head::line(rest.strip_prefix(text.get(..line.colon)?)?)?;
            if value.len() > MOST_BYTES {
                return None;
            }
            let value = HeaderValue::from_bytes(head::trim(value)).ok()?;
            if name == header::CONTENT_LENGTH {
                seen.has_length(&value).ok()?;
            }
            changes.push((line, rest.len() - more.len(), name, value));
            rest = more;
        }
        let rest = rest.strip_prefix(b"\r\n")?;
        let head = input.get(..input.len() - rest.len())?;
        if head.len() > MOST_BYTES {
            return None;
        }
        for (line, size, name, value) in changes {
            line.size = size;
            self.headers.insert(name, value);
        }
        self.seen = seen;
        self.text.clear();
        self.text.extend_from_slice(head);
        Some(())
    }
}

#[cfg(test)]
impl Memo {
    /// How many fields are remembered, in how many bytes; and what they were read as is what they are
    /// read as now.
    pub(super) fn holds(&self) -> Option<(usize, usize)> {
        let last = self.last.as_deref()?;
        let read = Last::new(&last.text).unwrap();
        assert_eq!(format!("{last:?}"), format!("{read:?}"));
        Some((last.lines.len(), last.text.len()))
    }
}
