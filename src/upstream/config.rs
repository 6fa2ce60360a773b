//! The `upstreams` section's blocks: their shape, and the step to an [`Upstream`].

use std::sync::Arc;
use std::time::Duration;

use aws_lc_rs::digest::{Context, SHA256};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::Upstream;
use super::resolve::{Endpoint, Targets};
use crate::schema::{Compile, Span};
use crate::tls::client::ClientTlsConfig;

/// Most endpoints that one upstream may list.
pub(super) const MAX_ENDPOINTS: usize = 64;
/// Most connections (HTTP/1) or connections times streams (HTTP/2) per endpoint and core.
const MAX_PLACES: usize = 1 << 20;

/// A service behind the gateway.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct UpstreamConfig {
    /// `http://host:port` or `https://host:port`, all of one scheme. Hosts by name or address; names
    /// are resolved beside the requests, and every address of a name is an endpoint of its own.
    pub endpoints: Vec<String>,
    /// What the endpoints speak. `http2` is spoken with prior knowledge over `http://` and agreed
    /// upon by ALPN over `https://`; gRPC needs it.
    #[serde(default)]
    pub protocol: Protocol,
    /// Whom to trust and what to present, for `https://` endpoints.
    #[serde(default)]
    pub tls: ClientTlsConfig,
    /// Longest time to connect, TLS included. Default `2s`.
    #[serde(default = "connect_timeout")]
    pub connect_timeout: Span,
    /// How often names are resolved anew. The last good answer stays when resolving fails. Default
    /// `30s`.
    #[serde(default = "resolve_interval")]
    pub resolve_interval: Span,
    /// Connections kept open. All numbers are per endpoint and core.
    #[serde(default)]
    pub pool: PoolConfig,
    /// When a request that did not get through is sent again.
    #[serde(default)]
    pub retries: RetryConfig,
    /// Which host the upstream is asked for. Default `preserve`.
    #[serde(default)]
    pub host: HostHeader,
    /// Whether `Authorization` travels on. Default `false`: the gateway has checked it, the identity
    /// headers and the assertion say what came of it, and a service that never sees a token cannot
    /// leak or replay it.
    #[serde(default)]
    pub forward_authorization: bool,
}

/// What an upstream's endpoints speak.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    /// HTTP/1.1: one exchange at a time on each connection.
    #[default]
    Http1,
    /// HTTP/2: exchanges share connections.
    Http2,
}

/// Which host an upstream is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum HostHeader {
    /// The one that the client asked for: what was matched and judged is what the service sees.
    #[default]
    Preserve,
    /// The endpoint's own, for services that are themselves chosen by host.
    Upstream,
}

/// Connections kept open to one endpoint by one core.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct PoolConfig {
    /// Idle HTTP/1 connections kept, on each worker. Fewer than are used at a time would be closed and
    /// made anew with every wave of requests. Default 512.
    pub max_idle: usize,
    /// How long an idle connection is kept. Keep it below the service's own keep-alive time.
    /// Default `30s`.
    pub idle_timeout: Span,
    /// How long a connection takes new requests, so that load follows new endpoints. Default `10m`.
    pub max_lifetime: Span,
    /// Most connections. Default 512.
    pub max_connections: usize,
    /// Most exchanges at a time on one HTTP/2 connection. Default 100.
    pub max_streams: usize,
    /// Longest wait for a free connection before the request is refused as saturated. Default `1s`.
    pub wait: Span,
    /// Most tunnels at a time (WebSocket, CONNECT). Each has a connection of its own, or over HTTP/2
    /// a stream, and takes no place of `max_connections`; nobody waits for one to end. Default 10000.
    pub max_tunnels: usize,
}

impl Default for PoolConfig {
    fn default() -> Self {
        Self {
            max_idle: 512,
            idle_timeout: Span::seconds(30),
            max_lifetime: Span::seconds(600),
            max_connections: 512,
            max_streams: 100,
            wait: Span::seconds(1),
            max_tunnels: 10_000,
        }
    }
}

/// When a request that did not get through is sent again: only if it never reached the service (no
/// connection, or one that was closed while it lay idle), or if it was idempotent and had no body.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct RetryConfig {
    /// Most attempts for one request, the first included: 1 to 10. Default 2.
    pub attempts: u32,
    /// Retries for each request, on average: 0 to 1. Default 0.2.
    pub budget: f64,
}

impl Default for RetryConfig {
    fn default() -> Self {
        Self {
            attempts: 2,
            budget: 0.2,
        }
    }
}

fn connect_timeout() -> Span {
    Span::seconds(2)
}

fn resolve_interval() -> Span {
    Span::seconds(30)
}

/// The numbers of an upstream, as its pools read them.
#[derive(Debug, Clone)]
pub(super) struct Settings {
    pub(super) protocol: Protocol,
    pub(super) connect_timeout: Duration,
    pub(super) max_idle: usize,
    pub(super) idle_timeout: Duration,
    pub(super) max_lifetime: Duration,
    pub(super) max_connections: usize,
    pub(super) max_streams: usize,
    pub(super) wait: Duration,
    pub(super) max_tunnels: usize,
    pub(super) attempts: u32,
    pub(super) retry_budget: f64,
}

impl Settings {
    /// How many exchanges may be under way at a time.
    pub(super) fn places(&self) -> usize {
        match self.protocol {
            Protocol::Http1 => self.max_connections,
            Protocol::Http2 => self.max_connections.saturating_mul(self.max_streams),
        }
        .min(MAX_PLACES)
    }
}

impl UpstreamConfig {
    /// Compiles one block; takes over `previous`, with its pools, when nothing about it changed.
    pub fn compile(
        self,
        name: &str,
        previous: Option<&Arc<Upstream>>,
        cx: &mut Compile,
    ) -> Option<Arc<Upstream>> {
        let errors = cx.errors();
        let endpoints = self.endpoints(cx);
        let secure = endpoints.iter().any(|endpoint| endpoint.secure);
        self.check(cx);

        let mut files = Context::new(&SHA256);
        let client = cx.at("tls", |cx| {
            if !secure {
                if self.tls != ClientTlsConfig::default() {
                    cx.problem_help(
                        "is set, but the endpoints are plain http",
                        "write https:// endpoints, or remove the block",
                    );
                }
                return None;
            }
            let named = self.tls.authorities.iter();
            let named = named.chain(&self.tls.revocation_lists);
            for file in named.chain(&self.tls.certificate).chain(&self.tls.key) {
                // A file that cannot be read is reported once, by the room that needs it.
                if let Ok(bytes) = std::fs::read(cx.resolve(file)) {
                    files.update(&bytes);
                }
                files.update(b"\0");
            }
            let alpn: &[&[u8]] = match self.protocol {
                Protocol::Http1 => &[b"http/1.1"],
                Protocol::Http2 => &[b"h2"],
            };
            self.tls.compile(alpn, cx)
        });
        if cx.errors() > errors || (secure && client.is_none()) {
            return None;
        }

        let fingerprint = files.finish().as_ref().to_vec();
        if let Some(previous) = previous
            && *previous.name == *name
            && previous.config == self
            && previous.fingerprint == fingerprint
        {
            return Some(Arc::clone(previous));
        }
        let settings = Settings {
            protocol: self.protocol,
            connect_timeout: self.connect_timeout.get(),
            max_idle: self.pool.max_idle,
            idle_timeout: self.pool.idle_timeout.get(),
            max_lifetime: self.pool.max_lifetime.get(),
            max_connections: self.pool.max_connections,
            max_streams: self.pool.max_streams,
            wait: self.pool.wait.get(),
            max_tunnels: self.pool.max_tunnels,
            attempts: self.retries.attempts,
            retry_budget: self.retries.budget,
        };
        let targets = Arc::new(Targets::new(endpoints, self.resolve_interval.get()));
        let metrics = Arc::clone(&cx.metrics);
        Some(Arc::new(Upstream::new(
            name,
            self,
            fingerprint,
            settings,
            targets,
            client,
            metrics,
        )))
    }

    fn endpoints(&self, cx: &mut Compile) -> Vec<Arc<Endpoint>> {
        cx.at("endpoints", |cx| {
            if self.endpoints.is_empty() || self.endpoints.len() > MAX_ENDPOINTS {
                cx.problem_help(
                    format!("lists {} endpoints", self.endpoints.len()),
                    format!("list 1 to {MAX_ENDPOINTS}, such as http://orders.internal:8080"),
                );
            }
            let mut endpoints: Vec<Arc<Endpoint>> = Vec::new();
            for (index, text) in self.endpoints.iter().enumerate().take(MAX_ENDPOINTS) {
                cx.at(format!("[{index}]"), |cx| {
                    let server_name = self.tls.server_name.as_deref();
                    match Endpoint::parse(text, server_name) {
                        Ok(endpoint) => {
                            if endpoints.iter().any(|other| other.label == endpoint.label) {
                                cx.problem("is listed twice");
                            }
                            if endpoints
                                .iter()
                                .any(|other| other.secure != endpoint.secure)
                            {
                                cx.problem_help(
                                    "mixes http and https in one upstream",
                                    "a request that falls back to http would travel in clear; \
                                     use one scheme",
                                );
                            }
                            endpoints.push(Arc::new(endpoint));
                        }
                        Err(why) => cx.problem_help(
                            format!("`{text}` is not an endpoint: {why}"),
                            "write http://host:port or https://host:port, without a path",
                        ),
                    }
                });
            }
            endpoints
        })
    }

    fn check(&self, cx: &mut Compile) {
        let spans = [
            ("connect_timeout", self.connect_timeout),
            ("resolve_interval", self.resolve_interval),
        ];
        for (key, span) in spans {
            if span.get().is_zero() {
                cx.at(key, |cx| cx.problem("must be longer than nothing"));
            }
        }
        cx.at("pool", |cx| {
            let spans = [
                ("idle_timeout", self.pool.idle_timeout),
                ("max_lifetime", self.pool.max_lifetime),
            ];
            for (key, span) in spans {
                if span.get().is_zero() {
                    cx.at(key, |cx| cx.problem("must be longer than nothing"));
                }
            }
            let counts = [
                ("max_connections", self.pool.max_connections),
                ("max_streams", self.pool.max_streams),
                ("max_tunnels", self.pool.max_tunnels),
            ];
            for (key, count) in counts {
                if count == 0 || count > MAX_PLACES {
                    cx.at(key, |cx| {
                        cx.problem(format!("must be from 1 to {MAX_PLACES}"));
                    });
                }
            }
        });
        cx.at("retries", |cx| {
            if !(1..=10).contains(&self.retries.attempts) {
                cx.at("attempts", |cx| {
                    cx.problem_help("must be from 1 to 10", "1 means: never send again");
                });
            }
            if !(0.0..=1.0).contains(&self.retries.budget) {
                cx.at("budget", |cx| cx.problem("must be from 0 to 1"));
            }
        });
    }
}
