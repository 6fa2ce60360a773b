//! Bearer JWTs: whose token it is, under which rules, with which key. Never fetches.
//!
//! The order is: size, look-up of tokens verified before, form, issuer (`iss`, byte for byte, among
//! the issuers of the route), header rules, claims, key (by `kid`, within that issuer), signature.
//! The signature comes last because it is the costly step that an attacker would make us repeat.

use std::sync::Arc;
use std::time::SystemTime;

use aws_lc_rs::digest::{SHA256, digest};

use super::algorithm::{self, Algorithm};
use super::cache::{Digest, Entry, TokenCache};
use super::claims::{Rules, Terms};
use super::code::{self, Refused, refused};
use super::compile::Inputs;
use super::jwks::{KeyPage, KeyStatus, KeyStore, NoKey, NotJudged};
use super::jws::Jws;
use super::recent::Recent;
use super::{Attempt, Failure, Identity, json};
use crate::document::{self, Value};
use crate::metrics::Metrics;
use crate::request::InboundRequest;

pub use super::algorithm::Algorithm as SignatureAlgorithm;
pub use super::book::{Distrust, KeyName, Origin};
pub use super::config::{
    CacheConfig, ClaimsConfig, IssuerConfig, KeysConfig, LastKnownGoodConfig, RefreshConfig,
};

/// Bearer JWTs of one or several issuers.
#[derive(Debug)]
pub struct Jwt {
    issuers: Vec<Arc<Issuer>>,
}

/// One trusted issuer: its rules, its keys, its verified tokens.
#[derive(Debug)]
pub struct Issuer {
    config: IssuerConfig,
    inputs: Inputs,
    judge: Judge,
    keys: Arc<KeyStore>,
    cache: TokenCache,
    metrics: Arc<Metrics>,
}

/// The rules of one issuer's tokens.
#[derive(Debug)]
pub(super) struct Judge {
    pub(super) rules: Rules,
    pub(super) algorithms: Vec<Algorithm>,
    /// In the form of `jws::media_type`.
    pub(super) token_types: Vec<String>,
    pub(super) allow_missing_type: bool,
    pub(super) max_token_size: usize,
}

impl Issuer {
    pub(super) const fn new(
        config: IssuerConfig,
        inputs: Inputs,
        judge: Judge,
        keys: Arc<KeyStore>,
        cache: TokenCache,
        metrics: Arc<Metrics>,
    ) -> Self {
        Self {
            config,
            inputs,
            judge,
            keys,
            cache,
            metrics,
        }
    }

    /// The name of its block.
    pub fn name(&self) -> &Arc<str> {
        &self.judge.rules.source
    }

    /// The `iss` of its tokens.
    pub fn issuer(&self) -> &Arc<str> {
        &self.judge.rules.issuer
    }

    /// Starts fetching keys on the control thread; ends when the issuer is dropped.
    pub fn activate(self: &Arc<Self>, control: &tokio::runtime::Handle) {
        self.keys.activate(control);
    }

    /// `Err` with the reason while tokens of this issuer cannot be judged.
    ///
    /// # Errors
    /// A sentence for the readiness page.
    pub fn ready(&self) -> Result<(), String> {
        let status = self.keys.status();
        if let Some(why) = status.unread {
            return Err(format!(
                "issuer {}: keys may be distrusted that nobody knows of: {why}: mend it or take it away",
                self.name()
            ));
        }
        if status.keys > 0 {
            return Ok(());
        }
        let why = match status.last_error {
            Some(error) => error,
            None if status.distrusted > 0 && status.attempts > 0 => {
                "all of them are distrusted".to_owned()
            }
            None => "they have not been fetched yet".to_owned(),
        };
        Err(format!("issuer {} has no keys: {why}", self.name()))
    }

    /// What is known of its keys, for the admin page.
    pub fn status(&self) -> KeyStatus {
        self.keys.status()
    }

    /// Every key of it, for the admin page.
    pub fn key_page(&self) -> KeyPage {
        self.keys.page()
    }

    /// Believes the keys of this name no more: from when this returns, no token passes that one of them
    /// has signed, and open streams are being judged again. Returns the entries, old and new;
    /// [`Issuer::keep_keys`] puts them on disk.
    ///
    /// # Errors
    /// [`NotJudged`]; then nothing has changed.
    pub fn distrust(&self, key: &KeyName) -> Result<Vec<Distrust>, NotJudged> {
        self.keys.distrust(key)
    }

    /// Believes the keys of this name again, if the issuer publishes them. Returns what was lifted.
    ///
    /// # Errors
    /// [`NotJudged::Secret`].
    pub fn trust(&self, key: &KeyName) -> Result<Vec<Distrust>, NotJudged> {
        self.keys.trust(key)
    }

    /// Puts what is distrusted on disk; whether it is there, or none when no file is configured. Waits
    /// for the disk for a bounded time.
    pub async fn keep_keys(&self) -> Option<bool> {
        self.keys.keep_now().await
    }

    /// Whether it was compiled from exactly this.
    pub(super) fn is_of(&self, config: &IssuerConfig, inputs: &Inputs) -> bool {
        self.config == *config && self.inputs == *inputs
    }

    /// Whether its keys are those of this configuration.
    pub(super) fn has_keys_of(&self, config: &IssuerConfig, inputs: &Inputs) -> bool {
        self.config.same_keys(config) && self.inputs == *inputs
    }

    /// Whether its keys come from where this configuration has them from.
    pub(super) fn has_source_of(&self, config: &IssuerConfig, inputs: &Inputs) -> bool {
        self.config.same_source(config) && self.inputs == *inputs
    }

    pub(super) fn keys(&self) -> Arc<KeyStore> {
        Arc::clone(&self.keys)
    }

    pub(super) const fn judge(&self) -> &Judge {
        &self.judge
    }

    fn cached(&self, digest: &Digest, now: SystemTime) -> Option<Arc<Entry>> {
        self.cache
            .get(digest, now, |fingerprint| self.keys.holds(fingerprint))
    }
    /// Whether a token that was verified before is still as good as verified: its key is among the
    /// issuer's, its own terms hold, and it has not been remembered for too long.
    pub(super) fn believes(&self, entry: &Entry, now: SystemTime) -> bool {
        entry.lasts(now) && self.keys.holds(&entry.key)
    }

    async fn verify(
        &self,
        token: &Presented<'_>,
        jws: Jws<'_>,
        claims: Value,
        request: &InboundRequest,
    ) -> Result<Arc<Entry>, Failure> {
        let now = request.received_at;
        let refuse = |refused: Refused| refused.from(Some(self.name()));
        let algorithm = self.judge.header(&jws).map_err(refuse)?;
        let terms = self.judge.rules.check(&claims, now).map_err(refuse)?;
        let key = self
            .keys
            .key_for(jws.key_id.as_ref(), algorithm, request.client)
            .await;
        let key = match key {
            Ok(key) => key,
            Err(NoKey::Unavailable) => {
                return Err(Failure::Unavailable {
                    source_name: Arc::clone(self.name()),
                });
            }
            Err(NoKey::Mismatch) => {
                let what = "the key is not for the token's algorithm";
                return Err(refuse(refused(code::KEY_MISMATCH, what)));
            }
            Err(NoKey::Ambiguous) => {
                let what = "the token names no key and several fit";
                return Err(refuse(refused(code::UNKNOWN_KEY, what)));
            }
            Err(NoKey::Distrusted) => {
                let what = "the key is distrusted";
                return Err(refuse(refused(code::KEY_DISTRUSTED, what)));
            }
            Err(NoKey::Unknown) => {
                let what = "the issuer has no such key";
                return Err(refuse(refused(code::UNKNOWN_KEY, what)));
            }
        };
        let wrong = || refuse(refused(code::SIGNATURE, "the signature is wrong"));
        if self.cache.is_refused(&token.digest, &key.fingerprint) {
            self.metrics.token_cache(self.name(), "refused");
            return Err(wrong());
        }
        self.metrics.token_cache(self.name(), "miss");
        if !algorithm::verify(algorithm, &key.material, &jws) {
            self.cache.refuse(token.digest, key.fingerprint);
            return Err(wrong());
        }
        let identity = self
            .judge
            .rules
            .identity(claims, &terms, key.id.clone())
            .map_err(refuse)?;
        Ok(self.cache.keep(
            token.digest,
            Arc::new(identity),
            terms,
            key.fingerprint,
            token.text.len(),
            now,
        ))
    }
}

impl Judge {
    /// Judges the header; the algorithm is one of the list or none.
    pub(super) fn header(&self, jws: &Jws<'_>) -> Result<Algorithm, Refused> {
        let algorithm = Algorithm::from_name(&jws.algorithm)
            .filter(|algorithm| self.algorithms.contains(algorithm))
            .ok_or_else(|| refused(code::ALGORITHM, "`alg` is not in the issuer's list"))?;
        let accepted = match &jws.token_type {
            None => self.allow_missing_type,
            Some(token_type) => {
                let token_type = super::jws::media_type(token_type);
                self.token_types.contains(&token_type)
            }
        };
        if accepted {
            Ok(algorithm)
        } else {
            Err(refused(
                code::TYPE,
                "`typ` is not one the issuer's block accepts",
            ))
        }
    }
}

/// A token that was found good.
struct Judged {
    issuer: Arc<Issuer>,
    entry: Arc<Entry>,
    /// Whether it was verified before.
    known: bool,
}

/// A token as it came.
struct Presented<'t> {
    text: &'t str,
    digest: Digest,
}

impl Jwt {
    /// Tokens of these issuers. No two of them have the same `iss`.
    pub(super) const fn new(issuers: Vec<Arc<Issuer>>) -> Self {
        Self { issuers }
    }

    /// Judges the token of an `Authorization` field for a request.
    ///
    /// Cancel safe.
    pub(super) async fn attempt(
        &self,
        token: &str,
        field: &[u8],
        request: &InboundRequest,
        recent: &Recent,
    ) -> Attempt {
        match self.judge(token, request).await {
            Ok(Judged {
                issuer,
                entry,
                known,
            }) => {
                // Not at first sight: tokens that are used once would push out those that are used
                // again, and their copies cost more than the look-up they save.
                if known {
                    recent.keep(field, &issuer, &entry);
                }
                verdict(&entry, request)
            }
            Err(failure) => Attempt::Refused(failure),
        }
    }

    /// What is to be said of this very field, if it was verified on this worker a while ago.
    pub(super) fn remembered(
        &self,
        field: &[u8],
        request: &InboundRequest,
        recent: &Recent,
    ) -> Option<Attempt> {
        let (issuer, entry) = recent.get(field, &self.issuers, request.received_at)?;
        issuer.metrics.token_cache(issuer.name(), "hit");
        Some(verdict(&entry, request))
    }

    /// The identity of a token that was verified before and still holds.
    pub(super) fn recall(&self, token: &str, request: &InboundRequest) -> Option<Arc<Identity>> {
        let digest = sha256(token.as_bytes());
        let entry = self
            .issuers
            .iter()
            .find_map(|issuer| issuer.cached(&digest, request.received_at))?;
        confirm(&entry.terms, request).ok()?;
        Some(Arc::clone(&entry.identity))
    }

    async fn judge(&self, token: &str, request: &InboundRequest) -> Result<Judged, Failure> {
        let now = request.received_at;
        let largest = self
            .issuers
            .iter()
            .map(|issuer| issuer.judge.max_token_size);
        if token.len() > largest.max().unwrap_or(0) {
            return Err(refused(code::SIZE, "it is longer than any issuer allows").from(None));
        }
        let token = Presented {
            text: token,
            digest: sha256(token.as_bytes()),
        };
        for issuer in &self.issuers {
            if let Some(entry) = issuer.cached(&token.digest, now) {
                issuer.metrics.token_cache(issuer.name(), "hit");
                return Ok(Judged {
                    issuer: Arc::clone(issuer),
                    entry,
                    known: true,
                });
            }
        }
        let jws = Jws::parse(token.text).map_err(|refused| refused.from(None))?;
        let claims = json::parse_object(&jws.payload).map_err(|()| {
            refused(code::MALFORMED, "the payload is not a strict JSON object").from(None)
        })?;
        let issuer = self.named_by(&claims)?;
        if token.text.len() > issuer.judge.max_token_size {
            let refused = refused(code::SIZE, "it is longer than the issuer allows");
            return Err(refused.from(Some(issuer.name())));
        }
        Ok(Judged {
            issuer: Arc::clone(issuer),
            entry: issuer.verify(&token, jws, claims, request).await?,
            known: false,
        })
    }
}

impl Jwt {
    pub(super) fn issuers(&self) -> &[Arc<Issuer>] {
        &self.issuers
    }

    /// The issuer that `iss` names, byte for byte.
    pub(super) fn named_by(&self, claims: &Value) -> Result<&Arc<Issuer>, Failure> {
        document::member(claims, "iss")
            .and_then(document::text)
            .and_then(|named| {
                self.issuers
                    .iter()
                    .find(|issuer| **issuer.issuer() == **named)
            })
            .ok_or_else(|| refused(code::ISSUER, "`iss` names no issuer of the route").from(None))
    }
}

/// A verified token is good for a request that proves what the token is bound to.
fn verdict(entry: &Entry, request: &InboundRequest) -> Attempt {
    match confirm(&entry.terms, request) {
        Ok(()) => Attempt::Verified(Arc::clone(&entry.identity)),
        Err(refused) => Attempt::Refused(refused.from(Some(&entry.identity.source))),
    }
}

/// Whether the connection proves what the token is bound to (RFC 8705 section 3). Asked of every
/// request and never kept: the same token may come from another client.
pub(super) fn confirm(terms: &Terms, request: &InboundRequest) -> Result<(), Refused> {
    let Some(bound) = &terms.certificate else {
        return Ok(());
    };
    let shown = request
        .conn
        .tls
        .as_ref()
        .and_then(|tls| tls.peer_certificate.as_ref());
    if shown.is_some_and(|certificate| certificate.sha256 == *bound) {
        Ok(())
    } else {
        Err(refused(
            code::CONFIRMATION,
            "the token is bound to a certificate that the connection did not show",
        ))
    }
}

fn sha256(bytes: &[u8]) -> Digest {
    let mut out = Digest::default();
    out.copy_from_slice(digest(&SHA256, bytes).as_ref());
    out
}

#[cfg(test)]
#[path = "jwt_tests.rs"]
mod tests;
