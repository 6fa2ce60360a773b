//! Bodies that need not be begun.
//!
//! Generated policies have a rule of hundreds of bodies, of which each begins by comparing the same
//! member of `input` with another constant. What such a body does before it fails is known: it loads,
//! it compares, and nothing else. So the member is looked up once for the rule, and where it is not the
//! constant the body's instructions are counted and not done. That is all that can be told of the
//! difference: a body is skipped only if
//!
//! - its rule is no set or object, whose first body also makes the empty collection, and the body does
//!   not take a parameter apart;
//! - up to the condition there are only instructions of [`lead`], which can neither fail nor be seen by
//!   what comes after them: registers are made new for each body;
//! - the condition is one that would not hold, by the comparison that the instruction makes.

#![expect(
    clippy::wildcard_enum_match_arm,
    reason = "what is not named ends the conditions that are known"
)]

use std::collections::BTreeMap;

use regorus::Value;
use regorus::rvm::instructions::{GuardMode, Instruction, LiteralOrRegister};
use regorus::rvm::program::{Program, RuleInfo, RuleType};

use super::{Lean, equal};

/// Most conditions that are looked at of a body, and most different paths of a rule.
const MAX: usize = 4;
/// What the names of builtins begin with that only tell which rule goes on: see `profile`.
const RESUMES: &str = "__portcullis Resume ";

/// The first conditions of a rule's bodies.
#[derive(Debug, Default)]
pub(super) struct Leads {
    /// Paths of `input`, by their constants' places.
    paths: Vec<Vec<u16>>,
    /// By definition and body.
    bodies: Vec<Vec<Vec<Condition>>>,
}

/// That a path leads to this constant.
#[derive(Debug, Clone, Copy)]
struct Condition {
    /// Its place in [`Leads::paths`].
    path: usize,
    literal: u16,
    /// Instructions of the body up to where it fails.
    instructions: usize,
}

/// What the paths of a rule lead to, as far as it was looked up.
pub(super) type Found = [Option<Value>; MAX];

impl Leads {
    /// Those of all rules of a program; empty where there are none.
    pub(super) fn of(program: &Program) -> Vec<Self> {
        let rules = program.rule_infos.iter();
        rules.map(|info| Self::of_rule(program, info)).collect()
    }

    fn of_rule(program: &Program, info: &RuleInfo) -> Self {
        let mut leads = Self::default();
        // One that is tried alone costs nothing to try.
        if !matches!(info.rule_type, RuleType::Complete) || info.definitions.len() < 2 {
            return leads;
        }
        let mut any = false;
        for (nth, bodies) in info.definitions.iter().enumerate() {
            let whole = !matches!(info.destructuring_blocks.get(nth), Some(Some(_)));
            let conditions: Vec<_> = bodies
                .iter()
                .map(|entry| match usize::try_from(*entry) {
                    Ok(entry) if whole => lead(program, entry, info.result_reg, &mut leads.paths),
                    _ => Vec::new(),
                })
                .collect();
            any |= conditions.iter().any(|conditions| !conditions.is_empty());
            leads.bodies.push(conditions);
        }
        if any { leads } else { Self::default() }
    }
}

/// The conditions that a body begins with.
fn lead(
    program: &Program,
    entry: usize,
    result_reg: u8,
    paths: &mut Vec<Vec<u16>>,
) -> Vec<Condition> {
    /// What a register holds.
    enum Holds {
        Input,
        Path(usize),
        Literal(u16),
        Is(usize, u16),
        Other,
    }
    let mut conditions = Vec::new();
    let mut registers: BTreeMap<u8, Holds> = BTreeMap::new();
    for (nth, instruction) in program.instructions.iter().skip(entry).enumerate() {
        let (dest, holds) = match *instruction {
            Instruction::RuleInit {
                result_reg: init, ..
            } if nth <= 1 && init == result_reg => continue,
            Instruction::BuiltinCall { params_index } if nth == 0 => {
                let params = program
                    .instruction_data
                    .get_builtin_call_params(params_index);
                let info = params.and_then(|params| program.get_builtin_info(params.builtin_index));
                if info.is_some_and(|info| info.name.starts_with(RESUMES)) {
                    continue;
                }
                break;
            }
            Instruction::LoadInput { dest } => (dest, Holds::Input),
            Instruction::LoadData { dest } => (dest, Holds::Other),
            Instruction::Load { dest, literal_idx } => {
                match program.literals.get(usize::from(literal_idx)) {
                    Some(Value::Undefined) | None => break,
                    Some(_) => (dest, Holds::Literal(literal_idx)),
                }
            }
            Instruction::ChainedIndex { params_index } => {
                let params = program
                    .instruction_data
                    .get_chained_index_params(params_index);
                let Some(params) = params else { break };
                if !matches!(registers.get(&params.root), Some(Holds::Input)) {
                    break;
                }
                let steps = params.path_components.iter().map(|step| match *step {
                    LiteralOrRegister::Literal(step) => Some(step),
                    // A constant has a register of its own when it is a number.
                    LiteralOrRegister::Register(register) => match registers.get(&register) {
                        Some(Holds::Literal(step)) => Some(*step),
                        _ => None,
                    },
                });
                let Some(path) = steps.collect::<Option<Vec<u16>>>() else {
                    break;
                };
                let known = paths.iter().position(|known| *known == path);
                let place = match known {
                    Some(place) => place,
                    None if paths.len() < MAX => {
                        paths.push(path);
                        paths.len() - 1
                    }
                    None => break,
                };
                (params.dest, Holds::Path(place))
            }
            Instruction::Eq { dest, left, right } => {
                match (registers.get(&left), registers.get(&right)) {
                    (Some(Holds::Path(path)), Some(Holds::Literal(literal)))
                    | (Some(Holds::Literal(literal)), Some(Holds::Path(path))) => {
                        (dest, Holds::Is(*path, *literal))
                    }
                    _ => break,
                }
            }
            Instruction::Guard {
                register,
                mode: GuardMode::Condition,
            } => {
                let Some(Holds::Is(path, literal)) = registers.get(&register) else {
                    break;
                };
                conditions.push(Condition {
                    path: *path,
                    literal: *literal,
                    instructions: nth + 1,
                });
                if conditions.len() >= MAX {
                    break;
                }
                continue;
            }
            _ => break,
        };
        registers.insert(dest, holds);
    }
    conditions
}

impl Lean {
    /// How many instructions this body does before it fails; `None` when it has to be begun.
    pub(super) fn fails_at_once(
        &self,
        program: &Program,
        rule: usize,
        (definition, body): (usize, usize),
        found: &mut Found,
    ) -> Option<usize> {
        let leads = self.leads.get(rule)?;
        for condition in leads.bodies.get(definition)?.get(body)? {
            let value = match found.get_mut(condition.path)? {
                Some(value) => value,
                empty => {
                    let mut value = &self.input;
                    for step in leads.paths.get(condition.path)? {
                        value = &value[program.literals.get(usize::from(*step))?];
                    }
                    empty.insert(value.clone())
                }
            };
            let literal = program.literals.get(usize::from(condition.literal))?;
            if equal(value, literal) != Some(true) {
                return Some(condition.instructions);
            }
        }
        None
    }
}
