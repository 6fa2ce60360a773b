//! What rules give.

use regorus::Value;
use regorus::rvm::instructions::{FunctionCallParams, VirtualDataDocumentLookupParams};
use regorus::rvm::program::{Program, RuleInfo, RuleType};

use super::leads::Found;
use super::{Frame, Lean, NO_RULE, Stop};

impl Lean {
    /// What a rule gives, or a function with arguments from the caller's frame.
    pub(super) fn rule(
        &mut self,
        program: &Program,
        index: u16,
        call: Option<(&FunctionCallParams, Frame<'_>)>,
    ) -> Result<Value, Stop> {
        let at = usize::from(index);
        let info = program.rule_infos.get(at).ok_or(Stop::Odd(NO_RULE))?;
        let function = info.function_info.is_some();
        if !function && let Some(Some(value)) = self.known.get(at) {
            return Ok(value.clone());
        }
        let (mut value, conflict) = if info.definitions.is_empty() {
            (Value::Undefined, false)
        } else {
            self.definitions(program, at, info, call)?
        };
        if matches!(value, Value::Undefined) && !conflict {
            let default = info
                .default_literal_index
                .and_then(|index| program.literals.get(usize::from(index)));
            value = match info.rule_type {
                _ if info.definitions.is_empty() => default.cloned().unwrap_or(value),
                RuleType::PartialSet => Value::new_set(),
                RuleType::PartialObject => Value::new_object(),
                RuleType::Complete => default.cloned().unwrap_or(value),
            };
        }
        if !function {
            let known = self.known.get_mut(at).ok_or(Stop::Odd(NO_RULE))?;
            *known = Some(value.clone());
        }
        Ok(value)
    }

    /// What the definitions of a rule give together, and whether they contradict each other.
    fn definitions(
        &mut self,
        program: &Program,
        rule: usize,
        info: &RuleInfo,
        call: Option<(&FunctionCallParams, Frame<'_>)>,
    ) -> Result<(Value, bool), Stop> {
        let window = self.registers.len();
        self.registers.push(Value::Undefined);
        let retained = match call {
            Some((params, caller)) => {
                for register in params.arg_registers() {
                    let value = self.get(caller, *register)?.clone();
                    self.registers.push(value);
                }
                params.arg_count() + 1
            }
            None => match info.rule_type {
                RuleType::PartialSet | RuleType::PartialObject => 1,
                RuleType::Complete => 0,
            },
        };
        let mut frame = Frame {
            window,
            loops: self.loops.len(),
            comprehensions: self.comprehensions.len(),
            kind: &info.rule_type,
            first: true,
        };
        let single = matches!(info.rule_type, RuleType::Complete) || info.function_info.is_some();
        let partial = !matches!(info.rule_type, RuleType::Complete);
        let mut found: Option<Value> = None;
        let mut conflict = false;
        let mut looked_up = Found::default();
        let size = usize::from(info.num_registers);
        self.registers.resize(window + size, Value::Undefined);
        'definitions: for (nth, bodies) in info.definitions.iter().enumerate() {
            for (body, entry) in bodies.iter().enumerate() {
                frame.first = nth == 0 && body == 0;
                let nth_body = (nth, body);
                // What an earlier body left unfinished would go on where this one fails.
                let fresh = self.loops.len() == frame.loops
                    && self.comprehensions.len() == frame.comprehensions;
                if fresh
                    && let Some(count) = self.fails_at_once(program, rule, nth_body, &mut looked_up)
                    && self.ticks(count)
                {
                    self.set(frame, info.result_reg, Value::Undefined)?;
                    continue;
                }
                let registers = self.registers.get_mut(window + retained..);
                for register in registers.into_iter().flatten() {
                    if !matches!(register, Value::Undefined) {
                        *register = Value::Undefined;
                    }
                }
                if let Some(Some(block)) = info.destructuring_blocks.get(nth) {
                    match self.body(program, pc(*block)?, frame) {
                        Ok(_) => {}
                        Err(Stop::Failed) => continue 'definitions,
                        Err(stop) => return Err(stop),
                    }
                }
                match self.body(program, pc(*entry)?, frame) {
                    Ok(_) => {}
                    Err(Stop::Failed) => continue,
                    Err(stop) => return Err(stop),
                }
                if single {
                    let value = self.get(frame, info.result_reg)?;
                    match &found {
                        _ if matches!(value, Value::Undefined) => {}
                        Some(found) => conflict = found != value,
                        None => {
                            found = Some(value.clone());
                            if info.early_exit_on_first_success {
                                break 'definitions;
                            }
                        }
                    }
                    if conflict {
                        break 'definitions;
                    }
                }
                let elses = info.else_bodies.get(nth);
                let next_is_else = elses.and_then(|bodies| bodies.get(body + 1)) == Some(&true);
                if !partial || next_is_else {
                    break;
                }
            }
        }
        let value = match found {
            _ if conflict => Value::Undefined,
            Some(found) => found,
            None => self.get(frame, info.result_reg)?.clone(),
        };
        self.registers.truncate(window);
        self.loops.truncate(frame.loops);
        self.comprehensions.truncate(frame.comprehensions);
        Ok((value, conflict))
    }

    /// What a path of `data` leads to: through a rule, or data.
    pub(super) fn lookup(
        &mut self,
        program: &Program,
        params: &VirtualDataDocumentLookupParams,
        frame: Frame<'_>,
    ) -> Result<Value, Stop> {
        let path: Vec<Value> = params
            .path_components
            .iter()
            .map(|component| self.component(program, component, frame).cloned())
            .collect::<Result<_, _>>()?;
        let mut node = &program.rule_tree["data"];
        let mut data = &self.data;
        // The engine's machine looks for the text of a number, too.
        if path.iter().any(|key| matches!(key, Value::Number(_))) {
            return Err(Stop::Odd("a number in a path of data with rules"));
        }
        let mut path = path.iter();
        for key in path.by_ref() {
            node = &node[key];
            data = &data[key];
            if matches!(node, Value::Undefined | Value::Number(_)) {
                break;
            }
        }
        match node {
            Value::Number(rule) => {
                let rule = rule.as_u64().and_then(|rule| u16::try_from(rule).ok());
                let value = self.rule(program, rule.ok_or(Stop::Odd(NO_RULE))?, None)?;
                Ok(path.fold(&value, |value, key| &value[key]).clone())
            }
            Value::Undefined => Ok(path.fold(data, |value, key| &value[key]).clone()),
            Value::Null
            | Value::Bool(_)
            | Value::String(_)
            | Value::Array(_)
            | Value::Set(_)
            | Value::Object(_) => Err(Stop::Odd("a path to several rules at once")),
        }
    }
}

fn pc(at: u32) -> Result<usize, Stop> {
    usize::try_from(at).map_err(|_| Stop::Odd("a place that is not there"))
}
