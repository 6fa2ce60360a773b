//! Replicas that share what has ended, through a real Redis.

use std::io::{Read, Write};
use std::time::{Duration, Instant};

use portcullis::run::{Options, Process};
use serde_json::{Value, json};

use crate::feeds::{changed, log_out, logout_claims, session_token, typed, with_feeds};
use crate::support::client::{Answer, Connection, request};
use crate::support::eventually;
use crate::support::gateway::{ADMIN, Builder, Gateway, World};
use crate::support::issuer::{Issuer, Key, now};
use crate::support::pki::Authority;
use crate::support::redis::Redis;
use crate::support::upstream::{Next, Upstream};

/// A gateway that shares what is revoked through `redis`, with its logout end-point.
fn replica(issuer: &Issuer, upstream: &Upstream, redis: &Redis) -> Gateway {
    let builder = with_feeds(Builder::guarded(upstream, issuer));
    let builder = builder.with(|document| {
        document["revocation"]["redis"] = json!({
            "url": format!("redis://127.0.0.1:{}", redis.port),
            "timeout": "500ms",
            "stale_after": "2s",
        });
        document["revocation"]["store"] = json!("revocations.journal");
        document["routes"][0]["revocation"] = json!({"when_stale": "allow"});
    });
    builder.start()
}

/// Revokes a session on one gateway.
#[track_caller]
fn end_session(key: &Key, issuer: &Issuer, gateway: &Gateway, session: &str) {
    let claims = changed(logout_claims(issuer), &json!({"sid": session}));
    let answer = log_out(gateway, &typed(key, "logout+jwt", &claims));
    assert_eq!(answer.status, 200, "{}", answer.text());
}

/// How long until a token is refused.
#[track_caller]
fn refused_after(gateway: &Gateway, token: &str) -> Duration {
    let start = Instant::now();
    eventually("the revocation", || {
        (gateway.bearer("/a", token).status == 401).then_some(())
    });
    start.elapsed()
}

fn is_fresh(gateway: &Gateway) -> bool {
    let metrics = gateway.admin("GET", "/metrics").text();
    metrics.contains(r#"revocation_feed_stale{feed="redis"} 0"#)
}

#[test]
fn what_one_replica_revokes_every_replica_refuses_within_a_second() {
    let Some(redis) = Redis::start(&[]) else {
        return;
    };
    let key = Key::new("k1", "ES256");
    let issuer = Issuer::start(&[&key]);
    let upstream = Upstream::start();
    let a = replica(&issuer, &upstream, &redis);
    let b = replica(&issuer, &upstream, &redis);
    let token = |session: &str| session_token(&key, &issuer, session);
    for gateway in [&a, &b] {
        eventually("the exchange", || is_fresh(gateway).then_some(()));
    }
    for (from, to, session) in [(&a, &b, "s1"), (&b, &a, "s2"), (&a, &b, "s3")] {
        let token = token(session);
        assert_eq!(to.bearer("/a", &token).status, 200);
        end_session(&key, &issuer, from, session);
        let took = refused_after(to, &token);
        assert!(took < Duration::from_secs(1), "{took:?}");
        println!("refused on the other replica after {took:?}");
    }
    assert_eq!(b.bearer("/a", &token("s4")).status, 200);
}

#[test]
fn what_one_replica_revokes_ends_open_streams_on_another() {
    let Some(redis) = Redis::start(&[]) else {
        return;
    };
    let key = Key::new("k1", "ES256");
    let issuer = Issuer::start(&[&key]);
    let upstream = Upstream::with(|_, stream| {
        let head = "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\
                    Transfer-Encoding: chunked\r\n\r\n";
        let _ = stream.write_all(head.as_bytes());
        while stream.write_all(b"9\r\ndata: x\n\n\r\n").is_ok() {
            std::thread::park_timeout(Duration::from_millis(20));
        }
        Next::Close
    });
    let a = replica(&issuer, &upstream, &redis);
    let b = replica(&issuer, &upstream, &redis);
    for gateway in [&a, &b] {
        eventually("the exchange", || is_fresh(gateway).then_some(()));
    }
    let open = |session: &str| {
        let bearer = format!("Bearer {}", session_token(&key, &issuer, session));
        let mut connection = b.connect();
        let fields = [("authorization", bearer.as_str()), ("connection", "close")];
        connection.send(request("GET", "/stream", &fields));
        connection
            .read_exact(&mut [0; 64])
            .expect("the stream begins");
        connection
    };
    let (mut ended, mut kept) = (open("s1"), open("s2"));
    end_session(&key, &issuer, &a, "s1");
    let start = Instant::now();
    let mut text = Vec::new();
    let mut piece = [0; 4096];
    while let Ok(read @ 1..) = ended.read(&mut piece) {
        text.extend_from_slice(&piece[..read]);
        assert!(
            start.elapsed() < Duration::from_secs(5),
            "the stream goes on"
        );
    }
    let took = start.elapsed();
    println!("the stream on the other replica ended after {took:?}");
    assert!(took < Duration::from_secs(1), "{took:?}");
    assert!((0..20).all(|_| matches!(kept.read(&mut piece), Ok(1..))));
}

#[test]
fn a_replica_that_was_down_catches_up_and_so_does_a_new_one() {
    let Some(redis) = Redis::start(&[]) else {
        return;
    };
    let key = Key::new("k1", "ES256");
    let issuer = Issuer::start(&[&key]);
    let upstream = Upstream::start();
    let a = replica(&issuer, &upstream, &redis);
    let b = replica(&issuer, &upstream, &redis);
    eventually("the exchange", || is_fresh(&b).then_some(()));
    drop(b);
    let token = session_token(&key, &issuer, "s1");
    end_session(&key, &issuer, &a, "s1");
    let b = replica(&issuer, &upstream, &redis);
    refused_after(&b, &token);
    // And what only one had while the others were away comes from it.
    drop(a);
    let second = session_token(&key, &issuer, "s2");
    end_session(&key, &issuer, &b, "s2");
    eventually("the entry in Redis", || {
        redis
            .run(&["ZRANGE", "portcullis:revocation:entries", "0", "-1"])
            .contains("\"s2\"")
            .then_some(())
    });
    drop(b);
    let c = replica(&issuer, &upstream, &redis);
    refused_after(&c, &token);
    refused_after(&c, &second);
}

#[test]
fn a_redis_that_is_killed_and_comes_back_empty_loses_nothing() {
    let Some(mut redis) = Redis::start(&[]) else {
        return;
    };
    let key = Key::new("k1", "ES256");
    let issuer = Issuer::start(&[&key]);
    let upstream = Upstream::start();
    let a = replica(&issuer, &upstream, &redis);
    let b = replica(&issuer, &upstream, &redis);
    let token = |session: &str| session_token(&key, &issuer, session);
    let (before, during_a, during_b) = (token("before"), token("during-a"), token("during-b"));
    end_session(&key, &issuer, &a, "before");
    refused_after(&b, &before);
    redis.kill();
    end_session(&key, &issuer, &a, "during-a");
    end_session(&key, &issuer, &b, "during-b");
    // What is known holds without it.
    for (gateway, ended, kept) in [(&a, &during_a, &during_b), (&b, &during_b, &during_a)] {
        assert_eq!(gateway.bearer("/a", ended).status, 401);
        assert_eq!(gateway.bearer("/a", &before).status, 401);
        assert_eq!(gateway.bearer("/a", kept).status, 200);
        eventually("staleness", || (!is_fresh(gateway)).then_some(()));
    }
    redis.restart();
    refused_after(&a, &during_b);
    refused_after(&b, &during_a);
    // A new replica, which can have it from Redis alone.
    let c = replica(&issuer, &upstream, &redis);
    for ended in [&before, &during_a, &during_b] {
        refused_after(&c, ended);
    }
    // Flushed while connected.
    redis.run(&["FLUSHALL"]);
    eventually("all of it again", || {
        let there = redis.run(&["ZRANGE", "portcullis:revocation:entries", "0", "-1"]);
        ["before", "during-a", "during-b"]
            .iter()
            .all(|session| there.contains(&format!("\"{session}\"")))
            .then_some(())
    });
    // Every entry once, and the marks.
    let entries = redis.run(&[
        "ZRANGEBYSCORE",
        "portcullis:revocation:entries",
        "0",
        "9999999999",
    ]);
    assert!(entries.starts_with("*3\r\n"), "{entries}");
    // A part of it evicted.
    redis.run(&["DEL", "portcullis:revocation:entries"]);
    eventually("the entries again", || {
        let there = redis.run(&["ZCARD", "portcullis:revocation:entries"]);
        (there.trim() >= ":4").then_some(())
    });
    redis.run(&["DEL", "portcullis:revocation:changes"]);
    assert_eq!(a.bearer("/a", &token("after")).status, 200);
    end_session(&key, &issuer, &a, "after");
    refused_after(&b, &token("after"));
}

#[test]
fn a_redis_that_hangs_or_answers_with_errors_delays_nobody_and_is_told() {
    let Some(redis) = Redis::start(&[]) else {
        return;
    };
    let key = Key::new("k1", "ES256");
    let issuer = Issuer::start(&[&key]);
    let upstream = Upstream::start();
    let a = replica(&issuer, &upstream, &redis);
    let b = replica(&issuer, &upstream, &redis);
    let token = |session: &str| session_token(&key, &issuer, session);
    for gateway in [&a, &b] {
        eventually("the exchange", || is_fresh(gateway).then_some(()));
    }
    redis.signal("-STOP");
    let start = Instant::now();
    end_session(&key, &issuer, &a, "hung");
    assert_eq!(a.bearer("/a", &token("hung")).status, 401);
    assert!(
        start.elapsed() < Duration::from_secs(1),
        "{:?}",
        start.elapsed()
    );
    eventually("staleness", || (!is_fresh(&a)).then_some(()));
    redis.signal("-CONT");
    refused_after(&b, &token("hung"));
    eventually("freshness", || is_fresh(&a).then_some(()));

    // Every write is an error.
    redis.run(&["CONFIG", "SET", "maxmemory", "1"]);
    end_session(&key, &issuer, &a, "full");
    assert_eq!(a.bearer("/a", &token("full")).status, 401);
    eventually("staleness", || (!is_fresh(&a)).then_some(()));
    redis.run(&["CONFIG", "SET", "maxmemory", "0"]);
    refused_after(&b, &token("full"));
    eventually("freshness", || is_fresh(&a).then_some(()));
}

/// Asks the admin listener with a body.
#[track_caller]
fn administer(gateway: &Gateway, method: &str, path: &str, body: &Value) -> Answer {
    let address = gateway.process.admin_address().unwrap();
    let (host, body) = (address.to_string(), body.to_string());
    let length = body.len().to_string();
    let headers = [
        ("host", host.as_str()),
        ("authorization", ADMIN),
        ("content-type", "application/json"),
        ("content-length", &length),
        ("connection", "close"),
    ];
    Connection::plain(address)
        .send(request(method, path, &headers) + &body)
        .answer()
        .expect("no admin answer")
}

#[test]
fn a_revoked_key_logs_nobody_out() {
    let world = World::with(with_feeds);
    let fresh = Key::new("k2", "ES256");
    world.issuer.set_keys(&[&world.key, &fresh]);
    let entry = json!({"kind": "key", "issuer": world.issuer.url, "key_id": "k1"});
    let answer = administer(&world.gateway, "POST", "/revocations", &entry);
    assert_eq!(answer.status, 200, "{}", answer.text());
    let token = |key: &Key| typed(key, "logout+jwt", &logout_claims(&world.issuer));
    let answer = log_out(&world.gateway, &token(&world.key));
    assert_eq!(answer.status, 400, "{}", answer.text());
    eventually("the other key", || {
        (log_out(&world.gateway, &token(&fresh)).status == 200).then_some(())
    });
}

#[test]
fn what_operators_revoke_and_lift_is_shared_and_a_replica_that_was_away_brings_nothing_back() {
    let Some(redis) = Redis::start(&[]) else {
        return;
    };
    let key = Key::new("k1", "ES256");
    let issuer = Issuer::start(&[&key]);
    let upstream = Upstream::start();
    let a = replica(&issuer, &upstream, &redis);
    let b = replica(&issuer, &upstream, &redis);
    let token = session_token(&key, &issuer, "s1");
    let entry =
        json!({"kind": "session", "issuer": issuer.url, "session": "s1", "reason": "stolen"});
    let revoke = |gateway: &Gateway| {
        let answer = administer(gateway, "POST", "/revocations", &entry);
        assert_eq!(answer.status, 200, "{}", answer.text());
    };
    let lift = |gateway: &Gateway| {
        let target = json!({"kind": "session", "issuer": issuer.url, "session": "s1"});
        let answer = administer(gateway, "DELETE", "/revocations", &target);
        assert_eq!(answer.status, 200, "{}", answer.text());
    };
    let passes = |gateway: &Gateway| {
        eventually("the lift", || {
            (gateway.bearer("/a", &token).status == 200).then_some(())
        });
    };
    revoke(&a);
    refused_after(&b, &token);
    let listed = b.admin("GET", "/revocations").text();
    assert!(
        listed.contains("\"redis\"") && listed.contains("stolen"),
        "{listed}"
    );
    lift(&b);
    passes(&a);
    // Revoked again, that is what counts.
    revoke(&b);
    refused_after(&a, &token);
    refused_after(&replica(&issuer, &upstream, &redis), &token);
    // Lifted while one is away, with the entry in its own store.
    let Gateway {
        process,
        config,
        document,
        folder,
    } = b;
    drop(process);
    lift(&a);
    let b = Gateway {
        process: Process::start(Options::new(config.clone())).unwrap(),
        config,
        document,
        folder,
    };
    eventually("the exchange", || is_fresh(&b).then_some(()));
    passes(&b);
    assert_eq!(a.bearer("/a", &token).status, 200);
}

#[test]
fn redis_is_spoken_to_over_tls_with_a_password_and_only_to_the_right_server() {
    let folder = tempfile::tempdir().unwrap();
    let (authority, stranger) = (Authority::new("ours"), Authority::new("another"));
    let leaf = authority.server(&["localhost"]);
    let path = |name: &str, text: &str| {
        let path = folder.path().join(name);
        std::fs::write(&path, text).unwrap();
        path.display().to_string()
    };
    let (chain, own) = (
        path("chain.pem", &leaf.chain_pem),
        path("key.pem", &leaf.key_pem),
    );
    let (good, bad) = (
        path("ca.pem", &authority.pem),
        path("other.pem", &stranger.pem),
    );
    let tls = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = tls.local_addr().unwrap().port().to_string();
    drop(tls);
    let Some(redis) = Redis::start(&[
        "--tls-port",
        &port,
        "--tls-cert-file",
        &chain,
        "--tls-key-file",
        &own,
        "--tls-ca-cert-file",
        &good,
        "--tls-auth-clients",
        "no",
        "--requirepass",
        "a-password",
    ]) else {
        return;
    };
    let key = Key::new("k1", "ES256");
    let issuer = Issuer::start(&[&key]);
    let upstream = Upstream::start();
    let replica = |authority: &str, password: &str| {
        let builder = with_feeds(Builder::guarded(&upstream, &issuer));
        let password = builder.file("password", password);
        let builder = builder.with(|document| {
            document["revocation"]["redis"] = json!({
                "url": format!("rediss://localhost:{port}/3"),
                "password": format!("file:{}", password.display()),
                "tls": {"authorities": [authority]},
            });
            for route in document["routes"].as_array_mut().unwrap() {
                route["revocation"] = json!({"when_stale": "allow"});
            }
        });
        builder.start()
    };
    let (a, b) = (replica(&good, "a-password"), replica(&good, "a-password"));
    let token = session_token(&key, &issuer, "s1");
    end_session(&key, &issuer, &a, "s1");
    refused_after(&b, &token);
    for (authority, password) in [(&bad, "a-password"), (&good, "a-guess")] {
        let gateway = replica(authority, password);
        eventually("a failure", || {
            let metrics = gateway.admin("GET", "/metrics").text();
            metrics
                .contains(r#"revocation_events_total{feed="redis",outcome="failed"}"#)
                .then_some(())
        });
        assert!(!is_fresh(&gateway));
        assert_eq!(gateway.bearer("/a", &token).status, 200, "it cannot know");
    }
    drop(redis);
}

#[test]
fn what_has_ended_goes_from_redis_too_and_what_is_no_entry_harms_nobody() {
    let Some(redis) = Redis::start(&[]) else {
        return;
    };
    let entries = "portcullis:revocation:entries";
    let session = |name: &str, until: u64| {
        format!(r#"00 {{"kind":"session","issuer":"i","session":"{name}","until":{until}}}"#)
    };
    let (past, later) = (session("past", now() - 10), session("later", now() + 5_000));
    redis.run(&["ZADD", entries, &(now() - 10).to_string(), &past]);
    redis.run(&["ZADD", entries, &(now() + 5_000).to_string(), &later]);
    redis.run(&["ZADD", entries, &(now() + 5_000).to_string(), "nonsense"]);
    redis.run(&[
        "XADD",
        "portcullis:revocation:changes",
        "*",
        "revoke",
        "nonsense",
    ]);
    let key = Key::new("k1", "ES256");
    let issuer = Issuer::start(&[&key]);
    let upstream = Upstream::start();
    let gateway = replica(&issuer, &upstream, &redis);
    eventually("the exchange", || is_fresh(&gateway).then_some(()));
    let there = redis.run(&["ZRANGE", entries, "0", "-1"]);
    assert!(
        !there.contains("past") && there.contains("later"),
        "{there}"
    );
    redis.run(&["XADD", "portcullis:revocation:changes", "*", "revoke", "{}"]);
    redis.run(&["XADD", "portcullis:revocation:changes", "*", "dance", "x"]);
    eventually("the count", || {
        let metrics = gateway.admin("GET", "/metrics").text();
        metrics
            .contains(r#"revocation_events_total{feed="redis",outcome="not_understood"} 2"#)
            .then_some(())
    });
    let listed = gateway.admin("GET", "/revocations").text();
    assert!(listed.contains("later"), "{listed}");
    assert!(is_fresh(&gateway));
}
