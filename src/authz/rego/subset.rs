//! Which policies may run on the bytecode machine: those made of forms on which both engines agree.
//!
//! The machine is about five times as fast as the interpreter, and it fails open. Compared with
//! the interpreter and with OPA, regorus 0.14 on its bytecode machine
//!
//! - lets a body succeed whose `x := …` is undefined, and puts undefined values into arrays and
//!   objects of comprehensions and partial rules;
//! - calls functions whose parameter is `_` with undefined arguments, and forgets their defaults;
//! - swallows every error inside a rule: a builtin that fails, a division by zero, a comparison of
//!   different types, two values for one rule. The rule is then undefined, and a `not`, a default,
//!   an `else` or an empty comprehension makes a yes of it;
//! - ignores the key in `key, value in collection`;
//! - does not find the member `"7"` of data by the number 7;
//! - does not try `else` when a value is undefined, or a `some … in` finds nothing.
//!
//! Generated inputs cannot be trusted to find each such case of each policy, so what is not listed
//! here runs on the interpreter. The list holds what does not depend on these, and of what can fail
//! only what `guarded` rewrites so that no failure is swallowed: order, arithmetic, builtins, and loops. A property test compares the engines on generated policies and has to find them equal.

#![expect(
    clippy::wildcard_enum_match_arm,
    reason = "what is not named is not allowed"
)]

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};

use regorus::Value;
use regorus::unstable::{
    AssignOp, Expr, Literal, LiteralStmt, Module, Query, Ref, Rule, RuleAssign, RuleHead, Span,
};

use crate::authz::published::InputDocument;
use crate::authz::rego::{guarded, host};
use crate::authz::source::hazard;
use crate::authz::source::syntax::{Part, chain, literal, place};
use crate::document;

/// The first form of a policy that is not on the list.
#[derive(Debug, PartialEq, Eq)]
pub(in crate::authz) struct Outside {
    pub(in crate::authz) file: String,
    pub(in crate::authz) at: (usize, usize),
    pub(in crate::authz) what: &'static str,
}

/// What is known of a rule from all its definitions.
#[derive(Debug, Default)]
struct Facts {
    definitions: usize,
    /// A default: the rule is never undefined.
    default: bool,
    /// A partial set: never undefined either.
    set: bool,
    function: bool,
    /// The values of its definitions; `None` for what is no constant.
    values: BTreeSet<Option<Value>>,
}

type Found = Result<(), (Span, &'static str)>;

/// The first form in the rules of these modules that is not on the list, if there is one.
pub(in crate::authz) fn outside_with(
    modules: &[Ref<Module>],
    data: &Value,
    document: InputDocument,
) -> Option<Outside> {
    let mut rules: BTreeMap<Vec<String>, Facts> = BTreeMap::new();
    for module in modules {
        for rule in &module.policy {
            declare(&package_of(module), rule, &mut rules);
        }
    }
    let tables = Tables::default();
    modules.iter().find_map(|module| {
        let (span, what) = Reader::new(module, modules, &rules, (data, &tables), document)
            .module(module)
            .err()?;
        Some(Outside {
            file: module.package.span.source.get_path().clone(),
            at: place(&span),
            what,
        })
    })
}

/// [`outside_with`] for our own document.
#[cfg(test)]
pub(in crate::authz) fn outside(modules: &[Ref<Module>], data: &Value) -> Option<Outside> {
    outside_with(modules, data, InputDocument::default())
}

fn package_of(module: &Module) -> Vec<String> {
    let mut path = vec!["data".to_owned()];
    path.extend(chain(&module.package.refr).prefix().unwrap_or_default());
    path
}

fn declare(package: &[String], rule: &Rule, rules: &mut BTreeMap<Vec<String>, Facts>) {
    let (refr, default) = match rule {
        Rule::Spec { head, .. } => match head {
            RuleHead::Compr { refr, .. }
            | RuleHead::Set { refr, .. }
            | RuleHead::Func { refr, .. } => (refr, false),
        },
        Rule::Default { refr, .. } => (refr, true),
    };
    let mut path = package.to_vec();
    path.extend(chain(refr).prefix().unwrap_or_default());
    let facts = rules.entry(path).or_default();
    facts.default |= default;
    let Rule::Spec { head, bodies, .. } = rule else {
        return;
    };
    facts.definitions += 1;
    let first = match head {
        RuleHead::Compr { assign, .. } => assign.as_ref(),
        RuleHead::Set { .. } => {
            facts.set = true;
            return;
        }
        RuleHead::Func { assign, .. } => {
            facts.function = true;
            assign.as_ref()
        }
    };
    for value in values(first, bodies.iter().map(|body| body.assign.as_ref())) {
        facts.values.insert(match value {
            Some(expr) => literal(expr),
            None => Some(Value::from(true)),
        });
    }
}

/// The values of a definition's branches; `None` is `true`.
fn values<'r>(
    head: Option<&'r RuleAssign>,
    bodies: impl Iterator<Item = Option<&'r RuleAssign>>,
) -> Vec<Option<&'r Expr>> {
    let mut values: Vec<Option<&Expr>> = bodies
        .enumerate()
        .map(|(index, assign)| assign.or(if index == 0 { head } else { None }))
        .map(|assign| assign.map(|assign| assign.value.as_ref()))
        .collect();
    if values.is_empty() {
        values.push(head.map(|assign| assign.value.as_ref()));
    }
    values
}

/// What is known of tables in the data, by their paths: large ones are gone through once.
type Tables = RefCell<BTreeMap<Vec<String>, bool>>;

#[derive(Clone)]
struct Reader<'p> {
    rules: &'p BTreeMap<Vec<String>, Facts>,
    data: &'p Value,
    document: InputDocument,
    tables: &'p Tables,
    package: Vec<String>,
    aliases: BTreeMap<String, Vec<String>>,
    /// Variables of the body at hand.
    locals: BTreeSet<String>,
    /// Those among them that a statement above has given a value.
    ready: BTreeSet<String>,
    /// Those among them that hold what a builtin made: no part of the data.
    made: BTreeSet<String>,
    /// Rules without which the body at hand fails.
    needed: BTreeSet<String>,
}

impl<'p> Reader<'p> {
    fn new(
        module: &Module,
        modules: &[Ref<Module>],
        rules: &'p BTreeMap<Vec<String>, Facts>,
        (data, tables): (&'p Value, &'p Tables),
        document: InputDocument,
    ) -> Self {
        let package = package_of(module);
        // The machine knows one set of imports per package.
        let mut aliases: BTreeMap<String, Vec<String>> = BTreeMap::new();
        let ours = modules.iter().filter(|other| package_of(other) == package);
        for import in ours.flat_map(|module| &module.imports) {
            let path = chain(&import.refr).prefix().unwrap_or_default();
            let name = match &import.r#as {
                Some(span) => Some(span.text().to_owned()),
                None => path.last().cloned(),
            };
            let inner = path
                .first()
                .is_some_and(|root| root == "data" || root == "input");
            if let Some(name) = name.filter(|_| inner) {
                let known = aliases.entry(name).or_insert_with(|| path.clone());
                if *known != path {
                    known.clear();
                }
            }
        }
        Self {
            rules,
            data,
            document,
            tables,
            package,
            aliases,
            locals: BTreeSet::new(),
            ready: BTreeSet::new(),
            made: BTreeSet::new(),
            needed: BTreeSet::new(),
        }
    }

    fn module(&mut self, module: &Module) -> Found {
        for rule in &module.policy {
            self.needed.clear();
            self.locals.clear();
            self.ready.clear();
            self.made.clear();
            self.rule(rule)?;
        }
        Ok(())
    }

    fn rule(&mut self, rule: &Rule) -> Found {
        match rule {
            Rule::Default {
                span,
                refr,
                args,
                value,
                ..
            } => {
                self.name(refr)?;
                if !args.is_empty() {
                    return Err((span.clone(), "a default of a function"));
                }
                match literal(value) {
                    Some(_) => Ok(()),
                    None => Err((span.clone(), "a default that is no constant")),
                }
            }
            Rule::Spec { span, head, bodies } => {
                let mut parameters: &[Ref<Expr>] = &[];
                let assign = match head {
                    RuleHead::Compr { refr, assign, .. } => {
                        self.name(refr)?;
                        assign.as_ref()
                    }
                    RuleHead::Set { refr, key, .. } => {
                        self.name(refr)?;
                        return self.member(
                            span,
                            key.as_ref(),
                            bodies.first().map(|b| &*b.query),
                            bodies.len(),
                        );
                    }
                    RuleHead::Func {
                        refr, args, assign, ..
                    } => {
                        self.name(refr)?;
                        self.parameters(args)?;
                        parameters = args;
                        assign.as_ref()
                    }
                };
                if bodies.iter().skip(1).any(|body| !body.is_else) {
                    return Err((span.clone(), "a rule of several bodies"));
                }
                let values = values(assign, bodies.iter().map(|body| body.assign.as_ref()));
                let several = values.len() > 1;
                if bodies.is_empty() {
                    return self.values(&values, several);
                }
                for (body, value) in bodies.iter().zip(values) {
                    self.locals.clear();
                    self.ready.clear();
                    self.made.clear();
                    self.parameters(parameters)?;
                    self.query(&body.query, several)?;
                    self.needed = value.map_or_else(BTreeSet::new, |value| {
                        let names = variables(value).into_iter();
                        names.filter(|name| needs(&body.query, name)).collect()
                    });
                    self.values(&[value], several)?;
                }
                Ok(())
            }
        }
    }

    /// The head of a rule: a name, defined once, or always with the same constant.
    fn name(&self, refr: &Expr) -> Found {
        let Expr::Var { span, .. } = refr else {
            return Err((
                refr.span().clone(),
                "a rule whose head is a path (`a.b := …`)",
            ));
        };
        let mut path = self.package.clone();
        path.push(span.text().to_owned());
        let Some(facts) = self.rules.get(&path) else {
            return Err((span.clone(), "a rule that cannot be found"));
        };
        let kinds = usize::from(facts.function) + usize::from(facts.set);
        if kinds > 1 || facts.set && (facts.default || !facts.values.is_empty()) {
            return Err((span.clone(), "a name that stands for two things"));
        }
        if !facts.set
            && facts.definitions > 1
            && (facts.values.len() > 1 || facts.values.contains(&None))
        {
            return Err((
                span.clone(),
                "a rule of several definitions with different values",
            ));
        }
        let below = self.rules.range(path.clone()..).nth(1);
        if below.is_some_and(|(other, _)| other.starts_with(&path))
            || self.aliases.contains_key(span.text())
        {
            return Err((span.clone(), "a name that stands for two things"));
        }
        Ok(())
    }

    /// The parameters of a function: names, which have a value when it runs.
    fn parameters(&mut self, args: &[Ref<Expr>]) -> Found {
        for arg in args {
            let Expr::Var { span, .. } = arg.as_ref() else {
                return Err((arg.span().clone(), "a pattern in the place of a parameter"));
            };
            if span.text() == "_" {
                return Err((span.clone(), "a parameter without a name"));
            }
            self.local(arg)?;
            self.ready.insert(span.text().to_owned());
        }
        Ok(())
    }

    /// What stands in a scope of its own: a comprehension, or the body of an `every`.
    fn inside(&self, names: &[&Span], query: &Query, terms: &[&Expr]) -> Found {
        let mut inner = self.clone();
        for name in names {
            inner.variable(name)?;
            inner.ready.insert(name.text().to_owned());
        }
        inner.query(query, false)?;
        for term in terms {
            inner.value(term)?;
            // An undefined one is put into the collection, by one engine only.
            inner.always(term)?;
        }
        Ok(())
    }

    fn member(
        &mut self,
        span: &Span,
        key: Option<&Ref<Expr>>,
        query: Option<&Query>,
        bodies: usize,
    ) -> Found {
        if bodies > 1 {
            return Err((span.clone(), "a rule of several bodies"));
        }
        if let Some(query) = query {
            self.query(query, false)?;
        }
        match key {
            Some(key) => {
                self.value(key)?;
                self.always(key)
            }
            None => Err((span.clone(), "a partial rule without a member")),
        }
    }

    fn values(&self, values: &[Option<&Expr>], several: bool) -> Found {
        for expr in values.iter().flatten() {
            self.value(expr)?;
            // With an undefined value the other branches count, for one engine only.
            if several {
                self.always(expr)?;
            }
        }
        Ok(())
    }

    /// `several`: an `else` follows somewhere.
    fn query(&mut self, query: &Query, several: bool) -> Found {
        // Statements are ordered by what they need: all variables first.
        for statement in &query.stmts {
            if let Some(modifier) = statement.with_mods.first() {
                return Err((modifier.span.clone(), "`with`"));
            }
            match &statement.literal {
                Literal::SomeIn {
                    span, key, value, ..
                } => {
                    // A body that finds nothing counts as done, for one engine only.
                    if several {
                        return Err((span.clone(), "`some … in` beside an `else`"));
                    }
                    for variable in key.iter().chain([value]) {
                        self.local(variable)?;
                    }
                }
                Literal::Expr { expr, .. } => {
                    if let Expr::AssignExpr {
                        op: AssignOp::ColEq,
                        lhs,
                        ..
                    } = expr.as_ref()
                    {
                        self.local(lhs)?;
                    }
                }
                _ => {}
            }
        }
        for statement in &query.stmts {
            self.statement(statement, query)?;
            let given: Vec<&Ref<Expr>> = match &statement.literal {
                Literal::SomeIn { key, value, .. } => key.iter().chain([value]).collect(),
                Literal::Expr { expr, .. } => match expr.as_ref() {
                    Expr::AssignExpr { lhs, .. } => vec![lhs],
                    _ => Vec::new(),
                },
                _ => Vec::new(),
            };
            if let Literal::Expr { expr, .. } = &statement.literal
                && let Expr::AssignExpr { lhs, rhs, .. } = expr.as_ref()
                && matches!(rhs.as_ref(), Expr::Call { .. })
            {
                self.made.insert(lhs.span().text().to_owned());
            }
            for variable in given {
                self.ready.insert(variable.span().text().to_owned());
            }
        }
        Ok(())
    }

    fn local(&mut self, variable: &Expr) -> Found {
        let Expr::Var { span, .. } = variable else {
            return Err((
                variable.span().clone(),
                "a pattern in the place of a variable",
            ));
        };
        self.variable(span)
    }

    fn variable(&mut self, span: &Span) -> Found {
        let name = span.text();
        if name == "_" {
            return Ok(());
        }
        let mut path = self.package.clone();
        path.push(name.to_owned());
        let taken = ["input", "data"].contains(&name)
            || self.aliases.contains_key(name)
            || self.rules.contains_key(&path);
        if taken || !self.locals.insert(name.to_owned()) {
            return Err((span.clone(), "a name that stands for two things"));
        }
        Ok(())
    }

    fn statement(&self, statement: &LiteralStmt, query: &Query) -> Found {
        match &statement.literal {
            Literal::SomeVars { span, .. } => Err((span.clone(), "`some` without `in`")),
            Literal::Every {
                key,
                value,
                domain,
                query,
                ..
            } => {
                self.value(domain)?;
                let names: Vec<&Span> = key.iter().chain([value]).collect();
                self.inside(&names, query, &[])
            }
            Literal::SomeIn { collection, .. } => self.value(collection),
            Literal::NotExpr { expr, .. } => self.condition(expr),
            Literal::Expr { expr, .. } => match expr.as_ref() {
                Expr::AssignExpr {
                    op: AssignOp::ColEq,
                    lhs,
                    rhs,
                    span,
                    ..
                } => {
                    self.value(rhs)?;
                    let Expr::Var { span: name, .. } = lhs.as_ref() else {
                        return Err((span.clone(), "a pattern in the place of a variable"));
                    };
                    if self.always(rhs).is_ok() || needs(query, name.text()) {
                        Ok(())
                    } else {
                        Err((span.clone(), "a `:=` whose value may be undefined"))
                    }
                }
                _ => self.condition(expr),
            },
        }
    }

    /// What a statement may ask, with or without `not`.
    fn condition(&self, expr: &Expr) -> Found {
        match expr {
            Expr::BoolExpr { lhs, rhs, .. } => {
                self.value(lhs)?;
                self.value(rhs)
            }
            Expr::Membership {
                key: None,
                value,
                collection,
                ..
            } => {
                self.value(value)?;
                self.value(collection)
            }
            _ => self.value(expr),
        }
    }

    /// What a value may be made of.
    fn value(&self, expr: &Expr) -> Found {
        match expr {
            Expr::String { .. }
            | Expr::RawString { .. }
            | Expr::Number { .. }
            | Expr::Bool { .. }
            | Expr::Null { .. } => Ok(()),
            Expr::Array { items, .. } | Expr::Set { items, .. } => {
                items.iter().try_for_each(|item| self.value(item))
            }
            Expr::Object { span, fields, .. } => {
                let mut names = BTreeSet::new();
                for (_, key, value) in fields {
                    if !hazard::string(Some(key)).is_some_and(|name| names.insert(name)) {
                        return Err((span.clone(), "an object whose keys are no different texts"));
                    }
                    self.value(value)?;
                }
                Ok(())
            }
            Expr::Var { .. } | Expr::RefDot { .. } | Expr::RefBrack { .. } => self.reference(expr),
            Expr::ArithExpr { lhs, rhs, .. } => {
                self.value(lhs)?;
                self.value(rhs)
            }
            Expr::ArrayCompr { term, query, .. } | Expr::SetCompr { term, query, .. } => {
                self.inside(&[], query, &[term])
            }
            Expr::Call {
                span, fcn, params, ..
            } => self.call(span, fcn, params),
            other => Err((other.span().clone(), kind(other))),
        }
    }

    fn reference(&self, expr: &Expr) -> Found {
        let chain = chain(expr);
        let Some(names) = chain.prefix() else {
            return Err((expr.span().clone(), "a path into what is no name"));
        };
        let root = names.first().map_or("", String::as_str);
        for part in &chain.parts {
            if let Part::Dynamic(index) = part {
                let number = matches!(index, Expr::Number { .. });
                if number && root != "input" && !self.made.contains(root) {
                    return Err((index.span().clone(), "a number as a path's step"));
                }
                self.value(index)?;
            }
        }
        if root == "input" || self.ready.contains(root) {
            return Ok(());
        }
        if self.locals.contains(root) {
            return Err((expr.span().clone(), "a variable before it has a value"));
        }
        let Some(full) = self.full(&names) else {
            return Err((
                expr.span().clone(),
                "a variable that goes through a collection",
            ));
        };
        if full.first().is_some_and(|root| root == "input") {
            return Ok(());
        }
        if full.first().is_none_or(|root| root != "data") {
            return Err((expr.span().clone(), "a name that stands for two things"));
        }
        if let Some(facts) = self.through(&full) {
            return if facts.function {
                Err((expr.span().clone(), "a function"))
            } else {
                Ok(())
            };
        }
        let below = self.rules.range(full.clone()..).next();
        if full.len() < 2 || below.is_some_and(|(path, _)| path.starts_with(&full)) {
            return Err((expr.span().clone(), "a path to several rules at once"));
        }
        let texts = chain.parts.iter().all(|part| match part {
            Part::Name(_) => true,
            Part::Dynamic(index) => self.never_number(index),
        });
        if texts || !self.has_numbers(&full) {
            Ok(())
        } else {
            Err((
                expr.span().clone(),
                "a path into data with names like numbers, by what may be a number",
            ))
        }
    }

    /// Whether the table at this path of the data has names that are written like other values.
    fn has_numbers(&self, full: &[String]) -> bool {
        if let Some(known) = self.tables.borrow().get(full) {
            return *known;
        }
        let table = full
            .iter()
            .skip(1)
            .try_fold(self.data, |value, name| document::member(value, name));
        let numbers = table.is_some_and(|table| numbered(table, 0));
        self.tables.borrow_mut().insert(full.to_vec(), numbers);
        numbers
    }

    fn call(&self, span: &Span, fcn: &Expr, params: &[Ref<Expr>]) -> Found {
        let refused = Err((span.clone(), "a function or builtin that may fail"));
        let Some(name) = chain(fcn).prefix() else {
            return refused;
        };
        if let Some(full) = name
            .first()
            .and_then(|root| self.full(std::slice::from_ref(root)))
        {
            let mut full = full;
            full.extend(name.iter().skip(1).cloned());
            let facts = self.rules.get(&full);
            if !facts.is_some_and(|facts| facts.function && !facts.default) {
                return refused;
            }
            return params.iter().try_for_each(|param| self.value(param));
        }
        let name = name.join(".");
        let known = guarded::BUILTINS.contains(&name.as_str()) || host::find(&name).is_some();
        if known && host::arity(&name).map(usize::from) == Some(params.len()) {
            return params.iter().try_for_each(|param| self.value(param));
        }
        refused
    }

    /// The full path of what is no variable: a rule, or what an import names.
    fn full(&self, names: &[String]) -> Option<Vec<String>> {
        let (root, rest) = names.split_first()?;
        if self.locals.contains(root) {
            return None;
        }
        if root == "data" || root == "input" {
            return Some(names.to_vec());
        }
        let mut full = match self.aliases.get(root) {
            Some(alias) => alias.clone(),
            None => {
                let mut full = self.package.clone();
                full.push(root.clone());
                self.rules.contains_key(&full).then_some(full)?
            }
        };
        full.extend_from_slice(rest);
        Some(full)
    }

    /// The rule that this path leads to or through.
    fn through(&self, full: &[String]) -> Option<&Facts> {
        (2..=full.len()).find_map(|end| self.rules.get(full.get(..end)?))
    }

    /// The path of a member of `input` that the source names in full.
    fn of_input(&self, expr: &Expr) -> Option<String> {
        let chain = chain(expr);
        if chain
            .parts
            .iter()
            .any(|part| matches!(part, Part::Dynamic(_)))
        {
            return None;
        }
        let full = self.full(&chain.prefix()?)?;
        let (root, rest) = full.split_first()?;
        (root == "input").then(|| rest.join("."))
    }

    fn text(&self, expr: &Expr) -> bool {
        hazard::string(Some(expr)).is_some()
            || self
                .of_input(expr)
                .is_some_and(|path| self.document.is_text(&path))
    }

    /// A text, or undefined.
    fn never_number(&self, expr: &Expr) -> bool {
        self.text(expr)
            || self
                .of_input(expr)
                .is_some_and(|path| self.document.is_text_or_absent(&path))
    }

    fn is_function(&self, fcn: &Expr) -> bool {
        let root = chain(fcn).prefix().and_then(|names| names.first().cloned());
        root.is_none_or(|root| self.full(std::slice::from_ref(&root)).is_some())
    }

    fn whole_rule(&self, expr: &Expr) -> Option<&Facts> {
        let chain = chain(expr);
        if chain
            .parts
            .iter()
            .any(|part| matches!(part, Part::Dynamic(_)))
        {
            return None;
        }
        self.rules.get(&self.full(&chain.prefix()?)?)
    }

    /// Accepts what is never undefined.
    fn always(&self, expr: &Expr) -> Found {
        let fine = match expr {
            Expr::Array { items, .. } | Expr::Set { items, .. } => {
                return items.iter().try_for_each(|item| self.always(item));
            }
            Expr::Object { fields, .. } => {
                return fields
                    .iter()
                    .try_for_each(|(_, _, value)| self.always(value));
            }
            Expr::ArithExpr { lhs, rhs, .. } => {
                self.always(lhs)?;
                return self.always(rhs);
            }
            // A builtin that has no answer fails.
            Expr::Call { fcn, params, .. } if !self.is_function(fcn) => {
                return params.iter().try_for_each(|param| self.always(param));
            }
            Expr::ArrayCompr { .. } | Expr::SetCompr { .. } => true,
            Expr::Var { span, .. }
                if self.locals.contains(span.text()) || self.needed.contains(span.text()) =>
            {
                true
            }
            Expr::Var { .. } | Expr::RefDot { .. } | Expr::RefBrack { .. } => {
                self.whole_rule(expr)
                    .is_some_and(|facts| facts.default || facts.set)
                    || self.of_input(expr).is_some_and(|path| {
                        self.document.is_text(&path) || self.document.is_collection(&path)
                    })
            }
            other => literal(other).is_some(),
        };
        if fine {
            Ok(())
        } else {
            Err((expr.span().clone(), "a value that may be undefined"))
        }
    }
}

/// The names that a value is made of, as far as they stand alone.
fn variables(expr: &Expr) -> Vec<String> {
    match expr {
        Expr::Var { span, .. } => vec![span.text().to_owned()],
        Expr::Array { items, .. } | Expr::Set { items, .. } => {
            items.iter().flat_map(|item| variables(item)).collect()
        }
        Expr::Object { fields, .. } => {
            let values = fields.iter().map(|(_, _, value)| value);
            values.flat_map(|value| variables(value)).collect()
        }
        Expr::Call { params, .. } => params.iter().flat_map(|p| variables(p)).collect(),
        _ => Vec::new(),
    }
}

/// Whether a statement of this body, other than a `not`, fails unless the variable is defined.
fn needs(query: &Query, name: &str) -> bool {
    query
        .stmts
        .iter()
        .any(|statement| match &statement.literal {
            Literal::SomeIn { collection, .. } => undefined_without(collection, name),
            Literal::Expr { expr, .. } => match expr.as_ref() {
                Expr::BoolExpr { lhs, rhs, .. } => {
                    undefined_without(lhs, name) || undefined_without(rhs, name)
                }
                Expr::Membership {
                    value, collection, ..
                } => undefined_without(value, name) || undefined_without(collection, name),
                expr => undefined_without(expr, name),
            },
            _ => false,
        })
}

/// Whether this value is undefined when the variable is.
fn undefined_without(expr: &Expr, name: &str) -> bool {
    match expr {
        Expr::Var { span, .. } => span.text() == name,
        Expr::RefDot { .. } | Expr::RefBrack { .. } => {
            matches!(chain(expr).base, Expr::Var { span, .. } if span.text() == name)
        }
        Expr::ArithExpr { lhs, rhs, .. } => {
            undefined_without(lhs, name) || undefined_without(rhs, name)
        }
        // Functions and builtins alike.
        Expr::Call { params, .. } => params.iter().any(|param| undefined_without(param, name)),
        Expr::Array { items, .. } | Expr::Set { items, .. } => {
            items.iter().any(|item| undefined_without(item, name))
        }
        _ => false,
    }
}

/// Whether an object in here has a member whose name could also be written as another value.
fn numbered(value: &Value, depth: usize) -> bool {
    if depth > document::MAX_DEPTH {
        return true;
    }
    if let Ok(object) = value.as_object() {
        return object.iter().any(|(key, value)| {
            document::text(key).is_none_or(|key| is_json(key)) || numbered(value, depth + 1)
        });
    }
    value
        .as_array()
        .is_ok_and(|items| items.iter().any(|item| numbered(item, depth + 1)))
}

/// Whether a text is a value written as JSON. Most names are not, by their first letter.
fn is_json(text: &str) -> bool {
    let first = text.trim_ascii_start().bytes().next();
    first.is_some_and(|byte| b"-{[\"tfn".contains(&byte) || byte.is_ascii_digit())
        && serde_json::from_str::<serde::de::IgnoredAny>(text).is_ok()
}

fn kind(expr: &Expr) -> &'static str {
    match expr {
        Expr::ObjectCompr { .. } => "a comprehension of an object",
        Expr::BoolExpr { .. } => "a comparison inside a value",
        Expr::UnaryExpr { .. } => "a minus sign",
        Expr::BinExpr { .. } => "a union or intersection",
        Expr::AssignExpr { .. } => "a `=`, or a `:=` inside a value",
        Expr::Membership { .. } => "`in` with a key, or inside a value",
        _ => "a form that was not compared",
    }
}
