//! What whoever knows a thing for long keeps, so that counting needs no look-up.

use std::collections::HashSet;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;

use super::Metrics;
use super::series::{Buckets, One, Series, Two, Words, one, two};
use super::tally::{Count, Level, Times};

/// The handles of one route.
#[derive(Debug, Clone, Copy)]
pub struct RouteMetrics {
    /// By hundreds of the status, 1xx to 5xx; the last is for requests that got no answer.
    pub(super) by_class: [Count; 6],
    pub(super) total: Times,
    pub(super) head: Times,
    pub(super) bytes: Count,
}

/// A route's handles, made when they are first asked for: a route without requests has no series.
#[derive(Debug)]
pub struct RouteCounts {
    pub(super) metrics: Arc<Metrics>,
    pub(super) name: Arc<str>,
    pub(super) made: OnceLock<RouteMetrics>,
}

impl RouteCounts {
    /// Handles of the same series.
    pub fn again(&self) -> Self {
        Self {
            metrics: Arc::clone(&self.metrics),
            name: Arc::clone(&self.name),
            made: OnceLock::new(),
        }
    }
}

/// The handles of one upstream.
#[derive(Debug)]
pub struct UpstreamMetrics {
    pub(super) attempts: Words,
    pub(super) in_flight: Series<Level>,
}

/// The handles of one policy.
#[derive(Debug)]
pub struct PolicyMetrics {
    pub(super) decisions: Words,
    pub(super) cache: Words,
    pub(super) durations: Series<Times, Buckets>,
    pub(super) overruns: Series<Count>,
    pub(super) name: String,
    pub(super) rules: Arc<RuleFamilies>,
}

/// The handles of one candidate.
#[derive(Debug)]
pub struct CandidateMetrics {
    pub(super) name: String,
    pub(super) comparisons: Words,
    pub(super) failures: Words,
    pub(super) left_out: Words,
    pub(super) decisions: Words,
    pub(super) rollbacks: Family<Two, Counter>,
    pub(super) back: Family<One, Gauge>,
}

/// Most series of rules, over all policies and revisions; further rules are counted as `other`.
pub(super) const MAX_RULE_SERIES: usize = 2_000;

/// What the rules of policies cost.
#[derive(Debug, Default)]
pub(super) struct RuleFamilies {
    pub(super) known: Mutex<HashSet<(String, String)>>,
    pub(super) evaluations: Family<Two, Counter>,
    pub(super) seconds: Family<Two, Counter<f64, AtomicU64>>,
    pub(super) overruns: Family<Two, Counter>,
}

/// What came of looking a decision up among those made before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lookup {
    /// It was there.
    Hit,
    /// It was not.
    Miss,
    /// The request is larger than what is kept.
    Bypass,
}

/// The handles of one issuer.
#[derive(Debug)]
pub struct IssuerMetrics {
    pub(super) tokens: Words,
    pub(super) unknown_keys: Words,
}

/// The handles of one listener.
#[derive(Debug)]
pub(super) struct ListenerMetrics {
    pub(super) open: Series<Level>,
    pub(super) accepted: Series<Count>,
    pub(super) ended: Words,
}

impl RouteMetrics {
    /// Counts one request whose record is closed. `status` is absent when there was no answer.
    pub fn request(
        &self,
        status: Option<u16>,
        head: Option<Duration>,
        total: Duration,
        bytes: u64,
    ) {
        let [informational, success, redirection, client, server, none] = &self.by_class;
        match status {
            Some(100..=199) => informational,
            Some(200..=299) => success,
            Some(300..=399) => redirection,
            Some(400..=499) => client,
            Some(_) => server,
            None => none,
        }
        .inc();
        if let Some(head) = head {
            self.head.observe(head);
        }
        self.total.observe(total);
        self.bytes.inc_by(bytes);
    }
}

impl RouteCounts {
    /// The counts of the route of this name.
    pub fn new(metrics: &Arc<Metrics>, name: &Arc<str>) -> Self {
        Self {
            metrics: Arc::clone(metrics),
            name: Arc::clone(name),
            made: OnceLock::new(),
        }
    }

    /// The handles.
    pub fn get(&self) -> RouteMetrics {
        *self.made.get_or_init(|| self.metrics.new_route(&self.name))
    }
}

impl UpstreamMetrics {
    /// As [`Metrics::upstream_attempt`].
    pub fn attempt(&self, outcome: &'static str) {
        self.attempts.inc(outcome);
    }

    /// As [`Metrics::upstream_in_flight`].
    pub fn in_flight(&self, change: i64) {
        self.in_flight.get().change(change);
    }
}

impl PolicyMetrics {
    /// A decision was made; `outcome` is a fixed word: `allow`, `deny`, `undefined`, `error`, ….
    /// `took` is told for decisions that were evaluated.
    pub fn decided(&self, outcome: &'static str, took: Option<Duration>) {
        if let Some(took) = took {
            self.durations.get().observe(took);
        }
        self.decisions.inc(outcome);
    }

    /// A decision was looked up among those made before.
    pub fn looked_up(&self, lookup: Lookup) {
        self.cache.inc(match lookup {
            Lookup::Hit => "hit",
            Lookup::Miss => "miss",
            Lookup::Bypass => "bypass",
        });
    }

    /// A decision was watched: what one rule, named by the policy, cost in it.
    pub fn rule(&self, rule: &str, evaluations: u64, time: Duration, overrun: bool) {
        let mut known = self
            .rules
            .known
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let key = (self.name.clone(), rule.to_owned());
        let rule = if known.contains(&key) {
            rule
        } else if known.len() < MAX_RULE_SERIES {
            known.insert(key);
            rule
        } else {
            "other"
        };
        drop(known);
        let labels = two(("policy", &self.name), ("rule", rule));
        self.rules
            .evaluations
            .get_or_create(&labels)
            .inc_by(evaluations);
        self.rules
            .seconds
            .get_or_create(&labels)
            .inc_by(time.as_secs_f64());
        if overrun {
            self.rules.overruns.get_or_create(&labels).inc();
        }
    }

    /// A decision used up its budget.
    pub fn overrun(&self) {
        self.overruns.get().inc();
    }
}

impl CandidateMetrics {
    /// So many requests were compared: with the same answer, and with others by a fixed word.
    pub fn compared(&self, same: u64, flips: [(&'static str, u64); 3]) {
        for (word, count) in flips.into_iter().chain([("same", same)]) {
            self.comparisons.add(word, count);
        }
    }

    /// It had no answer to so many; a fixed word for why.
    pub fn failed(&self, word: &'static str, count: u64) {
        self.failures.add(word, count);
    }

    /// So many were not compared; a fixed word for why.
    pub fn left_out(&self, why: &'static str, count: u64) {
        self.left_out.add(why, count);
    }

    /// It decided a request: `allow` or `deny`.
    pub fn decided(&self, outcome: &'static str) {
        self.decisions.inc(outcome);
    }

    /// It went back over this edge of its band.
    pub fn went_back(&self, edge: &'static str) {
        let labels = two(("candidate", &self.name), ("edge", edge));
        self.rollbacks.get_or_create(&labels).inc();
        self.back(true);
    }

    /// Whether it has gone back.
    pub fn back(&self, back: bool) {
        self.back
            .get_or_create(&one("candidate", &self.name))
            .set(i64::from(back));
    }
}

impl IssuerMetrics {
    /// As [`Metrics::token_cache`].
    pub fn token_cache(&self, outcome: &'static str) {
        self.tokens.inc(outcome);
    }
}
