//! Candidates: what they would change, and whether they decide.

use std::sync::Arc;

use http::{Method, StatusCode};
use serde_json::json;

use super::pages::{self, answer, problem};
use super::{AdminState, Page};

const PATH: &str = "/candidates";

/// Whether the page at `path` is one of these.
pub(super) fn is_here(path: &str) -> bool {
    path.strip_prefix(PATH)
        .is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

/// The page at `path`, which [`is_here`]. Called on the control thread's runtime.
pub(super) fn find(state: &AdminState, method: &Method, path: &str) -> Page {
    let snapshot = state.live.current();
    let reading = matches!(*method, Method::GET | Method::HEAD);
    let rest = path.strip_prefix(PATH).unwrap_or_default();
    let Some(rest) = rest.strip_prefix('/') else {
        return if reading {
            answer(StatusCode::OK, &snapshot.candidates.told())
        } else {
            pages::wrong_method()
        };
    };
    let (name, order) = rest
        .split_once('/')
        .map_or((rest, None), |(name, order)| (name, Some(order)));
    let Some(candidate) = snapshot.candidates.named.get(name) else {
        return problem(StatusCode::NOT_FOUND, "there is no such candidate");
    };
    let Some(order) = order else {
        return if reading {
            answer(StatusCode::OK, &candidate.told(true))
        } else {
            pages::wrong_method()
        };
    };
    if !matches!(order, "reset" | "resume" | "back") {
        return problem(StatusCode::NOT_FOUND, "there is no such page");
    }
    if *method != Method::POST {
        return pages::wrong_method();
    }
    if order != "reset" && !candidate.enforces() {
        let message = "it decides nothing: its block has no `enforce`";
        return problem(StatusCode::CONFLICT, message);
    }
    let changed = match order {
        "resume" => snapshot.candidates.resume(candidate),
        "back" => candidate.send_back(),
        _ => {
            candidate.reset();
            true
        }
    };
    // A reload in between has made another of it, which shares what was changed, or has another text.
    let now = state.live.current();
    let now = now
        .candidates
        .named
        .get(name)
        .map_or_else(|| Arc::clone(candidate), Arc::clone);
    answer(
        StatusCode::OK,
        &json!({ "candidate": name, "order": order, "changed": changed, "standing": now.standing() }),
    )
}
