//! The answers of OPA's Envoy plugin: `true`, `false`, or an object with `allowed`.
//!
//! As there, members that are not known are no flaw, and those that are for the other answer are not
//! looked at; a wrong type of those that count is an error, and denies. Sets count as arrays, as they
//! do in the JSON that the plugin reads. What is stricter here denies, too: bounds, headers that only
//! the gateway writes, a status that ends nothing (1xx). Where a header or a parameter has several
//! values, all of them are set; Envoy would keep the last.

#![expect(
    clippy::wildcard_enum_match_arm,
    reason = "a value is of the one kind that is asked for, or wrong"
)]

use std::collections::BTreeSet;
use std::sync::Arc;

use http::{HeaderName, HeaderValue, StatusCode};

use crate::authz::Advice;
use crate::authz::answer::{
    FRAMING, Face, MAX_ANSWER, MAX_HEADER_VALUE, MAX_HEADERS, Verdict, clipped, kind, size,
};
use crate::authz::edits::Edits;
use crate::document::{Value, member, text};
use crate::request::is_hop_by_hop;

/// Longest `body`, bytes.
pub(in crate::authz) const MAX_BODY: usize = 16 * 1024;
/// Most parameters of the query that are set, and that are removed.
pub(in crate::authz) const MAX_PARAMETERS: usize = 32;
/// Longest name or value of a parameter, bytes.
pub(in crate::authz) const MAX_PARAMETER: usize = 1024;
/// Longest `dynamic_metadata`, bytes of JSON.
pub(in crate::authz) const MAX_METADATA: usize = 4 * 1024;

/// Final statuses that Go's net/http and Envoy both know: the plugin takes no other.
const STATUSES: [(u16, u16); 11] = [
    (200, 208),
    (226, 226),
    (300, 305),
    (307, 308),
    (400, 417),
    (421, 424),
    (426, 426),
    (428, 429),
    (431, 431),
    (500, 508),
    (510, 511),
];

/// Reads an answer.
pub(in crate::authz) fn read(answer: &Value) -> Verdict {
    match answer {
        Value::Bool(true) => return Verdict::Allow(Advice::default()),
        Value::Bool(false) => return Verdict::Deny(Face::default()),
        Value::Undefined => return Verdict::Undefined,
        Value::Object(_) => {}
        other => return Verdict::Broken(format!("the answer is {}", kind(other))),
    }
    if size(answer, MAX_ANSWER).is_none() {
        return Verdict::Broken(format!("the answer is larger than {MAX_ANSWER} bytes"));
    }
    members(answer).unwrap_or_else(Verdict::Broken)
}

fn members(answer: &Value) -> Result<Verdict, String> {
    let allowed = match member(answer, "allowed") {
        Some(Value::Bool(allowed)) => *allowed,
        Some(other) => return Err(format!("`allowed` is {}", kind(other))),
        None => return Err("`allowed` is missing".to_owned()),
    };
    let metadata = member(answer, "dynamic_metadata")
        .map(metadata)
        .transpose()?;
    let for_client = |name| headers(answer, name, |name| is_for_client(name, !allowed));
    if !allowed {
        return Ok(Verdict::Deny(Face {
            status: member(answer, "http_status").map(status).transpose()?,
            headers: for_client("headers")?,
            body: member(answer, "body").map(body).transpose()?,
            metadata,
            ..Face::default()
        }));
    }
    let mut edits = Edits {
        headers: headers(answer, "headers", Edits::may_touch)?,
        removed: removed(answer)?,
        parameters: parameters(answer)?,
        parameters_removed: names(answer, "query_parameters_to_remove", MAX_PARAMETERS)?
            .into_iter()
            .map(|name| parameter("query_parameters_to_remove", &name))
            .collect::<Result<BTreeSet<_>, _>>()?,
    };
    // As in Envoy: what is set and removed is removed.
    let Edits {
        headers, removed, ..
    } = &mut edits;
    headers.retain(|(name, _)| !removed.contains(name));
    Ok(Verdict::Allow(Advice {
        headers: for_client("response_headers_to_add")?,
        edits: (!edits.is_empty()).then(|| Arc::new(edits)),
        metadata,
        ..Advice::default()
    }))
}

/// Whether an answer to the client may have this header from a policy; with a body of its own, the
/// policy says of what type it is.
fn is_for_client(name: &HeaderName, own_body: bool) -> bool {
    let name = name.as_str();
    !is_hop_by_hop(name) && (!FRAMING.contains(&name) || own_body && name == "content-type")
}

/// An object of headers, or an array of such objects; each value a text or an array of texts.
fn headers(
    answer: &Value,
    list: &str,
    may: impl Fn(&HeaderName) -> bool,
) -> Result<Vec<(HeaderName, HeaderValue)>, String> {
    let Some(value) = member(answer, list) else {
        return Ok(Vec::new());
    };
    let objects = items(value).unwrap_or_else(|| vec![value]);
    let mut found: Vec<(HeaderName, HeaderValue)> = Vec::new();
    for object in objects {
        let object = object
            .as_object()
            .map_err(|_| format!("`{list}` is {}", kind(value)))?;
        for (name, value) in object.iter() {
            let name = text(name).ok_or_else(|| format!("a name in `{list}` is no text"))?;
            let header = header_name(name)?;
            if !may(&header) {
                return Err(format!("a policy may not set the header `{header}`"));
            }
            for value in items(value).unwrap_or_else(|| vec![value]) {
                let value = text(value)
                    .ok_or_else(|| format!("the value of `{header}` is {}", kind(value)))?;
                let value = HeaderValue::from_str(value)
                    .ok()
                    .filter(|_| value.len() <= MAX_HEADER_VALUE)
                    .ok_or_else(|| format!("the value of `{header}` is no header value"))?;
                found.push((header.clone(), value));
            }
        }
    }
    if found.len() > MAX_HEADERS {
        return Err(format!("there are more than {MAX_HEADERS} `{list}`"));
    }
    found.sort_by(|(one, _), (other, _)| one.as_str().cmp(other.as_str()));
    Ok(found)
}

fn header_name(name: &str) -> Result<HeaderName, String> {
    HeaderName::from_bytes(name.as_bytes())
        .map_err(|_| format!("`{}` is no header name", clipped(name)))
}

fn removed(answer: &Value) -> Result<Vec<HeaderName>, String> {
    let names = names(answer, "request_headers_to_remove", MAX_HEADERS)?;
    let removed = names.iter().map(|name| {
        let header = header_name(name)?;
        if Edits::may_touch(&header) {
            Ok(header)
        } else {
            Err(format!("a policy may not remove the header `{header}`"))
        }
    });
    removed.collect()
}

/// An array of texts.
fn names(answer: &Value, list: &str, most: usize) -> Result<Vec<Arc<str>>, String> {
    let Some(value) = member(answer, list) else {
        return Ok(Vec::new());
    };
    let Some(values) = items(value) else {
        return Err(format!("`{list}` is {}", kind(value)));
    };
    if values.len() > most {
        return Err(format!("there are more than {most} `{list}`"));
    }
    let names = values.into_iter().map(|value| {
        let name = text(value).ok_or_else(|| format!("`{list}` holds {}", kind(value)))?;
        Ok(Arc::clone(name))
    });
    names.collect()
}

fn parameters(answer: &Value) -> Result<Vec<(String, String)>, String> {
    const LIST: &str = "query_parameters_to_set";
    let Some(value) = member(answer, LIST) else {
        return Ok(Vec::new());
    };
    let object = value
        .as_object()
        .map_err(|_| format!("`{LIST}` is {}", kind(value)))?;
    let mut found = Vec::new();
    for (name, value) in object.iter() {
        let name = text(name).ok_or_else(|| format!("a name in `{LIST}` is no text"))?;
        let name = parameter(LIST, name)?;
        for value in items(value).unwrap_or_else(|| vec![value]) {
            let value =
                text(value).ok_or_else(|| format!("a value in `{LIST}` is {}", kind(value)))?;
            found.push((name.clone(), parameter(LIST, value)?));
        }
    }
    if found.len() > MAX_PARAMETERS {
        return Err(format!("there are more than {MAX_PARAMETERS} `{LIST}`"));
    }
    Ok(found)
}

fn parameter(list: &str, text: &str) -> Result<String, String> {
    if text.len() > MAX_PARAMETER {
        return Err(format!(
            "`{list}` holds a text of more than {MAX_PARAMETER} bytes"
        ));
    }
    Ok(text.to_owned())
}

/// The members of an array or a set.
fn items(value: &Value) -> Option<Vec<&Value>> {
    match value {
        Value::Array(items) => Some(items.iter().collect()),
        Value::Set(items) => Some(items.iter().collect()),
        _ => None,
    }
}

fn body(value: &Value) -> Result<Arc<str>, String> {
    let body = text(value).ok_or_else(|| format!("`body` is {}", kind(value)))?;
    if body.len() > MAX_BODY {
        return Err(format!("`body` is longer than {MAX_BODY} bytes"));
    }
    Ok(Arc::clone(body))
}

fn status(value: &Value) -> Result<StatusCode, String> {
    let number = match value {
        Value::Number(number) if number.is_integer() => number.as_u64(),
        other => return Err(format!("`http_status` is {}", kind(other))),
    };
    number
        .and_then(|number| u16::try_from(number).ok())
        .filter(|number| {
            STATUSES
                .iter()
                .any(|(from, to)| (from..=to).contains(&number))
        })
        .and_then(|number| StatusCode::from_u16(number).ok())
        .ok_or_else(|| "`http_status` is no status that an answer can have".to_owned())
}

fn metadata(value: &Value) -> Result<Arc<str>, String> {
    if value.as_object().is_err() {
        return Err(format!("`dynamic_metadata` is {}", kind(value)));
    }
    let json =
        serde_json::to_string(value).map_err(|_| "`dynamic_metadata` is no JSON".to_owned())?;
    if json.len() > MAX_METADATA {
        return Err(format!(
            "`dynamic_metadata` is longer than {MAX_METADATA} bytes"
        ));
    }
    Ok(json.into())
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
        assert_eq!(verdict("false"), Verdict::Deny(Face::default()));
        assert_eq!(
            verdict(r#"{"allowed": true}"#),
            Verdict::Allow(Advice::default())
        );
        assert_eq!(
            verdict(r#"{"allowed": false, "allow": true}"#),
            Verdict::Deny(Face::default())
        );
        assert_eq!(read(&Value::Undefined), Verdict::Undefined);
        for odd in [
            "1",
            "\"true\"",
            "null",
            "[true]",
            "{}",
            r#"{"allow": true}"#,
            r#"{"allowed": "true"}"#,
            r#"{"allowed": 1}"#,
            r#"{"allowed": null}"#,
        ] {
            assert!(matches!(verdict(odd), Verdict::Broken(_)), "{odd}");
        }
    }

    #[test]
    fn wrong_types_of_what_counts_deny() {
        for (allowed, flaw) in [
            (true, r#""headers": "x""#),
            (true, r#""headers": ["x"]"#),
            (true, r#""headers": {"x": 1}"#),
            (true, r#""headers": {"x": [1]}"#),
            (true, r#""headers": {"x": {"y": "z"}}"#),
            (true, r#""headers": {"a b": "x"}"#),
            (true, r#""headers": {":path": "/"}"#),
            (true, r#""headers": {"x": "a\r\nb: c"}"#),
            (true, r#""headers": {"host": "other"}"#),
            (true, r#""headers": {"Content-Length": "0"}"#),
            (true, r#""headers": {"transfer-encoding": "chunked"}"#),
            (true, r#""headers": {"x-forwarded-for": "10.0.0.1"}"#),
            (true, r#""headers": {"x-request-id": "1"}"#),
            (true, r#""response_headers_to_add": "x""#),
            (
                true,
                r#""response_headers_to_add": {"content-length": "1"}"#,
            ),
            (true, r#""request_headers_to_remove": "x""#),
            (true, r#""request_headers_to_remove": [1]"#),
            (true, r#""request_headers_to_remove": ["host"]"#),
            (true, r#""request_headers_to_remove": ["connection"]"#),
            (true, r#""query_parameters_to_set": ["x"]"#),
            (true, r#""query_parameters_to_set": {"x": 1}"#),
            (true, r#""query_parameters_to_set": {"x": [1]}"#),
            (true, r#""query_parameters_to_remove": "x""#),
            (true, r#""query_parameters_to_remove": [null]"#),
            (true, r#""dynamic_metadata": []"#),
            (false, r#""dynamic_metadata": "x""#),
            (false, r#""headers": {"x": 1}"#),
            (false, r#""headers": {"connection": "close"}"#),
            (false, r#""headers": {"content-length": "5"}"#),
            (false, r#""body": 1"#),
            (false, r#""body": {"a": 1}"#),
            (false, r#""http_status": "403""#),
            (false, r#""http_status": 99"#),
            (false, r#""http_status": 100"#),
            (false, r#""http_status": 299"#),
            (false, r#""http_status": 418"#),
            (false, r#""http_status": 999"#),
            (false, r#""http_status": 403.5"#),
            (false, r#""http_status": -1"#),
        ] {
            let answer = format!(r#"{{"allowed": {allowed}, {flaw}}}"#);
            assert!(matches!(verdict(&answer), Verdict::Broken(_)), "{answer}");
        }
    }

    #[test]
    fn what_is_for_the_other_answer_and_what_is_not_known_does_not_count() {
        for fine in [
            r#"{"allowed": true, "body": 1, "http_status": "x", "reason": 5}"#,
            r#"{"allowed": false, "request_headers_to_remove": 1, "query_parameters_to_set": 1,
                "response_headers_to_add": 1}"#,
        ] {
            assert!(!matches!(verdict(fine), Verdict::Broken(_)), "{fine}");
        }
    }

    #[test]
    fn headers_have_all_the_forms_that_the_plugin_takes() {
        let Verdict::Allow(advice) = verdict(
            r#"{"allowed": true,
                "headers": [{"X-B": ["2", "3"]}, {"x-a": "1", "x-gone": "1"}, {"x-b": "4"}],
                "request_headers_to_remove": ["One-Auth", "x-gone"],
                "response_headers_to_add": {"x-c": "5"},
                "query_parameters_to_set": {"q": ["a", "b"], "r": "c"},
                "query_parameters_to_remove": ["s"],
                "dynamic_metadata": {"team": "blue"}}"#,
        ) else {
            panic!("not allowed")
        };
        let edits = advice.edits.unwrap();
        let shown: Vec<String> = edits
            .headers
            .iter()
            .map(|(name, value)| format!("{name}={}", value.to_str().unwrap()))
            .collect();
        assert_eq!(shown, ["x-a=1", "x-b=2", "x-b=3", "x-b=4"]);
        assert_eq!(edits.removed, ["one-auth", "x-gone"]);
        assert_eq!(edits.parameters.len(), 3);
        assert!(edits.parameters_removed.contains("s"));
        assert_eq!(advice.headers.len(), 1);
        assert_eq!(advice.metadata.as_deref(), Some(r#"{"team":"blue"}"#));
    }

    #[test]
    fn a_denial_has_a_face_of_its_own() {
        let Verdict::Deny(face) = verdict(
            r#"{"allowed": false, "http_status": 302, "body": "go",
                "headers": {"location": "https://login.example.test", "content-type": "text/html",
                            "set-cookie": ["a=1", "b=2"]}}"#,
        ) else {
            panic!("not denied")
        };
        assert_eq!(face.status, Some(StatusCode::FOUND));
        assert_eq!(face.body.as_deref(), Some("go"));
        assert_eq!(face.headers.len(), 4);
    }

    #[test]
    fn sizes_are_bounded() {
        let fits = |answer: String| !matches!(verdict(&answer), Verdict::Broken(_));
        let body = |length| format!(r#"{{"allowed": false, "body": "{}"}}"#, "a".repeat(length));
        assert!(fits(body(MAX_BODY)));
        assert!(!fits(body(MAX_BODY + 1)));
        let parameters = |count: usize| {
            let list: Vec<String> = (0..count).map(|i| format!(r#""p{i}": "1""#)).collect();
            format!(
                r#"{{"allowed": true, "query_parameters_to_set": {{{}}}}}"#,
                list.join(",")
            )
        };
        assert!(fits(parameters(MAX_PARAMETERS)));
        assert!(!fits(parameters(MAX_PARAMETERS + 1)));
        let headers = |count: usize| {
            let list: Vec<String> = (0..count).map(|i| format!(r#""h{i}": "1""#)).collect();
            format!(r#"{{"allowed": true, "headers": {{{}}}}}"#, list.join(","))
        };
        assert!(fits(headers(MAX_HEADERS)));
        assert!(!fits(headers(MAX_HEADERS + 1)));
        let removed = |count: usize| {
            let list: Vec<String> = (0..count).map(|i| format!(r#""h{i}""#)).collect();
            format!(
                r#"{{"allowed": true, "request_headers_to_remove": [{}]}}"#,
                list.join(",")
            )
        };
        assert!(fits(removed(MAX_HEADERS)));
        assert!(!fits(removed(MAX_HEADERS + 1)));
        let metadata = |length| {
            format!(
                r#"{{"allowed": true, "dynamic_metadata": {{"a": "{}"}}}}"#,
                "a".repeat(length)
            )
        };
        assert!(fits(metadata(MAX_METADATA - 8)));
        assert!(!fits(metadata(MAX_METADATA)));
        let value = |length| {
            format!(
                r#"{{"allowed": true, "query_parameters_to_set": {{"a": "{}"}}}}"#,
                "a".repeat(length)
            )
        };
        assert!(fits(value(MAX_PARAMETER)));
        assert!(!fits(value(MAX_PARAMETER + 1)));
    }
}
