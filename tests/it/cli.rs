//! The command line: what people and scripts are told, and that a policy cannot take it down.

use std::path::Path;
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tempfile::TempDir;

fn portcullis(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_portcullis"))
        .args(arguments)
        .env_remove("PORTCULLIS_CONFIG")
        .output()
        .unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// A folder with a configuration whose only policy is `rego`.
fn folder(rego: &str) -> TempDir {
    let folder = TempDir::new().unwrap();
    let document = json!({
        "listeners": {"local": {"address": "127.0.0.1:0", "plaintext": true}},
        "upstreams": {"main": {"endpoints": ["http://127.0.0.1:1"]}},
        "policies": {"gate": {"files": ["gate.rego"], "entrypoint": "data.gate.allow"}},
        "routes": [{"name": "all", "path": "/{*rest}", "authn": ["anonymous"], "policy": "gate", "upstream": "main"}],
    });
    std::fs::write(folder.path().join("gateway.yaml"), document.to_string()).unwrap();
    std::fs::write(folder.path().join("gate.rego"), rego).unwrap();
    folder
}

fn check(folder: &Path, more: &[&str]) -> Output {
    let config = folder.join("gateway.yaml");
    let mut arguments = vec!["check", "--config", config.to_str().unwrap()];
    arguments.extend(more);
    portcullis(&arguments)
}

#[test]
fn a_good_configuration_is_fine() {
    let folder = folder("package gate\n\nallow if input.request.method == \"GET\"\n");
    let output = check(folder.path(), &[]);
    let out = text(&output.stdout);
    assert_eq!(output.status.code(), Some(0), "{out}");
    // The route asks for no credential: a warning, which `--strict` lets count.
    assert!(out.contains("loads with 1 warning, revision "), "{out}");
    assert_eq!(check(folder.path(), &["--strict"]).status.code(), Some(1));
}

#[test]
fn a_problem_is_told_with_its_place_and_what_to_do() {
    let folder = folder("package gate\n\nallow if http.send({}) == 5\n");
    let output = check(folder.path(), &[]);
    let out = text(&output.stdout);
    assert_eq!(output.status.code(), Some(1), "{out}");
    assert!(out.contains("gate.rego:3:10"), "{out}");
    assert!(
        out.contains("`http.send`")
            && out.contains("help")
            && out.contains("as data beside the policy"),
        "{out}"
    );
    assert!(out.contains("does not load: 1 error"), "{out}");
}

#[test]
fn machines_are_told_the_same_as_json() {
    let folder = folder("package gate\n\nallow if nosuch(1)\n");
    let output = check(folder.path(), &["--format", "json"]);
    assert_eq!(output.status.code(), Some(1));
    let answer: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(answer["ok"], false);
    let problems = answer["problems"].as_array().unwrap();
    let problem = problems
        .iter()
        .find(|problem| problem["severity"] == "error")
        .unwrap();
    assert_eq!(
        (&problem["line"], &problem["column"]),
        (&json!(3), &json!(10)),
        "{answer:#}"
    );
    assert!(
        problem["file"].as_str().unwrap().ends_with("gate.rego"),
        "{answer:#}"
    );
    assert!(
        problem["message"].as_str().unwrap().contains("nosuch"),
        "{answer:#}"
    );
    assert!(problem["help"].is_string(), "{answer:#}");
}

#[test]
fn help_version_and_wrong_usage() {
    let help = portcullis(&["--help"]);
    assert_eq!(help.status.code(), Some(0));
    for command in ["run", "check", "dev", "token", "schema"] {
        assert!(text(&help.stdout).contains(command), "{command}");
    }
    assert!(!text(&help.stdout).contains("policy-gate"));
    let version = portcullis(&["--version"]);
    assert_eq!(
        text(&version.stdout),
        format!("portcullis {}\n", env!("CARGO_PKG_VERSION"))
    );
    for wrong in [
        &["--nonsense"][..],
        &[],
        &["check", "--format", "xml"],
        &["run", "--workers", "0"],
    ] {
        assert_eq!(portcullis(wrong).status.code(), Some(2), "{wrong:?}");
    }
}

#[test]
fn the_schema_names_every_section() {
    let output = portcullis(&["schema"]);
    assert_eq!(output.status.code(), Some(0));
    let schema: Value = serde_json::from_slice(&output.stdout).unwrap();
    let sections = schema["properties"].as_object().unwrap();
    for section in [
        "listeners",
        "issuers",
        "policies",
        "upstreams",
        "routes",
        "audit",
        "admin",
        "telemetry",
        "workers",
        "drain_timeout",
    ] {
        assert!(
            sections.contains_key(section),
            "{section}: {:?}",
            sections.keys()
        );
    }
}

#[test]
fn a_policy_too_deep_for_a_stack_is_a_problem_and_not_a_crash() {
    let chain: Vec<String> = (0..5000).map(|i| format!("r{i} if r{}", i + 1)).collect();
    let mut cases = vec![
        (
            "recursion",
            true,
            "package gate\n\nf(x) := f(x)\n\nallow if f(1)\n".to_owned(),
        ),
        (
            "nesting",
            true,
            format!(
                "package gate\n\nallow if {}1{}\n",
                "(".repeat(400),
                ")".repeat(400)
            ),
        ),
        (
            "a chain",
            true,
            format!(
                "package gate\n\n{}\nr5000 := true\nallow if r0\n",
                chain.join("\n")
            ),
        ),
    ];
    // No check of the source counts these: the engine may bear them or not, the command must.
    for (what, first, again) in [
        ("a sum", "1 + 1", "+ 1"),
        ("a path", "input", "[0]"),
        ("else", "input.a", "else if input.b"),
    ] {
        cases.push((
            what,
            false,
            format!(
                "package gate\n\nallow if {first}{}\n",
                format!("\n{again}").repeat(15_000)
            ),
        ));
    }
    for (what, refused, rego) in cases {
        let folder = folder(&rego);
        let begun = Instant::now();
        let output = check(folder.path(), &[]);
        let out = text(&output.stdout);
        match output.status.code() {
            Some(1) => assert!(
                out.contains("gate.rego") && out.contains("help"),
                "{what}: {out}"
            ),
            code => assert!(
                code == Some(0) && !refused,
                "{what}: {:?} {out}",
                output.status
            ),
        }
        assert!(
            begun.elapsed() < Duration::from_secs(60),
            "{what}: {:?}",
            begun.elapsed()
        );
    }
}

/// A policy that keeps the gate busy for seconds, and a `check` of it.
#[cfg(target_os = "linux")]
fn busy() -> (TempDir, std::process::Child) {
    let loops: String = ('a'..'i')
        .map(|v| format!("\tsome {v} in [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]\n"))
        .collect();
    let folder = folder(&format!(
        "package gate\n\nallow if {{\n{loops}\ta + b + c + d + e + f + g + h == 77\n}}\n"
    ));
    let child = Command::new(env!("CARGO_BIN_EXE_portcullis"))
        .args(["check", "--config"])
        .arg(folder.path().join("gateway.yaml"))
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    (folder, child)
}

/// The process that judges the policy for this `check`.
#[cfg(target_os = "linux")]
fn judge_of(parent: u32) -> u32 {
    crate::support::eventually("a process that judges the policy", || {
        std::fs::read_dir("/proc")
            .unwrap()
            .flatten()
            .find_map(|entry| {
                let pid: u32 = entry.file_name().to_str()?.parse().ok()?;
                let stat = std::fs::read_to_string(entry.path().join("stat")).ok()?;
                let ppid: u32 = stat.rsplit_once(") ")?.1.split(' ').nth(1)?.parse().ok()?;
                let command = std::fs::read(entry.path().join("cmdline")).ok()?;
                (ppid == parent && text(&command).contains("policy-gate")).then_some(pid)
            })
    })
}

#[cfg(target_os = "linux")]
fn signal(name: &str, pid: u32) {
    assert!(
        Command::new("kill")
            .args([name, &pid.to_string()])
            .status()
            .unwrap()
            .success()
    );
}

/// The end of the judge stands for every way in which a policy can bring its process down.
#[cfg(target_os = "linux")]
#[test]
fn a_policy_is_judged_in_a_process_of_its_own_whose_death_is_a_problem() {
    let (_folder, check) = busy();
    signal("-KILL", judge_of(check.id()));
    let output = check.wait_with_output().unwrap();
    let out = text(&output.stdout);
    assert_eq!(output.status.code(), Some(1), "{out}");
    assert!(
        out.contains("gate.rego") && out.contains("the policy aborted the process that judged it"),
        "{out}"
    );
}

#[cfg(target_os = "linux")]
#[test]
fn a_judge_that_does_not_come_to_an_end_is_ended() {
    let (_folder, check) = busy();
    let begun = Instant::now();
    let judge = judge_of(check.id());
    signal("-STOP", judge);
    let output = check.wait_with_output().unwrap();
    let out = text(&output.stdout);
    assert_eq!(output.status.code(), Some(1), "{out}");
    assert!(
        out.contains("gate.rego") && out.contains("used more than 20 s"),
        "{out}"
    );
    assert!(
        begun.elapsed() < Duration::from_secs(50),
        "{:?}",
        begun.elapsed()
    );
    assert!(!Path::new(&format!("/proc/{judge}")).exists());
}
