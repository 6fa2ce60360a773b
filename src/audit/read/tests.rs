use std::fs;
use std::io::{Cursor, Write as _};

use flate2::Compression;
use flate2::write::GzEncoder;

use super::scan::{Members, object_end};
use super::*;

const RECORD: &str = r#"{"version":2,"time":"2026-11-22T10:00:00.123Z","request_id":"0123456789abcdef0123456789abcdef","decision_id":"d1","route":"read-order","method":"GET","path":"/orders/1","caller":{"method":"jwt","issuer":"i","subject":"alice","client":null,"token_id":null},"policy":{"name":"orders","revision":"00","data":"11","cached":false,"candidate":null},"decision":"deny","reason":"orders.not_owner","refusal":{"code":"denied","detail":"x"},"status":403,"received_at_ns":1795341600123456789,"masked":["/input/request/query/t/0"],"answer":{"allow":false},"input":{"version":1,"request":{"path":"\"}"}}}"#;

fn folder() -> tempfile::TempDir {
    tempfile::tempdir().unwrap()
}

fn write(folder: &Path, name: &str, bytes: &[u8]) -> PathBuf {
    let path = folder.join(name);
    fs::write(&path, bytes).unwrap();
    path
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::best());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

/// Texts and faults, each with its line.
fn all(paths: &[PathBuf]) -> Vec<(u64, Result<String, Fault>)> {
    let mut records = Records::open(paths).unwrap();
    let mut found = Vec::new();
    while let Some(next) = records.next() {
        found.push(match next {
            Ok(line) => {
                let text = String::from_utf8(line.text.to_vec()).unwrap();
                (line.place.line, Ok(text))
            }
            Err(broken) => (broken.place.line, Err(broken.fault)),
        });
    }
    let progress = records.progress();
    assert!(progress.total.is_none_or(|total| progress.read <= total));
    found
}

fn texts(paths: &[PathBuf]) -> Vec<String> {
    let read = all(paths).into_iter();
    read.map(|(_, text)| text.unwrap()).collect()
}

#[test]
fn records_come_in_the_order_of_the_files_and_lines_whatever_packs_them() {
    let at = folder();
    let plain = write(at.path(), "a.jsonl", b"{\"a\":1}\n\n  {\"a\":2} \r\n");
    // Two streams one after another, as log rotation appends them.
    let packed = [gzip(b"{\"b\":1}\n{\"b\""), gzip(b":2}\n")].concat();
    let packed = write(at.path(), "b.whatever", &packed);
    assert_eq!(
        texts(&[packed.clone(), plain.clone()]),
        ["{\"b\":1}", "{\"b\":2}", "{\"a\":1}", "{\"a\":2}"]
    );
    let lines: Vec<u64> = all(&[plain]).into_iter().map(|(line, _)| line).collect();
    assert_eq!(lines, [1, 3]);
}

#[test]
fn a_line_that_is_still_being_written_is_told_and_a_whole_one_without_a_break_is_read() {
    let at = folder();
    let torn = write(at.path(), "torn", b"{\"a\":1}\n{\"a\":{\"b\":\"}}");
    let read = all(&[torn]);
    assert_eq!(read[0], (1, Ok("{\"a\":1}".to_owned())));
    assert_eq!(read[1], (2, Err(Fault::Torn)));
    assert_eq!(read.len(), 2);
    let whole = write(at.path(), "whole", b"{\"a\":1}\n{\"a\":\"}\"}");
    assert_eq!(texts(&[whole]), ["{\"a\":1}", "{\"a\":\"}\"}"]);
    // A gzip stream that was cut.
    let mut cut = gzip(&b"{\"a\":1}\n".repeat(100));
    cut.truncate(cut.len() - 12);
    let cut = write(at.path(), "cut.gz", &cut);
    assert_eq!(all(&[cut]).last().unwrap().1, Err(Fault::Torn));
}

#[test]
fn a_line_that_is_too_long_or_no_record_costs_only_itself() {
    let at = folder();
    let mut text = format!("{{\"a\":\"{}\"}}\n", "x".repeat(MAX_LINE)).into_bytes();
    text.extend_from_slice(b"nonsense\n{\n\"pretty\": 1\n}\n{\"a\":1}\n");
    let file = write(at.path(), "a", &text);
    let read = all(&[file]);
    assert_eq!(read[0], (1, Err(Fault::TooLong)));
    assert!(matches!(read[1], (2, Err(Fault::NotARecord(_)))));
    assert!(read[2..5].iter().all(|(_, line)| line.is_err()));
    assert_eq!(read[5], (6, Ok("{\"a\":1}".to_owned())));
    assert_eq!(read.len(), 6);
    // The longest that is read.
    let fits = format!("{{\"a\":\"{}\"}}\n", "x".repeat(MAX_LINE - 9));
    assert_eq!(fits.len(), MAX_LINE);
    let fits = write(at.path(), "b", fits.as_bytes());
    assert!(all(&[fits])[0].1.is_ok());
}

#[test]
fn a_bomb_is_stopped_at_its_bound_with_and_without_lines() {
    let at = folder();
    let lines = gzip(&b"{\"a\":1}\n".repeat(12 << 20));
    assert!(lines.len() < 1 << 20);
    let lines = write(at.path(), "lines.gz", &lines);
    let mut records = Records::open(&[lines]).unwrap();
    let (mut read, mut last) = (0_u64, None);
    while let Some(next) = records.next() {
        match next {
            Ok(_) => read += 1,
            Err(broken) => last = Some(broken.fault),
        }
    }
    assert_eq!(last, Some(Fault::Bomb));
    assert!(read <= (64 << 20) / 8, "{read}");

    let one_line = gzip(&vec![b'x'; 100 << 20]);
    let one_line = write(at.path(), "one.gz", &one_line);
    assert_eq!(all(&[one_line]), [(1, Err(Fault::Bomb))]);
}

#[test]
fn files_that_vanish_are_named_and_those_that_were_opened_are_read() {
    let at = folder();
    let early = write(at.path(), "early", b"{\"a\":1}\n");
    let mut paths = vec![early.clone()];
    for number in 1..=OPENED_EARLY {
        paths.push(write(at.path(), &number.to_string(), b"{\"a\":2}\n"));
    }
    let late = paths.last().unwrap().clone();
    let mut records = Records::open(&paths).unwrap();
    fs::remove_file(&early).unwrap();
    fs::rename(&late, at.path().join("rotated")).unwrap();
    let (mut read, mut broken) = (0, Vec::new());
    while let Some(next) = records.next() {
        match next {
            Ok(_) => read += 1,
            Err(found) => broken.push(found),
        }
    }
    assert_eq!(read, OPENED_EARLY);
    assert_eq!(broken.len(), 1);
    assert_eq!(broken[0].fault, Fault::Gone);
    assert_eq!(&*broken[0].place.file, late.as_path());
}

#[test]
fn what_cannot_be_opened_is_said_with_the_way_out() {
    let at = folder();
    let error = |paths: &[PathBuf]| Records::open(paths).unwrap_err().to_string();
    assert!(error(&[]).contains("`-` for standard input"));
    assert!(error(&["-".into(), "-".into()]).contains("once"));
    let missing = at.path().join("missing");
    assert!(error(std::slice::from_ref(&missing)).contains("missing: "));
    assert!(error(&[at.path().to_path_buf()]).contains("no ledger"));
    let packed = write(at.path(), "a.zst", &[0x28, 0xb5, 0x2f, 0xfd, 0, 0]);
    assert!(error(&[packed]).contains("zstd -dc"));
}

#[test]
fn what_opa_uploads_is_read_element_by_element() {
    let at = folder();
    let chunk = b"[{\"a\":1}\n,{\"a\":\"]\"}\n]\n[{\"b\":1}, {\"b\":{}}]\n[]\n[1]\n";
    let chunk = write(at.path(), "chunk.gz", &gzip(chunk));
    let read = all(&[chunk]);
    let texts: Vec<_> = read.iter().filter_map(|(_, r)| r.clone().ok()).collect();
    assert_eq!(
        texts,
        ["{\"a\":1}", "{\"a\":\"]\"}", "{\"b\":1}", "{\"b\":{}}"]
    );
    assert_eq!(read[3].0, 4);
    assert!(matches!(read[4], (6, Err(Fault::NotARecord(_)))));
}

#[test]
fn an_entry_has_its_parts_as_they_are_written() {
    let entry = Entry::of(RECORD.as_bytes()).unwrap();
    assert_eq!(entry.kind, Kind::Record(2));
    assert_eq!(entry.received_at_ns(), Some(1_795_341_600_123_456_789));
    assert_eq!(entry.route().as_deref(), Some("read-order"));
    assert_eq!(entry.caller().unwrap().subject.as_deref(), Some("alice"));
    assert_eq!(entry.policy().unwrap().name, "orders");
    assert_eq!(entry.decision().as_deref(), Some("deny"));
    assert_eq!(entry.refusal().as_deref(), Some("denied"));
    assert_eq!(entry.answer, Some(r#"{"allow":false}"#));
    assert_eq!(
        entry.input,
        Some(r#"{"version":1,"request":{"path":"\"}"}}"#)
    );
    assert_eq!(entry.hidden().unwrap(), ["/input/request/query/t/0"]);

    let first = r#"{"version":1,"time":"2026-11-22T10:00:00.123Z","request_id":"r","input":null}"#;
    let entry = Entry::of(first.as_bytes()).unwrap();
    assert_eq!(entry.kind, Kind::Record(1));
    assert_eq!(entry.received_at_ns(), Some(1_795_341_600_123_000_000));
    assert_eq!(entry.input, None);

    let opa = r#"{"decision_id":"4c","labels":{"id":"x"},"path":"envoy/authz/allow","input":{"attributes":{}},"result":true,"erased":["/input/a"],"timestamp":"2026-11-22T10:00:00.5Z"}"#;
    let entry = Entry::of(opa.as_bytes()).unwrap();
    assert_eq!(entry.kind, Kind::Opa);
    assert_eq!(entry.answer, Some("true"));
    assert_eq!(entry.path().as_deref(), Some("envoy/authz/allow"));
    assert_eq!(entry.hidden().unwrap(), ["/input/a"]);
}

#[test]
fn what_can_be_read_in_two_ways_is_no_entry() {
    let twice = RECORD.replacen("\"decision\"", "\"input\":{},\"decision\"", 1);
    assert_eq!(Entry::of(twice.as_bytes()).unwrap_err(), NotAnEntry::Twice);
    let escaped = RECORD.replacen("\"input\"", "\"in\\u0070ut\"", 1);
    assert_eq!(
        Entry::of(escaped.as_bytes()).unwrap_err(),
        NotAnEntry::Other
    );
    for odd in ["{}", "{\"level\":\"info\",\"msg\":\"x\"}"] {
        assert_eq!(Entry::of(odd.as_bytes()).unwrap_err(), NotAnEntry::Other);
    }
    for odd in [
        "",
        "[]",
        "{\"a\"}",
        "{\"a\":1,}",
        "{\"a\":1}x",
        "{\"a\":1 \"b\":2}",
        "{",
    ] {
        assert_eq!(Entry::of(odd.as_bytes()).unwrap_err(), NotAnEntry::Json);
    }
}

#[test]
fn the_ends_of_values_are_those_of_the_parser() {
    use proptest::prelude::*;
    let leaf = prop_oneof![
        Just(serde_json::Value::Null),
        any::<bool>().prop_map(Into::into),
        any::<i64>().prop_map(Into::into),
        any::<String>().prop_map(Into::into),
    ];
    let value = leaf.prop_recursive(4, 32, 6, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..6).prop_map(serde_json::Value::from),
            prop::collection::btree_map(any::<String>(), inner, 0..6)
                .prop_map(|members| { serde_json::Value::Object(members.into_iter().collect()) }),
        ]
    });
    proptest!(|(members in prop::collection::btree_map("[a-z\"\\\\]{0,6}", value, 0..6), after in "[,}\\] x]?")| {
        let object = serde_json::Value::Object(members.into_iter().collect());
        let text = object.to_string();
        let more = format!("{text}{after}");
        prop_assert_eq!(object_end(more.as_bytes()), Some(text.len()));
        let mut read = serde_json::Map::new();
        for member in Members::of(text.as_bytes()) {
            let (name, value) = member.unwrap();
            let name = [b"\"", name, b"\""].concat();
            read.insert(
                serde_json::from_slice(&name).unwrap(),
                serde_json::from_slice(value).unwrap(),
            );
        }
        prop_assert_eq!(serde_json::Value::Object(read), object);
    });
}

#[test]
fn standard_input_has_no_size() {
    let mut stream = Stream::of(Cursor::new(gzip(b"{\"a\":1}\n"))).unwrap();
    assert_eq!(stream.next(), Next::Line);
    assert_eq!(stream.line, b"{\"a\":1}");
    assert_eq!(stream.next(), Next::Over(None));
}
