//! Who: good tokens pass, and every way to forge one is refused before it reaches anybody.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use crate::support::gateway::World;
use crate::support::issuer::{AUDIENCE, Issuer, Key, b64, now};

/// Sends a token that must be refused; returns the record's reason code.
#[track_caller]
fn refused(world: &World, what: &str, token: &str) -> String {
    let before = world.upstream.seen().len();
    let answer = world.gateway.bearer("/a", token);
    assert_eq!(
        world.upstream.seen().len(),
        before,
        "{what}: reached the upstream"
    );
    assert_eq!(answer.status, 401, "{what}: {}", answer.text());
    assert_eq!(answer.code(), "unauthenticated", "{what}");
    let challenge = answer.header("www-authenticate").unwrap_or_default();
    assert!(
        challenge.starts_with("Bearer ") && challenge.contains("invalid_token"),
        "{what}: {challenge}"
    );
    let record = world
        .gateway
        .record(answer.json()["request_id"].as_str().unwrap());
    let reason = record["reason"].as_str().unwrap_or_default().to_owned();
    assert!(
        reason.starts_with("token."),
        "{what}: recorded as {reason:?}"
    );
    let line = record.to_string();
    let secret = token.rsplit('.').next().unwrap();
    assert!(
        secret.len() < 16 || !line.contains(secret),
        "{what}: the token is in the record"
    );
    reason
}

fn generous() -> World {
    // The slow-down of addresses that fail too often is tested on its own.
    World::with(|builder| {
        builder.with(|document| document["authentication_failures"] = json!({"enabled": false}))
    })
}

#[test]
fn tokens_of_every_algorithm_pass() {
    let algorithms = [
        "RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA",
    ];
    let keys: Vec<Key> = algorithms
        .iter()
        .map(|alg| Key::new(&format!("k-{alg}"), alg))
        .collect();
    let issuer = Issuer::start(&keys.iter().collect::<Vec<_>>());
    let upstream = crate::support::upstream::Upstream::start();
    let gateway = crate::support::gateway::Builder::guarded(&upstream, &issuer).start();
    for key in &keys {
        let answer = gateway.bearer("/a", &key.token(&issuer.claims("alice")));
        assert_eq!(answer.status, 200, "{}: {}", key.alg, answer.text());
    }
    assert_eq!(upstream.seen().len(), algorithms.len());
}

#[test]
fn a_missing_token_is_challenged() {
    let world = World::start();
    for headers in [vec![], vec![("authorization", "Basic YTpi")]] {
        let answer = world.gateway.get("/a", &headers);
        assert_eq!(answer.status, 401);
        assert_eq!(
            answer.header("www-authenticate"),
            Some("Bearer realm=\"api.example.test\"")
        );
        assert_eq!(
            answer.header("content-type"),
            Some("application/problem+json")
        );
    }
    assert!(world.upstream.seen().is_empty());
}

#[test]
fn alg_none_is_refused_in_every_spelling() {
    let world = generous();
    let claims = world.issuer.claims("alice").to_string();
    for alg in ["none", "None", "NONE", "nOnE", "", "null", " none"] {
        for signature in ["", "AA", "e30"] {
            let header = json!({"alg": alg, "kid": "k1", "typ": "at+jwt"}).to_string();
            let token = format!("{}.{}.{signature}", b64(header), b64(&claims));
            refused(
                &world,
                &format!("alg {alg:?} signature {signature:?}"),
                &token,
            );
        }
    }
    let token = format!("{}.{}.", b64(r#"{"typ":"at+jwt"}"#), b64(&claims));
    refused(&world, "no alg", &token);
}

#[test]
fn the_public_key_is_no_hmac_secret() {
    let world = generous();
    let jwk = world.key.jwk();
    let secrets = [
        jwk.to_string(),
        jwk["x"].as_str().unwrap().to_owned(),
        String::new(),
    ];
    for alg in ["HS256", "HS384", "HS512"] {
        for secret in &secrets {
            let header = json!({"alg": alg, "kid": "k1", "typ": "at+jwt"}).to_string();
            let message = format!(
                "{}.{}",
                b64(header),
                b64(world.issuer.claims("alice").to_string())
            );
            let key = aws_lc_rs::hmac::Key::new(aws_lc_rs::hmac::HMAC_SHA256, secret.as_bytes());
            let tag = aws_lc_rs::hmac::sign(&key, message.as_bytes());
            refused(&world, alg, &format!("{message}.{}", b64(tag)));
        }
    }
}

#[test]
fn keys_named_by_the_token_are_ignored() {
    let world = generous();
    let attacker = Key::new("k1", "ES256");
    let sink = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    sink.set_nonblocking(true).unwrap();
    let url = format!("http://{}/jwks", sink.local_addr().unwrap());
    let certificate = STANDARD.encode("certificate");
    for (member, value) in [
        ("jku", json!(url)),
        ("x5u", json!(url)),
        ("jwk", attacker.jwk()),
        ("x5c", json!([certificate])),
        ("crit", json!(["exp"])),
        ("crit", json!([])),
        ("crit", json!(["b64"])),
        ("b64", json!(false)),
        ("zip", json!("DEF")),
    ] {
        for key in [&attacker, &world.key] {
            let mut header = json!({"alg": "ES256", "kid": "k1", "typ": "at+jwt"});
            header[member] = value.clone();
            let token = key.token_raw(
                &header.to_string(),
                &world.issuer.claims("alice").to_string(),
            );
            refused(&world, member, &token);
        }
    }
    assert!(
        sink.accept().is_err(),
        "the gateway called an address from a token"
    );
}

#[test]
fn claims_are_checked() {
    let world = generous();
    let good = world.issuer.claims("alice");
    let header = json!({"alg": "ES256", "kid": "k1", "typ": "at+jwt"}).to_string();
    let cases: Vec<(&str, Value, &str)> = vec![
        ("exp", json!(now() - 3600), "token.expired"),
        ("exp", json!((now() + 300).to_string()), ""),
        ("exp", json!(null), ""),
        ("exp", json!([now() + 300]), ""),
        ("exp", json!(true), ""),
        ("exp", json!(-1), ""),
        ("nbf", json!(now() + 3600), ""),
        ("nbf", json!("soon"), ""),
        ("iat", json!(now() + 3600), ""),
        ("iat", json!("long ago"), ""),
        ("iss", json!(format!("{}/", world.issuer.url)), ""),
        ("iss", json!(world.issuer.url.to_uppercase()), ""),
        ("iss", json!([world.issuer.url]), ""),
        ("iss", json!("https://evil.test"), ""),
        ("iss", json!(null), ""),
        ("aud", json!("https://other.example.test"), "token.audience"),
        ("aud", json!([]), ""),
        ("aud", json!(null), ""),
        ("aud", json!({"a": AUDIENCE}), ""),
        ("aud", json!(format!("{AUDIENCE}/")), ""),
        ("aud", json!(AUDIENCE.to_uppercase()), ""),
        ("aud", json!([[AUDIENCE]]), ""),
        ("sub", json!(""), ""),
        ("sub", json!(42), ""),
        ("sub", json!("a\nb"), ""),
        ("sub", json!(null), ""),
        (
            "cnf",
            json!({"jkt": "0ZcOCORZNYy-DWpqq30jZyJGHTN0d2HglBV3uiguA4I"}),
            "",
        ),
        (
            "cnf",
            json!({"x5t#S256": "bwcK0esc3ACC3DB2Y5_lESsXE8o9ltc05O89jdN-dg2"}),
            "",
        ),
    ];
    for (claim, value, reason) in cases {
        let mut claims = good.clone();
        claims[claim] = value.clone();
        let token = world.key.token_raw(&header, &claims.to_string());
        let recorded = refused(&world, &format!("{claim}: {value}"), &token);
        assert!(
            reason.is_empty() || recorded == reason,
            "{claim}: {value}: {recorded}"
        );
    }
    for missing in ["exp", "iss", "aud", "sub"] {
        let mut claims = good.clone();
        claims.as_object_mut().unwrap().remove(missing);
        refused(
            &world,
            &format!("no {missing}"),
            &world.key.token_raw(&header, &claims.to_string()),
        );
    }
    for number in [
        "1e400",
        "1e999999999",
        "99999999999999999999999",
        "1.5e300",
        "NaN",
        "0x10",
    ] {
        let text = good.to_string().replace(
            &format!("\"exp\":{}", good["exp"]),
            &format!("\"exp\":{number}"),
        );
        refused(&world, number, &world.key.token_raw(&header, &text));
    }
    let mut several = good.clone();
    several["aud"] = json!(["https://other.example.test", AUDIENCE]);
    assert_eq!(
        world
            .gateway
            .bearer("/a", &world.key.token(&several))
            .status,
        200
    );
}

#[test]
fn typ_tells_access_tokens_from_id_tokens() {
    let world = generous();
    let claims = world.issuer.claims("alice").to_string();
    for typ in [
        json!("JWT"),
        json!("jwt"),
        json!("id_token+jwt"),
        json!(""),
        json!(1),
        json!(null),
        json!("dpop+jwt"),
        json!("logout+jwt"),
    ] {
        let header = json!({"alg": "ES256", "kid": "k1", "typ": typ}).to_string();
        refused(
            &world,
            &format!("typ {typ}"),
            &world.key.token_raw(&header, &claims),
        );
    }
    for typ in ["at+jwt", "AT+JWT", "application/at+jwt"] {
        let header = json!({"alg": "ES256", "kid": "k1", "typ": typ}).to_string();
        assert_eq!(
            world
                .gateway
                .bearer("/a", &world.key.token_raw(&header, &claims))
                .status,
            200,
            "{typ}"
        );
    }
}

#[test]
fn encodings_have_one_form() {
    let world = generous();
    let good = world.token("alice");
    let parts: Vec<&str> = good.split('.').collect();
    let (header, payload, signature) = (parts[0], parts[1], parts[2]);
    let raw = json!({"alg": "ES256", "kid": "k1", "typ": "at+jwt"}).to_string();
    let claims = world.issuer.claims("alice").to_string();
    let duplicated = claims.replacen('{', "{\"sub\":\"bob\",", 1);
    let escaped = claims.replacen('{', "{\"s\\u0075b\":\"bob\",", 1);
    let nested = claims.replacen('{', "{\"x\":{\"a\":1,\"a\":2},", 1);
    let deep = claims.replacen(
        '{',
        &format!("{{\"x\":{}{},", "[".repeat(5000), "]".repeat(5000)),
        1,
    );
    let twice = raw.replacen('{', "{\"alg\":\"none\",", 1);
    let mut last = signature.to_owned();
    let end = last.pop().unwrap();
    // The last character of 64 bytes carries four bits that must be zero.
    let sloppy = char::from(u32::from(end).wrapping_add(1).try_into().unwrap_or(b'B'));
    for (what, token) in [
        ("padding", format!("{header}.{payload}.{signature}=")),
        (
            "padding in the header",
            format!("{header}=.{payload}.{signature}"),
        ),
        (
            "line break",
            format!(
                "{header}.{payload}.{}\t{}",
                &signature[..10],
                &signature[10..]
            ),
        ),
        (
            "standard alphabet",
            format!(
                "{header}.{payload}.{}",
                signature.replace('-', "+").replace('_', "/") + "+"
            ),
        ),
        ("stray bits", format!("{header}.{payload}.{last}{sloppy}")),
        ("two parts", format!("{header}.{payload}")),
        ("four parts", format!("{good}.{signature}")),
        (
            "five parts",
            format!("{header}.{payload}.{signature}.{signature}.{signature}"),
        ),
        ("empty header", format!(".{payload}.{signature}")),
        ("empty signature", format!("{header}.{payload}.")),
        (
            "truncated signature",
            format!("{header}.{payload}.{}", &signature[..80]),
        ),
        (
            "zero signature",
            format!("{header}.{payload}.{}", b64([0; 64])),
        ),
        (
            "long signature",
            format!("{header}.{payload}.{}", b64([1; 96])),
        ),
        ("duplicate claim", world.key.token_raw(&raw, &duplicated)),
        (
            "duplicate claim, escaped",
            world.key.token_raw(&raw, &escaped),
        ),
        (
            "duplicate member inside",
            world.key.token_raw(&raw, &nested),
        ),
        (
            "duplicate header member",
            world.key.token_raw(&twice, &claims),
        ),
        ("deep claim", world.key.token_raw(&raw, &deep)),
        (
            "trailing comma",
            world.key.token_raw(&raw.replace('}', ",}"), &claims),
        ),
        (
            "array payload",
            world.key.token_raw(&raw, &format!("[{claims}]")),
        ),
        (
            "trailing bytes",
            world.key.token_raw(&raw, &format!("{claims} x")),
        ),
        (
            "byte order mark",
            world.key.token_raw(&raw, &format!("\u{feff}{claims}")),
        ),
        (
            "too long",
            world.key.token_raw(
                &raw,
                &claims.replacen('{', &format!("{{\"x\":\"{}\",", "x".repeat(20_000)), 1),
            ),
        ),
        ("dots", ".".repeat(4000)),
        ("spaces", format!("{good} {good}")),
        ("quoted", format!("\"{good}\"")),
    ] {
        let before = world.upstream.seen().len();
        let answer = world.gateway.bearer("/a", &token);
        assert!(
            matches!(answer.status, 400 | 401),
            "{what}: {}",
            answer.status
        );
        assert_eq!(
            world.upstream.seen().len(),
            before,
            "{what} reached the upstream"
        );
    }
    assert_eq!(world.gateway.bearer("/a", &good).status, 200);
}

#[test]
fn several_credentials_are_confusion() {
    let world = World::start();
    let token = format!("Bearer {}", world.token("alice"));
    let answer = world.gateway.get(
        "/a",
        &[("authorization", &token), ("authorization", "Bearer x")],
    );
    assert!(matches!(answer.status, 400 | 401), "{}", answer.status);
    assert!(world.upstream.seen().is_empty());
}

#[test]
fn keys_are_looked_up_by_issuer_then_kid() {
    let (key_a, key_b) = (Key::new("same", "ES256"), Key::new("same", "ES256"));
    let (a, b) = (Issuer::start(&[&key_a]), Issuer::start(&[&key_b]));
    let upstream = crate::support::upstream::Upstream::start();
    let gateway = crate::support::gateway::Builder::guarded(&upstream, &a)
        .with(|document| {
            let mut other = document["issuers"]["main"].clone();
            other["issuer"] = json!(b.url);
            document["issuers"]["other"] = other;
            for route in document["routes"].as_array_mut().unwrap() {
                route["authn"] = json!(["main", "other"]);
            }
        })
        .start();
    assert_eq!(
        gateway
            .bearer("/a", &key_a.token(&a.claims("alice")))
            .status,
        200
    );
    assert_eq!(
        gateway
            .bearer("/a", &key_b.token(&b.claims("alice")))
            .status,
        200
    );
    assert_eq!(
        gateway
            .bearer("/a", &key_a.token(&b.claims("alice")))
            .status,
        401
    );
    assert_eq!(
        gateway
            .bearer("/a", &key_b.token(&a.claims("alice")))
            .status,
        401
    );
}

#[test]
fn a_cached_token_still_expires() {
    let world = World::with(|builder| {
        builder.with(|document| document["issuers"]["main"]["leeway"] = json!("0s"))
    });
    let mut claims = world.issuer.claims("alice");
    claims["exp"] = json!(now() + 2);
    let token = world.key.token(&claims);
    assert_eq!(world.gateway.bearer("/a", &token).status, 200);
    crate::support::eventually("expiry", || {
        (world.gateway.bearer("/a", &token).status == 401).then_some(())
    });
}
