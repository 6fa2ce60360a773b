//! Policies that were written for OPA's Envoy plugin run as they are: what they see, what they answer,
//! and the bodies that policies look at.

use std::io::{Read, Write};

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::{Value, json};

use crate::support::client::{Answer, Connection, request};
use crate::support::gateway::{Builder, World};
use crate::support::h2::{H2, Outcome, frame};
use crate::support::pki::{Authority, client_config};
use crate::support::upstream::{Next, Upstream};

/// A gateway whose policy is one of the Envoy plugin's, with its usual entry point.
fn envoy(rego: &str) -> World {
    envoy_with(rego, |_| {})
}

fn envoy_with(rego: &str, edit: impl FnOnce(&mut Value)) -> World {
    World::with(|builder| {
        builder.policy(rego).with(|document| {
            document["policies"]["gate"]["input"] = json!("envoy");
            document["policies"]["gate"]["entrypoint"] = json!("envoy/authz/allow");
            edit(document);
        })
    })
}

/// One that answers this term.
fn answering(answer: &str) -> World {
    envoy(&format!("package envoy.authz\n\nallow := {answer}\n"))
}

fn call(world: &World, method: &str, path: &str, more: &[(&str, &str)], body: &str) -> Answer {
    let token = format!("Bearer {}", world.token("alice"));
    let length = body.len().to_string();
    let mut headers = vec![("authorization", token.as_str())];
    if !body.is_empty() {
        headers.push(("content-length", &length));
    }
    headers.extend(more);
    let mut connection = world.gateway.connect();
    let mut bytes = request(method, path, &headers);
    bytes.push_str(body);
    connection.send(bytes).answer_to(method).expect("an answer")
}

fn get(world: &World, path: &str) -> Answer {
    call(world, "GET", path, &[], "")
}

fn post(world: &World, kind: &str, body: &str) -> Answer {
    call(world, "POST", "/a", &[("content-type", kind)], body)
}

fn byte(connection: &mut Connection) -> Option<u8> {
    let mut byte = [0];
    connection.read_exact(&mut byte).ok()?;
    Some(byte[0])
}

#[track_caller]
fn record_of(world: &World, answer: &Answer) -> Value {
    let id = answer.json()["request_id"].as_str().unwrap().to_owned();
    world.gateway.record(&id)
}

#[test]
fn a_policy_by_method_path_and_token_runs_as_it_is() {
    let world = envoy(
        r#"package envoy.authz

import input.attributes.request.http as http_request

default allow := false

allow if {
	is_token_valid
	action_allowed
}

is_token_valid if {
	now := time.now_ns() / 1000000000
	now < token.payload.exp
}

action_allowed if {
	http_request.method == "GET"
	token.payload.sub == "alice"
	glob.match("/people*", [], http_request.path)
}

action_allowed if {
	http_request.method == "DELETE"
	token.payload.sub == "root"
	input.parsed_path == ["people", _]
}

token := {"payload": payload} if {
	[_, encoded] := split(http_request.headers.authorization, " ")
	[_, payload, _] := io.jwt.decode(encoded)
}
"#,
    );
    assert_eq!(get(&world, "/people?lang=en").status, 200);
    assert_eq!(world.upstream.last().path(), "/people?lang=en");
    assert_eq!(get(&world, "/animals").status, 403);
    assert_eq!(call(&world, "DELETE", "/people/1", &[], "").status, 403);
}

#[test]
fn claims_that_the_gateway_verified_are_where_envoys_filter_puts_them() {
    let world = envoy(
        r#"package envoy.authz

default allow := false

payload := input.attributes.metadataContext.filterMetadata["envoy.filters.http.jwt_authn"].verified_jwt

allow if {
	payload.sub == "alice"
	input.parsed_query.id == ["1", "2"]
	input.version == {"ext_authz": "v3", "encoding": "protojson"}
	input.attributes.source.address.socketAddress.address == "127.0.0.1"
	input.attributes.destination.address.socketAddress.portValue > 0
}
"#,
    );
    assert_eq!(get(&world, "/a?id=1&id=2").status, 200);
    assert_eq!(get(&world, "/a?id=2&id=1").status, 403);
}

#[test]
fn the_input_holds_no_secret() {
    let world = envoy_with(
        r#"package envoy.authz

allow := {"allowed": true, "response_headers_to_add": {"x-input": json.marshal(input)}}
"#,
        |_| {},
    );
    let token = world.token("alice");
    let signature = token.rsplit('.').next().unwrap().to_owned();
    let answer = world.gateway.get(
        "/orders/1",
        &[
            ("authorization", &format!("Bearer {token}")),
            ("cookie", "s=s3cr3t"),
            ("x-api-key", "s3cr3t"),
        ],
    );
    let input = answer.header("x-input").expect("the input").to_owned();
    assert!(
        !input.contains(&signature) && !input.contains("s3cr3t"),
        "{input}"
    );
    let input: Value = serde_json::from_str(&input).unwrap();
    let http = &input["attributes"]["request"]["http"];
    let cut = token.strip_suffix(signature.as_str()).unwrap();
    assert_eq!(http["headers"]["authorization"], format!("Bearer {cut}"));
    assert_eq!(http["headers"][":path"], "/orders/1");
    assert_eq!(input["parsed_path"], json!(["orders", "1"]));
}

#[test]
fn an_allowed_request_is_changed_as_the_policy_says() {
    let world = envoy_with(
        r#"package envoy.authz

allow := {
	"allowed": true,
	"headers": [{"x-tenant": "acme"}, {"x-many": ["1", "2"]}],
	"request_headers_to_remove": ["x-internal"],
	"response_headers_to_add": {"x-policy": "seen"},
	"query_parameters_to_set": {"by": "gate way"},
	"query_parameters_to_remove": ["admin"],
	"dynamic_metadata": {"team": "größe"},
}
"#,
        |document| {
            document["identity"] = json!({"assertion": {"issuer": "https://gateway.test"}});
        },
    );
    let answer = call(
        &world,
        "GET",
        "/a?x=1&%61dmin=1&by=me",
        &[("x-tenant", "forged"), ("x-internal", "1"), ("x-kept", "1")],
        "",
    );
    assert_eq!(answer.status, 200);
    assert_eq!(answer.header("x-policy"), Some("seen"));
    let seen = world.upstream.last();
    assert_eq!(seen.path(), "/a?x=1&by=gate%20way");
    let values = |name: &str| -> Vec<&str> {
        let same = seen
            .headers
            .iter()
            .filter(|(n, _)| n.eq_ignore_ascii_case(name));
        same.map(|(_, value)| value.as_str()).collect()
    };
    assert_eq!(values("x-tenant"), ["acme"]);
    assert_eq!(values("x-many"), ["1", "2"]);
    assert_eq!(values("x-internal"), Vec::<&str>::new());
    assert_eq!(values("x-kept"), ["1"]);
    let assertion = seen.header("x-portcullis-assertion").unwrap();
    let payload = assertion.split('.').nth(1).unwrap();
    let payload = URL_SAFE_NO_PAD.decode(payload).unwrap();
    let payload: Value = serde_json::from_slice(&payload).unwrap();
    assert_eq!(payload["request"]["query"], "x=1&by=gate%20way");
    let id = seen.header("x-request-id").unwrap();
    let record = world.gateway.record(id);
    assert_eq!(record["metadata"], json!({"team": "größe"}));
    assert_eq!(
        record["edits"],
        json!({"headers": ["x-many", "x-many", "x-tenant"], "headers_removed": ["x-internal"],
               "parameters": ["by"], "parameters_removed": ["admin"]})
    );
}

#[test]
fn headers_that_only_the_gateway_writes_are_not_the_policys() {
    for (answer, edit) in [
        (
            r#"{"allowed": true, "headers": {"x-user-id": "root"}}"#,
            true,
        ),
        (
            r#"{"allowed": true, "headers": {"X-User-Id": "root"}}"#,
            true,
        ),
        (
            r#"{"allowed": true, "request_headers_to_remove": ["x-user-id"]}"#,
            true,
        ),
        (
            r#"{"allowed": true, "headers": {"x-portcullis-assertion": "a.b.c"}}"#,
            true,
        ),
        (
            r#"{"allowed": true, "headers": {"x-forwarded-for": "10.0.0.1"}}"#,
            false,
        ),
        (r#"{"allowed": true, "headers": {"host": "other"}}"#, false),
        (
            r#"{"allowed": true, "headers": {"content-length": "0"}}"#,
            false,
        ),
        (
            r#"{"allowed": true, "headers": {"transfer-encoding": "chunked"}}"#,
            false,
        ),
        (
            r#"{"allowed": true, "headers": {"x": "a\r\nx-user-id: root"}}"#,
            false,
        ),
        (r#"{"allowed": "true"}"#, false),
        (r#"{"allow": true}"#, false),
    ] {
        let rego = format!("package envoy.authz\n\nallow := {answer}\n");
        let world = envoy_with(&rego, |document| {
            if edit {
                document["identity"] = json!({
                    "headers": {"x-user-id": "subject"},
                    "assertion": {"issuer": "https://gateway.test"},
                });
            }
        });
        // Twice: also from the memory of decisions.
        for _ in 0..2 {
            let refused = get(&world, "/a");
            assert_eq!(refused.status, 403, "{answer}");
            assert_eq!(
                record_of(&world, &refused)["reason"],
                "policy.answer",
                "{answer}"
            );
        }
        assert!(world.upstream.seen().is_empty(), "{answer}");
    }
}

#[test]
fn a_denial_has_the_policys_status_body_and_headers() {
    let world = answering(
        r#"{
	"allowed": false,
	"http_status": 429,
	"body": "{\"wait\": true}",
	"headers": {"content-type": "application/json", "x-hint": ["a", "b"]},
	"dynamic_metadata": {"rule": 7},
}"#,
    );
    let answer = get(&world, "/a");
    assert_eq!(answer.status, 429);
    assert_eq!(answer.header("content-type"), Some("application/json"));
    assert_eq!(answer.text(), "{\"wait\": true}");
    let hints = answer.headers.iter().filter(|(name, _)| name == "x-hint");
    assert_eq!(hints.count(), 2);
    assert!(world.upstream.seen().is_empty());

    let plain = answering(r#"{"allowed": false, "body": "no <b>way</b>"}"#);
    let answer = get(&plain, "/a");
    assert_eq!(
        (answer.status, answer.text().as_str()),
        (403, "no <b>way</b>")
    );
    assert_eq!(answer.header("content-type"), Some("text/plain"));

    let login = answering(
        r#"{"allowed": false, "http_status": 302, "headers": {"location": "https://login.test/"}}"#,
    );
    let answer = get(&login, "/a");
    assert_eq!((answer.status, answer.text().as_str()), (302, ""));
    assert_eq!(answer.header("location"), Some("https://login.test/"));

    // Without words of the policy's there are ours.
    let ours = answering("false");
    assert_eq!(get(&ours, "/a").code(), "denied");
    for odd in ["100", "299", "\"403\"", "999"] {
        let world = answering(&format!(r#"{{"allowed": false, "http_status": {odd}}}"#));
        let answer = get(&world, "/a");
        assert_eq!(
            (answer.status, answer.code().as_str()),
            (403, "denied"),
            "{odd}"
        );
        assert_eq!(
            record_of(&world, &answer)["reason"],
            "policy.answer",
            "{odd}"
        );
    }
}

const BODY_POLICY: &str = r#"package envoy.authz

default allow := false

allow if {
	input.parsed_body.amount < 100
	not input.truncated_body
}

allow if input.parsed_body.kind == ["small"]
"#;

fn bodies(when_larger: &str) -> World {
    envoy_with(BODY_POLICY, |document| {
        document["policies"]["gate"]["body"] = json!({"max": "1KiB", "when_larger": when_larger});
    })
}

#[test]
fn a_policy_judges_the_body_and_the_upstream_gets_the_same_bytes() {
    let world = bodies("refuse");
    let sent = "{ \"amount\" : 7 ,\r\n\"x\":\"\\u0000\" }";
    assert_eq!(post(&world, "application/json", sent).status, 200);
    let seen = world.upstream.last();
    assert_eq!(String::from_utf8_lossy(&seen.body), sent);
    assert_eq!(
        seen.header("content-length"),
        Some(sent.len().to_string().as_str())
    );
    let form = "application/x-www-form-urlencoded";
    assert_eq!(post(&world, form, "kind=small").status, 200);
    let reached = world.upstream.seen().len();
    for (kind, no) in [
        ("application/json", "{\"amount\": 700}"),
        ("application/json", "[]"),
        ("text/plain", "{\"amount\": 7}"),
        (form, "kind=small&kind=large"),
        ("application/grpc", "{\"amount\": 7}"),
    ] {
        assert_eq!(post(&world, kind, no).code(), "denied", "{no}");
    }
    assert_eq!(get(&world, "/a").status, 403);
    assert_eq!(world.upstream.seen().len(), reached);
}

#[test]
fn a_body_that_can_be_read_in_two_ways_is_refused() {
    let world = bodies("refuse");
    for (kind, body) in [
        ("application/json", "{\"amount\": 7, \"amount\": 700}"),
        ("application/json", "{\"amount\": 7"),
        ("application/json", "{\"amount\": 7}{}"),
        ("application/json, text/plain", "{\"amount\": 7}"),
        ("application/x-www-form-urlencoded", "kind=small;kind=large"),
    ] {
        let answer = post(&world, kind, body);
        assert_eq!(
            (answer.status, answer.code().as_str()),
            (400, "body_unreadable"),
            "{body}"
        );
        let record = record_of(&world, &answer);
        assert_eq!(record["reason"], "policy.body");
        assert!(!record.to_string().contains("amount"), "{record}");
    }
    let gzip = [
        ("content-type", "application/json"),
        ("content-encoding", "gzip"),
    ];
    let answer = call(&world, "POST", "/a", &gzip, "{\"amount\": 7}");
    assert_eq!(answer.status, 400);
    assert!(world.upstream.seen().is_empty());
}

#[test]
fn larger_bodies_are_refused_or_kept_from_the_policy() {
    let long = format!("{{\"amount\": 7, \"pad\": \"{}\"}}", "x".repeat(2000));
    let refuse = bodies("refuse");
    let answer = post(&refuse, "application/json", &long);
    assert_eq!(
        (answer.status, answer.code().as_str()),
        (413, "body_too_large")
    );
    let truncate = bodies("truncate");
    assert_eq!(post(&truncate, "application/json", &long).status, 403);
    let any = envoy_with(
        "package envoy.authz\n\nallow if input.truncated_body\nallow if input.parsed_body\n",
        |document| {
            document["policies"]["gate"]["body"] =
                json!({"max": "1KiB", "when_larger": "truncate"});
        },
    );
    assert_eq!(post(&any, "application/json", &long).status, 200);
    assert_eq!(any.upstream.last().body, long.as_bytes());
}

#[test]
fn a_client_that_waits_for_100_continue_gets_it_and_chunks_go_on_as_they_came() {
    let world = bodies("refuse");
    let token = world.token("alice");
    let mut connection = world.gateway.connect();
    let head = format!(
        "POST /a HTTP/1.1\r\nhost: a.test\r\nauthorization: Bearer {token}\r\nexpect: 100-continue\r\n\
         content-type: application/json\r\ntransfer-encoding: chunked\r\n\r\n"
    );
    connection.send(head);
    let mut interim = Vec::new();
    while !interim.ends_with(b"\r\n\r\n") {
        interim.push(byte(&mut connection).expect("an interim answer"));
    }
    assert!(
        interim.starts_with(b"HTTP/1.1 100"),
        "{}",
        String::from_utf8_lossy(&interim)
    );
    connection.send("6\r\n{\"amou\r\n8\r\nnt\": 70}\r\n0\r\nx-sum: 1\r\n\r\n");
    assert_eq!(connection.answer().unwrap().status, 200);
    let seen = world.upstream.last();
    assert_eq!(seen.body, b"{\"amount\": 70}");
    assert_eq!(seen.header("transfer-encoding"), Some("chunked"));
}

#[test]
fn a_body_that_never_comes_is_not_waited_for() {
    let world = envoy_with(BODY_POLICY, |document| {
        document["policies"]["gate"]["body"] = json!({});
        document["routes"][0]["bounds"] = json!({"idle_timeout": "200ms"});
    });
    let token = world.token("alice");
    let head = format!(
        "POST /a HTTP/1.1\r\nhost: a.test\r\nauthorization: Bearer {token}\r\n\
         content-type: application/json\r\ncontent-length: 20\r\n\r\n{{\"amount\""
    );
    let answer = world.gateway.connect().send(head).answer().unwrap();
    assert_eq!(
        (answer.status, answer.code().as_str()),
        (408, "body_timeout")
    );
    assert!(world.upstream.seen().is_empty());
}

#[test]
fn a_policy_that_reads_bodies_and_is_shown_none_does_not_load() {
    let world = World::start();
    let mut gateway = world.gateway;
    gateway.file_in("gate.rego", BODY_POLICY);
    let answer = gateway.reload(|document| {
        document["policies"]["gate"]["input"] = json!("envoy");
        document["policies"]["gate"]["entrypoint"] = json!("data.envoy.authz.allow");
    });
    assert_ne!(answer.status, 200);
    let text = answer.text();
    assert!(text.contains("no body is read for it"), "{text}");
    assert!(text.contains("gate.rego"), "{text}");
}

#[test]
fn our_own_document_has_the_body_too() {
    let world = World::with(|builder| {
        builder
            .policy(
                "package gate\n\ndefault allow := false\n\nallow if input.request.body.amount < 100\n",
            )
            .with(|document| document["policies"]["gate"]["body"] = json!({"max": "64KiB"}))
    });
    assert_eq!(
        post(&world, "application/json", "{\"amount\": 7}").status,
        200
    );
    assert_eq!(
        post(&world, "application/json", "{\"amount\": 700}").status,
        403
    );
    assert_eq!(post(&world, "text/plain", "{\"amount\": 7}").status, 403);
    // The same question is answered from memory, and another body is another question.
    assert_eq!(
        post(&world, "application/json", "{\"amount\": 7}").status,
        200
    );
    let metrics = world.gateway.admin("GET", "/metrics").text();
    let hits = metrics
        .lines()
        .find(|line| line.contains("decision_cache") && line.contains("hit"));
    assert!(hits.is_some_and(|line| line.ends_with(" 1")), "{hits:?}");
}

#[test]
fn over_http2_bodies_are_judged_and_grpc_calls_are_not_waited_for() {
    let upstream = Upstream::start();
    let rego = "package envoy.authz\n\nallow if input.parsed_body.amount < 100\n\
                allow if input.truncated_body\n";
    let gateway = Builder::open(&upstream)
        .policy(rego)
        .with(|document| {
            document["policies"] = json!({"gate": {
                "files": ["gate.rego"], "input": "envoy", "entrypoint": "envoy/authz/allow",
                "body": {"when_larger": "truncate"},
            }});
            document["routes"][0]["policy"] = json!("gate");
        })
        .start();
    let fields = |kind: &'static str| {
        vec![
            (":method", "POST"),
            (":scheme", "http"),
            (":path", "/a"),
            (":authority", "a.test"),
            ("content-type", kind),
            ("te", "trailers"),
        ]
    };
    let mut client = H2::connect(gateway.address());
    for (stream, body, status) in [(1, "{\"amount\": 7}", 200), (3, "{\"amount\": 700}", 403)] {
        client.headers(stream, &fields("application/json"), false);
        client.send(frame(0, 1, stream, body.as_bytes())).unwrap();
        assert!(
            matches!(client.outcome(stream), Outcome::Status(s) if s == status),
            "{body}"
        );
    }
    assert_eq!(upstream.last().body, b"{\"amount\": 7}");
    // The call's first message never comes; the policy is asked all the same.
    client.headers(5, &fields("application/grpc"), false);
    crate::support::eventually("the call to be forwarded", || {
        let record = gateway.admin("GET", "/metrics").text();
        let allowed = record
            .lines()
            .find(|line| {
                line.starts_with("portcullis_decisions_total") && line.contains("\"allow\"")
            })
            .and_then(|line| line.rsplit(' ').next()?.parse::<f64>().ok());
        allowed.filter(|allowed| *allowed >= 2.0)
    });
}

#[test]
fn a_body_is_not_hidden_from_a_policy_by_calling_it_grpc() {
    let upstream = Upstream::start();
    let gateway = Builder::open(&upstream)
        .policy("package gate\n\nallow if not big\n\nbig if input.request.body.amount > 1000\n")
        .with(|document| {
            document["policies"] = json!({"gate": {
                "files": ["gate.rego"], "entrypoint": "data.gate.allow", "body": {},
            }});
            document["routes"][0]["policy"] = json!("gate");
        })
        .start();
    let mut client = H2::connect(gateway.address());
    for (stream, kind, forwarded) in [
        (1, "application/grpc+json", 0),
        (3, "application/json", 0),
        (5, "application/grpc", 0),
    ] {
        let fields = [
            (":method", "POST"),
            (":scheme", "http"),
            (":path", "/a"),
            (":authority", "a.test"),
            ("content-type", kind),
            ("te", "trailers"),
        ];
        client.headers(stream, &fields, false);
        client
            .send(frame(0, 1, stream, b"{\"amount\": 5000}"))
            .unwrap();
        client.outcome(stream);
        assert_eq!(upstream.seen().len(), forwarded, "{kind}");
    }
}

#[test]
fn a_denied_grpc_call_gets_its_status_in_grpcs_way() {
    let upstream = Upstream::start();
    let gateway = Builder::open(&upstream)
        .policy(
            "package envoy.authz\n\nallow := {\"allowed\": false, \"http_status\": 401, \"body\": \"log in\"}\n",
        )
        .with(|document| {
            document["policies"] = json!({"gate": {
                "files": ["gate.rego"], "input": "envoy", "entrypoint": "envoy/authz/allow",
            }});
            document["routes"][0]["policy"] = json!("gate");
        })
        .start();
    let mut client = H2::connect(gateway.address());
    let fields = [
        (":method", "POST"),
        (":scheme", "http"),
        (":path", "/a"),
        (":authority", "a.test"),
        ("content-type", "application/grpc"),
        ("te", "trailers"),
    ];
    client.headers(1, &fields, true);
    assert!(matches!(client.outcome(1), Outcome::Status(200)));
    assert!(upstream.seen().is_empty());
}

#[test]
fn an_open_stream_is_judged_again_with_the_body_that_was_sent() {
    let upstream = Upstream::with(|_, stream| {
        let head = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n";
        let _ = stream.write_all(head.as_bytes());
        let _ = stream.write_all(b"9\r\ndata: 1\n\n\r\n");
        // Open for as long as the test reads.
        std::thread::park_timeout(std::time::Duration::from_secs(20));
        Next::Close
    });
    let rego = r#"package gate

default allow := false

allow := {"allow": true, "recheck_after": "1s"} if input.request.body.topic == data.topic
"#;
    let builder = Builder::open(&upstream).policy(rego);
    builder.file("data.yaml", "topic: news\n");
    let mut gateway = builder
        .with(|document| {
            document["policies"] = json!({"gate": {
                "files": ["gate.rego", "data.yaml"], "entrypoint": "data.gate.allow", "body": {},
            }});
            document["routes"][0]["policy"] = json!("gate");
        })
        .start();
    let body = "{\"topic\": \"news\"}";
    let mut connection = gateway.connect();
    connection.send(format!(
        "POST /a HTTP/1.1\r\nhost: a.test\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    ));
    let mut text = Vec::new();
    while !text.ends_with(b"data: 1\n\n") {
        text.push(byte(&mut connection).expect("the first event"));
    }
    // Asked again with the same body: still allowed.
    gateway.file_in("data.yaml", "topic: news\nother: 1\n");
    assert_eq!(gateway.reload(|_| {}).status, 200);
    gateway.file_in("data.yaml", "topic: sports\n");
    assert_eq!(gateway.reload(|_| {}).status, 200);
    let mut rest = Vec::new();
    while let Some(next) = byte(&mut connection) {
        rest.push(next);
        if rest.ends_with(b"0\r\n\r\n") {
            break;
        }
    }
    let rest = String::from_utf8_lossy(&rest).into_owned();
    assert!(rest.contains("portcullis.ended"), "{rest}");
    assert!(rest.contains("denied"), "{rest}");
}

#[test]
fn a_client_certificate_names_the_principal() {
    let authority = Authority::new("Test CA");
    let server = authority.server(&["localhost"]);
    let upstream = Upstream::start();
    let builder = Builder::open(&upstream).policy(
        "package envoy.authz\n\ndefault allow := false\n\n\
         allow if input.attributes.source.principal == \"spiffe://cluster.local/ns/a/sa/client\"\n",
    );
    let (chain, key) = server.write(builder.folder.path(), "server");
    let ca = builder.file("ca.pem", &authority.pem);
    let gateway = builder
        .with(|document| {
            document["listeners"]["local"] = json!({
                "address": "127.0.0.1:0",
                "tls": {
                    "certificates": [{"chain": chain, "key": key}],
                    "client_certificates": {"mode": "required", "authorities": [ca]},
                },
            });
            document["policies"] = json!({"gate": {
                "files": ["gate.rego"], "input": "envoy", "entrypoint": "envoy/authz/allow",
            }});
            document["routes"][0]["policy"] = json!("gate");
        })
        .start();
    for (id, status) in [
        ("spiffe://cluster.local/ns/a/sa/client", 200),
        ("spiffe://cluster.local/ns/a/sa/other", 403),
    ] {
        let leaf = authority.client("client", Some(id));
        let config = client_config(&authority, Some(&leaf), &[b"http/1.1"]);
        let mut connection = Connection::tls(gateway.address(), "localhost", &config).unwrap();
        connection.send("GET /a HTTP/1.1\r\nhost: localhost\r\n\r\n");
        assert_eq!(connection.answer().unwrap().status, status, "{id}");
    }
}

#[test]
fn the_policy_that_the_readme_shows_does_what_it_says() {
    let readme = include_str!("../../README.md");
    let part = readme.split("### Bringing OPA policies").nth(1).unwrap();
    let part = part.split("\n## ").next().unwrap();
    let rego = part
        .split("```rego\n")
        .nth(1)
        .unwrap()
        .split("```")
        .next()
        .unwrap();
    let block = part.split("```yaml\n").nth(1).unwrap();
    let block = block.split("```").next().unwrap();
    let block: Value = serde_yaml::from_str(block).unwrap();
    let world = World::with(|builder| {
        builder.file("people.rego", rego);
        builder.with(|document| {
            document["policies"]["gate"] = block["policies"]["people"].clone();
        })
    });
    let ask = |role: &str, method: &str, path: &str, body: &str| {
        let mut claims = world.issuer.claims("alice");
        claims["role"] = json!(role);
        let token = format!("Bearer {}", world.key.token(&claims));
        let length = body.len().to_string();
        let headers = [
            ("authorization", token.as_str()),
            ("content-type", "application/json"),
            ("content-length", &length),
            ("x-role", "root"),
            ("x-debug", "1"),
        ];
        let mut connection = world.gateway.connect();
        connection.send(request(method, path, &headers) + body);
        connection.answer_to(method).unwrap()
    };
    assert_eq!(
        ask("reader", "GET", "/people/7?tenant=other", "").status,
        200
    );
    let seen = world.upstream.last();
    assert_eq!(seen.path(), "/people/7?tenant=acme");
    assert_eq!(seen.header("x-role"), Some("reader"));
    assert_eq!(seen.header("x-debug"), None);
    let no = ask("reader", "POST", "/people", "{\"name\": \"bob\"}");
    assert_eq!(
        (no.status, no.text().as_str()),
        (403, "ask the people team\n")
    );
    assert_eq!(
        ask("editor", "POST", "/people", "{\"name\": \"bob\"}").status,
        200
    );
    assert_eq!(
        ask("editor", "POST", "/people", "{\"name\": \"alice\"}").status,
        403
    );
    assert_eq!(ask("nobody", "GET", "/people", "").status, 403);
}

#[test]
fn the_schema_of_each_document_is_printed() {
    for (input, member) in [("portcullis", "identity"), ("envoy", "attributes")] {
        let printed = std::process::Command::new(env!("CARGO_BIN_EXE_portcullis"))
            .args(["schema", "--input", input])
            .output()
            .unwrap();
        assert!(printed.status.success());
        let schema: Value = serde_json::from_slice(&printed.stdout).unwrap();
        assert!(schema["properties"][member].is_object(), "{input}");
        assert!(schema["examples"][0][member].is_object(), "{input}");
    }
}

/// What stands at the memory of decisions is never another request's.
#[test]
fn answers_from_memory_are_those_of_the_same_question() {
    let world = envoy(
        r#"package envoy.authz

import input.attributes.request.http as http_request

allow := {"allowed": true, "response_headers_to_add": {"x-answer": concat("|", [
	http_request.path,
	object.get(http_request.headers, "x-tenant", "-"),
	input.attributes.metadataContext.filterMetadata.portcullis.identity.subject,
])}}
"#,
    );
    for _ in 0..2 {
        for (subject, path, tenant) in [
            ("alice", "/a?x=1", "one"),
            ("alice", "/a?x=2", "one"),
            ("alice", "/a?x=1", "two"),
            ("bob", "/a?x=1", "one"),
        ] {
            let token = format!("Bearer {}", world.token(subject));
            let headers = [("authorization", token.as_str()), ("x-tenant", tenant)];
            let answer = world.gateway.get(path, &headers);
            let expected = format!("{path}|{tenant}|{subject}");
            assert_eq!(answer.header("x-answer"), Some(expected.as_str()));
        }
    }
}
