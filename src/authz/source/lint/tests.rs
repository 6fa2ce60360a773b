//! A corpus: what must be found, at its place, and policies like those of OPA's documentation in which
//! nothing must be found.

use super::*;
use crate::authz::inspect::{Inspection, RouteWords, Subject, inspect};

fn look(rego: &str, data: &str, entrypoint: &str, routes: Option<RouteWords>) -> Inspection {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("p.rego"), rego).unwrap();
    std::fs::write(folder.path().join("data.json"), data).unwrap();
    let subject = Subject {
        paths: vec!["p.rego".into(), "data.json".into()],
        beside: folder.path().join("gateway.yaml"),
        entrypoints: vec![entrypoint.to_owned()],
        routes,
        data_is_whole: true,
        ..Subject::default()
    };
    let inspection = inspect(&subject);
    assert!(inspection.problems.is_empty(), "{:?}", inspection.problems);
    inspection
}

/// `rule@line`, `!` before errors.
fn found(rego: &str, data: &str) -> Vec<String> {
    let inspection = look(rego, data, "data.p.allow", None);
    inspection
        .findings
        .iter()
        .map(|finding| {
            let mark = if finding.weight == Weight::Error {
                "!"
            } else {
                ""
            };
            format!("{mark}{}@{}", finding.rule, finding.at.0)
        })
        .collect()
}

fn message(rego: &str, data: &str) -> String {
    let inspection = look(rego, data, "data.p.allow", None);
    inspection
        .findings
        .iter()
        .map(|finding| format!("{}: {} ({})\n", finding.rule, finding.message, finding.help))
        .collect()
}

const HEAD: &str = "package p\n\ndefault allow := false\n\n";

#[track_caller]
fn check(body: &str, expect: &[&str]) {
    let rego = format!("{HEAD}{body}\n");
    let found = found(
        &rego,
        r#"{"owners": {"7": "alice"}, "limits": {"read": 5}}"#,
    );
    assert_eq!(
        found,
        expect,
        "{}",
        message(
            &rego,
            r#"{"owners": {"7": "alice"}, "limits": {"read": 5}}"#
        )
    );
}

#[test]
fn paths_that_no_request_has_are_found_with_what_was_meant() {
    for (path, meant) in [
        ("input.request.header.x", "did you mean `headers`?"),
        ("input.requets.method", "did you mean `request`?"),
        ("input.identity.scope", "did you mean `scopes`?"),
        ("input.source.tls.client_certificate.spiffe", "spiffe_id"),
        ("input.request.headers[\"X-Tenant\"]", "write `x-tenant`"),
        ("input.request.headers.authorization", "input.identity"),
        ("input.request.method.name", "has no members"),
        ("input.identity.roles.admin", "in there"),
    ] {
        let rego = format!("{HEAD}allow if {path} == \"x\"\n");
        let text = message(&rego, "{}");
        assert!(text.starts_with("input-path: "), "{path}: {text}");
        assert!(text.contains(meant), "{path}: {text}");
    }
    check(
        "import_me := input.identity\nallow if import_me.subjct == \"x\"",
        &["!data-path@6"],
    );
    check(
        "allow if {\n\tid := input.identity\n\tid.subject == \"x\"\n}",
        &[],
    );
}

#[test]
fn paths_of_data_that_nothing_gives_are_found() {
    check(
        "allow if data.owner[\"7\"] == input.identity.subject",
        &["!data-path@5"],
    );
    check("allow if data.limits.write > 3", &["!data-path@5"]);
    check("allow if data.owners[\"7\"] == input.identity.subject", &[]);
    check("allow if data.q.allowed", &["!data-path@5"]);
    let text = message(
        &format!("{HEAD}allow if data.owner[\"7\"]\n"),
        r#"{"owners": {}}"#,
    );
    assert!(text.contains("did you mean `owners`?"), "{text}");
}

#[test]
fn comparisons_that_never_hold_are_found() {
    for body in [
        "allow if input.request.method == \"get\"",
        "allow if input.request.method in {\"post\"}",
        "allow if input.request.path == \"orders\"",
        "allow if startswith(input.request.path, \"orders/\")",
        "allow if input.request.received_at_ns == \"now\"",
        "allow if input.identity.scopes == \"orders:read\"",
        "allow if input.identity.method == \"JWT\"",
        "allow if 7 in input.identity.roles",
        "allow if input.request.scheme == \"HTTPS\"",
        "allow if lower(input.identity.subject) == \"Alice\"",
        "allow if input.request.host < 5",
        "allow if lower(input.request.received_at_ns) == \"x\"",
    ] {
        check(body, &["!compare@5"]);
    }
    check("allow if input.request.method != \"get\"", &["compare@5"]);
    for body in [
        "allow if input.request.method == \"GET\"",
        "allow if input.request.method in {\"GET\", \"HEAD\"}",
        "allow if startswith(input.request.path, \"/orders/\")",
        "allow if input.identity.client == null",
        "allow if input.identity == null",
        "allow if \"admin\" in input.identity.roles",
        "allow if input.identity.claims.level == 3",
    ] {
        check(body, &[]);
    }
}

#[test]
fn bodies_that_contradict_themselves_are_found() {
    for body in [
        "allow if {\n\tinput.request.method == \"GET\"\n\tinput.request.method == \"POST\"\n}",
        "allow if {\n\tinput.request.method == \"GET\"\n\tnot input.request.method == \"GET\"\n}",
        "allow if {\n\tinput.request.method in {\"GET\", \"HEAD\"}\n\tinput.request.method == \"PUT\"\n}",
        "allow if {\n\tinput.identity.claims.level > 5\n\tinput.identity.claims.level < 3\n}",
        "allow if {\n\tinput.request.method == \"GET\"\n\tfalse\n}",
    ] {
        check(body, &["!never-holds@7"]);
    }
    check(
        "allow if {\n\tsome role in input.identity.roles\n\trole == \"a\"\n\tinput.identity.roles[_] == \"b\"\n\tinput.identity.roles[_] == \"c\"\n}",
        &[],
    );
}

#[test]
fn denials_that_vanish_are_found_and_tried() {
    // Without the claim nothing denies.
    check(
        "allow if not deny\n\ndeny if input.identity.claims.tenant != \"acme\"",
        &["!fails-open@7"],
    );
    check(
        "allow if count(denials) == 0\n\ndenials contains \"level\" if input.identity.claims.level < 3",
        &["!fails-open@7"],
    );
    check(
        "allow if not deny\n\ndeny if {\n\tlevel := input.identity.claims.level\n\tlevel < 3\n}",
        &["!fails-open@9"],
    );
    // Said for the missing one too.
    check(
        "allow if not deny\n\ndeny if input.identity.claims.tenant != \"acme\"\n\ndeny if not input.identity.claims.tenant",
        &[],
    );
    // Turned round, what is missing is denied.
    check(
        "allow if not deny\n\ndeny if not input.identity.claims.tenant == \"acme\"",
        &[],
    );
    // To look for something bad is no requirement.
    check(
        "allow if not deny\n\ndeny if input.identity.claims.status == \"suspended\"",
        &[],
    );
    // An allow that vanishes is a no.
    check("allow if input.identity.claims.level > 3", &[]);
    // What is always there cannot be missing.
    check(
        "allow if not deny\n\ndeny if input.request.method != \"GET\"",
        &[],
    );
}

#[test]
fn a_yes_to_everything_and_an_answer_to_not_everything_are_found() {
    assert_eq!(
        found("package p\n\nallow := true\n", "{}"),
        ["!always-allows@3"]
    );
    assert_eq!(
        found(
            "package p\n\ndefault allow := true\n\nallow := false if input.request.method == \"GET\"\n",
            "{}"
        ),
        ["!always-allows@3"]
    );
    assert_eq!(
        found(
            "package p\n\nallow if input.request.method == \"GET\"\n",
            "{}"
        ),
        ["no-default@3"]
    );
}

#[test]
fn what_nothing_leads_to_and_nothing_uses_is_found() {
    assert_eq!(
        found(
            "package p\n\nimport data.owners\n\ndefault allow := false\n\nallow if input.request.method == \"GET\"\n\nhelper if input.request.method == \"PUT\"\n",
            "{}"
        ),
        ["unused@3", "unreachable@9"]
    );
    check(
        "allow if {\n\tx := input.request.method\n\ty := input.request.path\n\ty == \"/\"\n}",
        &["unused@6"],
    );
    check(
        "allow if {\n\t_x := input.request.method\n\tsome k, v in data.owners\n\tk == input.route.params.id\n\tv == input.identity.subject\n}",
        &[],
    );
    check(
        "test_it if helper\n\nhelper if true\n\nallow if input.request.method == \"GET\"",
        &[],
    );
}

#[test]
fn a_comment_waives_a_finding_by_name_and_no_other() {
    check(
        "# portcullis: ignore[compare]\nallow if input.request.method == \"get\"",
        &[],
    );
    check(
        "allow if input.request.method == \"get\" # portcullis: ignore",
        &[],
    );
    check(
        "# portcullis: ignore[unused]\nallow if input.request.method == \"get\"",
        &["!compare@6"],
    );
    check(
        "# portcullis: ignore-file[compare]\n\nallow if input.request.method == \"get\"",
        &[],
    );
}

#[test]
fn what_no_route_says_is_a_warning() {
    let routes = RouteWords {
        names: ["read".to_owned()].into(),
        labels: [("action".to_owned(), (["read".to_owned()].into(), true))].into(),
        params: [("id".to_owned(), true)].into(),
        anonymous: false,
    };
    let rego = format!(
        "{HEAD}allow if input.route.labels.action == \"raed\"\n\nallow if input.route.params.order == \"7\"\n\nallow if input.route.name == \"read\"\n"
    );
    let inspection = look(&rego, "{}", "data.p.allow", Some(routes));
    let told: Vec<_> = inspection
        .findings
        .iter()
        .map(|finding| (finding.rule, finding.weight, finding.help.as_str()))
        .collect();
    assert_eq!(
        told,
        [
            ("compare", Weight::Warning, "did you mean `read`?"),
            ("input-path", Weight::Warning, "there are: `id`")
        ]
    );
}

#[test]
fn policies_as_opas_documentation_has_them_are_fine() {
    // The ideas of OPA's own examples (HTTP APIs, RBAC, ABAC, JWT, allow-lists), on our input.
    let good = [
        // owners and managers
        "allow if {\n\tinput.request.method == \"GET\"\n\tinput.request.segments == [\"finance\", \"salary\", username]\n\tinput.identity.subject == username\n}\n\nallow if {\n\tinput.request.method == \"GET\"\n\tinput.request.segments == [\"finance\", \"salary\", employee]\n\temployee in subordinates[input.identity.subject]\n}\n\nsubordinates := {\"alice\": [], \"bob\": [\"alice\"], \"betty\": [\"charlie\"]}",
        // roles
        "allow if user_is_admin\n\nallow if {\n\tsome grant in user_is_granted\n\tinput.request.method == grant.action\n\tinput.route.labels.type == grant.type\n}\n\nuser_is_admin if \"admin\" in input.identity.roles\n\nuser_is_granted contains grant if {\n\tsome role in input.identity.roles\n\tsome grant in role_grants[role]\n}\n\nrole_grants := {\"reader\": [{\"action\": \"GET\", \"type\": \"order\"}]}",
        // attributes
        "allow if {\n\tuser_is_employee\n\taction_is_read\n}\n\nallow if {\n\tuser_is_customer\n\taction_is_update\n}\n\nuser_is_employee if input.identity.claims.title in {\"clerk\", \"boss\"}\n\nuser_is_customer if input.identity.claims.customer == true\n\naction_is_read if input.request.method == \"GET\"\n\naction_is_update if input.request.method == \"PATCH\"",
        // lists of what is denied, with a message each
        "allow if count(violation) == 0\n\nviolation contains msg if {\n\tsome name in input.identity.roles\n\tname == \"banned\"\n\tmsg := sprintf(\"%s is banned\", [name])\n}",
        // negation and every
        "allow if {\n\tnot any_public\n\tevery role in input.identity.roles {\n\t\tstartswith(role, \"team:\")\n\t}\n}\n\nany_public if {\n\tsome role in input.identity.roles\n\trole == \"public\"\n}",
        // networks
        "allow if net.cidr_contains(\"10.0.0.0/8\", input.source.address)",
        // functions
        "allow if is_weekday(input.request.received_at_ns)\n\nis_weekday(ns) if {\n\tday := time.weekday(ns)\n\tnot day in {\"Saturday\", \"Sunday\"}\n}",
        // comprehensions
        "allow if {\n\tgranted := {scope | some scope in input.identity.scopes; startswith(scope, \"orders:\")}\n\tcount(granted) > 0\n}",
        // object.get with a default
        "allow if object.get(input.identity.claims, \"tier\", \"free\") == \"gold\"",
        // a decision by another rule's else
        "allow if level == \"high\"\n\nlevel := \"high\" if {\n\t\"admin\" in input.identity.roles\n} else := \"low\"",
        // headers by name
        "allow if input.request.headers[\"x-tenant\"] == input.identity.claims.tenant",
        // query parameters
        "allow if input.request.query.page[0] == \"1\"",
    ];
    for body in good {
        check(body, &[]);
    }
}

#[test]
fn a_policy_that_does_not_parse_is_a_problem_and_not_a_panic() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("p.rego"), "package p\n\nallow if {").unwrap();
    let inspection = inspect(&Subject {
        paths: vec!["p.rego".into()],
        beside: folder.path().join("gateway.yaml"),
        ..Subject::default()
    });
    assert!(inspection.findings.is_empty());
    assert_eq!(inspection.problems.len(), 1);
}
