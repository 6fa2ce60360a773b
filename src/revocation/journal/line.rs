//! One line of the journal: a checksum and a JSON object.
//!
//! ```text
//! 4f0c64a9b2f80d17 {"op":"revoke","kind":"token","issuer":"https://…","name":"…","mark":null,…}
//! ```
//!
//! The checksum is over the object's bytes. It tells a damaged line from a whole one; it does not tell
//! who wrote it: whoever can write the file can write revocations.

use std::borrow::Cow;
use std::hash::Hasher;

use serde::{Deserialize, Serialize};
use siphasher::sip::SipHasher13;

use crate::revocation::index::{ALTOGETHER, Key, Kind, Mark, NEVER};
use crate::revocation::{Lift, Target};

/// Longest line, in bytes: longer than two names and a reason in which every byte is escaped.
pub(super) const MAX_LINE: usize = 16 * 1024;

/// Digits of the checksum.
const DIGITS: usize = 16;

/// What a line says. Marks are those in force when it was written, so the last line about a target is
/// the whole truth about it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(in crate::revocation) struct Line<'l> {
    pub(in crate::revocation) op: Op,
    #[serde(borrow)]
    pub(in crate::revocation) kind: Cow<'l, str>,
    #[serde(borrow)]
    pub(in crate::revocation) issuer: Cow<'l, str>,
    #[serde(borrow)]
    pub(in crate::revocation) name: Cow<'l, str>,
    /// Seconds since 1970, or the least version; absent: altogether.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(in crate::revocation) mark: Option<u64>,
    /// Seconds since 1970; absent: never.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(in crate::revocation) until: Option<u64>,
    /// When it was taken.
    pub(in crate::revocation) at: u64,
    #[serde(borrow)]
    pub(in crate::revocation) source: Cow<'l, str>,
    #[serde(default, borrow, skip_serializing_if = "Option::is_none")]
    pub(in crate::revocation) reason: Option<Cow<'l, str>>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(in crate::revocation) enum Op {
    Revoke,
    Lift,
}

impl<'l> Line<'l> {
    pub(in crate::revocation) fn revoke(
        target: &'l Target,
        mark: Mark,
        at: u64,
        source: &'l str,
        reason: Option<&'l str>,
    ) -> Self {
        Self {
            op: Op::Revoke,
            kind: target.kind().name().into(),
            issuer: target.issuer().into(),
            name: target.name().into(),
            mark: (mark.mark != ALTOGETHER).then_some(mark.mark),
            until: (mark.until != NEVER).then_some(mark.until),
            at,
            source: source.into(),
            reason: reason.map(Into::into),
        }
    }

    /// The same with another mark.
    pub(super) fn with(&self, mark: Mark) -> Self {
        Self {
            mark: (mark.mark != ALTOGETHER).then_some(mark.mark),
            until: (mark.until != NEVER).then_some(mark.until),
            ..self.clone()
        }
    }

    pub(in crate::revocation) fn lift(lift: &'l Lift, at: u64) -> Self {
        Self {
            op: Op::Lift,
            kind: lift.target.kind().name().into(),
            issuer: lift.target.issuer().into(),
            name: lift.target.name().into(),
            mark: None,
            until: None,
            at,
            source: (&*lift.source).into(),
            reason: lift.reason.as_deref().map(Into::into),
        }
    }

    /// What it is about; `None` for a kind that is none.
    pub(in crate::revocation) fn key(&self) -> Option<Key> {
        let kind = Kind::ALL
            .into_iter()
            .find(|kind| kind.name() == self.kind)?;
        Some(Key::new(kind, &self.issuer, &self.name))
    }

    /// What it is about, as it was brought.
    pub(in crate::revocation) fn target(&self) -> Option<Target> {
        let (issuer, name) = (&self.issuer, &self.name);
        Target::of(&self.kind, issuer.to_string(), name.to_string())
    }

    pub(in crate::revocation) fn mark(&self) -> Mark {
        Mark {
            mark: self.mark.unwrap_or(ALTOGETHER),
            until: self.until.unwrap_or(NEVER),
        }
    }

    /// Adds the line to `text`, its end included.
    pub(in crate::revocation) fn write(&self, text: &mut Vec<u8>) {
        let start = text.len();
        text.extend_from_slice(&[b' '; DIGITS + 1]);
        // Writing strings and numbers into memory cannot fail.
        let _ = serde_json::to_writer(&mut *text, self);
        let sum = checksum(text.get(start + DIGITS + 1..).unwrap_or_default());
        if let Some(place) = text.get_mut(start..start + DIGITS) {
            place.copy_from_slice(&crate::request::hex(sum));
        }
        text.push(b'\n');
    }

    /// Reads a line without its end; `None` when it is not whole.
    pub(in crate::revocation) fn read(line: &'l [u8]) -> Option<Self> {
        let (sum, rest) = line.split_at_checked(DIGITS)?;
        let object = rest.strip_prefix(b" ")?;
        if *sum != crate::request::hex(checksum(object)) {
            return None;
        }
        serde_json::from_slice(object).ok()
    }
}

fn checksum(bytes: &[u8]) -> u64 {
    // A checksum, not a signature: the key is no secret.
    let mut hasher = SipHasher13::new_with_keys(0, 0);
    hasher.write(bytes);
    hasher.finish()
}
