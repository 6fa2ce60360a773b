//! `portcullis policy test`, `eval` and `bench`: what those who come from OPA expect of them, with the
//! real binary.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::support::program::policy_in;

const POLICY: &str = "package p\n\ndefault allow := false\n\nallow if {\n\tinput.user == \"alice\"\n\tinput.method == \"GET\"\n}\n";

fn folder(files: &[(&str, &str)]) -> TempDir {
    let folder = TempDir::new().unwrap();
    for (name, text) in files {
        let path = folder.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }
    folder
}

fn out(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn err(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn json_of(output: &Output) -> Value {
    serde_json::from_slice(&output.stdout)
        .unwrap_or_else(|_| panic!("{}{}", out(output), err(output)))
}

/// Durations differ from run to run.
fn without_times(text: &str) -> String {
    text.lines()
        .map(|line| match (line.find(" ("), line.ends_with(')')) {
            (Some(at), true) => format!("{}\n", &line[..at]),
            _ => format!("{line}\n"),
        })
        .collect()
}

#[test]
fn results_and_exit_codes_are_those_of_opa_test() {
    let tests = "package p_test\n\nimport data.p\n\ntest_get if p.allow with input as {\"user\": \"alice\", \"method\": \"GET\"}\n\ntest_post if {\n\trequest := {\"user\": \"alice\", \"method\": \"POST\"}\n\tprint(\"asking\", request.method)\n\tp.allow with input as request\n}\n\ntodo_test_later if false\n";
    let folder = folder(&[("p.rego", POLICY), ("p_test.rego", tests)]);
    let all = policy_in(folder.path(), &["test", "."]);
    assert_eq!(all.status.code(), Some(2), "{}", err(&all));
    assert_eq!(
        without_times(&out(&all)),
        "p_test.rego:7:\ndata.p_test.test_post: FAIL\n\n  p_test.rego:9: asking POST\n\n\n  p_test.rego:10:2: p.allow with input as request\n    p.allow = false\n    request = {\"method\":\"POST\",\"user\":\"alice\"}\n\np_test.rego:13:\ndata.p_test.todo_test_later: SKIPPED\n--------------------------------------------------------------------------------\nPASS: 1/3\nFAIL: 1/3\nSKIPPED: 1/3\n"
    );
    // By name, and what is skipped.
    let get = policy_in(folder.path(), &["test", ".", "--run", r"p_test\.test_get$"]);
    assert_eq!(
        (get.status.code(), out(&get).as_str()),
        (Some(0), "PASS: 1/1\n")
    );
    let skipped = policy_in(folder.path(), &["test", ".", "--run", "todo"]);
    assert_eq!(skipped.status.code(), Some(2));
    let skipped = policy_in(folder.path(), &["test", ".", "--run", "todo", "-z"]);
    assert_eq!(skipped.status.code(), Some(0));
    let none = policy_in(folder.path(), &["test", ".", "--run", "nothing"]);
    assert_eq!(none.status.code(), Some(0));
    let none = policy_in(
        folder.path(),
        &["test", ".", "--run", "nothing", "--fail-on-empty"],
    );
    assert_eq!(none.status.code(), Some(1), "{}", err(&none));
    // What cannot be run at all, with its place.
    fs::write(
        folder.path().join("bad.rego"),
        "package bad\n\nx := nosuch(1)\n",
    )
    .unwrap();
    let broken = policy_in(folder.path(), &["test", "."]);
    assert_eq!(broken.status.code(), Some(1));
    assert!(
        err(&broken).contains("bad.rego:3:6: error: "),
        "{}",
        err(&broken)
    );
    assert_eq!(
        policy_in(folder.path(), &["test", "--nonsense"])
            .status
            .code(),
        Some(2)
    );
}

#[test]
fn machines_read_opas_result_objects() {
    let tests = "package p_test\n\nimport data.p\n\ntest_cases[note] if {\n\tsome note, tc in {\n\t\t\"reads\": {\"method\": \"GET\", \"allow\": true},\n\t\t\"writes\": {\"method\": \"POST\", \"allow\": true},\n\t}\n\tallowed := p.allow with input as {\"user\": \"alice\", \"method\": tc.method}\n\tallowed == tc.allow\n}\n\ntest_broken if {\n\tprint(\"here\")\n\tcount(1) == 1\n}\n\ntodo_test_later if false\n";
    let folder = folder(&[("p.rego", POLICY), ("p_test.rego", tests)]);
    let output = policy_in(folder.path(), &["test", ".", "--format", "json"]);
    assert_eq!(output.status.code(), Some(2), "{}", err(&output));
    let results = json_of(&output);
    let results = results.as_array().unwrap();
    assert_eq!(results.len(), 3);
    assert_eq!(
        results[0]["location"],
        json!({"file": "p_test.rego", "row": 5, "col": 1})
    );
    assert_eq!(results[0]["package"], "data.p_test");
    assert_eq!(results[0]["name"], "test_cases");
    assert_eq!(results[0]["fail"], true);
    assert!(results[0]["duration"].as_u64().unwrap() > 0);
    assert_eq!(
        results[0]["sub_results"],
        json!({"reads": {"name": "reads"}, "writes": {"name": "writes", "fail": true}})
    );
    assert_eq!(results[1]["name"], "test_broken");
    assert!(results[1].get("fail").is_none());
    assert_eq!(results[1]["error"]["location"]["row"], 16, "{}", results[1]);
    // `print`s are bytes, which Go writes in base64.
    assert_eq!(results[1]["output"], "cF90ZXN0LnJlZ286MTU6IGhlcmUK");
    assert_eq!(results[2]["skip"], true);
    assert_eq!(results[2]["duration"], 0);
}

#[test]
fn coverage_is_opas_report_and_too_little_of_it_fails() {
    let tests = "package p_test\n\nimport data.p\n\ntest_nobody if not p.allow with input as {\"user\": \"bob\"}\n";
    let folder = folder(&[("p.rego", POLICY), ("p_test.rego", tests)]);
    let output = policy_in(
        folder.path(),
        &["test", ".", "--coverage", "--format", "json"],
    );
    assert_eq!(output.status.code(), Some(0), "{}", err(&output));
    let report = json_of(&output);
    assert_eq!(
        report["files"]["p.rego"],
        json!({
            "covered": [{"start": {"row": 3}, "end": {"row": 3}}, {"start": {"row": 6}, "end": {"row": 6}}],
            "not_covered": [{"start": {"row": 5}, "end": {"row": 5}}, {"start": {"row": 7}, "end": {"row": 7}}],
            "covered_lines": 2, "not_covered_lines": 2, "coverage": 50.0,
        })
    );
    assert_eq!(
        (&report["covered_lines"], &report["not_covered_lines"]),
        (&json!(3), &json!(2))
    );
    let least = policy_in(folder.path(), &["test", ".", "--threshold", "60"]);
    assert_eq!(least.status.code(), Some(0), "{}", out(&least));
    let least = policy_in(folder.path(), &["test", ".", "--threshold", "60.1"]);
    assert_eq!(least.status.code(), Some(2));
    assert_eq!(
        err(&least),
        "Code coverage threshold not met: got 60.00 instead of 60.10\n"
    );
    assert!(out(&least).contains("p.rego"), "{}", out(&least));
}

#[test]
fn a_test_that_hangs_costs_its_time_and_the_others_nothing() {
    let loops: String = ('a'..'j')
        .map(|v| format!("\tsome {v} in numbers.range(1, 40)\n"))
        .collect();
    let tests = format!(
        "package p_test\n\ntest_first if true\n\ntest_long if {{\n{loops}\ta + b + c + d + e + f + g + h + i == 0\n}}\n\ntest_last if true\n"
    );
    let folder = folder(&[("p_test.rego", &tests)]);
    let begun = Instant::now();
    let output = policy_in(folder.path(), &["test", ".", "--timeout", "300ms"]);
    assert_eq!(output.status.code(), Some(2), "{}", err(&output));
    let text = out(&output);
    assert!(text.contains("data.p_test.test_long: ERROR"), "{text}");
    assert!(text.contains("PASS: 2/3\nERROR: 1/3\n"), "{text}");
    assert!(begun.elapsed() < Duration::from_secs(60));
}

#[test]
fn modules_that_overflow_a_stack_do_not_take_the_tool_down() {
    // No check counts a sum's length; the parser or the evaluation may not bear it.
    let text = format!("package p\n\nallow if 1 + 1{}\n", "\n+ 1".repeat(15_000));
    let tests = "package p_test\n\ntest_a if data.p.allow\n";
    let folder = folder(&[("p.rego", &text), ("p_test.rego", tests)]);
    let output = policy_in(folder.path(), &["test", "."]);
    let said = format!("{}{}", out(&output), err(&output));
    assert!(
        matches!(output.status.code(), Some(1 | 2)),
        "{:?} {said}",
        output.status
    );
    assert!(
        said.contains("brought its process down") || said.contains("FAIL"),
        "{said}"
    );
}

/// A gateway whose only route asks the policy, for callers with tokens of an issuer that need not run.
fn gateway(more: &[(&str, &str)]) -> TempDir {
    let document = json!({
        "listeners": {"local": {"address": "127.0.0.1:0", "plaintext": true}},
        "issuers": {"dev": {
            "issuer": "http://127.0.0.1:9", "keys": {"jwks_uri": "http://127.0.0.1:9/keys"},
            "audiences": ["https://api.example.test"], "algorithms": ["ES256"],
            "claims": {"roles": "roles"},
        }},
        "upstreams": {"main": {"endpoints": ["http://127.0.0.1:1"]}},
        "policies": {"things": {"files": ["policies"], "entrypoint": "data.things.decision"}},
        "routes": [{"name": "things", "path": "/things/{id}", "authn": ["dev"], "policy": "things", "upstream": "main"}],
    });
    let document = document.to_string();
    let policy = "package things\n\ndefault decision := {\"allow\": false, \"reason\": \"things.no\"}\n\ndecision := {\"allow\": true, \"reason\": \"things.owner\"} if {\n\tdata.owners[input.route.params.id] == input.identity.subject\n}\n";
    let mut files = vec![
        ("gateway.yaml", document.as_str()),
        ("policies/things.rego", policy),
        ("policies/data.yaml", "owners: { a: alice }\n"),
    ];
    files.extend(more);
    folder(&files)
}

const CASES: &str = "callers:\n  alice: { claims: { sub: alice } }\ncases:\n  - name: owners\n    request: GET /things/a\n    as: alice\n    expect: { allow: true, reason: things.owner, route: things }\n  - name: others\n    request: GET /things/b\n    as: alice\n    expect: { allow: false, status: 403, reason: things.no }\n  - name: whoever the data says\n    request: GET /things/b\n    as: alice\n    data: { owners: { b: alice } }\n    expect: { allow: true, answer: { reason: things.owner } }\n  - name: nobody\n    request: GET /things/a\n    expect: { stage: authentication, status: 401 }\n  - name: a plain input\n    rule: data.things.decision\n    input: { route: { params: { id: a } }, identity: { subject: alice } }\n    expect: allow\n  - name: later\n    todo: waits for the new route\n    request: GET /other\n    expect: allow\n";

#[test]
fn cases_go_through_the_routes_of_the_configuration() {
    let folder = gateway(&[("policies/cases/things.yaml", CASES)]);
    let output = policy_in(folder.path(), &["test", "-v", "-z"]);
    let text = out(&output);
    assert_eq!(output.status.code(), Some(0), "{text}{}", err(&output));
    assert!(text.contains("cases.things.owners: PASS"), "{text}");
    assert!(text.contains("PASS: 5/6\nSKIPPED: 1/6\n"), "{text}");
    // The policies' folder of cases is no data of theirs.
    let check = Command::new(env!("CARGO_BIN_EXE_portcullis"))
        .args(["check", "--config"])
        .arg(folder.path().join("gateway.yaml"))
        .output()
        .unwrap();
    assert_eq!(check.status.code(), Some(0), "{}", out(&check));

    // One that fails says where, what was expected and what came.
    let wrong = CASES.replace(
        "status: 403, reason: things.no",
        "status: 404, reason: things.other",
    );
    fs::write(folder.path().join("policies/cases/things.yaml"), wrong).unwrap();
    let output = policy_in(folder.path(), &["test", "--run", "cases"]);
    let text = out(&output);
    assert_eq!(output.status.code(), Some(2), "{text}");
    assert!(text.contains("cases/things.yaml:11:"), "{text}");
    assert!(text.contains("status = 403, expected 404"), "{text}");
    assert!(
        text.contains("reason = things.no, expected things.other"),
        "{text}"
    );
}

#[test]
fn mistakes_in_cases_have_their_place() {
    let folder = gateway(&[]);
    let table = folder.path().join("policies/cases/things.yaml");
    fs::create_dir_all(table.parent().unwrap()).unwrap();
    for (text, place, what) in [
        (
            "cases:\n  - name: a\n    requst: GET /\n    expect: allow\n",
            ":3:5",
            "did you mean `request`",
        ),
        (
            "cases:\n  - name: a\n    request: GET /\n    expect: perhaps\n",
            ":4:",
            "`allow`, `deny`",
        ),
        (
            "cases:\n  - name: a\n    request: GET /\n    expect: { statsu: 1 }\n",
            ":4:",
            "did you mean `status`",
        ),
        (
            "cases:\n  - name: a\n    expect: allow\n",
            ":2:",
            "neither `request` nor `input`",
        ),
        (
            "cases:\n  - { name: a, request: GET /, expect: allow }\n  - { name: a, request: GET /, expect: allow }\n",
            ":3:",
            "has this name, too",
        ),
        ("cases: [\n", ":", "things.yaml"),
    ] {
        fs::write(&table, text).unwrap();
        let output = policy_in(folder.path(), &["test"]);
        let said = err(&output);
        assert_eq!(output.status.code(), Some(1), "{text}{said}");
        assert!(
            said.contains(&format!("things.yaml{place}")),
            "{text}{said}"
        );
        assert!(said.contains(what), "{text}{said}");
    }
    // A caller that nobody knows is found when the case is asked.
    fs::write(
        &table,
        "cases:\n  - { name: a, request: GET /things/a, as: alcie, expect: allow }\n",
    )
    .unwrap();
    let output = policy_in(folder.path(), &["test"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(
        out(&output).contains("there is no caller `alcie`"),
        "{}",
        out(&output)
    );
    // Editors complete what may be said.
    let schema = Command::new(env!("CARGO_BIN_EXE_portcullis"))
        .args(["schema", "--cases"])
        .output()
        .unwrap();
    let schema: Value = serde_json::from_slice(&schema.stdout).unwrap();
    assert!(schema["properties"]["cases"].is_object(), "{schema:#}");
}

#[test]
fn one_input_is_asked_and_its_answer_explained() {
    let folder = gateway(&[(
        "input.json",
        "{\"route\": {\"params\": {\"id\": \"a\"}}, \"identity\": {\"subject\": \"alice\"}}",
    )]);
    let output = policy_in(
        folder.path(),
        &["eval", "--rule", "data.things.decision", "-i", "input.json"],
    );
    let text = out(&output);
    assert_eq!(output.status.code(), Some(0), "{}", err(&output));
    assert!(text.contains("\"reason\": \"things.owner\""), "{text}");
    assert!(text.contains("means     allow: things.owner"), "{text}");
    assert!(text.contains("things.rego:5"), "{text}");

    // From standard input, as JSON, and over files that no configuration names.
    let mut child = Command::new(env!("CARGO_BIN_EXE_portcullis"))
        .args([
            "policy",
            "eval",
            "-d",
            "policies",
            "--rule",
            "data.things.decision",
            "-i",
            "-",
            "--format",
            "json",
            "--fail",
        ])
        .current_dir(folder.path())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(b"{}").unwrap();
    let output = child.wait_with_output().unwrap();
    let answer = json_of(&output);
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(
        answer["result"][0]["expressions"][0]["value"]["allow"],
        false
    );
    assert_eq!(answer["meaning"]["reason"], "things.no");
    assert_eq!(answer["meaning"]["status"], 403);

    let query = policy_in(
        folder.path(),
        &["eval", "x := data.owners[id]; x == \"alice\""],
    );
    assert!(
        out(&query).contains("id = \"a\""),
        "{}{}",
        out(&query),
        err(&query)
    );
    let wrong = policy_in(folder.path(), &["eval", "data.things ==="]);
    assert_eq!(wrong.status.code(), Some(1), "{}", err(&wrong));
    fs::write(folder.path().join("broken.json"), "{\n \"a\": }").unwrap();
    let wrong = policy_in(folder.path(), &["eval", "input", "-i", "broken.json"]);
    assert_eq!(wrong.status.code(), Some(2));
    assert!(err(&wrong).contains("broken.json:2:"), "{}", err(&wrong));
}

#[test]
fn one_pasted_request_goes_the_whole_way() {
    let folder = gateway(&[(
        "request.txt",
        "GET /things/a HTTP/1.1\r\nHost: api.example.test\r\nAccept: */*\r\n\r\n",
    )]);
    let ask = |claims: &str| {
        policy_in(
            folder.path(),
            &[
                "eval",
                "--request",
                "request.txt",
                "--claims",
                claims,
                "--format",
                "json",
            ],
        )
    };
    let answer = json_of(&ask("{\"sub\": \"alice\"}"));
    assert_eq!(answer["allowed"], true, "{answer:#}");
    assert_eq!(answer["reason"], "things.owner");
    assert_eq!(answer["answer"]["allow"], true);
    assert!(answer["engine"].is_string());
    let held: Vec<&str> = answer["held"]
        .as_array()
        .unwrap()
        .iter()
        .map(|held| held["rule"].as_str().unwrap())
        .collect();
    assert_eq!(held, ["data.things.decision"], "{answer:#}");
    let answer = json_of(&ask("{\"sub\": \"bob\"}"));
    assert_eq!(answer["allowed"], false);
    assert_eq!(answer["client"]["status"], 403, "{answer:#}");
}

#[test]
fn a_change_that_takes_more_steps_fails_the_pipeline() {
    let folder = gateway(&[("policies/cases/things.yaml", CASES)]);
    let saved = policy_in(
        folder.path(),
        &["bench", "--count", "10", "--save", "costs.json"],
    );
    assert_eq!(
        saved.status.code(),
        Some(0),
        "{}{}",
        out(&saved),
        err(&saved)
    );
    let text = out(&saved);
    assert!(text.contains("things (rvm, 3 decisions)"), "{text}");
    assert!(text.contains("data.things.decision"), "{text}");
    let costs: Value =
        serde_json::from_slice(&fs::read(folder.path().join("costs.json")).unwrap()).unwrap();
    let decisions: BTreeMap<String, u64> =
        serde_json::from_value(costs["policies"]["things"]["decisions"].clone()).unwrap();
    assert!(decisions["cases.things.owners"] > 0, "{costs:#}");

    let same = policy_in(
        folder.path(),
        &[
            "bench",
            "--count",
            "10",
            "--baseline",
            "costs.json",
            "--max-regression",
            "0%",
        ],
    );
    assert_eq!(same.status.code(), Some(0), "{}", out(&same));
    let file: PathBuf = folder.path().join("policies/things.rego");
    let slow = fs::read_to_string(&file).unwrap().replace(
        "data.owners[",
        "some n in [1, 2, 3, 4, 5, 6, 7, 8, 9]\n\tn > 8\n\tdata.owners[",
    );
    fs::write(&file, slow).unwrap();
    let slower = policy_in(
        folder.path(),
        &[
            "bench",
            "--count",
            "10",
            "--baseline",
            "costs.json",
            "--format",
            "json",
        ],
    );
    assert_eq!(slower.status.code(), Some(1), "{}", err(&slower));
    let answer = json_of(&slower);
    assert!(
        answer["slower"][0]["now"].as_u64() > answer["slower"][0]["before"].as_u64(),
        "{answer:#}"
    );
}

#[test]
fn the_shipped_policies_pass_their_tests_and_cases_and_all_of_their_lines_are_reached() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let folder = folder(&[]);
    fs::copy(
        root.join("gateway.yaml"),
        folder.path().join("gateway.yaml"),
    )
    .unwrap();
    copy(&root.join("policies"), &folder.path().join("policies"));
    let certificates = Command::new(env!("CARGO_BIN_EXE_portcullis"))
        .args(["dev", "--certificates-only"])
        .current_dir(folder.path())
        .output()
        .unwrap();
    assert!(certificates.status.success());
    let output = policy_in(folder.path(), &["test", "--threshold", "100"]);
    let text = out(&output);
    assert_eq!(output.status.code(), Some(0), "{text}{}", err(&output));
    assert!(text.contains("all"), "{text}");
    // Named, and written otherwise than in the configuration, they are the same policies.
    let named = policy_in(folder.path(), &["test", "./policies"]);
    assert_eq!(named.status.code(), Some(0), "{}", out(&named));
    let names = policy_in(
        folder.path(),
        &["test", "--format", "json", "--run", "^cases"],
    );
    assert!(json_of(&names).as_array().unwrap().len() >= 20);
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let (entry, target) = {
            let entry = entry.unwrap();
            let target = to.join(entry.file_name());
            (entry.path(), target)
        };
        if entry.is_dir() {
            copy(&entry, &target);
        } else {
            fs::copy(&entry, target).unwrap();
        }
    }
}

/// Modules with tests of all kinds, and the shipped policies: what OPA's own evaluation says of each test.
#[test]
fn outcomes_of_tests_are_those_of_opa() {
    let Some(binding) = std::env::var_os("PORTCULLIS_OPA") else {
        println!("skipped: PORTCULLIS_OPA names no folder with PyPI opa-golib-python-bindings");
        return;
    };
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let kinds = "package kinds_test\n\nimport data.p\n\ntest_true := true\n\ntest_false := false\n\ntest_number := 1\n\ntest_text := \"true\"\n\ntest_undefined if input.x\n\ntest_not if not p.allow with input as {\"user\": \"bob\"}\n\ntest_with_data if data.limits.a == 1 with data.limits as {\"a\": 1}\n\ntest_with_builtin if count([1, 2]) == 7 with count as 7\n\ntest_with_function if concat(\",\", [\"a\"]) == \"mock\" with concat as mock\n\nmock(_, _) := \"mock\"\n\ntest_case[n] if {\n\tsome n, v in {\"a\": 1, \"b\": 1}\n\tv == 1\n}\n\ntest_every if every x in [1, 2] { x > 0 }\n\ntest_not_in if not \"c\" in [\"a\"]\n\ntest_nested if {\n\txs := [x | some x in [1, 2, 3]; x > 1]\n\tcount(xs) == 2\n}\n";
    let mut modules = vec![
        ("p.rego".to_owned(), POLICY.to_owned()),
        ("kinds_test.rego".to_owned(), kinds.to_owned()),
    ];
    for entry in fs::read_dir(root.join("policies")).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|end| end == "rego") {
            let name = path.file_name().unwrap().to_string_lossy().into_owned();
            modules.push((name, fs::read_to_string(&path).unwrap()));
        }
    }
    let data = fs::read_to_string(root.join("policies/data.yaml")).unwrap();
    let mut files: Vec<(&str, &str)> = modules
        .iter()
        .map(|(n, t)| (n.as_str(), t.as_str()))
        .collect();
    files.push(("data.yaml", &data));
    let folder = folder(&files);
    let ours = policy_in(folder.path(), &["test", ".", "--format", "json"]);
    let ours = json_of(&ours);
    let data = policy_in(
        folder.path(),
        &[
            "eval",
            "-d",
            "data.yaml",
            "-d",
            "p.rego",
            "data",
            "--format",
            "json",
        ],
    );
    let mut data = json_of(&data)["result"][0]["expressions"][0]["value"].clone();
    data.as_object_mut().unwrap().remove("p");

    let mut oracle = Command::new("python3")
        .arg(root.join("src/authz/rego/opa/oracle.py"))
        .env("PORTCULLIS_OPA", binding)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = oracle.stdin.take().unwrap();
    for result in ours.as_array().unwrap() {
        let query = format!(
            "{}.{}",
            result["package"].as_str().unwrap(),
            result["name"].as_str().unwrap()
        );
        let ask = json!({"modules": modules, "data": data, "query": query, "inputs": [{}]});
        writeln!(stdin, "{ask}").unwrap();
    }
    drop(stdin);
    let output = oracle.wait_with_output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let answers: Vec<Value> = text
        .lines()
        .skip(1)
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    assert_eq!(answers.len(), ours.as_array().unwrap().len());
    let mut failed = 0;
    for (result, answer) in ours.as_array().unwrap().iter().zip(&answers) {
        let said = &answer["answers"][0];
        let passes = match &said["value"] {
            Value::Bool(true) => true,
            Value::Object(cases) => !cases.is_empty() && cases.values().all(|case| *case == true),
            _ => false,
        };
        let ours = result.get("fail").is_none() && result.get("error").is_none();
        assert_eq!(ours, passes, "{result:#} {answer:#}");
        failed += usize::from(!ours);
    }
    assert_eq!(failed, 4, "the tests of all kinds");
}

#[test]
fn a_table_in_json_is_run_and_an_empty_one_is_an_error() {
    let table = json!({"cases": [{
        "name": "owners", "rule": "data.things.decision", "expect": "allow",
        "input": {"route": {"params": {"id": "a"}}, "identity": {"subject": "alice"}},
    }]})
    .to_string();
    let folder = gateway(&[("policies/cases/things.json", &table)]);
    let run = |folder: &TempDir| policy_in(folder.path(), &["test"]);
    assert_eq!(out(&run(&folder)), "PASS: 1/1\n");
    fs::write(
        folder.path().join("policies/cases/things.json"),
        "{\"cases\": []}",
    )
    .unwrap();
    let output = run(&folder);
    assert_eq!(output.status.code(), Some(1), "{}", out(&output));
    assert!(
        err(&output).contains("the table has no cases"),
        "{}",
        err(&output)
    );
}

#[test]
fn cases_may_have_bodies() {
    let policy = "package things\n\ndefault decision := false\n\ndecision if input.request.body.amount < 10\n";
    let cases = "callers:\n  alice: { claims: { sub: alice } }\ncases:\n  - name: little\n    request: POST /things/a\n    as: alice\n    body: { amount: 5 }\n    expect: allow\n  - name: much\n    request: POST /things/a\n    as: alice\n    body: { amount: 50 }\n    expect: deny\n  - name: as text\n    request: |\n      POST /things/a\n      content-type: application/json\n\n      {\"amount\": 5}\n    as: alice\n    expect: allow\n  - name: none\n    request: POST /things/a\n    as: alice\n    expect: deny\n  - name: too large\n    request: POST /things/a\n    as: alice\n    body: \"0123456789012345678901234567890123456789\"\n    expect: { stage: request, status: 413 }\n";
    let folder = gateway(&[
        ("policies/things.rego", policy),
        ("policies/cases/things.yaml", cases),
    ]);
    let config = folder.path().join("gateway.yaml");
    let text = fs::read_to_string(&config).unwrap();
    let mut document: Value = serde_json::from_str(&text).unwrap();
    document["policies"]["things"]["body"] = json!({"max": "32B"});
    fs::write(&config, document.to_string()).unwrap();
    let output = policy_in(folder.path(), &["test"]);
    assert_eq!(out(&output), "PASS: 5/5\n", "{}", err(&output));
}

#[test]
fn mistakes_are_laid_at_the_door_of_what_was_named() {
    let folder = folder(&[("empty/readme.txt", "")]);
    for (arguments, told, never) in [
        (vec!["test", "nowhere"], "nowhere", "gateway.yaml"),
        (vec!["eval", "-d", "empty", "true"], "empty", "gateway.yaml"),
        (
            vec!["can-i", "GE T", "/a"],
            "one word, such as `GET`",
            "GE T`?",
        ),
        (
            vec!["diff", "HEAD~1"],
            "no git repository",
            "knows no such revision",
        ),
    ] {
        let output = Command::new(env!("CARGO_BIN_EXE_portcullis"))
            .arg("policy")
            .args(&arguments)
            .current_dir(folder.path())
            .env("GIT_CEILING_DIRECTORIES", folder.path().parent().unwrap())
            .env_remove("PORTCULLIS_CONFIG")
            .output()
            .unwrap();
        let said = err(&output);
        assert_ne!(output.status.code(), Some(0), "{arguments:?}");
        assert!(said.contains(told), "{arguments:?} {said}");
        assert!(!said.contains(never), "{arguments:?} {said}");
    }
}
