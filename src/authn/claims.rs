//! What a token's claims must say, and what they make of its bearer.
//!
//! The checks run before the signature is verified, since that is the costly step; nothing of
//! their outcome is believed until it was.

use std::collections::BTreeSet;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, SystemTime};

use super::code::{self, Refused, refused};
use super::jws;
use super::{Identity, Told};
use crate::document::{self, Value};

/// Longest subject, client, scope or role, in bytes.
pub(super) const MAX_NAME: usize = 1024;

/// So many names are compared with each other.
const FEW_NAMES: usize = 8;

/// Latest date that is one: the end of the year 9999. Later ones are milliseconds taken for
/// seconds, or an attempt at "never".
const LATEST: f64 = 253_402_300_799.0;

/// Claims that only ID tokens carry: hashes of what was issued beside them
/// (OpenID Connect Core 1.0 sections 3.1.3.6 and 3.3.2.11).
const ID_TOKEN_ONLY: [&str; 3] = ["at_hash", "c_hash", "s_hash"];

/// Where in the claims the facts about a caller are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Mapping {
    pub(super) subject: String,
    /// `client_id`, then `azp`, unless given.
    pub(super) client: Option<String>,
    pub(super) scopes: String,
    pub(super) roles: Option<String>,
    pub(super) session: String,
    pub(super) version: Option<String>,
}

/// The rules of one issuer's tokens.
#[derive(Debug)]
pub(super) struct Rules {
    /// The issuer's block.
    pub(super) source: Arc<str>,
    /// `iss`, byte for byte.
    pub(super) issuer: Arc<str>,
    pub(super) audiences: Vec<String>,
    pub(super) leeway: Duration,
    pub(super) max_age: Option<Duration>,
    pub(super) required: Vec<String>,
    pub(super) mapping: Mapping,
}

/// When a token is good, and for whom.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Terms {
    /// Leeway included.
    pub(super) valid_from: SystemTime,
    /// Leeway included; the maximum age too.
    pub(super) valid_until: SystemTime,
    expires_at: SystemTime,
    issued_at: Option<SystemTime>,
    /// SHA-256 of the certificate it is bound to (RFC 8705 section 3.1), lower-case hex.
    pub(super) certificate: Option<String>,
}

impl Rules {
    /// Judges everything that needs no key.
    ///
    /// # Errors
    /// The first rule that is broken.
    pub(super) fn check(&self, claims: &Value, now: SystemTime) -> Result<Terms, Refused> {
        self.check_audience(claims)?;
        let terms = self.terms(claims)?;
        if now >= terms.expires_at + self.leeway {
            return Err(refused(code::EXPIRED, "`exp` has passed"));
        }
        if now < terms.valid_from {
            return Err(refused(
                code::NOT_YET_VALID,
                "`nbf` or `iat` lies in the future",
            ));
        }
        if now >= terms.valid_until {
            return Err(refused(code::TOO_OLD, "it is older than `max_age`"));
        }
        check_kind(claims)?;
        for name in &self.required {
            if document::claim(claims, name).is_none_or(|value| *value == Value::Null) {
                return Err(refused(
                    code::CLAIMS,
                    format!("the required claim `{name}` is missing"),
                ));
            }
        }
        self.subject(claims)?;
        Ok(terms)
    }

    /// Makes the identity of a token whose signature was verified.
    ///
    /// # Errors
    /// A claim that the mapping names has the wrong type.
    pub(super) fn identity(
        &self,
        claims: Value,
        terms: &Terms,
        key_id: Option<Arc<str>>,
    ) -> Result<Identity, Refused> {
        let client = match &self.mapping.client {
            Some(path) => name_at(&claims, path)?,
            None => match name_at(&claims, "client_id")? {
                None => name_at(&claims, "azp")?,
                named => named,
            },
        };
        let facts = Facts {
            method: "jwt",
            issuer: Arc::clone(&self.issuer),
            source: Arc::clone(&self.source),
            subject: self.subject(&claims)?,
            client,
            scopes: names_at(&claims, &self.mapping.scopes, Text::Split)?,
            roles: match &self.mapping.roles {
                Some(path) => names_at(&claims, path, Text::Whole)?,
                None => Vec::new(),
            },
            token_id: name_at(&claims, "jti")?,
            key_id,
            session: name_at(&claims, &self.mapping.session)?,
            version: match &self.mapping.version {
                Some(path) => number_at(&claims, path)?,
                None => None,
            },
            issued_at: terms.issued_at,
            expires_at: terms.expires_at,
            valid_until: terms.valid_until,
            claims,
        };
        Ok(facts.seal())
    }

    fn subject(&self, claims: &Value) -> Result<Arc<str>, Refused> {
        document::claim(claims, &self.mapping.subject)
            .and_then(document::text)
            .filter(|text| is_name(text))
            .map(Arc::clone)
            .ok_or_else(|| {
                refused(
                    code::SUBJECT,
                    "the subject is missing, empty, too long or no plain text",
                )
            })
    }

    /// `aud` is a string or an array of strings, and one of them is ours, byte for byte.
    fn check_audience(&self, claims: &Value) -> Result<(), Refused> {
        let wrong = |what| Err(refused(code::AUDIENCE, what));
        let ours = |text: &Arc<str>| self.audiences.iter().any(|ours| **ours == **text);
        match document::member(claims, "aud") {
            None => wrong("there is no `aud`"),
            Some(value) => {
                let named = match (document::text(value), document::items(value)) {
                    (Some(text), _) => ours(text),
                    (None, Some(items)) => {
                        let texts: Option<Vec<_>> = items.iter().map(document::text).collect();
                        match texts {
                            Some(texts) => texts.into_iter().any(ours),
                            None => return wrong("`aud` holds something else than strings"),
                        }
                    }
                    (None, None) => return wrong("`aud` is no string and no array"),
                };
                if named {
                    Ok(())
                } else {
                    wrong("`aud` does not name us")
                }
            }
        }
    }

    fn terms(&self, claims: &Value) -> Result<Terms, Refused> {
        let expires_at =
            date(claims, "exp")?.ok_or_else(|| refused(code::CLAIMS, "there is no `exp`"))?;
        let not_before = date(claims, "nbf")?;
        let issued_at = date(claims, "iat")?;
        let mut valid_until = expires_at + self.leeway;
        if let Some(max_age) = self.max_age {
            let issued_at = issued_at
                .ok_or_else(|| refused(code::CLAIMS, "there is no `iat` to judge its age by"))?;
            valid_until = valid_until.min(issued_at + max_age + self.leeway);
        }
        let from = not_before.max(issued_at).unwrap_or(SystemTime::UNIX_EPOCH);
        Ok(Terms {
            valid_from: from.checked_sub(self.leeway).unwrap_or(from),
            valid_until,
            expires_at,
            issued_at,
            certificate: confirmation(claims)?,
        })
    }
}

/// Everything an identity is made of.
pub(super) struct Facts {
    pub(super) method: &'static str,
    pub(super) issuer: Arc<str>,
    pub(super) source: Arc<str>,
    pub(super) subject: Arc<str>,
    pub(super) client: Option<Arc<str>>,
    pub(super) scopes: Vec<Arc<str>>,
    pub(super) roles: Vec<Arc<str>>,
    pub(super) claims: Value,
    pub(super) token_id: Option<Arc<str>>,
    pub(super) key_id: Option<Arc<str>>,
    pub(super) session: Option<Arc<str>>,
    pub(super) version: Option<u64>,
    pub(super) issued_at: Option<SystemTime>,
    pub(super) expires_at: SystemTime,
    pub(super) valid_until: SystemTime,
}

impl Facts {
    /// Makes the identity.
    pub(super) fn seal(self) -> Identity {
        let id: Arc<str> = stable_id(&self.issuer, &self.subject).into();
        Identity {
            method: self.method,
            issuer: self.issuer,
            source: self.source,
            subject: self.subject,
            id,
            client: self.client,
            scopes: self.scopes,
            roles: self.roles,
            claims: self.claims,
            token_id: self.token_id,
            key_id: self.key_id,
            session: self.session,
            version: self.version,
            issued_at: self.issued_at,
            expires_at: self.expires_at,
            valid_until: self.valid_until,
            revocation: super::memo::Memo::default(),
            counted_as: OnceLock::new(),
            told: Told::default(),
            document: OnceLock::new(),
            _seal: super::Seal,
        }
    }
}

/// The identity's part of the policy input.
pub(super) fn document(identity: &Identity) -> Value {
    let names =
        |names: &[Arc<str>]| Value::from(names.iter().map(document::string).collect::<Vec<_>>());
    let optional = |name: &Option<Arc<str>>| name.as_ref().map_or(Value::Null, document::string);
    // In the order of their names, which is what an object is built from fastest.
    document::object([
        ("claims", identity.claims.clone()),
        ("client", optional(&identity.client)),
        ("expires_at", rfc3339(identity.expires_at)),
        ("id", document::string(&identity.id)),
        ("issued_at", identity.issued_at.map_or(Value::Null, rfc3339)),
        ("issuer", document::string(&identity.issuer)),
        ("method", Value::from(identity.method)),
        ("roles", names(&identity.roles)),
        ("scopes", names(&identity.scopes)),
        ("source", document::string(&identity.source)),
        ("subject", document::string(&identity.subject)),
        ("token_id", optional(&identity.token_id)),
    ])
}

/// A name for a subject that no other issuer's subject can have: `issuer|subject`, with `|` and
/// `%` in the issuer escaped so that the first bar is always the border.
fn stable_id(issuer: &str, subject: &str) -> String {
    let issuer = issuer.replace('%', "%25").replace('|', "%7C");
    format!("{issuer}|{subject}")
}

/// A time as text for policies.
fn rfc3339(at: SystemTime) -> Value {
    use time::format_description::well_known::Rfc3339;
    time::OffsetDateTime::from(at)
        .format(&Rfc3339)
        .map_or(Value::Null, Value::from)
}

/// Non-empty text of bounded length without control characters: it goes into headers, logs and
/// keys of counters.
pub(super) fn is_name(text: &str) -> bool {
    !text.is_empty() && text.len() <= MAX_NAME && !text.chars().any(char::is_control)
}

fn name_at(claims: &Value, path: &str) -> Result<Option<Arc<str>>, Refused> {
    match document::claim(claims, path) {
        None | Some(Value::Null) => Ok(None),
        Some(value) => match document::text(value) {
            Some(text) if is_name(text) => Ok(Some(Arc::clone(text))),
            _ => Err(refused(
                code::CLAIMS,
                format!("the claim `{path}` is no plain text"),
            )),
        },
    }
}

/// A whole number that is not negative. Of another type it is an error, never "absent".
fn number_at(claims: &Value, path: &str) -> Result<Option<u64>, Refused> {
    match document::claim(claims, path) {
        None | Some(Value::Null) => Ok(None),
        Some(value) => value.as_u64().map(Some).map_err(|_| {
            refused(
                code::CLAIMS,
                format!("the claim `{path}` is no whole number from 0"),
            )
        }),
    }
}

/// How a claim that is a single string reads as a list.
#[derive(Clone, Copy)]
enum Text {
    /// Words with spaces between (RFC 6749 section 3.3).
    Split,
    /// One name.
    Whole,
}

fn names_at(claims: &Value, path: &str, text: Text) -> Result<Vec<Arc<str>>, Refused> {
    let wrong = || {
        refused(
            code::CLAIMS,
            format!("the claim `{path}` is no text and no list of texts"),
        )
    };
    let Some(value) = document::claim(claims, path) else {
        return Ok(Vec::new());
    };
    let names: Vec<Arc<str>> = match (value, document::text(value), document::items(value)) {
        (Value::Null, _, _) => Vec::new(),
        (_, Some(whole), _) => match text {
            Text::Split => whole
                .split(' ')
                .filter(|word| !word.is_empty())
                .map(Arc::from)
                .collect(),
            Text::Whole => vec![Arc::clone(whole)],
        },
        (_, None, Some(items)) => items
            .iter()
            .map(|item| document::text(item).map(Arc::clone))
            .collect::<Option<_>>()
            .ok_or_else(wrong)?,
        (_, None, None) => return Err(wrong()),
    };
    if !names.iter().all(|name| is_name(name)) {
        return Err(wrong());
    }
    Ok(once_each(names))
}

/// These names, each at its first place.
fn once_each(mut names: Vec<Arc<str>>) -> Vec<Arc<str>> {
    // Among a few, comparing all is cheaper than a tree; among many, somebody could make it costly.
    if names.len() <= FEW_NAMES {
        for nth in (1..names.len()).rev() {
            let (before, rest) = names.split_at(nth);
            if rest.first().is_some_and(|name| before.contains(name)) {
                names.remove(nth);
            }
        }
        return names;
    }
    let mut seen = BTreeSet::new();
    names.retain(|name| seen.insert(Arc::clone(name)));
    names
}

/// A NumericDate (RFC 7519 section 2): a finite number, maybe with a fraction, from 1970 to 9999.
/// Present with another type is an error, never "absent" (CVE-2026-25537).
pub(super) fn date(claims: &Value, name: &str) -> Result<Option<SystemTime>, Refused> {
    match document::member(claims, name) {
        None => Ok(None),
        Some(value) => value
            .as_f64()
            .ok()
            .filter(|seconds| (0.0..=LATEST).contains(seconds))
            .map(|seconds| Some(SystemTime::UNIX_EPOCH + Duration::from_secs_f64(seconds)))
            .ok_or_else(|| {
                refused(
                    code::CLAIMS,
                    format!("`{name}` is no date in seconds since 1970"),
                )
            }),
    }
}

/// Tokens made for something else, under whatever `typ` they come. An access token may carry
/// `nonce`; together with neither a scope nor a client it is an ID token's.
fn check_kind(claims: &Value) -> Result<(), Refused> {
    let has = |name: &str| document::member(claims, name).is_some();
    let text = |name: &str| document::member(claims, name).and_then(document::text);
    let id_token = ID_TOKEN_ONLY.into_iter().any(has)
        || (has("nonce") && !["scope", "scp", "client_id"].into_iter().any(has))
        // Keycloak and Cognito say what a token is for in a claim of their own.
        || text("typ").is_some_and(|kind| {
            ["id", "refresh", "offline", "logout"].contains(&kind.to_ascii_lowercase().as_str())
        })
        || text("token_use").is_some_and(|usage| &**usage == "id");
    if id_token {
        return Err(refused(code::KIND, "it is an ID or refresh token"));
    }
    if has("events") {
        return Err(refused(code::KIND, "it is a security event token"));
    }
    Ok(())
}

/// What the token is bound to (RFC 7800). A binding that we cannot check is a refusal: ignoring it
/// would turn the token back into one that any thief can use.
fn confirmation(claims: &Value) -> Result<Option<String>, Refused> {
    let Some(cnf) = document::member(claims, "cnf") else {
        return Ok(None);
    };
    let unproven = || {
        refused(
            code::CONFIRMATION,
            "`cnf` asks for a proof that the gateway cannot check",
        )
    };
    let members = cnf.as_object().map_err(|_| unproven())?;
    let certificate = document::member(cnf, "x5t#S256").and_then(document::text);
    match certificate {
        Some(digest) if members.len() == 1 => jws::decode(digest)
            .filter(|digest| digest.len() == 32)
            .map(|digest| Some(hex(&digest)))
            .ok_or_else(unproven),
        _ => Err(unproven()),
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
impl Terms {
    /// Terms of a token that is good until then.
    pub(super) fn until(valid_until: SystemTime) -> Self {
        Self {
            valid_from: SystemTime::UNIX_EPOCH,
            valid_until,
            expires_at: valid_until,
            issued_at: None,
            certificate: None,
        }
    }
}

/// The words of a claim, for identities of tests.
#[cfg(test)]
pub(super) fn words(claims: &Value, path: &str) -> Vec<Arc<str>> {
    names_at(claims, path, Text::Split).unwrap()
}
