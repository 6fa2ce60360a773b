//! How lately a feed of revocations was heard, and what is believed while it is silent.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::schema::{Compile, Span};

/// How far in the future of our clock a feed may have been heard, in milliseconds: by more it was set
/// back, by less it was corrected.
const MOST_AHEAD: u64 = 60_000;

/// One source of revocations that can fall silent: a list that is fetched, a stream that is polled.
///
/// Whoever runs it says [`Feed::heard`] each time that it knows to be up to date, also when there was
/// no news, and [`Feed::failed`] when it could not find out. One that was never heard is stale.
#[derive(Debug)]
pub struct Feed {
    name: Arc<str>,
    /// `None`: it only speaks when there is news, so silence says nothing.
    stale_after: Option<Duration>,
    /// Milliseconds since 1970; zero: never.
    heard: AtomicU64,
    /// Milliseconds since 1970: what was heard says nothing from then on.
    ends: AtomicU64,
    error: Mutex<Option<String>>,
    /// Whether it was stale when somebody looked last.
    seen_stale: AtomicBool,
}

/// What is known of a feed, for the admin pages.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct FeedStatus {
    /// Its name.
    pub name: Arc<str>,
    /// Whether it has been silent for too long.
    pub stale: bool,
    /// Seconds since it was heard; none when it never was.
    pub age_seconds: Option<u64>,
    /// What went wrong since it was heard.
    pub last_error: Option<String>,
}

impl Feed {
    /// A feed that was not heard yet. Takes over what `previous` knows, if that has the same name:
    /// a reload is no reason to hear it again.
    pub fn new(
        name: impl Into<Arc<str>>,
        stale_after: Option<Duration>,
        previous: Option<&Self>,
    ) -> Arc<Self> {
        let name = name.into();
        let previous = previous.filter(|previous| previous.name == name);
        let heard = previous.map_or(0, |previous| previous.heard.load(Ordering::Relaxed));
        Arc::new(Self {
            name,
            stale_after,
            heard: AtomicU64::new(heard),
            ends: AtomicU64::new(
                previous.map_or(u64::MAX, |previous| previous.ends.load(Ordering::Relaxed)),
            ),
            error: Mutex::default(),
            // Nothing is open yet that rests on it.
            seen_stale: AtomicBool::new(true),
        })
    }

    /// Its name: the source of its entries, and a label of metrics.
    pub fn name(&self) -> &Arc<str> {
        &self.name
    }

    /// It is up to date: everything that was revoked up to now is in force.
    pub fn heard(&self, now: SystemTime) {
        self.heard_until(now, None);
    }

    /// As [`Feed::heard`], by something that ends by itself.
    pub fn heard_until(&self, now: SystemTime, end: Option<SystemTime>) {
        let end = end.map_or(u64::MAX, millis);
        self.ends.store(end, Ordering::Release);
        self.heard.store(millis(now), Ordering::Release);
        *self.error.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    /// Whether it is up to date could not be found out. The words are for the admin page. Whether that
    /// is another failure than the last time, so that it is worth a line in the log.
    pub fn failed(&self, why: impl Into<String>) -> bool {
        let why = Some(why.into());
        let mut error = self.error.lock().unwrap_or_else(PoisonError::into_inner);
        let news = *error != why;
        *error = why;
        news
    }

    /// Whether it has been silent for longer than it may.
    pub fn is_stale(&self, now: SystemTime) -> bool {
        let Some(stale_after) = self.stale_after else {
            return false;
        };
        let heard = self.heard.load(Ordering::Acquire);
        let most = u64::try_from(stale_after.as_millis()).unwrap_or(u64::MAX);
        let now = millis(now);
        heard == 0
            || now > heard.saturating_add(most)
            // The clock was set back: how long it has been silent is unknown until it is heard again.
            || heard > now.saturating_add(MOST_AHEAD)
            || now >= self.ends.load(Ordering::Acquire)
    }

    /// What is known of it.
    pub fn status(&self, now: SystemTime) -> FeedStatus {
        let heard = self.heard.load(Ordering::Acquire);
        FeedStatus {
            name: Arc::clone(&self.name),
            stale: self.is_stale(now),
            age_seconds: (heard != 0).then(|| millis(now).saturating_sub(heard) / 1000),
            last_error: self
                .error
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .clone(),
        }
    }

    /// Whether it is stale, and whether that is news.
    pub(super) fn look(&self, now: SystemTime) -> (bool, bool) {
        let stale = self.is_stale(now);
        (
            stale,
            self.seen_stale.swap(stale, Ordering::Relaxed) != stale,
        )
    }
}

fn millis(at: SystemTime) -> u64 {
    at.duration_since(SystemTime::UNIX_EPOCH)
        .ok()
        .and_then(|since| u64::try_from(since.as_millis()).ok())
        .unwrap_or(0)
}

/// What a route believes while a feed of revocations is silent.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct RouteRevocationConfig {
    /// `refuse` (the default): nobody's credential, since any could have been revoked; the answer is
    /// 503. `allow`: everybody's. `shorten`: tokens younger than `shorten_to`.
    pub when_stale: WhenStale,
    /// How young a token must be, by `iat`, to be believed with `when_stale: shorten`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub shorten_to: Option<Span>,
}

/// What is believed while a feed is silent.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum WhenStale {
    /// No credential at all.
    #[default]
    Refuse,
    /// All that were not revoked as far as is known.
    Allow,
    /// Of those, the young ones.
    Shorten,
}

/// A route's rule.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum StaleRule {
    /// Nobody is believed.
    #[default]
    Refuse,
    /// Everybody is.
    Allow,
    /// Credentials that were issued less than this long ago.
    Shorten(Duration),
}

impl RouteRevocationConfig {
    /// Compiles the block of a route.
    pub fn compile(&self, cx: &mut Compile) -> Option<StaleRule> {
        match (self.when_stale, self.shorten_to) {
            (WhenStale::Refuse, None) => Some(StaleRule::Refuse),
            (WhenStale::Allow, None) => Some(StaleRule::Allow),
            (WhenStale::Shorten, Some(to)) if !to.get().is_zero() => {
                Some(StaleRule::Shorten(to.get()))
            }
            (WhenStale::Shorten, _) => {
                cx.problem_help(
                    "`when_stale: shorten` does not say to what",
                    "add `shorten_to: 5m`",
                );
                None
            }
            (WhenStale::Refuse | WhenStale::Allow, Some(_)) => {
                cx.problem_help(
                    "`shorten_to` means nothing without `when_stale: shorten`",
                    "remove one of them",
                );
                None
            }
        }
    }
}

#[cfg(test)]
#[path = "feed_tests.rs"]
mod tests;
