//! The last good key set and the distrusted keys of an issuer, on disk. Stateless.
//!
//! Whose files are believed is told in [`crate::kept`]. What is read is checked like what is fetched; a
//! file of another issuer and a damaged one are refused, with the reason, and left where they are. Of one
//! from the future only the distrust counts: it needs no clock.

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use aws_lc_rs::digest::{SHA256, digest};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::book::{Book, Distrust, MAX_DISTRUSTED, Published};
use super::jws;
use super::keys::KeySet;
use crate::kept::{self, Unusable};

/// Largest file that is read.
const MAX_FILE: u64 = 1 << 20;

/// How far its time may lie in the future: clocks are set back by small steps.
const MAX_AHEAD: Duration = Duration::from_secs(60);

/// The form that is written.
const VERSION: u32 = 1;

/// Why a file is not used.
#[derive(Debug, thiserror::Error)]
pub(super) enum Refusal {
    #[error("it cannot be read")]
    Read(#[source] io::Error),
    #[error("it is no regular file of the gateway's own: {0}")]
    Insecure(&'static str),
    #[error("it holds the keys of another issuer")]
    Issuer,
    #[error("it is damaged: {0}")]
    Damaged(&'static str),
}

impl From<Unusable> for Refusal {
    fn from(why: Unusable) -> Self {
        match why {
            Unusable::Read(error) => Self::Read(error),
            Unusable::Insecure(why) => Self::Insecure(why),
            Unusable::TooLarge(_) => Self::Damaged("it is too large"),
        }
    }
}

impl Refusal {
    /// Whether the file may distrust keys that nobody knows of then. One of another issuer does not
    /// speak of ours.
    pub(super) const fn may_hide_distrust(&self) -> bool {
        match self {
            Self::Read(_) | Self::Insecure(_) | Self::Damaged(_) => true,
            Self::Issuer => false,
        }
    }
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Document {
    /// SHA-256 over `kept`, in base64url: tells a damaged file, not a forged one.
    checksum: String,
    kept: Kept,
}

/// What is kept of an issuer.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Kept {
    version: u32,
    /// Its `iss`.
    issuer: String,
    /// When it last gave a good set, in seconds since 1970.
    fetched_at: u64,
    keys: Vec<KeptKey>,
    distrusted: Vec<Distrust>,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct KeptKey {
    first_seen: u64,
    jwk: Value,
}

/// What was read.
#[derive(Debug)]
pub(super) struct Found {
    pub(super) published: Vec<Published>,
    pub(super) distrusted: Vec<Distrust>,
    pub(super) fetched_at: SystemTime,
    /// How long ago that was.
    pub(super) age: Duration,
    /// That lies in the future, so a clock is or was wrong: the keys are left out.
    pub(super) from_future: bool,
}

impl Kept {
    /// What is to be kept of a book.
    pub(super) fn of(book: &Book, issuer: &str) -> Self {
        let seconds = |at: SystemTime| crate::clock::unix_seconds(at);
        let keys = book.published.iter().filter_map(|one| {
            Some(KeptKey {
                first_seen: seconds(one.first_seen),
                jwk: one.key.jwk()?,
            })
        });
        Self {
            version: VERSION,
            issuer: issuer.to_owned(),
            fetched_at: book.fetched_at.map_or(0, seconds),
            keys: keys.collect(),
            distrusted: book.distrusted.clone(),
        }
    }

    fn checksum(&self) -> Option<String> {
        let text = serde_json::to_vec(self).ok()?;
        Some(jws::encode(digest(&SHA256, &text).as_ref()))
    }

    fn check(self, issuer: &str, now: SystemTime) -> Result<Found, Refusal> {
        if self.version != VERSION {
            return Err(Refusal::Damaged("its version is unknown"));
        }
        if self.issuer != issuer {
            return Err(Refusal::Issuer);
        }
        // What several configurations and files distrusted may have come together in it.
        if self.distrusted.len() > MAX_DISTRUSTED * 10 {
            return Err(Refusal::Damaged("it distrusts too many keys"));
        }
        let time = |seconds: u64| {
            SystemTime::UNIX_EPOCH
                .checked_add(Duration::from_secs(seconds))
                .ok_or(Refusal::Damaged("a time in it is none"))
        };
        let fetched_at = time(self.fetched_at)?;
        let age = match now.duration_since(fetched_at) {
            Ok(age) => age,
            Err(ahead) if ahead.duration() <= MAX_AHEAD => Duration::ZERO,
            // How old its keys are is unknown; whom not to believe is known.
            Err(_) => {
                return Ok(Found {
                    published: Vec::new(),
                    distrusted: self.distrusted,
                    fetched_at,
                    age: Duration::MAX,
                    from_future: true,
                });
            }
        };
        let mut published = Vec::with_capacity(self.keys.len());
        if !self.keys.is_empty() {
            let jwks: Vec<&Value> = self.keys.iter().map(|key| &key.jwk).collect();
            let text = serde_json::json!({ "keys": jwks }).to_string();
            let set = KeySet::parse(text.as_bytes())
                .map_err(|_| Refusal::Damaged("it holds no good key set"))?;
            if set.keys.len() != self.keys.len() {
                return Err(Refusal::Damaged("a key in it is none"));
            }
            for (key, kept) in set.keys.into_iter().zip(&self.keys) {
                let first_seen = time(kept.first_seen)?;
                published.push(Published { key, first_seen });
            }
        }
        Ok(Found {
            published,
            distrusted: self.distrusted,
            fetched_at,
            age,
            from_future: false,
        })
    }
}

/// Reads what was kept of this issuer; `None` when there is no file. Blocks.
///
/// # Errors
/// [`Refusal`].
pub(super) fn read(path: &Path, issuer: &str, now: SystemTime) -> Result<Option<Found>, Refusal> {
    let Some(text) = kept::read(path, MAX_FILE)? else {
        return Ok(None);
    };
    let document: Document = serde_json::from_slice(&text)
        .map_err(|_| Refusal::Damaged("it is not what the gateway writes"))?;
    if document.kept.checksum() != Some(document.checksum) {
        return Err(Refusal::Damaged("its checksum is wrong"));
    }
    document.kept.check(issuer, now).map(Some)
}

/// Writes, flushes and puts in place. Blocks.
///
/// # Errors
/// Why it could not; then the file is as it was.
pub(super) fn write(path: &Path, book: Kept) -> io::Result<()> {
    let checksum = book
        .checksum()
        .ok_or_else(|| io::Error::other("it cannot be written as JSON"))?;
    let mut text = serde_json::to_vec_pretty(&Document {
        checksum,
        kept: book,
    })?;
    text.push(b'\n');
    kept::write(path, &text)
}

/// What keeps a book on disk.
#[derive(Debug, Clone)]
pub(super) struct Keeping {
    pub(super) file: Arc<Path>,
    /// How long what is in it is believed, from the last good fetch.
    pub(super) keep: Duration,
}

#[cfg(test)]
#[path = "kept_tests.rs"]
mod tests;
