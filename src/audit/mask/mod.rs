//! Rules, written in Rego, about which records are kept and what of them: `data.system.log.mask` and
//! `data.system.log.drop` as OPA has them.
//!
//! They run on the audit thread, on whole lines, before a byte leaves memory. They see the record as
//! an event of OPA's decision log ([`super::event`]), with the record itself, but for input and answer,
//! as `input.record`. Rules that depend on nothing are asked once, when the configuration is loaded;
//! others when a part of the event that they can read is new: their answers are kept by those parts.
//!
//! Fail closed: where a rule fails, a function fails in `mask` (in `drop` it means no, and the record is
//! kept), spends its budget, or says what is no rule, the record is kept
//! without anything that could have been masked, and says so. It is never dropped for that.

mod edit;
mod splice;
#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use foldhash::fast::RandomState;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use self::edit::{Edit, Wrong};
use super::event::{self, Labels, members};
use super::stage::{Passed, Place, Stage};
use crate::ascii;
use crate::authz::screen::{Depends, Screen};
use crate::authz::{BuiltinErrors, Machines};
use crate::document::{Value, from_json};
use crate::metrics::Metrics;
use crate::schema::Compile;

/// Most answers that are kept for one entry point, and most bytes of them and what they are kept by.
const MAX_KEPT: usize = 1024;
const MAX_KEPT_BYTES: usize = 1 << 20;
/// Longest parts of an event that an answer is kept by, in bytes.
const MAX_QUESTION: usize = 8 * 1024;
/// Most changes of an answer that is kept.
const MAX_KEPT_EDITS: usize = 64;

/// How often failing rules are complained about.
const COMPLAIN_EVERY: Duration = Duration::from_secs(60);

/// Rules in Rego about which records are kept, and what of them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RulesConfig {
    /// Files and folders with the rules, and the data that they use, as of `policies`.
    pub files: Vec<PathBuf>,
    /// The rule that says what is masked: `data.system.log.mask`, as of OPA. It gives pointers
    /// (`/input/request/headers/x-tenant`, `/result/reason`, `/record/user_agent`), each as a text, which
    /// removes, or as `{"op": "upsert", "path": …, "value": …}`. Default: nothing is masked.
    #[serde(default)]
    pub mask: Option<String>,
    /// The rule that is `true` of records that are not kept: `data.system.log.drop`. Default: all are
    /// kept.
    #[serde(default)]
    pub drop: Option<String>,
}

/// The rules of a configuration.
#[derive(Debug, Clone)]
pub(super) struct Rules {
    mask: Option<Rule<Vec<Edit>>>,
    drop: Option<Rule<bool>>,
}

/// One entry point, and its answer if that is always the same.
#[derive(Debug, Clone)]
struct Rule<T> {
    screen: Screen,
    on: On<T>,
}

#[derive(Debug, Clone)]
enum On<T> {
    Nothing(Arc<T>),
    Parts(Vec<Source>),
    All,
}

/// Where a part of an event stands in a record.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Source {
    /// The record's member, and those below it; as they are written between quotation marks.
    member: &'static str,
    below: Vec<Vec<u8>>,
    /// Or a member of any name.
    named: Option<Vec<u8>>,
}

impl RulesConfig {
    /// Compiles the rules; takes over those of `previous` that did not change.
    pub(super) fn compile(&self, previous: Option<&Rules>, cx: &mut Compile) -> Option<Rules> {
        let before = cx.errors();
        if self.mask.is_none() && self.drop.is_none() {
            cx.problem_help(
                "no rule is named",
                "write `mask: data.system.log.mask`, `drop: data.system.log.drop`, or both",
            );
            return None;
        }
        let mask = self.mask.as_deref().and_then(|entrypoint| {
            let previous = previous.and_then(|rules| rules.mask.as_ref());
            rule(
                "audit.rules.mask",
                &self.files,
                entrypoint,
                // Nobody knows what a rule would have masked that a failing function keeps from holding.
                BuiltinErrors::Deny,
                previous,
                read_mask,
                cx,
            )
        });
        let drop = self.drop.as_deref().and_then(|entrypoint| {
            let previous = previous.and_then(|rules| rules.drop.as_ref());
            rule(
                "audit.rules.drop",
                &self.files,
                entrypoint,
                BuiltinErrors::Undefined,
                previous,
                read_drop,
                cx,
            )
        });
        (cx.errors() == before).then_some(Rules { mask, drop })
    }
}

impl Rules {
    /// Whether they are the very same.
    pub(super) fn are(&self, other: &Self) -> bool {
        fn same<T>(one: Option<&Rule<T>>, other: Option<&Rule<T>>) -> bool {
            match (one, other) {
                (None, None) => true,
                (Some(one), Some(other)) => one.screen.is(&other.screen),
                (None, Some(_)) | (Some(_), None) => false,
            }
        }
        same(self.mask.as_ref(), other.mask.as_ref())
            && same(self.drop.as_ref(), other.drop.as_ref())
    }
}

fn read_mask(answer: Option<&Value>) -> Result<Vec<Edit>, Wrong> {
    answer.map_or_else(|| Ok(Vec::new()), edit::read)
}

/// As OPA does: only `true` drops.
#[expect(clippy::unnecessary_wraps, reason = "beside `read_mask`")]
fn read_drop(answer: Option<&Value>) -> Result<bool, Wrong> {
    Ok(answer == Some(&Value::from(true)))
}

fn rule<T>(
    name: &str,
    files: &[PathBuf],
    entrypoint: &str,
    errors: BuiltinErrors,
    previous: Option<&Rule<T>>,
    read: fn(Option<&Value>) -> Result<T, Wrong>,
    cx: &mut Compile,
) -> Option<Rule<T>> {
    let before = previous.map(|rule| &rule.screen);
    let screen = Screen::compile(name, files, entrypoint, errors, before, cx)?;
    let on = match screen.depends() {
        Depends::OnAll => On::All,
        Depends::On(paths) => match paths.iter().map(|path| source(path)).collect() {
            Some(sources) => on_parts(&screen, sources, read, cx)?,
            None => On::All,
        },
    };
    Some(Rule { screen, on })
}

/// Rules that depend on nothing are asked now.
fn on_parts<T>(
    screen: &Screen,
    sources: Vec<Option<Source>>,
    read: fn(Option<&Value>) -> Result<T, Wrong>,
    cx: &mut Compile,
) -> Option<On<T>> {
    let sources: Vec<Source> = sources.into_iter().flatten().collect();
    if !sources.is_empty() {
        return Some(On::Parts(sources));
    }
    let answer = screen.answer(&Machines::default(), Value::new_object(), 0);
    let read = answer
        .map_err(|why| Wrong::from(why.to_string()))
        .and_then(|answer| read(answer.as_ref()));
    match read {
        Ok(read) => Some(On::Nothing(Arc::new(read))),
        Err(wrong) => {
            let why = match &wrong.pointer {
                Some(pointer) => format!("`{}`: {wrong}", pointer.escape_debug()),
                None => wrong.to_string(),
            };
            cx.problem_help(
                format!("the rules give no rules: {why}"),
                "a set of texts, or of objects with `op`, `path` and `value`",
            );
            None
        }
    }
}

/// Where a part of an event comes from: `Some(None)` when it is the same in all, `None` when it differs
/// in each, or is not known.
#[expect(clippy::option_option, reason = "explained above")]
fn source(path: &[String]) -> Option<Option<Source>> {
    let written = |name: &String| {
        let mut out = Vec::new();
        ascii::inner(&mut out, name, false);
        out
    };
    let (first, rest) = path.split_first()?;
    let below = |fixed: &[&str], rest: &[String]| -> Vec<Vec<u8>> {
        let fixed = fixed.iter().map(|name| name.as_bytes().to_vec());
        fixed.chain(rest.iter().map(written)).collect()
    };
    let of = |member, below| {
        Some(Some(Source {
            member,
            below,
            named: None,
        }))
    };
    match (first.as_str(), rest) {
        ("labels", _) => Some(None),
        ("input", rest) => of("input", below(&[], rest)),
        ("result", rest) => of("answer", below(&[], rest)),
        // Written differently, but from nothing else.
        ("path", _) => of("policy", below(&["entrypoint"], &[])),
        ("revision", _) => of("policy", below(&["revision"], &[])),
        ("bundles", _) => of("policy", below(&["bundles"], &[])),
        ("record", [name, rest @ ..]) => Some(Some(Source {
            member: "",
            below: below(&[], rest),
            named: Some(written(name)),
        })),
        _ => None,
    }
}

impl Source {
    fn find<'l>(&self, line: &'l [u8]) -> Option<&'l [u8]> {
        let wanted = self.named.as_deref().unwrap_or(self.member.as_bytes());
        let (_, value) = members(line).find(|(name, _)| *name == wanted)?;
        splice::at_names(value, &self.below)
    }
}

/// What an answer weighs in memory, in bytes; `None` when it is too large to be kept.
trait Weight {
    fn weight(&self) -> Option<usize>;
}

impl Weight for bool {
    fn weight(&self) -> Option<usize> {
        Some(size_of::<Self>())
    }
}

impl Weight for Vec<Edit> {
    fn weight(&self) -> Option<usize> {
        (self.len() <= MAX_KEPT_EDITS).then(|| self.iter().map(Edit::weight).sum())
    }
}

/// Asks the rules about every line.
pub(super) struct Masker {
    mask: Option<Asked<Vec<Edit>>>,
    drop: Option<Asked<bool>>,
    machines: Machines,
    labels: Labels,
    metrics: Arc<Metrics>,
    complained: Option<Instant>,
}

/// One entry point with the answers that it gave.
struct Asked<T> {
    rule: Rule<T>,
    read: fn(Option<&Value>) -> Result<T, Wrong>,
    kept: HashMap<Box<[u8]>, Arc<T>, RandomState>,
    bytes: usize,
    question: Vec<u8>,
}

impl<T: Weight> Asked<T> {
    fn new(rule: &Rule<T>, read: fn(Option<&Value>) -> Result<T, Wrong>) -> Self
    where
        T: Clone,
    {
        Self {
            rule: rule.clone(),
            read,
            kept: HashMap::default(),
            bytes: 0,
            question: Vec::new(),
        }
    }

    fn answer(
        &mut self,
        line: &[u8],
        machines: &Machines,
        event: &mut Event<'_>,
    ) -> Result<Arc<T>, String> {
        let sources = match &self.rule.on {
            On::Nothing(answer) => return Ok(Arc::clone(answer)),
            On::Parts(sources) => sources,
            On::All => return self.ask(machines, event),
        };
        self.question.clear();
        for source in sources {
            // No text of JSON holds these two.
            match source.find(line) {
                Some(value) => self.question.extend_from_slice(value),
                None => self.question.push(1),
            }
            self.question.push(0);
        }
        if let Some(known) = self.kept.get(&*self.question) {
            return Ok(Arc::clone(known));
        }
        let answer = self.ask(machines, event)?;
        let weight = answer.weight().map(|weight| weight + self.question.len());
        if self.question.len() <= MAX_QUESTION
            && let Some(weight) = weight.filter(|weight| *weight <= MAX_KEPT_BYTES)
        {
            if self.kept.len() >= MAX_KEPT || self.bytes + weight > MAX_KEPT_BYTES {
                self.kept.clear();
                self.bytes = 0;
            }
            self.bytes += weight;
            self.kept
                .insert(self.question.as_slice().into(), Arc::clone(&answer));
        }
        Ok(answer)
    }

    fn ask(&self, machines: &Machines, event: &mut Event<'_>) -> Result<Arc<T>, String> {
        let (document, now_ns) = event.document()?;
        let answer = self.rule.screen.answer(machines, document, now_ns);
        let answer = answer.map_err(|why| why.to_string())?;
        let read = (self.read)(answer.as_ref());
        read.map(Arc::new).map_err(|wrong| wrong.to_string())
    }
}

/// A record as an event, made when somebody asks.
struct Event<'l> {
    line: &'l [u8],
    labels: &'l Labels,
    made: Option<(Value, u64)>,
}

impl Event<'_> {
    fn document(&mut self) -> Result<(Value, u64), String> {
        if let Some(made) = &self.made {
            return Ok(made.clone());
        }
        let mut text = Vec::new();
        event::for_rules(self.line, self.labels, &mut text);
        let document = from_json(&text).map_err(|error| error.to_string())?;
        let now = members(self.line).find(|(name, _)| *name == b"received_at_ns");
        let now = now.and_then(|(_, value)| std::str::from_utf8(value).ok()?.parse().ok());
        Ok(self.made.insert((document, now.unwrap_or(0))).clone())
    }
}

impl Masker {
    pub(super) fn new(rules: &Rules, labels: Labels, metrics: Arc<Metrics>) -> Self {
        Self {
            mask: rules.mask.as_ref().map(|rule| Asked::new(rule, read_mask)),
            drop: rules.drop.as_ref().map(|rule| Asked::new(rule, read_drop)),
            machines: Machines::default(),
            labels,
            metrics,
            complained: None,
        }
    }

    /// What becomes of a line, if the rules say so.
    fn judge(&mut self, line: &[u8], changed: &mut Vec<u8>) -> Result<Passed, String> {
        let mut event = Event {
            line,
            labels: &self.labels,
            made: None,
        };
        if let Some(drop) = &mut self.drop
            && *drop.answer(line, &self.machines, &mut event)?
        {
            return Ok(Passed::Dropped);
        }
        let Some(mask) = &mut self.mask else {
            return Ok(Passed::Left);
        };
        let edits = mask.answer(line, &self.machines, &mut event)?;
        Ok(if edit::apply(&edits, line, changed) {
            Passed::Changed
        } else {
            Passed::Left
        })
    }

    fn complain(&mut self, why: &str) {
        if self
            .complained
            .is_none_or(|then| then.elapsed() >= COMPLAIN_EVERY)
        {
            self.complained = Some(Instant::now());
            tracing::error!(
                why,
                "the rules of audit.rules fail: records are kept without what they could mask"
            );
        }
    }
}

impl Stage for Masker {
    fn place(&self) -> Place {
        Place::Mask
    }

    fn line(&mut self, line: &[u8], changed: &mut Vec<u8>) -> Passed {
        let judge = std::panic::AssertUnwindSafe(|| self.judge(line, changed));
        // What a panic leaves behind is answers that were kept before it, and nothing else.
        let judged = std::panic::catch_unwind(judge);
        match judged.unwrap_or_else(|_| Err("a panic".to_owned())) {
            Ok(passed) => {
                if passed == Passed::Dropped {
                    self.metrics.audit_rules_dropped();
                }
                passed
            }
            Err(why) => {
                self.complain(&why);
                self.metrics.audit_rules_failed();
                changed.clear();
                edit::withhold(line, changed);
                Passed::Changed
            }
        }
    }
}
