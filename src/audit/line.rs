//! The shape of a record, and how it becomes one line.
//!
//! Written by hand straight into a page: a serialiser, a line of its own and its check as UTF-8 cost
//! more than the rest of a request's audit. Nothing here allocates but for texts that are cut.

use std::borrow::Cow;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, SystemTime};

use crate::ascii::{
    address, civil, json, number, padded, peer, raw, text as any_text, text_known as text,
};
use crate::authz::Edits;

/// One record as it is written; the module documentation of [`crate::audit`] explains each member.
#[derive(Debug)]
pub(super) struct Line<'a> {
    pub(super) time: SystemTime,
    /// `null` when the clock stands before 1970.
    pub(super) received_at_ns: Option<u64>,
    /// Ids of our own making are digits, and never looked at.
    pub(super) request_id: &'a [u8],
    pub(super) decision_id: Option<&'a [u8]>,
    pub(super) trace_id: Option<&'a [u8]>,
    pub(super) span_id: Option<&'a [u8]>,
    /// From `listener` to `tls`, written; see [`OriginPart`].
    pub(super) origin: Cow<'a, [u8]>,
    pub(super) method: Cow<'a, str>,
    pub(super) host: Option<Cow<'a, str>>,
    pub(super) path: Cow<'a, str>,
    pub(super) query: Option<Cow<'a, str>>,
    pub(super) protocol: &'static str,
    pub(super) user_agent: Option<Cow<'a, str>>,
    pub(super) route: Option<&'a str>,
    /// Written; see [`CallerPart`].
    pub(super) caller: Option<Cow<'a, [u8]>>,
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
    pub(super) duration: Durations,
    pub(super) outcome: &'static str,
    pub(super) detail: Option<Cow<'a, str>>,
    /// JSON of the policy's.
    pub(super) metadata: Option<&'a str>,
    pub(super) edits: Option<&'a Edits>,
    pub(super) asked: Asked<'a>,
    /// Whether no text above needs an escape; `false` when that is not known.
    pub(super) plain: bool,
}

/// What a record says of a connection.
#[derive(Debug)]
pub(super) struct OriginPart<'a> {
    pub(super) listener: &'a str,
    pub(super) client: IpAddr,
    pub(super) peer: SocketAddr,
    pub(super) tls: Option<TlsPart<'a>>,
}

#[derive(Debug)]
pub(super) struct TlsPart<'a> {
    pub(super) version: &'static str,
    pub(super) server_name: Option<Cow<'a, str>>,
    pub(super) certificate_sha256: Option<&'a str>,
}

#[derive(Debug)]
pub(super) struct CallerPart<'a> {
    pub(super) method: &'static str,
    pub(super) issuer: Option<Cow<'a, str>>,
    pub(super) subject: Option<Cow<'a, str>>,
    pub(super) client: Option<Cow<'a, str>>,
    pub(super) token_id: Option<Cow<'a, str>>,
}

/// The policy that was asked.
#[derive(Debug)]
pub(super) struct PolicyPart<'a> {
    /// The members from `name` to `bundles`, written.
    pub(super) written: &'a [u8],
    /// Whether the answer was kept from an earlier equal question.
    pub(super) cached: bool,
}

/// What it was asked, and what it said; JSON in ASCII.
#[derive(Debug, Default)]
pub(super) struct Asked<'a> {
    pub(super) answer: Option<&'a [u8]>,
    pub(super) answer_left_out: Option<&'a str>,
    pub(super) input: Option<&'a [u8]>,
    pub(super) input_left_out: Option<&'a str>,
    /// Items of lists, written: below `/input`, and below `/answer`.
    pub(super) masked: &'a [u8],
    pub(super) masked_answer: &'a [u8],
    pub(super) erased: &'a [u8],
}

#[derive(Debug)]
pub(super) struct RefusalPart<'a> {
    pub(super) code: &'static str,
    pub(super) detail: &'a str,
}

/// Times since the head of the request was read.
#[derive(Debug, Default)]
pub(super) struct Durations {
    pub(super) decision: Option<Duration>,
    /// Of the policy's evaluation alone.
    pub(super) policy: Option<Duration>,
    pub(super) head: Option<Duration>,
    pub(super) total: Duration,
}

impl Line<'_> {
    /// Appends the record as one line of ASCII, with its line break.
    pub(super) fn write(&self, out: &mut Vec<u8>, second: &mut Second) {
        let text = |out: &mut Vec<u8>, value: &str| text(out, value, self.plain);
        let maybe = |out: &mut Vec<u8>, value: Option<&str>| maybe(out, value, self.plain);
        raw(out, b"{\"version\":2,\"time\":\"");
        second.write(out, self.time);
        raw(out, b"\",\"received_at_ns\":");
        match self.received_at_ns {
            Some(nanoseconds) => number(out, nanoseconds),
            None => raw(out, b"null"),
        }
        raw(out, b",\"request_id\":\"");
        raw(out, self.request_id);
        raw(out, b"\",\"decision_id\":");
        id(out, self.decision_id);
        raw(out, b",\"trace_id\":");
        id(out, self.trace_id);
        raw(out, b",\"span_id\":");
        id(out, self.span_id);
        raw(out, b",");
        raw(out, &self.origin);
        raw(out, b",\"method\":");
        text(out, &self.method);
        raw(out, b",\"host\":");
        maybe(out, self.host.as_deref());
        raw(out, b",\"path\":");
        text(out, &self.path);
        raw(out, b",\"query\":");
        maybe(out, self.query.as_deref());
        raw(out, b",\"protocol\":\"");
        raw(out, self.protocol.as_bytes());
        raw(out, b"\",\"user_agent\":");
        maybe(out, self.user_agent.as_deref());
        raw(out, b",\"route\":");
        maybe(out, self.route);
        raw(out, b",\"caller\":");
        match &self.caller {
            None => raw(out, b"null"),
            Some(caller) => raw(out, caller),
        }
        raw(out, b",\"policy\":");
        match &self.policy {
            None => raw(out, b"null"),
            Some(policy) => {
                raw(out, b"{");
                raw(out, policy.written);
                raw(out, b",\"cached\":");
                raw(out, if policy.cached { b"true" } else { b"false" });
                raw(out, b"}");
            }
        }
        raw(out, b",\"decision\":");
        id(out, self.decision.map(str::as_bytes));
        raw(out, b",\"reason\":");
        maybe(out, self.reason.as_deref());
        raw(out, b",\"refusal\":");
        match &self.refusal {
            None => raw(out, b"null"),
            Some(refusal) => {
                raw(out, b"{\"code\":");
                text(out, refusal.code);
                raw(out, b",\"detail\":");
                text(out, refusal.detail);
                raw(out, b"}");
            }
        }
        self.write_end(out);
    }

    /// The members from `status` on.
    fn write_end(&self, out: &mut Vec<u8>) {
        let maybe = |out: &mut Vec<u8>, value: Option<&str>| maybe(out, value, self.plain);
        raw(out, b",\"status\":");
        match self.status {
            None => raw(out, b"null"),
            Some(status) => number(out, status.into()),
        }
        raw(out, b",\"upstream\":");
        maybe(out, self.upstream);
        raw(out, b",\"endpoint\":");
        maybe(out, self.endpoint);
        raw(out, b",\"attempts\":");
        number(out, self.attempts.into());
        raw(out, b",\"bytes_in\":");
        number(out, self.bytes_in);
        raw(out, b",\"bytes_out\":");
        number(out, self.bytes_out);
        raw(out, b",\"duration_ms\":{\"decision\":");
        span(out, self.duration.decision);
        raw(out, b",\"policy\":");
        span(out, self.duration.policy);
        raw(out, b",\"head\":");
        span(out, self.duration.head);
        raw(out, b",\"total\":");
        span(out, Some(self.duration.total));
        raw(out, b"},\"outcome\":\"");
        raw(out, self.outcome.as_bytes());
        raw(out, b"\",\"detail\":");
        maybe(out, self.detail.as_deref());
        if let Some(metadata) = self.metadata {
            raw(out, b",\"metadata\":");
            json(out, metadata);
        }
        if let Some(edits) = self.edits {
            write_edits(out, edits);
        }
        self.asked.write(out);
        raw(out, b"}\n");
    }
}

impl Asked<'_> {
    /// The last members: `answer` and `input` are the very last, so that a reader who does not want
    /// them cuts them off.
    fn write(&self, out: &mut Vec<u8>) {
        for (name, why) in [
            (&b",\"answer_left_out\":"[..], self.answer_left_out),
            (b",\"input_left_out\":", self.input_left_out),
        ] {
            if let Some(why) = why {
                raw(out, name);
                any_text(out, why);
            }
        }
        for (name, items, more) in [
            (&b",\"masked\":["[..], self.masked, self.masked_answer),
            (b",\"erased\":[", self.erased, b""),
        ] {
            if items.is_empty() && more.is_empty() {
                continue;
            }
            raw(out, name);
            raw(out, items);
            if !items.is_empty() && !more.is_empty() {
                out.push(b',');
            }
            raw(out, more);
            out.push(b']');
        }
        raw(out, b",\"answer\":");
        raw(out, self.answer.unwrap_or(b"null"));
        raw(out, b",\"input\":");
        raw(out, self.input.unwrap_or(b"null"));
    }
}

impl OriginPart<'_> {
    /// The members as they are written.
    pub(super) fn written(&self) -> Vec<u8> {
        let mut out = Vec::new();
        raw(&mut out, b"\"listener\":");
        text(&mut out, self.listener, false);
        raw(&mut out, b",\"client\":\"");
        address(&mut out, self.client);
        raw(&mut out, b"\",\"peer\":\"");
        peer(&mut out, self.peer);
        raw(&mut out, b"\",\"tls\":");
        match &self.tls {
            None => raw(&mut out, b"null"),
            Some(tls) => tls.write(&mut out),
        }
        out
    }
}

impl TlsPart<'_> {
    fn write(&self, out: &mut Vec<u8>) {
        let maybe = |out: &mut Vec<u8>, value: Option<&str>| maybe(out, value, false);
        raw(out, b"{\"version\":\"");
        raw(out, self.version.as_bytes());
        raw(out, b"\",\"server_name\":");
        maybe(out, self.server_name.as_deref());
        raw(out, b",\"certificate_sha256\":");
        maybe(out, self.certificate_sha256);
        raw(out, b"}");
    }
}

impl CallerPart<'_> {
    /// The object as it is written.
    pub(super) fn written(&self) -> Vec<u8> {
        let mut out = Vec::new();
        self.write(&mut out);
        out
    }

    fn write(&self, out: &mut Vec<u8>) {
        let maybe = |out: &mut Vec<u8>, value: Option<&str>| maybe(out, value, false);
        raw(out, b"{\"method\":\"");
        raw(out, self.method.as_bytes());
        raw(out, b"\",\"issuer\":");
        maybe(out, self.issuer.as_deref());
        raw(out, b",\"subject\":");
        maybe(out, self.subject.as_deref());
        raw(out, b",\"client\":");
        maybe(out, self.client.as_deref());
        raw(out, b",\"token_id\":");
        maybe(out, self.token_id.as_deref());
        raw(out, b"}");
    }
}

/// What a policy changed of the request: names alone, for values may be secrets.
fn write_edits(out: &mut Vec<u8>, edits: &Edits) {
    let mut list = |name: &[u8], names: &mut dyn Iterator<Item = &str>| {
        raw(out, name);
        raw(out, b":[");
        for (index, name) in names.enumerate() {
            if index > 0 {
                out.push(b',');
            }
            text(out, name, false);
        }
        out.push(b']');
    };
    let set = edits.headers.iter().map(|(name, _)| name.as_str());
    list(b",\"edits\":{\"headers\"", &mut set.clone());
    let removed = edits.removed.iter().map(http::HeaderName::as_str);
    list(b",\"headers_removed\"", &mut removed.clone());
    let parameters = edits.parameters.iter().map(|(name, _)| name.as_str());
    list(b",\"parameters\"", &mut parameters.clone());
    let gone = edits.parameters_removed.iter().map(String::as_str);
    list(b",\"parameters_removed\"", &mut gone.clone());
    out.push(b'}');
}

/// A text that is known to need no escape.
#[inline]
fn id(out: &mut Vec<u8>, value: Option<&[u8]>) {
    match value {
        Some(value) => {
            out.push(b'"');
            raw(out, value);
            out.push(b'"');
        }
        None => raw(out, b"null"),
    }
}

/// A text, or `null`.
#[inline]
fn maybe(out: &mut Vec<u8>, value: Option<&str>, known_plain: bool) {
    match value {
        Some(value) => text(out, value, known_plain),
        None => raw(out, b"null"),
    }
}

/// Milliseconds with up to three decimals, at least one.
fn span(out: &mut Vec<u8>, span: Option<Duration>) {
    let Some(span) = span else {
        return raw(out, b"null");
    };
    let micros = u32::try_from(span.as_micros()).unwrap_or(u32::MAX);
    number(out, (micros / 1000).into());
    let [a, b, c] = padded(micros % 1000);
    match (b, c) {
        (b'0', b'0') => raw(out, &[b'.', a]),
        (_, b'0') => raw(out, &[b'.', a, b]),
        _ => raw(out, &[b'.', a, b, c]),
    }
}

/// RFC 3339 with milliseconds, in UTC. Remembers the second that was written last.
#[derive(Debug, Default)]
pub(super) struct Second {
    unix: Option<u64>,
    /// Up to the point before the milliseconds.
    text: [u8; 20],
}

impl Second {
    fn write(&mut self, out: &mut Vec<u8>, at: SystemTime) {
        // A clock before 1970 shows as 1970, as everywhere else.
        let since = at
            .duration_since(SystemTime::UNIX_EPOCH)
            .unwrap_or_default();
        if self.unix != Some(since.as_secs()) {
            let (text, point) = self.text.split_at_mut(19);
            text.copy_from_slice(&civil(since.as_secs()));
            point.fill(b'.');
            self.unix = Some(since.as_secs());
        }
        raw(out, &self.text);
        raw(out, &padded::<3>(since.subsec_millis()));
        out.push(b'Z');
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

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    const EVIL: &str = "a\r\nb\t\u{8}\u{c}\u{1b}[31m\u{7f}\u{85}\u{2028}\u{202e}\0\"\\é😀";

    fn line() -> Line<'static> {
        Line {
            time: SystemTime::UNIX_EPOCH,
            request_id: b"r",
            decision_id: None,
            trace_id: None,
            span_id: None,
            received_at_ns: None,
            asked: Asked::default(),
            origin: Cow::Borrowed(b"\"listener\":\"l\""),
            method: "GET".into(),
            host: None,
            path: "/".into(),
            query: None,
            protocol: "HTTP/1.1",
            user_agent: None,
            route: None,
            caller: None,
            policy: None,
            decision: None,
            reason: None,
            refusal: None,
            status: None,
            upstream: None,
            endpoint: None,
            attempts: 0,
            bytes_in: 0,
            bytes_out: 0,
            duration: Durations::default(),
            outcome: "complete",
            detail: None,
            metadata: None,
            edits: None,
            plain: false,
        }
    }

    fn written(line: &Line<'_>) -> String {
        let mut out = Vec::new();
        line.write(&mut out, &mut Second::default());
        String::from_utf8(out).unwrap()
    }

    fn by(write: impl FnOnce(&mut Vec<u8>)) -> String {
        let mut out = Vec::new();
        write(&mut out);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn nothing_in_a_line_can_end_it_or_move_a_terminal() {
        let origin = OriginPart {
            listener: EVIL,
            client: [192, 0, 2, 1].into(),
            peer: "192.0.2.1:4711".parse().unwrap(),
            tls: Some(TlsPart {
                version: "TLSv1.3",
                server_name: Some(EVIL.into()),
                certificate_sha256: None,
            }),
        };
        let caller = CallerPart {
            method: "jwt",
            issuer: Some(EVIL.into()),
            subject: Some(EVIL.into()),
            client: Some(EVIL.into()),
            token_id: Some(EVIL.into()),
        };
        let line = Line {
            origin: origin.written().into(),
            caller: Some(caller.written().into()),
            path: EVIL.into(),
            ..line()
        };
        let text = written(&line);
        assert!(text.ends_with("}\n"));
        assert!(
            text.trim_end_matches('\n')
                .bytes()
                .all(|b| (0x20..0x7f).contains(&b)),
            "{text:?}"
        );
        let read: Value = serde_json::from_str(&text).unwrap();
        assert_eq!(read["listener"], EVIL);
        assert_eq!(read["tls"]["server_name"], EVIL);
        for member in ["issuer", "subject", "client", "token_id"] {
            assert_eq!(read["caller"][member], EVIL);
        }
        assert_eq!(read["path"], EVIL);
    }

    #[test]
    fn every_part_is_written_where_it_belongs() {
        let name = |text: &'static str| Some(Cow::Borrowed(text));
        let origin = OriginPart {
            listener: "l",
            client: "2001:db8::1".parse().unwrap(),
            peer: "[2001:db8::2]:65535".parse().unwrap(),
            tls: Some(TlsPart {
                version: "TLSv1.3",
                server_name: name("sni"),
                certificate_sha256: Some("ab"),
            }),
        };
        let caller = CallerPart {
            method: "jwt",
            issuer: name("i"),
            subject: name("s"),
            client: name("c"),
            token_id: name("j"),
        };
        let line = Line {
            time: SystemTime::UNIX_EPOCH + Duration::from_millis(1_795_224_725_042),
            decision_id: Some(b"d"),
            trace_id: Some(b"t"),
            span_id: Some(b"s"),
            received_at_ns: Some(u64::MAX),
            origin: origin.written().into(),
            host: name("h"),
            query: name("q"),
            user_agent: name("u"),
            route: Some("ro"),
            caller: Some(caller.written().into()),
            policy: Some(PolicyPart {
                written: br#""name":"p","revision":"v""#,
                cached: true,
            }),
            decision: Some("deny"),
            reason: name("why"),
            refusal: Some(RefusalPart {
                code: "denied",
                detail: "de",
            }),
            status: Some(403),
            upstream: Some("up"),
            endpoint: Some("en:1"),
            attempts: 4_294_967_295,
            bytes_in: u64::MAX,
            bytes_out: 10,
            duration: Durations {
                decision: Some(Duration::from_micros(1_234)),
                policy: Some(Duration::from_micros(56)),
                head: Some(Duration::from_millis(2)),
                total: Duration::from_secs(1_000_000),
            },
            detail: name("broke"),
            asked: Asked {
                answer: Some(b"true"),
                answer_left_out: Some("a"),
                input: Some(b"{\"version\":1}"),
                input_left_out: Some("i"),
                masked: b"\"/input/a\",\"/input/b\"",
                masked_answer: b"\"/answer/d\"",
                erased: b"\"/input/c\"",
            },
            ..line()
        };
        let read: Value = serde_json::from_str(&written(&line)).unwrap();
        assert_eq!(
            read,
            json!({
                "version": 2, "time": "2026-11-21T01:32:05.042Z", "received_at_ns": u64::MAX,
                "request_id": "r", "decision_id": "d", "trace_id": "t", "span_id": "s", "listener": "l", "client": "2001:db8::1",
                "peer": "[2001:db8::2]:65535",
                "tls": { "version": "TLSv1.3", "server_name": "sni", "certificate_sha256": "ab" },
                "method": "GET", "host": "h", "path": "/", "query": "q", "protocol": "HTTP/1.1",
                "user_agent": "u", "route": "ro",
                "caller": { "method": "jwt", "issuer": "i", "subject": "s", "client": "c",
                    "token_id": "j" },
                "policy": { "name": "p", "revision": "v", "cached": true }, "decision": "deny", "reason": "why",
                "refusal": { "code": "denied", "detail": "de" }, "status": 403, "upstream": "up",
                "endpoint": "en:1", "attempts": 4_294_967_295_u32, "bytes_in": u64::MAX,
                "bytes_out": 10,
                "duration_ms": { "decision": 1.234, "policy": 0.056, "head": 2.0, "total": 4_294_967.295 },
                "outcome": "complete", "detail": "broke",
                "answer_left_out": "a", "input_left_out": "i",
                "masked": ["/input/a", "/input/b", "/answer/d"], "erased": ["/input/c"],
                "answer": true, "input": { "version": 1 },
            })
        );
    }

    #[test]
    fn long_texts_are_cut_and_say_so() {
        assert_eq!(clip("short", 5), "short");
        assert_eq!(clip("longer", 5), "longe[+1 bytes]");
        assert_eq!(clip("aé", 2), "a[+2 bytes]");
    }

    #[test]
    fn times_are_rfc_3339_with_milliseconds() {
        let mut remembered = Second::default();
        let mut timestamp = |millis| {
            let at = SystemTime::UNIX_EPOCH + Duration::from_millis(millis);
            by(|out| remembered.write(out, at))
        };
        assert_eq!(timestamp(1_795_224_725_042), "2026-11-21T01:32:05.042Z");
        assert_eq!(timestamp(1_795_224_725_999), "2026-11-21T01:32:05.999Z");
        assert_eq!(timestamp(1_795_224_726_000), "2026-11-21T01:32:06.000Z");
        assert_eq!(timestamp(1_795_224_725_001), "2026-11-21T01:32:05.001Z");
        assert_eq!(timestamp(0), "1970-01-01T00:00:00.000Z");
    }

    #[test]
    fn numbers_are_written_as_a_serialiser_would() {
        let shown = |micros| by(|out| span(out, Some(Duration::from_micros(micros))));
        for micros in (0..3_000).chain([10_500, 1_234_567, 4_294_967_295]) {
            let millis = f64::from(u32::try_from(micros).unwrap()) / 1000.0;
            assert_eq!(shown(micros), serde_json::to_string(&millis).unwrap());
        }
    }
}
