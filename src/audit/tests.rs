//! What records promise: exactly one per request, whatever happens, with nothing secret in it.

use std::io;
use std::path::Path;
use std::pin::Pin;
use std::sync::Mutex;
use std::task::{Context, Poll};
use std::time::{Instant, SystemTime};

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body::Frame;
use http_body_util::BodyExt;
use serde_json::{Value, json};

use super::*;
use crate::authn::{Caller, Failure};
use crate::authz::{DecidedBy, Denial, Gave, PolicyConfig, Reason, RouteFacts, Ruling};
use crate::body::{self, Body};
use crate::metrics::RouteCounts;
use crate::refusal::Refusal;
use crate::request::{ConnInfo, InboundRequest, RequestId, Rules, TlsInfo};
use crate::telemetry::Tracing;
use crate::upstream::Trail;

const PATIENCE: Duration = Duration::from_secs(20);

/// A sink that tests read, and whose health they control.
#[derive(Clone, Default)]
struct Memory(Arc<Mutex<Held>>);

#[derive(Default)]
struct Held {
    bytes: Vec<u8>,
    /// The writer waits for this lock, so holding it stalls the sink.
    room: Option<usize>,
}

impl AuditSink for Memory {
    fn write(&mut self, lines: &[u8]) -> io::Result<usize> {
        let mut held = self.0.lock().unwrap();
        let most = held.room.unwrap_or(usize::MAX).min(lines.len());
        if most == 0 {
            return Err(io::ErrorKind::StorageFull.into());
        }
        held.room = held.room.map(|room| room - most);
        held.bytes.extend_from_slice(&lines[..most]);
        Ok(most)
    }
}

impl Memory {
    fn lines(&self) -> Vec<Value> {
        let held = self.0.lock().unwrap();
        let text = std::str::from_utf8(&held.bytes).unwrap();
        assert!(text.is_empty() || text.ends_with('\n'));
        text.lines()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect()
    }
}

struct Bench {
    audit: Arc<Audit>,
    tracing: Arc<Tracing>,
    sink: Memory,
    metrics: Arc<Metrics>,
}

impl Bench {
    fn new(change: impl FnOnce(&mut AuditConfig)) -> Self {
        let mut config = AuditConfig::default();
        change(&mut config);
        let (sink, metrics) = (Memory::default(), Arc::new(Metrics::default()));
        let audit = Audit::to_sink(Box::new(sink.clone()), config, Arc::clone(&metrics)).unwrap();
        Self {
            audit: Arc::new(audit),
            tracing: Arc::default(),
            sink,
            metrics,
        }
    }

    fn open(&self, head: &Request<()>) -> Record {
        Record::open(
            &self.audit,
            &self.tracing,
            &self.metrics,
            &RequestId::random(),
            &conn(),
            head,
            SystemTime::UNIX_EPOCH + Duration::from_millis(1_795_224_725_042),
        )
    }

    fn written(&self) -> Vec<Value> {
        assert!(self.audit.close(PATIENCE), "the queue was not emptied");
        self.sink.lines()
    }

    fn only(&self) -> Value {
        let mut lines = self.written();
        assert_eq!(lines.len(), 1, "{lines:?}");
        lines.remove(0)
    }
}

fn conn() -> Arc<ConnInfo> {
    Arc::new(ConnInfo {
        listener: "public".into(),
        peer: "192.0.2.1:4711".parse().unwrap(),
        local: "127.0.0.1:8443".parse().unwrap(),
        tls: Some(TlsInfo {
            version: "TLSv1.3",
            server_name: Some("api.example.test".into()),
            peer_certificate: None,
            ..TlsInfo::default()
        }),
        ambiguous_head: None,
        forwarded: Default::default(),
    })
}

fn head(uri: &str, headers: &[(&str, &str)]) -> Request<()> {
    let mut builder = Request::builder()
        .uri(uri)
        .header("host", "api.example.test");
    for (name, value) in headers {
        builder = builder.header(*name, *value);
    }
    builder.body(()).unwrap()
}

fn parsed(head: &Request<()>) -> InboundRequest {
    let mut again = Request::builder().uri(head.uri()).method(head.method());
    again.headers_mut().unwrap().clone_from(head.headers());
    let at = SystemTime::UNIX_EPOCH;
    let rules = Rules::default();
    let again = again.body(()).unwrap();
    InboundRequest::parse(&conn(), RequestId::random(), again, at, &rules)
        .unwrap()
        .0
}

fn denial() -> Denial {
    Denial {
        reason: Reason::Policy("orders.not_owner".into()),
        status: None,
        message: None,
        headers: Vec::new(),
        step_up: None,
        decided_by: DecidedBy::new("orders", "r1"),
        body: None,
        metadata: None,
        detail: None,
        ruling: Ruling {
            answer: Some(Gave::Text {
                text: r#"{"allow":false,"reason":"orders.not_owner"}"#.into(),
                masked: None,
            }),
            cached: true,
            took: None,
        },
    }
}

/// A body of these pieces; an `Err` breaks it off.
fn pieces(pieces: Vec<Result<&'static str, &'static str>>) -> Body {
    Body::stream(Pieces(pieces.into_iter()))
}

struct Pieces(std::vec::IntoIter<Result<&'static str, &'static str>>);

impl http_body::Body for Pieces {
    type Data = Bytes;
    type Error = body::BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, body::BodyError>>> {
        Poll::Ready(self.0.next().map(|piece| match piece {
            Ok(text) => Ok(Frame::data(Bytes::from_static(text.as_bytes()))),
            Err(text) => Err(text.into()),
        }))
    }
}

#[tokio::test]
async fn a_record_has_exactly_the_documented_members() {
    let bench = Bench::new(|_| {});
    let head = head("/orders/42?token=s3cret&page", &[("user-agent", "curl/8")]);
    let mut record = bench.open(&head);
    record.request(&parsed(&head));
    let counts = RouteCounts::new(&bench.metrics, &"read-order".into());
    record.route("read-order", &counts, RecordConfig::default());
    record.caller(&Caller::Anonymous);
    record.denied(&denial());
    let decision_id = record.decision_id();
    record.upstream("orders");
    record.forwarded(&Trail {
        endpoint: Some("127.0.0.1:9500".into()),
        attempts: 2,
    });
    record.refused(&denial().into());
    let inbound = record.received(body::full("12345"));
    inbound.collect().await.unwrap();
    let mut response = Response::new(body::full("no"));
    *response.status_mut() = StatusCode::FORBIDDEN;
    let response = record.follow(response);
    response.into_body().collect().await.unwrap();

    let mut line = bench.only();
    for (member, value) in line["duration_ms"].as_object_mut().unwrap() {
        if member == "policy" {
            continue;
        }
        assert!(value.as_f64().unwrap() >= 0.0, "{member}");
        *value = json!(0);
    }
    assert_eq!(line["decision_id"], decision_id.as_str());
    let request_id = line["request_id"].clone();
    assert_eq!(
        line,
        json!({
            "version": 2,
            "time": "2026-11-21T01:32:05.042Z",
            "received_at_ns": 1_795_224_725_042_000_000_u64,
            "request_id": request_id,
            "decision_id": decision_id.as_str(),
            "trace_id": null,
            "span_id": null,
            "listener": "public",
            "client": "192.0.2.1",
            "peer": "192.0.2.1:4711",
            "tls": {
                "version": "TLSv1.3",
                "server_name": "api.example.test",
                "certificate_sha256": null,
            },
            "method": "GET",
            "host": "api.example.test",
            "path": "/orders/42",
            "query": "token=*&*",
            "protocol": "HTTP/1.1",
            "user_agent": "curl/8",
            "route": "read-order",
            "caller": {
                "method": "anonymous",
                "issuer": null,
                "subject": null,
                "client": null,
                "token_id": null,
            },
            "policy": { "name": "orders", "revision": "r1", "entrypoint": null, "data": null,
                "candidate": null,
                "cached": true },
            "decision": "deny",
            "reason": "orders.not_owner",
            "refusal": { "code": "denied", "detail": "denied: orders.not_owner" },
            "status": 403,
            "upstream": "orders",
            "endpoint": "127.0.0.1:9500",
            "attempts": 2,
            "bytes_in": 5,
            "bytes_out": 2,
            "duration_ms": { "decision": 0, "policy": null, "head": 0, "total": 0 },
            "outcome": "complete",
            "detail": null,
            "answer": { "allow": false, "reason": "orders.not_owner" },
            "input": null,
        })
    );
}

#[tokio::test]
async fn no_credential_and_no_query_value_is_ever_written() {
    let bench = Bench::new(|_| {});
    let token = "eyJhbGciOiJSUzI1NiJ9.eyJzdWIiOiJhIn0.SIGNATUREPART";
    let head = head(
        "/a?access_token=SIGNATUREPART&SIGNATUREPART",
        &[
            ("authorization", &format!("Bearer {token}")),
            ("cookie", "session=SIGNATUREPART"),
            ("x-api-key", "SIGNATUREPART"),
        ],
    );
    let mut record = bench.open(&head);
    drop(bench.open(&head));
    record.request(&parsed(&head));
    record.refused(&Refusal::Unauthenticated {
        failure: Failure::Rejected {
            code: "token.signature",
            reason: "the signature does not fit".into(),
            issuer: None,
        },
        bearer: true,
    });
    drop(record.follow(Response::new(body::empty())));
    assert_eq!(bench.written().len(), 2);
    let held = bench.sink.0.lock().unwrap();
    let text = String::from_utf8(held.bytes.clone()).unwrap();
    assert!(
        !text.contains("SIGNATUREPART") && !text.contains("eyJ"),
        "{text}"
    );
    assert!(bench.metrics.encode().contains("code=\"token.signature\""));
}

#[tokio::test]
async fn queries_are_kept_as_configured() {
    for (mode, kept) in [
        (QueryMode::Keys, json!("a=*")),
        (QueryMode::Full, json!("a=1")),
        (QueryMode::None, Value::Null),
    ] {
        let bench = Bench::new(|config| config.query = mode);
        let head = head("/?a=1", &[]);
        let mut record = bench.open(&head);
        record.request(&parsed(&head));
        drop(record);
        drop(bench.open(&head));
        for line in bench.written() {
            assert_eq!(line["query"], kept);
        }
    }
}

#[test]
fn a_record_that_nobody_finishes_writes_itself_once() {
    let bench = Bench::new(|_| {});
    drop(bench.open(&head("/gone", &[])));
    let line = bench.only();
    assert_eq!(line["outcome"], "client_gone");
    assert_eq!(line["status"], Value::Null);
    assert_eq!(line["path"], "/gone");
}

#[test]
fn a_panic_leaves_one_record() {
    let bench = Bench::new(|_| {});
    let record = bench.open(&head("/", &[]));
    let panicked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        let _record = record;
        panic!("on purpose");
    }));
    assert!(panicked.is_err());
    assert_eq!(bench.only()["outcome"], "panic");
}

#[tokio::test]
async fn the_outcome_tells_complete_broken_and_abandoned_bodies_apart() {
    let check = async |response: Response<Body>, read: Option<usize>, method: &str| {
        let bench = Bench::new(|_| {});
        let mut head = head("/", &[]);
        *head.method_mut() = method.parse().unwrap();
        let mut body = bench.open(&head).follow(response).into_body();
        for _ in 0..read.unwrap_or(usize::MAX) {
            if body.frame().await.is_none() {
                break;
            }
        }
        drop(body);
        let line = bench.only();
        (
            line["outcome"].as_str().unwrap().to_owned(),
            line["bytes_out"].as_u64().unwrap(),
        )
    };
    let streamed = || Response::new(pieces(vec![Ok("ab"), Ok("cde")]));
    let is = |outcome: &str, bytes| (outcome.to_owned(), bytes);
    assert_eq!(check(streamed(), None, "GET").await, is("complete", 5));
    assert_eq!(
        check(streamed(), Some(1), "GET").await,
        is("client_gone", 2)
    );
    assert_eq!(
        check(streamed(), Some(0), "GET").await,
        is("client_gone", 0)
    );
    assert_eq!(check(streamed(), Some(0), "HEAD").await, is("complete", 0));
    let broken = Response::new(pieces(vec![Ok("ab"), Err("reset")]));
    assert_eq!(check(broken, Some(2), "GET").await, is("upstream_broke", 2));
    // A connection that was told the length stops asking at the last byte, or never begins.
    let whole = || Response::new(body::full("abc"));
    assert_eq!(check(whole(), Some(1), "GET").await, is("complete", 3));
    let empty = || Response::new(body::empty());
    assert_eq!(check(empty(), Some(0), "GET").await, is("complete", 0));
    let mut unchanged = streamed();
    *unchanged.status_mut() = StatusCode::NOT_MODIFIED;
    assert_eq!(check(unchanged, Some(0), "GET").await, is("complete", 0));
}

#[test]
fn long_texts_are_bounded() {
    let bench = Bench::new(|_| {});
    let long = "a".repeat(10_000);
    let head = head(&format!("/{long}?{long}={long}"), &[("user-agent", &long)]);
    let mut record = bench.open(&head);
    record.request(&parsed(&head));
    let mut denial = denial();
    denial.reason = Reason::Policy(long.clone());
    denial.detail = Some(long);
    record.denied(&denial);
    record.refused(&denial.into());
    drop(record);
    let text = bench.only().to_string();
    assert!(text.len() < 8 * 1024, "{}", text.len());
    assert!(text.contains("[+7953 bytes]"), "{text}");
}

#[test]
fn a_full_queue_drops_and_counts_and_never_waits() {
    let bench = Bench::new(|config| config.queue = 16);
    let stalled = bench.sink.0.lock().unwrap();
    let began = Instant::now();
    for _ in 0..50 {
        drop(bench.open(&head("/", &[])));
    }
    assert!(began.elapsed() < PATIENCE);
    assert!(bench.audit.accepting(), "dropping is what was asked for");
    drop(stalled);
    assert_eq!(bench.written().len(), 16);
    let text = bench.metrics.encode();
    assert!(
        text.contains("portcullis_audit_records_dropped_total 34\n"),
        "{text}"
    );
    assert!(text.contains("portcullis_audit_records_written_total 16\n"));
}

#[test]
fn with_refuse_no_request_begins_that_could_not_be_recorded() {
    let bench = Bench::new(|config| {
        config.queue = 16;
        config.when_full = WhenFull::Refuse;
    });
    let open: Vec<Record> = (0..16).map(|_| bench.open(&head("/", &[]))).collect();
    assert!(open.iter().all(Record::has_room));
    assert!(!bench.audit.accepting());
    let late = bench.open(&head("/late", &[]));
    assert!(!late.has_room());
    drop(late);
    drop(open);
    assert_eq!(
        bench.written().len(),
        16,
        "every request that began is recorded"
    );
    assert!(bench.audit.accepting());
}

#[test]
fn a_sink_that_fails_is_tried_again_and_lines_stay_whole() {
    let bench = Bench::new(|_| {});
    bench.sink.0.lock().unwrap().room = Some(700);
    for _ in 0..3 {
        drop(bench.open(&head("/", &[])));
    }
    let until = Instant::now() + PATIENCE;
    while bench
        .metrics
        .encode()
        .contains("portcullis_audit_sink_errors_total 0\n")
    {
        assert!(Instant::now() < until, "the failure was not counted");
        std::thread::yield_now();
    }
    bench.sink.0.lock().unwrap().room = None;
    assert_eq!(bench.written().len(), 3);
}

#[test]
fn a_file_is_appended_to_and_opened_anew_after_rotation() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("audit.jsonl");
    std::fs::write(&path, "earlier\n").unwrap();
    let config = AuditConfig {
        sink: SinkConfig::File(path.clone()),
        ..AuditConfig::default()
    };
    let mut cx = Compile::new(Path::new("gateway.yaml"), Arc::default());
    let audit = config.compile(None, &mut cx).unwrap();
    assert!(
        cx.finish().1.is_empty(),
        "the reloader must not watch what we write"
    );
    let bench = Bench {
        metrics: Arc::clone(&audit.metrics),
        audit,
        tracing: Arc::default(),
        sink: Memory::default(),
    };
    let write = |uri: &str| {
        drop(bench.open(&head(uri, &[])));
        assert!(bench.audit.close(PATIENCE));
    };
    let read = |path: &Path| std::fs::read_to_string(path).unwrap_or_default();
    write("/one");
    assert!(read(&path).starts_with("earlier\n{"));
    assert!(read(&path).contains("/one"));

    let rotated = folder.path().join("audit.jsonl.1");
    std::fs::rename(&path, &rotated).unwrap();
    // Within a second or two the new file is there, without anything to write.
    let until = Instant::now() + PATIENCE;
    while !path.exists() {
        assert!(Instant::now() < until, "the file was not opened anew");
        std::thread::yield_now();
    }
    write("/two");
    assert!(read(&path).contains("/two") && !read(&rotated).contains("/two"));
}

#[test]
fn the_end_of_the_program_waits_for_the_sink_but_not_for_ever() {
    let bench = Bench::new(|_| {});
    let stalled = bench.sink.0.lock().unwrap();
    drop(bench.open(&head("/", &[])));
    assert!(!bench.audit.close(Duration::from_millis(50)));
    drop(stalled);
    assert_eq!(bench.written().len(), 1);
}

#[test]
fn the_section_is_read_as_documented_and_its_problems_are_placed() {
    let read = |text: &str| serde_yaml::from_str::<AuditConfig>(text);
    assert_eq!(read("{}").unwrap().sink, SinkConfig::Stdout);
    let file = read("sink: { file: /var/log/x.jsonl }").unwrap();
    assert_eq!(file.sink, SinkConfig::File("/var/log/x.jsonl".into()));
    let written = serde_yaml::to_string(&file).unwrap();
    assert_eq!(read(&written).unwrap(), file);
    let error = read("sink: syslog").unwrap_err().to_string();
    assert!(error.contains("expected `stdout`"), "{error}");
    assert!(read("sink: { file: a, mode: 7 }").is_err());

    let mut cx = Compile::new(Path::new("gateway.yaml"), Arc::default());
    for text in [
        "{ queue: 1, sink: none, when_full: refuse }",
        "sink: { file: /nowhere/at/all.jsonl }",
    ] {
        assert!(
            cx.at("audit", |cx| read(text).unwrap().compile(None, cx))
                .is_none()
        );
    }
    let places: Vec<String> = cx.finish().0.into_iter().map(|p| p.path).collect();
    assert_eq!(places, ["audit.queue", "audit.when_full", "audit.sink"]);
}

#[test]
fn an_unchanged_section_keeps_its_queue_and_an_audit_of_nothing_writes_nothing() {
    let mut cx = Compile::new(Path::new("gateway.yaml"), Arc::default());
    let first = AuditConfig::default().compile(None, &mut cx).unwrap();
    let second = AuditConfig::default()
        .compile(Some(&first), &mut cx)
        .unwrap();
    assert!(Arc::ptr_eq(&first, &second));

    let none = Arc::new(Audit::default());
    assert!(none.accepting() && none.close(Duration::ZERO));
    let bench = Bench {
        audit: none,
        ..Bench::new(|_| {})
    };
    drop(bench.open(&head("/", &[])));
    let text = bench.metrics.encode();
    assert!(
        text.contains("portcullis_audit_records_dropped_total 0\n"),
        "{text}"
    );
    assert!(text.contains("portcullis_requests_in_flight 0\n"));
}

#[test]
fn a_record_is_written_within_moments_without_further_traffic() {
    let bench = Bench::new(|_| {});
    // The first wakes a writer that rests or has just begun; the second falls into its ticks.
    for number in 1..=2 {
        let began = Instant::now();
        drop(bench.open(&head("/", &[])));
        while bench.sink.lines().len() < number {
            // The tick is 20 ms; the rest is for a machine with other things to do.
            assert!(began.elapsed() < Duration::from_secs(5), "nobody wrote it");
            std::thread::yield_now();
        }
    }
    // A writer that has slept for want of records is woken by one.
    std::thread::park_timeout(Duration::from_millis(1500));
    let began = Instant::now();
    drop(bench.open(&head("/", &[])));
    while bench.sink.lines().len() < 3 {
        assert!(began.elapsed() < Duration::from_millis(900), "it slept on");
        std::thread::yield_now();
    }
}

#[test]
fn lines_of_many_threads_stay_whole_and_in_each_threads_order() {
    const EACH: usize = 2000;
    let bench = Bench::new(|config| {
        config.queue = 256;
        config.when_full = WhenFull::Refuse;
    });
    // A sink that takes odd pieces, with failures in between, must not tear lines either.
    std::thread::scope(|scope| {
        for thread in 0..4 {
            let bench = &bench;
            scope.spawn(move || {
                for number in 0..EACH {
                    let uri = format!("/{thread}/{number}/{}", "x".repeat(number % 1500));
                    loop {
                        let record = bench.open(&head(&uri, &[]));
                        if record.has_room() {
                            break;
                        }
                        drop(record);
                        std::thread::yield_now();
                    }
                }
            });
        }
    });
    let mut next = [0; 4];
    for line in bench.written() {
        let path = line["path"].as_str().unwrap();
        let mut parts = path.split('/').skip(1).map(|part| part.parse::<usize>());
        let (thread, number) = (parts.next().unwrap(), parts.next().unwrap());
        let (thread, number) = (thread.unwrap(), number.unwrap());
        assert_eq!(number, next[thread], "thread {thread}");
        next[thread] += 1;
    }
    assert_eq!(next, [EACH; 4]);
}

#[test]
fn seats_that_another_thread_has_in_stock_are_found() {
    let bench = Bench::new(|config| {
        config.queue = 100;
        config.when_full = WhenFull::Refuse;
    });
    // Each thread takes its seats in blocks; all of them together get exactly what there is.
    let barrier = std::sync::Barrier::new(3);
    let got: usize = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..3)
            .map(|_| {
                scope.spawn(|| {
                    let first = bench.open(&head("/", &[]));
                    barrier.wait();
                    let open: Vec<Record> = (0..60).map(|_| bench.open(&head("/", &[]))).collect();
                    barrier.wait();
                    let seats = open.iter().chain([&first]).filter(|r| r.has_room()).count();
                    barrier.wait();
                    seats
                })
            })
            .collect();
        threads.into_iter().map(|t| t.join().unwrap()).sum()
    });
    assert_eq!(got, 100);
    assert_eq!(bench.written().len(), 100);
    assert!(bench.audit.accepting());
}

#[test]
fn memory_is_bounded_while_the_sink_stalls() {
    let bench = Bench::new(|config| config.queue = 1000);
    let stalled = bench.sink.0.lock().unwrap();
    let long = format!("/{}", "%22".repeat(10_000));
    for _ in 0..5000 {
        drop(bench.open(&head(&long, &[])));
    }
    // As many lines as the queue has room, however many are lost; long texts were cut.
    assert_eq!(bench.audit.waiting(), 1000);
    let held = bench.audit.queue().unwrap().bytes();
    assert!(held < 1000 * 4 * 1024, "{held}");
    drop(stalled);
    assert_eq!(bench.written().len(), 1000);
}

#[test]
fn too_many_bytes_that_wait_leave_out_inputs_and_count_them_until_the_sink_has_caught_up() {
    let folder = tempfile::tempdir().unwrap();
    let rules = "package p\n\ndefault allow := false\n";
    std::fs::write(folder.path().join("p.rego"), rules).unwrap();
    let block = json!({ "files": ["p.rego"], "entrypoint": "data.p.allow" });
    let config: PolicyConfig = serde_json::from_value(block).unwrap();
    let mut cx = Compile::new(&folder.path().join("gateway.yaml"), Arc::default());
    let policy = config.compile("p", None, &mut cx).unwrap();
    let labels = crate::document::Value::new_object();
    let (name, params) = ("r".into(), &[]);
    let route = RouteFacts {
        name: &name,
        params,
        labels: &labels,
    };

    const RECORDS: usize = 3000;
    let bench = Bench::new(|config| config.queue = RECORDS + 16);
    let stalled = bench.sink.0.lock().unwrap();
    let long = "x".repeat(12_000);
    let head = head("/a", &[("x-long", &long)]);
    let ask = || {
        let mut record = bench.open(&head);
        record.denied(&denial());
        record.asked(&policy, &parsed(&head), &route, false);
    };
    for _ in 0..RECORDS {
        ask();
    }
    let held = bench.audit.queue().unwrap().bytes();
    assert!(held < RECORDS * 6 * 1024, "{held}");
    drop(stalled);
    assert!(bench.audit.close(PATIENCE));
    ask();
    let lines = bench.written();
    assert_eq!(lines.len(), RECORDS + 1);
    let short = lines.iter().filter(|line| line["input"].is_null());
    let short: Vec<&Value> = short.collect();
    assert!(!short.is_empty() && lines.first().unwrap()["input"].is_object());
    for line in &short {
        assert_eq!(
            line["input_left_out"],
            "no room: too much waits for the sink"
        );
        assert_eq!(line["answer"]["reason"], "orders.not_owner");
    }
    assert!(lines.last().unwrap()["input"].is_object());
    let counted = format!("portcullis_audit_inputs_left_out_total {}\n", short.len());
    assert!(bench.metrics.encode().contains(&counted));
}

/// A sink that panics at its second write.
struct Doomed(usize);

impl AuditSink for Doomed {
    fn write(&mut self, lines: &[u8]) -> io::Result<usize> {
        self.0 += 1;
        assert!(self.0 < 2, "on purpose");
        Ok(lines.len())
    }
}

#[test]
fn a_writer_that_died_takes_no_records_and_every_loss_is_counted() {
    let config = AuditConfig {
        when_full: WhenFull::Refuse,
        ..AuditConfig::default()
    };
    let metrics = Arc::new(Metrics::default());
    let audit = Audit::to_sink(Box::new(Doomed(0)), config, Arc::clone(&metrics)).unwrap();
    let bench = Bench {
        audit: Arc::new(audit),
        tracing: Arc::default(),
        sink: Memory::default(),
        metrics,
    };
    drop(bench.open(&head("/", &[])));
    assert!(bench.audit.close(PATIENCE));
    let open = bench.open(&head("/", &[]));
    drop(bench.open(&head("/", &[])));
    let until = Instant::now() + PATIENCE;
    while bench.audit.accepting() {
        assert!(Instant::now() < until, "the writer lives");
        std::thread::yield_now();
    }
    drop(open);
    while !bench.audit.failing() {
        assert!(Instant::now() < until, "the loss is not told");
        std::thread::yield_now();
    }
    assert!(!bench.open(&head("/", &[])).has_room());
    let text = bench.metrics.encode();
    assert!(text.contains("audit_records_written_total 1\n"), "{text}");
    assert!(text.contains("audit_records_dropped_total 3\n"), "{text}");
}

/// Drops lines whose path ends in an odd digit.
struct DropOdd;

impl Stage for DropOdd {
    fn place(&self) -> Place {
        Place::Mask
    }

    fn line(&mut self, line: &[u8], changed: &mut Vec<u8>) -> Passed {
        let line: Value = serde_json::from_slice(line).unwrap();
        let path = line["path"].as_str().unwrap();
        if path.ends_with(['1', '3', '5', '7', '9']) {
            return Passed::Dropped;
        }
        changed.extend_from_slice(path.as_bytes());
        Passed::Changed
    }
}

#[test]
fn seats_of_lines_that_a_stage_drops_are_free_again() {
    let bench = Bench::new(|config| {
        config.queue = 16;
        config.when_full = WhenFull::Refuse;
    });
    bench.audit.add_stage(Box::new(DropOdd));
    for round in 0..40 {
        let records: Vec<_> = (0..16)
            .map(|n| bench.open(&head(&format!("/{}", round * 16 + n), &[])))
            .collect();
        assert!(records.iter().all(Record::has_room), "{round}");
        drop(records);
        assert!(bench.audit.close(PATIENCE));
    }
    let held = bench.sink.0.lock().unwrap();
    let even: String = (0..640).step_by(2).map(|n| format!("/{n}\n")).collect();
    assert_eq!(String::from_utf8_lossy(&held.bytes), even);
}

/// A sink that remembers what it was told of records that did not come.
#[derive(Clone, Default)]
struct Told(Arc<Mutex<Vec<LeftOut>>>);

impl AuditSink for Told {
    fn write(&mut self, lines: &[u8]) -> io::Result<usize> {
        Ok(lines.len())
    }

    fn left_out(&mut self, left: &LeftOut) -> io::Result<()> {
        self.0.lock().unwrap().push(left.clone());
        Ok(())
    }
}

#[test]
fn what_sampling_leaves_out_is_gathered_and_told_at_the_end_to_the_record() {
    let told = Told::default();
    let sink = Box::new(told.clone());
    let queue = Queue::begin(sink, Stages::default(), 100, Arc::default()).unwrap();
    let lane = queue.lane();
    let begun = Instant::now();
    let mut sent = 0;
    while begun.elapsed() < Duration::from_millis(400) {
        lane.left_out(|left| left.sample("orders"));
        sent += 1;
        std::thread::park_timeout(Duration::from_millis(1));
    }
    assert!(queue.drain(PATIENCE));
    let seconds = begun.elapsed().as_secs();
    let told = told.0.lock().unwrap();
    let notes = u64::try_from(told.len()).unwrap();
    assert!(notes <= seconds + 2, "{notes} notes in {seconds} s");
    let sum: u64 = told.iter().map(|left| left.sampled["orders"]).sum();
    assert_eq!(sum, sent);
}

/// A sink that takes lines and nothing else, and says when the writer has let go of it.
struct NoNotes {
    tries: Arc<std::sync::atomic::AtomicUsize>,
    /// Breaks off when this is dropped.
    _alive: std::sync::mpsc::Sender<()>,
}

impl AuditSink for NoNotes {
    fn write(&mut self, lines: &[u8]) -> io::Result<usize> {
        Ok(lines.len())
    }

    fn left_out(&mut self, _: &LeftOut) -> io::Result<()> {
        self.tries
            .fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        Err(io::ErrorKind::StorageFull.into())
    }
}

#[test]
fn a_writer_that_nobody_can_send_to_ends_also_when_only_counts_are_left_and_not_taken() {
    let (alive, ended) = std::sync::mpsc::channel();
    let tries = Arc::<std::sync::atomic::AtomicUsize>::default();
    let sink = Box::new(NoNotes {
        tries: Arc::clone(&tries),
        _alive: alive,
    });
    let queue = Queue::begin(sink, Stages::default(), 100, Arc::default()).unwrap();
    let lane = queue.lane();
    lane.left_out(|left| left.sample("orders"));
    drop((lane, queue));
    // It says nothing: the writer's thread has ended, and the sink with it.
    let end = ended.recv_timeout(PATIENCE);
    assert_eq!(end, Err(std::sync::mpsc::RecvTimeoutError::Disconnected));
    let tries = tries.load(std::sync::atomic::Ordering::Relaxed);
    assert!((2..=7).contains(&tries), "{tries} tries in five seconds");
}

/// What is said of a section that is good.
fn warnings(section: &Value) -> Vec<String> {
    let config: AuditConfig = serde_json::from_value(section.clone()).unwrap();
    let mut cx = Compile::new(Path::new("gateway.yaml"), Arc::default());
    assert!(cx.at("audit", |cx| config.compile(None, cx)).is_some());
    let problems = cx.finish().0.into_iter();
    // Of the sinks, and not of the key that the ledger has none of.
    problems
        .filter(|problem| problem.path == "audit.ship")
        .map(|problem| format!("{}: {}", problem.message, problem.help.unwrap_or_default()))
        .collect()
}

#[test]
fn sinks_behind_a_ledger_without_a_bound_and_forgotten_ones_are_warned_of() {
    let folder = tempfile::tempdir().unwrap();
    let ledger = folder.path().join("records");
    let copy = folder.path().join("copy.jsonl");
    let section = |keep: Value, ship: Value| json!({"sink": {"ledger": {"folder": ledger, "keep": keep}}, "ship": ship});
    let ship = json!({"siem": {"to": {"file": copy}}});
    let of_size = |said: &[String]| {
        said.iter()
            .any(|one| one.contains("the ledger has no bound"))
    };
    // Of all that is kept, only the size is a bound of the disk.
    for keep in [json!({}), json!({"time": "30d"})] {
        let said = warnings(&section(keep, ship.clone()));
        assert!(of_size(&said), "{said:?}");
        assert!(said.concat().contains("keep: { size:"), "{said:?}");
    }
    let bound = json!({"size": "20GiB"});
    assert_eq!(warnings(&section(bound.clone(), ship.clone())), [""; 0]);
    assert_eq!(warnings(&section(json!({}), json!({}))), [""; 0], "no sink");

    // A sink was renamed while nobody was here to see it.
    std::fs::create_dir_all(ledger.join("ship")).unwrap();
    let cursor = json!({"ledger": "a", "record": 43, "segment": 1, "offset": 7}).to_string();
    std::fs::write(ledger.join("ship/splunk.json"), cursor).unwrap();
    for ship in [ship, json!({})] {
        let said = warnings(&section(bound.clone(), ship)).concat();
        assert!(said.contains("the cursor of a sink `splunk`"), "{said}");
        assert!(said.contains("as far as record 43"), "{said}");
        assert!(said.contains("rename `ship/splunk.json`"), "{said}");
    }
}
