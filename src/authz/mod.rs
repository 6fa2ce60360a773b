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
pub mod replay;
mod said;
pub mod screen;
mod source;
#[cfg(test)]
mod tests;
pub mod told;
pub mod workbench;

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;
use std::sync::{Arc, OnceLock, Weak};
use std::time::{Duration, Instant, SystemTime};

use http::{HeaderName, HeaderValue, StatusCode};

use crate::ascii;
use crate::authn::Caller;
use crate::bundle::{Bundle, Content};
use crate::document::Value;
use crate::metrics::{Lookup, PolicyMetrics};
use crate::request::{InboundRequest, Rules as ReadingRules};
use crate::schema::Compile;

pub use body::{BodyConfig, BodyTerms, WhenLarger};
pub use config::{BudgetConfig, BuiltinErrors, DecisionCacheConfig, KnownBundles, PolicyConfig};
pub(crate) use config::{cache_or_false, cache_or_false_schema};
pub use edits::Edits;
pub use gate::child::{GATE_ARGUMENT, GATE_TIME, gate_child, set_gate_program};
pub use published::InputDocument;
pub use said::{Said, Terms};

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
    /// What it gave.
    pub ruling: Ruling,
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
                let mut denial = Denial::new(self.decided_by, Reason::Answer, Some(why));
                denial.ruling = self.ruling;
                Err(Box::new(denial))
            }
        }
    }
}

/// The policy and the revision behind a decision. A clone is the same one: it is counted once for each
/// request, in a place that all workers share.
#[derive(Debug, Clone)]
pub struct DecidedBy(Arc<Basis>);

/// What a decision rests on.
#[derive(Debug, Clone)]
pub struct Basis {
    /// The policy's block in the configuration; `public` for open routes.
    pub policy: Arc<str>,
    /// A digest over the policy's modules and data.
    pub revision: Arc<str>,
    /// The candidate that decided in the policy's place; `revision` is its own then.
    pub candidate: Option<Arc<str>>,
    /// The rule that decides: `data.orders.decision`. `None` without rules.
    pub entrypoint: Option<Box<str>>,
    /// A digest over its data alone: 16 hex digits of SHA-256 over their canonical form. `None` without
    /// rules.
    pub data: Option<Box<str>>,
    /// The bundles that it uses, each with its revision.
    pub bundles: Vec<(Arc<str>, String)>,
    /// The members of the record from `name` to `bundles`, without braces.
    record: OnceLock<Box<str>>,
}

impl DecidedBy {
    /// A policy of this name and revision.
    pub fn new(policy: impl Into<Arc<str>>, revision: impl Into<Arc<str>>) -> Self {
        Self(Arc::new(Basis {
            policy: policy.into(),
            revision: revision.into(),
            candidate: None,
            entrypoint: None,
            data: None,
            bundles: Vec::new(),
            record: OnceLock::new(),
        }))
    }

    /// This one as a candidate for the place of another policy. One that stands for another policy
    /// already keeps its own name.
    fn standing_for(&self, of: &Arc<str>) -> Self {
        let mut basis = Basis::clone(&self.0);
        let own = std::mem::replace(&mut basis.policy, Arc::clone(of));
        basis.candidate.get_or_insert(own);
        basis.record = OnceLock::new();
        Self(Arc::new(basis))
    }

    /// What its machines are kept under: names of candidates are no names of policies.
    fn slot(&self) -> &Arc<str> {
        self.candidate.as_ref().unwrap_or(&self.policy)
    }

    /// What the record says of it, in ASCII: the members from `name` to `bundles`.
    pub fn record(&self) -> &str {
        self.record.get_or_init(|| {
            let mut out = Vec::new();
            ascii::raw(&mut out, b"\"name\":");
            ascii::text(&mut out, &self.policy);
            ascii::raw(&mut out, b",\"revision\":");
            ascii::text(&mut out, &self.revision);
            ascii::raw(&mut out, b",\"entrypoint\":");
            ascii::maybe(&mut out, self.entrypoint.as_deref());
            ascii::raw(&mut out, b",\"data\":");
            ascii::maybe(&mut out, self.data.as_deref());
            ascii::raw(&mut out, b",\"candidate\":");
            ascii::maybe(&mut out, self.candidate.as_deref());
            if !self.bundles.is_empty() {
                ascii::raw(&mut out, b",\"bundles\":{");
                for (nth, (name, revision)) in self.bundles.iter().enumerate() {
                    if nth > 0 {
                        out.push(b',');
                    }
                    ascii::text(&mut out, name);
                    out.push(b':');
                    ascii::text(&mut out, revision);
                }
                out.push(b'}');
            }
            String::from_utf8(out).unwrap_or_default().into()
        })
    }
}

impl std::ops::Deref for DecidedBy {
    type Target = Basis;

    fn deref(&self) -> &Basis {
        &self.0
    }
}

/// What a policy's entry point gave, and how it came to that: for the record.
#[derive(Debug, Clone, Default)]
pub struct Ruling {
    /// What it gave; absent when that was nothing.
    pub answer: Option<Gave>,
    /// Whether it was given before, to an equal question.
    pub cached: bool,
    /// How long the evaluation took, if there was one.
    pub took: Option<Duration>,
}

/// How an answer came about.
#[derive(Debug, Clone, Copy, Default)]
struct Ran {
    cached: bool,
    took: Option<Duration>,
}

/// A value that an entry point gave.
#[derive(Debug, Clone)]
pub enum Gave {
    /// Its canonical form, see [`ascii::value`], but for credentials that it hands on.
    Text {
        /// JSON, in ASCII.
        text: Arc<str>,
        /// JSON Pointers to what is masked in it, from `/answer` on: texts with commas between them.
        masked: Option<Arc<str>>,
    },
    /// That would be larger than [`MAX_GIVEN`].
    Larger,
}

/// Longest value of an entry point that is kept for the record, in bytes of its canonical form, with
/// the list of what is masked in it.
pub const MAX_GIVEN: usize = 16 * 1024;

impl Gave {
    fn of(value: &Value) -> Option<Self> {
        if *value == Value::Undefined {
            return None;
        }
        if answer::size(value, answer::MAX_ANSWER).is_none() {
            return Some(Self::Larger);
        }
        let shown = told::answer::Shown::of(value);
        let (text, masked) = (shown.text(), shown.masked());
        Some(if text.len() + masked.len() > MAX_GIVEN {
            Self::Larger
        } else {
            Self::Text {
                text: text.into(),
                masked: (!masked.is_empty()).then(|| masked.into()),
            }
        })
    }

    /// What it weighs in memory.
    fn weight(&self) -> usize {
        match self {
            Self::Text { text, masked } => {
                text.len() + 16 + masked.as_ref().map_or(0, |masked| masked.len() + 16)
            }
            Self::Larger => 0,
        }
    }
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
    /// What the policy gave.
    pub ruling: Ruling,
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
            ruling: Ruling::default(),
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
    /// Over what it does with its data: modules without tests, entry point, how they are read. 16 hex
    /// digits of SHA-256.
    text: String,
    files: Vec<PathBuf>,
    /// What it was compiled from, without tests, to be asked again for its reasons.
    modules: Arc<Vec<rego::Source>>,
    entrypoint: String,
    errors: BuiltinErrors,
    hidden_headers: Vec<HeaderName>,
    /// What of its document it can read.
    sees: Sees,
    /// Paths of its document that its decisions can depend on, each with all that lies below.
    reads: Vec<Vec<source::reads::Step>>,
    /// Whether its answers depend on more than that: the time, or what is no function of the document.
    impure: bool,
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
        let decided_by = DecidedBy::new("public", "");
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

    /// All that it takes to ask why it decided as it did; `None` for [`Policy::public`].
    pub fn to_explain(&self) -> Option<workbench::why::Text> {
        let Rules::Rego(compiled) = &self.rules else {
            return None;
        };
        let headers = compiled.hidden_headers.iter();
        Some(workbench::why::Text {
            policy: Arc::clone(&self.decided_by.policy),
            revision: Arc::clone(&self.decided_by.revision),
            entrypoint: compiled.entrypoint.clone(),
            modules: Arc::clone(&compiled.modules),
            data: compiled.program.data().clone(),
            errors: compiled.errors,
            input: match compiled.sees {
                Sees::Portcullis(_) => InputDocument::Portcullis,
                Sees::Envoy(_) => InputDocument::Envoy,
            },
            hidden_headers: headers.map(ToString::to_string).collect(),
            bodies: compiled.body.is_some(),
            reads: compiled
                .remembered
                .is_some()
                .then(|| compiled.reads.clone()),
        })
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
        let missing = recipe
            .bundles
            .iter()
            .find(|bundle| bundle.active().is_none());
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
        let answer = self.answer(machines, request, route, &caller);
        self.decision(answer, caller)
    }

    fn decision(&self, answer: Result<(Answer, Ran), Box<Denial>>, caller: Caller) -> Decision {
        match answer {
            Ok((answer, ran)) => self.answered(answer, ran, caller),
            Err(denial) => Decision::Deny(*denial),
        }
    }

    /// Its answer, given before or now.
    fn answer(
        &self,
        machines: &Machines,
        request: &InboundRequest,
        route: &RouteFacts<'_>,
        caller: &Caller,
    ) -> Result<(Answer, Ran), Box<Denial>> {
        let compiled = match &self.rules {
            Rules::Public => return Ok((Answer::Allow(Arc::default(), None), Ran::default())),
            Rules::Absent(bundle) => return Err(Box::new(self.unavailable(bundle))),
            Rules::Rego(compiled) => compiled,
        };
        let question = compiled.question(request, route, caller);
        if let Err(error) = input::readable(request) {
            let denial = self.denial(Reason::Error, Some(error.to_string()));
            compiled.metrics.decided("error", None);
            return Err(Box::new(denial));
        }
        // Whoever looks at bodies must not take one that nobody has read for one that is harmless.
        if compiled.body.is_some() && request.excerpt.is_none() {
            compiled.metrics.decided("body", None);
            let why = "no body was read for it".to_owned();
            return Err(Box::new(self.denial(Reason::Body, Some(why))));
        }
        let slot = self.decided_by.slot();
        let (known, asked) = machines.with(slot, compiled, |slot| compiled.recall(slot, &question));
        if let Some(answer) = known {
            let word = match &answer {
                Answer::Allow(..) => "allow",
                Answer::Deny(..) => "deny",
            };
            compiled.metrics.decided(word, None);
            let ran = Ran {
                cached: true,
                took: None,
            };
            return Ok((answer, ran));
        }
        let begun = Instant::now();
        let answer = self.evaluated(machines, compiled, &question, asked);
        let took = Some(begun.elapsed());
        match answer {
            Ok(answer) => Ok((
                answer,
                Ran {
                    cached: false,
                    took,
                },
            )),
            Err(mut denial) => {
                denial.ruling.took = took;
                Err(denial)
            }
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
        let policy = self.decided_by.slot();
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
                let gave = Gave::of(&value);
                let size = answer::weight(&value) + gave.as_ref().map_or(0, Gave::weight);
                let verdict = match compiled.sees {
                    Sees::Portcullis(_) => answer::read(&value),
                    Sees::Envoy(_) => envoy::answer::read(&value),
                };
                match verdict {
                    Verdict::Allow(advice) => Ok((Answer::Allow(Arc::new(advice), gave), size)),
                    Verdict::Deny(face) => Ok((Answer::Deny(Arc::new(face), gave), size)),
                    Verdict::Undefined => Err((Reason::Undefined, None, None)),
                    Verdict::Broken(why) => Err((Reason::Answer, Some(why), gave)),
                }
            }
            Outcome::Error(why) => Err((Reason::Error, Some(why), None)),
            Outcome::Budget(why) => Err((Reason::Budget, Some(why), None)),
            Outcome::Panic(why) => Err((Reason::Panic, Some(why), None)),
        };
        let word = match &answer {
            Ok((Answer::Allow(..), _)) => "allow",
            Ok((Answer::Deny(..), _)) => "deny",
            Err((reason, ..)) => reason.outcome(),
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
            Err((reason, why, gave)) => {
                if reason == Reason::Budget {
                    compiled.metrics.overrun();
                }
                let mut denial = self.denial(reason, why);
                denial.ruling.answer = gave;
                Err(Box::new(denial))
            }
        }
    }

    fn answered(&self, answer: Answer, ran: Ran, caller: Caller) -> Decision {
        let (cached, took) = (ran.cached, ran.took);
        let ruling = |answer| Ruling {
            answer,
            cached,
            took,
        };
        match answer {
            Answer::Allow(advice, gave) => Decision::Allow(Permit {
                caller,
                advice,
                decided_by: self.decided_by.clone(),
                ruling: ruling(gave),
                _seal: Seal,
            }),
            Answer::Deny(face, gave) => {
                let mut denial = self.refused(&face, None);
                denial.ruling = ruling(gave);
                Decision::Deny(denial)
            }
        }
    }

    fn refused(&self, face: &Face, gave: Option<Gave>) -> Denial {
        let reason = face.reason.as_deref().unwrap_or("policy.denied");
        Denial {
            status: face.status,
            message: face.message.clone(),
            headers: face.headers.clone(),
            step_up: face.step_up.clone(),
            body: face.body.clone(),
            metadata: face.metadata.clone(),
            ruling: Ruling {
                answer: gave,
                ..Ruling::default()
            },
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
        let identity = question.identity.map(|identity| identity.document());
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

#[cfg(test)]
impl Permit {
    /// A permit that no policy gave, for the tests of other rooms.
    #[allow(dead_code, reason = "used by the rooms behind this one")]
    pub(crate) fn for_tests(caller: Caller, advice: Advice) -> Self {
        Self {
            caller,
            advice: Arc::new(advice),
            decided_by: DecidedBy::new("test", "0000000000000000"),
            ruling: Ruling::default(),
            _seal: Seal,
        }
    }
}
