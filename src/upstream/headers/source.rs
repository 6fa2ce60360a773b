//! Where the value of an identity header comes from, and how it is written.

use std::fmt::Write;
use std::sync::Arc;

use http::HeaderValue;

use crate::authn::Caller;
use crate::document::{self, Value};
use crate::request::scan::Odd;
use crate::tls::PeerCertificate;

/// Longest value of one identity header. A longer one is left out: half a list of roles, or half a
/// subject, would be another one.
pub(super) const MAX_VALUE: usize = 8 * 1024;

/// Where a value comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Source {
    Subject,
    Issuer,
    Id,
    Client,
    Method,
    Scopes,
    Roles,
    TokenId,
    Claim(String),
    Policy(String),
    CertificateDigest,
    CertificateSubject,
    CertificateSpiffe,
    Text(HeaderValue),
}

/// What values are taken from.
#[derive(Debug, Clone, Copy)]
pub(super) struct Facts<'a> {
    pub(super) caller: &'a Caller,
    /// The policy's `identity` object.
    pub(super) policy: Option<&'a Value>,
    pub(super) certificate: Option<&'a PeerCertificate>,
}

impl Source {
    /// Reads a source expression.
    ///
    /// # Errors
    /// What is wrong with it.
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        let path = |path: &str, make: fn(String) -> Self| {
            if path.is_empty() || path.split('.').any(str::is_empty) {
                Err(format!("`{text}` names no member"))
            } else {
                Ok(make(path.to_owned()))
            }
        };
        match text.split_once(':') {
            None => Ok(match text {
                "subject" => Self::Subject,
                "issuer" => Self::Issuer,
                "id" => Self::Id,
                "client" => Self::Client,
                "method" => Self::Method,
                "scopes" => Self::Scopes,
                "roles" => Self::Roles,
                "token_id" => Self::TokenId,
                _ => return Err(format!("`{text}` is no source")),
            }),
            Some(("claim", name)) => path(name, Self::Claim),
            Some(("policy", name)) => path(name, Self::Policy),
            Some(("certificate", "sha256")) => Ok(Self::CertificateDigest),
            Some(("certificate", "subject")) => Ok(Self::CertificateSubject),
            Some(("certificate", "spiffe")) => Ok(Self::CertificateSpiffe),
            Some(("text", constant)) => {
                let legal = constant.bytes().all(|b| (0x20..0x7f).contains(&b));
                let trimmed = constant.trim() == constant && !constant.is_empty();
                match HeaderValue::from_str(constant) {
                    Ok(value) if legal && trimmed => Ok(Self::Text(value)),
                    _ => Err(format!("`{constant}` is not plain visible text")),
                }
            }
            Some(_) => Err(format!("`{text}` is no source")),
        }
    }

    /// Whether the value is the same in all requests of one identity.
    pub(super) fn is_of_identity(&self) -> bool {
        match self {
            Self::Subject
            | Self::Issuer
            | Self::Id
            | Self::Client
            | Self::Method
            | Self::Scopes
            | Self::Roles
            | Self::TokenId
            | Self::Claim(_) => true,
            Self::Policy(_)
            | Self::CertificateDigest
            | Self::CertificateSubject
            | Self::CertificateSpiffe
            | Self::Text(_) => false,
        }
    }

    /// The value for this request; `None` where there is none, so that the header is absent.
    pub(super) fn value(&self, facts: Facts<'_>) -> Option<HeaderValue> {
        if let Self::Text(constant) = self {
            return Some(constant.clone());
        }
        if let Self::Policy(path) = self {
            // The policy vouches for these, whoever the caller is.
            return written(document::claim(facts.policy?, path)?);
        }
        let identity = facts.caller.identity()?;
        match self {
            Self::Subject => scalar(&identity.subject),
            Self::Issuer => scalar(&identity.issuer),
            Self::Id => scalar(&identity.id),
            Self::Client => scalar(identity.client.as_deref()?),
            Self::Method => scalar(identity.method),
            Self::Scopes => list(identity.scopes.iter().map(|scope| &**scope)),
            Self::Roles => list(identity.roles.iter().map(|role| &**role)),
            Self::TokenId => scalar(identity.token_id.as_deref()?),
            Self::Claim(path) => written(document::claim(&identity.claims, path)?),
            Self::CertificateDigest => scalar(&facts.certificate?.sha256),
            Self::CertificateSubject => scalar(&facts.certificate?.subject),
            Self::CertificateSpiffe => scalar(facts.certificate?.spiffe_id.as_deref()?),
            Self::Policy(_) | Self::Text(_) => None,
        }
    }
}

/// A claim: a string, a number, a boolean, or an array of these. Objects have no form in a header
/// that two services would read alike; the assertion carries what is needed of them.
fn written(value: &Value) -> Option<HeaderValue> {
    match (document::items(value), document::text(value)) {
        (Some(items), _) => {
            let items: Option<Vec<Arc<str>>> = items.iter().map(plain).collect();
            list(items?.iter().map(|item| &**item))
        }
        (None, Some(text)) => scalar(text),
        (None, None) => scalar(&plain(value)?),
    }
}

fn plain(value: &Value) -> Option<Arc<str>> {
    match value {
        Value::String(text) => Some(Arc::clone(text)),
        Value::Bool(_) | Value::Number(_) => Some(value.to_string().into()),
        Value::Null | Value::Undefined | Value::Array(_) | Value::Set(_) | Value::Object(_) => None,
    }
}

fn scalar(text: &str) -> Option<HeaderValue> {
    // Most values need no encoding, and then one copy is all.
    const ODD: Odd = Odd {
        below: 0x21,
        from: Some(0x7f),
        also: *b"%%",
    };
    if !ODD.any(text.as_bytes()) {
        if text.is_empty() || text.len() > MAX_VALUE {
            return None;
        }
        return HeaderValue::from_str(text).ok();
    }
    let mut out = String::with_capacity(text.len());
    encode(text, false, &mut out);
    finish(out)
}

fn list<'a>(items: impl Iterator<Item = &'a str>) -> Option<HeaderValue> {
    let mut out = String::new();
    for item in items.filter(|item| !item.is_empty()) {
        if !out.is_empty() {
            out.push(',');
        }
        encode(item, true, &mut out);
        if out.len() > MAX_VALUE {
            return None;
        }
    }
    finish(out)
}

fn finish(out: String) -> Option<HeaderValue> {
    if out.is_empty() || out.len() > MAX_VALUE {
        return None;
    }
    HeaderValue::try_from(out).ok()
}

/// Writes text in visible ASCII. Everything else, and `%` itself, is percent-encoded byte by byte, so
/// that no value can end its line, and decoding gives back exactly what the credential said.
fn encode(text: &str, comma: bool, out: &mut String) {
    for byte in text.bytes() {
        if matches!(byte, 0x21..=0x7e) && byte != b'%' && !(comma && byte == b',') {
            out.push(char::from(byte));
        } else {
            // Writing to a string cannot fail.
            let _ = write!(out, "%{byte:02X}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(value: Option<HeaderValue>) -> Option<String> {
        value.map(|value| value.to_str().unwrap().to_owned())
    }

    #[test]
    fn values_cannot_inject_headers() {
        let injected = "alice\r\nx-role: admin\u{0}\u{e9} 100%";
        assert_eq!(
            shown(scalar(injected)).unwrap(),
            "alice%0D%0Ax-role:%20admin%00%C3%A9%20100%25"
        );
        assert_eq!(shown(scalar("CN=a,O=b")).unwrap(), "CN=a,O=b");
    }

    #[test]
    fn lists_keep_commas_inside_elements_apart() {
        let value = list(["a,b", "c", ""].into_iter());
        assert_eq!(shown(value).unwrap(), "a%2Cb,c");
        assert_eq!(list(std::iter::empty()), None);
    }

    #[test]
    fn values_over_the_bound_are_left_out_not_cut() {
        assert!(scalar(&"a".repeat(MAX_VALUE)).is_some());
        assert!(scalar(&"a".repeat(MAX_VALUE + 1)).is_none());
        let roles = vec!["role"; MAX_VALUE];
        assert!(list(roles.into_iter()).is_none());
    }

    #[test]
    fn claims_have_one_form_or_none() {
        let claims = Value::from_json_str(
            r#"{"n": 7, "b": true, "a": ["x", 1], "o": {"k": "v"}, "d": [["x"]], "e": "", "z": null}"#,
        )
        .unwrap();
        let claim = |path| shown(written(document::claim(&claims, path).unwrap()));
        assert_eq!(claim("n").unwrap(), "7");
        assert_eq!(claim("b").unwrap(), "true");
        assert_eq!(claim("a").unwrap(), "x,1");
        assert_eq!(claim("o.k").unwrap(), "v");
        for absent in ["o", "d", "e", "z"] {
            assert_eq!(claim(absent), None, "{absent}");
        }
    }

    #[test]
    fn anonymous_callers_have_no_identity() {
        let certificate = None;
        let facts = Facts {
            caller: &Caller::Anonymous,
            policy: None,
            certificate,
        };
        for source in [
            "subject",
            "issuer",
            "id",
            "client",
            "method",
            "scopes",
            "roles",
            "token_id",
            "claim:sub",
            "policy:tenant",
            "certificate:sha256",
        ] {
            assert_eq!(
                Source::parse(source).unwrap().value(facts),
                None,
                "{source}"
            );
        }
        let text = Source::parse("text:portcullis").unwrap();
        assert_eq!(shown(text.value(facts)).unwrap(), "portcullis");
    }

    #[test]
    fn the_policy_can_vouch_for_members() {
        let policy = Value::from_json_str(r#"{"tenant": {"id": "acme"}}"#).unwrap();
        let facts = Facts {
            caller: &Caller::Anonymous,
            policy: Some(&policy),
            certificate: None,
        };
        let source = Source::parse("policy:tenant.id").unwrap();
        assert_eq!(shown(source.value(facts)).unwrap(), "acme");
    }

    #[test]
    fn unknown_sources_are_refused() {
        for bad in [
            "",
            "sub",
            "claim:",
            "claim:a..b",
            "certificate:serial",
            "text:",
            "text:a\nb",
            "env:X",
        ] {
            assert!(Source::parse(bad).is_err(), "{bad:?}");
        }
    }
}
