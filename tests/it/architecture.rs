//! Rules about the code itself: which room may name which.

use std::collections::BTreeMap;
use std::path::Path;

/// Low to high: a room may name only rooms to its left (and itself).
const ORDER: [&str; 36] = [
    "clock",
    "epoch",
    "metrics",
    "schema",
    "document",
    "body",
    "tls",
    "kept",
    "fetch",
    "request",
    "ascii",
    "telemetry",
    "authn",
    "bundle",
    "revocation",
    "authz",
    "candidate",
    "limit",
    "upstream",
    "intake",
    "refusal",
    "lease",
    "audit",
    "tunnel",
    "listener",
    "route",
    "snapshot",
    "admin",
    "config",
    "gateway",
    "server",
    "policy",
    "run",
    "dev",
    "main",
    "lib",
];

/// Each of these libraries is named in these rooms only.
const LIBRARIES: [(&str, &[&str]); 9] = [
    ("regorus", &["document", "authz"]),
    ("governor", &["limit"]),
    ("reqwest", &["fetch"]),
    ("jsonwebtoken", &["authn", "upstream", "dev"]),
    ("serde_yaml", &["schema", "config", "document"]),
    ("rustls", &["tls"]),
    ("tokio_rustls", &["tls", "server", "dev"]),
    ("prometheus_client", &["metrics"]),
    ("clap", &["main", "dev", "policy", "bundle"]),
];

fn sources(folder: &Path, found: &mut Vec<(String, String)>) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|e| e == "rs") {
            let text = std::fs::read_to_string(&path).unwrap();
            found.push((path.display().to_string(), text));
        }
    }
}

/// A line of code without what stands between quotation marks.
fn without_texts(line: &str) -> String {
    line.split('"').step_by(2).collect()
}

/// Room, file and production code (without comments and unit tests) of every source file.
fn rooms() -> Vec<(String, String, String)> {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut found = Vec::new();
    sources(&src, &mut found);
    found
        .into_iter()
        .filter(|(file, _)| {
            let tests = ["tests.rs", "testing.rs"]
                .iter()
                .any(|end| file.ends_with(end));
            !tests && !file.contains("/tests/")
        })
        .map(|(file, text)| {
            let relative = file
                .strip_prefix(src.to_str().unwrap())
                .unwrap()
                .trim_start_matches('/');
            let room = relative
                .split('/')
                .next()
                .unwrap()
                .trim_end_matches(".rs")
                .to_owned();
            let code = text.split("#[cfg(test)]\nmod ").next().unwrap();
            let code: Vec<String> = code
                .lines()
                .filter(|line| !line.trim_start().starts_with("//"))
                .map(without_texts)
                .collect();
            (room, relative.to_owned(), code.join("\n"))
        })
        .collect()
}

#[test]
fn rooms_name_only_rooms_below_them() {
    let rank: BTreeMap<&str, usize> = ORDER.iter().enumerate().map(|(i, r)| (*r, i)).collect();
    let mut upward = Vec::new();
    for (room, file, code) in rooms() {
        let own = *rank
            .get(room.as_str())
            .unwrap_or_else(|| panic!("{file}: {room} has no place in ORDER"));
        for prefix in ["crate::", "portcullis::"] {
            for rest in code.split(prefix).skip(1) {
                let named: String = rest
                    .chars()
                    .take_while(|c| c.is_ascii_alphanumeric() || *c == '_')
                    .collect();
                if rank.get(named.as_str()).is_some_and(|other| *other > own) {
                    upward.push(format!("{file}: {room} -> {named}"));
                }
            }
        }
    }
    assert!(
        upward.is_empty(),
        "rooms that name rooms above them:\n{}",
        upward.join("\n")
    );
}

#[test]
fn each_library_has_one_room() {
    let mut astray = Vec::new();
    for (room, file, code) in rooms() {
        for (library, allowed) in LIBRARIES {
            let named = code.match_indices(library).any(|(at, _)| {
                let before = code[..at].chars().next_back().unwrap_or(' ');
                let after = &code[at + library.len()..];
                !before.is_alphanumeric()
                    && !matches!(before, '_' | '"' | '-' | '`')
                    && after.starts_with("::")
            });
            if named && !allowed.contains(&room.as_str()) {
                astray.push(format!("{file} names {library}"));
            }
        }
    }
    assert!(
        astray.is_empty(),
        "libraries outside their rooms:\n{}",
        astray.join("\n")
    );
}

#[test]
fn only_the_policy_room_makes_permits() {
    for (room, file, code) in rooms() {
        let makes = code.contains("Permit {") && !code.contains("struct Permit {");
        assert!(!makes || room == "authz", "{file} makes a Permit");
    }
}
