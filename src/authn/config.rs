//! The `issuers` section: its shape and its defaults.

use std::path::PathBuf;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::algorithm::Algorithm;
use crate::schema::{SecretRef, Size, Span};

/// The `issuers` section's blocks: whose tokens are believed, and under which rules.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct IssuerConfig {
    /// The `iss` claim, byte for byte. With discovery: an https URL, or http on a loopback address.
    pub issuer: String,
    /// Where its keys come from.
    pub keys: KeysConfig,
    /// Audiences that mean us; a token must name one of them, byte for byte.
    pub audiences: Vec<String>,
    /// Accepted signature algorithms. HS* only with `keys.secret`, and then only HS*.
    pub algorithms: Vec<Algorithm>,
    /// Accepted values of the header `typ`, without case and without `application/`. Default:
    /// `at+jwt` (RFC 9068). `JWT` opens the door for tokens made for something else; ID tokens are
    /// recognised by their claims and refused all the same.
    #[serde(default = "access_tokens")]
    pub token_types: Vec<String>,
    /// Whether tokens without `typ` are accepted. Default: no.
    #[serde(default)]
    pub allow_missing_type: bool,
    /// How far the issuer's clock may differ from ours; at most `5m`. Default: `30s`.
    #[serde(default = "leeway")]
    pub leeway: Span,
    /// Longest time since `iat`, which is then required. Default: only `exp` counts.
    #[serde(default)]
    pub max_age: Option<Span>,
    /// Claims that must be there, by dotted path.
    #[serde(default)]
    pub required_claims: Vec<String>,
    /// Which claims say who the caller is.
    #[serde(default)]
    pub claims: ClaimsConfig,
    /// Files with the certificate authorities (PEM) that are trusted when keys are fetched.
    /// Default: the public web's.
    #[serde(default)]
    pub authorities: Vec<PathBuf>,
    /// How often keys are fetched and how long they are believed.
    #[serde(default)]
    pub refresh: RefreshConfig,
    /// How many verified tokens are remembered.
    #[serde(default)]
    pub cache: CacheConfig,
    /// Longest token, up to `64KiB`. Default: `8KiB`.
    #[serde(default = "max_token_size")]
    pub max_token_size: Size,
}

/// Where an issuer's keys come from: exactly one of these.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct KeysConfig {
    /// Ask the issuer at `/.well-known/openid-configuration`.
    #[serde(default)]
    pub discovery: bool,
    /// A JWK Set at this URL: https, or http on a loopback address.
    #[serde(default)]
    pub jwks_uri: Option<String>,
    /// A JWK Set in this file; read again when it changes.
    #[serde(default)]
    pub file: Option<PathBuf>,
    /// A secret shared with the issuer, for HS* only. At least as long as the hash.
    #[serde(default)]
    pub secret: Option<SecretRef>,
    /// Keep the last good set on disk, so that a gateway which starts while the issuer is away still
    /// believes it; only with `discovery` or `jwks_uri`. Default: not kept.
    #[serde(default)]
    pub last_known_good: Option<LastKnownGoodConfig>,
}

/// Where and for how long the last good key set is kept. The distrusted keys stand there too.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct LastKnownGoodConfig {
    /// The file, one for each issuer. Only the gateway's user may be able to write it and its folder,
    /// which is made when it is not there. The file holds public keys and nothing secret.
    pub file: PathBuf,
    /// How long the kept set is believed, from the last good fetch; at most `refresh.stale_limit`.
    /// Default: `24h`.
    #[serde(default = "keep")]
    pub keep: Span,
}

/// Which claims say who the caller is. A path is a claim's name, or names with dots between.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct ClaimsConfig {
    /// The subject: a string. Default: `sub`.
    pub subject: String,
    /// The client: a string. Default: `client_id`, else `azp`.
    pub client: Option<String>,
    /// The scopes: a string with spaces, or a list. Default: `scope`.
    pub scopes: String,
    /// The roles: a list, or a string that is one role. Default: none.
    pub roles: Option<String>,
    /// The login session, by which tokens can be revoked: a string. Default: `sid`.
    pub session: String,
    /// The version of the subject's tokens: a whole number. Where a least version is set for a
    /// subject, its tokens with a lower one, or without, are refused. Default: none.
    pub version: Option<String>,
}

/// How often keys are fetched and how long they are believed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct RefreshConfig {
    /// Longest time between fetches; the answer's cache headers may shorten it. Default: `10m`.
    pub interval: Span,
    /// Shortest time between scheduled fetches, whatever the headers say. Default: `30s`.
    pub minimum: Span,
    /// How long keys are believed while fetches fail; after that every token of the issuer is
    /// answered with 503. Default: `24h`.
    pub stale_limit: Span,
    /// How long one request waits for a key that is not there. Default: `500ms`, at most `5s`.
    pub wait: Span,
    /// Shortest time between a fetch for an unknown key that did not find it and the next.
    /// Default: `500ms`.
    pub cooldown: Span,
    /// Most fetches in any minute for unknown keys that are not found. While it is used up, a new key
    /// that was not published ahead of its use waits at most a minute divided by half of this. Fetches
    /// that do find new keys are not counted. Default: 12.
    pub budget: u32,
    /// How long a key is still believed after the issuer no longer publishes it, if it has a `kid` and
    /// no other key takes that. Also bridges an issuer whose replicas disagree for a while.
    /// Default: `0s`.
    pub retire: Span,
    /// Longest time for one fetch. Default: `10s`.
    pub timeout: Span,
    /// Largest document. Default: `256KiB`.
    pub max_size: Size,
}

/// How many verified tokens are remembered, so that the next request need not verify again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct CacheConfig {
    /// Most tokens; 0 switches it off. A full cache takes a token at its second use. Default: 10000.
    pub entries: u32,
    /// Most memory. Default: `64MiB`.
    pub memory: Size,
    /// Longest time that a result is kept; it also ends with its token, its key and the
    /// configuration. Default: `5m`.
    pub lifetime: Span,
}

impl Default for ClaimsConfig {
    fn default() -> Self {
        Self {
            subject: "sub".into(),
            client: None,
            scopes: "scope".into(),
            roles: None,
            session: "sid".into(),
            version: None,
        }
    }
}

impl Default for RefreshConfig {
    fn default() -> Self {
        Self {
            interval: Span::seconds(600),
            minimum: Span::seconds(30),
            stale_limit: Span::seconds(86_400),
            wait: Span::millis(500),
            cooldown: Span::millis(500),
            budget: 12,
            retire: Span::seconds(0),
            timeout: Span::seconds(10),
            max_size: Size::kib(256),
        }
    }
}

impl Default for CacheConfig {
    fn default() -> Self {
        Self {
            entries: 10_000,
            memory: Size::mib(64),
            lifetime: Span::seconds(300),
        }
    }
}

/// An issuer whose tokens open nothing: no type of token is accepted but that of statements, and no
/// route can name it.
pub(super) fn statements_only(issuer: String) -> IssuerConfig {
    IssuerConfig {
        issuer,
        keys: KeysConfig::default(),
        audiences: Vec::new(),
        algorithms: Vec::new(),
        token_types: vec!["secevent+jwt".into()],
        allow_missing_type: false,
        leeway: leeway(),
        max_age: None,
        required_claims: Vec::new(),
        claims: ClaimsConfig::default(),
        authorities: Vec::new(),
        refresh: RefreshConfig::default(),
        cache: CacheConfig {
            entries: 0,
            ..CacheConfig::default()
        },
        max_token_size: max_token_size(),
    }
}

fn access_tokens() -> Vec<String> {
    vec!["at+jwt".into()]
}

const fn keep() -> Span {
    Span::seconds(86_400)
}

const fn leeway() -> Span {
    Span::seconds(30)
}

const fn max_token_size() -> Size {
    Size::kib(8)
}
