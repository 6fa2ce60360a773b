//! The facts about a request before anything is decided.
//!
//! [`InboundRequest::parse`] is the only way in. What comes out has one Host, one canonical path
//! (the bytes we match are the bytes the policy sees and the bytes we forward), one client address,
//! one clock reading, and no header that only we may write. What is ambiguous does not come out.

mod excerpt;
mod host;
mod lines;
mod path;
pub mod scan;
mod upgrade;

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::ops::Deref;
use std::sync::{Arc, OnceLock};
use std::time::SystemTime;

use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::{Method, Request, Version};
use ipnet::IpNet;

pub use excerpt::Excerpt;
pub use host::Host;
pub use lines::Lines;
pub use path::{Ambiguities, CanonicalPath, PathRules};
pub use upgrade::{Upgrade, UpgradeFault};

use self::scan::Odd;
use crate::tls::{PeerCertificate, Standing};

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
    /// What is told of it.
    pub forwarded: Told,
}

/// What is told of a connection, the same for all of its requests: memos, each written at its first
/// use by the room that it is for.
#[derive(Debug, Default)]
pub struct Told {
    /// To upstreams.
    pub upstream: OnceLock<Forwarded>,
    /// In records.
    pub record: OnceLock<Box<[u8]>>,
    /// In what records tell of a policy's input: its peer and its TLS session.
    pub input: OnceLock<Box<[u8]>>,
}

impl ConnInfo {
    /// The standing of the client's certificate, when it has shown one.
    pub fn standing(&self) -> Option<&Arc<Standing>> {
        self.tls.as_ref()?.standing.as_ref()
    }
}

/// The forwarding headers of a connection's requests for one host.
#[derive(Debug)]
pub struct Forwarded {
    /// The host.
    pub host: Host,
    /// `X-Forwarded-For`, `-Proto`, `-Host`, `-Port` and `Forwarded`.
    pub lines: Lines,
}

/// The facts of a TLS session.
#[derive(Debug, Default)]
pub struct TlsInfo {
    /// `TLSv1.2` or `TLSv1.3`.
    pub version: &'static str,
    /// The server name that the client asked for.
    pub server_name: Option<Arc<str>>,
    /// The client certificate, verified against the listener's authorities.
    pub peer_certificate: Option<Arc<PeerCertificate>>,
    /// Whether that certificate is still believed; there when it is.
    pub standing: Option<Arc<Standing>>,
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
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct RequestId([u8; 32]);

impl RequestId {
    /// A fresh id.
    pub fn random() -> Self {
        let (upper, lower): (u64, u64) = rand::random();
        let mut digits = [0; 32];
        let (first, second) = digits.split_at_mut(16);
        first.copy_from_slice(&hex(upper));
        second.copy_from_slice(&hex(lower));
        Self(digits)
    }

    /// The id as text.
    pub fn as_str(&self) -> &str {
        // Always digits; see `random`.
        std::str::from_utf8(&self.0).unwrap_or_default()
    }

    /// The id as the value of a header.
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl fmt::Debug for RequestId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("RequestId").field(&self.as_str()).finish()
    }
}

/// A number as sixteen digits in lower case, most significant first.
pub fn hex(number: u64) -> [u8; 16] {
    let half = |half: u64| {
        // One nibble to a byte, all eight at once.
        let x = (half | half << 16) & 0x0000_ffff_0000_ffff;
        let x = (x | x << 8) & 0x00ff_00ff_00ff_00ff;
        let x = (x | x << 4) & 0x0f0f_0f0f_0f0f_0f0f;
        let letters = ((x + 0x0606_0606_0606_0606) >> 4) & 0x0101_0101_0101_0101;
        (x + 0x3030_3030_3030_3030 + letters * 0x27).to_be_bytes()
    };
    let mut digits = [0; 16];
    let (first, second) = digits.split_at_mut(8);
    first.copy_from_slice(&half(number >> 32));
    second.copy_from_slice(&half(number & 0xffff_ffff));
    digits
}

/// The rules by which requests are read; compiled once per configuration.
#[derive(Debug, Clone, Default)]
pub struct Rules {
    /// Headers that only we write; see [`Rules::owns`].
    pub owned: Owned,
    /// Peers whose forwarding headers are believed.
    pub trusted_proxies: Vec<IpNet>,
}

impl Rules {
    /// Whether `name` is one of our headers under any spelling: an upstream may read `_` or `.` as
    /// `-` (CGI, WSGI and their kin do), so the comparison does too.
    pub fn owns(&self, name: &str) -> bool {
        // Every name of every request is asked for.
        self.owned.lengths & length_bit(name) != 0 && { self.owned.iter() }
            .any(|owned| aliases(owned.as_str(), name))
    }

    /// Whether forwarding headers from this peer are believed.
    pub fn trusts(&self, peer: IpAddr) -> bool {
        let peer = peer.to_canonical();
        self.trusted_proxies.iter().any(|net| net.contains(&peer))
    }
}

/// Names of headers.
#[derive(Debug, Clone, Default)]
pub struct Owned {
    names: Vec<HeaderName>,
    /// Which lengths they have: a bit for each; see [`length_bit`].
    lengths: u64,
}

impl Deref for Owned {
    type Target = [HeaderName];

    fn deref(&self) -> &[HeaderName] {
        &self.names
    }
}

impl FromIterator<HeaderName> for Owned {
    fn from_iter<T: IntoIterator<Item = HeaderName>>(names: T) -> Self {
        let names: Vec<HeaderName> = names.into_iter().collect();
        let bits = names.iter().map(|name| length_bit(name.as_str()));
        let lengths = bits.fold(0, |lengths, bit| lengths | bit);
        Self { names, lengths }
    }
}

/// The bit of a name's length; those of 63 bytes and more share one.
fn length_bit(name: &str) -> u64 {
    1 << name.len().min(63)
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
#[derive(Debug, Clone)]
pub struct InboundRequest {
    /// Names this request everywhere.
    pub id: RequestId,
    /// The connection it came on.
    pub conn: Arc<ConnInfo>,
    /// The request's one clock reading.
    pub received_at: SystemTime,
    /// The method: GET where a WebSocket is asked for, over both protocols; `CONNECT` only beside
    /// [`Upgrade::Connect`].
    pub method: Method,
    /// What the client asks to speak instead of HTTP. Whether it may is the route's affair.
    pub upgrade: Option<Upgrade>,
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
    /// What was read of its body before it was judged; `None` when nothing had to be.
    pub excerpt: Option<Arc<Excerpt>>,
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
    /// `TRACE`, `CONNECT` before HTTP/1.1, or a method token we do not know how to bound.
    #[error("the method is not supported")]
    Method,
    /// The TLS session does not cover this host.
    #[error("this connection does not serve that host")]
    Misdirected,
    /// A request for another protocol that others may read differently.
    #[error("upgrade: {0}")]
    Upgrade(#[from] UpgradeFault),
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
        let (mut parts, body) = request.into_parts();

        let old = parts.version < Version::HTTP_11;
        if parts.method == Method::TRACE || (old && parts.method == Method::CONNECT) {
            return Err(Malformed::Method);
        }
        let asked = upgrade::asked(&mut parts)?;
        let mut headers = parts.headers;
        let via_trusted_proxy = rules.trusts(conn.peer.ip());
        let mut survey = Survey::of(&headers, rules, via_trusted_proxy);
        survey.check_framing(conn, parts.version)?;
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
        let host = one_host(conn, &parts.uri, &survey)?;
        // The target of a `CONNECT` has no path: it is matched as `/`.
        let path = match asked.upgrade {
            Some(Upgrade::Connect) => "/",
            Some(Upgrade::WebSocket { .. } | Upgrade::Faulty(_)) | None => parts.uri.path(),
        };
        let path = CanonicalPath::parse(path).map_err(Malformed::Path)?;
        let query = parts.uri.query().map(check_query).transpose()?;
        if let Some(expect) = survey.expect
            && !expect.as_bytes().eq_ignore_ascii_case(b"100-continue")
        {
            return Err(Malformed::Expectation);
        }
        if survey.control {
            return Err(Malformed::HeaderValue);
        }

        let client = if via_trusted_proxy {
            forwarded_client(&headers, conn.peer.ip(), rules)
        } else {
            conn.peer.ip().to_canonical()
        };
        let accepts_trailers = survey.accepts_trailers;
        if survey.expect.is_some() {
            survey.dropped.push(header::EXPECT);
        }
        let (connection, dropped) = (survey.connection, survey.dropped);
        strip(&mut headers, connection, dropped);

        let request = Self {
            id,
            conn: Arc::clone(conn),
            received_at,
            method: asked.method,
            upgrade: asked.upgrade,
            scheme,
            host,
            path,
            query,
            headers,
            version: parts.version,
            client,
            via_trusted_proxy,
            accepts_trailers,
            excerpt: None,
        };
        Ok((request, body))
    }

    /// The same request in memory of its own. Header values share the buffer that their connection
    /// read them into, and who keeps a request for long would keep that too.
    pub fn detached(&self) -> Self {
        let own = |value: &HeaderValue| {
            // They were valid before; one that is not would be left out.
            HeaderValue::from_bytes(value.as_bytes())
        };
        let mut headers = HeaderMap::with_capacity(self.headers.len());
        for (name, value) in &self.headers {
            if let Ok(mut own) = own(value) {
                own.set_sensitive(value.is_sensitive());
                headers.append(name, own);
            }
        }
        let upgrade = match &self.upgrade {
            Some(Upgrade::WebSocket { key: Some(key) }) => {
                Some(Upgrade::WebSocket { key: own(key).ok() })
            }
            other => other.clone(),
        };
        Self {
            headers,
            upgrade,
            ..self.clone()
        }
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

// The names below are matched, not looked up: comparing with constants of known length is cheaper
// than any table, and every header of every request is asked. So the first letter is looked at first.

fn begins_with_one_of(name: &str, letters: &[u8]) -> bool {
    name.as_bytes()
        .first()
        .is_some_and(|first| letters.contains(first))
}

/// Whether a header ends at this hop (RFC 9110 section 7.6.1), the proxy ones among them.
pub fn is_hop_by_hop(name: &str) -> bool {
    begins_with_one_of(name, b"chkptu")
        && matches!(
            name,
            "connection"
                | "keep-alive"
                | "proxy-connection"
                | "proxy-authenticate"
                | "proxy-authorization"
                | "te"
                | "trailer"
                | "transfer-encoding"
                | "upgrade"
                | "http2-settings"
        )
}

/// Whether a header tells of the hops before us: believed from trusted proxies, dropped from
/// everybody else. Among them are other names under which servers have been made to believe in
/// another client.
pub fn is_forwarding(name: &str) -> bool {
    begins_with_one_of(name, b"cftx")
        && (name.starts_with("x-forwarded-")
            || matches!(
                name,
                "forwarded"
                    | "x-real-ip"
                    | "cf-connecting-ip"
                    | "client-ip"
                    | "fastly-client-ip"
                    | "true-client-ip"
                    | "x-client-ip"
                    | "x-cluster-client-ip"
                    | "x-envoy-external-address"
            ))
}

/// Whether a header makes some servers serve another path or method than the one that was judged.
/// It stops here whoever sent it: the path we match is the path that is served.
pub fn is_override(name: &str) -> bool {
    begins_with_one_of(name, b"x")
        && matches!(
            name,
            "x-envoy-original-path"
                | "x-http-method"
                | "x-http-method-override"
                | "x-method-override"
                | "x-original-method"
                | "x-original-uri"
                | "x-original-url"
                | "x-rewrite-uri"
                | "x-rewrite-url"
        )
}

/// What one pass over a head's fields finds. Each name is looked at once, for to ask a map for the ten
/// names that matter here costs more than all else that is done to a request.
#[derive(Debug, Default)]
struct Survey<'h> {
    /// The first of its name, and how many there are.
    host: Option<&'h HeaderValue>,
    hosts: usize,
    encoding: Option<&'h HeaderValue>,
    encodings: usize,
    lengths: usize,
    expect: Option<&'h HeaderValue>,
    /// Whether there is a `Connection`.
    connection: bool,
    accepts_trailers: bool,
    /// Whether a value holds control bytes. A tab is legal in one; others are how lines are forged
    /// in logs and in the next hop's parser.
    control: bool,
    /// What must not travel on: hop-by-hop headers, ours under every spelling, forwarding headers of
    /// strangers, and names with `_`, which servers behind us may take for the same name with `-`.
    dropped: Vec<HeaderName>,
}

impl<'h> Survey<'h> {
    fn of(headers: &'h HeaderMap, rules: &Rules, via_trusted_proxy: bool) -> Self {
        let mut found = Self::default();
        for (name, value) in headers {
            found.control |= has_control(value.as_bytes());
            // Standard names are numbers within the map.
            match *name {
                header::HOST => {
                    found.host = found.host.or(Some(value));
                    found.hosts += 1;
                }
                header::CONTENT_LENGTH => found.lengths += 1,
                header::TRANSFER_ENCODING => {
                    found.encoding = found.encoding.or(Some(value));
                    found.encodings += 1;
                }
                header::EXPECT => found.expect = found.expect.or(Some(value)),
                header::CONNECTION => found.connection = true,
                header::TE => found.accepts_trailers |= names_trailers(value),
                _ => {}
            }
            if ends_here(name, rules, via_trusted_proxy) {
                found.dropped.push(name.clone());
            }
        }
        found
    }

    fn check_framing(&self, conn: &ConnInfo, version: Version) -> Result<(), Malformed> {
        let ambiguous = conn
            .ambiguous_head
            .as_ref()
            .is_some_and(|flag| flag.load(std::sync::atomic::Ordering::Relaxed));
        if ambiguous {
            return Err(Malformed::Framing);
        }
        if let Some(encoding) = self.encoding {
            let chunked = encoding.as_bytes().eq_ignore_ascii_case(b"chunked");
            let one = self.encodings == 1 && self.lengths == 0;
            if version != Version::HTTP_11 || !chunked || !one {
                return Err(Malformed::Framing);
            }
        }
        if self.lengths > 1 {
            return Err(Malformed::Framing);
        }
        Ok(())
    }
}

/// Whether a value of `TE` says that trailers can be read.
fn names_trailers(te: &HeaderValue) -> bool {
    te.to_str().is_ok_and(|te| {
        te.split(',')
            .any(|t| t.trim().eq_ignore_ascii_case("trailers"))
    })
}

/// Whether a header must not travel on, whatever `Connection` says.
fn ends_here(name: &HeaderName, rules: &Rules, via_trusted_proxy: bool) -> bool {
    let text = name.as_str();
    rules.owns(text) || (!is_usual(name) && ends_by_kind(text, via_trusted_proxy))
}

/// Whether it ends here in all configurations.
fn ends_by_kind(name: &str, via_trusted_proxy: bool) -> bool {
    is_hop_by_hop(name)
        || !is_plain_name(name)
        || is_override(name)
        || (!via_trusted_proxy && is_forwarding(name))
}

/// `is_usual`: names that most requests bring and that go on, by [`ends_by_kind`], from everybody. They
/// are told by a number or by their length and one comparison, and asked for nothing more.
macro_rules! usual {
    ($($standard:ident)*; $($other:literal)*) => {
        fn is_usual(name: &HeaderName) -> bool {
            match *name {
                $(header::$standard)|* => true,
                _ => matches!(name.as_str(), $($other)|*),
            }
        }

        #[cfg(test)]
        fn usual() -> Vec<HeaderName> {
            vec![$(header::$standard,)* $(HeaderName::from_static($other),)*]
        }
    };
}

usual! {
    ACCEPT ACCEPT_CHARSET ACCEPT_ENCODING ACCEPT_LANGUAGE AUTHORIZATION CACHE_CONTROL
    CONTENT_ENCODING CONTENT_LENGTH CONTENT_TYPE COOKIE DNT EXPECT HOST IF_MATCH IF_MODIFIED_SINCE
    IF_NONE_MATCH IF_UNMODIFIED_SINCE ORIGIN PRAGMA RANGE REFERER UPGRADE_INSECURE_REQUESTS
    USER_AGENT;
    "baggage" "priority" "sec-ch-ua" "sec-ch-ua-mobile" "sec-ch-ua-platform" "sec-fetch-dest"
    "sec-fetch-mode" "sec-fetch-site" "sec-fetch-user" "traceparent" "tracestate" "x-api-key"
    "x-correlation-id" "x-request-id" "x-requested-with"
}

fn one_host(conn: &ConnInfo, uri: &http::Uri, survey: &Survey<'_>) -> Result<Host, Malformed> {
    if survey.hosts > 1 {
        return Err(Malformed::Host);
    }
    // The connection's requests are mostly for one host, in the spelling that reads as itself.
    let known = conn.forwarded.upstream.get().map(|told| &told.host);
    let read = |text: &str| match known {
        Some(known) if known.as_str() == text => Ok(known.clone()),
        _ => Host::parse(text),
    };
    let header = match survey.host {
        Some(value) => Some(read(value.to_str().map_err(|_| Malformed::Host)?)?),
        None => None,
    };
    let authority = match uri.authority() {
        Some(authority) => Some(read(authority.as_str())?),
        None => None,
    };
    match (authority, header) {
        (Some(authority), Some(header)) if authority != header => Err(Malformed::HostMismatch),
        (Some(host), _) | (None, Some(host)) => Ok(host),
        (None, None) => Err(Malformed::Host),
    }
}

fn check_query(query: &str) -> Result<String, Malformed> {
    const ODD: Odd<0> = Odd {
        below: 0x21,
        from: Some(0x7f),
        also: [],
    };
    if ODD.any(query.as_bytes()) {
        Err(Malformed::Query)
    } else {
        Ok(query.to_owned())
    }
}

/// Whether there is a control byte other than a tab.
fn has_control(value: &[u8]) -> bool {
    const ODD: Odd<0> = Odd {
        below: 0x20,
        from: Some(0x7f),
        also: [],
    };
    // Tabs, and bytes beyond ASCII, are rare enough to be looked at in a second pass.
    ODD.any(value) && value.iter().any(|b| b.is_ascii_control() && *b != b'\t')
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

/// Removes `Host`, what `Connection` nominates, and what else must not travel on.
fn strip(headers: &mut HeaderMap, connection: bool, dropped: Vec<HeaderName>) {
    if connection {
        for name in nominated(headers) {
            headers.remove(&name);
        }
    }
    headers.remove(header::HOST);
    for name in dropped {
        headers.remove(name);
    }
}

/// Whether a name, which is in lower case, holds letters, digits and `-` alone.
fn is_plain_name(name: &str) -> bool {
    const PLAIN: [(u8, u8); 3] = [(b'a', b'z'), (b'0', b'9'), (b'-', b'-')];
    !scan::any_word(name.as_bytes(), |word| scan::outside(word, PLAIN))
}

/// What `Connection` names as ending here. End-to-end headers that it has no business to remove (RFC
/// 9110 section 7.6.1 forbids nominating them) are not among them: dropping `Authorization` or a
/// cookie would change what the request means.
fn nominated(headers: &HeaderMap) -> Vec<HeaderName> {
    headers
        .get_all(header::CONNECTION)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .filter_map(|name| HeaderName::from_bytes(name.trim().as_bytes()).ok())
        .filter(|name| {
            !matches!(
                *name,
                header::AUTHORIZATION
                    | header::COOKIE
                    | header::HOST
                    | header::CONTENT_LENGTH
                    | header::CONTENT_TYPE
            )
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_letters_digits_and_hyphens_make_a_plain_name() {
        for length in 1..20 {
            for at in 0..length {
                for byte in 0..0x80_u8 {
                    let mut name = vec![b'a'; length];
                    name[at] = byte;
                    let name = String::from_utf8(name).unwrap();
                    let plain = matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'-');
                    assert_eq!(is_plain_name(&name), plain, "{name:?}");
                }
                let name = format!("{}é{}", "a".repeat(at), "z".repeat(length - at));
                assert!(!is_plain_name(&name), "{name}");
            }
        }
    }

    #[test]
    fn control_bytes_are_found_and_tabs_are_none() {
        for byte in 0..=u8::MAX {
            let mut value = [b'x'; 40];
            value[33] = byte;
            assert_eq!(
                has_control(&value),
                byte.is_ascii_control() && byte != b'\t'
            );
        }
        assert!(has_control(b"\ta\0"));
        assert!(has_control("é\u{7f}".as_bytes()));
    }

    #[test]
    fn every_usual_name_goes_on_and_none_that_is_ours() {
        for name in usual() {
            assert!(is_usual(&name), "{name}");
            assert!(!ends_by_kind(name.as_str(), false), "{name}");
            assert!(!ends_here(&name, &Rules::default(), false), "{name}");
            let rules = Rules {
                owned: Owned::from_iter([name.clone()]),
                ..Rules::default()
            };
            assert!(ends_here(&name, &rules, true), "{name}");
        }
    }

    #[test]
    fn a_name_is_owned_by_its_letters_whatever_lengths_there_are() {
        let long = |letter: char| HeaderName::try_from(letter.to_string().repeat(70)).unwrap();
        let rules = Rules {
            owned: [HeaderName::from_static("x-user-id"), long('a')]
                .into_iter()
                .collect(),
            ..Rules::default()
        };
        for name in ["x-user-id", "X_User.Id", long('a').as_str()] {
            assert!(rules.owns(name), "{name}");
        }
        for name in [
            "x-user-ie",
            "x-user",
            "",
            long('b').as_str(),
            &"a".repeat(64),
        ] {
            assert!(!rules.owns(name), "{name}");
        }
        assert!(!Rules::default().owns("x-user-id"));
    }
}
