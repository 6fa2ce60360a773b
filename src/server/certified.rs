//! Connections with client certificates: they end when their certificate's standing does, also when
//! no request comes.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Notify, watch};

use super::http::Phase;
use crate::clock;
use crate::listener;
use crate::metrics::Metrics;
use crate::request::ConnInfo;
use crate::snapshot::Live;
use crate::tls::clients::AHEAD;
use crate::tls::{Lapse, Standing};

/// How often the clock is looked at, for certificates, lists and answers that end. A request looks by
/// itself; this is for connections without one.
const TICK: Duration = Duration::from_secs(1);

/// Shortest time between two rounds, however often things change.
const PAUSE: Duration = Duration::from_millis(50);

/// How long judging goes on before requests get their turn.
const TURN: Duration = Duration::from_micros(200);

/// The connections of one worker that have certificates.
#[derive(Debug, Default)]
pub(super) struct Certified {
    next: Cell<u64>,
    open: RefCell<BTreeMap<u64, Rc<Open>>>,
    first: Notify,
}

#[derive(Debug)]
struct Open {
    standing: Arc<Standing>,
    listener: Arc<str>,
    local: SocketAddr,
    /// Its end was seen.
    over: Cell<bool>,
}

/// A connection's entry; dropping it takes it out.
pub(super) struct Entry {
    id: u64,
    standing: Option<Arc<Standing>>,
    certified: Rc<Certified>,
}

impl Certified {
    /// Enters a connection and has its certificate judged, which may take as long as somebody has to be
    /// asked. Who is refused is told so by its first request.
    pub(super) async fn enter(self: &Rc<Self>, info: &ConnInfo, live: &Live) -> Entry {
        let id = self.next.get();
        self.next.set(id + 1);
        if let Some(standing) = info.standing() {
            let open = Open {
                standing: Arc::clone(standing),
                listener: Arc::clone(&info.listener),
                local: info.local,
                over: Cell::new(false),
            };
            self.open.borrow_mut().insert(id, Rc::new(open));
            self.first.notify_one();
        }
        let entry = Entry {
            id,
            standing: info.standing().map(Arc::clone),
            certified: Rc::clone(self),
        };
        if let Some(standing) = info.standing() {
            let epoch = Arc::clone(&live.current().epoch);
            let believer =
                || listener::believer(&live.current().listeners, &info.listener, info.local);
            // What it lost it has told already.
            let _ = standing.settle(believer, &epoch, clock::now()).await;
        }
        entry
    }

    /// Judges all of them again whenever something may have changed, and by the clock.
    pub(super) async fn keep(self: Rc<Self>, live: Arc<Live>) {
        let epoch = Arc::clone(&live.current().epoch);
        let mut changed = epoch.watch();
        loop {
            while self.open.borrow().is_empty() {
                self.first.notified().await;
            }
            let moved = tokio::time::timeout(TICK, changed.changed()).await;
            if matches!(moved, Ok(Err(_))) {
                return;
            }
            let now = clock::now();
            let due: Vec<Rc<Open>> = {
                let open = self.open.borrow();
                let due =
                    |one: &&Rc<Open>| !one.over.get() && !one.standing.holds(&epoch, now + AHEAD);
                open.values().filter(due).map(Rc::clone).collect()
            };
            let mut by_the_clock = false;
            let mut turn = std::time::Instant::now();
            for one in due {
                if turn.elapsed() >= TURN {
                    // Requests want to be served, too.
                    tokio::task::yield_now().await;
                    turn = std::time::Instant::now();
                }
                let believer =
                    || listener::believer(&live.current().listeners, &one.listener, one.local);
                if let Err(lapse) = one.standing.look(believer, &epoch, now) {
                    one.over.set(true);
                    by_the_clock |= matches!(lapse, Lapse::Expired | Lapse::Unknown);
                }
            }
            if by_the_clock {
                // Nothing has told its open streams yet.
                epoch.advance();
            }
            tokio::time::sleep(PAUSE).await;
        }
    }
}

impl Entry {
    /// The phase of the connection: that of its socket, and leaving once the standing is lost.
    pub(super) fn phase(
        &self,
        mut socket: watch::Receiver<Phase>,
        listener: &Arc<str>,
        metrics: &Arc<Metrics>,
    ) -> watch::Receiver<Phase> {
        let Some(standing) = self.standing.clone() else {
            return socket;
        };
        let (listener, metrics) = (Arc::clone(listener), Arc::clone(metrics));
        let (sender, phase) = watch::channel(*socket.borrow());
        tokio::task::spawn_local(async move {
            let raise = |to: Phase| {
                sender.send_if_modified(|now| {
                    let later = to > *now;
                    *now = to.max(*now);
                    later
                });
            };
            let mut lost = false;
            loop {
                tokio::select! {
                    () = sender.closed() => return,
                    changed = socket.changed() => {
                        if changed.is_err() {
                            raise(Phase::Cut);
                            return;
                        }
                        let to = *socket.borrow_and_update();
                        raise(to);
                    }
                    () = standing.ended(), if !lost => {
                        lost = true;
                        let reason = standing.lost().map_or("", Lapse::code);
                        metrics.certificate_lapsed(&listener, reason);
                        tracing::info!(
                            %listener, reason,
                            "a connection ends because its certificate does not stand any more"
                        );
                        raise(Phase::Draining);
                    }
                }
            }
        });
        phase
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        self.certified.open.borrow_mut().remove(&self.id);
    }
}
