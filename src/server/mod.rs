//! Sockets: workers, accept loops, connection bounds, draining. Knows nothing of routes or users.
//!
//! Each worker is a thread with a single-threaded runtime. It accepts on sockets of its own, which
//! share their addresses by `SO_REUSEPORT`, and a connection stays on the worker that accepted it.
//! What a listener presents and allows is taken from the configuration in force when a connection is
//! accepted, so a reload never touches open ones; but for those whose client certificate is no longer
//! believed, which end.

mod activity;
mod certified;
mod frames;
mod framing;
mod gather;
mod handshakes;
mod http;
mod parking;
mod socket;
mod tap;
mod tunnel;
mod turn;
mod worker;

use std::collections::BTreeMap;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use tokio::sync::{mpsc, oneshot, watch};

use self::socket::Sharing;
use self::worker::Order;
use crate::admin::WorkerView;
use crate::lease::Wish;
use crate::snapshot::{Live, Snapshot};

/// Why the gateway cannot listen.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// An address is taken, not ours, or not allowed.
    #[error("listener {listener} cannot listen on {address}")]
    Bind {
        /// The listener's name.
        listener: String,
        /// Its address.
        address: SocketAddr,
        /// What the system says.
        #[source]
        source: io::Error,
    },
    /// Two listeners have one address.
    #[error("listeners {first} and {second} have the same address {address}")]
    SameAddress {
        /// One of them.
        first: String,
        /// The other.
        second: String,
        /// Their address.
        address: SocketAddr,
    },
    /// A worker thread cannot be started.
    #[error("a worker cannot be started")]
    Worker(#[source] io::Error),
}

/// What a socket is known by: its address, so that a listener can be renamed without closing it.
/// With port 0 the address says nothing and the name tells them apart.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Key {
    address: SocketAddr,
    name: Option<Arc<str>>,
}

/// Sockets for a configuration that is not in force yet; dropping it closes the new ones.
#[derive(Debug)]
pub struct Prepared {
    sockets: BTreeMap<Key, (Arc<str>, Option<Vec<TcpListener>>)>,
    patience: Duration,
}

/// The running workers.
#[derive(Debug)]
pub struct Server {
    workers: Vec<mpsc::UnboundedSender<Order>>,
    threads: Mutex<Vec<JoinHandle<()>>>,
    sockets: Mutex<BTreeMap<Key, Listening>>,
    open: Arc<AtomicUsize>,
    failed: watch::Receiver<bool>,
}

#[derive(Debug)]
struct Listening {
    name: Arc<str>,
    address: SocketAddr,
}

/// Binds the listeners of the configuration in force and starts so many workers.
///
/// # Errors
/// [`StartError`]; nothing is listening then.
pub fn start(live: Arc<Live>, workers: usize) -> Result<Server, StartError> {
    let workers = workers.max(1);
    let snapshot = live.current();
    let prepared = prepare(&snapshot, workers, &BTreeMap::new())?;
    let open = Arc::new(AtomicUsize::new(0));
    let (fault, failed) = watch::channel(false);
    let fault = Arc::new(fault);
    let mut senders = Vec::with_capacity(workers);
    let mut threads = Vec::with_capacity(workers);
    for index in 0..workers {
        let (sender, orders) = mpsc::unbounded_channel();
        let mut alarm = Alarm {
            fault: Arc::clone(&fault),
            armed: true,
        };
        let (live, open) = (Arc::clone(&live), Arc::clone(&open));
        let thread = std::thread::Builder::new()
            .name(format!("worker-{index}"))
            .spawn(move || {
                // The whole guard moves in, not just the field that is written below.
                let alarm = &mut alarm;
                match worker::run(live, workers, open, orders) {
                    Ok(()) => alarm.armed = false,
                    Err(error) => tracing::error!(%error, "a worker cannot run"),
                }
            })
            .map_err(StartError::Worker)?;
        senders.push(sender);
        threads.push(thread);
    }
    let server = Server {
        workers: senders,
        threads: Mutex::new(threads),
        sockets: Mutex::default(),
        open,
        failed,
    };
    server.apply(prepared);
    Ok(server)
}

/// Sounds when a worker's thread ends without having been told to, by a panic or otherwise.
struct Alarm {
    fault: Arc<watch::Sender<bool>>,
    armed: bool,
}

impl Drop for Alarm {
    fn drop(&mut self) {
        if self.armed {
            self.fault.send_replace(true);
        }
    }
}

impl Server {
    /// Where the listeners are reached, by name; with port 0 the port that was picked.
    pub fn addresses(&self) -> BTreeMap<String, SocketAddr> {
        self.sockets()
            .values()
            .map(|listening| (listening.name.to_string(), listening.address))
            .collect()
    }

    /// How many connections are open.
    pub fn connections(&self) -> usize {
        self.open.load(Ordering::Relaxed)
    }

    /// Binds what `snapshot` needs and is not bound yet. Call it before the snapshot goes live, so
    /// that an address which cannot be bound keeps the old configuration in force.
    ///
    /// # Errors
    /// [`StartError::Bind`] and [`StartError::SameAddress`]; nothing has changed then.
    pub fn prepare(&self, snapshot: &Snapshot) -> Result<Prepared, StartError> {
        prepare(snapshot, self.workers.len(), &self.sockets())
    }

    /// What the workers have open, each for itself, in the order in which they say so. The bound on
    /// the wait is the caller's; how many workers there are is told beside it.
    pub fn survey(&self, wish: &Wish) -> (usize, mpsc::UnboundedReceiver<WorkerView>) {
        let (said, views) = mpsc::unbounded_channel();
        self.tell(|| Order::Survey(wish.clone(), said.clone()));
        (self.workers.len(), views)
    }

    /// Has idle workers let go of what is no longer in force; the sockets stay as they are.
    pub fn refresh(&self) {
        self.tell(|| Order::Refresh);
    }

    /// Accepts on new sockets and closes those that are no longer named. Call it right after the
    /// snapshot that was prepared has gone live.
    pub fn apply(&self, prepared: Prepared) {
        self.tell(|| Order::Refresh);
        let mut sockets = self.sockets();
        let gone: Vec<Key> = sockets
            .keys()
            .filter(|key| !prepared.sockets.contains_key(key))
            .cloned()
            .collect();
        for key in gone {
            sockets.remove(&key);
            self.tell(|| Order::Close {
                key: key.clone(),
                patience: prepared.patience,
            });
        }
        for (key, (name, opened)) in prepared.sockets {
            match opened {
                Some(opened) => {
                    let address = opened
                        .first()
                        .and_then(|socket| socket.local_addr().ok())
                        .unwrap_or(key.address);
                    for (worker, socket) in self.workers.iter().zip(opened) {
                        let (key, name) = (key.clone(), Arc::clone(&name));
                        // A worker that is gone has sounded its alarm already.
                        let _ = worker.send(Order::Listen { key, name, socket });
                    }
                    sockets.insert(key, Listening { name, address });
                }
                None => {
                    self.tell(|| Order::Rename {
                        key: key.clone(),
                        name: Arc::clone(&name),
                    });
                    if let Some(listening) = sockets.get_mut(&key) {
                        listening.name = name;
                    }
                }
            }
        }
    }

    /// Resolves when a worker has died. The process should end then: fewer workers than asked for
    /// would serve on without anybody noticing, and the kernel goes on queueing for the dead one's
    /// sockets until they are closed.
    pub async fn worker_died(&self) {
        let mut failed = self.failed.clone();
        if failed.wait_for(|failed| *failed).await.is_err() {
            // All workers have ended as they were told.
            std::future::pending::<()>().await;
        }
    }

    /// Stops accepting, after what the kernel has queued; lets requests under way finish; closes
    /// what is still open after `patience` and gives how many connections that were.
    pub async fn drain(&self, patience: Duration) -> usize {
        let deadline = Instant::now() + patience;
        self.sockets().clear();
        let mut answers = Vec::with_capacity(self.workers.len());
        for worker in &self.workers {
            let (done, answer) = oneshot::channel();
            if worker.send(Order::Drain { deadline, done }).is_ok() {
                answers.push(answer);
            }
        }
        let mut cut = 0;
        for answer in answers {
            cut += answer.await.unwrap_or(0);
        }
        let threads =
            std::mem::take(&mut *self.threads.lock().unwrap_or_else(PoisonError::into_inner));
        let joined = tokio::task::spawn_blocking(move || {
            for thread in threads {
                // A panic was reported by the alarm.
                let _ = thread.join();
            }
        });
        let _ = joined.await;
        cut
    }

    fn tell(&self, order: impl Fn() -> Order) {
        for worker in &self.workers {
            let _ = worker.send(order());
        }
    }

    fn sockets(&self) -> MutexGuard<'_, BTreeMap<Key, Listening>> {
        self.sockets.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn prepare(
    snapshot: &Snapshot,
    workers: usize,
    bound: &BTreeMap<Key, Listening>,
) -> Result<Prepared, StartError> {
    let listeners = snapshot
        .listeners
        .values()
        .map(|listener| (&listener.name, listener.address));
    let sockets = plan(listeners, workers, bound)?;
    Ok(Prepared {
        sockets,
        patience: snapshot.drain_timeout,
    })
}

type Planned = BTreeMap<Key, (Arc<str>, Option<Vec<TcpListener>>)>;

fn plan<'l>(
    listeners: impl Iterator<Item = (&'l Arc<str>, SocketAddr)>,
    workers: usize,
    bound: &BTreeMap<Key, Listening>,
) -> Result<Planned, StartError> {
    let mut sockets = Planned::new();
    for (name, address) in listeners {
        let key = Key {
            address,
            name: (address.port() == 0).then(|| Arc::clone(name)),
        };
        if let Some((first, _)) = sockets.get(&key) {
            return Err(StartError::SameAddress {
                first: first.to_string(),
                second: name.to_string(),
                address,
            });
        }
        let opened = if bound.contains_key(&key) {
            None
        } else {
            let ours = bound
                .values()
                .any(|listening| listening.address.port() == address.port());
            let sharing = if ours {
                Sharing::Shared
            } else {
                Sharing::Exclusive
            };
            let opened =
                socket::bind(address, workers, sharing).map_err(|source| StartError::Bind {
                    listener: name.to_string(),
                    address,
                    source,
                })?;
            Some(opened)
        };
        sockets.insert(key, (Arc::clone(name), opened));
    }
    Ok(sockets)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(text: &str) -> Arc<str> {
        text.into()
    }

    #[test]
    fn sockets_are_kept_by_address_and_conflicts_are_found_before_anything_changes() {
        let any: SocketAddr = "127.0.0.1:0".parse().unwrap();
        let (one, two) = (name("one"), name("two"));
        let first = plan([(&one, any), (&two, any)].into_iter(), 2, &BTreeMap::new()).unwrap();
        assert_eq!(first.len(), 2);
        let sockets = first.values().next().unwrap().1.as_ref().unwrap();
        assert_eq!(sockets.len(), 2);
        let address = sockets[0].local_addr().unwrap();

        // Somebody has the port already.
        let error = plan([(&one, address)].into_iter(), 1, &BTreeMap::new()).unwrap_err();
        assert!(matches!(error, StartError::Bind { .. }));
        // It is one of ours: kept, under another name as well.
        let listening = Listening {
            name: name("one"),
            address,
        };
        let bound = BTreeMap::from([(
            Key {
                address,
                name: None,
            },
            listening,
        )]);
        let kept = plan([(&two, address)].into_iter(), 1, &bound).unwrap();
        assert!(
            kept.values()
                .all(|(name, opened)| &**name == "two" && opened.is_none())
        );
        // The same port on all addresses, while the old socket is still open.
        let everywhere = SocketAddr::from(([0, 0, 0, 0], address.port()));
        assert!(plan([(&one, everywhere)].into_iter(), 1, &bound).is_ok());

        let twice = plan([(&one, address), (&two, address)].into_iter(), 1, &bound);
        assert!(matches!(twice, Err(StartError::SameAddress { .. })));
    }
}
