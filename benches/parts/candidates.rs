//! What would others have said: three candidates, asked about requests that have their answers. On the way
//! of a request: what is seen of it. Behind it: what is asked and compared, remembered and anew.

use std::fs;
use std::hint::black_box;
use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use criterion::{BatchSize, Criterion};
use portcullis::authz::{Machines, Policy, RouteFacts};
use portcullis::candidate::{Candidates, Seen, Shadow};
use portcullis::request::{InboundRequest, RequestId};
use serde_json::json;

use crate::cpu::CpuTime;
use crate::world::{World, facts};

/// Requests of one visit.
const BATCH: usize = 64;
/// Longer than all candidates have to save for one batch anew.
const SAVE: Duration = Duration::from_millis(60);

fn world(kept: bool) -> Rc<World> {
    let text = fs::read_to_string("benches/policies/sixty.rego").unwrap();
    let files = |folder: &Path| {
        for name in ["now", "a", "b", "c"] {
            fs::write(
                folder.join(format!("{name}.rego")),
                format!("{text}\n# {name}\n"),
            )
            .unwrap();
        }
        fs::copy("benches/policies/sixty.data.yaml", folder.join("data.yaml")).unwrap();
    };
    let candidate = |name: &str| json!({ "of": "now", "files": [format!("{name}.rego"), "data.yaml"], "decision_cache": kept });
    Rc::new(World::load(
        &json!({
            "policies": { "now": {
                "files": ["now.rego", "data.yaml"], "entrypoint": "data.sixty.allow",
                "budget": { "time": "1s" }, "decision_cache": kept,
            } },
            "candidates": { "a": candidate("a"), "b": candidate("b"), "c": candidate("c") },
            "candidate_time": "50%",
            "routes": [{
                "name": "api", "path": "/orders/now/{id}", "authn": ["RS256"], "policy": "now",
                "upstream": "up", "labels": { "action": "read" },
            }],
        }),
        files,
    ))
}

fn judged_by(
    world: &Rc<World>,
    request: &InboundRequest,
    then: &mut dyn FnMut(&Candidates, &Arc<Policy>, &RouteFacts<'_>),
) {
    let found = world.find(request);
    then(
        &world.snapshot.candidates,
        &found.route.policy,
        &facts(&found),
    );
}

pub(crate) fn bench(criterion: &mut Criterion<CpuTime>) {
    let mut group = criterion.benchmark_group("64 requests, 3 candidates");
    group.sample_size(20);
    for (name, kept) in [("remembered", true), ("anew", false)] {
        let world = world(kept);
        let request = world.request("RS256", "/orders/now/2026-000123?expand=lines");
        let request = Rc::new(request);
        let caller = world.caller(&request);
        let machines = Machines::default();
        let shadow = Rc::new(Shadow::new(judged_by));
        let found = world.find(&request);
        let policy = &found.route.policy;
        let contest = world.snapshot.candidates.contest(policy).unwrap();
        let see = || {
            for _ in 0..BATCH {
                let id = RequestId::random();
                assert!(shadow.wants(&world.snapshot.candidates, contest, black_box(&id), None));
                let facts = facts(&found);
                let said = policy.say(&machines, &request, &facts, &caller);
                let seen = Seen {
                    caller: caller.clone(),
                    said,
                    by: None,
                };
                drop(shadow.see(Rc::clone(&world), Rc::clone(&request), id, seen));
            }
        };
        let visit = || while shadow.visit(&machines) {};
        let rest = || std::thread::sleep(SAVE);
        group.bench_function(format!("asked and compared, {name}"), |bencher| {
            let prepared = || {
                rest();
                see();
            };
            bencher.iter_batched(prepared, |()| visit(), BatchSize::PerIteration);
        });
        if kept {
            group.bench_function("seen, with the policy's own decision", |bencher| {
                let prepared = || {
                    visit();
                    rest();
                };
                bencher.iter_batched(prepared, |()| see(), BatchSize::PerIteration);
            });
            group.bench_function("the policy's own decision alone", |bencher| {
                let decide = || {
                    for _ in 0..BATCH {
                        let facts = facts(&found);
                        black_box(policy.say(&machines, &request, &facts, &caller));
                    }
                };
                bencher.iter_batched(rest, |()| decide(), BatchSize::PerIteration);
            });
        }
        let numbers = world.snapshot.candidates.told();
        for one in numbers["candidates"].as_array().unwrap() {
            println!(
                "{}: {} compared, {} left out",
                one["name"], one["compared"], one["left_out"]
            );
        }
    }
    group.finish();
}
