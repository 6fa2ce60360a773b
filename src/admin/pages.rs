//! What the admin listener answers.

use std::sync::atomic::Ordering;

use http::{Method, StatusCode};
use serde_json::{Map, Value, json};

use super::{AdminState, Page, Trusted};
use crate::clock;
use crate::schema::{Problem, Severity};
use crate::snapshot::Snapshot;

const JSON: &str = "application/json";
const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
const YAML: &str = "application/yaml";
const TEXT: &str = "text/plain; charset=utf-8";

const INDEX: &str = "\
portcullis admin

GET  /live     the process answers
GET  /ready    whether traffic should come here, with reasons
GET  /metrics  numbers, as OpenMetrics text
GET  /config   the configuration in force, defaults filled in, secrets as references  (token)
GET  /status   revision, issuers, policies, upstreams, limits                         (token)
POST /reload   load the configuration anew; problems as JSON                          (token, or
               `X-Portcullis-Admin: 1` where no token is configured)
";

/// The page at `path`.
pub(super) async fn find(
    state: &AdminState,
    method: &Method,
    path: &str,
    trusted: Trusted,
) -> Page {
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
        "/config" | "/status" | "/reload" if !trusted.token => problem(
            StatusCode::UNAUTHORIZED,
            "this page requires the admin token",
        ),
        "/config" if reading => {
            let text = state.live.current().effective.clone();
            page(StatusCode::OK, YAML, text)
        }
        "/status" if reading => status(state),
        "/reload" if posting && !trusted.intent => problem(
            StatusCode::FORBIDDEN,
            "send the header `X-Portcullis-Admin: 1` to show that this is meant",
        ),
        "/reload" if posting => reload(state).await,
        "/" | "/live" | "/ready" | "/metrics" | "/config" | "/status" | "/reload" => problem(
            StatusCode::METHOD_NOT_ALLOWED,
            "this page does not take that method",
        ),
        _ => problem(StatusCode::NOT_FOUND, "there is no such page"),
    }
}

/// A JSON document that says what is wrong.
pub(super) fn problem(status: StatusCode, message: &str) -> Page {
    answer(status, &json!({ "error": message }))
}

fn answer(status: StatusCode, document: &Value) -> Page {
    page(status, JSON, format!("{document:#}\n"))
}

fn page(status: StatusCode, content_type: &'static str, text: String) -> Page {
    Page {
        status,
        content_type,
        text,
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
fn reasons(snapshot: &Snapshot, draining: bool) -> Vec<String> {
    let mut reasons = Vec::new();
    if draining {
        reasons.push("draining: the gateway is about to leave".to_owned());
    }
    for issuer in snapshot.issuers.values() {
        if let Err(reason) = issuer.ready() {
            reasons.push(reason);
        }
    }
    for (name, upstream) in &snapshot.upstreams {
        if upstream.usable().0 == 0 {
            reasons.push(format!("upstream {name}: no endpoint has an address yet"));
        }
    }
    if !snapshot.audit.accepting() {
        reasons.push("audit: no room for further records".to_owned());
    }
    reasons
}

/// What is wrong without keeping traffic away: another replica would fare no better, or this one
/// does its work from what it has.
fn warnings(snapshot: &Snapshot) -> Vec<String> {
    let mut warnings = Vec::new();
    for (name, issuer) in &snapshot.issuers {
        let keys = issuer.status();
        if issuer.ready().is_ok()
            && let Some(error) = keys.last_error
        {
            let age = keys.age_seconds.unwrap_or_default();
            warnings.push(format!(
                "issuer {name}: stale keys, {age} s old, are believed: the last fetch failed: {error}"
            ));
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
    if snapshot.audit.failing() {
        warnings.push("audit: records cannot be written".to_owned());
    }
    warnings
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
                "age_seconds": keys.age_seconds,
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
    let listeners: Map<String, Value> = snapshot
        .listeners
        .iter()
        .map(|(name, listener)| {
            let state = json!({
                "address": listener.address.to_string(),
                "connections": metrics.open_connections(name),
            });
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
        "upstreams": upstreams,
        "limits": limits,
        "audit": {
            "accepting": snapshot.audit.accepting(),
            "waiting": snapshot.audit.waiting(),
            "failing": snapshot.audit.failing(),
        },
    });
    answer(StatusCode::OK, &document)
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
