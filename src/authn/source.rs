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

/// How old it may be when keys are sought that are not there: they may be published elsewhere by now.
const REDISCOVER_AFTER: Duration = Duration::from_secs(60);

/// A discovered `jwks_uri`.
#[derive(Debug)]
pub(super) struct Discovered {
    keys: Target,
    /// When; none once it has to be asked for again.
    at: Option<Instant>,
    /// Where the keys were before, until that was told.
    was: Option<Target>,
}

/// What a source gave.
#[derive(Debug)]
pub(super) struct Loaded {
    pub(super) set: KeySet,
    /// How long it stays fresh, when the source says so.
    pub(super) lifetime: Option<Duration>,
    /// The `jwks_uri` before and now, when it has moved.
    pub(super) moved: Option<(Target, Target)>,
}

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
    #[error("the discovery document: its `issuer` is not the configured one, byte for byte")]
    Issuer,
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
            Self::Issuer => "issuer",
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
    /// Loads the set. `sought` says that a key is sought which the last one did not hold.
    ///
    /// # Errors
    /// [`LoadError`]; the discovery document is then asked for again next time.
    pub(super) async fn load(
        &self,
        issuer: &str,
        discovered: &mut Option<Discovered>,
        sought: bool,
    ) -> Result<Loaded, LoadError> {
        let document = match self {
            Self::Fixed => {
                return Ok(Loaded {
                    set: KeySet::default(),
                    lifetime: None,
                    moved: None,
                });
            }
            Self::File(path) => {
                let set = KeySet::parse(&read_file(path).await.map_err(LoadError::File)?)?;
                return Ok(Loaded {
                    set,
                    lifetime: None,
                    moved: None,
                });
            }
            Self::Url(fetcher, target) => fetcher.get(target).await?,
            Self::Discovery(fetcher, target) => {
                let known = discover(fetcher, target, issuer, discovered, sought).await?;
                // Asked for again if what follows fails: the keys may have moved.
                let at = known.at.take();
                let document = fetcher.get(&known.keys).await?;
                let set = KeySet::parse(&document.body)?;
                known.at = at;
                let moved = known.was.take().map(|was| (was, known.keys.clone()));
                return Ok(Loaded {
                    set,
                    lifetime: document.lifetime,
                    moved,
                });
            }
        };
        Ok(Loaded {
            set: KeySet::parse(&document.body)?,
            lifetime: document.lifetime,
            moved: None,
        })
    }
}

/// Where the keys are, asked for again when it was long ago.
async fn discover<'d>(
    fetcher: &Fetcher,
    target: &Target,
    issuer: &str,
    discovered: &'d mut Option<Discovered>,
    sought: bool,
) -> Result<&'d mut Discovered, LoadError> {
    let age = discovered.as_ref().and_then(|known| known.at);
    let age = age.map(|at| at.elapsed());
    let fresh = age.is_some_and(|age| age < DISCOVERY_LIFETIME);
    if !fresh || (sought && age.is_some_and(|age| age >= REDISCOVER_AFTER)) {
        match fetcher.get(target).await {
            Ok(document) => {
                let keys = jwks_uri(&document.body, issuer).inspect_err(|_| {
                    // Not to be followed any further, however young it is.
                    if let Some(known) = discovered.as_mut() {
                        known.at = None;
                    }
                })?;
                // Kept over failures, so that no move is unseen.
                let was = discovered
                    .take()
                    .and_then(|known| known.was.or((known.keys != keys).then_some(known.keys)));
                let was = was.filter(|was| *was != keys);
                let at = Some(Instant::now());
                *discovered = Some(Discovered { keys, at, was });
            }
            Err(_) if fresh => {}
            Err(error) => return Err(error.into()),
        }
    }
    // There is one by now: whoever comes here without has just made it.
    discovered
        .as_mut()
        .ok_or(LoadError::Discovery("it was not asked for"))
}

/// The `jwks_uri` of a discovery document (OpenID Connect Discovery 1.0 sections 3 and 4.3).
pub(super) fn jwks_uri(body: &[u8], issuer: &str) -> Result<Target, LoadError> {
    let document =
        json::parse_object(body).map_err(|()| LoadError::Discovery("is no strict JSON object"))?;
    let text = |name| document::member(&document, name).and_then(document::text);
    if text("issuer").is_none_or(|named| &**named != issuer) {
        return Err(LoadError::Issuer);
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
