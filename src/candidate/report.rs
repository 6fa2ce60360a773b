//! What a candidate would change, counted.
//!
//! Everything here is bounded: routes and reasons beyond their bound are counted together, of callers
//! those with the most flips are kept, and of flips the last few as samples. Samples hold no query, no
//! header, no body, and of the path no value of a parameter; the record that the decision's id names has
//! what the configuration lets it have.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::SystemTime;

use serde_json::{Map, Value, json};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::band::{Judged, Window};
use super::callers::Callers;
use super::top::Top;
use crate::authz::Terms;
use crate::clock;
use crate::request::RequestId;

/// Most routes that are told apart.
const MAX_ROUTES: usize = 1_000;
/// Most pairs of reasons that are told apart: a policy may make them of anything.
const MAX_REASONS: usize = 200;
/// Longest reason and longest name of a caller in here, bytes.
const MAX_TEXT: usize = 128;
/// Samples of each kind.
pub(super) const SAMPLES: usize = 20;
/// Routes, reasons and callers that are shown.
const SHOWN: usize = 50;

/// How a candidate would decide otherwise.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Flip {
    /// It denies what its policy allows.
    Denies,
    /// It allows what its policy denies.
    Permits,
    /// Yes or no is the same, and what goes with it is not.
    Terms,
}

impl Flip {
    pub(super) const ALL: [Self; 3] = [Self::Denies, Self::Permits, Self::Terms];

    /// A word for metrics and documents.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Denies => "denies",
            Self::Permits => "permits",
            Self::Terms => "terms",
        }
    }

    const fn place(self) -> usize {
        match self {
            Self::Denies => 0,
            Self::Permits => 1,
            Self::Terms => 2,
        }
    }
}

/// Requests that were compared.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Compared {
    pub(super) all: u64,
    /// By [`Flip::place`].
    flips: [u64; 3],
}

impl Compared {
    pub(super) fn count(&mut self, flip: Option<Flip>) {
        self.all += 1;
        if let Some(count) = flip.and_then(|flip| self.flips.get_mut(flip.place())) {
            *count += 1;
        }
    }

    pub(super) fn add(&mut self, more: &Self) {
        self.all += more.all;
        for (count, more) in self.flips.iter_mut().zip(more.flips) {
            *count += more;
        }
    }

    pub(super) fn of(&self, flip: Flip) -> u64 {
        self.flips.get(flip.place()).copied().unwrap_or(0)
    }

    pub(super) fn same(&self) -> u64 {
        self.all.saturating_sub(self.flips.iter().sum())
    }

    fn members(&self) -> Map<String, Value> {
        let mut members = Map::new();
        members.insert("compared".to_owned(), self.all.into());
        members.insert("same".to_owned(), self.same().into());
        for flip in Flip::ALL {
            members.insert(flip.word().to_owned(), self.of(flip).into());
        }
        members
    }
}

/// Why a request was not compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum LeftOut {
    /// The candidate's share of the worker's time was spent.
    Time,
    /// Too many waited.
    Queue,
    /// A bundle of the candidate, or of its policy, is not there yet.
    Unavailable,
    /// The route or the policy is another by now.
    Changed,
}

impl LeftOut {
    pub(super) const ALL: [Self; 4] = [Self::Time, Self::Queue, Self::Unavailable, Self::Changed];

    pub(super) const fn word(self) -> &'static str {
        match self {
            Self::Time => "time",
            Self::Queue => "queue",
            Self::Unavailable => "unavailable",
            Self::Changed => "changed",
        }
    }

    pub(super) const fn place(self) -> usize {
        match self {
            Self::Time => 0,
            Self::Queue => 1,
            Self::Unavailable => 2,
            Self::Changed => 3,
        }
    }
}

/// One request that would be decided otherwise.
#[derive(Debug, Clone)]
pub(super) struct Event {
    pub(super) flip: Flip,
    pub(super) caller: Arc<str>,
    pub(super) from: Arc<str>,
    pub(super) to: Arc<str>,
    pub(super) sample: Option<Box<Sample>>,
}

/// One of them, to look at.
#[derive(Debug, Clone)]
pub(super) struct Sample {
    pub(super) at: SystemTime,
    pub(super) decision_id: RequestId,
    pub(super) request_id: RequestId,
    pub(super) route: Arc<str>,
    pub(super) method: String,
    pub(super) path: String,
    /// Whether the candidate decided it.
    pub(super) decided: bool,
    pub(super) terms: Terms,
    /// Of the policy, and of the candidate.
    pub(super) revisions: (Arc<str>, Arc<str>),
}

/// What one worker counted since it last told.
#[derive(Debug, Default)]
pub(super) struct Tally {
    pub(super) compared: Compared,
    /// Few, so that looking for one costs nothing.
    pub(super) routes: Vec<(Arc<str>, Compared)>,
    pub(super) failures: Vec<(&'static str, u64)>,
    pub(super) left_out: [u64; 4],
    pub(super) events: Vec<Event>,
    pub(super) judged: Judged,
    /// Who was denied what the policy allows.
    pub(super) denied: Callers,
    /// Yes and no that it decided.
    pub(super) decided: (u64, u64),
    pub(super) any: bool,
}

impl Tally {
    pub(super) fn on_route(&mut self, route: &Arc<str>, flip: Option<Flip>) {
        self.any = true;
        self.compared.count(flip);
        let mut known = self.routes.iter_mut();
        match known.find(|(known, _)| Arc::ptr_eq(known, route) || known == route) {
            Some((_, compared)) => compared.count(flip),
            None => {
                let mut compared = Compared::default();
                compared.count(flip);
                self.routes.push((Arc::clone(route), compared));
            }
        }
    }

    pub(super) fn failed(&mut self, word: &'static str) {
        match self.failures.iter_mut().find(|(known, _)| *known == word) {
            Some((_, count)) => *count += 1,
            None => self.failures.push((word, 1)),
        }
    }

    pub(super) fn leave_out(&mut self, why: LeftOut) {
        self.any = true;
        if let Some(count) = self.left_out.get_mut(why.place()) {
            *count += 1;
        }
    }

    /// Empties it, and keeps its memory.
    pub(super) fn clear(&mut self) {
        self.compared = Compared::default();
        self.routes.clear();
        self.failures.clear();
        self.left_out = [0; 4];
        self.events.clear();
        self.judged = Judged::default();
        self.denied.clear();
        self.decided = (0, 0);
        self.any = false;
    }
}

/// Who is told of a flip: kind, what the policy says, what the candidate says.
type Pair = (Flip, Arc<str>, Arc<str>);

/// Everything that is told of a candidate.
#[derive(Debug, Clone)]
pub(super) struct Report {
    since: SystemTime,
    compared: Compared,
    routes: BTreeMap<Arc<str>, Compared>,
    other_routes: Compared,
    failures: BTreeMap<&'static str, u64>,
    left_out: [u64; 4],
    callers: Top,
    reasons: BTreeMap<Pair, u64>,
    other_reasons: u64,
    /// By [`Flip::place`], newest last.
    samples: [VecDeque<(Event, Box<Sample>)>; 3],
    decided: (u64, u64),
    /// Since it began to decide, or was resumed.
    pub(super) judged: Judged,
    /// How much of that the window has seen.
    pub(super) seen: Judged,
    /// Who was denied what the policy allows, of what it has not seen.
    pub(super) denied: Callers,
    pub(super) window: Window,
}

impl Default for Report {
    fn default() -> Self {
        Self {
            since: clock::now(),
            compared: Compared::default(),
            routes: BTreeMap::new(),
            other_routes: Compared::default(),
            failures: BTreeMap::new(),
            left_out: [0; 4],
            callers: Top::default(),
            reasons: BTreeMap::new(),
            other_reasons: 0,
            samples: Default::default(),
            decided: (0, 0),
            judged: Judged::default(),
            seen: Judged::default(),
            denied: Callers::default(),
            window: Window::default(),
        }
    }
}

impl Report {
    /// Takes what a worker counted, and leaves the tally empty.
    pub(super) fn take(&mut self, tally: &mut Tally) {
        self.compared.add(&tally.compared);
        for (route, compared) in &tally.routes {
            let full = self.routes.len() >= MAX_ROUTES && !self.routes.contains_key(route);
            let place = if full {
                &mut self.other_routes
            } else {
                self.routes.entry(Arc::clone(route)).or_default()
            };
            place.add(compared);
        }
        for (word, count) in &tally.failures {
            *self.failures.entry(word).or_default() += count;
        }
        for (count, more) in self.left_out.iter_mut().zip(tally.left_out) {
            *count += more;
        }
        self.judged.add(tally.judged);
        self.denied.add(&tally.denied);
        self.decided.0 += tally.decided.0;
        self.decided.1 += tally.decided.1;
        for event in tally.events.drain(..) {
            self.flipped(event);
        }
        tally.clear();
    }

    fn flipped(&mut self, mut event: Event) {
        self.callers.count(&event.caller);
        let pair = (event.flip, Arc::clone(&event.from), Arc::clone(&event.to));
        if self.reasons.len() >= MAX_REASONS && !self.reasons.contains_key(&pair) {
            self.other_reasons += 1;
        } else {
            *self.reasons.entry(pair).or_default() += 1;
        }
        if let Some(sample) = event.sample.take()
            && let Some(samples) = self.samples.get_mut(event.flip.place())
        {
            if samples.len() >= SAMPLES {
                samples.pop_front();
            }
            samples.push_back((event, sample));
        }
    }

    /// Forgets what was counted, but not what the candidate is judged by.
    pub(super) fn reset(&mut self) {
        let before = std::mem::take(self);
        self.judged = before.judged;
        self.seen = before.seen;
        self.denied = before.denied;
        self.window = before.window;
    }

    /// Begins to judge anew.
    pub(super) fn judge_anew(&mut self) {
        self.seen = self.judged;
        self.denied.clear();
        self.window.clear();
    }

    /// The numbers, in a few members.
    pub(super) fn brief(&self) -> Map<String, Value> {
        let mut members = self.compared.members();
        let failed: u64 = self.failures.values().sum();
        let left_out: u64 = self.left_out.iter().sum();
        members.insert("failed".to_owned(), failed.into());
        members.insert("left_out".to_owned(), left_out.into());
        members.insert(
            "decided".to_owned(),
            json!({ "allow": self.decided.0, "deny": self.decided.1 }),
        );
        members.insert("since".to_owned(), written(self.since).into());
        members
    }

    /// All of it.
    pub(super) fn full(&self) -> Map<String, Value> {
        let mut members = self.brief();
        let left_out: Map<String, Value> = LeftOut::ALL
            .into_iter()
            .filter_map(|why| {
                Some((
                    why.word().to_owned(),
                    (*self.left_out.get(why.place())?).into(),
                ))
            })
            .collect();
        members.insert("failures".to_owned(), json!(self.failures));
        members.insert("left_out_by".to_owned(), left_out.into());
        let mut routes: Vec<(&str, &Compared)> = self
            .routes
            .iter()
            .map(|(name, counts)| (&**name, counts))
            .collect();
        if self.other_routes.all > 0 {
            routes.push(("(others)", &self.other_routes));
        }
        // Those that would change most come first.
        routes.sort_by_key(|(_, counts)| {
            (
                std::cmp::Reverse(counts.all - counts.same()),
                std::cmp::Reverse(counts.all),
            )
        });
        let routes: Vec<Value> = routes
            .into_iter()
            .take(SHOWN)
            .map(|(name, counts)| {
                let mut members = counts.members();
                members.insert("route".to_owned(), name.into());
                members.into()
            })
            .collect();
        members.insert("routes".to_owned(), routes.into());
        let mut reasons: Vec<(&Pair, &u64)> = self.reasons.iter().collect();
        reasons.sort_by_key(|(_, count)| std::cmp::Reverse(**count));
        let mut reasons: Vec<Value> = reasons
            .into_iter()
            .take(SHOWN)
            .map(|((flip, from, to), count)| {
                json!({ "flip": flip.word(), "from": &**from, "to": &**to, "count": count })
            })
            .collect();
        if self.other_reasons > 0 {
            reasons.push(
                json!({ "flip": "other", "from": null, "to": null, "count": self.other_reasons }),
            );
        }
        members.insert("reasons".to_owned(), reasons.into());
        let callers: Vec<Value> = self
            .callers
            .most()
            .into_iter()
            .take(SHOWN)
            .map(|(caller, flips, doubt)| json!({ "caller": &**caller, "flips": flips, "in_doubt": doubt }))
            .collect();
        members.insert("callers".to_owned(), callers.into());
        let samples: Vec<Value> = self
            .samples
            .iter()
            .flat_map(|samples| samples.iter().rev())
            .map(|(event, sample)| sampled(event, sample))
            .collect();
        members.insert("samples".to_owned(), samples.into());
        members
    }
}

fn sampled(event: &Event, sample: &Sample) -> Value {
    json!({
        "flip": event.flip.word(),
        "time": written(sample.at),
        "decision_id": sample.decision_id.as_str(),
        "request_id": sample.request_id.as_str(),
        "route": &*sample.route,
        "method": sample.method,
        "path": sample.path,
        "caller": &*event.caller,
        "decided": sample.decided,
        "from": &*event.from,
        "to": &*event.to,
        "terms": sample.terms.names().collect::<Vec<_>>(),
        "policy_revision": &*sample.revisions.0,
        "candidate_revision": &*sample.revisions.1,
    })
}

/// RFC 3339, in whole seconds.
pub(super) fn written(at: SystemTime) -> String {
    let at = OffsetDateTime::from(at);
    let whole = at.replace_nanosecond(0).unwrap_or(at);
    whole.format(&Rfc3339).unwrap_or_default()
}

/// A text of a policy or a client, within the bound.
pub(super) fn clipped(text: &str) -> Arc<str> {
    if text.len() <= MAX_TEXT {
        return text.into();
    }
    let mut end = MAX_TEXT;
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    format!("{}…", text.get(..end).unwrap_or_default()).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(caller: &str, to: &str, sampled: bool) -> Event {
        let id = RequestId::random();
        Event {
            flip: Flip::Denies,
            caller: caller.into(),
            from: "allowed".into(),
            to: to.into(),
            sample: sampled.then(|| {
                Box::new(Sample {
                    at: SystemTime::UNIX_EPOCH,
                    decision_id: id,
                    request_id: id,
                    route: "r".into(),
                    method: "GET".to_owned(),
                    path: "/orders/{id}".to_owned(),
                    decided: false,
                    terms: Terms::default(),
                    revisions: ("a".into(), "b".into()),
                })
            }),
        }
    }

    #[test]
    fn whatever_clients_and_policies_send_the_report_stays_within_its_bounds() {
        let mut report = Report::default();
        let mut tally = Tally::default();
        for number in 0..3_000 {
            let route: Arc<str> = format!("r{number}").into();
            tally.on_route(&route, Some(Flip::Denies));
            tally.events.push(event(
                &format!("caller{number}"),
                &format!("reason.{number}"),
                true,
            ));
            report.take(&mut tally);
        }
        assert_eq!(report.routes.len(), MAX_ROUTES);
        assert_eq!(report.other_routes.all, 2_000);
        assert_eq!(report.reasons.len(), MAX_REASONS);
        assert_eq!(report.other_reasons, 2_800);
        let full = Value::from(report.full());
        assert_eq!(full["compared"], 3_000);
        assert_eq!(full["denies"], 3_000);
        assert_eq!(full["samples"].as_array().unwrap().len(), SAMPLES);
        assert!(full["callers"].as_array().unwrap().len() <= SHOWN);
        assert!(
            full["routes"]
                .as_array()
                .unwrap()
                .iter()
                .any(|r| r["route"] == "(others)")
        );
        assert!(clipped(&"é".repeat(500)).len() <= MAX_TEXT + 4);
    }

    #[test]
    fn a_reset_forgets_the_flips_and_not_what_is_judged() {
        let mut report = Report::default();
        let mut tally = Tally::default();
        tally.on_route(&"r".into(), Some(Flip::Permits));
        tally.judged.compared = 5;
        report.take(&mut tally);
        assert!(!tally.any && tally.compared.all == 0);
        report.reset();
        assert_eq!(Value::from(report.full())["compared"], 0);
        assert_eq!(report.judged.compared, 5);
    }
}
