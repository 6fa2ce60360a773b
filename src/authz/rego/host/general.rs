//! Numbers, collections, the moment, and what is derived from the request's id.

use aws_lc_rs::digest;
use regorus::Value;

use super::args::{any, array, integer, short, spent, text, wrong};
use super::{Answer, MAX_ELEMENTS, MAX_TEXT, MOMENT, engines};
use crate::authz::rego::guarded;
use crate::document;

/// Longest text that is read as a number, bytes.
pub(super) const MAX_NUMBER: usize = 400;
/// Largest exponent of such a number.
pub(super) const MAX_EXPONENT: i32 = 400;
/// Furthest shift to the left, bits.
pub(super) const MAX_SHIFT: i64 = 1024;

pub(super) fn range(args: &[Value]) -> Answer {
    steps(integer(args, 0)?, integer(args, 1)?, 1)
}

pub(super) fn range_step(args: &[Value]) -> Answer {
    let step = integer(args, 2)?;
    if step <= 0 {
        return wrong("takes a step that is a positive integer");
    }
    steps(integer(args, 0)?, integer(args, 1)?, step)
}

fn steps(from: i64, to: i64, step: i64) -> Answer {
    let count = from.abs_diff(to) / step.unsigned_abs().max(1);
    if usize::try_from(count).is_ok_and(|count| count < MAX_ELEMENTS) {
        let mut at = Some(from);
        let mut all = Vec::new();
        while let Some(next) = at.filter(|n| if from <= to { *n <= to } else { *n >= to }) {
            all.push(Value::from(next));
            at = if from <= to {
                next.checked_add(step)
            } else {
                next.checked_sub(step)
            };
        }
        return Ok(Value::from(all));
    }
    spent(format!("makes more than {MAX_ELEMENTS} numbers"))
}

pub(super) fn shift_left(args: &[Value]) -> Answer {
    let shift = integer(args, 1)?;
    if shift > MAX_SHIFT {
        return spent(format!("shifts by at most {MAX_SHIFT} bits"));
    }
    engines("bits.lsh", args)
}

/// `1e999999999` would be computed digit by digit.
pub(super) fn number(args: &[Value], name: &str) -> Answer {
    if let Value::String(text) = any(args, 0)? {
        short(text.len(), MAX_NUMBER)?;
        let exponent = text
            .rsplit_once(['e', 'E'])
            .map(|(_, exponent)| exponent)
            .filter(|exponent| {
                exponent.starts_with(|c: char| c.is_ascii_digit() || c == '+' || c == '-')
            });
        if let Some(exponent) = exponent {
            let digits: String = exponent
                .trim_start_matches(['+', '-'])
                .chars()
                .take_while(char::is_ascii_digit)
                .collect();
            if digits.parse::<i32>().map_or(true, |e| e > MAX_EXPONENT) {
                return wrong("was given a number out of range");
            }
        }
    }
    engines(name, args)
}

pub(super) fn unmarshal(args: &[Value]) -> Answer {
    short(text(args, 0)?.len(), MAX_TEXT)?;
    engines("json.unmarshal", args)
}

pub(super) fn unmarshal_yaml(args: &[Value]) -> Answer {
    let text = text(args, 0)?;
    short(text.len(), super::MAX_SUBJECT)?;
    document::from_yaml(text.as_bytes()).or_else(|_| wrong("was given what is no YAML"))
}

pub(super) fn is_yaml(args: &[Value]) -> Answer {
    Ok(Value::from(
        matches!(args.first(), Some(Value::String(_))) && unmarshal_yaml(args).is_ok(),
    ))
}

/// One level of arrays in the array is opened.
pub(super) fn flatten(args: &[Value]) -> Answer {
    let mut flat = Vec::new();
    for item in array(args, 0)?.iter() {
        match item {
            Value::Array(inner) => flat.extend(inner.iter().cloned()),
            other => flat.push(other.clone()),
        }
        if flat.len() > MAX_ELEMENTS {
            return spent(format!("makes more than {MAX_ELEMENTS} elements"));
        }
    }
    Ok(Value::from(flat))
}

/// `value in collection` as a value: undefined where a part of it is.
pub(super) fn member_2(args: &[Value]) -> Answer {
    let value = any(args, 0)?;
    Ok(Value::from(match any(args, 1)? {
        Value::Array(items) => items.iter().any(|item| item == value),
        Value::Set(items) => items.contains(value),
        Value::Object(members) => members.iter().any(|(_, member)| member == value),
        _ => false,
    }))
}

pub(super) fn member_3(args: &[Value]) -> Answer {
    let (key, value) = (any(args, 0)?, any(args, 1)?);
    Ok(Value::from(match any(args, 2)? {
        Value::Array(items) => {
            let at = match key {
                Value::Number(number) => number.as_u64().and_then(|n| usize::try_from(n).ok()),
                _ => None,
            };
            at.and_then(|at| items.get(at)) == Some(value)
        }
        Value::Set(items) => key == value && items.contains(value),
        Value::Object(members) => members.get(key) == Some(value),
        _ => false,
    }))
}

/// What a call means that rewriting put into a module, by its last argument:
///
/// - `null`: what `some` goes through, which finds nothing in what is no collection;
/// - `false`, or an array of what is waited for: what `every` goes through, which is then undefined;
/// - an object: nothing, it names what has a value;
/// - `"="`: what it is given;
/// - another text: whether the two values in the first argument are in this order.
///
/// Otherwise what the engine means by it.
pub(super) fn ours(args: &[Value]) -> Answer {
    let value = any(args, 0)?;
    let collection = matches!(value, Value::Array(_) | Value::Set(_) | Value::Object(_));
    Ok(match any(args, 1)? {
        Value::Null | Value::Bool(false) | Value::Array(_) if collection => value.clone(),
        Value::Null => Value::new_array(),
        Value::Bool(false) | Value::Array(_) => Value::Undefined,
        Value::Object(_) => Value::from(true),
        Value::String(sign) if sign.as_ref() == "=" => value.clone(),
        Value::String(sign) => return ordered(array(args, 0)?, sign),
        _ => return engines("__builtin_sets.union", args),
    })
}

fn ordered(pair: &regorus::value::Array, sign: &str) -> Answer {
    let (Some(one), Some(other)) = (pair.first(), pair.get(1)) else {
        return wrong("takes two values");
    };
    let Some(order) = guarded::in_opas_order(one, other) else {
        return spent("compares more than there is time for");
    };
    Ok(Value::from(match sign {
        "<" => order.is_lt(),
        "<=" => order.is_le(),
        ">" => order.is_gt(),
        _ => order.is_ge(),
    }))
}

pub(super) fn now(_: &[Value]) -> Answer {
    Ok(Value::from(MOMENT.get().now_ns))
}

/// The same for the same request, key and purpose.
fn derived(purpose: &str, key: &str) -> [u8; 32] {
    let mut context = digest::Context::new(&digest::SHA256);
    for part in [purpose.as_bytes(), &MOMENT.get().request_id, key.as_bytes()] {
        context.update(&part.len().to_be_bytes());
        context.update(part);
    }
    let mut bytes = [0; 32];
    for (byte, made) in bytes.iter_mut().zip(context.finish().as_ref()) {
        *byte = *made;
    }
    bytes
}

pub(super) fn intn(args: &[Value]) -> Answer {
    let (key, below) = (text(args, 0)?, integer(args, 1)?);
    let below = u128::from(below.unsigned_abs());
    if below == 0 {
        return Ok(Value::from(0u64));
    }
    let bytes = derived("intn", &format!("{below} {key}"));
    let drawn = bytes
        .iter()
        .take(16)
        .fold(0u128, |n, byte| (n << 8) | u128::from(*byte));
    let number = u64::try_from(drawn % below).or_else(|_| wrong("takes a smaller number"))?;
    Ok(Value::from(number))
}

pub(super) fn uuid(args: &[Value]) -> Answer {
    let bytes = derived("uuid", text(args, 0)?);
    let mut hex: Vec<u8> = bytes
        .iter()
        .take(16)
        .flat_map(|byte| format!("{byte:02x}").into_bytes())
        .collect();
    // RFC 9562 section 5.4: version 4, variant 8 to b.
    if let Some(version) = hex.get_mut(12) {
        *version = b'4';
    }
    if let Some(variant) = hex.get_mut(16) {
        *variant = match *variant {
            b'0' | b'4' | b'8' | b'c' => b'8',
            b'1' | b'5' | b'9' | b'd' => b'9',
            b'2' | b'6' | b'a' | b'e' => b'a',
            _ => b'b',
        };
    }
    let text: String = hex.iter().map(|b| char::from(*b)).collect();
    let part = |from: usize, to: usize| text.get(from..to).unwrap_or("");
    Ok(Value::from(format!(
        "{}-{}-{}-{}-{}",
        part(0, 8),
        part(8, 12),
        part(12, 16),
        part(16, 20),
        part(20, 32)
    )))
}

pub(super) fn trace(args: &[Value]) -> Answer {
    text(args, 0)?;
    Ok(Value::from(true))
}

/// Most members of what a patch makes: each operation that copies can copy all into itself.
const MAX_PATCHED: usize = 100_000;

/// Most steps of a place in a patch: each operation makes a value at most so much deeper, and the
/// engine walks values on its stack.
const MAX_PATCH_STEPS: usize = 64;
/// Deepest value that is patched.
const MAX_PATCHED_DEPTH: usize = 256;

pub(super) fn patch(args: &[Value]) -> Answer {
    for operation in array(args, 1)?.iter() {
        for name in ["path", "from"] {
            let steps = match document::member(operation, name) {
                Some(Value::String(path)) => path.split('/').count(),
                Some(Value::Array(path)) => path.len(),
                _ => 0,
            };
            if steps > MAX_PATCH_STEPS {
                return spent(format!(
                    "was given a place of more than {MAX_PATCH_STEPS} steps"
                ));
            }
        }
    }
    if args.iter().any(|arg| deeper(arg, MAX_PATCHED_DEPTH)) {
        return spent(format!(
            "was given values nested deeper than {MAX_PATCHED_DEPTH}"
        ));
    }
    let copies = array(args, 1)?
        .iter()
        .filter(|operation| {
            let name = document::member(operation, "op").and_then(document::text);
            name.is_none_or(|name| **name == *"copy")
        })
        .count();
    let doubled = 1usize.checked_shl(u32::try_from(copies).unwrap_or(u32::MAX));
    let mut left = MAX_PATCHED / doubled.unwrap_or(usize::MAX).max(1);
    for arg in args {
        if counted(arg, &mut left).is_none() {
            return spent(format!("may make more than {MAX_PATCHED} members"));
        }
    }
    match engines("json.patch", args)? {
        // The engine's word for an operation that does not fit, which OPA calls an error.
        Value::Undefined => wrong("was given a patch that does not fit"),
        patched => Ok(patched),
    }
}

fn deeper(value: &Value, most: usize) -> bool {
    let Some(rest) = most.checked_sub(1) else {
        return true;
    };
    match value {
        Value::Array(items) => items.iter().any(|item| deeper(item, rest)),
        Value::Set(items) => items.iter().any(|item| deeper(item, rest)),
        Value::Object(members) => members.iter().any(|(_, item)| deeper(item, rest)),
        _ => false,
    }
}

fn counted(value: &Value, left: &mut usize) -> Option<()> {
    *left = left.checked_sub(1)?;
    match value {
        Value::Array(items) => items.iter().try_for_each(|item| counted(item, left)),
        Value::Set(items) => items.iter().try_for_each(|item| counted(item, left)),
        Value::Object(members) => members.iter().try_for_each(|(_, item)| counted(item, left)),
        _ => Some(()),
    }
}

/// The operators, for policies in which an error is undefined: the engine's own raise it.
pub(super) fn operate(args: &[Value], operator: char) -> Answer {
    let (one, other) = (any(args, 0)?, any(args, 1)?);
    let failed = || wrong("takes two numbers, or two sets");
    match (one, other) {
        (Value::Set(one), Value::Set(other)) => match operator {
            '-' => Ok(Value::from(one.difference(other))),
            '&' => Ok(Value::from(one.intersection(other))),
            '|' => Ok(Value::from(one.union(other))),
            _ => failed(),
        },
        (Value::Number(one), Value::Number(other)) => {
            let zero = Value::from(other.clone()) == Value::from(0u64);
            let result = match operator {
                '+' => one.add(other),
                '-' => one.sub(other),
                '*' => one.mul(other),
                '/' | '%' if zero => return wrong("divides by zero"),
                '/' => one.clone().divide(other),
                '%' if !one.is_integer() || !other.is_integer() => {
                    return wrong("takes integers for a remainder");
                }
                '%' => one.clone().modulo(other),
                _ => return failed(),
            };
            result.map(Value::from).or_else(|_| failed())
        }
        _ => failed(),
    }
}
