//! Which records are looked at.

use std::time::SystemTime;

use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::audit::read::{Caller, Entry, Kind};
use crate::clock;
use crate::policy::output;

/// What a caller without a name is called.
pub(super) const ANONYMOUS: &str = "anonymous";

/// Yes or no, then.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(super) enum Decided {
    /// It went through
    Allow,
    /// It did not
    Deny,
}

/// What is looked for.
#[derive(Debug, Clone, Default)]
pub(super) struct Sieve {
    /// Nanoseconds since 1970.
    pub(super) since: Option<u64>,
    pub(super) until: Option<u64>,
    pub(super) routes: Vec<String>,
    pub(super) callers: Vec<String>,
    pub(super) decided: Option<Decided>,
    pub(super) policy: Option<String>,
}

/// A time: RFC 3339, or how long ago.
pub(super) fn time(text: &str) -> Result<u64, String> {
    let nanoseconds = |at: SystemTime| {
        let since = at.duration_since(SystemTime::UNIX_EPOCH).ok();
        since.and_then(|since| u64::try_from(since.as_nanos()).ok())
    };
    if let Ok(at) = OffsetDateTime::parse(text, &Rfc3339) {
        return nanoseconds(at.into()).ok_or_else(|| "a time before 1970".to_owned());
    }
    let span = output::span(text)
        .map_err(|_| "a time such as `2026-11-22T10:00:00Z`, or how long ago: `2h`".to_owned())?;
    let at = clock::now().checked_sub(span.get());
    at.and_then(nanoseconds)
        .ok_or_else(|| "longer ago than 1970".to_owned())
}

/// How a caller is called.
pub(super) fn name_of(caller: Option<Caller>) -> String {
    caller
        .and_then(|caller| caller.subject.or(caller.client))
        .unwrap_or_else(|| ANONYMOUS.to_owned())
}

impl Sieve {
    /// Whether this one is looked at.
    pub(super) fn takes(&self, entry: &Entry<'_>) -> bool {
        if self.since.is_some() || self.until.is_some() {
            let Some(at) = entry.received_at_ns() else {
                return false;
            };
            if self.since.is_some_and(|since| at < since)
                || self.until.is_some_and(|until| at >= until)
            {
                return false;
            }
        }
        let among = |names: &[String], name: &str| names.iter().any(|known| known == name);
        if !self.routes.is_empty() && !entry.route().is_some_and(|name| among(&self.routes, &name))
        {
            return false;
        }
        if !self.callers.is_empty() && !among(&self.callers, &name_of(entry.caller())) {
            return false;
        }
        let decided = match self.decided {
            None => None,
            Some(Decided::Allow) => Some("allow"),
            Some(Decided::Deny) => Some("deny"),
        };
        if decided.is_some() && entry.decision().as_deref() != decided {
            return false;
        }
        match (&self.policy, entry.kind) {
            (Some(policy), Kind::Record(_)) => entry.policy().is_some_and(|by| by.name == *policy),
            (Some(_) | None, _) => true,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_points_or_how_long_ago() {
        assert_eq!(time("1970-01-01T00:00:01.5Z"), Ok(1_500_000_000));
        let ago = time("1h").unwrap();
        let now = time("0s").unwrap();
        let hour = 3_600_000_000_000;
        assert!((hour..hour + 60_000_000_000).contains(&(now - ago + 1_000_000_000)));
        for wrong in [
            "",
            "yesterday",
            "2026-01-01",
            "1969-01-01T00:00:00Z",
            "900000d",
        ] {
            assert!(time(wrong).is_err(), "{wrong}");
        }
    }
}
