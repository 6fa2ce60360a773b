//! `portcullis revoke`: what an operator says on the command line, as a request to the admin listener.

use serde_json::{Map, Value, json};

use super::Admin;
use super::client::{AskError, ask};
use crate::snapshot::Snapshot;

/// What is to be revoked, or taken back. Exactly one of the names is given.
#[derive(Debug, Clone, Default)]
pub struct Order {
    /// The name of an issuer's block, an `iss`, or the distinguished name that issued a certificate.
    pub issuer: String,
    /// The member of the entry and its value, such as `subject` and `alice`.
    pub name: (&'static str, String),
    /// Up to when what was issued is revoked: RFC 3339, or `now`.
    pub before: Option<String>,
    /// The least version that is accepted.
    pub minimum: Option<u64>,
    /// Until when the entry is needed: RFC 3339.
    pub until: Option<String>,
    /// Why.
    pub reason: Option<String>,
    /// Whether the entry is taken back instead.
    pub lift: bool,
}

/// What came of an order: whether it was done, and in words.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Done {
    /// Whether everything was done, and is kept.
    pub ok: bool,
    /// The answer for people.
    pub text: String,
    /// The answer as it came.
    pub answer: Value,
}

impl Order {
    /// Gives the order to the gateway that runs this configuration.
    ///
    /// # Errors
    /// [`AskError`].
    pub fn give(&self, snapshot: &Snapshot, admin: &Admin) -> Result<Done, AskError> {
        let entry = self.entry(snapshot);
        let method = if self.lift { "DELETE" } else { "POST" };
        let (status, answer) = ask(admin, method, "/revocations", &entry)?;
        let number = |path: &str| answer.pointer(path).and_then(Value::as_u64).unwrap_or(0);
        let said = |path: &str| answer.pointer(path).and_then(Value::as_str);
        let mut text = match said("/error") {
            Some(error) => error.to_owned(),
            None if self.lift && number("/lifted") > 0 => format!("lifted, {}", self.what(&entry)),
            None if self.lift => format!("there is no such entry, {}", self.what(&entry)),
            None => match said("/refused/0/error") {
                Some(error) => format!("{error}: {}", self.what(&entry)),
                None if number("/taken") > 0 => format!("revoked, {}", self.what(&entry)),
                None => format!("was revoked already, {}", self.what(&entry)),
            },
        };
        if let Some(kept) = said("/kept") {
            text.push_str(&format!("; kept {kept}"));
        }
        if answer.pointer("/unknown_issuers").is_some() {
            text.push_str("; no block of the configuration has this issuer: is it spelt right?");
        }
        let listed = answer.pointer("/still_listed/0/lists");
        if let Some(lists) = listed.and_then(Value::as_array) {
            let names: Vec<&str> = lists.iter().filter_map(Value::as_str).collect();
            text.push_str(&format!("; a list revokes it still: {}", names.join(", ")));
        }
        Ok(Done {
            ok: status == 200,
            text,
            answer,
        })
    }

    /// The entry as the listener takes it.
    fn entry(&self, snapshot: &Snapshot) -> Value {
        let (member, name) = &self.name;
        let kind = match (*member, self.minimum) {
            ("subject", Some(_)) => "version",
            ("token_id", _) => "token",
            ("key_id", _) => "key",
            ("serial", _) => "certificate",
            (other, _) => other,
        };
        // A block's name is shorter than its `iss`, and cannot be misspelt without being noticed.
        let issuer = snapshot
            .issuers
            .get(&self.issuer)
            .map_or(self.issuer.as_str(), |issuer| issuer.issuer());
        let mut entry = Map::new();
        let mut put = |member: &str, value: Value| drop(entry.insert(member.to_owned(), value));
        put("kind", json!(kind));
        put("issuer", json!(issuer));
        put(member, json!(name));
        if let Some(reason) = &self.reason {
            put("reason", json!(reason));
        }
        if !self.lift {
            match self.before.as_deref() {
                Some("now") => put(
                    "before",
                    json!(crate::clock::unix_seconds(crate::clock::now())),
                ),
                Some(before) => put("before", json!(before)),
                None => {}
            }
            if let Some(minimum) = self.minimum {
                put("minimum", json!(minimum));
            }
            if let Some(until) = &self.until {
                put("until", json!(until));
            }
        }
        Value::Object(entry)
    }

    fn what(&self, entry: &Value) -> String {
        let text = |name: &str| entry.get(name).and_then(Value::as_str).unwrap_or_default();
        format!("{} {} of {}", text("kind"), self.name.1, text("issuer"))
    }
}
