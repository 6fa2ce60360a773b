//! Requests whose length or lines can be read in two ways are refused, and the connection ends.

use crate::support::client::Connection;
use crate::support::gateway::{Builder, Gateway};
use crate::support::upstream::Upstream;

fn open() -> (Upstream, Gateway) {
    let upstream = Upstream::start();
    let gateway = Builder::open(&upstream).start();
    (upstream, gateway)
}

/// Sends bytes followed by a request that must never be seen, on one connection.
fn smuggle(gateway: &Gateway, bytes: &str) -> (Option<u16>, Connection) {
    let mut connection = gateway.connect();
    connection.send(bytes.as_bytes());
    let status = connection.answer().map(|answer| answer.status);
    (status, connection)
}

const HIDDEN: &str = "GET /hidden HTTP/1.1\r\nHost: h\r\n\r\n";

#[test]
fn ambiguous_lengths_are_refused_and_the_connection_closes() {
    let (upstream, gateway) = open();
    for framing in [
        "Content-Length: 5\r\nTransfer-Encoding: chunked",
        "Transfer-Encoding: chunked\r\nContent-Length: 5",
        "Content-Length: 5\r\nContent-Length: 6",
        "Content-Length: 5, 6",
        "Content-Length: 5,5",
        "Content-Length: +5",
        "Content-Length: -5",
        "Content-Length: 0x5",
        "Content-Length: 5 5",
        "Content-Length:",
        "Content-Length: 99999999999999999999999",
        "Content-Length : 5",
        "Transfer-Encoding: identity",
        "Transfer-Encoding: identity, chunked",
        "Transfer-Encoding: chunked, identity",
        "Transfer-Encoding: gzip, chunked",
        "Transfer-Encoding: chunked, chunked",
        "Transfer-Encoding: ,chunked",
        "Transfer-Encoding: xchunked",
        "Transfer-Encoding: \"chunked\"",
        "Transfer-Encoding: chunked;q=1",
        "Transfer-Encoding: x\r\nTransfer-Encoding: chunked",
        "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked",
        "Transfer-Encoding : chunked",
        "Transfer-Encoding: \x0bchunked",
        "Transfer-Encoding:\r\n chunked",
        "X: y\r\n Transfer-Encoding: chunked",
        "X: y\rTransfer-Encoding: chunked",
        "Transfer-Encoding: chunked\x00",
        "Content_Length: 5\r\nTransfer-Encoding: chunked",
        "Transfer_Encoding: chunked\r\nContent-Length: 5",
        "Transfer.Encoding: chunked",
    ] {
        let before = upstream.seen().len();
        let bytes = format!("POST /a HTTP/1.1\r\nHost: h\r\n{framing}\r\n\r\n0\r\n\r\n{HIDDEN}");
        let (status, mut connection) = smuggle(&gateway, &bytes);
        assert!(status.is_none_or(|s| s == 400), "{framing:?}: {status:?}");
        assert!(
            connection.closes(),
            "{framing:?}: the connection stayed open"
        );
        let seen = upstream.seen().split_off(before);
        assert!(
            seen.is_empty(),
            "{framing:?} reached the upstream: {seen:?}"
        );
    }
}

#[test]
fn ambiguous_lengths_behind_a_pipelined_request_are_refused() {
    let (upstream, gateway) = open();
    let mut connection = gateway.connect();
    connection.send(format!(
        "GET /first HTTP/1.1\r\nHost: h\r\n\r\n\
         POST /second HTTP/1.1\r\nHost: h\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n{HIDDEN}"
    ));
    assert_eq!(connection.answer().unwrap().status, 200);
    assert!(
        connection
            .answer()
            .is_none_or(|answer| answer.status == 400)
    );
    assert!(connection.closes());
    assert!(
        upstream.seen().iter().all(|seen| seen.path() == "/first"),
        "{:?}",
        upstream.seen()
    );
}

#[test]
fn an_honest_chunked_body_that_mentions_content_length_passes() {
    let (upstream, gateway) = open();
    let body = "x\r\nContent-Length: 5\r\n\r\n";
    let mut connection = gateway.connect();
    for _ in 0..2 {
        connection.send(format!(
            "POST /a HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n{:x}\r\n{body}\r\n0\r\n\r\n",
            body.len()
        ));
        assert_eq!(connection.answer().unwrap().status, 200);
        assert_eq!(upstream.last().body, body.as_bytes());
    }
}

#[test]
fn malformed_chunks_never_reach_the_upstream_as_a_request() {
    let (upstream, gateway) = open();
    for chunks in [
        "5;\nhello\r\n0\r\n\r\n",
        "+5\r\nhello\r\n0\r\n\r\n",
        "0x5\r\nhello\r\n0\r\n\r\n",
        "5\nhello\n0\n\n",
        "5\r\nhelloX\r\n0\r\n\r\n",
        "fffffffffffffffff\r\nhello\r\n0\r\n\r\n",
        "-1\r\nhello\r\n0\r\n\r\n",
        " 5\r\nhello\r\n0\r\n\r\n",
    ] {
        let bytes = format!(
            "POST /a HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n{chunks}{HIDDEN}"
        );
        let (status, mut connection) = smuggle(&gateway, &bytes);
        assert!(status.is_none_or(|s| s >= 400), "{chunks:?}: {status:?}");
        assert!(
            connection.closes(),
            "{chunks:?}: the connection stayed open"
        );
        let seen = upstream.seen();
        assert!(
            !seen.iter().any(|s| s.path() == "/hidden"),
            "{chunks:?}: {seen:?}"
        );
    }
}

#[test]
fn malformed_heads_are_refused() {
    let (upstream, gateway) = open();
    for head in [
        "GET /a HTTP/1.1\r\n\r\n",
        "GET /a HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
        "GET /a HTTP/1.1\r\nHost: a\r\nHost: a\r\n\r\n",
        "GET /a HTTP/1.1\r\nHost: a, b\r\n\r\n",
        "GET /a HTTP/1.1\r\nHost: user@a\r\n\r\n",
        "GET /a HTTP/1.1\r\nHost: a/b\r\n\r\n",
        "GET /a HTTP/1.1\r\nHost:\r\n\r\n",
        "GET http://other/a HTTP/1.1\r\nHost: h\r\n\r\n",
        "GET https://h/a HTTP/1.1\r\nHost: h\r\n\r\n",
        "GET a HTTP/1.1\r\nHost: h\r\n\r\n",
        "GET * HTTP/1.1\r\nHost: h\r\n\r\n",
        "CONNECT h:443 HTTP/1.1\r\nHost: h:443\r\n\r\n",
        "TRACE /a HTTP/1.1\r\nHost: h\r\n\r\n",
        "GET /a HTTP/1.1\r\nHost: h\r\nX: a\x00b\r\n\r\n",
        "GET /a HTTP/1.1\r\nHost: h\r\nX: a\x1bb\r\n\r\n",
        "GET /a HTTP/1.1\r\nHost: h\r\nX\x00: a\r\n\r\n",
        "GET /a HTTP/1.1\r\nHost: h\r\nX : a\r\n\r\n",
        "GET /a HTTP/1.1\r\nHost: h\r\n X: a\r\n\r\n",
        "GET /a HTTP/1.1\r\nHost: h\r\n: a\r\n\r\n",
        "GET /a b HTTP/1.1\r\nHost: h\r\n\r\n",
        "GET /a HTTP/1.2\r\nHost: h\r\n\r\n",
        "GET /a HTTP/2.0\r\nHost: h\r\n\r\n",
        "GET /a HTTP/9.9\r\nHost: h\r\n\r\n",
        "GET /a\r\n\r\n",
        "G\x00T /a HTTP/1.1\r\nHost: h\r\n\r\n",
        "GET /a HTTP/1.1\r\nHost: h\r\nExpect: 200-ok\r\n\r\n",
    ] {
        let (status, mut connection) = smuggle(&gateway, &format!("{head}{HIDDEN}"));
        assert!(
            status.is_none_or(|s| (400..600).contains(&s)),
            "{head:?}: {status:?}"
        );
        assert!(connection.closes(), "{head:?}: the connection stayed open");
    }
    let seen = upstream.seen();
    assert!(seen.is_empty(), "reached the upstream: {:?}", seen[0]);
}

#[test]
fn a_refused_request_with_a_body_does_not_turn_its_body_into_a_request() {
    let (upstream, gateway) = open();
    // Refused for its path; the body is a request.
    let bytes = format!(
        "POST /a//b HTTP/1.1\r\nHost: h\r\nContent-Length: {}\r\n\r\n{HIDDEN}",
        HIDDEN.len()
    );
    let (status, mut connection) = smuggle(&gateway, &bytes);
    assert_eq!(status, Some(400));
    assert!(connection.closes());
    assert!(upstream.seen().is_empty());
}

#[test]
fn trailers_of_a_request_are_no_head_and_leave_the_upstreams_connection_in_step() {
    let (upstream, gateway) = open();
    let chunked = "POST /a HTTP/1.1\r\nHost: h\r\nTE: trailers\r\nTransfer-Encoding: chunked\r\n";
    let mut connection = gateway.connect();
    for trailers in [
        "",
        "x-sum: 7\r\n",
        "Content-Length: 5\r\n",
        "Transfer-Encoding: chunked\r\n",
        "Host: evil\r\nAuthorization: Bearer evil\r\nX-User-Id: mallory\r\n",
        "GET: /hidden HTTP/1.1\r\n",
    ] {
        let before = upstream.seen().len();
        connection.send(format!(
            "{chunked}Trailer: x-sum\r\n\r\n2\r\nhi\r\n0\r\n{trailers}\r\n"
        ));
        assert_eq!(connection.answer().unwrap().status, 200, "{trailers:?}");
        connection.send("GET /next HTTP/1.1\r\nHost: h\r\n\r\n");
        assert_eq!(connection.answer().unwrap().status, 200, "{trailers:?}");
        let seen = upstream.seen().split_off(before);
        let lines: Vec<&str> = seen.iter().map(|seen| seen.line.as_str()).collect();
        assert_eq!(
            lines,
            ["POST /a HTTP/1.1", "GET /next HTTP/1.1"],
            "{trailers:?}"
        );
        assert_eq!(seen[0].body, b"hi");
        assert!(
            seen[1].body.is_empty() && seen[1].header("host") == Some("h"),
            "{trailers:?}"
        );
    }
    for trailers in [
        "x: y\n\r\n",
        "x\r\n\r\n",
        "x : y\r\n\r\n",
        "x: y\r\n z\r\n\r\n",
        " x: y\r\n\r\n",
        "\n",
        "x: \x00\r\n\r\n",
    ] {
        let bytes = format!("{chunked}\r\n2\r\nhi\r\n0\r\n{trailers}{HIDDEN}");
        let (status, mut connection) = smuggle(&gateway, &bytes);
        assert!(
            status.is_none_or(|status| status >= 400),
            "{trailers:?}: {status:?}"
        );
        assert!(connection.closes(), "{trailers:?}");
    }
    // As many as a head may have, and as long.
    for trailers in [
        "x: y\r\n".repeat(5000),
        format!("x: {}\r\n", "y".repeat(1 << 20)),
    ] {
        let bytes = format!("{chunked}\r\n2\r\nhi\r\n0\r\n{trailers}\r\n{HIDDEN}");
        let (status, mut connection) = smuggle(&gateway, &bytes);
        assert!(status.is_none_or(|status| status >= 400), "{status:?}");
        assert!(connection.closes());
    }
    assert!(!upstream.seen().iter().any(|seen| seen.path() == "/hidden"));
}

#[test]
fn pipelined_requests_are_answered_in_order_and_end_at_the_first_that_is_refused() {
    let (upstream, gateway) = open();
    let get = |path: &str| format!("GET {path} HTTP/1.1\r\nHost: h\r\n\r\n");
    let post = |path: &str| {
        format!(
            "POST {path} HTTP/1.1\r\nHost: h\r\nContent-Length: {}\r\n\r\n{HIDDEN}",
            HIDDEN.len()
        )
    };
    let many: String = (0..20)
        .map(|n| {
            if n % 2 == 0 {
                get(&format!("/{n}"))
            } else {
                post(&format!("/{n}"))
            }
        })
        .collect();
    // In one piece and byte by byte.
    for step in [many.len(), 1] {
        let before = upstream.seen().len();
        let mut connection = gateway.connect();
        for piece in many.as_bytes().chunks(step) {
            connection.send(piece);
        }
        for _ in 0..20 {
            assert_eq!(connection.answer().unwrap().status, 200);
        }
        let seen = upstream.seen().split_off(before);
        let paths: Vec<String> = seen.iter().map(|seen| seen.path().to_owned()).collect();
        assert_eq!(paths, (0..20).map(|n| format!("/{n}")).collect::<Vec<_>>());
    }
    for bad in [
        "GET /bad HTTP/1.1\nHost: h\n\n".to_owned(),
        "GET /bad HTTP/1.1\r\nHost: h\r\nHost: h\r\n\r\n".to_owned(),
        post("/bad//x"),
        "GET /bad#x HTTP/1.1\r\nHost: h\r\n\r\n".to_owned(),
        "\0".to_owned(),
    ] {
        let before = upstream.seen().len();
        let mut connection = gateway.connect();
        connection.send(format!("{}{bad}{HIDDEN}", get("/good")));
        assert_eq!(connection.answer().unwrap().status, 200, "{bad:?}");
        assert!(
            connection
                .answer()
                .is_none_or(|answer| answer.status == 400),
            "{bad:?}"
        );
        assert!(connection.closes(), "{bad:?}");
        let seen = upstream.seen().split_off(before);
        assert!(
            seen.iter().all(|seen| seen.path() == "/good"),
            "{bad:?}: {seen:?}"
        );
    }
}

#[test]
fn request_lines_have_one_form() {
    let (upstream, gateway) = open();
    for line in [
        "GET  /a HTTP/1.1",
        "GET /a  HTTP/1.1",
        " GET /a HTTP/1.1",
        "GET\t/a HTTP/1.1",
        "GET /a\tHTTP/1.1",
        "GET /a HTTP/1.1 ",
        "GET /a HTTP/1.1\t",
        "GET /a http/1.1",
        "GET /a HTTP/01.1",
        "GET /a HTTP/1.01",
        "GET /a HTTP/1",
        "GET /a HTTP/1.1\r",
        "GET /a HTTP/1.1 HTTP/1.1",
        "GET /a\x0bHTTP/1.1",
        "GET /a\x0cx HTTP/1.1",
        "GET /a\0 HTTP/1.1",
        "GET /a\x7f HTTP/1.1",
        "GET /\u{e9} HTTP/1.1",
        "GET /a\"b HTTP/1.1",
        "GET /a<b HTTP/1.1",
        "GET /a^b HTTP/1.1",
        "GET /{a} HTTP/1.1",
        "GET /a?x y HTTP/1.1",
        "GET HTTP/1.1",
        "/a HTTP/1.1",
        "G(T /a HTTP/1.1",
        "GET http://h@evil/a HTTP/1.1",
        "GET http:///a HTTP/1.1",
        "GET //evil/a HTTP/1.1",
        "GET h:80 HTTP/1.1",
        "GET /a#b HTTP/1.1",
        "GET #b HTTP/1.1",
        "PRI * HTTP/2.0",
    ] {
        let (status, mut connection) =
            smuggle(&gateway, &format!("{line}\r\nHost: h\r\n\r\n{HIDDEN}"));
        assert!(
            status.is_none_or(|status| (400..600).contains(&status)),
            "{line:?}: {status:?}"
        );
        assert!(connection.closes(), "{line:?}: the connection stayed open");
    }
    assert!(upstream.seen().is_empty(), "{:?}", upstream.seen());
    // RFC 9112 section 3.2.2: the absolute form means the same.
    assert_eq!(
        smuggle(&gateway, "GET http://h/a HTTP/1.1\r\nHost: h\r\n\r\n").0,
        Some(200)
    );
    assert_eq!(upstream.last().line, "GET /a HTTP/1.1");
    // Section 2.2: empty lines before a request are passed over.
    assert_eq!(
        smuggle(&gateway, "\r\n\r\nGET /a HTTP/1.1\r\nHost: h\r\n\r\n").0,
        Some(200)
    );
}

#[test]
fn upgrades_open_no_tunnel() {
    let upstream = Upstream::start();
    let gateway = Builder::open(&upstream).start();
    for upgrade in ["websocket", "h2c", "TLS/1.0"] {
        let before = upstream.seen().len();
        let mut connection = gateway.connect();
        connection.send(format!(
            "GET /ws HTTP/1.1\r\nHost: h\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: {upgrade}\r\n\
             HTTP2-Settings: AAMAAABkAARAAAAAAAIAAAAA\r\nSec-WebSocket-Version: 777\r\n\r\n"
        ));
        let answer = connection.answer().unwrap();
        assert_ne!(answer.status, 101, "{upgrade}");
        for seen in upstream.seen().split_off(before) {
            assert_eq!(seen.header("upgrade"), None, "{upgrade}");
            assert_eq!(seen.header("http2-settings"), None, "{upgrade}");
        }
    }
}
