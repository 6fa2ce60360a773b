//! W3C trace context: read strictly, for what is read is sent on under our name.

use http::{HeaderMap, HeaderName};

/// Longest `tracestate` that is handed on (W3C Trace Context section 3.3.1.1).
const MAX_STATE: usize = 512;

const PARENT: HeaderName = HeaderName::from_static("traceparent");
const STATE: HeaderName = HeaderName::from_static("tracestate");

/// A W3C trace context (<https://www.w3.org/TR/trace-context/>).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TraceContext {
    /// 32 lower-case hex digits, not all zero.
    pub trace_id: String,
    /// The span of the caller: 16 hex digits; `None` when we began the trace.
    pub parent_id: Option<String>,
    /// Our own span: 16 hex digits.
    pub span_id: String,
    /// Whether somebody records this trace.
    pub sampled: bool,
    /// `tracestate`, handed on as it came.
    pub state: Option<String>,
}

impl TraceContext {
    /// A trace that begins here.
    pub(super) fn begun(span_id: String, sampled: bool) -> Self {
        let trace_id = loop {
            let id: u128 = rand::random();
            if id != 0 {
                break format!("{id:032x}");
            }
        };
        Self {
            trace_id,
            parent_id: None,
            span_id,
            sampled,
            state: None,
        }
    }

    /// The caller's trace; `None` unless there is exactly one valid `traceparent`.
    pub(super) fn continued(headers: &HeaderMap, span_id: &str, chosen: bool) -> Option<Self> {
        let mut values = headers.get_all(PARENT).iter();
        let value = values.next()?.to_str().ok()?;
        if values.next().is_some() {
            return None;
        }
        let (trace_id, parent_id, flags) = parse(value)?;
        Some(Self {
            trace_id: trace_id.to_owned(),
            parent_id: Some(parent_id.to_owned()),
            span_id: span_id.to_owned(),
            sampled: chosen || flags & 1 == 1,
            state: state(headers),
        })
    }
}

/// `version-traceid-parentid-flags` (section 3.2). A later version may have more behind the flags.
fn parse(value: &str) -> Option<(&str, &str, u8)> {
    let version = value.get(..2).filter(|version| is_hex(version))?;
    let more_allowed = match version {
        "ff" => return None,
        "00" => false,
        _ => true,
    };
    let trace_id = value.get(3..35).filter(|id| is_id(id))?;
    let parent_id = value.get(36..52).filter(|id| is_id(id))?;
    let flags = value.get(53..55).filter(|flags| is_hex(flags))?;
    let dashes = [2, 35, 52]
        .iter()
        .all(|&at| value.as_bytes().get(at) == Some(&b'-'));
    let end = match value.get(55..)? {
        "" => true,
        rest => more_allowed && rest.starts_with('-'),
    };
    let flags = u8::from_str_radix(flags, 16).ok()?;
    (dashes && end).then_some((trace_id, parent_id, flags))
}

fn is_hex(text: &str) -> bool {
    text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
}

fn is_id(text: &str) -> bool {
    is_hex(text) && text.bytes().any(|b| b != b'0')
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
        TraceContext::continued(&headers, "1111111111111111", false)
    }

    #[test]
    fn valid_parents_are_continued() {
        let context = read(&[&format!("00-{TRACE}-{SPAN}-01")]).unwrap();
        assert_eq!(context.trace_id, TRACE);
        assert_eq!(context.parent_id.as_deref(), Some(SPAN));
        assert_eq!(context.span_id, "1111111111111111");
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
        ] {
            assert_eq!(read(&[&bad]), None, "{bad:?}");
        }
        let good = format!("00-{TRACE}-{SPAN}-01");
        assert_eq!(read(&[&good, &good]), None, "two of them");
        assert_eq!(read(&[]), None);
    }

    #[test]
    fn a_trace_that_begins_here_has_a_random_id() {
        let (a, b) = (
            TraceContext::begun(String::new(), false),
            TraceContext::begun(String::new(), false),
        );
        assert!(is_id(&a.trace_id) && a.trace_id.len() == 32);
        assert_ne!(a.trace_id, b.trace_id);
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
