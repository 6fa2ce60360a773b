//! Callers of whom nothing was proven: for tools that ask what a policy would say.
//!
//! The same rules about claims, the same mapping and the same order of methods as for a request, and
//! no signature: whoever asks the question may claim anything. A [`Supposed`] is not a [`Caller`], and
//! only `authz::opinion` looks into it, whose answers open nothing.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use super::code::{self, refused};
use super::jws::{self, Jws};
use super::jwt::{Issuer, Jwt, confirm};
use super::{Attempt, Caller, Chain, Failure, Identity, Method, client_certificate, json};
use crate::clock;
use crate::document::{self, Value};
use crate::request::InboundRequest;

/// How long a token lives of which nobody said when it ends.
const LIFE: Duration = Duration::from_secs(300);

/// What a caller is supposed to bring beside the certificate of the connection.
#[derive(Debug, Clone)]
pub enum Supposition {
    /// Nothing.
    Nothing,
    /// A token with these claims. `iss`, `aud` and `exp` are filled in where they are missing.
    Claims {
        /// The claims: an object.
        claims: Value,
        /// The issuer's block; by default the one that `iss` names, else the route's first.
        issuer: Option<String>,
    },
    /// A real token, whose signature nobody looks at.
    Token(String),
}

/// Who a request would be from, had its credential been verified.
#[derive(Debug)]
pub struct Supposed {
    caller: Caller,
    assumed: Vec<String>,
}

impl Supposed {
    /// Nobody in particular.
    fn anonymous() -> Self {
        Self {
            caller: Caller::Anonymous,
            assumed: Vec::new(),
        }
    }

    fn known(identity: Arc<Identity>, assumed: Vec<String>) -> Self {
        Self {
            caller: Caller::Known(identity),
            assumed,
        }
    }

    /// The identity, unless anonymous. Not to be kept, and no [`Caller`] can be made of it.
    pub fn identity(&self) -> Option<&Identity> {
        self.caller.identity().map(AsRef::as_ref)
    }

    /// What was filled in that nobody said.
    pub fn assumed(&self) -> &[String] {
        &self.assumed
    }

    /// The caller, for the room that answers questions and makes no permit of it.
    pub(crate) fn unproven(&self) -> &Caller {
        &self.caller
    }
}

impl Chain {
    /// Who the request would be from: [`Chain::authenticate`] without signatures and without waiting.
    ///
    /// # Errors
    /// [`Failure`], as for a request.
    pub fn suppose(
        &self,
        supposition: &Supposition,
        request: &InboundRequest,
    ) -> Result<Supposed, Failure> {
        for method in &self.methods {
            match method {
                Method::Jwt(jwt) => match supposition {
                    Supposition::Nothing => {}
                    Supposition::Claims { claims, issuer } => {
                        return jwt.suppose(claims, issuer.as_deref(), request);
                    }
                    Supposition::Token(token) => return jwt.suppose_token(token, request),
                },
                Method::ClientCertificate(certificate) => match certificate.attempt(request) {
                    Attempt::NotPresented => {}
                    Attempt::Verified(identity) => {
                        return Ok(Supposed::known(identity, Vec::new()));
                    }
                    Attempt::Refused(failure) => return Err(failure),
                },
                Method::Anonymous => return Ok(Supposed::anonymous()),
            }
        }
        Err(Failure::Missing)
    }

    /// What the route takes, in its order: names of issuers, `client_certificate`, `anonymous`.
    pub fn names(&self) -> Vec<Arc<str>> {
        let mut names = Vec::new();
        for method in &self.methods {
            match method {
                Method::Jwt(jwt) => {
                    names.extend(jwt.issuers().iter().map(|issuer| Arc::clone(issuer.name())));
                }
                Method::ClientCertificate(_) => names.push(client_certificate::NAME.into()),
                Method::Anonymous => names.push(super::ANONYMOUS.into()),
            }
        }
        names
    }
}

impl Jwt {
    fn suppose(
        &self,
        claims: &Value,
        named: Option<&str>,
        request: &InboundRequest,
    ) -> Result<Supposed, Failure> {
        let said = document::member(claims, "iss").and_then(document::text);
        let issuer = match (named, said) {
            (Some(named), _) => self.issuers().iter().find(|one| **one.name() == *named),
            (None, Some(said)) => self.issuers().iter().find(|one| **one.issuer() == **said),
            (None, None) => self.issuers().first(),
        };
        let issuer = issuer.ok_or_else(|| {
            refused(code::ISSUER, "the token is of no issuer of the route").from(None)
        })?;
        let (claims, assumed) = completed(claims, issuer, request.received_at);
        issuer.suppose(claims, None, assumed, request)
    }

    fn suppose_token(&self, token: &str, request: &InboundRequest) -> Result<Supposed, Failure> {
        let jws = Jws::parse(token).map_err(|refused| refused.from(None))?;
        let claims = json::parse_object(&jws.payload).map_err(|()| {
            refused(code::MALFORMED, "the payload is not a strict JSON object").from(None)
        })?;
        let issuer = self.named_by(&claims)?;
        issuer
            .judge()
            .header(&jws)
            .map_err(|refused| refused.from(Some(issuer.name())))?;
        issuer.suppose(claims, jws.key_id, Vec::new(), request)
    }
}

impl Issuer {
    fn suppose(
        &self,
        claims: Value,
        key_id: Option<Arc<str>>,
        assumed: Vec<String>,
        request: &InboundRequest,
    ) -> Result<Supposed, Failure> {
        let rules = &self.judge().rules;
        let judged = || {
            let terms = rules.check(&claims, request.received_at)?;
            confirm(&terms, request)?;
            rules.identity(claims.clone(), &terms, key_id.clone())
        };
        let identity = judged().map_err(|refused| refused.from(Some(self.name())))?;
        Ok(Supposed::known(Arc::new(identity), assumed))
    }
}

/// The claims with what every token of the issuer has, and what that is.
fn completed(claims: &Value, issuer: &Issuer, now: SystemTime) -> (Value, Vec<String>) {
    let mut members: Vec<(Value, Value)> = claims
        .as_object()
        .into_iter()
        .flat_map(|members| members.iter())
        .map(|(name, value)| (name.clone(), value.clone()))
        .collect();
    let rules = &issuer.judge().rules;
    let seconds = clock::unix_seconds(now);
    let standard = [
        ("iss", Some(document::string(issuer.issuer()))),
        (
            "aud",
            rules.audiences.first().map(|aud| Value::from(aud.as_str())),
        ),
        ("iat", rules.max_age.map(|_| Value::from(seconds))),
        ("exp", Some(Value::from(seconds + LIFE.as_secs()))),
    ];
    let mut assumed = Vec::new();
    for (name, value) in standard {
        if document::member(claims, name).is_none()
            && let Some(value) = value
        {
            assumed.push(name.to_owned());
            members.push((Value::from(name), value));
        }
    }
    (document::object(members), assumed)
}

/// A token with these claims that nobody signed, for policies that look at its parts.
pub fn unsigned_token(claims: &Value) -> String {
    let header = jws::encode(br#"{"alg":"none","typ":"at+jwt"}"#);
    let claims = claims.to_json_str().unwrap_or_default();
    format!("{header}.{}.unsigned", jws::encode(claims.as_bytes()))
}

#[cfg(test)]
#[path = "supposed_tests.rs"]
mod tests;
