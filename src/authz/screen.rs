//! Rules about other things than requests: which records are kept, and what of them is masked. They
//! are policies like others, checked and bounded in the same way; what they see is a document that
//! another room makes, and what they answer is that room's to read. No
//! [`Permit`](super::Permit) is made here.

use std::path::PathBuf;
use std::sync::Arc;

use super::config::{BuiltinErrors, DecisionCacheConfig, PolicyConfig};
use super::published::InputDocument;
use super::rego::{Outcome, host};
use super::source::reads::Step;
use super::{BudgetConfig, Machines, Policy, Rules};
use crate::document::Value;
use crate::schema::Compile;

/// One entry point of such rules.
#[derive(Debug, Clone)]
pub struct Screen(Arc<Policy>);

/// Why there is no answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Unanswered {
    /// Something went wrong in the rules.
    #[error("{0}")]
    Failed(String),
    /// They took more than one decision may.
    #[error("the budget was spent: {0}")]
    Budget(String),
    /// The engine panicked.
    #[error("the engine panicked")]
    Panic,
}

/// What an answer depends on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Depends {
    /// These parts of the document, each by the names that lead to it, with all below.
    On(Vec<Vec<String>>),
    /// The time, or all of the document.
    OnAll,
}

impl Screen {
    /// Compiles the rules of these files; takes over `previous` when nothing changed. Blocks as
    /// [`PolicyConfig::compile`] does. `errors` is what becomes of a function that fails: no answer at
    /// all, or, as OPA has it, a rule that does not hold.
    pub fn compile(
        name: &str,
        files: &[PathBuf],
        entrypoint: &str,
        errors: BuiltinErrors,
        previous: Option<&Self>,
        cx: &mut Compile,
    ) -> Option<Self> {
        let config = PolicyConfig {
            files: files.to_vec(),
            bundles: Vec::new(),
            entrypoint: entrypoint.to_owned(),
            // Of this document nothing is known to be there that such rules could read: none of its
            // members has the name of one of theirs.
            input: InputDocument::Envoy,
            body: None,
            budget: BudgetConfig::default(),
            builtin_errors: Some(errors),
            decision_cache: DecisionCacheConfig {
                max_entries: 0,
                ..DecisionCacheConfig::default()
            },
            hidden_headers: Vec::new(),
        };
        let previous = previous.map(|screen| &screen.0);
        config.compile(name, previous, cx).map(Self)
    }

    /// Whether it is the very same.
    pub fn is(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }

    /// What the entry point gives for this document; `None` for nothing. `now_ns` is the time (since
    /// 1970) that the rules are told.
    ///
    /// # Errors
    /// Why it gave no answer at all.
    pub fn answer(
        &self,
        machines: &Machines,
        document: Value,
        now_ns: u64,
    ) -> Result<Option<Value>, Unanswered> {
        let Rules::Rego(compiled) = &self.0.rules else {
            return Err(Unanswered::Failed("there are no rules".to_owned()));
        };
        host::begin(host::Moment {
            now_ns,
            request_id: [b'0'; 32],
        });
        match compiled.evaluate(&self.0.decided_by.policy, machines, document) {
            Outcome::Answer(Value::Undefined) => Ok(None),
            Outcome::Answer(value) => Ok(Some(value)),
            Outcome::Error(why) => Err(Unanswered::Failed(why)),
            Outcome::Budget(why) => Err(Unanswered::Budget(why)),
            Outcome::Panic(_) => Err(Unanswered::Panic),
        }
    }

    /// What the answer depends on.
    pub fn depends(&self) -> Depends {
        let Rules::Rego(compiled) = &self.0.rules else {
            return Depends::OnAll;
        };
        if compiled.impure {
            return Depends::OnAll;
        }
        let names = |path: &Vec<Step>| -> Vec<String> {
            path.iter()
                .map_while(|step| match step {
                    Step::Name(name) => Some(name.clone()),
                    Step::Index(_) => None,
                })
                .collect()
        };
        let paths: Vec<Vec<String>> = compiled.reads.iter().map(names).collect();
        if paths.iter().any(Vec::is_empty) {
            return Depends::OnAll;
        }
        Depends::On(paths)
    }
}
