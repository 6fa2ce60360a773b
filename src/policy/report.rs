//! The results of tests, as `opa test` writes them.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use super::output::{Output, Tone};
use crate::authz::workbench::{
    Case, FailedAt, Lines, Ranges, Test, TestReport, Unanswered, Verdict, percent,
};

/// A line across.
const RULE: usize = 80;

/// A test and how it ended.
#[derive(Debug)]
pub(super) struct Run {
    pub(super) test: Test,
    pub(super) outcome: Outcome,
}

/// How a test ended.
#[derive(Debug)]
pub(super) enum Outcome {
    Tested(TestReport),
    /// Nanoseconds of each evaluation.
    Timed(Result<Vec<u64>, Unanswered>),
}

/// How many ended how. Of a test with cases each of them counts.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(super) struct Summary {
    pub(super) passed: usize,
    pub(super) failed: usize,
    pub(super) skipped: usize,
    pub(super) errors: usize,
}

impl Summary {
    pub(super) fn of(runs: &[Run]) -> Self {
        let mut summary = Self::default();
        for run in runs {
            match &run.outcome {
                Outcome::Tested(report) => summary.add(report),
                Outcome::Timed(Ok(_)) => summary.passed += 1,
                Outcome::Timed(Err(_)) => summary.errors += 1,
            }
        }
        summary
    }

    fn add(&mut self, report: &TestReport) {
        match &report.verdict {
            Verdict::Skip => self.skipped += 1,
            Verdict::Error(_) => self.errors += 1,
            Verdict::Pass | Verdict::Fail if !report.cases.is_empty() => self.cases(&report.cases),
            Verdict::Pass => self.passed += 1,
            Verdict::Fail => self.failed += 1,
        }
    }

    fn cases(&mut self, cases: &BTreeMap<String, Case>) {
        for case in cases.values() {
            match (case.cases.is_empty(), case.fail) {
                (false, _) => self.cases(&case.cases),
                (true, true) => self.failed += 1,
                (true, false) => self.passed += 1,
            }
        }
    }

    /// Whether nothing failed.
    pub(super) fn fine(&self) -> bool {
        self.failed + self.errors == 0
    }

    fn total(&self) -> usize {
        self.passed + self.failed + self.skipped + self.errors
    }
}

/// For people: what did not pass, or everything when `verbose`, and the sums.
pub(super) fn pretty(runs: &[Run], verbose: bool, out: &Output) -> String {
    let mut text = String::new();
    let mut file: Option<&str> = None;
    for run in runs {
        let shown = match &run.outcome {
            Outcome::Tested(report) => verbose || report.verdict != Verdict::Pass,
            Outcome::Timed(_) => true,
        };
        if !shown {
            continue;
        }
        if let Outcome::Timed(times) = &run.outcome {
            timed(&run.test, times, out, &mut text);
            continue;
        }
        if file.is_some_and(|file| file != run.test.file) {
            text.push('\n');
        }
        file = Some(&run.test.file);
        let place = format!("{}:{}:", run.test.file, run.test.line);
        let _ = writeln!(text, "{}", out.tone(Tone::Faint, &place));
        if let Outcome::Tested(report) = &run.outcome {
            one(&run.test, report, verbose, out, &mut text);
        }
    }
    let summary = Summary::of(runs);
    if !text.is_empty() {
        let _ = writeln!(text, "{}", "-".repeat(RULE));
    }
    let total = summary.total();
    for (number, word, tone) in [
        (summary.passed, "PASS", Tone::Good),
        (summary.failed, "FAIL", Tone::Bad),
        (summary.skipped, "SKIPPED", Tone::Warn),
        (summary.errors, "ERROR", Tone::Bad),
    ] {
        if number > 0 {
            let _ = writeln!(text, "{}: {number}/{total}", out.tone(tone, word));
        }
    }
    text
}

fn one(test: &Test, report: &TestReport, verbose: bool, out: &Output, text: &mut String) {
    let (word, tone) = match &report.verdict {
        Verdict::Pass => ("PASS", Tone::Good),
        Verdict::Fail => ("FAIL", Tone::Bad),
        Verdict::Skip => ("SKIPPED", Tone::Warn),
        Verdict::Error(_) => ("ERROR", Tone::Bad),
    };
    let time = match report.verdict {
        Verdict::Skip => String::new(),
        Verdict::Pass | Verdict::Fail | Verdict::Error(_) => {
            format!(" ({})", shown_time(report.duration))
        }
    };
    let _ = writeln!(text, "{}: {}{time}", test.full_name(), out.tone(tone, word));
    cases(&report.cases, 1, verbose, out, text);
    if !report.prints.is_empty() {
        text.push('\n');
        for print in &report.prints {
            let _ = writeln!(text, "  {print}");
        }
        text.push('\n');
    }
    if let Verdict::Error(error) = &report.verdict {
        let _ = writeln!(text, "  {error}");
    }
    if let Some(failed_at) = &report.failed_at {
        failure(failed_at, out, text);
    }
}

fn cases(
    cases_of: &BTreeMap<String, Case>,
    depth: usize,
    verbose: bool,
    out: &Output,
    text: &mut String,
) {
    for (name, case) in cases_of {
        if case.fail || verbose {
            let word = match case.fail {
                true => out.tone(Tone::Bad, "FAIL"),
                false => out.tone(Tone::Good, "PASS"),
            };
            let _ = writeln!(text, "{}{name}: {word}", "  ".repeat(depth));
        }
        cases(&case.cases, depth + 1, verbose, out, text);
    }
}

/// The statement that failed and the values there.
fn failure(failed: &FailedAt, out: &Output, text: &mut String) {
    let mut lines = failed.text.lines();
    let first = lines.next().unwrap_or_default();
    let more = if lines.next().is_some() { " …" } else { "" };
    let place = format!("{}:{}:{}:", failed.file, failed.line, failed.column);
    let _ = writeln!(
        text,
        "\n  {} {}{more}",
        out.tone(Tone::Faint, &place),
        out.tone(Tone::Strong, first)
    );
    let width = failed
        .values
        .iter()
        .map(|(name, _)| name.chars().count())
        .max()
        .unwrap_or(0)
        .min(40);
    for (name, value) in &failed.values {
        let _ = writeln!(text, "    {name:width$} = {value}");
    }
    text.push('\n');
}

/// As Go writes it: `1.234ms`.
pub(super) fn shown_time(time: Duration) -> String {
    format!("{time:?}")
}

fn timed(test: &Test, times: &Result<Vec<u64>, Unanswered>, out: &Output, text: &mut String) {
    match times {
        Ok(times) => {
            let _ = writeln!(
                text,
                "{}\t{:>8}\t{:>10} ns/op\t{:>10} ns p99",
                test.full_name(),
                times.len(),
                mean(times),
                quantile(times, 99)
            );
        }
        Err(error) => {
            let _ = writeln!(
                text,
                "{}:{}:\n{}: {}\n  {error}",
                test.file,
                test.line,
                test.full_name(),
                out.tone(Tone::Bad, "ERROR")
            );
        }
    }
}

/// Nanoseconds, rounded down.
pub(super) fn mean(times: &[u64]) -> u64 {
    let count = u64::try_from(times.len()).unwrap_or(1).max(1);
    times
        .iter()
        .fold(0u64, |sum, time| sum.saturating_add(*time))
        / count
}

/// The time that so many percent of the evaluations keep.
pub(super) fn quantile(times: &[u64], percent: usize) -> u64 {
    let mut sorted = times.to_vec();
    sorted.sort_unstable();
    let at = (sorted.len() * percent).div_ceil(100).saturating_sub(1);
    sorted.get(at).copied().unwrap_or(0)
}

/// Go's format of benchmarks: `BenchmarkDataOrdersTestOwners`.
pub(super) fn gobench(runs: &[Run]) -> String {
    let mut text = String::new();
    for run in runs {
        let Outcome::Timed(Ok(times)) = &run.outcome else {
            continue;
        };
        let name: String = run
            .test
            .full_name()
            .split(['.', '_'])
            .map(|part| {
                let mut letters = part.chars();
                let first = letters.next().map(|c| c.to_ascii_uppercase());
                first.into_iter().chain(letters).collect::<String>()
            })
            .collect();
        let _ = writeln!(
            text,
            "Benchmark{name}\t{:>8}\t{:>10} ns/op",
            times.len(),
            mean(times)
        );
    }
    text
}

/// OPA's result objects.
pub(super) fn json(runs: &[Run]) -> String {
    let results: Vec<Value> = runs.iter().map(result).collect();
    format!("{:#}\n", Value::from(results))
}

fn result(run: &Run) -> Value {
    let mut result = json!({
        "location": {"file": run.test.file, "row": run.test.line, "col": run.test.column},
        "package": run.test.package,
        "name": run.test.name,
        "duration": 0,
    });
    let mut set = |name: &str, value: Value| {
        if let Some(members) = result.as_object_mut() {
            members.insert(name.to_owned(), value);
        }
    };
    match &run.outcome {
        Outcome::Tested(report) => {
            let nanos = u64::try_from(report.duration.as_nanos()).unwrap_or(u64::MAX);
            set("duration", nanos.into());
            match &report.verdict {
                Verdict::Pass => {}
                Verdict::Fail => set("fail", true.into()),
                Verdict::Skip => set("skip", true.into()),
                Verdict::Error(error) => set("error", error_json(error)),
            }
            if !report.prints.is_empty() {
                // Bytes, which Go writes so.
                let mut text = report.prints.join("\n");
                text.push('\n');
                set("output", STANDARD.encode(text).into());
            }
            if !report.cases.is_empty() {
                set("sub_results", cases_json(&report.cases));
            }
            if let Some(failed) = &report.failed_at {
                let values: serde_json::Map<String, Value> = failed
                    .values
                    .iter()
                    .map(|(name, value)| (name.clone(), value.clone().into()))
                    .collect();
                set(
                    "failed_at",
                    json!({
                        "location": {"file": failed.file, "row": failed.line, "col": failed.column},
                        "text": failed.text,
                        "values": values,
                    }),
                );
            }
        }
        Outcome::Timed(Ok(times)) => {
            let all = times
                .iter()
                .fold(0u64, |sum, time| sum.saturating_add(*time));
            set("duration", all.into());
            set(
                "benchmark_result",
                json!({
                    "N": times.len(),
                    "T": all,
                    "ns_per_op": mean(times),
                    "p50": quantile(times, 50),
                    "p99": quantile(times, 99),
                }),
            );
        }
        Outcome::Timed(Err(error)) => set("error", error_json(error)),
    }
    result
}

fn error_json(error: &Unanswered) -> Value {
    let mut value = json!({
        "code": match error {
            Unanswered::Budget(_) => "eval_cancel_error",
            Unanswered::Error(_) => "eval_builtin_error",
            Unanswered::Panic(_) => "eval_internal_error",
        },
        "message": error.to_string(),
    });
    if let (Unanswered::Error(fault), Some(members)) = (error, value.as_object_mut()) {
        members.insert("message".to_owned(), fault.message.clone().into());
        if fault.line > 0 {
            let place = json!({"file": fault.file, "row": fault.line, "col": fault.column});
            members.insert("location".to_owned(), place);
        }
    }
    value
}

fn cases_json(cases: &BTreeMap<String, Case>) -> Value {
    let members: serde_json::Map<String, Value> = cases
        .iter()
        .map(|(name, case)| {
            let mut value = json!({"name": name});
            if let Some(members) = value.as_object_mut() {
                if case.fail {
                    members.insert("fail".to_owned(), true.into());
                }
                if !case.cases.is_empty() {
                    members.insert("sub_results".to_owned(), cases_json(&case.cases));
                }
            }
            (name.clone(), value)
        })
        .collect();
    Value::Object(members)
}

/// Which lines were reached, by file.
#[derive(Debug)]
pub(super) struct Coverage {
    files: BTreeMap<String, Ranges>,
}

impl Coverage {
    pub(super) fn of(all: &Lines, covered: &Lines) -> Self {
        let none = std::collections::BTreeSet::new();
        Self {
            files: all
                .iter()
                .map(|(file, lines)| {
                    let covered = covered.get(file).unwrap_or(&none);
                    (file.clone(), Ranges::of(lines, covered))
                })
                .collect(),
        }
    }

    fn sums(&self) -> (usize, usize) {
        self.files.values().fold((0, 0), |(yes, no), ranges| {
            (yes + ranges.covered_lines, no + ranges.not_covered_lines)
        })
    }

    /// Of all lines.
    pub(super) fn percent(&self) -> f64 {
        let (covered, not_covered) = self.sums();
        percent(covered, not_covered)
    }

    /// A line for each file, and with `verbose` what was not reached.
    pub(super) fn pretty(&self, out: &Output, verbose: bool) -> String {
        let width = self
            .files
            .keys()
            .map(|file| file.chars().count())
            .max()
            .unwrap_or(0)
            .max("all".len());
        let mut text = String::from("\n");
        let mut row = |name: &str, percent: f64, covered: usize, all: usize, missed: String| {
            let tone = if percent < 100.0 {
                Tone::Warn
            } else {
                Tone::Good
            };
            let shown = out.tone(tone, &format!("{percent:6.2} %"));
            let line = format!("{name:width$}  {shown}  {covered:>4} of {all:<4}  {missed}");
            let _ = writeln!(text, "{}", line.trim_end());
        };
        for (file, ranges) in &self.files {
            let all = ranges.covered_lines + ranges.not_covered_lines;
            let missed: Vec<String> = ranges
                .not_covered
                .iter()
                .map(|(from, to)| match from == to {
                    true => from.to_string(),
                    false => format!("{from}-{to}"),
                })
                .collect();
            let few = if verbose { missed.len() } else { 8 };
            let mut shown = missed
                .iter()
                .take(few)
                .cloned()
                .collect::<Vec<_>>()
                .join(", ");
            if missed.len() > few {
                shown.push_str(", …");
            }
            if !shown.is_empty() {
                shown = format!("not {shown}");
            }
            row(file, ranges.percent(), ranges.covered_lines, all, shown);
        }
        let (covered, not_covered) = self.sums();
        row(
            "all",
            self.percent(),
            covered,
            covered + not_covered,
            String::new(),
        );
        text
    }

    /// OPA's report.
    pub(super) fn json(&self) -> String {
        let range = |(from, to): &(u32, u32)| json!({"start": {"row": from}, "end": {"row": to}});
        let files: serde_json::Map<String, Value> = self
            .files
            .iter()
            .map(|(file, ranges)| {
                let value = json!({
                    "covered": ranges.covered.iter().map(range).collect::<Vec<_>>(),
                    "not_covered": ranges.not_covered.iter().map(range).collect::<Vec<_>>(),
                    "covered_lines": ranges.covered_lines,
                    "not_covered_lines": ranges.not_covered_lines,
                    "coverage": ranges.percent(),
                });
                (file.clone(), value)
            })
            .collect();
        let (covered, not_covered) = self.sums();
        let report = json!({
            "files": files,
            "covered_lines": covered,
            "not_covered_lines": not_covered,
            "coverage": self.percent(),
        });
        format!("{report:#}\n")
    }
}
