//! What of the `revocation` section says whom we hear.

use std::path::PathBuf;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::authn::jwt::{KeysConfig, RefreshConfig};
use crate::authn::statement::SignatureAlgorithm;
use crate::schema::{SecretRef, Size, Span};
use crate::tls::client::ClientTlsConfig;

/// An end-point for OpenID Connect Back-Channel Logout 1.0: the issuer posts a logout token to it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct LogoutConfig {
    /// The path that is posted to, such as `/oidc/backchannel-logout`. It comes before all routes.
    pub path: String,
    /// The block under `issuers` whose logout tokens are taken, with its keys and its asymmetric
    /// algorithms.
    pub issuer: String,
    /// The client ids that mean us; a logout token's `aud` must name one of them, byte for byte.
    pub audiences: Vec<String>,
    /// The hosts under which it is served, byte for byte in lower case. Default: all.
    #[serde(default)]
    pub hosts: Vec<String>,
    /// The listeners on which it is served. Default: all.
    #[serde(default)]
    pub listeners: Vec<String>,
    /// Whether a `typ` of `JWT`, or none, is accepted beside `logout+jwt`, for issuers from before
    /// that type was given. Default: no.
    #[serde(default)]
    pub allow_plain_type: bool,
    /// Whether a logout token that names a session and a subject ends all of the subject's tokens,
    /// for issuers whose access tokens hold no `sid`. Default: no, the session alone.
    #[serde(default)]
    pub whole_subject: bool,
    /// How long ago a logout token may have been made, `1s` to `1h`. Default: `5m`.
    #[serde(default = "five_minutes")]
    pub max_age: Span,
}

/// A stream of security events (OpenID Shared Signals Framework 1.0, CAEP and RISC) from one
/// transmitter, by push, by poll, or both.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct StreamConfig {
    /// The block under `issuers` that signs the events, under the same keys as its tokens. Either
    /// this or `transmitter`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub issuer: Option<String>,
    /// Someone else who signs the events.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub transmitter: Option<TransmitterConfig>,
    /// The audiences that mean us; an event's `aud` must name one of them, byte for byte.
    pub audiences: Vec<String>,
    /// The blocks under `issuers` whose subjects, sessions and tokens the stream may end. Default:
    /// `issuer`, when that is given.
    #[serde(default)]
    pub subjects_of: Vec<String>,
    /// Whether an `email` subject is the `sub` of the one issuer of `subjects_of`. Default: no; such
    /// events are acknowledged, counted as not understood, and end nothing.
    #[serde(default)]
    pub email_is_subject: bool,
    /// Whether an event that names a session or a token and a user ends all of the user's tokens up
    /// to the event too, for issuers whose access tokens hold no `sid`. Default: no, what the event
    /// is about alone.
    #[serde(default)]
    pub whole_subject: bool,
    /// How long ago an event may have been signed, `1m` to `90d`. Transmitters keep events while we
    /// are away. Default: `7d`.
    #[serde(default = "seven_days")]
    pub max_age: Span,
    /// Where the transmitter pushes events to (RFC 8935).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub push: Option<PushConfig>,
    /// Where events are fetched from (RFC 8936).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub poll: Option<PollConfig>,
    /// How long the stream may be silent before what it would say counts as unknown. Default: `1m`
    /// with `poll`; with `push` alone a silent stream is no news, unless this is given: ask the
    /// transmitter for verification events more often then.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stale_after: Option<Span>,
}

/// Who signs the events of a stream.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct TransmitterConfig {
    /// The `iss` of its events, byte for byte.
    pub issuer: String,
    /// Where its keys come from: `jwks_uri` or `file`, or `discovery: true` where it is an OpenID
    /// provider too.
    pub keys: KeysConfig,
    /// Accepted signature algorithms. None of them is symmetric.
    pub algorithms: Vec<SignatureAlgorithm>,
    /// Files with the certificate authorities (PEM) that are trusted when keys are fetched.
    /// Default: the public web's.
    #[serde(default)]
    pub authorities: Vec<PathBuf>,
    /// How often keys are fetched and how long they are believed.
    #[serde(default)]
    pub refresh: RefreshConfig,
}

/// An end-point that events are pushed to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct PushConfig {
    /// The path that is posted to. It comes before all routes.
    pub path: String,
    /// The secret that the transmitter sends as `Authorization: Bearer …`; 16 bytes or more. It
    /// keeps strangers from having us verify signatures; what is believed is the signature.
    pub token: SecretRef,
    /// The hosts under which it is served, byte for byte in lower case. Default: all.
    #[serde(default)]
    pub hosts: Vec<String>,
    /// The listeners on which it is served. Default: all.
    #[serde(default)]
    pub listeners: Vec<String>,
}

/// Where events are fetched from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct PollConfig {
    /// The transmitter's end-point: https, or http on a loopback address.
    pub url: String,
    /// The secret to send as `Authorization: Bearer …`. Default: none is sent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub token: Option<SecretRef>,
    /// Files with the certificate authorities (PEM) that are trusted. Default: the public web's.
    #[serde(default)]
    pub authorities: Vec<PathBuf>,
    /// Whether the transmitter may keep a question until there is something to say. Then a
    /// revocation is here at once. Default: yes.
    #[serde(default = "yes")]
    pub wait: bool,
    /// The pause between two questions that brought nothing, `100ms` to `1h`. Default: `1s`.
    #[serde(default = "one_second")]
    pub interval: Span,
    /// The longest time for one question, `1s` to `5m`. With `wait` it must be longer than the
    /// transmitter waits. Default: `45s`.
    #[serde(default = "poll_timeout")]
    pub timeout: Span,
    /// The most events that one answer may bring, 1 to 1000. Default: 100.
    #[serde(default = "hundred")]
    pub max_events: u32,
    /// The largest answer, up to `16MiB`. Default: `2MiB`.
    #[serde(default = "two_mib")]
    pub max_size: Size,
}

/// A Redis or Valkey that replicas share revocations through. One server or a primary behind one
/// address; no cluster redirections are followed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RedisConfig {
    /// `redis://host:port/database`, or `rediss://` with TLS. Credentials do not stand in it.
    pub url: String,
    /// The user, where the server has several.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub username: Option<String>,
    /// The password.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub password: Option<SecretRef>,
    /// What the names of the keys begin with; replicas that share revocations have the same one.
    #[serde(default = "redis_prefix")]
    pub prefix: String,
    /// TLS towards the server, with `rediss://`.
    #[serde(default)]
    pub tls: ClientTlsConfig,
    /// The longest time for one command, connecting included, `50ms` to `30s`. Default: `2s`.
    #[serde(default = "two_seconds")]
    pub timeout: Span,
    /// How long the server may be out of reach before what other replicas know counts as unknown.
    /// Default: `10s`.
    #[serde(default = "ten_seconds")]
    pub stale_after: Span,
}

const fn yes() -> bool {
    true
}

const fn hundred() -> u32 {
    100
}

const fn one_second() -> Span {
    Span::seconds(1)
}

const fn two_seconds() -> Span {
    Span::seconds(2)
}

const fn ten_seconds() -> Span {
    Span::seconds(10)
}

const fn poll_timeout() -> Span {
    Span::seconds(45)
}

const fn five_minutes() -> Span {
    Span::seconds(300)
}

const fn seven_days() -> Span {
    Span::seconds(7 * 86_400)
}

const fn two_mib() -> Size {
    Size::mib(2)
}

fn redis_prefix() -> String {
    "portcullis:revocation".to_owned()
}
