//! hyper's client as oracle. Where it accepts an answer, ours reads the same, or refuses it for a
//! reason in [`STRICTER`]; and ours never accepts what hyper refuses.

use std::pin::{Pin, pin};
use std::task::{Context, Poll, Waker};

use bytes::Bytes;
use http::{HeaderMap, Method};
use http_body::Body as _;
use http_body_util::Empty;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use proptest::prelude::*;

use super::{Outcome, Script, Whole, read, sorted};
use crate::upstream::wire::{MAX_FIELDS, MAX_HEAD};

/// Why ours refuses what hyper reads.
const STRICTER: [&str; 12] = [
    // A lone LF is a line break to hyper, also in chunked bodies.
    "a line ends without CR",
    // Empty lines before the status line; bytes above 0x7f in its reason are fine with both.
    "its status line is not one of HTTP/1",
    // Equal lengths, several times.
    "it gave several lengths",
    // A list of equal lengths; anything, where there is no body or the coding is `chunked`.
    "its length is not a number",
    "its length is too large",
    // hyper prefers the coding.
    "it gave two lengths",
    // hyper reads until the connection closes if `chunked` is not last.
    "it used an odd transfer encoding",
    // hyper does not look, where there is no body.
    "it used chunks in HTTP/1.0",
    "it switched protocols unasked",
    "it sent too many 1xx answers",
    "a chunk's extension has control bytes",
    // Fewer than for heads.
    "it has too many fields",
];

/// Reads an answer with hyper.
fn hyper_reads(script: Script, method: &Method) -> Outcome {
    let mut cx = Context::from_waker(Waker::noop());
    let mut builder = http1::Builder::new();
    builder.max_headers(MAX_FIELDS).max_buf_size(MAX_HEAD);
    let mut handshake = pin!(builder.handshake::<_, Empty<Bytes>>(TokioIo::new(script)));
    let Poll::Ready(Ok((mut sender, mut driver))) = handshake.as_mut().poll(&mut cx) else {
        panic!("hyper shakes no hands");
    };
    let ready = pin!(sender.ready()).poll(&mut cx);
    let _ = (Pin::new(&mut driver).poll(&mut cx), ready);
    let request = http::Request::builder()
        .method(method)
        .uri("/")
        .header("host", "a.test")
        .body(Empty::new())
        .unwrap();
    let mut running = true;
    let mut drive = |cx: &mut Context<'_>| {
        // A few turns each: it yields now and then.
        for _ in 0..4 {
            if running && Pin::new(&mut driver).poll(cx).is_ready() {
                running = false;
            }
        }
    };
    let outcome = {
        let mut sending = pin!(sender.send_request(request));
        let mut answer = None;
        for _ in 0..8 {
            drive(&mut cx);
            if let Poll::Ready(sent) = sending.as_mut().poll(&mut cx) {
                answer = Some(sent);
                break;
            }
        }
        match answer {
            None => Outcome::Waiting,
            Some(Err(error)) => Outcome::Refused(error.to_string()),
            Some(Ok(answer)) => {
                let (parts, mut body) = answer.into_parts();
                let mut whole = Whole {
                    status: parts.status.as_u16(),
                    headers: sorted(&parts.headers),
                    body: Vec::new(),
                    trailers: Vec::new(),
                };
                let mut idle = 0;
                loop {
                    match Pin::new(&mut body).poll_frame(&mut cx) {
                        Poll::Ready(Some(Ok(frame))) => {
                            idle = 0;
                            match frame.into_data() {
                                Ok(data) => whole.body.extend_from_slice(&data),
                                Err(frame) => {
                                    let trailers: HeaderMap = frame.into_trailers().unwrap();
                                    whole.trailers = sorted(&trailers);
                                }
                            }
                        }
                        Poll::Ready(Some(Err(error))) => {
                            break Outcome::Refused(error.to_string());
                        }
                        Poll::Ready(None) => break Outcome::Answer(Box::new(whole), false),
                        Poll::Pending if idle > 8 => break Outcome::Waiting,
                        Poll::Pending => {
                            idle += 1;
                            drive(&mut cx);
                        }
                    }
                }
            }
        }
    };
    for _ in 0..4 {
        drive(&mut cx);
    }
    match outcome {
        Outcome::Answer(whole, _) => Outcome::Answer(whole, sender.is_ready()),
        other @ (Outcome::Refused(_) | Outcome::Waiting) => other,
    }
}

/// Fails unless both come to the same, or ours is stricter for a reason that is listed.
pub(super) fn agree(text: &[u8], cuts: &[usize], hangs_up: bool, method: &Method) {
    let ours = read(Script::new(text, cuts, hangs_up), method);
    let theirs = hyper_reads(Script::new(text, cuts, hangs_up), method);
    let shown = String::from_utf8_lossy(text);
    match (&ours, &theirs) {
        (Outcome::Answer(..), Outcome::Answer(..)) | (Outcome::Waiting, Outcome::Waiting) => {
            let mut theirs = theirs;
            // hyper overlooks a `Connection` that is not ASCII; for us it means `close`.
            if let (Outcome::Answer(_, again), false) = (&mut theirs, text.is_ascii()) {
                *again &= matches!(ours, Outcome::Answer(_, true));
            }
            assert_eq!(ours, theirs, "{shown:?}");
        }
        // Ours may need the rest of a line to see what is wrong with it.
        (Outcome::Refused(_) | Outcome::Waiting, Outcome::Refused(_)) => {}
        (Outcome::Refused(why), _) => {
            assert!(
                STRICTER.contains(&why.as_str()),
                "{why}, not {theirs:?}: {shown:?}"
            );
        }
        (_, _) => panic!("{ours:?}, but hyper {theirs:?}: {shown:?}"),
    }
}

fn one_of(texts: &'static [&'static str]) -> impl Strategy<Value = String> {
    prop::sample::select(texts).prop_map(str::to_owned)
}

fn status_line() -> impl Strategy<Value = String> {
    prop_oneof![
        6 => Just("HTTP/1.1 200 OK\r\n".to_owned()),
        3 => one_of(&[
            "HTTP/1.0 200 OK\r\n",
            "HTTP/1.1 204 No Content\r\n",
            "HTTP/1.1 304 Not Modified\r\n",
            "HTTP/1.1 206 \r\n",
            "HTTP/1.1 404\r\n",
            "HTTP/1.1 999 x\u{e9}\r\n",
        ]),
        1 => one_of(&[
            "HTTP/1.1  200 OK\r\n",
            "HTTP/2.0 200 OK\r\n",
            "HTTP/1.1 099 OK\r\n",
            "HTTP/1.1 20 OK\r\n",
            "HTTP/1.1 101 Switching\r\n",
            "\r\nHTTP/1.1 200 OK\r\n",
            "HTTP/1.1 200 OK\n",
            "ICY 200 OK\r\n",
        ]),
    ]
}

fn field() -> impl Strategy<Value = String> {
    prop_oneof![
        3 => one_of(&["server: x\r\n", "set-cookie: a\r\n", "ETag:\t\"x\" \r\n", "x:\r\n"]),
        2 => one_of(&[
            "connection: close\r\n",
            "connection: keep-alive\r\n",
            "Connection: x-hop, Keep-Alive\r\n",
            "connection: ,close ,\r\n",
            "keep-alive: timeout=5\r\n",
            "trailer: x-sum\r\n",
            "upgrade: h2c\r\n",
        ]),
        1 => one_of(&[
            "content-length: 3\r\n",
            "content-length: 4\r\n",
            "content-length: 3, 3\r\n",
            "content-length: +3\r\n",
            "content-length: 18446744073709551615\r\n",
            "transfer-encoding: chunked\r\n",
            "transfer-encoding: gzip\r\n",
            "transfer-encoding: gzip, chunked\r\n",
            "x : y\r\n",
            " folded\r\n",
            "nothing\r\n",
        ]),
    ]
}

fn chunk() -> impl Strategy<Value = String> {
    prop_oneof![
        8 => "[a-z]{1,20}".prop_map(|data| format!("{:x}\r\n{data}\r\n", data.len())),
        2 => one_of(&["3;a=b\r\nabc\r\n", "0003\r\nabc\r\n", "3 \t\r\nabc\r\n", "3 ;x\r\nabc\r\n"]),
        1 => one_of(&[
            "4\r\nabc\r\n",
            "2\r\nabc\r\n",
            "3\nabc\n",
            "x\r\n",
            "fffffffffffffffff\r\n",
            "3\r\nabc",
            "3;\u{1}\r\nabc\r\n",
        ]),
    ]
}

/// The framing that a head announces, and a body that mostly fits.
fn framed() -> impl Strategy<Value = (String, String)> {
    let last = one_of(&[
        "0\r\n\r\n",
        "0\r\nx-sum: 1\r\ny: 2\r\n\r\n",
        "00;x\r\n\r\n",
        "0\r\n",
        "",
    ]);
    prop_oneof![
        "[a-z]{0,40}".prop_map(|data| (format!("content-length: {}\r\n", data.len()), data)),
        (prop::collection::vec(chunk(), 0..5), last).prop_map(|(chunks, last)| {
            (
                "Transfer-Encoding: chunked\r\n".to_owned(),
                chunks.concat() + &last,
            )
        }),
        "[a-z]{0,40}".prop_map(|data| (String::new(), data)),
        Just((String::new(), String::new())),
    ]
}

fn answer() -> impl Strategy<Value = String> {
    let interim = prop_oneof![
        8 => Just(String::new()),
        1 => one_of(&[
            "HTTP/1.1 100 Continue\r\n\r\n",
            "HTTP/1.1 103 Early Hints\r\nlink: x\r\n\r\n",
            "HTTP/1.1 102 x\r\n\r\nHTTP/1.1 100 x\r\n\r\n",
        ]),
    ];
    let more = prop_oneof![
        8 => Just(String::new()),
        1 => one_of(&["x", "\r\n", "HTTP/1.1 200 OK\r\n\r\n"]),
    ];
    let fields = prop::collection::vec(field(), 0..4);
    (interim, status_line(), fields, framed(), more).prop_map(
        |(interim, status, fields, (framing, body), more)| {
            format!(
                "{interim}{status}{}{framing}\r\n{body}{more}",
                fields.concat()
            )
        },
    )
}

/// Something done to the bytes of an answer: where, what, and with which byte.
pub(super) type Mutation = (usize, u8, u8);

pub(super) fn mutations() -> impl Strategy<Value = Vec<Mutation>> {
    let byte = prop_oneof![
        3 => prop::sample::select(&b"\r\n\0 \t:;,0123456789afAF\x7f\x80\xff"[..]),
        1 => any::<u8>(),
    ];
    let count = prop_oneof![3 => Just(0..=0), 3 => Just(1..=1), 1 => Just(2..=4)];
    count.prop_flat_map(move |count| {
        prop::collection::vec((any::<usize>(), 0..6_u8, byte.clone()), count)
    })
}

pub(super) fn mutate(text: &mut Vec<u8>, (at, what, byte): Mutation) {
    if text.is_empty() {
        return;
    }
    let at = at % text.len();
    match what {
        0 | 1 => text[at] = byte,
        2 => text.insert(at, byte),
        3 => drop(text.remove(at)),
        4 => text.truncate(at),
        _ => {
            let end = (at + usize::from(byte) % 16).min(text.len());
            let again = text[at..end].to_vec();
            text.splice(at..at, again);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 4000,
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn ours_reads_what_hyper_reads_or_less(
        text in answer(),
        mutations in mutations(),
        cuts in prop::collection::vec(any::<usize>(), 0..6),
        hangs_up in any::<bool>(),
        head in prop::bool::weighted(0.1),
    ) {
        let mut text = text.into_bytes();
        for mutation in mutations {
            mutate(&mut text, mutation);
        }
        let method = if head { Method::HEAD } else { Method::GET };
        agree(&text, &cuts, hangs_up, &method);
    }
}
