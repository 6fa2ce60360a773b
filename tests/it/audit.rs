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

#[test]
fn a_record_holds_all_that_the_decision_was_made_of() {
    let upstream = Upstream::start();
    let gateway = Builder::open(&upstream)
        .policy(
            "package gate\n\nallow := {\"allow\": input.request.headers[\"x-tenant\"] == \"acme\", \"reason\": \"gate.tenant\"}\n",
        )
        .with(|document| {
            document["policies"] = json!({"gate": {"files": ["gate.rego"], "entrypoint": "data.gate.allow"}});
            document["routes"][0]["policy"] = json!("gate");
        })
        .start();
    let ask = |tenant: &str| {
        let token = "eyJhbGciOiJub25lIn0.eyJzdWIiOiJhIn0.s3cr3t";
        gateway.get(
            "/orders/caf%C3%A9?token=s3cr3t&token=s3cr3t",
            &[
                ("x-tenant", tenant),
                ("x-odd", "a\u{85}\u{2028}\"b\\"),
                ("x-session-id", "s3cr3t"),
                ("x-anything", token),
                ("referer", "https://a.test/?code=s3cr3t"),
            ],
        )
    };
    assert_eq!(ask("acme").status, 200);
    assert_eq!(ask("acme").status, 200);
    assert_eq!(ask("evil").status, 403);
    let records = eventually("three records", || {
        Some(gateway.records()).filter(|records| records.len() == 3)
    });
    for (nth, record) in records.iter().enumerate() {
        assert_eq!(record["version"], 2);
        assert!(!record.to_string().contains("s3cr3t"), "{record}");
        let input = &record["input"];
        assert_eq!(input["version"], 1);
        assert_eq!(input["request"]["id"], record["request_id"]);
        assert_eq!(input["request"]["received_at_ns"], record["received_at_ns"]);
        assert_eq!(input["request"]["segments"], json!(["orders", "café"]));
        assert_eq!(input["request"]["headers"]["x-odd"], "a\u{85}\u{2028}\"b\\");
        assert_eq!(input["request"]["headers"]["x-session-id"], "***");
        assert_eq!(input["request"]["query"], json!({"token": ["***", "***"]}));
        assert_eq!(input["identity"], json!(null));
        assert_eq!(input["source"]["address"], "127.0.0.1");
        assert_eq!(input["route"]["name"], "open");
        assert_eq!(
            record["masked"],
            json!([
                "/input/request/headers/referer",
                "/input/request/headers/x-anything",
                "/input/request/headers/x-session-id",
                "/input/request/query/token/0",
                "/input/request/query/token/1",
            ])
        );
        let allowed = nth < 2;
        assert_eq!(
            record["answer"],
            json!({"allow": allowed, "reason": "gate.tenant"})
        );
        assert_eq!(record["policy"]["data"].as_str().unwrap().len(), 16);
        assert_eq!(record["policy"]["candidate"], json!(null));
        // Two workers, each with answers of its own.
        if record["policy"]["cached"] == false {
            assert!(record["duration_ms"]["policy"].is_number(), "{record}");
        }
    }
}

#[test]
fn what_was_no_answer_is_told_and_so_is_what_was_left_out() {
    let upstream = Upstream::start();
    let gateway = |rego: &str, audit: serde_json::Value| {
        Builder::open(&upstream)
            .policy(rego)
            .with(|document| {
                document["policies"] =
                    json!({"gate": {"files": ["gate.rego"], "entrypoint": "data.gate.allow"}});
                document["routes"][0]["policy"] = json!("gate");
                for (key, value) in audit.as_object().unwrap() {
                    document["audit"][key] = value.clone();
                }
            })
            .start()
    };
    let record =
        |gateway: &crate::support::gateway::Gateway, path: &str, headers: &[(&str, &str)]| {
            gateway.get(path, headers);
            let mut records = eventually("a record", || {
                Some(gateway.records()).filter(|records| records.len() == 1)
            });
            records.remove(0)
        };
    // Undefined: there is an input, and no answer.
    let undefined = gateway(
        "package gate\n\nallow if input.request.method == \"PUT\"\n",
        json!({}),
    );
    let told = record(&undefined, "/a", &[]);
    assert_eq!(
        (&told["reason"], &told["answer"]),
        (&json!("policy.undefined"), &json!(null))
    );
    assert_eq!(told["input"]["request"]["method"], "GET");
    // What is no answer is told as it was.
    let odd = gateway("package gate\n\nallow := {\"alow\": {1, 2}}\n", json!({}));
    let told = record(&odd, "/a", &[]);
    assert_eq!(
        (&told["reason"], &told["answer"]),
        (&json!("policy.answer"), &json!({"alow": [1, 2]}))
    );
    // Larger than wished.
    let small = gateway(
        "package gate\n\nallow := true\n",
        json!({"input_limit": "1KiB"}),
    );
    let told = record(&small, "/a", &[("x-long", &"x".repeat(2000))]);
    assert_eq!(
        (&told["answer"], &told["input"]),
        (&json!(true), &json!(null))
    );
    assert_eq!(told["input_left_out"], "larger than 1024 bytes");
    // Nothing at all.
    let none = gateway("package gate\n\nallow := true\n", json!({"input": "none"}));
    let told = record(&none, "/a", &[]);
    assert_eq!(
        (&told["answer"], &told["input"]),
        (&json!(true), &json!(null))
    );
    assert_eq!(told["input_left_out"], "audit.input is none");
    // No document, no input.
    let many = gateway("package gate\n\nallow := true\n", json!({}));
    let told = record(&many, &format!("/a?{}", "a&".repeat(300)), &[]);
    assert_eq!(
        (&told["reason"], &told["input"]),
        (&json!("policy.error"), &json!(null))
    );
    assert_eq!(
        told["input_left_out"],
        "the query has more than 256 parameters"
    );
}

#[test]
fn bodies_are_in_records_only_when_that_is_said() {
    let upstream = Upstream::start();
    for (kind, rego) in [
        (
            "portcullis",
            "package gate\n\nallow if input.request.body.amount == 7\n",
        ),
        (
            "envoy",
            "package gate\n\nallow if input.parsed_body.amount == 7\n",
        ),
    ] {
        for bodies in [false, true] {
            let gateway = Builder::open(&upstream)
                .policy(rego)
                .with(|document| {
                    document["policies"] = json!({"gate": {"files": ["gate.rego"],
                        "entrypoint": "data.gate.allow", "body": {}, "input": kind}});
                    document["routes"][0]["policy"] = json!("gate");
                    document["audit"]["bodies"] = json!(bodies);
                })
                .start();
            let mut connection = gateway.connect();
            let body = "{\"amount\": 7, \"card\": \"s3cr3t\"}";
            let length = body.len().to_string();
            let mut sent = request(
                "POST",
                "/a",
                &[
                    ("content-type", "application/json"),
                    ("content-length", &length),
                ],
            );
            sent.push_str(body);
            connection.send(sent);
            assert_eq!(connection.answer().unwrap().status, 200);
            let records = eventually("a record", || {
                Some(gateway.records()).filter(|records| records.len() == 1)
            });
            let text = records[0].to_string();
            assert_eq!(text.contains("s3cr3t"), bodies, "{kind} {text}");
            let erased = records[0]["erased"].as_array();
            assert_eq!(erased.is_some(), !bodies, "{kind} {text}");
        }
    }
}

#[test]
fn rules_of_the_operator_decide_what_is_kept_and_a_reload_changes_them() {
    let upstream = Upstream::start();
    let builder = Builder::open(&upstream).policy("package gate\n\nallow := true\n");
    builder.file(
        "log.rego",
        "package system.log\n\nmask contains \"/input/request/headers/x-mail\"\n\nmask contains \"/record/user_agent\"\n\nmask contains \"/input/request/headers/user-agent\"\n\ndrop if input.record.path == \"/health\"\n",
    );
    let mut gateway = builder
        .with(|document| {
            document["policies"] =
                json!({"gate": {"files": ["gate.rego"], "entrypoint": "data.gate.allow"}});
            document["routes"][0]["policy"] = json!("gate");
            document["audit"]["rules"] = json!({"files": ["log.rego"],
                "mask": "data.system.log.mask", "drop": "data.system.log.drop"});
        })
        .start();
    let headers = [
        ("x-mail", "alice@example.test"),
        ("user-agent", "secret-agent"),
    ];
    for path in ["/health", "/a"] {
        assert_eq!(gateway.get(path, &headers).status, 200);
    }
    let records = eventually("one record", || {
        Some(gateway.records()).filter(|records| !records.is_empty())
    });
    assert_eq!(records.len(), 1, "the other was dropped: {records:?}");
    let text = records[0].to_string();
    assert!(
        !text.contains("alice@") && !text.contains("secret-agent"),
        "{text}"
    );
    assert_eq!(
        records[0]["erased"],
        json!([
            "/input/request/headers/user-agent",
            "/input/request/headers/x-mail",
            "/user_agent"
        ])
    );
    assert_eq!(records[0]["answer"], json!(true));
    let metrics = gateway.admin("GET", "/metrics").text();
    assert!(
        metrics.contains("portcullis_audit_rules_dropped_total 1\n"),
        "{metrics}"
    );

    // What is no rule is found at load, with its place.
    gateway.file_in("log.rego", "package system.log\n\nmask := {\"/nothing\"}\n");
    let answer = gateway.reload(|document| document["audit"]["rules"]["drop"] = json!(null));
    assert_eq!(answer.status, 422, "{}", answer.text());
    assert!(answer.text().contains("audit.rules"), "{}", answer.text());
    gateway.file_in("log.rego", "package system.log\n\nmask := {\"/input\"}\n");
    assert_eq!(gateway.reload(|_| ()).status, 200);
    gateway.get("/health", &headers);
    let records = eventually("the next record", || {
        Some(gateway.records()).filter(|records| records.len() == 2)
    });
    assert_eq!(records[1]["input"], json!(null));
    assert_eq!(records[1]["path"], "/health");
}
