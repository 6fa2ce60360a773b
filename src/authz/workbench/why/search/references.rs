//! Which rules an expression asks.

use regorus::unstable::{Expr, Literal, Module};

use super::{Reference, Search};
use crate::authz::source::syntax::{self, Part};
use crate::authz::workbench::coverage::parts;

impl Search<'_> {
    /// The rules that a statement asks.
    pub(super) fn references_of(
        &self,
        module: usize,
        literal: &Literal,
        found: &mut Vec<Reference>,
    ) {
        match literal {
            Literal::SomeVars { .. } => {}
            Literal::SomeIn { collection, .. } => self.references(module, collection, found),
            Literal::Expr { expr, .. } | Literal::NotExpr { expr, .. } => {
                self.references(module, expr, found);
            }
            Literal::Every { domain, query, .. } => {
                self.references(module, domain, found);
                for statement in &query.stmts {
                    self.references_of(module, &statement.literal, found);
                }
            }
        }
    }

    pub(super) fn references(&self, module: usize, expr: &Expr, found: &mut Vec<Reference>) {
        match expr {
            Expr::Call { fcn, params, .. } => {
                if let Some(path) = self.resolved(module, fcn)
                    && found.iter().all(|other| other.path != path)
                {
                    found.push(Reference {
                        path,
                        arguments: Some(params.clone()),
                    });
                }
                for param in params {
                    self.references(module, param, found);
                }
            }
            Expr::Var { .. } | Expr::RefDot { .. } | Expr::RefBrack { .. } => {
                if let Some(path) = self.resolved(module, expr)
                    && found.iter().all(|other| other.path != path)
                {
                    let function = self
                        .definitions(&path)
                        .first()
                        .and_then(|spot| self.rule(*spot))
                        .is_some_and(|rule| syntax::arity(rule).is_some());
                    if !function {
                        found.push(Reference {
                            path,
                            arguments: None,
                        });
                    }
                }
                for part in &syntax::chain(expr).parts {
                    if let Part::Dynamic(index) = part {
                        self.references(module, index, found);
                    }
                }
            }
            Expr::ArrayCompr { term, query, .. } | Expr::SetCompr { term, query, .. } => {
                self.references(module, term, found);
                for statement in &query.stmts {
                    self.references_of(module, &statement.literal, found);
                }
            }
            Expr::ObjectCompr {
                key, value, query, ..
            } => {
                self.references(module, key, found);
                self.references(module, value, found);
                for statement in &query.stmts {
                    self.references_of(module, &statement.literal, found);
                }
            }
            other => {
                for part in parts(other) {
                    self.references(module, part, found);
                }
            }
        }
    }

    /// The rule that a reference names: by its path, an import, or a name of the package.
    pub(super) fn resolved(&self, module: usize, expr: &Expr) -> Option<Vec<String>> {
        let module: &Module = self.asker.bench.modules.get(module)?;
        let names = syntax::chain(expr).prefix()?;
        let (first, rest) = names.split_first()?;
        let full = if first == "data" {
            names.clone()
        } else if first == "input" {
            return None;
        } else if let Some(path) = module.imports.iter().find_map(|import| {
            let path = syntax::chain(&import.refr).prefix()?;
            let alias = match &import.r#as {
                Some(name) => name.text().to_owned(),
                None => path.last()?.clone(),
            };
            (alias == *first && path.first().is_some_and(|root| root == "data")).then_some(path)
        }) {
            [&path, rest].concat()
        } else {
            let package = syntax::chain(&module.package.refr).prefix()?;
            [&["data".to_owned()], package.as_slice(), names.as_slice()].concat()
        };
        (3..=full.len())
            .rev()
            .chain([2])
            .filter_map(|end| full.get(..end))
            .find(|path| self.index.contains_key(*path))
            .map(<[String]>::to_vec)
            .or_else(|| {
                let package_long = full.len() >= 3;
                let below = |path: &&Vec<String>| path.starts_with(&full);
                (package_long && self.index.keys().any(|path| below(&path))).then(|| full.clone())
            })
    }
}
