//! Candidates: asked behind the answer, deciding for some, and back by themselves when they go wrong.

use std::io::{Read, Write};
use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::support::client::{Connection, request};
use crate::support::eventually;
use crate::support::gateway::{ADMIN, Builder, Gateway, World};
use crate::support::program::Program;
use crate::support::upstream::{Next, Upstream};

/// Denies whom it is told to, and says why it lets others in.
const NEXT: &str = r#"package gate

default allow := {"allow": false, "reason": "gate.next"}

banned if startswith(input.identity.subject, "bad")

allow := {"allow": true} if {
	"orders:read" in input.identity.scopes
	not banned
}
"#;

/// Denies everybody.
const NOBODY: &str = "package gate\n\nallow := {\"allow\": false, \"reason\": \"gate.nobody\"}\n";

/// A gateway whose policy `gate` has these candidates: name, file, its text, and the rest of the block.
fn world(candidates: &[(&str, &str, Value)]) -> World {
    world_with(candidates, |_| {})
}

fn world_with(candidates: &[(&str, &str, Value)], edit: impl FnOnce(&mut Value)) -> World {
    World::with(|builder| {
        let mut blocks = json!({});
        for (name, text, rest) in candidates {
            let file = format!("{name}.rego");
            builder.file(&file, text);
            let mut block = json!({ "of": "gate", "files": [file] });
            for (key, value) in rest.as_object().unwrap() {
                block[key] = value.clone();
            }
            blocks[*name] = block;
        }
        builder.with(|document| {
            document["candidates"] = blocks;
            // These are about what is compared, and debug builds are slow.
            document["candidate_time"] = json!("50%");
            edit(document);
        })
    })
}

fn told(gateway: &Gateway, name: &str) -> Value {
    let answer = gateway.admin("GET", &format!("/candidates/{name}"));
    assert_eq!(answer.status, 200, "{}", answer.text());
    answer.json()
}

/// The candidate's report, once so many requests were compared or left out.
#[track_caller]
fn compared(gateway: &Gateway, name: &str, requests: u64) -> Value {
    eventually(&format!("{requests} comparisons of {name}"), || {
        let told = told(gateway, name);
        let sum = told["compared"].as_u64().unwrap() + told["left_out"].as_u64().unwrap();
        assert!(sum <= requests, "{told:#}");
        (sum == requests).then_some(told)
    })
}

fn bearer(world: &World, subject: &str) -> String {
    format!("Bearer {}", world.token(subject))
}

fn metric(gateway: &Gateway, series: &str) -> Option<f64> {
    let text = gateway.admin("GET", "/metrics").text();
    let line = text.lines().find(|line| line.starts_with(series))?;
    line.rsplit(' ').next()?.parse().ok()
}

#[test]
fn a_candidate_is_compared_behind_the_answer_and_changes_none() {
    let world = world(&[("next", NEXT, json!({}))]);
    let mut good = Vec::new();
    let mut bad = Vec::new();
    for nth in 0..4 {
        good.push(
            world
                .gateway
                .bearer(&format!("/orders/{nth}"), &world.token("alice")),
        );
        bad.push(
            world
                .gateway
                .bearer("/orders/secret-7?token=hush", &world.token("bad-bob")),
        );
    }
    assert!(good.iter().chain(&bad).all(|answer| answer.status == 200));
    let denied = world.gateway.get("/orders/1", &[]);
    assert_eq!(denied.status, 401, "not decided, and so not compared");
    let report = compared(&world.gateway, "next", 8);
    assert_eq!(report["standing"], "shadow");
    assert_eq!(
        (
            &report["compared"],
            &report["same"],
            &report["denies"],
            &report["permits"],
            &report["terms"]
        ),
        (&json!(8), &json!(4), &json!(4), &json!(0), &json!(0)),
        "{report:#}"
    );
    assert_eq!(
        report["routes"],
        json!([
            {"route": "open", "compared": 8, "same": 4, "denies": 4, "permits": 0, "terms": 0}
        ])
    );
    assert_eq!(
        report["reasons"],
        json!([
            {"flip": "denies", "from": "(allowed)", "to": "gate.next", "count": 4}
        ])
    );
    // By which rule of the candidate, and at which of its conditions.
    let rules = eventually("the rules of the samples", || {
        let rules = told(&world.gateway, "next")["rules"].clone();
        (rules[0]["rule"] != Value::Null).then_some(rules)
    });
    let line = 1 + NEXT
        .lines()
        .position(|line| line.trim() == "not banned")
        .unwrap();
    assert_eq!(rules.as_array().unwrap().len(), 1, "{rules}");
    let at = rules[0]["at"].as_str().unwrap();
    assert!(at.ends_with(&format!("/next.rego:{line}:2")), "{at}");
    assert_eq!(
        (&rules[0]["flip"], &rules[0]["rule"], &rules[0]["samples"]),
        (&json!("denies"), &json!("data.gate.allow"), &json!(4))
    );
    let caller = &report["callers"][0];
    assert_eq!(caller["flips"], 4);
    assert!(
        caller["caller"].as_str().unwrap().ends_with("|bad-bob"),
        "{caller}"
    );
    let samples = report["samples"].as_array().unwrap();
    assert_eq!(samples.len(), 4);
    // Each names a record by which it can be explained, and tells nothing that the client chose.
    for sample in samples {
        let record = world.gateway.record(sample["request_id"].as_str().unwrap());
        assert_eq!(record["decision_id"], sample["decision_id"]);
        assert_eq!(record["decision"], "allow");
        assert_eq!(sample["path"], "/{*rest}");
    }
    let text = report.to_string();
    assert!(
        !text.contains("hush") && !text.contains("secret-7"),
        "{text}"
    );
    let series = r#"candidate_comparisons_total{candidate="next",outcome="denies"}"#;
    assert_eq!(
        metric(&world.gateway, &format!("portcullis_{series}")),
        Some(4.0)
    );
    // Counted anew from here on.
    assert_eq!(
        world.gateway.admin("POST", "/candidates/next/reset").status,
        200
    );
    assert_eq!(told(&world.gateway, "next")["compared"], 0);
}

#[test]
fn what_is_no_answer_is_compared_as_what_it_is() {
    let undefined = "package gate\n\nallow if input.identity.subject == \"nobody\"\n";
    let error = "package gate\n\nallow if to_number(input.identity.subject) == 1\n";
    let odd = "package gate\n\nallow := {\"allow\": true, \"status\": 9} if input.identity\n";
    let slow = "package gate\n\nallow if count([1 | some a in numbers.range(1, 300); some b in numbers.range(1, 300); a * b == count(input.identity.subject) + 700]) > 0\n";
    let world = world(&[
        ("undefined", undefined, json!({})),
        ("error", error, json!({})),
        ("odd", odd, json!({})),
        ("slow", slow, json!({"budget": {"instructions": 1000}})),
    ]);
    let token = world.token("alice");
    for _ in 0..3 {
        assert_eq!(world.gateway.bearer("/x", &token).status, 200);
    }
    for (name, kind) in [
        ("undefined", "undefined"),
        ("error", "error"),
        ("odd", "answer"),
        ("slow", "budget"),
    ] {
        let report = compared(&world.gateway, name, 3);
        assert_eq!(
            report["failures"],
            json!({ kind: report["compared"] }),
            "{name}: {report:#}"
        );
        assert_eq!(report["denies"], report["compared"], "{name}");
        assert_eq!(
            report["reasons"][0]["to"],
            format!("policy.{kind}"),
            "{name}"
        );
    }
}

#[test]
fn terms_that_matter_are_compared_in_both_directions() {
    let terms = r#"package gate

default allow := {"allow": false, "status": 404}

allow := {"allow": true, "identity": {"tenant": "acme"}, "limit": {"key": "k", "rate": "100/s"}, "headers": {"x-a": "1"}} if "orders:read" in input.identity.scopes
"#;
    let world = world(&[
        ("terms", terms, json!({})),
        (
            "all",
            "package gate\n\nallow if input.identity\n",
            json!({}),
        ),
    ]);
    let mut claims = world.issuer.claims("carol");
    claims["scope"] = json!("nothing");
    let poor = world.key.token(&claims);
    assert_eq!(
        world.gateway.bearer("/x", &world.token("alice")).status,
        200
    );
    assert_eq!(world.gateway.bearer("/x", &poor).status, 403);
    let report = compared(&world.gateway, "terms", 2);
    assert_eq!(report["terms"], 2, "{report:#}");
    let mut terms: Vec<&Value> = report["samples"]
        .as_array()
        .unwrap()
        .iter()
        .map(|s| &s["terms"])
        .collect();
    terms.sort_by_key(|terms| terms.to_string());
    assert_eq!(
        terms,
        [&json!(["headers", "identity", "limit"]), &json!(["status"])]
    );
    assert_eq!(compared(&world.gateway, "all", 2)["permits"], 1);
}

#[test]
fn a_share_is_stable_by_subject_and_records_say_who_decided() {
    let world = world(&[(
        "next",
        NOBODY,
        json!({
            "enforce": {"share": "50%"},
            "rollback": {"denials": "100%", "permits": "100%", "errors": "100%"},
        }),
    )]);
    let mut sides = Vec::new();
    for nth in 0..24 {
        let token = world.token(&format!("user{nth}"));
        let first = world.gateway.bearer("/x", &token);
        // Another token, path and connection of the same subject.
        let second = world
            .gateway
            .bearer("/y/z", &world.token(&format!("user{nth}")));
        assert_eq!(first.status, second.status, "user{nth}");
        if first.status == 403 {
            let record = world
                .gateway
                .record(first.json()["request_id"].as_str().unwrap());
            assert_eq!(record["policy"]["name"], "gate");
            assert_eq!(record["policy"]["candidate"], "next");
            assert_eq!(record["reason"], "gate.nobody");
            assert_eq!(
                record["policy"]["revision"],
                told(&world.gateway, "next")["revision"]
            );
        }
        sides.push(first.status);
    }
    let denied = sides.iter().filter(|status| **status == 403).count();
    assert!((1..24).contains(&denied), "{sides:?}");
    // What it decided is compared with what its policy says, and the rest with what it says.
    let report = compared(&world.gateway, "next", 48);
    assert_eq!(report["denies"], report["compared"], "{report:#}");
    assert_eq!(
        report["decided"]["deny"],
        u64::try_from(denied * 2).unwrap()
    );
    assert_eq!(report["standing"], "enforcing");
}

#[test]
fn a_cohort_is_of_claims_routes_and_addresses_and_everybody_else_is_left_alone() {
    let cohort =
        json!({"claims": {"tier": ["beta"]}, "routes": ["open"], "addresses": ["127.0.0.0/8"]});
    let rollback = json!({"denials": "100%", "permits": "100%", "errors": "100%"});
    let world = world(&[
        (
            "beta",
            NOBODY,
            json!({"enforce": {"cohort": cohort}, "rollback": rollback}),
        ),
        (
            "far",
            NOBODY,
            json!({"enforce": {"cohort": {"addresses": ["10.0.0.0/8"]}}, "rollback": rollback}),
        ),
        (
            "one",
            NOBODY,
            json!({"enforce": {"cohort": {"subjects": ["zoe"]}}, "rollback": rollback}),
        ),
    ]);
    let mut claims = world.issuer.claims("alice");
    claims["tier"] = json!(["gold", "beta"]);
    let beta = world.key.token(&claims);
    claims["tier"] = json!("betamax");
    let other = world.key.token(&claims);
    assert_eq!(world.gateway.bearer("/x", &beta).status, 403);
    assert_eq!(
        world.gateway.bearer("/", &beta).status,
        200,
        "another route"
    );
    assert_eq!(world.gateway.bearer("/x", &other).status, 200);
    assert_eq!(world.gateway.bearer("/x", &world.token("zoe")).status, 403);
    // A client cannot choose its side by what it sends.
    let header = [
        ("authorization", &*format!("Bearer {other}")),
        ("tier", "beta"),
        ("x-forwarded-for", "10.1.1.1"),
    ];
    assert_eq!(world.gateway.get("/x?tier=beta", &header).status, 200);
}

/// Sends requests on one connection until the candidate went back; gives how many, and after how long.
fn drive(world: &World, name: &str, subjects: &[&str]) -> (usize, Duration) {
    let tokens: Vec<String> = subjects
        .iter()
        .map(|subject| bearer(world, subject))
        .collect();
    let began = Instant::now();
    let mut connection = world.gateway.connect();
    let mut sent = 0;
    loop {
        for token in &tokens {
            connection.send(request("GET", "/x", &[("authorization", token)]));
            assert!(connection.answer().is_some());
            sent += 1;
        }
        if told(&world.gateway, name)["standing"] == "back" {
            return (sent, began.elapsed());
        }
        assert!(
            began.elapsed() < Duration::from_secs(30),
            "{:#}",
            told(&world.gateway, name)
        );
    }
}

/// So many that three of them are drawn into a share of 40 %, but for once in ten million.
const SUBJECTS: [&str; 48] = [
    "a", "b", "c", "d", "e", "f", "g", "h", "i", "j", "k", "l", "m", "n", "o", "p", "q", "r", "s",
    "t", "u", "v", "w", "x", "y", "z", "aa", "ab", "ac", "ad", "ae", "af", "ag", "ah", "ai", "aj",
    "ak", "al", "am", "an", "ao", "ap", "aq", "ar", "as", "at", "au", "av",
];

#[test]
fn a_bad_candidate_at_a_share_goes_back_within_ten_seconds_and_stays_back() {
    let mut world = world(&[(
        "next",
        NOBODY,
        json!({"enforce": {"share": "40%"}, "rollback": {"least": 50}}),
    )]);
    let (sent, took) = drive(&world, "next", &SUBJECTS);
    assert!(
        took < Duration::from_secs(10),
        "{took:?} and {sent} requests"
    );
    // Nobody is denied any more, and everybody is told.
    for subject in SUBJECTS {
        assert_eq!(
            world.gateway.bearer("/x", &world.token(subject)).status,
            200,
            "{subject}"
        );
    }
    let report = told(&world.gateway, "next");
    let why = report["back"]["why"].as_str().unwrap().to_owned();
    assert_eq!(report["back"]["edge"], "denials");
    assert!(
        why.contains("requests that its policy allows (100.0%, at most 2%)"),
        "{why}"
    );
    let ready = world.gateway.admin("GET", "/ready");
    assert_eq!(ready.status, 200, "it keeps no traffic away");
    assert!(
        ready.text().contains("candidate next: went back"),
        "{}",
        ready.text()
    );
    assert_eq!(
        world.gateway.admin("GET", "/status").json()["candidates"]["next"]["standing"],
        "back"
    );
    assert_eq!(
        metric(
            &world.gateway,
            "portcullis_candidate_back{candidate=\"next\"}"
        ),
        Some(1.0)
    );
    let rollbacks = "portcullis_candidate_rollbacks_total{candidate=\"next\",edge=\"denials\"}";
    assert_eq!(metric(&world.gateway, rollbacks), Some(1.0));
    // A reload of something else, and of the share, is no reason to try it again.
    let answer = world.gateway.reload(|document| {
        document["head_timeout"] = json!("29s");
        document["candidates"]["next"]["enforce"]["share"] = json!("100%");
        document["candidates"]["next"]["enforce"]["cohort"] = json!({"routes": ["open"]});
    });
    assert_eq!(answer.status, 200, "{}", answer.text());
    assert_eq!(told(&world.gateway, "next")["back"]["why"], *why);
    assert_eq!(world.gateway.bearer("/x", &world.token("a")).status, 200);
    // Somebody resumes it; it is as bad as before and goes again.
    let resumed = world
        .gateway
        .admin("POST", "/candidates/next/resume")
        .json();
    assert_eq!(
        (&resumed["changed"], &resumed["standing"]),
        (&json!(true), &json!("enforcing"))
    );
    assert_eq!(world.gateway.bearer("/x", &world.token("a")).status, 403);
    let (_, took) = drive(&world, "next", &SUBJECTS);
    assert!(took < Duration::from_secs(10), "{took:?}");
    assert_eq!(metric(&world.gateway, rollbacks), Some(2.0));
    // Another text is tried.
    world.gateway.file_in("next.rego", NEXT);
    assert_eq!(world.gateway.reload(|_| {}).status, 200);
    let report = told(&world.gateway, "next");
    assert_eq!(
        (&report["standing"], &report["compared"]),
        (&json!("enforcing"), &json!(0)),
        "{report:#}"
    );
    assert_eq!(
        world.gateway.bearer("/x", &world.token("bad")).status,
        403,
        "it decides"
    );
}

#[test]
fn one_caller_cannot_bring_a_candidate_back_and_three_can() {
    let enforce = json!({"cohort": {"routes": ["open"]}});
    let world = world(&[(
        "next",
        NEXT,
        json!({"enforce": enforce, "rollback": {"least": 50}}),
    )]);
    let mut connection = world.gateway.connect();
    let mut ask = |subject: &str, times: usize| {
        let token = bearer(&world, subject);
        for _ in 0..times {
            connection.send(request("GET", "/x", &[("authorization", &token)]));
            assert!(connection.answer().is_some());
        }
    };
    // Whom the candidate is there to keep out asks again and again, as somebody else, too.
    let held = eventually("it to be judged by them", || {
        ask("bad", 50);
        ask("bad two", 50);
        ask("good", 10);
        told(&world.gateway, "next")["judged"]["held"]
            .as_str()
            .map(str::to_owned)
    });
    assert!(
        held.contains("fewer than 3 callers were denied so much: it stays"),
        "{held}"
    );
    let report = told(&world.gateway, "next");
    assert_eq!(report["standing"], "enforcing", "{report:#}");
    assert!(report["judged"]["now"]["denials"].as_u64().unwrap() >= 50);
    assert_eq!(
        world.gateway.bearer("/x", &world.token("bad")).status,
        403,
        "it still decides"
    );
    // A third one is a pattern.
    let (_, took) = drive(&world, "next", &["bad", "bad two", "bad three"]);
    assert!(took < Duration::from_secs(10), "{took:?}");
    let report = told(&world.gateway, "next");
    assert_eq!(report["back"]["edge"], "denials");
    assert_eq!(report["judged"]["held"], Value::Null);
}

#[test]
fn a_good_candidate_stays_and_one_that_fails_or_lets_in_goes() {
    let failing = "package gate\n\nallow if to_number(input.identity.subject) == 1\n";
    let lax = "package gate\n\nallow := true\n";
    let cohort = |tier: &str| json!({"enforce": {"cohort": {"claims": {"tier": [tier]}}}, "rollback": {"least": 20}});
    let world = world(&[
        ("failing", failing, cohort("failing")),
        ("good", NEXT, cohort("good")),
        ("lax", lax, cohort("lax")),
    ]);
    let token = |tier: &str, scope: &str| {
        let mut claims = world.issuer.claims("alice");
        claims["tier"] = json!(tier);
        claims["scope"] = json!(scope);
        format!("Bearer {}", world.key.token(&claims))
    };
    let all = [
        token("failing", "orders:read"),
        token("good", "orders:read"),
        token("good", "none"),
        token("lax", "none"),
    ];
    let mut connection = world.gateway.connect();
    let standing = |name| told(&world.gateway, name)["standing"].clone();
    eventually("both to go back", || {
        for token in &all {
            connection.send(request("GET", "/x", &[("authorization", token)]));
            assert!(connection.answer().is_some());
        }
        (standing("failing") == "back" && standing("lax") == "back").then_some(())
    });
    assert_eq!(told(&world.gateway, "failing")["back"]["edge"], "errors");
    assert_eq!(told(&world.gateway, "lax")["back"]["edge"], "permits");
    let good = told(&world.gateway, "good");
    assert_eq!(good["standing"], "enforcing", "{good:#}");
    assert!(
        good["judged"]["now"]["compared"].as_u64().unwrap() >= 20,
        "{good:#}"
    );
}

#[test]
fn what_went_back_is_back_after_a_restart() {
    let upstream = Upstream::start();
    let builder = Builder::open(&upstream);
    builder.file("gate.rego", "package gate\n\nallow := true\n");
    builder.file("next.rego", NOBODY);
    let builder = builder.with(|document| {
        document["policies"] =
            json!({"gate": {"files": ["gate.rego"], "entrypoint": "data.gate.allow"}});
        document["candidates"] = json!({"next": {
            "of": "gate", "files": ["next.rego"],
            "enforce": {"share": "50%", "by": "address", "cohort": {"routes": ["open"]}},
        }});
        document["candidate_state"] = json!("state/candidates.json");
        for route in document["routes"].as_array_mut().unwrap() {
            route["policy"] = json!("gate");
        }
    });
    let program = Program::start(builder);
    let ask = |program: &Program, method: &str, path: &str| {
        let host = program.admin.to_string();
        let headers = [("host", &*host), ("authorization", ADMIN)];
        Connection::plain(program.admin)
            .send(request(method, path, &headers))
            .answer()
            .unwrap()
            .json()
    };
    let status = |program: &Program| {
        Connection::plain(program.address)
            .send(request("GET", "/x", &[]))
            .answer()
            .unwrap()
            .status
    };
    // By address, all of us are on one side, and on the same one in the next process.
    let side = status(&program);
    let file = program.builder.folder.path().to_path_buf();
    let file = file.join("state/candidates.json");
    eventually("the file", || file.exists().then_some(()));
    let program = program.again();
    assert_eq!(status(&program), side);
    assert_eq!(
        ask(&program, "POST", "/candidates/next/back")["standing"],
        "back"
    );
    assert_eq!(status(&program), 200);
    eventually("the file", || {
        let text = std::fs::read_to_string(&file).ok()?;
        text.contains("somebody sent it back").then_some(())
    });
    let program = program.again();
    let told = ask(&program, "GET", "/candidates/next");
    assert_eq!(told["standing"], "back", "{told:#}");
    assert_eq!(told["back"]["edge"], "order");
    // The tool says so too, and fails.
    let folder = program.builder.folder.path();
    let mut document = program.builder.document.clone();
    document["admin"]["address"] = json!(program.admin.to_string());
    program.builder.file("tool.yaml", document.to_string());
    let tool = |arguments: &[&str]| {
        Command::new(env!("CARGO_BIN_EXE_portcullis"))
            .args(["candidates", "--config", "tool.yaml"])
            .args(arguments)
            .current_dir(folder)
            .output()
            .unwrap()
    };
    let listed = tool(&[]);
    let text = String::from_utf8(listed.stdout).unwrap();
    assert_eq!(listed.status.code(), Some(1), "{text}");
    assert!(
        text.contains("BACK (was 50% of a cohort)") && text.contains("next went back "),
        "{text}"
    );
    let resumed = tool(&["next", "--resume"]);
    assert_eq!(
        String::from_utf8(resumed.stdout).unwrap(),
        "next: it decides again\n"
    );
    assert_eq!(status(&program), side);
    eventually("the file", || {
        let text = std::fs::read_to_string(&file).ok()?;
        (!text.contains("somebody")).then_some(())
    });
    let json = tool(&["next", "--format", "json"]);
    assert_eq!(json.status.code(), Some(0));
    assert_eq!(
        serde_json::from_slice::<Value>(&json.stdout).unwrap()["standing"],
        "enforcing"
    );
    let unknown = tool(&["nxt"]);
    let text = String::from_utf8(unknown.stderr).unwrap();
    assert!(
        text.contains("there is no candidate `nxt`: did you mean `next`?"),
        "{text}"
    );
}

#[test]
fn open_streams_are_judged_and_compared_again_and_by_the_policy_when_it_goes_back() {
    let upstream = Upstream::with(|_, stream| {
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n");
        while stream.write_all(b"4\r\n: x\n\r\n").is_ok() {
            std::thread::park_timeout(Duration::from_millis(20));
        }
        Next::Close
    });
    let endpoint = upstream.url();
    // The policy lets nobody in; the candidate lets in its cohort.
    let lax = "package gate\n\nallow if input.identity\n";
    let rollback = json!({"permits": "100%"});
    let mut world = world_with(
        &[(
            "lax",
            lax,
            json!({"enforce": {"cohort": {"subjects": ["alice"]}}, "rollback": rollback}),
        )],
        |document| document["upstreams"]["main"]["endpoints"] = json!([endpoint]),
    );
    world.gateway.file_in(
        "gate.rego",
        "package gate\n\ndefault allow := false\n\nallow if input.identity.subject == \"nobody\"\n",
    );
    assert_eq!(world.gateway.reload(|_| {}).status, 200);
    let token = bearer(&world, "alice");
    let mut stream = world.gateway.connect();
    stream.send(request(
        "GET",
        "/stream",
        &[("authorization", &token), ("connection", "close")],
    ));
    let mut first = [0; 32];
    stream.read_exact(&mut first).unwrap();
    assert!(
        first.starts_with(b"HTTP/1.1 200"),
        "{}",
        String::from_utf8_lossy(&first)
    );
    // All is judged again: by the candidate, which still says yes.
    let answer = world
        .gateway
        .reload(|document| document["head_timeout"] = json!("28s"));
    assert_eq!(answer.status, 200);
    let mut more = [0; 4096];
    for _ in 0..4 {
        assert!(stream.read(&mut more).unwrap() > 0, "the stream goes on");
    }
    // That was compared, too: who ends streams is judged by it.
    eventually("the second judgement to be compared", || {
        let told = told(&world.gateway, "lax");
        (told["compared"].as_u64().unwrap() >= 2).then_some(())
    });
    assert_eq!(
        world.gateway.admin("POST", "/candidates/lax/back").json()["changed"],
        true
    );
    let deadline = Instant::now() + Duration::from_secs(10);
    while stream.read(&mut more).is_ok_and(|read| read > 0) {
        assert!(Instant::now() < deadline, "its policy says no");
    }
}

#[test]
fn what_is_left_out_is_counted_and_answers_are_as_before() {
    // Some milliseconds for each request.
    let slow = "package gate\n\nallow if count([1 | some a in numbers.range(1, 2000); a % 7 == count(input.request.path) % 7]) > 0\n";
    let block =
        json!({"decision_cache": false, "budget": {"time": "1s", "instructions": 1_000_000}});
    let world = world_with(&[("next", slow, block)], |document| {
        document["candidate_time"] = json!("0.1%");
    });
    let token = bearer(&world, "alice");
    let mut connection = world.gateway.connect();
    for _ in 0..400 {
        connection.send(request("GET", "/x", &[("authorization", &token)]));
        assert_eq!(connection.answer().unwrap().status, 200);
    }
    let report = compared(&world.gateway, "next", 400);
    assert!(
        report["left_out_by"]["time"].as_u64().unwrap() > 0,
        "{report:#}"
    );
    assert!(report["compared"].as_u64().unwrap() > 0, "{report:#}");
}

#[test]
fn a_sample_is_a_share_of_the_requests() {
    let world = world(&[
        ("next", NEXT, json!({"sample": "25%"})),
        ("all", NEXT, json!({})),
    ]);
    let token = bearer(&world, "alice");
    let mut connection = world.gateway.connect();
    for _ in 0..300 {
        connection.send(request("GET", "/x", &[("authorization", &token)]));
        assert_eq!(connection.answer().unwrap().status, 200);
    }
    compared(&world.gateway, "all", 300);
    let sampled = told(&world.gateway, "next")["compared"].as_u64().unwrap();
    assert!((30..130).contains(&sampled), "{sampled} of 300");
}

/// What `portcullis check` says of a configuration.
fn problems(edit: impl FnOnce(&mut Value)) -> String {
    let upstream = Upstream::start();
    let builder = Builder::open(&upstream);
    builder.file("next.rego", NOBODY);
    builder.file(
        "reads.rego",
        "package gate\n\nallow if input.request.body.total == 1\n",
    );
    let builder = builder.with(|document| {
        document["policies"] =
            json!({"gate": {"files": ["gate.rego"], "entrypoint": "data.gate.allow"}});
        document["routes"][0]["policy"] = json!("gate");
        document["candidates"] = json!({"next": {"of": "gate", "files": ["next.rego"]}});
        edit(document);
    });
    builder.file("gateway.yaml", builder.document.to_string());
    let output = Command::new(env!("CARGO_BIN_EXE_portcullis"))
        .args(["check"])
        .current_dir(builder.folder.path())
        .output()
        .unwrap();
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn a_candidate_that_cannot_be_compared_does_not_load_and_check_says_why() {
    let fine = problems(|_| {});
    assert!(
        fine.contains("loads with") && !fine.contains("candidates"),
        "{fine}"
    );
    let text = problems(|document| {
        document["candidates"] = json!({
            "gate": {"of": "gate", "files": ["next.rego"]},
            "a": {"of": "gat", "files": ["next.rego"]},
            "b": {"of": "gate", "files": ["missing.rego"]},
            "c": {"of": "gate", "input": "envoy", "files": ["next.rego"]},
            "d": {"of": "gate", "files": ["next.rego"], "rollback": {"over": "2m", "least": 0, "callers": 17}},
            "e": {"of": "gate", "files": ["next.rego"], "enforce": {"cohort": {"routes": ["root", "opne"]}}},
            "f": {"of": "gate", "files": ["next.rego"], "enforce": {"share": "5"}},
            "g": {"of": "gate", "files": ["reads.rego"], "body": {"max": "1KiB"}},
            "h": {"of": "public", "files": ["next.rego"]},
            "i": {"of": "gate", "files": ["next.rego"], "enforce": {"cohort": {"headers": ["x"]}}},
        });
        document["candidate_time"] = json!("60%");
    });
    for expected in [
        "candidates.gate: a policy is called `gate`, too",
        "candidates.a.of: there is no policy `gat`",
        "did you mean `gate`?",
        "missing.rego",
        "candidates.c.input: `gate` sees another document",
        "candidates.d.rollback.over: the time is out of range",
        "candidates.d.rollback.least: the number of requests is out of range",
        "candidates.d.rollback.callers: the number of callers is out of range",
        "the policy of the route `root` is `public`, not `gate`",
        "there is no route `opne`",
        "`5` is not a share",
        "candidates.g.body: the candidate reads bodies, and none is read for `gate`",
        "`public` allows everybody and has no candidates",
        "unknown key `headers`",
        "candidate_time: the share of the workers' time is out of range",
        "does not load",
    ] {
        assert!(text.contains(expected), "{expected}:\n{text}");
    }
    let alone = problems(|document| {
        let enforce = json!({"cohort": {"subjects": ["alice"]}});
        document["candidates"] =
            json!({"next": {"of": "gate", "files": ["next.rego"], "enforce": enforce}});
    });
    assert!(
        alone.contains("goes back by denials of 3 callers: it never will"),
        "{alone}"
    );
    let same = problems(|document| document["candidates"] = json!({"next": {"of": "gate"}}));
    assert!(
        same.contains("candidates.next: it is `gate` itself"),
        "{same}"
    );
}
