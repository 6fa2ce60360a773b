//! Bodies that can never hold, because their statements contradict each other.

#![expect(
    clippy::wildcard_enum_match_arm,
    reason = "what is not named is not known, and nothing is said of it"
)]

use std::collections::{BTreeMap, BTreeSet};

use regorus::Value;
use regorus::unstable::{AssignOp, BoolOp, Expr, Literal, Query, Rule};

use super::walk::short;
use super::world::{World, bodies, query};
use super::{Finding, Weight};
use crate::authz::source::syntax::{literal, place};

/// What the statements so far leave of one reference.
#[derive(Default)]
struct Left {
    /// The only values it can have, and the line that says so.
    values: Option<(BTreeSet<Value>, usize)>,
    not: Vec<(Value, usize)>,
    least: Option<(Value, bool, usize)>,
    most: Option<(Value, bool, usize)>,
}

enum Says {
    OneOf(BTreeSet<Value>),
    Not(Value),
    AtLeast(Value, bool),
    AtMost(Value, bool),
}

pub(super) fn holds(world: &World<'_, '_>, found: &mut Vec<Finding>) {
    for unit in world.units.iter().filter(|unit| !unit.is_test) {
        for rule in &unit.module.policy {
            if matches!(&**rule, Rule::Default { .. }) {
                continue;
            }
            for (body, _) in bodies(rule) {
                if let Some(query) = query(body) {
                    of_query(query, &unit.file, found);
                }
            }
        }
    }
}

fn of_query(query: &Query, file: &str, found: &mut Vec<Finding>) {
    let mut known: BTreeMap<String, Left> = BTreeMap::new();
    for statement in &query.stmts {
        if !statement.with_mods.is_empty() {
            continue;
        }
        let (expr, negated) = match &statement.literal {
            Literal::Expr { expr, .. } => (expr, false),
            Literal::NotExpr { expr, .. } => (expr, true),
            Literal::SomeVars { .. } | Literal::SomeIn { .. } | Literal::Every { .. } => continue,
        };
        let mut tell = |message: String, help: &str| {
            found.push(Finding {
                rule: "never-holds",
                weight: Weight::Error,
                file: file.to_owned(),
                at: place(expr.span()),
                message,
                help: help.to_owned(),
                missing: None,
            });
        };
        if !negated && literal(expr) == Some(Value::from(false)) {
            tell(
                "this body never holds: it says `false`".to_owned(),
                "remove the body, or what says so",
            );
            return;
        }
        let Some((subject, says)) = said(expr, negated) else {
            continue;
        };
        let line = place(expr.span()).0;
        if let Err(other) = known.entry(subject.clone()).or_default().learn(says, line) {
            tell(
                format!("this body never holds: line {other} wants another `{subject}`"),
                "remove one of them, or put them into bodies of their own",
            );
            return;
        }
    }
}

/// A reference that has one value in a body: no call, and nothing that takes any value.
fn subject(expr: &Expr) -> Option<String> {
    let is_reference = matches!(
        expr,
        Expr::Var { .. } | Expr::RefDot { .. } | Expr::RefBrack { .. }
    );
    let text = short(expr);
    let wild = text
        .split(|c: char| !c.is_alphanumeric() && c != '_')
        .any(|word| word == "_");
    (is_reference && !wild && !text.contains('(') && !text.contains('…')).then_some(text)
}

fn said(expr: &Expr, negated: bool) -> Option<(String, Says)> {
    let one = |value| BTreeSet::from([value]);
    match expr {
        Expr::BoolExpr { op, lhs, rhs, .. } => {
            let (subject, value, turned) = match (subject(lhs), literal(rhs)) {
                (Some(subject), Some(value)) => (subject, value, false),
                _ => (subject(rhs)?, literal(lhs)?, true),
            };
            let number = matches!(value, Value::Number(_));
            let says = match (op, negated) {
                (BoolOp::Eq, false) => Says::OneOf(one(value)),
                (BoolOp::Ne, false) | (BoolOp::Eq, true) => Says::Not(value),
                (BoolOp::Lt | BoolOp::Le, false) if number => {
                    let equal = matches!(op, BoolOp::Le);
                    if turned {
                        Says::AtLeast(value, equal)
                    } else {
                        Says::AtMost(value, equal)
                    }
                }
                (BoolOp::Gt | BoolOp::Ge, false) if number => {
                    let equal = matches!(op, BoolOp::Ge);
                    if turned {
                        Says::AtMost(value, equal)
                    } else {
                        Says::AtLeast(value, equal)
                    }
                }
                _ => return None,
            };
            Some((subject, says))
        }
        Expr::AssignExpr { op, lhs, rhs, .. } if !negated => {
            let value = literal(rhs)?;
            match (op, &**lhs) {
                (AssignOp::ColEq, Expr::Var { .. }) | (AssignOp::Eq, _) => {
                    Some((subject(lhs)?, Says::OneOf(one(value))))
                }
                (AssignOp::ColEq, _) => None,
            }
        }
        Expr::Membership {
            key: None,
            value,
            collection,
            ..
        } if !negated => {
            let (Expr::Set { items, .. } | Expr::Array { items, .. }) = &**collection else {
                return None;
            };
            let values: Option<BTreeSet<Value>> = items.iter().map(|item| literal(item)).collect();
            Some((subject(value)?, Says::OneOf(values?)))
        }
        _ => None,
    }
}

impl Left {
    /// Takes a statement in; `Err` with the line of another that leaves nothing.
    fn learn(&mut self, says: Says, line: usize) -> Result<(), usize> {
        match says {
            Says::OneOf(values) => {
                let before = self.values.take();
                let (left, from) = match before {
                    None => (values, line),
                    Some((known, from)) => {
                        let left: BTreeSet<Value> = known.intersection(&values).cloned().collect();
                        if left.is_empty() {
                            return Err(from);
                        }
                        (left, from)
                    }
                };
                self.values = Some((left, from));
            }
            Says::Not(value) => self.not.push((value, line)),
            Says::AtLeast(value, equal) => self.least = Some((value, equal, line)),
            Says::AtMost(value, equal) => self.most = Some((value, equal, line)),
        }
        let over = |value: &Value, (least, equal, _): &(Value, bool, usize)| {
            value > least || (*equal && value == least)
        };
        let under = |value: &Value, (most, equal, _): &(Value, bool, usize)| {
            value < most || (*equal && value == most)
        };
        if let Some((values, from)) = &self.values {
            let fits = |value: &&Value| {
                !self.not.iter().any(|(not, _)| not == *value)
                    && self.least.as_ref().is_none_or(|least| over(value, least))
                    && self.most.as_ref().is_none_or(|most| under(value, most))
            };
            if !values.iter().any(|value| fits(&value)) {
                let others = self.not.iter().map(|(_, line)| *line);
                let bounds = [&self.least, &self.most].into_iter().flatten();
                let other = others
                    .chain(bounds.map(|(_, _, line)| *line))
                    .chain([*from])
                    .find(|other| *other != line);
                return Err(other.unwrap_or(line));
            }
        }
        if let (Some(least), Some(most)) = (&self.least, &self.most) {
            let met = least.0 < most.0 || (least.0 == most.0 && least.1 && most.1);
            if !met {
                return Err(if least.2 == line { most.2 } else { least.2 });
            }
        }
        Ok(())
    }
}
