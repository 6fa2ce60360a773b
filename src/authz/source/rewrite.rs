//! A module's text made into one that the engine answers as OPA does.
//!
//! OPA's compiler takes a statement apart before it is evaluated; regorus evaluates it as it stands.
//! Under a `not` that is another answer: OPA asks for the references in the arguments of a negated
//! call, `in` or comparison first, so that `not input.user in data.blocked` fails without a user,
//! where regorus makes a yes of what is undefined. So what OPA's compiler does is done here, on the
//! text, at the places that the engine's own parser gives:
//!
//! - what OPA evaluates in front of a `not` is given a name in front of it;
//! - `in` as a value becomes a call, which is undefined where a part of it is;
//! - what a loop goes through is made a collection where it is none;
//! - the engine is told that the names of an `every` have values, and which it waits for;
//! - a `not` is made to wait for the variables that it names;
//! - sets and objects are ordered by a call: the engine has them the other way round;
//! - `f(x, y)` where `f` takes one argument becomes `y = f(x)` for functions that the engine lacks;
//! - `print(…)` is left out where nobody reads it.
//!
//! Template strings were made into calls before (`templates`). No line is added or lost. Every place in the
//! new text leads back to the author's (`edit`).

#![expect(
    clippy::wildcard_enum_match_arm,
    reason = "the syntax tree is searched for a few forms; all others are treated alike"
)]

use std::collections::BTreeSet;
use std::num::NonZeroU32;
use std::ops::Range;

use regorus::unstable::{
    ArithOp, AssignOp, BUILTINS, BinOp, BoolOp, Expr, Lexer, Literal, LiteralStmt, Module, Query,
    Ref, Rule, RuleHead, Source, TokenKind,
};

use crate::authz::published::InputDocument;
use crate::authz::rego::host;
use crate::authz::source::edit::{Edit, Map, Piece, splice};
use crate::authz::source::kinds::{self, Names};
use crate::authz::source::syntax::{chain, place};
use crate::authz::source::variables;

/// What a reference is compared with to fail where it is undefined; nothing in JSON is a set.
const NOTHING: &str = "{{\"portcullis: nothing\"}}";
/// A builtin of the engine that no policy of OPA knows: both of its halves can call it. What a call
/// means is told by its last argument: see `host::general::ours`.
pub(in crate::authz) const OURS: &str = "__builtin_sets.union";
/// What rewriting depends on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::authz) struct Style {
    /// Whether somebody reads what `print` writes.
    pub(in crate::authz) prints: bool,
    /// What the policy sees.
    pub(in crate::authz) document: InputDocument,
    /// Whether an operator that fails is undefined; the engine's own always raise it.
    pub(in crate::authz) undefined: bool,
}

/// The author's place, what is wrong there, and the way out.
pub(in crate::authz) type Refused = ((usize, usize), &'static str, &'static str);

/// Rewrites a module that was parsed from this text; `None` when it can stay as it is. Beside it,
/// what would not be answered as OPA does.
pub(in crate::authz) fn module(
    module: &Module,
    text: &str,
    names: &Names,
    style: Style,
    map: &Map,
) -> (Option<(Map, String)>, Vec<Refused>) {
    let package = chain(&module.package.refr).prefix().unwrap_or_default();
    let ours = names.get(&package).into_iter();
    let mut rules: BTreeSet<String> = ours.flat_map(|ours| ours.keys().cloned()).collect();
    for import in &module.imports {
        let path = chain(&import.refr).prefix().unwrap_or_default();
        rules.extend(match &import.r#as {
            Some(name) => Some(name.text().to_owned()),
            None => path.last().cloned(),
        });
    }
    rules.extend(["input".to_owned(), "data".to_owned()]);
    let mut writer = Writer {
        rules,
        package,
        names,
        around: Vec::new(),
        sure: BTreeSet::new(),
        declared: BTreeSet::new(),
        style,
        before: before(text),
        next: 0,
        refused: Vec::new(),
    };
    let edits: Vec<Edit> = module
        .policy
        .iter()
        .flat_map(|rule| writer.rule(rule))
        .collect();
    let refused = writer.refused.into_iter();
    let refused = refused.map(|(at, message, help)| (map.place(at), message, help));
    let made = match edits.is_empty() {
        true => None,
        false => Some(map.clone().then(splice(0..text.len(), edits), text)),
    };
    (made, refused.collect())
}

/// For the begin of each token, whether `if` stands before it.
fn before(text: &str) -> BTreeSet<usize> {
    let mut after_if = BTreeSet::new();
    let Ok(source) = Source::from_contents(String::new(), text.to_owned()) else {
        return after_if;
    };
    let mut lexer = Lexer::new(&source);
    lexer.set_max_col(NonZeroU32::MAX);
    let mut last = false;
    while let Ok(token) = lexer.next_token() {
        if token.0 == TokenKind::Eof {
            break;
        }
        if last {
            after_if.insert(offset(token.1.start));
        }
        last = token.0 == TokenKind::Ident && token.1.text() == "if";
    }
    after_if
}

fn offset(at: u32) -> usize {
    usize::try_from(at).unwrap_or(usize::MAX)
}

/// From the first byte of an expression to its last: the engine's spans of calls and operators begin
/// at the parenthesis or the operator.
pub(in crate::authz) fn extent(expr: &Expr) -> Range<usize> {
    let span = expr.span();
    let own = offset(span.start)..offset(span.end);
    let join =
        |one: Range<usize>, other: Range<usize>| one.start.min(other.start)..one.end.max(other.end);
    let mut all = own;
    match expr {
        // Without its quotes.
        Expr::String { .. } | Expr::RawString { .. } => {
            all = all.start.saturating_sub(1)..all.end.saturating_add(1);
        }
        // The engine's span begins at the last member.
        Expr::Object { fields, .. } if fields.len() > 1 => {
            if let Some((first, ..)) = fields.first() {
                all.start = opening(span.source.get_contents(), offset(first.start));
            }
        }
        // And goes on to the end of what follows `set()`.
        Expr::Set { items, .. } if items.is_empty() => {
            let rest = span.source.get_contents().get(all.start..).unwrap_or("");
            all.end = rest.find(')').map_or(all.end, |at| all.start + at + 1);
        }
        Expr::RefDot { refr, field, .. } => {
            all = join(all, extent(refr));
            all = join(all, offset(field.0.start)..offset(field.0.end));
        }
        Expr::RefBrack { refr, .. } => all = join(all, extent(refr)),
        Expr::Call { fcn, .. } => all = join(all, extent(fcn)),
        Expr::BinExpr { lhs, rhs, .. }
        | Expr::BoolExpr { lhs, rhs, .. }
        | Expr::ArithExpr { lhs, rhs, .. }
        | Expr::AssignExpr { lhs, rhs, .. } => all = join(join(all, extent(lhs)), extent(rhs)),
        Expr::Membership {
            key,
            value,
            collection,
            ..
        } => {
            for part in key.iter().chain([value, collection]) {
                all = join(all, extent(part));
            }
        }
        _ => {}
    }
    all
}

/// The brace before this first member: between them are blanks and comments only.
fn opening(text: &str, member: usize) -> usize {
    // The span of a text is without its quotes.
    let quoted = text
        .get(..member)
        .is_some_and(|before| before.ends_with(['"', '`']));
    let member = member.saturating_sub(usize::from(quoted));
    let mut found = member;
    let mut end = member;
    while let Some(brace) = text.get(..end).and_then(|before| before.rfind('{')) {
        let between = text.get(brace + 1..member).unwrap_or("");
        let blank = between.lines().all(|line| {
            let code = line.split('#').next().unwrap_or("");
            code.trim().is_empty()
        });
        if !blank {
            break;
        }
        (found, end) = (brace, brace);
    }
    found
}

struct Writer<'n> {
    /// Names that are no variables.
    rules: BTreeSet<String>,
    package: Vec<String>,
    names: &'n Names,
    /// What the statements of the bodies around this one name.
    around: Vec<BTreeSet<String>>,
    /// The variables that a statement above gave a value to, as the engine orders statements.
    sure: BTreeSet<String>,
    /// Those that a `:=` or a `some … in` above names.
    declared: BTreeSet<String>,
    style: Style,
    /// Where a body without braces begins.
    before: BTreeSet<usize>,
    next: usize,
    refused: Vec<Refused>,
}

impl Writer<'_> {
    fn rule(&mut self, rule: &Rule) -> Vec<Edit> {
        match rule {
            Rule::Default { value, .. } => self.expr(value),
            Rule::Spec { head, bodies, .. } => {
                let mut edits = match head {
                    RuleHead::Compr { refr, assign, .. } => {
                        let mut edits = self.expr(refr);
                        edits.extend(assign.iter().flat_map(|a| self.expr(&a.value)));
                        edits
                    }
                    RuleHead::Set { refr, key, .. } => {
                        let mut edits = self.expr(refr);
                        edits.extend(key.iter().flat_map(|key| self.expr(key)));
                        edits
                    }
                    RuleHead::Func {
                        refr, args, assign, ..
                    } => {
                        self.sure = variables::of_patterns(args.iter().map(AsRef::as_ref));
                        let mut edits = self.expr(refr);
                        edits.extend(assign.iter().flat_map(|a| self.expr(&a.value)));
                        edits
                    }
                };
                for body in bodies {
                    edits.extend(body.assign.iter().flat_map(|a| self.expr(&a.value)));
                    edits.extend(self.query(&body.query));
                }
                self.sure.clear();
                edits
            }
        }
    }

    fn query(&mut self, query: &Query) -> Vec<Edit> {
        self.around.push(variables::named(query));
        let before = (self.sure.clone(), self.declared.clone());
        let mut edits = Vec::new();
        for statement in &query.stmts {
            edits.extend(self.statement(statement));
            self.learn(statement);
        }
        (self.sure, self.declared) = before;
        self.around.pop();
        edits
    }

    /// What a statement gives a value to. The engine asks in the order of the text what waits for
    /// nothing; `x := y` it takes for a giver of either, so that it is no such statement.
    fn learn(&mut self, statement: &LiteralStmt) {
        let (patterns, from): (Vec<&Expr>, &Expr) = match &statement.literal {
            Literal::SomeIn {
                key,
                value,
                collection,
                ..
            } => {
                let patterns = key.iter().chain([value]).map(AsRef::as_ref);
                (patterns.collect(), collection.as_ref())
            }
            Literal::Expr { expr, .. } => match expr.as_ref() {
                Expr::AssignExpr {
                    op: AssignOp::ColEq,
                    lhs,
                    rhs,
                    ..
                } => {
                    let either = variables::of_patterns([rhs.as_ref()].into_iter());
                    let either = either.iter().any(|name| self.is_variable(name));
                    let declared = variables::of_patterns([lhs.as_ref()].into_iter());
                    if either {
                        self.declared.extend(declared);
                        return;
                    }
                    (vec![lhs.as_ref()], rhs.as_ref())
                }
                _ => return,
            },
            _ => return,
        };
        let names = variables::of_patterns(patterns.into_iter());
        let asked = statement.with_mods.iter().map(|modifier| &*modifier.r#as);
        if !asked.chain([from]).any(|expr| self.unsure(expr)) {
            self.sure.extend(names.iter().cloned());
        }
        self.declared.extend(names);
    }

    /// Whether this has a variable that may get its value later than the engine asks for it.
    fn unsure(&self, expr: &Expr) -> bool {
        let mut found = false;
        variables::within(expr, &mut |part| {
            if let Expr::Var { span, .. } = part {
                let name = span.text();
                found |= self.is_variable(name) && !self.sure.contains(name);
            }
        });
        found
    }

    /// Whether this is such a variable, which a `:=` or a `some … in` above gives its value: the engine
    /// would take its next place for another giver.
    fn late(&self, expr: &Expr) -> bool {
        matches!(expr, Expr::Var { span, .. } if self.declared.contains(span.text()))
            && self.unsure(expr)
    }

    /// The edits of a side of a `=`.
    fn side(&mut self, expr: &Expr) -> Vec<Edit> {
        match expr {
            Expr::Var { .. } if self.late(expr) => vec![itself(expr)],
            Expr::Array { items, .. } => items.iter().flat_map(|item| self.side(item)).collect(),
            Expr::Object { fields, .. } => {
                let mut edits = Vec::new();
                for (_, key, value) in fields {
                    edits.extend(self.expr(key));
                    edits.extend(self.side(value));
                }
                edits
            }
            other => self.expr(other),
        }
    }

    /// Whether a name is a variable of the bodies at hand.
    fn is_variable(&self, name: &str) -> bool {
        let named = || self.around.iter().any(|around| around.contains(name));
        name != "_" && !self.rules.contains(name) && named()
    }

    fn statement(&mut self, statement: &LiteralStmt) -> Vec<Edit> {
        match &statement.literal {
            Literal::NotExpr { expr, .. } => return self.negated(statement, expr),
            Literal::Expr { expr, .. } => {
                if let Some(edit) = self.call(expr) {
                    return vec![edit];
                }
                if let Some(edit) = self.walk(expr) {
                    return vec![edit];
                }
                if let Some(params) = self.walked(expr)
                    && let [over, pattern] = params.as_slice()
                {
                    let mut edits = self.expr(over);
                    edits.extend(self.expr(pattern));
                    return edits;
                }
            }
            _ => {}
        }
        let mut edits = match &statement.literal {
            Literal::SomeVars { .. } => Vec::new(),
            Literal::SomeIn {
                key,
                value,
                collection,
                ..
            } => {
                let patterns = key.iter().chain([value]);
                let mut edits: Vec<Edit> = patterns.flat_map(|part| self.expr(part)).collect();
                edits.extend(self.through(collection, "null"));
                edits
            }
            Literal::NotExpr { expr, .. } | Literal::Expr { expr, .. } => self.asked(expr),
            Literal::Every {
                key,
                value,
                domain,
                query,
                ..
            } => {
                let names = key.iter().chain([value]).map(|name| name.text());
                let names = names.filter(|name| *name != "_").map(str::to_owned);
                let names: BTreeSet<String> = names.collect();
                let mut edits = self.through(domain, &self.waits(query, &names));
                edits.extend(given(query, &names));
                let before = self.sure.clone();
                self.sure.extend(names);
                edits.extend(self.query(query));
                self.sure = before;
                edits
            }
        };
        for modifier in &statement.with_mods {
            edits.extend(self.expr(&modifier.r#as));
        }
        edits
    }

    /// What an `every` finds in what is no collection, or the variables that its body takes from around
    /// it: the engine orders statements by what they need, and does not look into the body for it.
    fn waits(&self, query: &Query, names: &BTreeSet<String>) -> String {
        let mut free = variables::free(query, names, &self.rules);
        free.retain(|name| self.around.iter().any(|around| around.contains(name)));
        if free.is_empty() {
            return "false".to_owned();
        }
        format!("[{}]", free.into_iter().collect::<Vec<_>>().join(", "))
    }

    /// A statement that is a call.
    fn call(&mut self, expr: &Expr) -> Option<Edit> {
        let Expr::Call { fcn, params, .. } = expr else {
            return None;
        };
        let name = chain(fcn).prefix()?.join(".");
        let root = chain(fcn).prefix()?.into_iter().next()?;
        if self.rules.contains(&root) {
            return None;
        }
        let range = extent(expr);
        if name == "print" && !self.style.prints {
            return Some(Edit {
                pieces: vec![Piece::Text("true".to_owned(), range.start)],
                range,
            });
        }
        let host = host::find(&name)?;
        let (last, given) = params.split_last()?;
        if given.len() != usize::from(host.arity) || BUILTINS.contains_key(name.as_str()) {
            return None;
        }
        let mut pieces = self.render(last);
        pieces.push(Piece::Text(format!(" = {name}("), range.start));
        for (index, param) in given.iter().enumerate() {
            if index > 0 {
                pieces.push(Piece::Text(", ".to_owned(), extent(param).start));
            }
            pieces.extend(self.render(param));
        }
        pieces.push(Piece::Text(")".to_owned(), range.end));
        Some(Edit { range, pieces })
    }

    /// The arguments of a call of `walk`.
    fn walked<'e>(&self, expr: &'e Expr) -> Option<&'e Vec<Ref<Expr>>> {
        let Expr::Call { fcn, params, .. } = expr else {
            return None;
        };
        let name = chain(fcn).prefix()?;
        (name == ["walk"] && !self.rules.contains("walk")).then_some(params)
    }

    /// `[path, value] := walk(x)`: the engine goes through what is walked in the other form only.
    fn walk(&mut self, expr: &Expr) -> Option<Edit> {
        let Expr::AssignExpr { lhs, rhs, .. } = expr else {
            return None;
        };
        let (pattern, over) = match (self.walked(rhs), self.walked(lhs)) {
            (Some(params), _) => (lhs, params),
            (_, Some(params)) => (rhs, params),
            _ => return None,
        };
        let [over] = over.as_slice() else {
            return None;
        };
        let range = extent(expr);
        let mut pieces = vec![Piece::Text("walk(".to_owned(), range.start)];
        pieces.extend(self.render(over));
        pieces.push(Piece::Text(", ".to_owned(), range.start));
        pieces.extend(self.render(pattern));
        pieces.push(Piece::Text(")".to_owned(), range.end));
        Some(Edit { range, pieces })
    }

    fn render(&mut self, expr: &Expr) -> Vec<Piece> {
        let edits = self.expr(expr);
        splice(extent(expr), edits)
    }

    /// What is gone through. The engine fails where it is no collection; OPA finds nothing.
    fn through(&mut self, collection: &Expr, nothing: &str) -> Vec<Edit> {
        let sure = match collection {
            Expr::Array { .. }
            | Expr::Set { .. }
            | Expr::Object { .. }
            | Expr::ArrayCompr { .. }
            | Expr::SetCompr { .. }
            | Expr::ObjectCompr { .. } => true,
            other => present(other, self.style.document),
        };
        if sure && !nothing.starts_with('[') {
            return self.expr(collection);
        }
        let range = extent(collection);
        let mut pieces = vec![Piece::Text(format!("{OURS}("), range.start)];
        pieces.extend(self.render(collection));
        pieces.push(Piece::Text(format!(", {nothing})"), range.end));
        vec![Edit { range, pieces }]
    }

    /// A condition on its own: here an `in` that is undefined fails like one that is false. Not with
    /// a key: the engine finds something undefined where there is nothing.
    fn asked(&mut self, expr: &Expr) -> Vec<Edit> {
        match expr {
            Expr::Membership {
                key: None,
                value,
                collection,
                ..
            } => {
                let parts = [value, collection].into_iter();
                parts.flat_map(|part| self.expr(part)).collect()
            }
            other => self.expr(other),
        }
    }

    /// The edits within a value.
    fn expr(&mut self, expr: &Expr) -> Vec<Edit> {
        if self.walked(expr).is_some() {
            self.refused.push((
                place(expr.span()),
                "`walk` in the middle of an expression",
                "write `walk(x, [path, value])` as a statement of its own",
            ));
        }
        match expr {
            Expr::Membership {
                key,
                value,
                collection,
                ..
            } => {
                let range = extent(expr);
                let name = if key.is_some() {
                    "internal.member_3("
                } else {
                    "internal.member_2("
                };
                let mut pieces = vec![Piece::Text(name.to_owned(), range.start)];
                for (index, part) in key.iter().chain([value, collection]).enumerate() {
                    if index > 0 {
                        pieces.push(Piece::Text(", ".to_owned(), extent(part).start));
                    }
                    pieces.extend(self.render(part));
                }
                pieces.push(Piece::Text(")".to_owned(), range.end));
                vec![Edit { range, pieces }]
            }
            Expr::ArrayCompr { term, query, .. } | Expr::SetCompr { term, query, .. } => {
                let mut edits = self.expr(term);
                edits.extend(self.query(query));
                edits
            }
            Expr::ObjectCompr {
                key, value, query, ..
            } => {
                let mut edits = self.expr(key);
                edits.extend(self.expr(value));
                edits.extend(self.query(query));
                edits
            }
            Expr::RefBrack { refr, index, .. } if self.late(index) => {
                let mut edits = self.expr(refr);
                edits.push(itself(index));
                edits
            }
            Expr::AssignExpr {
                op: AssignOp::Eq,
                lhs,
                rhs,
                ..
            } => {
                let mut edits = self.side(lhs);
                edits.extend(self.side(rhs));
                edits
            }
            _ => {
                let mut edits = Vec::new();
                parts(expr, &mut |part| edits.extend(self.expr(part)));
                self.operation(expr, edits)
            }
        }
    }

    /// An operator as a call, with these edits to its operands.
    fn operation(&self, expr: &Expr, edits: Vec<Edit>) -> Vec<Edit> {
        if let Expr::BoolExpr { op, lhs, rhs, .. } = expr
            && let Some(sign) = order(op)
            && self.two_kinds(lhs, rhs)
        {
            let (open, close) = (format!("{OURS}(["), format!("], \"{sign}\")"));
            return vec![written(expr, lhs, rhs, [&open, ", ", &close], &edits)];
        }
        let (name, lhs, rhs) = match expr {
            Expr::ArithExpr { op, lhs, rhs, .. } => match op {
                ArithOp::Add => ("plus", lhs, rhs),
                ArithOp::Sub => ("minus", lhs, rhs),
                ArithOp::Mul => ("mul", lhs, rhs),
                ArithOp::Div => ("div", lhs, rhs),
                ArithOp::Mod => ("rem", lhs, rhs),
            },
            Expr::BinExpr { op, lhs, rhs, .. } => match op {
                BinOp::Union => ("or", lhs, rhs),
                BinOp::Intersection => ("and", lhs, rhs),
            },
            _ => return edits,
        };
        if !self.style.undefined || self.rules.contains(name) {
            return edits;
        }
        let open = format!("{name}(");
        vec![written(expr, lhs, rhs, [&open, ", ", ")"], &edits)]
    }

    /// Whether one side is a set and the other an object, as far as their forms tell.
    fn two_kinds(&self, lhs: &Expr, rhs: &Expr) -> bool {
        let kind = |side| kinds::of(side, &self.package, self.names);
        match (kind(lhs), kind(rhs)) {
            (Some(one), Some(other)) => one != other,
            (Some(_), None) => !kinds::neither(rhs),
            (None, Some(_)) => !kinds::neither(lhs),
            (None, None) => false,
        }
    }

    /// As OPA's compiler: what is evaluated before the `not` gets a name before it.
    fn negated(&mut self, statement: &LiteralStmt, expr: &Expr) -> Vec<Edit> {
        let begin = offset(statement.span.start);
        let mut first: Vec<Piece> = Vec::new();
        let mut edits = Vec::new();
        // The values of `with` are asked without it.
        let mut modifiers: Vec<Edit> = Vec::new();
        for modifier in &statement.with_mods {
            let mut operands = Vec::new();
            if !self.names_function(&modifier.r#as) {
                self.operand(&modifier.r#as, &mut operands);
            }
            for operand in operands {
                modifiers.push(self.hoist(operand, &[], &mut first));
            }
        }
        let with: Vec<Piece> = match (statement.with_mods.first(), statement.with_mods.last()) {
            (Some(from), Some(to)) => {
                let range = offset(from.span.start)..extent(&to.r#as).end;
                let mut with = vec![Piece::Text(" ".to_owned(), range.start)];
                with.extend(splice(range, modifiers.clone()));
                with
            }
            _ => Vec::new(),
        };
        edits.extend(modifiers);
        let mut operands = Vec::new();
        let mut asked = self.condition(expr, &mut operands);
        for operand in operands {
            asked.push(self.hoist(operand, &with, &mut first));
        }
        // Nothing gets a value under a `not`: whatever OPA takes has one before.
        if let Expr::AssignExpr {
            op: AssignOp::Eq,
            lhs,
            rhs,
            ..
        } = expr
        {
            asked = vec![written(expr, lhs, rhs, ["", " == ", ""], &asked)];
        }
        edits.extend(self.operation(expr, asked));
        if first.is_empty() {
            return edits;
        }
        let bare = self.before.contains(&begin);
        if bare {
            first.insert(0, Piece::Text("{ ".to_owned(), begin));
            let end = statement
                .with_mods
                .last()
                .map_or(extent(expr), |modifier| extent(&modifier.r#as))
                .end;
            let end = end.max(offset(statement.span.end));
            edits.push(Edit {
                range: end..end,
                pieces: vec![Piece::Text(" }".to_owned(), end)],
            });
        }
        edits.push(Edit {
            range: begin..begin,
            pieces: first,
        });
        edits
    }

    /// `with f as g`.
    fn names_function(&self, expr: &Expr) -> bool {
        let name = chain(expr).prefix().map(|name| name.join("."));
        name.is_some_and(|name| host::arity(&name).is_some())
    }

    /// Gives an operand a name before the statement; the edit puts the name in its place.
    fn hoist(&mut self, operand: &Expr, with: &[Piece], first: &mut Vec<Piece>) -> Edit {
        self.next += 1;
        let mut name = format!("__portcullis_{}", self.next);
        let range = extent(operand);
        self.wildcards(operand);
        first.push(Piece::Text(format!("{name} := "), range.start));
        first.extend(self.render(operand));
        first.extend(with.iter().cloned());
        first.push(Piece::Text("; ".to_owned(), range.start));
        // The machine lets a `:=` of something undefined pass.
        if !present(operand, self.style.document) {
            first.push(Piece::Text(format!("{name} != {NOTHING}; "), range.start));
        }
        // It waits for what the operand waits for.
        if self.unsure(operand) {
            name = format!("{OURS}({name}, \"=\")");
        }
        Edit {
            pieces: vec![Piece::Text(name, range.start)],
            range,
        }
    }

    /// OPA calls `_` under a `not` unsafe.
    fn wildcards(&mut self, expr: &Expr) {
        match expr {
            Expr::Var { span, .. } if span.text() == "_" => self.operand(expr, &mut Vec::new()),
            Expr::ArrayCompr { .. } | Expr::SetCompr { .. } | Expr::ObjectCompr { .. } => {}
            other => parts(other, &mut |part| self.wildcards(part)),
        }
    }

    /// Collects what of a negated condition is evaluated before it; the rest is edited where it is.
    fn condition<'e>(&mut self, expr: &'e Expr, out: &mut Vec<&'e Expr>) -> Vec<Edit> {
        match expr {
            Expr::Call { params, .. } => {
                for param in params {
                    self.operand(param, out);
                }
            }
            Expr::Membership {
                key,
                value,
                collection,
                ..
            } => {
                for part in key.iter().chain([value, collection]) {
                    self.operand(part, out);
                }
            }
            Expr::BoolExpr {
                op: BoolOp::Eq,
                lhs,
                rhs,
                ..
            }
            | Expr::AssignExpr {
                op: AssignOp::Eq,
                lhs,
                rhs,
                ..
            } => {
                for side in [lhs, rhs] {
                    self.compared(side, out);
                }
            }
            Expr::BoolExpr { lhs, rhs, .. }
            | Expr::ArithExpr { lhs, rhs, .. }
            | Expr::BinExpr { lhs, rhs, .. } => {
                for side in [lhs, rhs] {
                    self.operand(side, out);
                }
            }
            Expr::UnaryExpr { expr, .. } => self.operand(expr, out),
            other => self.compared(other, out),
        }
        // Comprehensions stay where they are, with what is inside.
        let mut edits = Vec::new();
        self.kept(expr, out, &mut edits);
        edits
    }

    /// A reference may be undefined where equality asks for it; its steps may not.
    fn compared<'e>(&mut self, expr: &'e Expr, out: &mut Vec<&'e Expr>) {
        match expr {
            Expr::RefDot { refr, .. } => self.base(refr, out),
            Expr::RefBrack { refr, index, .. } => {
                self.base(refr, out);
                self.operand(index, out);
            }
            Expr::Var { .. } => {}
            other => self.operand(other, out),
        }
    }

    fn base<'e>(&mut self, expr: &'e Expr, out: &mut Vec<&'e Expr>) {
        match expr {
            Expr::Call { .. } => out.push(expr),
            other => self.compared(other, out),
        }
    }

    fn operand<'e>(&mut self, expr: &'e Expr, out: &mut Vec<&'e Expr>) {
        match expr {
            Expr::Var { span, .. } => {
                if span.text() == "_" {
                    self.refused.push((
                        place(span),
                        "`_` under a `not` stands for nothing: `not` is asked once, not for each",
                        "go through the collection before, or in a rule that is then negated",
                    ));
                }
                if self.rules.contains(span.text()) {
                    out.push(expr);
                }
            }
            Expr::RefDot { .. }
            | Expr::RefBrack { .. }
            | Expr::Call { .. }
            | Expr::BinExpr { .. }
            | Expr::BoolExpr { .. }
            | Expr::ArithExpr { .. }
            | Expr::Membership { .. } => out.push(expr),
            Expr::UnaryExpr { expr: inner, .. }
                if !matches!(inner.as_ref(), Expr::Number { .. }) =>
            {
                out.push(expr);
            }
            Expr::Array { items, .. } | Expr::Set { items, .. } => {
                for item in items {
                    self.operand(item, out);
                }
            }
            Expr::Object { fields, .. } => {
                for (_, key, value) in fields {
                    self.operand(key, out);
                    self.operand(value, out);
                }
            }
            _ => {}
        }
    }

    /// The edits of what is not hoisted.
    fn kept(&mut self, expr: &Expr, out: &[&Expr], edits: &mut Vec<Edit>) {
        if out.iter().any(|hoisted| std::ptr::eq(*hoisted, expr)) {
            return;
        }
        match expr {
            Expr::ArrayCompr { .. } | Expr::SetCompr { .. } | Expr::ObjectCompr { .. } => {
                edits.extend(self.expr(expr));
            }
            // The engine would go through all that there is before the name has its value.
            Expr::RefBrack { refr, index, .. }
                if matches!(index.as_ref(), Expr::Var { .. }) && self.unsure(index) =>
            {
                edits.push(itself(index));
                self.kept(refr, out, edits);
            }
            other => parts(other, &mut |part| self.kept(part, out, edits)),
        }
    }
}

/// The names of an `every`. The engine's planner does not know that they have values: in the body
/// `data.open[role]` would go through all of `data.open`, and `role = "admin"` would give `role` another
/// value, and both would hold. What stands in the last argument of a call it takes for known from there
/// on. This call is asked first, as it waits for nothing.
fn given(query: &Query, names: &BTreeSet<String>) -> Option<Edit> {
    let statement = query.stmts.first()?;
    if !variables::asked_for(query, names) {
        return None;
    }
    let mut begin = offset(statement.span.start);
    if let Literal::Expr { expr, .. } = &statement.literal {
        // The engine's span of a text begins behind its quote.
        begin = begin.min(extent(expr).start);
    }
    let named = names.iter().map(String::as_str).collect::<Vec<_>>();
    let named = named.join(", ");
    Some(Edit {
        pieces: vec![Piece::Text(
            format!("{OURS}(null, {{\"\": [{named}]}}); "),
            begin,
        )],
        range: begin..begin,
    })
}

/// An operator written in another way: what stands before, between and after its operands, with these
/// edits to them.
fn written(
    expr: &Expr,
    lhs: &Expr,
    rhs: &Expr,
    [open, between, close]: [&str; 3],
    edits: &[Edit],
) -> Edit {
    let range = extent(expr);
    let within = |part: &Expr| {
        let range = extent(part);
        let inside = |edit: &&Edit| range.start <= edit.range.start && edit.range.end <= range.end;
        splice(
            range.clone(),
            edits.iter().filter(inside).cloned().collect(),
        )
    };
    let mut pieces = vec![Piece::Text(open.to_owned(), range.start)];
    pieces.extend(within(lhs));
    pieces.push(Piece::Text(between.to_owned(), extent(rhs).start));
    pieces.extend(within(rhs));
    pieces.push(Piece::Text(close.to_owned(), range.end));
    Edit { range, pieces }
}

/// An expression as a call that gives it: no pattern, and no step of a path that is gone through.
fn itself(expr: &Expr) -> Edit {
    let range = extent(expr);
    Edit {
        pieces: vec![
            Piece::Text(format!("{OURS}("), range.start),
            Piece::Copy(range.clone()),
            Piece::Text(", \"=\")".to_owned(), range.end),
        ],
        range,
    }
}

fn order(op: &BoolOp) -> Option<&'static str> {
    match op {
        BoolOp::Lt => Some("<"),
        BoolOp::Le => Some("<="),
        BoolOp::Gt => Some(">"),
        BoolOp::Ge => Some(">="),
        BoolOp::Eq | BoolOp::Ne => None,
    }
}

/// What is there on each request, so that it need not be asked for.
fn present(expr: &Expr, document: InputDocument) -> bool {
    let chain = chain(expr);
    let full = chain.parts.len() + 1;
    chain
        .prefix()
        .filter(|names| names.len() == full && names.first().is_some_and(|root| root == "input"))
        .is_some_and(|names| {
            let path = names.get(1..).unwrap_or(&[]).join(".");
            document.is_text(&path) || document.is_collection(&path)
        })
}

/// The parts of an expression that are evaluated with it.
pub(super) fn parts(expr: &Expr, visit: &mut dyn FnMut(&Expr)) {
    let mut all = |parts: &[&Ref<Expr>]| {
        for part in parts {
            visit(part);
        }
    };
    match expr {
        Expr::RefDot { refr, .. } => all(&[refr]),
        Expr::RefBrack { refr, index, .. } => all(&[refr, index]),
        Expr::Array { items, .. } | Expr::Set { items, .. } => {
            all(&items.iter().collect::<Vec<_>>());
        }
        Expr::Object { fields, .. } => {
            for (_, key, value) in fields {
                all(&[key, value]);
            }
        }
        Expr::Call { params, .. } => all(&params.iter().collect::<Vec<_>>()),
        Expr::UnaryExpr { expr, .. } => all(&[expr]),
        Expr::BinExpr { lhs, rhs, .. }
        | Expr::BoolExpr { lhs, rhs, .. }
        | Expr::ArithExpr { lhs, rhs, .. }
        | Expr::AssignExpr { lhs, rhs, .. } => all(&[lhs, rhs]),
        Expr::Membership {
            key,
            value,
            collection,
            ..
        } => {
            all(&key.iter().collect::<Vec<_>>());
            all(&[value, collection]);
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests;
