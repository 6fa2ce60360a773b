//! Published vulnerabilities of other gateways and of the libraries below us, as tests of ours:
//! tokens, key sets, certificates, fetches, policies. The number is the one of the report.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::time::{Duration, Instant};

use portcullis::run::{Options, Process};
use rcgen::{
    CertificateParams, DnType, ExtendedKeyUsagePurpose, GeneralSubtree, NameConstraints, SanType,
};
use serde_json::{Value, json};

use crate::support::client::{Answer, Connection, request};
use crate::support::eventually;
use crate::support::gateway::{Builder, Gateway, World};
use crate::support::issuer::{Behaviour, Issuer, Key, b64, now};
use crate::support::pki::{Authority, Leaf, client_config};
use crate::support::upstream::Upstream;

/// Asks for keys as often as it may, and does not slow down addresses that fail.
fn quick(builder: Builder) -> Builder {
    builder.with(|document| {
        document["authentication_failures"] = json!({"enabled": false});
        document["issuers"]["main"]["refresh"] =
            json!({"interval": "1s", "minimum": "1s", "cooldown": "1s"});
    })
}

/// A token whose `kid` the issuer does not have.
fn unknown(world: &World) -> String {
    let mut key = world.key.clone();
    key.kid = format!("{:x}", rand::random::<u64>());
    key.token(&world.issuer.claims("mallory"))
}

/// Lets the issuer behave like this until it was asked, while a good caller goes on.
#[track_caller]
fn through_a_fetch(world: &World, behaviour: &Behaviour) {
    let token = world.token("alice");
    world.issuer.behave(behaviour.clone());
    let before = world.issuer.fetches();
    eventually("a fetch", || {
        assert!(matches!(
            world.gateway.bearer("/a", &unknown(world)).status,
            401 | 503
        ));
        assert_eq!(
            world.gateway.bearer("/a", &token).status,
            200,
            "{behaviour:?}"
        );
        (world.issuer.fetches() > before).then_some(())
    });
    assert_eq!(
        world.gateway.bearer("/a", &world.token("bob")).status,
        200,
        "{behaviour:?}"
    );
}

/// Envoy: the token filter crashed when the fetch of a key set ended while requests waited for it.
#[test]
fn cve_2025_64527_requests_wait_for_a_fetch_that_hangs() {
    let world = World::with(quick);
    world.issuer.behave(Behaviour::Hang);
    let (one, two) = (unknown(&world), unknown(&world));
    std::thread::scope(|scope| {
        for index in 0..40 {
            let (one, two, world) = (&one, &two, &world);
            scope.spawn(move || {
                let first = format!("Bearer {one}");
                let second = format!("Bearer {two}");
                let mut headers = vec![("authorization", first.as_str())];
                if index % 2 == 0 {
                    headers.push(("authorization", second.as_str()));
                }
                let status = world.gateway.get("/a", &headers).status;
                assert!(matches!(status, 400 | 401 | 503), "{status}");
            });
        }
    });
    assert!(world.upstream.seen().is_empty());
    world.issuer.behave(Behaviour::Good);
    assert_eq!(
        world.gateway.bearer("/a", &world.token("alice")).status,
        200
    );
}

/// Envoy: the token filter crashed when routes changed during the fetch.
#[test]
fn cve_2024_45809_routes_change_while_keys_are_fetched() {
    let mut world = World::with(quick);
    world.issuer.behave(Behaviour::Hang);
    let odd = unknown(&world);
    let address = world.gateway.address();
    let waiting: Vec<_> = (0..20)
        .map(|_| {
            let text = request("GET", "/a", &[("authorization", &format!("Bearer {odd}"))]);
            let mut connection = Connection::plain(address);
            connection.send(text);
            connection
        })
        .collect();
    for name in ["first", "second"] {
        let answer = world
            .gateway
            .reload(|document| document["routes"][0]["name"] = json!(name));
        assert_eq!(answer.status, 200, "{}", answer.text());
    }
    for mut connection in waiting {
        assert!(matches!(connection.answer().unwrap().status, 401 | 503));
    }
    assert_eq!(
        world.gateway.bearer("/a", &world.token("alice")).status,
        200
    );
}

/// Envoy: a client of its own crashed when the answer it was reading ended early.
#[test]
fn cve_2024_45810_the_issuer_breaks_off_in_the_middle() {
    let world = World::with(quick);
    through_a_fetch(&world, &Behaviour::Torn);
    through_a_fetch(&world, &Behaviour::Reset);
}

/// A gateway with mutual TLS whose only identity is the certificate.
struct Mutual {
    servers: Authority,
    clients: Authority,
    upstream: Upstream,
    gateway: Gateway,
}

fn mutual(subject: &str) -> Mutual {
    let (servers, clients) = (Authority::new("servers"), Authority::new("clients"));
    let upstream = Upstream::start();
    let builder = Builder::open(&upstream);
    servers
        .server(&["api.example.test"])
        .write(builder.folder.path(), "api");
    builder.file("clients.pem", &clients.pem);
    let gateway = builder
        .with(|document| {
            document["listeners"]["public"] = json!({"address": "127.0.0.1:0", "tls": {
                "certificates": [{"chain": "api.pem", "key": "api.key"}],
                "client_certificates": {"mode": "required", "authorities": ["clients.pem"]},
            }});
            document["client_certificate"] = json!({"subject": subject});
            for route in document["routes"].as_array_mut().unwrap() {
                route["authn"] = json!(["client_certificate"]);
            }
            document["identity"] = json!({"headers": {"x-user-id": "subject"}});
        })
        .start();
    Mutual {
        servers,
        clients,
        upstream,
        gateway,
    }
}

impl Mutual {
    fn get(&self, leaf: &Leaf) -> Option<Answer> {
        let config = client_config(&self.servers, Some(leaf), &[b"http/1.1"]);
        let mut connection =
            Connection::tls(self.gateway.listener("public"), "api.example.test", &config).ok()?;
        connection
            .write_all(request("GET", "/a", &[]).as_bytes())
            .ok()?;
        connection.answer()
    }
}

fn named(authority: &Authority, common_name: &str, names: Vec<SanType>) -> Leaf {
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params
        .distinguished_name
        .push(DnType::CommonName, common_name);
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    params.subject_alt_names = names;
    authority.sign(params)
}

/// Envoy: a name that holds a NUL matched what stands before it (66220: in the matcher; 47778: in
/// what was forwarded).
#[test]
fn cve_2025_66220_and_cve_2026_47778_a_name_does_not_end_at_nul() {
    let dns = |text: &str| SanType::DnsName(text.try_into().unwrap());
    let uri = |text: &str| SanType::URI(text.try_into().unwrap());
    for (subject, good, bad) in [
        ("dns", dns("ok.test"), dns("ok.test\0.evil.test")),
        (
            "uri",
            uri("https://ok.test/a"),
            uri("https://ok.test/a\0https://evil.test/"),
        ),
        (
            "spiffe",
            uri("spiffe://ok.test/a"),
            uri("spiffe://ok.test/a\0.evil"),
        ),
    ] {
        let mutual = mutual(subject);
        assert_eq!(
            mutual
                .get(&named(&mutual.clients, "x", vec![good]))
                .map(|a| a.status),
            Some(200),
            "{subject}"
        );
        let before = mutual.upstream.seen().len();
        let status = mutual
            .get(&named(&mutual.clients, "x", vec![bad]))
            .map(|answer| answer.status);
        assert!(matches!(status, None | Some(401)), "{subject}: {status:?}");
        assert_eq!(mutual.upstream.seen().len(), before, "{subject}");
    }
}

/// Envoy: text of a certificate went into a header as it was.
#[test]
fn cve_2023_27493_subjects_are_escaped_in_headers() {
    let mutual = mutual("subject_dn");
    for hostile in [
        "a\r\nx-user-id: root",
        "a\",CN=root",
        "a,CN=root",
        "a;Subject=\"root\"",
        "ü\u{202e}",
    ] {
        let Some(answer) = mutual.get(&named(&mutual.clients, hostile, vec![])) else {
            continue;
        };
        if answer.status != 200 {
            assert_eq!(answer.status, 401, "{hostile:?}");
            continue;
        }
        let seen = mutual.upstream.last();
        let ids: Vec<_> = seen
            .headers
            .iter()
            .filter(|(name, _)| name == "x-user-id")
            .collect();
        assert_eq!(ids.len(), 1, "{hostile:?}");
        let id = ids[0].1.as_str();
        assert!(
            id.is_ascii() && !id.contains("a,CN=root"),
            "{hostile:?}: {id:?}"
        );
        assert!(!id.contains("CN=a\""), "an unescaped quote: {id:?}");
    }
}

/// Envoy: the limiter crashed when the client had gone by the time it answered.
#[test]
fn cve_2026_26330_a_limit_is_reached_as_the_client_leaves() {
    let world = World::with(|builder| {
        builder.with(|document| {
            document["limits"] = json!({"each": {"by": "subject", "rate": "1/m", "burst": 1}});
            document["routes"][0]["limits"] = json!(["each"]);
        })
    });
    let token = world.token("alice");
    assert_eq!(world.gateway.bearer("/a", &token).status, 200);
    let text = request(
        "GET",
        "/a",
        &[("authorization", &format!("Bearer {token}"))],
    );
    for _ in 0..50 {
        let mut stream = TcpStream::connect(world.gateway.address()).unwrap();
        stream.write_all(text.as_bytes()).unwrap();
        drop(stream);
    }
    assert_eq!(world.gateway.bearer("/a", &token).status, 429);
    assert_eq!(world.gateway.bearer("/a", &world.token("bob")).status, 200);
}

/// Envoy: deeply nested JSON ended the process when it was taken apart.
#[test]
fn cve_2026_48042_nested_json_in_tokens_key_sets_and_data() {
    let mut world = World::with(quick);
    for depth in [200, 5_000] {
        let deep = format!("{}{}", "[".repeat(depth), "]".repeat(depth));
        let claims =
            world
                .issuer
                .claims("alice")
                .to_string()
                .replacen('{', &format!("{{\"x\":{deep},"), 1);
        let header = json!({"alg": "ES256", "kid": "k1", "typ": "at+jwt"}).to_string();
        let in_claims = world.key.token_raw(&header, &claims);
        let in_header = world
            .key
            .token_raw(&header.replacen('{', &format!("{{\"x\":{deep},"), 1), "{}");
        for token in [in_claims, in_header] {
            assert_eq!(
                world.gateway.bearer("/a", &token).status,
                401,
                "depth {depth}"
            );
        }
    }
    let deep =
        |open: &str, close: &str| format!("{}{}", open.repeat(100_000), close.repeat(100_000));
    through_a_fetch(&world, &Behaviour::Body(deep("[", "]")));
    through_a_fetch(
        &world,
        &Behaviour::Body(format!("{{\"keys\":{}}}", deep("{\"a\":[", "]}"))),
    );
    let name = "deep.json";
    let mut load = |text: String| {
        std::fs::write(world.gateway.folder.path().join(name), text).unwrap();
        let answer = world.gateway.reload(|document| {
            document["policies"]["gate"]["files"] = json!(["gate.rego", name]);
        });
        assert_eq!(
            world.gateway.bearer("/a", &world.token("alice")).status,
            200
        );
        answer.status
    };
    assert_eq!(load("{\"x\":[[[]]]}".to_owned()), 200);
    assert!(load(format!("{{\"x\":{}}}", deep("[", "]"))) >= 400);
    assert_eq!(load("{\"x\":[]}".to_owned()), 200);
    let rego = format!("package gate\nx := {}\n", deep("[", "]"));
    std::fs::write(world.gateway.folder.path().join("gate.rego"), rego).unwrap();
    assert!(world.gateway.admin("POST", "/reload").status >= 400);
    assert_eq!(
        world.gateway.bearer("/a", &world.token("alice")).status,
        200
    );
}

/// Envoy: a small compressed answer became a large one in memory.
#[test]
fn cve_2026_48044_compressed_key_sets_are_not_unpacked() {
    let world = World::with(quick);
    through_a_fetch(&world, &Behaviour::Compressed(10_000));
    assert!(
        world
            .gateway
            .admin("GET", "/metrics")
            .text()
            .contains("outcome=\"encoded\"")
    );
}

/// Pingora: what was kept for one host was given to another.
#[test]
fn cve_2026_2836_what_is_kept_for_one_route_is_not_believed_on_another() {
    let (key_a, key_b) = (Key::new("k", "ES256"), Key::new("k", "ES256"));
    let (a, b) = (Issuer::start(&[&key_a]), Issuer::start(&[&key_b]));
    let upstream = Upstream::start();
    let gateway = Builder::guarded(&upstream, &a)
        .policy(
            "package gate\n\ndefault allow := false\n\nallow if input.request.host == \"a.test\"\n",
        )
        .with(|document| {
            document["authentication_failures"] = json!({"enabled": false});
            let mut other = document["issuers"]["main"].clone();
            other["issuer"] = json!(b.url);
            document["issuers"]["other"] = other;
            let mut route = document["routes"][0].clone();
            route["name"] = json!("other");
            route["hosts"] = json!(["b.test"]);
            route["authn"] = json!(["other"]);
            document["routes"].as_array_mut().unwrap().push(route);
        })
        .start();
    let token = format!("Bearer {}", key_a.token(&a.claims("alice")));
    let get = |host: &str| {
        gateway
            .get("/x", &[("host", host), ("authorization", &token)])
            .status
    };
    for _ in 0..3 {
        assert_eq!(get("a.test"), 200, "its issuer and its policy");
        assert_eq!(get("b.test"), 401, "another issuer's route");
        assert_eq!(get("c.test"), 403, "the same route, another decision");
    }
}

/// APISIX: the key came from the configuration, and what to do with it from the token.
#[test]
fn cve_2026_39999_the_token_does_not_choose_the_algorithm() {
    let key = Key::new("k1", "RS256");
    let issuer = Issuer::start(&[&key]);
    let upstream = Upstream::start();
    let gateway = quick(Builder::guarded(&upstream, &issuer)).start();
    let jwk = key.jwk();
    let claims = issuer.claims("alice").to_string();
    for alg in ["HS256", "HS512", "none", "PS256", "ES256", "EdDSA", "RS384"] {
        let message = format!(
            "{}.{}",
            b64(json!({"alg": alg, "kid": "k1", "typ": "at+jwt"}).to_string()),
            b64(&claims)
        );
        for secret in [
            jwk.to_string(),
            jwk["n"].as_str().unwrap().to_owned(),
            String::new(),
        ] {
            let secret = aws_lc_rs::hmac::Key::new(aws_lc_rs::hmac::HMAC_SHA256, secret.as_bytes());
            for signature in [
                aws_lc_rs::hmac::sign(&secret, message.as_bytes())
                    .as_ref()
                    .to_vec(),
                key.sign(message.as_bytes()),
            ] {
                let token = format!("{message}.{}", b64(signature));
                assert_eq!(gateway.bearer("/a", &token).status, 401, "{alg}");
            }
        }
    }
    assert!(upstream.seen().is_empty());
    assert_eq!(
        gateway
            .bearer("/a", &key.token(&issuer.claims("alice")))
            .status,
        200
    );
}

/// APISIX: claims became header lines (31908), and headers of clients stayed beside ours (39998).
#[test]
fn cve_2026_31908_and_cve_2026_39998_identity_headers_are_ours_alone() {
    let world = World::with(|builder| {
        quick(builder)
            .with(|document| document["identity"] = json!({"headers": {"x-user-id": "subject"}}))
    });
    for subject in ["a\r\nx-user-id: root", "a\nb", "a\0b", "\u{85}"] {
        let mut claims = world.issuer.claims("alice");
        claims["sub"] = json!(subject);
        assert_eq!(
            world.gateway.bearer("/a", &world.key.token(&claims)).status,
            401,
            "{subject:?}"
        );
    }
    assert!(world.upstream.seen().is_empty());
    let token = format!("Bearer {}", world.token("alice"));
    let headers = [
        ("x-user-id", "root"),
        ("authorization", &token),
        ("X-User-ID", "root"),
        ("x_user_id", "root"),
    ];
    assert_eq!(world.gateway.get("/a", &headers).status, 200);
    let seen = world.upstream.last();
    assert_eq!(seen.header("x-user-id"), Some("alice"));
    assert!(
        !seen.headers.iter().any(|(_, value)| value == "root"),
        "{:?}",
        seen.headers
    );
}

/// APISIX: what could not be decrypted was let through.
#[test]
fn cve_2026_49230_encrypted_tokens_are_refused() {
    let world = World::with(quick);
    let claims = b64(world.issuer.claims("alice").to_string());
    for header in [
        json!({"alg": "dir", "enc": "A256GCM"}),
        json!({"alg": "RSA-OAEP", "enc": "A256GCM", "cty": "JWT", "kid": "k1"}),
        json!({"alg": "PBES2-HS256+A128KW", "enc": "A128GCM", "p2c": 2_147_483_647_u32, "p2s": "AAAA"}),
        json!({"alg": "none", "enc": "none"}),
    ] {
        let header = b64(header.to_string());
        for token in [
            format!("{header}..AAAA.{claims}.AAAA"),
            format!("{header}.AAAA.AAAA.{claims}."),
            format!("{header}.{claims}."),
        ] {
            let start = Instant::now();
            assert_eq!(world.gateway.bearer("/a", &token).status, 401, "{header}");
            assert!(start.elapsed() < Duration::from_secs(1), "{header}");
        }
    }
    assert!(world.upstream.seen().is_empty());
}

/// Caddy: a file of authorities that could not be read became the system's authorities.
#[test]
fn cve_2026_27586_authorities_that_cannot_be_read_stop_the_start() {
    let upstream = Upstream::start();
    let issuer = Issuer::start(&[]);
    type Edit = fn(&mut Value);
    let places: [(&str, Edit); 3] = [
        ("clients", |document| {
            document["listeners"]["public"] = json!({"address": "127.0.0.1:0", "tls": {
                "certificates": [{"chain": "api.pem", "key": "api.key"}],
                "client_certificates": {"mode": "required", "authorities": ["ca.pem"]},
            }});
        }),
        ("issuer", |document| {
            document["issuers"]["main"]["authorities"] = json!(["ca.pem"])
        }),
        ("upstream", |document| {
            document["upstreams"]["main"] =
                json!({"endpoints": ["https://127.0.0.1:1"], "tls": {"authorities": ["ca.pem"]}});
        }),
    ];
    for (place, edit) in places {
        for (what, text) in [
            ("missing", None),
            ("empty", Some("")),
            (
                "broken",
                Some("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"),
            ),
            (
                "a key",
                Some("-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n"),
            ),
        ] {
            let builder = Builder::guarded(&upstream, &issuer).with(edit);
            Authority::new("servers")
                .server(&["api.example.test"])
                .write(builder.folder.path(), "api");
            if let Some(text) = text {
                builder.file("ca.pem", text);
            } else {
                // A folder can be named and cannot be read, whoever runs the test.
                std::fs::create_dir(builder.folder.path().join("ca.pem")).unwrap();
            }
            let config = builder.file("gateway.yaml", builder.document.to_string());
            assert!(
                Process::start(Options::new(config)).is_err(),
                "{place}, {what}: it started"
            );
        }
    }
}

/// jsonwebtoken before 10.3: a time of the wrong type counted as none.
#[test]
fn cve_2026_25537_times_of_the_wrong_type_are_no_missing_times() {
    let world = World::with(quick);
    let header = json!({"alg": "ES256", "kid": "k1", "typ": "at+jwt"}).to_string();
    for claim in ["exp", "nbf", "iat"] {
        for value in [
            json!((now() + 60).to_string()),
            json!([now()]),
            json!({}),
            json!(true),
            json!(null),
            json!(""),
            json!("x"),
        ] {
            let mut claims = world.issuer.claims("alice");
            claims[claim] = value.clone();
            let token = world.key.token_raw(&header, &claims.to_string());
            assert_eq!(
                world.gateway.bearer("/a", &token).status,
                401,
                "{claim}: {value}"
            );
        }
    }
}

/// rustls-webpki before 0.103.12: constraints on URIs were ignored (0098), and a wildcard passed a
/// constraint on a part of it (0099).
#[test]
fn rustsec_2026_0098_and_0099_constrained_authorities_name_their_own() {
    let mutual = mutual("automatic");
    let below = |permitted: &str| {
        let permitted = permitted.to_owned();
        mutual.clients.under("constrained", move |params| {
            params.name_constraints = Some(NameConstraints {
                permitted_subtrees: vec![GeneralSubtree::DnsName(permitted)],
                excluded_subtrees: vec![],
            });
        })
    };
    let good = below("good.test");
    let passes = |authority: &Authority, names: &[&str]| {
        let names = names
            .iter()
            .map(|name| SanType::DnsName((*name).try_into().unwrap()))
            .collect();
        let mut leaf = named(authority, "x", names);
        leaf.chain_pem.push_str(&authority.pem);
        mutual.get(&leaf).is_some_and(|answer| answer.status == 200)
    };
    assert!(passes(&good, &["a.good.test"]));
    assert!(!passes(&good, &["evil.test"]));
    assert!(!passes(&good, &["a.good.test", "evil.test"]));
    assert!(!passes(&good, &["*.test"]));
    assert!(!passes(&below("accept.good.test"), &["*.good.test"]));
    let lock = include_str!("../../Cargo.lock");
    let version = lock
        .split("[[package]]")
        .find_map(|package| {
            package
                .split_once("name = \"rustls-webpki\"")?
                .1
                .split('"')
                .nth(1)
        })
        .unwrap();
    let parts: Vec<u32> = version
        .split('.')
        .filter_map(|part| part.parse().ok())
        .collect();
    assert!(parts >= vec![0, 103, 12], "rustls-webpki {version}");
}

/// rustls: a handshake whose other side closed in the middle never ended, at full speed.
#[test]
fn cve_2024_32650_half_closed_handshakes_end() {
    let mutual = mutual("automatic");
    let address = mutual.gateway.listener("public");
    // A ClientHello record that promises more than it brings.
    let torn = b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03";
    let streams: Vec<TcpStream> = (0..50)
        .map(|index| {
            let mut stream = TcpStream::connect(address).unwrap();
            stream
                .set_read_timeout(Some(Duration::from_secs(10)))
                .unwrap();
            stream.write_all(&torn[..index % torn.len()]).unwrap();
            stream.shutdown(Shutdown::Write).unwrap();
            stream
        })
        .collect();
    for mut stream in streams {
        let mut rest = Vec::new();
        // The end, or a reset: not a time-out.
        if let Err(error) = stream.read_to_end(&mut rest) {
            assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset, "{error}");
        }
    }
    let leaf = named(&mutual.clients, "alice", vec![]);
    assert_eq!(mutual.get(&leaf).map(|answer| answer.status), Some(200));
}

/// rustls: a fragmented ClientHello made the acceptor panic.
#[test]
fn rustsec_2024_0399_fragmented_and_empty_hellos() {
    let mutual = mutual("automatic");
    let address = mutual.gateway.listener("public");
    let record = |kind: u8, content: &[u8]| {
        let mut bytes = vec![kind, 3, 1];
        bytes.extend(u16::try_from(content.len()).unwrap().to_be_bytes());
        bytes.extend(content);
        bytes
    };
    let cases = [
        record(22, &[]),
        record(22, &[1]),
        record(22, &[1, 0, 0, 0]),
        [record(22, &[1]), record(22, &[0]), record(22, &[0, 0])].concat(),
        [
            record(22, &[1, 0, 0, 4]),
            record(22, &[3, 3]),
            record(22, &[0, 0]),
        ]
        .concat(),
        [
            record(22, &[1, 0]),
            record(21, &[1, 0]),
            record(22, &[0, 1, 0]),
        ]
        .concat(),
        [record(20, &[1]), record(20, &[1]), record(23, &[0; 40])].concat(),
        record(22, &[1, 0xff, 0xff, 0xff]),
        record(22, &[2, 0, 0, 0]),
    ];
    for case in cases {
        let mut stream = TcpStream::connect(address).unwrap();
        stream
            .set_read_timeout(Some(Duration::from_secs(10)))
            .unwrap();
        let _ = stream.write_all(&case);
        let _ = stream.shutdown(Shutdown::Write);
        let _ = stream.read_to_end(&mut Vec::new());
    }
    let leaf = named(&mutual.clients, "alice", vec![]);
    assert_eq!(mutual.get(&leaf).map(|answer| answer.status), Some(200));
}

/// Pomerium: a caller whose claims had changed was judged by the old ones.
#[test]
fn cve_2021_41230_decisions_follow_claims_and_policies() {
    let mut world = World::with(quick);
    let token = world.token("alice");
    let mut claims = world.issuer.claims("alice");
    claims["scope"] = json!("nothing");
    let lesser = world.key.token(&claims);
    for _ in 0..3 {
        assert_eq!(world.gateway.bearer("/a", &token).status, 200);
        assert_eq!(
            world.gateway.bearer("/a", &lesser).status,
            403,
            "the new token's claims"
        );
    }
    std::fs::write(
        world.gateway.folder.path().join("gate.rego"),
        "package gate\n\ndefault allow := false\n",
    )
    .unwrap();
    let answer = world.gateway.reload(|_| {});
    assert_eq!(answer.status, 200, "{}", answer.text());
    assert_eq!(
        world.gateway.bearer("/a", &token).status,
        403,
        "the new policy"
    );
}
