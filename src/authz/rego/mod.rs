//! The Rego engine: modules to programs, input to outcome.
//!
//! A program runs on regorus's bytecode machine where the gate found it to agree with the
//! interpreter, else on the interpreter. Both are told to raise every error of a builtin: OPA's
//! habit of turning them into "undefined" would let a rule that says no vanish. The machine's
//! errors are no answer: what fails there (`guarded`) is asked again of the interpreter.

#[cfg(test)]
mod agreement;
pub(in crate::authz) mod guarded;
pub(in crate::authz) mod subset;

use std::num::{NonZeroU32, NonZeroU64};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use regorus::languages::rego::compiler::Compiler;
use regorus::rvm::program::Program as Bytecode;
use regorus::rvm::vm::{RegoVM, VmError};
use regorus::utils::limits::ExecutionTimerConfig;
use regorus::{Engine, LimitError, MemoryBudgetConfig, Value};

use crate::authz::source::remark::Remark;

/// How many instructions pass between two looks at the clock.
const CLOCK_INTERVAL: NonZeroU32 = NonZeroU32::new(64).expect("64 is not zero");
/// Longest detail of an engine's error that a record keeps, in characters.
const MAX_DETAIL: usize = 400;

/// What one decision may use up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::authz) struct Limits {
    pub(in crate::authz) time: Duration,
    pub(in crate::authz) instructions: usize,
    /// Bytes.
    pub(in crate::authz) memory: NonZeroU64,
}

/// A module's file and text.
pub(in crate::authz) type Source = (String, String);

/// What an evaluation came to.
#[derive(Debug, Clone, PartialEq)]
pub(in crate::authz) enum Outcome {
    /// A value, or `Value::Undefined`.
    Answer(Value),
    Error(String),
    Budget(String),
    Panic(String),
}

/// Parses modules into an engine that holds this data; all files' mistakes at once.
pub(in crate::authz) fn parse(sources: &[Source], data: &Value) -> Result<Engine, Vec<Remark>> {
    let mut engine = Engine::new();
    engine.set_strict_builtin_errors(true);
    engine.set_gather_prints(true);
    let mut remarks = Vec::new();
    for (file, text) in sources {
        // A parser that panics is a parse error like another.
        let parsed = catch_unwind(AssertUnwindSafe(|| {
            engine.add_policy(file.clone(), text.clone())
        }));
        match parsed {
            Ok(Ok(_)) => {}
            Ok(Err(error)) => remarks.push(Remark::from_engine(file, &error.to_string())),
            Err(_) => remarks.push(Remark::error(
                file,
                None,
                "the parser panicked",
                "simplify the module",
            )),
        }
    }
    if let Err(error) = engine.add_data(data.clone()) {
        remarks.push(Remark::from_engine("", &error.to_string()));
    }
    if remarks.is_empty() {
        Ok(engine)
    } else {
        Err(remarks)
    }
}

/// A program that may run.
#[derive(Debug)]
pub(in crate::authz) struct Program {
    id: u64,
    pub(in crate::authz) kind: Kind,
    setup: Arc<Setup>,
}

/// What a machine is made from.
#[derive(Debug)]
pub(in crate::authz) struct Setup {
    engine: Engine,
    entrypoint: String,
    data: Value,
    limits: Limits,
}

/// The engine a program runs on.
#[derive(Debug)]
pub(in crate::authz) enum Kind {
    Rvm(Arc<Bytecode>),
    Interpreter,
}

impl Program {
    /// Readies an engine for its entry point on the interpreter.
    pub(in crate::authz) fn interpreted(
        mut engine: Engine,
        entrypoint: &str,
        limits: Limits,
    ) -> Result<Self, String> {
        let entry: Arc<str> = entrypoint.into();
        engine
            .compile_with_entrypoint(&entry)
            .map_err(|error| error.to_string())?;
        Ok(Self {
            id: next_id(),
            kind: Kind::Interpreter,
            setup: Setup::new(engine, entrypoint, limits),
        })
    }

    /// Compiles an engine's modules to bytecode.
    pub(in crate::authz) fn compiled(
        mut engine: Engine,
        entrypoint: &str,
        limits: Limits,
    ) -> Result<Self, String> {
        let entry: Arc<str> = entrypoint.into();
        let policy = engine
            .compile_with_entrypoint(&entry)
            .map_err(|error| error.to_string())?;
        let bytecode = catch_unwind(AssertUnwindSafe(|| {
            Compiler::compile_from_policy(&policy, &[entrypoint])
        }))
        .map_err(|_| "the compiler panicked".to_owned())?
        .map_err(|error| error.to_string())?;
        let program = Self {
            id: next_id(),
            kind: Kind::Rvm(guarded::rewrite(bytecode)?),
            setup: Setup::new(engine, entrypoint, limits),
        };
        // Rules and data at the same path show only here.
        Machine::new(&program).map(|_| program)
    }

    /// A number that no other program of this process has or will have.
    pub(in crate::authz) fn id(&self) -> u64 {
        self.id
    }

    /// `rvm` or `interpreter`.
    pub(in crate::authz) fn engine(&self) -> &'static str {
        match self.kind {
            Kind::Rvm(_) => "rvm",
            Kind::Interpreter => "interpreter",
        }
    }
}

fn next_id() -> u64 {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    NEXT.fetch_add(1, Ordering::Relaxed)
}

impl Setup {
    fn new(engine: Engine, entrypoint: &str, limits: Limits) -> Arc<Self> {
        Arc::new(Self {
            data: engine.get_data(),
            engine,
            entrypoint: entrypoint.to_owned(),
            limits,
        })
    }

    fn timer(&self) -> ExecutionTimerConfig {
        ExecutionTimerConfig {
            limit: self.limits.time,
            check_interval: CLOCK_INTERVAL,
        }
    }

    fn vm(&self, bytecode: &Arc<Bytecode>) -> Result<Box<RegoVM>, String> {
        let mut vm = RegoVM::new();
        vm.load_program(Arc::clone(bytecode));
        vm.set_data(self.data.clone())
            .map_err(|error| error.to_string())?;
        vm.set_strict_builtin_errors(true);
        vm.set_max_instructions(self.limits.instructions);
        vm.set_execution_timer_config(Some(self.timer()));
        let limit = self.limits.memory;
        vm.set_memory_budget_config(Some(MemoryBudgetConfig { limit }));
        Ok(Box::new(vm))
    }

    fn interpreter(&self) -> Box<Engine> {
        let mut engine = Box::new(self.engine.clone());
        allow(&mut engine, self.limits.time);
        engine
    }
}

/// The interpreter counts no memory, so it looks at the clock at every step: a value that doubles
/// step by step is stopped by the time that copying it takes.
fn allow(engine: &mut Engine, time: Duration) {
    engine.set_execution_timer_config(ExecutionTimerConfig {
        limit: time,
        check_interval: NonZeroU32::MIN,
    });
}

/// A program's working memory; belongs to one core.
#[derive(Debug)]
pub(in crate::authz) struct Machine {
    running: Running,
    setup: Arc<Setup>,
}

#[derive(Debug)]
enum Running {
    /// With the interpreter once it was needed.
    Rvm(Box<RegoVM>, Arc<Bytecode>, Option<Box<Engine>>),
    Interpreter(Box<Engine>),
}

impl Machine {
    pub(in crate::authz) fn new(program: &Program) -> Result<Self, String> {
        let setup = Arc::clone(&program.setup);
        let running = match &program.kind {
            Kind::Rvm(bytecode) => Running::Rvm(setup.vm(bytecode)?, Arc::clone(bytecode), None),
            Kind::Interpreter => Running::Interpreter(setup.interpreter()),
        };
        Ok(Self { running, setup })
    }

    /// Evaluates the entry point. After anything but an answer the machine must not be used again.
    pub(in crate::authz) fn run(&mut self, input: Value) -> Outcome {
        // Unwind safety: a machine that panicked is thrown away by the caller.
        let run = catch_unwind(AssertUnwindSafe(|| match &mut self.running {
            Running::Rvm(vm, bytecode, interpreter) => {
                let begun = Instant::now();
                vm.set_input(input.clone());
                let outcome = vm.execute().map_or_else(of_vm, Outcome::Answer);
                // The machine outlives the request; the request's document must not.
                vm.set_input(Value::Null);
                if !matches!(outcome, Outcome::Error(_)) {
                    return outcome;
                }
                // A bytecode machine that failed is not whole any more.
                *vm = match self.setup.vm(bytecode) {
                    Ok(vm) => vm,
                    Err(why) => return Outcome::Error(why),
                };
                let engine = interpreter.get_or_insert_with(|| self.setup.interpreter());
                // Both together have the time of one.
                allow(
                    engine,
                    self.setup.limits.time.saturating_sub(begun.elapsed()),
                );
                asked(engine, input, &self.setup.entrypoint)
            }
            Running::Interpreter(engine) => asked(engine, input, &self.setup.entrypoint),
        }));
        run.unwrap_or_else(|payload| Outcome::Panic(panic_text(payload.as_ref())))
    }
}

fn asked(engine: &mut Engine, input: Value, entrypoint: &str) -> Outcome {
    let outcome = evaluate(engine, input, entrypoint);
    engine.set_input(Value::Null);
    outcome
}

/// Evaluates a rule on the interpreter; panics pass through.
pub(in crate::authz) fn evaluate(engine: &mut Engine, input: Value, rule: &str) -> Outcome {
    engine.set_input(input);
    match engine.eval_rule(rule.to_owned()) {
        Ok(value) => Outcome::Answer(value),
        Err(error) => match error.downcast_ref::<LimitError>() {
            Some(LimitError::TimeLimitExceeded { .. } | LimitError::MemoryLimitExceeded { .. }) => {
                Outcome::Budget(detail(&error.to_string()))
            }
            Some(LimitError::RegexSizeLimitExceeded { .. }) | None => {
                Outcome::Error(detail(&error.to_string()))
            }
        },
    }
}

#[expect(
    clippy::wildcard_enum_match_arm,
    reason = "every other kind of error is the same denial, and the library adds kinds often"
)]
fn of_vm(error: VmError) -> Outcome {
    let text = detail(&error.to_string());
    match error {
        VmError::InstructionLimitExceeded { .. }
        | VmError::TimeLimitExceeded { .. }
        | VmError::MemoryLimitExceeded { .. }
        | VmError::MemoryBudgetExceeded { .. } => Outcome::Budget(text),
        _ => Outcome::Error(text),
    }
}

/// One line of bounded length, up to where the engine tells the offending value: that may be the
/// request's, and records show no more of a request than the operator chose.
pub(in crate::authz) fn detail(text: &str) -> String {
    let told = [" Got `", " got `", " Got ", " got "]
        .iter()
        .filter_map(|word| text.find(word))
        .min();
    let text = told.and_then(|at| text.get(..at)).unwrap_or(text);
    let line: String = text
        .split_whitespace()
        .collect::<Vec<_>>()
        .join(" ")
        .chars()
        .map(|c| if c.is_control() { '\u{fffd}' } else { c })
        .take(MAX_DETAIL)
        .collect();
    line
}

fn panic_text(payload: &(dyn std::any::Any + Send)) -> String {
    let text = payload
        .downcast_ref::<&str>()
        .map(|text| (*text).to_owned())
        .or_else(|| payload.downcast_ref::<String>().cloned());
    detail(&text.unwrap_or_default())
}
