//! Input documents to compare the two engines on, derived from the policy's own words.
//!
//! Random documents would all be denied at the first rule. These start from a plausible request, or
//! from an input of the policy's own tests, and then put the literals that the source compares with
//! into the paths that it reads, take members away, and give them wrong types.

use std::collections::{BTreeMap, BTreeSet};

use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};
use regorus::Value;

use crate::authz::published::InputDocument;
use crate::authz::source::check::Analysis;
use crate::document::{from_json, object};

/// Most words that are kept of a source.
const MAX_WORDS: usize = 2_000;

/// An endless, repeatable supply of input documents.
pub(in crate::authz) struct Generator {
    rng: StdRng,
    bases: Vec<Value>,
    paths: Vec<(Vec<String>, Vec<Value>)>,
    words: Vec<Value>,
    document: InputDocument,
    next: usize,
}

impl Generator {
    pub(in crate::authz) fn new(
        analysis: &Analysis,
        tests: Vec<Value>,
        data: &Value,
        seed: u64,
        document: InputDocument,
    ) -> Self {
        let example = document.example().map(ToString::to_string);
        let example = example.and_then(|text| from_json(text.as_bytes()).ok());
        let mut bases: Vec<Value> = example.into_iter().collect();
        bases.extend(tests);
        let mut words: BTreeSet<Value> = analysis.words.clone();
        gather(data, 0, &mut words);
        let words: Vec<Value> = words.into_iter().take(MAX_WORDS).collect();
        let mut paths: BTreeMap<Vec<String>, Vec<Value>> = document
            .paths()
            .iter()
            .map(|path| (path.clone(), Vec::new()))
            .collect();
        for (path, values) in &analysis.compared {
            paths.insert(path.clone(), values.iter().cloned().collect());
        }
        Self {
            rng: StdRng::seed_from_u64(seed),
            bases,
            paths: paths.into_iter().collect(),
            words,
            document,
            next: 0,
        }
    }

    /// The next document. The first are the bases as they are, and an empty input.
    pub(in crate::authz) fn next(&mut self) -> Value {
        let index = self.next;
        self.next += 1;
        if let Some(base) = self.bases.get(index) {
            return base.clone();
        }
        if index == self.bases.len() {
            return Value::new_object();
        }
        let mut input = self
            .bases
            .choose(&mut self.rng)
            .cloned()
            .unwrap_or_else(Value::new_object);
        for _ in 0..self.rng.random_range(1..=6) {
            let Some((path, near)) = self.paths.choose(&mut self.rng).cloned() else {
                break;
            };
            let change = self.change(&near);
            if !possible(self.document, &path, change.as_ref()) {
                continue;
            }
            input = set(input, &path, change.as_ref());
        }
        input
    }

    /// A value to put into a path; `None` takes the member away.
    fn change(&mut self, near: &[Value]) -> Option<Value> {
        match self.rng.random_range(0..20) {
            0 => None,
            1 => Some(Value::Null),
            2 => Some(Value::from(self.rng.random::<bool>())),
            3 if self.rng.random() => Some(Value::from(self.rng.random_range(-2..100_i64))),
            // A time in nanoseconds, on some hour of three days.
            3 => {
                let hours = self.rng.random_range(0..72_i64);
                Some(Value::from(
                    1_768_435_200_000_000_000 + hours * 3_600_000_000_000,
                ))
            }
            4 => Some(Value::from("")),
            5 => Some(Value::new_array()),
            6 => Some(Value::new_object()),
            7 | 8 => {
                let count = self.rng.random_range(1..4);
                Some(Value::from(
                    (0..count).map(|_| self.word(near)).collect::<Vec<_>>(),
                ))
            }
            9 => {
                let (key, value) = (self.word(near), self.word(near));
                Some(object([(key, value)]))
            }
            _ => Some(self.word(near)),
        }
    }

    /// Mostly what the source compares this path with, else any of its words.
    fn word(&mut self, near: &[Value]) -> Value {
        let pool = if near.is_empty() || self.rng.random_ratio(1, 4) {
            &self.words
        } else {
            near
        };
        pool.choose(&mut self.rng)
            .cloned()
            .unwrap_or_else(|| Value::from("x"))
    }
}

/// Whether a request can have this value there: some members are always there, with one type.
fn possible(document: InputDocument, path: &[String], value: Option<&Value>) -> bool {
    let path = path.join(".");
    if document.is_text(&path) {
        matches!(value, Some(Value::String(_)))
    } else if document.is_collection(&path) {
        matches!(value, Some(Value::Array(_) | Value::Object(_)))
    } else {
        true
    }
}

/// `input` with `path` set; objects on the way are made where there is something else.
pub(in crate::authz) fn set(input: Value, path: &[String], value: Option<&Value>) -> Value {
    let Some((first, rest)) = path.split_first() else {
        return value.cloned().unwrap_or(Value::Null);
    };
    let mut members: BTreeMap<Value, Value> = match input.as_object() {
        Ok(object) => object.iter().map(|(k, v)| (k.clone(), v.clone())).collect(),
        Err(_) => BTreeMap::new(),
    };
    let key = Value::from(first.as_str());
    if rest.is_empty() && value.is_none() {
        members.remove(&key);
    } else {
        let inner = members.remove(&key).unwrap_or(Value::Null);
        members.insert(key, set(inner, rest, value));
    }
    Value::from(members)
}

/// The strings and numbers of a data document.
pub(in crate::authz) fn gather(value: &Value, depth: usize, words: &mut BTreeSet<Value>) {
    if depth > crate::document::MAX_DEPTH || words.len() >= MAX_WORDS {
        return;
    }
    if let Ok(object) = value.as_object() {
        for (key, value) in object.iter() {
            words.insert(key.clone());
            gather(value, depth + 1, words);
        }
    } else if let Ok(array) = value.as_array() {
        for value in array.iter() {
            gather(value, depth + 1, words);
        }
    } else if matches!(value, Value::String(_) | Value::Number(_)) {
        words.insert(value.clone());
    }
}
