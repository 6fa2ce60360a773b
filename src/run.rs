//! The process: control thread, workers, admin listener, reloader, and the way they start and end.
//!
//! Used by `portcullis run`, by `portcullis dev` and by tests; nothing here knows of a terminal.

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak, mpsc};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::runtime::{Builder, Handle, Runtime};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::Notify;

use crate::admin::{self, Admin, AdminState, Workers};
use crate::audit::Audit;
use crate::config::reload::{Outcome, Reloader};
use crate::config::{self, Document};
use crate::metrics::Metrics;
use crate::revocation::StoreError;
use crate::schema::{Named, Problem};
use crate::server::{self, Server};
use crate::snapshot::{Live, Snapshot};

/// What sinks behind the ledger get of the drain timeout, however much of it connections took.
const LEAST_DELIVERY: Duration = Duration::from_secs(1);

/// How long a reload may take before whoever asked stops waiting for its answer. The reload itself
/// goes on.
const RELOAD_PATIENCE: Duration = Duration::from_secs(60);

/// How long the last records may take to reach their sinks.
const FLUSH_PATIENCE: Duration = Duration::from_secs(5);

/// How long the end at once waits for finished records to reach their sink.
const LAST_PATIENCE: Duration = Duration::from_millis(200);

/// How long after the drain timeout the last connections may take to close.
const DRAIN_MARGIN: Duration = Duration::from_secs(5);

/// Descriptors beside those of client connections: pooled connections to upstreams, sinks, timers.
const OWN_DESCRIPTORS: u64 = 1000;

/// How long the control thread may take to end.
const STOP_PATIENCE: Duration = Duration::from_secs(1);

/// How to start a process.
#[derive(Debug, Clone)]
pub struct Options {
    /// The configuration file.
    pub config: PathBuf,
    /// Worker threads, instead of what the file says.
    pub workers: Option<usize>,
    /// Reload when a file of the configuration changes.
    pub watch: bool,
}

impl Options {
    /// The usual way to run this configuration.
    pub fn new(config: impl Into<PathBuf>) -> Self {
        Self {
            config: config.into(),
            workers: None,
            watch: true,
        }
    }
}

/// Why a process did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The configuration does not load.
    #[error("the configuration does not load")]
    Configuration(Vec<Problem>),
    /// A listener cannot be opened.
    #[error("{listener} cannot listen on {address}: {reason}")]
    Listen {
        /// Which one.
        listener: String,
        /// The address of the configuration.
        address: SocketAddr,
        /// Why, in words an operator can act on.
        reason: String,
    },
    /// Two listeners are one, or a worker cannot be started.
    #[error(transparent)]
    Server(server::StartError),
    /// Records cannot be kept.
    #[error(transparent)]
    Audit(io::Error),
    /// What was revoked is not known.
    #[error(transparent)]
    Revocation(StoreError),
    /// The operating system gives no thread, timer or signal.
    #[error("cannot start: {0}")]
    System(#[from] io::Error),
}

impl From<server::StartError> for StartError {
    fn from(error: server::StartError) -> Self {
        match error {
            server::StartError::Bind {
                listener,
                address,
                source,
            } => Self::Listen {
                listener: format!("listener {listener}"),
                reason: reason(&source, address),
                address,
            },
            other @ (server::StartError::SameAddress { .. } | server::StartError::Worker(_)) => {
                Self::Server(other)
            }
        }
    }
}

/// The usual reasons in words an operator can act on.
#[expect(
    clippy::wildcard_enum_match_arm,
    reason = "the list of kinds is the standard library's and open; the rest has its own words"
)]
fn reason(error: &io::Error, address: SocketAddr) -> String {
    match error.kind() {
        io::ErrorKind::AddrInUse => format!(
            "another process uses the address (`ss -ltnp 'sport = :{}'` shows which)",
            address.port()
        ),
        io::ErrorKind::PermissionDenied if address.port() < 1024 => {
            "not permitted: a port below 1024 needs CAP_NET_BIND_SERVICE, or take a higher one"
                .to_owned()
        }
        io::ErrorKind::AddrNotAvailable => "the address is not one of this machine".to_owned(),
        _ => error.to_string(),
    }
}

/// A running gateway.
#[derive(Debug)]
pub struct Process {
    live: Arc<Live>,
    server: Arc<Server>,
    reloader: Arc<Reloader>,
    control: Control,
    admin: Option<SocketAddr>,
    workers: usize,
    /// Told to whoever asks whether the gateway is ready.
    draining: Arc<AtomicBool>,
    /// Record sinks of earlier configurations that may still have records to write.
    retired: Retired,
    warnings: Vec<Problem>,
}

/// How often is looked whether an old configuration is still in use.
const LET_GO_EVERY: Duration = Duration::from_millis(100);

type Retired = Arc<Mutex<Vec<Arc<Audit>>>>;

/// Keeps a sink that is no longer in force until it has written what it was given.
fn retire(retired: &Retired, audit: Arc<Audit>, current: &Audit) {
    let mut retired = retired.lock().unwrap_or_else(PoisonError::into_inner);
    retired.retain(|earlier| earlier.waiting() > 0 || earlier.left_behind(current));
    retired.push(audit);
}

/// Drops a configuration when nobody else holds it any more. Thousands of routes take milliseconds
/// to take apart, and no worker shall spend them between two requests.
async fn let_go(snapshot: Arc<Snapshot>) {
    while Arc::strong_count(&snapshot) > 1 {
        tokio::time::sleep(LET_GO_EVERY).await;
    }
    config::beside(move || drop(snapshot)).await;
}

/// How a process that waited for signals ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    /// Asked to stop, it let requests under way finish.
    Drained {
        /// Connections that were cut at the end of the drain timeout.
        cut: usize,
    },
    /// Asked twice: it ended at once.
    AtOnce,
    /// A worker ended by itself: the rest was drained, and the process should be started anew.
    Broken,
}

impl Process {
    /// Loads the configuration and starts everything: when it returns, all listeners accept.
    ///
    /// # Errors
    /// [`StartError`]; nothing is left running.
    pub fn start(options: Options) -> Result<Self, StartError> {
        let metrics = Arc::new(Metrics::default());
        let loaded =
            config::load(&options.config, None, &metrics).map_err(StartError::Configuration)?;
        Self::start_loaded(options, loaded)
    }

    /// Starts everything from a configuration that was loaded for [`Options::config`].
    ///
    /// # Errors
    /// [`StartError`]; nothing is left running.
    pub fn start_loaded(options: Options, loaded: config::Loaded) -> Result<Self, StartError> {
        let config::Loaded {
            snapshot,
            document,
            admin,
            warnings,
        } = loaded;
        for warning in &warnings {
            warning.log();
        }
        let workers = workers(&options, &document);
        let control = Control::start()?;
        // Bound before anything else runs: the most likely failure costs nothing to undo.
        let admin_socket = admin.address.map(|address| {
            bind_admin(address).map_err(|error| StartError::Listen {
                listener: "the admin listener".to_owned(),
                reason: reason(&error, address),
                address,
            })
        });
        let admin_socket = admin_socket.transpose()?;
        let access = Arc::new(ArcSwap::from_pointee(admin));
        let retired = Retired::default();

        snapshot.audit.begin().map_err(StartError::Audit)?;
        snapshot
            .revocation
            .begin()
            .map_err(StartError::Revocation)?;
        raise_descriptors();
        compare_descriptors(&snapshot);
        snapshot.audit.adopt();
        let live = Arc::new(Live::new(snapshot));
        let server = Arc::new(server::start(Arc::clone(&live), workers)?);
        // Keys are fetched and names resolved from here on.
        live.current().activate(&control.handle);

        let reloader = {
            let (in_force, serving) = (Arc::clone(&live), Arc::downgrade(&server));
            let server = Weak::clone(&serving);
            let handle = control.handle.clone();
            let started = Started {
                workers: options.workers.is_none().then_some(document.workers),
                admin: document.admin.address,
            };
            let (access, retired) = (Arc::clone(&access), Arc::clone(&retired));
            let install = move |snapshot: Snapshot, document: &Document, admin: Admin| {
                // A process that is ending takes no new configuration.
                let server = server.upgrade().ok_or("the gateway is stopping")?;
                snapshot.audit.begin().map_err(|error| error.to_string())?;
                let prepared = server
                    .prepare(&snapshot)
                    .map_err(|error| StartError::from(error).to_string())?;
                // Last of what can fail: it replaces lists that are in force.
                snapshot
                    .revocation
                    .begin()
                    .map_err(|error| error.to_string())?;
                let before = in_force.current();
                in_force.replace(snapshot);
                let snapshot = in_force.current();
                snapshot.activate(&handle);
                if !Arc::ptr_eq(&before.audit, &snapshot.audit) {
                    snapshot.audit.adopt();
                    retire(&retired, Arc::clone(&before.audit), &snapshot.audit);
                }
                access.store(Arc::new(admin));
                server.apply(prepared);
                drop(handle.spawn(let_go(before)));
                started.compare(document);
                Ok(())
            };
            let exchange = {
                let (in_force, handle) = (Arc::clone(&live), control.handle.clone());
                move |snapshot: Snapshot| {
                    let before = in_force.current();
                    in_force.replace(snapshot);
                    let now = in_force.current();
                    now.candidates.activate(&handle, &now.metrics);
                    if let Some(server) = serving.upgrade() {
                        server.refresh();
                    }
                    drop(handle.spawn(let_go(before)));
                }
            };
            let (install, exchange) = (Box::new(install), Box::new(exchange));
            Reloader::new(options.config, Arc::clone(&live), install, exchange)
        };
        drop(control.handle.spawn(Arc::clone(&reloader).follow()));
        if options.watch {
            drop(control.handle.spawn(Arc::clone(&reloader).watch()));
        }
        let draining = Arc::new(AtomicBool::new(false));
        let address = match admin_socket {
            None => None,
            Some(socket) => {
                let address = socket.local_addr()?;
                let state = Arc::new(AdminState::new(
                    Arc::clone(&live),
                    admin_reload(&reloader),
                    Arc::clone(&draining),
                    access,
                    admin_workers(&server),
                ));
                let socket = {
                    let _inside = control.handle.enter();
                    tokio::net::TcpListener::from_std(socket)?
                };
                drop(control.handle.spawn(admin::serve(socket, state)));
                Some(address)
            }
        };
        Ok(Self {
            live,
            server,
            reloader,
            control,
            admin: address,
            workers,
            draining,
            retired,
            warnings,
        })
    }

    /// The listeners by name, with the addresses they really have (port 0 was replaced).
    pub fn addresses(&self) -> Named<SocketAddr> {
        self.server.addresses()
    }

    /// Where the admin listener is, if there is one.
    pub fn admin_address(&self) -> Option<SocketAddr> {
        self.admin
    }

    /// How many worker threads serve requests.
    pub fn workers(&self) -> usize {
        self.workers
    }

    /// What the operator should know of the configuration at start.
    pub fn warnings(&self) -> &[Problem] {
        &self.warnings
    }

    /// The configuration in force.
    pub fn snapshot(&self) -> Arc<Snapshot> {
        self.live.current()
    }

    /// Reloads the configuration and waits for the outcome. Blocks the calling thread; `None` when
    /// it takes longer than a minute.
    pub fn reload(&self) -> Option<Outcome> {
        let (answer, outcome) = mpsc::sync_channel(1);
        let reloader = Arc::clone(&self.reloader);
        drop(self.control.handle.spawn(async move {
            // Whoever asked may be gone.
            let _ = answer.try_send(reloader.reload().await);
        }));
        outcome.recv_timeout(RELOAD_PATIENCE).ok()
    }

    /// Stops: no new connections, requests under way finish within the drain timeout, the last
    /// records are written, all threads end. Blocks; returns how many connections were cut.
    pub fn shutdown(mut self) -> usize {
        let snapshot = self.live.current();
        tracing::info!(timeout = ?snapshot.drain_timeout, "draining");
        self.draining.store(true, Ordering::SeqCst);
        let until = Instant::now() + snapshot.drain_timeout;
        let (answer, drained) = mpsc::sync_channel(1);
        let (server, patience) = (Arc::clone(&self.server), snapshot.drain_timeout);
        drop(self.control.handle.spawn(async move {
            let _ = answer.try_send(server.drain(patience).await);
        }));
        // The server keeps to its patience; this bound is for the case that it does not.
        let cut = drained
            .recv_timeout(patience.saturating_add(DRAIN_MARGIN))
            .unwrap_or_else(|_| {
                tracing::error!("draining did not end in time");
                self.server.connections()
            });
        let snapshot = self.live.current();
        let earlier =
            std::mem::take(&mut *self.retired.lock().unwrap_or_else(PoisonError::into_inner));
        for audit in earlier.iter().chain([&snapshot.audit]) {
            if !audit.close(FLUSH_PATIENCE) {
                let lost = audit.waiting();
                tracing::error!(
                    lost,
                    "audit records did not reach their sink before the end"
                );
            }
        }
        for audit in earlier.iter().chain([&snapshot.audit]) {
            let left = until.saturating_duration_since(Instant::now());
            for (sink, records) in audit.deliver(left.max(LEAST_DELIVERY)) {
                tracing::warn!(
                    sink,
                    records,
                    "audit records wait in the ledger: this sink gets them after the next start"
                );
            }
        }
        self.control.stop();
        tracing::info!(cut, "stopped");
        cut
    }

    /// Runs until it is asked to stop: SIGTERM or SIGINT drain, a second one ends at once, SIGHUP
    /// reloads.
    pub fn wait(self, mut signals: Signals) -> Ended {
        let broken = loop {
            match signals.next(self.server.worker_died()) {
                Asked::Reload => {
                    tracing::info!("SIGHUP: reloading");
                    let reloader = Arc::clone(&self.reloader);
                    let reload = async move { reloader.reload().await };
                    drop(self.control.handle.spawn(reload));
                }
                Asked::Stop => break false,
                Asked::Broken => {
                    tracing::error!("a worker has ended by itself: stopping");
                    break true;
                }
            }
        };
        let audit = Arc::clone(&self.live.current().audit);
        let (done, drained) = tokio::sync::oneshot::channel();
        std::thread::spawn(move || {
            let cut = self.shutdown();
            let _ = done.send(cut);
        });
        match signals.next_or(drained) {
            Some(_) if broken => Ended::Broken,
            Some(cut) => Ended::Drained { cut },
            None => {
                // What is finished is written all the same, unless the sink keeps us waiting.
                audit.close(LAST_PATIENCE);
                Ended::AtOnce
            }
        }
    }
}

/// Settings that count at start only, to say so when a reload changes them.
struct Started {
    /// `None` when the command line decided.
    workers: Option<Option<usize>>,
    admin: Option<SocketAddr>,
}

impl Started {
    fn compare(&self, document: &Document) {
        if self
            .workers
            .is_some_and(|workers| workers != document.workers)
        {
            tracing::warn!("`workers` changed: it takes effect at the next start");
        }
        if self.admin != document.admin.address {
            tracing::warn!("`admin.address` changed: it takes effect at the next start");
        }
    }
}

fn workers(options: &Options, document: &Document) -> usize {
    let cores = || std::thread::available_parallelism().map_or(1, usize::from);
    options
        .workers
        .or(document.workers)
        .unwrap_or_else(cores)
        .max(1)
}

/// Lets the process have as many files as it is allowed to: the soft limit is what programs that
/// count descriptors in a bit set can bear, not what the machine can. What cannot be raised stays.
fn raise_descriptors() {
    let limit = getrlimit(Resource::Nofile);
    if limit.current != limit.maximum {
        let raised = Rlimit {
            current: limit.maximum,
            ..limit
        };
        if let Err(error) = setrlimit(Resource::Nofile, raised) {
            tracing::debug!(%error, "the limit of open files stays as it is");
        }
    }
}

/// Says so when the listeners may take more connections than the system gives file descriptors: at
/// that limit nothing can be accepted, forwarded or asked any more, the admin listener included.
fn compare_descriptors(snapshot: &Snapshot) {
    // No limit is none to compare with.
    let Some(limit) = getrlimit(Resource::Nofile).current else {
        return;
    };
    let connections: u64 = snapshot
        .listeners
        .values()
        .map(|listener| u64::from(listener.bounds.max_connections))
        .sum();
    let needed = connections.saturating_add(OWN_DESCRIPTORS);
    if limit < needed {
        tracing::warn!(
            limit,
            needed,
            "the limit of open files is below what the listeners' `bounds.max_connections` may need; \
             raise it (`ulimit -Hn`, LimitNOFILE=) or lower them"
        );
    }
}

/// How the admin listener asks the workers; one that is ending has nothing to say.
fn admin_workers(server: &Arc<Server>) -> Workers {
    let server = Arc::downgrade(server);
    Workers::asked_by(move |wish| match server.upgrade() {
        Some(server) => server.survey(wish),
        None => (0, tokio::sync::mpsc::unbounded_channel().1),
    })
}

/// A reload as the admin listener asks for it.
fn admin_reload(reloader: &Arc<Reloader>) -> admin::Reload {
    let reloader = Arc::clone(reloader);
    Arc::new(move || {
        let reloader = Arc::clone(&reloader);
        Box::pin(async move {
            match reloader.reload().await {
                Outcome::Unchanged { revision } | Outcome::Replaced { revision, .. } => {
                    Ok(revision.to_string())
                }
                Outcome::Refused { problems } => Err(problems),
            }
        })
    })
}

fn bind_admin(address: SocketAddr) -> io::Result<std::net::TcpListener> {
    let listener = std::net::TcpListener::bind(address)?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}

/// The thread of everything that is not a request.
#[derive(Debug)]
struct Control {
    handle: Handle,
    stop: Arc<Notify>,
    thread: Option<JoinHandle<()>>,
}

impl Control {
    fn start() -> io::Result<Self> {
        let runtime = Builder::new_current_thread()
            .enable_all()
            .thread_name("control-blocking")
            .build()?;
        let handle = runtime.handle().clone();
        let stop = Arc::new(Notify::new());
        let stopped = Arc::clone(&stop);
        let thread = std::thread::Builder::new()
            .name("control".to_owned())
            .spawn(move || {
                runtime.block_on(stopped.notified());
                // Tasks are dropped here; a blocking one that hangs does not hold up the end.
                runtime.shutdown_timeout(STOP_PATIENCE);
            })?;
        Ok(Self {
            handle,
            stop,
            thread: Some(thread),
        })
    }

    fn stop(&mut self) {
        self.stop.notify_one();
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the control thread panicked");
        }
    }
}

impl Drop for Control {
    fn drop(&mut self) {
        self.stop();
    }
}

/// The signals of the process, taken over from the operating system.
#[derive(Debug)]
pub struct Signals {
    runtime: Runtime,
    terminate: Signal,
    interrupt: Signal,
    hang_up: Signal,
}

enum Asked {
    Stop,
    Reload,
    Broken,
}

impl Signals {
    /// Takes over SIGTERM, SIGINT and SIGHUP: from here on they do not end the process by
    /// themselves. Call it before [`Process::start`], so that none comes too early.
    ///
    /// # Errors
    /// The operating system's.
    pub fn install() -> io::Result<Self> {
        let runtime = Builder::new_current_thread().enable_all().build()?;
        let inside = runtime.enter();
        let terminate = signal(SignalKind::terminate())?;
        let interrupt = signal(SignalKind::interrupt())?;
        let hang_up = signal(SignalKind::hangup())?;
        drop(inside);
        Ok(Self {
            runtime,
            terminate,
            interrupt,
            hang_up,
        })
    }

    /// Waits for a signal, or for a worker to die.
    fn next(&mut self, died: impl Future<Output = ()>) -> Asked {
        let Self {
            runtime,
            terminate,
            interrupt,
            hang_up,
        } = self;
        runtime.block_on(async {
            tokio::select! {
                _ = terminate.recv() => Asked::Stop,
                _ = interrupt.recv() => Asked::Stop,
                _ = hang_up.recv() => Asked::Reload,
                () = died => Asked::Broken,
            }
        })
    }

    /// Waits for `done`; `None` when another request to stop comes first.
    fn next_or<T>(&mut self, done: tokio::sync::oneshot::Receiver<T>) -> Option<T> {
        let Self {
            runtime,
            terminate,
            interrupt,
            ..
        } = self;
        runtime.block_on(async {
            tokio::select! {
                done = done => done.ok(),
                _ = terminate.recv() => None,
                _ = interrupt.recv() => None,
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    const GOOD: &str = "\
listeners: { local: { address: \"127.0.0.1:0\", plaintext: true } }
upstreams: { orders: { endpoints: [\"http://127.0.0.1:9\"] } }
routes:
  - { name: read, path: /orders, authn: [anonymous], policy: public, upstream: orders }
";

    fn start(folder: &Path, text: &str) -> Result<Process, StartError> {
        let config = folder.join("gateway.yaml");
        std::fs::write(&config, text).unwrap();
        let mut options = Options::new(config);
        options.workers = Some(1);
        options.watch = false;
        Process::start(options)
    }

    #[test]
    fn a_process_starts_reloads_and_ends() {
        let folder = tempfile::tempdir().unwrap();
        let process = start(folder.path(), GOOD).unwrap();
        assert!(matches!(process.reload(), Some(Outcome::Unchanged { .. })));
        std::fs::write(
            folder.path().join("gateway.yaml"),
            GOOD.replace("read", "write"),
        )
        .unwrap();
        assert!(matches!(process.reload(), Some(Outcome::Replaced { .. })));
        std::fs::write(folder.path().join("gateway.yaml"), "routes: [").unwrap();
        assert!(matches!(process.reload(), Some(Outcome::Refused { .. })));
        assert_eq!(
            process
                .snapshot()
                .routes
                .iter()
                .next()
                .unwrap()
                .name
                .as_ref(),
            "write"
        );
        assert_eq!(process.shutdown(), 0);
    }

    #[test]
    fn a_broken_configuration_does_not_start() {
        let folder = tempfile::tempdir().unwrap();
        let error = start(folder.path(), &GOOD.replace("public", "private")).unwrap_err();
        assert!(matches!(error, StartError::Configuration(_)));
    }

    #[test]
    fn an_admin_address_in_use_is_one_clear_sentence() {
        let folder = tempfile::tempdir().unwrap();
        let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = taken.local_addr().unwrap();
        let text = format!("{GOOD}admin: {{ address: \"{address}\" }}\n");
        let error = start(folder.path(), &text).unwrap_err();
        let text = error.to_string();
        let begins = format!("the admin listener cannot listen on {address}: another process uses");
        assert!(text.starts_with(&begins), "{text}");
        assert_eq!(text.lines().count(), 1);
    }

    #[test]
    fn the_admin_listener_has_a_port_of_its_own() {
        let folder = tempfile::tempdir().unwrap();
        let text = format!("{GOOD}admin: {{ address: \"127.0.0.1:0\" }}\n");
        let process = start(folder.path(), &text).unwrap();
        assert_ne!(process.admin_address().unwrap().port(), 0);
        process.shutdown();
    }
}
