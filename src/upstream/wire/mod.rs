//! HTTP/1.1 towards a service: one exchange at a time on one connection, read strictly.
//!
//! A [`Wire`] is a stream with what was read ahead and what waits to be written. Nobody drives it
//! but the exchange that holds it: there is no task behind it, no channel and no lock. `head` reads
//! heads and decides where the body ends, `memo` spares it what it has read before, `chunked` and
//! `body` find that end, `output` writes.
//!
//! What is read is either clear or refused (RFC 9112 sections 5 and 6.3): two answers to "where does
//! this message end" are how one client's answer becomes part of another's. Beyond the RFC, these
//! are refused too: a bare LF as the end of a line, empty lines before the status line, several
//! `Content-Length` values even if they are equal, any transfer coding but `chunked`, chunked
//! answers of HTTP/1.0, and lengths over 2^63 - 1.

mod body;
mod chunked;
mod head;
mod memo;
mod output;
#[cfg(test)]
mod tests;

use std::io;
use std::pin::{Pin, pin};
use std::task::{Context, Poll, Waker, ready};

use bytes::{Buf as _, BufMut as _, Bytes, BytesMut};
use http::header::{HeaderName, HeaderValue};
use http_body::{Body as HttpBody, Frame, SizeHint};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf};

use self::body::Incoming;
use self::head::{Head, Lines};
use self::memo::Memo;
use self::output::Output;

pub(super) use self::head::{Answer, Method};
pub(super) use self::output::{Length, Request, Unsent};

/// Largest head of an answer.
pub(super) const MAX_HEAD: usize = 64 * 1024;
/// Most header fields of an answer.
pub(super) const MAX_FIELDS: usize = 128;
/// Most `1xx` answers before the real one.
const MAX_INTERIM: usize = 16;
/// Room for the next read while a head is awaited: most answers fit whole.
const READ_HEAD: usize = 8 * 1024;
/// Most bytes of a body that are read at a time. They leave as four TLS records, 88 bytes longer, and
/// with those they fit into the largest packet that the kernel makes of one write: 65,160 bytes where
/// segments have 1,448, 65,483 on loopback. Half a KiB more costs a second packet each time, and
/// a tenth of a gigabyte's CPU.
const READ_BODY: usize = 64 * 1024 - 512;
/// Buffers of idle connections are not larger than this.
const KEPT: usize = 16 * 1024;

/// What went wrong with an answer.
#[derive(Debug, thiserror::Error)]
pub(super) enum Fault {
    /// The connection failed.
    #[error("{0}")]
    Io(#[from] io::Error),
    /// It ended in the middle of an answer, or before one.
    #[error("it hung up {0}")]
    Short(&'static str),
    /// It is not HTTP/1, or its end is unclear, or it is too large.
    #[error("{0}")]
    Malformed(&'static str),
}

/// A connection that speaks HTTP/1.1.
///
/// What takes the connection over for another protocol needs the stream and what was read ahead;
/// everything else here belongs to the exchange.
#[derive(Debug)]
pub(super) struct Wire<S> {
    stream: S,
    /// Read, but not used yet.
    input: BytesMut,
    output: Output,
    lines: Lines,
    memo: Memo,
    interim: usize,
    incoming: Incoming,
    /// Whether the connection can carry another exchange after this one, as far as its answer says.
    lasting: bool,
    /// Whether any byte came since the request was begun.
    answered: bool,
    /// Whether the request asked for another protocol.
    switching: bool,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Wire<S> {
    /// A connection on which nothing was said yet.
    pub(super) fn new(stream: S) -> Self {
        Self {
            stream,
            input: BytesMut::new(),
            output: Output::default(),
            lines: Lines::default(),
            memo: Memo::default(),
            interim: 0,
            incoming: Incoming::Nothing,
            lasting: true,
            answered: false,
            switching: false,
        }
    }

    /// Whether the other side keeps silent, as it has to between exchanges. It may have hung up, or
    /// sent what nobody asked for; then the connection must not be used. Costs a system call only if
    /// something arrived.
    pub(super) fn quiet(&mut self, cx: &mut Context<'_>) -> bool {
        // Whatever it is, it is not used.
        let mut unasked = [0];
        let mut unasked = ReadBuf::new(&mut unasked);
        self.input.is_empty()
            && Pin::new(&mut self.stream)
                .poll_read(cx, &mut unasked)
                .is_pending()
    }

    /// [`Wire::quiet`] without anybody who waits for it.
    pub(super) fn still_quiet(&mut self) -> bool {
        self.quiet(&mut Context::from_waker(Waker::noop()))
    }

    /// Begins an exchange.
    ///
    /// # Errors
    /// When the target has bytes that do not belong into a request line.
    pub(super) fn begin<'a, F>(&mut self, request: Request<'a, F>) -> Result<(), Unsent>
    where
        F: Iterator<Item = (&'a HeaderName, &'a HeaderValue)>,
    {
        self.lines = Lines::default();
        self.interim = 0;
        self.incoming = Incoming::Nothing;
        self.lasting = true;
        self.answered = false;
        self.output.begin(request)
    }

    /// The request that was begun asks for another protocol, so that a 101 is an answer to it. The
    /// connection carries no other exchange then, whatever the answer: who cannot say where this one
    /// ends must not be asked again.
    pub(super) fn may_switch(&mut self) {
        self.switching = true;
    }

    /// The stream, and what was read ahead of it: the first bytes of the other protocol.
    pub(super) fn into_parts(self) -> (S, Bytes) {
        // A copy: the buffer is as large as a head may be, and would be kept for as long as this is.
        (self.stream, Bytes::copy_from_slice(&self.input))
    }

    /// Sends the request, its body as it comes, and is ready when the last byte has left.
    pub(super) fn poll_send<B>(
        &mut self,
        body: Pin<&mut B>,
        cx: &mut Context<'_>,
    ) -> Poll<Result<(), Unsent<B::Error>>>
    where
        B: HttpBody<Data = Bytes>,
    {
        self.output.poll_send(&mut self.stream, body, cx)
    }

    /// Whether the request was sent to its end.
    pub(super) fn sent(&self) -> bool {
        self.output.sent()
    }

    /// How many bytes of the request have left.
    pub(super) fn written(&self) -> u64 {
        self.output.written()
    }

    /// Whether everything that came of the request's body has left, and more is awaited.
    pub(super) fn starving(&self) -> bool {
        self.output.starving()
    }

    /// Whether any byte of an answer came.
    pub(super) fn answered(&self) -> bool {
        self.answered
    }

    /// Reads the head of the answer to a request of this method.
    pub(super) fn poll_head(
        &mut self,
        method: Method,
        cx: &mut Context<'_>,
    ) -> Poll<Result<Answer, Fault>> {
        loop {
            while let Some(head) = self.take_head(method).map_err(Fault::Malformed)? {
                let switched = head.answer.status == http::StatusCode::SWITCHING_PROTOCOLS;
                if switched && self.switching {
                    return Poll::Ready(Ok(head.answer));
                }
                if head.answer.status.is_informational() {
                    self.interim += 1;
                    if switched {
                        return Poll::Ready(Err(Fault::Malformed("it switched protocols unasked")));
                    }
                    if self.interim > MAX_INTERIM {
                        return Poll::Ready(Err(Fault::Malformed("it sent too many 1xx answers")));
                    }
                    continue;
                }
                self.incoming = head.incoming;
                self.lasting = head.lasting;
                // What framing there is of an end that is here already is taken in at once.
                self.incoming.advance(&mut self.input)?;
                return Poll::Ready(Ok(head.answer));
            }
            // What speaks another protocol may never send an empty line.
            if !head::begins(&self.input) {
                return Poll::Ready(Err(Fault::Malformed(head::NOT_HTTP)));
            }
            if ready!(self.poll_fill(READ_HEAD, cx))? == 0 {
                let before = if self.answered {
                    "in the head of its answer"
                } else {
                    "before it answered"
                };
                return Poll::Ready(Err(Fault::Short(before)));
            }
            self.answered = true;
        }
    }

    /// The head that the input begins with, if all of it is there.
    fn take_head(&mut self, method: Method) -> Result<Option<Head>, &'static str> {
        if self.input.is_empty() {
            return Ok(None);
        }
        // One that came in pieces was looked at before, and is read: so each byte is looked at once.
        if self.lines.unseen()
            && let Some((end, head)) = self.memo.recall(&self.input, method)
        {
            self.input.advance(end);
            return Ok(Some(head));
        }
        let Some(end) = self.lines.end(&self.input, MAX_HEAD, MAX_FIELDS + 1)? else {
            return Ok(None);
        };
        let fields = self.lines.count().saturating_sub(1);
        self.lines = Lines::default();
        let text = self.input.split_to(end).freeze();
        let head = head::parse(&text, fields, method)?;
        // Those that come before the answer are few.
        if !head.answer.status.is_informational() {
            self.memo.missed(&text);
        }
        Ok(Some(head))
    }

    /// The whole body, if all of it was read with the head and it has no trailers.
    pub(super) fn whole_body(&mut self) -> Option<Bytes> {
        self.incoming.whole(&mut self.input)
    }

    /// The next piece of the answer's body, or its trailers; `None` at its end.
    pub(super) fn poll_frame(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Fault>>> {
        loop {
            match self.incoming.next(&mut self.input) {
                Ok(Some(frame)) => return Poll::Ready(Some(Ok(frame))),
                Ok(None) if self.incoming.ended() => return Poll::Ready(None),
                Ok(None) => {}
                Err(fault) => return Poll::Ready(Some(Err(fault))),
            }
            let room = self.incoming.room(READ_HEAD, READ_BODY);
            match ready!(self.poll_fill(room, cx)) {
                Ok(0) => match self.incoming.hung_up() {
                    Ok(()) => return Poll::Ready(None),
                    Err(fault) => return Poll::Ready(Some(Err(fault))),
                },
                Ok(_) => {}
                Err(error) => return Poll::Ready(Some(Err(error.into()))),
            }
        }
    }

    /// Whether the answer was read to its end.
    pub(super) fn ended(&self) -> bool {
        self.incoming.ended()
    }

    /// How much of the answer's body is still to come.
    pub(super) fn size_hint(&self) -> SizeHint {
        self.incoming.size_hint()
    }

    /// Whether the next exchange may use this connection: both messages ended where they said, and
    /// nothing follows.
    pub(super) fn reusable(&mut self) -> bool {
        let reusable =
            self.lasting && !self.switching && self.sent() && self.ended() && self.input.is_empty();
        if self.input.capacity() > KEPT {
            self.input = BytesMut::new();
        }
        self.output.shrink(KEPT);
        reusable
    }

    /// Says goodbye, as far as that is possible at once.
    pub(super) fn part(&mut self) {
        let cx = &mut Context::from_waker(Waker::noop());
        // An idle connection has nothing to lose.
        let _ = Pin::new(&mut self.stream).poll_shutdown(cx);
    }

    /// Reads what there is, into at least `room` bytes, up to [`READ_BODY`]; 0 at the end of the stream.
    fn poll_fill(&mut self, room: usize, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        self.input.reserve(room);
        // Not `try_read`: a short read by `poll_read` tells tokio that the socket is empty, which
        // saves the call that would find it so.
        let mut input = (&mut self.input).limit(READ_BODY);
        pin!(self.stream.read_buf(&mut input)).poll(cx)
    }
}
