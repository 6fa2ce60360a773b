//! Events have the members of OPA's schema and no others, and say what the record says.

use serde_json::{Value, json};

use super::*;

fn record() -> Value {
    json!({
        "version": 2, "time": "2026-11-21T01:32:05.042Z",
        "received_at_ns": 1_795_224_725_042_000_123_u64,
        "request_id": "12f9f1b4ed50fcd58d0656be3a9a52f4",
        "decision_id": "e02c9efcf765755b6f33faed5b359ad7",
        "trace_id": "4bf92f3577b34da6a3ce929d0e0e4736", "span_id": "00f067aa0ba902b7",
        "listener": "public", "client": "192.0.2.1", "peer": "192.0.2.1:4711", "tls": null,
        "path": "/orders", "route": "orders",
        "policy": {
            "name": "orders", "revision": "b4df78ef6caa849f", "entrypoint": "data.orders.decision",
            "data": "0011223344556677", "candidate": null, "bundles": { "a\"b": "r1" },
            "cached": true,
        },
        "decision": "deny", "reason": "orders.not_owner", "detail": null,
        "duration_ms": { "decision": 0.5, "policy": 0.056, "head": 1.0, "total": 12.5 },
        "masked": ["/input/request/query/a~1\"b/0", "/answer/reason", "/client"],
        "erased": ["/input/request/body"],
        "answer": { "allow": false }, "input": { "version": 1 },
    })
}

fn of(record: &Value) -> Option<Value> {
    let labels = Labels::new("i-1", [("region", "eu")]);
    let mut out = Vec::new();
    event(record.to_string().as_bytes(), &labels, &mut out)
        .then(|| serde_json::from_slice(&out).unwrap())
}

#[test]
fn an_event_has_the_members_that_opa_documents() {
    assert_eq!(
        of(&record()).unwrap(),
        json!({
            "labels": {
                "id": "i-1", "version": concat!("portcullis-", env!("CARGO_PKG_VERSION")),
                "region": "eu",
            },
            "decision_id": "e02c9efcf765755b6f33faed5b359ad7",
            "trace_id": "4bf92f3577b34da6a3ce929d0e0e4736", "span_id": "00f067aa0ba902b7",
            "revision": "b4df78ef6caa849f", "bundles": { "a\"b": { "revision": "r1" } },
            "path": "orders/decision", "input": { "version": 1 }, "result": { "allow": false },
            "requested_by": "192.0.2.1:4711", "timestamp": "2026-11-21T01:32:05.042000123Z",
            "metrics": {
                "counter_server_query_cache_hit": 1, "timer_rego_query_eval_ns": 56_000,
                "timer_server_handler_ns": 12_500_000,
            },
            "erased": ["/input/request/body"],
            "masked": ["/input/request/query/a~1\"b/0", "/result/reason"],
            "req_id": 0x1_2f9f_1b4e_d50f_u64,
            "nd_builtin_cache": { "time.now_ns": { "[]": 1_795_224_725_042_000_123_u64 } },
        })
    );
}

#[test]
fn what_is_not_known_is_absent() {
    let mut record = record();
    for member in ["trace_id", "span_id", "answer", "input", "masked", "erased"] {
        record[member] = Value::Null;
    }
    record["policy"]["bundles"] = Value::Null;
    record["client"] = json!("2001:db8::9");
    let event = of(&record).unwrap();
    for member in [
        "trace_id", "span_id", "bundles", "input", "result", "masked", "erased", "error",
    ] {
        assert_eq!(event.get(member), None, "{member}");
    }
    assert_eq!(event["requested_by"], "2001:db8::9");
    record["client"] = Value::Null;
    assert_eq!(of(&record).unwrap().get("requested_by"), None);
}

#[test]
fn a_decision_that_failed_has_an_error() {
    let mut record = record();
    record["answer"] = Value::Null;
    record["reason"] = json!("policy.budget");
    record["detail"] = json!("too \"long\"");
    let error = json!({ "code": "policy.budget", "message": "too \"long\"" });
    assert_eq!(of(&record).unwrap()["error"], error);
    record["reason"] = json!("policy.undefined");
    assert_eq!(of(&record).unwrap().get("error"), None);
}

#[test]
fn what_no_policy_was_asked_about_is_no_event() {
    let mut open = record();
    open["policy"] =
        json!({ "name": "public", "revision": "", "entrypoint": null, "cached": false });
    assert_eq!(of(&open), None);
    let mut refused = record();
    refused["policy"] = Value::Null;
    refused["decision_id"] = Value::Null;
    assert_eq!(of(&refused), None);
    assert_eq!(of(&json!([1])), None);
}

#[test]
fn rules_see_the_record_beside_the_event() {
    let mut out = Vec::new();
    let mut refused = record();
    refused["policy"] = Value::Null;
    for_rules(
        refused.to_string().as_bytes(),
        &Labels::new("i", []),
        &mut out,
    );
    let seen: Value = serde_json::from_slice(&out).unwrap();
    assert_eq!(seen["record"]["route"], "orders");
    assert_eq!(seen["record"].get("input"), None);
    assert_eq!(seen["input"], json!({ "version": 1 }));
}

#[test]
fn a_hidden_clock_is_hidden() {
    let mut record = record();
    record["erased"] = json!(["/nd_builtin_cache/time.now_ns"]);
    let event = of(&record).unwrap();
    assert_eq!(event.get("nd_builtin_cache"), None);
    assert_eq!(event["erased"], json!(["/nd_builtin_cache/time.now_ns"]));
}
