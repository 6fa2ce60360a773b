//! What is told is the document, byte for byte, but for what is named as missing.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use http::{HeaderName, HeaderValue, Method, Request};
use proptest::prelude::*;
use serde_json::Value as Json;

use super::*;
use crate::ascii::canonical;
use crate::authn::Caller;
use crate::authz::PolicyConfig;
use crate::authz::input::Wanted;
use crate::document::{Value, from_json, object};
use crate::request::{ConnInfo, Excerpt, RequestId, Rules, TlsInfo};
use crate::schema::Compile;
use crate::tls::{PeerCertificate, Sans};

/// What nothing may tell.
const SECRET: &str = "S3CRET";

const WHOLE: Telling = Telling {
    queries: Queries::Whole,
    bodies: true,
    limit: usize::MAX,
};

/// A request as it may come.
#[derive(Debug, Clone)]
struct Raw {
    method: usize,
    path: String,
    query: Option<String>,
    headers: Vec<(String, Vec<u8>)>,
    body: Option<(usize, Vec<u8>, bool)>,
    tls: usize,
    identity: Option<String>,
    params: Vec<(String, String)>,
    labels: Vec<(String, String)>,
    hidden: bool,
    trusted: bool,
    nanos: u64,
}

fn names() -> impl Strategy<Value = String> {
    prop_oneof![
        prop::sample::select(vec![
            "accept",
            "referer",
            "authorization",
            "cookie",
            "x-api-key",
            "x-hidden",
            "user-agent",
            "x-session-id",
            "x-my-token",
            "x-forwarded-for",
            "idempotency-key",
            "content-type",
            "x-request-id",
            // Names with the same beginning, and one that is the beginning of another.
            "x-request-id-2",
            "x-request-ids",
            "accept-encoding",
            "accept-language",
        ])
        .prop_map(str::to_owned),
        "x-[a-z]{1,3}",
    ]
}

fn values() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        prop::collection::vec(any::<u8>(), 0..40),
        Just(format!("https://a.test/?q={SECRET}&w").into_bytes()),
        Just(format!("Bearer {SECRET}").into_bytes()),
        Just(format!("eyJhbGciOiJub25lIn0.{SECRET}.x").into_bytes()),
        "[ -~]{0,20}".prop_map(String::into_bytes),
    ]
}

fn raws() -> impl Strategy<Value = Raw> {
    let body = (
        0usize..4,
        prop_oneof![
            Just(format!(r#"{{"a":["{SECRET}",1.5,null]}}"#).into_bytes()),
            Just(format!("a={SECRET}&b=%20").into_bytes()),
            Just(Vec::new()),
            prop::collection::vec(any::<u8>(), 0..60),
        ],
        any::<bool>(),
    );
    (
        (
            0usize..4,
            "(/([a-z0-9.]|%20|%22|%C3%A9|%E2%80%A8|%0A|%1B|%F0%9F%98%80|%FF){0,4}){1,4}",
            prop::option::of(
                "((a|b|%C3%A9|~1|%2F|c~d|\\+)(=(S3CRET|%22|%0D%0A|%FF|x){0,3})?&?){0,5}",
            ),
            prop::collection::vec((names(), values()), 0..14),
            prop::option::of(body),
            0usize..4,
        ),
        (
            prop::option::of(".{0,12}"),
            prop::collection::vec(("[a-c]", ".{0,6}"), 0..4),
            prop::collection::vec((".{0,4}", ".{0,6}"), 0..4),
            any::<bool>(),
            any::<bool>(),
            0u64..4_000_000_000_000_000_000,
        ),
    )
        .prop_map(|((method, path, query, headers, body, tls), rest)| {
            let (identity, params, labels, hidden, trusted, nanos) = rest;
            Raw {
                method,
                path,
                query,
                headers,
                body,
                tls,
                identity,
                params,
                labels,
                hidden,
                trusted,
                nanos,
            }
        })
}

struct Asked {
    request: InboundRequest,
    caller: Caller,
    name: Arc<str>,
    params: Vec<(Arc<str>, String)>,
    labels: Value,
    hidden: Vec<HeaderName>,
    reads_body: bool,
}

impl Raw {
    /// `None` when no such request comes in.
    fn asked(&self) -> Option<Asked> {
        let certificate = PeerCertificate {
            subject: "CN=\u{202e}é\"".into(),
            issuer: "CN=CA".into(),
            serial: "1f".into(),
            sans: Sans {
                dns: vec!["a.test".into()],
                uri: vec![],
                email: vec![],
                ip: vec!["192.0.2.9".parse().unwrap()],
            },
            spiffe_id: None,
            sha256: "ab".repeat(32),
            not_before: SystemTime::UNIX_EPOCH,
            not_after: SystemTime::UNIX_EPOCH + Duration::from_millis(1_800_000_000_500),
        };
        let tls = (self.tls > 0).then(|| TlsInfo {
            version: "TLSv1.3",
            server_name: (self.tls > 1).then(|| "api.example.test".into()),
            peer_certificate: (self.tls > 2).then(|| Arc::new(certificate)),
            ..TlsInfo::default()
        });
        let conn = Arc::new(ConnInfo {
            listener: "public".into(),
            peer: "192.0.2.7:40000".parse().unwrap(),
            local: "192.0.2.1:443".parse().unwrap(),
            tls,
            ambiguous_head: None,
            forwarded: Default::default(),
        });
        let target = match &self.query {
            None => self.path.clone(),
            Some(query) => format!("{}?{query}", self.path),
        };
        let methods = [Method::GET, Method::POST, Method::DELETE, Method::PATCH];
        let mut head = Request::builder()
            .method(methods[self.method].clone())
            .uri(target)
            .header("host", "api.example.test:8443");
        for (name, value) in &self.headers {
            head = head.header(name, HeaderValue::from_bytes(value).ok()?);
        }
        if let Some((kind, ..)) = &self.body {
            let kinds = [
                "application/json",
                "application/x-www-form-urlencoded",
                "text/plain",
                "application/json",
            ];
            head = head.header("content-type", kinds[*kind]);
        }
        let head = head.body(()).ok()?;
        let rules = Rules {
            trusted_proxies: if self.trusted {
                vec!["192.0.2.0/24".parse().unwrap()]
            } else {
                Vec::new()
            },
            ..Rules::default()
        };
        let at = SystemTime::UNIX_EPOCH + Duration::from_nanos(self.nanos);
        let id = RequestId::random();
        let (mut request, ()) = InboundRequest::parse(&conn, id, head, at, &rules).ok()?;
        request.excerpt = self.body.as_ref().map(|(_, bytes, whole)| {
            Arc::new(Excerpt {
                bytes: Bytes::copy_from_slice(bytes),
                whole: *whole,
            })
        });
        let text = |(name, value): &(String, String)| {
            (Value::from(name.as_str()), Value::from(value.as_str()))
        };
        Some(Asked {
            request,
            caller: match &self.identity {
                None => Caller::Anonymous,
                Some(subject) => {
                    let claims = object([("name", Value::from(subject.as_str()))]);
                    let until = at + Duration::from_secs(3600);
                    Caller::Known(Identity::for_tests(subject, claims, until))
                }
            },
            name: "read-order".into(),
            params: self
                .params
                .iter()
                .map(|(name, value)| (name.as_str().into(), value.clone()))
                .collect(),
            labels: object(self.labels.iter().map(text)),
            hidden: if self.hidden {
                vec![HeaderName::from_static("x-hidden")]
            } else {
                Vec::new()
            },
            reads_body: self.body.is_some(),
        })
    }
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Kind {
    Portcullis,
    Envoy,
}

impl Asked {
    fn ask<T>(&self, work: impl FnOnce(&Question<'_>) -> T) -> T {
        work(&Question {
            request: &self.request,
            route: &RouteFacts {
                name: &self.name,
                params: &self.params,
                labels: &self.labels,
            },
            identity: self.caller.identity(),
            hidden: &self.hidden,
            reads_body: self.reads_body,
        })
    }

    /// What the policy gets, if it could read all of it.
    fn document(&self, kind: Kind) -> Result<Value, Unreadable> {
        self.ask(|question| match kind {
            Kind::Portcullis => input::document(
                question.request,
                question.route,
                question.identity.map(|identity| identity.document()),
                question.hidden,
                &Wanted::by(&[Vec::new()], self.reads_body),
            ),
            Kind::Envoy => envoy::document(question, &envoy::Want::all()),
        })
    }

    fn told(&self, kind: Kind, how: &Telling) -> Result<Told, Untold> {
        let mut out = Script::default();
        self.ask(|question| match kind {
            Kind::Portcullis => portcullis(question, how, &mut out),
            Kind::Envoy => envoy::told(question, how, &mut out),
        })?;
        let list = |items: &[u8]| -> Vec<String> {
            let text = format!("[{}]", std::str::from_utf8(items).unwrap());
            serde_json::from_str(&text).unwrap()
        };
        Ok(Told {
            masked: list(&out.masked),
            erased: list(&out.erased),
            text: String::from_utf8(out.input).unwrap(),
        })
    }
}

#[derive(Debug)]
struct Told {
    text: String,
    masked: Vec<String>,
    erased: Vec<String>,
}

/// The document as it must be told: with its masked values as they are in the text, and without those
/// that were erased. A pointer must lead to something.
fn expected(document: &Value, told: &Told) -> Json {
    let mut json: Json = serde_json::from_str(&canonical(document)).unwrap();
    let shown: Json = serde_json::from_str(&told.text).unwrap();
    for pointer in &told.masked {
        let pointer = pointer.strip_prefix("/input").unwrap();
        let mask = shown.pointer(pointer).expect(pointer).clone();
        let place = json.pointer_mut(pointer).expect(pointer);
        assert_ne!(*place, mask, "{pointer} is not masked");
        *place = mask;
    }
    for pointer in &told.erased {
        let pointer = pointer.strip_prefix("/input").unwrap();
        assert_eq!(shown.pointer(pointer), None);
        let (parent, name) = pointer.rsplit_once('/').unwrap();
        let parent = json.pointer_mut(parent).unwrap().as_object_mut().unwrap();
        parent.remove(name).expect(pointer);
    }
    json
}

fn is_line(text: &str) -> bool {
    text.bytes().all(|b| (0x20..0x7f).contains(&b))
}

#[test]
fn queries_of_addresses_are_hidden_wherever_they_stand_in_a_list() {
    for (value, hidden) in [
        ("https://a.test/?q=S&w", Some("https://a.test/?q=*&*")),
        ("?,https://a.test/?q=S", Some("?,https://a.test/?q=*")),
        ("?, /b?q=S,T&u=1", Some("?, /b?q=*&u=*")),
        ("https://a.test/, /b?q=S", Some("https://a.test/, /b?q=*")),
        ("what?, where?", None),
        ("https://a.test/", None),
        ("https://a.test/?", None),
    ] {
        let found = hide_address(value, Queries::Names);
        assert_eq!(found.as_deref(), hidden, "{value}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig {
        failure_persistence: None,
        ..ProptestConfig::with_cases(768)
    })]

    #[test]
    fn the_text_is_the_document_that_the_policy_gets(raw in raws()) {
        let Some(asked) = raw.asked() else { return Ok(()) };
        for kind in [Kind::Portcullis, Kind::Envoy] {
            let document = asked.document(kind);
            let told = asked.told(kind, &WHOLE);
            let (document, told) = match (document, told) {
                (Ok(document), Ok(told)) => (document, told),
                (document, told) => {
                    prop_assert!(document.is_err() && told.is_err());
                    continue;
                }
            };
            prop_assert!(is_line(&told.text));
            prop_assert!(told.erased.is_empty());
            // Of what is told as it is, every byte is that of the canonical form.
            let expected = expected(&document, &told).to_string();
            let expected = canonical(&from_json(expected.as_bytes()).unwrap());
            prop_assert_eq!(&told.text, &expected);
            for pointer in &told.masked {
                prop_assert!(pointer.contains("/headers/"), "{}", pointer);
            }
        }
    }

    #[test]
    fn what_may_be_secret_is_masked_or_missing_and_all_of_it_is_named(
        raw in raws(), nothing in any::<bool>(), bodies in any::<bool>(),
    ) {
        let Some(asked) = raw.asked() else { return Ok(()) };
        let how = Telling {
            queries: if nothing { Queries::Nothing } else { Queries::Names },
            bodies: false,
            ..WHOLE
        };
        for kind in [Kind::Portcullis, Kind::Envoy] {
            let (Ok(document), Ok(told)) = (asked.document(kind), asked.told(kind, &how)) else {
                continue;
            };
            prop_assert!(!told.text.contains(SECRET), "{}", told.text);
            prop_assert!(is_line(&told.text));
            let shown: Json = serde_json::from_str(&told.text).unwrap();
            prop_assert_eq!(expected(&document, &told), shown);
            let with = Telling { bodies, ..how };
            let Ok(with) = asked.told(kind, &with) else { continue };
            let body = with.erased.iter().any(|pointer| pointer.contains("ody"));
            prop_assert!(!(bodies && body));
        }
    }
}

fn raw() -> Raw {
    Raw {
        method: 0,
        path: "/a".into(),
        query: None,
        headers: Vec::new(),
        body: None,
        tls: 0,
        identity: None,
        params: Vec::new(),
        labels: Vec::new(),
        hidden: false,
        trusted: false,
        nanos: 0,
    }
}

#[test]
fn headers_stand_in_the_order_of_their_names_however_alike_these_begin() {
    let names = [
        "accept",
        "accept-encoding",
        "accept-language",
        "dnt",
        "x-request-id",
        "x-request-id-2",
        "x-request-ids",
    ];
    for shift in 0..names.len() {
        let mut sent = names.to_vec();
        sent.reverse();
        sent.rotate_left(shift);
        let headers = sent.iter().map(|name| ((*name).into(), b"1".to_vec()));
        let raw = Raw {
            headers: headers.collect(),
            ..raw()
        };
        let told = raw.asked().unwrap().told(Kind::Portcullis, &WHOLE).unwrap();
        let places = names.map(|name| told.text.find(&format!("\"{name}\":")).expect(name));
        assert!(places.is_sorted(), "{}", told.text);
    }
}

#[test]
fn pointers_name_what_is_masked_and_what_is_gone() {
    let raw = Raw {
        query: Some("token=S3CRET&token=S3CRET&a%2Fb~c=1&flag".into()),
        headers: vec![("x-auth-token-2".into(), b"S3CRET".to_vec())],
        body: Some((0, b"{\"a\":1}".to_vec(), true)),
        ..raw()
    };
    let asked = raw.asked().unwrap();
    let how = Telling {
        queries: Queries::Names,
        bodies: false,
        limit: usize::MAX,
    };
    let told = asked.told(Kind::Portcullis, &how).unwrap();
    assert_eq!(
        told.masked,
        [
            "/input/request/headers/x-auth-token-2",
            "/input/request/query/a~1b~0c/0",
            "/input/request/query/flag/0",
            "/input/request/query/token/0",
            "/input/request/query/token/1",
        ]
    );
    assert_eq!(told.erased, ["/input/request/body"]);
    let told = asked.told(Kind::Envoy, &how).unwrap();
    let http = "/input/attributes/request/http";
    for pointer in [
        format!("{http}/path"),
        format!("{http}/headers/:path"),
        format!("{http}/headers/x-auth-token-2"),
        "/input/parsed_query/token/1".to_owned(),
    ] {
        assert!(told.masked.contains(&pointer), "{told:?}");
    }
    let mut erased = told.erased.clone();
    erased.sort();
    assert_eq!(
        erased,
        [format!("{http}/body"), "/input/parsed_body".into()]
    );
    let shown: Json = serde_json::from_str(&told.text).unwrap();
    let path = &shown["attributes"]["request"]["http"]["path"];
    assert_eq!(path, "/a?token=*&token=*&a%2Fb~c=*&*");
    let nothing = Telling {
        queries: Queries::Nothing,
        ..how
    };
    let told = asked.told(Kind::Portcullis, &nothing).unwrap();
    assert_eq!(told.erased, ["/input/request/body", "/input/request/query"]);
}

fn policy(block: Json) -> Arc<Policy> {
    let folder = tempfile::tempdir().unwrap();
    let reads = block
        .get("body")
        .map(|_| "allow if input.request.body.a == 1\n");
    let rules = format!(
        "package p\n\ndefault allow := false\n\n{}",
        reads.unwrap_or_default()
    );
    std::fs::write(folder.path().join("p.rego"), rules).unwrap();
    let mut whole = serde_json::json!({ "files": ["p.rego"], "entrypoint": "data.p.allow" });
    for (name, value) in block.as_object().unwrap() {
        whole[name] = value.clone();
    }
    let config: PolicyConfig = serde_json::from_value(whole).unwrap();
    let mut cx = Compile::new(&folder.path().join("gateway.yaml"), Arc::default());
    let policy = config.compile("p", None, &mut cx);
    policy.unwrap_or_else(|| panic!("{:?}", cx.finish().0))
}

#[test]
fn what_a_policys_block_keeps_from_it_is_named_for_another_block_would_show_it() {
    let erased = |block: Json, raw: &Raw, body_sent| -> Vec<String> {
        let asked = raw.asked().unwrap();
        let mut out = Script::default();
        asked.ask(|question| {
            let (request, route) = (question.request, question.route);
            let policy = policy(block.clone());
            policy
                .tell(request, route, None, body_sent, &WHOLE, &mut out)
                .unwrap();
        });
        let list = format!("[{}]", std::str::from_utf8(&out.erased).unwrap());
        serde_json::from_str(&list).unwrap()
    };
    let hidden = Raw {
        headers: vec![
            ("x-hidden".into(), b"S3CRET".to_vec()),
            ("authorization".into(), b"Bearer eyJh.eyJz.c2ln".to_vec()),
        ],
        ..raw()
    };
    let all = ["x-hidden", "x-not-sent", "authorization"];
    let block = serde_json::json!({ "hidden_headers": all });
    assert_eq!(
        erased(block, &hidden, false),
        ["/input/request/headers/x-hidden"]
    );
    let http = "/input/attributes/request/http";
    let block = serde_json::json!({ "hidden_headers": all, "input": "envoy" });
    assert_eq!(
        erased(block, &hidden, false),
        [
            format!("{http}/headers/x-hidden"),
            format!("{http}/headers/authorization")
        ]
    );
    let none = serde_json::json!({});
    assert_eq!(erased(none.clone(), &raw(), false), [""; 0]);
    let body = ["/input/request/body", "/input/request/body_truncated"];
    assert_eq!(erased(none.clone(), &raw(), true), body);
    let read = Raw {
        body: Some((0, b"{}".to_vec(), true)),
        ..raw()
    };
    assert_eq!(erased(none, &read, false), body);
    let shows = serde_json::json!({ "body": { "max": "1KiB" } });
    assert_eq!(erased(shows, &read, false), [""; 0]);
    let envoy = erased(serde_json::json!({ "input": "envoy" }), &raw(), true);
    assert_eq!(
        envoy,
        [
            format!("{http}/body"),
            format!("{http}/rawBody"),
            "/input/parsed_body".to_owned(),
            "/input/truncated_body".to_owned(),
        ]
    );
}

#[test]
fn names_and_values_that_look_like_credentials_are_known() {
    for name in [
        "x-access-token",
        "token",
        "x-session",
        "x-my-secret",
        "x-password",
        "set-cookie2",
        "x-goog-iap-jwt-assertion",
        "x-functions-key",
        "x-auth",
        "signature",
        "x-apikey",
        "x-amz-security-token",
        "x-xsrf",
        "proxy-authorization-info",
    ] {
        assert!(is_secret(name, b"x"), "{name}");
    }
    for name in [
        "accept",
        "user-agent",
        "idempotency-key",
        "x-tenant",
        "x-forwarded-for",
        "if-none-match",
        "x-request-id",
        "sec-fetch-site",
        "traceparent",
        "x-keyboard",
        "x-author",
        "origin",
    ] {
        assert!(!is_secret(name, b"x"), "{name}");
    }
    for value in [&b"eyJhbGciOiJ"[..], b"Bearer x", b"bearer x", b"BASIC eDp4"] {
        assert!(is_secret("x-odd", value));
    }
    for value in [&b""[..], b"e", b"ey", b"Bearing", b"basics"] {
        assert!(!is_secret("x-odd", value));
    }
}

#[test]
fn what_is_the_same_for_a_connection_and_an_identity_is_written_once_and_right_for_each_client() {
    let raw = Raw {
        tls: 3,
        identity: Some("alice".into()),
        trusted: true,
        headers: vec![("x-forwarded-for".into(), b"2001:db8::9".to_vec())],
        ..raw()
    };
    let asked = raw.asked().unwrap();
    for _ in 0..2 {
        let told = asked.told(Kind::Portcullis, &WHOLE).unwrap();
        let document = asked.document(Kind::Portcullis).unwrap();
        assert_eq!(told.text, canonical(&document));
        assert!(
            told.text
                .contains(r#""address":"2001:db8::9","port":null,"tls":{"#)
        );
    }
    assert!(asked.request.conn.forwarded.input.get().is_some());
    assert!(asked.caller.identity().unwrap().told.input.get().is_some());
}

#[test]
fn values_of_a_query_are_masked() {
    let masked = |query| {
        let mut text = String::new();
        mask_query(query, &mut text);
        text
    };
    assert_eq!(masked("token=abc&x&&a=b=c&=s"), "token=*&*&&a=*&=*");
    assert_eq!(masked("é=ü&ö&"), "é=*&*&");
    assert_eq!(masked(""), "");
}

#[test]
fn a_name_that_is_not_looked_into_holds_nothing_secret() {
    for name in USUAL {
        assert!(!holds_secret(name), "{name}");
    }
    assert!(is_secret_name("x-session-id"));
}
