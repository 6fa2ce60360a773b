//! What two documents say differently about who may come, and how much.

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;
use serde_json::Value;

use crate::config::Document;
use crate::policy::ask::routes::Openness;
use crate::route::RouteConfig;

/// Longest value that is shown.
const LONGEST: usize = 80;

/// A setting that is another now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Changed {
    pub(super) what: String,
    /// Whether it takes a guard away.
    pub(super) opens: bool,
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

/// All settings that differ.
pub(super) fn configuration(old: &Document, new: &Document) -> Vec<Changed> {
    let mut found = Vec::new();
    routes(old, new, &mut found);
    for (section, before, after) in [
        ("issuers", value(&old.issuers), value(&new.issuers)),
        ("limits", value(&old.limits), value(&new.limits)),
        ("listeners", value(&old.listeners), value(&new.listeners)),
        (
            "client_certificate",
            value(&old.client_certificate),
            value(&new.client_certificate),
        ),
        (
            "trusted_proxies",
            value(&old.trusted_proxies),
            value(&new.trusted_proxies),
        ),
        (
            "authentication_failures",
            value(&old.authentication_failures),
            value(&new.authentication_failures),
        ),
        ("revocation", value(&old.revocation), value(&new.revocation)),
    ] {
        differences(section, Some(&before), Some(&after), &mut found);
    }
    found
}

/// The innermost members that differ.
fn differences(path: &str, old: Option<&Value>, new: Option<&Value>, found: &mut Vec<Changed>) {
    if old == new {
        return;
    }
    if let (Some(Value::Object(before)), Some(Value::Object(after))) = (old, new) {
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
    let gone = new.is_none_or(Value::is_null);
    // A limit that goes, an audience or an algorithm that comes, a longer leeway: what to make of them
    // only their room could say; what is gone is a guard less.
    let opens = gone && path.starts_with("limits.");
    found.push(Changed {
        what: path.to_owned(),
        opens,
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
                opens: false,
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
                    opens: openness != Openness::Closed,
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
    let mut add = |what: &str, opens: bool, old: Value, new: Value| {
        if old != new {
            found.push(Changed {
                what: format!("route {name}: {what}"),
                opens,
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
    add(what, opened, value(&before.authn), value(&after.authn));
    let open_policy = opened && after.policy.as_deref() == Some("public");
    let what = if open_policy {
        "opened: policy"
    } else {
        "policy"
    };
    add(
        what,
        open_policy,
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
        !lifted.is_empty(),
        value(&before.limits),
        value(&after.limits),
    );
    for (what, old, new) in [
        ("path", value(&before.path), value(&after.path)),
        ("hosts", value(&before.hosts), value(&after.hosts)),
        ("methods", value(&before.methods), value(&after.methods)),
        ("headers", value(&before.headers), value(&after.headers)),
        (
            "listeners",
            value(&before.listeners),
            value(&after.listeners),
        ),
        ("labels", value(&before.labels), value(&after.labels)),
        ("upstream", value(&before.upstream), value(&after.upstream)),
        ("upgrades", value(&before.upgrades), value(&after.upgrades)),
        (
            "revocation",
            value(&before.revocation),
            value(&after.revocation),
        ),
        ("paths", value(&before.paths), value(&after.paths)),
    ] {
        add(what, false, old, new);
    }
}
