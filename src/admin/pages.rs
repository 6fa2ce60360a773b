//! What the admin listener answers.

use std::sync::atomic::Ordering;
use std::time::SystemTime;

use http::{Method, StatusCode, Uri};
use serde_json::{Map, Value, json};

use super::{AdminState, Page, overview, survey};
use crate::authn::jwt::Origin;
use crate::authz::cost::LiveCost;
use crate::clock;
use crate::revocation::StaleRule;
use crate::schema::{Problem, Severity};
use crate::snapshot::Snapshot;
use crate::tls::ClientTrust;

const JSON: &str = "application/json";
const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
const YAML: &str = "application/yaml";
const TEXT: &str = "text/plain; charset=utf-8";

pub(super) const INDEX: &str = "\
portcullis admin        the page for people is here too: open this address in a browser

(token): with `Authorization: Bearer TOKEN`, the `admin.token` of the configuration. Where none is
configured, these pages are served to nobody.

GET  /live     the process answers
GET  /ready    whether traffic should come here, with reasons
GET  /metrics  numbers, as OpenMetrics text
GET  /config   the configuration in force, defaults filled in, secrets as references  (token)
GET  /status   revision, issuers, policies, upstreams, limits                         (token)
GET  /bundles  each bundle: revision, files, last request, success and error          (token)
GET  /overview requests, decisions, refusals, what needs somebody                     (token)
GET  /limits   what each limit allows, how full it is, whom it turned away            (token)
GET  /upstreams   endpoints as the workers have seen them, attempts, who uses them    (token)
GET  /streams  what is open under a permission; route=, caller=, limit=               (token)
GET  /policies the costliest rules of every policy, from one evaluation in 64         (token)
GET  /keys     the keys of every issuer: kids, thumbprints, ages, what is distrusted  (token)
GET  /decisions   the last decisions; after=, before=, limit=, wait=, and filters:    (token)
               route=, caller=, decision=, code=, status=, policy=
GET  /decisions/ID   one of them, by its decision id or request id, and why           (token)
GET  /candidates   what candidates would change; /candidates/NAME for one           (token)
POST /candidates/NAME/reset|resume|back   count anew; let it decide again; let its
               policy decide again                                                    (token)
GET  /traces   which requests are being traced                                        (token)
GET  /traces/ID   what one has seen: stages, record, why; after=, wait=               (token)
POST /traces   trace requests: {\"route\": NAME}, {\"caller\": SUBJECT} or
               {\"header\": true}; \"count\": 10, \"for\": \"60s\"                          (token)
DELETE /traces/ID   end a trace                                                       (token)
POST /reload   load the configuration anew; problems as JSON                          (token)
GET  /revocations   what is revoked; issuer=, kind=, limit=, after=                   (token)
POST /revocations   revoke: {\"kind\": …, \"issuer\": …, …}, or a list of such           (token)
POST /revocations/logout   end all of somebody's tokens: {\"issuer\": …, \"subject\": …}      (token)
DELETE /revocations   take an entry back, by the same members                            (token)
POST /keys/distrust  believe a key no more, body {\"issuer\": NAME, \"kid\": KEY}: what it
               signed ends at once, streams too                                       (token)
POST /keys/trust     believe it again, with the same body                                    (token)
";

/// Whether a page of these is for everybody: what says nothing of requests and callers, and changes
/// nothing. `/ready` says what is out of order and `/metrics` counts, by names of the configuration.
pub(super) fn is_open(path: &str) -> bool {
    matches!(path, "/" | "/live" | "/ready" | "/metrics")
}

/// The page at `path`.
pub(super) async fn find(state: &AdminState, method: &Method, uri: &Uri) -> Page {
    let path = uri.path();
    let reading = matches!(*method, Method::GET | Method::HEAD);
    let posting = *method == Method::POST;
    match path {
        "/" if reading => page(StatusCode::OK, TEXT, INDEX.to_owned()),
        "/live" if reading => answer(StatusCode::OK, &json!({ "live": true })),
        "/ready" if reading => ready(state),
        "/metrics" if reading => {
            let text = state.live.current().metrics.encode();
            page(StatusCode::OK, OPEN_METRICS, text)
        }
        "/config" if reading => match state.live.current().effective.yaml() {
            Ok(text) => page(StatusCode::OK, YAML, text),
            Err(error) => {
                tracing::error!(%error, "the effective document cannot be written");
                let what = "the effective document cannot be written: see the log";
                problem(StatusCode::INTERNAL_SERVER_ERROR, what)
            }
        },
        "/status" if reading => status(state),
        "/bundles" if reading => bundles(state),
        "/policies" if reading => policies(state),
        "/overview" if reading => overview::overview(state),
        "/limits" if reading => overview::limits(state),
        "/upstreams" if reading => survey::upstreams(state).await,
        "/streams" if reading => survey::streams(state, uri).await,
        "/reload" if posting => reload(state).await,
        "/" | "/live" | "/ready" | "/metrics" | "/config" | "/status" | "/policies"
        | "/bundles" | "/reload" | "/overview" | "/limits" | "/upstreams" | "/streams" => {
            wrong_method()
        }
        _ => problem(StatusCode::NOT_FOUND, "there is no such page"),
    }
}

/// The answer to whoever shows no token where one is required.
pub(super) fn untrusted() -> Page {
    problem(
        StatusCode::UNAUTHORIZED,
        "this page requires the admin token",
    )
}

/// The answer to everybody where there is no token to show.
pub(super) fn unconfigured() -> Page {
    problem(StatusCode::FORBIDDEN, UNCONFIGURED)
}

/// What is to be done about it.
pub(super) const UNCONFIGURED: &str = "no admin token is configured, so nothing is served but /live, \
    /ready and /metrics: set `admin.token: file:PATH` (or `env:NAME`) to a secret as `openssl rand \
    -hex 32` makes it, reload, and send it as `Authorization: Bearer …`";

/// The answer to what a page of another origin could have sent.
pub(super) fn unmeant() -> Page {
    problem(
        StatusCode::FORBIDDEN,
        "send the header `X-Portcullis-Admin: 1` to show that this is meant",
    )
}

/// The answer to another method than the page takes.
pub(super) fn wrong_method() -> Page {
    problem(
        StatusCode::METHOD_NOT_ALLOWED,
        "this page does not take that method",
    )
}

/// A JSON document that says what is wrong.
pub(super) fn problem(status: StatusCode, message: &str) -> Page {
    answer(status, &json!({ "error": message }))
}

/// A JSON document.
pub(super) fn answer(status: StatusCode, document: &Value) -> Page {
    page(status, JSON, format!("{document:#}\n"))
}

/// JSON that is written already.
pub(super) fn raw_json(text: String) -> Page {
    page(StatusCode::OK, JSON, text)
}

/// A page of some kind.
pub(super) fn page(status: StatusCode, content_type: &'static str, text: String) -> Page {
    Page {
        status,
        content_type,
        text,
        cookie: None,
    }
}

fn ready(state: &AdminState) -> Page {
    let snapshot = state.live.current();
    let reasons = reasons(&snapshot, state.draining.load(Ordering::Relaxed));
    let status = if reasons.is_empty() {
        StatusCode::OK
    } else {
        StatusCode::SERVICE_UNAVAILABLE
    };
    answer(
        status,
        &json!({
            "ready": reasons.is_empty(),
            "reasons": reasons,
            "warnings": warnings(&snapshot),
        }),
    )
}

/// Why traffic should not come here now. A gateway without the keys of an issuer refuses that
/// issuer's callers, so it says so before it gets any.
pub(super) fn reasons(snapshot: &Snapshot, draining: bool) -> Vec<String> {
    let mut reasons = Vec::new();
    if draining {
        reasons.push("draining: the gateway is about to leave".to_owned());
    }
    for issuer in snapshot.issuers.values() {
        if let Err(reason) = issuer.ready() {
            reasons.push(reason);
        }
    }
    for (name, bundle) in &snapshot.bundles.named {
        // One that no policy uses keeps nobody out.
        if let Err(reason) = bundle.ready()
            && snapshot.policies.values().any(|policy| policy.uses(name))
        {
            reasons.push(reason);
        }
    }
    for (name, listener) in &snapshot.listeners {
        // Nothing but what another replica may have: it was never fetched here.
        if let Some(trust) = listener.clients()
            && trust.is_mandatory()
            && trust.is_blind()
            && !trust.allows_unknown()
        {
            reasons.push(format!(
                "listener {name}: no certificate revocation list has been fetched yet"
            ));
        }
    }
    for (name, upstream) in &snapshot.upstreams {
        if upstream.usable().0 == 0 {
            reasons.push(format!("upstream {name}: no endpoint has an address yet"));
        }
    }
    if routes_refuse(snapshot) {
        reasons.extend(snapshot.revocation.faults(clock::now()).0);
    }
    if !snapshot.audit.accepting() {
        reasons.push("audit: no room for further records".to_owned());
    }
    reasons
}

/// Whether a route believes nobody while a feed of revocations is silent.
fn routes_refuse(snapshot: &Snapshot) -> bool {
    snapshot
        .routes
        .iter()
        .any(|route| route.stale == StaleRule::Refuse)
}

/// What is wrong without keeping traffic away: another replica would fare no better, or this one
/// does its work from what it has.
pub(super) fn warnings(snapshot: &Snapshot) -> Vec<String> {
    let mut warnings = Vec::new();
    for (name, issuer) in &snapshot.issuers {
        let keys = issuer.status();
        if issuer.ready().is_ok()
            && let Some(error) = keys.last_error
        {
            let age = keys.age_seconds.unwrap_or_default();
            let left = keys.believed_for_seconds.unwrap_or_default();
            let kept = if keys.source == Origin::Disk {
                " and kept on disk"
            } else {
                ""
            };
            warnings.push(format!(
                "issuer {name}: stale keys, {age} s old{kept}, are believed for {left} s more: \
                 the last fetch failed: {error}"
            ));
        }
        if let Some(error) = keys.file_error {
            warnings.push(format!("issuer {name}: its keys on disk: {error}"));
        }
    }
    for bundle in snapshot.bundles.named.values() {
        warnings.extend(bundle.faults());
    }
    for (name, listener) in &snapshot.listeners {
        let Some(trust) = listener.clients() else {
            continue;
        };
        for authority in trust.without_lists(clock::now()) {
            warnings.push(format!(
                "listener {name}: no certificate revocation list of {authority} is in force"
            ));
        }
        for point in trust.point_statuses() {
            if let Some(error) = point.last_error {
                warnings.push(format!(
                    "listener {name}: {}: the last fetch failed: {error}",
                    point.url
                ));
            }
        }
    }
    for (name, upstream) in &snapshot.upstreams {
        let (usable, all) = upstream.usable();
        if usable > 0 && usable < all {
            warnings.push(format!(
                "upstream {name}: {} of {all} endpoints have no address",
                all - usable
            ));
        }
    }
    warnings.extend(snapshot.candidates.warnings());
    let (stale, others) = snapshot.revocation.faults(clock::now());
    if !routes_refuse(snapshot) {
        warnings.extend(stale);
    }
    warnings.extend(others);
    if snapshot.audit.failing() {
        warnings.push("audit: records cannot be written".to_owned());
    }
    for (name, ship) in snapshot.audit.shipping() {
        if let Some(error) = ship.error {
            warnings.push(format!(
                "audit: sink {name} is {} records and {} s behind, which wait in the ledger: {error}",
                ship.behind_records, ship.behind_seconds
            ));
        }
    }
    warnings
}

fn bundles(state: &AdminState) -> Page {
    let snapshot = state.live.current();
    let named: Map<String, Value> = snapshot
        .bundles
        .named
        .iter()
        .map(|(name, bundle)| {
            let users = snapshot.policies.iter();
            let users = users.filter(|(_, policy)| policy.uses(name));
            let users: Vec<&str> = users.map(|(name, _)| name.as_str()).collect();
            let tried = snapshot.candidates.named.iter();
            let tried = tried.filter(|(_, candidate)| candidate.policy.uses(name));
            let tried: Vec<&str> = tried.map(|(name, _)| name.as_str()).collect();
            let mut status = json!(bundle.status());
            if let Value::Object(members) = &mut status {
                members.insert("policies".to_owned(), json!(users));
                members.insert("candidates".to_owned(), json!(tried));
            }
            (name.clone(), status)
        })
        .collect();
    answer(StatusCode::OK, &json!({ "bundles": named }))
}

/// Most rules that are shown of a policy.
const MAX_RULES: usize = 20;

/// The costliest rules of each policy, by the time that they took without those that they call.
fn policies(state: &AdminState) -> Page {
    let snapshot = state.live.current();
    let policies: Map<String, Value> = snapshot
        .policies
        .iter()
        .map(|(name, policy)| {
            let costs = policy.costs();
            let all: f64 = costs.iter().map(|rule| rule.time.as_secs_f64()).sum();
            let rules: Vec<Value> = costs
                .iter()
                .filter(|rule| rule.evaluations > 0)
                .take(MAX_RULES)
                .map(|rule| {
                    json!({
                        "rule": rule.rule,
                        "at": format!("{}:{}", rule.file, rule.line),
                        "evaluations": rule.evaluations,
                        "seconds": rule.time.as_secs_f64(),
                        "share": if all > 0.0 { rule.time.as_secs_f64() / all } else { 0.0 },
                        "budget_overruns": rule.overruns,
                    })
                })
                .collect();
            let state = json!({
                "revision": policy.revision(),
                "engine": policy.engine(),
                "watched": policy.watched(),
                "watched_one_in": LiveCost::ONE_IN,
                "rules": rules,
            });
            (name.clone(), state)
        })
        .collect();
    answer(StatusCode::OK, &json!({ "policies": policies }))
}

fn status(state: &AdminState) -> Page {
    let snapshot = state.live.current();
    let metrics = &snapshot.metrics;
    let age = clock::now()
        .duration_since(snapshot.compiled_at)
        .map_or(0, |age| age.as_secs());
    let issuers: Map<String, Value> = snapshot
        .issuers
        .iter()
        .map(|(name, issuer)| {
            let keys = issuer.status();
            let state = json!({
                "ready": issuer.ready().is_ok(),
                "reason": issuer.ready().err(),
                "keys": keys.keys,
                "source": keys.source,
                "age_seconds": keys.age_seconds,
                "believed_for_seconds": keys.believed_for_seconds,
                "distrusted": keys.distrusted,
                "file_error": keys.file_error,
                "attempts": keys.attempts,
                "last_error": keys.last_error,
                "notes": keys.notes,
            });
            (name.clone(), state)
        })
        .collect();
    let policies: Map<String, Value> = snapshot
        .policies
        .iter()
        .map(|(name, policy)| {
            let state = json!({ "revision": policy.revision(), "engine": policy.engine() });
            (name.clone(), state)
        })
        .collect();
    let candidates: Map<String, Value> = snapshot
        .candidates
        .named
        .iter()
        .map(|(name, candidate)| {
            let state = json!({
                "of": &**candidate.of(),
                "revision": candidate.policy.revision(),
                "engine": candidate.policy.engine(),
                "standing": candidate.standing(),
                "back": candidate.back().map(|back| back.why),
            });
            (name.clone(), state)
        })
        .collect();
    let listeners: Map<String, Value> = snapshot
        .listeners
        .iter()
        .map(|(name, listener)| {
            let mut state = json!({
                "address": listener.address.to_string(),
                "connections": metrics.open_connections(name),
            });
            if let Some(trust) = listener.clients() {
                certificates(trust, &mut state);
            }
            (name.clone(), state)
        })
        .collect();
    let limits: Map<String, Value> = snapshot
        .limits
        .limiters
        .iter()
        .map(|(name, limiter)| (name.clone(), json!({ "keys": limiter.keys() })))
        .collect();
    let upstreams: Map<String, Value> = snapshot
        .upstreams
        .iter()
        .map(|(name, upstream)| {
            let (usable, all) = upstream.usable();
            let state = json!({ "endpoints": all, "usable": usable });
            (name.clone(), state)
        })
        .collect();
    let document = json!({
        "version": env!("CARGO_PKG_VERSION"),
        "revision": *snapshot.revision,
        "uptime_seconds": state.started.elapsed().as_secs(),
        "configuration_age_seconds": age,
        "draining": state.draining.load(Ordering::Relaxed),
        "requests_in_flight": metrics.open_requests(),
        "listeners": listeners,
        "issuers": issuers,
        "policies": policies,
        "candidates": candidates,
        "upstreams": upstreams,
        "limits": limits,
        "revocation": revocation(&snapshot),
        "audit": {
            "accepting": snapshot.audit.accepting(),
            "waiting": snapshot.audit.waiting(),
            "failing": snapshot.audit.failing(),
            "ship": snapshot.audit.shipping(),
        },
    });
    answer(StatusCode::OK, &document)
}

fn revocation(snapshot: &Snapshot) -> Value {
    let now = clock::now();
    let plane = snapshot.revocation.plane();
    let (taken, room) = plane.occupancy();
    let entries: Map<String, Value> = plane
        .counts()
        .into_iter()
        .map(|(kind, count)| (kind.to_owned(), count.into()))
        .collect();
    let feeds: Vec<_> = snapshot
        .revocation
        .feeds()
        .iter()
        .map(|feed| feed.status(now))
        .collect();
    json!({
        "entries": entries,
        "taken": taken,
        "max_entries": room,
        "full": plane.is_full(),
        "store": plane.store(),
        "feeds": feeds,
    })
}

/// What a listener knows of revoked certificates.
fn certificates(trust: &ClientTrust, state: &mut Value) {
    let now = clock::now();
    let seconds = |later: SystemTime, earlier: SystemTime| {
        later
            .duration_since(earlier)
            .map_or(0, |length| length.as_secs())
    };
    let lists: Vec<Value> = trust
        .point_statuses()
        .into_iter()
        .map(|point| {
            json!({
                "url": &*point.url,
                "age_seconds": point.list.map(|(issued, _)| seconds(now, issued)),
                "ends_in_seconds": point.list.map(|(_, ends)| seconds(ends, now)),
                "entries": point.entries,
                "last_error": point.last_error,
            })
        })
        .collect();
    if !lists.is_empty() {
        state["revocation_lists"] = lists.into();
    }
    let missing = trust.without_lists(now);
    if !missing.is_empty() {
        state["authorities_without_list"] = missing.into();
    }
    if let Some(answers) = trust.answers() {
        state["ocsp_answers"] = answers.into();
    }
}

async fn reload(state: &AdminState) -> Page {
    // Whoever asks twice gets two reloads, one after the other.
    let _turn = state.reloading.lock().await;
    match (state.reload)().await {
        Ok(revision) => answer(
            StatusCode::OK,
            &json!({ "reloaded": true, "revision": revision }),
        ),
        Err(problems) => {
            let errors = problems
                .iter()
                .filter(|problem: &&Problem| problem.severity == Severity::Error)
                .count();
            answer(
                StatusCode::UNPROCESSABLE_ENTITY,
                &json!({ "reloaded": false, "errors": errors, "problems": problems }),
            )
        }
    }
}
