//! Which endpoint: power of two choices over the exchanges of this core, endpoints that failed
//! lately put aside with a back-off, and the budget that keeps retries from becoming a storm.
//! Nothing here knows of connections.

use std::cell::Cell;
use std::time::Duration;

use tokio::time::Instant;

/// Failures in a row after which an endpoint is put aside.
pub(super) const EJECT_AFTER: u32 = 3;
/// How long it is put aside at first; doubles with every further failure.
const EJECT_FOR: Duration = Duration::from_secs(1);
/// The longest it is put aside at a time.
const EJECT_MAX: Duration = Duration::from_secs(60);
/// How much one recent failure weighs, in exchanges under way.
const FAILURE_WEIGHT: usize = 4;
/// Retries an upstream may spend before it earned any, and the most it may save up.
const BUDGET_RESERVE: f64 = 10.0;

/// What one core has seen of one endpoint.
#[derive(Debug, Default)]
pub(super) struct Health {
    failures: Cell<u32>,
    aside_until: Cell<Option<Instant>>,
}

impl Health {
    /// It answered.
    pub(super) fn succeeded(&self) {
        self.failures.set(0);
        self.aside_until.set(None);
    }

    /// It could not be reached, broke the protocol, or kept us waiting.
    pub(super) fn failed(&self, now: Instant) {
        let failures = self.failures.get().saturating_add(1);
        self.failures.set(failures);
        if failures >= EJECT_AFTER {
            // Bounded before the shift: the exponent grows with every failure.
            let doublings = (failures - EJECT_AFTER).min(6);
            let aside = EJECT_FOR.saturating_mul(1 << doublings).min(EJECT_MAX);
            self.aside_until.set(Some(now + aside));
        }
    }

    /// Failures in a row.
    pub(super) fn failures(&self) -> u32 {
        self.failures.get()
    }

    /// For how long more it is put aside.
    pub(super) fn aside_for(&self, now: Instant) -> Option<Duration> {
        let left = self.aside_until.get()?.saturating_duration_since(now);
        (!left.is_zero()).then_some(left)
    }

    fn aside(&self, now: Instant) -> bool {
        self.aside_until.get().is_some_and(|until| now < until)
    }

    fn penalty(&self) -> usize {
        usize::try_from(self.failures.get().min(EJECT_AFTER)).unwrap_or_default() * FAILURE_WEIGHT
    }
}

/// One endpoint as the choice sees it.
#[derive(Debug)]
pub(super) struct Candidate<'a> {
    /// Exchanges under way on this core.
    pub(super) in_flight: usize,
    /// What was seen of it.
    pub(super) health: &'a Health,
    /// Whether this request already failed there.
    pub(super) tried: bool,
}

/// Chooses among `candidates`: untried ones that are not put aside; else untried ones; else any.
/// `None` only when there are none. `random` gives a number below its argument.
pub(super) fn choose(
    candidates: &[Candidate<'_>],
    now: Instant,
    mut random: impl FnMut(usize) -> usize,
) -> Option<usize> {
    if candidates.len() <= 1 {
        return (!candidates.is_empty()).then_some(0);
    }
    let indices = |accept: &dyn Fn(&Candidate<'_>) -> bool| -> Vec<usize> {
        let accepted = candidates.iter().enumerate().filter(|(_, c)| accept(c));
        accepted.map(|(index, _)| index).collect()
    };
    let mut open = indices(&|c| !c.tried && !c.health.aside(now));
    if open.is_empty() {
        open = indices(&|c| !c.tried);
    }
    if open.is_empty() {
        open = indices(&|_| true);
    }
    let first = random(open.len()).min(open.len() - 1);
    // The second is another one: drawn from the rest, stepping over the first.
    let second = match open.len() {
        1 => first,
        count => {
            let drawn = random(count - 1).min(count - 2);
            drawn + usize::from(drawn >= first)
        }
    };
    let cost = |at: &usize| {
        candidates
            .get(*at)
            .map_or(usize::MAX, |c| c.in_flight + c.health.penalty())
    };
    let (first, second) = (open.get(first)?, open.get(second)?);
    Some(if cost(second) < cost(first) {
        *second
    } else {
        *first
    })
}

/// How many retries an upstream may cause: a share of its requests, and a small reserve.
#[derive(Debug)]
pub(super) struct Budget {
    ratio: f64,
    saved: Cell<f64>,
}

impl Budget {
    /// A budget of `ratio` retries for each request.
    pub(super) fn new(ratio: f64) -> Self {
        let saved = if ratio > 0.0 { BUDGET_RESERVE } else { 0.0 };
        Self {
            ratio,
            saved: Cell::new(saved),
        }
    }

    /// A request came and earns its share.
    pub(super) fn earn(&self) {
        self.saved
            .set((self.saved.get() + self.ratio).min(BUDGET_RESERVE));
    }

    /// Whether one more retry is within the budget; spends it.
    pub(super) fn spend(&self) -> bool {
        let saved = self.saved.get();
        let enough = saved >= 1.0;
        if enough {
            self.saved.set(saved - 1.0);
        }
        enough
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn candidates<'a>(loads: &[usize], health: &'a [Health]) -> Vec<Candidate<'a>> {
        let both = loads.iter().zip(health);
        both.map(|(&in_flight, health)| Candidate {
            in_flight,
            health,
            tried: false,
        })
        .collect()
    }

    fn healths(count: usize) -> Vec<Health> {
        (0..count).map(|_| Health::default()).collect()
    }

    #[test]
    fn the_less_busy_of_two_is_chosen() {
        let health = healths(2);
        let now = Instant::now();
        for draw in 0..2 {
            let chosen = choose(&candidates(&[3, 1], &health), now, |_| draw);
            assert_eq!(chosen, Some(1));
        }
        assert_eq!(choose(&[], now, |_| 0), None);
    }

    #[test]
    fn an_endpoint_that_failed_in_a_row_is_put_aside_and_comes_back() {
        let health = healths(2);
        let now = Instant::now();
        for _ in 0..EJECT_AFTER {
            health[0].failed(now);
        }
        let busy = candidates(&[0, 1000], &health);
        assert_eq!(choose(&busy, now, |_| 0), Some(1));
        let later = now + EJECT_FOR;
        assert_eq!(choose(&busy, later, |_| 0), Some(0));
        health[0].failed(later);
        assert!(health[0].aside(later + EJECT_FOR));
        health[0].succeeded();
        assert!(!health[0].aside(later));
    }

    #[test]
    fn back_off_is_bounded() {
        let health = Health::default();
        let now = Instant::now();
        (0..1000).for_each(|_| health.failed(now));
        assert!(!health.aside(now + EJECT_MAX));
    }

    #[test]
    fn when_all_are_aside_all_are_used() {
        let health = healths(2);
        let now = Instant::now();
        for health in &health {
            (0..5).for_each(|_| health.failed(now));
        }
        assert!(choose(&candidates(&[0, 0], &health), now, |_| 0).is_some());
    }

    #[test]
    fn a_retry_goes_to_another_endpoint_if_there_is_one() {
        let health = healths(2);
        let now = Instant::now();
        let mut two = candidates(&[0, 9], &health);
        two[0].tried = true;
        assert_eq!(choose(&two, now, |_| 0), Some(1));
    }

    #[test]
    fn retries_are_a_share_of_requests() {
        let budget = Budget::new(0.2);
        let mut spent = 0;
        for _ in 0..1000 {
            budget.earn();
            spent += u32::from(budget.spend());
        }
        assert!((200..=212).contains(&spent), "{spent}");
        let none = Budget::new(0.0);
        none.earn();
        assert!(!none.spend());
    }
}
