//! The stream under hyper: watches what is read, notes what cannot be written, and closes so that
//! the last answer arrives.

use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::activity::Activity;
use super::frames::Frames;
use super::framing::{Found, Framing};

/// The watcher of what is read.
#[derive(Debug)]
pub(super) enum Watch {
    Http1(Framing),
    Http2(Frames),
    /// Nothing: the connection has become a tunnel, and its bytes are no requests.
    Nothing,
}

/// A stream with its watchers.
#[derive(Debug)]
pub(super) struct Tap<S> {
    stream: S,
    /// Bytes that were read before anybody asked for them: to tell the protocols apart, or by a
    /// parked connection.
    ahead: Bytes,
    /// What went wrong with that, to be told after these bytes.
    failed: Option<io::Error>,
    watch: Watch,
    activity: Rc<Activity>,
    closing: Closing,
    /// The peer has said its last byte.
    ended: bool,
}

#[derive(Debug, PartialEq, Eq)]
enum Closing {
    Open,
    /// Our side is shut; what still arrives is thrown away.
    Lingering,
}

/// How much is thrown away at once while lingering.
const SCRATCH: usize = 4096;
/// How much of what wakes a parked connection is read for it.
const PIECE: usize = 1024;

impl<S> Tap<S> {
    pub(super) fn new(stream: S, ahead: Bytes, watch: Watch, activity: Rc<Activity>) -> Self {
        Self {
            stream,
            ahead,
            failed: None,
            watch,
            activity,
            closing: Closing::Open,
            ended: false,
        }
    }

    fn watch(&mut self, bytes: &[u8]) -> io::Result<()> {
        let activity = &self.activity;
        match &mut self.watch {
            Watch::Http1(framing) => {
                let mut refused = true;
                framing.scan(bytes, |found| match found {
                    Found::Head(verdict) => activity.head_read(verdict),
                    Found::BadChunk => refused = activity.spoil(),
                });
                activity.mid_head(framing.mid_head());
                activity.mid_body(framing.mid_body());
                if !refused {
                    let error = "a chunk that can be read in several ways";
                    return Err(io::Error::new(io::ErrorKind::InvalidData, error));
                }
            }
            Watch::Http2(frames) => {
                if frames.scan(bytes, activity.written()).is_err() {
                    activity.flooded();
                    return Err(io::Error::other("too many frames that bring nothing"));
                }
                if frames.begun() {
                    activity.begun();
                }
                activity.mid_head(frames.mid_head());
            }
            Watch::Nothing => {}
        }
        Ok(())
    }

    /// Nothing happens here for some time. `left` is what hyper had read and not used: between
    /// requests nothing but empty lines, which are told again, and change nothing for the watcher.
    pub(super) fn rest(&mut self, left: Bytes) {
        // A copy, also of nothing: what is left, be it empty, is a part of hyper's whole buffer, and
        // would hold its 8 KiB for as long as nothing happens.
        self.ahead = Bytes::copy_from_slice(&left);
        if let Watch::Http1(framing) = &mut self.watch {
            framing.rest();
        }
    }

    /// The connection is a tunnel from here on. `left` is what hyper had read behind the request: it
    /// was no request, and is the beginning of what goes through.
    pub(super) fn release(&mut self, left: Bytes) {
        self.watch = Watch::Nothing;
        self.activity.release();
        // A copy, also where there is nothing: what is left is a part of hyper's whole buffer.
        self.ahead = [&left[..], &self.ahead].concat().into();
    }

    fn note(&self, offered: usize, result: &Poll<io::Result<usize>>) {
        match result {
            Poll::Ready(Ok(bytes)) => self.activity.sent(*bytes, offered),
            Poll::Ready(Err(_)) => {}
            Poll::Pending => self.activity.block(),
        }
    }
}

impl<S: AsyncRead + Unpin> Tap<S> {
    /// Waits until there is something to read, be it the end or an error, and keeps it.
    pub(super) fn poll_ahead(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let mut piece = [0; PIECE];
        let mut buf = ReadBuf::new(&mut piece);
        match ready!(Pin::new(&mut self.stream).poll_read(cx, &mut buf)) {
            Ok(()) if self.ahead.is_empty() => self.ahead = Bytes::copy_from_slice(buf.filled()),
            Ok(()) => self.ahead = [&self.ahead, buf.filled()].concat().into(),
            Err(error) => self.failed = Some(error),
        }
        Poll::Ready(())
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Tap<S> {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let me = self.get_mut();
        let before = buf.filled().len();
        if !me.ahead.is_empty() {
            let here = me.ahead.len().min(buf.remaining());
            buf.put_slice(me.ahead.get(..here).unwrap_or_default());
            me.ahead.advance(here);
            if me.ahead.is_empty() {
                // Lets go of the buffer that it was a part of.
                me.ahead = Bytes::new();
            }
        } else if let Some(error) = me.failed.take() {
            return Poll::Ready(Err(error));
        } else {
            let result = Pin::new(&mut me.stream).poll_read(cx, buf);
            me.activity.starve(result.is_pending());
            ready!(result)?;
        }
        let read = buf.filled().get(before..).unwrap_or_default();
        me.ended |= read.is_empty();
        Poll::Ready(me.watch(read))
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Tap<S> {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        let me = self.get_mut();
        let result = Pin::new(&mut me.stream).poll_write(cx, buf);
        me.note(buf.len(), &result);
        result
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let me = self.get_mut();
        let result = Pin::new(&mut me.stream).poll_write_vectored(cx, bufs);
        me.note(bufs.iter().map(|buf| buf.len()).sum(), &result);
        result
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let me = self.get_mut();
        let result = Pin::new(&mut me.stream).poll_flush(cx);
        if result.is_pending() {
            me.activity.block();
        } else {
            me.activity.unblock();
        }
        result
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let me = self.get_mut();
        if matches!(me.watch, Watch::Nothing) {
            // The other direction may go on.
            return Pin::new(&mut me.stream).poll_shutdown(cx);
        }
        if me.closing == Closing::Open {
            match Pin::new(&mut me.stream).poll_shutdown(cx) {
                Poll::Ready(result) => result?,
                Poll::Pending => {
                    me.activity.block();
                    return Poll::Pending;
                }
            }
            me.closing = Closing::Lingering;
        }
        let mut scratch = [0; SCRATCH];
        while !me.ended {
            me.activity.linger();
            let mut buf = ReadBuf::new(&mut scratch);
            match ready!(Pin::new(&mut me.stream).poll_read(cx, &mut buf)) {
                Ok(()) if !buf.filled().is_empty() => {}
                Ok(()) | Err(_) => me.ended = true,
            }
        }
        Poll::Ready(Ok(()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_left_at_rest_does_not_hold_the_buffer_that_it_was_read_into() {
        for left in [0, 2] {
            let buffer = Bytes::from(vec![b'\n'; 8192]);
            let mut rest = buffer.clone();
            rest.advance(8192 - left);
            let mut tap = Tap::new((), Bytes::new(), Watch::Nothing, Activity::new());
            tap.rest(rest);
            assert!(buffer.is_unique());
            assert_eq!(tap.ahead.len(), left);
        }
    }
}
