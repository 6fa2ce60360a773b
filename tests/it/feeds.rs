//! Who tells the gateway what is over: logout tokens, security events, replicas.

use std::io::Write;
use std::path::Path;
use std::process::Command;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::support::client::{Answer, request};
use crate::support::eventually;
use crate::support::gateway::{Builder, Gateway, World};
use crate::support::issuer::{AUDIENCE, Behaviour, Issuer, Key, now};
use crate::support::tools::{Script, oidc_provider, program};
use crate::support::upstream::{Next, Upstream};

const LOGOUT: &str = "/oidc/backchannel-logout";
const PUSH: &str = "/ssf/events";
const SECRET: &str = "0123456789abcdef0123456789abcdef";
const CAEP: &str = "https://schemas.openid.net/secevent/caep/event-type/";

/// Posts a body of a type.
#[track_caller]
fn post(gateway: &Gateway, path: &str, headers: &[(&str, &str)], body: &str) -> Answer {
    let length = body.len().to_string();
    let mut all = vec![("content-length", length.as_str()), ("connection", "close")];
    all.extend_from_slice(headers);
    gateway
        .connect()
        .send(request("POST", path, &all) + body)
        .answer_to("POST")
        .expect("the gateway closed the connection without an answer")
}

#[track_caller]
pub(crate) fn log_out(gateway: &Gateway, token: &str) -> Answer {
    let form = [("content-type", "application/x-www-form-urlencoded")];
    post(gateway, LOGOUT, &form, &format!("logout_token={token}"))
}

pub(crate) fn with_feeds(builder: Builder) -> Builder {
    let secret = builder.file("push-secret", SECRET);
    builder.with(|document| {
        document["authentication_failures"] = json!({"enabled": false});
        document["revocation"] = json!({
            "backchannel_logout": [{"path": LOGOUT, "issuer": "main", "audiences": ["web"]}],
            "streams": {"idp": {
                "issuer": "main",
                "audiences": ["https://gateway.example.test/ssf"],
                "push": {"path": PUSH, "token": format!("file:{}", secret.display())},
            }},
        });
    })
}

pub(crate) fn logout_claims(issuer: &Issuer) -> Value {
    json!({
        "iss": issuer.url, "aud": "web", "iat": now(), "exp": now() + 120,
        "jti": format!("l-{}", rand::random::<u64>()), "sid": "s1",
        "events": {"http://schemas.openid.net/event/backchannel-logout": {}},
    })
}

pub(crate) fn typed(key: &Key, token_type: &str, claims: &Value) -> String {
    let header = json!({"alg": key.alg, "kid": key.kid, "typ": token_type});
    key.token_raw(&header.to_string(), &claims.to_string())
}

/// Good claims with changes; `null` removes a claim.
pub(crate) fn changed(mut claims: Value, changes: &Value) -> Value {
    for (name, value) in changes.as_object().unwrap() {
        if value.is_null() {
            claims.as_object_mut().unwrap().remove(name);
        } else {
            claims[name] = value.clone();
        }
    }
    claims
}

fn access(world: &World, subject: &str, changes: &Value) -> String {
    world
        .key
        .token(&changed(world.issuer.claims(subject), changes))
}

#[test]
fn a_logout_token_ends_its_session_and_no_other() {
    let world = World::with(with_feeds);
    let (mine, other) = (
        access(&world, "alice", &json!({"sid": "s1"})),
        access(&world, "alice", &json!({"sid": "s2"})),
    );
    for token in [&mine, &other] {
        assert_eq!(world.gateway.bearer("/a", token).status, 200);
    }
    let claims = logout_claims(&world.issuer);
    let answer = log_out(&world.gateway, &typed(&world.key, "logout+jwt", &claims));
    assert_eq!(answer.status, 200, "{}", answer.text());
    assert_eq!(answer.header("cache-control"), Some("no-store"));
    assert!(answer.body.is_empty());
    // In force when the answer is here, also for what was verified before.
    let refused = world.gateway.bearer("/a", &mine);
    assert_eq!(refused.status, 401);
    let id = refused.json()["request_id"].as_str().unwrap().to_owned();
    assert_eq!(world.gateway.record(&id)["reason"], "revoked.session");
    assert_eq!(world.gateway.bearer("/a", &other).status, 200);
}

#[test]
fn a_logout_token_for_a_subject_ends_what_was_issued_before_it() {
    let world = World::with(with_feeds);
    let old = access(&world, "alice", &json!({"iat": now() - 60}));
    let bob = access(&world, "bob", &json!({"iat": now() - 60}));
    let later = access(&world, "alice", &json!({"iat": now() - 20}));
    let claims = changed(
        logout_claims(&world.issuer),
        &json!({"sid": null, "sub": "alice", "iat": now() - 40}),
    );
    let answer = log_out(&world.gateway, &typed(&world.key, "logout+jwt", &claims));
    assert_eq!(answer.status, 200, "{}", answer.text());
    assert_eq!(world.gateway.bearer("/a", &old).status, 401);
    assert_eq!(world.gateway.bearer("/a", &later).status, 200);
    assert_eq!(world.gateway.bearer("/a", &bob).status, 200);
}

#[test]
fn a_logout_token_of_both_ends_the_session_and_with_whole_subject_everything() {
    let world = World::with(|builder| {
        with_feeds(builder).with(|document| {
            let one = document["revocation"]["backchannel_logout"][0].clone();
            let whole = changed(one, &json!({"path": "/whole", "whole_subject": true}));
            document["revocation"]["backchannel_logout"]
                .as_array_mut()
                .unwrap()
                .push(whole);
        })
    });
    let old = json!({"iat": now() - 60, "sid": "s2"});
    let (other, mine) = (
        access(&world, "alice", &old),
        access(&world, "alice", &json!({"iat": now() - 60, "sid": "s1"})),
    );
    let both = json!({"sub": "alice"});
    let claims = changed(logout_claims(&world.issuer), &both);
    let answer = log_out(&world.gateway, &typed(&world.key, "logout+jwt", &claims));
    assert_eq!(answer.status, 200);
    assert_eq!(world.gateway.bearer("/a", &mine).status, 401);
    assert_eq!(world.gateway.bearer("/a", &other).status, 200);
    let claims = changed(logout_claims(&world.issuer), &both);
    let token = typed(&world.key, "logout+jwt", &claims);
    let form = [(
        "content-type",
        "application/x-www-form-urlencoded; charset=utf-8",
    )];
    let answer = post(
        &world.gateway,
        "/whole",
        &form,
        &format!("a=b&logout_token={token}"),
    );
    assert_eq!(answer.status, 200, "{}", answer.text());
    assert_eq!(world.gateway.bearer("/a", &other).status, 401);
}

#[test]
fn who_is_known_by_another_claim_is_logged_out_by_sub() {
    let world = World::with(|builder| {
        with_feeds(builder)
            .with(|document| document["issuers"]["main"]["claims"]["subject"] = json!("email"))
    });
    let mail = |name: &str| json!({"iat": now() - 60, "email": format!("{name}@example.test")});
    let (alice, bob) = (
        access(&world, "00u1", &mail("alice")),
        access(&world, "00u2", &mail("bob")),
    );
    assert_eq!(world.gateway.bearer("/a", &alice).status, 200);
    let claims = changed(
        logout_claims(&world.issuer),
        &json!({"sid": null, "sub": "00u1"}),
    );
    let answer = log_out(&world.gateway, &typed(&world.key, "logout+jwt", &claims));
    assert_eq!(answer.status, 200, "{}", answer.text());
    assert_eq!(world.gateway.bearer("/a", &alice).status, 401);
    assert_eq!(world.gateway.bearer("/a", &bob).status, 200);
}

#[test]
fn every_flaw_of_a_logout_token_refuses_it_and_nothing_ends() {
    let world = World::with(with_feeds);
    let session = access(&world, "alice", &json!({"sid": "s1"}));
    let good = || logout_claims(&world.issuer);
    let logout = "http://schemas.openid.net/event/backchannel-logout";
    let mut bad: Vec<(String, String, &str)> = Vec::new();
    for (changes, code) in [
        (json!({"iss": null}), "token.issuer"),
        (json!({"iss": "https://other.example"}), "token.issuer"),
        (json!({"aud": null}), "token.audience"),
        (json!({"aud": "another-client"}), "token.audience"),
        (json!({"aud": AUDIENCE}), "token.audience"),
        (json!({"iat": null}), "token.claims"),
        (json!({"iat": now() + 3600}), "token.not_yet_valid"),
        (json!({"iat": now() - 3600}), "token.too_old"),
        (json!({"exp": null}), "token.claims"),
        (json!({"exp": now() - 3600}), "token.expired"),
        (json!({"jti": null}), "token.claims"),
        (json!({"nonce": "n"}), "token.kind"),
        (json!({"events": null}), "token.kind"),
        (json!({"events": {}}), "feed.claims"),
        (json!({"events": {"urn:other": {}}}), "feed.claims"),
        (json!({"events": {logout: true}}), "feed.claims"),
        (
            json!({"events": {logout: {}, "urn:other": {}}}),
            "feed.claims",
        ),
        (json!({"sid": null}), "feed.claims"),
        (json!({"sid": 7}), "feed.claims"),
        (json!({"sid": ""}), "feed.claims"),
        (json!({"sub": 7}), "feed.claims"),
    ] {
        let claims = changed(good(), &changes);
        let token = typed(&world.key, "logout+jwt", &claims);
        bad.push((changes.to_string(), token, code));
    }
    for token_type in ["JWT", "at+jwt", "secevent+jwt", "id_token"] {
        let token = typed(&world.key, token_type, &good());
        bad.push((token_type.to_owned(), token, "token.type"));
    }
    let untyped = json!({"alg": world.key.alg, "kid": world.key.kid}).to_string();
    let token = world.key.token_raw(&untyped, &good().to_string());
    bad.push(("no typ".to_owned(), token, "token.type"));
    for alg in ["none", "HS256"] {
        let header = json!({"alg": alg, "kid": world.key.kid, "typ": "logout+jwt"}).to_string();
        let token = world.key.token_raw(&header, &good().to_string());
        bad.push((alg.to_owned(), token, "token.algorithm"));
    }
    let mut stranger = Key::new("k1", "ES256");
    let token = typed(&stranger, "logout+jwt", &good());
    bad.push(("a stranger's key".to_owned(), token, "token.signature"));
    stranger.kid = "unknown".to_owned();
    let token = typed(&stranger, "logout+jwt", &good());
    bad.push(("an unknown key".to_owned(), token, "token.unknown_key"));
    bad.push(("no token".to_owned(), "x".to_owned(), "token.malformed"));
    // The unsigned form of RFC 7519 section 6.
    let token = typed(&world.key, "logout+jwt", &good());
    let (unsigned, _) = token.rsplit_once('.').unwrap();
    bad.push((
        "unsigned".to_owned(),
        format!("{unsigned}."),
        "token.malformed",
    ));
    // What opens routes must not log anybody out.
    bad.push(("an access token".to_owned(), session.clone(), "token.type"));

    for (what, token, code) in bad {
        let before = world.gateway.records().len();
        let answer = log_out(&world.gateway, &token);
        assert_eq!(answer.status, 400, "{what}: {}", answer.text());
        assert_eq!(answer.header("cache-control"), Some("no-store"), "{what}");
        assert_eq!(answer.json()["error"], "invalid_request", "{what}");
        assert!(!answer.text().contains(code), "{what}: {}", answer.text());
        let record = eventually("its record", || {
            let records = world.gateway.records();
            (records.len() > before).then(|| records[before].clone())
        });
        assert_eq!(record["reason"], code, "{what}: {record}");
        assert_eq!(world.gateway.bearer("/a", &session).status, 200, "{what}");
        // The record of that.
        eventually("its record", || {
            (world.gateway.records().len() > before + 1).then_some(())
        });
    }
    let metrics = world.gateway.admin("GET", "/metrics").text();
    assert!(
        metrics.contains(r#"revocation_events_total{feed="logout:main",outcome="refused"}"#),
        "{metrics}"
    );
}

#[test]
fn a_logout_token_is_heard_once_and_a_logout_token_opens_nothing() {
    let world = World::with(|builder| {
        with_feeds(builder).with(|document| {
            document["issuers"]["main"]["token_types"] = json!(["at+jwt", "JWT", "logout+jwt"]);
            document["issuers"]["main"]["allow_missing_type"] = json!(true);
        })
    });
    let claims = changed(
        logout_claims(&world.issuer),
        &json!({"aud": ["web", AUDIENCE], "sub": "alice", "scope": "orders:read"}),
    );
    let token = typed(&world.key, "logout+jwt", &claims);
    assert_eq!(world.gateway.bearer("/a", &token).status, 401);
    assert_eq!(log_out(&world.gateway, &token).status, 200);
    assert_eq!(log_out(&world.gateway, &token).status, 400, "replayed");
    let metrics = world.gateway.admin("GET", "/metrics").text();
    assert!(
        metrics.contains(r#"revocation_events_total{feed="logout:main",outcome="replayed"} 1"#),
        "{metrics}"
    );
}

#[test]
fn a_plain_type_is_heard_only_where_the_configuration_says_so() {
    let world = World::with(|builder| {
        with_feeds(builder).with(|document| {
            document["revocation"]["backchannel_logout"][0]["allow_plain_type"] = json!(true);
        })
    });
    let claims = logout_claims(&world.issuer);
    let answer = log_out(&world.gateway, &typed(&world.key, "JWT", &claims));
    assert_eq!(answer.status, 200, "{}", answer.text());
    let answer = log_out(
        &world.gateway,
        &typed(&world.key, "at+jwt", &logout_claims(&world.issuer)),
    );
    assert_eq!(answer.status, 400);
}

#[test]
fn posts_to_an_endpoint_have_a_form_a_size_and_a_time() {
    let world = World::with(with_feeds);
    let form = [("content-type", "application/x-www-form-urlencoded")];
    let good = || typed(&world.key, "logout+jwt", &logout_claims(&world.issuer));
    let get = world.gateway.get(LOGOUT, &[]);
    assert_eq!((get.status, get.header("allow")), (405, Some("POST")));
    for (headers, body) in [
        (
            &[("content-type", "application/json")][..],
            format!("logout_token={}", good()),
        ),
        (&[], format!("logout_token={}", good())),
        (&form, String::new()),
        (&form, "logout_token=".to_owned()),
        (&form, format!("token={}", good())),
        (
            &form,
            format!("logout_token={}&logout_token={}", good(), good()),
        ),
        (
            &form,
            format!("logout_token={}&pad={}", good(), "x".repeat(16 * 1024)),
        ),
    ] {
        let answer = post(&world.gateway, LOGOUT, headers, &body);
        assert_eq!(answer.status, 400, "{headers:?} {body:.80}");
    }
    // Percent-encoded as a form may be.
    let encoded = good().replace('.', "%2E");
    assert_eq!(
        post(
            &world.gateway,
            LOGOUT,
            &form,
            &format!("logout_token={encoded}")
        )
        .status,
        200
    );
    // A body that does not come.
    let start = Instant::now();
    let head = request(
        "POST",
        LOGOUT,
        &[("content-type", form[0].1), ("content-length", "1000")],
    );
    let answer = world
        .gateway
        .connect()
        .send(head + "logout_token=")
        .answer_to("POST")
        .unwrap();
    assert_eq!(answer.status, 400);
    let took = start.elapsed();
    assert!(
        took >= Duration::from_secs(4) && took < Duration::from_secs(9),
        "{took:?}"
    );
}

#[test]
fn who_posts_what_is_not_theirs_to_say_is_slowed_down() {
    let world = World::with(|builder| {
        with_feeds(builder).with(|document| {
            document["authentication_failures"] = json!({"rate": "1/m", "burst": 3});
        })
    });
    let forged = typed(
        &Key::new("k1", "ES256"),
        "logout+jwt",
        &logout_claims(&world.issuer),
    );
    for _ in 0..3 {
        assert_eq!(log_out(&world.gateway, &forged).status, 400);
    }
    let answer = log_out(&world.gateway, &forged);
    assert_eq!(answer.status, 429);
    assert!(answer.header("retry-after").is_some());
}

#[test]
fn an_endpoint_is_served_only_under_its_hosts_and_leaves_one_record_for_each_post() {
    let world = World::with(|builder| {
        with_feeds(builder).with(|document| {
            document["revocation"]["backchannel_logout"][0]["hosts"] =
                json!(["login.example.test"]);
        })
    });
    let good = typed(&world.key, "logout+jwt", &logout_claims(&world.issuer));
    let elsewhere = log_out(&world.gateway, &good);
    assert_eq!(
        elsewhere.status, 401,
        "a route takes it, and wants a credential"
    );
    let headers = [
        ("host", "login.example.test"),
        ("content-type", "application/x-www-form-urlencoded"),
    ];
    let answer = post(
        &world.gateway,
        LOGOUT,
        &headers,
        &format!("logout_token={good}"),
    );
    assert_eq!(answer.status, 200);
    let records = eventually("records", || {
        let records = world.gateway.records();
        (records.len() >= 2).then_some(records)
    });
    assert_eq!(records.len(), 2);
    assert_eq!(records[1]["reason"], "feed.accepted", "{}", records[1]);
    let text = records[1].to_string();
    assert!(
        text.contains("session s1") && !text.contains(&good),
        "{text}"
    );
}

#[test]
fn while_the_issuers_keys_are_not_there_a_logout_is_asked_to_come_again() {
    let key = Key::new("k1", "ES256");
    let issuer = Issuer::start(&[&key]);
    issuer.behave(Behaviour::Status(503));
    let upstream = Upstream::start();
    let mut builder = with_feeds(Builder::guarded(&upstream, &issuer));
    let whole = builder.document.clone();
    // `start` waits for readiness when there are issuers.
    for section in ["issuers", "revocation"] {
        builder.document.as_object_mut().unwrap().remove(section);
    }
    for route in builder.document["routes"].as_array_mut().unwrap() {
        route["authn"] = json!(["anonymous"]);
    }
    let mut gateway = builder.start();
    assert_eq!(gateway.reload(|document| *document = whole).status, 200);
    let token = typed(&key, "logout+jwt", &logout_claims(&issuer));
    let answer = log_out(&gateway, &token);
    assert_eq!(answer.status, 503, "{}", answer.text());
    assert_eq!(answer.json()["error"], "temporarily_unavailable");
    assert!(answer.header("retry-after").is_some());
    issuer.behave(Behaviour::Good);
    eventually("the keys", || {
        (log_out(&gateway, &token).status == 200).then_some(())
    });
}

fn event_claims(issuer: &Issuer, kind: &str, subject: Value) -> Value {
    json!({
        "iss": issuer.url, "aud": "https://gateway.example.test/ssf", "iat": now(),
        "jti": format!("e-{}", rand::random::<u64>()), "sub_id": subject,
        "events": {format!("{CAEP}{kind}"): {"event_timestamp": now() - 30}},
    })
}

fn user(issuer: &Issuer, name: &str) -> Value {
    json!({"format": "iss_sub", "iss": issuer.url, "sub": name})
}

#[track_caller]
fn push(gateway: &Gateway, token: &str) -> Answer {
    let bearer = format!("Bearer {SECRET}");
    let headers = [
        ("content-type", "application/secevent+jwt"),
        ("authorization", bearer.as_str()),
    ];
    post(gateway, PUSH, &headers, token)
}

#[test]
fn pushed_events_end_sessions_tokens_and_what_a_user_had_before() {
    let world = World::with(with_feeds);
    let old = json!({"iat": now() - 60});
    let issuer = &world.issuer;
    let opaque = |id: &str| json!({"format": "opaque", "id": id});
    for (kind, subject, name, ended, kept) in [
        ("session-revoked", user(issuer, "a1"), "a1", &old, json!({})),
        (
            "session-revoked",
            json!({"format": "complex", "user": user(issuer, "a2"), "session": opaque("s7")}),
            "a2",
            &json!({"sid": "s7"}),
            json!({"sid": "s8", "iat": now() - 60}),
        ),
        (
            "credential-change",
            user(issuer, "a3"),
            "a3",
            &old,
            json!({}),
        ),
        (
            "token-claims-change",
            user(issuer, "a4"),
            "a4",
            &old,
            json!({}),
        ),
        (
            "token-claims-change",
            json!({"format": "jwt_id", "iss": issuer.url, "jti": "t5"}),
            "a5",
            &json!({"jti": "t5"}),
            json!({"jti": "t6"}),
        ),
        (
            "device-compliance-change",
            opaque("a6"),
            "a6",
            &old,
            json!({}),
        ),
    ] {
        let (ended, kept) = (access(&world, name, ended), access(&world, name, &kept));
        assert_eq!(world.gateway.bearer("/a", &ended).status, 200, "{kind}");
        let token = typed(
            &world.key,
            "secevent+jwt",
            &event_claims(issuer, kind, subject),
        );
        let answer = push(&world.gateway, &token);
        assert_eq!(answer.status, 202, "{kind}: {}", answer.text());
        assert!(answer.body.is_empty());
        assert_eq!(world.gateway.bearer("/a", &ended).status, 401, "{kind}");
        assert_eq!(world.gateway.bearer("/a", &kept).status, 200, "{kind}");
    }
}

#[test]
fn events_that_mean_nothing_to_us_are_acknowledged_and_counted() {
    let world = World::with(with_feeds);
    let token = access(&world, "alice", &json!({"iat": now() - 60}));
    let issuer = &world.issuer;
    let foreign = json!({"format": "iss_sub", "iss": "https://other.example", "sub": "alice"});
    for (claims, outcome) in [
        (
            event_claims(issuer, "risk-level-change", user(issuer, "alice")),
            "not_understood",
        ),
        (
            event_claims(
                issuer,
                "session-revoked",
                json!({"format": "email", "email": "alice"}),
            ),
            "not_understood",
        ),
        (
            event_claims(
                issuer,
                "session-revoked",
                json!({"format": "complex", "device": {"format": "opaque", "id": "d"}}),
            ),
            "not_understood",
        ),
        (event_claims(issuer, "session-revoked", foreign), "foreign"),
        (
            event_claims(issuer, "session-established", user(issuer, "alice")),
            "noted",
        ),
    ] {
        let answer = push(&world.gateway, &typed(&world.key, "secevent+jwt", &claims));
        assert_eq!(answer.status, 202, "{claims}");
        let metrics = world.gateway.admin("GET", "/metrics").text();
        assert!(
            metrics.contains(&format!(
                r#"revocation_events_total{{feed="idp",outcome="{outcome}"}}"#
            )),
            "{outcome}: {metrics}"
        );
    }
    assert_eq!(world.gateway.bearer("/a", &token).status, 200);
    // The same event again changes nothing, and is no fault.
    let event = event_claims(issuer, "session-revoked", user(issuer, "bob"));
    let event = typed(&world.key, "secevent+jwt", &event);
    assert_eq!(push(&world.gateway, &event).status, 202);
    assert_eq!(push(&world.gateway, &event).status, 202);
    let metrics = world.gateway.admin("GET", "/metrics").text();
    assert!(
        metrics.contains(r#"revocation_events_total{feed="idp",outcome="replayed"} 1"#),
        "{metrics}"
    );
}

#[test]
fn pushed_events_that_are_not_the_transmitters_get_the_error_of_rfc_8935() {
    let world = World::with(with_feeds);
    let issuer = &world.issuer;
    let token = access(&world, "alice", &json!({"iat": now() - 60}));
    let claims = |changes: Value| {
        changed(
            event_claims(issuer, "session-revoked", user(issuer, "alice")),
            &changes,
        )
    };
    let event = |changes: Value| typed(&world.key, "secevent+jwt", &claims(changes));
    let stranger = Key::new("k1", "ES256");
    for (text, error) in [
        (
            event(json!({"iss": "https://other.example"})),
            "invalid_issuer",
        ),
        (event(json!({"aud": AUDIENCE})), "invalid_audience"),
        (event(json!({"iat": now() + 3600})), "invalid_request"),
        (event(json!({"iat": now() - 8 * 86_400})), "invalid_request"),
        (event(json!({"jti": null})), "invalid_request"),
        (event(json!({"events": null})), "invalid_request"),
        (
            typed(&world.key, "JWT", &claims(json!({}))),
            "invalid_request",
        ),
        (
            typed(&world.key, "at+jwt", &claims(json!({}))),
            "invalid_request",
        ),
        (
            typed(&world.key, "logout+jwt", &claims(json!({}))),
            "invalid_request",
        ),
        (
            typed(&stranger, "secevent+jwt", &claims(json!({}))),
            "invalid_key",
        ),
        (token.clone(), "invalid_request"),
        (String::new(), "invalid_request"),
        ("x".repeat(17 * 1024), "invalid_request"),
    ] {
        let answer = push(&world.gateway, &text);
        assert_eq!(answer.status, 400, "{error} {text:.60}");
        assert_eq!(answer.json()["err"], error, "{text:.60}");
        assert!(answer.json()["description"].is_string());
        assert_eq!(answer.header("content-language"), Some("en"));
    }
    let good = event(json!({}));
    let secevent = ("content-type", "application/secevent+jwt");
    for headers in [
        vec![secevent],
        vec![secevent, ("authorization", "Bearer wrong")],
        vec![secevent, ("authorization", SECRET)],
        vec![
            secevent,
            ("authorization", "Basic 0123456789abcdef0123456789abcdef"),
        ],
    ] {
        let answer = post(&world.gateway, PUSH, &headers, &good);
        assert_eq!(answer.status, 401, "{headers:?}");
        assert_eq!(answer.json()["err"], "authentication_failed");
        assert!(answer.header("www-authenticate").is_some());
    }
    assert_eq!(
        world.gateway.bearer("/a", &token).status,
        200,
        "nothing has ended"
    );
    // No event opens a route.
    assert_eq!(world.gateway.bearer("/a", &good).status, 401);
    assert_eq!(push(&world.gateway, &good).status, 202);
    assert_eq!(world.gateway.bearer("/a", &token).status, 401);
}

pub(crate) fn session_token(key: &Key, issuer: &Issuer, session: &str) -> String {
    key.token(&changed(issuer.claims("alice"), &json!({"sid": session})))
}

/// A transmitter that is polled: what is to come, and what was said to it.
#[derive(Default)]
struct Transmitter {
    sets: Mutex<Vec<(String, String)>>,
    asked: Mutex<Vec<Value>>,
    broken: AtomicBool,
}

impl Transmitter {
    fn start(self: &std::sync::Arc<Self>) -> Upstream {
        let state = std::sync::Arc::clone(self);
        Upstream::with(move |seen, stream| {
            let question: Value = serde_json::from_slice(&seen.body).unwrap_or_default();
            let authorized = seen.header("authorization") == Some(&format!("Bearer {SECRET}"));
            state
                .asked
                .lock()
                .unwrap()
                .push(json!({"authorized": authorized, "body": question}));
            if state.broken.load(Ordering::SeqCst) {
                let _ = stream.write_all(b"HTTP/1.1 500 No\r\nContent-Length: 0\r\n\r\n");
                return Next::Close;
            }
            let mut sets = state.sets.lock().unwrap();
            let done = |id: &str| {
                question["ack"]
                    .as_array()
                    .is_some_and(|ack| ack.iter().any(|a| a == id))
                    || question["setErrs"].get(id).is_some()
            };
            sets.retain(|(id, _)| !done(id));
            let all: serde_json::Map<String, Value> = sets
                .iter()
                .map(|(id, text)| (id.clone(), json!(text)))
                .collect();
            let body = json!({"sets": all}).to_string();
            let answer = format!(
                "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
                body.len()
            );
            let _ = stream.write_all(answer.as_bytes());
            Next::Close
        })
    }
}

#[test]
fn polled_events_end_sessions_and_are_acknowledged_and_a_dead_transmitter_is_told() {
    let transmitter = std::sync::Arc::new(Transmitter::default());
    let server = transmitter.start();
    let signer = Key::new("t1", "EdDSA");
    let keys = json!({"keys": [signer.jwk()]}).to_string();
    let world = World::with(|builder| {
        let secret = builder.file("poll-secret", SECRET);
        let keys = builder.file("transmitter.json", &keys);
        builder.with(|document| {
            document["revocation"] = json!({"streams": {"risc": {
                "transmitter": {
                    "issuer": "https://transmitter.example.test",
                    "keys": {"file": keys},
                    "algorithms": ["EdDSA"],
                },
                "audiences": ["https://gateway.example.test/ssf"],
                "subjects_of": ["main"],
                "stale_after": "2s",
                "poll": {
                    "url": format!("{}/poll", server.url()),
                    "token": format!("file:{}", secret.display()),
                    "interval": "100ms",
                    "wait": false,
                },
            }}});
            document["routes"][0]["revocation"] = json!({"when_stale": "refuse"});
        })
    });
    let token = access(&world, "alice", &json!({"iat": now() - 60}));
    assert_eq!(world.gateway.bearer("/a", &token).status, 200);
    let event = changed(
        event_claims(
            &world.issuer,
            "session-revoked",
            user(&world.issuer, "alice"),
        ),
        &json!({"iss": "https://transmitter.example.test"}),
    );
    let forged = Key::new("t1", "EdDSA");
    transmitter.sets.lock().unwrap().extend([
        ("good".to_owned(), typed(&signer, "secevent+jwt", &event)),
        ("forged".to_owned(), typed(&forged, "secevent+jwt", &event)),
        // Signed by the issuer of tokens, whose word does not count here.
        (
            "other".to_owned(),
            typed(&world.key, "secevent+jwt", &event),
        ),
    ]);
    eventually("the end of the session", || {
        (world.gateway.bearer("/a", &token).status == 401).then_some(())
    });
    eventually("acknowledgements", || {
        transmitter.sets.lock().unwrap().is_empty().then_some(())
    });
    let asked = transmitter.asked.lock().unwrap().clone();
    assert!(asked.iter().all(|asked| asked["authorized"] == true));
    let said = asked
        .iter()
        .find(|asked| asked["body"]["setErrs"].is_object())
        .unwrap();
    assert_eq!(said["body"]["ack"], json!(["good"]));
    assert_eq!(said["body"]["setErrs"]["forged"]["err"], "invalid_key");
    assert_eq!(said["body"]["setErrs"]["other"]["err"], "invalid_request");
    assert_eq!(said["body"]["maxEvents"], 100);
    assert_eq!(said["body"]["returnImmediately"], true);

    // Silence is told, and the route that says so believes nobody meanwhile.
    let bob = access(&world, "bob", &json!({}));
    assert_eq!(world.gateway.bearer("/a", &bob).status, 200);
    transmitter.broken.store(true, Ordering::SeqCst);
    let refused = eventually("staleness", || {
        let answer = world.gateway.bearer("/a", &bob);
        (answer.status != 200).then_some(answer)
    });
    assert_eq!(refused.status, 503, "{}", refused.text());
    transmitter.broken.store(false, Ordering::SeqCst);
    eventually("recovery", || {
        (world.gateway.bearer("/a", &bob).status == 200).then_some(())
    });
}

#[test]
fn a_transmitter_that_waits_is_heard_at_once() {
    let signer = Key::new("t1", "ES256");
    let keys = json!({"keys": [signer.jwk()]}).to_string();
    let event: std::sync::Arc<Mutex<Option<String>>> = std::sync::Arc::default();
    let sent = std::sync::Arc::clone(&event);
    let waiting = std::sync::Arc::new(AtomicBool::new(false));
    let held = std::sync::Arc::clone(&waiting);
    let server = Upstream::with(move |seen, stream| {
        let question: Value = serde_json::from_slice(&seen.body).unwrap();
        let mut sets = json!({});
        if question["returnImmediately"] == false {
            held.store(true, Ordering::SeqCst);
            sets = eventually("an event", || sent.lock().unwrap().take())
                .as_str()
                .parse()
                .unwrap();
        }
        let body = json!({"sets": sets, "moreAvailable": false}).to_string();
        let answer = format!(
            "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        );
        let _ = stream.write_all(answer.as_bytes());
        Next::Close
    });
    let world = World::with(|builder| {
        let keys = builder.file("transmitter.json", &keys);
        builder.with(|document| {
            document["revocation"] = json!({"streams": {"risc": {
                "transmitter": {
                    "issuer": "https://transmitter.example.test",
                    "keys": {"file": keys},
                    "algorithms": ["ES256"],
                },
                "audiences": ["https://gateway.example.test/ssf"],
                "subjects_of": ["main"],
                "poll": {"url": server.url()},
            }}});
            for route in document["routes"].as_array_mut().unwrap() {
                route["revocation"] = json!({"when_stale": "allow"});
            }
        })
    });
    let token = access(&world, "alice", &json!({"iat": now() - 60}));
    assert_eq!(world.gateway.bearer("/a", &token).status, 200);
    eventually("a question", || {
        waiting.load(Ordering::SeqCst).then_some(())
    });
    let claims = changed(
        event_claims(
            &world.issuer,
            "session-revoked",
            user(&world.issuer, "alice"),
        ),
        &json!({"iss": "https://transmitter.example.test"}),
    );
    let text = typed(&signer, "secevent+jwt", &claims);
    let start = Instant::now();
    *event.lock().unwrap() = Some(json!({"one": text}).to_string());
    eventually("the end of the session", || {
        (world.gateway.bearer("/a", &token).status == 401).then_some(())
    });
    assert!(
        start.elapsed() < Duration::from_secs(1),
        "{:?}",
        start.elapsed()
    );
}

#[test]
fn a_transmitter_that_shows_its_secret_is_never_slowed_down() {
    let world = World::with(|builder| {
        with_feeds(builder).with(|document| {
            document["authentication_failures"] = json!({"rate": "1/m", "burst": 2});
        })
    });
    let event = |key: &Key| {
        let user = user(&world.issuer, "alice");
        typed(
            key,
            "secevent+jwt",
            &event_claims(&world.issuer, "session-revoked", user),
        )
    };
    let strange = event(&Key::new("k1", "ES256"));
    let secevent = [("content-type", "application/secevent+jwt")];
    for expected in [401, 401, 429] {
        assert_eq!(
            post(&world.gateway, PUSH, &secevent, &strange).status,
            expected
        );
    }
    for _ in 0..5 {
        assert_eq!(push(&world.gateway, &strange).status, 400);
    }
    assert_eq!(push(&world.gateway, &event(&world.key)).status, 202);
}

#[test]
fn a_reload_forgets_neither_what_was_heard_nor_what_has_ended() {
    let World {
        key,
        issuer,
        mut gateway,
        ..
    } = World::with(with_feeds);
    let ended = session_token(&key, &issuer, "s1");
    let logout = typed(&key, "logout+jwt", &logout_claims(&issuer));
    assert_eq!(log_out(&gateway, &logout).status, 200);
    let answer = gateway.reload(|document| {
        document["revocation"]["backchannel_logout"][0]["path"] = json!("/elsewhere");
    });
    assert_eq!(answer.status, 200, "{}", answer.text());
    assert_eq!(gateway.bearer("/a", &ended).status, 401);
    let form = [("content-type", "application/x-www-form-urlencoded")];
    let again = post(
        &gateway,
        "/elsewhere",
        &form,
        &format!("logout_token={logout}"),
    );
    assert_eq!(again.status, 400, "heard before");
    assert_eq!(
        log_out(&gateway, &logout).status,
        401,
        "a route's path again"
    );
}

#[test]
fn a_logout_at_a_certified_provider_ends_its_tokens_here() {
    let (Some(folder), Some(node)) = (oidc_provider(), program("node")) else {
        return;
    };
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/it/interop/provider.mjs");
    let mut provider = Script::start(
        Command::new(node)
            .arg(script)
            .env("PORTCULLIS_OIDC_PROVIDER_DIR", folder),
    );
    let hello: Value = serde_json::from_str(&provider.line()).unwrap();
    let audience = "urn:portcullis:orders";
    let upstream = Upstream::start();
    let stand_in = Issuer::start(&[]);
    let gateway = with_feeds(Builder::guarded(&upstream, &stand_in))
        .with(|document| {
            let issuer = &mut document["issuers"]["main"];
            issuer["issuer"] = hello["issuer"].clone();
            issuer["audiences"] = json!([audience]);
            issuer["refresh"] = json!({"interval": "1s", "minimum": "1s"});
        })
        .start();
    let uri = format!("http://{}{LOGOUT}", gateway.address());
    provider.ask(&json!({"do": "backchannel", "uri": uri}));
    let mut token = || {
        let answer = provider.ask(&json!({
            "do": "token", "alg": "ES256", "flow": "authorization_code", "audience": audience,
        }));
        answer["access_token"]
            .as_str()
            .unwrap_or_else(|| panic!("no token: {answer}"))
            .to_owned()
    };
    // Two sessions of the same person.
    let (other, mine) = (token(), token());
    eventually("the new keys", || {
        (gateway.bearer("/a", &mine).status == 200).then_some(())
    });
    assert_eq!(gateway.bearer("/a", &other).status, 200);
    let told = provider.ask(&json!({"do": "logout"}));
    assert_eq!(told["status"], "accepted", "{told}");
    assert_eq!(gateway.bearer("/a", &mine).status, 401);
    assert_eq!(gateway.bearer("/a", &other).status, 200);
}
