use crate::authz::rego::{self, Limits, Machine, Outcome, Program, Reading};
use crate::authz::source::templates::MAX_TEMPLATES;

fn made(rules: &str) -> String {
    let mut parsed = read(rules).unwrap();
    let modules = parsed.engine.get_modules();
    modules[0].package.span.source.get_contents().clone()
}

fn read(rules: &str) -> Result<rego::Parsed, Vec<crate::authz::source::remark::Remark>> {
    let source = ("p.rego".to_owned(), format!("package p\n{rules}\n"));
    let data = regorus::Value::from_json_str(r#"{"blocked": ["closed"], "m": {"x": true}}"#);
    rego::read(&[source], &data.unwrap(), Reading::default())
}

fn answer(rules: &str, input: &str) -> Outcome {
    let limits = Limits {
        time: std::time::Duration::from_secs(5),
        instructions: 1_000_000,
        memory: std::num::NonZeroU64::MAX,
    };
    let program =
        Program::interpreted(read(rules).unwrap().engine, "data.p.allow", limits).unwrap();
    let input = regorus::Value::from_json_str(input).unwrap();
    Machine::new(&program).unwrap().run(input)
}

#[test]
fn what_opa_asks_before_a_not_has_to_be_there() {
    let undefined = Outcome::Answer(regorus::Value::Undefined);
    let yes = Outcome::Answer(regorus::Value::from(true));
    // Each holds when `input.x` is there, and has no answer when it is not.
    for body in [
        "not input.x in data.blocked",
        "not (input.x in data.blocked)",
        "not \"k\", input.x in data.m",
        "not startswith(input.x, \"z\")",
        "not startswith(lower(input.x), \"z\")",
        "not input.x != \"free\"",
        "not input.x < \"a\"",
        "not [input.x] == [1]",
        "not {input.x} == set()",
        "not {  # {\n\"a\": input.x, \"b\": {1}} == {}",
        "not {\"a\": input.x} == {\"a\": 1}",
        "not data.m[input.x]",
        "not data.m[input.x].y",
        "not count([1 | input.x in data.blocked]) == count(input.x)",
        "not f(input.x)",
        "not input.q with input.y as input.x with input.z as 1",
    ] {
        let rules = format!("f(x) if x == \"no\"\nallow if {body}");
        assert_eq!(answer(&rules, r#"{"x": "free"}"#), yes, "{}", made(&rules));
        assert_eq!(answer(&rules, "{}"), undefined, "{}", made(&rules));
        let rules = format!("f(x) if x == \"no\"\nallow if {{ true; {body} }}");
        assert_eq!(answer(&rules, r#"{"x": "free"}"#), yes, "{}", made(&rules));
        assert_eq!(answer(&rules, "{}"), undefined, "{}", made(&rules));
    }
    // These hold without it.
    for body in [
        "not input.x",
        "not input.x == 1",
        "not input.x.y",
        "not 1 == input.x",
    ] {
        assert_eq!(answer(&format!("allow if {body}"), "{}"), yes, "{body}");
    }
}

#[test]
fn nothing_is_found_under_a_key_that_is_not_there() {
    let none = Outcome::Answer(regorus::Value::Undefined);
    for body in [
        "input.a, input.b in {}",
        "input.a, input.b in [1]",
        "1, input.b in [1]",
    ] {
        assert_eq!(answer(&format!("allow if {body}"), "{}"), none, "{body}");
    }
}

#[test]
fn an_in_as_a_value_is_undefined_where_a_part_of_it_is() {
    for body in [
        "x := input.x in data.blocked; not x",
        "(input.x in data.blocked) == false",
        "[input.x in data.blocked] == [false]",
        "x := {1, 2}; y := input.x in x; not y",
    ] {
        let rules = format!("allow if {{ {body} }}");
        assert_eq!(
            answer(&rules, r#"{"x": "a"}"#),
            Outcome::Answer(true.into()),
            "{body}"
        );
        assert_eq!(
            answer(&rules, "{}"),
            Outcome::Answer(regorus::Value::Undefined),
            "{body}"
        );
    }
}

/// Asks both ways of running a policy: what may run on the machine must not answer otherwise.
fn answers(rules: &str, input: &str) -> Vec<Outcome> {
    let limits = Limits {
        time: std::time::Duration::from_secs(5),
        instructions: 1_000_000,
        memory: std::num::NonZeroU64::MAX,
    };
    let mut engine = read(rules).unwrap().engine;
    let data = engine.get_data();
    let inside = rego::subset::outside(engine.get_modules(), &data).is_none();
    let compiled = Program::compiled(engine, "data.p.allow", limits);
    let input_of = || regorus::Value::from_json_str(input).unwrap();
    let mut all = vec![answer(rules, input)];
    all.extend(inside.then(|| Machine::new(&compiled.unwrap()).unwrap().run(input_of())));
    all
}

#[test]
fn every_asks_about_its_own_elements() {
    let yes = Outcome::Answer(regorus::Value::from(true));
    let none = Outcome::Answer(regorus::Value::Undefined);
    for (body, holds) in [
        // The engine went through all of the data, whatever was in the input.
        ("every v in input.open { data.m[v] }", true),
        ("every v in input.shut { data.m[v] }", false),
        ("every v in input.both { data.m[v] }", false),
        ("every k, v in input.open { input.open[k] == v }", true),
        ("every k, v in input.open { input.shut[k] == v }", false),
        ("every v in input.shut { not data.m[v] }", true),
        ("every v in input.open { not data.m[v] }", false),
        (
            "every v in input.shut { count([1 | data.m[v]]) == 1 }",
            false,
        ),
        (
            "every v in input.shut { every w in [1] { data.m[v]; w } }",
            false,
        ),
        // It gave the name another value.
        ("every v in input.open { v = \"x\" }", true),
        ("every v in input.open { v = \"y\" }", false),
        ("every v in input.open { \"y\" = v }", false),
        ("every v in input.open { not v = \"y\" }", true),
        ("every v in input.open { [v, 1] = [\"y\", 1] }", false),
        (
            "every v in input.open { {\"a\": v} = {\"a\": \"y\"} }",
            false,
        ),
        ("every v in [[1, 2]] { v = [1, w]; w == 2 }", true),
        ("every k, v in [7] { k = v }", false),
        ("every k, v in [0] { k = v }", true),
        ("every v in input.open { f(1, v) }", false),
        ("every v in [1] { f(1, v) }", true),
        ("every v in [7] { walk([1], [p, v]); count(p) == 1 }", false),
        ("every v in [1] { walk([1], [p, v]); count(p) == 1 }", true),
    ] {
        let rules = format!("f(x) := x\nallow if {body}");
        let input = r#"{"open": ["x"], "shut": ["y"], "both": ["x", "y"]}"#;
        let expected = if holds { &yes } else { &none };
        for found in answers(&rules, input) {
            assert_eq!(found, *expected, "{body}: {}", made(&rules));
        }
    }
}

#[test]
fn every_waits_for_what_its_body_takes_from_around_it() {
    let yes = Outcome::Answer(regorus::Value::from(true));
    let none = Outcome::Answer(regorus::Value::Undefined);
    for (body, holds) in [
        ("some x in [5]; z := x; every y in [5] { y == z }", true),
        ("some x in [5]; z := x; every y in [6] { y == z }", false),
        ("some x in [5]; z := x; every y in [6] { z = y }", false),
        ("some x in [5]; z := x; every y in input.q { z == y }", true),
        ("every y in [1] { z := y; every w in [1] { w == z } }", true),
        ("every y in [1] { z := y; every w in [2] { w = z } }", false),
        (
            "every y in [1] { q := y; z := q; count([w | some w in [1]; every v in [1] { v == z }]) == 1 }",
            true,
        ),
        // A name of its own is waited for in vain.
        (
            "n := count([1 | every y in [1] { some x in [2]; x > y }]); x := n; x == 1",
            true,
        ),
    ] {
        let rules = format!("allow if {{ {body} }}");
        let expected = if holds { &yes } else { &none };
        for found in answers(&rules, r#"{"q": [5]}"#) {
            assert_eq!(found, *expected, "{body}: {}", made(&rules));
        }
    }
}

#[test]
fn a_not_waits_for_its_variables() {
    let yes = Outcome::Answer(regorus::Value::from(true));
    let none = Outcome::Answer(regorus::Value::Undefined);
    for (body, holds) in [
        ("walk([\"y\"], [[_], v]); not data.m[v]", true),
        ("walk([\"x\"], [[_], v]); not data.m[v]", false),
        ("walk([\"y\"], [[_], v]); not data.m[lower(v)]", true),
        ("lower(\"X\", v); not data.m[v]", false),
        ("lower(\"Y\", v); not v = \"x\"", true),
        ("lower(\"X\", v); not v = \"x\"", false),
        ("lower(\"X\", v); not \"x\" = v", false),
        ("lower(\"X\", v); w := lower(v); not data.m[w]", false),
        ("lower(\"Y\", v); w := lower(v); not data.m[w]", true),
        ("v = w; w = \"y\"; not data.m[v]", true),
        ("not data.m[v]; v = w; w = \"y\"", true),
        ("not data.m[v]; v = w; w = \"x\"", false),
        ("not data.m[v]; [\"x\"][_] = v", false),
        ("not data.m[v]; [\"y\"][_] = v", true),
        ("some v in [\"y\"]; w := v; not data.m[w]", true),
        ("some v in [\"x\"]; w := v; not data.m[w]", false),
        ("some v in [\"x\"]; w := v; data.m[w]", true),
        ("some v in [\"x\"]; w := v; w = \"x\"", true),
        ("some v in [\"x\"]; w := v; w = \"y\"", false),
        (
            "some v in [\"x\"]; w := v; [w, u] = [\"y\", 1]; u == 1",
            false,
        ),
        (
            "some v in [\"x\"]; w := v; {\"k\": w} = {\"k\": \"x\"}",
            true,
        ),
        ("some v in [\"x\"]; w := [v]; {[\"x\"]: 1}[w]", true),
        (
            "some v in [\"x\"]; w := v; some u in {\"x\": [1], \"y\": [2]}[w]; u == 2",
            false,
        ),
        (
            "some v in [\"x\"]; w := v; {\"x\": [1], \"y\": [2]}[w][_] == 1",
            true,
        ),
        (
            "count([1 | some v in [\"y\"]; w := v; not data.m[w]]) == 1",
            true,
        ),
        ("g([\"y\"])", true),
        ("g([\"x\"])", false),
    ] {
        let rules = format!("g([v]) if not data.m[v]\nallow if {{ {body} }}");
        let expected = if holds { &yes } else { &none };
        for found in answers(&rules, "{}") {
            assert_eq!(found, *expected, "{body}: {}", made(&rules));
        }
    }
}

#[test]
fn an_object_comes_before_a_set() {
    let yes = Outcome::Answer(regorus::Value::from(true));
    let none = Outcome::Answer(regorus::Value::Undefined);
    for (body, holds) in [
        ("s <= o", false),
        ("o < s", true),
        ("not s <= o", true),
        ("not o < s", false),
        ("s > {\"a\": 1}", true),
        ("data.p.s >= input.x", true),
        ("{1} < input.x", false),
        ("input.x < c", true),
        ("c < 7", false),
        // Of one kind they are ordered by what is in them.
        ("s < {2}", true),
        ("{2} < s", false),
    ] {
        let rules =
            format!("s contains 1\no[\"k\"] := 2 if input.x\nc := {{3}}\nallow if {{ {body} }}");
        let expected = if holds { &yes } else { &none };
        for found in answers(&rules, r#"{"x": {"a": 1}}"#) {
            assert_eq!(found, *expected, "{body}: {}", made(&rules));
        }
    }
}

#[test]
fn template_strings_are_written_out() {
    for (template, text) in [
        ("$\"a{input.x}b\"", "afreeb"),
        ("$\"a{input.nope}b\\{\"", "a<undefined>b{"),
        ("$`a{[1, \"x\"]}\\n`", "a[1, \"x\"]\\n"),
        ("$\"{$\"<{input.x}>\"}\"", "<free>"),
        ("$\"\"", ""),
        ("$\"{{1: \"}\"}}\"", "{1: \"}\"}"),
    ] {
        let rules = format!("allow := {template}");
        let found = answer(&rules, r#"{"x": "free"}"#);
        assert_eq!(found, Outcome::Answer(text.into()), "{}", made(&rules));
    }
    let open = read("allow := $\"a{1\"").unwrap_err();
    assert_eq!((open[0].line, open[0].column), (Some(2), Some(10)));
    let nested = format!(
        "allow := {}1{}",
        "$\"{".repeat(MAX_TEMPLATES + 1),
        "}\"".repeat(MAX_TEMPLATES + 1)
    );
    assert!(
        read(&nested).unwrap_err()[0]
            .message
            .contains("nested too deep")
    );
    // What is made of them is measured like what is written.
    let bomb = format!("allow := $\"{{{}1{}}}\"", "[".repeat(18), "]".repeat(18));
    assert!(
        read(&bomb).unwrap_err()[0]
            .message
            .contains("nested deeper")
    );
}

#[test]
fn calls_with_a_place_for_the_answer_are_turned_round() {
    let rules = "allow if { crypto.sha256(\"x\", y); startswith(y, \"2d71\") }";
    assert_eq!(
        answer(rules, "{}"),
        Outcome::Answer(true.into()),
        "{}",
        made(rules)
    );
    let rules = "allow if { [p, v] := walk(input); v == 7; p == [\"a\"] }";
    assert_eq!(
        answer(rules, r#"{"a": 7}"#),
        Outcome::Answer(true.into()),
        "{}",
        made(rules)
    );
    assert!(read("allow if count(walk(input)) > 1").is_err());
}

#[test]
fn every_place_leads_back_to_the_author() {
    let rules = "allow if {\n  not input.a in data.b; x := input.c\n}";
    let parsed = read(rules).unwrap();
    let text = made(rules);
    assert_eq!(text.lines().count(), rules.lines().count() + 1, "{text}");
    for word in ["input.a", "data.b", "x :=", "input.c"] {
        let line = text.lines().nth(2).unwrap();
        let new = line.find(word).unwrap() + 1;
        let old = rules.lines().nth(1).unwrap().find(word).unwrap() + 1;
        assert_eq!(
            parsed.places.author("p.rego", (3, new)),
            (3, old),
            "{word}: {text}"
        );
    }
}

#[test]
fn a_wildcard_under_a_not_is_refused_as_opa_does() {
    for body in [
        "not data.xs[_] == 1",
        "not startswith(data.xs[_], \"a\")",
        "not f(_)",
    ] {
        let found = read(&format!("f(x) if x\nallow if {body}")).unwrap_err();
        assert!(found[0].message.contains("`_` under a `not`"), "{found:?}");
    }
    assert!(read("allow if not count([x | x := data.xs[_]]) == 1").is_ok());
}

#[test]
fn prints_are_left_out_where_nobody_reads_them() {
    assert!(!made("allow if { print(input.x, $\"{input.y}\"); true }").contains("print"));
}
