use proptest::prelude::*;
use serde_json::json;

use super::*;
use crate::config::index;

/// What a document says when it is read at once: its routes and the rest.
fn at_once(text: &str) -> (Value, Vec<RouteConfig>) {
    let mut whole: Value = serde_yaml::from_str(text).unwrap();
    let routes = whole.get_mut("routes").unwrap();
    let items = std::mem::replace(routes, Value::Sequence(Vec::new()));
    let routes = items.as_sequence().unwrap().iter().cloned();
    let read = |item| RouteConfig::deserialize(item).unwrap();
    (whole, routes.map(read).collect())
}

fn apart(text: &str) -> Option<Apart> {
    let (faults, list) = index::look(text);
    assert_eq!(faults, [], "{text}");
    read(text, &list?)
}

/// That a document is read route by route, and that it says the same.
fn agrees(text: &str) {
    let apart = apart(text).unwrap_or_else(|| panic!("read at once: {text}"));
    assert!((apart.rest, apart.routes) == at_once(text), "{text}");
}

const BLOCKS: &str = "\
upstreams: { up: {} } # é, before the list
routes:
  # the first
  - name: one
    path: /é/{id}
    authn: [anonymous]   # `- name:` in a comment
    policy: public
    upstream: up

  -   name: two
      authn:
        - anonymous
      policy: public
      path: \"/two\"
      labels:
        text: |+
          - name: not a route

      upstream: up
  - { name: three, path: '/{*rest}', authn: [anonymous], policy: public, upstream: up }
  -
    name: four
    path: /four
    upstream: up
    authn: [anonymous]
    policy: public
    labels:
      folded: >
        a
        b
  
# behind it
identity: {}
";

#[test]
fn every_way_to_write_routes_says_the_same_read_one_by_one() {
    agrees(BLOCKS);
    agrees(&BLOCKS.replace('\n', "\r\n"));
    agrees(BLOCKS.trim_end());
    agrees(BLOCKS.split_once("# behind").unwrap().0);
    agrees(BLOCKS.split_once("  \n#").unwrap().0.trim_end());
    // A list as far left as its key.
    let dedented: Vec<&str> = BLOCKS
        .lines()
        .map(|line| line.strip_prefix("  ").unwrap_or(line))
        .collect();
    agrees(&dedented.join("\n"));
    agrees(&format!("---\n{BLOCKS}...\n"));
    let (_, routes) = at_once(BLOCKS);
    let document = json!({ "identity": {}, "routes": routes, "upstreams": { "up": {} } });
    agrees(&document.to_string());
    agrees(&format!("{document:#}\n"));
    agrees(&format!("# comment\n{document:#}\n"));
    agrees(&serde_yaml::to_string(&document).unwrap());
    let flow = json!(routes).to_string();
    agrees(&format!("identity: {{}}\nroutes: {flow}\nadmin: {{}}\n"));
    let open = flow.trim_end_matches(']');
    agrees(&format!(
        "identity: {{}}\nroutes: {open} ,\n ]\nadmin: {{}}\n"
    ));
}

#[test]
fn in_doubt_nothing_is_read_apart() {
    let one = "{ name: one, path: /, authn: [anonymous], policy: public, upstream: up }";
    for text in [
        // Parts that are said elsewhere.
        format!("a: &here [anonymous]\nroutes: [{one}]\n"),
        format!("routes:\n  - &one {one}\n  - *one\n"),
        // What is no list of blocks, or no route.
        "routes: []\n".to_owned(),
        "a: 1\n".to_owned(),
        format!("routes: {one}\n"),
        format!("routes: [{one}, two]\n"),
        format!("routes: [{one}, [{one}]]\n"),
        format!("routes: [{one}, {{ name: two }}]\n"),
        format!("routes: [{}]\n", one.replace("policy", "polizy")),
        format!("routes: [{}]\n", one.replace("one,", "1,")),
        // A comment where the list ends.
        format!("routes: [{one} # ]\n]\n"),
        format!("nested:\n  routes: [{one}]\n"),
    ] {
        assert!(apart(&text).is_none(), "{text}");
    }
    let one = json!({ "name": "one", "path": "/", "authn": ["anonymous"], "policy": "public", "upstream": "up" });
    let many = |count| json!({ "routes": vec![&one; count] }).to_string();
    agrees(&many(3));
    assert!(apart(&many(MAX_ROUTES + 1)).is_none());
}

#[test]
fn a_place_that_was_counted_in_another_way_is_not_cut() {
    let (_, list) = index::look(BLOCKS);
    let list = list.unwrap();
    for by in [1, 2, 5] {
        let mut off = List {
            begin: list.begin,
            values: list.values,
            items: Vec::new(),
        };
        for item in &list.items {
            off.items.push(Item {
                place: item.place.start + by..item.place.end + by,
                ..*item
            });
        }
        assert!(read(BLOCKS, &off).is_none(), "{by}");
    }
    let fewer = List {
        values: list.values - 1,
        ..list
    };
    assert!(read(BLOCKS, &fewer).is_none());
}

/// Text with what means something in YAML.
fn text() -> impl Strategy<Value = String> {
    "[-a-z0-9 :#,{}\\[\\]'\"é|>&*!%@?~\\n\\t\\\\]{0,12}"
}

proptest! {
    #[test]
    fn any_text_in_routes_says_the_same(
        labels in prop::collection::vec(prop::collection::btree_map(text(), text(), 0..4), 1..5),
        key in text(),
    ) {
        let route = |(number, labels)| json!({
            "name": format!("r{number}"), "path": "/", "authn": ["anonymous"], "policy": "public", "upstream": "up",
            "labels": labels,
        });
        let routes: Vec<_> = labels.iter().enumerate().map(route).collect();
        let mut document = json!({ "a": { key.as_str(): key }, "routes": routes, "z": [key] });
        for text in [
            document.to_string(),
            format!("{document:#}"),
            serde_yaml::to_string(&document).unwrap(),
        ] {
            agrees(&text);
        }
        document.as_object_mut().unwrap().remove("z");
        agrees(&serde_yaml::to_string(&document).unwrap());
    }
}
