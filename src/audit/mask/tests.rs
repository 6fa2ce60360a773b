//! Rules of users, from the file to the line.

use std::fs;

use serde_json::{Value as Json, json};

use super::*;

fn record(name: &str) -> String {
    let line = json!({
        "version": 2, "received_at_ns": 1_795_224_725_042_000_000_u64, "request_id": "12f9f1b4ed50fcd5",
        "decision_id": "e02c", "client": "192.0.2.1", "route": "orders",
        "policy": { "name": "orders", "revision": "r", "entrypoint": "data.orders.allow" },
    });
    let rest = json!({ "allow": true, "email": "a@b" });
    let input =
        json!({ "identity": { "subject": name, "email": "a@b" }, "request": { "path": "/a" } });
    let line = line.to_string();
    let line = line.strip_suffix('}').unwrap();
    format!("{line},\"answer\":{rest},\"input\":{input}}}")
}

fn compile(rego: &str, config: &str) -> Result<Rules, Vec<String>> {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("rules.rego"), rego).unwrap();
    let mut cx = Compile::new(&folder.path().join("gateway.yaml"), Arc::default());
    let config: RulesConfig = serde_yaml::from_str(config).unwrap();
    let rules = config.compile(None, &mut cx);
    let problems = cx.finish().0.iter().map(ToString::to_string).collect();
    rules.ok_or(problems)
}

fn masker(rego: &str, config: &str) -> (Masker, Arc<Metrics>) {
    let rules = compile(rego, config).unwrap();
    let metrics: Arc<Metrics> = Arc::default();
    (
        Masker::new(&rules, Labels::new("i", []), Arc::clone(&metrics)),
        metrics,
    )
}

const BOTH: &str =
    "{ files: [rules.rego], mask: data.system.log.mask, drop: data.system.log.drop }";
const MASK: &str = "{ files: [rules.rego], mask: data.system.log.mask }";

fn passed(masker: &mut Masker, line: &str) -> Option<Json> {
    let mut changed = Vec::new();
    match masker.line(line.as_bytes(), &mut changed) {
        Passed::Left => Some(serde_json::from_str(line).unwrap()),
        Passed::Changed => Some(serde_json::from_slice(&changed).unwrap()),
        Passed::Dropped => None,
    }
}

#[test]
fn rules_of_opa_mask_and_drop() {
    let (mut masker, metrics) = masker(
        r#"package system.log

mask contains "/input/identity/email"

mask contains {"op": "upsert", "path": "/result/email", "value": input.result.allow} if {
    input.path == "orders/allow"
    input.input.identity.subject == "alice"
}

drop if input.input.identity.subject == "probe"

drop if input.record.route == "health"
"#,
        BOTH,
    );
    for _ in 0..2 {
        let alice = passed(&mut masker, &record("alice")).unwrap();
        assert_eq!(alice["input"]["identity"], json!({ "subject": "alice" }));
        assert_eq!(alice["answer"]["email"], json!(true));
        assert_eq!(alice["masked"], json!(["/answer/email"]));
        assert_eq!(alice["erased"], json!(["/input/identity/email"]));
        let bob = passed(&mut masker, &record("bob")).unwrap();
        assert_eq!(bob["answer"]["email"], "a@b");
        assert_eq!(passed(&mut masker, &record("probe")), None);
    }
    let health = record("bob").replace("\"route\":\"orders\"", "\"route\":\"health\"");
    assert_eq!(passed(&mut masker, &health), None);
    assert_eq!(
        masker.mask.as_ref().unwrap().kept.len(),
        2,
        "answers are kept by what is read"
    );
    assert!(
        metrics
            .encode()
            .contains("portcullis_audit_rules_dropped_total 3\n")
    );
    assert!(
        metrics
            .encode()
            .contains("portcullis_audit_rules_failed_total 0\n")
    );
}

#[test]
fn rules_that_depend_on_nothing_are_asked_once_and_their_mistakes_are_found_at_load() {
    let (mut masker, _) = masker(
        "package system.log\n\nmask := {\"/input/identity\"}\n",
        MASK,
    );
    assert!(matches!(
        masker.mask.as_ref().unwrap().rule.on,
        On::Nothing(_)
    ));
    let found = passed(&mut masker, &record("alice")).unwrap();
    assert_eq!(found["input"], json!({ "request": { "path": "/a" } }));
    let problems = compile("package system.log\n\nmask := {\"/status\"}\n", MASK).unwrap_err();
    assert!(
        problems[0].contains("the rules give no rules: `/status`: a pointer leads"),
        "{problems:?}"
    );
    let problems = compile(
        "package system.log\n\nmask := {\"/input\"}\n",
        "{ files: [rules.rego] }",
    );
    assert!(problems.unwrap_err()[0].contains("no rule is named"));
}

#[test]
fn what_differs_in_every_record_is_asked_anew() {
    let (mut masker, _) = masker(
        "package system.log\n\nmask contains \"/input\" if input.decision_id == \"e02c\"\n\nmask contains \"/result\" if time.now_ns() > 5\n",
        MASK,
    );
    assert!(matches!(masker.mask.as_ref().unwrap().rule.on, On::All));
    let found = passed(&mut masker, &record("alice")).unwrap();
    assert_eq!(
        (&found["input"], &found["answer"]),
        (&Json::Null, &Json::Null)
    );
    let other = record("alice").replace("e02c", "ffff");
    assert_ne!(passed(&mut masker, &other).unwrap()["input"], Json::Null);
}

#[test]
fn where_rules_fail_nothing_is_shown() {
    for rego in [
        // No rules.
        "package system.log\n\nmask := input.input.identity.subject\n",
        "package system.log\n\nmask contains sprintf(\"/status/%s\", [input.input.identity.subject])\n",
        // Two values for one.
        "package system.log\n\nmask := [\"/input\"] if input.record.route == \"orders\"\n\nmask := [] if input.input.identity.subject == \"alice\"\n",
        // The budget is spent.
        "package system.log\n\nmask contains \"/input\" if {\n    some i, j, k\n    numbers.range(1, count(input.input.identity.subject) * 100)[i]\n    numbers.range(1, 500)[j]\n    numbers.range(1, 500)[k]\n    i + j + k == 5000\n}\n",
    ] {
        let (mut masker, metrics) = masker(rego, MASK);
        let found = passed(&mut masker, &record("alice")).expect(rego);
        for hidden in ["input", "answer", "client"] {
            assert_eq!(found[hidden], Json::Null, "{rego}");
        }
        assert_eq!(found["input_left_out"], "the rules of audit.rules failed");
        assert_eq!(found["route"], "orders");
        assert!(
            metrics
                .encode()
                .contains("portcullis_audit_rules_failed_total 1\n"),
            "{rego}"
        );
    }
}

#[test]
fn a_function_that_fails_in_a_mask_rule_withholds_the_record_and_in_a_drop_rule_keeps_it() {
    let rego = "package system.log\n\nmask contains \"/input/identity/email\" if to_number(input.input.identity.subject) > 0\n\ndrop if to_number(input.input.identity.subject) > 5\n";
    let (mut masker, metrics) = masker(rego, BOTH);
    let found = passed(&mut masker, &record("1")).unwrap();
    assert_eq!(found["input"]["identity"], json!({ "subject": "1" }));
    assert_eq!(passed(&mut masker, &record("6")), None);
    let found = passed(&mut masker, &record("alice")).unwrap();
    assert_eq!(found["input"], Json::Null);
    let encoded = metrics.encode();
    assert!(encoded.contains("portcullis_audit_rules_failed_total 1\n"));
    assert!(encoded.contains("portcullis_audit_rules_dropped_total 1\n"));
}

#[test]
fn answers_of_rules_are_kept_by_what_they_weigh() {
    let rego = "package system.log\n\nmask contains sprintf(\"/input/new/%d\", [n]) if some n in numbers.range(1, input.input.request.n)\n";
    let (mut masker, _) = masker(rego, MASK);
    let record = |n: usize, name: &str| {
        record(name).replace("\"request\":{", &format!("\"request\":{{\"n\":{n},"))
    };
    passed(&mut masker, &record(MAX_KEPT_EDITS, "a"));
    let one = masker.mask.as_ref().unwrap().bytes;
    assert!(one > MAX_KEPT_EDITS * size_of::<Edit>(), "{one}");
    passed(&mut masker, &record(MAX_KEPT_EDITS + 1, "a"));
    let mask = masker.mask.as_ref().unwrap();
    assert_eq!((mask.kept.len(), mask.bytes), (1, one), "too many changes");
}

#[test]
fn what_rules_keep_in_memory_is_bounded() {
    let (mut masker, _) = masker(
        "package system.log\n\nmask contains \"/result\" if input.input.identity.subject == \"alice\"\n",
        MASK,
    );
    for number in 0..MAX_KEPT * 2 {
        passed(&mut masker, &record(&format!("{number}")));
        let mask = masker.mask.as_ref().unwrap();
        assert!(mask.kept.len() <= MAX_KEPT && mask.bytes <= MAX_KEPT_BYTES);
    }
    passed(&mut masker, &record(&"x".repeat(MAX_QUESTION)));
    let longest = |mask: &Asked<Vec<Edit>>| mask.kept.keys().map(|key| key.len()).max();
    assert!(longest(masker.mask.as_ref().unwrap()).unwrap() <= MAX_QUESTION);
}

#[test]
#[ignore = "a measurement"]
fn what_a_record_costs() {
    let long = |name: &str| {
        let record = record(name);
        let more = format!("\"headers\":{{\"x-long\":\"{}\"}},", "x".repeat(1200));
        record.replacen("\"request\":{", &format!("\"request\":{{{more}"), 1)
    };
    for (what, rego, names) in [
        (
            "constant",
            "package system.log\n\nmask contains \"/input/identity/email\"\n",
            1,
        ),
        (
            "kept",
            "package system.log\n\nmask contains \"/input/identity/email\" if input.input.identity.subject != \"x\"\n",
            1,
        ),
        (
            "asked",
            "package system.log\n\nmask contains \"/input/identity/email\" if input.decision_id != \"x\"\n",
            1,
        ),
    ] {
        let (mut masker, _) = masker(rego, MASK);
        let lines: Vec<String> = (0..names).map(|n| long(&format!("n{n}"))).collect();
        let mut out = Vec::new();
        let begun = Instant::now();
        const TIMES: u32 = 5_000;
        for _ in 0..TIMES {
            for line in &lines {
                out.clear();
                assert_eq!(masker.line(line.as_bytes(), &mut out), Passed::Changed);
            }
        }
        println!(
            "{what}: {:?} for {} bytes",
            begun.elapsed() / TIMES,
            lines[0].len()
        );
    }
}
