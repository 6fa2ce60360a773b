//! Why a policy answered as it did: the rules that held and, for a no, the first condition that failed
//! on each way to yes.
//!
//! Nothing is traced while a request is decided. Its record has all that was not the same for every
//! request, so the question can be asked again: of the interpreter, with beginnings of each body
//! beside the policy's rules. The first beginning without a solution ends with the condition that
//! failed, and the one before it has the values. Where a condition asks for a rule, it goes on there
//! (`search`). What is told names places in the author's files, also where the text was rewritten.

mod ask;
mod search;
mod secret;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::{Held, Unanswered, Watch};
use crate::ascii;
use crate::authz::BuiltinErrors;
use crate::authz::answer::{self, Verdict};
use crate::authz::envoy;
use crate::authz::published::InputDocument;
use crate::authz::replay;
use crate::authz::source::reads::{self, Step};
use crate::document::{self, Value};
use crate::schema::Problem;

use ask::Asker;
use search::Search;

/// Most values that are told of a condition.
pub(super) const MAX_VALUES: usize = 12;
/// How deep rules are followed into the rules that they ask.
const MAX_DEPTH: usize = 12;
/// Most ways that are told of a rule that a condition asked for; of the entry point.
const MAX_WAYS: usize = 4;
const MAX_ENTRY_WAYS: usize = 12;
/// Most rules that are named as having held.
const MAX_HELD: usize = 64;
/// Most questions to the interpreter.
const MAX_QUESTIONS: usize = 2_000;

/// A policy as it decided: all that it takes to ask it again. Data is shared with the policy.
#[derive(Debug, Clone)]
pub struct Text {
    /// The policy's block in the configuration.
    pub policy: Arc<str>,
    /// As in records.
    pub revision: Arc<str>,
    /// The rule that decides.
    pub entrypoint: String,
    /// Files and their texts, without tests.
    pub modules: Arc<Vec<(String, String)>>,
    /// What `data` holds beside the rules.
    pub data: Value,
    /// What errors of builtins make of a decision.
    pub errors: BuiltinErrors,
    /// What the policy sees.
    pub input: InputDocument,
    /// Headers that it is not shown.
    pub hidden_headers: Vec<String>,
    /// Whether it is shown bodies.
    pub bodies: bool,
    /// Paths of the document that it can read, when equal questions have equal answers.
    pub(in crate::authz) reads: Option<Vec<Vec<Step>>>,
}

/// A text as it is written to a file.
#[derive(Debug, Serialize, Deserialize)]
struct Written {
    /// Of this format: 1.
    version: u32,
    policy: String,
    revision: String,
    entrypoint: String,
    modules: Vec<(String, String)>,
    /// JSON.
    data: String,
    errors: BuiltinErrors,
    input: InputDocument,
    #[serde(default)]
    hidden_headers: Vec<String>,
    #[serde(default)]
    bodies: bool,
}

impl Text {
    /// The text for a file.
    ///
    /// # Errors
    /// When the data cannot be written as JSON.
    pub fn to_json(&self) -> Result<Vec<u8>, String> {
        let data = self.data.to_json_str().map_err(|error| error.to_string())?;
        let written = Written {
            version: 1,
            policy: self.policy.to_string(),
            revision: self.revision.to_string(),
            entrypoint: self.entrypoint.clone(),
            modules: self.modules.to_vec(),
            data,
            errors: self.errors,
            input: self.input,
            hidden_headers: self.hidden_headers.clone(),
            bodies: self.bodies,
        };
        serde_json::to_vec(&written).map_err(|error| error.to_string())
    }

    /// Reads what [`Text::to_json`] wrote.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn from_json(bytes: &[u8]) -> Result<Self, String> {
        let written: Written = serde_json::from_slice(bytes).map_err(|error| error.to_string())?;
        if written.version != 1 {
            return Err(format!(
                "it has version {}, and this program knows 1",
                written.version
            ));
        }
        let data = document::from_json(written.data.as_bytes());
        Ok(Self {
            policy: written.policy.into(),
            revision: written.revision.into(),
            entrypoint: written.entrypoint,
            modules: Arc::new(written.modules),
            data: data.map_err(|error| error.to_string())?,
            errors: written.errors,
            input: written.input,
            hidden_headers: written.hidden_headers,
            bodies: written.bodies,
            reads: None,
        })
    }

    /// About how many bytes it takes with its data; `None` when that is more than `most`.
    pub fn weight(&self, most: usize) -> Option<usize> {
        let modules: usize = self.modules.iter().map(|(_, text)| text.len()).sum();
        let left = answer::size(&self.data, most.checked_sub(modules)?)?;
        Some(most - left)
    }

    /// The text of modules without data, for the tests of other rooms.
    #[cfg(test)]
    pub(crate) fn of_module(
        policy: &str,
        revision: &str,
        entrypoint: &str,
        modules: Vec<(String, String)>,
    ) -> Self {
        Self {
            policy: policy.into(),
            revision: revision.into(),
            entrypoint: entrypoint.to_owned(),
            modules: Arc::new(modules),
            data: Value::new_object(),
            errors: BuiltinErrors::Deny,
            input: InputDocument::Portcullis,
            hidden_headers: Vec::new(),
            bodies: false,
            reads: Some(vec![Vec::new()]),
        }
    }

    /// What of a question the policy can read; `None` when equal questions may have other answers.
    pub fn question(&self, input: &Value) -> Option<String> {
        let mut question = String::new();
        for path in self.reads.as_ref()? {
            let mut value = Some(input);
            for step in path {
                value = value.and_then(|value| match (step, value) {
                    (Step::Name(name), value) => document::member(value, name),
                    (Step::Index(index), Value::Array(items)) => items.get(*index),
                    (Step::Index(_), _) => None,
                });
            }
            question.push_str(&value.map(ascii::canonical).unwrap_or_default());
            question.push('\n');
        }
        Some(question)
    }
}

/// A question that was decided.
#[derive(Debug, Clone)]
pub struct Asked {
    /// The document.
    pub input: Value,
    /// The request's one clock reading, nanoseconds since 1970.
    pub received_at_ns: u64,
    /// The request's id, from which what is random is made.
    pub request_id: String,
    /// JSON Pointers below the document to what is not told: it was masked or left out.
    pub masked: Vec<String>,
    /// Longest time for all of it.
    pub time: Duration,
}

/// Why a policy answered as it did.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Why {
    /// Whether the answer is a yes.
    pub allow: bool,
    /// The answer, canonical JSON; `None` when the entry point is undefined.
    pub answer: Option<String>,
    /// The rules that gave it.
    pub rules: Vec<Held>,
    /// For a no: the ways to yes, the one that came nearest first.
    pub ways: Vec<Way>,
    /// What was not looked at, and why.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub left_out: Vec<String>,
    /// What was not looked at could be what failed.
    #[serde(skip)]
    pub unsure: bool,
}

impl Why {
    /// Takes out everything that could show the answer, for what the record has of it.
    pub fn hide_answer(&mut self, recorded: Option<String>) {
        self.answer = recorded;
        secret::conceal(&mut self.ways, true);
    }
}

/// A body of a rule that could have made it hold, and did not.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Way {
    /// The rule's path.
    pub rule: String,
    /// Where the body, or the value before it, begins.
    pub file: String,
    /// From 1.
    pub line: usize,
    /// From 1.
    pub column: usize,
    /// The value that it would give, as it is written.
    pub gives: String,
    /// How many conditions it has.
    pub conditions: usize,
    /// How many held before the first that failed.
    pub held: usize,
    /// The first that failed.
    pub failed: Condition,
    /// What else is in the way.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub also: Vec<Condition>,
}

/// What about a condition is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// It failed.
    Failed,
    /// It is a body further up that held: it answered first.
    Earlier,
    /// All conditions held, and the value is no yes.
    Value,
    /// It could not be evaluated.
    Error,
    /// It held.
    Held,
}

/// A condition, with the values that mattered.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Condition {
    /// What about it.
    pub kind: Kind,
    /// Its file.
    pub file: String,
    /// From 1.
    pub line: usize,
    /// From 1.
    pub column: usize,
    /// As the author wrote it.
    pub text: String,
    /// Names and parts of it with their values.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub values: Vec<Known>,
    /// Conditions that belong to it: of a body that held, or within `every`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub within: Vec<Self>,
    /// The rules that it asked.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub because: Vec<Because>,
    /// The error.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// It has to do with a credential: its values are not told.
    #[serde(skip)]
    pub(super) secret: bool,
}

impl Condition {
    /// `file:line:column`.
    pub fn at(&self) -> String {
        format!("{}:{}:{}", self.file, self.line, self.column)
    }
}

/// A value that mattered.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Known {
    /// A name or a part of the condition.
    pub name: String,
    /// JSON, or `undefined`; cut when it is long; `***` where it stands beside a credential.
    pub value: String,
    /// Whether the record does not have the value.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub masked: bool,
    /// Whether it is what the document has at a path, and nothing else.
    #[serde(skip)]
    pub of_input: bool,
}

/// A rule that a condition asked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Because {
    /// Its path; of a function with its arguments.
    pub rule: String,
    /// What it is: JSON, or `undefined`; cut when it is long.
    pub value: String,
    /// No body held: it is its default.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub default: bool,
    /// The bodies that gave the value.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub held: Vec<Condition>,
    /// The bodies that did not hold, the nearest first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ways: Vec<Way>,
    /// How many more of them there are.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub more: usize,
    /// Why it is so is told where the rule is named first.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub told: bool,
    /// Its value looks like a credential.
    #[serde(skip)]
    pub(super) secret: bool,
}

#[expect(
    clippy::trivially_copy_pass_by_ref,
    reason = "serde hands over a reference"
)]
const fn is_zero(number: &usize) -> bool {
    *number == 0
}

/// A rule by the module and its place in it.
type Spot = (usize, usize);

/// A policy that can be asked why, again and again.
#[derive(Debug)]
pub struct Explainer {
    asker: Asker,
    entrypoint: Vec<String>,
    input: InputDocument,
    hidden_headers: Vec<String>,
    bodies: bool,
    /// Paths of the document that it can read.
    reads: Vec<Vec<Step>>,
    /// Rules by their paths.
    index: BTreeMap<Vec<String>, Vec<Spot>>,
}

impl Explainer {
    /// Reads a policy.
    ///
    /// # Errors
    /// Everything that keeps its modules from being read.
    pub fn open(text: &Text) -> Result<Self, Vec<Problem>> {
        let reading = super::reading(text.errors, text.input);
        let bench = super::opened(&text.modules, &text.data, reading, Watch::Nothing)
            .map_err(super::problems)?;
        let mut index: BTreeMap<Vec<String>, Vec<Spot>> = BTreeMap::new();
        for (number, module) in bench.modules.iter().enumerate() {
            for (place, rule) in module.policy.iter().enumerate() {
                let path = search::rule_names(module, rule);
                index.entry(path).or_default().push((number, place));
            }
        }
        let reads = reads::of(&bench.modules, &text.entrypoint);
        Ok(Self {
            reads: reads.all_paths(text.input),
            entrypoint: text.entrypoint.split('.').map(str::to_owned).collect(),
            input: text.input,
            hidden_headers: text.hidden_headers.clone(),
            bodies: text.bodies,
            asker: Asker::new(bench),
            index,
        })
    }

    /// The first of these JSON Pointers into a record that leads to something that the answer can
    /// depend on, or holds such a thing.
    pub fn reads_any<'p>(&self, pointers: impl IntoIterator<Item = &'p str>) -> Option<&'p str> {
        replay::touched(&self.reads, pointers)
    }

    /// Asks again, and why.
    ///
    /// # Errors
    /// [`Unanswered`] when there is no answer at all; what could not be looked at afterwards is told in
    /// [`Why::left_out`].
    pub fn why(&mut self, asked: &Asked) -> Result<Why, Unanswered> {
        let until = Instant::now() + asked.time;
        let mut input = asked.input.clone();
        let hidden = self.hidden_headers.iter().map(String::as_str);
        replay::hide(&mut input, self.input, hidden, self.bodies);
        self.asker.begin(asked, input, until);
        let entry = self.entrypoint.join(".");
        let value = self.asker.value(&entry)?;
        let allow = value
            .as_ref()
            .is_some_and(|value| means_yes(value, self.input));
        let mut search = Search::new(&mut self.asker, &self.index, &asked.masked);
        let rules = search.held(&self.entrypoint);
        let ways = if allow {
            Vec::new()
        } else {
            let member = match self.input {
                InputDocument::Portcullis => "allow",
                InputDocument::Envoy => "allowed",
            };
            search.entry(&self.entrypoint, member)
        };
        let mut told = search.told();
        let unsure = search.unsure();
        let left_out = search.left_out();
        self.asker.end();
        let mut ways = ways;
        ways.iter_mut().for_each(|way| told.way(way));
        secret::conceal(&mut ways, false);
        Ok(Why {
            allow,
            answer: value.as_ref().map(ascii::canonical),
            rules,
            ways,
            left_out,
            unsure,
        })
    }
}

fn means_yes(value: &Value, input: InputDocument) -> bool {
    let verdict = match input {
        InputDocument::Portcullis => answer::read(value),
        InputDocument::Envoy => envoy::answer::read(value),
    };
    matches!(verdict, Verdict::Allow(_))
}

impl Asked {
    /// The question of a record, from its document as JSON.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn of(
        input: &str,
        received_at_ns: u64,
        request_id: &str,
        masked: Vec<String>,
        time: Duration,
    ) -> Result<Self, String> {
        let input = document::from_json(input.as_bytes()).map_err(|error| error.to_string())?;
        Ok(Self {
            input,
            received_at_ns,
            request_id: request_id.to_owned(),
            masked,
            time,
        })
    }
}
