//! The document that policies see as `input`, version 1. It is an interface: a golden test pins it.
//!
//! Credentials are never in it: neither the headers in [`CREDENTIALS`], nor those that the policy's
//! block lists under `hidden_headers`. What is absent is absent: no member is invented, but
//! `identity`, `source.tls` and `source.tls.client_certificate` are `null` when there is none, so
//! that a policy can tell "none" from a misspelt name. `request.body` and `request.body_truncated`
//! are there when the policy's block has `body`.
//!
//! Policies with `input: envoy` see another document: `envoy::document`.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, LazyLock};
use std::time::SystemTime;

use http::{HeaderName, Version};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::RouteFacts;
use super::body;
use super::source::reads::Step;
use crate::document::{Value, string, strings};
use crate::request::{ConnInfo, InboundRequest};
use crate::tls::PeerCertificate;

/// Headers that carry credentials, whoever reads them.
pub const CREDENTIALS: [&str; 13] = [
    "authorization",
    "proxy-authorization",
    "cookie",
    "set-cookie",
    "x-api-key",
    "api-key",
    "private-token",
    "x-access-token",
    "x-auth-token",
    "x-id-token",
    "x-vault-token",
    "x-csrf-token",
    "dpop",
];

/// Most parameters of a query that a policy can judge.
pub const MAX_QUERY_PARAMETERS: usize = 256;

/// Why there is no document; such a request is denied.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Unreadable {
    /// A policy that saw only some of them would judge another request than the upstream gets.
    #[error("the query has more than {MAX_QUERY_PARAMETERS} parameters")]
    QueryParameters,
    /// Policy and upstream could read different bodies.
    #[error("the body {0}")]
    Body(&'static str),
    /// The clock stands before 1970 or after 9999.
    #[error("a time is out of range")]
    Time,
}

macro_rules! keys {
    ($($name:ident),* $(,)?) => {
        /// The members' names, allocated once.
        struct Keys { $($name: Value),* }

        static KEYS: LazyLock<Keys> = LazyLock::new(|| Keys {
            $($name: Value::from(stringify!($name))),*
        });
    };
}

keys!(
    address,
    body,
    body_truncated,
    client_certificate,
    device,
    dns,
    email,
    headers,
    host,
    id,
    identity,
    ip,
    issuer,
    known,
    labels,
    method,
    name,
    not_after,
    params,
    path,
    place,
    port,
    protocol,
    query,
    received_at,
    received_at_ns,
    request,
    route,
    sans,
    scheme,
    segments,
    serial,
    sha256,
    signals,
    sni,
    source,
    spiffe_id,
    subject,
    tls,
    uri,
    version,
);

/// Nothing is known of the device and the place yet; the constant is shared by all documents.
static SIGNALS: LazyLock<Value> = LazyLock::new(|| {
    let unknown = || record([(&KEYS.known, Value::from(false))]);
    record([(&KEYS.device, unknown()), (&KEYS.place, unknown())])
});

fn record<const N: usize>(members: [(&Value, Value); N]) -> Value {
    Value::from(
        members
            .into_iter()
            .map(|(key, value)| (key.clone(), value))
            .collect::<BTreeMap<_, _>>(),
    )
}

/// Which members of the document a policy can read: the others need not be made. Where the document
/// of a policy lacks a member, no rule of the policy could have told.
#[derive(Debug, Clone)]
pub(super) struct Wanted {
    /// Names of headers; `None` when all may be read.
    headers: Option<BTreeSet<String>>,
    /// Whether bodies are shown at all.
    bodies: bool,
    flags: Flags,
}

macro_rules! flags {
    ($($field:ident = $path:literal),* $(,)?) => {
        /// The members, looked up once.
        #[derive(Debug, Clone, Copy)]
        struct Flags { $($field: bool),* }

        impl Flags {
            fn of(wants: impl Fn(&str) -> bool) -> Self {
                Self { $($field: wants($path)),* }
            }
        }
    };
}

flags!(
    version = "version",
    identity = "identity",
    signals = "signals",
    request = "request.",
    id = "request.id",
    method = "request.method",
    scheme = "request.scheme",
    host = "request.host",
    path = "request.path",
    segments = "request.segments",
    query = "request.query",
    headers = "request.headers",
    protocol = "request.protocol",
    received_at = "request.received_at",
    received_at_ns = "request.received_at_ns",
    body = "request.body",
    body_truncated = "request.body_truncated",
    source = "source.",
    address = "source.address",
    port = "source.port",
    tls = "source.tls",
    route = "route.",
    name = "route.name",
    params = "route.params",
    labels = "route.labels",
);

impl Wanted {
    /// Everything.
    #[cfg(test)]
    pub(super) fn all() -> Self {
        Self::by(&[Vec::new()], false)
    }

    /// What these paths lead to, with all that lies below.
    pub(super) fn by(paths: &[Vec<Step>], bodies: bool) -> Self {
        // Of one name, or two.
        let mut members = BTreeSet::new();
        let mut headers = Some(BTreeSet::new());
        for path in paths {
            let mut names = path.iter().map_while(|step| match step {
                Step::Name(name) => Some(name.as_str()),
                Step::Index(_) => None,
            });
            let (first, second, third) = (names.next(), names.next(), names.next());
            members.insert(match (first, second) {
                (None, _) => String::new(),
                (Some(first), None) => first.to_owned(),
                (Some(first), Some(second)) => format!("{first}.{second}"),
            });
            match (first, second, third) {
                (Some("request"), Some("headers"), Some(name)) => {
                    if let Some(headers) = &mut headers {
                        headers.insert(name.to_owned());
                    }
                }
                (None, ..) | (Some("request"), None | Some("headers"), _) => headers = None,
                _ => {}
            }
        }
        let flags = Flags::of(|path| {
            let (first, second) = path.split_once('.').unwrap_or((path, ""));
            members.contains("")
                || members.contains(first)
                || members.contains(path)
                // The object itself, for whatever is read of it.
                || members.iter().any(|member| match member.split_once('.') {
                    Some((outer, _)) => outer == first && (second.is_empty()),
                    None => false,
                })
        });
        Self {
            headers,
            bodies,
            flags,
        }
    }
}

/// An object of those members that are wanted.
struct Record(BTreeMap<Value, Value>);

impl Record {
    fn new() -> Self {
        Self(BTreeMap::new())
    }

    fn with(mut self, wanted: bool, key: &Value, value: impl FnOnce() -> Value) -> Self {
        if wanted {
            self.0.insert(key.clone(), value());
        }
        self
    }

    fn try_with(
        mut self,
        wanted: bool,
        key: &Value,
        value: impl FnOnce() -> Result<Value, Unreadable>,
    ) -> Result<Self, Unreadable> {
        if wanted {
            self.0.insert(key.clone(), value()?);
        }
        Ok(self)
    }

    fn done(self) -> Value {
        Value::from(self.0)
    }
}

/// Builds the document, as far as it is wanted. `identity` is the caller's ready part, shared and
/// not copied.
///
/// # Errors
/// [`Unreadable`] when the document would not be the whole request.
pub(super) fn document(
    request: &InboundRequest,
    route: &RouteFacts<'_>,
    identity: Option<&Value>,
    hidden: &[HeaderName],
    wanted: &Wanted,
) -> Result<Value, Unreadable> {
    readable(request)?;
    let k = &*KEYS;
    let of = &wanted.flags;
    Ok(Record::new()
        .with(of.version, &k.version, || Value::from(1u64))
        .try_with(of.request, &k.request, || {
            of_request(request, hidden, wanted)
        })?
        .try_with(of.source, &k.source, || of_source(request, of))?
        .with(of.identity, &k.identity, || {
            identity.cloned().unwrap_or(Value::Null)
        })
        .with(of.signals, &k.signals, || SIGNALS.clone())
        .with(of.route, &k.route, || {
            Record::new()
                .with(of.name, &k.name, || string(route.name))
                .with(of.params, &k.params, || params(route))
                .with(of.labels, &k.labels, || route.labels.clone())
                .done()
        })
        .done())
}

/// Whether the request has a document: whatever of it a policy reads.
///
/// # Errors
/// As [`document`].
pub(super) fn readable(request: &InboundRequest) -> Result<(), Unreadable> {
    if let Some(query) = &request.query
        // Each but the last takes two bytes at least.
        && query.len() > 2 * MAX_QUERY_PARAMETERS
        && pairs(query).nth(MAX_QUERY_PARAMETERS).is_some()
    {
        return Err(Unreadable::QueryParameters);
    }
    let tls = request.conn.tls.as_ref();
    if let Some(certificate) = tls.and_then(|tls| tls.peer_certificate.as_ref()) {
        instant(certificate.not_after)?;
    }
    since_epoch(request.received_at).map(|_| ())
}

/// The values of the path template.
pub(super) fn params(route: &RouteFacts<'_>) -> Value {
    Value::from(
        route
            .params
            .iter()
            .map(|(name, value)| (string(name), Value::from(value.as_str())))
            .collect::<BTreeMap<_, _>>(),
    )
}

fn of_request(
    request: &InboundRequest,
    hidden: &[HeaderName],
    wanted: &Wanted,
) -> Result<Value, Unreadable> {
    let k = &*KEYS;
    let of = &wanted.flags;
    Ok(Record::new()
        .with(of.id, &k.id, || Value::from(request.id.as_str()))
        .with(of.method, &k.method, || {
            Value::from(request.method.as_str())
        })
        .with(of.scheme, &k.scheme, || {
            Value::from(request.scheme.as_str())
        })
        .with(of.host, &k.host, || Value::from(request.host.name()))
        .with(of.path, &k.path, || Value::from(request.path.as_str()))
        .with(of.segments, &k.segments, || {
            Value::from(request.path.segments().map(Value::from).collect::<Vec<_>>())
        })
        .try_with(of.query, &k.query, || {
            query(request.query.as_deref().unwrap_or(""))
        })?
        .with(of.headers, &k.headers, || match &wanted.headers {
            None => headers(request, hidden),
            Some(names) => some_headers(request, hidden, names),
        })
        .with(of.protocol, &k.protocol, || {
            Value::from(protocol(request.version))
        })
        .try_with(of.received_at, &k.received_at, || {
            rfc3339(request.received_at)
        })?
        .try_with(of.received_at_ns, &k.received_at_ns, || {
            nanoseconds(request.received_at)
        })?
        .try_with(of.body && wanted.bodies, &k.body, || body::parsed(request))?
        .with(
            of.body_truncated && wanted.bodies,
            &k.body_truncated,
            || Value::from(is_truncated(request)),
        )
        .done())
}

/// Whether there is more of the body than was read.
pub(super) fn is_truncated(request: &InboundRequest) -> bool {
    !request.excerpt.as_ref().is_some_and(|body| body.whole)
}

/// All of `route`.
pub(super) fn route(route: &RouteFacts<'_>) -> Value {
    let k = &*KEYS;
    record([
        (&k.name, string(route.name)),
        (&k.params, params(route)),
        (&k.labels, route.labels.clone()),
    ])
}

/// All of `signals`.
pub(super) fn signals() -> Value {
    SIGNALS.clone()
}

/// Those of the visible headers that have these names.
fn some_headers(
    request: &InboundRequest,
    hidden: &[HeaderName],
    names: &BTreeSet<String>,
) -> Value {
    let visible = |name: &String| {
        HeaderName::from_lowercase(name.as_bytes()).is_ok_and(|name| is_visible(&name, hidden))
    };
    let members = names
        .iter()
        .filter(|name| visible(name))
        .filter_map(|name| {
            let value = header(request, name)?;
            Some((Value::from(name.as_str()), Value::from(value.as_ref())))
        });
    Value::from(members.collect::<BTreeMap<_, _>>())
}

pub(super) fn protocol(version: Version) -> &'static str {
    match version {
        Version::HTTP_10 => "HTTP/1.0",
        Version::HTTP_11 => "HTTP/1.1",
        Version::HTTP_2 => "HTTP/2",
        Version::HTTP_3 => "HTTP/3",
        _ => "HTTP/0.9",
    }
}

/// Whether policies see a header.
pub(super) fn is_visible(name: &HeaderName, hidden: &[HeaderName]) -> bool {
    !CREDENTIALS.contains(&name.as_str()) && !hidden.contains(name)
}

/// The headers that policies see.
pub(super) fn headers(request: &InboundRequest, hidden: &[HeaderName]) -> Value {
    let mut members = BTreeMap::new();
    for name in request.headers.keys() {
        if is_visible(name, hidden)
            && let Some(value) = header(request, name.as_str())
        {
            members.insert(Value::from(name.as_str()), Value::from(value.as_ref()));
        }
    }
    Value::from(members)
}

/// One header. Names are in lower case; several fields of one name are joined with `, ` in their
/// order (RFC 9110 section 5.3). Bytes that are no UTF-8 become U+FFFD, each sequence one: the
/// header is there, and equals nothing that a policy would compare it with.
pub(super) fn header<'r>(request: &'r InboundRequest, name: &str) -> Option<Cow<'r, str>> {
    let mut fields = request.headers.get_all(name).iter();
    let mut value = String::from_utf8_lossy(fields.next()?.as_bytes());
    for field in fields {
        let value = value.to_mut();
        value.push_str(", ");
        value.push_str(&String::from_utf8_lossy(field.as_bytes()));
    }
    Some(value)
}

/// Parameters as forms have them: parted by `&`, `+` is a space, percent signs decoded; the values
/// of a name in their order. A percent sign without two digits stands for itself, and bytes that
/// are no UTF-8 become U+FFFD.
pub(super) fn query(query: &str) -> Result<Value, Unreadable> {
    let mut members: BTreeMap<Cow<'_, str>, Vec<Value>> = BTreeMap::new();
    for (count, (name, value)) in pairs(query).enumerate() {
        if count >= MAX_QUERY_PARAMETERS {
            return Err(Unreadable::QueryParameters);
        }
        members
            .entry(decode(name))
            .or_default()
            .push(Value::from(decode(value).as_ref()));
    }
    Ok(Value::from(
        members
            .into_iter()
            .map(|(name, values)| (Value::from(name.as_ref()), Value::from(values)))
            .collect::<BTreeMap<_, _>>(),
    ))
}

/// The values of one parameter, in their order.
pub(super) fn parameter<'q>(query: &'q str, name: &str) -> impl Iterator<Item = Cow<'q, str>> {
    pairs(query)
        .filter(move |(known, _)| decode(known) == name)
        .map(|(_, value)| decode(value))
}

/// Names and values of a query as they were sent. Empty pairs are none.
pub(super) fn pairs(query: &str) -> impl Iterator<Item = (&str, &str)> {
    let mut rest = Some(query);
    // Queries are short: one look at each byte costs less than to search them for two.
    std::iter::from_fn(move || {
        loop {
            let left = rest?;
            let mut equals = None;
            let end = left.bytes().enumerate().find_map(|(at, byte)| {
                if byte == b'=' && equals.is_none() {
                    equals = Some(at);
                }
                (byte == b'&').then_some(at)
            });
            let (pair, more) = match end {
                Some(end) => (left.get(..end)?, left.get(end + 1..)),
                None => (left, None),
            };
            rest = more;
            if !pair.is_empty() {
                let at = equals.unwrap_or(pair.len());
                return Some((pair.get(..at)?, pair.get(at + 1..).unwrap_or_default()));
            }
        }
    })
}

pub(super) fn decode(text: &str) -> Cow<'_, str> {
    if !text.bytes().any(|byte| matches!(byte, b'+' | b'%')) {
        return Cow::Borrowed(text);
    }
    let hex = |byte: Option<&u8>| {
        byte.and_then(|byte| char::from(*byte).to_digit(16))
            .and_then(|digit| u8::try_from(digit).ok())
    };
    let bytes = text.as_bytes();
    let mut decoded = Vec::with_capacity(bytes.len());
    let mut index = 0;
    while let Some(&byte) = bytes.get(index) {
        index += 1;
        match byte {
            b'+' => decoded.push(b' '),
            b'%' => match (hex(bytes.get(index)), hex(bytes.get(index + 1))) {
                (Some(high), Some(low)) => {
                    decoded.push(high << 4 | low);
                    index += 2;
                }
                _ => decoded.push(b'%'),
            },
            other => decoded.push(other),
        }
    }
    let decoded = String::from_utf8(decoded)
        .unwrap_or_else(|error| String::from_utf8_lossy(error.as_bytes()).into_owned());
    Cow::Owned(decoded)
}

fn of_source(request: &InboundRequest, of: &Flags) -> Result<Value, Unreadable> {
    let k = &*KEYS;
    Ok(Record::new()
        .with(of.address, &k.address, || {
            Value::from(request.client.to_string())
        })
        .with(of.port, &k.port, || {
            port(request).map_or(Value::Null, Value::from)
        })
        .try_with(of.tls, &k.tls, || tls(&request.conn))?
        .done())
}

/// Behind a trusted proxy the connection's port is the proxy's, not the client's.
pub(super) fn port(request: &InboundRequest) -> Option<u64> {
    (!request.via_trusted_proxy).then(|| u64::from(request.conn.peer.port()))
}

/// The facts of the connection's TLS session.
pub(super) fn tls(conn: &ConnInfo) -> Result<Value, Unreadable> {
    let k = &*KEYS;
    let Some(tls) = &conn.tls else {
        return Ok(Value::Null);
    };
    Ok(record([
        (&k.version, Value::from(tls.version)),
        (&k.sni, tls.server_name.as_ref().map_or(Value::Null, string)),
        (
            &k.client_certificate,
            match &tls.peer_certificate {
                None => Value::Null,
                Some(shown) => certificate(shown)?,
            },
        ),
    ]))
}

/// The facts of a client certificate.
pub(super) fn certificate(certificate: &Arc<PeerCertificate>) -> Result<Value, Unreadable> {
    let k = &*KEYS;
    let sans = &certificate.sans;
    Ok(record([
        (&k.subject, Value::from(certificate.subject.as_str())),
        (&k.issuer, Value::from(certificate.issuer.as_str())),
        (&k.serial, Value::from(certificate.serial.as_str())),
        (
            &k.sans,
            record([
                (&k.dns, strings(&sans.dns)),
                (&k.uri, strings(&sans.uri)),
                (&k.email, strings(&sans.email)),
                (&k.ip, strings(sans.ip.iter().map(ToString::to_string))),
            ]),
        ),
        (
            &k.spiffe_id,
            certificate
                .spiffe_id
                .as_deref()
                .map_or(Value::Null, Value::from),
        ),
        (&k.sha256, Value::from(certificate.sha256.as_str())),
        (&k.not_after, rfc3339(certificate.not_after)?),
    ]))
}

fn instant(at: SystemTime) -> Result<OffsetDateTime, Unreadable> {
    // Certificates may end in 9999; the conversion itself panics beyond what the type holds.
    let since = at
        .duration_since(SystemTime::UNIX_EPOCH)
        .map_err(|_| Unreadable::Time)?;
    let seconds = i64::try_from(since.as_secs()).map_err(|_| Unreadable::Time)?;
    OffsetDateTime::from_unix_timestamp(seconds)
        .and_then(|whole| whole.replace_nanosecond(since.subsec_nanos()))
        .map_err(|_| Unreadable::Time)
}

pub(super) fn rfc3339(at: SystemTime) -> Result<Value, Unreadable> {
    instant(at)?
        .format(&Rfc3339)
        .ok()
        .map(Value::from)
        .ok_or(Unreadable::Time)
}

/// Nanoseconds since 1970; those that fit end in 2554, long before the dates that can be written.
pub(super) fn since_epoch(at: SystemTime) -> Result<u64, Unreadable> {
    at.duration_since(SystemTime::UNIX_EPOCH)
        .ok()
        .and_then(|since| u64::try_from(since.as_nanos()).ok())
        .ok_or(Unreadable::Time)
}

fn nanoseconds(at: SystemTime) -> Result<Value, Unreadable> {
    since_epoch(at).map(Value::from)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use http::Request;

    use super::*;
    use crate::document::{at, from_json, object};
    use crate::request::{RequestId, Rules, TlsInfo};
    use crate::tls::Sans;

    fn connection(tls: Option<TlsInfo>) -> Arc<ConnInfo> {
        Arc::new(ConnInfo {
            listener: "public".into(),
            peer: "192.0.2.7:40000".parse().unwrap(),
            local: "192.0.2.1:443".parse().unwrap(),
            tls,
            ambiguous_head: None,
            forwarded: Default::default(),
        })
    }

    fn certificate() -> PeerCertificate {
        PeerCertificate {
            subject: "CN=orders".to_owned(),
            issuer: "CN=Test CA".to_owned(),
            serial: "1f".to_owned(),
            sans: Sans {
                dns: vec!["orders.test".to_owned()],
                uri: vec!["spiffe://test/orders".to_owned()],
                email: vec![],
                ip: vec!["192.0.2.9".parse().unwrap()],
            },
            spiffe_id: Some("spiffe://test/orders".to_owned()),
            sha256: "ab".repeat(32),
            not_before: SystemTime::UNIX_EPOCH,
            not_after: SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000),
        }
    }

    fn parsed(
        connection: &Arc<ConnInfo>,
        build: impl FnOnce(http::request::Builder) -> http::request::Builder,
    ) -> InboundRequest {
        let received_at = SystemTime::UNIX_EPOCH + Duration::new(1_768_473_000, 123_000_000);
        let request = build(Request::builder().header("host", "api.example.test"))
            .body(())
            .unwrap();
        let id = RequestId::random();
        InboundRequest::parse(connection, id, request, received_at, &Rules::default())
            .unwrap()
            .0
    }

    fn of(request: &InboundRequest, hidden: &[HeaderName]) -> Value {
        let route = RouteFacts {
            name: &"read-order".into(),
            params: &[("id".into(), "42".to_owned())],
            labels: &object([("team", Value::from("orders"))]),
        };
        document(request, &route, None, hidden, &Wanted::all()).unwrap()
    }

    #[test]
    fn the_document_of_version_1_is_pinned() {
        let connection = connection(Some(TlsInfo {
            version: "TLSv1.3",
            server_name: Some("api.example.test".into()),
            peer_certificate: Some(Arc::new(certificate())),
            ..TlsInfo::default()
        }));
        let request = parsed(&connection, |request| {
            request
                .method("POST")
                .uri("/orders/a%20b?expand=items&expand=a+b&x=%C3%A9&flag")
                .header("accept", "application/json")
                .header("accept", "text/plain")
                .header("authorization", "Bearer secret")
                .header("cookie", "session=secret")
                .header("x-api-key", "secret")
                .header("x-legacy-token", "secret")
        });
        let route = RouteFacts {
            name: &"read-order".into(),
            params: &[("id".into(), "a b".to_owned())],
            labels: &object([("team", Value::from("orders"))]),
        };
        let identity = object([("subject", Value::from("alice"))]);
        let hidden = [HeaderName::from_static("x-legacy-token")];
        let found = document(&request, &route, Some(&identity), &hidden, &Wanted::all()).unwrap();
        let text =
            include_str!("testdata/input-v1.json").replace("REQUEST-ID", request.id.as_str());
        let expected = from_json(text.as_bytes()).unwrap();
        assert_eq!(
            found.to_json_str().unwrap(),
            expected.to_json_str().unwrap()
        );
        assert!(!found.to_json_str().unwrap().contains("secret"));
    }

    #[test]
    fn a_query_is_parted_at_ampersands_and_the_first_equals_sign_of_each_part() {
        let plainly = |query: &'static str| -> Vec<_> {
            let parts = query.split('&').filter(|part| !part.is_empty());
            parts
                .map(|part| part.split_once('=').unwrap_or((part, "")))
                .collect()
        };
        for query in [
            "",
            "&",
            "=",
            "a",
            "a=",
            "=b",
            "a=b",
            "a=b=c",
            "a==",
            "&a=b&",
            "a&b=&&=c&d=e=f",
            "é=ü&ß",
        ] {
            assert_eq!(pairs(query).collect::<Vec<_>>(), plainly(query), "{query}");
        }
    }

    #[test]
    fn without_tls_and_identity_there_is_null_and_not_nothing() {
        let request = parsed(&connection(None), |request| request.uri("/"));
        let found = of(&request, &[]);
        assert_eq!(at(&found, "source.tls"), Some(&Value::Null));
        assert_eq!(at(&found, "identity"), Some(&Value::Null));
        assert_eq!(at(&found, "request.segments"), Some(&Value::new_array()));
        assert_eq!(at(&found, "request.query"), Some(&Value::new_object()));
        assert_eq!(
            at(&found, "signals.device.known"),
            Some(&Value::from(false))
        );
    }

    #[test]
    fn header_bytes_that_are_no_text_neither_fail_nor_vanish() {
        let request = parsed(&connection(None), |request| {
            let odd = http::HeaderValue::from_bytes(b"ad\xffmin").unwrap();
            request
                .uri("/")
                .header("x-role", odd)
                .header("x-role", "user")
        });
        let found = of(&request, &[]);
        assert_eq!(
            at(&found, "request.headers.x-role"),
            Some(&Value::from("ad\u{fffd}min, user"))
        );
    }

    #[test]
    fn query_parameters_are_decoded_and_bounded() {
        let decoded = query("a=1&a=%zz&%62=%ff&&=x&c=%2").unwrap();
        let expected = from_json(
            "{\"a\":[\"1\",\"%zz\"],\"b\":[\"\u{fffd}\"],\"\":[\"x\"],\"c\":[\"%2\"]}".as_bytes(),
        );
        assert_eq!(Ok(decoded), expected);
        assert!(query(&"a&".repeat(MAX_QUERY_PARAMETERS)).is_ok());
        assert_eq!(
            query(&"a&".repeat(MAX_QUERY_PARAMETERS + 1)),
            Err(Unreadable::QueryParameters)
        );
    }

    #[test]
    fn a_time_out_of_range_is_an_error_and_no_panic() {
        let far = SystemTime::UNIX_EPOCH + Duration::from_secs(400_000_000_000);
        assert_eq!(rfc3339(far), Err(Unreadable::Time));
        let before = SystemTime::UNIX_EPOCH - Duration::from_secs(1);
        assert_eq!(nanoseconds(before), Err(Unreadable::Time));
    }
}
