//! `portcullis policy test`: the tests and cases of policies, as `opa test` runs them.
//!
//! Exit codes are OPA's: 0 when all passed, 1 when they could not be run, 2 when one failed, was skipped
//! (without `--exit-zero-on-skipped`), or too few lines were covered.

#![expect(
    clippy::wildcard_enum_match_arm,
    reason = "of what a process tells, what was asked for counts"
)]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use regex::Regex;

use super::cases::{self, Court};
use super::files::{self, CONFIG, Set};
use super::output::{Output, count};
use super::report::{self, Outcome, Run, Summary};
use super::scenario::{Callers, Ground, Unanswered as NoGround};
use super::worker::{Event, GRACE, Job, OPENING, Work, converse};
use crate::authz::workbench::{Lines, Test, TestOptions, TestReport, Unanswered, Verdict};
use crate::schema::{Problem, Severity, Span};

/// The tests passed.
const PASSED: u8 = 0;
/// They could not be run.
const NOT_RUN: u8 = 1;
/// One of them failed.
const FAILED: u8 = 2;

/// Longest time of a test, by default.
const TIMEOUT: Span = Span::seconds(5);
/// How long a test is timed, when timing.
const BENCH_TIME: Duration = Duration::from_millis(500);
/// How often a test is run at most, when timing.
const BENCH_COUNT: usize = 100_000;

const EXAMPLES: &str = "\
Examples:
  portcullis policy test                              the policies of gateway.yaml, with their cases
  portcullis policy test policies -v                  files and folders, each test with what it printed
  portcullis policy test --run 'orders_test.*owner'   those whose full name matches
  portcullis policy test --coverage --threshold 90    fail when fewer lines are reached
  portcullis policy test --format json                OPA's result objects

Exit codes, as `opa test`: 0 all passed, 1 could not be run, 2 failed.";

/// What to test, and how.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct TestArgs {
    /// Files and folders with modules, tests, data and cases; by default those of the configuration's policies
    #[arg(value_name = "PATH")]
    paths: Vec<PathBuf>,
    /// The configuration, for its policies and for the routes of cases
    #[arg(long, value_name = "FILE", env = "PORTCULLIS_CONFIG")]
    config: Option<PathBuf>,
    /// Only tests whose full name (`data.orders_test.test_owners`) matches
    #[arg(long, short, value_name = "REGEX")]
    run: Option<String>,
    /// Each test, what it printed, and of one that failed its values
    #[arg(long, short)]
    verbose: bool,
    /// How to write the results
    #[arg(long, value_enum, default_value_t = TestFormat::Pretty)]
    format: TestFormat,
    /// Which lines of the policies were reached
    #[arg(long, short)]
    coverage: bool,
    /// Fail when fewer lines than this were reached, in percent
    #[arg(long, value_name = "PERCENT")]
    threshold: Option<f64>,
    /// Time the tests instead
    #[arg(long, conflicts_with_all = ["coverage", "threshold"])]
    bench: bool,
    /// Run each test so many times
    #[arg(long, value_name = "NUMBER", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    count: u32,
    /// Longest time of a test, such as 500ms [default: 5s]
    #[arg(long, value_name = "TIME", value_parser = super::output::span)]
    timeout: Option<Span>,
    /// Fail when there is no test
    #[arg(long)]
    fail_on_empty: bool,
    /// Do not fail for tests that are skipped
    #[arg(long, short = 'z')]
    exit_zero_on_skipped: bool,
    /// Leave the tables of cases out
    #[arg(long)]
    no_cases: bool,
}

/// How results are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(super) enum TestFormat {
    /// For people
    #[value(alias = "text")]
    Pretty,
    /// For machines, as OPA writes it
    Json,
    /// With `--bench`: Go's format of benchmarks
    Gobench,
}

/// Runs the command.
pub(super) fn run(arguments: &TestArgs) -> ExitCode {
    ExitCode::from(tested(arguments, &mut Output::standard()))
}

fn tested(arguments: &TestArgs, out: &mut Output) -> u8 {
    let filter = match arguments.run.as_deref().map(Regex::new).transpose() {
        Ok(filter) => filter,
        Err(error) => {
            out.complain(&format!("error: --run: {error}\n"));
            return NOT_RUN;
        }
    };
    if arguments
        .threshold
        .is_some_and(|percent| !(0.0..=100.0).contains(&percent))
    {
        out.complain("error: --threshold: between 0 and 100\n");
        return NOT_RUN;
    }
    if arguments.format == TestFormat::Gobench && !arguments.bench {
        out.complain("error: --format gobench: only with --bench\n");
        return NOT_RUN;
    }
    let sets = match files::with_candidates(&arguments.paths, arguments.config.as_deref()) {
        Ok(sets) => sets,
        Err(problems) => return refused(&problems, out),
    };
    let mut session = Session {
        arguments,
        filter,
        out,
        runs: Vec::new(),
        covered: Lines::new(),
        coverable: Lines::new(),
        unasked: (0, String::new()),
    };
    for set in &sets {
        if let Err(problems) = session.set(set) {
            return refused(&problems, session.out);
        }
    }
    if !arguments.no_cases
        && !arguments.bench
        && let Err(problems) = session.cases(&sets)
    {
        return refused(&problems, session.out);
    }
    session.finish()
}

fn refused(problems: &[Problem], out: &mut Output) -> u8 {
    out.problems(problems);
    out.complain(&format!(
        "error: the tests were not run: {}\n",
        count(problems.len(), "problem")
    ));
    NOT_RUN
}

struct Session<'a> {
    arguments: &'a TestArgs,
    filter: Option<Regex>,
    out: &'a mut Output,
    runs: Vec<Run>,
    covered: Lines,
    coverable: Lines,
    /// How many cases could not be asked, and why.
    unasked: (usize, String),
}

impl Session<'_> {
    fn options(&self) -> TestOptions {
        TestOptions {
            time: self.arguments.timeout.unwrap_or(TIMEOUT).get(),
            explain: true,
        }
    }

    fn lines(&self) -> bool {
        self.arguments.coverage || self.arguments.threshold.is_some()
    }

    /// Runs the tests of one set of files.
    fn set(&mut self, set: &Set) -> Result<(), Vec<Problem>> {
        let lines = self.lines();
        let job = |work| Job {
            material: set.material.clone(),
            lines,
            work,
        };
        let tests = self.open(&job(Work::Open))?;
        let chosen: Vec<usize> = tests
            .iter()
            .enumerate()
            .filter(|(_, test)| {
                let matches = |filter: &Regex| filter.is_match(&test.full_name());
                self.filter.as_ref().is_none_or(matches)
            })
            .map(|(index, _)| index)
            .collect();
        let all = chosen.len();
        for _ in 0..self.arguments.count {
            let mut left: Vec<usize> = chosen.clone();
            // Each round ends with all done, or with one less.
            while !left.is_empty() {
                let work = match self.arguments.bench {
                    true => Work::Time(left.clone(), BENCH_COUNT, BENCH_TIME),
                    false => Work::Tests(left.clone(), self.options()),
                };
                let before = left.len();
                self.round(&job(work), &tests, &mut left, all)?;
                if left.len() == before {
                    break;
                }
            }
        }
        Ok(())
    }

    /// Runs the tables of cases beside the policies. Those over requests need a configuration.
    fn cases(&mut self, sets: &[Set]) -> Result<(), Vec<Problem>> {
        let mut tables = Vec::new();
        for set in sets {
            let found = cases::tables(set)?;
            tables.extend(found.into_iter().map(|table| (set, table)));
        }
        if tables.is_empty() {
            return Ok(());
        }
        let config = self
            .arguments
            .config
            .as_deref()
            .unwrap_or(Path::new(CONFIG));
        let loaded = |candidate: Option<&str>| {
            let ground = match candidate {
                None => Ground::load(config),
                // Its cases are about what would be with it.
                Some(candidate) => Ground::with_candidate(config, candidate),
            };
            ground.map_err(|error| match error {
                NoGround::Configuration(file, problems) => {
                    let mut errors = problems
                        .iter()
                        .filter(|problem| problem.severity == Severity::Error);
                    let first = errors.next().map(|problem| problem.message.as_str());
                    let first = first.unwrap_or("it has problems");
                    let more = match errors.count() {
                        0 => String::new(),
                        more => format!(", and {more} more"),
                    };
                    format!("{} does not load: {first}{more}", file.display())
                }
                other => other.to_string(),
            })
        };
        let mut grounds: BTreeMap<Option<&str>, Result<Ground, String>> = BTreeMap::new();
        for (set, _) in &tables {
            let candidate = set.candidate.as_deref();
            grounds.entry(candidate).or_insert_with(|| {
                if config.exists() {
                    loaded(candidate)
                } else {
                    let why = "requests need the routes of a configuration: say `--config FILE`";
                    Err(why.to_owned())
                }
            });
        }
        let callers = Callers::find(None, config).unwrap_or_default();
        let all = tables.iter().map(|(_, table)| table.len()).sum();
        let mut done = 0;
        for (set, table) in &tables {
            self.out.progress(done, all, "cases");
            let court = Court {
                set,
                ground: grounds
                    .get(&set.candidate.as_deref())
                    .and_then(|ground| ground.as_ref().ok()),
                callers: &callers,
            };
            let runs = court.judge(table, self.filter.as_ref(), &mut self.unasked.0)?;
            self.runs.extend(runs);
            done += table.len();
        }
        if let Some(why) = grounds.into_values().find_map(Result::err) {
            self.unasked.1 = why;
        }
        Ok(())
    }

    fn open(&mut self, job: &Job) -> Result<Vec<Test>, Vec<Problem>> {
        let mut tests = Vec::new();
        let mut problems = Vec::new();
        let mut warned = Vec::new();
        let coverable = &mut self.coverable;
        let fate = converse(job, |event| {
            match event {
                Event::Refused(found) => problems = found,
                Event::Opened {
                    tests: found,
                    warnings,
                    coverable: lines,
                } => {
                    tests = found;
                    warned = warnings;
                    for (file, lines) in lines {
                        coverable.entry(file).or_default().extend(lines);
                    }
                }
                _ => {}
            }
            OPENING
        });
        if let Err(fate) = fate {
            problems.push(fate.problem(&job.material));
        }
        if !problems.is_empty() {
            return Err(problems);
        }
        self.out.problems(&warned);
        Ok(tests)
    }

    /// One process's worth of tests. What it did is taken from `left`, and so is the one it died of.
    fn round(
        &mut self,
        job: &Job,
        tests: &[Test],
        left: &mut Vec<usize>,
        all: usize,
    ) -> Result<(), Vec<Problem>> {
        let limit = self.options().time + GRACE;
        let mut current: Option<usize> = None;
        let fate = converse(job, |event| {
            match event {
                Event::Begun(index) => {
                    current = Some(index);
                    let name = tests.get(index).map(Test::full_name).unwrap_or_default();
                    self.out.progress(all - left.len(), all, &name);
                }
                Event::Tested(index, report) => {
                    current = None;
                    left.retain(|other| *other != index);
                    self.ended(tests.get(index), Outcome::Tested(report));
                }
                Event::Timed(index, times) => {
                    current = None;
                    left.retain(|other| *other != index);
                    self.ended(tests.get(index), Outcome::Timed(times));
                }
                _ => {}
            }
            limit
        });
        match (fate, current) {
            (Ok(()), _) => Ok(()),
            (Err(fate), Some(index)) => {
                left.retain(|other| *other != index);
                let error = Verdict::Error(Unanswered::Budget(fate.words()));
                let report = TestReport::bare(error, Duration::ZERO);
                self.ended(tests.get(index), Outcome::Tested(report));
                Ok(())
            }
            (Err(fate), None) => Err(vec![fate.problem(&job.material)]),
        }
    }

    fn ended(&mut self, test: Option<&Test>, outcome: Outcome) {
        let Some(test) = test else { return };
        if let Outcome::Tested(report) = &outcome {
            for (file, lines) in &report.lines {
                let covered = self.covered.entry(file.clone()).or_default();
                covered.extend(lines.iter().copied());
            }
        }
        self.runs.push(Run {
            test: test.clone(),
            outcome,
        });
    }

    fn finish(self) -> u8 {
        let arguments = self.arguments;
        let summary = Summary::of(&self.runs);
        let covered = self
            .lines()
            .then(|| report::Coverage::of(&self.coverable, &self.covered));
        let text = match (arguments.format, &covered) {
            (TestFormat::Json, Some(coverage)) if summary.fine() => coverage.json(),
            (TestFormat::Json, _) => report::json(&self.runs),
            (TestFormat::Gobench, _) => report::gobench(&self.runs),
            (TestFormat::Pretty, _) => {
                let mut text = report::pretty(&self.runs, arguments.verbose, self.out);
                if let Some(coverage) = &covered {
                    text.push_str(&coverage.pretty(self.out, arguments.verbose));
                }
                text
            }
        };
        self.out.say(&text);
        if self.runs.is_empty() {
            if arguments.fail_on_empty {
                self.out.complain("error: no tests were run\n");
                return NOT_RUN;
            }
            if arguments.format == TestFormat::Pretty {
                self.out.complain("no tests were run\n");
            }
        }
        let (unasked, why) = &self.unasked;
        if *unasked > 0 {
            let cases = count(*unasked, "case");
            self.out
                .complain(&format!("error: {cases} not asked: {why}\n"));
        }
        if summary.failed + summary.errors > 0
            || (summary.skipped > 0 && !arguments.exit_zero_on_skipped)
        {
            return FAILED;
        }
        if let (Some(least), Some(coverage)) = (arguments.threshold, &covered)
            && coverage.percent() < least
        {
            self.out.complain(&format!(
                "Code coverage threshold not met: got {:.2} instead of {least:.2}\n",
                coverage.percent()
            ));
            return FAILED;
        }
        if *unasked > 0 {
            return NOT_RUN;
        }
        PASSED
    }
}
