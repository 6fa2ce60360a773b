//! What an upstream learns, seen from its side of the socket.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use ::http::Request;
use http_body_util::BodyExt;
use jsonwebtoken::jwk::JwkSet;
use jsonwebtoken::{Algorithm, DecodingKey, Validation};
use serde_json::Value as Json;

use super::{OK, Server, always, bounds, core, to};
use crate::authn::{Caller, Identity};
use crate::authz::{Advice, Permit};
use crate::body;
use crate::clock;
use crate::document::Value;
use crate::metrics::Metrics;
use crate::request::{ConnInfo, InboundRequest, RequestId, Rules};
use crate::schema::{Compile, Problem};
use crate::telemetry::TraceContext;
use crate::upstream::assertion::JWKS_PATH;
use crate::upstream::headers::{IdentityConfig, IdentityHeaders};
use crate::upstream::{Forwarding, Pools, Trail};

const YAML: &str = "
headers: { x-user-id: subject, x-user-roles: roles, x-email: 'claim:email', x-tenant: 'policy:tenant',
           x-gateway: 'text:portcullis' }
assertion: { issuer: 'https://api.example.test' }
";

fn compile(
    yaml: &str,
    folder: &Path,
    previous: Option<&Arc<IdentityHeaders>>,
) -> Result<Arc<IdentityHeaders>, Vec<Problem>> {
    let config: IdentityConfig = serde_yaml::from_str(yaml).unwrap();
    let file = folder.join("gateway.yaml");
    let mut cx = Compile::new(&file, Arc::new(Metrics::default()));
    let compiled = config.compile(previous, &mut cx);
    compiled.ok_or_else(|| cx.finish().0)
}

fn identity(yaml: &str) -> Arc<IdentityHeaders> {
    compile(yaml, Path::new("."), None).unwrap()
}

fn inbound(identity: &IdentityHeaders, request: Request<()>) -> InboundRequest {
    let conn = Arc::new(ConnInfo {
        listener: "test".into(),
        peer: "198.51.100.7:1000".parse().unwrap(),
        local: "127.0.0.1:8080".parse().unwrap(),
        tls: None,
        ambiguous_head: None,
        forwarded: Default::default(),
    });
    let rules = Rules {
        owned: identity.owned().into_iter().collect(),
        ..Rules::default()
    };
    let id = RequestId::random();
    let (request, ()) = InboundRequest::parse(&conn, id, request, clock::now(), &rules).unwrap();
    request
}

fn alice(claims: &str) -> Caller {
    let claims = Value::from_json_str(claims).unwrap();
    let until = clock::now() + Duration::from_secs(3600);
    Caller::Known(Identity::for_tests("alice\r\nx-admin: 1", claims, until))
}

/// Forwards a request and returns its head as the upstream saw it.
async fn forwarded(
    server: &Server,
    identity: &IdentityHeaders,
    caller: Caller,
    advice: Advice,
) -> String {
    let request = Request::get("/orders/7?x=1")
        .header("host", "api.example.test")
        .header("authorization", "Bearer secret-token")
        .header("x-user-id", "mallory")
        .header("X-User_Roles", "admin")
        .header("x-portcullis-assertion", "forged")
        .header("x-tenant", "other")
        .header("x-request-id", "theirs")
        .body(())
        .unwrap();
    let request = inbound(identity, request);
    let upstream = to(server, "");
    let trace = TraceContext {
        trace_id: "4bf92f3577b34da6a3ce929d0e0e4736".parse().unwrap(),
        parent_id: None,
        span_id: "00f067aa0ba902b7".parse().unwrap(),
        sampled: false,
        state: None,
    };
    let forwarding = Forwarding {
        head_timeout: Duration::from_secs(30),
        identity,
        route: &"read-order".into(),
        bounds: &bounds(),
        trace: &trace,
        decision_id: "decision-1",
    };
    let permit = Permit::for_tests(caller, advice);
    let mut trail = Trail::default();
    let answer = upstream
        .forward(
            &Pools::default(),
            &request,
            body::empty(),
            &permit,
            forwarding,
            &mut trail,
        )
        .await
        .unwrap();
    assert_eq!(answer.status(), 200);
    assert_eq!(trail.endpoint.as_deref(), Some(&*server.address));
    server.heads.borrow().last().unwrap().clone()
}

fn field<'h>(head: &'h str, name: &str) -> Option<&'h str> {
    let mut values = head
        .lines()
        .filter_map(|line| line.split_once(": "))
        .filter(|(key, _)| *key == name)
        .map(|(_, value)| value);
    let value = values.next();
    assert_eq!(values.next(), None, "{name} is there twice");
    value
}

#[test]
fn the_upstream_learns_who_it_is_and_nothing_the_client_made_up() {
    core(async {
        let server = always(OK).await;
        let identity = identity(YAML);
        let advice = Advice {
            identity: Some(Value::from_json_str(r#"{"tenant": "acme"}"#).unwrap()),
            ..Advice::default()
        };
        let caller = alice(r#"{"email": "alice@example.test", "roles": "tester"}"#);
        let head = forwarded(&server, &identity, caller, advice).await;
        assert_eq!(field(&head, "x-user-id"), Some("alice%0D%0Ax-admin:%201"));
        assert_eq!(field(&head, "x-user-roles"), Some("tester"));
        assert_eq!(field(&head, "x-email"), Some("alice@example.test"));
        assert_eq!(field(&head, "x-tenant"), Some("acme"));
        assert_eq!(field(&head, "x-gateway"), Some("portcullis"));
        assert_eq!(field(&head, "x-admin"), None);
        assert_eq!(field(&head, "x-forwarded-for"), Some("198.51.100.7"));
        let parent = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-00";
        assert_eq!(field(&head, "traceparent"), Some(parent));
        assert_ne!(field(&head, "x-request-id"), Some("theirs"));
        assert!(!head.contains("secret-token"), "the token travelled on");
        assert!(
            !head.contains("mallory") && !head.contains("forged"),
            "{head}"
        );
        assert!(head.starts_with("GET /orders/7?x=1 HTTP/1.1\r\n"));
    });
}

#[test]
fn anonymous_callers_leave_no_identity_header() {
    core(async {
        let server = always(OK).await;
        let identity = identity(YAML);
        let head = forwarded(&server, &identity, Caller::Anonymous, Advice::default()).await;
        for name in ["x-user-id", "x-user-roles", "x-email", "x-tenant"] {
            assert_eq!(field(&head, name), None, "{name}");
        }
        let token = field(&head, "x-portcullis-assertion").unwrap();
        let claims = verified(&identity, token).await.unwrap();
        assert_eq!(
            claims["caller"],
            serde_json::json!({ "method": "anonymous" })
        );
        assert_eq!(claims.get("sub"), None);
    });
}

async fn jwks(identity: &IdentityHeaders) -> JwkSet {
    let request = Request::get(JWKS_PATH)
        .header("host", "a")
        .body(())
        .unwrap();
    let answer = identity.well_known(&inbound(identity, request)).unwrap();
    assert_eq!(answer.headers()["content-type"], "application/jwk-set+json");
    assert!(answer.headers().contains_key("cache-control"));
    let body = answer.into_body().collect().await.unwrap().to_bytes();
    serde_json::from_slice(&body).unwrap()
}

/// What an upstream does: finds the key by `kid` and verifies.
async fn verified(identity: &IdentityHeaders, token: &str) -> Option<Json> {
    let header = jsonwebtoken::decode_header(token).unwrap();
    assert_eq!(header.typ.as_deref(), Some("portcullis-assertion+jwt"));
    let keys = jwks(identity).await;
    let key = keys.find(&header.kid.unwrap())?;
    let mut validation = Validation::new(Algorithm::ES256);
    validation.set_audience(&["test"]);
    validation.set_issuer(&["https://api.example.test"]);
    validation.set_required_spec_claims(&["exp", "iss", "aud"]);
    let key = DecodingKey::from_jwk(key).unwrap();
    jsonwebtoken::decode::<Json>(token, &key, &validation)
        .ok()
        .map(|token| token.claims)
}

#[test]
fn assertions_verify_against_the_published_keys_and_name_the_request() {
    core(async {
        let server = always(OK).await;
        let identity = identity(YAML);
        let head = forwarded(
            &server,
            &identity,
            alice(r#"{"roles": "tester"}"#),
            Advice::default(),
        )
        .await;
        let token = field(&head, "x-portcullis-assertion").unwrap();
        let claims = verified(&identity, token).await.unwrap();
        assert_eq!(claims["sub"], "alice\r\nx-admin: 1");
        assert_eq!(claims["caller"]["method"], "jwt");
        assert_eq!(claims["caller"]["issuer"], "https://issuer.test");
        assert_eq!(claims["caller"]["roles"][0], "tester");
        assert_eq!(claims["decision"]["id"], "decision-1");
        assert_eq!(claims["decision"]["policy"], "test");
        assert_eq!(claims["decision"]["route"], "read-order");
        assert_eq!(claims["request"]["method"], "GET");
        assert_eq!(claims["request"]["host"], "api.example.test");
        assert_eq!(claims["request"]["path"], "/orders/7");
        let id = field(&head, "x-request-id").unwrap();
        assert_eq!(claims["request"]["id"], id);
        let life = claims["exp"].as_u64().unwrap() - claims["iat"].as_u64().unwrap();
        assert_eq!(life, 30);
        // A changed byte does not verify.
        let mut forged = token.to_owned();
        let place = forged.len() - 8..forged.len() - 7;
        let flipped = if &forged[place.clone()] == "A" {
            "B"
        } else {
            "A"
        };
        forged.replace_range(place, flipped);
        assert_eq!(verified(&identity, &forged).await, None);
    });
}

#[test]
fn an_assertion_does_not_outlive_the_credential() {
    core(async {
        let server = always(OK).await;
        let identity = identity(YAML);
        let claims = Value::from_json_str("{}").unwrap();
        let until = clock::now() + Duration::from_secs(5);
        let caller = Caller::Known(Identity::for_tests("alice", claims, until));
        let head = forwarded(&server, &identity, caller, Advice::default()).await;
        let token = field(&head, "x-portcullis-assertion").unwrap();
        let claims = verified(&identity, token).await.unwrap();
        let life = claims["exp"].as_u64().unwrap() - claims["iat"].as_u64().unwrap();
        assert!(life <= 5, "{life}");
    });
}

#[test]
fn a_huge_assertion_leaves_out_lists_and_says_so() {
    core(async {
        let server = always(OK).await;
        let identity = identity(YAML);
        let attributes = format!(r#"{{"tenant": "{}"}}"#, "a".repeat(9000));
        let advice = Advice {
            identity: Some(Value::from_json_str(&attributes).unwrap()),
            ..Advice::default()
        };
        let head = forwarded(&server, &identity, alice("{}"), advice).await;
        assert_eq!(field(&head, "x-tenant"), None);
        let token = field(&head, "x-portcullis-assertion").unwrap();
        assert!(token.len() < 8 * 1024);
        let claims = verified(&identity, token).await.unwrap();
        assert_eq!(claims["truncated"], true);
        assert_eq!(claims.get("attributes"), None);
    });
}

fn key_file(folder: &Path, name: &str) {
    let key = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).unwrap();
    std::fs::write(folder.join(name), key.serialize_pem()).unwrap();
    std::fs::write(folder.join(format!("{name}.pub")), key.public_key_pem()).unwrap();
}

#[test]
fn keys_survive_reloads_and_overlap_when_they_change() {
    core(async {
        let folder = tempfile::tempdir().unwrap();
        let folder = folder.path();
        // A generated key is kept, also when other keys of the section change.
        let generated = compile(YAML, folder, None).unwrap();
        let again = compile(YAML, folder, Some(&generated)).unwrap();
        assert!(Arc::ptr_eq(&generated, &again));
        let other = YAML.replace("test' }", "test', lifetime: 10s }");
        let other = compile(&other, folder, Some(&generated)).unwrap();
        assert_eq!(jwks(&other).await, jwks(&generated).await);

        // A key from a file, and its successor in the same file.
        key_file(folder, "key.pem");
        key_file(folder, "old.pem");
        let yaml = "assertion: { issuer: 'https://api.example.test', key: key.pem, \
                    previous_keys: [old.pem.pub] }";
        let first = compile(yaml, folder, None).unwrap();
        let same = compile(yaml, folder, Some(&first)).unwrap();
        assert!(Arc::ptr_eq(&first, &same));
        assert_eq!(jwks(&first).await.keys.len(), 2);
        key_file(folder, "key.pem");
        let second = compile(yaml, folder, Some(&first)).unwrap();
        let keys = jwks(&second).await;
        assert_eq!(keys.keys.len(), 3);
        let signed_before = jwks(&first).await.keys[0].common.key_id.clone().unwrap();
        assert!(keys.find(&signed_before).is_some());
        let third = compile(yaml, folder, Some(&second)).unwrap();
        assert!(Arc::ptr_eq(&second, &third));
    });
}

#[test]
fn the_thumbprint_is_that_of_rfc_7638() {
    core(async {
        let keys = jwks(&identity(YAML)).await;
        let key = &keys.keys[0];
        let thumbprint = key.thumbprint(jsonwebtoken::jwk::ThumbprintHash::SHA256);
        assert_eq!(key.common.key_id.as_deref(), thumbprint.ok().as_deref());
    });
}

#[test]
fn bad_keys_and_lifetimes_are_problems() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let p384 = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P384_SHA384).unwrap();
    std::fs::write(folder.join("p384.pem"), p384.serialize_pem()).unwrap();
    std::fs::write(folder.join("junk.pem"), "junk").unwrap();
    for bad in [
        "assertion: { issuer: a, key: missing.pem }",
        "assertion: { issuer: a, key: junk.pem }",
        "assertion: { issuer: a, key: p384.pem }",
        "assertion: { issuer: a, previous_keys: [junk.pem] }",
        "assertion: { issuer: a, lifetime: 6m }",
        "assertion: { issuer: a, lifetime: 0s }",
        "assertion: { issuer: '' }",
        "assertion: { issuer: a, header: cookie }",
        "headers: { x-a: subject }\nassertion: { issuer: a, header: X-A }",
    ] {
        assert!(compile(bad, folder, None).is_err(), "{bad}");
    }
}

#[test]
fn only_reading_the_key_set_is_answered() {
    let identity = identity(YAML);
    let post = Request::post(JWKS_PATH)
        .header("host", "a")
        .body(())
        .unwrap();
    let answer = identity.well_known(&inbound(&identity, post)).unwrap();
    assert_eq!(answer.status(), 405);
    let other = Request::get("/").header("host", "a").body(()).unwrap();
    assert!(identity.well_known(&inbound(&identity, other)).is_none());
    let off = IdentityHeaders::default();
    let get = Request::get(JWKS_PATH)
        .header("host", "a")
        .body(())
        .unwrap();
    assert!(off.well_known(&inbound(&off, get)).is_none());
}
