//! A machine for the engine's bytecode, which costs less than half of the engine's own.
//!
//! The engine's machine clones a rule's description at each call of the rule, makes an error at each
//! access to a register only to drop it, asks the allocator for its count before each instruction, and
//! makes a text at each call of a builtin. This one runs the same programs, instruction by instruction,
//! to the same answer, and counts them alike: the same number of instructions, and a look at the clock
//! every [`CLOCK_INTERVAL`]. Memory is looked at behind what can take some, which is where it grows.
//!
//! But for one thing, in which the engine's machine is wrong: a condition that fails inside a comprehension
//! ends the comprehension (`loops`), not the turn of a loop around it.
//!
//! It knows what the compiler makes of the forms in `subset`, as `guarded` rewrites them. A program with
//! any other instruction is not taken ([`Lean::new`]), and the interpreter runs the policy; where a program
//! does what no compiled program does (a register that is not there, a loop that was not begun) it gives
//! up, and whoever asked it asks the interpreter. Tests run it beside the engine's, and beside the
//! interpreter, on generated policies: `agreement`.

mod collections;
mod leads;
mod loops;
mod rules;
mod run;

use std::sync::Arc;
use std::time::Instant;

use regorus::Value;
use regorus::rvm::program::{Program, RuleType};
use regorus::rvm::vm::VmError;
use regorus::unstable::{Expr, Ref, Source, Span};
use regorus_mimalloc::limits::current_thread_live_bytes;

use self::leads::Leads;
use self::loops::{Comprehension, Loop};
use super::{CLOCK_INTERVAL, Limits};

/// Most arguments of a builtin.
const MAX_ARGS: usize = 8;

/// Runs one program, for one core.
#[derive(Debug)]
pub(super) struct Lean {
    program: Arc<Program>,
    data: Value,
    input: Value,
    limits: Limits,
    /// By rule: bodies that need not be begun.
    leads: Vec<Leads>,
    /// The windows of the rules that run, one behind the other.
    registers: Vec<Value>,
    /// What each rule gave; `None` before it was asked.
    known: Vec<Option<Value>>,
    loops: Vec<Loop>,
    comprehensions: Vec<Comprehension>,
    /// Arguments of a builtin; kept for its memory.
    args: Vec<Value>,
    /// What builtins are told of where they are called.
    nowhere: (Span, Vec<Ref<Expr>>),
    /// Instructions so far.
    executed: usize,
    /// Instructions until the next look at the clock.
    unwatched: u32,
    begun: Instant,
    /// The least live bytes of this thread since it began.
    least: i64,
}

/// Why a body did not come to its end.
#[derive(Debug)]
enum Stop {
    /// A condition does not hold, or the engine's machine would take a failure for that.
    Failed,
    /// A failure that no rule swallows.
    Fatal(Box<VmError>),
    /// What no compiled program does.
    Odd(&'static str),
}

/// What a body runs in: where its registers, loops and comprehensions begin.
#[derive(Clone, Copy)]
struct Frame<'p> {
    window: usize,
    loops: usize,
    comprehensions: usize,
    kind: &'p RuleType,
    /// Whether this is the first body of the rule.
    first: bool,
}

/// Why there is no answer.
pub(super) enum Ended {
    /// An error of the engine.
    Error(Box<VmError>),
    /// In words.
    Odd(&'static str),
}

impl Lean {
    /// A machine for this program; `None` when it has instructions that this machine does not know.
    pub(super) fn new(program: &Arc<Program>, data: Value, limits: Limits) -> Option<Self> {
        let all = program.instructions.iter().all(run::knows);
        let comprehensions = program.instruction_data.comprehension_begin_params.iter();
        // The compiler's comprehensions leave going through things to loops.
        let plain = comprehensions
            .into_iter()
            .all(|params| params.collection_reg == params.result_reg);
        if !all || !plain || program.metadata.language == "azure_policy" {
            return None;
        }
        let source = Source::from_contents("<builtin>".to_owned(), String::new()).ok()?;
        let span = Span {
            source,
            line: 1,
            col: 1,
            start: 0,
            end: 0,
        };
        let null = || {
            Ref::new(Expr::Null {
                span: span.clone(),
                value: Value::Null,
                eidx: 0,
            })
        };
        let exprs = (0..MAX_ARGS).map(|_| null()).collect();
        Some(Self {
            program: Arc::clone(program),
            leads: Leads::of(program),
            data,
            input: Value::Null,
            limits,
            registers: Vec::new(),
            known: Vec::new(),
            loops: Vec::new(),
            comprehensions: Vec::new(),
            args: Vec::new(),
            nowhere: (span, exprs),
            executed: 0,
            unwatched: 0,
            begun: Instant::now(),
            least: 0,
        })
    }

    /// Answers the program's entry point. Nothing of the input is kept.
    pub(super) fn execute(&mut self, input: Value) -> Result<Value, Ended> {
        let program = Arc::clone(&self.program);
        self.begin(input);
        let answer = self.body(
            &program,
            0,
            Frame {
                window: 0,
                loops: 0,
                comprehensions: 0,
                kind: &RuleType::Complete,
                first: true,
            },
        );
        let answer = match answer {
            Ok(answer) => self.memory(0).map(|()| answer),
            Err(stop) => Err(stop),
        };
        self.clear();
        match answer {
            Ok(Some(value)) => Ok(value),
            Ok(None) => Err(Ended::Odd("the program ends without an answer")),
            Err(Stop::Fatal(error)) => Err(Ended::Error(error)),
            Err(Stop::Failed) => Err(Ended::Odd("the program fails at its entry point")),
            Err(Stop::Odd(why)) => Err(Ended::Odd(why)),
        }
    }

    fn begin(&mut self, input: Value) {
        // After a panic there may be something left.
        self.clear();
        self.executed = 0;
        self.unwatched = CLOCK_INTERVAL.get();
        self.begun = Instant::now();
        self.least = current_thread_live_bytes();
        self.input = input;
        self.known.resize(self.program.rule_infos.len(), None);
        let window = usize::from(self.program.dispatch_window_size).max(2);
        self.registers.resize(window, Value::Undefined);
    }

    fn clear(&mut self) {
        self.registers.clear();
        self.known.clear();
        self.loops.clear();
        self.comprehensions.clear();
        self.args.clear();
        self.input = Value::Null;
    }

    /// Before each instruction.
    fn tick(&mut self, at: usize) -> Result<(), Stop> {
        if self.executed >= self.limits.instructions {
            return fatal(VmError::InstructionLimitExceeded {
                limit: self.limits.instructions,
                executed: self.executed,
                pc: at,
            });
        }
        self.executed += 1;
        self.unwatched -= 1;
        if self.unwatched == 0 {
            self.unwatched = CLOCK_INTERVAL.get();
            let (elapsed, limit) = (self.begun.elapsed(), self.limits.time);
            if elapsed > limit {
                return fatal(VmError::TimeLimitExceeded {
                    elapsed,
                    limit,
                    pc: at,
                });
            }
        }
        Ok(())
    }

    /// As so many of [`Lean::tick`], if none of them has anything to do.
    fn ticks(&mut self, count: usize) -> bool {
        let executed = self.executed.saturating_add(count);
        let unwatched = u32::try_from(count)
            .ok()
            .and_then(|count| self.unwatched.checked_sub(count));
        match unwatched {
            Some(unwatched) if unwatched > 0 && executed <= self.limits.instructions => {
                (self.executed, self.unwatched) = (executed, unwatched);
                true
            }
            _ => false,
        }
    }

    /// Behind what may have taken memory.
    fn memory(&mut self, at: usize) -> Result<(), Stop> {
        let live = current_thread_live_bytes();
        self.least = self.least.min(live);
        let usage = live.saturating_sub(self.least).unsigned_abs();
        let budget = self.limits.memory.get();
        if usage > budget {
            return fatal(VmError::MemoryBudgetExceeded {
                usage,
                budget,
                pc: at,
            });
        }
        Ok(())
    }

    fn get(&self, frame: Frame<'_>, register: u8) -> Result<&Value, Stop> {
        self.registers
            .get(frame.window + usize::from(register))
            .ok_or(Stop::Odd(NO_REGISTER))
    }

    fn slot(&mut self, frame: Frame<'_>, register: u8) -> Result<&mut Value, Stop> {
        self.registers
            .get_mut(frame.window + usize::from(register))
            .ok_or(Stop::Odd(NO_REGISTER))
    }

    fn set(&mut self, frame: Frame<'_>, register: u8, value: Value) -> Result<(), Stop> {
        *self.slot(frame, register)? = value;
        Ok(())
    }
}

const NO_REGISTER: &str = "a register that is not there";
const NO_PARAMS: &str = "an instruction without parameters";
const NO_RULE: &str = "a rule that is not there";

fn fatal<T>(error: VmError) -> Result<T, Stop> {
    Err(Stop::Fatal(Box::new(error)))
}

fn literal(program: &Program, index: u16) -> Result<&Value, Stop> {
    let found = program.literals.get(usize::from(index));
    found.ok_or(Stop::Odd("a constant that is not there"))
}

/// Whether two values are equal; `None` when one is undefined.
fn equal(one: &Value, other: &Value) -> Option<bool> {
    match (one, other) {
        (Value::Undefined, _) | (_, Value::Undefined) => None,
        (Value::String(one), Value::String(other)) => Some(one == other),
        (one, other) => Some(one == other),
    }
}
