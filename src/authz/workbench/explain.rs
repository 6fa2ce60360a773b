//! Where a test failed, and with which values; and which cases its body reached.
//!
//! The engine does not tell which statement ended a body. So the beginnings of the body are asked one
//! after the other, as rules of their own beside the test: the first one without a solution ends with
//! the statement that failed, and the one before it has the values.

#![expect(
    clippy::wildcard_enum_match_arm,
    reason = "the syntax tree is searched for a few forms; all others are treated alike"
)]

use std::time::Duration;

use regorus::Engine;
use regorus::unstable::{
    AssignOp, Expr, Literal, LiteralStmt, Module, Query, Ref, Rule, RuleHead, Span,
};

use super::coverage::parts;
use super::trial::text;
use super::{FailedAt, Test, Workbench, evaluate, package_path, place};
use crate::authz::source::syntax::{self, Part};
use crate::document::Value;

/// Longest value that is shown, in characters.
const MAX_SHOWN: usize = 300;
/// Most values that are shown.
const MAX_VALUES: usize = 12;
/// Most solutions of one beginning that are shown.
const MAX_SOLUTIONS: usize = 3;
/// Names of rules beside a test begin so.
const RULE: &str = "portcullis_beside_";

/// The cases that a test's body reached, each by its path.
pub(super) fn cases(bench: &Workbench, test: &Test, time: Duration) -> Vec<Vec<String>> {
    let mut found = Vec::new();
    for (module, rule) in bench.definitions(test) {
        let Some(query) = body(rule) else { continue };
        let tail = tail(rule, &test.name);
        if tail.is_empty() {
            continue;
        }
        let statements = statements(query);
        // The earliest beginning in which the names of the case are known.
        for end in 1..=statements.len() {
            let Some(beginning) = statements.get(..end) else {
                continue;
            };
            let rule = format!(
                "{RULE}case contains [{}] if {{\n{}\n}}",
                tail.join(", "),
                beginning.join("\n")
            );
            let Some(mut engine) = beside(bench, module, &rule) else {
                continue;
            };
            let Some(values) = ask(&mut engine, module, "case", time) else {
                continue;
            };
            found.extend(values.iter().filter_map(|path| {
                let path = path.as_array().ok()?;
                Some(path.iter().map(text).collect::<Vec<_>>())
            }));
            break;
        }
    }
    found
}

/// The statement that failed, of the body that came furthest.
pub(super) fn failed_at(bench: &Workbench, test: &Test, time: Duration) -> Option<FailedAt> {
    bench
        .definitions(test)
        .into_iter()
        .find_map(|(module, rule)| in_body(bench, module, body(rule)?, time))
}

fn in_body(
    bench: &Workbench,
    module: &Ref<Module>,
    query: &Query,
    time: Duration,
) -> Option<FailedAt> {
    let statements = statements(query);
    let mut rules = String::new();
    for end in 1..=statements.len() {
        // `{}` in front of an `if` is no object to the parser.
        let mut names: Vec<String> = variables(query.stmts.get(..end)?)
            .iter()
            .map(|name| format!("\"{name}\": {name}"))
            .collect();
        names.push("\"\": 0".to_owned());
        rules.push_str(&format!(
            "{RULE}{end} contains {{{}}} if {{\n{}\n}}\n",
            names.join(", "),
            statements.get(..end)?.join("\n")
        ));
    }
    let engine = beside(bench, module, &rules)?;
    let mut before: Vec<Value> = Vec::new();
    for (index, statement) in query.stmts.iter().enumerate() {
        let mut fresh = engine.clone();
        let solutions = ask(&mut fresh, module, &(index + 1).to_string(), time)?;
        if solutions.is_empty() {
            let mut values = Vec::new();
            if let Some(beginning) = statements.get(..index) {
                values.extend(operands(bench, module, beginning, statement, time));
            }
            known(&before, &mut values);
            values.truncate(MAX_VALUES);
            let span = &statement.span;
            let file = span.source.get_path().clone();
            let (line, column) = bench.author(&file, place(span));
            return Some(FailedAt {
                line,
                column,
                text: bench.written(&file, (line, column), whole(span).trim()),
                file,
                values,
            });
        }
        before = solutions;
    }
    // Every statement holds by itself: it is the value that is not `true`.
    None
}

/// Whether the body of a rule holds for an input: of a rule on one line the lines do not tell.
pub(super) fn holds(
    bench: &Workbench,
    module: &Ref<Module>,
    rule: &Rule,
    input: &Value,
    time: Duration,
) -> bool {
    let Some(query) = body(rule) else {
        return true;
    };
    let text = statements(query).join("\n");
    let rule = format!("{RULE}holds contains 1 if {{\n{text}\n}}");
    let Some(mut engine) = beside(bench, module, &rule) else {
        return false;
    };
    engine.set_input(input.clone());
    ask(&mut engine, module, "holds", time).is_some_and(|found| !found.is_empty())
}

/// The names that the solutions of the last good beginning have, behind those that are shown already.
pub(super) fn known(solutions: &[Value], values: &mut Vec<(String, String)>) {
    let many = solutions.len() > 1;
    for (index, solution) in solutions.iter().take(MAX_SOLUTIONS).enumerate() {
        let Ok(members) = solution.as_object() else {
            continue;
        };
        for (name, value) in members.iter() {
            let mut name = text(name);
            if name.is_empty() {
                continue;
            }
            if many {
                name = format!("{name} ({} of {})", index + 1, solutions.len());
            }
            if values.iter().all(|(known, _)| *known != name) {
                values.push((name, shown(value)));
            }
        }
    }
}

/// The values of what a statement is made of, with its `with` modifiers.
fn operands(
    bench: &Workbench,
    module: &Ref<Module>,
    beginning: &[String],
    statement: &LiteralStmt,
    time: Duration,
) -> Vec<(String, String)> {
    let (Literal::Expr { expr, .. } | Literal::NotExpr { expr, .. }) = &statement.literal else {
        return Vec::new();
    };
    let modifiers: String = statement
        .with_mods
        .iter()
        .map(|modifier| {
            let [target, value] = [&modifier.refr, &modifier.r#as].map(|e| whole(e.span()));
            format!(" with {target} as {value}")
        })
        .collect();
    let mut candidates: Vec<&Ref<Expr>> = match expr.as_ref() {
        Expr::AssignExpr {
            op: AssignOp::ColEq,
            rhs,
            ..
        } => vec![rhs],
        Expr::BoolExpr { .. } | Expr::AssignExpr { .. } | Expr::Membership { .. } => parts(expr),
        Expr::Call { .. } => parts(expr),
        _ => vec![expr],
    };
    candidates.retain(|part| !is_literal(part));
    let mut values = Vec::new();
    for part in candidates {
        let shown_text = whole(part.span());
        let rule = format!(
            "{RULE}operand contains portcullis_value if {{\n{}\nportcullis_value := {shown_text}{modifiers}\n}}",
            beginning.join("\n")
        );
        let Some(mut engine) = beside(bench, module, &rule) else {
            continue;
        };
        let Some(found) = ask(&mut engine, module, "operand", time) else {
            continue;
        };
        let text = match found.as_slice() {
            [] => "undefined".to_owned(),
            found => found
                .iter()
                .take(MAX_SOLUTIONS)
                .map(shown)
                .collect::<Vec<_>>()
                .join(" | "),
        };
        let name = shown_text.split_whitespace().collect::<Vec<_>>().join(" ");
        values.push((cut(&name), text));
    }
    values
}

pub(super) fn is_literal(expr: &Expr) -> bool {
    syntax::literal(expr).is_some()
}

/// Adds a rule in the package of a module, with its imports.
fn beside(bench: &Workbench, module: &Ref<Module>, rule: &str) -> Option<Engine> {
    let source = &module.package.span.source;
    let first = module.policy.first()?.span().start;
    let head = source.get_contents().get(..usize::try_from(first).ok()?)?;
    let mut engine = bench.engine.clone();
    engine.set_enable_coverage(false);
    engine
        .add_policy(
            format!("{RULE}{}", source.get_path()),
            format!("{head}\n{rule}\n"),
        )
        .ok()?;
    engine.set_input(Value::Undefined);
    Some(engine)
}

/// The values of a partial set beside the module; `None` when it cannot be evaluated.
fn ask(engine: &mut Engine, module: &Module, name: &str, time: Duration) -> Option<Vec<Value>> {
    let query = format!("{}.{RULE}{name}", package_path(module));
    let answers = evaluate(engine, &query, time).ok()?;
    let _ = engine.take_prints();
    let (_, value) = answers.first()?.expressions.first()?;
    let set = value.as_set().ok()?;
    Some(set.iter().cloned().collect())
}

fn body(rule: &Rule) -> Option<&Query> {
    match rule {
        Rule::Spec { bodies, .. } => bodies.first().map(|body| body.query.as_ref()),
        Rule::Default { .. } => None,
    }
}

/// The texts of the statements.
pub(super) fn statements(query: &Query) -> Vec<String> {
    query
        .stmts
        .iter()
        .map(|statement| whole(&statement.span))
        .collect()
}

/// The text of a span with the quotation marks that the engine leaves out where it begins or ends with
/// a text.
pub(super) fn whole(span: &Span) -> String {
    let text = span.text();
    let quote = |at: Option<usize>| {
        let source = span.source.get_contents();
        let found = at.and_then(|at| source.get(at..at + 1));
        found.filter(|found| ["\"", "`"].contains(found))
    };
    let start = usize::try_from(span.start).ok();
    let before = quote(start.and_then(|start| start.checked_sub(1)));
    let behind = quote(usize::try_from(span.end).ok());
    format!("{}{text}{}", before.unwrap_or(""), behind.unwrap_or(""))
}

/// What stands behind the name of a test in its head.
fn tail(rule: &Rule, name: &str) -> Vec<String> {
    let name = name.split('#').next().unwrap_or(name);
    let name = name.rsplit('.').next().unwrap_or(name);
    let Rule::Spec {
        head: RuleHead::Compr { refr: head, .. },
        ..
    } = rule
    else {
        return Vec::new();
    };
    let chain = syntax::chain(head);
    let mut behind = matches!(chain.base, Expr::Var { span, .. } if span.text().starts_with(name));
    let mut tail = Vec::new();
    for part in &chain.parts {
        match part {
            Part::Name(part) if !behind => behind = part.starts_with(name),
            Part::Name(part) => tail.push(serde_json::Value::from(part.as_str()).to_string()),
            Part::Dynamic(index) => tail.push(whole(index.span())),
        }
    }
    tail
}

/// The variables that these statements give values to.
pub(super) fn variables(statements: &[LiteralStmt]) -> Vec<String> {
    let mut names = Vec::new();
    for statement in statements {
        match &statement.literal {
            Literal::SomeIn { key, value, .. } => {
                if let Some(key) = key {
                    pattern(key, &mut names);
                }
                pattern(value, &mut names);
            }
            Literal::Expr { expr, .. } => {
                if let Expr::AssignExpr {
                    op: AssignOp::ColEq,
                    lhs,
                    ..
                } = expr.as_ref()
                {
                    pattern(lhs, &mut names);
                }
            }
            _ => {}
        }
    }
    names
}

fn pattern(expr: &Expr, names: &mut Vec<String>) {
    match expr {
        Expr::Var { span, .. } => {
            let name = span.text();
            if name != "_" && !names.iter().any(|known| known == name) {
                names.push(name.to_owned());
            }
        }
        Expr::Array { items, .. } => {
            for item in items {
                pattern(item, names);
            }
        }
        Expr::Object { fields, .. } => {
            for (_, _, value) in fields {
                pattern(value, names);
            }
        }
        _ => {}
    }
}

pub(super) fn shown(value: &Value) -> String {
    let text = match value {
        Value::Undefined => "undefined".to_owned(),
        other => {
            serde_json::to_string(other).unwrap_or_else(|_| "a value that is no JSON".to_owned())
        }
    };
    cut(&text)
}

pub(super) fn cut(text: &str) -> String {
    if text.chars().count() <= MAX_SHOWN {
        return text.to_owned();
    }
    let start: String = text.chars().take(MAX_SHOWN).collect();
    format!("{start} …")
}
