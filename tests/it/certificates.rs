//! Client certificates that stop being good: at the next handshake, when a session is resumed, and on
//! connections that are open already.

use std::io::{BufRead, Read, Write};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use serde_json::{Value, json};

use crate::support::client::{Answer, Connection, request};
use crate::support::eventually;
use crate::support::gateway::{Builder, Gateway};
use crate::support::h2::{GOAWAY, H2, Outcome};
use crate::support::pki::{Authority, Leaf, client_config};
use crate::support::tools::program;
use crate::support::upstream::{Next, Upstream};

const HOST: &str = "api.example.test";

struct Edge {
    servers: Authority,
    clients: Arc<Authority>,
    upstream: Upstream,
    gateway: Gateway,
}

/// A gateway that demands certificates of `clients`, with more in its section.
fn edge(clients: impl Into<Arc<Authority>>, more: Value) -> Edge {
    let clients = clients.into();
    let servers = Authority::new("servers");
    let upstream = Upstream::start();
    let builder = Builder::open(&upstream);
    let folder = builder.folder.path().to_owned();
    servers.server(&[HOST]).write(&folder, "api");
    builder.file("clients.pem", &clients.pem);
    builder.file("revoked.pem", clients.revocations(&[], 2120));
    let mut section = json!({"mode": "required", "authorities": ["clients.pem"]});
    for (key, value) in more.as_object().unwrap() {
        section[key] = value.clone();
    }
    let gateway = builder
        .with(|document| {
            document["listeners"]["public"] = json!({"address": "127.0.0.1:0", "tls": {
                "certificates": [{"chain": "api.pem", "key": "api.key"}],
                "client_certificates": section,
            }});
        })
        .start();
    Edge {
        servers,
        clients,
        upstream,
        gateway,
    }
}

impl Edge {
    fn config(&self, leaf: &Leaf, alpn: &[u8]) -> Arc<rustls::ClientConfig> {
        client_config(&self.servers, Some(leaf), &[alpn])
    }

    fn open_with(&self, config: &Arc<rustls::ClientConfig>) -> std::io::Result<Connection> {
        Connection::tls(self.gateway.listener("public"), HOST, config)
    }

    fn open(&self, leaf: &Leaf) -> Connection {
        self.open_with(&self.config(leaf, b"http/1.1")).unwrap()
    }

    fn open_h2(&self, leaf: &Leaf) -> H2 {
        H2::over(self.open_with(&self.config(leaf, b"h2")).unwrap())
    }

    /// What a new connection's first request gets; `None` when the handshake is refused.
    fn status(&self, leaf: &Leaf) -> Option<u16> {
        let mut connection = self.open_with(&self.config(leaf, b"http/1.1")).ok()?;
        connection
            .write_all(request("GET", "/a", &[]).as_bytes())
            .ok()?;
        connection.answer().map(|answer| answer.status)
    }

    fn revoke(&self, serials: &[u64]) {
        self.gateway
            .folder
            .path()
            .join("revoked.pem")
            .write(&self.clients.revocations(serials, 2120));
        let answer = self.gateway.admin("POST", "/reload");
        assert_eq!(answer.status, 200, "{}", answer.text());
    }

    fn metrics(&self) -> String {
        self.gateway.admin("GET", "/metrics").text()
    }
}

trait WriteFile {
    fn write(&self, text: &str);
}

impl WriteFile for std::path::PathBuf {
    fn write(&self, text: &str) {
        std::fs::write(self, text).unwrap();
    }
}

fn ask(connection: &mut Connection) -> Option<Answer> {
    connection.send(request("GET", "/a", &[]));
    connection.answer()
}

const H2_GET: [(&str, &str); 4] = [
    (":method", "GET"),
    (":scheme", "https"),
    (":authority", HOST),
    (":path", "/a"),
];

/// Asks until the answer is no 200; the answer.
fn ask_until_refused(connection: &mut Connection) -> Answer {
    eventually("the refusal", || {
        let answer = ask(connection)?;
        (answer.status != 200).then_some(answer)
    })
}

fn refused_with(edge: &Edge, answer: &Answer, code: &str) {
    assert_eq!(answer.header("connection"), Some("close"));
    let id = answer.json()["request_id"].as_str().unwrap().to_owned();
    let record = edge.gateway.record(&id);
    assert!(record.to_string().contains(code), "{record}");
}

#[test]
fn a_certificate_revoked_after_its_connection_opened_serves_no_further_request() {
    let edge = edge(
        Authority::new("clients"),
        json!({"revocation_lists": ["revoked.pem"]}),
    );
    let (alice, bob) = (
        edge.clients.numbered(7, |_| {}),
        edge.clients.numbered(8, |_| {}),
    );
    let (mut h1, mut neighbour) = (edge.open(&alice), edge.open(&bob));
    let (mut h2, mut neighbour_h2) = (edge.open_h2(&alice), edge.open_h2(&bob));
    let mut idle = edge.open(&alice);
    for connection in [&mut h1, &mut neighbour, &mut idle] {
        assert_eq!(ask(connection).unwrap().status, 200);
    }
    for connection in [&mut h2, &mut neighbour_h2] {
        connection.headers(1, &H2_GET, true);
        assert_eq!(connection.outcome(1), Outcome::Status(200));
    }
    edge.revoke(&[7]);

    let answer = ask(&mut h1).expect("an answer");
    assert_eq!(
        (answer.status, answer.code().as_str()),
        (401, "unauthenticated")
    );
    refused_with(&edge, &answer, "certificate.revoked");
    refused_with(&edge, &answer, "serial 7 of CN=clients");
    assert!(!answer.text().contains("CN="), "{}", answer.text());
    assert!(h1.closes());
    // Also without another request, and over HTTP/2 by GOAWAY.
    assert!(idle.closes(), "an idle connection stayed open");
    let mut told = false;
    while let Some((kind, ..)) = h2.read() {
        told |= kind == GOAWAY;
    }
    assert!(told, "no GOAWAY");

    assert_eq!(ask(&mut neighbour).unwrap().status, 200);
    neighbour_h2.headers(3, &H2_GET, true);
    assert_eq!(neighbour_h2.outcome(3), Outcome::Status(200));
    assert_eq!(edge.status(&alice), None);
    assert_eq!(edge.status(&bob), Some(200));
    assert!(edge.metrics().contains(
        "portcullis_certificates_lapsed_total{listener=\"public\",reason=\"certificate.revoked\"} 3"
    ));
}

#[test]
fn a_request_on_a_revoked_http2_connection_is_answered_with_401() {
    let edge = edge(
        Authority::new("clients"),
        json!({"revocation_lists": ["revoked.pem"]}),
    );
    let alice = edge.clients.numbered(7, |_| {});
    let mut h2 = edge.open_h2(&alice);
    h2.headers(1, &H2_GET, true);
    assert_eq!(h2.outcome(1), Outcome::Status(200));
    edge.revoke(&[7]);
    h2.headers(3, &H2_GET, true);
    let outcome = h2.outcome(3);
    // `other` statuses come Huffman-coded; what matters is that it is no 200.
    assert!(
        matches!(outcome, Outcome::Status(401) | Outcome::Closed),
        "{outcome:?}"
    );
}

#[test]
fn connections_end_when_their_authority_is_no_longer_configured() {
    let edge = edge(Authority::new("clients"), json!({}));
    let others = Authority::new("others");
    let folder = edge.gateway.folder.path().to_owned();
    std::fs::write(
        folder.join("clients.pem"),
        edge.clients.pem.clone() + &others.pem,
    )
    .unwrap();
    assert_eq!(edge.gateway.admin("POST", "/reload").status, 200);
    let (alice, bob) = (edge.clients.numbered(7, |_| {}), others.numbered(8, |_| {}));
    let (mut gone, mut stays) = (edge.open(&alice), edge.open(&bob));
    assert_eq!(ask(&mut gone).unwrap().status, 200);
    assert_eq!(ask(&mut stays).unwrap().status, 200);
    std::fs::write(folder.join("clients.pem"), &others.pem).unwrap();
    assert_eq!(edge.gateway.admin("POST", "/reload").status, 200);
    let answer = ask(&mut gone).expect("an answer");
    assert_eq!(answer.status, 401);
    refused_with(&edge, &answer, "certificate.authority");
    assert!(gone.closes());
    assert_eq!(ask(&mut stays).unwrap().status, 200);
}

#[test]
fn a_certificate_that_expires_ends_its_connections() {
    let edge = edge(Authority::new("clients"), json!({}));
    let end = SystemTime::now() + Duration::from_secs(3);
    let alice = edge
        .clients
        .numbered(7, |params| params.not_after = end.into());
    let (mut busy, mut idle) = (edge.open(&alice), edge.open(&alice));
    assert_eq!(ask(&mut busy).unwrap().status, 200);
    let answer = ask_until_refused(&mut busy);
    assert_eq!(answer.status, 401);
    refused_with(&edge, &answer, "certificate.expired");
    assert!(idle.closes());
}

#[test]
fn a_revoked_intermediate_ends_the_connections_of_its_chains() {
    let root = Authority::new("clients");
    let below = root.under("below", |params| {
        params.serial_number = Some(rcgen::SerialNumber::from(77u64));
    });
    let beside = root.under("beside", |_| {});
    let edge = edge(root, json!({}));
    let through = |authority: &Authority, serial| {
        let mut leaf = authority.numbered(serial, |_| {});
        leaf.chain_pem.push_str(&authority.pem);
        leaf
    };
    let (alice, bob) = (through(&below, 7), through(&beside, 8));
    let lists = below.revocations(&[], 2120) + &beside.revocations(&[], 2120);
    let write = |revoked: &[u64]| {
        let path = edge.gateway.folder.path().join("revoked.pem");
        std::fs::write(path, edge.clients.revocations(revoked, 2120) + &lists).unwrap();
    };
    write(&[]);
    let mut document = edge.gateway.document.clone();
    document["listeners"]["public"]["tls"]["client_certificates"]["revocation_lists"] =
        json!(["revoked.pem"]);
    std::fs::write(&edge.gateway.config, document.to_string()).unwrap();
    assert_eq!(edge.gateway.admin("POST", "/reload").status, 200);
    let (mut first, mut second) = (edge.open(&alice), edge.open(&bob));
    assert_eq!(ask(&mut first).unwrap().status, 200);
    assert_eq!(ask(&mut second).unwrap().status, 200);
    write(&[77]);
    assert_eq!(edge.gateway.admin("POST", "/reload").status, 200);
    let answer = ask(&mut first).expect("an answer");
    refused_with(&edge, &answer, "certificate.revoked");
    assert_eq!(ask(&mut second).unwrap().status, 200);
    assert_eq!(edge.status(&alice), None);
}

#[test]
fn open_streams_end_with_the_certificate_and_those_of_others_go_on() {
    let edge = edge(
        Authority::new("clients"),
        json!({"revocation_lists": ["revoked.pem"]}),
    );
    edge.upstream.answer(|_, stream| {
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n");
        while stream.write_all(b"4\r\ntick\r\n").is_ok() {
            std::thread::park_timeout(Duration::from_millis(20));
        }
        Next::Close
    });
    let (alice, bob) = (
        edge.clients.numbered(7, |_| {}),
        edge.clients.numbered(8, |_| {}),
    );
    let (mut gone, mut stays) = (edge.open(&alice), edge.open(&bob));
    let mut gone_h2 = edge.open_h2(&alice);
    let mut buffer = [0; 64];
    for connection in [&mut gone, &mut stays] {
        connection.send(request("GET", "/stream", &[]));
        assert!(connection.read(&mut buffer).unwrap() > 0);
    }
    gone_h2.headers(1, &H2_GET, true);
    assert_eq!(gone_h2.outcome(1), Outcome::Status(200));
    edge.revoke(&[7]);
    let revoked = Instant::now();
    while gone.read(&mut buffer).is_ok_and(|read| read > 0) {
        assert!(revoked.elapsed() < Duration::from_secs(5), "it streams on");
    }
    while gone_h2.read().is_some() {
        assert!(revoked.elapsed() < Duration::from_secs(5), "it streams on");
    }
    for _ in 0..20 {
        assert!(stays.read(&mut buffer).unwrap() > 0);
    }
}

/// A list made by `openssl ca`, with these lines in the section of its extensions.
fn openssl_list(clients: &Authority, extensions: &str) -> Vec<u8> {
    let folder = tempfile::TempDir::new().unwrap();
    let path = |name: &str| folder.path().join(name);
    path("ca.pem").write(&clients.pem);
    path("ca.key").write(&clients.key_pem());
    path("index.txt").write("R\t401231235959Z\t200101000000Z\t07\tunknown\t/CN=7\n");
    path("number").write("1F\n");
    path("ca.cnf").write(&format!(
        "[ca]\ndefault_ca=c\n[c]\ndatabase=index.txt\ncrlnumber=number\ndefault_md=sha256\n\
         default_crl_hours=1\ncrl_extensions=e\n[e]\n{extensions}\n"
    ));
    let output = Command::new("openssl")
        .current_dir(folder.path())
        .args(["ca", "-gencrl", "-config", "ca.cnf", "-cert", "ca.pem"])
        .args(["-keyfile", "ca.key"])
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    output.stdout
}

#[test]
fn lists_of_openssl_are_read_and_those_of_other_kinds_refused() {
    if program("openssl").is_none() {
        return;
    }
    let clients = Arc::new(Authority::new("clients"));
    let server = serving(clients.list(&[], 1, 600));
    let edge = edge(
        Arc::clone(&clients),
        json!({"distribution_points": {"urls": [format!("{}/ca.crl", server.url())], "refresh": "1s"}}),
    );
    let (alice, bob) = (clients.numbered(7, |_| {}), clients.numbered(8, |_| {}));
    assert_eq!(edge.status(&alice), Some(200));
    for (extensions, outcome) in [
        ("2.5.29.27=critical,DER:02:01:01", "delta"),
        ("1.2.3.4=critical,DER:05:00", "unreadable"),
        (
            "issuingDistributionPoint=critical,@i\n[i]\nfullname=URI:http://a.test/\nindirectCRL=TRUE",
            "unreadable",
        ),
    ] {
        serve(&server, openssl_list(&clients, extensions));
        asked_again(&server);
        let word =
            format!("portcullis_crl_fetches_total{{listener=\"public\",outcome=\"{outcome}\"}}");
        assert!(edge.metrics().contains(&word), "{extensions}");
        assert_eq!(edge.status(&alice), Some(200), "{extensions}");
    }
    serve(
        &server,
        openssl_list(&clients, "authorityKeyIdentifier=keyid:always"),
    );
    eventually("openssl's list", || {
        edge.status(&alice).is_none().then_some(())
    });
    assert_eq!(edge.status(&bob), Some(200));
}

/// A server of one document, which may change or fail.
fn serving(body: Vec<u8>) -> Upstream {
    let server = Upstream::start();
    serve(&server, body);
    server
}

fn serve(server: &Upstream, body: Vec<u8>) {
    server.answer(move |_, stream| {
        let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", body.len());
        let _ = stream.write_all(head.as_bytes());
        let _ = stream.write_all(&body);
        Next::Close
    });
}

fn fail(server: &Upstream) {
    server.answer(|_, stream| {
        let _ = stream.write_all(b"HTTP/1.1 500 Oops\r\nContent-Length: 0\r\n\r\n");
        Next::Close
    });
}

/// Waits until the server was asked twice more: what it serves now has been looked at.
fn asked_again(server: &Upstream) {
    let before = server.seen().len();
    eventually("two more fetches", || {
        (server.seen().len() >= before + 2).then_some(())
    });
}

#[test]
fn lists_of_distribution_points_count_without_a_reload_and_never_go_back() {
    let clients = Arc::new(Authority::new("clients"));
    let server = serving(clients.list(&[], 1, 600));
    let edge = edge(
        clients,
        json!({"distribution_points": {"urls": [format!("{}/ca.crl", server.url())], "refresh": "1s"}}),
    );
    let (alice, bob) = (
        edge.clients.numbered(7, |_| {}),
        edge.clients.numbered(8, |_| {}),
    );
    // A ticket for later: the session was begun while the certificate was good.
    let resuming = edge.config(&alice, b"http/1.1");
    let mut open = edge.open_with(&resuming).unwrap();
    let mut neighbour = edge.open(&bob);
    assert_eq!(ask(&mut open).unwrap().status, 200);
    assert_eq!(ask(&mut neighbour).unwrap().status, 200);
    {
        let mut again = edge.open_with(&resuming).unwrap();
        assert_eq!(ask(&mut again).unwrap().status, 200);
        let text = edge.metrics();
        assert!(
            text.contains("version=\"TLSv1.3\",resumed=\"true\"} 1"),
            "no session was resumed: {text}"
        );
    }

    serve(&server, edge.clients.list(&[7], 2, 600));
    let answer = ask_until_refused(&mut open);
    assert_eq!(answer.status, 401);
    refused_with(&edge, &answer, "certificate.revoked");
    // The tickets are as good as ever; the certificate in them is not.
    let resumed = edge.open_with(&resuming).ok().and_then(|mut c| ask(&mut c));
    assert!(resumed.is_none(), "{resumed:?}");
    assert_eq!(edge.status(&alice), None);
    assert_eq!(ask(&mut neighbour).unwrap().status, 200);

    // An older one, a forged one, and none at all change nothing.
    for (what, body, outcome) in [
        ("older", edge.clients.list(&[], 1, 600), "older"),
        (
            "forged",
            Authority::new("clients").list(&[], 9, 600),
            "signature",
        ),
        ("junk", b"junk".to_vec(), "unreadable"),
    ] {
        serve(&server, body);
        let word =
            format!("portcullis_crl_fetches_total{{listener=\"public\",outcome=\"{outcome}\"}}");
        eventually(what, || edge.metrics().contains(&word).then_some(()));
        assert_eq!(edge.status(&alice), None, "{what}");
        assert_eq!(edge.status(&bob), Some(200), "{what}");
    }
    // A hold that is lifted, in PEM form.
    let der = edge.clients.list(&[], 3, 600);
    let pem = {
        use base64::Engine;
        let text = base64::engine::general_purpose::STANDARD.encode(der);
        format!("-----BEGIN X509 CRL-----\n{text}\n-----END X509 CRL-----\n")
    };
    serve(&server, pem.into_bytes());
    eventually("the lifted hold", || {
        (edge.status(&alice) == Some(200)).then_some(())
    });
}

#[test]
fn a_list_is_believed_while_its_server_is_down_but_not_past_its_end() {
    let clients = Arc::new(Authority::new("clients"));
    let server = serving(clients.list(&[], 1, 6));
    let edge = edge(
        clients,
        json!({"distribution_points": {"urls": [format!("{}/ca.crl", server.url())], "refresh": "1s", "wait": "1s"}}),
    );
    let alice = edge.clients.numbered(7, |_| {});
    let mut open = edge.open(&alice);
    assert_eq!(ask(&mut open).unwrap().status, 200);
    fail(&server);
    asked_again(&server);
    assert_eq!(ask(&mut open).unwrap().status, 200, "stale is not ended");
    assert_eq!(edge.status(&alice), Some(200));
    let answer = ask_until_refused(&mut open);
    assert_eq!(answer.status, 503);
    refused_with(&edge, &answer, "certificate.status_unknown");
    assert_eq!(edge.status(&alice), None);
    let ready = edge.gateway.admin("GET", "/ready").text();
    assert!(ready.contains("CN=clients"), "{ready}");
    // And it comes back.
    serve(&server, edge.clients.list(&[], 2, 600));
    eventually("the new list", || {
        (edge.status(&alice) == Some(200)).then_some(())
    });
    let status = edge.gateway.admin("GET", "/status").json();
    let list = &status["listeners"]["public"]["revocation_lists"][0];
    assert_eq!(list["last_error"], Value::Null, "{status}");
}

#[test]
fn without_any_list_nobody_is_let_in_unless_the_operator_says_so() {
    let down = serving(Vec::new());
    fail(&down);
    for (policy, expected) in [("refuse", None), ("allow", Some(200))] {
        let edge = edge(
            Authority::new("clients"),
            json!({
                "distribution_points": {"urls": [format!("{}/ca.crl", down.url())], "wait": "200ms"},
                "unknown_status": policy,
            }),
        );
        let alice = edge.clients.numbered(7, |_| {});
        eventually("a fetch", || (!down.seen().is_empty()).then_some(()));
        let ready = edge.gateway.admin("GET", "/ready");
        let expected_ready = if policy == "refuse" { 503 } else { 200 };
        assert_eq!(ready.status, expected_ready, "{}", ready.text());
        eventually(policy, || {
            let status = edge.status(&alice);
            assert!(status != Some(200) || expected == Some(200));
            (status == expected).then_some(())
        });
    }
}

#[test]
fn a_new_connection_waits_for_a_list_that_is_being_fetched() {
    let clients = Arc::new(Authority::new("clients"));
    let list = clients.list(&[8], 1, 600);
    let slow = Upstream::with(move |_, stream| {
        std::thread::park_timeout(Duration::from_millis(700));
        let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", list.len());
        let _ = stream.write_all(head.as_bytes());
        let _ = stream.write_all(&list);
        Next::Close
    });
    let edge = edge(
        clients,
        json!({"distribution_points": {"from_certificates": [format!("{}/crl/", slow.url())], "wait": "5s"}}),
    );
    let named = |serial, path: &str| {
        let url = format!("{}{path}", slow.url());
        edge.clients.numbered(serial, |params| {
            params.crl_distribution_points = vec![rcgen::CrlDistributionPoint { uris: vec![url] }];
        })
    };
    // Both are let through the handshake; who is on the list is told so by the first request.
    assert_eq!(edge.status(&named(7, "/crl/ca.crl")), Some(200));
    assert_eq!(edge.status(&named(8, "/crl/ca.crl")), None);
    assert!(slow.seen().iter().all(|seen| seen.path() == "/crl/ca.crl"));
    // What is not allowed is never fetched, whatever a certificate says. A list of the same authority
    // is in force by now, and it speaks for these too.
    for path in ["/admin", "/crl/../admin", "/crl/%2e%2e/admin"] {
        let _ = edge.status(&named(9, path));
    }
    assert!(slow.seen().iter().all(|seen| seen.path() == "/crl/ca.crl"));
}

#[test]
fn a_fetched_list_survives_a_restart_on_disk() {
    let clients = Arc::new(Authority::new("clients"));
    let server = serving(clients.list(&[7], 5, 600));
    let folder = tempfile::TempDir::new().unwrap();
    let url = format!("{}/ca.crl", server.url());
    let points = json!({"distribution_points": {
        "urls": [url], "store": folder.path(), "refresh": "1s", "wait": "100ms",
    }});
    let first = edge(clients, points.clone());
    let (alice, bob) = (
        first.clients.numbered(7, |_| {}),
        first.clients.numbered(8, |_| {}),
    );
    eventually("the list", || {
        (first.status(&bob) == Some(200) && std::fs::read_dir(folder.path()).unwrap().count() == 1)
            .then_some(())
    });
    let clients = Arc::clone(&first.clients);
    drop(first);
    fail(&server);
    let second = edge(clients, points);
    eventually("the stored list", || {
        (second.status(&bob) == Some(200)).then_some(())
    });
    assert_eq!(second.status(&alice), None);
    // It also remembers how far the numbers were.
    serve(&server, second.clients.list(&[], 4, 600));
    eventually("the older list", || {
        second.metrics().contains("outcome=\"older\"").then_some(())
    });
    assert_eq!(second.status(&alice), None);
}

/// A real responder: `openssl ocsp`, with what it knows in a file. It reads that at its start, so every
/// change is another process.
struct Responder {
    folder: tempfile::TempDir,
    port: u16,
    child: Option<Child>,
}

impl Responder {
    fn new(clients: &Authority) -> Option<Self> {
        program("openssl")?;
        let folder = tempfile::TempDir::new().unwrap();
        std::fs::write(folder.path().join("ca.pem"), &clients.pem).unwrap();
        std::fs::write(folder.path().join("signer.pem"), &clients.pem).unwrap();
        std::fs::write(folder.path().join("signer.key"), clients.key_pem()).unwrap();
        let port = std::net::TcpListener::bind("127.0.0.1:0")
            .unwrap()
            .local_addr()
            .unwrap()
            .port();
        Some(Self {
            folder,
            port,
            child: None,
        })
    }

    fn url(&self) -> String {
        format!("http://127.0.0.1:{}/", self.port)
    }

    fn signer(&self, certificate: &str, key: &str) {
        std::fs::write(self.folder.path().join("signer.pem"), certificate).unwrap();
        std::fs::write(self.folder.path().join("signer.key"), key).unwrap();
    }

    fn stop(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    /// Starts anew with these serial numbers, good or revoked; what is not named is unknown.
    fn start(&mut self, known: &[(u64, bool)]) {
        self.stop();
        let line = |(serial, good): &(u64, bool)| {
            let (flag, at) = if *good {
                ("V", "")
            } else {
                ("R", "200101000000Z")
            };
            format!("{flag}\t401231235959Z\t{at}\t{serial:02X}\tunknown\t/CN={serial}\n")
        };
        let index: String = known.iter().map(line).collect();
        let path = |name: &str| self.folder.path().join(name);
        std::fs::write(path("index.txt"), index).unwrap();
        let mut child = Command::new("openssl")
            .arg("ocsp")
            .args(["-port", &self.port.to_string(), "-index"])
            .arg(path("index.txt"))
            .arg("-CA")
            .arg(path("ca.pem"))
            .arg("-rsigner")
            .arg(path("signer.pem"))
            .arg("-rkey")
            .arg(path("signer.key"))
            .args(["-nmin", "10"])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        // It says when it listens. A probe over the network would end it: after one request that it
        // cannot read it takes no other.
        let mut line = String::new();
        let out = child.stdout.as_mut().unwrap();
        std::io::BufReader::new(out).read_line(&mut line).unwrap();
        assert!(line.starts_with("ACCEPT"), "{line:?}");
        self.child = Some(child);
    }
}

impl Drop for Responder {
    fn drop(&mut self) {
        self.stop();
    }
}

fn with_ocsp(clients: Arc<Authority>, responder: &Responder, mode: &str, more: Value) -> Edge {
    let mut ocsp = json!({
        "mode": mode, "responder": responder.url(), "minimum": "1s", "maximum": "2s",
    });
    for (key, value) in more.as_object().unwrap() {
        ocsp[key] = value.clone();
    }
    edge(clients, json!({"ocsp": ocsp}))
}

#[test]
fn a_real_responder_decides_and_is_asked_again_when_its_answer_ends() {
    let clients = Arc::new(Authority::new("clients"));
    let Some(mut responder) = Responder::new(&clients) else {
        return;
    };
    responder.start(&[(7, true), (8, true), (9, false)]);
    let edge = with_ocsp(clients, &responder, "require", json!({"nonce": true}));
    let leaf = |serial| edge.clients.numbered(serial, |_| {});
    let (alice, bob) = (leaf(7), leaf(8));
    let (mut open, mut neighbour) = (edge.open(&alice), edge.open(&bob));
    let mut h2 = edge.open_h2(&alice);
    assert_eq!(ask(&mut open).unwrap().status, 200);
    assert_eq!(ask(&mut neighbour).unwrap().status, 200);
    h2.headers(1, &H2_GET, true);
    assert_eq!(h2.outcome(1), Outcome::Status(200));
    // Revoked, and unknown to the one who should know: the first request is told.
    for (serial, code) in [
        (9, "certificate.revoked"),
        (10, "certificate.status_unknown"),
    ] {
        let mut connection = edge.open(&leaf(serial));
        let answer = ask(&mut connection).expect("an answer");
        refused_with(&edge, &answer, code);
        assert!(connection.closes());
    }
    responder.start(&[(7, false), (8, true)]);
    let answer = ask_until_refused(&mut open);
    assert_eq!(answer.status, 401);
    refused_with(&edge, &answer, "certificate.revoked");
    while h2.read().is_some() {}
    for _ in 0..3 {
        assert_eq!(ask(&mut neighbour).unwrap().status, 200);
    }
    let text = edge.metrics();
    for word in ["good", "revoked", "unknown"] {
        let series =
            format!("portcullis_ocsp_answers_total{{listener=\"public\",outcome=\"{word}\"}}");
        assert!(text.contains(&series), "{text}");
    }
}

#[test]
fn a_silent_responder_refuses_where_it_is_required_and_only_there() {
    let clients = Arc::new(Authority::new("clients"));
    let Some(mut responder) = Responder::new(&clients) else {
        return;
    };
    // Nobody listens there.
    let required = with_ocsp(clients, &responder, "require", json!({"timeout": "500ms"}));
    let alice = required.clients.numbered(7, |_| {});
    let mut connection = required.open(&alice);
    let answer = ask(&mut connection).expect("an answer");
    assert_eq!(answer.status, 503);
    refused_with(&required, &answer, "certificate.status_unknown");

    let preferred = with_ocsp(
        Arc::clone(&required.clients),
        &responder,
        "prefer",
        json!({"timeout": "500ms"}),
    );
    assert_eq!(preferred.status(&alice), Some(200));
    let mut open = preferred.open(&alice);
    assert_eq!(ask(&mut open).unwrap().status, 200);
    // Once it speaks again it is heard, also about connections that it missed.
    responder.start(&[(7, false)]);
    let answer = ask_until_refused(&mut open);
    refused_with(&preferred, &answer, "certificate.revoked");
}

#[test]
fn a_hanging_responder_delays_nobody_but_those_it_is_asked_about() {
    let hole = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}/", hole.local_addr().unwrap());
    let edge = edge(
        Authority::new("clients"),
        json!({"mode": "optional", "ocsp": {"mode": "require", "responder": url, "timeout": "2s"}}),
    );
    let alice = edge.clients.numbered(7, |_| {});
    let mut waiting: Vec<Connection> = (0..20).map(|_| edge.open(&alice)).collect();
    for connection in &mut waiting {
        connection.send(request("GET", "/a", &[]));
    }
    let begun = Instant::now();
    let plain = client_config(&edge.servers, None, &[b"http/1.1"]);
    let mut other = edge.open_with(&plain).unwrap();
    assert_eq!(ask(&mut other).unwrap().status, 200);
    assert!(begun.elapsed() < Duration::from_millis(1500));
    for mut connection in waiting {
        assert_eq!(connection.answer().unwrap().status, 503);
    }
    // One question for all of them.
    hole.set_nonblocking(true).unwrap();
    let questions = std::iter::from_fn(|| hole.accept().ok()).count();
    assert!(questions <= 2, "{questions} questions for one certificate");
}

/// A responder's own certificate.
fn appointed(by: &Authority, usage: rcgen::ExtendedKeyUsagePurpose) -> Leaf {
    by.numbered(500, |params| params.extended_key_usages = vec![usage])
}

#[test]
fn answers_are_believed_only_from_the_authority_or_whom_it_has_appointed() {
    use rcgen::ExtendedKeyUsagePurpose::{ClientAuth, OcspSigning};
    let clients = Arc::new(Authority::new("clients"));
    let Some(mut responder) = Responder::new(&clients) else {
        return;
    };
    let (impostor, stranger) = (Authority::new("clients"), Authority::new("strangers"));
    for (what, signer, expected) in [
        ("an appointed one", appointed(&clients, OcspSigning), 200),
        (
            "one without the purpose",
            appointed(&clients, ClientAuth),
            503,
        ),
        ("a stranger's", appointed(&stranger, OcspSigning), 503),
        ("an impostor's", appointed(&impostor, OcspSigning), 503),
    ] {
        responder.signer(&signer.chain_pem, &signer.key_pem);
        responder.start(&[(7, true)]);
        let edge = with_ocsp(Arc::clone(&clients), &responder, "require", json!({}));
        let alice = edge.clients.numbered(7, |_| {});
        assert_eq!(edge.status(&alice), Some(expected), "{what}");
    }
    // The authority's own name under another key.
    responder.signer(&impostor.pem, &impostor.key_pem());
    responder.start(&[(7, true)]);
    let edge = with_ocsp(clients, &responder, "require", json!({}));
    let alice = edge.clients.numbered(7, |_| {});
    assert_eq!(edge.status(&alice), Some(503));
}
