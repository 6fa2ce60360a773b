use std::path::{Path, PathBuf};

use serde_json::{Value as Json, json};

use super::*;
use crate::authz::workbench::Material;

fn text(modules: &[(&str, &str)], data: &Json, entrypoint: &str) -> Text {
    let modules = modules.iter();
    let modules = modules.map(|(file, text)| ((*file).to_owned(), (*text).to_owned()));
    Text {
        policy: "p".into(),
        revision: "0".into(),
        entrypoint: entrypoint.to_owned(),
        modules: Arc::new(modules.collect()),
        data: Value::from_json_str(&data.to_string()).unwrap(),
        errors: BuiltinErrors::Deny,
        input: InputDocument::Portcullis,
        hidden_headers: Vec::new(),
        bodies: false,
        reads: None,
    }
}

fn asked(input: &Json) -> Asked {
    let time = Duration::from_secs(20);
    Asked::of(
        &input.to_string(),
        1_768_469_400_000_000_000,
        &"a".repeat(32),
        Vec::new(),
        time,
    )
    .unwrap()
}

fn why(module: &str, data: &Json, input: &Json) -> Why {
    let text = text(&[("p.rego", module)], data, "data.p.allow");
    Explainer::open(&text).unwrap().why(&asked(input)).unwrap()
}

/// `line:column text [name=value, …]` of a condition, and of what lies below it, indented.
fn drawn(why: &Why) -> String {
    fn values(condition: &Condition) -> String {
        let all: Vec<String> = condition
            .values
            .iter()
            .map(|known| format!("{}={}", known.name, known.value))
            .collect();
        if all.is_empty() {
            String::new()
        } else {
            format!(" [{}]", all.join(", "))
        }
    }
    fn condition(one: &Condition, depth: usize, out: &mut String) {
        let kind = format!("{:?}", one.kind).to_lowercase();
        out.push_str(&format!(
            "{}{kind} {}:{} {}{}\n",
            "  ".repeat(depth),
            one.line,
            one.column,
            one.text,
            values(one)
        ));
        one.within
            .iter()
            .for_each(|inner| condition(inner, depth + 1, out));
        for because in &one.because {
            let default = if because.default { " by default" } else { "" };
            out.push_str(&format!(
                "{}{} is {}{default}\n",
                "  ".repeat(depth + 1),
                because.rule,
                because.value
            ));
            because
                .held
                .iter()
                .for_each(|inner| condition(inner, depth + 2, out));
            because
                .ways
                .iter()
                .for_each(|inner| way(inner, depth + 2, out));
        }
    }
    fn way(one: &Way, depth: usize, out: &mut String) {
        out.push_str(&format!(
            "{}way {}:{} {} {}/{}\n",
            "  ".repeat(depth),
            one.line,
            one.column,
            one.gives,
            one.held,
            one.conditions
        ));
        condition(&one.failed, depth + 1, out);
        one.also
            .iter()
            .for_each(|also| condition(also, depth + 1, out));
    }
    let mut out = String::new();
    why.ways.iter().for_each(|one| way(one, 0, &mut out));
    for left in &why.left_out {
        out.push_str(&format!("left out: {left}\n"));
    }
    out
}

fn shipped() -> Text {
    let policies = Path::new(env!("CARGO_MANIFEST_DIR")).join("policies");
    let material = Material::load(&[PathBuf::from(&policies)], Path::new("")).unwrap();
    let live = material.modules.into_iter();
    let live = live.filter(|(file, _)| !file.ends_with("_test.rego"));
    Text {
        modules: Arc::new(live.collect()),
        data: Value::from_json_str(&material.data).unwrap(),
        ..text(&[], &json!({}), "data.orders.decision")
    }
}

fn order(id: &str, subject: &str, roles: &[&str], scopes: &[&str]) -> Json {
    json!({
        "request": {"received_at_ns": 1},
        "identity": {"subject": subject, "scopes": scopes, "claims": {"roles": roles}},
        "source": {"tls": null, "address": "192.0.2.7"},
        "route": {"params": {"id": id}, "labels": {"action": "read"}},
    })
}

#[test]
fn the_condition_that_failed_is_told_with_its_place_and_values() {
    let module = "package p\n\ndefault allow := false\n\nallow if {\n\tinput.method == \"GET\"\n\tinput.user == data.owner # not theirs\n}\n";
    let why = why(
        module,
        &json!({"owner": "bob"}),
        &json!({"method": "GET", "user": "alice"}),
    );
    assert_eq!(why.answer.as_deref(), Some("false"));
    assert_eq!(
        drawn(&why),
        "way 5:1 true 1/2\n  failed 7:2 input.user == data.owner [input.user=\"alice\", data.owner=\"bob\"]\n"
    );
    assert_eq!(why.rules[0].line, 3);
}

#[test]
fn the_nearest_way_comes_first() {
    let module = "package p\nallow if {\n input.a\n input.b\n input.c\n}\nallow if {\n input.a\n input.d\n}\nallow if input.e\n";
    let why = why(module, &json!({}), &json!({"a": true, "b": false}));
    let lines: Vec<_> = why
        .ways
        .iter()
        .map(|way| (way.line, way.held, way.conditions))
        .collect();
    assert_eq!(lines, [(7, 1, 2), (11, 0, 1), (2, 1, 3)]);
    assert_eq!(why.ways[0].failed.values[0].value, "undefined");
}

#[test]
fn a_rule_that_a_condition_asks_is_followed_to_the_comparison() {
    let module = "package p\ndefault allow := false\nallow if {\n is_owner\n}\nis_owner if {\n owner(input.id) == input.user\n}\nowner(id) := data.owners[id]\n";
    let why = why(
        module,
        &json!({"owners": {"7": "bob"}}),
        &json!({"id": "7", "user": "alice"}),
    );
    let drawn = drawn(&why);
    assert!(drawn.contains("failed 4:2 is_owner [is_owner=undefined]\n    data.p.is_owner is undefined\n      way 6:1 true 0/1\n        failed 7:2 owner(input.id) == input.user [owner(input.id)=\"bob\", input.user=\"alice\", input.id=\"7\"]\n          data.p.owner(\"7\") is \"bob\"\n"), "{drawn}");
}

#[test]
fn not_is_turned_round() {
    let module = "package p\nallow if not blocked\nblocked if input.user in data.blocked\n";
    let why = why(
        module,
        &json!({"blocked": ["alice"]}),
        &json!({"user": "alice"}),
    );
    let drawn = drawn(&why);
    assert!(drawn.contains("failed 2:10 not blocked"), "{drawn}");
    assert!(drawn.contains("data.p.blocked is true\n      held 3:1 true\n        held 3:12 input.user in data.blocked [input.user=\"alice\", data.blocked=[\"alice\"]]"), "{drawn}");
}

#[test]
fn a_branch_that_answered_first_is_in_the_way() {
    let explained = Explainer::open(&shipped())
        .unwrap()
        .why(&asked(&order("1001", "alice", &["customer"], &[])))
        .unwrap();
    let drawn = drawn(&explained);
    let first = &explained.ways[0];
    assert_eq!(first.failed.kind, Kind::Earlier, "{drawn}");
    assert!(
        first.failed.text.contains("orders.scope_missing"),
        "{drawn}"
    );
    let not = first.failed.within.last().unwrap();
    assert_eq!(not.text, "not scope_granted");
    let because = &not.because[0];
    assert_eq!(because.rule, "data.callers.scope_granted");
    let failed = &because.ways[0].failed;
    assert_eq!(failed.text, "needed_scope in input.identity.scopes");
    assert!(failed.file.ends_with("policies/callers.rego"));
    assert_eq!(failed.values[0].value, "\"orders:read\"");
    assert_eq!(failed.values[1].value, "[]");
}

#[test]
fn a_default_that_was_compared_leads_to_the_bodies_that_did_not_hold() {
    let explained = Explainer::open(&shipped())
        .unwrap()
        .why(&asked(&order(
            "1002",
            "alice",
            &["customer"],
            &["orders:read"],
        )))
        .unwrap();
    let drawn = drawn(&explained);
    assert!(
        explained
            .answer
            .as_deref()
            .unwrap()
            .contains("orders.not_owner")
    );
    let first = &explained.ways[0];
    assert_eq!(first.failed.text, "grant != \"none\"", "{drawn}");
    let because = &first.failed.because[0];
    assert!(because.default, "{drawn}");
    let owner = because
        .ways
        .iter()
        .find(|way| way.gives == "\"orders.owner\"")
        .unwrap_or_else(|| panic!("{drawn}"));
    assert_eq!((owner.held, owner.conditions), (2, 3));
    assert_eq!(
        owner.failed.text,
        "data.owners[input.route.params.id] == input.identity.subject"
    );
    let values: Vec<_> = owner
        .failed
        .values
        .iter()
        .map(|it| it.value.as_str())
        .collect();
    assert_eq!(values, ["\"dave\"", "\"alice\"", "\"1002\""], "{drawn}");
    assert!(explained.rules[0].file.ends_with("orders.rego"));
}

#[test]
fn what_held_for_a_yes_is_told_without_ways() {
    let explained = Explainer::open(&shipped())
        .unwrap()
        .why(&asked(&order(
            "1001",
            "alice",
            &["customer"],
            &["orders:read"],
        )))
        .unwrap();
    assert!(explained.allow);
    assert!(explained.ways.is_empty());
    let rules: Vec<_> = explained
        .rules
        .iter()
        .map(|held| held.rule.as_str())
        .collect();
    assert!(rules.contains(&"data.orders.decision"), "{rules:?}");
    assert!(rules.contains(&"data.orders.grant"), "{rules:?}");
    assert!(rules.contains(&"data.callers.scope_granted"), "{rules:?}");
}

#[test]
fn every_and_comprehensions_and_some_have_their_values() {
    let module = "package p\nallow if {\n every item in input.items {\n  item.price > 0\n  item.name in data.names\n }\n}\nallow if {\n count([item | some item in input.items; item.price > 5]) > 1\n}\nallow if {\n some item in input.items\n item.price > 9\n}\n";
    let why = why(
        module,
        &json!({"names": ["a"]}),
        &json!({"items": [{"name": "a", "price": 1}, {"name": "z", "price": 7}]}),
    );
    let drawn = drawn(&why);
    assert!(
        drawn.contains("failed 5:3 item.name in data.names"),
        "{drawn}"
    );
    assert!(drawn.contains("item.name=\"z\""), "{drawn}");
    assert!(drawn.contains("failed 9:2 count([item | some item in input.items; item.price > 5]) > 1 [count([item | some item in input.items; item.price > 5])=1"), "{drawn}");
    assert!(drawn.contains("failed 13:2 item.price > 9"), "{drawn}");
    assert!(drawn.contains("item (1 of 2)="), "{drawn}");
}

#[test]
fn sets_of_denials_tell_which_body_filled_them() {
    let module = "package p\ndefault allow := false\nallow if count(deny) == 0\ndeny contains msg if {\n input.age < 18\n msg := sprintf(\"too young: %d\", [input.age])\n}\ndeny contains \"no name\" if not input.name\n";
    let why = why(module, &json!({}), &json!({"age": 12, "name": "x"}));
    let drawn = drawn(&why);
    assert!(
        drawn.contains("data.p.deny is [\"too young: 12\"]"),
        "{drawn}"
    );
    assert!(drawn.contains("held 4:1 msg"), "{drawn}");
    assert!(
        drawn.contains("held 5:2 input.age < 18 [input.age=12]"),
        "{drawn}"
    );
    assert!(!drawn.contains("no name"), "{drawn}");
}

#[test]
fn a_value_that_is_no_yes_is_told() {
    let module = "package p\nallow := {\"allow\": ok, \"reason\": \"x\"}\ndefault ok := false\nok if input.a == 1\n";
    let why = why(module, &json!({}), &json!({"a": 2}));
    let drawn = drawn(&why);
    assert!(drawn.contains("value 2:20 ok [ok=false]"), "{drawn}");
    assert!(
        drawn.contains("failed 4:7 input.a == 1 [input.a=2]"),
        "{drawn}"
    );
}

#[test]
fn rewriting_does_not_move_places() {
    let module = "package p\nallow if {\n\tinput.a; not input.user in data.blocked; startswith($\"x{input.a}\", \"y\")\n}\n";
    let yes = why(module, &json!({"blocked": []}), &json!({"a": 1}));
    assert!(
        drawn(&yes).contains("failed 3:11 not input.user in data.blocked [input.user=undefined"),
        "{}",
        drawn(&yes)
    );
    let no = why(
        module,
        &json!({"blocked": []}),
        &json!({"a": 1, "user": "u"}),
    );
    assert!(
        drawn(&no).contains("failed 3:43 startswith($\"x{input.a}\", \"y\")"),
        "{}",
        drawn(&no)
    );
}

#[test]
fn undefined_says_where_the_document_ends_and_masks_are_called_so() {
    let module = "package p\nallow if {\n input.identity.claims.acr == \"x\"\n}\nallow if input.secret == \"y\"\n";
    let text = text(&[("p.rego", module)], &json!({}), "data.p.allow");
    let mut question = asked(&json!({"identity": null, "secret": "***"}));
    question.masked = vec!["/secret".to_owned()];
    let why = Explainer::open(&text).unwrap().why(&question).unwrap();
    assert_eq!(
        why.ways[0].failed.values[0].value,
        "undefined (input.identity is null)"
    );
    assert!(!why.ways[0].failed.values[0].masked);
    assert!(why.ways[1].failed.values[0].masked);
}

#[test]
fn the_right_key_is_told_to_nobody() {
    for module in [
        "package p\nallow if input.headers[\"x-partner\"] == data.keys[input.id]\n",
        "package p\nallow if {\n given := data.keys[input.id]\n copy := given\n input.headers[\"x-partner\"] == copy\n}\n",
        "package p\nallow if input.headers[\"x-partner\"] == expected\nexpected := data.keys[input.id]\n",
        "package p\nallow if fits(data.keys[input.id])\nfits(one) if one == input.headers[\"x-partner\"]\n",
        "package p\nallow if {\n every one in data.keys {\n  one == input.headers[\"x-partner\"]\n }\n}\n",
        "package p\nallow if not refused\nrefused if {\n some id, one in data.keys\n id == input.id\n one != input.headers[\"x-partner\"]\n}\n",
    ] {
        let input = json!({"id": "p1", "headers": {"x-partner": "wrong"}});
        let why = why(module, &json!({"keys": {"p1": "hunter2"}}), &input);
        assert!(!why.allow && !why.ways.is_empty());
        let all = serde_json::to_string(&why).unwrap();
        assert!(!all.contains("hunter2"), "{module}\n{all}");
    }
    // What has nothing to do with it is told as before.
    let module = "package p\nallow if {\n input.key == data.key\n input.user == data.owner\n}\n";
    let data = json!({"owner": "bob", "key": "k"});
    let why = why(module, &data, &json!({"user": "alice", "key": "k"}));
    assert!(
        drawn(&why).contains("data.owner=\"bob\""),
        "{}",
        drawn(&why)
    );
}

#[test]
fn beside_what_is_masked_nothing_is_told() {
    let module = "package p\nallow if input.email == data.owner\n";
    let text = text(
        &[("p.rego", module)],
        &json!({"owner": "hunter2"}),
        "data.p.allow",
    );
    let mut question = asked(&json!({"email": "***"}));
    question.masked = vec!["/email".to_owned()];
    let why = Explainer::open(&text).unwrap().why(&question).unwrap();
    let all = serde_json::to_string(&why).unwrap();
    assert!(!all.contains("hunter2"), "{all}");
}

#[test]
fn work_is_bounded_and_says_so() {
    let mut module = "package p\n".to_owned();
    for rule in 0..400 {
        module.push_str(&format!(
            "allow if {{\n input.a\n r{rule}\n}}\nr{rule} if input.b{rule}\n"
        ));
    }
    let text = text(&[("p.rego", &module)], &json!({}), "data.p.allow");
    let mut explainer = Explainer::open(&text).unwrap();
    let mut question = asked(&json!({"a": true}));
    question.time = Duration::from_millis(1500);
    let begun = Instant::now();
    let why = explainer.why(&question).unwrap();
    // One question's preparation is not interrupted.
    assert!(
        begun.elapsed() < Duration::from_secs(8),
        "{:?}",
        begun.elapsed()
    );
    assert!(why.ways.len() <= MAX_ENTRY_WAYS);
    assert!(!why.left_out.is_empty());
    assert!(why.unsure);
}

#[test]
fn errors_of_builtins_are_told_where_they_happen() {
    let mut text = text(
        &[(
            "p.rego",
            "package p\nallow if {\n input.a\n to_number(input.b) > 1\n}\n",
        )],
        &json!({}),
        "data.p.allow",
    );
    text.errors = BuiltinErrors::Undefined;
    let why = Explainer::open(&text)
        .unwrap()
        .why(&asked(&json!({"a": 1, "b": "x"})))
        .unwrap();
    let drawn = drawn(&why);
    assert!(drawn.contains("4:2 to_number(input.b) > 1"), "{drawn}");
    text.errors = BuiltinErrors::Deny;
    let denied = Explainer::open(&text)
        .unwrap()
        .why(&asked(&json!({"a": 1, "b": "x"})));
    assert!(matches!(denied, Err(Unanswered::Error(_))), "{denied:?}");
}

#[test]
fn a_text_is_the_same_from_its_file() {
    let before = shipped();
    let after = Text::from_json(&before.to_json().unwrap()).unwrap();
    let question = asked(&order("1002", "alice", &["customer"], &["orders:read"]));
    let told = |text: &Text| Explainer::open(text).unwrap().why(&question).unwrap();
    assert_eq!(told(&before), told(&after));
    assert!(Text::from_json(b"{}").is_err());
    let newer = String::from_utf8(before.to_json().unwrap()).unwrap();
    let newer = newer.replacen("\"version\":1", "\"version\":2", 1);
    assert!(
        Text::from_json(newer.as_bytes())
            .unwrap_err()
            .contains("version 2")
    );
}

#[test]
fn equal_questions_are_known_by_what_the_policy_reads() {
    let step = |name: &str| Step::Name(name.to_owned());
    let text = Text {
        reads: Some(vec![vec![step("a"), step("b")], vec![step("c")]]),
        ..shipped()
    };
    let question = |input: &str| text.question(&document::from_json(input.as_bytes()).unwrap());
    assert_eq!(
        question(r#"{"a":{"b":1},"z":1}"#),
        question(r#"{"z":2,"a":{"b":1,"x":3}}"#)
    );
    assert_ne!(question(r#"{"a":{"b":1}}"#), question(r#"{"a":{"b":2}}"#));
    assert_ne!(question(r#"{"a":{"b":1}}"#), question(r#"{"c":1}"#));
    assert!(shipped().question(&Value::Null).is_none());
}

#[test]
fn a_rule_is_told_once_however_often_it_is_asked() {
    let module =
        "package p\nallow if {\n a\n input.x\n}\nallow if {\n a\n}\na if b\nb if input.b == 1\n";
    let drawn = drawn(&why(module, &json!({}), &json!({"b": 2})));
    assert_eq!(drawn.matches("input.b == 1").count(), 1, "{drawn}");
    assert_eq!(drawn.matches("data.p.a is undefined").count(), 2, "{drawn}");
}

#[test]
fn a_member_of_the_answer_that_is_a_rule_of_its_own_is_a_way() {
    let module = "package p\ndecision.allow if {\n input.a\n input.b\n}\ndecision.reason := \"r\" if input.a\n";
    let text = text(&[("p.rego", module)], &json!({}), "data.p.decision");
    let why = Explainer::open(&text)
        .unwrap()
        .why(&asked(&json!({"a": true})))
        .unwrap();
    assert_eq!(why.answer.as_deref(), Some("{\"reason\":\"r\"}"));
    let drawn = drawn(&why);
    assert!(
        drawn.contains("way 2:1 true 1/2\n  failed 4:2 input.b [input.b=undefined]"),
        "{drawn}"
    );
}

#[test]
fn policies_of_the_envoy_plugin_are_explained_by_their_own_document_and_answers() {
    let module = "package p\ndefault allow := {\"allowed\": false, \"http_status\": 403}\nallow := {\"allowed\": true} if input.attributes.request.http.method == \"GET\"\n";
    let text = Text {
        input: InputDocument::Envoy,
        errors: BuiltinErrors::Undefined,
        ..text(&[("p.rego", module)], &json!({}), "data.p.allow")
    };
    let mut explainer = Explainer::open(&text).unwrap();
    let input = |method: &str| json!({"attributes": {"request": {"http": {"method": method}}}});
    let no = explainer.why(&asked(&input("POST"))).unwrap();
    assert!(!no.allow);
    let failed = &no.ways[0].failed;
    assert_eq!(
        failed.text,
        "input.attributes.request.http.method == \"GET\""
    );
    assert_eq!(failed.values[0].value, "\"POST\"");
    assert!(explainer.why(&asked(&input("GET"))).unwrap().allow);
}

#[test]
fn the_clock_reading_and_the_request_id_are_those_of_the_record() {
    let module = "package p\nallow if time.now_ns() == 1768469400000000000\n";
    let why = why(module, &json!({}), &json!({}));
    assert!(why.allow, "{}", drawn(&why));
}
