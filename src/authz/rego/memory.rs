//! The memory of evaluations on the interpreter, which itself knows one limit for the whole process.
//!
//! The engine counts what the program's allocator gives out, and while a limit is set the interpreter
//! looks at the count every few steps and whenever a thread has taken 32 KiB more. So the limit is set
//! while evaluations run, and to what was taken when they began, plus their budgets, plus [`SLACK`].
//! The rest of the process counts too, and its own parsing is stopped by the same limit: the slack is
//! what it may take in those few milliseconds. An evaluation that seems to have passed its budget, and
//! whose own thread did not, is asked once more.

use std::num::NonZeroU64;
use std::sync::{Mutex, MutexGuard, PoisonError};

use regorus::set_global_memory_limit;
use regorus_mimalloc::allocation_stats_snapshot;

/// What the whole process may take beside the evaluations while these run, bytes.
const SLACK: u64 = 64 << 20;

/// The evaluations that run now.
struct Running {
    count: usize,
    /// The sum of their budgets.
    budgets: u64,
    limit: u64,
}

static RUNNING: Mutex<Running> = Mutex::new(Running {
    count: 0,
    budgets: 0,
    limit: 0,
});

fn running() -> MutexGuard<'static, Running> {
    RUNNING.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Holds the limit while an evaluation runs.
#[derive(Debug)]
pub(in crate::authz) struct Watch {
    budget: u64,
    /// Live bytes of this thread, and the most it ever had, when the watch began.
    live: i64,
    peak: i64,
}

impl Watch {
    pub(in crate::authz) fn begin(budget: NonZeroU64) -> Self {
        let budget = budget.get();
        let (process, thread) = allocation_stats_snapshot();
        let mut running = running();
        running.count += 1;
        running.budgets = running.budgets.saturating_add(budget);
        let limit = process
            .allocated
            .saturating_add(running.budgets)
            .saturating_add(SLACK);
        running.limit = running.limit.max(limit);
        set_global_memory_limit(Some(running.limit));
        drop(running);
        Self {
            budget,
            live: thread.allocated,
            peak: thread.peak,
        }
    }

    /// Whether this thread itself is known to have passed the budget.
    pub(in crate::authz) fn passed(&self) -> bool {
        let (_, thread) = allocation_stats_snapshot();
        let budget = i64::try_from(self.budget).unwrap_or(i64::MAX);
        thread.peak > self.peak && thread.peak.saturating_sub(self.live) > budget
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        let mut running = running();
        running.count = running.count.saturating_sub(1);
        running.budgets = running.budgets.saturating_sub(self.budget);
        if running.count == 0 {
            running.budgets = 0;
            running.limit = 0;
            set_global_memory_limit(None);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_limit_is_there_while_evaluations_run_and_no_longer() {
        // Other tests evaluate at the same time; what they leave is a limit above ours or none.
        let budget = NonZeroU64::new(8 << 20).unwrap();
        let (before, _) = allocation_stats_snapshot();
        let watch = Watch::begin(budget);
        let limit = regorus::global_memory_limit().unwrap_or(u64::MAX);
        assert!(
            limit >= before.allocated.saturating_add(4 << 20),
            "{limit} {before:?}"
        );
        assert!(!watch.passed());
        let taken = vec![1u8; 64 << 20];
        assert!(watch.passed());
        drop((watch, taken));
    }
}
