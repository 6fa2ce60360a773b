//! Values that are small in memory and large to whoever goes through them.
//!
//! `b := [a, a]`, `c := [b, b]` and so on: forty such lines make a value of a few hundred bytes that
//! has a million million members, for it holds the same one many times. Comparing two of them, putting
//! them into a set or sorting them takes hours, and no clock is looked at meanwhile. So how much larger
//! than its parts a value can be is told from the source, as an upper bound, and bounded; with it how
//! deep it lies inside others, for a deep value needs stack when it is dropped.
//!
//! What a request or the data bring counts as one: they are bounded themselves.

#![expect(
    clippy::wildcard_enum_match_arm,
    reason = "a few forms hold values several times; all others hold each once"
)]

use std::collections::BTreeMap;

use regorus::unstable::{Expr, Literal, Module, Query, Ref, Rule, RuleHead};

use crate::authz::source::remark::Remark;
use crate::authz::source::rewrite::OURS;
use crate::authz::source::syntax::{chain, head, head_assign, place};

/// How many times larger than its parts a value may be.
pub(in crate::authz) const MAX_EXPANSION: u64 = 4_000_000;
/// How many times a comprehension or a partial rule may hold what stands outside of it.
const REPEATS: u64 = 1_000;
/// How deep collections that the source makes may lie one inside the other.
pub(in crate::authz) const MAX_NESTING: u32 = 200;

/// How large a value can be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Size {
    members: u64,
    depth: u32,
    /// One value that is no collection: it costs nothing to hold it often.
    plain: bool,
}

const ONE: Size = Size {
    members: 1,
    depth: 0,
    plain: false,
};
const PLAIN: Size = Size { plain: true, ..ONE };

impl Size {
    fn beside(self, other: Self) -> Self {
        Self {
            members: self.members.saturating_add(other.members),
            depth: self.depth.max(other.depth),
            plain: false,
        }
    }

    fn or(self, other: Self) -> Self {
        Self {
            members: self.members.max(other.members),
            depth: self.depth.max(other.depth),
            plain: self.plain && other.plain,
        }
    }

    fn inside(self) -> Self {
        Self {
            depth: self.depth.saturating_add(1),
            plain: false,
            ..self
        }
    }

    fn times(self, times: u64) -> Self {
        Self {
            members: self.members.saturating_mul(times),
            ..self
        }
    }
}

/// Refuses modules whose values can be much larger than what they are made of.
pub(in crate::authz) fn check(modules: &[Ref<Module>]) -> Vec<Remark> {
    let mut walk = Walk {
        rules: BTreeMap::new(),
        imports: BTreeMap::new(),
        known: BTreeMap::new(),
        open: Vec::new(),
    };
    for module in modules {
        let package = package_of(module);
        for import in &module.imports {
            let path = chain(&import.refr).prefix().unwrap_or_default();
            let name = match &import.r#as {
                Some(span) => Some(span.text().to_owned()),
                None => path.last().cloned(),
            };
            if let Some(name) = name {
                walk.imports.insert((package.clone(), name), path);
            }
        }
        for rule in &module.policy {
            let mut path = package.clone();
            path.extend(chain(head(rule)).prefix().unwrap_or_default());
            let rules = walk.rules.entry(path).or_default();
            rules.push((package.clone(), rule));
        }
    }
    let mut remarks = Vec::new();
    let paths: Vec<Vec<String>> = walk.rules.keys().cloned().collect();
    for path in paths {
        let size = walk.rule(&path);
        let what = if size.members > MAX_EXPANSION {
            format!("can hold the same values more than {MAX_EXPANSION} times")
        } else if size.depth > MAX_NESTING {
            format!("can nest more than {MAX_NESTING} collections")
        } else {
            continue;
        };
        if let Some((_, rule)) = walk.rules.get(&path).and_then(|rules| rules.first()) {
            let span = head(rule).span();
            remarks.push(Remark::error(
                span.source.get_path(),
                Some(place(span)),
                format!("the rule `{}` makes values that {what}", path.join(".")),
                "such a value is small in memory, and comparing it has no end; name its parts instead of copying it into itself",
            ));
        }
        // Those that use it are too large for the same reason.
        if remarks.len() == 1 {
            break;
        }
    }
    remarks
}

fn package_of(module: &Module) -> Vec<String> {
    let mut path = vec!["data".to_owned()];
    path.extend(chain(&module.package.refr).prefix().unwrap_or_default());
    path
}

/// A rule with the package that it stands in.
type Placed<'m> = (Vec<String>, &'m Ref<Rule>);

struct Walk<'m> {
    rules: BTreeMap<Vec<String>, Vec<Placed<'m>>>,
    imports: BTreeMap<(Vec<String>, String), Vec<String>>,
    /// The largest value that a rule makes anywhere, and gives.
    known: BTreeMap<Vec<String>, Size>,
    open: Vec<Vec<String>>,
}

/// The values of variables, in a body.
#[derive(Clone, Default)]
struct Scope {
    package: Vec<String>,
    sizes: BTreeMap<String, Size>,
    /// The largest value that was made so far.
    largest: Option<Size>,
}

impl Walk<'_> {
    /// The largest value that a rule can make. Of a function: how much larger than its arguments.
    fn rule(&mut self, path: &[String]) -> Size {
        if let Some(known) = self.known.get(path) {
            return *known;
        }
        // Recursion is refused elsewhere.
        if self.open.iter().any(|open| open == path) {
            return ONE;
        }
        let Some(rules) = self.rules.get(path).cloned() else {
            return ONE;
        };
        self.open.push(path.to_vec());
        let mut size: Option<Size> = None;
        for (package, rule) in rules {
            let one = self.definition(&package, rule);
            size = Some(size.map_or(one, |size| size.or(one)));
        }
        self.open.pop();
        let size = size.unwrap_or(ONE);
        self.known.insert(path.to_vec(), size);
        size
    }

    fn definition(&mut self, package: &[String], rule: &Rule) -> Size {
        let mut scope = Scope {
            package: package.to_vec(),
            ..Scope::default()
        };
        match rule {
            Rule::Default { value, .. } => self.size(value, &mut scope),
            Rule::Spec { head, bodies, .. } => {
                if let RuleHead::Func { args, .. } = head {
                    for arg in args {
                        give(arg, ONE, &mut scope);
                    }
                }
                let mut size: Option<Size> = None;
                let mut queries: Vec<Option<(&Query, Option<&Expr>)>> = bodies
                    .iter()
                    .map(|body| {
                        let value = body.assign.as_ref().map(|assign| assign.value.as_ref());
                        Some((&*body.query, value))
                    })
                    .collect();
                if queries.is_empty() {
                    queries.push(None);
                }
                for query in queries {
                    let mut scope = scope.clone();
                    let mut value = head_assign(head).map(|assign| assign.value.as_ref());
                    if let Some((query, own)) = query {
                        self.query(query, &mut scope);
                        value = own.or(value);
                    }
                    let given = match head {
                        RuleHead::Set { key: Some(key), .. } => {
                            let inner = bodies.first().map(|body| &*body.query);
                            self.collected(&[key], inner, &scope)
                        }
                        _ => value.map_or(PLAIN, |value| self.size(value, &mut scope)),
                    };
                    let one = scope.largest.map_or(given, |largest| Size {
                        plain: given.plain,
                        ..given.or(largest)
                    });
                    size = Some(size.map_or(one, |size| size.or(one)));
                }
                size.unwrap_or(ONE)
            }
        }
    }

    fn query(&mut self, query: &Query, scope: &mut Scope) {
        for statement in &query.stmts {
            match &statement.literal {
                Literal::SomeVars { vars, .. } => {
                    for name in vars {
                        scope.sizes.insert(name.text().to_owned(), ONE);
                    }
                }
                Literal::SomeIn {
                    key,
                    value,
                    collection,
                    ..
                } => {
                    let size = self.size(collection, scope);
                    for expr in key.iter().chain([value]) {
                        give(expr, size, scope);
                    }
                }
                Literal::Expr { expr, .. } | Literal::NotExpr { expr, .. } => {
                    self.size(expr, scope);
                }
                Literal::Every {
                    key,
                    value,
                    domain,
                    query,
                    ..
                } => {
                    let size = self.size(domain, scope);
                    let mut inner = scope.clone();
                    for name in key.iter().chain([value]) {
                        inner.sizes.insert(name.text().to_owned(), size);
                    }
                    self.query(query, &mut inner);
                    scope.saw(inner.largest);
                }
            }
        }
    }

    /// A comprehension or a partial rule: what stands outside may be in it many times.
    fn collected(&mut self, terms: &[&Expr], query: Option<&Query>, scope: &Scope) -> Size {
        let mut inner = scope.clone();
        let mut own: Vec<String> = Vec::new();
        if let Some(query) = query {
            let before: Vec<String> = scope.sizes.keys().cloned().collect();
            self.query(query, &mut inner);
            own.extend(inner.sizes.keys().filter(|n| !before.contains(n)).cloned());
        }
        let sizes: Vec<Size> = terms
            .iter()
            .map(|term| self.size(term, &mut inner))
            .collect();
        let plain = sizes.iter().all(|size| size.plain);
        let size = sizes.into_iter().reduce(Size::beside).unwrap_or(PLAIN);
        // The variables of its own loops go through what is there once.
        let alone = terms.iter().all(|term| {
            matches!(term, Expr::Var { span, .. } if own.iter().any(|name| name == span.text()))
        });
        let times = if plain || alone || size.members <= 1 {
            1
        } else {
            REPEATS
        };
        let largest = inner.largest.map_or(size, |largest| largest.or(size));
        size.times(times)
            .or(Size {
                members: largest.members,
                ..size
            })
            .inside()
    }

    fn size(&mut self, expr: &Expr, scope: &mut Scope) -> Size {
        let size = match expr {
            Expr::String { .. }
            | Expr::RawString { .. }
            | Expr::Number { .. }
            | Expr::Bool { .. }
            | Expr::Null { .. } => PLAIN,
            Expr::Var { .. } | Expr::RefDot { .. } | Expr::RefBrack { .. } => {
                self.reference(expr, scope)
            }
            Expr::Array { items, .. } | Expr::Set { items, .. } => {
                let sizes = items.iter().map(|item| self.size(item, scope));
                sizes.reduce(Size::beside).unwrap_or(PLAIN).inside()
            }
            Expr::Object { fields, .. } => {
                let fields = fields.iter();
                let sizes = fields.flat_map(|(_, key, value)| [key, value]);
                let sizes: Vec<Size> = sizes.map(|expr| self.size(expr, scope)).collect();
                let sizes = sizes.into_iter().reduce(Size::beside);
                sizes.unwrap_or(PLAIN).inside()
            }
            Expr::ArrayCompr { term, query, .. } | Expr::SetCompr { term, query, .. } => {
                self.collected(&[term], Some(query), scope)
            }
            Expr::ObjectCompr {
                key, value, query, ..
            } => self.collected(&[key, value], Some(query), scope),
            Expr::Call { fcn, params, .. } => {
                // What a loop goes through, beside what it waits for.
                let ours = chain(fcn)
                    .prefix()
                    .is_some_and(|name| name.join(".") == OURS);
                let params = params.get(..if ours { 1 } else { params.len() });
                let params = params.unwrap_or_default();
                let sizes: Vec<Size> = params.iter().map(|p| self.size(p, scope)).collect();
                let all = sizes.into_iter().reduce(Size::beside).unwrap_or(PLAIN);
                match self.path(fcn, scope) {
                    // What a function makes of arguments of one, of these.
                    Some(path) if self.rules.contains_key(&path) => {
                        let made = self.rule(&path);
                        Size {
                            members: made.members.saturating_mul(all.members),
                            depth: made.depth.saturating_add(all.depth),
                            plain: made.plain,
                        }
                    }
                    _ => all.inside(),
                }
            }
            Expr::UnaryExpr { .. } => PLAIN,
            Expr::ArithExpr { lhs, rhs, .. } | Expr::BinExpr { lhs, rhs, .. } => {
                self.size(lhs, scope).beside(self.size(rhs, scope))
            }
            Expr::BoolExpr { lhs, rhs, .. } => {
                self.size(lhs, scope);
                self.size(rhs, scope);
                PLAIN
            }
            Expr::AssignExpr { lhs, rhs, .. } => {
                let size = self.size(rhs, scope);
                give(lhs, size, scope);
                // `[x, x] = y` gives in the other direction.
                if let Expr::Var { .. } = rhs.as_ref() {
                    let size = self.size(lhs, scope);
                    give(rhs, size, scope);
                }
                PLAIN
            }
            Expr::Membership {
                key,
                value,
                collection,
                ..
            } => {
                for expr in key.iter().chain([value, collection]) {
                    self.size(expr, scope);
                }
                PLAIN
            }
        };
        scope.saw(Some(size));
        size
    }

    fn reference(&mut self, expr: &Expr, scope: &mut Scope) -> Size {
        let chain = chain(expr);
        if let Expr::Var { span, .. } = chain.base {
            if let Some(size) = scope.sizes.get(span.text()) {
                return *size;
            }
        } else {
            let base = chain.base;
            return self.size(base, scope);
        }
        match self.path(expr, scope) {
            Some(path) => {
                let through = (2..=path.len())
                    .filter_map(|end| path.get(..end))
                    .find(|part| self.rules.contains_key(*part))
                    .map(<[String]>::to_vec);
                match through {
                    Some(path) => self.rule(&path),
                    // All rules below a path are one object.
                    None => {
                        let below: Vec<Vec<String>> = self
                            .rules
                            .range(path.clone()..)
                            .map(|(other, _)| other)
                            .take_while(|other| other.starts_with(&path))
                            .cloned()
                            .collect();
                        let sizes: Vec<Size> = below.iter().map(|path| self.rule(path)).collect();
                        sizes
                            .into_iter()
                            .reduce(Size::beside)
                            .map_or(ONE, Size::inside)
                    }
                }
            }
            None => ONE,
        }
    }

    /// The path of data that a reference stands for, as far as it has names.
    fn path(&self, expr: &Expr, scope: &Scope) -> Option<Vec<String>> {
        let names = chain(expr).prefix()?;
        let (root, rest) = names.split_first()?;
        if root == "data" {
            return Some(names);
        }
        if scope.sizes.contains_key(root) || root == "input" {
            return None;
        }
        let mut path = match self.imports.get(&(scope.package.clone(), root.clone())) {
            Some(path) => path.clone(),
            None => {
                let mut path = scope.package.clone();
                path.push(root.clone());
                path
            }
        };
        path.extend_from_slice(rest);
        path.first()
            .is_some_and(|root| root == "data")
            .then_some(path)
    }
}

impl Scope {
    fn saw(&mut self, size: Option<Size>) {
        self.largest = match (self.largest, size) {
            (Some(one), Some(other)) => Some(one.or(other)),
            (one, other) => one.or(other),
        };
    }
}

/// Gives the variables of a pattern their size; none that they have is made smaller.
fn give(pattern: &Expr, size: Size, scope: &mut Scope) {
    match pattern {
        Expr::Var { span, .. } => {
            let known = scope.sizes.get(span.text()).copied();
            let size = known.map_or(size, |known| known.or(size));
            scope.sizes.insert(span.text().to_owned(), size);
        }
        Expr::Array { items, .. } | Expr::Set { items, .. } => {
            items.iter().for_each(|item| give(item, size, scope));
        }
        Expr::Object { fields, .. } => {
            fields
                .iter()
                .for_each(|(_, _, value)| give(value, size, scope));
        }
        _ => {}
    }
}
