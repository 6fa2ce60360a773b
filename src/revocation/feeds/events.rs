//! What security events end.
//!
//! The moment `t` is the event's own (`event_timestamp`, else the token's `toe`, else its `iat`), and
//! never later than now, or than the token's `iat` where the issuer's clock is ahead: what it issued
//! before the event is dated by the same clock. Revoking "up to `t`" ends what was issued until then; whoever may still log in
//! gets new tokens, and these are good. All entries may be forgotten after the longest life of a token
//! (`max_lifetime`), for by then all that they mean has expired.
//!
//! | event | session named | token named | user named | nothing that tokens name |
//! | --- | --- | --- | --- | --- |
//! | CAEP `session-revoked` | the session | the token | the user's tokens up to `t` | not understood |
//! | CAEP `token-claims-change` | – | the token | the user's tokens up to `t` | not understood |
//! | … without a user | the session | the token | – | not understood |
//! | CAEP `credential-change`, but for `create` | – | – | the user's tokens up to `t` | not understood |
//! | … without a user | the session | the token | – | not understood |
//! | CAEP `device-compliance-change`, unless to `compliant` | the session | the token | the user's tokens up to `t` | not understood |
//! | CAEP `assurance-level-change`, unless `increase` | the session | the token | the user's tokens up to `t` | not understood |
//! | RISC `account-disabled`, `account-purged`, `credential-compromise`, `account-credential-change-required`, `sessions-revoked` | – | – | the user's tokens up to `t` | not understood |
//! | … without a user | the session | the token | – | not understood |
//! | CAEP `session-established`, `session-presented`; `credential-change` of `create`; what became better; RISC `account-enabled` | noted | noted | noted | noted |
//! | SSF `verification` | noted, the stream lives | | | |
//! | SSF `stream-updated` | noted; unless `enabled` the stream counts as silent until it is | | | |
//! | any other | not understood | | | |
//!
//! With `whole_subject` the user's tokens up to `t` end beside whatever the table says, where a user
//! is named: for issuers whose tokens hold no `sid`.
//!
//! What is noted, not understood, or about subjects of issuers that the stream may not speak of is
//! acknowledged all the same: sending it again would change nothing.

use std::time::{Duration, SystemTime};

use super::subject::{About, Naming, Whom};
use crate::document::{self, Value};
use crate::revocation::Target;

/// The most events in one token; Shared Signals has one.
pub(super) const MAX_EVENTS: usize = 16;

const CAEP: &str = "https://schemas.openid.net/secevent/caep/event-type/";
const RISC: &str = "https://schemas.openid.net/secevent/risc/event-type/";
const SSF: &str = "https://schemas.openid.net/secevent/ssf/event-type/";

/// What an event means to us.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Meaning {
    /// These end, as far as they were issued up to the moment; at least one.
    Ends(Vec<Target>, SystemTime),
    /// Understood, and nothing ends.
    Noted,
    /// The transmitter says whether it goes on sending.
    Stream {
        /// Whether it does.
        enabled: bool,
    },
    /// An event or a subject that we do not know.
    NotUnderstood,
    /// About somebody whom the stream may not speak about.
    Foreign,
}

/// What of the subject an event ends first.
#[derive(Debug, Clone, Copy)]
enum First {
    /// The narrowest.
    Session,
    /// The one after whose end new tokens are good: what was wrong is in the tokens, not in the
    /// session.
    User,
}

/// What the events of a token mean; `claims` is all of it.
pub(super) fn meanings(
    claims: &Value,
    issued_at: SystemTime,
    now: SystemTime,
    naming: &Naming,
    whole_subject: bool,
) -> Vec<Meaning> {
    let Some(events) = document::member(claims, "events") else {
        return Vec::new();
    };
    let at = seconds(claims, "toe").unwrap_or(issued_at);
    let latest = now.max(issued_at);
    document::names(events)
        .take(MAX_EVENTS)
        .filter_map(|name| Some((name, document::member(events, name)?)))
        .map(|(name, event)| {
            let at = seconds(event, "event_timestamp").unwrap_or(at).min(latest);
            let subject = document::member(claims, "sub_id")
                // Where it stood before Shared Signals 1.0.
                .or_else(|| document::member(event, "subject"));
            meaning(name, event, subject, at, naming, whole_subject)
        })
        .collect()
}

fn meaning(
    name: &str,
    event: &Value,
    subject: Option<&Value>,
    at: SystemTime,
    naming: &Naming,
    whole_subject: bool,
) -> Meaning {
    let word = |member: &str| {
        document::member(event, member)
            .and_then(document::text)
            .map(|text| &**text)
    };
    let first = if let Some(kind) = name.strip_prefix(CAEP) {
        match kind {
            "session-revoked" => First::Session,
            "token-claims-change" => First::User,
            "credential-change" if word("change_type") == Some("create") => return Meaning::Noted,
            "credential-change" => First::User,
            "device-compliance-change" if word("current_status") == Some("compliant") => {
                return Meaning::Noted;
            }
            "device-compliance-change" => First::Session,
            "assurance-level-change" if word("change_direction") == Some("increase") => {
                return Meaning::Noted;
            }
            "assurance-level-change" => First::Session,
            "session-established" | "session-presented" => return Meaning::Noted,
            _ => return Meaning::NotUnderstood,
        }
    } else if let Some(kind) = name.strip_prefix(RISC) {
        match kind {
            "account-disabled"
            | "account-purged"
            | "credential-compromise"
            | "account-credential-change-required"
            | "sessions-revoked" => First::User,
            "account-enabled" => return Meaning::Noted,
            _ => return Meaning::NotUnderstood,
        }
    } else if let Some(kind) = name.strip_prefix(SSF) {
        return match kind {
            "verification" => Meaning::Noted,
            "stream-updated" => Meaning::Stream {
                enabled: word("status") == Some("enabled"),
            },
            _ => Meaning::NotUnderstood,
        };
    } else {
        return Meaning::NotUnderstood;
    };
    match subject.map_or(Whom::Unclear, |subject| naming.whom(subject)) {
        Whom::Unclear => Meaning::NotUnderstood,
        Whom::Foreign => Meaning::Foreign,
        Whom::Known(About {
            user,
            session,
            token,
        }) => {
            let whole = user.clone().filter(|_| whole_subject);
            let target = match first {
                First::Session => token.or(session).or(user),
                First::User => token.or(user).or(session),
            };
            let mut targets: Vec<Target> = target.into_iter().chain(whole).collect();
            // They may be the same.
            targets.dedup();
            if targets.is_empty() {
                Meaning::NotUnderstood
            } else {
                Meaning::Ends(targets, at)
            }
        }
    }
}

/// A date in seconds since 1970; one beyond all dates is as late as can be.
fn seconds(value: &Value, name: &str) -> Option<SystemTime> {
    let seconds = document::member(value, name)?.as_f64().ok()?;
    let seconds = Duration::try_from_secs_f64(seconds).ok()?;
    let latest = Duration::from_secs(253_402_300_799);
    SystemTime::UNIX_EPOCH.checked_add(seconds.min(latest))
}

#[cfg(test)]
mod tests {
    use super::*;

    const DEV: &str = "https://dev.test";

    fn at(seconds: u64) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)
    }

    fn meaning_of(name: &str, event: &str, subject: &str) -> Meaning {
        let naming = Naming {
            issuers: vec![DEV.to_owned()],
            email_is_subject: false,
        };
        let claims = format!(r#"{{"sub_id":{subject},"events":{{"{name}":{event}}}}}"#);
        let claims = document::from_json(claims.as_bytes()).unwrap();
        let mut found = meanings(&claims, at(1_000), at(2_000), &naming, false);
        assert_eq!(found.len(), 1);
        found.remove(0)
    }

    const USER: &str = r#"{"format":"iss_sub","iss":"https://dev.test","sub":"alice"}"#;
    const SESSION: &str = r#"{"format":"complex","session":{"format":"opaque","id":"s1"}}"#;
    const BOTH: &str = r#"{"format":"complex","user":{"format":"opaque","id":"alice"},"session":{"format":"opaque","id":"s1"}}"#;
    const TOKEN: &str = r#"{"format":"jwt_id","iss":"https://dev.test","jti":"t1"}"#;

    fn user() -> Target {
        Target::Subject {
            issuer: DEV.to_owned(),
            subject: "alice".to_owned(),
        }
    }

    fn session() -> Target {
        Target::Session {
            issuer: DEV.to_owned(),
            session: "s1".to_owned(),
        }
    }

    fn token() -> Target {
        Target::Token {
            issuer: DEV.to_owned(),
            token_id: "t1".to_owned(),
        }
    }

    #[test]
    fn the_table_holds() {
        let timed = r#"{"event_timestamp":1500}"#;
        for (kind, event, subject, target) in [
            ("session-revoked", timed, USER, Some(user())),
            ("session-revoked", timed, SESSION, Some(session())),
            ("session-revoked", timed, BOTH, Some(session())),
            ("session-revoked", timed, TOKEN, Some(token())),
            ("token-claims-change", timed, BOTH, Some(user())),
            ("token-claims-change", timed, SESSION, Some(session())),
            ("token-claims-change", timed, TOKEN, Some(token())),
            (
                "credential-change",
                r#"{"event_timestamp":1500,"change_type":"revoke"}"#,
                USER,
                Some(user()),
            ),
            ("credential-change", timed, BOTH, Some(user())),
            (
                "credential-change",
                r#"{"event_timestamp":1500,"change_type":"create"}"#,
                USER,
                None,
            ),
            (
                "device-compliance-change",
                r#"{"event_timestamp":1500,"current_status":"not-compliant"}"#,
                BOTH,
                Some(session()),
            ),
            ("device-compliance-change", timed, USER, Some(user())),
            (
                "device-compliance-change",
                r#"{"event_timestamp":1500,"current_status":"compliant"}"#,
                USER,
                None,
            ),
            (
                "assurance-level-change",
                r#"{"event_timestamp":1500,"change_direction":"decrease"}"#,
                USER,
                Some(user()),
            ),
            (
                "assurance-level-change",
                r#"{"event_timestamp":1500,"change_direction":"increase"}"#,
                USER,
                None,
            ),
            ("session-established", timed, USER, None),
        ] {
            let expected = target.map_or(Meaning::Noted, |target| {
                Meaning::Ends(vec![target], at(1_500))
            });
            assert_eq!(
                meaning_of(&format!("{CAEP}{kind}"), event, subject),
                expected,
                "{kind} {subject}"
            );
        }
        for kind in [
            "account-disabled",
            "account-purged",
            "credential-compromise",
            "account-credential-change-required",
            "sessions-revoked",
        ] {
            assert_eq!(
                meaning_of(&format!("{RISC}{kind}"), "{}", USER),
                Meaning::Ends(vec![user()], at(1_000)),
                "{kind}: up to `iat` without a time of its own"
            );
        }
        assert_eq!(
            meaning_of(&format!("{SSF}verification"), "{}", USER),
            Meaning::Noted
        );
        for (status, enabled) in [("enabled", true), ("paused", false), ("disabled", false)] {
            assert_eq!(
                meaning_of(
                    &format!("{SSF}stream-updated"),
                    &format!(r#"{{"status":"{status}"}}"#),
                    USER
                ),
                Meaning::Stream { enabled }
            );
        }
        for unknown in [
            format!("{CAEP}risk-level-change"),
            format!("{RISC}x"),
            format!("{SSF}x"),
            "urn:x".to_owned(),
        ] {
            assert_eq!(meaning_of(&unknown, "{}", USER), Meaning::NotUnderstood);
        }
    }

    #[test]
    fn an_event_never_reaches_into_the_future() {
        let name = format!("{CAEP}session-revoked");
        // Milliseconds taken for seconds, and dates that are none.
        for (time, ends) in [
            ("2001", 2_000),
            ("1500000000000", 2_000),
            ("-5", 1_000),
            ("\"soon\"", 1_000),
        ] {
            let event = format!(r#"{{"event_timestamp":{time}}}"#);
            let expected = Meaning::Ends(vec![user()], at(ends));
            assert_eq!(meaning_of(&name, &event, USER), expected, "{time}");
        }
    }

    #[test]
    fn the_clock_of_an_issuer_that_is_ahead_dates_its_events_too() {
        let naming = Naming {
            issuers: vec![DEV.to_owned()],
            email_is_subject: false,
        };
        for (time, moment) in [("2040", 2_040), ("2100", 2_060)] {
            let claims = format!(
                r#"{{"sub_id":{USER},"events":{{"{CAEP}session-revoked":{{"event_timestamp":{time}}}}}}}"#
            );
            let claims = document::from_json(claims.as_bytes()).unwrap();
            assert_eq!(
                meanings(&claims, at(2_060), at(2_000), &naming, false),
                [Meaning::Ends(vec![user()], at(moment))],
                "{time}"
            );
        }
    }

    #[test]
    fn the_whole_subject_ends_beside_its_session_where_that_is_wanted() {
        let naming = Naming {
            issuers: vec![DEV.to_owned()],
            email_is_subject: false,
        };
        for (subject, whole, targets) in [
            (BOTH, false, vec![session()]),
            (BOTH, true, vec![session(), user()]),
            (USER, true, vec![user()]),
            (SESSION, true, vec![session()]),
            (TOKEN, true, vec![token()]),
        ] {
            let claims =
                format!(r#"{{"sub_id":{subject},"events":{{"{CAEP}session-revoked":{{}}}}}}"#);
            let claims = document::from_json(claims.as_bytes()).unwrap();
            assert_eq!(
                meanings(&claims, at(1_000), at(2_000), &naming, whole),
                [Meaning::Ends(targets, at(1_000))],
                "{subject} {whole}"
            );
        }
    }

    #[test]
    fn only_so_many_events_of_a_token_are_read() {
        let events: Vec<String> = (0..100).map(|n| format!(r#""urn:{n}":{{}}"#)).collect();
        let claims = format!(r#"{{"events":{{{}}}}}"#, events.join(","));
        let claims = document::from_json(claims.as_bytes()).unwrap();
        assert_eq!(
            meanings(&claims, at(1), at(2), &Naming::default(), false).len(),
            MAX_EVENTS
        );
    }
}
