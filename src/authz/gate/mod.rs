//! The gate: what a policy goes through before it decides anything.
//!
//! regorus can be brought down by a policy, and its two engines do not always agree. So the source
//! is checked first; then the policy's own tests run on the interpreter. A policy made only of forms
//! on which the engines are known to agree (`subset`) is compiled, and both engines answer the same
//! few hundred inputs; where they differ all the same, and for every other policy, the interpreter
//! is used, at about five times the cost. A policy on which the
//! engine panics has no answer that can be trusted, and is refused.

pub(in crate::authz) mod child;
pub(in crate::authz) mod generate;

use std::num::NonZeroU64;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant};

use regorus::{Engine, Value};
use serde::{Deserialize, Serialize};

use crate::authz::gate::generate::Generator;
use crate::authz::published::InputDocument;
use crate::authz::rego::host::Errors;
use crate::authz::rego::subset;
use crate::authz::rego::{self, Limits, Machine, Outcome, Program, Reading, Source};
use crate::authz::source::check::{self, Analysis};
use crate::authz::source::expansion;
use crate::authz::source::remark::Remark;
use crate::authz::workbench;

/// How many inputs both engines must agree on.
pub(in crate::authz) const SAMPLES: usize = 400;
/// Longest time for the comparison; what was not compared by then is not.
const COMPARISON_TIME: Duration = Duration::from_secs(3);
/// Longest time for one of the policy's own tests.
const TEST_TIME: Duration = Duration::from_secs(2);
/// Longest time for one generated input. Larger than any budget: the gate compares answers, and a
/// busy machine must not make it refuse what it took yesterday.
const SAMPLE_TIME: Duration = Duration::from_millis(500);
/// Memory of one sample, in bytes.
const SAMPLE_MEMORY: NonZeroU64 = NonZeroU64::new(64 << 20).expect("64 MiB is not zero");
/// Most inputs that are taken from a policy's own tests.
const MAX_TEST_INPUTS: usize = 100;

/// What the gate is asked to judge.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(in crate::authz) struct Job {
    pub(in crate::authz) modules: Vec<Source>,
    /// JSON.
    pub(in crate::authz) data: String,
    pub(in crate::authz) entrypoint: String,
    /// What it sees.
    #[serde(default)]
    pub(in crate::authz) input: InputDocument,
    pub(in crate::authz) instructions: usize,
    pub(in crate::authz) errors: Errors,
    /// Makes the generated inputs repeatable.
    pub(in crate::authz) seed: u64,
}

/// What it found.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(in crate::authz) struct Report {
    pub(in crate::authz) remarks: Vec<Remark>,
    /// The engine to use; `None` when the policy is refused.
    pub(in crate::authz) engine: Option<Choice>,
}

/// The engine that a policy is to run on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(in crate::authz) enum Choice {
    Rvm,
    Interpreter,
}

/// Judges one policy. May overflow the stack on what the checks do not know yet: run it where that
/// does no harm.
pub(in crate::authz) fn judge(job: &Job) -> Report {
    let mut report = Report::default();
    report.engine = judge_into(job, &mut report.remarks);
    if report.remarks.iter().any(|remark| !remark.warning) {
        report.engine = None;
    }
    report
}

fn judge_into(job: &Job, remarks: &mut Vec<Remark>) -> Option<Choice> {
    let first = job.modules.first().map_or("", |(file, _)| file.as_str());
    let Ok(data) = Value::from_json_str(&job.data) else {
        remarks.push(Remark::error(
            first,
            None,
            "the data cannot be read",
            "check the data files",
        ));
        return None;
    };
    let reading = Reading::of(job.errors, job.input);
    let (mut everything, places) = match rego::read(&job.modules, &data, reading) {
        Ok(parsed) => (parsed.engine, parsed.places),
        Err(found) => {
            remarks.extend(found);
            return None;
        }
    };
    let mut found = Vec::new();
    let choice = judge_parsed(job, &data, reading, &mut everything, &mut found);
    remarks.extend(found.into_iter().map(|remark| places.remark(remark)));
    choice
}

/// Remarks name places in the rewritten modules.
fn judge_parsed(
    job: &Job,
    data: &Value,
    reading: Reading,
    everything: &mut Engine,
    remarks: &mut Vec<Remark>,
) -> Option<Choice> {
    let first = job.modules.first().map_or("", |(file, _)| file.as_str());
    let mut analysis = check::analyse(everything.get_modules(), &job.entrypoint);
    remarks.append(&mut analysis.remarks);
    if !analysis.rules.contains(&job.entrypoint) {
        remarks.push(unknown_entrypoint(first, &job.entrypoint, &analysis));
    }
    if !remarks.is_empty() {
        return None;
    }

    let live: Vec<Source> = job
        .modules
        .iter()
        .filter(|(file, _)| !check::is_test_file(file))
        .cloned()
        .collect();
    let mut engine = match rego::read(&live, data, reading) {
        Ok(parsed) => parsed.engine,
        Err(found) => {
            remarks.extend(found);
            return None;
        }
    };
    remarks.extend(expansion::check(engine.get_modules()));
    if !remarks.is_empty() {
        return None;
    }
    let limits = Limits {
        time: SAMPLE_TIME,
        instructions: job.instructions,
        memory: SAMPLE_MEMORY,
    };
    let interpreted = match Program::interpreted(engine.clone(), &job.entrypoint, limits) {
        Ok(program) => program,
        Err(text) => {
            remarks.push(Remark::from_engine(first, &text));
            return None;
        }
    };
    own_tests(everything, job, remarks);
    let inputs = test_inputs(everything, &analysis);

    let outside = subset::outside_with(engine.get_modules(), data, job.input);
    let compiled = match (
        &analysis.ref_head,
        Program::compiled(engine, &job.entrypoint, limits),
    ) {
        (Some((file, line, column)), Ok(_)) => {
            remarks.push(slower(
                file,
                Some((*line, *column)),
                "a rule whose head is a path (`a.b := …`)",
            ));
            None
        }
        (None, Ok(program)) => match outside {
            None => Some(program),
            Some(outside) => {
                remarks.push(slower(&outside.file, Some(outside.at), outside.what));
                None
            }
        },
        (_, Err(text)) => {
            let found = Remark::from_engine(first, &text);
            if text.contains("onflict") {
                remarks.push(found);
                return None;
            }
            let at = found.line.zip(found.column);
            remarks.push(slower(&found.file, at, &found.message));
            None
        }
    };
    let mut generator = Generator::new(&analysis, inputs, data, job.seed, job.input);
    compare(
        first,
        &mut generator,
        &interpreted,
        compiled.as_ref(),
        remarks,
    )
}

/// Whether a policy is made only of forms on which both engines agree.
pub(in crate::authz) fn fits_the_machine(
    engine: &mut Engine,
    analysis: &Analysis,
    data: &Value,
    input: InputDocument,
) -> bool {
    let outside = subset::outside_with(engine.get_modules(), data, input);
    analysis.ref_head.is_none() && outside.is_none()
}

fn unknown_entrypoint(file: &str, entrypoint: &str, analysis: &Analysis) -> Remark {
    let nearest = analysis
        .rules
        .iter()
        .max_by(|a, b| {
            let near = |name: &str| strsim::jaro_winkler(name, entrypoint);
            near(a).total_cmp(&near(b))
        })
        .map_or_else(
            || "the files hold no rule at all".to_owned(),
            |name| format!("did you mean `{name}`?"),
        );
    let message = format!("there is no rule `{entrypoint}`");
    Remark::error(file, None, message, nearest)
}

fn slower(file: &str, at: Option<(usize, usize)>, why: &str) -> Remark {
    Remark::warning(
        file,
        at,
        format!("the policy runs on the interpreter, which costs about five times as much: {why}"),
        "the decisions are the same; write it without to have it compiled",
    )
}

fn own_tests(engine: &mut Engine, job: &Job, remarks: &mut Vec<Remark>) {
    for failed in workbench::own_tests(engine, job.errors, job.input, TEST_TIME) {
        remarks.push(Remark::error(
            &failed.file,
            Some((failed.line, failed.column)),
            failed.message,
            "a policy whose own tests fail does not go live; `portcullis policy test` shows why",
        ));
    }
}

/// Inputs that the policy's own tests use.
fn test_inputs(engine: &mut Engine, analysis: &Analysis) -> Vec<Value> {
    let mut inputs = analysis.test_inputs.clone();
    for rule in &analysis.test_input_rules {
        let found = catch_unwind(AssertUnwindSafe(|| {
            rego::evaluate(engine, Value::new_object(), rule)
        }));
        if let Ok(Outcome::Answer(value)) = found
            && value.as_object().is_ok()
        {
            inputs.push(value);
        }
    }
    inputs.truncate(MAX_TEST_INPUTS);
    inputs
}

fn compare(
    file: &str,
    generator: &mut Generator,
    interpreted: &Program,
    compiled: Option<&Program>,
    remarks: &mut Vec<Remark>,
) -> Option<Choice> {
    let end = Instant::now() + COMPARISON_TIME;
    let mut choice = match compiled {
        Some(_) => Choice::Rvm,
        None => Choice::Interpreter,
    };
    let mut interpreter = None;
    let mut rvm = None;
    let mut overruns = 0usize;
    let mut samples = 0usize;
    while samples < SAMPLES && Instant::now() < end {
        samples += 1;
        let input = generator.next();
        let expected = run(&mut interpreter, interpreted, input.clone());
        let found = match compiled {
            Some(program) if choice == Choice::Rvm => run(&mut rvm, program, input),
            _ => expected.clone(),
        };
        for outcome in [&expected, &found] {
            if let Outcome::Panic(text) = outcome {
                remarks.push(Remark::error(
                    file,
                    None,
                    format!("the policy makes the engine panic: {text}"),
                    "there is no telling what the engine would answer; write the rule differently",
                ));
                return None;
            }
        }
        match (&expected, &found) {
            (Outcome::Budget(_), _) | (_, Outcome::Budget(_)) => overruns += 1,
            // The words of two errors differ; that both are errors is what counts.
            (Outcome::Error(_), Outcome::Error(_)) => {}
            (expected, found) if expected == found => {}
            (expected, found) => {
                remarks.push(slower(
                    file,
                    None,
                    &format!(
                        "the compiled policy answers {} where the interpreter answers {}",
                        shown(found),
                        shown(expected)
                    ),
                ));
                choice = Choice::Interpreter;
            }
        }
    }
    if overruns > 0 {
        remarks.push(Remark::warning(
            file,
            None,
            format!(
                "{overruns} of {samples} generated inputs used up the budget and would be denied"
            ),
            "loop over less, or raise `budget`",
        ));
    }
    Some(choice)
}

/// Runs on a machine that is made when there is none, and kept while it only answers.
fn run(machine: &mut Option<Machine>, program: &Program, input: Value) -> Outcome {
    let mut ready = match machine.take() {
        Some(machine) => machine,
        None => match Machine::new(program) {
            Ok(machine) => machine,
            Err(text) => return Outcome::Error(text),
        },
    };
    let outcome = ready.run(input);
    if matches!(outcome, Outcome::Answer(_)) {
        *machine = Some(ready);
    }
    outcome
}

fn shown(outcome: &Outcome) -> String {
    let text = match outcome {
        Outcome::Answer(Value::Undefined) => "undefined".to_owned(),
        // Numbers out of range make `Display` itself panic.
        Outcome::Answer(value) => value.to_json_str().map_or_else(
            |_| "a value that is no JSON".to_owned(),
            |text| rego::detail(&text),
        ),
        Outcome::Error(text) => format!("with an error ({text})"),
        Outcome::Budget(_) | Outcome::Panic(_) => "not at all".to_owned(),
    };
    text.chars().take(120).collect()
}
