//! Judges the leases of a worker again, when there is reason to.

use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::rc::Rc;
use std::task::Poll;
use std::time::{Duration, Instant, SystemTime};

use tokio::time::timeout;

use super::{Judged, Lease, Leases};
use crate::clock;
use crate::epoch::Epoch;
use crate::refusal::Refusal;
use crate::request::InboundRequest;

/// The least time between two looks at all leases: who changes something every millisecond does not
/// keep the workers from serving.
const PACE: Duration = Duration::from_millis(50);

/// The longest time between two looks. The wall clock may be set while we sleep.
const ROUND: Duration = Duration::from_secs(30);

/// How long judging goes on before requests get their turn.
const TURN: Duration = Duration::from_micros(200);

/// How long a credential may take to be judged (its issuer may have to be asked for keys).
const PATIENCE: Duration = Duration::from_secs(1);

/// What judging one request gives: when the permission ends, or why it is over.
type Verdict = Result<Option<SystemTime>, Refusal>;

/// Keeps the leases of a worker until it is dropped. `judge` asks the questions that a permission
/// rests on, under the configuration now in force.
pub async fn keep<J, F>(leases: Rc<Leases>, epoch: std::sync::Arc<Epoch>, judge: J)
where
    J: Fn(InboundRequest) -> F,
    F: Future<Output = Verdict> + 'static,
{
    let mut changes = epoch.watch();
    loop {
        let begun = Instant::now();
        // Read before anything is looked at: what changes meanwhile is looked at once more.
        changes.mark_unchanged();
        let now_is = epoch.now();
        // Before it is known what is due: who opens under an older number from here on tells us.
        leases.seen.set(now_is);
        look(&leases, &epoch, now_is, &judge).await;

        let now = clock::now();
        let next = leases.next(now);
        leases.wakes.set(Some(next));
        let sleep = next.duration_since(now).unwrap_or_default();
        let paced = PACE.saturating_sub(begun.elapsed());
        tokio::select! {
            _ = changes.changed() => {}
            () = leases.nudge.notified() => {}
            () = tokio::time::sleep(sleep) => {}
        }
        tokio::time::sleep(paced).await;
    }
}

/// Judges every lease that was judged in an earlier epoch, or whose time is over.
async fn look<J, F>(leases: &Rc<Leases>, epoch: &Epoch, now_is: u64, judge: &J)
where
    J: Fn(InboundRequest) -> F,
    F: Future<Output = Verdict> + 'static,
{
    let due = leases.due(now_is, clock::now());
    let mut turn = Instant::now();
    for (lease, over) in due {
        // It may have been released, renewed or ended since.
        if Rc::strong_count(&lease) > 1 && lease.lapse().is_none() && !lease.judging.get() {
            let judged_in = epoch.now();
            let renewals = lease.renewals.get();
            let mut judging: Pin<Box<F>> = Box::pin(judge(lease.request(clock::now())));
            match poll_fn(|cx| Poll::Ready(judging.as_mut().poll(cx))).await {
                Poll::Ready(verdict) => settle(&lease, judged_in, verdict),
                // What has ended does not go on until its issuer has answered.
                Poll::Pending if over => lease.end(Refusal::DeadlinePassed),
                // Its issuer is being asked. The others need not wait for it.
                Poll::Pending => {
                    lease.judging.set(true);
                    let leases = Rc::clone(leases);
                    tokio::task::spawn_local(async move {
                        let verdict = timeout(PATIENCE, judging).await;
                        let verdict = verdict.unwrap_or(Err(Refusal::DeadlinePassed));
                        lease.judging.set(false);
                        // It was about a credential that was replaced meanwhile.
                        if lease.renewals.get() == renewals {
                            settle(&lease, judged_in, verdict);
                        }
                        leases.nudge.notify_one();
                    });
                }
            }
        }
        if turn.elapsed() >= TURN {
            tokio::task::yield_now().await;
            turn = Instant::now();
        }
    }
}

fn settle(lease: &Lease, epoch: u64, verdict: Verdict) {
    match verdict {
        Ok(until) => lease.stands(Judged { epoch, until }),
        Err(refusal) => lease.end(refusal),
    }
}

impl Leases {
    /// What has to be judged again, those first whose time is over.
    fn due(&self, epoch: u64, now: SystemTime) -> Vec<(Rc<Lease>, bool)> {
        let open = self.open.borrow();
        let mut due: Vec<(Rc<Lease>, bool)> = open
            .iter()
            .map(|(_, lease)| {
                let over = lease.until.get().is_some_and(|until| until <= now);
                (lease, over)
            })
            .filter(|(lease, over)| {
                lease.lapse().is_none() && (*over || lease.judged_in.get() < epoch)
            })
            .map(|(lease, over)| (Rc::clone(lease), over))
            .collect();
        due.sort_by_key(|(_, over)| !over);
        due
    }

    /// When the first of them has to be looked at.
    fn next(&self, now: SystemTime) -> SystemTime {
        let open = self.open.borrow();
        let waiting = open
            .iter()
            .filter(|(_, lease)| lease.lapse().is_none() && !lease.judging.get());
        waiting
            .filter_map(|(_, lease)| lease.until.get())
            .fold(now + ROUND, SystemTime::min)
    }
}

#[cfg(test)]
pub(super) mod tests {
    use std::cell::RefCell;
    use std::sync::Arc;

    use http::Request;
    use tokio::task::LocalSet;

    use super::*;
    use crate::authn::Caller;
    use crate::request::{ConnInfo, RequestId, Rules};

    pub(in crate::lease) fn request(path: &str) -> Rc<InboundRequest> {
        let address = std::net::SocketAddr::from(([127, 0, 0, 1], 1));
        let conn = Arc::new(ConnInfo {
            listener: "test".into(),
            peer: address,
            local: address,
            tls: None,
            ambiguous_head: None,
            forwarded: Default::default(),
        });
        let head = Request::get(path).header("host", "test").body(()).unwrap();
        let rules = Rules::default();
        let read = InboundRequest::parse(&conn, RequestId::random(), head, clock::now(), &rules);
        Rc::new(read.unwrap().0)
    }

    const OLD: Judged = Judged {
        epoch: 0,
        until: None,
    };

    #[tokio::test]
    async fn a_lease_that_is_opened_under_an_old_epoch_during_a_look_is_judged_too() {
        let leases: Rc<Leases> = Rc::default();
        let epoch: Arc<Epoch> = Arc::default();
        let judged: Rc<RefCell<Vec<String>>> = Rc::default();
        let judge = {
            let judged = Rc::clone(&judged);
            move |request: InboundRequest| {
                judged.borrow_mut().push(request.path.as_str().to_owned());
                // So long that others get their turn before the next one.
                let begun = Instant::now();
                while begun.elapsed() < 2 * TURN {}
                async { Ok(None) }
            }
        };
        let local = LocalSet::new();
        local
            .run_until(async {
                let _first = leases.open(request("/first"), Caller::Anonymous, OLD);
                let _second = leases.open(request("/second"), Caller::Anonymous, OLD);
                epoch.advance();
                tokio::task::spawn_local(keep(Rc::clone(&leases), Arc::clone(&epoch), judge));
                while judged.borrow().is_empty() {
                    tokio::task::yield_now().await;
                }
                // The look goes on, and does not know of this one.
                assert_eq!(judged.borrow().len(), 1);
                let _late = leases.open(request("/late"), Caller::Anonymous, OLD);
                let seen = async {
                    while !judged.borrow().iter().any(|path| path == "/late") {
                        tokio::time::sleep(Duration::from_millis(5)).await;
                    }
                };
                timeout(Duration::from_secs(10), seen)
                    .await
                    .expect("the late one is judged");
            })
            .await;
    }

    #[tokio::test]
    async fn what_has_ended_does_not_wait_for_its_issuer() {
        let leases: Rc<Leases> = Rc::default();
        let epoch: Arc<Epoch> = Arc::default();
        let local = LocalSet::new();
        local
            .run_until(async {
                let over = Judged {
                    epoch: 0,
                    until: Some(clock::now()),
                };
                let hold = leases.open(request("/"), Caller::Anonymous, over);
                let judge = |_| std::future::pending();
                tokio::task::spawn_local(keep(Rc::clone(&leases), epoch, judge));
                let ended = timeout(PATIENCE / 2, hold.lapsed()).await;
                assert_eq!(ended.expect("it ends at once").word(), "unavailable");
            })
            .await;
    }
}
