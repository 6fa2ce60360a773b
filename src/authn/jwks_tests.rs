//! Fetching, keeping and distrusting keys.

use std::future::Future;

use tokio::time::sleep;

use super::*;
use crate::authn::source::jwks_uri;
use crate::authn::testing::{Signer, jwks};
use crate::fetch::testing::{Behaviour, Server};
use crate::fetch::{Fetcher, MAX_BODY, Target};

fn timing() -> Timing {
    Timing {
        interval: Duration::from_secs(600),
        minimum: Duration::from_secs(30),
        stale_limit: Duration::from_secs(3600),
        wait: Duration::from_secs(2),
        cooldown: Duration::from_millis(50),
        budget: 5,
    }
}

fn fetcher() -> Fetcher {
    Fetcher::new(&[])
        .unwrap()
        .with_bounds(Duration::from_millis(500), 64 * 1024)
}

fn store_from(source: Source, issuer: &str, timing: Timing) -> Arc<KeyStore> {
    let metrics = Arc::<Metrics>::default();
    Arc::new(KeyStore::new(
        "dev".into(),
        issuer.into(),
        source,
        timing,
        None,
        metrics,
    ))
}

fn store(server: &Server, timing: Timing) -> Arc<KeyStore> {
    let target = Target::parse(&server.url("/jwks")).unwrap();
    let store = store_from(Source::Url(fetcher(), target), "", timing);
    store.activate(&tokio::runtime::Handle::current());
    store
}

fn signer(kid: &str) -> Signer {
    Signer::new("ES256", kid)
}

async fn key(store: &KeyStore, kid: &str) -> Result<(), NoKey> {
    store
        .key(Some(&kid.into()), Algorithm::ES256)
        .await
        .map(|_| ())
}

/// Asks until the answer is this one.
async fn until<F: Future<Output = bool>>(what: &str, mut condition: impl FnMut() -> F) {
    let waited = timeout(Duration::from_secs(10), async {
        while !condition().await {
            sleep(Duration::from_millis(5)).await;
        }
    });
    assert!(waited.await.is_ok(), "{what}");
}

#[tokio::test]
async fn keys_are_fetched_ahead_and_two_hundred_first_requests_cause_one_fetch() {
    let server = Server::serving(jwks(&[&signer("a")])).await;
    let store = store(&server, timing());
    store.activate(&tokio::runtime::Handle::current());
    let requests: Vec<_> = (0..200)
        .map(|_| {
            let store = Arc::clone(&store);
            tokio::spawn(async move { key(&store, "a").await })
        })
        .collect();
    for request in requests {
        assert_eq!(request.await.unwrap(), Ok(()));
    }
    assert_eq!(server.hits(), 1);
    assert_eq!(store.status().keys, 1);
    assert_eq!(store.status().last_error, None);
}

#[tokio::test]
async fn a_thousand_random_key_ids_stay_within_the_budget_and_known_keys_do_not_wait() {
    let server = Server::serving(jwks(&[&signer("a")])).await;
    let store = store(&server, timing());
    assert_eq!(key(&store, "a").await, Ok(()));
    let strangers: Vec<_> = (0..1000)
        .map(|n| {
            let store = Arc::clone(&store);
            tokio::spawn(async move { key(&store, &format!("random-{n}")).await })
        })
        .collect();
    let begun = Instant::now();
    assert_eq!(key(&store, "a").await, Ok(()));
    assert!(begun.elapsed() < Duration::from_millis(50));
    for stranger in strangers {
        assert_eq!(stranger.await.unwrap(), Err(NoKey::Unknown));
    }
    // More of them, over many cool-downs.
    until("the budget is spent", || async {
        let _ = key(&store, &format!("more-{}", rand::random::<u64>())).await;
        store.demand().used == store.timing.budget
    })
    .await;
    sleep(store.timing.cooldown * 2).await;
    for n in 0..100 {
        assert_eq!(key(&store, &format!("last-{n}")).await, Err(NoKey::Unknown));
    }
    let budget = usize::try_from(store.timing.budget).unwrap();
    assert_eq!(server.hits(), 1 + budget);
    store.missing.run_pending_tasks();
    assert!(store.missing.entry_count() <= MAX_MISSING);
    assert_eq!(store.waiting.load(Ordering::Relaxed), 0);
}

#[tokio::test]
async fn a_rotated_key_is_found_by_its_first_token_and_the_old_one_is_gone() {
    let server = Server::serving(jwks(&[&signer("old")])).await;
    let store = store(&server, timing());
    assert_eq!(key(&store, "old").await, Ok(()));
    let old = store.find(Some(&"old".into()), Algorithm::ES256).unwrap();
    assert!(store.holds(&old.fingerprint));
    server.serve(jwks(&[&signer("new")]));
    until("the new key", || async { key(&store, "new").await.is_ok() }).await;
    assert_eq!(server.hits(), 2);
    assert!(!store.holds(&old.fingerprint));
    assert_eq!(key(&store, "old").await, Err(NoKey::Unknown));
}

#[tokio::test]
async fn no_failed_refresh_removes_good_keys_and_the_cooldown_counts_failures() {
    let server = Server::serving(jwks(&[&signer("a")])).await;
    let timing = Timing {
        budget: 60,
        ..timing()
    };
    let store = store(&server, timing);
    assert_eq!(key(&store, "a").await, Ok(()));
    let oct = r#"{"keys":[{"kty":"oct","k":"c2VjcmV0"}]}"#;
    let many = format!(
        r#"{{"keys":[{}]}}"#,
        vec![signer("a").jwk().to_string(); 101].join(",")
    );
    let deep = format!(r#"{{"keys":{}{}}}"#, "[".repeat(5000), "]".repeat(5000));
    let bodies = [
        oct,
        &many,
        &deep,
        "",
        "<html>",
        "{}",
        r#"{"keys":[]}"#,
        r#"{"keys":{}}"#,
        r#"{"keys":[],"keys":[]}"#,
    ];
    let faults = bodies
        .into_iter()
        .map(|body| Behaviour::Serve(String::new(), body.to_owned()))
        .chain([
            Behaviour::Status(500),
            Behaviour::Redirect,
            Behaviour::Hang,
            Behaviour::Endless,
            Behaviour::Truncate,
            Behaviour::Drop,
        ]);
    for fault in faults {
        server.behave(fault.clone());
        let before = store.status().attempts;
        until("an attempt", || async {
            assert_eq!(key(&store, "unknown").await, Err(NoKey::Unknown));
            store.status().attempts > before
        })
        .await;
        assert!(store.status().last_error.is_some(), "{fault:?}");
        let hits = server.hits();
        assert_eq!(key(&store, "other").await, Err(NoKey::Unknown), "{fault:?}");
        assert_eq!(server.hits(), hits, "{fault:?}");
        assert_eq!(key(&store, "a").await, Ok(()), "{fault:?}");
    }
    server.serve(jwks(&[&signer("b")]));
    until("the good set", || async { key(&store, "b").await.is_ok() }).await;
    assert_eq!(store.status().last_error, None);
}

#[tokio::test]
async fn a_request_waits_its_own_short_time_for_a_fetch_that_hangs() {
    let server = Server::start(Behaviour::Hang).await;
    let target = Target::parse(&server.url("/")).unwrap();
    let slow = Fetcher::new(&[]).unwrap();
    let short = Timing {
        wait: Duration::from_millis(200),
        ..timing()
    };
    let store = store_from(Source::Url(slow, target), "", short);
    store.activate(&tokio::runtime::Handle::current());
    until("the fetch", || async { server.hits() == 1 }).await;
    for _ in 0..2 {
        let begun = Instant::now();
        assert_eq!(key(&store, "a").await, Err(NoKey::Unavailable));
        let waited = begun.elapsed();
        assert!(waited < store.timing.wait * 3, "{waited:?}");
    }
    assert_eq!(server.hits(), 1);
    // More than so many do not wait at all.
    let places: Vec<_> = (0..MAX_WAITING)
        .map(|_| Place::take(&store.waiting).unwrap())
        .collect();
    let begun = Instant::now();
    assert_eq!(key(&store, "a").await, Err(NoKey::Unavailable));
    assert!(begun.elapsed() < store.timing.wait);
    drop(places);
}

#[tokio::test]
async fn keys_older_than_the_stale_limit_are_not_believed() {
    let server = Server::serving(jwks(&[&signer("a")])).await;
    let timing = Timing {
        stale_limit: Duration::from_secs(1),
        ..timing()
    };
    let store = store(&server, timing);
    assert_eq!(key(&store, "a").await, Ok(()));
    let known = store.find(Some(&"a".into()), Algorithm::ES256).unwrap();
    server.behave(Behaviour::Status(500));
    until("distrust", || async {
        key(&store, "a").await == Err(NoKey::Unavailable)
    })
    .await;
    assert!(!store.holds(&known.fingerprint));
    assert_eq!(store.status().keys, 0);
    server.serve(jwks(&[&signer("a")]));
    until("trust", || async { key(&store, "a").await.is_ok() }).await;
}

#[tokio::test]
async fn refreshes_follow_the_cache_headers_within_bounds() {
    let body = jwks(&[&signer("a")]);
    let headers = |text: &str| Behaviour::Serve(format!("cache-control: {text}\r\n"), body.clone());
    for (text, seconds) in [
        ("max-age=60", 60),
        ("max-age=1", 30),
        ("no-store", 30),
        ("max-age=99999", 600),
        ("private", 600),
    ] {
        let server = Server::start(headers(text)).await;
        let target = Target::parse(&server.url("/")).unwrap();
        let store = store_from(Source::Url(fetcher(), target), "", timing());
        let pause = store.attempt(&mut Refresher::default()).await;
        let range = f64::from(seconds) * 0.8..=f64::from(seconds);
        assert!(range.contains(&pause.as_secs_f64()), "{text}: {pause:?}");
    }
}

#[tokio::test]
async fn failures_are_retried_with_growing_pauses() {
    let server = Server::start(Behaviour::Status(500)).await;
    let target = Target::parse(&server.url("/")).unwrap();
    let store = store_from(Source::Url(fetcher(), target), "", timing());
    let mut refresher = Refresher::default();
    let mut last = Duration::ZERO;
    for _ in 0..6 {
        let pause = store.attempt(&mut refresher).await;
        assert!(pause > last);
        last = pause;
    }
    refresher.failures = 1_000;
    assert!(store.attempt(&mut refresher).await <= store.timing.interval);
}

#[tokio::test]
async fn discovery_must_name_the_configured_issuer_byte_for_byte() {
    let server = Server::serving(jwks(&[&signer("a")])).await;
    for (issuer, good) in [(server.url(""), true), (server.url("/"), false)] {
        let target = Target::parse(&server.url("/.well-known/openid-configuration")).unwrap();
        let store = store_from(Source::Discovery(fetcher(), target), &issuer, timing());
        store.activate(&tokio::runtime::Handle::current());
        assert_eq!(key(&store, "a").await.is_ok(), good, "{issuer}");
    }
    assert_eq!(server.hits(), 1);
    for document in [
        r#"{"issuer":"i","jwks_uri":"http://issuer.test/"}"#,
        r#"{"issuer":"i","jwks_uri":"file:///etc/passwd"}"#,
        r#"{"issuer":"i"}"#,
        r#"{"jwks_uri":"https://a.test/"}"#,
        r#"{"issuer":"j","issuer":"i","jwks_uri":"https://a.test/"}"#,
        r#"["i"]"#,
        r#"{"issuer":["i"],"jwks_uri":"https://a.test/"}"#,
    ] {
        assert!(jwks_uri(document.as_bytes(), "i").is_err(), "{document}");
    }
    assert!(jwks_uri(br#"{"issuer":"i","jwks_uri":"https://a.test/"}"#, "i").is_ok());
}

#[tokio::test]
async fn key_files_are_read_again() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("jwks.json");
    std::fs::write(&path, jwks(&[&signer("a")])).unwrap();
    let store = store_from(Source::File(path.clone()), "", timing());
    let mut refresher = Refresher::default();
    store.attempt(&mut refresher).await;
    assert_eq!(key(&store, "a").await, Ok(()));
    std::fs::write(&path, jwks(&[&signer("b")])).unwrap();
    store.attempt(&mut refresher).await;
    assert_eq!(key(&store, "b").await, Ok(()));
    std::fs::write(&path, vec![b' '; MAX_BODY + 1]).unwrap();
    store.attempt(&mut refresher).await;
    assert_eq!(key(&store, "b").await, Ok(()));
    assert!(store.status().last_error.is_some());
}

#[tokio::test]
async fn the_refreshing_task_ends_with_its_store() {
    let server = Server::serving(jwks(&[&signer("a")])).await;
    let store = store(&server, timing());
    assert_eq!(key(&store, "a").await, Ok(()));
    let wake = Arc::downgrade(&store.wake);
    drop(store);
    until("the end of the task", || async { wake.upgrade().is_none() }).await;
}
