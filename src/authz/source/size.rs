//! How big rules are: what one evaluation of each may cost, told from the text alone.

use regorus::unstable::{Expr, Literal, LiteralStmt, Module, Query, Ref, Rule};

use super::syntax::{chain, head, place};

/// How big a rule is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RuleSize {
    /// Its path: `data.orders.decision`.
    pub name: String,
    /// The file.
    pub file: String,
    /// The line.
    pub line: usize,
    /// Expressions that one evaluation may look at, loops not multiplied.
    pub steps: usize,
    /// How deep loops lie in each other: each multiplies by what it runs over.
    pub loops: usize,
}

/// The rules of a module, definitions of one rule one by one.
pub(in crate::authz) fn sizes(module: &Ref<Module>) -> Vec<RuleSize> {
    let package = chain(&module.package.refr)
        .prefix()
        .unwrap_or_default()
        .join(".");
    let file = module.package.span.source.get_path();
    module
        .policy
        .iter()
        .map(|rule| {
            let name = chain(head(rule)).prefix().unwrap_or_default().join(".");
            let mut count = Count::default();
            if let Rule::Spec { bodies, .. } = &**rule {
                for body in bodies {
                    count.query(&body.query);
                    if let Some(assign) = &body.assign {
                        count.expr(&assign.value);
                    }
                }
            }
            RuleSize {
                name: format!("data.{package}.{name}"),
                file: file.clone(),
                line: place(rule.span()).0,
                steps: count.steps + 1,
                loops: count.deepest,
            }
        })
        .collect()
}

#[derive(Default)]
struct Count {
    steps: usize,
    depth: usize,
    deepest: usize,
}

impl Count {
    fn query(&mut self, query: &Query) {
        let depth = self.depth;
        for statement in &query.stmts {
            self.statement(statement);
        }
        self.depth = depth;
    }

    fn deeper(&mut self) {
        self.depth += 1;
        self.deepest = self.deepest.max(self.depth);
    }

    fn statement(&mut self, statement: &LiteralStmt) {
        for modifier in &statement.with_mods {
            self.expr(&modifier.r#as);
        }
        match &statement.literal {
            Literal::SomeVars { .. } => {}
            Literal::SomeIn { collection, .. } => {
                self.expr(collection);
                self.deeper();
            }
            Literal::Expr { expr, .. } | Literal::NotExpr { expr, .. } => self.expr(expr),
            Literal::Every { domain, query, .. } => {
                self.expr(domain);
                self.deeper();
                self.query(query);
                self.depth -= 1;
            }
        }
    }

    fn expr(&mut self, expr: &Expr) {
        self.steps += 1;
        match expr {
            Expr::String { .. }
            | Expr::RawString { .. }
            | Expr::Number { .. }
            | Expr::Bool { .. }
            | Expr::Null { .. }
            | Expr::Var { .. } => {}
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
                self.query(query);
                self.expr(term);
            }
            Expr::ObjectCompr {
                key, value, query, ..
            } => {
                self.query(query);
                self.expr(key);
                self.expr(value);
            }
            Expr::Call { params, .. } => {
                for param in params {
                    self.expr(param);
                }
            }
            Expr::UnaryExpr { expr, .. } => self.expr(expr),
            Expr::RefDot { refr, .. } => self.expr(refr),
            Expr::RefBrack { refr, index, .. } => {
                self.expr(refr);
                self.expr(index);
                if matches!(&**index, Expr::Var { span, .. } if span.text() == "_") {
                    self.deeper();
                }
            }
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
                if let Some(key) = key {
                    self.expr(key);
                }
                self.expr(value);
                self.expr(collection);
            }
        }
    }
}
