//! What a body of a rule is made of, and how a value or a piece of text is shown.

#![expect(
    clippy::wildcard_enum_match_arm,
    reason = "the syntax tree is searched for a few forms; all others are treated alike"
)]

use std::collections::BTreeSet;

use regorus::unstable::{
    AssignOp, BoolOp, Expr, Literal, LiteralStmt, Query, Ref, Rule, RuleBody, RuleHead,
};

use super::super::Known;
use super::super::ask::RULE;
use super::{Frame, GENERATED, MAX_TEXT, Step, Want};
use crate::authz::source::rewrite::{OURS, extent};
use crate::authz::source::syntax;
use crate::authz::workbench::coverage::parts;
use crate::authz::workbench::explain::{self, cut, is_literal, variables, whole};
use crate::document::{self, Value};

pub(super) fn body_of(rule: &Rule, body: Option<usize>) -> Option<&RuleBody> {
    match rule {
        Rule::Spec { bodies, .. } => bodies.get(body?),
        Rule::Default { .. } => None,
    }
}

pub(super) fn query_of(rule: &Rule, body: Option<usize>) -> Option<&Query> {
    body_of(rule, body).map(|body| body.query.as_ref())
}

/// The value of a body: its own behind `else`, the head's otherwise; of a set its element.
pub(super) fn value_of(rule: &Rule, body: Option<usize>) -> Option<&Ref<Expr>> {
    let Rule::Spec { head, .. } = rule else {
        return None;
    };
    if let Some(body) = body_of(rule, body)
        && body.is_else
    {
        return body.assign.as_ref().map(|assign| &assign.value);
    }
    match head {
        RuleHead::Set { key, .. } => key.as_ref(),
        other => syntax::head_assign(other).map(|assign| &assign.value),
    }
}

/// Whether an expression may have a value that is wanted.
pub(super) fn could_be(value: Option<&Ref<Expr>>, want: Want) -> bool {
    // Without a value it is `true`.
    let Some(value) = value else { return true };
    match want {
        Want::Other => true,
        Want::True => {
            !matches!(value.as_ref(), Expr::Bool { value, .. } if *value == Value::Bool(false))
        }
        Want::Yes(member) => match value.as_ref() {
            Expr::Bool { value, .. } => *value == Value::Bool(true),
            Expr::Object { .. } => match member_of(value, member).map(AsRef::as_ref) {
                Some(Expr::Bool { value, .. }) => *value == Value::Bool(true),
                Some(other) => !is_literal(other),
                None => false,
            },
            other => !is_literal(other),
        },
    }
}

/// The member of an object that is written out.
pub(super) fn member_of<'e>(value: &'e Expr, member: &str) -> Option<&'e Ref<Expr>> {
    let Expr::Object { fields, .. } = value else {
        return None;
    };
    fields.iter().find_map(|(_, key, value)| {
        let named = matches!(key.as_ref(), Expr::String { value, .. } | Expr::RawString { value, .. }
            if value.as_string().is_ok_and(|text| **text == *member));
        named.then_some(value)
    })
}

/// The author's statements of a body.
pub(super) fn steps(query: &Query) -> Vec<Step> {
    let mut steps = Vec::new();
    let mut first = None;
    for (index, statement) in query.stmts.iter().enumerate() {
        let begin = *first.get_or_insert(index);
        if !generated(statement) {
            steps.push(Step {
                first: begin,
                main: index,
            });
            first = None;
        }
    }
    steps
}

/// Whether rewriting put it there: a name for what stands in the statement behind it, or the names of
/// an `every`.
pub(super) fn generated(statement: &LiteralStmt) -> bool {
    let Literal::Expr { expr, .. } = &statement.literal else {
        return false;
    };
    let named =
        |expr: &Expr| matches!(expr, Expr::Var { span, .. } if span.text().starts_with(GENERATED));
    match expr.as_ref() {
        Expr::AssignExpr {
            op: AssignOp::ColEq,
            lhs,
            ..
        } => named(lhs),
        Expr::BoolExpr {
            op: BoolOp::Ne,
            lhs,
            ..
        } => named(lhs),
        Expr::Call { fcn, params, .. } => {
            let name = syntax::chain(fcn).prefix().map(|name| name.join("."));
            let nothing = params.first().map(AsRef::as_ref);
            name.is_some_and(|name| name == OURS) && matches!(nothing, Some(Expr::Null { .. }))
        }
        _ => false,
    }
}

/// A rule for each beginning of a body, named by how many steps it has.
pub(super) fn beginnings(
    frame: &Frame,
    query: &Query,
    texts: &[String],
    steps: &[Step],
    with_names: bool,
) -> String {
    let mut rules = String::new();
    for (index, step) in steps.iter().enumerate() {
        let beginning = texts.get(..=step.main).unwrap_or_default();
        let mut names: Vec<String> = Vec::new();
        if with_names {
            let stmts = query.stmts.get(..=step.main).unwrap_or_default();
            let mut known = variables(stmts);
            known.extend(declared(stmts));
            let own = known.iter().filter(|name| !name.starts_with(GENERATED));
            names.extend(own.map(|name| format!("\"{name}\": {name}")));
        }
        names.push("\"\": 0".to_owned());
        rules.push_str(&format!(
            "{RULE}{} contains {{{}}} if {{\n{}\n{}\n}}\n",
            index + 1,
            names.join(", "),
            frame.before.join("\n"),
            beginning.join("\n"),
        ));
    }
    rules
}

/// Variables of `some x` that a statement behind it gives a value to.
pub(super) fn declared(statements: &[LiteralStmt]) -> Vec<String> {
    let mut found = Vec::new();
    for (index, statement) in statements.iter().enumerate() {
        let Literal::SomeVars { vars, .. } = &statement.literal else {
            continue;
        };
        let behind = statements.get(index..).unwrap_or_default();
        let given = |name: &str| {
            behind.iter().any(|other| {
                matches!(other.literal, Literal::Expr { .. } | Literal::SomeIn { .. })
                    && mentions(&whole(&other.span), name)
            })
        };
        let names = vars.iter().map(|var| var.text());
        found.extend(names.filter(|name| given(name)).map(str::to_owned));
    }
    found
}

/// What of a condition is worth showing: both sides of a comparison, the arguments of a call, or all.
pub(super) fn operands_of(expr: &Ref<Expr>) -> Vec<Ref<Expr>> {
    match expr.as_ref() {
        Expr::AssignExpr {
            op: AssignOp::ColEq,
            rhs,
            ..
        } => vec![rhs.clone()],
        Expr::BoolExpr { .. }
        | Expr::AssignExpr { .. }
        | Expr::Membership { .. }
        | Expr::Call { .. } => parts(expr).into_iter().cloned().collect(),
        _ => vec![expr.clone()],
    }
}

/// `input.a["b"]` as names, where all of them are written out.
pub(super) fn input_path(expr: &Expr) -> Option<Vec<String>> {
    let chain = syntax::chain(expr);
    let names = chain.prefix()?;
    let whole = names.len() == chain.parts.len() + 1;
    (whole && names.first().is_some_and(|root| root == "input")).then_some(names)
}

/// The paths of the document that an expression names.
pub(super) fn input_paths(expr: &Expr, found: &mut Vec<Vec<String>>) {
    if let Some(path) = input_path(expr)
        && path.len() > 1
    {
        if !found.contains(&path) {
            found.push(path);
        }
        return;
    }
    for part in parts(expr) {
        input_paths(part, found);
    }
}

pub(super) fn step_into<'v>(value: &'v Value, part: &str) -> Option<&'v Value> {
    match value {
        Value::Array(items) => items.get(part.parse::<usize>().ok()?),
        other => document::member(other, part),
    }
}

/// Variables with the values that they had, as far as they are shown.
pub(super) fn bindings(solutions: &[Value]) -> Vec<Known> {
    let mut values = Vec::new();
    explain::known(solutions, &mut values);
    values
        .into_iter()
        .filter(|(name, _)| !name.starts_with(GENERATED))
        .map(|(name, value)| Known {
            name,
            value,
            masked: false,
            of_input: false,
        })
        .collect()
}

pub(super) fn arguments_of(frame: &Frame) -> Vec<Known> {
    let known = |(name, value): &(String, String)| Known {
        name: name.clone(),
        value: cut(value),
        masked: false,
        of_input: false,
    };
    frame.arguments.iter().map(known).collect()
}

pub(super) fn pattern_names(pattern: &Expr, names: &mut BTreeSet<String>) {
    if let Expr::Var { span, .. } = pattern {
        names.insert(span.text().to_owned());
    }
    for part in parts(pattern) {
        pattern_names(part, names);
    }
}

/// Whether a text names a variable.
pub(in crate::authz::workbench::why) fn mentions(text: &str, name: &str) -> bool {
    let word = |c: char| c.is_alphanumeric() || c == '_';
    text.match_indices(name).any(|(at, _)| {
        let before = text.get(..at).and_then(|text| text.chars().next_back());
        let behind = text
            .get(at + name.len()..)
            .and_then(|text| text.chars().next());
        !before.is_some_and(word) && !behind.is_some_and(word)
    })
}

/// The text of an expression as it stands in the module.
pub(super) fn whole_of(expr: &Expr) -> String {
    let source = expr.span().source.get_contents();
    source.get(extent(expr)).unwrap_or_default().to_owned()
}

pub(super) fn statement_extent(statement: &LiteralStmt) -> std::ops::Range<usize> {
    let own = start(statement.span.start)..start(statement.span.end);
    let quoted = match &statement.literal {
        Literal::Expr { expr, .. } | Literal::NotExpr { expr, .. } => extent(expr),
        Literal::SomeIn { collection, .. } => extent(collection),
        Literal::SomeVars { .. } | Literal::Every { .. } => own.clone(),
    };
    own.start.min(quoted.start)..own.end.max(quoted.end)
}

pub(super) fn start(at: u32) -> usize {
    usize::try_from(at).unwrap_or(usize::MAX)
}

/// Line and column of a byte, in characters.
pub(super) fn position(text: &str, at: usize) -> (usize, usize) {
    let before = text.get(..at).unwrap_or(text);
    let line = before.bytes().filter(|byte| *byte == b'\n').count() + 1;
    let column = before.rsplit('\n').next().unwrap_or_default();
    (line, column.chars().count() + 1)
}

pub(super) fn byte_of(text: &str, line: usize, column: usize) -> Option<usize> {
    let begin = match line.checked_sub(1)? {
        0 => 0,
        lines => text.match_indices('\n').nth(lines - 1)?.0 + 1,
    };
    let rest = text.get(begin..)?;
    let mut letters = rest.char_indices();
    Some(match letters.nth(column.saturating_sub(1)) {
        Some((at, _)) => begin + at,
        None => text.len(),
    })
}

/// Without comments at line ends and line breaks.
pub(super) fn one_line(text: &str) -> String {
    let words: Vec<&str> = text
        .lines()
        .filter(|line| !line.trim_start().starts_with('#'))
        .flat_map(str::split_whitespace)
        .collect();
    let line = words.join(" ");
    if line.chars().count() <= MAX_TEXT {
        return line;
    }
    let begin: String = line.chars().take(MAX_TEXT).collect();
    format!("{begin} …")
}

/// A value as a policy would write it; `None` for what has no such text.
pub(super) fn rego(value: &Value) -> Option<String> {
    Some(match value {
        Value::Undefined => return None,
        Value::Set(items) if items.is_empty() => "set()".to_owned(),
        Value::Set(items) => {
            let texts: Option<Vec<String>> = items.iter().map(rego).collect();
            format!("{{{}}}", texts?.join(", "))
        }
        Value::Array(items) => {
            let texts: Option<Vec<String>> = items.iter().map(rego).collect();
            format!("[{}]", texts?.join(", "))
        }
        Value::Object(members) => {
            let texts: Option<Vec<String>> = members
                .iter()
                .map(|(key, value)| Some(format!("{}: {}", rego(key)?, rego(value)?)))
                .collect();
            format!("{{{}}}", texts?.join(", "))
        }
        other => other.to_json_str().ok()?,
    })
}
