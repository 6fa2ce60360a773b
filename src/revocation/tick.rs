//! What the control thread does for revocations from time to time: frees what has ended, notices who
//! has fallen silent, and tells the metrics.

use std::sync::Weak;
use std::sync::atomic::Ordering;
use std::time::{Duration, SystemTime};

use tokio::time::{Instant, MissedTickBehavior, interval};

use super::Revocations;
use crate::clock;

/// How often a slice of the index is swept.
const TICK: Duration = Duration::from_millis(250);

/// Slices of the index: an entry that has ended takes memory for some 16 seconds more, and a slice of
/// ten million entries takes a few milliseconds.
const SLICES: usize = 64;

/// In how many ticks feeds and metrics are looked at once.
const LOOK: usize = 4;

/// How often open streams are judged again while a feed is silent and a route believes young
/// credentials only: those that were young grow old.
const AGEING: Duration = Duration::from_secs(15);

/// Runs as long as these revocations are those in force.
pub(super) async fn run(revocations: Weak<Revocations>) {
    let mut ticks = interval(TICK);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut count: usize = 0;
    let mut aged = Instant::now();
    loop {
        ticks.tick().await;
        let Some(revocations) = revocations.upgrade() else {
            return;
        };
        if !revocations.is_in_force() {
            return;
        }
        let now = clock::now();
        revocations.plane.sweep(count % SLICES, SLICES, now);
        if count.is_multiple_of(LOOK) {
            let any_stale = revocations.look_at_feeds(now);
            if any_stale && revocations.shortens.load(Ordering::Relaxed) && aged.elapsed() >= AGEING
            {
                aged = Instant::now();
                revocations.epoch.advance();
            }
            revocations.tell_metrics();
        }
        count = count.wrapping_add(1);
    }
}

impl Revocations {
    /// Whether any feed is silent; what rests on one that fell silent is judged again.
    fn look_at_feeds(&self, now: SystemTime) -> bool {
        let mut any = false;
        for feed in &self.feeds {
            let status = feed.status(now);
            let (stale, news) = feed.look(now);
            any |= stale;
            self.metrics
                .revocation_feed(&status.name, status.age_seconds, stale);
            if news && stale {
                tracing::error!(
                    feed = %status.name,
                    age_seconds = status.age_seconds,
                    error = status.last_error,
                    "a feed of revocations has been silent for too long"
                );
                self.epoch.advance();
            } else if news {
                tracing::info!(feed = %status.name, "a feed of revocations is heard");
            }
        }
        any
    }

    fn tell_metrics(&self) {
        for (kind, entries) in self.plane.counts() {
            self.metrics.revocation_entries(kind, entries);
        }
        let (taken, room) = self.plane.occupancy();
        let unsaved = self.plane.store().map_or(0, |store| store.unsaved);
        self.metrics
            .revocation_room(room.saturating_sub(taken), unsaved);
    }

    /// What is wrong with them, in sentences for the readiness page: first what keeps some routes from
    /// believing anybody, then what does not.
    pub fn faults(&self, now: SystemTime) -> (Vec<String>, Vec<String>) {
        let stale = self
            .feeds
            .iter()
            .map(|feed| feed.status(now))
            .filter(|feed| feed.stale)
            .map(|feed| {
                let age = match feed.age_seconds {
                    Some(age) => format!("was last heard {age} s ago"),
                    None => "was never heard".to_owned(),
                };
                let why = feed
                    .last_error
                    .map_or_else(String::new, |error| format!(": {error}"));
                format!("revocation feed {}: {age}{why}", feed.name)
            })
            .collect();
        let mut others = Vec::new();
        if self.plane.is_full() {
            let (_, room) = self.plane.occupancy();
            others.push(format!(
                "revocation: the index is full ({room} entries) and entries were refused: raise \
                 `max_entries`"
            ));
        }
        if let Some(store) = self.plane.store() {
            if let Some(error) = store.error {
                others.push(format!(
                    "revocation: the store cannot be written, {} entries would be lost with a restart: \
                     {error}",
                    store.unsaved
                ));
            } else if store.lost {
                others.push(
                    "revocation: entries could not be written and will be missing after a restart"
                        .to_owned(),
                );
            }
        }
        (stale, others)
    }
}
