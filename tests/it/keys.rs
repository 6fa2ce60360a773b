//! Key sets: rotation fails no request, storms do not reach the issuer, faults remove no good key.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use serde_json::json;

use crate::support::eventually;
use crate::support::gateway::{Builder, World};
use crate::support::issuer::{Behaviour, Issuer, Key, b64};
use crate::support::upstream::Upstream;

fn quick(builder: Builder) -> Builder {
    builder.with(|document| {
        document["authentication_failures"] = json!({"enabled": false});
    })
}

#[test]
fn a_new_key_is_accepted_without_a_restart() {
    let world = World::with(quick);
    let fresh = Key::new("k2", "EdDSA");
    world.issuer.set_keys(&[&world.key, &fresh]);
    let token = fresh.token(&world.issuer.claims("alice"));
    eventually("the new key", || {
        (world.gateway.bearer("/a", &token).status == 200).then_some(())
    });
    assert_eq!(
        world.gateway.bearer("/a", &world.token("alice")).status,
        200
    );
}

#[test]
fn a_removed_key_ends_cached_tokens_too() {
    let world = World::with(|builder| {
        quick(builder).with(|document| {
            document["issuers"]["main"]["refresh"] = json!({"interval": "1s", "minimum": "1s"});
        })
    });
    world.issuer.cache_control("max-age=1");
    let token = world.token("alice");
    assert_eq!(world.gateway.bearer("/a", &token).status, 200);
    let fresh = Key::new("k2", "ES256");
    world.issuer.set_keys(&[&fresh]);
    eventually("the key's end", || {
        (world.gateway.bearer("/a", &token).status == 401).then_some(())
    });
    assert_eq!(
        world
            .gateway
            .bearer("/a", &fresh.token(&world.issuer.claims("alice")))
            .status,
        200
    );
}

#[test]
fn a_kid_reused_for_another_key_ends_cached_tokens_too() {
    let world = World::with(|builder| {
        quick(builder).with(|document| {
            document["issuers"]["main"]["refresh"] = json!({"interval": "1s", "minimum": "1s"});
        })
    });
    world.issuer.cache_control("max-age=1");
    let token = world.token("alice");
    assert_eq!(world.gateway.bearer("/a", &token).status, 200);
    world.issuer.set_keys(&[&Key::new("k1", "ES256")]);
    eventually("the key's end", || {
        (world.gateway.bearer("/a", &token).status == 401).then_some(())
    });
}

#[test]
fn a_storm_of_unknown_kids_costs_the_issuer_little_and_good_callers_nothing() {
    let world = World::with(quick);
    let token = world.token("alice");
    assert_eq!(world.gateway.bearer("/a", &token).status, 200);
    let before = world.issuer.fetches();
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for _ in 0..250 {
                    let mut key = world.key.clone();
                    key.kid = format!("{:x}", rand::random::<u64>());
                    assert_eq!(
                        world
                            .gateway
                            .bearer("/a", &key.token(&world.issuer.claims("mallory")))
                            .status,
                        401
                    );
                }
                done.store(true, Ordering::SeqCst);
            });
        }
        while !done.load(Ordering::SeqCst) {
            let start = Instant::now();
            assert_eq!(world.gateway.bearer("/a", &token).status, 200);
            assert!(start.elapsed() < Duration::from_secs(5));
        }
    });
    let fetches = world.issuer.fetches() - before;
    assert!(fetches <= 10, "1,000 unknown kids caused {fetches} fetches");
}

#[test]
fn good_keys_survive_every_fault_of_the_issuer() {
    let world = World::with(|builder| {
        quick(builder).with(|document| {
            document["issuers"]["main"]["refresh"] = json!({"interval": "1s", "minimum": "1s"});
        })
    });
    world.issuer.cache_control("max-age=1");
    let token = world.token("alice");
    for behaviour in [
        Behaviour::Status(500),
        Behaviour::Status(404),
        Behaviour::Reset,
        Behaviour::Body(String::new()),
        Behaviour::Body("<html>".to_owned()),
        Behaviour::Body("{\"keys\":[]}".to_owned()),
        Behaviour::Body("{\"keys\":[{\"kty\":\"oct\",\"k\":\"AAAA\"}]}".to_owned()),
        Behaviour::Body(format!(
            "{{\"keys\":[],\"x\":\"{}\"}}",
            "x".repeat(2_000_000)
        )),
        Behaviour::Body("[".repeat(100_000)),
    ] {
        world.issuer.behave(behaviour.clone());
        let seen = world.issuer.fetches();
        // An unknown kid asks for a fetch at once, if the budget allows; else the timer does.
        let mut odd = world.key.clone();
        odd.kid = format!("odd-{seen}");
        assert_eq!(
            world
                .gateway
                .bearer("/a", &odd.token(&world.issuer.claims("bob")))
                .status,
            401
        );
        eventually("a fetch", || (world.issuer.fetches() > seen).then_some(()));
        assert_eq!(
            world.gateway.bearer("/a", &token).status,
            200,
            "{behaviour:?}"
        );
    }
}

#[test]
fn one_odd_key_does_not_spoil_the_set() {
    let key = Key::new("good", "ES256");
    let issuer = Issuer::start(&[&key]);
    let mut twin = Key::new("twin", "ES256").jwk();
    twin["kid"] = json!("dup");
    let duplicated = Key::new("dup", "ES256");
    issuer.set_jwks(vec![
        json!({"kty": "XYZ", "kid": "a"}),
        json!({"kty": "EC", "crv": "P-256", "kid": "b", "x": "AA", "y": "AA"}),
        json!({"kty": "RSA", "kid": "weak", "n": b64([0xff; 128]), "e": "AQAB"}),
        json!({"kty": "oct", "kid": "sym", "k": b64("secret-secret-secret-secret-secret")}),
        json!("not even an object"),
        duplicated.jwk(),
        twin,
        key.jwk(),
    ]);
    let upstream = Upstream::start();
    let gateway = quick(Builder::guarded(&upstream, &issuer)).start();
    assert_eq!(
        gateway
            .bearer("/a", &key.token(&issuer.claims("alice")))
            .status,
        200
    );
    // Two different keys under one kid: neither is trusted.
    assert_eq!(
        gateway
            .bearer("/a", &duplicated.token(&issuer.claims("alice")))
            .status,
        401
    );
    let header = json!({"alg": "HS256", "kid": "sym", "typ": "at+jwt"}).to_string();
    let message = format!(
        "{}.{}",
        b64(header),
        b64(issuer.claims("alice").to_string())
    );
    let secret = aws_lc_rs::hmac::Key::new(
        aws_lc_rs::hmac::HMAC_SHA256,
        b"secret-secret-secret-secret-secret",
    );
    let tag = aws_lc_rs::hmac::sign(&secret, message.as_bytes());
    assert_eq!(
        gateway
            .bearer("/a", &format!("{message}.{}", b64(tag)))
            .status,
        401
    );
}

#[test]
fn keys_restricted_to_other_uses_verify_nothing() {
    for (member, value) in [
        ("use", json!("enc")),
        ("key_ops", json!(["sign"])),
        ("key_ops", json!(["encrypt"])),
        ("alg", json!("ES384")),
    ] {
        let (key, spare) = (Key::new("k1", "ES256"), Key::new("spare", "ES256"));
        let issuer = Issuer::start(&[]);
        let mut jwk = key.jwk();
        jwk[member] = value.clone();
        issuer.set_jwks(vec![jwk, spare.jwk()]);
        let upstream = Upstream::start();
        let gateway = quick(Builder::guarded(&upstream, &issuer)).start();
        let answer = gateway.bearer("/a", &key.token(&issuer.claims("alice")));
        assert_eq!(answer.status, 401, "{member}: {value}");
        assert_eq!(
            gateway
                .bearer("/a", &spare.token(&issuer.claims("alice")))
                .status,
            200
        );
    }
}

#[test]
fn without_keys_nobody_is_let_in_and_readiness_says_why() {
    let key = Key::new("k1", "ES256");
    let issuer = Issuer::start(&[&key]);
    issuer.behave(Behaviour::Status(503));
    let upstream = Upstream::start();
    let mut builder = quick(Builder::guarded(&upstream, &issuer));
    // `start` waits for readiness when there are issuers; this gateway is not ready, and says so.
    let issuers = builder.document["issuers"].take();
    let routes = builder.document["routes"].clone();
    builder.document.as_object_mut().unwrap().remove("issuers");
    for route in builder.document["routes"].as_array_mut().unwrap() {
        route["authn"] = json!(["anonymous"]);
    }
    let mut gateway = builder.start();
    let answer = gateway.reload(|document| {
        document["issuers"] = issuers;
        document["routes"] = routes;
    });
    assert_eq!(answer.status, 200, "{}", answer.text());
    let token = key.token(&issuer.claims("alice"));
    let answer = gateway.bearer("/a", &token);
    assert_eq!(answer.status, 503);
    assert_eq!(answer.code(), "authentication_unavailable");
    assert!(answer.header("retry-after").is_some());
    assert!(upstream.seen().is_empty());
    let ready = gateway.admin("GET", "/ready");
    assert_eq!(ready.status, 503);
    assert!(ready.text().contains("main"), "{}", ready.text());
    issuer.behave(Behaviour::Good);
    eventually("recovery", || {
        (gateway.bearer("/a", &token).status == 200).then_some(())
    });
}

#[test]
fn a_hanging_issuer_delays_nobody_with_a_known_key() {
    let world = World::with(quick);
    let token = world.token("alice");
    assert_eq!(world.gateway.bearer("/a", &token).status, 200);
    world.issuer.behave(Behaviour::Hang);
    let mut odd = world.key.clone();
    odd.kid = "unknown".to_owned();
    let odd = odd.token(&world.issuer.claims("bob"));
    std::thread::scope(|scope| {
        for _ in 0..20 {
            scope.spawn(|| {
                let start = Instant::now();
                assert!(matches!(world.gateway.bearer("/a", &odd).status, 401 | 503));
                // Each waits its own short deadline, never in line behind the others.
                assert!(
                    start.elapsed() < Duration::from_secs(5),
                    "{:?}",
                    start.elapsed()
                );
            });
        }
        for _ in 0..20 {
            assert_eq!(
                world.gateway.bearer("/a", &world.token("alice")).status,
                200
            );
        }
    });
}
