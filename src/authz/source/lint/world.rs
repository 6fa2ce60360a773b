//! The modules of a policy as one: packages, imports, rules, and what each name stands for.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};

use regorus::unstable::{Expr, Import, Module, Query, Ref, Rule, RuleBody, RuleHead, Span};

use super::Known;
use crate::authz::source::syntax::{chain, head, head_assign};
use crate::authz::source::types::Type;
use crate::document;

/// A module.
pub(super) struct Unit<'m> {
    pub(super) module: &'m Module,
    pub(super) file: String,
    pub(super) package: Vec<String>,
    pub(super) aliases: BTreeMap<String, Vec<String>>,
    pub(super) is_test: bool,
}

/// One definition of a rule.
#[derive(Clone, Copy)]
pub(super) struct Definition<'m> {
    pub(super) unit: usize,
    pub(super) rule: &'m Rule,
}

/// The types of rules by path, and whether each may be undefined; `None` while one is being found.
type Types = BTreeMap<Vec<String>, Option<(Type, bool)>>;

/// Everything.
pub(super) struct World<'m, 'k> {
    pub(super) known: &'k Known<'k>,
    pub(super) units: Vec<Unit<'m>>,
    pub(super) rules: BTreeMap<Vec<String>, Vec<Definition<'m>>>,
    /// The types of rules; `None` while one is being found.
    pub(super) types: RefCell<Types>,
}

/// What a name stands for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Meaning {
    /// A path that begins with `input`.
    Input(Vec<String>),
    /// A path that begins with `data`.
    Data(Vec<String>),
    /// Something else: a builtin, or a variable.
    Other,
}

pub(super) fn package_of(module: &Module) -> Vec<String> {
    let mut path = vec!["data".to_owned()];
    path.extend(chain(&module.package.refr).prefix().unwrap_or_default());
    path
}

/// The name that an import gives, and the path that it stands for.
pub(super) fn import(import: &Import) -> Option<(String, Vec<String>)> {
    let path = chain(&import.refr).prefix()?;
    let name = match &import.r#as {
        Some(span) => span.text().to_owned(),
        None => path.last()?.clone(),
    };
    Some((name, path))
}

impl<'m, 'k> World<'m, 'k> {
    pub(super) fn of(modules: &'m [Ref<Module>], known: &'k Known<'k>) -> Self {
        let mut units = Vec::new();
        let mut rules: BTreeMap<Vec<String>, Vec<Definition<'m>>> = BTreeMap::new();
        for (unit, module) in modules.iter().enumerate() {
            let package = package_of(module);
            let aliases = module
                .imports
                .iter()
                .filter_map(import)
                .filter(|(_, path)| {
                    path.first()
                        .is_some_and(|root| root == "data" || root == "input")
                })
                .collect();
            for rule in &module.policy {
                let mut path = package.clone();
                path.extend(chain(head(rule)).prefix().unwrap_or_default());
                rules
                    .entry(path)
                    .or_default()
                    .push(Definition { unit, rule });
            }
            let file = module.package.span.source.get_path().clone();
            units.push(Unit {
                module,
                is_test: (known.test_files)(&file),
                file,
                package,
                aliases,
            });
        }
        Self {
            known,
            units,
            rules,
            types: RefCell::default(),
        }
    }

    /// What a name with further names behind it stands for, where it is no variable.
    pub(super) fn meaning(&self, unit: &Unit<'_>, names: &[String]) -> Meaning {
        let Some((root, rest)) = names.split_first() else {
            return Meaning::Other;
        };
        let whole = match root.as_str() {
            "input" | "data" => names.to_vec(),
            _ => {
                let mut own = unit.package.clone();
                own.push(root.clone());
                let mut path = if self.is_near_rule(&own) {
                    own
                } else if let Some(alias) = unit.aliases.get(root) {
                    alias.clone()
                } else {
                    return Meaning::Other;
                };
                path.extend_from_slice(rest);
                path
            }
        };
        match whole.first().map(String::as_str) {
            Some("input") => Meaning::Input(whole),
            _ => Meaning::Data(whole),
        }
    }

    /// Whether a rule has this path, or one below it.
    pub(super) fn is_near_rule(&self, path: &[String]) -> bool {
        self.rules
            .range(path.to_vec()..)
            .next()
            .is_some_and(|(found, _)| found.starts_with(path))
    }

    /// The rule on the way to a path, with how many names lead to it.
    pub(super) fn rule_on(&self, path: &[String]) -> Option<(&Vec<String>, usize)> {
        (2..=path.len()).find_map(|end| {
            let (found, _) = self.rules.get_key_value(path.get(..end)?)?;
            Some((found, end))
        })
    }

    /// All rules that reading this path may evaluate.
    pub(super) fn read_by(&self, path: &[String]) -> BTreeSet<Vec<String>> {
        let on = self.rule_on(path).map(|(found, _)| found.clone());
        let below = self
            .rules
            .range(path.to_vec()..)
            .take_while(|(found, _)| found.starts_with(path))
            .map(|(found, _)| found.clone());
        on.into_iter().chain(below).collect()
    }

    /// Whether a path leads to a package, or to a folder of packages.
    pub(super) fn is_package(&self, path: &[String]) -> bool {
        self.units.iter().any(|unit| unit.package.starts_with(path))
    }

    /// The value in data.
    pub(super) fn datum(&self, path: &[String]) -> Option<&regorus::Value> {
        path.iter()
            .skip(1)
            .try_fold(self.known.data, |value, name| document::member(value, name))
    }
}

/// The bodies of a definition with the value that each gives; a rule without a body has one.
pub(super) fn bodies(rule: &Rule) -> Vec<(Option<&RuleBody>, Option<&Expr>)> {
    match rule {
        Rule::Default { .. } => Vec::new(),
        Rule::Spec { head, bodies, .. } if bodies.is_empty() => {
            vec![(None, head_assign(head).map(|assign| &*assign.value))]
        }
        Rule::Spec { head, bodies, .. } => bodies
            .iter()
            .enumerate()
            .map(|(index, body)| {
                let assign = match &body.assign {
                    Some(assign) => Some(assign),
                    None if index == 0 || !body.is_else => head_assign(head),
                    None => None,
                };
                (Some(body), assign.map(|assign| &*assign.value))
            })
            .collect(),
    }
}

/// The query of a body.
pub(super) fn query(body: Option<&RuleBody>) -> Option<&Query> {
    body.map(|body| &*body.query)
}

/// What a head gives beside its value: the key of a set or an object, the arguments of a function.
pub(super) fn head_terms(head: &RuleHead) -> (Vec<&Expr>, &[Ref<Expr>]) {
    let refr = match head {
        RuleHead::Compr { refr, .. } | RuleHead::Set { refr, .. } | RuleHead::Func { refr, .. } => {
            refr
        }
    };
    let mut terms = Vec::new();
    for part in chain(refr).parts {
        if let crate::authz::source::syntax::Part::Dynamic(index) = part {
            terms.push(index);
        }
    }
    match head {
        RuleHead::Set { key: Some(key), .. } => {
            terms.push(key);
            (terms, &[])
        }
        RuleHead::Func { args, .. } => (terms, args),
        RuleHead::Compr { .. } | RuleHead::Set { key: None, .. } => (terms, &[]),
    }
}

/// The span of an expression's first name.
pub(super) fn base_span(expr: &Expr) -> &Span {
    chain(expr).base.span()
}
