//! How much: a limit that remembers one caller, and one that remembers a million.

use std::hint::black_box;
use std::net::{IpAddr, Ipv4Addr};

use criterion::Criterion;
use serde_json::json;

use crate::cpu::CpuTime;
use crate::world::World;

const MANY: u32 = 1_000_000;
/// Steps through all of them in an order that no cache foresees: odd, so that none is left out.
const STRIDE: u32 = 0x9e37_79b1;

pub(crate) fn bench(criterion: &mut Criterion<CpuTime>) {
    let route = |name: &str, limit: &str| {
        json!({
            "name": name, "path": format!("/{name}"), "authn": ["RS256"], "policy": "public",
            "limits": [limit], "upstream": "up",
        })
    };
    // A rate that nothing here reaches; a million keys of one burst each are never collected.
    let limit = |by: &str| json!({ "by": by, "rate": "1000000/s", "burst": 1_000_000_000, "max_keys": 2 * MANY });
    let world = World::load(
        &json!({
            "limits": {
                "address": limit("address"), "addresses": limit("address"),
                "subject": limit("subject"),
            },
            "routes": [
                route("address", "address"), route("addresses", "addresses"),
                route("subject", "subject"),
            ],
        }),
        |_| (),
    );
    let mut group = criterion.benchmark_group("limit");

    let request = world.request("RS256", "/address");
    let limits = &world.find(&request).route.limits;
    group.bench_function("by address, 1 key", |bencher| {
        bencher.iter(|| limits.screen(black_box(&request)).unwrap());
    });

    let mut request = world.request("RS256", "/addresses");
    let limits = &world.find(&request).route.limits;
    for number in 0..MANY {
        request.client = address(number);
        limits.screen(&request).unwrap();
    }
    let keys = world.snapshot.limits.limiters["addresses"].keys();
    assert_eq!(keys, usize::try_from(MANY).unwrap());
    let mut place = 0_u32;
    group.bench_function("by address, 1 million keys", |bencher| {
        bencher.iter(|| {
            place = place.wrapping_add(STRIDE);
            request.client = address(place % MANY);
            limits.screen(black_box(&request)).unwrap()
        });
    });

    let request = world.request("RS256", "/subject");
    let limits = &world.find(&request).route.limits;
    let permit = world.permit(&request);
    group.bench_function("by subject, 1 key", |bencher| {
        bencher.iter(|| limits.admit(black_box(&request), &permit).unwrap());
    });
    group.finish();
}

fn address(number: u32) -> IpAddr {
    Ipv4Addr::from(0x0a00_0000 | number).into()
}
