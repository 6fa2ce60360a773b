//! Permission ages: what is open is judged again when something it rests on changes.

use std::io::{Read, Write};
use std::sync::mpsc;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::support::client::{Connection, request};
use crate::support::eventually;
use crate::support::gateway::World;
use crate::support::h2::{DATA, END_STREAM, H2, HEADERS, RST_STREAM, SETTINGS, get};
use crate::support::issuer::now;
use crate::support::upstream::{Next, Upstream};

/// Lets everybody in but those in the list.
fn policy(denied: &[&str]) -> String {
    format!(
        "package gate\n\ndefault allow := false\n\nbanned if input.identity.subject in {}\n\nallow if not banned\n",
        json!(denied)
    )
}

/// An upstream that streams in pieces of its own choice, for ever.
fn streaming(kind: &'static str, piece: &'static [u8]) -> Upstream {
    Upstream::with(move |_, stream| {
        let head = format!(
            "HTTP/1.1 200 OK\r\nContent-Type: {kind}\r\nTransfer-Encoding: chunked\r\n\r\n"
        );
        let _ = stream.write_all(head.as_bytes());
        let chunk = [
            format!("{:x}\r\n", piece.len()).as_bytes(),
            piece,
            b"\r\n".as_slice(),
        ]
        .concat();
        while stream.write_all(&chunk).is_ok() {
            std::thread::park_timeout(Duration::from_millis(20));
        }
        Next::Close
    })
}

/// A gateway in front of `upstream` whose policy denies nobody yet.
fn world(upstream: &Upstream) -> World {
    world_with(upstream, |_| {})
}

fn world_with(upstream: &Upstream, edit: impl FnOnce(&mut Value)) -> World {
    let endpoint = upstream.url();
    World::with(|builder| {
        builder.policy(&policy(&[])).with(|document| {
            document["upstreams"]["main"]["endpoints"] = json!([endpoint]);
            document["issuers"]["main"]["leeway"] = json!("0s");
            edit(document);
        })
    })
}

/// Puts another policy in force.
fn deny(world: &mut World, denied: &[&str]) {
    world.gateway.file_in("gate.rego", &policy(denied));
    let answer = world.gateway.reload(|_| {});
    assert_eq!(answer.status, 200, "{}", answer.text());
}

fn open(world: &World, subject: &str) -> Connection {
    let bearer = format!("Bearer {}", world.token(subject));
    let mut connection = world.gateway.connect();
    let fields = [("authorization", &*bearer), ("connection", "close")];
    connection.send(request("GET", "/stream", &fields));
    let mut first = [0; 64];
    connection
        .read_exact(&mut first)
        .expect("the stream begins");
    connection
}

/// What comes until the connection ends, within ten seconds.
fn rest(connection: &mut Connection) -> String {
    let start = Instant::now();
    let (mut all, mut piece) = (Vec::new(), [0; 4096]);
    while start.elapsed() < Duration::from_secs(10) {
        match connection.read(&mut piece) {
            Ok(0) | Err(_) => return String::from_utf8_lossy(&all).into_owned(),
            Ok(read) => all.extend(&piece[..read]),
        }
    }
    panic!("the stream goes on: {} bytes", all.len());
}

/// Whether more comes.
fn goes_on(connection: &mut Connection) -> bool {
    let mut piece = [0; 64];
    (0..20).all(|_| matches!(connection.read(&mut piece), Ok(read) if read > 0))
}

#[test]
fn a_policy_that_now_says_no_ends_that_stream_and_no_other() {
    let upstream = streaming("text/plain", b"tick");
    let mut world = world(&upstream);
    let (mut alice, mut bob) = (open(&world, "alice"), open(&world, "bob"));
    deny(&mut world, &["bob"]);
    rest(&mut bob);
    assert!(goes_on(&mut alice), "alice is still allowed");
    let record = eventually("bob's record", || {
        let mut records = world.gateway.records().into_iter();
        records.find(|record| record["caller"]["subject"] == "bob")
    });
    assert_eq!(record["outcome"], "permission_ended");
    assert_eq!(record["detail"], "policy.denied");
}

#[test]
fn an_event_stream_ends_with_an_event_that_says_so() {
    let upstream = streaming("text/event-stream", b"data: tick\n\n");
    let mut world = world(&upstream);
    let mut bob = open(&world, "bob");
    deny(&mut world, &["bob"]);
    let text = rest(&mut bob);
    assert!(
        text.contains("event: portcullis.ended\ndata: {\"code\":\"denied\"}\n\n"),
        "{text}"
    );
    assert!(text.ends_with("0\r\n\r\n"), "a clean end: {text}");
}

#[test]
fn our_last_event_never_stands_within_another() {
    // Each event comes in two pieces, and the second one late.
    let upstream = Upstream::with(|_, stream| {
        let _ = stream.write_all(
            b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n",
        );
        for piece in [b"data: one\ndat".as_slice(), b"a: two\n\n"].iter().cycle() {
            let chunk = [format!("{:x}\r\n", piece.len()).as_bytes(), piece, b"\r\n"].concat();
            if stream.write_all(&chunk).is_err() {
                break;
            }
            std::thread::park_timeout(Duration::from_millis(30));
        }
        Next::Close
    });
    let mut world = world(&upstream);
    let mut bob = open(&world, "bob");
    deny(&mut world, &["bob"]);
    let text = rest(&mut bob);
    let pieces: String = text
        .split("\r\n")
        .filter(|line| !line.chars().all(|c| c.is_ascii_hexdigit()))
        .collect();
    let (before, _) = pieces
        .split_once("event: portcullis.ended")
        .expect("it says so");
    assert!(before.ends_with("two\n\n"), "{before:?}");
}

#[test]
fn an_event_stream_that_hangs_within_an_event_ends_all_the_same() {
    let upstream = Upstream::with(|_, stream| {
        let _ = stream.write_all(
            b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n5\r\ndata:\r\n",
        );
        let _ = stream.read(&mut [0; 1]);
        Next::Close
    });
    let mut world = world(&upstream);
    let mut bob = open(&world, "bob");
    deny(&mut world, &["bob"]);
    let text = rest(&mut bob);
    assert!(!text.contains("portcullis.ended"), "{text}");
}

#[test]
fn over_http2_only_the_stream_that_is_denied_is_reset() {
    let upstream = streaming("text/plain", b"tick");
    let mut world = world(&upstream);
    let mut h2 = H2::connect(world.gateway.address());
    for (stream, subject) in [(1, "alice"), (3, "bob")] {
        let bearer = format!("Bearer {}", world.token(subject));
        h2.headers(stream, &get("/stream", &[("authorization", &bearer)]), true);
    }
    let mut begun = [false; 2];
    while begun != [true; 2] {
        if let Some((DATA, _, stream, _)) = answered(&mut h2) {
            begun[usize::from(stream == 3)] = true;
        }
    }
    deny(&mut world, &["bob"]);
    while !matches!(answered(&mut h2), Some((RST_STREAM, _, 3, _))) {}
    let mut more = 0;
    while more < 20 {
        match answered(&mut h2) {
            Some((DATA, _, 1, _)) => more += 1,
            Some((RST_STREAM, _, stream, _)) => panic!("stream {stream} was reset"),
            Some(_) => {}
            None => panic!("the connection ended"),
        }
    }
}

/// The next frame, within ten seconds of the first; settings are acknowledged.
fn answered(h2: &mut H2) -> Option<(u8, u8, u32, Vec<u8>)> {
    let frame = h2.read()?;
    assert!(
        h2.since.elapsed() < Duration::from_secs(10),
        "it goes on for ever"
    );
    if frame.0 == SETTINGS && frame.1 & 1 == 0 {
        h2.send(crate::support::h2::frame(SETTINGS, 1, 0, &[]))
            .ok()?;
    }
    Some(frame)
}

#[test]
fn a_grpc_call_ends_with_a_status_in_its_trailers() {
    let upstream = streaming("application/grpc", &[0, 0, 0, 0, 1, 7]);
    let mut world = world(&upstream);
    let mut h2 = H2::connect(world.gateway.address());
    let bearer = format!("Bearer {}", world.token("bob"));
    let fields = [
        (":method", "POST"),
        (":scheme", "http"),
        (":authority", "api.example.test"),
        (":path", "/stream"),
        ("content-type", "application/grpc"),
        ("te", "trailers"),
        ("authorization", &bearer),
    ];
    h2.headers(1, &fields, true);
    while !matches!(answered(&mut h2), Some((DATA, _, 1, _))) {}
    deny(&mut world, &["bob"]);
    let trailers = loop {
        match answered(&mut h2) {
            Some((HEADERS, flags, 1, block)) if flags & END_STREAM != 0 => break block,
            Some((RST_STREAM, ..)) => panic!("the call was reset without a status"),
            Some(_) => {}
            None => panic!("the connection ended"),
        }
    };
    // PERMISSION_DENIED is `7`: one byte in Huffman's code (RFC 7541 appendix B), 011101 and padding.
    let seven = [0x81, 0b0111_0111];
    assert!(
        trailers.windows(2).any(|pair| pair == seven),
        "{trailers:?}"
    );
    let record = eventually("the record", || world.gateway.records().pop());
    assert_eq!(record["outcome"], "permission_ended");
}

#[test]
fn a_change_between_the_check_and_the_stream_is_not_missed() {
    // The answer's head is held back until the policy has changed: the permission was given under
    // the old one, and its stream begins under the new one.
    let (go, wait) = mpsc::channel::<()>();
    let wait = Arc::new(Mutex::new(wait));
    let upstream = Upstream::with(move |_, stream| {
        let _ = wait.lock().unwrap().recv();
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n");
        while stream.write_all(b"4\r\ntick\r\n").is_ok() {
            std::thread::park_timeout(Duration::from_millis(20));
        }
        Next::Close
    });
    let mut world = world(&upstream);
    let bearer = format!("Bearer {}", world.token("bob"));
    let mut bob = world.gateway.connect();
    bob.send(request("GET", "/stream", &[("authorization", &bearer)]));
    eventually("the request at the upstream", || {
        (!upstream.seen().is_empty()).then_some(())
    });
    deny(&mut world, &["bob"]);
    // By now the keeper has looked, and there was nothing to see.
    let alice = world.token("alice");
    go.send(()).unwrap();
    go.send(()).unwrap();
    drop(alice);
    rest(&mut bob);
}

#[test]
fn a_long_upload_is_refused_in_its_middle() {
    let upstream = Upstream::start();
    let mut world = world(&upstream);
    let bearer = format!("Bearer {}", world.token("bob"));
    let mut bob = world.gateway.connect();
    bob.send(request(
        "POST",
        "/upload",
        &[("authorization", &bearer), ("content-length", "1000000")],
    ));
    bob.send(vec![b'x'; 1000]);
    eventually("the upload's connection to the upstream", || {
        (upstream.connections() > 0).then_some(())
    });
    deny(&mut world, &["bob"]);
    let answer = bob.answer().expect("an answer");
    assert_eq!(answer.status, 403);
    assert_eq!(answer.code(), "denied");
}

#[test]
fn an_upload_that_moves_is_not_late_and_one_that_stops_is() {
    let upstream = Upstream::start();
    let world = world_with(&upstream, |document| {
        document["head_timeout"] = json!("1s");
        for route in document["routes"].as_array_mut().unwrap() {
            route["bounds"] = json!({"head_timeout": "1s", "idle_timeout": "1s"});
        }
    });
    let bearer = format!("Bearer {}", world.token("alice"));
    let head = |length: &str| {
        let fields = [
            ("authorization", bearer.as_str()),
            ("content-length", length),
        ];
        request("POST", "/upload", &fields)
    };
    let mut moving = world.gateway.connect();
    moving.send(head("20"));
    for _ in 0..20 {
        moving.send("x");
        std::thread::park_timeout(Duration::from_millis(100));
    }
    assert_eq!(moving.answer().expect("an answer").status, 200);
    let mut stopped = world.gateway.connect();
    stopped.send(head("20"));
    stopped.send("xxx");
    assert_eq!(stopped.answer().expect("an answer").status, 408);
}

#[test]
fn a_route_that_is_gone_takes_its_streams_along() {
    let upstream = streaming("text/plain", b"tick");
    let mut world = world(&upstream);
    let mut bob = open(&world, "bob");
    let answer = world.gateway.reload(|document| {
        document["routes"].as_array_mut().unwrap()[0]["path"] = json!("/other/{*rest}");
    });
    assert_eq!(answer.status, 200, "{}", answer.text());
    rest(&mut bob);
}

#[test]
fn a_renewal_on_the_same_connection_lets_streams_live_on() {
    let upstream = streaming("text/plain", b"tick");
    let world = world(&upstream);
    let short = |seconds: u64| {
        let mut claims = world.issuer.claims("bob");
        claims["exp"] = json!(now() + seconds);
        format!("Bearer {}", world.key.token(&claims))
    };
    let mut h2 = H2::connect(world.gateway.address());
    h2.headers(1, &get("/stream", &[("authorization", &short(3))]), true);
    while !matches!(answered(&mut h2), Some((DATA, _, 1, _))) {}
    let renew = |bearer: &str| {
        [
            (":method".to_owned(), "POST".to_owned()),
            (":scheme".to_owned(), "http".to_owned()),
            (":authority".to_owned(), "api.example.test".to_owned()),
            (
                ":path".to_owned(),
                "/.well-known/portcullis/renew".to_owned(),
            ),
            ("authorization".to_owned(), bearer.to_owned()),
        ]
    };
    let send = |h2: &mut H2, stream: u32, fields: [(String, String); 5]| {
        let fields: Vec<(&str, &str)> = fields.iter().map(|(n, v)| (&**n, &**v)).collect();
        h2.headers(stream, &fields, true);
        h2.outcome(stream)
    };
    use crate::support::h2::Outcome;
    // Somebody else's token renews nothing.
    let alice = format!("Bearer {}", world.token("alice"));
    assert_eq!(send(&mut h2, 3, renew(&alice)), Outcome::Status(401));
    let long = short(60);
    assert_eq!(send(&mut h2, 7, renew(&long)), Outcome::Status(200));
    let begun = Instant::now();
    while begun.elapsed() < Duration::from_secs(5) {
        match answered(&mut h2) {
            Some((RST_STREAM, ..)) | None => panic!("the stream ended at its first token's end"),
            Some(_) => {}
        }
    }
}
