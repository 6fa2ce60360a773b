//! What becomes of each kind of token.

use std::time::Duration;

use aws_lc_rs::hmac;
use serde_json::json;

use super::*;
use crate::authn::jws::encode;
use crate::authn::testing::{
    AUDIENCE, BLOCK, ISSUER, Signer, claims, claims_with, compile, jwks, request, request_with,
    unix,
};
use crate::clock;

struct Bench {
    folder: tempfile::TempDir,
    signer: Signer,
    jwt: Jwt,
    recent: Recent,
}

impl Bench {
    fn new() -> Self {
        Self::with(BLOCK)
    }

    fn with(block: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let signer = Signer::new("ES256", "es");
        std::fs::write(folder.path().join("jwks.json"), jwks(&[&signer])).unwrap();
        let issuer = compile(folder.path(), block, None).unwrap();
        Self {
            folder,
            signer,
            jwt: Jwt::new(vec![issuer]),
            recent: Recent::default(),
        }
    }

    fn publish(&mut self, set: &str) {
        std::fs::write(self.folder.path().join("jwks.json"), set).unwrap();
        let previous = self.jwt.issuers.first().cloned();
        let issuer = compile(self.folder.path(), BLOCK, previous.as_ref()).unwrap();
        self.jwt = Jwt::new(vec![issuer]);
    }

    async fn judge(&self, token: &str) -> Result<Arc<Identity>, &'static str> {
        self.judge_for(token, &request(token)).await
    }

    async fn judge_for(
        &self,
        token: &str,
        request: &InboundRequest,
    ) -> Result<Arc<Identity>, &'static str> {
        // As the chain of a route does: first what this worker remembers.
        let field = token.as_bytes();
        let attempt = match self.jwt.remembered(field, request, &self.recent) {
            Some(attempt) => attempt,
            None => self.jwt.attempt(token, field, request, &self.recent).await,
        };
        match attempt {
            Attempt::Verified(identity) => Ok(identity),
            Attempt::Refused(Failure::Rejected { code, reason, .. }) => {
                assert!(code::ALL.contains(&code), "{code}");
                assert!(!reason.contains("alice") && !token.contains(&reason));
                Err(code)
            }
            Attempt::Refused(Failure::Unavailable { .. }) => Err("unavailable"),
            other @ (Attempt::NotPresented | Attempt::Refused(_)) => panic!("{other:?}"),
        }
    }

    async fn claims(&self, changes: serde_json::Value) -> Result<Arc<Identity>, &'static str> {
        self.judge(&self.signer.token(&claims_with(changes))).await
    }
}

#[tokio::test]
async fn every_listed_algorithm_verifies_and_none_verifies_a_strangers_signature() {
    let mut bench = Bench::new();
    for alg in [
        "RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA",
    ] {
        let signer = Signer::new(alg, "k");
        bench.publish(&jwks(&[&signer]));
        let token = signer.token(&claims());
        assert!(bench.judge(&token).await.is_ok(), "{alg}");
        let forged = signer.token(&claims_with(json!({"sub": "mallory"})));
        let (signed, _) = forged.rsplit_once('.').unwrap();
        let (_, signature) = token.rsplit_once('.').unwrap();
        let forged = format!("{signed}.{signature}");
        // Twice: the second answer comes from the memory of refused tokens.
        assert_eq!(
            bench.judge(&forged).await.unwrap_err(),
            "token.signature",
            "{alg}"
        );
        assert_eq!(
            bench.judge(&forged).await.unwrap_err(),
            "token.signature",
            "{alg}"
        );
    }
    let signer = Signer::new("RS256", "k");
    bench.publish(&jwks(&[&signer]));
    let token = Signer::stranger("k").token(&claims());
    assert_eq!(bench.judge(&token).await.unwrap_err(), "token.signature");
}

#[tokio::test]
async fn the_identity_holds_what_the_mapping_says() {
    let bench = Bench::new();
    let identity = bench.claims(json!({"aud": ["x", AUDIENCE]})).await.unwrap();
    assert_eq!(&*identity.subject, "alice");
    assert_eq!(&*identity.id, "http://127.0.0.1:9400|alice");
    assert_eq!(identity.client.as_deref(), Some("svc"));
    let texts = |names: &[Arc<str>]| names.iter().map(|n| n.to_string()).collect::<Vec<_>>();
    assert_eq!(texts(&identity.scopes), ["api:read", "api:write"]);
    assert_eq!(texts(&identity.roles), ["admin", "user"]);
    assert_eq!(identity.key_id.as_deref(), Some("es"));
    assert_eq!(identity.token_id.as_deref(), Some("1"));
    let at = |path| document::at(identity.document(), path).unwrap().clone();
    assert_eq!(
        at("claims.realm_access.roles"),
        document::strings(["admin", "user"])
    );
    assert_eq!(at("method"), Value::from("jwt"));
    assert!(document::text(&at("expires_at")).unwrap().ends_with('Z'));
    let identity = bench
        .claims(json!({"scope": ["a", "b", "a"], "client_id": null, "azp": "web"}))
        .await
        .unwrap();
    assert_eq!(texts(&identity.scopes), ["a", "b"]);
    assert_eq!(identity.client.as_deref(), Some("web"));
}

#[tokio::test]
async fn algorithms_that_are_not_listed_are_refused_under_every_spelling() {
    let bench = Bench::new();
    for alg in [
        "none", "None", "NONE", "nOnE", "none ", "", "null", "HS256", "ES256K", "es256", "RS256 ",
    ] {
        let header = json!({"alg": alg, "typ": "at+jwt", "kid": "es"}).to_string();
        let token = bench.signer.raw(&header, &claims().to_string());
        assert_eq!(
            bench.judge(&token).await.unwrap_err(),
            "token.algorithm",
            "{alg:?}"
        );
    }
    let only_rsa = Bench::with(&BLOCK.replace(
        "[RS256, RS384, RS512, PS256, PS384, PS512, ES256, ES384, ES512, EdDSA]",
        "[RS256]",
    ));
    let token = only_rsa.signer.token(&claims());
    assert_eq!(only_rsa.judge(&token).await.unwrap_err(), "token.algorithm");
}

#[tokio::test]
async fn a_key_is_used_only_for_what_it_is_published_for() {
    let mut bench = Bench::new();
    let rs = Signer::new("RS256", "rs");
    let ps = Signer::new("PS256", "rs");
    bench.publish(&jwks(&[&rs, &bench.signer]));
    assert_eq!(
        bench.judge(&ps.token(&claims())).await.unwrap_err(),
        "token.key_mismatch"
    );
    let es_under_rs = Signer::new("ES256", "rs");
    assert_eq!(
        bench
            .judge(&es_under_rs.token(&claims()))
            .await
            .unwrap_err(),
        "token.key_mismatch"
    );
    // HMAC keyed with what everybody can read.
    for secret in [
        rs.jwk().to_string(),
        rs.jwk()["n"].to_string(),
        String::new(),
    ] {
        let header = encode(br#"{"alg":"HS256","typ":"at+jwt","kid":"rs"}"#);
        let signed = format!("{header}.{}", encode(claims().to_string().as_bytes()));
        let tag = hmac::sign(
            &hmac::Key::new(hmac::HMAC_SHA256, secret.as_bytes()),
            signed.as_bytes(),
        );
        let token = format!("{signed}.{}", encode(tag.as_ref()));
        assert_eq!(bench.judge(&token).await.unwrap_err(), "token.algorithm");
    }
    // Without `kid`, one fitting key is enough and two are too many.
    let header = r#"{"alg":"RS256","typ":"at+jwt"}"#;
    assert!(
        bench
            .judge(&rs.raw(header, &claims().to_string()))
            .await
            .is_ok()
    );
    bench.publish(&jwks(&[&rs, &Signer::stranger("rs2")]));
    let token = rs.raw(header, &claims_with(json!({"jti": "2"})).to_string());
    assert_eq!(bench.judge(&token).await.unwrap_err(), "token.unknown_key");
}

#[tokio::test]
async fn ecdsa_signatures_have_one_form() {
    let bench = Bench::new();
    let token = bench.signer.token(&claims());
    let (signed, signature) = token.rsplit_once('.').unwrap();
    let raw = crate::authn::jws::decode(signature).unwrap();
    let (r, s) = raw.split_at(32);
    let wide: Vec<u8> = [&[0; 16], r, &[0; 16], s].concat();
    let mut der = vec![0x30, 0x44, 2, 32];
    der.extend_from_slice(r);
    der.extend_from_slice(&[2, 32]);
    der.extend_from_slice(s);
    for bad in [
        vec![0; 64],
        vec![0xff; 64],
        raw[..63].to_vec(),
        [&raw[..], &[0]].concat(),
        wide,
        der,
        r.to_vec(),
        [s, r].concat(),
    ] {
        let token = format!("{signed}.{}", encode(&bad));
        assert_eq!(bench.judge(&token).await.unwrap_err(), "token.signature");
    }
}

#[tokio::test]
async fn the_type_rule_follows_the_configuration() {
    let bench = Bench::new();
    let judge = async |bench: &Bench, typ: serde_json::Value| {
        let mut header = json!({"alg": "ES256", "kid": "es", "typ": typ});
        if typ.is_null() {
            header.as_object_mut().unwrap().remove("typ");
        }
        let token = bench.signer.raw(&header.to_string(), &claims().to_string());
        bench.judge(&token).await.map(|_| ())
    };
    for good in [
        "at+jwt",
        "AT+JWT",
        "application/at+jwt",
        "Application/AT+jwt",
    ] {
        assert_eq!(judge(&bench, json!(good)).await, Ok(()), "{good}");
    }
    for bad in [
        "JWT",
        "JOSE",
        "dpop+jwt",
        "logout+jwt",
        "secevent+jwt",
        "",
        "application/",
        "at+jwt ",
    ] {
        assert_eq!(judge(&bench, json!(bad)).await, Err("token.type"), "{bad}");
    }
    assert_eq!(judge(&bench, json!(null)).await, Err("token.type"));
    let lax = Bench::with(&format!(
        "{BLOCK}token_types: [JWT]\nallow_missing_type: true\n"
    ));
    assert_eq!(judge(&lax, json!("jwt")).await, Ok(()));
    assert_eq!(judge(&lax, json!(null)).await, Ok(()));
    assert_eq!(judge(&lax, json!("at+jwt")).await, Err("token.type"));
    for id_token in [
        json!({"at_hash": "x"}),
        json!({"c_hash": "x"}),
        json!({"typ": "ID"}),
        json!({"typ": "Refresh"}),
        json!({"token_use": "id"}),
        json!({"events": {}}),
        json!({"nonce": "n", "scope": null, "client_id": null}),
    ] {
        assert_eq!(
            bench.claims(id_token.clone()).await.unwrap_err(),
            "token.kind",
            "{id_token}"
        );
    }
    assert!(bench.claims(json!({"nonce": "n"})).await.is_ok());
}

#[tokio::test]
async fn times_are_numbers_within_reason_or_the_token_is_refused() {
    let bench = Bench::new();
    let now = unix();
    assert!(
        bench
            .claims(serde_json::from_str(&format!("{{\"exp\": {}.5}}", now + 600)).unwrap())
            .await
            .is_ok()
    );
    assert!(
        bench.claims(json!({"exp": now - 10})).await.is_ok(),
        "leeway"
    );
    for (claim, code) in [
        (json!({"exp": now - 31}), "token.expired"),
        (json!({"exp": 0}), "token.expired"),
        (json!({"exp": null}), "token.claims"),
        (json!({"exp": -1}), "token.claims"),
        (json!({"exp": (now + 60).to_string()}), "token.claims"),
        (json!({"exp": true}), "token.claims"),
        (json!({"exp": [now + 60]}), "token.claims"),
        (json!({"exp": {"$gt": 0}}), "token.claims"),
        (json!({"exp": 1.7e308}), "token.claims"),
        (json!({"exp": 1e30}), "token.claims"),
        (json!({"exp": (now + 60) * 1000}), "token.claims"),
        (json!({"nbf": now + 3600}), "token.not_yet_valid"),
        (json!({"nbf": "x"}), "token.claims"),
        (json!({"iat": now + 3600}), "token.not_yet_valid"),
        (json!({"iat": "x"}), "token.claims"),
    ] {
        assert_eq!(
            bench.claims(claim.clone()).await.unwrap_err(),
            code,
            "{claim}"
        );
    }
    for raw in [
        r#""exp":null"#,
        r#""exp":1e999"#,
        r#""exp":99999999999,"nbf":null"#,
    ] {
        let payload = format!(r#"{{"iss":"{ISSUER}","sub":"a","aud":"{AUDIENCE}",{raw}}}"#);
        let header = r#"{"alg":"ES256","typ":"at+jwt","kid":"es"}"#;
        assert!(
            bench
                .judge(&bench.signer.raw(header, &payload))
                .await
                .is_err(),
            "{raw}"
        );
    }
    let young = Bench::with(&format!("{BLOCK}max_age: 1h\n"));
    assert!(young.claims(json!({})).await.is_ok());
    assert_eq!(
        young.claims(json!({"iat": now - 3700})).await.unwrap_err(),
        "token.too_old"
    );
    assert_eq!(
        young.claims(json!({"iat": null})).await.unwrap_err(),
        "token.claims"
    );
}

#[tokio::test]
async fn issuer_audience_and_subject_are_compared_byte_for_byte() {
    let bench = Bench::new();
    for iss in [
        json!("http://127.0.0.1:9999"),
        json!(format!("{ISSUER}/")),
        json!(ISSUER.to_uppercase()),
        json!([ISSUER]),
        json!(format!("{ISSUER}.evil.test")),
        json!(format!("{ISSUER}@evil.test")),
        json!(null),
        json!(7),
        json!(""),
    ] {
        assert_eq!(
            bench.claims(json!({"iss": iss})).await.unwrap_err(),
            "token.issuer",
            "{iss}"
        );
    }
    for aud in [
        json!("x"),
        json!(null),
        json!([]),
        json!([[AUDIENCE]]),
        json!({AUDIENCE: 1}),
        json!([1, AUDIENCE]),
        json!(AUDIENCE.to_uppercase()),
        json!(format!("x,{AUDIENCE}")),
        json!(format!("{AUDIENCE}x")),
        json!("*"),
        json!(format!("x {AUDIENCE}")),
    ] {
        assert_eq!(
            bench.claims(json!({"aud": aud})).await.unwrap_err(),
            "token.audience",
            "{aud}"
        );
    }
    for sub in [
        json!(null),
        json!(1),
        json!(["alice"]),
        json!(""),
        json!("a\r\nx: y"),
        json!("\u{0}"),
        json!("x".repeat(2000)),
    ] {
        assert_eq!(
            bench.claims(json!({"sub": sub})).await.unwrap_err(),
            "token.subject",
            "{sub}"
        );
    }
    for odd in [
        json!({"scope": {"a": true}}),
        json!({"scope": [1]}),
        json!({"client_id": 5}),
        json!({"realm_access": {"roles": [["x"]]}}),
        json!({"scope": ["a\nb"]}),
        json!({"jti": 1}),
    ] {
        assert_eq!(
            bench.claims(odd.clone()).await.unwrap_err(),
            "token.claims",
            "{odd}"
        );
    }
    assert!(
        bench
            .claims(json!({"__proto__": {"admin": true}}))
            .await
            .is_ok()
    );
    let strict = Bench::with(&format!("{BLOCK}required_claims: [tenant]\n"));
    assert_eq!(strict.claims(json!({})).await.unwrap_err(), "token.claims");
    assert!(strict.claims(json!({"tenant": "acme"})).await.is_ok());
}

#[tokio::test]
async fn oversized_and_nested_tokens_are_refused() {
    let bench = Bench::new();
    let big = bench
        .signer
        .token(&claims_with(json!({"x": "y".repeat(9000)})));
    assert_eq!(bench.judge(&big).await.unwrap_err(), "token.size");
    assert_eq!(
        bench.judge(&".".repeat(1 << 20)).await.unwrap_err(),
        "token.size"
    );
    let deep = format!("{}{}", "[".repeat(900), "]".repeat(900));
    let header = r#"{"alg":"ES256","typ":"at+jwt","kid":"es"}"#;
    assert_eq!(
        bench
            .judge(&bench.signer.raw(header, &deep))
            .await
            .unwrap_err(),
        "token.malformed"
    );
    let jwe = format!(
        "{}.a.b.c.d",
        encode(br#"{"alg":"PBES2-HS256+A128KW","p2c":2147483647,"enc":"A128GCM"}"#)
    );
    assert_eq!(bench.judge(&jwe).await.unwrap_err(), "token.malformed");
}

#[tokio::test]
async fn a_bound_token_opens_nothing_without_its_certificate_even_when_it_is_cached() {
    let bench = Bench::new();
    for cnf in [
        json!({"jkt": "x"}),
        json!({}),
        json!("x"),
        json!({"x5t#S256": "short"}),
        json!({"x5t#S256": encode(&[7; 32]), "jkt": "x"}),
        json!({"zzz": 1}),
    ] {
        assert_eq!(
            bench.claims(json!({"cnf": cnf})).await.unwrap_err(),
            "token.confirmation",
            "{cnf}"
        );
    }
    let token = bench
        .signer
        .token(&claims_with(json!({"cnf": {"x5t#S256": encode(&[7; 32])}})));
    let certificate = |byte: u8| PeerCertificateFor(byte).into();
    let bearer = format!("Bearer {token}");
    let with = |byte| {
        request_with(
            &[("authorization", &bearer)],
            Some(certificate(byte)),
            clock::now(),
        )
    };
    assert_eq!(bench.judge(&token).await.unwrap_err(), "token.confirmation");
    assert!(bench.judge_for(&token, &with(7)).await.is_ok());
    assert_eq!(
        bench.judge_for(&token, &with(8)).await.unwrap_err(),
        "token.confirmation"
    );
    assert_eq!(bench.judge(&token).await.unwrap_err(), "token.confirmation");
}

struct PeerCertificateFor(u8);

impl From<PeerCertificateFor> for crate::tls::PeerCertificate {
    fn from(PeerCertificateFor(byte): PeerCertificateFor) -> Self {
        Self {
            subject: "CN=x".into(),
            issuer: "CN=y".into(),
            serial: "1".into(),
            sans: crate::tls::Sans::default(),
            spiffe_id: None,
            sha256: format!("{byte:02x}").repeat(32),
            not_before: clock::now() - Duration::from_secs(60),
            not_after: clock::now() + Duration::from_secs(60),
        }
    }
}

#[tokio::test]
async fn a_cached_result_ends_with_its_token_its_key_and_its_configuration() {
    let mut bench = Bench::new();
    let issuer = |bench: &Bench| Arc::clone(&bench.jwt.issuers[0]);
    let token = bench.signer.token(&claims());
    let first = bench.judge(&token).await.unwrap();
    assert!(Arc::ptr_eq(&first, &bench.judge(&token).await.unwrap()));
    assert_eq!(issuer(&bench).cache.counts(), (1, 0));
    // Judged by the request's clock, not by the cache's.
    let bearer = format!("Bearer {token}");
    let late = request_with(
        &[("authorization", &bearer)],
        None,
        clock::now() + Duration::from_secs(631),
    );
    assert_eq!(
        bench.judge_for(&token, &late).await.unwrap_err(),
        "token.expired"
    );
    let early = request_with(
        &[("authorization", &bearer)],
        None,
        clock::now() - Duration::from_secs(300),
    );
    assert_eq!(
        bench.judge_for(&token, &early).await.unwrap_err(),
        "token.not_yet_valid"
    );
    // The same file: everything is taken over.
    let before = issuer(&bench);
    bench.publish(&jwks(&[&bench.signer]));
    assert!(Arc::ptr_eq(&before, &issuer(&bench)));
    // The same `kid` with other material: the old token must not live on.
    let other = Signer::new("ES256", "es");
    bench.publish(&jwks(&[&other]));
    assert_eq!(bench.judge(&token).await.unwrap_err(), "token.signature");
    bench.publish(&jwks(&[&Signer::new("ES256", "new")]));
    assert_eq!(bench.judge(&token).await.unwrap_err(), "token.unknown_key");
}

#[tokio::test]
async fn a_worker_remembers_a_bounded_number_of_tokens_and_no_longer_than_the_issuer_does() {
    let bench = Bench::with(&format!("{BLOCK}cache: {{ lifetime: 100s }}\n"));
    let token = bench.signer.token(&claims());
    bench.judge(&token).await.unwrap();
    let remembered = |after: u64| {
        let at = clock::now() + Duration::from_secs(after);
        let request = request_with(&[], None, at);
        bench
            .jwt
            .remembered(token.as_bytes(), &request, &bench.recent)
    };
    assert!(remembered(0).is_none(), "it was used once");
    bench.judge(&token).await.unwrap();
    assert!(matches!(remembered(0), Some(Attempt::Verified(_))));
    let longer = format!("{token}x");
    let request = request(&token);
    let asked = |field: &str| {
        bench
            .jwt
            .remembered(field.as_bytes(), &request, &bench.recent)
    };
    assert!(asked(&longer).is_none(), "only the very field counts");
    assert!(matches!(remembered(99), Some(Attempt::Verified(_))));
    assert!(remembered(101).is_none());
    assert!(remembered(0).is_none(), "what is over is forgotten");

    for _ in 0..2 {
        bench.judge(&token).await.unwrap();
    }
    let Judged { issuer, entry, .. } = bench.jwt.judge(&token, &request).await.unwrap();
    for n in 0..20_000 {
        bench.recent.keep(n.to_string().as_bytes(), &issuer, &entry);
        assert!(bench.recent.count() <= 2 * 4096);
    }
    assert!(asked(&token).is_none(), "the oldest went first");
    assert!(asked("19999").is_some());
}

#[tokio::test]
async fn a_token_that_is_verified_anew_counts_once_among_the_recent_ones() {
    let bench = Bench::new();
    let token = bench.signer.token(&claims());
    let request = request(&token);
    let Judged { issuer, entry, .. } = bench.jwt.judge(&token, &request).await.unwrap();
    bench.recent.keep(b"first", &issuer, &entry);
    // Ten times what one generation may weigh.
    for _ in 0..(10 * (32 << 20) / entry.weight) {
        bench.recent.keep(b"again", &issuer, &entry);
    }
    assert_eq!(bench.recent.count(), 2);
    let first = bench.jwt.remembered(b"first", &request, &bench.recent);
    assert!(first.is_some(), "nobody pushed it out");
}

#[tokio::test]
async fn changed_rules_keep_the_keys_and_drop_the_verified_tokens() {
    let bench = Bench::new();
    let token = bench.signer.token(&claims());
    bench.judge(&token).await.unwrap();
    let before = Arc::clone(&bench.jwt.issuers[0]);
    let other = BLOCK.replace("https://api.example.test", "https://other.test");
    let after = compile(bench.folder.path(), &other, Some(&before)).unwrap();
    assert!(Arc::ptr_eq(&before.keys, &after.keys));
    let jwt = Jwt::new(vec![after]);
    let attempt = jwt
        .attempt(
            &token,
            token.as_bytes(),
            &request(&token),
            &Recent::default(),
        )
        .await;
    assert!(matches!(
        attempt,
        Attempt::Refused(Failure::Rejected {
            code: "token.audience",
            ..
        })
    ));
}

#[tokio::test]
async fn caches_are_bounded_by_entries_and_by_memory() {
    let mut bench = Bench::with(&format!("{BLOCK}cache: {{ entries: 4 }}\n"));
    let fill = async |bench: &Bench| {
        for n in 0..40 {
            bench.claims(json!({"jti": n.to_string()})).await.unwrap();
        }
        bench.jwt.issuers[0].cache.counts().0
    };
    assert!(fill(&bench).await <= 4);
    bench = Bench::with(&format!("{BLOCK}cache: {{ memory: 16KiB }}\n"));
    assert!(fill(&bench).await <= 8);
    bench = Bench::with(&format!("{BLOCK}cache: {{ entries: 0 }}\n"));
    assert_eq!(fill(&bench).await, 0);
    let foreign = Signer::new("ES256", "es");
    for n in 0..10 {
        let token = foreign.token(&claims_with(json!({"jti": n.to_string()})));
        assert_eq!(bench.judge(&token).await.unwrap_err(), "token.signature");
    }
    assert_eq!(bench.jwt.issuers[0].cache.counts().1, 10);
}

#[tokio::test]
async fn shared_secrets_verify_hmac_and_nothing_else() {
    let folder = tempfile::tempdir().unwrap();
    let secret = b"0123456789abcdef0123456789abcdef";
    std::fs::write(folder.path().join("secret"), secret).unwrap();
    let block = BLOCK
        .replace("{ file: jwks.json }", "{ secret: \"file:secret\" }")
        .replace(
            "[RS256, RS384, RS512, PS256, PS384, PS512, ES256, ES384, ES512, EdDSA]",
            "[HS256]",
        );
    let block = block.replace(
        "file:secret",
        &format!("file:{}", folder.path().join("secret").display()),
    );
    let jwt = Jwt::new(vec![compile(folder.path(), &block, None).unwrap()]);
    let mint = |secret: &[u8]| {
        let signed = format!(
            "{}.{}",
            encode(br#"{"alg":"HS256","typ":"at+jwt"}"#),
            encode(claims().to_string().as_bytes())
        );
        let tag = hmac::sign(
            &hmac::Key::new(hmac::HMAC_SHA256, secret),
            signed.as_bytes(),
        );
        format!("{signed}.{}", encode(tag.as_ref()))
    };
    let good = mint(secret);
    assert!(matches!(
        jwt.attempt(&good, good.as_bytes(), &request(&good), &Recent::default())
            .await,
        Attempt::Verified(_)
    ));
    let bad = mint(b"secret");
    assert!(matches!(
        jwt.attempt(&bad, bad.as_bytes(), &request(&bad), &Recent::default())
            .await,
        Attempt::Refused(Failure::Rejected {
            code: "token.signature",
            ..
        })
    ));
}

#[test]
fn every_mistake_in_a_block_is_a_problem_at_its_key() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(
        folder.path().join("jwks.json"),
        jwks(&[&Signer::new("ES256", "a")]),
    )
    .unwrap();
    std::fs::write(folder.path().join("short"), "short").unwrap();
    std::fs::write(folder.path().join("bad.json"), "{}").unwrap();
    let problems = |from: &str, to: &str| {
        let block = BLOCK.replace(from, to);
        assert_ne!(block, BLOCK, "{from}");
        let problems = compile(folder.path(), &block, None).unwrap_err();
        problems
            .iter()
            .map(|p| p.path.clone())
            .collect::<Vec<_>>()
            .join(" ")
    };
    assert_eq!(problems("http://127.0.0.1:9400", "\"\""), "issuer");
    assert_eq!(problems("[https://api.example.test]", "[]"), "audiences");
    assert_eq!(
        problems("[https://api.example.test]", "[\"\"]"),
        "audiences"
    );
    assert_eq!(problems("[RS256,", "[HS256,"), "algorithms");
    assert_eq!(problems("{ file: jwks.json }", "{}"), "keys");
    assert_eq!(
        problems(
            "{ file: jwks.json }",
            "{ file: jwks.json, discovery: true }"
        ),
        "keys"
    );
    assert_eq!(
        problems("{ file: jwks.json }", "{ file: none.json }"),
        "keys.file"
    );
    assert_eq!(
        problems("{ file: jwks.json }", "{ file: bad.json }"),
        "keys.file"
    );
    assert_eq!(
        problems(
            "{ file: jwks.json }",
            "{ jwks_uri: \"http://issuer.test/\" }"
        ),
        "keys.jwks_uri"
    );
    assert_eq!(
        problems(
            "{ file: jwks.json }",
            "{ jwks_uri: \"https://a:b@issuer.test/\" }"
        ),
        "keys.jwks_uri"
    );
    assert_eq!(
        problems(
            "http://127.0.0.1:9400\nkeys: { file: jwks.json }",
            "http://a.test\nkeys: { discovery: true }"
        ),
        "keys.discovery"
    );
    let all = format!(
        "{BLOCK}leeway: 1h\nmax_age: 0s\nmax_token_size: 1MiB\nrefresh: {{ minimum: 1ms, interval: 0ms, stale_limit: 0s, wait: 1m, cooldown: 0s, budget: 0, timeout: 5m, max_size: 1GiB }}\nauthorities: [none.pem]\n"
    );
    let all = compile(folder.path(), &all, None).unwrap_err();
    assert!(all.len() >= 11, "{all:?}");
    assert!(all.iter().all(|problem| problem.help.is_some()));
    for unknown in ["algorithms: [none]", "algorithms: [rs256]", "color: red"] {
        assert!(serde_yaml::from_str::<IssuerConfig>(&format!("{BLOCK}{unknown}\n")).is_err());
    }
}
