//! Bundles: taken whole or not at all, believed only when verified, and never lost on the way.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use aws_lc_rs::signature::KeyPair;
use aws_lc_rs::{digest, rand, signature};
use base64::Engine;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use flate2::Compression;
use flate2::write::GzEncoder;
use serde_json::{Value, json};

use crate::support::client::{Connection, request};
use crate::support::eventually;
use crate::support::gateway::{Builder, Gateway};
use crate::support::upstream::{Next, Seen, Upstream};

const ALLOW: &str = "package gate\n\nimport rego.v1\n\ndefault allow := false\n\nallow if input.request.path != \"/denied\"\n";
const DENY: &str = "package gate\n\ndefault allow := false\n";

/// A tar entry, written by hand.
fn entry(name: &str, kind: u8, content: &[u8]) -> Vec<u8> {
    let mut block = vec![0u8; 512];
    block[..name.len()].copy_from_slice(name.as_bytes());
    block[124..135].copy_from_slice(format!("{:011o}", content.len()).as_bytes());
    block[148..156].copy_from_slice(b"        ");
    block[156] = kind;
    block[257..263].copy_from_slice(b"ustar\0");
    let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
    block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    block.extend_from_slice(content);
    block.resize(block.len().next_multiple_of(512), 0);
    block
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut out = GzEncoder::new(Vec::new(), Compression::fast());
    out.write_all(bytes).unwrap();
    out.finish().unwrap()
}

/// A bundle as `opa build` writes it: every name with a slash in front.
fn bundle(files: &[(&str, &str)]) -> Vec<u8> {
    let mut tar: Vec<u8> = files
        .iter()
        .flat_map(|(name, text)| entry(&format!("/{name}"), b'0', text.as_bytes()))
        .collect();
    tar.extend_from_slice(&[0; 1024]);
    gzip(&tar)
}

/// A bundle with one policy.
fn policy(revision: &str, rego: &str) -> Vec<u8> {
    let manifest = json!({ "revision": revision }).to_string();
    bundle(&[
        ("data.json", "{}"),
        ("gate.rego", rego),
        (".manifest", &manifest),
    ])
}

/// What the server does with a question.
#[derive(Clone)]
enum Does {
    /// Serves this bundle under this tag; `true` keeps questions until it is another.
    Serves(Arc<Vec<u8>>, &'static str, bool),
    Status(u16),
    /// Half of it, and the end of the connection.
    Breaks(Arc<Vec<u8>>),
    /// 304 whatever is asked.
    Unmodified,
    Redirects,
    Drips,
}

struct Server {
    upstream: Upstream,
    does: Arc<(Mutex<Does>, Condvar)>,
}

impl Server {
    fn start(does: Does) -> Self {
        let does = Arc::new((Mutex::new(does), Condvar::new()));
        let shared = Arc::clone(&does);
        let upstream = Upstream::with(move |seen, stream| {
            serve(seen, stream, &shared);
            Next::Close
        });
        Self { upstream, does }
    }

    fn serving(bytes: Vec<u8>, tag: &'static str) -> Self {
        Self::start(Does::Serves(Arc::new(bytes), tag, false))
    }

    fn does(&self, does: Does) {
        *self.does.0.lock().unwrap() = does;
        self.does.1.notify_all();
    }

    fn serves(&self, bytes: Vec<u8>, tag: &'static str) {
        self.does(Does::Serves(Arc::new(bytes), tag, false));
    }

    fn url(&self) -> String {
        format!("{}/bundles/gate.tar.gz", self.upstream.url())
    }

    fn asked(&self) -> Vec<Seen> {
        self.upstream.seen()
    }
}

fn serve(seen: &Seen, stream: &mut TcpStream, shared: &(Mutex<Does>, Condvar)) {
    let known = seen.header("if-none-match").map(ToOwned::to_owned);
    let wait = seen.header("prefer").and_then(|prefer| {
        let wait = prefer
            .split(';')
            .find_map(|part| part.trim().strip_prefix("wait="));
        wait?.parse::<u64>().ok()
    });
    let mut held = shared.0.lock().unwrap();
    if let (Some(wait), Does::Serves(_, _, true)) = (wait, &*held) {
        let until = Instant::now() + Duration::from_secs(wait);
        while let Does::Serves(_, tag, true) = &*held
            && known.as_deref() == Some(*tag)
            && Instant::now() < until
        {
            held = shared
                .1
                .wait_timeout(held, Duration::from_millis(50))
                .unwrap()
                .0;
        }
    }
    let does = held.clone();
    drop(held);
    let answer = match does {
        Does::Serves(_, tag, _) if known.as_deref() == Some(tag) => {
            format!("HTTP/1.1 304 Not Modified\r\nEtag: {tag}\r\n\r\n").into_bytes()
        }
        Does::Serves(bytes, tag, long) => {
            let kind = if long {
                "application/vnd.openpolicyagent.bundles"
            } else {
                "application/gzip"
            };
            let tag = if tag.is_empty() {
                String::new()
            } else {
                format!("Etag: {tag}\r\n")
            };
            let head = format!(
                "HTTP/1.1 200 OK\r\nContent-Type: {kind}\r\n{tag}Content-Length: {}\r\n\r\n",
                bytes.len()
            );
            [head.as_bytes(), &bytes].concat()
        }
        Does::Status(status) => {
            format!("HTTP/1.1 {status} X\r\nContent-Length: 0\r\n\r\n").into_bytes()
        }
        Does::Breaks(bytes) => {
            let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", bytes.len());
            [head.as_bytes(), &bytes[..bytes.len() / 2]].concat()
        }
        Does::Unmodified => b"HTTP/1.1 304 Not Modified\r\n\r\n".to_vec(),
        Does::Redirects => {
            b"HTTP/1.1 302 Found\r\nLocation: /elsewhere\r\nContent-Length: 0\r\n\r\n".to_vec()
        }
        Does::Drips => {
            let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 10000\r\n\r\n");
            while stream.write_all(b"x").is_ok() {
                std::thread::park_timeout(Duration::from_millis(50));
            }
            return;
        }
    };
    let _ = stream.write_all(&answer);
}

/// Every route asks a policy of the bundle `gate`.
fn configured(upstream: &Upstream, block: Value) -> Builder {
    Builder::open(upstream).with(|document| {
        document["bundles"] = json!({ "gate": block });
        document["policies"] =
            json!({ "gate": { "bundles": ["gate"], "entrypoint": "data.gate.allow" } });
        for route in document["routes"].as_array_mut().unwrap() {
            route["policy"] = json!("gate");
        }
    })
}

fn polled(server: &Server) -> Value {
    json!({
        "url": server.url(),
        "timeout": "2s",
        "polling": { "min_delay": "100ms", "max_delay": "200ms" },
    })
}

fn status(gateway: &Gateway) -> Value {
    gateway.admin("GET", "/bundles").json()["bundles"]["gate"].clone()
}

#[track_caller]
fn answers(gateway: &Gateway, path: &str, status: u16) {
    eventually(&format!("{status} for {path}"), || {
        (gateway.get(path, &[]).status == status).then_some(())
    });
}

/// What is said of the bundle, a moment after it decides.
#[track_caller]
fn told(gateway: &Gateway, pointer: &str, wanted: &Value) {
    eventually(&format!("{wanted} at {pointer}"), || {
        (status(gateway).pointer(pointer) == Some(wanted)).then_some(())
    });
}

#[track_caller]
fn in_force(gateway: &Gateway, revision: &str) {
    told(gateway, "/revision", &json!(revision));
}

#[track_caller]
fn refused(gateway: &Gateway, reason: &str, words: &str) {
    eventually(
        &format!("{reason}: {words}; there is {}", status(gateway)),
        || {
            let error = status(gateway)["last_error"].clone();
            let message = error["message"].as_str()?;
            (error["reason"] == reason && message.contains(words)).then_some(())
        },
    );
}

#[test]
fn before_the_first_bundle_nobody_is_let_in_and_then_it_decides_and_changes() {
    let upstream = Upstream::start();
    let server = Server::start(Does::Status(500));
    let gateway = configured(&upstream, polled(&server)).start();
    let answer = gateway.get("/a", &[]);
    assert_eq!(
        (answer.status, answer.code().as_str()),
        (503, "policy_unavailable")
    );
    assert_eq!(answer.header("retry-after"), Some("5"));
    let ready = gateway.admin("GET", "/ready");
    assert_eq!(ready.status, 503);
    assert!(
        ready.text().contains("bundle gate: none is in force yet"),
        "{}",
        ready.text()
    );
    refused(&gateway, "fetch", "status 500");
    let record = eventually("a record", || gateway.records().into_iter().next());
    assert_eq!(record["reason"], "policy.unavailable", "{record}");

    server.serves(policy("v1", ALLOW), "\"one\"");
    answers(&gateway, "/a", 200);
    let denied = gateway.get("/denied", &[]);
    assert_eq!(denied.status, 403);
    let record = eventually("the record", || {
        let mut records = gateway.records().into_iter();
        records.find(|record| record["path"] == "/denied")
    });
    let revision = record["policy"]["revision"].as_str().unwrap();
    assert!(revision.ends_with(" gate@v1"), "{revision}");
    eventually("readiness", || {
        (gateway.admin("GET", "/ready").status == 200).then_some(())
    });

    server.serves(policy("v2", DENY), "\"two\"");
    answers(&gateway, "/a", 403);
    in_force(&gateway, "v2");
    let now = status(&gateway);
    assert_eq!(now["revision"], "v2");
    assert_eq!(now["modules"], json!(["gate.rego"]));
    assert_eq!(now["policies"], json!(["gate"]));
    assert_eq!(now["activations"], 2);
    let metrics = gateway.admin("GET", "/metrics").text();
    for line in [
        "portcullis_bundle_activations_total{bundle=\"gate\"} 2",
        "portcullis_bundle_revision{bundle=\"gate\",revision=\"v2\"} 1",
        "portcullis_bundle_failures_total{bundle=\"gate\",reason=\"fetch\"}",
        "portcullis_bundle_last_success_timestamp_seconds{bundle=\"gate\"}",
    ] {
        assert!(metrics.contains(line), "{line} is missing in {metrics}");
    }
    assert!(!metrics.contains("revision=\"v1\""), "{metrics}");
}

#[test]
fn a_candidate_follows_its_bundle_and_one_that_breaks_it_is_still_its_policys() {
    let upstream = Upstream::start();
    let server = Server::start(Does::Status(500));
    let with_next = |next: &str| format!("{ALLOW}\nnext := {next}\n");
    let builder = configured(&upstream, polled(&server)).with(|document| {
        document["candidates"] = json!({"next": {"of": "gate", "entrypoint": "data.gate.next"}});
    });
    let gateway = builder.start();
    let candidate = || gateway.admin("GET", "/candidates/next").json();
    assert_eq!(candidate()["standing"], "waiting");
    server.serves(policy("v1", &with_next("true")), "\"one\"");
    answers(&gateway, "/a", 200);
    assert_eq!(candidate()["standing"], "shadow");
    told(&gateway, "/candidates", &json!(["next"]));
    // Nothing that the candidate could be: the policy goes on with it, the candidate stays.
    server.serves(policy("v2", DENY), "\"two\"");
    answers(&gateway, "/a", 403);
    let revision = candidate()["revision"].as_str().unwrap().to_owned();
    assert!(revision.ends_with(" gate@v1"), "{revision}");
    eventually("a comparison with the policy in force", || {
        assert_eq!(gateway.get("/a", &[]).status, 403);
        (candidate()["permits"].as_u64().unwrap() > 0).then_some(())
    });
    server.serves(policy("v3", &with_next("false")), "\"three\"");
    answers(&gateway, "/a", 200);
    let revision = candidate()["revision"].as_str().unwrap().to_owned();
    assert!(revision.ends_with(" gate@v3"), "{revision}");
    assert_eq!(candidate()["permits"], 0, "counted anew with another text");
}

#[test]
fn while_its_policy_waits_for_a_bundle_a_candidate_decides_nothing() {
    let upstream = Upstream::start();
    let server = Server::start(Does::Status(500));
    let builder = configured(&upstream, polled(&server));
    // It would take every body that it is not shown for a harmless one.
    let careless = "package gate\n\nallow if not input.request.body.dangerous\n";
    builder.file("careless.rego", careless);
    let builder = builder.with(|document| {
        document["candidates"] = json!({"careless": {
            "of": "gate", "files": ["careless.rego"], "bundles": [], "body": {"max": "1KiB"},
            "enforce": {"cohort": {"routes": ["open"]}},
        }});
    });
    let gateway = builder.start();
    let body = "{\"dangerous\": true}";
    let post = || {
        let fields = [
            ("content-type", "application/json"),
            ("content-length", "19"),
        ];
        let head = request("POST", "/a", &fields);
        let answer = gateway.connect().send(format!("{head}{body}")).answer();
        answer.unwrap().status
    };
    assert_eq!(body.len(), 19);
    assert_eq!(post(), 503);
    // The policy that comes reads no bodies: there is none for the candidate either.
    server.serves(policy("v1", ALLOW), "\"one\"");
    answers(&gateway, "/b", 200);
    assert_eq!(post(), 200, "the policy decides");
    let told = gateway.admin("GET", "/candidates/careless").json();
    assert_eq!(told["decided"], json!({"allow": 0, "deny": 0}), "{told:#}");
    assert_eq!(told["compared"], 0, "{told:#}");
}

#[test]
fn an_unchanged_bundle_is_asked_for_by_its_tag_and_costs_nothing() {
    let upstream = Upstream::start();
    let server = Server::serving(policy("v1", ALLOW), "\"one\"");
    let mut gateway = configured(&upstream, polled(&server)).start();
    answers(&gateway, "/a", 200);
    eventually("questions with the tag", || {
        let tags = server
            .asked()
            .iter()
            .filter(|seen| seen.header("if-none-match") == Some("\"one\""))
            .count();
        (tags >= 3).then_some(())
    });
    let first = &server.asked()[0];
    assert_eq!(first.header("if-none-match"), None);
    assert_eq!(first.header("prefer"), Some("modes=snapshot"));
    told(&gateway, "/activations", &json!(1));
    // A reload keeps it and what asks for it.
    let asked = server.asked().len();
    let answer = gateway.reload(|document| document["head_timeout"] = json!("29s"));
    assert_eq!(answer.status, 200, "{}", answer.text());
    assert_eq!(gateway.get("/a", &[]).status, 200);
    assert_eq!(status(&gateway)["activations"], 1);
    eventually("further questions", || {
        (server.asked().len() > asked + 1).then_some(())
    });
    assert!(server.asked()[asked + 1].header("if-none-match").is_some());
}

#[test]
fn what_is_broken_or_hostile_changes_nothing_but_what_is_told_of_it() {
    let upstream = Upstream::start();
    let server = Server::start(Does::Unmodified);
    let block = json!({
        "url": server.url(),
        "timeout": "1s",
        "max_size": "64KiB",
        "max_unpacked": "1MiB",
        "polling": { "min_delay": "100ms", "max_delay": "100ms" },
    });
    let gateway = configured(&upstream, block).start();
    refused(&gateway, "fetch", "not modified");
    server.serves(policy("v1", ALLOW), "\"one\"");
    answers(&gateway, "/a", 200);
    let manifest = |text: &str| bundle(&[("gate.rego", ALLOW), (".manifest", text)]);
    let raw = |entries: &[Vec<u8>]| gzip(&[entries.concat(), vec![0; 1024]].concat());
    let good = policy("v9", DENY);
    let deep = format!("{{\"a\": {}1{}}}", "[".repeat(200), "]".repeat(200));
    let noise: Vec<u8> = (0..100_000u32)
        .flat_map(|n| n.wrapping_mul(2_654_435_761).to_le_bytes())
        .collect();
    let cases: Vec<(Does, &str, &str)> = vec![
        (Does::Status(503), "fetch", "status 503"),
        (Does::Redirects, "fetch", "status 302"),
        (Does::Breaks(Arc::new(good.clone())), "fetch", "broke off"),
        (Does::Drips, "fetch", "longer than 1s"),
        (served(noise), "fetch", "larger than 65536 bytes"),
        (
            served(good[..good.len() - 20].to_vec()),
            "archive",
            "incomplete",
        ),
        (
            served([good.clone(), b"more".to_vec()].concat()),
            "archive",
            "behind the end",
        ),
        (served(b"<html>".to_vec()), "archive", "decompressed"),
        (
            served(raw(&[entry("../../etc/passwd", b'0', b"")])),
            "archive",
            "../../etc/passwd: the name leads out",
        ),
        (
            served(raw(&[entry("//etc/passwd", b'0', b"")])),
            "archive",
            "absolute",
        ),
        (
            served(raw(&[entry("gate.rego", b'2', b"")])),
            "archive",
            "a symbolic link",
        ),
        (
            served(raw(&[entry("dev", b'3', b"")])),
            "archive",
            "a device",
        ),
        (
            served(bundle(&[("a.rego", DENY), ("a.rego", DENY)])),
            "archive",
            "a.rego: the name occurs twice",
        ),
        (
            served(raw(&[entry("data.json", b'0', &vec![0; 4 << 20])])),
            "too_large",
            "more than 1048576 bytes unpacked",
        ),
        (
            served(manifest("{\"roots\": [\"other\"]}")),
            "manifest",
            "gate.rego: the package `gate` lies outside",
        ),
        (
            served(manifest("{\"roots\": [\"../gate\"]}")),
            "manifest",
            "no path of `data`",
        ),
        (served(manifest("{\"roots\": 7}")), "manifest", "`roots`"),
        (
            served(manifest("{\"rego_version\": 0}")),
            "unsupported",
            "Rego version 0",
        ),
        (
            served(bundle(&[("patch.json", "{\"data\": []}")])),
            "unsupported",
            "delta bundle",
        ),
        (
            served(bundle(&[("data.json", &deep), ("gate.rego", DENY)])),
            "content",
            "data.json:1:",
        ),
        (
            served(bundle(&[(".signatures.json", "{}"), ("gate.rego", DENY)])),
            "signature",
            "does not say by whom",
        ),
        (
            served(policy("v3", "package gate\n\nallow := if\n")),
            "policy",
            "bundle:gate/gate.rego:3:",
        ),
        (
            served(policy(
                "v4",
                "package gate\n\nallow := f(1)\n\nf(x) := f(x)\n",
            )),
            "policy",
            "bundle:gate/gate.rego:",
        ),
        (
            served(policy("v5", "package other\n\nallow := true\n")),
            "policy",
            "there is no rule `data.gate.allow`",
        ),
        (
            served(bundle(&[
                ("gate.rego", DENY),
                ("gate_test.rego", "package gate\n\ntest_no if allow\n"),
            ])),
            "policy",
            "gate_test.rego:3:",
        ),
    ];
    for (does, reason, words) in cases {
        server.does(does);
        refused(&gateway, reason, words);
        assert_eq!(gateway.get("/a", &[]).status, 200, "{words}");
        let now = status(&gateway);
        assert_eq!(
            (&now["revision"], &now["activations"]),
            (&json!("v1"), &json!(1)),
            "{words}"
        );
    }
    let ready = gateway.admin("GET", "/ready").json();
    assert_eq!(ready["ready"], true);
    assert!(
        ready["warnings"][0]
            .as_str()
            .unwrap()
            .contains("bundle gate: v1 stays in force"),
        "{ready}"
    );
    server.serves(good, "\"nine\"");
    answers(&gateway, "/a", 403);
    eventually("no error any more", || {
        status(&gateway)["last_error"].is_null().then_some(())
    });
}

fn served(bytes: Vec<u8>) -> Does {
    Does::Serves(Arc::new(bytes), "", false)
}

/// A key for ES256 and its public half in PEM.
struct Signer {
    pair: signature::EcdsaKeyPair,
    pem: String,
}

impl Signer {
    fn new() -> Self {
        let random = rand::SystemRandom::new();
        let kind = &signature::ECDSA_P256_SHA256_FIXED_SIGNING;
        let document = signature::EcdsaKeyPair::generate_pkcs8(kind, &random).unwrap();
        let pair = signature::EcdsaKeyPair::from_pkcs8(kind, document.as_ref()).unwrap();
        // SubjectPublicKeyInfo of a P-256 key, up to its point.
        let prefix = STANDARD
            .decode("MFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAE")
            .unwrap();
        let der = [&prefix[..prefix.len() - 1], pair.public_key().as_ref()].concat();
        let pem = format!(
            "-----BEGIN PUBLIC KEY-----\n{}\n-----END PUBLIC KEY-----\n",
            STANDARD.encode(der)
        );
        Self { pair, pem }
    }

    /// A signed bundle. Documents are given in their canonical form, so that their hash is that of
    /// their bytes.
    fn sign(&self, files: &[(&str, &str)], iat: i64, scope: &str) -> Vec<u8> {
        let hash = |text: &str| -> String {
            let digest = digest::digest(&digest::SHA256, text.as_bytes());
            digest
                .as_ref()
                .iter()
                .map(|byte| format!("{byte:02x}"))
                .collect()
        };
        let listed: Vec<Value> = files
            .iter()
            .map(|(name, text)| json!({ "name": name, "hash": hash(text), "algorithm": "SHA-256" }))
            .collect();
        let payload = json!({ "files": listed, "iat": iat, "iss": "test", "scope": scope });
        let head = json!({ "alg": "ES256", "kid": "main" });
        let message = format!(
            "{}.{}",
            URL_SAFE_NO_PAD.encode(head.to_string()),
            URL_SAFE_NO_PAD.encode(payload.to_string())
        );
        let random = rand::SystemRandom::new();
        let tag = self.pair.sign(&random, message.as_bytes()).unwrap();
        let token = format!("{message}.{}", URL_SAFE_NO_PAD.encode(tag));
        let signatures = json!({ "signatures": [token] }).to_string();
        let mut all = files.to_vec();
        all.push((".signatures.json", &signatures));
        bundle(&all)
    }
}

fn signing(scope: &str) -> Value {
    json!({ "keys": { "main": { "algorithm": "ES256", "key": "file:bundles.pem" } }, "scope": scope })
}

#[test]
fn a_bundle_must_be_signed_as_configured_and_is_never_silently_older() {
    let (upstream, signer) = (Upstream::start(), Signer::new());
    let v = |revision: &str| format!("{{\"revision\":\"{revision}\"}}");
    let files = |manifest: &str, rego: &str| -> Vec<(String, String)> {
        vec![
            (".manifest".into(), manifest.into()),
            ("gate.rego".into(), rego.into()),
        ]
    };
    let make = |signer: &Signer, revision: &str, rego: &str, iat: i64, scope: &str| {
        let files = files(&v(revision), rego);
        let files: Vec<(&str, &str)> = files
            .iter()
            .map(|(a, b)| (a.as_str(), b.as_str()))
            .collect();
        signer.sign(&files, iat, scope)
    };
    let server = Server::serving(make(&signer, "v1", ALLOW, 1000, "read"), "\"1\"");
    let mut block = polled(&server);
    block["signing"] = signing("read");
    let builder = configured(&upstream, block);
    builder.file("bundles.pem", &signer.pem);
    let mut gateway = builder.start();
    answers(&gateway, "/a", 200);
    told(&gateway, "/signed/keyid", &json!("main"));
    assert_eq!(status(&gateway)["signed"]["issued_at"], 1000);

    server.does(served(policy("v2", DENY)));
    refused(&gateway, "signature", "it is not signed");
    server.does(served(make(&Signer::new(), "v2", DENY, 2000, "read")));
    refused(&gateway, "signature", "not of the key `main`");
    server.does(served(make(&signer, "v2", DENY, 2000, "write")));
    refused(&gateway, "signature", "its scope is `write`");
    // One file more, and one swapped, after it was signed.
    let whole = make(&signer, "v2", ALLOW, 2000, "read");
    let mut tar = Vec::new();
    flate2::read::GzDecoder::new(whole.as_slice())
        .read_to_end(&mut tar)
        .unwrap();
    let added = [entry("/more.rego", b'0', b"package gate\n"), tar.clone()].concat();
    server.does(served(gzip(&added)));
    refused(
        &gateway,
        "signature",
        "more.rego: the signature does not list the file",
    );
    let swapped = String::from_utf8_lossy(&tar).replace("/denied", "/danied");
    server.does(served(gzip(swapped.as_bytes())));
    refused(
        &gateway,
        "signature",
        "gate.rego: the file is not the one that was signed",
    );
    server.does(served(make(&signer, "v0", DENY, 999, "read")));
    refused(&gateway, "rollback", "signed 1 s before it");
    assert_eq!(gateway.get("/a", &[]).status, 200);
    in_force(&gateway, "v1");

    // The way out is a word of the operator's.
    let answer =
        gateway.reload(|document| document["bundles"]["gate"]["rollback"] = json!("allow"));
    assert_eq!(answer.status, 200, "{}", answer.text());
    answers(&gateway, "/a", 403);
    in_force(&gateway, "v0");
}

#[test]
fn the_last_good_bundle_starts_a_gateway_without_network_and_is_verified_again() {
    let (upstream, signer) = (Upstream::start(), Signer::new());
    let server = Server::serving(signer.sign(&[("gate.rego", ALLOW)], 1000, ""), "\"1\"");
    let mut block = polled(&server);
    block["signing"] = signing("");
    block["persist"] = json!("state/gate.tar.gz");
    let builder = configured(&upstream, block.clone());
    builder.file("bundles.pem", &signer.pem);
    let gateway = builder.start();
    answers(&gateway, "/a", 200);
    let kept = gateway.folder.path().join("state/gate.tar.gz");
    let bytes = eventually("the file", || std::fs::read(&kept).ok());
    let Gateway {
        process, folder, ..
    } = gateway;
    process.shutdown();
    server.does(Does::Status(500));

    let again = |bytes: &[u8]| {
        let mut builder = configured(&upstream, block.clone());
        builder.file("bundles.pem", &signer.pem);
        let state = builder.folder.path().join("state");
        std::fs::create_dir(&state).unwrap();
        std::fs::write(state.join("gate.tar.gz"), bytes).unwrap();
        builder.document["workers"] = json!(1);
        builder.start()
    };
    let restarted = again(&bytes);
    assert_eq!(restarted.get("/a", &[]).status, 200);
    assert_eq!(status(&restarted)["from_disk"], true);
    // What is older than the one on disk is a rollback, too.
    server.does(served(signer.sign(&[("gate.rego", DENY)], 999, "")));
    refused(&restarted, "rollback", "older");
    assert_eq!(restarted.get("/a", &[]).status, 200);
    server.does(Does::Status(500));

    // One that is no good any more does not keep the gateway from starting.
    let useless = signer.sign(&[("x.rego", "package elsewhere\n")], 1000, "");
    let waiting = again(&useless);
    assert_eq!(waiting.get("/a", &[]).status, 503);
    let error = status(&waiting)["last_error"].to_string();
    assert!(
        error.contains("there is no rule `data.gate.allow`") || error.contains("500"),
        "{error}"
    );

    let mut damaged = bytes;
    let middle = damaged.len() / 2;
    damaged[middle] ^= 1;
    let refusing = again(&damaged);
    assert_eq!(refusing.get("/a", &[]).status, 503);
    server.serves(signer.sign(&[("gate.rego", ALLOW)], 1000, ""), "\"1\"");
    answers(&refusing, "/a", 200);
    drop(folder);
}

#[test]
fn a_further_signing_key_leaves_the_bundle_in_force_and_another_in_its_place_does_not() {
    let (upstream, signer, successor) = (Upstream::start(), Signer::new(), Signer::new());
    let server = Server::serving(signer.sign(&[("gate.rego", ALLOW)], 1000, ""), "\"1\"");
    let mut block = polled(&server);
    block["signing"] = signing("");
    let builder = configured(&upstream, block);
    builder.file("bundles.pem", &signer.pem);
    builder.file("next.pem", &successor.pem);
    let mut gateway = builder.start();
    answers(&gateway, "/a", 200);
    server.does(Does::Status(500));

    let next = json!({ "algorithm": "ES256", "key": "file:next.pem" });
    let answer = gateway.reload(|document| {
        document["bundles"]["gate"]["signing"]["keys"]["next"] = next.clone();
    });
    assert_eq!(answer.status, 200, "{}", answer.text());
    assert_eq!(gateway.get("/a", &[]).status, 200);
    assert_eq!(status(&gateway)["signed"]["keyid"], "main");
    // The same name, and not the key that signed it.
    let answer = gateway.reload(|document| {
        document["bundles"]["gate"]["signing"]["keys"] = json!({ "main": next });
    });
    assert_eq!(answer.status, 200, "{}", answer.text());
    assert_eq!(gateway.get("/a", &[]).status, 503);
    server.serves(successor.sign(&[("gate.rego", ALLOW)], 1000, ""), "\"2\"");
    answers(&gateway, "/a", 200);
}

#[test]
fn a_kept_bundle_that_one_policy_cannot_use_decides_for_none() {
    let upstream = Upstream::start();
    let server = Server::start(Does::Status(500));
    let mut block = polled(&server);
    block["persist"] = json!("state/gate.tar.gz");
    // `first` is made before `second` shows that the bundle is no good.
    let builder = Builder::open(&upstream).with(|document| {
        document["bundles"] = json!({ "gate": block });
        document["policies"] = json!({
            "first": { "bundles": ["gate"], "entrypoint": "data.gate.allow" },
            "second": { "bundles": ["gate"], "entrypoint": "data.gate.elsewhere" },
        });
        for route in document["routes"].as_array_mut().unwrap() {
            route["policy"] = json!("first");
        }
    });
    let state = builder.folder.path().join("state");
    std::fs::create_dir(&state).unwrap();
    std::fs::write(state.join("gate.tar.gz"), policy("v1", ALLOW)).unwrap();
    let gateway = builder.start();
    assert_eq!(gateway.get("/a", &[]).status, 503);
    let both = policy("v2", &format!("{ALLOW}\nelsewhere := true\n"));
    server.serves(both, "\"2\"");
    answers(&gateway, "/a", 200);
}

#[test]
fn a_bundle_of_very_many_small_values_is_refused_before_they_are_made() {
    let upstream = Upstream::start();
    let server = Server::serving(policy("v1", ALLOW), "\"1\"");
    let mut block = polled(&server);
    block["max_unpacked"] = json!("1MiB");
    let gateway = configured(&upstream, block).start();
    answers(&gateway, "/a", 200);
    // 131,072 values fit into 1 MiB; these take a quarter of it as text.
    let zeros = format!("{{\"zeros\": [{}0]}}", "0,".repeat(131_072));
    server.does(served(bundle(&[
        ("gate.rego", DENY),
        ("data.json", &zeros),
    ])));
    refused(&gateway, "content", "too many values");
    assert_eq!(gateway.get("/a", &[]).status, 200);
    let fits = format!("{{\"zeros\": [{}0]}}", "0,".repeat(131_000));
    server.does(served(bundle(&[("gate.rego", DENY), ("data.json", &fits)])));
    answers(&gateway, "/a", 403);
}

#[test]
fn several_bundles_and_files_are_one_policy_and_none_may_speak_for_another() {
    let upstream = Upstream::start();
    let rules = "package gate\n\ndefault allow := false\n\nallow if data.lists.open[_] == input.request.path\n\nallow if data.local.path == input.request.path\n";
    let code = Server::serving(
        bundle(&[
            ("gate.rego", rules),
            (".manifest", r#"{"revision":"c1","roots":["gate"]}"#),
        ]),
        "\"c\"",
    );
    let lists = |paths: &str, roots: &str| {
        let manifest = format!("{{\"revision\":\"l1\",\"roots\":[\"{roots}\"]}}");
        bundle(&[
            (
                "data.json",
                &format!("{{\"{roots}\":{{\"open\":[{paths}]}}}}"),
            ),
            (".manifest", &manifest),
        ])
    };
    let data = Server::serving(lists("\"/a\"", "lists"), "\"1\"");
    let builder = configured(&upstream, polled(&code)).with(|document| {
        document["bundles"]["lists"] = polled(&data);
        document["policies"]["gate"]["bundles"] = json!(["gate", "lists"]);
        document["policies"]["gate"]["files"] = json!(["local.json"]);
    });
    builder.file("local.json", r#"{"local": {"path": "/local"}}"#);
    let mut gateway = builder.start();
    answers(&gateway, "/a", 200);
    assert_eq!(gateway.get("/local", &[]).status, 200);
    assert_eq!(gateway.get("/b", &[]).status, 403);
    data.serves(lists("\"/b\"", "lists"), "\"2\"");
    answers(&gateway, "/b", 200);
    assert_eq!(gateway.get("/a", &[]).status, 403);

    // Not even data in another's part.
    data.serves(lists("\"/a\"", "gate"), "\"3\"");
    let error = eventually("a refusal", || {
        let status = gateway.admin("GET", "/bundles").json();
        let message = status["bundles"]["lists"]["last_error"]["message"]
            .as_str()?
            .to_owned();
        Some(message)
    });
    assert!(
        error.contains("the bundles `gate` and `lists` overlap"),
        "{error}"
    );
    assert_eq!(gateway.get("/b", &[]).status, 200);
    let answer =
        gateway.reload(|document| document["policies"]["gate"]["files"] = json!(["mine.json"]));
    assert!(answer.status >= 400);
    gateway.file_in("mine.json", r#"{"lists": {"open": ["/a"]}}"#);
    let answer = gateway.reload(|_| {});
    assert!(
        answer.text().contains("belongs to the bundle `lists`"),
        "{}",
        answer.text()
    );
    assert_eq!(gateway.get("/b", &[]).status, 200);
}

#[test]
fn a_server_that_keeps_questions_is_answered_at_once() {
    let upstream = Upstream::start();
    let server = Server::start(Does::Serves(Arc::new(policy("v1", ALLOW)), "\"1\"", true));
    let block = json!({
        "url": server.url(),
        "polling": { "min_delay": "1h", "max_delay": "2h", "long_polling_timeout": "20s" },
    });
    let gateway = configured(&upstream, block).start();
    answers(&gateway, "/a", 200);
    eventually("a question that waits", || {
        let asked = server.asked();
        let last = asked.last()?;
        (last.header("prefer") == Some("modes=snapshot;wait=20")
            && last.header("if-none-match") == Some("\"1\""))
        .then_some(())
    });
    server.does(Does::Serves(Arc::new(policy("v2", DENY)), "\"2\"", true));
    answers(&gateway, "/a", 403);
    told(&gateway, "/long_polling", &json!(true));
}

#[test]
fn bundles_change_under_load_without_a_failed_request() {
    let upstream = Upstream::start();
    let server = Server::serving(policy("v0", ALLOW), "\"0\"");
    let gateway = configured(&upstream, polled(&server)).start();
    answers(&gateway, "/a", 200);
    let address = gateway.address();
    let (done, served, denied) = (
        AtomicBool::new(false),
        AtomicUsize::new(0),
        AtomicUsize::new(0),
    );
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                let mut connection = Connection::plain(address);
                while !done.load(Ordering::SeqCst) {
                    for (path, status) in [("/a", 200), ("/denied", 403)] {
                        let answer = connection
                            .send(request("GET", path, &[]))
                            .answer()
                            .expect("an answer");
                        if answer.status == status {
                            served.fetch_add(1, Ordering::SeqCst);
                        } else {
                            denied.fetch_add(1, Ordering::SeqCst);
                        }
                    }
                }
            });
        }
        for (revision, tag) in [("v1", "\"1\""), ("v2", "\"2\""), ("v3", "\"3\"")] {
            server.serves(policy(revision, &format!("{ALLOW}\n# {revision}\n")), tag);
            eventually(revision, || {
                (status(&gateway)["revision"] == revision).then_some(())
            });
        }
        done.store(true, Ordering::SeqCst);
    });
    assert_eq!(denied.load(Ordering::SeqCst), 0);
    assert!(served.load(Ordering::SeqCst) > 100);
}

#[test]
fn an_open_stream_ends_with_the_bundle_that_allowed_it() {
    let upstream = Upstream::with(|_, stream| {
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n");
        while stream.write_all(b"4\r\ntick\r\n").is_ok() {
            std::thread::park_timeout(Duration::from_millis(20));
        }
        Next::Close
    });
    let server = Server::serving(policy("v1", ALLOW), "\"1\"");
    let gateway = configured(&upstream, polled(&server)).start();
    eventually("the first bundle", || {
        (status(&gateway)["active"] == true).then_some(())
    });
    let mut stream = gateway.connect();
    stream.send(request("GET", "/stream", &[]));
    let mut piece = [0; 64];
    stream.read_exact(&mut piece).unwrap();
    server.serves(policy("v2", DENY), "\"2\"");
    let begun = Instant::now();
    while matches!(stream.read(&mut piece), Ok(read) if read > 0) {
        assert!(
            begun.elapsed() < Duration::from_secs(10),
            "the stream goes on"
        );
    }
    let record = eventually("the record", || {
        let mut records = gateway.records().into_iter();
        records.find(|record| record["path"] == "/stream")
    });
    assert_eq!(record["outcome"], "permission_ended", "{record}");
    assert_eq!(record["detail"], "policy.denied", "{record}");
}

#[test]
fn a_bundle_on_disk_is_watched_and_a_broken_one_changes_nothing() {
    let upstream = Upstream::start();
    let builder = configured(&upstream, json!({ "file": "gate.tar.gz" }));
    builder.file("gate.tar.gz", policy("f1", ALLOW));
    let gateway = builder.start();
    assert_eq!(gateway.get("/a", &[]).status, 200);
    let put = |bytes: &[u8]| {
        let beside = gateway.folder.path().join(".new");
        std::fs::write(&beside, bytes).unwrap();
        std::fs::rename(&beside, gateway.folder.path().join("gate.tar.gz")).unwrap();
    };
    put(&bundle(&[
        ("gate.rego", DENY),
        (".manifest", "{\"roots\": [\"x\"]}"),
    ]));
    eventually("the failure", || {
        let error = status(&gateway)["last_error"].clone();
        (error["reason"] == "manifest").then_some(())
    });
    assert_eq!(gateway.get("/a", &[]).status, 200);
    put(&policy("f2", DENY));
    answers(&gateway, "/a", 403);
    in_force(&gateway, "f2");
}

fn portcullis(folder: &Path, arguments: &[&str]) -> (i32, String, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_portcullis"))
        .args(arguments)
        .current_dir(folder)
        .output()
        .unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (
        output.status.code().unwrap(),
        text(&output.stdout),
        text(&output.stderr),
    )
}

#[test]
fn a_bundle_is_built_signed_looked_into_and_taken_without_opa() {
    let folder = tempfile::tempdir().unwrap();
    let put = |name: &str, text: &str| {
        let path = folder.path().join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    };
    put("policy/gate.rego", ALLOW);
    put(
        "policy/gate_test.rego",
        "package gate\n\ntest_no if not allow with input as {\"request\": {\"path\": \"/denied\"}}\n",
    );
    put("policy/lists/data.json", "{ \"open\": [1.0, \"é\"] }");
    put("policy/.manifest", "{\"roots\": [\"gate\", \"lists\"]}");
    put("secret", &"s".repeat(32));
    let build = [
        "bundle",
        "build",
        "policy",
        "-o",
        "gate.tar.gz",
        "--revision",
        "r7",
        "--signing-key",
        "secret",
        "--signing-alg",
        "HS256",
        "--scope",
        "read",
    ];
    let (code, out, err) = portcullis(folder.path(), &build);
    assert_eq!(code, 0, "{err}");
    assert!(
        out.contains("r7, 2 modules, 1 data file,") && out.contains("signed"),
        "{out}"
    );
    let inspect = [
        "bundle",
        "inspect",
        "gate.tar.gz",
        "--verification-key",
        "secret",
        "--signing-alg",
        "HS256",
        "--scope",
        "read",
    ];
    let (code, out, _) = portcullis(folder.path(), &inspect);
    assert_eq!(code, 0);
    for part in [
        "revision   r7",
        "verified, HS256",
        "policy",
        "lists/data.json",
        "test, decides nothing",
    ] {
        assert!(
            out.contains(part) || part == "policy",
            "{part} is missing in {out}"
        );
    }
    let (code, out, err) = portcullis(
        folder.path(),
        &[
            "bundle",
            "inspect",
            "gate.tar.gz",
            "--verification-key",
            "secret",
            "--signing-alg",
            "HS256",
        ],
    );
    assert_eq!((code, out.as_str()), (1, ""));
    assert!(err.contains("its scope is `read`"), "{err}");
    let (code, out, _) = portcullis(
        folder.path(),
        &["bundle", "inspect", "gate.tar.gz", "--format", "json"],
    );
    let found: Value = serde_json::from_str(&out).unwrap();
    assert_eq!(
        (code, &found["signed"], &found["verified"]),
        (0, &json!(true), &json!(false))
    );

    let upstream = Upstream::start();
    let block = json!({ "file": "gate.tar.gz", "signing": {
        "keys": { "default": { "algorithm": "HS256", "key": "file:secret" } }, "scope": "read",
    }});
    let builder = configured(&upstream, block);
    builder.file(
        "gate.tar.gz",
        std::fs::read(folder.path().join("gate.tar.gz")).unwrap(),
    );
    builder.file("secret", "s".repeat(32));
    let gateway = builder.start();
    assert_eq!(gateway.get("/a", &[]).status, 200);
    assert_eq!(gateway.get("/denied", &[]).status, 403);

    put("policy/x.rego", "package elsewhere\n");
    let (code, _, err) = portcullis(
        folder.path(),
        &["bundle", "build", "policy", "-o", "bad.tar.gz"],
    );
    assert_eq!(code, 1);
    assert!(
        err.contains("x.rego: the package `elsewhere` lies outside") && err.contains("help:"),
        "{err}"
    );
    assert!(!folder.path().join("bad.tar.gz").exists());
}

#[test]
fn what_the_readme_shows_works() {
    let readme = include_str!("../../README.md");
    let section = readme
        .split("\n## Bundles\n")
        .nth(1)
        .unwrap()
        .split("\n## ")
        .next()
        .unwrap();
    let block = |kind: &str| {
        let begin = section.split(&format!("```{kind}\n")).nth(1).unwrap();
        begin.split("```").next().unwrap().to_owned()
    };
    let folder = tempfile::tempdir().unwrap();
    std::fs::create_dir_all(folder.path().join("orders")).unwrap();
    let policy = ALLOW
        .replace("package gate", "package orders")
        .replace("allow", "decision");
    std::fs::write(folder.path().join("orders/orders.rego"), policy).unwrap();
    let program = Path::new(env!("CARGO_BIN_EXE_portcullis"));
    let path = format!(
        "{}:{}",
        program.parent().unwrap().display(),
        std::env::var("PATH").unwrap()
    );
    let output = Command::new("sh")
        .args(["-euc", &block("sh")])
        .env("PATH", path)
        .current_dir(folder.path())
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{output:?}");
    assert!(text.contains("verified, ES256 by key"), "{text}");

    std::fs::create_dir(folder.path().join("keys")).unwrap();
    std::fs::copy(
        folder.path().join("release.pem"),
        folder.path().join("keys/release.pem"),
    )
    .unwrap();
    let rest = "listeners: { local: { address: \"127.0.0.1:0\", plaintext: true } }\n\
        upstreams: { main: { endpoints: [\"http://127.0.0.1:9\"] } }\n\
        routes:\n  - { name: all, path: \"/{*rest}\", authn: [anonymous], policy: orders, upstream: main }\n";
    std::fs::write(
        folder.path().join("gateway.yaml"),
        format!("{}{rest}", block("yaml")),
    )
    .unwrap();
    let output = Command::new(program)
        .args(["check", "--config", "gateway.yaml"])
        .env("BUNDLE_TOKEN", "secret")
        .current_dir(folder.path())
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
    // The same bundle, from disk.
    let local = block("yaml")
        .lines()
        .filter(|line| {
            !["token:", "polling:", "persist:"]
                .iter()
                .any(|key| line.contains(key))
        })
        .map(|line| {
            if line.contains("url:") {
                "    file: orders.tar.gz"
            } else {
                line
            }
        })
        .collect::<Vec<_>>()
        .join("\n");
    std::fs::write(
        folder.path().join("gateway.yaml"),
        format!("{local}\n{rest}"),
    )
    .unwrap();
    let (code, out, err) = portcullis(folder.path(), &["check", "--config", "gateway.yaml"]);
    assert_eq!(code, 0, "{out}{err}");
    assert!(!format!("{out}{err}").contains("not checked"), "{out}{err}");
}

#[test]
fn every_mistake_in_a_block_has_its_line_and_a_way_out() {
    let folder = tempfile::tempdir().unwrap();
    let text = r#"
listeners: { local: { address: "127.0.0.1:0", plaintext: true } }
upstreams: { main: { endpoints: ["http://127.0.0.1:9"] } }
bundles:
  both: { file: x.tar.gz, url: "https://bundles.example.com/x.tar.gz" }
  neither: {}
  plain:
    url: http://bundles.example.com/x.tar.gz
    polling: { min_delay: 5m, max_delay: 1m, long_polling_timeout: 2h }
  signed:
    url: https://bundles.example.com/x.tar.gz
    signing: { keys: { a: { algorithm: ES256, key: "file:gateway.yaml" } }, keyid: b }
    headers: { host: "env:HOME" }
policies:
  gate: { bundles: [plain, sined], entrypoint: data.gate.allow }
routes:
  - { name: all, path: "/{*rest}", authn: [anonymous], policy: gate, upstream: main }
"#;
    std::fs::write(folder.path().join("gateway.yaml"), text).unwrap();
    let (code, out, err) = portcullis(folder.path(), &["check", "--config", "gateway.yaml"]);
    assert_eq!(code, 1);
    let all = format!("{out}{err}");
    for part in [
        "gateway.yaml:5:17: error: bundles.both.file: the bundle has both",
        "gateway.yaml:6:",
        "gateway.yaml:8:10: error: bundles.plain.url: the URL cannot be fetched: it is not https",
        "bundles.plain.polling.max_delay: the longest pause is shorter",
        "bundles.plain.polling.long_polling_timeout: the time is out of range",
        "bundles.signed.signing.keys.a.key: the key cannot be used: it holds no public key",
        "bundles.signed.signing.keyid: there is no key `b`",
        "bundles.signed.headers.host: `host` is no header to set",
        "policies.gate.bundles[1]: there is no bundle `sined`",
        "help: did you mean `signed`?",
    ] {
        assert!(all.contains(part), "{part} is missing in {all}");
    }

    // What is good without network says what was not checked.
    let good = r#"
listeners: { local: { address: "127.0.0.1:0", plaintext: true } }
upstreams: { main: { endpoints: ["http://127.0.0.1:9"] } }
bundles: { gate: { url: "https://bundles.example.com/x.tar.gz" } }
policies: { gate: { bundles: [gate], entrypoint: data.gate.allow } }
routes:
  - { name: all, path: "/{*rest}", authn: [anonymous], policy: gate, upstream: main }
"#;
    std::fs::write(folder.path().join("gateway.yaml"), good).unwrap();
    let (code, out, err) = portcullis(folder.path(), &["check", "--config", "gateway.yaml"]);
    assert_eq!(code, 0, "{out}{err}");
    let all = format!("{out}{err}");
    assert!(
        all.contains("the bundle is not there yet: policies that use it are not checked"),
        "{all}"
    );
    assert!(all.contains("the bundle is not verified"), "{all}");
}
