//! The chunked coding (RFC 9112 section 7.1).

use bytes::{Buf, Bytes, BytesMut};
use http::HeaderMap;

use super::head::{self, Lines};

/// Longest line with the size of a chunk, its extensions included.
const MAX_SIZE_LINE: usize = 4 * 1024;
/// Most bytes of extensions in one body: they carry nothing that travels on.
const MAX_EXTENSIONS: usize = 16 * 1024;
/// Largest section of trailers, and most fields in it.
const MAX_TRAILERS: usize = 16 * 1024;
const MAX_TRAILER_FIELDS: usize = 64;

/// Where in a chunked body we are.
#[derive(Debug, Default)]
pub(super) struct Chunked {
    state: State,
    /// How far was looked for the end of the line that says how large the chunk is.
    seen: usize,
    extensions: usize,
}

#[derive(Debug, Default)]
enum State {
    #[default]
    Size,
    /// So much of the chunk is to come.
    Data(u64),
    /// The line break behind a chunk.
    Break,
    Trailers(Lines),
    /// Trailers that were read and not handed out yet.
    Fields(Box<HeaderMap>),
    End,
}

impl Chunked {
    /// Goes through what is no data, up to data, the end, or where more input is needed.
    pub(super) fn advance(&mut self, input: &mut BytesMut) -> Result<(), &'static str> {
        loop {
            match &mut self.state {
                State::Size => {
                    let Some(size) = self.size(input)? else {
                        return Ok(());
                    };
                    self.state = match size {
                        0 => State::Trailers(Lines::default()),
                        size => State::Data(size),
                    };
                }
                State::Break => match **input {
                    [b'\r', b'\n', ..] => {
                        input.advance(2);
                        self.state = State::Size;
                    }
                    [] | [b'\r'] => return Ok(()),
                    _ => return Err("a chunk is longer than it said"),
                },
                State::Trailers(lines) => {
                    let Some(end) = lines.end(input, MAX_TRAILERS, MAX_TRAILER_FIELDS)? else {
                        return Ok(());
                    };
                    let fields = lines.count();
                    let section = input.split_to(end);
                    self.state = State::End;
                    if fields > 0 {
                        let fields = head::trailers(&section.freeze())?;
                        self.state = State::Fields(Box::new(fields));
                    }
                }
                State::Data(_) | State::Fields(_) | State::End => return Ok(()),
            }
        }
    }

    /// A piece of data, if there is any.
    pub(super) fn data(&mut self, input: &mut BytesMut) -> Option<Bytes> {
        let State::Data(left) = &mut self.state else {
            return None;
        };
        let data = super::body::take(left, input)?;
        if *left == 0 {
            self.state = State::Break;
        }
        Some(data)
    }

    /// The rest of the body, if it is one chunk that was read already, with nothing behind it.
    pub(super) fn last(&mut self, input: &mut BytesMut) -> Option<Bytes> {
        let State::Data(left) = self.state else {
            return None;
        };
        let rest = input.get(usize::try_from(left).ok()?..)?;
        if rest != b"\r\n0\r\n\r\n" {
            return None;
        }
        let data = self.data(input);
        input.clear();
        self.state = State::End;
        data
    }

    /// The trailers, if they were read.
    pub(super) fn trailers(&mut self) -> Option<HeaderMap> {
        let State::Fields(fields) = &mut self.state else {
            return None;
        };
        let fields = std::mem::take(&mut **fields);
        self.state = State::End;
        Some(fields)
    }

    /// How much of the current chunk is to come.
    pub(super) fn left(&self) -> u64 {
        match self.state {
            State::Data(left) => left,
            State::Size | State::Break | State::Trailers(_) | State::Fields(_) | State::End => 0,
        }
    }

    pub(super) fn ended(&self) -> bool {
        matches!(self.state, State::End)
    }

    /// Reads the line before a chunk, if all of it is there.
    fn size(&mut self, input: &mut BytesMut) -> Result<Option<u64>, &'static str> {
        let unseen = input.get(self.seen..).unwrap_or_default();
        let Some(at) = memchr::memchr(b'\n', unseen) else {
            self.seen = input.len();
            if self.seen > MAX_SIZE_LINE {
                return Err("the line before a chunk is too long");
            }
            return Ok(None);
        };
        let end = self.seen + at;
        if end > MAX_SIZE_LINE {
            return Err("the line before a chunk is too long");
        }
        let line = input.get(..end).and_then(|line| line.strip_suffix(b"\r"));
        let line = line.ok_or("a line ends without CR")?;
        let digits = line.iter().take_while(|b| b.is_ascii_hexdigit()).count();
        let (digits, rest) = line.split_at_checked(digits).unwrap_or_default();
        let size = size(digits)?;
        // White space alone behind the size is against the grammar, but old servers pad with it.
        let extension = match head::trim(rest) {
            [] => &[],
            [b';', extension @ ..] => extension,
            _ => return Err("a chunk's size is not a number"),
        };
        let control = |b: &u8| (*b < b' ' && *b != b'\t') || *b == 0x7f;
        if extension.iter().any(control) {
            return Err("a chunk's extension has control bytes");
        }
        self.extensions += rest.len();
        if self.extensions > MAX_EXTENSIONS {
            return Err("its chunks have too many extensions");
        }
        input.advance(end + 1);
        self.seen = 0;
        Ok(Some(size))
    }
}

fn size(digits: &[u8]) -> Result<u64, &'static str> {
    if digits.is_empty() {
        return Err("a chunk has no size");
    }
    let mut size: u64 = 0;
    for digit in digits {
        let value = char::from(*digit).to_digit(16).unwrap_or_default();
        size = match size.checked_mul(16) {
            Some(size) => size | u64::from(value),
            None => return Err("a chunk is too large"),
        };
    }
    Ok(size)
}
