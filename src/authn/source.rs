//! Where keys come from: discovery, a URL, a file. Stateless but for what was discovered.

use std::path::PathBuf;
use std::time::Duration;

use tokio::io::AsyncReadExt;
use tokio::time::Instant;

use super::json;
use super::keys::{BadSet, KeySet};
use crate::document;
use crate::fetch::{FetchError, Fetcher, MAX_BODY, Target};

/// How long a discovered `jwks_uri` is used before the issuer is asked again.
const DISCOVERY_LIFETIME: Duration = Duration::from_secs(3600);

/// Where keys come from.
#[derive(Debug)]
pub(super) enum Source {
    /// OIDC discovery at this URL; the document's `issuer` must be the configured one.
    Discovery(Fetcher, Target),
    /// A JWK Set at this URL.
    Url(Fetcher, Target),
    /// A JWK Set in this file.
    File(PathBuf),
    /// A secret from the configuration: never fetched, never stale.
    Fixed,
}

/// A discovered `jwks_uri`, and when it was.
pub(super) type Discovered = (Target, Instant);

/// Why there is no new set. Whose fault: the issuer's, or the file's.
#[derive(Debug, thiserror::Error)]
pub(super) enum LoadError {
    #[error(transparent)]
    Fetch(#[from] FetchError),
    #[error("the key file cannot be read")]
    File(#[source] std::io::Error),
    #[error(transparent)]
    Set(#[from] BadSet),
    #[error("the discovery document: {0}")]
    Discovery(&'static str),
}

impl LoadError {
    /// A stable word for metrics.
    pub(super) const fn code(&self) -> &'static str {
        match self {
            Self::Fetch(error) => error.code(),
            Self::File(_) => "file",
            Self::Set(BadSet::Empty) => "empty",
            Self::Set(BadSet::Form | BadSet::TooMany) => "invalid",
            Self::Discovery(_) => "discovery",
        }
    }

    /// With causes: for the log and the admin page, never for clients.
    pub(super) fn full(&self) -> String {
        let mut text = self.to_string();
        let mut cause = std::error::Error::source(self);
        while let Some(error) = cause {
            text.push_str(": ");
            text.push_str(&error.to_string());
            cause = error.source();
        }
        text
    }
}

impl Source {
    /// Loads the set, and how long it stays fresh when the source says so.
    ///
    /// # Errors
    /// [`LoadError`]; what was discovered is then forgotten.
    pub(super) async fn load(
        &self,
        issuer: &str,
        discovered: &mut Option<Discovered>,
    ) -> Result<(KeySet, Option<Duration>), LoadError> {
        let document = match self {
            Self::Fixed => return Ok((KeySet::default(), None)),
            Self::File(path) => {
                let set = KeySet::parse(&read_file(path).await.map_err(LoadError::File)?)?;
                return Ok((set, None));
            }
            Self::Url(fetcher, target) => fetcher.get(target).await?,
            Self::Discovery(fetcher, target) => {
                let known = discovered
                    .take()
                    .filter(|(_, at)| at.elapsed() < DISCOVERY_LIFETIME);
                let (keys, at) = match known {
                    Some(known) => known,
                    None => {
                        let document = fetcher.get(target).await?;
                        (jwks_uri(&document.body, issuer)?, Instant::now())
                    }
                };
                let document = fetcher.get(&keys).await?;
                *discovered = Some((keys, at));
                document
            }
        };
        Ok((KeySet::parse(&document.body)?, document.lifetime))
    }
}

/// The `jwks_uri` of a discovery document (OpenID Connect Discovery 1.0 sections 3 and 4.3).
pub(super) fn jwks_uri(body: &[u8], issuer: &str) -> Result<Target, LoadError> {
    let document =
        json::parse_object(body).map_err(|()| LoadError::Discovery("is no strict JSON object"))?;
    let text = |name| document::member(&document, name).and_then(document::text);
    if text("issuer").is_none_or(|named| &**named != issuer) {
        return Err(LoadError::Discovery(
            "its `issuer` is not the configured one, byte for byte",
        ));
    }
    let uri = text("jwks_uri").ok_or(LoadError::Discovery("it has no `jwks_uri`"))?;
    // An issuer reached over https must not send us to plain http, not even on this machine.
    if issuer.starts_with("https://") && !uri.starts_with("https://") {
        return Err(LoadError::Discovery("its `jwks_uri` is not https"));
    }
    Target::parse(uri).map_err(|_| {
        LoadError::Discovery("its `jwks_uri` is not https (http is for loopback addresses only)")
    })
}

async fn read_file(path: &PathBuf) -> Result<Vec<u8>, std::io::Error> {
    let file = tokio::fs::File::open(path).await?;
    let mut body = Vec::new();
    let bound = u64::try_from(MAX_BODY).unwrap_or(u64::MAX);
    file.take(bound + 1).read_to_end(&mut body).await?;
    if body.len() > MAX_BODY {
        return Err(std::io::Error::other("the file is too large"));
    }
    Ok(body)
}
