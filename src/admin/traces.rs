//! Traces of chosen requests: armed, followed and ended here.

use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use http::{Method, StatusCode, Uri};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::time::timeout_at;

use super::pages::{self, answer, problem};
use super::{AdminState, Page, decisions};
use crate::audit::traces::{Chosen, HEADER, MAX_COUNT, MAX_FOR, Seen, Trace};
use crate::schema::Span;

const PATH: &str = "/traces";

/// Longest wait for a request.
const MAX_WAIT: Duration = Duration::from_secs(30);

/// How many requests a trace is for, and how long it waits, unless it is said.
const USUAL_COUNT: usize = 10;
const USUAL_FOR: Span = Span::seconds(60);

/// Most requests of one answer; who wants more asks for those behind.
const MAX_REQUESTS: usize = 10;

/// What a trace is asked for.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Wish {
    route: Option<String>,
    caller: Option<String>,
    #[serde(default)]
    header: bool,
    count: Option<usize>,
    #[serde(rename = "for")]
    time: Option<Span>,
}

/// Whether the page at `path` is one of these.
pub(super) fn is_here(path: &str) -> bool {
    path == PATH || one(path).is_some()
}

fn one(path: &str) -> Option<&str> {
    path.strip_prefix(PATH)?.strip_prefix('/')
}

/// The page at `uri`, which [`is_here`]; `body` is that of a request that changes something.
pub(super) async fn find(state: &AdminState, method: &Method, uri: &Uri, body: &[u8]) -> Page {
    let reading = matches!(*method, Method::GET | Method::HEAD);
    match one(uri.path()) {
        None if reading => {
            let traces = state.live.traces.all();
            let all: Vec<Value> = traces.iter().map(told).collect();
            answer(StatusCode::OK, &json!({ "traces": all }))
        }
        None if *method == Method::POST => arm(state, body),
        Some(id) if reading => follow(state, id, uri.query().unwrap_or_default()).await,
        Some(id) if *method == Method::DELETE => {
            if state.live.traces.end(id) {
                answer(StatusCode::OK, &json!({ "ended": id }))
            } else {
                problem(StatusCode::NOT_FOUND, "there is no such trace")
            }
        }
        _ => pages::wrong_method(),
    }
}

fn arm(state: &AdminState, body: &[u8]) -> Page {
    let example = "send JSON like {\"route\": \"NAME\"}, {\"caller\": \"SUBJECT\"} or {\"header\": true}, \
                   with \"count\" and \"for\" if you like";
    let bad = |why: String| problem(StatusCode::BAD_REQUEST, &format!("{why}; {example}"));
    let wish: Wish = match serde_json::from_slice(body) {
        Ok(wish) => wish,
        Err(error) => return bad(error.to_string()),
    };
    let chosen = match (wish.route, wish.caller, wish.header) {
        (Some(route), None, false) => Chosen::Route(route),
        (None, Some(caller), false) => Chosen::Caller(caller),
        (None, None, true) => Chosen::Header,
        _ => return bad("choose by one thing".to_owned()),
    };
    if !chosen.is_sound() {
        return bad("the name is empty, or longer than 256 bytes".to_owned());
    }
    if let Chosen::Route(name) = &chosen
        && !state
            .live
            .current()
            .routes
            .iter()
            .any(|it| *it.name == **name)
    {
        return problem(StatusCode::NOT_FOUND, "there is no such route");
    }
    let count = wish.count.unwrap_or(USUAL_COUNT);
    let time = wish.time.unwrap_or(USUAL_FOR).get();
    if !(1..=MAX_COUNT).contains(&count) || time.is_zero() || time > MAX_FOR {
        return bad(format!(
            "`count` is 1 to {MAX_COUNT}, `for` at most {}",
            Span::seconds(MAX_FOR.as_secs())
        ));
    }
    match state.live.traces.arm(chosen, count, time) {
        Ok((trace, secret)) => {
            let mut document = told(&trace);
            if let (Some(secret), Some(members)) = (secret, document.as_object_mut()) {
                members.insert("header".to_owned(), json!(HEADER.as_str()));
                members.insert("secret".to_owned(), json!(secret));
            }
            answer(StatusCode::CREATED, &document)
        }
        Err(error) => problem(StatusCode::CONFLICT, &error.to_string()),
    }
}

fn told(trace: &Trace) -> Value {
    let now = Instant::now();
    let waits = trace.waits(now);
    let ends = trace.until.saturating_duration_since(now);
    let chosen = match &trace.chosen {
        Chosen::Route(name) => json!({ "route": name }),
        Chosen::Caller(name) => json!({ "caller": name }),
        Chosen::Header => json!({ "header": true }),
    };
    json!({
        "id": trace.id,
        "chosen": chosen,
        "waits": waits,
        "left": if waits { trace.left } else { 0 },
        "ends_in_seconds": if waits { ends.as_secs() } else { 0 },
        "seen": trace.seen.len(),
    })
}

async fn follow(state: &AdminState, id: &str, query: &str) -> Page {
    let (mut after, mut wait) = (0, Duration::ZERO);
    for (name, value) in form_urlencoded::parse(query.as_bytes()) {
        let number = value.parse::<u64>();
        match (&*name, number) {
            ("after", Ok(number)) => after = usize::try_from(number).unwrap_or(usize::MAX),
            ("wait", Ok(number)) => wait = Duration::from_secs(number).min(MAX_WAIT),
            _ => {
                return problem(
                    StatusCode::BAD_REQUEST,
                    "the query takes the numbers `after` and `wait`",
                );
            }
        }
    }
    let deadline = tokio::time::Instant::now() + wait;
    let seat = match wait.is_zero() {
        true => None,
        false => state.waiting.try_acquire().ok(),
    };
    let trace = loop {
        let mut news = pin!(state.live.traces.news());
        news.as_mut().enable();
        let Some(trace) = state.live.traces.get(id) else {
            return problem(StatusCode::NOT_FOUND, "there is no such trace");
        };
        let now = Instant::now();
        let late = seat.is_none() || tokio::time::Instant::now() >= deadline;
        if trace.seen.len() > after || !trace.waits(now) || late {
            break trace;
        }
        let ends = now + trace.until.saturating_duration_since(now);
        let _ = timeout_at(deadline.min(ends.into()), news).await;
    };
    let mut requests = Vec::new();
    for seen in page(&trace.seen, after) {
        requests.push(request(state, seen).await);
    }
    let mut document = told(&trace);
    if let Some(members) = document.as_object_mut() {
        members.insert("requests".to_owned(), requests.into());
    }
    answer(StatusCode::OK, &document)
}

/// What one answer has of those behind `after`.
fn page<T>(seen: &[T], after: usize) -> impl Iterator<Item = &T> {
    seen.iter().skip(after).take(MAX_REQUESTS)
}

/// A request with its stages, its record when that is written, and why it was decided so.
pub(super) async fn request(state: &AdminState, seen: &Seen) -> Value {
    let millis = |time: Duration| time.as_secs_f64() * 1000.0;
    let stages: Vec<Value> = seen
        .stages
        .iter()
        .map(|(stage, time)| json!({ "stage": stage, "ms": millis(*time) }))
        .collect();
    let audit = Arc::clone(&state.live.current().audit);
    // Looked for in all that is kept, which takes time that other tasks of this thread do not have.
    let (recent, id) = (Arc::clone(audit.recent()), seen.request_id.clone());
    let record = tokio::task::spawn_blocking(move || recent.by_id(&id)).await;
    let mut told = json!({
        "request_id": seen.request_id,
        "stages": stages,
        "refused_at": seen.refused_at,
        "record": null,
    });
    if let (Ok(Some(record)), Some(members)) = (record, told.as_object_mut()) {
        let line: Value = serde_json::from_slice(record.line()).unwrap_or_default();
        let decided = !line.get("decision").is_none_or(Value::is_null);
        members.insert("record".to_owned(), line);
        if decided {
            match decisions::explained(state, &audit, &record).await {
                Ok(why) => members.insert("why".to_owned(), json!(why)),
                Err(why_not) => members.insert("why_not".to_owned(), json!(why_not)),
            };
        }
    }
    told
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_has_a_bounded_number_of_requests_and_the_next_one_the_rest() {
        let seen: Vec<usize> = (0..2 * MAX_REQUESTS + 1).collect();
        let (mut after, mut all) = (0, Vec::new());
        while after < seen.len() {
            let found: Vec<usize> = page(&seen, after).copied().collect();
            assert!((1..=MAX_REQUESTS).contains(&found.len()));
            after += found.len();
            all.extend(found);
        }
        assert_eq!(all, seen);
        assert_eq!(page(&seen, usize::MAX).count(), 0);
    }
}
