//! What becomes of statements, and that no kind of token passes for another.

use std::sync::Arc;

use aws_lc_rs::hmac;
use serde_json::{Value as Json, json};

use super::*;
use crate::authn::jws::encode;
use crate::authn::jwt::Jwt;
use crate::authn::testing::{
    AUDIENCE, BLOCK, ISSUER, Signer, claims_with, compile, jwks, request, unix,
};
use crate::authn::{Attempt, Recent};
use crate::clock;

struct Bench {
    _folder: tempfile::TempDir,
    signer: Signer,
    issuer: Arc<Issuer>,
}

fn kind() -> Kind {
    Kind {
        token_type: "logout+jwt",
        allow_plain: false,
        audiences: vec!["web".to_owned()],
        max_age: Duration::from_secs(300),
        needs_expiry: true,
        forbidden: &["nonce"],
        max_size: 4096,
    }
}

fn good() -> Json {
    json!({"iss": ISSUER, "aud": "web", "iat": unix() - 1, "exp": unix() + 60, "jti": "l1",
           "sub": "alice", "events": {"http://schemas.openid.net/event/backchannel-logout": {}}})
}

fn with(changes: Json) -> Json {
    let mut all = good();
    for (name, value) in changes.as_object().unwrap() {
        if value.is_null() {
            all.as_object_mut().unwrap().remove(name);
        } else {
            all[name] = value.clone();
        }
    }
    all
}

impl Bench {
    fn new(block: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let signer = Signer::new("ES256", "es");
        std::fs::write(folder.path().join("jwks.json"), jwks(&[&signer])).unwrap();
        let issuer = compile(folder.path(), block, None).unwrap();
        Self {
            _folder: folder,
            signer,
            issuer,
        }
    }

    fn typed(&self, token_type: &str, claims: &Json) -> String {
        let header = json!({"alg": "ES256", "kid": "es", "typ": token_type});
        self.signer.raw(&header.to_string(), &claims.to_string())
    }

    async fn judge_as(&self, text: &str, kind: &Kind) -> Result<Statement, &'static str> {
        match self.issuer.statement(text, kind, clock::now()).await {
            Ok(statement) => Ok(statement),
            Err(Failure::Rejected { code, reason, .. }) => {
                assert!(code::ALL.contains(&code), "{code}");
                assert!(!reason.contains("alice"));
                Err(code)
            }
            Err(other) => panic!("{other:?}"),
        }
    }

    async fn judge(&self, text: &str) -> Result<Statement, &'static str> {
        self.judge_as(text, &kind()).await
    }

    async fn claims(&self, changes: Json) -> Result<Statement, &'static str> {
        self.judge(&self.typed("logout+jwt", &with(changes))).await
    }

    /// What the chain of a route says to it as a bearer token.
    async fn as_access_token(&self, text: &str) -> Result<(), &'static str> {
        let jwt = Jwt::new(vec![Arc::clone(&self.issuer)]);
        let attempt = jwt
            .attempt(text, text.as_bytes(), &request(text), &Recent::default())
            .await;
        match attempt {
            Attempt::Verified(_) => Ok(()),
            Attempt::Refused(Failure::Rejected { code, .. }) => Err(code),
            other @ (Attempt::NotPresented | Attempt::Refused(_)) => panic!("{other:?}"),
        }
    }
}

#[tokio::test]
async fn a_good_statement_is_believed() {
    let bench = Bench::new(BLOCK);
    let text = bench.typed("logout+jwt", &good());
    let statement = bench.judge(&text).await.unwrap();
    assert_eq!(&*statement.token_id, "l1");
    assert_eq!(clock::unix_seconds(statement.issued_at), unix() - 1);
    assert!(
        bench
            .judge(&bench.typed("application/LOGOUT+jwt", &good()))
            .await
            .is_ok(),
        "media types compare without case"
    );
    assert!(bench.claims(json!({"aud": ["x", "web"]})).await.is_ok());
}

#[tokio::test]
async fn each_rule_refuses_by_itself() {
    let bench = Bench::new(BLOCK);
    let now = unix();
    for (changes, code) in [
        (json!({"iss": null}), "token.issuer"),
        (json!({"iss": "http://127.0.0.1:9400/"}), "token.issuer"),
        (json!({"aud": null}), "token.audience"),
        (json!({"aud": "other"}), "token.audience"),
        (json!({"aud": AUDIENCE}), "token.audience"),
        (json!({"aud": ["web", 1]}), "token.audience"),
        (json!({"iat": null}), "token.claims"),
        (json!({"iat": "1"}), "token.claims"),
        (json!({"iat": now + 60}), "token.not_yet_valid"),
        (json!({"nbf": now + 60}), "token.not_yet_valid"),
        (json!({"iat": now - 400}), "token.too_old"),
        (json!({"exp": null}), "token.claims"),
        (json!({"exp": now - 60}), "token.expired"),
        (json!({"jti": null}), "token.claims"),
        (json!({"jti": ""}), "token.claims"),
        (json!({"jti": 7}), "token.claims"),
        (json!({"jti": "j".repeat(MAX_TOKEN_ID + 1)}), "token.claims"),
        (json!({"nonce": "n"}), "token.kind"),
        (json!({"events": null}), "token.kind"),
        (json!({"events": []}), "token.kind"),
        (json!({"sub": "x".repeat(8192)}), "token.size"),
    ] {
        assert_eq!(
            bench.claims(changes.clone()).await.unwrap_err(),
            code,
            "{changes}"
        );
    }
    assert_eq!(
        bench
            .judge(
                &bench
                    .signer
                    .raw(r#"{"alg":"ES256","kid":"es"}"#, &good().to_string())
            )
            .await
            .unwrap_err(),
        "token.type",
        "no `typ`"
    );
    for token_type in ["JWT", "at+jwt", "secevent+jwt", "logout"] {
        assert_eq!(
            bench
                .judge(&bench.typed(token_type, &good()))
                .await
                .unwrap_err(),
            "token.type",
            "{token_type}"
        );
    }
    let plain = Kind {
        allow_plain: true,
        ..kind()
    };
    for header in [
        r#"{"alg":"ES256","kid":"es"}"#,
        r#"{"alg":"ES256","kid":"es","typ":"JWT"}"#,
    ] {
        let text = bench.signer.raw(header, &good().to_string());
        assert!(bench.judge_as(&text, &plain).await.is_ok(), "{header}");
    }
    assert_eq!(
        bench
            .judge_as(&bench.typed("at+jwt", &good()), &plain)
            .await
            .unwrap_err(),
        "token.type"
    );
    let stranger = Signer::new("ES256", "es");
    let header = json!({"alg": "ES256", "kid": "es", "typ": "logout+jwt"}).to_string();
    assert_eq!(
        bench
            .judge(&stranger.raw(&header, &good().to_string()))
            .await
            .unwrap_err(),
        "token.signature"
    );
    let other = header.replace("\"es\"", "\"unknown\"");
    assert_eq!(
        bench
            .judge(&stranger.raw(&other, &good().to_string()))
            .await
            .unwrap_err(),
        "token.unknown_key"
    );
}

#[tokio::test]
async fn unsigned_and_symmetric_statements_are_refused_even_where_the_issuers_tokens_are() {
    let secret = "s".repeat(32);
    let block = format!(
        "issuer: {ISSUER}\nkeys: {{ secret: \"file:secret\" }}\naudiences: [\"{AUDIENCE}\"]\nalgorithms: [HS256]\n"
    );
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("secret"), &secret).unwrap();
    let issuer = compile(folder.path(), &block, None).unwrap();
    assert!(!issuer.makes_statements());
    let signed = format!(
        "{}.{}",
        encode(br#"{"alg":"HS256","typ":"logout+jwt"}"#),
        encode(good().to_string().as_bytes())
    );
    let key = hmac::Key::new(hmac::HMAC_SHA256, secret.as_bytes());
    let tag = hmac::sign(&key, signed.as_bytes());
    let text = format!("{signed}.{}", encode(tag.as_ref()));
    let refused = issuer.statement(&text, &kind(), clock::now()).await;
    assert!(
        matches!(
            refused,
            Err(Failure::Rejected {
                code: "token.algorithm",
                ..
            })
        ),
        "{refused:?}"
    );

    let bench = Bench::new(BLOCK);
    assert!(bench.issuer.makes_statements());
    let text = bench
        .signer
        .raw(r#"{"alg":"none","typ":"logout+jwt"}"#, &good().to_string());
    assert_eq!(bench.judge(&text).await.unwrap_err(), "token.algorithm");
}

#[tokio::test]
async fn no_statement_opens_a_route_and_no_access_token_is_a_statement() {
    // The most trusting configuration there is.
    let bench = Bench::new(&format!(
        "{BLOCK}token_types: [at+jwt, JWT, logout+jwt, secevent+jwt]\nallow_missing_type: true\n"
    ));
    let both = json!({"aud": ["web", AUDIENCE], "scope": "api:read", "client_id": "svc"});
    for token_type in ["logout+jwt", "secevent+jwt", "JWT", "at+jwt"] {
        let text = bench.typed(token_type, &with(both.clone()));
        assert_eq!(
            bench.as_access_token(&text).await,
            Err("token.kind"),
            "{token_type}"
        );
    }
    let plain = Kind {
        allow_plain: true,
        ..kind()
    };
    for token_type in ["at+jwt", "JWT", "logout+jwt"] {
        let text = bench.typed(token_type, &claims_with(json!({"aud": ["web", AUDIENCE]})));
        assert_eq!(bench.as_access_token(&text).await, Ok(()), "{token_type}");
        assert!(bench.judge_as(&text, &plain).await.is_err(), "{token_type}");
    }
}
