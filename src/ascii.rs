//! JSON in ASCII, written by hand to the end of a buffer.
//!
//! Everything but printable ASCII is escaped: no control byte, no line separator (U+2028, U+0085), no
//! right-to-left override reaches a terminal or a log shipper that splits lines its own way
//! (CVE-2024-45808 is such an injection). A document has one form here, its canonical one: members in
//! the order of their names, no blanks, numbers as `serde_json` writes them; so equal documents are
//! equal bytes.

use std::cell::Cell;
use std::net::{IpAddr, SocketAddr};
use std::time::SystemTime;

use crate::document::{self, Value};
use crate::request::scan::Odd;

/// These bytes, as they are.
// Inlined, so that what is constant is written by moves instead of a call.
#[inline(always)]
pub fn raw(out: &mut Vec<u8>, bytes: &[u8]) {
    out.extend_from_slice(bytes);
}

/// A text in quotation marks, escaped where that is needed.
#[inline]
pub fn text(out: &mut Vec<u8>, value: &str) {
    text_known(out, value, false);
}

/// [`text`], of which it may be known that it needs no escape.
pub fn text_known(out: &mut Vec<u8>, value: &str, known_plain: bool) {
    out.reserve(value.len() + 2);
    out.push(b'"');
    inner(out, value, known_plain);
    out.push(b'"');
}

/// What stands between the quotation marks.
#[inline]
pub fn inner(out: &mut Vec<u8>, value: &str, known_plain: bool) {
    if known_plain || plain(value.as_bytes()) {
        raw(out, value.as_bytes());
    } else {
        escaped(out, value);
    }
}

/// A text, or `null`.
#[inline]
pub fn maybe(out: &mut Vec<u8>, value: Option<&str>) {
    match value {
        Some(value) => text(out, value),
        None => raw(out, b"null"),
    }
}

#[cold]
fn escaped(out: &mut Vec<u8>, value: &str) {
    for c in value.chars() {
        match c {
            '"' => raw(out, b"\\\""),
            '\\' => raw(out, b"\\\\"),
            '\n' => raw(out, b"\\n"),
            '\r' => raw(out, b"\\r"),
            '\t' => raw(out, b"\\t"),
            '\u{8}' => raw(out, b"\\b"),
            '\u{c}' => raw(out, b"\\f"),
            ' '..='~' => out.extend(u8::try_from(c)),
            _ => escape(out, c),
        }
    }
}

fn escape(out: &mut Vec<u8>, c: char) {
    for unit in c.encode_utf16(&mut [0; 2]) {
        raw(out, b"\\u");
        let [high, low] = unit.to_be_bytes();
        for half in [high >> 4, high & 15, low >> 4, low & 15] {
            out.push(if half < 10 {
                b'0' + half
            } else {
                b'a' - 10 + half
            });
        }
    }
}

/// JSON of somebody else's; what is not ASCII in it stands in texts, and is escaped there. Line breaks
/// that stand between its values become blanks.
pub fn json(out: &mut Vec<u8>, json: &str) {
    for c in json.chars() {
        match c {
            ' '..='~' => out.extend(u8::try_from(c)),
            '\n' | '\r' | '\t' => out.push(b' '),
            _ => escape(out, c),
        }
    }
}

/// Whether nothing in it needs an escape.
#[inline]
pub fn plain(bytes: &[u8]) -> bool {
    const ODD: Odd = Odd {
        below: 0x20,
        from: Some(0x7f),
        also: *b"\"\\",
    };
    !ODD.any(bytes)
}

/// A whole number.
pub fn number(out: &mut Vec<u8>, number: u64) {
    raw(out, itoa::Buffer::new().format(number).as_bytes());
}

/// A number in exactly `N` digits.
#[inline]
pub fn padded<const N: usize>(mut number: u32) -> [u8; N] {
    let mut digits = [b'0'; N];
    for place in digits.iter_mut().rev() {
        *place += u8::try_from(number % 10).unwrap_or_default();
        number /= 10;
    }
    digits
}

/// An address, without quotation marks.
pub fn address(out: &mut Vec<u8>, address: IpAddr) {
    match address {
        IpAddr::V4(address) => {
            let [a, b, c, d] = address.octets();
            number(out, a.into());
            for part in [b, c, d] {
                out.push(b'.');
                number(out, part.into());
            }
        }
        IpAddr::V6(address) => raw(out, address.to_string().as_bytes()),
    }
}

/// Address and port, without quotation marks.
pub fn peer(out: &mut Vec<u8>, peer: SocketAddr) {
    match peer {
        SocketAddr::V4(peer) => {
            address(out, IpAddr::V4(*peer.ip()));
            out.push(b':');
            number(out, peer.port().into());
        }
        SocketAddr::V6(peer) => raw(out, peer.to_string().as_bytes()),
    }
}

/// A time in UTC by RFC 3339, without quotation marks: with nanoseconds, but for zeros at the end, as
/// the document of policies has it. A time before 1970 shows as 1970.
pub fn instant(out: &mut Vec<u8>, at: SystemTime) {
    let since = at
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap_or_default();
    raw(out, &civil_now(since.as_secs()));
    let nanos = since.subsec_nanos();
    if nanos > 0 {
        let digits = padded::<9>(nanos);
        let zeros = digits.iter().rev().take_while(|d| **d == b'0').count();
        out.push(b'.');
        raw(out, digits.get(..digits.len() - zeros).unwrap_or_default());
    }
    out.push(b'Z');
}

/// [`civil`], remembered: most of what a thread writes down happened in the same second.
fn civil_now(seconds: u64) -> [u8; 19] {
    thread_local! {
        static LAST: Cell<(u64, [u8; 19])> = const { Cell::new((0, *b"1970-01-01T00:00:00")) };
    }
    LAST.with(|last| {
        let (second, written) = last.get();
        if second == seconds {
            return written;
        }
        let written = civil(seconds);
        last.set((seconds, written));
        written
    })
}

/// `2026-01-15T09:30:00` of so many seconds since 1970; years have four digits.
pub fn civil(seconds: u64) -> [u8; 19] {
    // Days since 1 March of the year 0, in eras of 400 years (Howard Hinnant's `civil_from_days`).
    let days = seconds / 86_400 + 719_468;
    let (era, day_of_era) = (days / 146_097, days % 146_097);
    let year_of_era =
        (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month + 2) / 5 + 1;
    let month = if month < 10 { month + 3 } else { month - 9 };
    let year = era * 400 + year_of_era + u64::from(month <= 2);
    let second = seconds % 86_400;
    let narrow = |number: u64| u32::try_from(number).unwrap_or_default();
    let [a, b, c, d] = padded(narrow(year));
    let [[e, f], [g, h], [i, j], [k, l], [m, n]] =
        [month, day, second / 3_600, second / 60 % 60, second % 60]
            .map(|part| padded(narrow(part)));
    [
        a, b, c, d, b'-', e, f, b'-', g, h, b'T', i, j, b':', k, l, b':', m, n,
    ]
}

/// A document in its canonical form. Sets are arrays, names that are no texts are written as texts of
/// their JSON, and what is undefined is `null`.
pub fn value(out: &mut Vec<u8>, document: &Value) {
    match document {
        Value::Null | Value::Undefined => raw(out, b"null"),
        Value::Bool(true) => raw(out, b"true"),
        Value::Bool(false) => raw(out, b"false"),
        Value::Number(number) => match number.as_u64() {
            // A zero may have a sign.
            Some(small @ 1..) if number.is_integer() => self::number(out, small),
            Some(_) | None => rare_number(out, document, number.as_f64()),
        },
        Value::String(text) => self::text(out, text),
        Value::Array(items) => list(out, items.iter()),
        Value::Set(items) => list(out, items.iter()),
        Value::Object(members) => {
            out.push(b'{');
            for (index, (name, member)) in members.iter_sorted().enumerate() {
                if index > 0 {
                    out.push(b',');
                }
                key(out, name);
                value(out, member);
            }
            out.push(b'}');
        }
    }
}

/// A number that is none of 64 bits without a sign.
fn rare_number(out: &mut Vec<u8>, document: &Value, fraction: Option<f64>) {
    let written = match fraction.filter(|fraction| fraction.fract() != 0.0) {
        // The engine goes through a text that is read again, not always as the same number.
        Some(fraction) => serde_json::to_string(&fraction),
        None => serde_json::to_string(document),
    };
    raw(out, written.as_deref().unwrap_or("null").as_bytes());
}

fn list<'v>(out: &mut Vec<u8>, items: impl Iterator<Item = &'v Value>) {
    out.push(b'[');
    for (index, item) in items.enumerate() {
        if index > 0 {
            out.push(b',');
        }
        value(out, item);
    }
    out.push(b']');
}

/// The name of a member, with its colon.
pub fn key(out: &mut Vec<u8>, name: &Value) {
    match document::text(name) {
        Some(name) => text(out, name),
        None => {
            let mut written = Vec::new();
            value(&mut written, name);
            text(out, &String::from_utf8_lossy(&written));
        }
    }
    out.push(b':');
}

/// [`value`] as a text of its own.
pub fn canonical(document: &Value) -> String {
    let mut out = Vec::new();
    value(&mut out, document);
    // It is ASCII.
    String::from_utf8(out).unwrap_or_default()
}

/// A member's name as a part of a JSON Pointer (RFC 6901) that stands in a text.
pub fn pointer_part(out: &mut Vec<u8>, name: &str) {
    if memchr::memchr2(b'~', b'/', name.as_bytes()).is_none() {
        return inner(out, name, false);
    }
    inner(out, &name.replace('~', "~0").replace('/', "~1"), false);
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::prelude::*;

    use super::*;
    use crate::document::from_json;

    fn by(write: impl FnOnce(&mut Vec<u8>)) -> String {
        let mut out = Vec::new();
        write(&mut out);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn every_text_is_read_back_as_it_was_wherever_the_odd_byte_stands() {
        for c in (0..0x180).chain([0x2028, 0x202e, 0xfeff, 0xffff, 0x1f600, 0x0010_ffff]) {
            let c = char::from_u32(c).unwrap();
            for before in 0..18 {
                let value = format!("{}{c}{}", "x".repeat(before), "y".repeat(17 - before));
                let text = by(|out| text(out, &value));
                assert!(text.bytes().all(|b| (0x20..0x7f).contains(&b)), "{text:?}");
                let read: String = serde_json::from_str(&text).unwrap();
                assert_eq!(read, value);
            }
        }
    }

    #[test]
    fn numbers_and_addresses_are_written_as_everywhere() {
        for value in [0, 9, 10, 99, 100, 65_535, u64::MAX] {
            assert_eq!(by(|out| number(out, value)), value.to_string());
        }
        for text in ["0.0.0.0", "255.10.9.100", "2001:db8::1"] {
            assert_eq!(by(|out| address(out, text.parse().unwrap())), text);
        }
        for text in ["192.0.2.1:65535", "[2001:db8::2]:1"] {
            assert_eq!(by(|out| peer(out, text.parse().unwrap())), text);
        }
    }

    fn json() -> impl Strategy<Value = serde_json::Value> {
        use serde_json::Value as Json;
        let leaf = prop_oneof![
            Just(Json::Null),
            any::<bool>().prop_map(Json::from),
            any::<u64>().prop_map(Json::from),
            any::<i64>().prop_map(Json::from),
            // With few enough digits to be read as they were written.
            any::<i32>().prop_map(|n| Json::from(f64::from(n) / 8.0)),
            ".*".prop_map(Json::from),
        ];
        leaf.prop_recursive(3, 32, 6, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..6).prop_map(Json::from),
                prop::collection::btree_map(".{0,6}", inner, 0..6)
                    .prop_map(|members| Json::Object(members.into_iter().collect())),
            ]
        })
    }

    proptest! {
        #[test]
        fn a_document_is_written_as_the_engine_writes_it_but_in_ascii(json in json()) {
            let value = from_json(json.to_string().as_bytes()).unwrap();
            let written = canonical(&value);
            prop_assert!(written.bytes().all(|b| (0x20..0x7f).contains(&b)));
            let theirs = serde_json::to_string(&value).unwrap();
            prop_assert_eq!(by(|out| super::json(out, &theirs)), written.clone());
            prop_assert_eq!(from_json(written.as_bytes()).unwrap(), value);
        }

        #[test]
        fn times_are_those_of_the_calendar(seconds in 0u64..18_446_744_073, nanos in 0u32..1_000_000_000) {
            use time::format_description::well_known::Rfc3339;
            for nanos in [nanos, nanos / 1_000_000 * 1_000_000, 0] {
                let at = SystemTime::UNIX_EPOCH + Duration::new(seconds, nanos);
                let theirs = time::OffsetDateTime::from(at).format(&Rfc3339).unwrap();
                prop_assert_eq!(by(|out| instant(out, at)), theirs);
            }
        }
    }
}
