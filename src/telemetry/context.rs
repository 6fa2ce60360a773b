//! W3C trace context: read strictly, for what is read is sent on under our name.

use std::fmt;
use std::str::FromStr;

use http::{HeaderMap, HeaderName};

use crate::request::{hex, scan};

/// Longest `tracestate` that is handed on (W3C Trace Context section 3.3.1.1).
const MAX_STATE: usize = 512;

const PARENT: HeaderName = HeaderName::from_static("traceparent");
const STATE: HeaderName = HeaderName::from_static("tracestate");

/// `N` lower-case hex digits, not all zero.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Hex<const N: usize>([u8; N]);

/// Names a trace.
pub type TraceId = Hex<32>;

/// Names a span in a trace.
pub type SpanId = Hex<16>;

impl<const N: usize> Hex<N> {
    /// The digits as text.
    pub fn as_str(&self) -> &str {
        // Digits are ASCII.
        str::from_utf8(&self.0).unwrap_or_default()
    }

    /// The digits as bytes.
    pub fn as_bytes(&self) -> &[u8; N] {
        &self.0
    }

    fn read(digits: &[u8]) -> Option<Self> {
        let digits: [u8; N] = digits.try_into().ok()?;
        (is_hex(&digits) && digits != [b'0'; N]).then_some(Self(digits))
    }
}

impl SpanId {
    fn random() -> Self {
        Self(hex(rand::random::<u64>().max(1)))
    }

    /// The upper half, as a number.
    pub(super) fn upper(&self) -> Option<u64> {
        let digits = self.as_str().get(..8)?;
        u64::from_str_radix(digits, 16).ok()
    }
}

impl TraceId {
    fn random() -> Self {
        let (upper, lower): (u64, u64) = rand::random();
        let mut digits = [b'0'; 32];
        let (first, second) = digits.split_at_mut(16);
        first.copy_from_slice(&hex(upper));
        second.copy_from_slice(&hex(lower.max(1)));
        Self(digits)
    }
}

impl<const N: usize> FromStr for Hex<N> {
    type Err = NotHex;

    fn from_str(text: &str) -> Result<Self, NotHex> {
        Self::read(text.as_bytes()).ok_or(NotHex(N))
    }
}

impl<const N: usize> fmt::Display for Hex<N> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl<const N: usize> fmt::Debug for Hex<N> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A text is no id of this length.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not {0} lower-case hex digits, or all of them zero")]
pub struct NotHex(usize);

/// A W3C trace context (<https://www.w3.org/TR/trace-context/>).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TraceContext {
    /// The whole trace.
    pub trace_id: TraceId,
    /// The span of the caller; `None` when we began the trace.
    pub parent_id: Option<SpanId>,
    /// Our own span.
    pub span_id: SpanId,
    /// Whether somebody records this trace.
    pub sampled: bool,
    /// `tracestate`, handed on as it came.
    pub state: Option<String>,
}

impl TraceContext {
    /// The caller's trace, or one that begins here. `chooses` says whether we record the span of
    /// this id.
    pub(super) fn of(headers: &HeaderMap, chooses: impl FnOnce(&SpanId) -> bool) -> Self {
        let span_id = SpanId::random();
        let sampled = chooses(&span_id);
        Self::continued(headers, span_id, sampled).unwrap_or_else(|| Self::begun(span_id, sampled))
    }

    /// A trace that begins here.
    fn begun(span_id: SpanId, sampled: bool) -> Self {
        Self {
            trace_id: TraceId::random(),
            parent_id: None,
            span_id,
            sampled,
            state: None,
        }
    }

    /// The caller's trace; `None` unless there is exactly one valid `traceparent`.
    fn continued(headers: &HeaderMap, span_id: SpanId, chosen: bool) -> Option<Self> {
        let mut values = headers.get_all(PARENT).iter();
        let value = values.next()?;
        if values.next().is_some() {
            return None;
        }
        let (trace_id, parent_id, flags) = parse(value.as_bytes())?;
        Some(Self {
            trace_id,
            parent_id: Some(parent_id),
            span_id,
            sampled: chosen || flags & 1 == 1,
            state: state(headers),
        })
    }

    /// The `traceparent` that names our span as the parent of what follows.
    pub fn traceparent(&self) -> [u8; 55] {
        let mut value = *b"00-00000000000000000000000000000000-0000000000000000-00";
        let put = |at: usize, value: &mut [u8], digits: &[u8]| {
            if let Some(place) = value.get_mut(at..at + digits.len()) {
                place.copy_from_slice(digits);
            }
        };
        put(3, &mut value, self.trace_id.as_bytes());
        put(36, &mut value, self.span_id.as_bytes());
        if self.sampled {
            put(54, &mut value, b"1");
        }
        value
    }
}

/// `version-traceid-parentid-flags` (section 3.2). A later version may have more behind the flags.
fn parse(value: &[u8]) -> Option<(TraceId, SpanId, u8)> {
    let (head, rest) = value.split_at_checked(55)?;
    let [v1, v2, b'-', ids @ .., b'-', f1, f2] = head else {
        return None;
    };
    let more_allowed = match [*v1, *v2] {
        [b'f', b'f'] => return None,
        [b'0', b'0'] => false,
        version => is_hex(&version).then_some(true)?,
    };
    let trace_id = TraceId::read(ids.get(..32)?)?;
    if ids.get(32) != Some(&b'-') {
        return None;
    }
    let parent_id = SpanId::read(ids.get(33..)?)?;
    if !is_hex(&[*f1, *f2]) {
        return None;
    }
    // Of the flags only the last bit means anything, and only the last digit has it.
    let flags = match f2 {
        b'0'..=b'9' => f2 - b'0',
        _ => f2 - b'a' + 10,
    };
    let end = match rest {
        [] => true,
        rest => more_allowed && rest.starts_with(b"-"),
    };
    end.then_some((trace_id, parent_id, flags))
}

fn is_hex(digits: &[u8]) -> bool {
    const DIGITS: [(u8, u8); 2] = [(b'0', b'9'), (b'a', b'f')];
    !scan::any_word(digits, |word| scan::outside(word, DIGITS))
}

/// All `tracestate` fields as one, if that is printable ASCII and not too long.
fn state(headers: &HeaderMap) -> Option<String> {
    let mut joined = String::new();
    for value in headers.get_all(STATE) {
        let value = value.to_str().ok()?.trim();
        if value.is_empty() {
            continue;
        }
        if !joined.is_empty() {
            joined.push(',');
        }
        joined.push_str(value);
        if joined.len() > MAX_STATE {
            return None;
        }
    }
    (!joined.is_empty()).then_some(joined)
}

#[cfg(test)]
mod tests {
    use super::*;

    const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
    const SPAN: &str = "00f067aa0ba902b7";

    fn read(values: &[&str]) -> Option<TraceContext> {
        let mut headers = HeaderMap::new();
        for value in values {
            headers.append(PARENT, value.parse().unwrap());
        }
        TraceContext::continued(&headers, "1111111111111111".parse().unwrap(), false)
    }

    #[test]
    fn valid_parents_are_continued() {
        let context = read(&[&format!("00-{TRACE}-{SPAN}-01")]).unwrap();
        assert_eq!(context.trace_id.as_str(), TRACE);
        assert_eq!(context.parent_id, Some(SPAN.parse().unwrap()));
        assert_eq!(context.span_id.as_str(), "1111111111111111");
        assert_eq!(
            context.traceparent(),
            format!("00-{TRACE}-1111111111111111-01").as_bytes()
        );
        assert!(context.sampled);
        assert!(!read(&[&format!("00-{TRACE}-{SPAN}-fe")]).unwrap().sampled);
        assert!(read(&[&format!("cc-{TRACE}-{SPAN}-01")]).is_some());
        assert!(read(&[&format!("cc-{TRACE}-{SPAN}-01-what")]).is_some());
    }

    #[test]
    fn anything_else_begins_a_new_trace() {
        let zero = "0".repeat(32);
        for bad in [
            String::new(),
            format!("ff-{TRACE}-{SPAN}-01"),
            format!("0-{TRACE}-{SPAN}-01"),
            format!("00-{TRACE}-{SPAN}-01-extra"),
            format!("00-{TRACE}-{SPAN}-01-"),
            format!("cc-{TRACE}-{SPAN}-01x"),
            format!("00-{}-{SPAN}-01", TRACE.to_uppercase()),
            format!("00-{zero}-{SPAN}-01"),
            format!("00-{TRACE}-{}-01", "0".repeat(16)),
            format!("00-{TRACE}-{SPAN}-1"),
            format!("00-{TRACE}-{SPAN}-0g"),
            format!("00-{TRACE}-{SPAN}"),
            format!("00_{TRACE}_{SPAN}_01"),
            format!(" 00-{TRACE}-{SPAN}-01"),
            format!("00-{TRACE}-{SPAN}-01é"),
            format!("00-{TRACE}_{SPAN}-01"),
            format!("00-{TRACE}-{SPAN}_01"),
            format!("0g-{TRACE}-{SPAN}-01"),
        ] {
            assert_eq!(read(&[&bad]), None, "{bad:?}");
        }
        let good = format!("00-{TRACE}-{SPAN}-01");
        assert_eq!(read(&[&good, &good]), None, "two of them");
        assert_eq!(read(&[]), None);
    }

    #[test]
    fn a_trace_that_begins_here_has_a_random_id() {
        let begin = || TraceContext::of(&HeaderMap::new(), |_| false);
        let (a, b) = (begin(), begin());
        assert!(TraceId::read(a.trace_id.as_bytes()).is_some());
        assert_ne!(a.trace_id, b.trace_id);
        assert_ne!(a.span_id, b.span_id);
        let parent = a.traceparent();
        assert!(parent.starts_with(b"00-") && parent.ends_with(b"-00"));
        assert_eq!(
            parse(&parent).map(|(trace, span, _)| (trace, span)),
            Some((a.trace_id, a.span_id))
        );
    }

    #[test]
    fn ids_are_lower_case_hex() {
        for number in [0, 1, 0x0123_4567_89ab_cdef, u64::MAX, 0xf0a0_9090_0f0f_0a0b] {
            assert_eq!(hex(number), format!("{number:016x}").as_bytes());
        }
        let id: SpanId = "00f067aa0ba902b7".parse().unwrap();
        assert_eq!(id.upper(), Some(0x00f0_67aa));
        for bad in [
            "",
            "00f067aa0ba902b",
            "0000000000000000",
            "00F067AA0BA902B7",
        ] {
            assert_eq!(bad.parse::<SpanId>(), Err(NotHex(16)), "{bad}");
        }
    }

    #[test]
    fn tracestate_is_handed_on_when_it_is_sane() {
        let with = |states: &[&str]| {
            let mut headers = HeaderMap::new();
            for value in states {
                headers.append(
                    STATE,
                    http::HeaderValue::from_bytes(value.as_bytes()).unwrap(),
                );
            }
            state(&headers)
        };
        assert_eq!(with(&["a=1", " b=2 "]).as_deref(), Some("a=1,b=2"));
        assert_eq!(with(&[""]), None);
        assert_eq!(with(&["a=é"]), None);
        assert!(with(&[&"a".repeat(512)]).is_some());
        assert_eq!(with(&[&"a".repeat(300), &"b".repeat(300)]), None);
    }
}
