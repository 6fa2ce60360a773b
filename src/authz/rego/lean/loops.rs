//! Loops and comprehensions.

use std::fmt;
use std::sync::Arc;

use regorus::Value;
use regorus::rvm::instructions::{ComprehensionMode, LoopMode};
use regorus::rvm::program::Program;

use super::{Frame, Lean, NO_PARAMS, Stop};

/// A loop that runs.
#[derive(Debug)]
pub(super) struct Loop {
    mode: LoopMode,
    left: Left,
    key: u8,
    value: u8,
    result: u8,
    begin: usize,
    end: usize,
    succeeded: usize,
    all: usize,
    /// Whether a condition of this turn did not hold.
    failed: bool,
}

/// What is left of what a loop goes through.
enum Left {
    /// Of an array, from here.
    Items(Value, usize),
    /// Key and value of an object, or a set's member twice.
    Members(Box<dyn FnMut() -> Option<(Value, Value)> + Send>),
}

impl fmt::Debug for Left {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Left").finish_non_exhaustive()
    }
}

/// A comprehension that runs.
#[derive(Debug)]
pub(super) struct Comprehension {
    mode: ComprehensionMode,
    result: u8,
    key: u8,
    end: usize,
    /// How many loops ran when it began: those behind run inside it.
    loops: usize,
}

const NO_LOOP: &str = "a loop that was not begun";
const NO_COMPREHENSION: &str = "a comprehension that was not begun";

impl Lean {
    /// A condition of this body does not hold. Where it goes on, unless that is its end.
    ///
    /// It is charged to what was begun last, a loop or a comprehension, which is then over. The engine's
    /// machine looks for a loop first, whichever was begun last, and leaves the comprehension begun: with
    /// `some s in xs; count([1 | s == "ok"]) == 0` it gives up the turn, where the count is 0.
    pub(super) fn failed(&mut self, frame: Frame<'_>) -> Result<usize, Stop> {
        if self.comprehensions.len() > frame.comprehensions
            && let Some(inner) = self.comprehensions.last()
            && inner.loops >= self.loops.len()
        {
            let end = inner.end;
            self.comprehensions.pop();
            return Ok(end);
        }
        if self.loops.len() > frame.loops {
            let Some(inner) = self.loops.last_mut() else {
                return Err(Stop::Odd(NO_LOOP));
            };
            if !matches!(inner.mode, LoopMode::Every) {
                inner.failed = true;
                // The loop's own last instruction decides.
                return Ok(inner.end.saturating_sub(1));
            }
            let (end, result) = (inner.end, inner.result);
            self.loops.pop();
            self.set(frame, result, Value::Bool(false))?;
            return Ok(end);
        }
        Err(Stop::Failed)
    }

    /// Begins a loop; where the program goes on.
    pub(super) fn loop_start(
        &mut self,
        program: &Program,
        params_index: u16,
        frame: Frame<'_>,
    ) -> Result<usize, Stop> {
        let params = program
            .instruction_data
            .get_loop_params(params_index)
            .ok_or(Stop::Odd(NO_PARAMS))?;
        self.set(frame, params.result_reg, Value::Bool(false))?;
        let end = usize::from(params.loop_end);
        let every = matches!(params.mode, LoopMode::Every);
        let over = self.get(frame, params.collection)?;
        let left = match over {
            Value::Array(items) if !items.is_empty() => Some(Left::Items(over.clone(), 0)),
            Value::Object(members) if !members.is_empty() => {
                let members = Arc::clone(members);
                let mut cursor = members.cursor();
                Some(Left::Members(Box::new(move || {
                    let (key, value) = members.next(&mut cursor)?;
                    Some((key.clone(), value.clone()))
                })))
            }
            Value::Set(members) if !members.is_empty() => {
                let members = Arc::clone(members);
                let mut cursor = members.cursor();
                Some(Left::Members(Box::new(move || {
                    let member = members.next(&mut cursor)?;
                    Some((member.clone(), member.clone()))
                })))
            }
            Value::Array(_) | Value::Object(_) | Value::Set(_) => {
                self.set(frame, params.result_reg, Value::Bool(every))?;
                None
            }
            Value::Null
            | Value::Bool(_)
            | Value::Number(_)
            | Value::String(_)
            | Value::Undefined => {
                let result = if every {
                    Value::Undefined
                } else {
                    Value::Bool(false)
                };
                self.set(frame, params.result_reg, result)?;
                None
            }
        };
        let Some(left) = left else {
            return Ok(end);
        };
        self.loops.push(Loop {
            mode: params.mode,
            left,
            key: params.key_reg,
            value: params.value_reg,
            result: params.result_reg,
            begin: usize::from(params.body_start),
            end,
            succeeded: 0,
            all: 0,
            failed: false,
        });
        if self.turn(frame)? {
            Ok(usize::from(params.body_start))
        } else {
            Err(Stop::Odd("a collection that lost its members"))
        }
    }

    /// Gives the innermost loop its next value.
    fn turn(&mut self, frame: Frame<'_>) -> Result<bool, Stop> {
        let inner = self.loops.last_mut().ok_or(Stop::Odd(NO_LOOP))?;
        let (key_reg, value_reg) = (inner.key, inner.value);
        let wants_key = key_reg != value_reg;
        let next = match &mut inner.left {
            Left::Items(items, at) => {
                let nth = *at;
                *at += 1;
                let Value::Array(items) = items else {
                    return Err(Stop::Odd("a collection of another kind"));
                };
                let value = items.get(nth).cloned();
                value.map(|value| (wants_key.then(|| Value::from(nth)), value))
            }
            Left::Members(next) => next().map(|(key, value)| (wants_key.then_some(key), value)),
        };
        let Some((key, value)) = next else {
            return Ok(false);
        };
        if let Some(key) = key {
            self.set(frame, key_reg, key)?;
        }
        self.set(frame, value_reg, value)?;
        Ok(true)
    }

    /// A turn of the innermost loop is done; where the program goes on.
    pub(super) fn loop_next(&mut self, frame: Frame<'_>) -> Result<usize, Stop> {
        if self.loops.len() <= frame.loops {
            return Err(Stop::Odd(NO_LOOP));
        }
        let inner = self.loops.last_mut().ok_or(Stop::Odd(NO_LOOP))?;
        let succeeded = !std::mem::take(&mut inner.failed);
        inner.all += 1;
        inner.succeeded += usize::from(succeeded);
        let (begin, end, result) = (inner.begin, inner.end, inner.result);
        let over = match inner.mode {
            LoopMode::Any => succeeded.then_some(true),
            LoopMode::Every => (!succeeded).then_some(false),
            LoopMode::ForEach => None,
        };
        let over = match over {
            Some(over) => over,
            None if self.turn(frame)? => return Ok(begin),
            None => {
                let inner = self.loops.last().ok_or(Stop::Odd(NO_LOOP))?;
                match inner.mode {
                    LoopMode::Any | LoopMode::ForEach => inner.succeeded > 0,
                    LoopMode::Every => inner.succeeded == inner.all,
                }
            }
        };
        self.loops.pop();
        self.set(frame, result, Value::Bool(over))?;
        Ok(end)
    }

    /// Begins a comprehension.
    pub(super) fn comprehension(
        &mut self,
        program: &Program,
        params_index: u16,
        frame: Frame<'_>,
    ) -> Result<(), Stop> {
        let params = program
            .instruction_data
            .get_comprehension_begin_params(params_index)
            .ok_or(Stop::Odd(NO_PARAMS))?;
        let nothing = match params.mode {
            ComprehensionMode::Set => Value::new_set(),
            ComprehensionMode::Array => Value::new_array(),
            ComprehensionMode::Object => Value::new_object(),
        };
        self.set(frame, params.result_reg, nothing)?;
        self.comprehensions.push(Comprehension {
            mode: params.mode.clone(),
            result: params.result_reg,
            key: params.key_reg,
            end: usize::from(params.comprehension_end),
            loops: self.loops.len(),
        });
        Ok(())
    }

    /// Adds to the innermost comprehension.
    pub(super) fn yielded(
        &mut self,
        frame: Frame<'_>,
        value: u8,
        key: Option<u8>,
    ) -> Result<(), Stop> {
        let inner = self.comprehensions.last();
        let inner = inner.filter(|_| self.comprehensions.len() > frame.comprehensions);
        let inner = inner.ok_or(Stop::Odd(NO_COMPREHENSION))?;
        let value = self.get(frame, value)?.clone();
        let key = match inner.mode {
            ComprehensionMode::Object => Some(self.get(frame, key.unwrap_or(inner.key))?.clone()),
            ComprehensionMode::Set | ComprehensionMode::Array => None,
        };
        let result = inner.result;
        let result = self.slot(frame, result)?;
        let odd = Stop::Odd("a comprehension of another kind");
        match (key, &*result) {
            (Some(key), Value::Object(_)) => {
                result.as_object_mut().map_err(|_| odd)?.insert(key, value);
            }
            (None, Value::Array(_)) => result.as_array_mut().map_err(|_| odd)?.push(value),
            (None, Value::Set(_)) if matches!(value, Value::Undefined) => {}
            (None, Value::Set(_)) => {
                result.as_set_mut().map_err(|_| odd)?.insert(value);
            }
            _ => return Err(odd),
        }
        Ok(())
    }

    pub(super) fn comprehension_end(&mut self, frame: Frame<'_>) -> Result<(), Stop> {
        if self.comprehensions.len() <= frame.comprehensions {
            return Err(Stop::Odd(NO_COMPREHENSION));
        }
        self.comprehensions.pop();
        Ok(())
    }
}
