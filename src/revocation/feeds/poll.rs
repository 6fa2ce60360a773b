//! Asking a transmitter for events (RFC 8936), on the control thread.
//!
//! What was put in force is acknowledged with the next question, so an event is lost by neither side:
//! it comes again until we have said that we have it. One that cannot be ours is reported as an error,
//! and does not come again either. One that could not be judged or kept is neither: it comes again.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use rand::Rng;
use serde::Deserialize;
use serde_json::{Value as Json, json};
use tokio::runtime::Handle;
use tokio::task::AbortHandle;
use tokio::time::sleep;

use super::config::PollConfig;
use super::endpoint::MAX_POST;
use super::stream::Stream;
use crate::clock;
use crate::fetch::{FetchError, Fetcher, Post, Target};
use crate::revocation::Plane;
use crate::schema::{Compile, Secret, Span};

/// The first pause after a failure; it doubles with each further one.
const FIRST_PAUSE: Duration = Duration::from_millis(200);

/// The longest pause after failures.
const LONGEST_PAUSE: Duration = Duration::from_secs(15);

/// The most acknowledgements that wait to be sent; more than one answer can bring.
const MAX_PENDING: usize = 2_000;

/// Asks for the events of one stream until it is dropped.
#[derive(Debug)]
pub(super) struct Poller {
    asking: Arc<Asking>,
    task: Mutex<Option<AbortHandle>>,
}

#[derive(Debug)]
struct Asking {
    stream: Arc<Stream>,
    fetcher: Fetcher,
    target: Target,
    token: Option<Secret>,
    wait: bool,
    interval: Duration,
    max_events: u32,
}

/// What is to be said with the next question.
#[derive(Debug, Default)]
struct Pending {
    acknowledged: Vec<String>,
    errors: BTreeMap<String, Json>,
}

/// What a transmitter answers (RFC 8936 section 2.2). That there is more is seen by asking.
#[derive(Debug, Deserialize)]
struct Answer {
    #[serde(default)]
    sets: BTreeMap<String, String>,
}

#[derive(Debug, thiserror::Error)]
enum PollError {
    #[error(transparent)]
    Fetch(#[from] FetchError),
    #[error("the answer is not the JSON document that was asked for")]
    Form,
    #[error("the answer holds more events than were asked for")]
    TooMany,
}

impl PollConfig {
    pub(super) fn compile(&self, stream: Arc<Stream>, cx: &mut Compile) -> Option<Poller> {
        let errors = cx.errors();
        let mut within = |key: &str, good: bool, range: &str| {
            if !good {
                cx.at(key, |cx| {
                    cx.problem_help(
                        format!("it is not within {range}"),
                        "leave it out for the default",
                    );
                });
            }
        };
        let spans = |from: Span, to: Span, span: Span| (from..=to).contains(&span);
        within(
            "interval",
            spans(Span::millis(100), Span::seconds(3_600), self.interval),
            "100ms to 1h",
        );
        within(
            "timeout",
            spans(Span::seconds(1), Span::seconds(300), self.timeout),
            "1s to 5m",
        );
        within(
            "max_events",
            (1..=1_000).contains(&self.max_events),
            "1 to 1000",
        );
        within(
            "max_size",
            (1..=16 << 20).contains(&self.max_size.get()),
            "1B to 16MiB",
        );
        let target = cx.at("url", |cx| {
            Target::parse(&self.url)
                .map_err(|error| {
                    cx.problem_help(
                        error.to_string(),
                        "the secret goes there: use https, or http on a loopback address",
                    );
                })
                .ok()
        });
        let token = match &self.token {
            None => None,
            Some(reference) => Some(cx.at("token", |cx| cx.secret(reference))?),
        };
        let authorities: Option<Vec<Vec<u8>>> = cx.at("authorities", |cx| {
            self.authorities.iter().map(|file| cx.read(file)).collect()
        });
        let fetcher = Fetcher::new(&authorities?)
            .map_err(|error| cx.problem(error.to_string()))
            .ok()?
            .with_bounds(self.timeout.get(), self.max_size.len());
        if cx.errors() > errors {
            return None;
        }
        Some(Poller {
            asking: Arc::new(Asking {
                stream,
                fetcher,
                target: target?,
                token,
                wait: self.wait,
                interval: self.interval.get(),
                max_events: self.max_events,
            }),
            task: Mutex::new(None),
        })
    }
}

impl Poller {
    /// Starts asking, once.
    pub(super) fn activate(&self, plane: &Arc<Plane>, control: &Handle) {
        let mut task = self.task.lock().unwrap_or_else(PoisonError::into_inner);
        if task.is_none() {
            let asking = Arc::clone(&self.asking);
            let spawned = control.spawn(ask_on(asking, Arc::downgrade(plane)));
            *task = Some(spawned.abort_handle());
        }
    }
}

impl Drop for Poller {
    /// A question may be open for long; what it brings was not acknowledged yet and comes again.
    fn drop(&mut self) {
        let task = self.task.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(task) = &*task {
            task.abort();
        }
    }
}

async fn ask_on(asking: Arc<Asking>, plane: Weak<Plane>) {
    let mut pending = Pending::default();
    let mut pause = FIRST_PAUSE;
    loop {
        let asked = asking.ask(&mut pending).await;
        let Some(plane) = plane.upgrade() else {
            return;
        };
        let rest = match asked {
            Ok(answer) => {
                pause = FIRST_PAUSE;
                if asking.take(answer, &plane, &mut pending).await {
                    continue;
                }
                // A transmitter that waits has paused already, unless it does not know how; and one
                // that repeats itself is not asked faster for it.
                asking.interval
            }
            Err(error) => {
                let name = &asking.stream.name;
                let cause = std::error::Error::source(&error).map(ToString::to_string);
                tracing::warn!(stream = %name, %error, cause, "asking for security events failed");
                asking.stream.feed.failed(error.to_string());
                asking.stream.metrics.revocation_event(name, "failed");
                let rest = rand::rng().random_range(pause / 2..=pause);
                pause = (pause * 2).min(LONGEST_PAUSE);
                rest
            }
        };
        drop(plane);
        sleep(rest).await;
    }
}

impl Asking {
    async fn ask(&self, pending: &mut Pending) -> Result<Answer, PollError> {
        let mut question = json!({
            "maxEvents": self.max_events,
            // What is to be acknowledged must not wait behind a question that waits.
            "returnImmediately": !self.wait || !pending.is_empty(),
            "ack": pending.acknowledged,
        });
        if !pending.errors.is_empty()
            && let Some(members) = question.as_object_mut()
        {
            members.insert("setErrs".to_owned(), json!(pending.errors));
        }
        let post = Post {
            content_type: "application/json",
            accept: "application/json",
            bearer: self.token.as_ref(),
            body: question.to_string().into_bytes(),
        };
        let document = self.fetcher.post(&self.target, post).await?;
        let answer: Answer = serde_json::from_slice(&document.body).map_err(|_| PollError::Form)?;
        *pending = Pending::default();
        if answer.sets.len() > usize::try_from(self.max_events).unwrap_or(usize::MAX) {
            return Err(PollError::TooMany);
        }
        self.stream.alive(clock::now());
        Ok(answer)
    }

    /// Heeds what came; whether there was news.
    async fn take(&self, answer: Answer, plane: &Plane, pending: &mut Pending) -> bool {
        let mut news = false;
        for (id, text) in answer.sets {
            if pending.len() >= MAX_PENDING || id.len() > MAX_POST {
                continue;
            }
            match self.stream.heed(&text, plane, clock::now()).await {
                Ok(heeded) => {
                    news |= heeded.is_news;
                    pending.acknowledged.push(id);
                }
                Err(unheeded) => {
                    let (code, outcome, detail) = unheeded.recorded();
                    let stream = &self.stream.name;
                    tracing::warn!(%stream, code, detail, "a security event was not heeded");
                    self.stream.metrics.revocation_event(stream, outcome);
                    if unheeded.may_pass() {
                        // It comes again; not at once, so that it cannot be all that we do.
                        sleep(FIRST_PAUSE).await;
                    } else {
                        let (_, error, description) = unheeded.told();
                        let error = json!({"err": error, "description": description});
                        pending.errors.insert(id, error);
                    }
                }
            }
        }
        news
    }
}

impl Pending {
    fn len(&self) -> usize {
        self.acknowledged.len() + self.errors.len()
    }

    fn is_empty(&self) -> bool {
        self.len() == 0
    }
}
