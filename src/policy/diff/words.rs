//! What two documents say differently about who may come, and how much.

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;
use serde_json::Value;

use super::effect::{Effect, effect};
use crate::config::Document;
use crate::policy::ask::routes::Openness;
use crate::route::RouteConfig;

/// Longest value that is shown.
const LONGEST: usize = 80;

/// A setting that is another now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Changed {
    pub(super) what: String,
    pub(super) effect: Effect,
    /// What it may mean; empty where the name says it.
    pub(super) means: &'static str,
    pub(super) old: String,
    pub(super) new: String,
}

fn value(part: &impl Serialize) -> Value {
    serde_json::to_value(part).unwrap_or_default()
}

fn shown(value: Option<&Value>) -> String {
    let text = match value {
        None | Some(Value::Null) => return "none".to_owned(),
        Some(Value::String(text)) => text.clone(),
        Some(Value::Array(items)) if items.is_empty() => return "none".to_owned(),
        Some(Value::Array(items)) => items
            .iter()
            .map(|item| shown(Some(item)))
            .collect::<Vec<_>>()
            .join(", "),
        Some(other) => other.to_string(),
    };
    if text.chars().count() > LONGEST {
        format!("{}…", text.chars().take(LONGEST).collect::<String>())
    } else {
        text
    }
}

/// Whether everything that requests go through before their route's policy is the same.
pub(super) fn same_ground(old: &Document, new: &Document) -> bool {
    let parts = |document: &Document| {
        [
            value(&document.listeners),
            value(&document.issuers),
            value(&document.client_certificate),
            value(&document.trusted_proxies),
            value(&document.identity),
        ]
    };
    parts(old) == parts(new)
}

/// Whether both tables find the same routes.
pub(super) fn same_table(old: &Document, new: &Document) -> bool {
    let parts = |document: &Document| -> Vec<(String, Value)> {
        let routes = document.routes.iter();
        let mut parts: Vec<(String, Value)> = routes
            .map(|route| {
                let place = (&route.hosts, &route.path, &route.methods, &route.headers);
                (
                    route.name.clone(),
                    value(&(place, &route.listeners, &route.upgrades)),
                )
            })
            .collect();
        parts.sort_by(|a, b| a.0.cmp(&b.0));
        parts
    };
    // The common case, without writing anything down.
    let same = |(a, b): (&RouteConfig, &RouteConfig)| {
        (
            &a.name,
            &a.hosts,
            &a.path,
            &a.methods,
            &a.headers,
            &a.listeners,
            &a.upgrades,
        ) == (
            &b.name,
            &b.hosts,
            &b.path,
            &b.methods,
            &b.headers,
            &b.listeners,
            &b.upgrades,
        )
    };
    (old.routes.len() == new.routes.len() && old.routes.iter().zip(&new.routes).all(same))
        || parts(old) == parts(new)
}

/// All settings that differ, whatever section they stand in; a section that comes later is not
/// forgotten.
pub(super) fn configuration(old: &Document, new: &Document) -> Vec<Changed> {
    let mut found = Vec::new();
    routes(old, new, &mut found);
    let (before, after) = (value(old), value(new));
    let sections = |document: &Value| -> BTreeSet<String> {
        let members = document.as_object();
        members
            .into_iter()
            .flat_map(|all| all.keys().cloned())
            .collect()
    };
    for section in sections(&before).union(&sections(&after)) {
        if section != "routes" {
            let (before, after) = (before.get(section), after.get(section));
            differences(section, before, after, &mut found);
        }
    }
    found
}

/// Policies whose rules or data differ. Who gains and loses by it is searched.
pub(super) fn policies(
    old: &BTreeMap<String, String>,
    new: &BTreeMap<String, String>,
    found: &mut Vec<Changed>,
) {
    for (name, before) in old {
        if let Some(after) = new.get(name)
            && before != after
        {
            found.push(Changed {
                what: format!("policy {name}"),
                effect: Effect::Beside,
                means: "its rules or data differ: its routes are asked about",
                old: before.clone(),
                new: after.clone(),
            });
        }
    }
}

/// The innermost members that differ.
fn differences(path: &str, old: Option<&Value>, new: Option<&Value>, found: &mut Vec<Changed>) {
    if old == new {
        return;
    }
    let absent = Value::Null;
    let (before, after) = (old.unwrap_or(&absent), new.unwrap_or(&absent));
    if before == after {
        return;
    }
    if let (Value::Object(before), Value::Object(after)) = (before, after) {
        let names: BTreeSet<&String> = before.keys().chain(after.keys()).collect();
        for name in names {
            differences(
                &format!("{path}.{name}"),
                before.get(name),
                after.get(name),
                found,
            );
        }
        return;
    }
    let (effect, means) = effect(path, before, after);
    found.push(Changed {
        what: path.to_owned(),
        effect,
        means,
        old: shown(old),
        new: shown(new),
    });
}

fn routes(old: &Document, new: &Document, found: &mut Vec<Changed>) {
    let by_name = |document: &'_ Document| -> BTreeMap<String, RouteConfig> {
        let routes = document.routes.iter();
        routes
            .map(|route| (route.name.clone(), route.clone()))
            .collect()
    };
    // Thousands of routes that are the same need no second look.
    if old.routes == new.routes {
        return;
    }
    let (olds, news) = (by_name(old), by_name(new));
    for name in olds.keys().chain(news.keys()).collect::<BTreeSet<_>>() {
        match (olds.get(name), news.get(name)) {
            (Some(before), Some(after)) if before != after => route(before, after, found),
            (Some(before), None) => found.push(Changed {
                what: format!("route {name} removed"),
                effect: Effect::Changes,
                means: "another route may take its requests",
                old: before.path.clone(),
                new: "none".to_owned(),
            }),
            (None, Some(after)) => {
                let openness = Openness::of(after);
                let note = if openness == Openness::Closed {
                    String::new()
                } else {
                    format!(": {}", openness.words())
                };
                found.push(Changed {
                    what: format!("route {name} added{note}"),
                    effect: if openness == Openness::Closed {
                        Effect::Changes
                    } else {
                        Effect::Opens
                    },
                    means: "",
                    old: "none".to_owned(),
                    new: after.path.clone(),
                });
            }
            _ => {}
        }
    }
}

fn route(before: &RouteConfig, after: &RouteConfig, found: &mut Vec<Changed>) {
    let name = &after.name;
    let mut add = |what: &str, effect: Effect, old: Value, new: Value| {
        if old != new {
            found.push(Changed {
                what: format!("route {name}: {what}"),
                effect,
                means: "",
                old: shown(Some(&old)),
                new: shown(Some(&new)),
            });
        }
    };
    let opened = Openness::of(after) > Openness::of(before);
    let what = if opened {
        "opened: credential"
    } else {
        "credential"
    };
    let opens = |yes: bool| if yes { Effect::Opens } else { Effect::Changes };
    add(
        what,
        opens(opened),
        value(&before.authn),
        value(&after.authn),
    );
    let open_policy = opened && after.policy.as_deref() == Some("public");
    let what = if open_policy {
        "opened: policy"
    } else {
        "policy"
    };
    add(
        what,
        opens(open_policy),
        value(&before.policy),
        value(&after.policy),
    );
    let lifted: Vec<&String> = before
        .limits
        .iter()
        .filter(|limit| !after.limits.contains(limit))
        .collect();
    let what = if lifted.is_empty() {
        "limits"
    } else {
        "limit lifted"
    };
    add(
        what,
        opens(!lifted.is_empty()),
        value(&before.limits),
        value(&after.limits),
    );
    // What was said of above.
    let told = ["name", "authn", "policy", "limits"];
    let (before, after) = (value(before), value(after));
    let names = |route: &Value| -> BTreeSet<String> {
        let members = route.as_object();
        members
            .into_iter()
            .flat_map(|all| all.keys().cloned())
            .collect()
    };
    for what in names(&before).union(&names(&after)) {
        if told.contains(&what.as_str()) {
            continue;
        }
        let part = |route: &Value| route.get(what).cloned().unwrap_or_default();
        let effect = match what.as_str() {
            // A stream that is no longer ended, a body that is no longer bounded, a path that is read
            // in another way.
            "revocation" | "upgrades" | "paths" | "bounds" => Effect::MayOpen,
            _ => Effect::Changes,
        };
        add(what, effect, part(&before), part(&after));
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn every_section_of_the_file_is_compared() {
        let document: Document =
            serde_json::from_value(json!({"listeners": {}, "routes": []})).unwrap();
        let text = value(&document);
        for section in text.as_object().unwrap().keys() {
            if section == "routes" {
                continue;
            }
            let mut found = Vec::new();
            let other = json!("something else");
            differences(section, text.get(section), Some(&other), &mut found);
            assert_eq!(found.len(), 1, "{section}");
        }
    }
}
