//! The plugin's document from requests, and what of it decisions are told apart by.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use http::{HeaderName, Request};
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};

use super::*;
use crate::authn::{Caller, Identity};
use crate::authz::cache::projection::{Part, Projection, Question};
use crate::authz::input::{Unreadable, Wanted};
use crate::authz::published::InputDocument;
use crate::authz::rego::{self, Outcome};
use crate::authz::source::reads::{self, Place, Reads, Step};
use crate::authz::{RouteFacts, input};
use crate::document::Value;
use crate::document::{at, from_json, member, object, text};
use crate::request::{ConnInfo, Excerpt, InboundRequest, RequestId, Rules, TlsInfo};
use crate::tls::{PeerCertificate, Sans};

const TOKEN: &str = "eyJhbGciOiJSUzI1NiJ9.eyJzdWIiOiJhbGljZSJ9.c2lnbmF0dXJl";

struct Asked {
    request: InboundRequest,
    labels: Value,
    caller: Caller,
}

impl Asked {
    fn ask<T>(&self, hidden: &[HeaderName], work: impl FnOnce(&Question<'_>) -> T) -> T {
        let params = [("id".into(), "42".to_owned())];
        let route = RouteFacts {
            name: &"read-order".into(),
            params: &params,
            labels: &self.labels,
        };
        work(&Question {
            request: &self.request,
            route: &route,
            identity: self.caller.identity(),
            hidden,
            reads_body: true,
        })
    }

    fn document(&self) -> Value {
        self.part(&Want::all()).unwrap()
    }

    fn part(&self, want: &Want) -> Result<Value, Unreadable> {
        self.ask(&[], |about| document(about, want))
    }

    fn bytes(&self, projection: &Projection) -> Vec<u8> {
        let mut bytes = Vec::new();
        let whole = self.ask(&[], |about| projection.write(about, usize::MAX, &mut bytes));
        assert_eq!(whole, Ok(true));
        bytes
    }
}

/// All of our own document, with the body.
fn with_bodies() -> Wanted {
    Wanted::by(&[Vec::new()], true)
}

fn now() -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::new(1_768_473_000, 123_000_000)
}

fn certificate(uri: &[&str], dns: &[&str]) -> PeerCertificate {
    let list = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
    PeerCertificate {
        subject: "CN=orders".to_owned(),
        issuer: "CN=Test CA".to_owned(),
        serial: "1f".to_owned(),
        sans: Sans {
            dns: list(dns),
            uri: list(uri),
            email: vec![],
            ip: vec![],
        },
        spiffe_id: uri.first().map(|uri| (*uri).to_owned()),
        sha256: "ab".repeat(32),
        not_before: SystemTime::UNIX_EPOCH,
        not_after: SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000),
    }
}

fn compact(value: &Value) -> String {
    serde_json::to_string(value).unwrap()
}

fn connection(tls: Option<TlsInfo>) -> Arc<ConnInfo> {
    Arc::new(ConnInfo {
        listener: "public".into(),
        peer: "192.0.2.7:40000".parse().unwrap(),
        local: "192.0.2.1:443".parse().unwrap(),
        tls,
        ambiguous_head: None,
        forwarded: Default::default(),
    })
}

fn tls(certificate: Option<PeerCertificate>) -> TlsInfo {
    TlsInfo {
        version: "TLSv1.3",
        server_name: Some("api.example.test".into()),
        peer_certificate: certificate.map(Arc::new),
        ..TlsInfo::default()
    }
}

fn parsed(
    conn: &Arc<ConnInfo>,
    build: impl FnOnce(http::request::Builder) -> http::request::Builder,
) -> InboundRequest {
    let request = build(Request::builder().header("host", "api.example.test"));
    let request = request.body(()).unwrap();
    InboundRequest::parse(conn, RequestId::random(), request, now(), &Rules::default())
        .unwrap()
        .0
}

fn with_body(mut request: InboundRequest, body: &[u8], whole: bool) -> InboundRequest {
    request.excerpt = Some(Arc::new(Excerpt {
        bytes: Bytes::copy_from_slice(body),
        whole,
    }));
    request
}

fn anonymous(request: InboundRequest) -> Asked {
    Asked {
        request,
        labels: Value::new_object(),
        caller: Caller::Anonymous,
    }
}

fn alice(claims: &str) -> Caller {
    let until = now() + Duration::from_secs(3600);
    let claims = from_json(claims.as_bytes()).unwrap();
    Caller::Known(Identity::for_tests("alice", claims, until))
}

#[test]
fn the_document_is_pinned() {
    let peer = certificate(&["spiffe://test/orders"], &["orders.test"]);
    let request = parsed(&connection(Some(tls(Some(peer)))), |request| {
        request
            .method("POST")
            .uri("/orders/a%20b?expand=items&expand=a+b")
            .header("accept", "application/json")
            .header("accept", "text/plain")
            .header("authorization", format!("bearer {TOKEN}"))
            .header("content-type", "application/json")
            .header("content-length", "13")
            .header("cookie", "session=secret")
            .header("x-api-key", "secret")
            .header("x-forwarded-for", "10.0.0.1")
            .header("x-request-id", "theirs")
    });
    let asked = Asked {
        request: with_body(request, br#"{"amount": 7}"#, true),
        labels: object([
            ("team", Value::from("orders")),
            ("level", Value::from(3u64)),
        ]),
        caller: alice(r#"{"role": "reader"}"#),
    };
    let found = asked.document();
    let mut json: serde_json::Value = serde_json::from_str(&found.to_json_str().unwrap()).unwrap();
    // The identity is authentication's, and pinned there.
    let filters = &mut json["attributes"]["metadataContext"]["filterMetadata"];
    assert_eq!(filters["portcullis"]["identity"]["subject"], "alice");
    filters["portcullis"]["identity"] = "IDENTITY".into();
    let expected = include_str!("../testdata/input-envoy.json");
    let expected = expected.replace("REQUEST-ID", asked.request.id.as_str());
    let expected: serde_json::Value = serde_json::from_str(&expected).unwrap();
    assert_eq!(json, expected, "{json:#}");
}

#[test]
fn no_credential_is_in_it_but_a_token_that_cannot_be_used() {
    let conn = connection(None);
    let of = |name: &str, value: &str| {
        let request = parsed(&conn, |request| request.uri("/").header(name, value));
        let found = anonymous(request).document();
        assert!(!found.to_json_str().unwrap().contains("c2lnbmF0dXJl"));
        let headers = at(&found, "attributes.request.http.headers")
            .unwrap()
            .clone();
        member(&headers, name)
            .and_then(text)
            .map(ToString::to_string)
    };
    let cut = "Bearer eyJhbGciOiJSUzI1NiJ9.eyJzdWIiOiJhbGljZSJ9.";
    let bearer = |token: &str| of("authorization", &format!("Bearer {token}"));
    assert_eq!(bearer(TOKEN).as_deref(), Some(cut));
    for (name, secret) in [
        ("authorization", "Basic c2lnbmF0dXJl"),
        ("authorization", "Bearer c2lnbmF0dXJl"),
        ("authorization", "Bearer a.c2lnbmF0dXJl"),
        ("authorization", "Bearer a.b.c.d.c2lnbmF0dXJl"),
        ("authorization", "Bearer a.b.c c2lnbmF0dXJl"),
        ("authorization", "DPoP a.b.c2lnbmF0dXJl"),
        ("cookie", "c2lnbmF0dXJl"),
        ("x-api-key", "c2lnbmF0dXJl"),
        ("proxy-authorization", "c2lnbmF0dXJl"),
    ] {
        let shown = of(name, secret);
        assert!(
            shown.is_none_or(|shown| shown == "Bearer a.b."),
            "{name}: {secret}"
        );
    }
    let hidden = [http::header::AUTHORIZATION];
    let request = parsed(&conn, |request| {
        request
            .uri("/")
            .header("authorization", format!("Bearer {TOKEN}"))
    });
    let found = anonymous(request).ask(&hidden, |about| document(about, &Want::all()));
    assert!(!compact(&found.unwrap()).contains("Bearer"));
}

#[test]
fn segments_are_split_before_they_are_decoded_and_the_root_has_one() {
    let path = |uri: &str| {
        let request = parsed(&connection(None), |request| request.uri(uri));
        at(&anonymous(request).document(), "parsed_path")
            .map(compact)
            .unwrap()
    };
    assert_eq!(path("/"), r#"[""]"#);
    assert_eq!(path("/a/b%20c"), r#"["a","b c"]"#);
    assert_eq!(path("/a/"), r#"["a",""]"#);
    assert_eq!(path("/a%2Fb/c"), r#"["a/b","c"]"#);
}

#[test]
fn the_principal_is_the_uri_else_the_name_else_the_subject() {
    let principal = |peer| {
        let request = parsed(&connection(Some(tls(peer))), |request| request.uri("/"));
        let found = anonymous(request).document();
        at(&found, "attributes.source.principal")
            .and_then(text)
            .map(ToString::to_string)
    };
    let both = certificate(&["spiffe://a/b"], &["orders.test"]);
    assert_eq!(principal(Some(both)).as_deref(), Some("spiffe://a/b"));
    let name = certificate(&[], &["orders.test"]);
    assert_eq!(principal(Some(name)).as_deref(), Some("orders.test"));
    assert_eq!(
        principal(Some(certificate(&[], &[]))).as_deref(),
        Some("CN=orders")
    );
    assert_eq!(principal(None), None);
}

fn body(kind: Option<&str>, body: &[u8], whole: bool) -> Result<String, Unreadable> {
    body_with(kind, None, body, whole)
}

fn body_with(
    kind: Option<&str>,
    encoding: Option<&str>,
    body: &[u8],
    whole: bool,
) -> Result<String, Unreadable> {
    let request = parsed(&connection(None), |mut request| {
        for kind in kind.into_iter().flat_map(|kind| kind.split('|')) {
            request = request.header("content-type", kind);
        }
        if let Some(encoding) = encoding {
            request = request.header("content-encoding", encoding);
        }
        request.method("POST").uri("/")
    });
    let asked = anonymous(with_body(request, body, whole));
    let found = asked.part(&Want::all())?;
    let parsed = at(&found, "parsed_body").map(compact).unwrap();
    let truncated = at(&found, "truncated_body").unwrap();
    assert_eq!(*truncated, Value::from(!whole));
    // Ours has the same.
    let ours = asked.ask(&[], |about| {
        input::document(about.request, about.route, None, &[], &with_bodies())
    })?;
    let same = at(&ours, "request.body").map(compact).unwrap();
    assert_eq!(same, parsed);
    assert_eq!(at(&ours, "request.body_truncated"), Some(truncated));
    Ok(parsed)
}

#[test]
fn bodies_are_parsed_by_their_type_in_one_way() {
    let json = Some("application/json; charset=utf-8");
    let form = Some("application/x-www-form-urlencoded");
    let parts = Some("multipart/form-data; boundary=foo");
    for (kind, text, expected) in [
        (json, r#"{"a": [1, "x"]}"#, r#"{"a":[1,"x"]}"#),
        (json, "true", "true"),
        (json, "null", "null"),
        (json, "", "null"),
        (Some("application/merge-patch+json"), "{}", "{}"),
        (Some("text/plain"), "{}", "null"),
        (None, "{}", "null"),
        (
            form,
            "a=1&b=x%20y&a=2&c",
            r#"{"a":["1","2"],"b":["x y"],"c":[""]}"#,
        ),
        (
            parts,
            "--foo\r\nContent-Disposition: form-data; name=\"a\"\r\nContent-Type: text/plain\r\n\r\nbar\r\n--foo\r\n\
             Content-Disposition: form-data; name=b\r\nContent-Type: application/json\r\n\r\n{\"n\": 1}\r\n--foo--\r\n",
            r#"{"a":["bar"],"b":[{"n":1}]}"#,
        ),
    ] {
        assert_eq!(
            body(kind, text.as_bytes(), true).as_deref(),
            Ok(expected),
            "{text}"
        );
    }
    assert_eq!(body(json, br#"{"a": 1"#, false).as_deref(), Ok("null"));
}

#[test]
fn a_body_that_two_could_read_differently_is_refused() {
    let json = Some("application/json");
    let form = Some("application/x-www-form-urlencoded");
    let parts = Some("multipart/form-data; boundary=foo");
    for (kind, text) in [
        (json, &b"{\"a\": 1, \"a\": 2}"[..]),
        (json, b"{\"a\": 1} x"),
        (json, b"{\"a\": 1"),
        (json, b"{'a': 1}"),
        (json, b"\xef\xbb\xbf{}"),
        (json, b"{\"a\": \"\xff\"}"),
        (json, b"{\"a\": 1e999}"),
        (Some("application/json|text/plain"), b"{}"),
        (Some("application/json, text/plain"), b"{}"),
        (form, b"a=%zz"),
        (form, b"a=1;b=2"),
        (form, b"a=%ff"),
        (Some("multipart/form-data"), b"--foo--"),
        (
            Some("multipart/form-data; boundary=foo; boundary=bar"),
            b"--foo--",
        ),
        (parts, b"x\r\n--foo--"),
        (parts, b"--foo\r\n\r\nbar\r\n--foo--"),
        (
            parts,
            b"--foo\r\nContent-Disposition: form-data; name=a; name=b\r\n\r\nx\r\n--foo--",
        ),
        (
            parts,
            b"--foo\r\nContent-Disposition: form-data; name=a; name*=b\r\n\r\nx\r\n--foo--",
        ),
        (
            parts,
            b"--foo\r\nContent-Disposition: form-data; name=\"a\\\"\"\r\n\r\nx\r\n--foo--",
        ),
        (
            parts,
            b"--foo\r\nContent-Disposition: form-data; name=a\r\n\r\nx",
        ),
        (
            parts,
            b"--foo\nContent-Disposition: form-data; name=a\n\nx\n--foo--",
        ),
    ] {
        let shown = String::from_utf8_lossy(text);
        let found = body(kind, text, true);
        assert!(
            matches!(found, Err(Unreadable::Body(_))),
            "{kind:?} {shown}: {found:?}"
        );
    }
    let deep = "[".repeat(100) + &"]".repeat(100);
    assert!(body(json, deep.as_bytes(), true).is_err());
    let wide = "a=1&".repeat(input::MAX_QUERY_PARAMETERS + 1);
    assert!(body(form, wide.as_bytes(), true).is_err());
    assert!(body_with(json, Some("gzip"), b"{}", true).is_err());
    assert!(body_with(json, Some("identity"), b"{}", true).is_ok());
    assert!(body_with(Some("image/png"), Some("gzip"), b"x", true).is_ok());
}

/// Requests that differ in one thing or two.
fn pool() -> Vec<Asked> {
    const FACETS: &[(&str, usize)] = &[
        ("method", 2),
        ("path", 4),
        ("query", 3),
        ("host", 2),
        ("version", 2),
        ("tls", 4),
        ("local", 2),
        ("peer", 2),
        ("headers", 4),
        ("caller", 4),
        ("token", 3),
        ("labels", 2),
        ("body", 5),
    ];
    // A token and who it is of belong together.
    let callers = [
        alice(r#"{"role": "admin"}"#),
        alice(r#"{"role": "guest"}"#),
        Caller::Anonymous,
        Caller::Anonymous,
    ];
    let mut choices: Vec<BTreeMap<&str, usize>> = vec![BTreeMap::new()];
    for (name, count) in FACETS {
        for value in 1..*count {
            choices.push(BTreeMap::from([(*name, value)]));
            for (other, count) in FACETS {
                if other != name {
                    choices.push(BTreeMap::from([(*name, value), (*other, count - 1)]));
                }
            }
        }
    }
    choices
        .iter()
        .map(|choice| asked(choice, &callers))
        .collect()
}

fn asked(choice: &BTreeMap<&str, usize>, callers: &[Caller]) -> Asked {
    let of = |facet: &str| choice.get(facet).copied().unwrap_or(0);
    let conn = Arc::new(ConnInfo {
        listener: "public".into(),
        peer: ["192.0.2.7:40000", "192.0.2.8:40001"][of("peer")]
            .parse()
            .unwrap(),
        local: ["192.0.2.1:443", "192.0.2.2:8443"][of("local")]
            .parse()
            .unwrap(),
        tls: match of("tls") {
            0 => Some(tls(Some(certificate(&["spiffe://a/b"], &[])))),
            1 => Some(tls(Some(certificate(&[], &["orders.test"])))),
            2 => Some(tls(None)),
            _ => None,
        },
        ambiguous_head: None,
        forwarded: Default::default(),
    });
    let path = ["/orders/1", "/orders/2", "/", "/orders/1/x"][of("path")];
    let query = ["", "?a=1", "?a=1&a=2&b=x"][of("query")];
    let caller = of("caller");
    // The token is the caller's, or nobody's.
    let token = match (caller, of("token")) {
        (0, _) => Some("Bearer aa.bb.cc"),
        (1, _) => Some("Bearer aa.cc.dd"),
        (_, 0) => None,
        (_, 1) => Some("Bearer xx.yy.zz"),
        _ => Some("Bearer xx.zz.zz"),
    };
    let mut request = Request::builder()
        .method(["GET", "POST"][of("method")])
        .uri(format!("{path}{query}"))
        .version([http::Version::HTTP_11, http::Version::HTTP_2][of("version")])
        .header("host", ["api.test", "other.test:8443"][of("host")]);
    if let Some(token) = token {
        request = request.header("authorization", token);
    }
    let headers: &[(&str, &str)] = match of("headers") {
        0 => &[("x-tenant", "x"), ("content-length", "13")],
        1 => &[("x-tenant", "y"), ("content-length", "13")],
        2 => &[("x-tenant", "x"), ("x-tenant", "y")],
        _ => &[("content-length", "14")],
    };
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let (kind, sent, whole): (&str, &[u8], bool) = match of("body") {
        0 => ("application/json", b"{\"amount\": 1}", true),
        1 => ("application/json", b"{\"amount\": 2}", true),
        2 => ("application/json", b"{\"amount\": 2", false),
        3 => ("text/plain", b"{\"amount\": 1}", true),
        _ => ("text/plain", b"\xff\xfe", true),
    };
    let request = request.header("content-type", kind).body(()).unwrap();
    let request = InboundRequest::parse(
        &conn,
        RequestId::random(),
        request,
        now(),
        &Rules::default(),
    );
    Asked {
        request: with_body(request.unwrap().0, sent, whole),
        labels: object([("team", Value::from(["red", "blue"][of("labels")]))]),
        caller: callers[caller].clone(),
    }
}

fn paths(value: &Value, path: &mut Vec<Step>, found: &mut BTreeSet<Vec<Step>>) {
    found.insert(path.clone());
    if let Ok(members) = value.as_object() {
        for (name, value) in members.iter() {
            path.push(Step::Name(text(name).unwrap().to_string()));
            paths(value, path, found);
            path.pop();
        }
        let mut nope = path.clone();
        nope.push(Step::Name("nope".to_owned()));
        found.insert(nope);
    }
    if let Ok(items) = value.as_array() {
        for (index, item) in items.iter().enumerate() {
            path.push(Step::Index(index));
            paths(item, path, found);
            path.pop();
        }
    }
}

fn follow<'v>(value: &'v Value, path: &[Step]) -> Option<&'v Value> {
    path.iter().try_fold(value, |value, step| match step {
        Step::Name(name) => member(value, name),
        Step::Index(index) => value.as_array().ok()?.get(*index),
    })
}

fn reads_of(paths: impl IntoIterator<Item = Vec<Step>>) -> Reads {
    let place = Place {
        file: String::new(),
        at: (1, 1),
    };
    Reads {
        paths: paths
            .into_iter()
            .map(|path| (path, place.clone()))
            .collect(),
        ..Reads::default()
    }
}

fn all_paths(pool: &[Asked]) -> (Vec<Value>, Vec<Vec<Step>>) {
    let documents: Vec<Value> = pool.iter().map(Asked::document).collect();
    let mut all = BTreeSet::new();
    for document in &documents {
        paths(document, &mut Vec::new(), &mut all);
    }
    (documents, all.into_iter().collect())
}

#[test]
fn what_is_written_of_a_request_tells_what_its_document_has_at_every_path() {
    let pool = pool();
    let (documents, all) = all_paths(&pool);
    let mut volatile = Vec::new();
    let mut missed = BTreeSet::new();
    let mut written = BTreeSet::new();
    for path in &all {
        let name: String = path.iter().map(ToString::to_string).collect();
        let reads = reads_of([path.clone()]);
        // Built narrowly, the document has the same there.
        let want = Want::by([path.as_slice()]);
        for (asked, whole) in pool.iter().zip(&documents) {
            let part = asked.part(&want).unwrap();
            assert_eq!(follow(&part, path), follow(whole, path), "{name}");
        }
        let found = Projection::of_document(&reads, &[], InputDocument::Envoy);
        let Ok(projection) = found else {
            volatile.push(name);
            continue;
        };
        let contradicts = |projection: &Projection| {
            let mut seen: HashMap<Vec<u8>, usize> = HashMap::new();
            pool.iter().enumerate().find_map(|(index, asked)| {
                let first = *seen.entry(asked.bytes(projection)).or_insert(index);
                let same = follow(&documents[first], path) == follow(&documents[index], path);
                (!same).then_some((first, index))
            })
        };
        assert_eq!(contradicts(&projection), None, "{name}");
        for part in projection.parts() {
            written.insert(part.clone());
            if contradicts(&projection.without(part)).is_some() {
                missed.insert(part.clone());
            }
        }
    }
    assert_eq!(
        volatile,
        [
            "",
            ".attributes",
            ".attributes.request",
            ".attributes.request.http",
            ".attributes.request.http.headers",
            ".attributes.request.http.headers.x-request-id",
            ".attributes.request.http.id",
            ".attributes.request.time",
        ]
    );
    assert!(written.len() > 25, "{written:?}");
    // What no request of the pool differs in, or no document has.
    let dull = |part: &Part| {
        let text = format!("{part:?}");
        [
            "nope",
            "signals",
            "params",
            "\"name\"",
            "sni",
            "x-forwarded-proto",
        ]
        .iter()
        .any(|dull| text.contains(dull))
    };
    let never: Vec<_> = written
        .difference(&missed)
        .filter(|part| !dull(part))
        .collect();
    assert!(never.is_empty(), "nobody would miss {never:?}");
}

/// `input` and this path in Rego.
fn term(path: &[Step]) -> String {
    path.iter()
        .fold("input".to_owned(), |text, step| match step {
            Step::Name(name) => format!("{text}[{}]", serde_json::to_string(name).unwrap()),
            Step::Index(index) => format!("{text}[{index}]"),
        })
}

/// Policies of random rules over random paths: a question of equal bytes is answered equally, and
/// what is seen through the narrow document is what is seen through the whole one.
#[test]
fn equal_questions_have_equal_answers() {
    let pool = pool();
    let (documents, all) = all_paths(&pool);
    let mut rng = StdRng::seed_from_u64(7);
    let mut kept = 0;
    for _ in 0..60 {
        let mut rules = String::from("package p\nallow := {\"a\": [x | some x in a], \"b\": b}\n");
        for _ in 0..rng.random_range(1..4) {
            let (one, other) = (all.choose(&mut rng).unwrap(), all.choose(&mut rng).unwrap());
            let value = follow(documents.choose(&mut rng).unwrap(), other);
            let literal = value.map_or("1".to_owned(), |value| value.to_json_str().unwrap());
            rules.push_str(&match rng.random_range(0..4) {
                0 => format!("a contains {}\n", term(one)),
                1 => format!("a contains 1 if {} == {literal}\n", term(other)),
                2 => format!("a contains 2 if not {}\n", term(one)),
                _ => format!("a contains 3 if {} == {}\n", term(one), term(other)),
            });
        }
        rules.push_str("default b := false\nb if input.parsed_path[0] == \"orders\"\n");
        let source = [("p.rego".to_owned(), rules.clone())];
        let engine = rego::parse(&source, &Value::new_object()).unwrap();
        let mut engine = engine;
        let reads = reads::of(engine.get_modules(), "data.p.allow");
        let want = Want::by(reads.paths.keys().map(Vec::as_slice));
        let Ok(projection) = Projection::of_document(&reads, &[], InputDocument::Envoy) else {
            continue;
        };
        kept += 1;
        let mut answers: HashMap<Vec<u8>, Outcome> = HashMap::new();
        for (asked, whole) in pool.iter().zip(&documents).step_by(3) {
            let fresh = rego::evaluate(&mut engine, whole.clone(), "data.p.allow");
            let part = asked.part(&want).unwrap();
            let narrow = rego::evaluate(&mut engine, part, "data.p.allow");
            assert_eq!(fresh, narrow, "{rules}");
            let known = answers
                .entry(asked.bytes(&projection))
                .or_insert(fresh.clone());
            assert_eq!(*known, fresh, "{rules}");
        }
    }
    assert!(kept > 30, "{kept}");
}

/// What a schema says of a value: enough of JSON Schema for ours.
fn check(schema: &serde_json::Value, value: &serde_json::Value, at: &str, flaws: &mut Vec<String>) {
    use serde_json::Value as Json;
    let kinds: Vec<&str> = match &schema["type"] {
        Json::String(kind) => vec![kind],
        Json::Array(kinds) => kinds.iter().filter_map(Json::as_str).collect(),
        Json::Null | Json::Bool(_) | Json::Number(_) | Json::Object(_) => Vec::new(),
    };
    let kind = match value {
        Json::Null => "null",
        Json::Bool(_) => "boolean",
        Json::Number(number) if number.is_f64() => "number",
        Json::Number(_) => "integer",
        Json::String(_) => "string",
        Json::Array(_) => "array",
        Json::Object(_) => "object",
    };
    if !kinds.is_empty() && !kinds.contains(&kind) {
        flaws.push(format!("{at} is {kind}"));
    }
    if let Some(allowed) = schema["enum"].as_array()
        && !allowed.contains(value)
    {
        flaws.push(format!("{at} is {value}"));
    }
    if let Some(items) = value.as_array() {
        for item in items {
            check(&schema["items"], item, &format!("{at}[]"), flaws);
        }
    }
    let Some(members) = value.as_object() else {
        return;
    };
    for name in schema["required"].as_array().into_iter().flatten() {
        if !members.contains_key(name.as_str().unwrap()) {
            flaws.push(format!("{at}.{name} is absent"));
        }
    }
    for (name, value) in members {
        let at = format!("{at}.{name}");
        match (
            schema["properties"].get(name),
            schema.get("additionalProperties"),
        ) {
            (Some(schema), _) => check(schema, value, &at, flaws),
            (None, Some(Json::Bool(false))) => flaws.push(format!("{at} is not known")),
            (None, Some(schema)) => check(schema, value, &at, flaws),
            (None, None) => {}
        }
    }
}

#[test]
fn documents_are_what_their_schemas_say() {
    let mut flaws = Vec::new();
    for document in InputDocument::ALL {
        check(
            document.schema(),
            document.example().unwrap(),
            document.name(),
            &mut flaws,
        );
    }
    let json = |value: &Value| -> serde_json::Value {
        serde_json::from_str(&value.to_json_str().unwrap()).unwrap()
    };
    for asked in pool() {
        let found = json(&asked.document());
        check(InputDocument::Envoy.schema(), &found, "envoy", &mut flaws);
        let ours = asked.ask(&[], |about| {
            input::document(about.request, about.route, None, &[], &with_bodies())
        });
        check(
            InputDocument::Portcullis.schema(),
            &json(&ours.unwrap()),
            "ours",
            &mut flaws,
        );
    }
    flaws.sort();
    flaws.dedup();
    assert!(flaws.is_empty(), "{flaws:#?}");
    // The check itself can fail.
    check(
        InputDocument::Envoy.schema(),
        &serde_json::json!({"attributes": 1, "x": 1}),
        "envoy",
        &mut flaws,
    );
    assert!(flaws.len() >= 5, "{flaws:?}");
}
