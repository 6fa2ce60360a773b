//! Arguments taken apart, and answers put together.

use std::collections::BTreeMap;

use regorus::Value;
use regorus::unstable::{Expr, Ref, Source, Span};

use super::{Answer, Failed, MAX_ELEMENTS, MAX_TEXT};

/// An error as OPA calls it.
pub(super) fn wrong<T>(why: impl Into<String>) -> Result<T, Failed> {
    Err(Failed::Error(why.into()))
}

/// A bound that was passed.
pub(super) fn spent<T>(why: impl Into<String>) -> Result<T, Failed> {
    Err(Failed::Spent(why.into()))
}

fn place(index: usize) -> &'static str {
    ["first", "second", "third", "fourth"]
        .get(index)
        .copied()
        .unwrap_or("last")
}

fn expected<T>(index: usize, what: &str) -> Result<T, Failed> {
    wrong(format!("takes {what} as its {} argument", place(index)))
}

pub(super) fn any(args: &[Value], index: usize) -> Result<&Value, Failed> {
    match args.get(index) {
        Some(value) => Ok(value),
        None => expected(index, "a value"),
    }
}

pub(super) fn text(args: &[Value], index: usize) -> Result<&str, Failed> {
    match args.get(index) {
        Some(Value::String(text)) => Ok(text.as_ref()),
        _ => expected(index, "a text"),
    }
}

pub(super) fn object(args: &[Value], index: usize) -> Result<&regorus::value::Object, Failed> {
    match args.get(index).map(Value::as_object) {
        Some(Ok(object)) => Ok(object),
        _ => expected(index, "an object"),
    }
}

pub(super) fn array(args: &[Value], index: usize) -> Result<&regorus::value::Array, Failed> {
    match args.get(index).map(Value::as_array) {
        Some(Ok(array)) => Ok(array),
        _ => expected(index, "an array"),
    }
}

/// A number without a fraction that fits.
pub(super) fn integer(args: &[Value], index: usize) -> Result<i64, Failed> {
    match args.get(index) {
        Some(Value::Number(number)) => match number.as_i64() {
            Some(number) => Ok(number),
            None => expected(index, "an integer"),
        },
        _ => expected(index, "an integer"),
    }
}

/// The elements of an array or a set.
pub(super) fn elements(args: &[Value], index: usize) -> Result<Vec<&Value>, Failed> {
    match args.get(index) {
        Some(Value::Array(items)) => Ok(items.iter().collect()),
        Some(Value::Set(items)) => Ok(items.iter().collect()),
        _ => expected(index, "an array or a set"),
    }
}

/// As many as a function may go through.
pub(super) fn few(count: usize) -> Result<(), Failed> {
    if count > MAX_ELEMENTS {
        return spent(format!(
            "goes through {count} elements, at most {MAX_ELEMENTS} may be"
        ));
    }
    Ok(())
}

/// As long as a text may be that a function makes or reads.
pub(super) fn short(length: usize, most: usize) -> Result<(), Failed> {
    if length > most {
        return spent(format!(
            "was given or makes {length} bytes, at most {most} may be"
        ));
    }
    Ok(())
}

pub(super) fn string(text: &str) -> Value {
    Value::from(text)
}

/// A text that a function made.
pub(super) fn made(text: String) -> Answer {
    short(text.len(), MAX_TEXT)?;
    Ok(Value::from(text))
}

pub(super) fn record<const N: usize>(members: [(&str, Value); N]) -> Value {
    let members: BTreeMap<Value, Value> = members
        .into_iter()
        .map(|(name, value)| (Value::from(name), value))
        .collect();
    Value::from(members)
}

/// A call of the engine's own builtins wants to know where its arguments stand.
pub(super) fn with_places<T>(
    count: usize,
    call: impl FnOnce(&Span, &[Ref<Expr>]) -> T,
) -> Result<T, Failed> {
    thread_local! {
        static PLACES: Option<(Span, Vec<Ref<Expr>>)> = places();
    }
    PLACES.with(|places| match places {
        Some((span, places)) => Ok(call(span, places.get(..count).unwrap_or(places))),
        None => wrong("cannot be called"),
    })
}

fn places() -> Option<(Span, Vec<Ref<Expr>>)> {
    let source = Source::from_contents(String::new(), "call".to_owned()).ok()?;
    let span = Span {
        source,
        line: 1,
        col: 1,
        start: 0,
        end: 4,
    };
    let place = || {
        Ref::new(Expr::Null {
            span: span.clone(),
            value: Value::Null,
            eidx: 0,
        })
    };
    let places = (0..8).map(|_| place()).collect();
    Some((span, places))
}
