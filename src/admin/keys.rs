//! Issuers' keys: which there are, and which are not to be believed.

use std::collections::BTreeMap;
use std::sync::Arc;

use http::{Method, StatusCode};
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::pages::{self, answer, problem};
use super::{AdminState, Page};
use crate::authn::jwks::{Judged, NotJudged};
use crate::authn::jwt::{Issuer, KeyName};
use crate::snapshot::Snapshot;

/// Longest name of a key that is read: a `kid` of a token is shorter, and so is a thumbprint.
const MAX_NAME: usize = 256;

/// Most reloads during one judgement after each of which the issuers are told again.
const MAX_ROUNDS: usize = 8;

/// Which key is meant. At least one of `kid` and `thumbprint` is there.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Wish {
    /// The name of the issuer's block, or its `iss`.
    issuer: String,
    kid: Option<String>,
    thumbprint: Option<String>,
}

/// Whether the page at `path` is one of these.
pub(super) fn is_here(path: &str) -> bool {
    matches!(path, "/keys" | "/keys/distrust" | "/keys/trust")
}

/// The page at `path`, which [`is_here`]; `body` is that of a request that changes something.
pub(super) async fn find(state: &AdminState, method: &Method, path: &str, body: &[u8]) -> Page {
    let reading = matches!(*method, Method::GET | Method::HEAD);
    match path {
        "/keys" if reading => list(state),
        "/keys/distrust" | "/keys/trust" if *method == Method::POST => {
            match serde_json::from_slice(body) {
                Ok(wish) => judge(state, wish, path == "/keys/distrust").await,
                Err(error) => problem(
                    StatusCode::BAD_REQUEST,
                    &format!(
                        "send JSON like {{\"issuer\": \"NAME\", \"kid\": \"KEY\"}}, or with a \
                         \"thumbprint\": {error}"
                    ),
                ),
            }
        }
        _ => pages::wrong_method(),
    }
}

fn list(state: &AdminState) -> Page {
    let snapshot = state.live.current();
    let issuers: Map<String, Value> = known(&snapshot)
        .map(|issuer| (issuer.name().to_string(), json!(issuer.key_page())))
        .collect();
    answer(StatusCode::OK, &json!({ "issuers": issuers }))
}

/// All issuers: the blocks, and those that are known to a stream of events alone, by `stream:NAME`.
fn known(snapshot: &Snapshot) -> impl Iterator<Item = &Arc<Issuer>> {
    let transmitters = snapshot.revocation.transmitters();
    snapshot.issuers.values().chain(transmitters)
}

async fn judge(state: &AdminState, wish: Wish, distrust: bool) -> Page {
    let is_name = |name: &String| !name.is_empty() && name.len() <= MAX_NAME;
    let given: Vec<_> = [&wish.kid, &wish.thumbprint]
        .into_iter()
        .flatten()
        .collect();
    if given.is_empty() || !given.into_iter().all(is_name) {
        return problem(
            StatusCode::BAD_REQUEST,
            "name the key by its `kid` or its `thumbprint`, of 1 to 256 bytes",
        );
    }
    let key = KeyName {
        kid: wish.kid.map(Into::into),
        thumbprint: wish.thumbprint.map(Into::into),
    };
    let mut judged: BTreeMap<Arc<str>, Judged> = BTreeMap::new();
    let mut refused = BTreeMap::new();
    let mut snapshot = state.live.current();
    for round in 0..MAX_ROUNDS {
        // Several blocks may trust one issuer under different rules; the key is the same.
        let issuers: Vec<&Arc<Issuer>> = known(&snapshot)
            .filter(|issuer| **issuer.name() == *wish.issuer || **issuer.issuer() == *wish.issuer)
            .collect();
        if issuers.is_empty() && round == 0 {
            return problem(StatusCode::NOT_FOUND, "there is no such issuer");
        }
        // In force for all of them, before the disk is waited for.
        let mut changed = Vec::new();
        for issuer in issuers {
            let outcome = if distrust {
                issuer.distrust(&key)
            } else {
                issuer.trust(&key)
            };
            match outcome {
                Ok(keys) => changed.push((issuer, keys)),
                Err(error @ (NotJudged::Secret | NotJudged::Full)) => {
                    refused.insert(Arc::clone(issuer.name()), error);
                }
            }
        }
        for (issuer, keys) in changed {
            let kept = issuer.keep_keys().await;
            let entry = judged.entry(Arc::clone(issuer.name())).or_insert(Judged {
                keys: Vec::new(),
                kept,
            });
            entry.kept = kept;
            // What an earlier round has lifted is not there to be lifted again.
            if !keys.is_empty() {
                entry.keys = keys;
            }
        }
        // A reload in between has made others of them, which have not been told.
        let now = state.live.current();
        if Arc::ptr_eq(&now, &snapshot) {
            break;
        }
        snapshot = now;
    }
    if !refused.is_empty() {
        let why: Vec<String> = refused
            .iter()
            .map(|(name, error)| format!("issuer {name}: {error}"))
            .collect();
        let mut text = why.join("; ");
        if !judged.is_empty() {
            let done: Vec<&str> = judged.keys().map(|name| &**name).collect();
            text.push_str(&format!("; done for {}", done.join(", ")));
        }
        return problem(StatusCode::CONFLICT, &text);
    }
    let word = if distrust { "distrusted" } else { "trusted" };
    answer(StatusCode::OK, &json!({ word: judged }))
}
