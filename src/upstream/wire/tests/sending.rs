//! What leaves, and in how many writes.

use std::pin::Pin;
use std::task::{Context, Poll, Waker};

use bytes::Bytes;
use http::Method;
use http::header::{self, HeaderMap, HeaderValue};
use http_body::Frame;
use tokio::sync::mpsc;

use super::{Script, get};
use crate::upstream::wire::{self, Length, Request, Unsent, Wire};

/// A body that a test feeds.
struct Fed(mpsc::UnboundedReceiver<Result<Frame<Bytes>, &'static str>>);

impl http_body::Body for Fed {
    type Data = Bytes;
    type Error = &'static str;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, &'static str>>> {
        self.0.poll_recv(cx)
    }
}

type Feed = mpsc::UnboundedSender<Result<Frame<Bytes>, &'static str>>;

fn fed() -> (Feed, Fed) {
    let (feed, body) = mpsc::unbounded_channel();
    (feed, Fed(body))
}

fn data(feed: &Feed, text: &'static str) {
    feed.send(Ok(Frame::data(Bytes::from_static(text.as_bytes()))))
        .unwrap();
}

fn begun(script: Script, body: Length, headers: &HeaderMap) -> Wire<Script> {
    let mut wire = Wire::new(script);
    let method = Method::POST;
    let request = Request {
        body,
        ..get(&method, headers)
    };
    wire.begin(request).unwrap();
    wire
}

fn send(wire: &mut Wire<Script>, body: &mut Fed) -> Poll<Result<(), Unsent<&'static str>>> {
    wire.poll_send(Pin::new(body), &mut Context::from_waker(Waker::noop()))
}

fn heard(wire: &Wire<Script>) -> &str {
    std::str::from_utf8(&wire.stream.heard).unwrap()
}

#[test]
fn the_head_is_what_was_judged_with_the_host_first() {
    let mut headers = HeaderMap::new();
    for (name, value) in [
        (header::COOKIE, "a=1"),
        (header::ACCEPT, "*/*"),
        (header::COOKIE, "b=2"),
        (header::CONTENT_LENGTH, "77"),
        (header::TRANSFER_ENCODING, "chunked"),
        (header::HOST, "evil.test"),
    ] {
        headers.append(name, HeaderValue::from_static(value));
    }
    let mut wire = Wire::new(Script::default());
    let method = Method::PUT;
    let request = Request {
        path: "/a%2Fb",
        query: Some("q=%41&&x=[1]"),
        body: Length::Exact(5),
        ..get(&method, &headers)
    };
    wire.begin(request).unwrap();
    let (feed, mut body) = fed();
    data(&feed, "hello");
    assert!(matches!(send(&mut wire, &mut body), Poll::Ready(Ok(()))));
    assert_eq!(
        heard(&wire),
        "PUT /a%2Fb?q=%41&&x=[1] HTTP/1.1\r\nhost: a.test\r\ncookie: a=1; b=2\r\naccept: */*\r\n\
         content-length: 5\r\n\r\nhello"
    );
}

#[test]
fn what_does_not_fit_into_a_request_line_is_not_sent() {
    let headers = HeaderMap::new();
    let method = Method::GET;
    for (path, query, host) in [
        ("", None, "a"),
        ("a", None, "a"),
        ("/ HTTP/1.1\r\nx: y", None, "a"),
        ("/", Some("a b"), "a"),
        ("/", Some("\r\n"), "a"),
        ("/", None, "a\r\nx: y"),
        ("/\0", None, "a"),
        ("/\x7f", None, "a"),
    ] {
        let mut wire = Wire::new(Script::default());
        let request = Request {
            path,
            query,
            host,
            fields: headers.iter(),
            lines: &[],
            method: &method,
            body: Length::Nothing,
        };
        assert!(matches!(wire.begin(request), Err(Unsent::Target)), "{path}");
        assert_eq!(heard(&wire), "");
    }
}

#[test]
fn a_body_of_unknown_length_is_chunked_and_its_trailers_follow() {
    for gulp in [None, Some(1), Some(7)] {
        let script = Script {
            gulp,
            ..Script::default()
        };
        let headers = HeaderMap::new();
        let mut wire = begun(script, Length::Unknown, &headers);
        let (feed, mut body) = fed();
        data(&feed, "hello");
        data(&feed, "");
        assert!(send(&mut wire, &mut body).is_pending());
        assert!(wire.starving() && !wire.sent());
        // An empty piece would have ended the body.
        assert!(
            heard(&wire).ends_with("\r\n\r\n5\r\nhello\r\n"),
            "{}",
            heard(&wire)
        );
        data(&feed, "0123456789abcdef");
        let mut fields = HeaderMap::new();
        fields.insert("x-checksum", HeaderValue::from_static("1"));
        feed.send(Ok(Frame::trailers(fields))).unwrap();
        assert!(matches!(send(&mut wire, &mut body), Poll::Ready(Ok(()))));
        assert!(wire.sent());
        let end = "5\r\nhello\r\n10\r\n0123456789abcdef\r\n0\r\nx-checksum: 1\r\n\r\n";
        assert!(heard(&wire).ends_with(end), "{}", heard(&wire));
        assert_eq!(wire.written(), u64::try_from(heard(&wire).len()).unwrap());
    }
}

#[test]
fn a_body_that_is_not_as_long_as_it_said_never_ends_as_if_it_were() {
    let headers = HeaderMap::new();
    for (text, ends) in [("123456", false), ("1234", true)] {
        let mut wire = begun(Script::default(), Length::Exact(5), &headers);
        let (feed, mut body) = fed();
        data(&feed, text);
        if ends {
            drop(feed);
        }
        let sent = send(&mut wire, &mut body);
        assert!(matches!(sent, Poll::Ready(Err(Unsent::Length))), "{sent:?}");
        assert!(!wire.sent() && !wire.reusable());
        assert!(!heard(&wire).ends_with("123456"));
    }
    let mut wire = begun(Script::default(), Length::Unknown, &headers);
    let (feed, mut body) = fed();
    data(&feed, "1");
    feed.send(Err("gone")).unwrap();
    let sent = send(&mut wire, &mut body);
    assert!(matches!(sent, Poll::Ready(Err(Unsent::Body("gone")))));
    assert!(!heard(&wire).contains("0\r\n\r\n"));
}

#[test]
fn an_answer_is_read_while_the_request_is_still_being_sent() {
    let headers = HeaderMap::new();
    let early = b"HTTP/1.1 413 Too Large\r\ncontent-length: 2\r\n\r\nno";
    let mut wire = begun(Script::new(early, &[], false), Length::Unknown, &headers);
    let (feed, mut body) = fed();
    data(&feed, "1");
    assert!(send(&mut wire, &mut body).is_pending());
    let mut cx = Context::from_waker(Waker::noop());
    let Poll::Ready(Ok(answer)) = wire.poll_head(wire::Method::Other, &mut cx) else {
        panic!("no answer");
    };
    assert_eq!(answer.status, 413);
    assert_eq!(wire.whole_body().unwrap(), "no");
    assert!(!wire.reusable());
}

#[test]
fn an_answer_is_read_from_a_peer_that_has_closed_its_ear() {
    let headers = HeaderMap::new();
    let early = b"HTTP/1.1 413 Too Large\r\ncontent-length: 2\r\n\r\nno";
    let script = Script {
        deaf_after: Some(10),
        gulp: Some(10),
        ..Script::new(early, &[], true)
    };
    let mut wire = begun(script, Length::Unknown, &headers);
    let (feed, mut body) = fed();
    data(&feed, "1");
    assert!(matches!(
        send(&mut wire, &mut body),
        Poll::Ready(Err(Unsent::Io(_)))
    ));
    assert_eq!(wire.written(), 10);
    let mut cx = Context::from_waker(Waker::noop());
    let answer = wire.poll_head(wire::Method::Other, &mut cx);
    assert!(matches!(answer, Poll::Ready(Ok(answer)) if answer.status == 413));
    assert_eq!(wire.whole_body().unwrap(), "no");
    assert!(!wire.reusable());
}

#[test]
fn the_same_connection_carries_one_exchange_after_the_other() {
    let headers = HeaderMap::new();
    let method = Method::GET;
    let mut wire = Wire::new(Script::default());
    let mut cx = Context::from_waker(Waker::noop());
    for _ in 0..3 {
        assert!(wire.quiet(&mut cx));
        wire.begin(get(&method, &headers)).unwrap();
        let (_, mut body) = fed();
        assert!(matches!(send(&mut wire, &mut body), Poll::Ready(Ok(()))));
        let ok = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";
        wire.stream.says.push_back(ok.to_vec());
        assert!(wire.poll_head(wire::Method::Other, &mut cx).is_ready());
        assert_eq!(wire.whole_body().unwrap(), "ok");
        assert!(wire.reusable());
    }
    // Bytes nobody asked for, or a hang-up, end it.
    wire.stream.says.push_back(b"x".to_vec());
    assert!(!wire.quiet(&mut cx));
    wire.stream.hangs_up = true;
    assert!(!wire.still_quiet());
}
