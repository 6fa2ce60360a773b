//! The document that policies see as `input`, version 1. It is an interface: a golden test pins it.
//!
//! Credentials are never in it: neither the headers in [`CREDENTIALS`], nor those that the policy's
//! block lists under `hidden_headers`. What is absent is absent: no member is invented, but
//! `identity`, `source.tls` and `source.tls.client_certificate` are `null` when there is none, so
//! that a policy can tell "none" from a misspelt name.

use std::collections::BTreeMap;
use std::sync::{Arc, LazyLock};
use std::time::SystemTime;

use http::{HeaderName, Version};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::RouteFacts;
use crate::document::{Value, string, strings};
use crate::request::InboundRequest;
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

/// Builds the document. `identity` is the caller's ready part, shared and not copied.
///
/// # Errors
/// [`Unreadable`] when the document would not be the whole request.
pub fn document(
    request: &InboundRequest,
    route: &RouteFacts<'_>,
    identity: Option<&Value>,
    hidden: &[HeaderName],
) -> Result<Value, Unreadable> {
    let k = &*KEYS;
    Ok(record([
        (&k.version, Value::from(1u64)),
        (&k.request, of_request(request, hidden)?),
        (&k.source, of_source(request)?),
        (&k.identity, identity.cloned().unwrap_or(Value::Null)),
        (&k.signals, SIGNALS.clone()),
        (
            &k.route,
            record([
                (&k.name, string(route.name)),
                (
                    &k.params,
                    Value::from(
                        route
                            .params
                            .iter()
                            .map(|(name, value)| (string(name), Value::from(value.as_str())))
                            .collect::<BTreeMap<_, _>>(),
                    ),
                ),
                (&k.labels, route.labels.clone()),
            ]),
        ),
    ]))
}

fn of_request(request: &InboundRequest, hidden: &[HeaderName]) -> Result<Value, Unreadable> {
    let k = &*KEYS;
    Ok(record([
        (&k.id, string(request.id.shared())),
        (&k.method, Value::from(request.method.as_str())),
        (&k.scheme, Value::from(request.scheme.as_str())),
        (&k.host, Value::from(request.host.name())),
        (&k.path, Value::from(request.path.as_str())),
        (
            &k.segments,
            Value::from(request.path.segments().map(Value::from).collect::<Vec<_>>()),
        ),
        (&k.query, query(request.query.as_deref().unwrap_or(""))?),
        (&k.headers, headers(request, hidden)),
        (&k.protocol, Value::from(protocol(request.version))),
        (&k.received_at, rfc3339(request.received_at)?),
        (&k.received_at_ns, nanoseconds(request.received_at)?),
    ]))
}

fn protocol(version: Version) -> &'static str {
    match version {
        Version::HTTP_10 => "HTTP/1.0",
        Version::HTTP_11 => "HTTP/1.1",
        Version::HTTP_2 => "HTTP/2",
        Version::HTTP_3 => "HTTP/3",
        _ => "HTTP/0.9",
    }
}

/// Names are in lower case; several fields of one name are joined with `, ` in their order
/// (RFC 9110 section 5.3). Bytes that are no UTF-8 become U+FFFD, each sequence one: the header is
/// there, and equals nothing that a policy would compare it with.
fn headers(request: &InboundRequest, hidden: &[HeaderName]) -> Value {
    let mut members = BTreeMap::new();
    for name in request.headers.keys() {
        if CREDENTIALS.contains(&name.as_str()) || hidden.contains(name) {
            continue;
        }
        let mut fields = request.headers.get_all(name).iter();
        let mut value = fields
            .next()
            .map(|field| String::from_utf8_lossy(field.as_bytes()))
            .unwrap_or_default();
        for field in fields {
            let value = value.to_mut();
            value.push_str(", ");
            value.push_str(&String::from_utf8_lossy(field.as_bytes()));
        }
        members.insert(Value::from(name.as_str()), Value::from(value.as_ref()));
    }
    Value::from(members)
}

/// Parameters as forms have them: parted by `&`, `+` is a space, percent signs decoded; the values
/// of a name in their order. A percent sign without two digits stands for itself, and bytes that
/// are no UTF-8 become U+FFFD.
fn query(query: &str) -> Result<Value, Unreadable> {
    let mut members: BTreeMap<String, Vec<Value>> = BTreeMap::new();
    let mut count = 0;
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        count += 1;
        if count > MAX_QUERY_PARAMETERS {
            return Err(Unreadable::QueryParameters);
        }
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        members
            .entry(decode(name))
            .or_default()
            .push(Value::from(decode(value)));
    }
    Ok(Value::from(
        members
            .into_iter()
            .map(|(name, values)| (Value::from(name), Value::from(values)))
            .collect::<BTreeMap<_, _>>(),
    ))
}

fn decode(text: &str) -> String {
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
    String::from_utf8(decoded)
        .unwrap_or_else(|error| String::from_utf8_lossy(error.as_bytes()).into_owned())
}

fn of_source(request: &InboundRequest) -> Result<Value, Unreadable> {
    let k = &*KEYS;
    let tls = match &request.conn.tls {
        None => Value::Null,
        Some(tls) => record([
            (&k.version, Value::from(tls.version)),
            (&k.sni, tls.server_name.as_ref().map_or(Value::Null, string)),
            (
                &k.client_certificate,
                match &tls.peer_certificate {
                    None => Value::Null,
                    Some(certificate) => of_certificate(certificate)?,
                },
            ),
        ]),
    };
    // Behind a trusted proxy the connection's port is the proxy's, not the client's.
    let port = if request.via_trusted_proxy {
        Value::Null
    } else {
        Value::from(u64::from(request.conn.peer.port()))
    };
    Ok(record([
        (&k.address, Value::from(request.client.to_string())),
        (&k.port, port),
        (&k.tls, tls),
    ]))
}

fn of_certificate(certificate: &Arc<PeerCertificate>) -> Result<Value, Unreadable> {
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

fn rfc3339(at: SystemTime) -> Result<Value, Unreadable> {
    // Certificates may end in 9999; the conversion itself panics beyond what the type holds.
    let since = at
        .duration_since(SystemTime::UNIX_EPOCH)
        .map_err(|_| Unreadable::Time)?;
    let seconds = i64::try_from(since.as_secs()).map_err(|_| Unreadable::Time)?;
    OffsetDateTime::from_unix_timestamp(seconds)
        .and_then(|whole| whole.replace_nanosecond(since.subsec_nanos()))
        .ok()
        .and_then(|at| at.format(&Rfc3339).ok())
        .map(Value::from)
        .ok_or(Unreadable::Time)
}

fn nanoseconds(at: SystemTime) -> Result<Value, Unreadable> {
    at.duration_since(SystemTime::UNIX_EPOCH)
        .ok()
        .and_then(|since| u64::try_from(since.as_nanos()).ok())
        .map(Value::from)
        .ok_or(Unreadable::Time)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use http::Request;

    use super::*;
    use crate::document::{at, from_json, object};
    use crate::request::{ConnInfo, RequestId, Rules, TlsInfo};
    use crate::tls::Sans;

    fn connection(tls: Option<TlsInfo>) -> Arc<ConnInfo> {
        Arc::new(ConnInfo {
            listener: "public".into(),
            peer: "192.0.2.7:40000".parse().unwrap(),
            local: "192.0.2.1:443".parse().unwrap(),
            tls,
            ambiguous_head: None,
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
        document(request, &route, None, hidden).unwrap()
    }

    #[test]
    fn the_document_of_version_1_is_pinned() {
        let connection = connection(Some(TlsInfo {
            version: "TLSv1.3",
            server_name: Some("api.example.test".into()),
            peer_certificate: Some(Arc::new(certificate())),
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
        let found = document(&request, &route, Some(&identity), &hidden).unwrap();
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
