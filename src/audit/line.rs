//! The shape of a record, and how it becomes one line.

use std::borrow::Cow;
use std::io;
use std::time::{Duration, SystemTime};

use serde::Serialize;
use serde_json::ser::{Formatter, Serializer};
use time::OffsetDateTime;

/// One record as it is written; the module documentation of [`crate::audit`] explains each member.
#[derive(Debug, Default, Serialize)]
pub(super) struct Line<'a> {
    pub(super) version: u8,
    pub(super) time: String,
    pub(super) request_id: &'a str,
    pub(super) decision_id: Option<&'a str>,
    pub(super) trace_id: Option<&'a str>,
    pub(super) listener: &'a str,
    pub(super) client: String,
    pub(super) peer: String,
    pub(super) tls: Option<TlsPart<'a>>,
    pub(super) method: Cow<'a, str>,
    pub(super) host: Option<Cow<'a, str>>,
    pub(super) path: Cow<'a, str>,
    pub(super) query: Option<String>,
    pub(super) protocol: &'static str,
    pub(super) user_agent: Option<Cow<'a, str>>,
    pub(super) route: Option<&'a str>,
    pub(super) caller: Option<CallerPart<'a>>,
    pub(super) policy: Option<PolicyPart<'a>>,
    pub(super) decision: Option<&'static str>,
    pub(super) reason: Option<Cow<'a, str>>,
    pub(super) refusal: Option<RefusalPart<'a>>,
    pub(super) status: Option<u16>,
    pub(super) upstream: Option<&'a str>,
    pub(super) endpoint: Option<&'a str>,
    pub(super) attempts: u32,
    pub(super) bytes_in: u64,
    pub(super) bytes_out: u64,
    pub(super) duration_ms: Durations,
    pub(super) outcome: &'static str,
    pub(super) detail: Option<Cow<'a, str>>,
}

#[derive(Debug, Serialize)]
pub(super) struct TlsPart<'a> {
    pub(super) version: &'static str,
    pub(super) server_name: Option<Cow<'a, str>>,
    pub(super) certificate_sha256: Option<&'a str>,
}

#[derive(Debug, Serialize)]
pub(super) struct CallerPart<'a> {
    pub(super) method: &'static str,
    pub(super) issuer: Option<Cow<'a, str>>,
    pub(super) subject: Option<Cow<'a, str>>,
    pub(super) client: Option<Cow<'a, str>>,
    pub(super) token_id: Option<Cow<'a, str>>,
}

#[derive(Debug, Serialize)]
pub(super) struct PolicyPart<'a> {
    pub(super) name: &'a str,
    pub(super) revision: &'a str,
}

#[derive(Debug, Serialize)]
pub(super) struct RefusalPart<'a> {
    pub(super) code: &'static str,
    pub(super) detail: Cow<'a, str>,
}

/// Milliseconds since the head of the request was read.
#[derive(Debug, Default, Serialize)]
pub(super) struct Durations {
    pub(super) decision: Option<f64>,
    pub(super) head: Option<f64>,
    pub(super) total: f64,
}

impl Line<'_> {
    /// The record as one line of ASCII, with its line break.
    pub(super) fn to_text(&self) -> String {
        let mut line = Vec::with_capacity(1024);
        let mut serializer = Serializer::with_formatter(&mut line, Ascii);
        if self.serialize(&mut serializer).is_err() {
            // Cannot happen with these types; a marked gap is better than a torn line.
            line = b"{\"version\":0}".to_vec();
        }
        line.push(b'\n');
        String::from_utf8_lossy(&line).into_owned()
    }
}

/// JSON in which everything but printable ASCII is escaped: no control byte, no line separator
/// (U+2028, U+0085), no right-to-left override reaches a terminal or a log shipper that splits lines
/// its own way (CVE-2024-45808 is such an injection).
#[derive(Debug)]
struct Ascii;

impl Formatter for Ascii {
    fn write_string_fragment<W>(&mut self, writer: &mut W, fragment: &str) -> io::Result<()>
    where
        W: ?Sized + io::Write,
    {
        let plain = |c: char| c.is_ascii() && !c.is_ascii_control();
        let mut rest = fragment;
        while let Some(at) = rest.find(|c| !plain(c)) {
            let (before, odd) = rest.split_at(at);
            writer.write_all(before.as_bytes())?;
            let mut odd = odd.chars();
            if let Some(c) = odd.next() {
                for unit in c.encode_utf16(&mut [0; 2]) {
                    write!(writer, "\\u{unit:04x}")?;
                }
            }
            rest = odd.as_str();
        }
        writer.write_all(rest.as_bytes())
    }
}

/// A text of at most `most` bytes, with a mark that says how much was cut.
pub(super) fn clip(text: &str, most: usize) -> Cow<'_, str> {
    if text.len() <= most {
        return Cow::Borrowed(text);
    }
    let keep = text.floor_char_boundary(most);
    let kept = text.get(..keep).unwrap_or_default();
    Cow::Owned(format!("{kept}[+{} bytes]", text.len() - keep))
}

/// RFC 3339 with milliseconds, in UTC.
pub(super) fn timestamp(at: SystemTime) -> String {
    let at = OffsetDateTime::from(at);
    format!(
        "{:04}-{:02}-{:02}T{:02}:{:02}:{:02}.{:03}Z",
        at.year(),
        u8::from(at.month()),
        at.day(),
        at.hour(),
        at.minute(),
        at.second(),
        at.millisecond()
    )
}

/// Milliseconds with three decimals.
pub(super) fn millis(span: Duration) -> f64 {
    let micros = u32::try_from(span.as_micros()).unwrap_or(u32::MAX);
    f64::from(micros) / 1000.0
}

/// A query whose values cannot be read any more: `token=abc&x` becomes `token=*&*`. A part without
/// `=` is masked whole, for it may be a value as well as a name.
pub(super) fn mask(query: &str) -> String {
    let masked: Vec<Cow<'_, str>> = query
        .split('&')
        .map(|part| match part.split_once('=') {
            Some((name, _)) => Cow::Owned(format!("{name}=*")),
            None if part.is_empty() => Cow::Borrowed(""),
            None => Cow::Borrowed("*"),
        })
        .collect();
    masked.join("&")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_in_a_line_can_end_it_or_move_a_terminal() {
        let evil = "a\r\nb\u{1b}[31m\u{7f}\u{85}\u{2028}\u{202e}\0\"\\é😀";
        let line = Line {
            request_id: evil,
            path: evil.into(),
            ..Line::default()
        };
        let text = line.to_text();
        assert!(text.ends_with("}\n"));
        assert!(
            text.trim_end_matches('\n')
                .bytes()
                .all(|b| (0x20..0x7f).contains(&b)),
            "{text:?}"
        );
        let read: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!(read["request_id"], evil);
        assert_eq!(read["path"], evil);
    }

    #[test]
    fn long_texts_are_cut_and_say_so() {
        assert_eq!(clip("short", 5), "short");
        assert_eq!(clip("longer", 5), "longe[+1 bytes]");
        assert_eq!(clip("aé", 2), "a[+2 bytes]");
    }

    #[test]
    fn values_of_a_query_are_masked() {
        assert_eq!(mask("token=abc&x&&a=b=c&=s"), "token=*&*&&a=*&=*");
        assert_eq!(mask(""), "");
    }

    #[test]
    fn times_are_rfc_3339_with_milliseconds() {
        let at = SystemTime::UNIX_EPOCH + Duration::from_millis(1_795_224_725_042);
        assert_eq!(timestamp(at), "2026-11-21T01:32:05.042Z");
        assert_eq!(
            timestamp(SystemTime::UNIX_EPOCH),
            "1970-01-01T00:00:00.000Z"
        );
        assert!((millis(Duration::from_micros(1_234)) - 1.234).abs() < 1e-9);
    }
}
