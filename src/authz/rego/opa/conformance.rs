//! OPA's own conformance cases through our wrapper. What does not pass is listed in
//! `testdata/opa-expected.json`, which may only shrink.
//!
//! `PORTCULLIS_WRITE_EXPECTED=1` writes that file anew; look at its difference before it is kept.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::num::NonZeroU64;
use std::path::{Path, PathBuf};
use std::time::Duration;

use regorus::Value;

use crate::authz::rego::host::{self, Errors};
use crate::authz::rego::{self, Limits, Machine, Outcome, Program, Reading, Source, subset};
use crate::authz::source::check;
use crate::authz::source::guard;
use crate::authz::source::remark::Remark;

const LIMITS: Limits = Limits {
    time: Duration::from_secs(10),
    instructions: 10_000_000,
    memory: NonZeroU64::MAX,
};

/// How a case ended.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Ended {
    Passed,
    /// Refused before it could run, by this kind of remark.
    Refused(String),
    /// Answered unlike OPA.
    Differs(String),
}

fn cases() -> Option<String> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    ["../shared", "../../shared"]
        .iter()
        .find_map(|at| fs::read_to_string(root.join(at).join("vectors/opa/v1-cases.jsonl")).ok())
}

fn expected_file() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("src/authz/testdata/opa-expected.json")
}

/// What the remark is about, without the names in it.
fn kind(remark: &Remark) -> String {
    let mut kind = String::new();
    for (index, part) in remark.message.split('`').enumerate() {
        kind.push_str(if index % 2 == 0 { part } else { "…" });
    }
    kind.chars().take(70).collect()
}

struct Case {
    name: String,
    entry: Option<String>,
    query: String,
    sources: Vec<Source>,
    data: Value,
    input: Value,
    want: Option<serde_json::Value>,
    fails: bool,
    errors: Errors,
}

fn case(line: &str) -> Case {
    let case: serde_json::Value = serde_json::from_str(line).unwrap();
    let query = case["query"].as_str().unwrap_or("").to_owned();
    let entry = query
        .strip_suffix(" = x")
        .filter(|entry| entry.starts_with("data.") && !entry.contains(['[', ' ', ';', '"']))
        .map(str::to_owned);
    let input = match (case.get("input"), case["input_term"].as_str()) {
        (Some(input), _) => Value::from_json_str(&input.to_string()).unwrap(),
        (None, Some(term)) => {
            let mut engine = regorus::Engine::new();
            let found = engine.eval_query(format!("x = {term}"), false);
            found.map_or(Value::Undefined, |found| {
                let bindings = found.result[0].bindings.as_object().unwrap();
                bindings.get(&Value::from("x")).unwrap().clone()
            })
        }
        (None, None) => Value::Undefined,
    };
    let modules = case["modules"].as_array().into_iter().flatten().enumerate();
    let fails = case.get("want_error").is_some() || case.get("want_error_code").is_some();
    let want = match case.get("want_result").and_then(|want| want.as_array()) {
        Some(results) if entry.is_some() => results.first().map(|first| first["x"].clone()),
        Some(results) if results.is_empty() => None,
        Some(results) => Some(results.clone().into()),
        None => None,
    };
    Case {
        name: format!("{}#{}", case["note"].as_str().unwrap_or(""), case["id"]),
        entry,
        query,
        sources: modules
            .map(|(i, text)| (format!("m{i}.rego"), text.as_str().unwrap_or("").to_owned()))
            .collect(),
        data: case.get("data").map_or_else(Value::new_object, |data| {
            Value::from_json_str(&data.to_string()).unwrap()
        }),
        input,
        want,
        fails,
        errors: match case["strict_error"] == true {
            true => Errors::Deny,
            false => Errors::Undefined,
        },
    }
}

/// As JSON has it: sets are arrays in any order, numbers are equal by value.
pub(super) fn same(found: &Value, want: &serde_json::Value) -> bool {
    use serde_json::Value as Json;
    match (found, want) {
        (Value::Null, Json::Null) => true,
        (Value::Bool(one), Json::Bool(other)) => one == other,
        (Value::String(one), Json::String(other)) => one.as_ref() == other,
        (Value::Number(_), Json::Number(other)) => {
            let one = found.to_json_str().unwrap();
            one == other.to_string() || one.parse::<f64>().ok() == other.as_f64()
        }
        (Value::Array(one), Json::Array(other)) => {
            one.len() == other.len() && one.iter().zip(other).all(|(a, b)| same(a, b))
                // Of a set that a query binds element by element.
                || one.len() == other.len() && all_in(one.iter(), other)
        }
        (Value::Set(one), Json::Array(other)) => {
            one.len() == other.len() && all_in(one.iter(), other)
        }
        (Value::Object(one), Json::Object(other)) => {
            one.len() == other.len()
                && one.iter().all(|(key, value)| {
                    let key = match key {
                        Value::String(key) => key.to_string(),
                        other => {
                            let key = other.to_json_str().unwrap();
                            let key: Json = serde_json::from_str(&key).unwrap();
                            key.to_string()
                        }
                    };
                    other.get(&key).is_some_and(|other| same(value, other))
                })
        }
        _ => false,
    }
}

fn all_in<'v>(found: impl Iterator<Item = &'v Value>, want: &[serde_json::Value]) -> bool {
    let mut left: Vec<&serde_json::Value> = want.iter().collect();
    found.into_iter().all(|value| {
        let at = left.iter().position(|want| same(value, want));
        at.map(|at| left.swap_remove(at)).is_some()
    })
}

fn ended(case: &Case) -> Ended {
    let refused = |remark: &Remark| match case.fails {
        // OPA fails too, if only later.
        true => Ended::Passed,
        false => Ended::Refused(kind(remark)),
    };
    for (_, text) in &case.sources {
        if let Err(finding) = guard::examine(text) {
            return refused(&Remark::error("", None, finding.message, ""));
        }
    }
    let reading = Reading {
        errors: case.errors,
        ..Reading::default()
    };
    let mut parsed = match rego::read(&case.sources, &case.data, reading) {
        Ok(parsed) => parsed,
        Err(remarks) => return refused(&remarks[0]),
    };
    let entry = case.entry.as_deref().unwrap_or("data.none.none");
    let analysis = check::analyse(parsed.engine.get_modules(), entry);
    if let Some(remark) = analysis.remarks.first() {
        return refused(remark);
    }
    let live = analysis.rules.contains(entry);
    let mut outcomes = Vec::new();
    if live {
        match Program::interpreted(parsed.engine.clone(), entry, LIMITS) {
            Ok(program) => outcomes.push(("interpreter", run(&program, &case.input))),
            Err(why) => return refused(&Remark::from_engine("", &why)),
        }
        let outside = analysis.ref_head.is_some()
            || subset::outside(parsed.engine.get_modules(), &case.data).is_some();
        if !outside && let Ok(program) = Program::compiled(parsed.engine, entry, LIMITS) {
            outcomes.push(("machine", run(&program, &case.input)));
        }
    } else {
        outcomes.push(("query", asked(&mut parsed.engine, case)));
    }
    for (engine, outcome) in outcomes {
        let fine = match (&outcome, &case.want, case.fails) {
            (Outcome::Error(_) | Outcome::Budget(_), _, true) => true,
            (Outcome::Answer(Value::Undefined), None, false) => true,
            (Outcome::Answer(value), Some(want), false) => same(value, want),
            _ => false,
        };
        if !fine {
            let what = match (&outcome, &case.want) {
                (Outcome::Answer(Value::Undefined), _) => "undefined".to_owned(),
                (Outcome::Answer(value), _) => value.to_json_str().unwrap_or_default(),
                (other, _) => format!("{other:?}"),
            };
            return Ended::Differs(format!("{engine}: {what}"));
        }
    }
    Ended::Passed
}

/// Some cases ask whether a token has expired by now.
fn moment() -> host::Moment {
    host::Moment {
        now_ns: 1_790_000_000_000_000_000,
        request_id: [b'a'; 32],
    }
}

fn run(program: &Program, input: &Value) -> Outcome {
    host::begin(moment());
    match Machine::new(program) {
        Ok(mut machine) => machine.run(input.clone()),
        Err(why) => Outcome::Error(why),
    }
}

/// A query that is no rule of the modules.
fn asked(engine: &mut regorus::Engine, case: &Case) -> Outcome {
    if case.input != Value::Undefined {
        engine.set_input(case.input.clone());
    }
    host::begin(moment());
    let found = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        let query = crate::authz::source::templates::calls(&case.query)
            .unwrap()
            .1;
        engine.eval_query(query, false)
    }));
    match found {
        Ok(Ok(found)) => {
            let all: Vec<Value> = found
                .result
                .iter()
                .map(|one| one.bindings.clone())
                .collect();
            Outcome::Answer(match (all.is_empty(), &case.entry) {
                (true, _) => Value::Undefined,
                (false, None) => Value::from(all),
                (false, Some(_)) => {
                    let bindings = all[0].as_object().unwrap();
                    bindings
                        .get(&"x".into())
                        .cloned()
                        .unwrap_or(Value::Undefined)
                }
            })
        }
        Ok(Err(error)) => Outcome::Error(rego::detail(&error.to_string())),
        Err(_) => Outcome::Panic(String::new()),
    }
}

type Listed = BTreeMap<String, BTreeSet<String>>;

/// Cases that pass are not in it: what is, is there by what became of it.
fn listed() -> Listed {
    let text = fs::read_to_string(expected_file()).unwrap_or_else(|_| "{}".to_owned());
    serde_json::from_str(&text).unwrap()
}

#[test]
fn opas_conformance_cases_pass_or_are_listed() {
    let Some(text) = cases() else {
        println!("skipped: ../shared/vectors/opa/v1-cases.jsonl is not there");
        return;
    };
    // The cases are others' code: a stack that is large, and a process that is a test's.
    let worker = std::thread::Builder::new().stack_size(64 << 20);
    let endings = worker.spawn(move || {
        let mut endings = Vec::new();
        for line in text.lines() {
            let case = case(line);
            let ended = ended(&case);
            endings.push((case.name, ended));
        }
        endings
    });
    let endings = endings.unwrap().join().unwrap();
    let mut found = Listed::new();
    let mut passed = 0;
    for (name, ended) in &endings {
        let class = match ended {
            Ended::Passed => {
                passed += 1;
                continue;
            }
            Ended::Refused(why) => format!("refused at load: {why}"),
            Ended::Differs(what) => {
                println!(
                    "DIFFERS {name}: {}",
                    what.chars().take(300).collect::<String>()
                );
                "differs".to_owned()
            }
        };
        found.entry(class).or_default().insert(name.clone());
    }
    for (class, names) in &found {
        println!("{:5}  {class}", names.len());
    }
    println!("{passed:5}  passed of {}", endings.len());
    if std::env::var_os("PORTCULLIS_WRITE_EXPECTED").is_some() {
        fs::create_dir_all(expected_file().parent().unwrap()).unwrap();
        let text = serde_json::to_string_pretty(&found).unwrap();
        fs::write(expected_file(), text + "\n").unwrap();
        return;
    }
    assert_eq!(
        found,
        listed(),
        "write what got better into the list with PORTCULLIS_WRITE_EXPECTED=1"
    );
}
