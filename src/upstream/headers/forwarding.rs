//! `X-Forwarded-*` (by convention) and `Forwarded` (RFC 7239), rebuilt by trust: what a trusted
//! proxy saw is kept, what a client wrote about itself is not.

use std::borrow::Cow;
use std::net::IpAddr;

use http::header::{self, HeaderMap, HeaderName, HeaderValue};

use crate::request::{Forwarded, Host, InboundRequest, Lines, Scheme};

/// Most hops that are told. The nearest ones are kept: the farther one is, the less is known of it.
const MAX_HOPS: usize = 16;

const FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
const HOST: HeaderName = HeaderName::from_static("x-forwarded-host");
const PORT: HeaderName = HeaderName::from_static("x-forwarded-port");

const NAMES: [HeaderName; 5] = [FOR, PROTO, HOST, PORT, header::FORWARDED];

/// The forwarding headers of a request.
pub(super) fn lines(request: &InboundRequest) -> Cow<'_, Lines> {
    if request.via_trusted_proxy {
        return Cow::Owned(told(request));
    }
    // A stranger's connection says the same of each of its requests for one host.
    let memo = request.conn.forwarded.upstream.get_or_init(|| Forwarded {
        host: request.host.clone(),
        lines: told(request),
    });
    if memo.host == request.host {
        Cow::Borrowed(&memo.lines)
    } else {
        Cow::Owned(told(request))
    }
}

fn told(request: &InboundRequest) -> Lines {
    let headers = &request.headers;
    let hops = hops(request, headers);
    let trusted = |name: &HeaderName| {
        let mut values = headers.get_all(name).iter();
        let first = values.next().filter(|_| request.via_trusted_proxy)?;
        // Two values are two stories; then our own counts.
        values.next().is_none().then(|| first.to_str().ok())?
    };
    let proto = match trusted(&PROTO) {
        Some(proto) if proto.eq_ignore_ascii_case("https") => Scheme::Https,
        Some(proto) if proto.eq_ignore_ascii_case("http") => Scheme::Http,
        Some(_) | None => request.scheme,
    };
    let host = trusted(&HOST).and_then(|host| Host::parse(host).ok());
    let host = host.as_ref().unwrap_or(&request.host);
    let port = trusted(&PORT)
        .and_then(|port| port.parse::<u16>().ok())
        .or(host.port())
        .unwrap_or(match proto {
            Scheme::Http => 80,
            Scheme::Https => 443,
        });

    let list: Vec<String> = hops.iter().map(ToString::to_string).collect();
    let values = [
        list.join(", "),
        proto.as_str().to_owned(),
        host.as_str().to_owned(),
        port.to_string(),
        forwarded(&hops, proto, host.as_str()),
    ];
    // None of these can hold anything but visible ASCII; if one did, absent is safe.
    let fields = NAMES.into_iter().zip(values.map(HeaderValue::try_from));
    fields
        .filter_map(|(name, value)| Some((name, value.ok()?)))
        .collect()
}

/// The hops a request came through, the client first, our peer last.
fn hops(request: &InboundRequest, headers: &HeaderMap) -> Vec<IpAddr> {
    let peer = request.conn.peer.ip().to_canonical();
    let mut hops = vec![peer];
    if request.via_trusted_proxy && request.client != peer {
        // From the nearest to the client, where `InboundRequest` stopped believing. What stands
        // left of it is the client's own word.
        let fields: Vec<&HeaderValue> = headers.get_all(FOR).iter().collect();
        let told = fields
            .iter()
            .rev()
            .filter_map(|field| field.to_str().ok())
            .flat_map(|field| field.rsplit(','))
            .map_while(|hop| address(hop.trim()));
        for hop in told.take(MAX_HOPS - 1) {
            hops.push(hop);
            if hop == request.client {
                break;
            }
        }
    }
    hops.reverse();
    hops
}

fn address(text: &str) -> Option<IpAddr> {
    let text = text.trim_matches('"');
    let bare = text.strip_prefix('[').and_then(|t| t.strip_suffix(']'));
    text.parse::<IpAddr>()
        .ok()
        .or_else(|| {
            let socket = text.parse::<std::net::SocketAddr>().ok()?;
            Some(socket.ip())
        })
        .or_else(|| bare?.parse().ok())
        .map(|address| address.to_canonical())
}

/// One element for each hop; the first says what the client asked for.
fn forwarded(hops: &[IpAddr], proto: Scheme, host: &str) -> String {
    let elements: Vec<String> = hops
        .iter()
        .enumerate()
        .map(|(index, hop)| {
            // Section 6: an IPv6 address is bracketed, and quoted for its colons.
            let mut element = match hop {
                IpAddr::V4(hop) => format!("for={hop}"),
                IpAddr::V6(hop) => format!("for=\"[{hop}]\""),
            };
            if index == 0 {
                let quote = if host.contains([':', '[']) { "\"" } else { "" };
                element.push_str(&format!(
                    ";host={quote}{host}{quote};proto={}",
                    proto.as_str()
                ));
            }
            element
        })
        .collect();
    elements.join(", ")
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use http::Request;

    use super::*;
    use crate::clock;
    use crate::request::{ConnInfo, RequestId, Rules};

    fn written(peer: &str, trusted: &[&str], fields: &[(&str, &str)]) -> HeaderMap {
        let conn = Arc::new(ConnInfo {
            listener: "test".into(),
            peer: peer.parse().unwrap(),
            local: "127.0.0.1:8080".parse().unwrap(),
            tls: None,
            ambiguous_head: None,
            forwarded: Default::default(),
        });
        let mut builder = Request::get("/").header("host", "api.example.test:8080");
        for (name, value) in fields {
            builder = builder.header(*name, *value);
        }
        let rules = Rules {
            trusted_proxies: trusted.iter().map(|net| net.parse().unwrap()).collect(),
            ..Rules::default()
        };
        let request = builder.body(()).unwrap();
        let (request, ()) =
            InboundRequest::parse(&conn, RequestId::random(), request, clock::now(), &rules)
                .unwrap();
        lines(&request).fields().iter().cloned().collect()
    }

    #[test]
    fn strangers_cannot_say_where_they_come_from() {
        let headers = written(
            "198.51.100.7:1000",
            &[],
            &[
                ("x-forwarded-for", "127.0.0.1"),
                ("x-forwarded-proto", "https"),
                ("x-forwarded-host", "admin.internal"),
                ("forwarded", "for=127.0.0.1"),
            ],
        );
        assert_eq!(headers["x-forwarded-for"], "198.51.100.7");
        assert_eq!(headers["x-forwarded-proto"], "http");
        assert_eq!(headers["x-forwarded-host"], "api.example.test:8080");
        assert_eq!(headers["x-forwarded-port"], "8080");
        assert_eq!(
            headers["forwarded"],
            "for=198.51.100.7;host=\"api.example.test:8080\";proto=http"
        );
    }

    #[test]
    fn trusted_proxies_are_believed_up_to_the_client_and_no_further() {
        let headers = written(
            "10.0.0.1:1000",
            &["10.0.0.0/8"],
            &[
                ("x-forwarded-for", "1.1.1.1, 203.0.113.9"),
                ("x-forwarded-for", "10.0.0.2"),
                ("x-forwarded-proto", "https"),
                ("x-forwarded-host", "shop.example.test"),
            ],
        );
        assert_eq!(
            headers["x-forwarded-for"],
            "203.0.113.9, 10.0.0.2, 10.0.0.1"
        );
        assert_eq!(headers["x-forwarded-proto"], "https");
        assert_eq!(headers["x-forwarded-host"], "shop.example.test");
        assert_eq!(headers["x-forwarded-port"], "443");
        assert_eq!(
            headers["forwarded"],
            "for=203.0.113.9;host=shop.example.test;proto=https, for=10.0.0.2, for=10.0.0.1"
        );
    }

    #[test]
    fn ipv6_is_bracketed_and_quoted() {
        let headers = written("[2001:db8::1]:1000", &[], &[]);
        assert_eq!(headers["x-forwarded-for"], "2001:db8::1");
        let forwarded = headers["forwarded"].to_str().unwrap();
        assert!(
            forwarded.starts_with("for=\"[2001:db8::1]\";"),
            "{forwarded}"
        );
        let mapped = written("[::ffff:192.0.2.1]:1000", &[], &[]);
        assert_eq!(mapped["x-forwarded-for"], "192.0.2.1");
    }

    #[test]
    fn the_list_of_hops_is_bounded() {
        let many = vec!["10.0.0.9"; 1000].join(", ");
        let headers = written(
            "10.0.0.1:1000",
            &["10.0.0.0/8"],
            &[("x-forwarded-for", &format!("203.0.113.9, {many}"))],
        );
        let list = headers["x-forwarded-for"].to_str().unwrap();
        assert_eq!(list.split(", ").count(), MAX_HOPS);
    }
}
