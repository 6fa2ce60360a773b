//! Why a recorded decision was made, told from its record and the text of its policy.
//!
//! Denials get a short form of it as the member `why` before they leave memory, as far as a budget of
//! CPU allows: equal questions are asked once, and what is left without can be explained later. It
//! costs requests nothing, for it happens on the audit thread, and what is told was checked: the
//! answer is the recorded one, byte for byte.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use memchr::memmem::Finder;
use serde_json::{Map, Value as Json, json};

use super::read::{Entry, Kind};
use super::stage::{Passed, Place, Stage};
use super::texts::Texts;
use crate::authz::told::answer_as_told;
use crate::authz::workbench::Held;
use crate::authz::workbench::why::{Asked, Because, Condition, Explainer, Text, Way, Why};
use crate::metrics::Metrics;

/// The share of one core that is spent on it.
const SHARE: f64 = 0.05;
/// How much of that can be saved up, in seconds.
const SAVED: f64 = 0.2;
/// Longest time for one denial.
const LONGEST: Duration = Duration::from_millis(50);
/// Most equal questions that are remembered.
const MAX_MEMO: usize = 4096;
/// Most bytes of what is remembered.
const MAX_MEMO_BYTES: usize = 8 << 20;
/// Most policies that are held ready.
const MAX_EXPLAINERS: usize = 8;
/// Largest policy, with its data, that is asked here, in bytes.
const MAX_TEXT: usize = 32 << 20;
/// Longest `why` of a record, in bytes.
const MAX_WHY: usize = 4096;
/// Most rules that are named in it.
const MAX_RULES: usize = 8;
/// How deep it follows rules.
const MAX_DEPTH: usize = 4;
/// What stands in a record before the decision of a policy: behind the policy itself.
const DECISION: &[u8] = b"},\"decision\":";

/// Why a decision cannot be told of.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Untold {
    /// No policy was asked.
    #[error("it did not come to a policy")]
    NoPolicy,
    /// An open route.
    #[error("the route is open: no rules were asked")]
    Public,
    /// The record does not have what the policy saw.
    #[error("the record has no input: {0}")]
    NoInput(String),
    /// Nobody kept the policy.
    #[error("the text of revision {0} is not to be had")]
    NoText(String),
    /// It is not a record.
    #[error("the record cannot be read: {0}")]
    Unreadable(String),
    /// The policy read what the record does not have.
    #[error("it cannot be told for sure: `{0}` is masked or left out, and the policy reads it")]
    Masked(String),
    /// Asked again, the policy says something else.
    #[error(
        "the answer cannot be reproduced: recorded was {recorded}, asked again it is {again}{hint}"
    )]
    Other {
        /// The recorded answer.
        recorded: String,
        /// What it says now.
        again: String,
        /// What may be the reason.
        hint: String,
    },
    /// Asked again, it gives no answer.
    #[error("asked again, the policy gives no answer: {0}")]
    Unanswered(String),
}

/// A decision as a record tells it.
#[derive(Debug)]
pub struct Question<'l> {
    entry: Entry<'l>,
    /// The policy's name.
    pub policy: String,
    /// Its revision.
    pub revision: String,
    /// The candidate that decided in its place.
    pub candidate: Option<String>,
    input: &'l str,
    hidden: Vec<String>,
}

impl<'l> Question<'l> {
    /// The question of a record.
    ///
    /// # Errors
    /// Why there is none.
    pub fn of(line: &'l [u8]) -> Result<Self, Untold> {
        let unreadable = |why: &dyn std::fmt::Display| Untold::Unreadable(why.to_string());
        let entry = Entry::of(line).map_err(|error| unreadable(&error))?;
        if entry.kind == Kind::Opa {
            return Err(unreadable(&"it is an event of OPA's decision log"));
        }
        let by = entry.policy().ok_or(Untold::NoPolicy)?;
        let revision = by.revision.unwrap_or_default();
        if by.name == "public" && revision.is_empty() {
            return Err(Untold::Public);
        }
        let Some(input) = entry.input else {
            let why = match (entry.input_left_out(), entry.kind) {
                (Some(why), _) => why.into_owned(),
                (None, Kind::Record(1)) => "it has version 1, which never has one".to_owned(),
                (None, _) => "it was masked, or the policy was not asked".to_owned(),
            };
            return Err(Untold::NoInput(why));
        };
        let hidden = entry.hidden().map_err(|error| unreadable(&error))?;
        Ok(Self {
            policy: by.name,
            candidate: by.candidate,
            revision,
            input,
            hidden,
            entry,
        })
    }

    /// The question as the policy is asked it again.
    fn asked(&self, time: Duration) -> Result<Asked, Untold> {
        let below = |pointer: &String| pointer.strip_prefix("/input").map(str::to_owned);
        let masked = self.hidden.iter().filter_map(below).collect();
        let at = self.entry.received_at_ns().unwrap_or_default();
        let id = self.entry.request_id().unwrap_or_default();
        Asked::of(self.input, at, &id, masked, time).map_err(Untold::Unreadable)
    }

    /// Why it was decided like that.
    ///
    /// # Errors
    /// [`Untold`].
    pub fn explain(&self, explainer: &mut Explainer, time: Duration) -> Result<Why, Untold> {
        let mut why = self.ask(explainer, time)?;
        self.check(&why)?;
        if self.hides_answer() {
            why.hide_answer(self.entry.answer.map(str::to_owned));
        } else {
            // As the record has it: without the credentials that it hands on.
            why.answer = why.answer.as_deref().map(answer_as_told);
        }
        Ok(why)
    }

    /// Why whatever is explained here would answer as it does, be it the policy that decided or another:
    /// the record's answer is not looked at.
    ///
    /// # Errors
    /// [`Untold`].
    pub fn ask(&self, explainer: &mut Explainer, time: Duration) -> Result<Why, Untold> {
        // With another value in its place another condition fails.
        if let Some(read) = explainer.reads_any(self.hidden.iter().map(String::as_str)) {
            return Err(Untold::Masked(read.to_owned()));
        }
        explainer
            .why(&self.asked(time)?)
            .map_err(|error| Untold::Unanswered(error.to_string()))
    }

    /// What the record does not have of the answer: pointers below it.
    fn hidden_answer(&self) -> impl Iterator<Item = &str> {
        let below = self
            .hidden
            .iter()
            .filter_map(|it| it.strip_prefix("/answer"));
        below.filter(|rest| rest.is_empty() || rest.starts_with('/'))
    }

    fn hides_answer(&self) -> bool {
        self.hidden_answer().next().is_some() || self.entry.answer_left_out().is_some()
    }

    /// Holds the answer against the recorded one.
    fn check(&self, why: &Why) -> Result<(), Untold> {
        if why.answer.as_deref() == self.entry.answer {
            return Ok(());
        }
        let again = why.answer.as_deref();
        if self.hides_answer() {
            return self.check_rest(why.allow, again);
        }
        // Lines are ASCII, answers need not be.
        let plain = |text: &str| serde_json::from_str::<Json>(text).ok();
        // Nor do records have the credentials that an answer hands on.
        let again = again.map(answer_as_told);
        let again = again.as_deref();
        if let (Some(recorded), Some(again)) = (self.entry.answer, again)
            && plain(recorded).is_some()
            && plain(recorded) == plain(again)
        {
            return Ok(());
        }
        // A record without an answer has the reason of that: time was short, or the engine failed.
        let hint = if self.hidden.is_empty() {
            String::new()
        } else {
            format!("; the record does not have {}", self.hidden.join(", "))
        };
        Err(Untold::Other {
            recorded: self.entry.answer.unwrap_or("undefined").to_owned(),
            again: again.unwrap_or("undefined").to_owned(),
            hint,
        })
    }

    /// Holds what the record has of the answer against it. What it has not is shown to nobody.
    fn check_rest(&self, allow: bool, again: Option<&str>) -> Result<(), Untold> {
        let whole =
            self.entry.answer_left_out().is_some() || self.hidden_answer().any(str::is_empty);
        let same = if whole {
            allow == (self.entry.decision().as_deref() == Some("allow"))
        } else {
            let rest = |text: Option<&str>| {
                let mut answer = serde_json::from_str::<Json>(text?).ok()?;
                self.hidden_answer().for_each(|it| take(&mut answer, it));
                Some(answer)
            };
            rest(self.entry.answer) == rest(again)
        };
        if same {
            return Ok(());
        }
        Err(Untold::Other {
            recorded: self.entry.answer.unwrap_or("masked").to_owned(),
            again: "another".to_owned(),
            hint: ", which is not shown: the record's is masked, or left out".to_owned(),
        })
    }
}

/// Takes a value out: members go, elements become `null`, for the others keep their places.
fn take(value: &mut Json, pointer: &str) {
    let Some((above, name)) = pointer.rsplit_once('/') else {
        return;
    };
    let Some(parent) = value.pointer_mut(above) else {
        return;
    };
    if let Some(members) = parent.as_object_mut() {
        members.remove(&name.replace("~1", "/").replace("~0", "~"));
    } else if let Some(element) = name.parse::<usize>().ok().and_then(|at| parent.get_mut(at)) {
        *element = Json::Null;
    }
}

/// Explains one record with the text of its policy.
///
/// # Errors
/// [`Untold`].
pub fn explain(line: &[u8], text: &Text, time: Duration) -> Result<Why, Untold> {
    let question = Question::of(line)?;
    let mut explainer = Explainer::open(text).map_err(|problems| {
        let first = problems.into_iter().next();
        Untold::Unanswered(first.map_or_else(String::new, |problem| problem.message))
    })?;
    question.explain(&mut explainer, time)
}

/// Puts `why` into records of denials.
pub(super) struct Reasons {
    texts: Arc<Texts>,
    metrics: Arc<Metrics>,
    decision: Finder<'static>,
    explainers: Vec<Ready>,
    /// What was told of equal questions; empty when it cannot be told.
    memo: BTreeMap<String, Arc<[u8]>>,
    memo_bytes: usize,
    budget: Budget,
}

/// A policy that can be asked; `None` when it cannot.
struct Ready {
    text: Arc<Text>,
    explainer: Option<Explainer>,
}

/// Seconds of CPU that may be spent.
struct Budget {
    left: f64,
    at: Instant,
}

impl Budget {
    fn new() -> Self {
        Self {
            left: SAVED,
            at: Instant::now(),
        }
    }

    fn is_spent(&mut self, now: Instant) -> bool {
        let earned = now.saturating_duration_since(self.at).as_secs_f64() * SHARE;
        self.left = (self.left + earned).min(SAVED);
        self.at = now;
        self.left <= 0.0
    }

    fn spend(&mut self, time: Duration) {
        self.left -= time.as_secs_f64();
    }
}

impl Reasons {
    pub(super) fn new(texts: Arc<Texts>, metrics: Arc<Metrics>) -> Self {
        Self {
            texts,
            metrics,
            decision: Finder::new(DECISION),
            explainers: Vec::new(),
            memo: BTreeMap::new(),
            memo_bytes: 0,
            budget: Budget::new(),
        }
    }

    /// The member's value; empty when it cannot be told.
    fn told(&mut self, line: &[u8]) -> Option<Arc<[u8]>> {
        let question = Question::of(line).ok()?;
        // A mask rule says so.
        if question.hidden.iter().any(|pointer| pointer == "/why") {
            return None;
        }
        let text = self.texts.current(&question.policy, &question.revision)?;
        let asked = question.asked(LONGEST).ok()?;
        let key = text.question(&asked.input).map(|read| {
            let answer = question.entry.answer.unwrap_or_default();
            let (policy, revision) = (&question.policy, &question.revision);
            let hidden = question.hidden.join(" ");
            format!("{policy}\n{revision}\n{answer}\n{hidden}\n{read}")
        });
        if let Some(known) = key.as_ref().and_then(|key| self.memo.get(key)) {
            self.metrics.audit_why("remembered");
            return Some(Arc::clone(known));
        }
        let told: Arc<[u8]> = match self.ready(&text) {
            Some(explainer) => match question.explain(explainer, LONGEST) {
                // What was not looked at could be what failed.
                Ok(why) if !why.unsure => short(&why).into(),
                Ok(_) | Err(_) => Arc::default(),
            },
            None => Arc::default(),
        };
        let word = if told.is_empty() { "failed" } else { "asked" };
        self.metrics.audit_why(word);
        if let Some(key) = key {
            self.remember(key, &told);
        }
        Some(told)
    }

    fn remember(&mut self, key: String, told: &Arc<[u8]>) {
        self.memo_bytes += key.len() + told.len();
        self.memo.insert(key, Arc::clone(told));
        if self.memo.len() > MAX_MEMO || self.memo_bytes > MAX_MEMO_BYTES {
            // All of it: what is asked for often comes again.
            self.memo.clear();
            self.memo_bytes = 0;
        }
    }

    fn ready(&mut self, text: &Arc<Text>) -> Option<&mut Explainer> {
        let at = self
            .explainers
            .iter()
            .position(|ready| Arc::ptr_eq(&ready.text, text));
        let at = match at {
            Some(at) => at,
            None => {
                if self.explainers.len() >= MAX_EXPLAINERS {
                    self.explainers.remove(0);
                }
                let explainer = text
                    .weight(MAX_TEXT)
                    .and_then(|_| Explainer::open(text).ok());
                self.explainers.push(Ready {
                    text: Arc::clone(text),
                    explainer,
                });
                self.explainers.len() - 1
            }
        };
        self.explainers.get_mut(at)?.explainer.as_mut()
    }
}

impl Stage for Reasons {
    fn place(&self) -> Place {
        Place::Why
    }

    fn line(&mut self, line: &[u8], changed: &mut Vec<u8>) -> Passed {
        // The first one counts: what clients say is escaped, and what a policy says stands behind it.
        let at = self.decision.find(line).map(|at| at + DECISION.len());
        let decision = at.and_then(|at| line.get(at..)).unwrap_or_default();
        if !decision.starts_with(b"\"deny\"") {
            return Passed::Left;
        }
        let begun = Instant::now();
        if self.budget.is_spent(begun) {
            self.metrics.audit_why("skipped");
            return Passed::Left;
        }
        let told = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| self.told(line)));
        if told.is_err() {
            // Nobody knows what it was left with; the record is whole without.
            self.explainers.clear();
        }
        self.budget.spend(begun.elapsed());
        let Some(told) = told.ok().flatten().filter(|told| !told.is_empty()) else {
            return Passed::Left;
        };
        // Before a member that no text of a client can imitate: quotation marks in texts are escaped.
        let Some(at) = memchr::memmem::find(line, b",\"outcome\":\"") else {
            return Passed::Left;
        };
        let (head, tail) = line.split_at(at);
        for part in [head, b",\"why\":", &told, tail] {
            changed.extend_from_slice(part);
        }
        Passed::Changed
    }

    fn pause(&mut self) {
        // What is not in force decides no more, and holds its data.
        let texts = &self.texts;
        self.explainers
            .retain(|ready| texts.is_in_force(&ready.text));
    }
}

/// What of a reason fits into a record, as JSON of ASCII. Records go to many readers, so of values it
/// has those that stand in the record's input as well: what the policy's data says, and what comes of
/// it, stays out, and so do the texts of errors.
fn short(why: &Why) -> Vec<u8> {
    let rules: Vec<Json> = why.rules.iter().take(MAX_RULES).map(rule).collect();
    let way = why.ways.first();
    for depth in (0..=MAX_DEPTH).rev() {
        let failed = way.map(|way| failed_way(way, depth));
        let text = ascii(&json!({ "rules": rules, "failed": failed }).to_string());
        if text.len() <= MAX_WHY {
            return text;
        }
    }
    Vec::new()
}

fn rule(held: &Held) -> Json {
    json!({ "rule": held.rule, "at": format!("{}:{}", held.file, held.line) })
}

fn failed_way(way: &Way, depth: usize) -> Json {
    let mut failed = condition(&way.failed, depth);
    failed.insert("rule".to_owned(), json!(way.rule));
    failed.into()
}

fn condition(failed: &Condition, depth: usize) -> Map<String, Json> {
    let values: Map<String, Json> = failed
        .values
        .iter()
        .filter(|known| known.of_input)
        .map(|known| {
            let value = if known.masked { "***" } else { &known.value };
            (known.name.clone(), json!(value))
        })
        .collect();
    let mut told = Map::new();
    let mut put = |name: &str, value: Json| drop(told.insert(name.to_owned(), value));
    put("kind", json!(failed.kind));
    put("at", json!(failed.at()));
    put("text", json!(failed.text));
    if !values.is_empty() {
        put("values", values.into());
    }
    if depth > 0 {
        let within: Vec<Json> = failed
            .within
            .iter()
            .map(|inner| condition(inner, depth - 1).into())
            .collect();
        if !within.is_empty() {
            put("within", within.into());
        }
        let because: Vec<Json> = failed
            .because
            .iter()
            .map(|it| asked(it, depth - 1))
            .collect();
        if !because.is_empty() {
            put("because", because.into());
        }
    }
    told
}

fn asked(because: &Because, depth: usize) -> Json {
    // Without the arguments of a call.
    let rule = because.rule.split('(').next();
    let mut told = json!({ "rule": rule });
    let found = match (because.ways.first(), because.held.first()) {
        (Some(way), _) => Some(("failed", failed_way(way, depth))),
        (None, Some(held)) => Some(("held", condition(held, depth).into())),
        (None, None) => None,
    };
    if let (Some((name, value)), Some(members)) = (found, told.as_object_mut()) {
        members.insert(name.to_owned(), value);
    }
    told
}

/// Escapes what is not ASCII: it stands in texts alone.
fn ascii(json: &str) -> Vec<u8> {
    let mut out = String::with_capacity(json.len());
    for c in json.chars() {
        if (' '..='~').contains(&c) {
            out.push(c);
        } else {
            for unit in c.encode_utf16(&mut [0; 2]) {
                out.push_str(&format!("\\u{unit:04x}"));
            }
        }
    }
    out.into_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    const MODULE: &str = "package p\n\ndefault allow := false\n\nallow if {\n\tinput.a == 1\n\tinput.b == \"\u{e4}\"\n}\n";

    fn texts() -> Arc<Texts> {
        let module = ("p.rego".to_owned(), MODULE.to_owned());
        let texts = Arc::new(Texts::default());
        let text = Text::of_module("p", "0123456789abcdef", "data.p.allow", vec![module]);
        texts.put(Arc::new(text));
        texts
    }

    fn record(input: &str, answer: &str) -> String {
        format!(
            "{{\"version\":2,\"request_id\":\"{}\",\"received_at_ns\":1,\"policy\":{{\"name\":\"p\",\
             \"revision\":\"0123456789abcdef\"}},\"decision\":\"deny\",\"outcome\":\"complete\",\
             \"answer\":{answer},\"input\":{input}}}",
            "a".repeat(32)
        )
    }

    fn passed(reasons: &mut Reasons, line: &str) -> Option<Json> {
        let mut changed = Vec::new();
        match reasons.line(line.as_bytes(), &mut changed) {
            Passed::Changed => Some(serde_json::from_slice(&changed).unwrap()),
            Passed::Left | Passed::Dropped => None,
        }
    }

    #[test]
    fn a_denial_gets_its_first_failing_condition() {
        let mut reasons = Reasons::new(texts(), Arc::default());
        let line = record("{\"a\":1,\"b\":\"x\"}", "false");
        let record = passed(&mut reasons, &line).unwrap();
        let failed = &record["why"]["failed"];
        assert_eq!(failed["at"], "p.rego:7:2");
        assert_eq!(failed["text"], "input.b == \"\u{e4}\"");
        assert_eq!(failed["values"]["input.b"], "\"x\"");
        assert_eq!(record["why"]["rules"][0]["at"], "p.rego:3");
        let without = line.replace("deny", "allow");
        assert!(passed(&mut reasons, &without).is_none());
        let other = line.replace("\"answer\":false", "\"answer\":true");
        assert!(passed(&mut reasons, &other).is_none());
        let unknown = line.replace("0123456789abcdef", "ffffffffffffffff");
        assert!(passed(&mut reasons, &unknown).is_none());
        assert!(passed(&mut reasons, "\"decision\":\"deny\" {").is_none());
    }

    fn holding(module: &str, data: &str) -> Arc<Texts> {
        let module = ("p.rego".to_owned(), module.to_owned());
        let mut text = Text::of_module("p", "0123456789abcdef", "data.p.allow", vec![module]);
        text.data = crate::document::from_json(data.as_bytes()).unwrap();
        let texts = Arc::new(Texts::default());
        texts.put(Arc::new(text));
        texts
    }

    #[test]
    fn what_the_data_of_the_policy_says_stays_out_of_records() {
        let module = "package p\ndefault allow := false\nallow if {\n\tgiven := data.partners[input.a]\n\tinput.b == given\n\tright(given)\n}\nright(it) if startswith(it, \"x\")\n";
        let texts = holding(module, "{\"partners\":{\"p1\":\"hunter2\"}}");
        let mut reasons = Reasons::new(texts, Arc::default());
        for b in ["wrong", "hunter2"] {
            let line = record(&format!("{{\"a\":\"p1\",\"b\":\"{b}\"}}"), "false");
            let why = passed(&mut reasons, &line).unwrap()["why"].clone();
            assert!(!why.to_string().contains("hunter2"), "{why:#}");
        }
        let line = record("{\"a\":\"p1\",\"b\":\"wrong\"}", "false");
        let why = passed(&mut reasons, &line).unwrap()["why"].clone();
        assert_eq!(why["failed"]["values"], json!({"input.b": "\"wrong\""}));
    }

    #[test]
    fn beside_a_credential_a_record_has_no_values_at_all() {
        let module = "package p\ndefault allow := false\nallow if input.headers[\"x-partner-key\"] == data.keys[input.a]\n";
        let texts = holding(module, "{\"keys\":{\"p1\":\"hunter2\"}}");
        let mut reasons = Reasons::new(texts, Arc::default());
        let line = record(
            "{\"a\":\"p1\",\"headers\":{\"x-partner-key\":\"hunter3\"}}",
            "false",
        );
        let why = passed(&mut reasons, &line).unwrap()["why"].clone();
        assert!(!why.to_string().contains("hunter"), "{why:#}");
        assert_eq!(why["failed"]["at"], "p.rego:3:10");
    }

    #[test]
    fn nothing_is_said_where_the_policy_read_what_is_masked() {
        let texts = texts();
        let text = texts.current("p", "0123456789abcdef").unwrap();
        let mut reasons = Reasons::new(texts, Arc::default());
        let line = record("{\"a\":\"***\",\"b\":\"x\",\"c\":\"***\"}", "false");
        let masked =
            |what: &str| line.replace("\"answer\"", &format!("\"masked\":[\"{what}\"],\"answer\""));
        let read = masked("/input/a");
        assert!(passed(&mut reasons, &read).is_none());
        assert_eq!(
            explain(read.as_bytes(), &text, Duration::from_secs(5)),
            Err(Untold::Masked("/input/a".to_owned()))
        );
        let unread = masked("/input/c");
        assert!(passed(&mut reasons, &unread).is_some());
        assert!(explain(unread.as_bytes(), &text, Duration::from_secs(5)).is_ok());
    }

    #[test]
    fn what_is_masked_of_the_answer_is_shown_to_nobody() {
        let module = "package p\ndefault ok := false\nok if input.a == 1\nallow := {\"allow\": ok, \"note\": note}\nnote := data.note\n";
        let texts = holding(module, "{\"note\":\"hunter2\"}");
        let text = texts.current("p", "0123456789abcdef").unwrap();
        let told = |answer: &str, member: &str| {
            let line = record("{\"a\":2}", answer);
            let line = line.replace("\"answer\"", &format!("{member},\"answer\""));
            explain(line.as_bytes(), &text, Duration::from_secs(5))
        };
        let (masked, erased) = (
            "\"masked\":[\"/answer/note\"]",
            "\"erased\":[\"/answer/note\"]",
        );
        for (answer, member) in [
            ("{\"allow\":false,\"note\":\"***\"}", masked),
            ("{\"allow\":false}", erased),
            ("null", "\"erased\":[\"/answer\"]"),
        ] {
            let why = told(answer, member).unwrap();
            assert_eq!(
                why.answer.as_deref(),
                Some(answer).filter(|it| *it != "null")
            );
            assert!(!format!("{why:?}").contains("hunter2"), "{why:#?}");
        }
        let other = told("{\"allow\":true,\"note\":\"***\"}", masked).unwrap_err();
        assert!(matches!(other, Untold::Other { .. }));
        assert!(!other.to_string().contains("hunter2"), "{other}");
    }

    #[test]
    fn its_line_stays_ascii() {
        let mut reasons = Reasons::new(texts(), Arc::default());
        let mut changed = Vec::new();
        let line = record("{\"a\":1,\"b\":\"x\"}", "false");
        assert_eq!(reasons.line(line.as_bytes(), &mut changed), Passed::Changed);
        assert!(changed.is_ascii());
    }

    #[test]
    fn a_spent_budget_leaves_records_as_they_are() {
        let mut reasons = Reasons::new(texts(), Arc::default());
        let line = record("{\"a\":1}", "false");
        assert!(passed(&mut reasons, &line).is_some());
        reasons.budget.spend(Duration::from_secs(1));
        assert!(passed(&mut reasons, &line).is_none());
        reasons.budget.at -= Duration::from_secs(60);
        assert!(passed(&mut reasons, &line).is_some());
    }

    #[test]
    fn the_budget_is_a_twentieth_of_a_core() {
        let mut budget = Budget::new();
        let begun = budget.at;
        budget.spend(Duration::from_millis(200));
        assert!(budget.is_spent(begun));
        assert!(!budget.is_spent(begun + Duration::from_secs(1)));
        assert!((budget.left - SHARE).abs() < 1e-6);
        assert!(!budget.is_spent(begun + Duration::from_secs(3600)));
        assert!(budget.left <= SAVED);
    }

    #[test]
    fn what_is_remembered_is_bounded() {
        let mut reasons = Reasons::new(texts(), Arc::default());
        for n in 0..3 * MAX_MEMO {
            reasons.remember(n.to_string(), &Arc::from([0_u8; 100]));
            assert!(reasons.memo.len() <= MAX_MEMO);
        }
        for n in 0..100 {
            reasons.remember(n.to_string(), &Arc::from(vec![0_u8; 1 << 20]));
            assert!(reasons.memo_bytes <= MAX_MEMO_BYTES);
        }
    }

    #[test]
    fn an_answer_that_hands_a_credential_on_is_reproduced_and_never_shown() {
        let module =
            "package p\n\nallow := {\"allow\": false, \"headers\": {\"x-token\": \"S3CRET\"}}\n";
        let module = ("p.rego".to_owned(), module.to_owned());
        let text = Text::of_module("p", "0123456789abcdef", "data.p.allow", vec![module]);
        let told = |answer: &str| {
            let line = record("{}", answer).replace(
                "\"answer\"",
                "\"masked\":[\"/answer/headers/x-token\"],\"answer\"",
            );
            explain(line.as_bytes(), &text, Duration::from_secs(5))
        };
        let why = told("{\"allow\":false,\"headers\":{\"x-token\":\"***\"}}").unwrap();
        assert!(!serde_json::to_string(&why).unwrap().contains("S3CRET"));
        let other = told("{\"allow\":true,\"headers\":{\"x-token\":\"***\"}}").unwrap_err();
        assert!(!other.to_string().contains("S3CRET"), "{other}");
    }

    #[test]
    fn a_mask_rule_keeps_the_reason_out() {
        let mut reasons = Reasons::new(texts(), Arc::default());
        let line = record("{\"a\":2}", "false");
        assert!(passed(&mut reasons, &line).unwrap()["why"].is_object());
        let line = line.replace("\"answer\"", "\"erased\":[\"/why\"],\"answer\"");
        let mut changed = Vec::new();
        assert_eq!(reasons.line(line.as_bytes(), &mut changed), Passed::Left);
    }

    #[test]
    fn what_cannot_be_told_says_why() {
        let text = texts().current("p", "0123456789abcdef").unwrap();
        let told = |line: &str| explain(line.as_bytes(), &text, Duration::from_secs(5));
        assert!(told(&record("{\"a\":2}", "false")).is_ok());
        let other = told(&record("{\"a\":2}", "true")).unwrap_err().to_string();
        assert!(
            other.contains("recorded was true, asked again it is false"),
            "{other}"
        );
        let line = record("null", "false");
        let left_out = line.replace(
            "\"answer\"",
            "\"input_left_out\":\"it is larger\",\"answer\"",
        );
        assert_eq!(
            told(&left_out).unwrap_err(),
            Untold::NoInput("it is larger".to_owned())
        );
        let masked = record("{\"a\":\"***\"}", "true");
        let masked = masked.replace("\"answer\"", "\"masked\":[\"/input/a\"],\"answer\"");
        assert!(told(&masked).unwrap_err().to_string().contains("/input/a"));
        let open = line
            .replace("\"p\"", "\"public\"")
            .replace("0123456789abcdef", "");
        assert_eq!(told(&open).unwrap_err(), Untold::Public);
    }
}
