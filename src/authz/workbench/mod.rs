//! The narrow face through which tools use this room: modules in, remarks, tests and answers out.
//!
//! No type of the engine leaves here but the document's [`Value`]. What is loaded goes through the same
//! parser and the same checks as a policy that goes live; what is asked runs on the interpreter, which
//! can tell what was printed and which lines were reached. An evaluation here may overflow the stack or
//! never end, as the gate's may: who runs what others wrote does so in a process that may die.

mod coverage;
mod explain;
mod meaning;
mod pace;
mod trial;
pub mod why;

use std::collections::{BTreeMap, BTreeSet};
use std::num::NonZeroU32;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use regorus::unstable::{Module, Ref, Rule, Span};
use regorus::utils::limits::ExecutionTimerConfig;
use regorus::{Engine, LimitError};
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::authz::BuiltinErrors;
use crate::authz::input::since_epoch;
use crate::authz::published::InputDocument;
use crate::authz::rego::{self, Places, Reading, Source, host};
use crate::authz::replay::seed;
use crate::authz::source::check;
use crate::authz::source::expansion;
use crate::authz::source::load;
use crate::authz::source::remark::Remark;
use crate::authz::source::syntax;
use crate::clock;
use crate::document::{self, Value};
use crate::metrics::Metrics;
use crate::schema::{Compile, Problem};

pub use coverage::{Lines, Ranges, percent};
pub use meaning::Meaning;
pub use pace::{Pace, Paced};
pub use trial::{Case, FailedAt, Test, TestOptions, TestReport, Verdict};

/// What an engine may be asked at most, in characters.
const MAX_QUERY: usize = 64 * 1024;
/// Modules are read as for the gate, and somebody reads what `print` writes.
fn reading(errors: BuiltinErrors, document: InputDocument) -> Reading {
    Reading {
        prints: true,
        ..Reading::of(errors, document)
    }
}

/// Modules and data as they were read; goes from one process to another.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Material {
    /// File and text.
    pub modules: Vec<(String, String)>,
    /// JSON.
    pub data: String,
    /// What errors of builtins make of a decision.
    #[serde(default)]
    pub errors: BuiltinErrors,
    /// What the policy sees.
    #[serde(default)]
    pub input: InputDocument,
}

impl Material {
    /// Reads files and folders as a policy's `files` are read. Paths are relative to `folder`, which
    /// may be empty.
    ///
    /// # Errors
    /// All problems with the files.
    pub fn load(paths: &[PathBuf], folder: &Path) -> Result<Self, Vec<Problem>> {
        let mut cx = Compile::new(&folder.join("gateway.yaml"), Arc::new(Metrics::default()));
        let loaded = load::load(paths, &mut cx);
        let (problems, _) = cx.finish();
        match loaded {
            Some(loaded) => Ok(Self {
                data: loaded.data.to_json_str().unwrap_or_default(),
                modules: loaded
                    .modules
                    .into_iter()
                    .map(|(file, text)| (plain(&file, folder), text))
                    .collect(),
                ..Self::default()
            }),
            None => Err(problems
                .into_iter()
                .map(|problem| Problem {
                    path: String::new(),
                    ..problem
                })
                .collect()),
        }
    }

    /// Material from texts: for what is not in files.
    ///
    /// # Errors
    /// A sentence, when the data cannot be written as JSON.
    pub fn of(modules: Vec<(String, String)>, data: &Value) -> Result<Self, String> {
        let data = data.to_json_str().map_err(|error| error.to_string())?;
        Ok(Self {
            modules,
            data,
            ..Self::default()
        })
    }
}

/// A file below the current folder as people name it, without `./`.
fn plain(file: &str, folder: &Path) -> String {
    let named = if folder.as_os_str().is_empty() {
        file.trim_start_matches("./")
    } else {
        file
    };
    named.to_owned()
}

/// How a workbench is set up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Watch {
    /// Answers only.
    Nothing,
    /// Which lines were reached, too; about a third slower.
    Lines,
}

/// Parsed modules, ready to be asked and tested.
#[derive(Debug)]
pub struct Workbench {
    engine: Engine,
    modules: Arc<Vec<Ref<Module>>>,
    tests: Vec<Test>,
    warnings: Vec<Problem>,
    coverable: Vec<coverage::Coverable>,
    watch: Watch,
    /// Lead back from the engine's modules to the author's, the last rewriting first.
    places: Vec<Places>,
    /// The author's texts.
    texts: BTreeMap<String, String>,
}

/// One question.
#[derive(Debug, Clone)]
pub struct Question {
    /// A query: `data.orders.decision`, `x := data.orders.grant; x != "none"`.
    pub query: String,
    /// `input`; undefined when there is none.
    pub input: Option<Value>,
    /// Longest time.
    pub time: Duration,
}

/// What a question came to.
#[derive(Debug)]
pub struct Answered {
    /// The answers; none when the query is undefined.
    pub answers: Vec<Solution>,
    /// What `print` wrote, with where.
    pub prints: Vec<String>,
    /// How long it took, without parsing.
    pub duration: Duration,
    /// Lines that were reached, when watched.
    pub lines: Lines,
    /// Rules whose body held, when watched, in the order of the files.
    pub held: Vec<Held>,
}

/// One answer to a query.
#[derive(Debug)]
pub struct Solution {
    /// Each expression of the query with its value.
    pub expressions: Vec<(String, Value)>,
    /// The query's variables: an object.
    pub bindings: Value,
}

/// A rule that held.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Held {
    /// Its path.
    pub rule: String,
    /// Where it stands.
    pub file: String,
    /// Its line.
    pub line: usize,
}

/// Why there is no answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
pub enum Unanswered {
    /// Time or memory was spent.
    #[error("{0}")]
    Budget(String),
    /// The engine reports an error, with the place if it tells one.
    #[error("{}", message(.0))]
    Error(Fault),
    /// The engine panicked.
    #[error("the engine panicked: {0}")]
    Panic(String),
}

/// An error of an evaluation and where it happened.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fault {
    /// What is wrong.
    pub message: String,
    /// The file.
    pub file: String,
    /// From 1; 0 when the place is not known.
    pub line: usize,
    /// From 1; 0 when the place is not known.
    pub column: usize,
}

fn message(fault: &Fault) -> String {
    if fault.line == 0 {
        return fault.message.clone();
    }
    format!(
        "{}:{}:{}: {}",
        fault.file, fault.line, fault.column, fault.message
    )
}

impl Workbench {
    /// Parses and checks. Tests of one name are told apart as `opa test` does: `test_a`, `test_a#01`.
    ///
    /// # Errors
    /// Everything that would keep the modules from going live.
    pub fn open(material: &Material, watch: Watch) -> Result<Self, Vec<Problem>> {
        open(material, watch).map_err(problems)
    }

    /// The tests, in the order of the files.
    pub fn tests(&self) -> &[Test] {
        &self.tests
    }

    /// What should be known of the modules all the same.
    pub fn remarks(&self) -> &[Problem] {
        &self.warnings
    }

    /// Paths of all rules that are neither tests nor functions, with where they stand.
    pub fn rules(&self) -> BTreeMap<String, Held> {
        let mut rules = BTreeMap::new();
        for module in self.modules.iter() {
            let file = module.package.span.source.get_path();
            for rule in &module.policy {
                let path = rule_path(module, rule);
                if check::is_test_file(file) || syntax::arity(rule).is_some() {
                    continue;
                }
                let (line, _) = syntax::place(rule.span());
                rules.entry(path.clone()).or_insert(Held {
                    rule: path,
                    file: file.clone(),
                    line,
                });
            }
        }
        rules
    }

    /// Asks one question.
    ///
    /// # Errors
    /// [`Unanswered`].
    pub fn ask(&self, question: &Question) -> Result<Answered, Unanswered> {
        if question.query.chars().count() > MAX_QUERY {
            return Err(Unanswered::Error(Fault {
                message: format!("the query is longer than {MAX_QUERY} characters"),
                file: String::new(),
                line: 0,
                column: 0,
            }));
        }
        let mut engine = self.engine.clone();
        engine.set_input(question.input.clone().unwrap_or(Value::Undefined));
        host::begin(moment(question.input.as_ref()));
        let begun = Instant::now();
        let result = evaluate(&mut engine, &question.query, question.time);
        let duration = begun.elapsed();
        let prints = engine.take_prints().unwrap_or_default();
        let lines = self.reached(&engine);
        let answers = result.map_err(|error| self.placed(error))?;
        Ok(Answered {
            answers,
            prints,
            duration,
            held: self.held(&lines, question),
            lines,
        })
    }

    /// How long one evaluation takes when asked again and again on one machine: the times of `count`
    /// evaluations, or of as many as fit into `limit`.
    ///
    /// # Errors
    /// [`Unanswered`], of the first evaluation that fails.
    pub fn time(
        &self,
        question: &Question,
        count: usize,
        limit: Duration,
    ) -> Result<Vec<Duration>, Unanswered> {
        let mut engine = self.engine.clone();
        engine.set_input(question.input.clone().unwrap_or(Value::Undefined));
        let end = Instant::now() + limit;
        let mut times = Vec::with_capacity(count.min(100_000));
        while times.len() < count {
            let begun = Instant::now();
            evaluate(&mut engine, &question.query, question.time)?;
            let now = Instant::now();
            times.push(now - begun);
            let _ = engine.take_prints();
            if now >= end {
                break;
            }
        }
        Ok(times)
    }

    /// The lines of each file that tests can reach; those that were is for [`Ranges::of`] to say.
    pub fn coverable(&self) -> Lines {
        coverage::all(&self.coverable)
    }

    /// A place in the author's file.
    fn author(&self, file: &str, at: (usize, usize)) -> (usize, usize) {
        let places = self.places.iter();
        places.fold(at, |at, places| places.author(file, at))
    }

    /// The statement at a place of the author's file, as it is written there.
    fn written(&self, file: &str, (line, column): (usize, usize), text: &str) -> String {
        let Some(author) = self.texts.get(file) else {
            return text.to_owned();
        };
        if author.contains(text) {
            return text.to_owned();
        }
        let line = author.lines().nth(line.saturating_sub(1)).unwrap_or(text);
        let from: String = line.chars().skip(column.saturating_sub(1)).collect();
        from.trim().to_owned()
    }

    /// An error at its place in the author's file.
    fn placed(&self, unanswered: Unanswered) -> Unanswered {
        match unanswered {
            Unanswered::Error(fault) if fault.line > 0 => {
                let (line, column) = self.author(&fault.file, (fault.line, fault.column));
                Unanswered::Error(Fault {
                    line,
                    column,
                    ..fault
                })
            }
            Unanswered::Error(_) | Unanswered::Budget(_) | Unanswered::Panic(_) => unanswered,
        }
    }

    fn reached(&self, engine: &Engine) -> Lines {
        match self.watch {
            Watch::Nothing => Lines::default(),
            Watch::Lines => coverage::reached(engine, &self.coverable),
        }
    }

    /// Rules whose body held. A default is evaluated in any case, and holds where nothing else does.
    fn held(&self, lines: &Lines, question: &Question) -> Vec<Held> {
        let input = question.input.clone().unwrap_or(Value::Undefined);
        let holds = |(module, rule): (usize, usize)| {
            let module = self.modules.get(module)?;
            let rule = module.policy.get(rule)?;
            let time = question.time;
            Some(explain::holds(self, module, rule, &input, time))
        };
        let reached: Vec<(&str, &coverage::Coverable)> = self
            .coverable
            .iter()
            .filter_map(|item| {
                let reached = lines.get(&item.file)?.contains(&item.row);
                item.head.as_deref().filter(|_| reached).zip(Some(item))
            })
            .collect();
        let given = |rule: &str| {
            let mut others = reached.iter().filter(|(other, _)| *other == rule);
            others.any(|(_, item)| !item.default)
        };
        let mut chains = BTreeSet::new();
        reached
            .iter()
            .filter(|(rule, item)| !item.default || !given(rule))
            .filter(|(_, item)| item.one_line.is_none_or(|at| holds(at) == Some(true)))
            .filter(|(_, item)| chains.insert(item.chain))
            .map(|(rule, item)| Held {
                rule: (*rule).to_owned(),
                file: item.file.clone(),
                line: usize::try_from(item.row).unwrap_or(0),
            })
            .collect()
    }
}

/// When a question is asked, and as which request: what its document says, else now.
fn moment(input: Option<&Value>) -> host::Moment {
    let at = |path: &[&str]| {
        path.iter()
            .try_fold(input?, |value, name| document::member(value, name))
    };
    let written = |path: &[&str]| at(path).and_then(document::text);
    let stamped = || {
        let time = written(&["attributes", "request", "time"])?;
        let time = OffsetDateTime::parse(time, &Rfc3339).ok()?;
        u64::try_from(time.unix_timestamp_nanos()).ok()
    };
    let now_ns = match at(&["request", "received_at_ns"]) {
        Some(Value::Number(number)) => number.as_u64(),
        Some(_) | None => stamped(),
    };
    let id = written(&["request", "id"])
        .or_else(|| written(&["attributes", "request", "http", "id"]))
        .map(AsRef::as_ref);
    host::Moment {
        now_ns: now_ns
            .or_else(|| since_epoch(clock::now()).ok())
            .unwrap_or(0),
        request_id: seed(id.unwrap_or_default()),
    }
}

/// What fails of a policy's own tests: the gate asks as `policy test` does.
pub(in crate::authz) fn own_tests(
    engine: &mut Engine,
    errors: BuiltinErrors,
    document: InputDocument,
    time: Duration,
) -> Vec<Fault> {
    let renamed = trial::rename_twins(engine.get_modules());
    let twins = if renamed.edits.is_empty() {
        None
    } else {
        let data = engine.get_data();
        let modules = edited(engine.get_modules(), renamed.edits);
        rego::read(&modules, &data, reading(errors, document))
            .ok()
            .map(|parsed| parsed.engine)
    };
    let mut engine = twins.unwrap_or_else(|| engine.clone());
    let tests = trial::tests(engine.get_modules(), &renamed.names);
    let bench = bench(engine, tests, Watch::Nothing);
    let options = TestOptions {
        time,
        explain: false,
    };
    bench
        .tests
        .iter()
        .filter_map(|test| {
            let report = bench.run(test, options);
            let why = match &report.verdict {
                Verdict::Pass | Verdict::Skip => return None,
                Verdict::Fail if report.cases.is_empty() => "is not true".to_owned(),
                Verdict::Fail => {
                    let failed = trial::failed_cases(&report.cases);
                    format!("fails for {}", failed.join(", "))
                }
                Verdict::Error(Unanswered::Budget(_)) => {
                    format!("takes more than {} s", time.as_secs())
                }
                Verdict::Error(error) => format!("cannot be evaluated: {error}"),
            };
            Some(Fault {
                message: format!("the test {} {why}", test.full_name()),
                file: test.file.clone(),
                line: test.line,
                column: test.column,
            })
        })
        .collect()
}

fn bench(mut engine: Engine, tests: Vec<Test>, watch: Watch) -> Workbench {
    let coverable = match watch {
        Watch::Nothing => Vec::new(),
        Watch::Lines => coverage::coverable(engine.get_modules()),
    };
    let modules = Arc::new(engine.get_modules().clone());
    engine.set_enable_coverage(watch == Watch::Lines);
    // Prepared once, so that copies need not be. A query that fails says why when it is asked.
    let _ = evaluate(&mut engine, "true", Duration::from_secs(10));
    Workbench {
        engine,
        modules,
        tests,
        warnings: Vec::new(),
        coverable,
        watch,
        places: Vec::new(),
        texts: BTreeMap::new(),
    }
}

fn problems(remarks: Vec<Remark>) -> Vec<Problem> {
    remarks
        .into_iter()
        .map(|remark| remark.into_problem(String::new()))
        .collect()
}

fn open(material: &Material, watch: Watch) -> Result<Workbench, Vec<Remark>> {
    let first = material.modules.first().map_or("", |(file, _)| file);
    let data = Value::from_json_str(&material.data).map_err(|_| {
        vec![Remark::error(
            first,
            None,
            "the data cannot be read",
            "check the data files",
        )]
    })?;
    let reading = reading(material.errors, material.input);
    opened(&material.modules, &data, reading, watch)
}

/// Opens modules over data.
fn opened(
    sources: &[Source],
    data: &Value,
    reading: Reading,
    watch: Watch,
) -> Result<Workbench, Vec<Remark>> {
    let parsed = rego::read(sources, data, reading)?;
    let (mut engine, first) = (parsed.engine, parsed.places);
    let analysis = check::analyse(engine.get_modules(), "");
    let live: Vec<Ref<Module>> = engine
        .get_modules()
        .iter()
        .filter(|module| !check::is_test_file(module.package.span.source.get_path()))
        .cloned()
        .collect();
    let remarks: Vec<Remark> = analysis
        .remarks
        .into_iter()
        .chain(expansion::check(&live))
        .map(|remark| first.remark(remark))
        .collect();
    if remarks.iter().any(|remark| !remark.warning) {
        return Err(remarks);
    }
    let trial::Renamed { mut edits, names } = trial::rename_twins(engine.get_modules());
    if watch == Watch::Lines {
        edits.extend(coverage::marked_heads(engine.get_modules()));
    }
    let mut places = vec![first];
    if !edits.is_empty() {
        let modules = edited(engine.get_modules(), edits);
        let again = rego::read(&modules, data, reading)?;
        engine = again.engine;
        places.insert(0, again.places);
    }
    let tests = trial::tests(engine.get_modules(), &names);
    Ok(Workbench {
        warnings: problems(remarks),
        places,
        texts: sources.iter().cloned().collect(),
        ..bench(engine, tests, watch)
    })
}

/// A text to put in the place of `start..end` of a file.
struct Edit {
    file: String,
    start: usize,
    end: usize,
    text: String,
}

/// The modules' texts with these edits, none of which overlaps another.
fn edited(modules: &[Ref<Module>], mut edits: Vec<Edit>) -> Vec<Source> {
    edits.sort_by_key(|edit| std::cmp::Reverse(edit.start));
    modules
        .iter()
        .map(|module| {
            let source = &module.package.span.source;
            let mut text = source.get_contents().clone();
            for edit in edits.iter().filter(|edit| edit.file == *source.get_path()) {
                if text.is_char_boundary(edit.start) && text.is_char_boundary(edit.end) {
                    text.replace_range(edit.start..edit.end, &edit.text);
                }
            }
            (source.get_path().clone(), text)
        })
        .collect()
}

/// `data.package`, as it is written in a query.
fn package_path(module: &Module) -> String {
    let mut path = vec!["data".to_owned()];
    path.extend(
        syntax::chain(&module.package.refr)
            .prefix()
            .unwrap_or_default(),
    );
    dotted(&path)
}

fn rule_path(module: &Module, rule: &Rule) -> String {
    let mut path = vec!["data".to_owned()];
    path.extend(
        syntax::chain(&module.package.refr)
            .prefix()
            .unwrap_or_default(),
    );
    path.extend(
        syntax::chain(syntax::head(rule))
            .prefix()
            .unwrap_or_default(),
    );
    dotted(&path)
}

/// A path as OPA writes it: names after dots, other texts in brackets.
fn dotted(path: &[String]) -> String {
    let mut text = String::new();
    for part in path {
        let mut letters = part.chars();
        let name = letters
            .next()
            .is_some_and(|c| c.is_ascii_alphabetic() || c == '_')
            && letters.all(|c| c.is_ascii_alphanumeric() || c == '_');
        if !name {
            let quoted = serde_json::Value::from(part.as_str());
            text.push_str(&format!("[{quoted}]"));
        } else if text.is_empty() {
            text.push_str(part);
        } else {
            text.push('.');
            text.push_str(part);
        }
    }
    text
}

/// Line and column at which a span begins, in characters; the engine counts a tab as four.
fn place(span: &Span) -> (usize, usize) {
    let start = usize::try_from(span.start).unwrap_or(usize::MAX);
    let before = span.source.get_contents().get(..start).unwrap_or_default();
    let line = before.bytes().filter(|byte| *byte == b'\n').count() + 1;
    let column = before.rsplit('\n').next().unwrap_or_default();
    (line, column.chars().count() + 1)
}

/// Asks a query of an engine, within a time.
fn evaluate(engine: &mut Engine, query: &str, time: Duration) -> Result<Vec<Solution>, Unanswered> {
    engine.set_execution_timer_config(ExecutionTimerConfig {
        limit: time,
        check_interval: NonZeroU32::MIN,
    });
    let query = query.to_owned();
    let result = catch_unwind(AssertUnwindSafe(|| engine.eval_query(query, false)));
    let results = match result {
        Ok(Ok(results)) => results,
        Ok(Err(error)) => return Err(unanswered(&error.to_string(), error.downcast_ref(), time)),
        Err(payload) => return Err(Unanswered::Panic(rego::panic_text(payload.as_ref()))),
    };
    Ok(results
        .result
        .into_iter()
        .map(|result| Solution {
            expressions: result
                .expressions
                .into_iter()
                .map(|found| (found.text.to_string(), found.value))
                .collect(),
            bindings: result.bindings,
        })
        .collect())
}

fn unanswered(text: &str, limit: Option<&LimitError>, time: Duration) -> Unanswered {
    match limit {
        Some(LimitError::TimeLimitExceeded { .. }) => {
            Unanswered::Budget(format!("timed out after {time:?}"))
        }
        Some(LimitError::MemoryLimitExceeded { .. }) => {
            Unanswered::Budget("used up the memory that it may have".to_owned())
        }
        Some(LimitError::RegexSizeLimitExceeded { .. }) | None => {
            let remark = Remark::from_engine("", text);
            Unanswered::Error(Fault {
                message: remark.message,
                file: remark.file,
                line: remark.line.unwrap_or(0),
                column: remark.column.unwrap_or(0),
            })
        }
    }
}

#[cfg(test)]
mod tests;
