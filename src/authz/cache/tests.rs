//! An answer given again is the answer that the policy would give.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::num::NonZeroU64;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use http::{HeaderName, Request};
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};
use regorus::unstable::BUILTINS;

use crate::authn::{Caller, Identity};
use crate::authz::Sees;
use crate::authz::cache::projection::{Part, Projection, Question};
use crate::authz::cache::{Answer, Answers, Bounds, MAX_QUESTION};
use crate::authz::input::Wanted;
use crate::authz::rego::{self, Limits, Machine, Outcome, Program};
use crate::authz::source::reads::{self, Place, Reads, Step};
use crate::authz::{
    Advice, BuiltinErrors, Compiled, DecidedBy, Decision, Machines, Policy, Reason, RouteFacts,
    Rules, answer, input,
};
use crate::document::{self, Value, from_json, object};
use crate::metrics::Metrics;
use crate::request::{ConnInfo, InboundRequest, RequestId, Rules as ReadingRules, TlsInfo};
use crate::tls::{PeerCertificate, Sans};

const LIMITS: Limits = Limits {
    time: Duration::from_secs(5),
    instructions: 1_000_000,
    memory: NonZeroU64::MAX,
};

const NOW: Duration = Duration::from_secs(1_768_473_000);

fn now() -> SystemTime {
    SystemTime::UNIX_EPOCH + NOW
}

/// One request of a pool, with what the gateway knows beside it.
struct Asked {
    request: InboundRequest,
    route: Arc<str>,
    params: Vec<(Arc<str>, String)>,
    labels: Value,
    caller: Caller,
}

impl Asked {
    fn facts(&self) -> RouteFacts<'_> {
        RouteFacts {
            name: &self.route,
            params: &self.params,
            labels: &self.labels,
        }
    }

    fn ask<T>(&self, hidden: &[HeaderName], work: impl FnOnce(&Question<'_>) -> T) -> T {
        let route = self.facts();
        work(&Question {
            request: &self.request,
            route: &route,
            identity: self.caller.identity(),
            hidden,
            reads_body: true,
        })
    }

    fn document(&self, hidden: &[HeaderName]) -> Value {
        self.part(hidden, &Wanted::all())
    }

    fn part(&self, hidden: &[HeaderName], wanted: &Wanted) -> Value {
        let identity = self.caller.identity().map(|identity| identity.document());
        input::document(&self.request, &self.facts(), identity, hidden, wanted).unwrap()
    }

    fn bytes(&self, projection: &Projection) -> Vec<u8> {
        let mut bytes = Vec::new();
        let whole = self.ask(&[], |question| {
            projection.write(question, usize::MAX, &mut bytes)
        });
        assert_eq!(whole, Ok(true));
        bytes
    }
}

/// What a pool's requests differ in: each facet has a usual value, first, and others.
const FACETS: &[(&str, usize)] = &[
    ("method", 3),
    ("path", 5),
    ("query", 5),
    ("host", 2),
    ("headers", 6),
    ("tls", 7),
    ("peer", 3),
    ("identity", 5),
    ("route", 2),
    ("params", 4),
    ("labels", 3),
    ("version", 2),
];

fn certificate(which: usize) -> PeerCertificate {
    let other = which > 0;
    let pick = |one: &str, another: &str| if other { another } else { one }.to_owned();
    PeerCertificate {
        subject: pick("CN=orders", "CN=admin"),
        issuer: pick("CN=Test CA", "CN=Other CA"),
        serial: pick("1f", "2f"),
        sans: Sans {
            dns: vec![pick("orders.test", "admin.test")],
            uri: vec![],
            email: vec![],
            ip: vec!["192.0.2.9".parse().unwrap()],
        },
        spiffe_id: (which == 1).then(|| "spiffe://test/admin".to_owned()),
        sha256: pick("ab", "cd").repeat(32),
        not_before: SystemTime::UNIX_EPOCH,
        not_after: SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000),
    }
}

/// Tokens are made once: the same credential is the same object.
fn callers() -> Vec<Caller> {
    let token = |subject: &str, claims: &str| {
        let until = now() + Duration::from_secs(3600);
        let claims = from_json(claims.as_bytes()).unwrap();
        Caller::Known(Identity::for_tests(subject, claims, until))
    };
    vec![
        token("alice", r#"{"scope": "a b", "tenant": "x"}"#),
        Caller::Anonymous,
        token("bob", r#"{"scope": "a b", "tenant": "x"}"#),
        token("alice", r#"{"scope": "a", "tenant": "x"}"#),
        token("alice", r#"{"scope": "a b", "tenant": "y", "level": 3}"#),
    ]
}

fn asked(choice: &BTreeMap<&str, usize>, callers: &[Caller]) -> Asked {
    let of = |facet: &str| choice.get(facet).copied().unwrap_or(0);
    let tls = |server_name: Option<&str>, peer: Option<PeerCertificate>, version| {
        Some(TlsInfo {
            version,
            server_name: server_name.map(Arc::from),
            peer_certificate: peer.map(Arc::new),
            ..TlsInfo::default()
        })
    };
    let tls = match of("tls") {
        0 => tls(Some("api.test"), Some(certificate(0)), "TLSv1.3"),
        1 => tls(Some("api.test"), Some(certificate(0)), "TLSv1.2"),
        2 => tls(Some("other.test"), Some(certificate(0)), "TLSv1.3"),
        3 => tls(None, Some(certificate(0)), "TLSv1.3"),
        4 => tls(Some("api.test"), None, "TLSv1.3"),
        5 => tls(Some("api.test"), Some(certificate(1)), "TLSv1.3"),
        _ => None,
    };
    let conn = Arc::new(ConnInfo {
        listener: "public".into(),
        peer: ["192.0.2.7:40000", "192.0.2.8:40000", "192.0.2.7:40001"][of("peer")]
            .parse()
            .unwrap(),
        local: "192.0.2.1:443".parse().unwrap(),
        tls,
        ambiguous_head: None,
        forwarded: Default::default(),
    });
    let path = ["/x/1", "/x/2", "/y/1", "/", "/x/1/z%20z"][of("path")];
    let query = ["", "?a=1", "?a=2&b=1", "?a=1&a=%31&c=+", "?b=1"][of("query")];
    let mut request = Request::builder()
        .method(["GET", "POST", "PUT"][of("method")])
        .uri(format!("{path}{query}"))
        .version([http::Version::HTTP_11, http::Version::HTTP_2][of("version")])
        .header("host", ["api.test", "other.test"][of("host")])
        .header("authorization", "Bearer secret");
    let headers: &[(&str, &[u8])] = match of("headers") {
        0 => &[("x-tenant", b"x"), ("x-level", b"1")],
        1 => &[("x-tenant", b"y"), ("x-level", b"1")],
        2 => &[("x-level", b"1")],
        3 => &[("x-tenant", b"x"), ("x-tenant", b"y"), ("x-level", b"1")],
        4 => &[("x-tenant", b"x\xff"), ("x-level", b"1")],
        _ => &[("x-tenant", b"x"), ("x-level", b"2")],
    };
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let (request, ()) = InboundRequest::parse(
        &conn,
        RequestId::random(),
        request.body(()).unwrap(),
        now(),
        &ReadingRules::default(),
    )
    .unwrap();
    let params: &[(&str, &str)] = [
        &[("id", "1"), ("sub", "x")][..],
        &[("id", "2"), ("sub", "x")],
        &[("id", "1")],
        &[],
    ][of("params")];
    Asked {
        request,
        route: ["read", "write"][of("route")].into(),
        params: params
            .iter()
            .map(|(name, value)| ((*name).into(), (*value).to_owned()))
            .collect(),
        labels: match of("labels") {
            0 => object([("team", Value::from("x")), ("action", Value::from("read"))]),
            1 => object([("team", Value::from("y")), ("action", Value::from("read"))]),
            _ => object([("action", Value::from("write"))]),
        },
        caller: callers[of("identity")].clone(),
    }
}

/// The usual request, those that differ from it in one facet, and some that differ in several.
fn pool() -> Vec<Asked> {
    let callers = callers();
    let mut choices = vec![BTreeMap::new()];
    for (facet, values) in FACETS {
        choices.extend((1..*values).map(|value| BTreeMap::from([(*facet, value)])));
    }
    let mut rng = StdRng::seed_from_u64(1);
    for _ in 0..10 {
        let several: Vec<_> = FACETS.choose_multiple(&mut rng, 3).collect();
        choices.push(
            several
                .into_iter()
                .map(|(facet, values)| (*facet, rng.random_range(0..*values)))
                .collect(),
        );
    }
    choices.iter().map(|c| asked(c, &callers)).collect()
}

/// Paths of `input`, each with how it is asked for.
const TERMS: &[&str] = &[
    "input.request.method",
    "input.request.scheme",
    "input.request.host",
    "input.request.path",
    "input.request.segments",
    "input.request.segments[0]",
    "input.request.segments[1]",
    "input.request.query",
    "input.request.query.a",
    "input.request.query.a[0]",
    "input.request.query.b",
    "input.request.headers",
    "input.request.headers[\"x-tenant\"]",
    "input.request.headers[\"x-level\"]",
    "input.request.protocol",
    "input.source",
    "input.source.address",
    "input.source.port",
    "input.source.tls",
    "input.source.tls.version",
    "input.source.tls.sni",
    "input.source.tls.client_certificate",
    "input.source.tls.client_certificate.subject",
    "input.source.tls.client_certificate.issuer",
    "input.source.tls.client_certificate.serial",
    "input.source.tls.client_certificate.spiffe_id",
    "input.source.tls.client_certificate.sha256",
    "input.source.tls.client_certificate.sans.dns[0]",
    "input.identity",
    "input.identity.subject",
    "input.identity.scopes",
    "input.identity.claims.tenant",
    "input.identity.claims.level",
    "input.route",
    "input.route.name",
    "input.route.params",
    "input.route.params.id",
    "input.route.params.sub",
    "input.route.labels",
    "input.route.labels.team",
    "input.route.labels.action",
    "input.version",
    "input.signals.device.known",
    "input.nope",
];

/// Writes policies that read the request in every way there is.
struct Writer {
    rng: StdRng,
    helpers: Vec<String>,
}

impl Writer {
    fn new(seed: u64) -> Self {
        Self {
            rng: StdRng::seed_from_u64(seed),
            helpers: Vec::new(),
        }
    }

    /// A path, named in one of the ways in which a policy can name it.
    fn term(&mut self) -> String {
        let path = *TERMS.choose(&mut self.rng).unwrap();
        self.naming(path)
    }

    fn naming(&mut self, path: &str) -> String {
        let n = self.helpers.len();
        match self.rng.random_range(0..9) {
            0 => path.replace("input.request.", "req."),
            1 => path.replace("input.", "input[\"").replacen('.', "\"].", 1),
            2 => {
                self.helpers.push(format!("h{n} := {path}"));
                format!("h{n}")
            }
            3 => {
                self.helpers.push(format!("h{n} := {path}"));
                format!("data.p.h{n}")
            }
            4 => {
                self.helpers.push(format!("f{n}(x) := x"));
                format!("f{n}({path})")
            }
            5 => {
                self.helpers.push(format!("f{n}(x) := {path} if x"));
                format!("data.p.f{n}(true)")
            }
            6 => format!("[v | v := {path}][0]"),
            7 => {
                self.helpers
                    .push(format!("s{n} contains v if {{ v := {path} }}"));
                format!("s{n}")
            }
            _ => path.to_owned(),
        }
    }

    fn word(&mut self) -> &'static str {
        [
            "\"x\"", "\"y\"", "\"1\"", "\"GET\"", "\"read\"", "\"a\"", "1", "[\"1\"]", "null",
            "40000",
        ]
        .choose(&mut self.rng)
        .unwrap()
    }

    fn condition(&mut self) -> String {
        let (term, other, word) = (self.term(), self.term(), self.word());
        match self.rng.random_range(0..12) {
            0 | 1 => format!("{term} == {word}"),
            2 => format!("{term} != {word}"),
            3 => format!("not {term}"),
            4 => format!("{term} == {other}"),
            5 => format!("some v in {term}; v != {word}"),
            6 => format!("some k, v in {term}; k != v"),
            7 => format!("every v in {term} {{ v != {word} }}"),
            8 => format!("count({{v | some v in {term}}}) > 1"),
            9 => format!("x := {term}; x != {word}"),
            10 => format!("object.get(input.request.headers, \"x-tenant\", {other}) == {word}"),
            _ => {
                let n = self.helpers.len();
                self.helpers.push(format!("w{n} if {term} == {word}"));
                format!("w{n} with input.request.method as {other}")
            }
        }
    }

    fn policy(&mut self) -> String {
        let mut rules = Vec::new();
        for _ in 0..self.rng.random_range(1..3) {
            let conditions: Vec<String> = (0..self.rng.random_range(1..3))
                .map(|_| self.condition())
                .collect();
            rules.push(format!("ok if {{\n  {}\n}}", conditions.join("\n  ")));
        }
        let shown = self.term();
        rules.push(format!(
            "allow := {{\"allow\": true, \"headers\": {{\"x-v\": sprintf(\"%v\", [{shown}])}}}} if ok"
        ));
        rules.push("default allow := false".to_owned());
        // Not reached, and so no reason to ask anew.
        rules.push("idle if input.request.id".to_owned());
        rules.append(&mut self.helpers);
        format!(
            "package p\nimport input.request as req\n{}\n",
            rules.join("\n")
        )
    }
}

fn parsed(text: &str) -> Option<regorus::Engine> {
    rego::parse(
        &[("p.rego".to_owned(), text.to_owned())],
        &Value::new_object(),
    )
    .ok()
}

fn reads_of(text: &str) -> Reads {
    reads::of(parsed(text).unwrap().get_modules(), "data.p.allow")
}

/// A policy over a pool: what each request is answered afresh, by what the analysis found of it.
struct Trial {
    text: String,
    projection: Projection,
    fresh: Vec<Outcome>,
}

impl Trial {
    /// `None` for what is no Rego, or is not kept.
    fn of(text: String, pool: &[Asked]) -> Option<Self> {
        let mut engine = parsed(&text)?;
        let reads = reads::of(engine.get_modules(), "data.p.allow");
        let program = Program::interpreted(engine, "data.p.allow", LIMITS).ok()?;
        let run = |input: Value| Machine::new(&program).unwrap().run(input);
        let wanted = reads.wanted();
        let mut fresh = Vec::new();
        for asked in pool {
            let whole = run(asked.document(&[]));
            let part = run(asked.part(&[], &wanted));
            let errors = matches!((&whole, &part), (Outcome::Error(_), Outcome::Error(_)));
            assert!(
                errors || whole == part,
                "{whole:?}, {part:?} in part\n{text}"
            );
            fresh.push(whole);
        }
        let projection = Projection::of(&reads, &[]).ok()?;
        Some(Self {
            text,
            projection,
            fresh,
        })
    }

    /// Two requests that are the same question to this projection, and are answered differently.
    fn contradiction(&self, projection: &Projection, pool: &[Asked]) -> Option<(usize, usize)> {
        let mut answers: HashMap<Vec<u8>, usize> = HashMap::new();
        pool.iter().enumerate().find_map(|(index, asked)| {
            let first = *answers.entry(asked.bytes(projection)).or_insert(index);
            let same = match (&self.fresh[first], &self.fresh[index]) {
                // Errors are not kept, and their words may name a value.
                (Outcome::Error(_), Outcome::Error(_)) => true,
                (one, other) => one == other,
            };
            (!same).then_some((first, index))
        })
    }
}

fn trials(pool: &[Asked]) -> Vec<Trial> {
    let count: u64 = std::env::var("PORTCULLIS_POLICIES")
        .ok()
        .and_then(|count| count.parse().ok())
        .unwrap_or(120);
    let shown = TERMS.iter().enumerate().map(|(seed, term)| {
        let mut writer = Writer::new(u64::try_from(seed).unwrap());
        let term = writer.naming(term);
        format!(
            "package p\nimport input.request as req\nallow := {{\"v\": {term}}}\n{}\n",
            writer.helpers.join("\n")
        )
    });
    shown
        .chain((0..count).map(|seed| Writer::new(seed).policy()))
        .filter_map(|text| Trial::of(text, pool))
        .collect()
}

/// `PORTCULLIS_POLICIES` asks for more policies than a test run has time for.
#[test]
fn equal_questions_have_equal_answers_and_no_part_of_a_question_can_be_left_out() {
    let pool = pool();
    let trials = trials(&pool);
    let mut read: BTreeSet<&Part> = BTreeSet::new();
    let mut missed: BTreeSet<&Part> = BTreeSet::new();
    for trial in &trials {
        if let Some((one, other)) = trial.contradiction(&trial.projection, &pool) {
            panic!(
                "{:?}\n{} is {:?} and {} is {:?}\n{}",
                trial.projection,
                pool[one].document(&[]),
                trial.fresh[one],
                pool[other].document(&[]),
                trial.fresh[other],
                trial.text
            );
        }
        for part in trial.projection.parts() {
            read.insert(part);
            if !missed.contains(part) {
                let blind = trial.projection.without(part);
                if trial.contradiction(&blind, &pool).is_some() {
                    missed.insert(part);
                }
            }
        }
    }
    println!("{} policies, {} parts", trials.len(), read.len());
    assert!(
        trials.len() > 100,
        "only {} policies are kept",
        trials.len()
    );
    assert!(read.len() > 30, "{read:?}");
    // The same scheme for all: the pool's requests come over TLS or not, and it follows that.
    let never: Vec<_> = read.difference(&missed).collect();
    assert!(never.is_empty(), "nobody would miss {never:?}");
}

/// Every path of a document, with those of names that it does not have.
fn paths(value: &Value, path: &mut Vec<Step>, found: &mut Vec<Vec<Step>>) {
    found.push(path.clone());
    if let Ok(members) = value.as_object() {
        let names = members.iter().map(|(name, value)| {
            let name: &str = document::text(name).unwrap();
            (name.to_owned(), value.clone())
        });
        for (name, value) in names.chain([("nope".to_owned(), Value::Null)]) {
            path.push(Step::Name(name));
            paths(&value, path, found);
            path.pop();
        }
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
        Step::Name(name) => document::member(value, name),
        Step::Index(index) => value.as_array().ok()?.get(*index),
    })
}

/// For each path of the documents of a pool: requests whose documents differ there are different
/// questions to a policy that reads it, and what is written for a leaf is what the document has.
#[test]
fn what_is_written_of_a_request_tells_what_its_document_has_at_every_path() {
    let pool = pool();
    let documents: Vec<Value> = pool.iter().map(|asked| asked.document(&[])).collect();
    let mut all = Vec::new();
    for document in &documents {
        paths(document, &mut Vec::new(), &mut all);
    }
    all.sort();
    all.dedup();
    let mut volatile = BTreeSet::new();
    for path in &all {
        let name: String = path.iter().map(ToString::to_string).collect();
        let reads = Reads {
            paths: BTreeMap::from([(
                path.clone(),
                Place {
                    file: String::new(),
                    at: (1, 1),
                },
            )]),
            impure: None,
            timing: crate::authz::source::times::Timing::default(),
        };
        let Ok(projection) = Projection::of(&reads, &[]) else {
            volatile.insert(name);
            continue;
        };
        let mut seen: HashMap<Vec<u8>, usize> = HashMap::new();
        for (index, asked) in pool.iter().enumerate() {
            let bytes = asked.bytes(&projection);
            let value = follow(&documents[index], path);
            let first = *seen.entry(bytes.clone()).or_insert(index);
            assert_eq!(follow(&documents[first], path), value, "{name}");
            // The texts of the request are written as they are.
            if let (Some(Value::String(text)), [_]) = (value, projection.parts())
                && !name.starts_with(".identity")
            {
                let text = text.as_bytes();
                assert!(bytes.windows(text.len()).any(|at| at == text), "{name}");
            }
        }
    }
    let volatile: Vec<&str> = volatile.iter().map(String::as_str).collect();
    let expected = [
        "",
        ".request",
        ".request.id",
        ".request.received_at",
        ".request.received_at_ns",
    ];
    assert_eq!(volatile, expected);
}

#[test]
fn leaves_are_written_exactly_as_the_value_in_the_document_is() {
    let text_of = |value: &Value| object([("labels", value.clone())]);
    // A label is written by the general writer: the same value gives the same bytes as the reader
    // that goes to the request.
    for (asked, document) in pool().iter().map(|asked| (asked, asked.document(&[]))) {
        // Written with what is around it: the elements of a list.
        let coarse = ["identity", "query.a[0]", "sans.dns[0]"];
        let exact = |term: &&&str| !coarse.iter().any(|part| term.contains(part));
        for term in TERMS.iter().filter(exact) {
            let reads = reads_of(&format!("package p\nallow := {term}"));
            let projection = Projection::of(&reads, &[]).unwrap();
            let [_] = projection.parts() else { continue };
            let [path] = &reads.paths.keys().collect::<Vec<_>>()[..] else {
                panic!("{term}")
            };
            let value = follow(&document, path).cloned();
            let as_label = Asked {
                labels: value.as_ref().map_or(Value::new_object(), text_of),
                request: asked_again(asked),
                route: "read".into(),
                params: Vec::new(),
                caller: Caller::Anonymous,
            };
            let general = Projection::of(
                &reads_of("package p\nallow := input.route.labels.labels"),
                &[],
            );
            assert_eq!(
                asked.bytes(&projection),
                as_label.bytes(&general.unwrap()),
                "{term}: {value:?}"
            );
        }
    }
}

/// Any request: what matters are its labels.
fn asked_again(_: &Asked) -> InboundRequest {
    asked(&BTreeMap::new(), &callers()).request
}

fn place_of(text: &str) -> Result<Vec<Part>, String> {
    Projection::of(&reads_of(text), &[])
        .map(|projection| projection.parts().to_vec())
        .map_err(|volatile| format!("{}:{}", volatile.place.at.0, volatile.what))
}

#[test]
fn a_policy_that_reads_what_differs_in_every_request_is_not_kept_and_says_where() {
    for (rules, what) in [
        ("allow if input.request.id", "2:`input.request.id`"),
        (
            "allow if input.request.received_at_ns % 2 > 0",
            "2:`input.request.received_at_ns`",
        ),
        ("allow if f(input)\nf(x) := x.request", "2:`input`"),
        ("allow if { x := input; x.version }", "2:`input`"),
        ("allow if { some k; input[k] }", "2:`input`"),
        ("allow if input.request[data.which]", "2:`input.request`"),
        (
            "allow if ok\nok if input[\"request\"].id",
            "3:`input.request.id`",
        ),
        (
            "allow if ok with input.version as input.request.id\nok if true",
            "2:`input.request.id`",
        ),
        (
            "allow if count([1 | data.p[x]]) > 0\nok if input.request.id",
            "3:`input.request.id`",
        ),
        ("allow if time.now_ns() % 2 > 0", "2:`time.now_ns`"),
        ("allow if rand.intn(\"x\", 2) == 1", "2:`rand.intn`"),
        ("allow if unheard.of(1)", "2:`unheard.of`"),
        (
            "allow if f(1) with f as rand.intn\nf(x) := x",
            "2:`rand.intn`",
        ),
        (
            "ok contains input.request.id\nallow if \"x\" in ok",
            "2:`input.request.id`",
        ),
        (
            "f(input.request.id) := 1\nallow if f(1)",
            "2:`input.request.id`",
        ),
        (
            "o[input.request.id] := 1\nallow if o.x",
            "2:`input.request.id`",
        ),
        (
            "default allow := false\nallow := true if false else := true if input.request.id",
            "3:`input.request.id`",
        ),
    ] {
        let found = place_of(&format!("package p\n{rules}\n"));
        assert_eq!(found, Err(what.to_owned()), "{rules}");
    }
    let aliased = "package p\nimport input.request as r\nallow if r.id";
    assert_eq!(place_of(aliased), Err("3:`input.request.id`".to_owned()));
    // A variable of the same name does not hide the import.
    let hidden = "package p\nimport input.request as r\nallow if { some r in [{}]; r.id }";
    assert_eq!(place_of(hidden), Err("3:`input.request`".to_owned()));
}

#[test]
fn what_no_document_has_and_what_is_hidden_is_no_part_of_a_question() {
    for term in [
        "input.nope",
        "input.version",
        "input.signals.device.known",
        "input.request.headers.authorization",
        "input.request.headers[\"X-Upper\"]",
        "input.request.nope.id",
    ] {
        let found = place_of(&format!("package p\nallow if {term}"));
        assert_eq!(found, Ok(Vec::new()), "{term}");
    }
    let reads = reads_of("package p\nallow if input.request.headers[\"x-tenant\"]");
    let hidden = [HeaderName::from_static("x-tenant")];
    assert!(Projection::of(&reads, &hidden).unwrap().parts().is_empty());
}

#[test]
fn of_the_document_only_what_a_policy_can_read_is_made() {
    let usual = asked(&BTreeMap::new(), &callers());
    let made = |rules: &str| {
        let wanted = reads_of(&format!("package p\n{rules}")).wanted();
        usual.part(&[], &wanted).to_json_str().unwrap()
    };
    for (rules, document) in [
        ("allow := true", r#"{}"#),
        (
            "allow if input.request.method",
            r#"{"request":{"method":"GET"}}"#,
        ),
        (
            "allow if input.request.headers[\"x-tenant\"] == input.route.labels.team",
            r#"{"request":{"headers":{"x-tenant":"x"}},"route":{"labels":{"action":"read","team":"x"}}}"#,
        ),
        (
            "allow if input.request.segments[1]",
            r#"{"request":{"segments":["x","1"]}}"#,
        ),
        ("allow if input.source.nope", r#"{"source":{}}"#),
        (
            "allow if input.request.headers.authorization",
            r#"{"request":{"headers":{}}}"#,
        ),
    ] {
        let plain: serde_json::Value = serde_json::from_str(&made(rules)).unwrap();
        assert_eq!(plain.to_string(), document, "{rules}");
    }
    for rules in [
        "allow if count(input) == 1",
        "allow if input[\"x\"] == input",
    ] {
        assert_eq!(
            made(rules),
            usual.document(&[]).to_json_str().unwrap(),
            "{rules}"
        );
    }
}

#[test]
fn every_builtin_of_the_engine_is_known_to_be_pure_or_not() {
    let impure: Vec<&str> = BUILTINS
        .keys()
        .copied()
        // In the middle of an expression it does not load.
        .filter(|name| *name != "walk")
        .filter(|name| place_of(&format!("package p\nallow if {name}(1)")).is_err())
        .filter(|name| !name.starts_with("__"))
        .collect::<BTreeSet<_>>()
        .into_iter()
        .collect();
    assert_eq!(
        impure,
        [
            "http.send",
            "rand.intn",
            "test.sleep",
            "time.now_ns",
            "trace",
            "uuid.rfc4122"
        ]
        .into_iter()
        .filter(|name| BUILTINS.contains_key(name))
        .collect::<Vec<_>>()
    );
}

// ---- what is kept

fn bounds(entries: usize, bytes: usize) -> Bounds {
    Bounds {
        entries,
        bytes,
        lifetime: Duration::from_secs(60),
    }
}

fn yes(advice: Advice) -> Answer {
    Answer::Allow(Arc::new(advice), None)
}

#[test]
fn an_answer_ends_with_its_time_its_credential_and_when_it_asks_to_be_asked_again() {
    let seconds = Duration::from_secs;
    let identity = Identity::for_tests("alice", Value::new_object(), now() + seconds(20));
    let recheck = Advice {
        recheck_after: Some(seconds(10)),
        ..Advice::default()
    };
    for (advice, identity, ends) in [
        (Advice::default(), None, 60),
        (Advice::default(), Some(&identity), 20),
        (recheck, Some(&identity), 10),
    ] {
        let mut answers = Answers::new(bounds(10, 1 << 20));
        answers.keep(b"q", yes(advice), 0, identity, now(), None);
        assert!(answers.get(b"q", now() + seconds(ends - 1)).is_some());
        assert!(answers.get(b"q", now() + seconds(ends)).is_none());
        // Nor does it hold when the clock was set back.
        assert!(answers.get(b"q", now() - seconds(1)).is_none());
        assert!(answers.get(b"r", now()).is_none());
    }
}

#[test]
fn entries_and_bytes_are_bounded_and_what_is_used_stays() {
    let mut answers = Answers::new(bounds(100, 1 << 20));
    for n in 0..10_000u32 {
        answers.keep(
            &n.to_be_bytes(),
            yes(Advice::default()),
            0,
            None,
            now(),
            None,
        );
        if n >= 7 {
            assert!(answers.get(&7u32.to_be_bytes(), now()).is_some(), "{n}");
        }
        assert!(answers.size().0 <= 100);
    }
    let mut answers = Answers::new(bounds(1_000_000, 1 << 20));
    for n in 0..10_000u32 {
        let mut question = vec![0; MAX_QUESTION];
        question[..4].copy_from_slice(&n.to_be_bytes());
        answers.keep(&question, yes(Advice::default()), 1000, None, now(), None);
        let (count, bytes) = answers.size();
        assert!(bytes <= 1 << 20 && count < 256, "{count} {bytes}");
    }
    // One that would push out all the others is not kept.
    answers.keep(b"big", yes(Advice::default()), 1 << 20, None, now(), None);
    assert!(answers.get(b"big", now()).is_none());
}

/// A policy that did not go through the gate.
fn policy(text: &str, remember: bool, metrics: &Metrics) -> Policy {
    let mut engine = parsed(text).unwrap();
    let reads = reads::of(engine.get_modules(), "data.p.allow");
    let projection = Projection::of(&reads, &[]);
    let program = Program::interpreted(engine, "data.p.allow", LIMITS).unwrap();
    Policy {
        decided_by: DecidedBy::new("p", ""),
        recipe: None,
        rules: Rules::Rego(Arc::new(Compiled {
            program: Arc::new(program),
            digest: String::new(),
            text: String::new(),
            impure: false,
            files: Vec::new(),
            modules: Arc::default(),
            entrypoint: "data.p.allow".to_owned(),
            errors: BuiltinErrors::Deny,
            hidden_headers: Vec::new(),
            reads: Vec::new(),
            sees: Sees::Portcullis(reads.wanted()),
            body: None,
            remembered: remember.then(|| (projection.unwrap(), bounds(1000, 1 << 20))),
            warnings: Vec::new(),
            metrics: metrics.policy("p"),
        })),
    }
}

fn counted(metrics: &Metrics, outcome: &str) -> u64 {
    let series = format!(r#"portcullis_decision_cache_total{{policy="p",outcome="{outcome}"}} "#);
    let text = metrics.encode();
    let line = text.lines().find_map(|line| line.strip_prefix(&series));
    // What was never counted is not told.
    line.map_or(0, |count| count.parse().unwrap())
}

fn told(decision: &Decision) -> String {
    match decision {
        Decision::Allow(permit) => format!("{:?}", permit.advice),
        Decision::Deny(denial) => {
            let mut denial = denial.clone();
            // Whether it was kept is what is compared.
            denial.ruling.cached = false;
            denial.ruling.took = None;
            format!("{denial:?}")
        }
    }
}

#[test]
fn decisions_with_and_without_the_memory_are_the_same() {
    let pool = pool();
    let metrics = Metrics::default();
    let mut kept = 0;
    for seed in 0..12 {
        let text = Writer::new(seed).policy();
        let Some(mut engine) = parsed(&text) else {
            continue;
        };
        if Projection::of(&reads::of(engine.get_modules(), "data.p.allow"), &[]).is_err() {
            continue;
        }
        kept += 1;
        let (with, without) = (
            policy(&text, true, &metrics),
            policy(&text, false, &metrics),
        );
        let (one, other) = (Machines::default(), Machines::default());
        for _ in 0..2 {
            for asked in &pool {
                let decide = |policy: &Policy, machines: &Machines| {
                    let caller = asked.caller.clone();
                    told(&policy.decide(machines, &asked.request, &asked.facts(), caller))
                };
                assert_eq!(decide(&with, &one), decide(&without, &other), "{text}");
            }
        }
    }
    assert!(kept > 4, "{kept}");
    assert!(counted(&metrics, "hit") > 100 && counted(&metrics, "miss") > 10);
}

#[test]
fn another_revision_of_a_policy_remembers_nothing_of_the_last() {
    let metrics = Metrics::default();
    let asked = asked(&BTreeMap::new(), &callers());
    let machines = Machines::default();
    let allows = |policy: &Policy| {
        let caller = asked.caller.clone();
        matches!(
            policy.decide(&machines, &asked.request, &asked.facts(), caller),
            Decision::Allow(_)
        )
    };
    let first = policy(
        "package p\nallow if input.request.method == \"GET\"",
        true,
        &metrics,
    );
    assert!(allows(&first) && allows(&first));
    assert_eq!(counted(&metrics, "hit"), 1);
    let second = policy(
        "package p\nallow := input.request.method != \"GET\"",
        true,
        &metrics,
    );
    assert!(!allows(&second) && !allows(&second));
    assert_eq!(counted(&metrics, "hit"), 2);
    // The slot of the revision before is gone with its answers.
    assert_eq!(machines.by_program.borrow().len(), 1);
    assert!(allows(&first));
    assert_eq!(counted(&metrics, "hit"), 2);
}

#[test]
fn errors_undefined_answers_and_large_questions_are_asked_anew() {
    let metrics = Metrics::default();
    let machines = Machines::default();
    let usual = asked(&BTreeMap::new(), &callers());
    let reason = |text: &str| {
        let policy = policy(text, true, &metrics);
        let decide = || {
            policy.decide(
                &machines,
                &usual.request,
                &usual.facts(),
                usual.caller.clone(),
            )
        };
        match (decide(), decide()) {
            (Decision::Deny(_), Decision::Deny(denial)) => denial.reason,
            _ => panic!("allowed"),
        }
    };
    assert_eq!(
        reason("package p\nallow := upper(input.source.port)"),
        Reason::Error
    );
    assert_eq!(reason("package p\nallow := input.nope"), Reason::Undefined);
    assert_eq!(
        reason("package p\nallow := input.request.path"),
        Reason::Answer
    );
    assert_eq!(counted(&metrics, "hit"), 0);
    assert_eq!(
        reason("package p\nallow := false"),
        Reason::Policy("policy.denied".to_owned())
    );
    assert_eq!(counted(&metrics, "hit"), 1);

    let long = Asked {
        params: vec![("id".into(), "x".repeat(MAX_QUESTION))],
        ..asked(&BTreeMap::new(), &callers())
    };
    let policy = policy("package p\nallow if input.route.params.id", true, &metrics);
    for _ in 0..2 {
        let decision = policy.decide(&machines, &long.request, &long.facts(), long.caller.clone());
        assert!(matches!(decision, Decision::Allow(_)));
    }
    assert_eq!(counted(&metrics, "bypass"), 2);
}

#[test]
fn the_weight_of_an_answer_grows_with_it() {
    let small = from_json(br#"{"allow": true}"#).unwrap();
    let large =
        from_json(format!(r#"{{"allow": true, "message": "{}"}}"#, "x".repeat(500)).as_bytes());
    assert!(answer::weight(&large.unwrap()) > answer::weight(&small) + 500);
}

/// `cargo test --release -- --ignored --nocapture how_long`: what a decision costs.
#[test]
#[ignore = "a measurement"]
fn how_long_decisions_take() {
    let usual = asked(&BTreeMap::new(), &callers());
    let metrics = Metrics::default();
    let text = "package p\ndefault allow := false\nallow if {\n  input.request.method == \"GET\"\n  startswith(input.request.path, \"/x/\")\n  \"a\" in input.identity.scopes\n  input.route.labels.action == \"read\"\n  input.route.params.id\n}";
    for remember in [true, false] {
        let policy = policy(text, remember, &metrics);
        let machines = Machines::default();
        let turns = 200_000u32;
        let begun = std::time::Instant::now();
        for _ in 0..turns {
            let caller = usual.caller.clone();
            let decision = policy.decide(&machines, &usual.request, &usual.facts(), caller);
            assert!(matches!(std::hint::black_box(decision), Decision::Allow(_)));
        }
        println!("remembered {remember}: {:?} each", begun.elapsed() / turns);
    }
}

// ---- answers that depend on the time

/// Writes policies that read the time in the ways that are accounted for.
struct TimedWriter {
    rng: StdRng,
    variables: usize,
}

impl TimedWriter {
    fn pick(&mut self, from: &[&'static str]) -> &'static str {
        from.choose(&mut self.rng).unwrap()
    }

    /// The time, by one of its names; what has to stand before it.
    fn time(&mut self, out: &mut Vec<String>) -> String {
        self.variables += 1;
        let v = format!("t{}", self.variables);
        match self.rng.random_range(0..6) {
            0 | 1 => "input.request.received_at_ns".to_owned(),
            2 => "req.received_at_ns".to_owned(),
            3 => "time.now_ns()".to_owned(),
            4 => "clock_now".to_owned(),
            _ => {
                let time =
                    self.pick(&["input.request.received_at_ns", "time.now_ns()", "clock_now"]);
                out.push(format!("{v} := {time}"));
                v
            }
        }
    }

    fn beside(&mut self) -> String {
        let term = self.pick(&[
            "input.identity.claims.seen",
            "claims.seen",
            "data.p.claims.ends * 1000000000",
            "input.identity.claims.ends * 1000000000",
            "data.window.start",
            "data.window.end",
            "1768473000000000000",
            "patience + data.window.start",
            "input.identity.claims.nope",
            "input.identity.claims.odd",
            "input.identity.claims.name",
        ]);
        term.to_owned()
    }

    fn condition(&mut self, out: &mut Vec<String>) {
        let time = self.time(out);
        self.variables += 1;
        let v = format!("v{}", self.variables);
        let (one, other) = (self.beside(), self.beside());
        let op = self.pick(&["<", "<=", ">", ">=", "==", "!="]);
        let not = self.pick(&["", "", "not "]);
        let zone = self.pick(&["Europe/Berlin", "Asia/Kathmandu", "America/St_Johns", "UTC"]);
        let last = match self.rng.random_range(0..12) {
            0 => format!("{not}{time} {op} {one}"),
            1 => format!("{not}{one} {op} {time}"),
            2 => format!("{not}{time} - {one} {op} patience"),
            3 => format!("{not}{one} - {time} {op} {other}"),
            4 => {
                out.push(format!("{v} := {time} - {one}"));
                format!("{not}{v} {op} 2 * patience")
            }
            5 => {
                out.push(format!("{v} := time.clock({time})"));
                format!("{not}{v}[0] {op} 10")
            }
            6 => {
                out.push(format!("{v} := time.clock({time})"));
                format!("{not}{v}[0] * 60 + {v}[1] {op} 630")
            }
            7 => {
                out.push(format!(
                    "[h{v}, m{v}, _] := time.clock([{time}, \"{zone}\"])"
                ));
                format!("{not}h{v} * 60 + m{v} {op} 690")
            }
            8 => {
                out.push(format!("[_, _, {v}] := time.clock({time})"));
                format!("{not}{v} {op} 30")
            }
            9 => format!("{not}time.weekday({time}) {op} \"Thursday\""),
            10 => {
                out.push(format!("[_, _, {v}] := time.date([{time}, \"{zone}\"])"));
                format!("{not}{v} {op} 15")
            }
            _ => format!("count([1 | some x in [1, 2]; {time} {op} {one}]) > 0"),
        };
        out.push(last);
    }

    fn policy(&mut self) -> String {
        let mut text = "package p\nimport input.request as req\nclock_now := input.request.received_at_ns\npatience := 90000000000\nclaims := input.identity.claims\ndefault allow := false\n".to_owned();
        for _ in 0..self.rng.random_range(1..3) {
            let mut out = Vec::new();
            for _ in 0..self.rng.random_range(1..3) {
                self.condition(&mut out);
            }
            text.push_str(&format!("allow if {{\n  {}\n}}\n", out.join("\n  ")));
        }
        text
    }
}

/// The moments of requests: near one another and near what is compared with, and far away.
fn moments(rng: &mut StdRng) -> Vec<SystemTime> {
    const SECOND: i64 = 1_000_000_000;
    let steps = [
        1,
        SECOND,
        7 * SECOND,
        60 * SECOND,
        90 * SECOND,
        3_600 * SECOND,
        86_400 * SECOND,
    ];
    let mut moments: Vec<i64> = Vec::new();
    for around in [0i64, 1_800, 3_600, -90, 90, 600] {
        for step in steps {
            for _ in 0..2 {
                let away = rng.random_range(-2..=2) * step + rng.random_range(-1..=1);
                moments.push(1_768_473_000 * SECOND + around * SECOND + away);
            }
        }
    }
    moments.sort_unstable();
    let back = rng.random_range(0..moments.len());
    // Clocks are set back now and then.
    moments.rotate_left(back);
    let at = |ns: i64| SystemTime::UNIX_EPOCH + Duration::from_nanos(u64::try_from(ns).unwrap());
    moments.into_iter().map(at).collect()
}

struct Timed {
    text: String,
    projection: Projection,
    data: Value,
    /// By moment and caller.
    fresh: Vec<(Asked, Outcome, Value)>,
}

impl Timed {
    fn of(seed: u64) -> Option<Self> {
        let mut writer = TimedWriter {
            rng: StdRng::seed_from_u64(seed),
            variables: 0,
        };
        let text = writer.policy();
        let data =
            from_json(br#"{"window": {"start": 1768473000000000000, "end": 1768474800000000000}}"#)
                .unwrap();
        let mut engine = rego::parse(&[("p.rego".to_owned(), text.clone())], &data)
            .unwrap_or_else(|error| panic!("{error:?}\n{text}"));
        let reads = reads::of(engine.get_modules(), "data.p.allow");
        let projection = match Projection::of(&reads, &[]) {
            Ok(projection) => projection,
            Err(volatile) => panic!("{volatile:?}\n{text}"),
        };
        let program = Program::interpreted(engine, "data.p.allow", LIMITS).ok()?;
        let until = now() + Duration::from_secs(10_000_000);
        let claims = |text: &str| {
            // Not strictly: a token cannot bring such a number, a policy can.
            let claims = Value::from_json_str(text).unwrap();
            Caller::Known(Identity::for_tests("alice", claims, until))
        };
        let callers = [
            claims(
                r#"{"seen": 1768472995000000000, "ends": 1768473600, "odd": 1768473000000000000.5, "name": "x"}"#,
            ),
            claims(r#"{"seen": 1768476600000000000, "ends": 1768473090, "odd": "x"}"#),
        ];
        let mut fresh = Vec::new();
        for at in moments(&mut writer.rng) {
            let caller = callers.choose(&mut writer.rng).unwrap().clone();
            let mut asked = Asked {
                caller,
                ..asked(&BTreeMap::new(), &[Caller::Anonymous])
            };
            asked.request.received_at = at;
            rego::host::begin(rego::host::Moment {
                now_ns: input::since_epoch(at).unwrap(),
                ..rego::host::Moment::default()
            });
            let whole = Machine::new(&program).unwrap().run(asked.document(&[]));
            let part = asked.part(&[], &reads.wanted());
            assert_eq!(
                Machine::new(&program).unwrap().run(part.clone()),
                whole,
                "{text}"
            );
            fresh.push((asked, whole, part));
        }
        Some(Self {
            text,
            projection,
            data,
            fresh,
        })
    }

    /// How often an answer was given again, and where it was another than a fresh one.
    fn replay(&self, projection: &Projection) -> (usize, Option<(usize, usize)>) {
        type Kept = (usize, SystemTime, Option<Duration>);
        let mut kept: HashMap<Vec<u8>, Kept> = HashMap::new();
        let mut hits = 0;
        for (index, (asked, outcome, document)) in self.fresh.iter().enumerate() {
            let at = asked.request.received_at;
            let bytes = asked.bytes(projection);
            if let Some((first, from, holds)) = kept.get(&bytes)
                && *from <= at
                && holds.is_none_or(|holds| at < *from + holds)
            {
                hits += 1;
                if self.fresh[*first].1 != *outcome {
                    return (hits, Some((*first, index)));
                }
                continue;
            }
            let holds = projection.holds(at, document, &self.data);
            if matches!(outcome, Outcome::Answer(_)) {
                kept.insert(bytes, (index, at, holds));
            }
        }
        (hits, None)
    }
}

#[test]
fn an_answer_that_depends_on_the_time_is_given_again_only_while_it_holds() {
    let count: u64 = std::env::var("PORTCULLIS_POLICIES")
        .ok()
        .and_then(|count| count.parse().ok())
        .unwrap_or(150);
    let (mut hits, mut asked) = (0, 0);
    let (mut compared, mut told) = (0, 0);
    for seed in 0..count {
        let Some(timed) = Timed::of(seed) else {
            continue;
        };
        let (again, wrong) = timed.replay(&timed.projection);
        if let Some((one, other)) = wrong {
            panic!(
                "{:?}\n{:?} at {:?}\n{:?} at {:?}\n{}",
                timed.projection,
                timed.fresh[one].1,
                timed.fresh[one].0.request.received_at,
                timed.fresh[other].1,
                timed.fresh[other].0.request.received_at,
                timed.text
            );
        }
        hits += again;
        asked += timed.fresh.len();
        // Without either part of the analysis somebody is told what was true before.
        let blind = timed.projection.without_comparisons();
        compared += usize::from(timed.replay(&blind).1.is_some());
        for part in timed.projection.parts() {
            if matches!(part, Part::Clock(_)) {
                let blind = timed.projection.without(part);
                told += usize::from(timed.replay(&blind).1.is_some());
            }
        }
    }
    println!(
        "{hits} of {asked} answers given again; blind to comparisons {compared} policies are wrong, to the clock {told}"
    );
    assert!(hits > asked / 20, "{hits} of {asked}");
    assert!(compared > 20 && told > 10, "{compared} {told}");
}

#[test]
fn other_uses_of_the_time_are_asked_anew() {
    for rules in [
        "allow if time.format(input.request.received_at_ns) == \"x\"",
        "allow := {\"allow\": true, \"reason\": sprintf(\"%d\", [time.now_ns()])}",
        "allow if { now := input.request.received_at_ns; now % 2 == 0 }",
        "allow if { now := time.now_ns(); now < 5; x := now; x in data.xs }",
        "allow if { some now in [1, 2]; now := input.request.received_at_ns; now < 5 }",
        "allow if input.request.received_at_ns < data.ends[input.request.method]",
        "allow if f(input.request.received_at_ns)\nf(x) if x < 5",
        "allow if now < 5 with data.p.now as 3\nnow := time.now_ns()",
        "allow if data.p\nnow := time.now_ns()",
        "allow if count(input.request) > 1",
        "allow if time.now_ns() < round(input.identity.claims.exp)",
        "allow if input.request.received_at > \"2026\"",
        "allow if { x := [input.request.received_at_ns]; x[0] < 5 }",
        "allow if time.clock([5, input.request.received_at_ns])[0] == 1",
        "now := time.now_ns() if true\nallow if now < 5",
    ] {
        let found = place_of(&format!("package p\n{rules}\n"));
        assert!(found.is_err(), "{rules}: {found:?}");
    }
}
