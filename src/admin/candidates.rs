//! Candidates: what they would change, by which rules, and whether they decide.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use http::{Method, StatusCode};
use serde_json::{Value, json};

use super::pages::{self, answer, problem};
use super::{AdminState, Page, decisions};
use crate::audit::recent::Recent;
use crate::audit::why::Question;
use crate::authz::workbench::why::{Explainer, Text, Why};
use crate::candidate::Candidate;

const PATH: &str = "/candidates";

/// How many rules that ask one another are followed.
const DEEPEST: usize = 8;

/// Longest time in which the rules of one sample are looked for, and of all of them.
const LONGEST: Duration = Duration::from_millis(200);
const LONGEST_OF_ALL: Duration = Duration::from_secs(2);

/// Whether the page at `path` is one of these.
pub(super) fn is_here(path: &str) -> bool {
    path.strip_prefix(PATH)
        .is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

/// The page at `path`, which [`is_here`]. Called on the control thread's runtime.
pub(super) async fn find(state: &AdminState, method: &Method, path: &str) -> Page {
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
            answer(StatusCode::OK, &with_rules(state, candidate).await)
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

/// The whole report of a candidate, with the rules of its own that its samples come from.
async fn with_rules(state: &AdminState, candidate: &Candidate) -> Value {
    let mut told = candidate.told(true);
    let rules = rules(state, candidate, &told).await;
    if let Some(members) = told.as_object_mut() {
        match rules {
            Ok(rules) => members.insert("rules".to_owned(), rules.into()),
            Err(why_not) => members.insert("rules_why_not".to_owned(), why_not.into()),
        };
    }
    told
}

/// Asks the candidate about its samples again, as far as their records are still in memory: which rule of
/// it denied, and at which condition, or which one permitted. What cannot be told has no rule.
async fn rules(
    state: &AdminState,
    candidate: &Candidate,
    told: &Value,
) -> Result<Vec<Value>, String> {
    let revision = &*candidate.policy.decided_by.revision;
    let samples = told.get("samples").and_then(Value::as_array);
    let samples: Vec<(String, String)> = samples
        .into_iter()
        .flatten()
        .filter_map(|sample| {
            let text = |name: &str| sample.get(name)?.as_str().map(str::to_owned);
            // An older text of the candidate is not kept.
            let now = text("candidate_revision")? == revision;
            Some((text("flip")?, text("decision_id").filter(|_| now)?))
        })
        .collect();
    let Some(text) = candidate
        .policy
        .to_explain()
        .filter(|_| !samples.is_empty())
    else {
        return Ok(Vec::new());
    };
    let Ok(seat) = Arc::clone(&state.explaining).try_acquire_owned() else {
        return Err("others are being explained: try again".to_owned());
    };
    let recent = Arc::clone(state.live.current().audit.recent());
    let asking = decisions::beside(seat, move || grouped(&text, &recent, &samples));
    match asking.map_err(|error| error.to_string())?.await {
        Ok(rules) => Ok(rules),
        Err(_) => Err("the evaluation broke off".to_owned()),
    }
}

/// A rule, and where in its file.
type Place = (String, String);

/// How many samples come from which rule: those with most first.
fn grouped(text: &Text, recent: &Recent, samples: &[(String, String)]) -> Vec<Value> {
    let begun = Instant::now();
    let mut explainer = Explainer::open(text).ok();
    let mut found: BTreeMap<(&str, Option<Place>), u64> = BTreeMap::new();
    for (flip, id) in samples {
        let left = LONGEST_OF_ALL.saturating_sub(begun.elapsed()).min(LONGEST);
        let rule = explainer
            .as_mut()
            .filter(|_| !left.is_zero())
            .and_then(|explainer| {
                let record = recent.by_id(id)?;
                let question = Question::of(record.line()).ok()?;
                place(&question.ask(explainer, left).ok()?, flip == "denies")
            });
        *found.entry((flip, rule)).or_default() += 1;
    }
    let mut found: Vec<_> = found.into_iter().collect();
    found.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
    found
        .into_iter()
        .map(|((flip, rule), count)| {
            let (rule, at) = rule.unzip();
            json!({ "flip": flip, "rule": rule, "at": at, "samples": count })
        })
        .collect()
}

/// The rule, and where: for a no the first condition that failed on the nearest way to yes, in the rule that
/// this one asked, and so on. Of values nothing is told.
fn place(why: &Why, denies: bool) -> Option<Place> {
    if denies == why.allow {
        return None;
    }
    let Some(mut way) = why.ways.first().filter(|_| denies) else {
        let held = why.rules.first()?;
        return Some((held.rule.clone(), format!("{}:{}", held.file, held.line)));
    };
    for _ in 0..DEEPEST {
        let mut asked = way.failed.because.iter();
        match asked.find_map(|because| because.ways.first()) {
            Some(below) => way = below,
            None => break,
        }
    }
    Some((way.rule.clone(), way.failed.at()))
}
