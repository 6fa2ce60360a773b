//! Chosen requests, followed stage by stage for whoever asked to see them.
//!
//! A trace is armed through the admin listener for a route, a caller, or a secret that a request
//! carries in the header [`HEADER`]; it ends after so many requests, or a time. While none is armed, a
//! request costs one look at a flag, and the header is taken off whatever it says: no upstream, record
//! or policy ever sees it, and a wrong secret changes nothing that anybody could measure.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use http::HeaderMap;
use http::header::HeaderName;
use rand::Rng;
use subtle::ConstantTimeEq;
use tokio::sync::Notify;
use tokio::sync::futures::Notified;

/// Carries the secret of a trace. Lower case, as headers are compared.
pub const HEADER: HeaderName = HeaderName::from_static("x-portcullis-trace");

/// Most traces that may be armed at one time, and that are remembered.
const MAX_TRACES: usize = 8;
const MAX_REMEMBERED: usize = 32;

/// Most requests of a trace.
pub const MAX_COUNT: usize = 100;

/// Longest time that a trace waits for requests.
pub const MAX_FOR: Duration = Duration::from_secs(600);

/// Most stages of a request that are noted.
const MAX_STAGES: usize = 32;

/// Longest name of a caller or route that is kept, in bytes.
const MAX_NAME: usize = 256;

/// Which requests a trace is about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Chosen {
    /// Those of a route.
    Route(String),
    /// Those of a subject or a client.
    Caller(String),
    /// Those that carry its secret.
    Header,
}

/// Why a trace is not armed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NotArmed {
    /// There are too many.
    #[error("{MAX_TRACES} traces wait for requests already: end one with DELETE /traces/ID")]
    Full,
}

/// The traces of a process.
#[derive(Debug, Default)]
pub struct Traces {
    /// Whether any waits for requests.
    armed: AtomicBool,
    list: Mutex<Vec<Trace>>,
    news: Notify,
}

/// One trace.
#[derive(Debug, Clone)]
pub struct Trace {
    /// 16 hex digits.
    pub id: String,
    /// Which requests it is about.
    pub chosen: Chosen,
    /// How many requests it still waits for.
    pub left: usize,
    /// Until when.
    pub until: Instant,
    /// What it has seen, the oldest first.
    pub seen: Vec<Seen>,
    secret: Option<String>,
}

/// A request that was traced.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seen {
    /// The request's id: its record has the rest.
    pub request_id: String,
    /// Its stages, each with its length, in order. The last one gave the answer.
    pub stages: Vec<(&'static str, Duration)>,
    /// The stage that refused it.
    pub refused_at: Option<&'static str>,
}

/// The stages of a request that may be chosen.
#[derive(Debug)]
pub struct Steps {
    stages: Vec<(&'static str, Instant)>,
    route: Option<String>,
    caller: [Option<String>; 2],
    /// The trace whose secret it carried.
    by_secret: Option<String>,
}

impl Steps {
    /// A stage begins.
    fn begin(&mut self, stage: &'static str) {
        if self.stages.len() < MAX_STAGES {
            self.stages.push((stage, Instant::now()));
        }
    }
}

/// Notes that a stage begins, if the request may be chosen.
pub fn begin(steps: &mut Option<Box<Steps>>, stage: &'static str) {
    if let Some(steps) = steps {
        steps.begin(stage);
    }
}

/// Notes the route that was found.
pub fn route(steps: &mut Option<Box<Steps>>, name: &str) {
    if let Some(steps) = steps {
        steps.route = Some(name.to_owned());
    }
}

/// Notes who asks.
pub fn caller(steps: &mut Option<Box<Steps>>, subject: Option<&str>, client: Option<&str>) {
    if let Some(steps) = steps {
        steps.caller = [subject, client].map(|name| name.map(str::to_owned));
    }
}

impl Traces {
    /// Takes the header off, and begins to note the stages of a request while a trace waits.
    pub fn watch(&self, headers: &mut HeaderMap) -> Option<Box<Steps>> {
        let secret = headers.remove(HEADER);
        if !self.armed.load(Ordering::Relaxed) {
            return None;
        }
        let mut by_secret = None;
        if let Some(secret) = secret {
            for trace in self.locked().iter() {
                if let Some(known) = &trace.secret
                    && bool::from(known.as_bytes().ct_eq(secret.as_bytes()))
                {
                    by_secret = Some(trace.id.clone());
                }
            }
        }
        let mut steps = Box::new(Steps {
            stages: Vec::with_capacity(MAX_STAGES / 2),
            route: None,
            caller: [None, None],
            by_secret,
        });
        steps.begin("read");
        Some(steps)
    }

    /// The head of the answer is there.
    pub fn finish(&self, steps: Option<Box<Steps>>, request_id: &str, refused: bool) {
        let Some(steps) = steps else { return };
        let now = Instant::now();
        let ends = steps.stages.iter().skip(1).map(|(_, at)| *at).chain([now]);
        let stages: Vec<(&'static str, Duration)> = steps
            .stages
            .iter()
            .zip(ends)
            .map(|((stage, at), end)| (*stage, end.saturating_duration_since(*at)))
            .collect();
        let seen = Seen {
            request_id: request_id.to_owned(),
            refused_at: stages.last().filter(|_| refused).map(|(stage, _)| *stage),
            stages,
        };
        let mut list = self.locked();
        let mut any = false;
        for trace in list.iter_mut().filter(|trace| trace.waits(now)) {
            let chosen = match &trace.chosen {
                Chosen::Route(name) => steps.route.as_ref() == Some(name),
                Chosen::Caller(name) => steps.caller.iter().flatten().any(|it| it == name),
                Chosen::Header => steps.by_secret.as_ref() == Some(&trace.id),
            };
            if chosen {
                trace.left -= 1;
                trace.seen.push(seen.clone());
                any = true;
            }
        }
        self.look(&list, now);
        drop(list);
        if any {
            self.news.notify_waiters();
        }
    }

    /// Arms a trace; gives it, and the secret if it is one of a header.
    ///
    /// # Errors
    /// [`NotArmed`].
    pub fn arm(
        &self,
        chosen: Chosen,
        count: usize,
        time: Duration,
    ) -> Result<(Trace, Option<String>), NotArmed> {
        let now = Instant::now();
        let mut list = self.locked();
        if list.iter().filter(|trace| trace.waits(now)).count() >= MAX_TRACES {
            return Err(NotArmed::Full);
        }
        while list.len() >= MAX_REMEMBERED {
            let Some(old) = list.iter().position(|trace| !trace.waits(now)) else {
                return Err(NotArmed::Full);
            };
            list.remove(old);
        }
        let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        let secret: Option<String> =
            (chosen == Chosen::Header).then(|| hex(&rand::rng().random::<[u8; 16]>()));
        let trace = Trace {
            id: hex(&rand::rng().random::<[u8; 8]>()),
            chosen,
            left: count.clamp(1, MAX_COUNT),
            until: now + time.min(MAX_FOR),
            seen: Vec::new(),
            secret: secret.clone(),
        };
        list.push(trace.clone());
        self.look(&list, now);
        Ok((trace, secret))
    }

    /// Ends a trace; what it has seen stays. Whether there was one.
    pub fn end(&self, id: &str) -> bool {
        let now = Instant::now();
        let mut list = self.locked();
        let found = list.iter_mut().find(|trace| trace.id == id);
        let there = found.is_some();
        if let Some(trace) = found {
            trace.left = 0;
        }
        self.look(&list, now);
        drop(list);
        self.news.notify_waiters();
        there
    }

    /// A trace.
    pub fn get(&self, id: &str) -> Option<Trace> {
        self.locked().iter().find(|trace| trace.id == id).cloned()
    }

    /// All that are remembered, the oldest first.
    pub fn all(&self) -> Vec<Trace> {
        self.locked().clone()
    }

    /// Becomes ready when a trace has seen a request, or has ended. To be enabled before it is looked.
    pub fn news(&self) -> Notified<'_> {
        self.news.notified()
    }

    fn look(&self, list: &[Trace], now: Instant) {
        let armed = list.iter().any(|trace| trace.waits(now));
        self.armed.store(armed, Ordering::Relaxed);
    }

    fn locked(&self) -> MutexGuard<'_, Vec<Trace>> {
        self.list.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Trace {
    /// Whether it waits for requests at a time.
    pub fn waits(&self, now: Instant) -> bool {
        self.left > 0 && now < self.until
    }
}

impl Chosen {
    /// Whether its name is one that can be looked for.
    pub fn is_sound(&self) -> bool {
        match self {
            Self::Header => true,
            Self::Route(name) | Self::Caller(name) => !name.is_empty() && name.len() <= MAX_NAME,
        }
    }
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    fn headers(secret: &str) -> HeaderMap {
        let mut headers = HeaderMap::new();
        headers.insert(HEADER, HeaderValue::from_str(secret).unwrap());
        headers.append(HEADER, HeaderValue::from_static("again"));
        headers
    }

    fn pass(traces: &Traces, secret: &str, on: &str, subject: &str) -> bool {
        let mut headers = headers(secret);
        let mut steps = traces.watch(&mut headers);
        assert!(headers.is_empty());
        let watched = steps.is_some();
        begin(&mut steps, "route");
        route(&mut steps, on);
        caller(&mut steps, Some(subject), None);
        traces.finish(steps, "id", true);
        watched
    }

    #[test]
    fn nothing_is_noted_until_a_trace_waits_and_after_it_ended() {
        let traces = Traces::default();
        assert!(!pass(&traces, "x", "orders", "alice"));
        let (trace, secret) = traces
            .arm(Chosen::Route("orders".to_owned()), 2, MAX_FOR)
            .unwrap();
        assert!(secret.is_none());
        assert!(pass(&traces, "x", "status", "alice"));
        assert!(pass(&traces, "x", "orders", "alice"));
        assert_eq!(traces.get(&trace.id).unwrap().left, 1);
        assert!(pass(&traces, "x", "orders", "bob"));
        assert!(!pass(&traces, "x", "orders", "bob"));
        let seen = traces.get(&trace.id).unwrap().seen;
        assert_eq!(seen.len(), 2);
        let stages: Vec<_> = seen[0].stages.iter().map(|(stage, _)| *stage).collect();
        assert_eq!(stages, ["read", "route"]);
        assert_eq!(seen[0].refused_at, Some("route"));
    }

    #[test]
    fn a_secret_chooses_its_own_trace_alone() {
        let traces = Traces::default();
        let (one, secret) = traces.arm(Chosen::Header, 5, MAX_FOR).unwrap();
        let (other, another) = traces.arm(Chosen::Header, 5, MAX_FOR).unwrap();
        let (secret, another) = (secret.unwrap(), another.unwrap());
        assert_ne!(secret, another);
        for wrong in ["", "x", &secret[1..], &secret.to_uppercase()[..31]] {
            pass(&traces, wrong, "r", "s");
        }
        assert!(traces.get(&one.id).unwrap().seen.is_empty());
        pass(&traces, &secret, "r", "s");
        assert_eq!(traces.get(&one.id).unwrap().seen.len(), 1);
        assert!(traces.get(&other.id).unwrap().seen.is_empty());
    }

    #[test]
    fn callers_are_chosen_and_a_trace_can_be_ended() {
        let traces = Traces::default();
        let (trace, _) = traces
            .arm(Chosen::Caller("alice".to_owned()), 5, MAX_FOR)
            .unwrap();
        pass(&traces, "x", "r", "bob");
        pass(&traces, "x", "r", "alice");
        assert!(traces.end(&trace.id));
        assert!(!traces.end("other"));
        assert!(!pass(&traces, "x", "r", "alice"));
        assert_eq!(traces.get(&trace.id).unwrap().seen.len(), 1);
    }

    #[test]
    fn a_trace_ends_with_its_time() {
        let traces = Traces::default();
        traces.arm(Chosen::Header, 5, Duration::ZERO).unwrap();
        assert!(!pass(&traces, "x", "r", "s"));
    }

    #[test]
    fn traces_and_their_requests_are_bounded() {
        let traces = Traces::default();
        for _ in 0..MAX_TRACES {
            let (trace, _) = traces
                .arm(Chosen::Header, usize::MAX, Duration::MAX)
                .unwrap();
            assert_eq!(trace.left, MAX_COUNT);
            assert!(trace.until <= Instant::now() + MAX_FOR);
        }
        assert_eq!(
            traces.arm(Chosen::Header, 1, MAX_FOR).unwrap_err(),
            NotArmed::Full
        );
        for _ in 0..100 {
            for trace in traces.all() {
                traces.end(&trace.id);
            }
            traces.arm(Chosen::Header, 1, MAX_FOR).unwrap();
        }
        assert!(traces.all().len() <= MAX_REMEMBERED);
        let long = Chosen::Route("x".repeat(MAX_NAME + 1));
        assert!(!long.is_sound());
    }

    #[test]
    fn stages_are_bounded() {
        let traces = Traces::default();
        let (trace, _) = traces
            .arm(Chosen::Route("r".to_owned()), 1, MAX_FOR)
            .unwrap();
        let mut steps = traces.watch(&mut HeaderMap::new());
        for _ in 0..1000 {
            begin(&mut steps, "again");
        }
        route(&mut steps, "r");
        traces.finish(steps, "id", false);
        let seen = traces.get(&trace.id).unwrap().seen;
        assert_eq!(seen[0].stages.len(), MAX_STAGES);
        assert_eq!(seen[0].refused_at, None);
    }
}
