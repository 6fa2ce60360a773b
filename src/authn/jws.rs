//! The form of a token: one compact JWS (RFC 7515 section 3.1), read in one way or not at all.
//!
//! This stands in front of the library that checks signatures, because that one forgives what an
//! attacker can use: it never looks at `crit` or `typ`, and takes the last of two equal members.

use std::cell::RefCell;
use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

use super::code::{self, Refused, refused};
use super::json;
use crate::document::{self, Value};

/// Longest `kid` in bytes. Longer ones are attacks on whoever prints or stores them.
pub(super) const MAX_KEY_ID: usize = 256;

/// Header parameters that would have the token choose its own key, its own encoding or its own
/// rules. `crit` names extensions that must be understood (RFC 7515 section 4.1.11); we understand
/// none, so any `crit` is refused, and so is `b64`, which is only legal with it (RFC 7797).
const FORBIDDEN: [&str; 10] = [
    "crit", "b64", "zip", "jku", "jwk", "x5u", "x5c", "enc", "epk", "p2c",
];

/// Longest header, as sent, that is remembered.
const MAX_REMEMBERED: usize = 1024;

/// A token taken apart. Nothing in it is believed yet.
#[derive(Debug)]
pub(super) struct Jws<'t> {
    /// `alg`, byte for byte.
    pub(super) algorithm: Arc<str>,
    /// `typ`, when there is one.
    pub(super) token_type: Option<Arc<str>>,
    /// `kid`, when there is one.
    pub(super) key_id: Option<Arc<str>>,
    /// The decoded payload.
    pub(super) payload: Vec<u8>,
    /// What is signed: header and payload as sent, with the dot.
    pub(super) signed: &'t str,
    /// The signature as sent.
    pub(super) signature: &'t str,
    /// The signature's length in bytes.
    pub(super) signature_length: usize,
}

impl<'t> Jws<'t> {
    /// Takes a token apart.
    ///
    /// # Errors
    /// A refusal of the form.
    pub(super) fn parse(token: &'t str) -> Result<Self, Refused> {
        let malformed = |what| refused(code::MALFORMED, what);
        let (signed, signature) = token
            .rsplit_once('.')
            .ok_or_else(|| malformed("not three parts"))?;
        let (header, payload) = signed
            .split_once('.')
            .filter(|(_, payload)| !payload.contains('.'))
            .ok_or_else(|| malformed("not three parts"))?;
        if header.is_empty() || signature.is_empty() {
            return Err(malformed("an empty part"));
        }
        let Header {
            algorithm,
            token_type,
            key_id,
        } = Header::read(header)?;
        let payload =
            decode(payload).ok_or_else(|| malformed("payload: not canonical base64url"))?;
        let signature_length = decode(signature)
            .ok_or_else(|| malformed("signature: not canonical base64url"))?
            .len();
        Ok(Self {
            algorithm,
            token_type,
            key_id,
            payload,
            signed,
            signature,
            signature_length,
        })
    }
}

/// What the header of a token says.
#[derive(Debug, Clone)]
struct Header {
    algorithm: Arc<str>,
    token_type: Option<Arc<str>>,
    key_id: Option<Arc<str>>,
}

impl Header {
    /// Reads a header as sent. All tokens that are signed with one key have the same, so that each
    /// thread remembers the last good one by its text.
    fn read(sent: &str) -> Result<Self, Refused> {
        thread_local! {
            static LAST: RefCell<Option<(Box<str>, Header)>> = const { RefCell::new(None) };
        }
        LAST.with_borrow_mut(|last| {
            if let Some((text, header)) = last
                && **text == *sent
            {
                return Ok(header.clone());
            }
            let header = Self::parse(sent)?;
            if sent.len() <= MAX_REMEMBERED {
                *last = Some((sent.into(), header.clone()));
            }
            Ok(header)
        })
    }

    fn parse(sent: &str) -> Result<Self, Refused> {
        let malformed = |what| refused(code::MALFORMED, what);
        let header = decode(sent).ok_or_else(|| malformed("header: not canonical base64url"))?;
        let header = json::parse_object(&header)
            .map_err(|()| malformed("the header is not a strict JSON object"))?;

        if let Some(name) = document::names(&header).find(|name| FORBIDDEN.contains(name)) {
            return Err(refused(
                code::HEADER,
                format!("the header parameter `{name}` is not allowed"),
            ));
        }
        let algorithm = text(&header, "alg")?
            .ok_or_else(|| refused(code::ALGORITHM, "the header names no algorithm"))?;
        let token_type = text(&header, "typ")?;
        if text(&header, "cty")?.is_some_and(|cty| is_jwt(&cty)) {
            return Err(refused(code::HEADER, "nested tokens are not accepted"));
        }
        let key_id = text(&header, "kid")?;
        if let Some(kid) = &key_id
            && (kid.is_empty() || kid.len() > MAX_KEY_ID || kid.chars().any(char::is_control))
        {
            return Err(refused(
                code::HEADER,
                "`kid` is empty, long or no plain text",
            ));
        }
        Ok(Self {
            algorithm,
            token_type,
            key_id,
        })
    }
}

/// Decodes base64url without padding, refusing every second spelling of the same bytes: padding,
/// white space, and bits behind the last byte.
pub(super) fn decode(text: &str) -> Option<Vec<u8>> {
    URL_SAFE_NO_PAD.decode(text).ok()
}

/// Encodes as base64url without padding.
pub(super) fn encode(bytes: &[u8]) -> String {
    URL_SAFE_NO_PAD.encode(bytes)
}

/// Media types compare without case and with `application/` left out (RFC 7515 section 4.1.9).
pub(super) fn media_type(text: &str) -> String {
    let text = text.to_ascii_lowercase();
    match text.strip_prefix("application/") {
        Some(rest) if !rest.is_empty() => rest.to_owned(),
        _ => text,
    }
}

fn is_jwt(content_type: &str) -> bool {
    let content_type = media_type(content_type);
    content_type == "jwt" || content_type.ends_with("+jwt")
}

fn text(header: &Value, name: &'static str) -> Result<Option<Arc<str>>, Refused> {
    match document::member(header, name) {
        None => Ok(None),
        Some(value) => match document::text(value) {
            Some(text) => Ok(Some(Arc::clone(text))),
            None => Err(refused(
                if name == "alg" {
                    code::ALGORITHM
                } else {
                    code::HEADER
                },
                format!("the header parameter `{name}` is not a string"),
            )),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn token(header: &str) -> String {
        format!(
            "{}.{}.{}",
            encode(header.as_bytes()),
            encode(b"{}"),
            encode(b"sig")
        )
    }

    fn refusal(token: &str) -> &'static str {
        Jws::parse(token)
            .map(|_| ())
            .map_err(|refused| refused.code)
            .unwrap_err()
    }

    #[test]
    fn only_three_canonical_parts_are_a_token() {
        let good = token(r#"{"alg":"RS256"}"#);
        assert!(Jws::parse(&good).is_ok());
        let (h, rest) = good.split_once('.').unwrap();
        let (p, s) = rest.split_once('.').unwrap();
        for bad in [
            "".to_owned(),
            ".".into(),
            "..".into(),
            "...".into(),
            "a".into(),
            format!("{h}.{p}"),
            format!("{h}.{p}."),
            format!(".{p}.{s}"),
            format!("{good}.{s}"),
            format!("{good}.{s}.{s}"),
            format!("{h}..{p}.{s}"),
            format!("{h}=.{p}.{s}"),
            format!("{h}.{p}.{s}="),
            format!("{h}.{p}.{s}=="),
            format!(" {good}"),
            format!("{good} "),
            format!("{h}.{p}\n.{s}"),
            format!("{h}.{p}+.{s}"),
            format!("{h}.{p}/.{s}"),
            format!("{h}.{p}%3d.{s}"),
            format!("{h}.é.{s}"),
            ".".repeat(1_000_000),
        ] {
            assert_eq!(refusal(&bad), "token.malformed", "{:.60}", bad);
        }
        // "{}" is `e30`; `e31` differs only in bits that belong to no byte.
        assert_eq!(refusal(&format!("{h}.e31.{s}")), "token.malformed");
    }

    #[test]
    fn a_header_that_was_read_before_says_the_same_and_a_bad_one_is_refused_each_time() {
        let good = token(r#"{"alg":"RS256","kid":"one","typ":"at+jwt"}"#);
        let other = token(r#"{"alg":"RS256","kid":"two"}"#);
        let bad = token(r#"{"alg":"RS256","kid":"one","typ":"at+jwt","crit":[]}"#);
        for _ in 0..3 {
            let read = Jws::parse(&good).unwrap();
            assert_eq!(read.key_id.as_deref(), Some("one"));
            assert_eq!(read.token_type.as_deref(), Some("at+jwt"));
            assert_eq!(refusal(&bad), "token.header");
            let read = Jws::parse(&other).unwrap();
            assert_eq!(read.key_id.as_deref(), Some("two"));
            assert_eq!(read.token_type, None);
        }
        // The rest of a token is looked at whatever its header.
        let (header, _) = good.split_once('.').unwrap();
        assert_eq!(refusal(&format!("{header}.=.c2ln")), "token.malformed");
        assert_eq!(refusal(&format!("{header}.e30.=")), "token.malformed");
        let long = format!(r#"{{"alg":"RS256","x":"{}"}}"#, "y".repeat(MAX_REMEMBERED));
        assert!(Jws::parse(&token(&long)).is_ok());
    }

    #[test]
    fn the_header_is_a_strict_object_with_nothing_that_steers_us() {
        for header in [
            "[]",
            "1",
            "null",
            r#"{"alg":"RS256","alg":"RS256"}"#,
            r#"{"alg":"RS256",}"#,
        ] {
            assert_eq!(refusal(&token(header)), "token.malformed", "{header}");
        }
        for extra in [
            r#""crit":["exp"]"#,
            r#""crit":[]"#,
            r#""crit":null"#,
            r#""b64":false"#,
            r#""b64":true"#,
            r#""zip":"DEF""#,
            r#""jku":"http://x""#,
            r#""jwk":{}"#,
            r#""x5u":"http://x""#,
            r#""x5c":[]"#,
            r#""enc":"A256GCM""#,
            r#""kid":1"#,
            r#""kid":"""#,
            r#""kid":"a\nb""#,
            r#""typ":1"#,
            r#""cty":"JWT""#,
            r#""cty":"application/at+jwt""#,
            r#""cty":7"#,
        ] {
            let header = format!(r#"{{"alg":"RS256",{extra}}}"#);
            assert_eq!(refusal(&token(&header)), "token.header", "{extra}");
        }
        let long = format!(
            r#"{{"alg":"RS256","kid":"{}"}}"#,
            "k".repeat(MAX_KEY_ID + 1)
        );
        assert_eq!(refusal(&token(&long)), "token.header");
        for alg in [
            "{}",
            r#"{"alg":null}"#,
            r#"{"alg":["RS256"]}"#,
            r#"{"alg":true}"#,
        ] {
            assert_eq!(refusal(&token(alg)), "token.algorithm", "{alg}");
        }
    }
}
