//! One worker: a thread with its own runtime, its own sockets and its own request path.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use tokio::net::TcpStream;
use tokio::sync::{Notify, mpsc, oneshot, watch};
use tokio::task::LocalSet;

use super::Key;
use super::certified::Certified;
use super::handshakes::Handshakes;
use super::http::{Ending, Phase, Protocol, serve};
use super::socket;
use crate::admin::WorkerView;
use crate::gateway::Gateway;
use crate::lease::Wish;
use crate::listener::{Listener, Seat};
use crate::request::{ConnInfo, TlsInfo};
use crate::snapshot::Live;
use crate::tls::HandshakeFault;

/// How long accepting pauses when the process is out of file descriptors or memory.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// How long a worker waits for connections to notice that they were cut.
const CUT_PATIENCE: Duration = Duration::from_secs(1);

/// What a worker is told.
#[derive(Debug)]
pub(super) enum Order {
    /// Accept on this socket for the listener of this name.
    Listen {
        key: Key,
        name: Arc<str>,
        socket: TcpListener,
    },
    /// The socket now belongs to the listener of this name.
    Rename { key: Key, name: Arc<str> },
    /// Another configuration is in force.
    Refresh,
    /// Say what is open.
    Survey(Wish, mpsc::UnboundedSender<WorkerView>),
    /// Stop accepting; close what is still open after this time.
    Close { key: Key, patience: Duration },
    /// Stop altogether; close what is still open at the deadline, and say how much that was.
    Drain {
        deadline: Instant,
        done: oneshot::Sender<usize>,
    },
}

/// What the parts of a worker share.
struct Worker {
    live: Arc<Live>,
    gateway: Rc<Gateway>,
    /// Handshakes are bounded over all workers, so each takes its share.
    workers: usize,
    /// Connections of the whole process.
    open: Arc<AtomicUsize>,
    /// Connections of this worker.
    here: Cell<usize>,
    /// Connections of this worker that ended with work under way.
    cut: Cell<usize>,
    changed: Notify,
    sockets: RefCell<BTreeMap<Key, Accepting>>,
    /// Connections with client certificates.
    certified: Rc<Certified>,
}

/// A socket that is accepted on.
struct Accepting {
    name: Rc<RefCell<Arc<str>>>,
    phase: watch::Sender<Phase>,
}

/// Runs a worker until it has drained, or its orders end.
pub(super) fn run(
    live: Arc<Live>,
    workers: usize,
    open: Arc<AtomicUsize>,
    mut orders: mpsc::UnboundedReceiver<Order>,
) -> io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let worker = Rc::new(Worker {
        gateway: Rc::new(Gateway::new(Arc::clone(&live))),
        live,
        workers: workers.max(1),
        open,
        here: Cell::new(0),
        cut: Cell::new(0),
        changed: Notify::new(),
        sockets: RefCell::default(),
        certified: Rc::default(),
    });
    let local = LocalSet::new();
    local.block_on(&runtime, async move {
        // If it ended, open streams would outlive their permissions: the worker must not go on.
        let mut keeper = tokio::task::spawn_local(Rc::clone(&worker.gateway).keep());
        // Likewise for connections whose certificate is no longer believed.
        let watching = Rc::clone(&worker.certified).keep(Arc::clone(&worker.live));
        let mut watching = tokio::task::spawn_local(watching);
        // It cannot end, and if it did, no answer would be another.
        drop(tokio::task::spawn_local(
            Rc::clone(&worker.gateway).compare(),
        ));
        loop {
            let order = tokio::select! {
                order = orders.recv() => order,
                _ = &mut keeper => return Err(io::Error::other("the keeper of leases has ended")),
                _ = &mut watching => {
                    return Err(io::Error::other("the watch over client certificates has ended"));
                }
            };
            let Some(order) = order else {
                return Ok(());
            };
            match order {
                Order::Listen { key, name, socket } => worker.listen(key, name, socket),
                Order::Rename { key, name } => {
                    if let Some(accepting) = worker.sockets.borrow().get(&key) {
                        accepting.name.replace(name);
                    }
                }
                Order::Refresh => worker.gateway.refresh(),
                Order::Survey(wish, said) => {
                    let gateway = Rc::clone(&worker.gateway);
                    tokio::task::spawn_local(async move {
                        let (streams, peers) = gateway.survey(&wish).await;
                        // Nobody waits any more when it took too long.
                        let _ = said.send(WorkerView { streams, peers });
                    });
                }
                Order::Close { key, patience } => worker.close(&key, patience),
                Order::Drain { deadline, done } => {
                    let cut = worker.drain(deadline).await;
                    // Nobody waits any more when the process is told twice to end.
                    let _ = done.send(cut);
                    return Ok(());
                }
            }
        }
    })
}

impl Worker {
    fn listen(self: &Rc<Self>, key: Key, name: Arc<str>, socket: TcpListener) {
        let name = Rc::new(RefCell::new(name));
        let (phase, receiver) = watch::channel(Phase::Open);
        let acceptor = Rc::new(Acceptor {
            worker: Rc::clone(self),
            name: Rc::clone(&name),
            phase: receiver,
            handshakes: Rc::default(),
        });
        self.sockets
            .borrow_mut()
            .insert(key, Accepting { name, phase });
        tokio::task::spawn_local(acceptor.supervise(socket));
    }

    fn close(&self, key: &Key, patience: Duration) {
        if let Some(accepting) = self.sockets.borrow_mut().remove(key) {
            accepting.phase.send_replace(Phase::Draining);
            tokio::task::spawn_local(async move {
                tokio::time::sleep(patience).await;
                accepting.phase.send_replace(Phase::Cut);
            });
        }
    }

    /// Finishes what is under way; gives how many connections were cut at the deadline.
    async fn drain(&self, deadline: Instant) -> usize {
        let sockets = std::mem::take(&mut *self.sockets.borrow_mut());
        for accepting in sockets.values() {
            accepting.phase.send_replace(Phase::Draining);
        }
        let _ = tokio::time::timeout_at(deadline.into(), self.emptied(&sockets)).await;
        for accepting in sockets.values() {
            accepting.phase.send_replace(Phase::Cut);
        }
        let _ = tokio::time::timeout(CUT_PATIENCE, self.emptied(&sockets)).await;
        self.cut.get() + self.here.get()
    }

    /// Waits until no socket is accepted on and no connection is open.
    async fn emptied(&self, sockets: &BTreeMap<Key, Accepting>) {
        for accepting in sockets.values() {
            accepting.phase.closed().await;
        }
        while self.here.get() > 0 {
            self.changed.notified().await;
        }
    }
}

/// Accepts on one socket.
struct Acceptor {
    worker: Rc<Worker>,
    name: Rc<RefCell<Arc<str>>>,
    phase: watch::Receiver<Phase>,
    handshakes: Rc<Handshakes>,
}

impl Acceptor {
    /// Accepts until the socket is closed. A panic on the way ends a task, never the accepting.
    async fn supervise(self: Rc<Self>, socket: TcpListener) {
        let listener = match tokio::net::TcpListener::from_std(socket) {
            Ok(listener) => Rc::new(listener),
            Err(error) => {
                tracing::error!(%error, "a listening socket cannot be used");
                return;
            }
        };
        loop {
            let task = Rc::clone(&self).accept(Rc::clone(&listener));
            match tokio::task::spawn_local(task).await {
                Ok(()) => break,
                Err(error) => tracing::error!(%error, "accepting connections failed; it goes on"),
            }
        }
        // What the kernel has completed is ours already: nobody else would ever answer it.
        if let Some(Ok(listener)) = Rc::into_inner(listener).map(|one| one.into_std()) {
            while let Ok((stream, peer)) = listener.accept() {
                if stream.set_nonblocking(true).is_ok()
                    && let Ok(stream) = TcpStream::from_std(stream)
                {
                    self.admit(stream, peer);
                }
            }
        }
    }

    async fn accept(self: Rc<Self>, listener: Rc<tokio::net::TcpListener>) {
        let mut phase = self.phase.clone();
        // Said once until it is over: the log is not the place where a flood should arrive.
        let mut failing = false;
        loop {
            let accepted = tokio::select! {
                accepted = listener.accept() => accepted,
                _ = phase.wait_for(|phase| *phase != Phase::Open) => return,
            };
            match accepted {
                Ok((stream, peer)) => {
                    failing = false;
                    self.admit(stream, peer);
                }
                Err(error) => {
                    let kind = match error.raw_os_error() {
                        // The peer was gone before we looked: nothing is wrong here.
                        Some(libc::ECONNABORTED | libc::ECONNRESET | libc::EINTR) => continue,
                        Some(libc::EMFILE | libc::ENFILE) => "file_descriptors",
                        _ => "other",
                    };
                    let name = self.name.borrow().clone();
                    self.worker
                        .live
                        .current()
                        .metrics
                        .accept_failed(&name, kind);
                    if !failing {
                        tracing::warn!(listener = %name, %error, "cannot accept connections");
                    }
                    failing = true;
                    // The connection stays in the queue, so trying again at once would spin.
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }

    /// Gives an accepted connection its place and its task, or closes it.
    fn admit(self: &Rc<Self>, stream: TcpStream, peer: SocketAddr) {
        let snapshot = self.worker.live.current();
        let name = self.name.borrow().clone();
        let renamed = || {
            let local = stream.local_addr().ok()?;
            snapshot
                .listeners
                .values()
                .find(|listener| listener.address == local)
        };
        // A reload that renames a listener is in force a moment before this worker knows the name;
        // one that removes it, a moment before the socket closes.
        let Some(listener) = snapshot.listeners.get(&*name).or_else(renamed) else {
            return;
        };
        let seat = match listener.seat(peer.ip()) {
            Ok(seat) => seat,
            Err(excess) => {
                snapshot.metrics.connection_refused(&name, excess.as_str());
                tracing::debug!(listener = %name, %peer, bound = excess.as_str(), "a connection was refused");
                return;
            }
        };
        let connection = Connection::open(self, Arc::clone(listener), seat, peer);
        tokio::task::spawn_local(connection.run(stream));
    }
}

/// An open connection; counted from its making to its end, however it ends.
struct Connection {
    acceptor: Rc<Acceptor>,
    listener: Arc<Listener>,
    peer: SocketAddr,
    _seat: Seat,
}

impl Connection {
    fn open(
        acceptor: &Rc<Acceptor>,
        listener: Arc<Listener>,
        seat: Seat,
        peer: SocketAddr,
    ) -> Self {
        let worker = &acceptor.worker;
        worker.here.set(worker.here.get() + 1);
        worker.open.fetch_add(1, Ordering::Relaxed);
        worker
            .live
            .current()
            .metrics
            .connection_opened(&listener.name);
        Self {
            acceptor: Rc::clone(acceptor),
            listener,
            peer,
            _seat: seat,
        }
    }

    async fn run(self, stream: TcpStream) {
        let bounds = &self.listener.bounds;
        // Not the snapshot: a long connection must not keep an old configuration in memory.
        let metrics = Arc::clone(&self.acceptor.worker.live.current().metrics);
        let Ok(local) = stream.local_addr() else {
            return;
        };
        if socket::tune(&stream, bounds.write_timeout.get()).is_err() {
            return;
        }
        let mut info = Box::new(ConnInfo {
            listener: Arc::clone(&self.listener.name),
            peer: self.peer,
            local,
            tls: None,
            ambiguous_head: None,
            forwarded: Default::default(),
        });
        let worker = Rc::clone(&self.acceptor.worker);
        let handler = move |info: Arc<ConnInfo>, request| {
            let worker = Rc::clone(&worker);
            let received = worker.gateway.receive(info, request);
            async move { worker.gateway.handle(received).await }
        };
        let phase = self.acceptor.phase.clone();
        let ending = if let Some(tls) = self.listener.tls.clone() {
            // On the heap, and gone once it is over.
            let handshake = Box::pin(self.handshake(&tls, stream));
            let session = match handshake.await {
                Ok(session) => session,
                Err(fault) => {
                    metrics.handshake_failed(&self.listener.name, fault.as_str());
                    if fault == HandshakeFault::RevocationUnknown {
                        // Ours to mend, and seen only by clients with a certificate of an authority
                        // that we believe, so strangers cannot fill the log with it.
                        tracing::warn!(
                            listener = %self.listener.name,
                            peer = %self.peer,
                            "a client was refused because the revocation list of an authority in \
                             its chain is missing, has expired, or is not signed by it"
                        );
                    }
                    tracing::debug!(
                        listener = %self.listener.name,
                        peer = %self.peer,
                        fault = fault.as_str(),
                        "a TLS handshake failed"
                    );
                    return;
                }
            };
            metrics.handshake_finished(&self.listener.name, session.version, session.resumed);
            info.tls = Some(TlsInfo {
                version: session.version,
                server_name: session.server_name,
                peer_certificate: session.peer_certificate,
                standing: session.standing,
            });
            // Whoever has to be asked about a certificate is asked before its first request is heard.
            let (phase, _entry) = if info.standing().is_some() {
                let certified = &self.acceptor.worker.certified;
                let entry = Box::pin(certified.enter(&info, &self.acceptor.worker.live)).await;
                let phase = entry.phase(phase, &self.listener.name, &metrics);
                (phase, Some(entry))
            } else {
                (phase, None)
            };
            let protocol = if session.http2 {
                Protocol::Http2
            } else {
                Protocol::Http1
            };
            serve(session.stream, info, protocol, bounds, phase, handler).await
        } else {
            serve(stream, info, Protocol::ByPreface, bounds, phase, handler).await
        };
        if ending == Ending::Cut {
            let cut = &self.acceptor.worker.cut;
            cut.set(cut.get() + 1);
        }
        metrics.connection_ended(&self.listener.name, ending.as_str());
        tracing::debug!(
            listener = %self.listener.name,
            peer = %self.peer,
            ending = ending.as_str(),
            "a connection ended"
        );
    }

    async fn handshake(
        &self,
        tls: &crate::tls::server::ServerTls,
        stream: TcpStream,
    ) -> Result<crate::tls::Session<TcpStream>, HandshakeFault> {
        let bounds = &self.listener.bounds;
        let all = usize::try_from(bounds.max_handshakes).unwrap_or(usize::MAX);
        let most = all.div_ceil(self.acceptor.worker.workers);
        let turn = self.acceptor.handshakes.begin(self.peer.ip(), most);
        let mut phase = self.acceptor.phase.clone();
        tokio::select! {
            biased;
            session = tls.handshake(stream) => session,
            () = turn.evicted() => Err(HandshakeFault::Evicted),
            () = tokio::time::sleep(bounds.handshake_timeout.get()) => Err(HandshakeFault::Timeout),
            _ = phase.wait_for(|phase| *phase == Phase::Cut) => Err(HandshakeFault::Evicted),
        }
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        let worker = &self.acceptor.worker;
        worker.here.set(worker.here.get() - 1);
        worker.open.fetch_sub(1, Ordering::Relaxed);
        worker
            .live
            .current()
            .metrics
            .connection_closed(&self.listener.name);
        worker.changed.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// How large the future is that a function gives.
    fn size<A, B, F: Future>(_: impl Fn(A, B) -> F) -> usize {
        size_of::<F>()
    }

    #[test]
    fn an_idle_connection_holds_no_room_for_handshakes_or_requests() {
        // It was 7.9 KiB while the handshake and each move of the stream had their place in it, and 2.3 while
        // each move of the facts of the connection had.
        let size = size(Connection::run);
        assert!(size <= 1792, "{size} bytes");
    }
}
