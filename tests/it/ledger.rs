//! An audit ledger, written by a gateway and verified by `portcullis audit verify`.

use std::fs;
use std::path::PathBuf;
use std::process::{Command, Output};

use serde_json::{Value, json};

use crate::support::client::{Connection, request};
use crate::support::eventually;
use crate::support::gateway::Builder;
use crate::support::pki::ed25519_pem;
use crate::support::program::Program;
use crate::support::upstream::Upstream;

fn builder(upstream: &Upstream) -> Builder {
    let builder = Builder::open(upstream).with(|document| {
        document["workers"] = json!(2);
        document["audit"]["sink"] = json!({"ledger": {
            "folder": "records",
            "key": "audit-key.pem",
            "seal_every": "100ms",
            "segment": "64KiB",
        }});
    });
    builder.file("audit-key.pem", ed25519_pem());
    builder
}

fn verify(program: &Program, key: &str) -> Output {
    let folder = program.builder.folder.path();
    Command::new(env!("CARGO_BIN_EXE_portcullis"))
        .args(["audit", "verify", "records", "--key", key])
        .current_dir(folder)
        .output()
        .unwrap()
}

fn segments(program: &Program) -> Vec<PathBuf> {
    let folder = program.builder.folder.path().join("records");
    let mut found: Vec<PathBuf> = fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|e| e == "jsonl"))
        .collect();
    found.sort();
    found
}

fn records(program: &Program) -> Vec<Value> {
    segments(program)
        .iter()
        .flat_map(|path| {
            let text = fs::read_to_string(path).unwrap();
            let whole = text.rfind('\n').map_or("", |end| &text[..=end]).to_owned();
            let lines: Vec<Value> = whole
                .lines()
                .filter(|line| line.starts_with("{\"version\":2,"))
                .map(|line| serde_json::from_str(line).unwrap())
                .collect();
            lines
        })
        .collect()
}

fn ask(program: &Program, times: usize) {
    let mut connection = Connection::plain(program.address);
    for _ in 0..times {
        connection.send(request("GET", "/a", &[]));
        assert_eq!(connection.answer().unwrap().status, 200);
    }
}

#[test]
fn every_record_is_there_and_verifies_over_a_kill_a_rotated_key_and_an_orderly_end() {
    let upstream = Upstream::start();
    let program = Program::start(builder(&upstream));
    ask(&program, 300);
    eventually("300 records", || {
        (records(&program).len() == 300).then_some(())
    });
    // While it is being written, and after a kill.
    let output = verify(&program, "audit-key.pem");
    assert!(output.status.success(), "{output:?}");
    program.signal("KILL");
    let program = program.again();
    let folder = program.builder.folder.path().to_owned();
    ask(&program, 100);
    eventually("400 records", || {
        (records(&program).len() == 400).then_some(())
    });
    // Another key in the same file: noticed by itself.
    fs::copy(folder.join("audit-key.pem"), folder.join("old-key.pem")).unwrap();
    program.builder.file("audit-key.pem", ed25519_pem());
    eventually("the rotation", || {
        let last = segments(&program).pop().unwrap();
        let text = fs::read_to_string(last).unwrap();
        text.contains("\"next_key\":").then_some(())
    });
    ask(&program, 100);
    let mut program = program;
    program.signal("TERM");
    assert_eq!(program.end().code(), Some(0));
    assert_eq!(records(&program).len(), 500);
    assert!(segments(&program).len() > 3);
    // The first key vouches for the second.
    let output = verify(&program, "old-key.pem");
    let text = String::from_utf8(output.stdout.clone()).unwrap();
    assert!(output.status.success(), "{output:?}");
    assert!(
        text.contains("nothing was changed: records 1 to 500, ")
            && text.contains(", up to record 500"),
        "{text}"
    );
}

#[test]
fn a_record_that_was_changed_is_named_by_number_and_line() {
    let upstream = Upstream::start();
    let mut program = Program::start(builder(&upstream));
    ask(&program, 20);
    program.signal("TERM");
    assert_eq!(program.end().code(), Some(0));
    let segment = segments(&program).remove(0);
    let text = fs::read_to_string(&segment).unwrap();
    let mut lines: Vec<String> = text.lines().map(str::to_owned).collect();
    let (at, number) = {
        let mut number = 0;
        let mut at = 0;
        for (index, line) in lines.iter().enumerate() {
            if line.starts_with("{\"version\":2,") {
                number += 1;
                at = index;
            }
            if number == 7 {
                break;
            }
        }
        (at, number)
    };
    lines[at] = lines[at].replace("\"status\":200", "\"status\":403");
    fs::write(&segment, lines.join("\n") + "\n").unwrap();
    let output = verify(&program, "audit-key.pem");
    assert_eq!(output.status.code(), Some(1));
    let said = String::from_utf8(output.stdout).unwrap();
    let expected = format!(
        "{}:{}: record {number}: was changed",
        "records/segment-0000000000000001.jsonl",
        at + 1
    );
    assert!(said.contains(&expected), "{said}");
    // It does not go on there, and says so, but goes on.
    let program = program.again();
    ask(&program, 5);
    eventually("a new segment", || {
        (segments(&program).len() == 2).then_some(())
    });
}

#[test]
fn a_ledger_of_another_process_keeps_the_gateway_from_starting() {
    let upstream = Upstream::start();
    let program = Program::start(builder(&upstream));
    ask(&program, 1);
    let output = Command::new(env!("CARGO_BIN_EXE_portcullis"))
        .arg("run")
        .current_dir(program.builder.folder.path())
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(1));
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(said.contains("is written by another process"), "{said}");
}
