//! The facts about a request before anything is decided.
//!
//! [`InboundRequest::parse`] is the only way in. What comes out has one Host, one canonical path
//! (the bytes we match are the bytes the policy sees and the bytes we forward), one client address,
//! one clock reading, and no header that only we may write. What is ambiguous does not come out.

mod host;
mod path;

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::SystemTime;

use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::{Method, Request, Version};
use ipnet::IpNet;

pub use host::Host;
pub use path::{Ambiguities, CanonicalPath, PathRules};

use crate::tls::PeerCertificate;

/// What is known of a connection, fixed when it was made.
#[derive(Debug)]
pub struct ConnInfo {
    /// The name of the listener that accepted it.
    pub listener: Arc<str>,
    /// The transport address of the peer.
    pub peer: SocketAddr,
    /// Our own address.
    pub local: SocketAddr,
    /// Present on TLS connections.
    pub tls: Option<TlsInfo>,
    /// On HTTP/1, whether the request that is being handed over has a head that can be framed in
    /// several ways: more than one length, of either kind, or lines that do not end in CR LF.
    /// hyper forgets these before we see the request; see `server::framing`.
    pub ambiguous_head: Option<Arc<std::sync::atomic::AtomicBool>>,
}

/// The facts of a TLS session.
#[derive(Debug)]
pub struct TlsInfo {
    /// `TLSv1.2` or `TLSv1.3`.
    pub version: &'static str,
    /// The server name that the client asked for.
    pub server_name: Option<Arc<str>>,
    /// The client certificate, verified against the listener's authorities.
    pub peer_certificate: Option<Arc<PeerCertificate>>,
}

/// The protocol under a request's `scheme`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scheme {
    /// Without TLS.
    Http,
    /// Over TLS.
    Https,
}

impl Scheme {
    /// `http` or `https`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Http => "http",
            Self::Https => "https",
        }
    }
}

/// 128 random bits in lower-case hex: names a request in answers, records and logs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RequestId(Arc<str>);

impl RequestId {
    /// A fresh id.
    pub fn random() -> Self {
        Self(format!("{:032x}", rand::random::<u128>()).into())
    }

    /// The id as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The id as shared text.
    pub fn shared(&self) -> &Arc<str> {
        &self.0
    }
}

/// The rules by which requests are read; compiled once per configuration.
#[derive(Debug, Clone, Default)]
pub struct Rules {
    /// Headers that only we write, in lower case; see [`Rules::owns`].
    pub owned: Vec<HeaderName>,
    /// Peers whose forwarding headers are believed.
    pub trusted_proxies: Vec<IpNet>,
}

impl Rules {
    /// Whether `name` is one of our headers under any spelling: an upstream may read `_` or `.` as
    /// `-` (CGI, WSGI and their kin do), so the comparison does too.
    pub fn owns(&self, name: &str) -> bool {
        self.owned.iter().any(|owned| aliases(owned.as_str(), name))
    }

    /// Whether forwarding headers from this peer are believed.
    pub fn trusts(&self, peer: IpAddr) -> bool {
        let peer = peer.to_canonical();
        self.trusted_proxies.iter().any(|net| net.contains(&peer))
    }
}

fn aliases(owned: &str, name: &str) -> bool {
    owned.len() == name.len()
        && owned.bytes().zip(name.bytes()).all(|(o, n)| {
            let fold = |b: u8| {
                if b.is_ascii_alphanumeric() {
                    b.to_ascii_lowercase()
                } else {
                    b'-'
                }
            };
            fold(o) == fold(n)
        })
}

/// A request that can be read in one way only.
#[derive(Debug)]
pub struct InboundRequest {
    /// Names this request everywhere.
    pub id: RequestId,
    /// The connection it came on.
    pub conn: Arc<ConnInfo>,
    /// The request's one clock reading.
    pub received_at: SystemTime,
    /// The method; never `CONNECT`.
    pub method: Method,
    /// How the client reached us.
    pub scheme: Scheme,
    /// The one host asked for.
    pub host: Host,
    /// The one path: matched, judged and forwarded.
    pub path: CanonicalPath,
    /// The query without `?`, as sent; forwarded byte for byte.
    pub query: Option<String>,
    /// End-to-end headers. Ours, hop-by-hop ones and `Host` are gone.
    pub headers: HeaderMap,
    /// The protocol version the client spoke.
    pub version: Version,
    /// Who the client is on the network, after the rules for trusted proxies.
    pub client: IpAddr,
    /// Whether a trusted proxy stood between; its forwarding headers are then kept.
    pub via_trusted_proxy: bool,
    /// Whether the client can read trailers (`TE: trailers`), as gRPC requires.
    pub accepts_trailers: bool,
}

/// Why a request cannot be read in one way only. Whose fault: always the client's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    /// None, several, or an unreadable one (RFC 9112 section 3.2).
    #[error("the request does not have exactly one valid host")]
    Host,
    /// Host, `:authority` and the target's authority are not all the same.
    #[error("host and authority name different hosts")]
    HostMismatch,
    /// The target's scheme is not the connection's.
    #[error("the scheme of the target is not that of the connection")]
    Scheme,
    /// The path can be read in several ways, or not at all.
    #[error("path: {0}")]
    Path(&'static str),
    /// The query holds bytes that do not belong into one.
    #[error("the query holds forbidden bytes")]
    Query,
    /// The length of the body can be read in several ways (RFC 9112 section 6.3).
    #[error("the length of the body is ambiguous")]
    Framing,
    /// A header value with control bytes.
    #[error("a header value holds control bytes")]
    HeaderValue,
    /// `Expect` other than `100-continue`.
    #[error("an expectation that we cannot meet")]
    Expectation,
    /// `CONNECT`, `TRACE`, or a method token we do not know how to bound.
    #[error("the method is not supported")]
    Method,
    /// The TLS session does not cover this host.
    #[error("this connection does not serve that host")]
    Misdirected,
    /// A body longer than the route allows, known from `Content-Length`.
    #[error("the body is larger than allowed")]
    TooLarge,
}

impl InboundRequest {
    /// Reads a request's head.
    ///
    /// # Errors
    /// [`Malformed`] when anything in it can be understood in more than one way.
    pub fn parse<B>(
        conn: &Arc<ConnInfo>,
        id: RequestId,
        request: Request<B>,
        received_at: SystemTime,
        rules: &Rules,
    ) -> Result<(Self, B), Malformed> {
        let (parts, body) = request.into_parts();
        let mut headers = parts.headers;

        if parts.method == Method::CONNECT || parts.method == Method::TRACE {
            return Err(Malformed::Method);
        }
        check_framing(conn, parts.version, &headers)?;
        let scheme = if conn.tls.is_some() {
            Scheme::Https
        } else {
            Scheme::Http
        };
        if let Some(named) = parts.uri.scheme_str()
            && named != scheme.as_str()
        {
            return Err(Malformed::Scheme);
        }
        let host = one_host(&parts.uri, &headers)?;
        let path = CanonicalPath::parse(parts.uri.path()).map_err(Malformed::Path)?;
        let query = parts.uri.query().map(check_query).transpose()?;
        if let Some(expect) = headers.remove(header::EXPECT)
            && !expect.as_bytes().eq_ignore_ascii_case(b"100-continue")
        {
            return Err(Malformed::Expectation);
        }
        // A tab is legal in a value; other control bytes are how lines are forged in logs and
        // in the next hop's parser.
        if headers.values().any(|v| {
            v.as_bytes()
                .iter()
                .any(|&b| (b < 0x20 && b != b'\t') || b == 0x7f)
        }) {
            return Err(Malformed::HeaderValue);
        }

        let via_trusted_proxy = rules.trusts(conn.peer.ip());
        let client = if via_trusted_proxy {
            forwarded_client(&headers, conn.peer.ip(), rules)
        } else {
            conn.peer.ip().to_canonical()
        };
        let accepts_trailers = headers.get_all(header::TE).iter().any(|te| {
            te.to_str().is_ok_and(|te| {
                te.split(',')
                    .any(|t| t.trim().eq_ignore_ascii_case("trailers"))
            })
        });
        strip(&mut headers, rules, via_trusted_proxy);

        let request = Self {
            id,
            conn: Arc::clone(conn),
            received_at,
            method: parts.method,
            scheme,
            host,
            path,
            query,
            headers,
            version: parts.version,
            client,
            via_trusted_proxy,
            accepts_trailers,
        };
        Ok((request, body))
    }

    /// The only value of a header that must be single; `Err` when there are several.
    ///
    /// # Errors
    /// The number of values when there is more than one.
    pub fn single(&self, name: &HeaderName) -> Result<Option<&HeaderValue>, usize> {
        let mut values = self.headers.get_all(name).iter();
        let first = values.next();
        match values.count() {
            0 => Ok(first),
            more => Err(more + 1),
        }
    }

    /// Whether this is a gRPC call, whose errors travel in trailers.
    pub fn is_grpc(&self) -> bool {
        is_grpc(&self.method, self.version, &self.headers)
    }
}

/// Whether this is the head of a gRPC call: anything else with its content type must not choose to
/// have its refusals dressed as a 200.
pub fn is_grpc(method: &Method, version: Version, headers: &HeaderMap) -> bool {
    let call = *method == Method::POST && version == Version::HTTP_2;
    call && headers.get(header::CONTENT_TYPE).is_some_and(|value| {
        value
            .as_bytes()
            .strip_prefix(b"application/grpc")
            .is_some_and(|rest| rest.is_empty() || rest.starts_with(b"+") || rest.starts_with(b";"))
    })
}

/// Hop-by-hop headers (RFC 9110 section 7.6.1) and the proxy ones that must not travel on.
pub const HOP_BY_HOP: [&str; 10] = [
    "connection",
    "keep-alive",
    "proxy-connection",
    "proxy-authenticate",
    "proxy-authorization",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
    "http2-settings",
];

/// Forwarding headers: believed from trusted proxies, dropped from everybody else. So is every other
/// `x-forwarded-…`; see [`is_forwarding`].
pub const FORWARDING: [&str; 9] = [
    "forwarded",
    "x-forwarded-for",
    "x-forwarded-host",
    "x-forwarded-proto",
    "x-forwarded-port",
    "x-forwarded-prefix",
    "x-forwarded-uri",
    "x-forwarded-client-cert",
    "x-real-ip",
];

/// Other names under which servers have been made to believe in another client, and prefixes of
/// such names.
const CLIENT_ALIASES: [&str; 7] = [
    "cf-connecting-ip",
    "client-ip",
    "fastly-client-ip",
    "true-client-ip",
    "x-client-ip",
    "x-cluster-client-ip",
    "x-envoy-external-address",
];

/// Headers by which some servers take another path or method than the one that was judged.
const OVERRIDES: [&str; 9] = [
    "x-envoy-original-path",
    "x-http-method",
    "x-http-method-override",
    "x-method-override",
    "x-original-method",
    "x-original-uri",
    "x-original-url",
    "x-rewrite-uri",
    "x-rewrite-url",
];

/// Whether a header tells of the hops before us, and is believed from trusted proxies alone.
pub fn is_forwarding(name: &str) -> bool {
    FORWARDING.contains(&name) || CLIENT_ALIASES.contains(&name) || name.starts_with("x-forwarded-")
}

/// Whether a header makes some servers serve another path or method than the one that was judged.
/// It stops here whoever sent it: the path we match is the path that is served.
pub fn is_override(name: &str) -> bool {
    OVERRIDES.contains(&name)
}

fn check_framing(conn: &ConnInfo, version: Version, headers: &HeaderMap) -> Result<(), Malformed> {
    let ambiguous = conn
        .ambiguous_head
        .as_ref()
        .is_some_and(|flag| flag.load(std::sync::atomic::Ordering::Relaxed));
    if ambiguous {
        return Err(Malformed::Framing);
    }
    let mut encodings = headers.get_all(header::TRANSFER_ENCODING).iter();
    if let Some(encoding) = encodings.next() {
        let chunked = encoding.as_bytes().eq_ignore_ascii_case(b"chunked");
        let length = headers.contains_key(header::CONTENT_LENGTH);
        if version != Version::HTTP_11 || !chunked || encodings.next().is_some() || length {
            return Err(Malformed::Framing);
        }
    }
    if headers.get_all(header::CONTENT_LENGTH).iter().count() > 1 {
        return Err(Malformed::Framing);
    }
    Ok(())
}

fn one_host(uri: &http::Uri, headers: &HeaderMap) -> Result<Host, Malformed> {
    let mut named = headers.get_all(header::HOST).iter();
    let header = named.next();
    if named.next().is_some() {
        return Err(Malformed::Host);
    }
    let header = match header {
        Some(value) => Some(Host::parse(value.to_str().map_err(|_| Malformed::Host)?)?),
        None => None,
    };
    let authority = match uri.authority() {
        Some(authority) => Some(Host::parse(authority.as_str())?),
        None => None,
    };
    match (authority, header) {
        (Some(authority), Some(header)) if authority != header => Err(Malformed::HostMismatch),
        (Some(host), _) | (None, Some(host)) => Ok(host),
        (None, None) => Err(Malformed::Host),
    }
}

fn check_query(query: &str) -> Result<String, Malformed> {
    if query.bytes().all(|b| (0x21..0x7f).contains(&b)) {
        Ok(query.to_owned())
    } else {
        Err(Malformed::Query)
    }
}

/// The rightmost address that is no trusted proxy: everything left of it is the client's own word.
fn forwarded_client(headers: &HeaderMap, peer: IpAddr, rules: &Rules) -> IpAddr {
    let mut client = peer.to_canonical();
    let fields: Vec<&HeaderValue> = headers.get_all("x-forwarded-for").iter().collect();
    for field in fields.iter().rev() {
        let Ok(text) = field.to_str() else {
            return client;
        };
        for hop in text.rsplit(',') {
            let Some(address) = forwarded_address(hop.trim()) else {
                return client;
            };
            client = address;
            if !rules.trusts(address) {
                return client;
            }
        }
    }
    client
}

fn forwarded_address(text: &str) -> Option<IpAddr> {
    let text = text.trim_matches('"');
    text.parse::<IpAddr>()
        .ok()
        .or_else(|| text.parse::<SocketAddr>().ok().map(|a| a.ip()))
        .or_else(|| text.strip_prefix('[')?.strip_suffix(']')?.parse().ok())
        .map(|address| address.to_canonical())
}

/// Removes what must not travel on: hop-by-hop headers, those that `Connection` nominates, ours
/// under every spelling, forwarding headers of strangers, and names with `_`, which servers behind
/// us may take for the same name with `-`.
fn strip(headers: &mut HeaderMap, rules: &Rules, via_trusted_proxy: bool) {
    let nominated: Vec<HeaderName> = headers
        .get_all(header::CONNECTION)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .filter_map(|name| HeaderName::from_bytes(name.trim().as_bytes()).ok())
        .collect();
    for name in nominated {
        // End-to-end headers that a Connection header has no business to remove (RFC 9110
        // section 7.6.1 forbids nominating them) stay: dropping `Authorization` or a cookie here
        // would change what the request means.
        if !matches!(
            name,
            header::AUTHORIZATION
                | header::COOKIE
                | header::HOST
                | header::CONTENT_LENGTH
                | header::CONTENT_TYPE
        ) {
            headers.remove(&name);
        }
    }
    for name in HOP_BY_HOP {
        headers.remove(name);
    }
    headers.remove(header::HOST);
    let dropped: Vec<HeaderName> = headers
        .keys()
        .filter(|name| {
            let name = name.as_str();
            name.bytes()
                .any(|b| !b.is_ascii_alphanumeric() && b != b'-')
                || rules.owns(name)
                || is_override(name)
                || (!via_trusted_proxy && is_forwarding(name))
        })
        .cloned()
        .collect();
    for name in dropped {
        headers.remove(name);
    }
}
