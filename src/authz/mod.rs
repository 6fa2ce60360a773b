//! May this caller do this now. Only this room makes a [`Permit`], and nothing is forwarded without.
//!
//! A policy is Rego: files are found by `load`, kept from harm by `guard`, `check` (with `graph`) and
//! `hazard`, tried by `gate` (in a process of its own, `child`), and run by `rego`, on the bytecode
//! machine when `subset` knows all its forms. What it sees is [`input`],
//! what its answer means is `answer`. No authentication, no limits, no status codes beyond those a
//! policy chooses.

#[cfg(test)]
mod agreement;
mod answer;
mod check;
mod child;
mod config;
mod gate;
mod generate;
mod graph;
mod guard;
mod hazard;
pub mod input;
mod load;
mod negation;
mod rego;
mod remark;
mod subset;
mod syntax;
#[cfg(test)]
mod tests;

use std::cell::RefCell;
use std::collections::HashMap;
use std::fmt;
use std::path::PathBuf;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant, SystemTime};

use http::{HeaderName, HeaderValue, StatusCode};

use crate::authn::Caller;
use crate::document::Value;
use crate::metrics::Metrics;
use crate::request::InboundRequest;

pub use child::{GATE_ARGUMENT, GATE_TIME, gate_child, set_gate_program};
pub use config::{BudgetConfig, PolicyConfig};

use answer::{Face, Verdict};
use rego::{Machine, Outcome, Program};
use remark::Remark;

/// This caller, this route, this policy revision: allowed. Made by [`Policy::decide`] alone.
#[derive(Debug)]
pub struct Permit {
    /// Who was allowed.
    pub caller: Caller,
    /// What the policy said beside yes.
    pub advice: Advice,
    /// Which policy, and which revision of it, decided.
    pub decided_by: DecidedBy,
    _seal: Seal,
}

/// Keeps other rooms from making a [`Permit`].
#[derive(Debug)]
struct Seal;

impl Permit {
    /// How long the permission holds, counted from `received_at`: until the credential ends, or the
    /// policy wants to be asked again. `None` when neither ends.
    pub fn lasts(&self, received_at: SystemTime) -> Option<Duration> {
        let credential = self.caller.identity().map(|identity| {
            identity
                .valid_until
                .duration_since(received_at)
                .unwrap_or(Duration::ZERO)
        });
        credential
            .into_iter()
            .chain(self.advice.recheck_after)
            .min()
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
#[derive(Debug)]
pub struct Denial {
    /// The kind of no.
    pub reason: Reason,
    /// `status` of the answer, if the policy chose one (401, 403, 404, 429 …: 400–499).
    pub status: Option<StatusCode>,
    /// `message`: what the policy wants the client to read.
    pub message: Option<String>,
    /// `headers` for the client.
    pub headers: Vec<(HeaderName, HeaderValue)>,
    /// `step_up`: a stronger login would help (RFC 9470).
    pub step_up: Option<StepUp>,
    /// Who decided.
    pub decided_by: DecidedBy,
    /// Detail for the record only: an engine error, the odd type of an answer.
    pub detail: Option<String>,
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
    /// An evaluation error: `policy.error`.
    Error,
    /// Time or work was spent: `policy.budget`.
    Budget,
    /// The engine panicked: `policy.panic`.
    Panic,
}

impl Reason {
    /// The stable code of the record.
    pub fn code(&self) -> &str {
        match self {
            Self::Policy(reason) => reason,
            Self::Undefined => "policy.undefined",
            Self::Answer => "policy.answer",
            Self::Error => "policy.error",
            Self::Budget => "policy.budget",
            Self::Panic => "policy.panic",
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
}

#[derive(Debug)]
enum Rules {
    /// Everybody may.
    Public,
    Rego(Box<Compiled>),
}

/// A policy that passed the gate.
#[derive(Debug)]
struct Compiled {
    program: Arc<Program>,
    /// Over files, entry point and budget; equal digests are equal policies.
    digest: String,
    files: Vec<PathBuf>,
    hidden_headers: Vec<HeaderName>,
    /// Warnings, told again when a reload takes the policy over.
    warnings: Vec<Remark>,
    metrics: Arc<Metrics>,
}

/// The evaluation machines of one core; made once per worker, filled as policies are first used.
#[derive(Default)]
pub struct Machines {
    by_policy: RefCell<HashMap<Arc<str>, Slot>>,
}

struct Slot {
    /// The program the machine holds; weak, so that a dropped policy's machine can be told.
    program: Weak<Program>,
    machine: Machine,
}

impl fmt::Debug for Machines {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Machines hold documents of requests.
        f.debug_struct("Machines").finish_non_exhaustive()
    }
}

impl Machines {
    /// The machine of this very program, ready to use; another revision's is dropped.
    fn take(&self, policy: &str, program: &Arc<Program>) -> Result<Machine, String> {
        let slot = self.by_policy.borrow_mut().remove(policy);
        match slot {
            // The weak pointer keeps the address from being given to another program.
            Some(slot) if std::ptr::eq(slot.program.as_ptr(), Arc::as_ptr(program)) => {
                Ok(slot.machine)
            }
            _ => {
                self.by_policy
                    .borrow_mut()
                    .retain(|_, slot| slot.program.strong_count() > 0);
                Machine::new(program)
            }
        }
    }

    fn give_back(&self, policy: &Arc<str>, program: &Arc<Program>, machine: Machine) {
        let program = Arc::downgrade(program);
        self.by_policy
            .borrow_mut()
            .insert(Arc::clone(policy), Slot { program, machine });
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
        })
    }

    /// What it runs on: `rvm` (compiled) or `interpreter` (about five times the cost); `none` for
    /// [`Policy::public`].
    pub fn engine(&self) -> &'static str {
        match &self.rules {
            Rules::Public => "none",
            Rules::Rego(compiled) => compiled.program.engine(),
        }
    }

    /// A digest over its files, entry point and budget: 16 hex digits of SHA-256.
    pub fn revision(&self) -> &str {
        &self.decided_by.revision
    }

    /// The files it was compiled from.
    pub fn files(&self) -> &[PathBuf] {
        match &self.rules {
            Rules::Public => &[],
            Rules::Rego(compiled) => &compiled.files,
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
            Rules::Public => return self.permit(caller, Advice::default()),
            Rules::Rego(compiled) => compiled,
        };
        let begun = Instant::now();
        let identity = caller.identity().map(|identity| &identity.document);
        let verdict = input::document(request, route, identity, &compiled.hidden_headers)
            .map_err(|error| (Reason::Error, error.to_string()))
            .and_then(|input| self.evaluate(machines, &compiled.program, input));
        let decision = match verdict {
            Ok(Verdict::Allow(advice)) => self.permit(caller, advice),
            Ok(Verdict::Deny(face)) => Decision::Deny(self.refused(face)),
            Ok(Verdict::Undefined) => Decision::Deny(self.denial(Reason::Undefined, None)),
            Ok(Verdict::Broken(why)) => Decision::Deny(self.denial(Reason::Answer, Some(why))),
            Err((reason, why)) => Decision::Deny(self.denial(reason, Some(why))),
        };
        let policy = &self.decided_by.policy;
        compiled
            .metrics
            .policy_decision(policy, decision.outcome(), begun.elapsed());
        if matches!(&decision, Decision::Deny(denial) if denial.reason == Reason::Budget) {
            compiled.metrics.policy_budget_overrun(policy);
        }
        decision
    }

    /// Runs the program on this worker's machine. A machine that did anything but answer is
    /// thrown away: nobody knows what it was left with.
    fn evaluate(
        &self,
        machines: &Machines,
        program: &Arc<Program>,
        input: Value,
    ) -> Result<Verdict, (Reason, String)> {
        let policy = &self.decided_by.policy;
        let mut machine = machines
            .take(policy, program)
            .map_err(|why| (Reason::Error, why))?;
        match machine.run(input) {
            Outcome::Answer(value) => {
                machines.give_back(policy, program, machine);
                Ok(answer::read(&value))
            }
            Outcome::Error(why) => Err((Reason::Error, why)),
            Outcome::Budget(why) => Err((Reason::Budget, why)),
            Outcome::Panic(why) => Err((Reason::Panic, why)),
        }
    }

    fn permit(&self, caller: Caller, advice: Advice) -> Decision {
        Decision::Allow(Permit {
            caller,
            advice,
            decided_by: self.decided_by.clone(),
            _seal: Seal,
        })
    }

    fn refused(&self, face: Face) -> Denial {
        Denial {
            reason: Reason::Policy(face.reason.unwrap_or_else(|| "policy.denied".to_owned())),
            status: face.status,
            message: face.message,
            headers: face.headers,
            step_up: face.step_up,
            decided_by: self.decided_by.clone(),
            detail: None,
        }
    }

    fn denial(&self, reason: Reason, detail: Option<String>) -> Denial {
        Denial {
            reason,
            status: None,
            message: None,
            headers: Vec::new(),
            step_up: None,
            decided_by: self.decided_by.clone(),
            detail,
        }
    }
}

impl Decision {
    /// A word for metrics: `allow`, `deny` or what went wrong.
    fn outcome(&self) -> &'static str {
        match self {
            Self::Allow(_) => "allow",
            Self::Deny(denial) => match denial.reason {
                Reason::Policy(_) => "deny",
                Reason::Undefined => "undefined",
                Reason::Answer => "answer",
                Reason::Error => "error",
                Reason::Budget => "budget",
                Reason::Panic => "panic",
            },
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
            advice,
            decided_by: DecidedBy {
                policy: "test".into(),
                revision: "0000000000000000".into(),
            },
            _seal: Seal,
        }
    }
}
