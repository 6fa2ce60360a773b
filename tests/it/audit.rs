//! One record per request, whatever happened; and never a secret in it.

use serde_json::json;

use crate::support::client::request;
use crate::support::eventually;
use crate::support::gateway::{Builder, World};
use crate::support::upstream::Upstream;

#[test]
fn every_request_has_exactly_one_record() {
    let world = World::start();
    let token = world.token("alice");
    let mut ids = Vec::new();
    for path in ["/a", "/a//b", "/b?x=1"] {
        let answer = world.gateway.bearer(path, &token);
        ids.push(answer.status);
    }
    world.gateway.get("/a", &[]);
    world.gateway.bearer("/a", "x.y.z");
    let mut connection = world.gateway.connect();
    for _ in 0..5 {
        connection.send(request(
            "GET",
            "/keep",
            &[("authorization", &format!("Bearer {token}"))],
        ));
        connection.answer().unwrap();
    }
    let records = eventually("ten records", || {
        Some(world.gateway.records()).filter(|r| r.len() >= 10)
    });
    assert_eq!(records.len(), 10);
    let mut unique: Vec<String> = records
        .iter()
        .map(|r| r["request_id"].to_string())
        .collect();
    unique.sort();
    unique.dedup();
    assert_eq!(unique.len(), 10);
    assert_eq!(ids, [200, 400, 200]);
}

#[test]
fn a_record_says_who_what_and_why() {
    let world = World::start();
    let answer = world
        .gateway
        .bearer("/orders/7?secret=hunter2", &world.token("alice"));
    assert_eq!(answer.status, 200);
    let id = world
        .upstream
        .last()
        .header("x-request-id")
        .unwrap()
        .to_owned();
    let record = world.gateway.record(&id);
    for (field, value) in [
        ("method", json!("GET")),
        ("path", json!("/orders/7")),
        ("host", json!("api.example.test")),
        ("route", json!("open")),
        ("listener", json!("local")),
        ("client", json!("127.0.0.1")),
        ("upstream", json!("main")),
        ("decision", json!("allow")),
        ("status", json!(200)),
        ("outcome", json!("complete")),
    ] {
        assert_eq!(record[field], value, "{field}: {record}");
    }
    assert_eq!(record["policy"]["name"], "gate");
    assert_eq!(record["caller"]["subject"], "alice");
    assert_eq!(record["caller"]["issuer"], json!(world.issuer.url));
    assert!(record["time"].as_str().unwrap().starts_with("20"));
    assert!(!record.to_string().contains("hunter2"), "{record}");
}

#[test]
fn what_a_client_writes_cannot_forge_a_line() {
    let world = World::start();
    let mut claims = world
        .issuer
        .claims("mallory\u{2028}\u{1b}[31m\"},{\"x\":\"");
    claims["jti"] = json!("a\r\nb");
    let token = world.key.token(&claims);
    world.gateway.get(
        "/a%22",
        &[
            ("authorization", &format!("Bearer {token}")),
            ("user-agent", "x\u{85}\"}\\"),
        ],
    );
    let text = eventually("a line", || {
        let text =
            std::fs::read_to_string(world.gateway.folder.path().join("audit.jsonl")).unwrap();
        (!text.is_empty()).then_some(text)
    });
    assert_eq!(text.lines().count(), 1);
    assert!(!text.trim_end().chars().any(char::is_control), "{text:?}");
    let _: serde_json::Value = serde_json::from_str(&text).unwrap();
}

#[test]
fn no_record_and_no_log_holds_a_credential() {
    let world = World::start();
    let token = world.token("alice");
    let signature = token.rsplit('.').next().unwrap().to_owned();
    world.gateway.get(
        "/a?access_token=s3cr3t-query",
        &[
            ("authorization", &format!("Bearer {token}")),
            ("cookie", "sid=s3cr3t-cookie"),
            ("x-api-key", "s3cr3t-key"),
        ],
    );
    world.gateway.bearer("/a", &format!("{token}x"));
    let text = eventually("two lines", || {
        let text =
            std::fs::read_to_string(world.gateway.folder.path().join("audit.jsonl")).unwrap();
        (text.lines().count() == 2).then_some(text)
    });
    assert!(
        !text.contains(&signature) && !text.contains("s3cr3t"),
        "{text}"
    );
    let config = world.gateway.admin("GET", "/config").text();
    assert!(!config.contains("s3cr3t"), "{config}");
}

#[test]
fn secrets_are_masked_in_the_effective_configuration() {
    let upstream = Upstream::start();
    let builder = Builder::open(&upstream);
    builder.file("hmac", "correct-horse-battery-staple-correct-horse");
    let gateway = builder
        .with(|document| {
            document["issuers"] = json!({"sym": {
                "issuer": "https://sym.test", "keys": {"secret": "file:hmac"},
                "audiences": ["a"], "algorithms": ["HS256"],
            }});
            document["routes"][0]["authn"] = json!(["sym"]);
        })
        .start();
    let config = gateway.admin("GET", "/config").text();
    assert!(config.contains("file:hmac"), "{config}");
    assert!(!config.contains("correct-horse"), "{config}");
}

#[test]
fn metrics_count_what_happened() {
    let world = World::start();
    assert_eq!(
        world.gateway.bearer("/a", &world.token("alice")).status,
        200
    );
    assert_eq!(world.gateway.get("/a", &[]).status, 401);
    let metrics = eventually("the figures", || {
        let text = world.gateway.admin("GET", "/metrics").text();
        (text.contains("status=\"401\"") || text.contains("4xx")).then_some(text)
    });
    for name in [
        "portcullis_requests_total",
        "portcullis_request_duration_seconds",
        "process_resident_memory_bytes",
    ] {
        assert!(metrics.contains(name), "{name} is missing in:\n{metrics}");
    }
    assert!(metrics.trim_end().ends_with("# EOF"), "not the text format");
}

#[test]
fn trace_context_is_continued_or_begun() {
    let world = World::start();
    let bearer = format!("Bearer {}", world.token("alice"));
    let parent = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
    world.gateway.get(
        "/a",
        &[
            ("authorization", &bearer),
            ("traceparent", parent),
            ("tracestate", "a=1"),
        ],
    );
    let seen = world.upstream.last();
    let sent = seen.header("traceparent").unwrap();
    assert!(
        sent.starts_with("00-4bf92f3577b34da6a3ce929d0e0e4736-"),
        "{sent}"
    );
    assert!(
        !sent.contains("00f067aa0ba902b7"),
        "our own span is named: {sent}"
    );
    assert_eq!(seen.header("tracestate"), Some("a=1"));
    for bad in [
        "00-0-0-0",
        "ff-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
        "00-4BF92F3577B34DA6A3CE929D0E0E4736-00f067aa0ba902b7-01",
        "00-00000000000000000000000000000000-00f067aa0ba902b7-01",
    ] {
        world.gateway.get(
            "/a",
            &[
                ("authorization", &bearer),
                ("traceparent", bad),
                ("tracestate", "a=1"),
            ],
        );
        let seen = world.upstream.last();
        let sent = seen.header("traceparent").unwrap();
        assert_eq!(sent.len(), 55, "{sent}");
        assert!(
            !sent.contains("4bf92f3577b34da6a3ce929d0e0e4736"),
            "{bad} was continued"
        );
        assert_eq!(seen.header("tracestate"), None, "{bad}");
    }
}
