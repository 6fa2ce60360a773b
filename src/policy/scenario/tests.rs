use std::fs;

use tempfile::TempDir;

use super::*;
use crate::document;

const GATEWAY: &str = r#"
listeners:
  local: { address: "127.0.0.1:0", plaintext: true }
issuers:
  main:
    issuer: https://issuer.example.test
    keys: { file: keys.json }
    audiences: [https://api.example.test]
    algorithms: [ES256]
    claims: { scopes: scp, roles: groups }
policies:
  orders: { files: [orders.rego], entrypoint: data.orders.decision }
upstreams:
  main: { endpoints: ["http://127.0.0.1:1"] }
limits:
  each: { by: subject, rate: 5/s, burst: 5 }
routes:
  - { name: open, path: /status, authn: [anonymous], policy: public, upstream: main }
  - { name: order, path: "/orders/{id}", methods: [GET], authn: [main], policy: orders, limits: [each], upstream: main }
"#;

const REGO: &str = r#"package orders

default decision := {"allow": false, "reason": "orders.no", "message": "Not you.", "status": 404}

decision := {"allow": true, "reason": "orders.reader"} if {
	"orders:read" in input.identity.scopes
	"clerk" in input.identity.roles
	input.route.params.id != "0"
}
"#;

const KEYS: &str = r#"{"keys":[{"kty":"EC","crv":"P-256","kid":"a","use":"sig","alg":"ES256",
 "x":"f83OJ3D2xF1Bg8vub9tLe1gHMzV76e8Tus9uPHvRVEU","y":"x_FEzRu9m36HLN_tue659LNpXW6pCyStikYjKIWI5a0"}]}"#;

fn ground() -> (TempDir, Ground) {
    let folder = TempDir::new().unwrap();
    fs::write(folder.path().join("gateway.yaml"), GATEWAY).unwrap();
    fs::write(folder.path().join("orders.rego"), REGO).unwrap();
    fs::write(folder.path().join("keys.json"), KEYS).unwrap();
    let ground = Ground::load(&folder.path().join("gateway.yaml")).unwrap();
    (folder, ground)
}

fn claims(json: &str) -> Caller {
    Caller::with_claims(document::from_json(json.as_bytes()).unwrap(), None)
}

fn ask(ground: &Ground, method: &str, url: &str, caller: &Caller) -> Told {
    ground
        .ask(&Wanted::of(method, url).unwrap(), caller)
        .unwrap()
}

const CLERK: &str = r#"{"sub": "bob", "scp": ["orders:read"], "groups": ["clerk"]}"#;

#[test]
fn claims_go_through_the_issuers_own_mapping() {
    let (_folder, ground) = ground();
    let told = ask(&ground, "GET", "/orders/7", &claims(CLERK));
    assert_eq!(told.stage, Stage::Allowed, "{told:?}");
    assert_eq!(told.reason.as_deref(), Some("orders.reader"));
    assert_eq!(told.route.as_deref(), Some("order"));
    assert_eq!(&*told.caller.unwrap().roles[0], "clerk");
    assert_eq!(told.assumed, ["iss", "aud", "exp"]);
    assert_eq!(told.not_checked, ["revocations", "limits (each)"]);
    // The names that other issuers use mean nothing here.
    let other = claims(r#"{"sub": "bob", "scope": "orders:read", "roles": ["clerk"]}"#);
    let told = ask(&ground, "GET", "/orders/7", &other);
    assert_eq!(told.stage, Stage::Policy);
}

#[test]
fn a_no_has_the_face_that_the_client_would_see() {
    let (_folder, ground) = ground();
    let told = ask(&ground, "GET", "/orders/0", &claims(CLERK));
    assert_eq!(told.stage, Stage::Policy);
    assert_eq!(told.reason.as_deref(), Some("orders.no"));
    assert_eq!(told.message.as_deref(), Some("Not you."));
    assert_eq!(told.face.unwrap().status, 404);
    let told = ask(&ground, "GET", "/orders/7", &Caller::anonymous());
    assert_eq!(told.stage, Stage::Authentication);
    assert_eq!(told.face.unwrap().status, 401);
    let told = ask(&ground, "POST", "/orders/7", &claims(CLERK));
    assert_eq!(told.stage, Stage::Route);
    assert_eq!(told.face.unwrap().code, "no_route");
    let told = ask(&ground, "GET", "/orders/%2e%2e/status", &claims(CLERK));
    assert_eq!(told.stage, Stage::Request);
    assert_eq!(told.face.unwrap().status, 400);
    let told = ask(&ground, "GET", "/status", &Caller::anonymous());
    assert!(told.allowed());
}

#[test]
fn a_real_token_is_judged_by_the_issuers_rules_but_for_its_signature() {
    let (_folder, ground) = ground();
    let token = |header: &str, claims: &str| {
        use base64::Engine as _;
        let encode = |text: &str| base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(text);
        Caller {
            supposition: Supposition::Token(format!("{}.{}.AAAA", encode(header), encode(claims))),
            ..Caller::anonymous()
        }
    };
    let header = r#"{"alg":"ES256","typ":"at+jwt","kid":"a"}"#;
    let whole = r#"{"iss":"https://issuer.example.test","aud":"https://api.example.test","exp":4000000000,
        "sub":"bob","scp":"orders:read","groups":"clerk"}"#;
    let told = ask(&ground, "GET", "/orders/7", &token(header, whole));
    assert!(told.allowed(), "{told:?}");
    assert!(told.assumed.is_empty());
    assert!(
        told.not_checked
            .contains(&"the token's signature".to_owned())
    );
    let old = whole.replace("4000000000", "1000000000");
    let told = ask(&ground, "GET", "/orders/7", &token(header, &old));
    assert_eq!(told.reason.as_deref(), Some("token.expired"));
    let foreign = whole.replace("issuer.example", "other.example");
    let told = ask(&ground, "GET", "/orders/7", &token(header, &foreign));
    assert_eq!(told.reason.as_deref(), Some("token.issuer"));
    let told = ask(
        &ground,
        "GET",
        "/orders/7",
        &token(r#"{"alg":"none"}"#, whole),
    );
    assert_eq!(told.reason.as_deref(), Some("token.algorithm"));
}

#[test]
fn a_pasted_request_is_read_as_it_went_over_the_wire() {
    let pasted = "> GET /orders/7?x=1 HTTP/1.1\r\n> Host: api.example.test:8443\r\n> X-Tenant: acme\r\n> authorization: bearer a.b.c\r\n>\r\n< HTTP/1.1 200 OK\r\n";
    let wanted = Wanted::pasted(pasted).unwrap();
    assert_eq!(wanted.target, "/orders/7?x=1");
    assert_eq!(wanted.host.as_deref(), Some("api.example.test:8443"));
    assert_eq!(wanted.host_name().as_deref(), Some("api.example.test"));
    assert_eq!(wanted.token.as_deref(), Some("a.b.c"));
    assert_eq!(wanted.headers.len(), 1);
    let short = Wanted::pasted("POST https://a.test/x\nx-a: 1\n\nbody: none\n").unwrap();
    assert_eq!(short.host.as_deref(), Some("a.test"));
    assert_eq!(short.headers.len(), 1);
    for wrong in [
        "",
        "GET",
        "get /x",
        "GET x HTTP/1.1",
        "GET /x HTTP/9",
        "GET /x\nno header",
    ] {
        assert!(Wanted::pasted(wrong).is_err(), "{wrong}");
    }
}

#[test]
fn callers_have_names_and_mistakes_have_places() {
    let folder = TempDir::new().unwrap();
    let file = folder.path().join("callers.yaml");
    let config = folder.path().join("gateway.yaml");
    assert!(Callers::find(None, &config).unwrap().by_name.is_empty());
    fs::write(
        &file,
        "alice: { claims: { sub: alice }, address: 192.0.2.9 }\npay: { certificate: 'spiffe://a.test/pay' }\nvisitor: {}\n",
    )
    .unwrap();
    let callers = Callers::find(None, &config).unwrap();
    assert_eq!(callers.by_name.len(), 3);
    assert!(callers.get("pay").unwrap().certificate.is_some());
    let unknown = callers.get("alise").unwrap_err().to_string();
    assert!(unknown.contains("did you mean `alice`?"), "{unknown}");
    fs::write(&file, "alice: { claim: { sub: alice } }\n").unwrap();
    let wrong = Callers::read(&file).unwrap_err().to_string();
    assert!(
        wrong.contains("`alice`") && wrong.contains("unknown field `claim`"),
        "{wrong}"
    );
}

#[test]
fn a_certificate_is_seen_on_listeners_with_tls_alone() {
    let (_folder, ground) = ground();
    let partner = Caller {
        certificate: Some(Certificate::spiffe("spiffe://a.test/pay")),
        ..Caller::anonymous()
    };
    let told = ask(&ground, "GET", "/orders/7", &partner);
    assert_eq!(told.stage, Stage::Authentication);
    assert!(
        told.remarks
            .iter()
            .any(|remark| remark.contains("speaks no TLS"))
    );
}
