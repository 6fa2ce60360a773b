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
        retire: Duration::ZERO,
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

fn found(store: &KeyStore, kid: &str) -> Result<Arc<Key>, NoKey> {
    store.find(Some(&kid.into()), Algorithm::ES256, Instant::now())
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
    // More of them, over many cool-downs, until even one that would wait as long as it may is
    // answered at once: the bucket is empty, and what flows into it later keeps to the budget (see the
    // tests of `demand`).
    until("the bucket is empty", || async {
        let _ = key(&store, &format!("more-{}", rand::random::<u64>())).await;
        store.demand.is_shut(Instant::now() + store.timing.wait)
    })
    .await;
    let burst = usize::try_from(store.demand.burst()).unwrap();
    assert_eq!(server.hits(), 1 + burst);
    let begun = Instant::now();
    for n in 0..100 {
        assert_eq!(key(&store, &format!("last-{n}")).await, Err(NoKey::Unknown));
    }
    assert!(begun.elapsed() < store.timing.wait);
    assert_eq!(server.hits(), 1 + burst);
    store.missing.run_pending_tasks();
    assert!(store.missing.entry_count() <= MAX_MISSING);
    assert_eq!(store.waiting.count(), 0);
}

#[tokio::test]
async fn a_rotated_key_is_found_by_its_first_token_and_the_old_one_is_gone() {
    let server = Server::serving(jwks(&[&signer("old")])).await;
    let store = store(&server, timing());
    assert_eq!(key(&store, "old").await, Ok(()));
    let old = found(&store, "old").unwrap();
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
        budget: 120,
        // Too short to sit the cool-down out.
        wait: Duration::from_millis(20),
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
    let nobody = IpAddr::V4(Ipv4Addr::UNSPECIFIED);
    let places: Vec<_> = std::iter::from_fn(|| store.waiting.take(nobody)).collect();
    assert!(places.len() >= crate::authn::demand::MAX_WAITING);
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
    let known = found(&store, "a").unwrap();
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

#[tokio::test]
async fn a_key_published_while_a_fetch_is_under_way_is_found_by_one_that_follows() {
    // The very same key: a fetch that finds another one is no junk's.
    let a = signer("a");
    let server = Server::serving(jwks(&[&a])).await;
    // Long enough that nobody waits for its end.
    let timing = Timing {
        cooldown: Duration::from_secs(60),
        ..timing()
    };
    let store = store(&server, timing);
    assert_eq!(key(&store, "a").await, Ok(()));
    // Junk has caused a fetch, and its answer was made before the key was published.
    let old = Behaviour::Late(Duration::from_millis(300), jwks(&[&a]));
    server.behave(old);
    let junk = tokio::spawn({
        let store = Arc::clone(&store);
        async move { key(&store, "junk").await }
    });
    until("the fetch", || async { server.hits() == 2 }).await;
    server.serve(jwks(&[&a, &signer("b")]));
    assert_eq!(key(&store, "b").await, Ok(()));
    assert_eq!(junk.await.unwrap(), Err(NoKey::Unknown));
    assert_eq!(server.hits(), 3);
}

#[tokio::test]
async fn junk_before_a_rotation_costs_the_new_key_at_most_the_cool_down() {
    let server = Server::serving(jwks(&[&signer("a")])).await;
    let timing = Timing {
        cooldown: Duration::from_millis(500),
        ..timing()
    };
    let store = store(&server, timing);
    assert_eq!(key(&store, "junk").await, Err(NoKey::Unknown));
    server.serve(jwks(&[&signer("a"), &signer("b")]));
    let begun = Instant::now();
    assert_eq!(key(&store, "b").await, Ok(()));
    let waited = begun.elapsed();
    assert!(waited < store.timing.cooldown * 2, "{waited:?}");
}

#[tokio::test]
async fn rotations_are_never_held_up_by_the_budget() {
    let server = Server::serving(jwks(&[&signer("0")])).await;
    let timing = Timing {
        budget: 1,
        cooldown: Duration::from_secs(60),
        ..timing()
    };
    let store = store(&server, timing);
    for number in 1..12 {
        let (old, new) = (format!("{}", number - 1), format!("{number}"));
        server.serve(jwks(&[&signer(&old), &signer(&new)]));
        assert_eq!(key(&store, &new).await, Ok(()), "{number}");
    }
}

#[tokio::test]
async fn a_name_that_was_sought_in_vain_is_not_sought_again_in_the_same_set() {
    let server = Server::serving(jwks(&[&signer("a")])).await;
    let store = store(&server, timing());
    assert_eq!(key(&store, "b").await, Err(NoKey::Unknown));
    let hits = server.hits();
    for _ in 0..20 {
        let begun = Instant::now();
        assert_eq!(key(&store, "b").await, Err(NoKey::Unknown));
        assert!(begun.elapsed() < Duration::from_millis(50));
    }
    assert_eq!(server.hits(), hits);
    // Another set may hold it, whoever brought that.
    server.serve(jwks(&[&signer("b"), &signer("c")]));
    assert_eq!(key(&store, "c").await, Ok(()));
    assert_eq!(key(&store, "b").await, Ok(()));
    // What is remembered never lasts longer than a drained budget would hold the name up.
    let name: Arc<str> = "d".into();
    store.miss(
        Arc::clone(&name),
        store.current.load().version,
        Instant::now(),
    );
    let missing = store.missing.get(&name).unwrap();
    assert!(missing.until <= Instant::now() + store.demand.recovery());
}

#[tokio::test]
async fn a_key_that_is_gone_moves_the_epoch_and_a_key_that_comes_does_not() {
    let server = Server::serving(jwks(&[&signer("a")])).await;
    let epoch = Arc::<Epoch>::default();
    let target = Target::parse(&server.url("/jwks")).unwrap();
    let source = Source::Url(fetcher(), target);
    let metrics = Arc::<Metrics>::default();
    let store = KeyStore::new("dev".into(), "".into(), source, timing(), None, metrics)
        .with(Arc::clone(&epoch), None);
    let mut refresher = Refresher::default();
    let a = signer("a");
    let mut moves = async |signers: &[&Signer]| {
        server.serve(jwks(signers));
        let before = epoch.now();
        store.attempt(&mut refresher).await;
        epoch.now() > before
    };
    let (b, b2) = (signer("b"), signer("b"));
    assert!(!moves(&[&a]).await, "the first");
    assert!(!moves(&[&a]).await, "the same");
    assert!(!moves(&[&a, &b]).await, "one more");
    assert!(moves(&[&a, &b2]).await, "other material");
    assert!(moves(&[&b2]).await, "removed");
}

fn kept_store(server: &Server, file: &std::path::Path, keep: Duration) -> Arc<KeyStore> {
    let target = Target::parse(&server.url("/jwks")).unwrap();
    let source = Source::Url(fetcher(), target);
    let metrics = Arc::<Metrics>::default();
    let keeping = Keeping {
        file: file.into(),
        keep,
    };
    let store = KeyStore::new("dev".into(), "i".into(), source, timing(), None, metrics)
        .with(Arc::default(), Some(keeping));
    let store = Arc::new(store);
    store.activate(&tokio::runtime::Handle::current());
    store
}

/// As a process ends: with what it was about to write.
async fn stop(store: Arc<KeyStore>) {
    let gone = Arc::downgrade(&store);
    drop(store);
    until("its end", || async { gone.upgrade().is_none() }).await;
}

const DAY: Duration = Duration::from_secs(86_400);

/// What stands in the file, once it is there.
async fn kids_in(file: &std::path::Path, kids: &[&str]) {
    until("the file", || async {
        let text = std::fs::read_to_string(file).unwrap_or_default();
        let document: serde_json::Value = serde_json::from_str(&text).unwrap_or_default();
        let keys = document["kept"]["keys"].as_array().cloned();
        let found: Vec<_> = keys
            .iter()
            .flatten()
            .map(|key| key["jwk"]["kid"].as_str().unwrap().to_owned())
            .collect();
        found == kids
    })
    .await;
}

#[tokio::test]
async fn kept_keys_outlive_a_restart_while_the_issuer_is_away_for_as_long_as_is_said() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("keys.json");
    let server = Server::serving(jwks(&[&signer("old"), &signer("a")])).await;
    let store = kept_store(&server, &file, DAY);
    assert_eq!(key(&store, "a").await, Ok(()));
    kids_in(&file, &["old", "a"]).await;
    assert_eq!(store.status().source, Origin::Network);
    // A removed key is removed on disk.
    server.serve(jwks(&[&signer("a"), &signer("b")]));
    assert_eq!(key(&store, "b").await, Ok(()));
    kids_in(&file, &["a", "b"]).await;
    stop(store).await;

    server.behave(Behaviour::Status(503));
    let store = kept_store(&server, &file, DAY);
    assert_eq!(key(&store, "a").await, Ok(()));
    assert_eq!(key(&store, "old").await, Err(NoKey::Unknown));
    let status = store.status();
    assert_eq!((status.keys, status.source), (2, Origin::Disk));
    assert!(status.age_seconds.unwrap() < 60);
    assert!(status.believed_for_seconds.unwrap() <= DAY.as_secs());
    server.serve(jwks(&[&signer("a"), &signer("c")]));
    until("the issuer", || async { key(&store, "c").await.is_ok() }).await;
    assert_eq!(store.status().source, Origin::Network);
    stop(store).await;

    // As if the file were older than what was said.
    server.behave(Behaviour::Status(503));
    let short = Duration::from_millis(1);
    let written = std::fs::metadata(&file).unwrap().modified().unwrap();
    until("two seconds", || async {
        clock::now() > written + Duration::from_secs(2)
    })
    .await;
    let store = kept_store(&server, &file, short);
    assert_eq!(key(&store, "a").await, Err(NoKey::Unavailable));
}

#[tokio::test]
async fn kept_keys_end_in_the_running_process_too() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("keys.json");
    let server = Server::serving(jwks(&[&signer("a")])).await;
    let store = kept_store(&server, &file, DAY);
    assert_eq!(key(&store, "a").await, Ok(()));
    kids_in(&file, &["a"]).await;
    stop(store).await;
    server.behave(Behaviour::Status(503));
    let store = kept_store(&server, &file, Duration::from_secs(3));
    let epoch = Arc::clone(&store.epoch);
    assert_eq!(key(&store, "a").await, Ok(()));
    until("their end", || async { epoch.now() > 0 }).await;
    assert_eq!(key(&store, "a").await, Err(NoKey::Unavailable));
    assert_eq!(store.status().keys, 0);
    assert_eq!(store.status().source, Origin::None);
}

#[tokio::test]
async fn a_damaged_file_makes_the_issuer_unready_until_it_is_gone_and_a_foreign_one_is_left_alone()
{
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("keys.json");
    let server = Server::serving(jwks(&[&signer("a")])).await;
    std::fs::write(&file, "{").unwrap();
    let store = kept_store(&server, &file, DAY);
    assert_eq!(key(&store, "a").await, Ok(()), "from the network");
    assert!(store.status().unread.unwrap().contains("damaged"));
    assert!(!store.persist().await, "nobody knows what stood in it");
    assert_eq!(std::fs::read_to_string(&file).unwrap(), "{");
    std::fs::remove_file(&file).unwrap();
    kids_in(&file, &["a"]).await;
    until("its file", || async { store.status().file_error.is_none() }).await;
    assert_eq!(store.status().unread, None);
    stop(store).await;

    let other = std::fs::read_to_string(&file).unwrap();
    let target = Target::parse(&server.url("/jwks")).unwrap();
    let source = Source::Url(fetcher(), target);
    let metrics = Arc::<Metrics>::default();
    let keeping = Keeping {
        file: file.as_path().into(),
        keep: DAY,
    };
    let store = KeyStore::new(
        "dev".into(),
        "other".into(),
        source,
        timing(),
        None,
        metrics,
    )
    .with(Arc::default(), Some(keeping));
    let store = Arc::new(store);
    store.activate(&tokio::runtime::Handle::current());
    assert_eq!(key(&store, "a").await, Ok(()), "from the network");
    assert!(
        store
            .status()
            .file_error
            .unwrap()
            .contains("another issuer")
    );
    assert_eq!(store.status().unread, None, "it does not speak of our keys");
    assert!(!store.persist().await);
    assert_eq!(std::fs::read_to_string(&file).unwrap(), other);
}

/// A file that distrusts `x`, written at this time.
fn distrusting(file: &std::path::Path, at: SystemTime) {
    let mut book = Book::default();
    let set = KeySet::parse(jwks(&[&signer("a"), &signer("b")]).as_bytes()).unwrap();
    let now = (Instant::now(), at);
    book.replace(set, Origin::Network, now, None, Duration::ZERO);
    book.distrust(&named("x"), 7).unwrap();
    kept::write(file, Kept::of(&book, "i")).unwrap();
}

#[tokio::test]
async fn distrust_holds_after_a_restart_with_a_clock_behind() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("keys.json");
    let server = Server::serving(jwks(&[&signer("x"), &signer("b")])).await;
    distrusting(&file, clock::now() + Duration::from_secs(3600));
    let store = kept_store(&server, &file, DAY);
    assert_eq!(key(&store, "b").await, Ok(()));
    assert_eq!(key(&store, "x").await, Err(NoKey::Distrusted));
    assert_eq!(
        key(&store, "a").await,
        Err(NoKey::Unknown),
        "of no known age"
    );
    // What is written then distrusts it too.
    kids_in(&file, &["x", "b"]).await;
    stop(store).await;
    let store = kept_store(&server, &file, DAY);
    assert_eq!(key(&store, "x").await, Err(NoKey::Distrusted));
}

#[tokio::test]
async fn an_issuer_is_not_ready_while_its_file_cannot_be_used_and_heeds_it_once_it_can() {
    use std::os::unix::fs::PermissionsExt;

    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("keys.json");
    let server = Server::serving(jwks(&[&signer("x"), &signer("b")])).await;
    distrusting(&file, clock::now());
    std::fs::set_permissions(&file, PermissionsExt::from_mode(0o666)).unwrap();
    let store = kept_store(&server, &file, DAY);
    assert_eq!(key(&store, "x").await, Ok(()));
    assert!(store.status().unread.unwrap().contains("others may write"));
    let before = store.epoch.now();
    std::fs::set_permissions(&file, PermissionsExt::from_mode(0o600)).unwrap();
    until("the file", || async { store.status().unread.is_none() }).await;
    assert_eq!(key(&store, "x").await, Err(NoKey::Distrusted));
    assert!(store.epoch.now() > before, "streams and cached tokens end");
}

#[tokio::test]
async fn distrust_that_is_read_late_is_heeded_all_the_same() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("keys.json");
    let server = Server::serving(jwks(&[&signer("x"), &signer("b")])).await;
    let store = kept_store(&server, &file, DAY);
    assert_eq!(key(&store, "x").await, Ok(()));
    until("its file", || async { store.persist().await }).await;
    distrusting(&file, clock::now());
    // As when the disk takes longer than the first fetch waits for.
    store.report().recovered = false;
    store.unread("it could not be read in time");
    let (disk, slow) = std::sync::mpsc::channel::<()>();
    let slow_file = file.clone();
    let reading = tokio::task::spawn_blocking(move || {
        let _ = slow.recv();
        kept::read(&slow_file, "i", clock::now())
    });
    tokio::spawn(look_again(Arc::downgrade(&store), Some(reading)));
    assert!(store.status().unread.is_some());
    drop(disk);
    until("the file", || async { store.status().unread.is_none() }).await;
    assert_eq!(key(&store, "x").await, Err(NoKey::Distrusted));
    assert_eq!(key(&store, "b").await, Ok(()));
    assert_eq!(
        store.status().source,
        Origin::Network,
        "newer than the file"
    );
}

#[tokio::test]
async fn a_block_under_another_name_heeds_what_its_issuer_is_distrusted_for() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("keys.json");
    let server = Server::serving(jwks(&[&signer("a"), &signer("b"), &signer("c")])).await;
    let earlier = kept_store(&server, &file, DAY);
    kids_in(&file, &["a", "b", "c"]).await;
    distrust(&earlier, "a").await.unwrap();
    let target = Target::parse(&server.url("/jwks")).unwrap();
    let keeping = Keeping {
        file: folder.path().join("other.json").into(),
        keep: DAY,
    };
    let source = Source::Url(fetcher(), target);
    let metrics = Arc::<Metrics>::default();
    let later = KeyStore::new("new".into(), "i".into(), source, timing(), None, metrics)
        .with(Arc::default(), Some(keeping))
        .heeding(&[Arc::clone(&earlier)]);
    let later = Arc::new(later);
    // Told to the one in force, while the other is on its way.
    distrust(&earlier, "b").await.unwrap();
    later.activate(&tokio::runtime::Handle::current());
    assert_eq!(key(&later, "c").await, Ok(()));
    for gone in ["a", "b"] {
        assert_eq!(key(&later, gone).await, Err(NoKey::Distrusted), "{gone}");
    }
    // It may still be in force, and has a file of its own.
    assert!(earlier.persist().await);
}

async fn distrust(store: &Arc<KeyStore>, kid: &str) -> Result<Judged, NotJudged> {
    let keys = store.distrust(&named(kid))?;
    let kept = store.keep_now().await;
    Ok(Judged { keys, kept })
}

async fn trust(store: &Arc<KeyStore>, kid: &str) -> Result<Judged, NotJudged> {
    let keys = store.trust(&named(kid))?;
    let kept = store.keep_now().await;
    Ok(Judged { keys, kept })
}

fn named(kid: &str) -> KeyName {
    KeyName {
        kid: Some(kid.into()),
        thumbprint: None,
    }
}

#[tokio::test]
async fn a_distrusted_key_ends_at_once_and_stays_so_over_fetch_and_restart_until_it_is_lifted() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("keys.json");
    let (a, b) = (signer("a"), signer("b"));
    let server = Server::serving(jwks(&[&a, &b])).await;
    let store = kept_store(&server, &file, DAY);
    assert_eq!(key(&store, "a").await, Ok(()));
    let known = found(&store, "a").unwrap();
    let before = store.epoch.now();
    let judged = distrust(&store, "a").await.unwrap();
    assert_eq!(judged.kept, Some(true));
    assert_eq!(judged.keys[0].thumbprint.as_ref(), known.thumbprint());
    assert!(store.epoch.now() > before);
    assert!(!store.holds(&known.fingerprint));
    // Its tokens ask the issuer for nothing, however many come.
    let hits = server.hits();
    for _ in 0..20 {
        assert_eq!(key(&store, "a").await, Err(NoKey::Distrusted));
    }
    assert_eq!(server.hits(), hits);
    server.serve(jwks(&[&a, &b, &signer("c")]));
    assert_eq!(key(&store, "c").await, Ok(()));
    assert_eq!(key(&store, "a").await, Err(NoKey::Distrusted));
    let page = store.page();
    let states: Vec<_> = page.published.iter().map(|key| key.state).collect();
    assert_eq!(states, ["distrusted", "believed", "believed"]);
    stop(store).await;

    for away in [false, true] {
        if away {
            server.behave(Behaviour::Status(503));
        }
        let store = kept_store(&server, &file, DAY);
        assert_eq!(key(&store, "b").await, Ok(()));
        assert_eq!(key(&store, "a").await, Err(NoKey::Distrusted));
        stop(store).await;
    }

    let store = kept_store(&server, &file, DAY);
    assert_eq!(key(&store, "b").await, Ok(()));
    let lifted = trust(&store, "a").await.unwrap();
    assert_eq!((&lifted.keys, lifted.kept), (&judged.keys, Some(true)));
    assert_eq!(key(&store, "a").await, Ok(()));
    stop(store).await;
    let store = kept_store(&server, &file, DAY);
    assert_eq!(key(&store, "a").await, Ok(()));
}

#[tokio::test]
async fn another_configuration_keeps_what_is_distrusted_and_keys_of_the_same_source() {
    let server = Server::serving(jwks(&[&signer("a"), &signer("b")])).await;
    let earlier = store(&server, timing());
    assert_eq!(key(&earlier, "a").await, Ok(()));
    distrust(&earlier, "a").await.unwrap();
    for same in [true, false] {
        let target = Target::parse(&server.url("/jwks")).unwrap();
        let source = Source::Url(fetcher(), target);
        let metrics = Arc::<Metrics>::default();
        let later = KeyStore::new("dev".into(), "".into(), source, timing(), None, metrics)
            .with(Arc::default(), None)
            .after(&earlier, same);
        assert_eq!(later.status().keys, usize::from(same));
        let later = Arc::new(later);
        later.activate(&tokio::runtime::Handle::current());
        assert_eq!(key(&later, "b").await, Ok(()));
        assert_eq!(key(&later, "a").await, Err(NoKey::Distrusted));
    }
}

#[tokio::test]
async fn a_secret_cannot_be_distrusted() {
    let secret = crate::schema::Secret::new(vec![7; 32]);
    let set = KeySet::of_secret(&secret, &[Algorithm::HS256]);
    let metrics = Arc::<Metrics>::default();
    let store = KeyStore::new(
        "dev".into(),
        "".into(),
        Source::Fixed,
        timing(),
        Some(set),
        metrics,
    );
    let store = Arc::new(store);
    assert_eq!(distrust(&store, "a").await, Err(NotJudged::Secret));
    let any: Arc<str> = "a".into();
    assert!(store.key(Some(&any), Algorithm::HS256).await.is_ok());
}

#[tokio::test]
async fn tokens_of_removed_keys_do_not_use_up_what_new_keys_need() {
    let server = Server::serving(jwks(&[&signer("0")])).await;
    let timing = Timing {
        budget: 1,
        ..timing()
    };
    let store = store(&server, timing);
    assert_eq!(key(&store, "0").await, Ok(()));
    for number in 1..8 {
        let (gone, new) = (format!("{}", number - 1), format!("{number}"));
        server.serve(jwks(&[&signer(&new)]));
        assert_eq!(key(&store, &new).await, Ok(()), "{number}");
        let hits = server.hits();
        for _ in 0..10 {
            assert_eq!(key(&store, &gone).await, Err(NoKey::Unknown));
        }
        assert_eq!(server.hits(), hits, "{gone}");
    }
}

#[tokio::test]
async fn the_store_of_an_old_configuration_writes_no_more() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("keys.json");
    let server = Server::serving(jwks(&[&signer("a"), &signer("b")])).await;
    let earlier = kept_store(&server, &file, DAY);
    kids_in(&file, &["a", "b"]).await;
    let target = Target::parse(&server.url("/jwks")).unwrap();
    let keeping = Keeping {
        file: file.as_path().into(),
        keep: DAY,
    };
    let source = Source::Url(fetcher(), target);
    let metrics = Arc::<Metrics>::default();
    let later = KeyStore::new("dev".into(), "i".into(), source, timing(), None, metrics)
        .with(Arc::default(), Some(keeping))
        .after(&earlier, true);
    let later = Arc::new(later);
    // Told to the one in force, while the other is on its way.
    let first = distrust(&earlier, "a").await.unwrap();
    assert_eq!(first.kept, Some(true));
    later.activate(&tokio::runtime::Handle::current());
    until("the file to be read", || async { later.report().recovered }).await;
    assert_eq!(key(&later, "a").await, Err(NoKey::Distrusted));
    let second = distrust(&later, "b").await.unwrap();
    assert_eq!(second.kept, Some(true));
    assert!(!earlier.persist().await, "it does not know of the second");
    let kept = kept::read(&file, "i", clock::now()).unwrap().unwrap();
    assert_eq!(kept.distrusted.len(), 2);
}

#[tokio::test]
async fn nothing_is_written_over_a_file_that_was_not_looked_at() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("keys.json");
    let server = Server::serving(jwks(&[&signer("a")])).await;
    let store = kept_store(&server, &file, DAY);
    kids_in(&file, &["a"]).await;
    stop(store).await;
    let before = std::fs::read(&file).unwrap();
    let target = Target::parse(&server.url("/jwks")).unwrap();
    let keeping = Keeping {
        file: file.as_path().into(),
        keep: DAY,
    };
    let source = Source::Url(fetcher(), target);
    let metrics = Arc::<Metrics>::default();
    let store = KeyStore::new("dev".into(), "i".into(), source, timing(), None, metrics)
        .with(Arc::default(), Some(keeping));
    let store = Arc::new(store);
    let early = distrust(&store, "x").await.unwrap();
    assert_eq!(early.kept, Some(false));
    assert_eq!(std::fs::read(&file).unwrap(), before);
    store.activate(&tokio::runtime::Handle::current());
    until("both", || async {
        let kept = kept::read(&file, "i", clock::now()).unwrap().unwrap();
        kept.distrusted.len() == 1 && kept.published.len() == 1
    })
    .await;
}
