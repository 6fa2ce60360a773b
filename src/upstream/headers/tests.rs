use std::path::Path;

use super::*;
use crate::authn::Identity;
use crate::clock;
use crate::metrics::Metrics;
use crate::request::ConnInfo;
use crate::schema::Problem;
use crate::telemetry::TraceContext;
use crate::upstream::Bounds;

fn compile(yaml: &str) -> Result<Arc<IdentityHeaders>, Vec<Problem>> {
    let config: IdentityConfig = serde_yaml::from_str(yaml).unwrap();
    let mut cx = Compile::new(Path::new("gateway.yaml"), Arc::new(Metrics::default()));
    let compiled = config.compile(None, &mut cx);
    compiled.ok_or_else(|| cx.finish().0)
}

#[test]
fn configured_headers_are_owned() {
    let headers = compile("headers: { X-User-Id: subject, x-roles: roles }").unwrap();
    let mut owned = headers.owned();
    owned.sort_by(|a, b| a.as_str().cmp(b.as_str()));
    assert_eq!(owned, ["x-roles", "x-user-id"]);
    assert!(headers.rules().owns("X_USER_ID"));
}

#[test]
fn names_that_mean_something_else_are_refused() {
    for name in [
        "host",
        "Connection",
        "Content-Length",
        "cookie",
        "x-forwarded-for",
        "transfer-encoding",
        "x_user_id",
        "x user",
        "authorization",
        "traceparent",
    ] {
        let problems = compile(&format!("headers: {{ \"{name}\": subject }}")).unwrap_err();
        assert_eq!(problems.len(), 1, "{name}");
    }
}

#[test]
fn one_header_in_two_spellings_is_refused() {
    let problems = compile("headers: { x-user: subject, X-User: id }").unwrap_err();
    assert!(problems[0].message.contains("twice"), "{problems:?}");
}

#[test]
fn every_problem_is_reported() {
    let problems = compile("headers: { host: nonsense, x-a: claim }").unwrap_err();
    assert_eq!(problems.len(), 3);
    assert_eq!(problems[0].path, "headers.host");
}

fn request(fields: &[(&str, &str)]) -> InboundRequest {
    let conn = ConnInfo {
        listener: "test".into(),
        peer: "198.51.100.7:1000".parse().unwrap(),
        local: "127.0.0.1:8080".parse().unwrap(),
        tls: None,
        ambiguous_head: None,
        forwarded: Default::default(),
    };
    let mut head = http::Request::get("/").header("host", "api.example.test");
    for (name, value) in fields {
        head = head.header(*name, *value);
    }
    let (head, rules) = (head.body(()).unwrap(), Rules::default());
    let id = RequestId::random();
    let now = clock::now();
    InboundRequest::parse(&Arc::new(conn), id, head, now, &rules)
        .unwrap()
        .0
}

/// The fields as both forms have them, sorted.
fn written(headers: &IdentityHeaders, request: &InboundRequest, caller: &Caller) -> Vec<String> {
    let trace = TraceContext {
        trace_id: "4bf92f3577b34da6a3ce929d0e0e4736".parse().unwrap(),
        parent_id: None,
        span_id: "00f067aa0ba902b7".parse().unwrap(),
        sampled: true,
        state: Some("a=b".into()),
    };
    let decided_by = DecidedBy::new("test", "r");
    let forwarding = Forwarding {
        identity: headers,
        route: &"test".into(),
        bounds: &Bounds::default(),
        head_timeout: std::time::Duration::from_secs(1),
        trace: &trace,
        decision_id: "d",
    };
    let fields = headers.fields(&About {
        upstream: "test",
        request,
        caller,
        policy: None,
        edits: None,
        decided_by: &decided_by,
        forwarding: &forwarding,
        forward_authorization: false,
    });
    let line = |(name, value): (&HeaderName, &HeaderValue)| {
        format!("{name}: {}\r\n", value.to_str().unwrap())
    };
    let mut map: Vec<String> = fields.to_map().iter().map(line).collect();
    let mut lines: Vec<String> = fields.single().map(line).collect();
    let whole = String::from_utf8(fields.lines().concat()).unwrap();
    lines.extend(whole.split_inclusive("\r\n").map(str::to_owned));
    map.sort();
    lines.sort();
    assert_eq!(map, lines);
    lines
}

fn alice() -> Caller {
    let claims = Value::from_json_str(r#"{"email": "a@example.test"}"#).unwrap();
    let until = clock::now() + std::time::Duration::from_secs(60);
    Caller::Known(Identity::for_tests("alice", claims, until))
}

#[test]
fn both_protocols_get_the_same_fields() {
    let headers = compile("headers: { x-user: subject, x-gateway: 'text:portcullis' }").unwrap();
    let request = request(&[("accept", "a"), ("accept", "b"), ("traceparent", "theirs")]);
    for caller in [alice(), Caller::Anonymous] {
        let first = written(&headers, &request, &caller);
        assert_eq!(written(&headers, &request, &caller), first, "from memory");
        let has = |line: &str| first.iter().any(|l| l.strip_suffix("\r\n") == Some(line));
        assert!(has(
            "traceparent: 00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
        ));
        assert!(has("tracestate: a=b") && has("x-forwarded-for: 198.51.100.7"));
        assert!(has("accept: a") && has("accept: b") && has("x-gateway: portcullis"));
        assert_eq!(has("x-user: alice"), caller.identity().is_some());
    }
}

#[test]
fn what_is_remembered_of_an_identity_is_the_configurations_that_wrote_it() {
    let caller = alice();
    let request = request(&[]);
    let said = |headers: &IdentityHeaders| {
        let lines = written(headers, &request, &caller);
        let ours = lines.into_iter().filter(|line| line.starts_with("x-user"));
        ours.collect::<String>()
    };
    let before = compile("headers: { x-user: subject }").unwrap();
    let after = compile("headers: { x-user-mail: 'claim:email' }").unwrap();
    for _ in 0..2 {
        assert_eq!(said(&before), "x-user: alice\r\n");
        assert_eq!(said(&after), "x-user-mail: a@example.test\r\n");
        assert_eq!(said(&IdentityHeaders::default()), "");
    }
}
