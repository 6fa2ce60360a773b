//! How entries are written in Redis.

use std::fmt::Write as _;
use std::time::{Duration, SystemTime};

use aws_lc_rs::digest::{Context, SHA256};
use serde::{Deserialize, Serialize};

use crate::revocation::relay::{Held, REPLICAS};
use crate::revocation::{CLOCK_LEEWAY, Change, Lift, Revocation, Target};

/// What entries from Redis say of where they come from.
pub(super) const SOURCE: &str = REPLICAS;

/// Longest entry in bytes that is read: longer than two names and a reason, escaped.
const MAX_ENTRY: usize = 16 * 1024;

/// An entry as it stands in Redis: the same bytes whichever replica writes it, so that one that is
/// written twice is there once.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Entry {
    #[serde(flatten)]
    target: Target,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    mark: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    until: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
}

/// An entry that was taken back.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Lifted {
    #[serde(flatten)]
    target: Target,
    /// Seconds since 1970.
    pub(super) at: u64,
    /// When nothing that it lifts can be there any more; none: never.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) until: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
}

impl Entry {
    pub(super) fn of(held: &Held) -> Self {
        Self {
            target: held.target.clone(),
            mark: held.mark,
            until: held.until,
            reason: held.reason.clone(),
        }
    }

    pub(super) fn parse(text: &str) -> Option<Self> {
        serde_json::from_str(text)
            .ok()
            .filter(|_| text.len() <= MAX_ENTRY)
    }

    pub(super) fn text(&self) -> Option<String> {
        serde_json::to_string(self).ok()
    }

    /// Its name in the set: what it is about, then all of it.
    pub(super) fn member(&self) -> Option<String> {
        Some(format!("{} {}", digest(&self.target), self.text()?))
    }

    /// What orders it in the set: its end.
    pub(super) fn score(&self) -> String {
        self.until
            .map_or_else(|| "+inf".to_owned(), |until| until.to_string())
    }

    /// What it makes of the plane of a replica.
    pub(super) fn change(self) -> Change {
        let at = |seconds| SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(seconds));
        let version = matches!(self.target, Target::Version { .. });
        Change::Revoke(Revocation {
            before: self.mark.filter(|_| !version).and_then(at),
            minimum: self.mark.filter(|_| version),
            // The plane adds the leeway again.
            until: self
                .until
                .and_then(|until| at(until.saturating_sub(CLOCK_LEEWAY.as_secs() + 1))),
            target: self.target,
            source: SOURCE.into(),
            reason: self.reason,
        })
    }
}

impl Lifted {
    pub(super) fn of(lift: &Lift, at: u64) -> Self {
        Self {
            target: lift.target.clone(),
            at,
            until: None,
            reason: lift.reason.clone(),
        }
    }

    pub(super) fn parse(text: &str) -> Option<Self> {
        serde_json::from_str(text)
            .ok()
            .filter(|_| text.len() <= MAX_ENTRY)
    }

    pub(super) fn text(&self) -> Option<String> {
        serde_json::to_string(self).ok()
    }

    /// Whether it need not be remembered any more.
    pub(super) fn is_void(&self, now: u64) -> bool {
        self.until.is_some_and(|until| until <= now)
    }

    pub(super) fn digest(&self) -> String {
        digest(&self.target)
    }

    pub(super) fn change(self) -> Change {
        Change::Lift(Lift {
            target: self.target,
            source: SOURCE.into(),
            reason: self.reason,
        })
    }
}

/// 128 bits over what an entry is about, in hex.
pub(super) fn digest(target: &Target) -> String {
    let mut context = Context::new(&SHA256);
    for part in [target.kind_name(), target.issuer(), target.name()] {
        // Lengths keep two parts from being read as one.
        context.update(&u64::try_from(part.len()).unwrap_or(u64::MAX).to_be_bytes());
        context.update(part.as_bytes());
    }
    let whole = context.finish();
    whole
        .as_ref()
        .iter()
        .take(16)
        .fold(String::with_capacity(32), |mut text, byte| {
            // Writing into a string cannot fail.
            let _ = write!(text, "{byte:02x}");
            text
        })
}

/// The digest and the entry of a member of the set.
pub(super) fn split(member: &str) -> Option<(&str, Entry)> {
    let (digest, text) = member.split_once(' ')?;
    Some((digest, Entry::parse(text)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn held(target: Target, mark: Option<u64>, until: Option<u64>) -> Held {
        Held {
            target,
            mark,
            until,
            at: 5,
            reason: Some("a \"reason\"".to_owned()),
        }
    }

    fn subject() -> Target {
        Target::Subject {
            issuer: "https://dev.test".to_owned(),
            subject: "alice".to_owned(),
        }
    }

    #[test]
    fn an_entry_comes_out_as_it_went_in() {
        let version = Target::Version {
            issuer: "i".to_owned(),
            subject: "s".to_owned(),
        };
        for held in [
            held(subject(), Some(1_000), Some(9_000)),
            held(subject(), None, None),
            held(version, Some(7), Some(9_000)),
        ] {
            let entry = Entry::of(&held);
            let member = entry.member().unwrap();
            let (found, read) = split(&member).unwrap();
            assert_eq!(read, entry);
            assert_eq!(found, digest(&held.target));
            let Change::Revoke(revocation) = read.change() else {
                panic!("not a revocation");
            };
            assert_eq!(revocation.target, held.target);
            assert_eq!(&*revocation.source, SOURCE);
            let is_version = matches!(held.target, Target::Version { .. });
            assert_eq!(revocation.minimum, held.mark.filter(|_| is_version));
            assert_eq!(
                revocation.before.map(crate::clock::unix_seconds),
                held.mark.filter(|_| !is_version)
            );
            assert_eq!(
                revocation.until.map(crate::clock::unix_seconds),
                held.until.map(|until| until - CLOCK_LEEWAY.as_secs() - 1)
            );
        }
    }

    #[test]
    fn who_writes_it_and_when_is_not_in_it() {
        let (mut one, two) = (
            held(subject(), Some(1), Some(2)),
            held(subject(), Some(1), Some(2)),
        );
        one.at = 99;
        assert_eq!(Entry::of(&one).member(), Entry::of(&two).member());
    }

    #[test]
    fn foreign_members_are_passed_over() {
        for member in [
            "",
            "x",
            "generation 1",
            "00 {}",
            "00 {\"kind\":\"token\"}",
            "00 []",
        ] {
            assert!(split(member).is_none(), "{member}");
        }
        let long = format!(
            r#"00 {{"kind":"token","issuer":"i","token_id":"{}"}}"#,
            "x".repeat(MAX_ENTRY)
        );
        assert!(split(&long).is_none());
    }
}
