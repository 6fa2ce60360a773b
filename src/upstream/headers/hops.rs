//! Fields that end at this hop, and fields that have no business in trailers.

use http::header::{self, HeaderMap, HeaderName, HeaderValue};

use crate::request::{Rules, is_forwarding, is_hop_by_hop, is_override};

/// Fields of an answer that `Connection` cannot nominate away (RFC 9110 section 7.6.1).
const NOT_NOMINATED: [HeaderName; 5] = [
    header::SET_COOKIE,
    header::CONTENT_LENGTH,
    header::CONTENT_TYPE,
    header::CACHE_CONTROL,
    header::WWW_AUTHENTICATE,
];

/// Fields that are not to be read from trailers: framing, routing, authentication, request and
/// response control, and what says how to read the body (RFC 9110 section 6.5.1).
const NOT_IN_TRAILERS: [&str; 35] = [
    "accept",
    "age",
    "authorization",
    "cache-control",
    "content-encoding",
    "content-length",
    "content-location",
    "content-range",
    "content-type",
    "cookie",
    "date",
    "dpop",
    "expect",
    "expires",
    "host",
    "if-match",
    "if-modified-since",
    "if-none-match",
    "if-range",
    "if-unmodified-since",
    "location",
    "max-forwards",
    "pragma",
    "range",
    "retry-after",
    "set-cookie",
    "signature",
    "signature-input",
    "strict-transport-security",
    "traceparent",
    "tracestate",
    "vary",
    "warning",
    "www-authenticate",
    "x-request-id",
];

fn allowed_in_trailers(name: &str) -> bool {
    // Servers behind us may read `_` as `-`: such names could be any of the others.
    let plain = name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-');
    plain
        && !NOT_IN_TRAILERS.contains(&name)
        && !is_hop_by_hop(name)
        && !is_forwarding(name)
        && !is_override(name)
}

fn retain(fields: &mut HeaderMap, keep: impl Fn(&str) -> bool) {
    let dropped: Vec<HeaderName> = fields
        .keys()
        .filter(|name| !keep(name.as_str()))
        .cloned()
        .collect();
    for name in dropped {
        fields.remove(name);
    }
}

/// Removes from a request's trailers what only we may write, under every spelling, and what is not
/// to be read from trailers.
pub(in crate::upstream) fn clean_request_trailers(trailers: &mut HeaderMap, rules: &Rules) {
    retain(trailers, |name| {
        allowed_in_trailers(name) && !rules.owns(name)
    });
}

/// Removes from an answer's trailers what is not to be read from them.
pub(in crate::upstream) fn clean_answer_trailers(trailers: &mut HeaderMap) {
    // Names with `_` are the service's own affair on the way back.
    retain(trailers, |name| {
        allowed_in_trailers(&name.replace('_', "-"))
    });
}

/// Removes from an answer what ends at this hop.
///
/// # Errors
/// When its length can be read in two ways (RFC 9112 section 6.3): our reading and the client's
/// might differ, and then one client's answer becomes part of another's.
pub(in crate::upstream) fn clean_answer(
    headers: &mut HeaderMap,
    accepts_trailers: bool,
) -> Result<(), &'static str> {
    let mut encodings = headers.get_all(header::TRANSFER_ENCODING).iter();
    if let Some(encoding) = encodings.next() {
        if !encoding.as_bytes().eq_ignore_ascii_case(b"chunked") || encodings.next().is_some() {
            return Err("it used an odd transfer encoding");
        }
        if headers.contains_key(header::CONTENT_LENGTH) {
            return Err("it gave two lengths");
        }
    }
    if headers.get_all(header::CONTENT_LENGTH).iter().count() > 1 {
        return Err("it gave several lengths");
    }
    if headers.contains_key(header::CONNECTION) {
        let nominated: Vec<HeaderName> = headers
            .get_all(header::CONNECTION)
            .iter()
            .filter_map(|value| value.to_str().ok())
            .flat_map(|value| value.split(','))
            .filter_map(|name| HeaderName::from_bytes(name.trim().as_bytes()).ok())
            .filter(|name| !NOT_NOMINATED.contains(name))
            .collect();
        for name in nominated {
            headers.remove(name);
        }
    }
    let trailer = accepts_trailers.then(|| announced(headers)).flatten();
    let ends_here = |name: &HeaderName| {
        // It would lead clients past the gateway.
        is_hop_by_hop(name.as_str()) || *name == header::ALT_SVC
    };
    // Looking at the names that are there is cheaper than looking for each that might be.
    if headers.keys().any(ends_here) {
        retain(headers, |name| {
            !is_hop_by_hop(name) && name != header::ALT_SVC.as_str()
        });
    }
    // The announcement is kept for clients that read trailers: without it, none follow on HTTP/1.
    if let Some(trailer) = trailer {
        headers.insert(header::TRAILER, trailer);
    }
    Ok(())
}

/// The trailers that an answer announces, as far as they may pass.
fn announced(headers: &HeaderMap) -> Option<HeaderValue> {
    let names: Vec<&str> = headers
        .get_all(header::TRAILER)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .map(str::trim)
        .filter(|name| allowed_in_trailers(&name.to_ascii_lowercase()))
        .collect();
    if names.is_empty() {
        return None;
    }
    HeaderValue::from_str(&names.join(", ")).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(fields: &[(&str, &str)]) -> HeaderMap {
        fields
            .iter()
            .map(|(name, value)| {
                let name = HeaderName::from_bytes(name.as_bytes()).unwrap();
                (name, HeaderValue::from_str(value).unwrap())
            })
            .collect()
    }

    #[test]
    fn owned_headers_never_pass_as_trailers_under_any_spelling() {
        let rules = Rules {
            owned: [HeaderName::from_static("x-user-id")].into_iter().collect(),
            ..Rules::default()
        };
        let mut trailers = map(&[
            ("x-user-id", "root"),
            ("x_user_id", "root"),
            ("x.user-id", "root"),
            ("authorization", "Bearer x"),
            ("content-length", "5"),
            ("transfer-encoding", "chunked"),
            ("connection", "close"),
            ("x-forwarded-for", "1.2.3.4"),
            ("host", "evil"),
            ("grpc-status", "0"),
            ("x-checksum", "abc"),
        ]);
        clean_request_trailers(&mut trailers, &rules);
        let mut left: Vec<&str> = trailers.keys().map(HeaderName::as_str).collect();
        left.sort_unstable();
        assert_eq!(left, ["grpc-status", "x-checksum"]);
    }

    #[test]
    fn hop_by_hop_fields_of_an_answer_end_here() {
        let mut headers = map(&[
            ("connection", "close, x-internal, set-cookie"),
            ("keep-alive", "timeout=5"),
            ("upgrade", "h2c"),
            ("proxy-authenticate", "Basic"),
            ("x-internal", "1"),
            ("alt-svc", "h3=\":443\""),
            ("set-cookie", "a=b"),
            ("trailer", "X-Checksum, Content-Length"),
            ("etag", "x"),
        ]);
        assert_eq!(clean_answer(&mut headers, true), Ok(()));
        assert_eq!(headers.len(), 3);
        assert_eq!(headers["trailer"], "X-Checksum");
        assert_eq!(headers["set-cookie"], "a=b");
        assert_eq!(clean_answer(&mut headers, false), Ok(()));
        assert!(!headers.contains_key("trailer"));
    }

    #[test]
    fn an_answer_with_two_lengths_is_broken() {
        for fields in [
            &[("transfer-encoding", "chunked"), ("content-length", "3")][..],
            &[("transfer-encoding", "gzip, chunked")],
            &[("transfer-encoding", "chunked"), ("transfer-encoding", "x")],
            &[("content-length", "3"), ("content-length", "3")],
        ] {
            let mut headers = HeaderMap::new();
            for (name, value) in fields {
                headers.append(*name, HeaderValue::from_static(value));
            }
            assert!(clean_answer(&mut headers, true).is_err(), "{fields:?}");
        }
    }
}
