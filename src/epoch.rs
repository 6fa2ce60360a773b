//! The count of everything that may have ended a permission.
//!
//! A permission is judged once and used for as long as its stream lasts. What can end it early (another
//! configuration, a revocation, a key that is gone, a certificate that is no longer believed) says so
//! here, and whoever holds permissions judges them again. Which one was meant is not said: to look is
//! cheap, and to be told too little would be a hole.
//!
//! The order is what makes it safe. Whoever changes something does it first and calls
//! [`Epoch::advance`] then; whoever judges calls [`Epoch::now`] first and judges then. A change in
//! between leaves a number behind that is no longer the current one, so it cannot be missed.

use std::sync::atomic::{AtomicU64, Ordering};

use tokio::sync::watch;

/// Rises with every change after which an open permission has to be judged again. One for a process.
#[derive(Debug)]
pub struct Epoch {
    /// Beside the channel, whose own reading takes a lock: this one is read for every request.
    number: AtomicU64,
    changed: watch::Sender<u64>,
}

impl Default for Epoch {
    fn default() -> Self {
        Self {
            number: AtomicU64::new(0),
            changed: watch::Sender::new(0),
        }
    }
}

impl Epoch {
    /// The number now. To be read before anything is judged.
    pub fn now(&self) -> u64 {
        self.number.load(Ordering::SeqCst)
    }

    /// Something that permissions rest on has changed, and the change is in force.
    pub fn advance(&self) {
        let number = self.number.fetch_add(1, Ordering::SeqCst) + 1;
        self.changed.send_if_modified(|seen| {
            // Two at once may come here in the other order.
            let newer = *seen < number;
            *seen = number.max(*seen);
            newer
        });
    }

    /// Tells of every change from now on; several in a row may be told as one.
    pub fn watch(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_watches_is_told_and_the_number_is_in_force_by_then() {
        let epoch = Epoch::default();
        let mut watch = epoch.watch();
        assert!(!watch.has_changed().expect("the epoch is there"));
        epoch.advance();
        assert!(watch.has_changed().expect("the epoch is there"));
        assert_eq!(*watch.borrow_and_update(), epoch.now());
    }
}
