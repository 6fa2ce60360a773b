//! Published vulnerabilities of other gateways and libraries, each tried against this one.
//!
//! The name of a test begins with the identifier; what the others got wrong stands in its first
//! comment. Only what has a counterpart in HTTP handling is here.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::{Value, json};

use crate::support::client::{Answer, Connection, request};
use crate::support::eventually;
use crate::support::gateway::{ADMIN, Builder, Gateway, World};
use crate::support::h2::{
    CONTINUATION, DATA, END_HEADERS, END_STREAM, H2, HEADERS, Outcome, RST_STREAM, WINDOW_UPDATE,
    block, frame, get,
};
use crate::support::upstream::{Next, Upstream};

const HIDDEN: &str = "GET /hidden HTTP/1.1\r\nHost: h\r\n\r\n";

/// Denies everything under `/admin` and tells in a header of the answer which path it saw.
const NO_ADMIN: &str = r#"package gate

default allow := false

allow := {"allow": true, "headers": {"x-judged": input.request.path}} if {
	not startswith(input.request.path, "/admin")
}
"#;

fn open() -> (Upstream, Gateway) {
    let upstream = Upstream::start();
    let gateway = Builder::open(&upstream)
        .with(|document| document["identity"] = json!({"headers": {"x-user-id": "text:gateway"}}))
        .start();
    (upstream, gateway)
}

fn guarded() -> (World, String) {
    let world = World::with(|builder| {
        builder.policy(NO_ADMIN).with(|document| {
            document["identity"] = json!({
                "headers": {"x-user-id": "subject"},
                "assertion": {"header": "x-portcullis-assertion", "issuer": "https://gateway.test", "lifetime": "30s"},
            });
        })
    });
    let authorization = format!("Bearer {}", world.token("alice"));
    (world, authorization)
}

/// Sends bytes on a connection of their own and reads the first answer.
fn first(gateway: &Gateway, bytes: impl AsRef<[u8]>) -> (Option<Answer>, Connection) {
    let mut connection = gateway.connect();
    connection.send(bytes);
    let answer = connection.answer();
    (answer, connection)
}

/// Tries every path with a good token: it is refused, or what the policy saw is what arrived.
fn paths_have_one_reading(paths: &[&str]) {
    let (world, authorization) = guarded();
    for path in paths {
        let before = world.upstream.seen().len();
        let answer = world
            .gateway
            .get(path, &[("authorization", &authorization)]);
        let seen = world.upstream.seen().split_off(before);
        match seen.first() {
            None => assert!(
                matches!(answer.status, 400 | 403),
                "{path}: {}",
                answer.status
            ),
            Some(seen) => {
                assert!(
                    !seen.path().starts_with("/admin"),
                    "{path} arrived as {}",
                    seen.path()
                );
                let forwarded = seen.path().split('?').next();
                assert_eq!(answer.header("x-judged"), forwarded, "{path}");
            }
        }
    }
}

/// None of the headers opens a guarded route to a caller without a token.
fn no_header_opens_a_route(headers: &[(&str, &str)]) {
    let world = World::with(|builder| {
        builder.with(|document| {
            document["routes"].as_array_mut().unwrap().push(json!({
                "name": "public", "path": "/public", "authn": ["anonymous"], "policy": "public", "upstream": "main",
            }));
        })
    });
    assert_eq!(world.gateway.get("/public", &[]).status, 200);
    let before = world.upstream.seen().len();
    for header in headers {
        assert_eq!(
            world.gateway.get("/admin", &[*header]).status,
            401,
            "{header:?}"
        );
    }
    assert_eq!(world.upstream.seen().len(), before);
}

fn aliases_do_not_arrive(names: &[&str]) {
    let (world, authorization) = guarded();
    for name in names {
        let headers = [
            ("authorization", authorization.as_str()),
            (*name, "mallory"),
        ];
        assert_eq!(world.gateway.get("/a", &headers).status, 200, "{name}");
        let seen = world.upstream.last();
        assert!(
            !seen
                .headers
                .iter()
                .any(|(_, value)| value.contains("mallory")),
            "{name}: {:?}",
            seen.headers
        );
        assert!(seen.header("x-portcullis-assertion").is_some(), "{name}");
    }
}

/// What an HTTP/2 server does with one stream, whatever it is made of.
fn one_stream(gateway: &Gateway, fields: &[(&str, &str)]) -> Outcome {
    let mut h2 = H2::connect(gateway.address());
    h2.headers(1, fields, true);
    h2.outcome(1)
}

fn pseudo<'a>(method: &'a str, path: &'a str) -> Vec<(&'a str, &'a str)> {
    vec![
        (":method", method),
        (":scheme", "http"),
        (":authority", "h"),
        (":path", path),
    ]
}

const UPGRADE: &str = "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
                       Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n";

#[test]
fn cve_2025_64763_bytes_before_101_are_not_forwarded() {
    // Envoy forwarded what a client sent after CONNECT or Upgrade before these were accepted.
    let (world, authorization) = guarded();
    let before = world.upstream.seen().len();
    let upgrade = format!(
        "GET /ws HTTP/1.1\r\nHost: h\r\nAuthorization: {authorization}\r\n{UPGRADE}\r\n{HIDDEN}"
    );
    let (answer, mut connection) = first(&world.gateway, upgrade);
    assert_ne!(answer.unwrap().status, 101);
    // The rest is another request, which is judged like any other and has no token.
    assert!(
        connection
            .answer()
            .is_none_or(|answer| answer.status == 401)
    );
    let seen = world.upstream.seen().split_off(before);
    assert_eq!(
        seen.iter().map(|seen| seen.path()).collect::<Vec<_>>(),
        ["/ws"]
    );
    assert_eq!(seen[0].header("upgrade"), None);

    let connect = format!(
        "CONNECT h:443 HTTP/1.1\r\nHost: h:443\r\nAuthorization: {authorization}\r\n\r\n{HIDDEN}"
    );
    let (answer, mut connection) = first(&world.gateway, connect);
    assert!(answer.is_none_or(|answer| answer.status >= 400));
    assert!(connection.closes());
    assert_eq!(world.upstream.seen().len(), before + 1);
}

#[test]
fn cve_2026_73548_a_connection_that_switched_protocols_is_not_used_again() {
    // Envoy left bytes before an accepted upgrade on a shared connection to the upstream.
    let (upstream, gateway) = open();
    upstream.answer(|seen, stream| {
        let answer: &[u8] = if seen.path() == "/ws" {
            b"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n"
        } else {
            b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
        };
        let _ = stream.write_all(answer);
        Next::KeepAlive
    });
    let (answer, mut connection) = first(
        &gateway,
        format!(
            "GET /ws HTTP/1.1\r\nHost: h\r\n{UPGRADE}\r\nGET /after HTTP/1.1\r\nHost: h\r\n\r\n"
        ),
    );
    assert_eq!(answer.unwrap().status, 502);
    assert!(
        connection
            .answer()
            .is_none_or(|answer| answer.status == 200)
    );
    assert_eq!(gateway.get("/other", &[]).status, 200);
    let switched = upstream.seen()[0].connection;
    let later: Vec<_> = upstream
        .seen()
        .into_iter()
        .filter(|seen| seen.path() != "/ws")
        .collect();
    assert!(
        !later.is_empty() && later.iter().all(|seen| seen.connection != switched),
        "{later:?}"
    );
}

#[test]
fn cve_2026_2833_bytes_after_an_upgrade_that_was_answered_200_are_a_request_of_their_own() {
    // Pingora passed them through although no tunnel had been opened.
    let (world, authorization) = guarded();
    let before = world.upstream.seen().len();
    let bytes = format!(
        "GET /ws HTTP/1.1\r\nHost: h\r\nAuthorization: {authorization}\r\n{UPGRADE}\r\n{HIDDEN}"
    );
    let (answer, mut connection) = first(&world.gateway, bytes);
    assert_eq!(answer.unwrap().status, 200);
    assert!(
        connection
            .answer()
            .is_none_or(|answer| answer.status == 401)
    );
    let seen = world.upstream.seen().split_off(before);
    assert!(seen.iter().all(|seen| seen.path() == "/ws"), "{seen:?}");
}

#[test]
fn cve_2026_26308_a_header_sent_twice_is_judged_like_its_joined_form() {
    // Envoy's RBAC looked at one value of several.
    let world = World::with(|builder| {
        builder.policy("package gate\n\ndefault allow := false\n\nallow if input.request.headers[\"x-role\"] == \"user\"\n")
    });
    let authorization = format!("Bearer {}", world.token("alice"));
    let send = |roles: &[&str]| {
        let mut headers = vec![("authorization", authorization.as_str())];
        headers.extend(roles.iter().map(|role| ("x-role", *role)));
        world.gateway.get("/a", &headers).status
    };
    assert_eq!(send(&["user"]), 200);
    for roles in [
        &["user", "admin"][..],
        &["admin", "user"],
        &["user, admin"],
        &["user", "user"],
        &["user", ""],
    ] {
        assert_eq!(send(roles), 403, "{roles:?}");
    }
}

#[test]
fn cve_2026_26330_a_limit_that_is_reached_while_the_client_leaves_is_survived() {
    // Envoy crashed in the response phase of its rate limiter.
    let upstream = Upstream::start();
    let gateway = Builder::open(&upstream)
        .with(|document| {
            document["limits"] = json!({"few": {"by": "address", "rate": "5/s", "burst": 5}});
            document["routes"][0]["limits"] = json!(["few"]);
        })
        .start();
    for _ in 0..100 {
        let mut connection = gateway.connect();
        connection.send(request("GET", "/a", &[]));
    }
    eventually("an answer", || {
        (gateway.get("/a", &[]).status == 200).then_some(())
    });
}

#[test]
fn cve_2026_26311_resets_at_every_stage_are_survived() {
    // Envoy's filters went on decoding after the stream had been reset.
    let (world, authorization) = guarded();
    world.upstream.answer(|_, stream| {
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\n");
        std::thread::park_timeout(Duration::from_millis(2));
        let _ = stream.write_all(b"abc");
        Next::KeepAlive
    });
    let reset = |stream| frame(RST_STREAM, 0, stream, &[0, 0, 0, 8]);
    let headers = |stream, path, token: &str, end: u8| {
        let mut fields = pseudo(if end == 0 { "POST" } else { "GET" }, path);
        fields.push(("authorization", token));
        frame(HEADERS, END_HEADERS | end, stream, &block(&fields))
    };
    for round in 0..10u64 {
        let mut h2 = H2::connect(world.gateway.address());
        let mut stream = 1;
        for (path, token, end) in [
            ("/a", authorization.as_str(), END_STREAM),
            ("/a", authorization.as_str(), 0),
            ("/a", "Bearer x.y.z", END_STREAM),
            ("/a//b", authorization.as_str(), END_STREAM),
            ("/admin", authorization.as_str(), END_STREAM),
        ] {
            let mut bytes = headers(stream, path, token, end);
            if end == 0 {
                bytes.extend(frame(DATA, 0, stream, b"part"));
            }
            let _ = h2.send(bytes);
            // Another stage is reached every time.
            std::thread::park_timeout(Duration::from_micros(round * 300));
            let _ = h2.send(reset(stream));
            stream += 2;
        }
        let mut fields = pseudo("GET", "/a");
        fields.push(("authorization", &authorization));
        h2.headers(stream, &fields, true);
        assert_eq!(h2.outcome(stream), Outcome::Status(200), "round {round}");
    }
    assert_eq!(
        world
            .gateway
            .get("/a", &[("authorization", &authorization)])
            .status,
        200
    );
}

#[test]
fn cve_2026_26310_scoped_addresses_are_no_addresses() {
    // Envoy crashed on them.
    let upstream = Upstream::start();
    let gateway = Builder::open(&upstream)
        .with(|document| document["trusted_proxies"] = json!(["127.0.0.0/8", "fe80::/10"]))
        .start();
    for field in [
        "fe80::1%lo",
        "[fe80::1%lo]:80",
        "1.2.3.4, fe80::1%25lo",
        "%",
        "::ffff:1.2.3.4%",
    ] {
        assert_eq!(
            gateway.get("/a", &[("x-forwarded-for", field)]).status,
            200,
            "{field}"
        );
        let id = upstream.last().header("x-request-id").unwrap().to_owned();
        assert_eq!(gateway.record(&id)["client"], "127.0.0.1", "{field}");
    }
    assert_eq!(gateway.get("/a", &[("host", "[fe80::1%lo]")]).status, 400);
}

#[test]
fn cve_2026_47774_cookies_count_into_the_header_limit() {
    // Envoy did not count the cookies that HPACK had not compressed.
    let (upstream, gateway) = open();
    let crumb = ("cookie", "c".repeat(100));
    let mut fields = pseudo("GET", "/a");
    fields.extend((0..400).map(|_| (crumb.0, crumb.1.as_str())));
    let crumbs = block(&fields);
    let mut h2 = H2::connect(gateway.address());
    let mut parts = crumbs.chunks(16_000).peekable();
    let mut kind = (HEADERS, END_STREAM);
    while let Some(part) = parts.next() {
        let last = if parts.peek().is_none() {
            END_HEADERS
        } else {
            0
        };
        let _ = h2.send(frame(kind.0, kind.1 | last, 1, part));
        kind = (CONTINUATION, 0);
    }
    assert!(matches!(
        h2.outcome(1),
        Outcome::Status(431) | Outcome::GoAway(_) | Outcome::Reset(_)
    ));

    // The same by reference: one entry in the table, named a hundred times.
    let mut bomb = block(&pseudo("GET", "/a"));
    bomb.push(0x40);
    bomb.extend(&block(&[("cookie", &"c".repeat(3000))])[1..]);
    bomb.extend([0xbe; 100]);
    let mut h2 = H2::connect(gateway.address());
    let _ = h2.send(frame(HEADERS, END_HEADERS | END_STREAM, 1, &bomb));
    assert!(matches!(
        h2.outcome(1),
        Outcome::Status(431) | Outcome::GoAway(_) | Outcome::Reset(_)
    ));
    assert!(upstream.seen().is_empty());
}

#[test]
fn cve_2026_73511_path_parameters_hide_no_dot_segment() {
    // Envoy stripped them from the whole path, upstreams from each segment.
    paths_have_one_reading(&[
        "/x;/../admin",
        "/admin;a=b/x",
        "/..;/admin",
        "/x/..;a=b/admin",
        "/x/..%3b/admin",
        "/;/admin",
        "/x;/admin",
        "/.;/admin",
        "/x/%2e%2e;/admin",
        "/admin;",
        "/admin%3Bx",
    ]);
}

#[test]
fn cve_2026_73513_trailers_without_end_stream_end_the_stream_and_not_the_process() {
    let (upstream, gateway) = open();
    for _ in 0..5 {
        let mut h2 = H2::connect(gateway.address());
        h2.headers(1, &pseudo("POST", "/a"), false);
        let _ = h2.send(frame(DATA, 0, 1, b"body"));
        h2.headers(1, &[("x-sum", "1")], false);
        let _ = h2.send(frame(DATA, END_STREAM, 1, HIDDEN.as_bytes()));
        assert!(!matches!(h2.outcome(1), Outcome::Status(200)));
    }
    assert!(!upstream.seen().iter().any(|seen| seen.path() == "/hidden"));
    assert_eq!(gateway.get("/a", &[]).status, 200);
}

#[test]
fn cve_2026_73547_requests_without_a_path_reach_no_policy() {
    // Envoy's external authorization crashed on them.
    let (world, authorization) = guarded();
    for line in [
        "CONNECT h:443",
        "OPTIONS *",
        "GET *",
        "GET h:443",
        "GET ?x",
        "GET http://h",
        "CONNECT /a",
    ] {
        let before = world.upstream.seen().len();
        let bytes = format!("{line} HTTP/1.1\r\nHost: h\r\nAuthorization: {authorization}\r\n\r\n");
        let (answer, _) = first(&world.gateway, bytes);
        let status = answer.map(|answer| answer.status);
        let seen = world.upstream.seen().split_off(before);
        // RFC 9112 section 3.2.2: an absolute target without a path means the root.
        if line == "GET http://h" {
            assert!(seen.iter().all(|seen| seen.path() == "/"), "{seen:?}");
            continue;
        }
        assert!(
            status.is_none_or(|status| status >= 400),
            "{line}: {status:?}"
        );
        assert!(seen.is_empty(), "{line}: {seen:?}");
    }
    let before = world.upstream.seen().len();
    for fields in [
        vec![(":method", "CONNECT"), (":authority", "h:443")],
        pseudo("OPTIONS", "*"),
        pseudo("GET", ""),
        pseudo("GET", "*"),
        vec![(":method", "GET"), (":scheme", "http"), (":authority", "h")],
    ] {
        let outcome = one_stream(&world.gateway, &fields);
        assert!(
            !matches!(outcome, Outcome::Status(..400)),
            "{fields:?}: {outcome:?}"
        );
    }
    assert_eq!(world.upstream.seen().len(), before);
    assert_eq!(
        world
            .gateway
            .get("/a", &[("authorization", &authorization)])
            .status,
        200
    );
}

#[test]
fn cve_2024_45806_headers_that_only_we_write_arrive_rewritten_or_not_at_all() {
    // Envoy trusted its own internal headers when they came from outside.
    let (world, authorization) = guarded();
    assert_eq!(
        world
            .gateway
            .get("/a", &[("authorization", &authorization)])
            .status,
        200
    );
    let written: Vec<String> = world
        .upstream
        .last()
        .headers
        .into_iter()
        .map(|(name, _)| name)
        .collect();
    assert!(written.len() > 5, "{written:?}");
    for name in written
        .iter()
        .filter(|name| !name.eq_ignore_ascii_case("host"))
    {
        let headers = [("authorization", authorization.as_str()), (name, "mallory")];
        assert_eq!(world.gateway.get("/a", &headers).status, 200, "{name}");
        let seen = world.upstream.last();
        assert!(
            !seen
                .headers
                .iter()
                .any(|(_, value)| value.contains("mallory")),
            "{name}: {:?}",
            seen.headers
        );
    }
}

#[test]
fn cve_2024_45808_control_bytes_forge_no_line_in_the_record() {
    let (_upstream, gateway) = open();
    let evil = "a\u{85}{\"request_id\":\"forged\"}\u{2028}\u{9b}31m";
    for bytes in [
        format!("GET /a?x={evil} HTTP/1.1\r\nHost: h\r\nUser-Agent: {evil}\r\n\r\n").into_bytes(),
        format!("GET /%0d%0aforged HTTP/1.1\r\nHost: h\r\nX: {evil}\r\n\r\n").into_bytes(),
        b"GET /a HTTP/1.1\r\nHost: h\r\nUser-Agent: a\x1b[31m\r\n\r\n".to_vec(),
        b"GET /a HTTP/1.1\r\nHost: h\r\nUser-Agent: \xff\xfe\r\nX-Request-Id: forged\r\n\r\n"
            .to_vec(),
    ] {
        first(&gateway, bytes);
    }
    assert_eq!(gateway.get("/last", &[]).status, 200);
    // Every line is a record of ours.
    let records = eventually("the last record", || {
        Some(gateway.records())
            .filter(|records| records.iter().any(|record| record["path"] == "/last"))
    });
    assert!(
        records
            .iter()
            .all(|record| record["request_id"] != "forged"),
        "{records:?}"
    );
    assert!(
        records.iter().all(|record| record["version"].is_number()),
        "{records:?}"
    );
}

#[test]
fn cve_2026_47692_the_proxy_protocol_is_not_spoken() {
    let (upstream, gateway) = open();
    for prefix in [
        &b"PROXY TCP4 1.2.3.4 5.6.7.8 1 2\r\n"[..],
        b"\r\n\r\n\x00\r\nQUIT\n\x21\x11\x00\x0c\x01\x02\x03\x04\x05\x06\x07\x08\x00\x01\x00\x02",
    ] {
        let (answer, mut connection) = first(&gateway, [prefix, HIDDEN.as_bytes()].concat());
        assert!(answer.is_none_or(|answer| answer.status == 400));
        assert!(connection.closes());
    }
    assert!(upstream.seen().is_empty());
}

#[test]
fn cve_2023_27491_malformed_http_2_request_lines_are_not_forwarded() {
    let (upstream, gateway) = open();
    for fields in [
        pseudo("GET", "/a HTTP/1.1\r\nx-user-id: mallory\r\nx: y"),
        pseudo("GET", "/a b"),
        pseudo("GET", "/a\tb"),
        pseudo("GET", "/a\0"),
        pseudo("GET", "/\u{e9}"),
        pseudo("GET /admin HTTP/1.1\r\nx: y", "/a"),
        pseudo("GET\0", "/a"),
        pseudo("", "/a"),
        vec![
            (":method", "GET"),
            (":scheme", "http://evil/?"),
            (":authority", "h"),
            (":path", "/a"),
        ],
        vec![
            (":method", "GET"),
            (":scheme", "http"),
            (":authority", "h\r\nx: y"),
            (":path", "/a"),
        ],
        vec![
            (":method", "GET"),
            (":scheme", "http"),
            (":authority", "h/admin"),
            (":path", "/a"),
        ],
    ] {
        let outcome = one_stream(&gateway, &fields);
        assert!(
            !matches!(outcome, Outcome::Status(..400)),
            "{fields:?}: {outcome:?}"
        );
    }
    assert!(upstream.seen().is_empty(), "{:?}", upstream.seen());
}

/// An upstream that answers as soon as it has a head and never reads a body. Gives what arrived on
/// each connection.
fn hasty(answer: &'static [u8]) -> (String, Arc<Mutex<Vec<Vec<u8>>>>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let arrived: Arc<Mutex<Vec<Vec<u8>>>> = Arc::default();
    let shared = Arc::clone(&arrived);
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let shared = Arc::clone(&shared);
            let index = {
                let mut all = shared.lock().unwrap();
                all.push(Vec::new());
                all.len() - 1
            };
            std::thread::spawn(move || serve_hastily(stream, answer, &shared, index));
        }
    });
    (url, arrived)
}

fn serve_hastily(
    mut stream: TcpStream,
    answer: &[u8],
    arrived: &Mutex<Vec<Vec<u8>>>,
    index: usize,
) {
    let mut chunk = [0; 4096];
    let mut answered = 0;
    while let Ok(read @ 1..) = stream.read(&mut chunk) {
        let mut all = arrived.lock().unwrap();
        all[index].extend_from_slice(&chunk[..read]);
        let heads = all[index]
            .windows(4)
            .filter(|window| window == b"\r\n\r\n")
            .count();
        drop(all);
        for _ in answered..heads {
            let _ = stream.write_all(answer);
        }
        answered = heads;
    }
}

#[test]
fn cve_2025_4366_a_body_that_nobody_read_is_no_request() {
    // Pingora used a connection again without having drained the request's body.
    let (world, authorization) = guarded();
    let body = HIDDEN.repeat((1 << 20) / HIDDEN.len());
    let before = world.upstream.seen().len();
    let mut connection = world.gateway.connect();
    connection.send(format!(
        "POST /a HTTP/1.1\r\nHost: h\r\nContent-Length: {}\r\n\r\n",
        body.len()
    ));
    connection.send(&body);
    let answer = connection.answer().unwrap();
    assert_eq!(answer.status, 401);
    connection.send(request(
        "GET",
        "/next",
        &[("authorization", &authorization)],
    ));
    assert!(
        connection
            .answer()
            .is_none_or(|answer| answer.status == 200)
    );
    let seen = world.upstream.seen().split_off(before);
    assert!(seen.iter().all(|seen| seen.path() == "/next"), "{seen:?}");
}

#[test]
fn cve_2025_4366_an_upload_that_was_answered_early_ends_its_upstream_connection() {
    let (url, arrived) = hasty(b"HTTP/1.1 413 Content Too Large\r\nContent-Length: 2\r\n\r\nno");
    let upstream = Upstream::start();
    let gateway = Builder::open(&upstream)
        .with(|document| document["upstreams"]["main"]["endpoints"] = json!([url]))
        .start();
    let body = "GET /next ".repeat(100_000);
    for framing in [
        format!("Content-Length: {}", body.len()),
        "Transfer-Encoding: chunked".to_owned(),
    ] {
        let mut connection = gateway.connect();
        connection.send(format!(
            "POST /upload HTTP/1.1\r\nHost: h\r\n{framing}\r\n\r\n"
        ));
        if framing.starts_with('T') {
            connection.send(format!("{:x}\r\n", body.len()));
        }
        // Only a part, so that the answer always comes first.
        connection.send(&body[..1000]);
        let answer = connection.answer().unwrap();
        assert_eq!(
            (answer.status, answer.text().as_str()),
            (413, "no"),
            "{framing}"
        );
        assert_eq!(answer.header("connection"), Some("close"), "{framing}");
        let answer = gateway.get("/next", &[]);
        assert_eq!(answer.status, 413, "{framing}");
        connection.send(&body[1000..]);
        // Whatever the client sends on is body, never a request.
        assert!(connection.answer().is_none(), "{framing}");
    }
    let arrived = arrived.lock().unwrap();
    let mut uploads = 0;
    for bytes in arrived.iter() {
        let text = String::from_utf8_lossy(bytes);
        if let Some((_, after)) = text.split_once("POST /upload HTTP/1.1\r\n") {
            uploads += 1;
            assert!(
                !after.contains("GET /next HTTP/1.1"),
                "an upload's connection was used again"
            );
        }
    }
    assert_eq!(uploads, 2);
}

#[test]
fn an_answer_before_the_end_of_the_body_says_that_the_connection_closes() {
    let (world, authorization) = guarded();
    let mut connection = world.gateway.connect();
    connection.send("POST /a HTTP/1.1\r\nHost: h\r\nContent-Length: 1000000\r\n\r\npart");
    let answer = connection.answer().unwrap();
    assert_eq!(
        (answer.status, answer.header("connection")),
        (401, Some("close"))
    );
    assert!(connection.closes());
    // A body that is all there does no harm.
    let mut connection = world.gateway.connect();
    connection.send("POST /a HTTP/1.1\r\nHost: h\r\nContent-Length: 4\r\n\r\npart");
    let answer = connection.answer().unwrap();
    assert_eq!((answer.status, answer.header("connection")), (401, None));
    connection.send(request("GET", "/a", &[("authorization", &authorization)]));
    assert_eq!(connection.answer().unwrap().status, 200);
}

#[test]
fn cve_2026_2835_http_1_0_bodies_have_a_length_or_none() {
    // Pingora read HTTP/1.0 bodies up to the end of the connection, and took TE beside CL.
    let (world, authorization) = guarded();
    let before = world.upstream.seen().len();
    for (fields, status) in [
        ("Transfer-Encoding: chunked", 400),
        ("Transfer-Encoding: chunked\r\nConnection: keep-alive", 400),
        ("Transfer-Encoding: chunked\r\nContent-Length: 5", 400),
        ("Content-Length: 5\r\nContent-Length: 6", 400),
        ("X: y", 200),
        ("Connection: keep-alive", 200),
    ] {
        let bytes = format!(
            "POST /a HTTP/1.0\r\nHost: h\r\nAuthorization: {authorization}\r\n{fields}\r\n\r\n{HIDDEN}"
        );
        let (answer, _) = first(&world.gateway, bytes);
        assert!(
            answer.as_ref().is_none_or(|answer| answer.status == status),
            "{fields}: {answer:?}"
        );
    }
    let seen = world.upstream.seen().split_off(before);
    assert!(
        seen.iter()
            .all(|seen| seen.path() == "/a" && seen.body.is_empty()),
        "{seen:?}"
    );
}

#[test]
fn cve_2026_40912_the_path_that_is_matched_is_the_path_that_is_forwarded() {
    // Traefik matched the decoded path and forwarded the raw one.
    paths_have_one_reading(&[
        "/%61dmin",
        "/%41dmin",
        "/a%64min/x",
        "/x%2f..%2fadmin",
        "/x/%2e%2e/admin",
        "/x/%2E./admin",
        "/%2e/admin",
        "/a%20b",
        "/caf%c3%a9",
        "/a%3fb",
        "/a%23b",
        "/%2561dmin",
        "/a%25",
        "/x%2fadmin",
        "/x%5cadmin",
    ]);
}

#[test]
fn cve_2026_48020_nothing_is_normalised_after_the_decision() {
    // Traefik stripped a prefix and then normalised: `/api../admin`.
    paths_have_one_reading(&[
        "/api../admin",
        "/api/../admin",
        "/api/..%2fadmin",
        "/api%2f../admin",
        "/api/.../admin",
        "/api./admin",
    ]);
}

#[test]
fn cve_2025_66490_encoded_delimiters_pass_no_matcher() {
    paths_have_one_reading(&[
        "/public%2f..%2fadmin",
        "/public%5c..%5cadmin",
        "/public%00/admin",
        "/public%3b/../admin",
        "/public%3f/../admin",
        "/public%23/../admin",
        "/admin%2f",
        "/admin%3fx",
        "/admin%23x",
    ]);
}

#[test]
fn cve_2026_39858_aliases_of_forwarding_headers_do_not_arrive() {
    aliases_do_not_arrive(&[
        "X_Forwarded_For",
        "x_forwarded_host",
        "X-Forwarded_Proto",
        "x.forwarded.for",
        "X_Real_IP",
        "x_forwarded_uri",
        "X~Forwarded~For",
        "x_forwarded_client_cert",
    ]);
}

#[test]
fn cve_2025_64484_aliases_of_identity_headers_do_not_arrive() {
    aliases_do_not_arrive(&[
        "X_User_Id",
        "x_user_id",
        "X-User_Id",
        "x.user.id",
        "x~user~id",
        "X_PORTCULLIS_ASSERTION",
        "x-portcullis_assertion",
        "x!user-id",
        "x|user|id",
        "x'user'id",
    ]);
}

#[test]
fn cve_2026_52845_deleting_a_header_deletes_its_aliases() {
    let (upstream, gateway) = open();
    let headers = [
        ("x-user-id", "mallory"),
        ("x_user_id", "mallory"),
        ("X_USER-ID", "mallory"),
    ];
    assert_eq!(gateway.get("/a", &headers).status, 200);
    let seen = upstream.last();
    assert!(
        !seen.headers.iter().any(|(_, value)| value == "mallory"),
        "{:?}",
        seen.headers
    );
    assert_eq!(seen.header("x-user-id"), Some("gateway"));
}

#[test]
fn cve_2026_44087_open_routes_too_drop_identity_headers() {
    // APISIX left them in place by default.
    let upstream = Upstream::start();
    let gateway = Builder::open(&upstream)
        .with(|document| {
            document["identity"] =
                json!({"headers": {"x-user-id": "subject", "x-user-roles": "roles"}})
        })
        .start();
    for name in ["x-user-id", "X_User_Id", "x-user-roles", "x.user.roles"] {
        assert_eq!(gateway.get("/a", &[(name, "mallory")]).status, 200);
        assert!(
            !upstream
                .last()
                .headers
                .iter()
                .any(|(_, value)| value == "mallory"),
            "{name}"
        );
    }
}

#[test]
fn ghsa_6384_m2mw_rf54_every_forwarding_header_of_a_stranger_is_dropped() {
    // Traefik trusted X-Forwarded-Prefix although trust was off.
    aliases_do_not_arrive(&[
        "x-forwarded-prefix",
        "x-forwarded-for",
        "x-forwarded-host",
        "x-forwarded-proto",
        "x-forwarded-port",
        "x-forwarded-uri",
        "x-forwarded-client-cert",
        "x-real-ip",
        "forwarded",
    ]);
}

#[test]
fn cve_2024_45410_and_2025_48865_connection_removes_nothing_that_we_write() {
    // Traefik's and Fabio's clients deleted forwarding and identity headers by naming them.
    let (world, authorization) = guarded();
    for nominated in [
        "X-Forwarded-For",
        "close, X-Forwarded-Host, X-Forwarded-Proto",
        "x-user-id",
        "X_User_Id, x-portcullis-assertion",
        "x-request-id, traceparent",
        "host",
        "authorization",
        "content-length",
    ] {
        let headers = [
            ("authorization", authorization.as_str()),
            ("connection", nominated),
            ("x-user-id", "mallory"),
        ];
        assert_eq!(world.gateway.get("/a", &headers).status, 200, "{nominated}");
        let seen = world.upstream.last();
        assert_eq!(seen.header("x-user-id"), Some("alice"), "{nominated}");
        for name in [
            "x-forwarded-for",
            "x-forwarded-host",
            "x-forwarded-proto",
            "x-portcullis-assertion",
            "x-request-id",
            "host",
        ] {
            assert!(seen.header(name).is_some(), "{nominated}: {name} is gone");
        }
    }
}

#[test]
fn cve_2026_40575_no_header_stands_for_the_path() {
    // oauth2-proxy let X-Forwarded-Uri decide which routes need no login.
    no_header_opens_a_route(&[
        ("x-forwarded-uri", "/public"),
        ("x-original-url", "/public"),
        ("x-rewrite-url", "/public"),
        ("x-original-uri", "/public"),
        ("x-envoy-original-path", "/public"),
        ("x-forwarded-prefix", "/public"),
        ("x-http-method-override", "OPTIONS"),
    ]);
}

#[test]
fn ghsa_5hvv_m4w4_gf6v_no_user_agent_opens_a_route() {
    no_header_opens_a_route(&[
        ("user-agent", "GoogleHC/1.0"),
        ("user-agent", "kube-probe/1.30"),
        ("user-agent", "ELB-HealthChecker/2.0"),
        ("user-agent", "portcullis"),
    ]);
}

#[test]
fn ghsa_pxq7_h93f_9jrg_and_7rh7_c77v_6434_fragment_and_query_are_not_the_path() {
    let world = World::with(|builder| {
        builder.with(|document| {
            document["routes"].as_array_mut().unwrap().push(json!({
                "name": "public", "path": "/public", "authn": ["anonymous"], "policy": "public", "upstream": "main",
            }));
        })
    });
    for target in [
        "/admin#/public",
        "/admin?/public",
        "/admin?x=/public",
        "/admin?#/public",
        "/admin#?/public",
        "/admin%23/public",
        "/admin%3f/public",
    ] {
        let answer = world.gateway.get(target, &[]);
        assert!(
            matches!(answer.status, 400 | 401),
            "{target}: {}",
            answer.status
        );
    }
    let outcome = one_stream(&world.gateway, &get("/admin#/public", &[]));
    assert!(!matches!(outcome, Outcome::Status(..400)), "{outcome:?}");
    assert!(world.upstream.seen().is_empty());
}

#[test]
fn cve_2026_26205_a_path_that_begins_with_two_slashes_is_no_authority() {
    // The OPA plugin took `//admin` for a host and judged an empty path.
    paths_have_one_reading(&[
        "//admin",
        "///admin",
        "/.//admin",
        "//h/admin",
        "//admin//x",
        "//",
        "/%2fadmin",
    ]);
    let world = World::with(|builder| {
        builder.policy(NO_ADMIN).with(|document| {
            document["routes"][0]["paths"] =
                json!({"merge_slashes": true, "resolve_dot_segments": true});
        })
    });
    let token = world.token("alice");
    for path in [
        "//admin",
        "///admin",
        "/.//admin",
        "//x/../admin",
        "//admin/x",
    ] {
        assert_eq!(world.gateway.bearer(path, &token).status, 403, "{path}");
    }
    assert_eq!(world.gateway.bearer("//x", &token).status, 200);
    assert_eq!(world.upstream.last().path(), "/x");
}

#[test]
fn cve_2021_21299_32714_32715_lengths_that_hyper_misread_are_refused() {
    // Two Transfer-Encoding fields, a chunk size that overflows, a plus sign in Content-Length.
    let (upstream, gateway) = open();
    for (fields, body) in [
        (
            "Transfer-Encoding: x\r\nTransfer-Encoding: chunked",
            "0\r\n\r\n",
        ),
        (
            "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked",
            "0\r\n\r\n",
        ),
        (
            "Transfer-Encoding: chunked",
            "10000000000000005\r\naaaaa\r\n0\r\n\r\n",
        ),
        ("Content-Length: +5", "aaaaa"),
        ("Content-Length: 18446744073709551621", "aaaaa"),
    ] {
        let (answer, mut connection) = first(
            &gateway,
            format!("POST /a HTTP/1.1\r\nHost: h\r\n{fields}\r\n\r\n{body}{HIDDEN}"),
        );
        assert!(
            answer.is_none_or(|answer| answer.status >= 400),
            "{fields} {body}"
        );
        assert!(connection.closes(), "{fields} {body}");
    }
    assert!(upstream.seen().is_empty(), "{:?}", upstream.seen());
}

/// Sends up to so many pieces; how the connection ended.
fn flood(gateway: &Gateway, pieces: u32, mut piece: impl FnMut(u32) -> Vec<u8>) -> Outcome {
    let mut h2 = H2::connect(gateway.address());
    for index in 0..pieces {
        if h2.send(piece(2 * index + 1)).is_err() {
            break;
        }
    }
    loop {
        match h2.read() {
            None => return Outcome::Closed,
            Some((crate::support::h2::GOAWAY, _, _, payload)) => {
                return Outcome::GoAway(u32::from_be_bytes(payload[4..8].try_into().unwrap()));
            }
            Some(_) => {}
        }
    }
}

fn plain(stream: u32) -> Vec<u8> {
    frame(
        HEADERS,
        END_HEADERS | END_STREAM,
        stream,
        &block(&get("/a", &[])),
    )
}

#[test]
fn cve_2023_26964_and_2023_44487_rapid_resets_end_the_connection() {
    let (_upstream, gateway) = open();
    let ended = flood(&gateway, 5000, |stream| {
        [plain(stream), frame(RST_STREAM, 0, stream, &[0, 0, 0, 8])].concat()
    });
    assert!(
        matches!(ended, Outcome::GoAway(1..) | Outcome::Closed),
        "{ended:?}"
    );
    assert_eq!(gateway.get("/a", &[]).status, 200);
}

#[test]
fn rustsec_2024_0003_and_cve_2025_8671_streams_that_we_must_reset_end_the_connection() {
    let (_upstream, gateway) = open();
    let ended = flood(&gateway, 5000, |stream| {
        [
            plain(stream),
            frame(WINDOW_UPDATE, 0, stream, &0x7fff_ffffu32.to_be_bytes()),
        ]
        .concat()
    });
    assert!(
        matches!(ended, Outcome::GoAway(1..) | Outcome::Closed),
        "{ended:?}"
    );
    assert_eq!(gateway.get("/a", &[]).status, 200);
}

#[test]
fn rustsec_2024_0332_continuations_without_end_end_the_connection() {
    let (upstream, gateway) = open();
    let piece = block(&[("x", &"y".repeat(1000))]);
    let ended = flood(&gateway, 5000, |stream| match stream {
        1 => frame(HEADERS, END_STREAM, 1, &block(&get("/a", &[]))),
        _ => frame(CONTINUATION, 0, 1, &piece),
    });
    assert!(
        matches!(ended, Outcome::GoAway(1..) | Outcome::Closed),
        "{ended:?}"
    );
    assert!(upstream.seen().is_empty());
    assert_eq!(gateway.get("/a", &[]).status, 200);
}

#[test]
fn cve_2022_3212_the_admin_listener_reads_no_endless_body() {
    let (_upstream, gateway) = open();
    let address = gateway.process.admin_address().unwrap();
    for framing in [
        "Content-Length: 1099511627776",
        "Transfer-Encoding: chunked",
    ] {
        let mut connection = Connection::plain(address);
        connection.send(format!(
            "POST /reload HTTP/1.1\r\nHost: {address}\r\nAuthorization: {ADMIN}\r\n{framing}\r\n\r\n"
        ));
        let piece = format!("10000\r\n{}\r\n", "x".repeat(0x10000));
        let mut sent = 0;
        // At most 64 MiB: the other side has to stop reading long before.
        while sent < 1000 && connection.write_all(piece.as_bytes()).is_ok() {
            sent += 1;
        }
        assert!(sent < 1000, "{framing}: everything was read");
    }
    assert_eq!(gateway.admin("GET", "/status").status, 200);
}

#[test]
fn cve_2023_43669_an_upstreams_endless_head_is_a_502() {
    // tungstenite read a handshake's headers without end.
    let upstream = Upstream::with(|_, stream| {
        let _ = stream.write_all(b"HTTP/1.1 101 Switching Protocols\r\n");
        let field = format!("X: {}\r\n", "x".repeat(1 << 20));
        for _ in 0..16 {
            if stream.write_all(field.as_bytes()).is_err() {
                break;
            }
        }
        Next::Close
    });
    let gateway = Builder::open(&upstream).start();
    let (answer, _) = first(
        &gateway,
        format!("GET /ws HTTP/1.1\r\nHost: h\r\n{UPGRADE}\r\n"),
    );
    assert_eq!(answer.unwrap().status, 502);
}

#[test]
fn cve_2026_33186_a_path_without_a_leading_slash_skips_nothing() {
    let (world, authorization) = guarded();
    for path in ["admin/x", "a", "http://h/admin", "h/admin"] {
        let mut fields = pseudo("GET", path);
        fields.push(("authorization", &authorization));
        let outcome = one_stream(&world.gateway, &fields);
        assert!(
            !matches!(outcome, Outcome::Status(..400)),
            "{path}: {outcome:?}"
        );
    }
    assert!(world.upstream.seen().is_empty());
}

#[test]
fn refusals_tell_what_a_client_may_know_and_close_where_framing_is_in_doubt() {
    let (world, authorization) = guarded();
    let folder = world.gateway.folder.path().display().to_string();
    let secrets = [
        "gate",
        "NO_ADMIN",
        "rego",
        "127.0.0.1",
        "panicked",
        "src/",
        "hyper",
        folder.as_str(),
        "eyJ",
    ];
    let post = |fields: &str| format!("POST /a HTTP/1.1\r\nHost: h\r\n{fields}\r\n");
    let with_token =
        |line: &str| format!("{line}\r\nHost: h\r\nAuthorization: {authorization}\r\n\r\n");
    for (bytes, status, code, closes) in [
        (
            post("Content-Length: 5\r\nTransfer-Encoding: chunked\r\n"),
            400,
            "bad_request",
            true,
        ),
        (
            post("Transfer-Encoding: gzip, chunked\r\n"),
            400,
            "bad_request",
            true,
        ),
        (
            "GET /a HTTP/1.1\r\nHost: h\r\nHost: h\r\n\r\n".to_owned(),
            400,
            "bad_request",
            true,
        ),
        (
            "GET /a HTTP/1.1\r\n\r\n".to_owned(),
            400,
            "bad_request",
            true,
        ),
        (with_token("GET /a//b HTTP/1.1"), 400, "bad_request", true),
        (
            with_token("TRACE /a HTTP/1.1"),
            501,
            "method_not_supported",
            true,
        ),
        (post("Expect: 200-ok\r\n"), 417, "expectation_failed", true),
        (with_token("GET /admin HTTP/1.1"), 403, "denied", false),
        (
            "GET /a HTTP/1.1\r\nHost: h\r\n\r\n".to_owned(),
            401,
            "unauthenticated",
            false,
        ),
        (
            with_token("GET /a HTTP/1.1").replace("eyJ", "eyK"),
            401,
            "unauthenticated",
            false,
        ),
    ] {
        let (answer, mut connection) = first(&world.gateway, &bytes);
        let answer = answer.unwrap_or_else(|| panic!("{bytes:?}: no answer"));
        assert_eq!(
            (answer.status, answer.code().as_str()),
            (status, code),
            "{bytes:?}"
        );
        assert_eq!(
            answer.header("content-type"),
            Some("application/problem+json")
        );
        assert_eq!(answer.header("cache-control"), Some("no-store"));
        assert_eq!(
            answer.header("connection") == Some("close"),
            closes,
            "{bytes:?}: {:?}",
            answer.headers
        );
        let document = answer.json();
        let known = [
            "type",
            "title",
            "status",
            "code",
            "request_id",
            "decision_id",
        ];
        let members: Vec<&String> = document.as_object().unwrap().keys().collect();
        assert!(
            members.iter().all(|name| known.contains(&name.as_str())),
            "{members:?}"
        );
        assert_eq!(document["status"], json!(status));
        assert_eq!(document["request_id"].as_str().map(str::len), Some(32));
        assert_eq!(
            document["decision_id"] == Value::Null,
            status != 403,
            "{document}"
        );
        let text = format!("{:?} {}", answer.headers, answer.text());
        for secret in secrets {
            assert!(!text.contains(secret), "{bytes:?} tells {secret}: {text}");
        }
        if closes {
            assert!(connection.closes(), "{bytes:?}");
        }
    }
}
