//! Strict JSON: what two readers could understand differently is refused.
//!
//! Duplicate members (RFC 7515 section 4 allows refusing them; readers disagree which one counts),
//! nesting beyond [`MAX_DEPTH`], numbers that no double can hold and anything behind the document
//! are errors. The result is the representation the policy engine reads.

use std::collections::BTreeMap;
use std::fmt;

use serde::de::{self, DeserializeSeed, MapAccess, SeqAccess, Visitor};

use crate::document::Value;

/// Deepest nesting of arrays and objects.
pub(super) const MAX_DEPTH: usize = 32;

/// Parses one document.
///
/// # Errors
/// `()`: the text of the parser's error could quote the document.
pub(super) fn parse(bytes: &[u8]) -> Result<Value, ()> {
    let mut reader = serde_json::Deserializer::from_slice(bytes);
    let value = Strict(MAX_DEPTH).deserialize(&mut reader).map_err(drop)?;
    reader.end().map_err(drop)?;
    Ok(value)
}

/// Parses a document that must be an object.
///
/// # Errors
/// As [`parse`], and when it is something else.
pub(super) fn parse_object(bytes: &[u8]) -> Result<Value, ()> {
    let value = parse(bytes)?;
    if value.as_object().is_ok() {
        Ok(value)
    } else {
        Err(())
    }
}

/// Builds a value, with so many levels left.
struct Strict(usize);

impl Strict {
    fn deeper<E: de::Error>(&self) -> Result<usize, E> {
        self.0.checked_sub(1).ok_or_else(|| E::custom("too deep"))
    }
}

impl<'de> DeserializeSeed<'de> for Strict {
    type Value = Value;

    fn deserialize<D: de::Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Strict {
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

    fn visit_f64<E: de::Error>(self, value: f64) -> Result<Value, E> {
        if value.is_finite() {
            Ok(Value::from(value))
        } else {
            Err(E::custom("number out of range"))
        }
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(Value::from(value))
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Value, A::Error> {
        let depth = self.deeper()?;
        let mut array = Vec::new();
        while let Some(item) = items.next_element_seed(Self(depth))? {
            array.push(item);
        }
        Ok(Value::from(array))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut members: A) -> Result<Value, A::Error> {
        let depth = self.deeper()?;
        let mut object: Vec<(Value, Value)> = Vec::new();
        while let Some(name) = members.next_key_seed(Name)? {
            object.push((name, members.next_value_seed(Self(depth))?));
        }
        let named = object.len();
        // In the order of their names: from a list, a tree is built at one go.
        let object: BTreeMap<Value, Value> = object.into_iter().collect();
        if object.len() < named {
            return Err(de::Error::custom("duplicate member"));
        }
        Ok(Value::from(object))
    }
}

/// Reads the name of a member.
struct Name;

impl<'de> DeserializeSeed<'de> for Name {
    type Value = Value;

    fn deserialize<D: de::Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_str(self)
    }
}

impl Visitor<'_> for Name {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the name of a member")
    }

    fn visit_str<E>(self, name: &str) -> Result<Value, E> {
        Ok(Value::from(name))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn duplicate_members_are_refused_at_any_depth_and_under_any_escape() {
        assert!(parse(br#"{"a":1,"b":{"a":2}}"#).is_ok());
        assert!(parse(br#"{"a":1,"a":1}"#).is_err());
        assert!(parse(br#"{"x":[{"a":1,"a":2}]}"#).is_err());
        assert!(parse(br#"{"sub":1,"su\u0062":2}"#).is_err());
    }

    #[test]
    fn what_is_not_exactly_one_json_document_is_refused() {
        for text in [
            "",
            " ",
            "{} {}",
            "{},",
            "{'a':1}",
            "{\"a\":1,}",
            "{\"a\":01}",
            "[1,]",
            "\u{feff}{}",
            "{\"a\":1e999}",
            "{\"a\":NaN}",
            "// x\n{}",
            "{\"a\":\"\\ud800\"}",
            "{\"a\":\"\n\"}",
        ] {
            assert!(parse(text.as_bytes()).is_err(), "{text:?}");
        }
        assert!(parse(b"{\"a\":\"\xff\"}").is_err());
        let digits = format!("{{\"a\":{}}}", "9".repeat(20_000));
        assert!(parse(digits.as_bytes()).is_err());
        assert!(parse_object(b"[1]").is_err());
    }

    #[test]
    fn nesting_has_a_bound() {
        let nested = |n: usize| format!("{}{}", "[".repeat(n), "]".repeat(n));
        assert!(parse(nested(MAX_DEPTH).as_bytes()).is_ok());
        assert!(parse(nested(MAX_DEPTH + 1).as_bytes()).is_err());
        assert!(parse(nested(100_000).as_bytes()).is_err());
    }
}
