//! Long work that leaves its core to requests every now and then.

use std::thread::yield_now;
use std::time::{Duration, Instant};

/// How long such work goes on at once: what a request may have to wait for it on a core that both share.
/// A low priority alone does not spare it that wait; the system lets whoever runs finish its slice of
/// some milliseconds.
const TURN: Duration = Duration::from_micros(500);

/// One turn of long work, from its beginning.
#[derive(Debug)]
pub struct Turn(Instant);

impl Turn {
    /// Begins one.
    pub fn begin() -> Self {
        Self(Instant::now())
    }

    /// Lets others have the core if the turn is over, and begins the next; to be called between small
    /// parts of the work.
    pub fn pause(&mut self) {
        if self.0.elapsed() >= TURN {
            yield_now();
            *self = Self::begin();
        }
    }
}
