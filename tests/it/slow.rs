//! Clients that are slow, idle, too many or too large: each is ended within its bound, and others
//! are served meanwhile.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::support::client::{Connection, request};
use crate::support::eventually;
use crate::support::gateway::{Builder, Gateway};
use crate::support::h2::{END_HEADERS, END_STREAM, H2, HEADERS, Outcome, block, frame, get};
use crate::support::upstream::{Next, Upstream};

/// How long a connection may outlive its bound on a machine that is busy with other tests.
const SLACK: Duration = Duration::from_secs(6);
/// How many slow clients there are at once.
const SLOW: usize = 50;

fn bounded(bounds: &Value) -> (Upstream, Gateway) {
    let upstream = Upstream::start();
    let gateway = Builder::open(&upstream)
        .with(|document| {
            for (key, value) in bounds.as_object().unwrap() {
                document["listeners"]["local"]["bounds"][key] = value.clone();
            }
        })
        .start();
    (upstream, gateway)
}

/// How many connections the gateway counts as open.
fn connections(gateway: &Gateway) -> u64 {
    gateway.admin("GET", "/status").json()["listeners"]["local"]["connections"]
        .as_u64()
        .unwrap()
}

fn tcp(gateway: &Gateway) -> TcpStream {
    let stream = TcpStream::connect(gateway.address()).unwrap();
    stream
        .set_read_timeout(Some(Duration::from_secs(10)))
        .unwrap();
    stream
}

/// Sends a piece every few milliseconds until the gateway ends the connection; how long it took.
fn drip(mut stream: TcpStream, piece: &[u8]) -> Duration {
    let start = Instant::now();
    stream
        .set_read_timeout(Some(Duration::from_millis(20)))
        .unwrap();
    let mut sink = [0; 4096];
    loop {
        match stream.read(&mut sink) {
            Ok(0) => break,
            Ok(_) => continue,
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
            Err(_) => break,
        }
        if stream.write_all(piece).is_err() {
            break;
        }
        assert!(
            start.elapsed() < Duration::from_secs(20),
            "the connection was never ended"
        );
    }
    start.elapsed()
}

/// Runs many slow clients at once; each must be ended, and a canary be served meanwhile.
fn many(gateway: &Gateway, beginning: &str, piece: &'static [u8], bound: Duration) {
    let clients: Vec<_> = (0..SLOW)
        .map(|_| {
            let mut stream = tcp(gateway);
            stream.write_all(beginning.as_bytes()).unwrap();
            std::thread::spawn(move || drip(stream, piece))
        })
        .collect();
    assert_eq!(gateway.get("/canary", &[]).status, 200);
    for client in clients {
        let took = client.join().unwrap();
        assert!(took < bound + SLACK, "a connection lived {took:?}");
    }
    eventually("all places free", || {
        (connections(gateway) == 0).then_some(())
    });
}

#[test]
fn heads_that_never_end_are_ended_by_the_header_timeout() {
    let (upstream, gateway) = bounded(&json!({"header_timeout": "500ms"}));
    let beginning = "GET /slow HTTP/1.1\r\nHost: h\r\n";
    many(&gateway, beginning, b"X: y\r\n", Duration::from_millis(500));
    assert!(upstream.seen().iter().all(|seen| seen.path() == "/canary"));
}

#[test]
fn bodies_that_drip_in_are_ended_by_the_total_timeout() {
    let upstream = Upstream::start();
    let gateway = Builder::open(&upstream)
        .with(|document| {
            document["routes"][0]["bounds"] =
                json!({"head_timeout": "500ms", "idle_timeout": "10s", "total_timeout": "1s"});
        })
        .start();
    let beginning = "POST /slow HTTP/1.1\r\nHost: h\r\nContent-Length: 1000000\r\n\r\n";
    many(&gateway, beginning, b"x", Duration::from_secs(1));
    assert!(upstream.seen().iter().all(|seen| seen.path() == "/canary"));
}

#[test]
fn bodies_that_stop_are_ended_by_the_idle_timeout() {
    let upstream = Upstream::start();
    let gateway = Builder::open(&upstream)
        .with(|document| document["routes"][0]["bounds"] = json!({"idle_timeout": "400ms"}))
        .start();
    let beginning = "POST /slow HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhe";
    let clients: Vec<_> = (0..SLOW)
        .map(|_| {
            let mut connection = gateway.connect();
            connection.send(beginning);
            connection
        })
        .collect();
    assert_eq!(gateway.get("/canary", &[]).status, 200);
    let start = Instant::now();
    for mut connection in clients {
        let answer = connection.answer().unwrap();
        assert_eq!(
            (answer.status, answer.code().as_str()),
            (408, "body_timeout")
        );
        assert_eq!(answer.header("connection"), Some("close"));
        assert!(connection.closes());
    }
    assert!(start.elapsed() < Duration::from_millis(400) + SLACK);
}

/// A gateway before an upstream whose answers never end.
fn endless(bounds: &Value) -> (Upstream, Gateway) {
    let (upstream, gateway) = bounded(bounds);
    upstream.answer(|seen, stream| {
        if seen.path() == "/canary" {
            let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n");
            return Next::KeepAlive;
        }
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n");
        let chunk = format!("4000\r\n{}\r\n", "x".repeat(0x4000));
        // Ends when the gateway closes the connection.
        while stream.write_all(chunk.as_bytes()).is_ok() {}
        Next::Close
    });
    (upstream, gateway)
}

#[test]
fn a_client_that_never_reads_its_answer_is_ended_and_recorded() {
    let (_upstream, gateway) = endless(&json!({"write_timeout": "700ms"}));
    let clients: Vec<_> = (0..10)
        .map(|_| {
            let mut connection = gateway.connect();
            connection.send(request("GET", "/endless", &[]));
            connection
        })
        .collect();
    assert_eq!(gateway.get("/canary", &[]).status, 200);
    let records = eventually("the records", || {
        let records = gateway.records();
        let ended: Vec<Value> = records
            .into_iter()
            .filter(|r| r["path"] == "/endless")
            .collect();
        (ended.len() == clients.len()).then_some(ended)
    });
    for record in records {
        assert_eq!(record["outcome"], "client_gone", "{record}");
        assert!(record["bytes_out"].as_u64().unwrap_or(1) > 0, "{record}");
    }
    eventually("all places free", || {
        (connections(&gateway) == 0).then_some(())
    });
    drop(clients);
}

#[test]
fn a_client_that_reads_an_endless_answer_byte_by_byte_is_ended() {
    // Less than 1 KiB within the timeout, however often.
    let (_upstream, gateway) = endless(&json!({"write_timeout": "700ms"}));
    let mut stream = tcp(&gateway);
    stream
        .write_all(request("GET", "/endless", &[]).as_bytes())
        .unwrap();
    let start = Instant::now();
    let mut byte = [0];
    eventually("the end of the connection", || {
        let _ = stream.read(&mut byte);
        (connections(&gateway) == 0).then_some(())
    });
    assert!(start.elapsed() < SLACK, "{:?}", start.elapsed());
}

#[test]
fn an_http_2_stream_without_window_is_cut_and_its_connection_lives_on() {
    let (_upstream, gateway) = endless(&json!({"write_timeout": "700ms"}));
    let mut h2 = H2::connect(gateway.address());
    let fields = block(&get("/endless", &[]));
    h2.send(frame(HEADERS, END_HEADERS | END_STREAM, 1, &fields))
        .unwrap();
    assert_eq!(h2.outcome(1), Outcome::Status(200));
    // No WINDOW_UPDATE ever: the first 64 KiB arrive, then nothing moves.
    assert!(matches!(h2.outcome(1), Outcome::Reset(_)));
    // The window of the connection is spent too, so only an answer without a body can come.
    h2.headers(3, &get("/canary", &[]), true);
    assert_eq!(h2.outcome(3), Outcome::Status(200));
    let record = eventually("the record", || {
        gateway
            .records()
            .into_iter()
            .find(|record| record["path"] == "/endless")
    });
    assert_eq!(record["outcome"], "client_gone", "{record}");
}

#[test]
fn idle_connections_are_closed_by_the_idle_timeout() {
    let (_upstream, gateway) = bounded(&json!({"idle_timeout": "500ms", "header_timeout": "20s"}));
    let mut used = gateway.connect();
    used.send(request("GET", "/a", &[]));
    assert_eq!(used.answer().unwrap().status, 200);
    let start = Instant::now();
    assert!(used.closes());
    assert!(start.elapsed() < Duration::from_millis(500) + SLACK);

    let mut h2 = H2::connect(gateway.address());
    h2.headers(1, &get("/a", &[]), true);
    assert_eq!(h2.outcome(1), Outcome::Status(200));
    let start = Instant::now();
    while h2.read().is_some() {}
    assert!(start.elapsed() < Duration::from_millis(500) + SLACK);
}

#[test]
fn connections_that_say_nothing_are_closed_by_the_header_timeout() {
    let (_upstream, gateway) = bounded(&json!({"header_timeout": "500ms", "idle_timeout": "20s"}));
    let silent: Vec<Connection> = (0..SLOW).map(|_| gateway.connect()).collect();
    let preface = {
        let mut connection = gateway.connect();
        connection.send("PRI * HTTP/2.0\r\n\r\nSM");
        connection
    };
    let start = Instant::now();
    for mut connection in silent.into_iter().chain([preface]) {
        assert!(connection.closes());
    }
    assert!(start.elapsed() < Duration::from_millis(500) + SLACK);
}

#[test]
fn an_open_http_2_header_block_is_ended_by_the_header_timeout() {
    let (upstream, gateway) = bounded(&json!({"header_timeout": "500ms", "idle_timeout": "20s"}));
    let mut h2 = H2::connect(gateway.address());
    h2.send(frame(HEADERS, END_STREAM, 1, &block(&get("/a", &[]))))
        .unwrap();
    let start = Instant::now();
    while h2.read().is_some() {}
    assert!(start.elapsed() < Duration::from_millis(500) + SLACK);
    assert!(upstream.seen().is_empty());
}

#[test]
fn connections_over_the_bounds_are_closed_and_places_come_back() {
    for bounds in [
        json!({"max_connections": 3, "max_connections_per_address": 3}),
        json!({"max_connections": 100, "max_connections_per_address": 3}),
    ] {
        let (_upstream, gateway) = bounded(&bounds);
        let mut held: Vec<Connection> = (0..3).map(|_| gateway.connect()).collect();
        for connection in &mut held {
            connection.send(request("GET", "/a", &[]));
            assert_eq!(connection.answer().unwrap().status, 200, "{bounds}");
        }
        for _ in 0..10 {
            assert!(
                gateway.connect().closes(),
                "{bounds}: one too many was let in"
            );
        }
        // Those that were in stay in, and one that leaves makes room.
        for connection in &mut held {
            connection.send(request("GET", "/a", &[]));
            assert_eq!(connection.answer().unwrap().status, 200, "{bounds}");
        }
        held.pop();
        eventually("a free place", || {
            let mut connection = gateway.connect();
            connection.send(request("GET", "/a", &[]));
            connection.answer().filter(|answer| answer.status == 200)
        });
    }
}

#[test]
fn heads_that_are_too_large_are_answered_431_and_closed() {
    let (upstream, gateway) = bounded(&json!({"max_header_size": "8KiB", "max_headers": 50}));
    let one = |size: usize| {
        format!(
            "GET /a HTTP/1.1\r\nHost: h\r\nX: {}\r\n\r\n",
            "x".repeat(size)
        )
    };
    let many = |count: usize| {
        let fields: String = (0..count).map(|n| format!("X{n}: y\r\n")).collect();
        format!("GET /a HTTP/1.1\r\nHost: h\r\n{fields}\r\n")
    };
    for honest in [one(6000), many(40)] {
        let mut connection = gateway.connect();
        connection.send(honest);
        assert_eq!(connection.answer().unwrap().status, 200);
    }
    let before = upstream.seen().len();
    let name = format!(
        "GET /a HTTP/1.1\r\nHost: h\r\n{}: y\r\n\r\n",
        "X".repeat(65536)
    );
    for (head, status) in [
        (one(20_000), 431),
        (one(1 << 20), 431),
        (many(60), 431),
        (many(5000), 431),
        (name, 431),
    ] {
        let mut connection = gateway.connect();
        connection.send(head);
        let answer = connection.answer();
        assert!(
            answer.as_ref().is_none_or(|answer| answer.status == status),
            "{answer:?}"
        );
        assert!(connection.closes());
    }
    let target = format!("GET /{} HTTP/1.1\r\nHost: h\r\n\r\n", "a".repeat(70_000));
    let mut connection = gateway.connect();
    connection.send(target);
    assert!(
        connection
            .answer()
            .is_none_or(|answer| matches!(answer.status, 414 | 431))
    );
    assert!(connection.closes());

    // HTTP/2: per request, and the connection lives on.
    let mut h2 = H2::connect(gateway.address());
    h2.headers(1, &get("/a", &[("x", &"x".repeat(12_000))]), true);
    assert_eq!(h2.outcome(1), Outcome::Status(431));
    h2.headers(3, &get("/a", &[]), true);
    assert_eq!(h2.outcome(3), Outcome::Status(200));
    assert_eq!(upstream.seen().len(), before + 1);
}

#[test]
fn a_client_that_shuts_its_side_is_gone_and_recorded() {
    // Half-closed clients and ones that hung up look alike, and the second kind is the common one:
    // working on for those would let anybody start work without waiting for it.
    let (upstream, gateway) = bounded(&json!({}));
    upstream.answer(|_, stream| {
        // Ends when the gateway closes the connection.
        let _ = stream.read(&mut [0]);
        Next::Close
    });
    let mut stream = tcp(&gateway);
    stream
        .write_all(request("GET", "/a", &[]).as_bytes())
        .unwrap();
    eventually("the request", || upstream.seen().pop());
    stream.shutdown(Shutdown::Write).unwrap();
    let record = eventually("the record", || gateway.records().pop());
    assert_eq!(record["outcome"], "client_gone", "{record}");
    eventually("the place", || (connections(&gateway) == 0).then_some(()));
}

#[test]
fn slow_clients_hold_no_connection_to_the_upstream_after_their_end() {
    let open = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&open);
    let upstream = Upstream::with(move |_, stream| {
        count.fetch_add(1, Ordering::SeqCst);
        let _ =
            stream.write_all(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n");
        // Ends when the gateway closes the connection.
        let _ = stream.read(&mut [0]);
        count.fetch_sub(1, Ordering::SeqCst);
        Next::Close
    });
    let gateway = Builder::open(&upstream).start();
    let clients: Vec<_> = (0..10)
        .map(|_| {
            let mut connection = gateway.connect();
            connection.send(request("GET", "/stream", &[]));
            connection
        })
        .collect();
    eventually("ten streams", || {
        (open.load(Ordering::SeqCst) == 10).then_some(())
    });
    drop(clients);
    eventually("none", || (open.load(Ordering::SeqCst) == 0).then_some(()));
}
