//! To where. Forwards what was permitted and nothing else; balances, pools, retries what is safe.
//!
//! `config` is the shape of the file, `resolve` turns names into addresses beside the requests,
//! `balance` chooses among them, `pool`, `places` and `connect` hold the connections of one core,
//! `http` runs one exchange and `http1` or `http2` its attempts, `wire` speaks HTTP/1.1, `streams`
//! bounds the two bodies, `tunnel` opens what is no exchange, `headers` and `assertion` say what the upstream learns. Nothing here decides who may do what: [`Upstream::forward`] asks for a [`Permit`].

pub mod assertion;
mod balance;
mod config;
mod connect;
pub mod headers;
mod http;
mod http1;
mod http2;
mod places;
mod pool;
mod resolve;
mod streams;
#[cfg(test)]
mod tests;
mod tunnel;
mod wire;

use std::borrow::Cow;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use ::http::Response;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use self::config::Settings;
use self::headers::About;
use self::http::{Outgoing, Plan, Terms};
use self::resolve::Targets;
use crate::authz::Permit;
use crate::body::Body;
use crate::metrics::{Metrics, UpstreamMetrics};
use crate::request::{InboundRequest, Upgrade};
use crate::schema::{Size, Span};
use crate::tls::client::ClientConfig;

pub use self::config::{HostHeader, PoolConfig, Protocol, RetryConfig, UpstreamConfig};
pub use self::pool::{PeerFacts, Pools};
pub use self::streams::{Alarm, StreamFault};
pub use self::tunnel::{Far, Opened};

/// Why a permitted request got no answer from its upstream. Never shown to clients.
#[derive(Debug, Clone, thiserror::Error)]
pub enum Failure {
    /// No connection: refused, reset, TLS failed, no endpoint.
    #[error("cannot reach the upstream: {0}")]
    Unreachable(String),
    /// Every connection and the queue for them are in use.
    #[error("the upstream is saturated")]
    Saturated,
    /// A timeout: connecting, or waiting for the head of the answer.
    #[error("the upstream is too slow: {0}")]
    Slow(&'static str),
    /// It answered something that is not HTTP, or hung up in the middle of its head.
    #[error("the upstream broke the protocol: {0}")]
    Broken(String),
    /// The client's own body broke off or was too long while we forwarded it.
    #[error("the request body failed: {0}")]
    RequestBody(RequestBodyFault),
}

/// What was wrong with the client's body.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum RequestBodyFault {
    /// Longer than the route allows.
    #[error("too large")]
    TooLarge,
    /// No byte for longer than the route allows.
    #[error("too slow")]
    TooSlow,
    /// The client hung up or broke the framing.
    #[error("broken off")]
    BrokenOff,
}

/// A service behind the gateway, with its endpoints.
#[derive(Debug)]
pub struct Upstream {
    /// The upstream's block in the configuration.
    pub name: Arc<str>,
    config: UpstreamConfig,
    /// A digest over the files that the block names.
    fingerprint: Vec<u8>,
    core: Arc<Core>,
}

/// What the pools of every core need of an upstream. They hold it weakly: when the configuration
/// lets go of it and the last exchange is over, they close what they have.
#[derive(Debug)]
struct Core {
    /// Names this upstream among all that this process ever had.
    id: u64,
    name: Arc<str>,
    settings: Settings,
    host: HostHeader,
    targets: Arc<Targets>,
    tls: Option<Arc<ClientConfig>>,
    metrics: Arc<Metrics>,
    /// What is counted for every request.
    counts: UpstreamMetrics,
}

/// What the request path knows beside the request itself.
#[derive(Debug)]
pub struct Forwarding<'a> {
    /// What goes upstream: identity headers and the assertion.
    pub identity: &'a headers::IdentityHeaders,
    /// The route's name.
    pub route: &'a Arc<str>,
    /// The route's bounds on time and size.
    pub bounds: &'a Bounds,
    /// Longest time from the last byte of the request to the head of its answer, whatever the route says.
    pub head_timeout: Duration,
    /// The trace context to hand on.
    pub trace: &'a crate::telemetry::TraceContext,
    /// The decision's id.
    pub decision_id: &'a str,
}

/// A route's bounds on what is forwarded.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Bounds {
    /// Longest wait for the head of the upstream's answer, all attempts together, once the request is
    /// sent or none of it moves. Default `15s`.
    pub head_timeout: Span,
    /// Longest time in which no byte moves in either body. Default `30s`.
    pub idle_timeout: Span,
    /// Longest time for the whole exchange. Default `300s`.
    pub total_timeout: Span,
    /// Largest request body. Default `10MiB`.
    pub max_body: Size,
}

impl Default for Bounds {
    fn default() -> Self {
        Self {
            head_timeout: Span::seconds(15),
            idle_timeout: Span::seconds(30),
            total_timeout: Span::seconds(300),
            max_body: Size::mib(10),
        }
    }
}

/// What came of forwarding, for the record.
#[derive(Debug, Default, Clone)]
pub struct Trail {
    /// The endpoint that was tried last, `host:port`: the one that answered, if one did.
    pub endpoint: Option<Arc<str>>,
    /// How often it was tried.
    pub attempts: u32,
}

impl Upstream {
    fn new(
        name: &str,
        config: UpstreamConfig,
        fingerprint: Vec<u8>,
        settings: Settings,
        targets: Arc<Targets>,
        tls: Option<Arc<ClientConfig>>,
        metrics: Arc<Metrics>,
    ) -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let name: Arc<str> = name.into();
        let core = Core {
            id: NEXT.fetch_add(1, Ordering::Relaxed),
            name: Arc::clone(&name),
            settings,
            host: config.host,
            targets,
            tls,
            counts: metrics.upstream(&name),
            metrics,
        };
        Self {
            name,
            config,
            fingerprint,
            core: Arc::new(core),
        }
    }

    /// Starts what runs beside requests (name resolution) on the control thread. Safe to call again
    /// for an upstream that was taken over. Ends when the upstream is dropped.
    pub fn activate(self: &Arc<Self>, control: &tokio::runtime::Handle) {
        self.core.targets.activate(control);
    }

    /// How many endpoints have an address to connect to, and how many there are. Whether a service
    /// answers there is each core's own experience, and no part of it.
    pub fn usable(&self) -> (usize, usize) {
        self.core.targets.usable()
    }

    /// Its endpoints, `host:port`.
    pub fn endpoints(&self) -> impl Iterator<Item = &str> {
        self.core.targets.labels()
    }

    /// Whether its endpoints speak HTTP/2.
    pub fn is_http2(&self) -> bool {
        self.config.protocol == Protocol::Http2
    }

    /// Forwards one permitted request; the answer's body streams. Has to run on the worker that
    /// `pools` belongs to, inside its `LocalSet`. Dropping the future, or the answer's body before
    /// its end, ends the exchange with the upstream.
    ///
    /// # Errors
    /// [`Failure`]; `trail` tells how far it got.
    pub async fn forward(
        &self,
        pools: &Pools,
        request: &InboundRequest,
        body: Body,
        permit: &Permit,
        forwarding: Forwarding<'_>,
        trail: &mut Trail,
    ) -> Result<Response<Body>, Failure> {
        let about = self.about(request, permit, &forwarding);
        let terms = Terms {
            bounds: forwarding.bounds,
            head_timeout: forwarding.head_timeout,
            rules: forwarding.identity.rules(),
        };
        let query = query(&about);
        let outgoing = outgoing(&about, query.as_deref());
        http::exchange(&self.core, pools, &outgoing, body, terms, trail).await
    }

    /// Opens what a permitted request asks for instead of an answer. The answer may still be an
    /// ordinary one, and then there is no other end. Has to run where [`Upstream::forward`] has to.
    ///
    /// # Errors
    /// [`Failure`]; `trail` tells how far it got.
    pub async fn tunnel(
        &self,
        pools: &Pools,
        request: &InboundRequest,
        upgrade: &Upgrade,
        permit: &Permit,
        forwarding: Forwarding<'_>,
        trail: &mut Trail,
    ) -> Result<Opened, Failure> {
        let plan = Plan::begin(&self.core, forwarding.bounds, forwarding.head_timeout);
        let key = match upgrade {
            Upgrade::Connect => return tunnel::connect(&plan, pools, trail).await,
            Upgrade::WebSocket { key } => key.as_ref(),
            Upgrade::Faulty(_) => {
                let why = "the request for a WebSocket is malformed".to_owned();
                return Err(Failure::Broken(why));
            }
        };
        let about = self.about(request, permit, &forwarding);
        let query = query(&about);
        let outgoing = outgoing(&about, query.as_deref());
        tunnel::websocket(&plan, pools, &outgoing, key, trail).await
    }

    fn about<'a>(
        &'a self,
        request: &'a InboundRequest,
        permit: &'a Permit,
        forwarding: &'a Forwarding<'a>,
    ) -> About<'a> {
        About {
            upstream: &self.name,
            request,
            caller: &permit.caller,
            policy: permit.advice.identity.as_ref(),
            edits: permit.advice.edits.as_deref(),
            decided_by: &permit.decided_by,
            forwarding,
            forward_authorization: self.config.forward_authorization,
        }
    }
}

/// The query as it goes on.
fn query<'a>(about: &About<'a>) -> Option<Cow<'a, str>> {
    let query = about.request.query.as_deref();
    match about.edits {
        None => query.map(Cow::Borrowed),
        Some(edits) => edits.query(query),
    }
}

fn outgoing<'a>(about: &About<'a>, query: Option<&'a str>) -> Outgoing<'a> {
    let request = about.request;
    Outgoing {
        method: &request.method,
        path: request.path.as_str(),
        query,
        host: request.host.as_str(),
        fields: about.forwarding.identity.fields(about),
        accepts_trailers: request.accepts_trailers,
    }
}
