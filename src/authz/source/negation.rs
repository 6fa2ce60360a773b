//! No `not` over what may be undefined.
//!
//! OPA evaluates the references in the arguments of a negated call, `in` or comparison before the
//! `not`: when one is undefined, so is the whole body. regorus evaluates them under the `not`, on
//! both engines, and makes a yes of the undefined: `not input.identity.claims.dept in data.blocked`
//! lets a caller without `dept` through. An `in` inside a value is likewise `false` there instead of
//! undefined, and `false` is what a comparison or a default can be made to wait for.
//!
//! Such forms are refused unless everything in them is sure to be defined. What OPA also calls true
//! passes: `not` before a reference whose indices are sure, a call as such, and `==` between
//! references.

#![expect(
    clippy::wildcard_enum_match_arm,
    reason = "what is not named is not sure"
)]

use std::collections::{BTreeMap, BTreeSet};

use regorus::Value;
use regorus::unstable::{
    AssignOp, BoolOp, Expr, Literal, LiteralStmt, Module, Query, Ref, Rule, RuleHead,
};

use crate::authz::rego::subset::{COLLECTIONS, TEXTS};
use crate::authz::source::remark::Remark;
use crate::authz::source::syntax::{Part, chain, head, head_assign, literal, place};
use crate::document;

/// Further members of the input document that are there on each request, if only as `null`.
const PRESENT: &[&str] = &[
    "identity",
    "request",
    "request.received_at_ns",
    "route",
    "signals",
    "signals.device",
    "signals.device.known",
    "signals.place",
    "signals.place.known",
    "source",
    "source.port",
    "source.tls",
    "version",
];

/// How often constants are looked up through other constants.
const PASSES: usize = 8;

const HELP: &str = "without the value OPA's answer is undefined, and the engine's is yes. Assign the value on a line of its own before, and name the variable instead (`dept := input.identity.claims.dept`, then `not dept in data.blocked`): the body then fails without it. This runs on the interpreter; a line that asks for it as it is (`input.identity.claims.dept`, or `… != \"\"`) serves too and is compiled. Where it may be absent, ask in a rule and negate the rule";

/// An error for each statement of these live modules that is not sure.
pub(in crate::authz) fn check(modules: &[Ref<Module>], data: &Value) -> Vec<Remark> {
    let mut reader = Reader {
        data,
        rules: BTreeMap::new(),
        replaced: Vec::new(),
        package: Vec::new(),
        aliases: BTreeMap::new(),
        bound: Vec::new(),
        proven: Vec::new(),
        file: String::new(),
        remarks: Vec::new(),
    };
    // What `with` replaces is known after one walk.
    for _ in 0..2 {
        reader.remarks.clear();
        reader.rules.clear();
        for _ in 0..PASSES {
            let mut changed = false;
            for module in modules {
                reader.enter(module);
                for rule in &module.policy {
                    changed |= reader.declare(rule);
                }
            }
            if !changed {
                break;
            }
        }
        for module in modules {
            reader.enter(module);
            for rule in &module.policy {
                reader.rule(rule);
            }
        }
        if reader.replaced.is_empty() {
            break;
        }
    }
    reader.remarks
}

/// A reference that may be undefined.
struct Unsure {
    at: (usize, usize),
    text: String,
    of_data: bool,
}

struct Reader<'p> {
    data: &'p Value,
    /// Rules and functions by path; whether they are always defined.
    rules: BTreeMap<Vec<String>, bool>,
    /// Paths that some `with` replaces: nothing at or below them is sure.
    replaced: Vec<Vec<String>>,
    package: Vec<String>,
    aliases: BTreeMap<String, Vec<String>>,
    /// Variables that have a value, by scope.
    bound: Vec<BTreeSet<String>>,
    /// Paths without which the body has failed already, by scope.
    proven: Vec<BTreeSet<Vec<String>>>,
    file: String,
    remarks: Vec<Remark>,
}

impl Reader<'_> {
    fn enter(&mut self, module: &Module) {
        self.file = module.package.span.source.get_path().clone();
        self.package = vec!["data".to_owned()];
        self.package
            .extend(chain(&module.package.refr).prefix().unwrap_or_default());
        self.aliases.clear();
        for import in &module.imports {
            let path = chain(&import.refr).prefix().unwrap_or_default();
            let name = match &import.r#as {
                Some(span) => Some(span.text().to_owned()),
                None => path.last().cloned(),
            };
            let inner = path.first().is_some_and(|root| is_root(root));
            if let Some(name) = name.filter(|_| inner) {
                self.aliases.insert(name, path);
            }
        }
    }

    /// Whether this told something new.
    fn declare(&mut self, rule: &Rule) -> bool {
        let refr = chain(head(rule));
        let mut path = self.package.clone();
        path.extend(refr.prefix().unwrap_or_default());
        let partial = refr.parts.iter().any(|p| matches!(p, Part::Dynamic(_)));
        let sure = match rule {
            Rule::Default { .. } => true,
            Rule::Spec { head, bodies, .. } => match head {
                RuleHead::Set { .. } => true,
                RuleHead::Compr { assign, .. } => {
                    partial
                        || bodies.is_empty()
                            && assign
                                .as_ref()
                                .is_none_or(|assign| self.sure(&assign.value).is_ok())
                }
                RuleHead::Func { .. } => false,
            },
        };
        match self.rules.get_mut(&path) {
            Some(known) if *known || !sure => false,
            Some(known) => {
                *known = true;
                true
            }
            None => {
                self.rules.insert(path, sure);
                true
            }
        }
    }

    fn rule(&mut self, rule: &Rule) {
        match rule {
            Rule::Default { value, .. } => self.value(value),
            Rule::Spec { head, bodies, .. } => {
                if bodies.is_empty() {
                    self.body(head, None, head_assign(head).map(|a| a.value.as_ref()));
                }
                for (index, body) in bodies.iter().enumerate() {
                    let first = if index == 0 { head_assign(head) } else { None };
                    let assign = body.assign.as_ref().or(first);
                    self.body(head, Some(&body.query), assign.map(|a| a.value.as_ref()));
                }
            }
        }
    }

    fn body(&mut self, head: &RuleHead, query: Option<&Query>, value: Option<&Expr>) {
        self.open();
        if let RuleHead::Func { args, .. } = head {
            // Without its arguments a function is not called.
            for arg in args {
                self.bind(arg);
            }
        }
        if let Some(query) = query {
            self.query(query);
        }
        if let RuleHead::Set { key: Some(key), .. } = head {
            self.value(key);
        }
        match head {
            RuleHead::Compr { refr, .. }
            | RuleHead::Set { refr, .. }
            | RuleHead::Func { refr, .. } => self.value(refr),
        }
        if let Some(value) = value {
            self.value(value);
        }
        self.close();
    }

    fn open(&mut self) {
        self.bound.push(BTreeSet::new());
        self.proven.push(BTreeSet::new());
    }

    fn close(&mut self) {
        self.bound.pop();
        self.proven.pop();
    }

    fn query(&mut self, query: &Query) {
        for statement in &query.stmts {
            self.statement(statement);
        }
    }

    fn statement(&mut self, statement: &LiteralStmt) {
        if statement.with_mods.is_empty() {
            return self.literal(statement);
        }
        // With another input or other data nothing is proven, neither before nor by this.
        let outer = std::mem::take(&mut self.proven);
        self.proven.push(BTreeSet::new());
        self.literal(statement);
        self.proven = outer;
    }

    fn literal(&mut self, statement: &LiteralStmt) {
        for modifier in &statement.with_mods {
            self.value(&modifier.r#as);
            let path = chain(&modifier.refr).prefix().unwrap_or_default();
            if let Some(full) = self.full(&path)
                && !self.replaced.contains(&full)
            {
                self.replaced.push(full);
            }
        }
        match &statement.literal {
            Literal::SomeVars { .. } => {}
            Literal::SomeIn {
                key,
                value,
                collection,
                ..
            } => {
                self.value(collection);
                self.prove(collection);
                for variable in key.iter().chain([value]) {
                    self.bind(variable);
                }
            }
            Literal::NotExpr { expr, .. } => {
                let modifiers = statement.with_mods.iter();
                let sure = modifiers
                    .map(|modifier| self.sure(&modifier.r#as))
                    .chain([self.negated(expr)])
                    .find_map(Result::err);
                match sure {
                    Some(unsure) => self.refuse("`not` over", unsure),
                    None => self.parts(expr),
                }
            }
            Literal::Expr { expr, .. } => {
                match expr.as_ref() {
                    // A statement of its own that finds nothing fails, defined or not.
                    Expr::Membership {
                        key,
                        value,
                        collection,
                        ..
                    } => {
                        for part in key.iter().chain([value, collection]) {
                            self.value(part);
                        }
                    }
                    expr => self.value(expr),
                }
                self.prove(expr);
            }
            Literal::Every {
                key,
                value,
                domain,
                query,
                ..
            } => {
                self.value(domain);
                self.open();
                for name in key.iter().chain([value]) {
                    self.name(name.text());
                }
                self.query(query);
                self.close();
            }
        }
    }

    fn refuse(&mut self, what: &str, unsure: Unsure) {
        let Unsure { at, text, of_data } = unsure;
        let why = if of_data {
            "which the policy's data do not always have"
        } else {
            "which may be absent"
        };
        let remark = Remark::error(
            &self.file,
            Some(at),
            format!("{what} a form with `{text}`, {why}"),
            HELP,
        );
        self.remarks.push(remark);
    }

    /// Looks for an `in` inside a value, and at the bodies of comprehensions.
    fn value(&mut self, expr: &Expr) {
        if let Expr::Membership {
            key,
            value,
            collection,
            ..
        } = expr
        {
            let unsure = key
                .iter()
                .chain([value, collection])
                .find_map(|part| self.sure(part).err());
            if let Some(unsure) = unsure {
                return self.refuse("`in` as a value, over", unsure);
            }
        }
        self.parts(expr);
    }

    fn parts(&mut self, expr: &Expr) {
        match expr {
            Expr::ArrayCompr { term, query, .. } | Expr::SetCompr { term, query, .. } => {
                self.comprehension(query, &[term]);
            }
            Expr::ObjectCompr {
                key, value, query, ..
            } => self.comprehension(query, &[key, value]),
            _ => each(expr, &mut |part| self.value(part)),
        }
    }

    fn comprehension(&mut self, query: &Query, terms: &[&Ref<Expr>]) {
        self.open();
        self.query(query);
        for term in terms {
            self.value(term);
        }
        self.close();
    }

    /// What has a value once this statement has not failed.
    fn prove(&mut self, expr: &Expr) {
        match expr {
            Expr::Var { .. } | Expr::RefDot { .. } | Expr::RefBrack { .. } => {
                let chain = chain(expr);
                for part in &chain.parts {
                    if let Part::Dynamic(index) = part {
                        self.prove(index);
                    }
                }
                match chain.prefix() {
                    None => self.prove(chain.base),
                    Some(path) => match self.full(&path) {
                        Some(full) => {
                            if let Some(proven) = self.proven.last_mut() {
                                proven.insert(full);
                            }
                        }
                        None => self.bind(chain.base),
                    },
                }
            }
            // These are defined whatever is in them.
            Expr::ArrayCompr { .. } | Expr::SetCompr { .. } | Expr::ObjectCompr { .. } => {}
            Expr::AssignExpr {
                op: AssignOp::ColEq,
                lhs,
                rhs,
                ..
            } => {
                self.prove(rhs);
                self.bind(lhs);
            }
            Expr::Call { params, .. } => {
                for param in params {
                    self.prove(param);
                }
            }
            _ => each(expr, &mut |part| self.prove(part)),
        }
    }

    /// The variables of a pattern.
    fn bind(&mut self, expr: &Expr) {
        match expr {
            Expr::Var { span, .. } => self.name(span.text()),
            Expr::Array { items, .. } | Expr::Set { items, .. } => {
                for item in items {
                    self.bind(item);
                }
            }
            Expr::Object { fields, .. } => {
                for (_, _, value) in fields {
                    self.bind(value);
                }
            }
            _ => {}
        }
    }

    fn name(&mut self, name: &str) {
        if name != "_"
            && let Some(scope) = self.bound.last_mut()
        {
            scope.insert(name.to_owned());
        }
    }

    fn is_bound(&self, name: &str) -> bool {
        self.bound.iter().any(|scope| scope.contains(name))
    }

    /// The full path of what is no variable: a rule, or what an import names.
    fn full(&self, names: &[String]) -> Option<Vec<String>> {
        let (root, rest) = names.split_first()?;
        if self.is_bound(root) {
            return None;
        }
        if is_root(root) {
            return Some(names.to_vec());
        }
        let mut full = match self.aliases.get(root) {
            Some(alias) => alias.clone(),
            None => {
                let mut full = self.package.clone();
                full.push(root.clone());
                self.has_rule(&full).then_some(full)?
            }
        };
        full.extend_from_slice(rest);
        Some(full)
    }

    /// Whether a rule is at or below this path.
    fn has_rule(&self, path: &[String]) -> bool {
        self.rules
            .range(path.to_vec()..)
            .next()
            .is_some_and(|(rule, _)| rule.starts_with(path))
    }

    /// Accepts what a `not` may stand before: as OPA, what is undefined is a no there.
    fn negated(&self, expr: &Expr) -> Result<(), Unsure> {
        match expr {
            Expr::Var { .. } | Expr::RefDot { .. } | Expr::RefBrack { .. } => self.indices(expr),
            Expr::BoolExpr {
                op: BoolOp::Eq,
                lhs,
                rhs,
                ..
            }
            | Expr::AssignExpr { lhs, rhs, .. } => {
                self.operand(lhs)?;
                self.operand(rhs)
            }
            Expr::Call { params, .. } => params.iter().try_for_each(|param| self.sure(param)),
            _ => self.sure(expr),
        }
    }

    fn operand(&self, expr: &Expr) -> Result<(), Unsure> {
        match expr {
            Expr::Var { .. } | Expr::RefDot { .. } | Expr::RefBrack { .. } => self.indices(expr),
            _ => self.sure(expr),
        }
    }

    /// Accepts a reference that may be undefined as a whole, but not by what it is looked up with.
    fn indices(&self, expr: &Expr) -> Result<(), Unsure> {
        let chain = chain(expr);
        if !matches!(chain.base, Expr::Var { .. }) {
            self.sure(chain.base)?;
        }
        chain.parts.iter().try_for_each(|part| match part {
            Part::Name(_) => Ok(()),
            Part::Dynamic(index) => self.sure(index),
        })
    }

    /// Accepts what is never undefined.
    fn sure(&self, expr: &Expr) -> Result<(), Unsure> {
        match expr {
            Expr::Var { .. } | Expr::RefDot { .. } | Expr::RefBrack { .. } => self.reference(expr),
            Expr::ArrayCompr { .. } | Expr::SetCompr { .. } | Expr::ObjectCompr { .. } => Ok(()),
            Expr::Call { fcn, params, .. } => {
                let ours = chain(fcn).prefix().and_then(|name| self.full(&name));
                if ours.is_some_and(|path| !self.there(&path)) {
                    return Err(unsure(fcn));
                }
                params.iter().try_for_each(|param| self.sure(param))
            }
            Expr::Array { .. }
            | Expr::Set { .. }
            | Expr::Object { .. }
            | Expr::UnaryExpr { .. }
            | Expr::BinExpr { .. }
            | Expr::BoolExpr { .. }
            | Expr::ArithExpr { .. }
            | Expr::Membership { .. } => {
                let mut result = Ok(());
                each(expr, &mut |part| {
                    if result.is_ok() {
                        result = self.sure(part);
                    }
                });
                result
            }
            other if literal(other).is_some() => Ok(()),
            other => Err(unsure(other)),
        }
    }

    fn reference(&self, expr: &Expr) -> Result<(), Unsure> {
        let chain = chain(expr);
        let dynamic = chain.parts.iter().any(|p| matches!(p, Part::Dynamic(_)));
        let Some(names) = chain.prefix().filter(|_| !dynamic) else {
            return Err(unsure(expr));
        };
        let fine = match self.full(&names) {
            Some(full) => self.there(&full),
            // A member of a variable may be absent.
            None => names.len() == 1 && names.first().is_some_and(|name| self.is_bound(name)),
        };
        if fine { Ok(()) } else { Err(unsure(expr)) }
    }

    fn there(&self, full: &[String]) -> bool {
        let proven = self
            .proven
            .iter()
            .flatten()
            .any(|proven| proven.starts_with(full));
        if proven {
            return true;
        }
        if self.replaced.iter().any(|path| full.starts_with(path)) {
            return false;
        }
        let Some((root, rest)) = full.split_first() else {
            return false;
        };
        if root == "input" {
            let path = rest.join(".");
            return rest.is_empty()
                || [TEXTS, COLLECTIONS, PRESENT]
                    .iter()
                    .any(|list| list.contains(&path.as_str()));
        }
        if let Some(sure) = self.rules.get(full) {
            return *sure;
        }
        let through = (1..full.len())
            .filter_map(|end| full.get(..end))
            .any(|path| self.rules.contains_key(path));
        !through
            && rest
                .iter()
                .try_fold(self.data, |value, name| document::member(value, name))
                .is_some()
    }
}

fn is_root(name: &str) -> bool {
    name == "data" || name == "input"
}

fn unsure(expr: &Expr) -> Unsure {
    let chain = chain(expr);
    let mut text = match chain.base {
        Expr::Var { span, .. } => span.text().to_owned(),
        _ => "…".to_owned(),
    };
    for part in &chain.parts {
        match part {
            Part::Name(name) => {
                text.push('.');
                text.push_str(name);
            }
            Part::Dynamic(_) => text.push_str("[…]"),
        }
    }
    Unsure {
        at: place(chain.base.span()),
        of_data: text.starts_with("data."),
        text,
    }
}

/// The parts of an expression that are evaluated with it.
fn each(expr: &Expr, visit: &mut dyn FnMut(&Expr)) {
    match expr {
        Expr::RefDot { refr, .. } => visit(refr),
        Expr::RefBrack { refr, index, .. } => {
            visit(refr);
            visit(index);
        }
        Expr::Array { items, .. } | Expr::Set { items, .. } => {
            for item in items {
                visit(item);
            }
        }
        Expr::Object { fields, .. } => {
            for (_, key, value) in fields {
                visit(key);
                visit(value);
            }
        }
        Expr::Call { params, .. } => {
            for param in params {
                visit(param);
            }
        }
        Expr::UnaryExpr { expr, .. } => visit(expr),
        Expr::BinExpr { lhs, rhs, .. }
        | Expr::BoolExpr { lhs, rhs, .. }
        | Expr::ArithExpr { lhs, rhs, .. }
        | Expr::AssignExpr { lhs, rhs, .. } => {
            visit(lhs);
            visit(rhs);
        }
        Expr::Membership {
            key,
            value,
            collection,
            ..
        } => {
            for part in key.iter().chain([value, collection]) {
                visit(part);
            }
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroU64;
    use std::time::Duration;

    use super::*;
    use crate::authz::rego::subset;
    use crate::authz::rego::{self, Limits, Machine, Outcome, Program};

    const DATA: &str = r#"{"blocked": ["closed"], "m": {"x": true}, "xs": ["x"]}"#;

    fn data() -> Value {
        Value::from_json_str(DATA).unwrap()
    }

    fn engine(rules: &str) -> regorus::Engine {
        let source = ("p.rego".to_owned(), format!("package p\n{rules}\n"));
        rego::parse(&[source], &data()).unwrap_or_else(|e| panic!("{rules}: {e:?}"))
    }

    fn remarks(rules: &str) -> Vec<Remark> {
        check(engine(rules).get_modules(), &data())
    }

    const REFUSED: &[&str] = &[
        "allow if not input.identity.claims.dept in data.blocked",
        "allow if not input.identity.claims.dept in {\"closed\"}",
        "allow if not \"x\" in input.identity.scopes",
        "allow if not \"x\" in data.nowhere",
        "allow if not \"k\", input.nope in data.m",
        "allow if not input.route.params.id in data.blocked",
        "allow if not input.request.segments[0] in data.blocked",
        "allow if not startswith(input.identity.subject, \"svc-\")",
        "allow if not startswith(input.request.headers[\"x-a\"], \"b\")",
        "f(x) if x == 1\nallow if not f(input.nope)",
        "f(x) := x\nallow if not startswith(f(input.request.path), \"x\")",
        "f(x) := x\nallow if not f(input.request.path) == \"x\"",
        "allow if not upper(input.nope) == \"X\"",
        "allow if not data.m[input.nope]",
        "allow if not data.m[input.nope].y",
        "allow if not data.m[input.nope] == 1",
        "allow if not data.m[data.xs[0]]",
        "allow if not data.xs[_] == \"x\"",
        "allow if not [input.nope] == [1]",
        "allow if not {\"a\": input.nope} == {\"a\": 1}",
        "allow if not {input.nope} == {1}",
        "allow if not input.nope != 1",
        "allow if not input.nope < 1",
        "allow if not input.nope + 1 == 2",
        "allow if not {1} & input.nope == set()",
        "allow if not (input.nope == 1) == true",
        "allow if (input.nope in data.xs) == false",
        "allow if false == (input.nope in data.xs)",
        "allow if (input.nope in data.xs) != true",
        "allow if { x := input.nope in data.xs; not x }",
        "allow if { x := [input.nope in data.xs]; x == [false] }",
        "default blocked := true\nblocked := input.nope in data.xs\nallow if not blocked",
        "blocked := false if { input.nope in data.xs } else := input.nope in data.m",
        "allow if { some x in data.xs; not x.y in data.blocked }",
        "allow if { not x in data.blocked; x := input.nope }",
        "allow if { y := 1; not y in input.nope }",
        "allow if { every x in data.xs { not input.nope in [x] } }",
        "allow if count([x | some x in data.xs; not input.nope in [x]]) == 1",
        "allow if not count([x | some x in data.xs; not input.nope in [x]]) == 0",
        "r := 1 if input.a\nallow if not r in data.xs",
        "r := input.nope\nallow if not input.request.path in r",
        "a if true\nallow if a else := true if not input.nope in data.xs",
        "allow if { input.a.b } else := true if { not input.a in data.xs }",
        // `with` takes away what is there on each request.
        "a if not startswith(input.request.path, \"/x\")\nallow if a with input as {}",
        "a if not \"x\" in data.xs\nallow if a with data as {}",
        "r := input.request.path\na if not startswith(r, \"/x\")\nallow if a with input as {}",
        "allow if { input.nope; not input.nope in data.xs with input as {} }",
        "allow if not input.request.path == \"x\" with input as input.nope",
        "f(x) if x == 1\nallow if { not f(input.a.b); input.a.b }",
    ];

    const ACCEPTED: &[&str] = &[
        "allow if not startswith(input.request.path, \"/admin\")",
        "allow if not input.request.method in {\"PUT\", \"POST\"}",
        "allow if not input.request.method in data.blocked",
        "allow if not \"admin\" in input.request.segments",
        "allow if not data.m[input.request.host]",
        "allow if not input.nope",
        "allow if not input.identity.claims.guest",
        "allow if not input.identity.claims.role == \"guest\"",
        "allow if not data.nowhere.x",
        "allow if not input.source.tls == null",
        "b if input.nope in data.xs\nallow if not b",
        "b := 1 if input.nope\nallow if not b == 1",
        "f(x) if x in data.xs\nallow if not f(input.request.path)",
        "f(x) if not x in data.xs\nallow if f(input.nope)",
        "default f(_) := \"x\"\nf(x) := \"y\" if x == 1\nallow if not f(input.request.path) in data.xs",
        "xs := {\"a\", \"b\"}\nallow if not input.request.path in xs",
        "ys := xs\nxs := {\"a\", \"b\"}\nallow if not input.request.path in ys",
        "default r := \"x\"\nr := input.nope\nallow if not r in data.xs",
        "s contains x if { some x in input.nope }\nallow if not \"x\" in s",
        "o[k] := 1 if { some k in data.xs }\nallow if not \"x\" in o",
        "allow if not count([x | some x in input.nope]) > 1",
        "allow if { dept := input.identity.claims.dept; not dept in data.blocked }",
        "allow if { dept = input.identity.claims.dept; not dept in data.blocked }",
        "allow if { [a, b] := input.list; not a in [b] }",
        "allow if { some x in input.list; not x in data.blocked }",
        "allow if { some k, x in input.list; not [k, x] == [1, 2] }",
        "allow if { input.list[i] == 1; not i in data.blocked }",
        "allow if { every x in data.xs { not x in data.blocked } }",
        "allow if { x := input.nope; count([y | some y in data.xs; not y in [x]]) > 0 }",
        "allow if { input.identity.claims.dept; not input.identity.claims.dept in data.blocked }",
        "allow if { input.identity.claims.dept != \"\"; not input.identity.claims.dept in data.blocked }",
        "allow if { input.nope in data.xs }",
        "allow if { x := input.request.path in data.xs; not x }",
        "allow := false if not input.request.path in data.xs",
        "a if not input.nope\nallow if { x := a with input as {}; not x in [1] }",
    ];

    #[test]
    fn what_may_be_undefined_is_not_negated() {
        for rules in REFUSED {
            assert!(!remarks(rules).is_empty(), "{rules}");
        }
    }

    #[test]
    fn what_is_sure_is_negated() {
        for rules in ACCEPTED {
            let remarks = remarks(rules);
            assert!(remarks.is_empty(), "{rules}: {remarks:?}");
        }
    }

    #[test]
    fn the_place_the_reference_and_the_mend_are_told() {
        let found = remarks("allow if {\n  not input.identity.claims.dept in data.blocked\n}");
        let [remark] = found.as_slice() else {
            panic!("{found:?}")
        };
        assert_eq!((remark.line, remark.column), (Some(3), Some(7)));
        assert!(!remark.warning);
        assert!(
            remark.message.contains("`input.identity.claims.dept`"),
            "{remark:?}"
        );
        let help = remark.help.as_deref().unwrap();
        assert!(
            help.contains("`dept := input.identity.claims.dept`"),
            "{help}"
        );
        let found = remarks("allow if not \"x\" in data.nowhere");
        assert!(found[0].message.contains("data do not always have"));
    }

    /// What the program that would go live answers, and whether it is the machine.
    fn answer(rules: &str, input: &str) -> (Outcome, bool) {
        let mut engine = engine(rules);
        let limits = Limits {
            time: Duration::from_secs(5),
            instructions: 1_000_000,
            memory: NonZeroU64::MAX,
        };
        let input = Value::from_json_str(input).unwrap();
        let run = |program: Result<Program, String>| {
            Machine::new(&program.unwrap()).unwrap().run(input.clone())
        };
        let listed = subset::outside(engine.get_modules(), &data()).is_none();
        let answer = run(Program::interpreted(engine.clone(), "data.p.allow", limits));
        if listed {
            let compiled = run(Program::compiled(engine, "data.p.allow", limits));
            assert_eq!(answer, compiled, "{rules}");
        }
        (answer, listed)
    }

    #[test]
    fn the_mended_forms_fail_without_the_value_on_the_engine_that_runs_them() {
        let yes = Outcome::Answer(Value::from(true));
        let (faulty, _) = answer(
            "allow if not input.identity.claims.dept in data.blocked",
            r#"{"identity": {"claims": {}}}"#,
        );
        assert_eq!(faulty, yes, "the check is not needed any more");
        for (body, compiled) in [
            (
                "dept := input.identity.claims.dept\n  not dept in data.blocked",
                false,
            ),
            (
                "dept := input.identity.claims.dept\n  dept != \"\"\n  not dept in data.blocked",
                true,
            ),
            (
                "input.identity.claims.dept\n  not input.identity.claims.dept in data.blocked",
                true,
            ),
            (
                "input.identity.claims.dept != \"\"\n  not input.identity.claims.dept in data.blocked",
                true,
            ),
        ] {
            let rules = format!("allow if {{\n  {body}\n}}");
            assert!(remarks(&rules).is_empty(), "{body}");
            for (input, allowed) in [
                (r#"{"identity": {"claims": {"dept": "sales"}}}"#, true),
                (r#"{"identity": {"claims": {"dept": "closed"}}}"#, false),
                (r#"{"identity": {"claims": {}}}"#, false),
                (r#"{"identity": null}"#, false),
            ] {
                let (found, listed) = answer(&rules, input);
                assert_eq!(found == yes, allowed, "{body} with {input}: {found:?}");
                assert_eq!(listed, compiled, "{body}");
            }
        }
    }
}
