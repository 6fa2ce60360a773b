//! The demo upstream's WebSocket: a tick a second, and an echo of short messages (RFC 6455).

use std::io;
use std::time::Duration;

use aws_lc_rs::digest::{SHA1_FOR_LEGACY_USE_ONLY, digest};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http::{Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt as _, Empty};
use hyper::body::Incoming;
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, split};
use tokio::sync::mpsc;
use tokio::time::interval;

use super::service::Answer;

/// What RFC 6455 section 1.3 has servers append to the client's key.
const MAGIC: &str = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11";
/// Longest message that is echoed; a frame of this size has its length in one byte.
const LONGEST: usize = 125;
/// Messages that may wait to be echoed.
const WAITING: usize = 16;

const TEXT: u8 = 1;
const CLOSE: u8 = 8;
const PING: u8 = 9;
const PONG: u8 = 10;

/// Opens a WebSocket if the request asks for one at `path`.
pub(super) fn accept(request: &mut Request<Incoming>, path: &str) -> Option<Answer> {
    let asks = request.uri().path() == path
        && request.method() == Method::GET
        && request
            .headers()
            .get(header::UPGRADE)
            .is_some_and(|protocol| protocol.as_bytes().eq_ignore_ascii_case(b"websocket"));
    let key = request
        .headers()
        .get(header::SEC_WEBSOCKET_KEY)
        .filter(|_| asks)?
        .to_str()
        .ok()?;
    let proof = digest(
        &SHA1_FOR_LEGACY_USE_ONLY,
        format!("{key}{MAGIC}").as_bytes(),
    );
    let proof = header::HeaderValue::try_from(STANDARD.encode(proof)).ok()?;
    tokio::spawn(serve(hyper::upgrade::on(request)));
    let mut response = Response::new(Empty::<Bytes>::new().boxed_unsync());
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    let headers = response.headers_mut();
    let fixed = header::HeaderValue::from_static;
    headers.insert(header::CONNECTION, fixed("upgrade"));
    headers.insert(header::UPGRADE, fixed("websocket"));
    headers.insert(header::SEC_WEBSOCKET_ACCEPT, proof);
    Some(response)
}

async fn serve(upgrade: OnUpgrade) {
    let Ok(connection) = upgrade.await else {
        return;
    };
    let (reading, writing) = split(TokioIo::new(connection));
    let (said, heard) = mpsc::channel(WAITING);
    // Whoever ends first ends both: the client is gone, or wants to be.
    tokio::select! {
        _ = read(reading, said) => {}
        _ = write(writing, heard) => {}
    }
}

/// Hears what the client says until it closes.
async fn read(
    mut from: impl AsyncRead + Unpin,
    said: mpsc::Sender<(u8, Vec<u8>)>,
) -> io::Result<()> {
    loop {
        let head = from.read_u16().await?.to_be_bytes();
        let [kind, length] = [head[0] & 0x0f, head[1] & 0x7f];
        let mut mask = [0; 4];
        from.read_exact(&mut mask).await?;
        if usize::from(length) > LONGEST {
            return Err(io::Error::other(
                "the message is too long for a demonstration",
            ));
        }
        let mut message = vec![0; usize::from(length)];
        from.read_exact(&mut message).await?;
        for (byte, mask) in message.iter_mut().zip(mask.iter().cycle()) {
            *byte ^= mask;
        }
        let answer = match kind {
            TEXT => TEXT,
            PING => PONG,
            CLOSE => CLOSE,
            _ => continue,
        };
        if said.send((answer, message)).await.is_err() {
            return Ok(());
        }
    }
}

/// Says a tick a second, and what is to be answered.
async fn write(
    mut to: impl AsyncWrite + Unpin,
    mut heard: mpsc::Receiver<(u8, Vec<u8>)>,
) -> io::Result<()> {
    let mut ticks = interval(Duration::from_secs(1));
    let mut count = 0_u32;
    loop {
        let (kind, message) = tokio::select! {
            _ = ticks.tick() => {
                count = count.saturating_add(1);
                (TEXT, format!("tick {count}").into_bytes())
            }
            answer = heard.recv() => match answer {
                Some(answer) => answer,
                None => return Ok(()),
            },
        };
        let length = u8::try_from(message.len()).unwrap_or(0);
        to.write_all(&[0x80 | kind, length]).await?;
        to.write_all(&message).await?;
        to.flush().await?;
        if kind == CLOSE {
            return Ok(());
        }
    }
}
