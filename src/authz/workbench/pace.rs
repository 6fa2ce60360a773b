//! How long decisions take on the engine that would make them, and what memory they take.

use std::collections::BTreeMap;
use std::num::NonZeroU64;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::thread;
use std::time::{Duration, Instant};

use regorus::unstable::{Module, Ref};
use regorus_mimalloc::allocation_stats_snapshot;

use super::{Material, rule_path};
use crate::authz::cost::{self, Cost, RuleCost};
use crate::authz::gate;
use crate::authz::rego::{self, Limits, Machine, Outcome, Program, Reading, Source};
use crate::authz::source::{check, syntax};
use crate::document::Value;

/// Longest time of one decision that is timed.
const TIME: Duration = Duration::from_secs(5);
/// Memory of one decision that is timed, in bytes.
const MEMORY: NonZeroU64 = NonZeroU64::new(256 << 20).expect("256 MiB is not zero");
/// How many decisions are made before one counts.
const WARM: usize = 20;

/// What a decision took.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pace {
    /// Nanoseconds of each evaluation.
    pub times: Vec<u64>,
    /// Bytes that it held at most beside its input.
    pub memory: u64,
}

/// Steps, times and memory of the decisions of one entry point.
#[derive(Debug)]
pub struct Paced {
    /// The steps, the same on every machine.
    pub cost: Cost,
    /// Times of each input, or why there are none.
    pub paces: Vec<Result<Pace, String>>,
}

impl Material {
    /// Counts and times decisions of an entry point: at most `count` evaluations of each input within
    /// `limit`.
    ///
    /// # Errors
    /// What is wrong with the modules, a line each.
    pub fn pace(
        &self,
        entrypoint: &str,
        inputs: &[Value],
        count: usize,
        limit: Duration,
    ) -> Result<Paced, Vec<String>> {
        let data = Value::from_json_str(&self.data).map_err(|error| vec![error.to_string()])?;
        let mut cost = cost::cost(
            &self.modules,
            &data,
            (self.errors, self.input),
            entrypoint,
            inputs,
        )?;
        if let Ok(mut parsed) =
            rego::read(&self.modules, &data, Reading::of(self.errors, self.input))
        {
            place(&mut cost.rules, parsed.engine.get_modules());
        }
        let program = self.program(&data, entrypoint).map_err(|why| vec![why])?;
        let paces = inputs
            .iter()
            .map(|input| {
                catch_unwind(AssertUnwindSafe(|| pace(&program, input, count, limit)))
                    .unwrap_or_else(|_| Err("the engine panicked".to_owned()))
            })
            .collect();
        Ok(Paced { cost, paces })
    }
}

/// Where the rules stand: the bytecode's own table of files is in another order.
fn place(rules: &mut [RuleCost], modules: &[Ref<Module>]) {
    let mut places: BTreeMap<String, (String, usize)> = BTreeMap::new();
    for module in modules {
        for rule in &module.policy {
            let (line, _) = syntax::place(rule.span());
            let file = module.package.span.source.get_path();
            places
                .entry(rule_path(module, rule))
                .or_insert_with(|| (file.clone(), line));
        }
    }
    for rule in rules {
        if let Some((file, line)) = places.get(&rule.rule) {
            rule.file.clone_from(file);
            rule.line = *line;
        }
    }
}

impl Material {
    fn program(&self, data: &Value, entrypoint: &str) -> Result<Program, String> {
        let live: Vec<Source> = self
            .modules
            .iter()
            .filter(|(file, _)| !check::is_test_file(file))
            .cloned()
            .collect();
        let limits = Limits {
            time: TIME,
            instructions: usize::MAX,
            memory: MEMORY,
        };
        let parsed =
            rego::read(&live, data, Reading::of(self.errors, self.input)).map_err(|remarks| {
                let first = remarks.first();
                first.map(|r| r.message.clone()).unwrap_or_default()
            })?;
        let mut engine = parsed.engine;
        let analysis = check::analyse(engine.get_modules(), entrypoint);
        if gate::fits_the_machine(&mut engine, &analysis, data, self.input)
            && let Ok(program) = Program::compiled(engine.clone(), entrypoint, limits)
        {
            return Ok(program);
        }
        Program::interpreted(engine, entrypoint, limits)
    }
}

fn pace(program: &Program, input: &Value, count: usize, limit: Duration) -> Result<Pace, String> {
    let mut machine = Machine::new(program)?;
    let end = Instant::now() + limit;
    let mut times = Vec::with_capacity(count.min(100_000));
    for round in 0..count.saturating_add(WARM) {
        let given = input.clone();
        let begun = Instant::now();
        let outcome = machine.run(given);
        let now = Instant::now();
        answered(outcome)?;
        if round >= WARM {
            times.push(u64::try_from((now - begun).as_nanos()).unwrap_or(u64::MAX));
        }
        if now >= end && !times.is_empty() {
            break;
        }
    }
    // A thread that just began has taken nothing, so that its peak is the decision's.
    let memory = thread::scope(|scope| {
        let given = input.clone();
        let run = scope.spawn(move || {
            let outcome = machine.run(given);
            let (_, thread) = allocation_stats_snapshot();
            answered(outcome).map(|()| u64::try_from(thread.peak).unwrap_or(0))
        });
        run.join()
            .unwrap_or_else(|_| Err("the engine panicked".to_owned()))
    })?;
    Ok(Pace { times, memory })
}

fn answered(outcome: Outcome) -> Result<(), String> {
    match outcome {
        Outcome::Answer(_) => Ok(()),
        Outcome::Error(why) | Outcome::Budget(why) | Outcome::Panic(why) => Err(why),
    }
}
