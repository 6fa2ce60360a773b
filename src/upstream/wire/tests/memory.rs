//! What a connection remembers of its last head: it may save work, and must change nothing.

use std::task::{Context, Poll, Waker};

use http::{HeaderMap, HeaderValue};
use proptest::prelude::*;

use super::oracle::{mutate, mutations};
use super::{Script, get};
use crate::upstream::wire::memo::{MOST_BYTES, MOST_FIELDS, Memo, PATIENCE};
use crate::upstream::wire::{Answer, Fault, Method, READ_HEAD, Unsent, Wire};

/// A connection with this memory, on which the head of an answer was waited for.
fn hears(
    memo: Memo,
    script: Script,
    method: &http::Method,
) -> (Poll<Result<Answer, Fault>>, Wire<Script>) {
    let mut cx = Context::from_waker(Waker::noop());
    let mut wire = Wire::new(script);
    wire.memo = memo;
    let headers = HeaderMap::new();
    wire.begin(get(method, &headers)).unwrap();
    let body = std::pin::pin!(http_body_util::Empty::new());
    let sent: Poll<Result<(), Unsent>> = wire.poll_send(body, &mut cx);
    assert!(matches!(sent, Poll::Ready(Ok(()))));
    (wire.poll_head(Method::from(method), &mut cx), wire)
}

/// The fields of an answer, and what is remembered after it.
fn answer(memo: Memo, text: &str) -> (HeaderMap, Memo) {
    let script = Script::new(text.as_bytes(), &[], false);
    match hears(memo, script, &http::Method::GET) {
        (Poll::Ready(Ok(answer)), wire) => (answer.headers, wire.memo),
        (other, _) => panic!("{other:?}: {text:?}"),
    }
}

/// What is remembered after as many such answers as it takes.
fn taught(text: &str) -> Memo {
    (0..PATIENCE).fold(Memo::default(), |memo, _| answer(memo, text).1)
}

/// Reads with this memory and without any; both have to come to the same. Returns what is remembered
/// then.
fn same(memo: Memo, script: impl Fn() -> Script, method: &http::Method) -> Memo {
    let told = |(heard, wire): &(Poll<Result<Answer, Fault>>, Wire<Script>)| {
        let Wire {
            input,
            interim,
            incoming,
            lasting,
            ..
        } = wire;
        // Fields in their order, too.
        format!("{heard:?} {incoming:?} {lasting} {interim} {input:?}")
    };
    let fresh = hears(Memo::default(), script(), method);
    let other = hears(memo, script(), method);
    assert_eq!(told(&other), told(&fresh), "{:?}", script());
    if let (Poll::Ready(Ok(other)), Poll::Ready(Ok(fresh))) = (&other.0, &fresh.0) {
        // By name, too.
        assert_eq!(other.headers, fresh.headers);
    }
    let memo = other.1.memo;
    if let Some((fields, bytes)) = memo.holds() {
        assert!(fields <= MOST_FIELDS && bytes <= MOST_BYTES);
    }
    memo
}

fn shared(one: &HeaderMap, other: &HeaderMap, name: &str) -> bool {
    let at = |headers: &HeaderMap| headers[name].as_bytes().as_ptr();
    at(one) == at(other)
}

const FIRST: &str = "HTTP/1.1 200 OK\r\nServer: x\r\nDate: Mon\r\nContent-Length: 3\r\n\
                     Connection: keep-alive\r\nKeep-Alive: max=9\r\nX-Own: abc \r\n\r\n";

#[test]
fn a_line_that_was_there_before_is_not_read_again() {
    let (before, memo) = answer(taught(FIRST), FIRST);
    let second = FIRST.replace("Mon", "Tuesday").replace("max=9", "max=8");
    let (after, memo) = answer(memo, &second);
    for name in ["server", "content-length", "x-own"] {
        assert!(shared(&before, &after, name), "{name}");
    }
    assert_eq!(after["date"], "Tuesday");
    assert_eq!(after["keep-alive"], "max=8");
    let (again, _) = answer(memo, &second);
    assert!(shared(&after, &again, "date"));
}

#[test]
fn a_memory_changes_no_answer_and_lets_none_pass() {
    let mut memo = taught(FIRST);
    let hops = FIRST.replace("keep-alive", "x-own");
    let mut of_hops = taught(&hops);
    for (old, new) in [
        ("x-own", "x-own, close"),
        ("x-own", "x-other"),
        ("Connection: x-own\r\n", ""),
    ] {
        let text = hops.replacen(old, new, 1);
        let whole = || Script::new(text.as_bytes(), &[], true);
        of_hops = same(of_hops, whole, &http::Method::GET);
    }
    for (old, new) in [
        ("3\r\n", "4\r\n"),
        ("3\r\n", "0\r\n"),
        ("3\r\n", "3, 3\r\n"),
        ("3\r\n", "+3\r\n"),
        ("3\r\n", "\r\n"),
        ("3\r\n", "99999999999999999999\r\n"),
        ("3\r\n", "3\r\ncontent-length: 3\r\n"),
        ("3\r\n", "3\r\ntransfer-encoding: chunked\r\n"),
        ("Content-Length: 3", "transfer-encoding: chunked"),
        ("Content-Length: 3", "content-length: 3"),
        ("Content-Length: 3\r\n", ""),
        ("keep-alive", "close"),
        ("keep-alive", "x-own"),
        ("Keep-Alive:", "Proxy-Own:"),
        ("Server: x", "Server : x"),
        ("Server: x", " Server: x"),
        ("Server: x", "Server"),
        ("Server: x", "Server: \t y \t"),
        ("Server: x", "Server:"),
        ("Server: x", "Server: \u{1}"),
        ("Server: x", "Server: \rx"),
        ("Server: x\r\n", "Server: xx\n"),
        ("Server: x\r\n", "Server: x\n"),
        ("Server: x\r\n", "Server:\n"),
        ("\r\n\r\n", "\r\n \r\n\r\n"),
        ("\r\n\r\n", "\r\n\n"),
        ("\r\n\r\n", "\r\nX-Own: d\r\n\r\n"),
        ("\r\n\r\n", "\r\nSet-Cookie: d\r\n\r\n"),
        ("\r\n\r\n", "\r\n"),
        ("abc \r\n\r\n", ""),
        ("\r\n\r\n", "\r\n\r\nHTTP/1.1 200 OK\r\n\r\n"),
        ("1.1", "1.0"),
        ("200 OK", "204 OK"),
        ("HTTP/1.1 200", "HTTP/1.1 100 x\r\n\r\nHTTP/1.1 200"),
    ] {
        let text = FIRST.replacen(old, new, 1);
        for method in [http::Method::GET, http::Method::HEAD] {
            let whole = || Script::new(text.as_bytes(), &[], true);
            memo = same(memo, whole, &method);
            // One that was refused half-way leaves what is whole behind.
            memo = same(memo, || Script::new(FIRST.as_bytes(), &[], true), &method);
            let halves = || Script::new(text.as_bytes(), &[text.len() / 2], true);
            memo = same(memo, halves, &method);
        }
        assert!(memo.holds().is_some(), "{text:?}");
    }
}

#[test]
fn answers_of_several_kinds_do_not_push_each_other_out() {
    let (other, last) = (FIRST.replace("Server", "Via"), FIRST.replace("OK", "Yes"));
    let (before, mut memo) = answer(taught(FIRST), FIRST);
    for _ in 0..3 {
        for text in [&other, &last] {
            memo = answer(memo, text).1;
        }
        let (after, kept) = answer(memo, FIRST);
        assert!(shared(&before, &after, "x-own"));
        memo = kept;
    }
    for _ in 0..PATIENCE {
        memo = answer(memo, &other).1;
    }
    let (before, memo) = answer(memo, &other);
    let (after, _) = answer(memo, &other);
    assert!(shared(&before, &after, "via"));
}

#[test]
fn a_few_short_lines_are_remembered_and_no_secrets() {
    let fields = |count: usize| {
        let fields: Vec<String> = (0..count).map(|n| format!("x-{n}: a\r\n")).collect();
        format!("HTTP/1.1 200 OK\r\n{}\r\n", fields.concat())
    };
    assert_eq!(taught(&fields(0)).holds(), Some((0, 19)));
    let most = taught(&fields(MOST_FIELDS)).holds().unwrap();
    assert_eq!(most.0, MOST_FIELDS);
    assert_eq!(taught(&fields(MOST_FIELDS + 1)).holds(), None);

    let long = |bytes: usize| {
        let frame = "HTTP/1.1 200 OK\r\na: \r\nz: x\r\n\r\n";
        frame.replace("a: ", &format!("a: {}", "b".repeat(bytes - frame.len())))
    };
    let full = long(MOST_BYTES);
    assert_eq!(taught(&full).holds(), Some((2, MOST_BYTES)));
    assert_eq!(taught(&long(MOST_BYTES + 1)).holds(), None);
    // Nor by and by.
    for text in [long(MOST_BYTES + 1), full.replace("z: x", "z: xx")] {
        let memo = same(
            taught(&full),
            || Script::new(text.as_bytes(), &[], true),
            &http::Method::GET,
        );
        assert_eq!(memo.holds(), Some((2, MOST_BYTES)));
    }

    let cookie = FIRST.replace("Server", "Set-Cookie");
    assert_eq!(taught(&cookie).holds(), None);
    let twice = FIRST.replace("Server", "X-Own");
    assert_eq!(taught(&twice).holds(), None);
}

#[test]
fn values_that_are_kept_keep_no_buffer() {
    let text = FIRST.replace("Mon", "Tuesday");
    let script = Script::new(text.as_bytes(), &[], false);
    let (heard, mut wire) = hears(taught(FIRST), script, &http::Method::GET);
    let Poll::Ready(Ok(answer)) = heard else {
        panic!("{heard:?}");
    };
    assert_eq!(answer.headers["date"], HeaderValue::from_static("Tuesday"));
    // Only who has all of it to itself gets it back whole.
    assert!(wire.input.try_reclaim(READ_HEAD));
}

/// Names, each with values that differ in what follows from them.
const FIELDS: [(&str, [&str; 5]); 10] = [
    ("date", ["Mon", "Tue", " Wednesday\t", "\u{e9}", "x\u{1}y"]),
    ("Server", ["x", "x ", "", "\u{7f}", "y"]),
    ("content-length", ["3", "4", "03", "3, 3", "-3"]),
    (
        "Content-Length",
        ["3", " 3 ", "0", "", "9999999999999999999"],
    ),
    (
        "connection",
        ["keep-alive", "close", "x-hop", "", "Keep-Alive, \u{e9}"],
    ),
    (
        "Transfer-Encoding",
        ["chunked", "Chunked", "gzip", "", "chunked, chunked"],
    ),
    ("keep-alive", ["max=9", "max=8", "", "x", "y"]),
    ("x-hop", ["1", "22", "3", "4", "5"]),
    ("Set-Cookie", ["a", "b", "c", "d", "e"]),
    ("trailer", ["x-sum", "", "y", "z", "x-sum, y"]),
];

/// Which of [`FIELDS`], and for each of several answers, which value and what is done to its bytes.
fn heads() -> impl Strategy<Value = Vec<Vec<u8>>> {
    let status = prop::sample::select(&["200 OK", "200", "204 x", "304 x"][..]);
    let value = prop_oneof![6 => Just(0_usize), 1 => 0..5_usize];
    let version = prop_oneof![5 => Just("1.1"), 1 => Just("1.0")];
    let changes = prop_oneof![2 => Just(Vec::new()), 1 => mutations()];
    let round = (prop::collection::vec(value, 6), changes);
    let names = prop::sample::subsequence((0..FIELDS.len()).collect::<Vec<_>>(), 0..6);
    let names = names.prop_shuffle();
    (version, status, names, prop::collection::vec(round, 1..6)).prop_map(
        |(version, status, names, rounds)| {
            let begin = format!("HTTP/{version} {status}\r\n");
            let rounds = rounds.into_iter().map(|(values, changes)| {
                let fields = names.iter().zip(values).map(|(name, value)| {
                    let (name, values) = FIELDS[*name];
                    format!("{name}: {}\r\n", values[value])
                });
                let mut text = format!("{begin}{}\r\nabc", fields.collect::<String>()).into_bytes();
                for change in changes {
                    mutate(&mut text, change);
                }
                text
            });
            rounds.collect()
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 4000,
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn a_head_is_read_the_same_whatever_is_remembered(
        heads in heads(),
        cuts in prop_oneof![3 => Just(Vec::new()), 1 => prop::collection::vec(any::<usize>(), 1..3)],
        asked in prop::bool::weighted(0.1),
    ) {
        let method = if asked { http::Method::HEAD } else { http::Method::GET };
        let mut memo = Memo::default();
        for _ in 0..PATIENCE {
            let script = Script::new(&heads[0], &[], true);
            memo = hears(memo, script, &http::Method::GET).1.memo;
        }
        for head in heads.iter().chain(&heads) {
            memo = same(memo, || Script::new(head, &cuts, true), &method);
        }
    }
}
