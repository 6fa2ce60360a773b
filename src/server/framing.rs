//! Where the heads in a stream of HTTP/1 requests begin and end, and which of them can be framed in
//! more than one way.
//!
//! hyper parses requests; this only watches the same bytes beside it, because hyper forgets what we
//! have to refuse: it drops `Content-Length` when `Transfer-Encoding` stands beside it, merges equal
//! `Content-Length` fields, and takes a bare LF for the end of a line and spaces after the size of a
//! chunk. Whenever the two disagree about a request, it is refused: see [`Verdict::fits`].

use memchr::memchr;

use crate::request::scan::find;

/// Longest line that is carried from one read to the next. hyper ends the connection at its own
/// bound on heads, which is below this.
const LINE_MAX: usize = 2 * 1024 * 1024;

/// What is found in a stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Found {
    /// A head has ended.
    Head(Verdict),
    /// The body after the last head is chunked in a way that others may read differently. Nothing
    /// after it is looked at.
    BadChunk,
}

/// What was seen of one request's head.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Verdict {
    lengths: u8,
    encodings: u8,
    /// A line that did not end with CR LF, or that continues the one before; a target with a
    /// fragment; a name that some take for a length's; in the body, a chunk that can be read
    /// differently.
    odd_line: bool,
}

impl Verdict {
    /// The same head, refused for its body.
    pub(super) fn spoilt(self) -> Self {
        Self {
            odd_line: true,
            ..self
        }
    }

    /// Whether the head can be framed in one way only, and hyper has read it that way.
    pub(super) fn fits(self, has_encoding: bool) -> bool {
        !self.odd_line
            && self.lengths <= 1
            && self.encodings <= 1
            && !(self.lengths == 1 && self.encodings == 1)
            && has_encoding == (self.encodings == 1)
    }
}

/// The watcher of one connection.
#[derive(Debug, Default)]
pub(super) struct Framing {
    state: State,
    head: Verdict,
    /// Whether the request line of the current head has been seen.
    started: bool,
    /// The body's length, once a `Content-Length` was seen.
    length: Option<u64>,
    /// The beginning of a line whose end has not arrived.
    line: Vec<u8>,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
enum State {
    /// In a head, or before one.
    #[default]
    Head,
    /// In a body of which so many bytes are to come.
    Length(u64),
    /// In the line that begins a chunk.
    ChunkSize,
    /// In a chunk, with its final CR LF.
    Chunk(u64),
    /// After the last chunk.
    Trailers,
    /// Not followed any more: every further head is refused.
    Lost,
}

impl Framing {
    /// Watches the next bytes; `found` gets a verdict for every head that ends in them.
    pub(super) fn scan(&mut self, mut bytes: &[u8], mut found: impl FnMut(Found)) {
        while !bytes.is_empty() {
            match self.state {
                State::Length(left) => {
                    let (rest, left) = skip(bytes, left);
                    bytes = rest;
                    self.state = if left == 0 {
                        State::Head
                    } else {
                        State::Length(left)
                    };
                }
                State::Chunk(left) => {
                    let (rest, left) = skip(bytes, left);
                    bytes = rest;
                    self.state = if left == 0 {
                        State::ChunkSize
                    } else {
                        State::Chunk(left)
                    };
                }
                State::Lost => return,
                State::Head if self.line.is_empty() => {
                    let Some(rest) = self.lines(bytes, &mut found) else {
                        return;
                    };
                    bytes = rest;
                }
                State::Head | State::ChunkSize | State::Trailers => {
                    let Some(end) = memchr(b'\n', bytes) else {
                        if self.line.len() + bytes.len() > LINE_MAX {
                            self.state = State::Lost;
                        } else {
                            self.line.extend_from_slice(bytes);
                        }
                        return;
                    };
                    let (line, rest) = bytes.split_at(end);
                    bytes = rest.get(1..).unwrap_or_default();
                    if self.line.is_empty() {
                        self.line(line, &mut found);
                    } else {
                        let mut whole = std::mem::take(&mut self.line);
                        whole.extend_from_slice(line);
                        self.line(&whole, &mut found);
                        // Slow clients send many short pieces; keep the room for the next line.
                        whole.clear();
                        self.line = whole;
                    }
                }
            }
        }
    }

    /// Gives back the room that is kept for lines.
    pub(super) fn rest(&mut self) {
        self.line.shrink_to_fit();
    }

    /// Whether a head has begun and not ended.
    pub(super) fn mid_head(&self) -> bool {
        self.state == State::Head && (self.started || !self.line.is_empty())
    }

    /// Whether a body has begun and not ended, or cannot be followed.
    pub(super) fn mid_body(&self) -> bool {
        self.state != State::Head
    }

    /// The whole lines of a head, the bulk of all bytes of small requests; gives what follows the
    /// head, or keeps the beginning of a line.
    fn lines<'b>(&mut self, bytes: &'b [u8], found: &mut impl FnMut(Found)) -> Option<&'b [u8]> {
        let mut rest = bytes;
        while let Some(end) = find(b'\n', rest) {
            let (line, ended) = rest.split_at_checked(end)?;
            rest = ended.get(1..)?;
            if self.started
                && let [first, .., b'\r'] = line
                && !matches!(first, b'c' | b'C' | b't' | b'T' | b' ' | b'\t')
            {
                // An ordinary field that is not ours to judge.
                continue;
            }
            self.line(line, found);
            if !self.started {
                return Some(rest);
            }
        }
        self.line.extend_from_slice(rest);
        None
    }

    fn line(&mut self, line: &[u8], found: &mut impl FnMut(Found)) {
        let (line, ended) = match line.split_last() {
            Some((b'\r', line)) => (line, true),
            _ => (line, false),
        };
        match self.state {
            State::ChunkSize | State::Trailers if !ended => {
                self.state = State::Lost;
                found(Found::BadChunk);
            }
            State::ChunkSize => match chunk_size(line) {
                Some(0) => self.state = State::Trailers,
                // With the CR LF after the chunk.
                Some(size) => self.state = State::Chunk(size.saturating_add(2)),
                None => {
                    self.state = State::Lost;
                    found(Found::BadChunk);
                }
            },
            State::Trailers if line.is_empty() => self.state = State::Head,
            State::Trailers | State::Length(_) | State::Chunk(_) | State::Lost => {}
            State::Head => {
                self.head.odd_line |= !ended;
                if line.is_empty() && self.started {
                    found(Found::Head(self.finish()));
                } else if !self.started {
                    // RFC 9112 section 2.2: empty lines before a request are ignored.
                    self.started = !line.is_empty();
                    // The parser drops a fragment, which has no place in a target (RFC 9112
                    // section 3.2). Others have taken it for a part of the path.
                    self.head.odd_line |= memchr(b'#', line).is_some();
                } else {
                    self.field(line);
                }
            }
        }
    }

    fn field(&mut self, line: &[u8]) {
        let Some(&first) = line.first() else { return };
        match first | 0x20 {
            b'c' => match field(line, b"content-length") {
                Some(Field::Itself(value)) => {
                    self.head.lengths = self.head.lengths.saturating_add(1);
                    self.length = number(value);
                }
                Some(Field::Alias) => self.head.odd_line = true,
                None => {}
            },
            b't' => match field(line, b"transfer-encoding") {
                Some(Field::Itself(_)) => {
                    self.head.encodings = self.head.encodings.saturating_add(1);
                }
                Some(Field::Alias) => self.head.odd_line = true,
                None => {}
            },
            _ => self.head.odd_line |= first == b' ' || first == b'\t',
        }
    }

    /// Ends a head and prepares for its body.
    fn finish(&mut self) -> Verdict {
        let head = std::mem::take(&mut self.head);
        let length = self.length.take();
        self.started = false;
        self.state = match (head.encodings, head.lengths, length) {
            (0, 0, _) | (0, _, Some(0)) => State::Head,
            (0, _, Some(length)) => State::Length(length),
            (0, _, None) => State::Lost,
            _ => State::ChunkSize,
        };
        head
    }
}

fn skip(bytes: &[u8], left: u64) -> (&[u8], u64) {
    let here = usize::try_from(left).unwrap_or(usize::MAX).min(bytes.len());
    let rest = bytes.get(here..).unwrap_or_default();
    (
        rest,
        left.saturating_sub(u64::try_from(here).unwrap_or(u64::MAX)),
    )
}

/// How a line names a field.
enum Field<'l> {
    /// By its name; with the value.
    Itself(&'l [u8]),
    /// By a name that some servers take for it, such as `Content_Length`.
    Alias,
}

/// Whether a line is a field of this name. A space before the colon is not taken for part of the
/// name: hyper refuses that.
fn field<'l>(line: &'l [u8], name: &[u8]) -> Option<Field<'l>> {
    // The colon first: it turns away almost every other field by one byte.
    if line.get(name.len()) != Some(&b':') {
        return None;
    }
    let (found, rest) = line.split_at_checked(name.len())?;
    if found.eq_ignore_ascii_case(name) {
        return rest.get(1..).map(|value| Field::Itself(value.trim_ascii()));
    }
    let alike = |(found, wanted): (&u8, &u8)| {
        found.eq_ignore_ascii_case(wanted) || (*wanted == b'-' && !found.is_ascii_alphanumeric())
    };
    found.iter().zip(name).all(alike).then_some(Field::Alias)
}

fn number(value: &[u8]) -> Option<u64> {
    if value.is_empty() || !value.iter().all(u8::is_ascii_digit) {
        return None;
    }
    std::str::from_utf8(value).ok()?.parse().ok()
}

/// The size in the line before a chunk. Extensions (RFC 9112 section 7.1.1) are passed over; white
/// space before them, which the section only tolerates, is not taken.
fn chunk_size(line: &[u8]) -> Option<u64> {
    let end = line
        .iter()
        .position(|b| !b.is_ascii_hexdigit())
        .unwrap_or(line.len());
    let (digits, rest) = line.split_at_checked(end)?;
    if !(rest.is_empty() || rest.starts_with(b";")) || rest.contains(&b'\r') {
        return None;
    }
    u64::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Whether each head in `stream` is unambiguous, read in pieces of `step` bytes.
    fn heads(stream: &str, step: usize) -> Vec<bool> {
        let mut framing = Framing::default();
        let mut found = Vec::new();
        for piece in stream.as_bytes().chunks(step) {
            framing.scan(piece, |what| match what {
                Found::Head(verdict) => found.push(verdict.fits(verdict.encodings > 0)),
                Found::BadChunk => found.push(false),
            });
        }
        found
    }

    const GET: &str = "GET / HTTP/1.1\r\nHost: a\r\n\r\n";

    #[test]
    fn two_lengths_are_seen_in_any_order_and_spelling_and_cut_anywhere() {
        for (fields, fits) in [
            ("Content-Length: 5\r\n", true),
            ("Transfer-Encoding: chunked\r\n", true),
            ("Content-Length: 5\r\nTransfer-Encoding: chunked\r\n", false),
            ("Transfer-Encoding: chunked\r\nContent-Length: 5\r\n", false),
            ("tRANSFER-eNCODING:chunked\r\ncONTENT-lENGTH:5\r\n", false),
            ("Content-Length: 5\r\nContent-Length: 5\r\n", false),
            (
                "Transfer-Encoding: x\r\nTransfer-Encoding: chunked\r\n",
                false,
            ),
            (
                "X: content-length: 5\r\nTransfer-Encoding: chunked\r\n",
                true,
            ),
            (
                "Content-Length-X: 5\r\nTransfer-Encoding: chunked\r\n",
                true,
            ),
            ("Content_Length: 5\r\n", false),
            ("transfer.encoding: chunked\r\n", false),
            ("Content-Lengths: 5\r\n", true),
            ("X: 1\n", false),
            ("X: 1\r\n folded\r\n", false),
        ] {
            let stream = format!("POST / HTTP/1.1\r\nHost: a\r\n{fields}\r\n");
            for step in [1, 2, 3, 7, 4096] {
                assert_eq!(heads(&stream, step), [fits], "{fields:?} by {step}");
            }
        }
    }

    #[test]
    fn bodies_are_not_mistaken_for_heads() {
        let body = "Content-Length: 5\r\n\r\n";
        let chunked = "POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n";
        let stream = format!(
            "{GET}POST / HTTP/1.1\r\nContent-Length: {}\r\n\r\n{body}{chunked}{:x};ext=1\r\n{body}\r\n\
             0\r\nContent-Length: 9\r\n\r\n{chunked}0\r\n\r\n\r\n{GET}",
            body.len(),
            body.len(),
        );
        for step in 1..40 {
            assert_eq!(heads(&stream, step), [true; 5], "by {step}");
        }
    }

    #[test]
    fn chunks_that_others_may_read_differently_are_seen() {
        for (chunks, fits) in [
            ("1\r\na\r\n0\r\n\r\n", true),
            ("00001;x=\"y\"\r\na\r\n0\r\n\r\n", true),
            ("1 \r\na\r\n0\r\n\r\n", false),
            ("1\t;x\r\na\r\n0\r\n\r\n", false),
            ("1\na\r\n0\r\n\r\n", false),
            ("1;\rx\r\na\r\n0\r\n\r\n", false),
            ("0x1\r\na\r\n0\r\n\r\n", false),
            ("+1\r\na\r\n0\r\n\r\n", false),
            ("\r\na\r\n0\r\n\r\n", false),
            ("fffffffffffffffff\r\na", false),
            ("0\r\nx: y\n\r\n", false),
        ] {
            let stream = format!("POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n{chunks}");
            let expected: &[bool] = if fits { &[true] } else { &[true, false] };
            for step in [1, 3, 4096] {
                assert_eq!(heads(&stream, step), expected, "{chunks:?} by {step}");
            }
        }
    }

    #[test]
    fn a_target_with_a_fragment_is_refused_and_a_field_with_a_hash_is_not() {
        assert_eq!(
            heads("GET /a#/b HTTP/1.1\r\nHost: a\r\n\r\n", 4096),
            [false]
        );
        assert_eq!(heads("GET /a?x#y HTTP/1.1\r\nHost: a\r\n\r\n", 3), [false]);
        assert_eq!(
            heads("GET /a HTTP/1.1\r\nHost: a\r\nX: #\r\nC#: y\r\n\r\n", 5),
            [true]
        );
    }

    #[test]
    fn a_head_is_open_from_its_first_byte_to_its_last() {
        let mut framing = Framing::default();
        for (index, byte) in GET.bytes().enumerate() {
            framing.scan(&[byte], |_| {});
            assert_eq!(framing.mid_head(), index + 1 < GET.len());
        }
        framing.scan(b"POST / HTTP/1.1\r\nContent-Length: 3\r\n\r\nab", |_| {});
        assert!(!framing.mid_head() && framing.mid_body());
        framing.scan(b"cG", |_| {});
        assert!(framing.mid_head() && !framing.mid_body());
    }

    #[test]
    fn disagreement_with_the_parser_is_a_refusal() {
        let verdict = Verdict::default();
        assert!(verdict.fits(false));
        assert!(!verdict.fits(true));
        // After a length that cannot be read nothing is followed any more.
        let stream = format!("POST / HTTP/1.1\r\nContent-Length: x\r\n\r\n{GET}");
        assert_eq!(heads(&stream, 4096).len(), 1);
    }

    proptest! {
        #[test]
        fn cutting_the_stream_elsewhere_changes_nothing(
            stream in "(GET|POST) / HTTP/1.1\r?\n((Content-Length: [0-9]|Transfer-Encoding: chunked|X: y)\r\n){0,3}\r\n[0-9a-f]?(\r\n)?[a-z]{0,9}(\r\n){0,3}0?(\r\n){0,3}(GET / HTTP/1.1\r\n\r\n)?",
            step in 1usize..9,
        ) {
            prop_assert_eq!(heads(&stream, step), heads(&stream, 4096));
        }
    }
}
