//! What a policy would say, for tools. No [`Permit`](super::Permit) is made here, and nothing is kept:
//! a caller of whom nothing was proven can be asked about and never let in.

use std::sync::Arc;

use super::cache::Answer;
use super::{Advice, Denial, Machines, Policy, Reason, RouteFacts, Rules, input};
use crate::authn::supposed::Supposed;
use crate::document::Value;
use crate::request::InboundRequest;

/// How often a policy is asked that spends its budget.
const ATTEMPTS: usize = 5;

/// What a policy would say of a request.
#[derive(Debug, Clone)]
pub enum Opinion {
    /// It would let it through.
    Allow(Arc<Advice>),
    /// It would not.
    Deny(Box<Denial>),
}

impl Policy {
    /// What the policy would say of this request from this caller. It opens nothing.
    pub fn opinion(
        &self,
        machines: &Machines,
        request: &InboundRequest,
        route: &RouteFacts<'_>,
        caller: &Supposed,
    ) -> Opinion {
        let compiled = match &self.rules {
            Rules::Public => return Opinion::Allow(Arc::default()),
            Rules::Absent(bundle) => return Opinion::Deny(Box::new(self.unavailable(bundle))),
            Rules::Rego(compiled) => compiled,
        };
        if let Err(error) = input::readable(request) {
            let denial = self.denial(Reason::Error, Some(error.to_string()));
            return Opinion::Deny(Box::new(denial));
        }
        let question = compiled.question(request, route, caller.unproven());
        let mut answer = self.evaluated(machines, compiled, &question, false);
        // A budget of time is spent by whatever else this machine does: nobody waits here.
        for _ in 1..ATTEMPTS {
            if !matches!(&answer, Err(denial) if denial.reason == Reason::Budget) {
                break;
            }
            answer = self.evaluated(machines, compiled, &question, false);
        }
        match answer {
            Ok(Answer::Allow(advice, _)) => Opinion::Allow(advice),
            Ok(Answer::Deny(face, gave)) => Opinion::Deny(Box::new(self.refused(&face, gave))),
            Err(denial) => Opinion::Deny(denial),
        }
    }

    /// Whether its decisions are kept, to be given again to the same question.
    pub fn remembers(&self) -> bool {
        match &self.rules {
            Rules::Public | Rules::Absent(_) => false,
            Rules::Rego(compiled) => compiled.remembered.is_some(),
        }
    }

    /// What the policy sees of a request from this caller, as far as it can read it; `None` for
    /// [`Policy::public`].
    ///
    /// # Errors
    /// [`input::Unreadable`] when the document would not be the whole request.
    pub fn supposed_input(
        &self,
        request: &InboundRequest,
        route: &RouteFacts<'_>,
        caller: &Supposed,
    ) -> Result<Option<Value>, input::Unreadable> {
        self.input(request, route, caller.unproven())
    }
}
