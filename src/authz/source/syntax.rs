//! The engine's syntax tree, read: references cut into parts, heads, literals.

#![expect(
    clippy::wildcard_enum_match_arm,
    reason = "the syntax tree is searched for a few forms; all others are treated alike"
)]

use std::collections::BTreeMap;

use regorus::Value;
use regorus::unstable::{Expr, Rule, RuleAssign, RuleHead, Span};

use crate::authz::rego::host;
use crate::authz::source::hazard;

/// A reference cut into its parts: `data.a["b"][x].c` is `data`, `a`, `b`, dynamic, `c`.
pub(in crate::authz) struct Chain<'e> {
    pub(in crate::authz) base: &'e Expr,
    pub(in crate::authz) parts: Vec<Part<'e>>,
}

/// One step of a reference.
pub(in crate::authz) enum Part<'e> {
    Name(String),
    Dynamic(&'e Expr),
}

/// Cuts a reference into its parts.
pub(in crate::authz) fn chain(expr: &Expr) -> Chain<'_> {
    let mut parts = Vec::new();
    let mut base = expr;
    loop {
        match base {
            Expr::RefDot { refr, field, .. } => {
                parts.push(Part::Name(field.0.text().to_owned()));
                base = refr;
            }
            Expr::RefBrack { refr, index, .. } => {
                parts.push(match hazard::string(Some(index)) {
                    Some(name) => Part::Name(name.to_owned()),
                    None => Part::Dynamic(index),
                });
                base = refr;
            }
            _ => break,
        }
    }
    parts.reverse();
    Chain { base, parts }
}

impl Chain<'_> {
    /// The base's name and the names up to the first part that is no literal.
    pub(in crate::authz) fn prefix(&self) -> Option<Vec<String>> {
        let Expr::Var { span, .. } = self.base else {
            return None;
        };
        let mut path = vec![span.text().to_owned()];
        for part in &self.parts {
            match part {
                Part::Name(name) => path.push(name.clone()),
                Part::Dynamic(_) => break,
            }
        }
        Some(path)
    }
}

/// What a rule's head names.
pub(in crate::authz) fn head(rule: &Rule) -> &Expr {
    match rule {
        Rule::Spec { head, .. } => match head {
            RuleHead::Compr { refr, .. }
            | RuleHead::Set { refr, .. }
            | RuleHead::Func { refr, .. } => refr,
        },
        Rule::Default { refr, .. } => refr,
    }
}

/// How many arguments a rule takes; `None` for rules that are no functions.
pub(in crate::authz) fn arity(rule: &Rule) -> Option<usize> {
    match rule {
        Rule::Spec {
            head: RuleHead::Func { args, .. },
            ..
        } => Some(args.len()),
        Rule::Default { args, .. } if !args.is_empty() => Some(args.len()),
        Rule::Spec { .. } | Rule::Default { .. } => None,
    }
}

/// Line and column.
pub(in crate::authz) fn place(span: &Span) -> (usize, usize) {
    (
        usize::try_from(span.line).unwrap_or(0),
        usize::try_from(span.col).unwrap_or(0),
    )
}

/// The value that a head gives.
pub(in crate::authz) fn head_assign(head: &RuleHead) -> Option<&RuleAssign> {
    match head {
        RuleHead::Compr { assign, .. } | RuleHead::Func { assign, .. } => assign.as_ref(),
        RuleHead::Set { .. } => None,
    }
}

/// The builtin that an expression names.
pub(in crate::authz) fn builtin_name(expr: &Expr) -> Option<String> {
    let name = chain(expr).prefix()?.join(".");
    host::arity(&name).is_some().then_some(name)
}

/// The value of an expression that is made of literals alone.
pub(in crate::authz) fn literal(expr: &Expr) -> Option<Value> {
    match expr {
        Expr::String { value, .. } | Expr::RawString { value, .. } | Expr::Number { value, .. } => {
            Some(value.clone())
        }
        Expr::Bool { value, .. } => Some(value.clone()),
        Expr::Null { .. } => Some(Value::Null),
        Expr::Array { items, .. } => items
            .iter()
            .map(|item| literal(item))
            .collect::<Option<Vec<_>>>()
            .map(Value::from),
        Expr::Object { fields, .. } => fields
            .iter()
            .map(|(_, key, value)| Some((literal(key)?, literal(value)?)))
            .collect::<Option<BTreeMap<_, _>>>()
            .map(Value::from),
        _ => None,
    }
}
