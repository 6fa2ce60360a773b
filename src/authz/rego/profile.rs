//! What each rule costs: marks in the bytecode that tell which rule runs.
//!
//! A marked program is a second one, made from the one that decides; it answers the same, and is
//! used where somebody wants to know: for one decision in many (`Sampler`), and for the count of
//! instructions that tools compare (`counted`). The program that decides carries no mark.
//!
//! A mark is a call of a builtin without arguments, into a register that no rule uses. It stands at
//! the entry of each body, and behind each call of another rule, where the caller goes on; a body
//! that fails goes on behind the call of its rule, so that no way out of a rule is without one.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::Result;
use regorus::Value;
use regorus::rvm::instructions::Instruction;
use regorus::rvm::program::{BuiltinInfo, Program};
use regorus::unstable::{Expr, Module, Ref, Rule, Span};

use crate::authz::rego::lean::{Ended, Lean};
use crate::authz::rego::{Limits, guarded};
use crate::authz::source::syntax;

/// Most rules of a policy that are told apart; the others are one.
pub(in crate::authz) const MAX_RULES: usize = 127;
/// Where the others are counted.
const OTHERS: usize = MAX_RULES;

/// A rule of a program.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::authz) struct RuleAt {
    /// `data.orders.allow`, or `other`.
    pub(in crate::authz) name: String,
    pub(in crate::authz) file: String,
    /// Of its first definition; 0 for `other`.
    pub(in crate::authz) line: usize,
}

/// What was seen of a rule.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(in crate::authz) struct Seen {
    pub(in crate::authz) evaluations: u64,
    /// Without the rules that it calls.
    pub(in crate::authz) time: Duration,
    /// Instructions, without those of the rules that it calls. Counted by [`Marks::Instructions`] only.
    pub(in crate::authz) instructions: u64,
}

/// Where marks stand.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::authz) enum Marks {
    /// Where one rule ends and another goes on: time.
    Rules,
    /// At every instruction: the count of them.
    Instructions,
}

/// A program with marks, and the rules that they name.
#[derive(Debug)]
pub(in crate::authz) struct Marked {
    pub(in crate::authz) program: Arc<Program>,
    pub(in crate::authz) rules: Vec<RuleAt>,
}

/// What this thread is counting.
struct Tally {
    rules: [Seen; MAX_RULES + 1],
    current: usize,
    since: Option<Instant>,
    /// The last rule that was entered, for what ends without an answer.
    touched: [bool; MAX_RULES + 1],
}

thread_local! {
    static TALLY: RefCell<Tally> = const {
        RefCell::new(Tally {
            rules: [Seen {
                evaluations: 0,
                time: Duration::ZERO,
                instructions: 0,
            }; MAX_RULES + 1],
            current: OTHERS,
            since: None,
            touched: [false; MAX_RULES + 1],
        })
    };
}

impl Tally {
    fn switch(&mut self, to: usize) {
        if let Some(since) = self.since {
            let now = Instant::now();
            if let Some(rule) = self.rules.get_mut(self.current) {
                rule.time += now.saturating_duration_since(since);
            }
            self.since = Some(now);
        }
        self.current = to;
        if let Some(touched) = self.touched.get_mut(to) {
            *touched = true;
        }
    }
}

/// What was counted between [`begin`] and [`end`].
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(in crate::authz) struct Counted {
    /// By the rule's place in [`Marked::rules`].
    pub(in crate::authz) rules: BTreeMap<usize, Seen>,
    /// The rule that ran last.
    pub(in crate::authz) last: usize,
}

/// Begins a count on this thread.
pub(in crate::authz) fn begin(timed: bool) {
    TALLY.with_borrow_mut(|tally| {
        tally.since = timed.then(Instant::now);
        tally.current = OTHERS;
    });
}

/// Ends it, and gives what was counted.
pub(in crate::authz) fn end() -> Counted {
    TALLY.with_borrow_mut(|tally| {
        let last = tally.current;
        tally.switch(last);
        tally.since = None;
        let mut counted = Counted {
            rules: BTreeMap::new(),
            last,
        };
        let rules = tally.rules.iter_mut().zip(&mut tally.touched).enumerate();
        for (index, (seen, touched)) in rules {
            if std::mem::take(touched) {
                counted.rules.insert(index, std::mem::take(seen));
            }
        }
        counted
    })
}

type Function = fn(&Span, &[Ref<Expr>], &[Value], bool) -> Result<Value>;

/// A rule begins.
fn enter<const RULE: usize>(_: &Span, _: &[Ref<Expr>], _: &[Value], _: bool) -> Result<Value> {
    TALLY.with_borrow_mut(|tally| {
        tally.switch(RULE);
        if let Some(rule) = tally.rules.get_mut(RULE) {
            rule.evaluations += 1;
        }
    });
    Ok(Value::Null)
}

/// A rule goes on.
fn resume<const RULE: usize>(_: &Span, _: &[Ref<Expr>], _: &[Value], _: bool) -> Result<Value> {
    TALLY.with_borrow_mut(|tally| tally.switch(RULE));
    Ok(Value::Null)
}

/// A rule does one thing more.
fn step<const RULE: usize>(_: &Span, _: &[Ref<Expr>], _: &[Value], _: bool) -> Result<Value> {
    TALLY.with_borrow_mut(|tally| {
        if let Some(rule) = tally.rules.get_mut(RULE) {
            rule.instructions += 1;
        }
        if let Some(touched) = tally.touched.get_mut(RULE) {
            *touched = true;
        }
    });
    Ok(Value::Null)
}

/// The functions of a kind, by rule: a builtin is a function without a place to keep its number.
macro_rules! by_rule {
    ($function:ident: $($row:literal),*) => {
        [$(
            $function::<{ $row }>, $function::<{ $row + 1 }>, $function::<{ $row + 2 }>,
            $function::<{ $row + 3 }>, $function::<{ $row + 4 }>, $function::<{ $row + 5 }>,
            $function::<{ $row + 6 }>, $function::<{ $row + 7 }>,
        )*]
    };
    ($function:ident) => {
        by_rule!($function: 0, 8, 16, 24, 32, 40, 48, 56, 64, 72, 80, 88, 96, 104, 112, 120)
    };
}

static ENTER: [Function; MAX_RULES + 1] = by_rule!(enter);
static RESUME: [Function; MAX_RULES + 1] = by_rule!(resume);
static STEP: [Function; MAX_RULES + 1] = by_rule!(step);

/// What stands before an instruction.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Mark {
    Enter,
    Resume,
    Step,
}

/// Puts marks into a program.
///
/// # Errors
/// In words, when there is no room for them.
pub(in crate::authz) fn mark(
    program: &Arc<Program>,
    marks: Marks,
    places: &Places,
) -> Result<Marked, String> {
    let mut program = Program::clone(program);
    let rules = rules(&program, places);
    let owners = owners(&program);
    let windows: Vec<u8> = program.rule_infos.iter().map(|r| r.num_registers).collect();
    for rule in &mut program.rule_infos {
        rule.num_registers = rule.num_registers.checked_add(1).ok_or(NO_ROOM)?;
    }
    program.max_rule_window_size = program.max_rule_window_size.checked_add(1).ok_or(NO_ROOM)?;
    let mut entries = BTreeMap::new();
    for rule in &program.rule_infos {
        for (definition, bodies) in rule.definitions.iter().enumerate() {
            let block = rule.destructuring_blocks.get(definition).copied().flatten();
            for (at, body) in block.into_iter().chain(bodies.iter().copied()).enumerate() {
                // The first that is tried tells that the rule is evaluated.
                let first = definition == 0 && at == 0;
                let mark = if first { Mark::Enter } else { Mark::Resume };
                entries.insert(usize::try_from(body).map_err(|_| NO_ROOM)?, mark);
            }
        }
    }

    let mut builtins: BTreeMap<(Mark, usize), u16> = BTreeMap::new();
    let old = std::mem::take(&mut program.instructions);
    let spans = std::mem::take(&mut program.instruction_spans);
    let mut moved = Vec::with_capacity(old.len() + 1);
    let mut called = false;
    for (at, (instruction, span)) in old.into_iter().zip(spans).enumerate() {
        moved.push(program.instructions.len());
        let owner = owners.get(at).copied().flatten();
        let resumes = called && marks == Marks::Rules;
        if let Some(owner) = owner {
            let counts = (marks == Marks::Instructions).then_some(Mark::Step);
            let entry = entries.get(&at).copied();
            let entry = entry.filter(|mark| *mark == Mark::Enter || marks == Marks::Rules);
            let resumes = (resumes && entry.is_none()).then_some(Mark::Resume);
            for kind in entry.into_iter().chain(resumes).chain(counts) {
                let rule = owner.min(OTHERS);
                let builtin = match builtins.get(&(kind, rule)) {
                    Some(builtin) => *builtin,
                    None => {
                        let builtin = declare(&mut program, kind, rule)?;
                        builtins.insert((kind, rule), builtin);
                        builtin
                    }
                };
                let free = windows.get(owner).copied().ok_or(NO_ROOM)?;
                let call = guarded::call(&mut program, builtin, free, &[])?;
                program.instructions.push(call);
                program.instruction_spans.push(span.clone());
            }
        }
        called = matches!(
            instruction,
            Instruction::CallRule { .. }
                | Instruction::FunctionCall { .. }
                | Instruction::VirtualDataDocumentLookup { .. }
        );
        program.instructions.push(instruction);
        program.instruction_spans.push(span);
    }
    moved.push(program.instructions.len());
    if program.instructions.len() > Program::MAX_INSTRUCTIONS {
        return Err(NO_ROOM.to_owned());
    }
    guarded::jumps(&mut program, &moved)?;
    Ok(Marked {
        program: Arc::new(program),
        rules,
    })
}

const NO_ROOM: &str = "the compiled policy has no room for marks";

fn declare(program: &mut Program, kind: Mark, rule: usize) -> Result<u16, String> {
    let functions = match kind {
        Mark::Enter => &ENTER,
        Mark::Resume => &RESUME,
        Mark::Step => &STEP,
    };
    let function = functions.get(rule).copied().ok_or(NO_ROOM)?;
    let index = u16::try_from(program.resolved_builtins.len()).map_err(|_| NO_ROOM)?;
    program.builtin_info_table.push(BuiltinInfo {
        name: format!("__portcullis {kind:?} {rule}"),
        num_args: 0,
    });
    program.resolved_builtins.push((function, 0));
    Ok(index)
}

/// File and line of the first definition of each rule, by its path.
pub(in crate::authz) type Places = BTreeMap<String, (String, usize)>;

/// Where the rules of these modules stand. The bytecode tells lines, and the wrong files.
pub(in crate::authz) fn places(modules: &[Ref<Module>]) -> Places {
    let mut places = Places::new();
    for module in modules {
        let mut package = vec!["data".to_owned()];
        package.extend(
            syntax::chain(&module.package.refr)
                .prefix()
                .unwrap_or_default(),
        );
        for rule in &module.policy {
            // A default is no place to look for what is slow.
            if !matches!(rule.as_ref(), Rule::Spec { .. }) {
                continue;
            }
            let mut path = package.clone();
            let head = syntax::head(rule);
            path.extend(syntax::chain(head).prefix().unwrap_or_default());
            let file = module.package.span.source.get_path();
            let (line, _) = syntax::place(head.span());
            places
                .entry(path.join("."))
                .or_insert_with(|| (file.clone(), line));
        }
    }
    places
}

/// The rules that are told apart, and `other` where there are more.
fn rules(program: &Program, places: &Places) -> Vec<RuleAt> {
    let mut rules: Vec<RuleAt> = program
        .rule_infos
        .iter()
        .take(MAX_RULES)
        .map(|rule| {
            let (file, line) = places.get(&rule.name).cloned().unwrap_or_default();
            RuleAt {
                name: rule.name.clone(),
                file,
                line,
            }
        })
        .collect();
    if program.rule_infos.len() > MAX_RULES {
        rules.push(RuleAt {
            name: "other".to_owned(),
            file: String::new(),
            line: 0,
        });
    }
    rules
}

/// Whose each instruction is: a rule's code goes from its entry to the next entry.
fn owners(program: &Program) -> Vec<Option<usize>> {
    let mut begins: BTreeMap<usize, Option<usize>> = BTreeMap::new();
    for entry in program.entry_points.values() {
        begins.insert(*entry, None);
    }
    for (index, rule) in program.rule_infos.iter().enumerate() {
        let blocks = rule.destructuring_blocks.iter().flatten();
        for entry in rule.definitions.iter().flatten().chain(blocks) {
            if let Ok(entry) = usize::try_from(*entry) {
                begins.insert(entry, Some(index));
            }
        }
    }
    let mut owner = None;
    (0..program.instructions.len())
        .map(|at| {
            if let Some(begin) = begins.get(&at) {
                owner = *begin;
            }
            owner
        })
        .collect()
}

/// Of so many evaluations on a core one is watched: see `benches/README.md` for what that costs.
pub(in crate::authz) const ONE_IN: u64 = 64;

/// What the rules of a program cost since it went live, as far as it was watched.
#[derive(Debug, Default)]
pub(in crate::authz) struct Ledger {
    rules: Vec<(RuleAt, Costs)>,
    watched: AtomicU64,
}

#[derive(Debug, Default)]
struct Costs {
    evaluations: AtomicU64,
    nanoseconds: AtomicU64,
    overruns: AtomicU64,
}

impl Ledger {
    pub(in crate::authz) fn new(rules: &[RuleAt]) -> Self {
        let rules = rules.iter().map(|rule| (rule.clone(), Costs::default()));
        Self {
            rules: rules.collect(),
            watched: AtomicU64::new(0),
        }
    }

    /// Adds what was counted of one evaluation, and tells it on: name, evaluations, time, whether the
    /// budget was spent while the rule ran.
    pub(in crate::authz) fn charge(
        &self,
        counted: &Counted,
        overrun: bool,
        mut tell: impl FnMut(&str, u64, Duration, bool),
    ) {
        self.watched.fetch_add(1, Ordering::Relaxed);
        for (index, seen) in &counted.rules {
            let Some((rule, costs)) = self.rules.get(*index) else {
                continue;
            };
            let overrun = overrun && *index == counted.last;
            let nanoseconds = u64::try_from(seen.time.as_nanos()).unwrap_or(u64::MAX);
            let add = |to: &AtomicU64, more: u64| to.fetch_add(more, Ordering::Relaxed);
            add(&costs.evaluations, seen.evaluations);
            add(&costs.nanoseconds, nanoseconds);
            add(&costs.overruns, u64::from(overrun));
            tell(&rule.name, seen.evaluations, seen.time, overrun);
        }
    }

    /// How many evaluations were watched.
    pub(in crate::authz) fn watched(&self) -> u64 {
        self.watched.load(Ordering::Relaxed)
    }

    /// What was seen of each rule, and how many budgets were spent while it ran.
    pub(in crate::authz) fn rules(&self) -> impl Iterator<Item = (&RuleAt, Seen, u64)> {
        self.rules.iter().map(|(rule, costs)| {
            let seen = Seen {
                evaluations: costs.evaluations.load(Ordering::Relaxed),
                time: Duration::from_nanos(costs.nanoseconds.load(Ordering::Relaxed)),
                instructions: 0,
            };
            (rule, seen, costs.overruns.load(Ordering::Relaxed))
        })
    }
}

/// Most instructions, or steps of the interpreter, that are counted of one decision.
const MOST_STEPS: u32 = 100_000_000;

/// What one decision costs, the same each time.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(in crate::authz) struct Steps {
    /// Instructions of the bytecode machine, or steps of the interpreter.
    pub(in crate::authz) total: u64,
    /// By rule. On the interpreter `instructions` holds the steps of a rule asked alone.
    pub(in crate::authz) rules: Vec<(RuleAt, Seen)>,
}

/// Counts what a decision of a compiled program costs. The time of the count is not bounded by the
/// policy's budget, but it is bounded.
///
/// # Errors
/// In words, when the decision fails or has no end.
pub(in crate::authz) fn count_instructions(
    setup: &super::Setup,
    bytecode: &Arc<Program>,
    input: &Value,
) -> Result<Steps, String> {
    let mut engine = setup.engine.clone();
    let places = places(engine.get_modules());
    let marked = mark(bytecode, Marks::Instructions, &places)?;
    let limits = Limits {
        instructions: usize::try_from(MOST_STEPS).unwrap_or(usize::MAX),
        ..setup.limits
    };
    // The machine that decides.
    let mut machine = Lean::new(&marked.program, setup.data.clone(), limits)
        .ok_or_else(|| "an instruction that is not known".to_owned())?;
    begin(false);
    let outcome = machine.execute(input.clone());
    let counted = end();
    outcome.map_err(|ended| match ended {
        Ended::Error(error) => super::detail(&error.to_string()),
        Ended::Odd(why) => why.to_owned(),
    })?;
    let rules: Vec<(RuleAt, Seen)> = counted
        .rules
        .iter()
        .filter_map(|(index, seen)| Some((marked.rules.get(*index)?.clone(), *seen)))
        .collect();
    Ok(Steps {
        total: rules.iter().map(|(_, seen)| seen.instructions).sum(),
        rules,
    })
}

/// Counts the steps of the interpreter on a rule: it looks at its clock once in so many steps, so
/// that with no time at all it comes to its end exactly when it takes fewer.
///
/// # Errors
/// In words, when the rule fails or has no end.
pub(in crate::authz) fn count_steps(
    engine: &regorus::Engine,
    input: &Value,
    rule: &str,
) -> Result<u64, String> {
    let ends = |steps: u32| -> Result<bool, String> {
        let mut engine = engine.clone();
        engine.set_execution_timer_config(regorus::utils::limits::ExecutionTimerConfig {
            limit: Duration::ZERO,
            check_interval: std::num::NonZeroU32::new(steps).unwrap_or(std::num::NonZeroU32::MIN),
        });
        match super::evaluate(&mut engine, input.clone(), rule) {
            super::Outcome::Answer(_) => Ok(true),
            super::Outcome::Budget(_) => Ok(false),
            super::Outcome::Error(why) | super::Outcome::Panic(why) => Err(why),
        }
    };
    let mut most = 64u32;
    while !ends(most)? {
        most = most
            .checked_mul(4)
            .filter(|most| *most <= MOST_STEPS)
            .ok_or("the rule has no end")?;
    }
    let (mut least, mut most) = (most / 4, most);
    while least + 1 < most {
        let middle = least + (most - least) / 2;
        if ends(middle)? {
            most = middle;
        } else {
            least = middle;
        }
    }
    Ok(u64::from(most.saturating_sub(1)))
}
