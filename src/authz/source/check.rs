//! What can be told from a policy's source alone: who calls whom, what must not be called, and
//! which words it compares with.
//!
//! The graph of calls errs on the side of an edge: a name counts as a rule's until it is declared
//! as a variable.

#![expect(
    clippy::wildcard_enum_match_arm,
    reason = "the syntax tree is searched for a few forms; all others are treated alike"
)]

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use regorus::Value;
use regorus::unstable::{
    AssignOp, Expr, Literal, LiteralStmt, Module, Query, Ref, Rule, RuleAssign, RuleHead,
};

use crate::authz::rego::host;
use crate::authz::source::graph::{Graph, Node};
use crate::authz::source::hazard;
use crate::authz::source::remark::Remark;
use crate::authz::source::syntax::{
    Part, arity, builtin_name, chain, head, head_assign, literal, place,
};

/// The suffix of files whose rules test the others.
pub(in crate::authz) const TEST_SUFFIX: &str = "_test.rego";

/// What the source says.
#[derive(Debug, Default)]
pub(in crate::authz) struct Analysis {
    pub(in crate::authz) remarks: Vec<Remark>,
    /// Literals by the input path they stand in one statement with.
    pub(in crate::authz) compared: BTreeMap<Vec<String>, BTreeSet<Value>>,
    /// All scalar literals.
    pub(in crate::authz) words: BTreeSet<Value>,
    /// Inputs of the policy's own tests, where they are literals.
    pub(in crate::authz) test_inputs: Vec<Value>,
    /// Rules that hold inputs of the policy's own tests.
    pub(in crate::authz) test_input_rules: BTreeSet<String>,
    /// Tests by path, with where they stand.
    pub(in crate::authz) tests: BTreeMap<String, (String, usize, usize)>,
    /// Complete and partial rules of the live modules, by path.
    pub(in crate::authz) rules: BTreeSet<String>,
    /// A rule head with a path (`a.b := 1`) that the entry point reaches, and where.
    pub(in crate::authz) ref_head: Option<(String, usize, usize)>,
}

/// Analyses parsed modules as one program with this entry point.
pub(in crate::authz) fn analyse(modules: &[Ref<Module>], entrypoint: &str) -> Analysis {
    let mut walk = Walk::default();
    for module in modules {
        walk.declare(module);
    }
    for module in modules {
        walk.module(module);
    }
    let mut found = walk.found;
    walk.graph.circles(&mut found.remarks);
    walk.graph.depth(&mut found.remarks);
    found.ref_head = walk.graph.ref_head(entrypoint);
    found
}

pub(in crate::authz) fn is_test_file(file: &str) -> bool {
    file.ends_with(TEST_SUFFIX)
}

#[derive(Default)]
struct Walk {
    graph: Graph,
    found: Analysis,
    // where we are
    file: String,
    package: Vec<String>,
    aliases: HashMap<String, Vec<String>>,
    scopes: Vec<HashSet<String>>,
    node: Option<usize>,
    loops: usize,
    /// Input paths and literals of the statements around us.
    frames: Vec<(BTreeSet<Vec<String>>, BTreeSet<Value>)>,
}

impl Walk {
    fn package_of(module: &Module) -> Vec<String> {
        let mut path = vec!["data".to_owned()];
        path.extend(chain(&module.package.refr).prefix().unwrap_or_default());
        path
    }

    fn declare(&mut self, module: &Module) {
        let package = Self::package_of(module);
        let file = module.package.span.source.get_path().clone();
        let test_file = is_test_file(&file);
        for rule in &module.policy {
            let refr = head(rule);
            let Some(names) = chain(refr).prefix() else {
                continue;
            };
            let mut path = package.clone();
            path.extend(names.iter().cloned());
            let at = place(rule.span());
            let name = path.join(".");
            let arity = arity(rule);
            let function = arity.is_some();
            if !test_file && !function {
                self.found.rules.insert(name.clone());
            }
            if names.last().is_some_and(|last| last.starts_with("test_")) && !function {
                self.found
                    .tests
                    .entry(name.clone())
                    .or_insert_with(|| (file.clone(), at.0, at.1));
            }
            let next = self.graph.nodes.len();
            let node = *self.graph.index.entry(path).or_insert(next);
            if node == next {
                self.graph.nodes.push(Node {
                    name,
                    file: file.clone(),
                    at,
                    calls: BTreeMap::new(),
                    weight: 1,
                    ref_head: false,
                    arity,
                });
            }
            if self
                .graph
                .nodes
                .get(node)
                .is_some_and(|node| node.arity != arity)
            {
                self.file.clone_from(&file);
                self.remark(
                    at,
                    "the same rule is defined with another number of arguments".to_owned(),
                    "give functions of different arguments different names",
                );
            }
            if let Some(node) = self.graph.nodes.get_mut(node) {
                node.ref_head |= names.len() > 1 || chain(refr).parts.len() > 1;
            }
        }
    }

    fn module(&mut self, module: &Module) {
        self.file = module.package.span.source.get_path().clone();
        self.package = Self::package_of(module);
        self.aliases.clear();
        for import in &module.imports {
            let Some(path) = chain(&import.refr).prefix() else {
                continue;
            };
            let name = match &import.r#as {
                Some(span) => Some(span.text().to_owned()),
                None => path.last().cloned(),
            };
            if let Some(name) = name
                && path
                    .first()
                    .is_some_and(|root| root == "data" || root == "input")
            {
                self.aliases.insert(name, path);
            }
        }
        for rule in &module.policy {
            self.rule(rule);
        }
    }

    fn rule(&mut self, rule: &Rule) {
        let refr = head(rule);
        let Some(names) = chain(refr).prefix() else {
            return;
        };
        let mut path = self.package.clone();
        path.extend(names);
        self.node = self.graph.index.get(&path).copied();
        self.loops = 0;
        self.frames = vec![Default::default()];
        match rule {
            Rule::Default { args, value, .. } => {
                self.scopes = vec![HashSet::new()];
                for arg in args {
                    self.pattern(arg);
                }
                self.expr(value);
            }
            Rule::Spec { head, bodies, .. } => {
                if bodies.is_empty() {
                    self.body(head, None, None);
                }
                for (index, body) in bodies.iter().enumerate() {
                    let assign = match &body.assign {
                        Some(assign) => Some(assign),
                        None if index == 0 => head_assign(head),
                        None => None,
                    };
                    self.body(head, Some(&body.query), assign);
                }
            }
        }
        self.close_frame();
        if let Some(node) = self.node.and_then(|node| self.graph.nodes.get_mut(node)) {
            node.weight = node.weight.max(1 + self.loops);
        }
    }

    fn body(&mut self, head: &RuleHead, query: Option<&Query>, assign: Option<&RuleAssign>) {
        self.scopes = vec![HashSet::new()];
        if let RuleHead::Func { args, .. } = head {
            for arg in args {
                self.pattern(arg);
            }
        }
        if let Some(query) = query {
            self.statements(query);
        }
        // The head is evaluated last, in the scope of the body.
        match head {
            RuleHead::Set { refr, key, .. } => {
                self.dynamic_parts(refr);
                if let Some(key) = key {
                    self.expr(key);
                }
            }
            RuleHead::Compr { refr, .. } | RuleHead::Func { refr, .. } => self.dynamic_parts(refr),
        }
        if let Some(assign) =
            assign.or_else(|| query.is_none().then(|| head_assign(head)).flatten())
        {
            self.expr(&assign.value);
        }
    }

    fn dynamic_parts(&mut self, refr: &Expr) {
        for part in chain(refr).parts {
            if let Part::Dynamic(index) = part {
                self.expr(index);
            }
        }
    }

    /// Opens a scope, walks the statements, and leaves the scope open.
    fn statements(&mut self, query: &Query) {
        self.scopes.push(HashSet::new());
        for statement in &query.stmts {
            self.frames.push(Default::default());
            self.statement(statement);
            self.close_frame();
        }
    }

    fn close_frame(&mut self) {
        let Some((paths, words)) = self.frames.pop() else {
            return;
        };
        for path in &paths {
            self.found
                .compared
                .entry(path.clone())
                .or_default()
                .extend(words.iter().cloned());
        }
        self.found.words.extend(words.iter().cloned());
        if let Some((outer_paths, outer_words)) = self.frames.last_mut() {
            outer_paths.extend(paths);
            outer_words.extend(words);
        }
    }

    fn statement(&mut self, statement: &LiteralStmt) {
        for modifier in &statement.with_mods {
            self.replacement(&modifier.refr, &modifier.r#as);
        }
        match &statement.literal {
            Literal::SomeVars { vars, .. } => {
                for var in vars {
                    self.local(var.text());
                }
            }
            Literal::SomeIn {
                key,
                value,
                collection,
                ..
            } => {
                self.loops += 1;
                self.expr(collection);
                if let Some(key) = key {
                    self.pattern(key);
                }
                self.pattern(value);
            }
            Literal::Expr { expr, .. } | Literal::NotExpr { expr, .. } => self.expr(expr),
            Literal::Every {
                key,
                value,
                domain,
                query,
                ..
            } => {
                self.loops += 1;
                self.expr(domain);
                self.scopes.push(HashSet::new());
                if let Some(key) = key {
                    self.local(key.text());
                }
                self.local(value.text());
                self.statements(query);
                self.scopes.pop();
                self.scopes.pop();
            }
        }
    }

    /// `with target as value`: whoever calls the target then calls what stands in the value.
    fn replacement(&mut self, target: &Expr, value: &Expr) {
        let path = chain(target).prefix().unwrap_or_default();
        let is_input = path.first().is_some_and(|root| root == "input");
        if is_input && path.len() == 1 {
            match literal(value) {
                Some(input) => self.found.test_inputs.push(input),
                None => {
                    if let Some(mut names) = chain(value).prefix() {
                        if names.first().is_none_or(|root| root != "data") {
                            names.splice(0..0, self.package.iter().cloned());
                        }
                        if self.graph.index.contains_key(&names) {
                            self.found.test_input_rules.insert(names.join("."));
                        }
                    }
                }
            }
        }
        if !is_test_file(&self.file) && builtin_name(value).is_some_and(|n| !self.is_local(&n)) {
            self.remark(
                place(value.span()),
                "`with` puts a builtin in the place of something else".to_owned(),
                "write a function of your own that calls the builtin",
            );
        }
        let around = self.node;
        let mut targets = self.resolve(&path);
        if targets.is_empty()
            && let Some(name) = builtin_name(target)
        {
            targets.push(self.builtin(&name));
        }
        for target in targets {
            self.node = Some(target);
            self.expr(value);
        }
        self.node = around;
        self.expr(value);
    }

    fn expr(&mut self, expr: &Expr) {
        match expr {
            Expr::String { value, .. }
            | Expr::RawString { value, .. }
            | Expr::Number { value, .. } => {
                if let Some((_, words)) = self.frames.last_mut() {
                    words.insert(value.clone());
                }
            }
            Expr::Bool { .. } | Expr::Null { .. } => {}
            Expr::Var { .. } | Expr::RefDot { .. } | Expr::RefBrack { .. } => self.reference(expr),
            Expr::Array { items, .. } | Expr::Set { items, .. } => {
                for item in items {
                    self.expr(item);
                }
            }
            Expr::Object { fields, .. } => {
                for (_, key, value) in fields {
                    self.expr(key);
                    self.expr(value);
                }
            }
            Expr::ArrayCompr { term, query, .. } | Expr::SetCompr { term, query, .. } => {
                self.comprehension(query, &[term]);
            }
            Expr::ObjectCompr {
                key, value, query, ..
            } => self.comprehension(query, &[key, value]),
            Expr::Call { fcn, params, .. } => {
                self.call(fcn, params);
                for param in params {
                    self.expr(param);
                }
            }
            Expr::UnaryExpr { expr, .. } => self.expr(expr),
            Expr::BinExpr { lhs, rhs, .. }
            | Expr::BoolExpr { lhs, rhs, .. }
            | Expr::ArithExpr { lhs, rhs, .. } => {
                self.expr(lhs);
                self.expr(rhs);
            }
            Expr::AssignExpr { op, lhs, rhs, .. } => {
                self.expr(rhs);
                match op {
                    AssignOp::ColEq => self.pattern(lhs),
                    AssignOp::Eq => self.expr(lhs),
                }
            }
            Expr::Membership {
                key,
                value,
                collection,
                ..
            } => {
                if let Some(key) = key {
                    self.expr(key);
                }
                self.expr(value);
                self.expr(collection);
            }
        }
    }

    fn comprehension(&mut self, query: &Query, terms: &[&Ref<Expr>]) {
        self.loops += 1;
        self.statements(query);
        for term in terms {
            self.expr(term);
        }
        self.scopes.pop();
    }

    fn reference(&mut self, expr: &Expr) {
        let chain = chain(expr);
        for part in &chain.parts {
            if let Part::Dynamic(index) = part {
                if matches!(index, Expr::Var { .. }) {
                    self.loops += 1;
                }
                self.expr(index);
            }
        }
        match chain.prefix() {
            None => self.expr(chain.base),
            Some(path) => {
                if let Some(input) = self.input_path(&path)
                    && let Some((paths, _)) = self.frames.last_mut()
                {
                    paths.insert(input);
                }
                let at = place(expr.span());
                for target in self.resolve(&path) {
                    self.edge(target, at);
                }
            }
        }
    }

    fn call(&mut self, fcn: &Expr, params: &[Ref<Expr>]) {
        let chain = chain(fcn);
        let Some(path) = chain.prefix() else {
            return;
        };
        // Where the name begins, not where the parenthesis opens.
        let at = place(chain.base.span());
        let targets = self.resolve(&path);
        if !targets.is_empty() {
            let exact = self
                .full(&path)
                .and_then(|full| self.graph.index.get(&full).copied());
            let arity = exact.and_then(|node| self.graph.nodes.get(node)?.arity);
            self.arguments(&path.join("."), at, arity, params.len());
            for target in targets {
                self.edge(target, at);
            }
            return;
        }
        let name = path.join(".");
        let builtin = host::arity(&name);
        let known = builtin.is_some() || name == "print";
        if !is_test_file(&self.file)
            && let Err((message, help)) = hazard::judge(&name)
        {
            self.remark(at, message, help);
        } else if !known {
            self.remark(
                at,
                format!("there is no function `{name}`"),
                "functions are those of OPA that reach nothing outside of the decision; the README lists the few that are missing",
            );
        } else if let Some(arity) = builtin {
            self.arguments(&name, at, Some(usize::from(arity)), params.len());
        }
        let node = self.builtin(&name);
        self.edge(node, at);
    }

    /// The engines do not agree on calls with the wrong number of arguments: one fails, the other
    /// leaves out what is too much. One more than a function takes is where its answer goes.
    fn arguments(&mut self, name: &str, at: (usize, usize), arity: Option<usize>, given: usize) {
        match arity {
            None => self.remark(
                at,
                format!("`{name}` is no function"),
                "read a rule without parentheses",
            ),
            Some(arity) if given == arity || given == arity + 1 => {}
            Some(arity) => self.remark(
                at,
                format!(
                    "`{name}` takes {arity} argument{}",
                    if arity == 1 { "" } else { "s" }
                ),
                "call it with as many",
            ),
        }
    }

    fn builtin(&mut self, name: &str) -> usize {
        let next = self.graph.nodes.len();
        let node = *self
            .graph
            .index
            .entry(vec![format!("#{name}")])
            .or_insert(next);
        if node == next {
            self.graph.nodes.push(Node {
                name: name.to_owned(),
                file: self.file.clone(),
                at: (1, 1),
                calls: BTreeMap::new(),
                weight: 1,
                ref_head: false,
                arity: None,
            });
        }
        node
    }

    /// Declares the variables of a pattern, and walks what else is in it.
    fn pattern(&mut self, expr: &Expr) {
        match expr {
            Expr::Var { span, .. } => self.local(span.text()),
            Expr::Array { items, .. } | Expr::Set { items, .. } => {
                for item in items {
                    self.pattern(item);
                }
            }
            Expr::Object { fields, .. } => {
                for (_, key, value) in fields {
                    self.expr(key);
                    self.pattern(value);
                }
            }
            other => self.expr(other),
        }
    }

    fn local(&mut self, name: &str) {
        if let Some(scope) = self.scopes.last_mut() {
            scope.insert(name.to_owned());
        }
    }

    fn is_local(&self, name: &str) -> bool {
        self.scopes.iter().any(|scope| scope.contains(name))
    }

    /// The full path of a reference; `None` for variables.
    fn full(&self, path: &[String]) -> Option<Vec<String>> {
        let (root, rest) = path.split_first()?;
        if self.is_local(root) {
            return None;
        }
        if root == "data" || root == "input" {
            return Some(path.to_vec());
        }
        let mut full = match self.aliases.get(root) {
            Some(alias) => alias.clone(),
            None => {
                let mut full = self.package.clone();
                full.push(root.clone());
                full
            }
        };
        full.extend_from_slice(rest);
        Some(full)
    }

    fn input_path(&self, path: &[String]) -> Option<Vec<String>> {
        let full = self.full(path)?;
        let (root, rest) = full.split_first()?;
        (root == "input" && !rest.is_empty()).then(|| rest.to_vec())
    }

    /// All rules that reading this path may evaluate: those on the way, and those below.
    fn resolve(&self, path: &[String]) -> Vec<usize> {
        let Some(full) = self.full(path) else {
            return Vec::new();
        };
        if full.first().is_none_or(|root| root != "data") {
            return Vec::new();
        }
        let mut nodes: Vec<usize> = (1..full.len())
            .filter_map(|end| self.graph.index.get(full.get(..end)?).copied())
            .collect();
        nodes.extend(
            self.graph
                .index
                .range(full.clone()..)
                .take_while(|(path, _)| path.starts_with(&full))
                .map(|(_, node)| *node),
        );
        nodes
    }

    fn edge(&mut self, target: usize, at: (usize, usize)) {
        if let Some(node) = self.node.and_then(|node| self.graph.nodes.get_mut(node)) {
            node.calls.entry(target).or_insert(at);
        }
    }

    fn remark(&mut self, at: (usize, usize), message: String, help: &str) {
        let remark = Remark::error(&self.file, Some(at), message, help);
        self.found.remarks.push(remark);
    }
}
