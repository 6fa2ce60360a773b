//! Recorded decisions as a table of cases, which `portcullis policy test` runs.

use std::collections::BTreeSet;
use std::fs::{self, OpenOptions};
use std::io::Write as _;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::counted;
use super::tally::{Change, Example, Side, Tally};

/// Deepest nesting that is written as a block; what is below goes on its line.
const BLOCKS: usize = 4;

/// What cases expect.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum)]
pub(super) enum Expect {
    /// What was answered then
    #[default]
    Recorded,
    /// What is answered now
    Replayed,
}

/// What was written.
#[derive(Debug)]
pub(super) struct Written {
    file: PathBuf,
    cases: u64,
    /// Examples without an answer that a case could expect.
    without: u64,
    /// Examples for which there was no room.
    not_kept: u64,
    /// Whether `policy test` finds it by itself.
    found: bool,
}

impl Written {
    /// For people.
    pub(super) fn sentence(&self) -> String {
        let file = self.file.display();
        let mut text = format!("\n{} written to {file}\n", counted(self.cases, "case"));
        if self.without > 0 {
            text.push_str(&format!(
                "  {} had no answer that a case could expect\n",
                counted(self.without, "example")
            ));
        }
        if self.not_kept > 0 {
            text.push_str(&format!(
                "  {} left out: more than 64 MiB of inputs\n",
                counted(self.not_kept, "example")
            ));
        }
        if self.found {
            text.push_str("  run them: portcullis policy test\n");
        } else {
            text.push_str(
                "  `portcullis policy test` looks for tables in folders called `cases`\n",
            );
        }
        text
    }

    /// For machines.
    pub(super) fn json(&self) -> Value {
        json!({
            "file": self.file.display().to_string(),
            "cases": self.cases,
            "without_answer": self.without,
            "left_out": self.not_kept,
        })
    }
}

/// The file itself, or `recorded.yaml` in a folder.
fn target(file: &Path) -> PathBuf {
    if file.is_dir() {
        file.join("recorded.yaml")
    } else {
        file.to_path_buf()
    }
}

/// Whether a table may be written there: nothing is replaced.
pub(super) fn may_write(file: &Path) -> Result<(), String> {
    let target = target(file);
    let shown = target.display();
    if target.symlink_metadata().is_ok() {
        return Err(format!(
            "{shown} is there already: remove it, or name another file"
        ));
    }
    let yaml = target
        .extension()
        .is_some_and(|end| end == "yaml" || end == "yml");
    if !yaml {
        return Err(format!("{shown}: a table's name ends in `.yaml`"));
    }
    let folder = match target.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        Some(_) | None => Path::new("."),
    };
    if folder.is_dir() {
        Ok(())
    } else {
        Err(format!("{}: there is no such folder", folder.display()))
    }
}

/// Writes the examples.
pub(super) fn write(file: &Path, expect: Expect, tally: &Tally) -> Result<Written, String> {
    let file = target(file);
    let mut examples: Vec<(Change, &Example)> = tally
        .kinds
        .iter()
        .flat_map(|(kind, group)| group.examples.iter().map(|one| (kind.change, one)))
        .collect();
    examples.sort_by_key(|(_, example)| example.number);
    let mut written = Written {
        found: file
            .parent()
            .is_some_and(|folder| folder.file_name().is_some_and(|name| name == "cases")),
        file,
        cases: 0,
        without: 0,
        not_kept: tally.not_kept,
    };
    let mut text = String::from(
        "# Decisions that were made, as cases: written by `portcullis policy replay`.\n",
    );
    text.push_str(match expect {
        Expect::Recorded => "# They expect what was answered then.\n",
        Expect::Replayed => "# They expect what was answered when they were written.\n",
    });
    text.push_str("cases:\n");
    let mut names = BTreeSet::new();
    for (change, example) in examples {
        match case(change, example, expect, &mut names) {
            Some(case) => {
                written.cases += 1;
                text.push_str(&case);
            }
            None => written.without += u64::from(example.kept.is_some()),
        }
    }
    if written.cases == 0 {
        return Err("no case was written: there is no change to make one of (`--same` takes what stays as it was)".to_owned());
    }
    let shown = written.file.display().to_string();
    OpenOptions::new()
        .write(true)
        .create_new(true)
        .open(&written.file)
        .and_then(|mut file| file.write_all(text.as_bytes()))
        .map_err(|error| {
            let _ = fs::remove_file(&written.file);
            format!("{shown}: {error}")
        })?;
    Ok(written)
}

fn case(
    change: Change,
    example: &Example,
    expect: Expect,
    names: &mut BTreeSet<String>,
) -> Option<String> {
    let kept = example.kept.as_ref()?;
    let side = match expect {
        Expect::Recorded => &kept.was,
        Expect::Replayed => &kept.now,
    };
    let expected = expected(side, kept.ours)?;
    let input: Value = serde_json::from_str(&kept.input).ok()?;
    let word = if side.allow { "may" } else { "may not" };
    let base = format!("{} {word} {}", example.caller, example.request);
    let mut name = base.clone();
    let mut number = 1;
    while !names.insert(name.clone()) {
        number += 1;
        name = format!("{base} ({number})");
    }
    let mut text = String::new();
    let comment = match change {
        Change::Same => String::new(),
        Change::Gain | Change::Loss | Change::Reason | Change::Answer => {
            format!("; {} → {}", kept.was.shown(), kept.now.shown())
        }
    };
    let about = format!("{} {}{comment}", example.time, example.request_id);
    text.push_str(&format!("  # {}\n", about.replace(char::is_control, " ")));
    text.push_str(&format!("  - name: {}\n", scalar(&json!(name))));
    text.push_str(&format!("    rule: {}\n", scalar(&json!(kept.rule))));
    text.push_str("    input:");
    block(&input, 3, &mut text);
    text.push_str("    expect:");
    block(&expected, 3, &mut text);
    Some(text)
}

/// `None` when there is nothing to expect: an error is no answer.
fn expected(side: &Side, ours: bool) -> Option<Value> {
    let Some(answer) = &side.answer else {
        let undefined = side.reason.as_deref() == Some("policy.undefined");
        return undefined.then(|| json!({"allow": false, "reason": "policy.undefined"}));
    };
    let answer: Value = serde_json::from_str(answer).ok()?;
    let mut expected = json!({ "answer": answer });
    if ours && let Some(members) = expected.as_object_mut() {
        members.insert("allow".to_owned(), json!(side.allow));
        if let Some(reason) = &side.reason {
            members.insert("reason".to_owned(), json!(reason));
        }
    }
    Some(expected)
}

/// A value behind a key: objects as blocks, everything else on the line. Begins behind the colon.
fn block(value: &Value, depth: usize, text: &mut String) {
    let members = value.as_object().filter(|members| !members.is_empty());
    let Some(members) = members.filter(|_| depth < 3 + BLOCKS) else {
        text.push_str(&format!(" {}\n", scalar(value)));
        return;
    };
    text.push('\n');
    for (name, value) in members {
        text.push_str(&"  ".repeat(depth));
        text.push_str(&format!("{}:", key(name)));
        block(value, depth + 1, text);
    }
}

/// A name without quotation marks where YAML can mean nothing else.
fn key(name: &str) -> String {
    let word = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-');
    let letter = name.starts_with(|c: char| c.is_ascii_alphabetic());
    let other = ["null", "true", "false", "yes", "no", "on", "off", "y", "n"];
    if letter && name.chars().all(word) && !other.contains(&name.to_ascii_lowercase().as_str()) {
        name.to_owned()
    } else {
        scalar(&json!(name))
    }
}

/// JSON is YAML, but for what is not printable there.
fn scalar(value: &Value) -> String {
    let json = value.to_string();
    let mut text = String::with_capacity(json.len());
    for c in json.chars() {
        match c {
            '\u{7f}'..='\u{9f}'
            | '\u{2028}'
            | '\u{2029}'
            | '\u{feff}'
            | '\u{fffe}'
            | '\u{ffff}' => {
                text.push_str(&format!("\\u{:04x}", u32::from(c)));
            }
            c => text.push(c),
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::document::{from_json, from_yaml};

    #[test]
    fn what_is_written_is_read_as_it_was() {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            any::<u64>().prop_map(Value::from),
            any::<String>().prop_map(Value::from),
            "[ -~]{0,12}".prop_map(Value::from),
            prop::sample::select(vec![
                "yes",
                "~",
                "null",
                "1e3",
                "0x1",
                "- a",
                "a: b",
                "#",
                "\u{85}",
                "\u{7f}",
                "\u{2028}",
                "\u{feff}",
                "2026-01-01",
                "=",
                "<<",
            ])
            .prop_map(Value::from),
        ];
        let names = prop_oneof![
            "[a-z_]{1,6}",
            "[ -~]{0,8}",
            any::<String>(),
            Just("no".to_owned())
        ];
        let value = leaf.prop_recursive(6, 40, 5, move |inner| {
            let members = prop::collection::btree_map(names.clone(), inner.clone(), 0..5);
            prop_oneof![
                prop::collection::vec(inner, 0..5).prop_map(Value::from),
                members.prop_map(|members| Value::Object(members.into_iter().collect())),
            ]
        });
        proptest!(|(value in value)| {
            let mut text = String::from("input:");
            block(&value, 1, &mut text);
            let read = from_yaml(text.as_bytes());
            let whole = json!({ "input": value }).to_string();
            prop_assert_eq!(read, from_json(whole.as_bytes()), "{}", text);
        });
    }

    #[test]
    fn a_case_expects_what_was_answered_and_never_an_error() {
        let side = |answer: Option<&str>, reason: &str| Side {
            allow: false,
            reason: Some(reason.to_owned()),
            answer: answer.map(str::to_owned),
        };
        let deny = side(Some("{\"allow\":false,\"reason\":\"a\"}"), "a");
        let expect = expected(&deny, true).unwrap();
        assert_eq!(expect["allow"], false);
        assert_eq!(expect["reason"], "a");
        assert_eq!(expect["answer"]["reason"], "a");
        // What such an answer means is not for cases to say.
        assert_eq!(
            expected(&deny, false).unwrap(),
            json!({"answer": {"allow": false, "reason": "a"}})
        );
        let undefined = expected(&side(None, "policy.undefined"), true).unwrap();
        assert_eq!(undefined["reason"], "policy.undefined");
        assert_eq!(expected(&side(None, "policy.error"), true), None);
    }
}
