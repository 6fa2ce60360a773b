//! What a change of a setting does to access, as far as that can be told from its values.
//!
//! What cannot be told is said so: a change that may let in more counts as one that does where a
//! pipeline asks for that.

use serde_json::Value;

use crate::policy::output::span;

/// What a setting that is another now does to access.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Effect {
    /// It takes a guard away.
    Opens,
    /// It may let in more; nobody can tell from the file.
    MayOpen,
    /// It guards more, or as before.
    Guards,
    /// It changes who may come where, one way or the other: that is searched, or plain to see.
    Changes,
    /// It has no part in access.
    Beside,
}

/// What a change of this setting does, as far as that can be told from its values.
pub(super) fn effect(path: &str, old: &Value, new: &Value) -> (Effect, &'static str) {
    let (section, rest) = path.split_once('.').unwrap_or((path, ""));
    let last = rest.rsplit('.').next().unwrap_or(rest);
    let (gone, came) = (nothing(new), nothing(old));
    match section {
        "limits" | "authentication_failures" => match (gone, more(old, new)) {
            (true, _) => (Effect::Opens, "a limit less"),
            (_, Some(true)) => (Effect::Opens, "a higher limit"),
            (_, Some(false)) => (Effect::Guards, "a lower limit"),
            (_, None) if came => (Effect::Guards, "a limit more"),
            (_, None) => (Effect::MayOpen, "another limit"),
        },
        "issuers" | "client_certificate" => identities(last, old, new),
        "listeners" => match last {
            "plaintext" if *new == Value::Bool(true) => (Effect::Opens, "requests without TLS"),
            "mode" | "authorities" | "client_certificates" | "revocation" | "lists" => {
                (Effect::MayOpen, "other client certificates may be trusted")
            }
            "minimum_version" => (Effect::MayOpen, "another version of TLS is spoken"),
            _ if came && !rest.contains('.') => (Effect::MayOpen, "another way in"),
            _ if rest.contains("client_certificates") => {
                (Effect::MayOpen, "other client certificates may be trusted")
            }
            _ => (Effect::Changes, ""),
        },
        "trusted_proxies" => match superset(old, new) {
            Some(true) => (
                Effect::Opens,
                "more peers are believed about the client's address",
            ),
            Some(false) => (Effect::Guards, "fewer peers are believed"),
            None => (
                Effect::MayOpen,
                "other peers are believed about the client's address",
            ),
        },
        "revocation" => match gone {
            true => (Effect::Opens, "a source of revocations less"),
            false if came => (Effect::Guards, "a source of revocations more"),
            false => (
                Effect::MayOpen,
                "revocations may come later, or from others",
            ),
        },
        "bundles" => match last {
            _ if gone && rest.contains("sign") => {
                (Effect::Opens, "what it holds need not be signed")
            }
            _ => (
                Effect::MayOpen,
                "what it will hold cannot be told: policies that use it may say anything",
            ),
        },
        "policies" => match last {
            "builtin_errors" => (Effect::MayOpen, "errors may become a yes"),
            "budget" | "decision_cache" | "time" | "instructions" | "memory" | "lifetime"
            | "max_bytes" | "max_entries" => (Effect::Beside, "its cost, not its answers"),
            _ if gone && !rest.contains('.') => (Effect::Beside, "a policy less"),
            _ => (Effect::Beside, "its routes are asked about"),
        },
        "candidates" => (
            Effect::MayOpen,
            "a candidate that enforces decides in its policy's place",
        ),
        "identity" => (
            Effect::MayOpen,
            "what services are told of callers, and believe",
        ),
        "upstreams" => (Effect::Beside, "where requests go"),
        "audit" => (Effect::Beside, "what is recorded, and where"),
        "admin" => (Effect::MayOpen, "who may ask and tell the gateway itself"),
        _ => (Effect::Beside, ""),
    }
}

/// Which credentials are taken, and what is read of them.
fn identities(last: &str, old: &Value, new: &Value) -> (Effect, &'static str) {
    let (gone, came) = (nothing(new), nothing(old));
    let lists =
        |more: &'static str, fewer: &'static str, other: &'static str| match superset(old, new) {
            Some(true) => (Effect::Opens, more),
            Some(false) => (Effect::Guards, fewer),
            None => (Effect::MayOpen, other),
        };
    match last {
        "audiences" | "algorithms" | "token_types" => lists(
            "more tokens are taken",
            "fewer tokens are taken",
            "other tokens are taken",
        ),
        "required_claims" => match superset(old, new) {
            Some(true) => (Effect::Guards, "more is asked of tokens"),
            Some(false) => (Effect::Opens, "less is asked of tokens"),
            None => (Effect::MayOpen, "other things are asked of tokens"),
        },
        "leeway" | "max_age" => match more(old, new) {
            _ if gone => (Effect::Opens, "old tokens are taken"),
            Some(false) => (Effect::Guards, "tokens end earlier"),
            _ if came => (Effect::Guards, "tokens end earlier"),
            _ => (Effect::Opens, "tokens are taken for longer"),
        },
        _ if gone => (Effect::MayOpen, "a setting of credentials less"),
        _ if came => (
            Effect::MayOpen,
            "credentials of another kind, or read differently",
        ),
        _ => (
            Effect::MayOpen,
            "other keys are trusted, or claims read differently",
        ),
    }
}

fn nothing(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => true,
        Value::Array(items) => items.is_empty(),
        Value::Object(members) => members.is_empty(),
        Value::Bool(true) | Value::Number(_) | Value::String(_) => false,
    }
}

/// Whether a list has all of the other and more, `Some(true)`, or fewer, `Some(false)`.
fn superset(old: &Value, new: &Value) -> Option<bool> {
    let empty = Vec::new();
    let items = |value: &Value| match value {
        Value::Array(items) => Some(items.clone()),
        Value::Null => Some(empty.clone()),
        Value::Bool(_) | Value::Number(_) | Value::String(_) | Value::Object(_) => None,
    };
    let (old, new) = (items(old)?, items(new)?);
    if old.iter().all(|item| new.contains(item)) {
        return Some(true);
    }
    new.iter().all(|item| old.contains(item)).then_some(false)
}

/// Whether a number, a rate (`10/m`) or a duration (`30s`) grew; `None` when they cannot be compared.
fn more(old: &Value, new: &Value) -> Option<bool> {
    let amount = |value: &Value| match value {
        Value::Number(number) => number.as_f64(),
        Value::String(text) => rate(text).or_else(|| {
            let span = span(text).ok()?;
            Some(span.get().as_secs_f64())
        }),
        Value::Null | Value::Bool(_) | Value::Array(_) | Value::Object(_) => None,
    };
    let (old, new) = (amount(old)?, amount(new)?);
    (old.to_bits() != new.to_bits()).then_some(new > old)
}

/// `10/m`, per second.
fn rate(text: &str) -> Option<f64> {
    let (number, unit) = text.split_once('/')?;
    let seconds = match unit {
        "s" => 1.0,
        "m" => 60.0,
        "h" => 3_600.0,
        "d" => 86_400.0,
        _ => return None,
    };
    Some(number.parse::<f64>().ok()? / seconds)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn told(path: &str, old: Value, new: Value) -> (Effect, &'static str) {
        effect(path, &old, &new)
    }

    #[test]
    fn a_setting_that_lets_in_more_is_known_by_its_direction() {
        use Effect::{Beside, Changes, Guards, MayOpen, Opens};
        for (path, old, new, expected) in [
            ("limits.a.rate", json!("10/s"), json!("1000/m"), Opens),
            ("limits.a.rate", json!("10/s"), json!("100/m"), Guards),
            ("limits.a", json!({"rate": "1/s"}), json!(null), Opens),
            ("limits.a", json!(null), json!({"rate": "1/s"}), Guards),
            ("limits.a.by", json!("subject"), json!("route"), MayOpen),
            (
                "authentication_failures.burst",
                json!(20),
                json!(200),
                Opens,
            ),
            (
                "issuers.a.audiences",
                json!(["x"]),
                json!(["x", "y"]),
                Opens,
            ),
            (
                "issuers.a.audiences",
                json!(["x", "y"]),
                json!(["x"]),
                Guards,
            ),
            ("issuers.a.audiences", json!(["x"]), json!(["y"]), MayOpen),
            (
                "issuers.a.required_claims",
                json!(["sub"]),
                json!([]),
                Opens,
            ),
            ("issuers.a.leeway", json!("30s"), json!("5m"), Opens),
            ("issuers.a.max_age", json!("1h"), json!(null), Opens),
            ("issuers.a.max_age", json!(null), json!("1h"), Guards),
            ("issuers.a.keys.jwks_uri", json!("a"), json!("b"), MayOpen),
            ("issuers.b", json!(null), json!({}), MayOpen),
            (
                "listeners.a.tls.client_certificates.authorities",
                json!(["a"]),
                json!(["b"]),
                MayOpen,
            ),
            (
                "listeners.a.bounds.idle_timeout",
                json!("1s"),
                json!("2s"),
                Changes,
            ),
            ("trusted_proxies", json!([]), json!(["10.0.0.0/8"]), Opens),
            (
                "bundles.a.verification",
                json!({"signing": 1}),
                json!(null),
                MayOpen,
            ),
            ("bundles.a.signing", json!({"key": "k"}), json!(null), Opens),
            ("bundles.a.url", json!("a"), json!("b"), MayOpen),
            (
                "policies.a.builtin_errors",
                json!("deny"),
                json!("undefined"),
                MayOpen,
            ),
            ("policies.a.budget.time", json!("1ms"), json!("2ms"), Beside),
            ("workers", json!(1), json!(2), Beside),
        ] {
            let (found, _) = told(path, old, new);
            assert_eq!(found, expected, "{path}");
        }
    }
}
