//! The client against answers byte by byte: every rule by itself, and all of them against hyper's
//! client, which has read the answers of the world for years.

mod framing;
mod memory;
mod oracle;
mod sending;

use std::collections::VecDeque;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, Waker};

use http::header::{HeaderMap, HeaderValue, Iter};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::{Length, Method, Request, Unsent, Wire};

/// A peer that says its pieces, one for each read, once it was told anything.
#[derive(Debug, Default)]
pub(super) struct Script {
    pub(super) says: VecDeque<Vec<u8>>,
    /// Hangs up when it has said everything; otherwise it keeps silent.
    pub(super) hangs_up: bool,
    pub(super) heard: Vec<u8>,
    /// Most bytes that it takes at a time.
    pub(super) gulp: Option<usize>,
    /// After so many bytes it has closed its ear.
    pub(super) deaf_after: Option<usize>,
}

impl Script {
    /// Says `text` in pieces that end at `cuts`.
    pub(super) fn new(text: &[u8], cuts: &[usize], hangs_up: bool) -> Self {
        let mut ends: Vec<usize> = cuts.iter().map(|cut| cut % (text.len() + 1)).collect();
        ends.push(text.len());
        ends.sort_unstable();
        let mut begin = 0;
        let mut says = VecDeque::new();
        for end in ends {
            if end > begin {
                says.push_back(text[begin..end].to_vec());
                begin = end;
            }
        }
        Self {
            says,
            hangs_up,
            ..Self::default()
        }
    }
}

impl AsyncRead for Script {
    fn poll_read(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.heard.is_empty() {
            return Poll::Pending;
        }
        let Some(mut piece) = self.says.pop_front() else {
            return if self.hangs_up {
                Poll::Ready(Ok(()))
            } else {
                Poll::Pending
            };
        };
        let rest = piece.split_off(piece.len().min(buf.remaining()));
        buf.put_slice(&piece);
        if !rest.is_empty() {
            self.says.push_front(rest);
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Script {
    fn poll_write(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        if self
            .deaf_after
            .is_some_and(|after| self.heard.len() >= after)
        {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        let taken = buf.len().min(self.gulp.unwrap_or(usize::MAX));
        self.heard.extend_from_slice(&buf[..taken]);
        Poll::Ready(Ok(taken))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

/// What came of reading an answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Outcome {
    /// A whole answer, and whether the connection may be used again.
    Answer(Box<Whole>, bool),
    /// Not read, or not to its end, and why.
    Refused(String),
    /// More is awaited.
    Waiting,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Whole {
    pub(super) status: u16,
    /// Without the fields that say how the message is framed.
    pub(super) headers: Vec<(String, Vec<u8>)>,
    pub(super) body: Vec<u8>,
    pub(super) trailers: Vec<(String, Vec<u8>)>,
}

/// The fields of a map in an order that does not depend on it.
pub(super) fn sorted(headers: &HeaderMap) -> Vec<(String, Vec<u8>)> {
    let mut fields: Vec<(String, Vec<u8>)> = headers
        .iter()
        .filter(|(name, _)| !matches!(name.as_str(), "connection" | "transfer-encoding"))
        .map(|(name, value)| (name.as_str().to_owned(), value.as_bytes().to_vec()))
        .collect();
    fields.sort_by(|a, b| a.0.cmp(&b.0));
    fields
}

pub(super) fn get<'a>(
    method: &'a http::Method,
    headers: &'a HeaderMap,
) -> Request<'a, Iter<'a, HeaderValue>> {
    Request {
        method,
        path: "/",
        query: None,
        host: "a.test",
        fields: headers.iter(),
        lines: &[],
        body: Length::Nothing,
    }
}

/// Reads an answer as the product does. A fuzz target needs nothing but a call of this with its
/// bytes, and [`oracle::agree`] behind it.
pub(super) fn read(script: Script, method: &http::Method) -> Outcome {
    let mut cx = Context::from_waker(Waker::noop());
    let mut wire = Wire::new(script);
    let headers = HeaderMap::new();
    wire.begin(get(method, &headers)).unwrap();
    let body = std::pin::pin!(http_body_util::Empty::new());
    let sent: Poll<Result<(), Unsent>> = wire.poll_send(body, &mut cx);
    assert!(matches!(sent, Poll::Ready(Ok(()))));
    let answer = match wire.poll_head(Method::from(method), &mut cx) {
        Poll::Ready(Ok(answer)) => answer,
        Poll::Ready(Err(fault)) => return Outcome::Refused(fault.to_string()),
        Poll::Pending => return Outcome::Waiting,
    };
    let mut whole = Whole {
        status: answer.status.as_u16(),
        headers: sorted(&answer.headers),
        body: Vec::new(),
        trailers: Vec::new(),
    };
    let announced = wire.size_hint().exact();
    if let Some(body) = wire.whole_body() {
        assert!(wire.ended());
        whole.body = body.to_vec();
    }
    while !wire.ended() {
        match wire.poll_frame(&mut cx) {
            Poll::Ready(Some(Ok(frame))) => match frame.into_data() {
                Ok(data) => {
                    assert!(!data.is_empty());
                    whole.body.extend_from_slice(&data);
                }
                Err(frame) => whole.trailers = sorted(&frame.into_trailers().unwrap()),
            },
            Poll::Ready(Some(Err(fault))) => return Outcome::Refused(fault.to_string()),
            Poll::Ready(None) => assert!(wire.ended()),
            Poll::Pending => return Outcome::Waiting,
        }
    }
    if let Some(announced) = announced {
        assert_eq!(announced, u64::try_from(whole.body.len()).unwrap());
    }
    let again = wire.reusable() && wire.quiet(&mut cx);
    Outcome::Answer(Box::new(whole), again)
}
