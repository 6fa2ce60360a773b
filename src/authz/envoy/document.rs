//! The document of OPA's Envoy plugin: Envoy's CheckRequest in the JSON form of its protocol, and
//! what the plugin parses of it.
//!
//! It differs from what plugin and Envoy make of the same request where that would not be one
//! request any more, or would tell a secret:
//!
//! - `parsed_path` is split first and then decoded; the plugin decodes first, so that `%2F` makes
//!   two segments of one;
//! - `authorization` is there for bearer tokens only, as `Bearer header.payload.`: it can be decoded,
//!   and not replayed. Cookies, keys and other headers with credentials are absent;
//! - the path is the canonical one, and forwarding headers say what the gateway found out itself;
//! - `source.certificate`, `destination.principal` and `source.service` are absent;
//! - a parameter of the query with a flawed percent sign is kept as it stands; the plugin drops it;
//! - `time` is a text as documented, which the plugin's own later versions give in two numbers.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::LazyLock;

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use http::header::{AUTHORIZATION, CONTENT_LENGTH};
use http::{HeaderName, HeaderValue};

use crate::authz::body;
use crate::authz::cache::projection::Question;
use crate::authz::input::{self, Unreadable};
use crate::authz::source::reads::Step;
use crate::document::{Value, object, text};
use crate::request::InboundRequest;
use crate::tls::PeerCertificate;

/// The filter whose metadata the claims of a verified token are offered as.
const JWT_FILTER: &str = "envoy.filters.http.jwt_authn";
/// Whether the policy sees less of the body than there is.
const PARTIAL_BODY: &str = "x-envoy-auth-partial-body";

/// What of the document a policy can read, as a tree of names.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(in crate::authz) struct Want {
    /// This member and all that lies below it.
    all: bool,
    names: BTreeMap<String, Self>,
}

static EVERYTHING: Want = Want {
    all: true,
    names: BTreeMap::new(),
};

impl Want {
    /// What these paths lead to, with all that lies below.
    pub(in crate::authz) fn by<'p>(paths: impl IntoIterator<Item = &'p [Step]>) -> Self {
        let mut want = Self::default();
        for path in paths {
            let mut at = &mut want;
            for step in path {
                match step {
                    Step::Name(name) => at = at.names.entry(name.clone()).or_default(),
                    Step::Index(_) => break,
                }
            }
            at.all = true;
        }
        want
    }

    /// Everything.
    #[cfg(test)]
    pub(in crate::authz) fn all() -> Self {
        EVERYTHING.clone()
    }

    fn of(&self, name: &str) -> Option<&Self> {
        if self.all {
            return Some(&EVERYTHING);
        }
        self.names.get(name)
    }
}

/// A member's name, allocated once.
struct Key {
    name: &'static str,
    value: Value,
}

macro_rules! keys {
    ($($field:ident = $name:literal),* $(,)?) => {
        struct Keys { $($field: Key),* }

        static KEYS: LazyLock<Keys> = LazyLock::new(|| Keys {
            $($field: Key { name: $name, value: Value::from($name) }),*
        });
    };
}

keys!(
    address = "address",
    attributes = "attributes",
    body = "body",
    context = "contextExtensions",
    destination = "destination",
    filters = "filterMetadata",
    headers = "headers",
    host = "host",
    http = "http",
    id = "id",
    identity = "identity",
    jwt = "envoy.filters.http.jwt_authn",
    metadata = "metadataContext",
    method = "method",
    parsed_body = "parsed_body",
    parsed_path = "parsed_path",
    parsed_query = "parsed_query",
    path = "path",
    port = "portValue",
    portcullis = "portcullis",
    principal = "principal",
    protocol = "protocol",
    raw_body = "rawBody",
    request = "request",
    route = "route",
    route_metadata = "routeMetadataContext",
    scheme = "scheme",
    signals = "signals",
    size = "size",
    sni = "sni",
    socket = "socketAddress",
    source = "source",
    time = "time",
    tls = "tlsSession",
    truncated_body = "truncated_body",
    version = "version",
);

static VERSION: LazyLock<Value> = LazyLock::new(|| {
    object([
        ("ext_authz", Value::from("v3")),
        ("encoding", Value::from("protojson")),
    ])
});

/// An object of those members that are wanted.
struct Members<'w> {
    want: &'w Want,
    found: BTreeMap<Value, Value>,
}

impl<'w> Members<'w> {
    fn of(want: &'w Want) -> Self {
        Self {
            want,
            found: BTreeMap::new(),
        }
    }

    fn with(mut self, key: &Key, value: impl FnOnce(&Want) -> Value) -> Self {
        if let Some(want) = self.want.of(key.name) {
            self.found.insert(key.value.clone(), value(want));
        }
        self
    }

    /// One that may be absent, or not be readable.
    fn may(
        mut self,
        key: &Key,
        value: impl FnOnce(&Want) -> Result<Option<Value>, Unreadable>,
    ) -> Result<Self, Unreadable> {
        if let Some(want) = self.want.of(key.name)
            && let Some(value) = value(want)?
        {
            self.found.insert(key.value.clone(), value);
        }
        Ok(self)
    }

    fn done(self) -> Value {
        Value::from(self.found)
    }
}

/// Builds the document, as far as it is wanted.
///
/// # Errors
/// [`Unreadable`] when the document would not be the whole request.
pub(in crate::authz) fn document(about: &Question<'_>, want: &Want) -> Result<Value, Unreadable> {
    input::readable(about.request)?;
    let k = &*KEYS;
    let request = about.request;
    let excerpt = request.excerpt.as_deref();
    let whole = excerpt.is_some_and(|excerpt| excerpt.whole);
    let if_read = |value: Value| Ok(about.reads_body.then_some(value));
    Ok(Members::of(want)
        .with(&k.version, |_| VERSION.clone())
        .may(&k.attributes, |want| attributes(about, want).map(Some))?
        .with(&k.parsed_path, |_| parsed_path(request))
        .may(&k.parsed_query, |_| {
            input::query(request.query.as_deref().unwrap_or("")).map(Some)
        })?
        .may(&k.parsed_body, |_| match about.reads_body {
            true => body::parsed(request).map(Some),
            false => Ok(None),
        })?
        .may(&k.truncated_body, |_| if_read(Value::from(!whole)))?
        .done())
}

/// The segments as the plugin numbers them: `/` has one, of no text.
pub(super) fn parsed_path(request: &InboundRequest) -> Value {
    Value::from(segments(request).map(Value::from).collect::<Vec<_>>())
}

pub(super) fn segments(request: &InboundRequest) -> impl Iterator<Item = String> + '_ {
    let root = (request.path.as_str() == "/").then(String::new);
    root.into_iter().chain(request.path.segments())
}

fn attributes(about: &Question<'_>, want: &Want) -> Result<Value, Unreadable> {
    let k = &*KEYS;
    let request = about.request;
    Ok(Members::of(want)
        .with(&k.source, |want| {
            // Behind a proxy the connection's port is not the client's.
            let port = input::port(request).unwrap_or(0);
            let peer = peer(want, request.client.to_string(), port);
            match principal(request) {
                Some(principal) => peer.with(&k.principal, |_| Value::from(principal)),
                None => peer,
            }
            .done()
        })
        .with(&k.destination, |want| {
            let local = request.conn.local;
            let address = local.ip().to_canonical().to_string();
            peer(want, address, u64::from(local.port())).done()
        })
        .may(&k.request, |want| {
            Members::of(want)
                .may(&k.time, |_| input::rfc3339(request.received_at).map(Some))?
                .may(&k.http, |want| http(about, want).map(Some))
                .map(|members| Some(members.done()))
        })?
        .with(&k.context, |_| extensions(about))
        .with(&k.metadata, |want| metadata(about, want))
        .with(&k.route_metadata, |want| {
            Members::of(want)
                .with(&k.filters, |want| {
                    Members::of(want)
                        .with(&k.portcullis, |_| about.route.labels.clone())
                        .done()
                })
                .done()
        })
        .may(&k.tls, |want| {
            let Some(tls) = &request.conn.tls else {
                return Ok(None);
            };
            let members = Members::of(want);
            let members = match &tls.server_name {
                Some(name) => members.with(&k.sni, |_| crate::document::string(name)),
                None => members,
            };
            Ok(Some(members.done()))
        })?
        .done())
}

fn peer(want: &Want, address: String, port: u64) -> Members<'_> {
    let k = &*KEYS;
    Members::of(want).with(&k.address, |want| {
        Members::of(want)
            .with(&k.socket, |want| {
                Members::of(want)
                    .with(&k.address, |_| Value::from(address))
                    .with(&k.port, |_| Value::from(port))
                    .done()
            })
            .done()
    })
}

/// Who the client certificate names, as Envoy chooses: the first URI, else the first DNS name, else
/// the subject.
pub(super) fn principal(request: &InboundRequest) -> Option<&str> {
    let tls = request.conn.tls.as_ref()?;
    let certificate: &PeerCertificate = tls.peer_certificate.as_deref()?;
    let sans = &certificate.sans;
    let named = sans.uri.first().or(sans.dns.first());
    Some(named.unwrap_or(&certificate.subject))
}

fn http(about: &Question<'_>, want: &Want) -> Result<Value, Unreadable> {
    let k = &*KEYS;
    let request = about.request;
    let excerpt = request.excerpt.as_deref().filter(|_| about.reads_body);
    // Nothing was read of what is not waited for: that is no empty body.
    let read = excerpt.filter(|excerpt| excerpt.whole || !excerpt.bytes.is_empty());
    let sent = read.map(|excerpt| (std::str::from_utf8(&excerpt.bytes), &excerpt.bytes));
    Ok(Members::of(want)
        .with(&k.id, |_| Value::from(request.id.as_str()))
        .with(&k.method, |_| Value::from(request.method.as_str()))
        .with(&k.headers, |want| headers(about, want))
        .with(&k.path, |_| Value::from(target(request).as_ref()))
        .with(&k.host, |_| Value::from(request.host.as_str()))
        .with(&k.scheme, |_| Value::from(request.scheme.as_str()))
        .with(&k.protocol, |_| {
            Value::from(input::protocol(request.version))
        })
        .with(&k.size, |_| Value::from(size(request)))
        .may(&k.body, |_| match sent {
            Some((Ok(text), _)) => Ok(Some(Value::from(text))),
            _ => Ok(None),
        })?
        .may(&k.raw_body, |_| match sent {
            Some((Err(_), bytes)) => Ok(Some(Value::from(BASE64.encode(bytes)))),
            _ => Ok(None),
        })?
        .done())
}

/// The target as it is forwarded.
pub(super) fn target(request: &InboundRequest) -> Cow<'_, str> {
    match &request.query {
        None => Cow::Borrowed(request.path.as_str()),
        Some(query) => Cow::Owned(format!("{}?{query}", request.path.as_str())),
    }
}

/// The length that was told, or -1.
pub(super) fn size(request: &InboundRequest) -> i64 {
    let told = request.headers.get(CONTENT_LENGTH);
    let told = told.and_then(|length| length.to_str().ok()?.parse().ok());
    told.unwrap_or(if request.method.is_safe() { 0 } else { -1 })
}

fn headers(about: &Question<'_>, want: &Want) -> Value {
    let insert = |members: &mut BTreeMap<Value, Value>, name: &str| {
        if let Some(value) = header(about, name) {
            members.insert(Value::from(name), Value::from(value.as_ref()));
        }
    };
    let mut members = BTreeMap::new();
    if want.all {
        let sent = about.request.headers.keys().map(HeaderName::as_str);
        for name in MADE.into_iter().chain(sent) {
            insert(&mut members, name);
        }
    } else {
        for name in want.names.keys() {
            insert(&mut members, name);
        }
    }
    Value::from(members)
}

/// The headers that are written here and not by the client.
const MADE: [&str; 8] = [
    ":authority",
    ":method",
    ":path",
    ":scheme",
    "x-forwarded-for",
    "x-forwarded-proto",
    "x-request-id",
    PARTIAL_BODY,
];

/// One header, by its name in lower case. Several of one name are joined as Envoy joins them.
pub(super) fn header<'r>(about: &Question<'r>, name: &str) -> Option<Cow<'r, str>> {
    let request = about.request;
    let made: Cow<'r, str> = match name {
        ":authority" => request.host.as_str().into(),
        ":method" => request.method.as_str().into(),
        ":path" => target(request),
        ":scheme" => request.scheme.as_str().into(),
        "x-forwarded-for" => forwarded_for(request).into(),
        "x-forwarded-proto" => forwarded_proto(request),
        "x-request-id" => request.id.as_str().into(),
        PARTIAL_BODY => {
            let whole = request.excerpt.as_ref().is_some_and(|body| body.whole);
            let partial = about.reads_body.then_some(!whole)?;
            (if partial { "true" } else { "false" }).into()
        }
        "authorization" if !about.hidden.contains(&AUTHORIZATION) => unsigned(request)?.into(),
        name => {
            let known = HeaderName::from_lowercase(name.as_bytes()).ok()?;
            if !input::is_visible(&known, about.hidden) {
                return None;
            }
            let mut fields = request.headers.get_all(&known).iter();
            let mut value = String::from_utf8_lossy(fields.next()?.as_bytes());
            for field in fields {
                let value = value.to_mut();
                value.push(',');
                value.push_str(&String::from_utf8_lossy(field.as_bytes()));
            }
            value
        }
    };
    Some(made)
}

/// The hops, the client first: what the gateway believes, not what the client wrote.
fn forwarded_for(request: &InboundRequest) -> String {
    let peer = request.conn.peer.ip().to_canonical();
    if request.client == peer {
        return peer.to_string();
    }
    format!("{},{peer}", request.client)
}

fn forwarded_proto(request: &InboundRequest) -> Cow<'_, str> {
    let told = request.single(&HeaderName::from_static("x-forwarded-proto"));
    let told = told.ok().flatten().filter(|_| request.via_trusted_proxy);
    match told.map(HeaderValue::as_bytes) {
        Some(proto) if proto.eq_ignore_ascii_case(b"https") => "https".into(),
        Some(proto) if proto.eq_ignore_ascii_case(b"http") => "http".into(),
        Some(_) | None => request.scheme.as_str().into(),
    }
}

/// A bearer token without its signature. Only what has the three parts of a signed token is told:
/// anything else may be a secret as a whole.
pub(super) fn unsigned(request: &InboundRequest) -> Option<String> {
    let field = request.single(&AUTHORIZATION).ok()??.to_str().ok()?;
    let (scheme, token) = field.split_once(' ')?;
    if !scheme.eq_ignore_ascii_case("bearer") {
        return None;
    }
    let mut parts = token.split('.');
    let (header, payload) = (parts.next()?, parts.next()?);
    parts.next()?;
    let base64url = |part: &str| {
        let fits = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_');
        !part.is_empty() && part.bytes().all(fits)
    };
    if parts.next().is_some() || !base64url(header) || !base64url(payload) {
        return None;
    }
    Some(format!("Bearer {header}.{payload}."))
}

/// The route's labels; what is no text is written as JSON.
fn extensions(about: &Question<'_>) -> Value {
    let Ok(labels) = about.route.labels.as_object() else {
        return Value::new_object();
    };
    let members = labels.iter().filter_map(|(name, value)| {
        let value = match text(value) {
            Some(_) => value.clone(),
            None => Value::from(serde_json::to_string(value).ok()?),
        };
        Some((name.clone(), value))
    });
    Value::from(members.collect::<BTreeMap<_, _>>())
}

fn metadata(about: &Question<'_>, want: &Want) -> Value {
    let k = &*KEYS;
    Members::of(want)
        .with(&k.filters, |want| {
            let members = Members::of(want).with(&k.portcullis, |want| {
                Members::of(want)
                    .with(&k.identity, |_| match about.identity {
                        Some(identity) => identity.document().clone(),
                        None => Value::Null,
                    })
                    .with(&k.route, |_| input::route(about.route))
                    .with(&k.signals, |_| input::signals())
                    .done()
            });
            match about.identity.filter(|identity| identity.method == "jwt") {
                None => members,
                // Envoy's filter names the claims as its configuration says; these are the names that
                // its documentation and others' use.
                Some(identity) => members.with(&k.jwt, |_| {
                    object([
                        (Value::from("verified_jwt"), identity.claims.clone()),
                        (Value::from("jwt_payload"), identity.claims.clone()),
                        (
                            crate::document::string(&identity.source),
                            identity.claims.clone(),
                        ),
                        (
                            crate::document::string(&identity.issuer),
                            identity.claims.clone(),
                        ),
                    ])
                }),
            }
            .done()
        })
        .done()
}

/// The filter's name, for whoever looks for it in a path.
pub(super) const fn jwt_filter() -> &'static str {
    JWT_FILTER
}
