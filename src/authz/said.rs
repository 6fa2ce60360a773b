//! What a policy said of a request, to be compared with what another said of it. No
//! [`Permit`](super::Permit) is made here: nothing is forwarded by it.

use std::fmt;
use std::sync::Arc;

use super::answer::Face;
use super::cache::Answer;
use super::{Advice, Decision, Denial, Machines, Policy, Ran, Reason, RouteFacts, Rules};
use crate::authn::Caller;
use crate::request::{InboundRequest, Rules as ReadingRules};

/// What a policy said.
#[derive(Debug, Clone)]
pub enum Said {
    /// Yes.
    Yes(Arc<Advice>),
    /// No.
    No(No),
    /// Nothing that is an answer, which denies.
    Failed(Reason),
}

/// A policy's own no.
#[derive(Debug, Clone)]
pub struct No(Arc<Face>);

/// What differs of two answers that are both a yes, or both a no.
#[derive(Clone, Copy, PartialEq, Eq, Default)]
pub struct Terms(u16);

impl Terms {
    const REASON: Self = Self(1);
    const STATUS: Self = Self(1 << 1);
    const MESSAGE: Self = Self(1 << 2);
    const HEADERS: Self = Self(1 << 3);
    const IDENTITY: Self = Self(1 << 4);
    const LIMIT: Self = Self(1 << 5);
    const EDITS: Self = Self(1 << 6);
    const RECHECK: Self = Self(1 << 7);
    const STEP_UP: Self = Self(1 << 8);
    const BODY: Self = Self(1 << 9);

    const ALL: [(Self, &'static str); 10] = [
        (Self::REASON, "reason"),
        (Self::STATUS, "status"),
        (Self::MESSAGE, "message"),
        (Self::HEADERS, "headers"),
        (Self::IDENTITY, "identity"),
        (Self::LIMIT, "limit"),
        (Self::EDITS, "edits"),
        (Self::RECHECK, "recheck_after"),
        (Self::STEP_UP, "step_up"),
        (Self::BODY, "body"),
    ];

    /// Whether nothing differs.
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// The members that differ, as answers name them.
    pub fn names(self) -> impl Iterator<Item = &'static str> {
        let all = Self::ALL.into_iter();
        all.filter_map(move |(term, name)| (self.0 & term.0 != 0).then_some(name))
    }

    fn mark(&mut self, term: Self, differs: bool) {
        if differs {
            self.0 |= term.0;
        }
    }
}

impl fmt::Debug for Terms {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.names()).finish()
    }
}

impl Said {
    fn of(answer: &Result<(Answer, Ran), Box<Denial>>) -> Self {
        match answer {
            Ok((Answer::Allow(advice, _), _)) => Self::Yes(Arc::clone(advice)),
            Ok((Answer::Deny(face, _), _)) => Self::No(No(Arc::clone(face))),
            Err(denial) => Self::Failed(denial.reason.clone()),
        }
    }

    /// Whether it is a yes.
    pub const fn allows(&self) -> bool {
        matches!(self, Self::Yes(_))
    }

    /// A word for what is no answer: `undefined`, `error`, `budget`, `panic`, `answer`, `body`,
    /// `unavailable`.
    pub fn failure(&self) -> Option<&'static str> {
        match self {
            Self::Yes(_) | Self::No(_) => None,
            Self::Failed(reason) => Some(reason.outcome()),
        }
    }

    /// The stable code of a record: the policy's `reason`, `policy.denied`, `policy.error`, …; `None`
    /// for a yes without one.
    pub fn code(&self) -> Option<&str> {
        match self {
            Self::Yes(advice) => advice.reason.as_deref(),
            Self::No(No(face)) => Some(face.reason.as_deref().unwrap_or("policy.denied")),
            Self::Failed(reason) => Some(reason.code()),
        }
    }

    /// The same, unless it changes of the request what is the configuration's to write: then it would
    /// be no answer. As [`super::Permit::within`].
    #[must_use]
    pub fn within(self, rules: &ReadingRules) -> Self {
        let oversteps = match &self {
            Self::Yes(advice) => {
                let edits = advice.edits.as_deref();
                edits.is_some_and(|edits| edits.overstep(rules).is_some())
            }
            Self::No(_) | Self::Failed(_) => false,
        };
        if oversteps {
            Self::Failed(Reason::Answer)
        } else {
            self
        }
    }

    /// What differs, beyond yes and no. Of what is only for the record, `dynamic_metadata`, nothing is
    /// compared.
    pub fn terms_against(&self, other: &Self) -> Terms {
        let mut terms = Terms::default();
        match (self, other) {
            (Self::Yes(a), Self::Yes(b)) => {
                // The answer of a policy that says no more than yes is the same each time.
                if Arc::ptr_eq(a, b) {
                    return terms;
                }
                terms.mark(Terms::REASON, a.reason != b.reason);
                terms.mark(Terms::HEADERS, a.headers != b.headers);
                terms.mark(Terms::IDENTITY, a.identity != b.identity);
                terms.mark(Terms::LIMIT, a.limit != b.limit);
                terms.mark(Terms::RECHECK, a.recheck_after != b.recheck_after);
                terms.mark(Terms::EDITS, a.edits != b.edits);
            }
            (Self::No(No(a)), Self::No(No(b))) => {
                if Arc::ptr_eq(a, b) {
                    return terms;
                }
                terms.mark(Terms::REASON, a.reason != b.reason);
                terms.mark(Terms::STATUS, a.status != b.status);
                terms.mark(Terms::MESSAGE, a.message != b.message);
                terms.mark(Terms::HEADERS, a.headers != b.headers);
                terms.mark(Terms::STEP_UP, a.step_up != b.step_up);
                terms.mark(Terms::BODY, a.body != b.body);
            }
            (Self::Failed(a), Self::Failed(b)) => terms.mark(Terms::REASON, a != b),
            (Self::Yes(_) | Self::No(_) | Self::Failed(_), _) => {
                terms.mark(Terms::REASON, self.code() != other.code());
            }
        }
        terms
    }
}

impl Policy {
    /// Decides one request, as [`Policy::decide`] does, and tells what was said apart from it.
    pub fn judge(
        &self,
        machines: &Machines,
        request: &InboundRequest,
        route: &RouteFacts<'_>,
        caller: Caller,
    ) -> (Decision, Said) {
        let answer = self.answer(machines, request, route, &caller);
        let said = Said::of(&answer);
        (self.decision(answer, caller), said)
    }

    /// What it says of a request that is decided by another. Answers that were given before are given
    /// again, and kept, as for [`Policy::decide`].
    pub fn say(
        &self,
        machines: &Machines,
        request: &InboundRequest,
        route: &RouteFacts<'_>,
        caller: &Caller,
    ) -> Said {
        Said::of(&self.answer(machines, request, route, caller))
    }

    /// The same policy as a candidate that may decide in the place of `of`. Its records, and the limits
    /// that it asks for, are those of that policy.
    pub fn standing_for(self: &Arc<Self>, of: &Arc<str>) -> Arc<Self> {
        if self.decided_by.policy == *of {
            return Arc::clone(self);
        }
        let rules = match &self.rules {
            Rules::Public => Rules::Public,
            Rules::Rego(compiled) => Rules::Rego(Arc::clone(compiled)),
            Rules::Absent(bundle) => Rules::Absent(Arc::clone(bundle)),
        };
        Arc::new(Self {
            decided_by: self.decided_by.standing_for(of),
            rules,
            recipe: self.recipe.clone(),
        })
    }

    /// Whether it can be asked: all bundles that it uses are there.
    pub fn is_there(&self) -> bool {
        !matches!(self.rules, Rules::Absent(_))
    }

    /// A digest over what it does with its data: its modules without their tests, and the rule that
    /// decides. Empty for [`Policy::public`], and as long as a bundle is missing.
    pub fn text(&self) -> &str {
        match &self.rules {
            Rules::Public | Rules::Absent(_) => "",
            Rules::Rego(compiled) => &compiled.text,
        }
    }
}
