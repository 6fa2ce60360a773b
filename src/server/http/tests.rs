use std::cell::Cell;
use std::net::SocketAddr;

use http_body_util::BodyExt;
use tokio::io::{AsyncWriteExt, DuplexStream, ReadBuf};
use tokio::task::{JoinHandle, LocalSet};
use tokio::time::timeout;

use super::*;
use crate::body;
use crate::schema::{Size, Span};

/// No test waits longer than this.
const LIMIT: Duration = Duration::from_secs(20);

/// A served connection: the client's end, and what is known of the server's.
struct Served {
    client: DuplexStream,
    task: JoinHandle<Ending>,
    phase: watch::Sender<Phase>,
    /// Requests that reached the handler and were in order.
    handled: Rc<Cell<usize>>,
}

fn bounds() -> Bounds {
    Bounds {
        header_timeout: Span::millis(400),
        idle_timeout: Span::millis(800),
        write_timeout: Span::millis(400),
        max_header_size: Size::kib(8),
        ..Bounds::default()
    }
}

/// Serves one end of a pipe that holds `room` bytes each way.
fn served(protocol: Protocol, bounds: Bounds, room: usize) -> Served {
    let (client, server) = tokio::io::duplex(room);
    let (phase, receiver) = watch::channel(Phase::Open);
    let handled = Rc::new(Cell::new(0));
    let count = Rc::clone(&handled);
    let handler = move |info: Arc<ConnInfo>, request: Request<Incoming>| {
        answer(info, request, Rc::clone(&count))
    };
    let task = tokio::task::spawn_local(async move {
        serve(
            server,
            Box::new(info(None)),
            protocol,
            &bounds,
            receiver,
            handler,
        )
        .await
    });
    Served {
        client,
        task,
        phase,
        handled,
    }
}

fn info(ambiguous_head: Option<Arc<AtomicBool>>) -> ConnInfo {
    let nowhere: SocketAddr = "127.0.0.1:1".parse().unwrap();
    ConnInfo {
        listener: "test".into(),
        peer: nowhere,
        local: nowhere,
        tls: None,
        ambiguous_head,
        forwarded: Default::default(),
    }
}

/// Stands for the gateway: refuses ambiguous framing as `InboundRequest::parse` does.
async fn answer(
    info: Arc<ConnInfo>,
    request: Request<Incoming>,
    handled: Rc<Cell<usize>>,
) -> Response<Body> {
    let ambiguous = info
        .ambiguous_head
        .as_ref()
        .is_some_and(|flag| flag.load(Ordering::Relaxed));
    let lengths = request.headers().get_all("content-length").iter().count();
    if ambiguous || lengths > 1 {
        return Response::builder()
            .status(400)
            .header("connection", "close")
            .body(body::full("ambiguous"))
            .unwrap();
    }
    handled.set(handled.get() + 1);
    match request.uri().path() {
        "/refuse" => Response::builder()
            .status(401)
            .body(body::full("no"))
            .unwrap(),
        "/endless" => Response::new(Body::stream(Forever::Endless)),
        "/silent" => Response::new(Body::stream(Forever::Silent)),
        "/slow" => {
            tokio::time::sleep(Duration::from_millis(1200)).await;
            Response::new(body::full("slow"))
        }
        _ => match request.into_body().collect().await {
            Ok(body) => Response::new(body::full(format!("got {}", body.to_bytes().len()))),
            Err(_) => Response::builder().status(400).body(body::empty()).unwrap(),
        },
    }
}

/// An answer's body that never ends.
enum Forever {
    /// With a piece whenever it is asked.
    Endless,
    /// Without ever having one.
    Silent,
}

impl HttpBody for Forever {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        match *self {
            Self::Endless => {
                let piece = Bytes::from_static(&[b'x'; 16 * 1024]);
                Poll::Ready(Some(Ok(Frame::data(piece))))
            }
            Self::Silent => Poll::Pending,
        }
    }
}

async fn local<F: Future>(test: F) -> F::Output {
    timeout(LIMIT, LocalSet::new().run_until(test))
        .await
        .unwrap()
}

impl Served {
    /// Sends, and reads until the server has closed.
    async fn exchange(mut self, bytes: &str) -> (String, Ending, usize) {
        self.client.write_all(bytes.as_bytes()).await.unwrap();
        let text = self.rest().await;
        drop(self.client);
        (text, self.task.await.unwrap(), self.handled.get())
    }

    async fn rest(&mut self) -> String {
        let mut text = Vec::new();
        // A reset is an end too.
        let _ = self.client.read_to_end(&mut text).await;
        String::from_utf8_lossy(&text).into_owned()
    }

    /// Reads until `mark` has arrived.
    async fn until(&mut self, mark: &str) -> String {
        let mut text = String::new();
        let mut piece = [0; 1024];
        while !text.contains(mark) {
            let count = self.client.read(&mut piece).await.unwrap();
            assert!(count > 0, "closed after {text:?}");
            text.push_str(&String::from_utf8_lossy(&piece[..count]));
        }
        text
    }
}

fn http1() -> Served {
    served(Protocol::Http1, bounds(), 1 << 20)
}

#[tokio::test]
async fn heads_that_can_be_read_in_two_ways_are_refused_and_close() {
    local(async {
        for head in [
            "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
            "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n",
            "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\nContent-Length: 3\r\n\r\nabc",
            "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\nContent-Length: 4\r\n\r\nabc",
            "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3, 3\r\n\r\nabc",
            "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: +3\r\n\r\nabc",
            "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: \r\n\r\nabc",
            "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 0x3\r\n\r\nabc",
            "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip\r\n\r\nabc",
            "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: x\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
            "POST / HTTP/1.0\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
            "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n1 \r\na\r\n0\r\n\r\n",
            "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n1\na\r\n0\r\n\r\n",
            "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n0\r\nX: y\n\r\n",
            "GET / HTTP/1.1\nHost: a\n\n",
            "GET / HTTP/1.1\r\nHost: a\nX: y\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: a\r\nX: y\r\n\n",
            "GET / HTTP/1.1\r\nHost: a\r\nX: y\r\n z\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: a\r\n X: y\r\n\r\n",
            "GET / HTTP/1.1\r\n Host: a\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: a\r\nX : y\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: a\r\nX: y\rz\r\n\r\n",
            "GET / HTTP/1.1\rHost: a\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: a\r\nX: y\0z\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: a\r\nX: y\x01z\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: a\r\nX\0: y\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: a\r\nX(: y\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: a\r\n: y\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: a\r\nX\r\n\r\n",
            "GET  / HTTP/1.1\r\nHost: a\r\n\r\n",
            "GET / HTTP/1.1 \r\nHost: a\r\n\r\n",
            "GET / /x HTTP/1.1\r\nHost: a\r\n\r\n",
            "GET /\x01 HTTP/1.1\r\nHost: a\r\n\r\n",
            "GET /a\tb HTTP/1.1\r\nHost: a\r\n\r\n",
            "GET /\r\n\r\n",
            "GET / HTTP/1.2\r\nHost: a\r\n\r\n",
            "GET / HTTP/2.0\r\nHost: a\r\n\r\n",
            "GET / HTTP/3\r\nHost: a\r\n\r\n",
            "GET / http/1.1\r\nHost: a\r\n\r\n",
            "G\0T / HTTP/1.1\r\nHost: a\r\n\r\n",
            " GET / HTTP/1.1\r\nHost: a\r\n\r\n",
            "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
            "\x16\x03\x01\x02\x00\x01\x00\x01\r\n\r\n",
        ] {
            // What follows must not be answered: it may be what an attacker hid.
            let stream = format!("{head}GET /hidden HTTP/1.1\r\nHost: a\r\n\r\n");
            let (text, ending, handled) = http1().exchange(&stream).await;
            assert_eq!(handled, 0, "{head:?} was handled, and got {text:?}");
            assert_eq!(text.matches("HTTP/1.").count(), usize::from(!text.is_empty()), "{head:?}: {text:?}");
            assert!(text.is_empty() || text.starts_with("HTTP/1.1 400"), "{head:?}: {text:?}");
            assert!(matches!(ending, Ending::Malformed | Ending::Closed | Ending::Broken), "{head:?}: {ending:?}");
        }
    })
    .await;
}

#[tokio::test]
async fn honest_requests_are_served_also_when_they_are_pipelined() {
    local(async {
        let inner = "Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n";
        let mut one = http1();
        let stream = format!(
            "POST /1 HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n{:x}\r\n{inner}\r\n0\r\n\r\n\
             \r\nPOST /2 HTTP/1.1\r\nHost: a\r\nContent-Length: {}\r\n\r\n{inner}\
             GET /3 HTTP/1.1\r\nHost: a\r\n\r\n\
             POST /4 HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: Chunked\r\n\r\n1;x=y\r\na\r\n0\r\nX: content-length\r\n\r\n\
             GET /5 HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n",
            inner.len(),
            inner.len(),
        );
        // In two pieces, cut within a field's name.
        let (first, second) = stream.split_at(stream.find("HTTP/1.1\r\nHost: a\r\nContent-L").unwrap() + 25);
        one.client.write_all(first.as_bytes()).await.unwrap();
        one.until("got 49").await;
        let (text, ending, handled) = one.exchange(second).await;
        assert_eq!((ending, handled), (Ending::Closed, 5), "{text}");
        assert_eq!(text.matches("HTTP/1.1 200 OK").count(), 4, "{text}");
        assert!(!text.contains("ambiguous"));
    })
    .await;
}

#[tokio::test]
async fn a_pipelined_request_with_two_lengths_is_refused_and_the_one_before_is_not() {
    local(async {
        let stream = "GET / HTTP/1.1\r\nHost: a\r\n\r\n\
             POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n\
             GET /hidden HTTP/1.1\r\nHost: a\r\n\r\n";
        let (text, _, handled) = http1().exchange(stream).await;
        assert_eq!(handled, 1);
        assert!(text.contains("200 OK") && text.contains("400 Bad Request"), "{text}");
        assert_eq!(text.matches("HTTP/1.1 ").count(), 2);
    })
    .await;
}

#[tokio::test]
async fn a_bad_chunk_that_comes_later_ends_the_body_and_the_connection() {
    local(async {
        let mut one = http1();
        one.client
            .write_all(
                b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n",
            )
            .await
            .unwrap();
        while one.handled.get() == 0 {
            tokio::task::yield_now().await;
        }
        let rest = "1 \r\na\r\n0\r\n\r\nGET /hidden HTTP/1.1\r\nHost: a\r\n\r\n";
        let (text, _, handled) = one.exchange(rest).await;
        assert_eq!(handled, 1);
        assert!(!text.contains("200 OK"), "{text}");
    })
    .await;
}

#[tokio::test]
async fn heads_that_are_too_large_are_refused() {
    local(async {
        let long = "x".repeat(9000);
        let many = "x: y\r\n".repeat(101);
        for (stream, status) in [
            (
                format!("GET / HTTP/1.1\r\nHost: a\r\nX: {long}\r\n\r\n"),
                "431",
            ),
            (format!("GET / HTTP/1.1\r\nHost: a\r\n{many}\r\n"), "431"),
            (
                format!("GET /{} HTTP/1.1\r\nHost: a\r\n\r\n", "x".repeat(70_000)),
                "4",
            ),
        ] {
            let (text, _, handled) = http1().exchange(&stream).await;
            assert_eq!(handled, 0);
            assert!(text.starts_with(&format!("HTTP/1.1 {status}")), "{text}");
        }
    })
    .await;
}

#[tokio::test]
async fn slow_heads_and_idle_connections_end_in_their_time() {
    local(async {
        // Nothing, and half a head.
        for start in ["", "GET / HTTP/1.1\r\nHo"] {
            let began = Instant::now();
            let (text, ending, _) = http1().exchange(start).await;
            assert_eq!((text.as_str(), ending), ("", Ending::Bound(Cause::Header)));
            assert!(began.elapsed() >= Duration::from_millis(390));
        }
        // A byte now and then does not help.
        let mut dripping = http1();
        let began = Instant::now();
        let drip = async {
            for byte in "GET / HTTP/1.1\r\nX: "
                .bytes()
                .chain(std::iter::repeat(b'x'))
            {
                if dripping.client.write_all(&[byte]).await.is_err() {
                    break;
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        drip.await;
        assert!(began.elapsed() < Duration::from_secs(5));
        assert_eq!(dripping.task.await.unwrap(), Ending::Bound(Cause::Header));
        // Between requests the longer idle timeout holds.
        let began = Instant::now();
        let (text, ending, _) = http1().exchange("GET / HTTP/1.1\r\nHost: a\r\n\r\n").await;
        assert!(text.contains("got 0"));
        assert_eq!(ending, Ending::Bound(Cause::Idle));
        assert!(began.elapsed() >= Duration::from_millis(790));
    })
    .await;
}

#[tokio::test]
async fn a_request_that_takes_long_is_not_idle() {
    local(async {
        let request = "GET /slow HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n";
        let (text, ending, _) = http1().exchange(request).await;
        assert!(text.ends_with("slow"));
        assert_eq!(ending, Ending::Closed);
    })
    .await;
}

#[tokio::test]
async fn a_client_that_reads_nothing_is_cut_off() {
    local(async {
        let mut one = served(Protocol::Http1, bounds(), 4096);
        one.client
            .write_all(b"GET /endless HTTP/1.1\r\nHost: a\r\n\r\n")
            .await
            .unwrap();
        assert_eq!(one.task.await.unwrap(), Ending::Bound(Cause::Write));
        // Nor does a client live on that takes a few bytes now and then.
        let mut one = served(Protocol::Http1, bounds(), 4096);
        one.client
            .write_all(b"GET /endless HTTP/1.1\r\nHost: a\r\n\r\n")
            .await
            .unwrap();
        let mut client = one.client;
        tokio::task::spawn_local(async move {
            let mut byte = [0; 16];
            while client.read_exact(&mut byte).await.is_ok() {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        });
        assert_eq!(one.task.await.unwrap(), Ending::Bound(Cause::Write));
    })
    .await;
}

#[tokio::test]
async fn an_early_refusal_reaches_a_client_that_is_still_sending() {
    local(async {
        let mut one = served(Protocol::Http1, bounds(), 4096);
        one.client
            .write_all(b"POST /refuse HTTP/1.1\r\nHost: a\r\nContent-Length: 1000000\r\n\r\n")
            .await
            .unwrap();
        let (mut reader, mut writer) = tokio::io::split(one.client);
        let sender = tokio::task::spawn_local(async move {
            let mut sent = 0;
            while sent < 1_000_000 && writer.write_all(&[b'x'; 1000]).await.is_ok() {
                sent += 1000;
            }
            sent
        });
        let mut text = Vec::new();
        reader.read_to_end(&mut text).await.unwrap();
        assert!(text.starts_with(b"HTTP/1.1 401"));
        assert_eq!(
            sender.await.unwrap(),
            1_000_000,
            "the rest was read and thrown away"
        );
        drop(reader);
        assert_ne!(one.task.await.unwrap(), Ending::Cut);
        assert_eq!(one.handled.get(), 1);
    })
    .await;
}

#[tokio::test]
async fn the_preface_chooses_http2_and_nothing_else_does() {
    local(async {
        let one = served(Protocol::ByPreface, bounds(), 1 << 20);
        let (mut send, connection) = h2::client::handshake(one.client).await.unwrap();
        tokio::task::spawn_local(connection);
        let request = Request::get("http://a/").body(()).unwrap();
        let (response, _) = send.send_request(request, true).unwrap();
        assert_eq!(response.await.unwrap().status(), 200);
        assert_eq!(one.handled.get(), 1);

        let upgrade = "GET / HTTP/1.1\r\nHost: a\r\nConnection: Upgrade, HTTP2-Settings, close\r\n\
                       Upgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\n\r\n";
        let (text, _, handled) = served(Protocol::ByPreface, bounds(), 1 << 20)
            .exchange(upgrade)
            .await;
        assert!(text.starts_with("HTTP/1.1 200"), "{text}");
        assert_eq!(handled, 1);

        for preface in [
            "PRI * HTTP/2.0\r\n\r\nSX\r\n\r\n",
            "INVALID CONNECTION PREFACE\r\n\r\n",
        ] {
            let (text, _, handled) = served(Protocol::ByPreface, bounds(), 1 << 20)
                .exchange(preface)
                .await;
            assert_eq!(handled, 0);
            assert!(
                text.is_empty() || text.starts_with("HTTP/1.1 400"),
                "{text}"
            );
        }
        let (_, ending, handled) = served(Protocol::Http2, bounds(), 1 << 20)
            .exchange("GET / HTTP/1.1\r\nHost: a\r\n\r\n")
            .await;
        assert_eq!((ending, handled), (Ending::Malformed, 0));
        let (_, ending, _) = served(Protocol::ByPreface, bounds(), 64)
            .exchange("PRI * HT")
            .await;
        assert_eq!(ending, Ending::Bound(Cause::Header));
    })
    .await;
}

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    let mut bytes = vec![length[1], length[2], length[3], kind, flags];
    bytes.extend_from_slice(&stream.to_be_bytes());
    bytes.extend_from_slice(payload);
    bytes
}

#[tokio::test]
async fn http2_floods_that_bring_nothing_end_the_connection() {
    local(async {
        for (kind, payload) in [
            (4, &b"\0\x04\0\0\xff\xff"[..]),
            (6, b"12345678"),
            (8, b"\0\0\0\x01"),
            (2, b"\0\0\0\0\x01"),
            (0x42, b"xxxxxxxx"),
        ] {
            let stream = u32::from(kind == 2);
            let flood = frame(kind, 0, stream, payload).repeat(100);
            let mut one = served(Protocol::Http2, bounds(), 1 << 16);
            one.client.write_all(PREFACE).await.unwrap();
            one.client.write_all(&frame(4, 0, 0, b"")).await.unwrap();
            let (mut reader, mut writer) = tokio::io::split(one.client);
            tokio::task::spawn_local(async move {
                let mut sink = [0; 4096];
                while reader.read(&mut sink).await.is_ok_and(|count| count > 0) {}
            });
            let mut rounds = 0;
            while rounds < 1000 && writer.write_all(&flood).await.is_ok() {
                rounds += 1;
            }
            assert!(rounds < 100, "kind {kind}");
            assert_eq!(
                one.task.await.unwrap(),
                Ending::Bound(Cause::Frames),
                "kind {kind}"
            );
        }
    })
    .await;
}

#[tokio::test]
async fn an_http2_answer_that_nobody_takes_is_cut_and_others_live_on() {
    local(async {
        let one = served(Protocol::Http2, bounds(), 1 << 20);
        let mut builder = h2::client::Builder::new();
        builder.initial_window_size(0);
        let (mut send, connection) = builder.handshake::<_, Bytes>(one.client).await.unwrap();
        tokio::task::spawn_local(connection);
        let get = |path: &str| Request::get(format!("http://a{path}")).body(()).unwrap();
        let (stuck, _) = send.send_request(get("/endless"), true).unwrap();
        let (silent, _) = send.send_request(get("/silent"), true).unwrap();
        let mut stuck = stuck.await.unwrap().into_body();
        let silent = silent.await.unwrap();
        let error = stuck.data().await.unwrap().unwrap_err();
        assert_eq!(error.reason(), Some(h2::Reason::CANCEL));
        // The connection is alive, and so is the stream whose upstream is silent.
        let (answer, _) = send.send_request(get("/refuse"), true).unwrap();
        assert_eq!(answer.await.unwrap().status(), 401);
        assert!(!silent.body().is_end_stream());
        assert!(!one.task.is_finished());
    })
    .await;
}

#[tokio::test]
async fn an_idle_http2_connection_is_told_goodbye() {
    local(async {
        let one = served(Protocol::Http2, bounds(), 1 << 20);
        let (send, connection) = h2::client::handshake(one.client).await.unwrap();
        let ended = tokio::task::spawn_local(connection);
        let began = Instant::now();
        assert!(
            ended.await.unwrap().is_ok(),
            "it was closed by GOAWAY, not broken off"
        );
        assert!(began.elapsed() >= Duration::from_millis(790));
        assert_eq!(one.task.await.unwrap(), Ending::Bound(Cause::Idle));
        drop(send);
    })
    .await;
}

#[tokio::test]
async fn draining_answers_what_is_sent_and_then_closes() {
    local(async {
        // Under way: finished, and marked as the last.
        let mut busy = http1();
        busy.client
            .write_all(b"GET /slow HTTP/1.1\r\nHost: a\r\n\r\n")
            .await
            .unwrap();
        // Idle, but about to send.
        let mut late = http1();
        late.client
            .write_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
            .await
            .unwrap();
        late.until("got 0").await;
        let mut idle = http1();
        idle.client
            .write_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
            .await
            .unwrap();
        idle.until("got 0").await;
        while busy.handled.get() == 0 {
            tokio::task::yield_now().await;
        }
        for one in [&busy, &late, &idle] {
            one.phase.send_replace(Phase::Draining);
        }
        tokio::task::yield_now().await;
        late.client
            .write_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
            .await
            .unwrap();
        for (one, last) in [(busy, "slow"), (late, "got 0")] {
            let (text, ending, _) = one.exchange("").await;
            assert!(
                text.contains("connection: close") && text.ends_with(last),
                "{text}"
            );
            assert_eq!(ending, Ending::Closed);
        }
        assert_eq!(idle.rest().await, "");
        drop(idle.client);
        assert_eq!(idle.task.await.unwrap(), Ending::Closed);
    })
    .await;
}

#[tokio::test]
async fn http2_drains_by_goaway_and_what_is_left_is_cut() {
    local(async {
        let one = served(Protocol::Http2, bounds(), 1 << 20);
        let (mut send, connection) = h2::client::handshake(one.client).await.unwrap();
        let ended = tokio::task::spawn_local(connection);
        let get = |path: &str| Request::get(format!("http://a{path}")).body(()).unwrap();
        let (slow, _) = send.send_request(get("/slow"), true).unwrap();
        while one.handled.get() == 0 {
            tokio::task::yield_now().await;
        }
        one.phase.send_replace(Phase::Draining);
        let slow = slow.await.unwrap();
        assert_eq!(slow.status(), 200);
        drop((slow, send));
        assert!(ended.await.unwrap().is_ok());
        assert_eq!(one.task.await.unwrap(), Ending::Closed);

        let mut stuck = http1();
        stuck
            .client
            .write_all(b"GET /silent HTTP/1.1\r\nHost: a\r\n\r\n")
            .await
            .unwrap();
        stuck.until("\r\n\r\n").await;
        stuck.phase.send_replace(Phase::Draining);
        stuck.phase.send_replace(Phase::Cut);
        assert_eq!(stuck.task.await.unwrap(), Ending::Cut);
    })
    .await;
}

/// Polls a connection, as its task does whenever something may have happened.
async fn poll_once<C: Future<Output = hyper::Result<()>>>(
    connection: Pin<&mut C>,
) -> Poll<hyper::Result<()>> {
    let mut connection = Some(connection);
    poll_fn(|cx| Poll::Ready(connection.take().map(|one| one.poll(cx))))
        .await
        .unwrap()
}

#[tokio::test]
async fn a_parked_connection_holds_nothing_of_hyper_and_forgets_nothing() {
    local(async {
        let (mut client, server) = tokio::io::duplex(1 << 16);
        let activity = Activity::new();
        let handled = Rc::new(Cell::new(0));
        let count = Rc::clone(&handled);
        let flag = Arc::new(AtomicBool::new(false));
        let info = Arc::new(info(Some(Arc::clone(&flag))));
        let handler = move |info: Arc<ConnInfo>, request: Request<Incoming>| {
            answer(info, request, Rc::clone(&count))
        };
        let watch = Watch::Http1(Framing::default());
        let tap = Tap::new(server, Bytes::new(), watch, Rc::clone(&activity));
        let (_open, phase) = watch::channel(Phase::Open);
        let opened = (Slot::default(), phase);
        let service = http1_service(info, &activity, flag, opened, handler);
        let settings = http1_settings(&bounds());
        let own = Rc::clone(&activity);
        let mut connection = pin!(Parkable::new(tap, service, settings, own, Slot::default()));
        let get = "GET / HTTP/1.1\r\nHost: a\r\n\r\n";
        let post = "POST / HTTP/1.1\r\nHost: a\r\n";
        let bad = format!("{post}Transfer-Encoding: chunked\r\nContent-Length: 1\r\n\r\n0\r\n\r\n");
        for (sent, answers, rests) in [
            // Before the first request, and after each kind.
            ("", 0, true),
            (get, 1, true),
            (&get[..20], 0, false),
            (&get[20..], 1, true),
            (&format!("{post}Content-Length: 3\r\n\r\nab"), 0, false),
            ("c", 1, true),
            (
                &format!("{post}Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r"),
                0,
                false,
            ),
            ("\n\r\n", 1, true),
            // Empty lines are kept by hyper, and told again when it has gone.
            ("\r\n", 0, true),
            ("\r\n\r\n", 0, true),
            ("\r", 0, false),
            (&format!("\n{get}{get}{get}"), 3, true),
            (&bad, 1, false),
        ] {
            client.write_all(sent.as_bytes()).await.unwrap();
            for _ in 0..4 {
                assert!(
                    poll_once(connection.as_mut()).await.is_pending(),
                    "{sent:?}"
                );
            }
            let mut text = vec![0; 1 << 16];
            let mut text = ReadBuf::new(&mut text);
            poll_fn(|cx| {
                let _ = Pin::new(&mut client).poll_read(cx, &mut text);
                Poll::Ready(())
            })
            .await;
            let text = String::from_utf8_lossy(text.filled()).into_owned();
            assert_eq!(
                text.matches("HTTP/1.1 ").count(),
                answers,
                "{sent:?}: {text}"
            );
            assert_eq!(activity.at_rest().is_some(), rests, "{sent:?}");
            assert_eq!(text.contains("ambiguous"), sent == bad);
            if rests {
                connection.as_mut().get_mut().park();
                assert!(connection.is_parked());
                // Waiting does not wake it.
                assert!(poll_once(connection.as_mut()).await.is_pending());
                assert!(connection.is_parked() && activity.at_rest().is_some());
            }
        }
        assert_eq!(handled.get(), 7);
        let size = size_of_val(&*connection);
        assert!(size <= 512, "{size} bytes");
    })
    .await;
}

#[tokio::test]
async fn what_is_under_way_keeps_a_connection_from_being_parked() {
    local(async {
        for path in ["/slow", "/silent"] {
            let mut one = http1();
            let get = format!("GET {path} HTTP/1.1\r\nHost: a\r\n\r\n");
            one.client.write_all(get.as_bytes()).await.unwrap();
            tokio::time::sleep(3 * REST).await;
            // A byte of the next request while this one is answered.
            one.client.write_all(b"G").await.unwrap();
            if path == "/slow" {
                one.until("slow").await;
                tokio::time::sleep(3 * REST).await;
                one.client
                    .write_all(b"ET / HTTP/1.1\r\nHost: a\r\n\r\n")
                    .await
                    .unwrap();
                one.until("got 0").await;
            }
        }
    })
    .await;
}

#[tokio::test]
async fn a_parked_connection_keeps_its_bounds() {
    local(async {
        let parked = async || {
            let mut one = http1();
            one.client
                .write_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
                .await
                .unwrap();
            one.until("got 0").await;
            tokio::time::sleep(4 * REST).await;
            one
        };
        // The time for a head begins with its first byte, and the first byte ends the idle time.
        let mut one = parked().await;
        tokio::time::sleep(Duration::from_millis(450)).await;
        let began = Instant::now();
        one.client.write_all(b"G").await.unwrap();
        assert_eq!(one.rest().await, "");
        assert!(began.elapsed() >= Duration::from_millis(390));
        drop(one.client);
        assert_eq!(one.task.await.unwrap(), Ending::Bound(Cause::Header));
        // An empty line is no head.
        let mut one = parked().await;
        one.client.write_all(b"\r\n").await.unwrap();
        assert_eq!(one.rest().await, "");
        drop(one.client);
        assert_eq!(one.task.await.unwrap(), Ending::Bound(Cause::Idle));
        // The client's end.
        let mut one = parked().await;
        one.client.shutdown().await.unwrap();
        assert_eq!(one.rest().await, "");
        drop(one.client);
        assert_eq!(one.task.await.unwrap(), Ending::Closed);
        // Draining waits for what may be on its way, and the end of draining for nothing.
        let mut one = parked().await;
        one.phase.send_replace(Phase::Draining);
        let began = Instant::now();
        assert_eq!(one.rest().await, "");
        assert!(began.elapsed() >= GRACE - DRAIN_TICK);
        drop(one.client);
        assert_eq!(one.task.await.unwrap(), Ending::Closed);
        let one = parked().await;
        one.phase.send_replace(Phase::Cut);
        assert_eq!(one.task.await.unwrap(), Ending::Closed);
    })
    .await;
}

/// How much `seen` grows, at most, from one turn of somebody else on the core to the next, until it has
/// reached `wanted`.
async fn most_in_a_turn(seen: impl Fn() -> usize, wanted: usize) -> usize {
    let (mut most, mut before) = (0, seen());
    while before < wanted {
        tokio::task::yield_now().await;
        let now = seen();
        most = most.max(now - before);
        before = now;
    }
    most
}

#[tokio::test]
async fn who_pipelines_waits_for_others_after_every_few_requests() {
    local(async {
        let mut one = http1();
        let get = "GET / HTTP/1.1\r\nHost: a\r\n\r\n";
        one.client
            .write_all(get.repeat(500).as_bytes())
            .await
            .unwrap();
        let handled = Rc::clone(&one.handled);
        let most = most_in_a_turn(|| handled.get(), 500).await;
        assert!(most <= 8, "{most} at once");
        // They were only put off: all are answered, in their order.
        one.client.shutdown().await.unwrap();
        let text = one.rest().await;
        assert_eq!(text.matches("200 OK").count(), 500);
    })
    .await;
}

#[tokio::test]
async fn who_opens_many_streams_waits_for_others_after_every_few() {
    local(async {
        let one = served(Protocol::Http2, bounds(), 1 << 20);
        let (mut send, connection) = h2::client::handshake(one.client).await.unwrap();
        tokio::task::spawn_local(connection);
        let mut answers = Vec::new();
        for _ in 0..100 {
            let request = Request::get("https://a/").body(()).unwrap();
            send = send.ready().await.unwrap();
            answers.push(send.send_request(request, true).unwrap().0);
        }
        let handled = Rc::clone(&one.handled);
        let most = most_in_a_turn(|| handled.get(), 100).await;
        // Those whose turn has come, twice as many when they came in pieces, and some that found few waiting.
        assert!(most <= 24, "{most} at once");
        for answer in answers {
            assert_eq!(answer.await.unwrap().status(), 200);
        }
    })
    .await;
}

#[tokio::test]
async fn a_long_answer_lets_others_have_their_turns() {
    local(async {
        let mut one = served(Protocol::Http1, bounds(), 64 << 20);
        one.client
            .write_all(b"GET /endless HTTP/1.1\r\nHost: a\r\n\r\n")
            .await
            .unwrap();
        let mut sink = vec![0; 64 << 20];
        let mut all = 0;
        while all < 16 << 20 {
            tokio::task::yield_now().await;
            // All that is there, which came since the last turn.
            let mut buf = ReadBuf::new(&mut sink);
            let read = poll_fn(|cx| {
                let read = Pin::new(&mut one.client).poll_read(cx, &mut buf);
                Poll::Ready(read.is_ready())
            });
            if read.await {
                let most = buf.filled().len();
                assert!(most <= TURN + (32 << 10), "{most} bytes at once");
                all += most;
            }
        }
    })
    .await;
}
