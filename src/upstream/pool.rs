//! The connections of one core. Nothing here is shared between threads, so nothing is locked; no
//! borrow is held over an await.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::future::poll_fn;
use std::net::SocketAddr;
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use tokio::task::spawn_local;
use tokio::time::{Instant, sleep};

use super::balance::{Budget, Candidate, Health, choose};
use super::connect::{self, Shared};
use super::http2::{Exchange, Outbound};
use super::places::{Place, Places};
use super::resolve::Target;
use super::streams::Alarm;
use super::wire::Wire;
use super::{Core, Failure};

/// How often idle connections and forgotten upstreams are looked for.
const REAP_EVERY: Duration = Duration::from_secs(1);
/// How long the settings of a new HTTP/2 connection are waited for.
const SETTINGS_WAIT: Duration = Duration::from_secs(1);

/// The connection pools of one core; made once per worker.
#[derive(Debug, Default)]
pub struct Pools {
    by_upstream: Rc<RefCell<BTreeMap<u64, Rc<Pool>>>>,
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

    /// What this core has seen of all endpoints that it has sent requests to.
    pub fn survey(&self) -> Vec<PeerFacts> {
        let now = Instant::now();
        let pools = self.by_upstream.borrow();
        let mut facts = Vec::new();
        for pool in pools.values() {
            let Some(core) = pool.core.upgrade() else {
                continue;
            };
            let peers = pool.peers.borrow();
            facts.extend(peers.iter().map(|peer| PeerFacts {
                upstream: core.name.to_string(),
                endpoint: peer.target.endpoint.label.to_string(),
                address: peer.target.address,
                in_flight: peer.in_flight.get(),
                idle: peer.idle.borrow().len() + peer.shared.borrow().len(),
                failures: peer.health.failures(),
                aside_for: peer.health.aside_for(now),
            }));
        }
        facts
    }
}

/// What one core has seen of one address of an upstream.
#[derive(Debug, Clone)]
pub struct PeerFacts {
    /// The upstream's name.
    pub upstream: String,
    /// The endpoint, `host:port`.
    pub endpoint: String,
    /// The address that it stands for.
    pub address: SocketAddr,
    /// Exchanges under way.
    pub in_flight: usize,
    /// Connections that are kept open.
    pub idle: usize,
    /// Failures in a row.
    pub failures: u32,
    /// For how long more it is put aside.
    pub aside_for: Option<Duration>,
}

/// Closes what is idle for too long or belongs to an upstream that is gone, until the core is gone.
async fn reap(pools: Weak<RefCell<BTreeMap<u64, Rc<Pool>>>>) {
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
    pub(super) fn choose(&self, core: &Core, tried: &[Rc<Peer>]) -> Option<Rc<Peer>> {
        self.follow(core);
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
    fn follow(&self, core: &Core) {
        let mut seen = self.seen.borrow_mut();
        let Some(targets) = core.targets.newer(seen.as_ref()) else {
            return;
        };
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
        *seen = Some(targets);
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
    places: Rc<Places>,
    tunnels: Rc<Places>,
    idle: RefCell<Vec<Idle>>,
    shared: RefCell<Vec<Rc<Multiplexed>>>,
    connecting: tokio::sync::Mutex<()>,
    retired: Cell<bool>,
    max_idle: usize,
    max_lifetime: Duration,
}

/// An HTTP/1 connection.
#[derive(Debug)]
pub(super) struct Link {
    pub(super) wire: Wire<connect::Stream>,
    /// Wakes whoever holds the connection.
    pub(super) alarm: Alarm,
    born: Instant,
}

/// An HTTP/1 connection that nobody holds.
#[derive(Debug)]
struct Idle {
    link: Box<Link>,
    since: Instant,
}

/// An HTTP/2 connection.
#[derive(Debug)]
struct Multiplexed {
    shared: Shared,
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
            places: Places::new(core.settings.places()),
            tunnels: Places::new(core.settings.max_tunnels),
            idle: RefCell::new(Vec::new()),
            shared: RefCell::new(Vec::new()),
            connecting: tokio::sync::Mutex::new(()),
            retired: Cell::new(false),
            max_idle: core.settings.max_idle,
            max_lifetime: core.settings.max_lifetime,
        }
    }

    /// Counts one exchange more from here on, so that a slow handshake weighs in the choice of others.
    fn visit(self: &Rc<Self>, core: &Arc<Core>, place: Place) -> Visit {
        self.in_flight.set(self.in_flight.get() + 1);
        core.counts.in_flight(1);
        Visit {
            peer: Rc::clone(self),
            core: Arc::clone(core),
            _place: place,
        }
    }

    /// A pooled HTTP/1 connection, if there is one and a place for the exchange.
    pub(super) fn at_hand(
        self: &Rc<Self>,
        core: &Arc<Core>,
        wanted: Wanted,
        now: Instant,
        cx: &mut Context<'_>,
    ) -> Option<Held> {
        if wanted == Wanted::Fresh || self.idle.borrow().is_empty() {
            return None;
        }
        let place = self.places.try_take()?;
        let link = self.checkout(core, now, cx)?;
        Some(Held {
            link,
            visit: self.visit(core, place),
            reused: true,
        })
    }

    /// An HTTP/1 connection for one exchange, from the pool or new.
    ///
    /// # Errors
    /// [`Failure::Saturated`] when none got free in time; else as connecting fails.
    pub(super) async fn hold(
        self: &Rc<Self>,
        core: &Arc<Core>,
        wanted: Wanted,
    ) -> Result<Held, Failure> {
        let place = self.places.take(core.settings.wait).await;
        let visit = self.visit(core, place.ok_or(Failure::Saturated)?);
        if wanted == Wanted::Any {
            let pooled = poll_fn(|cx| Poll::Ready(self.checkout(core, Instant::now(), cx)));
            if let Some(link) = pooled.await {
                return Ok(Held {
                    link,
                    visit,
                    reused: true,
                });
            }
        }
        self.connect(core, visit).await
    }

    /// A new HTTP/1 connection for a tunnel, or for the answer of who opens none.
    ///
    /// # Errors
    /// As [`Peer::hold`]; nobody waits for a tunnel to end.
    pub(super) async fn dedicated(self: &Rc<Self>, core: &Arc<Core>) -> Result<Held, Failure> {
        let place = self.tunnels.try_take();
        let visit = self.visit(core, place.ok_or(Failure::Saturated)?);
        self.connect(core, visit).await
    }

    async fn connect(&self, core: &Core, visit: Visit) -> Result<Held, Failure> {
        let began = Instant::now();
        let tls = core.tls.as_ref();
        let wait = core.settings.connect_timeout;
        let stream = connect::exclusive(&self.target, tls, wait).await?;
        let born = Instant::now();
        core.metrics.upstream_connected(&core.name, born - began);
        let link = Link {
            wire: Wire::new(stream),
            alarm: Alarm::default(),
            born,
        };
        Ok(Held {
            link: Box::new(link),
            visit,
            reused: false,
        })
    }

    /// The idle connection that was used last and is still open.
    fn checkout(&self, core: &Core, now: Instant, cx: &mut Context<'_>) -> Option<Box<Link>> {
        loop {
            let mut idle = self.idle.borrow_mut().pop()?;
            if idle.young(core, now) && idle.link.wire.quiet(cx) {
                return Some(idle.link);
            }
            idle.link.wire.part();
        }
    }

    /// A stream for one exchange, on an HTTP/2 connection that is open already or new. It ends
    /// `exchange` when it is dropped.
    ///
    /// # Errors
    /// As [`Peer::hold`].
    pub(super) async fn stream(
        self: &Rc<Self>,
        core: &Arc<Core>,
        exchange: &Rc<Exchange>,
        wanted: Wanted,
    ) -> Result<Stream, Failure> {
        let place = self.places.take(core.settings.wait).await;
        self.stream_on(core, exchange, wanted, place).await
    }

    /// As [`Peer::stream`], for a tunnel; nobody waits for one to end.
    ///
    /// # Errors
    /// As [`Peer::hold`].
    pub(super) async fn tunnel_stream(
        self: &Rc<Self>,
        core: &Arc<Core>,
        exchange: &Rc<Exchange>,
    ) -> Result<Stream, Failure> {
        let place = self.tunnels.try_take();
        self.stream_on(core, exchange, Wanted::Any, place).await
    }

    async fn stream_on(
        self: &Rc<Self>,
        core: &Arc<Core>,
        exchange: &Rc<Exchange>,
        wanted: Wanted,
        place: Option<Place>,
    ) -> Result<Stream, Failure> {
        let visit = self.visit(core, place.ok_or(Failure::Saturated)?);
        let (connection, reused) = self.multiplexed(core, wanted).await?;
        Ok(Stream {
            connection,
            exchange: Rc::clone(exchange),
            reused,
            _visit: visit,
        })
    }

    async fn multiplexed(
        &self,
        core: &Core,
        wanted: Wanted,
    ) -> Result<(Rc<Multiplexed>, bool), Failure> {
        let before = Instant::now();
        if wanted == Wanted::Any
            && let Some(open) = self.open(core, None)
        {
            return Ok((open, true));
        }
        // One connects, the others wait and share what it got.
        let _connecting = self.connecting.lock().await;
        let since = (wanted == Wanted::Fresh).then_some(before);
        if let Some(open) = self.open(core, since) {
            return Ok((open, true));
        }
        let began = Instant::now();
        let tls = core.tls.as_ref();
        let wait = core.settings.connect_timeout;
        let shared = connect::shared(&self.target, tls, wait).await?;
        let born = Instant::now();
        core.metrics.upstream_connected(&core.name, born - began);
        let one = Rc::new(Multiplexed {
            shared,
            born,
            used: Cell::new(born),
            streams: Cell::new(1),
        });
        if !self.retired.get() {
            self.shared.borrow_mut().push(Rc::clone(&one));
        }
        Ok((one, false))
    }

    /// An open HTTP/2 connection with room for a stream, which is counted; `since` asks for one that
    /// was made after that time.
    fn open(&self, core: &Core, since: Option<Instant>) -> Option<Rc<Multiplexed>> {
        let now = Instant::now();
        let mut shared = self.shared.borrow_mut();
        // One past its lifetime takes no new streams; it ends with its last one.
        shared.retain(|one| {
            !one.shared.sender.is_closed() && now - one.born < core.settings.max_lifetime
        });
        let free = shared.iter().find(|one| {
            one.streams.get() < core.settings.max_streams
                && since.is_none_or(|since| one.born >= since)
        })?;
        free.streams.set(free.streams.get() + 1);
        free.used.set(now);
        Some(Rc::clone(free))
    }

    fn reap(&self, core: &Core, now: Instant) {
        self.idle.borrow_mut().retain_mut(|idle| {
            // Also lets go of the task that waited for its last answer.
            let keep = idle.young(core, now) && idle.link.wire.still_quiet();
            if !keep {
                idle.link.wire.part();
            }
            keep
        });
        self.shared.borrow_mut().retain(|one| {
            let idle = one.streams.get() == 0 && now - one.used.get() >= core.settings.idle_timeout;
            !one.shared.sender.is_closed() && !idle && now - one.born < core.settings.max_lifetime
        });
    }

    fn retire(&self) {
        self.retired.set(true);
        for mut idle in self.idle.take() {
            idle.link.wire.part();
        }
        self.shared.borrow_mut().clear();
    }
}

impl Idle {
    fn young(&self, core: &Core, now: Instant) -> bool {
        now.saturating_duration_since(self.since) < core.settings.idle_timeout
            && now - self.link.born < core.settings.max_lifetime
    }
}

/// An exchange that counts at its endpoint.
#[derive(Debug)]
pub(super) struct Visit {
    peer: Rc<Peer>,
    core: Arc<Core>,
    _place: Place,
}

impl Drop for Visit {
    fn drop(&mut self) {
        let in_flight = self.peer.in_flight.get();
        self.peer.in_flight.set(in_flight.saturating_sub(1));
        self.core.counts.in_flight(-1);
    }
}

/// An HTTP/1 connection for the length of one exchange. Dropping it before [`Held::finish`] closes
/// it.
#[derive(Debug)]
pub(super) struct Held {
    pub(super) link: Box<Link>,
    /// Whether it had carried a request before.
    pub(super) reused: bool,
    visit: Visit,
}

impl Held {
    /// Takes the connection for another protocol: the stream, what was read ahead of it, and what
    /// counts it at its endpoint until it is dropped.
    pub(super) fn into_tunnel(self) -> (connect::Stream, Bytes, Visit) {
        let (stream, ahead) = self.link.wire.into_parts();
        (stream, ahead, self.visit)
    }

    /// The answer was read to its end. The connection goes back to the pool, if the request had been
    /// sent to its end too: otherwise the rest of it would be taken for the next request's head.
    pub(super) fn finish(self) {
        let Self {
            mut link, visit, ..
        } = self;
        let now = Instant::now();
        let peer = &visit.peer;
        let mut idle = peer.idle.borrow_mut();
        if !peer.retired.get()
            && idle.len() < peer.max_idle
            && now - link.born < peer.max_lifetime
            && link.wire.reusable()
        {
            idle.push(Idle { link, since: now });
        }
    }
}

/// A stream of an HTTP/2 connection for the length of one exchange. Dropping it before its end
/// resets it.
#[derive(Debug)]
pub(super) struct Stream {
    connection: Rc<Multiplexed>,
    exchange: Rc<Exchange>,
    reused: bool,
    _visit: Visit,
}

/// What became of a request that was handed to a connection.
pub(super) type Sent = Result<
    http::Response<hyper::body::Incoming>,
    hyper::client::conn::TrySendError<http::Request<Outbound>>,
>;

impl Stream {
    /// Whether the connection had carried a request before.
    pub(super) fn reused(&self) -> bool {
        self.reused
    }

    /// Whether the endpoint opens tunnels on streams. A new connection has some time to say so.
    pub(super) async fn opens_tunnels(&self) -> bool {
        let until = self.connection.born + SETTINGS_WAIT;
        self.connection.shared.tunnels.said(until).await
    }

    /// Sends the request and waits for the head of the answer.
    pub(super) async fn send(&self, request: http::Request<Outbound>) -> Sent {
        let mut sender = self.connection.shared.sender.clone();
        sender.try_send_request(request).await
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        self.exchange.end();
        let streams = self.connection.streams.get();
        self.connection.streams.set(streams.saturating_sub(1));
        self.connection.used.set(Instant::now());
    }
}
