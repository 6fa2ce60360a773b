//! Which lines an evaluation reached, as `opa test --coverage` counts them.
//!
//! Lines with the head of a rule and lines on which a statement begins count. A statement was reached
//! when it was evaluated, a head when its body held. The engine notes the lines of the expressions that
//! it evaluates, and a head without a value has none: such heads get the value that they have anyway. Of
//! the values behind `else` it notes nothing: bodies of `else` get a last statement that always holds.

#![expect(
    clippy::wildcard_enum_match_arm,
    reason = "the syntax tree is searched for a few forms; all others are treated alike"
)]

use std::collections::{BTreeMap, BTreeSet};

use regorus::Engine;
use regorus::unstable::{
    Expr, Literal, LiteralStmt, Module, Query, Ref, Rule, RuleBody, RuleHead, Span,
};
use serde::{Deserialize, Serialize};

use super::{Edit, rule_path};

/// Lines of files, from 1.
pub type Lines = BTreeMap<String, BTreeSet<u32>>;

/// Something that tests can reach.
#[derive(Debug)]
pub(super) struct Coverable {
    pub(super) file: String,
    /// The line that counts.
    pub(super) row: u32,
    /// Of each range of lines the engine notes one at least when this was reached.
    needs: Vec<(u32, u32)>,
    /// The rule, if this is a head.
    pub(super) head: Option<String>,
    /// Whether it is the head of a default.
    pub(super) default: bool,
    /// The same for all heads of one chain of `else`, of which one holds.
    pub(super) chain: usize,
    /// The place of a rule that is no function and stands on one line with its body.
    pub(super) one_line: Option<(usize, usize)>,
}

/// What of a file was reached, as ranges of lines: one entry of `files` in OPA's report.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Ranges {
    /// First and last line.
    pub covered: Vec<(u32, u32)>,
    /// First and last line.
    pub not_covered: Vec<(u32, u32)>,
    /// How many lines `covered` are.
    pub covered_lines: usize,
    /// How many lines `not_covered` are.
    pub not_covered_lines: usize,
}

impl Ranges {
    /// Of all lines that can be reached, those that were.
    pub fn of(all: &BTreeSet<u32>, reached: &BTreeSet<u32>) -> Self {
        let covered: Vec<u32> = all.intersection(reached).copied().collect();
        let not_covered: Vec<u32> = all.difference(reached).copied().collect();
        Self {
            covered_lines: covered.len(),
            not_covered_lines: not_covered.len(),
            covered: ranges(&covered),
            not_covered: ranges(&not_covered),
        }
    }

    /// The reached part, in percent; a file without rules is covered.
    pub fn percent(&self) -> f64 {
        percent(self.covered_lines, self.not_covered_lines)
    }
}

/// `covered` of both, in percent.
pub fn percent(covered: usize, not_covered: usize) -> f64 {
    let number = |count: usize| u32::try_from(count).map_or(f64::MAX, f64::from);
    match covered + not_covered {
        0 => 100.0,
        all => 100.0 * number(covered) / number(all),
    }
}

fn ranges(lines: &[u32]) -> Vec<(u32, u32)> {
    let mut ranges: Vec<(u32, u32)> = Vec::new();
    for line in lines {
        match ranges.last_mut() {
            Some((_, end)) if *end + 1 == *line => *end = *line,
            _ => ranges.push((*line, *line)),
        }
    }
    ranges
}

/// Gives heads without a value the value `true`, which they have anyway.
pub(super) fn marked_heads(modules: &[Ref<Module>]) -> Vec<Edit> {
    let mut edits = Vec::new();
    for module in modules {
        for rule in &module.policy {
            if let Rule::Spec {
                head:
                    RuleHead::Compr {
                        span, assign: None, ..
                    }
                    | RuleHead::Func {
                        span, assign: None, ..
                    },
                bodies,
                ..
            } = rule.as_ref()
                && !bodies.is_empty()
                && let Ok(at) = usize::try_from(span.end)
            {
                edits.push(Edit {
                    file: span.source.get_path().clone(),
                    start: at,
                    end: at,
                    text: " := true".to_owned(),
                });
            }
            if let Rule::Spec { bodies, .. } = rule.as_ref() {
                let chain = bodies.iter().filter(|_| has_else(bodies));
                edits.extend(chain.filter_map(|body| mark(&body.query)));
            }
        }
    }
    edits
}

fn has_else(bodies: &[RuleBody]) -> bool {
    bodies.iter().any(|body| body.is_else)
}

/// What is put at the end of bodies in a chain of `else`.
const MARK: &str = "true";

/// A last statement that always holds, on the line of the bracket.
fn mark(query: &Query) -> Option<Edit> {
    let span = &query.span;
    let at = usize::try_from(span.end).ok()?.checked_sub(1)?;
    let text = span.source.get_contents();
    if text.get(at..=at)? != "}" {
        return None;
    }
    let last = usize::try_from(query.stmts.last()?.span.end).ok()?;
    let own_line = text.get(last..at)?.contains('\n');
    Some(Edit {
        file: span.source.get_path().clone(),
        start: at,
        end: at,
        text: format!("{}{MARK} ", if own_line { "" } else { "; " }),
    })
}

/// Everything that can be reached.
pub(super) fn coverable(modules: &[Ref<Module>]) -> Vec<Coverable> {
    let mut found = Found::default();
    for (place, module) in modules.iter().enumerate() {
        found.file.clone_from(module.package.span.source.get_path());
        for (index, rule) in module.policy.iter().enumerate() {
            let head = found.items.len();
            found.rule(module, rule);
            if let Some(item) = found.items.get_mut(head)
                && on_one_line(rule)
            {
                item.one_line = Some((place, index));
            }
        }
    }
    found.items
}

fn on_one_line(rule: &Rule) -> bool {
    let Rule::Spec { span, head, bodies } = rule else {
        return false;
    };
    let mut statements = bodies.iter().flat_map(|body| &body.query.stmts);
    !matches!(head, RuleHead::Func { .. })
        && bodies.len() == 1
        && statements.any(|statement| statement.span.line == span.line)
}

#[derive(Default)]
struct Found {
    file: String,
    chain: usize,
    items: Vec<Coverable>,
}

impl Found {
    fn rule(&mut self, module: &Module, rule: &Rule) {
        let path = rule_path(module, rule);
        self.chain += 1;
        match rule {
            Rule::Default { span, value, .. } => {
                self.head(path, span.line, value);
                if let Some(item) = self.items.last_mut() {
                    item.default = true;
                }
            }
            Rule::Spec { span, head, bodies } => {
                let value = match head {
                    RuleHead::Compr { assign, .. } | RuleHead::Func { assign, .. } => {
                        assign.as_ref().map(|assign| &assign.value)
                    }
                    RuleHead::Set { key, .. } => key.as_ref(),
                };
                match value {
                    Some(value) => self.head(path.clone(), span.line, value),
                    None => self.push(span.line, vec![(span.line, span.line)], Some(path.clone())),
                }
                if let Some(value) = value {
                    self.nested(value);
                }
                // The line of the mark before, on which the value behind an `else` often begins.
                let mut before = None;
                for body in bodies {
                    let marked = marked(&body.query).filter(|_| has_else(bodies));
                    let mark = marked.and_then(lines_of);
                    if body.is_else {
                        // Its mark, or where there is none all of its statements. The next value may
                        // begin on the line of the mark: then its own must have been evaluated, too.
                        let mut needs: Vec<(u32, u32)> = match mark {
                            Some(lines) => vec![lines],
                            None => body.query.stmts.iter().filter_map(lines_of).collect(),
                        };
                        let value = body.assign.as_ref().map(|assign| assign.value.span().line);
                        needs.extend(before.filter(|(line, _)| Some(*line) == value));
                        self.push(body.span.line, needs, Some(path.clone()));
                    }
                    before = mark;
                    if let Some(assign) = body.assign.as_ref().filter(|_| body.is_else) {
                        self.nested(&assign.value);
                    }
                    let own = body.query.stmts.len() - usize::from(marked.is_some());
                    for statement in body.query.stmts.iter().take(own) {
                        self.statement(statement);
                    }
                }
            }
        }
    }

    /// A head is reached when its value is evaluated.
    fn head(&mut self, path: String, row: u32, value: &Expr) {
        let line = first_line(value.span());
        self.push(row, vec![(line, line.max(value.span().line))], Some(path));
    }

    fn push(&mut self, row: u32, needs: Vec<(u32, u32)>, head: Option<String>) {
        self.items.push(Coverable {
            file: self.file.clone(),
            row,
            needs,
            head,
            default: false,
            chain: self.chain,
            one_line: None,
        });
    }

    fn query(&mut self, query: &Query) {
        for statement in &query.stmts {
            self.statement(statement);
        }
    }

    fn statement(&mut self, statement: &LiteralStmt) {
        let Some(lines) = lines_of(statement) else {
            return;
        };
        self.push(statement.span.line, vec![lines], None);
        match &statement.literal {
            Literal::SomeVars { .. } => {}
            Literal::SomeIn { collection, .. } => self.nested(collection),
            Literal::Expr { expr, .. } | Literal::NotExpr { expr, .. } => self.nested(expr),
            Literal::Every { domain, query, .. } => {
                self.nested(domain);
                self.query(query);
            }
        }
        for modifier in &statement.with_mods {
            self.nested(&modifier.r#as);
        }
    }

    /// Statements of comprehensions.
    fn nested(&mut self, expr: &Expr) {
        match expr {
            Expr::ArrayCompr { term, query, .. } | Expr::SetCompr { term, query, .. } => {
                self.nested(term);
                self.query(query);
            }
            Expr::ObjectCompr {
                key, value, query, ..
            } => {
                self.nested(key);
                self.nested(value);
                self.query(query);
            }
            other => {
                for part in parts(other) {
                    self.nested(part);
                }
            }
        }
    }
}

/// The mark at the end of a body.
fn marked(query: &Query) -> Option<&LiteralStmt> {
    let (last, before) = query.stmts.split_last()?;
    (last.span.text().trim() == MARK && !before.is_empty()).then_some(last)
}

/// The lines that the engine notes when it evaluates a statement; `None` for a declaration.
fn lines_of(statement: &LiteralStmt) -> Option<(u32, u32)> {
    let row = statement.span.line;
    let evaluated = match &statement.literal {
        Literal::SomeVars { .. } => return None,
        Literal::SomeIn { collection, .. } => collection,
        Literal::Expr { expr, .. } | Literal::NotExpr { expr, .. } => expr,
        Literal::Every { domain, .. } => domain,
    };
    Some((row, evaluated.span().line.max(row)))
}

/// What an expression is made of.
pub(super) fn parts(expr: &Expr) -> Vec<&Ref<Expr>> {
    match expr {
        Expr::Array { items, .. } | Expr::Set { items, .. } => items.iter().collect(),
        Expr::Object { fields, .. } => {
            let both = fields.iter().map(|(_, key, value)| [key, value]);
            both.flatten().collect()
        }
        Expr::Call { params, .. } => params.iter().collect(),
        Expr::UnaryExpr { expr, .. } => vec![expr],
        Expr::RefDot { refr, .. } => vec![refr],
        Expr::RefBrack { refr, index, .. } => vec![refr, index],
        Expr::BinExpr { lhs, rhs, .. }
        | Expr::BoolExpr { lhs, rhs, .. }
        | Expr::ArithExpr { lhs, rhs, .. }
        | Expr::AssignExpr { lhs, rhs, .. } => vec![lhs, rhs],
        Expr::Membership {
            key,
            value,
            collection,
            ..
        } => key.iter().chain([value, collection]).collect(),
        _ => Vec::new(),
    }
}

/// The line on which a span begins: the engine's own number is that of the operator.
pub(super) fn first_line(span: &Span) -> u32 {
    let start = usize::try_from(span.start).unwrap_or(usize::MAX);
    let before = span.source.get_contents().get(..start).unwrap_or_default();
    let lines = before.bytes().filter(|byte| *byte == b'\n').count();
    u32::try_from(lines + 1).unwrap_or(u32::MAX)
}

pub(super) fn all(coverable: &[Coverable]) -> Lines {
    let mut lines = Lines::new();
    for item in coverable {
        lines.entry(item.file.clone()).or_default().insert(item.row);
    }
    lines
}

/// The lines that count and were reached since the engine was made.
pub(super) fn reached(engine: &Engine, coverable: &[Coverable]) -> Lines {
    let Ok(report) = engine.get_coverage_report() else {
        return Lines::new();
    };
    let noted: BTreeMap<&str, &BTreeSet<u32>> = report
        .files
        .iter()
        .map(|file| (file.path.as_str(), &file.covered))
        .collect();
    let mut lines = Lines::new();
    for item in coverable {
        let Some(noted) = noted.get(item.file.as_str()) else {
            continue;
        };
        let seen = |(from, to): &(u32, u32)| noted.range(from..=to).next().is_some();
        if !item.needs.is_empty() && item.needs.iter().all(seen) {
            lines.entry(item.file.clone()).or_default().insert(item.row);
        }
    }
    lines
}
