//! Exchanges with real servers on loopback that misbehave at the level of bytes.

mod identity;
mod pooling;
mod secure;
mod streaming;

use std::cell::RefCell;
use std::future::Future;
use std::path::Path;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use ::http::header::{HeaderMap, HeaderName};
use ::http::{Method, Response};
use bytes::Bytes;
use http_body::Frame;
use http_body_util::BodyExt;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::task::{LocalSet, spawn_local};

use super::headers::Fields;
use super::http::{Outgoing, Terms, exchange};
use super::{Bounds, Failure, Pools, Trail, Upstream, UpstreamConfig};
use crate::body::{self, Body, BodyError};
use crate::metrics::Metrics;
use crate::request::Rules;
use crate::schema::{Compile, Size, Span};

/// Runs a test on a core of its own, with a deadline.
pub(super) fn core<F: Future<Output = ()>>(test: F) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    LocalSet::new().block_on(&runtime, async {
        tokio::time::timeout(Duration::from_secs(30), test)
            .await
            .expect("the test takes too long");
    });
}

/// An upstream that behaves as `serve` says: it gets the number of the connection and its socket.
pub(super) struct Server {
    pub(super) address: String,
    /// Heads as they came, in order.
    pub(super) heads: Rc<RefCell<Vec<String>>>,
    pub(super) connections: Rc<RefCell<usize>>,
}

pub(super) type Heads = Rc<RefCell<Vec<String>>>;

pub(super) async fn server<F, R>(serve: F) -> Server
where
    F: Fn(usize, TcpStream, Heads) -> R + 'static,
    R: Future<Output = ()> + 'static,
{
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let heads = Heads::default();
    let connections = Rc::new(RefCell::new(0));
    let (seen, count) = (Rc::clone(&heads), Rc::clone(&connections));
    spawn_local(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let index = *count.borrow();
            *count.borrow_mut() += 1;
            spawn_local(serve(index, stream, Rc::clone(&seen)));
        }
    });
    Server {
        address,
        heads,
        connections,
    }
}

/// Reads one head; `None` when the peer hung up first.
pub(super) async fn head(stream: &mut TcpStream, heads: &Heads) -> Option<String> {
    let mut bytes = Vec::new();
    while !bytes.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        if !matches!(stream.read(&mut byte).await, Ok(1)) {
            return None;
        }
        bytes.push(byte[0]);
    }
    let text = String::from_utf8(bytes).unwrap();
    heads.borrow_mut().push(text.clone());
    Some(text)
}

/// Waits until the peer has hung up, throwing away what it sends.
pub(super) async fn hung_up(stream: &mut TcpStream) {
    let mut sink = [0; 1024];
    while matches!(stream.read(&mut sink).await, Ok(read) if read > 0) {}
}

pub(super) const OK: &[u8] = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";

/// Answers every request on every connection with the same bytes.
pub(super) async fn always(answer: &'static [u8]) -> Server {
    server(move |_, mut stream, heads| async move {
        while head(&mut stream, &heads).await.is_some() {
            if stream.write_all(answer).await.is_err() {
                return;
            }
        }
    })
    .await
}

pub(super) fn upstream(yaml: &str) -> Arc<Upstream> {
    compile(yaml, None).unwrap()
}

pub(super) fn compile(yaml: &str, previous: Option<&Arc<Upstream>>) -> Option<Arc<Upstream>> {
    let config: UpstreamConfig = serde_yaml::from_str(yaml).unwrap();
    let mut cx = Compile::new(Path::new("gateway.yaml"), Arc::new(Metrics::default()));
    let compiled = config.compile("test", previous, &mut cx);
    let (problems, _) = cx.finish();
    if compiled.is_none() {
        eprintln!("{problems:?}");
    }
    compiled
}

pub(super) fn to(server: &Server, more: &str) -> Arc<Upstream> {
    upstream(&format!("endpoints: ['http://{}']\n{more}", server.address))
}

pub(super) fn bounds() -> Bounds {
    Bounds {
        head_timeout: Span::seconds(5),
        idle_timeout: Span::seconds(5),
        total_timeout: Span::seconds(20),
        max_body: Size::kib(64),
    }
}

/// A request under way to an upstream.
pub(super) struct Call<'a> {
    pub(super) upstream: &'a Arc<Upstream>,
    pub(super) pools: &'a Pools,
    pub(super) method: Method,
    pub(super) target: &'static str,
    pub(super) headers: HeaderMap,
    pub(super) body: Body,
    pub(super) bounds: Bounds,
    pub(super) trail: Trail,
}

pub(super) fn call<'a>(upstream: &'a Arc<Upstream>, pools: &'a Pools) -> Call<'a> {
    Call {
        upstream,
        pools,
        method: Method::GET,
        target: "/",
        headers: HeaderMap::new(),
        body: body::empty(),
        bounds: bounds(),
        trail: Trail::default(),
    }
}

impl Call<'_> {
    pub(super) fn post(mut self, body: Body) -> Self {
        self.method = Method::POST;
        self.body = body;
        self
    }

    pub(super) async fn head(&mut self) -> Result<Response<Body>, Failure> {
        let (path, query) = match self.target.split_once('?') {
            Some((path, query)) => (path, Some(query)),
            None => (self.target, None),
        };
        let outgoing = Outgoing {
            method: &self.method,
            path,
            query,
            host: "api.example.test",
            fields: Fields::of(&self.headers),
            accepts_trailers: true,
        };
        let rules = Arc::new(Rules {
            owned: [HeaderName::from_static("x-user-id")].into_iter().collect(),
            ..Rules::default()
        });
        exchange(
            &self.upstream.core,
            self.pools,
            &outgoing,
            std::mem::replace(&mut self.body, body::empty()),
            Terms {
                bounds: &self.bounds,
                head_timeout: Duration::from_secs(30),
                rules: &rules,
            },
            &mut self.trail,
        )
        .await
    }

    /// The status and the whole body.
    pub(super) async fn whole(mut self) -> Result<(u16, String), Failure> {
        let response = self.head().await?;
        let status = response.status().as_u16();
        let body = response.into_body().collect().await.unwrap().to_bytes();
        Ok((status, String::from_utf8(body.to_vec()).unwrap()))
    }
}

/// A body that a test feeds frame by frame.
pub(super) struct Fed(mpsc::UnboundedReceiver<Result<Frame<Bytes>, BodyError>>);

pub(super) type Feed = mpsc::UnboundedSender<Result<Frame<Bytes>, BodyError>>;

pub(super) fn fed() -> (Feed, Body) {
    let (feed, body) = mpsc::unbounded_channel();
    (feed, Body::stream(Fed(body)))
}

pub(super) fn data(feed: &Feed, text: &'static str) {
    let _ = feed.send(Ok(Frame::data(Bytes::from_static(text.as_bytes()))));
}

impl http_body::Body for Fed {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        self.0.poll_recv(cx)
    }
}

/// Waits until `condition` holds; the test's deadline bounds it.
pub(super) async fn until(condition: impl Fn() -> bool) {
    let mut look = tokio::time::interval(Duration::from_millis(2));
    while !condition() {
        look.tick().await;
    }
}
