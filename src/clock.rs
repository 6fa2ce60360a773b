//! The wall clock, read in one place.
//!
//! A request carries its own reading (`InboundRequest::received_at`), taken once; everything that
//! judges time in a request takes that. Only work that is no request (key refresh, the development
//! issuer, records of the control thread) calls [`now`].

use std::time::SystemTime;

/// Reads the wall clock.
#[expect(
    clippy::disallowed_methods,
    reason = "this is the one place that reads the wall clock"
)]
pub fn now() -> SystemTime {
    SystemTime::now()
}

/// Seconds since 1970-01-01T00:00:00Z; zero for an earlier time.
pub fn unix_seconds(at: SystemTime) -> u64 {
    at.duration_since(SystemTime::UNIX_EPOCH)
        .map_or(0, |elapsed| elapsed.as_secs())
}
