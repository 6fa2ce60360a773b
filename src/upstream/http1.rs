//! An attempt over HTTP/1.1, and the answer's body as it streams. Whoever waits for the answer moves
//! the bytes of both directions: first the request's future, then the answer's body.

use std::fmt;
use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http::header;
use http::{Response, StatusCode};
use http_body::{Body as HttpBody, Frame, SizeHint};
use http_body_util::Empty;
use tokio::time::{Instant, timeout_at};

use super::headers::hops;
use super::http::{Again, Lost, Outgoing, Plan};
use super::pool::{Held, Link, Peer, Wanted};
use super::streams::{StreamFault, Upload};
use super::wire::{self, Fault, Length, Unsent};
use super::{Failure, RequestBodyFault};
use crate::body::{self, Body, BodyError};

/// Why there is no head of an answer.
pub(super) enum Stop {
    /// The client's body failed.
    Client(RequestBodyFault),
    /// Nothing could be written.
    Unwritten(std::io::Error),
    /// The answer cannot be read, or there is none.
    Unread(Fault),
    /// It takes too long.
    Late,
}

/// Sends the request once. On [`Again::No`] the upload may be used up.
pub(super) async fn attempt(
    plan: &Plan<'_>,
    peer: &Rc<Peer>,
    request: &Outgoing<'_>,
    upload: &mut Option<Upload>,
    wanted: Wanted,
) -> Result<Response<Body>, Lost> {
    let core = plan.core;
    let at_hand = poll_fn(|cx| Poll::Ready(peer.at_hand(core, wanted, plan.began, cx))).await;
    let mut held = match at_hand {
        Some(held) => held,
        // Boxed: connecting is a large future, and the request path holds many of these.
        None => match timeout_at(plan.until(plan.began), Box::pin(peer.hold(core, wanted))).await {
            Ok(Ok(held)) => held,
            Ok(Err(failure)) => return Err(Lost::unconnected(peer, failure)),
            Err(_) => return Err(Lost::unconnected(peer, Failure::Slow("connecting"))),
        },
    };
    let lines = request.fields.lines();
    let head = wire::Request {
        method: request.method,
        path: request.path,
        query: request.query,
        host: request.host(core, &peer.target),
        fields: request.fields.single(),
        lines: &lines,
        body: match upload {
            None => Length::Nothing,
            Some(upload) => match upload.size_hint().exact() {
                Some(length) => Length::Exact(length),
                None => Length::Unknown,
            },
        },
    };
    if let Err(error) = held.link.wire.begin(head) {
        return Err(Lost::for_good(Failure::Unreachable(error.to_string())));
    }
    let method = wire::Method::from(request.method);
    let mut unsendable = false;
    let heard = poll_fn(|cx| {
        let link = &mut *held.link;
        poll_answer(plan, link, upload, method, &mut unsendable, cx)
    });
    match heard.await {
        Ok(answer) => match relay(plan, request, upload, unsendable, held, answer) {
            Ok(response) => {
                peer.health.succeeded();
                Ok(response)
            }
            Err(why) => {
                peer.health.failed(Instant::now());
                Err(Lost::for_good(Failure::Broken(why.to_owned())))
            }
        },
        Err(stop) => Err(lost(peer, request, upload, &held, stop)),
    }
}

/// Sends, and waits for the head of the answer, which may come before all was sent.
pub(super) fn poll_answer(
    plan: &Plan<'_>,
    link: &mut Link,
    upload: &mut Option<Upload>,
    method: wire::Method,
    unsendable: &mut bool,
    cx: &mut Context<'_>,
) -> Poll<Result<wire::Answer, Stop>> {
    let wire = &mut link.wire;
    if !wire.sent() && !*unsendable {
        match poll_send(wire, upload, cx) {
            Poll::Ready(Ok(())) | Poll::Pending => {}
            Poll::Ready(Err(Unsent::Body(fault))) => return Poll::Ready(Err(Stop::Client(fault))),
            Poll::Ready(Err(Unsent::Length | Unsent::Target)) => {
                return Poll::Ready(Err(Stop::Client(RequestBodyFault::BrokenOff)));
            }
            Poll::Ready(Err(Unsent::Io(error))) if wire.written() == 0 => {
                return Poll::Ready(Err(Stop::Unwritten(error)));
            }
            // It may have answered before it closed its ear.
            Poll::Ready(Err(Unsent::Io(_))) => *unsendable = true,
        }
    }
    if let Poll::Ready(heard) = wire.poll_head(method, cx) {
        return Poll::Ready(heard.map_err(Stop::Unread));
    }
    let moved_at = upload.as_ref().map_or(plan.began, Upload::moved_at);
    // While we wait for the client, it is the client's time that runs out.
    let client = upload.is_some() && wire.starving();
    let due = if client {
        (moved_at + plan.bounds.idle_timeout.get()).min(plan.ends_at)
    } else {
        plan.until(moved_at)
    };
    ready!(link.alarm.poll(due, cx));
    Poll::Ready(Err(if client {
        Stop::Client(RequestBodyFault::TooSlow)
    } else {
        Stop::Late
    }))
}

fn poll_send(
    wire: &mut wire::Wire<super::connect::Stream>,
    upload: &mut Option<Upload>,
    cx: &mut Context<'_>,
) -> Poll<Result<(), Unsent<RequestBodyFault>>> {
    match upload {
        Some(upload) => wire.poll_send(Pin::new(upload), cx),
        None => {
            let nothing = pin!(Empty::<Bytes>::new());
            wire.poll_send(nothing, cx).map_err(|error| match error {
                Unsent::Io(error) => Unsent::Io(error),
                Unsent::Body(never) => match never {},
                Unsent::Length => Unsent::Length,
                Unsent::Target => Unsent::Target,
            })
        }
    }
}

/// What follows from an attempt without an answer.
pub(super) fn lost(
    peer: &Peer,
    request: &Outgoing<'_>,
    upload: &mut Option<Upload>,
    held: &Held,
    stop: Stop,
) -> Lost {
    let wire = &held.link.wire;
    match stop {
        Stop::Client(fault) => Lost::for_good(Failure::RequestBody(fault)),
        Stop::Late => {
            // A client that is slow to send is not the endpoint's fault.
            if wire.sent() {
                peer.health.failed(Instant::now());
            }
            Lost::for_good(Failure::Slow("waiting for the head of the answer"))
        }
        Stop::Unwritten(error) => {
            if !held.reused {
                peer.health.failed(Instant::now());
            }
            // TLS counts what it took, not what left: with it nobody knows.
            let ours = !peer.target.endpoint.secure && upload.as_mut().is_none_or(Upload::rewind);
            let again = match (ours, held.reused) {
                (true, true) => Again::Stale,
                (true, false) => Again::Elsewhere,
                (false, _) => Again::No,
            };
            let failure = Failure::Unreachable(error.to_string());
            Lost { failure, again }
        }
        Stop::Unread(fault) => {
            if !held.reused {
                peer.health.failed(Instant::now());
            }
            // The connection was used before, so it may have been closing; and sending the request
            // twice does no harm.
            let again = held.reused && !wire.answered() && upload.is_none() && request.idempotent();
            let failure = match fault {
                Fault::Io(error) => Failure::Unreachable(error.to_string()),
                Fault::Short(_) | Fault::Malformed(_) => Failure::Broken(fault.to_string()),
            };
            Lost {
                failure,
                again: if again { Again::Elsewhere } else { Again::No },
            }
        }
    }
}

/// The answer as the client may have it.
pub(super) fn relay(
    plan: &Plan<'_>,
    request: &Outgoing<'_>,
    upload: &mut Option<Upload>,
    unsendable: bool,
    mut held: Held,
    mut answer: wire::Answer,
) -> Result<Response<Body>, &'static str> {
    if answer.hops {
        hops::clean_answer(&mut answer.headers, request.accepts_trailers)?;
    }
    if answer.status == StatusCode::NO_CONTENT {
        // RFC 9110 section 8.6: not allowed here, and some clients wait for that many bytes.
        answer.headers.remove(header::CONTENT_LENGTH);
    }
    // Whatever of the request was not sent by the end of the answer is not sent any more.
    let body = match held.link.wire.whole_body() {
        Some(whole) => {
            held.finish();
            if whole.is_empty() {
                body::empty()
            } else {
                body::full(whole)
            }
        }
        None => Body::stream(Answer {
            held: Some(held),
            upload: upload.take().filter(|_| !unsendable),
            idle: plan.bounds.idle_timeout.get(),
            ends_at: plan.ends_at,
            moved_at: Instant::now(),
        }),
    };
    let mut response = Response::new(body);
    *response.status_mut() = answer.status;
    *response.headers_mut() = answer.headers;
    Ok(response)
}

/// The upstream's body on its way to the client. Dropping it before its end ends the exchange.
struct Answer {
    /// The connection, until the end of the answer.
    held: Option<Held>,
    /// What of the request is still to be sent.
    upload: Option<Upload>,
    idle: Duration,
    ends_at: Instant,
    moved_at: Instant,
}

impl Answer {
    fn finish(&mut self) {
        self.upload = None;
        if let Some(held) = self.held.take() {
            held.finish();
        }
    }

    fn give_up(
        &mut self,
        fault: impl Into<BodyError>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        self.held = None;
        self.upload = None;
        Poll::Ready(Some(Err(fault.into())))
    }
}

impl fmt::Debug for Answer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Answer").finish_non_exhaustive()
    }
}

impl HttpBody for Answer {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let this = &mut *self;
        let Some(held) = &mut this.held else {
            return Poll::Ready(None);
        };
        let Link { wire, alarm, .. } = &mut *held.link;
        if let Some(upload) = &mut this.upload {
            let before = wire.written();
            match wire.poll_send(Pin::new(&mut *upload), cx) {
                Poll::Ready(Err(Unsent::Body(fault))) => {
                    return this.give_up(StreamFault::from(fault));
                }
                Poll::Ready(Err(Unsent::Length | Unsent::Target)) => {
                    return this.give_up(StreamFault::from(RequestBodyFault::BrokenOff));
                }
                // All sent; or the service has closed its ear, but may go on speaking.
                Poll::Ready(Ok(()) | Err(Unsent::Io(_))) => {
                    this.upload = None;
                    this.moved_at = Instant::now();
                }
                Poll::Pending if wire.written() > before => this.moved_at = Instant::now(),
                Poll::Pending => {}
            }
        }
        match wire.poll_frame(cx) {
            Poll::Ready(Some(Ok(mut frame))) => {
                this.moved_at = Instant::now();
                // A body that never stops moving is still bounded.
                if this.moved_at >= this.ends_at {
                    return this.give_up(StreamFault::Total);
                }
                if let Some(trailers) = frame.trailers_mut() {
                    hops::clean_answer_trailers(trailers);
                }
                if wire.ended() {
                    this.finish();
                }
                Poll::Ready(Some(Ok(frame)))
            }
            Poll::Ready(None) => {
                this.finish();
                Poll::Ready(None)
            }
            Poll::Ready(Some(Err(fault))) => this.give_up(fault),
            Poll::Pending => {
                let due = (this.moved_at + this.idle).min(this.ends_at);
                ready!(alarm.poll(due, cx));
                let fault = if due == this.ends_at {
                    StreamFault::Total
                } else {
                    StreamFault::Idle
                };
                this.give_up(fault)
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.held.is_none()
    }

    fn size_hint(&self) -> SizeHint {
        match &self.held {
            Some(held) => held.link.wire.size_hint(),
            None => SizeHint::with_exact(0),
        }
    }
}
