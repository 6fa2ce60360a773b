//! One compiled configuration, immutable, and the pointer to the one in force. No parsing.

use std::cell::RefCell;
use std::fmt;
use std::ops::Deref;
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use arc_swap::ArcSwap;

use crate::audit::Audit;
use crate::audit::traces::Traces;
use crate::authn::client_certificate::ClientCertificate;
use crate::authn::jwt::Issuer;
use crate::authz::Policy;
use crate::bundle::Bundles;
use crate::candidate::Candidates;
use crate::epoch::Epoch;
use crate::limit::LimitSet;
use crate::listener::Listener;
use crate::metrics::Metrics;
use crate::request::Rules;
use crate::revocation::Revocations;
use crate::route::RouteTable;
use crate::schema::Named;
use crate::telemetry::Tracing;
use crate::upstream::Upstream;
use crate::upstream::headers::IdentityHeaders;

/// The document of a configuration, as operators see it.
pub trait Effective: fmt::Debug + Send + Sync {
    /// The document as YAML. Written anew each time: it is asked for seldom, and thousands of routes make
    /// megabytes of text.
    ///
    /// # Errors
    /// A sentence, when it cannot be written.
    fn yaml(&self) -> Result<String, String>;
}

/// Everything a request needs, compiled from one configuration.
#[derive(Debug)]
pub struct Snapshot {
    /// Digest over the document and every file it names: the first 16 hex digits of SHA-256.
    pub revision: Arc<str>,
    /// When it was compiled.
    pub compiled_at: SystemTime,
    /// What it was compiled from, with defaults filled in. Secrets are references in it.
    pub effective: Arc<dyn Effective>,
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
    /// Policies and data from outside.
    pub bundles: Bundles,
    /// By name.
    pub policies: Named<Arc<Policy>>,
    /// Policies that may take the place of those.
    pub candidates: Arc<Candidates>,
    /// Limits by name, and those that every route has.
    pub limits: LimitSet,
    /// By name.
    pub upstreams: Named<Arc<Upstream>>,
    /// What upstreams learn of the caller.
    pub identity: Arc<IdentityHeaders>,
    /// What was permitted once and is no longer.
    pub revocation: Arc<Revocations>,
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
    /// Rises when open permissions have to be judged again; the same object in every snapshot of a
    /// process.
    pub epoch: Arc<Epoch>,
}

impl Snapshot {
    /// The same configuration with other policies: all that carries state is the same object.
    pub fn with_policies(&self, policies: Named<Arc<Policy>>, candidates: Arc<Candidates>) -> Self {
        let routes = self.routes.with_policies(|before| {
            let after = policies.get(&*before.decided_by.policy)?;
            (!Arc::ptr_eq(before, after)).then(|| Arc::clone(after))
        });
        Self {
            revision: Arc::clone(&self.revision),
            compiled_at: self.compiled_at,
            effective: Arc::clone(&self.effective),
            files: self.files.clone(),
            rules: self.rules.clone(),
            listeners: self.listeners.clone(),
            issuers: self.issuers.clone(),
            certificates: Arc::clone(&self.certificates),
            bundles: self.bundles.clone(),
            policies,
            candidates,
            limits: self.limits.clone(),
            upstreams: self.upstreams.clone(),
            identity: Arc::clone(&self.identity),
            revocation: Arc::clone(&self.revocation),
            routes,
            audit: Arc::clone(&self.audit),
            tracing: Arc::clone(&self.tracing),
            head_timeout: self.head_timeout,
            drain_timeout: self.drain_timeout,
            metrics: Arc::clone(&self.metrics),
            epoch: Arc::clone(&self.epoch),
        }
    }

    /// Keeps the texts of what decides from now on, so that it can be told why.
    fn remember(&self) {
        let candidates = self.candidates.policies();
        self.audit
            .decided_by(self.policies.values().chain(candidates));
    }

    /// Starts everything that runs beside requests. Parts taken over from an earlier snapshot go on.
    pub fn activate(&self, control: &tokio::runtime::Handle) {
        self.issuers
            .values()
            .for_each(|issuer| issuer.activate(control));
        self.listeners
            .values()
            .for_each(|listener| listener.activate(control));
        self.bundles.activate(control);
        self.candidates.activate(control, &self.metrics);
        self.limits.activate(control);
        self.revocation.activate(control);
        self.tracing.activate(control);
        self.upstreams
            .values()
            .for_each(|upstream| upstream.activate(control));
        self.metrics.in_force(&self.revision);
    }
}

/// The configuration in force.
#[derive(Debug)]
pub struct Live {
    snapshot: ArcSwap<Snapshot>,
    /// Rises after each replacement.
    version: AtomicU64,
    /// Requests that are followed on demand.
    pub traces: Traces,
}

impl Live {
    /// Begins with this configuration.
    pub fn new(snapshot: Snapshot) -> Self {
        snapshot.remember();
        Self {
            snapshot: ArcSwap::from_pointee(snapshot),
            version: AtomicU64::new(0),
            traces: Traces::default(),
        }
    }

    /// The configuration in force now.
    pub fn current(&self) -> Arc<Snapshot> {
        self.snapshot.load_full()
    }

    /// Puts another configuration in force. Requests under way finish under theirs.
    pub fn replace(&self, snapshot: Snapshot) {
        let snapshot = Arc::new(snapshot);
        let epoch = Arc::clone(&snapshot.epoch);
        snapshot.remember();
        self.snapshot.store(snapshot);
        self.version.fetch_add(1, Ordering::Release);
        // Behind all that: who is told looks at what is in force by then.
        epoch.advance();
    }
}

/// One worker's view of the configuration in force. A request takes it once and keeps it; counting
/// who keeps it costs no memory traffic between cores.
#[derive(Debug)]
pub struct View {
    live: Arc<Live>,
    seen: RefCell<Seen>,
}

#[derive(Debug)]
struct Seen {
    version: u64,
    held: Rc<Held>,
}

/// A snapshot as one worker holds it, for any number of its requests.
#[derive(Debug)]
pub struct Held(Arc<Snapshot>);

impl Deref for Held {
    type Target = Snapshot;

    fn deref(&self) -> &Snapshot {
        &self.0
    }
}

impl Seen {
    fn of(live: &Live) -> Self {
        Self {
            // Read first: a snapshot that is newer than its number is looked at once more.
            version: live.version.load(Ordering::Acquire),
            held: Rc::new(Held(live.current())),
        }
    }
}

impl View {
    /// A view of `live`.
    pub fn new(live: Arc<Live>) -> Self {
        let seen = RefCell::new(Seen::of(&live));
        Self { live, seen }
    }

    /// Requests that are followed on demand.
    pub fn traces(&self) -> &Traces {
        &self.live.traces
    }

    /// The epoch now; to be read before [`View::current`], so that no change is missed in between.
    pub fn epoch(&self) -> u64 {
        self.seen.borrow().held.epoch.now()
    }

    /// The configuration in force now.
    pub fn current(&self) -> Rc<Held> {
        self.refresh();
        Rc::clone(&self.seen.borrow().held)
    }

    /// Lets go of a configuration that is no longer in force, also when no request comes.
    pub fn refresh(&self) {
        if self.live.version.load(Ordering::Acquire) != self.seen.borrow().version {
            let seen = Seen::of(&self.live);
            // Dropped after the borrow: it may be the last to hold all that was configured.
            let _gone = self.seen.replace(seen);
        }
    }
}
