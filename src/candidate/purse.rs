//! A share of a worker's time, in nanoseconds, saved up while nothing is spent.

use std::time::{Duration, Instant};

/// Most that is saved up: what may be spent at once.
const MOST: i64 = 10_000_000;

#[derive(Debug)]
pub(super) struct Purse {
    left: i64,
    filled: Instant,
}

impl Purse {
    /// A full one.
    pub(super) fn full(now: Instant) -> Self {
        Self {
            left: MOST,
            filled: now,
        }
    }

    /// Whether something is left without looking at the clock.
    pub(super) const fn has(&self) -> bool {
        self.left > 0
    }

    /// Whether more was spent than can be saved up.
    pub(super) const fn is_in_debt(&self) -> bool {
        self.left < -MOST
    }

    /// Adds what came in since the last time, at this share in millionths.
    pub(super) fn fill(&mut self, now: Instant, share: u32) {
        let passed = now.saturating_duration_since(self.filled);
        let more = passed.as_nanos().saturating_mul(u128::from(share)) / 1_000_000;
        // What is less than a nanosecond is not thrown away.
        if more > 0 {
            self.filled = now;
            let more = i64::try_from(more).unwrap_or(MOST);
            self.left = self.left.saturating_add(more).min(MOST);
        }
    }

    /// Takes out what was spent. It may be more than there is; then nothing more is spent until that has
    /// come in.
    pub(super) fn spend(&mut self, spent: Duration) {
        let spent = i64::try_from(spent.as_nanos()).unwrap_or(i64::MAX);
        self.left = self.left.saturating_sub(spent);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn over_a_long_time_no_more_than_the_share_is_spent_whatever_a_piece_costs() {
        for piece in [300, 70_000, 9_000_000, 25_000_000] {
            let begun = Instant::now();
            let mut purse = Purse::full(begun);
            let mut spent = Duration::ZERO;
            // One request every 20 µs for ten seconds.
            for step in 0..500_000 {
                let now = begun + Duration::from_micros(20) * step;
                purse.fill(now, 80_000);
                if purse.has() {
                    let piece = Duration::from_nanos(piece);
                    purse.spend(piece);
                    spent += piece;
                }
            }
            let most = Duration::from_millis(800 + 10 + 25);
            assert!(spent <= most, "{spent:?} of 10 s at {piece} ns a piece");
            let least = Duration::from_nanos(piece * 500_000).min(Duration::from_millis(790));
            assert!(spent >= least, "{spent:?} is less than there was room for");
        }
    }
}
