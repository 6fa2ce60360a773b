//! Small writes gathered until the connection has nothing more to say.
//!
//! The HTTP/2 library writes after every DATA frame of some length: eight answers that are ready at
//! once leave as eight TLS records by eight system calls. Here they wait for each other, never
//! longer than the connection's own turn: its task calls [`Gather::poll_settle`] when it is through.

use std::cell::RefCell;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// So much is gathered at most: a TLS record. What is longer is written as it comes.
const MOST: usize = 16 * 1024;

/// A stream and what waits to be written to it; its clones are the same stream.
#[derive(Debug)]
pub(super) struct Gather<S>(Rc<RefCell<Gathered<S>>>);

#[derive(Debug)]
struct Gathered<S> {
    stream: S,
    waiting: Vec<u8>,
    /// How much of `waiting` was written.
    begin: usize,
    /// Whether something gathered has not left yet, be it that the stream holds it back.
    unsettled: bool,
}

impl<S> Gather<S> {
    pub(super) fn new(stream: S) -> Self {
        Self(Rc::new(RefCell::new(Gathered {
            stream,
            waiting: Vec::new(),
            begin: 0,
            unsettled: false,
        })))
    }
}

impl<S> Clone for Gather<S> {
    fn clone(&self) -> Self {
        Self(Rc::clone(&self.0))
    }
}

impl<S: AsyncWrite + Unpin> Gather<S> {
    /// Writes what waits, and whatever the stream itself holds back.
    pub(super) fn poll_settle(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let me = &mut *self.0.borrow_mut();
        if me.unsettled {
            me.poll_flush(cx)
        } else {
            // What was written past us is flushed by whoever wrote it.
            Poll::Ready(Ok(()))
        }
    }
}

impl<S: AsyncWrite + Unpin> Gathered<S> {
    /// Takes bytes in, if there is room for all of them.
    fn take(&mut self, bufs: &[IoSlice<'_>]) -> Option<usize> {
        let offered = bufs.iter().map(|buf| buf.len()).sum();
        // What was begun to be written is blocked: more would only wait longer, and unseen.
        if self.begin > 0 || self.waiting.len() + offered > MOST {
            return None;
        }
        if self.waiting.capacity() == 0 {
            self.waiting.reserve_exact(MOST);
        }
        for buf in bufs {
            self.waiting.extend_from_slice(buf);
        }
        self.unsettled = true;
        Some(offered)
    }

    /// Writes what waits.
    fn poll_empty(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while let Some(left @ [_, ..]) = self.waiting.get(self.begin..) {
            let written = ready!(Pin::new(&mut self.stream).poll_write(cx, left))?;
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.begin += written;
        }
        // An idle connection holds no buffer.
        self.waiting = Vec::new();
        self.begin = 0;
        Poll::Ready(Ok(()))
    }

    fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_empty(cx))?;
        ready!(Pin::new(&mut self.stream).poll_flush(cx))?;
        self.unsettled = false;
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Gather<S> {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0.borrow_mut().stream).poll_read(cx, buf)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Gather<S> {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(cx, &[IoSlice::new(buf)])
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let me = &mut *self.0.borrow_mut();
        if let Some(taken) = me.take(bufs) {
            return Poll::Ready(Ok(taken));
        }
        ready!(me.poll_empty(cx))?;
        match me.take(bufs) {
            Some(taken) => Poll::Ready(Ok(taken)),
            None => Pin::new(&mut me.stream).poll_write_vectored(cx, bufs),
        }
    }

    fn is_write_vectored(&self) -> bool {
        self.0.borrow().stream.is_write_vectored()
    }

    /// Holds back what is gathered; the connection's task settles it. Once the peer does not take
    /// it, nothing is held back any more, and the connection feels that.
    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let me = &mut *self.0.borrow_mut();
        if me.begin == 0 && !me.waiting.is_empty() {
            return Poll::Ready(Ok(()));
        }
        me.poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let me = &mut *self.0.borrow_mut();
        ready!(me.poll_empty(cx))?;
        Pin::new(&mut me.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use std::task::Waker;

    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    #[tokio::test]
    async fn small_writes_leave_together_when_they_are_settled() {
        let (near, mut far) = tokio::io::duplex(64 * 1024);
        let mut gather = Gather::new(near);
        let settle = gather.clone();
        for _ in 0..8 {
            gather.write_all(&[1; 1100]).await.unwrap();
            gather.flush().await.unwrap();
        }
        let mut seen = [0; 64 * 1024];
        let cx = &mut Context::from_waker(Waker::noop());
        assert!(pin_read(&mut far, cx, &mut seen).is_pending());
        assert!(settle.poll_settle(cx).is_ready());
        assert_eq!(far.read(&mut seen).await.unwrap(), 8800);
        assert_eq!(settle.0.borrow().waiting.capacity(), 0);

        // What does not fit goes behind what waits; the end takes everything along.
        gather.write_all(&[2; 100]).await.unwrap();
        gather.write_all(&[3; 20_000]).await.unwrap();
        gather.write_all(&[4; 100]).await.unwrap();
        gather.shutdown().await.unwrap();
        let mut all = Vec::new();
        drop((gather, settle));
        far.read_to_end(&mut all).await.unwrap();
        let wanted = [vec![2; 100], vec![3; 20_000], vec![4; 100]].concat();
        assert!(all == wanted);
    }

    #[tokio::test]
    async fn a_peer_that_takes_nothing_is_felt() {
        let (near, mut far) = tokio::io::duplex(1000);
        let mut gather = Gather::new(near);
        let cx = &mut Context::from_waker(Waker::noop());
        gather.write_all(&[1; 1500]).await.unwrap();
        assert!(gather.poll_settle(cx).is_pending());
        // Half of it has left: no more is taken, and nothing is said to be flushed.
        assert!(Pin::new(&mut gather).poll_write(cx, &[2]).is_pending());
        assert!(Pin::new(&mut gather).poll_flush(cx).is_pending());
        let mut seen = [0; 2000];
        assert_eq!(far.read(&mut seen).await.unwrap(), 1000);
        assert!(gather.poll_settle(cx).is_ready());
        assert_eq!(far.read(&mut seen).await.unwrap(), 500);
        gather.write_all(&[2]).await.unwrap();
        drop(far);
        assert!(matches!(gather.poll_settle(cx), Poll::Ready(Err(_))));
    }

    fn pin_read<S: AsyncRead + Unpin>(
        stream: &mut S,
        cx: &mut Context<'_>,
        seen: &mut [u8],
    ) -> Poll<io::Result<()>> {
        Pin::new(stream).poll_read(cx, &mut ReadBuf::new(seen))
    }
}
