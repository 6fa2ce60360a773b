//! What decisions cost, counted in steps instead of time: the same count on every machine, each time.
//!
//! A policy is taken as its block in the configuration takes it, on the engine that the block would
//! run it on. What is counted are instructions of the bytecode machine or steps of the interpreter;
//! the two are no measure of one another. Builtins count as one step, however long they take.

use std::collections::BTreeMap;
use std::num::NonZeroU64;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Duration;

use crate::authz::BuiltinErrors;
use crate::authz::gate;
use crate::authz::published::InputDocument;
use crate::authz::rego::{self, Limits, Program, Reading, Source, profile};
use crate::authz::source::check;
use crate::authz::source::remark::Remark;
use crate::document::Value;

/// Memory of one counted decision, in bytes.
const MEMORY: NonZeroU64 = NonZeroU64::new(256 << 20).expect("256 MiB is not zero");
/// Longest time of one counted decision.
const TIME: Duration = Duration::from_secs(10);

/// What the decisions on some inputs cost.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cost {
    /// `rvm` or `interpreter`.
    pub engine: &'static str,
    /// Steps of each decision, in the order of the inputs; in words when it could not be counted.
    pub decisions: Vec<Result<u64, String>>,
    /// What the rules cost over all decisions, the costliest first. Empty on the interpreter, which
    /// does not tell.
    pub rules: Vec<RuleCost>,
}

/// What one rule cost.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RuleCost {
    /// `data.orders.allow`; `other` stands for those beyond the first 127.
    pub rule: String,
    /// The file of its first definition.
    pub file: String,
    /// The line of its first definition.
    pub line: usize,
    /// How often it was evaluated.
    pub evaluations: u64,
    /// Steps, without those of the rules that it calls.
    pub steps: u64,
}

/// What one rule of a live policy cost, told from one evaluation in [`LiveCost::ONE_IN`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LiveCost {
    /// `data.orders.allow`; `other` stands for those beyond the first 127.
    pub rule: String,
    /// The file of its first definition.
    pub file: String,
    /// The line of its first definition.
    pub line: usize,
    /// How often it was evaluated, among the evaluations that were watched.
    pub evaluations: u64,
    /// How long that took, without the rules that it calls.
    pub time: Duration,
    /// How many of the decisions that were watched spent their budget while it ran.
    pub overruns: u64,
}

impl LiveCost {
    /// Of so many evaluations on a core one is watched.
    pub const ONE_IN: u64 = profile::ONE_IN;
}

pub(super) fn live(ledger: &profile::Ledger) -> Vec<LiveCost> {
    let mut rules: Vec<LiveCost> = ledger
        .rules()
        .map(|(rule, seen, overruns)| LiveCost {
            rule: rule.name.clone(),
            file: rule.file.clone(),
            line: rule.line,
            evaluations: seen.evaluations,
            time: seen.time,
            overruns,
        })
        .collect();
    rules.sort_by(|a, b| b.time.cmp(&a.time).then_with(|| a.rule.cmp(&b.rule)));
    rules
}

impl Cost {
    /// The steps of the costliest decision.
    pub fn most(&self) -> u64 {
        let counted = self
            .decisions
            .iter()
            .filter_map(|steps| steps.as_ref().ok());
        counted.copied().max().unwrap_or(0)
    }

    /// The steps of all decisions together.
    pub fn total(&self) -> u64 {
        let counted = self
            .decisions
            .iter()
            .filter_map(|steps| steps.as_ref().ok());
        counted.sum()
    }
}

/// Counts what decisions cost: modules by file and text (tests among them are left out), the data,
/// the entry point, and the inputs to decide on.
///
/// # Errors
/// What is wrong with the modules, one line each.
pub fn cost(
    modules: &[Source],
    data: &Value,
    (errors, input): (BuiltinErrors, InputDocument),
    entrypoint: &str,
    inputs: &[Value],
) -> Result<Cost, Vec<String>> {
    let live: Vec<Source> = modules
        .iter()
        .filter(|(file, _)| !check::is_test_file(file))
        .cloned()
        .collect();
    let limits = Limits {
        time: TIME,
        instructions: usize::MAX,
        memory: MEMORY,
    };
    let reading = Reading::of(errors, input);
    let program = program(&live, data, reading, entrypoint, limits)?;
    let mut rules: BTreeMap<String, RuleCost> = BTreeMap::new();
    let decisions = inputs
        .iter()
        .map(|input| {
            let steps = catch_unwind(AssertUnwindSafe(|| program.steps(input)))
                .unwrap_or_else(|_| Err("the engine panicked".to_owned()))?;
            for (at, seen) in steps.rules {
                let rule = rules.entry(at.name.clone()).or_insert_with(|| RuleCost {
                    rule: at.name,
                    file: at.file,
                    line: at.line,
                    evaluations: 0,
                    steps: 0,
                });
                rule.evaluations += seen.evaluations;
                rule.steps += seen.instructions;
            }
            Ok(steps.total)
        })
        .collect();
    let mut rules: Vec<RuleCost> = rules.into_values().collect();
    rules.sort_by(|a, b| b.steps.cmp(&a.steps).then_with(|| a.rule.cmp(&b.rule)));
    Ok(Cost {
        engine: program.engine(),
        decisions,
        rules,
    })
}

fn program(
    live: &[Source],
    data: &Value,
    reading: Reading,
    entrypoint: &str,
    limits: Limits,
) -> Result<Program, Vec<String>> {
    let parsed = rego::read(live, data, reading).map_err(|found| told(&found))?;
    let (mut engine, places) = (parsed.engine, parsed.places);
    let analysis = check::analyse(engine.get_modules(), entrypoint);
    if !analysis.remarks.is_empty() {
        let found = analysis.remarks.into_iter();
        let found: Vec<Remark> = found.map(|remark| places.remark(remark)).collect();
        return Err(told(&found));
    }
    if !analysis.rules.contains(entrypoint) {
        return Err(vec![format!("there is no rule `{entrypoint}`")]);
    }
    if gate::fits_the_machine(&mut engine, &analysis, data, reading.document)
        && let Ok(program) = Program::compiled(engine.clone(), entrypoint, limits)
    {
        return Ok(program);
    }
    Program::interpreted(engine, entrypoint, limits).map_err(|why| vec![why])
}

/// A line each: `file:line:column: what`.
fn told(remarks: &[Remark]) -> Vec<String> {
    let line = |remark: &Remark| {
        let mut line = remark.file.clone();
        for at in [remark.line, remark.column].into_iter().flatten() {
            line.push_str(&format!(":{at}"));
        }
        format!("{line}: {}", remark.message)
    };
    remarks.iter().map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::document::from_json;

    const READ: (BuiltinErrors, InputDocument) = (BuiltinErrors::Deny, InputDocument::Portcullis);

    fn counted(rules: &str, inputs: &[&str]) -> Cost {
        let modules = [("p.rego".to_owned(), format!("package p\n{rules}\n"))];
        let inputs: Vec<Value> = inputs
            .iter()
            .map(|i| from_json(i.as_bytes()).unwrap())
            .collect();
        cost(
            &modules,
            &Value::new_object(),
            READ,
            "data.p.allow",
            &inputs,
        )
        .unwrap()
    }

    const HELPED: &str = "default allow := false\nallow if { reads; staff }\n\
        reads if input.method == \"GET\"\n\
        staff if { some role in input.roles; role == \"staff\" }";

    #[test]
    fn a_count_is_the_same_each_time_and_grows_with_the_work() {
        let few = r#"{"method": "GET", "roles": ["a", "staff"]}"#;
        let many = r#"{"method": "GET", "roles": ["a", "b", "c", "d", "e", "f", "g", "staff"]}"#;
        let cost = counted(HELPED, &[few, many, few]);
        assert_eq!(cost.engine, "rvm");
        let steps: Vec<u64> = cost.decisions.iter().map(|d| d.clone().unwrap()).collect();
        assert_eq!(steps[0], steps[2]);
        assert!(steps[1] > steps[0], "{steps:?}");
        assert_eq!(cost, counted(HELPED, &[few, many, few]));
        assert_eq!(cost.most(), steps[1]);
        assert_eq!(cost.total(), steps.iter().sum::<u64>());
    }

    #[test]
    fn rules_are_told_apart_by_name_and_line() {
        let cost = counted(
            HELPED,
            &[r#"{"method": "GET", "roles": ["a", "b", "c", "staff"]}"#],
        );
        let rules: Vec<_> = cost
            .rules
            .iter()
            .map(|r| (r.rule.as_str(), r.line, r.evaluations))
            .collect();
        assert_eq!(
            rules,
            [
                ("data.p.staff", 5, 1),
                ("data.p.reads", 4, 1),
                ("data.p.allow", 3, 1)
            ]
        );
        // What is never asked costs nothing.
        let cost = counted(
            HELPED,
            &[r#"{"method": "POST", "roles": ["a", "b", "c", "staff"]}"#],
        );
        assert!(
            cost.rules.iter().all(|r| r.rule != "data.p.staff"),
            "{cost:?}"
        );
    }

    #[test]
    fn rules_of_several_files_are_told_with_their_own() {
        let modules = [
            (
                "z.rego".to_owned(),
                "package p\nallow if data.q.ok\n".to_owned(),
            ),
            (
                "a.rego".to_owned(),
                "package q\n\nok if input.x\n".to_owned(),
            ),
        ];
        let input = from_json(br#"{"x": true}"#).unwrap();
        let data = Value::new_object();
        let mut rules = cost(&modules, &data, READ, "data.p.allow", &[input])
            .unwrap()
            .rules;
        rules.sort_by(|a, b| a.rule.cmp(&b.rule));
        let places: Vec<_> = rules.iter().map(|r| (r.file.as_str(), r.line)).collect();
        assert_eq!(places, [("z.rego", 2), ("a.rego", 3)]);
    }

    #[test]
    fn the_interpreters_steps_are_counted_too() {
        let rules = "allow if { some i; input.roles[i] == \"staff\" }";
        let few = r#"{"roles": ["a", "staff"]}"#;
        let many = r#"{"roles": ["a", "b", "c", "d", "e", "staff"]}"#;
        let cost = counted(rules, &[few, many]);
        assert_eq!(cost.engine, "interpreter");
        let steps: Vec<u64> = cost.decisions.iter().map(|d| d.clone().unwrap()).collect();
        assert!(0 < steps[0] && steps[0] < steps[1], "{steps:?}");
        assert_eq!(cost, counted(rules, &[few, many]));
    }

    #[test]
    fn a_policy_that_does_not_load_says_why() {
        let modules = [("p.rego".to_owned(), "package p\nallow if allow".to_owned())];
        let why = cost(&modules, &Value::new_object(), READ, "data.p.allow", &[]).unwrap_err();
        assert!(why[0].contains("p.rego:2"), "{why:?}");
    }
}
