//! Spans to a collector: OTLP/HTTP with JSON bodies, written here by hand.
//!
//! The OpenTelemetry crates would bring a second HTTP client, protobuf and some thirty crates that
//! move in lockstep, for a document of one shape that the protocol also defines as JSON
//! (opentelemetry-proto, `docs/specification.md`, "JSON Protobuf Encoding"). There is one post at a
//! time, each on a connection of its own.

use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use bytes::Bytes;
use http::{Request, Uri, header};
use http_body_util::{BodyExt, Full, Limited};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use rustls_pki_types::ServerName;
use serde_json::{Value, json};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::runtime::Handle;
use tokio::sync::mpsc::{Receiver, Sender, channel};
use tokio::time::timeout;

use super::TraceContext;
use crate::metrics::Metrics;
use crate::request::RequestId;
use crate::schema::Compile;
use crate::tls;
use crate::tls::client::{ClientConfig, ClientTlsConfig};

/// Finished requests that may wait.
const QUEUE: usize = 2048;

/// Finished requests in one post.
const BATCH: usize = 256;

/// How long a first span waits for company.
const GATHER: Duration = Duration::from_secs(2);

/// How long one post may take, from connecting to the collector's answer.
const POST_TIMEOUT: Duration = Duration::from_secs(5);

/// The largest answer that is read; it is only read to be complete.
const MAX_ANSWER: usize = 64 * 1024;

/// How often a failing collector is complained about.
const COMPLAIN_EVERY: Duration = Duration::from_secs(60);

/// One finished request, as traces see it.
#[derive(Debug, Clone)]
pub struct Finished {
    /// The trace and our place in it.
    pub trace: TraceContext,
    /// When the head of the request was read.
    pub began: SystemTime,
    /// From there to the decision.
    pub decided: Option<Duration>,
    /// From there to the head of the answer.
    pub head: Option<Duration>,
    /// From there to the last byte.
    pub total: Duration,
    /// The method.
    pub method: String,
    /// The path, cut.
    pub path: String,
    /// `http` or `https`.
    pub scheme: &'static str,
    /// The host asked for.
    pub host: Option<String>,
    /// `HTTP/1.1`, `HTTP/2`.
    pub protocol: &'static str,
    /// The client's address.
    pub client: IpAddr,
    /// The answer's status.
    pub status: Option<u16>,
    /// The route's name.
    pub route: Option<String>,
    /// The policy's name.
    pub policy: Option<String>,
    /// `allow` or `deny`.
    pub decision: Option<&'static str>,
    /// The decision's id.
    pub decision_id: Option<RequestId>,
    /// The code of the refusal.
    pub refusal: Option<String>,
    /// The upstream's name.
    pub upstream: Option<String>,
    /// The endpoint that answered.
    pub endpoint: Option<String>,
    /// The request's id.
    pub request_id: RequestId,
    /// How it ended.
    pub outcome: &'static str,
}

/// The collector.
#[derive(Debug, Clone)]
pub(super) struct Target {
    host: String,
    port: u16,
    authority: String,
    path: String,
    /// For https.
    tls: Option<(Arc<ClientConfig>, ServerName<'static>)>,
}

impl Target {
    /// Reads the collector's base; problems are reported at `endpoint` and `tls`.
    pub(super) fn compile(endpoint: &str, tls: &ClientTlsConfig, cx: &mut Compile) -> Option<Self> {
        let parsed = endpoint.parse::<Uri>().ok().and_then(|uri| {
            let authority = uri.authority()?;
            let secure = match uri.scheme_str() {
                Some("http") => false,
                Some("https") => true,
                Some(_) | None => return None,
            };
            let host = authority.host().trim_matches(['[', ']']).to_owned();
            let name = tls.server_name.as_deref().unwrap_or(&host).to_owned();
            let name = ServerName::try_from(name).ok().filter(|_| secure);
            let fine = uri.query().is_none()
                && !authority.as_str().contains('@')
                && !host.is_empty()
                && name.is_some() == secure;
            let target = Self {
                host,
                port: authority.port_u16().unwrap_or(4318),
                authority: authority.to_string(),
                path: format!("{}/v1/traces", uri.path().trim_end_matches('/')),
                tls: None,
            };
            fine.then_some((target, name))
        });
        let Some((mut target, name)) = parsed else {
            cx.at("endpoint", |cx| {
                cx.problem_help(
                    format!("`{endpoint}` is not the base of a collector"),
                    "write `http://HOST:PORT` or `https://HOST:PORT`, such as \
                     `http://127.0.0.1:4318`",
                );
            });
            return None;
        };
        cx.at("tls", |cx| match name {
            Some(name) => {
                target.tls = Some((tls.compile(&[b"http/1.1"], cx)?, name));
                Some(target)
            }
            None if *tls == ClientTlsConfig::default() => Some(target),
            None => {
                cx.problem_help(
                    "the collector is spoken to without TLS",
                    "write `https://` in `endpoint`, or remove `tls`",
                );
                None
            }
        })
    }
}

/// The queue of finished requests, and who empties it.
#[derive(Debug)]
pub(super) struct Exporter {
    sender: Sender<Finished>,
    /// Taken by the task that sends.
    idle: Mutex<Option<Sending>>,
}

#[derive(Debug)]
struct Sending {
    receiver: Receiver<Finished>,
    target: Target,
    service: String,
    metrics: Arc<Metrics>,
    complained: Option<Instant>,
}

impl Exporter {
    pub(super) fn new(target: Target, service: &str, metrics: Arc<Metrics>) -> Self {
        let (sender, receiver) = channel(QUEUE);
        let sending = Sending {
            receiver,
            target,
            service: service.to_owned(),
            metrics,
            complained: None,
        };
        Self {
            sender,
            idle: Mutex::new(Some(sending)),
        }
    }

    /// `false` when there is no room.
    pub(super) fn queue(&self, finished: Finished) -> bool {
        self.sender.try_send(finished).is_ok()
    }

    /// Sends from now on, until the exporter is dropped and the queue is empty.
    pub(super) fn start(&self, control: &Handle) {
        let idle = self
            .idle
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        if let Some(sending) = idle {
            control.spawn(sending.run());
        }
    }
}

impl Sending {
    async fn run(mut self) {
        let mut batch = Vec::with_capacity(BATCH);
        while let Some(first) = self.receiver.recv().await {
            batch.push(first);
            let gathered = async {
                while batch.len() < BATCH {
                    match self.receiver.recv().await {
                        Some(next) => batch.push(next),
                        None => return,
                    }
                }
            };
            // Either the batch is full, or nobody sends any more, or enough time has passed.
            let _ = timeout(GATHER, gathered).await;
            let count = u64::try_from(batch.len()).unwrap_or(u64::MAX);
            let body = document(&self.service, &batch).to_string();
            batch.clear();
            let posted = timeout(POST_TIMEOUT, post(&self.target, body)).await;
            let failure = match posted {
                Ok(Ok(())) => None,
                Ok(Err(error)) => Some(error),
                Err(_) => Some("the collector is too slow".into()),
            };
            self.metrics.spans(count, failure.is_none());
            if let Some(error) = failure
                && self
                    .complained
                    .is_none_or(|before| before.elapsed() >= COMPLAIN_EVERY)
            {
                self.complained = Some(Instant::now());
                tracing::warn!(%error, collector = %self.target.authority, "spans were lost");
            }
        }
    }
}

type PostError = Box<dyn std::error::Error + Send + Sync>;

async fn post(target: &Target, body: String) -> Result<(), PostError> {
    let stream = TcpStream::connect((target.host.as_str(), target.port)).await?;
    match &target.tls {
        None => exchange(target, stream, body).await,
        Some((config, name)) => {
            let stream = tls::client::connect(config, name.clone(), stream).await?;
            exchange(target, stream, body).await
        }
    }
}

async fn exchange<S>(target: &Target, stream: S, body: String) -> Result<(), PostError>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    let request = Request::post(&target.path)
        .header(header::HOST, &target.authority)
        .header(header::CONTENT_TYPE, "application/json")
        .header(header::CONNECTION, "close")
        .body(Full::new(Bytes::from(body)))?;
    let answered = async {
        let response = sender.send_request(request).await?;
        let status = response.status();
        Limited::new(response.into_body(), MAX_ANSWER)
            .collect()
            .await?;
        if status.is_success() {
            Ok(())
        } else {
            Err(PostError::from(format!("the collector answered {status}")))
        }
    };
    // The connection moves only while it is polled, and ends with the answer.
    tokio::pin!(answered);
    tokio::select! {
        biased;
        result = &mut answered => result,
        result = connection => {
            result?;
            answered.await
        }
    }
}

fn document(service: &str, batch: &[Finished]) -> Value {
    let spans: Vec<Value> = batch.iter().flat_map(spans).collect();
    json!({
        "resourceSpans": [{
            "resource": { "attributes": [
                text("service.name", service),
                text("service.version", env!("CARGO_PKG_VERSION")),
            ] },
            "scopeSpans": [{
                "scope": { "name": "portcullis", "version": env!("CARGO_PKG_VERSION") },
                "spans": spans,
            }],
        }],
    })
}

/// The server span, and below it one for deciding and one for forwarding.
fn spans(finished: &Finished) -> Vec<Value> {
    let at = |offset: Duration| nanos(finished.began + offset);
    let server = json!({
        "traceId": finished.trace.trace_id.as_str(),
        "spanId": finished.trace.span_id.as_str(),
        "parentSpanId": finished.trace.parent_id.as_ref().map_or("", |id| id.as_str()),
        "traceState": finished.trace.state.as_deref().unwrap_or_default(),
        // Low cardinality: the method and the route, never the path.
        "name": match &finished.route {
            Some(route) => format!("{} {route}", finished.method),
            None => finished.method.clone(),
        },
        "kind": 2,
        "startTimeUnixNano": at(Duration::ZERO),
        "endTimeUnixNano": at(finished.total),
        "attributes": attributes(finished),
        // Only faults of the server side are errors of a server span.
        "status": { "code": u8::from(finished.status.is_none_or(|s| s >= 500)) * 2 },
    });
    let child = |name: &str, kind: u8, from: Duration, to: Duration| {
        json!({
            "traceId": finished.trace.trace_id.as_str(),
            "spanId": format!("{:016x}", rand::random::<u64>().max(1)),
            "parentSpanId": finished.trace.span_id.as_str(),
            "name": name,
            "kind": kind,
            "startTimeUnixNano": at(from),
            "endTimeUnixNano": at(to),
        })
    };
    let mut spans = vec![server];
    if let Some(decided) = finished.decided {
        spans.push(child("decide", 1, Duration::ZERO, decided));
        if let (Some("allow"), Some(head)) = (finished.decision, finished.head) {
            spans.push(child("forward", 3, decided, head));
        }
    }
    spans
}

fn attributes(finished: &Finished) -> Vec<Value> {
    let mut attributes = vec![
        text("http.request.method", &finished.method),
        text("url.scheme", finished.scheme),
        text("url.path", &finished.path),
        text(
            "network.protocol.version",
            finished.protocol.trim_start_matches("HTTP/"),
        ),
        text("client.address", &finished.client.to_string()),
        text("portcullis.request_id", finished.request_id.as_str()),
        text("portcullis.outcome", finished.outcome),
    ];
    if let Some(status) = finished.status {
        attributes.push(json!({
            "key": "http.response.status_code",
            "value": { "intValue": status.to_string() },
        }));
    }
    let known = [
        ("server.address", finished.host.as_deref()),
        ("portcullis.route", finished.route.as_deref()),
        ("portcullis.policy", finished.policy.as_deref()),
        ("portcullis.decision", finished.decision),
        (
            "portcullis.decision_id",
            finished.decision_id.as_ref().map(RequestId::as_str),
        ),
        ("portcullis.upstream", finished.upstream.as_deref()),
        ("portcullis.endpoint", finished.endpoint.as_deref()),
        ("error.type", finished.refusal.as_deref()),
    ];
    for (key, value) in known {
        if let Some(value) = value {
            attributes.push(text(key, value));
        }
    }
    attributes
}

fn text(key: &str, value: &str) -> Value {
    json!({ "key": key, "value": { "stringValue": value } })
}

/// Nanoseconds since 1970 as text, for JSON numbers are too short for them.
fn nanos(at: SystemTime) -> String {
    at.duration_since(SystemTime::UNIX_EPOCH)
        .map_or(0, |elapsed| elapsed.as_nanos())
        .to_string()
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    use super::*;

    fn finished() -> Finished {
        Finished {
            trace: TraceContext {
                trace_id: "a".repeat(32).parse().unwrap(),
                parent_id: Some("b".repeat(16).parse().unwrap()),
                span_id: "c".repeat(16).parse().unwrap(),
                sampled: true,
                state: None,
            },
            began: SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000_000),
            decided: Some(Duration::from_millis(1)),
            head: Some(Duration::from_millis(2)),
            total: Duration::from_millis(3),
            method: "GET".into(),
            path: "/orders/1".into(),
            scheme: "https",
            host: Some("h.test".into()),
            protocol: "HTTP/2",
            client: IpAddr::from([192, 0, 2, 1]),
            status: Some(200),
            route: Some("read-order".into()),
            policy: Some("orders".into()),
            decision: Some("allow"),
            decision_id: Some(RequestId::random()),
            refusal: None,
            upstream: Some("orders".into()),
            endpoint: None,
            request_id: RequestId::random(),
            outcome: "complete",
        }
    }

    #[test]
    fn spans_have_the_shape_of_the_protocol() {
        let document = document("gw", &[finished()]);
        let spans = &document["resourceSpans"][0]["scopeSpans"][0]["spans"];
        let server = &spans[0];
        assert_eq!(server["name"], "GET read-order");
        assert_eq!(server["kind"], 2);
        assert_eq!(server["parentSpanId"], "b".repeat(16));
        assert_eq!(server["startTimeUnixNano"], "1000000000000000000");
        assert_eq!(server["endTimeUnixNano"], "1000000000003000000");
        assert_eq!(server["status"]["code"], 0);
        let has = |key: &str, value: Value| {
            let wanted = json!({ "key": key, "value": value });
            assert!(
                server["attributes"].as_array().unwrap().contains(&wanted),
                "{wanted}"
            );
        };
        has("http.request.method", json!({ "stringValue": "GET" }));
        has("http.response.status_code", json!({ "intValue": "200" }));
        has("portcullis.decision", json!({ "stringValue": "allow" }));
        assert_eq!(spans[1]["name"], "decide");
        assert_eq!(spans[2]["name"], "forward");
        assert_eq!(spans[2]["parentSpanId"], "c".repeat(16));
    }

    #[test]
    fn only_bases_are_collectors() {
        let mut cx = Compile::new(Path::new("gateway.yaml"), Arc::default());
        let tls = ClientTlsConfig::default();
        let target = Target::compile("http://[::1]:4318/otlp/", &tls, &mut cx).unwrap();
        assert_eq!((target.host.as_str(), target.port), ("::1", 4318));
        assert_eq!(target.path, "/otlp/v1/traces");
        for bad in [
            "",
            "127.0.0.1:4318",
            "ftp://c",
            "https://",
            "http://u:p@c",
            "http://c?x",
            "unix:/x",
        ] {
            assert!(Target::compile(bad, &tls, &mut cx).is_none(), "{bad}");
        }
        let target = Target::compile("https://collector.test", &tls, &mut cx).unwrap();
        assert!(target.tls.is_some() && target.port == 4318);
        // Trust for a connection that has none would be a misunderstanding.
        let named = ClientTlsConfig {
            server_name: Some("c".to_owned()),
            ..tls
        };
        assert!(Target::compile("http://c", &named, &mut cx).is_none());
    }

    #[tokio::test]
    async fn finished_requests_reach_the_collector_and_failures_are_counted() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let endpoint = format!("http://{}", listener.local_addr().unwrap());
        let mut cx = Compile::new(Path::new("gateway.yaml"), Arc::default());
        let target = Target::compile(&endpoint, &ClientTlsConfig::default(), &mut cx).unwrap();
        let metrics = Arc::new(Metrics::default());
        let exporter = Exporter::new(target, "gw", Arc::clone(&metrics));
        exporter.start(&Handle::current());
        for status in ["200 OK", "503 Service Unavailable"] {
            assert!(exporter.queue(finished()));
            let (mut peer, _) = listener.accept().await.unwrap();
            let mut seen = Vec::new();
            while !seen.ends_with(b"]}]}]}") {
                let mut buffer = [0; 4096];
                let read = peer.read(&mut buffer).await.unwrap();
                assert!(read > 0, "the post ended early");
                seen.extend_from_slice(&buffer[..read]);
            }
            assert!(seen.starts_with(b"POST /v1/traces HTTP/1.1\r\n"));
            let answer = format!("HTTP/1.1 {status}\r\ncontent-length: 2\r\n\r\n{{}}");
            peer.write_all(answer.as_bytes()).await.unwrap();
        }
        let counted = async {
            loop {
                let text = metrics.encode();
                if text.contains("portcullis_spans_exported_total 1\n")
                    && text.contains("portcullis_spans_dropped_total 1\n")
                {
                    break;
                }
                tokio::task::yield_now().await;
            }
        };
        timeout(Duration::from_secs(10), counted).await.unwrap();
    }

    #[test]
    fn a_full_queue_loses_spans_and_never_waits() {
        let mut cx = Compile::new(Path::new("gateway.yaml"), Arc::default());
        let target =
            Target::compile("http://127.0.0.1:9", &ClientTlsConfig::default(), &mut cx).unwrap();
        let exporter = Exporter::new(target, "gw", Arc::default());
        let taken = (0..QUEUE + 10)
            .filter(|_| exporter.queue(finished()))
            .count();
        assert_eq!(taken, QUEUE);
    }
}
