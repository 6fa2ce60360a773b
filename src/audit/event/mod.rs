//! A record as an event of OPA's decision log.
//!
//! The schema is that of OPA's management API (<https://www.openpolicyagent.org/docs/management-decision-logs>):
//!
//! | member of the event | from the record |
//! | --- | --- |
//! | `labels` | `id` of the process, `version` of the gateway, and those of the configuration |
//! | `decision_id`, `trace_id`, `span_id` | as they are |
//! | `revision` | `policy.revision` |
//! | `bundles` | `policy.bundles`, each `{"revision": …}`; only when there are any |
//! | `path` | `policy.entrypoint`: `orders/decision` |
//! | `input`, `result` | `input`, `answer`; absent where these are `null` |
//! | `error` | `code` and `message` of a decision that failed |
//! | `requested_by` | `peer`, or `client` behind a trusted proxy |
//! | `timestamp` | `received_at_ns`, RFC 3339 |
//! | `metrics` | `timer_rego_query_eval_ns` from `duration_ms.policy`, `timer_server_handler_ns` from `duration_ms.total`, `counter_server_query_cache_hit` from `policy.cached` |
//! | `erased`, `masked` | those below `/input` and `/answer`, which is `/result` here |
//! | `req_id` | a number of 52 bits: the first 13 hex digits of `request_id` |
//! | `nd_builtin_cache` | `time.now_ns`; what is random follows from `input.request.id` |
//!
//! Records without a decision of a policy (a 401, a 404, an open route) are no events: nothing was
//! asked.

use std::time::{Duration, SystemTime};

use super::read::scan::Members;
use crate::ascii::{self, raw};

/// The labels of a process, written once.
#[derive(Debug, Clone)]
pub struct Labels(Vec<u8>);

impl Labels {
    /// The id of this process, and what the configuration adds; names and values.
    pub fn new<'l>(id: &str, others: impl IntoIterator<Item = (&'l str, &'l str)>) -> Self {
        let mut out = Vec::new();
        raw(&mut out, b"{\"id\":");
        ascii::text(&mut out, id);
        raw(&mut out, b",\"version\":");
        ascii::text(&mut out, concat!("portcullis-", env!("CARGO_PKG_VERSION")));
        for (name, value) in others {
            out.push(b',');
            ascii::text(&mut out, name);
            out.push(b':');
            ascii::text(&mut out, value);
        }
        out.push(b'}');
        Self(out)
    }

    /// The object.
    pub(super) fn text(&self) -> &[u8] {
        &self.0
    }
}

/// What of a record an event is made of, each as it is written; `null` is absent.
#[derive(Debug, Default)]
struct Parts<'l> {
    received_at_ns: Option<&'l [u8]>,
    request_id: Option<&'l [u8]>,
    decision_id: Option<&'l [u8]>,
    trace_id: Option<&'l [u8]>,
    span_id: Option<&'l [u8]>,
    client: Option<&'l [u8]>,
    peer: Option<&'l [u8]>,
    revision: Option<&'l [u8]>,
    entrypoint: Option<&'l [u8]>,
    bundles: Option<&'l [u8]>,
    cached: Option<&'l [u8]>,
    reason: Option<&'l [u8]>,
    detail: Option<&'l [u8]>,
    evaluation: Option<&'l [u8]>,
    total: Option<&'l [u8]>,
    masked: Option<&'l [u8]>,
    erased: Option<&'l [u8]>,
    answer: Option<&'l [u8]>,
    input: Option<&'l [u8]>,
}

/// The members of an object; none of what is no object.
pub(super) fn members(text: &[u8]) -> impl Iterator<Item = (&[u8], &[u8])> {
    Members::of(text).map_while(|member| member)
}

impl<'l> Parts<'l> {
    fn of(line: &'l [u8]) -> Self {
        let mut found = Self::default();
        for (name, value) in members(line) {
            let value = Some(value).filter(|value| *value != b"null");
            let Some(inner) = value else { continue };
            match name {
                b"received_at_ns" => found.received_at_ns = value,
                b"request_id" => found.request_id = value,
                b"decision_id" => found.decision_id = value,
                b"trace_id" => found.trace_id = value,
                b"span_id" => found.span_id = value,
                b"client" => found.client = value,
                b"peer" => found.peer = value,
                b"reason" => found.reason = value,
                b"detail" => found.detail = value,
                b"masked" => found.masked = value,
                b"erased" => found.erased = value,
                b"answer" => found.answer = value,
                b"input" => found.input = value,
                b"policy" => found.policy(inner),
                b"duration_ms" => {
                    for (name, value) in members(inner).filter(|(_, value)| *value != b"null") {
                        match name {
                            b"policy" => found.evaluation = Some(value),
                            b"total" => found.total = Some(value),
                            _ => {}
                        }
                    }
                }
                _ => {}
            }
        }
        found
    }

    fn policy(&mut self, policy: &'l [u8]) {
        for (name, value) in members(policy).filter(|(_, value)| *value != b"null") {
            match name {
                b"revision" => self.revision = Some(value),
                b"entrypoint" => self.entrypoint = Some(value),
                b"bundles" => self.bundles = Some(value),
                b"cached" => self.cached = Some(value),
                _ => {}
            }
        }
    }

    fn write(&self, labels: &Labels, out: &mut Vec<u8>) {
        raw(out, b"{\"labels\":");
        raw(out, labels.text());
        for (name, value) in [
            (&b",\"decision_id\":"[..], self.decision_id),
            (b",\"trace_id\":", self.trace_id),
            (b",\"span_id\":", self.span_id),
            (b",\"revision\":", self.revision),
        ] {
            if let Some(value) = value {
                raw(out, name);
                raw(out, value);
            }
        }
        if let Some(bundles) = self.bundles {
            raw(out, b",\"bundles\":{");
            for (nth, (name, revision)) in members(bundles).enumerate() {
                raw(out, if nth > 0 { b",\"" } else { b"\"" });
                raw(out, name);
                raw(out, b"\":{\"revision\":");
                raw(out, revision);
                out.push(b'}');
            }
            out.push(b'}');
        }
        if let Some(entrypoint) = self.entrypoint {
            // A path of plain names.
            let rule = entrypoint.strip_prefix(b"\"data.").unwrap_or(entrypoint);
            raw(out, b",\"path\":\"");
            out.extend(
                rule.iter()
                    .map(|&byte| if byte == b'.' { b'/' } else { byte }),
            );
        }
        for (name, value) in [
            (&b",\"input\":"[..], self.input),
            (b",\"result\":", self.answer),
        ] {
            if let Some(value) = value {
                raw(out, name);
                raw(out, value);
            }
        }
        self.write_error(out);
        if let Some(by) = self.requested_by() {
            raw(out, b",\"requested_by\":");
            raw(out, by);
        }
        let nanoseconds = self.received_at_ns.and_then(whole).unwrap_or(0);
        raw(out, b",\"timestamp\":\"");
        ascii::instant(
            out,
            SystemTime::UNIX_EPOCH + Duration::from_nanos(nanoseconds),
        );
        raw(out, b"\",\"metrics\":{");
        self.write_metrics(out);
        out.push(b'}');
        for (name, list) in [
            (&b",\"erased\":["[..], self.erased),
            (b",\"masked\":[", self.masked),
        ] {
            write_pointers(name, list.unwrap_or_default(), out);
        }
        if let Some(number) = self.request_id.and_then(number_of) {
            raw(out, b",\"req_id\":");
            ascii::number(out, number);
        }
        let hidden = |list: Option<&[u8]>| {
            memchr::memmem::find(list.unwrap_or_default(), b"\"/nd_builtin_cache").is_some()
        };
        if let Some(now) = self.received_at_ns
            && !hidden(self.erased)
            && !hidden(self.masked)
        {
            raw(out, b",\"nd_builtin_cache\":{\"time.now_ns\":{\"[]\":");
            raw(out, now);
            raw(out, b"}}");
        }
        out.push(b'}');
    }

    /// Of what went wrong, not of the policy's own no.
    fn write_error(&self, out: &mut Vec<u8>) {
        let Some(code) = self.reason.filter(|_| self.answer.is_none()) else {
            return;
        };
        let failed = code.starts_with(b"\"policy.")
            && !matches!(code, b"\"policy.undefined\"" | b"\"policy.denied\"");
        if failed {
            raw(out, b",\"error\":{\"code\":");
            raw(out, code);
            if let Some(detail) = self.detail {
                raw(out, b",\"message\":");
                raw(out, detail);
            }
            out.push(b'}');
        }
    }

    /// The connection's address and port; behind a trusted proxy, or where the port is hidden, the
    /// client's address alone.
    fn requested_by(&self) -> Option<&'l [u8]> {
        let client = self.client?;
        let bare = client.strip_suffix(b"\"")?.strip_prefix(b"\"")?;
        let same = self.peer.filter(|peer| {
            let peer = peer.strip_prefix(b"\"").unwrap_or_default();
            let peer = peer.strip_prefix(b"[").unwrap_or(peer);
            peer.strip_prefix(bare)
                .is_some_and(|rest| rest.starts_with(b":") || rest.starts_with(b"]"))
        });
        Some(same.unwrap_or(client))
    }

    fn write_metrics(&self, out: &mut Vec<u8>) {
        let hit: &[u8] = match self.cached {
            Some(b"true") => b"1",
            Some(_) | None => b"0",
        };
        raw(out, b"\"counter_server_query_cache_hit\":");
        raw(out, hit);
        for (name, milliseconds) in [
            (&b",\"timer_rego_query_eval_ns\":"[..], self.evaluation),
            (b",\"timer_server_handler_ns\":", self.total),
        ] {
            if let Some(nanoseconds) = milliseconds.and_then(nanoseconds) {
                raw(out, name);
                ascii::number(out, nanoseconds);
            }
        }
    }
}

fn whole(number: &[u8]) -> Option<u64> {
    std::str::from_utf8(number).ok()?.parse().ok()
}

/// Milliseconds with up to three decimals, in nanoseconds.
fn nanoseconds(milliseconds: &[u8]) -> Option<u64> {
    let text = std::str::from_utf8(milliseconds).ok()?;
    let (whole, decimals) = text.split_once('.').unwrap_or((text, "0"));
    let micros: u64 = format!("{decimals:0<3}").get(..3)?.parse().ok()?;
    let whole: u64 = whole.parse().ok()?;
    whole.checked_mul(1_000_000)?.checked_add(micros * 1_000)
}

/// A number of the first digits of an id.
fn number_of(id: &[u8]) -> Option<u64> {
    let digits = std::str::from_utf8(id.get(1..14)?).ok()?;
    u64::from_str_radix(digits, 16).ok()
}

/// The pointers that lead into the event, from the first on behind `name`; nothing when there are none.
fn write_pointers(name: &[u8], list: &[u8], out: &mut Vec<u8>) {
    let mut first = true;
    let mut rest = list.strip_prefix(b"[").unwrap_or_default();
    while let Some(text) = rest.strip_prefix(b"\"") {
        let Some(end) = end_of_text(text) else { break };
        let (pointer, behind) = text.split_at_checked(end).unwrap_or_default();
        rest = behind.get(1..).unwrap_or_default();
        rest = rest.strip_prefix(b",").unwrap_or(rest);
        let (prefix, path): (&[u8], &[u8]) = match pointer.strip_prefix(b"/answer") {
            Some(path) => (b"/result", path),
            None if pointer.starts_with(b"/input") => (b"", pointer),
            None if pointer.starts_with(b"/nd_builtin_cache") => (b"", pointer),
            None => continue,
        };
        raw(
            out,
            if std::mem::replace(&mut first, false) {
                name
            } else {
                b","
            },
        );
        out.push(b'"');
        raw(out, prefix);
        raw(out, path);
        out.push(b'"');
    }
    if !first {
        out.push(b']');
    }
}

/// Where the closing quotation mark stands.
fn end_of_text(text: &[u8]) -> Option<usize> {
    let mut at = 0;
    loop {
        let found = memchr::memchr2(b'"', b'\\', text.get(at..)?)?;
        if text.get(at + found) == Some(&b'"') {
            return Some(at + found);
        }
        at += found + 2;
    }
}

/// Appends the event of a record's line to `out`; `false`, and nothing, when it is none: no policy was
/// asked.
pub fn event(line: &[u8], labels: &Labels, out: &mut Vec<u8>) -> bool {
    let parts = Parts::of(line);
    let decided = parts.entrypoint.is_some() && parts.decision_id.is_some();
    if decided {
        parts.write(labels, out);
    }
    decided
}

/// [`event`], of any record: what rules about records see. Their own member `record` is the record, but
/// for `input` and `answer`.
pub(super) fn for_rules(line: &[u8], labels: &Labels, out: &mut Vec<u8>) {
    Parts::of(line).write(labels, out);
    out.pop();
    raw(out, b",\"record\":{");
    let mut first = true;
    for (name, value) in members(line).filter(|(name, _)| !matches!(*name, b"input" | b"answer")) {
        raw(
            out,
            if std::mem::replace(&mut first, false) {
                b"\""
            } else {
                b",\""
            },
        );
        raw(out, name);
        raw(out, b"\":");
        raw(out, value);
    }
    raw(out, b"}}");
}

#[cfg(test)]
mod tests;
