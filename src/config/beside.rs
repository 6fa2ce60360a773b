//! Long work beside requests.
//!
//! It runs on threads that stay, and the one that worked last works next: what a load leaves behind
//! in its thread's memory is what the next load needs. On a new thread each time, every reload of
//! thousands of routes would ask the system for all of it anew.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc::{Sender, channel};
use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::sync::oneshot;

/// By how much work beside requests gives way to them: a weight of about a tenth on a busy core.
const GIVE_WAY: i32 = 10;

/// What is to be done, and then how its outcome is told: behind the thread's return to the others,
/// so that what follows finds it there.
type Work = Box<dyn FnOnce() -> Tell + Send>;
type Tell = Box<dyn FnOnce()>;

/// Threads without work. There are as many as there ever were works at once, which is few: one reload
/// at a time, and the looks at its files.
static RESTING: Mutex<Vec<Sender<Work>>> = Mutex::new(Vec::new());

fn resting() -> MutexGuard<'static, Vec<Sender<Work>>> {
    RESTING.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Runs long work on a thread of its own and of low priority, so that requests come first where
/// cores are few; `None` when it panicked or no thread is to be had.
pub async fn beside<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Option<T> {
    let (done, outcome) = oneshot::channel();
    begin(move || {
        // On Linux this is the thread's own. Where it is not allowed, the work is as urgent as any.
        let _ = rustix::process::setpriority_process(None, GIVE_WAY);
        let outcome = work();
        // Nobody waits any more when the process is ending.
        Box::new(move || drop(done.send(outcome)))
    })?;
    outcome.await.ok()
}

/// Runs work before there are requests, on the thread that works beside them later; `None` as above.
pub(super) fn before<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Option<T> {
    let (done, outcome) = channel();
    begin(move || {
        let outcome = work();
        Box::new(move || drop(done.send(outcome)))
    })?;
    outcome.recv().ok()
}

fn begin(work: impl FnOnce() -> Tell + Send + 'static) -> Option<()> {
    let mut work: Work = Box::new(work);
    loop {
        let rested = resting().pop();
        let thread = match rested {
            Some(thread) => thread,
            None => spawned()?,
        };
        match thread.send(work) {
            Ok(()) => return Some(()),
            // It is gone, which no thread should be; another one takes the work.
            Err(unsent) => work = unsent.0,
        }
    }
}

fn spawned() -> Option<Sender<Work>> {
    let (sender, receiver) = channel::<Work>();
    let own = sender.clone();
    let thread = std::thread::Builder::new().name("beside".to_owned());
    let run = move || {
        while let Ok(work) = receiver.recv() {
            // Whoever waits for the work learns of a panic by its silence; the panic was logged.
            let tell = catch_unwind(AssertUnwindSafe(work));
            resting().push(own.clone());
            if let Ok(tell) = tell {
                tell();
            }
        }
    };
    match thread.spawn(run) {
        Ok(_) => Some(sender),
        Err(error) => {
            tracing::error!(%error, "no thread is to be had for work beside requests");
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn work_that_panics_is_no_answer_and_other_work_goes_on() {
        assert_eq!(beside(|| 1).await, Some(1));
        let panicked = beside(|| assert!(std::env::args().count() == usize::MAX, "on purpose"));
        assert_eq!(panicked.await, None);
        assert_eq!(beside(|| 2).await, Some(2));
        assert_eq!(before(|| 3), Some(3));
    }

    #[tokio::test]
    async fn works_run_side_by_side() {
        let (sender, receiver) = channel();
        let waiting = tokio::spawn(beside(move || receiver.recv().ok()));
        // Ends only if it need not wait for the first.
        beside(move || sender.send(7).ok()).await;
        assert_eq!(waiting.await.unwrap(), Some(Some(7)));
    }
}
