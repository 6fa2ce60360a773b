//! What the README, `gateway.yaml` and the crate documentation say is so.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use portcullis::authn;
use portcullis::authz::{DecidedBy, Denial, Reason, Ruling, StepUp};
use portcullis::config::Document;
use portcullis::limit::Exceeded;
use portcullis::refusal::Refusal;
use portcullis::request::{Malformed, UpgradeFault};
use portcullis::upstream::{self, RequestBodyFault};
use serde_json::Value;

use crate::support::gateway::World;

const README: &str = include_str!("../../README.md");
const CRATE: &str = include_str!("../../src/lib.rs");
const AUDIT: &str = include_str!("../../src/audit/mod.rs");

/// The part of the README under this headline.
fn section(title: &str) -> &'static str {
    let start = README
        .find(&format!("\n## {title}\n"))
        .unwrap_or_else(|| panic!("no section {title}"));
    let text = &README[start + 1..];
    &text[..text[1..].find("\n## ").map_or(text.len(), |end| end + 1)]
}

/// The cells of a table's rows, without headlines.
fn rows(text: &str) -> impl Iterator<Item = Vec<&str>> {
    text.lines()
        .filter(|line| {
            line.starts_with("| `") || line.starts_with("| 4") || line.starts_with("| 5")
        })
        .map(|line| line.trim_matches('|').split(" | ").map(str::trim).collect())
}

/// Words in backticks.
fn quoted(text: &str) -> impl Iterator<Item = &str> {
    text.split('`').skip(1).step_by(2)
}

/// How the reference writes a default.
fn default_text(property: &Value, required: bool) -> String {
    match &property["default"] {
        _ if required => "required".to_owned(),
        Value::String(text) => format!("`{text}`"),
        Value::Bool(_) | Value::Number(_) => format!("`{}`", property["default"]),
        Value::Array(list) if !list.is_empty() => {
            let words: Vec<&str> = list.iter().map(|word| word.as_str().unwrap()).collect();
            format!("`[{}]`", words.join(", "))
        }
        _ => "–".to_owned(),
    }
}

/// Every key of the schema that has no keys below it, with its default. Blocks with names of the
/// user's choice are `NAME`, entries of lists `[]`.
fn schema_keys() -> BTreeMap<String, String> {
    fn definition<'a>(root: &'a Value, schema: &'a Value) -> Option<&'a Value> {
        let alternatives = schema["anyOf"].as_array().into_iter().flatten();
        let target = std::iter::once(schema)
            .chain(alternatives)
            .find_map(|s| s["$ref"].as_str())?;
        root["$defs"].get(target.rsplit('/').next()?)
    }
    fn visit(root: &Value, schema: &Value, path: &str, found: &mut BTreeMap<String, String>) {
        let required: BTreeSet<&str> = schema["required"]
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(Value::as_str)
            .collect();
        for (key, property) in schema["properties"].as_object().unwrap() {
            let path = if path.is_empty() {
                key.clone()
            } else {
                format!("{path}.{key}")
            };
            let (inner, below) = if property["additionalProperties"].is_object() {
                (&property["additionalProperties"], format!("{path}.NAME"))
            } else if property["items"].is_object() {
                (&property["items"], format!("{path}[]"))
            } else {
                (property, path.clone())
            };
            match definition(root, inner).filter(|inner| inner["properties"].is_object()) {
                Some(inner) => visit(root, inner, &below, found),
                None => {
                    let default = default_text(property, required.contains(key.as_str()));
                    alternatives(root, inner, &below, found);
                    found.insert(path, default);
                }
            }
        }
    }
    /// What is a word or a block with one key: the keys in that.
    fn alternatives(
        root: &Value,
        schema: &Value,
        path: &str,
        found: &mut BTreeMap<String, String>,
    ) {
        let schema = definition(root, schema).unwrap_or(schema);
        for kind in ["anyOf", "oneOf"] {
            for choice in schema[kind].as_array().into_iter().flatten() {
                alternatives(root, choice, path, found);
                for (key, property) in choice["properties"].as_object().into_iter().flatten() {
                    if let Some(block) = definition(root, property)
                        && block["properties"].is_object()
                    {
                        visit(root, block, &format!("{path}.{key}"), found);
                    }
                }
            }
        }
    }
    let root = schemars::schema_for!(Document).to_value();
    let mut found = BTreeMap::new();
    visit(&root, &root, "", &mut found);
    found
}

#[test]
fn every_key_and_default_is_in_the_reference_and_nothing_else() {
    let schema = schema_keys();
    assert!(schema.len() > 100, "{}", schema.len());
    let mut reference = BTreeMap::new();
    for part in section("Configuration reference").split("\n### ").skip(1) {
        let prefix = quoted(part).next().unwrap_or_default();
        for row in rows(part) {
            let key = row[0].trim_matches('`');
            let path = match prefix {
                "gateway.yaml" => key.to_owned(),
                _ => format!("{prefix}.{key}"),
            };
            assert!(
                reference.insert(path.clone(), row[1].to_owned()).is_none(),
                "{path} twice"
            );
        }
    }
    let lines = |map: &BTreeMap<String, String>| -> BTreeSet<String> {
        map.iter()
            .map(|(key, default)| format!("{key} = {default}"))
            .collect()
    };
    let (schema, reference) = (lines(&schema), lines(&reference));
    let missing: Vec<_> = schema.difference(&reference).collect();
    let wrong: Vec<_> = reference.difference(&schema).collect();
    assert!(
        missing.is_empty() && wrong.is_empty(),
        "README, Configuration reference\nmissing: {missing:#?}\nnot in the schema: {wrong:#?}"
    );
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        if entry.path().is_dir() {
            copy(&entry.path(), &to.join(entry.file_name()));
            continue;
        }
        fs::copy(entry.path(), to.join(entry.file_name())).unwrap();
    }
}

#[test]
fn the_shipped_configuration_loads_and_warns_of_the_open_route_alone() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let folder = tempfile::tempdir().unwrap();
    fs::copy(
        root.join("gateway.yaml"),
        folder.path().join("gateway.yaml"),
    )
    .unwrap();
    copy(&root.join("policies"), &folder.path().join("policies"));
    let portcullis = |arguments: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_portcullis"));
        let output = command
            .args(arguments)
            .current_dir(folder.path())
            .output()
            .unwrap();
        assert!(output.status.success(), "{output:?}");
        output.stdout
    };
    portcullis(&["dev", "--certificates-only"]);
    let answer: Value =
        serde_json::from_slice(&portcullis(&["check", "--format", "json"])).unwrap();
    let problems = answer["problems"].as_array().unwrap();
    assert_eq!(problems.len(), 1, "{answer:#}");
    assert_eq!(problems[0]["severity"], "warning", "{answer:#}");
    assert!(
        problems[0]["message"]
            .as_str()
            .unwrap()
            .contains("open to everybody"),
        "{answer:#}"
    );
}

/// One refusal of each kind.
fn refusals() -> Vec<Refusal> {
    let denied = |reason, step_up| {
        let decided_by = DecidedBy::new("orders", "1");
        Refusal::from(Denial {
            reason,
            status: None,
            message: None,
            headers: Vec::new(),
            step_up,
            decided_by,
            body: None,
            metadata: None,
            detail: None,
            ruling: Ruling::default(),
        })
    };
    let denial = |step_up| denied(Reason::Undefined, step_up);
    let failure = |failure| Refusal::Unauthenticated {
        failure,
        bearer: true,
    };
    let rejected = authn::Failure::Rejected {
        code: "token.expired",
        reason: String::new(),
        issuer: None,
    };
    let mut all: Vec<Refusal> = [
        Malformed::Host,
        Malformed::HostMismatch,
        Malformed::Scheme,
        Malformed::Path("dots"),
        Malformed::Query,
        Malformed::Framing,
        Malformed::HeaderValue,
        Malformed::Expectation,
        Malformed::Method,
        Malformed::Misdirected,
        Malformed::TooLarge,
        Malformed::Upgrade(UpgradeFault::Key),
        Malformed::Upgrade(UpgradeFault::Version),
        Malformed::Upgrade(UpgradeFault::Protocol),
    ]
    .map(Refusal::Malformed)
    .into();
    all.extend([
        Refusal::NoRoute,
        failure(authn::Failure::Missing),
        failure(rejected),
        failure(authn::Failure::Confused),
        failure(authn::Failure::Unavailable {
            source_name: Arc::from("dev"),
        }),
        denial(None),
        denied(Reason::Unavailable, None),
        denied(Reason::Body, None),
        denial(Some(StepUp {
            acr_values: Vec::new(),
            max_age: None,
        })),
        Refusal::Throttled(Exceeded {
            limit: "per-address".into(),
            retry_after: Duration::from_secs(1),
            quota: Default::default(),
        }),
        Refusal::DeadlinePassed,
        Refusal::Overloaded("draining"),
        Refusal::Internal,
    ]);
    all.extend(
        [
            upstream::Failure::Unreachable(String::new()),
            upstream::Failure::Broken(String::new()),
            upstream::Failure::Saturated,
            upstream::Failure::Slow("head"),
            upstream::Failure::RequestBody(RequestBodyFault::TooLarge),
            upstream::Failure::RequestBody(RequestBodyFault::TooSlow),
            upstream::Failure::RequestBody(RequestBodyFault::BrokenOff),
        ]
        .map(Refusal::Upstream),
    );
    all
}

#[test]
fn the_table_of_refusals_is_the_one_in_force() {
    let pair = |status: &str, code: &str| format!("{status} {code}");
    let real: BTreeSet<String> = refusals()
        .iter()
        .map(Refusal::public)
        .map(|public| pair(public.status.as_str(), public.code))
        .collect();
    let told: BTreeSet<String> = rows(section("What clients get"))
        .map(|row| pair(row[0], row[1].trim_matches('`')))
        .collect();
    assert_eq!(told, real);
}

#[test]
fn the_example_record_has_the_members_of_a_real_one() {
    let world = World::start();
    assert_eq!(
        world.gateway.bearer("/a", &world.token("alice")).status,
        200
    );
    let id = world
        .upstream
        .last()
        .header("x-request-id")
        .unwrap()
        .to_owned();
    let real = world.gateway.record(&id);

    let text = section("The record");
    let example = text
        .split("```json\n")
        .nth(1)
        .unwrap()
        .split("```")
        .next()
        .unwrap();
    let example: Value = serde_json::from_str(example).unwrap();
    let members = |value: &Value| -> BTreeSet<String> {
        value.as_object().unwrap().keys().cloned().collect()
    };
    assert_eq!(members(&example), members(&real));
    for inner in ["caller", "policy", "duration_ms"] {
        assert_eq!(members(&example[inner]), members(&real[inner]), "{inner}");
    }
    for (place, told) in [("README", text), ("audit", AUDIT)] {
        for member in members(&real) {
            let row = told.lines().any(|line| {
                let line = line.trim_start_matches("//! ");
                line.starts_with("| ")
                    && quoted(line.split(" | ").next().unwrap()).any(|name| name == member)
            });
            assert!(row, "{place} does not explain `{member}`");
        }
    }
}

#[test]
fn every_invariant_names_tests_that_exist() {
    let list = CRATE
        .split("# Invariants")
        .nth(1)
        .unwrap()
        .split("# As a library")
        .next()
        .unwrap();
    let mut entries: Vec<String> = Vec::new();
    for line in list.lines().map(|line| line.trim_start_matches("//!")) {
        if line.trim_start().starts_with(|c: char| c.is_ascii_digit()) {
            entries.push(String::new());
        }
        if let Some(entry) = entries.last_mut() {
            entry.push_str(line);
        }
    }
    assert_eq!(entries.len(), 10);
    for entry in entries {
        let tests: Vec<&str> = quoted(&entry).filter(|name| name.contains("::")).collect();
        assert!(!tests.is_empty(), "no test: {entry}");
        for test in tests {
            let (topic, name) = test.split_once("::").unwrap();
            let file = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/it/{topic}.rs"));
            let text = fs::read_to_string(&file).unwrap_or_else(|error| panic!("{test}: {error}"));
            assert!(
                text.contains(&format!("#[test]\nfn {name}()")),
                "{test} does not exist"
            );
        }
    }
}
