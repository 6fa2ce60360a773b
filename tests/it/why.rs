//! Why was this decided: the last decisions, one of them explained, tail and live traces.

use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::sync::mpsc::{self, Receiver};
use std::time::Duration;

use serde_json::{Value, json};

use crate::support::client::{Answer, Connection, request};
use crate::support::eventually;
use crate::support::gateway::{ADMIN, ADMIN_TOKEN, Builder, World};
use crate::support::issuer::{Issuer, Key};
use crate::support::program::Program;
use crate::support::upstream::Upstream;

const POLICY: &str = "package gate

default allow := false

allow if {
\tinput.request.method == \"GET\"
\tis_owner
}

# Whose it is.
is_owner if data.owners[input.request.path] == input.identity.subject
";

/// A gateway in a process of its own, with a policy that leads from rule to rule.
struct Place {
    program: Program,
    key: Key,
    issuer: Issuer,
    _upstream: Upstream,
}

fn portcullis(folder: &Path, arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_portcullis"))
        .args(arguments)
        .current_dir(folder)
        .output()
        .unwrap()
}

fn text(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

impl Place {
    fn start(change: impl FnOnce(&mut Value)) -> Self {
        let key = Key::new("k1", "ES256");
        let issuer = Issuer::start(&[&key]);
        let upstream = Upstream::start();
        let builder = Builder::guarded(&upstream, &issuer)
            .policy(POLICY)
            .with(|document| {
                document["policies"]["gate"]["files"] = json!(["gate.rego", "owners.json"]);
                change(document);
            });
        builder.file(
            "owners.json",
            r#"{"owners": {"/mine": "alice", "/theirs": "bob"}}"#,
        );
        let program = Program::start(builder);
        let place = Self {
            program,
            key,
            issuer,
            _upstream: upstream,
        };
        place.ready();
        place
    }

    fn ready(&self) {
        eventually("readiness", || {
            (self.program.admin("/ready").status == 200).then_some(())
        });
    }

    fn folder(&self) -> &Path {
        self.program.builder.folder.path()
    }

    fn get(&self, path: &str, subject: Option<&str>, more: &[(&str, &str)]) -> Answer {
        let token = subject
            .map(|subject| format!("Bearer {}", self.key.token(&self.issuer.claims(subject))));
        let mut headers = more.to_vec();
        headers.extend(
            token
                .as_ref()
                .map(|token| ("authorization", token.as_str())),
        );
        Connection::plain(self.program.address)
            .send(request("GET", path, &headers))
            .answer()
            .unwrap()
    }

    fn run(&self, arguments: &[&str]) -> Output {
        let url = format!("http://{}", self.program.admin);
        let arguments = [arguments, &["--admin", &url]].concat();
        portcullis(self.folder(), &arguments)
    }

    /// Explains, once the record is there.
    fn explain(&self, id: &str, more: &[&str]) -> String {
        let arguments = [&["explain", id], more].concat();
        eventually("the explanation", || {
            let output = self.run(&arguments);
            output.status.success().then(|| text(&output))
        })
    }
}

fn id(answer: &Answer, name: &str) -> String {
    answer.json()[name].as_str().unwrap().to_owned()
}

#[test]
fn decisions_are_listed_filtered_waited_for_and_explained() {
    let place = Place::start(|_| {});
    assert_eq!(place.get("/mine", Some("alice"), &[]).status, 200);
    let denied = place.get("/theirs", Some("alice"), &[]);
    assert_eq!(denied.status, 403);
    assert_eq!(place.get("/theirs", None, &[]).status, 401);
    let all = eventually("three decisions", || {
        let page = place.program.admin("/decisions").json();
        (page["decisions"].as_array().unwrap().len() == 3).then_some(page)
    });
    assert_eq!(all["decisions"][0]["seq"], 1);
    let count = |query: &str| {
        let page = place.program.admin(&format!("/decisions?{query}"));
        assert_eq!(page.status, 200, "{query}");
        page.json()["decisions"].as_array().unwrap().len()
    };
    for (query, expected) in [
        ("decision=deny", 1),
        ("decision=allow", 1),
        ("decision=none", 1),
        ("status=4xx", 2),
        ("status=401", 1),
        ("caller=alice", 2),
        ("caller=bob", 0),
        ("policy=gate", 2),
        ("route=open", 3),
        ("route=nowhere", 0),
        ("code=denied", 1),
        ("code=credential.missing", 1),
        ("limit=1", 1),
        ("after=2", 1),
        ("before=2", 1),
    ] {
        assert_eq!(count(query), expected, "{query}");
    }
    assert_eq!(place.program.admin("/decisions?rout=open").status, 400);
    // It waits for what comes, and no longer.
    let admin = place.program.admin;
    let waiting = std::thread::spawn(move || {
        let host = admin.to_string();
        let path = "/decisions?after=3&wait=20&decision=deny";
        Connection::plain(admin)
            .send(request(
                "GET",
                path,
                &[("host", &host), ("authorization", ADMIN)],
            ))
            .answer()
            .unwrap()
            .json()
    });
    assert_eq!(place.get("/mine", Some("alice"), &[]).status, 200);
    assert_eq!(place.get("/theirs", Some("carol"), &[]).status, 403);
    let page = waiting.join().unwrap();
    assert_eq!(page["decisions"].as_array().unwrap().len(), 1);
    assert_eq!(page["decisions"][0]["record"]["caller"]["subject"], "carol");
    assert_eq!(page["instance"], all["instance"]);
    // One of them, by either id, with its why.
    for name in ["decision_id", "request_id"] {
        let page = place
            .program
            .admin(&format!("/decisions/{}", id(&denied, name)));
        assert_eq!(page.status, 200);
        let page = page.json();
        assert_eq!(page["record"]["decision"], "deny");
        let failed = &page["why"]["ways"][0]["failed"];
        assert_eq!(failed["text"], "is_owner", "{page:#}");
        let inner = &failed["because"][0]["ways"][0]["failed"];
        assert!(inner["file"].as_str().unwrap().ends_with("gate.rego"));
        assert_eq!((&inner["line"], &inner["column"]), (&json!(11), &json!(13)));
    }
    assert_eq!(place.program.admin("/decisions/0123").status, 404);
}

#[test]
fn decisions_need_the_token() {
    let upstream = Upstream::start();
    let program = Program::start(Builder::open(&upstream));
    let host = program.admin.to_string();
    for path in ["/decisions", "/decisions/abc", "/traces", "/traces/abc"] {
        let mut connection = Connection::plain(program.admin);
        connection.send(request("GET", path, &[("host", &host)]));
        assert_eq!(connection.answer().unwrap().status, 401, "{path}");
    }
    let url = format!("http://{}", program.admin);
    let folder = program.builder.folder.path();
    let tail = |more: &[&str]| {
        let arguments = [&["tail", "--once", "--admin", &url], more].concat();
        portcullis(folder, &arguments)
    };
    // The configuration has it, and so may the command line, by reference.
    assert!(tail(&[]).status.success());
    assert!(tail(&["--token", "file:admin-token"]).status.success());
    let output = tail(&["--token", ADMIN_TOKEN]);
    assert_eq!(output.status.code(), Some(2));
    let error = String::from_utf8(output.stderr).unwrap();
    assert!(error.contains("not the token itself"), "{error}");
}

#[test]
fn tools_say_what_to_do_where_no_token_is_configured() {
    let upstream = Upstream::start();
    let program = Program::start(Builder::open(&upstream).with(|document| {
        document["admin"] = json!({"address": "127.0.0.1:0"});
    }));
    let url = format!("http://{}", program.admin);
    let folder = program.builder.folder.path();
    for arguments in [&["tail", "--once"][..], &["candidates"]] {
        let output = portcullis(folder, &[arguments, &["--admin", &url]].concat());
        let error = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success(), "{arguments:?}");
        assert!(error.contains("set `admin.token: file:PATH`"), "{error}");
    }
    // And so does whoever starts it.
    let checked = portcullis(folder, &["check"]);
    let said = String::from_utf8_lossy(&checked.stdout) + String::from_utf8_lossy(&checked.stderr);
    assert!(checked.status.success(), "{said}");
    assert!(said.contains("the admin listener has no token"), "{said}");
}

#[test]
fn a_denial_tells_which_condition_of_which_line_failed_with_which_values() {
    let place = Place::start(|_| {});
    let answer = place.get("/theirs", Some("alice"), &[]);
    // The client learns nothing of it.
    assert!(!answer.text().contains("owner"), "{}", answer.text());
    let told = place.explain(&id(&answer, "decision_id"), &[]);
    for expected in [
        "DENIED 403  GET /theirs  by alice",
        "failed  is_owner",
        "gate.rego:7:2",
        "failed  data.owners[input.request.path] == input.identity.subject",
        "gate.rego:11:13",
        "= \"bob\"",
        "= \"alice\"",
        "= \"/theirs\"",
        "What would have had to be different",
    ] {
        assert!(told.contains(expected), "{expected}\n{told}");
    }
    let machine = place.explain(&id(&answer, "request_id"), &["--format", "json"]);
    let machine: Value = serde_json::from_str(&machine).unwrap();
    assert_eq!(machine["why"]["allow"], false);
    assert_eq!(machine["record"]["decision"], "deny");
    // And the record has the short form of it, which nothing else was slower for.
    let failed = &machine["record"]["why"]["failed"];
    assert_eq!(failed["text"], "is_owner", "{machine:#}");
    let inner = &failed["because"][0]["failed"];
    assert_eq!(inner["values"]["input.identity.subject"], "\"alice\"");
    let metrics = place.program.admin("/metrics").text();
    assert!(
        metrics.contains("portcullis_audit_why_total{outcome=\"asked\"} 1"),
        "{metrics}"
    );
}

#[test]
fn without_why_records_have_none_and_can_be_explained_all_the_same() {
    let place = Place::start(|document| document["audit"]["why"] = json!(false));
    let answer = place.get("/theirs", Some("alice"), &[]);
    let machine = place.explain(&id(&answer, "request_id"), &["--format", "json"]);
    let machine: Value = serde_json::from_str(&machine).unwrap();
    assert!(machine["record"].get("why").is_none());
    assert_eq!(machine["why"]["ways"][0]["failed"]["text"], "is_owner");
}

#[test]
fn a_decision_of_an_earlier_policy_is_told_from_the_ledger_when_the_gateway_is_gone() {
    let mut place = Place::start(|document| {
        document["audit"]["sink"] = json!({"ledger": {"folder": "records", "seal_every": "100ms"}});
    });
    let answer = place.get("/theirs", Some("alice"), &[]);
    let id = id(&answer, "decision_id");
    let folder = place.folder().join("records");
    let kept = eventually("the policy's text beside the ledger", || {
        let entry = fs::read_dir(folder.join("policies")).ok()?.next()?.ok()?;
        let name = entry.file_name().into_string().unwrap();
        name.ends_with(".json").then(|| entry.path())
    });
    place.program.signal("TERM");
    assert_eq!(place.program.end().code(), Some(0));
    // The policy that decided is no longer the one in the folder.
    place
        .program
        .builder
        .file("gate.rego", "package gate\n\nallow := true\n");
    let look = || portcullis(place.folder(), &["explain", &id, "--from", "records"]);
    let output = look();
    assert!(output.status.success(), "{output:?}");
    let told = text(&output);
    assert!(told.contains("gate.rego:11:13"), "{told}");
    assert!(told.contains("records/segment-"), "{told}");
    // Without --from the files of the configuration are looked at when nobody listens.
    let url = format!("http://{}", place.program.admin);
    let output = portcullis(place.folder(), &["explain", &id, "--admin", &url]);
    assert!(text(&output).contains("gate.rego:11:13"), "{output:?}");
    // And it is said when the text is not to be had, or says something else.
    let mut other: Value = serde_json::from_slice(&fs::read(&kept).unwrap()).unwrap();
    other["modules"][0][1] = json!("package gate\n\nallow := true\n");
    fs::write(&kept, other.to_string()).unwrap();
    let told = text(&look());
    assert!(told.contains("cannot be reproduced"), "{told}");
    fs::remove_file(&kept).unwrap();
    let told = text(&look());
    assert!(told.contains("is not to be had"), "{told}");
    assert!(told.contains("DENIED 403"), "{told}");
    let none = portcullis(
        place.folder(),
        &["explain", "0123abcd", "--from", "records"],
    );
    assert_eq!(none.status.code(), Some(1));
    let wrong = portcullis(place.folder(), &["explain", "../x"]);
    assert_eq!(wrong.status.code(), Some(2));
}

#[test]
fn what_was_refused_before_or_after_the_policy_is_told_as_well() {
    let place = Place::start(|document| {
        document["limits"] = json!({"few": {"by": "subject", "rate": "1/h", "burst": 1}});
        let dead = json!({"endpoints": ["http://127.0.0.1:1"]});
        document["upstreams"]["dead"] = dead;
        let mut away = document["routes"][0].clone();
        away["name"] = json!("away");
        away["path"] = json!("/mine");
        away["upstream"] = json!("dead");
        let mut limited = document["routes"][0].clone();
        limited["name"] = json!("limited");
        limited["path"] = json!("/limited");
        limited["limits"] = json!(["few"]);
        let routes = document["routes"].as_array_mut().unwrap();
        routes.extend([away, limited]);
        routes.retain(|route| route["name"] != "open");
    });
    let told = |answer: &Answer| place.explain(&id(answer, "request_id"), &[]);
    let missing = told(&place.get("/mine", None, &[]));
    assert!(missing.contains("REFUSED 401"), "{missing}");
    assert!(missing.contains("carries no credential"), "{missing}");
    let garbled = place.get("/mine", None, &[("authorization", "Bearer x")]);
    assert!(told(&garbled).contains("(token.malformed)"));
    let nowhere = told(&place.get("/nowhere", None, &[]));
    assert!(nowhere.contains("No route takes GET /nowhere"), "{nowhere}");
    let unreachable = told(&place.get("/mine", Some("alice"), &[]));
    assert!(
        unreachable.contains("ALLOWED, THEN REFUSED 502"),
        "{unreachable}"
    );
    assert!(unreachable.contains("dead (127.0.0.1:1"), "{unreachable}");
    place.get("/limited", Some("alice"), &[]);
    let limited = place.get("/limited", Some("bob"), &[]);
    assert_eq!(limited.status, 403);
}

/// The lines of a program, as they come.
fn lines(child: &mut Child) -> Receiver<String> {
    let out = BufReader::new(child.stdout.take().unwrap());
    let (sender, lines) = mpsc::channel();
    std::thread::spawn(move || {
        for line in out.lines().map_while(Result::ok) {
            if sender.send(line).is_err() {
                return;
            }
        }
    });
    lines
}

const PATIENCE: Duration = Duration::from_secs(20);

fn spawned(folder: &Path, arguments: &[&str]) -> Child {
    Command::new(env!("CARGO_BIN_EXE_portcullis"))
        .args(arguments)
        .current_dir(folder)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap()
}

fn ended(mut child: Child) -> Option<i32> {
    eventually("the command's end", || child.try_wait().unwrap()).code()
}

#[test]
fn tail_follows_what_is_chosen_over_a_restart_and_ends_with_its_reader() {
    // A port of its own that stays the same over the restart.
    let port = TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap();
    let mut place = Place::start(|document| {
        document["admin"]["address"] = json!(port.to_string());
    });
    place.get("/theirs", Some("alice"), &[]);
    let arguments = ["tail", "--decision", "deny", "--format", "json"];
    let mut tail = spawned(place.folder(), &arguments);
    let rows = lines(&mut tail);
    let next = || -> Value { serde_json::from_str(&rows.recv_timeout(PATIENCE).unwrap()).unwrap() };
    assert_eq!(next()["caller"]["subject"], "alice");
    place.get("/mine", Some("alice"), &[]);
    place.get("/theirs", Some("carol"), &[]);
    assert_eq!(next()["caller"]["subject"], "carol");
    // It finds the next process by itself.
    place.program = place.program.again();
    place.ready();
    place.get("/theirs", Some("dave"), &[]);
    assert_eq!(next()["caller"]["subject"], "dave");
    let mut note = String::new();
    drop(rows);
    // Nobody reads any more: further decisions end it, and that is no error.
    let mut errors = tail.stderr.take().unwrap();
    let end = eventually("the command's end", || {
        // One that is read together with the one before is no reason yet.
        place.get("/theirs", Some("erin"), &[]);
        tail.try_wait().unwrap()
    });
    assert_eq!(end.code(), Some(0));
    errors.read_to_string(&mut note).unwrap();
    assert!(note.contains("started anew"), "{note}");
    // For people: aligned, with the condition that failed; plain, for nobody sees colours.
    let output = place.run(&["tail", "--once", "-n", "5", "--status", "403"]);
    let page = text(&output);
    assert!(page.contains("gate.rego:7:2"), "{page}");
    assert!(!page.contains('\u{1b}'), "{page}");
    let files = portcullis(
        place.folder(),
        &[
            "tail",
            "--from",
            "audit.jsonl",
            "--caller",
            "dave",
            "--format",
            "json",
        ],
    );
    assert_eq!(text(&files).lines().count(), 1, "{files:?}");
}

#[test]
fn a_request_with_the_secret_is_followed_stage_by_stage_and_nobody_sees_the_secret() {
    let place = Place::start(|_| {});
    let url = format!("http://{}", place.program.admin);
    let arguments = [
        "trace", "--header", "-n", "2", "--format", "json", "--admin", &url,
    ];
    let mut trace = spawned(place.folder(), &arguments);
    let rows = lines(&mut trace);
    let mut hint = String::new();
    BufReader::new(trace.stderr.take().unwrap())
        .read_line(&mut hint)
        .unwrap();
    let secret = hint
        .trim_end()
        .trim_end_matches('\'')
        .rsplit(' ')
        .next()
        .unwrap()
        .to_owned();
    assert_eq!(secret.len(), 32, "{hint}");
    // Others are not chosen, and a wrong secret is like none.
    place.get("/theirs", Some("alice"), &[]);
    let wrong = place.get("/mine", Some("alice"), &[("x-portcullis-trace", "wrong")]);
    assert_eq!(wrong.status, 200);
    let denied = place.get("/theirs", Some("alice"), &[("x-portcullis-trace", &secret)]);
    let next = || -> Value { serde_json::from_str(&rows.recv_timeout(PATIENCE).unwrap()).unwrap() };
    let first = next();
    assert_eq!(first["request_id"], id(&denied, "request_id"));
    assert_eq!(first["refused_at"], "authorize");
    let stages: Vec<&str> = first["stages"]
        .as_array()
        .unwrap()
        .iter()
        .map(|stage| stage["stage"].as_str().unwrap())
        .collect();
    assert_eq!(
        stages,
        ["read", "route", "screen", "authenticate", "authorize"]
    );
    assert_eq!(first["record"]["decision"], "deny");
    assert_eq!(first["why"]["ways"][0]["failed"]["text"], "is_owner");
    let allowed = place.get("/mine", Some("alice"), &[("X-Portcullis-Trace", &secret)]);
    assert_eq!(allowed.status, 200);
    let second = next();
    assert_eq!(second["refused_at"], Value::Null);
    assert!(
        second["stages"]
            .as_array()
            .unwrap()
            .iter()
            .any(|it| it["stage"] == "forward")
    );
    assert_eq!(ended(trace), Some(0));
    for seen in place._upstream.seen() {
        assert!(seen.header("x-portcullis-trace").is_none());
    }
    let records = fs::read_to_string(place.folder().join("audit.jsonl")).unwrap();
    assert_eq!(records.lines().count(), 4);
    assert!(!records.contains(&secret) && !records.contains("portcullis-trace"));
    let traces = place.program.admin("/traces").text();
    assert!(!traces.contains(&secret), "{traces}");
}

#[test]
fn traces_are_chosen_by_route_or_caller_and_bounded() {
    let world = World::start();
    let gateway = &world.gateway;
    let bad = |wish: Value| gateway.admin_post("/traces", &wish).status;
    assert_eq!(bad(json!({})), 400);
    assert_eq!(bad(json!({"route": "open", "header": true})), 400);
    assert_eq!(bad(json!({"route": "nowhere"})), 404);
    assert_eq!(bad(json!({"route": "open", "count": 101})), 400);
    assert_eq!(bad(json!({"route": "open", "for": "11m"})), 400);
    let armed = |wish: Value| {
        let answer = gateway.admin_post("/traces", &wish);
        assert_eq!(answer.status, 201, "{}", answer.text());
        id(&answer, "id")
    };
    let route = armed(json!({"route": "open", "count": 1}));
    let caller = armed(json!({"caller": "bob", "count": 5}));
    gateway.bearer("/a", &world.token("alice"));
    gateway.bearer("/a", &world.token("bob"));
    let seen = |id: &str| gateway.admin("GET", &format!("/traces/{id}")).json();
    assert_eq!(seen(&route)["requests"].as_array().unwrap().len(), 1);
    assert_eq!(seen(&route)["waits"], false);
    assert_eq!(seen(&caller)["requests"].as_array().unwrap().len(), 1);
    assert_eq!(seen(&caller)["left"], 4);
    assert_eq!(
        gateway.admin("DELETE", &format!("/traces/{caller}")).status,
        200
    );
    gateway.bearer("/a", &world.token("bob"));
    assert_eq!(seen(&caller)["seen"], 1);
    assert_eq!(gateway.admin("GET", "/traces/none").status, 404);
}
