//! What the ledger holds, shipped elsewhere: a thread for each sink, which reads along.
//!
//! A record is in the ledger before any sink hears of it, so a sink that is away costs disk and nothing
//! else: no memory, and no request waits. Each sink has its cursor, a small file beside the ledger that
//! says how far it got. It is written after a delivery was taken, at most once a second, so a crash
//! repeats up to a second of records, and loses none: at least once, in order.
//!
//! A record is given up in two cases alone: the sink will not have it, though it takes the ones behind
//! it; or the bound of the disk (`keep.size`) removed it before the sink came back. Both are counted,
//! logged, and written into the ledger.

mod chunk;
mod config;
mod courier;
mod cursor;
mod http;
mod local;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use serde::Serialize;
use tokio::sync::watch;

pub use self::config::{
    BatchConfig, RetryConfig, ShipBegin, ShipBody, ShipConfig, ShipFormat, ShipHttp, ShipTo,
};

use self::courier::Courier;
use self::http::Server;
use super::event::Labels;
use super::ledger::{Head, Notebook, Position, Undelivered};
use crate::metrics::Metrics;
use crate::schema::ContentDigest;

/// Most sinks behind a ledger: each is a thread.
pub(super) const MOST: usize = 8;

/// Cursors of sinks that are not configured: who they are of, and how far they got. A sink that was renamed
/// while nobody was here to see it leaves one behind; it keeps nothing from being removed.
pub(super) fn orphans<'n>(
    ledger: &Path,
    names: impl Iterator<Item = &'n String> + Clone,
) -> Vec<(String, u64)> {
    let mut all = cursor::all(ledger);
    all.retain(|(found, _)| names.clone().all(|name| name != found));
    all
}

/// The sinks of a configuration, by name.
pub(super) type Ships = BTreeMap<String, Arc<Ship>>;

/// One sink, compiled.
#[derive(Debug)]
pub(super) struct Ship {
    name: Arc<str>,
    /// Over everything that makes it what it is, secrets included.
    mark: ContentDigest,
    destination: Destination,
    format: ShipFormat,
    begin: ShipBegin,
    /// Most bytes and records of a chunk, and how long it waits to become full.
    size: usize,
    records: usize,
    wait: Duration,
    /// The first pause and the longest.
    delays: (Duration, Duration),
    metrics: Arc<Metrics>,
}

impl Ship {
    /// The sink has records that the ledger has no more: a crash of the machine took them before they
    /// were on its disk.
    fn is_ahead(&self, records: (u64, u64), notebook: &Notebook) {
        let (first, last) = records;
        let count = last.saturating_sub(first).saturating_add(1);
        tracing::error!(sink = %self.name, first, last,
            "this sink has audit records that the ledger has no more, as after a crash of the machine: \
             their numbers are given to the next ones, which are shipped");
        self.metrics.ship_ahead(&self.name, count);
        let noted = notebook.note_ahead(Undelivered {
            sink: self.name.to_string(),
            records,
            why: "the machine crashed before they were on the disk".to_owned(),
        });
        if let Err(error) = noted {
            tracing::error!(sink = %self.name, %error,
                "the audit ledger could not be told of records that only a sink has");
        }
    }

    pub(super) fn mark(&self) -> ContentDigest {
        self.mark
    }
}

/// Where a sink is.
#[derive(Debug)]
enum Destination {
    Stdout,
    File(PathBuf),
    Http(Server),
}

/// What a sink said to a delivery.
#[derive(Debug)]
enum Said {
    Taken,
    /// It is more than it takes at once.
    TooLarge,
    /// Something in it is wrong.
    Refused(u16),
    /// Something in it may be wrong, or something about us.
    Unclear {
        status: u16,
        /// When the server wants to be asked again.
        after: Option<Duration>,
    },
    /// Not now.
    Later {
        /// A fixed word for metrics.
        kind: &'static str,
        why: String,
        /// When the server wants to be asked again.
        after: Option<Duration>,
    },
}

impl Said {
    fn later(kind: &'static str, why: String) -> Self {
        Self::Later {
            kind,
            why,
            after: None,
        }
    }
}

/// What is known of a sink, for whoever asks.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct ShipStatus {
    /// The number of the last record that the sink took.
    pub shipped: u64,
    /// Records that wait for it in the ledger.
    pub behind_records: u64,
    /// How old the oldest of them is, by the time of its request; 0 when there is none.
    pub behind_seconds: u64,
    /// Failures since the last delivery that was taken.
    pub failures: u64,
    /// Why the last one failed, until one is taken.
    pub error: Option<String>,
    /// Records it will never have, since the start.
    pub lost: u64,
}

/// What a courier tells about itself.
#[derive(Debug, Default)]
struct Log {
    shipped: AtomicU64,
    /// Records up to this one are gone from the ledger, or were given up.
    robbed: AtomicU64,
    status: Mutex<ShipStatus>,
}

impl Log {
    fn status(&self) -> MutexGuard<'_, ShipStatus> {
        locked(&self.status)
    }
}

/// What couriers are told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Order {
    Go,
    /// End when everything is shipped, or at this time, or when the sink does not take it.
    Finish(Instant),
    /// Another one goes on.
    Stop,
    /// Nobody does: it is configured no more.
    Leave,
}

/// A sink that is shipped to.
#[derive(Debug)]
struct Running {
    ship: Arc<Ship>,
    log: Arc<Log>,
    /// `None` before the configuration came in force.
    courier: Option<Sent>,
    /// Records that it has, and a crash of the machine took from the ledger: to be told of.
    surplus: Option<(u64, u64)>,
}

#[derive(Debug)]
struct Sent {
    order: watch::Sender<Order>,
    /// Says nothing, and breaks off when the courier has ended.
    ended: mpsc::Receiver<()>,
}

/// Everyone who ships what is in one ledger.
#[derive(Debug, Default)]
pub(super) struct Fleet {
    running: Mutex<BTreeMap<String, Running>>,
    /// Those that are configured no more, until they have ended. One who comes back waits for them.
    leaving: Mutex<BTreeMap<String, Sent>>,
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Fleet {
    /// These sinks will be shipped to: what they have not got yet is kept. `opening` when nothing was
    /// written yet, by this process.
    pub(super) fn prepare(&self, ships: &Ships, ledger: &Path, head: &Head, opening: bool) {
        let mut running = locked(&self.running);
        for (name, ship) in ships {
            if running.contains_key(name) {
                continue;
            }
            let log = Arc::<Log>::default();
            // The numbers of another ledger would let records of this one be removed unshipped.
            let path = cursor::path_of(ledger, name);
            let mut position = cursor::read(&path)
                .filter(|position| position.ledger == head.id)
                .unwrap_or_default();
            let mut surplus = None;
            if opening && position.record > head.records {
                surplus = Some((head.records + 1, position.record));
                position = Position::of(head);
                // Before the first new record, which gets a number that was shipped already and would
                // be taken for it.
                if let Err(error) = cursor::write(&path, &position) {
                    tracing::error!(sink = %name, %error, "the cursor of a sink could not be set back");
                }
            }
            log.shipped.store(position.record, Ordering::Relaxed);
            let new = Running {
                ship: Arc::clone(ship),
                log,
                courier: None,
                surplus,
            };
            running.insert(name.clone(), new);
        }
    }

    /// Ships to these from now on, and to no other. What did not change goes on; what did goes on
    /// where it was.
    pub(super) fn adopt(
        &self,
        ships: &Ships,
        ledger: &Path,
        head: &watch::Receiver<Head>,
        notebook: &Notebook,
        labels: &Labels,
    ) {
        let now = head.borrow().clone();
        self.prepare(ships, ledger, &now, false);
        let (mut removed, mut ahead) = (Vec::new(), Vec::new());
        let mut running = locked(&self.running);
        let mut leaving = locked(&self.leaving);
        running.retain(|name, found| {
            let stays = ships.contains_key(name);
            if !stays {
                // Ends by itself; nobody waits for it.
                found.order(Order::Leave);
                let shipped = found.log.shipped.load(Ordering::Relaxed);
                removed.push((name.clone(), shipped));
                leaving.extend(found.courier.take().map(|sent| (name.clone(), sent)));
            }
            stays
        });
        for (name, ship) in ships {
            let Some(found) = running.get_mut(name) else {
                continue;
            };
            ahead.extend(found.surplus.take().map(|records| (ship, records)));
            if found.courier.is_some() && found.ship.mark == ship.mark {
                continue;
            }
            found.order(Order::Stop);
            // It has to keep its cursor before another one reads it, and that one waits for it: a
            // reload does not.
            let before = found.courier.take().or_else(|| leaving.remove(name));
            found.ship = Arc::clone(ship);
            let (order, orders) = watch::channel(Order::Go);
            let (alive, ended) = mpsc::channel();
            let courier = Courier::new(
                Arc::clone(ship),
                Arc::clone(&found.log),
                ledger.to_path_buf(),
                head.clone(),
                orders,
                notebook.clone(),
                labels.clone(),
            );
            let begun = thread::Builder::new()
                .name("ship".to_owned())
                .spawn(move || {
                    let _alive = alive;
                    if let Some(before) = before {
                        let _ = before.ended.recv_timeout(PREDECESSOR);
                    }
                    courier.run();
                });
            match begun {
                Ok(_) => found.courier = Some(Sent { order, ended }),
                Err(error) => {
                    tracing::error!(sink = name, %error, "no thread to ship audit records")
                }
            }
        }
        // The ledger asks the fleet while it is locked, so nothing is locked here while it is told.
        drop((running, leaving));
        for (name, shipped) in removed {
            farewell(&name, shipped, now.records, notebook);
        }
        for (ship, records) in ahead {
            ship.is_ahead(records, notebook);
        }
    }

    /// The last record that every sink has; `None` without sinks.
    pub(super) fn slowest(&self) -> Option<u64> {
        let running = locked(&self.running);
        let shipped = |found: &Running| found.log.shipped.load(Ordering::Relaxed);
        running.values().map(shipped).min()
    }

    /// What sinks will not get when records up to this one are removed, and nobody said so before.
    pub(super) fn robbed(&self, last: u64) -> Vec<Undelivered> {
        let running = locked(&self.running);
        let robbed = running.iter().filter_map(|(name, found)| {
            let shipped = found.log.shipped.load(Ordering::Relaxed);
            let first = shipped.max(found.log.robbed.load(Ordering::Relaxed)) + 1;
            (first <= last).then(|| Undelivered {
                sink: name.clone(),
                records: (first, last),
                why: "the ledger's `keep.size` left no room for them".to_owned(),
            })
        });
        robbed.collect()
    }

    /// The ledger says that a sink does not get records up to this one.
    pub(super) fn noted(&self, sink: &str, last: u64) {
        if let Some(found) = locked(&self.running).get(sink) {
            found.log.robbed.fetch_max(last, Ordering::Relaxed);
        }
    }

    /// What is known of each sink.
    pub(super) fn status(&self) -> BTreeMap<String, ShipStatus> {
        let running = locked(&self.running);
        let status = |found: &Running| found.log.status().clone();
        let all = running.iter();
        all.map(|(name, found)| (name.clone(), status(found)))
            .collect()
    }

    /// Ships what is left, for at most so long, and ends; a sink that does not take it is not waited
    /// for. Gives the sinks that are behind: nothing is lost, for the next start goes on there.
    /// Blocks.
    pub(super) fn finish(&self, patience: Duration) -> Vec<(String, u64)> {
        let until = Instant::now() + patience;
        let couriers: Vec<_> = {
            let mut running = locked(&self.running);
            for found in running.values() {
                found.order(Order::Finish(until));
            }
            running
                .iter_mut()
                .filter_map(|(name, found)| {
                    Some((name.clone(), found.courier.take()?, Arc::clone(&found.log)))
                })
                .collect()
        };
        couriers
            .into_iter()
            .filter_map(|(name, courier, log)| {
                // A moment more, for its cursor.
                let left = until.saturating_duration_since(Instant::now()) + FINISH;
                // It never says anything: the end is that nobody can.
                let _ = courier.ended.recv_timeout(left);
                let behind = log.status().behind_records;
                (behind > 0).then_some((name, behind))
            })
            .collect()
    }
}

/// A sink is configured no more: says what it has not got.
fn farewell(sink: &str, shipped: u64, records: u64, notebook: &Notebook) {
    let behind = records.saturating_sub(shipped);
    if behind == 0 {
        return;
    }
    tracing::warn!(
        sink,
        behind,
        shipped,
        "this sink is configured no more, and has not got all audit records: under its name it would go on there"
    );
    let noted = notebook.note(Undelivered {
        sink: sink.to_owned(),
        records: (shipped + 1, records),
        why: "it was taken out of the configuration".to_owned(),
    });
    if let Err(error) = noted {
        tracing::error!(sink, %error,
            "the audit ledger could not be told of what a removed sink has not got");
    }
}

/// Whoever opens this ledger next, in this process, is to find the cursors where they should be.
impl Drop for Fleet {
    fn drop(&mut self) {
        for found in locked(&self.running).values() {
            found.order(Order::Stop);
        }
        for found in locked(&self.running).values() {
            if let Some(courier) = &found.courier {
                let _ = courier.ended.recv_timeout(FINISH);
            }
        }
    }
}

/// How long a courier waits for the one before it, which may be held up by a pipe that nobody reads.
const PREDECESSOR: Duration = Duration::from_secs(60);

/// How much longer than it was given a courier may take to keep its cursor.
const FINISH: Duration = Duration::from_millis(500);

impl Running {
    fn order(&self, order: Order) {
        if let Some(courier) = &self.courier {
            courier.order.send_replace(order);
        }
    }
}
