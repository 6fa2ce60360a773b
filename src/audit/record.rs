//! The record of one request, from its head to its last byte.

use std::borrow::Cow;
use std::cell::Cell;
use std::error::Error;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use http::{HeaderValue, Method, Request, Response, Uri, Version, header};

use super::follow::{Counted, Followed};
use super::line::{
    CallerPart, Durations, Line, PolicyPart, RefusalPart, TlsPart, clip, mask, millis, timestamp,
};
use super::{Audit, QueryMode, WhenFull};
use crate::authn::{self, Caller};
use crate::authz::{DecidedBy, Denial, Permit};
use crate::body::{Body, BodyError};
use crate::metrics::Metrics;
use crate::refusal::Refusal;
use crate::request::{ConnInfo, InboundRequest, RequestId};
use crate::telemetry::{Finished, TraceContext, Tracing};
use crate::upstream::Trail;

/// Longest texts in a record, in bytes.
const METHOD: usize = 32;
const HOST: usize = 260;
const PATH: usize = 2048;
const QUERY: usize = 1024;
const NAME: usize = 256;
const TOKEN_ID: usize = 128;
const DETAIL: usize = 512;

/// The route of requests that found none, in metrics.
const NO_ROUTE: &str = "-";

/// The record of one request. It writes itself when it is dropped, whatever happened.
#[derive(Debug)]
pub struct Record(Box<Facts>);

#[derive(Debug)]
struct Facts {
    audit: Arc<Audit>,
    tracing: Arc<Tracing>,
    metrics: Arc<Metrics>,
    seat: bool,
    id: RequestId,
    conn: Arc<ConnInfo>,
    received_at: SystemTime,
    began: Instant,
    method: Method,
    uri: Uri,
    version: Version,
    user_agent: Option<HeaderValue>,
    trace: Option<TraceContext>,
    client: Option<std::net::IpAddr>,
    host: Option<String>,
    path: Option<String>,
    query: Option<String>,
    route: Option<Arc<str>>,
    caller: Option<Caller>,
    decision_id: Option<Arc<str>>,
    decided_by: Option<DecidedBy>,
    decision: Option<&'static str>,
    decided: Option<Duration>,
    reason: Option<String>,
    refusal: Option<(&'static str, String)>,
    status: Option<u16>,
    head: Option<Duration>,
    upstream: Option<Arc<str>>,
    endpoint: Option<String>,
    attempts: u32,
    bytes_in: Rc<Cell<u64>>,
    bytes_out: u64,
    outcome: Outcome,
    detail: Option<String>,
}

/// How it ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Outcome {
    /// It has not ended; a record that is dropped like this belongs to a client who hung up.
    Open,
    /// The last byte of the answer was handed to the connection.
    Complete,
    /// The upstream's body broke off, or ran into a time limit.
    UpstreamBroke,
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
        Self(Box::new(Facts {
            seat: audit.queue().is_some_and(super::Queue::sit),
            audit: Arc::clone(audit),
            tracing: Arc::clone(tracing),
            metrics: Arc::clone(metrics),
            id: id.clone(),
            conn: Arc::clone(conn),
            received_at,
            began: Instant::now(),
            method: head.method().clone(),
            uri: head.uri().clone(),
            version: head.version(),
            user_agent: head.headers().get(header::USER_AGENT).cloned(),
            trace: None,
            client: None,
            host: None,
            path: None,
            query: None,
            route: None,
            caller: None,
            decision_id: None,
            decided_by: None,
            decision: None,
            decided: None,
            reason: None,
            refusal: None,
            status: None,
            head: None,
            upstream: None,
            endpoint: None,
            attempts: 0,
            bytes_in: Rc::default(),
            bytes_out: 0,
            outcome: Outcome::Open,
            detail: None,
        }))
    }

    /// Whether this record can be kept, or need not be. When it is `false` (only with
    /// `when_full: refuse`), the request must be turned away before anything happens.
    pub fn has_room(&self) -> bool {
        self.0.seat || self.0.audit.config.when_full == WhenFull::Drop
    }

    /// The trace this request belongs to.
    pub fn trace(&mut self, trace: &TraceContext) {
        self.0.trace = Some(trace.clone());
    }

    /// What was asked, once it is readable in one way.
    pub fn request(&mut self, request: &InboundRequest) {
        let facts = &mut self.0;
        facts.client = Some(request.client);
        facts.host = Some(request.host.to_string());
        facts.path = Some(request.path.as_str().to_owned());
        facts.query = request
            .query
            .as_deref()
            .and_then(|query| kept_query(facts.audit.config.query, query));
    }

    /// Counts the bytes of the request's body as they are read.
    pub fn received(&self, body: Body) -> Body {
        Box::pin(Counted::new(body, Rc::clone(&self.0.bytes_in)))
    }

    /// The route that was found.
    pub fn route(&mut self, name: &Arc<str>) {
        self.0.route = Some(Arc::clone(name));
    }

    /// Who asked.
    pub fn caller(&mut self, caller: &Caller) {
        self.0.caller = Some(caller.clone());
    }

    /// Gives the decision an id, made on the first call, and returns it.
    pub fn decision_id(&mut self) -> Arc<str> {
        let fresh = || Arc::clone(RequestId::random().shared());
        Arc::clone(self.0.decision_id.get_or_insert_with(fresh))
    }

    /// The decision was yes.
    pub fn permitted(&mut self, permit: &Permit) {
        self.decided("allow", &permit.decided_by);
        self.0.reason.clone_from(&permit.advice.reason);
    }

    /// The decision was no.
    pub fn denied(&mut self, denial: &Denial) {
        self.decided("deny", &denial.decided_by);
        self.0.reason = Some(denial.reason.code().to_owned());
        self.0.detail = denial
            .detail
            .as_deref()
            .map(|text| clip(text, NAME).into_owned());
    }

    fn decided(&mut self, decision: &'static str, by: &DecidedBy) {
        self.decision_id();
        self.0.decision = Some(decision);
        self.0.decided_by = Some(by.clone());
        self.0.decided = Some(self.0.began.elapsed());
    }

    /// The upstream it goes to.
    pub fn upstream(&mut self, name: &Arc<str>) {
        self.0.upstream = Some(Arc::clone(name));
    }

    /// How far forwarding got.
    pub fn forwarded(&mut self, trail: &Trail) {
        self.0.endpoint.clone_from(&trail.endpoint);
        self.0.attempts = trail.attempts;
    }

    /// Why the request was turned away.
    pub fn refused(&mut self, refusal: &Refusal) {
        let facts = &mut self.0;
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
        facts.reason = Some(refusal.code().to_owned());
        facts.refusal = Some((refusal.public().code, clip(&detail, DETAIL).into_owned()));
        let route = facts.route.as_deref().unwrap_or(NO_ROUTE);
        facts.metrics.refused(route, metric_code(refusal));
    }

    /// Hands the record to the answer's body: it stays open until the last byte has left.
    pub fn follow(mut self, response: Response<Body>) -> Response<Body> {
        let facts = &mut self.0;
        facts.status = Some(response.status().as_u16());
        facts.head = Some(facts.began.elapsed());
        // The connection never asks for the body of these (RFC 9110 sections 6.4.1 and 9.3.2).
        let bodiless = facts.method == Method::HEAD
            || matches!(response.status().as_u16(), 100..200 | 204 | 304);
        if bodiless {
            facts.outcome = Outcome::Complete;
        }
        let (parts, body) = response.into_parts();
        Response::from_parts(parts, Box::pin(Followed::new(body, self)))
    }

    /// Bytes of the answer's body were handed to the connection.
    pub(super) fn sent(&mut self, bytes: u64) {
        self.0.bytes_out = self.0.bytes_out.saturating_add(bytes);
    }

    /// How many bytes of the answer's body were handed over so far.
    pub(super) fn sent_so_far(&self) -> u64 {
        self.0.bytes_out
    }

    /// The answer's body is at its end.
    pub(super) fn ended(&mut self) {
        if self.0.outcome == Outcome::Open {
            self.0.outcome = Outcome::Complete;
        }
    }

    /// The answer's body broke off.
    pub(super) fn broke(&mut self, error: &BodyError) {
        self.0.outcome = Outcome::UpstreamBroke;
        self.0.detail = Some(clip(&error.to_string(), NAME).into_owned());
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

fn kept_query(mode: QueryMode, query: &str) -> Option<String> {
    match mode {
        QueryMode::None => None,
        QueryMode::Full => Some(clip(query, QUERY).into_owned()),
        QueryMode::Keys => Some(clip(&mask(query), QUERY).into_owned()),
    }
}

impl Drop for Record {
    fn drop(&mut self) {
        let facts = &*self.0;
        let total = facts.began.elapsed();
        facts.metrics.request_closed();
        facts
            .metrics
            .route(facts.route.as_deref().unwrap_or(NO_ROUTE))
            .request(facts.status, facts.head, total, facts.bytes_out);
        if let Some(trace) = &facts.trace
            && facts.tracing.records(trace)
        {
            facts.tracing.export(facts.span(trace, total));
        }
        let Some(queue) = facts.audit.queue() else {
            return;
        };
        // A record without a seat may find one now; otherwise it is lost, and counted.
        if facts.seat || (facts.audit.config.when_full == WhenFull::Drop && queue.sit()) {
            queue.send(facts.line(total).to_text());
        } else {
            facts.metrics.audit_dropped(1);
        }
    }
}

impl Facts {
    fn outcome(&self) -> &'static str {
        if std::thread::panicking() {
            return "panic";
        }
        match self.outcome {
            Outcome::Open => "client_gone",
            Outcome::Complete => "complete",
            Outcome::UpstreamBroke => "upstream_broke",
        }
    }

    fn client(&self) -> std::net::IpAddr {
        self.client
            .unwrap_or_else(|| self.conn.peer.ip().to_canonical())
    }

    fn path(&self) -> &str {
        self.path.as_deref().unwrap_or_else(|| self.uri.path())
    }

    fn line(&self, total: Duration) -> Line<'_> {
        Line {
            version: 1,
            time: timestamp(self.received_at),
            request_id: self.id.as_str(),
            decision_id: self.decision_id.as_deref(),
            trace_id: self.trace.as_ref().map(|trace| trace.trace_id.as_str()),
            listener: &self.conn.listener,
            client: self.client().to_string(),
            peer: self.conn.peer.to_string(),
            tls: self.conn.tls.as_ref().map(|tls| TlsPart {
                version: tls.version,
                server_name: tls.server_name.as_deref().map(|name| clip(name, HOST)),
                certificate_sha256: tls
                    .peer_certificate
                    .as_deref()
                    .map(|certificate| certificate.sha256.as_str()),
            }),
            method: clip(self.method.as_str(), METHOD),
            host: self.host.as_deref().map(|host| clip(host, HOST)),
            path: clip(self.path(), PATH),
            query: match &self.path {
                Some(_) => self.query.clone(),
                // It could not be read in one way, so its parts are nobody's business either.
                None => self
                    .uri
                    .query()
                    .and_then(|query| kept_query(self.audit.config.query, query)),
            },
            protocol: protocol(self.version),
            user_agent: self.user_agent.as_ref().map(|value| {
                let text = String::from_utf8_lossy(value.as_bytes());
                Cow::Owned(clip(&text, NAME).into_owned())
            }),
            route: self.route.as_deref(),
            caller: self.caller.as_ref().map(caller_part),
            policy: self.decided_by.as_ref().map(|by| PolicyPart {
                name: &by.policy,
                revision: &by.revision,
            }),
            decision: self.decision,
            reason: self.reason.as_deref().map(|reason| clip(reason, NAME)),
            refusal: self.refusal.as_ref().map(|(code, detail)| RefusalPart {
                code,
                detail: detail.as_str().into(),
            }),
            status: self.status,
            upstream: self.upstream.as_deref(),
            endpoint: self.endpoint.as_deref(),
            attempts: self.attempts,
            bytes_in: self.bytes_in.get(),
            bytes_out: self.bytes_out,
            duration_ms: Durations {
                decision: self.decided.map(millis),
                head: self.head.map(millis),
                total: millis(total),
            },
            outcome: self.outcome(),
            detail: self.detail.as_deref().map(Cow::Borrowed),
        }
    }

    fn span(&self, trace: &TraceContext, total: Duration) -> Finished {
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
            host: self.host.clone(),
            protocol: protocol(self.version),
            client: self.client(),
            status: self.status,
            route: self.route.clone(),
            policy: self.decided_by.as_ref().map(|by| Arc::clone(&by.policy)),
            decision: self.decision,
            decision_id: self.decision_id.clone(),
            refusal: self.refusal.as_ref().and_then(|_| self.reason.clone()),
            upstream: self.upstream.clone(),
            endpoint: self.endpoint.clone(),
            request_id: self.id.clone(),
            outcome: self.outcome(),
        }
    }
}

fn caller_part(caller: &Caller) -> CallerPart<'_> {
    match caller.identity() {
        None => CallerPart {
            method: "anonymous",
            issuer: None,
            subject: None,
            client: None,
            token_id: None,
        },
        Some(identity) => CallerPart {
            method: identity.method,
            issuer: Some(clip(&identity.issuer, NAME)),
            subject: Some(clip(&identity.subject, NAME)),
            client: identity.client.as_deref().map(|client| clip(client, NAME)),
            token_id: identity.token_id.as_deref().map(|id| clip(id, TOKEN_ID)),
        },
    }
}

fn protocol(version: Version) -> &'static str {
    match version {
        Version::HTTP_10 => "HTTP/1.0",
        Version::HTTP_11 => "HTTP/1.1",
        Version::HTTP_2 => "HTTP/2",
        _ => "other",
    }
}
