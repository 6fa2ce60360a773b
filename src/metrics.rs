//! Every number that operators see, in the OpenMetrics text format.
//!
//! Label values are names from the configuration and fixed words, never anything a client sent: a
//! client must not be able to grow a time series. What is counted on every request is counted per
//! thread (`tally`) and found without labels: whoever knows a thing for long keeps its handle
//! ([`RouteCounts`], [`UpstreamMetrics`], [`PolicyMetrics`], [`IssuerMetrics`]); the methods that take
//! a name find the same handles again by the name, which costs ten times the counting.

mod figures;
mod handles;
mod process;
mod series;
mod tally;

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use prometheus_client::encoding::text::{encode_eof, encode_registry};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::{Registry, Unit};

pub use self::figures::Figure;
pub use self::handles::{
    CandidateMetrics, IssuerMetrics, Lookup, PolicyMetrics, RouteCounts, RouteMetrics,
    UpstreamMetrics,
};

use self::handles::{ListenerMetrics, RuleFamilies};
use self::process::Process;
use self::series::{Buckets, One, Remembered, Series, Three, Two, Words, one, remembered, two};
use self::tally::{Count, Level, Times};
use crate::clock;

/// Upper bounds of the buckets for whole requests, in nanoseconds: half a millisecond to a minute.
const REQUEST_BUCKETS: [u64; 15] = [
    500_000,
    1_000_000,
    2_500_000,
    5_000_000,
    10_000_000,
    25_000_000,
    50_000_000,
    100_000_000,
    250_000_000,
    500_000_000,
    1_000_000_000,
    2_500_000_000,
    5_000_000_000,
    15_000_000_000,
    60_000_000_000,
];

/// Upper bounds of the buckets for decisions, in nanoseconds: a decision takes microseconds.
const DECISION_BUCKETS: [u64; 11] = [
    5_000, 10_000, 25_000, 50_000, 100_000, 250_000, 500_000, 1_000_000, 2_500_000, 5_000_000,
    10_000_000,
];

/// The metrics of one gateway; the same object in every snapshot of a process.
#[derive(Debug)]
pub struct Metrics {
    /// Tells the metrics of two gateways in one process apart (tests run several).
    id: u64,
    registry: Registry,
    /// Without our prefix: dashboards and alerts know these names from every other process.
    process: Registry,
    requests: Family<Two, Count>,
    refusals: Family<Two, Count>,
    durations: Family<Two, Times, Buckets>,
    in_flight: Level,
    streams: Level,
    permissions_ended: Family<Two, Counter>,
    response_bytes: Family<One, Count>,
    upstream_attempts: Family<Two, Count>,
    upstream_retries: Family<One, Count>,
    upstream_connects: Family<One, Times, Buckets>,
    upstream_in_flight: Family<One, Level>,
    tunnels: Family<One, Level>,
    tunnels_ended: Family<Two, Count>,
    connections: Family<One, Level>,
    accepted: Family<One, Count>,
    connections_refused: Family<Two, Count>,
    connections_ended: Family<Two, Count>,
    accept_failures: Family<Two, Count>,
    handshakes: Family<Three, Count>,
    handshake_failures: Family<Two, Count>,
    certificates_lapsed: Family<Two, Count>,
    crl_fetches: Family<Two, Count>,
    crl_issued: Family<Two, Gauge>,
    crl_end: Family<Two, Gauge>,
    ocsp_answers: Family<Two, Count>,
    jwks_fetches: Family<Two, Count>,
    jwks_keys: Family<One, Gauge>,
    jwks_fetched_at: Family<One, Gauge>,
    jwks_unknown_keys: Family<Two, Count>,
    revocation_events: Family<Two, Count>,
    jwks_events: Family<Two, Count>,
    jwks_from_disk: Family<One, Gauge>,
    jwks_distrusted: Family<One, Gauge>,
    token_cache: Family<Two, Count>,
    decisions: Family<Two, Count>,
    decision_cache: Family<Two, Count>,
    budget_overruns: Family<One, Count>,
    rules: Arc<RuleFamilies>,
    decision_durations: Family<One, Times, Buckets>,
    limited: Family<One, Count>,
    limit_keys: Family<One, Gauge>,
    limit_overflows: Family<One, Count>,
    revocations: Family<Two, Count>,
    revocation_entries: Family<One, Gauge>,
    revocation_room: Gauge,
    revocation_unsaved: Gauge,
    revocation_lists: Family<Two, Count>,
    feed_age: Family<One, Gauge>,
    feed_stale: Family<One, Gauge>,
    audit_written: Counter,
    audit_dropped: Counter,
    audit_why: Family<One, Counter>,
    audit_errors: Counter,
    audit_rules_dropped: Counter,
    audit_rules_failed: Counter,
    audit_inputs_left_out: Counter,
    audit_queued: Gauge,
    audit_sampled: Counter,
    ship_records: Family<One, Counter>,
    ship_bytes: Family<One, Counter>,
    ship_failures: Family<Two, Counter>,
    ship_lost: Family<Two, Counter>,
    ship_ahead: Family<One, Counter>,
    ship_behind_records: Family<One, Gauge>,
    ship_behind_seconds: Family<One, Gauge>,
    spans_exported: Counter,
    spans_dropped: Counter,
    reloads: Family<One, Count>,
    reloaded_at: Gauge,
    revision: Family<One, Gauge>,
    bundle_activations: Family<One, Counter>,
    bundle_failures: Family<Two, Counter>,
    bundle_success: Family<One, Gauge>,
    bundle_revision: Family<Two, Gauge>,
    candidate_comparisons: Family<Two, Count>,
    candidate_failures: Family<Two, Count>,
    candidate_left_out: Family<Two, Count>,
    candidate_decisions: Family<Two, Count>,
    candidate_rollbacks: Family<Two, Counter>,
    candidate_back: Family<One, Gauge>,
    /// What stands in the family above, to take it out again.
    bundle_revisions: Mutex<BTreeMap<String, String>>,
}

thread_local! {
    static ROUTES: Remembered<RouteMetrics> = RefCell::default();
    static REFUSALS: Remembered<Words> = RefCell::default();
    static UPSTREAMS: Remembered<UpstreamMetrics> = RefCell::default();
    static ISSUERS: Remembered<IssuerMetrics> = RefCell::default();
    static LISTENERS: Remembered<ListenerMetrics> = RefCell::default();
    static LIMITS: Remembered<Series<Count>> = RefCell::default();
}

fn request_buckets() -> Times {
    Times::new(&REQUEST_BUCKETS)
}

fn decision_buckets() -> Times {
    Times::new(&DECISION_BUCKETS)
}

impl Default for Metrics {
    fn default() -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let durations: Family<Two, Times, Buckets> = Family::new_with_constructor(request_buckets);
        let decision_durations: Family<One, Times, Buckets> =
            Family::new_with_constructor(decision_buckets);
        let mut metrics = Self {
            id: NEXT.fetch_add(1, Ordering::Relaxed),
            registry: Registry::with_prefix("portcullis"),
            process: Registry::default(),
            requests: Family::default(),
            refusals: Family::default(),
            durations,
            in_flight: Level::default(),
            streams: Level::default(),
            permissions_ended: Family::default(),
            response_bytes: Family::default(),
            upstream_attempts: Family::default(),
            upstream_retries: Family::default(),
            upstream_connects: Family::new_with_constructor(request_buckets),
            upstream_in_flight: Family::default(),
            tunnels: Family::default(),
            tunnels_ended: Family::default(),
            connections: Family::default(),
            accepted: Family::default(),
            connections_refused: Family::default(),
            connections_ended: Family::default(),
            accept_failures: Family::default(),
            handshakes: Family::default(),
            handshake_failures: Family::default(),
            certificates_lapsed: Family::default(),
            crl_fetches: Family::default(),
            crl_issued: Family::default(),
            crl_end: Family::default(),
            ocsp_answers: Family::default(),
            jwks_fetches: Family::default(),
            jwks_keys: Family::default(),
            jwks_fetched_at: Family::default(),
            jwks_unknown_keys: Family::default(),
            revocation_events: Family::default(),
            jwks_events: Family::default(),
            jwks_from_disk: Family::default(),
            jwks_distrusted: Family::default(),
            token_cache: Family::default(),
            decisions: Family::default(),
            decision_cache: Family::default(),
            budget_overruns: Family::default(),
            rules: Arc::default(),
            decision_durations,
            limited: Family::default(),
            limit_keys: Family::default(),
            limit_overflows: Family::default(),
            revocations: Family::default(),
            revocation_entries: Family::default(),
            revocation_room: Gauge::default(),
            revocation_unsaved: Gauge::default(),
            revocation_lists: Family::default(),
            feed_age: Family::default(),
            feed_stale: Family::default(),
            audit_written: Counter::default(),
            audit_dropped: Counter::default(),
            audit_why: Family::default(),
            audit_errors: Counter::default(),
            audit_rules_dropped: Counter::default(),
            audit_rules_failed: Counter::default(),
            audit_inputs_left_out: Counter::default(),
            audit_queued: Gauge::default(),
            audit_sampled: Counter::default(),
            ship_records: Family::default(),
            ship_bytes: Family::default(),
            ship_failures: Family::default(),
            ship_lost: Family::default(),
            ship_ahead: Family::default(),
            ship_behind_records: Family::default(),
            ship_behind_seconds: Family::default(),
            spans_exported: Counter::default(),
            spans_dropped: Counter::default(),
            reloads: Family::default(),
            reloaded_at: Gauge::default(),
            revision: Family::default(),
            bundle_activations: Family::default(),
            bundle_failures: Family::default(),
            bundle_success: Family::default(),
            bundle_revision: Family::default(),
            candidate_comparisons: Family::default(),
            candidate_failures: Family::default(),
            candidate_left_out: Family::default(),
            candidate_decisions: Family::default(),
            candidate_rollbacks: Family::default(),
            candidate_back: Family::default(),
            bundle_revisions: Mutex::default(),
        };
        metrics.register();
        metrics
    }
}

impl Metrics {
    #[rustfmt::skip]
    fn register(&mut self) {
        let r = &mut self.registry;
        r.register("requests", "Requests by route and class of the answer's status (none: no answer)", self.requests.clone());
        r.register("refusals", "Requests turned away, by route and code", self.refusals.clone());
        r.register_with_unit("request_duration", "Time from a request's head to the head of its answer, and to the last byte", Unit::Seconds, self.durations.clone());
        r.register("requests_in_flight", "Requests whose last byte has not left yet", self.in_flight);
        r.register("streams", "Answers that are streaming, whose permission is judged again", self.streams);
        r.register("permissions_ended", "Streams that ended because their permission did, by route and why", self.permissions_ended.clone());
        r.register_with_unit("response_body", "Bytes of answers' bodies, by route", Unit::Bytes, self.response_bytes.clone());
        r.register("upstream_attempts", "Attempts to forward, by upstream and outcome", self.upstream_attempts.clone());
        r.register("upstream_retries", "Requests that were sent again, by upstream", self.upstream_retries.clone());
        r.register_with_unit("upstream_connect_duration", "Time to connect to an upstream, TLS included", Unit::Seconds, self.upstream_connects.clone());
        r.register("upstream_in_flight", "Exchanges under way, by upstream", self.upstream_in_flight.clone());
        r.register("tunnels", "Open tunnels, by kind", self.tunnels.clone());
        r.register("tunnels_ended", "Tunnels that ended, by kind and how", self.tunnels_ended.clone());
        r.register("connections", "Open connections of clients, by listener", self.connections.clone());
        r.register("connections_accepted", "Connections accepted, by listener", self.accepted.clone());
        r.register("connections_refused", "Connections closed at once, by listener and bound", self.connections_refused.clone());
        r.register("connections_ended", "Connections that ended, by listener and why", self.connections_ended.clone());
        r.register("accept_failures", "Connections that could not be accepted, by listener and kind", self.accept_failures.clone());
        r.register("tls_handshakes", "Finished TLS handshakes, by listener, version and resumption", self.handshakes.clone());
        r.register("tls_handshake_failures", "Failed TLS handshakes, by listener and fault", self.handshake_failures.clone());
        r.register("certificates_lapsed", "Open connections ended because their client certificate was no longer believed, by listener and reason", self.certificates_lapsed.clone());
        r.register("crl_fetches", "Fetches of certificate revocation lists, by listener and outcome", self.crl_fetches.clone());
        r.register_with_unit("crl_issued_timestamp", "When the fetched revocation list in force was issued, since 1970, by listener and list", Unit::Seconds, self.crl_issued.clone());
        r.register_with_unit("crl_end_timestamp", "When the fetched revocation list in force stops being believed, since 1970, by listener and list", Unit::Seconds, self.crl_end.clone());
        r.register("ocsp_answers", "Answers of OCSP responders about client certificates, by listener and outcome", self.ocsp_answers.clone());
        r.register("jwks_fetches", "Fetches of key sets, by issuer and outcome", self.jwks_fetches.clone());
        r.register("jwks_keys", "Usable keys, by issuer", self.jwks_keys.clone());
        r.register_with_unit("jwks_last_success_timestamp", "When usable keys were last fetched, since 1970, by issuer", Unit::Seconds, self.jwks_fetched_at.clone());
        r.register("revocation_events", "What feeds of revocations brought, by feed and outcome", self.revocation_events.clone());
        r.register("jwks_unknown_keys", "Tokens that name an unknown key, by issuer and what was done", self.jwks_unknown_keys.clone());
        r.register("jwks_events", "What became of issuers' keys: added, removed, replaced, renamed, distrusted, trusted, distrusted_published, moved, issuer_mismatch, lapsed, from_disk, file_refused, file_failed", self.jwks_events.clone());
        r.register("jwks_from_disk", "1 while the keys in force are those kept on disk, by issuer", self.jwks_from_disk.clone());
        r.register("jwks_distrusted", "Keys that are distrusted, by issuer", self.jwks_distrusted.clone());
        r.register("token_cache", "Look-ups of verified tokens, by issuer and outcome", self.token_cache.clone());
        r.register("decisions", "Decisions, by policy and outcome", self.decisions.clone());
        r.register("decision_cache", "Look-ups of remembered decisions, by policy and outcome", self.decision_cache.clone());
        r.register("policy_budget_overruns", "Decisions that used up their budget, by policy", self.budget_overruns.clone());
        r.register("policy_rule_evaluations", "Evaluations of a policy's rules in the decisions that were watched, one in 64 of those evaluated, by policy and rule", self.rules.evaluations.clone());
        r.register_with_unit("policy_rule_duration", "Time of a policy's rules, without those that they call, in the decisions that were watched, one in 64 of those evaluated, by policy and rule", Unit::Seconds, self.rules.seconds.clone());
        r.register("policy_rule_budget_overruns", "Decisions that used up their budget while this rule ran, among those that were watched, one in 64 of those evaluated, by policy and rule", self.rules.overruns.clone());
        r.register_with_unit("decision_duration", "Time of a decision, by policy", Unit::Seconds, self.decision_durations.clone());
        r.register("limited", "Requests turned away, by limit", self.limited.clone());
        r.register("limit_keys", "Keys remembered, by limit", self.limit_keys.clone());
        r.register("limit_overflows", "Requests counted in the shared bucket of a limit that remembers all the keys it may, by limit", self.limit_overflows.clone());
        r.register("revocations", "Entries that were brought or lifted, by source and outcome", self.revocations.clone());
        r.register("revocation_entries", "Entries in force, by kind", self.revocation_entries.clone());
        r.register("revocation_room", "Entries that could still be brought", self.revocation_room.clone());
        r.register("revocation_unsaved", "Entries in force that wait for the disk", self.revocation_unsaved.clone());
        r.register("revocation_lists", "Looks for editions of signed lists, by list and outcome", self.revocation_lists.clone());
        r.register_with_unit("revocation_feed_age", "Time since a feed of revocations was heard, by feed; -1: never", Unit::Seconds, self.feed_age.clone());
        r.register("revocation_feed_stale", "Whether a feed of revocations was silent for too long, by feed", self.feed_stale.clone());
        r.register("audit_records_written", "Audit records handed to the sink", self.audit_written.clone());
        r.register("audit_records_dropped", "Audit records lost: the queue was full, or the sink failed until the end", self.audit_dropped.clone());
        r.register("audit_why", "Denials that got their reason into the record, or did not: asked, remembered, skipped (the budget was spent), failed", self.audit_why.clone());
        r.register("audit_sink_errors", "Failed writes of the audit sink", self.audit_errors.clone());
        r.register("audit_rules_dropped", "Audit records that the rules of audit.rules did not keep", self.audit_rules_dropped.clone());
        r.register("audit_rules_failed", "Audit records that were kept without what could be masked, for the rules of audit.rules failed", self.audit_rules_failed.clone());
        r.register("audit_inputs_left_out", "Audit records without what the policy was asked, for too many bytes waited for the sink", self.audit_inputs_left_out.clone());
        r.register("audit_queue", "Audit records that wait for the sink", self.audit_queued.clone());
        r.register("audit_records_sampled_out", "Audit records left out because the route keeps a share of them", self.audit_sampled.clone());
        r.register("audit_ship_records", "Audit records that a sink behind the ledger took, by sink", self.ship_records.clone());
        r.register_with_unit("audit_ship_sent", "What was delivered to a sink behind the ledger, compressed if it goes so, by sink", Unit::Bytes, self.ship_bytes.clone());
        r.register("audit_ship_failures", "Deliveries that a sink behind the ledger did not take, by sink and reason: network, timeout, status, write, ledger, memory, config", self.ship_failures.clone());
        r.register("audit_ship_lost", "Audit records that a sink behind the ledger will never have, by sink and reason: refused, removed", self.ship_lost.clone());
        r.register("audit_ship_ahead", "Audit records that a sink behind the ledger has and the ledger has no more, as after a crash of the machine, by sink", self.ship_ahead.clone());
        r.register("audit_ship_behind_records", "Audit records in the ledger that a sink has not got yet, by sink", self.ship_behind_records.clone());
        r.register_with_unit("audit_ship_behind", "Age of the oldest audit record that a sink has not got yet, by sink", Unit::Seconds, self.ship_behind_seconds.clone());
        r.register("spans_exported", "Spans that the collector took", self.spans_exported.clone());
        r.register("spans_dropped", "Spans lost: the queue was full or the collector failed", self.spans_dropped.clone());
        r.register("config_reloads", "Reloads of the configuration, by outcome", self.reloads.clone());
        r.register_with_unit("config_last_success_timestamp", "When the configuration in force was loaded, since 1970", Unit::Seconds, self.reloaded_at.clone());
        r.register("config_revision", "The configuration in force, as a label", self.revision.clone());
        r.register("bundle_activations", "Bundles that came in force, by bundle", self.bundle_activations.clone());
        r.register("bundle_failures", "Bundles that were not taken, by bundle and reason: fetch, disk, archive, too_large, signature, manifest, content, unsupported, rollback, policy", self.bundle_failures.clone());
        r.register_with_unit("bundle_last_success_timestamp", "When the bundle in force was last known to be the newest, since 1970, by bundle", Unit::Seconds, self.bundle_success.clone());
        r.register("bundle_revision", "The bundle in force, by bundle and with its revision as a label", self.bundle_revision.clone());
        r.register("candidate_comparisons", "Requests of which a candidate's answer was compared with its policy's, by candidate and outcome: same, denies, permits, terms", self.candidate_comparisons.clone());
        r.register("candidate_failures", "Comparisons in which a candidate had no answer, by candidate and kind: undefined, error, budget, panic, answer, body", self.candidate_failures.clone());
        r.register("candidate_left_out", "Requests that a candidate was not compared for, by candidate and why: time, queue, unavailable, changed", self.candidate_left_out.clone());
        r.register("candidate_decisions", "Requests that a candidate decided in the place of its policy, by candidate and outcome: allow, deny", self.candidate_decisions.clone());
        r.register("candidate_rollbacks", "How often a candidate that decided went back, by candidate and edge of its band: denials, permits, errors, order", self.candidate_rollbacks.clone());
        r.register("candidate_back", "1 while a candidate has gone back and its policy decides in its place, by candidate", self.candidate_back.clone());
        self.process.register_collector(Box::new(Process { started: clock::unix_seconds(clock::now()) }));
    }

    /// All numbers as OpenMetrics text.
    pub fn encode(&self) -> String {
        let mut text = String::new();
        let encoded = encode_registry(&mut text, &self.registry)
            .and_then(|()| encode_registry(&mut text, &self.process))
            .and_then(|()| encode_eof(&mut text));
        match encoded {
            Ok(()) => text,
            // Writing into a string cannot fail; a broken document would be worse than an empty one.
            Err(_) => "# EOF\n".to_owned(),
        }
    }

    /// The handles of a route, remembered per thread and name.
    pub fn route(&self, name: &str) -> RouteMetrics {
        *remembered(&ROUTES, self.id, name, || self.new_route(name))
    }

    fn new_route(&self, name: &str) -> RouteMetrics {
        let class = |class: &str| {
            self.requests
                .get_or_create_owned(&two(("route", name), ("status", class)))
        };
        let stage = |stage: &str| {
            self.durations
                .get_or_create_owned(&two(("route", name), ("stage", stage)))
        };
        RouteMetrics {
            by_class: ["1xx", "2xx", "3xx", "4xx", "5xx", "none"].map(class),
            total: stage("total"),
            head: stage("head"),
            bytes: self.response_bytes.get_or_create_owned(&one("route", name)),
        }
    }

    /// The handles of an upstream, to be kept with it.
    pub fn upstream(&self, name: &str) -> UpstreamMetrics {
        UpstreamMetrics {
            attempts: Words::new(&self.upstream_attempts, ("upstream", name), "outcome"),
            in_flight: Series::new(self.upstream_in_flight.clone(), one("upstream", name)),
        }
    }

    /// The handles of a policy, to be kept with it.
    pub fn policy(&self, name: &str) -> PolicyMetrics {
        let label = ("policy", name);
        PolicyMetrics {
            decisions: Words::new(&self.decisions, label, "outcome"),
            cache: Words::new(&self.decision_cache, label, "outcome"),
            durations: Series::new(self.decision_durations.clone(), one("policy", name)),
            overruns: Series::new(self.budget_overruns.clone(), one("policy", name)),
            name: name.to_owned(),
            rules: Arc::clone(&self.rules),
        }
    }

    /// The handles of a candidate, to be kept with it.
    pub fn candidate(&self, name: &str) -> CandidateMetrics {
        let label = ("candidate", name);
        CandidateMetrics {
            name: name.to_owned(),
            comparisons: Words::new(&self.candidate_comparisons, label, "outcome"),
            failures: Words::new(&self.candidate_failures, label, "kind"),
            left_out: Words::new(&self.candidate_left_out, label, "why"),
            decisions: Words::new(&self.candidate_decisions, label, "outcome"),
            rollbacks: self.candidate_rollbacks.clone(),
            back: self.candidate_back.clone(),
        }
    }

    /// A candidate is no longer in the configuration.
    pub fn candidate_gone(&self, name: &str) {
        self.candidate_back.remove(&one("candidate", name));
    }

    /// The handles of an issuer, to be kept with it.
    pub fn issuer(&self, name: &str) -> IssuerMetrics {
        IssuerMetrics {
            tokens: Words::new(&self.token_cache, ("issuer", name), "outcome"),
            unknown_keys: Words::new(&self.jwks_unknown_keys, ("issuer", name), "outcome"),
        }
    }

    fn listener(&self, name: &str) -> Rc<ListenerMetrics> {
        remembered(&LISTENERS, self.id, name, || ListenerMetrics {
            open: Series::new(self.connections.clone(), one("listener", name)),
            accepted: Series::new(self.accepted.clone(), one("listener", name)),
            ended: Words::new(&self.connections_ended, ("listener", name), "ending"),
        })
    }

    /// A request begins.
    pub fn request_opened(&self) {
        self.in_flight.change(1);
    }

    /// A request's last byte has left, or never will.
    pub fn request_closed(&self) {
        self.in_flight.change(-1);
    }

    /// A stream begins that lasts only as long as its permission.
    pub fn stream_opened(&self) {
        self.streams.change(1);
    }

    /// A stream has ended.
    pub fn stream_closed(&self) {
        self.streams.change(-1);
    }

    /// A stream ended because its permission did; `why` is [`crate::lease::Lapse::word`].
    pub fn permission_ended(&self, route: &str, why: &str) {
        let labels = [("route", route.to_owned()), ("why", why.to_owned())];
        self.permissions_ended.get_or_create(&labels).inc();
    }

    /// A request was turned away; `code` is the client's ([`crate::refusal::Public::code`]) or a
    /// fixed word of the failing method, never a policy's own text.
    pub fn refused(&self, route: &str, code: &'static str) {
        remembered(&REFUSALS, self.id, route, || {
            Words::new(&self.refusals, ("route", route), "code")
        })
        .inc(code);
    }

    /// An attempt to forward ended; `outcome` is a fixed word (`ok`, `refused`, `timeout`, …).
    pub fn upstream_attempt(&self, upstream: &str, outcome: &'static str) {
        remembered(&UPSTREAMS, self.id, upstream, || self.upstream(upstream)).attempt(outcome);
    }

    /// A request is sent again.
    pub fn upstream_retry(&self, upstream: &str) {
        self.upstream_retries
            .get_or_create(&one("upstream", upstream))
            .inc();
    }

    /// A connection to an upstream was made, TLS included.
    pub fn upstream_connected(&self, upstream: &str, took: Duration) {
        self.upstream_connects
            .get_or_create(&one("upstream", upstream))
            .observe(took);
    }

    /// The number of exchanges under way with an upstream changes.
    pub fn upstream_in_flight(&self, upstream: &str, change: i64) {
        remembered(&UPSTREAMS, self.id, upstream, || self.upstream(upstream)).in_flight(change);
    }

    /// A tunnel was opened.
    pub fn tunnel_opened(&self, kind: &'static str) {
        self.tunnels.get_or_create(&one("kind", kind)).change(1);
    }

    /// A tunnel ended; `how` is a fixed word.
    pub fn tunnel_closed(&self, kind: &'static str, how: &'static str) {
        self.tunnels.get_or_create(&one("kind", kind)).change(-1);
        self.tunnels_ended
            .get_or_create(&two(("kind", kind), ("how", how)))
            .inc();
    }

    /// A listener accepted a connection.
    pub fn connection_opened(&self, listener: &str) {
        let listener = self.listener(listener);
        listener.open.get().change(1);
        listener.accepted.get().inc();
    }

    /// A connection ended.
    pub fn connection_closed(&self, listener: &str) {
        self.listener(listener).open.get().change(-1);
    }

    /// A connection was closed before it was served, because of this bound.
    pub fn connection_refused(&self, listener: &str, bound: &'static str) {
        self.connections_refused
            .get_or_create(&two(("listener", listener), ("bound", bound)))
            .inc();
    }

    /// Why a connection ended.
    pub fn connection_ended(&self, listener: &str, ending: &'static str) {
        self.listener(listener).ended.inc(ending);
    }

    /// Accepting failed.
    pub fn accept_failed(&self, listener: &str, kind: &'static str) {
        self.accept_failures
            .get_or_create(&two(("listener", listener), ("kind", kind)))
            .inc();
    }

    /// A TLS handshake was finished.
    pub fn handshake_finished(&self, listener: &str, version: &'static str, resumed: bool) {
        let resumed = if resumed { "true" } else { "false" };
        let [listener, version] = two(("listener", listener), ("version", version));
        self.handshakes
            .get_or_create(&[listener, version, ("resumed", resumed.to_owned())])
            .inc();
    }

    /// A TLS handshake failed.
    pub fn handshake_failed(&self, listener: &str, fault: &'static str) {
        self.handshake_failures
            .get_or_create(&two(("listener", listener), ("fault", fault)))
            .inc();
    }

    /// A connection ends because its client certificate is no longer believed.
    pub fn certificate_lapsed(&self, listener: &str, reason: &'static str) {
        self.certificates_lapsed
            .get_or_create(&two(("listener", listener), ("reason", reason)))
            .inc();
    }

    /// A fetch of a certificate revocation list ended; `ok`, or a fixed word for what went wrong.
    pub fn crl_fetch(&self, listener: &str, outcome: &'static str) {
        self.crl_fetches
            .get_or_create(&two(("listener", listener), ("outcome", outcome)))
            .inc();
    }

    /// A certificate revocation list is in force: its URL as configured, or `certificates` for those
    /// that certificates name.
    pub fn crl(&self, listener: &str, list: &str, issued: SystemTime, ends: SystemTime) {
        let labels = two(("listener", listener), ("list", list));
        let seconds = |time| i64::try_from(clock::unix_seconds(time)).unwrap_or(i64::MAX);
        self.crl_issued.get_or_create(&labels).set(seconds(issued));
        self.crl_end.get_or_create(&labels).set(seconds(ends));
    }

    /// An OCSP responder was asked: `good`, `revoked`, `unknown`, or a fixed word for what went wrong.
    pub fn ocsp_answer(&self, listener: &str, outcome: &'static str) {
        self.ocsp_answers
            .get_or_create(&two(("listener", listener), ("outcome", outcome)))
            .inc();
    }

    /// A fetch of an issuer's key set ended; `ok`, or a fixed word for what went wrong.
    pub fn jwks_fetch(&self, issuer: &str, outcome: &'static str) {
        self.jwks_fetches
            .get_or_create(&two(("issuer", issuer), ("outcome", outcome)))
            .inc();
    }

    /// How many usable keys an issuer has, and when they were last fetched.
    pub fn jwks_keys(&self, issuer: &str, keys: usize, fetched_at: Option<SystemTime>) {
        let issuer = one("issuer", issuer);
        self.jwks_keys.get_or_create(&issuer).set(clamp(keys));
        if let Some(at) = fetched_at {
            let at = i64::try_from(clock::unix_seconds(at)).unwrap_or(i64::MAX);
            self.jwks_fetched_at.get_or_create(&issuer).set(at);
        }
    }

    /// Something became of an issuer's keys; a fixed word.
    pub fn jwks_event(&self, issuer: &str, event: &'static str) {
        self.jwks_events
            .get_or_create(&two(("issuer", issuer), ("event", event)))
            .inc();
    }

    /// Whether an issuer's keys in force are those kept on disk, and how many are distrusted.
    pub fn jwks_standing(&self, issuer: &str, from_disk: bool, distrusted: usize) {
        let issuer = one("issuer", issuer);
        self.jwks_from_disk
            .get_or_create(&issuer)
            .set(i64::from(from_disk));
        self.jwks_distrusted
            .get_or_create(&issuer)
            .set(clamp(distrusted));
    }

    /// A token named an unknown key; what was done about it.
    pub fn jwks_unknown_key(&self, issuer: &str, outcome: &'static str) {
        remembered(&ISSUERS, self.id, issuer, || self.issuer(issuer))
            .unknown_keys
            .inc(outcome);
    }

    /// A feed of revocations brought something; what became of it.
    pub fn revocation_event(&self, feed: &str, outcome: &'static str) {
        self.revocation_events
            .get_or_create(&two(("feed", feed), ("outcome", outcome)))
            .inc();
    }

    /// A token was looked up among the verified ones: `hit`, `miss`, `refused`.
    pub fn token_cache(&self, issuer: &str, outcome: &'static str) {
        remembered(&ISSUERS, self.id, issuer, || self.issuer(issuer)).token_cache(outcome);
    }

    /// An entry was brought, or lifted, by a source with one of few names: `taken`, `known`, `full`,
    /// `past`, `refused`, `lifted`.
    pub fn revocation(&self, source: &str, outcome: &'static str) {
        self.revocations
            .get_or_create(&two(("source", source), ("outcome", outcome)))
            .inc();
    }

    /// How many entries of a kind are in force.
    pub fn revocation_entries(&self, kind: &'static str, entries: usize) {
        self.revocation_entries
            .get_or_create(&one("kind", kind))
            .set(clamp(entries));
    }

    /// How many entries could still be brought, and how many wait for the disk.
    pub fn revocation_room(&self, room: usize, unsaved: u64) {
        self.revocation_room.set(clamp(room));
        let unsaved = usize::try_from(unsaved).unwrap_or(usize::MAX);
        self.revocation_unsaved.set(clamp(unsaved));
    }

    /// An edition of a signed list was looked for: `new`, `unchanged`, or a fixed word for what went
    /// wrong.
    pub fn revocation_list(&self, list: &str, outcome: &'static str) {
        self.revocation_lists
            .get_or_create(&two(("list", list), ("outcome", outcome)))
            .inc();
    }

    /// How long ago a feed of revocations was heard, and whether that is too long.
    pub fn revocation_feed(&self, feed: &str, age: Option<u64>, stale: bool) {
        let feed = one("feed", feed);
        let age = age.map_or(-1, |age| i64::try_from(age).unwrap_or(i64::MAX));
        self.feed_age.get_or_create(&feed).set(age);
        self.feed_stale.get_or_create(&feed).set(i64::from(stale));
    }

    /// A feed of revocations is gone.
    pub fn revocation_feed_gone(&self, feed: &str) {
        let feed = one("feed", feed);
        self.feed_age.remove(&feed);
        self.feed_stale.remove(&feed);
    }

    /// A request was turned away by this limit.
    pub fn limited(&self, limit: &str) {
        remembered(&LIMITS, self.id, limit, || {
            Series::new(self.limited.clone(), one("limit", limit))
        })
        .get()
        .inc();
    }

    /// How many keys a limit remembers.
    pub fn limit_keys(&self, limit: &str, keys: usize) {
        self.limit_keys
            .get_or_create(&one("limit", limit))
            .set(clamp(keys));
    }

    /// This many requests were counted in a limit's shared bucket since the last call.
    pub fn limit_overflowed(&self, limit: &str, requests: u64) {
        self.limit_overflows
            .get_or_create(&one("limit", limit))
            .inc_by(requests);
    }

    /// This many audit records reached the sink.
    pub fn audit_written(&self, records: u64) {
        self.audit_written.inc_by(records);
    }

    /// An audit record was lost.
    pub fn audit_dropped(&self, records: u64) {
        self.audit_dropped.inc_by(records);
    }

    /// What became of the reason of a denial that was recorded; a fixed word.
    pub fn audit_why(&self, outcome: &'static str) {
        self.audit_why.get_or_create(&one("outcome", outcome)).inc();
    }

    /// An audit record goes without what the policy was asked: too many bytes wait.
    pub fn audit_input_left_out(&self) {
        self.audit_inputs_left_out.inc();
    }

    /// The audit sink failed to write.
    pub fn audit_error(&self) {
        self.audit_errors.inc();
    }

    /// Routes left out records, for they keep a share of them.
    pub fn audit_sampled_out(&self, records: u64) {
        self.audit_sampled.inc_by(records);
    }

    /// A sink behind the ledger took records.
    pub fn ship_taken(&self, sink: &str, records: u64, bytes: u64) {
        let sink = one("sink", sink);
        self.ship_records.get_or_create(&sink).inc_by(records);
        self.ship_bytes.get_or_create(&sink).inc_by(bytes);
    }

    /// A sink behind the ledger did not take a delivery; a fixed word for why.
    pub fn ship_failed(&self, sink: &str, reason: &'static str) {
        let labels = two(("sink", sink), ("reason", reason));
        self.ship_failures.get_or_create(&labels).inc();
    }

    /// A sink behind the ledger will never have these records; a fixed word for why.
    pub fn ship_lost(&self, sink: &str, reason: &'static str, records: u64) {
        let labels = two(("sink", sink), ("reason", reason));
        self.ship_lost.get_or_create(&labels).inc_by(records);
    }

    /// A sink behind the ledger has these records, and the ledger has them no more.
    pub fn ship_ahead(&self, sink: &str, records: u64) {
        self.ship_ahead
            .get_or_create(&one("sink", sink))
            .inc_by(records);
    }

    /// How far a sink is behind the ledger.
    pub fn ship_behind(&self, sink: &str, records: u64, seconds: u64) {
        let sink = one("sink", sink);
        let gauge = |value: u64| i64::try_from(value).unwrap_or(i64::MAX);
        self.ship_behind_records
            .get_or_create(&sink)
            .set(gauge(records));
        self.ship_behind_seconds
            .get_or_create(&sink)
            .set(gauge(seconds));
    }

    /// A sink is configured no more.
    pub fn ship_gone(&self, sink: &str) {
        let sink = one("sink", sink);
        self.ship_behind_records.remove(&sink);
        self.ship_behind_seconds.remove(&sink);
    }

    /// The operator's rules did not keep an audit record.
    pub fn audit_rules_dropped(&self) {
        self.audit_rules_dropped.inc();
    }

    /// They failed, and an audit record was kept without what they could have masked.
    pub fn audit_rules_failed(&self) {
        self.audit_rules_failed.inc();
    }

    /// How many audit records wait.
    pub fn audit_queued(&self, records: usize) {
        self.audit_queued.set(clamp(records));
    }

    /// The collector took these spans, or did not.
    pub fn spans(&self, count: u64, exported: bool) {
        if exported {
            self.spans_exported.inc_by(count);
        } else {
            self.spans_dropped.inc_by(count);
        }
    }

    /// A reload ended.
    pub fn reload(&self, ok: bool) {
        self.reloads
            .get_or_create(&one("outcome", outcome(ok)))
            .inc();
    }

    /// This configuration is in force from now on. Earlier revisions disappear, so that reloads do
    /// not grow the number of series.
    pub fn in_force(&self, revision: &str) {
        self.revision.clear();
        self.revision
            .get_or_create(&one("revision", revision))
            .set(1);
        self.reloaded_at.set(seconds_now());
    }

    /// A bundle came in force.
    pub fn bundle_activated(&self, bundle: &str) {
        self.bundle_activations
            .get_or_create(&one("bundle", bundle))
            .inc();
    }

    /// A bundle was not taken; a fixed word for why.
    pub fn bundle_failure(&self, bundle: &str, reason: &'static str) {
        self.bundle_failures
            .get_or_create(&two(("bundle", bundle), ("reason", reason)))
            .inc();
    }

    /// The bundle in force was known to be the newest at this time.
    pub fn bundle_success(&self, bundle: &str, at: SystemTime) {
        let at = i64::try_from(clock::unix_seconds(at)).unwrap_or(i64::MAX);
        self.bundle_success
            .get_or_create(&one("bundle", bundle))
            .set(at);
    }

    /// This revision of a bundle is in force from now on, or none. The one before disappears, so that
    /// bundles do not grow the number of series.
    pub fn bundle_in_force(&self, bundle: &str, revision: Option<&str>) {
        // A publisher may call it anything; a label has no quotes to leave.
        let revision = revision.map(|revision| revision.replace(['"', '\\'], "_"));
        let mut known = self
            .bundle_revisions
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let before = match &revision {
            Some(revision) => known.insert(bundle.to_owned(), revision.clone()),
            None => known.remove(bundle),
        };
        if let Some(before) = before {
            self.bundle_revision
                .remove(&two(("bundle", bundle), ("revision", &before)));
        }
        if let Some(revision) = revision {
            self.bundle_revision
                .get_or_create(&two(("bundle", bundle), ("revision", &revision)))
                .set(1);
        }
    }

    /// How many client connections are open.
    pub fn open_connections(&self, listener: &str) -> i64 {
        self.connections
            .get_or_create(&one("listener", listener))
            .get()
    }

    /// How many requests are under way.
    pub fn open_requests(&self) -> i64 {
        self.in_flight.get()
    }
}

fn outcome(ok: bool) -> &'static str {
    if ok { "ok" } else { "failed" }
}

fn seconds_now() -> i64 {
    i64::try_from(clock::unix_seconds(clock::now())).unwrap_or(i64::MAX)
}

fn clamp(count: usize) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests;
