//! What the entry point reaches, and with which sign: a rule whose no makes for a yes is a denial.

use std::collections::{BTreeMap, BTreeSet};

use regorus::unstable::{Expr, Literal, Query, Rule};

use super::walk::{Walked, is_no, says_yes};
use super::world::{World, base_span, bodies, query};
use super::{Finding, Weight};
use crate::authz::source::syntax::{head, literal, place};

pub(super) fn reach(world: &World<'_, '_>, walked: &Walked, found: &mut Vec<Finding>) {
    let entrypoints: Vec<Vec<String>> = world
        .known
        .entrypoints
        .iter()
        .map(|name| name.split('.').map(str::to_owned).collect())
        .collect();
    if !entrypoints.is_empty() {
        unreachable(world, walked, &entrypoints, found);
    }
    for entrypoint in &entrypoints {
        answers(world, entrypoint, found);
    }
    fails_open(world, walked, &entrypoints, found);
}

fn unreachable(
    world: &World<'_, '_>,
    walked: &Walked,
    entrypoints: &[Vec<String>],
    found: &mut Vec<Finding>,
) {
    let mut reads: BTreeMap<&Vec<String>, Vec<&Vec<String>>> = BTreeMap::new();
    for edge in &walked.edges {
        reads.entry(&edge.from).or_default().push(&edge.to);
    }
    let is_test = |path: &Vec<String>| {
        let last = path.last().map_or("", String::as_str);
        last.starts_with("test_") || last.starts_with("todo_test_")
    };
    let mut open: Vec<&Vec<String>> = world
        .rules
        .keys()
        .filter(|path| {
            is_test(path)
                || entrypoints
                    .iter()
                    .any(|entry| path.starts_with(entry) || entry.starts_with(path))
        })
        .collect();
    let mut seen: BTreeSet<&Vec<String>> = BTreeSet::new();
    while let Some(path) = open.pop() {
        if seen.insert(path) {
            open.extend(reads.get(path).into_iter().flatten());
        }
    }
    for (path, definitions) in &world.rules {
        let Some(first) = definitions.first() else {
            continue;
        };
        let Some(unit) = world.units.get(first.unit) else {
            continue;
        };
        if seen.contains(path) || unit.is_test {
            continue;
        }
        found.push(Finding {
            rule: "unreachable",
            weight: Weight::Warning,
            file: unit.file.clone(),
            at: place(base_span(head(first.rule))),
            message: format!(
                "nothing asks for `{}`: neither an entry point nor a test leads to it",
                path.join(".")
            ),
            help: "remove it, or use it where it was meant to count".to_owned(),
            missing: None,
        });
    }
}

/// Whether the entry point always answers, and not always with yes.
fn answers(world: &World<'_, '_>, entrypoint: &[String], found: &mut Vec<Finding>) {
    let Some(definitions) = world.rules.get(entrypoint) else {
        return;
    };
    let mut sure = false;
    for definition in definitions {
        let Some(unit) = world.units.get(definition.unit) else {
            continue;
        };
        let mut always = |at, message: &str, help: &str| {
            found.push(Finding {
                rule: "always-allows",
                weight: Weight::Error,
                file: unit.file.clone(),
                at,
                message: message.to_owned(),
                help: help.to_owned(),
                missing: None,
            });
        };
        match definition.rule {
            Rule::Default { value, .. } => {
                sure = true;
                if says_yes(value) {
                    always(
                        place(value.span()),
                        "what no rule speaks of is allowed",
                        "let the default be a no, and say in rules what is allowed",
                    );
                }
            }
            Rule::Spec { head, .. } => {
                for (body, value) in bodies(definition.rule) {
                    let empty = query(body).is_none_or(always_holds);
                    sure |= empty;
                    let yes = value.is_none_or(says_yes) && !is_no(value);
                    let alone = !body.is_some_and(|body| body.is_else);
                    let is_rule = matches!(head, regorus::unstable::RuleHead::Compr { .. });
                    if empty && yes && alone && is_rule {
                        always(
                            place(base_span(super::super::syntax::head(definition.rule))),
                            "the answer is yes, whatever is asked",
                            "give it a body that says when; a route that is open to all it authenticates says `policy: public`",
                        );
                    }
                }
            }
        }
    }
    if !sure
        && let Some(first) = definitions.first()
        && let Some(unit) = world.units.get(first.unit)
    {
        let name = entrypoint.last().map_or("", String::as_str);
        found.push(Finding {
            rule: "no-default",
            weight: Weight::Warning,
            file: unit.file.clone(),
            at: place(base_span(head(first.rule))),
            message: format!(
                "`{name}` has no answer where none of its bodies holds: such requests are denied as `policy.undefined`, without a reason of yours"
            ),
            help: format!(
                "say it: `default {name} := false`, or `{{\"allow\": false, \"reason\": \"…\"}}`"
            ),
            missing: None,
        });
    }
}

fn always_holds(query: &Query) -> bool {
    query
        .stmts
        .iter()
        .all(|statement| match &statement.literal {
            Literal::Expr { expr, .. } => {
                matches!(&**expr, Expr::Bool { .. })
                    && literal(expr) == Some(regorus::Value::from(true))
            }
            Literal::SomeVars { .. }
            | Literal::SomeIn { .. }
            | Literal::NotExpr { .. }
            | Literal::Every { .. } => false,
        })
}

/// A name that says of a rule what it is for, where no entry point is known.
fn is_called_denial(path: &[String]) -> bool {
    let name = path.last().map_or("", String::as_str);
    [
        "deny",
        "denied",
        "denials",
        "violation",
        "violations",
        "forbidden",
        "blocked",
    ]
    .iter()
    .any(|word| name == *word || name.starts_with(&format!("{word}_")))
}

fn fails_open(
    world: &World<'_, '_>,
    walked: &Walked,
    entrypoints: &[Vec<String>],
    found: &mut Vec<Finding>,
) {
    let mut reads: BTreeMap<&Vec<String>, Vec<(&Vec<String>, bool)>> = BTreeMap::new();
    for edge in &walked.edges {
        reads
            .entry(&edge.from)
            .or_default()
            .push((&edge.to, edge.flips));
    }
    // With the sign: whether a no of the rule makes for a yes of the entry point.
    let mut open: Vec<(&Vec<String>, bool)> = if entrypoints.is_empty() {
        let denials = world.rules.keys().filter(|path| is_called_denial(path));
        denials.map(|path| (path, true)).collect()
    } else {
        let entries = world.rules.keys().filter(|path| entrypoints.contains(path));
        entries.map(|path| (path, false)).collect()
    };
    let mut seen: BTreeSet<(&Vec<String>, bool)> = BTreeSet::new();
    while let Some((path, denies)) = open.pop() {
        if seen.insert((path, denies)) {
            let next = reads.get(path).into_iter().flatten();
            open.extend(next.map(|(to, flips)| (*to, denies ^ flips)));
        }
    }
    for suspect in &walked.suspects {
        if !seen.contains(&(&suspect.rule, !suspect.flips)) {
            continue;
        }
        let missing = &suspect.missing.text;
        let guarded = walked.guards.iter().any(|guard| {
            missing == guard
                || missing
                    .strip_prefix(guard.as_str())
                    .is_some_and(|rest| rest.starts_with(['.', '[']))
        });
        if guarded {
            continue;
        }
        let name = suspect.rule.last().map_or("", String::as_str);
        let message = format!(
            "`{}` says nothing where `{missing}` is missing: what `{name}` denies is then not denied",
            suspect.text
        );
        let help = format!(
            "say what holds without it: a second body with `not {missing}`, or turn the comparison round, `not … == …`, which holds without it"
        );
        found.push(Finding {
            rule: "fails-open",
            weight: Weight::Warning,
            file: suspect.file.clone(),
            at: suspect.at,
            message,
            help,
            missing: Some(suspect.missing.input.clone().unwrap_or_default()),
        });
    }
}
