//! What a line says, as far as a tool asks: a record of ours, or an event of OPA's decision log.

use std::borrow::Cow;

use serde::Deserialize;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::scan::Members;

/// Whose line it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A record of ours, of this version.
    Record(u64),
    /// An event of OPA's decision log, whoever wrote it.
    Opa,
}

/// Why a line is neither.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NotAnEntry {
    /// It is no JSON.
    #[error("it is no JSON")]
    Json,
    /// It names a member twice, which can be read in two ways.
    #[error("it names a member twice")]
    Twice,
    /// It is a line of something else.
    #[error("it is neither a decision record nor an event of OPA's decision log")]
    Other,
}

/// The parts of a line, each as it is written; what is `null` is absent.
#[derive(Debug, Clone)]
pub struct Entry<'l> {
    /// Whose line it is.
    pub kind: Kind,
    /// What the policy saw, in JSON.
    pub input: Option<&'l str>,
    /// What it answered, in JSON.
    pub answer: Option<&'l str>,
    time: Option<&'l str>,
    received_at_ns: Option<&'l str>,
    request_id: Option<&'l str>,
    decision_id: Option<&'l str>,
    method: Option<&'l str>,
    path: Option<&'l str>,
    route: Option<&'l str>,
    caller: Option<&'l str>,
    policy: Option<&'l str>,
    decision: Option<&'l str>,
    reason: Option<&'l str>,
    refusal: Option<&'l str>,
    input_left_out: Option<&'l str>,
    answer_left_out: Option<&'l str>,
    masked: Option<&'l str>,
    erased: Option<&'l str>,
    error: Option<&'l str>,
}

/// Who asked.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct Caller {
    /// How they were known: `jwt`, `anonymous` …
    pub method: Option<String>,
    /// Who says so.
    pub issuer: Option<String>,
    /// Who it is.
    pub subject: Option<String>,
    /// Their client.
    pub client: Option<String>,
}

/// Which policy decided.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct DecidedBy {
    /// Its block; empty when that is not told.
    pub name: String,
    /// Its revision.
    pub revision: Option<String>,
    /// The candidate that decided in its place.
    pub candidate: Option<String>,
    /// Whether the answer was one given before.
    pub cached: Option<bool>,
}

#[derive(Deserialize)]
struct Code {
    code: String,
}

impl<'l> Entry<'l> {
    /// Takes a line apart.
    ///
    /// # Errors
    /// [`NotAnEntry`].
    pub fn of(text: &'l [u8]) -> Result<Self, NotAnEntry> {
        let mut found = Found::default();
        for member in Members::of(text) {
            let (name, value) = member.ok_or(NotAnEntry::Json)?;
            found.take(name, value)?;
        }
        found.entry()
    }

    /// When the request came, nanoseconds since 1970; to the millisecond where nothing finer is told.
    pub fn received_at_ns(&self) -> Option<u64> {
        if let Some(told) = self.received_at_ns {
            return told.parse().ok();
        }
        let time = plain(self.time?)?;
        let at = OffsetDateTime::parse(&time, &Rfc3339).ok()?;
        u64::try_from(at.unix_timestamp_nanos()).ok()
    }

    /// When the request came, as the line has it.
    pub fn time(&self) -> Option<Cow<'l, str>> {
        self.time.and_then(plain)
    }

    /// The request's id.
    pub fn request_id(&self) -> Option<Cow<'l, str>> {
        self.request_id.and_then(plain)
    }

    /// The decision's id.
    pub fn decision_id(&self) -> Option<Cow<'l, str>> {
        self.decision_id.and_then(plain)
    }

    /// The method.
    pub fn method(&self) -> Option<Cow<'l, str>> {
        self.method.and_then(plain)
    }

    /// The path; of an event of OPA's that of the rule that was asked.
    pub fn path(&self) -> Option<Cow<'l, str>> {
        self.path.and_then(plain)
    }

    /// The route.
    pub fn route(&self) -> Option<Cow<'l, str>> {
        self.route.and_then(plain)
    }

    /// Who asked.
    pub fn caller(&self) -> Option<Caller> {
        serde_json::from_str(self.caller?).ok()
    }

    /// The policy that decided.
    pub fn policy(&self) -> Option<DecidedBy> {
        serde_json::from_str(self.policy?).ok()
    }

    /// `allow` or `deny`.
    pub fn decision(&self) -> Option<Cow<'l, str>> {
        self.decision.and_then(plain)
    }

    /// The stable code of why.
    pub fn reason(&self) -> Option<Cow<'l, str>> {
        self.reason.and_then(plain)
    }

    /// The code of the refusal, when it was one.
    pub fn refusal(&self) -> Option<String> {
        let code: Code = serde_json::from_str(self.refusal?).ok()?;
        Some(code.code)
    }

    /// Why the input is not there.
    pub fn input_left_out(&self) -> Option<Cow<'l, str>> {
        self.input_left_out.and_then(plain)
    }

    /// Why the answer is not there although there was one.
    pub fn answer_left_out(&self) -> Option<Cow<'l, str>> {
        self.answer_left_out.and_then(plain)
    }

    /// What failed, as OPA tells it: JSON.
    pub fn error(&self) -> Option<&'l str> {
        self.error
    }

    /// JSON Pointers to what was replaced or removed: `/input/request/query/token/0`.
    ///
    /// # Errors
    /// When they cannot be read: then nobody knows what is missing.
    pub fn hidden(&self) -> Result<Vec<String>, NotAnEntry> {
        let mut all = Vec::new();
        for list in [self.masked, self.erased].into_iter().flatten() {
            let list: Vec<String> = serde_json::from_str(list).map_err(|_| NotAnEntry::Json)?;
            all.extend(list);
        }
        Ok(all)
    }
}

/// A string without its quotation marks and escapes.
fn plain(written: &str) -> Option<Cow<'_, str>> {
    let inner = written.strip_prefix('"')?.strip_suffix('"')?;
    if memchr::memchr(b'\\', inner.as_bytes()).is_none() {
        return Some(Cow::Borrowed(inner));
    }
    serde_json::from_str(written).ok().map(Cow::Owned)
}

macro_rules! found {
    ($($field:ident = $name:literal),* $(,)?) => {
        #[derive(Default)]
        struct Found<'l> { $($field: Option<&'l str>),* }

        impl<'l> Found<'l> {
            fn take(&mut self, name: &[u8], value: &'l [u8]) -> Result<(), NotAnEntry> {
                let place = match name {
                    $($name => &mut self.$field,)*
                    // A name in another spelling (`\u0069nput`) is no way around the masks.
                    other if other.contains(&b'\\') => return Err(NotAnEntry::Other),
                    _ => return Ok(()),
                };
                if place.is_some() {
                    return Err(NotAnEntry::Twice);
                }
                *place = Some(std::str::from_utf8(value).map_err(|_| NotAnEntry::Json)?);
                Ok(())
            }
        }
    };
}

found!(
    version = b"version",
    time = b"time",
    timestamp = b"timestamp",
    received_at_ns = b"received_at_ns",
    request_id = b"request_id",
    req_id = b"req_id",
    decision_id = b"decision_id",
    method = b"method",
    path = b"path",
    route = b"route",
    caller = b"caller",
    policy = b"policy",
    decision = b"decision",
    reason = b"reason",
    refusal = b"refusal",
    input_left_out = b"input_left_out",
    answer_left_out = b"answer_left_out",
    masked = b"masked",
    erased = b"erased",
    error = b"error",
    answer = b"answer",
    result = b"result",
    input = b"input",
);

impl<'l> Found<'l> {
    fn entry(self) -> Result<Entry<'l>, NotAnEntry> {
        let version = self.version.and_then(|version| version.parse().ok());
        let kind = match version {
            Some(version) if self.request_id.is_some() => Kind::Record(version),
            _ if self.timestamp.is_some() && self.decision_id.is_some() => Kind::Opa,
            _ => return Err(NotAnEntry::Other),
        };
        let some = |value: Option<&'l str>| value.filter(|value| *value != "null");
        let ours = kind != Kind::Opa;
        Ok(Entry {
            kind,
            input: some(self.input),
            answer: some(if ours { self.answer } else { self.result }),
            time: some(if ours { self.time } else { self.timestamp }),
            received_at_ns: some(self.received_at_ns),
            request_id: some(self.request_id.or(self.req_id)),
            decision_id: some(self.decision_id),
            method: some(self.method),
            path: some(self.path),
            route: some(self.route),
            caller: some(self.caller),
            policy: some(self.policy),
            decision: some(self.decision),
            reason: some(self.reason),
            refusal: some(self.refusal),
            input_left_out: some(self.input_left_out),
            answer_left_out: some(self.answer_left_out),
            masked: some(self.masked),
            erased: some(self.erased),
            error: some(self.error),
        })
    }
}
