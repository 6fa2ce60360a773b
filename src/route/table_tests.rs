use std::path::Path;
use std::time::SystemTime;

use proptest::prelude::*;

use super::super::DEFAULT_METHODS;
use super::super::template::Segment;
use super::*;
use crate::metrics::Metrics;
use crate::request::{ConnInfo, PathRules, RequestId, Rules};

fn context() -> Compile {
    Compile::new(Path::new("gateway.yaml"), Arc::new(Metrics::default()))
}

fn pattern(text: &str) -> HostPattern {
    match (text, text.strip_prefix('*')) {
        ("*", _) => HostPattern::Any,
        (_, Some(suffix)) => HostPattern::Below(suffix.to_owned()),
        (name, None) => HostPattern::Exact(name.to_owned()),
    }
}

/// A route from `name METHODS host path [header=value]… [@listener]…`.
fn entry(text: &str) -> Entry {
    let words: Vec<&str> = text.split(' ').collect();
    let [name, methods, host, path, more @ ..] = words.as_slice() else {
        panic!("{text}")
    };
    let methods_named = *methods != "*";
    let listeners: Vec<Arc<str>> = more
        .iter()
        .filter_map(|word| word.strip_prefix('@'))
        .map(Arc::from)
        .collect();
    Entry {
        name: (*name).into(),
        template: Template::parse(path, PathRules::default()).unwrap(),
        hosts: vec![pattern(host)],
        conditions: Conditions {
            connect: false,
            methods: if methods_named {
                methods
                    .split(',')
                    .map(|method| method.parse().unwrap())
                    .collect()
            } else {
                DEFAULT_METHODS.to_vec().into()
            },
            methods_named,
            headers: more
                .iter()
                .filter_map(|word| word.split_once('='))
                .map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap()))
                .collect(),
            listeners: (!listeners.is_empty()).then_some(listeners),
        },
        place: format!("routes[{name}]"),
    }
}

fn index(routes: &[&str]) -> Index {
    let mut cx = context();
    let index = Index::build(routes.iter().map(|text| entry(text)).collect(), &mut cx);
    assert_eq!(cx.problems(), [], "{routes:?}");
    index
}

fn ties(routes: &[&str]) -> Vec<String> {
    let mut cx = context();
    Index::build(routes.iter().map(|text| entry(text)).collect(), &mut cx);
    cx.problems()
        .iter()
        .map(|problem| format!("{}: {}", problem.path, problem.message))
        .collect()
}

fn request(method: &str, host: &str, path: &str, headers: &[(&str, &str)]) -> InboundRequest {
    let conn = Arc::new(ConnInfo {
        listener: "public".into(),
        peer: "192.0.2.1:1".parse().unwrap(),
        local: "192.0.2.2:2".parse().unwrap(),
        tls: None,
        ambiguous_head: None,
        forwarded: Default::default(),
    });
    let mut request = http::Request::builder()
        .method(method)
        .uri(path)
        .header("host", host);
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let request = request.body(()).unwrap();
    InboundRequest::parse(
        &conn,
        RequestId::random(),
        request,
        SystemTime::UNIX_EPOCH,
        &Rules::default(),
    )
    .unwrap()
    .0
}

fn found(index: &Index, request: &InboundRequest) -> Option<String> {
    let (position, params) = index.find(request)?;
    let mut text = index.entries[position].name.to_string();
    for (name, value) in params {
        text.push_str(&format!(" {name}={value}"));
    }
    Some(text)
}

#[track_caller]
fn expect(index: &Index, method: &str, host: &str, path: &str, route: &str) {
    let found = found(index, &request(method, host, path, &[]));
    assert_eq!(
        found.as_deref().unwrap_or("none"),
        route,
        "{method} {host} {path}"
    );
}

#[test]
fn the_most_specific_host_decides() {
    let index = index(&[
        "any * * /a",
        "wide * *.example.test /a",
        "near * *.eu.example.test /a",
        "exact * api.eu.example.test /a",
        "other * * /b",
    ]);
    expect(&index, "GET", "api.eu.example.test", "/a", "exact");
    expect(&index, "GET", "API.eu.example.test:8443", "/a", "exact");
    expect(&index, "GET", "x.eu.example.test", "/a", "near");
    expect(&index, "GET", "x.y.eu.example.test", "/a", "near");
    expect(&index, "GET", "eu.example.test", "/a", "wide");
    expect(&index, "GET", "example.test", "/a", "any");
    expect(&index, "GET", "xexample.test", "/a", "any");
    expect(&index, "GET", "[::1]", "/a", "any");
    expect(&index, "GET", "api.eu.example.test", "/b", "other");
    expect(&index, "GET", "api.eu.example.test", "/c", "none");
}

#[test]
fn a_literal_goes_before_a_parameter_before_a_tail() {
    let index = index(&[
        "tail * * /{*rest}",
        "one * * /orders/{id}",
        "mine * * /orders/mine",
        "items * * /orders/{order}/items",
        "deep * * /orders/mine/{*x}",
    ]);
    expect(&index, "GET", "h", "/orders/mine", "mine");
    expect(&index, "GET", "h", "/orders/7", "one id=7");
    expect(&index, "GET", "h", "/orders/7/items", "items order=7");
    expect(
        &index,
        "GET",
        "h",
        "/orders/7/other",
        "tail rest=orders/7/other",
    );
    expect(&index, "GET", "h", "/orders/mine/items", "deep x=items");
    expect(&index, "GET", "h", "/orders/", "tail rest=orders/");
    expect(&index, "GET", "h", "/orders/mine/", "deep x=");
    expect(&index, "GET", "h", "/", "tail rest=");
}

#[test]
fn an_empty_tail_yields_to_a_route_that_says_the_path() {
    let index = index(&["files * * /files/{*rest}", "folder * * /files/"]);
    expect(&index, "GET", "h", "/files/", "folder");
    expect(&index, "GET", "h", "/files/a/b", "files rest=a/b");
    expect(&index, "GET", "h", "/files", "none");
}

#[test]
fn a_route_restricted_to_a_method_cannot_be_passed_by_through_a_laxer_one() {
    let index = index(&[
        "admin GET * /admin/{page}",
        "tail * * /{*rest}",
        "inner * * /internal/x @local",
        "host GET api.test /admin/{page}",
    ]);
    expect(&index, "GET", "h", "/admin/users", "admin page=users");
    expect(&index, "POST", "h", "/admin/users", "none");
    expect(&index, "GET", "h", "/internal/x", "none");
    expect(&index, "POST", "api.test", "/admin/users", "none");
    expect(&index, "PROPFIND", "h", "/x", "none");
}

#[test]
fn parameters_are_split_before_they_are_decoded() {
    let index = index(&["file * * /f/{name}", "tail * * /t/{*rest}"]);
    let file = request("GET", "h", "/f/a%2Fb%20c", &[]);
    assert_eq!(found(&index, &file).unwrap(), "file name=a/b c");
    let tail = request("GET", "h", "/t/a%20b/c/", &[]);
    assert_eq!(found(&index, &tail).unwrap(), "tail rest=a b/c/");
    // What a client writes is never read as a template.
    let braces = request("GET", "h", "/f/%7Bname%7D", &[]);
    assert_eq!(found(&index, &braces).unwrap(), "file name={name}");
}

#[test]
fn more_conditions_are_asked_first() {
    let index = index(&[
        "plain * * /a",
        "get GET * /a",
        "here * * /a @public",
        "acme * * /a x-tenant=acme",
        "beta * * /a x-tenant=acme x-beta=1",
    ]);
    let ask =
        |headers: &[(&str, &str)]| found(&index, &request("GET", "h", "/a", headers)).unwrap();
    assert_eq!(ask(&[]), "here");
    assert_eq!(ask(&[("x-tenant", "acme")]), "acme");
    assert_eq!(ask(&[("x-tenant", "ACME")]), "here");
    assert_eq!(ask(&[("x-tenant", "acme"), ("x-beta", "1")]), "beta");
    // Two values are not "the" value.
    assert_eq!(ask(&[("x-tenant", "acme"), ("x-tenant", "acme")]), "here");
}

#[test]
fn routes_that_take_each_others_requests_do_not_load() {
    assert_eq!(
        ties(&["a GET * /x/{id}", "b GET,POST * /x/{name}"]).len(),
        1
    );
    assert!(
        ties(&["a GET * /x/{id}", "b GET,POST * /x/{name}"])[0]
            .contains("same requests as route `a`")
    );
    assert_eq!(ties(&["a * * /x", "b * * /x", "c * * /x"]).len(), 3);
    assert_eq!(ties(&["a * * /x h=1", "b * * /x i=1"]).len(), 1);
    assert_eq!(ties(&["a * * /x @l @m", "b * * /x @m"]).len(), 1);
    assert_eq!(ties(&["a * * /{*x}", "b * * /{*y}"]).len(), 1);
    for apart in [
        ["a GET * /x", "b POST * /x"],
        ["a GET * /x", "b * * /x"],
        ["a * * /x h=1", "b * * /x h=2"],
        ["a * * /x @l", "b * * /x @m"],
        ["a * * /x", "b * h.test /x"],
        ["a * * /x", "b * * /x/"],
    ] {
        assert_eq!(ties(&apart), [""; 0], "{apart:?}");
    }
}

#[test]
fn too_many_routes_on_one_path_do_not_load() {
    let texts: Vec<String> = (0..=MAX_SHARING)
        .map(|i| format!("r{i} * * /x h=v{i}"))
        .collect();
    let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
    assert_eq!(ties(&texts[..MAX_SHARING]).len(), 0);
    assert_eq!(ties(&texts).len(), 1);
}

#[test]
fn ten_thousand_routes_are_indexed_and_found() {
    let texts: Vec<String> = (0..10_000)
        .map(|i| format!("r{i} GET * /service{i}/{{id}}/items/{{item}}"))
        .collect();
    let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
    let index = index(&texts);
    expect(
        &index,
        "GET",
        "h",
        "/service9999/a/items/b",
        "r9999 id=a item=b",
    );
}

/// What the documentation says, word for word and slowly: the answer to compare with.
fn naive(entries: &[Entry], request: &InboundRequest) -> Option<usize> {
    let host = request.host.name();
    let segments: Vec<&str> = request.path.as_str().split('/').skip(1).collect();
    let root = [Segment::Literal(String::new())];
    let matches = |entry: &Entry| -> Option<((u8, usize), Vec<u8>)> {
        let host_rank = match &entry.hosts[0] {
            HostPattern::Exact(name) => (name == host).then_some((2, 0)),
            HostPattern::Below(suffix) => {
                host.ends_with(suffix.as_str()).then_some((1, suffix.len()))
            }
            HostPattern::Any => Some((0, 0)),
        }?;
        let mut rest = segments.as_slice();
        let mut ranks = Vec::new();
        let template = match entry.template.segments() {
            [] => root.as_slice(),
            segments => segments,
        };
        for segment in template {
            match segment {
                Segment::Rest(_) => {
                    // An empty tail is the least of what matches; no slash is no tail at all.
                    (!rest.is_empty()).then_some(())?;
                    ranks.push(u8::from(rest != [""]));
                    return Some((host_rank, ranks));
                }
                Segment::Literal(literal) => {
                    let (first, tail) = rest.split_first()?;
                    (first == literal).then_some(())?;
                    ranks.push(3);
                    rest = tail;
                }
                Segment::Param(_) => {
                    let (first, tail) = rest.split_first()?;
                    (!first.is_empty()).then_some(())?;
                    ranks.push(2);
                    rest = tail;
                }
            }
        }
        rest.is_empty().then_some((host_rank, ranks))
    };
    let best = entries.iter().filter_map(matches).max()?;
    entries
        .iter()
        .enumerate()
        .filter(|(_, entry)| matches(entry).as_ref() == Some(&best))
        .filter(|(_, entry)| entry.conditions.accept(request))
        .max_by_key(|(_, entry)| entry.conditions.rank())
        .map(|(position, _)| position)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]

    #[test]
    fn the_index_agrees_with_the_naive_reading(
        routes in proptest::collection::vec(
            (
                proptest::sample::select(vec!["*", "GET", "POST", "GET,POST"]),
                proptest::sample::select(vec!["*", "*.t", "*.b.t", "a.b.t", "b.t"]),
                "(/(a|b|ab|\\{p\\})){0,3}(/|/\\{\\*r\\})?",
            ),
            1..12,
        ),
        method in proptest::sample::select(vec!["GET", "POST", "PUT"]),
        host in proptest::sample::select(vec!["a.b.t", "b.t", "t", "c.b.t", "x"]),
        path in "(/(a|b|ab|c)){0,4}/?",
    ) {
        let mut cx = context();
        let mut entries: Vec<Entry> = Vec::new();
        for (number, (methods, host, path)) in routes.iter().enumerate() {
            // Names of parameters are unique within a template.
            let mut path = path.clone();
            let mut count = 0;
            while path.contains("{p}") {
                path = path.replacen("{p}", &format!("{{p{count}}}"), 1);
                count += 1;
            }
            let path = if path.is_empty() { "/".to_owned() } else { path };
            entries.push(entry(&format!("r{number} {methods} {host} {path}")));
        }
        let request = request(method, host, if path.is_empty() { "/" } else { &path }, &[]);
        let index = Index::build(entries, &mut cx);
        prop_assume!(cx.problems().is_empty());
        let found = index.find(&request).map(|(position, _)| position);
        prop_assert_eq!(found, naive(&index.entries, &request));
    }
}
