//! What the last head of a connection was read as. A service says nearly the same every time: a line
//! that is equal byte by byte to the one that stood in its place before is not read again, its value
//! is only shared; and of a field that has another value only that is read.
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

/// A head: its lines, and what they were read as. The two never differ, also when `lines` are of
/// several heads.
#[derive(Debug)]
struct Last {
    /// The status line, with its end.
    begin: Bytes,
    version: Version,
    status: StatusCode,
    lines: Vec<Line>,
    /// The length of all lines, and of the empty one, in bytes.
    size: usize,
    /// One field of each name.
    headers: HeaderMap,
    seen: Seen,
}

/// A field.
#[derive(Debug)]
struct Line {
    /// With its end.
    text: Bytes,
    /// Where the name has ended: right behind the colon.
    colon: usize,
    /// `None` if the field says more than its value: then it may not change.
    name: Option<HeaderName>,
}

impl Memo {
    /// The head that `input` begins with, and how many bytes it has; `None` if it has to be read, or
    /// is not all there.
    pub(super) fn recall(&mut self, input: &[u8], method: Method) -> Option<(usize, Head)> {
        let recalled = self.last.as_mut()?.recall(input, method)?;
        self.misses = 0;
        Some(recalled)
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
        let (line, mut rest) = head::line(head)?;
        let (version, status) = head::status(line).ok()?;
        let begin = head.get(..head.len() - rest.len())?;
        let mut last = Self {
            begin: Bytes::copy_from_slice(begin),
            version,
            status,
            lines: Vec::new(),
            size: head.len(),
            headers: HeaderMap::new(),
            seen: Seen::default(),
        };
        while let Some((line, more)) = head::line(rest)
            && !line.is_empty()
        {
            if last.lines.len() == MOST_FIELDS {
                return None;
            }
            let text = Bytes::copy_from_slice(rest.get(..rest.len() - more.len())?);
            let (name, value) = head::field(&text, text.get(..line.len())?).ok()?;
            // What one client alone may know does not stay here; and which value of a name belongs
            // to which line is not asked.
            let unfit = name == header::SET_COOKIE || last.headers.contains_key(&name);
            if unfit {
                return None;
            }
            if last.seen.keep(&name, &value).ok()? {
                last.headers.insert(name.clone(), value);
            }
            let fixed = name == header::CONNECTION || name == header::TRANSFER_ENCODING;
            last.lines.push(Line {
                colon: memchr::memchr(b':', &text)? + 1,
                text,
                name: (!fixed).then_some(name),
            });
            rest = more;
        }
        last.lines.shrink_to_fit();
        Some(last)
    }

    fn recall(&mut self, input: &[u8], method: Method) -> Option<(usize, Head)> {
        let mut rest = input.strip_prefix(&*self.begin)?;
        for line in &mut self.lines {
            if let Some(more) = rest.strip_prefix(&*line.text) {
                rest = more;
                continue;
            }
            let name = line.name.as_ref()?;
            let (text, value, more) = line.changed(rest)?;
            let size = self.size - line.text.len() + text.len();
            if size > MOST_BYTES {
                return None;
            }
            let kept = self.headers.get_mut(name)?;
            if *name == header::CONTENT_LENGTH {
                self.seen.has_length(&value).ok()?;
            }
            // Nothing fails from here to the next line: what is remembered stays of one piece.
            *kept = value;
            self.size = size;
            line.text = text;
            rest = more;
        }
        let rest = rest.strip_prefix(b"\r\n")?;
        let (version, status) = (self.version, self.status);
        let head = Head::new(version, status, self.headers.clone(), self.seen, method).ok()?;
        Some((input.len() - rest.len(), head))
    }
}

impl Line {
    /// The line that `rest` begins with, its value, and what follows, if it is this field.
    fn changed<'r>(&self, rest: &'r [u8]) -> Option<(Bytes, HeaderValue, &'r [u8])> {
        let name = self.text.get(..self.colon)?;
        if !rest.starts_with(name) {
            return None;
        }
        let end = memchr::memchr(b'\n', rest.get(..rest.len().min(MOST_BYTES))?)?;
        let (text, rest) = rest.split_at_checked(end + 1)?;
        let text = Bytes::copy_from_slice(text);
        let value = text.strip_suffix(b"\r\n")?.get(self.colon..)?;
        let value = head::value(&text, value).ok()?;
        Some((text, value, rest))
    }
}

#[cfg(test)]
impl Memo {
    /// How many fields are remembered, in how many bytes.
    pub(super) fn holds(&self) -> Option<(usize, usize)> {
        let last = self.last.as_ref()?;
        let text: usize = last.lines.iter().map(|line| line.text.len()).sum();
        assert_eq!(last.size, last.begin.len() + text + 2);
        Some((last.lines.len(), last.size))
    }
}
