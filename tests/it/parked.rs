//! Connections of HTTP/1 that wait for a second or more between requests: the gateway keeps only
//! their streams then, and nobody can tell.

use std::io::Write;
use std::net::Shutdown;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::support::client::{Connection, request};
use crate::support::gateway::{Builder, Gateway};
use crate::support::pki::{Authority, client_config};
use crate::support::upstream::Upstream;

/// By then a connection without requests is parked.
const PARKED: Duration = Duration::from_millis(2200);

struct Edge {
    authority: Authority,
    upstream: Upstream,
    gateway: Gateway,
}

/// With a plain listener and one with TLS.
fn edge(bounds: &Value) -> Edge {
    let authority = Authority::new("servers");
    let upstream = Upstream::start();
    let builder = Builder::open(&upstream);
    authority
        .server(&["api.example.test"])
        .write(builder.folder.path(), "api");
    let gateway = builder
        .with(|document| {
            let tls = json!({"certificates": [{"chain": "api.pem", "key": "api.key"}]});
            document["listeners"]["public"] = json!({"address": "127.0.0.1:0", "tls": tls});
            for name in ["local", "public"] {
                for (key, value) in bounds.as_object().unwrap() {
                    document["listeners"][name]["bounds"][key] = value.clone();
                }
            }
        })
        .start();
    Edge {
        authority,
        upstream,
        gateway,
    }
}

impl Edge {
    /// One connection of each kind, parked after a request.
    fn parked(&self) -> [Connection; 2] {
        let config = client_config(&self.authority, None, &[b"http/1.1"]);
        let address = self.gateway.listener("public");
        let tls = Connection::tls(address, "api.example.test", &config).unwrap();
        let mut both = [self.gateway.connect(), tls];
        for one in &mut both {
            one.send(request("GET", "/first", &[]));
            assert_eq!(one.answer().unwrap().status, 200);
        }
        std::thread::sleep(PARKED);
        both
    }
}

fn socket(connection: &Connection) -> &std::net::TcpStream {
    match connection {
        Connection::Plain(socket) => socket,
        Connection::Tls(tls) => &tls.sock,
    }
}

#[test]
fn requests_after_a_pause_are_served_and_framed_as_before() {
    let edge = edge(&json!({}));
    let mut both = edge.parked();
    for round in ["a", "b"] {
        for one in &mut both {
            // Several at once, more than is read when one is woken, the last with a body that comes
            // in two pieces.
            let field = "v".repeat(3000);
            let mut text = String::new();
            for _ in 0..3 {
                text += &request("GET", &format!("/{round}"), &[("x-large", &field)]);
            }
            text += &request("POST", "/post", &[("content-length", "6")]);
            one.send(format!("{text}abc"));
            one.send("def");
            for _ in 0..4 {
                assert_eq!(one.answer().unwrap().status, 200);
            }
            assert_eq!(edge.upstream.last().body, b"abcdef");
        }
        std::thread::sleep(PARKED);
    }
    let before = edge.upstream.seen().len();
    for one in &mut both {
        let fields = [("transfer-encoding", "chunked"), ("content-length", "5")];
        one.send(request("POST", "/smuggled", &fields) + "0\r\n\r\n");
        one.send(request("GET", "/hidden", &[]));
        assert_eq!(one.answer().unwrap().status, 400);
        assert!(one.closes());
    }
    assert_eq!(edge.upstream.seen().len(), before);
}

#[test]
fn a_pause_ends_at_the_idle_timeout_and_a_head_begins_with_its_first_byte() {
    let edge = edge(&json!({"idle_timeout": "3s", "header_timeout": "1500ms"}));
    for one in &mut edge.parked() {
        assert!(one.closes());
        if let Connection::Tls(tls) = one {
            // By a close_notify: without it, this is an error.
            assert_eq!(std::io::Read::read(tls, &mut [0]).unwrap(), 0);
        }
    }
    let began = Instant::now();
    let mut both = edge.parked();
    for one in &mut both {
        one.send("G");
    }
    let sent = Instant::now();
    for one in &mut both {
        assert!(one.closes());
        assert!(sent.elapsed() >= Duration::from_millis(1400));
    }
    assert!(began.elapsed() > Duration::from_secs(3));
}

#[test]
fn a_client_that_ends_while_nothing_happens_is_let_go() {
    let edge = edge(&json!({}));
    let [mut plain, mut tls] = edge.parked();
    // The half that a client closes is all of it.
    socket(&plain).shutdown(Shutdown::Write).unwrap();
    assert!(plain.closes());
    if let Connection::Tls(tls) = &mut tls {
        tls.conn.send_close_notify();
        tls.flush().unwrap();
        assert_eq!(std::io::Read::read(tls, &mut [0]).unwrap(), 0);
    }
    let [plain, tls] = edge.parked();
    socket(&tls).shutdown(Shutdown::Both).unwrap();
    drop((plain, tls));
    crate::support::eventually("no connection", || {
        let status = edge.gateway.admin("GET", "/status").json();
        let open = |name: &str| status["listeners"][name]["connections"].as_u64().unwrap();
        (open("local") + open("public") == 0).then_some(())
    });
}

#[test]
fn a_listener_that_goes_closes_what_waits_on_it_and_serves_what_arrives() {
    let mut edge = edge(&json!({}));
    let [mut plain, mut idle] = edge.parked();
    let [_, mut late] = edge.parked();
    let answer = edge.gateway.reload(|document| {
        let listeners = document["listeners"].as_object_mut().unwrap();
        listeners.remove("public");
    });
    assert_eq!(answer.status, 200, "{}", answer.text());
    late.send(request("GET", "/late", &[]));
    let answer = late.answer().unwrap();
    assert_eq!(answer.status, 200);
    assert_eq!(answer.header("connection"), Some("close"));
    assert!(late.closes() && idle.closes());
    plain.send(request("GET", "/a", &[]));
    assert_eq!(plain.answer().unwrap().status, 200);
}
