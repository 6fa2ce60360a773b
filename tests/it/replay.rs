//! `portcullis policy replay`: what a gateway recorded is asked again, with the real binary.

use std::fs;
use std::process::Output;

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::support::eventually;
use crate::support::gateway::World;
use crate::support::program::policy_in;

/// Answers by the caller, the clock and chance.
const OLD: &str = r#"package gate

default decision := {"allow": false, "reason": "gate.stranger"}

decision := {
	"allow": true,
	"reason": "gate.alice",
	"identity": {"chance": rand.intn("x", 1000000000), "at": time.now_ns()},
} if {
	input.identity.subject == "alice"
} else := {"allow": false, "reason": "gate.bob", "message": "Höflich: nein"} if {
	input.identity.subject == "bob"
}
"#;

const NEW: &str = r#"package gate

default decision := {"allow": false, "reason": "gate.stranger"}

decision := {"allow": true, "reason": "gate.guest"} if input.identity.subject == "bob"
"#;

const READS_QUERY: &str = r#"package gate

default decision := {"allow": false, "reason": "gate.stranger"}

decision := {"allow": true} if input.request.query.token[0] == "s3cret"
"#;

fn text(output: &Output) -> String {
    let out = String::from_utf8_lossy(&output.stdout);
    let err = String::from_utf8_lossy(&output.stderr);
    format!("{out}{err}")
}

fn json_of(output: &Output) -> Value {
    serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("{}", text(output)))
}

fn folder(files: &[(&str, &str)]) -> TempDir {
    let folder = TempDir::new().unwrap();
    for (name, text) in files {
        let path = folder.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }
    folder
}

/// A record as version 2 has it; `edit` changes it.
fn record(number: u32, edit: impl FnOnce(&mut Value)) -> String {
    let mut record = json!({
        "version": 2,
        "time": "2026-11-22T10:00:00.000Z",
        "received_at_ns": 1_795_341_600_000_000_000_u64 + u64::from(number),
        "request_id": format!("{number:032x}"),
        "decision_id": format!("{number:032x}"),
        "method": "GET",
        "path": format!("/a/{number}"),
        "route": if number.is_multiple_of(2) { "even" } else { "odd" },
        "caller": {"method": "jwt", "issuer": "i", "subject": format!("s{}", number % 7), "client": null, "token_id": null},
        "policy": {"name": "gate", "revision": "0", "data": "0", "cached": false, "candidate": null},
        "decision": "allow",
        "reason": "gate.low",
        "refusal": null,
        "status": 200,
        "answer": {"allow": true, "reason": "gate.low"},
        "input": {"version": 1, "request": {"method": "GET", "n": number, "query": {}}},
    });
    edit(&mut record);
    record.to_string()
}

/// The least that is a configuration.
const CONFIG: &str = "listeners:\n  local: { address: \"127.0.0.1:0\", plaintext: true }\nupstreams:\n  main: { endpoints: [\"http://127.0.0.1:9\"] }\npolicies:\n  gate: { files: [low.rego], entrypoint: data.gate.decision }\nroutes:\n  - { name: a, path: /, authn: [anonymous], policy: gate, upstream: main }\n";

const LOW: &str = "package gate\n\ndefault decision := {\"allow\": true, \"reason\": \"gate.low\"}\n\ndecision := {\"allow\": false, \"reason\": \"gate.high\"} if input.request.n >= 1990\n";

#[test]
fn what_a_ledger_holds_is_byte_equal_under_the_old_policy_and_flips_under_a_new_one() {
    let world = World::with(|builder| {
        let builder = builder.policy(OLD).with(|document| {
            document["policies"]["gate"]["entrypoint"] = json!("data.gate.decision");
            document["audit"]["sink"] =
                json!({"ledger": {"folder": "records", "segment": "64KiB"}});
        });
        builder.file("new.rego", NEW);
        builder.file("query.rego", READS_QUERY);
        builder
    });
    let (alice, bob) = (world.token("alice"), world.token("bob"));
    for _ in 0..3 {
        assert_eq!(world.gateway.bearer("/a", &alice).status, 200);
    }
    for _ in 0..2 {
        assert_eq!(world.gateway.bearer("/b?token=s3cret", &bob).status, 403);
    }
    assert_eq!(world.gateway.get("/a", &[]).status, 401);
    let at = world.gateway.folder.path();
    let replay = |more: &[&str]| {
        let mut arguments = vec!["replay", "--from", "records"];
        arguments.extend(more);
        policy_in(at, &arguments)
    };
    eventually("six records", || {
        let all = replay(&["--format", "json"]);
        let told: Value = serde_json::from_slice(&all.stdout).ok()?;
        (told["records"]["read"] == 6).then_some(())
    });

    // Under the policy that decided.
    let same = replay(&["--fail-on", "changes"]);
    assert_eq!(same.status.code(), Some(0), "{}", text(&same));
    assert!(
        text(&same).contains("5 of 5 answers equal byte by byte"),
        "{}",
        text(&same)
    );
    let told = json_of(&replay(&["--format", "json"]));
    assert_eq!(told["records"]["judged"], 5);
    assert_eq!(told["records"]["same"], 5);
    assert_eq!(told["answers"]["compared"], 5);
    assert_eq!(told["answers"]["equal"], 5);
    assert_eq!(told["changes"], json!([]));
    // What no policy decided is named, not skipped.
    let left = &told["not_judged"][0];
    assert_eq!(left["records"], 1);
    assert!(left["why"].as_str().unwrap().contains("refused before"));
    assert!(
        left["first"]
            .as_str()
            .unwrap()
            .starts_with("records/segment-")
    );
    assert_eq!(replay(&["--fail-on", "doubts"]).status.code(), Some(1));

    // Under another.
    let new = replay(&[
        "--policy",
        "new.rego",
        "--format",
        "json",
        "--fail-on",
        "gains",
    ]);
    assert_eq!(new.status.code(), Some(1), "{}", text(&new));
    let told = json_of(&new);
    assert_eq!(told["records"]["gains"], 2);
    assert_eq!(told["records"]["losses"], 3);
    let gain = &told["changes"][0];
    assert_eq!(gain["change"], "gain");
    assert_eq!(gain["route"], "open");
    assert_eq!(
        (&gain["was"], &gain["now"]),
        (&json!("gate.bob"), &json!("gate.guest"))
    );
    assert_eq!(gain["callers"], json!([{"caller": "bob", "records": 2}]));
    assert_eq!(gain["examples"][0]["request"], "GET /b");
    let people = text(&replay(&["--policy", "new.rego"]));
    assert!(
        people.contains("5 flipped (2 gain, 3 lose access)"),
        "{people}"
    );
    assert!(people.contains("gate.alice → gate.stranger"), "{people}");

    // What a mask took cannot be told, and is no flip.
    let told = json_of(&replay(&["--policy", "query.rego", "--format", "json"]));
    assert_eq!(told["records"]["gains"], 0);
    let why: Vec<&str> = told["not_judged"]
        .as_array()
        .unwrap()
        .iter()
        .map(|left| left["why"].as_str().unwrap())
        .collect();
    let masked = "`input.request.query.token` is masked, and the policy gate reads it";
    assert!(why.iter().any(|why| why.contains(masked)), "{why:?}");

    // As cases.
    fs::create_dir(at.join("cases")).unwrap();
    let written = replay(&[
        "--policy",
        "new.rego",
        "--write-cases",
        "cases",
        "--examples",
        "10",
    ]);
    assert_eq!(written.status.code(), Some(0), "{}", text(&written));
    assert!(text(&written).contains("5 cases written to cases/recorded.yaml"));
    let old = policy_in(at, &["test", "gate.rego", "cases"]);
    assert_eq!(
        (old.status.code(), text(&old).as_str()),
        (Some(0), "PASS: 5/5\n")
    );
    let new = policy_in(at, &["test", "new.rego", "cases"]);
    assert_eq!(new.status.code(), Some(2));
    assert!(text(&new).contains("FAIL: 5/5"), "{}", text(&new));
    // Nothing is written over.
    let again = replay(&["--policy", "new.rego", "--write-cases", "cases"]);
    assert_eq!(again.status.code(), Some(2));
    assert!(
        text(&again).contains("is there already"),
        "{}",
        text(&again)
    );
}

#[test]
fn every_record_that_is_not_judged_is_counted_under_its_cause() {
    let lines = [
        record(0, |_| {}),
        record(2, |r| r["version"] = json!(1)),
        record(3, |r| {
            r["input"] = json!(null);
            r["input_left_out"] = json!("larger than audit.input_limit");
        }),
        record(4, |r| r["input"] = json!(null)),
        record(5, |r| {
            r["policy"] = json!(null);
            r["decision"] = json!(null);
            r["refusal"] = json!({"code": "unauthenticated", "detail": ""});
        }),
        record(6, |r| r["policy"]["name"] = json!("public")),
        record(7, |r| r["policy"]["name"] = json!("elsewhere")),
        record(8, |r| r["input"] = json!({"attributes": {}})),
        record(9, |r| {
            r["decision"] = json!("deny");
            r["reason"] = json!("policy.budget");
            r["answer"] = json!(null);
        }),
        "{\"level\":\"info\",\"msg\":\"not a record\"}".to_owned(),
        "nonsense".to_owned(),
        "{\"version\":2,\"request_id\":\"torn".to_owned(),
    ];
    let text_of = lines.join("\n");
    let at = folder(&[
        ("gateway.yaml", CONFIG),
        ("low.rego", LOW),
        ("records.jsonl", &text_of),
    ]);
    let output = policy_in(
        at.path(),
        &["replay", "--from", "records.jsonl", "--format", "json"],
    );
    assert_eq!(output.status.code(), Some(0), "{}", text(&output));
    let told = json_of(&output);
    assert_eq!(told["records"]["judged"], 2);
    let causes: Vec<String> = ["not_judged", "not_read"]
        .iter()
        .flat_map(|list| told[*list].as_array().unwrap())
        .map(|left| {
            assert_eq!(left["records"], 1, "{left}");
            left["why"].as_str().unwrap().to_owned()
        })
        .collect();
    for cause in [
        "larger than audit.input_limit",
        "`audit.input: none`",
        "refused before (unauthenticated)",
        "an open route",
        "the policy elsewhere is not in gateway.yaml",
        "a document of OPA's Envoy plugin",
        "then it was policy.budget",
        "neither a decision record nor an event",
        "does not begin with `{`",
        "the last line is cut off",
    ] {
        assert!(
            causes.iter().any(|told| told.contains(cause)),
            "{cause}: {causes:?}"
        );
    }
    assert_eq!(causes.len(), 10, "{causes:?}");
}

#[test]
fn a_masked_reason_is_no_other_reason_and_hides_no_flip() {
    let masked = |r: &mut Value| {
        r["reason"] = json!(null);
        r["answer"]["reason"] = json!(null);
        r["masked"] = json!(["/reason", "/answer/reason"]);
    };
    let denied = |r: &mut Value| {
        r["decision"] = json!("deny");
        r["status"] = json!(403);
        r["answer"]["allow"] = json!(false);
    };
    let lines = [
        // Denied for `gate.high` now; for what then, nobody knows.
        record(1_995, |r| {
            denied(r);
            masked(r);
        }),
        // Nor for what it was allowed.
        record(4, masked),
        // That was another reason, and is known.
        record(1_997, |r| {
            denied(r);
            r["reason"] = json!("gate.other");
            r["answer"]["reason"] = json!("gate.other");
        }),
        // Yes is not no, whatever the reason was.
        record(6, |r| {
            denied(r);
            masked(r);
        }),
        record(1_998, masked),
    ];
    let at = folder(&[
        ("gateway.yaml", CONFIG),
        ("low.rego", LOW),
        ("records.jsonl", &lines.join("\n")),
    ]);
    let output = policy_in(
        at.path(),
        &["replay", "--from", "records.jsonl", "--format", "json"],
    );
    let told = json_of(&output);
    let records = &told["records"];
    assert_eq!(records["judged"], 5, "{told:#}");
    assert_eq!(records["same"], 2, "{told:#}");
    assert_eq!(
        (&records["gains"], &records["losses"]),
        (&json!(1), &json!(1))
    );
    let reasons = told["changes"].as_array().unwrap().iter();
    let reasons: Vec<&Value> = reasons.filter(|one| one["change"] == "reason").collect();
    assert_eq!(reasons.len(), 1, "{told:#}");
    assert_eq!(reasons[0]["was"], "gate.other");
}

#[test]
fn where_nothing_can_be_judged_there_is_no_answer() {
    let at = folder(&[
        ("gateway.yaml", CONFIG),
        ("low.rego", LOW),
        ("records.jsonl", &record(1, |r| r["input"] = json!(null))),
        ("empty.jsonl", ""),
        ("broken.rego", "package gate\n\ndecision if {\n"),
    ]);
    for (arguments, told) in [
        (vec!["--from", "records.jsonl"], "no record could be judged"),
        (vec!["--from", "empty.jsonl"], "no record fits"),
        (
            vec!["--from", "missing.jsonl"],
            "missing.jsonl: No such file",
        ),
        (vec!["--from", "."], "no ledger"),
        (
            vec!["--from", "records.jsonl", "--policy", "nowhere"],
            "nowhere: No such file",
        ),
        (
            vec!["--from", "records.jsonl", "--policy", "broken.rego"],
            "broken.rego:",
        ),
        (
            vec!["--from", "records.jsonl", "--name", "gat"],
            "did you mean `gate`",
        ),
    ] {
        let mut all = vec!["replay"];
        all.extend(arguments);
        let output = policy_in(at.path(), &all);
        assert_eq!(output.status.code(), Some(2), "{all:?} {}", text(&output));
        assert!(text(&output).contains(told), "{all:?} {}", text(&output));
    }
}

#[test]
fn the_answer_is_the_same_with_any_number_of_threads_and_filters_count() {
    let lines: Vec<String> = (0..2_000).map(|number| record(number, |_| {})).collect();
    let at = folder(&[
        ("low.rego", LOW),
        ("records.jsonl", &format!("{}\n", lines.join("\n"))),
    ]);
    let replay = |more: &[&str]| {
        let mut arguments = vec![
            "replay",
            "--policy",
            "low.rego",
            "--entrypoint",
            "data.gate.decision",
            "--from",
            "records.jsonl",
            "--format",
            "json",
        ];
        arguments.extend(more);
        let output = policy_in(at.path(), &arguments);
        assert_eq!(output.status.code(), Some(0), "{}", text(&output));
        let mut told = json_of(&output);
        // A machine that is busy spends budgets of time.
        told["records"]["asked_again"] = json!(0);
        told
    };
    let one = replay(&["--threads", "1"]);
    assert_eq!(one["records"]["losses"], 10);
    assert_eq!(one["records"]["same"], 1_990);
    assert_eq!(one, replay(&["--threads", "4"]));
    // The first examples of the file, and of each route its own.
    let kinds = one["changes"].as_array().unwrap();
    assert_eq!(kinds.len(), 2);
    assert_eq!(kinds[0]["route"], "even");
    assert_eq!(kinds[0]["examples"][0]["place"], "records.jsonl:1991");
    assert_eq!(kinds[0]["examples"].as_array().unwrap().len(), 3);
    let read = |told: &Value| told["records"]["chosen"].as_u64().unwrap();
    assert_eq!(read(&replay(&["--route", "odd"])), 1_000);
    assert_eq!(read(&replay(&["--caller", "s3"])), 286);
    assert_eq!(read(&replay(&["--limit", "7"])), 7);
    assert_eq!(read(&replay(&["--route", "odd", "--limit", "7"])), 7);
    let since = "2026-11-22T10:00:00.000001Z";
    assert_eq!(read(&replay(&["--since", since])), 1_000);
    assert_eq!(read(&replay(&["--until", since])), 1_000);
}

#[test]
fn opas_decision_logs_are_replayed_by_the_rule_they_name() {
    let policy = "package envoy.authz\n\ndefault allow := false\n\nallow if input.attributes.request.http.method == \"GET\"\n";
    let event = |method: &str, result: bool| {
        json!({
            "decision_id": "4ca636c1-55e4-417a-b1d8-4aceb67960d1", "labels": {"id": "x"},
            "path": "envoy/authz/allow", "timestamp": "2026-11-22T10:00:00.123456789Z",
            "input": {"attributes": {"request": {"http": {"method": method}}}},
            "result": result, "requested_by": "",
        })
        .to_string()
    };
    let chunk = format!("[{}\n,{}\n]\n", event("GET", true), event("POST", true));
    let at = folder(&[("authz.rego", policy), ("chunk", &chunk)]);
    let output = policy_in(
        at.path(),
        &[
            "replay",
            "--policy",
            "authz.rego",
            "--entrypoint",
            "envoy/authz/allow",
            "--input",
            "envoy",
            "--from",
            "chunk",
            "--format",
            "json",
        ],
    );
    assert_eq!(output.status.code(), Some(0), "{}", text(&output));
    let told = json_of(&output);
    assert_eq!(told["records"]["same"], 1);
    assert_eq!(told["records"]["losses"], 1);
    assert_eq!(told["changes"][0]["route"], "envoy/authz/allow");
}
