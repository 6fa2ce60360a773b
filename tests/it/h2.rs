//! HTTP/2: what cannot be said in HTTP/1.1 without ambiguity is refused; floods end.

use std::time::{Duration, Instant};

use serde_json::json;

use crate::support::client::{Connection, request};
use crate::support::gateway::{Builder, Gateway};
use crate::support::h2::{
    CONTINUATION, DATA, END_HEADERS, END_STREAM, H2, HEADERS, Outcome, PING, RST_STREAM, SETTINGS,
    WINDOW_UPDATE, block, frame, get,
};
use crate::support::pki::{Authority, client_config};
use crate::support::upstream::Upstream;

fn open() -> (Upstream, Gateway) {
    let upstream = Upstream::start();
    let gateway = Builder::open(&upstream)
        .with(|document| document["identity"] = json!({"headers": {"x-user-id": "subject"}}))
        .start();
    (upstream, gateway)
}

#[test]
fn a_plain_request_passes() {
    let (upstream, gateway) = open();
    let mut h2 = H2::connect(gateway.address());
    for stream in [1, 3, 5] {
        h2.headers(stream, &get("/a", &[("x-a", "1")]), true);
        assert_eq!(h2.outcome(stream), Outcome::Status(200));
    }
    assert_eq!(upstream.last().header("x-a"), Some("1"));
    assert_eq!(upstream.last().line, "GET /a HTTP/1.1");
}

#[test]
fn the_protocol_over_tls_is_the_one_that_alpn_chose() {
    let upstream = Upstream::start();
    let authority = Authority::new("servers");
    let builder = Builder::open(&upstream);
    authority
        .server(&["api.example.test"])
        .write(builder.folder.path(), "api");
    let gateway = builder
        .with(|document| {
            document["listeners"]["public"] = json!({
                "address": "127.0.0.1:0",
                "tls": {"certificates": [{"chain": "api.pem", "key": "api.key"}]},
            });
        })
        .start();
    let connect = |alpn: &[&[u8]]| {
        Connection::tls(
            gateway.listener("public"),
            "api.example.test",
            &client_config(&authority, None, alpn),
        )
    };
    let fields = [
        (":method", "GET"),
        (":scheme", "https"),
        (":authority", "api.example.test"),
        (":path", "/a"),
    ];
    let preface = [
        &b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"[..],
        &frame(SETTINGS, 0, 0, &[]),
    ]
    .concat();
    for alpn in [
        &[&b"h2"[..]][..],
        &[b"h2", b"http/1.1"],
        &[b"http/1.1", b"h2"],
    ] {
        let mut h2 = H2 {
            since: Instant::now(),
            connection: connect(alpn).unwrap(),
        };
        h2.send(&preface).unwrap();
        h2.headers(1, &fields, true);
        assert_eq!(h2.outcome(1), Outcome::Status(200));
    }
    for alpn in [&[&b"http/1.1"[..]][..], &[]] {
        let mut connection = connect(alpn).unwrap();
        connection.send(request("GET", "/a", &[]));
        assert_eq!(connection.answer().unwrap().status, 200);
        // Not agreed upon, so not spoken, whatever the first bytes look like.
        let mut h2 = H2 {
            since: Instant::now(),
            connection: connect(alpn).unwrap(),
        };
        let _ = h2.send(&preface);
        h2.headers(1, &fields, true);
        assert_ne!(h2.outcome(1), Outcome::Status(200));
    }
    // Nothing in common, and the other protocol than the one that was agreed upon.
    assert!(connect(&[b"h3"]).is_err());
    let before = upstream.seen().len();
    let mut h2 = H2 {
        since: Instant::now(),
        connection: connect(&[b"h2"]).unwrap(),
    };
    let _ = h2.send(request("GET", "/a", &[]));
    while h2.read().is_some() {}
    assert_eq!(upstream.seen().len(), before);
}

#[test]
fn a_preface_that_is_not_quite_one_is_refused() {
    let (upstream, gateway) = open();
    for preface in [
        "PRI * HTTP/2.0\r\n\r\nXX\r\n\r\n",
        "PRI * HTTP/2.0\r\n\r\nSM\n\r\n\r\n",
        "PRI /a HTTP/2.0\r\n\r\nSM\r\n\r\n",
        "PRI * HTTP/1.1\r\nHost: h\r\n\r\nSM\r\n\r\n",
        "PRI * HTTP/2.0\nSM\n\n",
    ] {
        let mut connection = gateway.connect();
        connection.send(preface);
        connection.send("GET /hidden HTTP/1.1\r\nHost: h\r\n\r\n");
        let status = connection.answer().map(|answer| answer.status);
        assert!(
            status.is_none_or(|status| status >= 400),
            "{preface:?}: {status:?}"
        );
        assert!(connection.closes(), "{preface:?}");
    }
    assert!(upstream.seen().is_empty(), "{:?}", upstream.seen());
}

#[test]
fn heads_that_are_ambiguous_in_http_1_are_refused() {
    let (upstream, gateway) = open();
    let pseudo = |method: &'static str,
                  scheme: &'static str,
                  authority: &'static str,
                  path: &'static str| {
        vec![
            (":method", method),
            (":scheme", scheme),
            (":authority", authority),
            (":path", path),
        ]
    };
    let h = "api.example.test";
    let mut cases: Vec<Vec<(&str, &str)>> = vec![
        get("/a", &[("transfer-encoding", "chunked")]),
        get("/a", &[("connection", "close")]),
        get("/a", &[("upgrade", "websocket")]),
        get("/a", &[("te", "gzip")]),
        get("/a", &[("keep-alive", "1")]),
        get("/a", &[("proxy-connection", "keep-alive")]),
        get("/a", &[("host", "other.test")]),
        get(
            "/a",
            &[("host", "api.example.test"), ("host", "other.test")],
        ),
        get("/a", &[("X-Upper", "1")]),
        get("/a", &[("x bad", "1")]),
        get("/a", &[("x:bad", "1")]),
        get("/a", &[("", "1")]),
        get("/a", &[("x", "a\r\nx-user-id: mallory")]),
        get("/a", &[("x", "a\nb")]),
        get("/a", &[("x", "a\0b")]),
        get("/a", &[("content-length", "5")]),
        get("/a", &[("content-length", "0"), ("content-length", "1")]),
        get("/a", &[(":path", "/b")]),
        get("/a", &[(":unknown", "x")]),
        pseudo("GET", "https", h, "/a"),
        pseudo("GET", "ftp", h, "/a"),
        pseudo("GET", "http", "user@api.example.test", "/a"),
        pseudo("GET", "http", "", "/a"),
        pseudo("GET", "http", "a b", "/a"),
        pseudo("GET", "http", h, ""),
        pseudo("GET", "http", h, "a"),
        pseudo("GET", "http", h, "*"),
        pseudo("GET", "http", h, "/a b"),
        pseudo(
            "GET",
            "http",
            h,
            "/a HTTP/1.1\r\nx-user-id: mallory\r\n\r\n",
        ),
        pseudo("GET", "http", h, "http://other.test/a"),
        pseudo("GET", "http", h, "/a//b"),
        pseudo("GET", "http", h, "/../a"),
        pseudo("GET /x HTTP/1.1\r\nHost: h\r\n\r\nGET", "http", h, "/a"),
        pseudo("G ET", "http", h, "/a"),
        pseudo("CONNECT", "http", h, "/a"),
        vec![
            (":method", "CONNECT"),
            (":authority", "api.example.test:443"),
        ],
        vec![
            (":method", "CONNECT"),
            (":protocol", "websocket"),
            (":scheme", "http"),
            (":authority", h),
            (":path", "/a"),
        ],
        vec![(":method", "GET"), (":path", "/a"), (":authority", h)],
        vec![(":method", "GET"), (":scheme", "http"), (":authority", h)],
        vec![(":scheme", "http"), (":path", "/a"), (":authority", h)],
    ];
    cases.push(vec![
        ("x", "1"),
        (":method", "GET"),
        (":scheme", "http"),
        (":authority", h),
        (":path", "/a"),
    ]);
    for fields in cases {
        let before = upstream.seen().len();
        let mut h2 = H2::connect(gateway.address());
        h2.headers(1, &fields, true);
        let outcome = h2.outcome(1);
        let refused = match outcome {
            Outcome::Status(status) => status >= 400,
            Outcome::Reset(_) | Outcome::GoAway(_) | Outcome::Closed => true,
        };
        // An empty `te` list is only stripped; it is no way to confuse an upstream.
        let seen = upstream.seen().split_off(before);
        assert!(
            refused && seen.is_empty(),
            "{fields:?}: {outcome:?}, the upstream saw {seen:?}"
        );
    }
}

#[test]
fn identity_headers_do_not_arrive_under_any_spelling_or_in_trailers() {
    let (upstream, gateway) = open();
    for name in ["x-user-id", "x_user_id", "x.user.id", "x-user_id"] {
        let mut h2 = H2::connect(gateway.address());
        h2.headers(1, &get("/a", &[(name, "mallory")]), true);
        assert_eq!(h2.outcome(1), Outcome::Status(200), "{name}");
        assert!(
            !upstream.last().headers.iter().any(|(_, v)| v == "mallory"),
            "{name}"
        );
    }
    let mut h2 = H2::connect(gateway.address());
    let fields = [
        (":method", "POST"),
        (":scheme", "http"),
        (":authority", "api.example.test"),
        (":path", "/a"),
    ];
    h2.headers(1, &fields, false);
    h2.send(frame(DATA, 0, 1, b"body")).unwrap();
    h2.headers(
        1,
        &[("x-user-id", "mallory"), ("x_user_id", "mallory")],
        true,
    );
    assert_eq!(h2.outcome(1), Outcome::Status(200));
    assert_eq!(upstream.last().body, b"body");
}

#[test]
fn a_body_that_is_not_as_long_as_it_says_is_refused() {
    let (upstream, gateway) = open();
    let fields = [
        (":method", "POST"),
        (":scheme", "http"),
        (":authority", "api.example.test"),
        (":path", "/a"),
        ("content-length", "10"),
    ];
    for body in [&b"short"[..], b"much too long a body"] {
        let mut h2 = H2::connect(gateway.address());
        h2.headers(1, &fields, false);
        let _ = h2.send(frame(DATA, END_STREAM, 1, body));
        assert_ne!(h2.outcome(1), Outcome::Status(200));
        assert!(upstream.seen().is_empty());
    }
}

#[test]
fn one_stream_refused_leaves_the_others_alone() {
    let (_upstream, gateway) = open();
    let mut h2 = H2::connect(gateway.address());
    h2.headers(1, &get("/a//b", &[]), true);
    assert_eq!(h2.outcome(1), Outcome::Status(400));
    h2.headers(3, &get("/a", &[]), true);
    assert_eq!(h2.outcome(3), Outcome::Status(200));
}

/// Sends `chunk` over and over; true when the server ended the connection before the time was up.
fn flood(gateway: &Gateway, mut chunk: impl FnMut(u32) -> Vec<u8>) -> bool {
    let mut h2 = H2::connect(gateway.address());
    let end = Instant::now() + Duration::from_secs(60);
    let mut stream = 1;
    let Ok(mut reader) = (match &h2.connection {
        Connection::Plain(stream) => stream.try_clone(),
        Connection::Tls(_) => unreachable!("in clear"),
    }) else {
        return false;
    };
    // The answers are read away, so that the flood and not a full socket decides.
    let drain = std::thread::spawn(move || std::io::copy(&mut reader, &mut std::io::sink()));
    while Instant::now() < end {
        let mut bytes = Vec::new();
        for _ in 0..100 {
            bytes.extend(chunk(stream));
            stream += 2;
        }
        if h2.send(&bytes).is_err() {
            let _ = drain.join();
            return true;
        }
    }
    false
}

#[test]
fn floods_end_and_others_are_served_meanwhile() {
    let (_upstream, gateway) = open();
    let headers = |stream: u32| {
        frame(
            HEADERS,
            END_HEADERS | END_STREAM,
            stream,
            &block(&get("/a", &[])),
        )
    };
    type Chunk = Box<dyn FnMut(u32) -> Vec<u8> + Send>;
    let floods: Vec<(&str, Chunk)> = vec![
        (
            "rapid reset",
            Box::new(move |s| [headers(s), frame(RST_STREAM, 0, s, &[0, 0, 0, 8])].concat()),
        ),
        (
            "made you reset",
            Box::new(move |s| [headers(s), frame(WINDOW_UPDATE, 0, s, &[0; 4])].concat()),
        ),
        (
            "settings",
            Box::new(|_| frame(SETTINGS, 0, 0, &[0, 4, 0, 0, 255, 255])),
        ),
        ("empty settings", Box::new(|_| frame(SETTINGS, 0, 0, &[]))),
        ("ping", Box::new(|_| frame(PING, 0, 0, &[1; 8]))),
        (
            "window update",
            Box::new(|_| frame(WINDOW_UPDATE, 0, 0, &[0, 0, 0, 1])),
        ),
        ("priority", Box::new(|s| frame(2, 0, s, &[0, 0, 0, 0, 16]))),
        ("unknown frames", Box::new(|_| frame(0xfa, 0, 0, &[7; 16]))),
        (
            "continuation",
            Box::new(|s| {
                if s == 1 {
                    frame(HEADERS, 0, 1, &block(&get("/a", &[])))
                } else {
                    frame(CONTINUATION, 0, 1, &block(&[("x", "y")]))
                }
            }),
        ),
        (
            "empty data",
            Box::new(|s| {
                if s == 1 {
                    frame(
                        HEADERS,
                        END_HEADERS,
                        1,
                        &block(&[
                            (":method", "POST"),
                            (":scheme", "http"),
                            (":authority", "h"),
                            (":path", "/a"),
                        ]),
                    )
                } else {
                    frame(DATA, 0, 1, &[])
                }
            }),
        ),
    ];
    std::thread::scope(|scope| {
        let gateway = &gateway;
        let running: Vec<_> = floods
            .into_iter()
            .map(|(name, chunk)| (name, scope.spawn(move || flood(gateway, chunk))))
            .collect();
        for _ in 0..10 {
            let start = Instant::now();
            assert_eq!(gateway.get("/canary", &[]).status, 200);
            assert!(
                start.elapsed() < Duration::from_secs(5),
                "the canary waited {:?}",
                start.elapsed()
            );
        }
        for (name, flood) in running {
            assert!(
                flood.join().unwrap(),
                "{name}: the connection was never ended"
            );
        }
    });
    assert_eq!(gateway.get("/after", &[]).status, 200);
}
