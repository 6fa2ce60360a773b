//! A small HTTP client over loopback: one connection for one request, everything bounded.

use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Method, Request, Uri, header};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use rustls_pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;

/// Longest time for one request, all in all.
const DEADLINE: Duration = Duration::from_secs(15);
/// Largest answer, in bytes.
const MAX_ANSWER: usize = 1024 * 1024;

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub(super) enum CallError {
    /// The address is not one we can call.
    #[error("`{0}` is not an http or https address of this machine")]
    Address(String),
    /// Nobody listens there.
    #[error("cannot connect to {address}: {source}")]
    Connect {
        address: SocketAddr,
        source: std::io::Error,
    },
    /// TLS failed.
    #[error("TLS with {address} failed: {source}")]
    Tls {
        address: SocketAddr,
        source: std::io::Error,
    },
    /// The exchange broke off.
    #[error("the exchange broke off: {0}")]
    Exchange(String),
    /// It took too long.
    #[error("no answer within {} s", DEADLINE.as_secs())]
    Slow,
}

/// A whole answer.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) status: u16,
    pub(super) headers: HeaderMap,
    pub(super) body: Bytes,
}

impl Answer {
    /// The body as JSON; `null` when it is none.
    pub(super) fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body).unwrap_or_default()
    }

    /// A member of the JSON body by its pointer (RFC 6901); other values than texts as JSON.
    pub(super) fn text(&self, pointer: &str) -> String {
        match self.json().pointer(pointer) {
            None => "none".to_owned(),
            Some(serde_json::Value::String(text)) => text.clone(),
            Some(other) => other.to_string(),
        }
    }

    /// A header as text.
    pub(super) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }
}

/// One request to be sent.
#[derive(Clone)]
pub(super) struct Call {
    pub(super) method: Method,
    pub(super) url: String,
    pub(super) headers: Vec<(&'static str, String)>,
    pub(super) body: String,
    pub(super) tls: Option<TlsConnector>,
}

impl Call {
    /// A request without a body.
    pub(super) fn new(method: Method, url: impl Into<String>) -> Self {
        Self {
            method,
            url: url.into(),
            headers: Vec::new(),
            body: String::new(),
            tls: None,
        }
    }

    /// Sends it to the loopback address its URL names, whatever the host is called.
    pub(super) async fn send(&self) -> Result<Answer, CallError> {
        timeout(DEADLINE, self.exchange())
            .await
            .map_err(|_| CallError::Slow)?
    }

    async fn exchange(&self) -> Result<Answer, CallError> {
        let wrong = || CallError::Address(self.url.clone());
        let uri: Uri = self.url.parse().map_err(|_| wrong())?;
        let authority = uri.authority().ok_or_else(wrong)?;
        let secure = match uri.scheme_str() {
            Some("http") => false,
            Some("https") => true,
            _ => return Err(wrong()),
        };
        let port = authority
            .port_u16()
            .unwrap_or(if secure { 443 } else { 80 });
        let address = SocketAddr::from(([127, 0, 0, 1], port));
        let stream = TcpStream::connect(address)
            .await
            .map_err(|source| CallError::Connect { address, source })?;

        let target = uri.path_and_query().map_or("/", |path| path.as_str());
        let mut request = Request::builder()
            .method(self.method.clone())
            .uri(target)
            .header(header::HOST, authority.as_str());
        for (name, value) in &self.headers {
            request = request.header(*name, value);
        }
        let request = request
            .body(Full::new(Bytes::from(self.body.clone())))
            .map_err(|error| CallError::Exchange(error.to_string()))?;

        if !secure {
            return converse(stream, request).await;
        }
        let tls = self.tls.clone().ok_or_else(wrong)?;
        let name = ServerName::try_from(authority.host().to_owned()).map_err(|_| wrong())?;
        let stream = tls
            .connect(name, stream)
            .await
            .map_err(|source| CallError::Tls { address, source })?;
        converse(stream, request).await
    }
}

async fn converse(
    stream: impl AsyncRead + AsyncWrite + Send + Unpin + 'static,
    request: Request<Full<Bytes>>,
) -> Result<Answer, CallError> {
    let broken = |error: &dyn std::error::Error| CallError::Exchange(error.to_string());
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream))
        .await
        .map_err(|error| broken(&error))?;
    let exchange = async {
        let response = sender
            .send_request(request)
            .await
            .map_err(|error| broken(&error))?;
        let (head, body) = response.into_parts();
        let body = Limited::new(body, MAX_ANSWER)
            .collect()
            .await
            .map_err(|error| broken(error.as_ref()))?
            .to_bytes();
        Ok(Answer {
            status: head.status.as_u16(),
            headers: head.headers,
            body,
        })
    };
    let mut exchange = std::pin::pin!(exchange);
    let mut connection = std::pin::pin!(connection);
    tokio::select! {
        answer = &mut exchange => answer,
        // The connection may end with the answer already in hand.
        _ = &mut connection => exchange.await,
    }
}
