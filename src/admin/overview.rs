//! The numbers at one look: what comes in, what becomes of it, what needs somebody, and the limits.

use std::collections::BTreeMap;
use std::sync::atomic::Ordering;

use http::StatusCode;
use serde_json::{Map, Value, json};

use super::pages::{self, answer};
use super::{AdminState, Page};
use crate::limit::{AskedLimits, FailureLimiter};
use crate::metrics::Figure;

/// Most routes that are shown, those with the most requests; further ones are missing from the list
/// and counted in the sums.
const MAX_ROUTES: usize = 500;

/// What the page shows on top.
pub(super) fn overview(state: &AdminState) -> Page {
    let snapshot = state.live.current();
    let metrics = &snapshot.metrics;
    let figures = metrics.figures();
    let mut routes: Vec<(&str, ByRoute<'_>)> = by_route(&figures).into_iter().collect();
    routes.sort_by_key(|(_, counts)| std::cmp::Reverse(counts.all()));
    let more = routes.len().saturating_sub(MAX_ROUTES);
    routes.truncate(MAX_ROUTES);
    let routes: Map<String, Value> = routes
        .into_iter()
        .map(|(name, counts)| {
            let counts = json!({ "requests": counts.requests, "refusals": counts.refusals });
            (name.to_owned(), counts)
        })
        .collect();
    let draining = state.draining.load(Ordering::Relaxed);
    let reasons = pages::reasons(&snapshot, draining);
    answer(
        StatusCode::OK,
        &json!({
            "version": env!("CARGO_PKG_VERSION"),
            "revision": *snapshot.revision,
            "uptime_seconds": state.started.elapsed().as_secs(),
            "ready": reasons.is_empty(),
            "draining": draining,
            "reasons": reasons,
            "warnings": pages::warnings(&snapshot),
            "requests_in_flight": metrics.open_requests(),
            "open_streams": metrics.open_streams(),
            "requests": sums(&figures, "requests", "status"),
            "decisions": sums(&figures, "decisions", "outcome"),
            "refusals": sums(&figures, "refusals", "code"),
            "limited": figures.iter().filter(|f| f.family == "limited").map(|f| f.value).sum::<i64>(),
            "routes": routes,
            "routes_left_out": more,
            "audit": {
                "accepting": snapshot.audit.accepting(),
                "waiting": snapshot.audit.waiting(),
                "failing": snapshot.audit.failing(),
            },
        }),
    )
}

#[derive(Default)]
struct ByRoute<'f> {
    requests: BTreeMap<&'f str, i64>,
    refusals: BTreeMap<&'f str, i64>,
}

impl ByRoute<'_> {
    fn all(&self) -> i64 {
        self.requests.values().sum()
    }
}

fn by_route(figures: &[Figure]) -> BTreeMap<&str, ByRoute<'_>> {
    let mut routes: BTreeMap<&str, ByRoute<'_>> = BTreeMap::new();
    for figure in figures {
        let (word, requests) = match figure.family.as_str() {
            "requests" => ("status", true),
            "refusals" => ("code", false),
            _ => continue,
        };
        let counts = routes.entry(figure.label("route")).or_default();
        let counts = if requests {
            &mut counts.requests
        } else {
            &mut counts.refusals
        };
        *counts.entry(figure.label(word)).or_default() += figure.value;
    }
    routes
}

/// The numbers of a family, summed by one label.
fn sums<'f>(figures: &'f [Figure], family: &str, label: &str) -> BTreeMap<&'f str, i64> {
    let mut sums = BTreeMap::new();
    for figure in figures.iter().filter(|figure| figure.family == family) {
        *sums.entry(figure.label(label)).or_default() += figure.value;
    }
    sums
}

/// Every limit: what it allows, how full it is, whom it turned away.
pub(super) fn limits(state: &AdminState) -> Page {
    let snapshot = state.live.current();
    let figures = snapshot.metrics.figures();
    let count = |family: &str, limit: &str| {
        figures
            .iter()
            .filter(|figure| figure.family == family && figure.label("limit") == limit)
            .map(|figure| figure.value)
            .sum::<i64>()
    };
    let mut limits: Vec<Value> = Vec::new();
    for (name, limiter) in &snapshot.limits.limiters {
        let terms = limiter.terms();
        let routes = snapshot.routes.iter();
        let routes: Vec<&str> = routes
            .filter(|route| route.limits.names().any(|limit| limit == name))
            .map(|route| &*route.name)
            .collect();
        limits.push(json!({
            "name": name,
            "by": terms.by,
            "rate": terms.rate,
            "burst": terms.burst,
            "keys": limiter.keys(),
            "max_keys": terms.max_keys,
            "turned_away": count("limited", name),
            "overflows": count("limit_overflows", name),
            "routes": routes,
        }));
    }
    if let Some(failures) = &snapshot.limits.failures {
        let terms = failures.terms();
        limits.push(json!({
            "name": FailureLimiter::NAME,
            "by": "address",
            "rate": terms.rate,
            "burst": terms.burst,
            "keys": failures.keys(),
            "max_keys": terms.max_keys,
            "turned_away": count("limited", FailureLimiter::NAME),
            "overflows": count("limit_overflows", FailureLimiter::NAME),
            "routes": null,
        }));
    }
    limits.push(json!({
        "name": AskedLimits::NAME,
        "by": "policy",
        "rate": null,
        "burst": null,
        "keys": null,
        "max_keys": null,
        "turned_away": count("limited", AskedLimits::NAME),
        "overflows": count("limit_overflows", AskedLimits::NAME),
        "routes": null,
    }));
    answer(StatusCode::OK, &json!({ "limits": limits }))
}
