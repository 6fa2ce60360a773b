//! One walk over all rules: what each expression is, as far as it is known, and what it reads.

#![expect(
    clippy::wildcard_enum_match_arm,
    reason = "what is not named is not known, and nothing is said of it"
)]

use std::collections::{BTreeMap, BTreeSet};

use regorus::unstable::{
    AssignOp, BUILTINS, BoolOp, Expr, Literal, LiteralStmt, Query, Ref, Rule, Span,
};

use super::world::{Meaning, Unit, World, base_span, bodies, head_terms, query};
use super::{Finding, Weight};
use crate::authz::source::syntax::{Part, chain, head, literal, place};
use crate::authz::source::types::{Form, Object, Text, Type};
use crate::schema::known_names;

/// What a rule reads.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Edge {
    pub(super) from: Vec<String>,
    pub(super) to: Vec<String>,
    /// Whether a no of `to` makes for a yes of `from`.
    pub(super) flips: bool,
}

/// A comparison whose body vanishes when a value is missing.
#[derive(Debug, Clone)]
pub(super) struct Suspect {
    pub(super) rule: Vec<String>,
    /// Whether the body makes a no of its rule.
    pub(super) flips: bool,
    pub(super) file: String,
    pub(super) at: (usize, usize),
    /// The comparison as it stands there.
    pub(super) text: String,
    pub(super) missing: Missing,
}

/// What may be missing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Missing {
    /// As it stands in the text.
    pub(super) text: String,
    /// The path below `input`, where all its steps are names.
    pub(super) input: Option<Vec<String>>,
}

/// What the walk found.
#[derive(Debug, Default)]
pub(super) struct Walked {
    pub(super) findings: Vec<Finding>,
    pub(super) edges: BTreeSet<Edge>,
    pub(super) suspects: Vec<Suspect>,
    /// References whose absence is asked for by a `not`.
    pub(super) guards: BTreeSet<String>,
}

/// What is known of an expression.
#[derive(Debug, Clone)]
struct Inferred {
    ty: Type,
    missing: Option<Missing>,
}

impl Inferred {
    const fn sure(ty: Type) -> Self {
        Self { ty, missing: None }
    }

    const fn any() -> Self {
        Self::sure(Type::Any)
    }
}

#[derive(Debug)]
struct Local {
    known: Inferred,
    at: (usize, usize),
    used: bool,
    told: bool,
}

struct Walk<'w, 'm, 'k> {
    world: &'w World<'m, 'k>,
    unit: usize,
    rule: Vec<String>,
    scopes: Vec<BTreeMap<String, Local>>,
    used_aliases: BTreeSet<(usize, String)>,
    /// Whether a no makes for a yes here.
    flipped: bool,
    /// Whether the expression is a statement of its own in a rule's body.
    is_top: bool,
    found: Walked,
}

pub(super) fn walk(world: &World<'_, '_>) -> Walked {
    let mut walk = Walk::new(world, 0);
    for (at, unit) in world.units.iter().enumerate() {
        walk.unit = at;
        for rule in &unit.module.policy {
            walk.rule(rule);
        }
    }
    walk.imports();
    walk.found
}

/// The type of a rule's value, and whether it may be undefined.
fn rule_type(world: &World<'_, '_>, path: &Vec<String>) -> (Type, bool) {
    if let Some(known) = world.types.borrow().get(path) {
        return known.clone().unwrap_or((Type::Any, true));
    }
    world.types.borrow_mut().insert(path.clone(), None);
    let mut ty: Option<Type> = None;
    let mut sure = false;
    for definition in world.rules.get(path).into_iter().flatten() {
        let mut walk = Walk::new(world, definition.unit);
        let mut add = |more: Type| {
            ty = Some(match ty.take() {
                Some(known) => known.or(more),
                None => more,
            });
        };
        match definition.rule {
            Rule::Default { value, .. } => {
                sure = true;
                add(walk.expr(value).ty);
            }
            Rule::Spec { head, .. } => {
                let (_, args) = head_terms(head);
                let is_set = matches!(head, regorus::unstable::RuleHead::Set { .. });
                let has_steps = chain(super::super::syntax::head(definition.rule))
                    .parts
                    .len();
                if is_set {
                    // A set that nothing is in is still there.
                    sure = true;
                    add(Type::Set(Box::new(Type::Any)));
                } else if has_steps > 0 || !args.is_empty() {
                    sure |= has_steps > 0;
                    add(Type::Any);
                } else {
                    for (body, value) in bodies(definition.rule) {
                        match value {
                            None => add(Type::Bool),
                            Some(value) => {
                                let known = walk.constant(value);
                                sure |= body.is_none() && known.missing.is_none();
                                add(known.ty);
                            }
                        }
                    }
                }
            }
        }
    }
    let known = (ty.unwrap_or(Type::Any), !sure);
    world
        .types
        .borrow_mut()
        .insert(path.clone(), Some(known.clone()));
    known
}

impl<'w, 'm, 'k> Walk<'w, 'm, 'k> {
    fn new(world: &'w World<'m, 'k>, unit: usize) -> Self {
        Self {
            world,
            unit,
            rule: Vec::new(),
            scopes: Vec::new(),
            used_aliases: BTreeSet::new(),
            flipped: false,
            is_top: false,
            found: Walked::default(),
        }
    }

    fn unit(&self) -> Option<&'w Unit<'m>> {
        self.world.units.get(self.unit)
    }

    fn is_test(&self) -> bool {
        self.unit().is_some_and(|unit| unit.is_test)
    }

    fn find(
        &mut self,
        rule: &'static str,
        weight: Weight,
        span: &Span,
        message: String,
        help: String,
    ) {
        let file = self
            .unit()
            .map(|unit| unit.file.clone())
            .unwrap_or_default();
        self.found.findings.push(Finding {
            rule,
            weight,
            file,
            at: place(span),
            message,
            help,
            missing: None,
        });
    }

    fn imports(&mut self) {
        for (at, unit) in self.world.units.iter().enumerate() {
            self.unit = at;
            for import in &unit.module.imports {
                let Some((name, path)) = super::world::import(import) else {
                    continue;
                };
                let ours = path
                    .first()
                    .is_some_and(|root| root == "data" || root == "input");
                if ours && !self.used_aliases.contains(&(at, name.clone())) {
                    self.find(
                        "unused",
                        Weight::Warning,
                        base_span(&import.refr),
                        format!("the import `{name}` is not used"),
                        "remove it".to_owned(),
                    );
                }
            }
        }
    }

    /// The type of a value in which nothing may be a variable; others are not known.
    fn constant(&mut self, value: &Expr) -> Inferred {
        self.scopes.push(BTreeMap::new());
        let known = self.expr(value);
        self.scopes.pop();
        known
    }

    fn rule(&mut self, rule: &'m Rule) {
        let Some(unit) = self.unit() else {
            return;
        };
        let mut path = unit.package.clone();
        path.extend(chain(head(rule)).prefix().unwrap_or_default());
        self.rule = path;
        match rule {
            Rule::Default { value, .. } => {
                self.open();
                self.expr(value);
                self.close();
            }
            Rule::Spec { head, .. } => {
                let all = bodies(rule);
                for (index, (body, value)) in all.iter().enumerate() {
                    let later = all.iter().skip(index + 1).any(|(body, value)| {
                        body.is_some_and(|body| body.is_else) && !is_no(*value)
                    });
                    self.flipped = is_no(*value) && (later || self.allows_by_default());
                    self.open();
                    let (terms, args) = head_terms(head);
                    for arg in args {
                        self.pattern(arg, &Inferred::any(), false);
                    }
                    if let Some(query) = query(*body) {
                        self.statements(query, true);
                    }
                    let flipped = std::mem::replace(&mut self.flipped, false);
                    for term in terms {
                        self.expr(term);
                    }
                    if let Some(value) = value {
                        self.expr(value);
                    }
                    self.flipped = flipped;
                    if query(*body).is_some() {
                        self.close();
                    }
                    self.close();
                    self.flipped = false;
                }
            }
        }
    }

    fn allows_by_default(&self) -> bool {
        let definitions = self.world.rules.get(&self.rule);
        definitions.into_iter().flatten().any(|definition| {
            matches!(definition.rule, Rule::Default { value, .. } if !is_no(Some(value)) && says_yes(value))
        })
    }

    fn open(&mut self) {
        self.scopes.push(BTreeMap::new());
    }

    fn close(&mut self) {
        let Some(scope) = self.scopes.pop() else {
            return;
        };
        for (name, local) in scope {
            if local.told && !local.used && !name.starts_with('_') {
                let file = self
                    .unit()
                    .map(|unit| unit.file.clone())
                    .unwrap_or_default();
                self.found.findings.push(Finding {
                    rule: "unused",
                    weight: Weight::Warning,
                    file,
                    at: local.at,
                    message: format!("the variable `{name}` is not used"),
                    help: format!(
                        "remove it, or call it `_` or `_{name}` if only its being there counts"
                    ),
                    missing: None,
                });
            }
        }
    }

    /// Opens a scope, walks the statements, and leaves the scope open.
    fn statements(&mut self, query: &Query, is_body: bool) {
        self.open();
        // A name may be used before the line that gives it.
        for statement in &query.stmts {
            match &statement.literal {
                Literal::Expr { expr, .. } => {
                    if let Expr::AssignExpr {
                        op: AssignOp::ColEq,
                        lhs,
                        ..
                    } = &**expr
                    {
                        self.pattern(lhs, &Inferred::any(), true);
                    }
                }
                Literal::SomeVars { vars, .. } => {
                    for var in vars {
                        self.declare(var.text(), var, Inferred::any(), true);
                    }
                }
                Literal::SomeIn { key, value, .. } => {
                    for pattern in key.iter().chain([value]) {
                        self.pattern(pattern, &Inferred::any(), true);
                    }
                }
                _ => {}
            }
        }
        for statement in &query.stmts {
            self.statement(statement, is_body);
        }
    }

    fn statement(&mut self, statement: &LiteralStmt, is_body: bool) {
        for modifier in &statement.with_mods {
            self.expr(&modifier.r#as);
        }
        match &statement.literal {
            Literal::SomeVars { .. } => {}
            Literal::SomeIn {
                key,
                value,
                collection,
                ..
            } => {
                let known = self.expr(collection);
                let element = Inferred::sure(known.ty.element());
                if let Some(key) = key {
                    self.pattern(key, &Inferred::any(), true);
                }
                self.pattern(value, &element, true);
            }
            Literal::Expr { expr, .. } => {
                self.is_top = is_body && statement.with_mods.is_empty();
                self.expr(expr);
                self.is_top = false;
            }
            Literal::NotExpr { expr, .. } => {
                if matches!(
                    &**expr,
                    Expr::Var { .. } | Expr::RefDot { .. } | Expr::RefBrack { .. }
                ) {
                    self.found.guards.insert(expr.span().text().to_owned());
                }
                self.flipped = !self.flipped;
                self.expr(expr);
                self.flipped = !self.flipped;
            }
            Literal::Every {
                key,
                value,
                domain,
                query,
                ..
            } => {
                let element = self.expr(domain).ty.element();
                self.open();
                if let Some(key) = key {
                    self.declare(key.text(), key, Inferred::any(), false);
                }
                self.declare(value.text(), value, Inferred::sure(element), false);
                self.statements(query, false);
                self.close();
                self.close();
            }
        }
    }

    fn declare(&mut self, name: &str, span: &Span, known: Inferred, told: bool) {
        if name == "_" {
            return;
        }
        if let Some(scope) = self.scopes.last_mut() {
            let local = scope.entry(name.to_owned()).or_insert_with(|| Local {
                known: Inferred::any(),
                at: place(span),
                used: false,
                told,
            });
            if !known.ty.is_any() || known.missing.is_some() {
                local.known = known;
            }
        }
    }

    /// Declares the variables of a pattern.
    fn pattern(&mut self, expr: &Expr, known: &Inferred, told: bool) {
        match expr {
            Expr::Var { span, .. } => self.declare(span.text(), span, known.clone(), told),
            Expr::Array { items, .. } => {
                let element = Inferred::sure(known.ty.element());
                for item in items {
                    self.pattern(item, &element, told);
                }
            }
            Expr::Object { fields, .. } => {
                for (_, key, value) in fields {
                    self.expr(key);
                    self.pattern(value, &Inferred::any(), told);
                }
            }
            other => {
                self.expr(other);
            }
        }
    }

    fn expr(&mut self, expr: &Expr) -> Inferred {
        let is_top = std::mem::replace(&mut self.is_top, false);
        match expr {
            Expr::String { value, .. }
            | Expr::RawString { value, .. }
            | Expr::Number { value, .. }
            | Expr::Bool { value, .. } => Inferred::sure(Type::of_value(value)),
            Expr::Null { .. } => Inferred::sure(Type::Null),
            Expr::Var { .. } | Expr::RefDot { .. } | Expr::RefBrack { .. } => self.reference(expr),
            Expr::Array { items, .. } => {
                let element = self.all(items);
                Inferred::sure(Type::List(Box::new(element)))
            }
            Expr::Set { items, .. } => {
                let element = self.all(items);
                Inferred::sure(Type::Set(Box::new(element)))
            }
            Expr::Object { fields, .. } => {
                let mut object = Object::default();
                for (_, key, value) in fields {
                    let known = self.expr(value);
                    self.expr(key);
                    match literal(key) {
                        Some(regorus::Value::String(name)) => {
                            object.fields.insert(name.to_string(), (known.ty, true));
                        }
                        _ => object.rest = Some(Box::new(Type::Any)),
                    }
                }
                Inferred::sure(Type::Object(object.into()))
            }
            Expr::ArrayCompr { term, query, .. } => {
                let element = self.comprehension(query, &[term]);
                Inferred::sure(Type::List(Box::new(element)))
            }
            Expr::SetCompr { term, query, .. } => {
                let element = self.comprehension(query, &[term]);
                Inferred::sure(Type::Set(Box::new(element)))
            }
            Expr::ObjectCompr {
                key, value, query, ..
            } => {
                let rest = self.comprehension(query, &[key, value]);
                Inferred::sure(Type::Object(
                    Object {
                        rest: Some(Box::new(rest)),
                        ..Object::default()
                    }
                    .into(),
                ))
            }
            Expr::Call { fcn, params, .. } => self.call(fcn, params),
            Expr::UnaryExpr { expr, .. } => Inferred {
                ty: Type::Number,
                ..self.expr(expr)
            },
            Expr::BinExpr { lhs, rhs, .. } => {
                self.expr(lhs);
                self.expr(rhs);
                Inferred::sure(Type::Set(Box::new(Type::Any)))
            }
            Expr::ArithExpr { lhs, rhs, .. } => {
                let (left, right) = (self.expr(lhs), self.expr(rhs));
                let ty = match (&left.ty, &right.ty) {
                    (Type::Number, _) | (_, Type::Number) => Type::Number,
                    _ => Type::Any,
                };
                Inferred {
                    ty,
                    missing: left.missing.or(right.missing),
                }
            }
            Expr::BoolExpr {
                op, lhs, rhs, span, ..
            } => {
                self.comparison(op, lhs, rhs, span, is_top);
                Inferred::sure(Type::Bool)
            }
            Expr::AssignExpr {
                op, lhs, rhs, span, ..
            } => {
                let known = self.expr(rhs);
                match op {
                    AssignOp::ColEq => self.pattern(lhs, &known, true),
                    AssignOp::Eq => {
                        if self.is_free(lhs) {
                            self.pattern(lhs, &known, false);
                        } else {
                            let left = self.expr(lhs);
                            self.equal(&left, lhs, &known, rhs, span, true);
                        }
                    }
                }
                Inferred::sure(Type::Bool)
            }
            Expr::Membership {
                key,
                value,
                collection,
                span,
                ..
            } => {
                if let Some(key) = key {
                    self.expr(key);
                }
                let one = self.expr(value);
                let many = self.expr(collection);
                if !self.is_free(value) {
                    let element = Inferred::sure(many.ty.element());
                    self.contained(&one, value, &element, collection, span);
                }
                Inferred::sure(Type::Bool)
            }
        }
    }

    fn all(&mut self, items: &[Ref<Expr>]) -> Type {
        let mut ty: Option<Type> = None;
        for item in items {
            let more = self.expr(item).ty;
            ty = Some(match ty.take() {
                Some(known) => known.or(more),
                None => more,
            });
        }
        ty.unwrap_or(Type::Any)
    }

    fn comprehension(&mut self, query: &Query, terms: &[&Ref<Expr>]) -> Type {
        self.statements(query, false);
        let mut ty = Type::Any;
        for term in terms {
            ty = self.expr(term).ty;
        }
        self.close();
        ty
    }

    /// Whether it is a variable that nothing has given a value yet.
    fn is_free(&self, expr: &Expr) -> bool {
        match expr {
            Expr::Var { span, .. } => {
                let name = span.text();
                name == "_"
                    || (!self.is_local(name)
                        && self.unit().is_none_or(|unit| {
                            self.world.meaning(unit, &[name.to_owned()]) == Meaning::Other
                        }))
            }
            Expr::Array { items, .. } => items.iter().any(|item| self.is_free(item)),
            _ => false,
        }
    }

    fn is_local(&self, name: &str) -> bool {
        self.scopes.iter().any(|scope| scope.contains_key(name))
    }

    fn reference(&mut self, expr: &Expr) -> Inferred {
        let chain = chain(expr);
        // The types of the steps that are no names, in their order.
        let mut steps: Vec<Step> = Vec::new();
        for part in &chain.parts {
            steps.push(match part {
                Part::Name(name) => Step::Name(name.clone()),
                Part::Dynamic(index) => {
                    let free = self.is_free(index);
                    if free {
                        self.pattern(index, &Inferred::any(), false);
                    }
                    self.expr(index);
                    if free { Step::Each } else { Step::Some }
                }
            });
        }
        let Expr::Var { span, .. } = chain.base else {
            let known = self.expr(chain.base);
            return Inferred {
                ty: if steps.is_empty() {
                    known.ty
                } else {
                    Type::Any
                },
                missing: known.missing,
            };
        };
        let name = span.text();
        if let Some(local) = self
            .scopes
            .iter_mut()
            .rev()
            .find_map(|scope| scope.get_mut(name))
        {
            local.used = true;
            let known = local.known.clone();
            return self.follow(known, &steps, expr, name, None);
        }
        let names = chain.prefix().unwrap_or_default();
        let Some(unit) = self.unit() else {
            return Inferred::any();
        };
        let meaning = self.world.meaning(unit, &names);
        if unit.aliases.contains_key(name) {
            self.used_aliases.insert((self.unit, name.to_owned()));
        }
        let rest = steps.get(names.len().saturating_sub(1)..).unwrap_or(&[]);
        match meaning {
            Meaning::Input(path) => {
                let below = path.get(1..).unwrap_or_default();
                let all: Vec<Step> = below
                    .iter()
                    .cloned()
                    .map(Step::Name)
                    .chain(rest.iter().cloned())
                    .collect();
                let whole = Inferred::sure(self.world.known.input.clone());
                self.follow(whole, &all, expr, "input", Some("input-path"))
            }
            Meaning::Data(path) => self.datum(&path, rest, expr),
            Meaning::Other => {
                if !BUILTINS.contains_key(names.join(".").as_str()) {
                    self.declare(name, span, Inferred::any(), false);
                }
                Inferred::any()
            }
        }
    }

    /// Follows steps from a value; says so where they lead nowhere, under this name.
    fn follow(
        &mut self,
        from: Inferred,
        steps: &[Step],
        expr: &Expr,
        root: &str,
        told: Option<&'static str>,
    ) -> Inferred {
        let mut ty = from.ty;
        let mut missing = from.missing;
        let rooted = told.is_some();
        let mut text = root.to_owned();
        for (index, step) in steps.iter().enumerate() {
            let path = || {
                let names = steps.get(..=index)?.iter().map(|step| match step {
                    Step::Name(name) => Some(name.clone()),
                    Step::Some | Step::Each => None,
                });
                names.collect::<Option<Vec<String>>>()
            };
            let taken = take(&ty, step);
            let here = match step {
                Step::Name(name) => format!("{text}.{name}"),
                Step::Some | Step::Each => format!("{text}[…]"),
            };
            match taken {
                Taken::Value { ty: next, sure } => {
                    if !sure && rooted && missing.is_none() {
                        missing = Some(Missing {
                            text: expr.span().text().to_owned(),
                            input: path().filter(|_| told == Some("input-path")),
                        });
                    }
                    ty = next;
                }
                Taken::Nothing(why, help, weight) => {
                    if let (Some(rule), false) = (told, self.is_test()) {
                        let message = format!("`{here}` is never there: `{text}` {why}");
                        self.find(rule, weight, expr.span(), message, help);
                    }
                    return Inferred::any();
                }
            }
            text = here;
        }
        Inferred { ty, missing }
    }

    fn datum(&mut self, path: &[String], rest: &[Step], expr: &Expr) -> Inferred {
        for to in self.world.read_by(path) {
            self.found.edges.insert(Edge {
                from: self.rule.clone(),
                to,
                flips: self.flipped,
            });
        }
        let dynamic = |sure: bool| {
            (!sure).then(|| Missing {
                text: expr.span().text().to_owned(),
                input: None,
            })
        };
        if let Some((rule, end)) = self.world.rule_on(path) {
            let (ty, maybe) = rule_type(self.world, rule);
            let mut steps: Vec<Step> = path
                .get(end..)
                .unwrap_or_default()
                .iter()
                .cloned()
                .map(Step::Name)
                .collect();
            steps.extend(rest.iter().cloned());
            let from = Inferred {
                ty,
                missing: dynamic(!maybe),
            };
            let name = path.get(end - 1).map_or("", String::as_str);
            return self.follow(from, &steps, expr, name, Some("data-path"));
        }
        if self.world.is_near_rule(path) || self.world.is_package(path) || path.len() < 2 {
            return Inferred::any();
        }
        let Some(value) = self.world.datum(path) else {
            self.no_datum(path, expr);
            return Inferred {
                ty: Type::Any,
                missing: dynamic(false),
            };
        };
        let from = Inferred::sure(Type::of_value(value));
        let mut known = self.follow(from, rest, expr, "", None);
        if rest.iter().any(|step| matches!(step, Step::Some)) {
            known.missing = dynamic(false);
        }
        known
    }

    fn no_datum(&mut self, path: &[String], expr: &Expr) {
        if self.is_test() {
            return;
        }
        let known = (1..path.len())
            .rev()
            .filter_map(|end| path.get(..end))
            .find(|head| {
                head.len() == 1 || self.world.datum(head).is_some() || self.world.is_package(head)
            })
            .unwrap_or_default();
        let name = path.get(known.len()).map_or("", String::as_str);
        let mut names: BTreeSet<String> = BTreeSet::new();
        if let Some(value) = self.world.datum(known) {
            names.extend(crate::document::names(value).map(str::to_owned));
        }
        for other in self
            .world
            .rules
            .keys()
            .chain(self.world.units.iter().map(|unit| &unit.package))
        {
            if other.starts_with(known)
                && let Some(next) = other.get(known.len())
            {
                names.insert(next.clone());
            }
        }
        let weight = if self.world.known.data_is_whole {
            Weight::Error
        } else {
            Weight::Warning
        };
        self.find(
            "data-path",
            weight,
            expr.span(),
            format!(
                "nothing gives `{}`: neither data nor a rule",
                path.get(..=known.len()).unwrap_or(path).join(".")
            ),
            known_names(name, names.iter().map(String::as_str)),
        );
    }

    fn call(&mut self, fcn: &Expr, params: &[Ref<Expr>]) -> Inferred {
        let names = chain(fcn).prefix().unwrap_or_default();
        let name = names.join(".");
        let meaning = self
            .unit()
            .map_or(Meaning::Other, |unit| self.world.meaning(unit, &names));
        if let Some(root) = names.first()
            && self
                .unit()
                .is_some_and(|unit| unit.aliases.contains_key(root))
        {
            self.used_aliases.insert((self.unit, root.clone()));
        }
        if let Meaning::Data(path) = &meaning {
            for to in self.world.read_by(path) {
                self.found.edges.insert(Edge {
                    from: self.rule.clone(),
                    to,
                    flips: self.flipped,
                });
            }
        }
        let known: Vec<Inferred> = params.iter().map(|param| self.expr(param)).collect();
        if meaning != Meaning::Other {
            return Inferred {
                ty: Type::Any,
                missing: known.into_iter().find_map(|one| one.missing),
            };
        }
        self.arguments(&name, params, &known);
        let text = |form| {
            Type::Text(Text {
                values: None,
                form,
                configured: false,
            })
        };
        let ty = match name.as_str() {
            "count"
            | "to_number"
            | "abs"
            | "round"
            | "ceil"
            | "floor"
            | "indexof"
            | "time.now_ns"
            | "time.parse_rfc3339_ns"
            | "time.parse_ns" => Type::Number,
            "lower" => text(Form::Lower),
            "upper" => text(Form::Upper),
            "sprintf" | "concat" | "trim" | "trim_space" | "trim_prefix" | "trim_suffix"
            | "trim_left" | "trim_right" | "replace" | "substring" | "format_int"
            | "base64.decode" | "base64.encode" | "type_name" => Type::text(),
            "startswith" | "endswith" | "contains" | "regex.match" | "glob.match"
            | "net.cidr_contains" | "is_string" | "is_number" | "is_null" | "is_array"
            | "is_object" | "is_set" | "is_boolean" => Type::Bool,
            "split" => Type::List(Box::new(Type::text())),
            _ => Type::Any,
        };
        let missing = match name.as_str() {
            // It has an answer whatever of it is there, if only there is an object.
            "object.get" => known.into_iter().next().and_then(|first| first.missing),
            _ => known.into_iter().find_map(|one| one.missing),
        };
        Inferred { ty, missing }
    }

    /// Arguments that a builtin never takes, and prefixes that no value has.
    fn arguments(&mut self, name: &str, params: &[Ref<Expr>], known: &[Inferred]) {
        let wants = |position: usize| match (name, position) {
            ("startswith" | "endswith", 0 | 1) => None,
            (
                "contains" | "lower" | "upper" | "trim" | "trim_space" | "trim_prefix"
                | "trim_suffix" | "split" | "indexof" | "regex.match" | "net.cidr_contains",
                0 | 1,
            ) => Some(Type::text()),
            ("sprintf", 0) | ("concat", 0) => Some(Type::text()),
            ("abs" | "round" | "ceil" | "floor", 0) => Some(Type::Number),
            _ => None,
        };
        for (position, (param, known)) in params.iter().zip(known).enumerate() {
            if let Some(wanted) = wants(position)
                && !known.ty.meets(&wanted)
            {
                self.find(
                    "compare",
                    Weight::Error,
                    param.span(),
                    format!(
                        "`{name}` takes {} here, and `{}` is {}: every request that comes here is denied",
                        wanted.words(),
                        short(param),
                        known.ty.words()
                    ),
                    "convert it, or read another member".to_owned(),
                );
            }
        }
        if name == "startswith"
            && let (Some(first), Some(second)) = (known.first(), known.get(1))
            && let (Some(text), Some(prefix)) = (first.ty.as_text(), second.ty.as_text())
            && let (Some(prefixes), Some(param)) = (&prefix.values, params.get(1))
        {
            for prefix in prefixes {
                let fits = match &text.values {
                    Some(values) => values.iter().any(|value| value.starts_with(prefix)),
                    None => prefix.is_empty() || text.form.fits(prefix),
                };
                if !fits {
                    self.find(
                        "compare",
                        Weight::Error,
                        param.span(),
                        format!(
                            "`{}` never begins with \"{prefix}\"",
                            short_of(params.first())
                        ),
                        wanted_text(text, prefix),
                    );
                }
            }
        }
    }

    fn comparison(&mut self, op: &BoolOp, lhs: &Expr, rhs: &Expr, span: &Span, is_top: bool) {
        // `count(deny) == 0` and `deny == set()` are a `not`, in other words.
        let turns = is_empty_test(op, lhs, rhs);
        self.flipped ^= turns;
        let left = self.expr(lhs);
        self.flipped ^= turns;
        let turns = is_empty_test(op, rhs, lhs);
        self.flipped ^= turns;
        let right = self.expr(rhs);
        self.flipped ^= turns;
        match op {
            BoolOp::Eq => self.equal(&left, lhs, &right, rhs, span, true),
            BoolOp::Ne => self.equal(&left, lhs, &right, rhs, span, false),
            BoolOp::Lt | BoolOp::Le | BoolOp::Gt | BoolOp::Ge => {
                if !left.ty.meets(&right.ty) {
                    let message = format!(
                        "`{}` is {} and `{}` is {}: Rego puts kinds in an order, so this is always the same",
                        short(lhs),
                        left.ty.words(),
                        short(rhs),
                        right.ty.words()
                    );
                    let help = "compare values of one kind (`to_number`, `time.parse_rfc3339_ns`)";
                    self.find(
                        "compare",
                        Weight::Error,
                        lhs.span(),
                        message,
                        help.to_owned(),
                    );
                }
            }
        }
        if is_top && *op != BoolOp::Eq && !self.is_test() {
            for missing in [left.missing, right.missing].into_iter().flatten() {
                let file = self
                    .unit()
                    .map(|unit| unit.file.clone())
                    .unwrap_or_default();
                self.found.suspects.push(Suspect {
                    rule: self.rule.clone(),
                    flips: self.flipped,
                    file,
                    at: place(lhs.span()),
                    text: span_text(lhs, rhs, span),
                    missing,
                });
            }
        }
    }

    /// Both are equal (or, with `wanted` false, are not).
    fn equal(
        &mut self,
        left: &Inferred,
        lhs: &Expr,
        right: &Inferred,
        rhs: &Expr,
        _span: &Span,
        wanted: bool,
    ) {
        if self.is_test() {
            return;
        }
        let (weight, verdict) = if wanted {
            (Weight::Error, "this never holds")
        } else {
            (Weight::Warning, "this always holds")
        };
        if !left.ty.meets(&right.ty) {
            let message = format!(
                "{verdict}: `{}` is {} and `{}` is {}",
                short(lhs),
                left.ty.words(),
                short(rhs),
                right.ty.words()
            );
            let help = "compare values of one kind".to_owned();
            return self.find("compare", weight, lhs.span(), message, help);
        }
        for (one, expr, other) in [(left, lhs, right), (right, rhs, left)] {
            let (Some(text), Some(said)) = (one.ty.as_text(), other.ty.as_text()) else {
                continue;
            };
            let Some(said) = &said.values else {
                continue;
            };
            if said.iter().any(|said| can_be(text, said)) {
                continue;
            }
            let first = said.first().map_or("", String::as_str);
            let message = format!("{verdict}: `{}` is never \"{first}\"", short(expr));
            let weight = weight.max(weight_of(text.configured));
            return self.find(
                "compare",
                weight,
                lhs.span(),
                message,
                wanted_text(text, first),
            );
        }
    }

    fn contained(
        &mut self,
        one: &Inferred,
        value: &Expr,
        element: &Inferred,
        collection: &Expr,
        _span: &Span,
    ) {
        if self.is_test()
            || matches!(collection, Expr::Set { items, .. } | Expr::Array { items, .. } if items.is_empty())
        {
            return;
        }
        if !one.ty.meets(&element.ty) {
            let message = format!(
                "this never holds: `{}` is {} and what is in `{}` is {}",
                short(value),
                one.ty.words(),
                short(collection),
                element.ty.words()
            );
            let help = "look for values of the same kind".to_owned();
            return self.find("compare", Weight::Error, value.span(), message, help);
        }
        let (Some(text), Some(among)) = (one.ty.as_text(), element.ty.as_text()) else {
            return;
        };
        // Each literal of a list that the value can never be.
        if let (Expr::Set { items, .. } | Expr::Array { items, .. }, Some(_)) =
            (collection, &among.values)
        {
            for item in items {
                if let Some(regorus::Value::String(said)) = literal(item)
                    && !can_be(text, &said)
                {
                    self.find(
                        "compare",
                        weight_of(text.configured),
                        item.span(),
                        format!("`{}` is never \"{said}\"", short(value)),
                        wanted_text(text, &said),
                    );
                }
            }
        } else if let (Some(said), Expr::String { .. } | Expr::RawString { .. }) =
            (&text.values, value)
            && !said.iter().any(|said| can_be(among, said))
        {
            let first = said.first().map_or("", String::as_str);
            let message = format!("\"{first}\" is never in `{}`", short(collection));
            let weight = weight_of(among.configured);
            self.find(
                "compare",
                weight,
                value.span(),
                message,
                wanted_text(among, first),
            );
        }
    }
}

/// A step of a reference.
#[derive(Debug, Clone)]
enum Step {
    Name(String),
    /// By a value that is known then.
    Some,
    /// By a variable that takes every value.
    Each,
}

enum Taken {
    Value { ty: Type, sure: bool },
    Nothing(String, String, Weight),
}

fn take(ty: &Type, step: &Step) -> Taken {
    let value = |ty: Type, sure: bool| Taken::Value { ty, sure };
    match (ty, step) {
        (Type::Any, Step::Each) => value(Type::Any, true),
        (Type::Any, _) => value(Type::Any, false),
        (Type::Object(_) | Type::List(_) | Type::Set(_), Step::Each) => value(ty.element(), true),
        (Type::Object(object), Step::Name(name)) => {
            if let Some((ty, sure)) = object.fields.get(name) {
                return value(ty.clone(), *sure);
            }
            if let Some(why) = object.never.get(name) {
                return Taken::Nothing(
                    format!("never has it: {why}"),
                    "read `input.identity`, which is what was proven".to_owned(),
                    Weight::Error,
                );
            }
            match &object.rest {
                Some(rest) if object.names.fits(name) => value((**rest).clone(), false),
                Some(_) => Taken::Nothing(
                    "has names in lower case only".to_owned(),
                    format!("write `{}`", object.names.mended(name)),
                    Weight::Error,
                ),
                None => Taken::Nothing(
                    format!("has no member `{name}`"),
                    known_names(name, object.fields.keys().map(String::as_str)),
                    weight_of(object.configured),
                ),
            }
        }
        (Type::Object(_), Step::Some) => value(ty.element(), false),
        (Type::List(element) | Type::Set(element), Step::Some) => value((**element).clone(), false),
        (Type::Set(element), Step::Name(_)) => value((**element).clone(), false),
        (Type::List(_), Step::Name(name)) => Taken::Nothing(
            "is an array, whose elements have numbers".to_owned(),
            format!("ask whether it is in there: `\"{name}\" in …`"),
            Weight::Error,
        ),
        (Type::OneOf(several), step) => {
            let mut sure = true;
            let mut found: Option<Type> = None;
            let mut why = None;
            for one in several {
                match take(one, step) {
                    Taken::Value { ty, sure: always } => {
                        sure &= always;
                        found = Some(match found {
                            Some(known) => known.or(ty),
                            None => ty,
                        });
                    }
                    Taken::Nothing(what, help, weight) => {
                        sure = false;
                        if *one != Type::Null {
                            why = Some((what, help, weight));
                        }
                    }
                }
            }
            match (found, why) {
                (Some(ty), _) => value(ty, sure),
                (None, Some((what, help, weight))) => Taken::Nothing(what, help, weight),
                (None, None) => value(Type::Any, false),
            }
        }
        (Type::Null, _) => Taken::Nothing(
            "is null".to_owned(),
            "read another member".to_owned(),
            Weight::Error,
        ),
        (Type::Bool | Type::Number | Type::Text(_), _) => Taken::Nothing(
            format!("is {} and has no members", ty.words()),
            "read it as it is".to_owned(),
            Weight::Error,
        ),
    }
}

/// What the configuration alone says may be meant for another one.
fn weight_of(configured: bool) -> Weight {
    if configured {
        Weight::Warning
    } else {
        Weight::Error
    }
}

fn can_be(text: &Text, said: &str) -> bool {
    text.form.fits(said)
        && text
            .values
            .as_ref()
            .is_none_or(|values| values.contains(said))
}

fn wanted_text(text: &Text, said: &str) -> String {
    match &text.values {
        Some(values) => known_names(said, values.iter().map(String::as_str)),
        None => format!("write \"{}\"", text.form.mended(said)),
    }
}

/// An expression as it stands there, on one line and not too long.
pub(super) fn short(expr: &Expr) -> String {
    const LONGEST: usize = 60;
    let text = expr
        .span()
        .text()
        .split_whitespace()
        .collect::<Vec<_>>()
        .join(" ");
    if text.chars().count() > LONGEST {
        format!("{}…", text.chars().take(LONGEST).collect::<String>())
    } else {
        text
    }
}

fn short_of(expr: Option<&Ref<Expr>>) -> String {
    expr.map(|expr| short(expr)).unwrap_or_default()
}

fn span_text(lhs: &Expr, rhs: &Expr, span: &Span) -> String {
    let between = span.text();
    let (left, right) = (short(lhs), short(rhs));
    // The operator's own span, where the whole is not kept.
    if between.len() <= 2 {
        format!("{left} {between} {right}")
    } else {
        between.split_whitespace().collect::<Vec<_>>().join(" ")
    }
}

/// Whether a value is a no: `false`, or an object that says so.
pub(super) fn is_no(value: Option<&Expr>) -> bool {
    match value {
        Some(Expr::Bool { value, .. }) => *value == regorus::Value::from(false),
        Some(Expr::Object { fields, .. }) => fields.iter().any(|(_, key, value)| {
            matches!(literal(key), Some(regorus::Value::String(name)) if matches!(&*name, "allow" | "allowed"))
                && literal(value) == Some(regorus::Value::from(false))
        }),
        _ => false,
    }
}

/// Whether a value is a yes.
pub(super) fn says_yes(value: &Expr) -> bool {
    match value {
        Expr::Bool { value, .. } => *value == regorus::Value::from(true),
        Expr::Object { fields, .. } => fields.iter().any(|(_, key, value)| {
            matches!(literal(key), Some(regorus::Value::String(name)) if matches!(&*name, "allow" | "allowed"))
                && literal(value) == Some(regorus::Value::from(true))
        }),
        _ => false,
    }
}

/// Whether the comparison holds when there is nothing in `one`.
fn is_empty_test(op: &BoolOp, one: &Expr, other: &Expr) -> bool {
    let said = literal(other);
    let is = |value: regorus::Value| said.as_ref() == Some(&value);
    let empty = match other {
        Expr::Set { items, .. } | Expr::Array { items, .. } => items.is_empty(),
        Expr::Object { fields, .. } => fields.is_empty(),
        Expr::Call { fcn, params, .. } => params.is_empty() && short(fcn) == "set",
        _ => false,
    };
    let counts = matches!(one, Expr::Call { fcn, .. } if short(fcn) == "count");
    match op {
        BoolOp::Eq => {
            empty || (counts && is(regorus::Value::from(0u64))) || is(regorus::Value::from(false))
        }
        BoolOp::Ne => is(regorus::Value::from(true)),
        BoolOp::Lt => counts && is(regorus::Value::from(1u64)),
        _ => false,
    }
}
