//! Every rule of reading by itself.

use http::Method;

use super::{Outcome, Script, Whole, read};
use crate::upstream::wire::{MAX_FIELDS, MAX_HEAD, MAX_INTERIM};

/// Reads `text` whole, in single bytes, and cut in the middle; all have to come to the same.
fn reads(text: impl AsRef<[u8]>, hangs_up: bool, method: &Method) -> Outcome {
    let text = text.as_ref();
    let whole = read(Script::new(text, &[], hangs_up), method);
    let halves = [text.len() / 2];
    assert_eq!(read(Script::new(text, &halves, hangs_up), method), whole);
    if text.len() < 10_000 {
        let bytes: Vec<usize> = (0..text.len()).collect();
        assert_eq!(read(Script::new(text, &bytes, hangs_up), method), whole);
    }
    whole
}

fn answer(text: impl AsRef<[u8]>) -> (Whole, bool) {
    let outcome = reads(text, false, &Method::GET);
    let Outcome::Answer(whole, again) = outcome else {
        panic!("{outcome:?}");
    };
    (*whole, again)
}

fn refusal(text: impl AsRef<[u8]>) -> String {
    let outcome = reads(text, false, &Method::GET);
    let Outcome::Refused(why) = outcome else {
        panic!("{outcome:?}");
    };
    why
}

fn body(text: &str) -> (String, bool) {
    let (whole, again) = answer(text);
    (String::from_utf8(whole.body).unwrap(), again)
}

#[test]
fn a_length_ends_the_body() {
    let ok = "HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nabc";
    assert_eq!(body(ok), ("abc".to_owned(), true));
    let padded = "HTTP/1.1 200 OK\r\nContent-Length:\t 003 \t\r\n\r\nabc";
    assert_eq!(body(padded), ("abc".to_owned(), true));
    let empty = "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n";
    assert_eq!(body(empty), (String::new(), true));
}

#[test]
fn what_follows_the_end_is_nobodys_answer_and_ends_the_connection() {
    for ok in [
        "HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\nabcd",
        "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\nd",
        "HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\nabcHTTP/1.1 200 OK\r\n\r\n",
    ] {
        assert_eq!(body(ok), ("abc".to_owned(), false), "{ok}");
    }
    let (_, again) = answer("HTTP/1.1 204 No Content\r\ncontent-length: 3\r\n\r\nabc");
    assert!(!again);
}

#[test]
fn chunks_are_joined_and_their_extensions_ignored() {
    let ok = "HTTP/1.1 200 OK\r\nTransfer-Encoding: Chunked\r\n\r\n\
              1\r\na\r\n0002;x=\"y\";z\r\nbc\r\nA \t\r\n0123456789\r\n0\r\n\r\n";
    assert_eq!(body(ok), ("abc0123456789".to_owned(), true));
    let none = "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n";
    assert_eq!(body(none), (String::new(), true));
}

#[test]
fn trailers_are_read() {
    let ok = "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n\
              1\r\na\r\n0\r\nGrpc-Status: 0\r\nx: 1\r\nx: 2\r\n\r\n";
    let (whole, again) = answer(ok);
    assert!(again);
    assert_eq!(whole.body, b"a");
    let fields = [("grpc-status", "0"), ("x", "1"), ("x", "2")];
    let fields = fields.map(|(name, value)| (name.to_owned(), value.as_bytes().to_vec()));
    assert_eq!(whole.trailers, fields);
}

#[test]
fn malformed_chunks_are_refused() {
    for (chunks, why) in [
        ("g\r\n", "a chunk has no size"),
        ("\r\n", "a chunk has no size"),
        ("-1\r\n", "a chunk has no size"),
        ("+1\r\na\r\n", "a chunk has no size"),
        (" 1\r\na\r\n", "a chunk has no size"),
        ("0x1\r\na\r\n", "a chunk's size is not a number"),
        ("1 1\r\na\r\n", "a chunk's size is not a number"),
        ("1_0\r\n", "a chunk's size is not a number"),
        ("10000000000000000\r\n", "a chunk is too large"),
        ("fffffffffffffffff\r\n", "a chunk is too large"),
        ("1\na\r\n0\r\n\r\n", "a line ends without CR"),
        ("1\r\nab\r\n", "a chunk is longer than it said"),
        ("1\r\na\n\r\n", "a chunk is longer than it said"),
        ("1\r\na\r0\r\n\r\n", "a chunk is longer than it said"),
        ("1;\rx\r\na\r\n", "a chunk's extension has control bytes"),
        ("1;\0\r\na\r\n", "a chunk's extension has control bytes"),
        ("0\r\nx: 1\n\r\n", "a line ends without CR"),
        ("0\r\n x: 1\r\n\r\n", "a field's name is not valid"),
        ("0\r\nx : 1\r\n\r\n", "a field's name is not valid"),
        ("0\r\nx\r\n\r\n", "a field has no colon"),
        ("1\r\na\r\n0\r\nx\r\n\r\n", "a field has no colon"),
        (
            "1\r\na\r\n0\r\n\x7fx: 1\r\n\r\n",
            "a field's name is not valid",
        ),
    ] {
        let text = format!("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n{chunks}");
        assert_eq!(refusal(text), why, "{chunks:?}");
    }
}

#[test]
fn what_carries_no_data_in_a_chunked_body_is_bounded() {
    let head = "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n";
    let long = format!("{head}1;{}", "x".repeat(5000));
    assert_eq!(refusal(long), "the line before a chunk is too long");
    let zeros = format!("{head}{}1\r\na\r\n0\r\n\r\n", "0".repeat(5000));
    assert_eq!(refusal(zeros), "the line before a chunk is too long");
    let chunk = format!("1;{}\r\na\r\n", "x".repeat(1000));
    let many = format!("{head}{}", chunk.repeat(20));
    assert_eq!(refusal(many), "its chunks have too many extensions");
    let many = format!("{head}0\r\n{}", "x: 1\r\n".repeat(100));
    assert_eq!(refusal(many), "it has too many fields");
    let large = format!("{head}0\r\nx: {}", "x".repeat(20_000));
    assert_eq!(refusal(large), "its head is too large");
}

#[test]
fn two_lengths_are_refused() {
    for (fields, why) in [
        (
            "content-length: 3\r\ncontent-length: 4",
            "it gave several lengths",
        ),
        (
            "content-length: 3\r\ncontent-length: 3",
            "it gave several lengths",
        ),
        ("content-length: 3, 3", "its length is not a number"),
        ("content-length: 3, 4", "its length is not a number"),
        ("content-length: +3", "its length is not a number"),
        ("content-length: -3", "its length is not a number"),
        ("content-length: 0x3", "its length is not a number"),
        ("content-length: 3 3", "its length is not a number"),
        ("content-length: 3;", "its length is not a number"),
        ("content-length:", "its length is not a number"),
        (
            "content-length: 18446744073709551616",
            "its length is too large",
        ),
        (
            "content-length: 9223372036854775808",
            "its length is too large",
        ),
        (
            "content-length: 99999999999999999999999",
            "its length is too large",
        ),
        (
            "content-length: 3\r\ntransfer-encoding: chunked",
            "it gave two lengths",
        ),
        (
            "transfer-encoding: chunked\r\ncontent-length: 0",
            "it gave two lengths",
        ),
        (
            "transfer-encoding: gzip, chunked",
            "it used an odd transfer encoding",
        ),
        (
            "transfer-encoding: chunked, identity",
            "it used an odd transfer encoding",
        ),
        (
            "transfer-encoding: identity",
            "it used an odd transfer encoding",
        ),
        (
            "transfer-encoding: xchunked",
            "it used an odd transfer encoding",
        ),
        (
            "transfer-encoding: \"chunked\"",
            "it used an odd transfer encoding",
        ),
        (
            "transfer-encoding: chunked,",
            "it used an odd transfer encoding",
        ),
        ("transfer-encoding:", "it used an odd transfer encoding"),
        (
            "transfer-encoding: chunked\r\ntransfer-encoding: chunked",
            "it used an odd transfer encoding",
        ),
    ] {
        for status in ["200 OK", "204 No Content", "304 Not Modified"] {
            let text = format!("HTTP/1.1 {status}\r\n{fields}\r\n\r\nabc");
            assert_eq!(refusal(text), why, "{fields:?}");
        }
    }
    let old = "HTTP/1.0 200 OK\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n";
    assert_eq!(refusal(old), "it used chunks in HTTP/1.0");
}

#[test]
fn heads_that_are_not_exactly_http_are_refused() {
    let line = "its status line is not one of HTTP/1";
    let cr = "a line ends without CR";
    let name = "a field's name is not valid";
    let value = "a field's value has control bytes";
    for (head, why) in [
        (&b"HTTP/2.0 200 OK\r\n"[..], line),
        (b"HTTP/1.2 200 OK\r\n", line),
        (b"HTTP/1.1x200 OK\r\n", line),
        (b"http/1.1 200 OK\r\n", line),
        (b" HTTP/1.1 200 OK\r\n", line),
        (b"HTTP/1.1  200 OK\r\n", line),
        (b"HTTP/1.1\t200 OK\r\n", line),
        (b"HTTP/1.1 20 OK\r\n", line),
        (b"HTTP/1.1 2000 OK\r\n", line),
        (b"HTTP/1.1 2x0 OK\r\n", line),
        (b"HTTP/1.1 099 OK\r\n", line),
        (b"HTTP/1.1 -20 OK\r\n", line),
        (b"HTTP/1.1 200\tOK\r\n", line),
        (b"HTTP/1.1 200 O\0K\r\n", line),
        (b"HTTP/1.1 200 O\rK\r\n", line),
        (b"HTTP/1.1\r\n", line),
        (b"SSH-2.0-OpenSSH_9.6\r\n", line),
        (b"\r\nHTTP/1.1 200 OK\r\n", line),
        (b"HTTP/1.1 200 OK\n", cr),
        (b"\nHTTP/1.1 200 OK\r\n", cr),
        (b"HTTP/1.1 200 OK\r\na: b\n", cr),
        (b"HTTP/1.1 200 OK\r\na: b\nc: d\r\n", cr),
        (b"HTTP/1.1 200 OK\r\na: b\r\n c\r\n", "a field has no colon"),
        (b"HTTP/1.1 200 OK\r\na: b\r\n\tc: d\r\n", name),
        (b"HTTP/1.1 200 OK\r\n a: b\r\n", name),
        (b"HTTP/1.1 200 OK\r\na : b\r\n", name),
        (b"HTTP/1.1 200 OK\r\na\t: b\r\n", name),
        (b"HTTP/1.1 200 OK\r\n: b\r\n", name),
        (b"HTTP/1.1 200 OK\r\na(b): b\r\n", name),
        (b"HTTP/1.1 200 OK\r\na\0: b\r\n", name),
        (b"HTTP/1.1 200 OK\r\n\xc3\xa4: b\r\n", name),
        (b"HTTP/1.1 200 OK\r\na\r\n", "a field has no colon"),
        (b"HTTP/1.1 200 OK\r\na: b\rc\r\n", value),
        (b"HTTP/1.1 200 OK\r\na: b\r\r\n", value),
        (b"HTTP/1.1 200 OK\r\na: b\0\r\n", value),
        (b"HTTP/1.1 200 OK\r\na: \x7f\r\n", value),
        (b"HTTP/1.1 200 OK\r\na: \x1b[0m\r\n", value),
    ] {
        let text = [head, b"\r\n"].concat();
        assert_eq!(refusal(&text), why, "{:?}", String::from_utf8_lossy(head));
    }
    // It may never send an empty line.
    assert_eq!(refusal("SSH-2.0"), line);
    let (whole, _) = answer(b"HTTP/1.1 200\r\na:\xff \tb\t\r\ncontent-length: 0\r\n\r\n");
    assert_eq!(whole.headers[0], ("a".to_owned(), b"\xff \tb".to_vec()));
}

#[test]
fn heads_are_bounded() {
    let most = "a: b\r\n".repeat(MAX_FIELDS - 1);
    let ok = format!("HTTP/1.1 200 OK\r\ncontent-length: 0\r\n{most}\r\n");
    assert_eq!(answer(ok).0.headers.len(), MAX_FIELDS);
    let many = format!("HTTP/1.1 200 OK\r\ncontent-length: 0\r\na: b\r\n{most}\r\n");
    assert_eq!(refusal(many), "it has too many fields");
    let large = format!("HTTP/1.1 200 OK\r\na: {}\r\n\r\n", "b".repeat(MAX_HEAD));
    assert_eq!(refusal(large), "its head is too large");
    let endless = format!("HTTP/1.1 200 OK\r\na: {}", "b".repeat(MAX_HEAD));
    assert_eq!(refusal(endless), "its head is too large");
}

#[test]
fn a_body_that_ends_early_is_an_error() {
    for (text, why) in [
        ("", "it hung up before it answered"),
        ("HTTP/1.1 200", "it hung up in the head of its answer"),
        (
            "HTTP/1.1 200 OK\r\n",
            "it hung up in the head of its answer",
        ),
        (
            "HTTP/1.1 100 Continue\r\n\r\n",
            "it hung up in the head of its answer",
        ),
        (
            "HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\n",
            "it hung up in the body of its answer",
        ),
        (
            "HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\nab",
            "it hung up in the body of its answer",
        ),
        (
            "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n",
            "it hung up in the body of its answer",
        ),
        (
            "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n",
            "it hung up in the body of its answer",
        ),
        (
            "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n0\r\nx: 1\r\n",
            "it hung up in the body of its answer",
        ),
    ] {
        let outcome = reads(text, true, &Method::GET);
        assert_eq!(outcome, Outcome::Refused(why.to_owned()), "{text:?}");
    }
}

#[test]
fn without_a_length_the_body_ends_with_the_connection() {
    for version in ["HTTP/1.0", "HTTP/1.1"] {
        let text = format!("{version} 200 OK\r\nconnection: keep-alive\r\n\r\nabc");
        assert_eq!(reads(&text, false, &Method::GET), Outcome::Waiting);
        let outcome = reads(&text, true, &Method::GET);
        let Outcome::Answer(whole, again) = outcome else {
            panic!("{outcome:?}");
        };
        assert_eq!((&*whole.body, again), (&b"abc"[..], false));
    }
}

#[test]
fn connections_last_as_long_as_both_sides_want() {
    for (head, again) in [
        ("HTTP/1.1 200 OK\r\n", true),
        ("HTTP/1.1 200 OK\r\nconnection: keep-alive\r\n", true),
        ("HTTP/1.1 200 OK\r\nconnection: x\r\n", true),
        ("HTTP/1.1 200 OK\r\nconnection: close\r\n", false),
        ("HTTP/1.1 200 OK\r\nconnection: x, Close\r\n", false),
        (
            "HTTP/1.1 200 OK\r\nconnection: close\r\nconnection: keep-alive\r\n",
            false,
        ),
        (
            "HTTP/1.1 200 OK\r\nconnection: keep-alive\r\nconnection: close\r\n",
            false,
        ),
        (
            "HTTP/1.1 200 OK\r\nconnection: keep-alive, \u{e9}\r\n",
            false,
        ),
        ("HTTP/1.0 200 OK\r\n", false),
        ("HTTP/1.0 200 OK\r\nconnection: Keep-Alive\r\n", true),
        (
            "HTTP/1.0 200 OK\r\nconnection: keep-alive, close\r\n",
            false,
        ),
    ] {
        let (_, lasts) = answer(format!("{head}content-length: 0\r\n\r\n"));
        assert_eq!(lasts, again, "{head}");
    }
}

#[test]
fn some_answers_have_no_body_whatever_they_say() {
    for head in [
        "HTTP/1.1 204 No Content\r\n",
        "HTTP/1.1 304 Not Modified\r\ncontent-length: 5\r\n",
        "HTTP/1.1 304 Not Modified\r\ntransfer-encoding: chunked\r\n",
        "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 204 No Content\r\n",
        "HTTP/1.1 103 Early Hints\r\nlink: x\r\n\r\nHTTP/1.1 204 No Content\r\n",
    ] {
        let (whole, again) = answer(format!("{head}\r\n"));
        assert!(whole.body.is_empty() && again, "{head}");
    }
    let text = "HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\n";
    let outcome = reads(text, false, &Method::HEAD);
    let Outcome::Answer(whole, true) = outcome else {
        panic!("{outcome:?}");
    };
    assert_eq!(whole.headers[0].1, b"5");
}

#[test]
fn interim_answers_are_bounded_and_never_switch_protocols() {
    let interim = "HTTP/1.1 102 Processing\r\n\r\n";
    let last = "HTTP/1.1 204 No Content\r\n\r\n";
    let (whole, _) = answer(format!("{}{last}", interim.repeat(MAX_INTERIM)));
    assert_eq!(whole.status, 204);
    let many = format!("{}{last}", interim.repeat(MAX_INTERIM + 1));
    assert_eq!(refusal(many), "it sent too many 1xx answers");
    let switch = "HTTP/1.1 101 Switching Protocols\r\nupgrade: x\r\nconnection: upgrade\r\n\r\n";
    assert_eq!(refusal(switch), "it switched protocols unasked");
}
