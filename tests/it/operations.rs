//! What operators do: look whether it is ready, collect its traces, reload it, stop it, and read what
//! it says when it does not start.

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::support::client::{Connection, request};
use crate::support::eventually;
use crate::support::gateway::{Builder, World};
use crate::support::issuer::Behaviour;
use crate::support::pki::Authority;
use crate::support::program::{Program, spawn};
use crate::support::upstream::{Next, Upstream};

#[test]
fn a_client_that_hangs_up_with_its_last_byte_leaves_a_record() {
    let gateway = Builder::open(&Upstream::start()).start();
    for round in 0..200 {
        let mut client = TcpStream::connect(gateway.address()).unwrap();
        client
            .write_all(request("GET", &format!("/{round}"), &[]).as_bytes())
            .unwrap();
        client.shutdown(Shutdown::Both).unwrap();
    }
    let records = eventually("200 records", || {
        Some(gateway.records()).filter(|r| r.len() >= 200)
    });
    let ids: BTreeSet<String> = records
        .iter()
        .map(|r| r["request_id"].to_string())
        .collect();
    assert_eq!((records.len(), ids.len()), (200, 200));
}

#[test]
fn a_dead_issuer_whose_keys_are_believed_is_a_warning_and_no_reason_to_leave() {
    let world = World::with(|builder| {
        builder.with(|document| {
            document["issuers"]["main"]["refresh"] = json!({"interval": "1s", "minimum": "1s"});
        })
    });
    world.issuer.behave(Behaviour::Status(500));
    let ready = eventually("the failed fetch", || {
        let answer = world.gateway.admin("GET", "/ready");
        assert_eq!(answer.status, 200, "{}", answer.text());
        Some(answer.json()).filter(|ready| ready["warnings"][0].is_string())
    });
    assert!(
        ready["warnings"][0].as_str().unwrap().contains("stale"),
        "{ready}"
    );
    assert_eq!(ready["reasons"], json!([]));
    assert_eq!(
        world.gateway.bearer("/a", &world.token("alice")).status,
        200
    );
}

#[test]
fn an_upstream_without_any_address_makes_it_unready_and_says_so() {
    let gateway = Builder::open(&Upstream::start())
        .with(|document| {
            document["upstreams"]["lost"] = json!({"endpoints": ["http://nowhere.invalid:80"]});
            document["routes"][1]["upstream"] = json!("lost");
        })
        .start();
    let answer = gateway.admin("GET", "/ready");
    assert_eq!(answer.status, 503);
    let reasons = answer.json()["reasons"].clone();
    assert!(
        reasons[0].as_str().unwrap().starts_with("upstream lost:"),
        "{reasons}"
    );
    let status = gateway.admin("GET", "/status").json();
    assert_eq!(
        status["upstreams"]["lost"],
        json!({"endpoints": 1, "usable": 0})
    );
    assert_eq!(
        status["upstreams"]["main"],
        json!({"endpoints": 1, "usable": 1})
    );
}

#[test]
fn a_refused_reload_tells_file_line_and_column() {
    let mut gateway = Builder::open(&Upstream::start()).start();
    let answer = gateway.reload(|document| document["routes"][0]["upstream"] = json!("nowhere"));
    assert_eq!(answer.status, 422);
    let problem = answer.json()["problems"]
        .as_array()
        .unwrap()
        .iter()
        .find(|problem| problem["severity"] == "error")
        .unwrap()
        .clone();
    assert!(
        problem["file"].as_str().unwrap().ends_with("gateway.yaml"),
        "{problem}"
    );
    assert!(
        problem["line"].is_u64() && problem["column"].is_u64(),
        "{problem}"
    );
    assert_eq!(problem["path"], "routes[0].upstream");
    // What is in force is shown with its defaults.
    let config = gateway.admin("GET", "/config").text();
    for default in [
        "head_timeout: 15s",
        "max_body: 10MiB",
        "when_full: drop",
        "max_connections: 512",
    ] {
        assert!(config.contains(default), "{default} is missing in {config}");
    }
}

/// A collector: takes posts and answers 200; over TLS when it has a configuration for it.
fn collector(
    tls: Option<Arc<rustls::ServerConfig>>,
) -> (SocketAddr, mpsc::Receiver<(String, Value)>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let (sender, posts) = mpsc::channel();
    std::thread::spawn(move || {
        for socket in listener.incoming().flatten() {
            match &tls {
                None => take_post(socket, &sender),
                Some(config) => {
                    let session = rustls::ServerConnection::new(Arc::clone(config)).unwrap();
                    take_post(rustls::StreamOwned::new(session, socket), &sender);
                }
            }
        }
    });
    (address, posts)
}

fn take_post(stream: impl Read + Write, sender: &mpsc::Sender<(String, Value)>) {
    let mut reader = BufReader::new(stream);
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") {
        if reader.read_line(&mut head).unwrap_or(0) == 0 {
            return;
        }
    }
    let lower = head.to_ascii_lowercase();
    let length = lower
        .split("content-length: ")
        .nth(1)
        .unwrap()
        .lines()
        .next()
        .unwrap();
    let mut body = vec![0; length.parse().unwrap()];
    reader.read_exact(&mut body).unwrap();
    let _ = reader
        .get_mut()
        .write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}");
    let _ = reader.get_mut().flush();
    sender
        .send((head, serde_json::from_slice(&body).unwrap()))
        .unwrap();
}

#[test]
fn spans_reach_a_collector_in_the_clear_and_over_tls() {
    let authority = Authority::new("collectors");
    let leaf = authority.server(&["collector.test"]);
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let tls = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(leaf.chain(), leaf.key())
        .unwrap();
    for tls in [None, Some(Arc::new(tls))] {
        let secure = tls.is_some();
        let (address, posts) = collector(tls);
        let builder = Builder::open(&Upstream::start());
        builder.file("ca.pem", &authority.pem);
        let gateway = builder
            .with(|document| {
                let mut tracing =
                    json!({"endpoint": format!("http://{address}"), "sample_ratio": 1.0});
                if secure {
                    tracing["endpoint"] = json!(format!("https://{address}/otlp"));
                    tracing["tls"] =
                        json!({"authorities": ["ca.pem"], "server_name": "collector.test"});
                }
                document["telemetry"] = json!({"tracing": tracing});
            })
            .start();
        let parent = format!("00-{}-{}-01", "a".repeat(32), "b".repeat(16));
        assert_eq!(
            gateway.get("/orders/7", &[("traceparent", &parent)]).status,
            200
        );
        let (head, document) = posts.recv_timeout(Duration::from_secs(10)).expect("a post");
        let path = if secure {
            "/otlp/v1/traces"
        } else {
            "/v1/traces"
        };
        assert!(
            head.starts_with(&format!("POST {path} HTTP/1.1\r\n")),
            "{head}"
        );
        assert!(
            head.to_ascii_lowercase()
                .contains("content-type: application/json"),
            "{head}"
        );
        let span = &document["resourceSpans"][0]["scopeSpans"][0]["spans"][0];
        assert_eq!(span["name"], "GET open");
        assert_eq!(
            (&span["traceId"], &span["parentSpanId"]),
            (&json!("a".repeat(32)), &json!("b".repeat(16)))
        );
        let attributes = span["attributes"].as_array().unwrap();
        for (key, value) in [
            ("http.request.method", json!({"stringValue": "GET"})),
            ("http.response.status_code", json!({"intValue": "200"})),
            ("url.path", json!({"stringValue": "/orders/7"})),
            ("portcullis.route", json!({"stringValue": "open"})),
            ("portcullis.decision", json!({"stringValue": "allow"})),
            ("portcullis.upstream", json!({"stringValue": "main"})),
        ] {
            assert!(
                attributes.contains(&json!({"key": key, "value": value})),
                "{key}: {span}"
            );
        }
        eventually("the count", || {
            let text = gateway.admin("GET", "/metrics").text();
            text.contains("portcullis_spans_exported_total 1\n")
                .then_some(())
        });
    }
}

#[test]
fn a_collector_that_is_not_there_costs_spans_and_no_request() {
    let gone = TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap();
    let gateway = Builder::open(&Upstream::start())
        .with(|document| {
            document["telemetry"] =
                json!({"tracing": {"endpoint": format!("http://{gone}"), "sample_ratio": 1.0}});
        })
        .start();
    for _ in 0..20 {
        assert_eq!(gateway.get("/a", &[]).status, 200);
    }
    eventually("the count", || {
        let text = gateway.admin("GET", "/metrics").text();
        text.contains("portcullis_spans_dropped_total 20\n")
            .then_some(())
    });
}

#[test]
fn terminating_under_load_fails_no_request() {
    let mut program = Program::start(Builder::open(&Upstream::start()));
    let address = program.address;
    let (closed, served) = (AtomicBool::new(false), AtomicUsize::new(0));
    std::thread::scope(|scope| {
        for kept in [true, true, false, false] {
            let (closed, served) = (&closed, &served);
            scope.spawn(move || {
                loop {
                    // A connection that comes after the listener has closed is no request.
                    let Ok(probe) = TcpStream::connect(address) else {
                        break;
                    };
                    probe
                        .set_read_timeout(Some(Duration::from_secs(10)))
                        .unwrap();
                    let mut connection = Connection::Plain(probe);
                    loop {
                        connection.send(request("GET", "/a", &[]));
                        let Some(answer) = connection.answer() else {
                            // In the backlog of a listener that was closed: never accepted.
                            assert!(
                                !kept || closed.load(Ordering::SeqCst),
                                "a request was dropped"
                            );
                            return;
                        };
                        assert_eq!(answer.status, 200);
                        served.fetch_add(1, Ordering::SeqCst);
                        if !kept || answer.header("connection") == Some("close") {
                            break;
                        }
                    }
                }
            });
        }
        eventually("load", || {
            (served.load(Ordering::SeqCst) > 100).then_some(())
        });
        closed.store(true, Ordering::SeqCst);
        program.signal("TERM");
    });
    assert_eq!(program.end().code(), Some(0));
    let file = program.builder.folder.path().join("audit.jsonl");
    let records = std::fs::read_to_string(file).unwrap();
    assert!(records.lines().count() >= served.load(Ordering::SeqCst));
    assert!(
        records
            .lines()
            .all(|line| line.contains("\"outcome\":\"complete\"")),
        "{records}"
    );
}

#[test]
fn terminating_under_load_loses_no_record_and_tears_no_line() {
    let builder = Builder::open(&Upstream::start()).with(|document| {
        document["workers"] = json!(2);
    });
    let mut program = Program::start(builder);
    let address = program.address;
    let answered = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for _ in 0..6 {
            let answered = &answered;
            scope.spawn(move || {
                while let Ok(probe) = TcpStream::connect(address) {
                    let wait = Some(Duration::from_secs(10));
                    probe.set_read_timeout(wait).unwrap();
                    let mut connection = Connection::Plain(probe);
                    loop {
                        connection.send(request("GET", "/a", &[]));
                        let Some(answer) = connection.answer() else {
                            break;
                        };
                        assert_eq!(answer.status, 200);
                        answered.fetch_add(1, Ordering::SeqCst);
                        if answer.header("connection") == Some("close") {
                            break;
                        }
                    }
                }
            });
        }
        eventually("load", || {
            (answered.load(Ordering::SeqCst) > 500).then_some(())
        });
        program.signal("TERM");
    });
    assert_eq!(program.end().code(), Some(0));
    let file = program.builder.folder.path().join("audit.jsonl");
    let records = std::fs::read_to_string(file).unwrap();
    let mut ids = BTreeSet::new();
    for line in records.lines() {
        let record: Value = serde_json::from_str(line).unwrap();
        assert_eq!(record["status"], 200, "{record}");
        assert!(ids.insert(record["request_id"].to_string()), "{record}");
    }
    assert_eq!(ids.len(), answered.load(Ordering::SeqCst));
}

#[test]
fn a_second_signal_ends_at_once_and_tells_by_its_exit_code() {
    let (begun, begins) = mpsc::channel();
    let begun = std::sync::Mutex::new(begun);
    let upstream = Upstream::with(move |_, _| {
        begun.lock().unwrap().send(()).unwrap();
        std::thread::park_timeout(Duration::from_secs(20));
        Next::Close
    });
    let mut program = Program::start(
        Builder::open(&upstream).with(|document| document["drain_timeout"] = json!("20s")),
    );
    let mut slow = Connection::plain(program.address);
    slow.send(request("GET", "/slow", &[]));
    begins.recv_timeout(Duration::from_secs(10)).unwrap();
    program.signal("TERM");
    eventually("draining", || {
        let ready = program.admin("/ready");
        (ready.status == 503 && ready.text().contains("draining")).then_some(())
    });
    let asked = Instant::now();
    program.signal("INT");
    assert_eq!(program.end().code(), Some(1));
    assert!(asked.elapsed() < Duration::from_secs(5));
}

#[test]
fn hanging_up_reloads() {
    let mut program = Program::start(Builder::open(&Upstream::start()));
    let revision = || program.admin("/status").json()["revision"].clone();
    let before = revision();
    let mut document = program.builder.document.clone();
    document["routes"][0]["labels"] = json!({"team": "orders"});
    program.builder.file("gateway.yaml", document.to_string());
    program.signal("HUP");
    eventually("the new revision", || (revision() != before).then_some(()));
    program.signal("TERM");
    assert_eq!(program.end().code(), Some(0));
}

#[test]
fn what_keeps_it_from_starting_is_said_in_one_place_and_in_words() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap();
    let upstream = Upstream::start();
    let fails = |builder: &Builder, arguments: &[&str]| {
        let output = spawn(builder.folder.path(), arguments)
            .wait_with_output()
            .unwrap();
        assert_eq!(output.status.code(), Some(1));
        assert!(
            output.stdout.is_empty(),
            "{}",
            String::from_utf8_lossy(&output.stdout)
        );
        String::from_utf8(output.stderr).unwrap()
    };
    let with = |edit: &dyn Fn(&mut Value)| {
        let builder = Builder::open(&upstream).with(|document| edit(document));
        builder.file("gateway.yaml", builder.document.to_string());
        fails(&builder, &["run"])
    };
    let text =
        with(&|document| document["listeners"]["local"]["address"] = json!(address.to_string()));
    let wanted = format!(
        "error: listener local cannot listen on {address}: another process uses the address"
    );
    assert!(text.contains(&wanted), "{text}");
    let text = with(&|document| document["admin"]["address"] = json!(address.to_string()));
    let wanted = format!("error: the admin listener cannot listen on {address}: another process");
    assert!(text.contains(&wanted), "{text}");
    let text = with(&|document| document["listeners"]["local"]["address"] = json!("192.0.2.1:80"));
    assert!(text.contains("not one of this machine"), "{text}");
    let text = with(&|document| document["audit"]["sink"]["file"] = json!("nowhere/audit.jsonl"));
    assert!(
        text.contains("cannot append to nowhere/audit.jsonl"),
        "{text}"
    );
    // A file that only shows at opening that it cannot be written: nothing is served unrecorded.
    let text = with(&|document| {
        document["audit"]["sink"]["file"] = json!(format!("/proc/{}/new", std::process::id()));
    });
    assert!(
        text.contains("cannot append audit records to /proc/"),
        "{text}"
    );
    let builder = Builder::open(&upstream);
    let text = fails(&builder, &["run", "--config", "nowhere.yaml"]);
    assert!(
        text.contains("cannot read nowhere.yaml") && text.contains("--config FILE"),
        "{text}"
    );
    builder.file("empty.yaml", "");
    let text = fails(&builder, &["run", "--config", "empty.yaml"]);
    assert!(
        text.contains("empty.yaml: error: the file is empty"),
        "{text}"
    );
}

#[test]
fn a_new_admin_token_takes_the_place_of_the_old_one_at_a_reload() {
    let upstream = Upstream::start();
    let builder = Builder::open(&upstream);
    let token = builder.file("admin.token", "the-first-token-of-this-gateway-0123456789");
    let gateway = builder
        .with(|document| document["admin"]["token"] = json!("file:admin.token"))
        .start();
    let address = gateway.process.admin_address().unwrap();
    let status = |method: &str, path: &str, token: &str| {
        let (host, bearer) = (address.to_string(), format!("Bearer {token}"));
        let headers = [
            ("host", host.as_str()),
            ("authorization", bearer.as_str()),
            ("connection", "close"),
        ];
        let mut connection = Connection::plain(address);
        connection.send(request(method, path, &headers));
        connection.answer().unwrap().status
    };
    let (first, second) = (
        "the-first-token-of-this-gateway-0123456789",
        "the-second-token-of-this-gateway-012345678",
    );
    assert_eq!(status("GET", "/config", first), 200);
    assert_eq!(status("GET", "/config", second), 401);
    std::fs::write(token, second).unwrap();
    eventually("the new token", || {
        (status("GET", "/config", second) == 200).then_some(())
    });
    assert_eq!(status("GET", "/config", first), 401);
}
