//! What a policy's yes changes of the request on its way to the upstream.

use std::borrow::Cow;
use std::collections::BTreeSet;

use http::{HeaderName, HeaderValue};

use crate::request::{Rules, is_forwarding, is_hop_by_hop, is_override};

/// Changes of a request that was allowed: made to what is forwarded, never to what is judged.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Edits {
    /// Headers that take the place of the client's; those of one name stand together.
    pub headers: Vec<(HeaderName, HeaderValue)>,
    /// Headers that do not go on.
    pub removed: Vec<HeaderName>,
    /// Parameters of the query that take the place of the client's, decoded.
    pub parameters: Vec<(String, String)>,
    /// Parameters that do not go on, decoded.
    pub parameters_removed: BTreeSet<String>,
}

/// Headers that the gateway writes itself, or that frame or address the message. Those of the
/// configuration are asked of [`Rules`].
const OURS: [&str; 7] = [
    "content-length",
    "expect",
    "host",
    "traceparent",
    "tracestate",
    "x-request-id",
    "proxy-authorization",
];

impl Edits {
    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.headers.is_empty()
            && self.removed.is_empty()
            && self.parameters.is_empty()
            && self.parameters_removed.is_empty()
    }

    /// Whether a header of the client's stays behind.
    pub fn replaces(&self, name: &HeaderName) -> bool {
        self.removed.contains(name) || self.headers.iter().any(|(known, _)| known == name)
    }

    /// Whether a header may be set or removed at all.
    pub(super) fn may_touch(name: &HeaderName) -> bool {
        let name = name.as_str();
        // Servers behind us may take `_` for `-`.
        let plain = name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-');
        plain
            && !OURS.contains(&name)
            && !is_hop_by_hop(name)
            && !is_forwarding(name)
            && !is_override(name)
            && !name.starts_with("sec-websocket-")
    }

    /// The first header in it that only the configuration may write.
    pub(super) fn overstep(&self, rules: &Rules) -> Option<&HeaderName> {
        let set = self.headers.iter().map(|(name, _)| name);
        set.chain(&self.removed)
            .find(|name| rules.owns(name.as_str()))
    }

    /// Whether the query is edited.
    pub fn has_query(&self) -> bool {
        !self.parameters.is_empty() || !self.parameters_removed.is_empty()
    }

    /// The query as it goes on; `None` when nothing is left of it. An edited query is written anew,
    /// each name and value percent-encoded in one way, so that no server parts it elsewhere.
    pub fn query<'q>(&self, query: Option<&'q str>) -> Option<Cow<'q, str>> {
        if !self.has_query() {
            return query.map(Cow::Borrowed);
        }
        let gone = |name: &[u8]| {
            std::str::from_utf8(name).is_ok_and(|name| {
                self.parameters_removed.contains(name)
                    || self.parameters.iter().any(|(set, _)| set == name)
            })
        };
        let mut out = String::new();
        let mut pair = |name: &[u8], value: Option<&[u8]>| {
            if !out.is_empty() {
                out.push('&');
            }
            encode(name, &mut out);
            if let Some(value) = value {
                out.push('=');
                encode(value, &mut out);
            }
        };
        let pairs = query.unwrap_or_default().split('&');
        for text in pairs.filter(|pair| !pair.is_empty()) {
            let (name, value) = match text.split_once('=') {
                Some((name, value)) => (name, Some(decode(value))),
                None => (text, None),
            };
            let name = decode(name);
            if !gone(&name) {
                pair(&name, value.as_deref());
            }
        }
        for (name, value) in &self.parameters {
            pair(name.as_bytes(), Some(value.as_bytes()));
        }
        (!out.is_empty()).then_some(Cow::Owned(out))
    }
}

/// As policies read it: `+` is a space, and a percent sign without two digits stands for itself.
fn decode(text: &str) -> Vec<u8> {
    let bytes = text.as_bytes();
    let digit = |at: usize| {
        let digit = char::from(*bytes.get(at)?).to_digit(16)?;
        u8::try_from(digit).ok()
    };
    let mut out = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while let Some(&byte) = bytes.get(at) {
        at += 1;
        match byte {
            b'+' => out.push(b' '),
            b'%' => match (digit(at), digit(at + 1)) {
                (Some(high), Some(low)) => {
                    out.push(high << 4 | low);
                    at += 2;
                }
                _ => out.push(b'%'),
            },
            other => out.push(other),
        }
    }
    out
}

/// Everything but the unreserved characters of RFC 3986 as `%XX`.
fn encode(bytes: &[u8], out: &mut String) {
    const DIGITS: &[u8; 16] = b"0123456789ABCDEF";
    for &byte in bytes {
        if byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~') {
            out.push(char::from(byte));
            continue;
        }
        out.push('%');
        for half in [byte >> 4, byte & 15] {
            out.push(
                DIGITS
                    .get(usize::from(half))
                    .copied()
                    .map_or('0', char::from),
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn edits(set: &[(&str, &str)], removed: &[&str]) -> Edits {
        Edits {
            parameters: set
                .iter()
                .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
                .collect(),
            parameters_removed: removed.iter().map(|name| (*name).to_owned()).collect(),
            ..Edits::default()
        }
    }

    #[test]
    fn an_untouched_query_goes_on_as_it_came() {
        let none = Edits::default();
        assert_eq!(
            none.query(Some("a=%7e&b=+;c")).as_deref(),
            Some("a=%7e&b=+;c")
        );
        assert_eq!(none.query(None), None);
    }

    #[test]
    fn an_edited_query_can_be_read_in_one_way() {
        for (query, expected) in [
            ("admin=1&x=2", Some("x=2&by=gw%26admin%3D1")),
            ("%61dmin=1&x=2", Some("x=2&by=gw%26admin%3D1")),
            ("x=1;admin=1", Some("x=1%3Badmin%3D1&by=gw%26admin%3D1")),
            (
                "x=%zz&flag&y=%c3%28",
                Some("x=%25zz&flag&y=%C3%28&by=gw%26admin%3D1"),
            ),
            ("by=other&by=more", Some("by=gw%26admin%3D1")),
            ("x=a+b", Some("x=a%20b&by=gw%26admin%3D1")),
        ] {
            let edits = edits(&[("by", "gw&admin=1")], &["admin"]);
            assert_eq!(edits.query(Some(query)).as_deref(), expected, "{query}");
        }
        assert_eq!(edits(&[], &["a"]).query(Some("a=1&a=2")), None);
        assert_eq!(
            edits(&[("a", "1")], &[]).query(None).as_deref(),
            Some("a=1")
        );
    }

    #[test]
    fn what_frames_or_names_the_request_cannot_be_touched() {
        for name in [
            "host",
            "content-length",
            "transfer-encoding",
            "connection",
            "te",
            "x-forwarded-for",
            "forwarded",
            "x-request-id",
            "traceparent",
            "x-original-url",
            "proxy-authorization",
            "x_user",
            "sec-websocket-key",
        ] {
            assert!(!Edits::may_touch(&HeaderName::from_static(name)), "{name}");
        }
        for name in ["authorization", "cookie", "x-tenant", "content-type"] {
            assert!(Edits::may_touch(&HeaderName::from_static(name)), "{name}");
        }
    }
}
