//! Candidates: policies that may take the place of others, tried on live traffic.
//!
//! A [`Candidate`] is a policy beside the one that decides. It is asked about the same requests, behind
//! their answers (`shadow`), and what it would decide otherwise is counted (`report`). It may decide
//! requests itself, a share of all or a cohort (`cohort`), and then its policy is the one that is asked
//! beside it; when it leaves its band against what the policy says (`band`), the policy decides again, and
//! that is remembered (`state`, `book`). Whatever decides does so by [`Policy::decide`]: nothing here makes
//! a permit, and nothing that a candidate says beside the path of a request reaches its answer.

mod band;
mod book;
mod callers;
mod cohort;
mod config;
mod purse;
mod report;
mod shadow;
mod state;
#[cfg(test)]
mod tests;
mod top;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use serde_json::{Map, Value, json};
use tokio::runtime::Handle;

pub use book::{Back, Book};
pub use config::{By, CandidateConfig, CohortConfig, EnforceConfig, Ground, RollbackConfig};
pub use report::Flip;
pub use shadow::{Facts, Seen, Shadow, Sighting};

use band::Band;
use cohort::Side;
use state::State;

use crate::authn::Caller;
use crate::authz::{DecidedBy, Policy};
use crate::bundle::{Bundle, Content};
use crate::epoch::Epoch;
use crate::metrics::Metrics;
use crate::request::{InboundRequest, RequestId, Rules};
use crate::schema::{Compile, Named, Severity, Share};

/// Least and most of a worker's time that all candidates together may take.
const TIME: (Share, Share) = (Share::of_millionths(1_000), Share::of_millionths(500_000));
/// What they may take unless it is said.
pub const USUAL_TIME: Share = Share::of_millionths(80_000);

/// One candidate of one policy.
#[derive(Debug)]
pub struct Candidate {
    /// Its block in the configuration.
    pub name: Arc<str>,
    /// What it is asked as. Its decisions name the policy that it stands for.
    pub policy: Arc<Policy>,
    /// Its block.
    pub config: CandidateConfig,
    /// Whose requests it decides; `None` for nobody's.
    side: Option<Side>,
    band: Band,
    epoch: Arc<Epoch>,
    state: Arc<State>,
}

/// The candidates of one policy, by their names.
#[derive(Debug)]
pub struct Contest {
    policy: Arc<Policy>,
    runners: Vec<Arc<Candidate>>,
}

/// All candidates of a configuration.
#[derive(Debug)]
pub struct Candidates {
    /// By name.
    pub named: Named<Arc<Candidate>>,
    contests: Vec<Contest>,
    rules: Rules,
    /// Of a worker's time, in millionths, for each candidate.
    each: u32,
    time: Share,
    /// Which of them went back.
    pub book: Arc<Book>,
}

impl Candidate {
    /// The policy that it stands for.
    pub fn of(&self) -> &Arc<str> {
        &self.policy.decided_by.policy
    }

    /// Whether it went back, and its policy decides for it.
    pub fn is_back(&self) -> bool {
        self.state.is_back()
    }

    /// When and why it went back.
    pub fn back(&self) -> Option<Back> {
        self.state.back().filter(|_| self.enforces())
    }

    /// Whether it is configured to decide.
    pub fn enforces(&self) -> bool {
        self.side.is_some()
    }

    /// Files and bundles, and all but those, as before.
    fn is_same(&self, old: &Self) -> bool {
        self.config == old.config
            && self.side == old.side
            && Arc::ptr_eq(&self.policy, &old.policy)
            && Arc::ptr_eq(&self.state, &old.state)
            && Arc::ptr_eq(&self.epoch, &old.epoch)
    }

    /// Whether it is asked about this request when another decides it. By the request's own id, which is
    /// random: all candidates with the same sample are asked about the same ones.
    fn samples(&self, id: &RequestId) -> bool {
        let share = self.config.sample;
        if share == Share::ALL {
            return true;
        }
        let digits = id.as_str().get(..16);
        let drawn = digits.and_then(|digits| u64::from_str_radix(digits, 16).ok());
        drawn.is_some_and(|drawn| share.takes(drawn))
    }

    /// `shadow`, `enforcing`, `back`, or `waiting` for a bundle.
    pub fn standing(&self) -> &'static str {
        match (&self.side, self.is_back(), self.policy.is_there()) {
            (_, _, false) => "waiting",
            (None, _, true) => "shadow",
            (Some(_), true, true) => "back",
            (Some(_), false, true) => "enforcing",
        }
    }

    /// Forgets what was counted.
    pub fn reset(&self) {
        self.state.report().reset();
    }

    /// Lets its policy decide again, by order. Whether that changed anything.
    pub fn send_back(&self) -> bool {
        self.state.send_back()
    }

    /// What is told of it: the numbers, and with `all` what they are made of.
    pub fn told(&self, all: bool) -> Value {
        let mut told = Map::new();
        let mut put = |name: &str, value: Value| drop(told.insert(name.to_owned(), value));
        put("name", json!(&*self.name));
        put("of", json!(&**self.of()));
        put("revision", json!(self.policy.revision()));
        put("standing", json!(self.standing()));
        put("sample", json!(self.config.sample));
        put("enforce", json!(self.config.enforce));
        let back = self.back().map(|back| {
            let since = std::time::UNIX_EPOCH + std::time::Duration::from_secs(back.since);
            json!({ "since": report::written(since), "edge": back.edge, "why": back.why })
        });
        put("back", json!(back));
        // A copy: workers must not wait until it is written.
        let report = self.state.report().clone();
        if self.side.is_some() {
            let judged = report.window.sum();
            let held = report.window.held(&self.band).filter(|_| !self.is_back());
            let held = held.map(|held| held.to_string());
            put(
                "judged",
                json!({ "band": self.config.rollback, "now": judged, "held": held }),
            );
        }
        let numbers = if all { report.full() } else { report.brief() };
        told.extend(numbers);
        Value::Object(told)
    }
}

impl Contest {
    /// The policy that decides when no candidate does.
    pub fn policy(&self) -> &Policy {
        &self.policy
    }

    /// Whether a candidate can be asked about what its policy is asked: all bundles are there, and what it
    /// sees of bodies is what is read of them.
    fn can_ask(&self, candidate: &Candidate) -> bool {
        let body = candidate.policy.body();
        candidate.policy.is_there()
            && self.policy.is_there()
            && (body.is_none() || body == self.policy.body())
    }

    /// Which candidate decides this request; `None` when the policy does. The first by name, if several
    /// would.
    pub fn by(
        &self,
        request: &InboundRequest,
        route: &str,
        caller: &Caller,
    ) -> Option<(usize, &Arc<Candidate>)> {
        self.runners.iter().enumerate().find(|(_, candidate)| {
            candidate.side.as_ref().is_some_and(|side| {
                // One that waits for a bundle would deny everybody, and one whose policy does would
                // not be shown bodies.
                !candidate.is_back() && self.can_ask(candidate) && side.has(request, route, caller)
            })
        })
    }
}

impl Default for Candidates {
    /// None.
    fn default() -> Self {
        Self::new(
            Named::new(),
            &Named::new(),
            Rules::default(),
            USUAL_TIME,
            Arc::default(),
        )
    }
}

impl Candidates {
    /// The candidates of a configuration beside its policies.
    pub fn new(
        named: Named<Arc<Candidate>>,
        policies: &Named<Arc<Policy>>,
        rules: Rules,
        time: Share,
        book: Arc<Book>,
    ) -> Self {
        let mut contests: BTreeMap<&str, Contest> = BTreeMap::new();
        for candidate in named.values() {
            let Some(policy) = policies.get(&**candidate.of()) else {
                continue;
            };
            contests
                .entry(&**candidate.of())
                .or_insert_with(|| Contest {
                    policy: Arc::clone(policy),
                    runners: Vec::new(),
                })
                .runners
                .push(Arc::clone(candidate));
        }
        let contests: Vec<Contest> = contests.into_values().collect();
        let count = u32::try_from(named.len()).unwrap_or(u32::MAX).max(1);
        Self {
            named,
            contests,
            rules,
            each: time.millionths() / count,
            time,
            book,
        }
    }

    /// The candidates of a route's policy, if it has any.
    pub fn contest(&self, policy: &Arc<Policy>) -> Option<&Contest> {
        self.contests
            .iter()
            .find(|contest| Arc::ptr_eq(&contest.policy, policy))
    }

    /// Who decided: the policy of the route, or the candidate in its place.
    pub fn asked<'c>(&'c self, by: &DecidedBy, policy: &'c Policy) -> &'c Policy {
        let candidate = by.candidate.as_ref();
        let candidate = candidate.and_then(|name| self.named.get(&**name));
        candidate.map_or(policy, |candidate| &candidate.policy)
    }

    /// The policies of all of them.
    pub fn policies(&self) -> impl Iterator<Item = &Arc<Policy>> {
        self.named.values().map(|candidate| &candidate.policy)
    }

    /// The same candidates beside other policies, and with another content of a bundle. One that would
    /// not be good with it stays as it is, if a policy is: the bundle is the policy's first. Problems are
    /// reported.
    pub fn renewed(
        &self,
        policies: &Named<Arc<Policy>>,
        bundle: &Bundle,
        content: &Arc<Content>,
        cx: &mut Compile,
    ) -> Self {
        let mandatory = !policies.values().any(|policy| policy.uses(&bundle.name));
        let mut named = Named::new();
        for (name, candidate) in &self.named {
            let renewed = cx.at(name.clone(), |cx| {
                candidate.renewed(policies, bundle, content, &self.book, mandatory, cx)
            });
            named.insert(name.clone(), renewed);
        }
        Self::new(
            named,
            policies,
            self.rules.clone(),
            self.time,
            Arc::clone(&self.book),
        )
    }

    /// Starts what runs beside requests; the configuration is in force.
    pub fn activate(&self, control: &Handle, metrics: &Metrics) {
        let states = self.named.iter();
        let states = states.map(|(name, one)| (name.clone(), Arc::downgrade(&one.state)));
        for gone in self.book.take_over(states.collect()) {
            metrics.candidate_gone(&gone);
        }
        for candidate in self.named.values() {
            candidate.state.follow(candidate, &self.book, control);
        }
        let found = self
            .named
            .values()
            .filter(|candidate| candidate.policy.is_there());
        let found =
            found.map(|candidate| (&*candidate.name, candidate.state.text(), candidate.back()));
        if self.book.settle(found) && self.book.is_kept() {
            let book = Arc::clone(&self.book);
            control.spawn_blocking(move || book.save());
        }
    }

    /// Lets a candidate decide again. Whether it had gone back.
    pub fn resume(&self, candidate: &Candidate) -> bool {
        candidate.state.resume(&self.book, &candidate.epoch)
    }

    /// What operators should know.
    pub fn warnings(&self) -> Vec<String> {
        let mut warnings: Vec<String> = Vec::new();
        for (name, candidate) in &self.named {
            if let Some(back) = candidate.back() {
                warnings.push(format!(
                    "candidate {name}: went back, `{}` decides in its place: {}",
                    candidate.of(),
                    back.why
                ));
            }
        }
        warnings.extend(self.book.fault());
        warnings
    }

    /// What is told of all of them in short.
    pub fn told(&self) -> Value {
        let all: Vec<Value> = self.named.values().map(|one| one.told(false)).collect();
        json!({ "candidates": all, "time": self.time, "kept": self.book.is_kept() })
    }
}

impl Candidate {
    fn renewed(
        self: &Arc<Self>,
        policies: &Named<Arc<Policy>>,
        bundle: &Bundle,
        content: &Arc<Content>,
        book: &Arc<Book>,
        mandatory: bool,
        cx: &mut Compile,
    ) -> Arc<Self> {
        let Some(active) = policies.get(&**self.of()) else {
            return Arc::clone(self);
        };
        let mut policy = Arc::clone(&self.policy);
        if policy.uses(&bundle.name) {
            let mut apart = cx.apart();
            let made = policy.with_bundle(bundle, content, &mut apart);
            if let Some(made) = &made {
                self.config.check_body(made, active, &mut apart);
            }
            let failed = apart.errors() > 0;
            let (problems, _) = apart.finish();
            match made {
                Some(made) if !failed => policy = made.standing_for(self.of()),
                Some(_) | None => {
                    for mut problem in problems {
                        if !mandatory && problem.severity == Severity::Error {
                            problem.severity = Severity::Warning;
                            problem.help = Some(format!(
                                "the candidate `{}` stays as it is; the bundle is used for its policy",
                                self.name
                            ));
                        }
                        cx.report(problem);
                    }
                    return Arc::clone(self);
                }
            }
        }
        let mut apart = cx.apart();
        self.config.check_body(&policy, active, &mut apart);
        if apart.errors() > 0 {
            cx.warning(
                format!(
                    "the candidate `{}` looks at bodies that are no longer read for `{}`",
                    self.name,
                    self.of()
                ),
                "it is not asked, and decides nothing, until its policy is shown them again",
            );
        }
        let state = State::carried(&self.name, &policy, active, Some(&self.state), book, cx);
        if Arc::ptr_eq(&policy, &self.policy) && Arc::ptr_eq(&state, &self.state) {
            return Arc::clone(self);
        }
        Arc::new(Self {
            name: Arc::clone(&self.name),
            policy,
            config: self.config.clone(),
            side: self.side.as_ref().map(Side::again),
            band: self.band.clone(),
            epoch: Arc::clone(&self.epoch),
            state,
        })
    }
}

/// The settings of all candidates beside their blocks.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Of each worker's time.
    pub time: Share,
    /// Where it is kept which of them went back.
    pub state: Option<PathBuf>,
}

impl Settings {
    /// Checks them, and opens the book.
    pub fn compile(&self, previous: Option<&Candidates>, cx: &mut Compile) -> Arc<Book> {
        if !(TIME.0..=TIME.1).contains(&self.time) {
            cx.at("candidate_time", |cx| {
                cx.problem_help(
                    "the share of the workers' time is out of range",
                    format!("between `{}` and `{}`", TIME.0, TIME.1),
                );
            });
        }
        Book::open(self.state.as_deref(), previous.map(|old| &old.book), cx)
    }
}
