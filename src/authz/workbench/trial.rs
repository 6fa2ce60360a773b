//! One test, run and judged as `opa test` does.
//!
//! A test is a rule whose name, or a part of whose path, begins with `test_`; one that begins with
//! `todo_test_` is skipped. It passes when it is `true`; one with a variable behind its name
//! (`test_x[case]`) has a result for each case that its body reached, and passes when all of them hold.

#![expect(
    clippy::wildcard_enum_match_arm,
    reason = "an answer is of the one kind that is asked for, or another"
)]

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use regorus::unstable::{Module, Ref, Rule};
use serde::{Deserialize, Serialize};

use super::{
    Edit, Fault, Lines, Solution, Unanswered, Workbench, evaluate, explain, package_path, place,
};
use crate::authz::source::syntax::{self, Part};
use crate::document::Value;

/// How names of tests begin.
const PREFIX: &str = "test_";
/// How names of tests begin that are not run.
const SKIPPED: &str = "todo_test_";
/// Between a name and its number, where `opa test` writes `#`, which no name can hold.
const TWIN: &str = "__twin_";

/// A test.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Test {
    /// `data.orders_test`.
    pub package: String,
    /// `test_owners_read`; of a twin `test_owners_read#01`.
    pub name: String,
    /// Where it stands.
    pub file: String,
    /// From 1.
    pub line: usize,
    /// From 1.
    pub column: usize,
    /// Whether it begins with `todo_`.
    pub skip: bool,
    /// What to ask for.
    path: String,
    /// Whether it has a result for each case.
    cases: bool,
}

impl Test {
    /// A case that stands in a table: it is judged elsewhere and listed among the tests.
    pub fn listed(package: &str, name: &str, file: &str, at: (usize, usize)) -> Self {
        Self {
            package: package.to_owned(),
            name: name.to_owned(),
            file: file.to_owned(),
            line: at.0,
            column: at.1,
            skip: false,
            path: String::new(),
            cases: false,
        }
    }

    /// `data.orders_test.test_owners_read`: what filters are matched with.
    pub fn full_name(&self) -> String {
        format!("{}.{}", self.package, self.name)
    }
}

/// How a test is run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct TestOptions {
    /// Longest time.
    pub time: Duration,
    /// Whether to find out where it failed, and with which values.
    pub explain: bool,
}

/// How a test ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// It is true.
    Pass,
    /// It is undefined, false, or anything but true.
    Fail,
    /// It is not run.
    Skip,
    /// It cannot be evaluated.
    Error(Unanswered),
}

/// What a test came to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TestReport {
    /// How it ended.
    pub verdict: Verdict,
    /// How long it took.
    pub duration: Duration,
    /// What `print` wrote, with where.
    pub prints: Vec<String>,
    /// Results of its cases.
    pub cases: BTreeMap<String, Case>,
    /// The statement that failed.
    pub failed_at: Option<FailedAt>,
    /// Lines that were reached, when watched.
    pub lines: Lines,
}

impl TestReport {
    /// The report of a test that ended like this without a trace.
    pub fn bare(verdict: Verdict, duration: Duration) -> Self {
        Self {
            verdict,
            duration,
            prints: Vec::new(),
            cases: BTreeMap::new(),
            failed_at: None,
            lines: Lines::new(),
        }
    }
}

/// The result of one case of a test, or of the cases below it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Case {
    /// Whether it failed.
    pub fail: bool,
    /// Cases below: `test_x[a][b]`.
    pub cases: BTreeMap<String, Self>,
}

/// A statement that failed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FailedAt {
    /// Its file.
    pub file: String,
    /// From 1.
    pub line: usize,
    /// From 1.
    pub column: usize,
    /// The statement.
    pub text: String,
    /// Names and parts of the statement with their values; `undefined` for those without.
    pub values: Vec<(String, String)>,
}

/// The head of a test, cut at its name.
struct Head {
    /// All up to the name.
    path: Vec<String>,
    /// The name, as it is in the module.
    name: String,
    /// Whether a variable stands behind the name.
    dynamic: bool,
    /// Whether it is skipped.
    skip: bool,
}

fn head(rule: &Rule) -> Option<Head> {
    if syntax::arity(rule).is_some() || matches!(rule, Rule::Default { .. }) {
        return None;
    }
    let chain = syntax::chain(syntax::head(rule));
    let regorus::unstable::Expr::Var { span, .. } = chain.base else {
        return None;
    };
    let mut names = vec![span.text().to_owned()];
    for part in &chain.parts {
        match part {
            Part::Name(name) => names.push(name.clone()),
            Part::Dynamic(_) => break,
        }
    }
    let is_test = |name: &String| name.starts_with(PREFIX) || name.starts_with(SKIPPED);
    let at = names.iter().position(is_test)?;
    let name = names.get(at)?.clone();
    names.truncate(at);
    Some(Head {
        skip: name.starts_with(SKIPPED),
        path: names,
        name,
        dynamic: chain
            .parts
            .iter()
            .skip(at)
            .any(|part| matches!(part, Part::Dynamic(_))),
    })
}

/// What makes each test a rule of its own.
pub(super) struct Renamed {
    pub(super) edits: Vec<Edit>,
    /// The names that are shown, by the names in the modules.
    pub(super) names: BTreeMap<String, String>,
}

/// Numbers tests that have a name together: as one rule, one that holds would hide another that fails.
pub(super) fn rename_twins(modules: &[Ref<Module>]) -> Renamed {
    let mut counts: BTreeMap<String, usize> = BTreeMap::new();
    let mut renamed = Renamed {
        edits: Vec::new(),
        names: BTreeMap::new(),
    };
    for module in modules {
        let package = package_path(module);
        for rule in &module.policy {
            let Some(head) = head(rule).filter(|head| !head.skip) else {
                continue;
            };
            let key = format!("{package} {} {}", head.path.join("."), head.name);
            let count = counts.entry(key).or_insert(0);
            if *count > 0 {
                let span = syntax::head(rule).span();
                let (Ok(start), Ok(end)) = (usize::try_from(span.start), usize::try_from(span.end))
                else {
                    continue;
                };
                let text = span.source.get_contents().get(start..end);
                if let Some(at) = text.and_then(|text| text.find(&head.name)) {
                    let name = format!("{}{TWIN}{count:02}", head.name);
                    let (start, end) = (start + at, start + at + head.name.len());
                    renamed.edits.push(Edit {
                        file: span.source.get_path().clone(),
                        start,
                        end,
                        text: name.clone(),
                    });
                    let shown = format!("{}#{count:02}", head.name);
                    renamed.names.insert(name, shown);
                }
            }
            *count += 1;
        }
    }
    renamed
}

/// The tests of all modules, in the order of the files.
pub(super) fn tests(modules: &[Ref<Module>], shown: &BTreeMap<String, String>) -> Vec<Test> {
    let mut tests = Vec::new();
    let mut seen = BTreeSet::new();
    for module in modules {
        let package = package_path(module);
        for rule in &module.policy {
            let Some(head) = head(rule) else {
                continue;
            };
            let (line, column) = place(rule.span());
            let mut path = package.clone();
            let mut name = String::new();
            for part in &head.path {
                path = format!("{path}[{}]", serde_json::Value::from(part.as_str()));
                name.push_str(part);
                name.push('.');
            }
            path = format!("{path}[{}]", serde_json::Value::from(head.name.as_str()));
            name.push_str(shown.get(&head.name).unwrap_or(&head.name));
            if !seen.insert(path.clone()) && !head.skip {
                continue;
            }
            tests.push(Test {
                package: package.clone(),
                name,
                file: module.package.span.source.get_path().clone(),
                line,
                column,
                skip: head.skip,
                path,
                cases: head.dynamic,
            });
        }
    }
    tests
}

/// What the answer to a test means. `cases` says whether it has a result for each case.
fn verdict_of(answers: &[Solution], cases: bool) -> Verdict {
    let value = answers
        .first()
        .and_then(|answer| answer.expressions.first())
        .map(|(_, value)| value);
    let passed = match value {
        Some(Value::Bool(true)) => true,
        Some(value) if cases => !of_value(value).values().any(|case| case.fail),
        _ => false,
    };
    if passed { Verdict::Pass } else { Verdict::Fail }
}

/// The cases that hold, or do not, in the value of a test.
fn of_value(value: &Value) -> BTreeMap<String, Case> {
    let Ok(members) = value.as_object() else {
        return BTreeMap::new();
    };
    let case = |value: &Value| match value {
        Value::Object(_) => {
            let cases = of_value(value);
            let fail = cases.values().any(|case| case.fail);
            Case { fail, cases }
        }
        other => Case {
            fail: *other != Value::Bool(true),
            cases: BTreeMap::new(),
        },
    };
    members
        .iter()
        .map(|(name, value)| (text(name), case(value)))
        .collect()
}

/// The names of cases that failed, with those of the cases above them.
pub(super) fn failed_cases(cases: &BTreeMap<String, Case>) -> Vec<String> {
    let mut failed = Vec::new();
    for (name, case) in cases.iter().filter(|(_, case)| case.fail) {
        if case.cases.is_empty() {
            failed.push(format!("`{name}`"));
        }
        let below = failed_cases(&case.cases);
        failed.extend(below.into_iter().map(|inner| format!("`{name}` {inner}")));
    }
    failed
}

/// A text as it is, another value as JSON.
pub(super) fn text(value: &Value) -> String {
    match value {
        Value::String(text) => text.to_string(),
        Value::Undefined => "undefined".to_owned(),
        other => {
            serde_json::to_string(other).unwrap_or_else(|_| "a value that is no JSON".to_owned())
        }
    }
}

/// Notes a case that was reached; one that the value does not have failed. Whether it, or one below it,
/// did.
fn note(cases: &mut BTreeMap<String, Case>, path: &[String]) -> bool {
    let Some((name, below)) = path.split_first() else {
        return true;
    };
    let case = cases.entry(name.clone()).or_insert(Case {
        fail: true,
        cases: BTreeMap::new(),
    });
    if !below.is_empty() && note(&mut case.cases, below) {
        case.fail = true;
    }
    case.fail
}

impl Workbench {
    /// Runs one test.
    pub fn run(&self, test: &Test, options: TestOptions) -> TestReport {
        if test.skip {
            return TestReport::bare(Verdict::Skip, Duration::ZERO);
        }
        let mut engine = self.engine.clone();
        engine.set_input(Value::Undefined);
        let begun = Instant::now();
        let result = evaluate(&mut engine, &test.path, options.time);
        let duration = begun.elapsed();
        let mut report = TestReport::bare(Verdict::Pass, duration);
        report.prints = engine.take_prints().unwrap_or_default();
        report.lines = self.reached(&engine);
        let answers = match result {
            Ok(answers) => answers,
            Err(error) => {
                report.verdict = Verdict::Error(self.placed(error));
                return report;
            }
        };
        report.verdict = verdict_of(&answers, test.cases);
        if test.cases {
            let value = answers
                .first()
                .and_then(|answer| answer.expressions.first())
                .map(|(_, value)| value);
            report.cases = value.map(of_value).unwrap_or_default();
            for path in explain::cases(self, test, options.time) {
                if note(&mut report.cases, &path) {
                    report.verdict = Verdict::Fail;
                }
            }
        }
        if options.explain && report.verdict == Verdict::Fail {
            report.failed_at = explain::failed_at(self, test, options.time);
        }
        report
    }

    /// Times one test again and again.
    ///
    /// # Errors
    /// [`Unanswered`], also for a test that does not pass.
    pub fn time_test(
        &self,
        test: &Test,
        count: usize,
        limit: Duration,
    ) -> Result<Vec<Duration>, Unanswered> {
        let question = super::Question {
            query: test.path.clone(),
            input: None,
            time: limit,
        };
        let answered = self.ask(&question)?;
        if verdict_of(&answered.answers, test.cases) != Verdict::Pass {
            return Err(Unanswered::Error(Fault {
                message: "the test does not pass".to_owned(),
                file: test.file.clone(),
                line: test.line,
                column: test.column,
            }));
        }
        self.time(&question, count, limit)
    }

    /// The rules that a test is made of, with their modules.
    pub(super) fn definitions<'w>(&'w self, test: &Test) -> Vec<(&'w Ref<Module>, &'w Ref<Rule>)> {
        let mut found = Vec::new();
        for module in self.modules.iter() {
            if *module.package.span.source.get_path() != test.file {
                continue;
            }
            for rule in &module.policy {
                if head(rule).is_some() && place(rule.span()) == (test.line, test.column) {
                    found.push((module, rule));
                }
            }
        }
        found
    }
}
