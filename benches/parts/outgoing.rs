//! What leaves: the fields for the upstream, the assertion, and the record.

use std::hint::black_box;
use std::io;
use std::sync::Arc;
use std::task::{Context, Waker};

use criterion::{BatchSize, Criterion};
use http::Response;
use http_body::Body as _;
use portcullis::audit::{Audit, AuditConfig, AuditSink, Record};
use portcullis::body;
use portcullis::request::RequestId;
use portcullis::upstream::headers::About;
use portcullis::upstream::{Forwarding, Trail};
use serde_json::json;

use crate::cpu::CpuTime;
use crate::world::{World, connection, head, now};

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

/// From the head of a request to its line on the worker's page, as `gateway` tells the record.
fn record(criterion: &mut Criterion<CpuTime>) {
    let world = world(json!({}));
    let snapshot = &world.snapshot;
    let metrics = &snapshot.metrics;
    let config = AuditConfig {
        queue: 1_048_576,
        ..AuditConfig::default()
    };
    let audit = Audit::to_sink(Box::new(Taken), config, Arc::clone(metrics)).unwrap();
    let audit = Arc::new(audit);
    let conn = connection();
    let head = head(PATH, None);
    let request = world.request("RS256", PATH);
    let route = world.find(&request).route;
    let permit = world.permit(&request);
    let trace = snapshot.tracing.context(&request.headers);
    let trail = Trail {
        endpoint: Some("127.0.0.1:9500".into()),
        attempts: 1,
    };
    let received_at = now();
    let id = RequestId::random();
    let write = |body| {
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
        record.route(&route.name, &route.counts);
        record.caller(&permit.caller);
        record.permitted(&permit);
        record.upstream(&route.upstream.name);
        record.forwarded(&trail);
        let mut followed = record.follow(Response::new(body)).into_body();
        let mut cx = Context::from_waker(Waker::noop());
        while let std::task::Poll::Ready(Some(_)) =
            std::pin::Pin::new(&mut followed).poll_frame(&mut cx)
        {}
    };
    let mut group = criterion.benchmark_group("audit record");
    group.bench_function("open to written", |bencher| {
        bencher.iter_batched(|| body::full("ok"), write, BatchSize::SmallInput);
    });
    group.finish();
    for line in metrics.encode().lines() {
        if line.starts_with("portcullis_audit_records") {
            println!("{line}");
        }
    }
}
