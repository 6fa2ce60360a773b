//! What each instruction does.

#![expect(
    clippy::wildcard_enum_match_arm,
    reason = "what is not named is asked of `collections`, or is not known"
)]

use regorus::Value;
use regorus::rvm::instructions::{ChainedIndexParams, GuardMode, Instruction, LiteralOrRegister};
use regorus::rvm::program::{Program, RuleType};
use regorus::rvm::vm::VmError;

use super::{Frame, Lean, NO_PARAMS, Stop, collections, equal, literal};

impl Lean {
    /// Runs from here to the end of a body, or to an answer.
    pub(super) fn body(
        &mut self,
        program: &Program,
        start: usize,
        frame: Frame<'_>,
    ) -> Result<Option<Value>, Stop> {
        let mut at = start;
        while let Some(instruction) = program.instructions.get(at) {
            self.tick(at)?;
            let mut next = at + 1;
            match *instruction {
                Instruction::Load { dest, literal_idx } => {
                    self.set(frame, dest, literal(program, literal_idx)?.clone())?;
                }
                Instruction::LoadTrue { dest } => self.set(frame, dest, Value::Bool(true))?,
                Instruction::LoadFalse { dest } => self.set(frame, dest, Value::Bool(false))?,
                Instruction::LoadNull { dest } => self.set(frame, dest, Value::Null)?,
                Instruction::LoadBool { dest, value } => {
                    self.set(frame, dest, Value::Bool(value))?;
                }
                Instruction::LoadData { dest } => {
                    let data = self.data.clone();
                    self.set(frame, dest, data)?;
                }
                Instruction::LoadInput { dest } => {
                    let input = self.input.clone();
                    self.set(frame, dest, input)?;
                }
                Instruction::Move { dest, src } => {
                    let value = self.get(frame, src)?.clone();
                    self.set(frame, dest, value)?;
                }
                Instruction::Eq { dest, left, right } => {
                    let is = equal(self.get(frame, left)?, self.get(frame, right)?);
                    self.set(frame, dest, is.map_or(Value::Undefined, Value::Bool))?;
                }
                Instruction::Ne { dest, left, right } => {
                    let is = equal(self.get(frame, left)?, self.get(frame, right)?);
                    let is = is.map_or(Value::Undefined, |is| Value::Bool(!is));
                    self.set(frame, dest, is)?;
                }
                Instruction::Not { dest, operand } => {
                    let fails = !holds(self.get(frame, operand)?);
                    self.set(frame, dest, Value::Bool(fails))?;
                }
                Instruction::AssertEq { left, right } => {
                    let is = equal(self.get(frame, left)?, self.get(frame, right)?);
                    if is != Some(true) {
                        next = self.failed(frame)?;
                    }
                }
                Instruction::Guard { register, mode } => {
                    let value = self.get(frame, register)?;
                    let passed = match mode {
                        GuardMode::Not => !holds(value),
                        GuardMode::Condition => holds(value),
                        GuardMode::NotUndefined => !matches!(value, Value::Undefined),
                    };
                    if !passed {
                        next = self.failed(frame)?;
                    }
                }
                Instruction::BuiltinCall { params_index } => {
                    self.builtin(program, params_index, frame, at)?;
                }
                Instruction::FunctionCall { params_index } => {
                    let params = program
                        .instruction_data
                        .get_function_call_params(params_index)
                        .ok_or(Stop::Odd(NO_PARAMS))?;
                    let value =
                        self.rule(program, params.func_rule_index, Some((params, frame)))?;
                    self.set(frame, params.dest, value)?;
                    self.memory(at)?;
                }
                Instruction::CallRule { dest, rule_index } => {
                    let value = self.rule(program, rule_index, None)?;
                    self.set(frame, dest, value)?;
                }
                Instruction::VirtualDataDocumentLookup { params_index } => {
                    let params = program
                        .instruction_data
                        .get_virtual_data_document_lookup_params(params_index)
                        .ok_or(Stop::Odd(NO_PARAMS))?;
                    let value = self.lookup(program, params, frame)?;
                    self.set(frame, params.dest, value)?;
                }
                Instruction::Return { value } => {
                    return Ok(Some(self.get(frame, value)?.clone()));
                }
                Instruction::RuleInit { result_reg, .. } => {
                    let value = match frame.kind {
                        RuleType::Complete => Some(Value::Undefined),
                        RuleType::PartialSet => frame.first.then(Value::new_set),
                        RuleType::PartialObject => frame.first.then(Value::new_object),
                    };
                    if let Some(value) = value {
                        self.set(frame, result_reg, value)?;
                    }
                }
                Instruction::DestructuringSuccess {} | Instruction::RuleReturn {} => {
                    return Ok(None);
                }
                Instruction::Index {
                    dest,
                    container,
                    key,
                } => {
                    let container = self.get(frame, container)?;
                    let value = container[self.get(frame, key)?].clone();
                    self.set(frame, dest, value)?;
                }
                Instruction::IndexLiteral {
                    dest,
                    container,
                    literal_idx,
                } => {
                    let container = self.get(frame, container)?;
                    let value = container[literal(program, literal_idx)?].clone();
                    self.set(frame, dest, value)?;
                }
                Instruction::ChainedIndex { params_index } => {
                    let params = program
                        .instruction_data
                        .get_chained_index_params(params_index)
                        .ok_or(Stop::Odd(NO_PARAMS))?;
                    let value = self.chained(program, params, frame)?.clone();
                    self.set(frame, params.dest, value)?;
                }
                Instruction::LoopStart { params_index } => {
                    next = self.loop_start(program, params_index, frame)?;
                    self.memory(at)?;
                }
                Instruction::LoopNext { .. } => next = self.loop_next(frame)?,
                Instruction::ComprehensionBegin { params_index } => {
                    self.comprehension(program, params_index, frame)?;
                    self.memory(at)?;
                }
                Instruction::ComprehensionYield { value_reg, key_reg } => {
                    self.yielded(frame, value_reg, key_reg)?;
                    self.memory(at)?;
                }
                Instruction::ComprehensionEnd {} => self.comprehension_end(frame)?,
                ref other => {
                    self.collection(program, other, frame)?;
                    self.memory(at)?;
                }
            }
            at = next;
        }
        Err(Stop::Odd("the program runs out of itself"))
    }

    /// Walks along a path without taking what lies on the way.
    fn chained<'v>(
        &'v self,
        program: &'v Program,
        params: &ChainedIndexParams,
        frame: Frame<'_>,
    ) -> Result<&'v Value, Stop> {
        let mut value = self.get(frame, params.root)?;
        for component in &params.path_components {
            if matches!(value, Value::Undefined) {
                break;
            }
            value = &value[self.component(program, component, frame)?];
        }
        Ok(value)
    }

    pub(super) fn component<'v>(
        &'v self,
        program: &'v Program,
        component: &LiteralOrRegister,
        frame: Frame<'_>,
    ) -> Result<&'v Value, Stop> {
        match *component {
            LiteralOrRegister::Literal(index) => literal(program, index),
            LiteralOrRegister::Register(register) => self.get(frame, register),
        }
    }

    fn builtin(
        &mut self,
        program: &Program,
        params_index: u16,
        frame: Frame<'_>,
        at: usize,
    ) -> Result<(), Stop> {
        let params = program
            .instruction_data
            .get_builtin_call_params(params_index)
            .ok_or(Stop::Odd(NO_PARAMS))?;
        let info = program.get_builtin_info(params.builtin_index);
        let function = program.get_resolved_builtin(params.builtin_index);
        let (Some(info), Some((function, _))) = (info, function) else {
            return Err(Stop::Odd("a builtin that is not there"));
        };
        let registers = params.arg_registers();
        if usize::from(info.num_args) != registers.len() {
            return Err(Stop::Odd("a builtin with other arguments than it takes"));
        }
        let mut args = std::mem::take(&mut self.args);
        args.clear();
        let mut defined = true;
        for register in registers {
            let value = self.get(frame, *register)?;
            defined &= !matches!(value, Value::Undefined);
            args.push(value.clone());
        }
        let (span, exprs) = &self.nowhere;
        let result = if defined {
            let exprs = exprs.get(..args.len()).unwrap_or(&[]);
            function(span, exprs, &args, true)
        } else {
            Ok(Value::Undefined)
        };
        args.clear();
        self.args = args;
        match result {
            Ok(value) => self.set(frame, params.dest, value)?,
            Err(error) => {
                let error = error.into();
                if matches!(error, VmError::MemoryLimitExceeded { .. }) {
                    // The decision's own budget counts first.
                    self.memory(at)?;
                }
                return Err(of_builtin(error));
            }
        }
        self.memory(at)
    }
}

/// What the engine's machine makes of an error of a builtin: those of limits pass through all rules.
fn of_builtin(error: VmError) -> Stop {
    match error {
        VmError::TimeLimitExceeded { .. }
        | VmError::MemoryLimitExceeded { .. }
        | VmError::MemoryBudgetExceeded { .. }
        | VmError::RegexSizeLimitExceeded { .. }
        | VmError::InstructionLimitExceeded { .. }
        | VmError::NumericOverflow { .. } => Stop::Fatal(Box::new(error)),
        _ => Stop::Failed,
    }
}

/// Whether a condition holds.
fn holds(value: &Value) -> bool {
    !matches!(value, Value::Undefined | Value::Bool(false))
}

/// Whether this machine knows an instruction.
pub(super) fn knows(instruction: &Instruction) -> bool {
    match instruction {
        Instruction::Load { .. }
        | Instruction::LoadTrue { .. }
        | Instruction::LoadFalse { .. }
        | Instruction::LoadNull { .. }
        | Instruction::LoadBool { .. }
        | Instruction::LoadData { .. }
        | Instruction::LoadInput { .. }
        | Instruction::Move { .. }
        | Instruction::Eq { .. }
        | Instruction::Ne { .. }
        | Instruction::Not { .. }
        | Instruction::AssertEq { .. }
        | Instruction::Guard { .. }
        | Instruction::BuiltinCall { .. }
        | Instruction::FunctionCall { .. }
        | Instruction::CallRule { .. }
        | Instruction::VirtualDataDocumentLookup { .. }
        | Instruction::Return { .. }
        | Instruction::RuleInit { .. }
        | Instruction::DestructuringSuccess {}
        | Instruction::RuleReturn {}
        | Instruction::Index { .. }
        | Instruction::IndexLiteral { .. }
        | Instruction::ChainedIndex { .. }
        | Instruction::LoopStart { .. }
        | Instruction::LoopNext { .. }
        | Instruction::ComprehensionBegin { .. }
        | Instruction::ComprehensionYield { .. }
        | Instruction::ComprehensionEnd {} => true,
        other => collections::knows(other),
    }
}
