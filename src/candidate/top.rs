//! Who has the most, within a bound ("space saving", Metwally and others 2005): a caller that is new
//! takes the place of the one with the least and inherits its count as a doubt, so that whoever has more
//! than an even share of all is never missing.

use std::collections::BTreeMap;
use std::sync::Arc;

/// Most callers that are counted at one time.
const MAX: usize = 100;

/// Counts by name.
#[derive(Debug, Clone, Default)]
pub(super) struct Top {
    /// Flips, and how many of them may be others'.
    counts: BTreeMap<Arc<str>, (u64, u64)>,
}

impl Top {
    pub(super) fn count(&mut self, name: &Arc<str>) {
        if let Some((count, _)) = self.counts.get_mut(name) {
            *count += 1;
            return;
        }
        let mut doubt = 0;
        if self.counts.len() >= MAX
            && let Some((least, count)) = self
                .counts
                .iter()
                .min_by_key(|(_, (count, _))| *count)
                .map(|(name, (count, _))| (Arc::clone(name), *count))
        {
            self.counts.remove(&least);
            doubt = count;
        }
        self.counts.insert(Arc::clone(name), (doubt + 1, doubt));
    }

    /// Name, count, and how much of it is in doubt; most first.
    pub(super) fn most(&self) -> Vec<(&Arc<str>, u64, u64)> {
        let mut all: Vec<_> = self
            .counts
            .iter()
            .map(|(name, (count, doubt))| (name, *count, *doubt))
            .collect();
        all.sort_by_key(|(_, count, doubt)| std::cmp::Reverse((*count - *doubt, *count)));
        all
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whoever_has_many_is_found_among_ever_new_others() {
        let mut top = Top::default();
        let often: Arc<str> = "often".into();
        for number in 0..10_000 {
            top.count(&format!("stranger{number}").into());
            if number % 10 == 0 {
                top.count(&often);
            }
        }
        assert_eq!(top.counts.len(), MAX);
        let (first, count, doubt) = top.most().into_iter().next().unwrap();
        assert_eq!(&**first, "often");
        assert!(
            count >= 1_000 && count - doubt <= 1_000,
            "{count} of which {doubt} in doubt"
        );
    }
}
