//! Revocations that all replicas have within a second, through Redis or Valkey.
//!
//! Each replica has everything in its own memory: the server is a post office, not the place where
//! requests look. While it is away, what is known stays in force, and the feed counts as silent.
//!
//! # What is kept there
//!
//! | key | type | holds |
//! | --- | --- | --- |
//! | `PREFIX:entries` | sorted set | every entry that has not ended, ordered by its end; and one mark, `generation …` |
//! | `PREFIX:lifts` | hash | what was lifted, so that a replica that was away does not bring it back |
//! | `PREFIX:changes` | stream | the last 10,000 changes or so, in the order in which they were made |
//!
//! An entry is a JSON object that says what is revoked, up to when it was issued, and until when the
//! entry holds; all replicas write the same bytes for the same entry, so nothing is there twice.
//! Set and stream are written in one transaction. Entries whose end has passed are removed by whoever
//! looks next, once a minute.
//!
//! # How it is read
//!
//! A replica asks ten times a second for what stands in the stream behind the last change that it has
//! read. In the same breath it asks whether that change and the mark are still there. If not, the
//! server has lost something (restarted empty, flushed, evicted, failed over to a copy that was
//! behind) or the replica was away for too long: then it reads the whole set, and writes back whatever
//! it holds and the set does not. So a revocation is lost only when every replica that held it is.
//!
//! What a replica can write back is what it can list: with `store` everything it was ever told, without
//! the latest 40,000 entries or so.
//!
//! Let the server evict nothing (`maxmemory-policy noeviction`): what it evicts is noticed and written
//! back, again and again.
//!
//! Whoever may write there may revoke and lift: give the server a password, and TLS where others could
//! listen or meddle.
//!
//! A server that lost its memory has also forgotten what was lifted: an entry that one replica lifted
//! while another was out of reach may then come back. It is never the other way round.

mod entry;
mod link;

use std::collections::{HashMap, VecDeque};
use std::io;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use rand::Rng;
use redis::{Cmd, Pipeline, RedisConnectionInfo, Value, cmd, pipe};
use rustls_pki_types::ServerName;
use tokio::runtime::Handle;
use tokio::sync::mpsc::Receiver;
use tokio::task::{AbortHandle, spawn_blocking};
use tokio::time::{Instant, sleep};

use self::entry::{Entry, Lifted, SOURCE, digest, split};
use self::link::{Dial, Link, LinkError, list, text};
use super::config::RedisConfig;
use crate::clock;
use crate::metrics::Metrics;
use crate::revocation::relay::{Held, Relay, Told};
use crate::revocation::{Change, Feed, NotTaken, Plane};
use crate::schema::{Compile, Secret, Span};

/// The pause between two looks into the stream.
const PACE: Duration = Duration::from_millis(100);

/// The first pause after a failure; it doubles with each further one.
const FIRST_PAUSE: Duration = Duration::from_millis(100);

/// The longest pause after failures.
const LONGEST_PAUSE: Duration = Duration::from_secs(2);

/// How often entries that have ended are removed.
const SWEEP: Duration = Duration::from_secs(60);

/// The most entries or changes in one command.
const BATCH: usize = 500;

/// How many changes the stream keeps, or a few more.
const KEPT_CHANGES: usize = 10_000;

/// The most lifts that are remembered.
const MAX_LIFTS: usize = 100_000;

/// How often the list of what is held is begun anew because it was replaced under our hands.
const MAX_TRIES: usize = 8;

/// How long a lift is remembered of which the set held nothing.
const LIFT_MEMORY: u64 = 30 * 86_400;

/// What the mark in the set begins with.
const MARK: &str = "generation ";

/// One replica's part in the exchange.
pub(super) struct Replica {
    config: RedisConfig,
    password: Option<Secret>,
    feed: Arc<Feed>,
    office: Arc<Office>,
    relay: Arc<Relay>,
    /// The other end of the relay, until the task takes it.
    told: Mutex<Option<Receiver<Told>>>,
    task: Mutex<Option<AbortHandle>>,
}

impl std::fmt::Debug for Replica {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Replica")
            .field("config", &self.config)
            .finish_non_exhaustive()
    }
}

/// The server and the names of the keys.
struct Office {
    dial: Dial,
    entries: String,
    lifts: String,
    changes: String,
    feed: Arc<Feed>,
    metrics: Arc<Metrics>,
}

/// How far a replica has read.
#[derive(Debug, Clone)]
struct Place {
    /// The last change that was read.
    change: String,
    /// The mark that was in the set then.
    mark: String,
}

/// What outlives a connection.
struct Progress {
    told: Receiver<Told>,
    relay: Arc<Relay>,
    /// Taken from the relay, and not in Redis yet.
    unsent: VecDeque<Told>,
    place: Option<Place>,
    swept: Option<Instant>,
}

/// Why a connection is left.
enum End {
    /// The plane is gone.
    Over,
    Failed(LinkError),
}

impl<E: Into<LinkError>> From<E> for End {
    fn from(error: E) -> Self {
        Self::Failed(error.into())
    }
}

impl RedisConfig {
    /// Compiles the section; takes over the connection of `previous` when nothing changed.
    pub(super) fn compile(
        &self,
        previous: Option<&Arc<Replica>>,
        cx: &mut Compile,
    ) -> Option<Arc<Replica>> {
        let errors = cx.errors();
        let (least, most) = (Span::millis(50), Span::seconds(30));
        if !(least..=most).contains(&self.timeout) {
            cx.at("timeout", |cx| {
                cx.problem_help("it is not within 50ms to 30s", "2s is the default");
            });
        }
        if self.stale_after < Span::seconds(1) {
            cx.at("stale_after", |cx| {
                cx.problem_help("it is shorter than 1s", "10s is the default");
            });
        }
        if self.prefix.is_empty()
            || self.prefix.len() > 128
            || !self.prefix.bytes().all(|b| b.is_ascii_graphic())
        {
            cx.at("prefix", |cx| {
                cx.problem_help(
                    "it is empty, longer than 128 bytes, or not printable ASCII",
                    "`portcullis:revocation` is the default",
                );
            });
        }
        let password = match &self.password {
            None => None,
            Some(reference) => {
                let password = cx.at("password", |cx| cx.secret(reference))?;
                if std::str::from_utf8(password.expose()).is_err() {
                    cx.at("password", |cx| cx.problem("the password is not text"));
                }
                Some(password)
            }
        };
        let dial = self.dial(password.as_ref(), cx);
        if cx.errors() > errors {
            return None;
        }
        if let Some(previous) = previous
            && previous.config == *self
            && previous.password.as_ref().map(Secret::expose)
                == password.as_ref().map(Secret::expose)
            // Certificates may have changed in their files.
            && previous.office.dial.tls.is_none()
        {
            return Some(Arc::clone(previous));
        }
        let before = previous.map(|previous| &*previous.feed);
        let feed = Feed::new(SOURCE, Some(self.stale_after.get()), before);
        let (relay, told) = Relay::new();
        Some(Arc::new(Replica {
            office: Arc::new(Office {
                dial: dial?,
                entries: format!("{}:entries", self.prefix),
                lifts: format!("{}:lifts", self.prefix),
                changes: format!("{}:changes", self.prefix),
                feed: Arc::clone(&feed),
                metrics: Arc::clone(&cx.metrics),
            }),
            config: self.clone(),
            password,
            feed,
            relay: Arc::new(relay),
            told: Mutex::new(Some(told)),
            task: Mutex::new(None),
        }))
    }

    fn dial(&self, password: Option<&Secret>, cx: &mut Compile) -> Option<Dial> {
        let (secure, host, port, database) = cx.at("url", |cx| {
            let read = read_url(&self.url);
            if read.is_none() {
                cx.problem_help(
                    "it is not `redis://host:port/database` or `rediss://…`",
                    "credentials stand in `username` and `password`",
                );
            }
            read
        })?;
        if self.username.is_some() && password.is_none() {
            cx.at("username", |cx| {
                cx.problem_help("there is no password for it", "add `password: env:NAME`");
            });
        }
        let bare = host.trim_start_matches('[').trim_end_matches(']');
        let tls = if secure {
            let config = cx.at("tls", |cx| self.tls.compile(&[], cx))?;
            let name = self.tls.server_name.as_deref().unwrap_or(bare);
            let name = ServerName::try_from(name.to_owned()).ok();
            if name.is_none() {
                cx.at("url", |cx| {
                    cx.problem("its host is no name that a certificate can bear")
                });
            }
            Some((config, name?))
        } else {
            if self.tls != Default::default() {
                cx.at("tls", |cx| {
                    cx.problem_help("the url is not encrypted", "write `rediss://`");
                });
            }
            None
        };
        let mut info = RedisConnectionInfo::default().set_db(database);
        if let Some(username) = &self.username {
            info = info.set_username(username);
        }
        if let Some(password) = password {
            info = info.set_password(String::from_utf8_lossy(password.expose()));
        }
        Some(Dial {
            host: bare.to_owned(),
            port,
            tls,
            info,
            timeout: self.timeout.get(),
        })
    }
}

/// The whole seconds of an answer to `TIME`.
fn seconds_of(answer: &Value) -> Result<u64, LinkError> {
    let seconds = list(answer)?.first().and_then(text);
    seconds
        .and_then(|seconds| seconds.parse().ok())
        .ok_or(LinkError::Form)
}

/// Whether it is encrypted, the host, the port, the database.
fn read_url(url: &str) -> Option<(bool, String, u16, i64)> {
    let uri: http::Uri = url.parse().ok()?;
    let secure = match uri.scheme_str()? {
        "redis" => false,
        "rediss" => true,
        _ => return None,
    };
    let authority = uri.authority().filter(|all| !all.as_str().contains('@'))?;
    let database = match uri.path().trim_start_matches('/') {
        "" => 0,
        digits => digits.parse::<u16>().ok()?.into(),
    };
    let host = authority.host();
    let plain = uri.query().is_none() && !host.is_empty();
    plain.then(|| {
        let port = authority.port_u16().unwrap_or(6379);
        (secure, host.to_owned(), port, database)
    })
}

impl Replica {
    pub(super) fn feed(&self) -> &Arc<Feed> {
        &self.feed
    }

    /// Starts the exchange, once.
    pub(super) fn activate(&self, plane: &Arc<Plane>, control: &Handle) {
        let told = self
            .told
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        let Some(told) = told else {
            return;
        };
        plane.relay_to(&self.relay);
        let progress = Progress {
            told,
            relay: Arc::clone(&self.relay),
            unsent: VecDeque::new(),
            place: None,
            swept: None,
        };
        let task = control.spawn(exchange(
            Arc::clone(&self.office),
            Arc::downgrade(plane),
            progress,
        ));
        *self.task.lock().unwrap_or_else(PoisonError::into_inner) = Some(task.abort_handle());
    }
}

impl Drop for Replica {
    /// What was not told yet is in the plane: whoever comes next compares all of it.
    fn drop(&mut self) {
        let task = self.task.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(task) = &*task {
            task.abort();
        }
    }
}

async fn exchange(office: Arc<Office>, plane: Weak<Plane>, mut progress: Progress) {
    let mut pause = FIRST_PAUSE;
    let mut complained = false;
    loop {
        let end = match office.dial.link().await {
            Ok(mut link) => {
                let begun = Instant::now();
                let end = office.follow(&mut link, &plane, &mut progress).await;
                if begun.elapsed() > LONGEST_PAUSE {
                    pause = FIRST_PAUSE;
                    complained = false;
                }
                end
            }
            Err(error) => End::Failed(error),
        };
        let End::Failed(error) = end else {
            return;
        };
        if plane.strong_count() == 0 {
            return;
        }
        if !complained {
            complained = true;
            let (host, port) = (&office.dial.host, office.dial.port);
            tracing::warn!(host, port, %error, "revocations cannot be shared with other replicas");
        }
        office.feed.failed(error.to_string());
        office.metrics.revocation_event(SOURCE, "failed");
        // Not all replicas at once.
        let rest = rand::rng().random_range(pause / 2..=pause);
        sleep(rest).await;
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}

impl Office {
    /// Tells and listens until the connection fails.
    async fn follow(&self, link: &mut Link, plane: &Weak<Plane>, progress: &mut Progress) -> End {
        loop {
            let Some(plane) = plane.upgrade() else {
                return End::Over;
            };
            if let Err(end) = self.turn(link, &plane, progress).await {
                return end;
            }
            drop(plane);
            // What is revoked here goes out at once.
            tokio::select! {
                told = progress.told.recv() => match told {
                    Some(told) => progress.unsent.push_back(told),
                    None => return End::Over,
                },
                () = sleep(PACE) => {}
            }
        }
    }

    /// One look: what is new here goes there, what is new there comes here.
    async fn turn(
        &self,
        link: &mut Link,
        plane: &Arc<Plane>,
        progress: &mut Progress,
    ) -> Result<(), End> {
        if progress.relay.take_missed() {
            progress.place = None;
        }
        if progress.swept.is_none_or(|at| at.elapsed() >= SWEEP) {
            self.sweep(link).await?;
            progress.swept = Some(Instant::now());
        }
        while let Some(place) = progress.place.clone() {
            self.publish(link, progress).await?;
            match self.look(link, plane, &place).await? {
                // All of it was read, as far as it was there when we asked.
                Some((place, read)) => {
                    progress.place = Some(place);
                    if read < BATCH {
                        self.feed.heard(clock::now());
                        return Ok(());
                    }
                }
                None => progress.place = None,
            }
        }
        let place = self.compare(link, plane).await?;
        progress.place = Some(place);
        self.feed.heard(clock::now());
        Ok(())
    }

    /// Sends what waits.
    async fn publish(&self, link: &mut Link, progress: &mut Progress) -> Result<(), End> {
        loop {
            while progress.unsent.len() < BATCH {
                match progress.told.try_recv() {
                    Ok(told) => progress.unsent.push_back(told),
                    Err(_) => break,
                }
            }
            let Some(first) = progress.unsent.front() else {
                return Ok(());
            };
            let sent = match first {
                Told::Revoked(_) => {
                    let revoked: Vec<Entry> = progress
                        .unsent
                        .iter()
                        .map_while(|told| match told {
                            Told::Revoked(held) => Some(Entry::of(held)),
                            Told::Lifted(..) => None,
                        })
                        .take(BATCH)
                        .collect();
                    self.add(link, &revoked).await?;
                    revoked.len()
                }
                Told::Lifted(lift, at) => {
                    self.lift(link, Lifted::of(lift, *at)).await?;
                    1
                }
            };
            // Only now: what was not answered is sent again, and is there once.
            progress.unsent.drain(..sent);
        }
    }

    /// Adds entries to the set and to the stream.
    async fn add(&self, link: &mut Link, revoked: &[Entry]) -> Result<(), LinkError> {
        let mut all = pipe();
        all.atomic();
        for entry in revoked {
            let (Some(member), Some(text)) = (entry.member(), entry.text()) else {
                continue;
            };
            let about = member.split(' ').next().unwrap_or_default();
            all.cmd("ZADD")
                .arg(&self.entries)
                .arg(entry.score())
                .arg(&member);
            all.cmd("HDEL").arg(&self.lifts).arg(about);
            self.announce(&mut all, "revoke", &text);
        }
        link.run_all(&all).await.map(drop)
    }

    /// Takes everything about a target out of the set.
    async fn lift(&self, link: &mut Link, mut lifted: Lifted) -> Result<(), LinkError> {
        let about = lifted.digest();
        let mut gone = Vec::new();
        let mut until = Some(lifted.at + LIFT_MEMORY);
        self.scan(
            "ZSCAN",
            &self.entries,
            Some(&format!("{about} *")),
            link,
            |member, score| {
                // As long as the longest of what it lifts.
                until = until.and_then(|until| Some(until.max(score.parse::<u64>().ok()?)));
                gone.push(member.to_owned());
            },
        )
        .await?;
        lifted.until = until;
        let Some(text) = lifted.text() else {
            return Ok(());
        };
        let mut all = pipe();
        all.atomic();
        for member in &gone {
            all.cmd("ZREM").arg(&self.entries).arg(member);
        }
        all.cmd("HSET").arg(&self.lifts).arg(&about).arg(&text);
        self.announce(&mut all, "lift", &text);
        link.run_all(&all).await.map(drop)
    }

    fn announce(&self, all: &mut Pipeline, kind: &str, text: &str) {
        all.cmd("XADD")
            .arg(&self.changes)
            .arg("MAXLEN")
            .arg("~")
            .arg(KEPT_CHANGES)
            .arg("*")
            .arg(kind)
            .arg(text);
    }

    /// Reads what stands behind a place, and how much that was; `None` when the place is gone.
    async fn look(
        &self,
        link: &mut Link,
        plane: &Plane,
        place: &Place,
    ) -> Result<Option<(Place, usize)>, End> {
        let mut all = pipe();
        all.cmd("XRANGE")
            .arg(&self.changes)
            .arg(&place.change)
            .arg(&place.change);
        all.cmd("ZSCORE").arg(&self.entries).arg(&place.mark);
        all.cmd("XREAD")
            .arg("COUNT")
            .arg(BATCH)
            .arg("STREAMS")
            .arg(&self.changes)
            .arg(&place.change);
        let answers = link.run_all(&all).await?;
        let [here, mark, read] = answers.as_slice() else {
            return Err(LinkError::Form.into());
        };
        if list(here)?.is_empty() || *mark == Value::Nil {
            return Ok(None);
        }
        let mut last = place.change.clone();
        let mut changes = Vec::new();
        let read = match list(read)? {
            [] => &[],
            [stream] => match list(stream)? {
                [_, read] => list(read)?,
                _ => return Err(LinkError::Form.into()),
            },
            _ => return Err(LinkError::Form.into()),
        };
        for change in read {
            let [id, fields] = list(change)? else {
                return Err(LinkError::Form.into());
            };
            last = text(id).ok_or(LinkError::Form)?.to_owned();
            if let [kind, told] = list(fields)?
                && let (Some(kind), Some(told)) = (text(kind), text(told))
            {
                changes.extend(self.read(kind, told));
            }
        }
        self.take(plane, changes).await?;
        let place = Place {
            change: last,
            mark: place.mark.clone(),
        };
        Ok(Some((place, read.len())))
    }

    fn read(&self, kind: &str, told: &str) -> Option<Change> {
        let change = match kind {
            "revoke" => Entry::parse(told).map(Entry::change),
            "lift" => Lifted::parse(told).map(Lifted::change),
            // The first of a new stream.
            "begin" => return None,
            _ => None,
        };
        if change.is_none() {
            self.metrics.revocation_event(SOURCE, "not_understood");
        }
        change
    }

    /// Puts changes in force here. Fails when there is no room: then the feed is not up to date, and
    /// they are tried again.
    async fn take(&self, plane: &Plane, changes: Vec<Change>) -> Result<(), LinkError> {
        let mut full = false;
        if changes.is_empty() {
            return Ok(());
        }
        for result in plane.apply(changes, clock::now()).kept().await {
            match result {
                Ok(true) => self.metrics.revocation_event(SOURCE, "accepted"),
                // Our own, mostly.
                Ok(false) | Err(NotTaken::Past) => {}
                Err(NotTaken::Nothing) => self.metrics.revocation_event(SOURCE, "not_understood"),
                // In force, and told here again after a restart.
                Err(NotTaken::Store) => self.metrics.revocation_event(SOURCE, "failed"),
                Err(NotTaken::Full) => {
                    full = true;
                    self.metrics.revocation_event(SOURCE, "failed");
                }
            }
        }
        if full { Err(LinkError::Full) } else { Ok(()) }
    }

    /// Reads everything, and writes back what is missing there.
    async fn compare(&self, link: &mut Link, plane: &Arc<Plane>) -> Result<Place, End> {
        // The place first: what is added while we read stands behind it.
        let change = self.last_change(link).await?;
        let mut lifts = HashMap::new();
        self.scan("HSCAN", &self.lifts, None, link, |about, text| {
            if let Some(lifted) = Lifted::parse(text)
                && lifts.len() < MAX_LIFTS
            {
                lifts.insert(about.to_owned(), lifted.at);
            }
        })
        .await?;
        let mut mark: Option<String> = None;
        let mut cursor = "0".to_owned();
        loop {
            let mut page = Vec::new();
            cursor = self
                .page("ZSCAN", &self.entries, None, &cursor, link, |member, _| {
                    if member.starts_with(MARK) {
                        // Two may have been put there at once; the same one is chosen by all.
                        if mark.as_deref().is_none_or(|mark| member < mark) {
                            mark = Some(member.to_owned());
                        }
                    } else if let Some((about, entry)) = split(member)
                        && !lifts.contains_key(about)
                    {
                        page.push(entry.change());
                    }
                })
                .await?;
            self.take(plane, page).await?;
            if cursor == "0" {
                break;
            }
        }
        let mut after = None;
        let mut tries = 0;
        loop {
            // It may be read from a disk.
            let reader = Arc::clone(plane);
            let read = spawn_blocking(move || reader.held(after, BATCH, clock::now())).await;
            let (held, next) = match read.unwrap_or_else(|error| Err(io::Error::other(error))) {
                Ok(page) => page,
                // It was written anew meanwhile.
                Err(error) if error.kind() == io::ErrorKind::NotFound && tries < MAX_TRIES => {
                    tries += 1;
                    after = None;
                    continue;
                }
                Err(error) => return Err(LinkError::Held(error).into()),
            };
            self.write_back(link, plane, held, &lifts).await?;
            if next.is_none() {
                break;
            }
            after = next;
        }
        let mark = match mark {
            Some(mark) => mark,
            None => {
                let mark = format!("{MARK}{:032x}", rand::random::<u128>());
                let mut add = cmd("ZADD");
                add.arg(&self.entries).arg("+inf").arg(&mark);
                link.run(&add).await?;
                mark
            }
        };
        Ok(Place { change, mark })
    }

    /// The last change of the stream; begins one if there is none.
    async fn last_change(&self, link: &mut Link) -> Result<String, LinkError> {
        let mut last = cmd("XREVRANGE");
        last.arg(&self.changes)
            .arg("+")
            .arg("-")
            .arg("COUNT")
            .arg(1);
        let last = link.run(&last).await?;
        if let [change] = list(&last)? {
            let id = list(change)?.first().and_then(text);
            return id.map(str::to_owned).ok_or(LinkError::Form);
        }
        let mut begin = cmd("XADD");
        begin.arg(&self.changes).arg("*").arg("begin").arg("1");
        let id = link.run(&begin).await?;
        text(&id).map(str::to_owned).ok_or(LinkError::Form)
    }

    /// Adds those of our entries that are not there, unless they were lifted meanwhile.
    async fn write_back(
        &self,
        link: &mut Link,
        plane: &Plane,
        held: Vec<Held>,
        lifts: &HashMap<String, u64>,
    ) -> Result<(), LinkError> {
        let mut ours = Vec::new();
        let mut lifted = Vec::new();
        for held in held {
            match lifts.get(&digest(&held.target)) {
                Some(at) if held.at <= *at => lifted.push(Change::Lift(crate::revocation::Lift {
                    target: held.target,
                    source: SOURCE.into(),
                    reason: Some("lifted while this replica was away".to_owned()),
                })),
                Some(_) | None => {
                    ours.extend(Entry::of(&held).member().map(|m| (m, Entry::of(&held))))
                }
            }
        }
        self.take(plane, lifted).await?;
        if ours.is_empty() {
            return Ok(());
        }
        let mut all = pipe();
        for (member, _) in &ours {
            all.cmd("ZSCORE").arg(&self.entries).arg(member);
        }
        let there = link.run_all(&all).await?;
        let missing: Vec<Entry> = ours
            .into_iter()
            .zip(there)
            .filter(|(_, score)| *score == Value::Nil)
            .map(|((_, entry), _)| entry)
            .collect();
        if missing.is_empty() {
            return Ok(());
        }
        tracing::info!(
            entries = missing.len(),
            "revocations that the server did not have are told again"
        );
        self.add(link, &missing).await
    }

    /// Removes what has ended.
    async fn sweep(&self, link: &mut Link) -> Result<(), LinkError> {
        // The earlier of two clocks: one that is ahead must not empty what all replicas share.
        let now = clock::unix_seconds(clock::now());
        let now = now.min(seconds_of(&link.run(&cmd("TIME")).await?)?);
        let mut sweep = cmd("ZREMRANGEBYSCORE");
        sweep.arg(&self.entries).arg("-inf").arg(now);
        link.run(&sweep).await?;
        let mut void = Vec::new();
        self.scan("HSCAN", &self.lifts, None, link, |about, text| {
            if Lifted::parse(text).is_none_or(|lifted| lifted.is_void(now)) && void.len() < BATCH {
                void.push(about.to_owned());
            }
        })
        .await?;
        if void.is_empty() {
            return Ok(());
        }
        let mut forget = cmd("HDEL");
        forget.arg(&self.lifts).arg(void);
        link.run(&forget).await.map(drop)
    }

    /// Reads all of a set or hash.
    async fn scan(
        &self,
        command: &str,
        key: &str,
        pattern: Option<&str>,
        link: &mut Link,
        mut each: impl FnMut(&str, &str),
    ) -> Result<(), LinkError> {
        let mut cursor = "0".to_owned();
        loop {
            cursor = self
                .page(command, key, pattern, &cursor, link, &mut each)
                .await?;
            if cursor == "0" {
                return Ok(());
            }
        }
    }

    /// Reads a part of a set or hash; the place to go on from, `0` at the end.
    async fn page(
        &self,
        command: &str,
        key: &str,
        pattern: Option<&str>,
        cursor: &str,
        link: &mut Link,
        mut each: impl FnMut(&str, &str),
    ) -> Result<String, LinkError> {
        let mut scan = Cmd::new();
        scan.arg(command).arg(key).arg(cursor);
        if let Some(pattern) = pattern {
            scan.arg("MATCH").arg(pattern);
        }
        scan.arg("COUNT").arg(BATCH);
        let answer = link.run(&scan).await?;
        let [next, items] = list(&answer)? else {
            return Err(LinkError::Form);
        };
        for pair in list(items)?.chunks_exact(2) {
            if let [name, value] = pair
                && let (Some(name), Some(value)) = (text(name), text(value))
            {
                each(name, value);
            }
        }
        text(next).map(str::to_owned).ok_or(LinkError::Form)
    }
}
