//! The variables of a body: which it takes from around it, and which the engine has to be told of.

#![expect(
    clippy::wildcard_enum_match_arm,
    reason = "the syntax tree is searched for a few forms; all others are treated alike"
)]

use std::collections::BTreeSet;

use regorus::unstable::{AssignOp, Expr, Literal, LiteralStmt, Query};

use super::rewrite::parts;
use crate::authz::rego::host;
use crate::authz::source::syntax::{builtin_name, chain};

pub(super) type Names = BTreeSet<String>;

/// The variables that a body's own statements name; not those of the bodies within it.
pub(super) fn named(query: &Query) -> Names {
    fn collect(expr: &Expr, names: &mut Names) {
        if let Expr::Var { span, .. } = expr {
            names.insert(span.text().to_owned());
        }
        parts(expr, &mut |part| collect(part, names));
    }
    let mut names = Names::new();
    for statement in &query.stmts {
        if let Literal::SomeVars { vars, .. } = &statement.literal {
            names.extend(vars.iter().map(|name| name.text().to_owned()));
        }
        own(statement, &mut |expr| collect(expr, &mut names));
    }
    names
}

/// The variables that a body does not declare: with the `known`, and `rules` that are no variables,
/// whatever else it names.
pub(super) fn free(query: &Query, known: &Names, rules: &Names) -> Names {
    let mut search = Free {
        rules,
        found: Names::new(),
    };
    search.query(query, &[], known);
    search.found
}

/// Whether a body names one of these where the engine's planner asks whether it has a value: as a step
/// of a path, on a side of a `=`, or as the last argument of a call that may have one too many.
pub(super) fn asked_for(query: &Query, names: &Names) -> bool {
    let mut found = false;
    deep(query, &mut |expr| {
        found |= match expr {
            Expr::AssignExpr {
                op: AssignOp::Eq,
                lhs,
                rhs,
                ..
            } => pattern(lhs, names) || pattern(rhs, names),
            Expr::RefBrack { index, .. } => pattern(index, names),
            Expr::Call { fcn, params, .. } => {
                let name = chain(fcn).prefix().map(|name| name.join("."));
                let arity = name.and_then(|name| host::arity(&name)).map(usize::from);
                arity != Some(params.len())
                    && params.last().is_some_and(|last| pattern(last, names))
            }
            _ => false,
        };
    });
    found
}

/// The expressions that a statement is made of; the body of an `every` is none of them.
fn own(statement: &LiteralStmt, visit: &mut dyn FnMut(&Expr)) {
    match &statement.literal {
        Literal::SomeVars { .. } => {}
        Literal::SomeIn {
            key,
            value,
            collection,
            ..
        } => {
            for part in key.iter().chain([value, collection]) {
                visit(part);
            }
        }
        Literal::Expr { expr, .. } | Literal::NotExpr { expr, .. } => visit(expr),
        Literal::Every { domain, .. } => visit(domain),
    }
    for modifier in &statement.with_mods {
        // `with f as count` names no variable.
        if builtin_name(&modifier.r#as).is_none() {
            visit(&modifier.r#as);
        }
    }
}

/// Every expression of a body, and of the bodies within it.
fn deep(query: &Query, visit: &mut dyn FnMut(&Expr)) {
    for statement in &query.stmts {
        own(statement, &mut |expr| within(expr, visit));
        if let Literal::Every { query, .. } = &statement.literal {
            deep(query, visit);
        }
    }
}

/// An expression, and every expression within it.
pub(super) fn within(expr: &Expr, visit: &mut dyn FnMut(&Expr)) {
    visit(expr);
    match expr {
        Expr::ArrayCompr { term, query, .. } | Expr::SetCompr { term, query, .. } => {
            within(term, visit);
            deep(query, visit);
        }
        Expr::ObjectCompr {
            key, value, query, ..
        } => {
            within(key, visit);
            within(value, visit);
            deep(query, visit);
        }
        other => parts(other, &mut |part| within(part, visit)),
    }
}

/// Whether one of these names stands where a pattern would give it a value.
fn pattern(expr: &Expr, names: &Names) -> bool {
    let mut found = false;
    variables(expr, &mut |name| found |= names.contains(name));
    found
}

/// The variables of these patterns.
pub(super) fn of_patterns<'e>(patterns: impl Iterator<Item = &'e Expr>) -> Names {
    let mut names = Names::new();
    for pattern in patterns {
        variables(pattern, &mut |name| {
            names.insert(name.to_owned());
        });
    }
    names
}

/// The variables of a pattern.
fn variables(pattern: &Expr, visit: &mut dyn FnMut(&str)) {
    match pattern {
        Expr::Var { span, .. } => visit(span.text()),
        Expr::Array { items, .. } | Expr::Set { items, .. } => {
            for item in items {
                variables(item, visit);
            }
        }
        Expr::Object { fields, .. } => {
            for (_, _, value) in fields {
                variables(value, visit);
            }
        }
        _ => {}
    }
}

struct Free<'r> {
    rules: &'r Names,
    found: Names,
}

impl Free<'_> {
    fn query(&mut self, query: &Query, terms: &[&Expr], around: &Names) {
        let mut known = around.clone();
        for statement in &query.stmts {
            let mut declare = |pattern: &Expr| {
                variables(pattern, &mut |name| {
                    known.insert(name.to_owned());
                });
            };
            match &statement.literal {
                Literal::SomeVars { vars, .. } => {
                    known.extend(vars.iter().map(|name| name.text().to_owned()));
                }
                Literal::SomeIn { key, value, .. } => {
                    for part in key.iter().chain([value]) {
                        declare(part);
                    }
                }
                Literal::Expr { expr, .. } => {
                    if let Expr::AssignExpr {
                        op: AssignOp::ColEq,
                        lhs,
                        ..
                    } = expr.as_ref()
                    {
                        declare(lhs);
                    }
                }
                _ => {}
            }
        }
        for statement in &query.stmts {
            own(statement, &mut |expr| self.expr(expr, &known));
            if let Literal::Every {
                key, value, query, ..
            } = &statement.literal
            {
                let mut inner = known.clone();
                let names = key.iter().chain([value]);
                inner.extend(names.map(|name| name.text().to_owned()));
                self.query(query, &[], &inner);
            }
        }
        for term in terms {
            self.expr(term, &known);
        }
    }

    fn expr(&mut self, expr: &Expr, known: &Names) {
        match expr {
            Expr::Var { span, .. } => {
                let name = span.text();
                if name != "_" && !known.contains(name) && !self.rules.contains(name) {
                    self.found.insert(name.to_owned());
                }
            }
            Expr::ArrayCompr { term, query, .. } | Expr::SetCompr { term, query, .. } => {
                self.query(query, &[term], known);
            }
            Expr::ObjectCompr {
                key, value, query, ..
            } => self.query(query, &[key, value], known),
            other => parts(other, &mut |part| self.expr(part, known)),
        }
    }
}
