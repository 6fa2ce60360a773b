//! The client's end of tunnels: a whole connection of HTTP/1, or a stream of HTTP/2.

use std::cell::RefCell;
use std::future::Future;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use hyper::upgrade::{OnUpgrade, Upgraded};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::watch;

use super::activity::{Activity, Stream, TunnelInFlight};
use super::http::Phase;
use super::tap::Tap;
use crate::tunnel::{Near, Running, Tunnel};

/// A tunnel whose opening is on its way to the client.
#[derive(Debug)]
pub(super) struct Opened {
    tunnel: Tunnel,
    guard: TunnelInFlight,
    phase: watch::Receiver<Phase>,
}

/// Where the service of a connection of HTTP/1 leaves it. Hardly any connection becomes a tunnel, so none
/// holds room for one.
pub(super) type Slot = Rc<RefCell<Option<Box<Opened>>>>;

impl Opened {
    /// A tunnel that counts as a request until it has ended, and hears of the end of draining.
    pub(super) fn new(
        tunnel: Tunnel,
        guard: TunnelInFlight,
        phase: watch::Receiver<Phase>,
    ) -> Self {
        Self {
            tunnel,
            guard,
            phase,
        }
    }

    /// Runs on a connection of its own.
    pub(super) fn on_connection<S>(self, tap: Tap<S>) -> Pin<Box<dyn Future<Output = ()>>>
    where
        S: AsyncRead + AsyncWrite + Unpin + 'static,
    {
        Box::pin(self.run(tap))
    }

    /// Runs on a stream, beside the others of its connection.
    pub(super) async fn on_stream(
        self,
        upgrade: OnUpgrade,
        activity: Rc<Activity>,
        stream: Rc<Stream>,
    ) {
        let Ok(upgraded) = upgrade.await else {
            // The client is gone already, and nobody else will ever say so of the stream.
            activity.forget(&stream);
            return;
        };
        let near = OnStream {
            io: TokioIo::new(upgraded),
            stream,
            blocked: false,
            shut: false,
        };
        self.run(near).await;
    }

    fn run<N: Near>(self, near: N) -> Running<N, TunnelInFlight> {
        let mut phase = self.phase;
        let leave = async move {
            // A closed channel means that the worker is gone.
            let _ = phase.wait_for(|phase| *phase == Phase::Cut).await;
        };
        self.tunnel.run(near, leave, self.guard)
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> Near for Tap<S> {
    /// Reading tells.
    fn poll_gone(&mut self, _cx: &mut Context<'_>) -> Poll<()> {
        Poll::Pending
    }

    /// Dropping it closes the connection.
    fn reset(&mut self) {}
}

/// A stream of HTTP/2 as a stream of bytes. hyper's half of it that sends is a task of its own, which
/// `stream` watches.
struct OnStream {
    io: TokioIo<Upgraded>,
    stream: Rc<Stream>,
    /// The client takes nothing at the moment.
    blocked: bool,
    shut: bool,
}

impl Near for OnStream {
    /// A client that resets the stream says so to the half that sends; to the one that reads, a
    /// `CANCEL` looks like the end.
    fn poll_gone(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        // Once we have said our last byte, that half has nothing left to do.
        if !self.shut && self.stream.is_gone(cx.waker()) {
            return Poll::Ready(());
        }
        Poll::Pending
    }

    fn reset(&mut self) {
        self.stream.cut();
    }
}

impl AsyncRead for OnStream {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().io).poll_read(cx, buf)
    }
}

impl AsyncWrite for OnStream {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        let me = self.get_mut();
        let written = Pin::new(&mut me.io).poll_write(cx, buf);
        match (written.is_pending(), me.blocked) {
            (true, false) => me.stream.offer(),
            (false, true) => me.stream.await_upstream(),
            (true, true) | (false, false) => {}
        }
        me.blocked = written.is_pending();
        written
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let first = bufs.iter().find(|buf| !buf.is_empty());
        self.poll_write(cx, first.map_or(&[], |buf| buf))
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().io).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let me = self.get_mut();
        me.shut = true;
        ready!(Pin::new(&mut me.io).poll_shutdown(cx))?;
        Poll::Ready(Ok(()))
    }
}
