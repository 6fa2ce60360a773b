//! Downloads: asks the server again and again, and offers what it brings.
//!
//! One task for each bundle, on the control thread; unpacking and verifying happen beside it. Pauses are
//! somewhere between the two that are configured, so that many gateways do not come at once; after
//! failures they grow from a second, each by chance between half and all of it. A server that keeps
//! questions (long polling) says so by the content type of its answer, and is asked again at once.

use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak};
use std::time::Duration;

use http::{HeaderName, HeaderValue};
use rand::Rng;
use tokio::sync::watch;
use tokio::task::spawn_blocking;
use tokio::time::{Instant, sleep, timeout};

use super::fault::{Fault, Kind};
use super::{Bundle, Content};
use crate::fetch::{Ask, Document, FetchError, Fetcher, Target};
use crate::kept;
use crate::schema::ContentDigest;

/// The first pause after a failure.
const FIRST_RETRY: Duration = Duration::from_secs(1);

/// The least time from one question to the next where the server keeps them: one that does not,
/// whatever it says, is no reason to ask without a pause.
const LEAST: Duration = Duration::from_secs(1);

/// How long it may take until an offer is tried and in force. What takes longer may come in force all
/// the same, and is found to be so with the next answer.
const TRIAL: Duration = Duration::from_secs(300);

/// The content type of servers that keep questions.
const LONG_POLLING: &str = "application/vnd.openpolicyagent.bundles";

/// How often a server is asked.
#[derive(Debug, Clone)]
pub(super) struct Timing {
    pub(super) timeout: Duration,
    pub(super) min: Duration,
    pub(super) max: Duration,
    /// How long the server may keep a question.
    pub(super) wait: Option<Duration>,
}

/// Where a bundle comes from.
#[derive(Debug)]
pub(super) struct Remote {
    pub(super) fetcher: Fetcher,
    pub(super) target: Target,
    pub(super) headers: Vec<(HeaderName, HeaderValue)>,
    pub(super) timing: Timing,
}

/// What is remembered from one question to the next.
#[derive(Debug, Default)]
struct Follower {
    /// Of the content in force.
    etag: Option<String>,
    failures: u32,
    /// Whether the server keeps questions; unknown before its first answer.
    keeps: Option<bool>,
    refused: Option<Refused>,
}

/// What was refused last, to spend nothing on it again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Refused {
    /// Over the bytes as they came.
    bytes: ContentDigest,
    /// Over the files in them, when they could be read: others may pack them anew for every answer.
    files: Option<ContentDigest>,
    /// The configuration under which it was refused.
    generation: u64,
}

/// Follows the server until the bundle is dropped.
pub(super) async fn follow(
    bundle: Weak<Bundle>,
    remote: Arc<Remote>,
    mut alive: watch::Receiver<()>,
) {
    let work = async {
        let mut follower = Follower::default();
        loop {
            let begun = Instant::now();
            let answer = follower.ask(&bundle, &remote).await;
            let Some(bundle) = bundle.upgrade() else {
                return;
            };
            let taken = match answer {
                Ok(answer) => follower.take(&bundle, answer).await,
                Err(error) => {
                    let mut fault = Fault::new(Kind::Fetch, full(&error));
                    if let FetchError::Status(304) = error {
                        fault =
                            fault.help("the server says `not modified`, and was not asked that");
                    }
                    Err(Some(fault))
                }
            };
            match taken {
                Ok(()) => follower.failures = 0,
                Err(fault) => {
                    follower.failures = follower.failures.saturating_add(1);
                    if let Some(fault) = fault {
                        bundle.failed(&fault);
                    }
                }
            }
            drop(bundle);
            sleep(follower.pause(&remote.timing, begun.elapsed())).await;
        }
    };
    tokio::select! {
        () = work => {}
        // The bundle is gone, or no longer configured.
        _ = alive.changed() => {}
    }
}

impl Follower {
    async fn ask(
        &self,
        bundle: &Weak<Bundle>,
        remote: &Remote,
    ) -> Result<Option<Document>, FetchError> {
        if let Some(bundle) = bundle.upgrade() {
            bundle.asked();
        }
        let wait = remote
            .timing
            .wait
            // With nothing in force there is nothing to wait for.
            .filter(|_| self.keeps != Some(false) && self.etag.is_some());
        // Whole bundles only: a delta would be refused.
        let mut prefer = "modes=snapshot".to_owned();
        if let Some(wait) = wait {
            prefer.push_str(&format!(";wait={}", wait.as_secs()));
        }
        let ask = Ask {
            accept: "application/gzip, application/vnd.openpolicyagent.bundles, */*;q=0.5",
            etag: self.etag.as_deref(),
            prefer: Some(&prefer),
            headers: &remote.headers,
            total: remote
                .timing
                .timeout
                .saturating_add(wait.unwrap_or_default()),
        };
        remote.fetcher.ask(&remote.target, ask).await
    }

    /// What the server answered; `Err(None)` for a failure that was told before.
    async fn take(
        &mut self,
        bundle: &Arc<Bundle>,
        answer: Option<Document>,
    ) -> Result<(), Option<Fault>> {
        let Some(document) = answer else {
            // As it was; so is what the server does with questions.
            bundle.succeeded(self.etag.as_deref(), self.keeps == Some(true));
            return Ok(());
        };
        let keeps = document.content_type.as_deref() == Some(LONG_POLLING);
        self.keeps = Some(keeps);
        let etag = document.etag;
        let bytes = Arc::new(document.body);
        let generation = bundle.hub.generation.load(Ordering::Relaxed);
        let known = self
            .refused
            .filter(|refused| refused.generation == generation);
        let (reading, raw) = (Arc::clone(bundle), Arc::clone(&bytes));
        let read = move || {
            let digest = ContentDigest::of(&raw);
            // Not read again: what is wrong with it may be what reading it costs.
            let again = known.is_some_and(|refused| refused.bytes == digest);
            (digest, (!again).then(|| reading.reader.read(&raw)))
        };
        let (digest, content) = spawn_blocking(read)
            .await
            .map_err(|_| Some(Fault::new(Kind::Archive, "reading it broke down")))?;
        let content = match content {
            None => return Err(None),
            Some(Ok(content)) => content,
            Some(Err(fault)) => {
                self.refused = Some(Refused {
                    bytes: digest,
                    files: None,
                    generation,
                });
                return Err(Some(fault));
            }
        };
        let active = bundle.active();
        if active
            .as_ref()
            .is_some_and(|active| active.digest == content.digest)
        {
            self.etag = etag;
            bundle.succeeded(self.etag.as_deref(), keeps);
            keep(bundle, bytes).await;
            return Ok(());
        }
        let files = Some(content.digest);
        if known.is_some_and(|refused| refused.files == files) {
            return Err(None);
        }
        let outcome = match active {
            Some(active) => bundle.reader.newer(&bundle.name, &active, &content),
            None => Ok(()),
        };
        let outcome = match outcome {
            Ok(()) => tried(bundle, content).await,
            Err(fault) => Err(fault),
        };
        if let Err(fault) = outcome {
            self.refused = Some(Refused {
                bytes: digest,
                files,
                generation,
            });
            return Err(Some(fault));
        }
        self.refused = None;
        self.etag = etag;
        bundle.succeeded(self.etag.as_deref(), keeps);
        keep(bundle, bytes).await;
        Ok(())
    }

    fn pause(&self, timing: &Timing, spent: Duration) -> Duration {
        let between = |least: Duration, most: Duration| {
            let most = most.max(least);
            rand::rng().random_range(least..=most)
        };
        if self.failures > 0 {
            let doubled = FIRST_RETRY.saturating_mul(1 << (self.failures - 1).min(16));
            let pause = doubled.min(timing.max.max(FIRST_RETRY.min(timing.max)));
            return between(pause / 2, pause);
        }
        // Without a tag it would send all of it each time.
        if timing.wait.is_some() && self.keeps == Some(true) && self.etag.is_some() {
            return LEAST.saturating_sub(spent);
        }
        between(timing.min, timing.max)
    }
}

/// Offers a content and waits for what becomes of it.
async fn tried(bundle: &Arc<Bundle>, content: Content) -> Result<(), Fault> {
    let outcome = bundle.offer(Arc::new(content));
    match timeout(TRIAL, outcome).await {
        Ok(Ok(outcome)) => outcome,
        // Whoever tries bundles is gone, or busy beyond reason.
        Ok(Err(_)) | Err(_) => Err(Fault::new(
            Kind::Policy,
            format!("it was not tried within {} s", TRIAL.as_secs()),
        )),
    }
}

/// Keeps the bytes of the bundle in force on disk, where that is asked for.
async fn keep(bundle: &Arc<Bundle>, bytes: Arc<Vec<u8>>) {
    let Some(path) = bundle.kept.clone() else {
        return;
    };
    let written = spawn_blocking(move || {
        // Writing what is there would only wear the disk.
        let most = u64::try_from(bytes.len()).unwrap_or(u64::MAX);
        if matches!(kept::read(&path, most), Ok(Some(there)) if there == *bytes) {
            return Ok(());
        }
        kept::write(&path, &bytes)
    });
    let error = match written.await {
        Ok(Ok(())) => None,
        Ok(Err(error)) => Some(error.to_string()),
        Err(_) => Some("writing broke down".to_owned()),
    };
    if let Some(error) = &error {
        tracing::warn!(bundle = %bundle.name, error, "the bundle is not kept on disk");
        bundle
            .metrics
            .bundle_failure(&bundle.name, Kind::Disk.code());
    }
    bundle.report().file_error = error;
}

/// With causes: for the log and the admin page, never for clients.
fn full(error: &FetchError) -> String {
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(error);
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn timing(wait: Option<u64>) -> Timing {
        Timing {
            timeout: Duration::from_secs(30),
            min: Duration::from_secs(60),
            max: Duration::from_secs(120),
            wait: wait.map(Duration::from_secs),
        }
    }

    #[test]
    fn pauses_are_spread_and_grow_after_failures_to_a_bound() {
        let mut follower = Follower::default();
        let pauses: Vec<Duration> = (0..50)
            .map(|_| follower.pause(&timing(None), Duration::ZERO))
            .collect();
        assert!(
            pauses
                .iter()
                .all(|pause| (60..=120).contains(&pause.as_secs()))
        );
        assert!(
            pauses.iter().max().unwrap()
                > &(*pauses.iter().min().unwrap() + Duration::from_secs(5))
        );
        for (failures, most) in [(1, 1), (2, 2), (5, 16), (8, 120), (100, 120)] {
            follower.failures = failures;
            for _ in 0..20 {
                let pause = follower.pause(&timing(None), Duration::ZERO);
                let most = Duration::from_secs(most);
                assert!(pause <= most && pause >= most / 2, "{failures}: {pause:?}");
            }
        }
    }

    #[test]
    fn a_server_that_keeps_questions_is_asked_again_at_once_but_not_without_end() {
        let follower = Follower {
            keeps: Some(true),
            etag: Some("x".to_owned()),
            ..Follower::default()
        };
        assert_eq!(
            follower.pause(&timing(Some(30)), Duration::from_secs(30)),
            Duration::ZERO
        );
        assert_eq!(follower.pause(&timing(Some(30)), Duration::ZERO), LEAST);
        for (keeps, etag) in [(false, Some("x".to_owned())), (true, None)] {
            let follower = Follower {
                keeps: Some(keeps),
                etag,
                ..Follower::default()
            };
            assert!(follower.pause(&timing(Some(30)), Duration::ZERO) >= Duration::from_secs(60));
        }
    }
}
