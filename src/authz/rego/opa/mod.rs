//! The engine beside OPA itself: its conformance cases, and generated policies.

#![expect(
    clippy::wildcard_enum_match_arm,
    reason = "of many kinds of value and outcome a few are looked for"
)]

mod conformance;
mod differential;
