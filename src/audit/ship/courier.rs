//! One sink's thread: reads along in the ledger, and delivers until it is taken.

use std::io;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant, SystemTime};

use rand::Rng;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use tokio::runtime::{Builder, Runtime};
use tokio::sync::watch;

use super::chunk::Chunk;
use super::local::Local;
use super::{Destination, Log, Order, Said, Ship, ShipBegin, cursor};
use crate::audit::event::Labels;
use crate::audit::ledger::{Found, Head, Notebook, Position, Tail, Undelivered};
use crate::clock;

/// How often the cursor is kept while records are shipped.
const KEEP_EVERY: Duration = Duration::from_secs(1);

/// How often is told how far behind it is, whatever happens.
const TELL_EVERY: Duration = Duration::from_secs(1);

/// How often a failure is logged.
const COMPLAIN_EVERY: Duration = Duration::from_secs(60);

/// How many records behind one that is refused are tried, to see whether it is that one's fault.
const WITNESSES: usize = 16;

/// How far behind it witnesses are looked for, in records, when none was found nearer.
const FARTHEST: usize = 1024;

/// How many bytes are read for their sake, at most; but two records in any case.
const WITNESS_BYTES: usize = 4 << 20;

/// How often an answer that may be about us is taken as such, when it is the same each time.
const DOUBTS: u32 = 3;

/// How often such an answer to a record alone must come again, each time with a witness that is taken,
/// before the record is given up: a server of which one half works is not to cost any.
const CONFIRMATIONS: u32 = 3;

/// How long is remembered that deliveries above some size were too large.
const CEILING: Duration = Duration::from_secs(600);

/// How much less these threads count than those of requests, which go first when there is too little
/// time for all.
const NICE: i32 = 5;

/// Why there is no going on for now.
enum Halt {
    /// Told to end.
    Ordered,
    /// Read again from the cursor: a failure of the disk, or too little behind a refused record.
    Anew,
}

pub(super) struct Courier {
    ship: Arc<Ship>,
    log: Arc<Log>,
    ledger: PathBuf,
    head: watch::Receiver<Head>,
    orders: watch::Receiver<Order>,
    notebook: Notebook,
    labels: Labels,
    local: Option<Local>,
    /// Behind the last record that was taken.
    at: Position,
    /// The cursor on the disk, and when it was written.
    kept: Position,
    kept_at: Instant,
    failures: u32,
    complained: Option<Instant>,
    /// When the first request was whose record waits.
    oldest: Option<OffsetDateTime>,
    /// Most records at once: fewer after something in them was refused.
    most: usize,
    /// Most bytes at once, since a larger delivery was too large.
    ceiling: Option<(usize, Instant)>,
    /// How far behind a record that is refused a witness is looked for; 0 when none is needed.
    reach: usize,
    /// An answer that may be about us or a record, and how often it came.
    unclear: Option<(u16, u32)>,
    /// Which ledger is read.
    reads: String,
}

impl Courier {
    pub(super) fn new(
        ship: Arc<Ship>,
        log: Arc<Log>,
        ledger: PathBuf,
        head: watch::Receiver<Head>,
        orders: watch::Receiver<Order>,
        notebook: Notebook,
        labels: Labels,
    ) -> Self {
        let local = match &ship.destination {
            Destination::Stdout => Some(Local::output()),
            Destination::File(path) => Some(Local::file(path.clone())),
            Destination::Http(_) => None,
        };
        Self {
            most: ship.records,
            ship,
            log,
            ledger,
            head,
            orders,
            notebook,
            labels,
            local,
            at: Position::default(),
            kept: Position::default(),
            kept_at: Instant::now(),
            failures: 0,
            complained: None,
            oldest: None,
            ceiling: None,
            reach: 0,
            unclear: None,
            reads: String::new(),
        }
    }

    /// Ships until it is told to end.
    pub(super) fn run(mut self) {
        // Those who wait for an answer go first. Linux counts this for the thread alone.
        let _ = rustix::process::nice(NICE);
        let runtime = match Builder::new_current_thread().enable_all().build() {
            Ok(runtime) => runtime,
            Err(error) => {
                tracing::error!(sink = %self.ship.name, %error, "audit records cannot be shipped");
                return;
            }
        };
        self.begin();
        let mut chunk = Chunk::default();
        while let Err(Halt::Anew) = self.follow(&runtime, &mut chunk) {}
        self.keep();
        match self.order() {
            Order::Leave => self.ship.metrics.ship_gone(&self.ship.name),
            Order::Go | Order::Finish(_) | Order::Stop => self.tell(),
        }
    }

    fn order(&self) -> Order {
        let order = *self.orders.borrow();
        // Whoever gives orders is gone, and with it the ledger.
        match self.orders.has_changed() {
            Err(_) if order == Order::Go => Order::Stop,
            Ok(_) | Err(_) => order,
        }
    }

    /// Whether it is to end now.
    fn over(&self) -> bool {
        match self.order() {
            Order::Go => false,
            Order::Finish(until) => Instant::now() >= until,
            Order::Stop | Order::Leave => true,
        }
    }

    fn begin(&mut self) {
        let found = cursor::read(&cursor::path_of(&self.ledger, &self.ship.name));
        self.kept = found.clone().unwrap_or_default();
        self.at = match (found, self.ship.begin) {
            (Some(position), _) => position,
            (None, ShipBegin::Oldest) => Position::default(),
            (None, ShipBegin::Newest) => {
                let head = self.head.borrow().clone();
                Position::of(&head)
            }
        };
        // What comes from now on is not to be skipped by the next one who begins.
        self.keep();
    }

    /// Reads along from the cursor; ends only with an error.
    fn follow(&mut self, runtime: &Runtime, chunk: &mut Chunk) -> Result<(), Halt> {
        chunk.clear();
        let head = self.head.borrow().clone();
        self.reads.clone_from(&head.id);
        let mut tail = Tail::open(self.ledger.clone(), Some(self.at.clone()), &head);
        self.at = tail.position().clone();
        self.shipped();
        loop {
            let full = self.fill(&mut tail, chunk, runtime)?;
            if chunk.len() == 0 {
                // Lines of the ledger's own need no delivery.
                self.at = tail.position().clone();
                self.shipped();
            }
            self.oldest = chunk.oldest(0);
            self.tell();
            if self.over() {
                return Err(Halt::Ordered);
            }
            let finishing = self.order() != Order::Go;
            let waited = chunk.since.map(|since| since.elapsed());
            if full || waited.is_some_and(|waited| finishing || waited >= self.ship.wait) {
                self.deliver(chunk, runtime)?;
                chunk.clear();
                self.reach = 0;
                continue;
            }
            if finishing {
                return Err(Halt::Ordered);
            }
            if self.kept_at.elapsed() >= KEEP_EVERY {
                self.keep();
            }
            let left = waited.map_or(TELL_EVERY, |waited| self.ship.wait.saturating_sub(waited));
            self.rest(runtime, left.min(TELL_EVERY), chunk.len() == 0);
        }
    }

    /// Waits: for the time, for an order or, if asked, for something new.
    fn rest(&mut self, runtime: &Runtime, length: Duration, news: bool) {
        let (head, orders) = (&mut self.head, &mut self.orders);
        runtime.block_on(async {
            tokio::select! {
                () = tokio::time::sleep(length) => {}
                _ = head.changed(), if news => {}
                _ = orders.changed() => {}
            }
        });
    }

    /// Takes what there is; `true` when there is no room for more.
    fn fill(
        &mut self,
        tail: &mut Tail,
        chunk: &mut Chunk,
        runtime: &Runtime,
    ) -> Result<bool, Halt> {
        let head = self.head.borrow_and_update().clone();
        if head.id != self.reads {
            // The folder was emptied: another ledger was begun. First goes what was read.
            return if chunk.len() > 0 {
                Ok(true)
            } else {
                Err(Halt::Anew)
            };
        }
        while self.has_room(chunk) {
            match tail.next(&head) {
                Ok(Found::Record) => {
                    let position = tail.position().clone();
                    chunk.push(self.ship.format, &self.labels, tail.line(), position);
                }
                Ok(Found::End) => return Ok(false),
                Ok(Found::Missing(count)) => self.missed(count, tail.position()),
                Err(error) => {
                    let said = Said::later("ledger", format!("the ledger cannot be read: {error}"));
                    self.failed(&said, runtime)?;
                    return Err(Halt::Anew);
                }
            }
        }
        Ok(true)
    }

    /// Whether more is read before it is delivered. After a refusal there must be witnesses, whatever
    /// goes at once.
    fn has_room(&self, chunk: &Chunk) -> bool {
        let (records, bytes) = (chunk.len(), chunk.bytes());
        if self.reach == 0 {
            return records < self.ship.records && bytes < self.ship.size;
        }
        let witnesses = records <= self.reach && bytes < WITNESS_BYTES;
        let full = records >= self.ship.records || bytes >= self.ship.size;
        records < 2 || witnesses || !full
    }

    /// Records were removed from the ledger before they were shipped.
    fn missed(&self, count: u64, before: &Position) {
        tracing::error!(sink = %self.ship.name, count, next = before.record + 1,
            "audit records are no longer in the ledger: this sink will not get them");
        self.ship
            .metrics
            .ship_lost(&self.ship.name, "removed", count);
        self.log.status().lost += count;
    }

    /// Delivers all of it, however long that takes.
    fn deliver(&mut self, chunk: &Chunk, runtime: &Runtime) -> Result<(), Halt> {
        let mut done = 0;
        while done < chunk.len() {
            let until = self.together(chunk, done);
            let (taken, said) = self.offer(chunk, &(done..until), runtime)?;
            done = taken;
            match self.judged(said) {
                Said::Taken => {
                    self.most = self.most.saturating_mul(2).min(self.ship.records);
                    if self.most == self.ship.records {
                        self.unclear = None;
                    }
                }
                Said::TooLarge if until - done > 1 => {
                    let bytes = chunk.lines(&(done..until)).len();
                    self.ceiling = Some((bytes / 2, Instant::now()));
                    self.narrowed(until - done, 413);
                }
                Said::Refused(status) if until - done > 1 => {
                    self.most = (until - done) / 2;
                    self.narrowed(until - done, status);
                }
                Said::TooLarge => done = self.suspect(chunk, done, 413, runtime)?,
                Said::Refused(status) => done = self.suspect(chunk, done, status, runtime)?,
                said @ (Said::Unclear { .. } | Said::Later { .. }) => {
                    self.failed(&said, runtime)?;
                }
            }
            self.oldest = chunk.oldest(done);
            self.tell();
            if self.kept_at.elapsed() >= KEEP_EVERY {
                self.keep();
            }
        }
        Ok(())
    }

    fn together(&mut self, chunk: &Chunk, from: usize) -> usize {
        self.ceiling = self.ceiling.filter(|(_, since)| since.elapsed() < CEILING);
        let mut bytes = self.ceiling.map_or(usize::MAX, |(bytes, _)| bytes);
        if self.reach > 0 {
            // More was read than goes at once.
            bytes = bytes.min(self.ship.size);
        }
        chunk.fitting(from, self.most, bytes)
    }

    /// What an answer means that may be about us, or about a record: it is about us until it came often.
    /// Then it is looked for the record, which costs none if there is no such.
    fn judged(&mut self, said: Said) -> Said {
        let Said::Unclear { status, after } = said else {
            return said;
        };
        let before = self.unclear.filter(|(before, _)| *before == status);
        let times = before.map_or(0, |(_, times)| times).saturating_add(1);
        self.unclear = Some((status, times));
        if times > DOUBTS {
            return Said::Refused(status);
        }
        Said::Later {
            kind: "status",
            why: format!("the server answered with status {status}"),
            after,
        }
    }

    fn narrowed(&self, records: usize, status: u16) {
        tracing::debug!(sink = %self.ship.name, records, status,
            "fewer audit records are shipped at once");
    }

    /// One try. Gives how far the sink got, which can be part of the way, and what it said.
    fn offer(
        &mut self,
        chunk: &Chunk,
        records: &Range<usize>,
        runtime: &Runtime,
    ) -> Result<(usize, Said), Halt> {
        let lines = chunk.lines(records);
        let (taken, said, bytes) = if let Some(local) = &mut self.local {
            let (taken, written) = local.append(lines);
            let said = match written {
                Ok(()) => Said::Taken,
                Err(error) => Said::later("write", error.to_string()),
            };
            (records.start + taken, said, lines.len())
        } else if let Destination::Http(server) = &self.ship.destination {
            let orders = &mut self.orders;
            let answer = runtime.block_on(async {
                tokio::select! {
                    answer = server.post(chunk, records) => Some(answer),
                    () = ended(orders) => None,
                }
            });
            let Some((said, bytes)) = answer else {
                return Err(Halt::Ordered);
            };
            let taken = if matches!(said, Said::Taken) {
                records.end
            } else {
                records.start
            };
            (taken, said, bytes)
        } else {
            return Err(Halt::Ordered);
        };
        if taken > records.start {
            self.took(chunk, taken, taken - records.start, bytes);
        }
        Ok((taken, said))
    }

    fn took(&mut self, chunk: &Chunk, until: usize, records: usize, bytes: usize) {
        if let Some(position) = until.checked_sub(1).and_then(|last| chunk.position(last)) {
            self.at = position.clone();
        }
        self.shipped();
        if self.failures > 0 {
            self.failures = 0;
            if self.complained.take().is_some() {
                tracing::info!(sink = %self.ship.name, "audit records are shipped again");
            }
            let mut status = self.log.status();
            (status.failures, status.error) = (0, None);
        }
        let (records, bytes) = (count(records), count(bytes));
        self.ship
            .metrics
            .ship_taken(&self.ship.name, records, bytes);
    }

    fn shipped(&self) {
        self.log.shipped.store(self.at.record, Ordering::Relaxed);
        self.log.status().shipped = self.at.record;
    }

    /// A record that was refused alone. It is given up when one behind it is taken, for then it is the
    /// record's fault; otherwise it may be the sink's, which must not cost a single one.
    fn suspect(
        &mut self,
        chunk: &Chunk,
        at: usize,
        status: u16,
        runtime: &Runtime,
    ) -> Result<usize, Halt> {
        for witness in witnesses(at, chunk.len(), self.reach) {
            match self.ahead(chunk, witness, runtime)? {
                Said::Taken => match self.decided(chunk, (at, witness), status, runtime)? {
                    Some(next) => return Ok(next),
                    None => break,
                },
                Said::TooLarge | Said::Refused(_) | Said::Unclear { .. } => {}
                Said::Later { .. } => break,
            }
        }
        // The next time, farther: or, when so many were not there, as far again.
        let reach = self.reach.max(WITNESSES);
        let tried = chunk.len() > at + reach;
        self.reach = if tried { reach * 2 } else { reach }.min(FARTHEST);
        let why = format!(
            "the server answered with status {status} to a record alone, and has not taken one behind it"
        );
        self.failed(&Said::later("status", why), runtime)?;
        Err(Halt::Anew)
    }

    /// Offers a record before it is its turn. The sink does not get farther by that.
    fn ahead(&mut self, chunk: &Chunk, record: usize, runtime: &Runtime) -> Result<Said, Halt> {
        let before = self.at.clone();
        let offered = self.offer(chunk, &(record..record + 1), runtime);
        self.at = before;
        self.shipped();
        offered.map(|(_, said)| said)
    }

    /// What becomes of a record that was refused alone, now that a witness was taken: gives with which
    /// one it goes on, and nothing when that cannot be told.
    fn decided(
        &mut self,
        chunk: &Chunk,
        (at, witness): (usize, usize),
        status: u16,
        runtime: &Runtime,
    ) -> Result<Option<usize>, Halt> {
        let clear = matches!(status, 400 | 413 | 422);
        for _ in 0..if clear { 0 } else { CONFIRMATIONS } {
            let (taken, said) = self.offer(chunk, &(at..at + 1), runtime)?;
            match said {
                Said::Taken => return Ok(Some(taken)),
                Said::TooLarge | Said::Refused(_) | Said::Unclear { .. } => {}
                Said::Later { .. } => return Ok(None),
            }
            if !matches!(self.ahead(chunk, witness, runtime)?, Said::Taken) {
                return Ok(None);
            }
        }
        // Those between are tried on their own.
        let next = if witness == at + 1 { witness } else { at } + 1;
        self.give_up(chunk, at, status);
        if let Some(position) = chunk.position(next - 1) {
            self.at = position.clone();
        }
        self.shipped();
        Ok(Some(next))
    }

    fn give_up(&self, chunk: &Chunk, at: usize, status: u16) {
        let record = chunk.position(at).map_or(0, |position| position.record);
        let line = chunk.lines(&(at..at + 1));
        let id = member(line, b"\"request_id\":\"").or_else(|| member(line, b"\"decision_id\":\""));
        let id = id.unwrap_or("-");
        let why = format!("it answered with status {status} to this one alone");
        tracing::error!(sink = %self.ship.name, record, id, status,
            "an audit record is not taken by this sink: it is given up");
        let noted = self.notebook.note(Undelivered {
            sink: self.ship.name.to_string(),
            records: (record, record),
            why,
        });
        if let Err(error) = noted {
            tracing::error!(sink = %self.ship.name, record, %error,
                "the audit ledger could not be told of a record that was given up");
        }
        self.ship.metrics.ship_lost(&self.ship.name, "refused", 1);
        self.log.status().lost += 1;
    }

    /// Tells of a failure, and waits.
    fn failed(&mut self, said: &Said, runtime: &Runtime) -> Result<(), Halt> {
        let Said::Later { kind, why, after } = said else {
            return Ok(());
        };
        self.failures = self.failures.saturating_add(1);
        self.ship.metrics.ship_failed(&self.ship.name, kind);
        let behind = {
            let mut status = self.log.status();
            status.failures = self.failures.into();
            status.error = Some(why.clone());
            status.behind_records
        };
        let due = |at: Instant| at.elapsed() >= COMPLAIN_EVERY;
        if self.complained.is_none_or(due) {
            self.complained = Some(Instant::now());
            tracing::warn!(sink = %self.ship.name, why, behind,
                "audit records are not shipped; they stay in the ledger, and it is tried again");
        }
        let until = Instant::now() + self.pause(*after);
        loop {
            // A sink that fails is not waited for at the end.
            if self.order() != Order::Go {
                return Err(Halt::Ordered);
            }
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(());
            }
            self.tell();
            self.rest(runtime, left.min(TELL_EVERY), false);
        }
    }

    /// Between half and all of a time that doubles, and not less than the server wishes.
    fn pause(&self, wish: Option<Duration>) -> Duration {
        let (first, longest) = self.ship.delays;
        let doublings = self.failures.saturating_sub(1).min(16);
        let pause = first.saturating_mul(1 << doublings).min(longest);
        let pause = pause.mul_f64(rand::rng().random_range(0.5..=1.0));
        pause.max(wish.unwrap_or_default().min(longest))
    }

    /// Keeps the cursor. What it says must be where it says before it says so.
    fn keep(&mut self) {
        self.kept_at = Instant::now();
        if self.at == self.kept {
            return;
        }
        let synced = self.local.as_ref().map_or(Ok(()), Local::sync);
        let kept = synced.and_then(|()| {
            cursor::write(&cursor::path_of(&self.ledger, &self.ship.name), &self.at)
        });
        match kept {
            Ok(()) => self.kept = self.at.clone(),
            Err(error) => self.unkept(&error),
        }
    }

    fn unkept(&mut self, error: &io::Error) {
        let due = |at: Instant| at.elapsed() >= COMPLAIN_EVERY;
        if self.complained.is_none_or(due) {
            self.complained = Some(Instant::now());
            tracing::error!(sink = %self.ship.name, %error,
                "how far audit records were shipped cannot be kept: a restart would ship some once more");
        }
    }

    /// Tells how far behind it is.
    fn tell(&self) {
        let head = self.head.borrow().records;
        let behind = head.saturating_sub(self.at.record);
        let age = self.oldest.filter(|_| behind > 0).map(|oldest| {
            let age = clock::now().duration_since(SystemTime::from(oldest));
            age.unwrap_or_default().as_secs()
        });
        let seconds = age.unwrap_or_default();
        let mut status = self.log.status();
        (status.behind_records, status.behind_seconds) = (behind, seconds);
        drop(status);
        self.ship
            .metrics
            .ship_behind(&self.ship.name, behind, seconds);
    }
}

/// Which records behind this one are tried, of so many: the next ones, and some by chance as far as this.
fn witnesses(at: usize, records: usize, reach: usize) -> impl Iterator<Item = usize> {
    let farther = std::iter::successors(Some(WITNESSES), |near| Some(near * 2))
        .take_while(move |near| *near < reach)
        .map(|near| rand::rng().random_range(near + 1..=near * 2));
    (1..=WITNESSES)
        .chain(farther)
        .map(move |distance| at + distance)
        .filter(move |witness| *witness < records)
}

/// Waits for the order to end.
async fn ended(orders: &mut watch::Receiver<Order>) {
    loop {
        let order = *orders.borrow_and_update();
        match order {
            Order::Stop | Order::Leave => return,
            Order::Finish(until) => tokio::time::sleep_until(until.into()).await,
            Order::Go => {
                if orders.changed().await.is_err() {
                    return;
                }
                continue;
            }
        }
        return;
    }
}

impl Chunk {
    /// When the request was whose record is this one.
    fn oldest(&self, from: usize) -> Option<OffsetDateTime> {
        if from >= self.len() {
            return None;
        }
        let line = self.lines(&(from..from + 1));
        let time = member(line, b"\"time\":\"").or_else(|| member(line, b"\"timestamp\":\""))?;
        OffsetDateTime::parse(time, &Rfc3339).ok()
    }
}

/// The text of a member near the beginning of a record, for people: without reading all of it.
fn member<'l>(line: &'l [u8], name: &[u8]) -> Option<&'l str> {
    let near = line.get(..line.len().min(512))?;
    let begin = memchr::memmem::find(near, name)? + name.len();
    let rest = near.get(begin..)?;
    let end = memchr::memchr(b'"', rest)?;
    str::from_utf8(rest.get(..end)?).ok()
}

fn count(count: usize) -> u64 {
    u64::try_from(count).unwrap_or(u64::MAX)
}
