//! Opening tunnels: a connection, or a stream of one, that stops to carry exchanges.
//!
//! A WebSocket is opened by an upgrade over HTTP/1.1 or by extended CONNECT (RFC 8441) over HTTP/2,
//! as the upstream's `protocol` says, whichever of them the client speaks. The key of the handshake
//! is always ours, and so the proof that it was read. For `CONNECT` there is no exchange at all: the
//! endpoint gets the client's bytes and nothing else. It is an endpoint of the configuration, chosen
//! and balanced like any other, never the host that the client has named; that one chose the route.
//!
//! A connection that was asked to be a tunnel never goes to the pool, whatever was answered: nothing
//! that the client sent behind its request can become the beginning of another one there.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};

use aws_lc_rs::digest::{SHA1_FOR_LEGACY_USE_ONLY, digest};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::{Buf, Bytes};
use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::{Method, Response, StatusCode};
use hyper::ext::Protocol as Extended;
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, timeout_at};

use super::config::Protocol;
use super::headers::hops;
use super::http::{Lost, Outgoing, Plan};
use super::http2::{Exchange, Outbound};
use super::pool::{Peer, Pools, Stream, Visit};
use super::wire::{self, Length};
use super::{Failure, Trail, connect, http1, http2};
use crate::body::{self, Body};

/// RFC 6455 section 1.3.
const PROOF: &str = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11";

/// What came of asking for a tunnel: the answer for the client, and the other end if it is open.
pub type Opened = (Response<Body>, Option<Far>);

/// The upstream's end of a tunnel. Dropping it closes the connection, or resets the stream.
#[derive(Debug)]
pub struct Far {
    stream: End,
    /// Read with the head of the answer.
    ahead: Bytes,
}

#[derive(Debug)]
enum End {
    Connection(
        connect::Stream,
        #[expect(dead_code, reason = "counts")] Visit,
    ),
    Stream(
        Box<TokioIo<Upgraded>>,
        #[expect(dead_code, reason = "counts")] Stream,
    ),
}

/// Opens a WebSocket. `key` is that of the client, which is there over HTTP/1.1.
///
/// # Errors
/// [`Failure`]; `trail` tells how far it got.
pub(super) async fn websocket(
    plan: &Plan<'_>,
    pools: &Pools,
    request: &Outgoing<'_>,
    key: Option<&HeaderValue>,
    trail: &mut Trail,
) -> Result<Opened, Failure> {
    let opened = plan.attempts(pools, trail, async |peer, _| {
        match plan.core.settings.protocol {
            Protocol::Http1 => by_upgrade(plan, peer, request).await,
            Protocol::Http2 => by_stream(plan, peer, request).await,
        }
    });
    let (mut response, far) = opened.await?;
    // Over HTTP/2 success means that the tunnel is open.
    if far.is_none() && key.is_none() && response.status().is_success() {
        let why = "it answered instead of opening a WebSocket".to_owned();
        return Err(Failure::Broken(why));
    }
    if far.is_some() {
        open(&mut response, key);
    }
    Ok((response, far))
}

/// Opens a tunnel for bytes.
///
/// # Errors
/// As [`websocket`].
pub(super) async fn connect(
    plan: &Plan<'_>,
    pools: &Pools,
    trail: &mut Trail,
) -> Result<Opened, Failure> {
    let opened = plan.attempts(pools, trail, async |peer, _| {
        let held = dedicated(plan, peer).await?;
        peer.health.succeeded();
        Ok(Far::of(held))
    });
    Ok((Response::new(body::empty()), Some(opened.await?)))
}

async fn dedicated(plan: &Plan<'_>, peer: &Rc<Peer>) -> Result<super::pool::Held, Lost> {
    match timeout_at(plan.until(plan.began), Box::pin(peer.dedicated(plan.core))).await {
        Ok(Ok(held)) => Ok(held),
        Ok(Err(failure)) => Err(Lost::unconnected(peer, failure)),
        Err(_) => Err(Lost::unconnected(peer, Failure::Slow("connecting"))),
    }
}

async fn by_upgrade(
    plan: &Plan<'_>,
    peer: &Rc<Peer>,
    request: &Outgoing<'_>,
) -> Result<Opened, Lost> {
    let mut held = dedicated(plan, peer).await?;
    let (key, proof) = fresh_key();
    let ours: [(HeaderName, HeaderValue); 4] = [
        (header::CONNECTION, HeaderValue::from_static("upgrade")),
        (header::UPGRADE, HeaderValue::from_static("websocket")),
        (
            header::SEC_WEBSOCKET_VERSION,
            HeaderValue::from_static("13"),
        ),
        (header::SEC_WEBSOCKET_KEY, key),
    ];
    let lines = request.fields.lines();
    let head = wire::Request {
        method: &Method::GET,
        path: request.path,
        query: request.query,
        host: request.host(plan.core, &peer.target),
        fields: request
            .fields
            .single()
            .chain(ours.iter().map(|(name, value)| (name, value))),
        lines: &lines,
        body: Length::Nothing,
    };
    let wire = &mut held.link.wire;
    if let Err(error) = wire.begin(head) {
        return Err(Lost::for_good(Failure::Unreachable(error.to_string())));
    }
    wire.may_switch();
    let mut unsendable = false;
    let heard = std::future::poll_fn(|cx| {
        let link = &mut *held.link;
        let method = wire::Method::Other;
        http1::poll_answer(plan, link, &mut None, method, &mut unsendable, cx)
    });
    let mut answer = match heard.await {
        Ok(answer) => answer,
        Err(stop) => return Err(http1::lost(peer, request, &mut None, &held, stop)),
    };
    let relayed = if answer.status == StatusCode::SWITCHING_PROTOCOLS {
        switched(&mut answer.headers, request, &proof).map(|()| {
            let mut response = Response::new(body::empty());
            *response.headers_mut() = answer.headers;
            (response, Some(Far::of(held)))
        })
    } else {
        let relayed = http1::relay(plan, request, &mut None, unsendable, held, answer);
        relayed.map(|response| (response, None))
    };
    match relayed {
        Ok(opened) => {
            peer.health.succeeded();
            Ok(opened)
        }
        Err(why) => {
            peer.health.failed(Instant::now());
            Err(Lost::for_good(Failure::Broken(why.to_owned())))
        }
    }
}

async fn by_stream(
    plan: &Plan<'_>,
    peer: &Rc<Peer>,
    request: &Outgoing<'_>,
) -> Result<Opened, Lost> {
    let exchange = Exchange::begin(plan.bounds.idle_timeout.get(), plan.ends_at);
    let opening = Box::pin(async {
        let stream = peer.tunnel_stream(plan.core, &exchange).await;
        let stream = stream.map_err(|failure| Lost::unconnected(peer, failure))?;
        if !stream.opens_tunnels().await {
            let why = "it opens no WebSocket on a stream (RFC 8441)".to_owned();
            return Err(Lost::for_good(Failure::Broken(why)));
        }
        let outbound = Outbound::new(None, Rc::clone(&exchange));
        let message = http2::message(plan, &peer.target, request, outbound);
        let mut message = message.map_err(Lost::for_good)?;
        *message.method_mut() = Method::CONNECT;
        let version = HeaderValue::from_static("13");
        let headers = message.headers_mut();
        headers.remove(header::CONTENT_LENGTH);
        headers.insert(header::SEC_WEBSOCKET_VERSION, version);
        let extended = Extended::from_static("websocket");
        message.extensions_mut().insert(extended);
        match stream.send(message).await {
            Ok(answer) => Ok((answer, stream)),
            Err(error) => {
                let failure = http2::failure(&exchange, error.error());
                peer.health.failed(Instant::now());
                Err(Lost::for_good(failure))
            }
        }
    });
    let Ok(sent) = timeout_at(plan.until(plan.began), opening).await else {
        peer.health.failed(Instant::now());
        let why = "waiting for the head of the answer";
        return Err(Lost::for_good(Failure::Slow(why)));
    };
    let (mut answer, stream) = sent?;
    let broken = |why: &str| {
        peer.health.failed(Instant::now());
        Lost::for_good(Failure::Broken(why.to_owned()))
    };
    if !answer.status().is_success() {
        let relayed = http2::relay(answer, stream, exchange, request.accepts_trailers);
        let response = relayed.map_err(Lost::for_good)?;
        peer.health.succeeded();
        return Ok((response, None));
    }
    let upgraded = hyper::upgrade::on(&mut answer).await;
    let upgraded = upgraded.map_err(|_| broken("the stream ended as it was opened"))?;
    let mut headers = std::mem::take(answer.headers_mut());
    cleaned(&mut headers, request).map_err(broken)?;
    peer.health.succeeded();
    let mut response = Response::new(body::empty());
    *response.headers_mut() = headers;
    let stream = End::Stream(Box::new(TokioIo::new(upgraded)), stream);
    let far = Far {
        stream,
        ahead: Bytes::new(),
    };
    Ok((response, Some(far)))
}

/// A key, and what proves that it was read.
fn fresh_key() -> (HeaderValue, HeaderValue) {
    let nonce: [u8; 16] = rand::random();
    let key = STANDARD.encode(nonce);
    let proof = proof(key.as_bytes());
    // Base64 is always a valid value.
    let key = HeaderValue::try_from(key).unwrap_or(HeaderValue::from_static(""));
    (key, proof)
}

/// RFC 6455 section 4.2.2, step 5.4.
fn proof(key: &[u8]) -> HeaderValue {
    let digest = digest(&SHA1_FOR_LEGACY_USE_ONLY, &[key, PROOF.as_bytes()].concat());
    let proof = STANDARD.encode(digest.as_ref());
    HeaderValue::try_from(proof).unwrap_or(HeaderValue::from_static(""))
}

/// Checks the answer that opens a WebSocket over HTTP/1.1 (RFC 6455 section 4.1), and leaves of it
/// what the client may have.
fn switched(
    headers: &mut HeaderMap,
    request: &Outgoing<'_>,
    proof: &HeaderValue,
) -> Result<(), &'static str> {
    let one = |name: &HeaderName| {
        let mut values = headers.get_all(name).iter();
        values.next().filter(|_| values.next().is_none())
    };
    let is_websocket = |value: &HeaderValue| value.as_bytes().eq_ignore_ascii_case(b"websocket");
    if !one(&header::UPGRADE).is_some_and(is_websocket) {
        return Err("it switched to another protocol");
    }
    let mut options = headers.get_all(header::CONNECTION).iter();
    let named = options.any(|value| {
        let mut options = value.as_bytes().split(|b| *b == b',');
        options.any(|option| option.trim_ascii().eq_ignore_ascii_case(b"upgrade"))
    });
    if !named {
        return Err("it switched protocols without saying so in `connection`");
    }
    if one(&header::SEC_WEBSOCKET_ACCEPT) != Some(proof) {
        return Err("it switched protocols without having read the key");
    }
    if headers.contains_key(header::TRANSFER_ENCODING)
        || headers.contains_key(header::CONTENT_LENGTH)
    {
        return Err("it switched protocols and announced a body");
    }
    cleaned(headers, request)
}

/// Leaves what the client may have, if nothing was chosen that it had not offered.
fn cleaned(headers: &mut HeaderMap, request: &Outgoing<'_>) -> Result<(), &'static str> {
    let mut chosen = headers.get_all(header::SEC_WEBSOCKET_PROTOCOL).iter();
    if let Some(one) = chosen.next()
        && (chosen.next().is_some() || !offered(request, &header::SEC_WEBSOCKET_PROTOCOL, one))
    {
        return Err("it chose a subprotocol that was not offered");
    }
    let extensions = &header::SEC_WEBSOCKET_EXTENSIONS;
    let asked = request.fields.single().any(|(name, _)| name == extensions);
    if !asked && headers.contains_key(extensions) {
        return Err("it chose an extension though none was offered");
    }
    hops::clean_answer(headers, false)?;
    headers.remove(header::SEC_WEBSOCKET_ACCEPT);
    headers.remove(header::SEC_WEBSOCKET_KEY);
    headers.remove(header::CONTENT_LENGTH);
    Ok(())
}

/// Whether `one` is among the tokens of the request's fields of this name.
fn offered(request: &Outgoing<'_>, name: &HeaderName, one: &HeaderValue) -> bool {
    let fields = request.fields.single().filter(|(other, _)| *other == name);
    fields
        .flat_map(|(_, value)| value.as_bytes().split(|b| *b == b','))
        .any(|token| token.trim_ascii() == one.as_bytes())
}

/// The client's part of the handshake.
fn open(response: &mut Response<Body>, key: Option<&HeaderValue>) {
    let Some(key) = key else {
        *response.status_mut() = StatusCode::OK;
        return;
    };
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    let headers = response.headers_mut();
    headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
    headers.insert(header::UPGRADE, HeaderValue::from_static("websocket"));
    headers.insert(header::SEC_WEBSOCKET_ACCEPT, proof(key.as_bytes()));
}

impl Far {
    fn of(held: super::pool::Held) -> Self {
        let (stream, ahead, visit) = held.into_tunnel();
        Self {
            stream: End::Connection(stream, visit),
            ahead,
        }
    }
}

impl AsyncRead for Far {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let me = self.get_mut();
        if !me.ahead.is_empty() {
            let here = me.ahead.len().min(buf.remaining());
            buf.put_slice(me.ahead.get(..here).unwrap_or_default());
            me.ahead.advance(here);
            if me.ahead.is_empty() {
                // Lets go of the buffer that it was a part of.
                me.ahead = Bytes::new();
            }
            return Poll::Ready(Ok(()));
        }
        match &mut me.stream {
            End::Connection(stream, _) => Pin::new(stream).poll_read(cx, buf),
            End::Stream(stream, _) => Pin::new(stream).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for Far {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        match &mut self.get_mut().stream {
            End::Connection(stream, _) => Pin::new(stream).poll_write(cx, buf),
            End::Stream(stream, _) => Pin::new(stream).poll_write(cx, buf),
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match &mut self.get_mut().stream {
            End::Connection(stream, _) => Pin::new(stream).poll_write_vectored(cx, bufs),
            End::Stream(stream, _) => Pin::new(stream).poll_write_vectored(cx, bufs),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.get_mut().stream {
            End::Connection(stream, _) => Pin::new(stream).poll_flush(cx),
            End::Stream(stream, _) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.get_mut().stream {
            End::Connection(stream, _) => Pin::new(stream).poll_shutdown(cx),
            End::Stream(stream, _) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::upstream::headers::Fields;

    #[test]
    fn the_proof_is_that_of_the_rfc() {
        // RFC 6455 section 1.3.
        let proof = proof(b"dGhlIHNhbXBsZSBub25jZQ==");
        assert_eq!(proof, "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
        assert_ne!(fresh_key().0, fresh_key().0);
        assert_eq!(fresh_key().0.len(), 24);
    }

    #[test]
    fn an_answer_opens_a_websocket_only_if_all_of_it_is_right() {
        let proof = HeaderValue::from_static("proof");
        let theirs: HeaderMap = [(
            header::SEC_WEBSOCKET_PROTOCOL,
            HeaderValue::from_static("chat, mqtt"),
        )]
        .into_iter()
        .collect();
        let request = Outgoing {
            method: &Method::GET,
            path: "/",
            query: None,
            host: "a",
            fields: Fields::of(&theirs),
            accepts_trailers: false,
        };
        let good = [
            ("connection", "Upgrade"),
            ("upgrade", "WebSocket"),
            ("sec-websocket-accept", "proof"),
            ("sec-websocket-protocol", "mqtt"),
            ("set-cookie", "a=b"),
        ];
        let check = |fields: &[(&'static str, &'static str)]| {
            let mut headers = HeaderMap::new();
            for (name, value) in fields {
                headers.append(*name, HeaderValue::from_static(value));
            }
            switched(&mut headers, &request, &proof).map(|()| headers)
        };
        let headers = check(&good).unwrap();
        assert_eq!(headers.len(), 2, "{headers:?}");
        for (at, value) in [
            (0, "close"),
            (1, "h2c"),
            (1, "websocket, h2c"),
            (2, "Proof"),
            (3, "soap"),
            (3, "chat, mqtt"),
        ] {
            let mut fields = good;
            fields[at].1 = value;
            assert!(check(&fields).is_err(), "{value}");
        }
        for more in [
            ("sec-websocket-accept", "proof"),
            ("upgrade", "websocket"),
            ("sec-websocket-extensions", "permessage-deflate"),
            ("sec-websocket-protocol", "chat"),
            ("content-length", "0"),
            ("transfer-encoding", "chunked"),
        ] {
            let mut fields = good.to_vec();
            fields.push(more);
            assert!(check(&fields).is_err(), "{more:?}");
        }
        for missing in 0..3 {
            let mut fields = good.to_vec();
            fields.remove(missing);
            assert!(check(&fields).is_err(), "{missing}");
        }
    }
}
