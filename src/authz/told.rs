//! What the record tells of a question: the whole document that the policy's kind of input shows,
//! whatever of it this policy can read, as one text in its canonical form (see [`crate::ascii`]).
//!
//! For `input: portcullis` it is written from the request itself, without the document: what is the
//! same for all requests of an identity or a connection is written once. A test compares the text
//! with the document. For `input: envoy` the document is built and then written.
//!
//! What may be secret is not told, and named: values of the query by [`Telling::queries`], bodies
//! unless [`Telling::bodies`], and headers that look like credentials (`is_secret`) whatever is
//! configured; so it is with answers (`answer`). Credentials that are known as such are in no document
//! at all. What a policy's block keeps from its document is named, too: another block would show it.

pub(super) mod answer;

use std::borrow::Cow;
use std::sync::Arc;

use http::HeaderName;
use http::header::AUTHORIZATION;
use smallvec::SmallVec;

pub use self::answer::answer_as_told;

use super::cache::projection::Question;
use super::input::{self, CREDENTIALS, Unreadable};
use super::{Policy, RouteFacts, Rules, Sees, body, envoy};
use crate::ascii::{address, instant, number, plain, pointer_part, raw, text, value};
use crate::authn::Identity;
use crate::request::{CanonicalPath, InboundRequest};

/// What stands in place of a value that is not told.
pub(super) const MASK: &str = "***";
/// The same, written.
const MASKED: &[u8] = b"\"***\"";

/// How much is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Telling {
    /// What becomes of queries.
    pub queries: Queries,
    /// Whether bodies are told, as far as the policy is shown them.
    pub bodies: bool,
    /// Longest text, in bytes, with the list of what is masked.
    pub limit: usize,
}

/// What is told of queries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Queries {
    /// Names, with masked values.
    Names,
    /// Everything.
    Whole,
    /// Nothing.
    Nothing,
}

/// What was told; kept for its memory.
#[derive(Debug, Default)]
pub struct Script {
    /// The document, in ASCII.
    pub input: Vec<u8>,
    /// JSON Pointers to what is masked in it, from `/input` on: texts with commas between them.
    pub masked: Vec<u8>,
    /// Likewise, to what is missing.
    pub erased: Vec<u8>,
}

/// Why nothing is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Untold {
    /// No rules were asked: the route is open, or its policy is not there yet.
    #[error("no policy was asked")]
    NotAsked,
    /// The text would be larger than [`Telling::limit`].
    #[error("larger than {0} bytes")]
    Larger(usize),
    /// There is no document.
    #[error("{0}")]
    Unreadable(#[from] Unreadable),
}

impl Script {
    /// Nothing is told.
    pub fn clear(&mut self) {
        self.input.clear();
        self.masked.clear();
        self.erased.clear();
    }

    /// How much memory it holds, in bytes.
    pub fn capacity(&self) -> usize {
        self.input.capacity() + self.masked.capacity() + self.erased.capacity()
    }

    /// Names a value that is masked by the parts of its path.
    pub(super) fn mask(&mut self, path: &[&str]) {
        pointer(&mut self.masked, path, None);
    }

    /// Names the nth item of what stands at this path.
    pub(super) fn mask_item(&mut self, path: &[&str], nth: usize) {
        pointer(&mut self.masked, path, Some(nth));
    }

    /// Names the nth value of a parameter of the query: as [`Script::mask_item`], of which most
    /// requests with a query need some, and in one go.
    fn mask_parameter(&mut self, name: &str, nth: usize) {
        let list = &mut self.masked;
        if !list.is_empty() {
            list.push(b',');
        }
        raw(list, b"\"/input/request/query/");
        pointer_part(list, name);
        list.push(b'/');
        number(list, u64::try_from(nth).unwrap_or(u64::MAX));
        list.push(b'"');
    }

    /// Names a value that is missing.
    pub(super) fn erase(&mut self, path: &[&str]) {
        pointer(&mut self.erased, path, None);
    }

    fn len(&self) -> usize {
        self.input.len() + self.masked.len() + self.erased.len()
    }
}

fn pointer(list: &mut Vec<u8>, path: &[&str], nth: Option<usize>) {
    pointer_below(list, b"/input", path.iter().copied());
    if let Some(nth) = nth {
        list.pop();
        list.push(b'/');
        number(list, u64::try_from(nth).unwrap_or(u64::MAX));
        list.push(b'"');
    }
}

fn pointer_below<'p>(list: &mut Vec<u8>, root: &[u8], path: impl Iterator<Item = &'p str>) {
    if !list.is_empty() {
        list.push(b',');
    }
    list.push(b'"');
    raw(list, root);
    for part in path {
        list.push(b'/');
        pointer_part(list, part);
    }
    list.push(b'"');
}

impl Policy {
    /// Whether it has rules that are asked.
    pub fn is_asked(&self) -> bool {
        matches!(self.rules, Rules::Rego(_))
    }

    /// Writes what the policy's kind of input shows of this request from this caller. `body_sent` is
    /// whether the request has a body of which nothing was read.
    ///
    /// # Errors
    /// Why there is nothing to tell; `out` is empty then.
    pub fn tell(
        &self,
        request: &InboundRequest,
        route: &RouteFacts<'_>,
        identity: Option<&Arc<Identity>>,
        body_sent: bool,
        how: &Telling,
        out: &mut Script,
    ) -> Result<(), Untold> {
        out.clear();
        let Rules::Rego(compiled) = &self.rules else {
            return Err(Untold::NotAsked);
        };
        let question = Question {
            request,
            route,
            identity,
            hidden: &compiled.hidden_headers,
            reads_body: compiled.body.is_some(),
        };
        let told = match &compiled.sees {
            Sees::Portcullis(_) => portcullis(&question, how, out),
            Sees::Envoy(_) => envoy::told(&question, how, out),
        };
        let told = told.and_then(|()| {
            let envoy = matches!(compiled.sees, Sees::Envoy(_));
            unseen(&question, body_sent, envoy, out);
            if out.len() > how.limit {
                return Err(Untold::Larger(how.limit));
            }
            Ok(())
        });
        if told.is_err() {
            out.clear();
        }
        told
    }
}

/// Names what was sent and this policy's block keeps from its document. Credentials are in nobody's, so
/// there is nothing to name.
fn unseen(about: &Question<'_>, body_sent: bool, envoy: bool, out: &mut Script) {
    let request = about.request;
    let within: &[&str] = if envoy {
        &["attributes", "request", "http"]
    } else {
        &["request"]
    };
    for name in about.hidden {
        let shown = !CREDENTIALS.contains(&name.as_str()) || (envoy && *name == AUTHORIZATION);
        if shown && request.headers.contains_key(name) {
            out.erase(&[within, &["headers", name.as_str()][..]].concat());
        }
    }
    let excerpt = request.excerpt.as_deref();
    let body_sent = body_sent || excerpt.is_some_and(|it| !it.whole || !it.bytes.is_empty());
    if about.reads_body || !body_sent {
        return;
    }
    let members: &[&[&str]] = if envoy {
        &[
            &["attributes", "request", "http", "body"],
            &["attributes", "request", "http", "rawBody"],
            &["parsed_body"],
            &["truncated_body"],
        ]
    } else {
        &[&["request", "body"], &["request", "body_truncated"]]
    };
    for member in members {
        out.erase(member);
    }
}

/// As [`input::document`] has it: the members in the order of their names.
pub(super) fn portcullis(
    about: &Question<'_>,
    how: &Telling,
    out: &mut Script,
) -> Result<(), Untold> {
    let request = about.request;
    input::readable(request)?;
    raw(&mut out.input, b"{\"identity\":");
    match about.identity {
        None => raw(&mut out.input, b"null"),
        Some(identity) => raw(&mut out.input, written_identity(identity)),
    }
    raw(&mut out.input, b",\"request\":{");
    if about.reads_body {
        told_body(request, how, out)?;
    }
    raw(&mut out.input, b"\"headers\":{");
    headers(about, how, out);
    let to = &mut out.input;
    raw(to, b"},\"host\":");
    text(to, request.host.name());
    raw(to, b",\"id\":\"");
    raw(to, request.id.as_bytes());
    // A token of HTTP has nothing that needs an escape.
    raw(to, b"\",\"method\":\"");
    raw(to, request.method.as_str().as_bytes());
    raw(to, b"\",\"path\":");
    text(to, request.path.as_str());
    raw(to, b",\"protocol\":\"");
    raw(to, input::protocol(request.version).as_bytes());
    to.push(b'"');
    query(request, how, out);
    let to = &mut out.input;
    raw(to, b",\"received_at\":\"");
    instant(to, request.received_at);
    raw(to, b"\",\"received_at_ns\":");
    number(to, input::since_epoch(request.received_at)?);
    raw(to, b",\"scheme\":\"");
    raw(to, request.scheme.as_str().as_bytes());
    raw(to, b"\",\"segments\":[");
    segments(&request.path, to);
    raw(to, b"]},\"route\":{\"labels\":");
    value(to, about.route.labels);
    raw(to, b",\"name\":");
    text(to, about.route.name);
    raw(to, b",\"params\":{");
    params(about.route, to);
    raw(
        to,
        br#"}},"signals":{"device":{"known":false},"place":{"known":false}},"source":{"#,
    );
    source(request, to);
    raw(to, b"},\"version\":1}");
    Ok(())
}

/// The identity's part; the same for all of its requests.
fn written_identity(identity: &Identity) -> &[u8] {
    let written = &identity.told.input;
    written.get_or_init(|| {
        let mut out = Vec::new();
        value(&mut out, identity.document());
        out.into()
    })
}

/// The decoded segments of the path.
fn segments(path: &CanonicalPath, out: &mut Vec<u8>) {
    let written = path.as_str().as_bytes();
    if let Some(simple) = written.strip_prefix(b"/")
        && !simple.is_empty()
        && memchr::memchr(b'%', simple).is_none()
        && plain(simple)
    {
        // Most paths: nothing to decode, nothing to escape.
        out.reserve(simple.len() + 2);
        out.push(b'"');
        for &byte in simple {
            match byte {
                b'/' => raw(out, b"\",\""),
                _ => out.push(byte),
            }
        }
        return out.push(b'"');
    }
    for (nth, segment) in path.decoded().enumerate() {
        if nth > 0 {
            out.push(b',');
        }
        text(out, &segment);
    }
}

/// The members of `source`. They are the same for all requests of a connection, but for those that a
/// trusted proxy passes on. That the TLS session can be written was looked at before.
fn source(request: &InboundRequest, out: &mut Vec<u8>) {
    const TLS: &[u8] = b",\"tls\":";
    let conn = &*request.conn;
    let written = conn.forwarded.input.get_or_init(|| {
        let mut out = Vec::new();
        raw(&mut out, b"\"address\":\"");
        address(&mut out, conn.peer.ip().to_canonical());
        raw(&mut out, b"\",\"port\":");
        number(&mut out, conn.peer.port().into());
        raw(&mut out, TLS);
        match input::tls(conn) {
            Ok(tls) => value(&mut out, &tls),
            Err(_) => raw(&mut out, b"null"),
        }
        out.into()
    });
    if !request.via_trusted_proxy {
        return raw(out, written);
    }
    raw(out, b"\"address\":\"");
    address(out, request.client);
    raw(out, b"\",\"port\":null");
    let tls = memchr::memmem::find(written, TLS).and_then(|at| written.get(at..));
    raw(out, tls.unwrap_or_default());
}

/// `body` and `body_truncated`, each with a comma behind it.
fn told_body(request: &InboundRequest, how: &Telling, out: &mut Script) -> Result<(), Untold> {
    let excerpt = request.excerpt.as_deref();
    let shown = excerpt.is_some_and(|body| body.whole && !body.bytes.is_empty());
    if shown && !how.bodies {
        out.erase(&["request", "body"]);
    } else {
        if excerpt.is_some_and(|body| body.bytes.len() > how.limit) {
            return Err(Untold::Larger(how.limit));
        }
        raw(&mut out.input, b"\"body\":");
        value(&mut out.input, &body::parsed(request)?);
        out.input.push(b',');
    }
    let truncated: &[u8] = if input::is_truncated(request) {
        b"\"body_truncated\":true,"
    } else {
        b"\"body_truncated\":false,"
    };
    raw(&mut out.input, truncated);
    Ok(())
}

/// The headers that policies see, by name.
fn headers(about: &Question<'_>, how: &Telling, out: &mut Script) {
    let mut fields: SmallVec<[(u64, &str, &[u8]); 32]> = about
        .request
        .headers
        .iter()
        .filter(|(name, _)| input::is_visible(name, about.hidden))
        .map(|(name, value)| (beginning(name), name.as_str(), value.as_bytes()))
        .collect();
    // Stable, so that fields of one name stay in their order.
    fields.sort_by(|(a, one, _), (b, other, _)| a.cmp(b).then_with(|| one.cmp(other)));
    let mut rest = &fields[..];
    let mut first = true;
    while let Some(((_, name, value), behind)) = rest.split_first() {
        let more = behind.iter().take_while(|(_, next, _)| next == name);
        let (same, behind) = behind.split_at_checked(more.count()).unwrap_or_default();
        rest = behind;
        if !std::mem::replace(&mut first, false) {
            out.input.push(b',');
        }
        // A name is a token of HTTP in lower case.
        out.input.push(b'"');
        raw(&mut out.input, name.as_bytes());
        raw(&mut out.input, b"\":");
        let single = same.is_empty();
        // Most values: neither a list nor an address with a query.
        let simple = single && memchr::memchr2(b',', b'?', value).is_none();
        let secret = is_secret_name(name)
            || if simple {
                is_secret_item(value)
            } else {
                is_secret_value(value) || same.iter().any(|(.., value)| is_secret_value(value))
            };
        if secret {
            out.mask(&["request", "headers", name]);
            raw(&mut out.input, MASKED);
            continue;
        }
        let asks = !simple && memchr::memchr(b'?', value).is_some();
        if single && !asks && plain(value) {
            out.input.push(b'"');
            raw(&mut out.input, value);
            out.input.push(b'"');
            continue;
        }
        let mut shown = String::from_utf8_lossy(value);
        for (.., value) in same {
            let shown = shown.to_mut();
            shown.push_str(", ");
            shown.push_str(&String::from_utf8_lossy(value));
        }
        if let Some(hidden) = hide_address(&shown, how.queries) {
            out.mask(&["request", "headers", name]);
            shown = Cow::Owned(hidden);
        }
        text(&mut out.input, &shown);
    }
}

/// A name's first eight bytes as a number: in the order of the names, as far as these differ.
fn beginning(name: &HeaderName) -> u64 {
    let name = name.as_str().as_bytes();
    match name.first_chunk() {
        Some(first) => u64::from_be_bytes(*first),
        None => name
            .iter()
            .chain(&[0; 8])
            .take(8)
            .fold(0, |number, byte| number << 8 | u64::from(*byte)),
    }
}

/// `query`, with a comma before it.
fn query(request: &InboundRequest, how: &Telling, out: &mut Script) {
    let sent = request.query.as_deref().unwrap_or("");
    let mut pairs: SmallVec<[(Cow<'_, str>, &str); 16]> = input::pairs(sent)
        .map(|(name, value)| (input::decode(name), value))
        .collect();
    if how.queries == Queries::Nothing && !pairs.is_empty() {
        return out.erase(&["request", "query"]);
    }
    pairs.sort_by(|(a, _), (b, _)| a.cmp(b));
    raw(&mut out.input, b",\"query\":{");
    let mut earlier: Option<&str> = None;
    let mut nth = 0;
    for (name, value) in &pairs {
        if earlier == Some(name) {
            nth += 1;
            out.input.push(b',');
        } else {
            if earlier.replace(name).is_some() {
                raw(&mut out.input, b"],");
            }
            nth = 0;
            text(&mut out.input, name);
            raw(&mut out.input, b":[");
        }
        if how.queries == Queries::Whole {
            text(&mut out.input, &input::decode(value));
        } else {
            out.mask_parameter(name, nth);
            raw(&mut out.input, MASKED);
        }
    }
    raw(&mut out.input, if earlier.is_some() { b"]}" } else { b"}" });
}

/// The values of the path template, by name; the last of a name counts.
fn params(route: &RouteFacts<'_>, out: &mut Vec<u8>) {
    let mut params: SmallVec<[(&str, &str); 8]> = route
        .params
        .iter()
        .rev()
        .map(|(name, value)| (&**name, value.as_str()))
        .collect();
    params.sort_by_key(|(name, _)| *name);
    params.dedup_by_key(|(name, _)| *name);
    for (nth, (name, value)) in params.iter().enumerate() {
        if nth > 0 {
            out.push(b',');
        }
        text(out, name);
        out.push(b':');
        text(out, value);
    }
}

/// A target or an address without what its query holds; `None` when there is nothing to hide.
pub(super) fn hide_query(target: &str, queries: Queries) -> Option<String> {
    let (path, query) = target.split_once('?')?;
    match queries {
        _ if query.is_empty() => None,
        Queries::Whole => None,
        Queries::Nothing => Some(path.to_owned()),
        Queries::Names => {
            let mut hidden = format!("{path}?");
            mask_query(query, &mut hidden);
            Some(hidden)
        }
    }
}

/// As [`hide_query`], of a header's value if it is an address: `Referer` and its like hold queries of
/// other requests.
pub(super) fn hide_address(value: &str, queries: Queries) -> Option<String> {
    // The first address with a query, in a list as several fields of one name become. All that follows
    // may belong to the query.
    let from = memchr::memchr_iter(b'?', value.as_bytes()).find_map(|query| {
        let before = value.get(..query)?;
        let list = before.rfind(',').map_or(0, |comma| comma + 1);
        let item = before.get(list..)?.trim_start();
        let is_address = item.starts_with('/') || item.contains("://");
        is_address.then_some(query - item.len())
    })?;
    let (before, address) = value.split_at_checked(from)?;
    hide_query(address, queries).map(|hidden| format!("{before}{hidden}"))
}

/// Appends a query whose values cannot be read any more: `token=abc&x` becomes `token=*&*`. A part
/// without `=` is masked whole, for it may be a value as well as a name.
pub fn mask_query(query: &str, masked: &mut String) {
    let mut rest = query;
    loop {
        let end = memchr::memchr(b'&', rest.as_bytes());
        let part = end.map_or(rest, |end| rest.get(..end).unwrap_or_default());
        if let Some(name) = memchr::memchr(b'=', part.as_bytes()) {
            masked.push_str(part.get(..=name).unwrap_or_default());
        }
        if !part.is_empty() {
            masked.push('*');
        }
        match end {
            Some(end) => {
                masked.push('&');
                rest = rest.get(end + 1..).unwrap_or_default();
            }
            None => return,
        }
    }
}

/// Whether a header may be a credential, by its name or by its value. Policies see such headers, for
/// they may have to judge them; records do not.
pub(super) fn is_secret(name: &str, value: &[u8]) -> bool {
    is_secret_name(name) || is_secret_value(value)
}

/// What names of headers that may be credentials hold.
const SECRET_WORDS: [&[u8]; 15] = [
    b"api-key",
    b"apikey",
    b"authorization",
    b"assertion",
    b"access-key",
    b"credential",
    b"cookie",
    b"csrf",
    b"jwt",
    b"passw",
    b"secret",
    b"session",
    b"signature",
    b"token",
    b"xsrf",
];

/// For each first letter, with which second ones a word begins; letters by their lowest five bits.
/// Every header of every request is asked, and hardly any place in a name passes this.
const BEGINNINGS: [u32; 32] = beginnings();

#[expect(
    clippy::indexing_slicing,
    clippy::as_conversions,
    reason = "at compile time, from five bits"
)]
const fn beginnings() -> [u32; 32] {
    let mut seconds = [0; 32];
    let mut nth = 0;
    while nth < SECRET_WORDS.len() {
        let word = SECRET_WORDS[nth];
        seconds[(word[0] & 31) as usize] |= 1 << (word[1] & 31);
        nth += 1;
    }
    seconds
}

/// Names that most requests have and that are none of credentials: asked first, for looking into one
/// costs four times as much.
const USUAL: [&str; 18] = [
    "accept",
    "accept-encoding",
    "accept-language",
    "cache-control",
    "connection",
    "content-length",
    "content-type",
    "grpc-timeout",
    "host",
    "origin",
    "pragma",
    "priority",
    "referer",
    "te",
    "traceparent",
    "tracestate",
    "user-agent",
    "x-request-id",
];

/// Whether a header of this name may be a credential.
fn is_secret_name(name: &str) -> bool {
    !USUAL.contains(&name) && holds_secret(name)
}

fn holds_secret(name: &str) -> bool {
    let bytes = name.as_bytes();
    let mut first = 0;
    let found = bytes.iter().enumerate().any(|(at, &second)| {
        let before = std::mem::replace(&mut first, second);
        let seconds = BEGINNINGS.get(usize::from(before & 31));
        if seconds.is_none_or(|seconds| seconds & (1 << (second & 31)) == 0) {
            return false;
        }
        let rest = bytes.get(at.saturating_sub(1)..).unwrap_or_default();
        let begins = |word: &[u8]| word.first() == Some(&before) && word.get(1) == Some(&second);
        SECRET_WORDS
            .iter()
            .any(|word| begins(word) && rest.starts_with(word))
    });
    found
        || (bytes.ends_with(b"-key") && name != "idempotency-key" && name != "sec-websocket-key")
        || bytes.ends_with(b"-auth")
}

/// A JWT, or what follows the name of a scheme; alone, or in a list as several fields of one name become.
fn is_secret_value(value: &[u8]) -> bool {
    let mut rest = value;
    while let Some(comma) = memchr::memchr(b',', rest) {
        let (item, more) = rest.split_at(comma);
        if is_secret_item(item) {
            return true;
        }
        rest = more.get(1..).unwrap_or_default();
    }
    is_secret_item(rest)
}

fn is_secret_item(item: &[u8]) -> bool {
    let item = item.trim_ascii_start();
    let begins = |word: &[u8]| {
        item.get(..word.len())
            .is_some_and(|begin| begin.eq_ignore_ascii_case(word))
    };
    match item.first() {
        Some(b'e') => item.starts_with(b"eyJ"),
        Some(b'b' | b'B') => begins(b"bearer ") || begins(b"basic "),
        _ => false,
    }
}

#[cfg(test)]
mod tests;
