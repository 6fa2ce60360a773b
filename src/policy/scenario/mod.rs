//! One request of one caller, judged as the gateway would judge it.
//!
//! The request is read by the code that reads requests, the route is found in the compiled table, the
//! claims go through the issuer's own mapping, and the policy that answers is the one that would decide.
//! What cannot be known without a network, a signature or the state of a running gateway is not asked,
//! and said ([`Told::not_checked`]). Nothing is forwarded and no permit is made.

mod caller;
mod request;

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use http::StatusCode;

use crate::authn::supposed::{Supposed, Supposition, unsigned_token};
use crate::authn::{Failure, Identity};
use crate::authz::opinion::Opinion;
use crate::authz::{Advice, Machines, RouteFacts, WhenLarger};
use crate::config::{self, Document};
use crate::document::Value;
use crate::listener::Listener;
use crate::metrics::Metrics;
use crate::refusal::Refusal;
use crate::request::{
    ConnInfo, Excerpt, InboundRequest, Malformed, RequestId, Scheme, TlsInfo, Told as Memos,
};
use crate::route::Match;
use crate::schema::Problem;
use crate::snapshot::Snapshot;
use crate::upstream::{self, RequestBodyFault};

pub(super) use caller::described;
pub use caller::{Caller, CallerArgs, Callers, Certificate};
pub use request::{RequestArgs, Wanted, filled, time};

/// The address that requests come from when nobody says: one that belongs to nobody (RFC 5737).
pub const SOMEWHERE: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1));

/// Why there is no answer. The text is for people.
#[derive(Debug)]
pub enum Unanswered {
    /// The configuration does not load.
    Configuration(PathBuf, Vec<Problem>),
    /// The question makes no sense.
    Question(String),
}

impl fmt::Display for Unanswered {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Configuration(file, problems) => {
                for problem in problems {
                    writeln!(f, "{problem}")?;
                }
                write!(f, "{} does not load", file.display())
            }
            Self::Question(text) => f.write_str(text),
        }
    }
}

impl std::error::Error for Unanswered {}

/// The configuration that questions are about.
#[derive(Debug)]
pub struct Ground {
    /// The file.
    pub file: PathBuf,
    /// What was compiled from it.
    pub snapshot: Snapshot,
    /// What it says.
    pub document: Arc<Document>,
    /// What `check` would warn of.
    pub warnings: Vec<Problem>,
    /// Why it could not be loaded whole, where certificates, keys or secrets are not there.
    pub left_out: Vec<Problem>,
    machines: Machines,
}

impl Ground {
    /// Loads a configuration. Nothing of it is started: no listener, no fetch, no file is written.
    ///
    /// # Errors
    /// All its problems.
    pub fn load(file: &Path) -> Result<Self, Unanswered> {
        let (loaded, left_out) = config::load_for_questions(file, &Arc::new(Metrics::default()))
            .map_err(|problems| Unanswered::Configuration(file.to_path_buf(), problems))?;
        Ok(Self {
            left_out,
            ..Self::of(file, loaded)
        })
    }

    /// The same with a candidate in the place of its policy.
    ///
    /// # Errors
    /// All its problems.
    pub fn with_candidate(file: &Path, candidate: &str) -> Result<Self, Unanswered> {
        let loaded = config::load_with_candidate(file, candidate, &Arc::new(Metrics::default()));
        let (loaded, left_out) =
            loaded.map_err(|problems| Unanswered::Configuration(file.to_path_buf(), problems))?;
        Ok(Self {
            left_out,
            ..Self::of(file, loaded)
        })
    }

    /// A sentence about what was left out, if anything was; `name` is what the asker calls it.
    pub fn note(&self, name: &str) -> Option<String> {
        let paths: Vec<&str> = self
            .left_out
            .iter()
            .map(|problem| problem.path.as_str())
            .collect();
        (!paths.is_empty()).then(|| {
            format!(
                "{name} is asked about without what cannot be read: {}",
                paths.join(", ")
            )
        })
    }

    fn has_tls(&self, listener: &Listener) -> bool {
        listener.tls.is_some()
            || self
                .document
                .listeners
                .get(&*listener.name)
                .is_some_and(|config| config.tls.is_some())
    }

    /// Questions about what was loaded elsewhere.
    pub fn of(file: &Path, loaded: config::Loaded) -> Self {
        Self {
            file: file.to_path_buf(),
            snapshot: loaded.snapshot,
            document: loaded.document,
            warnings: loaded.warnings,
            left_out: Vec::new(),
            machines: Machines::default(),
        }
    }

    /// Judges one request of one caller.
    ///
    /// # Errors
    /// When the request cannot be written down at all; what the gateway would refuse is an answer.
    pub fn ask(&self, wanted: &Wanted, caller: &Caller) -> Result<Told, Unanswered> {
        let mut last = None;
        for listener in self.listeners(wanted)? {
            let told = self.ask_on(wanted, caller, listener)?;
            if told.stage > Stage::Route {
                return Ok(told);
            }
            last.get_or_insert(told);
        }
        last.ok_or_else(|| Unanswered::Question("the configuration has no listener".to_owned()))
    }

    /// The listeners that the request may come to, the likeliest first.
    fn listeners(&self, wanted: &Wanted) -> Result<Vec<&Arc<Listener>>, Unanswered> {
        let all = &self.snapshot.listeners;
        if let Some(name) = &wanted.listener {
            let names = all.keys().map(String::as_str);
            let help = crate::schema::known_names(name, names);
            return all.get(name).map(|listener| vec![listener]).ok_or_else(|| {
                Unanswered::Question(format!("there is no listener `{name}`: {help}"))
            });
        }
        let fits = |listener: &&Arc<Listener>| match wanted.scheme {
            Some(Scheme::Https) => self.has_tls(listener),
            Some(Scheme::Http) => !self.has_tls(listener),
            None => true,
        };
        let mut found: Vec<_> = all.values().filter(fits).collect();
        if found.is_empty() {
            // Something in front of the gateway may speak TLS for it.
            found = all.values().collect();
        }
        found.sort_by_key(|listener| !self.has_tls(listener));
        Ok(found)
    }

    fn ask_on(
        &self,
        wanted: &Wanted,
        caller: &Caller,
        listener: &Arc<Listener>,
    ) -> Result<Told, Unanswered> {
        let supposition = match (&wanted.token, &caller.supposition) {
            (Some(token), Supposition::Nothing) => Supposition::Token(token.clone()),
            (_, said) => said.clone(),
        };
        let mut told = Told::new(listener, &supposition);
        let tls = self.has_tls(listener);
        let conn = Arc::new(connection(wanted, caller, listener, tls));
        if caller.certificate.is_some() && !tls {
            told.remarks.push(format!(
                "the listener {} speaks no TLS: the certificate is not seen",
                listener.name
            ));
        }
        let bearer = match &supposition {
            Supposition::Nothing => None,
            Supposition::Claims { claims, .. } => Some(unsigned_token(claims)),
            Supposition::Token(token) => Some(token.clone()),
        };
        let request = wanted.build(conn.tls.is_some(), bearer.as_deref())?;
        let id = RequestId::random();
        let parsed = InboundRequest::parse(&conn, id, request, wanted.at, &self.snapshot.rules);
        let mut request = match parsed {
            Ok((request, ())) => request,
            Err(malformed) => return Ok(told.refused(Stage::Request, &malformed.into())),
        };
        told.seen = Some(Seen::of(&request));
        let found = self.snapshot.routes.find(&request);
        let rules = found
            .as_ref()
            .map(|found| found.route.paths)
            .unwrap_or_default();
        if let Err(what) = rules.check(request.path.ambiguities()) {
            return Ok(told.refused(Stage::Request, &Malformed::Path(what).into()));
        }
        let Some(found) = found else {
            return Ok(told.refused(Stage::Route, &Refusal::NoRoute));
        };
        let route = Arc::clone(found.route);
        let params = found.params;
        told.route = Some(Arc::clone(&route.name));
        told.needs = route.authn.names();
        told.policy = Some((
            Arc::clone(&route.policy.decided_by.policy),
            Arc::clone(&route.policy.decided_by.revision),
        ));
        if let Err(refusal) = route.upgrades.admit(&mut request) {
            return Ok(told.refused(Stage::Request, &refusal));
        }
        let supposed = match route.authn.suppose(&supposition, &request) {
            Ok(supposed) => supposed,
            Err(failure) => return Ok(told.unauthenticated(failure, route.authn.takes_bearer())),
        };
        if let Some(terms) = route.policy.body() {
            let whole = wanted.body.len() <= terms.max;
            if !whole && terms.when_larger == WhenLarger::Refuse {
                let fault = upstream::Failure::RequestBody(RequestBodyFault::TooLarge);
                return Ok(told.refused(Stage::Request, &fault.into()));
            }
            let shown = wanted.body.as_bytes();
            let shown = shown.get(..terms.max).unwrap_or(shown);
            request.excerpt = Some(Arc::new(Excerpt {
                bytes: shown.to_vec().into(),
                whole,
            }));
        }
        told.assumed = supposed.assumed().to_vec();
        told.caller = supposed.identity().map(Known::of);
        let found = Match {
            route: &route,
            params,
        };
        told.judge(self, &found, &request, &supposed);
        Ok(told)
    }
}

fn connection(wanted: &Wanted, caller: &Caller, listener: &Listener, tls: bool) -> ConnInfo {
    let address = wanted.from.or(caller.address).unwrap_or(SOMEWHERE);
    let certificate = caller.certificate.as_ref();
    ConnInfo {
        listener: Arc::clone(&listener.name),
        peer: SocketAddr::new(address, 40_000),
        local: listener.address,
        tls: tls.then(|| TlsInfo {
            version: "TLSv1.3",
            server_name: wanted.host_name().map(Into::into),
            peer_certificate: certificate.map(|one| Arc::new(one.peer(wanted.at))),
            standing: None,
        }),
        ambiguous_head: None,
        forwarded: Memos::default(),
    }
}

/// How far a request would get.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Stage {
    /// It cannot be read in one way only.
    Request,
    /// No route takes it.
    Route,
    /// Its credential is missing or refused.
    Authentication,
    /// The policy says no.
    Policy,
    /// To the upstream, if no limit is in the way.
    Allowed,
}

impl Stage {
    /// A word for machines.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Request => "request",
            Self::Route => "route",
            Self::Authentication => "authentication",
            Self::Policy => "policy",
            Self::Allowed => "allowed",
        }
    }
}

/// The request as the gateway reads it.
#[derive(Debug, Clone)]
pub struct Seen {
    /// The method.
    pub method: String,
    /// `http` or `https`.
    pub scheme: &'static str,
    /// The host without port.
    pub host: String,
    /// The canonical path.
    pub path: String,
    /// Who the client is on the network.
    pub address: IpAddr,
}

impl Seen {
    fn of(request: &InboundRequest) -> Self {
        Self {
            method: request.method.to_string(),
            scheme: request.scheme.as_str(),
            host: request.host.name().to_owned(),
            path: request.path.as_str().to_owned(),
            address: request.client,
        }
    }
}

/// The caller as the gateway would know them.
#[derive(Debug, Clone)]
pub struct Known {
    /// `jwt` or `client_certificate`.
    pub method: &'static str,
    /// The issuer's block.
    pub source: Arc<str>,
    /// The subject.
    pub subject: Arc<str>,
    /// Scopes.
    pub scopes: Vec<Arc<str>>,
    /// Roles.
    pub roles: Vec<Arc<str>>,
}

impl Known {
    fn of(identity: &Identity) -> Self {
        Self {
            method: identity.method,
            source: Arc::clone(&identity.source),
            subject: Arc::clone(&identity.subject),
            scopes: identity.scopes.clone(),
            roles: identity.roles.clone(),
        }
    }
}

/// What the client would get.
#[derive(Debug, Clone)]
pub struct Face {
    /// The status.
    pub status: StatusCode,
    /// The stable code of the answer's body.
    pub code: &'static str,
}

/// The answer.
#[derive(Debug, Clone)]
pub struct Told {
    /// How far it would get.
    pub stage: Stage,
    /// The listener it was asked on.
    pub listener: Arc<str>,
    /// The request, unless it could not be read.
    pub seen: Option<Seen>,
    /// The route.
    pub route: Option<Arc<str>>,
    /// What the route takes as proof, in its order.
    pub needs: Vec<Arc<str>>,
    /// Who the caller would be; none when anonymous or unknown.
    pub caller: Option<Known>,
    /// The policy and its revision.
    pub policy: Option<(Arc<str>, Arc<str>)>,
    /// The reason as the record would have it: a code.
    pub reason: Option<String>,
    /// What the record would hold beside it.
    pub detail: Option<String>,
    /// What the client would read.
    pub message: Option<String>,
    /// What the policy says beside yes.
    pub advice: Option<Arc<Advice>>,
    /// What the client would get; none when the upstream answers.
    pub face: Option<Face>,
    /// What the policy saw of the request, as far as it can read it.
    pub input: Option<Value>,
    /// Claims that nobody gave and that were filled in.
    pub assumed: Vec<String>,
    /// What a running gateway would have looked at beside this.
    pub not_checked: Vec<String>,
    /// What the asker should know.
    pub remarks: Vec<String>,
}

impl Told {
    fn new(listener: &Listener, supposition: &Supposition) -> Self {
        let mut not_checked = Vec::new();
        if matches!(supposition, Supposition::Token(_)) {
            not_checked.push("the token's signature".to_owned());
        }
        Self {
            stage: Stage::Request,
            listener: Arc::clone(&listener.name),
            seen: None,
            route: None,
            needs: Vec::new(),
            caller: None,
            policy: None,
            reason: None,
            detail: None,
            message: None,
            advice: None,
            face: None,
            input: None,
            assumed: Vec::new(),
            not_checked,
            remarks: Vec::new(),
        }
    }

    /// Whether it would reach the upstream.
    pub fn allowed(&self) -> bool {
        self.stage == Stage::Allowed
    }

    fn refused(mut self, stage: Stage, refusal: &Refusal) -> Self {
        let public = refusal.public();
        self.stage = stage;
        self.reason = Some(public.code.to_owned());
        self.detail = Some(refusal.to_string());
        self.face = Some(Face {
            status: public.status,
            code: public.code,
        });
        self
    }

    fn unauthenticated(self, failure: Failure, bearer: bool) -> Self {
        let code = match &failure {
            Failure::Missing => "missing",
            Failure::Rejected { code, .. } => code,
            Failure::Unavailable { .. } => "unavailable",
            Failure::Confused => "several_credentials",
        };
        let mut told = self.refused(
            Stage::Authentication,
            &Refusal::Unauthenticated { failure, bearer },
        );
        told.reason = Some(code.to_owned());
        told
    }

    fn judge(
        &mut self,
        ground: &Ground,
        found: &Match<'_>,
        request: &InboundRequest,
        supposed: &Supposed,
    ) {
        let route = found.route;
        let facts = RouteFacts {
            name: &route.name,
            params: &found.params,
            labels: &route.labels,
        };
        self.input = route
            .policy
            .supposed_input(request, &facts, supposed)
            .ok()
            .flatten();
        if supposed.identity().is_some() {
            self.not_checked.push("revocations".to_owned());
        }
        let limits = ground
            .document
            .routes
            .iter()
            .find(|config| *config.name == *route.name)
            .map(|config| config.limits.join(", "))
            .filter(|names| !names.is_empty());
        match route
            .policy
            .opinion(&ground.machines, request, &facts, supposed)
        {
            Opinion::Allow(advice) => {
                self.stage = Stage::Allowed;
                self.reason.clone_from(&advice.reason);
                self.not_checked
                    .extend(limits.map(|names| format!("limits ({names})")));
                if let Some(asked) = &advice.limit {
                    let key = &asked.key;
                    self.not_checked
                        .push(format!("the limit that the policy asks for ({key})"));
                }
                self.advice = Some(advice);
            }
            Opinion::Deny(denial) => {
                self.stage = Stage::Policy;
                self.reason = Some(denial.reason.code().to_owned());
                self.detail.clone_from(&denial.detail);
                self.message.clone_from(&denial.message);
                let public = Refusal::Denied(denial).public();
                self.face = Some(Face {
                    status: public.status,
                    code: public.code,
                });
            }
        }
    }
}

#[cfg(test)]
mod tests;
