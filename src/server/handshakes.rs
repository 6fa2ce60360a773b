//! The unfinished handshakes of a worker: bounded, and fair between addresses.

use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::rc::Rc;

use tokio::sync::Notify;

use crate::listener::group;

/// The unfinished handshakes of one socket.
///
/// When there are too many, one is given up. Refusing the newest would let a few hundred silent
/// connections lock everybody out for the length of the timeout; giving up the oldest of the address
/// with the most makes a flood compete with itself.
#[derive(Debug, Default)]
pub(super) struct Handshakes {
    pending: RefCell<Pending>,
}

#[derive(Debug, Default)]
struct Pending {
    next: u64,
    by_age: BTreeMap<u64, (IpAddr, Rc<Notify>)>,
    by_address: HashMap<IpAddr, usize>,
}

impl Pending {
    fn remove(&mut self, id: u64) -> Option<Rc<Notify>> {
        let (address, evict) = self.by_age.remove(&id)?;
        if let Some(count) = self.by_address.get_mut(&address) {
            *count -= 1;
            if *count == 0 {
                self.by_address.remove(&address);
            }
        }
        Some(evict)
    }
}

impl Handshakes {
    /// Begins one; at most `most` are open afterwards.
    pub(super) fn begin(self: &Rc<Self>, peer: IpAddr, most: usize) -> Handshake {
        let address = group(peer);
        let mut pending = self.pending.borrow_mut();
        while pending.by_age.len() >= most.max(1) {
            let heaviest = pending
                .by_address
                .iter()
                .max_by_key(|(_, count)| **count)
                .map(|(address, _)| *address);
            let victim = pending
                .by_age
                .iter()
                .find(|(_, (address, _))| Some(*address) == heaviest)
                .map(|(id, _)| *id);
            match victim.and_then(|id| pending.remove(id)) {
                Some(evict) => evict.notify_one(),
                None => break,
            }
        }
        let id = pending.next;
        pending.next += 1;
        let evict = Rc::new(Notify::new());
        pending.by_age.insert(id, (address, Rc::clone(&evict)));
        *pending.by_address.entry(address).or_insert(0) += 1;
        Handshake {
            all: Rc::clone(self),
            id,
            evict,
        }
    }
}

/// One unfinished handshake; it is over when this is dropped.
#[derive(Debug)]
pub(super) struct Handshake {
    all: Rc<Handshakes>,
    id: u64,
    evict: Rc<Notify>,
}

impl Handshake {
    /// Waits until this one is given up in favour of another. Cancel safe.
    pub(super) async fn evicted(&self) {
        self.evict.notified().await;
    }
}

impl Drop for Handshake {
    fn drop(&mut self) {
        self.all.pending.borrow_mut().remove(self.id);
    }
}

#[cfg(test)]
mod tests {
    use std::future::Future;
    use std::pin::pin;
    use std::task::{Context, Waker};

    use super::*;

    fn evicted(handshake: &Handshake) -> bool {
        pin!(handshake.evicted())
            .poll(&mut Context::from_waker(Waker::noop()))
            .is_ready()
    }

    #[test]
    fn a_flood_gives_up_its_own_oldest_and_leaves_others_alone() {
        let all = Rc::new(Handshakes::default());
        let good: IpAddr = "10.0.0.1".parse().unwrap();
        let junk: IpAddr = "10.0.0.2".parse().unwrap();
        let honest = all.begin(good, 4);
        let flood: Vec<_> = (0..10).map(|_| all.begin(junk, 4)).collect();
        assert!(!evicted(&honest));
        let given_up = flood.iter().filter(|one| evicted(one)).count();
        assert_eq!(given_up, 7);
        assert!(evicted(&flood[0]) || all.pending.borrow().by_age.len() == 4);
        assert_eq!(all.pending.borrow().by_age.len(), 4);
        drop(flood);
        drop(honest);
        assert!(all.pending.borrow().by_age.is_empty());
        assert!(all.pending.borrow().by_address.is_empty());
    }
}
