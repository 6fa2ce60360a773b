//! A signed list of revocations, from a file or a URL.
//!
//! ```text
//! header  { "typ": "portcullis-revocations+jwt", "alg": …, "kid": … }
//! payload { "iss": …, "iat": …, "exp": …, "revocations": [ { "kind": …, … }, … ] }
//! ```
//!
//! An edition replaces the one before as a whole: what is not in it any more is no longer revoked by
//! this list, and entries of others are not touched. `iat` never goes back, so that nobody on the way
//! can bring an old edition again, and after `exp` an edition is no news: its entries stay in force,
//! and the list counts as silent.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, SystemTime};

use aws_lc_rs::digest::{SHA256, digest};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tokio::runtime::Handle;

use super::entry::Entry;
use super::feed::Feed;
use super::index::{Index, Inserted};
use super::plane::{Plane, fresh_version};
use crate::authn::sealed::{SealKeys, Unsealed};
use crate::clock;
use crate::fetch::{FetchError, Fetcher, Target};
use crate::metrics::Metrics;
use crate::schema::{Compile, Size, Span};

/// The `typ` of a list.
const TYPE: &str = "portcullis-revocations+jwt";

/// How far the publisher's clock may be ahead of ours.
const LEEWAY: u64 = 300;

/// Entries for each shard of a list's index: building one is short.
const PER_SHARD: usize = 2048;

/// Longest time for one fetch.
const FETCH_TIMEOUT: Duration = Duration::from_secs(30);

/// The largest list that can be allowed.
const MOST_SIZE: u64 = 256 << 20;

/// A list of revocations that somebody publishes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ListConfig {
    /// The list in a file, which is looked at every `interval`. Either this or `url`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub file: Option<PathBuf>,
    /// The list at a URL: https, or http on a loopback address. It is asked for every `interval`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub url: Option<String>,
    /// Its `iss`, byte for byte.
    pub issuer: String,
    /// A file with the public keys that it is signed with: a JWK Set (RFC 7517).
    pub keys: PathBuf,
    /// How often it is looked for, `1s` to `1d`. Default: `30s`.
    #[serde(default = "interval")]
    pub interval: Span,
    /// How long it may not be had, or be past its `exp`, before what it would say counts as unknown;
    /// see `revocation.when_stale` of routes. Default: `10m`.
    #[serde(default = "stale_after")]
    pub stale_after: Span,
    /// The largest list, up to `256MiB`. An entry has some 150 bytes. Default: `16MiB`.
    #[serde(default = "max_size")]
    pub max_size: Size,
    /// Files with the certificate authorities (PEM) that are trusted when it is fetched. Default: the
    /// public web's.
    #[serde(default)]
    pub authorities: Vec<PathBuf>,
}

const fn interval() -> Span {
    Span::seconds(30)
}

const fn stale_after() -> Span {
    Span::seconds(600)
}

const fn max_size() -> Size {
    Size::mib(16)
}

/// One list and its edition in force.
pub(super) struct List {
    name: Arc<str>,
    number: u64,
    config: ListConfig,
    /// Over the files that it was compiled from.
    inputs: Vec<u8>,
    source: Source,
    keys: SealKeys,
    /// The most entries, as of the whole plane.
    room: usize,
    pub(super) feed: Arc<Feed>,
    state: Mutex<Option<Edition>>,
    plane: Arc<Plane>,
    metrics: Arc<Metrics>,
    started: AtomicBool,
}

enum Source {
    File(PathBuf),
    Url(Fetcher, Target),
}

/// An edition that was taken.
#[derive(Debug, Clone)]
struct Edition {
    digest: Vec<u8>,
    issued_at: u64,
    ends_at: u64,
    etag: Option<String>,
}

/// Why there is no new edition. Whose fault: the publisher's, or the way's.
#[derive(Debug, thiserror::Error)]
enum ListError {
    #[error("it cannot be fetched")]
    Fetch(#[from] FetchError),
    #[error("it cannot be read")]
    File(#[from] std::io::Error),
    #[error("it is not believed")]
    Unsealed(#[from] Unsealed),
    #[error("its payload is not that of a list: {0}")]
    Form(String),
    #[error("its `iss` is not the configured one")]
    Issuer,
    #[error("its `iat` lies in the future")]
    Future,
    #[error("its `exp` has passed")]
    Expired,
    #[error("it is older than the edition in force")]
    RolledBack,
    #[error("it says something else than the edition of the same `iat`")]
    Forked,
    #[error("entry {0}: {1}")]
    Entry(usize, String),
    #[error("it holds more than {0} entries")]
    TooMany(usize),
}

impl ListError {
    /// A word for metrics.
    const fn code(&self) -> &'static str {
        match self {
            Self::Fetch(error) => error.code(),
            Self::File(_) => "file",
            Self::Unsealed(_) => "unsealed",
            Self::Form(_) | Self::Entry(..) => "form",
            Self::Issuer => "issuer",
            Self::Future => "future",
            Self::Expired => "expired",
            Self::RolledBack | Self::Forked => "rolled_back",
            Self::TooMany(_) => "too_many",
        }
    }

    fn full(&self) -> String {
        let mut text = self.to_string();
        let mut cause = std::error::Error::source(self);
        while let Some(error) = cause {
            text.push_str(": ");
            text.push_str(&error.to_string());
            cause = error.source();
        }
        text
    }
}

/// What a list says.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Payload {
    iss: String,
    iat: u64,
    exp: u64,
    #[serde(default, rename = "jti")]
    _jti: Option<String>,
    revocations: Vec<Entry>,
}

impl ListConfig {
    /// Compiles one list; goes on with `previous` when nothing about it changed.
    pub(super) fn compile(
        self,
        name: &str,
        previous: Option<&Arc<List>>,
        plane: &Arc<Plane>,
        room: usize,
        cx: &mut Compile,
    ) -> Option<Arc<List>> {
        let errors = cx.errors();
        if !is_word(name) {
            cx.key_problem(
                format!("`{}` is not a name for a list", name.escape_default()),
                "names are 1 to 64 letters, digits, `-`, `_` or `.`, and `admin` is taken",
            );
        }
        if self.issuer.is_empty() {
            cx.at("issuer", |cx| {
                cx.problem_help("it is empty", "write the list's `iss`")
            });
        }
        let second = Duration::from_secs(1);
        if !(second..=Duration::from_secs(86_400)).contains(&self.interval.get()) {
            cx.at("interval", |cx| {
                cx.problem_help("it is not within 1s to 1d", "30s is the default")
            });
        }
        if self.stale_after < self.interval {
            cx.at("stale_after", |cx| {
                cx.problem_help("it is shorter than `interval`", "10m is the default");
            });
        }
        if !(1..=MOST_SIZE).contains(&self.max_size.get()) {
            cx.at("max_size", |cx| {
                cx.problem_help("it is not within 1B to 256MiB", "16MiB is the default")
            });
        }
        let mut inputs = Vec::new();
        let keys = cx.at("keys", |cx| {
            let bytes = cx.read(&self.keys)?;
            inputs.extend_from_slice(digest(&SHA256, &bytes).as_ref());
            match SealKeys::parse(&bytes) {
                Ok(keys) => {
                    for note in keys.notes() {
                        cx.warning(note.clone(), "the other keys of the set are used");
                    }
                    Some(keys)
                }
                Err(error) => {
                    cx.problem_help(
                        error,
                        "write a JWK Set (RFC 7517) with public signature keys",
                    );
                    None
                }
            }
        });
        let source = self.source(&mut inputs, cx);
        if cx.errors() > errors {
            return None;
        }
        if let Some(previous) = previous
            && previous.config == self
            && previous.inputs == inputs
            && previous.room == room
            && Arc::ptr_eq(&previous.plane, plane)
        {
            return Some(Arc::clone(previous));
        }
        let name: Arc<str> = name.into();
        let feed = Feed::new(
            Arc::clone(&name),
            Some(self.stale_after.get()),
            previous.map(|previous| &*previous.feed),
        );
        // What `iat` has been seen is not forgotten, unless it is somebody else's list now.
        let state = previous
            .filter(|previous| previous.config.issuer == self.issuer)
            .and_then(|previous| previous.state().clone())
            .map(|edition| Edition {
                digest: Vec::new(),
                etag: None,
                ..edition
            });
        Some(Arc::new(List {
            name,
            number: fresh_version(),
            inputs,
            source: source?,
            keys: keys?,
            room,
            feed,
            state: Mutex::new(state),
            plane: Arc::clone(plane),
            metrics: Arc::clone(&cx.metrics),
            started: AtomicBool::new(false),
            config: self,
        }))
    }

    fn source(&self, inputs: &mut Vec<u8>, cx: &mut Compile) -> Option<Source> {
        match (&self.file, &self.url) {
            (Some(file), None) => Some(Source::File(cx.unwatched(file))),
            (None, Some(url)) => {
                let target = cx.at("url", |cx| match Target::parse(url) {
                    Ok(target) => Some(target),
                    Err(error) => {
                        cx.problem_help(format!("{url}: {error}"), "use https");
                        None
                    }
                });
                let authorities = cx.at("authorities", |cx| {
                    let files: Vec<_> = self.authorities.iter().map(|file| cx.read(file)).collect();
                    files.into_iter().collect::<Option<Vec<Vec<u8>>>>()
                })?;
                for authority in &authorities {
                    inputs.extend_from_slice(digest(&SHA256, authority).as_ref());
                }
                let fetcher = match Fetcher::new(&authorities) {
                    Ok(fetcher) => fetcher.with_bounds(FETCH_TIMEOUT, self.max_size.len()),
                    Err(error) => {
                        cx.problem_help(
                            error.to_string(),
                            "check the files under `authorities`: PEM with at least one certificate",
                        );
                        return None;
                    }
                };
                Some(Source::Url(fetcher, target?))
            }
            _ => {
                cx.problem_help(
                    "the list does not come from exactly one place",
                    "give either `file` or `url`",
                );
                None
            }
        }
    }
}

impl List {
    /// What the plane knows it by.
    pub(super) const fn id(&self) -> (&Arc<str>, u64) {
        (&self.name, self.number)
    }

    /// Its name.
    pub(super) fn name(&self) -> &Arc<str> {
        &self.name
    }

    /// Reads a list that is a file, if it was not read yet: whoever is served next is judged by it.
    pub(super) fn begin(&self) {
        if let Source::File(path) = &self.source
            && self
                .state()
                .as_ref()
                .is_none_or(|edition| edition.digest.is_empty())
        {
            let outcome = self.read(path);
            self.note(outcome, clock::now());
        }
    }

    /// Starts looking for editions, once; ends when the list is dropped.
    pub(super) fn activate(self: &Arc<Self>, control: &Handle) {
        if !self.started.swap(true, Ordering::Relaxed) {
            drop(control.spawn(follow(Arc::downgrade(self))));
        }
    }

    /// Looks for an edition, unless another configuration is in force by now.
    async fn look(self: &Arc<Self>) {
        if !self.plane.hears(self.number) {
            return;
        }
        let outcome = match &self.source {
            Source::File(_) => self.beside(None, None).await,
            Source::Url(fetcher, target) => {
                let etag = self
                    .state()
                    .as_ref()
                    .and_then(|edition| edition.etag.clone());
                match fetcher.get_unless(target, etag.as_deref()).await {
                    Ok(Some(document)) => self.beside(Some(document.body), document.etag).await,
                    Ok(None) => self.unchanged(clock::now()),
                    Err(error) => Err(error.into()),
                }
            }
        };
        self.note(outcome, clock::now());
    }

    /// Verifying and indexing a large list takes a while: on a thread that may take it.
    async fn beside(
        self: &Arc<Self>,
        body: Option<Vec<u8>>,
        etag: Option<String>,
    ) -> Result<bool, ListError> {
        let this = Arc::clone(self);
        let work = tokio::task::spawn_blocking(move || match (&this.source, body) {
            (Source::File(path), _) => this.read(path),
            (Source::Url(..), Some(body)) => this.take(&body, etag, clock::now()),
            (Source::Url(..), None) => Ok(false),
        });
        work.await
            .unwrap_or_else(|error| Err(std::io::Error::other(error).into()))
    }

    fn read(&self, path: &Path) -> Result<bool, ListError> {
        let body = read_file(path, self.config.max_size.get())?;
        self.take(&body, None, clock::now())
    }

    /// Takes an edition, if it is one: whether it is new.
    fn take(&self, body: &[u8], etag: Option<String>, now: SystemTime) -> Result<bool, ListError> {
        let body = body.trim_ascii();
        let digest = digest(&SHA256, body).as_ref().to_vec();
        let known = self.state().clone();
        if known.as_ref().is_some_and(|known| known.digest == digest) {
            return self.unchanged(now);
        }
        let text = std::str::from_utf8(body).map_err(|_| ListError::Form("no text".to_owned()))?;
        let payload = self.keys.open(text, TYPE)?;
        let payload: Payload =
            serde_json::from_slice(&payload).map_err(|error| ListError::Form(error.to_string()))?;
        if payload.iss != self.config.issuer {
            return Err(ListError::Issuer);
        }
        let seconds = clock::unix_seconds(now);
        if payload.iat > seconds.saturating_add(LEEWAY) {
            return Err(ListError::Future);
        }
        if payload.exp <= seconds {
            return Err(ListError::Expired);
        }
        match known {
            Some(known) if payload.iat < known.issued_at => return Err(ListError::RolledBack),
            // An edition that was only remembered for its time may come again.
            Some(known) if payload.iat == known.issued_at && !known.digest.is_empty() => {
                return Err(ListError::Forked);
            }
            _ => {}
        }
        let (index, entries) = self.index(&payload.revocations, now)?;
        let edition = Edition {
            digest,
            issued_at: payload.iat,
            ends_at: payload.exp,
            etag,
        };
        if !self.plane.set_layer(self.id(), index) {
            // A reload has put another list in its place while this one was fetched.
            return Ok(false);
        }
        *self.state() = Some(edition);
        tracing::info!(list = %self.name, entries, iat = payload.iat, "a new edition of a revocation list is in force");
        self.unchanged(now).map(|_| true)
    }

    fn index(&self, entries: &[Entry], now: SystemTime) -> Result<(Index, usize), ListError> {
        if entries.len() > self.room {
            return Err(ListError::TooMany(self.room));
        }
        let shards = (entries.len() / PER_SHARD + 1).next_power_of_two();
        let index = Index::new(shards);
        let seconds = clock::unix_seconds(now);
        for (place, entry) in entries.iter().enumerate() {
            let bad = |error: String| ListError::Entry(place, error);
            let revocation = entry
                .revocation(&self.name)
                .map_err(|error| bad(error.to_string()))?;
            let (key, mark) =
                Plane::read_listed(&revocation).map_err(|error| bad(error.to_string()))?;
            if mark.until > seconds
                && index.insert(key, mark, seconds, usize::MAX) == Inserted::Full
            {
                return Err(ListError::TooMany(self.room));
            }
        }
        let taken = index.taken();
        Ok((index, taken))
    }

    /// The edition in force is the latest there is.
    fn unchanged(&self, now: SystemTime) -> Result<bool, ListError> {
        let ends_at = self.state().as_ref().map_or(0, |edition| edition.ends_at);
        if ends_at <= clock::unix_seconds(now) {
            return Err(ListError::Expired);
        }
        let end = SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(ends_at));
        self.feed.heard_until(now, end);
        Ok(false)
    }

    fn note(&self, outcome: Result<bool, ListError>, now: SystemTime) {
        match outcome {
            Ok(new) => {
                let word = if new { "new" } else { "unchanged" };
                self.metrics.revocation_list(&self.name, word);
            }
            Err(error) => {
                self.metrics.revocation_list(&self.name, error.code());
                let text = error.full();
                let stale = self.feed.is_stale(now);
                if self.feed.failed(&*text) {
                    tracing::warn!(list = %self.name, error = %text, stale, "no new edition of a revocation list");
                }
            }
        }
    }

    fn state(&self) -> MutexGuard<'_, Option<Edition>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for List {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("List")
            .field("name", &self.name)
            .field("config", &self.config)
            .finish_non_exhaustive()
    }
}

/// Looks for editions as long as the list is there.
async fn follow(list: Weak<List>) {
    loop {
        let pause = match list.upgrade() {
            Some(list) => {
                list.look().await;
                list.config.interval.get()
            }
            None => return,
        };
        // A fleet that started together must not fetch together.
        tokio::time::sleep(pause.mul_f64(1.0 - rand::random::<f64>() * 0.1)).await;
    }
}

/// The name of a list is the source of its entries, and a label of metrics.
fn is_word(name: &str) -> bool {
    let legal = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.');
    (1..=64).contains(&name.len()) && name.bytes().all(legal) && name != "admin"
}

fn read_file(path: &Path, bound: u64) -> std::io::Result<Vec<u8>> {
    use std::io::Read;
    // Asked before opening: opening a pipe would wait for its other end.
    if !std::fs::metadata(path)?.is_file() {
        return Err(std::io::Error::other("it is not a regular file"));
    }
    let mut body = Vec::new();
    std::fs::File::open(path)?
        .take(bound + 1)
        .read_to_end(&mut body)?;
    if u64::try_from(body.len()).unwrap_or(u64::MAX) > bound {
        return Err(std::io::Error::other("it is larger than `max_size`"));
    }
    Ok(body)
}

#[cfg(test)]
#[path = "list_tests.rs"]
mod tests;
