//! Who is calling. Each method looks for its own credential; the first that finds one decides.
//! Nothing here knows about permissions, and no token is ever kept or logged.
//!
//! Bearer tokens are read from the one `Authorization` header only: in a query or a body they end
//! up in logs (RFC 9700 section 4.3.2). Several `Authorization` headers are refused on every route.
//! On a route without issuers a bearer token is nobody's credential: it is not judged and opens
//! nothing. Another scheme than Bearer counts as no credential.
//!
//! Every refusal has a stable code:
//!
//! | code | meaning |
//! | --- | --- |
//! | `token.malformed` | no compact JWS of three canonical parts with strict JSON; also a JWE |
//! | `token.size` | longer than the issuer allows |
//! | `token.header` | `crit`, `b64`, `zip`, `jku`, `jwk`, `x5u`, `x5c`, a nested token, an odd `kid` |
//! | `token.algorithm` | `alg` is not in the issuer's list |
//! | `token.type` | `typ` is not accepted |
//! | `token.kind` | an ID token, a refresh token or a security event |
//! | `token.issuer` | no issuer of the route has this `iss` |
//! | `token.audience` | not meant for us |
//! | `token.expired` | `exp` has passed |
//! | `token.not_yet_valid` | `nbf` or `iat` lies in the future |
//! | `token.too_old` | older than `max_age` |
//! | `token.claims` | a claim is missing or has the wrong type |
//! | `token.subject` | no subject, or one that is no plain text |
//! | `token.unknown_key` | the issuer has no such key, or the token leaves open which |
//! | `token.key_distrusted` | an operator distrusts the key |
//! | `token.key_mismatch` | the key is not for the token's algorithm |
//! | `token.signature` | the signature is wrong |
//! | `token.confirmation` | bound to a key or certificate that was not proven |
//! | `certificate.expired` | the certificate is not valid now |
//! | `certificate.subject` | the certificate has no name of the configured kind |
//!
//! Where the standards leave a choice about tokens, this is ours:
//!
//! | token | what we do |
//! | --- | --- |
//! | `typ` is `JWT`, or absent | refused, unless `token_types` lists `JWT`, or `allow_missing_type` is set |
//! | no `kid` | accepted when exactly one key of the issuer fits its algorithm |
//! | a `kid`, and a set that names none of its keys | likewise |
//! | ECDSA with a high `s` | accepted: valid by FIPS 186-5; nothing of ours tells tokens apart by signature |
//! | `b64`, with or without `crit`; `cty` of a nested token | refused |
//! | `exp` just past | accepted within `leeway`, at most until `exp + leeway` |
//! | `exp` beyond any date (milliseconds, 10^30, `1e308`) | refused |
//! | no `iat`, or a very old one | accepted, unless `max_age` is set |
//! | `iat` in the future beyond `leeway` | refused |
//! | no `sub`, or an empty one | refused |
//! | `scope` as a list of strings, or with several blanks | accepted; any other type is refused |
//! | an ID token (`nonce`, `at_hash`, …) as access token | refused |
//! | `cnf` with a member that we cannot prove | refused |
//! | many claims | accepted up to the issuer's `max_token_size` |

mod algorithm;
mod book;
mod cache;
mod claims;
pub mod client_certificate;
mod code;
mod compile;
mod config;
mod demand;
mod json;
pub mod jwks;
mod jws;
pub mod jwt;
mod kept;
mod keys;
pub mod memo;
mod recent;
pub mod sealed;
mod source;
pub mod statement;
pub mod supposed;
#[cfg(test)]
pub(crate) mod testing;

use std::sync::{Arc, OnceLock};
use std::time::SystemTime;

use http::header::{AUTHORIZATION, HeaderValue};

use crate::document::Value;
use crate::request::{InboundRequest, Lines};
use crate::schema::{Compile, Named};

use client_certificate::ClientCertificate;
pub use recent::Recent;

/// The word for nobody in particular, in routes.
const ANONYMOUS: &str = "anonymous";

/// A checked credential. Only the methods of this room make one.
#[derive(Debug)]
pub struct Identity {
    /// `jwt` or `client_certificate`.
    pub method: &'static str,
    /// The issuer: a URL for tokens, the issuing distinguished name for certificates.
    pub issuer: Arc<str>,
    /// The name of the issuer's block in the configuration, or `client_certificate`.
    pub source: Arc<str>,
    /// The subject, unique within the issuer.
    pub subject: Arc<str>,
    /// A stable name that no other issuer's subject can have: `issuer|subject`.
    pub id: Arc<str>,
    /// The client that acts: `client_id` or `azp`.
    pub client: Option<Arc<str>>,
    /// Scopes granted to the token.
    pub scopes: Vec<Arc<str>>,
    /// Roles, by the issuer's claim mapping.
    pub roles: Vec<Arc<str>>,
    /// All claims of the token; certificate facts for certificates.
    pub claims: Value,
    /// The token's id (`jti`), or the certificate's serial.
    pub token_id: Option<Arc<str>>,
    /// The key that signed it (`kid`).
    pub key_id: Option<Arc<str>>,
    /// The login session it belongs to (`sid`).
    pub session: Option<Arc<str>>,
    /// The version of the subject's tokens, by the issuer's claim mapping.
    pub version: Option<u64>,
    /// When it was issued.
    pub issued_at: Option<SystemTime>,
    /// When it ends. Leeway is not included.
    pub expires_at: SystemTime,
    /// Until when it is accepted: its end and its maximum age, with the leeway.
    pub valid_until: SystemTime,
    /// What `revocation` remembers of it.
    pub revocation: memo::Memo,
    /// What `limit` counts it as where it counts by subject: a keyed hash.
    pub counted_as: OnceLock<u64>,
    /// What is told of it.
    pub told: Told,
    document: OnceLock<Value>,
    _seal: Seal,
}

impl Identity {
    /// Its part of the policy input, built when it is first asked for; see `authz::input`.
    pub fn document(&self) -> &Value {
        self.document.get_or_init(|| claims::document(self))
    }
}

/// What is told of an identity, the same for all of its requests: memos, each written at its first use
/// by the room that it is for.
#[derive(Debug, Default)]
pub struct Told {
    /// To upstreams, with the configuration of identity headers by which it was written.
    pub upstream: OnceLock<(u64, Lines)>,
    /// In records.
    pub record: OnceLock<Box<[u8]>>,
    /// In what records tell of a policy's input: its document.
    pub input: OnceLock<Box<[u8]>>,
}

/// Keeps other rooms from making an [`Identity`].
#[derive(Debug)]
struct Seal;

/// Who the request is from.
#[derive(Debug, Clone)]
pub enum Caller {
    /// Nobody in particular; only where the route lists `anonymous`.
    Anonymous,
    /// A verified identity.
    Known(Arc<Identity>),
}

impl Caller {
    /// The identity, unless anonymous.
    pub fn identity(&self) -> Option<&Arc<Identity>> {
        match self {
            Self::Anonymous => None,
            Self::Known(identity) => Some(identity),
        }
    }
}

/// What one method says about a request.
#[derive(Debug)]
pub enum Attempt {
    /// Its credential is not there.
    NotPresented,
    /// Its credential is good.
    Verified(Arc<Identity>),
    /// Its credential is there and bad: no other method is asked.
    Refused(Failure),
}

/// Why authentication failed.
#[derive(Debug, Clone, thiserror::Error)]
pub enum Failure {
    /// No method of the route found its credential.
    #[error("no credential was presented")]
    Missing,
    /// A credential was presented and refused. The reason is for the record only.
    #[error("the credential was refused: {reason}")]
    Rejected {
        /// A stable code for records and metrics: `token.expired`, `token.signature`.
        code: &'static str,
        /// The detail, for the record. Holds nothing of the token but its registered names.
        reason: String,
        /// The issuer's block, when it was recognised.
        issuer: Option<Arc<str>>,
    },
    /// The credential cannot be judged now: the issuer's keys are not there.
    #[error("the keys of issuer {source_name} are not available")]
    Unavailable {
        /// The issuer's block.
        source_name: Arc<str>,
    },
    /// Two credentials of different kinds on one request.
    #[error("the request carries several credentials")]
    Confused,
}

/// The methods of a route, in the order of the file.
#[derive(Debug, Clone)]
pub struct Chain {
    methods: Vec<Method>,
}

/// One way to prove who one is.
#[derive(Debug, Clone)]
pub enum Method {
    /// Bearer JWTs of one or several issuers.
    Jwt(Arc<jwt::Jwt>),
    /// The verified client certificate of the connection.
    ClientCertificate(Arc<ClientCertificate>),
    /// Nobody in particular.
    Anonymous,
}

impl Chain {
    /// Looks up a route's methods: names of issuers, `client_certificate`, `anonymous`. An empty
    /// list, an unknown name, or anything behind `anonymous` is a problem at the current place.
    /// All issuers of a route stand where the first of them does: the token says whose it is.
    pub fn compile(
        names: &[String],
        issuers: &Named<Arc<jwt::Issuer>>,
        certificates: &Arc<ClientCertificate>,
        cx: &mut Compile,
    ) -> Option<Self> {
        let errors = cx.errors();
        if names.is_empty() {
            cx.problem_help(
                "the route does not say who may come",
                "list issuers or `client_certificate`, or write `[anonymous]` for an open route",
            );
        }
        let mut order = Vec::new();
        let mut trusted: Vec<Arc<jwt::Issuer>> = Vec::new();
        for (index, name) in names.iter().enumerate() {
            cx.at(format!("[{index}]"), |cx| {
                if names.iter().take(index).any(|earlier| earlier == ANONYMOUS) {
                    cx.problem_help(
                        "nothing is asked behind `anonymous`",
                        "make `anonymous` the last of the list",
                    );
                }
                if names.iter().take(index).any(|earlier| earlier == name) {
                    cx.problem_help(format!("`{name}` is listed twice"), "remove one of them");
                }
                match (name.as_str(), issuers.get(name)) {
                    (ANONYMOUS, _) => order.push(Some(Method::Anonymous)),
                    (client_certificate::NAME, _) => {
                        order.push(Some(Method::ClientCertificate(Arc::clone(certificates))));
                    }
                    (_, Some(issuer)) => {
                        if trusted
                            .iter()
                            .any(|other| other.issuer() == issuer.issuer())
                        {
                            cx.problem_help(
                                "two issuers of the route have the same `issuer`",
                                "a token could not be told which rules it is under: list one",
                            );
                        }
                        if trusted.is_empty() {
                            order.push(None);
                        }
                        trusted.push(Arc::clone(issuer));
                    }
                    (unknown, None) => unknown_method(unknown, issuers, cx),
                }
            });
        }
        if cx.errors() > errors {
            return None;
        }
        let jwt = Arc::new(jwt::Jwt::new(trusted));
        let methods = order
            .into_iter()
            .map(|method| method.unwrap_or_else(|| Method::Jwt(Arc::clone(&jwt))));
        let mut methods: Vec<_> = methods.collect();
        methods.shrink_to_fit();
        Some(Self { methods })
    }

    /// Whether a bearer token can open the route, so that a 401 says so (RFC 6750 section 3).
    pub fn takes_bearer(&self) -> bool {
        self.methods
            .iter()
            .any(|method| matches!(method, Method::Jwt(_)))
    }

    /// Asks the methods in order. The first that finds its credential decides: a bad credential is
    /// a refusal, never a reason to try the next method.
    ///
    /// Cancel safe.
    ///
    /// # Errors
    /// [`Failure`], whose face to the client `refusal` chooses.
    pub async fn authenticate(
        &self,
        recent: &Recent,
        request: &InboundRequest,
    ) -> Result<Caller, Failure> {
        // Which of several an upstream would read is anybody's guess, so this holds for every route.
        let Ok(field) = request.single(&AUTHORIZATION) else {
            return Err(Failure::Confused);
        };
        let field = field.map(HeaderValue::as_bytes);
        for method in &self.methods {
            let attempt = match method {
                Method::Jwt(jwt) => match field {
                    None => Attempt::NotPresented,
                    Some(field) => match jwt.remembered(field, request, recent) {
                        Some(attempt) => attempt,
                        None => bearer_attempt(jwt, field, request, recent).await,
                    },
                },
                Method::ClientCertificate(certificate) => certificate.attempt(request),
                Method::Anonymous => return Ok(Caller::Anonymous),
            };
            match attempt {
                Attempt::NotPresented => {}
                Attempt::Verified(identity) => return Ok(Caller::Known(identity)),
                Attempt::Refused(failure) => return Err(failure),
            }
        }
        Err(Failure::Missing)
    }

    /// The caller, if this very credential was verified before and still holds. Verifies nothing
    /// new, so it costs whoever guesses nothing to ask and tells them nothing.
    pub fn recall(&self, request: &InboundRequest) -> Option<Caller> {
        let field = request.single(&AUTHORIZATION).ok()?;
        let field = field.map(HeaderValue::as_bytes);
        for method in &self.methods {
            match method {
                Method::Jwt(jwt) => match field.map_or(Bearer::Absent, bearer) {
                    Bearer::Absent => {}
                    Bearer::Malformed(_) => return None,
                    Bearer::Token(token) => return jwt.recall(token, request).map(Caller::Known),
                },
                Method::ClientCertificate(certificate) => match certificate.attempt(request) {
                    Attempt::NotPresented => {}
                    Attempt::Verified(identity) => return Some(Caller::Known(identity)),
                    Attempt::Refused(_) => return None,
                },
                Method::Anonymous => return Some(Caller::Anonymous),
            }
        }
        None
    }
}

fn unknown_method(name: &str, issuers: &Named<Arc<jwt::Issuer>>, cx: &mut Compile) {
    let known: Vec<&str> = issuers
        .keys()
        .map(String::as_str)
        .chain([client_certificate::NAME, ANONYMOUS])
        .collect();
    let near = known
        .iter()
        .map(|known| (strsim::damerau_levenshtein(known, name), *known))
        .min()
        .filter(|(distance, _)| *distance <= 3);
    let help = near.map_or_else(
        || format!("known are {}", known.join(", ")),
        |(_, near)| format!("did you mean `{near}`?"),
    );
    cx.problem_help(format!("there is no issuer `{name}`"), help);
}

async fn bearer_attempt(
    jwt: &jwt::Jwt,
    field: &[u8],
    request: &InboundRequest,
    recent: &Recent,
) -> Attempt {
    match bearer(field) {
        Bearer::Absent => Attempt::NotPresented,
        Bearer::Malformed(what) => {
            Attempt::Refused(code::refused(code::MALFORMED, what).from(None))
        }
        Bearer::Token(token) => jwt.attempt(token, field, request, recent).await,
    }
}

/// What the `Authorization` header holds for us.
enum Bearer<'r> {
    /// No field, or another scheme.
    Absent,
    /// The Bearer scheme without exactly one token.
    Malformed(&'static str),
    /// The token.
    Token(&'r str),
}

/// Whether only bytes of RFC 9110's `token68` are there. Without a way out early, so that many bytes
/// are looked at in one step.
fn is_token68(token: &[u8]) -> bool {
    let odd = |odd: bool, &b: &u8| {
        let letter = (b | 0x20).wrapping_sub(b'a') < 26;
        let digit = b.wrapping_sub(b'0') < 10;
        // `-`, `.` and `/`; the others one by one.
        let mark =
            (b'-'..=b'/').contains(&b) | (b == b'_') | (b == b'~') | (b == b'+') | (b == b'=');
        odd | !(letter | digit | mark)
    };
    !token.is_empty() && !token.iter().fold(false, odd)
}

/// Reads `Bearer <token68>` (RFC 6750 section 2.1): the scheme without case, one space, one token.
fn bearer(value: &[u8]) -> Bearer<'_> {
    const SCHEME: &[u8] = b"bearer";
    let scheme = value
        .iter()
        .take_while(|byte| !matches!(byte, b' ' | b'\t' | b','))
        .count();
    let (scheme, rest) = value.split_at(scheme);
    if !scheme.eq_ignore_ascii_case(SCHEME) {
        return Bearer::Absent;
    }
    let token = rest.strip_prefix(b" ").filter(|token| is_token68(token));
    match token.map(std::str::from_utf8) {
        Some(Ok(token)) => Bearer::Token(token),
        Some(Err(_)) | None => Bearer::Malformed("Bearer without exactly one token"),
    }
}

#[cfg(test)]
#[path = "chain_tests.rs"]
mod tests;

#[cfg(test)]
#[path = "wycheproof_tests.rs"]
mod wycheproof_tests;
