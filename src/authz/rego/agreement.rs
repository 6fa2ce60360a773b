//! The two engines beside one another: where they differ, the bytecode machine is not used.

use std::fs;
use std::num::NonZeroU64;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};
use regorus::Value;

use crate::authz::rego::subset;
use crate::authz::rego::{self, Limits, Machine, Outcome, Program, Source};
use crate::document;

const LIMITS: Limits = Limits {
    time: Duration::from_secs(5),
    instructions: 1_000_000,
    memory: NonZeroU64::MAX,
};

fn json(text: &str) -> Value {
    Value::from_json_str(text).unwrap()
}

/// The first form that is not on the list.
fn outside(sources: &[Source]) -> Option<&'static str> {
    let data = json(r#"{"numbered": {"1": true}, "named": {"x": true}}"#);
    let mut engine = rego::parse(sources, &data).unwrap();
    subset::outside(engine.get_modules(), &data).map(|outside| outside.what)
}

fn module(rules: &str) -> Vec<Source> {
    vec![("p.rego".to_owned(), format!("package p\n{rules}\n"))]
}

fn program(sources: &[Source], data: &Value, entry: &str, rvm: bool) -> Result<Program, String> {
    let engine = rego::parse(sources, data).map_err(|remarks| format!("{remarks:?}"))?;
    if rvm {
        Program::compiled(engine, entry, LIMITS)
    } else {
        Program::interpreted(engine, entry, LIMITS)
    }
}

fn run(program: &Program, input: &Value) -> Outcome {
    match Machine::new(program) {
        Ok(mut machine) => machine.run(input.clone()),
        Err(why) => Outcome::Error(why),
    }
}

/// On our bytecode machine, or the engine's, with so many instructions.
fn run_within(program: &Program, input: &Value, most: usize, engines: bool) -> Outcome {
    let mut machine = Machine::within(program, most, engines).unwrap();
    machine.run(input.clone())
}

fn same(one: &Outcome, other: &Outcome) -> bool {
    matches!((one, other), (Outcome::Error(_), Outcome::Error(_))) || one == other
}

/// Each of these is answered differently by the machine, mostly with a yes where OPA and the
/// interpreter are undefined or fail.
const DIFFERENT: &[&str] = &[
    "allow if { not \"zz\", 1 in {\"b\": 1} }",
    "allow if count({f(x) | some x in [1, 2]}) == 1\nf(x) := true if x == 1",
    "allow if { w := input.nope }",
    "allow if { w := data.nope }",
    "g := \"x\" if input.nope\nallow if { w := g }",
    "allow if { x := {\"a\": input.nope} }",
    "allow if { x := [input.nope] }",
    "allow if { x := {input.nope} }",
    "allow if { x := upper(input.nope) }",
    "allow if { x := input.nope == 1 }",
    "allow if { _ := input.nope }",
    "allow if { f(input.nope) }\nf(_) := true",
    "allow if count({f(x): 1 | some x in [1, 2]}) == 1\nf(x) := true if x == 1",
    "f([x]) if x == 1\nallow if f([1])",
    "f(x) := 1 if x\nf(x) := 2 if not x\nallow if f(true)",
    "allow if { every x in [1] { y := input.nope } }",
    "allow if { some x in [1]; y := input.nope }",
    "allow if { count([x | x := input.nope]) == 1 }",
    "allow if { count([input.nope | true]) == 1 }",
    "allow if { count({\"a\": input.nope | true}) == 1 }",
    "allow if { count({input.nope: 1 | true}) == 1 }",
    "s contains 1 if { x := input.nope }\nallow if 1 in s",
    "o[k] := input.nope if { k := \"a\" }\nallow if count(o) == 1",
    "allow := input.nope if true else := true",
    "allow := false if { some x in []; x == 1 } else := true",
    "allow if data.numbered[1]",
    "allow if data.numbered[input.number]",
    "r := input.number\nallow if data.numbered[r]",
    "a := 1 if input.text\na := 2 if input.text\nallow if not a",
    "a := true if input.text\na := false if input.text\nallow if not a",
    "f(x) := 1 if x\nf(x) := 2 if x\nallow if not f(true)",
    "a := upper(input.number) if true else := 5\nallow if a == 5",
    "default f(_) := true\nf(x) := false if x == 1\nallow if f(2)",
    "f(x) if { y := x.a }\nallow if { f({\"b\": 1}) }",
    "allow if { x := {1} & input.nope }",
];

/// The machine as it comes answers these differently too: it swallows what fails. Rewritten it asks
/// the interpreter.
const GUARDED: &[&str] = &[
    "allow if { every x in [] { x == input.text }; input.number == 5 }",
    "allow if { every x in [] { x == data.p.r }; data.p.r == 5 }\nr := input.number",
    "allow if { count([x | some x in []; x == input.text]) == 0; input.number == 5 }",
    "allow if { every x in [] { x == data.named }; not data.named }",
    "bad if input.number % 2 == 1\nallow if not bad",
    "bad if input.number / input.text == 1\nallow if not bad",
    "allow if { every x in input.text { x == 1 } }",
    "allow if { every x in input.nope { x == 1 } }",
    "allow if { not f(input.nope) }\nf(x) if x == 1",
    "allow if f(input.nope)\nf(x) := true",
    "allow if f(input.number, input.nope)\nf(x, y) if x == 5",
    "allow if { every x in input.list { x > 4 } }",
    "allow if f(input.number)\nf(x) if upper(x) == \"X\"",
    "allow if not f(input.number)\nf(x) if upper(x) == \"X\"",
    "allow if count([x | some x in input.list; x > 3]) == 2",
    "default allow := 1\nallow if { every x in input.nope { x == 1 }; upper(input.number) == \"X\" }",
    "default allow := 1\nallow if { every x in input.none { f(x); x != 2 }; upper(input.number) == \"X\" }\nf(x) if x == 1",
    "default allow := 1\nallow if { every x in [] { x == 1 }; upper(input.number) == \"X\" }",
    "default allow := 1\nallow if { every x in input.none { x == 1 }; sprintf(\"%s\", [count(input.none)]) > 1; upper(input.number) == \"X\" }",
    "default allow := 1\nallow if { sprintf(\"%v-%s\", [count(input.none), data.m]) > 1; data.n[(input.null - 7)] / 7 < input.a }",
    "allow if json.unmarshal(input.text) == 1",
    "allow if not regex.match(input.text, \"x\")",
    "allow if not object.get(input.list, \"a\", 1) == 5",
    "allow if { sprintf(\"%d\", [input.text]) != \"\" }",
    "allow if { sprintf(\"%s %s\", [\"a\"]) != \"\" }",
    "bad if 1 / (input.number - 5) == 1\nallow if not bad",
    "allow if { count([x | some x in input.number]) == 0 }",
    "allow if { some x in input.text }",
    "bad if { some x in input.text }\nallow if not bad",
    "bad if { some x in input.list; some y in x }\nallow if not bad",
    "bad if { some x in [1]; some y in input.nope }\nallow if not bad",
    "bad if upper(input.number) == \"X\"\nallow if not bad",
    "bad if upper(input.nope) == \"X\"\nallow if not bad",
    "bad if input.number < input.text\nallow if not bad",
    "bad if input.null < input.number\nallow if not bad",
    "bad if input.list >= input.null\nallow if bad",
    "bad if input.number - input.text > 1\nallow if not bad",
    "bad if {1, 2} - {2} == {1}\nallow if bad",
    "default a := 5\na := upper(input.number)\nallow if a == 5",
    "default a := 5\na := input.number * input.text\nallow if a == 5",
    "allow if upper(input.number) == \"x\"\nallow if input.text",
    "allow if input.text\nallow if upper(input.number) == \"x\"",
    "allow if { some x in [\"a\", 1]; startswith(x, \"a\") }",
    "s contains x if { some x in [\"a\", 1]; startswith(x, \"a\") }\nallow if \"a\" in s",
    "s contains x if { some x in input.list; x > 3 }\nallow if 5 in s",
    "bad if net.cidr_contains(input.text, \"10.0.0.1\")\nallow if not bad",
    "bad if net.cidr_contains(\"10.0.0.0/8\", input.text)\nallow if not bad",
    "bad if { clock := time.clock(input.text); clock[0] < 5 }\nallow if not bad",
    "allow if { clock := time.clock(input.number); clock[0] < 5 }",
    "bad if concat(\":\", [input.text, input.number]) == \"\"\nallow if not bad",
    "bad if concat(\":\", [input.text, input.nope]) == \"\"\nallow if not bad",
    "allow if count(input.list) == 2",
    "bad if count(input.number) == 2\nallow if not bad",
];

#[test]
fn what_fails_on_the_machine_is_asked_of_the_interpreter() {
    let data = json("{}");
    let inputs = [
        r#"{"text": "x", "number": 5, "null": null, "list": [5, 6], "none": []}"#,
        r#"{"text": "10.0.0.0/8", "number": "x", "null": false, "list": [[], {}, "y"]}"#,
        r#"{"text": {}, "number": [], "list": {"a": 5}}"#,
        "{}",
    ];
    for rules in GUARDED {
        assert_eq!(outside(&module(rules)), None, "{rules}");
        let sources = module(rules);
        let interpreted = program(&sources, &data, "data.p.allow", false).unwrap();
        let compiled = program(&sources, &data, "data.p.allow", true).unwrap();
        let mut machine = Machine::new(&compiled).unwrap();
        for input in inputs.map(json) {
            let expected = run(&interpreted, &input);
            assert!(
                same(&expected, &run(&compiled, &input)),
                "{rules} with {input}"
            );
            // A machine that failed once goes on.
            assert!(
                same(&expected, &machine.run(input.clone())),
                "{rules} again with {input}"
            );
        }
    }
}

#[test]
fn forms_that_the_machine_answers_differently_are_not_on_the_list() {
    for rules in DIFFERENT {
        assert!(outside(&module(rules)).is_some(), "{rules}");
    }
}

#[test]
fn what_authorization_is_mostly_made_of_is_on_the_list() {
    let shipped = Path::new(env!("CARGO_MANIFEST_DIR")).join("policies/orders.rego");
    let shipped = fs::read_to_string(shipped).unwrap();
    assert_eq!(outside(&[("orders.rego".to_owned(), shipped)]), None);
    for rules in [
        "default allow := false\nallow if \"orders:read\" in input.identity.scopes",
        "allow if { input.request.method == \"GET\"; not blocked }\nblocked if data.blocked[input.identity.subject]",
        "allow if { user := input.identity.subject; user == input.route.params.id }",
        "allow if { role := input.identity.claims.role; role in data.roles[input.request.method] }",
        "allow if { some segment in input.request.segments; segment == \"open\" }",
        "allow if startswith(input.request.path, \"/open/\")",
        "allow if data.numbered[input.route.params.id]",
        "allow if data.named[input.identity.claims.tenant]",
        "allow := {\"allow\": false} if { input.closed } else := {\"allow\": true, \"reason\": grant} if { grant } else := false\ngrant := \"a\" if input.a",
        "allow if { every role in input.identity.roles { role in data.known } }",
        "allow if is_reader(input.identity.claims.role)\nis_reader(role) if role in data.readers",
        "allow if count([s | some s in input.identity.scopes; startswith(s, \"orders:\")]) > 0",
        "allow if { some path in data.paths; glob.match(path, [\"/\"], input.request.path) }",
        "allow if { regex.match(\"^/v[0-9]+/\", input.request.path); object.get(input.identity.claims, \"tier\", \"free\") != \"free\" }",
        "deny contains msg if { input.request.method == \"DELETE\"; msg := \"no deletes\" }\nallow if count(deny) == 0",
        "deny contains msg if { some role in input.identity.roles; msg := sprintf(\"%s is out\", [role]) }\nallow if count(deny) == 0",
        "denied contains \"closed\" if data.closed\nallow := {\"allow\": false, \"reason\": sprintf(\"%v\", [denied])} if denied != set()",
    ] {
        assert_eq!(outside(&module(rules)), None, "{rules}");
    }
}

/// Writes policies at random: most of the tame ones are made only of what is on the list.
struct Writer {
    rng: StdRng,
    tame: bool,
    variables: usize,
}

impl Writer {
    fn pick(&mut self, from: &[&'static str]) -> &'static str {
        from.choose(&mut self.rng).unwrap()
    }

    fn one_in(&mut self, n: u32) -> bool {
        self.rng.random_ratio(1, n)
    }

    /// Mostly what a builtin can take.
    fn fit(&mut self, term: &str, other: impl FnOnce(&mut Self) -> String) -> String {
        if self.one_in(8) {
            other(self)
        } else {
            term.to_owned()
        }
    }

    /// A term; `rule` may name only later rules.
    fn term(&mut self, rule: usize, depth: usize) -> String {
        let choice = self.rng.random_range(0..if self.tame { 24 } else { 25 });
        let inner = |writer: &mut Self| {
            if depth == 0 {
                "input.a".to_owned()
            } else {
                writer.term(rule, depth - 1)
            }
        };
        match choice {
            0..=3 => self
                .pick(&[
                    "input.a",
                    "input.b",
                    "input.c.d",
                    "input.nope",
                    "input.list",
                    "input.c",
                    "input.list[0]",
                    "input.request.path",
                ])
                .to_owned(),
            4 | 5 => self
                .pick(&[
                    "\"x\"",
                    "\"y\"",
                    "1",
                    "true",
                    "false",
                    "null",
                    "[]",
                    "{1, \"x\"}",
                    "\"\"",
                    "[\"x\", 1]",
                ])
                .to_owned(),
            6 => self
                .pick(&["data.m", "data.m.x", "data.nope", "data.m.list"])
                .to_owned(),
            7 => format!(
                "{}[{}]",
                self.pick(&[
                    "data.m",
                    "data.n",
                    "input.c",
                    "input.list",
                    if rule < 3 { "r3" } else { "input.c" }
                ]),
                inner(self)
            ),
            8 if rule < 3 => self.pick(&["s", "r3", "r3"]).to_owned(),
            8 | 9 if rule < 2 => format!("r{}", self.rng.random_range(rule + 1..4)),
            8 | 9 => "input.b".to_owned(),
            10 => match self.rng.random_range(0..3) {
                0 => format!("[{}]", inner(self)),
                1 => format!("{{\"k\": {}}}", inner(self)),
                _ => format!("{{{}}}", inner(self)),
            },
            11 => match self.rng.random_range(0..3) {
                0 => format!("sprintf(\"%v-%s\", [{}, {}])", inner(self), inner(self)),
                1 => "startswith(input.request.path, \"/x\")".to_owned(),
                _ => "upper(input.request.path)".to_owned(),
            },
            12 => {
                let name = self.pick(&["upper", "count", "time.clock", "abs", "trim_space"]);
                let fit = match name {
                    "count" => "input.request.segments",
                    "upper" | "trim_space" => "input.t",
                    _ => "input.n",
                };
                let arg = self.fit(fit, inner);
                format!("{name}({arg})")
            }
            13 => {
                let name = self.pick(&["startswith", "contains", "split", "trim_prefix"]);
                let (one, other) = (self.fit("input.t", inner), self.fit("\"x\"", inner));
                format!("{name}({one}, {other})")
            }
            14 => {
                let (one, other) = (self.fit("input.t", inner), self.fit("input.t", inner));
                format!("concat(\":\", [{one}, {other}])")
            }
            15 => {
                let network = self.fit("\"10.0.0.0/8\"", inner);
                let address = self.fit("input.address", inner);
                format!("net.cidr_contains({network}, {address})")
            }
            16 => {
                let (one, other) = (self.fit("input.n", inner), self.fit("7", inner));
                format!("({one} {} {other})", self.pick(&["+", "-", "*"]))
            }
            17 => {
                let (one, other) = (self.fit("input.n", inner), self.fit("7", inner));
                format!("({one} {} {other})", self.pick(&["/", "%"]))
            }
            18 | 19 => {
                self.variables += 1;
                let v = format!("c{}", self.variables);
                let over = self.fit("input.request.segments", inner);
                let test = inner(self);
                let (open, close) = *[("[", "]"), ("{", "}")].choose(&mut self.rng).unwrap();
                let made = format!("{open}{v} | some {v} in {over}; {v} != {test}{close}");
                if self.one_in(2) {
                    format!("count({made})")
                } else {
                    made
                }
            }
            20 => format!("f({})", self.fit("input.t", inner)),
            21 => format!("g({}, {})", self.fit("input.n", inner), inner(self)),
            22 => {
                let key = self.pick(&["\"d\"", "\"nope\"", "1"]);
                let default = inner(self);
                format!(
                    "object.get({}, {key}, {default})",
                    self.pick(&["input.c", "data.m"])
                )
            }
            23 => {
                let text = self.fit("input.t", inner);
                self.pick(&["x", "y"]);
                match self.rng.random_range(0..4) {
                    0 => format!("regex.match(\"^x\", {text})"),
                    1 => format!("replace({text}, \"x\", \"y\")"),
                    2 => format!("array.concat(input.request.segments, {text})"),
                    _ => format!("to_number({text})"),
                }
            }
            _ => format!("h({})", inner(self)),
        }
    }

    fn statement(&mut self, rule: usize, several: bool, out: &mut Vec<String>) {
        let one = self.term(rule, 2);
        let other = self.term(rule, 1);
        let not = if self.one_in(3) { "not " } else { "" };
        self.variables += 1;
        let v = format!("v{}", self.variables);
        let kinds = match (self.tame, several) {
            (true, true) => 12,
            (true, false) => 19,
            (false, _) => 22,
        };
        let last = match self.rng.random_range(0..kinds) {
            0..=2 => format!("{not}{one} == {other}"),
            3 | 4 => format!("{not}{one} != {other}"),
            5 | 6 => format!("{not}{one} in {other}"),
            7 | 8 => format!("{not}{one}"),
            9 => {
                out.push(format!("{v} := {one}"));
                match self.rng.random_range(0..11) {
                    0 => format!("{v} == {other}"),
                    1 => format!("{v} != {other}"),
                    2 => v,
                    3 => format!("{v} in {other}"),
                    4 => format!("startswith({v}, \"x\")"),
                    5 => format!("{v} - 1 < {other}"),
                    6 => format!("[{v}] != {other}"),
                    7 => format!("{{{v}, 1}} != {other}"),
                    8 => format!("concat(\":\", [\"x\", {v}]) != {other}"),
                    9 if !several => format!("some n{v} in {v}"),
                    _ => format!("{v}.d != {other}"),
                }
            }
            10 | 11 => format!("{not}{one} {} {other}", self.pick(&["<", "<=", ">", ">="])),
            12 => {
                let over = self.pick(&[
                    "s",
                    "input.request.segments",
                    "[1, \"x\"]",
                    "[input.a, input.b]",
                    "{\"k\": input.a}",
                ]);
                let over = if over == "s" && rule >= 3 {
                    "{1}"
                } else {
                    over
                };
                out.push(format!("some {v} in {over}"));
                match self.rng.random_range(0..3) {
                    0 => format!("{not}input.c[{v}] == {other}"),
                    1 => format!("{not}{v} in {other}"),
                    _ => format!("{not}{v} == {other}"),
                }
            }
            13 => {
                out.push(format!("some k{v}, {v} in input.request.query"));
                format!("{not}[k{v}, {v}] == {other}")
            }
            14 | 15 => {
                let key = if self.one_in(3) {
                    format!("k{v}, ")
                } else {
                    String::new()
                };
                let over = self.pick(&[
                    "data.m.list",
                    "data.m",
                    "input.request.query",
                    "data.n[input.b]",
                ]);
                let over = self.fit(over, |_| one);
                out.push(format!("some {key}{v} in {over}"));
                match self.rng.random_range(0..5) {
                    0 => format!("{not}{v} < {other}"),
                    1 => {
                        let text = self.fit("input.t", |_| v.clone());
                        format!("{not}startswith({text}, \"x\")")
                    }
                    2 => format!("{not}{v} in {other}"),
                    3 => {
                        let over = self.fit("s", |_| v.clone());
                        let over = if rule < 3 { over } else { "[1]".to_owned() };
                        out.push(format!("some n{v} in {over}"));
                        format!("{not}n{v} == {other}")
                    }
                    _ => format!("{not}{v} == {other}"),
                }
            }
            16 => {
                let text = self.fit("input.t", |_| one);
                out.push(format!("{v} := split({text}, \"/\")"));
                format!("{v}[{}] >= {other}", self.rng.random_range(0..3))
            }
            17 | 18 => {
                let over = self.fit("input.request.segments", |_| one);
                let not = if self.one_in(4) { "not " } else { "" };
                match self.rng.random_range(0..3) {
                    0 => format!("every {v} in {over} {{ {v} == {other} }}"),
                    1 => format!("every {v} in {over} {{ {not}f({v}); {v} != {other} }}"),
                    _ => format!("every k{v}, {v} in {over} {{ {not}[k{v}, {v}] == {other} }}"),
                }
            }
            19 => match self.rng.random_range(0..3) {
                0 => format!("{v} := {one}"),
                1 => format!("{v} = {one}"),
                _ => format!("every {v} in {one} {{ x := {v}; x == {other} }}"),
            },
            20 => format!("{one} % 2 < {other}"),
            _ => format!("\"x\", {one} in {other}"),
        };
        out.push(last);
    }

    fn body(&mut self, rule: usize, several: bool) -> String {
        let mut out = Vec::new();
        for _ in 0..self.rng.random_range(1..4) {
            self.statement(rule, several, &mut out);
        }
        if self.one_in(8) {
            out.reverse();
        }
        format!("if {{\n  {}\n}}", out.join("\n  "))
    }

    fn value(&mut self, rule: usize, safe: bool) -> String {
        if safe && self.tame {
            return self
                .pick(&[
                    ":= true",
                    ":= false",
                    ":= \"x\"",
                    ":= input.request.path",
                    ":= {\"1\": \"x\", \"x\": \"y\"}",
                    ":= {\"allow\": true, \"r\": [input.request.method]}",
                ])
                .to_owned();
        }
        match self.rng.random_range(0..3) {
            0 => String::new(),
            _ => format!(":= {}", self.term(rule, 1)),
        }
    }

    fn policy(&mut self) -> String {
        let mut rules = Vec::new();
        for rule in 0..4 {
            let name = if rule == 0 {
                "allow".to_owned()
            } else {
                format!("r{rule}")
            };
            if self.one_in(3) {
                let value = self.pick(&["true", "false", "\"x\"", "{\"k\": [1]}"]);
                rules.push(format!("default {name} := {value}"));
            }
            if self.one_in(3) {
                // Defined several times, for one reason or another.
                for _ in 0..2 {
                    let value = if self.tame { "" } else { ":= input.a" };
                    let body = self.body(rule, false);
                    rules.push(format!("{name} {value} {body}"));
                }
                continue;
            }
            let branches = self.rng.random_range(0..3);
            let several = branches > 0;
            let value = self.value(rule, several);
            let mut text = format!("{name} {value} {}", self.body(rule, several));
            for _ in 0..branches {
                let value = self.value(rule, true);
                text.push_str(&format!(" else {value} {}", self.body(rule, true)));
            }
            rules.push(text);
        }
        for _ in 0..2 {
            let member = if self.tame {
                self.pick(&["\"x\"", "input.request.path", "upper(input.request.method)"])
                    .to_owned()
            } else {
                self.term(3, 1)
            };
            rules.push(format!("s contains {member} {}", self.body(3, false)));
        }
        rules.push("s contains v if { some v in input.request.segments; v != \"y\" }".to_owned());
        let tests = [
            "x != \"y\"",
            "x",
            "startswith(x, \"x\")",
            "x in data.m.list",
            "not x == 1",
        ];
        let test = self.pick(&tests);
        rules.push(format!("f(x) if {{ {test} }}"));
        let value = self.pick(&["x + y", "[x, y]", "x", "\"x\""]);
        let test = self.pick(&["x != y", "x > 1", "not y", "y in [x, 1]"]);
        rules.push(format!("g(x, y) := {value} if {{ {test} }}"));
        if !self.tame {
            rules.push("h(x) := y if { y := x }".to_owned());
        }
        rules.join("\n")
    }

    fn input(&mut self) -> Value {
        let values = [
            "\"x\"",
            "\"y\"",
            "1",
            "0",
            "true",
            "false",
            "null",
            "[]",
            "[\"x\", 1]",
            "{}",
            "{\"d\": \"x\"}",
            "{\"d\": 1, \"x\": \"y\"}",
            "\"\"",
            "[[\"x\"]]",
            "\"10.1.2.3\"",
            "2.5",
            "-3",
        ];
        let mut members: Vec<String> = Vec::new();
        for name in ["a", "b", "c", "list"] {
            if !self.one_in(5) {
                members.push(format!("\"{name}\": {}", self.pick(&values)));
            }
        }
        for (name, values) in [
            ("n", ["1", "7", "-2.5", "1768473000000000000"]),
            ("t", ["\"x\"", "\"x/y\"", "\"\"", "\"y\""]),
            (
                "address",
                ["\"10.1.2.3\"", "\"11.0.0.1\"", "\"::1\"", "\"10.0.0.0/9\""],
            ),
        ] {
            let value = if self.one_in(12) {
                "null"
            } else {
                self.pick(&values)
            };
            if !self.one_in(8) {
                members.push(format!("\"{name}\": {value}"));
            }
        }
        let path = self.pick(&["/x", "/y/x", "/"]);
        let segments = self.pick(&["[\"x\"]", "[]", "[\"y\", \"x\"]"]);
        let query = self.pick(&["{}", "{\"x\": [\"x\"]}", "{\"x\": [\"y\"], \"y\": []}"]);
        members.push(format!(
            "\"request\": {{\"path\": \"{path}\", \"method\": \"GET\", \"segments\": {segments}, \"query\": {query}}}"
        ));
        json(&format!("{{{}}}", members.join(", ")))
    }
}

/// `PORTCULLIS_POLICIES` asks for more policies than a test run has time for, from that numbered
/// `PORTCULLIS_FIRST` on.
#[test]
fn both_engines_agree_on_generated_policies_made_of_what_is_on_the_list() {
    let count: u64 = std::env::var("PORTCULLIS_POLICIES")
        .ok()
        .and_then(|count| count.parse().ok())
        .unwrap_or(600);
    let data = json(
        r#"{"m": {"x": "y", "list": ["x", 1], "true": 1, "1": "x"}, "n": {"x": "y", "y": ["x", 1], "z": 1}}"#,
    );
    let (mut inside, mut allowed, mut failed, mut differing, mut ours) = (0, 0, 0, 0, 0);
    let first: u64 = std::env::var("PORTCULLIS_FIRST")
        .ok()
        .and_then(|first| first.parse().ok())
        .unwrap_or(0);
    for seed in first..first + count {
        let mut writer = Writer {
            rng: StdRng::seed_from_u64(seed),
            tame: seed % 4 != 0,
            variables: 0,
        };
        let text = writer.policy();
        let sources = module(&text);
        let Ok(mut engine) = rego::parse(&sources, &data) else {
            // Some of the wild ones are no Rego.
            continue;
        };
        let listed = subset::outside(engine.get_modules(), &data).is_none();
        let Ok(interpreted) = program(&sources, &data, "data.p.allow", false) else {
            continue;
        };
        let Ok(compiled) = program(&sources, &data, "data.p.allow", true) else {
            continue;
        };
        inside += u64::from(listed);
        for _ in 0..8 {
            let input = writer.input();
            let (expected, found) = (run(&interpreted, &input), run(&compiled, &input));
            let engines = run_within(&compiled, &input, usize::MAX, true);
            assert!(
                same(&engines, &found),
                "policy {seed} with {input}: the engine's machine {engines:?}, ours {found:?}\n{text}"
            );
            ours += u64::from(Machine::new(&compiled).unwrap().is_lean());
            if listed {
                assert!(
                    same(&expected, &found),
                    "policy {seed} with {input}: the interpreter {expected:?}, the machine {found:?}\n{text}"
                );
                failed += u64::from(matches!(found, Outcome::Error(_)));
                allowed += u64::from(found == Outcome::Answer(Value::from(true)));
            } else {
                differing += u64::from(!same(&expected, &found));
            }
        }
    }
    println!(
        "{inside} of {count} policies on the list, {allowed} times allowed, {failed} failed; off the list {differing} differences"
    );
    assert!(count < 100 || ours > count * 4, "ours ran {ours} times");
    assert!(
        count < 100 || inside > count / 8 && allowed > count / 8,
        "{inside} inside, {allowed} allowed"
    );
    assert!(
        count < 100 || differing > 0,
        "the writer has lost its teeth"
    );
}

fn yes(outcome: &Outcome) -> bool {
    match outcome {
        Outcome::Answer(value) => {
            *value == Value::from(true)
                || value
                    .as_object()
                    .is_ok_and(|o| o.get(&"allow".into()) == Some(&true.into()))
        }
        Outcome::Error(_) | Outcome::Budget(_) | Outcome::Panic(_) => false,
    }
}

/// The policy that the benches call ordinary, and what it looks up.
fn sixty() -> (Vec<Source>, Value) {
    let benches = Path::new(env!("CARGO_MANIFEST_DIR")).join("benches/policies");
    let text = fs::read_to_string(benches.join("sixty.rego")).unwrap();
    let data = fs::read(benches.join("sixty.data.yaml")).unwrap();
    let data = document::from_yaml(&data).unwrap();
    (vec![("sixty.rego".to_owned(), text)], data)
}

#[test]
fn our_machine_spends_the_instructions_that_the_engines_spends() {
    let (sources, data) = sixty();
    let sixty = program(&sources, &data, "data.sixty.allow", true).unwrap();
    let loops = module(
        "allow if { count([x | some x in input.list; f(x)]) > 1; every x in input.list { x < 9 } }\n\
         f(x) := true if x > 1 else := false\ns contains x if some x in {1, 2, 3}\n\
         allow if { not 4 in s; o := {\"a\": input.list}; o.a[0] == 7 }",
    );
    let loops = program(&loops, &Value::new_object(), "data.p.allow", true).unwrap();
    let mut rng = StdRng::seed_from_u64(7);
    let list = json(r#"{"list": [1, 2, 3, 8]}"#);
    for (program, input) in [(&sixty, ordinary(&mut rng, 0)), (&loops, list)] {
        assert!(Machine::new(program).unwrap().is_lean());
        let (mut spent, mut most) = (0, 0);
        loop {
            let ours = run_within(program, &input, most, false);
            let engines = run_within(program, &input, most, true);
            assert_eq!(ours, engines, "with {most} instructions");
            if !matches!(ours, Outcome::Budget(_)) {
                break;
            }
            (spent, most) = (spent + 1, most + 1);
        }
        assert!(spent > 40, "{spent}");
    }
}

/// A policy whose rules have several bodies, of which many begin with a comparison with a constant, or
/// nearly with one.
fn many_bodies(rng: &mut StdRng) -> String {
    const STATEMENTS: &[&str] = &[
        "input.t == \"x\"",
        "\"x\" == input.t",
        "input.t == \"y\"",
        "input.request.segments[0] == \"x\"",
        "input.request.segments[0] == \"y\"",
        "input.n == 1",
        "input.n == 7",
        "input.none == null",
        "input.nope == 1",
        "input.list == [1, 2]",
        "input.list[1] == 2",
        "input.a.b == \"y\"",
        "input.t != \"x\"",
        "input.t == input.u",
        "input.t in {\"x\", \"y\"}",
        "not input.t == \"x\"",
        "upper(input.n) == \"X\"",
        "upper(input.t) == \"X\"",
        "some v in input.list; v == 2",
        "every v in input.list { v == 2; input.t == \"x\" }",
        "count([v | some v in input.list; input.n == 1; v > 1]) == 1",
        "data.m.x == \"y\"",
        "input.n > 0",
        "t := input.t; t == \"x\"",
        "r",
        "g(input.t)",
    ];
    let body = |rng: &mut StdRng| {
        let count = rng.random_range(1..4);
        let picked = (0..count).map(|_| *STATEMENTS.choose(rng).unwrap());
        picked.collect::<Vec<_>>().join("; ")
    };
    let mut text = String::new();
    if rng.random_bool(0.5) {
        text.push_str("default allow := false\n");
    }
    for _ in 0..rng.random_range(2..7) {
        let (one, other) = (body(rng), body(rng));
        text.push_str(&match rng.random_range(0..8) {
            0 => format!("allow if {{ {one} }} else := true if {{ {other} }}\n"),
            1 => format!("s contains 1 if {{ {one} }}\ns contains 2 if {{ {other} }}\n"),
            2 => format!("f(x) if {{ {one}; x == \"x\" }}\nf(x) if {{ {other} }}\n"),
            3 => "allow if 1 in s\n".to_owned(),
            4 => "allow if f(input.u)\n".to_owned(),
            _ => format!("allow if {{ {one} }}\n"),
        });
    }
    text.push_str(
        "r if input.t == \"y\"\nr if input.n == 1\ng(x) if x == \"x\"\ng(x) if input.n == 7\n",
    );
    text.push_str("s contains 3 if input.n == 3\nf(x) if x == 9\n");
    text
}

#[test]
fn a_body_that_is_not_begun_fails_as_it_does_on_the_engines_machine() {
    let count: u64 = std::env::var("PORTCULLIS_POLICIES")
        .ok()
        .and_then(|count| count.parse().ok())
        .unwrap_or(200);
    let data = json(r#"{"m": {"x": "y"}}"#);
    let (mut ran, mut allowed, mut spent) = (0u64, 0u64, 0u64);
    for seed in 0..count {
        let mut rng = StdRng::seed_from_u64(seed);
        let text = many_bodies(&mut rng);
        let Ok(program) = program(&module(&text), &data, "data.p.allow", true) else {
            continue;
        };
        let marked = Machine::watched(&program).is_some();
        for _ in 0..6 {
            let mut pick = |values: &[&str]| (*values.choose(&mut rng).unwrap()).to_owned();
            let input = json(&format!(
                r#"{{"t": {}, "u": {}, "n": {}, "none": {}, "list": {}, "a": {}, "request": {{"segments": {}}}}}"#,
                pick(&["\"x\"", "\"y\"", "1", "null"]),
                pick(&["\"x\"", "9"]),
                pick(&["1", "7", "1.0", "\"x\"", "-1"]),
                pick(&["null", "1"]),
                pick(&["[1, 2]", "[]", "[2, 2]", "\"x\"", "{\"1\": 2}"]),
                pick(&["{\"b\": \"y\"}", "{}", "\"y\"", "[]"]),
                pick(&["[\"x\"]", "[]", "[\"y\", \"x\"]"]),
            ));
            let mut limits = vec![usize::MAX];
            limits.extend((0..6).map(|_| rng.random_range(0..150)));
            for most in limits {
                let ours = run_within(&program, &input, most, false);
                let engines = run_within(&program, &input, most, true);
                assert_eq!(ours, engines, "policy {seed}, {most}, {input}\n{text}");
                ran += 1;
                allowed += u64::from(ours == Outcome::Answer(Value::from(true)));
                spent += u64::from(matches!(ours, Outcome::Budget(_)));
                if most == usize::MAX && marked {
                    let watched = Machine::watched(&program).unwrap().run(input.clone());
                    assert_eq!(ours, watched, "policy {seed}, {input}\n{text}");
                }
            }
        }
    }
    println!("{ran} runs, {allowed} allowed, {spent} spent their instructions");
    assert!(ran > count * 30 && allowed > count && spent > count);
}

/// Rules whose comprehensions hold conditions that stand outside every loop of theirs.
fn comprehensions(rng: &mut StdRng) -> String {
    const STATEMENTS: &[&str] = &[
        "count([1 | input.n == 1]) == 0",
        "count([1 | input.n == 1]) == 1",
        "count({1 | input.n == 1; input.t == \"x\"}) == 1",
        "count({v: 1 | input.t == \"x\"; some v in input.list}) == 0",
        "some s in input.list; count([1 | s == 2]) == 0",
        "some s in input.list; count([1 | s == 2; input.n == 1]) == 1",
        "every x in input.list { count([1 | x == 1]) == 0 }",
        "every x in input.list { count([1 | x == 1]) == 1; x < 3 }",
        "count({x | some x in input.list; count([1 | x == 2]) == 1}) == 1",
        "count([x | some x in input.list; count([y | some y in input.list; count([1 | y == x]) == 1]) > 0; x > 1]) == 1",
        "count([1 | every y in input.list { y > 1 }; input.n == 1]) == 1",
        "count([1 | every y in input.list { count([1 | y == 2]) == 0 }]) == 1",
        "count([1 | count([1 | input.n == 1]) == 0; input.t == \"x\"]) == 1",
        "input.t == \"x\"",
        "not input.t == \"x\"",
        "input.n == 7",
        "not r",
        "1 in s",
    ];
    let body = |rng: &mut StdRng| {
        let count = rng.random_range(1..4);
        let picked = (0..count).map(|_| *STATEMENTS.choose(rng).unwrap());
        picked.collect::<Vec<_>>().join("; ")
    };
    let mut text = String::new();
    for _ in 0..rng.random_range(1..4) {
        text.push_str(&match rng.random_range(0..4) {
            0 => format!("bad if {{ {} }}\nallow if not bad\n", body(rng)),
            1 => format!("allow if f(input.n)\nf(x) if {{ x > 0; {} }}\n", body(rng)),
            _ => format!("allow if {{ {} }}\n", body(rng)),
        });
    }
    text.push_str("r if { some x in input.list; count([1 | x == 1]) == 0 }\n");
    text.push_str("s contains 1 if { count([1 | input.n == 1]) == 0; input.t == \"x\" }\n");
    text.push_str("s contains 2 if input.n == 7\n");
    text
}

/// The engine's machine lets the turn of the loop around it fail, or a condition behind it.
#[test]
fn what_fails_inside_a_comprehension_ends_it_and_nothing_else() {
    let (mut ran, mut allowed, mut differing) = (0u32, 0u32, 0u32);
    for seed in 0..600 {
        let mut rng = StdRng::seed_from_u64(seed);
        let text = comprehensions(&mut rng);
        let sources = module(&text);
        let nothing = Value::new_object();
        if outside(&sources).is_some() {
            continue;
        }
        let compiled = program(&sources, &nothing, "data.p.allow", true).unwrap();
        let interpreted = program(&sources, &nothing, "data.p.allow", false).unwrap();
        assert!(Machine::new(&compiled).unwrap().is_lean());
        for _ in 0..8 {
            let mut pick = |values: &[&str]| (*values.choose(&mut rng).unwrap()).to_owned();
            let input = json(&format!(
                r#"{{"t": {}, "n": {}, "list": {}}}"#,
                pick(&["\"x\"", "\"y\""]),
                pick(&["1", "7", "2"]),
                pick(&["[1, 2]", "[2, 1]", "[]", "[2]", "[3]", "[1, 2, 3]"]),
            ));
            let ours = run(&compiled, &input);
            let wanted = run(&interpreted, &input);
            assert!(
                same(&ours, &wanted),
                "{seed}: {ours:?}, {wanted:?}\n{input}\n{text}"
            );
            assert!(
                !matches!(ours, Outcome::Budget(_)),
                "{seed} {input}\n{text}"
            );
            let engines = run_within(&compiled, &input, 10_000, true);
            differing += u32::from(!same(&engines, &wanted));
            ran += 1;
            allowed += u32::from(ours == Outcome::Answer(Value::from(true)));
        }
    }
    println!("{ran} runs, {allowed} allowed; the engine's machine differs in {differing}");
    assert!(ran > 1500 && allowed > 400 && differing > 100);
}

/// On the engine's machine this one goes round and round until its instructions are spent.
#[test]
fn what_is_counted_of_a_decision_is_what_the_machine_that_decides_spends() {
    let text = "allow if { count([1 | input.n == 1]) == 0; input.t == \"x\" }";
    let compiled = program(&module(text), &Value::new_object(), "data.p.allow", true).unwrap();
    for (input, answer) in [
        (r#"{"n": 2, "t": "y"}"#, Value::Undefined),
        (r#"{"n": 2, "t": "x"}"#, Value::from(true)),
    ] {
        let input = json(input);
        assert_eq!(run(&compiled, &input), Outcome::Answer(answer));
        let total = compiled.steps(&input).unwrap().total;
        let most = usize::try_from(total).unwrap();
        let enough = |most| {
            !matches!(
                run_within(&compiled, &input, most, false),
                Outcome::Budget(_)
            )
        };
        let spent = (0..200).find(|most| enough(*most)).unwrap();
        assert!(most > 0 && most <= spent, "counted {most}, spent {spent}");
    }
}

#[test]
fn of_equal_members_of_a_set_the_first_stays() {
    let text = r#"allow if { some x in {input.a, input.b}; sprintf("%v", [x]) == "0" }"#;
    let nothing = Value::new_object();
    let compiled = program(&module(text), &nothing, "data.p.allow", true).unwrap();
    let interpreted = program(&module(text), &nothing, "data.p.allow", false).unwrap();
    for input in [r#"{"a": -0.0, "b": 0}"#, r#"{"a": 0, "b": -0.0}"#] {
        let input = json(input);
        let (ours, wanted) = (run(&compiled, &input), run(&interpreted, &input));
        assert_eq!(ours, wanted, "{input}");
    }
}

#[test]
fn both_machines_end_what_takes_more_memory_than_it_may() {
    let sources =
        module("allow if count([[a, b] | some a in input.list; some b in input.list]) > 1");
    let limits = Limits {
        memory: NonZeroU64::new(1 << 20).unwrap(),
        ..LIMITS
    };
    let engine = rego::parse(&sources, &Value::new_object()).unwrap();
    let program = Program::compiled(engine, "data.p.allow", limits).unwrap();
    for (length, fits) in [(20, true), (200, false)] {
        let list = Value::from((0..length).map(Value::from).collect::<Vec<_>>());
        let input = document::object([("list", list)]);
        for engines in [false, true] {
            match run_within(&program, &input, limits.instructions, engines) {
                Outcome::Answer(answer) => assert!(fits && answer == Value::from(true)),
                Outcome::Budget(why) => assert!(!fits && why.contains("memory budget"), "{why}"),
                other @ (Outcome::Error(_) | Outcome::Panic(_)) => panic!("{other:?}"),
            }
        }
    }
    assert!(Machine::new(&program).unwrap().is_lean());
}

#[test]
fn our_machine_keeps_nothing_of_a_request() {
    let (sources, data) = sixty();
    let program = program(&sources, &data, "data.sixty.allow", true).unwrap();
    let mut machine = Machine::new(&program).unwrap();
    let secret: Arc<str> = "only here".into();
    let mut input = ordinary(&mut StdRng::seed_from_u64(7), 0);
    let members = input.as_object_mut().unwrap();
    members.insert("secret".into(), Value::String(Arc::clone(&secret)));
    assert!(matches!(machine.run(input), Outcome::Answer(_)));
    assert_eq!(Arc::strong_count(&secret), 1);
}

/// A request that the ordinary policy allows, or with members changed at random.
fn ordinary(rng: &mut StdRng, changes: usize) -> Value {
    let mut input: serde_json::Value = serde_json::from_str(
        r#"{
  "version": 1,
  "request": {"id": "00000000000000000000000000000001", "method": "GET", "scheme": "https",
    "host": "api.example.test", "path": "/orders/tenants", "segments": ["orders", "tenants"],
    "query": {}, "headers": {"x-tenant": "acme"}, "protocol": "HTTP/2",
    "received_at": "2026-01-15T10:30:00Z", "received_at_ns": 1768473000000000000},
  "source": {"address": "10.1.2.3", "port": 40000, "tls": null},
  "identity": {"method": "jwt", "subject": "alice", "scopes": ["orders:read", "admin:admin"],
    "claims": {"roles": ["eu-west", "analyst"], "groups": ["staff"], "tenant": "acme", "amr": ["mfa"],
      "auth_time_ns": 1768470000000000000,
      "device": {"managed": true, "disk_encrypted": true, "posture_score": 90, "os": "macos-26"}}},
  "signals": {"device": {"known": false}, "place": {"known": false}},
  "route": {"name": "orders", "params": {}, "labels": {}}
}"#,
    )
    .unwrap();
    let paths: &[(&str, &[&str])] = &[
        (
            "/request/method",
            &["\"DELETE\"", "\"POST\"", "\"BREW\"", "null"],
        ),
        (
            "/request/segments",
            &[
                "[\"admin\", \"tenants\"]",
                "[]",
                "[\"orders\", \"x\"]",
                "[1, 2]",
            ],
        ),
        ("/request/headers", &["{}", "{\"x-tenant\": \"globex\"}"]),
        (
            "/request/received_at_ns",
            &["1768440000000000000", "1768518000000000000", "\"x\"", "-1"],
        ),
        (
            "/source/address",
            &[
                "\"192.168.10.9\"",
                "\"8.8.8.8\"",
                "\"::1\"",
                "\"x\"",
                "null",
            ],
        ),
        ("/identity/method", &["\"anonymous\"", "null"]),
        (
            "/identity/scopes",
            &["[]", "[\"orders:write\"]", "\"orders:read\"", "null"],
        ),
        ("/identity/claims", &["{}", "null", "[]"]),
        (
            "/identity/claims/roles",
            &[
                "[\"admin\"]",
                "[]",
                "\"analyst\"",
                "{\"a\": \"editor\"}",
                "null",
                "[1, null, \"analyst\"]",
            ],
        ),
        (
            "/identity/claims/groups",
            &["[\"on-call\"]", "null", "\"on-call\"", "[]"],
        ),
        (
            "/identity/claims/tenant",
            &["\"globex\"", "\"x\"", "7", "null"],
        ),
        ("/identity/claims/amr", &["[]", "null", "\"mfa\""]),
        (
            "/identity/claims/auth_time_ns",
            &["0", "\"x\"", "null", "2e18", "1768473000000000000"],
        ),
        ("/identity/claims/device", &["{}", "null", "[]"]),
        (
            "/identity/claims/device/managed",
            &["false", "null", "\"yes\""],
        ),
        (
            "/identity/claims/device/posture_score",
            &["69", "70", "70.5", "\"90\"", "null", "[]", "{}"],
        ),
        ("/identity/claims/device/os", &["\"plan9\"", "null", "7"]),
    ];
    for _ in 0..changes {
        let (path, values) = paths.choose(rng).unwrap();
        let (parent, name) = path.rsplit_once('/').unwrap();
        let Some(parent) = input.pointer_mut(parent).and_then(|v| v.as_object_mut()) else {
            continue;
        };
        match rng.random_ratio(1, 5) {
            true => drop(parent.remove(name)),
            false => {
                let value = serde_json::from_str(values.choose(rng).unwrap()).unwrap();
                parent.insert(name.to_owned(), value);
            }
        }
    }
    json(&input.to_string())
}

#[test]
fn the_ordinary_policy_is_on_the_list_and_answers_alike() {
    let (sources, data) = sixty();
    let mut engine = rego::parse(&sources, &data).unwrap();
    assert_eq!(subset::outside(engine.get_modules(), &data), None);
    let interpreted = program(&sources, &data, "data.sixty.allow", false).unwrap();
    let compiled = program(&sources, &data, "data.sixty.allow", true).unwrap();
    let mut rng = StdRng::seed_from_u64(1);
    let (mut allowed, mut denied, mut failed) = (0, 0, 0);
    for round in 0..1500 {
        let input = ordinary(&mut rng, round % 5);
        let expected = run(&interpreted, &input);
        let found = run(&compiled, &input);
        assert!(same(&expected, &found), "{expected:?} {found:?} {input}");
        match found {
            Outcome::Answer(Value::Bool(true)) => allowed += 1,
            Outcome::Answer(_) => denied += 1,
            Outcome::Error(_) | Outcome::Budget(_) | Outcome::Panic(_) => failed += 1,
        }
    }
    assert!(
        allowed > 300 && denied > 300 && failed > 50,
        "{allowed} allowed, {denied} denied, {failed} failed"
    );
}

/// Prints what a fresh decision of the ordinary policy costs on both engines.
#[test]
#[ignore = "a measurement: run it alone, in a release build"]
fn measure_the_ordinary_policy_on_both_engines() {
    const ROUNDS: u32 = 20_000;
    let (sources, data) = sixty();
    let input = ordinary(&mut StdRng::seed_from_u64(1), 0);
    let time = |rvm: bool| {
        let program = program(&sources, &data, "data.sixty.allow", rvm).unwrap();
        let mut machine = Machine::new(&program).unwrap();
        let mut best = Duration::MAX;
        for _ in 0..5 {
            let start = std::time::Instant::now();
            for _ in 0..ROUNDS {
                assert!(yes(&machine.run(input.clone())));
            }
            best = best.min(start.elapsed() / ROUNDS);
        }
        best
    };
    let (interpreter, rvm) = (time(false), time(true));
    println!("interpreter {interpreter:?}, bytecode machine {rvm:?}");
}

/// `PORTCULLIS_MODULE` and `PORTCULLIS_INPUT` name files: prints what both engines answer.
#[test]
#[ignore = "a tool"]
fn what_both_engines_answer() {
    let read = |name: &str| fs::read_to_string(std::env::var(name).unwrap()).unwrap();
    let sources = [("p.rego".to_owned(), read("PORTCULLIS_MODULE"))];
    let data = json(
        r#"{"m": {"x": "y", "list": ["x", 1], "true": 1, "1": "x"}, "n": {"x": "y", "y": ["x", 1], "z": 1}}"#,
    );
    let input = json(&read("PORTCULLIS_INPUT"));
    for rvm in [false, true] {
        let program = program(&sources, &data, "data.p.allow", rvm).unwrap();
        println!("{}: {:?}", program.engine(), run(&program, &input));
        if let rego::Kind::Rvm(bytecode) = &program.kind {
            for (at, instruction) in bytecode.instructions.iter().enumerate() {
                println!("{at:4} {instruction:?}");
            }
        }
    }
}
