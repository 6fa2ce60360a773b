//! The request path. It reads like the product description: what happens to a request, in order.
//!
//! [`Gateway::handle`] is total: every request gets one answer and one record. `enforce` is
//! fallible and returns on the first refusal. There is no parsing here, no cryptography, no I/O and
//! no status code; each stage lives in its own room and is called from here alone.

use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::SystemTime;

use http::{Request, Response};
use hyper::body::Incoming;
use tokio::time::timeout;

use crate::audit::Record;
use crate::authn::Recent;
use crate::authz::{Decision, Machines, RouteFacts};
use crate::body::Body;
use crate::clock;
use crate::limit::Quota;
use crate::refusal::{Addressee, RATE_LIMIT, Refusal, quota_headers};
use crate::request::{ConnInfo, InboundRequest, Malformed, RequestId, is_grpc};
use crate::snapshot::{Held, Live, Snapshot, View};
use crate::upstream::{Forwarding, Pools, Trail};

/// The request path of one worker, with what belongs to its core alone.
#[derive(Debug)]
pub struct Gateway {
    view: View,
    machines: Machines,
    pools: Pools,
    recent: Recent,
}

/// A request with its record open, before anything was decided.
pub struct Received {
    conn: Arc<ConnInfo>,
    request: Request<Incoming>,
    received_at: SystemTime,
    snapshot: Rc<Held>,
    progress: Progress,
}

/// How the answer to a request is addressed, filled in as the request becomes readable.
struct Progress {
    to: Addressee,
    record: Record,
    quota: Quota,
}

impl Gateway {
    /// The request path of a worker.
    pub fn new(live: Arc<Live>) -> Self {
        Self {
            view: View::new(live),
            machines: Machines::default(),
            pools: Pools::default(),
            recent: Recent::default(),
        }
    }

    /// Lets go of a configuration that is no longer in force.
    pub fn refresh(&self) {
        self.view.refresh();
    }

    /// Opens the record of a request. Not a part of [`Gateway::handle`], for a future may be dropped
    /// before it is polled: the client that hung up with its last byte leaves a record too.
    pub fn receive(&self, conn: Arc<ConnInfo>, request: Request<Incoming>) -> Received {
        let received_at = clock::now();
        let snapshot = self.view.current();
        let id = RequestId::random();
        let progress = Progress {
            // Written when it is dropped: a hang-up or a panic leaves a record too.
            record: Record::open(
                &snapshot.audit,
                &snapshot.tracing,
                &snapshot.metrics,
                &id,
                &conn,
                &request,
                received_at,
            ),
            to: Addressee {
                id,
                grpc: is_grpc(request.method(), request.version(), request.headers()),
                http1: request.version() <= http::Version::HTTP_11,
                realm: None,
            },
            quota: Quota::default(),
        };
        Received {
            conn,
            request,
            received_at,
            snapshot,
            progress,
        }
    }

    /// Answers one request: exactly one response, exactly one record.
    pub async fn handle(&self, received: Received) -> Response<Body> {
        let Received {
            conn,
            request,
            received_at,
            snapshot,
            mut progress,
        } = received;
        let id = progress.to.id;

        let outcome = {
            let enforced =
                pin!(self.enforce(&snapshot, &conn, id, request, received_at, &mut progress));
            match timeout(snapshot.head_timeout, CatchPanic(enforced)).await {
                Ok(Some(outcome)) => outcome,
                Ok(None) => Err(Refusal::Internal),
                Err(_) => Err(Refusal::DeadlinePassed),
            }
        };

        let Progress {
            to,
            mut record,
            quota,
        } = progress;
        let mut response = match outcome {
            Ok(response) => response,
            Err(refusal) => {
                record.refused(&refusal);
                let decision_id =
                    matches!(refusal, Refusal::Denied(_)).then(|| record.decision_id());
                refusal.into_response(&to, decision_id.as_ref().map(RequestId::as_str))
            }
        };
        if !response.headers().contains_key(RATE_LIMIT) {
            quota_headers(&quota, response.headers_mut());
        }
        record.follow(response)
    }

    async fn enforce(
        &self,
        snapshot: &Snapshot,
        conn: &Arc<ConnInfo>,
        id: RequestId,
        request: Request<Incoming>,
        received_at: SystemTime,
        progress: &mut Progress,
    ) -> Result<Response<Body>, Refusal> {
        let record = &mut progress.record;

        // With `when_full: refuse` nothing happens that could not be recorded.
        if !record.has_room() {
            return Err(Refusal::Overloaded("there is no room for its record"));
        }

        // One way to read it, or none.
        let trace = snapshot.tracing.context(request.headers());
        record.trace(&trace);
        let (request, body) =
            InboundRequest::parse(conn, id, request, received_at, &snapshot.rules)?;
        progress.to = Addressee::of(&request);
        record.request(&request);

        if let Some(keys) = snapshot.identity.well_known(&request) {
            return Ok(keys);
        }
        let found = snapshot.routes.find(&request);
        let rules = found
            .as_ref()
            .map(|found| found.route.paths)
            .unwrap_or_default();
        rules
            .check(request.path.ambiguities())
            .map_err(Malformed::Path)?;
        let found = found.ok_or(Refusal::NoRoute)?;
        let route = found.route;
        record.route(&route.name, &route.counts);

        // How much, before any cost.
        progress.quota = route.limits.screen(&request)?;

        // Who.
        let authenticated = match route.limits.slowed(&request) {
            None => route.authn.authenticate(&self.recent, &request).await,
            // Too many guesses came from this address: only what was verified before is heard.
            Some(exceeded) => Ok(route.authn.recall(&request).ok_or(exceeded)?),
        };
        let caller = match authenticated {
            Ok(caller) => caller,
            Err(failure) => {
                route.limits.failed(&request, &failure);
                progress.to.challenged(&request);
                return Err(Refusal::Unauthenticated {
                    failure,
                    bearer: route.authn.takes_bearer(),
                });
            }
        };
        record.caller(&caller);

        // May they.
        let facts = RouteFacts {
            name: &route.name,
            params: &found.params,
            labels: &route.labels,
        };
        let permit = match route
            .policy
            .decide(&self.machines, &request, &facts, caller)
        {
            Decision::Allow(permit) => permit,
            Decision::Deny(denial) => {
                record.denied(&denial);
                progress.to.challenged(&request);
                return Err(denial.into());
            }
        };
        record.permitted(&permit);

        // How much, by who they are.
        let quota = route.limits.admit(&request, &permit)?;
        progress.quota = std::mem::take(&mut progress.quota).tighter(quota);

        // To where.
        record.upstream(&route.upstream.name);
        let body = record.received(Box::pin(Inbound(body)));
        let decision_id = record.decision_id();
        let forwarding = Forwarding {
            identity: &snapshot.identity,
            route: &route.name,
            bounds: &route.bounds,
            trace: &trace,
            decision_id: decision_id.as_str(),
        };
        let mut trail = Trail::default();
        let answer = route
            .upstream
            .forward(&self.pools, &request, body, &permit, forwarding, &mut trail)
            .await;
        record.forwarded(&trail);
        let mut response = answer?;
        for (name, value) in &permit.advice.headers {
            response.headers_mut().append(name, value.clone());
        }
        Ok(response)
    }
}

/// The client's body as ours.
struct Inbound(Incoming);

impl http_body::Body for Inbound {
    type Data = bytes::Bytes;
    type Error = crate::body::BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<http_body::Frame<Self::Data>, Self::Error>>> {
        Pin::new(&mut self.0).poll_frame(cx).map_err(Into::into)
    }

    fn is_end_stream(&self) -> bool {
        self.0.is_end_stream()
    }

    fn size_hint(&self) -> http_body::SizeHint {
        self.0.size_hint()
    }
}

impl std::fmt::Debug for Received {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Received")
            .field("id", &self.progress.to.id)
            .finish_non_exhaustive()
    }
}

/// Turns a panic of the inner future into `None`: one request's fault must not end the connection,
/// and with HTTP/2 every other request on it.
struct CatchPanic<F>(F);

impl<F: Future + Unpin> Future for CatchPanic<F> {
    type Output = Option<F::Output>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        // Unwind safety: after a panic nothing of the future is used again but its destructor.
        match catch_unwind(AssertUnwindSafe(|| Pin::new(&mut self.0).poll(cx))) {
            Ok(poll) => poll.map(Some),
            Err(_) => Poll::Ready(None),
        }
    }
}
