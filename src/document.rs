//! JSON-like documents in the representation the policy engine reads.
//!
//! Claims are parsed once per token straight into this form, so that a policy's input shares them
//! instead of copying them. This room and `authz` are the only ones that name regorus.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use serde::de::{DeserializeSeed, Deserializer, Error as _, MapAccess, SeqAccess, Visitor};

pub use regorus::Value;

/// How deep arrays and objects of a parsed document may nest.
pub const MAX_DEPTH: usize = 64;

/// From here on doubles do not tell whole numbers apart (RFC 7493 section 2.2).
const INEXACT: f64 = 9_007_199_254_740_992.0;

/// Why a document could not be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Unreadable {
    /// What is wrong, without the position.
    pub message: String,
    /// Line, from 1, when it is known.
    pub line: Option<usize>,
    /// Column, from 1, when it is known.
    pub column: Option<usize>,
}

/// How many values may still be read. What a document takes in memory is a matter of its values more
/// than of its bytes: a zero and its comma become thirty.
#[derive(Debug)]
pub struct Allowance(Cell<usize>);

impl Allowance {
    /// So many values: numbers, texts, arrays, objects and their members.
    pub fn of(values: usize) -> Self {
        Self(Cell::new(values))
    }

    /// As many as fit into the bytes.
    fn unbounded() -> Self {
        Self::of(usize::MAX)
    }

    fn take<E: serde::de::Error>(&self) -> Result<(), E> {
        let left = self.0.get().checked_sub(1);
        let left = left.ok_or_else(|| E::custom("there are too many values in it"))?;
        self.0.set(left);
        Ok(())
    }
}

/// Reads a JSON document. A member that occurs twice, nesting deeper than [`MAX_DEPTH`], a whole
/// number that is beyond 64 bits or not written as one and beyond 2^53, and anything behind the
/// document are refused: each can be read in two ways.
///
/// # Errors
/// [`Unreadable`], with the position.
pub fn from_json(bytes: &[u8]) -> Result<Value, Unreadable> {
    from_json_within(bytes, &Allowance::unbounded())
}

/// Reads a JSON document of so many values at most.
///
/// # Errors
/// [`Unreadable`], with the position.
pub fn from_json_within(bytes: &[u8], allowance: &Allowance) -> Result<Value, Unreadable> {
    let mut deserializer = serde_json::Deserializer::from_slice(bytes);
    let value = Strict::new(allowance)
        .deserialize(&mut deserializer)
        .and_then(|value| deserializer.end().map(|()| value));
    value.map_err(|error| {
        let (line, column) = (error.line(), error.column());
        let text = error.to_string();
        Unreadable {
            message: without_position(&text, " at line "),
            line: (line > 0).then_some(line),
            column: (line > 0).then_some(column.max(1)),
        }
    })
}

/// Reads a YAML document, by the rules of [`from_json`]. Keys must be strings.
///
/// # Errors
/// [`Unreadable`], with the position where the parser tells it.
pub fn from_yaml(bytes: &[u8]) -> Result<Value, Unreadable> {
    from_yaml_within(bytes, &Allowance::unbounded())
}

/// Reads a YAML document of so many values at most, aliases counted as what they stand for.
///
/// # Errors
/// [`Unreadable`], with the position where the parser tells it.
pub fn from_yaml_within(bytes: &[u8], allowance: &Allowance) -> Result<Value, Unreadable> {
    let deserializer = serde_yaml::Deserializer::from_slice(bytes);
    Strict::new(allowance)
        .deserialize(deserializer)
        .map_err(|error| {
            let location = error.location();
            Unreadable {
                message: without_position(&error.to_string(), " at line "),
                line: location.as_ref().map(serde_yaml::Location::line),
                column: location.as_ref().map(serde_yaml::Location::column),
            }
        })
}

fn without_position(text: &str, mark: &str) -> String {
    match text.rfind(mark) {
        Some(at) => text.get(..at).unwrap_or(text).to_owned(),
        None => text.to_owned(),
    }
}

/// Builds a [`Value`] while refusing what `serde_json::Value` would quietly fold together.
#[derive(Clone, Copy)]
struct Strict<'a> {
    depth: usize,
    allowance: &'a Allowance,
}

impl<'a> Strict<'a> {
    fn new(allowance: &'a Allowance) -> Self {
        Self {
            depth: 0,
            allowance,
        }
    }

    fn deeper<E: serde::de::Error>(&self) -> Result<Self, E> {
        if self.depth >= MAX_DEPTH {
            return Err(E::custom(format!("nested deeper than {MAX_DEPTH} levels")));
        }
        Ok(Self {
            depth: self.depth + 1,
            ..*self
        })
    }
}

impl<'de> DeserializeSeed<'de> for Strict<'_> {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        self.allowance.take()?;
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Strict<'_> {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(Value::from(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(Value::from(value))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(Value::from(value))
    }

    fn visit_f64<E: serde::de::Error>(self, value: f64) -> Result<Value, E> {
        if !value.is_finite() {
            return Err(E::custom("a number that is not finite"));
        }
        // Others might read another number here: an owner's, say.
        if value.abs() >= INEXACT {
            return Err(E::custom(
                "a number that is too large to be told from its neighbours: write it as text",
            ));
        }
        Ok(Value::from(value))
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(Value::from(value))
    }

    fn visit_string<E>(self, value: String) -> Result<Value, E> {
        Ok(Value::from(value))
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_none<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Value, A::Error> {
        let mut array = Vec::new();
        while let Some(item) = items.next_element_seed(self.deeper()?)? {
            array.push(item);
        }
        Ok(Value::from(array))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut members: A) -> Result<Value, A::Error> {
        let mut object: BTreeMap<Value, Value> = BTreeMap::new();
        while let Some(name) = members.next_key::<String>()? {
            let key = Value::from(name.as_str());
            if object.contains_key(&key) {
                return Err(A::Error::custom(format!("`{name}` occurs twice")));
            }
            object.insert(key, members.next_value_seed(self.deeper()?)?);
        }
        Ok(Value::from(object))
    }
}

/// An object from its members.
pub fn object<K: Into<Value>>(members: impl IntoIterator<Item = (K, Value)>) -> Value {
    Value::from(
        members
            .into_iter()
            .map(|(k, v)| (k.into(), v))
            .collect::<BTreeMap<_, _>>(),
    )
}

/// A string that shares its text.
pub fn string(text: &Arc<str>) -> Value {
    Value::String(Arc::clone(text))
}

/// An array of strings.
pub fn strings<T: AsRef<str>>(items: impl IntoIterator<Item = T>) -> Value {
    Value::from(
        items
            .into_iter()
            .map(|s| Value::from(s.as_ref()))
            .collect::<Vec<_>>(),
    )
}

/// The member `name` of an object; `None` when it is absent or `value` is no object.
pub fn member<'v>(value: &'v Value, name: &str) -> Option<&'v Value> {
    let members = members(value)?;
    if members.len() > FEW_MEMBERS {
        return members.get(&Value::from(name));
    }
    // Among a few, looking at each is cheaper than making the key that a look-up takes.
    members
        .iter()
        .find(|(key, _)| text(key).is_some_and(|key| **key == *name))
        .map(|(_, value)| value)
}

/// Not regorus's `as_object`: its error for another kind of value can cost more than a request.
fn members(value: &Value) -> Option<&regorus::value::Object> {
    if let Value::Object(members) = value {
        Some(members)
    } else {
        None
    }
}

/// Objects with so many members are looked through.
const FEW_MEMBERS: usize = 24;

/// The names of an object's members; none for another kind of value.
pub fn names(value: &Value) -> impl Iterator<Item = &str> {
    members(value)
        .into_iter()
        .flat_map(|members| members.iter())
        .filter_map(|(key, _)| text(key).map(AsRef::as_ref))
}

/// Follows a dotted path (`realm_access.roles`) through objects.
pub fn at<'v>(value: &'v Value, path: &str) -> Option<&'v Value> {
    path.split('.').try_fold(value, member)
}

/// A claim by its whole name first, since names may be URLs with dots in them, then by a dotted path.
pub fn claim<'v>(claims: &'v Value, name: &str) -> Option<&'v Value> {
    member(claims, name).or_else(|| at(claims, name))
}

/// The items of an array.
pub fn items(value: &Value) -> Option<&[Value]> {
    if let Value::Array(items) = value {
        Some(items.as_slice())
    } else {
        None
    }
}

/// The text of a string value.
pub fn text(value: &Value) -> Option<&Arc<str>> {
    if let Value::String(text) = value {
        Some(text)
    } else {
        None
    }
}

/// Puts the members of `from` into `into`; `Err` with the path, innermost member first, of a value that
/// both have. Costs what `from` has, for as long as nobody else holds `into`.
///
/// # Errors
/// That path; a part of `from` may be in `into` then.
pub fn merge(into: &mut Value, from: &Value) -> Result<(), Vec<String>> {
    let Some(right) = members(from) else {
        return Err(Vec::new());
    };
    match members(into) {
        None => return Err(Vec::new()),
        // The usual case, for which nothing is copied.
        Some(left) if left.is_empty() => {
            *into = from.clone();
            return Ok(());
        }
        Some(_) => {}
    }
    let Ok(left) = into.as_object_mut() else {
        return Err(Vec::new());
    };
    for (key, value) in right.iter() {
        match left.get_mut(key) {
            None => drop(left.insert(key.clone(), value.clone())),
            Some(present) => merge(present, value).map_err(|mut path| {
                path.push(text(key).map(ToString::to_string).unwrap_or_default());
                path
            })?,
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_member_that_occurs_twice_is_refused_with_its_position() {
        let json = from_json(b"{\n \"a\": {\"b\": 1, \"b\": 2}}").unwrap_err();
        assert_eq!(json.message, "`b` occurs twice");
        assert_eq!(json.line, Some(2));
        let yaml = from_yaml(b"a: 1\na: 2\n").unwrap_err();
        assert!(yaml.message.contains("twice"), "{yaml:?}");
    }

    #[test]
    fn depth_and_trailing_text_are_bounded() {
        let deep = format!("{}1{}", "[".repeat(65), "]".repeat(65));
        assert!(from_json(deep.as_bytes()).is_err());
        let fits = format!("{}1{}", "[".repeat(64), "]".repeat(64));
        assert!(from_json(fits.as_bytes()).is_ok());
        assert!(from_json(b"{} {}").is_err());
        assert!(from_yaml(b".nan").is_err());
        assert!(from_yaml(b"a: 1\n---\nb: 2\n").is_err());
    }

    #[test]
    fn numbers_that_others_may_read_as_others_are_refused() {
        for exact in [
            "18446744073709551615",
            "-9223372036854775808",
            "0.5",
            "9007199254740991.0",
            "1e15",
        ] {
            assert!(from_json(exact.as_bytes()).is_ok(), "{exact}");
            assert!(from_yaml(exact.as_bytes()).is_ok(), "{exact}");
        }
        for rounded in [
            "18446744073709551616",
            "100000000000000000001",
            "-9223372036854775809",
            "9007199254740993.0",
            "1e300",
        ] {
            let json = from_json(format!("{{\"owner\": {rounded}}}").as_bytes()).unwrap_err();
            assert!(json.message.contains("too large to be told"), "{json}");
            assert!(from_yaml(rounded.as_bytes()).is_err(), "{rounded}");
        }
    }

    #[test]
    fn values_are_counted_and_those_behind_an_alias_each_time() {
        let six = br#"{"a": [1, 2], "b": {"c": null}}"#;
        assert!(from_json_within(six, &Allowance::of(6)).is_ok());
        assert!(from_json_within(six, &Allowance::of(5)).is_err());
        let aliased = b"a: &a [1, 2]\nb: *a\n";
        assert!(from_yaml_within(aliased, &Allowance::of(7)).is_ok());
        assert!(from_yaml_within(aliased, &Allowance::of(6)).is_err());
        // One allowance for several documents.
        let both = Allowance::of(3);
        assert!(from_json_within(b"[1]", &both).is_ok());
        assert!(from_json_within(b"[1]", &both).is_err());
    }

    #[test]
    fn what_is_merged_is_there_once_or_named() {
        let read = |text: &str| from_json(text.as_bytes()).unwrap();
        let mut into = read(r#"{"a": {"b": 1}, "x": 1}"#);
        let held = into.clone();
        merge(&mut into, &read(r#"{"a": {"c": 2}, "y": 2}"#)).unwrap();
        assert_eq!(into, read(r#"{"a": {"b": 1, "c": 2}, "x": 1, "y": 2}"#));
        assert_eq!(held, read(r#"{"a": {"b": 1}, "x": 1}"#));
        let path = merge(&mut into, &read(r#"{"a": {"c": 3}}"#)).unwrap_err();
        assert_eq!(path, ["c", "a"]);
    }

    #[test]
    fn yaml_and_json_give_the_same_document() {
        let json = from_json(br#"{"a": [1, -2, 2.5, true, null, "x"]}"#).unwrap();
        let yaml = from_yaml(b"a: [1, -2, 2.5, true, null, x]").unwrap();
        assert_eq!(json, yaml);
        assert_eq!(
            at(&json, "a")
                .and_then(|a| a.as_array().ok())
                .map(|a| a.len()),
            Some(6)
        );
    }
}
