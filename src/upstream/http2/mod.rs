//! An attempt over HTTP/2, by hyper's client.

mod bodies;

use std::pin::pin;
use std::rc::Rc;

use bytes::Bytes;
use http::header::{self, HeaderValue};
use http::uri::PathAndQuery;
use http::{Request, Response, StatusCode, Uri, Version};
use http_body::Body as HttpBody;
use hyper::body::Incoming;
use tokio::time::{Instant, timeout_at};

use self::bodies::Answer;
use super::Failure;
use super::headers::hops;
use super::http::{Again, Lost, Outgoing, Plan};
use super::pool::{Peer, Stream, Wanted};
use super::resolve::Target;
use super::streams::Upload;
use crate::body::{self, Body};

pub(super) use self::bodies::{Exchange, Outbound};

/// Sends the request once. On [`Again::No`] headers and upload may be used up.
pub(super) async fn attempt(
    plan: &Plan<'_>,
    peer: &Rc<Peer>,
    request: &Outgoing<'_>,
    upload: &mut Option<Upload>,
    wanted: Wanted,
) -> Result<Response<Body>, Lost> {
    let exchange = Exchange::begin(plan.bounds.idle_timeout.get(), plan.ends_at);
    let leased = timeout_at(
        plan.until(plan.began),
        peer.stream(plan.core, &exchange, wanted),
    )
    .await;
    let stream = match leased {
        Ok(Ok(stream)) => stream,
        Ok(Err(failure)) => return Err(Lost::unconnected(peer, failure)),
        Err(_) => return Err(Lost::unconnected(peer, Failure::Slow("connecting"))),
    };

    // The connection was used before, so it may be closing, and sending the request twice does no
    // harm.
    let twice = stream.reused() && request.idempotent() && upload.is_none();
    let body = Outbound::new(upload.take(), Rc::clone(&exchange));
    let message = message(plan, &peer.target, request, body).map_err(Lost::for_good)?;
    let Some(sent) = in_time(plan, &exchange, stream.send(message)).await else {
        // A client that is slow to send is not the endpoint's fault.
        if exchange.sent() {
            peer.health.failed(Instant::now());
        }
        let why = "waiting for the head of the answer";
        return Err(Lost::for_good(Failure::Slow(why)));
    };
    let mut error = match sent {
        Ok(answer) => {
            let answer = relay(answer, stream, exchange, request.accepts_trailers);
            match &answer {
                Ok(_) => peer.health.succeeded(),
                Err(_) => peer.health.failed(Instant::now()),
            }
            return answer.map_err(Lost::for_good);
        }
        Err(error) => error,
    };
    let failure = failure(&exchange, error.error());
    if let Some(message) = error.take_message() {
        *upload = message.into_body().take_back();
        let again = if stream.reused() {
            Again::Stale
        } else {
            peer.health.failed(Instant::now());
            Again::Elsewhere
        };
        return Err(Lost { failure, again });
    }
    if matches!(failure, Failure::RequestBody(_)) {
        return Err(Lost::for_good(failure));
    }
    if !stream.reused() {
        peer.health.failed(Instant::now());
    }
    let again = twice && unanswered(error.error());
    Err(Lost {
        failure,
        again: if again { Again::Elsewhere } else { Again::No },
    })
}

/// Waits for the head of the answer, for longer while the upload moves.
async fn in_time<T>(
    plan: &Plan<'_>,
    exchange: &Exchange,
    sending: impl Future<Output = T>,
) -> Option<T> {
    let mut sending = pin!(sending);
    loop {
        let until = plan.until(exchange.moved_at());
        if let Ok(sent) = timeout_at(until, sending.as_mut()).await {
            return Some(sent);
        }
        if plan.until(exchange.moved_at()) <= until {
            return None;
        }
    }
}

/// The request as this endpoint gets it.
pub(super) fn message(
    plan: &Plan<'_>,
    target: &Target,
    request: &Outgoing<'_>,
    body: Outbound,
) -> Result<Request<Outbound>, Failure> {
    // All were checked byte by byte, so this cannot fail; if it did, nothing is sent.
    let broken = |_| Failure::Unreachable("the request has no valid target".to_owned());
    let mut path = String::with_capacity(256);
    path.push_str(request.path);
    if let Some(query) = request.query {
        path.push('?');
        path.push_str(query);
    }
    let path = PathAndQuery::from_maybe_shared(Bytes::from(path)).map_err(broken)?;
    let scheme = if target.endpoint.secure {
        "https"
    } else {
        "http"
    };
    let uri = Uri::builder()
        .scheme(scheme)
        .authority(request.host(plan.core, target))
        .path_and_query(path)
        .build();
    let uri = uri.map_err(|_| Failure::Unreachable("the request has no valid host".to_owned()))?;
    let mut headers = request.fields.to_map();
    if request.accepts_trailers {
        headers.insert(header::TE, HeaderValue::from_static("trailers"));
    }
    let mut message = Request::new(body);
    *message.method_mut() = request.method.clone();
    *message.uri_mut() = uri;
    *message.headers_mut() = headers;
    *message.version_mut() = Version::HTTP_2;
    Ok(message)
}

/// The answer as the client may have it.
pub(super) fn relay(
    answer: Response<Incoming>,
    stream: Stream,
    exchange: Rc<Exchange>,
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
    let body = if incoming.is_end_stream() {
        body::empty()
    } else {
        Body::stream(Answer::new(incoming, exchange, stream))
    };
    let mut response = Response::new(body);
    *response.status_mut() = parts.status;
    *response.headers_mut() = parts.headers;
    Ok(response)
}

pub(super) fn failure(exchange: &Exchange, error: &hyper::Error) -> Failure {
    if let Some(fault) = exchange.fault() {
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

fn http2_error(error: &hyper::Error) -> Option<&h2::Error> {
    std::error::Error::source(error)?.downcast_ref()
}

/// Whether the connection went away before any byte of an answer. A stream that was reset had its
/// answer, unless it was refused before any processing (RFC 9113 section 8.7).
fn unanswered(error: &hyper::Error) -> bool {
    match http2_error(error) {
        Some(error) if error.is_reset() => error.reason() == Some(h2::Reason::REFUSED_STREAM),
        Some(_) => true,
        None => !error.is_parse() && !error.is_user(),
    }
}
