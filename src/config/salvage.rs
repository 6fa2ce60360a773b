//! Typed reading that does not stop at the first mistake.
//!
//! serde stops at the first problem of a value. [`read`] notes it, takes the offending part out of
//! the value, and reads again, until what is left can be read or is missing something that was
//! never there. What comes out of a value with problems is only good for finding further ones.

use std::collections::{BTreeMap, BTreeSet};

use schemars::JsonSchema;
use serde::de::DeserializeOwned;
use serde_path_to_error::Segment;
use serde_yaml::Value;

use crate::schema::{Compile, suggest};

/// How many problems of one block are reported.
const MAX_ROUNDS: usize = 64;

/// A value with the problems it had.
pub(super) struct Salvaged<T> {
    /// What could be read; `None` when something essential was missing.
    pub(super) value: Option<T>,
    /// Whether it was without problems.
    pub(super) clean: bool,
}

impl<T> Salvaged<T> {
    /// The value, if it was without problems.
    pub(super) fn clean(self) -> Option<T> {
        if self.clean { self.value } else { None }
    }
}

/// Reads `value` at the current place and reports all its problems.
pub(super) fn read<T: DeserializeOwned + JsonSchema>(
    mut value: Value,
    cx: &mut Compile,
) -> Salvaged<T> {
    if value.is_null() {
        // `local:` with nothing behind it: every key is missing, instead of "invalid type: null".
        value = Value::Mapping(serde_yaml::Mapping::new());
    }
    let mut taken = Taken::default();
    for round in 0..MAX_ROUNDS {
        let error = match serde_path_to_error::deserialize::<_, T>(value.clone()) {
            Ok(read) => {
                return Salvaged {
                    value: Some(read),
                    clean: round == 0,
                };
            }
            Err(error) => error,
        };
        let path: Vec<Step> = error.path().iter().filter_map(Step::of).collect();
        let message = error.into_inner().to_string();
        let cut = match Complaint::of(&message) {
            Complaint::Unknown(key, known) => {
                let parent = parent_of(&value, path, key);
                let place = format(&taken.original(&parent), Some(key));
                let known: Vec<&str> = known.collect();
                let help = match suggest(key, known.iter().copied()) {
                    Some(meant) => {
                        // The one it was meant to be is not missing as well.
                        taken
                            .keys
                            .insert(format(&taken.original(&parent), Some(meant)));
                        format!("did you mean `{meant}`?")
                    }
                    None => format!("known keys here: {}", known.join(", ")),
                };
                report(cx, &place, |cx| {
                    cx.key_problem(format!("unknown key `{key}`"), help);
                });
                Some([parent, vec![Step::Key(key.to_owned())]].concat())
            }
            Complaint::Missing(key) => {
                let place = taken.original(&path);
                let missing = if path.is_empty() {
                    required::<T>(&value)
                } else {
                    Vec::new()
                };
                let missing = if missing.is_empty() {
                    vec![key.to_owned()]
                } else {
                    missing
                };
                for key in missing {
                    let whole = format(&place, Some(&key));
                    if !taken.keys.contains(&whole) {
                        report(cx, &format(&place, None), |cx| {
                            cx.problem_help(
                                format!("`{key}` is missing"),
                                format!("add `{key}: …`"),
                            );
                        });
                    }
                }
                (!path.is_empty()).then_some(path)
            }
            Complaint::Value(text, help) => {
                let place = format(&taken.original(&path), None);
                let help = help.or_else(|| unit_help(&message, at(&value, &path)));
                report(cx, &place, |cx| match help {
                    Some(help) => cx.problem_help(text, help),
                    None => cx.problem(text),
                });
                (!path.is_empty()).then_some(path)
            }
        };
        let removed = cut.is_some_and(|cut| taken.cut(&mut value, &cut));
        if !removed {
            break;
        }
    }
    Salvaged {
        value: None,
        clean: false,
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Step {
    Key(String),
    Index(usize),
}

impl Step {
    fn of(segment: &Segment) -> Option<Self> {
        match segment {
            Segment::Seq { index } => Some(Self::Index(*index)),
            Segment::Map { key } => Some(Self::Key(key.clone())),
            Segment::Enum { .. } | Segment::Unknown => None,
        }
    }
}

/// What was taken out so far, so that later problems keep the places that the file knows.
#[derive(Default)]
struct Taken {
    keys: BTreeSet<String>,
    items: BTreeMap<String, Vec<usize>>,
}

impl Taken {
    /// The place in the file of a place in what is left.
    fn original(&self, path: &[Step]) -> Vec<Step> {
        let mut original: Vec<Step> = Vec::with_capacity(path.len());
        for step in path {
            original.push(match step {
                Step::Key(key) => Step::Key(key.clone()),
                Step::Index(index) => {
                    let mut index = *index;
                    // Ascending, so each one that was in front moves it by one.
                    for gone in self
                        .items
                        .get(&format(&original, None))
                        .into_iter()
                        .flatten()
                    {
                        index += usize::from(*gone <= index);
                    }
                    Step::Index(index)
                }
            });
        }
        original
    }

    fn cut(&mut self, value: &mut Value, path: &[Step]) -> bool {
        let original = self.original(path);
        let Some((last, parents)) = path.split_last() else {
            return false;
        };
        let Some(parent) = parents.iter().try_fold(value, |value, step| match step {
            Step::Key(key) => value.get_mut(key.as_str()),
            Step::Index(index) => value.get_mut(*index),
        }) else {
            return false;
        };
        self.keys.insert(format(&original, None));
        match (last, parent) {
            (Step::Key(key), Value::Mapping(map)) => map.remove(key.as_str()).is_some(),
            (Step::Index(index), Value::Sequence(items)) if *index < items.len() => {
                items.remove(*index);
                if let Some((Step::Index(index), parents)) = original.split_last() {
                    let gone = self.items.entry(format(parents, None)).or_default();
                    gone.push(*index);
                    gone.sort_unstable();
                }
                true
            }
            _ => false,
        }
    }
}

/// What serde complains about. Its texts are stable, and the tests below would notice.
enum Complaint<'m> {
    Unknown(&'m str, Box<dyn Iterator<Item = &'m str> + 'm>),
    Missing(&'m str),
    Value(String, Option<String>),
}

impl<'m> Complaint<'m> {
    fn of(message: &'m str) -> Self {
        let quoted = |text: &'m str| text.split('`').skip(1).step_by(2);
        if let Some(rest) = message.strip_prefix("unknown field `")
            && let Some((key, rest)) = rest.split_once('`')
        {
            return Self::Unknown(key, Box::new(quoted(rest)));
        }
        if let Some(rest) = message.strip_prefix("missing field `")
            && let Some((key, _)) = rest.split_once('`')
        {
            return Self::Missing(key);
        }
        if let Some(rest) = message.strip_prefix("unknown variant `")
            && let Some((name, rest)) = rest.split_once('`')
        {
            let known: Vec<&str> = quoted(rest).collect();
            let help = match suggest(name, known.iter().copied()) {
                Some(meant) => format!("did you mean `{meant}`?"),
                None => format!("possible here: {}", known.join(", ")),
            };
            return Self::Value(format!("`{name}` is not possible here"), Some(help));
        }
        Self::Value(plain(message), None)
    }
}

/// serde's message in words of the file instead of words of the program.
fn plain(message: &str) -> String {
    let Some((said, expected)) = message.split_once(", expected ") else {
        return message.to_owned();
    };
    let said = said
        .replace("unit value", "nothing")
        .replace("invalid type: map", "invalid type: a block of keys")
        .replace("invalid type: sequence", "invalid type: a list");
    let expected = match expected {
        text if text.starts_with("struct ") || text == "a map" => "a block of keys",
        "a sequence" => "a list",
        "a string" => "text",
        "a boolean" => "`true` or `false`",
        "u8" | "u16" | "u32" | "u64" | "usize" => "a whole number",
        other => other,
    };
    format!("{said}, expected {expected}")
}

/// How to write a number that lacks its unit, or has a unit of another world.
fn unit_help(message: &str, value: Option<&Value>) -> Option<String> {
    let text = match value? {
        Value::Number(number) => number.to_string(),
        Value::String(text) => text.trim().to_owned(),
        Value::Null
        | Value::Bool(_)
        | Value::Sequence(_)
        | Value::Mapping(_)
        | Value::Tagged(_) => {
            return None;
        }
    };
    let digits: String = text.chars().take_while(char::is_ascii_digit).collect();
    if digits.is_empty() {
        return None;
    }
    let unit = text.get(digits.len()..)?.trim().to_lowercase();
    let meant = if message.contains("is not a duration") {
        match unit.as_str() {
            "" | "sec" | "secs" | "second" | "seconds" => "s",
            "ms" | "msec" | "milliseconds" => "ms",
            "min" | "mins" | "minute" | "minutes" | "m" => "m",
            "hour" | "hours" | "hr" | "h" => "h",
            "day" | "days" | "d" => "d",
            _ => "s",
        }
    } else if message.contains("is not a size") {
        match unit.as_str() {
            "" | "b" | "bytes" => "B",
            "k" | "kb" | "kib" | "ki" => "KiB",
            "g" | "gb" | "gib" | "gi" => "GiB",
            _ => "MiB",
        }
    } else {
        return None;
    };
    Some(format!("did you mean `{digits}{meant}`?"))
}

/// The keys that `T` must have and `value` has not.
fn required<T: JsonSchema>(value: &Value) -> Vec<String> {
    let schema = schemars::schema_for!(T);
    let required = schema
        .get("required")
        .and_then(|required| required.as_array());
    required
        .into_iter()
        .flatten()
        .filter_map(|key| key.as_str())
        .filter(|key| value.get(key).is_none())
        .map(str::to_owned)
        .collect()
}

fn at<'v>(value: &'v Value, path: &[Step]) -> Option<&'v Value> {
    path.iter().try_fold(value, |value, step| match step {
        Step::Key(key) => value.get(key.as_str()),
        Step::Index(index) => value.get(*index),
    })
}

/// The block with the unknown key: serde's path names the block or the key in it.
fn parent_of(value: &Value, mut path: Vec<Step>, key: &str) -> Vec<Step> {
    let holds = |path: &[Step]| at(value, path).is_some_and(|block| block.get(key).is_some());
    if !holds(&path) && path.last() == Some(&Step::Key(key.to_owned())) {
        path.pop();
    }
    path
}

fn format(path: &[Step], last: Option<&str>) -> String {
    let mut text = String::new();
    for step in path {
        match step {
            Step::Index(index) => text.push_str(&format!("[{index}]")),
            Step::Key(key) => {
                if !text.is_empty() {
                    text.push('.');
                }
                text.push_str(key);
            }
        }
    }
    if let Some(last) = last {
        if !text.is_empty() {
            text.push('.');
        }
        text.push_str(last);
    }
    text
}

fn report(cx: &mut Compile, place: &str, say: impl FnOnce(&mut Compile)) {
    if place.is_empty() {
        say(cx)
    } else {
        cx.at(place, say)
    }
}
