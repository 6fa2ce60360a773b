//! What was good once and is no longer: brought by the admin listener and by signed lists, in force at
//! once, kept across restarts, and silent towards clients.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener};
use std::os::unix::fs::PermissionsExt;
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use portcullis::run::{Options, Process, StartError};
use rcgen::{CertificateParams, ExtendedKeyUsagePurpose, SerialNumber};
use serde_json::{Value, json};

use crate::support::client::{Answer, Connection, request};
use crate::support::eventually;
use crate::support::gateway::{ADMIN, Builder, Gateway, World};
use crate::support::issuer::{Issuer, Key, b64, now};
use crate::support::pki::{Authority, client_config};
use crate::support::tools;
use crate::support::upstream::{Next, Upstream};

/// One request to the admin listener, with a body.
#[track_caller]
fn ask(gateway: &Gateway, method: &str, path: &str, body: &Value) -> Answer {
    ask_with(gateway, method, path, &body.to_string(), true)
}

#[track_caller]
fn ask_with(gateway: &Gateway, method: &str, path: &str, body: &str, known: bool) -> Answer {
    let address = gateway.process.admin_address().expect("no admin listener");
    let (host, length) = (address.to_string(), body.len().to_string());
    let mut headers = vec![
        ("host", host.as_str()),
        ("content-length", length.as_str()),
        ("connection", "close"),
    ];
    if known {
        headers.push(("authorization", ADMIN));
    }
    Connection::plain(address)
        .send(request(method, path, &headers) + body)
        .answer()
        .expect("no admin answer")
}

#[track_caller]
fn revoke(gateway: &Gateway, entry: &Value) {
    let answer = ask(gateway, "POST", "/revocations", entry);
    assert_eq!(answer.status, 200, "{}", answer.text());
    assert_eq!(answer.json()["taken"], 1, "{}", answer.text());
}

#[track_caller]
fn listed(gateway: &Gateway, query: &str) -> Value {
    let answer = gateway.admin("GET", &format!("/revocations{query}"));
    assert_eq!(answer.status, 200, "{}", answer.text());
    answer.json()
}

/// That this token is refused, that the client learns nothing, and what the record says.
#[track_caller]
fn refused(gateway: &Gateway, token: &str) -> String {
    let answer = gateway.bearer("/a", token);
    assert_eq!(answer.status, 401, "{}", answer.text());
    assert_eq!(answer.code(), "unauthenticated");
    let challenge = answer.header("www-authenticate").unwrap();
    assert!(challenge.contains("error=\"invalid_token\""), "{challenge}");
    let shown = format!("{:?}{}", answer.headers, answer.text()).to_lowercase();
    for word in ["revok", "session", "version", "logout", "stale", "kid"] {
        assert!(!shown.contains(word), "{word}: {shown}");
    }
    let id = answer.json()["request_id"].as_str().unwrap().to_owned();
    let record = gateway.record(&id);
    record["reason"].as_str().unwrap_or_default().to_owned()
}

/// A policy that looks at bodies.
const BODIES: &str = "package bodies\n\nallow if input.request.body == {}\n";

/// As [`World::with`], where tokens have versions, and a store.
fn world(change: impl FnOnce(&mut Value)) -> World {
    World::with(|builder| {
        builder.file("bodies.rego", BODIES);
        builder.with(|document| {
            document["issuers"]["main"]["claims"]["version"] = json!("token_version");
            document["issuers"]["main"]["max_age"] = json!("24h");
            document["revocation"] = json!({"store": "revoked"});
            change(document);
        })
    })
}

/// A token with everything that can be revoked.
fn token(world: &World, subject: &str, changes: Value) -> String {
    let mut claims = world.issuer.claims(subject);
    claims["jti"] = json!(format!("jti-{subject}"));
    claims["sid"] = json!(format!("sid-{subject}"));
    claims["client_id"] = json!(format!("client-{subject}"));
    claims["token_version"] = json!(5);
    for (name, value) in changes.as_object().unwrap() {
        claims[name] = value.clone();
    }
    world.key.token(&claims)
}

/// The same gateway, started again from the same folder.
fn restart(gateway: Gateway) -> Gateway {
    let Gateway {
        process,
        config,
        document,
        folder,
    } = gateway;
    process.shutdown();
    let process = Process::start(Options::new(config.clone())).expect("it starts again");
    let gateway = Gateway {
        process,
        config,
        document,
        folder,
    };
    eventually("readiness", || {
        (gateway.admin("GET", "/ready").status == 200).then_some(())
    });
    gateway
}

#[test]
fn each_kind_ends_a_token_that_was_just_let_in_and_no_other() {
    let world = world(|_| ());
    let gateway = &world.gateway;
    for (kind, member, name) in [
        ("token", "token_id", "jti-token"),
        ("subject", "subject", "subject"),
        ("session", "session", "sid-session"),
        ("client", "client", "client-client"),
        ("version", "subject", "version"),
        ("key", "key_id", "k1"),
    ] {
        let bystander = token(&world, "bystander", json!({}));
        let token = token(&world, kind, json!({}));
        assert_eq!(gateway.bearer("/a", &token).status, 200, "{kind}");
        assert_eq!(gateway.bearer("/a", &token).status, 200, "{kind}, cached");
        let mut entry = json!({"kind": kind, "issuer": world.issuer.url, member: name,
                               "reason": "because"});
        if kind == "version" {
            entry["minimum"] = json!(6);
        }
        revoke(gateway, &entry);
        assert_eq!(refused(gateway, &token), format!("revoked.{kind}"));
        if kind != "key" {
            assert_eq!(gateway.bearer("/a", &bystander).status, 200, "{kind}");
        }
        let list = listed(gateway, &format!("?kind={kind}"));
        let found = &list["revocations"][0];
        assert_eq!(found[member], name, "{list}");
        assert_eq!(
            (&found["source"], &found["reason"]),
            (&json!("admin"), &json!("because"))
        );
        // Taken back, the token is good again.
        entry.as_object_mut().unwrap().remove("minimum");
        let answer = ask(gateway, "DELETE", "/revocations", &entry);
        assert_eq!((answer.status, &answer.json()["lifted"]), (200, &json!(1)));
        assert_eq!(gateway.bearer("/a", &token).status, 200, "{kind}, lifted");
        assert_eq!(ask(gateway, "DELETE", "/revocations", &entry).status, 404);
    }
    let status = gateway.admin("GET", "/status").json();
    assert!(status["revocation"]["taken"].as_u64().unwrap() < 7);
    assert!(status["revocation"]["store"]["lines"].as_u64().unwrap() >= 12);
    let metrics = gateway.admin("GET", "/metrics").text();
    let line = "portcullis_revocations_total{source=\"admin\",outcome=\"taken\"} 6";
    assert!(metrics.contains(line), "{metrics}");
}

#[test]
fn nothing_is_read_for_a_policy_from_somebody_whose_token_is_revoked() {
    let world = world(|document| {
        document["policies"]["bodies"] = json!({
            "files": ["bodies.rego"], "entrypoint": "data.bodies.allow", "body": {}
        });
        document["routes"][0]["policy"] = json!("bodies");
    });
    let gateway = &world.gateway;
    let token = token(&world, "alice", json!({}));
    let head = format!(
        "POST /a HTTP/1.1\r\nhost: a.test\r\nauthorization: Bearer {token}\r\n\
         content-type: application/json\r\ncontent-length: 2\r\n\r\n"
    );
    let answer = gateway.connect().send(format!("{head}{{}}")).answer();
    assert_eq!(answer.unwrap().status, 200);
    revoke(
        gateway,
        &json!({"kind": "subject", "issuer": world.issuer.url, "subject": "alice"}),
    );
    // The body never comes, and is not waited for.
    let answer = gateway.connect().send(&head).answer().unwrap();
    assert_eq!(answer.status, 401, "{}", answer.text());
    let id = answer.json()["request_id"].as_str().unwrap().to_owned();
    assert_eq!(gateway.record(&id)["reason"], "revoked.subject");
    assert!(answer.header("www-authenticate").is_some());
}

#[test]
fn logged_out_everywhere_a_new_token_passes_and_no_old_one() {
    let world = world(|_| ());
    let gateway = &world.gateway;
    let old = token(&world, "alice", json!({}));
    let other = token(&world, "alice", json!({"jti": "another", "sid": "another"}));
    let bob = token(&world, "bob", json!({}));
    let timeless = token(&world, "alice", json!({"iat": null}));
    for token in [&old, &other, &bob] {
        assert_eq!(gateway.bearer("/a", token).status, 200);
    }
    let order = json!({"issuer": world.issuer.url, "subject": "alice"});
    let answer = ask(gateway, "POST", "/revocations/logout", &order);
    assert_eq!(answer.status, 200, "{}", answer.text());
    assert_eq!(answer.json()["kept"], "on disk");
    assert_eq!(refused(gateway, &old), "revoked.subject");
    assert_eq!(refused(gateway, &other), "revoked.subject");
    assert_eq!(gateway.bearer("/a", &bob).status, 200);
    // `null` is no date, and `max_age` wants one: refused before anybody asks what is revoked.
    assert_eq!(gateway.bearer("/a", &timeless).status, 401);
    // Issued in a later second.
    let fresh = token(&world, "alice", json!({"iat": now() + 2}));
    assert_eq!(gateway.bearer("/a", &fresh).status, 200);
}

#[test]
fn a_token_without_a_version_is_refused_where_a_least_one_is_set() {
    let world = world(|_| ());
    let gateway = &world.gateway;
    let with = |version: Value| token(&world, "alice", json!({"token_version": version}));
    assert_eq!(gateway.bearer("/a", &with(Value::Null)).status, 200);
    let entry = |minimum: u64| json!({"kind": "version", "issuer": world.issuer.url, "subject": "alice", "minimum": minimum});
    revoke(gateway, &entry(7));
    assert_eq!(refused(gateway, &with(Value::Null)), "revoked.version");
    assert_eq!(refused(gateway, &with(json!(6))), "revoked.version");
    assert_eq!(gateway.bearer("/a", &with(json!(7))).status, 200);
    revoke(gateway, &entry(8));
    assert_eq!(refused(gateway, &with(json!(7))), "revoked.version");
    // A version or a session that cannot be read is no "none".
    for odd in [json!("7"), json!(-1), json!(7.5), json!([7])] {
        assert_eq!(refused(gateway, &with(odd)), "token.claims");
    }
    let odd = token(&world, "alice", json!({"sid": 5}));
    assert_eq!(refused(gateway, &odd), "token.claims");
}

#[test]
fn a_revoked_certificate_ends_every_request_of_a_connection_that_is_open() {
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
                "client_certificates": {"mode": "optional", "authorities": ["clients.pem"]},
            }});
            document["routes"][0]["authn"] = json!(["client_certificate", "anonymous"]);
        })
        .start();
    let leaf = |serial: u64| {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        params.serial_number = Some(SerialNumber::from(serial));
        clients.sign(params)
    };
    let connect = |serial: u64| {
        let config = client_config(&servers, Some(&leaf(serial)), &[b"http/1.1"]);
        Connection::tls(gateway.listener("public"), "api.example.test", &config).unwrap()
    };
    let get = |connection: &mut Connection, path: &str| {
        connection.send(request("GET", path, &[]));
        connection.answer().unwrap()
    };
    let (mut bad, mut good) = (connect(0x0a2b), connect(0x0a2c));
    assert_eq!(get(&mut bad, "/a").status, 200);
    assert_eq!(get(&mut good, "/a").status, 200);
    revoke(
        &gateway,
        &json!({"kind": "certificate", "issuer": "CN=clients", "serial": "0A:2B"}),
    );
    let answer = get(&mut bad, "/a");
    assert_eq!(
        (answer.status, answer.code().as_str()),
        (401, "unauthenticated")
    );
    let id = answer.json()["request_id"].as_str().unwrap().to_owned();
    assert_eq!(gateway.record(&id)["reason"], "revoked.certificate");
    // The open route has no use for a certificate; this one is not let through all the same.
    assert_eq!(get(&mut bad, "/").status, 401);
    assert_eq!(get(&mut good, "/a").status, 200);
}

#[test]
fn what_was_revoked_is_so_after_a_restart_and_what_was_lifted_is_not() {
    let world = world(|_| ());
    let (one, two) = (
        token(&world, "one", json!({})),
        token(&world, "two", json!({})),
    );
    let entry = |name: &str| json!({"kind": "session", "issuer": world.issuer.url, "session": format!("sid-{name}")});
    let answer = ask(
        &world.gateway,
        "POST",
        "/revocations",
        &json!([entry("one"), entry("two"), entry("two")]),
    );
    assert_eq!(answer.json()["taken"], 2, "{}", answer.text());
    assert_eq!(answer.json()["known"], 1);
    assert_eq!(
        ask(&world.gateway, "DELETE", "/revocations", &entry("two")).status,
        200
    );
    let store = world.gateway.folder.path().join("revoked");
    assert_eq!(
        store.metadata().unwrap().permissions().mode() & 0o777,
        0o600
    );
    let text = std::fs::read_to_string(&store).unwrap();
    assert!(
        text.contains("sid-one") && !text.contains(&one),
        "claims, never tokens"
    );

    let gateway = restart(world.gateway);
    assert_eq!(refused(&gateway, &one), "revoked.session");
    assert_eq!(gateway.bearer("/a", &two).status, 200);

    // Another gateway on the same store does not start, and says why.
    match Process::start(Options::new(gateway.config.clone())) {
        Err(StartError::Revocation(error)) => {
            assert!(error.to_string().contains("another process"), "{error}");
        }
        Err(other) => panic!("{other}"),
        Ok(_) => panic!("two gateways share a store"),
    }

    // Half a line at the end was never acknowledged; damage before it stops the start.
    let Gateway {
        process,
        config,
        folder,
        ..
    } = gateway;
    process.shutdown();
    let whole = std::fs::read(&store).unwrap();
    std::fs::write(
        &store,
        [&whole[..], b"0123456789abcdef {\"op\":\"rev"].concat(),
    )
    .unwrap();
    let process = Process::start(Options::new(config.clone())).expect("a torn end is cut");
    process.shutdown();
    assert_eq!(std::fs::read(&store).unwrap(), whole);
    let mut damaged = whole;
    damaged[60] ^= 1;
    std::fs::write(&store, &damaged).unwrap();
    match Process::start(Options::new(config)) {
        Err(StartError::Revocation(error)) => {
            assert!(error.to_string().contains("damaged at line 2"), "{error}");
        }
        Err(other) => panic!("{other}"),
        Ok(_) => panic!("it starts with a damaged store"),
    }
    drop(folder);
}

#[test]
fn a_full_index_refuses_loudly_and_forgets_nothing() {
    let world = world(|document| document["revocation"]["max_entries"] = json!(3));
    let gateway = &world.gateway;
    let entry = |name: &str| json!({"kind": "token", "issuer": world.issuer.url, "token_id": format!("jti-{name}")});
    for name in ["a", "b", "c"] {
        revoke(gateway, &entry(name));
    }
    let answer = ask(
        gateway,
        "POST",
        "/revocations",
        &json!([entry("d"), entry("a")]),
    );
    assert_eq!(answer.status, 507, "{}", answer.text());
    let document = answer.json();
    assert_eq!(
        (&document["taken"], &document["known"]),
        (&json!(0), &json!(1))
    );
    assert_eq!(document["refused"][0]["index"], 0);
    for name in ["a", "b", "c"] {
        assert_eq!(
            refused(gateway, &token(&world, name, json!({}))),
            "revoked.token"
        );
    }
    let ready = gateway.admin("GET", "/ready").text();
    assert!(ready.contains("the index is full (3 entries)"), "{ready}");
    let metrics = gateway.admin("GET", "/metrics").text();
    let line = "portcullis_revocations_total{source=\"admin\",outcome=\"full\"} 1";
    assert!(metrics.contains(line), "{metrics}");
    // Room comes when an entry is taken back.
    assert_eq!(
        ask(gateway, "DELETE", "/revocations", &entry("b")).status,
        200
    );
    revoke(gateway, &entry("d"));
    assert_eq!(
        refused(gateway, &token(&world, "d", json!({}))),
        "revoked.token"
    );
    assert!(!gateway.admin("GET", "/ready").text().contains("full"));
}

#[test]
fn an_entry_that_cannot_be_kept_is_in_force_and_whoever_brought_it_is_told() {
    let Some(shell) = tools::program("bash") else {
        return;
    };
    let key = Key::new("k1", "ES256");
    let issuer = Issuer::start(&[&key]);
    let upstream = Upstream::start();
    let builder = Builder::guarded(&upstream, &issuer).with(|document| {
        document["revocation"] = json!({"store": "revoked"});
        document["audit"] = json!({"sink": "stdout"});
    });
    builder.file("gateway.yaml", builder.document.to_string());
    // No file of the program may grow beyond 16 KiB: a disk that fills up.
    let mut child = Command::new(shell)
        .args([
            "-c",
            "trap '' XFSZ; ulimit -f 16; exec \"$0\" run",
            env!("CARGO_BIN_EXE_portcullis"),
        ])
        .current_dir(builder.folder.path())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let mut listening = |name: &str| -> SocketAddr {
        let line = lines.next().expect("the program ended").unwrap();
        assert!(line.contains(name), "{line}");
        line.split_whitespace().nth(2).unwrap().parse().unwrap()
    };
    let (address, admin) = (listening("local"), listening("admin"));
    std::thread::spawn(move || lines.for_each(drop));
    let ask = |method: &str, path: &str, body: &Value| {
        let (host, body) = (admin.to_string(), body.to_string());
        let length = body.len().to_string();
        let headers = [
            ("host", host.as_str()),
            ("content-length", length.as_str()),
            ("authorization", ADMIN),
        ];
        let request = request(method, path, &headers) + &body;
        Connection::plain(admin).send(request).answer().unwrap()
    };
    let get = |token: &str| {
        let header = format!("Bearer {token}");
        let request = request("GET", "/a", &[("authorization", &header)]);
        Connection::plain(address)
            .send(request)
            .answer()
            .unwrap()
            .status
    };
    eventually("readiness", || {
        (ask("GET", "/ready", &json!({})).status == 200).then_some(())
    });
    let mut failed = None;
    for number in 0..200 {
        let subject = format!("alice-{number}");
        let entry = json!({"kind": "subject", "issuer": issuer.url, "subject": subject,
                           "reason": "x".repeat(200)});
        let token = key.token(&issuer.claims(&subject));
        assert_eq!(get(&token), 200);
        let answer = ask("POST", "/revocations", &entry);
        // Kept or not, it is in force.
        assert_eq!(get(&token), 401, "{number}");
        if answer.status != 200 {
            failed = Some((answer, entry));
            break;
        }
    }
    let (answer, entry) = failed.expect("the disk never filled up");
    assert_eq!(answer.status, 500);
    let document = answer.json();
    let error = document["refused"][0]["error"].as_str().unwrap();
    assert!(error.contains("in force"), "{document}");
    assert!(
        document["kept"]
            .as_str()
            .unwrap()
            .contains("until the next restart"),
        "{document}"
    );
    let ready = ask("GET", "/ready", &json!({})).text();
    assert!(ready.contains("the store cannot be written"), "{ready}");
    // Asked for again, the answer is no better while the disk is not.
    assert_eq!(ask("POST", "/revocations", &entry).status, 500);
    child.kill().unwrap();
    child.wait().unwrap();
    // What was kept before is whole, and nothing half-written is behind it.
    let text = std::fs::read_to_string(builder.folder.path().join("revoked")).unwrap();
    assert!(text.ends_with('\n') && text.lines().count() > 20, "{text}");
}

#[test]
fn the_pages_are_for_those_who_mean_it_and_say_what_is_wrong() {
    let world = world(|_| ());
    let gateway = &world.gateway;
    let good = json!({"kind": "token", "issuer": world.issuer.url, "token_id": "x"});
    for (method, path) in [
        ("POST", "/revocations"),
        ("DELETE", "/revocations"),
        ("POST", "/revocations/logout"),
    ] {
        let answer = ask_with(gateway, method, path, &good.to_string(), false);
        assert_eq!(answer.status, 401, "{method} {path}");
        for wrong in [
            "",
            "x",
            "5",
            "[]",
            "{}",
            "[{}]",
            "{\"kind\":\"token\",\"issuer\":\"i\"}",
        ] {
            let answer = ask_with(gateway, method, path, wrong, true);
            assert_eq!(
                answer.status,
                400,
                "{method} {path} {wrong}: {}",
                answer.text()
            );
            assert!(answer.json()["error"].is_string());
        }
    }
    // All or nothing.
    let answer = ask(
        gateway,
        "POST",
        "/revocations",
        &json!([good, {"kind": "nothing"}]),
    );
    assert_eq!(answer.status, 400);
    assert!(answer.text().contains("entry 1"), "{}", answer.text());
    assert_eq!(listed(gateway, "")["revocations"], json!([]));
    let long = json!({"kind": "token", "issuer": "i", "token_id": "x".repeat(70_000)});
    assert_eq!(ask(gateway, "POST", "/revocations", &long).status, 413);
    let past = json!({"kind": "token", "issuer": world.issuer.url, "token_id": "x", "until": 5});
    assert_eq!(ask(gateway, "POST", "/revocations", &past).status, 422);
    assert_eq!(gateway.admin("PUT", "/revocations").status, 405);
    assert_eq!(gateway.admin("GET", "/revocations/logout").status, 405);
    for query in [
        "?limit=0",
        "?limit=x",
        "?limit=5000",
        "?after=1",
        "?colour=red",
        "?kind=%zz",
    ] {
        let answer = gateway.admin("GET", &format!("/revocations{query}"));
        assert_eq!(answer.status, 400, "{query}");
    }
    // A name that no block has is most likely misspelt; it is taken, and said.
    let answer = ask(
        gateway,
        "POST",
        "/revocations",
        &json!({"kind": "token", "issuer": "https://isuer.test", "token_id": "x"}),
    );
    assert_eq!(
        answer.json()["unknown_issuers"],
        json!(["https://isuer.test"])
    );
}

#[test]
fn what_is_revoked_is_listed_page_by_page() {
    for store in [true, false] {
        let world = world(|document| {
            if !store {
                document.as_object_mut().unwrap().remove("revocation");
            }
        });
        let gateway = &world.gateway;
        let entries: Vec<Value> = (0..25)
            .map(|number| {
                let issuer = if number % 5 == 0 {
                    "https://other test/?a=b"
                } else {
                    &world.issuer.url
                };
                json!({"kind": "token", "issuer": issuer, "token_id": format!("t{number}")})
            })
            .collect();
        let answer = ask(gateway, "POST", "/revocations", &json!(entries));
        assert_eq!(answer.json()["taken"], 25, "{}", answer.text());
        let (mut names, mut query) = (Vec::new(), "?limit=10".to_owned());
        loop {
            let page = listed(gateway, &query);
            assert_eq!(page["complete"], true);
            let entries = page["revocations"].as_array().unwrap();
            assert!(entries.len() <= 10);
            names.extend(
                entries
                    .iter()
                    .map(|entry| entry["token_id"].as_str().unwrap().to_owned()),
            );
            match page["next"].as_str() {
                Some(next) => query = format!("?limit=10&after={next}"),
                None => break,
            }
        }
        let expected: Vec<String> = (0..25).map(|number| format!("t{number}")).collect();
        assert_eq!(names, expected);
        let other = listed(gateway, "?issuer=https%3A%2F%2Fother+test%2F%3Fa%3Db");
        assert_eq!(other["revocations"].as_array().unwrap().len(), 5);
        assert_eq!(listed(gateway, "?kind=key")["revocations"], json!([]));
    }
}

/// A signed list, as a publisher makes it.
fn list(key: &Key, iat: u64, entries: &[Value]) -> String {
    let header = json!({"alg": key.alg, "kid": key.kid, "typ": "portcullis-revocations+jwt"});
    let payload = json!({"iss": "https://lists.test", "iat": iat, "exp": iat + 600,
                         "revocations": entries});
    key.token_raw(&header.to_string(), &payload.to_string())
}

/// As [`world`], with a list in a file and a route for each rule about silence.
fn with_list(publisher: &Key, list: &Value) -> World {
    let keys = json!({"keys": [publisher.jwk()]}).to_string();
    World::with(|builder| {
        builder.file("list-keys.json", keys);
        builder.with(|document| {
            let mut list = list.clone();
            list["issuer"] = json!("https://lists.test");
            list["keys"] = json!("list-keys.json");
            list["interval"] = json!("1s");
            document["revocation"] = json!({"lists": {"partner": list}});
            document["issuers"]["main"]["max_age"] = json!("24h");
            let routes = document["routes"].as_array_mut().unwrap();
            let mut more = Vec::new();
            for (name, rule) in [
                ("allow", json!({"when_stale": "allow"})),
                (
                    "shorten",
                    json!({"when_stale": "shorten", "shorten_to": "60s"}),
                ),
            ] {
                let mut route = routes[0].clone();
                route["name"] = json!(name);
                route["path"] = json!(format!("/{name}"));
                route["revocation"] = rule;
                more.push(route);
            }
            routes.extend(more);
            // Readiness comes when the list does; this helper waits for it.
        })
    })
}

#[test]
fn a_reload_that_is_refused_replaces_no_list() {
    let publisher = Key::new("l1", "ES256");
    let folder = tempfile::TempDir::new().unwrap();
    let (before, after) = (folder.path().join("a.jws"), folder.path().join("b.jws"));
    std::fs::write(&before, list(&publisher, now() - 100, &[])).unwrap();
    let mut world = with_list(&publisher, &json!({"file": before}));
    let alice = token(&world, "alice", json!({}));
    let entry = json!({"kind": "token", "issuer": world.issuer.url, "token_id": "jti-alice"});
    std::fs::write(&after, list(&publisher, now() - 50, &[entry])).unwrap();
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let answer = world.gateway.reload(|document| {
        document["revocation"]["lists"]["partner"]["file"] = json!(after);
        document["listeners"]["taken"] = json!({"address": address, "plaintext": true});
    });
    assert_ne!(answer.status, 200, "{}", answer.text());
    assert_eq!(world.gateway.bearer("/a", &alice).status, 200);
    let answer = world.gateway.reload(|document| {
        let listeners = document["listeners"].as_object_mut().unwrap();
        listeners.remove("taken");
    });
    assert_eq!(answer.status, 200, "{}", answer.text());
    assert_eq!(world.gateway.bearer("/a", &alice).status, 401);
}

#[test]
fn a_signed_list_in_a_file_revokes_and_lets_go_and_cannot_be_forged_or_turned_back() {
    let publisher = Key::new("l1", "ES256");
    let folder = tempfile::TempDir::new().unwrap();
    let path = folder.path().join("list.jws");
    let entry = |subject: &str| json!({"kind": "token", "issuer": "", "token_id": format!("jti-{subject}")});
    let start = now() - 100;
    // Put in place as a whole, as a publisher should.
    let publish = |text: &str| {
        let fresh = folder.path().join("fresh");
        std::fs::write(&fresh, text).unwrap();
        std::fs::rename(&fresh, &path).unwrap();
    };
    publish(&list(&publisher, start, &[]));
    let world = with_list(&publisher, &json!({"file": path}));
    let gateway = &world.gateway;
    let entry = |subject: &str| {
        let mut entry = entry(subject);
        entry["issuer"] = json!(world.issuer.url);
        entry
    };
    let (alice, bob) = (
        token(&world, "alice", json!({})),
        token(&world, "bob", json!({})),
    );
    assert_eq!(gateway.bearer("/a", &alice).status, 200);
    publish(&list(&publisher, start + 1, &[entry("alice")]));
    eventually("the first edition", || {
        (gateway.bearer("/a", &alice).status == 401).then_some(())
    });
    assert_eq!(refused(gateway, &alice), "revoked.token");
    // By hand it cannot be taken out of the list, and that is said.
    let answer = ask(gateway, "DELETE", "/revocations", &entry("alice"));
    assert_eq!(answer.status, 404);
    assert_eq!(
        answer.json()["still_listed"][0]["lists"],
        json!(["partner"])
    );
    // The admin's entry about bob is nobody else's.
    revoke(gateway, &entry("bob"));
    publish(&list(&publisher, start + 2, &[entry("bob")]));
    eventually("the second edition", || {
        (gateway.bearer("/a", &alice).status == 200).then_some(())
    });
    publish(&list(&publisher, start + 3, &[]));
    eventually("the third edition", || {
        let metrics = gateway.admin("GET", "/metrics").text();
        let line = "portcullis_revocation_lists_total{list=\"partner\",outcome=\"new\"} 4";
        metrics.contains(line).then_some(())
    });
    assert_eq!(refused(gateway, &bob), "revoked.token");

    // A stranger's, an older one, and one without a signature change nothing.
    let stranger = Key::new("l1", "ES256");
    let unsigned = format!(
        "{}.{}.",
        b64(json!({"alg": "none", "typ": "portcullis-revocations+jwt"}).to_string()),
        b64(json!({"iss": "https://lists.test", "iat": now(), "exp": now() + 600, "revocations": [entry("alice")]}).to_string())
    );
    for (text, outcome) in [
        (list(&stranger, start + 9, &[entry("alice")]), "unsealed"),
        (unsigned, "unsealed"),
        (
            list(&publisher, start + 1, &[entry("alice")]),
            "rolled_back",
        ),
    ] {
        let count = || {
            let metrics = gateway.admin("GET", "/metrics").text();
            let start = format!(
                "portcullis_revocation_lists_total{{list=\"partner\",outcome=\"{outcome}\"}} "
            );
            let line = metrics
                .lines()
                .find_map(|line| line.strip_prefix(&start).map(str::to_owned));
            line.map_or(0, |count| count.parse::<u64>().unwrap())
        };
        let before = count();
        publish(&text);
        eventually(outcome, || (count() > before).then_some(()));
        assert_eq!(gateway.bearer("/a", &alice).status, 200, "{outcome}");
    }
    let status = gateway.admin("GET", "/status").json();
    let feed = &status["revocation"]["feeds"][0];
    assert_eq!(feed["name"], "partner");
    assert!(
        feed["last_error"].as_str().unwrap().contains("older"),
        "{feed}"
    );
}

/// A server for one document, which it tells apart by entity tag.
struct Publisher {
    url: String,
    /// None: it answers with an error.
    document: Arc<Mutex<Option<String>>>,
    /// Answers by status.
    answers: Arc<Mutex<Vec<u16>>>,
}

impl Publisher {
    fn start(document: &str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}/list.jws", listener.local_addr().unwrap());
        let document = Arc::new(Mutex::new(Some(document.to_owned())));
        let answers = Arc::new(Mutex::new(Vec::new()));
        let (shared, counted) = (Arc::clone(&document), Arc::clone(&answers));
        std::thread::spawn(move || {
            for mut stream in listener.incoming().flatten() {
                let mut reader = BufReader::new(stream.try_clone().unwrap());
                let mut tag = None;
                loop {
                    let mut line = String::new();
                    if reader.read_line(&mut line).unwrap_or(0) < 3 {
                        break;
                    }
                    if let Some((name, value)) = line.split_once(':')
                        && name.eq_ignore_ascii_case("if-none-match")
                    {
                        tag = Some(value.trim().to_owned());
                    }
                }
                let document = shared.lock().unwrap().clone();
                let (status, head, body) = match document {
                    None => (500, String::new(), String::new()),
                    Some(body) => {
                        let own = format!("\"{}\"", &body[body.len() - 8..]);
                        if tag.as_deref() == Some(&own) {
                            (304, format!("ETag: {own}\r\n"), String::new())
                        } else {
                            (200, format!("ETag: {own}\r\n"), body)
                        }
                    }
                };
                counted.lock().unwrap().push(status);
                let _ = write!(
                    stream,
                    "HTTP/1.1 {status} X\r\n{head}Content-Length: {}\r\nConnection: close\r\n\r\n{body}",
                    body.len()
                );
            }
        });
        Self {
            url,
            document,
            answers,
        }
    }

    fn publish(&self, document: Option<String>) {
        *self.document.lock().unwrap() = document;
    }

    fn answered(&self, status: u16) -> usize {
        let answers = self.answers.lock().unwrap();
        answers.iter().filter(|it| **it == status).count()
    }
}

#[test]
fn a_list_at_a_url_that_falls_silent_means_what_each_route_says() {
    let key = Key::new("l1", "ES256");
    let publisher = Publisher::start(&list(&key, now() - 100, &[]));
    let world = with_list(&key, &json!({"url": publisher.url, "stale_after": "3s"}));
    let gateway = &world.gateway;
    let young = token(&world, "young", json!({"iat": now() - 5}));
    let old = token(&world, "old", json!({"iat": now() - 200}));
    let ask = |path: &str, token: &str| gateway.bearer(path, token).status;
    for path in ["/a", "/allow", "/shorten"] {
        assert_eq!((ask(path, &young), ask(path, &old)), (200, 200), "{path}");
    }
    eventually("an answer that nothing has changed", || {
        (publisher.answered(304) > 0).then_some(())
    });
    assert_eq!(publisher.answered(200), 1, "it is fetched once");
    let gone = json!({"kind": "token", "issuer": world.issuer.url, "token_id": "jti-gone"});
    publisher.publish(Some(list(&key, now() - 50, &[gone])));
    let gone = token(&world, "gone", json!({}));
    eventually("the edition", || {
        (ask("/allow", &gone) == 401).then_some(())
    });

    publisher.publish(None);
    eventually("silence", || (ask("/a", &young) == 503).then_some(()));
    let answer = gateway.bearer("/a", &young);
    assert_eq!(answer.code(), "authentication_unavailable");
    assert!(answer.header("retry-after").is_some());
    let id = answer.json()["request_id"].as_str().unwrap().to_owned();
    assert_eq!(gateway.record(&id)["reason"], "revoked.stale");
    assert_eq!((ask("/allow", &young), ask("/allow", &old)), (200, 200));
    assert_eq!((ask("/shorten", &young), ask("/shorten", &old)), (200, 401));
    // What was known before stays known.
    assert_eq!(ask("/allow", &gone), 401);
    assert_eq!(refused_on(gateway, "/shorten", &old), "revoked.old");
    let ready = gateway.admin("GET", "/ready");
    assert_eq!(ready.status, 503);
    assert!(
        ready.text().contains("revocation feed partner"),
        "{}",
        ready.text()
    );
    eventually("the metric", || {
        let metrics = gateway.admin("GET", "/metrics").text();
        metrics
            .contains("portcullis_revocation_feed_stale{feed=\"partner\"} 1")
            .then_some(())
    });

    publisher.publish(Some(list(&key, now() - 20, &[])));
    eventually("its voice", || (ask("/a", &young) == 200).then_some(()));
    assert_eq!(ask("/shorten", &old), 200);
    assert_eq!(ask("/allow", &gone), 200, "the new edition let go of it");
    eventually("readiness", || {
        (gateway.admin("GET", "/ready").status == 200).then_some(())
    });
}

fn refused_on(gateway: &Gateway, path: &str, token: &str) -> String {
    let answer = gateway.bearer(path, token);
    let id = answer.json()["request_id"].as_str().unwrap().to_owned();
    let record = gateway.record(&id);
    record["reason"].as_str().unwrap_or_default().to_owned()
}

/// An upstream that sends a word again and again, for ever.
fn ticking() -> Upstream {
    Upstream::with(|_, stream| {
        let head =
            "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nTransfer-Encoding: chunked\r\n\r\n";
        let _ = stream.write_all(head.as_bytes());
        while stream.write_all(b"4\r\ntick\r\n").is_ok() {
            std::thread::park_timeout(Duration::from_millis(20));
        }
        Next::Close
    })
}

/// A stream that has begun.
fn stream(gateway: &Gateway, path: &str, token: &str) -> Connection {
    let bearer = format!("Bearer {token}");
    let mut connection = gateway.connect();
    let fields = [("authorization", &*bearer), ("connection", "close")];
    connection.send(request("GET", path, &fields));
    assert!(goes_on(&mut connection), "the stream begins");
    connection
}

fn goes_on(connection: &mut Connection) -> bool {
    let mut piece = [0; 64];
    (0..20).all(|_| matches!(connection.read(&mut piece), Ok(read) if read > 0))
}

/// Reads until the stream ends, within ten seconds.
fn ends(connection: &mut Connection) -> bool {
    let start = Instant::now();
    let mut piece = [0; 4096];
    while start.elapsed() < Duration::from_secs(10) {
        if matches!(connection.read(&mut piece), Ok(0) | Err(_)) {
            return true;
        }
    }
    false
}

#[test]
fn a_revocation_ends_the_streams_it_is_meant_for_and_no_others() {
    let ticking = ticking();
    let world = world(|document| {
        document["upstreams"]["main"]["endpoints"] = json!([ticking.url()]);
    });
    let gateway = &world.gateway;
    let mut alice = stream(gateway, "/a", &token(&world, "alice", json!({})));
    let mut bob = stream(gateway, "/a", &token(&world, "bob", json!({})));
    let order = json!({"issuer": world.issuer.url, "subject": "alice"});
    let start = Instant::now();
    assert_eq!(
        ask(gateway, "POST", "/revocations/logout", &order).status,
        200
    );
    assert!(ends(&mut alice), "alice's stream goes on");
    assert!(
        start.elapsed() < Duration::from_secs(5),
        "{:?}",
        start.elapsed()
    );
    assert!(goes_on(&mut bob), "bob's stream has ended");
}

#[test]
fn when_a_feed_falls_silent_streams_end_where_the_route_believes_nobody() {
    let key = Key::new("l1", "ES256");
    let publisher = Publisher::start(&list(&key, now() - 100, &[]));
    let ticking = ticking();
    let mut world = with_list(&key, &json!({"url": publisher.url, "stale_after": "3s"}));
    let answer = world.gateway.reload(|document| {
        document["upstreams"]["main"]["endpoints"] = json!([ticking.url()]);
    });
    assert_eq!(answer.status, 200, "{}", answer.text());
    let token = token(&world, "alice", json!({}));
    let mut strict = stream(&world.gateway, "/a", &token);
    let mut mild = stream(&world.gateway, "/allow", &token);
    publisher.publish(None);
    assert!(ends(&mut strict), "it goes on though nobody is believed");
    assert!(goes_on(&mut mild));
}

#[test]
fn the_command_line_revokes_by_the_names_of_the_configuration() {
    let world = world(|_| ());
    let gateway = &world.gateway;
    // The listener's port was chosen by the system; the command reads it from the file.
    let mut document = gateway.document.clone();
    let admin = gateway.process.admin_address().unwrap();
    document["admin"]["address"] = json!(admin.to_string());
    let file = gateway.folder.path().join("told.yaml");
    std::fs::write(&file, document.to_string()).unwrap();
    let run = |arguments: &[&str]| {
        let output = Command::new(env!("CARGO_BIN_EXE_portcullis"))
            .args([
                "revoke",
                "--config",
                file.to_str().unwrap(),
                "--issuer",
                "main",
            ])
            .args(arguments)
            .output()
            .unwrap();
        let text = [output.stdout, output.stderr].concat();
        (output.status.code(), String::from_utf8(text).unwrap())
    };
    let alice = token(&world, "alice", json!({}));
    assert_eq!(gateway.bearer("/a", &alice).status, 200);
    let (code, text) = run(&["--subject", "alice", "--before", "now", "--reason", "left"]);
    assert_eq!(code, Some(0), "{text}");
    assert!(
        text.contains("revoked, subject alice of http") && text.contains("on disk"),
        "{text}"
    );
    assert_eq!(refused(gateway, &alice), "revoked.subject");
    let (code, text) = run(&["--subject", "alice", "--lift"]);
    assert_eq!(code, Some(0), "{text}");
    assert_eq!(gateway.bearer("/a", &alice).status, 200);
    let (code, text) = run(&["--subject", "alice", "--lift"]);
    assert_eq!(code, Some(1), "{text}");
    assert!(text.contains("there is no such entry"), "{text}");
    let (code, text) = run(&["--subject", "alice", "--minimum", "6", "--format", "json"]);
    assert_eq!(code, Some(0), "{text}");
    assert_eq!(serde_json::from_str::<Value>(&text).unwrap()["taken"], 1);
    assert_eq!(refused(gateway, &alice), "revoked.version");
    for wrong in [
        &["--subject", "a", "--session", "b"][..],
        &[],
        &["--session", "b", "--minimum", "5"],
    ] {
        assert_eq!(run(wrong).0, Some(2), "{wrong:?}");
    }
    let (code, text) = run(&["--subject", "alice", "--before", "yesterday"]);
    assert_eq!(code, Some(1), "{text}");
    assert!(text.contains("RFC 3339"), "{text}");
}

#[test]
fn a_reload_keeps_what_is_revoked_and_says_what_needs_a_restart() {
    let mut world = world(|_| ());
    let alice = token(&world, "alice", json!({}));
    let entry = json!({"kind": "session", "issuer": world.issuer.url, "session": "sid-alice"});
    revoke(&world.gateway, &entry);
    let answer = world.gateway.reload(|document| {
        document["revocation"]["max_entries"] = json!(50);
        document["revocation"]["store"] = json!("elsewhere");
        document["routes"][0]["labels"] = json!({"a": "b"});
    });
    assert_eq!(answer.status, 200, "{}", answer.text());
    assert_eq!(refused(&world.gateway, &alice), "revoked.session");
    let status = world.gateway.admin("GET", "/status").json();
    assert_eq!(status["revocation"]["max_entries"], 50);
    let path = status["revocation"]["store"]["path"].as_str().unwrap();
    assert!(path.ends_with("revoked"), "{path}");
}

#[test]
fn entries_end_with_what_they_revoke() {
    let world = world(|_| ());
    let gateway = &world.gateway;
    // Long past, but for the leeway of clocks: forgotten in two seconds.
    let entry = json!({"kind": "token", "issuer": world.issuer.url, "token_id": "x",
                       "until": now() - 600 + 1});
    revoke(gateway, &entry);
    let taken = || {
        let status = gateway.admin("GET", "/status").json();
        status["revocation"]["taken"].as_u64().unwrap()
    };
    assert_eq!(taken(), 1);
    let deadline = Instant::now() + Duration::from_secs(40);
    while taken() > 0 {
        assert!(Instant::now() < deadline, "it is still there");
        std::thread::park_timeout(Duration::from_millis(100));
    }
    assert_eq!(listed(gateway, "")["revocations"], json!([]));
}
