//! The request path. It reads like the product description: what happens to a request, in order.
//!
//! [`Gateway::handle`] is total: every request gets one answer and one record. `enforce` is
//! fallible and returns on the first refusal. There is no parsing here, no cryptography, no I/O and
//! no status code; each stage lives in its own room and is called from here alone. `reaffirm` asks
//! the same questions again for a stream that is open.

use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::SystemTime;

use http::{Request, Response};
use http_body::Body as _;
use hyper::body::Incoming;
use tokio::time::timeout;

use crate::audit::Record;
use crate::audit::traces::{self, Steps};
use crate::authn::Caller;
use crate::authn::Recent;
use crate::authz::{BodyTerms, Decision, Machines, Permit, Policy, RouteFacts};
use crate::body::Body;
use crate::candidate::{Candidates, Contest, Seen, Shadow, Sighting};
use crate::clock;
use crate::intake::{self, Patience};
use crate::lease::{self, Judged, Lease, Leases, OpenStreams, Renewal, Wish};
use crate::limit::Quota;
use crate::listener;
use crate::refusal::{Addressee, Refusal, quota_headers};
use crate::request::{ConnInfo, InboundRequest, Malformed, RequestId, is_grpc};
use crate::revocation::Endpoint;
use crate::route::{Match, Route};
use crate::snapshot::{Held, Live, Snapshot, View};
use crate::tls::Believer;
use crate::tunnel::{Opening, Tunnel};
use crate::upstream::{self, Forwarding, PeerFacts, Pools, RequestBodyFault, Trail};

/// The request path of one worker, with what belongs to its core alone.
#[derive(Debug)]
pub struct Gateway {
    view: View,
    machines: Machines,
    pools: Pools,
    recent: Recent,
    leases: Rc<Leases>,
    shadow: Rc<Shadow<Rc<Held>>>,
}

/// A request with its record open, before anything was decided.
pub struct Received {
    conn: Arc<ConnInfo>,
    request: Request<Incoming>,
    received_at: SystemTime,
    /// Read before the snapshot was taken: see [`crate::epoch`].
    epoch: u64,
    snapshot: Rc<Held>,
    progress: Progress,
}

/// How the answer to a request is addressed, filled in as the request becomes readable.
struct Progress {
    to: Addressee,
    record: Record,
    quota: Quota,
    /// What is compared once there is an answer, or nobody waits for one.
    sighting: Option<Sighting<Rc<Held>>>,
    /// Only while somebody wants to see requests.
    steps: Option<Box<Steps>>,
}

/// What a client gets.
#[derive(Debug)]
pub struct Answer {
    /// The head, and the body unless it opens a tunnel.
    pub response: Response<Body>,
    /// What the exchange is from here on.
    pub tunnel: Option<Tunnel>,
}

impl From<Response<Body>> for Answer {
    fn from(response: Response<Body>) -> Self {
        Self {
            response,
            tunnel: None,
        }
    }
}

/// An answer whose record is open.
struct Granted {
    response: Response<Body>,
    opening: Option<Opening>,
}

impl From<Response<Body>> for Granted {
    fn from(response: Response<Body>) -> Self {
        Self {
            response,
            opening: None,
        }
    }
}

impl Gateway {
    /// The request path of a worker.
    pub fn new(live: Arc<Live>) -> Self {
        Self {
            view: View::new(live),
            machines: Machines::default(),
            pools: Pools::default(),
            recent: Recent::default(),
            leases: Rc::default(),
            shadow: Rc::new(Shadow::new(judged_by)),
        }
    }

    /// Judges the permissions of open streams again, whenever there is reason to. Does not end; to be
    /// run beside the requests of the same worker.
    pub async fn keep(self: Rc<Self>) {
        let epoch = Arc::clone(&self.view.current().epoch);
        let leases = Rc::clone(&self.leases);
        let judge = |request: InboundRequest| {
            let gateway = Rc::clone(&self);
            async move {
                let again = pin!(gateway.reaffirm(&request));
                let permit = CatchPanic(again).await.unwrap_or(Err(Refusal::Internal))?;
                Ok(permit.until(request.received_at))
            }
        };
        lease::keep(leases, epoch, judge).await;
    }

    /// Asks candidates about requests that have their answers. Does not end; to be run beside the requests
    /// of the same worker.
    pub async fn compare(self: Rc<Self>) {
        self.shadow.keep(&self.machines).await;
    }

    /// Lets go of a configuration that is no longer in force.
    pub fn refresh(&self) {
        self.view.refresh();
        let snapshot = self.view.current();
        let candidates = snapshot.candidates.policies();
        self.machines
            .keep(snapshot.policies.values().chain(candidates));
    }

    /// What is open on this worker, and what it has seen of the endpoints.
    pub async fn survey(&self, wish: &Wish) -> (OpenStreams, Vec<PeerFacts>) {
        let streams = self.leases.survey(wish).await;
        (streams, self.pools.survey())
    }

    /// Opens the record of a request. Not a part of [`Gateway::handle`], for a future may be dropped
    /// before it is polled: the client that hung up with its last byte leaves a record too.
    pub fn receive(&self, conn: Arc<ConnInfo>, mut request: Request<Incoming>) -> Received {
        let received_at = clock::now();
        // First of all: nobody else may see what it takes off.
        let steps = self.view.traces().watch(request.headers_mut());
        let epoch = self.view.epoch();
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
            sighting: None,
            steps,
        };
        Received {
            conn,
            request,
            received_at,
            epoch,
            snapshot,
            progress,
        }
    }

    /// Answers one request: exactly one response, exactly one record.
    pub async fn handle(&self, received: Received) -> Answer {
        let Received {
            conn,
            request,
            received_at,
            epoch,
            snapshot,
            mut progress,
        } = received;

        let outcome = {
            let enforced =
                pin!(self.enforce(&snapshot, epoch, &conn, request, received_at, &mut progress));
            CatchPanic(enforced).await.unwrap_or(Err(Refusal::Internal))
        };

        let Progress {
            to,
            mut record,
            quota,
            // Dropped behind the answer, and compared then.
            sighting: _sighting,
            steps,
        } = progress;
        let traces = self.view.traces();
        traces.finish(steps, to.id.as_str(), outcome.is_err());
        let granted = match outcome {
            Ok(granted) => granted,
            Err(refusal) => {
                record.refused(&refusal);
                let decision_id =
                    matches!(refusal, Refusal::Denied(_)).then(|| record.decision_id());
                refusal
                    .into_response(&to, decision_id.as_ref().map(RequestId::as_str))
                    .into()
            }
        };
        let Granted {
            mut response,
            opening,
        } = granted;
        quota_headers(&quota, response.headers_mut());
        let Some(opening) = opening else {
            return record.follow(response).into();
        };
        let tunnel = opening.recorded(record.open_tunnel(&response));
        Answer {
            response,
            tunnel: Some(tunnel),
        }
    }

    async fn enforce(
        &self,
        snapshot: &Rc<Held>,
        epoch: u64,
        conn: &Arc<ConnInfo>,
        request: Request<Incoming>,
        received_at: SystemTime,
        progress: &mut Progress,
    ) -> Result<Granted, Refusal> {
        let record = &mut progress.record;

        // One way to read it, or none.
        let trace = snapshot.tracing.context(request.headers());
        record.trace(&trace);
        let id = progress.to.id;
        let parsed = InboundRequest::parse(conn, id, request, received_at, &snapshot.rules);
        if !record.has_room() {
            // Nothing happens that could not be recorded, unless that is allowed. Boxed: it is rare.
            let asked = parsed.as_ref().ok().map(|(asked, _)| asked);
            Box::pin(recordable(snapshot, record, asked)).await?;
        }
        let (mut request, body) = parsed?;
        progress.to = Addressee::of(&request);
        record.request(&request);

        // What the connection was opened with still stands.
        self.standing(snapshot, conn, received_at).await?;

        if let Some(keys) = snapshot.identity.well_known(&request) {
            return Ok(keys.into());
        }
        if let Some(endpoint) = snapshot.revocation.endpoint(&request) {
            // Boxed, as below: few requests come here, and all would hold room for it.
            let answer = Box::pin(heard(snapshot, endpoint, &request, body, record)).await;
            return answer.map(Granted::from);
        }
        if lease::is_renewal(&request) {
            let renewed = Box::pin(self.renew(snapshot, &request, record)).await;
            return renewed.map(Granted::from);
        }
        traces::begin(&mut progress.steps, "route");
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
        record.route(&route.name, &route.counts, route.record);
        traces::route(&mut progress.steps, &route.name);
        route.upgrades.admit(&mut request)?;

        // How much, before any cost.
        traces::begin(&mut progress.steps, "screen");
        progress.quota = route.limits.screen(&request)?;

        // Who.
        traces::begin(&mut progress.steps, "authenticate");
        let authenticated = match route.limits.slowed(&request) {
            None => {
                let authenticating = pin!(route.authn.authenticate(&self.recent, &request));
                let judged = timeout(snapshot.head_timeout, authenticating).await;
                judged.map_err(|_| Refusal::DeadlinePassed)?
            }
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
        if let Some(identity) = caller.identity() {
            let client = identity.client.as_deref();
            traces::caller(&mut progress.steps, Some(&identity.subject), client);
        }

        // What they send, as far as the policy looks at it.
        let mut body = Sent::Untouched(body);
        if let Some(terms) = route.policy.body() {
            // Nothing is kept for whom it is not theirs any more; asked again when it has been read.
            let (plane, stale) = (&snapshot.revocation, route.stale);
            if let Err(revoked) = plane.check(&caller, &request.conn, stale, received_at) {
                progress.to.challenged(&request);
                return Err(revoked.into());
            }
            traces::begin(&mut progress.steps, "body");
            // Boxed: most policies do not, and all requests would hold room for it.
            body = Box::pin(taken_in(snapshot, route, terms, &mut request, body, record)).await?;
        }

        // Whether it is still theirs, and whether they may.
        traces::begin(&mut progress.steps, "authorize");
        let mut seen = None;
        let decided = self.decide(snapshot, &found, &request, caller, &mut seen);
        told(
            record,
            snapshot,
            &found,
            &request,
            body.is_unread(),
            &decided,
        );
        let request = Rc::new(request);
        // What others would have said of it is asked behind the answer.
        progress.sighting = seen.map(|seen| {
            let (held, request) = (Rc::clone(snapshot), Rc::clone(&request));
            self.shadow.see(held, request, record.decision_id(), seen)
        });
        let permit = match decided {
            Ok(permit) => permit,
            Err(refusal) => {
                progress.to.challenged(&request);
                return Err(refusal);
            }
        };

        // How much, by who they are.
        traces::begin(&mut progress.steps, "admit");
        let quota = route.limits.admit(&request, &permit)?;
        progress.quota = std::mem::take(&mut progress.quota).tighter(quota);

        // To where, for as long as the permission lasts.
        traces::begin(&mut progress.steps, "forward");
        record.upstream(&route.upstream.name);
        let lease = |request| {
            let judged = Judged {
                epoch,
                until: permit.until(received_at),
            };
            self.leases.open(request, permit.caller.clone(), judged)
        };
        let lasts = request.upgrade.is_some() || !body.is_end_stream();
        let hold = lasts.then(|| lease(Rc::clone(&request)));
        let body = body.under(hold.as_ref().map(|hold| Rc::clone(hold.lease())), record);
        let decision_id = record.decision_id();
        let forwarding = Forwarding {
            identity: &snapshot.identity,
            route: &route.name,
            bounds: &route.bounds,
            head_timeout: snapshot.head_timeout,
            trace: &trace,
            decision_id: decision_id.as_str(),
        };
        let mut trail = Trail::default();
        let answer = {
            let (pools, trail, upstream) = (&self.pools, &mut trail, &route.upstream);
            // Pinned here, for to hand it on would be to copy kilobytes.
            let answer = pin!(async {
                let Some(upgrade) = &request.upgrade else {
                    let answer =
                        upstream.forward(pools, &request, body, &permit, forwarding, trail);
                    return answer.await.map(|response| (response, None));
                };
                // Boxed: few requests come here, and all would hold room for it.
                Box::pin(upstream.tunnel(pools, &request, upgrade, &permit, forwarding, trail))
                    .await
            });
            match &hold {
                None => Ok(answer.await),
                Some(hold) => hold.race(answer).await,
            }
        };
        record.forwarded(&trail);
        let (mut response, far) = answer??;
        for (name, value) in &permit.advice.headers {
            response.headers_mut().append(name, value.clone());
        }
        if far.is_none() && response.body().is_whole() {
            return Ok(response.into());
        }
        let hold = hold.unwrap_or_else(|| lease(Rc::clone(&request)));
        hold.settle_in(&route.name);
        record.leased(hold.lease());
        let Some(far) = far else {
            return Ok(lease::bind(response, hold, progress.to.grpc).into());
        };
        let opening = Opening::new(&request, &route.upgrades, far, hold, &snapshot.metrics);
        Ok(Granted {
            response,
            opening: Some(opening),
        })
    }

    /// Whether the credential is still its holder's, and whether they may: asked once who it is.
    fn decide(
        &self,
        snapshot: &Snapshot,
        found: &Match<'_>,
        request: &InboundRequest,
        caller: Caller,
        seen: &mut Option<Seen>,
    ) -> Result<Permit, Refusal> {
        let route = found.route;
        snapshot
            .revocation
            .check(&caller, &request.conn, route.stale, request.received_at)?;
        let facts = facts(found);
        let decision = match snapshot.candidates.contest(&route.policy) {
            None => route.policy.decide(&self.machines, request, &facts, caller),
            Some(contest) => {
                self.contested(&snapshot.candidates, contest, request, &facts, caller, seen)
            }
        };
        match decision {
            Decision::Allow(permit) => permit.within(&snapshot.rules).map_err(Refusal::Denied),
            Decision::Deny(denial) => Err(denial.into()),
        }
    }

    /// The decision of a policy with candidates, or of the candidate on whose side the request is.
    fn contested(
        &self,
        candidates: &Candidates,
        contest: &Contest,
        request: &InboundRequest,
        facts: &RouteFacts<'_>,
        caller: Caller,
        seen: &mut Option<Seen>,
    ) -> Decision {
        let by = contest.by(request, facts.name, &caller);
        let policy: &Policy = by.map_or(contest.policy(), |(_, candidate)| &candidate.policy);
        let place = by.map(|(place, _)| place);
        if !self.shadow.wants(candidates, contest, &request.id, place) {
            return policy.decide(&self.machines, request, facts, caller);
        }
        let (decision, said) = policy.judge(&self.machines, request, facts, caller.clone());
        if let Some((_, candidate)) = by {
            self.shadow.decided(candidate, said.allows());
        }
        *seen = Some(Seen {
            caller,
            said,
            by: place,
        });
        decision
    }

    /// Renews the permissions of the streams that are open on the request's connection with the
    /// credential that it brings.
    async fn renew(
        &self,
        snapshot: &Snapshot,
        request: &InboundRequest,
        record: &mut Record,
    ) -> Result<Response<Body>, Refusal> {
        let mut renewal = Renewal::default();
        let (mut counted, mut failed) = (false, false);
        for (nth, lease) in self.leases.of(&request.conn).into_iter().enumerate() {
            if lease.lapse().is_some() {
                continue;
            }
            if nth % 8 == 7 {
                // Others want to be served, too.
                tokio::task::yield_now().await;
            }
            let again = lease.renewed(request);
            let Some(found) = snapshot.routes.find(&again) else {
                continue;
            };
            // Requests and guesses are counted here as everywhere, once for all streams.
            let (authn, limits) = (&found.route.authn, &found.route.limits);
            if !std::mem::replace(&mut counted, true) {
                limits.screen(request)?;
            }
            if let Some(exceeded) = limits.slowed(request) {
                return Err(exceeded.into());
            }
            let epoch = self.view.epoch();
            let judging = async {
                match authn.authenticate(&self.recent, &again).await {
                    Ok(caller) if lease.is_of(&caller) => {
                        record.caller(&caller);
                        self.reaffirm(&again).await.map(Some)
                    }
                    // What somebody else may do is nothing to them.
                    Ok(_) => Ok(None),
                    Err(failure) => {
                        if !std::mem::replace(&mut failed, true) {
                            limits.failed(request, &failure);
                        }
                        let bearer = authn.takes_bearer();
                        Err(Refusal::Unauthenticated { failure, bearer })
                    }
                }
            };
            let judged = timeout(snapshot.head_timeout, judging).await;
            match judged.map_err(|_| Refusal::DeadlinePassed)? {
                Ok(Some(permit)) => {
                    let until = permit.until(request.received_at);
                    self.leases.renew(&lease, again, Judged { epoch, until });
                    renewal.renewed();
                }
                Ok(None) => renewal.kept(None),
                Err(refusal) => renewal.kept(Some(refusal)),
            }
        }
        renewal.answer()
    }

    /// Asks everything again for a request that was allowed, under the configuration now in force.
    /// Limits are for requests, not for what is left of them.
    async fn reaffirm(&self, request: &InboundRequest) -> Result<Permit, Refusal> {
        let snapshot = self.view.current();
        if let Some(standing) = request.conn.standing()
            && !standing.holds(&snapshot.epoch, request.received_at)
        {
            // Nobody else's stream has to wait for this one's responder.
            standing
                .look(
                    || self.believer(&request.conn),
                    &snapshot.epoch,
                    request.received_at,
                )
                .map_err(|lapse| Refusal::lapsed(lapse, &request.conn))?;
        }
        let found = snapshot.routes.find(request).ok_or(Refusal::NoRoute)?;
        let route = found.route;
        route
            .paths
            .check(request.path.ambiguities())
            .map_err(Malformed::Path)?;
        if !route.upgrades.still_open(request) {
            return Err(Refusal::NoRoute);
        }
        // A policy that came to look at bodies after this one had gone by cannot judge it.
        if route.policy.body().is_some() && request.excerpt.is_none() {
            return Err(Refusal::NoRoute);
        }
        let authenticated = route.authn.authenticate(&self.recent, request).await;
        let caller = authenticated.map_err(|failure| Refusal::Unauthenticated {
            failure,
            bearer: route.authn.takes_bearer(),
        })?;
        // What was compared when the stream began is not compared again.
        let mut seen = None;
        let decided = self.decide(&snapshot, &found, request, caller, &mut seen);
        if let Some(seen) = seen {
            // Compared like a request: a candidate that ends streams is judged by that, too. The
            // record is that of the stream, by the request's id.
            let again = Rc::new(request.clone());
            drop(
                self.shadow
                    .see(Rc::clone(&snapshot), again, request.id, seen),
            );
        }
        decided
    }

    /// Whether the connection's certificate, if it has one, is still believed: by what is in force
    /// now, which may be newer than the request's configuration.
    async fn standing(
        &self,
        snapshot: &Snapshot,
        conn: &ConnInfo,
        now: SystemTime,
    ) -> Result<(), Refusal> {
        let Some(standing) = conn.standing() else {
            return Ok(());
        };
        if standing.holds(&snapshot.epoch, now) {
            return Ok(());
        }
        // On the heap: it is rare, and every request would hold room for it.
        Box::pin(standing.settle(|| self.believer(conn), &snapshot.epoch, now))
            .await
            .map_err(|lapse| Refusal::lapsed(lapse, conn))
    }

    fn believer(&self, conn: &ConnInfo) -> Believer {
        listener::believer(&self.view.current().listeners, &conn.listener, conn.local)
    }
}

/// There is no room for the record: whether the request goes on, as its route says, or as is said for
/// all when it has none.
async fn recordable(
    snapshot: &Snapshot,
    record: &mut Record,
    asked: Option<&InboundRequest>,
) -> Result<(), Refusal> {
    let found = asked.and_then(|request| snapshot.routes.find(request));
    let room = record.room(found.map(|found| found.route.record)).await;
    room.then_some(())
        .ok_or(Refusal::Overloaded("there is no room for its record"))
}

/// Finds again what a request was judged by, for [`Shadow`].
fn judged_by(
    held: &Rc<Held>,
    request: &InboundRequest,
    then: &mut dyn FnMut(&Candidates, &Arc<Policy>, &RouteFacts<'_>),
) {
    if let Some(found) = held.routes.find(request) {
        let facts = facts(&found);
        then(&held.candidates, &found.route.policy, &facts);
    }
}

/// What the route contributes to a decision.
fn facts<'m>(found: &'m Match<'_>) -> RouteFacts<'m> {
    RouteFacts {
        name: &found.route.name,
        params: &found.params,
        labels: &found.route.labels,
    }
}

/// Writes down what was decided and by whom, and what they were asked.
fn told(
    record: &mut Record,
    snapshot: &Snapshot,
    found: &Match<'_>,
    request: &InboundRequest,
    body_sent: bool,
    decided: &Result<Permit, Refusal>,
) {
    let by = match decided {
        Ok(permit) => {
            record.permitted(permit);
            &permit.decided_by
        }
        Err(Refusal::Denied(denial)) => {
            record.denied(denial);
            &denial.decided_by
        }
        // No policy was asked.
        Err(_) => return,
    };
    let policy = snapshot.candidates.asked(by, &found.route.policy);
    record.asked(policy, request, &facts(found), body_sent);
}

/// Takes what an issuer or a transmitter posts to us. Whoever posts what is not theirs to say is
/// slowed down like whoever guesses credentials.
async fn heard(
    snapshot: &Snapshot,
    endpoint: &Endpoint,
    request: &InboundRequest,
    body: Incoming,
    record: &mut Record,
) -> Result<Response<Body>, Refusal> {
    let stranger = !endpoint.knows(request);
    if stranger && let Some(exceeded) = snapshot.limits.slowed(request.client) {
        return Err(exceeded.into());
    }
    let body = record.received(Body::stream(Inbound { body, lease: None }));
    let plane = snapshot.revocation.plane();
    let delivery = endpoint.receive(plane, request, body).await;
    if stranger && delivery.suspicious {
        snapshot.limits.failed(request.client);
    }
    record.posted(delivery.code, &delivery.detail);
    Ok(delivery.response)
}

/// Reads what the policy is shown of the body.
async fn taken_in(
    snapshot: &Snapshot,
    route: &Route,
    terms: BodyTerms,
    request: &mut InboundRequest,
    body: Sent,
    record: &mut Record,
) -> Result<Sent, Refusal> {
    let body = body.under(None, record);
    if body.size_hint().lower() > route.bounds.max_body.get() {
        return Err(upstream::Failure::RequestBody(RequestBodyFault::TooLarge).into());
    }
    let patience = Patience {
        idle: route.bounds.idle_timeout.get(),
        total: snapshot.head_timeout,
    };
    let body = intake::take_in(request, body, terms, patience).await;
    body.map(Sent::TakenIn)
        .map_err(|fault| upstream::Failure::RequestBody(fault).into())
}

/// The client's body.
enum Sent {
    Untouched(Incoming),
    /// Some of it was read, and is counted.
    TakenIn(Body),
}

impl Sent {
    fn is_end_stream(&self) -> bool {
        match self {
            Self::Untouched(body) => body.is_end_stream(),
            Self::TakenIn(body) => body.is_end_stream(),
        }
    }

    /// Whether there is a body of which nothing was read.
    fn is_unread(&self) -> bool {
        match self {
            Self::Untouched(body) => !body.is_end_stream(),
            Self::TakenIn(_) => false,
        }
    }

    /// For as long as the permission lasts.
    fn under(self, lease: Option<Rc<Lease>>, record: &mut Record) -> Body {
        match self {
            Self::Untouched(body) => record.received(Body::stream(Inbound { body, lease })),
            Self::TakenIn(body) if lease.is_none() => body,
            Self::TakenIn(body) => Body::stream(Inbound { body, lease }),
        }
    }
}

/// The client's body as ours, for as long as its permission lasts. The answer ends by itself then, but
/// only when it is asked for: a client that does not read its answer must not go on sending.
struct Inbound<B> {
    body: B,
    lease: Option<Rc<Lease>>,
}

impl<B> http_body::Body for Inbound<B>
where
    B: http_body::Body<Data = bytes::Bytes, Error: Into<crate::body::BodyError>> + Unpin,
{
    type Data = bytes::Bytes;
    type Error = crate::body::BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<http_body::Frame<Self::Data>, Self::Error>>> {
        if let Some(lapse) = self.lease.as_ref().and_then(|lease| lease.lapse()) {
            return Poll::Ready(Some(Err(lapse.to_string().into())));
        }
        let frame = Pin::new(&mut self.body).poll_frame(cx);
        if let (Some(lease), Poll::Ready(Some(Ok(frame)))) = (&self.lease, &frame)
            && let Some(data) = frame.data_ref()
        {
            lease.received(data.len());
        }
        frame.map_err(Into::into)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> http_body::SizeHint {
        self.body.size_hint()
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
