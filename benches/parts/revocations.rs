//! Whether a known caller's credential still holds, with entries of every kind in the index.

use std::hint::black_box;
use std::sync::Arc;
use std::time::Duration;

use criterion::Criterion;
use portcullis::authn::Recent;
use portcullis::revocation::{Entry, StaleRule};
use serde_json::json;

use crate::cpu::CpuTime;
use crate::world::{World, at_once};

pub(crate) fn bench(criterion: &mut Criterion<CpuTime>) {
    let routes = json!([{
        "name": "main", "path": "/RS256", "authn": ["RS256"], "policy": "public", "upstream": "up",
    }]);
    let world = World::load(&json!({ "routes": routes }), |_| ());
    let request = world.request("RS256", "/RS256");
    let chain = &world.find(&request).route.authn;
    let caller = at_once(chain.authenticate(&Recent::default(), &request)).unwrap();
    let revocations = &world.snapshot.revocation;
    let now = request.received_at;
    let ask = || revocations.check(black_box(&caller), &request.conn, StaleRule::Refuse, now);
    let revoke = |number: usize| {
        for (kind, member) in [
            ("token", "token_id"),
            ("subject", "subject"),
            ("session", "session"),
            ("client", "client"),
            ("key", "key_id"),
            ("certificate", "serial"),
            ("version", "subject"),
        ] {
            let name = format!("{:x}", number + 16);
            let mut entry = json!({ "kind": kind, "issuer": "https://other.test", member: name });
            if kind == "version" {
                entry["minimum"] = json!(7);
            }
            let entry: Entry = serde_json::from_value(entry).unwrap();
            let revocation = entry.revocation(&Arc::from("bench")).unwrap();
            revocations.revoke(revocation, now).unwrap();
        }
    };

    let mut group = criterion.benchmark_group("revocation");
    group.bench_function("nothing is revoked", |bencher| {
        bencher.iter(|| ask().unwrap());
    });
    (0..100_000).for_each(revoke);
    group.bench_function("a caller who was looked up before", |bencher| {
        bencher.iter(|| ask().unwrap());
    });
    // One entry that says more each time: the index does not grow.
    let mut minimum = 7;
    let mut revoke_more = || {
        minimum += 1;
        let entry: Entry = serde_json::from_value(json!({
            "kind": "version", "issuer": "https://other.test", "subject": "10", "minimum": minimum,
        }))
        .unwrap();
        let revocation = entry.revocation(&Arc::from("bench")).unwrap();
        revocations.revoke(revocation, now).unwrap();
    };
    group.bench_function("a caller after something was revoked", |bencher| {
        bencher.iter_custom(|rounds| {
            let mut took = Duration::ZERO;
            for _ in 0..rounds {
                revoke_more();
                let start = crate::cpu::now();
                ask().unwrap();
                took += crate::cpu::now() - start;
            }
            took
        });
    });
    group.finish();
}
