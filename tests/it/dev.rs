//! The first command of the README, with the real binary.

use std::io::{BufRead as _, BufReader};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use serde_json::Value;

/// Policies compile, certificates are made, and other tests run beside.
const PATIENCE: Duration = Duration::from_secs(120);

fn portcullis(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_portcullis"));
    command
        .args(arguments)
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    command
}

/// Ends with the test, and takes its scratch copy along.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let asked = Command::new("kill").arg(self.0.id().to_string()).status();
        if !asked.is_ok_and(|status| status.success()) {
            let _ = self.0.kill();
        }
        let _ = self.0.wait();
    }
}

/// `portcullis dev --ports auto`, the lines it printed until the last of its introduction, and its log.
fn started() -> (Running, Vec<String>, mpsc::Receiver<String>) {
    let mut running = Running(portcullis(&["dev", "--ports", "auto"]).spawn().unwrap());
    let errors = BufReader::new(running.0.stderr.take().unwrap());
    let (logged, log) = mpsc::channel();
    std::thread::spawn(move || {
        for line in errors.lines().map_while(Result::ok) {
            let _ = logged.send(line);
        }
    });
    let output = BufReader::new(running.0.stdout.take().unwrap());
    let (sender, lines) = mpsc::channel();
    // Reads on to the end, so that the child never waits for a reader.
    std::thread::spawn(move || {
        for line in output.lines().map_while(Result::ok) {
            let _ = sender.send(line);
        }
    });
    let until = Instant::now() + PATIENCE;
    let mut seen = Vec::new();
    while !seen
        .last()
        .is_some_and(|line: &String| line.contains("Ctrl-C ends everything"))
    {
        let left = until.saturating_duration_since(Instant::now());
        match lines.recv_timeout(left) {
            Ok(line) => seen.push(line),
            Err(error) => panic!("{error} after {seen:#?}"),
        }
    }
    (running, seen, log)
}

fn outcomes(output: &std::process::Output) -> Vec<Value> {
    let text = String::from_utf8_lossy(&output.stdout);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{text}\n{errors}");
    serde_json::from_str(&text).unwrap()
}

#[test]
fn two_trials_at_once_do_what_they_say() {
    let trial = || {
        portcullis(&["dev", "--try", "--format", "json"])
            .spawn()
            .unwrap()
    };
    let both = [trial(), trial()];
    for child in both {
        let outcomes = outcomes(&child.wait_with_output().unwrap());
        assert!(outcomes.len() > 20, "{}", outcomes.len());
        for outcome in &outcomes {
            assert_eq!(outcome["ok"], true, "{outcome}");
        }
    }
}

#[test]
fn the_table_for_people_is_aligned_and_says_ok() {
    let output = portcullis(&["dev", "--try"]).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "{text}");
    assert!(!text.contains('\x1b'), "colours belong on terminals alone");
    let rows: Vec<&str> = text
        .lines()
        .filter(|line| line.ends_with(" ok") || line.ends_with(" NO"))
        .collect();
    assert!(rows.len() > 20, "{text}");
    let end = rows[0].chars().count();
    for row in rows {
        assert!(row.ends_with(" ok"), "{row}");
        assert_eq!(row.chars().count(), end, "{row}");
    }
}

#[test]
fn the_printed_introduction_works_and_tokens_can_be_minted() {
    let (_running, lines, log) = started();
    let value = |name: &str| {
        let line = lines.iter().find(|line| line.starts_with(name));
        line.unwrap_or_else(|| panic!("{name}: {lines:#?}"))
            .split_whitespace()
            .last()
            .unwrap()
            .to_owned()
    };
    let issuer = value("development issuer");
    let mint = |more: &[&str]| {
        let arguments = [&["token", "--issuer", &issuer], more].concat();
        portcullis(&arguments).output().unwrap()
    };
    for arguments in [
        &["--user", "bob"][..],
        &["--alg", "RS256"],
        &["--alg", "EdDSA"],
        &["--expired"],
    ] {
        let minted = mint(arguments);
        assert!(minted.status.success(), "{minted:?}");
        let token = String::from_utf8(minted.stdout).unwrap();
        assert_eq!(token.trim_end().split('.').count(), 3, "{token}");
        assert_eq!(token.lines().count(), 1, "{token}");
    }
    let refused = mint(&["--user", "nobody"]);
    assert_eq!(refused.status.code(), Some(1), "{refused:?}");
    assert!(refused.stdout.is_empty());

    // A token that was minted here opens the gateway that is running there.
    let token = String::from_utf8(mint(&["--user", "bob"]).stdout).unwrap();
    let address = value("listener local").parse().unwrap();
    let mut connection = crate::support::client::Connection::plain(address);
    let bearer = format!("Bearer {}", token.trim_end());
    connection.send(crate::support::client::request(
        "GET",
        "/orders/1002",
        &[("authorization", &bearer)],
    ));
    let answer = connection.answer().unwrap();
    assert_eq!(answer.status, 200, "{}", answer.text());

    // The page's address and the token that it asks for stand there, and no other opens it.
    let word = |name: &str, nth: usize| {
        let line = lines.iter().find(|line| line.starts_with(name)).unwrap();
        line.split_whitespace().nth(nth).unwrap().to_owned()
    };
    let (page, token) = (word("page ", 1), word("admin token", 2));
    assert_eq!(token.len(), 64, "{token}");
    let admin = page.strip_prefix("http://").unwrap().trim_end_matches('/');
    let status = |token: &str| {
        let bearer = format!("Bearer {token}");
        let headers = [("host", admin), ("authorization", bearer.as_str())];
        let mut connection = crate::support::client::Connection::plain(admin.parse().unwrap());
        connection.send(crate::support::client::request(
            "GET",
            "/decisions",
            &headers,
        ));
        connection.answer().unwrap().status
    };
    assert_eq!((status(&token), status(&"0".repeat(64))), (200, 401));

    // The log says what became of the issuer's keys in words, and not how they are kept.
    let change = loop {
        let line = log.recv_timeout(PATIENCE).unwrap();
        if line.contains("issuer keys changed") {
            break line;
        }
    };
    let change: Value = serde_json::from_str(&change).unwrap();
    let fields = &change["fields"];
    assert_eq!(fields["change"], "added", "{change}");
    let kid = fields["kid"].as_str().unwrap();
    assert!(!kid.is_empty() && !kid.contains("Some("), "{change}");
    assert!(!change.to_string().contains("None"), "{change}");

    // Whoever pastes a line is told beforehand what will come of it.
    for (index, line) in lines
        .iter()
        .enumerate()
        .filter(|(_, line)| line.starts_with("# "))
    {
        let status = line.rsplit(' ').next().unwrap();
        assert!(status.len() == 3 && status.parse::<u16>().is_ok(), "{line}");
        assert!(lines[index + 1].contains("curl "), "{line}");
    }
}

#[test]
fn a_token_without_an_issuer_is_one_clear_line() {
    // Nothing listens on port 1 of this machine.
    let output = portcullis(&["token", "--issuer", "http://127.0.0.1:1"])
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(output.stdout.is_empty());
    let text = String::from_utf8(output.stderr).unwrap();
    assert!(
        text.starts_with("error: ") && text.contains("127.0.0.1:1"),
        "{text}"
    );
}
