//! Whether a fetch may be asked for, and who waits for it. Knows nothing of keys.
//!
//! Requests with an unknown `kid` ask for fetches, and anybody can send those. Three rules keep the
//! issuer from feeling it and a good caller from paying for it:
//!
//! - A fetch that brings no new key is paid from a bucket: half of the budget at once, the rest spread
//!   over the minute, so that no 60 seconds see more than the budget and the bucket is never empty for
//!   longer than [`Demand::recovery`]. A fetch that brings a new key costs nothing: only the issuer can
//!   cause those.
//! - After a fetch that was asked for in vain comes a cool-down, except for requests that came while it
//!   was under way: its answer may have been made before their key was published.
//! - While neither can be had, a request finds so by one atomic load: a storm takes no lock.

use std::collections::hash_map::RandomState;
use std::hash::BuildHasher;
use std::net::IpAddr;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

/// The window of the budget.
const WINDOW: Duration = Duration::from_secs(60);

/// Shortest time from the beginning of a fetch to one that is asked for: an issuer that shows a new key
/// with every answer is asked no more often.
const PACE: Duration = Duration::from_millis(250);

/// Most requests that wait at one time while nobody has to be fair; more are answered at once.
pub(super) const MAX_WAITING: usize = 4096;

/// Groups of addresses that have places of their own beyond that.
const GROUPS: usize = 64;

/// How many each group has.
pub(super) const PLACES_OF_GROUP: usize = 128;

/// Fetches that are under way, asked for, or may be.
#[derive(Debug)]
pub(super) struct Demand {
    state: Mutex<State>,
    /// Nanoseconds from `base` before which nobody new can ask; zero when the state has to be seen.
    shut: AtomicU64,
    base: Instant,
    budget: u32,
    cooldown: Duration,
}

#[derive(Debug)]
struct State {
    /// Fetches that began.
    begun: u64,
    /// Fetches that ended; one less while one is under way.
    ended: u64,
    /// One was asked for and has not begun.
    wanted: bool,
    /// The one under way was asked for by a request.
    asked: bool,
    /// Whether the last one ended well.
    good: bool,
    /// When the last one that was asked for began.
    asked_at: Option<Instant>,
    /// End of the cool-down.
    cool: Option<Instant>,
    /// The bucket, as the time at which it is full again.
    full: Instant,
}

/// A request's place in the order of fetches: taken when it comes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Arrival {
    /// The first fetch that began after it came.
    first: u64,
    /// Whether another was under way then.
    during: bool,
}

/// What a request that lacks a key is to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Next {
    /// Wait for the end of a fetch.
    Wait,
    /// Wake the task that fetches, and wait for the end.
    Wake,
    /// Ask again then.
    At(Instant),
    /// A fetch that began after it came has ended, and ended well or not.
    Looked(bool),
}

impl Demand {
    pub(super) fn new(budget: u32, cooldown: Duration) -> Self {
        let base = Instant::now();
        Self {
            state: Mutex::new(State {
                begun: 0,
                ended: 0,
                wanted: false,
                asked: false,
                good: false,
                asked_at: None,
                cool: None,
                full: base,
            }),
            shut: AtomicU64::new(0),
            base,
            budget: budget.max(1),
            cooldown,
        }
    }

    /// How many fetches the full bucket pays for.
    pub(super) const fn burst(&self) -> u32 {
        self.budget.div_ceil(2)
    }

    /// The longest time for which the bucket stays empty: what a new key may cost its first caller while
    /// somebody else asks for keys that there are not.
    pub(super) fn recovery(&self) -> Duration {
        // With `burst` at once and one more each so long, every window has room for the budget.
        WINDOW / (self.budget - self.burst() + 1)
    }

    /// Whether nobody who comes now can get a fetch until `deadline`. Takes no lock.
    pub(super) fn is_shut(&self, deadline: Instant) -> bool {
        let shut = self.shut.load(Ordering::Acquire);
        shut > nanos(deadline.saturating_duration_since(self.base))
    }

    /// A request comes.
    pub(super) fn arrive(&self) -> Arrival {
        let state = self.state();
        Arrival {
            first: state.begun + 1,
            during: state.begun > state.ended,
        }
    }

    /// What a request is to do that has looked and found nothing.
    pub(super) fn next(&self, arrival: Arrival, now: Instant) -> Next {
        let mut state = self.state();
        if state.ended >= arrival.first {
            return Next::Looked(state.good);
        }
        if state.wanted || state.begun > state.ended {
            return Next::Wait;
        }
        let after = arrival.during && state.ended + 1 == arrival.first;
        let opens = self.opens(&state, after);
        if now < opens {
            return Next::At(opens);
        }
        state.wanted = true;
        state.asked = true;
        state.asked_at = Some(now);
        state.full = state.full.max(now) + self.recovery();
        self.shut.store(0, Ordering::Release);
        Next::Wake
    }

    /// Somebody else than a request wants a fetch.
    pub(super) fn want(&self) {
        self.state().wanted = true;
        self.shut.store(0, Ordering::Release);
    }

    /// Whether a fetch was asked for that has not begun.
    pub(super) fn is_wanted(&self) -> bool {
        self.state().wanted
    }

    /// A fetch begins; returns whether a request asked for it.
    pub(super) fn begin(&self) -> bool {
        let mut state = self.state();
        state.begun += 1;
        state.wanted = false;
        self.shut.store(0, Ordering::Release);
        state.asked
    }

    /// The fetch ended: `good` with a set, `fresh` with keys that were not known before.
    pub(super) fn end(&self, good: bool, fresh: bool, now: Instant) {
        let mut state = self.state();
        state.ended = state.begun;
        state.good = good;
        if std::mem::take(&mut state.asked) {
            if fresh {
                // Given back: it was no junk that was asked for.
                state.full = state.full.checked_sub(self.recovery()).unwrap_or(self.base);
                state.cool = None;
            } else {
                state.cool = Some(now + self.cooldown);
            }
        }
        let opens = self.opens(&state, false);
        let shut = nanos(opens.saturating_duration_since(self.base));
        self.shut.store(shut, Ordering::Release);
    }

    /// From when on the next fetch may be asked for.
    fn opens(&self, state: &State, during: bool) -> Instant {
        let room = self.recovery() * (self.burst() - 1);
        let paid = state.full.checked_sub(room).unwrap_or(self.base);
        let paced = state.asked_at.map_or(self.base, |at| at + PACE);
        let cool = state.cool.filter(|_| !during).unwrap_or(self.base);
        paid.max(paced).max(cool)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Nothing in the critical sections can panic; if it did, the values would still be good.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

/// Places for waiting requests. Whoever sends junk from one network fills the common ones; every group
/// of networks keeps some of its own.
#[derive(Debug)]
pub(super) struct Waiting {
    all: AtomicUsize,
    groups: [AtomicUsize; GROUPS],
    hasher: RandomState,
}

impl Default for Waiting {
    fn default() -> Self {
        Self {
            all: AtomicUsize::new(0),
            groups: std::array::from_fn(|_| AtomicUsize::new(0)),
            hasher: RandomState::new(),
        }
    }
}

impl Waiting {
    /// A place for a request from this address.
    pub(super) fn take(&self, from: IpAddr) -> Option<Place<'_>> {
        let network = match from.to_canonical() {
            IpAddr::V4(address) => u64::from(address.to_bits()),
            // A customer's network is its own to choose addresses from.
            IpAddr::V6(address) => u64::try_from(address.to_bits() >> 64).unwrap_or(0),
        };
        let groups = u64::try_from(GROUPS).unwrap_or(1);
        let group = usize::try_from(self.hasher.hash_one(network) % groups).unwrap_or(0);
        let group = self.groups.get(group)?;
        let place = Place {
            all: &self.all,
            group,
        };
        let all = self.all.fetch_add(1, Ordering::Relaxed);
        let of_group = group.fetch_add(1, Ordering::Relaxed);
        // Without one, what was counted is given back as it is dropped.
        (all < MAX_WAITING || of_group < PLACES_OF_GROUP).then_some(place)
    }

    #[cfg(test)]
    pub(super) fn count(&self) -> usize {
        self.all.load(Ordering::Relaxed)
    }
}

/// One of the places for waiting requests.
#[derive(Debug)]
pub(super) struct Place<'w> {
    all: &'w AtomicUsize,
    group: &'w AtomicUsize,
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.all.fetch_sub(1, Ordering::Relaxed);
        self.group.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const COOLDOWN: Duration = Duration::from_millis(500);

    /// One fetch that takes so long, asked for by a request that comes now; whether there was one.
    fn junk(demand: &Demand, now: Instant, takes: Duration) -> bool {
        let arrival = demand.arrive();
        if demand.is_shut(now) || demand.next(arrival, now) != Next::Wake {
            return false;
        }
        assert!(demand.begin());
        demand.end(true, false, now + takes);
        true
    }

    #[test]
    fn junk_at_every_moment_gets_no_more_than_the_budget_in_any_minute() {
        for budget in [1, 2, 3, 6, 12, 60] {
            let demand = Demand::new(budget, COOLDOWN);
            let step = Duration::from_millis(10);
            let mut fetches = Vec::new();
            for tick in 0..30_000 {
                let now = demand.base + step * tick;
                if junk(&demand, now, step) {
                    fetches.push(now);
                }
            }
            for (index, first) in fetches.iter().enumerate() {
                let in_window = fetches.iter().skip(index);
                let in_window = in_window.take_while(|at| **at < *first + WINDOW).count();
                assert!(
                    in_window <= usize::try_from(budget).unwrap(),
                    "{budget}: {in_window}"
                );
            }
            // What a good caller waits at most while that goes on.
            let longest = fetches.windows(2).map(|pair| pair[1] - pair[0]).max();
            let bound = demand.recovery() + step;
            assert!(
                longest.is_none_or(|longest| longest <= bound),
                "{budget}: {longest:?}"
            );
            assert!(fetches.len() >= 5, "{budget}: {}", fetches.len());
        }
    }

    #[test]
    fn fetches_that_bring_new_keys_are_free_and_paced() {
        let demand = Demand::new(2, COOLDOWN);
        let mut now = demand.base;
        for _ in 0..1_000 {
            assert_eq!(demand.next(demand.arrive(), now), Next::Wake);
            assert!(demand.begin());
            demand.end(true, true, now);
            assert_eq!(demand.next(demand.arrive(), now), Next::At(now + PACE));
            now += PACE;
        }
    }

    #[test]
    fn who_came_during_a_fetch_gets_one_that_began_later_without_a_cool_down() {
        let demand = Demand::new(12, COOLDOWN);
        let begun = demand.base;
        assert_eq!(demand.next(demand.arrive(), begun), Next::Wake);
        assert!(demand.begin());
        // Its key may have been published behind the issuer's back, as it were.
        let during = demand.arrive();
        assert_eq!(demand.next(during, begun), Next::Wait);
        let ended = begun + PACE;
        demand.end(true, false, ended);
        let after = demand.arrive();
        assert_eq!(demand.next(after, ended), Next::At(ended + COOLDOWN));
        assert!(demand.is_shut(ended));
        assert_eq!(demand.next(during, ended), Next::Wake);
        assert!(!demand.is_shut(ended), "one is on its way");
        assert_eq!(demand.next(after, ended), Next::Wait);
        assert!(demand.begin());
        demand.end(false, false, ended);
        assert_eq!(demand.next(during, ended), Next::Looked(false));
        assert_eq!(demand.next(after, ended), Next::Looked(false));
    }

    #[test]
    fn a_fetch_that_nobody_asked_for_costs_nobody_anything() {
        let demand = Demand::new(1, COOLDOWN);
        demand.want();
        assert!(demand.is_wanted());
        let early = demand.arrive();
        assert_eq!(demand.next(early, demand.base), Next::Wait);
        assert!(!demand.begin());
        demand.end(true, false, demand.base);
        assert_eq!(demand.next(early, demand.base), Next::Looked(true));
        assert_eq!(demand.next(demand.arrive(), demand.base), Next::Wake);
    }

    #[test]
    fn junk_from_one_network_leaves_places_for_others() {
        let waiting = Waiting::default();
        let junk: Vec<_> = (0..MAX_WAITING * 2)
            .filter_map(|_| waiting.take(IpAddr::from([192, 0, 2, 1])))
            .collect();
        assert_eq!(junk.len(), MAX_WAITING);
        let others: Vec<_> = (0..=255)
            .filter_map(|last| waiting.take(IpAddr::from([198, 51, 100, last])))
            .collect();
        // Those that share the group of the junk have bad luck.
        assert!(others.len() > 200, "{}", others.len());
        drop((junk, others));
        assert_eq!(waiting.count(), 0);
    }

    #[test]
    fn every_network_together_is_bounded() {
        let waiting = Waiting::default();
        let taken = (0..100_000_u32)
            .filter_map(|bits| waiting.take(IpAddr::from(bits.to_be_bytes())))
            .collect::<Vec<_>>();
        assert!(taken.len() <= MAX_WAITING + GROUPS * PLACES_OF_GROUP);
    }
}
