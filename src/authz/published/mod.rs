//! What the documents that policies see as `input` look like: their JSON Schemas, as published, and
//! what can be told from them.
//!
//! The schemas are the interface and the source: which members are sure to be there, and of what
//! kind, is read from `required` and `type`, so that what is told to users and what the checks rely
//! on cannot differ. Tests hold the documents that are built against them.

#[cfg(test)]
mod tests;

use std::collections::BTreeSet;
use std::sync::LazyLock;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value as Json;

/// Which document a policy sees as `input`.
#[derive(
    Debug,
    Clone,
    Copy,
    Default,
    PartialEq,
    Eq,
    Hash,
    PartialOrd,
    Ord,
    Serialize,
    Deserialize,
    JsonSchema,
)]
#[serde(rename_all = "lowercase")]
pub enum InputDocument {
    /// Our own, version 1. Answers are `true`, `false`, or an object with `allow`.
    #[default]
    Portcullis,
    /// That of OPA's Envoy plugin. Answers are its too: `true`, `false`, or an object with `allowed`.
    Envoy,
}

/// What is sure of a document, by the path of the member with dots.
struct Members {
    schema: Json,
    texts: BTreeSet<String>,
    collections: BTreeSet<String>,
    present: BTreeSet<String>,
    /// Objects of any names, whose members are texts.
    maps: Vec<String>,
    /// All members that the schema names, sure or not.
    paths: Vec<Vec<String>>,
}

static PORTCULLIS: LazyLock<Members> =
    LazyLock::new(|| Members::read(include_str!("portcullis.json")));
static ENVOY: LazyLock<Members> = LazyLock::new(|| Members::read(include_str!("envoy.json")));

impl InputDocument {
    /// Both, in the order in which they are shown.
    pub const ALL: [Self; 2] = [Self::Portcullis, Self::Envoy];

    /// Its name in the configuration.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Portcullis => "portcullis",
            Self::Envoy => "envoy",
        }
    }

    fn members(self) -> &'static Members {
        match self {
            Self::Portcullis => &PORTCULLIS,
            Self::Envoy => &ENVOY,
        }
    }

    /// Its JSON Schema (draft 2020-12). Objects without `additionalProperties` have no other members
    /// than those that are named; the first of `examples` is a whole document.
    pub fn schema(self) -> &'static Json {
        &self.members().schema
    }

    /// A whole document, as a request could have it.
    pub(super) fn example(self) -> Option<&'static Json> {
        self.schema().get("examples")?.get(0)
    }

    /// Whether this member (`request.method`) is there on each request, and is a text.
    pub(super) fn is_text(self, path: &str) -> bool {
        self.members().texts.contains(path)
    }

    /// Whether this member is there on each request, and can be gone through: an array, or an object
    /// whose members have names of the request's or the route's own.
    pub(super) fn is_collection(self, path: &str) -> bool {
        self.members().collections.contains(path)
    }

    /// Whether this member is a text whenever it is there: a header, a value of the path's template.
    pub(super) fn is_text_or_absent(self, path: &str) -> bool {
        let below = |map: &String| {
            let rest = path.strip_prefix(map.as_str());
            rest.is_some_and(|rest| rest.starts_with('.'))
        };
        self.is_text(path) || self.members().maps.iter().any(below)
    }

    /// Whether this member is there on each request, if only as `null`.
    #[allow(dead_code, reason = "for the checks that look at whole policies")]
    pub(super) fn is_present(self, path: &str) -> bool {
        let members = self.members();
        [&members.present, &members.texts, &members.collections]
            .iter()
            .any(|some| some.contains(path))
    }

    /// The members that are there only when bodies are read.
    pub(super) const fn bodies(self) -> &'static [&'static [&'static str]] {
        match self {
            Self::Portcullis => &[&["request", "body"], &["request", "body_truncated"]],
            Self::Envoy => &[
                &["parsed_body"],
                &["truncated_body"],
                &["attributes", "request", "http", "body"],
                &["attributes", "request", "http", "rawBody"],
                &[
                    "attributes",
                    "request",
                    "http",
                    "headers",
                    "x-envoy-auth-partial-body",
                ],
            ],
        }
    }

    /// Whether what lies at this path holds a body, or is one.
    pub(super) fn holds_body(self, path: &[&str]) -> bool {
        let mut bodies = self.bodies().iter();
        bodies.any(|body| body.starts_with(path) || path.starts_with(body))
    }

    /// Every member that the document is known to have at times.
    pub(super) fn paths(self) -> &'static [Vec<String>] {
        &self.members().paths
    }
}

impl Members {
    fn read(text: &str) -> Self {
        let mut members = Self {
            // A schema that is no JSON is found by the tests; here it has no members.
            schema: serde_json::from_str(text).unwrap_or_default(),
            texts: BTreeSet::new(),
            collections: BTreeSet::new(),
            present: BTreeSet::new(),
            maps: Vec::new(),
            paths: Vec::new(),
        };
        let schema = members.schema.clone();
        members.walk(&schema, &mut Vec::new(), true);
        members
    }

    fn walk(&mut self, schema: &Json, path: &mut Vec<String>, sure: bool) {
        let kind = schema.get("type");
        let is = |name: &str| kind.and_then(Json::as_str) == Some(name);
        let open = schema
            .get("additionalProperties")
            .is_some_and(|more| *more != Json::Bool(false));
        // A name with a dot in it would be read as two.
        let plain = !path.is_empty() && !path.iter().any(|name| name.contains('.'));
        let more = schema.get("additionalProperties");
        let texts = more.and_then(|more| more.get("type")?.as_str()) == Some("string");
        if plain && texts {
            self.maps.push(path.join("."));
        }
        if sure && plain {
            let list = if is("string") {
                &mut self.texts
            } else if is("array") || is("object") && open {
                &mut self.collections
            } else {
                &mut self.present
            };
            list.insert(path.join("."));
        }
        if !path.is_empty() {
            self.paths.push(path.clone());
        }
        let Some(properties) = schema.get("properties").and_then(Json::as_object) else {
            return;
        };
        let required: BTreeSet<&str> = schema
            .get("required")
            .and_then(Json::as_array)
            .into_iter()
            .flatten()
            .filter_map(Json::as_str)
            .collect();
        for (name, schema) in properties {
            path.push(name.clone());
            // Below what may be null nothing is sure.
            let sure = sure && is("object") && required.contains(name.as_str());
            self.walk(schema, path, sure);
            path.pop();
        }
    }
}
