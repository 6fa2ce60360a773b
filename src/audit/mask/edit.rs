//! What mask rules say, by the rules of OPA's `data.system.log.mask`: a set or an array of pointers,
//! each a text (what it leads to is removed), or an object with `op` (`remove` or `upsert`), `path`,
//! and for `upsert` a `value`. A pointer that leads nowhere changes nothing; anything else is an error.

use super::splice::{self, Step};
use crate::ascii;
use crate::audit::event::members;
use crate::document::{self, Value, text};

/// Most rules that one record is masked by.
pub(super) const MAX_EDITS: usize = 1024;
/// Longest pointer, in bytes.
pub(super) const MAX_POINTER: usize = 2048;
/// Largest value that is put into a record, in bytes.
pub(super) const MAX_VALUE: usize = 4096;

/// Members of the record that can be masked beside its input and answer, in pointers under `/record`.
pub(super) const MEMBERS: [&str; 13] = [
    "client",
    "peer",
    "tls",
    "host",
    "path",
    "query",
    "user_agent",
    "caller",
    "reason",
    "refusal",
    "detail",
    "metadata",
    "edits",
];

/// One change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Edit {
    part: Part,
    steps: Vec<Step>,
    /// What is put there; `None` when it is removed.
    value: Option<Vec<u8>>,
    /// The pointer into the record, as it stands in a list.
    shown: Vec<u8>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Part {
    Input,
    Answer,
    /// Only events have it.
    Cache,
    /// Found out later, for those that want it.
    Why,
    Member(&'static str),
}

/// Why rules are none.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{why}")]
pub(super) struct Wrong {
    why: String,
    /// Which pointer is wrong. It may hold a value of the request, so it is told of rules that depend on
    /// none alone.
    pub(super) pointer: Option<String>,
}

impl From<String> for Wrong {
    fn from(why: String) -> Self {
        Self { why, pointer: None }
    }
}

impl From<&str> for Wrong {
    fn from(why: &str) -> Self {
        why.to_owned().into()
    }
}

/// Reads the rules.
pub(super) fn read(rules: &Value) -> Result<Vec<Edit>, Wrong> {
    let edits: Result<Vec<Edit>, Wrong> = match rules {
        Value::Set(rules) => rules.iter().map(one).collect(),
        Value::Array(rules) => rules.iter().map(one).collect(),
        Value::Null
        | Value::Bool(_)
        | Value::Number(_)
        | Value::String(_)
        | Value::Object(_)
        | Value::Undefined => Err("the rules are neither a set nor an array".into()),
    };
    let edits = edits?;
    if edits.len() > MAX_EDITS {
        return Err(format!("there are more than {MAX_EDITS} of them").into());
    }
    Ok(edits)
}

fn one(rule: &Value) -> Result<Edit, Wrong> {
    let made = |pointer: &str, value| {
        Edit::new(pointer, value).map_err(|why| Wrong {
            why,
            pointer: Some(pointer.to_owned()),
        })
    };
    if let Some(pointer) = text(rule) {
        return made(pointer, None);
    }
    if rule.as_object().is_err() {
        return Err("a rule is neither a text nor an object".into());
    }
    let named = |name: &str| document::member(rule, name).and_then(text);
    let path = named("path").ok_or("a rule has no `path`")?;
    match named("op").map(AsRef::as_ref) {
        Some("remove") => made(path, None),
        Some("upsert") => {
            let mut value = Vec::new();
            let put = document::member(rule, "value").unwrap_or(&Value::Null);
            ascii::value(&mut value, put);
            if value.len() > MAX_VALUE {
                return Err(format!("a `value` is larger than {MAX_VALUE} bytes").into());
            }
            made(path, Some(value))
        }
        Some(_) | None => Err("the `op` of a rule is neither `remove` nor `upsert`".into()),
    }
}

impl Edit {
    fn new(pointer: &str, value: Option<Vec<u8>>) -> Result<Self, String> {
        if pointer.len() > MAX_POINTER {
            return Err(format!("a pointer is longer than {MAX_POINTER} bytes"));
        }
        let path = pointer
            .strip_prefix('/')
            .ok_or("a pointer does not begin with `/`")?;
        let mut parts = path.split('/');
        let (part, root) = match parts.next() {
            Some("input") => (Part::Input, "/input"),
            Some("result") => (Part::Answer, "/answer"),
            Some("nd_builtin_cache") => (Part::Cache, "/nd_builtin_cache"),
            Some("record") => {
                let name = parts.next().unwrap_or_default();
                if name == "why" {
                    return Ok(Self::why(value));
                }
                let known = MEMBERS.iter().find(|known| **known == name);
                let known =
                    known.ok_or("a pointer leads to a member of the record that is always kept")?;
                (Part::Member(known), "")
            }
            _ => {
                return Err(
                    "a pointer leads neither below `/input` nor `/result`, `/nd_builtin_cache` or `/record`"
                        .to_owned(),
                );
            }
        };
        let steps: Vec<Step> = parts.clone().map(Step::new).collect();
        let mut shown = b"\"".to_vec();
        ascii::inner(&mut shown, root, true);
        if let Part::Member(name) = part {
            shown.push(b'/');
            ascii::inner(&mut shown, name, true);
        }
        for step in parts {
            shown.push(b'/');
            ascii::inner(&mut shown, step, false);
        }
        shown.push(b'"');
        Ok(Self {
            part,
            steps,
            value,
            shown,
        })
    }

    /// Of the whole, wherever below it leads.
    fn why(value: Option<Vec<u8>>) -> Self {
        Self {
            part: Part::Why,
            steps: Vec::new(),
            value,
            shown: b"\"/why\"".to_vec(),
        }
    }

    /// How much memory it holds, in bytes.
    pub(super) fn weight(&self) -> usize {
        let steps: usize = self.steps.iter().map(Step::weight).sum();
        let value = self.value.as_ref().map_or(0, Vec::len);
        size_of::<Self>() + steps + value + self.shown.len()
    }

    /// What is left of a copy of what it hides.
    fn left(&self) -> &'static [u8] {
        match self.value {
            Some(_) => b"\"***\"",
            None => b"null",
        }
    }

    /// Makes the change in a value; `false` when it leads nowhere. A value that is not there stays so.
    fn apply(&self, value: &mut Vec<u8>) -> bool {
        if value == b"null" {
            return false;
        }
        match (&self.value, self.steps.is_empty()) {
            (None, true) => {
                *value = b"null".to_vec();
                true
            }
            (Some(new), true) => {
                value.clone_from(new);
                true
            }
            (None, false) => splice::remove(value, &self.steps),
            (Some(new), false) => splice::upsert(value, &self.steps, new),
        }
    }
}

/// A record that is being changed.
struct Open<'l> {
    /// What stands before the lists.
    begin: &'l [u8],
    masked: Vec<u8>,
    erased: Vec<u8>,
    answer: Vec<u8>,
    input: Vec<u8>,
    changed: Vec<(&'static str, Vec<u8>)>,
}

impl<'l> Open<'l> {
    fn of(line: &'l [u8]) -> Self {
        let mut open = Self {
            begin: line,
            masked: Vec::new(),
            erased: Vec::new(),
            answer: b"null".to_vec(),
            input: b"null".to_vec(),
            changed: Vec::new(),
        };
        let mut end = None;
        for (name, value) in members(line) {
            let items = || value.get(1..value.len() - 1).unwrap_or_default().to_vec();
            match name {
                b"masked" => open.masked = items(),
                b"erased" => open.erased = items(),
                b"answer" => open.answer = value.to_vec(),
                b"input" => open.input = value.to_vec(),
                _ => continue,
            }
            // These are the last; before the first of them stand a comma and a quotation mark.
            let at = name.as_ptr().addr() - line.as_ptr().addr();
            end.get_or_insert(at.saturating_sub(2));
        }
        if let Some(end) = end {
            open.begin = line.get(..end).unwrap_or(line);
        } else {
            open.begin = line.strip_suffix(b"}").unwrap_or(line);
        }
        open
    }

    fn write(&self, out: &mut Vec<u8>) {
        if self.changed.is_empty() {
            ascii::raw(out, self.begin);
        } else {
            // Closed, to be gone through.
            let begin = [self.begin, b"}"].concat();
            for (nth, (name, value)) in members(&begin).enumerate() {
                ascii::raw(out, if nth > 0 { b",\"" } else { b"{\"" });
                ascii::raw(out, name);
                ascii::raw(out, b"\":");
                let changed = self
                    .changed
                    .iter()
                    .find(|(known, _)| known.as_bytes() == name);
                ascii::raw(out, changed.map_or(value, |(_, value)| value));
            }
        }
        for (name, items) in [
            (&b",\"masked\":["[..], &self.masked),
            (b",\"erased\":[", &self.erased),
        ] {
            if !items.is_empty() {
                ascii::raw(out, name);
                ascii::raw(out, items);
                out.push(b']');
            }
        }
        ascii::raw(out, b",\"answer\":");
        ascii::raw(out, &self.answer);
        ascii::raw(out, b",\"input\":");
        ascii::raw(out, &self.input);
        out.push(b'}');
    }
}

impl Open<'_> {
    /// Changes a member of the line; `false` when there is nothing to change.
    fn member(
        &mut self,
        line: &[u8],
        name: &'static str,
        change: impl FnOnce(&mut Vec<u8>) -> bool,
    ) -> bool {
        let before = self.changed.iter().position(|(known, _)| *known == name);
        let mut value = match before.and_then(|at| self.changed.get(at)) {
            Some((_, value)) => value.clone(),
            None => match member(line, name) {
                Some(value) => value.to_vec(),
                None => return false,
            },
        };
        let done = change(&mut value);
        if done {
            self.changed.retain(|(known, _)| *known != name);
            self.changed.push((name, value));
        }
        done
    }

    /// What a policy says stands in its answer and, in parts, elsewhere: an edit of the one is one of
    /// the others.
    fn along(&mut self, line: &[u8], edit: &Edit) {
        let first = edit.steps.first();
        let of = |name: &str| first.is_none_or(|step| step.names(name));
        let left = edit.left();
        let mut done: Vec<Vec<u8>> = Vec::new();
        let hide = |value: &mut Vec<u8>| {
            let there = value != b"null" && value != left;
            if there {
                *value = left.to_vec();
            }
            there
        };
        if of("reason") {
            if self.member(line, "reason", hide) {
                done.push(b"\"/reason\"".to_vec());
            }
            let detail = [b"detail".to_vec()];
            let told = |value: &mut Vec<u8>| {
                let there = splice::at_names(value, &detail);
                there.is_some_and(|there| there != b"null" && there != left)
                    && splice::upsert(value, &[Step::new("detail")], left)
            };
            if self.member(line, "refusal", told) {
                done.push(b"\"/refusal/detail\"".to_vec());
            }
            // Of a later answer, which ended the permission.
            let ended = |outcome: &[u8]| outcome == b"\"permission_ended\"";
            if member(line, "outcome").is_some_and(ended) && self.member(line, "detail", hide) {
                done.push(b"\"/detail\"".to_vec());
            }
        }
        if of("dynamic_metadata") {
            let below = Edit {
                steps: edit.steps.get(1..).unwrap_or_default().to_vec(),
                ..edit.clone()
            };
            let change = |value: &mut Vec<u8>| match first {
                Some(_) => below.apply(value),
                None => hide(value),
            };
            if self.member(line, "metadata", change) {
                let rest = edit.shown.strip_prefix(b"\"/answer/dynamic_metadata");
                let rest = rest.unwrap_or(b"\"");
                done.push([&b"\"/metadata"[..], rest].concat());
            }
        }
        let list = if edit.value.is_some() {
            &mut self.masked
        } else {
            &mut self.erased
        };
        for pointer in done {
            add(list, &pointer);
        }
    }
}

fn member<'l>(line: &'l [u8], name: &str) -> Option<&'l [u8]> {
    let mut members = members(line);
    let found = members.find(|(known, _)| *known == name.as_bytes());
    found.map(|(_, value)| value)
}

fn add(list: &mut Vec<u8>, pointer: &[u8]) {
    if !list.is_empty() {
        list.push(b',');
    }
    list.extend_from_slice(pointer);
}

/// Writes the line with these changes to `out`; `false`, and nothing, when they lead nowhere.
pub(super) fn apply(edits: &[Edit], line: &[u8], out: &mut Vec<u8>) -> bool {
    if edits.is_empty() {
        return false;
    }
    let mut open = Open::of(line);
    let mut any = false;
    for edit in edits {
        let done = match edit.part {
            Part::Input => edit.apply(&mut open.input),
            Part::Answer => edit.apply(&mut open.answer),
            Part::Cache | Part::Why => true,
            Part::Member(name) => open.member(line, name, |value| edit.apply(value)),
        };
        if done {
            any = true;
            let list = if edit.value.is_some() {
                &mut open.masked
            } else {
                &mut open.erased
            };
            add(list, &edit.shown);
        }
        // An answer that was too large for the record has its parts elsewhere all the same.
        if edit.part == Part::Answer && (done || member(line, "answer_left_out").is_some()) {
            open.along(line, edit);
            any |= !open.changed.is_empty();
        }
    }
    if any {
        open.write(out);
    }
    any
}

/// Writes the line without anything that can be masked: nobody knows what the rules would have said.
pub(super) fn withhold(line: &[u8], out: &mut Vec<u8>) {
    const WHY: &[u8] = b"\"the rules of audit.rules failed\"";
    let mut open = Open::of(line);
    for name in MEMBERS {
        if member(line, name).is_some_and(|value| value != b"null") {
            open.changed.push((name, b"null".to_vec()));
            add(&mut open.erased, format!("\"/{name}\"").as_bytes());
        }
    }
    let mut begin = Vec::new();
    for (value, left_out, pointer) in [
        (
            &mut open.answer,
            &b",\"answer_left_out\":"[..],
            &b"\"/answer\""[..],
        ),
        (&mut open.input, b",\"input_left_out\":", b"\"/input\""),
    ] {
        if value != b"null" {
            *value = b"null".to_vec();
            add(&mut open.erased, pointer);
            begin.extend_from_slice(left_out);
            begin.extend_from_slice(WHY);
        }
    }
    let begin = [open.begin, &begin].concat();
    let open = Open {
        begin: &begin,
        ..open
    };
    open.write(out);
}

#[cfg(test)]
mod tests;
