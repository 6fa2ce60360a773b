//! What kind of value stands where: the published schema of `input`, and data, as types.
//!
//! A type errs on the side of "anything": what is not known is [`Type::Any`], and nothing is said of it.

#![expect(
    clippy::wildcard_enum_match_arm,
    reason = "what is not named is not known, and nothing is said of it"
)]

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use regorus::Value;

/// How deep schemas and data are looked into.
const MAX_DEPTH: usize = 12;

/// Most members of a data object whose kinds are told apart.
const MAX_MEMBERS: usize = 256;

/// What is known of a text.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(in crate::authz) struct Text {
    /// The only values it can have.
    pub(in crate::authz) values: Option<BTreeSet<String>>,
    /// The form that every value has.
    pub(in crate::authz) form: Form,
    /// Whether this is so by the configuration alone.
    pub(in crate::authz) configured: bool,
}

/// A form of texts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(in crate::authz) enum Form {
    /// Any.
    #[default]
    Free,
    /// Upper case: methods.
    Upper,
    /// Lower case: hosts and names of headers.
    Lower,
    /// Begins with a slash.
    Path,
}

impl Form {
    pub(in crate::authz) fn fits(self, text: &str) -> bool {
        match self {
            Self::Free => true,
            Self::Upper => !text.bytes().any(|b| b.is_ascii_lowercase()),
            Self::Lower => !text.bytes().any(|b| b.is_ascii_uppercase()),
            Self::Path => text.starts_with('/'),
        }
    }

    /// The text as it would have to be written.
    pub(in crate::authz) fn mended(self, text: &str) -> String {
        match self {
            Self::Free => text.to_owned(),
            Self::Upper => text.to_ascii_uppercase(),
            Self::Lower => text.to_ascii_lowercase(),
            Self::Path => format!("/{text}"),
        }
    }
}

/// What is known of an object.
#[derive(Debug, Clone, PartialEq, Default)]
pub(in crate::authz) struct Object {
    /// Members by name, and whether they are always there.
    pub(in crate::authz) fields: BTreeMap<String, (Type, bool)>,
    /// What other members are; `None` when there are no others.
    pub(in crate::authz) rest: Option<Box<Type>>,
    /// The form of the names of other members.
    pub(in crate::authz) names: Form,
    /// Names that are never there, and why.
    pub(in crate::authz) never: BTreeMap<String, String>,
    /// Whether this is so by the configuration alone.
    pub(in crate::authz) configured: bool,
}

/// The kind of a value, as far as it is known.
#[derive(Debug, Clone, PartialEq)]
pub(in crate::authz) enum Type {
    Any,
    Null,
    Bool,
    Number,
    Text(Text),
    List(Box<Self>),
    Set(Box<Self>),
    Object(Arc<Object>),
    OneOf(Vec<Self>),
}

impl Type {
    pub(in crate::authz) fn text() -> Self {
        Self::Text(Text::default())
    }

    /// One of both.
    pub(in crate::authz) fn or(self, other: Self) -> Self {
        if self == other {
            return self;
        }
        if let (Self::Text(a), Self::Text(b)) = (&self, &other) {
            let values = match (&a.values, &b.values) {
                (Some(a), Some(b)) => Some(a.union(b).cloned().collect()),
                _ => None,
            };
            let form = if a.form == b.form { a.form } else { Form::Free };
            let configured = a.configured || b.configured;
            return Self::Text(Text {
                values,
                form,
                configured,
            });
        }
        let mut all = Vec::new();
        for one in [self, other] {
            match one {
                Self::Any => return Self::Any,
                Self::OneOf(several) => all.extend(several),
                single => all.push(single),
            }
        }
        if all.len() > MAX_DEPTH {
            return Self::Any;
        }
        Self::OneOf(all)
    }

    /// The kinds it may be of, as bits.
    fn kinds(&self) -> u8 {
        match self {
            Self::Any => u8::MAX,
            Self::Null => 1,
            Self::Bool => 2,
            Self::Number => 4,
            Self::Text(_) => 8,
            Self::List(_) => 16,
            Self::Set(_) => 32,
            Self::Object(_) => 64,
            Self::OneOf(several) => several.iter().map(Self::kinds).fold(0, |a, b| a | b),
        }
    }

    /// Whether a value can be of both.
    pub(in crate::authz) fn meets(&self, other: &Self) -> bool {
        self.kinds() & other.kinds() != 0
    }

    /// Whether nothing is known.
    pub(in crate::authz) fn is_any(&self) -> bool {
        matches!(self, Self::Any)
    }

    /// What is known of it as a text, if it can be nothing else but null.
    pub(in crate::authz) fn as_text(&self) -> Option<&Text> {
        match self {
            Self::Text(text) => Some(text),
            Self::OneOf(several) => {
                let mut texts = several.iter().filter(|one| **one != Self::Null);
                match (texts.next(), texts.next()) {
                    (Some(Self::Text(text)), None) => Some(text),
                    _ => None,
                }
            }
            _ => None,
        }
    }

    /// What the elements of a collection are.
    pub(in crate::authz) fn element(&self) -> Self {
        match self {
            Self::List(element) | Self::Set(element) => (**element).clone(),
            Self::Object(object) => object
                .fields
                .values()
                .map(|(ty, _)| ty.clone())
                .chain(object.rest.as_deref().cloned())
                .reduce(Self::or)
                .unwrap_or(Self::Any),
            _ => Self::Any,
        }
    }

    /// In words.
    pub(in crate::authz) fn words(&self) -> String {
        match self {
            Self::Any => "anything".to_owned(),
            Self::Null => "null".to_owned(),
            Self::Bool => "a boolean".to_owned(),
            Self::Number => "a number".to_owned(),
            Self::Text(_) => "a string".to_owned(),
            Self::List(_) => "an array".to_owned(),
            Self::Set(_) => "a set".to_owned(),
            Self::Object(_) => "an object".to_owned(),
            Self::OneOf(several) => {
                let words: BTreeSet<String> = several.iter().map(Self::words).collect();
                words.into_iter().collect::<Vec<_>>().join(" or ")
            }
        }
    }

    /// The type of a literal or of data.
    pub(in crate::authz) fn of_value(value: &Value) -> Self {
        Self::of_value_at(value, 0)
    }

    fn of_value_at(value: &Value, depth: usize) -> Self {
        if depth > MAX_DEPTH {
            return Self::Any;
        }
        let all = |items: &mut dyn Iterator<Item = &Value>| {
            items
                .take(MAX_MEMBERS)
                .map(|item| Self::of_value_at(item, depth + 1))
                .reduce(Self::or)
                .unwrap_or(Self::Any)
        };
        match value {
            Value::Null => Self::Null,
            Value::Bool(_) => Self::Bool,
            Value::Number(_) => Self::Number,
            Value::String(text) => Self::Text(Text {
                values: Some(BTreeSet::from([text.to_string()])),
                form: Form::Free,
                configured: false,
            }),
            Value::Array(items) => Self::List(Box::new(all(&mut items.iter()))),
            Value::Set(items) => Self::Set(Box::new(all(&mut items.iter()))),
            Value::Object(members) => {
                let rest = all(&mut members.iter().map(|(_, value)| value));
                Self::Object(Arc::new(Object {
                    rest: Some(Box::new(rest)),
                    ..Object::default()
                }))
            }
            Value::Undefined => Self::Any,
        }
    }

    /// Reads a JSON Schema, as far as it says what a path leads to.
    pub(in crate::authz) fn of_schema(schema: &serde_json::Value) -> Self {
        Self::of_schema_at(schema, schema, 0)
    }

    fn of_schema_at(root: &serde_json::Value, schema: &serde_json::Value, depth: usize) -> Self {
        if depth > MAX_DEPTH {
            return Self::Any;
        }
        let deeper = |inner: &serde_json::Value| Self::of_schema_at(root, inner, depth + 1);
        if let Some(name) = schema.get("$ref").and_then(|name| name.as_str()) {
            let found = name.strip_prefix('#').and_then(|path| root.pointer(path));
            return found.map_or(Self::Any, deeper);
        }
        for key in ["anyOf", "oneOf"] {
            if let Some(several) = schema.get(key).and_then(|several| several.as_array()) {
                return several
                    .iter()
                    .map(deeper)
                    .reduce(Self::or)
                    .unwrap_or(Self::Any);
            }
        }
        if let Some(several) = schema.get("type").and_then(|kinds| kinds.as_array()) {
            return several
                .iter()
                .filter_map(|kind| kind.as_str())
                .map(|kind| Self::of_kind(kind, root, schema, depth))
                .reduce(Self::or)
                .unwrap_or(Self::Any);
        }
        match schema.get("type").and_then(|kind| kind.as_str()) {
            Some(kind) => Self::of_kind(kind, root, schema, depth),
            None => match schema.get("const").or_else(|| schema.get("enum")) {
                Some(serde_json::Value::Number(_)) => Self::Number,
                Some(serde_json::Value::String(_) | serde_json::Value::Array(_)) => {
                    Self::of_kind("string", root, schema, depth)
                }
                _ => Self::Any,
            },
        }
    }

    fn of_kind(
        kind: &str,
        root: &serde_json::Value,
        schema: &serde_json::Value,
        depth: usize,
    ) -> Self {
        let deeper = |inner: &serde_json::Value| Self::of_schema_at(root, inner, depth + 1);
        let texts = |value: Option<&serde_json::Value>| -> Option<BTreeSet<String>> {
            match value? {
                serde_json::Value::String(text) => Some(BTreeSet::from([text.clone()])),
                serde_json::Value::Array(items) => items
                    .iter()
                    .filter(|item| !item.is_null())
                    .map(|item| item.as_str().map(str::to_owned))
                    .collect(),
                _ => None,
            }
        };
        match kind {
            "null" => Self::Null,
            "boolean" => Self::Bool,
            "number" | "integer" => Self::Number,
            "string" => Self::Text(Text {
                values: texts(schema.get("enum").or_else(|| schema.get("const"))),
                form: Form::Free,
                configured: false,
            }),
            "array" => Self::List(Box::new(schema.get("items").map_or(Self::Any, deeper))),
            "object" => {
                let required: Vec<&str> = schema
                    .get("required")
                    .and_then(|names| names.as_array())
                    .into_iter()
                    .flatten()
                    .filter_map(|name| name.as_str())
                    .collect();
                let mut object = Object::default();
                let members = schema.get("properties").and_then(|all| all.as_object());
                for (name, member) in members.into_iter().flatten() {
                    let always = required.contains(&name.as_str());
                    object.fields.insert(name.clone(), (deeper(member), always));
                }
                object.rest = match schema.get("additionalProperties") {
                    Some(serde_json::Value::Bool(false)) => None,
                    None if members.is_some() => None,
                    Some(inner) if inner.is_object() => Some(Box::new(deeper(inner))),
                    _ => Some(Box::new(Self::Any)),
                };
                Self::Object(Arc::new(object))
            }
            _ => Self::Any,
        }
    }

    /// The same with the member at this path made anew.
    pub(in crate::authz) fn with(self, path: &[&str], change: &dyn Fn(Self) -> Self) -> Self {
        let Some((first, rest)) = path.split_first() else {
            return change(self);
        };
        match self {
            Self::Object(object) => {
                let mut object = Arc::unwrap_or_clone(object);
                if let Some((ty, always)) = object.fields.remove(*first) {
                    let changed = ty.with(rest, change);
                    object.fields.insert((*first).to_owned(), (changed, always));
                }
                Self::Object(Arc::new(object))
            }
            Self::OneOf(several) => Self::OneOf(
                several
                    .into_iter()
                    .map(|one| one.with(path, change))
                    .collect(),
            ),
            other => other,
        }
    }
}
