//! Key sets: rotation fails no request, storms do not reach the issuer, faults remove no good key.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use serde_json::json;

use crate::support::client::{Connection, request};
use crate::support::eventually;
use crate::support::gateway::{ADMIN, Builder, Gateway, World};
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

/// The value of a metric's series, zero when there is none.
fn metric(gateway: &Gateway, series: &str) -> f64 {
    let text = gateway.admin("GET", "/metrics").text();
    let line = text.lines().find(|line| line.starts_with(series));
    line.map_or(0.0, |line| {
        line.rsplit(' ').next().unwrap().parse().unwrap()
    })
}

fn event(gateway: &Gateway, event: &str) -> f64 {
    let series = format!("portcullis_jwks_events_total{{issuer=\"main\",event=\"{event}\"}}");
    metric(gateway, &series)
}

/// Ends what runs beside a test, also when that fails.
struct Ends<'d>(&'d AtomicBool);

impl Drop for Ends<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

/// A connection that sends one token after the other.
struct Caller(Connection);

impl Caller {
    fn of(gateway: &Gateway) -> Self {
        Self(gateway.connect())
    }

    fn send(&mut self, token: &str) -> u16 {
        let field = format!("Bearer {token}");
        self.0
            .send(request("GET", "/a", &[("authorization", &field)]));
        self.0.answer().expect("the connection ended").status
    }
}

/// Nobody looks at the signature of a token whose key is unknown.
fn junk(issuer: &Issuer, kid: &str) -> String {
    let header = json!({"alg": "ES256", "kid": kid, "typ": "at+jwt"}).to_string();
    let claims = issuer.claims("mallory").to_string();
    format!("{}.{}.{}", b64(header), b64(claims), b64([7; 64]))
}

/// What came of a while of rotations.
struct Rotated {
    sent: usize,
    fetches: usize,
    /// Of the first request under each new key.
    first: Vec<Duration>,
    /// Of all requests.
    all: Vec<Duration>,
}

/// Publishes a new key beside the one before, and signs with it at once, time and again: after so many
/// requests at least, and so much time. No request under either key may fail.
fn rotate(world: &World, rotations: usize, requests: usize, every: Duration) -> Rotated {
    let current = Mutex::new((world.key.clone(), world.key.clone()));
    let done = AtomicBool::new(false);
    let sent = AtomicUsize::new(0);
    let took = Mutex::new((Vec::new(), Vec::new()));
    let before = world.issuer.fetches();
    std::thread::scope(|scope| {
        let ends = Ends(&done);
        for number in 0..4 {
            let (current, done, sent, took) = (&current, &done, &sent, &took);
            scope.spawn(move || {
                let mut caller = Caller::of(&world.gateway);
                let mut met = String::new();
                while !done.load(Ordering::SeqCst) {
                    let (previous, newest) = current.lock().unwrap().clone();
                    // The newest may have been published a moment ago.
                    for key in [newest, previous] {
                        let token = key.token(&world.issuer.claims(&format!("caller-{number}")));
                        let begun = Instant::now();
                        let status = caller.send(&token);
                        let time = begun.elapsed();
                        // Between the reading and the sending a rotation may have taken it back.
                        let (previous, newest) = current.lock().unwrap().clone();
                        if key.kid == previous.kid || key.kid == newest.kid {
                            assert_eq!(status, 200, "{}", key.kid);
                            sent.fetch_add(1, Ordering::SeqCst);
                            let mut took = took.lock().unwrap();
                            took.1.push(time);
                            if key.kid == newest.kid && met != key.kid {
                                met.clone_from(&key.kid);
                                took.0.push(time);
                            }
                        }
                    }
                }
            });
        }
        for number in 0..rotations {
            let begun = Instant::now();
            let key = Key::new(&format!("r{number}"), "ES256");
            let mut current = current.lock().unwrap();
            let previous = current.1.clone();
            world.issuer.set_keys(&[&previous, &key]);
            *current = (previous, key);
            drop(current);
            let enough = sent.load(Ordering::SeqCst) + requests;
            eventually("requests under these keys", || {
                let there = sent.load(Ordering::SeqCst) >= enough && begun.elapsed() >= every;
                there.then_some(())
            });
        }
        drop(ends);
    });
    let (mut first, mut all) = took.into_inner().unwrap();
    first.sort_unstable();
    all.sort_unstable();
    Rotated {
        sent: sent.into_inner(),
        fetches: world.issuer.fetches() - before,
        first,
        all,
    }
}

#[test]
fn no_valid_request_fails_while_the_issuer_rotates() {
    let world = World::with(|builder| {
        quick(builder).with(|document| {
            document["workers"] = json!(2);
            // The machine may be busy; what is tested is that nothing is missed.
            document["issuers"]["main"]["refresh"] = json!({"wait": "5s"});
        })
    });
    let rotated = rotate(&world, 10, 50, Duration::ZERO);
    assert!(rotated.sent >= 500, "{} requests", rotated.sent);
    let fetches = rotated.fetches;
    assert!(fetches <= 2 * 10 + 12, "{fetches} fetches");
}

/// `cargo test --test it -- --ignored --nocapture keys::two_minutes`, with everything as it is by
/// default.
#[test]
#[ignore = "takes two minutes"]
fn two_minutes_of_a_rotation_every_second_fail_no_request() {
    let world =
        World::with(|builder| quick(builder).with(|document| document["workers"] = json!(2)));
    let rotated = rotate(&world, 120, 1, Duration::from_secs(1));
    let at = |times: &[Duration], share: f64| {
        let place = (times.len() as f64 * share) as usize;
        times[place.min(times.len() - 1)]
    };
    let Rotated {
        sent,
        fetches,
        first,
        all,
    } = &rotated;
    println!("120 rotations, {sent} requests, none failed; {fetches} fetches");
    println!(
        "all requests: p50 {:?}, p99 {:?}, max {:?}",
        at(all, 0.5),
        at(all, 0.99),
        at(all, 1.0)
    );
    println!(
        "first of a new key: p50 {:?}, p99 {:?}, max {:?}",
        at(first, 0.5),
        at(first, 0.99),
        at(first, 1.0)
    );
    assert!(*fetches <= 2 * 120 + 24, "{fetches} fetches");
}

#[test]
fn a_new_key_is_found_in_the_time_that_is_stated_while_a_storm_goes_on() {
    let world = World::with(|builder| {
        quick(builder).with(|document| {
            document["workers"] = json!(2);
            // Five and a half seconds at most: a minute divided by half of it and one.
            document["issuers"]["main"]["refresh"] = json!({"budget": 20});
        })
    });
    let done = AtomicBool::new(false);
    let before = world.issuer.fetches();
    let begun = Instant::now();
    let junk_sent = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                let mut caller = Caller::of(&world.gateway);
                while !done.load(Ordering::SeqCst) {
                    let kid = format!("{:x}", rand::random::<u64>());
                    assert_eq!(caller.send(&junk(&world.issuer, &kid)), 401);
                    junk_sent.fetch_add(1, Ordering::SeqCst);
                }
            });
        }
        let _ends = Ends(&done);
        let limited = "portcullis_jwks_unknown_keys_total{issuer=\"main\",outcome=\"limited\"}";
        eventually("an empty bucket", || {
            (metric(&world.gateway, limited) > 0.0).then_some(())
        });
        // Not published ahead of its use, which is the worst case.
        let fresh = Key::new("fresh", "EdDSA");
        world.issuer.set_keys(&[&world.key, &fresh]);
        let published = Instant::now();
        eventually("the new key", || {
            let token = fresh.token(&world.issuer.claims("alice"));
            (world.gateway.bearer("/a", &token).status == 200).then_some(())
        });
        let delay = published.elapsed();
        assert!(delay < Duration::from_secs(8), "{delay:?}");
    });
    let minutes = usize::try_from(begun.elapsed().as_secs() / 60).unwrap() + 1;
    let fetches = world.issuer.fetches() - before;
    let sent = junk_sent.load(Ordering::SeqCst);
    assert!(
        fetches <= 20 * minutes + 1,
        "{fetches} fetches for {sent} junk tokens"
    );
}

#[test]
fn tens_of_thousands_of_random_kids_stay_within_the_budget() {
    let world = World::with(|builder| {
        quick(builder).with(|document| {
            document["workers"] = json!(2);
            document["issuers"]["main"]["refresh"] = json!({"budget": 4});
        })
    });
    let token = world.token("alice");
    let before = world.issuer.fetches();
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                let mut stream = world.gateway.connect();
                for _ in 0..50 {
                    // Pipelined: as fast as the gateway takes them.
                    let batch: String = (0..100)
                        .map(|_| {
                            let kid = format!("{:x}", rand::random::<u64>());
                            let field = format!("Bearer {}", junk(&world.issuer, &kid));
                            let bytes = request("GET", "/a", &[("authorization", &field)]);
                            String::from_utf8_lossy(bytes.as_ref()).into_owned()
                        })
                        .collect();
                    stream.send(batch);
                    for _ in 0..100 {
                        assert_eq!(stream.answer().unwrap().status, 401);
                    }
                }
            });
        }
        let mut caller = Caller::of(&world.gateway);
        for _ in 0..200 {
            assert_eq!(caller.send(&token), 200);
        }
    });
    let fetches = world.issuer.fetches() - before;
    assert!(fetches <= 4, "20,000 unknown kids caused {fetches} fetches");
}

#[test]
fn keys_kept_on_disk_outlive_a_restart_while_the_issuer_is_away() {
    let key = Key::new("k1", "ES256");
    let issuer = Issuer::start(&[&key]);
    let upstream = Upstream::start();
    let state = tempfile::tempdir().unwrap();
    let file = state.path().join("keys/main.json");
    let start = || {
        quick(Builder::guarded(&upstream, &issuer))
            .with(|document| {
                document["issuers"]["main"]["keys"]["last_known_good"] =
                    json!({"file": file, "keep": "24h"});
            })
            .start()
    };
    let gateway = start();
    let token = key.token(&issuer.claims("alice"));
    assert_eq!(gateway.bearer("/a", &token).status, 200);
    eventually("the file", || file.exists().then_some(()));
    drop(gateway);

    issuer.behave(Behaviour::Status(503));
    let gateway = start();
    assert_eq!(gateway.bearer("/a", &token).status, 200);
    let fresh = key.token(&issuer.claims("bob"));
    assert_eq!(gateway.bearer("/a", &fresh).status, 200);
    // It says on what it stands.
    let ready = eventually("the failed fetch", || {
        let ready = gateway.admin("GET", "/ready");
        ready.text().contains("kept on disk").then_some(ready)
    });
    assert_eq!(ready.status, 200, "{}", ready.text());
    let status = gateway.admin("GET", "/status").json();
    let main = &status["issuers"]["main"];
    assert_eq!(main["source"], "disk");
    assert!(main["believed_for_seconds"].as_u64().unwrap() <= 86_400);
    assert_eq!(
        metric(&gateway, "portcullis_jwks_from_disk{issuer=\"main\"}"),
        1.0
    );
    let fetched_at = "portcullis_jwks_last_success_timestamp_seconds{issuer=\"main\"}";
    assert!(metric(&gateway, fetched_at) > 1.6e9);
    assert_eq!(event(&gateway, "from_disk"), 1.0);

    issuer.behave(Behaviour::Good);
    eventually("the issuer", || {
        let status = gateway.admin("GET", "/status").json();
        (status["issuers"]["main"]["source"] == "network").then_some(())
    });
    assert_eq!(
        metric(&gateway, "portcullis_jwks_from_disk{issuer=\"main\"}"),
        0.0
    );
}

#[test]
fn a_distrusted_key_ends_cached_tokens_on_every_worker_at_once_until_it_is_trusted_again() {
    let spare = Key::new("spare", "ES256");
    let world =
        World::with(|builder| quick(builder).with(|document| document["workers"] = json!(2)));
    world.issuer.set_keys(&[&world.key, &spare]);
    let (token, other) = (
        world.token("alice"),
        spare.token(&world.issuer.claims("bob")),
    );
    eventually("both keys", || {
        (world.gateway.bearer("/a", &other).status == 200).then_some(())
    });
    let mut callers: Vec<_> = (0..8).map(|_| Caller::of(&world.gateway)).collect();
    for caller in &mut callers {
        assert_eq!(caller.send(&token), 200);
    }
    let keys = world.gateway.admin("GET", "/keys").json();
    let listed = &keys["issuers"]["main"]["published"];
    let thumbprint = listed[0]["thumbprint"].as_str().unwrap().to_owned();
    assert_eq!(listed[0]["kid"], "k1");

    let body = json!({"issuer": "main", "kid": "k1"});
    let answer = world.gateway.admin_post("/keys/distrust", &body);
    assert_eq!(answer.status, 200, "{}", answer.text());
    let made = &answer.json()["distrusted"]["main"];
    assert_eq!(made["keys"][0]["thumbprint"], thumbprint.as_str());
    assert_eq!(made["kept"], json!(null), "no file is configured");
    for caller in &mut callers {
        assert_eq!(caller.send(&token), 401);
        assert_eq!(caller.send(&other), 200);
    }
    let answer = world.gateway.bearer("/a", &token);
    let id = answer.json()["request_id"].as_str().unwrap().to_owned();
    let record = world.gateway.record(&id);
    assert!(
        record.to_string().contains("token.key_distrusted"),
        "{record}"
    );

    // The same material under another name, fetched anew; other material under the old name.
    let mut renamed = world.key.clone();
    renamed.kid = "k2".to_owned();
    let replaced = Key::new("k1", "ES256");
    let late = Key::new("late", "ES256");
    world.issuer.set_keys(&[&renamed, &replaced, &spare, &late]);
    let claims = || world.issuer.claims("carol");
    eventually("the fetch", || {
        (world.gateway.bearer("/a", &late.token(&claims())).status == 200).then_some(())
    });
    assert_eq!(
        world.gateway.bearer("/a", &renamed.token(&claims())).status,
        401
    );
    assert_eq!(world.gateway.bearer("/a", &token).status, 401);
    assert_eq!(
        world
            .gateway
            .bearer("/a", &replaced.token(&claims()))
            .status,
        200
    );

    // Over a reload, too.
    let mut world = world;
    let answer = world.gateway.reload(|document| {
        document["issuers"]["main"]["refresh"] = json!({"interval": "5m"});
    });
    assert_eq!(answer.status, 200, "{}", answer.text());
    assert_eq!(
        world
            .gateway
            .bearer("/a", &renamed.token(&world.issuer.claims("carol")))
            .status,
        401
    );

    let body = json!({"issuer": world.issuer.url, "thumbprint": thumbprint});
    let answer = world.gateway.admin_post("/keys/trust", &body);
    assert_eq!(answer.status, 200, "{}", answer.text());
    assert_eq!(
        world
            .gateway
            .bearer("/a", &renamed.token(&world.issuer.claims("carol")))
            .status,
        200
    );
    assert_eq!(event(&world.gateway, "trusted"), 1.0);
}

#[test]
fn distrust_stands_in_the_file_and_survives_a_restart() {
    let (key, spare) = (Key::new("k1", "ES256"), Key::new("k2", "ES256"));
    let issuer = Issuer::start(&[&key, &spare]);
    let upstream = Upstream::start();
    let state = tempfile::tempdir().unwrap();
    let start = || {
        quick(Builder::guarded(&upstream, &issuer))
            .with(|document| {
                document["issuers"]["main"]["keys"]["last_known_good"] =
                    json!({"file": state.path().join("main.json")});
            })
            .start()
    };
    let body = json!({"issuer": "main", "kid": "k1"});
    let gateway = start();
    let answer = gateway.admin_post("/keys/distrust", &body);
    assert_eq!(
        answer.json()["distrusted"]["main"]["kept"],
        true,
        "{}",
        answer.text()
    );
    drop(gateway);
    for behaviour in [Behaviour::Good, Behaviour::Status(500)] {
        issuer.behave(behaviour);
        let gateway = start();
        let token = |key: &Key| key.token(&issuer.claims("alice"));
        assert_eq!(gateway.bearer("/a", &token(&spare)).status, 200);
        assert_eq!(gateway.bearer("/a", &token(&key)).status, 401);
    }
}

#[test]
fn a_distrusted_key_stays_so_when_the_issuers_block_is_renamed() {
    let (key, spare) = (Key::new("k1", "ES256"), Key::new("k2", "ES256"));
    let issuer = Issuer::start(&[&key, &spare]);
    let upstream = Upstream::start();
    let mut gateway = quick(Builder::guarded(&upstream, &issuer)).start();
    let token = |key: &Key| key.token(&issuer.claims("alice"));
    let body = json!({"issuer": "main", "kid": "k1"});
    assert_eq!(gateway.admin_post("/keys/distrust", &body).status, 200);
    assert_eq!(gateway.bearer("/a", &token(&key)).status, 401);
    let answer = gateway.reload(|document| {
        let text = document.to_string().replace("\"main\"", "\"renamed\"");
        *document = serde_json::from_str(&text).unwrap();
    });
    assert_eq!(answer.status, 200, "{}", answer.text());
    assert_eq!(gateway.bearer("/a", &token(&spare)).status, 200);
    assert_eq!(gateway.bearer("/a", &token(&key)).status, 401);
    let page = gateway.admin("GET", "/keys").json();
    assert_eq!(page["issuers"]["renamed"]["distrust"][0]["kid"], "k1");
}

#[test]
fn a_key_is_distrusted_in_every_block_of_its_issuer_also_when_one_cannot() {
    let (key, spare) = (Key::new("k1", "ES256"), Key::new("k2", "ES256"));
    let issuer = Issuer::start(&[&key, &spare]);
    let upstream = Upstream::start();
    let state = tempfile::tempdir().unwrap();
    let secret = state.path().join("secret");
    std::fs::write(&secret, "0123456789abcdef0123456789abcdef").unwrap();
    let gateway = quick(Builder::guarded(&upstream, &issuer))
        .with(|document| {
            let mut fixed = document["issuers"]["main"].clone();
            fixed["keys"] = json!({"secret": format!("file:{}", secret.display())});
            fixed["algorithms"] = json!(["HS256"]);
            // Comes before the other.
            document["issuers"]["a"] = fixed;
        })
        .start();
    let token = |key: &Key| key.token(&issuer.claims("alice"));
    assert_eq!(gateway.bearer("/a", &token(&key)).status, 200);
    let page = gateway.admin("GET", "/keys").json();
    let body = json!({"issuer": page["issuers"]["main"]["issuer"], "kid": "k1"});
    let answer = gateway.admin_post("/keys/distrust", &body);
    assert_eq!(answer.status, 409);
    assert!(answer.text().contains("done for main"), "{}", answer.text());
    assert_eq!(gateway.bearer("/a", &token(&key)).status, 401);
    assert_eq!(gateway.bearer("/a", &token(&spare)).status, 200);
}

#[test]
fn keys_are_distrusted_by_nobody_who_may_not() {
    let world = World::with(quick);
    let address = world.gateway.process.admin_address().unwrap();
    let body = json!({"issuer": "main", "kid": "k1"}).to_string();
    let post = |headers: &str, body: &str| {
        let length = body.len();
        let head = format!(
            "POST /keys/distrust HTTP/1.1\r\nhost: {address}\r\n{headers}content-length: {length}\r\n\r\n{body}"
        );
        Connection::plain(address).send(head).answer().unwrap()
    };
    let known = format!("authorization: {ADMIN}\r\n");
    assert_eq!(post("", &body).status, 401);
    assert_eq!(post("x-portcullis-admin: 1\r\n", &body).status, 401);
    assert_eq!(
        post(&format!("origin: http://evil.test\r\n{known}"), &body).status,
        403
    );
    for (bad, status) in [
        ("", 400),
        ("[]", 400),
        ("{\"issuer\":\"main\"}", 400),
        ("{\"issuer\":\"main\",\"kid\":\"\"}", 400),
        ("{\"issuer\":\"main\",\"kid\":\"k1\",\"more\":1}", 400),
        ("{\"issuer\":\"other\",\"kid\":\"k1\"}", 404),
    ] {
        assert_eq!(post(&known, bad).status, status, "{bad}");
    }
    let long = format!("{{\"issuer\":\"main\",\"kid\":\"{}\"}}", "k".repeat(70_000));
    assert_eq!(post(&known, &long).status, 413);
    assert_eq!(world.gateway.admin("GET", "/keys/distrust").status, 405);
    assert_eq!(
        world.gateway.bearer("/a", &world.token("alice")).status,
        200
    );
    assert_eq!(world.gateway.admin("POST", "/keys").status, 405);
}

#[test]
fn a_moved_key_set_is_followed_and_a_document_of_another_issuer_is_not() {
    let world = World::with(|builder| {
        quick(builder).with(|document| {
            document["issuers"]["main"]["refresh"] = json!({"interval": "1s", "minimum": "1s"});
        })
    });
    let token = world.token("alice");
    assert_eq!(world.gateway.bearer("/a", &token).status, 200);
    let fresh = Key::new("k2", "ES256");
    world.issuer.set_keys(&[&world.key, &fresh]);
    let moved = format!("{}/elsewhere/jwks2", world.issuer.url);
    world.issuer.discovery(&moved, &world.issuer.url);
    eventually("the new place", || {
        let token = fresh.token(&world.issuer.claims("bob"));
        (world.gateway.bearer("/a", &token).status == 200).then_some(())
    });
    assert_eq!(event(&world.gateway, "moved"), 1.0);

    // Keys of a document that names another issuer are nobody's; those that are known stay.
    let stranger = Key::new("k3", "ES256");
    world.issuer.set_keys(&[&stranger]);
    let again = format!("{}/third", world.issuer.url);
    world.issuer.discovery(&again, "https://other.test");
    eventually("the refusal", || {
        (event(&world.gateway, "issuer_mismatch") > 0.0).then_some(())
    });
    let claims = world.issuer.claims("carol");
    assert_eq!(
        world.gateway.bearer("/a", &stranger.token(&claims)).status,
        401
    );
    assert_eq!(world.gateway.bearer("/a", &token).status, 200);
    let ready = world.gateway.admin("GET", "/ready").text();
    assert!(ready.contains("byte for byte"), "{ready}");
}

#[test]
fn a_removed_key_may_be_given_a_grace() {
    let world = World::with(|builder| {
        quick(builder).with(|document| {
            document["issuers"]["main"]["refresh"] =
                json!({"interval": "1s", "minimum": "1s", "retire": "1h", "stale_limit": "2h"});
        })
    });
    let token = world.token("alice");
    assert_eq!(world.gateway.bearer("/a", &token).status, 200);
    world.issuer.set_keys(&[&Key::new("k2", "ES256")]);
    eventually("the removal", || {
        (event(&world.gateway, "removed") > 0.0).then_some(())
    });
    assert_eq!(world.gateway.bearer("/a", &token).status, 200);
    assert_eq!(world.gateway.bearer("/a", &world.token("bob")).status, 200);
    let keys = world.gateway.admin("GET", "/keys").json();
    let states: Vec<_> = keys["issuers"]["main"]["published"]
        .as_array()
        .unwrap()
        .iter()
        .map(|key| key["state"].as_str().unwrap().to_owned())
        .collect();
    assert_eq!(states, ["believed", "leaving"]);
    // Other material under its name ends the grace.
    world.issuer.set_keys(&[&Key::new("k1", "ES256")]);
    eventually("the end", || {
        (world.gateway.bearer("/a", &token).status == 401).then_some(())
    });
}
