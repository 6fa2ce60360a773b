//! Connections of HTTP/1 on which nothing happens.
//!
//! hyper keeps a read buffer, a write buffer and the last head's table of fields for as long as its
//! connection exists: about 18 KiB that an idle client holds for nothing. So a connection at rest is
//! taken apart and its stream waits alone; the first byte, the end of the stream or the order to close
//! builds hyper's connection again, as if it had never been gone: between requests it knows nothing
//! that a new one does not.

use std::future::Future;
use std::mem;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use hyper::server::conn::http1;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};

use super::activity::Activity;
use super::http::Service;
use super::tap::Tap;
use super::tunnel::Slot;

/// A connection that can be parked.
pub(super) struct Parkable<S, V: Service> {
    state: State<S, V>,
    settings: http1::Builder,
    activity: Rc<Activity>,
    /// What the last answer has opened.
    opened: Slot,
}

/// hyper's connection, on the heap: a parked one does not hold room for it either.
type Serving<S, V> = Box<http1::Connection<TokioIo<Tap<S>>, V>>;

enum State<S, V: Service> {
    Serving(Serving<S, V>),
    Parked(Tap<S>, V),
    /// No requests any more: the last one has opened this.
    Tunnel(Pin<Box<dyn Future<Output = ()>>>),
    /// hyper is through with it.
    Closing(Tap<S>),
    /// Between the two, never seen from outside.
    Moving,
}

impl<S, V> Parkable<S, V>
where
    S: AsyncRead + AsyncWrite + Unpin + 'static,
    V: Service,
{
    pub(super) fn new(
        tap: Tap<S>,
        service: V,
        settings: http1::Builder,
        activity: Rc<Activity>,
        opened: Slot,
    ) -> Self {
        let mut me = Self {
            state: State::Parked(tap, service),
            settings,
            activity,
            opened,
        };
        me.wake();
        me
    }

    /// Takes hyper's connection apart. Only to be called when [`Activity::at_rest`] says that hyper
    /// waits for a request and holds nothing.
    pub(super) fn park(&mut self) {
        match mem::replace(&mut self.state, State::Moving) {
            State::Serving(connection) => {
                let parts = connection.into_parts();
                let mut tap = parts.io.into_inner();
                tap.rest(parts.read_buf);
                self.state = State::Parked(tap, parts.service);
            }
            other @ (State::Parked(..) | State::Tunnel(_) | State::Closing(_) | State::Moving) => {
                self.state = other;
            }
        }
    }

    #[cfg(test)]
    pub(super) const fn is_parked(&self) -> bool {
        matches!(self.state, State::Parked(..))
    }

    /// Ends the connection in good order.
    pub(super) fn close(&mut self) {
        self.wake();
        if let State::Serving(connection) = &mut self.state {
            Pin::new(&mut **connection).graceful_shutdown();
        }
    }

    /// hyper is through with the connection.
    fn move_on(&mut self) {
        match mem::replace(&mut self.state, State::Moving) {
            State::Serving(connection) => {
                let parts = connection.into_parts();
                let mut tap = parts.io.into_inner();
                self.state = match self.opened.take() {
                    Some(opened) => {
                        tap.release(parts.read_buf);
                        State::Tunnel(opened.on_connection(tap))
                    }
                    None => State::Closing(tap),
                };
            }
            other @ (State::Parked(..) | State::Tunnel(_) | State::Closing(_) | State::Moving) => {
                self.state = other;
            }
        }
    }

    fn wake(&mut self) {
        match mem::replace(&mut self.state, State::Moving) {
            State::Parked(tap, service) => {
                let connection = self.settings.serve_connection(TokioIo::new(tap), service);
                self.state = State::Serving(Box::new(connection));
            }
            other @ (State::Serving(_) | State::Tunnel(_) | State::Closing(_) | State::Moving) => {
                self.state = other
            }
        }
    }
}

impl<S, V> Future for Parkable<S, V>
where
    S: AsyncRead + AsyncWrite + Unpin + 'static,
    V: Service + Unpin,
{
    type Output = hyper::Result<()>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<hyper::Result<()>> {
        let me = self.get_mut();
        if let State::Parked(tap, _) = &mut me.state {
            ready!(tap.poll_ahead(cx));
            me.wake();
            me.activity.woken();
        }
        if let State::Serving(connection) = &mut me.state {
            ready!(Pin::new(&mut **connection).poll(cx))?;
            me.move_on();
        }
        match &mut me.state {
            State::Tunnel(tunnel) => tunnel.as_mut().poll(cx).map(Ok),
            // Does nothing if hyper has done it. After a request for an upgrade it leaves that to
            // whoever takes the connection over, be there nobody.
            State::Closing(tap) => Pin::new(tap).poll_shutdown(cx).map(|_| Ok(())),
            State::Serving(_) | State::Parked(..) | State::Moving => Poll::Pending,
        }
    }
}
