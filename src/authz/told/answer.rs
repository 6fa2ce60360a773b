//! What the record tells of an answer: all of it, but for what looks like a credential. A policy may
//! hand one on, as a header or a claim for the upstream; whoever reads records must not get it.

use std::borrow::Cow;

use super::{MASK, is_secret_name, is_secret_value, pointer_below};
use crate::ascii::{canonical, key, text, value};
use crate::document::{Value, from_json, member, text as as_text};

/// Members of an answer that are told as they are: they hold no words for the upstream, or are there
/// for the record.
const AS_IS: [&str; 3] = ["dynamic_metadata", "limit", "step_up"];

/// An answer as records have it.
#[derive(Debug, Default)]
pub(in crate::authz) struct Shown {
    text: Vec<u8>,
    masked: Vec<u8>,
}

impl Shown {
    pub(in crate::authz) fn of(answer: &Value) -> Self {
        let mut shown = Self::default();
        match answer {
            Value::Object(members) => {
                shown.text.push(b'{');
                for (nth, (name, member)) in members.iter_sorted().enumerate() {
                    if nth > 0 {
                        shown.text.push(b',');
                    }
                    key(&mut shown.text, name);
                    let name = as_text(name).map_or("", AsRef::as_ref);
                    // What is said in one text is for the client or the record, and may well begin
                    // with the name of a scheme.
                    let said = as_text(member).is_some() && !looks_secret(name);
                    let word = matches!(member, Value::Bool(_) | Value::Null);
                    if said || word || AS_IS.contains(&name) {
                        value(&mut shown.text, member);
                    } else {
                        shown.below(member, looks_secret(name), &mut vec![name.into()]);
                    }
                }
                shown.text.push(b'}');
            }
            Value::Null
            | Value::Bool(_)
            | Value::Number(_)
            | Value::String(_)
            | Value::Array(_)
            | Value::Set(_)
            | Value::Undefined => shown.below(answer, false, &mut Vec::new()),
        }
        shown
    }

    /// The canonical form, in ASCII.
    pub(in crate::authz) fn text(&self) -> &str {
        std::str::from_utf8(&self.text).unwrap_or_default()
    }

    /// JSON Pointers to what is masked in it, from `/answer` on: texts with commas between them.
    pub(in crate::authz) fn masked(&self) -> &str {
        std::str::from_utf8(&self.masked).unwrap_or_default()
    }

    /// What stands at this path; `secret` when one of its names says so.
    fn below<'v>(&mut self, at: &'v Value, secret: bool, path: &mut Vec<Cow<'v, str>>) {
        match at {
            Value::Object(members) => {
                // Lists of headers and parameters have `{"key": "x-token", "value": ...}`.
                let pair: Option<&str> = member(at, "key").and_then(as_text).map(AsRef::as_ref);
                self.text.push(b'{');
                for (nth, (name, member)) in members.iter_sorted().enumerate() {
                    if nth > 0 {
                        self.text.push(b',');
                    }
                    key(&mut self.text, name);
                    let name = as_text(name).map_or("", AsRef::as_ref);
                    let told = match pair {
                        Some(told) if name == "value" => told,
                        Some(_) | None => name,
                    };
                    path.push(name.into());
                    self.below(member, secret || looks_secret(told), path);
                    path.pop();
                }
                self.text.push(b'}');
            }
            Value::Array(items) => self.items(items.iter(), secret, path),
            Value::Set(items) => self.items(items.iter(), secret, path),
            Value::String(told) if secret || is_secret_value(told.as_bytes()) => self.hide(path),
            Value::Number(_) if secret => self.hide(path),
            Value::String(_)
            | Value::Number(_)
            | Value::Null
            | Value::Bool(_)
            | Value::Undefined => value(&mut self.text, at),
        }
    }

    fn items<'v>(
        &mut self,
        items: impl Iterator<Item = &'v Value>,
        secret: bool,
        path: &mut Vec<Cow<'v, str>>,
    ) {
        self.text.push(b'[');
        for (nth, item) in items.enumerate() {
            if nth > 0 {
                self.text.push(b',');
            }
            path.push(nth.to_string().into());
            self.below(item, secret, path);
            path.pop();
        }
        self.text.push(b']');
    }

    fn hide(&mut self, path: &[Cow<'_, str>]) {
        let names = path.iter().map(AsRef::as_ref);
        pointer_below(&mut self.masked, b"/answer", names);
        text(&mut self.text, MASK);
    }
}

/// Names of claims are written with underscores or humps where those of headers have hyphens.
fn looks_secret(name: &str) -> bool {
    if name.bytes().any(|b| b == b'_' || b.is_ascii_uppercase()) {
        is_secret_name(&name.to_ascii_lowercase().replace('_', "-"))
    } else {
        is_secret_name(name)
    }
}

/// An answer (JSON) as a record has it, in its canonical form.
pub fn answer_as_told(answer: &str) -> String {
    match from_json(answer.as_bytes()) {
        Ok(answer) => Shown::of(&answer).text().to_owned(),
        Err(_) => canonical(&Value::Null),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value as Json, json};

    use super::*;

    fn shown(answer: &Json) -> (Json, Vec<String>) {
        let shown = Shown::of(&from_json(answer.to_string().as_bytes()).unwrap());
        let masked = format!("[{}]", shown.masked());
        let json = serde_json::from_str(shown.text()).unwrap();
        (json, serde_json::from_str(&masked).unwrap())
    }

    #[test]
    fn credentials_of_an_answer_are_masked_wherever_they_are_handed_on_and_named() {
        let (told, masked) = shown(&json!({
            "allow": true, "reason": "Bearer tokens may read", "status": 403,
            "headers": { "x-upstream-token": "S3CRET", "x-odd": "Bearer S3CRET", "x-team": "a" },
            "response_headers_to_add": [{ "X-Session": ["S3CRET", "S3CRET"] }, { "x-a~/b": "eyJS3CRET" }],
            "query_parameters_to_set": [{ "key": "api_key", "value": "S3CRET" }, { "key": "a", "value": "b" }],
            "identity": { "accessToken": "S3CRET", "session": { "id": 5 }, "tenant": "acme", "token_ok": true },
            "limit": { "key": "token", "rate": "5/s" },
            "dynamic_metadata": { "token_id": "t" },
        }));
        assert_eq!(
            told,
            json!({
                "allow": true, "reason": "Bearer tokens may read", "status": 403,
                "headers": { "x-upstream-token": "***", "x-odd": "***", "x-team": "a" },
                "response_headers_to_add": [{ "X-Session": ["***", "***"] }, { "x-a~/b": "***" }],
                "query_parameters_to_set": [{ "key": "api_key", "value": "***" }, { "key": "a", "value": "b" }],
                "identity": { "accessToken": "***", "session": { "id": "***" }, "tenant": "acme", "token_ok": true },
                "limit": { "key": "token", "rate": "5/s" },
                "dynamic_metadata": { "token_id": "t" },
            })
        );
        assert_eq!(
            masked,
            [
                "/answer/headers/x-odd",
                "/answer/headers/x-upstream-token",
                "/answer/identity/accessToken",
                "/answer/identity/session/id",
                "/answer/query_parameters_to_set/0/value",
                "/answer/response_headers_to_add/0/X-Session/0",
                "/answer/response_headers_to_add/0/X-Session/1",
                "/answer/response_headers_to_add/1/x-a~0~1b",
            ]
        );
    }

    #[test]
    fn an_answer_without_credentials_is_told_in_its_canonical_form() {
        for answer in [
            json!(true),
            json!({ "allow": false, "message": "\u{e9}\"", "headers": { "x": "y" } }),
            json!([1.5, null, { "b": 1, "a": [] }]),
        ] {
            let value = from_json(answer.to_string().as_bytes()).unwrap();
            let shown = Shown::of(&value);
            assert_eq!((shown.text(), shown.masked()), (&*canonical(&value), ""));
            assert_eq!(answer_as_told(&answer.to_string()), canonical(&value));
        }
    }
}
