//! How a decision depends on the time, where that can be told.
//!
//! The time of a request is another in every request, so that a policy which reads it would have to
//! be asked each time. Two uses of it can be told better, and are *accounted for* here:
//!
//! - as the argument of `time.clock`, `time.date` and `time.weekday`: their answers depend on the
//!   minute, the hour or the day alone, which then belongs to the question;
//! - in a comparison whose sides are sums and differences of the time, of constants, and of what the
//!   question and the data have: such a comparison changes at one moment that can be computed, and an
//!   answer holds until the first such moment.
//!
//! What is not accounted for is read like any other path, and makes the policy one that is asked anew.
//! Nothing here depends on which comparisons a decision comes to make: all count.

#![expect(
    clippy::wildcard_enum_match_arm,
    reason = "a few forms are accounted for; all others are not"
)]

use std::collections::{BTreeMap, BTreeSet};
use std::ptr;

use regorus::Value;
use regorus::unstable::{ArithOp, AssignOp, Expr, Literal, Module, Query, Ref, Rule, RuleHead};

use crate::authz::source::reads::Step;
use crate::authz::source::syntax::{Part, chain, head, head_assign};
use crate::document;

/// The member of the request that holds the time, in nanoseconds.
pub(in crate::authz) const TIME: [&str; 3] = ["input", "request", "received_at_ns"];

/// What of the time a calendar function tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(in crate::authz) enum Unit {
    Second,
    Minute,
    Hour,
    Day,
}

impl Unit {
    pub(in crate::authz) fn nanoseconds(self) -> u64 {
        const SECOND: u64 = 1_000_000_000;
        match self {
            Self::Second => SECOND,
            Self::Minute => 60 * SECOND,
            Self::Hour => 3_600 * SECOND,
            Self::Day => 86_400 * SECOND,
        }
    }
}

/// What stands beside the time in a comparison.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::authz) enum Term {
    /// A path below `input`.
    Input(Vec<Step>),
    /// A path below `data`.
    Data(Vec<String>),
}

/// A sum: the time so many times, a constant, and other values so many times.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Sum {
    time: i64,
    constant: i128,
    terms: Vec<(i64, Term)>,
    /// The expressions that stand for the time, or for a name of it.
    used: Vec<usize>,
}

/// A comparison with the time: one side minus the other.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::authz) struct Comparison {
    time: i64,
    constant: i128,
    terms: Vec<(i64, Term)>,
}

/// How the rules that were looked at depend on the time.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(in crate::authz) struct Timing {
    /// The smallest unit that a calendar function tells.
    pub(in crate::authz) unit: Option<Unit>,
    pub(in crate::authz) comparisons: Vec<Comparison>,
    /// The time is read, and accounted for.
    pub(in crate::authz) read: bool,
}

impl Timing {
    /// How many nanoseconds from this time on an answer to this input holds; `None` without end.
    pub(in crate::authz) fn holds(&self, now: u64, input: &Value, data: &Value) -> Option<u64> {
        let each = self.comparisons.iter();
        each.filter_map(|one| one.holds(now, input, data)).min()
    }
}

impl Comparison {
    /// Nanoseconds until this comparison may come out differently.
    fn holds(&self, now: u64, input: &Value, data: &Value) -> Option<u64> {
        let mut difference = i128::from(self.time) * i128::from(now) + self.constant;
        for (times, term) in &self.terms {
            match term.number(input, data) {
                Found::Number(number) => {
                    difference = difference.checked_add(i128::from(*times) * number)?;
                }
                // The comparison is undefined, or fails, or compares things of two kinds: at any time.
                // But what is not in the data may be a variable's name.
                Found::Other => match term {
                    Term::Input(_) => return None,
                    Term::Data(_) => return Some(0),
                },
                // A fraction, or too large a number: not computed here.
                Found::Unclear => return Some(0),
            }
        }
        let slope = i128::from(self.time);
        // Equal now may be different at once; what moves away never meets.
        if difference == 0 {
            return Some(0);
        }
        if slope == 0 || (difference > 0) == (slope > 0) {
            return None;
        }
        u64::try_from(difference.abs() / slope.abs()).ok()
    }
}

enum Found {
    Number(i128),
    Other,
    Unclear,
}

impl Term {
    fn number(&self, input: &Value, data: &Value) -> Found {
        let value = match self {
            Self::Input(path) => path.iter().try_fold(input, |value, step| match step {
                Step::Name(name) => document::member(value, name),
                Step::Index(index) => document::items(value)?.get(*index),
            }),
            Self::Data(path) => path
                .iter()
                .try_fold(data, |value, name| document::member(value, name)),
        };
        match value {
            Some(Value::Number(number)) => match number.as_i64() {
                Some(whole) if number.is_integer() => Found::Number(i128::from(whole)),
                _ => Found::Unclear,
            },
            _ => Found::Other,
        }
    }
}

impl Sum {
    fn of_time(at: &Expr) -> Self {
        Self {
            time: 1,
            used: vec![address(at)],
            ..Self::default()
        }
    }

    fn plus(mut self, other: Self, times: i64) -> Option<Self> {
        let other = other.times(times)?;
        self.time = self.time.checked_add(other.time)?;
        self.constant = self.constant.checked_add(other.constant)?;
        self.terms.extend(other.terms);
        self.used.extend(other.used);
        Some(self)
    }

    fn times(mut self, times: i64) -> Option<Self> {
        self.time = self.time.checked_mul(times)?;
        self.constant = self.constant.checked_mul(i128::from(times))?;
        for (count, _) in &mut self.terms {
            *count = count.checked_mul(times)?;
        }
        Some(self)
    }

    fn is_constant(&self) -> Option<i64> {
        let alone = self.time == 0 && self.terms.is_empty() && self.used.is_empty();
        i64::try_from(self.constant).ok().filter(|_| alone)
    }

    /// The time and nothing else.
    fn is_time(&self) -> bool {
        self.time == 1 && self.constant == 0 && self.terms.is_empty()
    }
}

/// An expression by where it lies in memory: the tree does not move while it is read.
pub(in crate::authz) fn address(expr: &Expr) -> usize {
    ptr::from_ref(expr).addr()
}

/// What is known of all modules before their rules are looked at.
#[derive(Debug, Default)]
pub(in crate::authz) struct Names {
    /// Rules that are the time, or a constant number, under another name.
    rules: BTreeMap<Vec<String>, Option<i64>>,
    /// Rules that are a path below `input` under another name.
    paths: BTreeMap<Vec<String>, Vec<String>>,
    /// All rules.
    all: BTreeSet<Vec<String>>,
    /// A module replaces something with `with`: nothing is known.
    replaced: bool,
}

/// What a name may stand for, as the reader of paths resolves it.
pub(in crate::authz) trait Meanings {
    /// Every path that a name with further names behind it may stand for.
    fn meanings(&self, names: &[String]) -> Vec<Vec<String>>;
}

impl Names {
    /// Collects what stands for the time, or for a constant, among the rules.
    pub(in crate::authz) fn of(modules: &[Ref<Module>]) -> Self {
        let mut found = Self::default();
        let mut definitions: BTreeMap<Vec<String>, Vec<&Rule>> = BTreeMap::new();
        for module in modules {
            let mut package = vec!["data".to_owned()];
            package.extend(chain(&module.package.refr).prefix().unwrap_or_default());
            for rule in &module.policy {
                let mut path = package.clone();
                path.extend(chain(head(rule)).prefix().unwrap_or_default());
                found.all.insert(path.clone());
                definitions.entry(path).or_default().push(rule);
                each_query(rule, &mut |query| {
                    found.replaced |= query.stmts.iter().any(|s| !s.with_mods.is_empty());
                });
            }
        }
        for (path, rules) in definitions {
            if let [Rule::Spec { head, bodies, .. }] = *rules.as_slice()
                && bodies.is_empty()
                && let RuleHead::Compr {
                    refr,
                    assign: Some(assign),
                    ..
                } = head
                && matches!(refr.as_ref(), Expr::Var { .. })
            {
                let value = assign.value.as_ref();
                if is_time_of_request(value) {
                    found.rules.insert(path, None);
                } else if let Some(number) = whole(value) {
                    found.rules.insert(path, Some(number));
                } else if let Some(below) = below_input(value) {
                    found.paths.insert(path, below);
                }
            }
        }
        found
    }

    /// Looks at one rule. Adds how it depends on the time, and the expressions that are accounted for.
    pub(in crate::authz) fn examine(
        &self,
        rule: &Rule,
        meanings: &dyn Meanings,
        timing: &mut Timing,
        accounted: &mut BTreeSet<usize>,
    ) {
        if self.replaced {
            return;
        }
        let mut scan = Scan {
            names: self,
            meanings,
            binders: BTreeMap::new(),
            given: BTreeMap::new(),
            locals: BTreeMap::new(),
            uses: BTreeMap::new(),
            indexed: BTreeMap::new(),
        };
        scan.bind(rule);
        scan.index(rule);
        scan.resolve();
        let mut seen = BTreeSet::new();
        let mut found = Timing::default();
        each_expr(rule, &mut |expr| scan.uses(expr, &mut found, &mut seen));
        scan.leaks(&mut seen);
        timing.read |= !seen.is_empty();
        timing.unit = [timing.unit, found.unit].into_iter().flatten().min();
        for comparison in found.comparisons {
            if !timing.comparisons.contains(&comparison) {
                timing.comparisons.push(comparison);
            }
        }
        accounted.extend(seen);
    }
}

/// `input.request.received_at_ns` or `time.now_ns()` as they are.
fn is_time_of_request(expr: &Expr) -> bool {
    match expr {
        Expr::Call { fcn, params, .. } => {
            params.is_empty() && chain(fcn).prefix().is_some_and(|n| n == ["time", "now_ns"])
        }
        Expr::RefDot { .. } | Expr::RefBrack { .. } => {
            let chain = chain(expr);
            chain.prefix().is_some_and(|n| n == TIME) && chain.parts.len() == TIME.len() - 1
        }
        _ => false,
    }
}

/// The names below `input` that a reference has, if it has nothing else.
fn below_input(expr: &Expr) -> Option<Vec<String>> {
    let chain = chain(expr);
    let names = chain.prefix()?;
    let (root, below) = names.split_first()?;
    let whole = chain.parts.len() == below.len() && !below.is_empty();
    (root == "input" && whole && names != TIME).then(|| below.to_vec())
}

/// A text, a collection and the like, by its form.
fn is_no_number(expr: &Expr) -> bool {
    matches!(
        expr,
        Expr::String { .. }
            | Expr::RawString { .. }
            | Expr::Bool { .. }
            | Expr::Null { .. }
            | Expr::Array { .. }
            | Expr::Set { .. }
            | Expr::Object { .. }
    )
}

fn whole(expr: &Expr) -> Option<i64> {
    let Expr::Number {
        value: Value::Number(number),
        ..
    } = expr
    else {
        return None;
    };
    number.as_i64().filter(|_| number.is_integer())
}

struct Scan<'s> {
    names: &'s Names,
    meanings: &'s dyn Meanings,
    /// How often each name is given a value anywhere in the rule.
    binders: BTreeMap<String, usize>,
    /// What `name := …` gives.
    given: BTreeMap<String, &'s Expr>,
    /// Names for sums.
    locals: BTreeMap<String, Sum>,
    /// Where each name stands, but for the places that give it its value.
    uses: BTreeMap<String, Vec<usize>>,
    /// How often each name stands before a constant number in brackets, and the greatest of those.
    indexed: BTreeMap<String, (usize, i64)>,
}

impl<'s> Scan<'s> {
    fn count(&mut self, expr: &Expr) {
        match expr {
            Expr::Var { span, .. } => {
                *self.binders.entry(span.text().to_owned()).or_default() += 1;
            }
            Expr::Array { items, .. } | Expr::Set { items, .. } => {
                items.iter().for_each(|item| self.count(item));
            }
            Expr::Object { fields, .. } => {
                fields.iter().for_each(|(_, _, value)| self.count(value));
            }
            _ => {}
        }
    }

    fn bind(&mut self, rule: &'s Rule) {
        match rule {
            Rule::Spec {
                head: RuleHead::Func { args, .. },
                ..
            }
            | Rule::Default { args, .. } => args.iter().for_each(|arg| self.count(arg)),
            Rule::Spec { .. } => {}
        }
        let mut queries: Vec<&'s Query> = Vec::new();
        each_query(rule, &mut |query| queries.push(query));
        for statement in queries.iter().flat_map(|query| &query.stmts) {
            match &statement.literal {
                Literal::SomeVars { vars, .. } => {
                    for name in vars {
                        *self.binders.entry(name.text().to_owned()).or_default() += 1;
                    }
                }
                Literal::SomeIn { key, value, .. } => {
                    key.iter().chain([value]).for_each(|expr| self.count(expr));
                }
                Literal::Every { key, value, .. } => {
                    for name in key.iter().chain([value]) {
                        *self.binders.entry(name.text().to_owned()).or_default() += 1;
                    }
                }
                Literal::Expr { .. } | Literal::NotExpr { .. } => {}
            }
        }
        let mut assigned: Vec<(&'s Expr, &'s Expr, bool)> = Vec::new();
        each_expr(rule, &mut |expr| {
            if let Expr::AssignExpr { op, lhs, rhs, .. } = expr {
                assigned.push((lhs, rhs, *op == AssignOp::ColEq));
            }
        });
        for (lhs, rhs, declares) in assigned {
            self.count(lhs);
            if !declares {
                // Either side may be given its value.
                self.count(rhs);
                self.count(lhs);
            } else if let Expr::Var { span, .. } = lhs {
                self.given.insert(span.text().to_owned(), rhs);
            }
        }
    }

    fn index(&mut self, rule: &'s Rule) {
        let mut given: BTreeSet<usize> = BTreeSet::new();
        let (mut uses, mut indexed) = (Vec::new(), Vec::new());
        each_expr(rule, &mut |expr| match expr {
            Expr::Var { span, .. } => uses.push((span.text(), address(expr))),
            Expr::AssignExpr { lhs, .. } => drop(given.insert(address(lhs))),
            Expr::RefBrack { refr, index, .. } => {
                if let (Expr::Var { span, .. }, Some(number)) = (refr.as_ref(), whole(index)) {
                    indexed.push((span.text(), number));
                }
            }
            _ => {}
        });
        for (name, at) in uses {
            if !given.contains(&at) {
                self.uses.entry(name.to_owned()).or_default().push(at);
            }
        }
        for (name, number) in indexed {
            let (count, most) = self.indexed.entry(name.to_owned()).or_insert((0, number));
            *count += 1;
            *most = number.max(*most);
        }
    }

    /// Names whose one value is a sum; those in terms of others too.
    fn resolve(&mut self) {
        for _ in 0..self.given.len() {
            let new: Vec<(String, Sum)> = self
                .given
                .iter()
                .filter(|(name, _)| {
                    self.binders.get(*name) == Some(&1) && !self.locals.contains_key(*name)
                })
                .filter_map(|(name, expr)| Some((name.clone(), self.sum(expr)?)))
                .collect();
            if new.is_empty() {
                break;
            }
            self.locals.extend(new);
        }
    }

    fn sum(&self, expr: &Expr) -> Option<Sum> {
        match expr {
            Expr::Number { .. } => Some(Sum {
                constant: i128::from(whole(expr)?),
                ..Sum::default()
            }),
            Expr::Call { fcn, .. } if is_time_of_request(expr) => Some(Sum::of_time(fcn)),
            Expr::Var { .. } | Expr::RefDot { .. } | Expr::RefBrack { .. } => self.reference(expr),
            Expr::UnaryExpr { expr, .. } => self.sum(expr)?.times(-1),
            Expr::ArithExpr { op, lhs, rhs, .. } => {
                let (one, other) = (self.sum(lhs)?, self.sum(rhs)?);
                match op {
                    ArithOp::Add => one.plus(other, 1),
                    ArithOp::Sub => one.plus(other, -1),
                    ArithOp::Mul => match (one.is_constant(), other.is_constant()) {
                        (_, Some(times)) => one.times(times),
                        (Some(times), None) => other.times(times),
                        (None, None) => None,
                    },
                    _ => None,
                }
            }
            _ => None,
        }
    }

    fn reference(&self, expr: &Expr) -> Option<Sum> {
        let chain = chain(expr);
        let names = chain.prefix()?;
        let root = names.first()?;
        if self.binders.contains_key(root) {
            let local = self.locals.get(root).filter(|_| chain.parts.is_empty())?;
            // Used here under this name; where it was given is looked at when all uses are known.
            let used = if local.time == 0 && local.used.is_empty() {
                Vec::new()
            } else {
                vec![address(expr)]
            };
            return Some(Sum {
                used,
                ..local.clone()
            });
        }
        let mut meanings = self.meanings.meanings(&names);
        // Neither imported nor a rule's: a variable that an index, a pattern or a call gives its value.
        if root != "data"
            && root != "input"
            && meanings.len() == 1
            && !meanings.iter().any(|rule| self.is_rule(rule))
        {
            return None;
        }
        // Beside what an import gives it, a name may be a rule's; the last, if there is one.
        if meanings.len() > 1 && meanings.last().is_some_and(|rule| !self.is_rule(rule)) {
            meanings.pop();
        }
        let (mut path, None) = (meanings.pop()?, meanings.pop()) else {
            return None;
        };
        let parts = names.len() - 1;
        let named = (2..=path.len()).find_map(|end| {
            let below = self.names.paths.get(path.get(..end)?)?;
            Some((end, below))
        });
        if let Some((end, below)) = named {
            let rest = path.split_off(end);
            path = [vec!["input".to_owned()], below.clone(), rest].concat();
        }
        if path == TIME && chain.parts.len() + 1 == names.len() {
            return Some(Sum::of_time(expr));
        }
        let (root, rest) = path.split_first()?;
        if root == "input" {
            // Of the rest of the request's document only what the question holds.
            let mut steps: Vec<Step> = rest.iter().cloned().map(Step::Name).collect();
            for part in chain.parts.get(parts..)? {
                steps.push(match part {
                    Part::Name(name) => Step::Name(name.clone()),
                    Part::Dynamic(index) => Step::Index(usize::try_from(whole(index)?).ok()?),
                });
            }
            return Some(Sum {
                terms: vec![(1, Term::Input(steps))],
                ..Sum::default()
            });
        }
        if chain.parts.len() + 1 != names.len() {
            return None;
        }
        match self.names.rules.get(&path) {
            Some(None) => return Some(Sum::of_time(expr)),
            Some(Some(number)) => {
                return Some(Sum {
                    constant: i128::from(*number),
                    ..Sum::default()
                });
            }
            None => {}
        }
        (root == "data" && !self.is_rule(&path) && path.len() > 1).then(|| Sum {
            terms: vec![(1, Term::Data(rest.to_vec()))],
            ..Sum::default()
        })
    }

    /// Whether there are rules at this path, on the way to it, or below.
    fn is_rule(&self, path: &[String]) -> bool {
        let all = &self.names.all;
        let on_the_way =
            (1..=path.len()).any(|end| path.get(..end).is_some_and(|part| all.contains(part)));
        let below = all.range(path.to_vec()..).next();
        on_the_way || below.is_some_and(|other| other.starts_with(path))
    }

    /// Accounts for the uses of the time in one expression.
    fn uses(&self, expr: &Expr, timing: &mut Timing, seen: &mut BTreeSet<usize>) {
        match expr {
            Expr::BoolExpr { lhs, rhs, .. } => {
                // What is no number is no other thing at another time.
                for (one, other) in [(lhs, rhs), (rhs, lhs)] {
                    if let Some(sum) = self.sum(one).filter(|_| is_no_number(other)) {
                        seen.extend(sum.used);
                    }
                }
                let (Some(one), Some(other)) = (self.sum(lhs), self.sum(rhs)) else {
                    return;
                };
                let Some(sum) = one.plus(other, -1).filter(|sum| !sum.used.is_empty()) else {
                    return;
                };
                seen.extend(sum.used);
                timing.comparisons.push(Comparison {
                    time: sum.time,
                    constant: sum.constant,
                    terms: sum.terms,
                });
            }
            Expr::AssignExpr { lhs, rhs, .. } => {
                let Some((used, zone)) = self.calendar(rhs, "clock") else {
                    return;
                };
                seen.extend(used);
                timing.tells(self.shown(lhs), zone);
            }
            Expr::Call { .. } => {
                if let Some((used, zone)) = self.calendar(expr, "clock") {
                    // The assignment around it may know better, and has been here before.
                    if !used.iter().all(|used| seen.contains(used)) {
                        timing.tells(Unit::Second, zone);
                    }
                    seen.extend(used);
                }
                for name in ["date", "weekday"] {
                    if let Some((used, zone)) = self.calendar(expr, name) {
                        seen.extend(used);
                        timing.tells(Unit::Day, zone);
                    }
                }
            }
            _ => {}
        }
    }

    /// `time.NAME(now)` and `time.NAME([now, zone])`: what stands for the time, and whether a zone is
    /// named.
    fn calendar(&self, expr: &Expr, name: &str) -> Option<(Vec<usize>, bool)> {
        let Expr::Call { fcn, params, .. } = expr else {
            return None;
        };
        let [param] = params.as_slice() else {
            return None;
        };
        chain(fcn).prefix().filter(|n| *n == ["time", name])?;
        let (now, zone) = match param.as_ref() {
            Expr::Array { items, .. } => match items.as_slice() {
                [now, _] => (now, true),
                _ => return None,
            },
            _ => (param, false),
        };
        let sum = self.sum(now).filter(Sum::is_time)?;
        Some((sum.used, zone))
    }

    /// What of a clock is looked at, by what it is given to.
    fn shown(&self, lhs: &Expr) -> Unit {
        let unit = |index: i64| match index {
            0 => Unit::Hour,
            1 => Unit::Minute,
            _ => Unit::Second,
        };
        match lhs {
            Expr::Array { items, .. } => (0..)
                .zip(items)
                .filter(|(_, item)| {
                    !matches!(item.as_ref(), Expr::Var { span, .. } if span.text() == "_")
                })
                .map(|(index, _)| unit(index))
                .min()
                .unwrap_or(Unit::Day),
            Expr::Var { span, .. } => {
                let name = span.text();
                let once = self.binders.get(name) == Some(&1);
                let uses = self.uses.get(name).map_or(0, Vec::len);
                match self.indexed.get(name) {
                    Some((count, most)) if once && *count == uses => unit(*most),
                    _ => Unit::Second,
                }
            }
            _ => Unit::Second,
        }
    }

    /// A name for the time that is used in any other way gives it away where it is given its value.
    fn leaks(&self, seen: &mut BTreeSet<usize>) {
        for _ in 0..=self.locals.len() {
            let before = seen.len();
            for name in self.locals.keys() {
                let mut uses = self.uses.get(name).into_iter().flatten();
                if uses.all(|at| seen.contains(at))
                    && let Some(expr) = self.given.get(name)
                    && let Some(sum) = self.sum(expr)
                {
                    seen.extend(sum.used);
                }
            }
            if seen.len() == before {
                break;
            }
        }
    }
}

impl Timing {
    fn tells(&mut self, unit: Unit, zone: bool) {
        // Zones differ by whole minutes, now and in future; not by whole hours.
        let unit = if zone { unit.min(Unit::Minute) } else { unit };
        self.unit = Some(self.unit.map_or(unit, |known| known.min(unit)));
    }
}

/// All queries of a rule, inner ones too.
fn each_query<'r>(rule: &'r Rule, work: &mut dyn FnMut(&'r Query)) {
    if let Rule::Spec { bodies, .. } = rule {
        for body in bodies {
            inner_queries(&body.query, work);
        }
    }
    each_expr(rule, &mut |expr| match expr {
        Expr::ArrayCompr { query, .. }
        | Expr::SetCompr { query, .. }
        | Expr::ObjectCompr { query, .. } => inner_queries(query, work),
        _ => {}
    });
}

fn inner_queries<'r>(query: &'r Query, work: &mut dyn FnMut(&'r Query)) {
    work(query);
    for statement in &query.stmts {
        if let Literal::Every { query, .. } = &statement.literal {
            inner_queries(query, work);
        }
    }
}

/// All expressions of a rule, the outer before the inner, in the order of the text.
fn each_expr<'r>(rule: &'r Rule, work: &mut dyn FnMut(&'r Expr)) {
    expr(head(rule), work);
    match rule {
        Rule::Default { args, value, .. } => {
            args.iter().for_each(|arg| expr(arg, work));
            expr(value, work);
        }
        Rule::Spec { head, bodies, .. } => {
            match head {
                RuleHead::Compr { .. } => {}
                RuleHead::Set { key, .. } => key.iter().for_each(|key| expr(key, work)),
                RuleHead::Func { args, .. } => args.iter().for_each(|arg| expr(arg, work)),
            }
            if let Some(assign) = head_assign(head) {
                expr(&assign.value, work);
            }
            for body in bodies {
                if let Some(assign) = &body.assign {
                    expr(&assign.value, work);
                }
                query(&body.query, work);
            }
        }
    }
}

fn query<'r>(query: &'r Query, work: &mut dyn FnMut(&'r Expr)) {
    for statement in &query.stmts {
        for modifier in &statement.with_mods {
            expr(&modifier.refr, work);
            expr(&modifier.r#as, work);
        }
        match &statement.literal {
            Literal::SomeVars { .. } => {}
            Literal::SomeIn {
                key,
                value,
                collection,
                ..
            } => {
                key.iter()
                    .chain([value, collection])
                    .for_each(|e| expr(e, work));
            }
            Literal::Expr { expr: inner, .. } | Literal::NotExpr { expr: inner, .. } => {
                expr(inner, work);
            }
            Literal::Every {
                domain,
                query: inner,
                ..
            } => {
                expr(domain, work);
                query_of(inner, work);
            }
        }
    }
}

fn query_of<'r>(inner: &'r Query, work: &mut dyn FnMut(&'r Expr)) {
    query(inner, work);
}

fn expr<'r>(one: &'r Expr, work: &mut dyn FnMut(&'r Expr)) {
    work(one);
    match one {
        Expr::String { .. }
        | Expr::RawString { .. }
        | Expr::Number { .. }
        | Expr::Bool { .. }
        | Expr::Null { .. }
        | Expr::Var { .. } => {}
        Expr::RefDot { refr, .. } => expr(refr, work),
        Expr::RefBrack { refr, index, .. } => {
            expr(refr, work);
            expr(index, work);
        }
        Expr::Array { items, .. } | Expr::Set { items, .. } => {
            items.iter().for_each(|item| expr(item, work));
        }
        Expr::Object { fields, .. } => {
            for (_, key, value) in fields {
                expr(key, work);
                expr(value, work);
            }
        }
        Expr::ArrayCompr {
            term, query: inner, ..
        }
        | Expr::SetCompr {
            term, query: inner, ..
        } => {
            expr(term, work);
            query(inner, work);
        }
        Expr::ObjectCompr {
            key,
            value,
            query: inner,
            ..
        } => {
            expr(key, work);
            expr(value, work);
            query(inner, work);
        }
        Expr::Call { fcn, params, .. } => {
            expr(fcn, work);
            params.iter().for_each(|param| expr(param, work));
        }
        Expr::UnaryExpr { expr: inner, .. } => expr(inner, work),
        Expr::BinExpr { lhs, rhs, .. }
        | Expr::BoolExpr { lhs, rhs, .. }
        | Expr::ArithExpr { lhs, rhs, .. }
        | Expr::AssignExpr { lhs, rhs, .. } => {
            expr(lhs, work);
            expr(rhs, work);
        }
        Expr::Membership {
            key,
            value,
            collection,
            ..
        } => {
            key.iter()
                .chain([value, collection])
                .for_each(|e| expr(e, work));
        }
    }
}
