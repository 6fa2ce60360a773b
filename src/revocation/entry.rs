//! An entry as JSON: what the admin listener takes and lists, and what signed lists hold.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::index::{ALTOGETHER, NEVER};
use super::journal::Line;
use super::plane::MAX_REASON;
use super::{Revocation, Target};

/// The latest second that is a date: the end of the year 9999.
const LATEST: u64 = 253_402_300_799;

/// A point in time: RFC 3339 text, or seconds since 1970.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Moment(pub SystemTime);

impl Moment {
    /// A whole second; later than any date is the end of dates.
    pub fn at(seconds: u64) -> Self {
        Self(SystemTime::UNIX_EPOCH + Duration::from_secs(seconds.min(LATEST)))
    }
}

impl Serialize for Moment {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let text = OffsetDateTime::from(self.0)
            .format(&Rfc3339)
            .map_err(serde::ser::Error::custom)?;
        serializer.serialize_str(&text)
    }
}

impl<'de> Deserialize<'de> for Moment {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Form {
            Seconds(u64),
            Text(String),
        }
        let wrong = "a time is RFC 3339 text, or whole seconds since 1970";
        match Form::deserialize(deserializer).map_err(|_| serde::de::Error::custom(wrong))? {
            Form::Seconds(seconds) if seconds <= LATEST => Ok(Self::at(seconds)),
            Form::Seconds(_) => Err(serde::de::Error::custom(
                "a time is later than the year 9999: seconds are meant, not milliseconds",
            )),
            Form::Text(text) => OffsetDateTime::parse(&text, &Rfc3339)
                .ok()
                .map(SystemTime::from)
                .filter(|at| *at >= SystemTime::UNIX_EPOCH)
                .map(Self)
                .ok_or_else(|| serde::de::Error::custom(wrong)),
        }
    }
}

/// One entry. Which members it has depends on `kind`; others are refused.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Entry {
    /// `token`, `subject`, `session`, `client`, `key`, `certificate` or `version`.
    pub kind: String,
    /// `iss`, or the distinguished name that issued a certificate.
    pub issuer: String,
    /// `jti`, for tokens.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub token_id: Option<String>,
    /// `sub`, for subjects and versions.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub subject: Option<String>,
    /// `sid`, for sessions.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub session: Option<String>,
    /// `client_id`, for clients.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub client: Option<String>,
    /// `kid`, for keys.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub key_id: Option<String>,
    /// The serial number in hex, for certificates; colons, capitals and leading zeros do not count.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub serial: Option<String>,
    /// For subjects and clients: what was issued up to then is revoked; without it, everything.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub before: Option<Moment>,
    /// For versions: the least that is accepted.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub minimum: Option<u64>,
    /// When what it revokes has ended by itself.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub until: Option<Moment>,
    /// Why, in words.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

/// Why an entry cannot be read: a sentence for whoever wrote it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct BadEntry(String);

impl Entry {
    /// What it is about.
    ///
    /// # Errors
    /// [`BadEntry`]: a member is missing, or does not belong to its kind.
    pub fn target(&self) -> Result<Target, BadEntry> {
        let bad = |text: String| Err(BadEntry(text));
        let names = [
            ("token_id", &self.token_id),
            ("subject", &self.subject),
            ("session", &self.session),
            ("client", &self.client),
            ("key_id", &self.key_id),
            ("serial", &self.serial),
        ];
        let member = match self.kind.as_str() {
            "token" => "token_id",
            "subject" | "version" => "subject",
            "session" => "session",
            "client" => "client",
            "key" => "key_id",
            "certificate" => "serial",
            _ => {
                return bad(
                    "`kind` is one of token, subject, session, client, key, certificate, version"
                        .to_owned(),
                );
            }
        };
        if let Some((other, _)) = names
            .iter()
            .find(|(name, value)| *name != member && value.is_some())
        {
            return bad(format!(
                "`{other}` does not belong to the kind `{}`",
                self.kind
            ));
        }
        let Some(name) = names
            .into_iter()
            .find(|(name, _)| *name == member)
            .and_then(|(_, value)| value.clone())
        else {
            return bad(format!("the kind `{}` needs `{member}`", self.kind));
        };
        let issuer = self.issuer.clone();
        let name = match self.kind.as_str() {
            "certificate" => plain_serial(&name),
            _ => name,
        };
        let Some(target) = Target::of(&self.kind, issuer, name) else {
            return bad(format!("there is no kind `{}`", self.kind));
        };
        if !target.is_legible() {
            return bad(format!(
                "`issuer` and `{member}` are 1 to 1024 bytes of plain text, and a serial is hex"
            ));
        }
        Ok(target)
    }

    /// The entry as it is brought by `source`.
    ///
    /// # Errors
    /// [`BadEntry`]: a member is missing, or does not belong to its kind.
    pub fn revocation(&self, source: &Arc<str>) -> Result<Revocation, BadEntry> {
        let bad = |text: &str| Err(BadEntry(text.to_owned()));
        let target = self.target()?;
        if self.before.is_some() && !matches!(self.kind.as_str(), "subject" | "client") {
            return bad("`before` belongs to the kinds subject and client");
        }
        if self.minimum.is_some() != (self.kind == "version") {
            return bad("`minimum` belongs to the kind version, which needs it");
        }
        let plain =
            |reason: &String| reason.len() <= MAX_REASON && !reason.chars().any(char::is_control);
        if !self.reason.as_ref().is_none_or(plain) {
            return bad("`reason` is at most 256 bytes of plain text");
        }
        Ok(Revocation {
            target,
            before: self.before.map(|moment| moment.0),
            minimum: self.minimum,
            until: self.until.map(|moment| moment.0),
            source: Arc::clone(source),
            reason: self.reason.clone(),
        })
    }
}

/// As it is in identities: lower case, without colons and leading zeros.
fn plain_serial(text: &str) -> String {
    let digits: String = text
        .chars()
        .filter(|c| *c != ':')
        .map(|c| c.to_ascii_lowercase())
        .collect();
    match digits.trim_start_matches('0') {
        "" if !digits.is_empty() => "0".to_owned(),
        plain => plain.to_owned(),
    }
}

/// An entry as it is listed: what is in force, by whom, since when.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Listed {
    /// The entry. `until` is when it is forgotten, the leeway of clocks included.
    #[serde(flatten)]
    pub entry: Entry,
    /// Who brought it.
    pub source: String,
    /// When.
    pub at: Moment,
}

impl Listed {
    /// A line of the journal.
    pub(super) fn of(line: &Line<'_>) -> Self {
        let name = Some(line.name.clone().into_owned());
        let mut entry = Entry {
            kind: line.kind.clone().into_owned(),
            issuer: line.issuer.clone().into_owned(),
            reason: line
                .reason
                .as_ref()
                .map(|reason| reason.clone().into_owned()),
            ..Entry::default()
        };
        let mark = line.mark();
        entry.until = (mark.until != NEVER).then(|| Moment::at(mark.until));
        match &*line.kind {
            "token" => entry.token_id = name,
            "subject" | "version" => entry.subject = name,
            "session" => entry.session = name,
            "client" => entry.client = name,
            "key" => entry.key_id = name,
            _ => entry.serial = name,
        }
        if line.kind == "version" {
            entry.minimum = Some(mark.mark);
        } else {
            entry.before = (mark.mark != ALTOGETHER).then(|| Moment::at(mark.mark));
        }
        Self {
            entry,
            source: line.source.clone().into_owned(),
            at: Moment::at(line.at),
        }
    }
}
