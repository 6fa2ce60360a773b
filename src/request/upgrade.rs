//! Requests to speak something else than HTTP: WebSocket over both protocols, and `CONNECT`.
//!
//! What is read here is read in one way: RFC 6455 section 4.2.1 for `Upgrade: websocket`, RFC 8441
//! section 5 for `:protocol = websocket`, RFC 9110 section 9.3.6 for `CONNECT`. Every other upgrade,
//! `h2c` before all, is passed over as if nobody had asked: what follows it would be read by other
//! rules than those that admitted it.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::request::Parts;
use http::{Method, Version};
use hyper::ext::Protocol;

/// What a client asks to speak instead of HTTP.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Upgrade {
    /// WebSocket, as the RFCs ask for it.
    WebSocket {
        /// Over HTTP/1.1 the client's key, 24 characters; HTTP/2 has none.
        key: Option<HeaderValue>,
    },
    /// WebSocket, asked for in a way that others may read differently.
    Faulty(UpgradeFault),
    /// Bytes in both directions.
    Connect,
}

/// What is wrong with a request for an upgrade.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum UpgradeFault {
    /// `Upgrade` names several protocols, or stands there twice.
    #[error("several protocols are asked for")]
    Several,
    /// `Upgrade` is not named in `Connection`.
    #[error("`connection` does not say `upgrade`")]
    Connection,
    /// Not a GET.
    #[error("the method is not GET")]
    Method,
    /// It has a body.
    #[error("the request has a body")]
    Body,
    /// `Sec-WebSocket-Key` is missing, there twice, or not 16 bytes in base64.
    #[error("the key is not one of RFC 6455")]
    Key,
    /// `Sec-WebSocket-Version` is not exactly 13.
    #[error("the version of the protocol is not 13")]
    Version,
    /// The target of a `CONNECT` is not `host:port` alone.
    #[error("the target is not a host and a port")]
    Target,
    /// `:protocol` names one that we do not know.
    #[error("the protocol is not known")]
    Protocol,
}

/// The method and the way in which a request is to be read, and what it asks for.
#[derive(Debug)]
pub(super) struct Asked {
    pub(super) upgrade: Option<Upgrade>,
    /// What is matched and judged: a WebSocket is opened by GET over both protocols.
    pub(super) method: Method,
}

const KEY: HeaderName = header::SEC_WEBSOCKET_KEY;
const VERSION: HeaderName = header::SEC_WEBSOCKET_VERSION;
const WEBSOCKET: &[u8] = b"websocket";

/// Reads what a request asks for, and takes the fields that belong to this hop out of it.
///
/// # Errors
/// [`UpgradeFault::Target`], [`UpgradeFault::Body`] and [`UpgradeFault::Protocol`] of `CONNECT`, which has
/// no meaning without them. Faults of a WebSocket are a part of the answer: a route that opens none
/// takes the request as if it had not asked.
pub(super) fn asked(parts: &mut Parts) -> Result<Asked, UpgradeFault> {
    let headers = &mut parts.headers;
    // Asked of every request.
    if parts.method != Method::CONNECT && !headers.contains_key(header::UPGRADE) {
        return Ok(Asked {
            upgrade: None,
            method: parts.method.clone(),
        });
    }
    let keys = take(headers, &KEY);
    let versions = take(headers, &VERSION);
    headers.remove(header::SEC_WEBSOCKET_ACCEPT);
    if parts.method == Method::CONNECT {
        if has_body(headers) {
            return Err(UpgradeFault::Body);
        }
        let Some(protocol) = parts.extensions.get::<Protocol>() else {
            return connect(parts);
        };
        if protocol.as_ref() != WEBSOCKET {
            return Err(UpgradeFault::Protocol);
        }
        let upgrade = if is_13(&versions) {
            Upgrade::WebSocket { key: None }
        } else {
            Upgrade::Faulty(UpgradeFault::Version)
        };
        return Ok(Asked {
            upgrade: Some(upgrade),
            method: Method::GET,
        });
    }
    let upgrade =
        if parts.version == Version::HTTP_11 && has_token(headers, &header::UPGRADE, WEBSOCKET) {
            Some(match websocket(parts, &keys, &versions) {
                Ok(key) => Upgrade::WebSocket { key: Some(key) },
                Err(fault) => Upgrade::Faulty(fault),
            })
        } else {
            // RFC 9110 section 7.8: HTTP/1.0 has no upgrades. HTTP/2 refuses the field itself.
            None
        };
    Ok(Asked {
        upgrade,
        method: parts.method.clone(),
    })
}

fn connect(parts: &Parts) -> Result<Asked, UpgradeFault> {
    let uri = &parts.uri;
    let alone = uri.scheme().is_none() && uri.path_and_query().is_none();
    let port = uri.authority().and_then(http::uri::Authority::port_u16);
    // RFC 9110 section 9.3.6: there is no default port.
    if !alone || port.is_none_or(|port| port == 0) {
        return Err(UpgradeFault::Target);
    }
    Ok(Asked {
        upgrade: Some(Upgrade::Connect),
        method: Method::CONNECT,
    })
}

fn websocket(
    parts: &Parts,
    keys: &[HeaderValue],
    versions: &[HeaderValue],
) -> Result<HeaderValue, UpgradeFault> {
    let headers = &parts.headers;
    let mut protocols = headers.get_all(header::UPGRADE).iter();
    let only = protocols.next().is_some_and(is_websocket) && protocols.next().is_none();
    if !only {
        return Err(UpgradeFault::Several);
    }
    if !has_token(headers, &header::CONNECTION, b"upgrade") {
        return Err(UpgradeFault::Connection);
    }
    if parts.method != Method::GET {
        return Err(UpgradeFault::Method);
    }
    if has_body(headers) {
        return Err(UpgradeFault::Body);
    }
    if !is_13(versions) {
        return Err(UpgradeFault::Version);
    }
    match keys {
        [key] if STANDARD.decode(key).is_ok_and(|key| key.len() == 16) => Ok(key.clone()),
        _ => Err(UpgradeFault::Key),
    }
}

fn is_websocket(value: &HeaderValue) -> bool {
    value
        .as_bytes()
        .trim_ascii()
        .eq_ignore_ascii_case(WEBSOCKET)
}

fn is_13(versions: &[HeaderValue]) -> bool {
    matches!(versions, [version] if version == "13")
}

fn has_token(headers: &HeaderMap, name: &HeaderName, token: &[u8]) -> bool {
    let values = headers.get_all(name).iter();
    let mut tokens = values.flat_map(|value| value.as_bytes().split(|b| *b == b','));
    tokens.any(|one| one.trim_ascii().eq_ignore_ascii_case(token))
}

/// Whether a body is announced; a length of 0 is none.
fn has_body(headers: &HeaderMap) -> bool {
    let length = headers.get(header::CONTENT_LENGTH);
    headers.contains_key(header::TRANSFER_ENCODING) || length.is_some_and(|length| length != "0")
}

fn take(headers: &mut HeaderMap, name: &HeaderName) -> Vec<HeaderValue> {
    match headers.entry(name) {
        header::Entry::Occupied(found) => found.remove_entry_mult().1.collect(),
        header::Entry::Vacant(_) => Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use http::Request;

    use super::*;

    const GOOD: [(&str, &str); 4] = [
        ("connection", "keep-alive, Upgrade"),
        ("upgrade", "WebSocket"),
        ("sec-websocket-version", "13"),
        ("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ=="),
    ];

    fn read(method: &str, target: &str, fields: &[(&str, &str)]) -> Result<Asked, UpgradeFault> {
        let mut request = Request::builder().method(method).uri(target);
        for (name, value) in fields {
            request = request.header(*name, *value);
        }
        asked(&mut request.body(()).unwrap().into_parts().0)
    }

    fn fault(change: impl FnOnce(&mut Vec<(&str, &str)>)) -> Option<UpgradeFault> {
        let mut fields = GOOD.to_vec();
        change(&mut fields);
        match read("GET", "/", &fields).unwrap().upgrade {
            Some(Upgrade::Faulty(fault)) => Some(fault),
            Some(Upgrade::WebSocket { .. }) => None,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn what_is_half_right_is_named() {
        assert_eq!(fault(|_| {}), None);
        assert_eq!(fault(|f| f.push(("content-length", "0"))), None);
        for (fields, expected) in [
            (vec![("upgrade", "websocket")], UpgradeFault::Several),
            (vec![("content-length", "3")], UpgradeFault::Body),
            (vec![("transfer-encoding", "chunked")], UpgradeFault::Body),
            (vec![("sec-websocket-version", "13")], UpgradeFault::Version),
            (
                vec![("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ==")],
                UpgradeFault::Key,
            ),
        ] {
            assert_eq!(fault(|f| f.extend(fields)), Some(expected));
        }
        for (at, value, expected) in [
            (0, "keep-alive", UpgradeFault::Connection),
            (0, "upgraded", UpgradeFault::Connection),
            (1, "websocket, h2c", UpgradeFault::Several),
            (2, "777", UpgradeFault::Version),
            (2, "13, 8", UpgradeFault::Version),
            (3, "dGhlIHNhbXBsZQ==", UpgradeFault::Key),
            (3, "not base64 not base64 no", UpgradeFault::Key),
            (3, "", UpgradeFault::Key),
        ] {
            assert_eq!(fault(|f| f[at].1 = value), Some(expected), "{value}");
        }
        for missing in [0, 2, 3] {
            let fault = fault(|f| {
                f.remove(missing);
            });
            assert!(fault.is_some());
        }
        let post = read("POST", "/", &GOOD).unwrap().upgrade;
        assert_eq!(post, Some(Upgrade::Faulty(UpgradeFault::Method)));
    }

    #[test]
    fn nothing_else_is_an_upgrade() {
        for fields in [
            &[("connection", "upgrade"), ("upgrade", "h2c")][..],
            &[("connection", "upgrade"), ("upgrade", "websockets")],
            &[("connection", "upgrade")],
        ] {
            assert_eq!(read("GET", "/", fields).unwrap().upgrade, None);
        }
        let mut old = Request::builder().version(Version::HTTP_10);
        for (name, value) in GOOD {
            old = old.header(name, value);
        }
        let mut parts = old.body(()).unwrap().into_parts().0;
        assert_eq!(asked(&mut parts).unwrap().upgrade, None);
        // The fields of the handshake do not travel on either way.
        assert!(!parts.headers.contains_key(KEY) && !parts.headers.contains_key(VERSION));
    }

    #[test]
    fn connect_takes_a_host_and_a_port_alone() {
        let good = read("CONNECT", "db.example.test:5432", &[]).unwrap();
        assert_eq!(
            (good.upgrade, good.method),
            (Some(Upgrade::Connect), Method::CONNECT)
        );
        for target in ["db.example.test", "http://a:80/", "/", "a:0", "http://a:80"] {
            let fault = read("CONNECT", target, &[]).unwrap_err();
            assert_eq!(fault, UpgradeFault::Target, "{target}");
        }
        let body = [("content-length", "1")];
        assert_eq!(
            read("CONNECT", "a:1", &body).unwrap_err(),
            UpgradeFault::Body
        );
    }

    #[test]
    fn over_http_2_websocket_is_a_get() {
        let ask = |protocol: &'static str, version: &str| {
            let mut request = Request::builder()
                .method("CONNECT")
                .uri("http://a/chat")
                .version(Version::HTTP_2)
                .header("sec-websocket-version", version)
                .body(())
                .unwrap();
            let protocol = Protocol::from_static(protocol);
            request.extensions_mut().insert(protocol);
            asked(&mut request.into_parts().0)
        };
        let good = ask("websocket", "13").unwrap();
        assert_eq!(good.method, Method::GET);
        assert_eq!(good.upgrade, Some(Upgrade::WebSocket { key: None }));
        let old = ask("websocket", "8").unwrap().upgrade;
        assert_eq!(old, Some(Upgrade::Faulty(UpgradeFault::Version)));
        assert_eq!(
            ask("connect-udp", "13").unwrap_err(),
            UpgradeFault::Protocol
        );
    }
}
