//! Bytecode that cannot swallow an error.
//!
//! The bytecode machine turns an error inside a rule into an undefined rule, of which a `not` or a
//! default makes a yes. Only a few errors pass through its rules, those of a limit among them. So
//! what can fail is rewritten here, before the program runs, to fail with such an error:
//!
//! - the builtins of [`BUILTINS`] and arithmetic go through a wrapper that makes every failure, and
//!   every undefined result, that error;
//! - comparisons by order compare like the interpreter, which orders values of different types
//!   where the machine fails;
//! - before a loop, a check that there is something to go through: the machine takes a text for an
//!   empty collection, the interpreter fails;
//! - `input` and `data` are loaded where a body begins, if it would load them inside of a loop: after
//!   a loop over nothing the machine took them for undefined;
//! - a rule of several definitions does not stop at the first that holds: the interpreter goes on
//!   to the others, and a failure there counts.
//!
//! Whoever runs the program answers that error by asking the interpreter, so that a failure costs
//! time and changes no answer.

#![expect(
    clippy::wildcard_enum_match_arm,
    reason = "a few instructions are rewritten; all others stay as they are"
)]

use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use anyhow::Result;
use regorus::rvm::instructions::{BuiltinCallParams, Instruction};
use regorus::rvm::program::{BuiltinInfo, Program};
use regorus::unstable::{BUILTINS as ALL, BuiltinFcn, Expr, Ref, Span};
use regorus::{LimitError, Value};

use crate::authz::rego::host;

type Function = fn(&Span, &[Ref<Expr>], &[Value], bool) -> Result<Value>;

macro_rules! guarded {
    ($($name:literal),* $(,)?) => {
        /// Builtins that a rewritten program may call with anything.
        pub(in crate::authz) const BUILTINS: &[&str] = &[$($name),*];

        fn guard(name: &str) -> Option<Function> {
            match name {
                $($name => Some(|span, params, args, strict| {
                    static INNER: LazyLock<Option<BuiltinFcn>> =
                        LazyLock::new(|| ALL.get($name).copied());
                    match INNER.as_ref() {
                        Some((inner, _)) => sure(inner(span, params, args, strict)),
                        None => failed(),
                    }
                }),)*
                _ => None,
            }
        }
    };
}

guarded![
    // What rewriting asks: see `rewrite::OURS`.
    "__builtin_sets.union",
    "abs",
    "array.concat",
    "array.reverse",
    "array.slice",
    "base64.decode",
    "base64.encode",
    "base64.is_valid",
    "base64url.decode",
    "base64url.encode",
    "base64url.encode_no_pad",
    "bits.and",
    "bits.negate",
    "bits.or",
    "bits.rsh",
    "bits.xor",
    "ceil",
    "concat",
    "contains",
    "count",
    "endswith",
    "floor",
    "format_int",
    "glob.quote_meta",
    "graph.reachable",
    "hex.decode",
    "hex.encode",
    "indexof",
    "indexof_n",
    "intersection",
    "is_array",
    "is_boolean",
    "is_null",
    "is_number",
    "is_object",
    "is_set",
    "is_string",
    "json.filter",
    "json.is_valid",
    "json.patch",
    "json.remove",
    "lower",
    "max",
    "min",
    "net.cidr_contains",
    "net.cidr_is_valid",
    "object.filter",
    "object.get",
    "object.keys",
    "object.remove",
    "object.subset",
    "object.union",
    "object.union_n",
    "product",
    "round",
    "semver.compare",
    "semver.is_valid",
    "sort",
    "split",
    "startswith",
    "strings.reverse",
    "substring",
    "sum",
    "time.add_date",
    "time.clock",
    "time.date",
    "time.diff",
    "time.format",
    "time.parse_duration_ns",
    "time.parse_ns",
    "time.parse_rfc3339_ns",
    "time.weekday",
    "trim",
    "trim_left",
    "trim_prefix",
    "trim_right",
    "trim_space",
    "trim_suffix",
    "type_name",
    "union",
    "upper",
    "urlquery.decode",
    "urlquery.decode_object",
    "urlquery.encode",
    "urlquery.encode_object",
];

/// The error that no rule swallows.
fn failed() -> Result<Value> {
    Err(LimitError::RegexSizeLimitExceeded { limit: 0 }.into())
}

fn sure(result: Result<Value>) -> Result<Value> {
    match result {
        Ok(Value::Undefined) => failed(),
        Err(error) if error.downcast_ref::<LimitError>().is_none() => failed(),
        other => other,
    }
}

/// An operation of two values as a builtin: the machine calls it with defined values only.
macro_rules! operation {
    ($one:ident, $other:ident, $result:expr) => {
        |_, _, args, _| match args {
            [$one, $other] => $result,
            _ => failed(),
        }
    };
}

macro_rules! arithmetic {
    ($method:ident, of_one) => {
        operation!(
            one,
            other,
            match (one, other) {
                // Nothing is divided by zero, and no remainder is taken of fractions.
                (Value::Number(one), Value::Number(other))
                    if one.is_integer() && other.is_integer() && *other != 0u64.into() =>
                {
                    sure(one.clone().$method(other).map(Value::from))
                }
                _ => failed(),
            }
        )
    };
    ($method:ident) => {
        operation!(
            one,
            other,
            match (one, other) {
                (Value::Number(one), Value::Number(other)) => {
                    sure(one.$method(other).map(Value::from))
                }
                // Sets have a difference; the interpreter knows.
                _ => failed(),
            }
        )
    };
}

macro_rules! ordered {
    ($is:ident) => {
        operation!(
            one,
            other,
            Ok(Value::from(ordering(one, other, Value::cmp, &mut 0)?.$is()))
        )
    };
}

/// Most values that one comparison looks at: some 10 ms. A value that holds another twice, which holds
/// a third twice, and so on, is small in memory and without end to whoever goes through it.
const MAX_COMPARED: usize = 1 << 20;

/// The error of a spent budget.
fn spent() -> anyhow::Error {
    let (elapsed, limit) = (Duration::ZERO, Duration::ZERO);
    LimitError::TimeLimitExceeded { elapsed, limit }.into()
}

/// Compares as OPA does, where a set comes after an object; `None` where that would take long.
pub(in crate::authz) fn in_opas_order(one: &Value, other: &Value) -> Option<Ordering> {
    let kinds = |one: &Value, other: &Value| match (one, other) {
        (Value::Set(_), Value::Object(_)) => Ordering::Greater,
        (Value::Object(_), Value::Set(_)) => Ordering::Less,
        _ => one.cmp(other),
    };
    ordering(one, other, kinds, &mut 0).ok()
}

/// Compares as the engine does, values of different kinds as told, and gives up where that would take
/// long.
fn ordering(
    one: &Value,
    other: &Value,
    kinds: fn(&Value, &Value) -> Ordering,
    seen: &mut usize,
) -> Result<Ordering> {
    *seen += 1;
    if *seen > MAX_COMPARED {
        return Err(spent());
    }
    match (one, other) {
        (Value::Array(one), Value::Array(other)) => {
            if Arc::ptr_eq(one, other) {
                return Ok(Ordering::Equal);
            }
            for (one, other) in one.iter().zip(other.iter()) {
                match ordering(one, other, kinds, seen)? {
                    Ordering::Equal => {}
                    different => return Ok(different),
                }
            }
            Ok(one.len().cmp(&other.len()))
        }
        (Value::Set(one), Value::Set(other)) => {
            if Arc::ptr_eq(one, other) {
                return Ok(Ordering::Equal);
            }
            for (one, other) in one.iter().zip(other.iter()) {
                match ordering(one, other, kinds, seen)? {
                    Ordering::Equal => {}
                    different => return Ok(different),
                }
            }
            Ok(one.len().cmp(&other.len()))
        }
        (Value::Object(one), Value::Object(other)) => {
            if Arc::ptr_eq(one, other) {
                return Ok(Ordering::Equal);
            }
            for ((key, value), (other_key, other_value)) in
                one.iter_sorted().zip(other.iter_sorted())
            {
                match ordering(key, other_key, kinds, seen)? {
                    Ordering::Equal => {}
                    different => return Ok(different),
                }
                match ordering(value, other_value, kinds, seen)? {
                    Ordering::Equal => {}
                    different => return Ok(different),
                }
            }
            Ok(one.len().cmp(&other.len()))
        }
        (Value::String(one), Value::String(other)) => {
            *seen += one.len().min(other.len()) / 64;
            Ok(one.cmp(other))
        }
        (one, other) => Ok(kinds(one, other)),
    }
}

/// The builtins that stand in for instructions, after those that the program has.
const OPERATIONS: [(&str, Function, u8); 12] = [
    ("<", ordered!(is_lt), 2),
    ("<=", ordered!(is_le), 2),
    (">", ordered!(is_gt), 2),
    (">=", ordered!(is_ge), 2),
    ("+", arithmetic!(add), 2),
    ("-", arithmetic!(sub), 2),
    ("*", arithmetic!(mul), 2),
    (
        "collection",
        |_, _, args, _| match args {
            [Value::Array(_) | Value::Set(_) | Value::Object(_)] => Ok(Value::from(true)),
            _ => failed(),
        },
        1,
    ),
    ("==", ordered!(is_eq), 2),
    ("!=", ordered!(is_ne), 2),
    ("/", arithmetic!(divide, of_one), 2),
    ("%", arithmetic!(modulo, of_one), 2),
];
/// Where the check of a loop stands among them.
const COLLECTION: u16 = 7;
/// Where the comparisons for equality stand, which take the place of instructions only where neither
/// side is a small constant.
const EQUAL: u16 = 8;
const DIFFERENT: u16 = 9;

/// Rewrites a program; an error when it holds what this does not know.
pub(in crate::authz) fn rewrite(program: Arc<Program>) -> Result<Arc<Program>, String> {
    let mut program = Arc::unwrap_or_clone(program);
    let known = program.builtin_info_table.len();
    if program.resolved_builtins.len() != known
        || program.instruction_spans.len() != program.instructions.len()
    {
        return Err("the compiled policy is incomplete".to_owned());
    }
    for (info, resolved) in program
        .builtin_info_table
        .iter()
        .zip(&mut program.resolved_builtins)
    {
        if let Some(host) = host::find(&info.name) {
            resolved.0 = host.machine;
        } else if let Some(guard) = guard(&info.name) {
            resolved.0 = guard;
        }
    }
    let first = u16::try_from(known).map_err(|_| TOO_LARGE.to_owned())?;
    for (name, function, arity) in OPERATIONS {
        program.builtin_info_table.push(BuiltinInfo {
            name: format!("__portcullis {name}"),
            num_args: u16::from(arity),
        });
        program.resolved_builtins.push((function, arity));
    }
    for rule in &mut program.rule_infos {
        rule.early_exit_on_first_success = false;
    }
    instructions(&mut program, first)?;
    Ok(Arc::new(program))
}

const TOO_LARGE: &str = "the compiled policy is too large";

fn instructions(program: &mut Program, first: u16) -> Result<(), String> {
    let old = std::mem::take(&mut program.instructions);
    let spans = std::mem::take(&mut program.instruction_spans);
    let late = late_loads(&old);
    // Where each instruction went, or the check before it: jumps go there.
    let mut moved: Vec<usize> = Vec::with_capacity(old.len() + 1);
    let mut small = Small::default();
    for (at, (instruction, span)) in old.into_iter().zip(spans).enumerate() {
        moved.push(program.instructions.len());
        small.see(&instruction, &program.literals);
        let replacement = match instruction {
            Instruction::Lt { dest, left, right } => Some((0, dest, [left, right])),
            Instruction::Le { dest, left, right } => Some((1, dest, [left, right])),
            Instruction::Gt { dest, left, right } => Some((2, dest, [left, right])),
            Instruction::Ge { dest, left, right } => Some((3, dest, [left, right])),
            Instruction::Add { dest, left, right } => Some((4, dest, [left, right])),
            Instruction::Sub { dest, left, right } => Some((5, dest, [left, right])),
            Instruction::Mul { dest, left, right } => Some((6, dest, [left, right])),
            Instruction::Div { dest, left, right } => Some((10, dest, [left, right])),
            Instruction::Mod { dest, left, right } => Some((11, dest, [left, right])),
            Instruction::Eq { dest, left, right } if !small.contains(left, right) => {
                Some((EQUAL, dest, [left, right]))
            }
            Instruction::Ne { dest, left, right } if !small.contains(left, right) => {
                Some((DIFFERENT, dest, [left, right]))
            }
            _ => None,
        };
        if let Some((operation, dest, [left, right])) = replacement {
            let call = call(program, first + operation, dest, &[left, right])?;
            program.instructions.push(call);
            program.instruction_spans.push(span);
            continue;
        }
        match instruction {
            Instruction::LoopStart { params_index } => {
                let params = program
                    .instruction_data
                    .get_loop_params(params_index)
                    .ok_or("the compiled policy has a loop without parameters")?;
                // The loop's result is written when it starts, so its place is free before.
                let (result, collection) = (params.result_reg, params.collection);
                if result == collection {
                    return Err("the compiled policy has a loop over its own result".to_owned());
                }
                let check = call(program, first + COLLECTION, result, &[collection])?;
                program.instructions.push(check);
                program.instruction_spans.push(span.clone());
            }
            Instruction::PolicyCondition { .. }
            | Instruction::LogicalBlockStart { .. }
            | Instruction::AllOfNext { .. }
            | Instruction::AnyOfNext { .. }
            | Instruction::LogicalBlockEnd { .. } => {
                return Err("the compiled policy jumps in a way that is not known".to_owned());
            }
            _ => {}
        }
        program.instructions.push(instruction);
        program.instruction_spans.push(span.clone());
        for load in late.get(&at).into_iter().flatten() {
            program.instructions.push(*load);
            program.instruction_spans.push(span.clone());
        }
    }
    moved.push(program.instructions.len());
    if program.instructions.len() > Program::MAX_INSTRUCTIONS {
        return Err(TOO_LARGE.to_owned());
    }
    jumps(program, &moved)
}

/// The loads of `input` and `data` in each body that stand inside of a loop, by the body's first
/// instruction. The compiler loads each once and uses the register in the rest of the body, though a
/// loop over nothing never came to the load: they are done at the beginning as well.
fn late_loads(instructions: &[Instruction]) -> BTreeMap<usize, Vec<Instruction>> {
    let mut late: BTreeMap<usize, Vec<Instruction>> = BTreeMap::new();
    let (mut body, mut looped) = (None, false);
    for (at, instruction) in instructions.iter().enumerate() {
        match instruction {
            Instruction::RuleInit { .. } => (body, looped) = (Some(at), false),
            Instruction::RuleReturn {} => body = None,
            Instruction::LoopStart { .. } | Instruction::ComprehensionBegin { .. } => looped = true,
            Instruction::LoadInput { .. } | Instruction::LoadData { .. } if looped => {
                if let Some(body) = body {
                    late.entry(body).or_default().push(*instruction);
                }
            }
            _ => {}
        }
    }
    late
}

/// The registers that the last few instructions loaded with constants of no size. To be mistaken costs
/// a bound, and changes no answer.
#[derive(Default)]
struct Small {
    last: [Option<u8>; 2],
}

impl Small {
    fn see(&mut self, instruction: &Instruction, literals: &[Value]) {
        let loaded = match *instruction {
            Instruction::Load { dest, literal_idx } => literals
                .get(usize::from(literal_idx))
                .filter(|value| {
                    !matches!(value, Value::Array(_) | Value::Set(_) | Value::Object(_))
                })
                .map(|_| dest),
            Instruction::LoadTrue { dest }
            | Instruction::LoadFalse { dest }
            | Instruction::LoadNull { dest }
            | Instruction::LoadBool { dest, .. } => Some(dest),
            Instruction::RuleInit { .. } | Instruction::LoopStart { .. } => {
                self.last = [None, None];
                None
            }
            _ => None,
        };
        if loaded.is_some() {
            self.last = [loaded, self.last.first().copied().flatten()];
        }
    }

    fn contains(&self, left: u8, right: u8) -> bool {
        self.last.contains(&Some(left)) || self.last.contains(&Some(right))
    }
}

pub(super) fn call(
    program: &mut Program,
    builtin_index: u16,
    dest: u8,
    registers: &[u8],
) -> Result<Instruction, String> {
    let calls = program.instruction_data.builtin_call_params.len();
    if calls >= usize::from(u16::MAX) {
        return Err(TOO_LARGE.to_owned());
    }
    let mut args = [0; 8];
    for (arg, register) in args.iter_mut().zip(registers) {
        *arg = *register;
    }
    let params_index = program.add_builtin_call_params(BuiltinCallParams {
        dest,
        builtin_index,
        num_args: u8::try_from(registers.len()).map_err(|_| TOO_LARGE.to_owned())?,
        args,
    });
    Ok(Instruction::BuiltinCall { params_index })
}

/// Points everything that names an instruction to its new place.
pub(super) fn jumps(program: &mut Program, moved: &[usize]) -> Result<(), String> {
    let find = |at: usize| {
        let found = moved.get(at).copied();
        found.ok_or_else(|| "the compiled policy jumps out of itself".to_owned())
    };
    let short = |at: &mut u16| -> Result<(), String> {
        *at = u16::try_from(find(usize::from(*at))?).map_err(|_| TOO_LARGE.to_owned())?;
        Ok(())
    };
    let long = |at: &mut u32| -> Result<(), String> {
        let old = usize::try_from(*at).map_err(|_| TOO_LARGE.to_owned())?;
        *at = u32::try_from(find(old)?).map_err(|_| TOO_LARGE.to_owned())?;
        Ok(())
    };
    for instruction in &mut program.instructions {
        if let Instruction::LoopNext {
            body_start,
            loop_end,
        } = instruction
        {
            short(body_start)?;
            short(loop_end)?;
        }
    }
    for params in &mut program.instruction_data.loop_params {
        short(&mut params.body_start)?;
        short(&mut params.loop_end)?;
    }
    for params in &mut program.instruction_data.comprehension_begin_params {
        short(&mut params.body_start)?;
        short(&mut params.comprehension_end)?;
    }
    for rule in &mut program.rule_infos {
        let mut definitions = rule.definitions.to_vec();
        for body in definitions.iter_mut().flatten() {
            long(body)?;
        }
        rule.definitions = Arc::new(definitions);
        for block in rule.destructuring_blocks.iter_mut().flatten() {
            long(block)?;
        }
    }
    for at in program.entry_points.values_mut() {
        *at = find(*at)?;
    }
    long(&mut program.main_entry_point)
}
