//! Reload on SIGHUP, on file change and on request: all or nothing.
//!
//! A load that fails changes nothing but a log line per problem, a metric and the answer to whoever
//! asked. One that succeeds is handed to `install`, which puts it in force without dropping a
//! request, or fails and leaves everything as it was.

use std::collections::BTreeSet;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use notify::{EventKind, RecommendedWatcher, RecursiveMode, Watcher};
use tokio::sync::{Mutex, Notify};
use tokio::time::{Instant, sleep, timeout};

use super::beside::beside;
use super::{Document, attempt, revision_on_disk};
use crate::admin::Admin;
use crate::bundle::{Bundle, Content, Fault, Kind, Offer};
use crate::schema::{Compile, Problem, Severity};
use crate::snapshot::{Live, Snapshot};

/// Quiet time after the last change before files are read: editors and deployments write several.
const QUIET: Duration = Duration::from_millis(200);

/// Longest wait for quiet.
const LONGEST_QUIET: Duration = Duration::from_secs(2);

/// How often files are looked at without being told: events get lost on network file systems, and
/// when a link further up is swapped.
const LOOK: Duration = Duration::from_secs(10);

/// Puts a snapshot in force, or says why it cannot and leaves the old one. The document is for
/// what counts at start only.
pub type Install = Box<dyn Fn(Snapshot, &Document, Admin) -> Result<(), String> + Send + Sync>;

/// Puts a snapshot in force that is the one before but for its policies.
pub type Exchange = Box<dyn Fn(Snapshot) + Send + Sync>;

/// What came of a reload.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// The files are those in force.
    Unchanged {
        /// The revision in force.
        revision: Arc<str>,
    },
    /// A new configuration is in force.
    Replaced {
        /// Its revision.
        revision: Arc<str>,
        /// What changed against the one before, in a line.
        changes: String,
        /// What the operator should know.
        warnings: Vec<Problem>,
    },
    /// The old configuration stays in force.
    Refused {
        /// Why; at least one is an error.
        problems: Vec<Problem>,
    },
}

/// Reloads the configuration of one process.
pub struct Reloader {
    file: PathBuf,
    live: Arc<Live>,
    install: Install,
    exchange: Exchange,
    /// One reload at a time; a second one finds out whether there is anything left to do.
    flight: Mutex<()>,
    changed: Notify,
    /// The files of the last attempt: a broken document may name files that are not there yet.
    attempted: std::sync::Mutex<Vec<PathBuf>>,
}

impl fmt::Debug for Reloader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reloader")
            .field("file", &self.file)
            .finish_non_exhaustive()
    }
}

impl Reloader {
    /// A reloader for the configuration in `file`, now in force as `live`.
    pub fn new(file: PathBuf, live: Arc<Live>, install: Install, exchange: Exchange) -> Arc<Self> {
        Arc::new(Self {
            file,
            live,
            install,
            exchange,
            flight: Mutex::new(()),
            changed: Notify::new(),
            attempted: std::sync::Mutex::default(),
        })
    }

    /// Reloads now, unless the files are those in force. Call it on the control thread's runtime;
    /// reading and compiling happen on a thread of their own. A caller that goes away does not stop
    /// a reload half-way.
    pub async fn reload(self: &Arc<Self>) -> Outcome {
        let this = Arc::clone(self);
        let task = tokio::spawn(async move {
            let _flight = this.flight.lock().await;
            let worker = Arc::clone(&this);
            beside(move || worker.reload_here()).await
        });
        if let Ok(Some(outcome)) = task.await {
            return outcome;
        }
        // A panic while compiling: nothing was installed.
        tracing::error!("reload broke down; the configuration in force stays");
        self.live.current().metrics.reload(false);
        Outcome::Refused {
            problems: vec![self.problem("reload broke down: see the log".to_owned())],
        }
    }

    fn reload_here(&self) -> Outcome {
        let old = self.live.current();
        if revision_on_disk(&self.file, &old.files).is_ok_and(|revision| *revision == *old.revision)
        {
            tracing::info!(revision = %old.revision, "configuration is unchanged");
            old.bundles
                .named
                .values()
                .for_each(|bundle| bundle.unchanged());
            return Outcome::Unchanged {
                revision: Arc::clone(&old.revision),
            };
        }
        let (result, files) = attempt(&self.file, Some(&old), &old.metrics);
        if let Ok(mut attempted) = self.attempted.lock() {
            *attempted = files;
        }
        let loaded = match result {
            Ok(loaded) => loaded,
            Err(problems) => return self.refused(&old, problems),
        };
        let revision = Arc::clone(&loaded.snapshot.revision);
        let changes = changes(&old, &loaded.snapshot);
        if let Err(message) = (self.install)(loaded.snapshot, &loaded.document, loaded.admin) {
            return self.refused(&old, vec![self.problem(message)]);
        }
        old.bundles.hub.reloaded();
        let new = self.live.current();
        for (name, bundle) in &old.bundles.named {
            match new.bundles.named.get(name) {
                Some(same) if Arc::ptr_eq(same, bundle) => {}
                other => bundle.retire(other.is_none()),
            }
        }
        for warning in &loaded.warnings {
            warning.log();
        }
        tracing::info!(%revision, previous = %old.revision, %changes, "configuration reloaded");
        old.metrics.reload(true);
        Outcome::Replaced {
            revision,
            changes,
            warnings: loaded.warnings,
        }
    }

    /// Puts downloaded bundles in force as they come, until the task is dropped.
    pub async fn follow(self: Arc<Self>) {
        loop {
            // Of the one in force now; it is the same object in all that come after it.
            let hub = Arc::clone(&self.live.current().bundles.hub);
            hub.offered().await;
            // Also those that were offered while others were tried.
            while let Some((bundle, offer)) = self.offered() {
                let content = Arc::clone(&offer.content);
                let this = Arc::clone(&self);
                let task = tokio::spawn(async move {
                    let _flight = this.flight.lock().await;
                    let worker = Arc::clone(&this);
                    beside(move || worker.bring_here(&bundle, content)).await
                });
                let broke_down = || {
                    let message = "trying it broke down: see the log";
                    Err(Fault::new(Kind::Policy, message))
                };
                offer.answer(task.await.ok().flatten().unwrap_or_else(broke_down));
            }
        }
    }

    fn offered(&self) -> Option<(Arc<Bundle>, Offer)> {
        let current = self.live.current();
        let mut bundles = current.bundles.named.values();
        bundles.find_map(|bundle| Some((Arc::clone(bundle), bundle.take_offer()?)))
    }

    /// Tries a content with every policy that uses its bundle, and puts it in force for all of them,
    /// or for none.
    fn bring_here(&self, bundle: &Arc<Bundle>, content: Arc<Content>) -> Result<(), Fault> {
        let old = self.live.current();
        let name = &*bundle.name;
        let ours = old.bundles.named.get(name);
        if !ours.is_some_and(|ours| Arc::ptr_eq(ours, bundle)) {
            let message = "the configuration has changed meanwhile";
            return Err(Fault::new(Kind::Policy, message));
        }
        let mut cx =
            Compile::new(&self.file, Arc::clone(&old.metrics)).with_epoch(Arc::clone(&old.epoch));
        let mut policies = old.policies.clone();
        cx.at("policies", |cx| {
            for (policy_name, policy) in &mut policies {
                if policy.uses(name) {
                    let made = cx.at(policy_name.clone(), |cx| {
                        policy.with_bundle(bundle, &content, cx)
                    });
                    // What was not made has said why.
                    if let Some(made) = made {
                        *policy = made;
                    }
                }
            }
        });
        let candidates = cx.at("candidates", |cx| {
            old.candidates.renewed(&policies, bundle, &content, cx)
        });
        let failed = cx.errors() > 0;
        let (problems, _) = cx.finish();
        for problem in &problems {
            problem.log();
        }
        if failed {
            let errors: Vec<&Problem> = problems
                .iter()
                .filter(|problem| problem.severity == Severity::Error)
                .collect();
            let first = errors
                .first()
                .map(|problem| problem.brief())
                .unwrap_or_default();
            let more = match errors.len() {
                0 | 1 => String::new(),
                count => format!(", and {} more: see the log", count - 1),
            };
            let message = format!("a policy would not be good with it: {first}{more}");
            return Err(Fault::new(Kind::Policy, message));
        }
        (self.exchange)(old.with_policies(policies, Arc::new(candidates)));
        bundle.activated(content);
        Ok(())
    }

    fn refused(&self, old: &Snapshot, problems: Vec<Problem>) -> Outcome {
        for problem in &problems {
            problem.log();
        }
        tracing::error!(revision = %old.revision, "reload refused; the configuration in force stays");
        old.metrics.reload(false);
        Outcome::Refused { problems }
    }

    fn problem(&self, message: String) -> Problem {
        Problem {
            severity: Severity::Error,
            file: self.file.clone(),
            line: None,
            column: None,
            path: String::new(),
            message,
            help: None,
        }
    }

    /// Reloads whenever a file of the configuration changes, until the task is dropped.
    pub async fn watch(self: Arc<Self>) {
        let mut watcher = Watch::default();
        let mut tried = None;
        loop {
            watcher.follow(&self, &self.files());
            // By event, or by looking: a hash of a few small files every ten seconds.
            if timeout(LOOK, self.changed.notified()).await.is_ok() {
                self.settle().await;
            }
            let this = Arc::clone(&self);
            let Some((changed, seen)) = beside(move || this.seen()).await else {
                continue;
            };
            // A broken document is tried once per content, not at every event or look. The content
            // is the one from before the attempt: a change during it must be tried too.
            if !changed {
                tried = None;
            } else if tried.as_ref() != Some(&seen) {
                self.reload().await;
                tried = Some(seen);
            }
        }
    }

    /// The files in force and those of the last attempt.
    fn files(&self) -> Vec<PathBuf> {
        let mut files = self.live.current().files.clone();
        if let Ok(attempted) = self.attempted.lock() {
            files.extend(attempted.iter().cloned());
        }
        files.sort();
        files.dedup();
        files
    }

    /// Whether the files differ from those in force, and what all of them are now.
    fn seen(&self) -> (bool, Result<String, String>) {
        let current = self.live.current();
        let revision = revision_on_disk(&self.file, &current.files);
        let changed = revision.as_deref() != Ok(&*current.revision);
        (changed, revision_on_disk(&self.file, &self.files()))
    }

    /// Waits until nothing changed for a moment.
    async fn settle(&self) {
        let begun = Instant::now();
        while begun.elapsed() < LONGEST_QUIET {
            tokio::select! {
                () = self.changed.notified() => {}
                () = sleep(QUIET) => return,
            }
        }
    }
}

/// What a reload changes, by the names of the parts, for one line of log.
fn changes(old: &Snapshot, new: &Snapshot) -> String {
    let mut parts = Vec::new();
    compare("listeners", &old.listeners, &new.listeners, &mut parts);
    compare("issuers", &old.issuers, &new.issuers, &mut parts);
    compare(
        "bundles",
        &old.bundles.named,
        &new.bundles.named,
        &mut parts,
    );
    compare("policies", &old.policies, &new.policies, &mut parts);
    compare(
        "candidates",
        &old.candidates.named,
        &new.candidates.named,
        &mut parts,
    );
    compare("upstreams", &old.upstreams, &new.upstreams, &mut parts);
    let names = |snapshot: &Snapshot| -> BTreeSet<Arc<str>> {
        snapshot
            .routes
            .iter()
            .map(|route| Arc::clone(&route.name))
            .collect()
    };
    let (before, after) = (names(old), names(new));
    let added = after.difference(&before).map(|name| format!("+{name}"));
    let removed = before.difference(&after).map(|name| format!("-{name}"));
    list("routes", added.chain(removed).collect(), &mut parts);
    if parts.is_empty() {
        return "settings, routes or files in place".to_owned();
    }
    parts.join("; ")
}

/// Parts that were taken over are the same object.
fn compare<T>(
    section: &str,
    old: &crate::schema::Named<Arc<T>>,
    new: &crate::schema::Named<Arc<T>>,
    parts: &mut Vec<String>,
) {
    let mut differences = Vec::new();
    for (name, part) in new {
        match old.get(name) {
            None => differences.push(format!("+{name}")),
            Some(before) if !Arc::ptr_eq(before, part) => differences.push(format!("~{name}")),
            Some(_) => {}
        }
    }
    let removed = old.keys().filter(|name| !new.contains_key(*name));
    differences.extend(removed.map(|name| format!("-{name}")));
    list(section, differences, parts);
}

fn list(section: &str, mut differences: Vec<String>, parts: &mut Vec<String>) {
    /// A log line is no inventory.
    const SHOWN: usize = 8;
    if differences.is_empty() {
        return;
    }
    let more = differences.len().saturating_sub(SHOWN);
    differences.truncate(SHOWN);
    if more > 0 {
        differences.push(format!("and {more} more"));
    }
    parts.push(format!("{section} {}", differences.join(" ")));
}

/// The folders that are watched for a set of files.
#[derive(Default)]
struct Watch {
    files: Vec<PathBuf>,
    /// Dropped to end watching.
    _watcher: Option<RecommendedWatcher>,
}

impl Watch {
    /// Watches the folders of these files. Folders, not files: an editor or a deployment replaces a
    /// file by renaming another one over it, and a watch on the old one would see nothing more.
    fn follow(&mut self, reloader: &Arc<Reloader>, files: &[PathBuf]) {
        if self._watcher.is_some() && self.files == files {
            return;
        }
        let weak = Arc::downgrade(reloader);
        let watched: Vec<PathBuf> = files.iter().flat_map(|file| spellings(file)).collect();
        let interesting = watched.clone();
        let handler = move |event: notify::Result<notify::Event>| {
            // Errors (a lost event, a full queue) mean that anything may have changed.
            let relevant = event.map_or(true, |event| {
                !matches!(event.kind, EventKind::Access(_))
                    && (event.paths.is_empty()
                        || event.paths.iter().any(|path| concerns(path, &interesting)))
            });
            if relevant && let Some(reloader) = weak.upgrade() {
                reloader.changed.notify_one();
            }
        };
        match notify::recommended_watcher(handler) {
            Ok(mut watcher) => {
                let folders: BTreeSet<PathBuf> = watched
                    .iter()
                    .map(|path| {
                        if path.is_dir() {
                            path.clone()
                        } else {
                            folder(path)
                        }
                    })
                    .collect();
                for folder in folders {
                    let mode = if watched.contains(&folder) {
                        RecursiveMode::Recursive
                    } else {
                        RecursiveMode::NonRecursive
                    };
                    if let Err(error) = watcher.watch(&folder, mode) {
                        tracing::warn!(folder = %folder.display(), %error, "cannot watch folder; looking at it every few seconds");
                    }
                }
                self._watcher = Some(watcher);
                // Whatever changed while nobody watched.
                reloader.changed.notify_one();
            }
            Err(error) => {
                tracing::warn!(%error, "cannot watch files; looking at them every few seconds");
            }
        }
        self.files = files.to_vec();
    }
}

/// A path as it is written, and as it is without links: a mounted Kubernetes volume changes by
/// swapping a link beside the written path, a linked file by a change behind it.
fn spellings(file: &Path) -> Vec<PathBuf> {
    let written = std::path::absolute(file).unwrap_or_else(|_| file.to_path_buf());
    match file.canonicalize() {
        Ok(real) if real != written => vec![written, real],
        _ => vec![written],
    }
}

fn folder(file: &Path) -> PathBuf {
    match file.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent.to_path_buf(),
        _ => PathBuf::from("."),
    }
}

/// Whether a change at `path` may concern one of the files: itself, something in a folder, or the
/// `..data` link that Kubernetes swaps.
fn concerns(path: &Path, files: &[PathBuf]) -> bool {
    let linked = path
        .file_name()
        .is_some_and(|name| name.as_encoded_bytes().starts_with(b".."));
    linked
        || files
            .iter()
            .any(|file| path.starts_with(file) || file.starts_with(path))
}

#[cfg(test)]
mod tests;
