//! Heads of answers: found, read, and what they say about where the body ends.

use bytes::Bytes;
use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::{StatusCode, Version};

use super::body::Incoming;
use super::chunked::Chunked;

/// How every answer begins.
const BEGINNING: &[u8] = b"HTTP/1.";
/// What is wrong with one that does not.
pub(super) const NOT_HTTP: &str = "its status line is not one of HTTP/1";

/// As far as the length of an answer depends on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::upstream) enum Method {
    /// Its answers have no body, whatever they say about one.
    Head,
    /// Every other that we forward.
    Other,
}

impl From<&http::Method> for Method {
    fn from(method: &http::Method) -> Self {
        match *method {
            http::Method::HEAD => Self::Head,
            _ => Self::Other,
        }
    }
}

/// The head of an answer.
#[derive(Debug)]
pub(in crate::upstream) struct Answer {
    pub(in crate::upstream) status: StatusCode,
    /// As sent, without `Transfer-Encoding`, and without `Connection` if that names nothing but
    /// `close` and `keep-alive`.
    pub(in crate::upstream) headers: HeaderMap,
    /// Whether there may be fields that end at this hop.
    pub(in crate::upstream) hops: bool,
}

/// A head and what follows from it for the connection.
#[derive(Debug)]
pub(super) struct Head {
    pub(super) answer: Answer,
    pub(super) incoming: Incoming,
    pub(super) lasting: bool,
}

/// Looks for the empty line behind which a head, or a section of trailers, ends. Every byte is
/// looked at once, however slowly they come.
#[derive(Debug, Default)]
pub(super) struct Lines {
    /// Where the line that is not complete yet begins.
    begin: usize,
    /// How far was looked.
    seen: usize,
    count: usize,
}

impl Lines {
    /// The end of the section, if it is there. `most` counts lines before the empty one.
    pub(super) fn end(
        &mut self,
        input: &[u8],
        size: usize,
        most: usize,
    ) -> Result<Option<usize>, &'static str> {
        while let Some(unseen) = input.get(self.seen..)
            && let Some(at) = memchr::memchr(b'\n', unseen)
        {
            let line = input.get(self.begin..self.seen + at).unwrap_or_default();
            let Some((b'\r', line)) = line.split_last() else {
                return Err("a line ends without CR");
            };
            self.seen += at + 1;
            self.begin = self.seen;
            if self.seen > size {
                break;
            }
            if line.is_empty() {
                return Ok(Some(self.seen));
            }
            self.count += 1;
            if self.count > most {
                return Err("it has too many fields");
            }
        }
        self.seen = self.seen.max(input.len());
        if self.seen > size {
            return Err("its head is too large");
        }
        Ok(None)
    }

    /// Whether nothing was looked at yet.
    pub(super) fn unseen(&self) -> bool {
        self.seen == 0
    }

    /// How many lines there were before the empty one.
    pub(super) fn count(&self) -> usize {
        self.count
    }
}

/// Whether this may be the beginning of an answer.
pub(super) fn begins(input: &[u8]) -> bool {
    let both = input.len().min(BEGINNING.len());
    input.get(..both) == BEGINNING.get(..both)
}

/// Reads a head up to and with its empty line; `fields` is how many it has.
pub(super) fn parse(head: &Bytes, fields: usize, method: Method) -> Result<Head, &'static str> {
    let (line, rest) = line(head).ok_or("it has no status line")?;
    let (version, status) = status(line)?;
    let mut seen = Seen::default();
    let mut headers = HeaderMap::with_capacity(fields);
    each_field(head, rest, |name, value| {
        if seen.keep(&name, &value)? {
            headers.append(name, value);
        }
        Ok(())
    })?;
    Head::new(version, status, headers, seen, method)
}

impl Head {
    /// What follows from a status line and from what was seen of all fields.
    pub(super) fn new(
        version: Version,
        status: StatusCode,
        headers: HeaderMap,
        seen: Seen,
        method: Method,
    ) -> Result<Self, &'static str> {
        Ok(Self {
            incoming: seen.incoming(version, status, method)?,
            lasting: !seen.close && (version == Version::HTTP_11 || seen.keep_alive),
            answer: Answer {
                status,
                headers,
                hops: seen.hops,
            },
        })
    }
}

/// Reads a section of trailers up to and with its empty line.
pub(super) fn trailers(section: &Bytes) -> Result<HeaderMap, &'static str> {
    let mut trailers = HeaderMap::new();
    each_field(section, section, |name, value| {
        trailers.append(name, value);
        Ok(())
    })?;
    Ok(trailers)
}

/// The first line, without its end, and what follows.
pub(super) fn line(input: &[u8]) -> Option<(&[u8], &[u8])> {
    let end = memchr::memchr(b'\n', input)?;
    let line = input.get(..end)?.strip_suffix(b"\r")?;
    Some((line, input.get(end + 1..)?))
}

/// RFC 9112 section 4. The space behind the code is often left out where there is no reason; the
/// reason itself travels no further.
pub(super) fn status(line: &[u8]) -> Result<(Version, StatusCode), &'static str> {
    let malformed = || NOT_HTTP;
    let rest = line.strip_prefix(BEGINNING).ok_or_else(malformed)?;
    let (minor, rest) = rest.split_first().ok_or_else(malformed)?;
    let version = match minor {
        b'0' => Version::HTTP_10,
        b'1' => Version::HTTP_11,
        _ => return Err(malformed()),
    };
    let rest = rest.strip_prefix(b" ").ok_or_else(malformed)?;
    let (code, reason) = rest.split_at_checked(3).ok_or_else(malformed)?;
    let status = StatusCode::from_bytes(code).map_err(|_| malformed())?;
    let control = |b: &u8| (*b < b' ' && *b != b'\t') || *b == 0x7f;
    match reason.split_first() {
        None => Ok((version, status)),
        Some((b' ', reason)) if !reason.iter().any(control) => Ok((version, status)),
        Some(_) => Err(malformed()),
    }
}

/// Reads the fields in `rest`, which is a part of `section` and ends with an empty line.
fn each_field(
    section: &Bytes,
    mut rest: &[u8],
    mut field: impl FnMut(HeaderName, HeaderValue) -> Result<(), &'static str>,
) -> Result<(), &'static str> {
    while let Some((line, more)) = line(rest)
        && !line.is_empty()
    {
        rest = more;
        let (name, value) = self::field(section, line)?;
        field(name, value)?;
    }
    Ok(())
}

/// Reads a field out of its line, which is a part of `section`, without its end.
pub(super) fn field(
    section: &Bytes,
    line: &[u8],
) -> Result<(HeaderName, HeaderValue), &'static str> {
    let colon = memchr::memchr(b':', line);
    let (name, rest) = colon
        .and_then(|colon| line.split_at_checked(colon))
        .ok_or("a field has no colon")?;
    // A name is a token: that rules out spaces before the colon, folded lines and empty names.
    let name = HeaderName::from_bytes(name).map_err(|_| "a field's name is not valid")?;
    let value = trim(rest.get(1..).unwrap_or_default());
    let value = HeaderValue::from_maybe_shared(section.slice_ref(value))
        .map_err(|_| "a field's value has control bytes")?;
    Ok((name, value))
}

/// Without spaces and tabs around it.
pub(super) fn trim(mut value: &[u8]) -> &[u8] {
    while let [b' ' | b'\t', rest @ ..] = value {
        value = rest;
    }
    while let [rest @ .., b' ' | b'\t'] = value {
        value = rest;
    }
    value
}

/// What the fields say about the message and the connection.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Seen {
    length: Option<u64>,
    chunked: bool,
    close: bool,
    keep_alive: bool,
    hops: bool,
}

impl Seen {
    /// Takes note of a field; `false` if it goes no further.
    pub(super) fn keep(
        &mut self,
        name: &HeaderName,
        value: &HeaderValue,
    ) -> Result<bool, &'static str> {
        if *name == header::CONTENT_LENGTH {
            if self.length.replace(length(value.as_bytes())?).is_some() {
                return Err("it gave several lengths");
            }
        } else if *name == header::TRANSFER_ENCODING {
            // Also refuses a second one: what is coded twice is not exactly `chunked`.
            if self.chunked || !value.as_bytes().eq_ignore_ascii_case(b"chunked") {
                return Err("it used an odd transfer encoding");
            }
            self.chunked = true;
            return Ok(false);
        } else if *name == header::CONNECTION {
            return Ok(self.connection(value.as_bytes()));
        } else if hop(name.as_str()) {
            self.hops = true;
        }
        Ok(true)
    }

    /// The one length that was given is this.
    pub(super) fn has_length(&mut self, value: &HeaderValue) -> Result<(), &'static str> {
        self.length = Some(length(value.as_bytes())?);
        Ok(())
    }

    /// `false` if the field names nothing but what is understood here.
    fn connection(&mut self, value: &[u8]) -> bool {
        let mut others = false;
        // Nobody knows what else it says.
        self.close |= !value.is_ascii();
        for option in value.split(|b| *b == b',').map(trim) {
            if option.eq_ignore_ascii_case(b"close") {
                self.close = true;
            } else if option.eq_ignore_ascii_case(b"keep-alive") {
                self.keep_alive = true;
            } else {
                others = true;
            }
        }
        self.hops |= others;
        others
    }

    /// RFC 9112 section 6.3.
    fn incoming(
        &self,
        version: Version,
        status: StatusCode,
        method: Method,
    ) -> Result<Incoming, &'static str> {
        if self.chunked && self.length.is_some() {
            return Err("it gave two lengths");
        }
        if self.chunked && version == Version::HTTP_10 {
            return Err("it used chunks in HTTP/1.0");
        }
        let bodiless = method == Method::Head
            || status.is_informational()
            || status == StatusCode::NO_CONTENT
            || status == StatusCode::NOT_MODIFIED;
        Ok(match self.length {
            _ if bodiless => Incoming::Nothing,
            _ if self.chunked => Incoming::Chunked(Chunked::default()),
            Some(0) => Incoming::Nothing,
            Some(length) => Incoming::Length(length),
            None => Incoming::UntilClose,
        })
    }
}

/// Whether fields of this name are for this hop only, or are not relayed for another reason.
fn hop(name: &str) -> bool {
    match name.len() {
        2 => name == "te",
        7 => name == "upgrade" || name == "trailer" || name == "alt-svc",
        10 => name == "keep-alive",
        14 => name == "http2-settings",
        _ => name.starts_with("proxy-"),
    }
}

/// A length: digits alone, and one value (RFC 9110 section 8.6).
fn length(value: &[u8]) -> Result<u64, &'static str> {
    let malformed = "its length is not a number";
    if value.is_empty() {
        return Err(malformed);
    }
    let mut length: u64 = 0;
    for byte in value {
        let digit = match byte {
            b'0'..=b'9' => u64::from(byte - b'0'),
            _ => return Err(malformed),
        };
        let longer = length.checked_mul(10).and_then(|l| l.checked_add(digit));
        match longer.filter(|length| i64::try_from(*length).is_ok()) {
            Some(longer) => length = longer,
            None => return Err("its length is too large"),
        }
    }
    Ok(length)
}
