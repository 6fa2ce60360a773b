//! Asking candidates behind the answer: one for each worker.
//!
//! What a request was judged by is seen while it is decided ([`Shadow::wants`], [`Shadow::see`]) and put
//! in line when its answer is made or its client is gone ([`Sighting`] is dropped then). A task of the
//! worker comes by a moment later, asks and compares, in slices between which requests are served, and
//! never for longer than each candidate's share of the time. Nothing on the way to an answer waits for
//! it, and nothing that happens here can change one: a panic of whatever is asked ends its comparison.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::Rc;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use tokio::sync::Notify;

use super::band::Judged;
use super::callers;
use super::purse::Purse;
use super::report::{Event, Flip, LeftOut, SAMPLES, Sample, Tally, clipped};
use super::state::State;
use super::{Candidate, Candidates, Contest};
use crate::authn::Caller;
use crate::authz::{Machines, Policy, RouteFacts, Said, Terms};
use crate::request::{InboundRequest, RequestId};

/// Most requests of one worker that wait to be compared.
const MAX_WAITING: usize = 1_024;
/// How long requests wait for others, so that one visit does for many.
const GATHER: Duration = Duration::from_millis(2);
/// How long requests that are served wait for comparisons at most, beyond the one under way.
const SLICE: Duration = Duration::from_micros(50);
/// Least time between two samples of one worker, once there are enough.
const SAMPLE_EVERY: Duration = Duration::from_millis(100);

/// Finds again what a request was judged by.
pub type Facts<T> =
    fn(&T, &InboundRequest, &mut dyn FnMut(&Candidates, &Arc<Policy>, &RouteFacts<'_>));

/// What waits to be compared on one worker. `T` keeps the configuration that the requests were judged
/// by.
#[derive(Debug)]
pub struct Shadow<T> {
    facts: Facts<T>,
    line: RefCell<VecDeque<Job<T>>>,
    locals: RefCell<Vec<Local>>,
    news: Notify,
}

/// What was said of a request on its way.
#[derive(Debug)]
pub struct Seen {
    /// Who asked.
    pub caller: Caller,
    /// What whoever decided it said.
    pub said: Said,
    /// Which candidate of the contest decided; `None` for the policy itself.
    pub by: Option<usize>,
}

#[derive(Debug)]
struct Job<T> {
    held: T,
    request: Rc<InboundRequest>,
    decision_id: RequestId,
    seen: Seen,
}

/// A request that is to be compared once its answer is made. Dropping it puts it in line.
#[derive(Debug)]
pub struct Sighting<T> {
    shadow: Rc<Shadow<T>>,
    job: Option<Job<T>>,
}

impl<T> Drop for Sighting<T> {
    fn drop(&mut self) {
        if let Some(job) = self.job.take() {
            self.shadow.put(job);
        }
    }
}

/// What a worker keeps of a candidate.
#[derive(Debug)]
struct Local {
    state: Weak<State>,
    /// For requests that others decided.
    asked: Purse,
    /// For those that it decided, of which its policy is asked.
    judged: Purse,
    tally: Tally,
    /// By kind: how many samples were taken, and when the last was.
    sampled: [(usize, Option<Instant>); 3],
}

impl Local {
    fn new(state: &Arc<State>, now: Instant) -> Self {
        Self {
            state: Arc::downgrade(state),
            asked: Purse::full(now),
            judged: Purse::full(now),
            tally: Tally::default(),
            sampled: [(0, None); 3],
        }
    }
}

/// What of a candidate's time is for which purse.
fn shares(candidates: &Candidates, candidate: &Candidate) -> (u32, u32) {
    let each = candidates.each;
    if candidate.side.is_some() {
        (each / 2, each / 2)
    } else {
        (each, 0)
    }
}

impl<T> Shadow<T> {
    /// Nothing waits yet.
    pub fn new(facts: Facts<T>) -> Self {
        Self {
            facts,
            line: RefCell::default(),
            locals: RefCell::default(),
            news: Notify::new(),
        }
    }

    fn local<R>(&self, candidate: &Candidate, work: impl FnOnce(&mut Local) -> R) -> R {
        let mut locals = self.locals.borrow_mut();
        // Few: a search costs less than any map.
        let known = locals
            .iter()
            .position(|local| std::ptr::eq(local.state.as_ptr(), Arc::as_ptr(&candidate.state)));
        if let Some(local) = known.and_then(|at| locals.get_mut(at)) {
            return work(local);
        }
        let mut local = Local::new(&candidate.state, Instant::now());
        let result = work(&mut local);
        locals.push(local);
        result
    }

    /// Whether a request is to be compared: somebody is to be asked about it who has time left. What is
    /// left out for want of time is counted. `by` is who decides it.
    pub fn wants(
        &self,
        candidates: &Candidates,
        contest: &Contest,
        id: &RequestId,
        by: Option<usize>,
    ) -> bool {
        let mut wanted = false;
        for (place, candidate) in contest.runners.iter().enumerate() {
            let judged = by == Some(place);
            if !judged && !candidate.samples(id) {
                continue;
            }
            wanted |= self.local(candidate, |local| {
                let (asked_share, judged_share) = shares(candidates, candidate);
                let (purse, share) = if judged {
                    (&mut local.judged, judged_share)
                } else {
                    (&mut local.asked, asked_share)
                };
                if !purse.has() {
                    purse.fill(Instant::now(), share);
                }
                // One that failed is judged at any rate, and nobody knows yet whether it will.
                purse.has() || judged
            });
        }
        if !wanted {
            for candidate in contest.runners.iter().filter(|one| one.samples(id)) {
                self.local(candidate, |local| local.tally.leave_out(LeftOut::Time));
            }
            self.news.notify_one();
        }
        wanted
    }

    /// Notes what a candidate decided in the place of its policy.
    pub fn decided(&self, candidate: &Candidate, allows: bool) {
        candidate
            .state
            .metrics
            .decided(if allows { "allow" } else { "deny" });
        self.local(candidate, |local| {
            let count = if allows {
                &mut local.tally.decided.0
            } else {
                &mut local.tally.decided.1
            };
            *count += 1;
            local.tally.any = true;
        });
    }

    /// A request to be compared when it has its answer.
    pub fn see(
        self: &Rc<Self>,
        held: T,
        request: Rc<InboundRequest>,
        decision_id: RequestId,
        seen: Seen,
    ) -> Sighting<T> {
        Sighting {
            shadow: Rc::clone(self),
            job: Some(Job {
                held,
                request,
                decision_id,
                seen,
            }),
        }
    }

    fn put(&self, job: Job<T>) {
        let mut line = self.line.borrow_mut();
        if line.len() < MAX_WAITING {
            line.push_back(job);
            if line.len() > 1 {
                // Somebody is on the way already.
                return;
            }
        } else {
            drop(line);
            self.leave_out(&job, LeftOut::Queue);
        }
        self.news.notify_one();
    }

    fn leave_out(&self, job: &Job<T>, why: LeftOut) {
        (self.facts)(&job.held, &job.request, &mut |candidates, active, _| {
            let Some(contest) = candidates.contest(active) else {
                return;
            };
            for (place, candidate) in contest.runners.iter().enumerate() {
                let decided = job.seen.by == Some(place);
                if !decided && !candidate.samples(&job.request.id) {
                    continue;
                }
                self.local(candidate, |local| {
                    local.tally.leave_out(why);
                    if decided {
                        // Unknown means no: it may have failed alone.
                        local.tally.judged.add(Judged {
                            decided: 1,
                            errors: u64::from(job.seen.said.failure().is_some()),
                            ..Judged::default()
                        });
                    }
                });
            }
        });
    }

    /// Compares what comes in. Does not end; to be run beside the requests of the same worker.
    pub async fn keep(&self, machines: &Machines) {
        loop {
            self.news.notified().await;
            tokio::time::sleep(GATHER).await;
            while self.visit(machines) {
                // Requests first.
                tokio::task::yield_now().await;
            }
        }
    }

    /// One slice. Whether there is more to do.
    pub fn visit(&self, machines: &Machines) -> bool {
        let begun = Instant::now();
        loop {
            let job = self.line.borrow_mut().pop_front();
            let Some(job) = job else {
                break;
            };
            // Unwind safety: machines that were under way are gone, and numbers may be one too small.
            let done = catch_unwind(AssertUnwindSafe(|| self.compare(&job, machines)));
            if done.is_err() {
                tracing::error!(
                    decision_id = job.decision_id.as_str(),
                    "comparing a decision with its candidates broke down"
                );
                self.leave_out(&job, LeftOut::Changed);
            }
            if begun.elapsed() >= SLICE {
                break;
            }
        }
        self.tell();
        !self.line.borrow().is_empty()
    }

    /// Hands the numbers on, and lets go of candidates that are no more.
    fn tell(&self) {
        let mut locals = self.locals.borrow_mut();
        locals.retain_mut(|local| {
            let Some(state) = local.state.upgrade() else {
                return false;
            };
            if !local.tally.any {
                return true;
            }
            let Some(mut report) = state.report_now() else {
                // Somebody copies it; what was counted is told the next time.
                self.news.notify_one();
                return true;
            };
            {
                let begun = Instant::now();
                let flips = !local.tally.events.is_empty();
                state.metrics.compared(
                    local.tally.compared.same(),
                    Flip::ALL.map(|flip| (flip.word(), local.tally.compared.of(flip))),
                );
                for (word, count) in &local.tally.failures {
                    state.metrics.failed(word, *count);
                }
                for why in LeftOut::ALL {
                    let count = local.tally.left_out.get(why.place()).copied().unwrap_or(0);
                    state.metrics.left_out(why.word(), count);
                }
                report.take(&mut local.tally);
                drop(report);
                if flips {
                    // To write them down may cost more than to find them.
                    local.asked.spend(begun.elapsed());
                }
            }
            true
        });
    }

    fn compare(&self, job: &Job<T>, machines: &Machines) {
        let mut found = false;
        (self.facts)(&job.held, &job.request, &mut |candidates, active, route| {
            if let Some(contest) = candidates.contest(active) {
                found = true;
                self.compare_in(candidates, contest, job, route, machines);
            }
        });
        if !found {
            self.leave_out(job, LeftOut::Changed);
        }
    }

    fn compare_in(
        &self,
        candidates: &Candidates,
        contest: &Contest,
        job: &Job<T>,
        route: &RouteFacts<'_>,
        machines: &Machines,
    ) {
        let (request, caller) = (&*job.request, &job.seen.caller);
        let mut clock = Instant::now();
        let decided = job.seen.by.and_then(|place| contest.runners.get(place));
        let policy_said = match decided {
            None => job.seen.said.clone().within(&candidates.rules),
            Some(candidate) => {
                let failed = job.seen.said.failure().is_some();
                let has_time = self.local(candidate, |local| {
                    local.judged.fill(clock, shares(candidates, candidate).1);
                    // What failed is asked about at any rate, within bounds.
                    local.judged.has() || (failed && !local.judged.is_in_debt())
                });
                if !contest.can_ask(candidate) {
                    return self.leave_out(job, LeftOut::Unavailable);
                }
                if !has_time {
                    return self.leave_out(job, LeftOut::Time);
                }
                let said = contest.policy.say(machines, request, route, caller);
                let now = Instant::now();
                self.local(candidate, |local| {
                    local.judged.spend(now.saturating_duration_since(clock));
                });
                clock = now;
                said.within(&candidates.rules)
            }
        };
        for (place, candidate) in contest.runners.iter().enumerate() {
            let decided = job.seen.by == Some(place);
            if !decided && !candidate.samples(&request.id) {
                continue;
            }
            let why_not = self.local(candidate, |local| {
                if !contest.can_ask(candidate) {
                    return Some(LeftOut::Unavailable);
                }
                local.asked.fill(clock, shares(candidates, candidate).0);
                (!decided && !local.asked.has()).then_some(LeftOut::Time)
            });
            if let Some(why) = why_not {
                self.local(candidate, |local| local.tally.leave_out(why));
                continue;
            }
            let said = if decided {
                job.seen.said.clone()
            } else {
                candidate.policy.say(machines, request, route, caller)
            };
            let said = said.within(&candidates.rules);
            let flip = flip(&policy_said, &said);
            self.local(candidate, |local| {
                let tally = &mut local.tally;
                tally.on_route(route.name, flip.map(|(flip, _)| flip));
                let failure = said.failure();
                if let Some(word) = failure {
                    tally.failed(word);
                }
                if decided {
                    let alone = failure.is_some() && policy_said.failure().is_none();
                    let is = |what: Flip| flip.is_some_and(|(flip, _)| flip == what);
                    let denies = !alone && is(Flip::Denies);
                    if denies {
                        tally.denied.count(callers::number(caller, request), 1);
                    }
                    tally.judged.add(Judged {
                        decided: 1,
                        compared: 1,
                        denials: u64::from(denies),
                        permits: u64::from(is(Flip::Permits)),
                        errors: u64::from(alone),
                    });
                }
                if let Some((flip, terms)) = flip {
                    let wanted = local.wants_sample(flip, clock);
                    let sample = wanted.then(|| {
                        let revision = &contest.policy.decided_by.revision;
                        let revisions = (
                            Arc::clone(revision),
                            Arc::clone(&candidate.policy.decided_by.revision),
                        );
                        Box::new(sampled(job, route, decided, terms, revisions))
                    });
                    local.tally.events.push(Event {
                        flip,
                        caller: caller_name(caller, request),
                        from: code(&policy_said),
                        to: code(&said),
                        sample,
                    });
                }
                let now = Instant::now();
                local.asked.spend(now.saturating_duration_since(clock));
                clock = now;
            });
        }
    }
}

impl Local {
    /// All of the first flips, and some of a flood.
    fn wants_sample(&mut self, flip: Flip, now: Instant) -> bool {
        let place = Flip::ALL.into_iter().position(|one| one == flip);
        let Some((count, last)) = place.and_then(|place| self.sampled.get_mut(place)) else {
            return false;
        };
        let due = last.is_none_or(|last| now.saturating_duration_since(last) >= SAMPLE_EVERY);
        let wanted = *count < SAMPLES || due;
        if wanted {
            *count += 1;
            *last = Some(now);
        }
        wanted
    }
}

/// How the candidate differs from its policy; `None` when it does not.
fn flip(policy: &Said, candidate: &Said) -> Option<(Flip, Terms)> {
    match (policy.allows(), candidate.allows()) {
        (true, false) => Some((Flip::Denies, Terms::default())),
        (false, true) => Some((Flip::Permits, Terms::default())),
        (true, true) | (false, false) => {
            let terms = policy.terms_against(candidate);
            (!terms.is_empty()).then_some((Flip::Terms, terms))
        }
    }
}

/// The reason, or the word for having none.
fn code(said: &Said) -> Arc<str> {
    match said.code() {
        Some(code) => clipped(code),
        None => "(allowed)".into(),
    }
}

fn caller_name(caller: &Caller, request: &InboundRequest) -> Arc<str> {
    match caller.identity() {
        Some(identity) => clipped(&identity.id),
        None => format!("anonymous from {}", request.client).into(),
    }
}

fn sampled<T>(
    job: &Job<T>,
    route: &RouteFacts<'_>,
    decided: bool,
    terms: Terms,
    revisions: (Arc<str>, Arc<str>),
) -> Sample {
    Sample {
        at: job.request.received_at,
        decision_id: job.decision_id,
        request_id: job.request.id,
        route: Arc::clone(route.name),
        method: clipped(job.request.method.as_str()).as_ref().to_owned(),
        path: masked(&job.request, route),
        decided,
        terms,
        revisions,
    }
}

/// The path with names in the place of its parameters' values.
fn masked(request: &InboundRequest, route: &RouteFacts<'_>) -> String {
    /// Longer paths say no more.
    const LONGEST: usize = 256;
    let mut path = String::new();
    let segments: Vec<String> = request.path.segments().collect();
    for (at, segment) in segments.iter().enumerate() {
        let rest = || segments.get(at..).unwrap_or_default().join("/");
        let param = route.params.iter().find(|(_, value)| value == segment);
        if path.len() > LONGEST {
            path.push_str("/…");
            break;
        }
        path.push('/');
        if let Some((name, _)) = param {
            path.push_str(&format!("{{{name}}}"));
        } else if let Some((name, _)) = route
            .params
            .iter()
            .find(|(_, value)| value.contains('/') && *value == rest())
        {
            path.push_str(&format!("{{*{name}}}"));
            break;
        } else {
            path.push_str(segment);
        }
    }
    if path.is_empty() {
        "/".to_owned()
    } else {
        path
    }
}
