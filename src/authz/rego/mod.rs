//! The Rego engine: modules to programs, input to outcome.
//!
//! A program runs on regorus's bytecode machine where the gate found it to agree with the
//! interpreter, else on the interpreter. Both are told to raise every error of a builtin: OPA's
//! habit of turning them into "undefined" would let a rule that says no vanish. The machine's
//! errors are no answer: what fails there (`guarded`) is asked again of the interpreter.

#[cfg(test)]
mod agreement;
pub(in crate::authz) mod guarded;
#[cfg(test)]
mod hazards;
pub(in crate::authz) mod host;
mod lean;
mod memory;
#[cfg(test)]
mod opa;
pub(in crate::authz) mod profile;
pub(in crate::authz) mod subset;

use std::collections::BTreeMap;
use std::num::{NonZeroU32, NonZeroU64, NonZeroUsize};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

#[cfg(test)]
use regorus::MemoryBudgetConfig;
use regorus::languages::rego::compiler::Compiler;
use regorus::rvm::program::Program as Bytecode;
#[cfg(test)]
use regorus::rvm::vm::RegoVM;
use regorus::rvm::vm::VmError;
use regorus::utils::limits::ExecutionTimerConfig;
use regorus::{Engine, LimitError, PolicyLengthConfig, Value};

use crate::authz::published::InputDocument;
use crate::authz::rego::host::Errors;
use crate::authz::rego::lean::{Ended, Lean};
use crate::authz::rego::memory::Watch;
use crate::authz::rego::profile::{Ledger, Marked, Marks};
use crate::authz::source::edit::Map;
use crate::authz::source::guard;
use crate::authz::source::kinds::{self, Names};
use crate::authz::source::remark::Remark;
use crate::authz::source::rewrite::{self, Style};
use crate::authz::source::templates;

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

/// How modules are read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::authz) struct Reading {
    pub(in crate::authz) errors: Errors,
    /// Whether somebody reads what `print` writes.
    pub(in crate::authz) prints: bool,
    /// What the policy sees.
    pub(in crate::authz) document: InputDocument,
}

impl Default for Reading {
    /// As a live policy is read.
    fn default() -> Self {
        Self {
            errors: Errors::Deny,
            prints: false,
            document: InputDocument::default(),
        }
    }
}

impl Reading {
    /// As a live policy with this document is read.
    pub(in crate::authz) fn of(errors: Errors, document: InputDocument) -> Self {
        Self {
            errors,
            document,
            ..Self::default()
        }
    }
}

/// Leads from places in what the engine holds to the author's files.
#[derive(Debug, Clone, Default)]
pub(in crate::authz) struct Places {
    files: BTreeMap<String, Map>,
}

impl Places {
    /// The author's line and column.
    pub(in crate::authz) fn author(&self, file: &str, at: (usize, usize)) -> (usize, usize) {
        self.files.get(file).map_or(at, |map| map.place(at))
    }

    /// The remark at the author's place.
    pub(in crate::authz) fn remark(&self, mut remark: Remark) -> Remark {
        if let (Some(line), Some(column)) = (remark.line, remark.column) {
            let (line, column) = self.author(&remark.file, (line, column));
            (remark.line, remark.column) = (Some(line), Some(column));
        }
        remark
    }
}

/// An engine with its modules, and where they came from.
#[derive(Debug)]
pub(in crate::authz) struct Parsed {
    pub(in crate::authz) engine: Engine,
    pub(in crate::authz) places: Places,
}

/// Parses live modules into an engine that holds this data; all files' mistakes at once.
pub(in crate::authz) fn parse(sources: &[Source], data: &Value) -> Result<Engine, Vec<Remark>> {
    read(sources, data, Reading::default()).map(|parsed| parsed.engine)
}

/// Parses and rewrites modules, so that the engine answers as OPA does.
pub(in crate::authz) fn read(
    sources: &[Source],
    data: &Value,
    reading: Reading,
) -> Result<Parsed, Vec<Remark>> {
    let mut remarks = Vec::new();
    let mut places = Places::default();
    let mut first = empty();
    let mut names = Names::default();
    let mut texts: Vec<(&String, String)> = Vec::new();
    for (file, text) in sources {
        let (map, text) = match templates::calls(text) {
            Ok(made) => made,
            Err(at) => {
                remarks.push(Remark::error(
                    file,
                    Some(at),
                    "the template string does not end, or is nested too deep",
                    "close it with the sign that opened it",
                ));
                continue;
            }
        };
        if !map.is_empty()
            && let Err(finding) = guard::examine(&text)
        {
            let at = finding.line.zip(finding.column);
            let at = at.map(|at| map.place(at));
            remarks.push(Remark::error(file, at, finding.message, finding.help));
            continue;
        }
        if let Some(remark) = added(&mut first, file, &text) {
            places.files.insert(file.clone(), map);
            remarks.push(places.remark(remark));
            continue;
        }
        places.files.insert(file.clone(), map);
        texts.push((file, text));
    }
    if !remarks.is_empty() {
        return Err(remarks);
    }
    for module in first.get_modules().iter() {
        kinds::declare(module, &mut names);
    }
    let style = Style {
        prints: reading.prints,
        undefined: reading.errors == Errors::Undefined,
        document: reading.document,
    };
    let mut engine = empty();
    engine.set_strict_builtin_errors(reading.errors == Errors::Deny);
    engine.set_gather_prints(true);
    host::install(&mut engine, reading.errors);
    for ((file, text), module) in texts.iter().zip(first.get_modules().iter()) {
        let map = places.files.remove(*file).unwrap_or_default();
        let (made, refused) = rewrite::module(module, text, &names, style, &map);
        for (at, message, help) in refused {
            remarks.push(Remark::error(file, Some(at), message, help));
        }
        let (map, text) = match &made {
            Some((map, text)) => (map.clone(), text),
            None => (map, text),
        };
        places.files.insert((*file).clone(), map);
        if let Some(remark) = added(&mut engine, file, text) {
            remarks.push(places.remark(remark));
        }
    }
    if let Err(error) = engine.add_data(data.clone()) {
        remarks.push(Remark::from_engine("", &error.to_string()));
    }
    if remarks.is_empty() {
        Ok(Parsed { engine, places })
    } else {
        Err(remarks)
    }
}

/// What the author wrote was measured by `guard`; what is made of it may be longer.
fn empty() -> Engine {
    let mut engine = Engine::new();
    engine.set_policy_length_config(PolicyLengthConfig {
        max_col: NonZeroU32::MAX,
        max_file_bytes: NonZeroUsize::MAX,
        max_lines: NonZeroUsize::MAX,
    });
    engine
}

fn added(engine: &mut Engine, file: &str, text: &str) -> Option<Remark> {
    // A parser that panics is a parse error like another.
    let parsed = catch_unwind(AssertUnwindSafe(|| {
        engine.add_policy(file.to_owned(), text.to_owned())
    }));
    match parsed {
        Ok(Ok(_)) => None,
        Ok(Err(error)) => Some(Remark::from_engine(file, &error.to_string())),
        Err(_) => Some(Remark::error(
            file,
            None,
            "the parser panicked",
            "simplify the module",
        )),
    }
}

/// A program that may run.
#[derive(Debug)]
pub(in crate::authz) struct Program {
    id: u64,
    pub(in crate::authz) kind: Kind,
    setup: Arc<Setup>,
    /// The same program with marks, to see what its rules cost; `None` where there was no room, and
    /// on the interpreter.
    marked: Option<Marked>,
    ledger: Ledger,
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
            marked: None,
            ledger: Ledger::default(),
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
        let places = profile::places(engine.get_modules());
        let bytecode = guarded::rewrite(bytecode)?;
        let marked = profile::mark(&bytecode, Marks::Rules, &places).ok();
        let program = Self {
            id: next_id(),
            ledger: Ledger::new(marked.as_ref().map_or(&[], |marked| &marked.rules)),
            marked,
            kind: Kind::Rvm(bytecode),
            setup: Setup::new(engine, entrypoint, limits),
        };
        // Rules and data at the same path show only here, and what our machine does not know.
        Machine::new(&program).map(|_| program)
    }

    /// A number that no other program of this process has or will have.
    pub(in crate::authz) fn id(&self) -> u64 {
        self.id
    }

    /// What a decision costs, in steps that are the same each time.
    pub(in crate::authz) fn steps(&self, input: &Value) -> Result<profile::Steps, String> {
        match &self.kind {
            Kind::Rvm(bytecode) => profile::count_instructions(&self.setup, bytecode, input),
            Kind::Interpreter => {
                let entry = &self.setup.entrypoint;
                let total = profile::count_steps(&self.setup.engine, input, entry)?;
                Ok(profile::Steps {
                    total,
                    rules: Vec::new(),
                })
            }
        }
    }

    /// Whether its evaluations can be watched.
    pub(in crate::authz) fn can_be_watched(&self) -> bool {
        self.marked.is_some()
    }

    /// What its rules cost, as far as it was watched.
    pub(in crate::authz) fn ledger(&self) -> &Ledger {
        &self.ledger
    }

    /// What `data` holds beside the rules.
    pub(in crate::authz) fn data(&self) -> &Value {
        &self.setup.data
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

    #[cfg(test)]
    fn timer(&self) -> ExecutionTimerConfig {
        ExecutionTimerConfig {
            limit: self.limits.time,
            check_interval: CLOCK_INTERVAL,
        }
    }

    #[cfg(test)]
    fn vm(&self, bytecode: &Arc<Bytecode>) -> Result<Box<RegoVM>, String> {
        self.vm_within(bytecode, self.limits.instructions)
    }

    #[cfg(test)]
    fn vm_within(&self, bytecode: &Arc<Bytecode>, most: usize) -> Result<Box<RegoVM>, String> {
        let mut vm = RegoVM::new();
        vm.load_program(Arc::clone(bytecode));
        vm.set_data(self.data.clone())
            .map_err(|error| error.to_string())?;
        vm.set_strict_builtin_errors(true);
        vm.set_max_instructions(most);
        vm.set_execution_timer_config(Some(self.timer()));
        let limit = self.limits.memory;
        vm.set_memory_budget_config(Some(MemoryBudgetConfig { limit }));
        Ok(Box::new(vm))
    }

    /// What runs a program.
    fn running(&self, bytecode: &Arc<Bytecode>, most: usize) -> Result<Running, String> {
        bytecode
            .check_rule_data_conflicts(&self.data)
            .map_err(|error| error.to_string())?;
        let limits = Limits {
            instructions: most,
            ..self.limits
        };
        // The engine's machine is no way out: it charges what fails inside a comprehension to others.
        Lean::new(bytecode, self.data.clone(), limits)
            .map(|lean| Running::Lean(Box::new(lean), None))
            .ok_or_else(|| "an instruction that is not known".to_owned())
    }

    fn interpreter(&self) -> Box<Engine> {
        let mut engine = Box::new(self.engine.clone());
        allow(&mut engine, self.limits.time);
        engine
    }
}

/// The interpreter counts no steps, so it looks at the clock at every one: work is what takes time.
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
    /// Our own bytecode machine, with the interpreter once it was needed.
    Lean(Box<Lean>, Option<Box<Engine>>),
    /// The engine's, which ours is held against.
    #[cfg(test)]
    Rvm(Box<RegoVM>, Arc<Bytecode>, Option<Box<Engine>>),
    Interpreter(Box<Engine>),
}

impl Machine {
    pub(in crate::authz) fn new(program: &Program) -> Result<Self, String> {
        let setup = Arc::clone(&program.setup);
        let running = match &program.kind {
            Kind::Rvm(bytecode) => setup.running(bytecode, setup.limits.instructions)?,
            Kind::Interpreter => Running::Interpreter(setup.interpreter()),
        };
        Ok(Self { running, setup })
    }

    /// A bytecode machine that may do so many instructions: ours, or the engine's own, which ours is
    /// held against.
    #[cfg(test)]
    pub(in crate::authz) fn within(program: &Program, most: usize, engines: bool) -> Option<Self> {
        let setup = Arc::clone(&program.setup);
        let Kind::Rvm(bytecode) = &program.kind else {
            return None;
        };
        let running = if engines {
            let vm = setup.vm_within(bytecode, most).ok()?;
            Running::Rvm(vm, Arc::clone(bytecode), None)
        } else {
            setup.running(bytecode, most).ok()?
        };
        Some(Self { running, setup })
    }

    /// Whether it is our own bytecode machine.
    #[cfg(test)]
    pub(in crate::authz) fn is_lean(&self) -> bool {
        matches!(self.running, Running::Lean(..))
    }

    /// A machine that tells [`profile`] which rule runs; `None` when the program has no marks.
    pub(in crate::authz) fn watched(program: &Program) -> Option<Self> {
        let marked = Arc::clone(&program.marked.as_ref()?.program);
        let setup = Arc::clone(&program.setup);
        // Each mark is an instruction too, and there are fewer of them than of the others.
        let most = setup.limits.instructions.saturating_mul(2);
        let running = setup.running(&marked, most).ok()?;
        Some(Self { running, setup })
    }

    /// Evaluates the entry point. After anything but an answer the machine must not be used again.
    pub(in crate::authz) fn run(&mut self, input: Value) -> Outcome {
        let _ = host::spent();
        let outcome = self.evaluate(input);
        // Whatever a rule made of the failure.
        match host::spent() {
            Some(why) => Outcome::Budget(why),
            None => outcome,
        }
    }

    fn evaluate(&mut self, input: Value) -> Outcome {
        // Unwind safety: a machine that panicked is thrown away by the caller.
        let run = catch_unwind(AssertUnwindSafe(|| match &mut self.running {
            Running::Lean(lean, interpreter) => {
                let begun = Instant::now();
                let outcome = match lean.execute(input.clone()) {
                    Ok(value) => return Outcome::Answer(value),
                    Err(Ended::Error(error)) => of_vm(*error),
                    Err(Ended::Odd(why)) => Outcome::Error(why.to_owned()),
                };
                if !matches!(outcome, Outcome::Error(_)) {
                    return outcome;
                }
                let engine = interpreter.get_or_insert_with(|| self.setup.interpreter());
                // Both together have the time of one.
                asked(engine, input, &self.setup, begun)
            }
            #[cfg(test)]
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
                asked(engine, input, &self.setup, begun)
            }
            Running::Interpreter(engine) => asked(engine, input, &self.setup, Instant::now()),
        }));
        run.unwrap_or_else(|payload| Outcome::Panic(panic_text(payload.as_ref())))
    }
}

/// Asks the interpreter, within the limits of a decision that began then.
fn asked(engine: &mut Engine, input: Value, setup: &Setup, begun: Instant) -> Outcome {
    let mut asked = || {
        allow(engine, setup.limits.time.saturating_sub(begun.elapsed()));
        let watch = Watch::begin(setup.limits.memory);
        let outcome = evaluated(engine, input.clone(), &setup.entrypoint);
        (outcome, watch.passed())
    };
    let (outcome, passed) = asked();
    let outcome = match outcome {
        // The memory that others took meanwhile: see `memory`.
        Err(Stopped::Memory(_)) if !passed => asked().0,
        outcome => outcome,
    };
    engine.set_input(Value::Null);
    match outcome {
        Ok(value) => Outcome::Answer(value),
        Err(Stopped::Time(why) | Stopped::Memory(why)) => Outcome::Budget(why),
        Err(Stopped::Failed(why)) => Outcome::Error(why),
    }
}

/// Why the interpreter gave no answer.
enum Stopped {
    Time(String),
    Memory(String),
    Failed(String),
}

/// Evaluates a rule on the interpreter; panics pass through.
pub(in crate::authz) fn evaluate(engine: &mut Engine, input: Value, rule: &str) -> Outcome {
    match evaluated(engine, input, rule) {
        Ok(value) => Outcome::Answer(value),
        Err(Stopped::Time(why) | Stopped::Memory(why)) => Outcome::Budget(why),
        Err(Stopped::Failed(why)) => Outcome::Error(why),
    }
}

fn evaluated(engine: &mut Engine, input: Value, rule: &str) -> Result<Value, Stopped> {
    engine.set_input(input);
    engine.eval_rule(rule.to_owned()).map_err(|error| {
        let text = detail(&error.to_string());
        match error.downcast_ref::<LimitError>() {
            Some(LimitError::TimeLimitExceeded { .. }) => Stopped::Time(text),
            Some(LimitError::MemoryLimitExceeded { .. }) => Stopped::Memory(text),
            Some(LimitError::RegexSizeLimitExceeded { .. }) | None => Stopped::Failed(text),
        }
    })
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
        | VmError::MemoryBudgetExceeded { .. } => Outcome::Budget(text),
        // `MemoryLimitExceeded` is the whole process's: an evaluation of another core's interpreter.
        // Ours asks the interpreter then, as after a failure.
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

pub(in crate::authz) fn panic_text(payload: &(dyn std::any::Any + Send)) -> String {
    let text = payload
        .downcast_ref::<&str>()
        .map(|text| (*text).to_owned())
        .or_else(|| payload.downcast_ref::<String>().cloned());
    detail(&text.unwrap_or_default())
}
