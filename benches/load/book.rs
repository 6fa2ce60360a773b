//! What happened: counts and latencies.

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::{Value, json};

/// Buckets for each power of two: latencies are off by less than 1.6 %.
const PARTS: u64 = 64;

/// Latencies in nanoseconds, in buckets that grow with them.
#[derive(Debug, Default)]
pub(crate) struct Histogram {
    buckets: Vec<u64>,
    count: u64,
    longest: u64,
}

impl Histogram {
    /// Counts one.
    pub(crate) fn record(&mut self, latency: Duration) {
        let nanos = u64::try_from(latency.as_nanos()).unwrap_or(u64::MAX);
        let at = bucket(nanos);
        if at >= self.buckets.len() {
            self.buckets.resize(at + 1, 0);
        }
        self.buckets[at] += 1;
        self.count += 1;
        self.longest = self.longest.max(nanos);
    }

    /// The latency in µs that the share `part` of all stays below.
    fn micros(&self, part: f64) -> f64 {
        let wanted = (self.count as f64 * part).ceil() as u64;
        let mut seen = 0;
        for (at, count) in self.buckets.iter().enumerate() {
            seen += count;
            if seen >= wanted.max(1) {
                return middle(at) / 1e3;
            }
        }
        0.0
    }

    fn report(&self) -> Value {
        json!({
            "p50": self.micros(0.5), "p90": self.micros(0.9), "p99": self.micros(0.99),
            "p99.9": self.micros(0.999), "max": self.longest as f64 / 1e3,
        })
    }
}

fn bucket(nanos: u64) -> usize {
    let power = u64::from(nanos.max(PARTS).ilog2()) - u64::from(PARTS.ilog2());
    let part = nanos >> power;
    // Above the first power only the upper half of the parts occurs.
    (if power == 0 {
        part
    } else {
        PARTS + power * PARTS + (part - PARTS)
    }) as usize
}

fn middle(at: usize) -> f64 {
    let at = at as u64;
    if at < PARTS {
        return at as f64;
    }
    let (power, part) = ((at - PARTS) / PARTS, (at - PARTS) % PARTS);
    ((PARTS + part) << power) as f64 + (1_u64 << power) as f64 / 2.0
}

/// The account of one measured stretch.
#[derive(Debug, Default)]
pub(crate) struct Book {
    pub(crate) statuses: BTreeMap<u16, u64>,
    pub(crate) errors: BTreeMap<String, u64>,
    pub(crate) latency: Histogram,
    pub(crate) received: u64,
    pub(crate) sent: u64,
    pub(crate) full_handshakes: u64,
    pub(crate) resumed_handshakes: u64,
    pub(crate) unsent: u64,
}

impl Book {
    /// As JSON; `seconds` is from the start to the last answer.
    pub(crate) fn report(&self, seconds: f64) -> Value {
        let good: u64 = self
            .statuses
            .iter()
            .filter(|(s, _)| **s / 100 == 2)
            .map(|(_, n)| n)
            .sum();
        let all: u64 = self.statuses.values().sum();
        json!({
            "seconds": seconds,
            "requests": all,
            "good": good,
            "per_second": all as f64 / seconds.max(1e-9),
            "statuses": self.statuses,
            "errors": self.errors,
            "received": self.received,
            "sent": self.sent,
            "full_handshakes": self.full_handshakes,
            "resumed_handshakes": self.resumed_handshakes,
            "unsent": self.unsent,
            "latency_us": self.latency.report(),
        })
    }
}
