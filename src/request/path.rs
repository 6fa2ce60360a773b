//! The canonical path: one form in which a path is matched, judged and forwarded.
//!
//! The form is RFC 3986 section 6.2.2: unreserved characters are never percent-encoded, the hex
//! digits of what stays encoded are upper case. On top of it stand the forms that two servers have
//! been seen to read differently (`Ambiguities`). They are refused unless the route allows them by
//! name; allowing one means that its normal form is what we match, judge *and* forward.

use std::borrow::Cow;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Which forms a path was written in that another server may read differently.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Ambiguities {
    /// `//`: merged into one slash.
    pub empty_segments: bool,
    /// `.` or `..` as a segment, plain or encoded: resolved.
    pub dot_segments: bool,
    /// `%2F`: kept, and inside its segment.
    pub encoded_slash: bool,
    /// `;` in a segment (path parameters): kept.
    pub parameters: bool,
    /// `%25` followed by something that decodes once more: kept.
    pub double_encoding: bool,
}

/// Which ambiguous forms a route accepts; all are refused unless named.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct PathRules {
    /// Merge `//` into `/` before matching and forwarding.
    pub merge_slashes: bool,
    /// Resolve `.` and `..` before matching and forwarding.
    pub resolve_dot_segments: bool,
    /// Let `%2F` stand inside a segment.
    pub allow_encoded_slash: bool,
    /// Let `;` stand inside a segment.
    pub allow_parameters: bool,
    /// Let `%25` be followed by two hex digits.
    pub allow_double_encoding: bool,
}

impl PathRules {
    /// The first ambiguity that the route did not allow.
    ///
    /// # Errors
    /// A short name of the form that is refused.
    pub fn check(self, found: Ambiguities) -> Result<(), &'static str> {
        let rules = [
            (found.empty_segments, self.merge_slashes, "empty segment"),
            (found.dot_segments, self.resolve_dot_segments, "dot segment"),
            (
                found.encoded_slash,
                self.allow_encoded_slash,
                "encoded slash",
            ),
            (found.parameters, self.allow_parameters, "path parameter"),
            (
                found.double_encoding,
                self.allow_double_encoding,
                "double encoding",
            ),
        ];
        match rules.iter().find(|(found, allowed, _)| *found && !allowed) {
            Some((_, _, name)) => Err(name),
            None => Ok(()),
        }
    }
}

/// A path in canonical form; starts with `/`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CanonicalPath {
    text: String,
    ambiguities: Ambiguities,
}

impl CanonicalPath {
    /// Brings a path into canonical form.
    ///
    /// # Errors
    /// What cannot be read in one way even after normalising, by a short name.
    pub fn parse(raw: &str) -> Result<Self, &'static str> {
        if !raw.starts_with('/') {
            return Err("does not start with a slash");
        }
        if is_canonical(raw.as_bytes()) {
            return Ok(Self {
                text: raw.to_owned(),
                ambiguities: Ambiguities::default(),
            });
        }
        Self::normalised(raw)
    }

    fn normalised(raw: &str) -> Result<Self, &'static str> {
        let mut ambiguities = Ambiguities::default();
        let decoded = normalise(raw.as_bytes(), &mut ambiguities)?;
        let text = resolve(&decoded, &mut ambiguities)?;
        // A route may allow the slash. Servers that decode it would then see a dot segment that
        // nobody has judged.
        if ambiguities.encoded_slash && text.split('/').any(hides_dots) {
            return Err("dot segment behind an encoded slash");
        }
        Ok(Self { text, ambiguities })
    }

    /// The canonical bytes: what is matched and what is forwarded.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// The ambiguous forms that were found.
    pub fn ambiguities(&self) -> Ambiguities {
        self.ambiguities
    }

    /// The decoded segments: `/a/b%20c` has `a` and `b c`; `/` has none. A trailing slash gives a
    /// last, empty segment.
    pub fn segments(&self) -> impl Iterator<Item = String> + '_ {
        self.decoded().map(Cow::into_owned)
    }

    /// [`CanonicalPath::segments`], of which those that are written as they are read are not copied.
    pub fn decoded(&self) -> impl Iterator<Item = Cow<'_, str>> {
        self.as_written()
            .map(|segment| match segment.contains('%') {
                false => Cow::Borrowed(segment),
                true => Cow::Owned(decode(segment)),
            })
    }

    /// The segments as they stand in the path.
    pub fn as_written(&self) -> impl Iterator<Item = &str> {
        let mut rest = self.text.get(1..).filter(|rest| !rest.is_empty());
        std::iter::from_fn(move || {
            let left = rest?;
            // Segments are short.
            let Some(slash) = left.bytes().position(|byte| byte == b'/') else {
                rest = None;
                return Some(left);
            };
            rest = left.get(slash + 1..);
            left.get(..slash)
        })
    }
}

/// Whether a path, which starts with a slash, is plainly its own canonical form: nothing encoded, no
/// parameters, no segment that is empty or begins with a dot. Most paths are, and this is several
/// times cheaper than to normalise them; `false` says nothing.
fn is_canonical(raw: &[u8]) -> bool {
    let mut simple = true;
    let mut slash = 0;
    for &byte in raw {
        let kind = KINDS.get(usize::from(byte)).copied().unwrap_or_default();
        // Behind a slash there must be more than another slash, or a dot.
        simple &= kind > slash;
        slash = kind & SLASH;
    }
    simple
}

/// What may stand in a simple path; see [`is_canonical`].
const SLASH: u8 = 2;
#[expect(clippy::indexing_slicing, reason = "at compile time, below 256")]
const KINDS: [u8; 256] = {
    let mut kinds = [0; 256];
    let mut byte = 0;
    while byte < 256 {
        #[expect(clippy::as_conversions, reason = "a constant below 256")]
        let kind = match byte as u8 {
            b'/' => SLASH,
            b'.' => 1,
            b if unreserved(b) => 4,
            _ => 0,
        };
        kinds[byte] = kind;
        byte += 1;
    }
    kinds
};

/// Decodes a segment of a canonical path; the path was checked to decode to UTF-8.
pub(super) fn decode(segment: &str) -> String {
    let bytes = segment.as_bytes();
    if !bytes.contains(&b'%') {
        return segment.to_owned();
    }
    let mut out = Vec::with_capacity(bytes.len());
    let mut rest = bytes;
    while let Some((&byte, tail)) = rest.split_first() {
        match (byte, tail) {
            (b'%', [high, low, after @ ..]) => {
                out.push(hex(*high).unwrap_or(0) << 4 | hex(*low).unwrap_or(0));
                rest = after;
            }
            _ => {
                out.push(byte);
                rest = tail;
            }
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}

fn hex(digit: u8) -> Option<u8> {
    match digit {
        b'0'..=b'9' => Some(digit - b'0'),
        b'a'..=b'f' => Some(digit - b'a' + 10),
        b'A'..=b'F' => Some(digit - b'A' + 10),
        _ => None,
    }
}

const fn unreserved(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~')
}

/// `pchar` of RFC 3986 section 3.3, and the slash.
fn plain(byte: u8) -> bool {
    unreserved(byte)
        || matches!(
            byte,
            b'/' | b':'
                | b'@'
                | b'!'
                | b'$'
                | b'&'
                | b'\''
                | b'('
                | b')'
                | b'*'
                | b'+'
                | b','
                | b';'
                | b'='
        )
}

fn normalise(raw: &[u8], found: &mut Ambiguities) -> Result<String, &'static str> {
    let mut text = String::with_capacity(raw.len());
    // The bytes as a decoding server would see them, to check that they are UTF-8.
    let mut decoded = Vec::new();
    let mut rest = raw;
    while let Some((&byte, tail)) = rest.split_first() {
        if byte != b'%' {
            if byte == b'\\' {
                return Err("backslash");
            }
            if !plain(byte) {
                return Err("forbidden byte");
            }
            found.parameters |= byte == b';';
            text.push(char::from(byte));
            decoded.push(byte);
            rest = tail;
            continue;
        }
        let [high, low, after @ ..] = tail else {
            return Err("incomplete percent-encoding");
        };
        let (Some(h), Some(l)) = (hex(*high), hex(*low)) else {
            return Err("invalid percent-encoding");
        };
        let value = h << 4 | l;
        match value {
            0..=0x1f | 0x7f => return Err("encoded control byte"),
            b'\\' => return Err("encoded backslash"),
            b'/' => found.encoded_slash = true,
            b';' => found.parameters = true,
            _ => {}
        }
        if unreserved(value) {
            text.push(char::from(value));
        } else {
            text.push('%');
            text.push(char::from(high.to_ascii_uppercase()));
            text.push(char::from(low.to_ascii_uppercase()));
        }
        decoded.push(value);
        rest = after;
    }
    if std::str::from_utf8(&decoded).is_err() {
        return Err("not UTF-8");
    }
    // Looked for in the normal form, where `%25%32%65` has become `%252e`.
    found.double_encoding = text.split("%25").skip(1).any(
        |after| matches!(after.as_bytes(), [a, b, ..] if hex(*a).is_some() && hex(*b).is_some()),
    );
    Ok(text)
}

/// Merges empty segments and resolves dot segments (RFC 3986 section 5.2.4).
fn resolve(text: &str, found: &mut Ambiguities) -> Result<String, &'static str> {
    let segments = || text.get(1..).unwrap_or_default().split('/');
    let count = segments().count();
    // To servers that strip parameters first, `/;x/admin` is `//admin`.
    if segments().any(|segment| segment.starts_with(';') || segment.starts_with("%3B")) {
        return Err("segment of parameters alone");
    }
    let odd = |(index, segment): (usize, &str)| {
        (segment.is_empty() && index + 1 < count) || dots(segment).is_some()
    };
    if !segments().enumerate().any(odd) {
        return Ok(text.to_owned());
    }
    let mut kept: Vec<&str> = Vec::new();
    for (index, segment) in segments().enumerate() {
        let last = index + 1 == count;
        match dots(segment) {
            Some(Dots::One) => found.dot_segments = true,
            Some(Dots::Two) => {
                found.dot_segments = true;
                if kept.pop().is_none() {
                    return Err("dot segment above the root");
                }
            }
            None if segment.is_empty() && !last => {
                found.empty_segments = true;
                continue;
            }
            None => {
                kept.push(segment);
                continue;
            }
        }
        if last {
            kept.push("");
        }
    }
    Ok(format!("/{}", kept.join("/")))
}

enum Dots {
    One,
    Two,
}

/// A dot segment, with or without path parameters: `..;x` is one to servers that strip them first.
fn dots(segment: &str) -> Option<Dots> {
    let name = segment.split(';').next().unwrap_or_default();
    let name = name.split("%3B").next().unwrap_or_default();
    match name {
        "." => Some(Dots::One),
        ".." => Some(Dots::Two),
        _ => None,
    }
}

fn hides_dots(segment: &str) -> bool {
    segment.contains("%2F") && segment.split("%2F").any(|part| dots(part).is_some())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn canonical(raw: &str) -> String {
        CanonicalPath::parse(raw).unwrap().as_str().to_owned()
    }

    fn strict(raw: &str) -> Result<String, &'static str> {
        let path = CanonicalPath::parse(raw)?;
        PathRules::default().check(path.ambiguities())?;
        Ok(path.as_str().to_owned())
    }

    #[test]
    fn equivalent_spellings_have_one_form() {
        assert_eq!(strict("/%61dmin"), Ok("/admin".to_owned()));
        assert_eq!(strict("/a%7eb%2db"), Ok("/a~b-b".to_owned()));
        assert_eq!(strict("/caf%c3%a9"), Ok("/caf%C3%A9".to_owned()));
        assert_eq!(strict("/"), Ok("/".to_owned()));
        assert_eq!(strict("/a/"), Ok("/a/".to_owned()));
        assert_eq!(strict("/100%25"), Ok("/100%25".to_owned()));
    }

    #[test]
    fn ambiguous_paths_are_refused_by_default() {
        for raw in [
            "//admin",
            "/a//b",
            "/./a",
            "/a/..",
            "/a/../b",
            "/%2e%2e/a",
            "/.%2e/a",
            "/a%2Fb",
            "/a%2fb",
            "/a\\b",
            "/a%5cb",
            "/a%00",
            "/a%0ab",
            "/a;b",
            "/..;/admin",
            "/a%3bb",
            "/%252e%252e/",
            "/%25%32%65",
            "/a%252fb",
            "/%c0%ae",
            "/%ff",
            "/a%",
            "/a%2",
            "/a%zz",
            "/a b",
            "/\u{e9}",
            "/a|b",
            "a",
            "",
            "*",
            "/../a",
        ] {
            assert!(strict(raw).is_err(), "{raw:?} gave {:?}", strict(raw));
        }
    }

    #[test]
    fn allowed_forms_are_forwarded_as_they_were_matched() {
        assert_eq!(canonical("//a///b"), "/a/b");
        assert_eq!(canonical("/a/./b/../c"), "/a/c");
        assert_eq!(canonical("/a/.."), "/");
        assert_eq!(canonical("/a/b/.."), "/a/");
        assert_eq!(canonical("/a%2fb"), "/a%2Fb");
        assert_eq!(canonical("/a%2f..b"), "/a%2F..b");
        for raw in [
            "/x/..%2fadmin",
            "/x%2f%2e%2e/admin",
            "/x%2f.%2fy",
            "/x%2f..;a/y",
        ] {
            let refused = Err("dot segment behind an encoded slash");
            assert_eq!(CanonicalPath::parse(raw), refused, "{raw}");
        }
        for raw in ["/;/admin", "/;x=1/admin", "/a/%3bx/b", "/a/;"] {
            assert!(CanonicalPath::parse(raw).is_err(), "{raw}");
        }
        assert_eq!(
            CanonicalPath::parse("/.."),
            Err("dot segment above the root")
        );
    }

    #[test]
    fn segments_are_split_before_they_are_decoded() {
        let path = CanonicalPath::parse("/a%2Fb/c%20d").unwrap();
        assert_eq!(path.segments().collect::<Vec<_>>(), ["a/b", "c d"]);
        assert_eq!(CanonicalPath::parse("/").unwrap().segments().count(), 0);
    }

    proptest! {
        #[test]
        fn the_short_way_is_taken_only_where_nothing_is_to_be_done(raw in "/([a-zA-Z0-9._~/%;-]|%2e|//|/\\.){0,12}") {
            if is_canonical(raw.as_bytes()) {
                prop_assert_eq!(CanonicalPath::parse(&raw), CanonicalPath::normalised(&raw));
                let path = CanonicalPath::parse(&raw).unwrap();
                prop_assert_eq!(path.as_str(), raw);
            }
        }

        #[test]
        fn canonical_form_is_a_fixed_point(raw in "/[a-c./%0-9A-F;:@~ -]{0,40}") {
            if let Ok(path) = CanonicalPath::parse(&raw) {
                let again = CanonicalPath::parse(path.as_str()).unwrap();
                prop_assert_eq!(again.as_str(), path.as_str());
            }
        }

        #[test]
        fn no_accepted_path_decodes_into_another_folder(raw in "/[a-c./%25eEfF;]{0,24}") {
            if let Ok(path) = strict(&raw) {
                prop_assert!(!path.contains("//"));
                let segments = CanonicalPath::parse(&path).unwrap().segments().collect::<Vec<_>>();
                prop_assert!(segments.iter().all(|s| s != "." && s != ".." && !s.contains('/')));
            }
        }
    }
}
