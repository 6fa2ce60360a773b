//! Who is calling: a token verified in full, by algorithm, and one that was verified before.

use std::hint::black_box;

use criterion::{BatchSize, Criterion};
use portcullis::authn::Recent;
use serde_json::json;

use crate::cpu::CpuTime;
use crate::world::{ALGORITHMS, World, at_once};

pub(crate) fn bench(criterion: &mut Criterion<CpuTime>) {
    let route = |issuer: &str| {
        json!({
            "name": issuer, "path": format!("/{issuer}"), "authn": [issuer],
            "policy": "public", "upstream": "up",
        })
    };
    let routes: Vec<_> = ALGORITHMS
        .iter()
        .flat_map(|algorithm| [route(algorithm), route(&format!("{algorithm}-anew"))])
        .collect();
    let world = World::load(&json!({ "routes": routes }), |_| ());

    // From the header's bytes to the identity, as for a token that nobody remembers: form, claims,
    // key, signature, and the identity's part of the policy input.
    let mut group = criterion.benchmark_group("token verify");
    for algorithm in ALGORITHMS {
        let request = world.request(algorithm, &format!("/{algorithm}-anew"));
        let chain = &world.find(&request).route.authn;
        let recent = Recent::default();
        group.bench_function(algorithm, |bencher| {
            bencher.iter(|| at_once(chain.authenticate(&recent, black_box(&request))).unwrap());
        });
    }
    group.finish();

    let mut group = criterion.benchmark_group("token cache");
    let request = world.request("RS256", "/RS256");
    let chain = &world.find(&request).route.authn;
    let worker = Recent::default();
    at_once(chain.authenticate(&worker, &request)).unwrap();
    group.bench_function("hit on the worker", |bencher| {
        bencher.iter(|| at_once(chain.authenticate(&worker, black_box(&request))).unwrap());
    });
    group.bench_function("hit with the issuer", |bencher| {
        bencher.iter(|| chain.recall(black_box(&request)).unwrap());
    });
    group.bench_function("hit with the issuer, then kept on the worker", |bencher| {
        bencher.iter_batched_ref(
            Recent::default,
            |recent| at_once(chain.authenticate(recent, black_box(&request))).unwrap(),
            BatchSize::SmallInput,
        );
    });
    group.finish();
}
