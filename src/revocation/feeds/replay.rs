//! Which statements were heard already.

use std::sync::Arc;
use std::time::Duration;

use moka::sync::Cache;

/// The most statements of one feed that are remembered. One that was forgotten and comes again ends
/// the same once more: nothing is lost by that but the word "again".
pub(super) const MAX_REMEMBERED: u64 = 10_000;

/// Remembers the `jti` of what was heard, for as long as it could be accepted once more.
#[derive(Debug)]
pub(super) struct Heard(Cache<Arc<str>, ()>);

impl Heard {
    pub(super) fn new(lasting: Duration) -> Self {
        Self(
            Cache::builder()
                .max_capacity(MAX_REMEMBERED)
                .time_to_live(lasting)
                .build(),
        )
    }

    /// Whether it was heard before.
    pub(super) fn has(&self, token_id: &str) -> bool {
        self.0.contains_key(token_id)
    }

    /// Remembers it. To be called once it has taken effect: what failed may come again.
    pub(super) fn keep(&self, token_id: &Arc<str>) {
        self.0.insert(Arc::clone(token_id), ());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_heard_is_known_and_the_memory_has_a_bound() {
        let heard = Heard::new(Duration::from_secs(60));
        heard.keep(&"one".into());
        assert!(heard.has("one"));
        assert!(!heard.has("two"));
        for n in 0..MAX_REMEMBERED * 2 {
            heard.keep(&format!("{n}").into());
        }
        heard.0.run_pending_tasks();
        assert!(heard.0.entry_count() <= MAX_REMEMBERED);
    }
}
