//! May this caller do this now. Only this room makes a [`Permit`], and nothing is forwarded without.
//!
//! A policy is Rego. What can be told from its text is told in `source`: files are found, harm is
//! kept out, what it can read is listed. `gate` tries it, in a process of its own, and `rego` runs it,
//! on the bytecode machine when that is known to agree. What it sees is [`input`], what its answer
//! means is `answer`, and `envoy` has both for policies of OPA's Envoy plugin; `body` reads bodies; a question that was asked before is answered from `cache`. No authentication,
//! no limits, no status codes beyond those a policy chooses.

mod answer;
mod body;
mod cache;
mod config;
pub mod cost;
mod edits;
mod envoy;
mod gate;
pub mod input;
pub mod inspect;
pub mod opinion;
mod published;
mod rego;
mod source;
#[cfg(test)]
mod tests;
pub mod workbench;

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant, SystemTime};

use http::{HeaderName, HeaderValue, StatusCode};

use crate::authn::Caller;
use crate::bundle::{Bundle, Content};
use crate::document::Value;
use crate::metrics::{Lookup, PolicyMetrics};
use crate::request::{InboundRequest, Rules as ReadingRules};
use crate::schema::Compile;

pub use body::{BodyConfig, BodyTerms, WhenLarger};
pub use config::{BudgetConfig, BuiltinErrors, DecisionCacheConfig, KnownBundles, PolicyConfig};
pub use edits::Edits;
pub use gate::child::{GATE_ARGUMENT, GATE_TIME, gate_child, set_gate_program};
pub use published::InputDocument;

use answer::{Face, Verdict};
use cache::projection::{Projection, Question};
use cache::{Answer, Answers, Bounds, MAX_QUESTION};
use rego::{Machine, Outcome, Program, host, profile};
use source::remark::Remark;

/// This caller, this route, this policy revision: allowed. Made by [`Policy::decide`] alone.
#[derive(Debug)]
pub struct Permit {
    /// Who was allowed.
    pub caller: Caller,
    /// What the policy said beside yes.
    pub advice: Arc<Advice>,
    /// Which policy, and which revision of it, decided.
    pub decided_by: DecidedBy,
    _seal: Seal,
}

/// Keeps other rooms from making a [`Permit`].
#[derive(Debug)]
struct Seal;

impl Permit {
    /// When the permission has to be judged again: when the credential ends, or the policy wants to be
    /// asked again. `None` when neither does.
    pub fn until(&self, received_at: SystemTime) -> Option<SystemTime> {
        let credential = self.caller.identity().map(|identity| identity.valid_until);
        let policy = self.advice.recheck_after;
        // A time beyond all time is none.
        let policy = policy.and_then(|after| received_at.checked_add(after));
        credential.into_iter().chain(policy).min()
    }

    /// The permit, if nothing that the policy changes of the request is the configuration's to write.
    ///
    /// # Errors
    /// A denial: such a policy would put words into the gateway's mouth.
    pub fn within(self, rules: &ReadingRules) -> Result<Self, Box<Denial>> {
        let edits = self.advice.edits.as_deref();
        match edits.and_then(|edits| edits.overstep(rules)) {
            None => Ok(self),
            Some(header) => {
                let why = format!("a policy may not set or remove the header `{header}`");
                let by = self.decided_by.clone();
                Err(Box::new(Denial::new(by, Reason::Answer, Some(why))))
            }
        }
    }
}

/// The policy and the revision behind a decision.
#[derive(Debug, Clone)]
pub struct DecidedBy {
    /// The policy's block in the configuration; `public` for open routes.
    pub policy: Arc<str>,
    /// A digest over the policy's modules and data.
    pub revision: Arc<str>,
}

/// What a policy may say beside yes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Advice {
    /// `reason`, for the record.
    pub reason: Option<String>,
    /// `headers`: set on the answer to the client.
    pub headers: Vec<(HeaderName, HeaderValue)>,
    /// `identity`: further claims for the upstream's identity headers and assertion.
    pub identity: Option<Value>,
    /// `limit`: a limit that this decision asks for.
    pub limit: Option<AskedLimit>,
    /// `recheck_after`: how long this answer is good. A body that still streams then is cut.
    pub recheck_after: Option<Duration>,
    /// What it changes of the request on its way to the upstream.
    pub edits: Option<Arc<Edits>>,
    /// `dynamic_metadata`, for the record: JSON.
    pub metadata: Option<Arc<str>>,
}

/// A limit that a policy's answer asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AskedLimit {
    /// What is counted together, within the policy.
    pub key: String,
    /// Requests per `per`.
    pub rate: u32,
    /// The period of `rate`.
    pub per: Duration,
    /// How many may come at once.
    pub burst: u32,
}

/// Yes or no, with what belongs to it.
#[derive(Debug)]
pub enum Decision {
    /// Forward it.
    Allow(Permit),
    /// Do not.
    Deny(Denial),
}

/// No, and why.
#[derive(Debug, Clone)]
pub struct Denial {
    /// The kind of no.
    pub reason: Reason,
    /// `status` of the answer, if the policy chose one (401, 403, 404, 429 …: 400–499; with
    /// `input: envoy` any that ends an exchange).
    pub status: Option<StatusCode>,
    /// `message`: what the policy wants the client to read.
    pub message: Option<String>,
    /// `headers` for the client.
    pub headers: Vec<(HeaderName, HeaderValue)>,
    /// `step_up`: a stronger login would help (RFC 9470).
    pub step_up: Option<StepUp>,
    /// Who decided.
    pub decided_by: DecidedBy,
    /// `body`: what the client reads instead of our own words.
    pub body: Option<Arc<str>>,
    /// `dynamic_metadata`, for the record: JSON.
    pub metadata: Option<Arc<str>>,
    /// Detail for the record only: an engine error, the odd type of an answer.
    pub detail: Option<String>,
}

impl Denial {
    fn new(decided_by: DecidedBy, reason: Reason, detail: Option<String>) -> Self {
        Self {
            reason,
            status: None,
            message: None,
            headers: Vec::new(),
            step_up: None,
            decided_by,
            body: None,
            metadata: None,
            detail,
        }
    }
}

/// What a stronger login would need (RFC 9470 section 3).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StepUp {
    /// `acr_values`, by preference.
    pub acr_values: Vec<String>,
    /// `max_age`, in seconds.
    pub max_age: Option<u64>,
}

/// The kinds of no. All of them look the same to a client, unless the policy chose a face.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reason {
    /// The policy said no; its own `reason`, or `policy.denied`.
    Policy(String),
    /// The entry point is undefined for this input: `policy.undefined`.
    Undefined,
    /// The answer has a wrong type or an unknown member: `policy.answer`.
    Answer,
    /// The policy reads the body, which can be read in two ways, or is not what it is said to be:
    /// `policy.body`.
    Body,
    /// An evaluation error: `policy.error`.
    Error,
    /// Time or work was spent: `policy.budget`.
    Budget,
    /// The engine panicked: `policy.panic`.
    Panic,
    /// A bundle that the policy uses has not been there yet: `policy.unavailable`.
    Unavailable,
}

impl Reason {
    /// The stable code of the record.
    pub fn code(&self) -> &str {
        match self {
            Self::Policy(reason) => reason,
            Self::Undefined => "policy.undefined",
            Self::Answer => "policy.answer",
            Self::Body => "policy.body",
            Self::Error => "policy.error",
            Self::Budget => "policy.budget",
            Self::Panic => "policy.panic",
            Self::Unavailable => "policy.unavailable",
        }
    }
}

/// What a route contributes to a decision.
#[derive(Debug)]
pub struct RouteFacts<'a> {
    /// The route's name.
    pub name: &'a Arc<str>,
    /// Values of the path template.
    pub params: &'a [(Arc<str>, String)],
    /// The route's labels, built once at load: an object.
    pub labels: &'a Value,
}

/// One compiled policy: an entry point over its modules and data.
#[derive(Debug)]
pub struct Policy {
    /// The policy's name and revision.
    pub decided_by: DecidedBy,
    rules: Rules,
    /// What it is made of, when that includes bundles.
    recipe: Option<Arc<config::Recipe>>,
}

#[derive(Debug)]
enum Rules {
    /// Everybody may.
    Public,
    Rego(Arc<Compiled>),
    /// Nobody may: this bundle is not there yet.
    Absent(Arc<str>),
}

/// A policy that passed the gate.
#[derive(Debug)]
struct Compiled {
    program: Arc<Program>,
    /// Over files, entry point and budget; equal digests are equal policies.
    digest: String,
    files: Vec<PathBuf>,
    hidden_headers: Vec<HeaderName>,
    /// What of its document it can read.
    sees: Sees,
    /// How much of a body is read for it; `None` when it does not look at bodies.
    body: Option<BodyTerms>,
    /// What its decisions depend on, and how many of them are kept; `None` when none are.
    remembered: Option<(Projection, Bounds)>,
    /// Warnings, told again when a reload takes the policy over.
    warnings: Vec<Remark>,
    metrics: PolicyMetrics,
}

/// A document, as far as a policy reads it.
#[derive(Debug)]
enum Sees {
    Portcullis(input::Wanted),
    Envoy(envoy::Want),
}

/// The evaluation machines of one core, with the answers that they gave; made once per worker,
/// filled as policies are first used.
#[derive(Default)]
pub struct Machines {
    by_program: RefCell<BTreeMap<u64, Slot>>,
}

/// What one core keeps of a program. Another revision of a policy is another program.
struct Slot {
    policy: Arc<str>,
    /// Tells when the policy was dropped.
    program: Weak<Program>,
    /// Absent while it runs, and after anything but an answer.
    machine: Option<Machine>,
    answers: Option<Answers>,
    /// Where questions are written; kept for its memory.
    question: Vec<u8>,
    /// How many evaluations there were.
    evaluations: u64,
    /// For those that are watched.
    watched: Option<Machine>,
}

impl fmt::Debug for Machines {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Machines hold documents of requests.
        f.debug_struct("Machines").finish_non_exhaustive()
    }
}

impl Machines {
    /// Lets go of all but these policies: a core that decides nothing would hold on to the data of
    /// those that were replaced.
    pub fn keep<'p>(&self, policies: impl Iterator<Item = &'p Arc<Policy>>) {
        let in_force: Vec<u64> = policies
            .filter_map(|policy| match &policy.rules {
                Rules::Public | Rules::Absent(_) => None,
                Rules::Rego(compiled) => Some(compiled.program.id()),
            })
            .collect();
        let mut slots = self.by_program.borrow_mut();
        slots.retain(|id, _| in_force.contains(id));
    }

    /// The slot of this very program. When it is new, those of dropped policies go, and that of
    /// another revision.
    fn with<T>(
        &self,
        policy: &Arc<str>,
        compiled: &Compiled,
        work: impl FnOnce(&mut Slot) -> T,
    ) -> T {
        let mut slots = self.by_program.borrow_mut();
        let id = compiled.program.id();
        if let Some(slot) = slots.get_mut(&id) {
            return work(slot);
        }
        slots.retain(|_, slot| slot.program.strong_count() > 0 && slot.policy != *policy);
        let bounds = compiled.remembered.as_ref().map(|(_, bounds)| *bounds);
        work(slots.entry(id).or_insert(Slot {
            policy: Arc::clone(policy),
            program: Arc::downgrade(&compiled.program),
            machine: None,
            answers: bounds.map(Answers::new),
            question: Vec::new(),
            evaluations: 0,
            watched: None,
        }))
    }

    /// How many machines are ready.
    #[cfg(test)]
    fn ready(&self) -> usize {
        let slots = self.by_program.borrow();
        slots.values().filter(|slot| slot.machine.is_some()).count()
    }
}

impl Policy {
    /// The policy of open routes: allows everybody, and says `public` in the record.
    pub fn public() -> Arc<Self> {
        let decided_by = DecidedBy {
            policy: "public".into(),
            revision: "".into(),
        };
        Arc::new(Self {
            decided_by,
            rules: Rules::Public,
            recipe: None,
        })
    }

    /// What it runs on: `rvm` (compiled) or `interpreter` (about five times the cost); `none` for
    /// [`Policy::public`].
    pub fn engine(&self) -> &'static str {
        match &self.rules {
            Rules::Public | Rules::Absent(_) => "none",
            Rules::Rego(compiled) => compiled.program.engine(),
        }
    }

    /// A digest over its files, entry point and budget: 16 hex digits of SHA-256.
    pub fn revision(&self) -> &str {
        &self.decided_by.revision
    }

    /// What its rules cost since it went live, the costliest first; empty for [`Policy::public`] and
    /// for what runs on the interpreter.
    pub fn costs(&self) -> Vec<cost::LiveCost> {
        match &self.rules {
            Rules::Public | Rules::Absent(_) => Vec::new(),
            Rules::Rego(compiled) => cost::live(compiled.program.ledger()),
        }
    }

    /// How many of its evaluations were watched for [`Policy::costs`].
    pub fn watched(&self) -> u64 {
        match &self.rules {
            Rules::Public | Rules::Absent(_) => 0,
            Rules::Rego(compiled) => compiled.program.ledger().watched(),
        }
    }

    /// The files it was compiled from.
    pub fn files(&self) -> &[PathBuf] {
        match &self.rules {
            Rules::Public | Rules::Absent(_) => &[],
            Rules::Rego(compiled) => &compiled.files,
        }
    }

    /// Whether it uses this bundle.
    pub fn uses(&self, bundle: &str) -> bool {
        let recipe = self.recipe.as_ref();
        recipe.is_some_and(|recipe| recipe.bundles.iter().any(|used| *used.name == *bundle))
    }

    /// The same policy with another content of a bundle that it uses; itself when it uses none.
    /// Blocks as [`PolicyConfig::compile`] does. Problems are reported; `None` when there is one.
    pub fn with_bundle(
        self: &Arc<Self>,
        bundle: &Bundle,
        content: &Arc<Content>,
        cx: &mut Compile,
    ) -> Option<Arc<Self>> {
        match &self.recipe {
            Some(recipe) => recipe.cook(Some(self), Some((bundle, content)), cx),
            None => Some(Arc::clone(self)),
        }
    }

    /// Itself, or, when a bundle that it uses was given up since, the policy that waits for it.
    pub fn settled(self: &Arc<Self>) -> Arc<Self> {
        let Some(recipe) = &self.recipe else {
            return Arc::clone(self);
        };
        let missing = recipe.bundles.iter().find(|bundle| bundle.active().is_none());
        missing.map_or_else(|| Arc::clone(self), |bundle| recipe.without(bundle))
    }

    /// How much of a request's body has to be read before it is asked; `None` when it does not look
    /// at bodies.
    pub fn body(&self) -> Option<BodyTerms> {
        match &self.rules {
            Rules::Public | Rules::Absent(_) => None,
            Rules::Rego(compiled) => compiled.body,
        }
    }

    /// What it sees of a request: the document, as far as its rules can read it; `None` for
    /// [`Policy::public`].
    ///
    /// # Errors
    /// [`input::Unreadable`] when the document would not be the whole request.
    pub fn input(
        &self,
        request: &InboundRequest,
        route: &RouteFacts<'_>,
        caller: &Caller,
    ) -> Result<Option<Value>, input::Unreadable> {
        match &self.rules {
            Rules::Public | Rules::Absent(_) => Ok(None),
            Rules::Rego(compiled) => {
                let question = compiled.question(request, route, caller);
                compiled.input(&question).map(Some)
            }
        }
    }

    /// Decides one request. Only the literal `true`, or an object with `"allow": true`, allows.
    pub fn decide(
        &self,
        machines: &Machines,
        request: &InboundRequest,
        route: &RouteFacts<'_>,
        caller: Caller,
    ) -> Decision {
        let compiled = match &self.rules {
            Rules::Public => return self.permit(caller, Arc::default()),
            Rules::Absent(bundle) => return Decision::Deny(self.unavailable(bundle)),
            Rules::Rego(compiled) => compiled,
        };
        let question = compiled.question(request, route, &caller);
        if let Err(error) = input::readable(request) {
            let denial = self.denial(Reason::Error, Some(error.to_string()));
            compiled.metrics.decided("error", None);
            return Decision::Deny(denial);
        }
        let policy = &self.decided_by.policy;
        let (known, asked) =
            machines.with(policy, compiled, |slot| compiled.recall(slot, &question));
        if let Some(answer) = known {
            let decision = self.answered(answer, caller);
            compiled.metrics.decided(decision.outcome(), None);
            return decision;
        }
        match self.evaluated(machines, compiled, &question, asked) {
            Ok(answer) => self.answered(answer, caller),
            Err(denial) => Decision::Deny(*denial),
        }
    }

    fn unavailable(&self, bundle: &str) -> Denial {
        let detail = format!("the bundle {bundle} is not there yet");
        self.denial(Reason::Unavailable, Some(detail))
    }

    /// Asks the policy; keeps what it answers if the question stands in the slot.
    fn evaluated(
        &self,
        machines: &Machines,
        compiled: &Compiled,
        question: &Question<'_>,
        asked: bool,
    ) -> Result<Answer, Box<Denial>> {
        let begun = Instant::now();
        let policy = &self.decided_by.policy;
        let request = question.request;
        let mut most = None;
        host::begin(host::Moment {
            // A time before 1970 has no document, and no decision either.
            now_ns: input::since_epoch(request.received_at).unwrap_or(0),
            request_id: *request.id.as_bytes(),
        });
        let outcome = match compiled.input(question) {
            Ok(input) => {
                if asked {
                    most = compiled.holds(request.received_at, &input);
                }
                compiled.evaluate(policy, machines, input)
            }
            Err(error @ input::Unreadable::Body(_)) => {
                compiled.metrics.decided("body", None);
                let denial = self.denial(Reason::Body, Some(error.to_string()));
                return Err(Box::new(denial));
            }
            Err(error) => Outcome::Error(error.to_string()),
        };
        let answer = match outcome {
            Outcome::Answer(value) => {
                let size = answer::weight(&value);
                let verdict = match compiled.sees {
                    Sees::Portcullis(_) => answer::read(&value),
                    Sees::Envoy(_) => envoy::answer::read(&value),
                };
                match verdict {
                    Verdict::Allow(advice) => Ok((Answer::Allow(Arc::new(advice)), size)),
                    Verdict::Deny(face) => Ok((Answer::Deny(Arc::new(face)), size)),
                    Verdict::Undefined => Err((Reason::Undefined, None)),
                    Verdict::Broken(why) => Err((Reason::Answer, Some(why))),
                }
            }
            Outcome::Error(why) => Err((Reason::Error, Some(why))),
            Outcome::Budget(why) => Err((Reason::Budget, Some(why))),
            Outcome::Panic(why) => Err((Reason::Panic, Some(why))),
        };
        let word = match &answer {
            Ok((Answer::Allow(_), _)) => "allow",
            Ok((Answer::Deny(_), _)) => "deny",
            Err((reason, _)) => reason.outcome(),
        };
        compiled.metrics.decided(word, Some(begun.elapsed()));
        match answer {
            Ok((answer, size)) => {
                if asked {
                    machines.with(policy, compiled, |slot| {
                        if let Some(answers) = &mut slot.answers {
                            let (identity, now) = (question.identity, request.received_at);
                            let answer = answer.clone();
                            answers.keep(&slot.question, answer, size, identity, now, most);
                        }
                    });
                }
                Ok(answer)
            }
            Err((reason, why)) => {
                if reason == Reason::Budget {
                    compiled.metrics.overrun();
                }
                Err(Box::new(self.denial(reason, why)))
            }
        }
    }

    fn answered(&self, answer: Answer, caller: Caller) -> Decision {
        match answer {
            Answer::Allow(advice) => self.permit(caller, advice),
            Answer::Deny(face) => Decision::Deny(self.refused(&face)),
        }
    }

    fn permit(&self, caller: Caller, advice: Arc<Advice>) -> Decision {
        Decision::Allow(Permit {
            caller,
            advice,
            decided_by: self.decided_by.clone(),
            _seal: Seal,
        })
    }

    fn refused(&self, face: &Face) -> Denial {
        let reason = face.reason.as_deref().unwrap_or("policy.denied");
        Denial {
            status: face.status,
            message: face.message.clone(),
            headers: face.headers.clone(),
            step_up: face.step_up.clone(),
            body: face.body.clone(),
            metadata: face.metadata.clone(),
            ..Denial::new(
                self.decided_by.clone(),
                Reason::Policy(reason.to_owned()),
                None,
            )
        }
    }

    fn denial(&self, reason: Reason, detail: Option<String>) -> Denial {
        Denial::new(self.decided_by.clone(), reason, detail)
    }
}

impl Compiled {
    fn question<'q>(
        &'q self,
        request: &'q InboundRequest,
        route: &'q RouteFacts<'q>,
        caller: &'q Caller,
    ) -> Question<'q> {
        Question {
            request,
            route,
            identity: caller.identity(),
            hidden: &self.hidden_headers,
            reads_body: self.body.is_some(),
        }
    }

    fn input(&self, question: &Question<'_>) -> Result<Value, input::Unreadable> {
        let wanted = match &self.sees {
            Sees::Portcullis(wanted) => wanted,
            Sees::Envoy(want) => return envoy::document(question, want),
        };
        let identity = question.identity.map(|identity| &identity.document);
        let (request, route) = (question.request, question.route);
        input::document(request, route, identity, question.hidden, wanted)
    }

    /// How long an answer to this input holds, by what the policy compares the time with.
    fn holds(&self, received_at: SystemTime, input: &Value) -> Option<Duration> {
        let (projection, _) = self.remembered.as_ref()?;
        projection.holds(received_at, input, self.program.data())
    }

    /// The answer given before, and whether the slot now holds the question for one that is new.
    fn recall(&self, slot: &mut Slot, question: &Question<'_>) -> (Option<Answer>, bool) {
        let (Some((projection, _)), Some(answers)) = (&self.remembered, &mut slot.answers) else {
            return (None, false);
        };
        slot.question.clear();
        let Ok(true) = projection.write(question, MAX_QUESTION, &mut slot.question) else {
            self.metrics.looked_up(Lookup::Bypass);
            return (None, false);
        };
        let known = answers.get(&slot.question, question.request.received_at);
        let lookup = if known.is_some() {
            Lookup::Hit
        } else {
            Lookup::Miss
        };
        self.metrics.looked_up(lookup);
        (known, true)
    }

    /// Runs the program on this worker's machine. A machine that did anything but answer is
    /// thrown away: nobody knows what it was left with.
    fn evaluate(&self, policy: &Arc<str>, machines: &Machines, input: Value) -> Outcome {
        let (ready, watched) = machines.with(policy, self, |slot| {
            slot.evaluations = slot.evaluations.wrapping_add(1);
            let watched = self.program.can_be_watched()
                && slot.evaluations % profile::ONE_IN == profile::ONE_IN / 8;
            let ready = if watched {
                slot.watched.take()
            } else {
                slot.machine.take()
            };
            (ready, watched)
        });
        let made = match ready {
            Some(machine) => Ok(machine),
            None if watched => Machine::watched(&self.program).ok_or_else(String::new),
            None => Machine::new(&self.program),
        };
        let mut machine = match made {
            Ok(machine) => machine,
            Err(why) => return Outcome::Error(why),
        };
        if watched {
            profile::begin(true);
        }
        let outcome = machine.run(input);
        if watched {
            let counted = profile::end();
            let spent = matches!(outcome, Outcome::Budget(_));
            let ledger = self.program.ledger();
            ledger.charge(&counted, spent, |rule, evaluations, time, spent| {
                self.metrics.rule(rule, evaluations, time, spent);
            });
        }
        if matches!(outcome, Outcome::Answer(_)) {
            machines.with(policy, self, |slot| {
                let place = if watched {
                    &mut slot.watched
                } else {
                    &mut slot.machine
                };
                *place = Some(machine);
            });
        }
        outcome
    }
}

impl Reason {
    /// A word for metrics.
    fn outcome(&self) -> &'static str {
        match self {
            Self::Policy(_) => "deny",
            Self::Undefined => "undefined",
            Self::Answer => "answer",
            Self::Body => "body",
            Self::Error => "error",
            Self::Budget => "budget",
            Self::Panic => "panic",
            Self::Unavailable => "unavailable",
        }
    }
}

impl Decision {
    /// A word for metrics: `allow`, `deny` or what went wrong.
    fn outcome(&self) -> &'static str {
        match self {
            Self::Allow(_) => "allow",
            Self::Deny(denial) => denial.reason.outcome(),
        }
    }
}

#[cfg(test)]
impl Permit {
    /// A permit that no policy gave, for the tests of other rooms.
    #[allow(dead_code, reason = "used by the rooms behind this one")]
    pub(crate) fn for_tests(caller: Caller, advice: Advice) -> Self {
        Self {
            caller,
            advice: Arc::new(advice),
            decided_by: DecidedBy {
                policy: "test".into(),
                revision: "0000000000000000".into(),
            },
            _seal: Seal,
        }
    }
}
