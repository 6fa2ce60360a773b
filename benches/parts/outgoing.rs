//! What leaves: the fields for the upstream, the assertion, and the record.

use std::hint::black_box;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::task::{Context, Waker};

use criterion::{BatchSize, Criterion};
use http::Response;
use http_body::Body as _;
use portcullis::audit::{Audit, AuditConfig, AuditSink, InputMode, Record};
use portcullis::body::{self, Body};
use portcullis::request::RequestId;
use portcullis::upstream::headers::About;
use portcullis::upstream::{Forwarding, Trail};
use serde_json::json;

use crate::cpu::CpuTime;
use crate::world::{World, connection, facts, head, now};

const PATH: &str = "/orders/2026-000123?expand=lines";

pub(crate) fn bench(criterion: &mut Criterion<CpuTime>) {
    fields(criterion);
    record(criterion);
}

/// Takes every line at once: what is measured is what a request pays, not the disk.
#[derive(Debug)]
struct Taken;

impl AuditSink for Taken {
    fn write(&mut self, lines: &[u8]) -> io::Result<usize> {
        Ok(lines.len())
    }
}

fn world(identity: serde_json::Value) -> World {
    let route = json!({
        "name": "orders", "path": "/orders/{id}", "authn": ["RS256"], "policy": "public",
        "upstream": "up",
    });
    World::load(&json!({ "routes": [route], "identity": identity }), |_| ())
}

/// All fields of ours: those of the identity, of the way here, and of the trace.
fn fields(criterion: &mut Criterion<CpuTime>) {
    let headers = json!({
        "x-user-id": "subject", "x-user-roles": "roles", "x-user-email": "claim:email",
        "x-tenant-id": "claim:tenant", "x-gateway": "text:portcullis",
    });
    let assertion = json!({ "issuer": "https://api.example.test" });
    let mut group = criterion.benchmark_group("fields for the upstream");
    for (name, identity) in [
        ("no identity", json!({})),
        ("5 identity headers", json!({ "headers": headers })),
        (
            "5 identity headers and a signed assertion",
            json!({ "headers": headers, "assertion": assertion }),
        ),
    ] {
        let world = world(identity);
        let snapshot = &world.snapshot;
        let request = world.request("RS256", PATH);
        let route = world.find(&request).route;
        let permit = world.permit(&request);
        let trace = snapshot.tracing.context(&request.headers);
        let decision_id = RequestId::random();
        let forwarding = Forwarding {
            head_timeout: std::time::Duration::from_secs(30),
            identity: &snapshot.identity,
            route: &route.name,
            bounds: &route.bounds,
            trace: &trace,
            decision_id: decision_id.as_str(),
        };
        let about = About {
            upstream: &route.upstream.name,
            request: &request,
            caller: &permit.caller,
            policy: permit.advice.identity.as_ref(),
            edits: permit.advice.edits.as_deref(),
            decided_by: &permit.decided_by,
            forwarding: &forwarding,
            forward_authorization: false,
        };
        group.bench_function(name, |bencher| {
            bencher.iter(|| {
                let fields = snapshot.identity.fields(black_box(&about));
                (fields.single().count(), fields.lines().len())
            });
        });
    }
    group.finish();
}

/// Writes the policies that are asked about records: what they say costs next to nothing.
fn policies(folder: &Path) {
    for (file, text) in [
        (
            "plain.rego",
            "package plain\n\nallow := {\"allow\": true, \"reason\": \"plain.yes\"}\n",
        ),
        (
            "envoy.rego",
            "package envoy\n\nallow := {\"allowed\": true}\n",
        ),
    ] {
        std::fs::write(folder.join(file), text).unwrap();
    }
}

/// From the head of a request to its line on the worker's page, as `gateway` tells the record.
fn record(criterion: &mut Criterion<CpuTime>) {
    let mut group = criterion.benchmark_group("audit record");
    for (name, policy, input) in [
        ("open route", "public", InputMode::Full),
        ("without input", "plain", InputMode::None),
        ("with input", "plain", InputMode::Full),
        ("with input, envoy", "envoy", InputMode::Full),
    ] {
        let route = json!({
            "name": "orders", "path": "/orders/{id}", "authn": ["RS256"], "policy": policy,
            "upstream": "up", "labels": { "team": "orders" },
        });
        let blocks = json!({
            "plain": { "files": ["plain.rego"], "entrypoint": "data.plain.allow" },
            "envoy": { "files": ["envoy.rego"], "entrypoint": "data.envoy.allow", "input": "envoy" },
        });
        let document = json!({ "routes": [route], "policies": blocks });
        let world = World::load(&document, policies);
        let config = AuditConfig {
            queue: 1_048_576,
            input,
            ..AuditConfig::default()
        };
        one_record(&world, config, |write| {
            group.bench_function(name, |bencher| {
                bencher.iter_batched(|| body::full("ok"), &write, BatchSize::SmallInput);
            });
        });
    }
    group.finish();
}

fn one_record(world: &World, config: AuditConfig, measure: impl FnOnce(&dyn Fn(Body))) {
    let snapshot = &world.snapshot;
    let metrics = &snapshot.metrics;
    let audit = Audit::to_sink(Box::new(Taken), config, Arc::clone(metrics)).unwrap();
    let audit = Arc::new(audit);
    let conn = connection();
    let head = head(PATH, None);
    let request = world.request("RS256", PATH);
    let found = world.find(&request);
    let route = found.route;
    let permit = world.permit(&request);
    let trace = snapshot.tracing.context(&request.headers);
    let trail = Trail {
        endpoint: Some("127.0.0.1:9500".into()),
        attempts: 1,
    };
    let received_at = now();
    let id = RequestId::random();
    measure(&|body| {
        let mut record = Record::open(
            &audit,
            &snapshot.tracing,
            metrics,
            &id,
            &conn,
            &head,
            received_at,
        );
        record.trace(&trace);
        record.request(&request);
        record.route(&route.name, &route.counts, route.record);
        record.caller(&permit.caller);
        record.permitted(&permit);
        record.asked(&route.policy, &request, &facts(&found), false);
        record.upstream(&route.upstream.name);
        record.forwarded(&trail);
        let mut followed = record.follow(Response::new(body)).into_body();
        let mut cx = Context::from_waker(Waker::noop());
        while let std::task::Poll::Ready(Some(_)) =
            std::pin::Pin::new(&mut followed).poll_frame(&mut cx)
        {}
    });
    for line in metrics.encode().lines() {
        if line.starts_with("portcullis_audit_records") {
            println!("{line}");
        }
    }
}
