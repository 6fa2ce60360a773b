//! The demo upstream: an order service that shows what it received.
//!
//! It verifies nothing on purpose. It stands behind the gateway, and what it echoes is what any
//! service there gets to see.

use std::convert::Infallible;
use std::io;
use std::net::TcpListener;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Method, Request, Response, StatusCode, header};
use http_body::Frame;
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use serde_json::{Map, Value, json};
use tokio::time::{Interval, interval, sleep};

use super::service::{Answer, Service, json as answer, read_body};
use super::websocket;

/// Largest body that is read.
const MAX_BODY: usize = 16 * 1024 * 1024;
/// How much of a body is shown.
const SHOWN_BODY: usize = 1024;
/// Longest wait that `/slow` can be asked for, in milliseconds.
const MAX_WAIT: u64 = 60_000;
/// How many ticks `/stream` and `/live` send when nobody hangs up.
const MAX_TICKS: u32 = 600;

/// The orders of the example: id, owner, item.
const ORDERS: [(&str, &str, &str); 3] = [
    ("1001", "alice", "a copper kettle"),
    ("1002", "dave", "twelve candles"),
    ("1003", "alice", "one left glove"),
];

/// A running demo upstream.
#[derive(Debug)]
pub struct Upstream {
    _service: Service,
}

impl Upstream {
    /// Starts the upstream on a bound loopback socket.
    ///
    /// # Errors
    /// When the thread cannot be started.
    pub(super) fn start(listener: TcpListener) -> io::Result<Self> {
        Ok(Self {
            _service: Service::start("demo-upstream", listener, handle)?,
        })
    }
}

async fn handle(mut request: Request<Incoming>) -> Answer {
    if let Some(answer) = websocket::accept(&mut request, "/live") {
        return answer;
    }
    let (head, body) = request.into_parts();
    let path = head.uri.path();
    match path {
        "/slow" => {
            let wait = head
                .uri
                .query()
                .and_then(|query| query.strip_prefix("ms="))
                .and_then(|number| number.parse().ok())
                .unwrap_or(5_000);
            sleep(Duration::from_millis(wait.min(MAX_WAIT))).await;
        }
        "/stream" | "/live" => return ticks(),
        _ => {}
    }
    let Some(body) = read_body(body, MAX_BODY).await else {
        return answer(
            StatusCode::PAYLOAD_TOO_LARGE,
            &json!({ "error": "the body is too long, too slow or broken off" }),
        );
    };
    let (status, result) = respond(&head.method, path);
    let shown = body.get(..SHOWN_BODY.min(body.len())).unwrap_or_default();
    answer(
        status,
        &json!({
            "result": result,
            "received": {
                "method": head.method.as_str(),
                "path": path,
                "query": head.uri.query(),
                "version": format!("{:?}", head.version),
                "headers": headers(&head.headers),
                "body_size": body.len(),
                "body": String::from_utf8_lossy(shown),
            },
        }),
    )
}

/// What the order service says.
fn respond(method: &Method, path: &str) -> (StatusCode, Value) {
    let order = |id: &str| {
        ORDERS
            .iter()
            .find(|(own, ..)| *own == id)
            .map(|(id, owner, item)| json!({ "id": id, "owner": owner, "item": item }))
    };
    match (method, path) {
        (&Method::GET | &Method::HEAD, "/orders") => {
            let all: Vec<Value> = ORDERS.iter().filter_map(|(id, ..)| order(id)).collect();
            (StatusCode::OK, all.into())
        }
        (&Method::POST, "/orders") => (StatusCode::CREATED, json!({ "id": "1004" })),
        (&Method::GET | &Method::HEAD, path) if path.starts_with("/orders/") => {
            match path.strip_prefix("/orders/").and_then(order) {
                Some(order) => (StatusCode::OK, order),
                None => (StatusCode::NOT_FOUND, json!("no such order")),
            }
        }
        _ => (StatusCode::OK, json!("hello from the demo upstream")),
    }
}

/// Headers as an object; a name that comes several times becomes a list.
fn headers(headers: &HeaderMap) -> Value {
    let mut shown = Map::new();
    for name in headers.keys() {
        let mut values: Vec<Value> = headers
            .get_all(name)
            .iter()
            .map(|value| String::from_utf8_lossy(value.as_bytes()).into())
            .collect();
        let value = match values.len() {
            1 => values.remove(0),
            _ => values.into(),
        };
        shown.insert(name.as_str().to_owned(), value);
    }
    shown.into()
}

/// Server-sent events, one a second, until the client hangs up.
fn ticks() -> Answer {
    let mut response = Response::new(
        Ticks {
            interval: interval(Duration::from_secs(1)),
            count: 0,
        }
        .boxed_unsync(),
    );
    response.headers_mut().insert(
        header::CONTENT_TYPE,
        header::HeaderValue::from_static("text/event-stream"),
    );
    response
}

struct Ticks {
    interval: Interval,
    count: u32,
}

impl http_body::Body for Ticks {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        if self.count >= MAX_TICKS {
            return Poll::Ready(None);
        }
        self.interval.poll_tick(cx).map(|_| {
            self.count += 1;
            let event = format!("event: tick\ndata: {}\n\n", self.count);
            Some(Ok(Frame::data(Bytes::from(event))))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::super::client::Call;
    use super::super::service::bind;
    use super::*;

    #[tokio::test]
    async fn it_shows_what_it_received() {
        let listener = bind(0).unwrap();
        let base = format!("http://{}", listener.local_addr().unwrap());
        let _upstream = Upstream::start(listener).unwrap();
        let mut call = Call::new(Method::POST, format!("{base}/orders?dry=1"));
        call.headers = vec![("x-user-id", "alice".to_owned())];
        call.body = "x".repeat(SHOWN_BODY + 1);

        let answer = call.send().await.unwrap();

        assert_eq!(answer.status, 201);
        let received = &answer.json()["received"];
        assert_eq!(received["method"], "POST");
        assert_eq!(received["query"], "dry=1");
        assert_eq!(received["headers"]["x-user-id"], "alice");
        assert_eq!(received["body_size"], SHOWN_BODY + 1);
        assert_eq!(received["body"].as_str().unwrap().len(), SHOWN_BODY);
    }

    #[test]
    fn unknown_orders_are_not_found() {
        assert_eq!(respond(&Method::GET, "/orders/1001").0, StatusCode::OK);
        assert_eq!(respond(&Method::GET, "/orders/9").0, StatusCode::NOT_FOUND);
    }
}
