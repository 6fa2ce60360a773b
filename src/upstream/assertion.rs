//! The signed assertion: a short-lived JWT (ES256) that tells an upstream who was allowed what, by
//! which policy, in which request; and the key set to verify it with.
//!
//! It is made anew for each request, because it is bound to it. Signing costs about 20 µs.

use std::borrow::Cow;
use std::path::PathBuf;
use std::sync::Arc;

use aws_lc_rs::digest::{SHA256, digest};
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD as BASE64;
use http::header::{self, HeaderName, HeaderValue};
use http::{Method, Response, StatusCode};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{PrivateKeyDer, SubjectPublicKeyInfoDer};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::authn::Caller;
use crate::authz::{DecidedBy, Edits};
use crate::body::{self, Body};
use crate::clock::unix_seconds;
use crate::document::Value;
use crate::request::InboundRequest;
use crate::schema::{Compile, Span};

/// Where the key set is served.
pub const JWKS_PATH: &str = "/.well-known/portcullis/jwks.json";
/// The `typ` of an assertion, so that it can be taken for no other token (RFC 8725 section 3.11).
pub const ASSERTION_TYPE: &str = "portcullis-assertion+jwt";
/// Longest lifetime of an assertion.
const MAX_LIFETIME: Span = Span::seconds(300);
/// Largest assertion; a larger one leaves out the lists and says so.
const MAX_ASSERTION: usize = 8 * 1024;
/// How long upstreams may keep the key set.
const CACHE_CONTROL: &str = "public, max-age=300";
/// Most keys that are published beside the current one.
const MAX_PREVIOUS_KEYS: usize = 8;
/// What stands before the point in the DER form of a P-256 public key (RFC 5480).
const P256_PREFIX: [u8; 26] = [
    0x30, 0x59, 0x30, 0x13, 0x06, 0x07, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01, 0x06, 0x08, 0x2a,
    0x86, 0x48, 0xce, 0x3d, 0x03, 0x01, 0x07, 0x03, 0x42, 0x00,
];

/// A signed statement about the caller and the decision, for upstreams to verify.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct AssertionConfig {
    /// The header that carries it. Default `x-portcullis-assertion`.
    #[serde(default = "default_header")]
    pub header: String,
    /// `iss`: who signs, usually the gateway's own URL.
    pub issuer: String,
    /// `aud`. Default: the upstream's name, so that one service cannot show it to another.
    #[serde(default)]
    pub audience: Option<String>,
    /// How long it is good: 1 second to 5 minutes. Default `30s`.
    #[serde(default = "default_lifetime")]
    pub lifetime: Span,
    /// PEM file with the EC P-256 private key. Default: one is made at start and kept over reloads;
    /// then replicas sign with different keys.
    #[serde(default)]
    pub key: Option<PathBuf>,
    /// PEM files with earlier keys, private or public, that are still published so that what they
    /// signed stays verifiable. The key in force before a reload is published without being listed.
    #[serde(default)]
    pub previous_keys: Vec<PathBuf>,
}

fn default_header() -> String {
    "x-portcullis-assertion".to_owned()
}

fn default_lifetime() -> Span {
    Span::seconds(30)
}

impl AssertionConfig {
    /// Compiles the block, taking over what `previous` generated or signed with.
    pub(super) fn compile(
        &self,
        header: HeaderName,
        previous: Option<&Assertion>,
        cx: &mut Compile,
    ) -> Option<Assertion> {
        let errors = cx.errors();
        if self.issuer.is_empty() || self.issuer.chars().any(char::is_control) {
            cx.at("issuer", |cx| {
                cx.problem_help("is empty", "name the gateway's own URL");
            });
        }
        if self.lifetime < Span::seconds(1) || self.lifetime > MAX_LIFETIME {
            cx.at("lifetime", |cx| {
                cx.problem_help(
                    format!("{} is not from 1s to {MAX_LIFETIME}", self.lifetime),
                    "an assertion is for one request; a long one is a token to steal",
                );
            });
        }
        let signer = cx.at("key", |cx| self.signer(previous, cx));
        let mut retired = self.previous(cx);
        let signer = signer?;
        if let Some(previous) = previous {
            // A rotation without overlap would break what is under way, and what upstreams cached.
            let carried = std::iter::once(&previous.signer.public).chain(&previous.retired);
            for key in carried {
                if retired.len() < MAX_PREVIOUS_KEYS && !retired.contains(key) {
                    retired.push(key.clone());
                }
            }
        }
        retired.retain(|key| *key != signer.public);
        if cx.errors() > errors {
            return None;
        }
        let keys: Vec<serde_json::Value> = std::iter::once(&signer.public)
            .chain(&retired)
            .map(PublicKey::jwk)
            .collect();
        let jwks = serde_json::json!({ "keys": keys }).to_string();
        let protected = serde_json::json!({
            "alg": "ES256",
            "kid": signer.public.thumbprint(),
            "typ": ASSERTION_TYPE,
        });
        Some(Assertion {
            header,
            issuer: self.issuer.clone(),
            audience: self.audience.clone(),
            lifetime: self.lifetime.get().as_secs(),
            protected: BASE64.encode(protected.to_string()),
            signer,
            retired,
            jwks: jwks.into(),
        })
    }

    fn signer(&self, previous: Option<&Assertion>, cx: &mut Compile) -> Option<Arc<Signer>> {
        let before = previous.map(|previous| &previous.signer);
        let Some(file) = &self.key else {
            if let Some(before) = before.filter(|before| before.generated) {
                return Some(Arc::clone(before));
            }
            cx.warning(
                "is not set: a key is made at start",
                "set it when there is more than one replica, or a restart must not change it",
            );
            let Ok(pair) = EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING) else {
                cx.problem("a key cannot be made");
                return None;
            };
            return Signer::new(pair, true).map(Arc::new);
        };
        let pem = zeroize::Zeroizing::new(cx.read(file)?);
        let signer = key_pair(&pem).and_then(|pair| Signer::new(pair, false));
        let Some(signer) = signer else {
            cx.problem_help(
                format!("{} holds no EC P-256 private key", file.display()),
                "make one: openssl genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-256",
            );
            return None;
        };
        match before {
            Some(before) if before.public == signer.public && !before.generated => {
                Some(Arc::clone(before))
            }
            Some(_) | None => Some(Arc::new(signer)),
        }
    }

    fn previous(&self, cx: &mut Compile) -> Vec<PublicKey> {
        let mut keys = Vec::new();
        cx.at("previous_keys", |cx| {
            if self.previous_keys.len() > MAX_PREVIOUS_KEYS {
                cx.problem(format!("lists more than {MAX_PREVIOUS_KEYS} keys"));
            }
            for (index, file) in self.previous_keys.iter().enumerate() {
                cx.at(format!("[{index}]"), |cx| {
                    let Some(pem) = cx.read(file).map(zeroize::Zeroizing::new) else {
                        return;
                    };
                    match public_key(&pem) {
                        Some(key) => keys.push(key),
                        None => {
                            cx.problem(format!("{} holds no EC P-256 key", file.display()));
                        }
                    }
                });
            }
        });
        keys
    }
}

fn key_pair(pem: &[u8]) -> Option<EcdsaKeyPair> {
    let der = PrivateKeyDer::from_pem_slice(pem).ok()?;
    EcdsaKeyPair::from_private_key_der(&ECDSA_P256_SHA256_FIXED_SIGNING, der.secret_der()).ok()
}

fn public_key(pem: &[u8]) -> Option<PublicKey> {
    if let Some(pair) = key_pair(pem) {
        return PublicKey::new(pair.public_key().as_ref());
    }
    let der = SubjectPublicKeyInfoDer::from_pem_slice(pem).ok()?;
    PublicKey::new(der.as_ref().strip_prefix(&P256_PREFIX)?)
}

/// A point on P-256.
#[derive(Debug, Clone, PartialEq, Eq)]
struct PublicKey {
    x: [u8; 32],
    y: [u8; 32],
}

impl PublicKey {
    /// From the uncompressed form of SEC 1 section 2.3.3.
    fn new(point: &[u8]) -> Option<Self> {
        let (x, y) = point.strip_prefix(&[4])?.split_first_chunk::<32>()?;
        Some(Self {
            x: *x,
            y: y.try_into().ok()?,
        })
    }

    /// RFC 7638 section 3.2: the required members, in order, without white space.
    fn thumbprint(&self) -> String {
        let canonical = format!(
            r#"{{"crv":"P-256","kty":"EC","x":"{}","y":"{}"}}"#,
            BASE64.encode(self.x),
            BASE64.encode(self.y)
        );
        BASE64.encode(digest(&SHA256, canonical.as_bytes()))
    }

    fn jwk(&self) -> serde_json::Value {
        serde_json::json!({
            "kty": "EC",
            "crv": "P-256",
            "x": BASE64.encode(self.x),
            "y": BASE64.encode(self.y),
            "kid": self.thumbprint(),
            "alg": "ES256",
            "use": "sig",
        })
    }
}

#[derive(Debug)]
struct Signer {
    pair: EcdsaKeyPair,
    public: PublicKey,
    generated: bool,
}

impl Signer {
    fn new(pair: EcdsaKeyPair, generated: bool) -> Option<Self> {
        let public = PublicKey::new(pair.public_key().as_ref())?;
        Some(Self {
            pair,
            public,
            generated,
        })
    }
}

/// Signs assertions and publishes the keys to verify them.
#[derive(Debug)]
pub(super) struct Assertion {
    /// The header that carries it.
    pub(super) header: HeaderName,
    issuer: String,
    audience: Option<String>,
    lifetime: u64,
    protected: String,
    signer: Arc<Signer>,
    retired: Vec<PublicKey>,
    jwks: Arc<str>,
}

/// What an assertion states.
#[derive(Debug)]
pub(super) struct Statement<'a> {
    pub(super) upstream: &'a str,
    pub(super) request: &'a InboundRequest,
    pub(super) caller: &'a Caller,
    /// The policy's `identity` object.
    pub(super) policy: Option<&'a Value>,
    pub(super) decided_by: &'a DecidedBy,
    pub(super) decision_id: &'a str,
    /// What the policy changes of the request.
    pub(super) edits: Option<&'a Edits>,
    pub(super) route: &'a str,
}

#[derive(Serialize)]
struct Claims<'a> {
    iss: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    sub: Option<&'a str>,
    aud: &'a str,
    iat: u64,
    exp: u64,
    jti: String,
    caller: CallerClaims<'a>,
    decision: DecisionClaims<'a>,
    request: RequestClaims<'a>,
    #[serde(skip_serializing_if = "Option::is_none")]
    attributes: Option<&'a Value>,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    truncated: bool,
}

#[derive(Serialize)]
struct CallerClaims<'a> {
    method: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    issuer: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    subject: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    id: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    client: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    scopes: Option<&'a [Arc<str>]>,
    #[serde(skip_serializing_if = "Option::is_none")]
    roles: Option<&'a [Arc<str>]>,
}

#[derive(Serialize)]
struct DecisionClaims<'a> {
    id: &'a str,
    policy: &'a str,
    revision: &'a str,
    route: &'a str,
}

#[derive(Serialize)]
struct RequestClaims<'a> {
    id: &'a str,
    method: &'a str,
    host: String,
    path: &'a str,
    /// As it is forwarded, where a policy has edited it.
    #[serde(skip_serializing_if = "Option::is_none")]
    query: Option<Cow<'a, str>>,
}

impl Assertion {
    /// Whether both sign with the same key and publish the same ones.
    pub(super) fn same_keys(&self, other: &Self) -> bool {
        let published = |key: &PublicKey| self.retired.contains(key);
        // `other` also publishes what `self` signed with, which is then its own key.
        Arc::ptr_eq(&self.signer, &other.signer)
            && self.retired.len() == other.retired.len()
            && other.retired.iter().all(published)
    }

    /// The key set, for `GET` and `HEAD` of [`JWKS_PATH`]; `None` for everything else.
    pub(super) fn well_known(&self, request: &InboundRequest) -> Option<Response<Body>> {
        if request.path.as_str() != JWKS_PATH {
            return None;
        }
        let mut response = Response::new(body::empty());
        let headers = response.headers_mut();
        if request.method != Method::GET && request.method != Method::HEAD {
            headers.insert(header::ALLOW, HeaderValue::from_static("GET, HEAD"));
            *response.status_mut() = StatusCode::METHOD_NOT_ALLOWED;
            return Some(response);
        }
        let json = HeaderValue::from_static("application/jwk-set+json");
        headers.insert(header::CONTENT_TYPE, json);
        let cache = HeaderValue::from_static(CACHE_CONTROL);
        headers.insert(header::CACHE_CONTROL, cache);
        headers.insert(header::CONTENT_LENGTH, self.jwks.len().into());
        if request.method == Method::GET {
            *response.body_mut() = body::full(self.jwks.as_bytes().to_vec());
        }
        Some(response)
    }

    /// The signed assertion; `None` only if signing fails, so that the header is absent and the
    /// upstream refuses.
    pub(super) fn sign(&self, statement: &Statement<'_>) -> Option<HeaderValue> {
        let whole = self.sign_claims(&self.claims(statement, false))?;
        let token = if whole.len() > MAX_ASSERTION {
            self.sign_claims(&self.claims(statement, true))?
        } else {
            whole
        };
        let mut value = HeaderValue::try_from(token).ok()?;
        // It grants access: never in a log, never in HPACK's dynamic table.
        value.set_sensitive(true);
        Some(value)
    }

    fn sign_claims(&self, claims: &Claims<'_>) -> Option<String> {
        let payload = serde_json::to_vec(claims).ok()?;
        let mut token = String::with_capacity(self.protected.len() + payload.len() * 4 / 3 + 96);
        token.push_str(&self.protected);
        token.push('.');
        BASE64.encode_string(payload, &mut token);
        let signature = self
            .signer
            .pair
            .sign(&SystemRandom::new(), token.as_bytes())
            .ok()?;
        token.push('.');
        BASE64.encode_string(signature, &mut token);
        Some(token)
    }

    fn claims<'a>(&'a self, statement: &Statement<'a>, truncated: bool) -> Claims<'a> {
        let request = statement.request;
        let identity = statement.caller.identity();
        let issued = unix_seconds(request.received_at);
        // The statement is about the credential: it does not outlive it.
        let ends = identity.map_or(u64::MAX, |identity| unix_seconds(identity.expires_at));
        let exp = (issued + self.lifetime).min(ends.max(issued + 1));
        let subject = identity.map(|identity| &*identity.subject);
        let lists = identity.filter(|_| !truncated);
        Claims {
            iss: &self.issuer,
            sub: subject,
            aud: self.audience.as_deref().unwrap_or(statement.upstream),
            iat: issued,
            exp,
            jti: format!("{:032x}", rand::random::<u128>()),
            caller: CallerClaims {
                method: identity.map_or("anonymous", |identity| identity.method),
                issuer: identity.map(|identity| &*identity.issuer),
                subject,
                id: identity.map(|identity| &*identity.id),
                client: identity.and_then(|identity| identity.client.as_deref()),
                scopes: lists.map(|identity| identity.scopes.as_slice()),
                roles: lists.map(|identity| identity.roles.as_slice()),
            },
            decision: DecisionClaims {
                id: statement.decision_id,
                policy: &statement.decided_by.policy,
                revision: &statement.decided_by.revision,
                route: statement.route,
            },
            request: RequestClaims {
                id: request.id.as_str(),
                method: request.method.as_str(),
                host: request.host.to_string(),
                path: request.path.as_str(),
                query: statement
                    .edits
                    .filter(|edits| edits.has_query())
                    .map(|edits| edits.query(request.query.as_deref()).unwrap_or_default()),
            },
            attributes: statement.policy.filter(|_| !truncated),
            truncated,
        }
    }
}
