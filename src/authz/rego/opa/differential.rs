//! Generated authorization policies, asked of the engine and of OPA itself.
//!
//! `PORTCULLIS_OPA` names the folder that holds OPA's Python binding; `PORTCULLIS_POLICIES` asks for
//! more policies than a test run has time for, and `PORTCULLIS_SEED` for others.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::num::NonZeroU64;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::Duration;

use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};
use regorus::Value;
use serde_json::json;

use super::conformance::same;
use crate::authz::rego::host::Errors;
use crate::authz::rego::{self, Limits, Machine, Outcome, Program, Reading, subset};
use crate::authz::source::check;

const LIMITS: Limits = Limits {
    time: Duration::from_secs(5),
    instructions: 1_000_000,
    memory: NonZeroU64::MAX,
};

/// How often a rule is written until OPA takes it.
const TRIES: usize = 12;

/// OPA in a process of its own.
struct Opa {
    child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
}

impl Drop for Opa {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Opa {
    fn start() -> Option<Self> {
        let Some(folder) = std::env::var_os("PORTCULLIS_OPA").map(PathBuf::from) else {
            let reason = "PORTCULLIS_OPA names no folder with PyPI opa-golib-python-bindings";
            assert!(
                std::env::var("CI").is_err(),
                "this test must run in CI: {reason}"
            );
            let name = std::thread::current().name().unwrap_or("a test").to_owned();
            // Past the harness, which would show it only if the test failed.
            let _ = writeln!(std::io::stderr(), "skipped {name}: {reason}");
            return None;
        };
        let python = std::env::var_os("PORTCULLIS_PYTHON").unwrap_or_else(|| "python3".into());
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/authz/rego/opa/oracle.py");
        let mut child = Command::new(python)
            .arg(script)
            .env("PORTCULLIS_OPA", folder)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut opa = Self {
            input: child.stdin.take().unwrap(),
            output: BufReader::new(child.stdout.take().unwrap()),
            child,
        };
        assert_eq!(opa.line(), "ready");
        Some(opa)
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        assert!(
            self.output.read_line(&mut line).unwrap() > 0,
            "OPA's process ended"
        );
        line.trim().to_owned()
    }

    fn ask(&mut self, text: &str, data: &Value, inputs: &[Value]) -> serde_json::Value {
        let json_of = |value: &Value| -> serde_json::Value {
            serde_json::from_str(&value.to_json_str().unwrap()).unwrap()
        };
        let ask = json!({
            "modules": [["p.rego", text]],
            "data": json_of(data),
            "query": "data.p.allow",
            "inputs": inputs.iter().map(json_of).collect::<Vec<_>>(),
        });
        writeln!(self.input, "{ask}").unwrap();
        serde_json::from_str(&self.line()).unwrap()
    }
}

/// Writes policies at random as people write them for authorization.
struct Writer {
    rng: StdRng,
    variables: usize,
    /// Variables that have a value here.
    known: Vec<String>,
}

impl Writer {
    fn pick<'a>(&mut self, from: &[&'a str]) -> &'a str {
        from.choose(&mut self.rng).unwrap()
    }

    fn one_in(&mut self, n: u32) -> bool {
        self.rng.random_ratio(1, n)
    }

    fn fresh(&mut self) -> String {
        self.variables += 1;
        format!("v{}", self.variables)
    }

    fn reference(&mut self) -> String {
        if !self.known.is_empty() && self.one_in(3) {
            let known = self.known.clone();
            let name = known.choose(&mut self.rng).unwrap().clone();
            return match self.rng.random_range(0..6) {
                0 => format!("{name}.d"),
                1 => format!("{name}[0]"),
                _ => name,
            };
        }
        self.pick(&[
            "input.user",
            "input.user",
            "input.roles",
            "input.claims.dept",
            "input.claims.level",
            "input.claims",
            "input.method",
            "input.path",
            "input.segments",
            "input.segments[0]",
            "input.nope",
            "input.flag",
            "input.off",
            "input.n",
            "input.token",
            "input.address",
            "data.blocked",
            "data.roles",
            "data.roles[input.user]",
            "data.levels[input.claims.dept]",
            "data.nope",
            "data.names[input.n]",
            "s",
            "o",
            "r3",
            "o[input.user]",
        ])
        .to_owned()
    }

    fn literal(&mut self) -> String {
        self.pick(&[
            "\"alice\"",
            "\"bob\"",
            "\"admin\"",
            "\"x\"",
            "\"\"",
            "1",
            "2",
            "0",
            "true",
            "false",
            "null",
            "[]",
            "{}",
            "set()",
            "{\"admin\", \"bob\"}",
            "[\"alice\", 1]",
            "{\"d\": \"x\"}",
            "\"10.0.0.0/8\"",
            "\"^a\"",
            "2.5",
            "-3",
        ])
        .to_owned()
    }

    /// `rule` may name later rules only.
    fn term(&mut self, rule: usize, depth: usize) -> String {
        if depth == 0 {
            return match self.one_in(3) {
                true => self.literal(),
                false => self.reference(),
            };
        }
        let d = depth - 1;
        match self.rng.random_range(0..23) {
            0..=6 => self.reference(),
            7 | 8 => self.literal(),
            9 => {
                let name = self.pick(&[
                    "count",
                    "upper",
                    "lower",
                    "trim_space",
                    "to_number",
                    "abs",
                    "sum",
                    "is_string",
                    "type_name",
                    "is_null",
                    "io.jwt.decode",
                    "json.marshal",
                    "sort",
                    "max",
                    "object.keys",
                    "base64.encode",
                    "json.unmarshal",
                    "crypto.sha256",
                    "time.clock",
                    "ceil",
                    "format_int0",
                    "array.reverse",
                    "time.weekday",
                    "base64url.decode",
                    "array.flatten",
                    "units.parse",
                ]);
                if name == "format_int0" {
                    return format!("format_int({}, 10)", self.term(rule, d));
                }
                format!("{name}({})", self.term(rule, d))
            }
            10 => {
                let name = self.pick(&[
                    "startswith",
                    "endswith",
                    "contains",
                    "split",
                    "trim",
                    "trim_prefix",
                    "concat",
                    "net.cidr_contains",
                    "regex.match",
                    "array.concat",
                    "object.union",
                    "strings.count",
                    "indexof",
                    "io.jwt.verify_hs256",
                    "net.cidr_intersects",
                    "object.subset",
                    "trim_left",
                    "net.cidr_contains_matches",
                    "object.remove",
                    "regex.split",
                    "bits.lsh",
                    "graph.reachable",
                    "json.remove",
                    "crypto.hmac.sha256",
                    "numbers.range",
                    "strings.any_prefix_match",
                    "regex.globs_match",
                    "object.filter",
                ]);
                format!("{name}({}, {})", self.term(rule, d), self.term(rule, d))
            }
            11 => match self.rng.random_range(0..8) {
                0 => format!("substring({}, 0, 2)", self.term(rule, d)),
                1 => format!(
                    "replace({}, \"a\", {})",
                    self.term(rule, d),
                    self.term(rule, 0)
                ),
                2 => format!(
                    "object.get({}, {}, {})",
                    self.term(rule, d),
                    self.term(rule, 0),
                    self.literal()
                ),
                3 => format!("glob.match(\"a*\", [], {})", self.term(rule, d)),
                4 => format!(
                    "sprintf(\"%v-%v\", [{}, {}])",
                    self.term(rule, d),
                    self.term(rule, 0)
                ),
                5 => format!(
                    "io.jwt.decode_verify({}, {{\"secret\": \"secret\"}})",
                    self.term(rule, 0)
                ),
                6 => format!("regex.replace({}, \"[aeiou]\", \"-\")", self.term(rule, d)),
                _ => format!("array.slice({}, 0, 1)", self.term(rule, d)),
            },
            12 => format!(
                "({} {} {})",
                self.term(rule, d),
                self.pick(&["+", "-", "*", "/", "%"]),
                self.term(rule, d)
            ),
            13 => format!(
                "({} {} {})",
                self.term(rule, d),
                self.pick(&["|", "&", "-"]),
                self.term(rule, d)
            ),
            14 => format!("[{}, {}]", self.term(rule, d), self.term(rule, d)),
            15 => match self.one_in(2) {
                true => format!("{{{}, {}}}", self.term(rule, d), self.term(rule, d)),
                false => format!("{{\"d\": {}}}", self.term(rule, d)),
            },
            16 => {
                let v = self.fresh();
                let over = self.term(rule, d);
                self.known.push(v.clone());
                let (value, condition) = (self.term(rule, 0), self.statement(rule, 1));
                self.known.pop();
                let (open, close) = *[("[", "]"), ("{", "}")].choose(&mut self.rng).unwrap();
                format!("{open}{value} | some {v} in {over}; {condition}{close}")
            }
            17 => {
                let (k, v) = (self.fresh(), self.fresh());
                let over = self.term(rule, d);
                self.known.push(v.clone());
                let value = self.term(rule, 0);
                self.known.pop();
                format!("{{{k}: {value} | some {k}, {v} in {over}}}")
            }
            18 if rule < 3 => format!("f({})", self.term(rule, d)),
            19 if rule < 3 => format!("g({}, {})", self.term(rule, d), self.term(rule, 0)),
            20 => format!("({} in {})", self.term(rule, d), self.term(rule, d)),
            21 => format!(
                "({} {} {})",
                self.term(rule, d),
                self.pick(&["==", "!=", "<", ">="]),
                self.term(rule, d)
            ),
            _ if rule < 3 => format!("r{}", self.rng.random_range(rule + 1..4)),
            _ => self.reference(),
        }
    }

    fn condition(&mut self, rule: usize, depth: usize) -> String {
        let (one, other) = (self.term(rule, depth), self.term(rule, depth.min(1)));
        match self.rng.random_range(0..8) {
            0 | 1 => format!("{one} == {other}"),
            2 => format!("{one} {} {other}", self.pick(&["!=", "<", "<=", ">", ">="])),
            3 | 4 => format!("{one} in {other}"),
            5 if self.one_in(3) => format!("{}, {one} in {other}", self.term(rule, 0)),
            _ => one,
        }
    }

    fn with(&mut self, rule: usize) -> String {
        match self.rng.random_range(0..5) {
            0 => format!(" with input.user as {}", self.term(rule, 0)),
            1 => format!(
                " with input as {{\"user\": {}, \"n\": 1}}",
                self.term(rule, 0)
            ),
            2 => format!(" with data.blocked as {}", self.term(rule, 0)),
            3 => format!(" with input.claims as {}", self.term(rule, 0)),
            _ => " with input.user as \"alice\" with data.roles as {\"alice\": [\"admin\"]}"
                .to_owned(),
        }
    }

    fn statement(&mut self, rule: usize, depth: usize) -> String {
        let mut text = match self.rng.random_range(0..12) {
            0..=3 => self.condition(rule, depth),
            4..=6 => format!("not {}", self.condition(rule, depth)),
            7 => {
                let term = self.term(rule, depth);
                let v = self.fresh();
                self.known.push(v.clone());
                return format!("{v} := {term}");
            }
            8 => {
                let term = self.term(rule, depth);
                let v = self.fresh();
                self.known.push(v.clone());
                return format!("some {v} in {term}");
            }
            9 => {
                let over = self.term(rule, depth.min(1));
                let v = self.fresh();
                let before = self.known.len();
                self.known.push(v.clone());
                let inner = self.statement(rule, depth.saturating_sub(1));
                self.known.truncate(before);
                format!("every {v} in {over} {{ {inner} }}")
            }
            10 => {
                let v = self.fresh();
                let over = self.pick(&[
                    "input.roles",
                    "data.blocked",
                    "input.segments",
                    "input.claims",
                    "data.roles",
                ]);
                let other = self.term(rule, 0);
                let text = format!("{over}[{v}] == {other}");
                self.known.push(v);
                return text;
            }
            _ => format!("{} = {}", self.reference(), self.term(rule, depth)),
        };
        if self.one_in(10) {
            text.push_str(&self.with(rule));
        }
        text
    }

    fn body(&mut self, rule: usize) -> String {
        self.known.clear();
        self.inner(rule)
    }

    fn inner(&mut self, rule: usize) -> String {
        let count = self.rng.random_range(1..4);
        if count == 1 && self.one_in(2) {
            return format!("if {}", self.statement(rule, 2));
        }
        let statements: Vec<String> = (0..count).map(|_| self.statement(rule, 2)).collect();
        let between = self.pick(&["\n  ", "; "]);
        format!("if {{\n  {}\n}}", statements.join(between))
    }

    fn value(&mut self, rule: usize) -> String {
        match self.rng.random_range(0..4) {
            0 => String::new(),
            1 => format!(":= {}", self.literal()),
            _ => format!(":= {}", self.term(rule, 1)),
        }
    }

    /// Rule by rule, each of which OPA takes: its compiler knows types.
    fn policy(&mut self, taken: &mut dyn FnMut(&str) -> bool) -> String {
        let mut text = "package p\n".to_owned();
        for part in [4, 5, 6, 7, 4, 3, 3, 2, 2, 1, 1, 0, 0] {
            for _ in 0..TRIES {
                let rule = self.rule(part);
                let longer = format!("{text}{rule}\n");
                if taken(&longer) {
                    text = longer;
                    break;
                }
            }
        }
        text
    }

    fn rule(&mut self, part: usize) -> String {
        match part {
            4 => {
                let body = self.body(4);
                format!("s contains {} {body}", self.term(4, 1))
            }
            5 => {
                let body = self.body(4);
                let key = self.pick(&["\"alice\"", "input.user", "\"d\""]);
                format!("o[{key}] := {} {body}", self.term(4, 0))
            }
            6 => {
                self.known = vec!["x".to_owned()];
                let body = self.inner(4);
                let default = match self.one_in(2) {
                    true => "default f(_) := false\n",
                    false => "",
                };
                format!("{default}f(x) := {} {body}", self.term(4, 1))
            }
            7 => {
                self.known = vec!["x".to_owned(), "y".to_owned()];
                format!("g(x, y) {}", self.inner(4))
            }
            rule => {
                let name = match rule {
                    0 => "allow".to_owned(),
                    rule => format!("r{rule}"),
                };
                if self.one_in(4) {
                    let value = self.pick(&["false", "true", "\"x\"", "[]"]);
                    return format!("default {name} := {value}");
                }
                // The value comes after the body: it may name the body's variables.
                let body = self.body(rule);
                let value = match rule == 0 && !self.one_in(4) {
                    true => String::new(),
                    false => self.value(rule),
                };
                let mut text = format!("{name} {value} {body}");
                if self.one_in(3) {
                    let body = self.body(rule);
                    let value = self.value(rule);
                    text.push_str(&format!(" else {value} {body}"));
                }
                text
            }
        }
    }

    fn input(&mut self) -> Value {
        let mut members: Vec<String> = Vec::new();
        for (name, values) in [
            ("user", &["\"alice\"", "\"bob\"", "\"\"", "7", "null"][..]),
            (
                "roles",
                &[
                    "[\"admin\"]",
                    "[]",
                    "[\"x\", \"bob\"]",
                    "\"admin\"",
                    "{\"admin\": true}",
                    "null",
                ],
            ),
            (
                "claims",
                &[
                    "{}",
                    "{\"dept\": \"x\", \"level\": 2}",
                    "{\"dept\": \"y\", \"level\": \"2\"}",
                    "null",
                    "{\"dept\": null, \"d\": 1}",
                ],
            ),
            ("method", &["\"GET\"", "\"POST\""]),
            ("path", &["\"/a/b\"", "\"\"", "\"alice\""]),
            (
                "segments",
                &["[\"a\", \"b\"]", "[]", "[\"alice\"]", "[1, [2]]"],
            ),
            ("flag", &["true"]),
            ("off", &["false"]),
            ("n", &["0", "1", "2.5", "-1", "1768473000000000000"]),
            (
                "address",
                &["\"10.1.2.3\"", "\"::1\"", "\"10.0.0.0/9\"", "\"x\""],
            ),
            (
                "token",
                &[
                    "\"eyJhbGciOiJIUzI1NiIsInR5cCI6IkpXVCJ9.eyJ1c2VyIjoiYWxpY2UiLCJhenAiOiJhbGljZSIsInN1Ym9yZGluYXRlcyI6W10sImhyIjpmYWxzZX0.rz3jTY033z-NrKfwrK89_dcLF7TN4gwCMj-fVBDyLoM\"",
                    "\"a.b\"",
                    "\"eyJhbGciOiJub25lIn0.e30.\"",
                ],
            ),
        ] {
            if !self.one_in(5) {
                members.push(format!("\"{name}\": {}", self.pick(values)));
            }
        }
        Value::from_json_str(&format!("{{{}}}", members.join(", "))).unwrap()
    }
}

fn yes(value: &serde_json::Value) -> bool {
    *value == true || value["allow"] == true
}

#[test]
fn no_generated_policy_is_answered_unlike_opa() {
    let Some(mut opa) = Opa::start() else {
        return;
    };
    let number = |name: &str, otherwise: u64| {
        let given = std::env::var(name).ok();
        given.and_then(|n| n.parse().ok()).unwrap_or(otherwise)
    };
    let (count, seed) = (
        number("PORTCULLIS_POLICIES", 400),
        number("PORTCULLIS_SEED", 0),
    );
    let data = Value::from_json_str(
        r#"{"blocked": ["bob", "x"], "roles": {"alice": ["admin"], "bob": []},
            "levels": {"x": 2, "y": 1}, "names": {"1": "one", "x": "y"}}"#,
    )
    .unwrap();
    let worker = std::thread::Builder::new().stack_size(64 << 20);
    worker
        .spawn(move || compare(&mut opa, seed, count, &data))
        .unwrap()
        .join()
        .unwrap();
}

fn compare(opa: &mut Opa, first: u64, count: u64, data: &Value) {
    let mut tally: BTreeMap<&str, u64> = BTreeMap::new();
    let mut wrong = Vec::new();
    let mut refusals: BTreeMap<String, u64> = BTreeMap::new();
    for seed in first..first + count {
        let mut writer = Writer {
            rng: StdRng::seed_from_u64(seed),
            variables: 0,
            known: Vec::new(),
        };
        let text = writer.policy(&mut |text| {
            // It compiles when it is asked.
            let answer = opa.ask(text, data, &[Value::new_object()]);
            answer.get("answers").is_some()
        });
        let inputs: Vec<Value> = (0..12).map(|_| writer.input()).collect();
        let answer = opa.ask(&text, data, &inputs);
        let sources = [("p.rego".to_owned(), text.clone())];
        let mut add = |what| *tally.entry(what).or_default() += 1;
        let Some(answers) = answer["answers"].as_array() else {
            add("refused by OPA");
            let why = answer["refused"].to_string();
            *refusals.entry(format!("by OPA: {why}")).or_default() += 1;
            continue;
        };
        let mut engines = Vec::new();
        for errors in [Errors::Deny, Errors::Undefined] {
            let reading = Reading {
                errors,
                ..Reading::default()
            };
            let mut parsed = match rego::read(&sources, data, reading) {
                Ok(parsed) => parsed,
                Err(remarks) => {
                    *refusals.entry(remarks[0].message.clone()).or_default() += 1;
                    break;
                }
            };
            let analysis = check::analyse(parsed.engine.get_modules(), "data.p.allow");
            if let Some(remark) = analysis.remarks.first() {
                *refusals.entry(remark.message.clone()).or_default() += 1;
                break;
            }
            let outside = analysis.ref_head.is_some()
                || subset::outside(parsed.engine.get_modules(), data).is_some();
            let interpreted = Program::interpreted(parsed.engine.clone(), "data.p.allow", LIMITS);
            match interpreted {
                Ok(program) => engines.push((errors, "interpreter", program)),
                Err(why) => {
                    *refusals.entry(rego::detail(&why)).or_default() += 1;
                    break;
                }
            }
            if !outside
                && let Ok(program) = Program::compiled(parsed.engine, "data.p.allow", LIMITS)
            {
                engines.push((errors, "machine", program));
            }
        }
        if engines.is_empty() {
            add("refused by us");
            continue;
        }
        add("compared");
        for (errors, name, program) in &engines {
            if *name == "machine" {
                *tally.entry("on the machine").or_default() += 1;
            }
            for (input, answer) in inputs.iter().zip(answers) {
                let outcome = match Machine::new(program) {
                    Ok(mut machine) => machine.run(input.clone()),
                    Err(why) => Outcome::Error(why),
                };
                // OPA is asked to raise the errors of builtins. Which of several statements is asked
                // first is not laid down: one may come to an error that the other never meets.
                let failed = answer.get("error").is_some();
                let met = matches!(outcome, Outcome::Error(_));
                let conflict = matches!(&outcome, Outcome::Error(why) if
                    why.contains("conflict") || why.contains("multiple outputs"));
                let class = match (failed, met, errors) {
                    (true, true, _) => Some("both fail"),
                    (true, false, _) => Some("OPA fails, we do not come to it"),
                    (false, true, _) if conflict => {
                        Some("we deny for two values of one rule, OPA does not come to it")
                    }
                    (false, true, Errors::Deny) => {
                        Some("we deny for an error, OPA does not come to it")
                    }
                    _ => None,
                };
                if let Some(class) = class {
                    *tally.entry(class).or_default() += 1;
                    continue;
                }
                let fine = match &outcome {
                    Outcome::Answer(Value::Undefined) => answer.get("undefined").is_some(),
                    Outcome::Answer(value) => {
                        answer.get("value").is_some_and(|want| same(value, want))
                    }
                    _ => false,
                };
                let ours = matches!(&outcome, Outcome::Answer(value) if
                    serde_json::from_str(&value.to_json_str().unwrap_or_default()).is_ok_and(|v: serde_json::Value| yes(&v)));
                let theirs = yes(&answer["value"]);
                if ours != theirs || !fine {
                    wrong.push(format!(
                        "policy {seed} ({errors:?}, {name}) with {input}: OPA {answer}, we {outcome:?}\n{text}"
                    ));
                } else {
                    let class = if ours {
                        "allowed alike"
                    } else {
                        "denied alike"
                    };
                    *tally.entry(class).or_default() += 1;
                }
            }
        }
    }
    for (refusal, count) in &refusals {
        println!("{count:6}  refused: {refusal}");
    }
    println!("{tally:#?}");
    println!("{} WRONG", wrong.len());
    for wrong in wrong.iter().take(40) {
        println!("WRONG {wrong}");
    }
    assert!(wrong.is_empty(), "{} answers unlike OPA's", wrong.len());
    assert!(
        tally.get("allowed alike").is_some_and(|n| *n > count / 4),
        "the writer has lost its teeth"
    );
}
