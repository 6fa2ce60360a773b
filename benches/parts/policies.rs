//! May they: the policy's input, and decisions, anew and remembered, of a small, an ordinary and a
//! large policy.

use std::fmt::Write as _;
use std::fs;
use std::hint::black_box;
use std::ops::Range;
use std::path::Path;
use std::time::Instant;

use criterion::Criterion;
use portcullis::authz::{Decision, Machines};
use portcullis::request::InboundRequest;
use portcullis::schema::Problem;
use serde_json::{Value, json};

use crate::cpu::CpuTime;
use crate::world::{World, facts};

const TWO: &str = "package two

default allow := false

allow if \"orders:read\" in input.identity.scopes
";

/// Reads everything there is.
const WHOLE: &str = "package whole

default allow := false

allow if count(input) > 0
";

/// How many rules the large policy has, and which of them is the first that allows the request.
const RULES: usize = 200;
const MATCHING: usize = 150;
/// How many subjects its data knows: about 10 MB.
const SUBJECTS: usize = 50_000;

/// The policies: each as it is, and with decisions kept (`-kept`).
const POLICIES: [&str; 3] = ["two", "sixty", "whole"];
const LARGE: [&str; 1] = ["large"];

pub(crate) fn bench(criterion: &mut Criterion<CpuTime>) {
    let world = world(&POLICIES).unwrap_or_else(|problems| panic!("{problems:#?}"));

    let mut group = criterion.benchmark_group("policy input");
    for (name, policy) in [
        ("all of it", "whole"),
        ("what 60 lines read", "sixty"),
        ("what 2 lines read", "two"),
    ] {
        let request = request(&world, policy);
        let found = world.find(&request);
        let caller = world.caller(&request);
        let facts = facts(&found);
        group.bench_function(name, |bencher| {
            let policy = &found.route.policy;
            bencher.iter(|| policy.input(black_box(&request), &facts, &caller).unwrap());
        });
    }
    group.finish();

    let cases = [
        ("2 lines, anew", "two"),
        ("2 lines, remembered", "two-kept"),
        ("60 lines, anew", "sixty"),
        ("60 lines, remembered", "sixty-kept"),
    ];
    decisions(criterion, &world, &cases);
    // A build without optimisation, or a busy machine, may be too slow for the gate.
    let begun = Instant::now();
    match self::world(&LARGE) {
        Ok(world) => {
            println!("the large policy, twice, loaded in {:.2?}", begun.elapsed());
            let cases = [
                ("200 rules with 10 MB of data, anew", "large"),
                ("200 rules with 10 MB of data, remembered", "large-kept"),
            ];
            decisions(criterion, &world, &cases);
            tail(&world, "200 rules with 10 MB of data, anew", "large");
            drop(world);
            swap();
        }
        Err(problems) => println!("the large policy is not measured: {problems:#?}"),
    }
}

/// Decides so often, `sixty:1000`, in a loop that callgrind can find.
pub(crate) fn count(wanted: &str) {
    let (name, times) = wanted.split_once(':').unwrap();
    let times: usize = times.parse().unwrap();
    let policy = name.trim_start_matches("input-");
    let world = world(&[policy.trim_end_matches("-kept")])
        .unwrap_or_else(|problems| panic!("{problems:#?}"));
    let request = request(&world, policy);
    let found = world.find(&request);
    let caller = world.caller(&request);
    let (facts, machines) = (facts(&found), Machines::default());
    let rules = &found.route.policy;
    println!("{name}: {}", rules.engine());
    if policy != name {
        counted_loop(times, || {
            let input = rules.input(black_box(&request), &facts, &caller);
            assert!(input.is_ok());
        });
        return;
    }
    let decide = || {
        let decision = rules.decide(&machines, black_box(&request), &facts, caller.clone());
        assert!(matches!(decision, Decision::Allow(_)), "{decision:?}");
    };
    decide();
    counted_loop(times, decide);
}

#[inline(never)]
fn counted_loop(times: usize, mut work: impl FnMut()) {
    for _ in 0..times {
        work();
    }
}

fn decisions(criterion: &mut Criterion<CpuTime>, world: &World, cases: &[(&str, &str)]) {
    let mut group = criterion.benchmark_group("decision");
    for (name, policy) in cases {
        let request = request(world, policy);
        let found = world.find(&request);
        let caller = world.caller(&request);
        let (facts, machines) = (facts(&found), Machines::default());
        println!("{name}: {}", found.route.policy.engine());
        group.bench_function(*name, |bencher| {
            let policy = &found.route.policy;
            bencher.iter(|| {
                let decision =
                    policy.decide(&machines, black_box(&request), &facts, caller.clone());
                assert!(matches!(decision, Decision::Allow(_)), "{decision:?}");
                decision
            });
        });
    }
    group.finish();
    let numbers = world.snapshot.metrics.encode();
    for line in numbers.lines().filter(|line| {
        line.starts_with("portcullis_decision_cache_total") && line.contains("-kept")
    }) {
        println!("{line}");
    }
}

/// What data cost in memory: once, on more cores, and while they are replaced.
fn swap() {
    let live = || regorus_mimalloc::global_allocation_stats_snapshot().allocated / 1024;
    let begin = live();
    let first = world(&LARGE).unwrap();
    let once = live() - begin;
    let machines: Vec<Machines> = (0..8).map(|_| Machines::default()).collect();
    for machines in &machines {
        let request = request(&first, "large");
        let found = first.find(&request);
        let caller = first.caller(&request);
        let decision = found
            .route
            .policy
            .decide(machines, &request, &facts(&found), caller);
        assert!(matches!(decision, Decision::Allow(_)), "{decision:?}");
    }
    let used = live() - begin;
    let second = world(&LARGE).unwrap();
    let both = live() - begin;
    drop(first);
    // Workers that decide nothing keep what they were made from.
    let idle = live() - begin;
    drop(machines);
    let after = live() - begin;
    println!(
        "two policies with 10 MB of data each: {once} KiB, with the machines of 8 cores {used}, with their successors {both}, without themselves but with idle machines {idle}, without those {after}"
    );
    drop(second);
}

/// How long the slowest decisions take: CPU time of each alone, clock reading included.
fn tail(world: &World, name: &str, policy: &str) {
    const DECISIONS: usize = 20_000;
    let request = request(world, policy);
    let found = world.find(&request);
    let caller = world.caller(&request);
    let (facts, machines) = (facts(&found), Machines::default());
    let mut times: Vec<_> = (0..DECISIONS)
        .map(|_| {
            let begun = crate::cpu::now();
            let policy = &found.route.policy;
            let decision = policy.decide(&machines, black_box(&request), &facts, caller.clone());
            let took = crate::cpu::now() - begun;
            assert!(matches!(decision, Decision::Allow(_)), "{decision:?}");
            took
        })
        .collect();
    times.sort_unstable();
    let at = |share: usize| times[DECISIONS * share / 1000 - 1];
    println!(
        "{name}: half within {:?}, 99 % within {:?}, 99.9 % within {:?}",
        at(500),
        at(990),
        at(999)
    );
}

fn request(world: &World, policy: &str) -> InboundRequest {
    world.request(
        "RS256",
        &format!("/orders/{policy}/2026-000123?expand=lines"),
    )
}

fn world(names: &[&str]) -> Result<World, Vec<Problem>> {
    let mut policies = serde_json::Map::new();
    let mut routes = Vec::new();
    for &name in names {
        let files = match name {
            "sixty" => json!(["sixty.rego", "sixty.data.yaml"]),
            "large" => json!(["large.rego", "large.json"]),
            "wide" => json!(["wide.rego", "wide.json"]),
            _ => json!([format!("{name}.rego")]),
        };
        for (name, cache) in [(name.to_owned(), false), (format!("{name}-kept"), true)] {
            let package = name.trim_end_matches("-kept");
            let mut policy = json!({
                "files": files, "entrypoint": format!("data.{package}.allow"),
                // A core that others take away must not end in a refusal.
                "budget": { "time": "1s" },
            });
            if !cache {
                policy["decision_cache"] = false.into();
            }
            routes.push(json!({
                "name": name, "path": format!("/orders/{name}/{{id}}"), "authn": ["RS256"],
                "policy": name, "upstream": "up", "labels": { "action": "read" },
            }));
            policies.insert(name, policy);
        }
    }
    World::try_load(&json!({ "policies": policies, "routes": routes }), files)
}

fn files(folder: &Path) {
    let write = |name: &str, text: &str| fs::write(folder.join(name), text).unwrap();
    let sixty = include_str!("../policies/sixty.rego");
    write("two.rego", TWO);
    write("whole.rego", WHOLE);
    write("sixty.rego", sixty);
    write(
        "sixty.data.yaml",
        include_str!("../policies/sixty.data.yaml"),
    );
    write("large.rego", &large());
    write("large.json", &grants(0..SUBJECTS).to_string());
    // The same rules with few data: callgrind is too slow for the gate's time otherwise.
    write(
        "wide.rego",
        &large().replace("package large", "package wide"),
    );
    write("wide.json", &grants(12_300..12_400).to_string());
}

/// A rule for each of many resources, as generated policies have them.
fn large() -> String {
    let mut text = "package large\n\ndefault allow := false\n".to_owned();
    for number in 0..RULES {
        let resource = if number == MATCHING {
            "orders".to_owned()
        } else {
            format!("resource-{number}")
        };
        write!(
            text,
            "
allow if {{
	input.request.segments[0] == \"{resource}\"
	input.request.method in {{\"GET\", \"HEAD\"}}
	\"{resource}:read\" in data.grants[input.identity.subject]
}}
"
        )
        .unwrap();
    }
    text
}

fn grants(subjects: Range<usize>) -> Value {
    let grants: serde_json::Map<_, _> = subjects
        .map(|number| {
            let subject = format!("user-{number:08}");
            let grants: Vec<_> = ["invoices", "reports", "orders", "customers", "addresses"]
                .iter()
                .flat_map(|resource| [format!("{resource}:read"), format!("{resource}:list")])
                .collect();
            (subject, grants.into())
        })
        .collect();
    json!({ "grants": grants })
}
