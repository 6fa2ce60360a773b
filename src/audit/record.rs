//! The record of one request, from its head to its last byte.

use std::borrow::Cow;
use std::cell::{Cell, RefCell};
use std::error::Error;
use std::fmt;
use std::net::IpAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use http::{Method, Request, Response, Version, header};
use http_body::Body as HttpBody;

use super::follow::Counted;
use super::line::{
    Asked, CallerPart, Durations, Line, OriginPart, PolicyPart, RefusalPart, TlsPart, clip,
};
use super::queue::Lane;
use super::{Audit, QueryMode, RecordConfig, WhenFull};
use crate::ascii::plain;
use crate::authn::{self, Caller};
use crate::authz::told::{Script, Untold, mask_query};
use crate::authz::{DecidedBy, Denial, Edits, Gave, Permit, Policy, RouteFacts, Ruling};
use crate::body::{Body, BodyError};
use crate::lease::{Lapse, Lease};
use crate::metrics::{Metrics, RouteCounts, RouteMetrics};
use crate::refusal::Refusal;
use crate::request::{ConnInfo, InboundRequest, RequestId};
use crate::schema::Share;
use crate::telemetry::{Finished, SpanId, TraceContext, TraceId, Tracing};
use crate::upstream::Trail;

/// Longest texts in a record, in bytes.
const METHOD: usize = 32;
const HOST: usize = 260;
const PATH: usize = 2048;
const QUERY: usize = 1024;
const NAME: usize = 256;
const TOKEN_ID: usize = 128;
const DETAIL: usize = 512;

/// The caller of requests that need none.
const ANONYMOUS: &[u8] =
    br#"{"method":"anonymous","issuer":null,"subject":null,"client":null,"token_id":null}"#;

/// The route of requests that found none, in metrics.
const NO_ROUTE: &str = "-";

/// How many buffers for texts a thread keeps, and how large each may be; and for what was told.
const KEPT_BUFFERS: usize = 64;
const LARGEST_BUFFER: usize = 4096;
const LARGEST_TOLD: usize = 20 * 1024;

/// Why there is no answer, though there was one: see `authz::MAX_GIVEN`.
const LARGER_ANSWER: &str = "larger than 16384 bytes";

/// Why there is no input, where it was asked for none.
const NOT_KEPT: &str = "audit.input is none";

/// Why there is no input, nor an answer of more bytes than this, where too much waits for the sink.
const NO_ROOM: &str = "no room: too much waits for the sink";
const SMALL_ANSWER: usize = 512;

/// The record of one request. It writes itself when it is dropped, whatever happened.
pub struct Record(Box<Facts>);

/// What the records of one thread under one configuration share. Counted per thread: what all
/// workers would count in one place costs each of them a cache line.
#[derive(Debug)]
struct Desk {
    // Before the audit, for it leads into its queue.
    lane: Option<Lane>,
    audit: Arc<Audit>,
    tracing: Arc<Tracing>,
    metrics: Arc<Metrics>,
    buffers: RefCell<Vec<String>>,
    told: RefCell<Vec<Told>>,
}

/// What a decision was made of, as JSON; kept for its memory.
#[derive(Debug, Default)]
struct Told {
    /// The members of `policy`.
    policy: Vec<u8>,
    script: Script,
}

impl Told {
    fn has_input(&self) -> bool {
        !self.script.input.is_empty()
    }
}

thread_local! {
    static DESK: RefCell<Option<Rc<Desk>>> = const { RefCell::new(None) };
}

impl Desk {
    /// The calling thread's desk, made anew when another configuration is in force.
    fn of(audit: &Arc<Audit>, tracing: &Arc<Tracing>, metrics: &Arc<Metrics>) -> Rc<Self> {
        let new = || {
            Rc::new(Self {
                lane: audit.queue().map(super::Queue::lane),
                audit: Arc::clone(audit),
                tracing: Arc::clone(tracing),
                metrics: Arc::clone(metrics),
                buffers: RefCell::default(),
                told: RefCell::default(),
            })
        };
        let kept = DESK.try_with(|kept| {
            let mut kept = kept.borrow_mut();
            if let Some(desk) = &*kept
                && Arc::ptr_eq(&desk.audit, audit)
                && Arc::ptr_eq(&desk.tracing, tracing)
                && Arc::ptr_eq(&desk.metrics, metrics)
            {
                return (Rc::clone(desk), None);
            }
            let desk = new();
            let earlier = kept.replace(Rc::clone(&desk));
            (desk, earlier)
        });
        // The earlier desk goes only now that nothing is borrowed; a thread that is ending has none.
        kept.map_or_else(|_| new(), |(desk, _)| desk)
    }

    fn buffer(&self) -> String {
        let kept = self.buffers.borrow_mut().pop();
        kept.unwrap_or_else(|| String::with_capacity(512))
    }

    fn give_back(&self, mut buffer: String) {
        let mut buffers = self.buffers.borrow_mut();
        if buffers.len() < KEPT_BUFFERS && buffer.capacity() <= LARGEST_BUFFER {
            buffer.clear();
            buffers.push(buffer);
        }
    }

    fn told(&self) -> Told {
        let kept = self.told.borrow_mut().pop();
        kept.unwrap_or_default()
    }

    fn take_back(&self, mut told: Told) {
        let mut kept = self.told.borrow_mut();
        let size = told.policy.capacity() + told.script.capacity();
        if kept.len() < KEPT_BUFFERS && size <= LARGEST_TOLD {
            told.policy.clear();
            told.script.clear();
            kept.push(told);
        }
    }
}

/// A text in the record's buffer.
#[derive(Debug, Clone, Copy)]
struct Span {
    from: usize,
    to: usize,
}

pub(super) struct Facts {
    desk: Rc<Desk>,
    seat: bool,
    /// What the route says of its records.
    terms: RecordConfig,
    id: RequestId,
    conn: Arc<ConnInfo>,
    received_at: SystemTime,
    began: Instant,
    method: Method,
    version: Version,
    /// All texts that are kept. Copied: sharing them would hold on to the connection's read buffer
    /// and count in places that all workers share.
    texts: String,
    /// As sent.
    target_path: Span,
    /// As it may be written.
    query: Option<Span>,
    user_agent: Option<Span>,
    trace_id: Option<(TraceId, SpanId)>,
    /// Only when a span is made of this request.
    trace: Option<Box<TraceContext>>,
    client: Option<IpAddr>,
    host: Option<Span>,
    /// The canonical path.
    path: Option<Span>,
    route: Option<(Span, RouteMetrics)>,
    caller: Option<Caller>,
    decision_id: Option<RequestId>,
    /// The policy's name.
    decided_by: Option<Span>,
    ruling: Ruling,
    told: Option<Told>,
    untold: Option<Cow<'static, str>>,
    decision: Option<&'static str>,
    decided: Option<Duration>,
    reason: Option<Span>,
    refusal: Option<(&'static str, Span)>,
    status: Option<u16>,
    head: Option<Duration>,
    upstream: Option<Span>,
    endpoint: Option<Span>,
    attempts: u32,
    /// Absent when the request has no body.
    bytes_in: Option<Rc<Cell<u64>>>,
    pub(super) bytes_out: u64,
    pub(super) outcome: Outcome,
    detail: Option<Span>,
    /// What the policy wants to be kept, JSON, and what it changed of the request.
    metadata: Option<Arc<str>>,
    edits: Option<Arc<Edits>>,
    /// Says whether the permission ended before the answer did.
    lease: Option<Rc<Lease>>,
    /// The answer's body and its length, if that is known.
    pub(super) body: Option<Body>,
    pub(super) expected: Option<u64>,
}

/// How it ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Outcome {
    /// It has not ended; a record that is dropped like this belongs to a client who hung up.
    Open,
    /// The last byte of the answer was handed to the connection.
    Complete,
    /// The upstream's body broke off, or ran into a time limit.
    UpstreamBroke,
    /// A tunnel ended like this; a fixed word.
    Tunnel(&'static str),
}

/// The record of a tunnel: open until it is dropped, which writes it.
pub struct OpenRecord {
    facts: Box<Facts>,
    received: Rc<Cell<u64>>,
    sent: Rc<Cell<u64>>,
}

impl Record {
    /// Opens the record of a request.
    pub fn open(
        audit: &Arc<Audit>,
        tracing: &Arc<Tracing>,
        metrics: &Arc<Metrics>,
        id: &RequestId,
        conn: &Arc<ConnInfo>,
        head: &Request<impl Sized>,
        received_at: SystemTime,
    ) -> Self {
        metrics.request_opened();
        let desk = Desk::of(audit, tracing, metrics);
        let mut texts = desk.buffer();
        let uri = head.uri();
        let target_path = keep(&mut texts, uri.path());
        let mode = desk.audit.config.query;
        let query = uri
            .query()
            .and_then(|query| kept_query(mode, query, &mut texts));
        let user_agent = head.headers().get(header::USER_AGENT).map(|value| {
            match std::str::from_utf8(value.as_bytes()) {
                Ok(text) => keep(&mut texts, text),
                Err(_) => keep(&mut texts, &String::from_utf8_lossy(value.as_bytes())),
            }
        });
        Self(Box::new(Facts {
            seat: desk.lane.as_ref().is_some_and(Lane::sit),
            desk,
            terms: RecordConfig::default(),
            id: *id,
            conn: Arc::clone(conn),
            received_at,
            began: Instant::now(),
            method: head.method().clone(),
            version: head.version(),
            texts,
            target_path,
            query,
            user_agent,
            trace_id: None,
            trace: None,
            client: None,
            host: None,
            path: None,
            route: None,
            caller: None,
            decision_id: None,
            decided_by: None,
            ruling: Ruling::default(),
            told: None,
            untold: None,
            decision: None,
            decided: None,
            reason: None,
            refusal: None,
            status: None,
            head: None,
            upstream: None,
            endpoint: None,
            attempts: 0,
            bytes_in: None,
            bytes_out: 0,
            outcome: Outcome::Open,
            detail: None,
            metadata: None,
            edits: None,
            lease: None,
            body: None,
            expected: None,
        }))
    }

    /// Whether there is room for it, so that nothing need be asked.
    pub fn has_room(&self) -> bool {
        self.0.seat || self.0.desk.lane.is_none()
    }

    /// Whether the request may go on, given what its route says to be done when there is no room; waits
    /// for it if that is what it says. When it is `false`, the request must be turned away before
    /// anything happens.
    pub async fn room(&mut self, route: Option<RecordConfig>) -> bool {
        if let Some(terms) = route {
            self.0.terms = terms;
        }
        let facts = &mut *self.0;
        let desk = Rc::clone(&facts.desk);
        let Some(lane) = &desk.lane else {
            return facts.when_full().loses();
        };
        facts.seat |= lane.sit();
        if !facts.seat && facts.when_full() == WhenFull::Block {
            facts.seat = lane.wait(desk.audit.config.patience.get()).await;
        }
        facts.seat || facts.when_full().loses()
    }

    /// The trace this request belongs to.
    pub fn trace(&mut self, trace: &TraceContext) {
        let facts = &mut *self.0;
        facts.trace_id = Some((trace.trace_id, trace.span_id));
        if facts.desk.tracing.records(trace) {
            facts.trace = Some(Box::new(trace.clone()));
        }
    }

    /// What was asked, once it is readable in one way.
    pub fn request(&mut self, request: &InboundRequest) {
        let facts = &mut *self.0;
        facts.client = Some(request.client);
        facts.host = Some(keep(&mut facts.texts, request.host.as_str()));
        let path = request.path.as_str();
        facts.path = Some(if facts.text(facts.target_path) == path {
            facts.target_path
        } else {
            keep(&mut facts.texts, path)
        });
    }

    /// Counts the bytes of the request's body as they are read.
    pub fn received(&mut self, body: Body) -> Body {
        if body.is_end_stream() {
            return body;
        }
        let bytes = Rc::default();
        self.0.bytes_in = Some(Rc::clone(&bytes));
        Body::stream(Counted::new(body, bytes))
    }

    /// The route that was found, and how it wants its requests recorded.
    pub fn route(&mut self, name: &str, counts: &RouteCounts, terms: RecordConfig) {
        let name = keep(&mut self.0.texts, name);
        self.0.terms = terms;
        self.0.route = Some((name, counts.get()));
    }

    /// Who asked.
    pub fn caller(&mut self, caller: &Caller) {
        self.0.caller = Some(caller.clone());
    }

    /// Gives the decision an id, made on the first call, and returns it.
    pub fn decision_id(&mut self) -> RequestId {
        *self.0.decision_id.get_or_insert_with(RequestId::random)
    }

    /// The decision was yes.
    pub fn permitted(&mut self, permit: &Permit) {
        self.decided("allow", &permit.decided_by, &permit.ruling);
        let reason = permit.advice.reason.as_deref();
        self.0.reason = reason.map(|reason| keep(&mut self.0.texts, reason));
        self.0.metadata.clone_from(&permit.advice.metadata);
        self.0.edits.clone_from(&permit.advice.edits);
    }

    /// The decision was no.
    pub fn denied(&mut self, denial: &Denial) {
        self.decided("deny", &denial.decided_by, &denial.ruling);
        let facts = &mut *self.0;
        facts.reason = Some(keep(&mut facts.texts, denial.reason.code()));
        let detail = denial.detail.as_deref();
        facts.detail = detail.map(|text| keep(&mut facts.texts, &clip(text, NAME)));
        facts.metadata.clone_from(&denial.metadata);
    }

    fn decided(&mut self, decision: &'static str, by: &DecidedBy, ruling: &Ruling) {
        self.decision_id();
        let facts = &mut *self.0;
        facts.decision = Some(decision);
        facts.decided = Some(facts.began.elapsed());
        facts.decided_by = Some(keep(&mut facts.texts, &by.policy));
        facts.ruling = ruling.clone();
        // Copied, as all texts are.
        let told = facts.told.get_or_insert_with(|| facts.desk.told());
        told.policy.clear();
        told.policy.extend_from_slice(by.record().as_bytes());
    }

    /// What the policy that decided was asked. Written at once: what it is written from goes its way.
    /// `body_sent` is whether the request has a body of which nothing was read.
    pub fn asked(
        &mut self,
        policy: &Policy,
        request: &InboundRequest,
        route: &RouteFacts<'_>,
        body_sent: bool,
    ) {
        let facts = &mut *self.0;
        if facts.desk.lane.is_none() {
            return;
        }
        let Some(how) = &facts.desk.audit.telling else {
            if policy.is_asked() {
                facts.untold = Some(Cow::Borrowed(NOT_KEPT));
            }
            return;
        };
        let identity = facts.caller.as_ref().and_then(Caller::identity);
        let told = facts.told.get_or_insert_with(|| facts.desk.told());
        let script = &mut told.script;
        match policy.tell(request, route, identity, body_sent, how, script) {
            Ok(()) | Err(Untold::NotAsked) => {}
            Err(why @ (Untold::Larger(_) | Untold::Unreadable(_))) => {
                facts.untold = Some(Cow::Owned(why.to_string()));
            }
        }
    }

    /// The upstream it goes to.
    pub fn upstream(&mut self, name: &str) {
        self.0.upstream = Some(keep(&mut self.0.texts, name));
    }

    /// The permission that the answer streams under.
    pub fn leased(&mut self, lease: &Rc<Lease>) {
        self.0.desk.metrics.stream_opened();
        self.0.lease = Some(Rc::clone(lease));
    }

    /// How far forwarding got.
    pub fn forwarded(&mut self, trail: &Trail) {
        let facts = &mut *self.0;
        let endpoint = trail.endpoint.as_deref();
        facts.endpoint = endpoint.map(|endpoint| keep(&mut facts.texts, endpoint));
        facts.attempts = trail.attempts;
    }

    /// What became of something that was posted to the gateway itself.
    pub fn posted(&mut self, code: &str, detail: &str) {
        let facts = &mut *self.0;
        facts.reason = Some(keep(&mut facts.texts, code));
        facts.detail = Some(keep(&mut facts.texts, &clip(detail, DETAIL)));
    }

    /// Why the request was turned away.
    pub fn refused(&mut self, refusal: &Refusal) {
        let facts = &mut *self.0;
        let mut detail = refusal.to_string();
        let mut source = refusal.source();
        while let Some(cause) = source {
            if detail.len() > DETAIL {
                break;
            }
            detail.push_str(": ");
            detail.push_str(&cause.to_string());
            source = cause.source();
        }
        facts.reason = Some(keep(&mut facts.texts, refusal.code()));
        let detail = keep(&mut facts.texts, &clip(&detail, DETAIL));
        facts.refusal = Some((refusal.public().code, detail));
        let metrics = &facts.desk.metrics;
        metrics.refused(facts.route().unwrap_or(NO_ROUTE), metric_code(refusal));
    }

    /// Hands the record to the answer's body: it stays open until the last byte has left.
    pub fn follow(mut self, response: Response<Body>) -> Response<Body> {
        let facts = &mut *self.0;
        facts.status = Some(response.status().as_u16());
        facts.head = Some(facts.began.elapsed());
        // The connection never asks for the body of these (RFC 9110 sections 6.4.1 and 9.3.2).
        let bodiless = facts.method == Method::HEAD
            || matches!(response.status().as_u16(), 100..200 | 204 | 304);
        if bodiless {
            facts.outcome = Outcome::Complete;
        }
        response.map(move |body| {
            self.0.expected = body.size_hint().exact();
            self.0.body = Some(body);
            Body::boxed(Box::into_pin(self.0))
        })
    }
}

impl Record {
    /// Keeps the record open for a tunnel that begins with this answer.
    pub fn open_tunnel(mut self, response: &Response<Body>) -> OpenRecord {
        let facts = &mut *self.0;
        facts.status = Some(response.status().as_u16());
        facts.head = Some(facts.began.elapsed());
        let received: Rc<Cell<u64>> = Rc::default();
        facts.bytes_in = Some(Rc::clone(&received));
        OpenRecord {
            facts: self.0,
            received,
            sent: Rc::default(),
        }
    }
}

impl OpenRecord {
    /// Where the client's bytes are counted.
    pub fn received(&self) -> Rc<Cell<u64>> {
        Rc::clone(&self.received)
    }

    /// Where the upstream's bytes are counted.
    pub fn sent(&self) -> Rc<Cell<u64>> {
        Rc::clone(&self.sent)
    }

    /// How the tunnel ended, in a fixed word. Without it, the client has hung up.
    pub fn ended(&mut self, how: &'static str) {
        self.facts.outcome = Outcome::Tunnel(how);
    }
}

impl Drop for OpenRecord {
    fn drop(&mut self) {
        self.facts.bytes_out = self.sent.get();
    }
}

impl fmt::Debug for OpenRecord {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OpenRecord")
            .field("id", &self.facts.id)
            .finish_non_exhaustive()
    }
}

/// A code for metrics: as fine as it can be without a word of the client's or the policy's.
fn metric_code(refusal: &Refusal) -> &'static str {
    match refusal {
        Refusal::Unauthenticated { failure, .. } => match failure {
            authn::Failure::Missing => "credential.missing",
            authn::Failure::Rejected { code, .. } => code,
            authn::Failure::Unavailable { .. } => "issuer.unavailable",
            authn::Failure::Confused => "credential.several",
        },
        Refusal::Revoked(revoked) => revoked.code(),
        Refusal::Lapsed { lapse, .. } => lapse.code(),
        Refusal::Malformed(_)
        | Refusal::NoRoute
        | Refusal::Denied(_)
        | Refusal::Throttled(_)
        | Refusal::Upstream(_)
        | Refusal::DeadlinePassed
        | Refusal::Overloaded(_)
        | Refusal::Internal => refusal.public().code,
    }
}

fn keep(texts: &mut String, text: &str) -> Span {
    let from = texts.len();
    texts.push_str(text);
    let to = texts.len();
    Span { from, to }
}

fn kept_query(mode: QueryMode, query: &str, texts: &mut String) -> Option<Span> {
    match mode {
        QueryMode::None => None,
        QueryMode::Full => Some(keep(texts, query)),
        QueryMode::Keys => {
            let from = texts.len();
            mask_query(query, texts);
            let to = texts.len();
            Some(Span { from, to })
        }
    }
}

impl fmt::Debug for Record {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Record")
            .field("id", &self.0.id)
            .finish_non_exhaustive()
    }
}

impl Drop for Facts {
    fn drop(&mut self) {
        if self.body.is_some() && self.all_sent() {
            self.ended();
        }
        let total = self.began.elapsed();
        let desk = &*self.desk;
        desk.metrics.request_closed();
        if let Some(lease) = &self.lease {
            desk.metrics.stream_closed();
            if let Some(lapse) = lease.lapse() {
                let route = self.route().unwrap_or(NO_ROUTE);
                desk.metrics.permission_ended(route, lapse.word());
            }
        }
        let counts = self.route.map(|(_, counts)| counts);
        counts
            .unwrap_or_else(|| desk.metrics.route(NO_ROUTE))
            .request(self.status, self.head, total, self.bytes_out);
        if let Some(trace) = &self.trace {
            desk.tracing.export(self.span(trace, total));
        }
        if let Some(lane) = &desk.lane {
            // A record without a seat may find one now; otherwise it is lost, and counted.
            if self.is_left_out() {
                let route = self.route().unwrap_or(NO_ROUTE);
                lane.left_out(|left| left.sample(route));
                if self.seat {
                    lane.stand_up();
                }
            } else if self.seat || (self.when_full().loses() && lane.sit()) {
                let crowded = lane.is_crowded();
                if crowded && self.told.as_ref().is_some_and(Told::has_input) {
                    desk.metrics.audit_input_left_out();
                }
                lane.send(|out, second| self.line(total, crowded).write(out, second));
            } else {
                desk.metrics.audit_dropped(1);
                lane.left_out(|left| left.lost += 1);
            }
        }
        desk.give_back(std::mem::take(&mut self.texts));
        if let Some(told) = self.told.take() {
            desk.take_back(told);
        }
    }
}

impl Facts {
    fn when_full(&self) -> WhenFull {
        let route = self.terms.when_full;
        route.unwrap_or(self.desk.audit.config.when_full)
    }

    /// Whether it is not among the share of records that the route keeps. What went wrong is kept.
    fn is_left_out(&self) -> bool {
        let sample = &self.terms.sample;
        let fine = self.outcome == Outcome::Complete && self.status.is_some_and(|it| it < 500);
        let share = match (self.decision, &self.refusal) {
            _ if !fine => return false,
            (_, Some(_)) => sample.deny,
            (Some(_), None) => sample.allow,
            (None, None) => return false,
        };
        if share == Share::ALL {
            return false;
        }
        // The id's lower half: evenly spread, and the same for whoever looks at this request.
        let digits = self.id.as_str().get(16..).unwrap_or_default();
        let number = u64::from_str_radix(digits, 16).unwrap_or_default();
        !share.takes(number)
    }

    /// The answer's body is at its end.
    pub(super) fn ended(&mut self) {
        if self.outcome == Outcome::Open {
            self.outcome = Outcome::Complete;
        }
    }

    /// The answer's body broke off.
    pub(super) fn broke(&mut self, error: &BodyError) {
        self.outcome = Outcome::UpstreamBroke;
        let detail = error.to_string();
        self.detail = Some(keep(&mut self.texts, &clip(&detail, NAME)));
    }

    fn text(&self, span: Span) -> &str {
        self.texts.get(span.from..span.to).unwrap_or_default()
    }

    fn maybe(&self, span: Option<Span>) -> Option<&str> {
        span.map(|span| self.text(span))
    }

    fn clipped(&self, span: Option<Span>, most: usize) -> Option<Cow<'_, str>> {
        span.map(|span| clip(self.text(span), most))
    }

    fn outcome(&self) -> &'static str {
        if std::thread::panicking() {
            return "panic";
        }
        if self.lapse().is_some() {
            return "permission_ended";
        }
        match self.outcome {
            Outcome::Open => "client_gone",
            Outcome::Complete => "complete",
            Outcome::UpstreamBroke => "upstream_broke",
            Outcome::Tunnel(how) => how,
        }
    }

    /// Why the permission ended before the answer did.
    fn lapse(&self) -> Option<&Lapse> {
        self.lease.as_ref()?.lapse()
    }

    fn client(&self) -> IpAddr {
        self.client
            .unwrap_or_else(|| self.conn.peer.ip().to_canonical())
    }

    fn path(&self) -> &str {
        self.text(self.path.unwrap_or(self.target_path))
    }

    fn route(&self) -> Option<&str> {
        self.route.map(|(name, _)| self.text(name))
    }

    fn line(&self, total: Duration, crowded: bool) -> Line<'_> {
        Line {
            time: self.received_at,
            received_at_ns: self
                .received_at
                .duration_since(SystemTime::UNIX_EPOCH)
                .ok()
                .and_then(|since| u64::try_from(since.as_nanos()).ok()),
            request_id: self.id.as_bytes(),
            decision_id: self.decision_id.as_ref().map(|id| &id.as_bytes()[..]),
            trace_id: self.trace_id.as_ref().map(|(id, _)| &id.as_bytes()[..]),
            span_id: self.trace_id.as_ref().map(|(_, id)| &id.as_bytes()[..]),
            origin: self.origin(),
            method: clip(self.method.as_str(), METHOD),
            host: self.clipped(self.host, HOST),
            path: clip(self.path(), PATH),
            query: self.clipped(self.query, QUERY),
            protocol: protocol(self.version),
            user_agent: self.clipped(self.user_agent, NAME),
            route: self.route(),
            caller: self.caller.as_ref().map(written_caller),
            policy: self.told.as_ref().map(|told| PolicyPart {
                written: &told.policy,
                cached: self.ruling.cached,
            }),
            decision: self.decision,
            reason: self.clipped(self.reason, NAME),
            refusal: self.refusal.map(|(code, detail)| RefusalPart {
                code,
                detail: self.text(detail),
            }),
            status: self.status,
            upstream: self.maybe(self.upstream),
            endpoint: self.maybe(self.endpoint),
            attempts: self.attempts,
            bytes_in: self.bytes_in.as_ref().map_or(0, |bytes| bytes.get()),
            bytes_out: self.bytes_out,
            duration: Durations {
                decision: self.decided,
                policy: self.ruling.took,
                head: self.head,
                total,
            },
            outcome: self.outcome(),
            detail: match self.lapse() {
                Some(lapse) => Some(clip(lapse.code(), NAME)),
                None => self.maybe(self.detail).map(Cow::Borrowed),
            },
            metadata: self.metadata.as_deref(),
            edits: self.edits.as_deref(),
            asked: self.told(crowded),
            // All at once, for there are ten of them. What stands beside them is a token of HTTP or a
            // word of ours.
            plain: plain(self.texts.as_bytes())
                && self
                    .lapse()
                    .is_none_or(|lapse| plain(lapse.code().as_bytes())),
        }
    }

    fn told(&self, crowded: bool) -> Asked<'_> {
        let known = self.told.as_ref().filter(|told| told.has_input());
        let script = known.filter(|_| !crowded).map(|told| &told.script);
        let list = |list: fn(&Script) -> &[u8]| script.map_or(&[][..], list);
        let (mut answer, mut answer_left_out, mut masked_answer) = (None, None, &b""[..]);
        match &self.ruling.answer {
            Some(Gave::Text { text, masked }) => {
                if crowded && text.len() > SMALL_ANSWER {
                    answer_left_out = Some(NO_ROOM);
                } else {
                    answer = Some(text.as_bytes());
                    masked_answer = masked.as_deref().unwrap_or_default().as_bytes();
                }
            }
            Some(Gave::Larger) => answer_left_out = Some(LARGER_ANSWER),
            None => {}
        }
        Asked {
            answer,
            answer_left_out,
            input: script.map(|script| script.input.as_slice()),
            input_left_out: match known {
                Some(_) if crowded => Some(NO_ROOM),
                Some(_) | None => self.untold.as_deref(),
            },
            masked_answer,
            masked: list(|script| &script.masked),
            erased: list(|script| &script.erased),
        }
    }

    /// What the record says of the connection; the same for all of its requests, unless a trusted
    /// proxy tells of other clients.
    fn origin(&self) -> Cow<'_, [u8]> {
        let conn = &*self.conn;
        let client = self.client();
        let write = || {
            let part = OriginPart {
                listener: &conn.listener,
                client,
                peer: conn.peer,
                tls: conn.tls.as_ref().map(|tls| TlsPart {
                    version: tls.version,
                    server_name: tls.server_name.as_deref().map(|name| clip(name, HOST)),
                    certificate_sha256: tls
                        .peer_certificate
                        .as_deref()
                        .map(|certificate| certificate.sha256.as_str()),
                }),
            };
            part.written()
        };
        if client == conn.peer.ip().to_canonical() {
            let memo = &conn.forwarded.record;
            Cow::Borrowed(memo.get_or_init(|| write().into()))
        } else {
            Cow::Owned(write())
        }
    }

    fn span(&self, trace: &TraceContext, total: Duration) -> Finished {
        let owned = |span| self.maybe(span).map(str::to_owned);
        Finished {
            trace: trace.clone(),
            began: self.received_at,
            decided: self.decided,
            head: self.head,
            total,
            method: self.method.to_string(),
            path: clip(self.path(), PATH).into_owned(),
            scheme: if self.conn.tls.is_some() {
                "https"
            } else {
                "http"
            },
            host: owned(self.host),
            protocol: protocol(self.version),
            client: self.client(),
            status: self.status,
            route: self.route().map(str::to_owned),
            policy: owned(self.decided_by),
            decision: self.decision,
            decision_id: self.decision_id,
            refusal: self.refusal.and_then(|_| owned(self.reason)),
            upstream: owned(self.upstream),
            endpoint: owned(self.endpoint),
            request_id: self.id,
            outcome: self.outcome(),
        }
    }
}

/// What the record says of the caller; the same for all requests of an identity.
fn written_caller(caller: &Caller) -> Cow<'_, [u8]> {
    let Some(identity) = caller.identity() else {
        return Cow::Borrowed(ANONYMOUS);
    };
    let write = || {
        let part = CallerPart {
            method: identity.method,
            issuer: Some(clip(&identity.issuer, NAME)),
            subject: Some(clip(&identity.subject, NAME)),
            client: identity.client.as_deref().map(|client| clip(client, NAME)),
            token_id: identity.token_id.as_deref().map(|id| clip(id, TOKEN_ID)),
        };
        part.written().into()
    };
    Cow::Borrowed(identity.told.record.get_or_init(write))
}

fn protocol(version: Version) -> &'static str {
    match version {
        Version::HTTP_10 => "HTTP/1.0",
        Version::HTTP_11 => "HTTP/1.1",
        Version::HTTP_2 => "HTTP/2",
        _ => "other",
    }
}
