use super::*;

fn files(files: &[(&str, &str)]) -> Files {
    files
        .iter()
        .map(|(name, text)| ((*name).to_owned(), text.as_bytes().to_vec()))
        .collect()
}

fn read(said: &[(&str, &str)]) -> Result<Content, Fault> {
    Content::read(&files(said), 0, None, 1_000)
}

#[track_caller]
fn refused(said: &[(&str, &str)], kind: Kind, words: &str) {
    let fault = read(said).expect_err(words);
    let text = fault.to_string();
    assert_eq!(fault.kind, kind, "{text}");
    assert!(text.contains(words), "{text}");
}

#[test]
fn files_go_where_opa_puts_them() {
    let content = read(&[
        (
            ".manifest",
            r#"{"revision": "v1", "roots": ["a", "b/c"], "rego_version": 1, "extra": [1]}"#,
        ),
        ("data.json", r#"{"a": {"x": 1}, "b": {"c": {"y": 2}}}"#),
        ("a/deep/er/data.yaml", "[1, 2]"),
        ("a/z/data.yml", "k: v\n"),
        ("a/other.json", "not even json"),
        ("README.md", "hello"),
        ("policy/p.rego", "# a comment\n\npackage a.policy\n"),
        ("policy/p_test.rego", "package a.policy"),
    ])
    .unwrap();
    let expected = br#"{"a":{"x":1,"deep":{"er":[1,2]},"z":{"k":"v"}},"b":{"c":{"y":2}}}"#;
    assert_eq!(content.data, document::from_json(expected).unwrap());
    assert_eq!((content.label().as_str(), content.ignored), ("v1", 2));
    assert_eq!(content.modules.len(), 2);
    assert_eq!(content.modules[0].package, ["a", "policy"]);
    assert_eq!(content.documents.len(), 3);
}

#[test]
fn without_a_manifest_everything_is_owned_and_the_content_names_itself() {
    let content = read(&[("data.json", "{\"x\": 1}"), ("p.rego", "package p")]).unwrap();
    assert!(content.owns(&["anything".to_owned()]));
    assert!(content.label().starts_with("sha256:"));
    let other = read(&[("data.json", "{\"x\": 2}"), ("p.rego", "package p")]).unwrap();
    assert_ne!(content.digest, other.digest);
}

// The cases of OPA's own tests of roots.
#[test]
fn roots_are_kept_to() {
    let manifest = (".manifest", r#"{"roots": ["a", "b", "c/d"]}"#);
    for (name, text, words) in [
        ("x.rego", "package c.e", "the package `c.e` lies outside"),
        ("x.rego", "package ab", "the package `ab` lies outside"),
        ("x.rego", "package c", "the package `c` lies outside"),
        (
            "c/e/data.json",
            "\"bad bad bad\"",
            "`data.c.e` lies outside",
        ),
        ("data.json", r#"{"a": 1, "q": 2}"#, "`data.q` lies outside"),
        ("data.json", r#"{"c": 1}"#, "`data.c` lies outside"),
        (
            "c/data.json",
            r#"{"d": 1, "f": 2}"#,
            "`data.c.f` lies outside",
        ),
    ] {
        refused(&[manifest, (name, text)], Kind::Manifest, words);
    }
    for (name, text) in [
        ("x.rego", "package b.c"),
        ("x.rego", "package c.d"),
        ("data.json", r#"{"c": {"d": {"e": 1}}, "b": 1}"#),
        ("data.json", "{}"),
        ("c/d/data.json", "7"),
    ] {
        read(&[manifest, (name, text)]).unwrap();
    }
    refused(
        &[(".manifest", r#"{"roots": []}"#), ("x.rego", "package x")],
        Kind::Manifest,
        "outside",
    );
    read(&[(
        ".manifest",
        r#"{"roots": ["a", "another_root", "/slashes/"]}"#,
    )])
    .unwrap();
    for (roots, words) in [
        (r#"["a/b", "a"]"#, "the roots \"a\" and \"a/b\" overlap"),
        (r#"["a", "a-b", "a/b"]"#, "overlap"),
        (r#"["", "a"]"#, "overlap"),
        (r#"["a/../b"]"#, "no path of `data`"),
        (r#"[".."]"#, "no path of `data`"),
        (r#"["a//b"]"#, "no path of `data`"),
        (r#""a""#, "not a list"),
        ("[1]", "not a list of texts"),
    ] {
        refused(
            &[(".manifest", &format!(r#"{{"roots": {roots}}}"#))],
            Kind::Manifest,
            words,
        );
    }
}

#[test]
fn a_manifest_of_wrong_types_is_refused_by_key() {
    for (text, words) in [
        ("[]", "not an object"),
        ("{", ".manifest:1:"),
        (r#"{"revision": 7}"#, "`revision` is not text"),
        (r#"{"revision": "a\nb"}"#, "control characters"),
        (r#"{"revision": "a", "revision": "b"}"#, "occurs twice"),
        (r#"{"rego_version": 2}"#, "`rego_version`"),
        (r#"{"rego_version": "1"}"#, "`rego_version`"),
        (r#"{"file_rego_versions": []}"#, "`file_rego_versions`"),
        (r#"{"file_rego_versions": {"/x.rego": 3}}"#, "`/x.rego`"),
        (r#"{"metadata": "x"}"#, "`metadata`"),
        (
            r#"{"metadata": {"sequence": "new"}}"#,
            "`metadata.sequence`",
        ),
    ] {
        refused(&[(".manifest", text)], Kind::Manifest, words);
    }
    let long = format!(r#"{{"revision": "{}"}}"#, "r".repeat(MAX_REVISION + 1));
    refused(
        &[(".manifest", &long)],
        Kind::Manifest,
        "longer than 256 bytes",
    );
    read(&[(
        ".manifest",
        r#"{"revision": null, "roots": null, "wasm": [], "metadata": {"sequence": 4}}"#,
    )])
    .unwrap();
}

#[test]
fn forms_that_are_not_taken_are_refused_by_name() {
    refused(
        &[("patch.json", r#"{"data": []}"#)],
        Kind::Unsupported,
        "delta bundle",
    );
    refused(&[("policy.wasm", "x")], Kind::Unsupported, "WebAssembly");
    let resolvers = r#"{"wasm": [{"entrypoint": "a/b", "module": "/policy.wasm"}]}"#;
    refused(
        &[(".manifest", resolvers)],
        Kind::Unsupported,
        "WebAssembly",
    );
    let old = (".manifest", r#"{"rego_version": 0}"#);
    refused(
        &[old, ("p.rego", "package p")],
        Kind::Unsupported,
        "Rego version 0",
    );
    // Data has no version.
    read(&[old, ("data.json", "{}")]).unwrap();
    let mixed = (".manifest", r#"{"file_rego_versions": {"/a/*.rego": 0}}"#);
    refused(
        &[mixed, ("p.rego", "package p")],
        Kind::Unsupported,
        "opa fmt",
    );
}

#[test]
fn what_opa_would_take_for_something_else_is_refused() {
    for name in [
        "a/.manifest",
        "x.manifest",
        "signatures.json",
        "a/.signatures.json",
    ] {
        refused(&[(name, "{}")], Kind::Manifest, "OPA would take the file");
    }
    refused(
        &[(".a/data.json", "{}")],
        Kind::Content,
        "begins with a dot",
    );
}

#[test]
fn data_that_cannot_be_read_or_is_given_twice_names_its_place() {
    let deep = format!("{}1{}", "[".repeat(100), "]".repeat(100));
    for (text, words) in [
        ("{\n  \"a\": 1,\n}", "a/data.json:3:1: "),
        ("{\"a\": 1, \"a\": 2}", "`a` occurs twice"),
        (deep.as_str(), "nested deeper than 64"),
        ("{} {}", "trailing"),
    ] {
        refused(&[("a/data.json", text)], Kind::Content, words);
    }
    refused(&[("data.json", "[1]")], Kind::Content, "not an object");
    refused(
        &[("data.json", r#"{"a": {"b": 1}}"#), ("a/b/data.json", "2")],
        Kind::Content,
        "`data.a.b` is also given by",
    );
    let bad: Files = [("x.rego".to_owned(), b"package x\n\n\xff".to_vec())].into();
    let fault = Content::read(&bad, 0, None, 1_000).unwrap_err();
    assert_eq!(fault.to_string(), "x.rego:3:1: the module is not UTF-8");
}

#[test]
fn packages_are_read_as_they_are_written() {
    for (text, path) in [
        ("package a", vec!["a"]),
        ("# c\n\r\n  package\ta.b_c.d1 # x", vec!["a", "b_c", "d1"]),
        ("package a[\"b-c/d\"].e\nx := 1", vec!["a", "b-c/d", "e"]),
        ("package a;x := 1", vec!["a"]),
    ] {
        assert_eq!(package(text).unwrap(), path, "{text}");
    }
    for text in [
        "",
        "packagea",
        "package",
        "package 1a",
        "import a\npackage b",
        "package a-b",
        "package a[b]",
        "package a .b",
        "package\na",
    ] {
        assert_eq!(package(text), None, "{text}");
    }
}
