//! Host, path and method to route. No policy, no rewriting.
//!
//! # Which route takes a request
//!
//! 1. Of all templates that match host *and* path, those with the most specific host count: an exact
//!    name before the longest matching `*.suffix`, before any host.
//! 2. Of these the most specific path template decides: segment by segment from the left, a literal
//!    before `{name}` before `{*rest}`.
//! 3. Only routes of that host and template are asked for method, headers and listener. The one
//!    with most header conditions wins, then one that names its listeners, then one that names its
//!    methods. Two routes that could still both win do not load.
//!
//! **There is no falling back.** When no route of the deciding template takes the request there is
//! no route, though a less specific one would match: a route for `GET /admin/{page}` means that
//! `POST /admin/users` must not slip through `/{*rest}` and its laxer policy.

mod config;
mod table;
mod template;

use std::sync::Arc;

pub use config::{DEFAULT_METHODS, Declared, Parts, RouteConfig, name_fault};
pub use table::RouteTable;

use crate::audit::RecordConfig;
use crate::authn::Chain;
use crate::authz::Policy;
use crate::document::Value;
use crate::limit::Limits;
use crate::metrics::RouteCounts;
use crate::request::PathRules;
use crate::revocation::StaleRule;
use crate::tunnel::Upgrades;
use crate::upstream::{Bounds, Upstream};

/// One compiled route: everything a request needs to get through, or not.
#[derive(Debug)]
pub struct Route {
    /// The route's name, unique in the file.
    pub name: Arc<str>,
    /// Free-form labels for policies: an object of strings.
    pub labels: Value,
    /// Which ambiguous path forms it accepts.
    pub paths: PathRules,
    /// Who may try.
    pub authn: Chain,
    /// Who may.
    pub policy: Arc<Policy>,
    /// What is believed while a feed of revocations is silent.
    pub stale: StaleRule,
    /// How much.
    pub limits: Limits,
    /// To where.
    pub upstream: Arc<Upstream>,
    /// Bounds on time and size.
    pub bounds: Bounds,
    /// What it opens instead of answering.
    pub upgrades: Upgrades,
    /// How its requests are recorded.
    pub record: RecordConfig,
    /// What happens on it is counted here.
    pub counts: RouteCounts,
}

impl Route {
    /// The same route, where another policy decides.
    fn with_policy(&self, policy: Arc<Policy>) -> Self {
        Self {
            name: Arc::clone(&self.name),
            labels: self.labels.clone(),
            paths: self.paths,
            authn: self.authn.clone(),
            policy,
            stale: self.stale,
            limits: self.limits.clone(),
            upstream: Arc::clone(&self.upstream),
            bounds: self.bounds.clone(),
            upgrades: self.upgrades,
            record: self.record,
            counts: self.counts.again(),
        }
    }
}

/// A route and the values of its path template.
#[derive(Debug)]
pub struct Match<'t> {
    /// The route.
    pub route: &'t Arc<Route>,
    /// `{id}` → its decoded value.
    pub params: Vec<(Arc<str>, String)>,
}
