//! One exchange: attempts within a deadline, and the rule by which they are made again. How an
//! attempt is made depends on the protocol; see `http1` and `http2`.

use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use http::{Method, Response};
use http_body::Body as HttpBody;
use tokio::time::Instant;

use super::config::{HostHeader, Protocol};
use super::headers::Fields;
use super::pool::{Peer, Pools, Wanted};
use super::resolve::Target;
use super::streams::Upload;
use super::{Bounds, Core, Failure, RequestBodyFault, Trail, http1, http2};
use crate::body::Body;
use crate::request::Rules;

/// A request as it leaves, except for what depends on the endpoint.
#[derive(Debug)]
pub(super) struct Outgoing<'a> {
    pub(super) method: &'a Method,
    /// Canonical path and raw query: the bytes that were judged.
    pub(super) path: &'a str,
    pub(super) query: Option<&'a str>,
    /// The host that the client asked for.
    pub(super) host: &'a str,
    /// End-to-end headers, ours included; without `Host`.
    pub(super) fields: Fields<'a>,
    /// Whether the client can read trailers.
    pub(super) accepts_trailers: bool,
}

impl Outgoing<'_> {
    /// RFC 9110 section 9.2.2.
    pub(super) fn idempotent(&self) -> bool {
        matches!(
            *self.method,
            Method::GET | Method::HEAD | Method::OPTIONS | Method::PUT | Method::DELETE
        )
    }

    /// The host that this endpoint is asked for.
    pub(super) fn host<'h>(&'h self, core: &Core, target: &'h Target) -> &'h str {
        match core.host {
            HostHeader::Preserve => self.host,
            HostHeader::Upstream => &target.endpoint.authority,
        }
    }
}

/// An attempt that gave no answer.
#[derive(Debug)]
pub(super) struct Lost {
    pub(super) failure: Failure,
    pub(super) again: Again,
}

/// Whether and how a lost attempt may be made again. Unless it may not, all of the request is still
/// ours.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Again {
    /// It may have had an effect, or another attempt cannot help.
    No,
    /// It did not get through: within the budget, on another endpoint if there is one.
    Elsewhere,
    /// The pooled connection had been closed before the request was written: on another one.
    Stale,
}

impl Lost {
    /// An attempt that is not made again.
    pub(super) fn for_good(failure: Failure) -> Self {
        Self {
            failure,
            again: Again::No,
        }
    }

    /// An attempt that got no connection.
    pub(super) fn unconnected(peer: &Peer, failure: Failure) -> Self {
        let again = match failure {
            Failure::Unreachable(_) | Failure::Slow(_) => {
                peer.health.failed(Instant::now());
                Again::Elsewhere
            }
            Failure::Saturated | Failure::Broken(_) | Failure::RequestBody(_) => Again::No,
        };
        Self { failure, again }
    }
}

/// What all attempts of one exchange have in common.
#[derive(Debug)]
pub(super) struct Plan<'a> {
    pub(super) core: &'a Arc<Core>,
    pub(super) bounds: &'a Bounds,
    pub(super) began: Instant,
    /// Longest wait for the head of the answer.
    pub(super) head_timeout: Duration,
    /// When the whole exchange has to be over.
    pub(super) ends_at: Instant,
}

/// What an exchange is bound by.
#[derive(Debug)]
pub(super) struct Terms<'a> {
    pub(super) bounds: &'a Bounds,
    /// Longest wait for the head of the answer, whatever `bounds` says.
    pub(super) head_timeout: Duration,
    pub(super) rules: &'a Arc<Rules>,
}

/// Sends the request and returns the answer with its streaming body.
///
/// # Errors
/// [`Failure`]; `trail` tells how far it got.
pub(super) async fn exchange(
    core: &Arc<Core>,
    pools: &Pools,
    request: &Outgoing<'_>,
    body: Body,
    terms: Terms<'_>,
    trail: &mut Trail,
) -> Result<Response<Body>, Failure> {
    let bounds = terms.bounds;
    let max = bounds.max_body.get();
    if body.size_hint().lower() > max {
        return Err(Failure::RequestBody(RequestBodyFault::TooLarge));
    }
    let plan = Plan::begin(core, bounds, terms.head_timeout);
    let upload = Upload::new(body, max, terms.rules, plan.began);
    plan.run(pools, request, upload, trail).await
}

impl<'a> Plan<'a> {
    /// An exchange that begins now. `head_timeout` bounds the wait for the head of the answer,
    /// whatever `bounds` says.
    pub(super) fn begin(core: &'a Arc<Core>, bounds: &'a Bounds, head_timeout: Duration) -> Self {
        let began = Instant::now();
        Self {
            core,
            bounds,
            began,
            head_timeout: bounds.head_timeout.get().min(head_timeout),
            ends_at: began + bounds.total_timeout.get(),
        }
    }

    /// When the head of the answer has to be here, if the request moved last then. A long upload is
    /// not late as long as it moves.
    pub(super) fn until(&self, moved_at: Instant) -> Instant {
        (moved_at + self.head_timeout).min(self.ends_at)
    }

    async fn run(
        &self,
        pools: &Pools,
        request: &Outgoing<'_>,
        mut upload: Option<Upload>,
        trail: &mut Trail,
    ) -> Result<Response<Body>, Failure> {
        self.attempts(pools, trail, async |peer, wanted| {
            let upload = &mut upload;
            match self.core.settings.protocol {
                Protocol::Http1 => http1::attempt(self, peer, request, upload, wanted).await,
                // Boxed: hyper's futures are large, and each request has room for both kinds.
                Protocol::Http2 => {
                    Box::pin(http2::attempt(self, peer, request, upload, wanted)).await
                }
            }
        })
        .await
    }

    /// Makes attempts until one succeeds, or none may be made any more.
    ///
    /// # Errors
    /// What became of the last one.
    pub(super) async fn attempts<T>(
        &self,
        pools: &Pools,
        trail: &mut Trail,
        mut attempt: impl AsyncFnMut(&Rc<Peer>, Wanted) -> Result<T, Lost>,
    ) -> Result<T, Failure> {
        let core = self.core;
        let pool = pools.of(core);
        pool.budget.earn();
        let mut tried: Vec<Rc<Peer>> = Vec::new();
        let mut wanted = Wanted::Any;
        loop {
            if core.targets.is_empty() {
                let wait = core.settings.connect_timeout;
                Box::pin(core.targets.available(wait)).await;
            }
            let Some(peer) = pool.choose(core, &tried) else {
                core.counts.attempt("unreachable");
                return Err(Failure::Unreachable(
                    "no endpoint has an address".to_owned(),
                ));
            };
            trail.attempts = trail.attempts.saturating_add(1);
            trail.endpoint = Some(Arc::clone(&peer.target.endpoint.label));
            let lost = match attempt(&peer, wanted).await {
                Ok(answer) => {
                    core.counts.attempt("answered");
                    return Ok(answer);
                }
                Err(lost) => lost,
            };
            core.counts.attempt(outcome(&lost.failure));
            let again = match lost.again {
                Again::No => false,
                // Not a retry in the sense of the budget: the upstream has not failed, it has only
                // closed an idle connection. The next one is new, so this happens once.
                Again::Stale => wanted == Wanted::Any,
                Again::Elsewhere => trail.attempts < core.settings.attempts && pool.budget.spend(),
            };
            if !again {
                return Err(lost.failure);
            }
            core.metrics.upstream_retry(&core.name);
            wanted = Wanted::Fresh;
            if lost.again == Again::Elsewhere {
                tried.push(peer);
            }
        }
    }
}

/// The word under which an attempt is counted.
fn outcome(failure: &Failure) -> &'static str {
    match failure {
        Failure::Unreachable(_) => "unreachable",
        Failure::Saturated => "saturated",
        Failure::Slow(_) => "slow",
        Failure::Broken(_) => "broken",
        Failure::RequestBody(_) => "request_body",
    }
}
