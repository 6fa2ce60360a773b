//! What a listener fetches to know whether certificates still stand: revocation lists and the answers
//! of responders. All of it on the control thread; [`crate::tls::clients`] says what is believed.

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Weak};
use std::time::{Duration, SystemTime};

use aws_lc_rs::digest::{SHA256, digest};
use tokio::sync::{Semaphore, mpsc};

use crate::clock;
use crate::fetch::{Document, FetchError, Fetcher, Post, Target};
use crate::metrics::Metrics;
use crate::schema::Compile;
use crate::tls::ClientTrust;
use crate::tls::clients::{ListError, MAX_ANSWER, Question, Taken};
use crate::tls::server::{ClientCertificatesConfig, DistributionPointsConfig};

/// The first pause after a failed fetch; it doubles up to [`LAST_RETRY`] or the refresh interval.
const FIRST_RETRY: Duration = Duration::from_secs(1);
const LAST_RETRY: Duration = Duration::from_secs(300);

/// Shortest pause after a good fetch, however soon the list ends.
const SHORTEST: Duration = Duration::from_secs(1);

/// How often a task that waits looks whether it is still wanted.
const GLANCE: Duration = Duration::from_secs(10);

/// Most responders that are asked at one time.
const MAX_ASKING: usize = 32;

/// Largest list that is read back from the store.
const LONGEST_STORED: u64 = 64 * 1024 * 1024;

/// What it takes to fetch for a listener.
#[derive(Debug, Default)]
pub(super) struct Sources {
    lists: Option<Lists>,
    responders: Option<Fetcher>,
}

#[derive(Debug, Clone)]
struct Lists {
    fetcher: Fetcher,
    refresh: Duration,
    store: Option<PathBuf>,
}

impl Sources {
    /// Compiles what the section says about fetching.
    pub(super) fn compile(config: &ClientCertificatesConfig, cx: &mut Compile) -> Self {
        let lists = config.distribution_points.as_ref().and_then(|points| {
            cx.at("distribution_points", |cx| {
                urls("urls", &points.urls, cx);
                urls("from_certificates", &points.from_certificates, cx);
                Self::lists(points, cx)
            })
        });
        let responders = config.ocsp.as_ref().and_then(|ocsp| {
            cx.at("ocsp", |cx| {
                if let Some(responder) = &ocsp.responder {
                    cx.at("responder", |cx| url(responder, cx));
                }
                urls("from_certificates", &ocsp.from_certificates, cx);
                let fetcher = fetcher(&ocsp.authorities, cx)?;
                Some(fetcher.with_bounds(ocsp.timeout.get(), MAX_ANSWER))
            })
        });
        Self { lists, responders }
    }

    fn lists(points: &DistributionPointsConfig, cx: &mut Compile) -> Option<Lists> {
        Some(Lists {
            fetcher: fetcher(&points.authorities, cx)?
                .with_bounds(points.timeout.get(), points.max_size.len()),
            refresh: points.refresh.get(),
            // Written to by ourselves, so not watched.
            store: points.store.as_ref().map(|store| cx.unwatched(store)),
        })
    }

    /// Begins to fetch, once. It ends when `trust` is gone.
    pub(super) fn begin(
        &self,
        listener: &Arc<str>,
        trust: &Arc<ClientTrust>,
        metrics: &Arc<Metrics>,
        control: &tokio::runtime::Handle,
    ) {
        if !trust.begin() {
            return;
        }
        if let Some(lists) = &self.lists {
            let task = Fetching {
                listener: Arc::clone(listener),
                trust: Arc::downgrade(trust),
                metrics: Arc::clone(metrics),
                lists: lists.clone(),
            };
            control.spawn(task.run());
        }
        if let (Some(fetcher), Some(questions)) = (
            &self.responders,
            trust.ocsp().and_then(crate::tls::clients::Ocsp::questions),
        ) {
            let asking = Asking {
                listener: Arc::clone(listener),
                trust: Arc::downgrade(trust),
                metrics: Arc::clone(metrics),
                fetcher: fetcher.clone(),
            };
            control.spawn(asking.run(questions));
        }
    }
}

fn fetcher(authorities: &[PathBuf], cx: &mut Compile) -> Option<Fetcher> {
    // Whether they can be used was looked at by whoever compiled the section.
    let files = authorities
        .iter()
        .map(|path| cx.read(path))
        .collect::<Option<Vec<_>>>()?;
    Fetcher::new(&files).ok()
}

fn urls(key: &str, urls: &[String], cx: &mut Compile) {
    for (index, text) in urls.iter().enumerate() {
        cx.at(format!("{key}[{index}]"), |cx| url(text, cx));
    }
}

fn url(text: &str, cx: &mut Compile) {
    let problem = match Target::parse_signed(text) {
        Err(error) => error.to_string(),
        // Compared with what certificates name, byte by byte.
        Ok(target) if target.as_str() != text => {
            format!("`{text}` is usually written `{}`", target.as_str())
        }
        Ok(_) => return,
    };
    let help = "write an absolute URL: `http://pki.example.test/ca.crl`";
    cx.problem_help(problem, help);
}

/// Why there is no new list.
#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error(transparent)]
    Fetch(#[from] FetchError),
    #[error(transparent)]
    List(#[from] ListError),
}

impl Failure {
    const fn code(&self) -> &'static str {
        match self {
            Self::Fetch(error) => error.code(),
            Self::List(error) => error.code(),
        }
    }
}

/// Fetches the lists of one listener.
#[derive(Debug, Clone)]
struct Fetching {
    listener: Arc<str>,
    trust: Weak<ClientTrust>,
    metrics: Arc<Metrics>,
    lists: Lists,
}

impl Fetching {
    /// Has a task for each distribution point, also for those that certificates name later.
    async fn run(self) {
        let mut begun: HashSet<Arc<str>> = HashSet::new();
        loop {
            let Some(trust) = self.trust.upgrade() else {
                return;
            };
            let Some(points) = trust.points() else {
                return;
            };
            begun.retain(|url| points.holds(url));
            for (url, configured) in points.all() {
                if begun.insert(Arc::clone(&url)) {
                    tokio::spawn(self.clone().keep(url, configured));
                }
            }
            // Held only while it waits for a second: the last owner must be able to let go.
            let _ = tokio::time::timeout(Duration::from_secs(1), points.added.notified()).await;
        }
    }

    /// Keeps the list of one distribution point fresh until nobody wants it.
    async fn keep(self, url: Arc<str>, configured: bool) {
        let label: &str = if configured { &url } else { "certificates" };
        if let Some(trust) = self.trust.upgrade() {
            self.restore(&trust, &url).await;
        }
        let mut failures: u32 = 0;
        // Of the list that is held, so that an unchanged one need not be sent again.
        let mut etag: Option<String> = None;
        loop {
            let outcome = self.fetch(&url, etag.as_deref()).await;
            let Some(trust) = self.trust.upgrade() else {
                return;
            };
            if !trust.points().is_some_and(|points| points.holds(&url)) {
                return;
            }
            let now = clock::now();
            let outcome = match outcome {
                Ok(None) => {
                    let held = trust.held_list(&url, now).map_err(Failure::from);
                    if held.is_err() {
                        etag = None;
                    }
                    held
                }
                Ok(Some(document)) => {
                    let (taken, body) = take(&trust, &url, document.body).await;
                    etag = document.etag.filter(|_| taken.is_ok());
                    if matches!(
                        taken,
                        Ok(Taken {
                            changed: true,
                            verified: true,
                            ..
                        })
                    ) {
                        self.keep_on_disk(&url, body).await;
                    }
                    taken.map_err(Failure::from)
                }
                Err(error) => Err(error.into()),
            };
            let pause = match outcome {
                Ok(taken) => {
                    failures = 0;
                    trust.point_tried(&url, None);
                    self.metrics.crl_fetch(&self.listener, "ok");
                    self.metrics
                        .crl(&self.listener, label, taken.issued, taken.ends);
                    if taken.changed {
                        tracing::info!(
                            listener = %self.listener, list = %url, entries = taken.entries,
                            verified = taken.verified, "another revocation list is in force"
                        );
                    }
                    pause(&taken, self.lists.refresh, now)
                }
                Err(failure) => {
                    failures = failures.saturating_add(1);
                    let news = trust.point_tried(&url, Some(failure.to_string()));
                    self.metrics.crl_fetch(&self.listener, failure.code());
                    if news {
                        tracing::warn!(
                            listener = %self.listener, list = %url, error = %failure,
                            "fetching a revocation list failed"
                        );
                    }
                    FIRST_RETRY
                        .saturating_mul(1 << failures.saturating_sub(1).min(16))
                        .min(self.lists.refresh.min(LAST_RETRY))
                }
            };
            drop(trust);
            // A fleet that started together must not fetch together.
            let mut left = pause.mul_f64(1.0 - rand::random::<f64>() * 0.2);
            while !left.is_zero() {
                if self.trust.strong_count() == 0 {
                    return;
                }
                let part = left.min(GLANCE);
                tokio::time::sleep(part).await;
                left = left.saturating_sub(part);
            }
        }
    }

    async fn fetch(&self, url: &str, etag: Option<&str>) -> Result<Option<Document>, FetchError> {
        let target = Target::parse_signed(url)?;
        self.lists.fetcher.get_unless(&target, etag).await
    }

    /// Takes up what an earlier process has fetched. It is judged as if it came from the server.
    async fn restore(&self, trust: &Arc<ClientTrust>, url: &Arc<str>) {
        let Some(path) = self.stored(url) else { return };
        let read = async {
            if tokio::fs::metadata(&path).await?.len() > LONGEST_STORED {
                return Err(std::io::Error::other("it is too large"));
            }
            tokio::fs::read(&path).await
        };
        let Ok(body) = read.await else { return };
        match take(trust, url, body).await.0 {
            Ok(taken) => tracing::info!(
                listener = %self.listener, list = %url, entries = taken.entries,
                "a revocation list was taken up from the store"
            ),
            Err(error) => tracing::warn!(
                listener = %self.listener, list = %url, %error,
                "a stored revocation list is of no use"
            ),
        }
    }

    async fn keep_on_disk(&self, url: &str, body: Vec<u8>) {
        let Some(path) = self.stored(url) else { return };
        let beside = path.with_extension("new");
        let write = async {
            tokio::fs::write(&beside, body).await?;
            tokio::fs::rename(&beside, &path).await
        };
        if let Err(error) = write.await {
            tracing::warn!(path = %path.display(), %error, "a revocation list cannot be stored");
        }
    }

    fn stored(&self, url: &str) -> Option<PathBuf> {
        let store: &Path = self.lists.store.as_deref()?;
        let mut name = String::with_capacity(44);
        // Each listener's own: two may believe different authorities.
        let key = format!("{}\n{url}", self.listener);
        for byte in digest(&SHA256, key.as_bytes()).as_ref().iter().take(20) {
            name.push_str(&format!("{byte:02x}"));
        }
        name.push_str(".crl");
        Some(store.join(name))
    }
}

/// Reads a list and checks its signature, which for a large one takes too long to do it between other
/// things. Gives the text back.
async fn take(
    trust: &Arc<ClientTrust>,
    url: &Arc<str>,
    body: Vec<u8>,
) -> (Result<Taken, ListError>, Vec<u8>) {
    let (trust, url) = (Arc::clone(trust), Arc::clone(url));
    let taking = move || (trust.take_list(&url, &body, clock::now()), body);
    tokio::task::spawn_blocking(taking)
        .await
        .unwrap_or((Err(ListError::Unreadable), Vec::new()))
}

/// When a list is fetched again: at the latest when nine tenths of what is left of it have passed.
fn pause(taken: &Taken, refresh: Duration, now: SystemTime) -> Duration {
    let left = taken.ends.duration_since(now).unwrap_or(Duration::ZERO);
    refresh.min(left.mul_f64(0.9)).max(SHORTEST)
}

/// Asks the responders of one listener.
#[derive(Debug, Clone)]
struct Asking {
    listener: Arc<str>,
    trust: Weak<ClientTrust>,
    metrics: Arc<Metrics>,
    fetcher: Fetcher,
}

impl Asking {
    async fn run(self, mut questions: mpsc::Receiver<Question>) {
        let seats = Arc::new(Semaphore::new(MAX_ASKING));
        // Ends with the trust, which holds the other end.
        while let Some(question) = questions.recv().await {
            // Never closed.
            let Ok(seat) = Arc::clone(&seats).acquire_owned().await else {
                return;
            };
            let asking = self.clone();
            tokio::spawn(async move {
                asking.ask(question).await;
                drop(seat);
            });
        }
    }

    async fn ask(&self, question: Question) {
        let post = Post {
            content_type: "application/ocsp-request",
            accept: "application/ocsp-response",
            bearer: None,
            body: question.body(),
        };
        let answer = match Target::parse_signed(&question.url) {
            Ok(target) => self.fetcher.post(&target, post).await,
            Err(error) => Err(error),
        };
        let Some(trust) = self.trust.upgrade() else {
            return;
        };
        let url = Arc::clone(&question.url);
        let now = clock::now();
        let (word, error) = match answer {
            Ok(document) => match trust.answered(question, &document.body, now) {
                Ok(status) => (status.as_str(), None),
                Err(error) => (error.code(), Some(error.to_string())),
            },
            Err(error) => {
                trust.unanswered(question, now);
                (error.code(), Some(error.to_string()))
            }
        };
        self.metrics.ocsp_answer(&self.listener, word);
        if let Some(error) = error {
            tracing::warn!(listener = %self.listener, responder = %url, %error, "a responder gave no answer that can be believed");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_is_fetched_again_before_it_ends() {
        let now = clock::now();
        let taken = |left: u64| Taken {
            changed: true,
            issued: now,
            ends: now + Duration::from_secs(left),
            entries: 0,
            verified: true,
        };
        let hour = Duration::from_secs(3600);
        assert_eq!(pause(&taken(86_400), hour, now), hour);
        assert_eq!(pause(&taken(100), hour, now), Duration::from_secs(90));
        assert_eq!(pause(&taken(0), hour, now), SHORTEST);
    }
}
