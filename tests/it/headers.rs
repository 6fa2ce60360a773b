//! A header that only we write never arrives from outside, under any spelling.

use serde_json::{Value, json};

use crate::support::gateway::{Builder, World};
use crate::support::upstream::Upstream;

fn world() -> World {
    World::with(|builder| {
        builder.with(|document| {
            document["identity"] = json!({
                "headers": {
                    "x-user-id": "subject", "x-user-roles": "roles", "x-user-email": "claim:email",
                    "x-gateway": "text:portcullis",
                },
                "assertion": {"header": "x-portcullis-assertion", "issuer": "https://gateway.test", "lifetime": "30s"},
            });
        })
    })
}

#[test]
fn identity_headers_come_from_the_token_alone() {
    let world = world();
    let token = world.token("alice");
    let authorization = format!("Bearer {token}");
    for spoofed in [
        "X-User-Id",
        "x-user-id",
        "X_User_Id",
        "x_user_id",
        "X-User_Id",
        "x.user.id",
        "X-USER-ID",
        "x-user-email",
        "X_USER_EMAIL",
        "x-user-roles",
        "x-portcullis-assertion",
        "X_Portcullis_Assertion",
    ] {
        let answer = world.gateway.get(
            "/a",
            &[("authorization", &authorization), (spoofed, "mallory")],
        );
        assert_eq!(answer.status, 200, "{spoofed}: {}", answer.text());
        let seen = world.upstream.last();
        assert_eq!(seen.header("x-user-id"), Some("alice"), "{spoofed}");
        assert_eq!(seen.header("x-user-roles"), Some("customer"));
        assert_eq!(seen.header("x-gateway"), Some("portcullis"));
        assert!(
            !seen
                .headers
                .iter()
                .any(|(_, value)| value.contains("mallory")),
            "{spoofed} arrived: {:?}",
            seen.headers
        );
    }
}

#[test]
fn connection_cannot_nominate_what_we_write() {
    let world = world();
    let authorization = format!("Bearer {}", world.token("alice"));
    for nominated in [
        "x-user-id",
        "close, x-user-id",
        "X-User-Id, x-portcullis-assertion",
        "authorization",
        "x-forwarded-for, host",
    ] {
        let answer = world.gateway.get(
            "/a",
            &[
                ("authorization", &authorization),
                ("connection", nominated),
                ("x-user-id", "mallory"),
            ],
        );
        assert_eq!(answer.status, 200, "{nominated}: {}", answer.text());
        let seen = world.upstream.last();
        assert_eq!(seen.header("x-user-id"), Some("alice"), "{nominated}");
        assert!(
            seen.header("x-portcullis-assertion").is_some(),
            "{nominated}"
        );
        assert!(seen.header("x-forwarded-for").is_some(), "{nominated}");
        assert_eq!(seen.header("connection"), None, "{nominated}");
    }
}

#[test]
fn an_anonymous_request_carries_no_identity() {
    let upstream = Upstream::start();
    let gateway = Builder::open(&upstream)
        .with(|document| document["identity"] = json!({"headers": {"x-user-id": "subject"}}))
        .start();
    assert_eq!(
        gateway
            .get("/a", &[("x-user-id", "mallory"), ("x_user_id", "mallory")])
            .status,
        200
    );
    let seen = upstream.last();
    assert!(
        !seen.headers.iter().any(|(_, value)| value == "mallory"),
        "{:?}",
        seen.headers
    );
}

#[test]
fn the_bearer_token_does_not_travel_on() {
    let world = world();
    let token = world.token("alice");
    assert_eq!(world.gateway.bearer("/a", &token).status, 200);
    let seen = world.upstream.last();
    let signature = token.rsplit('.').next().unwrap();
    assert!(
        !seen
            .headers
            .iter()
            .any(|(_, value)| value.contains(signature)),
        "{:?}",
        seen.headers
    );
}

#[test]
fn forwarding_headers_of_strangers_are_dropped() {
    let upstream = Upstream::start();
    let gateway = Builder::open(&upstream).start();
    let answer = gateway.get(
        "/a",
        &[
            ("x-forwarded-for", "1.2.3.4"),
            ("X_Forwarded_For", "1.2.3.4"),
            ("forwarded", "for=1.2.3.4"),
            ("x-forwarded-host", "evil"),
            ("x-forwarded-proto", "gopher"),
            ("x-real-ip", "1.2.3.4"),
            ("x-forwarded-prefix", "/evil"),
            ("x-forwarded-client-cert", "evil"),
            ("x-forwarded-uri", "/evil"),
        ],
    );
    assert_eq!(answer.status, 200);
    let seen = upstream.last();
    assert_eq!(seen.header("x-forwarded-for"), Some("127.0.0.1"));
    assert_eq!(seen.header("x-forwarded-proto"), Some("http"));
    assert_eq!(seen.header("x-forwarded-host"), Some("api.example.test"));
    for (name, value) in &seen.headers {
        assert!(
            !value.contains("1.2.3.4") && !value.contains("evil") && !value.contains("gopher"),
            "{name}: {value}"
        );
    }
}

#[test]
fn a_trusted_proxy_is_believed_up_to_the_first_stranger() {
    let upstream = Upstream::start();
    let gateway = Builder::open(&upstream)
        .with(|document| document["trusted_proxies"] = json!(["127.0.0.0/8", "10.0.0.0/8"]))
        .start();
    let forwarded = "6.6.6.6, 203.0.113.7, 10.1.1.1";
    let answer = gateway.get("/a", &[("x-forwarded-for", forwarded)]);
    assert_eq!(answer.status, 200);
    // What stands left of the client was written by the client, so nobody learns it from us.
    assert_eq!(
        upstream.last().header("x-forwarded-for"),
        Some("203.0.113.7, 10.1.1.1, 127.0.0.1")
    );
    let id = upstream.last().header("x-request-id").unwrap().to_owned();
    assert_eq!(gateway.record(&id)["client"], "203.0.113.7");
}

#[test]
fn hop_by_hop_headers_stop_here() {
    let upstream = Upstream::with(|_, stream| {
        use std::io::Write;
        let _ = stream.write_all(
            b"HTTP/1.1 200 OK\r\nConnection: x-private\r\nX-Private: 1\r\nKeep-Alive: timeout=5\r\n\
              Proxy-Authenticate: Basic\r\nContent-Length: 2\r\nX-Public: 1\r\n\r\nok",
        );
        crate::support::upstream::Next::KeepAlive
    });
    let gateway = Builder::open(&upstream).start();
    let answer = gateway.get(
        "/a",
        &[
            ("connection", "x-hop"),
            ("x-hop", "1"),
            ("keep-alive", "5"),
            ("te", "trailers, deflate"),
            ("proxy-authorization", "Basic eDp5"),
            ("proxy-connection", "keep-alive"),
            ("x-end", "1"),
        ],
    );
    assert_eq!(answer.header("x-public"), Some("1"));
    for name in ["x-private", "keep-alive", "proxy-authenticate"] {
        assert_eq!(answer.header(name), None, "{name} came through");
    }
    let seen = upstream.last();
    assert_eq!(seen.header("x-end"), Some("1"));
    for name in [
        "x-hop",
        "keep-alive",
        "proxy-authorization",
        "proxy-connection",
        "connection",
    ] {
        assert_eq!(seen.header(name), None, "{name} came through");
    }
}

#[test]
fn claims_cannot_inject_headers() {
    let world = world();
    let mut claims = world.issuer.claims("alice");
    claims["email"] = json!("a@b\r\nx-user-roles: admin");
    claims["roles"] = json!(["a,b", "c d", "é"]);
    let answer = world.gateway.bearer("/a", &world.key.token(&claims));
    assert_eq!(answer.status, 200, "{}", answer.text());
    let seen = world.upstream.last();
    assert_eq!(
        seen.headers
            .iter()
            .filter(|(name, _)| name.eq_ignore_ascii_case("x-user-roles"))
            .count(),
        1
    );
    if let Some(email) = seen.header("x-user-email") {
        assert!(
            !email.contains(['\r', '\n']) && email.is_ascii(),
            "{email:?}"
        );
    }
    let roles = seen.header("x-user-roles").unwrap();
    assert_eq!(roles.split(',').count(), 3, "{roles}");
    assert!(roles.is_ascii());
    // Names that the gateway itself acts on must be names: a role or scope with a control byte makes
    // the whole token unbelievable, rather than a caller with some of its roles.
    for (claim, value) in [
        ("roles", json!(["a", "c\r\nx-user-id: root"])),
        ("sub", json!("a\r\nx-user-id: root")),
    ] {
        let mut claims = world.issuer.claims("alice");
        claims[claim] = value;
        let before = world.upstream.seen().len();
        let answer = world.gateway.bearer("/a", &world.key.token(&claims));
        assert_eq!(answer.status, 401, "{claim}");
        assert_eq!(world.upstream.seen().len(), before, "{claim}");
    }
}

#[test]
fn the_assertion_verifies_against_the_gateway_s_own_key_set() {
    let world = world();
    let answer = world.gateway.get(
        "/orders/42?x=1",
        &[
            ("authorization", &format!("Bearer {}", world.token("alice"))),
            ("host", "api.example.test"),
        ],
    );
    assert_eq!(answer.status, 200, "{}", answer.text());
    let seen = world.upstream.last();
    let assertion = seen.header("x-portcullis-assertion").unwrap().to_owned();
    let record = world.gateway.record(seen.header("x-request-id").unwrap());

    // As a service would: the key set from the data port, without any credential.
    let published = world.gateway.get("/.well-known/portcullis/jwks.json", &[]);
    assert_eq!(published.status, 200, "{}", published.text());
    assert_eq!(
        published.header("content-type"),
        Some("application/jwk-set+json")
    );
    assert!(
        !published.text().contains("\"d\""),
        "the private key is published"
    );
    let set: jsonwebtoken::jwk::JwkSet = serde_json::from_slice(&published.body).unwrap();
    let header = jsonwebtoken::decode_header(&assertion).unwrap();
    let key = set
        .find(header.kid.as_deref().unwrap())
        .expect("the assertion's key is published");
    let key = jsonwebtoken::DecodingKey::from_jwk(key).unwrap();
    let mut validation = jsonwebtoken::Validation::new(jsonwebtoken::Algorithm::ES256);
    validation.set_issuer(&["https://gateway.test"]);
    validation.set_required_spec_claims(&["iss", "aud", "exp"]);
    validation.set_audience(&["main"]);
    let read = |text: &str| jsonwebtoken::decode::<Value>(text, &key, &validation);
    let claims = read(&assertion).unwrap().claims;
    assert_eq!(claims["sub"], "alice");
    assert_eq!(claims["caller"]["issuer"], json!(world.issuer.url));
    assert_eq!(claims["caller"]["subject"], "alice");
    assert_eq!(claims["caller"]["client"], "app");
    assert_eq!(claims["decision"]["id"], record["decision_id"]);
    assert_eq!(claims["decision"]["policy"], record["policy"]["name"]);
    assert_eq!(claims["decision"]["revision"], record["policy"]["revision"]);
    assert_eq!(claims["decision"]["route"], record["route"]);
    assert_eq!(claims["request"]["id"], record["request_id"]);
    assert_eq!(claims["request"]["method"], "GET");
    assert_eq!(claims["request"]["host"], "api.example.test");
    assert_eq!(claims["request"]["path"], "/orders/42");
    let lifetime = claims["exp"].as_u64().unwrap() - claims["iat"].as_u64().unwrap();
    assert_eq!(lifetime, 30);
    // Another path in the payload, the same signature.
    let parts: Vec<&str> = assertion.split('.').collect();
    let mut forged = claims;
    forged["sub"] = json!("root");
    let forged = format!(
        "{}.{}.{}",
        parts[0],
        crate::support::issuer::b64(forged.to_string()),
        parts[2]
    );
    assert!(read(&forged).is_err());
    // No assertion is made twice, and the caller's own token is not among what travels.
    assert_eq!(
        world.gateway.bearer("/a", &world.token("alice")).status,
        200
    );
    assert_ne!(
        world.upstream.last().header("x-portcullis-assertion"),
        Some(assertion.as_str())
    );
}
