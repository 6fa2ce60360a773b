//! One compiled configuration, immutable, and the pointer to the one in force. No parsing.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use arc_swap::ArcSwap;

use crate::audit::Audit;
use crate::authn::client_certificate::ClientCertificate;
use crate::authn::jwt::Issuer;
use crate::authz::Policy;
use crate::limit::LimitSet;
use crate::listener::Listener;
use crate::metrics::Metrics;
use crate::request::Rules;
use crate::route::RouteTable;
use crate::schema::Named;
use crate::telemetry::Tracing;
use crate::upstream::Upstream;
use crate::upstream::headers::IdentityHeaders;

/// Everything a request needs, compiled from one configuration.
#[derive(Debug)]
pub struct Snapshot {
    /// Digest over the document and every file it names: the first 16 hex digits of SHA-256.
    pub revision: Arc<str>,
    /// When it was compiled.
    pub compiled_at: SystemTime,
    /// The effective document with defaults filled in, as YAML. Secrets are references in it.
    pub effective: String,
    /// The files it was read from, for the reloader.
    pub files: Vec<PathBuf>,
    /// How requests are read.
    pub rules: Rules,
    /// By name.
    pub listeners: Named<Arc<Listener>>,
    /// By name.
    pub issuers: Named<Arc<Issuer>>,
    /// How client certificates become identities.
    pub certificates: Arc<ClientCertificate>,
    /// By name.
    pub policies: Named<Arc<Policy>>,
    /// Limits by name, and those that every route has.
    pub limits: LimitSet,
    /// By name.
    pub upstreams: Named<Arc<Upstream>>,
    /// What upstreams learn of the caller.
    pub identity: Arc<IdentityHeaders>,
    /// All routes.
    pub routes: RouteTable,
    /// Where records go.
    pub audit: Arc<Audit>,
    /// Whether and where traces go.
    pub tracing: Arc<Tracing>,
    /// Longest time from the request's head to the head of the answer.
    pub head_timeout: Duration,
    /// How long draining may take.
    pub drain_timeout: Duration,
    /// What happens is counted here; the same object in every snapshot of a process.
    pub metrics: Arc<Metrics>,
}

impl Snapshot {
    /// Starts everything that runs beside requests. Parts taken over from an earlier snapshot go on.
    pub fn activate(&self, control: &tokio::runtime::Handle) {
        self.issuers
            .values()
            .for_each(|issuer| issuer.activate(control));
        self.limits.activate(control);
        self.tracing.activate(control);
        self.upstreams
            .values()
            .for_each(|upstream| upstream.activate(control));
        self.tracing.activate(control);
        self.metrics.in_force(&self.revision);
    }
}

/// The configuration in force.
#[derive(Debug)]
pub struct Live(ArcSwap<Snapshot>);

impl Live {
    /// Begins with this configuration.
    pub fn new(snapshot: Snapshot) -> Self {
        Self(ArcSwap::from_pointee(snapshot))
    }

    /// The configuration in force now. A request takes it once and keeps it.
    pub fn current(&self) -> Arc<Snapshot> {
        self.0.load_full()
    }

    /// Puts another configuration in force. Requests under way finish under theirs.
    pub fn replace(&self, snapshot: Snapshot) {
        self.0.store(Arc::new(snapshot));
    }
}
