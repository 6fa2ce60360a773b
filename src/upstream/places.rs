//! How many exchanges may be under way at one endpoint. Belongs to one core, so it counts without
//! locks and atomics.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::rc::Rc;
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::time::timeout;

/// A number of places, and who waits for one, in order.
#[derive(Debug)]
pub(super) struct Places {
    free: Cell<usize>,
    waiting: RefCell<VecDeque<oneshot::Sender<Place>>>,
}

/// A place that is taken. Dropping it hands it to whoever waited longest.
#[derive(Debug)]
pub(super) struct Place(Rc<Places>);

impl Places {
    /// So many places.
    pub(super) fn new(count: usize) -> Rc<Self> {
        Rc::new(Self {
            free: Cell::new(count),
            waiting: RefCell::default(),
        })
    }

    /// A place, if one is free.
    pub(super) fn try_take(self: &Rc<Self>) -> Option<Place> {
        let free = self.free.get().checked_sub(1)?;
        self.free.set(free);
        Some(Place(Rc::clone(self)))
    }

    /// A place, waiting for at most `wait`.
    pub(super) async fn take(self: &Rc<Self>, wait: Duration) -> Option<Place> {
        if let Some(place) = self.try_take() {
            return Some(place);
        }
        let place = self.queue();
        timeout(wait, place).await.ok()?.ok()
    }

    /// Waits behind all others.
    fn queue(&self) -> oneshot::Receiver<Place> {
        let (sender, place) = oneshot::channel();
        let mut waiting = self.waiting.borrow_mut();
        // Those who gave up are forgotten before the queue grows.
        if waiting.len() == waiting.capacity() {
            waiting.retain(|waiter| !waiter.is_closed());
        }
        waiting.push_back(sender);
        place
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        loop {
            let next = self.0.waiting.borrow_mut().pop_front();
            let Some(next) = next else {
                self.0.free.set(self.0.free.get() + 1);
                return;
            };
            if next.is_closed() {
                continue;
            }
            // A place that is sent and never received comes back here when it is dropped.
            drop(next.send(Self(Rc::clone(&self.0))));
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn places_are_bounded_and_come_back() {
        let places = Places::new(2);
        let first = places.try_take().unwrap();
        let _second = places.try_take().unwrap();
        assert!(places.try_take().is_none());
        assert!(places.take(Duration::from_millis(1)).await.is_none());
        drop(first);
        let third = places.try_take();
        assert!(third.is_some());
        drop(third);
        assert_eq!(places.free.get(), 1);
    }

    #[tokio::test]
    async fn who_waited_longest_is_served_first_and_who_gave_up_never() {
        let places = Places::new(1);
        let held = places.try_take().unwrap();
        let wait = Duration::from_secs(5);
        let mut quitter = Box::pin(places.take(wait));
        let mut first = Box::pin(places.take(wait));
        let mut second = Box::pin(places.take(wait));
        for waiter in [&mut quitter, &mut first, &mut second] {
            assert!(futures_poll(waiter).is_none());
        }
        drop(quitter);
        drop(held);
        assert!(futures_poll(&mut second).is_none());
        let served = futures_poll(&mut first).unwrap();
        // Handed over, but dropped before it was received: the next one gets it.
        drop(served);
        drop(second);
        assert_eq!(places.free.get(), 1);
        assert!(places.waiting.borrow().is_empty());
    }

    fn futures_poll(
        waiter: &mut std::pin::Pin<Box<impl Future<Output = Option<Place>>>>,
    ) -> Option<Place> {
        let mut cx = std::task::Context::from_waker(std::task::Waker::noop());
        match waiter.as_mut().poll(&mut cx) {
            std::task::Poll::Ready(place) => place,
            std::task::Poll::Pending => None,
        }
    }
}
