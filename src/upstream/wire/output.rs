//! The request: its head written straight into a buffer, its body as it comes.

use std::io::{self, IoSlice, Write as _};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes};
use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http_body::{Body as HttpBody, Frame};
use tokio::io::AsyncWrite;

use crate::request::scan::Odd;

/// The head of a request.
#[derive(Debug)]
pub(in crate::upstream) struct Request<'a, F> {
    pub(in crate::upstream) method: &'a http::Method,
    pub(in crate::upstream) path: &'a str,
    pub(in crate::upstream) query: Option<&'a str>,
    pub(in crate::upstream) host: &'a str,
    /// Without `Host` and what belongs to one hop; those of one name one after the other.
    /// `Content-Length` counts only where there is no body; otherwise what is said about the body
    /// is what is sent.
    pub(in crate::upstream) fields: F,
    /// Whole lines, in pieces, of fields that are none of those above, and say nothing about the body.
    pub(in crate::upstream) lines: &'a [&'a [u8]],
    pub(in crate::upstream) body: Length,
}

/// How the body of a request is framed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::upstream) enum Length {
    /// There is none.
    Nothing,
    /// So many bytes.
    Exact(u64),
    /// Nobody knows.
    Unknown,
}

/// Why a request was not sent to its end.
#[derive(Debug, thiserror::Error)]
pub(in crate::upstream) enum Unsent<E = std::convert::Infallible> {
    /// The connection failed.
    #[error("{0}")]
    Io(io::Error),
    /// Its body failed.
    #[error("the request body failed")]
    Body(E),
    /// Its body is longer or shorter than it said.
    #[error("the request body is not as long as it said")]
    Length,
    /// Its target or host cannot be written into a head.
    #[error("the request has no valid target")]
    Target,
}

/// What waits to be written: bytes of ours, then a piece of the body, then what ends the piece.
#[derive(Debug, Default)]
pub(super) struct Output {
    ours: Vec<u8>,
    /// How much of `ours` was written.
    begin: usize,
    piece: Bytes,
    tail: &'static [u8],
    rest: Rest,
    written: u64,
    starving: bool,
}

/// What of the body was not taken yet.
#[derive(Debug, Default, PartialEq, Eq)]
enum Rest {
    #[default]
    Nothing,
    Exact(u64),
    Chunks,
    /// Nothing, and all of it has left.
    Sent,
}

impl Output {
    /// Writes the head into the buffer.
    pub(super) fn begin<'a, F>(&mut self, request: Request<'a, F>) -> Result<(), Unsent>
    where
        F: Iterator<Item = (&'a HeaderName, &'a HeaderValue)>,
    {
        self.ours.clear();
        self.begin = 0;
        self.piece = Bytes::new();
        self.tail = b"";
        self.written = 0;
        self.starving = false;

        // Checked where the request came in; here it is cheap to be sure once more.
        let query = request.query.unwrap_or_default();
        let parts = [request.path, query, request.host];
        if !request.path.starts_with('/') || !parts.into_iter().all(legal) {
            return Err(Unsent::Target);
        }
        let out = &mut self.ours;
        out.reserve(1024);
        out.extend_from_slice(request.method.as_str().as_bytes());
        out.push(b' ');
        out.extend_from_slice(request.path.as_bytes());
        if let Some(query) = request.query {
            out.push(b'?');
            out.extend_from_slice(query.as_bytes());
        }
        out.extend_from_slice(b" HTTP/1.1\r\nhost: ");
        out.extend_from_slice(request.host.as_bytes());
        out.extend_from_slice(b"\r\n");
        let mut cookies = false;
        for (name, value) in request.fields {
            if *name == header::CONTENT_LENGTH {
                if request.body == Length::Nothing {
                    out.extend_from_slice(b"content-length: 0\r\n");
                }
                continue;
            }
            if *name == header::TRANSFER_ENCODING || *name == header::HOST {
                continue;
            }
            // RFC 9113 section 8.2.3: HTTP/2 may split this field, HTTP/1 must not. A map yields the
            // values of one name one after the other.
            let cookie = *name == header::COOKIE;
            if cookie && cookies {
                out.truncate(out.len().saturating_sub(2));
                out.extend_from_slice(b"; ");
            } else {
                out.extend_from_slice(name.as_str().as_bytes());
                out.extend_from_slice(b": ");
            }
            cookies = cookie;
            out.extend_from_slice(value.as_bytes());
            out.extend_from_slice(b"\r\n");
        }
        for piece in request.lines {
            out.extend_from_slice(piece);
        }
        self.rest = match request.body {
            Length::Nothing => Rest::Nothing,
            Length::Exact(length) => {
                // Writing to a vector cannot fail.
                let _ = write!(out, "content-length: {length}\r\n");
                if length == 0 {
                    Rest::Nothing
                } else {
                    Rest::Exact(length)
                }
            }
            Length::Unknown => {
                out.extend_from_slice(b"transfer-encoding: chunked\r\n");
                Rest::Chunks
            }
        };
        out.extend_from_slice(b"\r\n");
        Ok(())
    }

    /// See [`super::Wire::poll_send`].
    pub(super) fn poll_send<S, B>(
        &mut self,
        stream: &mut S,
        mut body: Pin<&mut B>,
        cx: &mut Context<'_>,
    ) -> Poll<Result<(), Unsent<B::Error>>>
    where
        S: AsyncWrite + Unpin,
        B: HttpBody<Data = Bytes>,
    {
        loop {
            // Asked before anything is written, so that the head leaves with the first piece.
            let waits = matches!(self.rest, Rest::Exact(_) | Rest::Chunks)
                && !self.piece.has_remaining()
                && match body.as_mut().poll_frame(cx) {
                    Poll::Ready(None) => {
                        self.end(None)?;
                        false
                    }
                    Poll::Ready(Some(Ok(frame))) => {
                        self.add(frame)?;
                        false
                    }
                    Poll::Ready(Some(Err(error))) => {
                        return Poll::Ready(Err(Unsent::Body(error)));
                    }
                    Poll::Pending => true,
                };
            self.starving = false;
            ready!(self.poll_write(stream, cx)).map_err(Unsent::Io)?;
            let done = matches!(self.rest, Rest::Nothing | Rest::Sent);
            if waits || done {
                // A TLS stream may hold what it took.
                ready!(Pin::new(&mut *stream).poll_flush(cx)).map_err(Unsent::Io)?;
            }
            if done {
                self.rest = Rest::Sent;
                return Poll::Ready(Ok(()));
            }
            if waits {
                self.starving = true;
                return Poll::Pending;
            }
        }
    }

    /// Whether everything has left.
    pub(super) fn sent(&self) -> bool {
        self.rest == Rest::Sent
    }

    /// How many bytes have left.
    pub(super) fn written(&self) -> u64 {
        self.written
    }

    /// Whether nothing can be written until more of the body comes.
    pub(super) fn starving(&self) -> bool {
        self.starving
    }

    /// Lets go of a buffer that an uncommonly large head has left behind.
    pub(super) fn shrink(&mut self, most: usize) {
        if self.ours.capacity() > most {
            self.ours = Vec::new();
        }
    }

    /// Takes in a frame. Only called when the piece before has left.
    fn add<E>(&mut self, frame: Frame<Bytes>) -> Result<(), Unsent<E>> {
        let piece = match frame.into_data() {
            // An empty chunk would end the body.
            Ok(piece) if piece.is_empty() => return Ok(()),
            Ok(piece) => piece,
            Err(frame) => return self.end(frame.into_trailers().ok().as_ref()),
        };
        let length = u64::try_from(piece.len()).unwrap_or(u64::MAX);
        match &mut self.rest {
            Rest::Exact(left) => {
                *left = left.checked_sub(length).ok_or(Unsent::Length)?;
                if *left == 0 {
                    self.rest = Rest::Nothing;
                }
            }
            Rest::Chunks => {
                let _ = write!(self.ours, "{length:x}\r\n");
                self.tail = b"\r\n";
            }
            Rest::Nothing | Rest::Sent => return Err(Unsent::Length),
        }
        self.piece = piece;
        Ok(())
    }

    /// The body ended here.
    fn end<E>(&mut self, trailers: Option<&HeaderMap>) -> Result<(), Unsent<E>> {
        match self.rest {
            Rest::Exact(_) => return Err(Unsent::Length),
            Rest::Chunks => {
                self.ours.extend_from_slice(b"0\r\n");
                for (name, value) in trailers.into_iter().flatten() {
                    self.ours.extend_from_slice(name.as_str().as_bytes());
                    self.ours.extend_from_slice(b": ");
                    self.ours.extend_from_slice(value.as_bytes());
                    self.ours.extend_from_slice(b"\r\n");
                }
                self.ours.extend_from_slice(b"\r\n");
            }
            Rest::Nothing | Rest::Sent => {}
        }
        self.rest = Rest::Nothing;
        Ok(())
    }

    fn poll_write<S: AsyncWrite + Unpin>(
        &mut self,
        stream: &mut S,
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<()>> {
        loop {
            let ours = self.ours.get(self.begin..).unwrap_or_default();
            let stream = Pin::new(&mut *stream);
            let written = match (ours, &*self.piece, self.tail) {
                ([], [], []) => {
                    self.ours.clear();
                    self.begin = 0;
                    // Lets go of the buffer that it was a part of.
                    self.piece = Bytes::new();
                    return Poll::Ready(Ok(()));
                }
                (ours, [], []) => ready!(stream.poll_write(cx, ours))?,
                ([], piece, []) => ready!(stream.poll_write(cx, piece))?,
                (ours, piece, tail) => {
                    let slices = [ours, piece, tail].map(IoSlice::new);
                    ready!(stream.poll_write_vectored(cx, &slices))?
                }
            };
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.written = self
                .written
                .saturating_add(u64::try_from(written).unwrap_or_default());
            let of_ours = written.min(ours.len());
            self.begin += of_ours;
            let of_piece = (written - of_ours).min(self.piece.len());
            self.piece.advance(of_piece);
            let of_tail = (written - of_ours - of_piece).min(self.tail.len());
            self.tail = self.tail.get(of_tail..).unwrap_or_default();
        }
    }
}

/// Whether a request line, or `Host`, can hold this.
fn legal(text: &str) -> bool {
    const ODD: Odd = Odd {
        below: 0x21,
        from: None,
        also: [0x7f; 2],
    };
    !ODD.any(text.as_bytes())
}
