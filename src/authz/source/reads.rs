//! What of `input` the decision of a policy can depend on, read from its source.
//!
//! The answer is used to recognise a question that was asked before, so it errs on one side only:
//! it may name more than is read, never less. A reference counts up to its first step that is no
//! literal, and then with all that lies below. A name counts as everything it may stand for: what
//! an import of its package gives it, and every rule of that name, though it may be a variable. All
//! rules on the way to a path of `data` and below it count as read. What is not a pure function of
//! its arguments, or not known to be, is reported as [`Impure`].
//! The time is read like anything else, unless [`times`] can tell how the decision depends on it.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use regorus::Value;
use regorus::unstable::{Expr, Literal, LiteralStmt, Module, Query, Ref, Rule, RuleHead};

use crate::authz::input::Wanted;
use crate::authz::published::InputDocument;
use crate::authz::rego::host::{self, Purity};
use crate::authz::source::syntax::{Part, chain, head, head_assign, place};
use crate::authz::source::times::{self, Meanings, Names, Timing};

/// Builtins whose answer depends on their arguments alone. Others are not cached; a test holds the
/// list against the engine's.
const PURE: &[&str] = &[
    "abs",
    "all",
    "any",
    "array.concat",
    "array.reverse",
    "array.slice",
    "base64.decode",
    "base64.encode",
    "base64.is_valid",
    "base64url.decode",
    "base64url.encode",
    "base64url.encode_no_pad",
    "bits.and",
    "bits.lsh",
    "bits.negate",
    "bits.or",
    "bits.rsh",
    "bits.xor",
    "ceil",
    "concat",
    "contains",
    "count",
    "endswith",
    "floor",
    "format_int",
    "glob.match",
    "glob.quote_meta",
    "graph.reachable",
    "graph.reachable_paths",
    "hex.decode",
    "hex.encode",
    "indexof",
    "indexof_n",
    "intersection",
    "is_array",
    "is_boolean",
    "is_null",
    "is_number",
    "is_object",
    "is_set",
    "is_string",
    "json.filter",
    "json.is_valid",
    "json.marshal",
    "json.marshal_with_options",
    "json.patch",
    "json.remove",
    "json.unmarshal",
    "lower",
    "max",
    "min",
    "net.cidr_contains",
    "net.cidr_expand",
    "net.cidr_is_valid",
    "numbers.range",
    "numbers.range_step",
    "object.filter",
    "object.get",
    "object.keys",
    "object.remove",
    "object.subset",
    "object.union",
    "object.union_n",
    "product",
    "regex.find_all_string_submatch_n",
    "regex.find_n",
    "regex.is_valid",
    "regex.match",
    "regex.replace",
    "regex.split",
    "regex.template_match",
    "replace",
    "round",
    "semver.compare",
    "semver.is_valid",
    "sort",
    "split",
    "sprintf",
    "startswith",
    "strings.any_prefix_match",
    "strings.any_suffix_match",
    "strings.count",
    "strings.replace_n",
    "strings.reverse",
    "substring",
    "sum",
    "time.add_date",
    "time.clock",
    "time.date",
    "time.diff",
    "time.format",
    "time.parse_duration_ns",
    "time.parse_ns",
    "time.parse_rfc3339_ns",
    "time.weekday",
    "to_number",
    "trim",
    "trim_left",
    "trim_prefix",
    "trim_right",
    "trim_space",
    "trim_suffix",
    "type_name",
    "union",
    "units.parse",
    "units.parse_bytes",
    "upper",
    "urlquery.decode",
    "urlquery.decode_object",
    "urlquery.encode",
    "urlquery.encode_object",
    "uuid.parse",
    "walk",
];

/// A step of a path below `input`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(in crate::authz) enum Step {
    /// A member by its name.
    Name(String),
    /// An element by its number.
    Index(usize),
}

/// Where something stands in the policy's files.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::authz) struct Place {
    pub(in crate::authz) file: String,
    pub(in crate::authz) at: (usize, usize),
}

/// A call that may answer differently for the same arguments.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::authz) struct Impure {
    pub(in crate::authz) what: String,
    pub(in crate::authz) place: Place,
}

/// What a decision can depend on.
#[derive(Debug, Clone, Default)]
pub(in crate::authz) struct Reads {
    /// Paths below `input`, each with all that lies below it, and the first place that reads it.
    pub(in crate::authz) paths: BTreeMap<Vec<Step>, Place>,
    pub(in crate::authz) impure: Option<Impure>,
    /// How it depends on the time, where that is not among the paths.
    pub(in crate::authz) timing: Timing,
}

impl Reads {
    /// What of the input document must be there.
    pub(in crate::authz) fn wanted_with(&self, bodies: bool) -> Wanted {
        let mut paths: Vec<Vec<Step>> = self.paths.keys().cloned().collect();
        if self.timing.read {
            let below = times::TIME.into_iter().skip(1);
            paths.push(below.map(|name| Step::Name(name.to_owned())).collect());
        }
        Wanted::by(&paths, bodies)
    }

    /// All that a decision can depend on of this document, the time included.
    pub(in crate::authz) fn all_paths(&self, document: InputDocument) -> Vec<Vec<Step>> {
        let mut paths: Vec<Vec<Step>> = self.paths.keys().cloned().collect();
        if self.timing.read && document == InputDocument::Portcullis {
            let below = times::TIME.into_iter().skip(1);
            paths.push(below.map(|name| Step::Name(name.to_owned())).collect());
        }
        paths
    }

    /// [`Reads::wanted_with`], without bodies.
    #[cfg(test)]
    pub(in crate::authz) fn wanted(&self) -> Wanted {
        self.wanted_with(false)
    }

    /// The first place that reads one of these members of the input, which hold the body. Whoever
    /// reads the whole of the input does not mean it.
    pub(in crate::authz) fn of_body(&self, document: InputDocument) -> Option<(String, &Place)> {
        let named = |path: &[Step], member: &[&str]| {
            let names = path.iter().map(|step| match step {
                Step::Name(name) => Some(name.as_str()),
                Step::Index(_) => None,
            });
            path.len() >= member.len() && names.zip(member).all(|(name, m)| name == Some(*m))
        };
        let mut found = self.paths.iter().filter_map(|(path, place)| {
            let mut members = document.bodies().iter();
            let member = members.find(|member| named(path, member))?;
            Some((member.join("."), place))
        });
        found.next()
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Name(name) => write!(f, ".{name}"),
            Self::Index(index) => write!(f, "[{index}]"),
        }
    }
}

/// Reads the live modules of a policy from its entry point on.
pub(in crate::authz) fn of(modules: &[Ref<Module>], entrypoint: &str) -> Reads {
    let mut walk = Walk {
        rules: BTreeMap::new(),
        imports: BTreeMap::new(),
        open: Vec::new(),
        seen: BTreeSet::new(),
        package: Vec::new(),
        file: String::new(),
        found: Reads::default(),
        names: Names::of(modules),
        accounted: BTreeSet::new(),
    };
    for (index, module) in modules.iter().enumerate() {
        walk.declare(index, module);
    }
    let entry: Vec<String> = entrypoint.split('.').map(str::to_owned).collect();
    walk.evaluates(&entry);
    while let Some((module, rule)) = walk.open.pop() {
        if !walk.seen.insert((module, rule)) {
            continue;
        }
        let Some(module) = modules.get(module) else {
            continue;
        };
        walk.package = package_of(module);
        walk.file.clone_from(module.package.span.source.get_path());
        if let Some(rule) = module.policy.get(rule) {
            walk.rule(rule);
        }
    }
    walk.found
}

fn package_of(module: &Module) -> Vec<String> {
    let mut path = vec!["data".to_owned()];
    path.extend(chain(&module.package.refr).prefix().unwrap_or_default());
    path
}

/// A rule by its module and its place in it.
type RuleAt = (usize, usize);

struct Walk {
    rules: BTreeMap<Vec<String>, Vec<RuleAt>>,
    /// By package and name; the engines do not agree whether imports belong to a file or a package.
    imports: BTreeMap<(Vec<String>, String), BTreeSet<Vec<String>>>,
    open: Vec<RuleAt>,
    seen: BTreeSet<RuleAt>,
    package: Vec<String>,
    file: String,
    found: Reads,
    names: Names,
    /// Expressions that stand for the time and are accounted for.
    accounted: BTreeSet<usize>,
}

impl Walk {
    fn declare(&mut self, index: usize, module: &Module) {
        let package = package_of(module);
        for import in &module.imports {
            let path = chain(&import.refr).prefix().unwrap_or_default();
            let name = match &import.r#as {
                Some(span) => Some(span.text().to_owned()),
                None => path.last().cloned(),
            };
            if let Some(name) = name {
                self.imports
                    .entry((package.clone(), name))
                    .or_default()
                    .insert(path);
            }
        }
        for (at, rule) in module.policy.iter().enumerate() {
            let mut path = package.clone();
            path.extend(chain(head(rule)).prefix().unwrap_or_default());
            self.rules.entry(path).or_default().push((index, at));
        }
    }

    /// Everything that reading this path of `data` may evaluate: what lies on the way, and below.
    fn evaluates(&mut self, path: &[String]) {
        let on_the_way = (1..path.len()).filter_map(|end| self.rules.get(path.get(..end)?));
        let below = self
            .rules
            .range(path.to_vec()..)
            .take_while(|(other, _)| other.starts_with(path))
            .map(|(_, rules)| rules);
        let reached: Vec<RuleAt> = on_the_way.chain(below).flatten().copied().collect();
        self.open.extend(reached);
    }

    fn place(&self, expr: &Expr) -> Place {
        Place {
            file: self.file.clone(),
            at: place(chain(expr).base.span()),
        }
    }

    fn impure(&mut self, expr: &Expr, what: String) {
        let place = self.place(expr);
        self.found.impure.get_or_insert(Impure { what, place });
    }

    fn rule(&mut self, rule: &Rule) {
        let mut timing = std::mem::take(&mut self.found.timing);
        let mut accounted = std::mem::take(&mut self.accounted);
        self.names.examine(rule, self, &mut timing, &mut accounted);
        self.found.timing = timing;
        self.accounted = accounted;
        self.head(head(rule));
        match rule {
            Rule::Default { args, value, .. } => {
                self.exprs(args);
                self.expr(value);
            }
            Rule::Spec { head, bodies, .. } => {
                match head {
                    RuleHead::Compr { .. } => {}
                    RuleHead::Set { key, .. } => self.exprs(key),
                    RuleHead::Func { args, .. } => self.exprs(args),
                }
                if let Some(assign) = head_assign(head) {
                    self.expr(&assign.value);
                }
                for body in bodies {
                    if let Some(assign) = &body.assign {
                        self.expr(&assign.value);
                    }
                    self.query(&body.query);
                }
            }
        }
    }

    /// The steps of a head that are no names; its names are its own.
    fn head(&mut self, refr: &Expr) {
        for part in chain(refr).parts {
            if let Part::Dynamic(index) = part {
                self.expr(index);
            }
        }
    }

    fn query(&mut self, query: &Query) {
        for statement in &query.stmts {
            self.statement(statement);
        }
    }

    fn statement(&mut self, statement: &LiteralStmt) {
        // What is replaced counts as read all the same.
        for modifier in &statement.with_mods {
            self.expr(&modifier.refr);
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
                self.exprs(key);
                self.expr(value);
                self.expr(collection);
            }
            Literal::Expr { expr, .. } | Literal::NotExpr { expr, .. } => self.expr(expr),
            Literal::Every { domain, query, .. } => {
                self.expr(domain);
                self.query(query);
            }
        }
    }

    fn exprs<'e>(&mut self, exprs: impl IntoIterator<Item = &'e Ref<Expr>>) {
        for expr in exprs {
            self.expr(expr);
        }
    }

    /// Names every form there is, so that a new one cannot pass unread.
    fn expr(&mut self, expr: &Expr) {
        match expr {
            Expr::String { .. }
            | Expr::RawString { .. }
            | Expr::Number { .. }
            | Expr::Bool { .. }
            | Expr::Null { .. } => {}
            Expr::Var { .. } | Expr::RefDot { .. } | Expr::RefBrack { .. } => self.reference(expr),
            Expr::Array { items, .. } | Expr::Set { items, .. } => self.exprs(items),
            Expr::Object { fields, .. } => {
                for (_, key, value) in fields {
                    self.expr(key);
                    self.expr(value);
                }
            }
            Expr::ArrayCompr { term, query, .. } | Expr::SetCompr { term, query, .. } => {
                self.expr(term);
                self.query(query);
            }
            Expr::ObjectCompr {
                key, value, query, ..
            } => {
                self.expr(key);
                self.expr(value);
                self.query(query);
            }
            Expr::Call { fcn, params, .. } => {
                self.call(fcn);
                self.exprs(params);
            }
            Expr::UnaryExpr { expr, .. } => self.expr(expr),
            Expr::BinExpr { lhs, rhs, .. }
            | Expr::BoolExpr { lhs, rhs, .. }
            | Expr::ArithExpr { lhs, rhs, .. }
            | Expr::AssignExpr { lhs, rhs, .. } => {
                self.expr(lhs);
                self.expr(rhs);
            }
            Expr::Membership {
                key,
                value,
                collection,
                ..
            } => {
                self.exprs(key);
                self.expr(value);
                self.expr(collection);
            }
        }
    }

    fn call(&mut self, fcn: &Expr) {
        if self.accounted.contains(&times::address(fcn)) {
            return;
        }
        let Some(names) = chain(fcn).prefix() else {
            return self.impure(fcn, "a call of what is no name".to_owned());
        };
        let ours = self
            .meanings(&names)
            .iter()
            .any(|path| self.rules.contains_key(path));
        let name = names.join(".");
        if !ours && !is_pure(&name) {
            self.impure(fcn, format!("`{name}`"));
        }
        self.reference(fcn);
    }

    fn reference(&mut self, expr: &Expr) {
        if self.accounted.contains(&times::address(expr)) {
            return;
        }
        let chain = chain(expr);
        for part in &chain.parts {
            if let Part::Dynamic(index) = part {
                self.expr(index);
            }
        }
        let Some(names) = chain.prefix() else {
            return self.expr(chain.base);
        };
        let name = names.join(".");
        if host::arity(&name).is_some() && !is_pure(&name) {
            self.impure(expr, format!("`{name}`"));
        }
        for path in self.meanings(&names) {
            match path.split_first() {
                Some((root, rest)) if root == "input" => {
                    let mut steps: Vec<Step> = rest.iter().cloned().map(Step::Name).collect();
                    if let Some(Part::Dynamic(Expr::Number { value, .. })) =
                        chain.parts.get(names.len() - 1)
                        && let Some(index) = index(value)
                    {
                        steps.push(Step::Index(index));
                    }
                    let place = self.place(expr);
                    self.found.paths.entry(steps).or_insert(place);
                }
                Some((root, _)) if root == "data" => self.evaluates(&path),
                _ => {}
            }
        }
    }
}

impl Meanings for Walk {
    /// Every path that a name with further names behind it may stand for.
    fn meanings(&self, names: &[String]) -> Vec<Vec<String>> {
        let Some((root, rest)) = names.split_first() else {
            return Vec::new();
        };
        if root == "input" || root == "data" {
            return vec![names.to_vec()];
        }
        let mut rule = self.package.clone();
        rule.push(root.clone());
        let imports = self.imports.get(&(self.package.clone(), root.clone()));
        imports
            .into_iter()
            .flatten()
            .cloned()
            .chain([rule])
            .map(|mut path| {
                path.extend_from_slice(rest);
                path
            })
            .collect()
    }
}

/// Whether a builtin's answer depends on its arguments alone.
fn is_pure(name: &str) -> bool {
    match host::find(name) {
        Some(host) => host.purity == Purity::Pure,
        None => PURE.contains(&name),
    }
}

fn index(value: &Value) -> Option<usize> {
    let Value::Number(number) = value else {
        return None;
    };
    let whole = number.as_u64().filter(|_| number.is_integer());
    whole.and_then(|number| usize::try_from(number).ok())
}
