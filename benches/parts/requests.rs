//! What was asked: the canonical request, and the route that takes it.

use std::hint::black_box;
use std::time::Instant;

use criterion::{BatchSize, Criterion};
use http::Request;
use portcullis::request::{InboundRequest, RequestId};
use serde_json::{Value, json};

use crate::cpu::CpuTime;
use crate::world::{World, connection, head, now};

/// As many routes as are indexed together.
const TABLES: [usize; 3] = [10, 1_000, 10_000];
/// A token is long; its contents do not matter here.
const TOKEN_LENGTH: usize = 800;

pub(crate) fn bench(criterion: &mut Criterion<CpuTime>) {
    let open = route("open", "/{*rest}");
    let world = World::load(
        &json!({ "routes": [open], "identity": { "headers": { "x-user-id": "subject" } } }),
        |_| (),
    );
    let mut group = criterion.benchmark_group("canonical request");
    let token = "x".repeat(TOKEN_LENGTH);
    let conn = connection();
    let received_at = now();
    for (name, target) in [
        ("ordinary", "/api/v1/orders/2026-000123?expand=lines&page=2"),
        (
            "with percent-encoding",
            "/api/v1/m%C3%BCnchen/stra%C3%9Fe%20a/%7Ejane?q=caf%C3%A9&page=2",
        ),
    ] {
        let head = head(target, Some(&token));
        let parse = |head: Request<()>| {
            let id = RequestId::random();
            InboundRequest::parse(&conn, id, head, received_at, &world.snapshot.rules).unwrap()
        };
        group.bench_function(name, |bencher| {
            bencher.iter_batched(|| head.clone(), parse, BatchSize::SmallInput);
        });
    }
    group.finish();

    let mut group = criterion.benchmark_group("route");
    for count in TABLES {
        let begun = Instant::now();
        let world = World::load(&json!({ "routes": table(count) }), |_| ());
        println!("{count} routes loaded in {:.2?}", begun.elapsed());
        let middle = count / 4;
        for (name, path) in [
            ("literal", format!("/service-{middle}/status")),
            (
                "one parameter",
                format!("/service-{middle}/orders/2026-000123"),
            ),
        ] {
            let request = world.parsed(head(&path, None));
            group.bench_function(format!("{name}, {count} routes"), |bencher| {
                bencher.iter(|| world.snapshot.routes.find(black_box(&request)).unwrap());
            });
        }
        let nowhere = world.parsed(head(&format!("/service-{middle}/nowhere"), None));
        group.bench_function(format!("none, {count} routes"), |bencher| {
            bencher.iter(|| world.snapshot.routes.find(black_box(&nowhere)).is_none());
        });
    }
    group.finish();
}

/// Two routes for each of the services.
fn table(count: usize) -> Vec<Value> {
    (0..count / 2)
        .flat_map(|number| {
            let service = format!("service-{number}");
            [
                route(&format!("{service}-status"), &format!("/{service}/status")),
                route(
                    &format!("{service}-order"),
                    &format!("/{service}/orders/{{id}}"),
                ),
            ]
        })
        .collect()
}

fn route(name: &str, path: &str) -> Value {
    json!({
        "name": name, "path": path, "authn": ["anonymous"], "policy": "public", "upstream": "up",
    })
}
