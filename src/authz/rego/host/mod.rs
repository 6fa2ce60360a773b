//! Functions that a policy may call: what regorus lacks, with OPA's semantics, and bounded stand-ins
//! for those of its own whose work has no bound or whose answer is not OPA's.
//!
//! The interpreter is given them as extensions, which go before its builtins of the same name; the
//! bytecode machine takes [`Host::machine`] in the place of what it resolved. No function looks at
//! the clock that stops an evaluation, so each bounds its own work: what is larger than a bound fails
//! as *spent*, and that is a denial whatever a rule makes of the failure.

#![expect(
    clippy::wildcard_enum_match_arm,
    reason = "a function takes a few kinds of value and treats all others alike"
)]

mod args;
mod crypto;
mod general;
mod graph;
mod jwt;
mod net;
mod table;
#[cfg(test)]
mod tests;
mod text;

use std::cell::{Cell, RefCell};

use regorus::unstable::{BUILTINS, Expr, Ref, Span};
use regorus::{Engine, LimitError, Value};

pub(in crate::authz) use table::HOSTS;

pub(in crate::authz) use crate::authz::config::BuiltinErrors as Errors;

/// Most elements of what a function makes, or goes through more than once.
pub(in crate::authz) const MAX_ELEMENTS: usize = 10_000;
/// Longest text that a function makes, bytes.
pub(in crate::authz) const MAX_TEXT: usize = 1024 * 1024;
/// Longest regular expression or glob, bytes.
pub(in crate::authz) const MAX_PATTERN: usize = 1024;
/// Longest text that a pattern is tried on, bytes.
pub(in crate::authz) const MAX_SUBJECT: usize = 64 * 1024;

/// Why a function gave no answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::authz) enum Failed {
    /// What OPA calls a builtin error. Names no value of the request.
    Error(String),
    /// A bound was passed: a denial, always.
    Spent(String),
}

impl Failed {
    pub(in crate::authz) fn text(&self) -> &str {
        match self {
            Self::Error(text) | Self::Spent(text) => text,
        }
    }
}

pub(in crate::authz) type Answer = Result<Value, Failed>;

/// What an answer depends on beside the arguments.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::authz) enum Purity {
    /// On nothing.
    Pure,
    /// On the request's clock reading.
    Time,
    /// On the request's id: another answer for each request.
    PerRequest,
    /// Of use in tools only; live it does nothing.
    TestOnly,
}

/// A function of the host.
#[derive(Debug)]
pub(in crate::authz) struct Host {
    pub(in crate::authz) name: &'static str,
    pub(in crate::authz) arity: u8,
    pub(in crate::authz) purity: Purity,
    pub(in crate::authz) call: fn(&[Value]) -> Answer,
    /// The same for the bytecode machine: every failure is an error that no rule swallows.
    pub(in crate::authz) machine: Machine,
}

/// How the bytecode machine calls a builtin.
pub(in crate::authz) type Machine =
    fn(&Span, &[Ref<Expr>], &[Value], bool) -> anyhow::Result<Value>;

/// The function of this name.
pub(in crate::authz) fn find(name: &str) -> Option<&'static Host> {
    HOSTS
        .binary_search_by(|host| host.name.cmp(name))
        .ok()
        .and_then(|at| HOSTS.get(at))
}

/// How many arguments a function takes that policies may call: of the host or of the engine.
pub(in crate::authz) fn arity(name: &str) -> Option<u8> {
    match find(name) {
        Some(host) => Some(host.arity),
        None => BUILTINS.get(name).map(|(_, arity)| *arity),
    }
}

/// Gives an engine these functions.
pub(in crate::authz) fn install(engine: &mut Engine, errors: Errors) {
    for host in HOSTS {
        let extension = move |args: Vec<Value>| match answer(host.call, &args) {
            Ok(value) => Ok(value),
            Err(Failed::Error(_)) if errors == Errors::Undefined => Ok(Value::Undefined),
            Err(failed) => Err(anyhow::anyhow!("`{}` {}", host.name, failed.text())),
        };
        // Each name is given once.
        let _ = engine.add_extension(host.name.to_owned(), host.arity, Box::new(extension));
    }
}

fn answer(call: fn(&[Value]) -> Answer, args: &[Value]) -> Answer {
    let answer = call(args);
    if let Err(Failed::Spent(why)) = &answer {
        SPENT.with(|spent| spent.replace(Some(why.clone())));
    }
    answer
}

/// What the machine makes of an answer.
fn machine(call: fn(&[Value]) -> Answer, args: &[Value]) -> anyhow::Result<Value> {
    match answer(call, args) {
        Ok(Value::Undefined) | Err(_) => {
            Err(LimitError::RegexSizeLimitExceeded { limit: 0 }.into())
        }
        Ok(value) => Ok(value),
    }
}

/// What of an evaluation its functions may know.
#[derive(Debug, Clone, Copy, Default)]
pub(in crate::authz) struct Moment {
    /// The request's one clock reading, nanoseconds since 1970.
    pub(in crate::authz) now_ns: u64,
    /// The request's id: what is random is derived from it.
    pub(in crate::authz) request_id: [u8; 32],
}

thread_local! {
    static MOMENT: Cell<Moment> = const {
        Cell::new(Moment {
            now_ns: 0,
            request_id: [0; 32],
        })
    };
    static SPENT: RefCell<Option<String>> = const { RefCell::new(None) };
}

/// Begins an evaluation on this thread: nothing is spent, and this is its moment.
pub(in crate::authz) fn begin(moment: Moment) {
    SPENT.with(|spent| spent.replace(None));
    MOMENT.set(moment);
}

/// Which bound was passed since [`begin`], if one was: the outcome is then *budget*, even where a
/// rule made something of the failure.
pub(in crate::authz) fn spent() -> Option<String> {
    SPENT.with(|spent| spent.borrow_mut().take())
}

/// Asks the engine's own builtin of this name.
fn engines(name: &str, args: &[Value]) -> Answer {
    let Some((function, arity)) = BUILTINS.get(name) else {
        return Err(Failed::Error("is not there".to_owned()));
    };
    asked(*function, *arity, args)
}

fn asked(function: Machine, arity: u8, args: &[Value]) -> Answer {
    let answer = args::with_places(usize::from(arity).max(args.len()), |span, places| {
        function(span, places, args, true)
    })?;
    answer.map_err(|error| {
        if error.downcast_ref::<LimitError>().is_some() {
            Failed::Spent(super::detail(&error.to_string()))
        } else {
            Failed::Error(told(&error.to_string()))
        }
    })
}

/// The last line of an engine's message, which names a place that is not the policy's.
fn told(text: &str) -> String {
    let last = text.lines().last().unwrap_or("failed");
    super::detail(last.trim_start_matches("error: "))
}
