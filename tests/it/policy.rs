//! May they: only a literal yes allows; everything else denies with its own reason.

use crate::support::gateway::{Builder, World};
use crate::support::upstream::Upstream;
use serde_json::json;

/// A gateway whose policy answers `answer`, a Rego term.
fn answering(answer: &str) -> World {
    let rego = format!("package gate\n\nallow := {answer}\n");
    World::with(|builder| builder.policy(&rego))
}

#[track_caller]
fn denied(world: &World) -> (u16, String) {
    let answer = world.gateway.bearer("/a", &world.token("alice"));
    assert!(world.upstream.seen().is_empty(), "reached the upstream");
    let record = world
        .gateway
        .record(answer.json()["request_id"].as_str().unwrap());
    assert_eq!(record["decision"], "deny", "{record}");
    (answer.status, record["reason"].as_str().unwrap().to_owned())
}

#[test]
fn only_a_literal_yes_allows() {
    assert_eq!(answering("true").gateway.get("/a", &[]).status, 401);
    for yes in ["true", "{\"allow\": true}"] {
        let world = answering(yes);
        assert_eq!(
            world.gateway.bearer("/a", &world.token("alice")).status,
            200,
            "{yes}"
        );
    }
    for (no, reason) in [
        ("false", "policy.denied"),
        ("{\"allow\": false}", "policy.denied"),
        (
            "{\"allow\": false, \"reason\": \"orders.not_owner\"}",
            "orders.not_owner",
        ),
        ("\"true\"", "policy.answer"),
        ("1", "policy.answer"),
        ("null", "policy.answer"),
        ("[true]", "policy.answer"),
        ("{true}", "policy.answer"),
        ("{}", "policy.answer"),
        ("{\"allow\": \"true\"}", "policy.answer"),
        ("{\"allow\": true, \"alow\": true}", "policy.answer"),
        ("{\"allow\": true, \"status\": \"200\"}", "policy.answer"),
        (
            "{\"allow\": true, \"headers\": {\"transfer-encoding\": \"x\"}}",
            "policy.answer",
        ),
        (
            "{\"allow\": true, \"headers\": {\"x\": \"a\\r\\nb: c\"}}",
            "policy.answer",
        ),
        ("true if input.nothing", "policy.undefined"),
    ] {
        let world = answering(no);
        assert_eq!(denied(&world), (403, reason.to_owned()), "{no}");
    }
}

#[test]
fn a_denial_may_choose_its_face_and_tells_nothing_else() {
    let world = answering(
        "{\"allow\": false, \"reason\": \"internal.secret\", \"message\": \"ask your manager\", \"status\": 404, \"headers\": {\"x-hint\": \"1\"}}",
    );
    let answer = world.gateway.bearer("/a", &world.token("alice"));
    assert_eq!(answer.status, 404);
    assert_eq!(answer.header("x-hint"), Some("1"));
    let body = answer.json();
    assert_eq!(body["title"], "ask your manager");
    assert_eq!(body["code"], "denied");
    assert!(
        body["decision_id"]
            .as_str()
            .is_some_and(|id| !id.is_empty())
    );
    assert!(!answer.text().contains("internal.secret"));
}

#[test]
fn a_step_up_is_challenged() {
    let world =
        answering("{\"allow\": false, \"step_up\": {\"acr_values\": [\"phr\"], \"max_age\": 300}}");
    let answer = world.gateway.bearer("/a", &world.token("alice"));
    assert_eq!(answer.status, 401);
    let challenge = answer.header("www-authenticate").unwrap();
    for part in [
        "insufficient_user_authentication",
        "acr_values=\"phr\"",
        "max_age=\"300\"",
    ] {
        assert!(challenge.contains(part), "{challenge}");
    }
}

#[test]
fn the_input_holds_the_request_and_no_credential() {
    let world = World::with(|builder| {
        builder
            .policy(
                r#"package gate

allow := {"allow": true, "headers": {"x-input": json.marshal(input)}}
"#,
            )
            .with(|document| document["routes"][0]["path"] = json!("/orders/{id}"))
    });
    let token = world.token("alice");
    let bearer = format!("Bearer {token}");
    let answer = world.gateway.get(
        "/orders/a%20b?x=1&x=2&y",
        &[
            ("authorization", &bearer),
            ("cookie", "session=s3cr3t"),
            ("x-a", "1"),
            ("x-a", "2"),
            ("x-tenant", "acme"),
        ],
    );
    assert_eq!(answer.status, 200, "{}", answer.text());
    let text = answer.header("x-input").unwrap();
    assert!(
        !text.contains("s3cr3t") && !text.contains(token.rsplit('.').next().unwrap()),
        "{text}"
    );
    let input: serde_json::Value = serde_json::from_str(text).unwrap();
    assert_eq!(input["version"], 1);
    assert_eq!(input["request"]["method"], "GET");
    assert_eq!(input["request"]["host"], "api.example.test");
    assert_eq!(input["request"]["path"], "/orders/a%20b");
    assert_eq!(input["request"]["segments"], json!(["orders", "a b"]));
    assert_eq!(
        input["request"]["query"],
        json!({"x": ["1", "2"], "y": [""]})
    );
    assert_eq!(input["request"]["headers"]["x-tenant"], "acme");
    assert_eq!(input["request"]["headers"]["x-a"], "1, 2");
    assert_eq!(input["identity"]["subject"], "alice");
    assert_eq!(
        input["identity"]["scopes"],
        json!(["orders:read", "orders:write"])
    );
    assert_eq!(input["identity"]["claims"]["client_id"], "app");
    assert_eq!(input["source"]["address"], "127.0.0.1");
    assert_eq!(input["route"]["name"], "open");
    assert_eq!(input["route"]["params"]["id"], "a b");
    assert_eq!(input["signals"]["device"]["known"], false);
}

#[test]
fn policies_that_could_bring_the_process_down_do_not_load() {
    let upstream = Upstream::start();
    for (what, rego) in [
        ("recursion", "package gate\n\nallow if b\n\nb if allow\n"),
        (
            "recursive function",
            "package gate\n\nf(x) := 1 if x == 0\n\nf(x) := f(x - 1) if x > 0\n\nallow if f(3) == 1\n",
        ),
        (
            "endless function",
            "package gate\n\nf(x) := f(x)\n\nallow if f(1)\n",
        ),
        ("syntax", "package gate\n\nallow if {\n"),
        ("old syntax", "package gate\n\nallow { input.x }\n"),
        (
            "unknown function",
            "package gate\n\nallow if no.such(input.x)\n",
        ),
        ("unknown entry point", "package gate\n\nother := true\n"),
        (
            "nesting",
            &format!(
                "package gate\n\nallow := {}1{}\n",
                "[".repeat(40),
                "]".repeat(40)
            ),
        ),
        (
            "outside call",
            "package gate\n\nallow if http.send({\"method\": \"get\", \"url\": \"http://127.0.0.1\"}).status_code == 200\n",
        ),
    ] {
        let mut gateway = Builder::open(&upstream).start();
        std::fs::write(gateway.folder.path().join("bad.rego"), rego).unwrap();
        let answer = gateway.reload(|document| {
            document["policies"] =
                json!({"bad": {"files": ["bad.rego"], "entrypoint": "data.gate.allow"}});
            document["routes"][0]["policy"] = json!("bad");
        });
        assert!(answer.status >= 400, "{what} loaded");
        let text = answer.text();
        assert!(
            text.contains("bad.rego") || text.contains("entry"),
            "{what}: {text}"
        );
        assert_eq!(
            gateway.get("/a", &[]).status,
            200,
            "{what}: the old configuration is gone"
        );
    }
}

#[test]
fn a_spent_budget_is_a_denial_and_the_worker_goes_on() {
    let rego = r#"package gate

default allow := false

allow if input.request.path == "/a"

allow if {
	input.request.path == "/slow"
	some i in input.identity.claims.numbers
	some j in input.identity.claims.numbers
	some k in input.identity.claims.numbers
	some l in input.identity.claims.numbers
	i + j + k + l == -1
}
"#;
    let world = World::with(|builder| builder.policy(rego));
    let mut claims = world.issuer.claims("alice");
    claims["numbers"] = json!((0..200).collect::<Vec<_>>());
    let token = world.key.token(&claims);
    let answer = world.gateway.bearer("/slow", &token);
    assert_eq!(answer.status, 403);
    let record = world
        .gateway
        .record(answer.json()["request_id"].as_str().unwrap());
    assert_eq!(record["reason"], "policy.budget", "{record}");
    assert_eq!(world.gateway.bearer("/a", &token).status, 200);
}

#[test]
fn errors_of_the_engine_deny() {
    for body in [
        "1 / input.identity.claims.zero > 0",
        "upper(input.identity.claims.zero) == \"X\"",
        // Each passes a bound of the builtin's work, whatever the rule makes of it.
        "not count(numbers.range(1, 50000000)) == 7",
        "not count(net.cidr_expand(\"10.0.0.0/8\")) == 7",
        "not sprintf(\"%999999999d\", [1]) == \"\"",
        "not upper(input.identity.claims.zero) == \"X\"",
        "not bad\n\nbad if 1 / input.identity.claims.zero == 7",
        "not bad\n\nbad := 1 if input.identity\n\nbad := 2 if input.request",
        "{ user := input.identity.claims.nothing }",
        "count([1 | x := input.identity.claims.nothing]) == 1",
    ] {
        let mut world = World::start();
        let rego = format!("package gate\n\nallow if {body}\n");
        std::fs::write(world.gateway.folder.path().join("bad.rego"), rego).unwrap();
        let answer = world.gateway.reload(|document| {
            document["policies"]["gate"]["files"] = json!(["bad.rego"]);
        });
        if answer.status >= 400 {
            let text = answer.text();
            assert!(
                text.contains("bad.rego") && text.contains("\"line\": 3")
                    || text.contains("bad.rego:3:"),
                "{body}: {text}"
            );
            continue;
        }
        let mut claims = world.issuer.claims("alice");
        claims["zero"] = json!(0);
        claims["empty"] = json!("");
        let answer = world.gateway.bearer("/a", &world.key.token(&claims));
        assert_eq!(answer.status, 403, "{body}");
        assert!(world.upstream.seen().is_empty());
        assert_eq!(
            world.gateway.get("/a", &[]).status,
            401,
            "{body}: the gateway is still there"
        );
    }
}

#[test]
fn a_not_over_what_is_absent_allows_nobody() {
    let mut world = World::start();
    let reload = |world: &mut World, body: &str, name: &str| {
        let rego =
            format!("package gate\n\nblocked := {{\"closed\"}}\n\nallow if {{\n{body}\n}}\n");
        std::fs::write(world.gateway.folder.path().join(name), rego).unwrap();
        world.gateway.reload(|document| {
            document["policies"]["gate"]["files"] = json!([name]);
        })
    };
    let forms = [
        "\tnot input.identity.claims.dept in blocked",
        "\tdept := input.identity.claims.dept\n\tnot dept in blocked",
        "\tinput.identity.claims.dept != \"\"\n\tnot input.identity.claims.dept in blocked",
    ];
    for (index, body) in forms.into_iter().enumerate() {
        let answer = reload(&mut world, body, &format!("good{index}.rego"));
        assert!(answer.status < 400, "{body}: {}", answer.text());
        for (dept, status) in [(None, 403), (Some("closed"), 403), (Some("sales"), 200)] {
            let mut claims = world.issuer.claims("alice");
            if let Some(dept) = dept {
                claims["dept"] = json!(dept);
            }
            let answer = world.gateway.bearer("/a", &world.key.token(&claims));
            assert_eq!(answer.status, status, "{body}: {dept:?}");
        }
    }
}

#[test]
fn a_decision_that_takes_too_much_memory_is_a_denial() {
    // Doubles the request's path: few instructions, little time, much memory.
    let doubled: String = (1..=15)
        .map(|i| format!("\ts{i} := sprintf(\"%s%s\", [s{}, s{}])\n", i - 1, i - 1))
        .collect();
    let rego = format!(
        "package gate\n\ndefault allow := false\n\nallow if {{\n\ts0 := input.request.path\n{doubled}\ts15 != \"\"\n}}\n"
    );
    let world = World::with(|builder| {
        builder.policy(&rego).with(|document| {
            document["policies"]["gate"]["budget"] = json!({"time": "1s", "memory": "4MiB"});
        })
    });
    let token = world.token("alice");
    assert_eq!(world.gateway.bearer("/a", &token).status, 200);
    let answer = world
        .gateway
        .bearer(&format!("/{}", "y".repeat(1000)), &token);
    assert_eq!(answer.status, 403);
    let record = world
        .gateway
        .record(answer.json()["request_id"].as_str().unwrap());
    assert_eq!(record["reason"], "policy.budget", "{record}");
    assert_eq!(world.gateway.bearer("/a", &token).status, 200);
}
