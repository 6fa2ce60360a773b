use std::path::PathBuf;

use super::*;

/// A configuration that loads without warning but the one about its open route.
const GOOD: &str = "\
listeners:
  local:
    address: 127.0.0.1:0
    plaintext: true
upstreams:
  orders:
    endpoints: [\"http://127.0.0.1:9500\"]
routes:
  - name: read
    path: /orders/{id}
    authn: [anonymous]
    policy: public
    upstream: orders
";

struct Folder(tempfile::TempDir);

impl Folder {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn file(&self) -> PathBuf {
        self.0.path().join("gateway.yaml")
    }

    fn load(&self, text: impl AsRef<[u8]>) -> Result<Loaded, Vec<Problem>> {
        std::fs::write(self.file(), text).unwrap();
        load(&self.file(), None, &Arc::new(Metrics::default()))
    }
}

fn problems(text: impl AsRef<[u8]>) -> Vec<Problem> {
    match Folder::new().load(text) {
        Ok(loaded) => panic!("it loads: {:?}", loaded.warnings),
        Err(problems) => problems,
    }
}

/// `line:column path: message (help)` of every error.
fn errors(text: impl AsRef<[u8]>) -> Vec<String> {
    let errors = problems(text)
        .into_iter()
        .filter(|problem| problem.severity == Severity::Error);
    errors
        .map(|problem| {
            let number = |number: Option<usize>| number.map_or("-".to_owned(), |n| n.to_string());
            let path = if problem.path.is_empty() {
                ".".to_owned()
            } else {
                problem.path
            };
            format!(
                "{}:{} {path}: {} ({})",
                number(problem.line),
                number(problem.column),
                problem.message,
                problem.help.unwrap_or_default(),
            )
        })
        .collect()
}

/// [`GOOD`] with one part replaced.
fn with(old: &str, new: &str) -> String {
    assert_eq!(GOOD.matches(old).count(), 1, "{old}");
    GOOD.replace(old, new)
}

#[test]
fn a_good_document_loads_with_its_defaults() {
    let loaded = Folder::new().load(GOOD).unwrap();
    assert_eq!(loaded.warnings.len(), 1, "{:?}", loaded.warnings);
    assert!(loaded.warnings[0].message.contains("open to everybody"));
    assert_eq!(loaded.warnings[0].line, Some(12));
    assert_eq!(loaded.snapshot.routes.iter().count(), 1);
    assert_eq!(loaded.snapshot.revision.len(), 16);
    assert!(
        loaded
            .snapshot
            .effective
            .yaml()
            .unwrap()
            .contains("head_timeout: 30s")
    );
}

#[test]
fn the_effective_document_loads_and_is_its_own_effective_document() {
    let yaml = |loaded: Loaded| loaded.snapshot.effective.yaml().unwrap();
    let first = yaml(Folder::new().load(GOOD).unwrap());
    let second = yaml(Folder::new().load(&first).unwrap());
    assert_eq!(first, second);
}

#[test]
fn every_mistake_is_told_with_its_place_and_the_way_to_mend_it() {
    let route = "  - name: read\n    path: /orders/{id}\n    authn: [anonymous]\n    policy: public\n    upstream: orders\n";
    let two = |second: &str| format!("{GOOD}{second}");
    let cases: Vec<(String, &str)> = vec![
        // Keys and types.
        (
            with("listeners:", "listener:"),
            "1:1 listener: unknown key `listener` (did you mean `listeners`?)",
        ),
        (
            with("    upstream: orders", "    upstreem: orders"),
            "13:5 routes[0].upstreem: unknown key `upstreem` (did you mean `upstream`?)",
        ),
        (
            with(
                "    upstream: orders",
                "    bounds: { head_timout: 3s }\n    upstream: orders",
            ),
            "13:15 routes[0].bounds.head_timout: unknown key `head_timout` (did you mean `head_timeout`?)",
        ),
        (
            with("    upstream: orders\n", ""),
            "9:5 routes[0]: `upstream` is missing (add `upstream: …`)",
        ),
        (
            with("authn: [anonymous]", "authn: anonymous"),
            "11:12 routes[0].authn: invalid type: string \"anonymous\", expected a list ()",
        ),
        (
            with("authn: [anonymous]", "authn: [anonymous, { a: b }]"),
            "11:24 routes[0].authn[1]: invalid type: a block of keys, expected text ()",
        ),
        (
            format!("workers: many\n{GOOD}"),
            "1:10 workers: invalid type: string \"many\", expected a whole number ()",
        ),
        (
            format!("workers: 0\n{GOOD}"),
            "1:10 workers: the number of workers is 1 to 1024 (leave it out for one per core)",
        ),
        // Units.
        (
            format!("head_timeout: 30\n{GOOD}"),
            "1:15 head_timeout: `30` is not a duration with its unit, such as `250ms`, `30s`, `5m`, `1h` or `7d` (did you mean `30s`?)",
        ),
        (
            format!("drain_timeout: 5 min\n{GOOD}"),
            "1:16 drain_timeout: `5 min` is not a duration with its unit, such as `250ms`, `30s`, `5m`, `1h` or `7d` (did you mean `5m`?)",
        ),
        (
            with(
                "    upstream: orders",
                "    bounds:\n      max_body: 10MB\n    upstream: orders",
            ),
            "14:17 routes[0].bounds.max_body: `10MB` is not a size with its unit, such as `512B`, `64KiB`, `10MiB` or `1GiB` (did you mean `10MiB`?)",
        ),
        (
            format!("head_timeout: 0s\n{GOOD}"),
            "1:15 head_timeout: no request would be in time (write one such as `30s`)",
        ),
        (
            with(
                "    upstream: orders",
                "    bounds: { head_timeout: 9m }\n    upstream: orders",
            ),
            "13:13 routes[0].bounds.total_timeout: the whole exchange (5m) is shorter than the wait for its head (9m) (raise `total_timeout` or lower `head_timeout`)",
        ),
        // Networks.
        (
            format!("trusted_proxies: [10.0.0.0/33]\n{GOOD}"),
            "1:19 trusted_proxies[0]: `10.0.0.0/33` is not an address or a network, such as `10.0.0.0/8` or `2001:db8::1` ()",
        ),
        (
            format!("trusted_proxies:\n  - 0.0.0.0/0\n{GOOD}"),
            "2:5 trusted_proxies[0]: `0.0.0.0/0` trusts everybody's forwarding headers (name the addresses of your own proxies: anybody could claim any address)",
        ),
        // Names.
        (
            with("    upstream: orders", "    upstream: order"),
            "13:15 routes[0].upstream: there is no upstream `order` (did you mean `orders`?)",
        ),
        (
            with("policy: public", "policy: publik"),
            "12:13 routes[0].policy: there is no policy `publik` (did you mean `public`?)",
        ),
        (
            with("authn: [anonymous]", "authn: [anonymus]"),
            "11:13 routes[0].authn[0]: there is no issuer or method `anonymus` (did you mean `anonymous`?)",
        ),
        (
            with(
                "    upstream: orders",
                "    limits: [slow]\n    upstream: orders",
            ),
            "13:14 routes[0].limits[0]: there is no limit `slow` (there are none in the file yet)",
        ),
        (
            with(
                "    upstream: orders",
                "    listeners: [public]\n    upstream: orders",
            ),
            "13:17 routes[0].listeners[0]: there is no listener `public` (there are: `local`)",
        ),
        (
            with("  orders:\n", "  \"or ders\":\n"),
            "6:3 upstreams.or ders: `or ders` is not a name (names are 1 to 64 letters, digits, `-`, `_` or `.`)",
        ),
        (
            with("  orders:\n", "  7:\n"),
            "6:3 upstreams.7: the name `7` is not text (quote it: `\"7\"`)",
        ),
        (
            two("limits:\n  public: { rate: 1/s }\n"),
            "15:3 limits.public: the name `public` is reserved (choose another)",
        ),
        // Routes.
        (
            with("    authn: [anonymous]\n", ""),
            "9:5 routes[0]: the route does not say who may try: `authn` is missing (list issuers or `client_certificate`; a route for everybody says `authn: [anonymous]`)",
        ),
        (
            with("    policy: public\n", ""),
            "9:5 routes[0]: the route does not say who may: `policy` is missing (name a policy; a route that is open to everybody it authenticates says `policy: public`)",
        ),
        (
            with("path: /orders/{id}", "path: orders/{id}"),
            "10:11 routes[0].path: the path `orders/{id}` does not start with `/` (write it as clients ask for it: `/orders/{id}`)",
        ),
        (
            with("path: /orders/{id}", "path: /%6frders"),
            "10:11 routes[0].path: the path is not in canonical form, so it can match no request (its canonical form (parameters shown as `p`) is `/orders`)",
        ),
        (
            with(
                "    upstream: orders",
                "    methods: [get]\n    upstream: orders",
            ),
            "13:15 routes[0].methods[0]: `get` is not a method: case matters (did you mean `GET`?)",
        ),
        (
            with(
                "    upstream: orders",
                "    methods: []\n    upstream: orders",
            ),
            "13:14 routes[0].methods: an empty list: the route would take nothing (remove it for the usual methods, or name some)",
        ),
        (
            with(
                "    upstream: orders",
                "    hosts: [\"a.test:80\"]\n    upstream: orders",
            ),
            "13:13 routes[0].hosts[0]: `a.test:80` names a port (routes match the host alone: leave the port out)",
        ),
        (
            with(
                "    upstream: orders",
                "    headers: { authorization: x }\n    upstream: orders",
            ),
            "13:16 routes[0].headers.authorization: `authorization` cannot be a condition (use `hosts`, `authn` or a policy)",
        ),
        (
            two(route),
            "14:5 routes[1]: route `read` takes the same requests as route `read` (routes[0], line 9) (tell them apart by host, path, methods, headers or listeners: neither is more specific)",
        ),
        (
            two(route),
            "14:11 routes[1].name: another route is called `read` (routes[0], line 9) (records and metrics tell routes apart by name: give each its own)",
        ),
        // Sections.
        (
            "routes:\n".to_owned() + route,
            "1:1 listeners: there is no listener (add one, such as `local: { address: \"127.0.0.1:8080\", plaintext: true }`)",
        ),
        (
            "listeners:\nroutes: []\n".to_owned(),
            "2:9 routes: there is no route (add one under `routes:`; without routes every request is refused)",
        ),
        (
            with(
                "upstreams:\n  orders:\n    endpoints: [\"http://127.0.0.1:9500\"]\n",
                "upstreams: [a]\n",
            ),
            "5:12 upstreams: this is not a block of names (write `upstreams:`, and below it `  name: { … }`)",
        ),
        (
            "listeners: {}\nroutes: { a: b }\n".to_owned(),
            "2:9 routes: this is not a list (begin each route with `- name: …`)",
        ),
        (
            String::new(),
            "-:- .: the file is empty (a first configuration needs `listeners`, `upstreams` and `routes`)",
        ),
        (
            "# only a comment\n".to_owned(),
            "-:- .: the file is empty (a first configuration needs `listeners`, `upstreams` and `routes`)",
        ),
        (
            "- a\n".to_owned(),
            "1:1 .: the file is not a block of keys (begin with `listeners:`)",
        ),
        // The text itself.
        (
            two("listeners: {}\n"),
            "14:1 listeners: the key is there twice, first on line 1 (remove one of the two, or rename it)",
        ),
        (
            with(
                "    policy: public\n",
                "    policy: public\n    policy: orders\n",
            ),
            "13:5 routes[0].policy: the key is there twice, first on line 12 (remove one of the two, or rename it)",
        ),
        (
            "{ \"a\": 1, \"a\": 2,\n \"a\": 3 }".to_owned(),
            "1:11 a: the key is there twice, first on line 1 (remove one of the two, or rename it)",
        ),
        (
            with("  orders:\n", "  orders: {}\n  orders:\n"),
            "7:3 upstreams.orders: the key is there twice, first on line 6 (remove one of the two, or rename it)",
        ),
        (
            two("---\na: b\n"),
            "14:1 .: the file holds several documents (everything after the line `---` would be ignored: remove it)",
        ),
        (
            with("path: /orders/{id}", "path: !secret /orders"),
            "10:11 .: tags (`!name`) are not used in this file (remove the tag)",
        ),
        (
            with("policy: public", "policy: \"public\u{7}\""),
            "12:20 .: the control character U+0007 does not belong into the file ()",
        ),
        (
            with("  - name: read", "  - name: [read"),
            "10:9 .: this is not YAML",
        ),
        (
            with("policy: public", "? [a]\n    : b"),
            "12:7 .: a key must be plain text (did you mean to quote it?)",
        ),
        (
            with("authn: [anonymous]", "<<: { authn: [anonymous] }"),
            "11:5 routes[0].<<: unknown key `<<`",
        ),
    ];
    assert!(cases.len() > 40);
    let mut missed = String::new();
    for (text, expected) in cases {
        let errors = errors(&text);
        if !errors.iter().any(|error| error.starts_with(expected)) {
            missed.push_str(&format!("expected {expected}\nfound {errors:#?}\n\n"));
        }
    }
    assert_eq!(missed, "", "{missed}");
}

#[test]
fn everything_wrong_at_once_is_told_at_once() {
    let text = "\
head_timout: 30s
drain_timeout: 30
listeners:
  local: { adress: 127.0.0.1:0 }
upstreams:
  orders: { endpoints: 7 }
  \"bad name\": { endpoints: [] }
routes:
  - name: one
    path: nowhere
    methods: [get, TRACE]
    authn: [nobody]
    policy: none
    upstream: orders
    bounds: { head_timeout: 5, max_body: 5 }
    labels: [a]
  - path: /two
    upstream: order
    unknown: 1
    surprise: 2
";
    let errors = errors(text);
    for expected in [
        "1:1 head_timout:",
        "2:16 drain_timeout:",
        "4:12 listeners.local.adress:",
        "6:24 upstreams.orders.endpoints:",
        "7:3 upstreams.bad name:",
        "15:29 routes[0].bounds.head_timeout:",
        "15:42 routes[0].bounds.max_body:",
        "16:13 routes[0].labels:",
        "17:5 routes[1]: `name` is missing",
        "19:5 routes[1].unknown:",
        "20:5 routes[1].surprise:",
    ] {
        assert!(
            errors.iter().any(|error| error.starts_with(expected)),
            "{expected}: {errors:#?}"
        );
    }
    // In the order of the file.
    let lines: Vec<usize> = errors
        .iter()
        .map(|error| error.split(':').next().unwrap().parse().unwrap())
        .collect();
    assert!(lines.is_sorted(), "{errors:#?}");
}

#[test]
fn all_mistakes_of_a_route_are_told_at_once() {
    let errors = errors(with(
        "    path: /orders/{id}\n    authn: [anonymous]\n    policy: public\n    upstream: orders\n",
        "    path: x\n    hosts: [\"a b\"]\n    methods: [get]\n    headers: { \"a b\": c }\n    listeners: [no]\n    authn: [no]\n    policy: no-such\n    limits: [no]\n    upstream: no\n",
    ));
    assert_eq!(errors.len(), 9, "{errors:#?}");
}

#[test]
fn a_reference_to_a_broken_block_is_no_second_problem() {
    let errors = errors(with(
        "endpoints: [\"http://127.0.0.1:9500\"]",
        "endpoint: x",
    ));
    assert_eq!(errors.len(), 1, "{errors:#?}");
    assert!(errors[0].contains(" upstreams.orders"), "{errors:#?}");
}

#[test]
fn aliases_that_multiply_are_refused_quickly() {
    let mut bomb = String::from("a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n");
    for level in 1..=9 {
        let previous = format!("*a{}", level - 1);
        let items = vec![previous; 10].join(", ");
        bomb.push_str(&format!("a{level}: &a{level} [{items}]\n"));
    }
    let begun = std::time::Instant::now();
    let found = errors(&bomb);
    assert!(
        found[0].contains("values, aliases written out"),
        "{found:#?}"
    );
    assert!(begun.elapsed() < std::time::Duration::from_secs(5));
    let within = errors("a: &a [*a]\n");
    assert!(
        within[0].contains("contains it") || within[0].contains("not YAML"),
        "{within:#?}"
    );
    let many = format!(
        "a: &a x\nb: [{}]\n",
        vec!["*a"; index::MAX_ALIASES + 1].join(", ")
    );
    assert!(errors(&many)[0].contains("aliases"), "{:#?}", errors(&many));
}

#[test]
fn aliases_within_bounds_are_followed() {
    let text = with("authn: [anonymous]", "authn: &open [anonymous]")
        + "  - name: write\n    path: /other\n    authn: *open\n    policy: public\n    upstream: orders\n";
    assert_eq!(
        Folder::new()
            .load(text)
            .unwrap()
            .snapshot
            .routes
            .iter()
            .count(),
        2
    );
}

#[test]
fn routes_that_apply_where_they_did_keep_their_index_and_others_do_not() {
    let folder = Folder::new();
    let first = folder.load(GOOD).unwrap().snapshot;
    let more = "  - name: more\n    path: /more\n    authn: [anonymous]\n    policy: public\n    upstream: orders\n";
    let changed = |text: String| {
        std::fs::write(folder.file(), &text).unwrap();
        let again = load(&folder.file(), Some(&first), &first.metrics).unwrap();
        again.snapshot.routes.is_indexed_as(&first.routes)
    };
    assert!(changed(with("name: read", "name: other")));
    assert!(changed(with(
        "policy: public",
        "policy: public\n    bounds: { max_body: 1KiB }"
    )));
    assert!(!changed(with(
        "path: /orders/{id}",
        "path: /orders/{other}"
    )));
    assert!(!changed(GOOD.to_owned() + more));
    for said in [
        "hosts: [a.example.test]",
        "methods: [GET]",
        "headers: { x-a: b }",
        "listeners: [local]",
        "upgrades: [connect]",
    ] {
        let said = format!("policy: public\n    {said}");
        assert!(!changed(with("policy: public", &said)), "{said}");
    }
    assert!(changed(GOOD.to_owned()));
}

#[test]
fn nesting_is_bounded() {
    for text in [
        "[".repeat(100_000),
        "a: ".to_owned() + &"{ a: ".repeat(100_000),
        "- ".repeat(50_000),
    ] {
        let errors = errors(&text);
        assert!(
            errors[0].contains("nest deeper") || errors[0].contains("not YAML"),
            "{errors:#?}"
        );
    }
}

#[test]
fn the_number_of_values_is_bounded() {
    let text = format!("a: [{}x]\n", "x,".repeat(index::MAX_NODES));
    assert!(errors(&text)[0].contains("values"), "{:#?}", errors(&text));
}

#[test]
fn the_number_of_routes_is_bounded() {
    let text = format!("routes: [{}]\n", vec!["{}"; read::MAX_ROUTES + 1].join(","));
    let errors = errors(&text);
    assert!(
        errors.iter().any(|error| error.contains("more than")),
        "{errors:#?}"
    );
}

#[test]
fn a_document_is_text_of_bounded_size() {
    let found = errors(b"a: b\nc: \xff\n");
    assert!(
        found[0].starts_with("2:4 .: the file is not UTF-8"),
        "{found:#?}"
    );
    let mut large = vec![b'#'; usize::try_from(MAX_DOCUMENT).unwrap()];
    assert!(errors(&large)[0].contains("empty"));
    large.push(b'#');
    assert!(errors(&large)[0].contains("larger than 4 MiB"));
    let missing = load(Path::new("/no/such/gateway.yaml"), None, &Arc::default()).unwrap_err();
    assert!(missing[0].message.contains("cannot read"), "{missing:?}");
    assert!(load(Path::new("/dev/zero"), None, &Arc::default()).is_err());
}

#[test]
fn a_byte_order_mark_and_windows_line_ends_do_no_harm() {
    let text = format!("\u{feff}{}", GOOD.replace('\n', "\r\n"));
    assert!(Folder::new().load(text).is_ok());
}

#[test]
fn the_revision_follows_content() {
    let folder = Folder::new();
    let first = folder.load(GOOD).unwrap().snapshot;
    let again = folder.load(GOOD).unwrap().snapshot;
    assert_eq!(first.revision, again.revision);
    assert_eq!(
        revision_on_disk(&folder.file(), &first.files).unwrap(),
        *first.revision
    );
    let other = folder.load(format!("{GOOD}# more\n")).unwrap().snapshot;
    assert_ne!(first.revision, other.revision);
}

#[test]
fn open_doors_and_unused_parts_are_warned_of() {
    let text = GOOD.replace("127.0.0.1:0", "0.0.0.0:0").replace(
        "  orders:\n",
        "  spare:\n    endpoints: [\"http://10.1.2.3:80\"]\n  orders:\n",
    );
    let loaded = Folder::new().load(text).unwrap();
    let told: Vec<String> = loaded
        .warnings
        .iter()
        .map(|warning| format!("{}:{}", warning.line.unwrap(), warning.message))
        .collect();
    assert_eq!(
        told,
        [
            "4:tokens cross the network in the clear on 0.0.0.0:0",
            "6:no route uses `spare`",
            "7:identity headers cross the network in the clear",
            "14:route `read` is open to everybody",
        ]
    );
}

#[test]
fn ten_thousand_routes_load() {
    let mut text = GOOD.to_owned();
    for number in 0..10_000 {
        text.push_str(&format!(
            "  - {{ name: r{number}, path: \"/service{number}/{{id}}\", authn: [anonymous], policy: public, upstream: orders }}\n"
        ));
    }
    let loaded = Folder::new().load(text).unwrap();
    assert_eq!(loaded.snapshot.routes.iter().count(), 10_001);
}

#[test]
fn the_schema_names_every_section_and_explains_it() {
    let schema = schemars::schema_for!(Document).to_value();
    let sections = schema["properties"].as_object().unwrap();
    for name in [
        "listeners",
        "issuers",
        "policies",
        "limits",
        "upstreams",
        "routes",
        "identity",
        "audit",
        "telemetry",
        "admin",
    ] {
        assert!(sections[name]["description"].is_string(), "{name}");
    }
    assert_eq!(schema["additionalProperties"], false);
    assert_eq!(
        schema["required"],
        serde_json::json!(["listeners", "routes"])
    );
}

#[test]
fn the_schema_accepts_what_loads() {
    let schema = schemars::schema_for!(Document).to_value();
    let mut texts = vec![
        GOOD.to_owned(),
        Folder::new()
            .load(GOOD)
            .unwrap()
            .snapshot
            .effective
            .yaml()
            .unwrap(),
    ];
    let example = Path::new(env!("CARGO_MANIFEST_DIR")).join("gateway.yaml");
    texts.push(std::fs::read_to_string(example).unwrap());
    for text in texts {
        let document: serde_json::Value = serde_yaml::from_str(&text).unwrap();
        assert_eq!(conforms(&schema, &schema, &document, ""), Ok(()), "{text}");
    }
    for text in [
        with("upstream: orders", "upstrem: orders"),
        with("authn: [anonymous]", "authn: 7"),
    ] {
        let document: serde_json::Value = serde_yaml::from_str(&text).unwrap();
        assert!(conforms(&schema, &schema, &document, "").is_err(), "{text}");
    }
}

/// As much of JSON Schema as our own schema uses; a keyword that it does not know is a failure.
fn conforms(
    root: &serde_json::Value,
    schema: &serde_json::Value,
    value: &serde_json::Value,
    at: &str,
) -> Result<(), String> {
    use serde_json::Value as Json;
    let Some(schema) = schema.as_object() else {
        return if schema == &Json::Bool(false) {
            Err(format!("{at}: not allowed"))
        } else {
            Ok(())
        };
    };
    let is = |kind: &Json| match kind.as_str().unwrap() {
        "object" => value.is_object(),
        "array" => value.is_array(),
        "string" => value.is_string(),
        "boolean" => value.is_boolean(),
        "integer" => value.is_i64() || value.is_u64(),
        "number" => value.is_number(),
        "null" => value.is_null(),
        other => panic!("{other}"),
    };
    let fits = |schema: &Json| conforms(root, schema, value, at);
    let members = || schema.get("properties").and_then(Json::as_object);
    for (keyword, rule) in schema {
        let good = match keyword.as_str() {
            "$ref" => {
                let target = rule.as_str().unwrap().strip_prefix('#').unwrap();
                fits(root.pointer(target).unwrap())?;
                true
            }
            "type" => rule
                .as_array()
                .map_or_else(|| is(rule), |kinds| kinds.iter().any(is)),
            "enum" => rule.as_array().unwrap().contains(value),
            "const" => rule == value,
            "oneOf" => {
                rule.as_array()
                    .unwrap()
                    .iter()
                    .filter(|one| fits(one).is_ok())
                    .count()
                    == 1
            }
            "anyOf" => rule.as_array().unwrap().iter().any(|one| fits(one).is_ok()),
            "allOf" => rule.as_array().unwrap().iter().all(|one| fits(one).is_ok()),
            "required" => value.as_object().is_none_or(|object| {
                rule.as_array()
                    .unwrap()
                    .iter()
                    .all(|key| object.contains_key(key.as_str().unwrap()))
            }),
            "properties" => {
                for (key, rule) in rule.as_object().unwrap() {
                    if let Some(member) = value.get(key) {
                        conforms(root, rule, member, &format!("{at}.{key}"))?;
                    }
                }
                true
            }
            "additionalProperties" => {
                for (key, member) in value.as_object().into_iter().flatten() {
                    if !members().is_some_and(|members| members.contains_key(key)) {
                        conforms(root, rule, member, &format!("{at}.{key}"))?;
                    }
                }
                true
            }
            "items" => {
                for (index, item) in value.as_array().into_iter().flatten().enumerate() {
                    conforms(root, rule, item, &format!("{at}[{index}]"))?;
                }
                true
            }
            "minimum" => value
                .as_f64()
                .is_none_or(|number| number >= rule.as_f64().unwrap()),
            "maximum" => value
                .as_f64()
                .is_none_or(|number| number <= rule.as_f64().unwrap()),
            // Patterns are those of the scalars, which loading has read already.
            "pattern" | "format" | "description" | "title" | "default" | "$schema" | "$defs" => {
                true
            }
            other => panic!("the schema uses `{other}`"),
        };
        if !good {
            return Err(format!("{at}: {keyword}: {rule}"));
        }
    }
    Ok(())
}

proptest::proptest! {
    #[test]
    fn no_text_brings_the_reader_down(
        text in "(listeners|routes|a|[-:{}\\[\\],&*!|>'\"%@`#?~ \n\t]|\\PC){0,60}",
    ) {
        let _ = Folder::new().load(text);
    }

    #[test]
    fn no_bytes_bring_the_reader_down(
        bytes in proptest::collection::vec(proptest::num::u8::ANY, 0..64),
    ) {
        let _ = Folder::new().load(bytes);
    }

    #[test]
    fn no_damage_to_a_good_document_brings_the_reader_down(
        at in 0..GOOD.len(), length in 0..20_usize, with in "[-:{}\\[\\],&* a\n]{0,4}",
    ) {
        let mut text = GOOD.to_owned();
        let end = (at + length).min(GOOD.len());
        text.replace_range(at..end, &with);
        let _ = Folder::new().load(text);
    }
}
