//! What limits promise, at given times.

use std::path::Path;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

use http::Request;

use super::limiter::{MAX_ASKED_RATES, collect};
use super::*;
use crate::authz::AskedLimit;
use crate::document::{self, Value};
use crate::metrics::Metrics;
use crate::request::{ConnInfo, RequestId, Rules};

/// A clock that the test turns.
#[derive(Default)]
struct Time(Arc<AtomicU64>);

impl Time {
    fn meter(&self) -> Meter {
        Meter::Turned(Arc::clone(&self.0))
    }

    fn pass(&self, millis: u64) {
        self.0.fetch_add(millis * 1_000_000, Ordering::Relaxed);
    }
}

fn config(text: &str) -> LimitConfig {
    serde_yaml::from_str(text).unwrap()
}

fn limiter(text: &str, time: &Time) -> Limiter {
    Limiter::new("l", config(text), Arc::default(), time.meter()).unwrap()
}

fn from(address: &str) -> Facts<'static> {
    Facts {
        address: address.parse().unwrap(),
        route: "r",
        caller: None,
    }
}

fn request(address: &str, headers: &[(&str, &str)]) -> InboundRequest {
    let conn = Arc::new(ConnInfo {
        listener: "public".into(),
        peer: format!("{address}:4000").parse().unwrap(),
        local: "127.0.0.1:1".parse().unwrap(),
        tls: None,
        ambiguous_head: None,
        forwarded: Default::default(),
    });
    let mut head = Request::builder().uri("/").header("host", "h.test");
    for (name, value) in headers {
        head = head.header(*name, *value);
    }
    let at = std::time::SystemTime::UNIX_EPOCH;
    let head = head.body(()).unwrap();
    InboundRequest::parse(&conn, RequestId::random(), head, at, &Rules::default())
        .unwrap()
        .0
}

fn compile_context() -> Compile {
    Compile::new(Path::new("gateway.yaml"), Arc::default())
}

#[test]
fn quota_counts_down_and_refills_with_time() {
    let time = Time::default();
    let limit = limiter("{ by: address, rate: 2/s, burst: 4 }", &time);
    let facts = from("192.0.2.1");
    for remaining in [3, 2, 1, 0] {
        let quota = limit.check(&facts).unwrap();
        let terms = quota.terms.unwrap();
        assert_eq!((terms.quota, terms.window), (4, 2));
        assert_eq!(terms.policy.as_ref().unwrap(), "\"l\";q=4;w=2");
        assert_eq!(quota.remaining, remaining);
        assert_eq!(quota.reset, (4 - remaining).div_ceil(2));
    }
    let exceeded = limit.check(&facts).unwrap_err();
    assert_eq!(exceeded.retry_after, Duration::from_millis(500));
    assert_eq!((exceeded.quota.remaining, exceeded.quota.reset), (0, 2));

    time.pass(499);
    let exceeded = limit.check(&facts).unwrap_err();
    assert_eq!(exceeded.retry_after, Duration::from_millis(1));
    time.pass(1);
    assert_eq!(limit.check(&facts).unwrap().remaining, 0);
    time.pass(60_000);
    assert_eq!(limit.check(&facts).unwrap().remaining, 3);
}

#[test]
fn burst_defaults_to_the_number_of_the_rate() {
    let limit = limiter("{ by: address, rate: 3/m }", &Time::default());
    let quota = limit.check(&from("192.0.2.1")).unwrap();
    let terms = quota.terms.unwrap();
    assert_eq!((terms.quota, terms.window, quota.remaining), (3, 60, 2));
}

#[test]
fn addresses_are_counted_by_network() {
    let time = Time::default();
    let limit = limiter("{ by: address, rate: 1/h }", &time);
    assert!(limit.check(&from("192.0.2.1")).is_ok());
    assert!(limit.check(&from("192.0.2.2")).is_ok());
    assert!(limit.check(&from("::ffff:192.0.2.1")).is_err());
    assert!(limit.check(&from("2001:db8::1")).is_ok());
    assert!(limit.check(&from("2001:db8::ffff:2")).is_err());
    assert!(limit.check(&from("2001:db8:0:1::1")).is_ok());

    let wide = limiter(
        "{ by: address, rate: 1/h, ipv4_prefix: 24, ipv6_prefix: 128 }",
        &time,
    );
    assert!(wide.check(&from("192.0.2.1")).is_ok());
    assert!(wide.check(&from("192.0.2.2")).is_err());
    assert!(wide.check(&from("2001:db8::1")).is_ok());
    assert!(wide.check(&from("2001:db8::2")).is_ok());
}

#[test]
fn callers_are_told_apart_by_issuer_and_never_by_spelling() {
    let claims = document::object([
        ("org", document::object([("id", Value::from("o1"))])),
        ("level", Value::from(3)),
    ]);
    let claims = &claims;
    let who = |issuer, subject, client| Facts {
        caller: Some(CallerFacts {
            issuer,
            subject,
            client,
            claims,
            key: Box::leak(Box::default()),
        }),
        ..from("192.0.2.1")
    };
    let passes = |limit: &Limiter, facts: Facts<'_>| limit.check(&facts).is_ok();
    let limit = |by: &str| limiter(&format!("{{ by: '{by}', rate: 1/d }}"), &Time::default());

    let subject = limit("subject");
    assert!(passes(&subject, who("i", "a", None)));
    assert!(!passes(&subject, who("i", "a", Some("c"))));
    assert!(passes(&subject, who("j", "a", None)));
    assert!(passes(&subject, who("ia", "", None)));
    assert!(passes(&subject, from("192.0.2.1")), "anonymous: by address");
    assert!(!passes(&subject, from("192.0.2.1")));

    let client = limit("client");
    assert!(passes(&client, who("i", "a", Some("c"))));
    assert!(!passes(&client, who("i", "b", Some("c"))));
    assert!(passes(&client, who("i", "c", None)), "by subject");

    let issuer = limit("issuer");
    assert!(passes(&issuer, who("i", "a", None)));
    assert!(!passes(&issuer, who("i", "b", None)));

    for by in ["claim:org.id", "claim:level", "claim:org"] {
        let claim = limit(by);
        assert!(passes(&claim, who("i", "a", None)), "{by}");
        assert!(!passes(&claim, who("i", "b", None)), "{by}");
    }
    let absent = limit("claim:nothing");
    assert!(passes(&absent, who("i", "a", None)));
    assert!(passes(&absent, who("i", "b", None)), "by subject");

    let route = limit("route");
    assert!(passes(&route, who("i", "a", None)));
    assert!(!passes(&route, from("198.51.100.7")));
    assert!(passes(
        &route,
        Facts {
            route: "other",
            ..from("198.51.100.7")
        }
    ));
}

#[test]
fn a_callers_key_is_made_once_and_each_limit_still_counts_for_itself() {
    let (claims, key) = (Value::Null, OnceLock::new());
    let facts = Facts {
        caller: Some(CallerFacts {
            issuer: "i",
            subject: "a",
            client: None,
            claims: &claims,
            key: &key,
        }),
        ..from("192.0.2.1")
    };
    let limit = || limiter("{ by: subject, rate: 1/d }", &Time::default());
    let (first, second) = (limit(), limit());
    assert!(first.check(&facts).is_ok());
    let made = key.get().copied();
    assert!(made.is_some());
    assert!(second.check(&facts).is_ok());
    assert!(first.check(&facts).is_err() && second.check(&facts).is_err());
    assert_eq!(key.get().copied(), made);
    assert_eq!((first.keys(), second.keys()), (1, 1));
}

#[test]
fn callers_past_the_cap_share_one_quota_and_known_ones_keep_theirs() {
    let limit = limiter("{ by: address, rate: 2/h, max_keys: 2 }", &Time::default());
    let ok = |address: &str| limit.check(&from(address)).is_ok();
    assert!(ok("192.0.2.1") && ok("192.0.2.2"));
    assert!(ok("192.0.2.3") && ok("192.0.2.4"), "the shared quota");
    assert!(!ok("192.0.2.5") && !ok("192.0.2.3"));
    assert!(ok("192.0.2.1"), "known before the cap was reached");
    assert_eq!(limit.keys(), 2);
}

#[test]
fn failures_slow_an_address_down_before_anything_is_verified() {
    let time = Time::default();
    let config = FailureLimitConfig {
        burst: 3,
        ..FailureLimitConfig::default()
    };
    let failures = Arc::new(FailureLimiter::new(config, Arc::default(), time.meter()).unwrap());
    let limits = Limits {
        failures: Some(Arc::clone(&failures)),
        ..Limits::default()
    };
    let bearer = [("authorization", "Bearer x")];
    let (with, without) = (request("192.0.2.1", &bearer), request("192.0.2.1", &[]));
    let rejected = Failure::Rejected {
        code: "token.signature",
        reason: "bad".into(),
        issuer: None,
    };
    // What does not count: nothing presented, nothing to judge it by.
    for _ in 0..10 {
        limits.failed(&without, &Failure::Missing);
        limits.failed(
            &with,
            &Failure::Unavailable {
                source_name: "i".into(),
            },
        );
        limits.failed(&without, &rejected);
        assert!(limits.slowed(&with).is_none(), "asking costs nothing");
    }
    for _ in 0..3 {
        assert!(limits.slowed(&with).is_none());
        limits.failed(&with, &rejected);
    }
    let exceeded = limits.slowed(&with).unwrap();
    assert_eq!(&*exceeded.limit, "authentication_failures");
    assert_eq!(exceeded.retry_after, Duration::from_secs(6));
    assert!(
        limits.slowed(&without).is_none(),
        "no credential, nothing to guess"
    );
    assert!(limits.slowed(&request("192.0.2.2", &bearer)).is_none());

    time.pass(5_999);
    assert!(
        limits.slowed(&with).is_some(),
        "knocking does not shorten the wait"
    );
    time.pass(1);
    assert!(limits.slowed(&with).is_none());
    limits.failed(&with, &rejected);
    assert!(limits.slowed(&with).is_some());
}

#[test]
fn screen_counts_addresses_and_tells_the_tightest_quota() {
    let time = Time::default();
    let limits = Limits {
        before: vec![
            Arc::new(limiter("{ by: address, rate: 10/s }", &time)),
            Arc::new(limiter("{ by: route, rate: 2/s }", &time)),
        ],
        ..Limits::default()
    };
    let request = request("192.0.2.1", &[]);
    assert_eq!(limits.screen(&request).unwrap().terms.unwrap().quota, 2);
    assert_eq!(limits.screen(&request).unwrap().remaining, 0);
    assert_eq!(
        limits
            .screen(&request)
            .unwrap_err()
            .quota
            .terms
            .unwrap()
            .quota,
        2
    );
}

#[test]
fn limits_that_policies_ask_for_are_kept_by_policy_key_and_rate() {
    let time = Time::default();
    let asked = AskedLimits::new(Arc::default(), time.meter());
    let ask = |key: &str, rate| AskedLimit {
        key: key.into(),
        rate,
        per: Duration::from_secs(60),
        burst: 1,
    };
    let ok = |policy: &str, asked_for: &AskedLimit| asked.check(policy, asked_for).is_ok();
    assert!(ok("p", &ask("k", 1)));
    assert!(!ok("p", &ask("k", 1)));
    assert!(ok("p", &ask("other", 1)));
    assert!(ok("q", &ask("k", 1)));
    assert!(ok("p", &ask("k", 2)));
    time.pass(60_000);
    assert_eq!(
        asked
            .check("p", &ask("k", 1))
            .unwrap()
            .terms
            .map(|terms| terms.name.to_string())
            .as_deref(),
        Some("policy")
    );

    assert!(
        !ok("p", &ask("k", 0)),
        "a rate of zero lets nothing through"
    );
    let endless = AskedLimit {
        burst: u32::MAX,
        per: Duration::from_secs(86_400),
        ..ask("k", 1)
    };
    assert!(!ok("p", &endless));
}

#[test]
fn a_policy_that_computes_rates_cannot_grow_memory() {
    let asked = AskedLimits::new(Arc::default(), Time::default().meter());
    let passed = (1..=2 * u32::try_from(MAX_ASKED_RATES).unwrap())
        .filter(|rate| {
            let ask = AskedLimit {
                key: String::new(),
                rate: *rate,
                per: Duration::from_secs(1),
                burst: 1,
            };
            asked.check("p", &ask).is_ok()
        })
        .count();
    assert_eq!(passed, MAX_ASKED_RATES);
}

#[tokio::test]
async fn stale_keys_are_collected_until_the_limit_is_dropped() {
    let time = Time::default();
    let metrics = Arc::new(Metrics::default());
    let config = config("{ by: address, rate: 1/s }");
    let limit = Arc::new(Limiter::new("l", config, Arc::clone(&metrics), time.meter()).unwrap());
    assert!(limit.check(&from("192.0.2.1")).is_ok());
    time.pass(10_000);
    let every = Duration::from_millis(2);
    let collecting = tokio::spawn(collect(Arc::downgrade(&limit), every));
    let patience = Duration::from_secs(20);
    let collected = async {
        while limit.keys() > 0 {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(patience, collected).await.unwrap();
    assert!(
        metrics
            .encode()
            .contains("portcullis_limit_keys{limit=\"l\"} 0")
    );
    drop(limit);
    tokio::time::timeout(patience, collecting)
        .await
        .unwrap()
        .unwrap();
}

#[tokio::test]
async fn activating_twice_starts_one_collector() {
    let limit = Arc::new(limiter("{ by: address, rate: 1/s }", &Time::default()));
    let control = Handle::current();
    let before = control.metrics().num_alive_tasks();
    limit.activate(&control);
    limit.activate(&control);
    assert_eq!(control.metrics().num_alive_tasks(), before + 1);
}

#[test]
fn a_reload_is_no_way_to_a_fresh_quota() {
    let mut cx = compile_context();
    let compile = |rate: &str, previous: Option<&LimitSet>, cx: &mut Compile| {
        let limits = [
            ("same".to_owned(), config("{ by: address, rate: 1/h }")),
            (
                "changed".to_owned(),
                config(&format!("{{ by: address, rate: {rate} }}")),
            ),
        ];
        LimitSet::compile(limits.into(), FailureLimitConfig::default(), previous, cx).unwrap()
    };
    let first = compile("1/h", None, &mut cx);
    let second = compile("2/h", Some(&first), &mut cx);
    let same = |name: &str| Arc::ptr_eq(&first.limiters[name], &second.limiters[name]);
    assert!(same("same"));
    assert!(!same("changed"));
    assert!(Arc::ptr_eq(&first.asked, &second.asked));
    let failures = |set: &LimitSet| set.failures.clone().unwrap();
    assert!(Arc::ptr_eq(&failures(&first), &failures(&second)));
}

#[test]
fn every_problem_of_a_limit_is_reported_with_its_place() {
    let mut cx = compile_context();
    let limits = [
        (
            "bad name".to_owned(),
            config("{ by: address, rate: 1/s, burst: 0, max_keys: 0 }"),
        ),
        (
            "policy".to_owned(),
            config("{ by: address, rate: 1/s, ipv4_prefix: 33 }"),
        ),
        (
            "slow".to_owned(),
            config("{ by: address, rate: 1/d, burst: 4000000000 }"),
        ),
    ];
    let failures = FailureLimitConfig {
        burst: 0,
        ..FailureLimitConfig::default()
    };
    assert!(LimitSet::compile(limits.into(), failures, None, &mut cx).is_none());
    let (problems, _) = cx.finish();
    let places: Vec<&str> = problems.iter().map(|p| p.path.as_str()).collect();
    assert_eq!(
        places,
        [
            "limits.bad name",
            "limits.bad name.burst",
            "limits.bad name.max_keys",
            "limits.policy",
            "limits.policy.ipv4_prefix",
            "limits.slow",
            "authentication_failures.burst",
        ]
    );
}

#[test]
fn unknown_and_doubled_limits_of_a_route_are_problems() {
    let mut cx = compile_context();
    let limits = [(
        "per-address".to_owned(),
        config("{ by: address, rate: 1/s }"),
    )];
    let off = FailureLimitConfig {
        enabled: false,
        ..FailureLimitConfig::default()
    };
    let set = LimitSet::compile(limits.into(), off, None, &mut cx).unwrap();
    assert!(set.failures.is_none());
    let names = ["per-adress", "per-address", "per-address"].map(str::to_owned);
    assert!(Limits::compile(&"r".into(), &names, &set, &mut cx).is_none());
    let (problems, _) = cx.finish();
    assert_eq!(problems.len(), 2);
    assert_eq!(
        problems[0].help.as_deref(),
        Some("did you mean `per-address`?")
    );
    assert_eq!(problems[1].path, "[2]");
}
