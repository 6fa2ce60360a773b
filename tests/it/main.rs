//! Tests over real sockets: a real gateway on port 0, a real issuer, a real upstream.
//!
//! One binary, one file per topic. `support` starts what a test needs. Names state promises.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::as_conversions,
    clippy::print_stdout,
    clippy::disallowed_methods,
    clippy::wildcard_enum_match_arm,
    missing_docs,
    missing_debug_implementations,
    unreachable_pub,
    reason = "a test may fail loudly"
)]

mod support;

mod architecture;
mod audit;
mod authn;
mod bundles;
mod candidates;
mod certificates;
mod cli;
mod cve;
mod cve_auth;
mod dev;
mod docs;
mod envoy;
mod feeds;
mod forward;
mod h2;
mod headers;
mod interop;
mod keys;
mod leases;
mod ledger;
mod limits;
mod operations;
mod page;
mod parked;
mod path;
mod policy;
mod policy_ask;
mod policy_tools;
mod promises;
mod reload;
mod replay;
mod replicas;
mod revocation;
mod ship;
mod slow;
mod smuggling;
mod tls;
mod tunnels;
mod why;
