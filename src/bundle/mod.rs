//! Policies and data from outside, in the format of OPA's bundles.
//!
//! From bytes to a [`Content`]: `archive` unpacks within bounds, `signature` verifies, `content` reads the
//! manifest and puts each file where it belongs. Nobody decides by it yet. A [`Bundle`] is one block of
//! the configuration: it holds the content in force, and `poll` brings new ones for those that are
//! downloaded. A new one is an [`Offer`]: whoever reloads takes it, has every policy that uses the bundle
//! tried with it, and puts it in force for all of them at once, or says why not. The last good one stays
//! until then, in memory and, where that is configured, on disk (`kept`).

mod archive;
mod canonical;
mod command;
mod config;
mod content;
mod fault;
mod poll;
mod signature;

use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use arc_swap::ArcSwapOption;
use serde::Serialize;
use tokio::sync::{Notify, oneshot, watch};

pub use command::{Command, run};
pub use config::{BundleConfig, PollingConfig, RollbackRule, SigningConfig, SigningKeyConfig};
pub use content::{Content, Module, Root, package};
pub use fault::{Fault, Kind};
pub use signature::{Signed, SigningAlgorithm};

use archive::{Bounds, Files};
use poll::Remote;
use signature::Verifier;

use crate::clock;
use crate::metrics::Metrics;
use crate::schema::{ContentDigest, Named};

/// Where bundles meet whoever puts them in force: one for a process.
#[derive(Debug, Default)]
pub struct Hub {
    offered: Notify,
    /// Rises with every configuration: what was refused under the one before may be good now.
    generation: AtomicU64,
}

impl Hub {
    /// Waits until some bundle may have an offer.
    pub async fn offered(&self) {
        self.offered.notified().await;
    }

    /// Another configuration is in force.
    pub fn reloaded(&self) {
        self.generation.fetch_add(1, Ordering::Relaxed);
    }
}

/// All bundles of a configuration.
#[derive(Debug, Clone, Default)]
pub struct Bundles {
    /// By name.
    pub named: Named<Arc<Bundle>>,
    /// The same object in every configuration of a process.
    pub hub: Arc<Hub>,
}

impl Bundles {
    /// Starts the tasks that download. Those that run already go on.
    pub fn activate(&self, control: &tokio::runtime::Handle) {
        self.named
            .values()
            .for_each(|bundle| bundle.activate(control));
    }
}

/// A content that is ready to be tried.
#[derive(Debug)]
pub struct Offer {
    /// What was downloaded.
    pub content: Arc<Content>,
    answer: oneshot::Sender<Result<(), Fault>>,
}

impl Offer {
    /// Says what became of it.
    pub fn answer(self, outcome: Result<(), Fault>) {
        // Nobody listens any more when the bundle is gone.
        let _ = self.answer.send(outcome);
    }
}

/// How the bytes of a bundle become content.
#[derive(Debug)]
struct Reader {
    bounds: Bounds,
    verifier: Option<Verifier>,
    rollback: RollbackRule,
}

impl Reader {
    /// # Errors
    /// [`Fault`].
    fn read(&self, bytes: &[u8]) -> Result<Content, Fault> {
        let files = archive::unpack(bytes, &self.bounds)?;
        self.take(&files, bytes.len())
    }

    /// # Errors
    /// [`Fault`].
    fn take(&self, files: &Files, packed: usize) -> Result<Content, Fault> {
        let signed = match &self.verifier {
            Some(verifier) => Some(verifier.verify(files)?),
            None if signature::is_signed(files) => {
                return Err(Fault::new(
                    Kind::Signature,
                    "it is signed, and the configuration does not say by whom it may be",
                )
                .help("name the keys in the bundle's `signing`"));
            }
            None => None,
        };
        Content::read(files, packed, signed, self.bounds.values())
    }

    /// Whether what another reader believed would be believed by this one: nobody signed it and nobody
    /// has to, or the key that verified it is still one that counts.
    fn believes(&self, content: &Content) -> bool {
        match (&self.verifier, &content.signed) {
            (None, None) => true,
            (Some(verifier), Some(signed)) => verifier.believes(signed),
            (None, Some(_)) | (Some(_), None) => false,
        }
    }

    /// That a content is not older than the one in force, as far as they say.
    fn newer(&self, name: &str, active: &Content, new: &Content) -> Result<(), Fault> {
        let Some(why) = older(active, new) else {
            return Ok(());
        };
        match self.rollback {
            RollbackRule::Refuse => {
                Err(Fault::new(Kind::Rollback, why).help("if that is meant, set `rollback: allow`"))
            }
            RollbackRule::Allow => {
                tracing::warn!(
                    bundle = name,
                    from = active.label(),
                    to = new.label(),
                    "an older bundle is taken: {why}"
                );
                Ok(())
            }
        }
    }
}

/// Why a content is older than another; `None` when it is not, or nobody can tell.
fn older(active: &Content, new: &Content) -> Option<String> {
    let signed_at = |content: &Content| content.signed.as_ref().and_then(|signed| signed.issued_at);
    match (signed_at(active), signed_at(new)) {
        (Some(now), Some(then)) if then < now => {
            return Some(format!(
                "it is older than the one in force: signed {} s before it",
                now.saturating_sub(then)
            ));
        }
        (Some(_), None) => {
            return Some(
                "it does not say when it was signed, and the one in force does".to_owned(),
            );
        }
        (Some(_) | None, Some(_)) | (None, None) => {}
    }
    match (active.sequence, new.sequence) {
        (Some(now), Some(then)) if then < now => Some(format!(
            "it is older than the one in force: its `metadata.sequence` is {then}, after {now}"
        )),
        (Some(_), None) => {
            Some("it has no `metadata.sequence`, and the one in force does".to_owned())
        }
        (Some(_) | None, Some(_)) | (None, None) => None,
    }
}

#[derive(Debug)]
enum Source {
    File,
    Remote(Arc<Remote>),
}

/// One block of `bundles`.
#[derive(Debug)]
pub struct Bundle {
    /// Its name in the configuration.
    pub name: Arc<str>,
    source: Source,
    reader: Reader,
    kept: Option<Arc<Path>>,
    /// Over all that its block says, secrets included.
    fingerprint: ContentDigest,
    active: ArcSwapOption<Content>,
    offer: Mutex<Option<Offer>>,
    report: Mutex<Report>,
    hub: Arc<Hub>,
    metrics: Arc<Metrics>,
    started: AtomicBool,
    /// Sent, or dropped with the bundle: ends its task.
    alive: watch::Sender<()>,
}

/// What is told of a bundle.
#[derive(Debug, Default, Clone)]
struct Report {
    etag: Option<String>,
    last_request: Option<SystemTime>,
    last_success: Option<SystemTime>,
    active_since: Option<SystemTime>,
    last_error: Option<(&'static str, String)>,
    file_error: Option<String>,
    activations: u64,
    from_disk: bool,
    long_polling: bool,
}

/// What is known of a bundle, for the admin page.
#[derive(Debug, Clone, Serialize)]
pub struct BundleStatus {
    /// `file` or `url`.
    pub source: &'static str,
    /// The URL, without its query.
    pub url: Option<String>,
    /// Whether there is something in force.
    pub active: bool,
    /// What the publisher calls it.
    pub revision: Option<String>,
    /// 16 hex digits of SHA-256 over its files.
    pub digest: Option<String>,
    /// What it owns of `data`.
    pub roots: Option<Vec<String>>,
    /// What its signature says.
    pub signed: Option<Signed>,
    /// The entity tag that is sent back.
    pub etag: Option<String>,
    /// Since when it is in force, in seconds since 1970.
    pub active_since: Option<u64>,
    /// When it was last asked for.
    pub last_request: Option<u64>,
    /// When it was last known to be the newest.
    pub last_success: Option<u64>,
    /// Why the last one was not taken: a word and a sentence.
    pub last_error: Option<BundleError>,
    /// Why it is not kept on disk as it was asked for.
    pub file_error: Option<String>,
    /// Whether the one in force was read from where it is kept.
    pub from_disk: bool,
    /// Whether the server keeps questions until there is something new.
    pub long_polling: bool,
    /// How often another one came in force since the start.
    pub activations: u64,
    /// Bytes as it came.
    pub size: Option<usize>,
    /// Bytes unpacked.
    pub unpacked: Option<usize>,
    /// Modules, tests included.
    pub modules: Option<Vec<String>>,
    /// Data files.
    pub documents: Option<Vec<String>>,
    /// Files that mean nothing here.
    pub ignored: Option<usize>,
}

/// Why a bundle was not taken.
#[derive(Debug, Clone, Serialize)]
pub struct BundleError {
    /// A stable word, as in the metrics.
    pub reason: &'static str,
    /// A sentence, naming the entry.
    pub message: String,
}

impl Bundle {
    fn new(
        name: &str,
        source: Source,
        reader: Reader,
        hub: &Arc<Hub>,
        metrics: &Arc<Metrics>,
    ) -> Self {
        Self {
            name: name.into(),
            source,
            reader,
            kept: None,
            fingerprint: ContentDigest::of(b""),
            active: ArcSwapOption::empty(),
            offer: Mutex::default(),
            report: Mutex::default(),
            hub: Arc::clone(hub),
            metrics: Arc::clone(metrics),
            started: AtomicBool::new(false),
            alive: watch::Sender::new(()),
        }
    }

    fn marked(self, fingerprint: ContentDigest) -> Self {
        Self {
            fingerprint,
            ..self
        }
    }

    fn kept_in(self, kept: Option<Arc<Path>>) -> Self {
        Self { kept, ..self }
    }

    /// What is known before the first download, or read from a file.
    fn begin_with(&self, content: Arc<Content>, from_disk: bool) {
        let mut report = self.report();
        report.from_disk = from_disk;
        report.active_since = Some(clock::now());
        if matches!(self.source, Source::File) {
            report.last_request = report.active_since;
            report.last_success = report.active_since;
        }
        drop(report);
        self.active.store(Some(content));
    }

    /// The content in force; `None` when none has come yet.
    pub fn active(&self) -> Option<Arc<Content>> {
        self.active.load_full()
    }

    /// Starts what runs beside requests, once: downloads. Says in the metrics what is in force.
    fn activate(self: &Arc<Self>, control: &tokio::runtime::Handle) {
        if self.started.swap(true, Ordering::Relaxed) {
            return;
        }
        self.metrics.bundle_in_force(
            &self.name,
            self.active().map(|content| content.label()).as_deref(),
        );
        match &self.source {
            Source::File => {
                self.metrics.bundle_activated(&self.name);
                self.metrics.bundle_success(&self.name, clock::now());
                if let Some(content) = self.active() {
                    tracing::info!(bundle = %self.name, revision = content.label(), "bundle read");
                }
            }
            Source::Remote(remote) => {
                let task = poll::follow(
                    Arc::downgrade(self),
                    Arc::clone(remote),
                    self.alive.subscribe(),
                );
                drop(control.spawn(task));
            }
        }
    }

    /// What was downloaded and waits to be tried.
    pub fn take_offer(&self) -> Option<Offer> {
        self.offer
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take()
    }

    /// Offers a content to whoever puts it in force.
    fn offer(&self, content: Arc<Content>) -> oneshot::Receiver<Result<(), Fault>> {
        let (answer, outcome) = oneshot::channel();
        let mut offer = self.offer.lock().unwrap_or_else(PoisonError::into_inner);
        *offer = Some(Offer { content, answer });
        drop(offer);
        self.hub.offered.notify_one();
        outcome
    }

    /// This content is in force from now on, with all policies that use it.
    pub fn activated(&self, content: Arc<Content>) {
        let before = self.active.swap(Some(Arc::clone(&content)));
        let (from, to) = (before.map(|before| before.label()), content.label());
        tracing::info!(
            bundle = %self.name,
            from = from.as_deref().unwrap_or("none"),
            revision = to,
            digest = %content.digest,
            "bundle activated"
        );
        let mut report = self.report();
        report.active_since = Some(clock::now());
        report.from_disk = false;
        report.activations += 1;
        drop(report);
        self.metrics.bundle_activated(&self.name);
        self.metrics.bundle_in_force(&self.name, Some(&to));
    }

    /// Another configuration is in force, and this bundle is not in it: nothing more is downloaded,
    /// also while old requests hold it. `gone`: nothing of its name is.
    pub fn retire(&self, gone: bool) {
        self.alive.send_replace(());
        if gone {
            self.metrics.bundle_in_force(&self.name, None);
        }
    }

    /// Whether its content was read from where it is kept, and nobody decides by it yet.
    pub fn is_from_disk(&self) -> bool {
        let waits = !self.started.load(Ordering::Relaxed);
        waits && self.report().from_disk && self.active.load().is_some()
    }

    /// Gives up what was read from where it is kept: a policy would not be good with it.
    pub fn give_up(&self, why: &str) {
        self.active.store(None);
        let mut report = self.report();
        report.from_disk = false;
        report.active_since = None;
        report.last_error = Some((Kind::Policy.code(), why.to_owned()));
    }

    /// What the files hold is what is in force: an earlier fault of them is mended.
    pub fn unchanged(&self) {
        if matches!(self.source, Source::File) {
            self.report().last_error = None;
        }
    }

    /// It was asked for now.
    fn asked(&self) {
        self.report().last_request = Some(clock::now());
    }

    /// The one in force is the newest.
    fn succeeded(&self, etag: Option<&str>, long_polling: bool) {
        let now = clock::now();
        let mut report = self.report();
        report.last_success = Some(now);
        report.last_error = None;
        report.etag = etag.map(ToOwned::to_owned);
        report.long_polling = long_polling;
        drop(report);
        self.metrics.bundle_success(&self.name, now);
    }

    /// Something kept a new one from being taken.
    fn failed(&self, fault: &Fault) {
        let text = fault.to_string();
        let kept = match self.active() {
            Some(content) => format!("{} stays in force", content.label()),
            None => "there is none yet".to_owned(),
        };
        tracing::error!(bundle = %self.name, reason = fault.kind.code(), kept, "bundle not taken: {text}");
        self.report().last_error = Some((fault.kind.code(), text));
        self.metrics.bundle_failure(&self.name, fault.kind.code());
    }

    fn report(&self) -> MutexGuard<'_, Report> {
        self.report.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether its policies can decide.
    ///
    /// # Errors
    /// Why not yet.
    pub fn ready(&self) -> Result<(), String> {
        if self.active.load().is_some() {
            return Ok(());
        }
        let why = self.report().last_error.clone();
        let why = why.map_or_else(|| "it is being downloaded".to_owned(), |(_, text)| text);
        Err(format!("bundle {}: none is in force yet: {why}", self.name))
    }

    /// What is wrong with it though there is one in force.
    pub fn faults(&self) -> Vec<String> {
        let report = self.report().clone();
        let name = &self.name;
        let mut faults = Vec::new();
        if let (Some((_, error)), Some(content)) = (report.last_error, self.active()) {
            let label = content.label();
            faults.push(format!(
                "bundle {name}: {label} stays in force: the last one was not taken: {error}"
            ));
        }
        if let Some(error) = report.file_error {
            faults.push(format!("bundle {name}: on disk: {error}"));
        }
        faults
    }

    /// What is known of it.
    pub fn status(&self) -> BundleStatus {
        let report = self.report().clone();
        let content = self.active();
        let content = content.as_deref();
        let time = |at: Option<SystemTime>| at.map(clock::unix_seconds);
        let (source, url) = match &self.source {
            Source::File => ("file", None),
            Source::Remote(remote) => {
                let url = remote.target.as_str();
                ("url", url.split('?').next().map(ToOwned::to_owned))
            }
        };
        BundleStatus {
            source,
            url,
            active: content.is_some(),
            revision: content.map(Content::label),
            digest: content.map(|content| content.digest.to_string()),
            roots: content.map(|content| {
                content
                    .roots
                    .iter()
                    .map(|root| root.path().join("/"))
                    .collect()
            }),
            signed: content.and_then(|content| content.signed.clone()),
            etag: report.etag,
            active_since: time(report.active_since),
            last_request: time(report.last_request),
            last_success: time(report.last_success),
            last_error: report
                .last_error
                .map(|(reason, message)| BundleError { reason, message }),
            file_error: report.file_error,
            from_disk: report.from_disk,
            long_polling: report.long_polling,
            activations: report.activations,
            size: content.map(|content| content.packed),
            unpacked: content.map(|content| content.unpacked),
            modules: content.map(|content| {
                content
                    .modules
                    .iter()
                    .map(|module| module.path.clone())
                    .collect()
            }),
            documents: content.map(|content| content.documents.clone()),
            ignored: content.map(|content| content.ignored),
        }
    }
}
