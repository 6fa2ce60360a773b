//! What the rules of all modules are called, and which are sets or objects by their form.

#![expect(
    clippy::wildcard_enum_match_arm,
    reason = "the syntax tree is searched for a few forms; all others are treated alike"
)]

use std::collections::BTreeMap;

use regorus::unstable::{Expr, Module, Rule, RuleHead};

use super::syntax::{self, Part, chain};

/// What a value is by its form.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::authz) enum Kind {
    Set,
    Object,
}

/// The names that rules of each package begin with, and what they are where their form tells.
pub(in crate::authz) type Names = BTreeMap<Vec<String>, BTreeMap<String, Option<Kind>>>;

/// Adds those of a module.
pub(in crate::authz) fn declare(module: &Module, names: &mut Names) {
    let package = chain(&module.package.refr).prefix().unwrap_or_default();
    let ours = names.entry(package).or_default();
    for rule in &module.policy {
        let head = chain(syntax::head(rule)).prefix();
        let Some(name) = head.and_then(|path| path.into_iter().next()) else {
            continue;
        };
        let kind = kind(rule);
        let known = ours.entry(name).or_insert(kind);
        if *known != kind {
            *known = None;
        }
    }
}

fn kind(rule: &Rule) -> Option<Kind> {
    let below = !chain(syntax::head(rule)).parts.is_empty();
    match rule {
        Rule::Default { value, .. } => literal(value),
        Rule::Spec {
            head: RuleHead::Func { .. },
            ..
        } => None,
        Rule::Spec { .. } if below => Some(Kind::Object),
        Rule::Spec {
            head: RuleHead::Set { .. },
            ..
        } => Some(Kind::Set),
        Rule::Spec { head, bodies, .. } => {
            let values = bodies.iter().filter_map(|body| body.assign.as_ref());
            let mut values = syntax::head_assign(head).into_iter().chain(values);
            let first = literal(&values.next()?.value)?;
            values
                .all(|value| literal(&value.value) == Some(first))
                .then_some(first)
        }
    }
}

/// What a literal, a comprehension or a union of sets is.
fn literal(expr: &Expr) -> Option<Kind> {
    match expr {
        Expr::Set { .. } | Expr::SetCompr { .. } | Expr::BinExpr { .. } => Some(Kind::Set),
        Expr::Object { .. } | Expr::ObjectCompr { .. } => Some(Kind::Object),
        _ => None,
    }
}

/// What an expression of a package is, if its form tells.
pub(super) fn of(expr: &Expr, package: &[String], names: &Names) -> Option<Kind> {
    let chain = chain(expr);
    if !matches!(chain.base, Expr::Var { .. }) {
        return literal(expr).filter(|_| chain.parts.is_empty());
    }
    let dynamic = |part: &Part<'_>| matches!(part, Part::Dynamic(_));
    if chain.parts.iter().any(dynamic) {
        return None;
    }
    let path = chain.prefix()?;
    let (package, name) = match path.as_slice() {
        [name] => (package, name),
        [data, package @ .., name] if data == "data" => (package, name),
        _ => return None,
    };
    *names.get(package)?.get(name)?
}

/// Whether this can be neither a set nor an object.
pub(super) fn neither(expr: &Expr) -> bool {
    matches!(
        expr,
        Expr::String { .. }
            | Expr::RawString { .. }
            | Expr::Number { .. }
            | Expr::Bool { .. }
            | Expr::Null { .. }
            | Expr::UnaryExpr { .. }
            | Expr::Array { .. }
            | Expr::ArrayCompr { .. }
    )
}
