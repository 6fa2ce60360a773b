//! How many callers differences come from: who has the most of them, within a bound.
//!
//! The same way of counting as [`top`](super::top), with numbers in the place of names.

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::net::IpAddr;
use std::sync::LazyLock;

use crate::authn::Caller;
use crate::request::InboundRequest;

/// Most callers that are told apart at one time. Whoever has more than a 32nd of all is never missing,
/// and has at most so much too many.
const MAX: usize = 32;

/// Drawn anew by each process: nobody can look for callers that count as one.
static KEY: LazyLock<RandomState> = LazyLock::new(RandomState::new);

/// Who asks, as a number: the identity, or the address of who has none. Of IPv6 its network, since
/// whoever has one address has all of it.
pub(super) fn number(caller: &Caller, request: &InboundRequest) -> u64 {
    match caller.identity() {
        Some(identity) => KEY.hash_one(&*identity.id),
        None => match request.client.to_canonical() {
            IpAddr::V4(address) => KEY.hash_one(address),
            IpAddr::V6(address) => {
                let [a, b, c, d, ..] = address.segments();
                KEY.hash_one([a, b, c, d])
            }
        },
    }
}

/// Differences by caller.
#[derive(Debug, Clone, Default)]
pub(super) struct Callers(Vec<(u64, u64)>);

impl Callers {
    /// Counts differences of a caller.
    pub(super) fn count(&mut self, caller: u64, times: u64) {
        if let Some((_, count)) = self.0.iter_mut().find(|(known, _)| *known == caller) {
            *count += times;
        } else if self.0.len() < MAX {
            self.0.push((caller, times));
        } else if let Some(least) = self.0.iter_mut().min_by_key(|(_, count)| *count) {
            *least = (caller, least.1 + times);
        }
    }

    /// Counts what another one has counted.
    pub(super) fn add(&mut self, more: &Self) {
        for (caller, times) in &more.0 {
            self.count(*caller, *times);
        }
    }

    pub(super) fn clear(&mut self) {
        self.0.clear();
    }
}

/// How many differences the callers with the most of them have, of all that these have counted.
pub(super) fn of_the_first<'c>(all: impl Iterator<Item = &'c Callers>, callers: usize) -> u64 {
    let mut sums: HashMap<u64, u64> = HashMap::new();
    for (caller, times) in all.flat_map(|one| &one.0) {
        *sums.entry(*caller).or_default() += times;
    }
    let mut sums: Vec<u64> = sums.into_values().collect();
    sums.sort_unstable_by_key(|sum| std::cmp::Reverse(*sum));
    sums.into_iter().take(callers).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whoever_has_much_is_never_missing_and_memory_does_not_grow() {
        let mut callers = Callers::default();
        for stranger in 1..=10_000 {
            callers.count(stranger, 1);
            if stranger % 10 == 0 {
                callers.count(0, 1);
            }
        }
        assert_eq!(callers.0.len(), MAX);
        let first = of_the_first([&callers].into_iter(), 1);
        assert!((1_000..=1_000 + 11_000 / 32).contains(&first), "{first}");
    }

    #[test]
    fn those_with_the_most_are_found_over_all_parts() {
        let part = |counts: &[(u64, u64)]| {
            let mut callers = Callers::default();
            for (caller, times) in counts {
                callers.count(*caller, *times);
            }
            callers
        };
        let parts = [part(&[(1, 5), (2, 4)]), part(&[(2, 4), (3, 6)])];
        let first = |callers| of_the_first(parts.iter(), callers);
        assert_eq!((first(0), first(1), first(2), first(9)), (0, 8, 14, 19));
        let mut both = parts[0].clone();
        both.add(&parts[1]);
        assert_eq!(of_the_first([&both].into_iter(), 1), 8);
        both.clear();
        assert_eq!(of_the_first([&both].into_iter(), 1), 0);
    }

    #[test]
    fn who_has_no_identity_is_an_address_or_its_network() {
        let from = |address: &str| {
            let request = crate::candidate::tests::request_from(address);
            number(&Caller::Anonymous, &request)
        };
        assert_eq!(from("192.0.2.1:1"), from("[::ffff:192.0.2.1]:9"));
        assert_ne!(from("192.0.2.1:1"), from("192.0.2.2:1"));
        assert_eq!(from("[2001:db8::1]:1"), from("[2001:db8::ffff:2]:1"));
        assert_ne!(from("[2001:db8::1]:1"), from("[2001:db8:0:1::1]:1"));
        let named = crate::candidate::tests::caller("alice", "{}");
        let here = crate::candidate::tests::request_from("192.0.2.1:1");
        let there = crate::candidate::tests::request_from("192.0.2.2:1");
        assert_eq!(number(&named, &here), number(&named, &there));
        assert_ne!(number(&named, &here), from("192.0.2.1:1"));
    }
}
