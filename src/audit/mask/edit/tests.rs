//! What OPA's own mask rules do, done to a record.

use serde_json::{Value as Json, json};

use super::*;
use crate::document::from_json;

fn record() -> Json {
    json!({
        "version": 2, "client": "192.0.2.1", "query": "a=*", "user_agent": "curl", "status": 200,
        "masked": ["/input/request/query/a/0"],
        "answer": { "allow": true, "reason": "r", "identity": { "email": "a@b" } },
        "input": {
            "identity": { "claims": { "email": "a@b", "x/y": 1, "groups": ["a", "b", "c"] } },
            "request": { "headers": { "x-tenant": "acme" }, "path": "/a" },
        },
    })
}

/// With the members in the order of records.
fn line(record: &Json) -> String {
    let mut members = record.as_object().unwrap().clone();
    let mut out = String::from("{");
    let last = ["masked", "erased", "answer", "input"];
    let mut put = |name: &str, value: &Json| {
        if out.len() > 1 {
            out.push(',');
        }
        out.push_str(&format!("{}:{value}", Json::from(name)));
    };
    let tail: Vec<_> = last
        .iter()
        .filter_map(|name| members.remove_entry(*name))
        .collect();
    members
        .iter()
        .chain(tail.iter().map(|(name, value)| (name, value)))
        .for_each(|(n, v)| put(n, v));
    out.push('}');
    out
}

fn rules(rules: &Json) -> Result<Vec<Edit>, Wrong> {
    read(&from_json(rules.to_string().as_bytes()).unwrap())
}

/// What becomes of the record; `None` when nothing does.
fn masked(by: &Json) -> Option<Json> {
    let edits = rules(by).unwrap();
    let line = line(&record());
    let mut out = Vec::new();
    if !apply(&edits, line.as_bytes(), &mut out) {
        assert!(out.is_empty());
        return None;
    }
    let text = String::from_utf8(out).unwrap();
    assert!(text.contains(",\"answer\":") && text.ends_with('}'));
    Some(serde_json::from_str(&text).unwrap())
}

#[test]
fn what_a_text_points_to_is_removed_and_named() {
    let found = masked(&json!([
        "/input/identity/claims/email",
        "/result/identity/email"
    ]))
    .unwrap();
    let mut expected = record();
    expected["input"]["identity"]["claims"]
        .as_object_mut()
        .unwrap()
        .remove("email");
    expected["answer"]["identity"] = json!({});
    expected["erased"] = json!(["/input/identity/claims/email", "/answer/identity/email"]);
    assert_eq!(found, expected);
}

#[test]
fn objects_remove_and_upsert_and_make_the_way() {
    let found = masked(&json!([
        { "op": "remove", "path": "/input/identity/claims/groups/1" },
        { "op": "upsert", "path": "/input/identity/claims/email", "value": "**" },
        { "op": "upsert", "path": "/input/identity/claims/x~1y", "value": { "z": [1] } },
        { "op": "upsert", "path": "/input/new/deep", "value": null },
        { "op": "upsert", "path": "/result/reason", "value": "**" },
        { "op": "upsert", "path": "/result/reason/not/an/object", "value": "**" },
        { "op": "remove", "path": "/input/nowhere" },
    ]))
    .unwrap();
    let mut expected = record();
    let claims = &mut expected["input"]["identity"]["claims"];
    claims["groups"] = json!(["a", null, "c"]);
    claims["email"] = json!("**");
    claims["x/y"] = json!({ "z": [1] });
    expected["input"]["new"] = json!({ "deep": null });
    expected["answer"]["reason"] = json!("**");
    expected["erased"] = json!(["/input/identity/claims/groups/1"]);
    expected["masked"] = json!([
        "/input/request/query/a/0",
        "/input/identity/claims/email",
        "/input/identity/claims/x~1y",
        "/input/new/deep",
        "/answer/reason",
    ]);
    assert_eq!(found, expected);
}

#[test]
fn the_whole_and_members_of_the_record_go_too() {
    let found = masked(&json!([
        "/input",
        "/result",
        "/record/client",
        "/record/query"
    ]))
    .unwrap();
    for gone in ["input", "answer", "client", "query"] {
        assert_eq!(found[gone], Json::Null);
    }
    assert_eq!(
        found["erased"],
        json!(["/input", "/answer", "/client", "/query"])
    );
    let put = json!([{ "op": "upsert", "path": "/record/user_agent", "value": "x" },
        { "op": "upsert", "path": "/input", "value": 5 }, "/nd_builtin_cache"]);
    let found = masked(&put).unwrap();
    assert_eq!(
        (&found["user_agent"], &found["input"]),
        (&json!("x"), &json!(5))
    );
    assert_eq!(found["erased"], json!(["/nd_builtin_cache"]));
}

#[test]
fn all_items_of_an_array_that_are_removed_are_gone() {
    let groups = |n: &str| format!("/input/identity/claims/groups/{n}");
    for order in [["0", "1", "2"], ["2", "1", "0"], ["1", "0", "2"]] {
        let found = masked(&json!(order.map(groups))).unwrap();
        let left = &found["input"]["identity"]["claims"]["groups"];
        assert_eq!(*left, json!([null, null, null]), "{order:?}");
        assert_eq!(found["erased"], json!(order.map(groups)));
    }
}

#[test]
fn what_is_masked_in_the_answer_is_masked_where_else_the_record_has_it() {
    let begin = || {
        let mut record = record();
        record["reason"] = json!("ssn 123");
        record["refusal"] = json!({ "code": "denied", "detail": "denied: ssn 123" });
        record["answer"] =
            json!({ "reason": "ssn 123", "dynamic_metadata": { "ssn": 123, "a": 1 } });
        record["metadata"] = json!({ "ssn": 123, "a": 1 });
        record["outcome"] = json!("permission_ended");
        record["detail"] = json!("ssn 456");
        record
    };
    let masked = |record: &Json, by: Json| -> Json {
        let mut out = Vec::new();
        assert!(apply(
            &rules(&by).unwrap(),
            line(record).as_bytes(),
            &mut out
        ));
        serde_json::from_slice(&out).unwrap()
    };
    let refusal = |detail: Json| json!({ "code": "denied", "detail": detail });
    let found = masked(&begin(), json!(["/result/reason"]));
    for gone in ["reason", "detail"] {
        assert_eq!(found[gone], Json::Null);
    }
    assert_eq!(found["refusal"], refusal(Json::Null));
    assert_eq!(found["metadata"]["ssn"], 123);
    assert_eq!(
        found["erased"],
        json!(["/answer/reason", "/reason", "/refusal/detail", "/detail"])
    );
    let found = masked(
        &begin(),
        json!([{ "op": "upsert", "path": "/result/reason", "value": "x" }]),
    );
    assert_eq!(
        (&found["reason"], &found["answer"]["reason"]),
        (&json!("***"), &json!("x"))
    );
    assert_eq!(found["refusal"], refusal(json!("***")));

    let found = masked(&begin(), json!(["/result/dynamic_metadata/ssn"]));
    assert_eq!(found["metadata"], json!({ "a": 1 }));
    assert_eq!(found["reason"], "ssn 123");
    assert_eq!(
        found["erased"],
        json!(["/answer/dynamic_metadata/ssn", "/metadata/ssn"])
    );

    let found = masked(&begin(), json!(["/result"]));
    assert!(!found.to_string().contains("ssn"), "{found}");
    // Also when the answer itself was too large for the record.
    let mut large = begin();
    large["answer"] = Json::Null;
    large["answer_left_out"] = json!("larger");
    let found = masked(&large, json!(["/result"]));
    assert!(!found.to_string().contains("ssn"), "{found}");

    // What the gateway itself says of a request stays, unless it is asked for.
    let found = masked(
        &begin(),
        json!(["/record/reason", "/record/refusal/detail", "/record/why"]),
    );
    assert_eq!(
        (&found["reason"], &found["refusal"]),
        (&Json::Null, &json!({ "code": "denied" }))
    );
    assert_eq!(
        found["erased"],
        json!(["/reason", "/refusal/detail", "/why"])
    );
    let mut out = Vec::new();
    withhold(line(&begin()).as_bytes(), &mut out);
    assert!(!String::from_utf8(out).unwrap().contains("ssn"));
}

#[test]
fn what_leads_nowhere_changes_nothing() {
    for nothing in [
        json!([]),
        json!([
            "/input/x",
            "/result/x/y",
            "/input/identity/claims/groups/3",
            "/input/request/path/x"
        ]),
        json!([{ "op": "upsert", "path": "/input/request/path/x", "value": 1 }]),
    ] {
        assert_eq!(masked(&nothing), None, "{nothing}");
    }
    // Nothing comes into being where there was none.
    let mut none = record();
    none["input"] = Json::Null;
    let edits =
        rules(&json!([{ "op": "upsert", "path": "/input/x", "value": 1 }, "/input"])).unwrap();
    assert!(!apply(&edits, line(&none).as_bytes(), &mut Vec::new()));
}

#[test]
fn what_is_no_rule_is_an_error() {
    for wrong in [
        json!("/input/x"),
        json!({ "/input/x": true }),
        json!([5]),
        json!([""]),
        json!(["input/x"]),
        json!(["/inputs/x"]),
        json!(["/labels/x"]),
        json!(["/record/status"]),
        json!(["/record"]),
        json!([{ "path": "/input/x" }]),
        json!([{ "op": "delete", "path": "/input/x" }]),
        json!([{ "op": "remove" }]),
        json!([{ "op": "upsert", "path": "/input/x", "value": "x".repeat(MAX_VALUE) }]),
        json!([format!("/input/{}", "x".repeat(MAX_POINTER))]),
        Json::Array(vec![json!("/input/x"); MAX_EDITS + 1]),
    ] {
        assert!(rules(&wrong).is_err(), "{wrong}");
    }
}

#[test]
fn a_record_that_is_withheld_shows_nothing_that_could_have_been_masked() {
    let mut out = Vec::new();
    withhold(line(&record()).as_bytes(), &mut out);
    let found: Json = serde_json::from_slice(&out).unwrap();
    assert_eq!(
        found,
        json!({
            "version": 2, "client": null, "query": null, "user_agent": null, "status": 200,
            "answer_left_out": "the rules of audit.rules failed",
            "input_left_out": "the rules of audit.rules failed",
            "masked": ["/input/request/query/a/0"],
            "erased": ["/client", "/query", "/user_agent", "/answer", "/input"],
            "answer": null, "input": null,
        })
    );
}
