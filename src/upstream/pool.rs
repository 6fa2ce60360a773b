//! The connections of one core. Nothing here is shared between threads, so nothing is locked; no
//! borrow is held over an await.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::time::Duration;

use hyper::client::conn::http1;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::{AbortHandle, spawn_local};
use tokio::time::{Instant, sleep, timeout};

use super::balance::{Budget, Candidate, Health, choose};
use super::config::Protocol;
use super::connect::{self, Shared as Sender};
use super::resolve::Target;
use super::streams::{Exchange, Outbound};
use super::{Core, Failure};

/// How often idle connections and forgotten upstreams are looked for.
const REAP_EVERY: Duration = Duration::from_secs(1);
/// How long the last connection to be returned may take to become ready for another request.
const SETTLE: Duration = Duration::from_millis(20);

/// The connection pools of one core; made once per worker.
#[derive(Debug, Default)]
pub struct Pools {
    by_upstream: Rc<RefCell<HashMap<u64, Rc<Pool>>>>,
    reaping: Cell<bool>,
}

impl Pools {
    /// This core's connections to an upstream.
    pub(super) fn of(&self, core: &Arc<Core>) -> Rc<Pool> {
        if let Some(pool) = self.by_upstream.borrow().get(&core.id) {
            return Rc::clone(pool);
        }
        if !self.reaping.replace(true) {
            spawn_local(reap(Rc::downgrade(&self.by_upstream)));
        }
        let pool = Rc::new(Pool::new(core));
        let mut pools = self.by_upstream.borrow_mut();
        pools.insert(core.id, Rc::clone(&pool));
        pool
    }
}

/// Closes what is idle for too long or belongs to an upstream that is gone, until the core is gone.
async fn reap(pools: Weak<RefCell<HashMap<u64, Rc<Pool>>>>) {
    loop {
        sleep(REAP_EVERY).await;
        let Some(pools) = pools.upgrade() else {
            return;
        };
        let now = Instant::now();
        pools.borrow_mut().retain(|_, pool| pool.keep(now));
    }
}

/// One core's connections to one upstream.
#[derive(Debug)]
pub(super) struct Pool {
    /// Retries that may still be made.
    pub(super) budget: Budget,
    core: std::sync::Weak<Core>,
    seen: RefCell<Option<Arc<Vec<Target>>>>,
    peers: RefCell<Vec<Rc<Peer>>>,
}

impl Pool {
    fn new(core: &Arc<Core>) -> Self {
        Self {
            budget: Budget::new(core.settings.retry_budget),
            core: Arc::downgrade(core),
            seen: RefCell::new(None),
            peers: RefCell::new(Vec::new()),
        }
    }

    /// Closes what is due; `false` when the upstream itself is gone.
    fn keep(&self, now: Instant) -> bool {
        let peers = self.peers.borrow();
        let core = self.core.upgrade();
        for peer in peers.iter() {
            match &core {
                Some(core) => peer.reap(core, now),
                None => peer.retire(),
            }
        }
        core.is_some()
    }

    /// Chooses where to send a request that already failed at `tried`.
    pub(super) fn choose(
        &self,
        targets: &Arc<Vec<Target>>,
        core: &Core,
        tried: &[Rc<Peer>],
    ) -> Option<Rc<Peer>> {
        self.follow(targets, core);
        let peers = self.peers.borrow();
        if let [only] = peers.as_slice() {
            return Some(Rc::clone(only));
        }
        let candidates: Vec<Candidate<'_>> = peers
            .iter()
            .map(|peer| Candidate {
                in_flight: peer.in_flight.get(),
                health: &peer.health,
                tried: tried.iter().any(|other| Rc::ptr_eq(other, peer)),
            })
            .collect();
        let chosen = choose(&candidates, Instant::now(), |below| {
            rand::random_range(0..below.max(1))
        })?;
        peers.get(chosen).map(Rc::clone)
    }

    /// Takes over a new list of addresses; what stays in it keeps its connections.
    fn follow(&self, targets: &Arc<Vec<Target>>, core: &Core) {
        let mut seen = self.seen.borrow_mut();
        if seen.as_ref().is_some_and(|seen| Arc::ptr_eq(seen, targets)) {
            return;
        }
        let mut peers = self.peers.borrow_mut();
        let mut known = std::mem::take(&mut *peers);
        for target in targets.iter() {
            let peer = match known.iter().position(|peer| peer.target.same(target)) {
                Some(index) => known.swap_remove(index),
                None => Rc::new(Peer::new(target.clone(), core)),
            };
            peers.push(peer);
        }
        known.iter().for_each(|gone| gone.retire());
        *seen = Some(Arc::clone(targets));
    }
}

/// One address of an upstream, as one core sees it.
#[derive(Debug)]
pub(super) struct Peer {
    /// Where it is.
    pub(super) target: Target,
    /// What was seen of it.
    pub(super) health: Health,
    in_flight: Cell<usize>,
    places: Arc<Semaphore>,
    idle: RefCell<Vec<Idle>>,
    shared: RefCell<Vec<Rc<Multiplexed>>>,
    connecting: tokio::sync::Mutex<()>,
    retired: Cell<bool>,
    max_idle: usize,
    max_lifetime: Duration,
}

/// An HTTP/1 connection.
#[derive(Debug)]
struct Idle {
    sender: http1::SendRequest<Outbound>,
    driver: AbortHandle,
    born: Instant,
    since: Instant,
}

/// An HTTP/2 connection.
#[derive(Debug)]
struct Multiplexed {
    sender: Sender,
    born: Instant,
    used: Cell<Instant>,
    streams: Cell<usize>,
}

/// Whether a connection that was used before will do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Wanted {
    /// An idle one if there is one.
    Any,
    /// A new one: the request has just lost an idle one.
    Fresh,
}

impl Peer {
    fn new(target: Target, core: &Core) -> Self {
        Self {
            target,
            health: Health::default(),
            in_flight: Cell::new(0),
            places: Arc::new(Semaphore::new(core.settings.places())),
            idle: RefCell::new(Vec::new()),
            shared: RefCell::new(Vec::new()),
            connecting: tokio::sync::Mutex::new(()),
            retired: Cell::new(false),
            max_idle: core.settings.max_idle,
            max_lifetime: core.settings.max_lifetime,
        }
    }

    /// A connection for one exchange, from the pool or new.
    ///
    /// # Errors
    /// [`Failure::Saturated`] when none got free in time; else as connecting fails.
    pub(super) async fn lease(
        self: &Rc<Self>,
        core: &Arc<Core>,
        exchange: &Rc<Exchange>,
        wanted: Wanted,
    ) -> Result<Lease, Failure> {
        let place = self.place(core.settings.wait).await?;
        exchange.reopen();
        // Counted from here, so that a slow handshake weighs in the choice of others.
        let mut lease = Lease {
            connection: None,
            reused: false,
            exchange: Rc::clone(exchange),
            peer: Rc::clone(self),
            core: Arc::clone(core),
            _place: place,
        };
        self.in_flight.set(self.in_flight.get() + 1);
        core.metrics.upstream_in_flight(&core.name, 1);
        let (connection, reused) = match core.settings.protocol {
            Protocol::Http1 => self.exclusive(core, wanted).await?,
            Protocol::Http2 => self.multiplexed(core, wanted).await?,
        };
        lease.connection = Some(connection);
        lease.reused = reused;
        Ok(lease)
    }

    async fn place(&self, wait: Duration) -> Result<OwnedSemaphorePermit, Failure> {
        if let Ok(place) = Arc::clone(&self.places).try_acquire_owned() {
            return Ok(place);
        }
        match timeout(wait, Arc::clone(&self.places).acquire_owned()).await {
            Ok(Ok(place)) => Ok(place),
            Ok(Err(_)) | Err(_) => Err(Failure::Saturated),
        }
    }

    async fn exclusive(&self, core: &Core, wanted: Wanted) -> Result<(Connection, bool), Failure> {
        if wanted == Wanted::Any
            && let Some(idle) = self.checkout(core).await
        {
            return Ok((Connection::Exclusive(idle), true));
        }
        let began = Instant::now();
        let tls = core.tls.as_ref();
        let wait = core.settings.connect_timeout;
        let (sender, driver) = connect::exclusive(&self.target, tls, wait).await?;
        let born = Instant::now();
        core.metrics.upstream_connected(&core.name, born - began);
        let idle = Idle {
            sender,
            driver,
            born,
            since: born,
        };
        Ok((Connection::Exclusive(idle), false))
    }

    /// The idle connection that was used last, if it is still open.
    async fn checkout(&self, core: &Core) -> Option<Idle> {
        let now = Instant::now();
        let unsettled = {
            let mut idle = self.idle.borrow_mut();
            idle.retain(|one| one.good(core, now));
            match idle.iter().rposition(|one| one.sender.is_ready()) {
                Some(index) => return Some(idle.remove(index)),
                None => idle.pop(),
            }
        };
        // Returned a moment ago: its driver has not been polled since.
        let mut one = unsettled?;
        match timeout(SETTLE, one.sender.ready()).await {
            Ok(Ok(())) => Some(one),
            Ok(Err(_)) => None,
            Err(_) => {
                one.driver.abort();
                None
            }
        }
    }

    async fn multiplexed(
        &self,
        core: &Core,
        wanted: Wanted,
    ) -> Result<(Connection, bool), Failure> {
        let before = Instant::now();
        if wanted == Wanted::Any
            && let Some(stream) = self.stream(core, None)
        {
            return Ok((Connection::Shared(stream), true));
        }
        // One connects, the others wait and share what it got.
        let _connecting = self.connecting.lock().await;
        let since = (wanted == Wanted::Fresh).then_some(before);
        if let Some(stream) = self.stream(core, since) {
            return Ok((Connection::Shared(stream), true));
        }
        let began = Instant::now();
        let tls = core.tls.as_ref();
        let wait = core.settings.connect_timeout;
        let sender = connect::shared(&self.target, tls, wait).await?;
        let born = Instant::now();
        core.metrics.upstream_connected(&core.name, born - began);
        let one = Rc::new(Multiplexed {
            sender,
            born,
            used: Cell::new(born),
            streams: Cell::new(1),
        });
        if !self.retired.get() {
            self.shared.borrow_mut().push(Rc::clone(&one));
        }
        Ok((Connection::Shared(one), false))
    }

    /// A stream on an open connection; `since` asks for one that was made after that time.
    fn stream(&self, core: &Core, since: Option<Instant>) -> Option<Rc<Multiplexed>> {
        let now = Instant::now();
        let mut shared = self.shared.borrow_mut();
        // One past its lifetime takes no new streams; it ends with its last one.
        shared.retain(|one| !one.sender.is_closed() && now - one.born < core.settings.max_lifetime);
        let free = shared.iter().find(|one| {
            one.streams.get() < core.settings.max_streams
                && since.is_none_or(|since| one.born >= since)
        })?;
        free.streams.set(free.streams.get() + 1);
        free.used.set(now);
        Some(Rc::clone(free))
    }

    fn reap(&self, core: &Core, now: Instant) {
        self.idle.borrow_mut().retain(|one| one.good(core, now));
        self.shared.borrow_mut().retain(|one| {
            let idle = one.streams.get() == 0 && now - one.used.get() >= core.settings.idle_timeout;
            !one.sender.is_closed() && !idle && now - one.born < core.settings.max_lifetime
        });
    }

    fn retire(&self) {
        self.retired.set(true);
        self.idle.borrow_mut().clear();
        self.shared.borrow_mut().clear();
    }
}

impl Idle {
    fn good(&self, core: &Core, now: Instant) -> bool {
        !self.sender.is_closed()
            && now - self.since < core.settings.idle_timeout
            && now - self.born < core.settings.max_lifetime
    }
}

#[derive(Debug)]
enum Connection {
    Exclusive(Idle),
    Shared(Rc<Multiplexed>),
}

/// A connection, or a stream of one, for the length of one exchange. Dropping it before
/// [`Lease::finish`] ends the exchange: the connection is closed, or the stream reset.
#[derive(Debug)]
pub(super) struct Lease {
    connection: Option<Connection>,
    exchange: Rc<Exchange>,
    peer: Rc<Peer>,
    core: Arc<Core>,
    reused: bool,
    _place: OwnedSemaphorePermit,
}

/// What became of a request that was handed to a connection.
pub(super) type Sent = Result<
    http::Response<hyper::body::Incoming>,
    hyper::client::conn::TrySendError<http::Request<Outbound>>,
>;

impl Lease {
    /// Whether the connection had carried a request before.
    pub(super) fn reused(&self) -> bool {
        self.reused
    }

    /// Sends the request and waits for the head of the answer.
    pub(super) async fn send(&mut self, request: http::Request<Outbound>) -> Option<Sent> {
        match self.connection.as_mut()? {
            Connection::Exclusive(one) => Some(one.sender.try_send_request(request).await),
            Connection::Shared(one) => {
                let mut sender = one.sender.clone();
                Some(sender.try_send_request(request).await)
            }
        }
    }

    /// The answer was read to its end. The connection goes back to the pool, if the request had been
    /// sent to its end too: otherwise the rest of it would be taken for the next request's head.
    pub(super) fn finish(mut self) {
        let Some(Connection::Exclusive(mut one)) = self.connection.take_if(|connection| {
            matches!(connection, Connection::Exclusive(_)) && self.exchange.sent()
        }) else {
            return;
        };
        let now = Instant::now();
        let mut idle = self.peer.idle.borrow_mut();
        if self.peer.retired.get()
            || one.sender.is_closed()
            || idle.len() >= self.peer.max_idle
            || now - one.born >= self.peer.max_lifetime
        {
            return;
        }
        one.since = now;
        idle.push(one);
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.exchange.end();
        match self.connection.take() {
            Some(Connection::Exclusive(one)) => one.driver.abort(),
            Some(Connection::Shared(one)) => {
                one.streams.set(one.streams.get().saturating_sub(1));
                one.used.set(Instant::now());
            }
            None => {}
        }
        let in_flight = self.peer.in_flight.get();
        self.peer.in_flight.set(in_flight.saturating_sub(1));
        self.core.metrics.upstream_in_flight(&self.core.name, -1);
    }
}
