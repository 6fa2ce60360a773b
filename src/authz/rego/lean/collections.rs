//! Instructions that make collections, and ask them.

#![expect(
    clippy::wildcard_enum_match_arm,
    reason = "what is not named is not known"
)]

use std::collections::BTreeSet;

use regorus::Value;
use regorus::rvm::instructions::{Instruction, ObjectCreateParams};
use regorus::rvm::program::Program;

use super::{Frame, Lean, NO_PARAMS, Stop, literal};

const OTHER_KIND: &str = "a collection of another kind";

pub(super) fn knows(instruction: &Instruction) -> bool {
    matches!(
        instruction,
        Instruction::ObjectSet { .. }
            | Instruction::ObjectCreate { .. }
            | Instruction::ArrayNew { .. }
            | Instruction::ArrayPush { .. }
            | Instruction::ArrayCreate { .. }
            | Instruction::SetNew { .. }
            | Instruction::SetAdd { .. }
            | Instruction::SetCreate { .. }
            | Instruction::Contains { .. }
            | Instruction::Count { .. }
    )
}

impl Lean {
    pub(super) fn collection(
        &mut self,
        program: &Program,
        instruction: &Instruction,
        frame: Frame<'_>,
    ) -> Result<(), Stop> {
        let data = &program.instruction_data;
        match *instruction {
            Instruction::ObjectSet { obj, key, value } => {
                let key = self.get(frame, key)?.clone();
                let value = self.get(frame, value)?.clone();
                let members = self.slot(frame, obj)?.as_object_mut();
                members
                    .map_err(|_| Stop::Odd(OTHER_KIND))?
                    .insert(key, value);
                Ok(())
            }
            Instruction::ObjectCreate { params_index } => {
                let params = data
                    .get_object_create_params(params_index)
                    .ok_or(Stop::Odd(NO_PARAMS))?;
                let value = self.object(program, params, frame)?;
                self.set(frame, params.dest, value)
            }
            Instruction::ArrayNew { dest } => self.set(frame, dest, Value::new_array()),
            Instruction::ArrayPush { arr, value } => {
                let value = self.get(frame, value)?.clone();
                let items = self.slot(frame, arr)?.as_array_mut();
                items.map_err(|_| Stop::Odd(OTHER_KIND))?.push(value);
                Ok(())
            }
            Instruction::ArrayCreate { params_index } => {
                let params = data
                    .get_array_create_params(params_index)
                    .ok_or(Stop::Odd(NO_PARAMS))?;
                let items = self.defined(params.element_registers(), frame)?;
                let value = items.map_or(Value::Undefined, Value::from);
                self.set(frame, params.dest, value)
            }
            Instruction::SetNew { dest } => self.set(frame, dest, Value::new_set()),
            Instruction::SetAdd { set, value } => {
                let value = self.get(frame, value)?.clone();
                let members = self.slot(frame, set)?.as_set_mut();
                let members = members.map_err(|_| Stop::Odd(OTHER_KIND))?;
                if !matches!(value, Value::Undefined) {
                    members.insert(value);
                }
                Ok(())
            }
            Instruction::SetCreate { params_index } => {
                let params = data
                    .get_set_create_params(params_index)
                    .ok_or(Stop::Odd(NO_PARAMS))?;
                let members = self.defined(params.element_registers(), frame)?;
                let value = members.map_or(Value::Undefined, |members| {
                    let mut set = BTreeSet::new();
                    for member in members {
                        // One by one: of equal ones (0 and -0.0) the first stays.
                        set.insert(member);
                    }
                    Value::from(set)
                });
                self.set(frame, params.dest, value)
            }
            Instruction::Contains {
                dest,
                collection,
                value,
            } => {
                let value = self.get(frame, value)?;
                let is = match self.get(frame, collection)? {
                    Value::Set(members) => members.contains(value),
                    Value::Array(items) => match value {
                        Value::String(text) => items
                            .iter()
                            .any(|item| matches!(item, Value::String(item) if item == text)),
                        value => items.iter().any(|item| item == value),
                    },
                    Value::Object(members) => members.iter().any(|(_, member)| member == value),
                    _ => false,
                };
                self.set(frame, dest, Value::Bool(is))
            }
            Instruction::Count { dest, collection } => {
                let count = match self.get(frame, collection)? {
                    Value::Array(items) => Value::from(items.len()),
                    Value::Object(members) => Value::from(members.len()),
                    Value::Set(members) => Value::from(members.len()),
                    _ => Value::Undefined,
                };
                self.set(frame, dest, count)
            }
            _ => Err(Stop::Odd("an instruction that is not known")),
        }
    }

    /// The values of these registers; `None` when one is undefined.
    fn defined(&self, registers: &[u8], frame: Frame<'_>) -> Result<Option<Vec<Value>>, Stop> {
        let mut values = Vec::with_capacity(registers.len());
        for register in registers {
            match self.get(frame, *register)? {
                Value::Undefined => return Ok(None),
                value => values.push(value.clone()),
            }
        }
        Ok(Some(values))
    }

    fn object(
        &self,
        program: &Program,
        params: &ObjectCreateParams,
        frame: Frame<'_>,
    ) -> Result<Value, Stop> {
        let named = params.literal_key_field_pairs();
        let others = params.field_pairs();
        let registers = others.iter().flat_map(|(key, value)| [*key, *value]);
        for register in named.iter().map(|(_, value)| *value).chain(registers) {
            if matches!(self.get(frame, register)?, Value::Undefined) {
                return Ok(Value::Undefined);
            }
        }
        let mut object = literal(program, params.template_literal_idx)?.clone();
        let members = object.as_object_mut().map_err(|_| Stop::Odd(OTHER_KIND))?;
        for (key, value) in named {
            let (key, value) = (literal(program, *key)?, self.get(frame, *value)?.clone());
            match members.get_mut(key) {
                Some(member) => *member = value,
                None => {
                    members.insert(key.clone(), value);
                }
            }
        }
        for (key, value) in others {
            let (key, value) = (self.get(frame, *key)?, self.get(frame, *value)?);
            members.insert(key.clone(), value.clone());
        }
        Ok(object)
    }
}
