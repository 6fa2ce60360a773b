//! Text to document, with every problem in it.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;

use schemars::JsonSchema;
use serde::de::DeserializeOwned;
use serde_yaml::{Mapping, Value};

use super::document::Document;
use super::index::{self, position_of};
use super::portions::{self, Apart, List};
use super::salvage;
use crate::route::{RouteConfig, name_fault};
use crate::schema::{Compile, Named, Placed, Position, Problem, Severity};

/// The most routes in one document.
pub(super) const MAX_ROUTES: usize = 20_000;

/// What the document says, as far as it could be read.
#[derive(Debug)]
pub(super) struct Said {
    /// Every section but the ones below; those are empty in it.
    pub(super) settings: Document,
    pub(super) listeners: Blocks<crate::listener::ListenerConfig>,
    pub(super) issuers: Blocks<crate::authn::jwt::IssuerConfig>,
    pub(super) bundles: Blocks<crate::bundle::BundleConfig>,
    pub(super) policies: Blocks<crate::authz::PolicyConfig>,
    pub(super) candidates: Blocks<crate::candidate::CandidateConfig>,
    pub(super) limits: Blocks<crate::limit::LimitConfig>,
    pub(super) upstreams: Blocks<crate::upstream::UpstreamConfig>,
    pub(super) routes: Vec<RouteConfig>,
    /// Where each stands: `routes[3]`.
    pub(super) places: Vec<String>,
}

impl Said {
    /// All that could be read, as one document.
    pub(super) fn whole(&self) -> Document {
        Document {
            listeners: self.listeners.good.clone(),
            issuers: self.issuers.good.clone(),
            bundles: self.bundles.good.clone(),
            policies: self.policies.good.clone(),
            candidates: self.candidates.good.clone(),
            limits: self.limits.good.clone(),
            upstreams: self.upstreams.good.clone(),
            routes: self.routes.clone(),
            ..self.settings.clone()
        }
    }
}

/// The blocks of a section: the good ones, and the names of all.
#[derive(Debug)]
pub(super) struct Blocks<T> {
    pub(super) good: Named<T>,
    pub(super) names: BTreeSet<String>,
}

/// The text of the document, or a problem where it stops being text.
pub(super) fn text<'b>(file: &Path, bytes: &'b [u8], cx: &mut Compile) -> Option<&'b str> {
    match std::str::from_utf8(bytes) {
        Ok(text) => Some(text.strip_prefix('\u{feff}').unwrap_or(text)),
        Err(error) => {
            let good = bytes.get(..error.valid_up_to()).unwrap_or_default();
            let at = position_of(&String::from_utf8_lossy(good));
            cx.report(Problem {
                severity: Severity::Error,
                file: file.to_path_buf(),
                line: Some(at.line),
                column: Some(at.column),
                path: String::new(),
                message: "the file is not UTF-8 text".to_owned(),
                help: Some("save it as UTF-8".to_owned()),
            });
            None
        }
    }
}

/// Reads the document. `None` when its text or its root is no good; everything else is reported
/// and read as far as possible, so that later steps find their problems too.
pub(super) fn document(file: &Path, text: &str, cx: &mut Compile) -> Option<Said> {
    let list = sound(file, text, cx)?;
    let (value, apart) = match list.and_then(|list| portions::read(text, &list)) {
        Some(Apart { rest, routes }) => (rest, Some(routes)),
        None => (whole(file, text, cx)?, None),
    };
    match value {
        Value::Mapping(root) => Some(sections(root, apart, cx)),
        Value::Null => {
            cx.problem_help(
                "the file is empty",
                "a first configuration needs `listeners`, `upstreams` and `routes`",
            );
            None
        }
        Value::Bool(_)
        | Value::Number(_)
        | Value::String(_)
        | Value::Sequence(_)
        | Value::Tagged(_) => {
            cx.problem_help("the file is not a block of keys", "begin with `listeners:`");
            None
        }
    }
}

/// Reads the text's value, and lets the context know where its parts stand. `None` when it has faults,
/// which are reported.
pub(super) fn value(file: &Path, text: &str, cx: &mut Compile) -> Option<Value> {
    sound(file, text, cx)?;
    whole(file, text, cx)
}

/// Looks for faults of the text, and lets the context know where its parts stand. `None` when there are
/// some, which are reported; otherwise its routes, if they can be read apart.
#[expect(clippy::option_option, reason = "a text may be sound and have none")]
fn sound(file: &Path, text: &str, cx: &mut Compile) -> Option<Option<List>> {
    let (faults, list) = index::look(text);
    let placed = Placed::new(text.to_owned(), index::positions);
    replace_context(cx, |cx| cx.with_positions(Arc::new(placed)));
    let broken = !faults.is_empty();
    for fault in faults {
        cx.report(Problem {
            severity: Severity::Error,
            file: file.to_path_buf(),
            line: fault.at.map(|at| at.line),
            column: fault.at.map(|at| at.column),
            path: fault.path,
            message: fault.message,
            help: fault.help,
        });
    }
    if broken {
        // Values of a file with duplicate keys or broken syntax would only give wrong problems.
        return None;
    }
    Some(list)
}

fn whole(file: &Path, text: &str, cx: &mut Compile) -> Option<Value> {
    match serde_yaml::from_str(text) {
        Ok(value) => Some(value),
        Err(error) => {
            let at = error.location().map(|at| Position {
                line: at.line(),
                column: at.column(),
            });
            cx.report(Problem {
                severity: Severity::Error,
                file: file.to_path_buf(),
                line: at.map(|at| at.line),
                column: at.map(|at| at.column),
                path: String::new(),
                message: format!("this is not YAML: {error}"),
                help: None,
            });
            None
        }
    }
}

/// Swaps the context by value in place.
fn replace_context(cx: &mut Compile, change: impl FnOnce(Compile) -> Compile) {
    let placeholder = Compile::new(Path::new(""), Arc::clone(&cx.metrics));
    let taken = std::mem::replace(cx, placeholder);
    *cx = change(taken);
}

fn sections(mut root: Mapping, apart: Option<Vec<RouteConfig>>, cx: &mut Compile) -> Said {
    let listeners = blocks(&mut root, "listeners", cx);
    let issuers = blocks(&mut root, "issuers", cx);
    let bundles = blocks(&mut root, "bundles", cx);
    let policies = blocks(&mut root, "policies", cx);
    let candidates = blocks(&mut root, "candidates", cx);
    let limits = blocks(&mut root, "limits", cx);
    let upstreams = blocks(&mut root, "upstreams", cx);
    let (places, routes) = match apart {
        Some(routes) => ((0..routes.len()).map(place).collect(), routes),
        None => routes(&mut root, cx).into_iter().unzip(),
    };
    // Mandatory in the schema, and read above.
    root.insert("listeners".into(), Value::Mapping(Mapping::new()));
    root.insert("routes".into(), Value::Sequence(Vec::new()));
    let settings = salvage::read::<Document>(Value::Mapping(root), cx).value;
    Said {
        settings: settings.unwrap_or_else(Document::empty),
        listeners,
        issuers,
        bundles,
        policies,
        candidates,
        limits,
        upstreams,
        routes,
        places,
    }
}

fn blocks<T: DeserializeOwned + JsonSchema>(
    root: &mut Mapping,
    section: &str,
    cx: &mut Compile,
) -> Blocks<T> {
    let mut blocks = Blocks {
        good: Named::new(),
        names: BTreeSet::new(),
    };
    let entries = match root.remove(section) {
        None | Some(Value::Null) => return blocks,
        Some(Value::Mapping(entries)) => entries,
        Some(_) => {
            cx.at(section, |cx| {
                cx.problem_help(
                    "this is not a block of names",
                    format!("write `{section}:`, and below it `  name: {{ … }}`"),
                );
            });
            return blocks;
        }
    };
    cx.at(section, |cx| {
        for (name, value) in entries {
            let Some(name) = name.as_str().map(str::to_owned) else {
                let shown = serde_yaml::to_string(&name)
                    .unwrap_or_default()
                    .trim()
                    .to_owned();
                cx.at(shown.clone(), |cx| {
                    cx.problem_help(
                        format!("the name `{shown}` is not text"),
                        format!("quote it: `\"{shown}\"`"),
                    );
                });
                continue;
            };
            cx.at(name.clone(), |cx| {
                if let Some((message, help)) = name_fault(&name) {
                    cx.key_problem(message, help);
                }
                if let Some(block) = salvage::read::<T>(value, cx).clean() {
                    blocks.good.insert(name.clone(), block);
                }
            });
            blocks.names.insert(name);
        }
    });
    blocks
}

fn place(index: usize) -> String {
    format!("routes[{index}]")
}

fn routes(root: &mut Mapping, cx: &mut Compile) -> Vec<(String, RouteConfig)> {
    let items = match root.remove("routes") {
        None | Some(Value::Null) => Vec::new(),
        Some(Value::Sequence(items)) => items,
        Some(_) => {
            cx.at("routes", |cx| {
                cx.problem_help("this is not a list", "begin each route with `- name: …`")
            });
            return Vec::new();
        }
    };
    if items.is_empty() {
        cx.at("routes", |cx| {
            cx.problem_help(
                "there is no route",
                "add one under `routes:`; without routes every request is refused",
            )
        });
    }
    if items.len() > MAX_ROUTES {
        cx.at("routes", |cx| {
            cx.problem_help(
                format!("there are more than {MAX_ROUTES} routes"),
                "use path templates",
            )
        });
        return Vec::new();
    }
    let mut routes = Vec::with_capacity(items.len());
    for (index, item) in items.into_iter().enumerate() {
        let place = place(index);
        if let Some(route) = cx.at(place.clone(), |cx| {
            salvage::read::<RouteConfig>(item, cx).clean()
        }) {
            routes.push((place, route));
        }
    }
    routes
}
