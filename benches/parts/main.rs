//! What the parts of the request path cost, each alone: the product's own functions on objects that
//! the product's own loader made of a `gateway.yaml`.
//!
//! `cargo bench --bench parts`, or `cargo bench --bench parts -- token` for those with a name like
//! that. Times are CPU time of the one thread, as far as a busy machine leaves that alone.
//!
//! Instructions are the same on any machine: `PORTCULLIS_COUNT=sixty:1000 valgrind --tool=callgrind
//! --toggle-collect='*counted_loop*' target/release/deps/parts-…` counts those of 1,000 decisions of
//! that policy (`two`, `sixty`, `whole`, `wide`: the rules of the large
//! one; `input-sixty` for its input alone).
#![allow(
    clippy::as_conversions,
    clippy::disallowed_methods,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::print_stdout,
    clippy::unwrap_used,
    missing_debug_implementations,
    reason = "a tool that may fail loudly"
)]

mod candidates;
mod cpu;
mod ledger;
mod limits;
mod outgoing;
mod policies;
mod requests;
mod revocations;
mod tokens;
mod world;

use std::time::Duration;

use criterion::Criterion;

use crate::cpu::CpuTime;

fn main() {
    if let Some(wanted) = std::env::var_os("PORTCULLIS_COUNT") {
        policies::count(&wanted.into_string().unwrap());
        return;
    }
    let mut criterion = Criterion::default()
        .with_measurement(CpuTime)
        .warm_up_time(Duration::from_millis(300))
        .measurement_time(Duration::from_millis(1500))
        .sample_size(50)
        .configure_from_args();
    tokens::bench(&mut criterion);
    requests::bench(&mut criterion);
    revocations::bench(&mut criterion);
    policies::bench(&mut criterion);
    candidates::bench(&mut criterion);
    limits::bench(&mut criterion);
    outgoing::bench(&mut criterion);
    ledger::bench(&mut criterion);
    criterion.final_summary();
}
