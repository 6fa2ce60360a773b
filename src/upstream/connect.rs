//! New connections: TCP, TLS, and for HTTP/2 hyper's handshake, all within one deadline. The driver
//! of an HTTP/2 connection runs on the core that made it.

use std::cell::{Cell, RefCell};
use std::future::{Future, poll_fn};
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use hyper::client::conn::http2;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::task::spawn_local;
use tokio::time::{Instant, sleep, timeout};

use super::Failure;
use super::http2::Outbound;
use super::resolve::Target;
use super::wire::MAX_HEAD;
use crate::tls;
use crate::tls::client::{ClientConfig, TlsStream};

/// How often an HTTP/2 connection is asked whether it still lives.
const PING_EVERY: Duration = Duration::from_secs(20);
/// How long its answer may take.
const PING_TIMEOUT: Duration = Duration::from_secs(10);
/// What the upstream may send ahead on one stream, and on a whole HTTP/2 connection.
const STREAM_WINDOW: u32 = 1 << 20;
const CONNECTION_WINDOW: u32 = 4 << 20;
/// How often a connection is asked whether its settings have come.
const LOOK_EVERY: Duration = Duration::from_millis(2);
/// What may wait to be sent on one HTTP/2 stream.
const SEND_BUFFER: usize = 256 * 1024;

/// A connection for one exchange at a time.
#[derive(Debug)]
pub(super) enum Stream {
    /// As it is.
    Plain(TcpStream),
    /// Over TLS. Boxed: it is many times as large.
    Secure(Box<TlsStream<TcpStream>>),
}

/// A connection for many exchanges.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) sender: http2::SendRequest<Outbound>,
    /// Whether the endpoint has said that it opens tunnels on streams.
    pub(super) tunnels: Rc<Extended>,
}

/// Whether an endpoint opens tunnels on streams (RFC 8441 section 3). Only the library's connection
/// knows, and it tells nobody when the settings have come: its task looks when it is asked to.
#[derive(Debug, Default)]
pub(super) struct Extended {
    said: Cell<bool>,
    task: RefCell<Option<Waker>>,
}

impl Extended {
    /// Looks until the endpoint has said so, at least once, and not beyond `until`.
    pub(super) async fn said(&self, until: Instant) -> bool {
        loop {
            if self.said.get() {
                return true;
            }
            let asked = Instant::now();
            if let Some(task) = self.task.borrow_mut().take() {
                task.wake();
            }
            sleep(LOOK_EVERY).await;
            if asked >= until {
                return self.said.get();
            }
        }
    }
}

/// Runs hyper's futures on this core.
#[derive(Debug, Clone, Copy)]
pub(super) struct Local;

impl<F: Future + 'static> hyper::rt::Executor<F> for Local {
    fn execute(&self, future: F) {
        spawn_local(async move {
            future.await;
        });
    }
}

/// Connects for HTTP/1.1.
///
/// # Errors
/// [`Failure::Unreachable`], or [`Failure::Slow`] when it took longer than `wait`.
pub(super) async fn exclusive(
    target: &Target,
    tls: Option<&Arc<ClientConfig>>,
    wait: Duration,
) -> Result<Stream, Failure> {
    within(wait, async {
        let stream = tcp(target).await?;
        Ok(match tls {
            None => Stream::Plain(stream),
            Some(tls) => Stream::Secure(Box::new(secure(target, tls, stream).await?)),
        })
    })
    .await
}

/// Connects for HTTP/2.
///
/// # Errors
/// As [`exclusive`]; also when the endpoint does not agree on `h2`.
pub(super) async fn shared(
    target: &Target,
    tls: Option<&Arc<ClientConfig>>,
    wait: Duration,
) -> Result<Shared, Failure> {
    within(wait, async {
        let stream = tcp(target).await?;
        let Some(tls) = tls else {
            return http2_on(stream).await;
        };
        let stream = secure(target, tls, stream).await?;
        if stream.get_ref().1.alpn_protocol() != Some(b"h2") {
            let why = "the endpoint did not agree on h2".to_owned();
            return Err(Failure::Unreachable(why));
        }
        http2_on(stream).await
    })
    .await
}

async fn within<T>(
    wait: Duration,
    connecting: impl Future<Output = Result<T, Failure>>,
) -> Result<T, Failure> {
    // Boxed: a TLS handshake is a large future, and connecting is rare.
    match timeout(wait, Box::pin(connecting)).await {
        Ok(result) => result,
        Err(_) => Err(Failure::Slow("connecting")),
    }
}

async fn tcp(target: &Target) -> Result<TcpStream, Failure> {
    let connected = TcpStream::connect(target.address).await;
    let stream = connected.map_err(|error| Failure::Unreachable(error.to_string()))?;
    // A head must not wait for the acknowledgement of the one before.
    if let Err(error) = stream.set_nodelay(true) {
        return Err(Failure::Unreachable(error.to_string()));
    }
    Ok(stream)
}

async fn secure(
    target: &Target,
    tls: &Arc<ClientConfig>,
    stream: TcpStream,
) -> Result<TlsStream<TcpStream>, Failure> {
    let name = target.endpoint.server_name.clone();
    let connected = tls::client::connect(tls, name, stream).await;
    connected.map_err(|error| Failure::Unreachable(format!("TLS: {error}")))
}

async fn http2_on<T>(stream: T) -> Result<Shared, Failure>
where
    T: AsyncRead + AsyncWrite + Unpin + 'static,
{
    let head = u32::try_from(MAX_HEAD).unwrap_or(u32::MAX);
    let (sender, mut connection) = http2::Builder::new(Local)
        .timer(TokioTimer::new())
        .keep_alive_interval(PING_EVERY)
        .keep_alive_timeout(PING_TIMEOUT)
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_header_list_size(head)
        .max_send_buf_size(SEND_BUFFER)
        .handshake(TokioIo::new(stream))
        .await
        .map_err(|error| Failure::Unreachable(error.to_string()))?;
    let tunnels = Rc::new(Extended::default());
    let found = Rc::clone(&tunnels);
    spawn_local(poll_fn(move |cx| {
        let ended = Pin::new(&mut connection).poll(cx);
        found
            .said
            .set(connection.is_extended_connect_protocol_enabled());
        found.task.replace(Some(cx.waker().clone()));
        ended.map(|_| ())
    }));
    Ok(Shared { sender, tunnels })
}

impl AsyncRead for Stream {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_read(cx, buf),
            Self::Secure(stream) => Pin::new(stream).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for Stream {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_write(cx, buf),
            Self::Secure(stream) => Pin::new(stream).poll_write(cx, buf),
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_write_vectored(cx, bufs),
            Self::Secure(stream) => Pin::new(stream).poll_write_vectored(cx, bufs),
        }
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_flush(cx),
            Self::Secure(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_shutdown(cx),
            Self::Secure(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}
