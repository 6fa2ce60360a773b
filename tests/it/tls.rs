//! TLS and mutual TLS: who may connect, what certificates say, and changes under way.

use std::io::Write;
use std::time::Duration;

use rcgen::{CertificateParams, DnType, ExtendedKeyUsagePurpose, SanType};
use serde_json::json;

use crate::support::client::{Answer, Connection, request};
use crate::support::eventually;
use crate::support::gateway::{Builder, Gateway};
use crate::support::pki::{Authority, Leaf, client_config};
use crate::support::upstream::Upstream;

struct Edge {
    authority: Authority,
    clients: Authority,
    upstream: Upstream,
    gateway: Gateway,
}

fn edge(mode: &str, change: impl FnOnce(Builder) -> Builder) -> Edge {
    let authority = Authority::new("servers");
    let clients = Authority::new("clients");
    let upstream = Upstream::start();
    let builder = Builder::open(&upstream);
    let folder = builder.folder.path().to_owned();
    authority
        .server(&["api.example.test"])
        .write(&folder, "api");
    authority
        .server(&["other.example.test", "*.wild.test"])
        .write(&folder, "other");
    builder.file("clients.pem", &clients.pem);
    let builder = builder.with(|document| {
        let mut tls = json!({
            "certificates": [{"chain": "api.pem", "key": "api.key"}, {"chain": "other.pem", "key": "other.key"}],
        });
        if mode != "none" {
            tls["client_certificates"] = json!({"mode": mode, "authorities": ["clients.pem"]});
        }
        document["listeners"]["public"] = json!({"address": "127.0.0.1:0", "tls": tls});
    });
    let gateway = change(builder).start();
    Edge {
        authority,
        clients,
        upstream,
        gateway,
    }
}

impl Edge {
    fn connect(&self, name: &str, identity: Option<&Leaf>) -> std::io::Result<Connection> {
        let config = client_config(&self.authority, identity, &[b"http/1.1"]);
        Connection::tls(self.gateway.listener("public"), name, &config)
    }

    /// One request over TLS; `None` when the handshake or the first answer fails.
    fn get(&self, identity: Option<&Leaf>) -> Option<Answer> {
        let mut connection = self.connect("api.example.test", identity).ok()?;
        connection
            .write_all(request("GET", "/a", &[]).as_bytes())
            .ok()?;
        connection.answer()
    }
}

#[test]
fn certificates_are_chosen_by_server_name() {
    let edge = edge("none", |b| b);
    for name in ["api.example.test", "other.example.test", "x.wild.test"] {
        let mut connection = edge.connect(name, None).unwrap();
        connection.send(request("GET", "/a", &[("host", name)]));
        assert_eq!(connection.answer().unwrap().status, 200, "{name}");
    }
    assert!(
        edge.connect("nobody.example.test", None).is_err(),
        "a name we have no certificate for"
    );
    assert_eq!(
        edge.upstream.last().header("x-forwarded-proto"),
        Some("https")
    );
}

#[test]
fn required_client_certificates_are_required_and_optional_ones_must_verify() {
    let stranger = Authority::new("strangers").client("mallory", None);
    for (mode, without) in [("required", false), ("optional", true)] {
        let edge = edge(mode, |b| b);
        let good = edge.clients.client("alice", None);
        assert_eq!(edge.get(Some(&good)).map(|a| a.status), Some(200), "{mode}");
        assert_eq!(edge.get(None).is_some(), without, "{mode}: no certificate");
        assert!(
            edge.get(Some(&stranger)).is_none(),
            "{mode}: another authority's certificate"
        );
        let mut expired = CertificateParams::new(Vec::new()).unwrap();
        expired.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        expired.not_before = rcgen::date_time_ymd(2020, 1, 1);
        expired.not_after = rcgen::date_time_ymd(2020, 1, 2);
        assert!(
            edge.get(Some(&edge.clients.sign(expired))).is_none(),
            "{mode}: expired"
        );
        let mut server = CertificateParams::new(Vec::new()).unwrap();
        server.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        assert!(
            edge.get(Some(&edge.clients.sign(server))).is_none(),
            "{mode}: a server's certificate"
        );
    }
}

/// Routes that take certificates, and tell the upstream who they are.
fn with_certificates(builder: Builder) -> Builder {
    builder.with(|document| {
        for route in document["routes"].as_array_mut().unwrap() {
            route["authn"] = json!(["client_certificate"]);
        }
        document["identity"] = json!({"headers": {"x-user-id": "subject"}});
    })
}

#[test]
fn a_client_certificate_is_an_identity() {
    let edge = edge("optional", with_certificates);
    let spiffe = edge
        .clients
        .client("alice", Some("spiffe://example.test/payments"));
    assert_eq!(edge.get(Some(&spiffe)).unwrap().status, 200);
    assert_eq!(
        edge.upstream.last().header("x-user-id"),
        Some("spiffe://example.test/payments")
    );
    let anonymous = edge.get(None).unwrap();
    assert_eq!(anonymous.status, 401);
    assert_eq!(
        anonymous.header("www-authenticate"),
        None,
        "a bearer token does not help here"
    );
}

#[test]
fn hostile_names_in_certificates_make_no_header_and_no_other_identity() {
    let edge = edge("optional", with_certificates);
    let named = |subject: &str, uris: &[&str]| {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.distinguished_name.push(DnType::CommonName, subject);
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        params.subject_alt_names = uris
            .iter()
            .map(|u| SanType::URI((*u).try_into().unwrap()))
            .collect();
        edge.clients.sign(params)
    };
    for (leaf, forbidden) in [
        (named("alice\r\nx-user-id: root", &[]), "root\r\n"),
        (named("spiffe://example.test/admin", &[]), "\nnothing"),
        (
            named("x", &["spiffe://example.test/a", "spiffe://example.test/b"]),
            "\nnothing",
        ),
        (named("a\",CN=admin", &[]), "\nnothing"),
    ] {
        if let Some(answer) = edge.get(Some(&leaf))
            && answer.status == 200
        {
            let id = edge.upstream.last().header("x-user-id").unwrap().to_owned();
            assert!(
                !id.starts_with("spiffe://") && !id.contains(forbidden),
                "{id:?}"
            );
            let count = edge
                .upstream
                .last()
                .headers
                .iter()
                .filter(|(n, _)| n == "x-user-id")
                .count();
            assert_eq!(count, 1);
        }
    }
}

#[test]
fn a_certificate_changes_on_disk_without_touching_open_connections() {
    let edge = edge("none", |b| b);
    let mut open = edge.connect("api.example.test", None).unwrap();
    open.send(request("GET", "/a", &[]));
    assert_eq!(open.answer().unwrap().status, 200);
    // A certificate of another authority: new connections see it as soon as the file is noticed.
    let fresh = Authority::new("fresh");
    fresh
        .server(&["api.example.test"])
        .write(edge.gateway.folder.path(), "api");
    let config = client_config(&fresh, None, &[b"http/1.1"]);
    eventually("the new certificate", || {
        Connection::tls(edge.gateway.listener("public"), "api.example.test", &config).ok()
    });
    open.send(request("GET", "/a", &[]));
    assert_eq!(
        open.answer().unwrap().status,
        200,
        "the open connection was touched"
    );
    // A broken file changes nothing.
    std::fs::write(edge.gateway.folder.path().join("api.pem"), "broken").unwrap();
    assert!(edge.gateway.admin("POST", "/reload").status >= 400);
    assert!(Connection::tls(edge.gateway.listener("public"), "api.example.test", &config).is_ok());
}

#[test]
fn a_session_does_not_outlive_the_authorities_it_was_made_under() {
    let edge = edge("required", |b| b);
    let alice = edge.clients.client("alice", None);
    // One client configuration, so that it keeps and offers its tickets.
    let config = client_config(&edge.authority, Some(&alice), &[b"http/1.1"]);
    let address = edge.gateway.listener("public");
    for _ in 0..2 {
        let mut connection = Connection::tls(address, "api.example.test", &config).unwrap();
        connection.send(request("GET", "/a", &[]));
        assert_eq!(connection.answer().unwrap().status, 200);
    }
    std::fs::write(
        edge.gateway.folder.path().join("clients.pem"),
        Authority::new("others").pem,
    )
    .unwrap();
    let answer = edge.gateway.admin("POST", "/reload");
    assert_eq!(answer.status, 200, "{}", answer.text());
    let after = Connection::tls(address, "api.example.test", &config)
        .ok()
        .and_then(|mut connection| {
            connection.send(request("GET", "/a", &[]));
            connection.answer()
        });
    assert!(
        after.is_none(),
        "a ticket of the old authorities opened a session: {after:?}"
    );
}

#[test]
fn junk_and_silence_on_the_tls_port_do_not_starve_good_clients() {
    let edge = edge("none", |builder| {
        builder.with(|document| {
            document["listeners"]["public"]["bounds"] = json!({"handshake_timeout": "1s"});
        })
    });
    let address = edge.gateway.listener("public");
    let mut silent = Vec::new();
    for index in 0..200 {
        let mut stream = std::net::TcpStream::connect(address).unwrap();
        stream
            .set_read_timeout(Some(Duration::from_secs(10)))
            .unwrap();
        if index % 2 == 0 {
            stream
                .write_all(b"GET / HTTP/1.1\r\nHost: plain\r\n\r\n")
                .unwrap();
        }
        silent.push(stream);
    }
    assert_eq!(edge.get(None).map(|a| a.status), Some(200));
    // The silent ones are closed within the handshake timeout.
    let mut last = silent.pop().unwrap();
    let mut sink = Vec::new();
    let _ = std::io::Read::read_to_end(&mut last, &mut sink);
}

#[test]
fn unusable_files_do_not_load_and_never_fall_back_to_public_authorities() {
    let upstream = Upstream::start();
    for (what, file) in [
        ("missing", None),
        ("empty", Some("")),
        (
            "broken",
            Some("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"),
        ),
    ] {
        let mut gateway = Builder::open(&upstream).start();
        Authority::new("servers")
            .server(&["api.example.test"])
            .write(gateway.folder.path(), "api");
        if let Some(text) = file {
            std::fs::write(gateway.folder.path().join("clients.pem"), text).unwrap();
        }
        let answer = gateway.reload(|document| {
            document["listeners"]["public"] = json!({"address": "127.0.0.1:0", "tls": {
                "certificates": [{"chain": "api.pem", "key": "api.key"}],
                "client_certificates": {"mode": "required", "authorities": ["clients.pem"]},
            }});
        });
        assert!(answer.status >= 400, "{what}: loaded");
        assert!(
            answer.text().contains("clients.pem"),
            "{what}: {}",
            answer.text()
        );
        assert_eq!(gateway.get("/a", &[]).status, 200);
    }
}

fn numbered(authority: &Authority, serial: u64) -> Leaf {
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.serial_number = Some(rcgen::SerialNumber::from(serial));
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    authority.sign(params)
}

#[test]
fn revocation_lists_are_taken_up_and_doubt_refuses() {
    // The lists need the authority's key, which the edge makes; so it starts without them.
    let edge = edge("required", |b| b);
    let (alice, bob) = (numbered(&edge.clients, 7), numbered(&edge.clients, 8));
    let reload = |lists: &str| {
        std::fs::write(edge.gateway.folder.path().join("revoked.pem"), lists).unwrap();
        edge.gateway.admin("POST", "/reload")
    };
    let passes = |leaf: &Leaf| {
        edge.get(Some(leaf))
            .is_some_and(|answer| answer.status == 200)
    };
    assert!(passes(&alice) && passes(&bob));

    let mut document = edge.gateway.document.clone();
    document["listeners"]["public"]["tls"]["client_certificates"]["revocation_lists"] =
        json!(["revoked.pem"]);
    std::fs::write(
        edge.gateway.folder.path().join("revoked.pem"),
        edge.clients.revocations(&[7], 2120),
    )
    .unwrap();
    std::fs::write(&edge.gateway.config, document.to_string()).unwrap();
    let answer = edge.gateway.admin("POST", "/reload");
    assert_eq!(answer.status, 200, "{}", answer.text());
    assert!(!passes(&alice), "a revoked certificate was let in");
    assert!(passes(&bob));

    // Watched: without any reload by hand, the other one.
    std::fs::write(
        edge.gateway.folder.path().join("revoked.pem"),
        edge.clients.revocations(&[8], 2120),
    )
    .unwrap();
    eventually("the new list", || {
        (passes(&alice) && !passes(&bob)).then_some(())
    });

    // A file that cannot be used changes nothing, and the answer names it.
    for broken in [
        "",
        "broken",
        "-----BEGIN X509 CRL-----\nAAAA\n-----END X509 CRL-----\n",
    ] {
        let answer = reload(broken);
        assert!(
            answer.status >= 400 && answer.text().contains("revoked.pem"),
            "{broken:?}: {}",
            answer.text()
        );
        assert!(passes(&alice) && !passes(&bob), "{broken:?}");
    }
    // Lists that say nothing any more, or say it for somebody else, let nobody in.
    let impostor = Authority::new("clients");
    for (what, list) in [
        ("stale", edge.clients.revocations(&[8], 2021)),
        ("forged", impostor.revocations(&[], 2120)),
        ("another authority's", edge.authority.revocations(&[], 2120)),
    ] {
        let answer = reload(&list);
        assert_eq!(answer.status, 200, "{what}: {}", answer.text());
        assert!(!passes(&alice) && !passes(&bob), "{what}");
    }
    let metrics = edge.gateway.admin("GET", "/metrics").text();
    assert!(
        metrics.contains("fault=\"revocation_unknown\"")
            && metrics.contains("fault=\"revoked_certificate\"")
    );
    assert_eq!(reload(&edge.clients.revocations(&[], 2120)).status, 200);
    assert!(passes(&alice) && passes(&bob));
}

#[test]
fn an_intermediate_without_a_list_makes_chains_through_it_fail() {
    let edge = edge("required", |b| b);
    let below = edge.clients.under("below", |_| {});
    let mut leaf = numbered(&below, 7);
    leaf.chain_pem.push_str(&below.pem);
    assert!(edge.get(Some(&leaf)).is_some());
    let lists = [
        (edge.clients.revocations(&[], 2120), false),
        (below.revocations(&[], 2120), false),
        (
            edge.clients.revocations(&[], 2120) + &below.revocations(&[], 2120),
            true,
        ),
        (
            edge.clients.revocations(&[], 2120) + &below.revocations(&[7], 2120),
            false,
        ),
    ];
    let mut document = edge.gateway.document.clone();
    document["listeners"]["public"]["tls"]["client_certificates"]["revocation_lists"] =
        json!(["revoked.pem"]);
    std::fs::write(&edge.gateway.config, document.to_string()).unwrap();
    for (index, (list, good)) in lists.iter().enumerate() {
        std::fs::write(edge.gateway.folder.path().join("revoked.pem"), list).unwrap();
        let answer = edge.gateway.admin("POST", "/reload");
        assert_eq!(answer.status, 200, "{}", answer.text());
        assert_eq!(edge.get(Some(&leaf)).is_some(), *good, "{index}");
    }
}

/// A service that demands a certificate of `clients`, and tells the distinct leaves that it was shown.
fn demanding(
    authority: &Authority,
    clients: &Authority,
) -> (String, std::sync::mpsc::Receiver<Vec<u8>>) {
    serving(&authority.server(&["orders.test"]), clients)
}

/// The same with this certificate.
fn serving(leaf: &Leaf, clients: &Authority) -> (String, std::sync::mpsc::Receiver<Vec<u8>>) {
    use std::sync::Arc;
    let mut roots = rustls::RootCertStore::empty();
    for certificate in rustls_pem(&clients.pem) {
        roots.add(certificate).unwrap();
    }
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let verifier = rustls::server::WebPkiClientVerifier::builder_with_provider(
        Arc::new(roots),
        Arc::clone(&provider),
    )
    .build()
    .unwrap();
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_client_cert_verifier(verifier)
        .with_single_cert(leaf.chain(), leaf.key())
        .unwrap();
    let config = Arc::new(config);
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("https://{}", listener.local_addr().unwrap());
    let (shown, seen) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let mut stream = stream;
            let _ = stream.set_read_timeout(Some(Duration::from_secs(10)));
            let mut session = rustls::ServerConnection::new(Arc::clone(&config)).unwrap();
            let mut tls = rustls::Stream::new(&mut session, &mut stream);
            let mut head = Vec::new();
            let mut byte = [0];
            while !head.ends_with(b"\r\n\r\n")
                && matches!(std::io::Read::read(&mut tls, &mut byte), Ok(1))
            {
                head.push(byte[0]);
            }
            if head.ends_with(b"\r\n\r\n") {
                // Before the answer: whoever has that finds this.
                let leaf = tls
                    .conn
                    .peer_certificates()
                    .and_then(|chain| chain.first())
                    .map(|leaf| leaf.to_vec());
                let _ = shown.send(leaf.unwrap_or_default());
                let _ = tls.write_all(
                    b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok",
                );
                let _ = tls.flush();
            }
        }
    });
    (url, seen)
}

fn rustls_pem(pem: &str) -> Vec<rustls::pki_types::CertificateDer<'static>> {
    use rustls::pki_types::pem::PemObject;
    rustls::pki_types::CertificateDer::pem_slice_iter(pem.as_bytes())
        .map(Result::unwrap)
        .collect()
}

#[test]
fn an_upstream_that_demands_our_certificate_gets_it() {
    let (services, callers) = (Authority::new("services"), Authority::new("callers"));
    let ours = callers.client("portcullis", Some("spiffe://example.test/portcullis"));
    let theirs = Authority::new("strangers").client("portcullis", None);
    let (url, shown) = demanding(&services, &callers);
    let upstream = Upstream::start();
    let start = |identity: Option<&Leaf>, name: &str, trusted: &Authority| {
        let builder = Builder::open(&upstream);
        builder.file("services.pem", &trusted.pem);
        let mut tls = json!({"authorities": ["services.pem"], "server_name": name});
        if let Some(leaf) = identity {
            leaf.write(builder.folder.path(), "ours");
            tls["certificate"] = json!("ours.pem");
            tls["key"] = json!("ours.key");
        }
        builder
            .with(|document| {
                document["upstreams"]["main"] = json!({"endpoints": [url.clone()], "tls": tls})
            })
            .start()
    };
    let gateway = start(Some(&ours), "orders.test", &services);
    let answer = gateway.get("/a", &[]);
    assert_eq!((answer.status, answer.text().as_str()), (200, "ok"));
    assert_eq!(
        shown.recv_timeout(Duration::from_secs(10)).unwrap(),
        ours.chain()[0].to_vec()
    );
    // Without one, with a stranger's, for another name, of an authority we do not believe: nothing.
    for (what, gateway) in [
        ("no certificate", start(None, "orders.test", &services)),
        (
            "a stranger's",
            start(Some(&theirs), "orders.test", &services),
        ),
        (
            "another name",
            start(Some(&ours), "payments.test", &services),
        ),
        (
            "another authority",
            start(Some(&ours), "orders.test", &callers),
        ),
    ] {
        let answer = gateway.get("/a", &[]);
        assert_eq!(answer.status, 502, "{what}: {}", answer.text());
        assert!(shown.try_recv().is_err(), "{what}");
    }
}

#[test]
fn an_upstream_whose_certificate_was_revoked_is_not_talked_to() {
    let (services, callers) = (Authority::new("services"), Authority::new("callers"));
    let ours = callers.client("portcullis", None);
    let (url, shown, serial) = {
        let leaf = services.sign({
            let mut params = CertificateParams::new(vec!["orders.test".to_owned()]).unwrap();
            params.serial_number = Some(rcgen::SerialNumber::from(7u64));
            params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
            params
        });
        let (url, shown) = serving(&leaf, &callers);
        (url, shown, 7)
    };
    let upstream = Upstream::start();
    for (revoked, until, status) in [(8, 2120, 200), (serial, 2120, 502), (8, 2021, 502)] {
        let builder = Builder::open(&upstream);
        builder.file("services.pem", &services.pem);
        builder.file("revoked.pem", services.revocations(&[revoked], until));
        ours.write(builder.folder.path(), "ours");
        let gateway = builder
            .with(|document| {
                document["upstreams"]["main"] = json!({"endpoints": [url.clone()], "tls": {
                    "authorities": ["services.pem"], "server_name": "orders.test",
                    "revocation_lists": ["revoked.pem"],
                    "certificate": "ours.pem", "key": "ours.key",
                }});
            })
            .start();
        let answer = gateway.get("/a", &[]);
        assert_eq!(
            answer.status,
            status,
            "{revoked} {until}: {}",
            answer.text()
        );
        assert_eq!(shown.try_recv().is_ok(), status == 200);
    }
}
