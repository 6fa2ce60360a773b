//! What one replica tells the others of its changes.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};
use std::time::SystemTime;

use arc_swap::ArcSwap;
use tokio::sync::mpsc::{self, Receiver, Sender};

use super::{Lift, Place, Plane, Target};
use crate::clock::unix_seconds;

/// The source of what comes from other replicas: they need not be told of it.
pub(super) const REPLICAS: &str = "redis";

/// The most changes that wait to be told. More are not lost: who tells is told to compare everything.
pub(super) const MAX_WAITING: usize = 10_000;

/// An entry as the plane has it: what it means and when it ends are settled.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Held {
    /// What is revoked.
    pub(super) target: Target,
    /// Seconds since 1970 up to which, or the least version; none: altogether.
    pub(super) mark: Option<u64>,
    /// Seconds since 1970, the leeway of clocks included; none: never.
    pub(super) until: Option<u64>,
    /// When it was taken here, in seconds since 1970.
    pub(super) at: u64,
    /// Why.
    pub(super) reason: Option<String>,
}

/// A change that took effect.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Told {
    /// Something was revoked.
    Revoked(Held),
    /// Something no longer is, since so many seconds after 1970.
    Lifted(Lift, u64),
}

/// The way to who tells other replicas.
#[derive(Debug)]
pub(super) struct Relay {
    told: Sender<Told>,
    missed: AtomicBool,
}

impl Relay {
    /// A relay, and its other end.
    pub(super) fn new() -> (Self, Receiver<Told>) {
        let (told, receiver) = mpsc::channel(MAX_WAITING);
        let missed = AtomicBool::new(false);
        (Self { told, missed }, receiver)
    }

    /// Hands a change over. Never waits.
    pub(super) fn tell(&self, told: Told) {
        if let Err(error) = self.told.try_send(told) {
            let lift = matches!(error.into_inner(), Told::Lifted(..));
            if lift {
                tracing::error!("a lifted revocation could not be told to other replicas");
            }
            self.missed.store(true, Ordering::Relaxed);
        }
    }

    /// Whether changes were not handed over since this was asked last.
    pub(super) fn take_missed(&self) -> bool {
        self.missed.swap(false, Ordering::Relaxed)
    }
}

/// The plane's end of the way, if there is one.
#[derive(Debug, Default)]
pub(super) struct RelayTo(ArcSwap<Weak<Relay>>);

impl RelayTo {
    /// Hands a change over that `source` brought.
    pub(super) fn tell(&self, source: &str, told: impl FnOnce() -> Told) {
        if source != REPLICAS
            && let Some(relay) = self.0.load().upgrade()
        {
            relay.tell(told());
        }
    }
}

impl Plane {
    /// Tells `relay` of every change from now on that does not come from other replicas.
    pub(super) fn relay_to(&self, relay: &Arc<Relay>) {
        self.relay.0.store(Arc::new(Arc::downgrade(relay)));
    }
}

impl Plane {
    /// A part of what was brought one by one and is in force, and where to go on. May read a disk.
    ///
    /// # Errors
    /// As [`Plane::page`].
    pub(super) fn held(
        &self,
        after: Option<Place>,
        limit: usize,
        now: SystemTime,
    ) -> io::Result<(Vec<Held>, Option<Place>)> {
        let page = self.page(after, limit, now, |_| true)?;
        let held = page.entries.into_iter().filter_map(|listed| {
            let entry = listed.entry;
            Some(Held {
                target: entry.target().ok()?,
                mark: entry
                    .before
                    .map(|before| unix_seconds(before.0))
                    .or(entry.minimum),
                until: entry.until.map(|until| unix_seconds(until.0)),
                at: unix_seconds(listed.at.0),
                reason: entry.reason,
            })
        });
        Ok((held.collect(), page.next))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_relay_that_nobody_empties_forgets_nothing_silently() {
        let (relay, _receiver) = Relay::new();
        let held = Held {
            target: Target::Token {
                issuer: "i".to_owned(),
                token_id: "t".to_owned(),
            },
            mark: None,
            until: None,
            at: 0,
            reason: None,
        };
        for _ in 0..MAX_WAITING {
            relay.tell(Told::Revoked(held.clone()));
        }
        assert!(!relay.take_missed());
        relay.tell(Told::Revoked(held));
        assert!(relay.take_missed());
        assert!(!relay.take_missed());
    }
}
