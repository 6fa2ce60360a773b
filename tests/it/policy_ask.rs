//! Questions about access, asked of the real binary: `policy check`, `can-i`, `who-can`, `routes`, `diff`.

use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::support::program::policy_in as policy;

const REGO: &str = r#"package orders

default decision := {"allow": false, "reason": "orders.no"}

decision := {"allow": true, "reason": "orders.clerk"} if {
	input.request.method == "GET"
	"orders:read" in input.identity.scopes
	"clerk" in input.identity.roles
}

else := {"allow": true, "reason": "orders.owner"} if {
	input.request.method == "GET"
	data.owners[input.route.params.id] == input.identity.subject
}
"#;

const DATA: &str = "owners:\n  \"1001\": alice\n  \"1002\": dave\n";

const CALLERS: &str = "alice: { claims: { sub: alice } }
bob: { claims: { sub: bob, scope: \"orders:read\", roles: [clerk] } }
mallory: { claims: { sub: mallory } }
";

const KEYS: &str = r#"{"keys":[{"kty":"EC","crv":"P-256","kid":"a","use":"sig","alg":"ES256",
 "x":"f83OJ3D2xF1Bg8vub9tLe1gHMzV76e8Tus9uPHvRVEU","y":"x_FEzRu9m36HLN_tue659LNpXW6pCyStikYjKIWI5a0"}]}"#;

fn document() -> Value {
    json!({
        "listeners": {"local": {"address": "127.0.0.1:0", "plaintext": true}},
        "issuers": {"main": {
            "issuer": "https://issuer.example.test", "keys": {"file": "keys.json"},
            "audiences": ["https://api.example.test"], "algorithms": ["ES256"],
            "claims": {"roles": "roles"},
        }},
        "limits": {"each": {"by": "subject", "rate": "5/s", "burst": 5}},
        "upstreams": {"main": {"endpoints": ["http://127.0.0.1:1"]}},
        "policies": {"orders": {"files": ["policies/"], "entrypoint": "data.orders.decision"}},
        "routes": [
            {"name": "status", "path": "/status", "methods": ["GET"], "authn": ["anonymous"], "policy": "public", "upstream": "main"},
            {"name": "order", "path": "/orders/{id}", "methods": ["GET", "PUT"], "authn": ["main"], "policy": "orders", "limits": ["each"], "upstream": "main"},
        ],
    })
}

fn write(folder: &Path, document: &Value, rego: &str) {
    std::fs::create_dir_all(folder.join("policies")).unwrap();
    std::fs::write(folder.join("gateway.yaml"), document.to_string()).unwrap();
    std::fs::write(folder.join("policies/orders.rego"), rego).unwrap();
    std::fs::write(folder.join("policies/data.yaml"), DATA).unwrap();
    std::fs::write(folder.join("callers.yaml"), CALLERS).unwrap();
    std::fs::write(folder.join("keys.json"), KEYS).unwrap();
}

fn folder() -> TempDir {
    let folder = TempDir::new().unwrap();
    write(folder.path(), &document(), REGO);
    folder
}

fn out(output: &Output) -> String {
    format!(
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    )
}

fn answer(folder: &Path, arguments: &[&str]) -> (Option<i32>, Value) {
    let mut all = arguments.to_vec();
    all.extend(["--format", "json"]);
    let output = policy(folder, &all);
    let answer = serde_json::from_slice(&output.stdout)
        .unwrap_or_else(|error| panic!("{error}: {}", out(&output)));
    (output.status.code(), answer)
}

#[test]
fn can_i_answers_with_the_route_the_policy_and_what_the_client_would_see() {
    let folder = folder();
    let output = policy(
        folder.path(),
        &["can-i", "GET", "/orders/1001", "--as", "alice"],
    );
    let text = out(&output);
    assert_eq!(output.status.code(), Some(0), "{text}");
    assert!(text.starts_with("yes: orders.owner\n"), "{text}");
    assert!(
        text.contains("not checked    revocations, limits (each)"),
        "{text}"
    );

    let output = policy(
        folder.path(),
        &["can-i", "GET", "/orders/1002", "--as", "alice"],
    );
    let text = out(&output);
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert!(
        text.starts_with("no: the policy says no: orders.no\n"),
        "{text}"
    );
    assert!(text.contains("client sees    403 denied"), "{text}");

    let (code, answer) = answer(folder.path(), &["can-i", "GET", "/orders/1", "--anonymous"]);
    assert_eq!(code, Some(1));
    assert_eq!(answer["stage"], "authentication");
    assert_eq!(
        answer["client"],
        json!({"status": 401, "code": "unauthenticated"})
    );
    assert_eq!(answer["authentication"], json!(["main"]));
}

#[test]
fn can_i_reads_claims_and_requests_as_people_paste_them() {
    let folder = folder();
    let claims = r#"{"sub": "eve", "scope": "orders:read", "roles": ["clerk"]}"#;
    let pasted = "GET /orders/7?full=1 HTTP/1.1\r\nHost: api.example.test\r\nAccept: */*\r\n\r\n";
    let mut child = Command::new(env!("CARGO_BIN_EXE_portcullis"))
        .args([
            "policy",
            "can-i",
            "--request",
            "-",
            "--claims",
            claims,
            "--format",
            "json",
        ])
        .current_dir(folder.path())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    child
        .stdin
        .take()
        .unwrap()
        .write_all(pasted.as_bytes())
        .unwrap();
    let output = child.wait_with_output().unwrap();
    let answer: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(answer["allowed"], true, "{answer}");
    assert_eq!(answer["request"]["host"], "api.example.test");
    assert_eq!(answer["assumed"], json!(["iss", "aud", "exp"]));
}

#[test]
fn a_question_that_makes_no_sense_says_so_and_is_no_no() {
    let folder = folder();
    for (arguments, told) in [
        (&["can-i", "GET", "/orders/1"][..], "who asks?"),
        (
            &["can-i", "get", "/orders/1", "--as", "alice"],
            "did you mean `GET`?",
        ),
        (
            &["can-i", "GET", "orders/1", "--as", "alice"],
            "neither a URL nor a path",
        ),
        (
            &["can-i", "GET", "/orders/1", "--as", "alise"],
            "did you mean `alice`?",
        ),
        (&["can-i", "GET", "/orders/1", "--claims", "{"], "no JSON"),
        (
            &["check", "--ignore", "fail-open"],
            "did you mean `fails-open`?",
        ),
        (
            &["diff", "nosuch"],
            "neither a file, nor a folder, nor a revision",
        ),
    ] {
        let output = policy(folder.path(), arguments);
        assert_eq!(
            output.status.code(),
            Some(2),
            "{arguments:?}: {}",
            out(&output)
        );
        assert!(
            out(&output).contains(told),
            "{arguments:?}: {}",
            out(&output)
        );
    }
}

#[test]
fn who_can_finds_every_way_in_and_names() {
    let folder = folder();
    let (code, answer) = answer(folder.path(), &["who-can", "GET", "/orders/1001"]);
    assert_eq!(code, Some(0), "{answer:#}");
    let ways: Vec<&Value> = answer["by_proof"][0]["ways"]
        .as_array()
        .unwrap()
        .iter()
        .map(|way| &way["facts"])
        .collect();
    assert_eq!(ways.len(), 2, "{answer:#}");
    assert!(ways.contains(&&json!(["subject alice"])), "{answer:#}");
    assert!(
        ways.contains(&&json!(["scope orders:read", "role clerk"])),
        "{answer:#}"
    );
    assert_eq!(answer["by_proof"][0]["complete"], true);
    let allowed: Vec<&str> = answer["callers"]
        .as_array()
        .unwrap()
        .iter()
        .filter(|caller| caller["allowed"] == true)
        .map(|caller| caller["name"].as_str().unwrap())
        .collect();
    assert_eq!(allowed, ["alice", "bob"]);

    let output = policy(folder.path(), &["who-can", "PUT", "/orders/1001"]);
    assert_eq!(output.status.code(), Some(1), "{}", out(&output));
    let output = policy(folder.path(), &["who-can", "GET", "/status"]);
    assert!(
        out(&output).contains("everybody, without a credential"),
        "{}",
        out(&output)
    );
}

#[test]
fn routes_without_authentication_are_listed() {
    let folder = folder();
    let (code, answer) = answer(folder.path(), &["routes", "--unauthenticated"]);
    assert_eq!(code, Some(0));
    let names: Vec<&Value> = answer["routes"]
        .as_array()
        .unwrap()
        .iter()
        .map(|route| &route["name"])
        .collect();
    assert_eq!(names, ["status"]);
    let output = policy(folder.path(), &["routes"]);
    let text = out(&output);
    assert!(
        text.contains("open to everybody") && text.contains("2 routes, 1 without a credential"),
        "{text}"
    );
}

#[test]
fn check_names_what_would_bite_with_its_place_and_how_to_mend_it() {
    let folder = folder();
    let output = policy(folder.path(), &["check"]);
    assert_eq!(output.status.code(), Some(0), "{}", out(&output));

    let misspelt = REGO
        .replace("input.identity.scopes", "input.identity.scope")
        .replace("data.owners", "data.owner");
    write(folder.path(), &document(), &misspelt);
    let (code, answer) = answer(folder.path(), &["check"]);
    assert_eq!(code, Some(1), "{answer:#}");
    let findings = answer["findings"].as_array().unwrap();
    let of = |rule: &str| findings.iter().find(|one| one["rule"] == rule).unwrap();
    assert_eq!(of("input-path")["line"], 7);
    assert_eq!(of("input-path")["help"], "did you mean `scopes`?");
    assert_eq!(of("data-path")["line"], 13);
    assert!(
        of("data-path")["file"]
            .as_str()
            .unwrap()
            .ends_with("policies/orders.rego")
    );

    let ignored = policy(
        folder.path(),
        &["check", "--ignore", "input-path,data-path"],
    );
    assert_eq!(ignored.status.code(), Some(0), "{}", out(&ignored));
}

#[test]
fn diff_tells_who_gains_and_who_loses_with_an_example() {
    let old = folder();
    let new = folder();
    let same = policy(new.path(), &["diff", old.path().to_str().unwrap()]);
    assert_eq!(same.status.code(), Some(0), "{}", out(&same));
    assert!(
        out(&same).contains("nobody gains or loses access"),
        "{}",
        out(&same)
    );

    // Auditors come in, owners no longer do, a limit goes, a route is opened.
    let rego = REGO
        .replace("\"clerk\" in input.identity.roles", "some role in input.identity.roles\n\trole in {\"clerk\", \"auditor\"}")
        .replace("\nelse := {\"allow\": true, \"reason\": \"orders.owner\"} if {\n\tinput.request.method == \"GET\"\n\tdata.owners[input.route.params.id] == input.identity.subject\n}\n", "");
    let mut document = document();
    document["routes"][1]["limits"] = json!([]);
    write(new.path(), &document, &rego);
    let (code, answer) = answer(new.path(), &["diff", old.path().to_str().unwrap()]);
    assert_eq!(code, Some(1), "{answer:#}");
    let who = |list: &str| -> Vec<String> {
        answer[list]
            .as_array()
            .unwrap()
            .iter()
            .map(|change| {
                format!(
                    "{} {} {}",
                    change["method"].as_str().unwrap(),
                    change["path"].as_str().unwrap(),
                    change["caller"].as_str().unwrap()
                )
            })
            .collect()
    };
    assert_eq!(
        who("gains"),
        ["GET /orders/{id} scope orders:read + role auditor"],
        "{answer:#}"
    );
    let loses = who("loses");
    assert!(
        loses.contains(&"GET /orders/{id} alice".to_owned()),
        "{answer:#}"
    );
    let change = &answer["loses"][0];
    assert_eq!(
        (change["old"].as_str(), change["new"].as_str()),
        (Some("yes orders.owner"), Some("no orders.no"))
    );
    let settings = answer["configuration"].to_string();
    assert!(settings.contains("route order: limit lifted"), "{settings}");
}

#[test]
fn diff_takes_revisions_out_of_git_and_leaves_the_repository_alone() {
    let git = |folder: &Path, arguments: &[&str]| -> Option<Output> {
        Command::new("git")
            .arg("-C")
            .arg(folder)
            .args(["-c", "user.name=t", "-c", "user.email=t@example.test"])
            .args(arguments)
            .output()
            .ok()
            .filter(|output| output.status.success())
    };
    let folder = folder();
    if git(folder.path(), &["init", "-q"]).is_none() {
        assert!(std::env::var_os("CI").is_none(), "git is not there");
        return;
    }
    // As certificates are: not in the repository.
    std::fs::write(folder.path().join(".gitignore"), "keys.json\n").unwrap();
    git(folder.path(), &["add", "-A"]).unwrap();
    git(folder.path(), &["commit", "-qm", "first"]).unwrap();
    let mut opened = document();
    opened["routes"][1]["authn"] = json!(["anonymous"]);
    opened["routes"][1]["policy"] = json!("public");
    write(folder.path(), &opened, REGO);
    let before = git(folder.path(), &["status", "--porcelain"])
        .unwrap()
        .stdout;
    let (code, answer) = answer(folder.path(), &["diff", "HEAD", "--fail-on", "gains"]);
    assert_eq!(code, Some(1), "{answer:#}");
    let gains = answer["gains"].to_string();
    assert!(
        gains.contains("everybody, without a credential"),
        "{answer:#}"
    );
    assert!(
        answer["configuration"].to_string().contains("opened"),
        "{answer:#}"
    );
    assert_eq!(
        git(folder.path(), &["status", "--porcelain"])
            .unwrap()
            .stdout,
        before
    );
}

#[test]
fn a_supposed_caller_is_looked_into_by_the_room_that_makes_no_permit_of_it() {
    fn visit(folder: &Path, found: &mut Vec<String>) {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                visit(&path, found);
            } else if std::fs::read_to_string(&path)
                .unwrap_or_default()
                .contains(".unproven()")
            {
                found.push(path.display().to_string());
            }
        }
    }
    let mut found = Vec::new();
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    visit(&src, &mut found);
    assert!(
        found.len() == 1 && found[0].ends_with("authz/opinion.rs"),
        "{found:?}"
    );
    let opinion = std::fs::read_to_string(src.join("authz/opinion.rs")).unwrap();
    assert!(!opinion.contains("self.permit(") && !opinion.contains("Permit {"));
    let gateway = std::fs::read_to_string(src.join("gateway.rs")).unwrap();
    assert!(!gateway.contains("suppose") && !gateway.contains("opinion"));
}

#[test]
fn questions_are_answered_where_keys_and_secrets_are_not() {
    let folder = folder();
    let mut document = document();
    document["listeners"]["public"] = json!({
        "address": "127.0.0.1:0",
        "tls": {"certificates": [{"chain": "no.pem", "key": "no.key"}]},
    });
    document["identity"] =
        json!({"assertion": {"issuer": "https://api.example.test", "key": "no.pem"}});
    write(folder.path(), &document, REGO);
    std::fs::remove_file(folder.path().join("keys.json")).unwrap();
    let output = policy(
        folder.path(),
        &[
            "can-i",
            "GET",
            "https://localhost/orders/1001",
            "--as",
            "alice",
        ],
    );
    let text = out(&output);
    assert_eq!(output.status.code(), Some(0), "{text}");
    assert!(text.contains("listener public"), "{text}");
    assert!(
        text.contains("note: gateway.yaml is asked about without what cannot be read"),
        "{text}"
    );
    // Not where the mistake is one about access.
    document["routes"][1]["policy"] = json!("order");
    write(folder.path(), &document, REGO);
    let output = policy(
        folder.path(),
        &["can-i", "GET", "/orders/1001", "--as", "alice"],
    );
    assert_eq!(output.status.code(), Some(2), "{}", out(&output));
    assert!(
        out(&output).contains("did you mean `orders`?"),
        "{}",
        out(&output)
    );
}

#[test]
fn diff_finds_a_parameter_of_the_query_that_lets_in() {
    let (old, new) = (folder(), folder());
    let rego = format!(
        "{REGO}\nelse := {{\"allow\": true, \"reason\": \"orders.key\"}} if input.request.query.key[0] == \"letmein\"\n"
    );
    write(new.path(), &document(), &rego);
    let (code, answer) = answer(
        new.path(),
        &["diff", old.path().to_str().unwrap(), "--fail-on", "gains"],
    );
    assert_eq!(code, Some(1), "{answer:#}");
    assert!(
        answer["gains"].to_string().contains("query key=letmein"),
        "{answer:#}"
    );
    assert_eq!(answer["policies"][0]["what"], "policy orders");
}

#[test]
fn diff_fails_on_what_it_could_not_search_and_on_settings_that_may_open() {
    let (old, new) = (folder(), folder());
    let old = old.path().to_str().unwrap();
    let diff = |more: &[&str]| {
        let mut arguments = vec!["diff", old, "--fail-on", "gains"];
        arguments.extend(more);
        answer(new.path(), &arguments)
    };
    let (code, told) = diff(&[]);
    assert_eq!(
        (code, &told["complete"]),
        (Some(0), &json!(true)),
        "{told:#}"
    );

    // Nobody makes up names for a pattern.
    let rego = format!(
        "{REGO}\nelse := {{\"allow\": true, \"reason\": \"orders.x\"}} if regex.match(\"^x-[0-9]+$\", input.identity.subject)\n"
    );
    write(new.path(), &document(), &rego);
    let (code, told) = diff(&[]);
    assert_eq!(
        (code, &told["complete"]),
        (Some(1), &json!(false)),
        "{told:#}"
    );
    assert_eq!(told["gains"], json!([]));
    assert!(
        told["unsure"].to_string().contains("by pattern"),
        "{told:#}"
    );
    let (code, _) = diff(&["--allow-incomplete"]);
    assert_eq!(code, Some(0));

    // More tokens, a higher limit: no caller shows that.
    for (path, value, opens) in [
        (
            "/issuers/main/audiences",
            json!(["https://api.example.test", "other"]),
            true,
        ),
        ("/limits/each/rate", json!("500/m"), true),
        ("/limits/each/rate", json!("50/m"), false),
        (
            "/upstreams/main/endpoints",
            json!(["http://127.0.0.1:2"]),
            false,
        ),
    ] {
        let mut changed = document();
        *changed.pointer_mut(path).unwrap() = value;
        write(new.path(), &changed, REGO);
        let (code, told) = diff(&[]);
        assert_eq!(code, Some(i32::from(opens)), "{path} {told:#}");
        assert_eq!(told["configuration"][0]["opens"], opens, "{told:#}");
    }
}
