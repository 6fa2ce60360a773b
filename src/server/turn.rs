//! Giving way: whoever had a turn on the core lets all others have theirs.

use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Wake, Waker};

/// The turn of everybody else, which is waited for.
///
/// It is over when the runtime has asked the kernel for news and comes back, however often it is asked
/// about in between. A wake-up at once would not do: the task would stand at the end of a queue that is
/// emptied 61 times before the kernel is asked who else has sent something. Nor would tokio's own
/// `yield_now` alone: it is content when it is polled a second time, and hyper does that at once.
#[derive(Debug, Default)]
pub(super) struct Others(Option<Arc<Told>>);

/// Whether it is over, and who wants to know.
#[derive(Debug)]
struct Told {
    over: AtomicBool,
    task: Waker,
}

impl Wake for Told {
    fn wake(self: Arc<Self>) {
        self.over.store(true, Ordering::Relaxed);
        self.task.wake_by_ref();
    }
}

impl Others {
    /// Ready when all others have had one turn; the next call begins another one.
    pub(super) fn poll(&mut self, cx: &Context<'_>) -> Poll<()> {
        match &self.0 {
            Some(told) if told.over.load(Ordering::Relaxed) => {
                self.0 = None;
                return Poll::Ready(());
            }
            Some(told) if told.task.will_wake(cx.waker()) => return Poll::Pending,
            // Somebody else asks now, or nobody did yet.
            Some(_) | None => {}
        }
        let told = Arc::new(Told {
            over: AtomicBool::new(false),
            task: cx.waker().clone(),
        });
        let waker = Waker::from(Arc::clone(&told));
        // It only leaves the waker where it is called behind the next look at the kernel.
        let _ = pin!(tokio::task::yield_now()).poll(&mut Context::from_waker(&waker));
        self.0 = Some(told);
        Poll::Pending
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::future::poll_fn;
    use std::rc::Rc;

    use tokio::task::{LocalSet, spawn_local};

    use super::*;

    #[test]
    fn who_asks_again_and_again_still_waits_for_the_others() {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .build()
            .unwrap();
        LocalSet::new().block_on(&runtime, async {
            let turns = Rc::new(Cell::new(0));
            let theirs = Rc::clone(&turns);
            spawn_local(async move {
                loop {
                    theirs.set(theirs.get() + 1);
                    tokio::task::yield_now().await;
                }
            });
            tokio::task::yield_now().await;
            for _ in 0..10 {
                let before = turns.get();
                let mut others = Others::default();
                poll_fn(|cx| {
                    // As hyper does.
                    let asked = others.poll(cx).is_ready() || others.poll(cx).is_ready();
                    if asked {
                        Poll::Ready(())
                    } else {
                        Poll::Pending
                    }
                })
                .await;
                assert!(turns.get() > before);
            }
        });
    }
}
