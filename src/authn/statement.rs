//! What an issuer says to the gateway itself: logout tokens and security events. Not credentials.
//!
//! They come as signed JWTs like access tokens, under the same keys, and must never be taken for one,
//! nor an access token for one of them: then whoever holds the one could do what the other is for.
//! Three walls stand between. An access token's `typ` is one of `token_types` and it holds no
//! `events`; a statement's `typ` is exactly the one of its kind; and a statement holds `events`,
//! which whoever asked for it reads next.
//!
//! The order is that of access tokens: form, header, claims, and the costly signature last.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use super::algorithm::{self, Algorithm};
use super::claims::{date, is_name};
use super::code::{self, Refused, refused};
use super::jwks::NoKey;
use super::jws::{self, Jws};
use super::jwt::{Issuer, IssuerConfig, KeysConfig, RefreshConfig};
use super::{Failure, config, json};
use crate::document::{self, Value};
use crate::schema::Compile;

pub use super::jwt::SignatureAlgorithm;

/// The most characters that a `jti` may have: it is remembered.
pub const MAX_TOKEN_ID: usize = 256;

/// What a statement must look like to be one of its kind.
#[derive(Debug, Clone)]
pub struct Kind {
    /// The header's `typ`, in lower case and without `application/`.
    pub token_type: &'static str,
    /// Whether `JWT`, or no `typ` at all, is accepted beside it.
    pub allow_plain: bool,
    /// Audiences that mean us: a statement must name one of them, byte for byte.
    pub audiences: Vec<String>,
    /// How long ago it may have been made.
    pub max_age: Duration,
    /// Whether it must say when it ends. When it says so, that always counts.
    pub needs_expiry: bool,
    /// Claims that it must not hold.
    pub forbidden: &'static [&'static str],
    /// The most bytes that it may have.
    pub max_size: usize,
}

/// What a configured issuer has said, to us, lately. Only [`Issuer::statement`] makes one.
#[derive(Debug)]
pub struct Statement {
    /// All of it.
    pub claims: Value,
    /// `jti`.
    pub token_id: Arc<str>,
    /// `iat`.
    pub issued_at: SystemTime,
    /// The key that signed it (`kid`).
    pub key_id: Option<Arc<str>>,
    _seal: Seal,
}

/// Keeps other rooms from making a [`Statement`].
#[derive(Debug)]
struct Seal;

/// Someone whose statements are believed though their tokens open nothing: its name for itself, and
/// where its keys come from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Transmitter {
    /// `iss`, byte for byte.
    pub issuer: String,
    /// Where its keys come from.
    pub keys: KeysConfig,
    /// The algorithms it signs with.
    pub algorithms: Vec<SignatureAlgorithm>,
    /// Who vouches for the server that keys are fetched from.
    pub authorities: Vec<std::path::PathBuf>,
    /// How often keys are fetched.
    pub refresh: RefreshConfig,
}

impl Transmitter {
    /// Compiles it to an issuer that no route can name. `audiences` are those of its statements.
    pub fn compile(
        self,
        name: &str,
        audiences: &[String],
        previous: Option<&Arc<Issuer>>,
        cx: &mut Compile,
    ) -> Option<Arc<Issuer>> {
        let config = IssuerConfig {
            keys: self.keys,
            audiences: audiences.to_vec(),
            algorithms: self.algorithms,
            authorities: self.authorities,
            refresh: self.refresh,
            ..config::statements_only(self.issuer)
        };
        config.compile(name, previous, cx)
    }
}

impl Issuer {
    /// Whether anything it signs could be verified as a statement: a shared secret proves nothing to
    /// a third party, and who may verify with it may also sign.
    pub fn makes_statements(&self) -> bool {
        self.judge()
            .algorithms
            .iter()
            .any(|algorithm| !algorithm.is_symmetric())
    }

    /// Judges a text that is said to be this issuer's statement of this kind.
    ///
    /// Cancel safe.
    ///
    /// # Errors
    /// [`Failure::Rejected`], or [`Failure::Unavailable`] while there are no keys to judge it by.
    pub async fn statement(
        &self,
        text: &str,
        kind: &Kind,
        now: SystemTime,
    ) -> Result<Statement, Failure> {
        let refuse = |refused: Refused| refused.from(Some(self.name()));
        if text.len() > kind.max_size {
            return Err(refuse(refused(code::SIZE, "it is longer than allowed")));
        }
        let jws = Jws::parse(text).map_err(refuse)?;
        let algorithm = self.statement_header(&jws, kind).map_err(refuse)?;
        let claims = json::parse_object(&jws.payload).map_err(|()| {
            refuse(refused(
                code::MALFORMED,
                "the payload is not a strict JSON object",
            ))
        })?;
        let statement = self.statement_claims(claims, kind, now).map_err(refuse)?;
        let key = match self.keys().key(jws.key_id.as_ref(), algorithm).await {
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
            Err(_) => {
                let what = "the issuer has no such key, or the token leaves open which";
                return Err(refuse(refused(code::UNKNOWN_KEY, what)));
            }
        };
        if algorithm::verify(algorithm, &key.material, &jws) {
            Ok(Statement {
                key_id: key.id.clone(),
                ..statement
            })
        } else {
            Err(refuse(refused(code::SIGNATURE, "the signature is wrong")))
        }
    }

    fn statement_header(&self, jws: &Jws<'_>, kind: &Kind) -> Result<Algorithm, Refused> {
        let algorithm = Algorithm::from_name(&jws.algorithm)
            .filter(|algorithm| self.judge().algorithms.contains(algorithm))
            .filter(|algorithm| !algorithm.is_symmetric())
            .ok_or_else(|| {
                refused(
                    code::ALGORITHM,
                    "`alg` is not in the issuer's list, or symmetric",
                )
            })?;
        let accepted = match &jws.token_type {
            None => kind.allow_plain,
            Some(token_type) => {
                let token_type = jws::media_type(token_type);
                token_type == kind.token_type || (kind.allow_plain && token_type == "jwt")
            }
        };
        if accepted {
            Ok(algorithm)
        } else {
            Err(refused(
                code::TYPE,
                format!("`typ` is not `{}`", kind.token_type),
            ))
        }
    }

    fn statement_claims(
        &self,
        claims: Value,
        kind: &Kind,
        now: SystemTime,
    ) -> Result<Statement, Refused> {
        let text = |name: &str| document::member(&claims, name).and_then(document::text);
        if text("iss").is_none_or(|named| **named != **self.issuer()) {
            return Err(refused(code::ISSUER, "`iss` is not the configured issuer"));
        }
        if !names_us(&claims, &kind.audiences) {
            return Err(refused(code::AUDIENCE, "`aud` does not name us"));
        }
        let leeway = self.judge().rules.leeway;
        let issued_at =
            date(&claims, "iat")?.ok_or_else(|| refused(code::CLAIMS, "there is no `iat`"))?;
        let begins = date(&claims, "nbf")?.map_or(issued_at, |nbf| nbf.max(issued_at));
        if begins > now + leeway {
            return Err(refused(
                code::NOT_YET_VALID,
                "`nbf` or `iat` lies in the future",
            ));
        }
        match date(&claims, "exp")? {
            Some(end) if now >= end + leeway => {
                return Err(refused(code::EXPIRED, "`exp` has passed"));
            }
            None if kind.needs_expiry => {
                return Err(refused(code::CLAIMS, "there is no `exp`"));
            }
            Some(_) | None => {}
        }
        if now >= issued_at + kind.max_age + leeway {
            return Err(refused(code::TOO_OLD, "it was made too long ago"));
        }
        if let Some(name) = kind
            .forbidden
            .iter()
            .find(|name| document::member(&claims, name).is_some())
        {
            return Err(refused(code::KIND, format!("it holds `{name}`")));
        }
        let token_id = text("jti")
            .filter(|id| is_name(id) && id.len() <= MAX_TOKEN_ID)
            .map(Arc::clone)
            .ok_or_else(|| refused(code::CLAIMS, "there is no `jti` that could be remembered"))?;
        if document::member(&claims, "events").is_none_or(|events| events.as_object().is_err()) {
            return Err(refused(code::KIND, "there is no object `events`"));
        }
        Ok(Statement {
            claims,
            token_id,
            issued_at,
            key_id: None,
            _seal: Seal,
        })
    }
}

/// `aud` is a string or an array of strings, and one of them is ours, byte for byte.
fn names_us(claims: &Value, audiences: &[String]) -> bool {
    let ours = |text: &Arc<str>| audiences.iter().any(|ours| **ours == **text);
    let Some(named) = document::member(claims, "aud") else {
        return false;
    };
    match (document::text(named), document::items(named)) {
        (Some(text), _) => ours(text),
        (None, Some(items)) => {
            let texts: Option<Vec<_>> = items.iter().map(document::text).collect();
            texts.is_some_and(|texts| texts.into_iter().any(ours))
        }
        (None, None) => false,
    }
}

#[cfg(test)]
#[path = "statement_tests.rs"]
mod tests;
