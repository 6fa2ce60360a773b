//! To where: pooling, retries that are safe, time and size bounds, bodies both ways.

use std::io::Write;
use std::net::TcpListener;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Barrier};
use std::time::{Duration, Instant};

use serde_json::json;

use crate::support::client::request;
use crate::support::eventually;
use crate::support::gateway::Builder;
use crate::support::upstream::{Next, Upstream};

#[test]
fn connections_to_the_upstream_are_reused() {
    let upstream = Upstream::start();
    let gateway = Builder::open(&upstream).start();
    let mut connection = gateway.connect();
    for _ in 0..20 {
        connection.send(request("GET", "/a", &[]));
        assert_eq!(connection.answer().unwrap().status, 200);
    }
    assert_eq!(upstream.connections(), 1);
}

#[test]
fn a_stale_pooled_connection_is_retried_for_get_and_never_for_post() {
    // Each connection answers once and then closes when the next request arrives.
    let upstream = Upstream::start();
    let gateway = Builder::open(&upstream).start();
    assert_eq!(gateway.get("/warm", &[]).status, 200);
    let served = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&served);
    upstream.answer(move |seen, stream| {
        if seen.connection == 0 {
            return Next::Close;
        }
        count.fetch_add(1, Ordering::SeqCst);
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n");
        Next::Close
    });
    assert_eq!(gateway.get("/again", &[]).status, 200);
    assert_eq!(served.load(Ordering::SeqCst), 1);

    let upstream = Upstream::start();
    let gateway = Builder::open(&upstream).start();
    assert_eq!(gateway.get("/warm", &[]).status, 200);
    upstream.answer(|_, _| Next::Close);
    let mut connection = gateway.connect();
    connection.send("POST /pay HTTP/1.1\r\nHost: h\r\nContent-Length: 4\r\n\r\nbody");
    let answer = connection.answer().unwrap();
    assert_eq!(answer.status, 502);
    assert_eq!(
        upstream
            .seen()
            .iter()
            .filter(|s| s.path() == "/pay")
            .count(),
        1
    );
}

#[test]
fn a_dead_endpoint_is_passed_over() {
    let upstream = Upstream::start();
    let dead = TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap();
    let gateway = Builder::open(&upstream)
        .with(|document| {
            document["upstreams"]["main"]["endpoints"] =
                json!([format!("http://{dead}"), upstream.url()]);
        })
        .start();
    for _ in 0..20 {
        assert_eq!(
            gateway
                .send("POST", "/a", &[("content-length", "0")])
                .status,
            200
        );
    }
}

#[test]
fn an_unreachable_upstream_is_a_502_that_tells_nothing() {
    let upstream = Upstream::start();
    let dead = TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap();
    let gateway = Builder::open(&upstream)
        .with(|document| {
            document["upstreams"]["main"]["endpoints"] = json!([format!("http://{dead}")])
        })
        .start();
    let answer = gateway.get("/a", &[]);
    assert_eq!(
        (answer.status, answer.code().as_str()),
        (502, "upstream_unreachable")
    );
    let text = format!("{:?} {}", answer.headers, answer.text());
    assert!(
        !text.contains(&dead.port().to_string()) && !text.contains("refused"),
        "{text}"
    );
}

#[test]
fn a_silent_upstream_is_a_504_within_the_routes_bound() {
    let barrier = Arc::new(Barrier::new(2));
    let held = Arc::clone(&barrier);
    let upstream = Upstream::with(move |_, _| {
        held.wait();
        Next::Close
    });
    let gateway = Builder::open(&upstream)
        .with(|document| document["routes"][0]["bounds"] = json!({"head_timeout": "300ms"}))
        .start();
    let start = Instant::now();
    let answer = gateway.get("/a", &[]);
    assert_eq!(
        (answer.status, answer.code().as_str()),
        (504, "upstream_timeout")
    );
    assert!(start.elapsed() < Duration::from_secs(5));
    barrier.wait();
}

#[test]
fn nonsense_from_the_upstream_is_a_502() {
    for nonsense in [
        &b"nonsense\r\n\r\n"[..],
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nhello",
        b"HTTP/1.1 999999 OK\r\n\r\n",
        b"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n",
        b"",
    ] {
        let upstream = Upstream::with(move |_, stream| {
            let _ = stream.write_all(nonsense);
            Next::Close
        });
        let gateway = Builder::open(&upstream).start();
        let answer = gateway.send("POST", "/a", &[("content-length", "0")]);
        assert_eq!(
            answer.status,
            502,
            "{:?}",
            String::from_utf8_lossy(nonsense)
        );
    }
}

#[test]
fn an_answer_that_nobody_asked_for_is_nobodys_answer() {
    const POISON: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\npoison";
    for first in [
        &b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"[..],
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n",
        b"HTTP/1.1 204 No Content\r\n\r\n",
        b"HTTP/1.1 304 Not Modified\r\n\r\n",
    ] {
        for apart in [false, true] {
            let poisoned = Arc::new(AtomicUsize::new(0));
            let count = Arc::clone(&poisoned);
            let upstream = Upstream::with(move |seen, stream| {
                if seen.path() != "/first" {
                    let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nfine");
                } else if apart {
                    // The poison is to arrive when it is written, not when the answer is confirmed.
                    stream.set_nodelay(true).unwrap();
                    let _ = stream.write_all(first);
                    std::thread::park_timeout(Duration::from_millis(5));
                    let _ = stream.write_all(POISON);
                    count.fetch_add(1, Ordering::SeqCst);
                } else {
                    let _ = stream.write_all(&[first, POISON].concat());
                    count.fetch_add(1, Ordering::SeqCst);
                }
                Next::KeepAlive
            });
            let gateway = Builder::open(&upstream).start();
            for round in 1..10 {
                let mut connection = gateway.connect();
                connection.send(request("GET", "/first", &[]));
                assert_ne!(connection.answer().unwrap().text(), "poison");
                // What arrives after the next request was sent nobody can tell from its answer.
                eventually("the poison", || {
                    (poisoned.load(Ordering::SeqCst) == round).then_some(())
                });
                let mut other = gateway.connect();
                other.send(request("GET", "/other", &[]));
                let answer = other.answer().unwrap();
                assert_ne!(
                    answer.text(),
                    "poison",
                    "{:?} apart: {apart}",
                    String::from_utf8_lossy(first)
                );
            }
        }
    }
}

#[test]
fn endless_interim_answers_are_a_504() {
    let upstream = Upstream::with(|_, stream| {
        while stream
            .write_all(b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n")
            .is_ok()
        {}
        Next::Close
    });
    let gateway = Builder::open(&upstream)
        .with(|document| document["routes"][0]["bounds"] = json!({"head_timeout": "400ms"}))
        .start();
    let start = Instant::now();
    let answer = gateway.get("/a", &[]);
    assert!(matches!(answer.status, 502 | 504), "{}", answer.status);
    assert!(
        start.elapsed() < Duration::from_secs(5),
        "{:?}",
        start.elapsed()
    );
}

#[test]
fn bodies_over_the_bound_are_refused_with_413() {
    let upstream = Upstream::start();
    let gateway = Builder::open(&upstream)
        .with(|document| document["routes"][0]["bounds"] = json!({"max_body": "1KiB"}))
        .start();
    let mut connection = gateway.connect();
    connection.send("POST /a HTTP/1.1\r\nHost: h\r\nContent-Length: 1025\r\n\r\n");
    let answer = connection.answer().unwrap();
    assert_eq!(
        (answer.status, answer.code().as_str()),
        (413, "body_too_large")
    );
    assert!(upstream.seen().is_empty());

    let mut connection = gateway.connect();
    connection.send("POST /a HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n");
    for _ in 0..3 {
        connection.send(format!("200\r\n{}\r\n", "x".repeat(512)));
    }
    let answer = connection.answer().unwrap();
    assert_eq!(answer.status, 413, "{}", answer.text());
    assert!(
        upstream.seen().is_empty(),
        "a cut body looked complete to the upstream"
    );

    let mut connection = gateway.connect();
    connection.send(format!(
        "POST /a HTTP/1.1\r\nHost: h\r\nContent-Length: 1024\r\n\r\n{}",
        "x".repeat(1024)
    ));
    assert_eq!(connection.answer().unwrap().status, 200);
    assert_eq!(upstream.last().body.len(), 1024);
}

#[test]
fn a_slow_body_is_a_408() {
    let upstream = Upstream::start();
    let gateway = Builder::open(&upstream)
        .with(|document| document["routes"][0]["bounds"] = json!({"idle_timeout": "300ms"}))
        .start();
    let mut connection = gateway.connect();
    connection.send("POST /a HTTP/1.1\r\nHost: h\r\nContent-Length: 10\r\n\r\nxx");
    let answer = connection.answer().unwrap();
    assert_eq!(
        (answer.status, answer.code().as_str()),
        (408, "body_timeout")
    );
    assert!(connection.closes());
    assert!(upstream.seen().is_empty());
}

#[test]
fn large_bodies_stream_both_ways() {
    let upstream = Upstream::with(|seen, stream| {
        let head = format!(
            "HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n",
            seen.body.len()
        );
        let _ = stream
            .write_all(head.as_bytes())
            .and_then(|()| stream.write_all(&seen.body));
        Next::KeepAlive
    });
    let gateway = Builder::open(&upstream).start();
    let body: Vec<u8> = (0..4_000_000u32).map(|i| (i % 251) as u8).collect();
    let mut connection = gateway.connect();
    connection.send(format!(
        "POST /a HTTP/1.1\r\nHost: h\r\nContent-Length: {}\r\n\r\n",
        body.len()
    ));
    connection.send(&body);
    let answer = connection.answer().unwrap();
    assert_eq!(answer.status, 200);
    assert_eq!(answer.body, body);
}

#[test]
fn trailers_of_the_upstream_arrive_and_ours_cannot_be_spoofed_in_them() {
    let upstream = Upstream::with(|_, stream| {
        let _ = stream.write_all(
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: x-sum\r\n\r\n2\r\nok\r\n0\r\nx-sum: 7\r\n\r\n",
        );
        Next::KeepAlive
    });
    let gateway = Builder::open(&upstream)
        .with(|document| document["identity"] = json!({"headers": {"x-user-id": "subject"}}))
        .start();
    let mut connection = gateway.connect();
    connection.send(
        "POST /a HTTP/1.1\r\nHost: h\r\nTE: trailers\r\nTransfer-Encoding: chunked\r\nTrailer: x-user-id\r\n\r\n\
         2\r\nhi\r\n0\r\nx-user-id: mallory\r\nX_User_Id: mallory\r\n\r\n",
    );
    let answer = connection.answer().unwrap();
    assert_eq!(answer.text(), "ok");
    assert_eq!(answer.header("x-sum"), Some("7"));
    assert_eq!(upstream.last().body, b"hi");
}

#[test]
fn head_and_empty_answers_have_no_body() {
    let upstream = Upstream::start();
    let gateway = Builder::open(&upstream).start();
    let mut connection = gateway.connect();
    for _ in 0..3 {
        connection.send(request("HEAD", "/a", &[]));
        let answer = connection.answer_to("HEAD").unwrap();
        assert_eq!(
            (answer.status, answer.header("content-length")),
            (200, Some("5"))
        );
    }
    upstream.answer(|_, stream| {
        let _ = stream.write_all(b"HTTP/1.1 304 Not Modified\r\nETag: \"x\"\r\n\r\n");
        Next::KeepAlive
    });
    connection.send(request("GET", "/a", &[]));
    assert_eq!(connection.answer().unwrap().status, 304);
    connection.send(request("GET", "/a", &[]));
    assert_eq!(connection.answer().unwrap().status, 304);
    assert!(upstream.last().header("transfer-encoding").is_none());
}

#[test]
fn a_client_that_hangs_up_ends_the_exchange_and_is_recorded() {
    let upstream = Upstream::with(|_, stream| {
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n");
        // Ends when the gateway closes the connection.
        while stream.write_all(b"4\r\ntick\r\n").is_ok() {
            std::thread::park_timeout(Duration::from_millis(5));
        }
        Next::Close
    });
    let gateway = Builder::open(&upstream).start();
    let mut connection = gateway.connect();
    connection.send(request("GET", "/endless", &[]));
    let mut some = [0; 64];
    std::io::Read::read(&mut connection, &mut some).unwrap();
    drop(connection);
    let record = eventually("the record", || gateway.records().pop());
    assert_eq!(record["path"], "/endless");
    assert_eq!(record["outcome"], "client_gone", "{record}");
}
