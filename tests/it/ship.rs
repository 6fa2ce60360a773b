//! Sinks behind the ledger: whatever happens to them or to the gateway, they get every record.

use std::collections::BTreeSet;
use std::fs;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use flate2::read::GzDecoder;
use serde_json::{Value, json};

use crate::support::client::{Answer, Connection, request};
use crate::support::eventually;
use crate::support::gateway::Builder;
use crate::support::pki::ed25519_pem;
use crate::support::program::Program;
use crate::support::upstream::{Next, Seen, Upstream};

/// How a sink behaves.
#[derive(Clone, Debug, PartialEq)]
enum Mood {
    Takes,
    /// 503, with what it wishes for in `Retry-After`.
    Down(Option<u64>),
    /// 413 above so many bytes of JSON.
    AtMost(usize),
    /// 400 when a record of this path is in it.
    Hates(String),
}

/// A server that takes records, and what it took.
struct Collector {
    server: Upstream,
    mood: Arc<Mutex<Mood>>,
    taken: Arc<Mutex<Vec<Value>>>,
    asked: Arc<Mutex<Vec<Instant>>>,
}

impl Collector {
    fn start() -> Self {
        let mood = Arc::new(Mutex::new(Mood::Takes));
        let taken: Arc<Mutex<Vec<Value>>> = Arc::default();
        let asked: Arc<Mutex<Vec<Instant>>> = Arc::default();
        let (moods, records, times) = (Arc::clone(&mood), Arc::clone(&taken), Arc::clone(&asked));
        let server = Upstream::with(move |seen, stream| {
            times.lock().unwrap().push(Instant::now());
            let (status, wish) = judge(seen, &moods.lock().unwrap(), &records);
            let wish = wish.map_or(String::new(), |wish| format!("Retry-After: {wish}\r\n"));
            let answer = format!("HTTP/1.1 {status} X\r\n{wish}Content-Length: 0\r\n\r\n");
            match stream.write_all(answer.as_bytes()) {
                Ok(()) => Next::KeepAlive,
                Err(_) => Next::Close,
            }
        });
        Self {
            server,
            mood,
            taken,
            asked,
        }
    }

    fn turns(&self, mood: Mood) {
        *self.mood.lock().unwrap() = mood;
    }

    fn ids(&self) -> Vec<String> {
        ids(&self.taken.lock().unwrap())
    }
}

fn judge(seen: &Seen, mood: &Mood, taken: &Mutex<Vec<Value>>) -> (u16, Option<u64>) {
    assert_eq!(seen.header("content-type"), Some("application/json"));
    assert_eq!(seen.header("authorization"), Some("Bearer open sesame"));
    assert_eq!(seen.header("content-encoding"), Some("gzip"));
    let mut text = String::new();
    GzDecoder::new(seen.body.as_slice())
        .read_to_string(&mut text)
        .unwrap();
    let records: Vec<Value> = serde_json::from_str(&text).unwrap();
    match mood {
        Mood::Down(wish) => return (503, *wish),
        Mood::AtMost(bytes) if text.len() > *bytes => return (413, None),
        Mood::Hates(path) if records.iter().any(|record| record["path"] == **path) => {
            return (400, None);
        }
        Mood::Takes | Mood::AtMost(_) | Mood::Hates(_) => {}
    }
    taken.lock().unwrap().extend(records);
    (200, None)
}

fn ids(records: &[Value]) -> Vec<String> {
    let id = |record: &Value| record["request_id"].as_str().unwrap().to_owned();
    records.iter().map(id).collect()
}

/// Without what came twice.
fn once(ids: Vec<String>) -> Vec<String> {
    let mut known = BTreeSet::new();
    ids.into_iter()
        .filter(|id| known.insert(id.clone()))
        .collect()
}

fn builder(upstream: &Upstream, collector: &Collector) -> Builder {
    let builder = Builder::open(upstream).with(|document| {
        document["workers"] = json!(2);
        document["audit"]["sink"] = json!({"ledger": {
            "folder": "records",
            "key": "audit-key.pem",
            "seal_every": "100ms",
            "segment": "64KiB",
        }});
        document["audit"]["ship"] = json!({"siem": {
            "to": {"http": {
                "url": format!("{}/logs", collector.server.url()),
                "token": "file:token",
                "timeout": "5s",
            }},
            "batch": {"wait": "20ms", "records": 200},
            "retry": {"min_delay": "20ms", "max_delay": "200ms"},
        }});
    });
    builder.file("audit-key.pem", ed25519_pem());
    builder.file("token", "open sesame\n");
    builder
}

fn verify(folder: &Path, records: &Path) -> Output {
    Command::new(env!("CARGO_BIN_EXE_portcullis"))
        .args(["audit", "verify"])
        .arg(records)
        .args(["--key", "audit-key.pem", "--format", "json"])
        .current_dir(folder)
        .output()
        .unwrap()
}

/// The report of a ledger that nobody changed.
#[track_caller]
fn sound(program: &Program) -> Value {
    let output = verify(program.builder.folder.path(), Path::new("records"));
    assert!(output.status.success(), "{output:?}");
    serde_json::from_slice(&output.stdout).unwrap()
}

/// The ids of the records that are in a ledger, in their order.
fn held(folder: &Path) -> Vec<String> {
    let Ok(files) = fs::read_dir(folder) else {
        return Vec::new();
    };
    let mut segments: Vec<PathBuf> = files
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|e| e == "jsonl"))
        .collect();
    segments.sort();
    let text: String = segments
        .iter()
        .map(|path| fs::read_to_string(path).unwrap())
        .collect();
    let whole = text.rfind('\n').map_or("", |end| &text[..=end]);
    let records: Vec<Value> = whole
        .lines()
        .filter(|line| line.starts_with("{\"version\":"))
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    ids(&records)
}

fn ledger(program: &Program) -> PathBuf {
    program.builder.folder.path().join("records")
}

fn ask(program: &Program, path: &str, times: usize) {
    let mut connection = Connection::plain(program.address);
    for _ in 0..times {
        connection.send(request("GET", path, &[]));
        assert_eq!(connection.answer().unwrap().status, 200);
    }
}

/// On a connection of its own: one that was turned away is closed.
fn get(program: &Program, path: &str) -> Answer {
    let mut connection = Connection::plain(program.address);
    connection.send(request("GET", path, &[]));
    connection.answer().unwrap()
}

fn status(program: &Program) -> Value {
    program.admin("/status").json()["audit"]["ship"]["siem"].clone()
}

#[test]
fn a_sink_that_was_down_gets_every_record_in_order_and_operators_see_that_it_is() {
    let (upstream, collector) = (Upstream::start(), Collector::start());
    collector.turns(Mood::Down(None));
    let program = Program::start(builder(&upstream, &collector));
    ask(&program, "/a", 500);
    eventually("the sink to be seen behind", || {
        let status = status(&program);
        (status["behind_records"] == 500 && status["failures"].as_u64() > Some(1)).then_some(())
    });
    let ready = program.admin("/ready");
    assert_eq!(ready.status, 200);
    let said = ready.text();
    assert!(
        said.contains("audit: sink siem is 500 records and ")
            && said.contains("the server answered with status 503"),
        "{said}"
    );
    let metrics = program.admin("/metrics").text();
    assert!(
        metrics.contains("portcullis_audit_ship_behind_records{sink=\"siem\"} 500"),
        "{metrics}"
    );
    collector.turns(Mood::Takes);
    eventually("every record", || {
        (collector.ids().len() == 500).then_some(())
    });
    assert_eq!(collector.ids(), held(&ledger(&program)));
    eventually("no warning any more", || {
        (!program.admin("/ready").text().contains("siem")).then_some(())
    });
    let metrics = program.admin("/metrics").text();
    for line in [
        "portcullis_audit_ship_records_total{sink=\"siem\"} 500",
        "portcullis_audit_ship_behind_records{sink=\"siem\"} 0",
        "portcullis_audit_ship_failures_total{sink=\"siem\",reason=\"status\"} ",
    ] {
        assert!(metrics.contains(line), "{line}\n{metrics}");
    }
}

#[test]
fn decisions_go_out_as_events_of_opas_log_and_nothing_else_does() {
    let (upstream, collector) = (Upstream::start(), Collector::start());
    let program = Program::start(
        builder(&upstream, &collector)
            .policy("package gate\n\nallow if input.request.path == \"/a\"\n")
            .with(|document| {
                document["policies"] =
                    json!({"gate": {"files": ["gate.rego"], "entrypoint": "data.gate.allow"}});
                document["routes"][0]["policy"] = json!("gate");
                document["audit"]["ship"]["siem"]["format"] = json!("opa");
                // One worker's records come in the order of its requests.
                document["workers"] = json!(1);
            }),
    );
    for path in ["/a", "/", "/b", "/a", "/"] {
        get(&program, path);
    }
    eventually("all events", || {
        (status(&program)["shipped"] == 5).then_some(())
    });
    let events = collector.taken.lock().unwrap().clone();
    let shown: Vec<_> = events
        .iter()
        .map(|event| {
            (
                &event["path"],
                &event["input"]["request"]["path"],
                &event["result"],
            )
        })
        .collect();
    assert_eq!(
        serde_json::to_value(shown).unwrap(),
        // An undefined answer has no result.
        json!([
            ["gate/allow", "/a", true],
            ["gate/allow", "/b", null],
            ["gate/allow", "/a", true],
        ])
    );
    for event in &events {
        for member in ["decision_id", "timestamp", "labels", "revision"] {
            assert!(!event[member].is_null(), "{member}: {event}");
        }
    }
}

#[test]
fn a_server_that_wants_to_wait_is_given_its_time() {
    let (upstream, collector) = (Upstream::start(), Collector::start());
    collector.turns(Mood::Down(Some(1)));
    let builder = builder(&upstream, &collector).with(|document| {
        document["audit"]["ship"]["siem"]["retry"]["max_delay"] = json!("5s");
    });
    let program = Program::start(builder);
    ask(&program, "/a", 10);
    eventually("three tries", || {
        (collector.asked.lock().unwrap().len() >= 3).then_some(())
    });
    let asked = collector.asked.lock().unwrap().clone();
    for pair in asked.windows(2) {
        assert!(pair[1] - pair[0] >= Duration::from_secs(1), "{asked:?}");
    }
    drop(program);
}

#[test]
fn a_server_that_takes_little_at_once_gets_it_in_parts() {
    let (upstream, collector) = (Upstream::start(), Collector::start());
    collector.turns(Mood::Down(None));
    let program = Program::start(builder(&upstream, &collector));
    ask(&program, "/a", 300);
    collector.turns(Mood::AtMost(16_000));
    eventually("every record", || {
        (collector.ids().len() >= 300).then_some(())
    });
    assert_eq!(collector.ids(), held(&ledger(&program)));
    assert_eq!(status(&program)["lost"], 0);
}

#[test]
fn a_record_that_is_never_taken_is_given_up_alone_counted_and_named() {
    let (upstream, collector) = (Upstream::start(), Collector::start());
    collector.turns(Mood::Down(None));
    // One worker: among several the order is not that of the requests.
    let one = |document: &mut Value| document["workers"] = json!(1);
    let mut program = Program::start(builder(&upstream, &collector).with(one));
    ask(&program, "/a", 30);
    ask(&program, "/poison", 2);
    ask(&program, "/a", 30);
    eventually("all records", || {
        (held(&ledger(&program)).len() == 62).then_some(())
    });
    let all = held(&ledger(&program));
    collector.turns(Mood::Hates("/poison".to_owned()));
    eventually("all but two", || {
        (status(&program)["behind_records"] == 0).then_some(())
    });
    let expected: Vec<String> = [&all[..30], &all[32..]].concat();
    assert_eq!(once(collector.ids()), expected);
    assert_eq!(status(&program)["lost"], 2);
    let metrics = program.admin("/metrics").text();
    assert!(
        metrics.contains("portcullis_audit_ship_lost_total{sink=\"siem\",reason=\"refused\"} 2"),
        "{metrics}"
    );
    program.signal("TERM");
    program.end();
    let report = sound(&program);
    assert_eq!(report["undelivered"], json!({"siem": 2}), "{report}");
}

#[test]
fn a_sink_that_refuses_everything_costs_no_record() {
    let (upstream, collector) = (Upstream::start(), Collector::start());
    // All records are of this path, so every one is refused.
    collector.turns(Mood::Hates("/a".to_owned()));
    let program = Program::start(builder(&upstream, &collector));
    ask(&program, "/a", 40);
    eventually("a few failures", || {
        (status(&program)["failures"].as_u64() > Some(2)).then_some(())
    });
    assert_eq!(status(&program)["lost"], 0);
    collector.turns(Mood::Takes);
    eventually("every record", || {
        (collector.ids().len() >= 40).then_some(())
    });
    assert_eq!(collector.ids(), held(&ledger(&program)));
}

#[test]
fn an_orderly_end_ships_what_is_left_and_a_reload_that_changes_the_sink_goes_on() {
    let (upstream, collector) = (Upstream::start(), Collector::start());
    let other = Collector::start();
    let mut program = Program::start(builder(&upstream, &collector).with(|document| {
        // Nothing goes before its time, so that there is something left.
        document["audit"]["ship"]["siem"]["batch"]["wait"] = json!("60s");
    }));
    ask(&program, "/a", 50);
    eventually("50 records", || {
        (held(&ledger(&program)).len() == 50).then_some(())
    });
    program.signal("TERM");
    assert_eq!(program.end().code(), Some(0));
    assert_eq!(collector.ids(), held(&ledger(&program)));
    // The same in the ledger, another server from now on.
    let mut program = program.again();
    let mut document = program.builder.document.clone();
    document["audit"]["ship"]["siem"]["to"]["http"]["url"] = json!(other.server.url());
    document["audit"]["ship"]["siem"]["batch"]["wait"] = json!("10ms");
    let config = serde_json::to_string_pretty(&document).unwrap();
    program.builder.file("gateway.yaml", config);
    program.signal("HUP");
    ask(&program, "/a", 10);
    eventually("the other server", || {
        ask(&program, "/a", 1);
        (!other.ids().is_empty()).then_some(())
    });
    program.signal("TERM");
    assert_eq!(program.end().code(), Some(0));
    let all = [collector.ids(), other.ids()].concat();
    assert_eq!(all, held(&ledger(&program)));
}

#[test]
fn killed_at_any_moment_under_load_no_record_of_the_ledger_is_missing_at_the_sink() {
    let (upstream, collector) = (Upstream::start(), Collector::start());
    let mut program = Program::start(builder(&upstream, &collector));
    for round in 0_u64..6 {
        let (address, stop) = (program.address, Arc::new(AtomicBool::new(false)));
        let clients: Vec<_> = (0..4)
            .map(|_| {
                let stop = Arc::clone(&stop);
                std::thread::spawn(move || {
                    let mut connection = Connection::plain(address);
                    while !stop.load(Ordering::Relaxed) {
                        connection.send(request("GET", "/a", &[]));
                        if connection.answer().is_none() {
                            return;
                        }
                    }
                })
            })
            .collect();
        let before = held(&ledger(&program)).len();
        eventually("some records", || {
            (held(&ledger(&program)).len() > before + 200).then_some(())
        });
        // At a moment that nothing here determines.
        std::thread::park_timeout(Duration::from_millis(7 * round));
        program.signal("KILL");
        stop.store(true, Ordering::Relaxed);
        clients
            .into_iter()
            .for_each(|client| client.join().unwrap());
        program = program.again();
    }
    program.signal("TERM");
    assert_eq!(program.end().code(), Some(0));
    let report = sound(&program);
    let all = held(&ledger(&program));
    assert_eq!(report["last"], all.len());
    assert_eq!(once(collector.ids()), all);
}

/// The program with a file system of its own for its records, so small that it is soon full.
fn confined(builder: &Builder, size: &str) -> Option<Command> {
    let allowed = Command::new("unshare")
        .args([
            "--user",
            "--map-root-user",
            "--mount",
            "mount",
            "-t",
            "tmpfs",
        ])
        .args(["none", "/mnt"])
        .stderr(Stdio::null())
        .status()
        .is_ok_and(|status| status.success());
    if !allowed {
        assert!(
            std::env::var("CI").as_deref() != Ok("true"),
            "there are no mount namespaces here"
        );
        eprintln!("skipped: there are no mount namespaces here (`unshare`, `mount`)");
        return None;
    }
    fs::create_dir_all(builder.folder.path().join("records")).unwrap();
    let mut command = Command::new("unshare");
    command
        .args(["--user", "--map-root-user", "--mount", "sh", "-c"])
        .arg(format!(
            "mount -t tmpfs -o size={size},mode=755 none records && exec \"$0\" run"
        ))
        .arg(env!("CARGO_BIN_EXE_portcullis"));
    Some(command)
}

#[test]
fn a_full_disk_keeps_records_in_memory_then_turns_requests_away_and_loses_none() {
    let (upstream, collector) = (Upstream::start(), Collector::start());
    let builder = builder(&upstream, &collector).with(|document| {
        document["audit"]["queue"] = json!(64);
        document["audit"]["when_full"] = json!("spill");
        // `/` may go on without a record.
        document["routes"][1]["record"] = json!("drop");
    });
    let Some(command) = confined(&builder, "512k") else {
        return;
    };
    let program = Program::by(builder, command);
    // Its own view of the files.
    let records = PathBuf::from(format!("/proc/{}/root", program.child.id()))
        .join(ledger(&program).strip_prefix("/").unwrap());
    let filler = records.join("filler");
    let mut file = fs::File::create(&filler).unwrap();
    while file.write_all(&[b'x'; 4096]).is_ok() {}
    drop(file);
    let mut served = 0;
    let refused = eventually("a request that is turned away", || {
        let answer = get(&program, "/a");
        served += usize::from(answer.status == 200);
        (answer.status == 503).then_some(answer)
    });
    assert_eq!(refused.code(), "overloaded");
    assert_eq!(get(&program, "/").status, 200);
    assert_eq!(program.admin("/ready").status, 503);
    // There is room again.
    fs::remove_file(&filler).unwrap();
    eventually("room", || {
        let answer = get(&program, "/a");
        served += usize::from(answer.status == 200);
        (answer.status == 200).then_some(())
    });
    eventually("every record at the sink", || {
        let taken = collector.taken.lock().unwrap();
        let of = |record: &&Value| record["path"] == "/a" && record["status"] == 200;
        (taken.iter().filter(of).count() == served).then_some(())
    });
    assert_eq!(collector.ids(), held(&records));
    // The request on `/` and those that were turned away left no record, and the ledger says so, under
    // its signatures.
    eventually("the number of what is lost", || {
        let output = verify(program.builder.folder.path(), &records);
        assert!(output.status.success(), "{output:?}");
        let report: Value = serde_json::from_slice(&output.stdout).unwrap();
        (report["lost"].as_u64() >= Some(2)).then_some(())
    });
}

#[test]
fn a_share_of_a_routes_records_is_kept_and_the_ledger_says_how_many_are_not() {
    let (upstream, collector) = (Upstream::start(), Collector::start());
    let mut program = Program::start(builder(&upstream, &collector).with(|document| {
        document["routes"][0]["record"] = json!({"sample": {"allow": "10%"}});
    }));
    ask(&program, "/a", 1000);
    ask(&program, "/", 20);
    eventually("what is kept", || {
        (held(&ledger(&program)).len() >= 20).then_some(())
    });
    program.signal("TERM");
    assert_eq!(program.end().code(), Some(0));
    let report = sound(&program);
    let kept = report["last"].as_u64().unwrap();
    assert!((60..220).contains(&kept), "{kept}");
    assert_eq!(report["sampled"], json!({"open": 1020 - kept}), "{report}");
}

#[test]
fn with_block_a_request_waits_for_room_and_is_turned_away_when_there_is_none_in_time() {
    let (upstream, collector) = (Upstream::start(), Collector::start());
    // A sink that nobody reads: a pipe.
    let builder = builder(&upstream, &collector).with(|document| {
        let audit = &mut document["audit"];
        audit.as_object_mut().unwrap().remove("ship");
        audit["sink"] = json!({"file": "pipe"});
        audit["queue"] = json!(16);
        audit["when_full"] = json!("block");
        audit["patience"] = json!("300ms");
        document["workers"] = json!(1);
    });
    let pipe = builder.folder.path().join("pipe");
    assert!(
        Command::new("mkfifo")
            .arg(&pipe)
            .status()
            .unwrap()
            .success()
    );
    let mut reader = fs::OpenOptions::new()
        .read(true)
        .write(true)
        .open(&pipe)
        .unwrap();
    let program = Program::start(builder);
    let mut served = 0_usize;
    let waited = eventually("a request that is turned away", || {
        let begun = Instant::now();
        let answer = get(&program, "/a");
        served += usize::from(answer.status == 200);
        (answer.status == 503).then(|| begun.elapsed())
    });
    assert!(waited >= Duration::from_millis(300), "{waited:?}");
    // One that waits goes on as soon as there is room.
    let mut connection = Connection::plain(program.address);
    connection.send(request("GET", "/a", &[]));
    let emptied = std::thread::spawn(move || {
        let mut lines = 0;
        let mut part = [0; 4096];
        while lines < served {
            let read = reader.read(&mut part).unwrap();
            lines += part[..read].iter().filter(|&&b| b == b'\n').count();
        }
        reader
    });
    assert_eq!(connection.answer().unwrap().status, 200);
    drop(emptied.join().unwrap());
}

#[test]
fn shipping_without_a_ledger_is_refused_with_the_way_out() {
    let (upstream, collector) = (Upstream::start(), Collector::start());
    let builder = builder(&upstream, &collector).with(|document| {
        document["audit"]["sink"] = json!("stdout");
        document["routes"][0]["record"] = json!("spill");
    });
    let config = serde_json::to_string_pretty(&builder.document).unwrap();
    builder.file("gateway.yaml", config);
    let output = Command::new(env!("CARGO_BIN_EXE_portcullis"))
        .arg("check")
        .current_dir(builder.folder.path())
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(1));
    let said = String::from_utf8([output.stdout, output.stderr].concat()).unwrap();
    for part in [
        "records are shipped from a ledger, and there is none",
        "sink: { ledger: { folder: audit } }",
        "`spill` keeps records on the disk, in a ledger, and there is none",
    ] {
        assert!(said.contains(part), "{said}");
    }
}
