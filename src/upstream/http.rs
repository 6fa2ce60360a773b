//! One exchange: attempts within a deadline, the retry rule, and what the answer may carry.

use std::rc::Rc;
use std::sync::Arc;

use http::header::{self, HeaderMap, HeaderValue};
use http::uri::PathAndQuery;
use http::{Method, Request, Response, StatusCode, Uri, Version};
use http_body::Body as HttpBody;
use hyper::body::Incoming;
use tokio::time::{Instant, timeout_at};

use super::config::{HostHeader, Protocol};
use super::headers::hops;
use super::pool::{Lease, Peer, Pools, Wanted};
use super::resolve::Target;
use super::streams::{Answer, Exchange, Outbound};
use super::{Bounds, Core, Failure, RequestBodyFault, Trail};
use crate::body::{self, Body};
use crate::request::Rules;

/// A request as it leaves, except for what depends on the endpoint.
#[derive(Debug)]
pub(super) struct Outgoing {
    pub(super) method: Method,
    /// Canonical path and raw query: the bytes that were judged.
    pub(super) target: PathAndQuery,
    /// The host that the client asked for.
    pub(super) host: HeaderValue,
    /// End-to-end headers, ours included; without `Host`.
    pub(super) headers: HeaderMap,
    /// Whether the client can read trailers.
    pub(super) accepts_trailers: bool,
}

impl Outgoing {
    /// RFC 9110 section 9.2.2.
    fn idempotent(&self) -> bool {
        matches!(
            self.method,
            Method::GET | Method::HEAD | Method::OPTIONS | Method::PUT | Method::DELETE
        )
    }
}

/// An attempt that gave no answer.
struct Lost {
    failure: Failure,
    /// The request, if all of it is still ours.
    back: Option<(Outgoing, Outbound)>,
    again: Again,
}

/// Whether and how a lost attempt may be made again.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Again {
    /// It may have had an effect, or another attempt cannot help.
    No,
    /// It did not get through: within the budget, on another endpoint if there is one.
    Elsewhere,
    /// The pooled connection had been closed before the request was written: on another one.
    Stale,
}

/// Sends the request and returns the answer with its streaming body.
///
/// # Errors
/// [`Failure`]; `trail` tells how far it got.
pub(super) async fn exchange(
    core: &Arc<Core>,
    pools: &Pools,
    request: Outgoing,
    body: Body,
    bounds: &Bounds,
    rules: &Arc<Rules>,
    trail: &mut Trail,
) -> Result<Response<Body>, Failure> {
    let max = bounds.max_body.get();
    if body.size_hint().lower() > max {
        return Err(Failure::RequestBody(RequestBodyFault::TooLarge));
    }
    let exchange = Exchange::begin(bounds.idle_timeout.get(), bounds.total_timeout.get());
    let until = (Instant::now() + bounds.head_timeout.get()).min(exchange.ends_at());
    let body = Outbound::new(body, max, Rc::clone(&exchange), Arc::clone(rules));
    let plan = Plan {
        core,
        exchange,
        until,
        rules,
    };
    plan.run(pools, request, body, trail).await
}

struct Plan<'a> {
    core: &'a Arc<Core>,
    exchange: Rc<Exchange>,
    until: Instant,
    rules: &'a Arc<Rules>,
}

impl Plan<'_> {
    async fn run(
        &self,
        pools: &Pools,
        mut request: Outgoing,
        mut body: Outbound,
        trail: &mut Trail,
    ) -> Result<Response<Body>, Failure> {
        let core = self.core;
        let pool = pools.of(core);
        pool.budget.earn();
        let mut tried: Vec<Rc<Peer>> = Vec::new();
        let mut wanted = Wanted::Any;
        loop {
            let targets = core.targets.available(core.settings.connect_timeout).await;
            let Some(peer) = pool.choose(&targets, core, &tried) else {
                core.metrics.upstream_attempt(&core.name, "unreachable");
                return Err(Failure::Unreachable(
                    "no endpoint has an address".to_owned(),
                ));
            };
            trail.attempts = trail.attempts.saturating_add(1);
            trail.endpoint = Some(peer.target.endpoint.label.to_string());
            let lost = match self.attempt(&peer, request, body, wanted).await {
                Ok(answer) => {
                    core.metrics.upstream_attempt(&core.name, "answered");
                    return Ok(answer);
                }
                Err(lost) => lost,
            };
            core.metrics
                .upstream_attempt(&core.name, outcome(&lost.failure));
            let Some(back) = lost.back else {
                return Err(lost.failure);
            };
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
            (request, body) = back;
            wanted = Wanted::Fresh;
            if lost.again == Again::Elsewhere {
                tried.push(peer);
            }
        }
    }

    async fn attempt(
        &self,
        peer: &Rc<Peer>,
        request: Outgoing,
        body: Outbound,
        wanted: Wanted,
    ) -> Result<Response<Body>, Box<Lost>> {
        // Boxed: connecting is a large future, and the request path holds many of these.
        let leasing = Box::pin(peer.lease(self.core, &self.exchange, wanted));
        let leased = match timeout_at(self.until, leasing).await {
            Ok(leased) => leased,
            Err(_) => Err(Failure::Slow("connecting")),
        };
        let mut lease = match leased {
            Ok(lease) => lease,
            Err(failure) => {
                let again = match failure {
                    Failure::Unreachable(_) | Failure::Slow(_) => {
                        peer.health.failed(Instant::now());
                        Again::Elsewhere
                    }
                    Failure::Saturated | Failure::Broken(_) | Failure::RequestBody(_) => Again::No,
                };
                return Err(Box::new(Lost {
                    failure,
                    back: Some((request, body)),
                    again,
                }));
            }
        };

        let head = request.method == Method::HEAD;
        // Kept only where it may be needed: the connection was used before, so it may be closing,
        // and sending the request twice does no harm.
        let spare = (lease.reused() && request.idempotent() && body.is_end_stream())
            .then(|| request.copy());
        let host = request.host.clone();
        let accepts_trailers = request.accepts_trailers;
        let message = self.message(&peer.target, request, body).map_err(lost)?;
        let sent = match timeout_at(self.until, lease.send(message)).await {
            Ok(Some(sent)) => sent,
            Ok(None) => return Err(lost(Failure::Unreachable("no connection".to_owned()))),
            Err(_) => {
                // A client that is slow to send is not the endpoint's fault.
                if self.exchange.sent() {
                    peer.health.failed(Instant::now());
                }
                return Err(lost(Failure::Slow("waiting for the head of the answer")));
            }
        };
        let answer = match sent {
            Ok(answer) => answer,
            Err(mut error) => {
                let failure = self.failure(error.error());
                if let Some(message) = error.take_message() {
                    let again = if lease.reused() {
                        Again::Stale
                    } else {
                        peer.health.failed(Instant::now());
                        Again::Elsewhere
                    };
                    return Err(Box::new(Lost {
                        failure,
                        back: Some(take_back(message, host, accepts_trailers)),
                        again,
                    }));
                }
                if matches!(failure, Failure::RequestBody(_)) {
                    return Err(lost(failure));
                }
                if !lease.reused() {
                    peer.health.failed(Instant::now());
                }
                let unanswered = unanswered(error.error());
                return Err(Box::new(Lost {
                    failure,
                    back: spare.filter(|_| unanswered).map(|request| {
                        let exchange = Rc::clone(&self.exchange);
                        (
                            request,
                            Outbound::empty_again(exchange, Arc::clone(self.rules)),
                        )
                    }),
                    again: Again::Elsewhere,
                }));
            }
        };
        let answer = self.relay(answer, lease, head, accepts_trailers);
        match &answer {
            Ok(_) => peer.health.succeeded(),
            Err(_) => peer.health.failed(Instant::now()),
        }
        answer.map_err(lost)
    }

    /// The request as this endpoint gets it.
    fn message(
        &self,
        target: &Target,
        request: Outgoing,
        body: Outbound,
    ) -> Result<Request<Outbound>, Failure> {
        let Outgoing {
            method,
            target: path,
            host,
            mut headers,
            accepts_trailers,
        } = request;
        let host = match self.core.host {
            HostHeader::Preserve => host,
            HostHeader::Upstream => HeaderValue::from_str(&target.endpoint.authority)
                .map_err(|error| Failure::Unreachable(error.to_string()))?,
        };
        let uri = match self.core.settings.protocol {
            Protocol::Http1 => {
                // RFC 9113 section 8.2.3: HTTP/2 may split the field, HTTP/1 must not.
                hops::join_cookies(&mut headers);
                headers.insert(header::HOST, host);
                // hyper drops a body of unknown length from methods that seldom have one.
                if !body.is_end_stream()
                    && body.size_hint().exact().is_none()
                    && !headers.contains_key(header::CONTENT_LENGTH)
                {
                    let chunked = HeaderValue::from_static("chunked");
                    headers.insert(header::TRANSFER_ENCODING, chunked);
                }
                Ok(Uri::from(path))
            }
            Protocol::Http2 => {
                if accepts_trailers {
                    headers.insert(header::TE, HeaderValue::from_static("trailers"));
                }
                let scheme = if target.endpoint.secure {
                    "https"
                } else {
                    "http"
                };
                Uri::builder()
                    .scheme(scheme)
                    .authority(host.as_bytes())
                    .path_and_query(path)
                    .build()
            }
        };
        let uri = uri.map_err(|error| Failure::Unreachable(error.to_string()))?;
        let mut message = Request::new(body);
        *message.method_mut() = method;
        *message.uri_mut() = uri;
        *message.headers_mut() = headers;
        *message.version_mut() = match self.core.settings.protocol {
            Protocol::Http1 => Version::HTTP_11,
            Protocol::Http2 => Version::HTTP_2,
        };
        Ok(message)
    }

    /// The answer as the client may have it.
    fn relay(
        &self,
        answer: Response<Incoming>,
        lease: Lease,
        head: bool,
        accepts_trailers: bool,
    ) -> Result<Response<Body>, Failure> {
        let (mut parts, incoming) = answer.into_parts();
        // Nobody asked for another protocol: `Upgrade` never travels on.
        if parts.status == StatusCode::SWITCHING_PROTOCOLS {
            return Err(Failure::Broken("it switched protocols unasked".to_owned()));
        }
        hops::clean_answer(&mut parts.headers, accepts_trailers)
            .map_err(|why| Failure::Broken(why.to_owned()))?;
        if parts.status == StatusCode::NO_CONTENT {
            // RFC 9110 section 8.6: not allowed here, and some clients wait for that many bytes.
            parts.headers.remove(header::CONTENT_LENGTH);
        }
        let mut response = Response::new(body::empty());
        *response.status_mut() = parts.status;
        *response.headers_mut() = parts.headers;
        if incoming.is_end_stream() || head {
            lease.finish();
        } else {
            let answer = Answer::new(incoming, Rc::clone(&self.exchange), lease);
            *response.body_mut() = Box::pin(answer);
        }
        Ok(response)
    }

    fn failure(&self, error: &hyper::Error) -> Failure {
        if let Some(fault) = self.exchange.fault() {
            return Failure::RequestBody(fault);
        }
        // The source says what happened on the wire; the error itself often only that it did.
        let text = match std::error::Error::source(error) {
            Some(source) => format!("{error}: {source}"),
            None => error.to_string(),
        };
        let reset = http2_error(error).is_some_and(h2::Error::is_reset);
        if error.is_parse() || error.is_incomplete_message() || reset {
            Failure::Broken(text)
        } else {
            Failure::Unreachable(text)
        }
    }
}

impl Outgoing {
    fn copy(&self) -> Self {
        Self {
            method: self.method.clone(),
            target: self.target.clone(),
            host: self.host.clone(),
            headers: self.headers.clone(),
            accepts_trailers: self.accepts_trailers,
        }
    }
}

fn http2_error(error: &hyper::Error) -> Option<&h2::Error> {
    std::error::Error::source(error)?.downcast_ref()
}

/// Whether the connection went away before any byte of an answer. An HTTP/2 stream that was reset
/// had its answer, unless it was refused before any processing (RFC 9113 section 8.7).
fn unanswered(error: &hyper::Error) -> bool {
    match http2_error(error) {
        Some(error) if error.is_reset() => error.reason() == Some(h2::Reason::REFUSED_STREAM),
        Some(_) => true,
        None => !error.is_parse() && !error.is_user(),
    }
}

fn lost(failure: Failure) -> Box<Lost> {
    Box::new(Lost {
        failure,
        back: None,
        again: Again::No,
    })
}

/// Undoes [`Plan::message`], for a request that was not sent.
fn take_back(
    message: Request<Outbound>,
    host: HeaderValue,
    accepts_trailers: bool,
) -> (Outgoing, Outbound) {
    let (mut parts, body) = message.into_parts();
    for name in [header::HOST, header::TE, header::TRANSFER_ENCODING] {
        parts.headers.remove(name);
    }
    let root = || PathAndQuery::from_static("/");
    let request = Outgoing {
        method: parts.method,
        target: parts.uri.path_and_query().cloned().unwrap_or_else(root),
        host,
        headers: parts.headers,
        accepts_trailers,
    };
    (request, body)
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
