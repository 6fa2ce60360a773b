//! The root of the document: one field per section, each of a type that its room owns.

use std::path::PathBuf;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::admin::AdminConfig;
use crate::audit::AuditConfig;
use crate::authn::client_certificate::ClientCertificateConfig;
use crate::authn::jwt::IssuerConfig;
use crate::authz::PolicyConfig;
use crate::bundle::BundleConfig;
use crate::candidate::{CandidateConfig, USUAL_TIME};
use crate::limit::{FailureLimitConfig, LimitConfig};
use crate::listener::ListenerConfig;
use crate::revocation::RevocationConfig;
use crate::route::RouteConfig;
use crate::schema::{Named, Network, Share, Span};
use crate::snapshot::Effective;
use crate::telemetry::TelemetryConfig;
use crate::upstream::UpstreamConfig;
use crate::upstream::headers::IdentityConfig;

/// The whole of `gateway.yaml`. Unknown keys are refused everywhere; durations and sizes carry
/// their unit (`30s`, `64KiB`); secrets are references (`env:NAME`, `file:path`); paths of files
/// are relative to the folder of this file.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(title = "Portcullis configuration")]
pub struct Document {
    /// Worker threads, 1 to 1024. Default: one per core. Takes effect at the next start.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 1024))]
    pub workers: Option<usize>,
    /// Longest time from the head of a request to the head of its answer, whatever happens.
    #[serde(default = "thirty_seconds")]
    pub head_timeout: Span,
    /// How long requests under way may take to end when the process is asked to stop.
    #[serde(default = "thirty_seconds")]
    pub drain_timeout: Span,
    /// Peers whose forwarding headers (`Forwarded`, `X-Forwarded-*`) are believed: addresses and
    /// networks. Default: none.
    #[serde(default)]
    pub trusted_proxies: Vec<Network>,
    /// The sockets that accept connections, by name. At least one.
    pub listeners: Named<ListenerConfig>,
    /// Whose tokens are accepted, by name.
    #[serde(default)]
    pub issuers: Named<IssuerConfig>,
    /// How client certificates become identities.
    #[serde(default)]
    pub client_certificate: ClientCertificateConfig,
    /// Policies and data from outside, in OPA's bundle format, by name.
    #[serde(default, skip_serializing_if = "Named::is_empty")]
    pub bundles: Named<BundleConfig>,
    /// Who may do what, by name: entry points into Rego.
    #[serde(default)]
    pub policies: Named<PolicyConfig>,
    /// Policies that may take the place of others, by name: tried on live traffic first.
    #[serde(default, skip_serializing_if = "Named::is_empty")]
    pub candidates: Named<CandidateConfig>,
    /// How much of each worker's time all candidates together may take beside requests, `0.1%` to `50%`.
    /// What they are not asked about for want of it is counted.
    #[serde(default = "usual_time")]
    pub candidate_time: Share,
    /// A file in which it is kept which candidates went back, so that they stay back after a restart, and
    /// by what sides are drawn. Default: none; both end with the process.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub candidate_state: Option<PathBuf>,
    /// How many requests are let through, by name.
    #[serde(default)]
    pub limits: Named<LimitConfig>,
    /// How often an address may fail to authenticate before it is turned away.
    #[serde(default)]
    pub authentication_failures: FailureLimitConfig,
    /// The services behind the gateway, by name.
    #[serde(default)]
    pub upstreams: Named<UpstreamConfig>,
    /// Which requests go where. The most specific route takes a request, not the first.
    pub routes: Vec<RouteConfig>,
    /// What upstreams are told of the caller.
    #[serde(default)]
    pub identity: IdentityConfig,
    /// What ends permissions early: who may revoke, and where it is kept.
    #[serde(default)]
    pub revocation: RevocationConfig,
    /// Where the record of each request goes.
    #[serde(default)]
    pub audit: AuditConfig,
    /// Logs, metrics and traces.
    #[serde(default)]
    pub telemetry: TelemetryConfig,
    /// The listener for operators.
    #[serde(default)]
    pub admin: AdminConfig,
}

const fn thirty_seconds() -> Span {
    Span::seconds(30)
}

const fn usual_time() -> Share {
    USUAL_TIME
}

impl Effective for Document {
    fn yaml(&self) -> Result<String, String> {
        serde_yaml::to_string(self).map_err(|error| error.to_string())
    }
}

impl Document {
    /// What it would be with a candidate in the place of its policy, and without the others; `None` when
    /// there is no such candidate, or no such policy.
    pub fn with_candidate(&self, name: &str) -> Option<Self> {
        let block = self.candidates.get(name)?;
        let mut document = self.clone();
        let policy = document.policies.get_mut(&block.of)?;
        *policy = block.policy(policy);
        document.candidates.clear();
        Some(document)
    }

    /// A document that says nothing; it does not load, but its sections compile with their
    /// defaults, so that one bad section does not hide the problems of others.
    pub(super) fn empty() -> Self {
        Self {
            workers: None,
            head_timeout: thirty_seconds(),
            drain_timeout: thirty_seconds(),
            trusted_proxies: Vec::new(),
            listeners: Named::new(),
            issuers: Named::new(),
            client_certificate: ClientCertificateConfig::default(),
            bundles: Named::new(),
            policies: Named::new(),
            candidates: Named::new(),
            candidate_time: USUAL_TIME,
            candidate_state: None,
            limits: Named::new(),
            authentication_failures: FailureLimitConfig::default(),
            upstreams: Named::new(),
            routes: Vec::new(),
            identity: IdentityConfig::default(),
            revocation: RevocationConfig::default(),
            audit: AuditConfig::default(),
            telemetry: TelemetryConfig::default(),
            admin: AdminConfig::default(),
        }
    }
}
