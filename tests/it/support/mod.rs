//! What tests start: certificates, issuers, upstreams, gateways, clients.

pub mod browser;
pub mod client;
pub mod gateway;
pub mod h2;
pub mod issuer;
pub mod pki;
pub mod program;
pub mod redis;
pub mod tools;
pub mod upstream;
pub mod websocket;

use std::time::{Duration, Instant};

/// Waits until `condition` gives something; fails after ten seconds.
#[track_caller]
pub fn eventually<T>(what: &str, mut condition: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + Duration::from_secs(10);
    loop {
        if let Some(found) = condition() {
            return found;
        }
        assert!(Instant::now() < deadline, "waited too long for {what}");
        std::thread::park_timeout(Duration::from_millis(10));
    }
}
