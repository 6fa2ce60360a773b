//! What one listening socket offers: address, TLS, bounds on connections; and what is fetched to know
//! whether its clients' certificates still stand.

mod revocation;

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::metrics::Metrics;
use crate::schema::{Compile, Named, Size, Span};
use crate::tls::server::{ServerTls, ServerTlsConfig};
use crate::tls::{Believer, ClientTrust};

use self::revocation::Sources;

/// The `listeners` section's blocks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ListenerConfig {
    /// `address:port`; port 0 takes a free one.
    pub address: SocketAddr,
    /// TLS. A listener has this, or says `plaintext: true`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tls: Option<ServerTlsConfig>,
    /// Serves without TLS: whoever is on the path reads the tokens.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub plaintext: bool,
    /// How much clients may take.
    #[serde(default)]
    pub bounds: Bounds,
}

/// How much the clients of a listener may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Bounds {
    /// Open connections at once, over all workers. More are closed when they arrive.
    pub max_connections: u32,
    /// Open connections at once from one address (IPv6: from one /64).
    pub max_connections_per_address: u32,
    /// Unfinished TLS handshakes at once, over all workers. When there are more, the oldest one of
    /// the address with the most of them is given up.
    pub max_handshakes: u32,
    /// Longest TLS handshake.
    pub handshake_timeout: Span,
    /// Longest time from the first byte of a request to the end of its head, and from the start of
    /// a connection to its first request.
    pub header_timeout: Span,
    /// How long a connection may stay open without a request.
    pub idle_timeout: Span,
    /// How long an answer may wait for a client that takes less than 1 KiB of it.
    pub write_timeout: Span,
    /// Largest head of a request, 8KiB to 1MiB. On HTTP/2 each field counts 32 bytes more than it
    /// has (RFC 9113 section 6.5.2).
    pub max_header_size: Size,
    /// Most fields in a head of HTTP/1, and in its trailers. HTTP/2 is bounded by `max_header_size`.
    pub max_headers: u32,
    /// What is special to HTTP/2.
    pub http2: Http2Bounds,
}

impl Default for Bounds {
    fn default() -> Self {
        Self {
            max_connections: 10_000,
            max_connections_per_address: 5_000,
            max_handshakes: 1_000,
            handshake_timeout: Span::seconds(5),
            header_timeout: Span::seconds(10),
            idle_timeout: Span::seconds(60),
            write_timeout: Span::seconds(30),
            max_header_size: Size::kib(32),
            max_headers: 100,
            http2: Http2Bounds::default(),
        }
    }
}

/// How much an HTTP/2 connection may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Http2Bounds {
    /// Requests at once on a connection, 1 to 1000.
    pub max_concurrent_streams: u32,
    /// Bytes of a request's body that may be under way unread, 64KiB to 16MiB.
    pub stream_window: Size,
    /// Bytes of all bodies of a connection that may be under way unread, 64KiB to 64MiB.
    pub connection_window: Size,
    /// Bytes of an answer that are kept for a client that is slow to take them, 16KiB to 16MiB.
    pub send_buffer: Size,
    /// Streams that the client opened and reset before we looked at them; more end the connection
    /// (rapid reset).
    pub max_pending_resets: u32,
    /// Streams that the client made us reset; more end the connection (made-you-reset).
    pub max_local_resets: u32,
    /// Frames at once that carry neither a request nor a body (SETTINGS, PING, WINDOW_UPDATE,
    /// PRIORITY, empty DATA and unknown ones). A tenth of it comes back every second, and some for
    /// every request and for what the client takes of answers. More end the connection.
    pub control_frames: u32,
    /// How often we ask whether the peer is still there.
    pub ping_interval: Span,
    /// How long it may take to answer that.
    pub ping_timeout: Span,
}

impl Default for Http2Bounds {
    fn default() -> Self {
        Self {
            max_concurrent_streams: 128,
            stream_window: Size::kib(256),
            connection_window: Size::mib(1),
            send_buffer: Size::kib(64),
            max_pending_resets: 20,
            max_local_resets: 256,
            control_frames: 1_000,
            ping_interval: Span::seconds(30),
            ping_timeout: Span::seconds(20),
        }
    }
}

impl ListenerConfig {
    /// Compiles one block; takes over `previous` when neither it nor any of its files changed.
    pub fn compile(
        self,
        name: &str,
        previous: Option<&Arc<Listener>>,
        cx: &mut Compile,
    ) -> Option<Arc<Listener>> {
        let before = cx.errors();
        match (&self.tls, self.plaintext) {
            (None, false) => cx.problem_help(
                "a listener needs TLS",
                "add a `tls` section, or say `plaintext: true` if it may be read on the way",
            ),
            (Some(_), true) => cx.problem_help(
                "`tls` and `plaintext: true` exclude each other",
                "remove one of them",
            ),
            (Some(_), false) | (None, true) => {}
        }
        cx.at("bounds", |cx| self.bounds.check(cx));
        let tls = match self.tls.clone() {
            Some(section) => {
                let previous = previous.and_then(|listener| listener.tls.as_ref());
                Some(cx.at("tls", |cx| section.compile(previous, cx))?)
            }
            None => None,
        };
        let sources = self.tls.as_ref().map(|section| {
            let clients = &section.client_certificates;
            cx.at("tls", |cx| {
                cx.at("client_certificates", |cx| Sources::compile(clients, cx))
            })
        });
        if cx.errors() > before {
            return None;
        }
        if let Some(previous) = previous
            && previous.source == self
            && *previous.name == *name
            && same(previous.tls.as_ref(), tls.as_ref())
        {
            return Some(Arc::clone(previous));
        }
        Some(Arc::new(Listener {
            name: name.into(),
            address: self.address,
            tls,
            bounds: self.bounds,
            // A reload must not be a way to open more connections than are allowed.
            counters: previous.map_or_else(Arc::default, |p| Arc::clone(&p.counters)),
            sources: sources.unwrap_or_default(),
            metrics: Arc::clone(&cx.metrics),
            source: self,
        }))
    }
}

fn same(a: Option<&Arc<ServerTls>>, b: Option<&Arc<ServerTls>>) -> bool {
    match (a, b) {
        (None, None) => true,
        (Some(a), Some(b)) => Arc::ptr_eq(a, b),
        (Some(_), None) | (None, Some(_)) => false,
    }
}

impl Bounds {
    fn check(&self, cx: &mut Compile) {
        let http2 = &self.http2;
        let spans = [
            ("handshake_timeout", self.handshake_timeout),
            ("header_timeout", self.header_timeout),
            ("idle_timeout", self.idle_timeout),
            ("write_timeout", self.write_timeout),
            ("http2.ping_interval", http2.ping_interval),
            ("http2.ping_timeout", http2.ping_timeout),
        ];
        for (key, span) in spans {
            let (least, most) = (Span::millis(100), Span::seconds(86_400));
            range(key, span, least, most, cx);
        }
        let counts = [
            ("max_connections", self.max_connections, 10_000_000),
            (
                "max_connections_per_address",
                self.max_connections_per_address,
                10_000_000,
            ),
            ("max_handshakes", self.max_handshakes, 1_000_000),
            ("max_headers", self.max_headers, 1_000),
            (
                "http2.max_concurrent_streams",
                http2.max_concurrent_streams,
                1_000,
            ),
            ("http2.max_pending_resets", http2.max_pending_resets, 10_000),
            ("http2.max_local_resets", http2.max_local_resets, 10_000),
            ("http2.control_frames", http2.control_frames, 1_000_000),
        ];
        for (key, count, most) in counts {
            range(key, count, 1, most, cx);
        }
        let sizes = [
            ("max_header_size", self.max_header_size, 8, 1024),
            ("http2.stream_window", http2.stream_window, 64, 16 * 1024),
            (
                "http2.connection_window",
                http2.connection_window,
                64,
                64 * 1024,
            ),
            ("http2.send_buffer", http2.send_buffer, 16, 16 * 1024),
        ];
        for (key, size, least, most) in sizes {
            range(key, size, Size::kib(least), Size::kib(most), cx);
        }
    }
}

fn range<T: PartialOrd + std::fmt::Display>(
    key: &str,
    value: T,
    least: T,
    most: T,
    cx: &mut Compile,
) {
    if value < least || value > most {
        cx.at(key, |cx| {
            cx.problem(format!("{value} is not between {least} and {most}"));
        });
    }
}

/// A compiled listener.
#[derive(Debug)]
pub struct Listener {
    /// The listener's block in the configuration.
    pub name: Arc<str>,
    /// Where it listens, as configured.
    pub address: SocketAddr,
    /// What it presents and demands; `None` serves without TLS.
    pub tls: Option<Arc<ServerTls>>,
    /// How much its clients may take.
    pub bounds: Bounds,
    /// How much they have taken; shared by all workers and by later versions of the listener.
    pub counters: Arc<Counters>,
    sources: Sources,
    metrics: Arc<Metrics>,
    source: ListenerConfig,
}

/// Who believes the certificate of a connection now, among the listeners that are in force.
///
/// `name` and `local` are those of the connection.
pub fn believer(listeners: &Named<Arc<Listener>>, name: &str, local: SocketAddr) -> Believer {
    let listener = listeners.get(name).or_else(|| {
        // Renamed: the socket and its connections stay.
        listeners
            .values()
            .find(|listener| listener.address == local)
    });
    match listener {
        None => Believer::Gone,
        Some(listener) => match listener.clients() {
            Some(trust) => Believer::Trust(Arc::clone(trust)),
            None => Believer::Nobody,
        },
    }
}

/// The open connections of a listener.
#[derive(Debug, Default)]
pub struct Counters {
    open: AtomicU32,
    /// Holds only addresses with open connections, so `max_connections` bounds it too.
    by_address: Mutex<HashMap<IpAddr, u32>>,
}

/// Which bound a connection would exceed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Excess {
    /// `max_connections`.
    Listener,
    /// `max_connections_per_address`.
    Address,
}

impl Excess {
    /// The word for metrics and logs.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Listener => "max_connections",
            Self::Address => "max_connections_per_address",
        }
    }
}

/// The place that an open connection takes; dropping it gives it back.
#[derive(Debug)]
pub struct Seat {
    counters: Arc<Counters>,
    address: IpAddr,
}

impl Listener {
    /// Takes a place for a connection from `peer`.
    ///
    /// # Errors
    /// The bound that it would exceed.
    pub fn seat(&self, peer: IpAddr) -> Result<Seat, Excess> {
        let address = group(peer);
        let counters = &self.counters;
        let below = |open: u32| (open < self.bounds.max_connections).then_some(open + 1);
        counters
            .open
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, below)
            .map_err(|_| Excess::Listener)?;
        let seat = {
            let mut by_address = counters
                .by_address
                .lock()
                .unwrap_or_else(PoisonError::into_inner);
            let taken = by_address.entry(address).or_insert(0);
            *taken += 1;
            (
                *taken,
                Seat {
                    counters: Arc::clone(counters),
                    address,
                },
            )
        };
        match seat {
            (taken, _) if taken > self.bounds.max_connections_per_address => Err(Excess::Address),
            (_, seat) => Ok(seat),
        }
    }

    /// Starts what runs beside requests on the control thread. Safe to call again.
    pub fn activate(&self, control: &tokio::runtime::Handle) {
        if let Some(trust) = self.clients() {
            self.sources
                .begin(&self.name, trust, &self.metrics, control);
        }
    }

    /// Whom it believes among clients; `None` when they are not asked for certificates.
    pub fn clients(&self) -> Option<&Arc<ClientTrust>> {
        self.tls.as_ref()?.clients()
    }

    /// How many connections are open.
    pub fn open(&self) -> u32 {
        self.counters.open.load(Ordering::Relaxed)
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.counters.open.fetch_sub(1, Ordering::Relaxed);
        let mut by_address = self
            .counters
            .by_address
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if let Some(taken) = by_address.get_mut(&self.address) {
            *taken -= 1;
            if *taken == 0 {
                by_address.remove(&self.address);
            }
        }
    }
}

/// The address that a connection is counted under: one client has a whole /64 of IPv6 at will.
pub fn group(peer: IpAddr) -> IpAddr {
    match peer.to_canonical() {
        IpAddr::V4(v4) => v4.into(),
        IpAddr::V6(v6) => Ipv6Addr::from_bits(v6.to_bits() & (u128::MAX << 64)).into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tls::testing::{Authority, compile, compile_in};

    fn parse(yaml: &str) -> ListenerConfig {
        serde_yaml::from_str(yaml).unwrap()
    }

    fn problems(yaml: &str) -> Vec<String> {
        let config = parse(yaml);
        let (made, problems) = compile(&[], |cx| config.compile("public", None, cx));
        assert_eq!(made.is_none(), !problems.is_empty());
        problems.into_iter().map(|p| p.path).collect()
    }

    #[test]
    fn plaintext_must_be_said() {
        assert_eq!(problems("address: 127.0.0.1:0"), [""]);
        assert!(problems("{ address: 127.0.0.1:0, plaintext: true }").is_empty());
        let both = "{ address: 127.0.0.1:0, plaintext: true, tls: { certificates: [] } }";
        assert_eq!(problems(both), ["", "tls.certificates"]);
        assert!(
            serde_yaml::from_str::<ListenerConfig>("{ address: 127.0.0.1:0, tsl: {} }").is_err()
        );
    }

    #[test]
    fn mistakes_about_revocation_are_problems_at_their_place() {
        let authority = Authority::new("ca");
        let (chain, key) = authority.server(&["a.test"]);
        let files = [
            ("a.pem", chain),
            ("a.key", key),
            ("ca.pem", authority.pem()),
        ];
        let problems = |section: &str| -> Vec<String> {
            let yaml = format!(
                "{{ address: 127.0.0.1:0, tls: {{ certificates: [{{ chain: a.pem, key: a.key }}],
                   client_certificates: {{ mode: required, authorities: [ca.pem], {section} }} }} }}"
            );
            let (made, problems) = compile(&files, |cx| parse(&yaml).compile("public", None, cx));
            assert_eq!(made.is_none(), !problems.is_empty(), "{section}");
            let at = |path: String| path.replace("tls.client_certificates.", "");
            problems.into_iter().map(|p| at(p.path)).collect()
        };
        let points = |more: &str| problems(&format!("distribution_points: {{ {more} }}"));
        let ocsp = |more: &str| problems(&format!("ocsp: {{ mode: prefer, {more} }}"));
        assert!(points("urls: [http://pki.test/a.crl]").is_empty());
        assert!(ocsp("responder: http://ocsp.test/").is_empty());
        assert!(problems("ocsp: { mode: off }").is_empty());
        let found = [
            points(""),
            points("urls: [ldap://pki.test/]"),
            points("urls: ['http://a:b@pki.test/']"),
            points("from_certificates: [http://pki.test]"),
            points("from_certificates: ['http://pki.test/%2e%2e/']"),
            points("urls: [http://pki.test/], refresh: 10ms"),
            points("urls: [http://pki.test/], max_size: 65MiB"),
            points("urls: [http://pki.test/], timeout: 0s"),
            points("urls: [http://pki.test/], wait: 31s"),
            points("urls: [http://pki.test/], store: nowhere"),
            points("urls: [http://pki.test/], authorities: [a.key]"),
            ocsp(""),
            ocsp("responder: ocsp.test"),
            ocsp("responder: http://ocsp.test/, timeout: 31s"),
            ocsp("responder: http://ocsp.test/, minimum: 2h"),
            ocsp("responder: http://ocsp.test/, maximum: 5s"),
            ocsp("responder: http://ocsp.test/, leeway: 2h"),
            ocsp("responder: http://ocsp.test/, max_answers: 0"),
        ];
        let found: Vec<Option<&str>> = found.iter().map(|p| p.first().map(|p| &**p)).collect();
        let expected = [
            "distribution_points",
            "distribution_points.urls[0]",
            "distribution_points.urls[0]",
            "distribution_points.from_certificates[0]",
            "distribution_points.from_certificates[0]",
            "distribution_points.refresh",
            "distribution_points.max_size",
            "distribution_points.timeout",
            "distribution_points.wait",
            "distribution_points.store",
            "distribution_points.authorities[0]",
            "ocsp",
            "ocsp.responder",
            "ocsp.timeout",
            "ocsp.minimum",
            "ocsp.minimum",
            "ocsp.leeway",
            "ocsp.max_answers",
        ];
        assert_eq!(found, expected.map(Some));
    }

    #[test]
    fn the_believer_of_a_connection_is_its_listener_as_it_is_now() {
        let authority = Authority::new("ca");
        let (chain, key) = authority.server(&["a.test"]);
        let files = [
            ("a.pem", chain),
            ("a.key", key),
            ("ca.pem", authority.pem()),
        ];
        let listener = |name: &str, clients: &str| {
            let yaml = format!(
                "{{ address: 127.0.0.1:4433, tls: {{ certificates: [{{ chain: a.pem, key: a.key }}],
                   client_certificates: {{ {clients} }} }} }}"
            );
            let (made, _) = compile(&files, |cx| parse(&yaml).compile(name, None, cx));
            Named::from([(name.to_owned(), made.unwrap())])
        };
        let local = "127.0.0.1:4433".parse().unwrap();
        let asks = "mode: optional, authorities: [ca.pem]";
        let same = believer(&listener("public", asks), "public", local);
        assert!(matches!(same, Believer::Trust(_)));
        let renamed = believer(&listener("edge", asks), "public", local);
        assert!(matches!(renamed, Believer::Trust(_)));
        let open = believer(&listener("public", "mode: none"), "public", local);
        assert!(matches!(open, Believer::Nobody));
        let elsewhere = "127.0.0.1:4434".parse().unwrap();
        let gone = believer(&listener("edge", asks), "public", elsewhere);
        assert!(matches!(gone, Believer::Gone));
    }

    #[test]
    fn every_bound_has_a_range() {
        let config = parse("{ address: 127.0.0.1:0, plaintext: true }");
        let text = serde_yaml::to_string(&config.bounds).unwrap();
        for line in text.lines().filter(|line| !line.trim_end().ends_with(':')) {
            let (key, value) = line.split_once(": ").unwrap();
            let zero = format!(
                "0{}",
                value.trim_start_matches(|c: char| c.is_ascii_digit())
            );
            let (section, place) = match key.strip_prefix("  ") {
                Some(key) => (
                    format!("http2: {{ {key}: {zero} }}"),
                    format!("bounds.http2.{key}"),
                ),
                None => (format!("{key}: {zero}"), format!("bounds.{key}")),
            };
            let yaml =
                format!("{{ address: 127.0.0.1:0, plaintext: true, bounds: {{ {section} }} }}");
            assert_eq!(problems(&yaml), [place]);
        }
    }

    #[test]
    fn connections_are_bounded_in_all_and_by_address_and_give_their_place_back() {
        let yaml = "{ address: 127.0.0.1:0, plaintext: true,
                      bounds: { max_connections: 3, max_connections_per_address: 2 } }";
        let (listener, _) = compile(&[], |cx| parse(yaml).compile("public", None, cx));
        let listener = listener.unwrap();
        let (one, other): (IpAddr, IpAddr) =
            ("10.0.0.1".parse().unwrap(), "10.0.0.2".parse().unwrap());
        let first = listener.seat(one).unwrap();
        let _second = listener.seat("::ffff:10.0.0.1".parse().unwrap()).unwrap();
        assert_eq!(listener.seat(one).unwrap_err(), Excess::Address);
        let _third = listener.seat(other).unwrap();
        assert_eq!(listener.seat(other).unwrap_err(), Excess::Listener);
        drop(first);
        assert_eq!(listener.open(), 2);
        assert!(listener.seat(one).is_ok());
        assert_eq!(listener.open(), 2);
        assert_eq!(
            group("2001:db8::1".parse().unwrap()),
            group("2001:db8::2".parse().unwrap())
        );
    }

    #[test]
    fn an_unchanged_listener_is_carried_over_and_a_renewed_certificate_is_taken_up() {
        let authority = Authority::new("ca");
        let folder = tempfile::tempdir().unwrap();
        let renew = || {
            let (chain, key) = authority.server(&["a.test"]);
            std::fs::write(folder.path().join("a.pem"), chain).unwrap();
            std::fs::write(folder.path().join("a.key"), key).unwrap();
        };
        let yaml =
            "{ address: 127.0.0.1:0, tls: { certificates: [{ chain: a.pem, key: a.key }] } }";
        let again = |previous: Option<&Arc<Listener>>| {
            compile_in(folder.path(), |cx| {
                parse(yaml).compile("public", previous, cx)
            })
            .0
        };
        renew();
        let first = again(None).unwrap();
        let second = again(Some(&first)).unwrap();
        assert!(Arc::ptr_eq(&first, &second));
        renew();
        let third = again(Some(&second)).unwrap();
        assert!(!Arc::ptr_eq(&second, &third));
        assert!(Arc::ptr_eq(&second.counters, &third.counters));
        std::fs::write(folder.path().join("a.pem"), "broken").unwrap();
        assert!(again(Some(&third)).is_none());
    }
}
