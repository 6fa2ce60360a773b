//! What a policy's text shows that would bite, for tools: [`inspect`].
//!
//! Nothing is judged here that the gate judges: a policy with findings may load, and one without may
//! not. The findings' names and what each means are in `source::lint`.

#![expect(
    clippy::wildcard_enum_match_arm,
    reason = "what is not named is not known, and nothing is said of it"
)]

use std::collections::{BTreeMap, BTreeSet};
use std::num::NonZeroU64;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use regorus::unstable::{Module, Ref};
use regorus::{Engine, Value};

use super::answer::{self, Verdict};
use super::config::rule_path;
use super::envoy;
use super::gate::generate::{Generator, gather, set};
use super::input::CREDENTIALS;
use super::published::InputDocument;
use super::rego::{self, Limits, Machine, Outcome, Program};
use super::source::lint::{self, Known};
use super::source::reads::{self, Step};
use super::source::types::{Form, Object, Text, Type};
use super::source::{check, load, size};
use crate::metrics::Metrics;
use crate::schema::{Compile, Problem};

pub use super::source::lint::{Finding, Weight};
pub use super::source::size::RuleSize;

/// How many generated inputs are tried for denials that vanish.
const TRIALS: usize = 1_500;
/// Longest time for that.
const TRIAL_TIME: Duration = Duration::from_secs(2);
/// What one of them may use up.
const TRIAL_LIMITS: Limits = Limits {
    time: Duration::from_millis(200),
    instructions: 1_000_000,
    memory: NonZeroU64::new(64 << 20).expect("64 MiB is not zero"),
};

/// What the routes that ask a policy say of its input.
#[derive(Debug, Clone, Default)]
pub struct RouteWords {
    /// Their names.
    pub names: BTreeSet<String>,
    /// Values of labels by name, and whether every route has the label.
    pub labels: BTreeMap<String, (BTreeSet<String>, bool)>,
    /// Names of path parameters, and whether every route has the parameter.
    pub params: BTreeMap<String, bool>,
    /// Whether one of them lets callers through without a credential.
    pub anonymous: bool,
}

/// What is to be looked at.
#[derive(Debug, Clone, Default)]
pub struct Subject {
    /// Files and folders, as the configuration names them.
    pub paths: Vec<PathBuf>,
    /// The folder or the configuration file that paths are relative to.
    pub beside: PathBuf,
    /// The rules that decide.
    pub entrypoints: Vec<String>,
    /// Headers that the policy does not see beside those with credentials.
    pub hidden_headers: Vec<String>,
    /// The routes that ask it; none when nothing is known of them.
    pub routes: Option<RouteWords>,
    /// Whether the files hold all the data there will be.
    pub data_is_whole: bool,
    /// Which document it sees.
    pub document: InputDocument,
    /// Whether to look at the text alone: a policy that the gate refuses is not run.
    pub text_alone: bool,
    /// Whether to count what decisions cost.
    pub counts: bool,
}

impl Subject {
    /// With entry points as the engine names them.
    fn normal(&self) -> Self {
        Self {
            entrypoints: self
                .entrypoints
                .iter()
                .map(|name| rule_path(name))
                .collect(),
            ..self.clone()
        }
    }
}

/// What was found.
#[derive(Debug, Clone, Default)]
pub struct Inspection {
    /// In the order of files and lines.
    pub findings: Vec<Finding>,
    /// Files that cannot be read or parsed; then nothing else is known.
    pub problems: Vec<Problem>,
    /// How big each live rule is.
    pub sizes: Vec<RuleSize>,
    /// What decisions cost, where they were asked for and the policy is compiled.
    pub cost: Option<Cost>,
    /// Modules, tests not counted.
    pub modules: usize,
    /// Tests.
    pub tests: usize,
}

/// What one rule costs, counted in instructions: the same for the same policy on every machine.
#[derive(Debug, Clone, PartialEq)]
pub struct RuleCost {
    /// Its path: `data.orders.decision`.
    pub name: String,
    /// The file.
    pub file: String,
    /// The line of its first definition.
    pub line: usize,
    /// How often it is evaluated in one decision, on average.
    pub evaluations: f64,
    /// Its instructions in one decision on average, without those of the rules that it calls.
    pub instructions: f64,
}

/// What decisions cost, over generated inputs.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Cost {
    /// Instructions on average.
    pub mean: f64,
    /// Most instructions.
    pub most: u64,
    /// By rule, the costliest first.
    pub rules: Vec<RuleCost>,
}

/// How many generated inputs are counted.
const COUNTED: u32 = 120;

/// Counts what decisions cost; `None` where the policy is not compiled.
fn cost(
    sources: &[rego::Source],
    data: &Value,
    entrypoint: &str,
    document: InputDocument,
) -> Option<Cost> {
    let live: Vec<rego::Source> = sources
        .iter()
        .filter(|(file, _)| !check::is_test_file(file))
        .cloned()
        .collect();
    let mut engine = rego::parse(&live, data).ok()?;
    let analysis = check::analyse(engine.get_modules(), entrypoint);
    if analysis.remarks.iter().any(|remark| !remark.warning) {
        return None;
    }
    let inputs = analysis.test_inputs.clone();
    let program = Program::compiled(engine, entrypoint, TRIAL_LIMITS).ok()?;
    let mut generator = Generator::new(&analysis, inputs, data, 1, document);
    let end = Instant::now() + TRIAL_TIME;
    let mut counted = 0_u32;
    let (mut total, mut most) = (0_u64, 0_u64);
    let mut rules: BTreeMap<(String, String, usize), (u64, u64)> = BTreeMap::new();
    while counted < COUNTED && Instant::now() < end {
        let steps = program.steps(&generator.next()).ok();
        counted += 1;
        let Some(steps) = steps else {
            continue;
        };
        total = total.saturating_add(steps.total);
        most = most.max(steps.total);
        for (rule, seen) in steps.rules {
            let known = rules.entry((rule.name, rule.file, rule.line)).or_default();
            known.0 = known.0.saturating_add(seen.evaluations);
            known.1 = known.1.saturating_add(seen.instructions);
        }
    }
    let mean = |sum: u64| {
        let sum = u32::try_from(sum).unwrap_or(u32::MAX);
        f64::from(sum) / f64::from(counted.max(1))
    };
    let mut rules: Vec<RuleCost> = rules
        .into_iter()
        .map(
            |((name, file, line), (evaluations, instructions))| RuleCost {
                name,
                file,
                line,
                evaluations: mean(evaluations),
                instructions: mean(instructions),
            },
        )
        .collect();
    rules.sort_by(|a, b| b.instructions.total_cmp(&a.instructions));
    Some(Cost {
        mean: mean(total),
        most,
        rules,
    })
}

/// Looks at the text of a policy.
pub fn inspect(subject: &Subject) -> Inspection {
    let subject = &subject.normal();
    let mut cx = Compile::new(&subject.beside, Arc::new(Metrics::default()));
    let loaded = load::load(&subject.paths, &mut cx);
    let (problems, _) = cx.finish();
    let Some(loaded) = loaded else {
        return Inspection {
            problems,
            ..Inspection::default()
        };
    };
    let (mut engine, places) = match parsed(&loaded.modules, &loaded.data) {
        Ok(made) => made,
        Err(problems) => {
            return Inspection {
                problems,
                ..Inspection::default()
            };
        }
    };
    let modules = engine.get_modules();
    let input = input_type(subject);
    let known = Known {
        input: &input,
        data: &loaded.data,
        data_is_whole: subject.data_is_whole,
        entrypoints: &subject.entrypoints,
        test_files: &|file| is_test(modules, file),
    };
    let mut findings = lint::lint(modules, &known);
    for finding in &mut findings {
        finding.at = places.author(&finding.file, finding.at);
    }
    for entrypoint in subject.entrypoints.iter().filter(|_| !subject.text_alone) {
        confirm(
            &mut findings,
            &loaded.modules,
            &loaded.data,
            entrypoint,
            subject.document,
        );
    }
    let cost = subject
        .entrypoints
        .first()
        .filter(|_| subject.counts && !subject.text_alone)
        .and_then(|entrypoint| cost(&loaded.modules, &loaded.data, entrypoint, subject.document));
    let live = |module: &&Ref<Module>| !is_test(modules, module.package.span.source.get_path());
    Inspection {
        findings,
        problems,
        cost,
        sizes: modules.iter().filter(live).flat_map(size::sizes).collect(),
        modules: modules.iter().filter(live).count(),
        tests: check::analyse(modules, "").tests.len(),
    }
}

/// Test files by their name, and by a package that is called so.
fn is_test(modules: &[Ref<Module>], file: &str) -> bool {
    check::is_test_file(file)
        || modules.iter().any(|module| {
            let span = &module.package.span;
            span.source.get_path() == file && module.package.refr.span().text().ends_with("_test")
        })
}

/// The author's own text where the engine reads it, else what is made of it for the engine.
fn parsed(sources: &[rego::Source], data: &Value) -> Result<(Engine, rego::Places), Vec<Problem>> {
    let mut engine = Engine::new();
    let as_written = catch_unwind(AssertUnwindSafe(|| {
        sources
            .iter()
            .all(|(file, text)| engine.add_policy(file.clone(), text.clone()).is_ok())
    }));
    if as_written.unwrap_or(false) {
        return Ok((engine, rego::Places::default()));
    }
    let made = rego::read(sources, data, rego::Reading::default());
    made.map(|made| (made.engine, made.places))
        .map_err(|remarks| {
            remarks
                .into_iter()
                .map(|remark| remark.into_problem(String::new()))
                .collect()
        })
}

/// The published schema, with what is known of the routes and of hidden headers.
fn input_type(subject: &Subject) -> Type {
    let is_envoy = subject.document == InputDocument::Envoy;
    let schema = subject.document.schema();
    let http: &[&str] = if is_envoy {
        &["attributes", "request", "http"]
    } else {
        &["request"]
    };
    let headers = |ty: Type| match ty {
        Type::Object(object) => {
            let mut object = Arc::unwrap_or_clone(object);
            object.names = Form::Lower;
            let why = "it carries credentials, and policies never see them";
            for name in CREDENTIALS {
                // The Envoy document has the token, without its signature.
                if !(is_envoy && name == "authorization") {
                    object.never.insert(name.to_owned(), why.to_owned());
                }
            }
            for name in &subject.hidden_headers {
                let why = "`hidden_headers` hides it".to_owned();
                object.never.insert(name.to_ascii_lowercase(), why);
            }
            Type::Object(object.into())
        }
        other => other,
    };
    let mut ty = Type::of_schema(schema).with(&[http, &["headers"]].concat(), &headers);
    for (name, form) in [
        ("method", Form::Upper),
        ("path", Form::Path),
        ("host", Form::Lower),
    ] {
        ty = ty.with(&[http, &[name]].concat(), &|ty| match ty {
            Type::Text(text) => Type::Text(Text { form, ..text }),
            other => other,
        });
    }
    if is_envoy {
        return ty;
    }
    let Some(routes) = &subject.routes else {
        return ty;
    };
    let text = |values: &BTreeSet<String>| {
        Type::Text(Text {
            values: Some(values.clone()),
            form: Form::Free,
            configured: true,
        })
    };
    let object = |fields: BTreeMap<String, (Type, bool)>| {
        Type::Object(
            Object {
                fields,
                configured: true,
                ..Object::default()
            }
            .into(),
        )
    };
    let ty = ty
        .with(&["route", "name"], &|_| text(&routes.names))
        .with(&["route", "labels"], &|_| {
            object(
                routes
                    .labels
                    .iter()
                    .map(|(name, (values, always))| (name.clone(), (text(values), *always)))
                    .collect(),
            )
        })
        .with(&["route", "params"], &|_| {
            object(
                routes
                    .params
                    .iter()
                    .map(|(name, always)| (name.clone(), (Type::text(), *always)))
                    .collect(),
            )
        });
    if routes.anonymous {
        return ty;
    }
    // Somebody is always known.
    ty.with(&["identity"], &|ty| match ty {
        Type::OneOf(several) => several
            .into_iter()
            .find(|one| *one != Type::Null)
            .unwrap_or(Type::Any),
        other => other,
    })
}

/// Asks the policy itself whether a denial vanishes: an input that is denied, and allowed when what may
/// be missing is missing. What it says yes to is an error, with the member that makes the difference.
fn confirm(
    findings: &mut [Finding],
    sources: &[rego::Source],
    data: &Value,
    entrypoint: &str,
    document: InputDocument,
) {
    let paths: BTreeSet<Vec<String>> = findings
        .iter()
        .filter_map(|finding| finding.missing.clone())
        .filter(|path| !path.is_empty())
        .collect();
    if paths.is_empty() {
        return;
    }
    let live: Vec<rego::Source> = sources
        .iter()
        .filter(|(file, _)| !check::is_test_file(file))
        .cloned()
        .collect();
    let Ok(mut engine) = rego::parse(&live, data) else {
        return;
    };
    let analysis = check::analyse(engine.get_modules(), entrypoint);
    // What recurses would take us down.
    if analysis.remarks.iter().any(|remark| !remark.warning) {
        return;
    }
    let inputs = analysis.test_inputs.clone();
    let Ok(program) = Program::interpreted(engine, entrypoint, TRIAL_LIMITS) else {
        return;
    };
    let mut generator = Generator::new(&analysis, inputs, data, 1, document);
    let mut machine = None;
    let mut allows = |input: Value| -> Option<bool> {
        let mut ready = match machine.take() {
            Some(machine) => machine,
            None => Machine::new(&program).ok()?,
        };
        let outcome = ready.run(input);
        if let Outcome::Answer(value) = outcome {
            machine = Some(ready);
            let verdict = match document {
                InputDocument::Portcullis => answer::read(&value),
                InputDocument::Envoy => envoy::answer::read(&value),
            };
            return Some(matches!(verdict, Verdict::Allow(_)));
        }
        None
    };
    let end = Instant::now() + TRIAL_TIME;
    let mut confirmed: BTreeSet<Vec<String>> = BTreeSet::new();
    for _ in 0..TRIALS {
        if confirmed.len() == paths.len() || Instant::now() > end {
            break;
        }
        let input = generator.next();
        if allows(input.clone()) != Some(false) {
            continue;
        }
        for path in paths
            .iter()
            .filter(|path| !confirmed.contains(*path))
            .cloned()
            .collect::<Vec<_>>()
        {
            let without = set(input.clone(), &path, None);
            if without != input && allows(without) == Some(true) {
                confirmed.insert(path);
            }
        }
    }
    for finding in findings {
        if finding
            .missing
            .as_ref()
            .is_some_and(|path| confirmed.contains(path))
        {
            finding.weight = Weight::Error;
            finding
                .message
                .push_str(". Tried: a request that is denied is allowed without it");
        }
    }
}

/// The words of a policy: what it reads of `input`, what it compares that with, and what else it knows.
#[derive(Debug, Clone, Default)]
pub struct Vocabulary {
    /// Paths below `input` that a decision can read.
    pub reads: BTreeSet<Vec<String>>,
    /// Texts of the rules and of data.
    pub words: BTreeSet<String>,
    /// Those of data alone: names of people, of things, of what they may.
    pub data: BTreeSet<String>,
    compared: BTreeMap<Vec<String>, BTreeSet<Value>>,
    /// Inputs of the policy's own tests.
    pub tests: Vec<Value>,
    /// Whether it tests values by what cannot be made up from words: patterns, counts, times.
    pub by_pattern: bool,
    /// Whether some of its modules were not there to be read.
    pub partial: bool,
}

/// Functions that say yes to values which stand nowhere in a policy.
const PATTERNS: [&str; 20] = [
    "regex.",
    "glob.match",
    "count(",
    "sum(",
    "max(",
    "min(",
    "startswith(",
    "endswith(",
    "contains(",
    "strings.any_",
    "indexof(",
    "substring(",
    "split(",
    "trim",
    "replace(",
    "semver.",
    "net.cidr",
    "time.",
    "to_number(",
    "units.parse",
];

/// Whether a module calls one of them; comments do not count.
fn by_pattern(text: &str) -> bool {
    let code = text
        .lines()
        .map(|line| line.split('#').next().unwrap_or(line));
    let mut code = code.filter(|line| !line.trim_start().starts_with("import "));
    code.any(|line| PATTERNS.iter().any(|function| line.contains(function)))
}

impl Vocabulary {
    /// What a path is compared with, where both stand in one statement.
    pub fn compared(&self, path: &[String]) -> impl Iterator<Item = &Value> {
        self.compared.get(path).into_iter().flatten()
    }

    /// Why a search among these words may miss somebody; `None` when it looks at all of them.
    pub fn doubt(&self) -> Option<&'static str> {
        if self.partial {
            Some("modules of the policy come in bundles: what they compare with was not looked at")
        } else if self.by_pattern {
            Some("the policy tests values by pattern, count or time: such values were not made up")
        } else {
            None
        }
    }
}

/// Most words that are taken from data.
const MAX_WORDS: usize = 2_000;

/// Reads the words of a policy; `None` when it does not parse.
pub fn vocabulary(subject: &Subject) -> Option<Vocabulary> {
    let subject = &subject.normal();
    let mut cx = Compile::new(&subject.beside, Arc::new(Metrics::default()));
    let loaded = load::load(&subject.paths, &mut cx)?;
    let live: Vec<rego::Source> = loaded
        .modules
        .iter()
        .filter(|(file, _)| !check::is_test_file(file))
        .cloned()
        .collect();
    let mut all = rego::parse(&loaded.modules, &loaded.data).ok()?;
    let mut engine = rego::parse(&live, &loaded.data).ok()?;
    let mut vocabulary = Vocabulary {
        by_pattern: live.iter().any(|(_, text)| by_pattern(text)),
        ..Vocabulary::default()
    };
    let text = |value: &Value| crate::document::text(value).map(ToString::to_string);
    for entrypoint in &subject.entrypoints {
        let analysis = check::analyse(engine.get_modules(), entrypoint);
        vocabulary
            .words
            .extend(analysis.words.iter().filter_map(text));
        for (path, values) in analysis.compared {
            vocabulary.compared.entry(path).or_default().extend(values);
        }
        let reads = reads::of(engine.get_modules(), entrypoint);
        for path in reads.paths.keys() {
            let names = path.iter().map_while(|step| match step {
                Step::Name(name) => Some(name.clone()),
                Step::Index(_) => None,
            });
            vocabulary.reads.insert(names.collect());
        }
        vocabulary.tests = check::analyse(all.get_modules(), entrypoint).test_inputs;
    }
    let mut words = BTreeSet::new();
    gather(&loaded.data, 0, &mut words);
    vocabulary.data = words.iter().take(MAX_WORDS).filter_map(text).collect();
    vocabulary.words.extend(vocabulary.data.iter().cloned());
    Some(vocabulary)
}
