//! How much: by address before authentication, by caller after it, and as the policy asks.

use serde_json::json;

use crate::support::gateway::{Builder, World};
use crate::support::upstream::Upstream;

#[test]
fn an_address_over_its_limit_is_slowed_before_authentication() {
    let world = World::with(|builder| {
        builder.with(|document| {
            document["limits"] =
                json!({"per-address": {"by": "address", "rate": "1/m", "burst": 3}});
            document["routes"][0]["limits"] = json!(["per-address"]);
        })
    });
    for left in [2, 1, 0] {
        let answer = world.gateway.get("/a", &[]);
        assert_eq!(answer.status, 401);
        let limit = answer
            .header("ratelimit")
            .expect("a RateLimit field")
            .to_owned();
        assert!(
            limit.starts_with("\"per-address\"") && limit.contains(&format!("r={left}")),
            "{limit}"
        );
    }
    let answer = world.gateway.bearer("/a", &world.token("alice"));
    assert_eq!(answer.status, 429);
    assert_eq!(answer.code(), "rate_limited");
    let wait: u64 = answer.header("retry-after").unwrap().parse().unwrap();
    assert!((1..=60).contains(&wait), "{wait}");
    assert!(answer.header("ratelimit-policy").unwrap().contains("q="));
    assert!(world.upstream.seen().is_empty());
}

#[test]
fn callers_are_counted_apart_whatever_their_address() {
    let world = World::with(|builder| {
        builder.with(|document| {
            document["limits"] =
                json!({"per-subject": {"by": "subject", "rate": "1/m", "burst": 2}});
            document["routes"][0]["limits"] = json!(["per-subject"]);
        })
    });
    for subject in ["alice", "bob"] {
        let statuses: Vec<u16> = (0..3)
            .map(|_| world.gateway.bearer("/a", &world.token(subject)).status)
            .collect();
        assert_eq!(statuses, [200, 200, 429], "{subject}");
    }
    assert_eq!(world.upstream.seen().len(), 4);
}

#[test]
fn a_limit_by_claim_counts_the_claim() {
    let world = World::with(|builder| {
        builder.with(|document| {
            document["limits"] =
                json!({"per-tenant": {"by": "claim:tenant", "rate": "1/m", "burst": 1}});
            document["routes"][0]["limits"] = json!(["per-tenant"]);
        })
    });
    let send = |subject: &str, tenant: &str| {
        let mut claims = world.issuer.claims(subject);
        claims["tenant"] = json!(tenant);
        world.gateway.bearer("/a", &world.key.token(&claims)).status
    };
    assert_eq!(send("alice", "acme"), 200);
    assert_eq!(send("bob", "acme"), 429);
    assert_eq!(send("bob", "other"), 200);
}

#[test]
fn the_policy_may_ask_for_a_limit() {
    let world = World::with(|builder| {
        builder.policy(
            r#"package gate

default allow := false

allow := {"allow": true, "limit": {"key": input.identity.subject, "rate": "1/m", "burst": 1}}
"#,
        )
    });
    assert_eq!(
        world.gateway.bearer("/a", &world.token("alice")).status,
        200
    );
    assert_eq!(
        world.gateway.bearer("/a", &world.token("alice")).status,
        429
    );
    assert_eq!(world.gateway.bearer("/a", &world.token("bob")).status, 200);
}

#[test]
fn an_address_that_keeps_failing_is_slowed_and_one_that_succeeds_is_not() {
    let world = World::with(|builder| {
        builder.with(|document| {
            document["authentication_failures"] = json!({"rate": "1/m", "burst": 5})
        })
    });
    let token = world.token("alice");
    for _ in 0..20 {
        assert_eq!(world.gateway.bearer("/a", &token).status, 200);
    }
    let mut statuses = Vec::new();
    for _ in 0..10 {
        statuses.push(world.gateway.bearer("/a", "not.a.token").status);
    }
    assert_eq!(
        statuses.iter().filter(|s| **s == 401).count(),
        5,
        "{statuses:?}"
    );
    assert_eq!(statuses.last(), Some(&429));
    // A token that was verified before goes on; one that was not must wait with the rest.
    assert_eq!(world.gateway.bearer("/a", &token).status, 200);
    let fresh = world.gateway.bearer("/a", &world.token("bob"));
    assert_eq!((fresh.status, fresh.code().as_str()), (429, "rate_limited"));
    // Without a credential there is nothing to guess: an ordinary challenge.
    assert_eq!(world.gateway.get("/a", &[]).status, 401);
}

#[test]
fn a_reload_is_no_way_to_reset_a_quota() {
    let upstream = Upstream::start();
    let mut gateway = Builder::open(&upstream)
        .with(|document| {
            document["limits"] =
                json!({"per-address": {"by": "address", "rate": "1/m", "burst": 2}});
            document["routes"][0]["limits"] = json!(["per-address"]);
        })
        .start();
    assert_eq!(gateway.get("/a", &[]).status, 200);
    assert_eq!(gateway.get("/a", &[]).status, 200);
    assert_eq!(gateway.get("/a", &[]).status, 429);
    let answer = gateway.reload(|document| document["routes"][0]["labels"] = json!({"team": "x"}));
    assert_eq!(answer.status, 200, "{}", answer.text());
    assert_eq!(gateway.get("/a", &[]).status, 429);
}
