//! What is no exchange: WebSocket over both protocols, and CONNECT.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::support::client::{Connection, request};
use crate::support::eventually;
use crate::support::gateway::{Builder, Gateway, World};
use crate::support::h2::{
    DATA, END_STREAM, H2, HEADERS, Outcome, RST_STREAM, SETTINGS, frame as h2_frame,
};
use crate::support::issuer::now;
use crate::support::pki::{Authority, client_config};
use crate::support::tools::{Script, python};
use crate::support::upstream::{Next, Upstream};
use crate::support::websocket::{
    ASK, BINARY, CLOSE, KEY, PING, Sockets, TEXT, accept, ask, closing, frame, from_client,
    from_upstream, head, open, read,
};

/// Every route opens WebSockets.
fn websockets(document: &mut Value) {
    for route in document["routes"].as_array_mut().unwrap() {
        route["upgrades"] = json!(["websocket"]);
    }
}

fn gateway(sockets: &Sockets) -> Gateway {
    Builder::open(&sockets.upstream).with(websockets).start()
}

/// The record of the only tunnel so far, once it is written.
#[track_caller]
fn tunnel_record(gateway: &Gateway) -> Value {
    eventually("the record of the tunnel", || {
        gateway
            .records()
            .into_iter()
            .find(|record| matches!(record["status"].as_u64(), Some(101 | 200)))
    })
}

/// Whether the stream ends without another byte.
fn ends(stream: &mut impl Read) -> bool {
    matches!(stream.read(&mut [0]), Ok(0)) || {
        let error = stream.read(&mut [0]);
        error.is_err_and(|error| error.kind() == std::io::ErrorKind::ConnectionReset)
    }
}

#[test]
fn what_is_said_over_a_websocket_passes_byte_for_byte() {
    let sockets = Sockets::start();
    let gateway = gateway(&sockets);
    let mut client = gateway.connect();
    open(&mut client, "/chat", &[]);
    let (_, mut upstream) = sockets.next();
    let mask = Some([1, 0, 200, 9]);
    let large = vec![0xa5; 300_000];
    let up = [
        from_client(TEXT, "hällo".as_bytes()),
        // In fragments, with a ping between them, and with the reserved bit of permessage-deflate.
        frame(TEXT | 0x40, b"frag", mask),
        from_client(PING, b"?"),
        frame(0, b"men", mask),
        frame(0x80, b"ts", mask),
        from_client(BINARY, &large),
        from_client(BINARY, &[0; 200]),
    ]
    .concat();
    let down = [
        from_upstream(BINARY, &large),
        frame(TEXT, b"a", None),
        from_upstream(PING, &[9; 125]),
        frame(0x80, b"", None),
    ]
    .concat();
    let mut writer = upstream.try_clone().unwrap();
    let (sent, wanted) = (down.clone(), up.len());
    let there = std::thread::spawn(move || {
        let mut seen = vec![0; wanted];
        upstream.read_exact(&mut seen).unwrap();
        (seen, upstream)
    });
    let back = std::thread::spawn(move || writer.write_all(&sent).unwrap());
    client.send(&up);
    let mut seen = vec![0; down.len()];
    client.read_exact(&mut seen).unwrap();
    assert!(seen == down);
    let (seen, _upstream) = there.join().unwrap();
    assert!(seen == up);
    back.join().unwrap();
    drop(client);
    let record = tunnel_record(&gateway);
    assert_eq!(record["bytes_in"], json!(up.len()), "{record}");
    assert_eq!(record["bytes_out"], json!(down.len()), "{record}");
    assert_eq!(record["outcome"], "client_gone", "{record}");
}

#[test]
fn the_handshake_towards_the_service_is_ours_and_says_who_is_there() {
    let sockets = Sockets::start();
    let world = World::with(|builder| {
        builder.with(|document| {
            websockets(document);
            document["upstreams"]["main"]["endpoints"] = json!([sockets.upstream.url()]);
            document["identity"] = json!({"headers": {"x-user-id": "subject"}});
        })
    });
    let bearer = format!("Bearer {}", world.token("alice"));
    let mut client = world.gateway.connect();
    let answer = open(
        &mut client,
        "/chat?room=1",
        &[
            ("Authorization", &bearer),
            ("X-User-Id", "mallory"),
            ("Sec-WebSocket-Protocol", "mqtt, chat"),
            ("Sec-WebSocket-Extensions", "permessage-deflate"),
            ("Cookie", "a=b"),
        ],
    );
    let answer = answer.to_ascii_lowercase();
    let proof = format!("sec-websocket-accept: {}\r\n", accept(KEY)).to_ascii_lowercase();
    assert!(answer.contains(&proof), "{answer}");
    assert!(
        answer.contains("sec-websocket-protocol: mqtt\r\n"),
        "{answer}"
    );
    let (seen, _upstream) = sockets.next();
    assert_eq!(seen.line, "GET /chat?room=1 HTTP/1.1");
    for (name, value) in [
        ("x-user-id", "alice"),
        ("sec-websocket-protocol", "mqtt, chat"),
        ("sec-websocket-extensions", "permessage-deflate"),
        ("cookie", "a=b"),
        ("upgrade", "websocket"),
        ("connection", "upgrade"),
        ("sec-websocket-version", "13"),
    ] {
        assert_eq!(seen.header(name), Some(value));
        let times = seen
            .headers
            .iter()
            .filter(|(n, _)| n.eq_ignore_ascii_case(name));
        assert_eq!(times.count(), 1, "{name}");
    }
    assert_ne!(seen.header("sec-websocket-key"), Some(KEY));
    assert_eq!(seen.header("authorization"), None);
}

#[test]
fn who_is_denied_opens_nothing_and_may_go_on_asking() {
    let sockets = Sockets::start();
    let world = World::with(|builder| {
        builder.with(|document| {
            websockets(document);
            document["upstreams"]["main"]["endpoints"] = json!([sockets.upstream.url()]);
        })
    });
    let mut claims = world.issuer.claims("alice");
    claims["scope"] = json!("nothing");
    let denied = format!("Bearer {}", world.key.token(&claims));
    let allowed = format!("Bearer {}", world.token("alice"));
    let mut client = world.gateway.connect();
    for (bearer, status) in [(&denied[..], 403), ("Bearer nonsense", 401)] {
        client.send(ask("/chat", &[("Authorization", bearer)]));
        let answer = client.answer().unwrap();
        assert_eq!(answer.status, status);
        assert_eq!(answer.header("upgrade"), None);
    }
    assert!(sockets.upstream.seen().is_empty());
    client.send(request("GET", "/a", &[("authorization", &allowed)]));
    assert_eq!(client.answer().unwrap().status, 200);
    open(&mut client, "/chat", &[("Authorization", &allowed)]);
}

#[test]
fn bytes_behind_a_request_for_a_websocket_are_never_a_request() {
    const HIDDEN: &str = "GET /hidden HTTP/1.1\r\nHost: api.example.test\r\n\r\n";
    let sockets = Sockets::start();
    let gateway = gateway(&sockets);
    // Accepted: they are the beginning of what goes through, and no WebSocket.
    let mut client = gateway.connect();
    client.send(format!("{}{HIDDEN}", ask("/chat", &[])));
    assert!(head(&mut client).starts_with("HTTP/1.1 101 "));
    assert_eq!(closing(read(&mut client)).0, 1002);
    assert!(client.closes());
    let (_, mut upstream) = sockets.next();
    assert_eq!(closing(read(&mut upstream)).0, 1001);
    assert!(ends(&mut upstream));
    // Not accepted: nobody knows what they were meant to be.
    sockets.upstream.answer(|_, stream| {
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nno");
        Next::KeepAlive
    });
    let mut client = gateway.connect();
    client.send(format!("{}{HIDDEN}", ask("/chat", &[])));
    let answer = client.answer().unwrap();
    assert_eq!((answer.status, answer.text().as_str()), (200, "no"));
    assert_eq!(answer.header("connection"), Some("close"));
    assert!(client.closes());
    let seen = sockets.upstream.seen();
    assert!(seen.iter().all(|seen| seen.path() == "/chat"), "{seen:?}");
    // A connection that was asked for a WebSocket carries nothing else.
    assert_eq!(gateway.get("/a", &[]).status, 200);
    let seen = sockets.upstream.seen();
    let last = seen.last().unwrap().connection;
    assert!(
        seen.iter()
            .rev()
            .skip(1)
            .all(|seen| seen.connection != last)
    );
}

#[test]
fn an_answer_that_opens_something_else_is_a_502_and_one_that_opens_nothing_an_answer() {
    let upstream = Upstream::start();
    let gateway = Builder::open(&upstream).with(websockets).start();
    let right = "Connection: upgrade\r\nUpgrade: websocket\r\n";
    for fields in [
        right.to_owned(),
        format!("{right}Sec-WebSocket-Accept: {}\r\n", accept(KEY)),
        format!("{right}Sec-WebSocket-Accept: nonsense\r\n"),
        "Connection: upgrade\r\nUpgrade: h2c\r\nSec-WebSocket-Accept: RIGHT\r\n".to_owned(),
        "Upgrade: websocket\r\nSec-WebSocket-Accept: RIGHT\r\n".to_owned(),
        format!("{right}Sec-WebSocket-Accept: RIGHT\r\nContent-Length: 5\r\n"),
        format!("{right}Sec-WebSocket-Accept: RIGHT\r\nSec-WebSocket-Protocol: x\r\n"),
        format!("{right}Sec-WebSocket-Accept: RIGHT\r\nSec-WebSocket-Extensions: x\r\n"),
    ] {
        let said = fields.clone();
        upstream.answer(move |seen, stream| {
            let key = seen.header("sec-websocket-key").unwrap_or_default();
            let fields = said.replace("RIGHT", &accept(key));
            let answer = format!("HTTP/1.1 101 Switching Protocols\r\n{fields}\r\nhello");
            let _ = stream.write_all(answer.as_bytes());
            Next::KeepAlive
        });
        let mut client = gateway.connect();
        client.send(ask("/chat", &[]));
        let answer = client.answer().unwrap();
        assert_eq!(answer.status, 502, "{fields}");
        assert!(!answer.text().contains("hello"));
    }
    for status in ["403 Forbidden", "200 OK", "426 Upgrade Required"] {
        upstream.answer(move |_, stream| {
            let answer = format!(
                "HTTP/1.1 {status}\r\nUpgrade: websocket\r\nConnection: upgrade\r\n\
                 Content-Length: 4\r\n\r\nwhat"
            );
            let _ = stream.write_all(answer.as_bytes());
            Next::KeepAlive
        });
        let mut client = gateway.connect();
        client.send(ask("/chat", &[]));
        let answer = client.answer().unwrap();
        assert!(status.starts_with(&answer.status.to_string()), "{status}");
        assert_eq!(answer.text(), "what");
        assert_eq!(answer.header("upgrade"), None);
        // Nothing was sent behind it, so it was a request like any other.
        client.send(request("GET", "/a", &[]));
        assert!(client.answer().is_some());
    }
    // A head that never ends is refused like that of any other answer.
    upstream.answer(|_, stream| {
        let _ = stream.write_all(b"HTTP/1.1 101 Switching Protocols\r\nx: ");
        let _ = stream.write_all(&vec![b'x'; 1 << 20]);
        Next::Close
    });
    let mut client = gateway.connect();
    client.send(ask("/chat", &[]));
    assert_eq!(client.answer().unwrap().status, 502);
}

#[test]
fn an_upstream_that_switches_unasked_is_a_502() {
    let upstream = Upstream::start();
    let gateway = Builder::open(&upstream).with(websockets).start();
    upstream.answer(|_, stream| {
        let _ = stream.write_all(
            b"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n",
        );
        Next::KeepAlive
    });
    assert_eq!(gateway.get("/a", &[]).status, 502);
}

#[test]
fn what_is_half_right_is_refused_and_nothing_else_is_an_upgrade() {
    let sockets = Sockets::start();
    let gateway = gateway(&sockets);
    let with = |at: usize, value: &'static str| {
        let mut fields = ASK;
        fields[at].1 = value;
        request("GET", "/chat", &fields)
    };
    for (bytes, status) in [
        (with(0, "keep-alive"), 400),
        (with(1, "websocket, h2c"), 400),
        (with(2, "777"), 426),
        (with(3, "short"), 400),
        (request("GET", "/chat", &ASK[..3]), 400),
        (request("POST", "/chat", &ASK), 400),
        (
            request(
                "GET",
                "/chat",
                &[&ASK[..], &[("Content-Length", "5")]].concat(),
            ) + "hello",
            400,
        ),
    ] {
        let mut client = gateway.connect();
        client.send(&bytes);
        let answer = client.answer().unwrap();
        assert_eq!(answer.status, status, "{bytes}");
        let version = answer.header("sec-websocket-version");
        assert_eq!(version, (status == 426).then_some("13"));
        assert!(client.closes());
    }
    assert!(sockets.upstream.seen().is_empty());
    // RFC 9110 section 7.8: what is not honoured is a request like any other.
    for bytes in [
        with(1, "h2c"),
        with(1, "TLS/1.0"),
        ask("/chat", &[]).replace("HTTP/1.1", "HTTP/1.0"),
    ] {
        let mut client = gateway.connect();
        client.send(&bytes);
        assert_eq!(client.answer().unwrap().status, 200, "{bytes}");
        let seen = sockets.upstream.last();
        for name in [
            "upgrade",
            "connection",
            "sec-websocket-key",
            "http2-settings",
        ] {
            assert_eq!(seen.header(name), None);
        }
    }
}

#[test]
fn a_route_opens_nothing_that_it_does_not_name() {
    let sockets = Sockets::start();
    let gateway = Builder::open(&sockets.upstream).start();
    let mut client = gateway.connect();
    client.send(ask("/chat", &[]));
    assert_eq!(client.answer().unwrap().status, 200);
    let seen = sockets.upstream.last();
    for name in ["upgrade", "connection", "sec-websocket-key"] {
        assert_eq!(seen.header(name), None);
    }
    client.send(request("GET", "/chat", &ASK[..2]));
    assert_eq!(client.answer().unwrap().status, 200);
    let before = sockets.upstream.seen().len();
    client.send("CONNECT h:443 HTTP/1.1\r\nHost: h:443\r\n\r\n");
    let answer = client.answer().unwrap();
    assert_eq!((answer.status, answer.code().as_str()), (404, "no_route"));
    assert!(client.closes());
    for fields in [
        &extended("/chat")[..],
        &[(":method", "CONNECT"), (":authority", "h:443")],
    ] {
        let mut h2 = H2::connect(gateway.address());
        h2.headers(1, fields, false);
        assert_eq!(h2.outcome(1), Outcome::Status(404));
    }
    assert_eq!(sockets.upstream.seen().len(), before);
    assert!(sockets.none());
}

#[test]
fn each_side_learns_that_the_other_is_gone() {
    let sockets = Sockets::start();
    let gateway = gateway(&sockets);
    let mut client = gateway.connect();
    open(&mut client, "/chat", &[]);
    let (_, mut upstream) = sockets.next();
    drop(client);
    assert!(ends(&mut upstream));

    let mut client = gateway.connect();
    open(&mut client, "/chat", &[]);
    let (_, upstream) = sockets.next();
    upstream.shutdown(Shutdown::Both).unwrap();
    drop(upstream);
    assert!(client.closes());

    // In good order: the Close of one, then that of the other.
    let mut client = gateway.connect();
    open(&mut client, "/chat", &[]);
    let (_, mut upstream) = sockets.next();
    let goodbye = [&3001u16.to_be_bytes()[..], b"enough"].concat();
    client.send(from_client(CLOSE, &goodbye));
    assert_eq!(closing(read(&mut upstream)), (3001, "enough".to_owned()));
    upstream.write_all(&from_upstream(CLOSE, &goodbye)).unwrap();
    drop(upstream);
    assert_eq!(closing(read(&mut client)), (3001, "enough".to_owned()));
    assert!(client.closes());
    drop(client);
    let mut outcomes = eventually("three records", || {
        let records = gateway.records();
        let outcomes: Vec<String> = records
            .iter()
            .map(|record| record["outcome"].as_str().unwrap().to_owned())
            .collect();
        (outcomes.len() == 3).then_some(outcomes)
    });
    outcomes.sort_unstable();
    assert_eq!(outcomes, ["client_gone", "complete", "upstream_broke"]);
    let metrics = gateway.admin("GET", "/metrics").text();
    for line in [
        "portcullis_tunnels{kind=\"websocket\"} 0",
        "portcullis_tunnels_ended_total{kind=\"websocket\",how=\"complete\"} 1",
    ] {
        assert!(metrics.contains(line), "{line}");
    }
}

#[test]
fn a_silent_websocket_is_closed_and_one_that_pings_is_not() {
    let sockets = Sockets::start();
    let gateway = Builder::open(&sockets.upstream)
        .with(websockets)
        .with(|document| {
            // Far below the listener's own bounds, and above those of ordinary exchanges.
            document["routes"][0]["tunnels"] =
                json!({"idle_timeout": "600ms", "total_timeout": "3s"});
            document["routes"][0]["bounds"] =
                json!({"idle_timeout": "100ms", "total_timeout": "200ms", "head_timeout": "200ms"});
            document["listeners"]["local"]["bounds"] =
                json!({"idle_timeout": "200ms", "header_timeout": "200ms"});
        })
        .start();
    let mut client = gateway.connect();
    open(&mut client, "/chat", &[]);
    let (_, mut upstream) = sockets.next();
    let began = Instant::now();
    let bye = (1001, "idle_timeout".to_owned());
    assert_eq!(closing(read(&mut client)), bye);
    assert_eq!(closing(read(&mut upstream)), bye);
    let took = began.elapsed();
    assert!(took > Duration::from_millis(500) && took < Duration::from_secs(3));
    assert!(client.closes());

    let mut client = gateway.connect();
    open(&mut client, "/chat", &[]);
    let (_, mut upstream) = sockets.next();
    let began = Instant::now();
    loop {
        let _ = upstream.write_all(&from_upstream(PING, b""));
        let (first, payload) = read(&mut client).expect("neither a ping nor a Close");
        if first == 0x80 | CLOSE {
            assert_eq!(closing(Some((first, payload))).1, "total_timeout");
            break;
        }
        std::thread::park_timeout(Duration::from_millis(100));
    }
    assert!(began.elapsed() > Duration::from_millis(2500));
}

#[test]
fn draining_leaves_a_websocket_its_time_and_then_says_goodbye() {
    let sockets = Sockets::start();
    let gateway = Builder::open(&sockets.upstream)
        .with(websockets)
        .with(|document| document["drain_timeout"] = json!("1s"))
        .start();
    let mut client = gateway.connect();
    open(&mut client, "/chat", &[]);
    let (_, mut upstream) = sockets.next();
    let mut h2 = Tunnelled::open(&gateway, &[(1, "/chat")]);
    let (_, mut other) = sockets.next();
    let Gateway {
        process, folder, ..
    } = gateway;
    let began = Instant::now();
    let stopping = std::thread::spawn(move || process.shutdown());
    // Still served.
    client.send(from_client(TEXT, b"late"));
    assert_eq!(read(&mut upstream).unwrap().1, b"late");
    let bye = (1001, "going_away".to_owned());
    assert_eq!(closing(read(&mut client)), bye);
    assert_eq!(closing(read(&mut upstream)), bye);
    let took = began.elapsed();
    assert!(took > Duration::from_millis(800), "{took:?}");
    let said = h2.next_of(1);
    assert_eq!(closing(read(&mut &said[..])), bye);
    assert_eq!(closing(read(&mut other)), bye);
    assert_eq!(stopping.join().unwrap(), 2);
    assert!(began.elapsed() < Duration::from_secs(4));
    let records = std::fs::read_to_string(folder.path().join("audit.jsonl")).unwrap();
    assert_eq!(records.matches("\"drained\"").count(), 2, "{records}");
}

#[test]
fn a_websocket_ends_with_its_permission_and_says_why() {
    let sockets = Sockets::start();
    let mut world = World::with(|builder| {
        builder.with(|document| {
            websockets(document);
            document["upstreams"]["main"]["endpoints"] = json!([sockets.upstream.url()]);
            document["issuers"]["main"]["leeway"] = json!("0s");
        })
    });
    let mut claims = world.issuer.claims("alice");
    claims["exp"] = json!(now() + 3);
    let brief = format!("Bearer {}", world.key.token(&claims));
    let lasting = format!("Bearer {}", world.token("bob"));
    let mut expiring = world.gateway.connect();
    open(&mut expiring, "/chat", &[("Authorization", &brief)]);
    let (_, mut far) = sockets.next();
    let mut staying = world.gateway.connect();
    open(&mut staying, "/chat", &[("Authorization", &lasting)]);
    let (_, mut other) = sockets.next();
    // A frame is under way: what is said comes behind it.
    let whole = from_upstream(TEXT, b"hello");
    far.write_all(&whole[..4]).unwrap();
    let mut begun = [0; 4];
    expiring.read_exact(&mut begun).unwrap();
    let mut rest = vec![0; whole.len() - 4];
    let said = closing(read(&mut far));
    assert_eq!(said, (1001, "expired".to_owned()));
    far.write_all(&whole[4..]).unwrap();
    expiring.read_exact(&mut rest).unwrap();
    assert_eq!([&begun[..], &rest].concat(), whole);
    assert_eq!(closing(read(&mut expiring)), (1008, "expired".to_owned()));
    assert!(expiring.closes());
    // The other one has noticed nothing, until its route opens no WebSockets any more.
    other.write_all(&whole).unwrap();
    assert_eq!(read(&mut staying).unwrap().1, b"hello");
    let answer = world.gateway.reload(|document| {
        document["routes"][0]["upgrades"] = json!([]);
    });
    assert_eq!(answer.status, 200, "{}", answer.text());
    assert_eq!(closing(read(&mut staying)), (1008, "denied".to_owned()));
    assert_eq!(closing(read(&mut other)), (1001, "denied".to_owned()));
    let records = eventually("both records", || {
        let records = world.gateway.records();
        let tunnels: Vec<Value> = records
            .into_iter()
            .filter(|record| record["status"] == 101)
            .collect();
        (tunnels.len() == 2).then_some(tunnels)
    });
    assert!(
        records.iter().all(|r| r["outcome"] == "permission_ended"),
        "{records:?}"
    );
}

/// The head of a request for a WebSocket over HTTP/2.
fn extended(path: &str) -> [(&str, &str); 6] {
    [
        (":method", "CONNECT"),
        (":protocol", "websocket"),
        (":scheme", "http"),
        (":authority", "api.example.test"),
        (":path", path),
        ("sec-websocket-version", "13"),
    ]
}

/// A connection of HTTP/2 with WebSockets on its streams.
struct Tunnelled {
    h2: H2,
    /// DATA, and the ends, of streams that nobody asked for yet.
    seen: Vec<(u32, Piece)>,
}

#[derive(Debug, PartialEq, Eq)]
enum Piece {
    Data(Vec<u8>),
    End,
    Reset(u32),
}

impl Tunnelled {
    #[track_caller]
    fn open(gateway: &Gateway, streams: &[(u32, &str)]) -> Self {
        let mut h2 = H2::connect(gateway.address());
        for (stream, path) in streams {
            h2.headers(*stream, &extended(path), false);
            assert_eq!(h2.outcome(*stream), Outcome::Status(200));
        }
        Self {
            h2,
            seen: Vec::new(),
        }
    }

    fn say(&mut self, stream: u32, bytes: &[u8]) {
        self.h2.send(h2_frame(DATA, 0, stream, bytes)).unwrap();
    }

    #[track_caller]
    fn piece(&mut self, stream: u32) -> Piece {
        loop {
            if let Some(at) = self.seen.iter().position(|(on, _)| *on == stream) {
                return self.seen.remove(at).1;
            }
            let (kind, flags, on, payload) = self.h2.read().expect("the connection ended");
            match kind {
                DATA => {
                    if !payload.is_empty() {
                        self.seen.push((on, Piece::Data(payload)));
                    }
                    if flags & END_STREAM != 0 {
                        self.seen.push((on, Piece::End));
                    }
                }
                RST_STREAM => {
                    let code = u32::from_be_bytes(payload[..4].try_into().unwrap());
                    self.seen.push((on, Piece::Reset(code)));
                }
                SETTINGS if flags & 1 == 0 => {
                    let _ = self.h2.send(h2_frame(SETTINGS, 1, 0, &[]));
                }
                HEADERS => panic!("another head on {on}"),
                _ => {}
            }
        }
    }

    #[track_caller]
    fn next_of(&mut self, stream: u32) -> Vec<u8> {
        match self.piece(stream) {
            Piece::Data(data) => data,
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn websockets_over_http_2_share_a_connection_and_end_alone() {
    let sockets = Sockets::start();
    let gateway = gateway(&sockets);
    let mut client = Tunnelled::open(&gateway, &[(1, "/one")]);
    let (seen, mut one) = sockets.next();
    assert_eq!(seen.line, "GET /one HTTP/1.1");
    assert_eq!(seen.header("upgrade"), Some("websocket"));
    client.h2.headers(3, &extended("/two"), false);
    assert_eq!(client.h2.outcome(3), Outcome::Status(200));
    let (_, mut two) = sockets.next();
    client.h2.headers(5, &extended("/three"), false);
    assert_eq!(client.h2.outcome(5), Outcome::Status(200));
    let (_, mut three) = sockets.next();

    client.say(1, &from_client(TEXT, b"one"));
    client.say(3, &from_client(TEXT, b"two"));
    assert_eq!(read(&mut one).unwrap().1, b"one");
    assert_eq!(read(&mut two).unwrap().1, b"two");
    let answer = from_upstream(TEXT, b"back");
    two.write_all(&answer).unwrap();
    assert_eq!(client.next_of(3), answer);

    // The client resets one, the upstream ends another.
    client
        .h2
        .send(h2_frame(RST_STREAM, 0, 1, &8u32.to_be_bytes()))
        .unwrap();
    assert!(ends(&mut one));
    three.write_all(&from_upstream(CLOSE, b"")).unwrap();
    three.shutdown(Shutdown::Both).unwrap();
    assert_eq!(client.next_of(5), from_upstream(CLOSE, b""));
    assert_eq!(client.piece(5), Piece::End);
    // What is no WebSocket resets or closes its stream alone.
    client.say(3, &from_client(TEXT, b"still"));
    assert_eq!(read(&mut two).unwrap().1, b"still");
    client.say(3, b"GET / HTTP/1.1\r\n");
    let said = client.next_of(3);
    assert_eq!(closing(read(&mut &said[..])).0, 1002);
    assert_eq!(client.piece(3), Piece::End);
    // And the connection goes on.
    let fields = crate::support::h2::get("/a", &[]);
    client.h2.headers(7, &fields, true);
    assert_eq!(client.h2.outcome(7), Outcome::Status(200));
    client.h2.headers(9, &extended("/four"), false);
    assert_eq!(client.h2.outcome(9), Outcome::Status(200));
    let mut old = extended("/five");
    old[5].1 = "777";
    client.h2.headers(11, &old, false);
    assert_eq!(client.h2.outcome(11), Outcome::Status(426));
    let mut other = extended("/six");
    other[1].1 = "connect-udp";
    client.h2.headers(13, &other, false);
    assert_eq!(client.h2.outcome(13), Outcome::Status(501));
}

#[test]
fn a_large_message_passes_over_http_2_at_the_pace_of_its_reader() {
    let sockets = Sockets::start();
    let gateway = gateway(&sockets);
    let mut client = Tunnelled::open(&gateway, &[(1, "/one")]);
    let (_, mut upstream) = sockets.next();
    let message = from_upstream(BINARY, &vec![3; 500_000]);
    let mut writer = upstream.try_clone().unwrap();
    let sent = message.clone();
    let back = std::thread::spawn(move || writer.write_all(&sent).unwrap());
    let mut seen = Vec::new();
    while seen.len() < message.len() {
        let piece = client.next_of(1);
        let length = u32::try_from(piece.len()).unwrap().to_be_bytes();
        // Only what was read is paid for.
        for stream in [0, 1] {
            let update = h2_frame(8, 0, stream, &length);
            client.h2.send(update).unwrap();
        }
        seen.extend(piece);
    }
    assert!(seen == message);
    back.join().unwrap();
    let up = from_client(BINARY, &vec![4; 60_000]);
    for piece in up.chunks(16_384) {
        client.say(1, piece);
    }
    let (_, payload) = read(&mut upstream).unwrap();
    assert!(payload == vec![4; 60_000]);
}

#[test]
fn websockets_reach_services_over_http_2_if_these_open_them() {
    let sockets = Sockets::start();
    // A gateway is a service that opens WebSockets on streams.
    let inner = gateway(&sockets);
    let speak_http2 = |document: &mut Value| {
        websockets(document);
        document["upstreams"]["main"]["protocol"] = json!("http2");
    };
    let url = format!("http://{}", inner.address());
    let outer = Builder::open(&sockets.upstream)
        .with(speak_http2)
        .with(|document| document["upstreams"]["main"]["endpoints"] = json!([url]))
        .start();
    let mut client = outer.connect();
    let answer = open(&mut client, "/chat", &[("Sec-WebSocket-Protocol", "chat")]);
    assert!(answer.contains(&accept(KEY)), "{answer}");
    assert!(
        answer
            .to_ascii_lowercase()
            .contains("sec-websocket-protocol: chat")
    );
    let (_, mut upstream) = sockets.next();
    let mut other = Tunnelled::open(&outer, &[(1, "/two")]);
    let (_, mut second) = sockets.next();
    client.send(from_client(TEXT, b"up"));
    assert_eq!(read(&mut upstream).unwrap().1, b"up");
    upstream.write_all(&from_upstream(TEXT, b"down")).unwrap();
    assert_eq!(read(&mut client).unwrap().1, b"down");
    drop(client);
    assert!(ends(&mut upstream));
    second.write_all(&from_upstream(TEXT, b"down")).unwrap();
    assert_eq!(other.next_of(1), from_upstream(TEXT, b"down"));

    // One that does not.
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", silent.local_addr().unwrap());
    std::thread::spawn(move || {
        for mut stream in silent.incoming().flatten() {
            std::thread::spawn(move || {
                let _ = stream.write_all(&h2_frame(SETTINGS, 0, 0, &[]));
                let _ = stream.write_all(&h2_frame(SETTINGS, 1, 0, &[]));
                let _ = std::io::copy(&mut stream, &mut std::io::sink());
            });
        }
    });
    let outer = Builder::open(&sockets.upstream)
        .with(speak_http2)
        .with(|document| document["upstreams"]["main"]["endpoints"] = json!([url]))
        .start();
    let mut client = outer.connect();
    client.send(ask("/chat", &[]));
    let answer = client.answer().unwrap();
    assert_eq!(answer.status, 502);
    let id = answer.json()["request_id"].as_str().unwrap().to_owned();
    let record = outer.record(&id);
    assert!(record.to_string().contains("RFC 8441"), "{record}");
}

/// A service that speaks no HTTP: it says who is there, and gives every byte back.
fn echo() -> (String, std::sync::Arc<std::sync::atomic::AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let open = std::sync::Arc::new(std::sync::atomic::AtomicUsize::new(0));
    let count = std::sync::Arc::clone(&open);
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let count = std::sync::Arc::clone(&count);
            count.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
            std::thread::spawn(move || {
                let _ = stream.write_all(b"220 here\r\n");
                let mut back: TcpStream = stream.try_clone().unwrap();
                let _ = std::io::copy(&mut stream, &mut back);
                let _ = back.write_all(b"bye");
                let _ = back.shutdown(Shutdown::Write);
                count.fetch_sub(1, std::sync::atomic::Ordering::SeqCst);
            });
        }
    });
    (url, open)
}

fn connects(url: &str) -> Builder {
    let unused = Upstream::start();
    Builder::open(&unused).with(|document| {
        document["upstreams"]["raw"] = json!({"endpoints": [url]});
        document["routes"].as_array_mut().unwrap().push(json!({
            "name": "tunnel", "hosts": ["db.example.test"], "path": "/", "methods": ["GET"],
            "authn": ["anonymous"], "policy": "public", "upstream": "raw",
            "upgrades": ["connect"], "tunnels": {"idle_timeout": "2s"},
        }));
    })
}

const CONNECT: &str = "CONNECT db.example.test:5432 HTTP/1.1\r\nHost: db.example.test:5432\r\n\r\n";

#[test]
fn connect_reaches_the_endpoint_of_its_route_over_http_1() {
    let (url, open) = echo();
    let gateway = connects(&url).start();
    let mut client = gateway.connect();
    // Bytes that did not wait for the answer go through when it is there.
    client.send(format!("{CONNECT}early "));
    let answer = head(&mut client);
    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    let lower = answer.to_ascii_lowercase();
    assert!(!lower.contains("content-length") && !lower.contains("transfer-encoding"));
    client.send("and late");
    let mut seen = vec![0; 24];
    client.read_exact(&mut seen).unwrap();
    assert_eq!(seen, b"220 here\r\nearly and late");
    // Half closed by the client; the service has the last word.
    let Connection::Plain(stream) = &client else {
        unreachable!()
    };
    stream.shutdown(Shutdown::Write).unwrap();
    let mut rest = Vec::new();
    client.read_to_end(&mut rest).unwrap();
    assert_eq!(rest, b"bye");
    let record = tunnel_record(&gateway);
    assert_eq!(record["method"], "CONNECT");
    assert_eq!(record["host"], "db.example.test:5432");
    assert_eq!(record["outcome"], "complete", "{record}");
    assert_eq!(
        (&record["bytes_in"], &record["bytes_out"]),
        (&json!(14), &json!(27))
    );

    // A silent one ends, and one whose client is gone.
    let mut client = gateway.connect();
    client.send(CONNECT);
    assert!(head(&mut client).starts_with("HTTP/1.1 200 "));
    let mut greeting = [0; 10];
    client.read_exact(&mut greeting).unwrap();
    assert!(client.closes());
    eventually("the end of all", || {
        (open.load(std::sync::atomic::Ordering::SeqCst) == 0).then_some(())
    });
}

#[test]
fn connect_takes_one_form_of_target_and_no_other_host() {
    let (url, open) = echo();
    let gateway = connects(&url).start();
    for bytes in [
        "CONNECT other.example.test:5432 HTTP/1.1\r\nHost: other.example.test:5432\r\n\r\n",
        "CONNECT db.example.test HTTP/1.1\r\nHost: db.example.test\r\n\r\n",
        "CONNECT db.example.test:0 HTTP/1.1\r\nHost: db.example.test:0\r\n\r\n",
        "CONNECT http://db.example.test:5432/ HTTP/1.1\r\nHost: db.example.test:5432\r\n\r\n",
        "CONNECT / HTTP/1.1\r\nHost: db.example.test:5432\r\n\r\n",
        "CONNECT db.example.test:5432 HTTP/1.1\r\nHost: api.example.test\r\n\r\n",
        "CONNECT db.example.test:5432 HTTP/1.0\r\nHost: db.example.test:5432\r\n\r\n",
        "CONNECT db.example.test:5432 HTTP/1.1\r\nHost: db.example.test:5432\r\nContent-Length: 3\r\n\r\nabc",
    ] {
        let mut client = gateway.connect();
        client.send(format!(
            "{bytes}GET / HTTP/1.1\r\nHost: db.example.test\r\n\r\n"
        ));
        let answer = client.answer();
        assert!(answer.is_none_or(|answer| answer.status >= 400), "{bytes}");
        assert!(client.closes(), "{bytes}");
    }
    assert_eq!(open.load(std::sync::atomic::Ordering::SeqCst), 0);
}

#[test]
fn connect_over_http_2_ends_alone_and_its_abrupt_end_is_no_end() {
    let (url, open) = echo();
    let mut gateway = connects(&url).start();
    let mut h2 = H2::connect(gateway.address());
    let fields = [
        (":method", "CONNECT"),
        (":authority", "db.example.test:5432"),
    ];
    h2.headers(1, &fields, false);
    assert_eq!(h2.outcome(1), Outcome::Status(200));
    let mut client = Tunnelled {
        h2,
        seen: Vec::new(),
    };
    assert_eq!(client.next_of(1), b"220 here\r\n");
    client.h2.headers(3, &fields, false);
    assert_eq!(client.h2.outcome(3), Outcome::Status(200));
    assert_eq!(client.next_of(3), b"220 here\r\n");
    client.say(1, b"ping");
    assert_eq!(client.next_of(1), b"ping");
    client.h2.send(h2_frame(DATA, END_STREAM, 1, b"")).unwrap();
    assert_eq!(client.next_of(1), b"bye");
    assert_eq!(client.piece(1), Piece::End);
    client.say(3, b"ping");
    assert_eq!(client.next_of(3), b"ping");
    // Not allowed any more: a reset, not an end.
    let answer = gateway.reload(|document| {
        document["routes"].as_array_mut().unwrap().pop();
    });
    assert_eq!(answer.status, 200, "{}", answer.text());
    assert!(matches!(client.piece(3), Piece::Reset(_)));
    let plain = crate::support::h2::get("/a", &[]);
    client.h2.headers(5, &plain, true);
    assert_eq!(client.h2.outcome(5), Outcome::Status(200));
    eventually("the end of all", || {
        (open.load(std::sync::atomic::Ordering::SeqCst) == 0).then_some(())
    });
}

/// A gateway with a TLS listener beside the plain one.
fn with_tls(builder: Builder, authority: &Authority) -> Builder {
    authority
        .server(&["api.example.test"])
        .write(builder.folder.path(), "api");
    builder.file("authority.pem", &authority.pem);
    builder.with(|document| {
        document["listeners"]["public"] = json!({
            "address": "127.0.0.1:0",
            "tls": {"certificates": [{"chain": "api.pem", "key": "api.key"}]},
        });
    })
}

#[test]
fn tunnels_pass_through_tls_on_both_sides() {
    let authority = Authority::new("servers");
    let sockets = Sockets::start();
    let inner = with_tls(Builder::open(&sockets.upstream), &authority)
        .with(websockets)
        .start();
    let url = format!("https://{}", inner.listener("public"));
    let outer = with_tls(Builder::open(&sockets.upstream), &authority)
        .with(websockets)
        .with(|document| {
            document["upstreams"]["main"] = json!({
                "endpoints": [url],
                "tls": {"authorities": ["authority.pem"], "server_name": "api.example.test"},
            });
        })
        .start();
    let config = client_config(&authority, None, &[b"http/1.1"]);
    let connect = || {
        let address = outer.listener("public");
        Connection::tls(address, "api.example.test", &config).unwrap()
    };
    let mut client = connect();
    open(&mut client, "/chat", &[]);
    let (_, mut upstream) = sockets.next();
    let large = vec![5; 200_000];
    let mut writer = upstream.try_clone().unwrap();
    let sent = from_upstream(BINARY, &large);
    let back = std::thread::spawn(move || writer.write_all(&sent).unwrap());
    assert!(read(&mut client).unwrap().1 == large);
    back.join().unwrap();
    client.send(from_client(BINARY, &large));
    assert!(read(&mut upstream).unwrap().1 == large);
    // Small ones are not held back.
    for _ in 0..3 {
        client.send(from_client(TEXT, b"ping"));
        assert_eq!(read(&mut upstream).unwrap().1, b"ping");
        upstream.write_all(&from_upstream(TEXT, b"pong")).unwrap();
        assert_eq!(read(&mut client).unwrap().1, b"pong");
    }
    drop(client);
    assert!(ends(&mut upstream));
    let mut client = connect();
    open(&mut client, "/chat", &[]);
    let (_, upstream) = sockets.next();
    drop(upstream);
    assert!(client.closes());
}

#[test]
fn a_client_that_takes_nothing_loses_its_websocket() {
    let sockets = Sockets::start();
    let gateway = Builder::open(&sockets.upstream)
        .with(websockets)
        .with(|document| {
            document["listeners"]["local"]["bounds"] = json!({"write_timeout": "1s"});
        })
        .start();
    let mut client = gateway.connect();
    open(&mut client, "/chat", &[]);
    let (_, mut upstream) = sockets.next();
    let flood = from_upstream(BINARY, &[1; 60_000]);
    let began = Instant::now();
    while upstream.write_all(&flood).is_ok() {
        assert!(began.elapsed() < Duration::from_secs(20));
    }
    drop(client);
}

#[test]
fn faults_of_the_configuration_are_said() {
    let upstream = Upstream::start();
    let problems = |edit: &dyn Fn(&mut Value)| {
        let mut gateway = Builder::open(&upstream).start();
        let answer = gateway.reload(edit);
        assert_ne!(answer.status, 200);
        answer.text()
    };
    for (edit, said) in [
        (
            (&|document: &mut Value| document["routes"][0]["upgrades"] = json!(["h2c"]))
                as &dyn Fn(&mut Value),
            "h2c",
        ),
        (
            &|document| {
                document["routes"][0]["upgrades"] = json!(["websocket"]);
                document["routes"][0]["methods"] = json!(["POST"]);
            },
            "opened by GET",
        ),
        (
            &|document| {
                document["routes"][0]["upgrades"] = json!(["connect"]);
                document["upstreams"]["main"]["protocol"] = json!("http2");
            },
            "protocol: http1",
        ),
        (
            &|document| document["routes"][0]["tunnels"] = json!({"idle_timeout": "1m"}),
            "opens no tunnels",
        ),
        (
            &|document| document["routes"][0]["methods"] = json!(["CONNECT"]),
            "upgrades: [connect]",
        ),
    ] {
        let text = problems(edit);
        assert!(text.contains(said), "{said}: {text}");
    }
}

#[test]
fn a_real_library_talks_to_itself_through_both_protocols() {
    let Some(python) = python() else { return };
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/it/interop/websockets_echo.py");
    let mut script = Script::start(Command::new(python).arg(script));
    let hello: Value = serde_json::from_str(&script.line()).unwrap();
    let url = format!("http://127.0.0.1:{}", hello["port"]);
    let mut world = World::with(|builder| {
        builder.with(|document| {
            websockets(document);
            document["upstreams"]["main"]["endpoints"] = json!([url]);
        })
    });
    let bearer = format!("Bearer {}", world.token("alice"));
    let uri = format!("ws://{}/chat", world.gateway.address());
    for deflate in [true, false] {
        let answer = script.ask(&json!({
            "do": "echo", "uri": uri, "authorization": bearer, "deflate": deflate,
        }));
        assert_eq!(answer["ok"], true, "{answer}");
        assert_eq!(answer["deflate"], deflate, "{answer}");
        assert_eq!(answer["protocol"], "chat", "{answer}");
    }
    for (from, code) in [("client", 3001), ("server", 4002)] {
        let answer = script.ask(&json!({
            "do": "close", "uri": uri, "authorization": bearer, "from": from, "code": code,
        }));
        assert_eq!(answer["code"], code, "{answer}");
        assert_eq!(answer["reason"], "enough", "{answer}");
    }
    let answer = script.ask(&json!({"do": "refused", "uri": uri}));
    assert_eq!(answer["status"], 401, "{answer}");
    script.ask(&json!({"do": "open", "uri": uri, "authorization": bearer}));
    let answer = world.gateway.reload(|document| {
        document["routes"][0]["upgrades"] = json!([]);
    });
    assert_eq!(answer.status, 200, "{}", answer.text());
    let answer = script.ask(&json!({"do": "wait"}));
    assert_eq!(answer, json!({"code": 1008, "reason": "denied"}));
}
