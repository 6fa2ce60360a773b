//! A connection to the server: dialled, encrypted and bounded by us.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use pin_project_lite::pin_project;
use redis::aio::{ConnectionLike, MultiplexedConnection};
use redis::{AsyncConnectionConfig, Cmd, Pipeline, RedisConnectionInfo, RedisError, Value};
use rustls_pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::task::JoinHandle;
use tokio::time::timeout;

use crate::tls::client::{self, ClientConfig};

/// The most bytes of one answer.
const MAX_ANSWER: usize = 32 << 20;

/// Where the server is and how to show oneself.
pub(super) struct Dial {
    pub(super) host: String,
    pub(super) port: u16,
    pub(super) tls: Option<(Arc<ClientConfig>, ServerName<'static>)>,
    pub(super) info: RedisConnectionInfo,
    /// The longest time for one command.
    pub(super) timeout: Duration,
}

/// Why the server is of no use now.
#[derive(Debug, thiserror::Error)]
pub(super) enum LinkError {
    #[error("it cannot be reached: {0}")]
    Connect(#[source] io::Error),
    #[error("it took longer than {0:?}")]
    Timeout(Duration),
    #[error("it answered with an error: {0}")]
    Redis(#[from] RedisError),
    #[error("what is held here cannot be read: {0}")]
    Held(#[source] io::Error),
    #[error("the index has no room for what it holds: raise `revocation.max_entries`")]
    Full,
    #[error("its answer is not of the form that was asked for")]
    Form,
}

/// A connection. Ends when it is dropped.
pub(super) struct Link {
    connection: MultiplexedConnection,
    driver: JoinHandle<()>,
    left: Arc<AtomicUsize>,
    timeout: Duration,
}

trait Socket: AsyncRead + AsyncWrite + Unpin + Send {}

impl<S: AsyncRead + AsyncWrite + Unpin + Send> Socket for S {}

impl Dial {
    /// Connects and shows itself, within the time for one command.
    ///
    /// # Errors
    /// [`LinkError`].
    pub(super) async fn link(&self) -> Result<Link, LinkError> {
        timeout(self.timeout, self.dial())
            .await
            .unwrap_or(Err(LinkError::Timeout(self.timeout)))
    }

    async fn dial(&self) -> Result<Link, LinkError> {
        let stream = TcpStream::connect((self.host.as_str(), self.port))
            .await
            .map_err(LinkError::Connect)?;
        stream.set_nodelay(true).map_err(LinkError::Connect)?;
        let socket: Box<dyn Socket> = match &self.tls {
            None => Box::new(stream),
            Some((config, name)) => Box::new(
                client::connect(config, name.clone(), stream)
                    .await
                    .map_err(LinkError::Connect)?,
            ),
        };
        let left = Arc::new(AtomicUsize::new(MAX_ANSWER));
        let bounded = Bounded {
            socket,
            left: Arc::clone(&left),
        };
        let config = AsyncConnectionConfig::new().set_response_timeout(Some(self.timeout));
        let (connection, driver) =
            MultiplexedConnection::new_with_config(&self.info, bounded, config).await?;
        Ok(Link {
            connection,
            driver: tokio::spawn(driver),
            left,
            timeout: self.timeout,
        })
    }
}

impl Link {
    /// Runs one command.
    ///
    /// # Errors
    /// [`LinkError`]; the connection is of no use then.
    pub(super) async fn run(&mut self, command: &Cmd) -> Result<Value, LinkError> {
        self.left.store(MAX_ANSWER, Ordering::Relaxed);
        let answer = self.connection.req_packed_command(command);
        let value = timeout(self.timeout, answer)
            .await
            .map_err(|_| LinkError::Timeout(self.timeout))??;
        Ok(value.extract_error()?)
    }

    /// Runs several commands; none of them may fail.
    ///
    /// # Errors
    /// As [`Link::run`].
    pub(super) async fn run_all(&mut self, pipeline: &Pipeline) -> Result<Vec<Value>, LinkError> {
        self.left.store(MAX_ANSWER, Ordering::Relaxed);
        let answers = pipeline.query_async::<Vec<Value>>(&mut self.connection);
        let values = timeout(self.timeout, answers)
            .await
            .map_err(|_| LinkError::Timeout(self.timeout))??;
        let values: Result<Vec<_>, _> = values.into_iter().map(Value::extract_error).collect();
        Ok(values?)
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        self.driver.abort();
    }
}

pin_project! {
    /// A socket that gives so many bytes until it is asked for more.
    struct Bounded {
        socket: Box<dyn Socket>,
        left: Arc<AtomicUsize>,
    }
}

impl AsyncRead for Bounded {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.project();
        let before = buf.filled().len();
        let polled = Pin::new(&mut **this.socket).poll_read(cx, buf);
        let read = buf.filled().len() - before;
        let kept = this
            .left
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| {
                left.checked_sub(read)
            });
        if kept.is_err() {
            return Poll::Ready(Err(io::Error::other("the answer is too large")));
        }
        polled
    }
}

impl AsyncWrite for Bounded {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut **self.project().socket).poll_write(cx, bytes)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut **self.project().socket).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut **self.project().socket).poll_shutdown(cx)
    }
}

/// A text; none for anything else.
pub(super) fn text(value: &Value) -> Option<&str> {
    if let Value::BulkString(bytes) = value {
        std::str::from_utf8(bytes).ok()
    } else if let Value::SimpleString(text) = value {
        Some(text)
    } else {
        None
    }
}

/// A list; an absent one is empty.
pub(super) fn list(value: &Value) -> Result<&[Value], LinkError> {
    if let Value::Array(items) = value {
        Ok(items)
    } else if *value == Value::Nil {
        Ok(&[])
    } else {
        Err(LinkError::Form)
    }
}
