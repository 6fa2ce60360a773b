//! What the workers say when they are asked: open streams, and what they have seen of endpoints.
//!
//! Workers share nothing, so nobody else knows. Each is asked through the channel that brings its
//! orders, and answers from its own thread when it gets to it. One question is under way at a time, and
//! whoever does not answer in time is left out and missed in the answer.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use http::{StatusCode, Uri};
use serde_json::{Map, Value, json};
use tokio::sync::{Mutex, mpsc};
use tokio::time::{Instant, timeout_at};

use super::pages::{answer, problem};
use super::{AdminState, Page};
use crate::clock;
use crate::lease::{OpenStreams, StreamFacts, Wish};
use crate::upstream::PeerFacts;

/// How long the workers may take.
const PATIENCE: Duration = Duration::from_secs(1);

/// Streams that are shown when nobody says how many, and the most that are.
const STREAMS: usize = 200;
const MAX_STREAMS: usize = 1_000;

/// The longest text that is looked for.
const MAX_TEXT: usize = 256;

/// What one worker has open.
#[derive(Debug)]
pub struct WorkerView {
    /// Streams under a permission.
    pub streams: OpenStreams,
    /// Endpoints that it has sent requests to.
    pub peers: Vec<PeerFacts>,
}

/// Asks all workers: how many there are, and where their answers come.
type Ask = dyn Fn(&Wish) -> (usize, mpsc::UnboundedReceiver<WorkerView>) + Send + Sync;

/// A way to ask the workers.
pub struct Workers {
    ask: Arc<Ask>,
    turn: Mutex<()>,
}

/// What they said.
struct Said {
    workers: usize,
    views: Vec<WorkerView>,
}

impl Workers {
    /// A way to ask the workers through `ask`.
    pub fn asked_by(
        ask: impl Fn(&Wish) -> (usize, mpsc::UnboundedReceiver<WorkerView>) + Send + Sync + 'static,
    ) -> Self {
        Self {
            ask: Arc::new(ask),
            turn: Mutex::new(()),
        }
    }

    async fn survey(&self, wish: &Wish) -> Said {
        let _turn = self.turn.lock().await;
        let deadline = Instant::now() + PATIENCE;
        let (workers, mut answers) = (self.ask)(wish);
        let mut views = Vec::with_capacity(workers);
        while views.len() < workers {
            match timeout_at(deadline, answers.recv()).await {
                Ok(Some(view)) => views.push(view),
                Ok(None) | Err(_) => break,
            }
        }
        Said { workers, views }
    }
}

impl fmt::Debug for Workers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Workers").finish_non_exhaustive()
    }
}

/// Open streams.
pub(super) async fn streams(state: &AdminState, uri: &Uri) -> Page {
    let wish = match wish(uri) {
        Ok(wish) => wish,
        Err(message) => return problem(StatusCode::BAD_REQUEST, &message),
    };
    let Said { workers, views } = state.workers.survey(&wish).await;
    let answered = views.len();
    let all = views.into_iter().fold(OpenStreams::default(), |all, view| {
        all.and(view.streams, wish.limit)
    });
    let now = clock::now();
    let by_route: Vec<Value> = all
        .busiest()
        .into_iter()
        .take(MAX_STREAMS)
        .map(|(route, open)| json!({ "route": (!route.is_empty()).then_some(route), "open": open }))
        .collect();
    let streams: Vec<Value> = all.streams.iter().map(|one| stream(one, now)).collect();
    answer(
        StatusCode::OK,
        &json!({
            "open": all.open,
            "matching": all.matching,
            "workers": workers,
            "answered": answered,
            "by_route": by_route,
            "streams": streams,
        }),
    )
}

/// What is asked for: `route=`, `caller=`, `limit=`.
fn wish(uri: &Uri) -> Result<Wish, String> {
    let mut wish = Wish {
        limit: STREAMS,
        ..Wish::default()
    };
    let query = uri.query().unwrap_or_default();
    for (name, value) in form_urlencoded::parse(query.as_bytes()) {
        if value.len() > MAX_TEXT {
            return Err(format!("`{name}` is longer than {MAX_TEXT} bytes"));
        }
        match &*name {
            _ if value.is_empty() => {}
            "route" => wish.route = Some(value.into_owned()),
            "caller" => wish.caller = Some(value.into_owned()),
            "limit" => {
                let limit = value.parse().ok();
                let limit = limit.filter(|limit| (1..=MAX_STREAMS).contains(limit));
                wish.limit = limit.ok_or(format!("`limit` is a number from 1 to {MAX_STREAMS}"))?;
            }
            other => {
                return Err(format!(
                    "there is no `{other}` here: ask by route=, caller=, limit="
                ));
            }
        }
    }
    Ok(wish)
}

fn stream(stream: &StreamFacts, now: SystemTime) -> Value {
    let caller = stream.caller.as_ref().map(|(issuer, subject, client)| {
        json!({ "issuer": issuer, "subject": subject, "client": client })
    });
    let since = now.duration_since(stream.opened).unwrap_or_default();
    let until = stream.until.map(|until| {
        // Over, and about to be judged.
        until.duration_since(now).unwrap_or_default().as_secs()
    });
    json!({
        "request_id": stream.request_id,
        "route": stream.route,
        "kind": stream.kind,
        "method": stream.method,
        "path": stream.path,
        "caller": caller,
        "client": stream.client,
        "opened": clock::unix_seconds(stream.opened),
        "age_seconds": since.as_secs(),
        "bytes_in": stream.received,
        "bytes_out": stream.sent,
        "until": stream.until.map(clock::unix_seconds),
        "ends_in_seconds": until,
        "ending": stream.ending,
        "renewals": stream.renewals,
    })
}

/// Upstreams with their health.
pub(super) async fn upstreams(state: &AdminState) -> Page {
    // Streams are counted on the way, but nobody wants to see them.
    let Said { workers, views } = state.workers.survey(&Wish::default()).await;
    let answered = views.len();
    let snapshot = state.live.current();
    let figures = snapshot.metrics.figures();
    let mut seen: BTreeMap<String, BTreeMap<(String, String), Seen>> = BTreeMap::new();
    for peer in views.into_iter().flat_map(|view| view.peers) {
        let key = (peer.endpoint.clone(), peer.address.to_string());
        let of_upstream = seen.entry(peer.upstream.clone()).or_default();
        of_upstream.entry(key).or_default().add(&peer);
    }
    let upstreams: Map<String, Value> = snapshot
        .upstreams
        .iter()
        .map(|(name, upstream)| {
            let mine = |family: &str| {
                figures
                    .iter()
                    .filter(|figure| figure.family == family && figure.label("upstream") == name)
                    .collect::<Vec<_>>()
            };
            let attempts: Map<String, Value> = mine("attempts")
                .into_iter()
                .map(|figure| (figure.label("outcome").to_owned(), figure.value.into()))
                .collect();
            let total = |family: &str| mine(family).iter().map(|f| f.value).sum::<i64>();
            let routes = snapshot.routes.iter();
            let routes: Vec<&str> = routes
                .filter(|route| *route.upstream.name == **name)
                .map(|route| &*route.name)
                .collect();
            let (usable, all) = upstream.usable();
            let mut endpoints: Vec<Value> = Vec::new();
            let met = seen.remove(name).unwrap_or_default();
            for endpoint in upstream.endpoints() {
                let at = met.iter().filter(|((label, _), _)| label == endpoint);
                let before = endpoints.len();
                endpoints.extend(at.map(|((_, address), seen)| {
                    json!({
                        "endpoint": endpoint,
                        "address": address,
                        "asked": true,
                        "in_flight": seen.in_flight,
                        "idle": seen.idle,
                        "failures": seen.failures,
                        "workers": seen.workers,
                        "put_aside_by": seen.aside,
                        "put_aside_for_seconds": seen.aside_for.map(|left| left.as_secs_f64()),
                    })
                }));
                if endpoints.len() == before {
                    endpoints.push(json!({ "endpoint": endpoint, "asked": false }));
                }
            }
            let state = json!({
                "protocol": if upstream.is_http2() { "http2" } else { "http1" },
                "endpoints": endpoints,
                "usable": usable,
                "all": all,
                "attempts": attempts,
                "retries": total("retries"),
                "in_flight": total("in_flight"),
                "routes": routes,
            });
            (name.clone(), state)
        })
        .collect();
    answer(
        StatusCode::OK,
        &json!({ "workers": workers, "answered": answered, "upstreams": upstreams }),
    )
}

/// What all workers have seen of one address.
#[derive(Default)]
struct Seen {
    in_flight: usize,
    idle: usize,
    failures: u32,
    workers: usize,
    aside: usize,
    aside_for: Option<Duration>,
}

impl Seen {
    fn add(&mut self, peer: &PeerFacts) {
        self.in_flight += peer.in_flight;
        self.idle += peer.idle;
        self.failures = self.failures.max(peer.failures);
        self.workers += 1;
        self.aside += usize::from(peer.aside_for.is_some());
        self.aside_for = self.aside_for.max(peer.aside_for);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_asked_for_is_bounded_and_named_right() {
        let asked = |query: &str| wish(&format!("/streams?{query}").parse().unwrap());
        let all = asked("").unwrap();
        assert_eq!((all.route, all.caller, all.limit), (None, None, STREAMS));
        let some = asked("route=live%20one&caller=alice&limit=7").unwrap();
        assert_eq!(some.route.as_deref(), Some("live one"));
        assert_eq!((some.caller.as_deref(), some.limit), (Some("alice"), 7));
        for wrong in ["limit=0", "limit=1001", "limit=x", "rout=x"] {
            assert!(asked(wrong).is_err(), "{wrong}");
        }
        assert!(asked(&format!("caller={}", "x".repeat(MAX_TEXT + 1))).is_err());
    }

    #[tokio::test]
    async fn a_worker_that_does_not_answer_is_missed_and_waited_for_no_longer_than_a_second() {
        let kept = std::sync::Mutex::new(Vec::new());
        let workers = Workers::asked_by(move |_| {
            let (said, views) = mpsc::unbounded_channel();
            let view = WorkerView {
                streams: OpenStreams::default(),
                peers: Vec::new(),
            };
            said.send(view).unwrap();
            // The other one keeps its channel and says nothing.
            kept.lock().unwrap().push(said);
            (2, views)
        });
        let begun = Instant::now();
        let said = workers.survey(&Wish::default()).await;
        assert_eq!((said.workers, said.views.len()), (2, 1));
        assert!(begun.elapsed() >= PATIENCE);
    }
}
