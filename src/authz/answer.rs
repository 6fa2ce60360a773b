//! What a policy's answer means. Only the literal `true` allows, alone or as `"allow": true`.
//!
//! An object may have the members below and no others: a misspelt `headres` or a `status` in quotes
//! would otherwise be a promise that is quietly not kept. Every flaw denies.

#![expect(
    clippy::wildcard_enum_match_arm,
    reason = "a value is of the one kind that is asked for, or wrong"
)]

use std::sync::Arc;
use std::time::Duration;

use http::{HeaderName, HeaderValue, StatusCode};
use serde::Deserialize;
use serde::de::IntoDeserializer;
use serde::de::value::Error as PlainError;

use super::{Advice, AskedLimit, StepUp};
use crate::document::{Value, text};
use crate::request::is_hop_by_hop;
use crate::schema::Span;

/// Largest answer, in bytes of text and 16 for every other value.
pub(in crate::authz) const MAX_ANSWER: usize = 64 * 1024;
/// Most headers of an answer.
pub(in crate::authz) const MAX_HEADERS: usize = 32;
/// Longest `reason`, bytes.
pub(in crate::authz) const MAX_REASON: usize = 128;
/// Longest `message`, bytes.
pub(in crate::authz) const MAX_MESSAGE: usize = 1024;
/// Longest `limit.key`, bytes.
pub(in crate::authz) const MAX_LIMIT_KEY: usize = 256;
/// Longest header value, bytes.
pub(in crate::authz) const MAX_HEADER_VALUE: usize = 4096;

/// Headers that a policy may not set: they frame the message, or describe a body that is not the
/// policy's.
pub(in crate::authz) const FRAMING: [&str; 8] = [
    "content-length",
    "content-type",
    "content-encoding",
    "content-range",
    "host",
    "date",
    "alt-svc",
    "expect",
];

/// What an answer says.
#[derive(Debug, PartialEq, Eq)]
pub(in crate::authz) enum Verdict {
    /// Yes.
    Allow(Advice),
    /// No, with what the client may see.
    Deny(Face),
    /// The entry point is undefined.
    Undefined,
    /// Not an answer. The text is for the record.
    Broken(String),
}

/// The policy's own no.
#[derive(Debug, Default, PartialEq, Eq)]
pub(in crate::authz) struct Face {
    pub(in crate::authz) reason: Option<String>,
    pub(in crate::authz) status: Option<StatusCode>,
    pub(in crate::authz) message: Option<String>,
    pub(in crate::authz) headers: Vec<(HeaderName, HeaderValue)>,
    pub(in crate::authz) step_up: Option<StepUp>,
    /// Takes the place of our own words.
    pub(in crate::authz) body: Option<Arc<str>>,
    /// For the record, JSON.
    pub(in crate::authz) metadata: Option<Arc<str>>,
}

/// Reads an answer.
pub(in crate::authz) fn read(answer: &Value) -> Verdict {
    match answer {
        Value::Bool(true) => return Verdict::Allow(Advice::default()),
        Value::Bool(false) => return Verdict::Deny(Face::default()),
        Value::Undefined => return Verdict::Undefined,
        _ => {}
    }
    if size(answer, MAX_ANSWER).is_none() {
        return Verdict::Broken(format!("the answer is larger than {MAX_ANSWER} bytes"));
    }
    members(answer).unwrap_or_else(Verdict::Broken)
}

fn members(answer: &Value) -> Result<Verdict, String> {
    let object = answer
        .as_object()
        .map_err(|_| format!("the answer is {}", kind(answer)))?;
    let mut allow = None;
    let mut face = Face::default();
    let mut advice = Advice::default();
    for (key, value) in object.iter() {
        let Some(name) = text(key) else {
            return Err("a member's name is not a string".to_owned());
        };
        match name.as_ref() {
            "allow" => match value {
                Value::Bool(said) => allow = Some(*said),
                other => return Err(format!("`allow` is {}", kind(other))),
            },
            "reason" => face.reason = Some(reason(value)?),
            "message" => face.message = Some(message(value)?),
            "status" => face.status = Some(status(value)?),
            "headers" => face.headers = headers(value)?,
            "identity" => match value.as_object() {
                Ok(_) => advice.identity = Some(value.clone()),
                Err(_) => return Err(format!("`identity` is {}", kind(value))),
            },
            "limit" => advice.limit = Some(limit(value)?),
            "step_up" => face.step_up = Some(step_up(value)?),
            "recheck_after" => advice.recheck_after = Some(recheck_after(value)?),
            other => return Err(format!("there is no member `{}`", clipped(other))),
        }
    }
    match allow {
        None => Err("`allow` is missing".to_owned()),
        Some(false) => Ok(Verdict::Deny(face)),
        Some(true) => {
            advice.reason = face.reason;
            advice.headers = face.headers;
            Ok(Verdict::Allow(advice))
        }
    }
}

pub(in crate::authz) fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "an array",
        Value::Set(_) => "a set",
        Value::Object(_) => "an object",
        Value::Undefined => "undefined",
    }
}

pub(in crate::authz) fn clipped(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).take(64).collect()
}

/// What an answer weighs in memory, roughly.
pub(in crate::authz) fn weight(answer: &Value) -> usize {
    MAX_ANSWER - size(answer, MAX_ANSWER).unwrap_or(0)
}

/// Bytes left of `budget`; `None` when there are none.
pub(in crate::authz) fn size(value: &Value, budget: usize) -> Option<usize> {
    let mut left = budget.checked_sub(16)?;
    match value {
        Value::String(text) => left = left.checked_sub(text.len())?,
        Value::Array(items) => {
            for item in items.iter() {
                left = size(item, left)?;
            }
        }
        Value::Set(items) => {
            for item in items.iter() {
                left = size(item, left)?;
            }
        }
        Value::Object(members) => {
            for (key, value) in members.iter() {
                left = size(value, size(key, left)?)?;
            }
        }
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::Undefined => {}
    }
    Some(left)
}

fn string<'v>(name: &str, value: &'v Value, longest: usize) -> Result<&'v str, String> {
    let text = text(value).ok_or_else(|| format!("`{name}` is {}", kind(value)))?;
    if text.len() > longest {
        return Err(format!("`{name}` is longer than {longest} bytes"));
    }
    if text.chars().any(char::is_control) {
        return Err(format!("`{name}` holds control characters"));
    }
    Ok(text)
}

/// A code for programs: it becomes a metric's neighbour and a record's field.
fn reason(value: &Value) -> Result<String, String> {
    let text = string("reason", value, MAX_REASON)?;
    let fits = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-' | b':' | b'/');
    if text.is_empty() || !text.bytes().all(fits) {
        return Err("`reason` is no code such as `orders.not_owner`".to_owned());
    }
    Ok(text.to_owned())
}

fn message(value: &Value) -> Result<String, String> {
    string("message", value, MAX_MESSAGE).map(str::to_owned)
}

fn whole(name: &str, value: &Value) -> Result<u64, String> {
    match value {
        Value::Number(number) if number.is_integer() => number
            .as_u64()
            .ok_or_else(|| format!("`{name}` is out of range")),
        Value::Number(_) => Err(format!("`{name}` is no whole number")),
        other => Err(format!("`{name}` is {}", kind(other))),
    }
}

fn status(value: &Value) -> Result<StatusCode, String> {
    let number = whole("status", value)?;
    u16::try_from(number)
        .ok()
        .filter(|number| (400..=499).contains(number))
        .and_then(|number| StatusCode::from_u16(number).ok())
        .ok_or_else(|| "`status` is not between 400 and 499".to_owned())
}

fn headers(value: &Value) -> Result<Vec<(HeaderName, HeaderValue)>, String> {
    let object = value
        .as_object()
        .map_err(|_| format!("`headers` is {}", kind(value)))?;
    let mut headers = Vec::new();
    for (name, value) in object.iter() {
        let name = text(name).ok_or("a header's name is not a string")?;
        let header = HeaderName::from_bytes(name.as_bytes())
            .map_err(|_| format!("`{}` is no header name", clipped(name)))?;
        if is_hop_by_hop(header.as_str()) || FRAMING.contains(&header.as_str()) {
            return Err(format!("a policy may not set the header `{header}`"));
        }
        let values: Vec<&Value> = match value {
            Value::Array(values) => values.iter().collect(),
            single => vec![single],
        };
        for value in values {
            let value = string(header.as_str(), value, MAX_HEADER_VALUE)?;
            let value = HeaderValue::from_str(value)
                .map_err(|_| format!("the value of `{header}` is no header value"))?;
            headers.push((header.clone(), value));
        }
    }
    if headers.len() > MAX_HEADERS {
        return Err(format!("there are more than {MAX_HEADERS} headers"));
    }
    Ok(headers)
}

/// `{"key": "exports", "rate": "10/m", "burst": 5}`; a bare number is a rate per second, and
/// `burst` is the rate when it is not given.
fn limit(value: &Value) -> Result<AskedLimit, String> {
    let object = value
        .as_object()
        .map_err(|_| format!("`limit` is {}", kind(value)))?;
    let (mut key, mut rate, mut burst) = (None, None, None);
    for (name, value) in object.iter() {
        match text(name).map(AsRef::as_ref) {
            Some("key") => {
                let text = string("limit.key", value, MAX_LIMIT_KEY)?;
                key = Some(text.to_owned()).filter(|key| !key.is_empty());
            }
            Some("rate") => rate = Some(rate_of(value)?),
            Some("burst") => burst = Some(count("limit.burst", whole("limit.burst", value)?)?),
            _ => return Err("`limit` has members beside key, rate and burst".to_owned()),
        }
    }
    let key = key.ok_or("`limit.key` is missing or empty")?;
    let (rate, per) = rate.ok_or("`limit.rate` is missing")?;
    Ok(AskedLimit {
        key,
        rate,
        per,
        burst: burst.unwrap_or(rate),
    })
}

fn count(name: &str, number: u64) -> Result<u32, String> {
    u32::try_from(number)
        .ok()
        .filter(|number| *number > 0)
        .ok_or_else(|| format!("`{name}` is out of range"))
}

fn rate_of(value: &Value) -> Result<(u32, Duration), String> {
    let Some(text) = text(value) else {
        return Ok((
            count("limit.rate", whole("limit.rate", value)?)?,
            Duration::from_secs(1),
        ));
    };
    let (number, unit) = text
        .split_once('/')
        .ok_or("`limit.rate` is not such as `10/s`")?;
    let seconds = match unit {
        "s" => 1,
        "m" => 60,
        "h" => 3_600,
        "d" => 86_400,
        _ => return Err("`limit.rate` is not per s, m, h or d".to_owned()),
    };
    if !number.bytes().all(|b| b.is_ascii_digit()) {
        return Err("`limit.rate` is not such as `10/s`".to_owned());
    }
    let number = number
        .parse()
        .map_err(|_| "`limit.rate` is out of range".to_owned())?;
    Ok((count("limit.rate", number)?, Duration::from_secs(seconds)))
}

/// RFC 9470 section 3. The values end up in a quoted string of a challenge, parted by spaces.
fn step_up(value: &Value) -> Result<StepUp, String> {
    let object = value
        .as_object()
        .map_err(|_| format!("`step_up` is {}", kind(value)))?;
    let mut asked = StepUp {
        acr_values: Vec::new(),
        max_age: None,
    };
    for (name, value) in object.iter() {
        match text(name).map(AsRef::as_ref) {
            Some("acr_values") => {
                let values = value
                    .as_array()
                    .map_err(|_| format!("`step_up.acr_values` is {}", kind(value)))?;
                for value in values.iter() {
                    let value = string("step_up.acr_values", value, MAX_REASON)?;
                    let fits = |b: u8| b.is_ascii_graphic() && b != b'"' && b != b'\\';
                    if value.is_empty() || !value.bytes().all(fits) {
                        return Err("`step_up.acr_values` holds characters that no acr has".into());
                    }
                    asked.acr_values.push(value.to_owned());
                }
            }
            Some("max_age") => asked.max_age = Some(whole("step_up.max_age", value)?),
            _ => return Err("`step_up` has members beside acr_values and max_age".to_owned()),
        }
    }
    if asked.acr_values.is_empty() && asked.max_age.is_none() {
        return Err("`step_up` asks for nothing".to_owned());
    }
    Ok(asked)
}

fn recheck_after(value: &Value) -> Result<Duration, String> {
    let text = string("recheck_after", value, 32)?;
    Span::deserialize(IntoDeserializer::<PlainError>::into_deserializer(text))
        .map(Span::get)
        .ok()
        .filter(|after| !after.is_zero())
        .ok_or_else(|| "`recheck_after` is no duration such as `30s`".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::document::from_json;

    fn verdict(json: &str) -> Verdict {
        read(&from_json(json.as_bytes()).unwrap())
    }

    #[test]
    fn only_literal_true_allows() {
        assert_eq!(verdict("true"), Verdict::Allow(Advice::default()));
        assert_eq!(
            verdict(r#"{"allow": true}"#),
            Verdict::Allow(Advice::default())
        );
        assert_eq!(verdict("false"), Verdict::Deny(Face::default()));
        assert_eq!(
            verdict(r#"{"allow": false}"#),
            Verdict::Deny(Face::default())
        );
        assert_eq!(read(&Value::Undefined), Verdict::Undefined);
        for odd in [
            "1",
            "0",
            "\"true\"",
            "null",
            "[]",
            "[true]",
            "{}",
            r#"{"allow": 1}"#,
            r#"{"allow": "true"}"#,
            r#"{"allow": null}"#,
            r#"{"allow": [true]}"#,
            r#"{"Allow": true}"#,
            r#"{"result": true}"#,
        ] {
            assert!(matches!(verdict(odd), Verdict::Broken(_)), "{odd}");
        }
        let set = Value::from(std::collections::BTreeSet::from([Value::from(true)]));
        assert!(matches!(read(&set), Verdict::Broken(_)));
    }

    #[test]
    fn a_flaw_anywhere_denies_even_when_allow_is_true() {
        for flaw in [
            r#""extra": 1"#,
            r#""reason": 5"#,
            r#""reason": """#,
            r#""reason": "two words""#,
            r#""reason": "a\nb""#,
            r#""message": ["x"]"#,
            r#""message": "a\u0000""#,
            r#""status": 399"#,
            r#""status": 500"#,
            r#""status": 200"#,
            r#""status": "403""#,
            r#""status": 403.5"#,
            r#""headers": []"#,
            r#""headers": {"a b": "x"}"#,
            r#""headers": {"x": 1}"#,
            r#""headers": {"x": "a\r\nset-cookie: b"}"#,
            r#""headers": {"Content-Length": "0"}"#,
            r#""headers": {"transfer-encoding": "chunked"}"#,
            r#""headers": {"Connection": "close"}"#,
            r#""headers": {"upgrade": "x"}"#,
            r#""headers": {"trailer": "x"}"#,
            r#""identity": "x""#,
            r#""identity": null"#,
            r#""limit": 5"#,
            r#""limit": {"key": "a"}"#,
            r#""limit": {"rate": "1/s"}"#,
            r#""limit": {"key": "", "rate": "1/s"}"#,
            r#""limit": {"key": "a", "rate": "0/s"}"#,
            r#""limit": {"key": "a", "rate": "1/y"}"#,
            r#""limit": {"key": "a", "rate": "-1/s"}"#,
            r#""limit": {"key": "a", "rate": "+1/s"}"#,
            r#""limit": {"key": "a", "rate": 0.5}"#,
            r#""limit": {"key": "a", "rate": "1/s", "burst": 0}"#,
            r#""limit": {"key": "a", "rate": "1/s", "x": 0}"#,
            r#""step_up": {}"#,
            r#""step_up": {"acr_values": "mfa"}"#,
            r#""step_up": {"acr_values": ["a\"b"]}"#,
            r#""step_up": {"max_age": -1}"#,
            r#""step_up": {"max_age": 1, "x": 1}"#,
            r#""recheck_after": 30"#,
            r#""recheck_after": "30""#,
            r#""recheck_after": "0s""#,
            r#""recheck_after": "soon""#,
        ] {
            let answer = format!(r#"{{"allow": true, {flaw}}}"#);
            assert!(matches!(verdict(&answer), Verdict::Broken(_)), "{answer}");
        }
    }

    #[test]
    fn a_full_answer_is_read_in_full() {
        let yes = verdict(
            r#"{"allow": true, "reason": "orders.owner", "headers": {"x-a": "1", "x-b": ["2", "3"]},
                "identity": {"tenant": "acme"}, "limit": {"key": "exports", "rate": "10/m"},
                "recheck_after": "30s"}"#,
        );
        let Verdict::Allow(advice) = yes else {
            panic!("{yes:?}")
        };
        assert_eq!(advice.reason.as_deref(), Some("orders.owner"));
        assert_eq!(advice.headers.len(), 3);
        assert_eq!(
            advice.limit,
            Some(AskedLimit {
                key: "exports".to_owned(),
                rate: 10,
                per: Duration::from_secs(60),
                burst: 10
            })
        );
        assert_eq!(advice.recheck_after, Some(Duration::from_secs(30)));
        assert!(advice.identity.is_some());

        let no = verdict(
            r#"{"allow": false, "reason": "orders.stale_login", "message": "Log in again.", "status": 401,
                "limit": {"key": "a", "rate": 5, "burst": 9},
                "step_up": {"acr_values": ["mfa"], "max_age": 300}}"#,
        );
        let Verdict::Deny(face) = no else {
            panic!("{no:?}")
        };
        assert_eq!(face.status, Some(StatusCode::UNAUTHORIZED));
        assert_eq!(face.message.as_deref(), Some("Log in again."));
        assert_eq!(face.step_up.unwrap().max_age, Some(300));
    }

    #[test]
    fn size_and_number_of_headers_are_bounded() {
        let big = format!(
            r#"{{"allow": true, "identity": {{"x": "{}"}}}}"#,
            "a".repeat(MAX_ANSWER)
        );
        assert!(matches!(verdict(&big), Verdict::Broken(_)));
        let many = |count: usize| {
            let headers: Vec<String> = (0..count).map(|i| format!(r#""x-{i}": "1""#)).collect();
            verdict(&format!(
                r#"{{"allow": true, "headers": {{{}}}}}"#,
                headers.join(",")
            ))
        };
        assert!(matches!(many(MAX_HEADERS), Verdict::Allow(_)));
        assert!(matches!(many(MAX_HEADERS + 1), Verdict::Broken(_)));
    }
}
