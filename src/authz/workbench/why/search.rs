//! From an answer down to the condition that decided.

#![expect(
    clippy::wildcard_enum_match_arm,
    reason = "the syntax tree is searched for a few forms; all others are treated alike"
)]

mod pieces;
mod references;

use std::collections::{BTreeMap, BTreeSet};

use regorus::unstable::{Expr, Literal, Module, Query, Ref, Rule, RuleHead};

pub(super) use self::pieces::mentions;
use self::pieces::{
    arguments_of, beginnings, bindings, body_of, byte_of, could_be, input_path, input_paths,
    member_of, one_line, operands_of, pattern_names, position, query_of, rego, start,
    statement_extent, step_into, steps, value_of, whole_of,
};
use super::super::explain::{cut, is_literal, shown, statements, variables, whole};
use super::super::{Held, dotted};
use super::ask::{Answer, Asker, RULE};
use super::secret;
use super::{
    Because, Condition, Kind, Known, MAX_DEPTH, MAX_ENTRY_WAYS, MAX_HELD, MAX_VALUES, MAX_WAYS,
    Spot, Way,
};
use crate::authz::source::rewrite::extent;
use crate::authz::source::syntax;
use crate::document::Value;

/// Names that rewriting gives begin so.
const GENERATED: &str = "__portcullis_";
/// Longest argument of a function that is followed into it, in bytes.
const MAX_ARGUMENT: usize = 16 * 1024;
/// Most rules that a condition is followed into.
const MAX_REFERENCES: usize = 4;
/// Most elements of `every` that are looked at.
const MAX_ELEMENTS: usize = 64;
/// How deep it is followed what gives the value of a rule, to tell whether it looks like a credential.
const MAX_GIVEN: usize = 8;
/// Longest text of a condition or value as it is written, in characters.
const MAX_TEXT: usize = 400;

/// The path of a rule, up to its first part that is no name.
pub(super) fn rule_names(module: &Module, rule: &Rule) -> Vec<String> {
    let mut path = vec!["data".to_owned()];
    for part in [&module.package.refr, syntax::head(rule)] {
        path.extend(syntax::chain(part).prefix().unwrap_or_default());
    }
    path
}

/// What of a rule's value would do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Want {
    /// A yes of the gateway: `true`, or an object with this member `true`.
    Yes(&'static str),
    /// Anything but `false` and undefined.
    True,
    /// Another value.
    Other,
}

/// Where a body is evaluated: beside which module, and after which statements.
#[derive(Debug, Clone, Default)]
struct Frame {
    module: usize,
    before: Vec<String>,
    /// Values of a function's arguments.
    arguments: Vec<(String, String)>,
    /// Variables of bodies around this one.
    variables: BTreeSet<String>,
}

/// One statement of the author's: rewriting may have put others before it.
#[derive(Debug, Clone, Copy)]
struct Step {
    first: usize,
    main: usize,
}

/// How far a body came.
#[derive(Debug, Clone)]
struct Run {
    steps: Vec<Step>,
    /// The step that failed; `None` when all hold.
    failed: Option<usize>,
    error: Option<String>,
    /// Variables with their values after the last step that held, one object for each solution.
    known: Vec<Value>,
}

impl Run {
    fn holds(&self) -> bool {
        self.failed.is_none()
    }
}

/// A body of a rule with the value that it gives.
struct Branch {
    spot: Spot,
    /// Which body of the rule; `None` of a rule without one.
    body: Option<usize>,
    /// Bodies in one group exclude each other.
    group: usize,
    frame: Frame,
    /// Absent in a rule without conditions.
    run: Option<Run>,
}

impl Branch {
    fn holds(&self) -> bool {
        self.run.as_ref().is_none_or(Run::holds)
    }
}

/// A rule that an expression asks.
struct Reference {
    path: Vec<String>,
    arguments: Option<Vec<Ref<Expr>>>,
}

pub(super) struct Search<'s> {
    asker: &'s mut Asker,
    index: &'s BTreeMap<Vec<String>, Vec<Spot>>,
    masked: &'s [String],
    /// Rules that were explained, or are being so, by their names; each is told once.
    explained: BTreeMap<String, Option<Because>>,
    left_out: BTreeSet<String>,
    /// Rules by whether their value looks like a credential.
    secrets: BTreeMap<Vec<String>, bool>,
    /// A body could not be looked at: another condition may be what failed.
    unsure: bool,
}

impl<'s> Search<'s> {
    pub(super) fn new(
        asker: &'s mut Asker,
        index: &'s BTreeMap<Vec<String>, Vec<Spot>>,
        masked: &'s [String],
    ) -> Self {
        Self {
            asker,
            index,
            masked,
            explained: BTreeMap::new(),
            left_out: BTreeSet::new(),
            secrets: BTreeMap::new(),
            unsure: false,
        }
    }

    /// Whether not all was looked at that could be what failed.
    pub(super) fn unsure(&self) -> bool {
        self.unsure || self.asker.spent()
    }

    /// What was found of the rules that conditions ask.
    pub(super) fn told(&mut self) -> Told {
        Told(std::mem::take(&mut self.explained))
    }

    pub(super) fn left_out(self) -> Vec<String> {
        let mut left_out = self.left_out;
        if self.asker.spent() {
            left_out.insert("the time for looking was spent before everything was seen".to_owned());
        }
        left_out.into_iter().collect()
    }

    fn rule(&self, (module, rule): Spot) -> Option<&Rule> {
        let module = self.asker.bench.modules.get(module)?;
        module.policy.get(rule).map(AsRef::as_ref)
    }

    fn cloned(&self, (module, rule): Spot) -> Option<Ref<Rule>> {
        let module = self.asker.bench.modules.get(module)?;
        module.policy.get(rule).cloned()
    }

    /// The rules of a path, or when there is none those below it.
    fn definitions(&self, path: &[String]) -> Vec<Spot> {
        if let Some(found) = self.index.get(path) {
            return found.clone();
        }
        let below = self.index.iter();
        below
            .filter(|(other, _)| other.starts_with(path))
            .flat_map(|(_, spots)| spots.iter().copied())
            .collect()
    }

    /// The ways to yes of the entry point. A rule of its member `allow` counts as one.
    pub(super) fn entry(&mut self, path: &[String], member: &'static str) -> Vec<Way> {
        let mut below = path.to_vec();
        below.push(member.to_owned());
        let mut ways = Vec::new();
        if self.index.contains_key(path) {
            ways.extend(self.ways(path, None, Want::Yes(member), 0).1);
        }
        if self.index.contains_key(&below) {
            ways.extend(self.ways(&below, None, Want::True, 0).1);
        }
        if ways.is_empty() && !self.index.contains_key(path) {
            ways = self.ways(path, None, Want::Other, 0).1;
        }
        nearest_first(&mut ways);
        let more = ways.len().saturating_sub(MAX_ENTRY_WAYS);
        if more > 0 {
            self.left_out
                .insert(format!("{more} more ways to yes, which were further off"));
        }
        ways.truncate(MAX_ENTRY_WAYS);
        ways
    }

    /// The rules that gave the value of this path, each before those that it asks.
    pub(super) fn held(&mut self, path: &[String]) -> Vec<Held> {
        let mut found = Vec::new();
        let mut seen = BTreeSet::new();
        self.held_below(path, &mut found, &mut seen);
        found
    }

    fn held_below(
        &mut self,
        path: &[String],
        found: &mut Vec<Held>,
        seen: &mut BTreeSet<Vec<String>>,
    ) {
        if found.len() >= MAX_HELD || !seen.insert(path.to_vec()) {
            return;
        }
        let spots = self.definitions(path);
        let branches = self.branches(&spots, &[]);
        let mut any = false;
        for branch in winners(&branches) {
            let Some(rule) = self.cloned(branch.spot) else {
                continue;
            };
            any = true;
            let (file, line, _) = self.begin_of(branch);
            let held = Held {
                rule: dotted(path),
                file,
                line,
            };
            if !found.contains(&held) {
                found.push(held);
            }
            let mut references = Vec::new();
            if let Some(query) = query_of(&rule, branch.body) {
                for statement in &query.stmts {
                    if !matches!(statement.literal, Literal::NotExpr { .. }) {
                        self.references_of(branch.spot.0, &statement.literal, &mut references);
                    }
                }
            }
            if let Some(value) = value_of(&rule, branch.body) {
                self.references(branch.spot.0, value, &mut references);
            }
            for reference in references {
                if reference.arguments.is_none() {
                    self.held_below(&reference.path, found, seen);
                }
            }
        }
        if !any {
            // What has no body that held has its default, if anything.
            let default = spots
                .iter()
                .copied()
                .find(|spot| matches!(self.rule(*spot), Some(Rule::Default { .. })));
            if let Some(spot) = default
                && let Some(rule) = self.cloned(spot)
            {
                let (file, line, _) = self.place(spot.0, start(rule.span().start));
                found.push(Held {
                    rule: dotted(path),
                    file,
                    line,
                });
            }
        }
    }

    /// All bodies of these rules, and how far each came. With arguments those of functions.
    fn branches(&mut self, spots: &[Spot], arguments: &[String]) -> Vec<Branch> {
        let mut branches = Vec::new();
        let mut group = 0;
        for spot in spots {
            let Some(rule) = self.cloned(*spot) else {
                continue;
            };
            let Rule::Spec { head, bodies, .. } = rule.as_ref() else {
                continue;
            };
            let mut frame = Frame {
                module: spot.0,
                ..Frame::default()
            };
            if let RuleHead::Func { args, .. } = head {
                if args.len() != arguments.len() {
                    continue;
                }
                for (pattern, value) in args.iter().zip(arguments) {
                    let text = whole_of(pattern);
                    let operator = if is_literal(pattern) { "==" } else { ":=" };
                    frame.before.push(format!("{text} {operator} {value}"));
                    pattern_names(pattern, &mut frame.variables);
                    frame.arguments.push((text, value.clone()));
                }
            }
            group += 1;
            if bodies.is_empty() {
                branches.push(Branch {
                    spot: *spot,
                    body: None,
                    group,
                    frame: frame.clone(),
                    run: None,
                });
            }
            for (index, body) in bodies.iter().enumerate() {
                if !body.is_else && index > 0 {
                    group += 1;
                }
                let run = self.run(&frame, &body.query);
                branches.push(Branch {
                    spot: *spot,
                    body: Some(index),
                    group,
                    frame: frame.clone(),
                    run,
                });
            }
        }
        branches
    }

    /// Evaluates a body, step by step if it does not hold.
    fn run(&mut self, frame: &Frame, query: &Query) -> Option<Run> {
        let steps = steps(query);
        if steps.is_empty() {
            return None;
        }
        let texts = statements(query);
        let mut run = Run {
            failed: None,
            error: None,
            known: Vec::new(),
            steps,
        };
        // First with the values of variables; where that does not go together, without.
        for with_names in [true, false] {
            let rules = beginnings(frame, query, &texts, &run.steps, with_names);
            match self.walk(frame, &rules, &mut run) {
                Some(()) => return Some(run),
                None if self.asker.spent() => break,
                None => {}
            }
        }
        // Nobody knows how far it came.
        self.unsure = true;
        run.failed = Some(0);
        run.error = Some("it could not be looked at".to_owned());
        Some(run)
    }

    fn walk(&mut self, frame: &Frame, rules: &str, run: &mut Run) -> Option<()> {
        (run.failed, run.error) = (None, None);
        let last = run.steps.len();
        // Whether it holds is asked first: of most bodies that is all there is to know.
        match self.asker.beside(frame.module, rules, &last.to_string()) {
            Answer::Found(found) if !found.is_empty() => {
                run.known = found;
                return Some(());
            }
            Answer::Found(_) | Answer::Error(_) => {}
            Answer::Unknown => return None,
        }
        for end in 1..=last {
            match self.asker.beside(frame.module, rules, &end.to_string()) {
                Answer::Found(found) if found.is_empty() => {
                    run.failed = Some(end - 1);
                    return Some(());
                }
                Answer::Found(found) => run.known = found,
                Answer::Error(why) => {
                    run.failed = Some(end - 1);
                    run.error = Some(why);
                    return Some(());
                }
                Answer::Unknown => return None,
            }
        }
        None
    }

    /// The value of a rule as it is shown, whether it is a default, and the bodies that would have
    /// given what is wanted, the nearest first.
    fn ways(
        &mut self,
        path: &[String],
        arguments: Option<&[String]>,
        want: Want,
        depth: usize,
    ) -> (Vec<Condition>, Vec<Way>) {
        let spots = self.definitions(path);
        let branches = self.branches(&spots, arguments.unwrap_or_default());
        let mut held = Vec::new();
        let mut ways = Vec::new();
        for (index, branch) in branches.iter().enumerate() {
            let Some(rule) = self.cloned(branch.spot) else {
                continue;
            };
            let wins = winners(&branches).any(|winner| std::ptr::eq(winner, branch));
            if wins && want == Want::Other {
                held.push(self.gave(branch, &rule, depth));
                continue;
            }
            if !could_be(value_of(&rule, branch.body), want) {
                continue;
            }
            let earlier: Vec<&Branch> = branches
                .get(..index)
                .unwrap_or_default()
                .iter()
                .filter(|other| other.group == branch.group && other.holds())
                .collect();
            let way = self.way(path, branch, &rule, &earlier, want, depth);
            ways.extend(way);
        }
        nearest_first(&mut ways);
        (held, ways)
    }

    fn way(
        &mut self,
        path: &[String],
        branch: &Branch,
        rule: &Ref<Rule>,
        earlier: &[&Branch],
        want: Want,
        depth: usize,
    ) -> Option<Way> {
        let mut failures = Vec::new();
        for other in earlier.iter().take(MAX_WAYS) {
            let rule = self.cloned(other.spot)?;
            failures.push(self.blocks(other, &rule, depth));
        }
        let query = query_of(rule, branch.body);
        let (conditions, held) = match &branch.run {
            Some(run) => {
                let all = run.steps.len();
                (all, run.failed.unwrap_or(all))
            }
            None => (0, 0),
        };
        if let (Some(run), Some(query)) = (&branch.run, query)
            && let Some(failed) = run.failed
        {
            failures.push(self.failed(&branch.frame, query, run, failed, depth));
        } else if earlier.is_empty() {
            failures.push(self.value(branch, rule, want, depth)?);
        }
        let mut failures = failures.into_iter();
        let failed = failures.next()?;
        let (file, line, column) = self.begin_of(branch);
        Some(Way {
            rule: dotted(path),
            file,
            line,
            column,
            gives: self.gives(branch, rule),
            conditions,
            held,
            failed,
            also: failures.collect(),
        })
    }

    /// A body that answered before others were asked.
    fn blocks(&mut self, branch: &Branch, rule: &Ref<Rule>, depth: usize) -> Condition {
        Condition {
            kind: Kind::Earlier,
            ..self.gave(branch, rule, depth)
        }
    }

    /// A body that held, with its conditions.
    fn gave(&mut self, branch: &Branch, rule: &Ref<Rule>, depth: usize) -> Condition {
        let (file, line, column) = self.begin_of(branch);
        let mut within = Vec::new();
        if let (Some(run), Some(query)) = (&branch.run, query_of(rule, branch.body)) {
            for step in 0..run.steps.len() {
                if self.asker.spent() {
                    break;
                }
                within.push(self.condition(&branch.frame, query, run, step, Kind::Held, depth));
            }
        }
        Condition {
            kind: Kind::Held,
            file,
            line,
            column,
            text: self.gives(branch, rule),
            values: arguments_of(&branch.frame),
            within,
            because: Vec::new(),
            error: None,
            secret: false,
        }
    }

    /// A body whose conditions hold and whose value is not what is wanted.
    fn value(
        &mut self,
        branch: &Branch,
        rule: &Ref<Rule>,
        want: Want,
        depth: usize,
    ) -> Option<Condition> {
        let value = value_of(rule, branch.body)?;
        let module = branch.spot.0;
        let told = match want {
            Want::Yes(member) => member_of(value, member).unwrap_or(value),
            Want::True | Want::Other => value,
        };
        let texts = query_of(rule, branch.body).map(statements);
        let mut frame = branch.frame.clone();
        frame.before.extend(texts.unwrap_or_default());
        let found = self.operand(&frame, told, "");
        let mut references = Vec::new();
        self.references(module, told, &mut references);
        let secret = self.is_secret(&frame.before, &whole_of(told), &references);
        let range = extent(told);
        let (file, line, column) = self.place(module, range.start);
        let text = self.written(module, range.start, range.end);
        Some(Condition {
            kind: Kind::Value,
            file,
            line,
            column,
            values: vec![Known {
                name: text.clone(),
                value: found.unwrap_or_else(|| "undefined".to_owned()),
                masked: false,
                of_input: false,
            }],
            text,
            within: Vec::new(),
            because: self.follow(&branch.frame, references, depth),
            error: None,
            secret,
        })
    }

    fn failed(
        &mut self,
        frame: &Frame,
        query: &Query,
        run: &Run,
        step: usize,
        depth: usize,
    ) -> Condition {
        let kind = if run.error.is_some() {
            Kind::Error
        } else {
            Kind::Failed
        };
        Condition {
            error: run.error.clone(),
            ..self.condition(frame, query, run, step, kind, depth)
        }
    }

    /// One condition of a body, with the values that mattered.
    fn condition(
        &mut self,
        frame: &Frame,
        query: &Query,
        run: &Run,
        step: usize,
        kind: Kind,
        depth: usize,
    ) -> Condition {
        let nothing = Condition {
            kind,
            file: String::new(),
            line: 0,
            column: 0,
            text: String::new(),
            values: Vec::new(),
            within: Vec::new(),
            because: Vec::new(),
            error: None,
            secret: false,
        };
        let Some((step, statement)) = run
            .steps
            .get(step)
            .and_then(|step| Some((*step, query.stmts.get(step.main)?)))
        else {
            return nothing;
        };
        let range = statement_extent(statement);
        let (file, line, column) = self.place(frame.module, range.start);
        let text = self.written(frame.module, range.start, range.end);
        let mut references = Vec::new();
        for index in step.first..=step.main {
            if let Some(statement) = query.stmts.get(index) {
                self.references_of(frame.module, &statement.literal, &mut references);
            }
        }
        let bound: BTreeSet<String> = variables(&query.stmts).into_iter().collect();
        references.retain(|reference| {
            let name = reference.path.last();
            reference.path.len() > 2 || name.is_none_or(|name| !bound.contains(name))
        });
        let mut before = frame.before.clone();
        before.extend(statements(query).into_iter().take(step.main));
        let values = self.values(frame, query, run, step);
        let written = self.compared(query, step);
        let mut condition = Condition {
            file,
            line,
            column,
            text,
            secret: secret::among(&values) || self.is_secret(&before, &written, &references),
            values,
            ..nothing
        };
        if depth >= MAX_DEPTH || self.asker.spent() {
            return condition;
        }
        if let Literal::Every { .. } = &statement.literal
            && kind == Kind::Failed
        {
            condition.within = self.every(frame, query, step, depth);
            return condition;
        }
        if !statement.with_mods.is_empty() {
            return condition;
        }
        // Of what held, a `not` alone needs a reason: why the thing did not.
        let negated = matches!(statement.literal, Literal::NotExpr { .. });
        if kind == Kind::Held && !negated && depth > 0 {
            return condition;
        }
        let mut inner = frame.clone();
        inner
            .before
            .extend(statements(query).into_iter().take(step.first));
        condition.because = self.follow(&inner, references, depth);
        condition
    }

    /// What a condition compares, or asks a function about, as it is written.
    fn compared(&self, query: &Query, step: Step) -> String {
        let mut texts = Vec::new();
        for index in step.first..=step.main {
            let Some(statement) = query.stmts.get(index) else {
                continue;
            };
            match &statement.literal {
                Literal::Expr { expr, .. } | Literal::NotExpr { expr, .. } => {
                    if let Expr::Call { fcn, .. } = expr.as_ref() {
                        texts.push(whole_of(fcn));
                    }
                    let operands = operands_of(expr);
                    let own = operands.iter().filter(|operand| !is_literal(operand));
                    texts.extend(own.map(|operand| whole_of(operand)));
                }
                Literal::SomeIn { collection, .. } => texts.push(whole_of(collection)),
                Literal::Every { domain, .. } => texts.push(whole_of(domain)),
                Literal::SomeVars { .. } => {}
            }
        }
        texts.join("\n")
    }

    /// Whether an expression, after these statements, has to do with a credential.
    fn is_secret(&mut self, before: &[String], text: &str, references: &[Reference]) -> bool {
        let given = secret::variables(before.iter().map(String::as_str));
        secret::named(text)
            || given.iter().any(|name| mentions(text, name))
            || references.iter().any(|it| self.gives_secret(&it.path, 0))
    }

    /// Whether the value of a rule looks like a credential: by what gives it.
    fn gives_secret(&mut self, path: &[String], depth: usize) -> bool {
        if let Some(known) = self.secrets.get(path) {
            return *known;
        }
        let mut secret = false;
        for spot in self.definitions(path) {
            if depth >= MAX_GIVEN || secret {
                break;
            }
            let Some(rule) = self.cloned(spot) else {
                continue;
            };
            let Rule::Spec { bodies, .. } = rule.as_ref() else {
                continue;
            };
            let all = (0..bodies.len()).map(Some);
            let none = bodies.is_empty().then_some(None);
            secret = all
                .chain(none)
                .any(|body| self.body_gives_secret(spot.0, &rule, body, depth));
        }
        self.secrets.insert(path.to_vec(), secret);
        secret
    }

    fn body_gives_secret(
        &mut self,
        module: usize,
        rule: &Rule,
        body: Option<usize>,
        depth: usize,
    ) -> bool {
        let Some(value) = value_of(rule, body).filter(|value| !is_literal(value)) else {
            return false;
        };
        let before = query_of(rule, body).map(statements).unwrap_or_default();
        let given = secret::variables(before.iter().map(String::as_str));
        let text = whole_of(value);
        let mut asked = Vec::new();
        self.references(module, value, &mut asked);
        secret::named(&text)
            || given.iter().any(|name| mentions(&text, name))
            || asked
                .iter()
                .any(|it| self.gives_secret(&it.path, depth + 1))
    }

    /// The rules that were asked, and why each is what it is.
    fn follow(&mut self, frame: &Frame, references: Vec<Reference>, depth: usize) -> Vec<Because> {
        let mut found: Vec<Because> = Vec::new();
        for reference in references {
            if found.len() >= MAX_REFERENCES || depth + 1 > MAX_DEPTH {
                self.left_out
                    .insert("rules that are asked deeper down, or beside many others".to_owned());
                break;
            }
            if self.asker.spent() {
                break;
            }
            let because = self.because(frame, &reference, depth + 1);
            if let Some(because) = because
                && found.iter().all(|other| other.rule != because.rule)
            {
                found.push(because);
            }
        }
        found
    }

    fn because(&mut self, frame: &Frame, reference: &Reference, depth: usize) -> Option<Because> {
        let path = &reference.path;
        let mut name = dotted(path);
        let mut arguments = None;
        let value = match &reference.arguments {
            None => self.asker.value(&name).ok()?,
            Some(params) => {
                let mut values = Vec::new();
                for param in params {
                    let value = self.argument(frame, param)?;
                    values.push(rego(&value).filter(|text| text.len() <= MAX_ARGUMENT)?);
                }
                let call = format!("{name}({})", values.join(", "));
                let query = format!("{RULE}operand contains {call}");
                let value = match self.asker.beside(frame.module, &query, "operand") {
                    Answer::Found(found) => found.into_iter().next(),
                    Answer::Error(_) | Answer::Unknown => return None,
                };
                let told: Vec<String> = values.iter().map(|value| cut(value)).collect();
                name = format!("{name}({})", told.join(", "));
                arguments = Some(values);
                value
            }
        };
        let stub = Because {
            rule: name.clone(),
            value: value.as_ref().map_or("undefined".to_owned(), shown),
            default: false,
            held: Vec::new(),
            ways: Vec::new(),
            more: 0,
            told: true,
            secret: self.gives_secret(path, 0),
        };
        if self.explained.contains_key(&name) {
            return Some(stub);
        }
        self.explained.insert(name.clone(), None);
        let empty = match &value {
            Some(Value::Set(items)) => items.is_empty(),
            Some(Value::Object(members)) => members.is_empty(),
            Some(Value::Array(items)) => items.is_empty(),
            _ => false,
        };
        let want = match &value {
            None | Some(Value::Bool(false)) => Want::True,
            Some(_) => Want::Other,
        };
        let (held, mut ways) = self.ways(path, arguments.as_deref(), want, depth);
        let default = held.is_empty() && value.is_some() && !empty;
        // Of what is something, the bodies that gave it say why; of what is nothing, those that did
        // not give anything.
        if !held.is_empty() {
            ways.clear();
        }
        let more = ways.len().saturating_sub(MAX_WAYS);
        ways.truncate(MAX_WAYS);
        let because = Because {
            default,
            held: held.into_iter().take(MAX_WAYS).collect(),
            ways,
            more,
            told: false,
            ..stub.clone()
        };
        self.explained.insert(name, Some(because));
        Some(stub)
    }

    /// The elements of `every` for which its body failed: the first of them, with the condition.
    fn every(&mut self, frame: &Frame, query: &Query, step: Step, depth: usize) -> Vec<Condition> {
        let Some(statement) = query.stmts.get(step.main) else {
            return Vec::new();
        };
        let Literal::Every {
            key,
            value,
            domain,
            query: body,
            ..
        } = &statement.literal
        else {
            return Vec::new();
        };
        let mut inner = frame.clone();
        inner
            .before
            .extend(statements(query).into_iter().take(step.main));
        inner.variables.extend(variables(&query.stmts));
        let generated = format!("{GENERATED}key");
        let key = key.as_ref().map_or(generated.as_str(), |key| key.text());
        let value = value.text();
        let through = format!("some {key}, {value} in {}", whole_of(domain));
        let rules = format!(
            "{RULE}element contains [{key}, {value}] if {{\n{}\n{through}\n}}",
            inner.before.join("\n")
        );
        let Answer::Found(elements) = self.asker.beside(frame.module, &rules, "element") else {
            return Vec::new();
        };
        for element in elements.iter().take(MAX_ELEMENTS) {
            let Ok(pair) = element.as_array() else {
                continue;
            };
            let (Some(at), Some(found)) = (pair.first(), pair.get(1)) else {
                continue;
            };
            let (Some(at_text), Some(text)) = (rego(at), rego(found)) else {
                continue;
            };
            let mut one = inner.clone();
            one.before.push(format!("{key} := {at_text}"));
            one.before.push(format!("{value} := {text}"));
            one.variables.extend([key.to_owned(), value.to_owned()]);
            one.arguments.push((value.to_owned(), text));
            if !key.starts_with(GENERATED) {
                one.arguments.push((key.to_owned(), at_text));
            }
            if let Some(run) = self.run(&one, body)
                && let Some(failed) = run.failed
            {
                return vec![self.failed(&one, body, &run, failed, depth + 1)];
            }
        }
        Vec::new()
    }

    /// The values that mattered to a step.
    fn values(&mut self, frame: &Frame, query: &Query, run: &Run, step: Step) -> Vec<Known> {
        let mut values = Vec::new();
        let Some(statement) = query.stmts.get(step.main) else {
            return values;
        };
        let mut inner = frame.clone();
        inner
            .before
            .extend(statements(query).into_iter().take(step.first));
        let modifiers: String = statement
            .with_mods
            .iter()
            .map(|modifier| {
                let [target, value] = [&modifier.refr, &modifier.r#as].map(|it| whole_of(it));
                format!(" with {target} as {value}")
            })
            .collect();
        let mut operands: Vec<Ref<Expr>> = Vec::new();
        for index in step.first..=step.main {
            let Some(statement) = query.stmts.get(index) else {
                continue;
            };
            match &statement.literal {
                Literal::Expr { expr, .. } | Literal::NotExpr { expr, .. } => {
                    operands.extend(operands_of(expr));
                }
                Literal::SomeIn { collection, .. } => operands.push(collection.clone()),
                Literal::Every { domain, .. } => operands.push(domain.clone()),
                Literal::SomeVars { .. } => {}
            }
        }
        let mut paths = Vec::new();
        for operand in &operands {
            let range = extent(operand);
            let name = self.written(frame.module, range.start, range.end);
            let odd = name.is_empty() || name.contains(GENERATED) || is_literal(operand);
            if odd || values.iter().any(|known: &Known| known.name == name) {
                input_paths(operand, &mut paths);
                continue;
            }
            // What the document says needs no question.
            if let Some(path) = input_path(operand) {
                values.push(self.of_input(name, &path));
                continue;
            }
            input_paths(operand, &mut paths);
            if self.asker.spent() || values.len() >= MAX_VALUES {
                continue;
            }
            if let Some(value) = self.operand(&inner, operand, &modifiers) {
                values.push(Known {
                    name: cut(&name),
                    value,
                    masked: false,
                    of_input: false,
                });
            }
        }
        for path in paths {
            let name = dotted(&path);
            if values.iter().all(|known| known.name != name) {
                values.push(self.of_input(name, &path));
            }
        }
        let text = whole(&statement.span);
        let known = bindings(&run.known);
        let arguments = arguments_of(frame).into_iter();
        for known in known.into_iter().chain(arguments) {
            let own = known.name.split(' ').next().unwrap_or_default();
            if mentions(&text, own) && values.iter().all(|other| other.name != known.name) {
                values.push(known);
            }
        }
        values.truncate(MAX_VALUES);
        values
    }

    /// What the document has at a path.
    fn of_input(&self, name: String, path: &[String]) -> Known {
        let mut value = self.asker.input();
        let mut pointer = String::new();
        let mut missing = None;
        for (index, part) in path.iter().skip(1).enumerate() {
            pointer.push('/');
            pointer.push_str(&part.replace('~', "~0").replace('/', "~1"));
            match step_into(value, part) {
                Some(inner) => value = inner,
                None => {
                    let parent = dotted(path.get(..=index).unwrap_or(path));
                    missing = Some(match value {
                        Value::Null => format!("undefined ({parent} is null)"),
                        Value::Object(_) | Value::Array(_) | Value::Undefined => {
                            "undefined".to_owned()
                        }
                        _ => format!("undefined ({parent} has no members)"),
                    });
                    break;
                }
            }
        }
        let masked = self.masked.iter().any(|hidden| {
            let below = |one: &str, other: &str| {
                one.strip_prefix(other)
                    .is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
            };
            below(&pointer, hidden) || below(hidden, &pointer)
        });
        Known {
            name: cut(&name),
            value: missing.unwrap_or_else(|| shown(value)),
            masked,
            of_input: true,
        }
    }

    /// The value of an expression after the statements of a frame, as it is shown.
    fn operand(&mut self, frame: &Frame, expr: &Ref<Expr>, modifiers: &str) -> Option<String> {
        let found = self.solutions(frame, expr, modifiers)?;
        Some(match found.as_slice() {
            [] => "undefined".to_owned(),
            many => {
                let texts: Vec<String> = many.iter().take(3).map(shown).collect();
                texts.join(" | ")
            }
        })
    }

    fn argument(&mut self, frame: &Frame, expr: &Ref<Expr>) -> Option<Value> {
        if let Some(value) = syntax::literal(expr) {
            return Some(value);
        }
        self.solutions(frame, expr, "")?.into_iter().next()
    }

    fn solutions(
        &mut self,
        frame: &Frame,
        expr: &Ref<Expr>,
        modifiers: &str,
    ) -> Option<Vec<Value>> {
        let text = whole_of(expr);
        let rules = format!(
            "{RULE}operand contains portcullis_value if {{\n{}\nportcullis_value := {text}{modifiers}\n}}",
            frame.before.join("\n")
        );
        match self.asker.beside(frame.module, &rules, "operand") {
            Answer::Found(found) => Some(found),
            Answer::Error(_) | Answer::Unknown => None,
        }
    }

    /// Where a body begins, or the value before it.
    fn begin_of(&self, branch: &Branch) -> (String, usize, usize) {
        let at = match self.rule(branch.spot) {
            Some(rule) => match body_of(rule, branch.body) {
                Some(body) if body.is_else => match &body.assign {
                    Some(assign) => extent(&assign.value).start,
                    None => start(body.span.start),
                },
                _ => extent(syntax::head(rule)).start,
            },
            None => 0,
        };
        self.place(branch.spot.0, at)
    }

    /// The value that a body gives, as it is written.
    fn gives(&self, branch: &Branch, rule: &Rule) -> String {
        match value_of(rule, branch.body) {
            Some(value) => {
                let range = extent(value);
                self.written(branch.spot.0, range.start, range.end)
            }
            None => "true".to_owned(),
        }
    }

    /// The author's place of a byte of a module.
    fn place(&self, module: usize, at: usize) -> (String, usize, usize) {
        let Some(module) = self.asker.bench.modules.get(module) else {
            return (String::new(), 0, 0);
        };
        let source = &module.package.span.source;
        let file = source.get_path().clone();
        let (line, column) = self
            .asker
            .bench
            .author(&file, position(source.get_contents(), at));
        // As people name a file below the current folder.
        let file = file.strip_prefix("./").unwrap_or(&file).to_owned();
        (file, line, column)
    }

    /// What the author wrote between two bytes of a module, on one line.
    fn written(&self, module: usize, from: usize, to: usize) -> String {
        let Some(found) = self.asker.bench.modules.get(module) else {
            return String::new();
        };
        let source = &found.package.span.source;
        let (_, line, column) = self.place(module, from);
        let (_, last_line, last_column) = self.place(module, to);
        let text = self.asker.bench.texts.get(source.get_path());
        let slice = text.and_then(|text| {
            let from = byte_of(text, line, column)?;
            let to = byte_of(text, last_line, last_column)?;
            text.get(from..to).filter(|slice| !slice.trim().is_empty())
        });
        let slice = slice.or_else(|| source.get_contents().get(from..to));
        one_line(slice.unwrap_or_default())
    }
}

/// Rules with why they are what they are. Each is told where it is named first: what asks for it in
/// other places names it alone, or a few rules could become a long text.
pub(super) struct Told(BTreeMap<String, Option<Because>>);

impl Told {
    pub(super) fn way(&mut self, way: &mut Way) {
        self.condition(&mut way.failed);
        way.also.iter_mut().for_each(|also| self.condition(also));
    }

    fn condition(&mut self, condition: &mut Condition) {
        condition
            .within
            .iter_mut()
            .for_each(|it| self.condition(it));
        for because in &mut condition.because {
            if because.told
                && let Some(Some(whole)) = self.0.remove(&because.rule)
            {
                *because = whole;
            }
            because
                .held
                .iter_mut()
                .for_each(|held| self.condition(held));
            because.ways.iter_mut().for_each(|way| self.way(way));
        }
    }
}

/// The bodies that gave their values: of each group the first that holds.
fn winners(branches: &[Branch]) -> impl Iterator<Item = &Branch> {
    branches.iter().enumerate().filter_map(|(index, branch)| {
        let earlier = branches.get(..index).unwrap_or_default();
        let first = !earlier
            .iter()
            .any(|other| other.group == branch.group && other.holds());
        (branch.holds() && first).then_some(branch)
    })
}

fn nearest_first(ways: &mut [Way]) {
    ways.sort_by_key(|way| {
        let all = [&way.failed].into_iter().chain(&way.also);
        let blocked = all.filter(|it| it.kind == Kind::Earlier).count();
        let own = way.conditions - way.held;
        // Of two with as much to do, the one that another body answered for, then the one of which
        // more held.
        let open = way.failed.kind != Kind::Earlier;
        (own + blocked, open, usize::MAX - way.held)
    });
}
