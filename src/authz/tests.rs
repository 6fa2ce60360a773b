//! Policies from file to decision.

use std::fs;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use http::Request;
use proptest::prelude::*;

use super::source::graph;
use super::*;
use crate::document::object;
use crate::metrics::Metrics;
use crate::request::{ConnInfo, RequestId, Rules as ReadingRules};
use crate::schema::{Compile, Problem, Severity, Span};

struct Loaded {
    policy: Option<Arc<Policy>>,
    problems: Vec<Problem>,
}

impl Loaded {
    fn policy(&self) -> &Arc<Policy> {
        self.policy
            .as_ref()
            .unwrap_or_else(|| panic!("{}", self.text()))
    }

    fn text(&self) -> String {
        let lines: Vec<String> = self.problems.iter().map(ToString::to_string).collect();
        lines.join("\n")
    }

    /// The message of the only error; the policy must not have loaded.
    #[track_caller]
    fn refused(&self) -> &Problem {
        assert!(self.policy.is_none(), "it loaded: {}", self.text());
        self.problems
            .iter()
            .find(|p| p.severity == Severity::Error)
            .unwrap_or_else(|| panic!("no error: {}", self.text()))
    }
}

fn compile(
    folder: &std::path::Path,
    config: PolicyConfig,
    previous: Option<&Arc<Policy>>,
) -> Loaded {
    let mut cx = Compile::new(&folder.join("gateway.yaml"), Arc::default());
    let policy = config.compile("orders", previous, &mut cx);
    Loaded {
        policy,
        problems: cx.finish().0,
    }
}

fn config() -> PolicyConfig {
    PolicyConfig {
        bundles: Vec::new(),
        files: vec!["policies".into()],
        entrypoint: "data.p.allow".to_owned(),
        input: InputDocument::default(),
        body: None,
        builtin_errors: None,
        budget: BudgetConfig {
            time: Span::millis(1000),
            ..BudgetConfig::default()
        },
        decision_cache: DecisionCacheConfig::default(),
        hidden_headers: Vec::new(),
    }
}

fn folder(files: &[(&str, &str)]) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for (name, text) in files {
        let path = folder.path().join("policies").join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }
    folder
}

fn load_files(files: &[(&str, &str)]) -> Loaded {
    let folder = folder(files);
    compile(folder.path(), config(), None)
}

/// Loads one module of package `p`.
fn load(rules: &str) -> Loaded {
    load_files(&[("p.rego", &format!("package p\n{rules}\n"))])
}

fn request(uri: &str) -> InboundRequest {
    let conn = Arc::new(ConnInfo {
        listener: "public".into(),
        peer: "192.0.2.7:40000".parse().unwrap(),
        local: "192.0.2.1:443".parse().unwrap(),
        tls: None,
        ambiguous_head: None,
        forwarded: Default::default(),
    });
    let request = Request::builder()
        .uri(uri)
        .header("host", "api.example.test")
        .header("x-number", "7")
        .body(())
        .unwrap();
    let at = SystemTime::UNIX_EPOCH + Duration::from_secs(1_768_473_000);
    InboundRequest::parse(
        &conn,
        RequestId::random(),
        request,
        at,
        &ReadingRules::default(),
    )
    .unwrap()
    .0
}

fn decide_on(policy: &Policy, machines: &Machines, uri: &str) -> Decision {
    let route = RouteFacts {
        name: &"read-order".into(),
        params: &[],
        labels: &object([("team", Value::from("orders"))]),
    };
    policy.decide(machines, &request(uri), &route, Caller::Anonymous)
}

fn decide(policy: &Policy) -> Decision {
    decide_on(policy, &Machines::default(), "/orders/42")
}

#[track_caller]
fn denied(decision: Decision) -> Denial {
    match decision {
        Decision::Deny(denial) => denial,
        Decision::Allow(_) => panic!("it was allowed"),
    }
}

fn allowed(decision: &Decision) -> bool {
    matches!(decision, Decision::Allow(_))
}

// ---- what decisions look like

#[test]
fn an_open_route_is_allowed_by_the_policy_called_public() {
    let policy = Policy::public();
    let Decision::Allow(permit) = decide(&policy) else {
        panic!("denied")
    };
    assert_eq!(permit.decided_by.policy.as_ref(), "public");
    assert_eq!(policy.engine(), "none");
}

#[test]
fn a_policy_decides_by_its_data_and_the_request_on_the_bytecode_machine() {
    let loaded = load_files(&[
        (
            "orders.rego",
            "package p\nimport data.access\ndefault allow := false\nallow if input.request.segments[0] in access.open\nallow if {\n  input.route.labels.team == \"orders\"\n  input.request.query.yes\n}",
        ),
        ("access/data.yaml", "open: [health]\n"),
    ]);
    let policy = loaded.policy();
    assert_eq!((policy.engine(), loaded.text().as_str()), ("rvm", ""));
    assert_eq!(policy.files().len(), 2);
    assert_eq!(policy.revision().len(), 16);
    let machines = Machines::default();
    assert!(allowed(&decide_on(policy, &machines, "/health")));
    assert!(!allowed(&decide_on(policy, &machines, "/orders")));
    assert!(allowed(&decide_on(policy, &machines, "/orders?yes=1")));
    assert_eq!(machines.ready(), 1);
}

#[test]
fn credentials_that_an_answer_hands_on_are_not_what_the_record_gets_of_it() {
    let loaded = load(
        "default allow := {\"allow\": true, \"headers\": {\"x-upstream-token\": \"Bearer S3CRET\", \"x-team\": \"a\"}}",
    );
    let machines = Machines::default();
    for _ in 0..2 {
        let Decision::Allow(permit) = decide_on(loaded.policy(), &machines, "/orders/42") else {
            panic!("it was denied");
        };
        assert!(
            permit
                .advice
                .headers
                .iter()
                .any(|(_, value)| value == "Bearer S3CRET")
        );
        let Some(Gave::Text { text, masked }) = permit.ruling.answer else {
            panic!("it gave nothing");
        };
        assert_eq!(
            &*text,
            r#"{"allow":true,"headers":{"x-team":"a","x-upstream-token":"***"}}"#
        );
        assert_eq!(
            masked.as_deref(),
            Some(r#""/answer/headers/x-upstream-token""#)
        );
    }
}

#[test]
fn each_kind_of_no_has_its_own_reason() {
    let reason = |rules: &str| denied(decide(load(rules).policy())).reason;
    assert_eq!(
        reason("allow := {\"allow\": false, \"reason\": \"orders.closed\"}"),
        Reason::Policy("orders.closed".to_owned())
    );
    assert_eq!(
        reason("allow := false"),
        Reason::Policy("policy.denied".to_owned())
    );
    assert_eq!(
        reason("allow if input.request.method == \"PUT\""),
        Reason::Undefined
    );
    assert_eq!(reason("allow := \"yes\""), Reason::Answer);
    assert_eq!(
        reason("allow := {\"allow\": true, \"alow\": 1}"),
        Reason::Answer
    );
    assert_eq!(
        reason("allow := 1 / (input.source.port - 40000)"),
        Reason::Error
    );
    assert_eq!(
        reason("default allow := true\nallow := upper(input.source.port)"),
        Reason::Error
    );
}

#[test]
fn a_denials_face_is_the_policys() {
    let loaded = load(
        "allow := {\"allow\": false, \"status\": 404, \"message\": \"No such order.\", \"headers\": {\"x-why\": \"owner\"}, \"step_up\": {\"acr_values\": [\"mfa\"]}}",
    );
    let denial = denied(decide(loaded.policy()));
    assert_eq!(denial.status, Some(StatusCode::NOT_FOUND));
    assert_eq!(denial.message.as_deref(), Some("No such order."));
    assert_eq!(denial.headers.len(), 1);
    assert_eq!(denial.step_up.unwrap().acr_values, ["mfa"]);
}

#[test]
fn more_parameters_than_a_policy_can_judge_are_denied() {
    let loaded = load("allow := true");
    let uri = format!("/?{}", "a&".repeat(300));
    let denial = denied(decide_on(loaded.policy(), &Machines::default(), &uri));
    assert_eq!(denial.reason, Reason::Error);
    assert!(denial.detail.unwrap().contains("parameters"));
}

/// The policy that the benches call ordinary.
#[test]
fn the_ordinary_policy_of_the_benches_decides_and_is_remembered_while_it_reads_the_time() {
    let folder = tempfile::tempdir().unwrap();
    let benches = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("benches/policies");
    let loaded = compile(
        folder.path(),
        PolicyConfig {
            files: vec![benches.join("sixty.rego"), benches.join("sixty.data.yaml")],
            entrypoint: "data.sixty.allow".to_owned(),
            ..config()
        },
        None,
    );
    let policy = loaded.policy();
    let text = loaded.text();
    assert!(!text.contains("evaluated anew"), "{text}");
    let caller = |scope: &str| {
        let claims = format!(
            r#"{{"scope": "{scope}", "roles": ["analyst"],
                "groups": ["on-call"], "tenant": "acme", "device": {{"managed": true,
                "disk_encrypted": true, "posture_score": 90, "os": "macos-26"}}}}"#
        );
        let claims = Value::from_json_str(&claims).unwrap();
        let until = SystemTime::UNIX_EPOCH + Duration::from_secs(1_768_476_600);
        Caller::Known(crate::authn::Identity::for_tests("alice", claims, until))
    };
    let route = RouteFacts {
        name: &"orders".into(),
        params: &[],
        labels: &Value::new_object(),
    };
    let machines = Machines::default();
    let decide = |uri: &str, scope: &str| {
        let request = InboundRequest {
            client: "10.1.2.3".parse().unwrap(),
            ..request(uri)
        };
        allowed(&policy.decide(&machines, &request, &route, caller(scope)))
    };
    assert!(decide("/orders/tenants", "orders:read"));
    assert!(!decide("/orders/tenants", "orders:write"));
    assert!(!decide("/orders/others", "orders:read"));
    assert!(!decide("/admins/tenants", "admins:read"));
}

#[test]
fn the_memory_of_decisions_is_switched_off_with_false_and_bounded_with_a_block() {
    let read = |cache: &str| {
        let text = format!(r#"{{"files": ["p.rego"], "entrypoint": "data.p.allow"{cache}}}"#);
        serde_json::from_str::<PolicyConfig>(&text).map(|config| config.decision_cache)
    };
    let usual = DecisionCacheConfig::default();
    assert_eq!(read("").unwrap(), usual);
    assert_eq!(read(r#", "decision_cache": true"#).unwrap(), usual);
    assert_eq!(read(r#", "decision_cache": false"#).unwrap().max_entries, 0);
    let few =
        read(r#", "decision_cache": {"max_entries": 7, "max_bytes": "1MiB", "lifetime": "5s"}"#)
            .unwrap();
    assert_eq!((few.max_entries, few.lifetime), (7, Span::seconds(5)));
    for wrong in ["5", r#"{"entries": 5}"#, r#""off""#] {
        assert!(
            read(&format!(r#", "decision_cache": {wrong}"#)).is_err(),
            "{wrong}"
        );
    }

    let folder = folder(&[("p.rego", "package p\nallow if input.request.id")]);
    let load = |cache: DecisionCacheConfig| {
        let config = PolicyConfig {
            decision_cache: cache,
            ..config()
        };
        compile(folder.path(), config, None)
    };
    let told = load(usual.clone());
    assert!(
        told.policy.is_some() && told.text().contains("p.rego:2:10"),
        "{}",
        told.text()
    );
    assert!(told.text().contains("evaluated anew"), "{}", told.text());
    assert_eq!(
        load(read(r#", "decision_cache": false"#).unwrap()).text(),
        ""
    );
    for (wrong, what) in [
        (r#""lifetime": "2h""#, "the time that decisions are kept"),
        (r#""max_bytes": "1KiB""#, "the memory for decisions"),
        (r#""max_entries": 10000001"#, "the number of decisions"),
    ] {
        let cache = read(&format!(r#", "decision_cache": {{{wrong}}}"#)).unwrap();
        assert!(load(cache).refused().message.contains(what), "{wrong}");
    }
}

// ---- budgets, errors and panics

const BIG_LOOP: &str = "allow if {\n  some a in [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]\n  some b in [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]\n  some c in [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]\n  some d in [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]\n  some e in [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]\n  some f in [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]\n  some g in [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]\n  [a, b, c, d, e, f, g] == input.nothing\n}";

#[test]
fn a_loop_that_is_too_long_is_denied_as_budget_on_both_engines() {
    let loaded = load(BIG_LOOP);
    assert!(
        loaded.text().contains("used up the budget"),
        "{}",
        loaded.text()
    );
    let policy = loaded.policy();
    assert_eq!(policy.engine(), "rvm");
    let machines = Machines::default();
    assert_eq!(
        denied(decide_on(policy, &machines, "/")).reason,
        Reason::Budget
    );
    // The machine was thrown away, and the next request is judged all the same.
    assert_eq!(machines.ready(), 0);
    assert_eq!(
        denied(decide_on(policy, &machines, "/")).reason,
        Reason::Budget
    );

    let slow = load(&format!(
        "{BIG_LOOP}\nother if input.request with input.a as 1\nallow if {{ false; other }}"
    ));
    assert_eq!(slow.policy().engine(), "interpreter");
    assert_eq!(denied(decide(slow.policy())).reason, Reason::Budget);
}

#[test]
fn a_panic_of_the_engine_is_a_denial_and_the_machine_is_thrown_away() {
    // No builtin that panics is left to policies; this is what happens should one be found.
    let text = "package p\nallow if odd.one(input.request.query.part[0])";
    let mut engine = regorus::Engine::new();
    engine
        .add_policy("p.rego".to_owned(), text.to_owned())
        .unwrap();
    let odd = |args: Vec<Value>| match args.as_slice() {
        [Value::String(part)] if part.is_empty() => panic!("odd"),
        _ => Ok(Value::from(true)),
    };
    engine
        .add_extension("odd.one".to_owned(), 1, Box::new(odd))
        .unwrap();
    let limits = rego::Limits {
        time: Duration::from_secs(1),
        instructions: 100_000,
        memory: std::num::NonZeroU64::MAX,
    };
    let program = Program::interpreted(engine, "data.p.allow", limits).unwrap();
    let policy = Policy {
        decided_by: DecidedBy::new("p", ""),
        recipe: None,
        rules: Rules::Rego(Arc::new(Compiled {
            program: Arc::new(program),
            digest: String::new(),
            text: String::new(),
            impure: false,
            files: Vec::new(),
            modules: Arc::default(),
            entrypoint: "data.p.allow".to_owned(),
            errors: BuiltinErrors::Deny,
            hidden_headers: Vec::new(),
            reads: Vec::new(),
            sees: Sees::Portcullis(input::Wanted::all()),
            body: None,
            remembered: None,
            warnings: Vec::new(),
            metrics: Metrics::default().policy("p"),
        })),
    };
    let machines = Machines::default();
    assert!(allowed(&decide_on(&policy, &machines, "/a?part=a")));
    let denial = denied(decide_on(&policy, &machines, "/a?part="));
    assert_eq!(denial.reason, Reason::Panic);
    assert_eq!(machines.ready(), 0);
    assert!(allowed(&decide_on(&policy, &machines, "/a?part=a")));
}

#[test]
fn conflicting_rules_deny_as_an_error_instead_of_vanishing() {
    // The bytecode machine calls a conflict undefined: `not blocked` would then be true.
    let loaded = load(
        "blocked := 1 if input.request.method == \"GET\"\nblocked := 2 if input.request.scheme == \"http\"\nallow if not blocked == 3",
    );
    let policy = loaded.policy();
    assert_eq!(policy.engine(), "interpreter", "{}", loaded.text());
    assert_eq!(denied(decide(policy)).reason, Reason::Error);
}

// ---- what falls back to the interpreter

#[test]
fn what_the_bytecode_machine_cannot_do_runs_on_the_interpreter_with_a_warning() {
    for (rules, yes) in [
        (
            "ok if input.request.method == \"GET\"\nallow if ok with input.request.method as \"GET\"",
            true,
        ),
        (
            "allow if count([p | walk(input.route, [p, v]); v == \"orders\"]) == 1",
            true,
        ),
        (
            "a.b := 1 if input.request.path\na.c := 2\nallow if data.p.a == {\"b\": 1, \"c\": 2}",
            true,
        ),
        (
            "a.b.c := 1 if input.request.path\nallow if data.p.a == {\"b\": {\"c\": 1}}",
            true,
        ),
    ] {
        let loaded = load(rules);
        let policy = loaded.policy();
        assert_eq!(policy.engine(), "interpreter", "{rules}");
        assert!(
            loaded.text().contains("about five times"),
            "{}",
            loaded.text()
        );
        assert_eq!(allowed(&decide(policy)), yes, "{rules}");
    }
}

// ---- what is refused at load

#[test]
fn recursion_is_refused_with_its_place() {
    for (rules, line) in [
        ("allow if allow", 2),
        ("a if b\nb if a\nallow if a", 3),
        ("f(x) := f(x)\nallow if f(1)", 2),
        (
            "f(x) := 1 if x == 0\nf(x) := f(x - 1) if x > 0\nallow := f(3) == 1",
            3,
        ),
        ("f(x) := g(x)\ng(x) := f(x)\nallow if f(1)", 3),
        ("allow if data.p.allow", 2),
        ("allow if data.p[\"allow\"]", 2),
        ("allow if data[\"p\"].allow", 2),
        ("allow if some x in data.p", 2),
        ("allow if count(data) > 0", 2),
        ("allow if { some k; data.p[k] }", 2),
        ("allow if count([x | x := allow]) > 0", 2),
        ("allow if every x in [1] { allow; x }", 2),
        (
            "a contains x if { some x in b }\nb contains x if { some x in a }\nallow if a[1]",
            3,
        ),
        ("o[k] := v if { some k, v in o }\nallow if o.x", 2),
        ("allow := {\"allow\": allow}", 2),
        ("default allow := false\nallow if not allow", 3),
        ("f(x) := x\ng(x) := f(x)\nallow if f(1) with f as g", 3),
        ("allow if { allow == true; allow := true }", 2),
        ("unused if unused\nallow := true", 2),
    ] {
        let loaded = load(rules);
        let problem = loaded.refused();
        assert!(
            problem.message.starts_with("recursion"),
            "{rules}: {}",
            loaded.text()
        );
        assert_eq!(problem.line, Some(line), "{rules}: {}", loaded.text());
        assert!(problem.help.is_some());
    }
    let loaded = load_files(&[
        (
            "a.rego",
            "package p\nimport data.q as other\nallow if other.x",
        ),
        ("b.rego", "package q\nx if data.p.allow"),
    ]);
    assert!(loaded.refused().message.starts_with("recursion"));
}

#[test]
fn names_that_only_look_recursive_pass() {
    for rules in [
        "user := f(input)\nf(user) := user.request.method\nallow if user == \"GET\"",
        "x := 1\nallow if { x := 2; x == 2 }",
        "n := count([k | some k in [1]])\nallow if n == 1",
        "v := every_one if { every v in [1] { v == 1 } ; every_one := true }\nallow if v",
    ] {
        let loaded = load(rules);
        assert!(
            allowed(&decide(loaded.policy())),
            "{rules}: {}",
            loaded.text()
        );
    }
}

#[test]
fn a_chain_of_calls_that_a_stack_might_not_bear_is_refused() {
    let chain = |length: usize| {
        let rules: Vec<String> = (0..length).map(|i| format!("r{i} if r{}", i + 1)).collect();
        format!(
            "{}\nr{length} if input.request\nallow if r0",
            rules.join("\n")
        )
    };
    assert!(
        load(&chain(2_000))
            .refused()
            .message
            .contains("calls too deep")
    );
    let deepest = chain(graph::MAX_CALL_WEIGHT - 2);
    let loaded = load(&deepest);
    let policy = Arc::clone(loaded.policy());
    assert!(load(&chain(graph::MAX_CALL_WEIGHT - 1)).policy.is_none());
    // On a thread with the stack that workers have, in a build without optimisation.
    let slow = load(&format!("{deepest}\nallow if r1 with input.x as 1"));
    let slow = Arc::clone(slow.policy());
    assert_eq!(slow.engine(), "interpreter");
    let worker = std::thread::Builder::new().stack_size(2 * 1024 * 1024);
    let answers = worker
        .spawn(move || (allowed(&decide(&policy)), allowed(&decide(&slow))))
        .unwrap()
        .join()
        .unwrap();
    assert_eq!(answers, (true, true));
}

#[test]
fn loops_one_inside_the_other_fit_the_stack_of_a_worker() {
    let loops: Vec<String> = (0..graph::MAX_CALL_WEIGHT - 2)
        .map(|i| format!("some x{i} in [1]"))
        .collect();
    let loaded = load(
        &format!(
            "ok if input.request\nallow if {{ ok with input.x as 1; {} }}",
            loops.join("; ")
        )
        .replace("; some", "\n some"),
    );
    let policy = Arc::clone(loaded.policy());
    let worker = std::thread::Builder::new().stack_size(2 * 1024 * 1024);
    assert!(
        worker
            .spawn(move || allowed(&decide(&policy)))
            .unwrap()
            .join()
            .unwrap()
    );
}

#[test]
fn what_reaches_outside_or_has_no_bound_is_refused_by_name_with_what_to_write_instead() {
    for call in [
        "graph.reachable_paths({}, [])",
        "http.send({})",
        "net.lookup_ip_addr(\"localhost\")",
        "rego.parse_module(\"a\", \"b\")",
        "json.match_schema({}, {})",
        "graphql.parse(\"a\", \"b\")",
        "crypto.x509.parse_certificates(\"a\")",
        "providers.aws.sign_req({}, {}, 1)",
    ] {
        let loaded = load(&format!("allow if {{\n  {call}\n}}"));
        let problem = loaded.refused();
        let name = call.split('(').next().unwrap();
        assert!(problem.message.contains(name), "{call}: {}", loaded.text());
        assert_eq!(problem.line, Some(3), "{call}: {}", loaded.text());
        assert!(problem.help.is_some(), "{call}");
    }
    let mocked = load("f(x) := x\nallow if f(1) with f as numbers.range");
    assert!(
        mocked.refused().message.contains("`with`"),
        "{}",
        mocked.text()
    );
}

#[test]
fn work_beyond_a_bound_is_a_denial_of_its_own_whatever_the_rules_make_of_it() {
    for call in [
        "numbers.range(1, 50000000)",
        "net.cidr_expand(\"10.0.0.0/8\")",
        "sprintf(\"%999999999d\", [1])",
        "bits.lsh(1, 4000000000)",
        "numbers.range_step(1, 100000, 2)",
    ] {
        for rules in [
            format!("allow if not bad\nbad if {call}"),
            format!("default allow := true\nallow := false if {call}"),
            format!("allow if count([1 | {call}]) == 0"),
        ] {
            let loaded = load(&rules);
            let denial = denied(decide(loaded.policy()));
            assert_eq!(
                denial.reason,
                Reason::Budget,
                "{rules}: {:?}",
                denial.detail
            );
        }
    }
}

#[test]
fn errors_of_builtins_deny_unless_the_policy_asks_for_opas_habit() {
    let rules = "package p\nallow if not bad\nbad if to_number(input.request.path) > 1";
    let folder = tempfile::tempdir().unwrap();
    fs::create_dir(folder.path().join("policies")).unwrap();
    fs::write(folder.path().join("policies/p.rego"), rules).unwrap();
    for (errors, allowed) in [
        (None, false),
        (Some(BuiltinErrors::Deny), false),
        (Some(BuiltinErrors::Undefined), true),
    ] {
        let mut cx = Compile::new(
            &folder.path().join("gateway.yaml"),
            Arc::new(Metrics::default()),
        );
        let config = PolicyConfig {
            builtin_errors: errors,
            ..config()
        };
        let policy = config.compile("p", None, &mut cx).unwrap();
        match decide(&policy) {
            Decision::Allow(_) => assert!(allowed, "{errors:?}"),
            Decision::Deny(denial) => {
                assert!(!allowed, "{errors:?}: {denial:?}");
                assert_eq!(denial.reason, Reason::Error);
            }
        }
    }
}

#[test]
fn the_same_builtins_pass_when_the_source_bounds_them() {
    for call in [
        "6 in numbers.range(1, 10)",
        "count(net.cidr_expand(\"192.0.2.0/28\")) == 16",
        "sprintf(\"%05d %s %v\", [1, \"a\", input.route.name]) != \"\"",
        "strings.count(\"aa\", \"a\") == 2",
        "replace(input.request.path, \"/\", \".\") == \".orders.42\"",
        "concat(\"/\", input.request.segments) == \"orders/42\"",
        "regex.match(`^/orders/[0-9]+$`, input.request.path)",
        "glob.match(\"/orders/*\", [\"/\"], input.request.path)",
        "bits.lsh(1, 4) == 16",
        "time.clock(input.request.received_at_ns)[0] == 10",
        "net.cidr_contains(\"192.0.2.0/24\", input.source.address)",
        "json.unmarshal(input.request.headers[\"x-number\"]) == 7",
    ] {
        let loaded = load(&format!("allow if {call}"));
        assert!(
            allowed(&decide(loaded.policy())),
            "{call}: {}",
            loaded.text()
        );
    }
}

#[test]
fn mistakes_are_load_problems_with_file_line_and_column() {
    for (rules, line, message) in [
        ("allow { input.x }", 2, ""),
        (
            "\nallow if nosuch(input.x)",
            3,
            "there is no function `nosuch`",
        ),
        (
            "allow if io.jwt.nosuch(\"x\")",
            2,
            "there is no function `io.jwt.nosuch`",
        ),
        ("allow if {\n  x == 1\n}", 3, ""),
        ("allow if input.x ==", 3, ""),
        // The bytecode machine would ignore the third argument, and allow.
        ("f(x) := x\nallow if f(1, 2, 3)", 3, "takes 1 argument"),
        ("x := 1e999999999\nallow if x", 2, "number"),
        ("f(x) := x\nallow if f()", 3, "takes 1 argument"),
        ("allow if upper(\"a\", \"b\", \"c\")", 2, "takes 1 argument"),
        ("allow if startswith(\"a\")", 2, "takes 2 argument"),
        ("r := 1\nallow if r(1)", 3, "is no function"),
        (
            "f(x) := x\nf(x, y) := y\nallow if f(1)",
            3,
            "another number of arguments",
        ),
    ] {
        let loaded = load(rules);
        let problem = loaded.refused();
        assert!(
            problem.file.ends_with("p.rego"),
            "{rules}: {}",
            loaded.text()
        );
        assert_eq!(problem.line, Some(line), "{rules}: {}", loaded.text());
        assert!(problem.column.is_some());
        assert!(
            problem.message.contains(message),
            "{rules}: {}",
            loaded.text()
        );
    }
    let all = load_files(&[
        ("a.rego", "package a\nx {"),
        ("b.rego", "pakcage b"),
        ("p.rego", "package p\nallow := true"),
    ]);
    assert_eq!(all.problems.len(), 2, "{}", all.text());
}

#[test]
fn an_unknown_entry_point_names_the_nearest_rule() {
    let loaded = load("alow := true");
    let problem = loaded.refused();
    assert_eq!(problem.message, "there is no rule `data.p.allow`");
    assert_eq!(problem.help.as_deref(), Some("did you mean `data.p.alow`?"));
    for entrypoint in [
        "allow",
        "data.p",
        "data.p.f",
        "data..allow",
        "data.p.allow.x",
        "data.p[\"allow\"]",
    ] {
        let folder = folder(&[("p.rego", "package p\nallow := true\nf(x) := x")]);
        let config = PolicyConfig {
            entrypoint: entrypoint.to_owned(),
            ..config()
        };
        assert!(
            compile(folder.path(), config, None).policy.is_none(),
            "{entrypoint}"
        );
    }
}

#[test]
fn rules_and_data_at_the_same_path_are_refused() {
    let loaded = load_files(&[
        ("p.rego", "package p\nallow := true"),
        ("p/data.json", r#"{"allow": false}"#),
    ]);
    assert!(loaded.policy.is_none(), "{}", loaded.text());
}

#[test]
fn a_budget_out_of_range_and_an_odd_header_are_problems() {
    let folder = folder(&[("p.rego", "package p\nallow := true")]);
    let config = PolicyConfig {
        budget: BudgetConfig {
            time: Span::seconds(5),
            instructions: 1,
            memory: crate::schema::Size::kib(1),
        },
        hidden_headers: vec!["a b".to_owned()],
        ..config()
    };
    let loaded = compile(folder.path(), config, None);
    let paths: Vec<&str> = loaded.problems.iter().map(|p| p.path.as_str()).collect();
    assert_eq!(
        paths,
        [
            "budget.time",
            "budget.instructions",
            "budget.memory",
            "hidden_headers[0]"
        ]
    );
}

// ---- builtins that the engine does not do as OPA

/// Each is what OPA 1.20 answers.
#[test]
fn patterns_formats_globs_and_patches_are_those_of_opa() {
    for (rules, yes) in [
        // RE2's classes are of ASCII.
        ("allow if regex.match(`^\\d+$`, \"12\")", true),
        ("allow if regex.match(`^\\d+$`, \"\u{663}\")", false),
        ("allow if regex.match(`^[\\w.]+$`, \"\u{ff41}dmin\")", false),
        ("allow if regex.match(`^[\\w.-]+$`, \"ad-min.x\")", true),
        ("allow if regex.match(`^\\S+$`, \"a\u{a0}b\")", true),
        ("allow if regex.match(`^[a&&b]+$`, \"a&b\")", true),
        ("allow if regex.match(`\\bx\\b`, \"a x b\")", true),
        ("allow if regex.match(`^[[:alpha:]]+$`, \"ab\")", true),
        ("allow if regex.match(`^(?i)(?P<n>ab)$`, \"AB\")", true),
        (
            "allow if regex.replace(\"a1b\", `\\d`, \"-\") == \"a-b\"",
            true,
        ),
        // gobwas: `**` anywhere, `*` and `?` up to a delimiter, `!` turns a class round.
        ("allow if glob.match(\"/a**\", [\"/\"], \"/a/b\")", true),
        ("allow if glob.match(\"/a*\", [\"/\"], \"/a/b\")", false),
        ("allow if glob.match(\"/[^a]*\", [\"/\"], \"/b\")", false),
        ("allow if glob.match(\"/[!a]*\", [\"/\"], \"/b\")", true),
        ("allow if glob.match(\"**/b\", [\"/\"], \"b\")", false),
        ("allow if glob.match(\"{,a}b\", [], \"b\")", true),
        ("allow if glob.match(\"a?\", [], \"a\u{e9}\")", true),
        ("allow if glob.match(\"*.com\", [], \"a.b.com\")", false),
        ("allow if glob.match(\"*.com\", null, \"a.b.com\")", true),
        (
            "allow if sprintf(\"%v-%d-%s\", [[1], 2, \"x\"]) == \"[1]-2-x\"",
            true,
        ),
    ] {
        let loaded = load(rules);
        let allowed = allowed(&decide(loaded.policy()));
        assert_eq!(allowed, yes, "{rules}: {}", loaded.text());
    }
    // What would be left out of a text, or make no sense, is an error and denies.
    for call in [
        "sprintf(\"%d\", [\"7\"])",
        "sprintf(\"%5d\", [7])",
        "sprintf(\"%t\", [true])",
        "json.patch({\"a\": 1}, [{\"op\": \"remove\", \"path\": \"/zz\"}])",
        "regex.match(`(?x) a`, \"a\")",
        "glob.match(\"[a\", [], \"a\")",
    ] {
        let loaded = load(&format!("allow if not bad\nbad if {call} == 1"));
        let denial = denied(decide(loaded.policy()));
        assert_eq!(denial.reason, Reason::Error, "{call}: {:?}", denial.detail);
    }
    // Nine copies into one another would be deeper than any stack.
    let deep = "/a".repeat(100);
    let call = format!(
        "json.patch({{\"a\": {{}}}}, [{{\"op\": \"copy\", \"from\": \"/a\", \"path\": \"{deep}\"}}])"
    );
    let loaded = load(&format!("allow if not bad\nbad if {call} == 1"));
    assert_eq!(denied(decide(loaded.policy())).reason, Reason::Budget);
}

// ---- answers that depend on the time

#[test]
fn a_deadline_bound_by_a_variable_ends_a_kept_answer() {
    // One second after the request's time.
    let deadline = "1768473001000000000";
    for rules in [
        "allow if { deadlines[t]; input.request.received_at_ns < t }",
        "allow if { walk(deadlines, [_, t]); is_number(t); input.request.received_at_ns < t }",
        "allow if { some t in deadlines; input.request.received_at_ns < t }",
        "allow if { every t in deadlines { input.request.received_at_ns < t } }",
    ] {
        let loaded = load(&format!(
            "deadlines contains {deadline} if input.request.path\n{rules}"
        ));
        let (policy, machines) = (loaded.policy(), Machines::default());
        let route = RouteFacts {
            name: &"read-order".into(),
            params: &[],
            labels: &object([("team", Value::from("orders"))]),
        };
        let mut request = request("/orders/42");
        let mut ask = |later: u64| {
            request.received_at += Duration::from_secs(later);
            allowed(&policy.decide(&machines, &request, &route, Caller::Anonymous))
        };
        assert_eq!((ask(0), ask(0)), (true, true), "{rules}: {}", loaded.text());
        assert!(!ask(2), "{rules}");
    }
}

// ---- the policy's own tests

#[test]
fn a_failing_test_of_the_policy_keeps_it_from_going_live() {
    let module = (
        "p.rego",
        "package p\ndefault allow := false\nallow if input.identity.subject == \"alice\"",
    );
    let good = "package p_test\nimport data.p\nbase := {\"identity\": {\"subject\": \"alice\"}}\ntest_alice if p.allow with input as base\ntest_bob if not p.allow with input as {\"identity\": {\"subject\": \"bob\"}}\ntodo_test_later if false";
    let loaded = load_files(&[module, ("p_test.rego", good)]);
    assert_eq!(
        (loaded.policy().engine(), loaded.text().as_str()),
        ("rvm", "")
    );

    let bad = format!(
        "{good}\ntest_wrong if p.allow with input as {{\"identity\": null}}\ntest_false := false\ntest_error if 1 / count([]) > 0"
    );
    let loaded = load_files(&[module, ("p_test.rego", &bad)]);
    assert!(loaded.policy.is_none());
    let text = loaded.text();
    assert_eq!(loaded.problems.len(), 3, "{text}");
    assert!(
        text.contains("p_test.rego:7:")
            && text.contains("the test data.p_test.test_wrong is not true"),
        "{text}"
    );
    assert!(
        text.contains("data.p_test.test_false is not true"),
        "{text}"
    );
    assert!(
        text.contains("data.p_test.test_error cannot be evaluated"),
        "{text}"
    );
}

#[test]
fn rules_of_test_files_never_decide() {
    let loaded = load_files(&[
        ("p_test.rego", "package p\nallow := true"),
        ("p.rego", "package p\nx := 1"),
    ]);
    assert!(
        loaded.refused().message.contains("there is no rule"),
        "{}",
        loaded.text()
    );
}

// ---- reload

#[test]
fn an_unchanged_policy_is_taken_over_and_tells_its_warnings_again() {
    let folder = folder(&[("p.rego", "package p\na.b := 1\nallow if data.p.a.b == 1")]);
    let first = compile(folder.path(), config(), None);
    let again = compile(folder.path(), config(), Some(first.policy()));
    assert!(Arc::ptr_eq(first.policy(), again.policy()));
    assert_eq!(first.problems, again.problems);
    assert_eq!(first.problems.len(), 1);

    fs::write(
        folder.path().join("policies/p.rego"),
        "package p\nallow := false",
    )
    .unwrap();
    let changed = compile(folder.path(), config(), Some(first.policy()));
    assert_ne!(first.policy().revision(), changed.policy().revision());

    // One worker, two revisions: the machine of the old one is not asked for the new.
    let machines = Machines::default();
    assert!(allowed(&decide_on(first.policy(), &machines, "/")));
    assert!(!allowed(&decide_on(changed.policy(), &machines, "/")));
    assert!(allowed(&decide_on(first.policy(), &machines, "/")));
    assert_eq!(machines.ready(), 1);
}

#[test]
fn machines_of_dropped_policies_are_dropped() {
    let machines = Machines::default();
    for name in ["a", "b", "c"] {
        let folder = folder(&[("p.rego", "package p\nallow := true")]);
        let mut cx = Compile::new(&folder.path().join("gateway.yaml"), Arc::default());
        let policy = config().compile(name, None, &mut cx).unwrap();
        assert!(allowed(&decide_on(&policy, &machines, "/")));
    }
    assert_eq!(machines.ready(), 1);
}

#[test]
fn a_core_that_decides_nothing_lets_go_of_policies_that_were_replaced() {
    let machines = Machines::default();
    let [one, other] = ["a", "b"].map(|name| {
        let folder = folder(&[("p.rego", "package p\nallow := true")]);
        let mut cx = Compile::new(&folder.path().join("gateway.yaml"), Arc::default());
        config().compile(name, None, &mut cx).unwrap()
    });
    // Both are held elsewhere, as by a request that is still open.
    assert!(allowed(&decide_on(&one, &machines, "/")));
    assert!(allowed(&decide_on(&other, &machines, "/")));
    assert_eq!(machines.ready(), 2);
    machines.keep([&Policy::public(), &other].into_iter());
    assert_eq!(machines.ready(), 1);
    assert!(allowed(&decide_on(&one, &machines, "/")));
}

// ---- no error ever allows

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    /// Whatever a policy does beside, a body that cannot be evaluated never allows: not by a
    /// default, not by a negation, not on either engine.
    #[test]
    fn an_error_of_the_engine_never_allows(
        fault in prop::sample::select(vec![
            "1 / (input.source.port - 40000)",
            "upper(input.source.port)",
            "input.request.path + 1",
            "5 % 0.5",
            "time.clock(input.request.path)",
            "json.unmarshal(input.request.path)",
            "base64.decode(input.request.path)",
        ]),
        shape in prop::sample::select(vec![
            "allow if { x := FAULT; x != 0 }",
            "default allow := true\nallow := false if { x := FAULT; x == 0 }",
            "bad if { x := FAULT; x == 0 }\nallow if not bad",
            "allow if { not FAULT == 77 }",
            "v := FAULT\nallow if { v != 77 }",
            "f(x) := y if { y := FAULT; x }\nallow if f(true) != 77",
            "allow if count([1 | x := FAULT; x == 77]) == 0",
            "allow := {\"allow\": true, \"reason\": r} if { r := sprintf(\"%v\", [FAULT]) }",
        ]),
        interpreted in any::<bool>(),
    ) {
        let tail = if interpreted { "\nok if input.request\nallow if { ok with input.x as 1; false }" } else { "" };
        let loaded = load(&format!("{}{tail}", shape.replace("FAULT", fault)));
        if let Some(policy) = &loaded.policy {
            let denial = denied(decide(policy));
            prop_assert_eq!(denial.reason, Reason::Error);
        }
    }
}

/// A policy whose decisions are not kept, with the metrics that it counts in.
fn watched(rules: &str, budget: BudgetConfig) -> (Arc<Policy>, Arc<Metrics>) {
    let folder = folder(&[("p.rego", &format!("package p\n{rules}\n"))]);
    let metrics = Arc::new(Metrics::default());
    let mut cx = Compile::new(&folder.path().join("gateway.yaml"), Arc::clone(&metrics));
    let config = PolicyConfig {
        budget,
        decision_cache: DecisionCacheConfig {
            max_entries: 0,
            ..DecisionCacheConfig::default()
        },
        ..config()
    };
    let policy = config.compile("orders", None, &mut cx).unwrap();
    (policy, metrics)
}

#[test]
fn what_rules_cost_is_told_with_file_and_line_and_in_metrics() {
    let rules = "default allow := false\nallow if { staff; input.request.method == \"GET\" }\n\
        staff if { some x in numbers.range(1, 200); x == 200 }\nidle if input.request.path";
    let (policy, metrics) = watched(rules, config().budget);
    assert_eq!(policy.engine(), "rvm");
    let machines = Machines::default();
    for _ in 0..10 * cost::LiveCost::ONE_IN {
        assert!(allowed(&decide_on(&policy, &machines, "/orders/42")));
    }
    assert_eq!(policy.watched(), 10);
    let costs = policy.costs();
    let seen: Vec<_> = costs
        .iter()
        .map(|rule| (rule.rule.as_str(), rule.line, rule.evaluations))
        .collect();
    assert_eq!(seen, [("data.p.staff", 4, 10), ("data.p.allow", 3, 10),]);
    assert!(costs[0].file.ends_with("policies/p.rego"));
    assert!(costs[0].time > costs[1].time, "{costs:?}");
    let text = metrics.encode();
    let of = |name: &str| {
        let series = format!("portcullis_{name}{{policy=\"orders\",rule=\"data.p.staff\"}} ");
        let line = text.lines().find_map(|line| line.strip_prefix(&series));
        line.and_then(|value| value.parse::<f64>().ok())
    };
    assert_eq!(of("policy_rule_evaluations_total"), Some(10.0), "{text}");
    let seconds = of("policy_rule_duration_seconds_total").unwrap();
    assert!((seconds - costs[0].time.as_secs_f64()).abs() < 1e-6);
    assert_eq!(of("policy_rule_budget_overruns_total"), None);
}

#[test]
fn a_spent_budget_is_charged_to_the_rule_that_ran() {
    let rules = "default allow := false\nallow if slow\n\
        slow if { some x in numbers.range(1, 9000); x == 0 }";
    let budget = BudgetConfig {
        instructions: 1_000,
        ..config().budget
    };
    let (policy, metrics) = watched(rules, budget);
    let machines = Machines::default();
    for _ in 0..cost::LiveCost::ONE_IN {
        let denial = denied(decide_on(&policy, &machines, "/orders/42"));
        assert_eq!(denial.reason, Reason::Budget);
    }
    let slow = &policy.costs()[0];
    assert_eq!((slow.rule.as_str(), slow.overruns), ("data.p.slow", 1));
    let text = metrics.encode();
    let line =
        "portcullis_policy_rule_budget_overruns_total{policy=\"orders\",rule=\"data.p.slow\"} 1";
    assert!(text.contains(line), "{text}");
}
