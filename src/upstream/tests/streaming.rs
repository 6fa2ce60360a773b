//! Bodies both ways: bounded, and tied to each other.

use std::convert::Infallible;
use std::rc::Rc;
use std::sync::Arc;

use ::http::header::HeaderMap;
use ::http::{HeaderValue, Method, Request, Response};
use http_body::Frame;
use http_body_util::BodyExt;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::task::spawn_local;

use super::{Heads, OK, Server, always, call, core, data, fed, head, hung_up, server, to, until};
use crate::body;
use crate::schema::{Size, Span};
use crate::upstream::connect::Local;
use crate::upstream::{Failure, Pools, RequestBodyFault, StreamFault};

fn fault(result: Result<Response<body::Body>, Failure>) -> RequestBodyFault {
    match result {
        Err(Failure::RequestBody(fault)) => fault,
        Err(other) => panic!("{other}"),
        Ok(_) => panic!("it was answered"),
    }
}

#[test]
fn a_body_known_to_be_too_large_is_refused_before_connecting() {
    core(async {
        let server = always(OK).await;
        let upstream = to(&server, "");
        let pools = Pools::default();
        let mut post = call(&upstream, &pools).post(body::full("123456"));
        post.bounds.max_body = Size::bytes(5);
        assert_eq!(fault(post.head().await), RequestBodyFault::TooLarge);
        assert_eq!(post.trail.attempts, 0);
        assert_eq!(*server.connections.borrow(), 0);
    });
}

#[test]
fn a_body_that_turns_out_too_large_is_cut_off() {
    core(async {
        let server = server(|_, mut stream, heads| async move {
            head(&mut stream, &heads).await;
            hung_up(&mut stream).await;
        })
        .await;
        let upstream = to(&server, "");
        let pools = Pools::default();
        let (feed, body) = fed();
        data(&feed, "1234");
        data(&feed, "5678");
        let mut post = call(&upstream, &pools).post(body);
        post.bounds.max_body = Size::bytes(5);
        assert_eq!(fault(post.head().await), RequestBodyFault::TooLarge);
    });
}

#[test]
fn a_body_that_stalls_is_given_up() {
    core(async {
        let server = server(|_, mut stream, heads| async move {
            head(&mut stream, &heads).await;
            hung_up(&mut stream).await;
            heads.borrow_mut().push("closed".to_owned());
        })
        .await;
        let upstream = to(&server, "");
        let pools = Pools::default();
        let (feed, body) = fed();
        data(&feed, "1234");
        let mut post = call(&upstream, &pools).post(body);
        post.bounds.idle_timeout = Span::millis(100);
        assert_eq!(fault(post.head().await), RequestBodyFault::TooSlow);
        until(|| server.heads.borrow().len() == 2).await;
    });
}

#[test]
fn a_body_that_breaks_off_is_the_clients_fault() {
    core(async {
        let server = server(|_, mut stream, heads| async move {
            head(&mut stream, &heads).await;
            hung_up(&mut stream).await;
        })
        .await;
        let upstream = to(&server, "");
        let pools = Pools::default();
        let (feed, body) = fed();
        data(&feed, "1234");
        feed.send(Err("gone".into())).unwrap();
        let mut post = call(&upstream, &pools).post(body);
        assert_eq!(fault(post.head().await), RequestBodyFault::BrokenOff);
    });
}

#[test]
fn an_answer_that_stalls_or_never_ends_is_given_up() {
    core(async {
        let server = server(|_, mut stream, heads| async move {
            let request = head(&mut stream, &heads).await.unwrap();
            let _ = stream
                .write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 1000000\r\n\r\nabc")
                .await;
            if request.starts_with("GET /drip") {
                while stream.write_all(b"x").await.is_ok() {
                    tokio::task::yield_now().await;
                }
            }
            hung_up(&mut stream).await;
            heads.borrow_mut().push("closed".to_owned());
        })
        .await;
        let upstream = to(&server, "");
        let pools = Pools::default();
        for (target, expected) in [("/", StreamFault::Idle), ("/drip", StreamFault::Total)] {
            let mut get = call(&upstream, &pools);
            get.target = target;
            get.bounds.idle_timeout = Span::millis(100);
            get.bounds.total_timeout = Span::millis(300);
            let error = get.head().await.unwrap().into_body().collect().await;
            let error = error.unwrap_err();
            assert_eq!(error.downcast_ref(), Some(&expected), "{error}");
        }
        until(|| server.heads.borrow().len() == 4).await;
    });
}

#[test]
fn an_early_answer_is_relayed_and_ends_the_upload() {
    core(async {
        let server = server(|_, mut stream, heads| async move {
            head(&mut stream, &heads).await;
            let _ = stream
                .write_all(b"HTTP/1.1 413 Too Large\r\ncontent-length: 3\r\n\r\nno!")
                .await;
            hung_up(&mut stream).await;
            heads.borrow_mut().push("closed".to_owned());
        })
        .await;
        let upstream = to(&server, "");
        let pools = Pools::default();
        let (feed, body) = fed();
        data(&feed, "1234");
        let answer = call(&upstream, &pools).post(body).whole().await.unwrap();
        assert_eq!(answer, (413, "no!".to_owned()));
        until(|| server.heads.borrow().len() == 2).await;
        until(|| feed.is_closed()).await;
        // What was not sent is not taken for the head of the next request.
        call(&upstream, &pools).whole().await.unwrap();
        assert_eq!(*server.connections.borrow(), 2);
    });
}

#[test]
fn bodies_stream_both_ways_at_once() {
    core(async {
        let server = server(|_, mut stream, heads| async move {
            head(&mut stream, &heads).await;
            let _ = stream
                .write_all(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nhi\r\n")
                .await;
            let mut body = [0; 64];
            let mut seen = Vec::new();
            while !seen.ends_with(b"0\r\n\r\n") {
                let read = stream.read(&mut body).await.unwrap();
                seen.extend_from_slice(&body[..read]);
            }
            let _ = stream.write_all(b"3\r\nbye\r\n0\r\n\r\n").await;
            hung_up(&mut stream).await;
        })
        .await;
        let upstream = to(&server, "");
        let pools = Pools::default();
        let (feed, body) = fed();
        let response = call(&upstream, &pools).post(body).head().await.unwrap();
        let mut body = response.into_body();
        let first = body.frame().await.unwrap().unwrap().into_data().unwrap();
        assert_eq!(first, "hi");
        data(&feed, "more");
        drop(feed);
        assert_eq!(body.collect().await.unwrap().to_bytes(), "bye");
    });
}

#[test]
fn a_get_with_a_body_of_unknown_length_keeps_it() {
    core(async {
        let server = server(|_, mut stream, heads| async move {
            head(&mut stream, &heads).await;
            let mut body = [0; 12];
            let _ = stream.read_exact(&mut body).await;
            let text = String::from_utf8_lossy(&body).into_owned();
            heads.borrow_mut().push(text);
            let _ = stream.write_all(OK).await;
        })
        .await;
        let upstream = to(&server, "");
        let pools = Pools::default();
        let (feed, body) = fed();
        data(&feed, "12");
        drop(feed);
        let mut get = call(&upstream, &pools).post(body);
        get.method = Method::GET;
        assert_eq!(get.head().await.unwrap().status(), 200);
        let heads = server.heads.borrow();
        assert!(heads[0].contains("transfer-encoding: chunked\r\n"));
        assert_eq!(heads[1], "2\r\n12\r\n0\r\n\r\n");
    });
}

/// An HTTP/2 server that sends back what it gets, and the names of the trailers it saw.
async fn echo() -> Server {
    server(|_, stream, heads: Heads| async move {
        let service = service_fn(move |request: Request<Incoming>| {
            let heads = Rc::clone(&heads);
            async move {
                let line = format!(
                    "{} {} te={:?} host={}",
                    request.method(),
                    request.uri(),
                    request.headers().get("te"),
                    request.headers().contains_key("host"),
                );
                heads.borrow_mut().push(line);
                if request.uri().path() == "/hang" {
                    let guard = Gone(Rc::clone(&heads));
                    std::future::pending::<()>().await;
                    drop(guard);
                }
                let collected = request.into_body().collect().await;
                let Ok(collected) = collected else {
                    heads.borrow_mut().push("broken".to_owned());
                    return Ok::<_, Infallible>(Response::new(body::empty()));
                };
                let trailers = collected.trailers().cloned().unwrap_or_default();
                let names: Vec<&str> = trailers.keys().map(|name| name.as_str()).collect();
                let mut fields = HeaderMap::new();
                fields.insert("grpc-status", HeaderValue::from_static("0"));
                fields.insert("seen", names.join(" ").parse().unwrap());
                fields.insert("set-cookie", HeaderValue::from_static("a=b"));
                let frames: Vec<Result<Frame<bytes::Bytes>, body::BodyError>> = vec![
                    Ok(Frame::data(collected.to_bytes())),
                    Ok(Frame::trailers(fields)),
                ];
                let frames = Frames(frames.into_iter());
                let frames = body::Body::stream(frames);
                Ok(Response::new(frames))
            }
        });
        let _ = hyper::server::conn::http2::Builder::new(Local)
            .serve_connection(TokioIo::new(stream), service)
            .await;
    })
    .await
}

/// Notes when a request's handler was dropped.
struct Gone(Heads);

impl Drop for Gone {
    fn drop(&mut self) {
        self.0.borrow_mut().push("gone".to_owned());
    }
}

struct Frames(std::vec::IntoIter<Result<Frame<bytes::Bytes>, body::BodyError>>);

impl http_body::Body for Frames {
    type Data = bytes::Bytes;
    type Error = body::BodyError;

    fn poll_frame(
        mut self: std::pin::Pin<&mut Self>,
        _: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<Result<Frame<bytes::Bytes>, body::BodyError>>> {
        std::task::Poll::Ready(self.0.next())
    }
}

#[test]
fn trailers_travel_both_ways_over_http2_without_what_only_we_may_say() {
    core(async {
        let server = echo().await;
        let upstream = to(&server, "protocol: http2");
        let pools = Pools::default();
        let (feed, body) = fed();
        data(&feed, "ping");
        let mut fields = HeaderMap::new();
        for name in ["x-user-id", "x_user_id", "authorization", "x-checksum"] {
            fields.insert(name, HeaderValue::from_static("1"));
        }
        feed.send(Ok(Frame::trailers(fields))).unwrap();
        drop(feed);
        let mut post = call(&upstream, &pools).post(body);
        post.target = "/orders.Orders/Get?x=1";
        let response = post.head().await.unwrap();
        let collected = response.into_body().collect().await.unwrap();
        let trailers = collected.trailers().unwrap();
        assert_eq!(trailers["grpc-status"], "0");
        assert_eq!(trailers["seen"], "x-checksum");
        assert!(!trailers.contains_key("set-cookie"));
        assert_eq!(collected.to_bytes(), "ping");
        assert_eq!(
            server.heads.borrow()[0],
            "POST http://api.example.test/orders.Orders/Get?x=1 te=Some(\"trailers\") host=false"
        );
    });
}

#[test]
fn http2_exchanges_share_a_connection() {
    core(async {
        let server = echo().await;
        let upstream = to(&server, "protocol: http2");
        let pools = Rc::new(Pools::default());
        let calls: Vec<_> = (0..20)
            .map(|_| {
                let (upstream, pools) = (Arc::clone(&upstream), Rc::clone(&pools));
                spawn_local(async move {
                    let posted = call(&upstream, &pools).post(body::full("x"));
                    posted.whole().await.unwrap()
                })
            })
            .collect();
        for call in calls {
            assert_eq!(call.await.unwrap(), (200, "x".to_owned()));
        }
        assert_eq!(*server.connections.borrow(), 1);
    });
}

#[test]
fn the_cap_on_streams_opens_another_connection() {
    core(async {
        let server = echo().await;
        let upstream = to(&server, "protocol: http2\npool: { max_streams: 1 }");
        let pools = Rc::new(Pools::default());
        let (theirs, pool) = (Arc::clone(&upstream), Rc::clone(&pools));
        let hanging = spawn_local(async move {
            let mut get = call(&theirs, &pool);
            get.target = "/hang";
            let _ = get.head().await;
        });
        until(|| server.heads.borrow().len() == 1).await;
        let posted = call(&upstream, &pools).post(body::full("x"));
        assert_eq!(posted.whole().await.unwrap().1, "x");
        assert_eq!(*server.connections.borrow(), 2);
        // A hang-up resets the stream.
        hanging.abort();
        until(|| server.heads.borrow().iter().any(|line| line == "gone")).await;
    });
}

#[test]
fn a_dropped_answer_resets_its_stream_and_the_upload() {
    core(async {
        let server = echo().await;
        let upstream = to(&server, "protocol: http2");
        let pools = Rc::new(Pools::default());
        let (feed, body) = fed();
        data(&feed, "part");
        let (theirs, pool) = (Arc::clone(&upstream), Rc::clone(&pools));
        let hanging = spawn_local(async move {
            let _ = call(&theirs, &pool).post(body).head().await;
        });
        until(|| server.heads.borrow().len() == 1).await;
        hanging.abort();
        until(|| server.heads.borrow().iter().any(|line| line == "broken")).await;
        until(|| feed.is_closed()).await;
        // The connection lives on.
        let posted = call(&upstream, &pools).post(body::full("x"));
        assert_eq!(posted.whole().await.unwrap().1, "x");
        assert_eq!(*server.connections.borrow(), 1);
    });
}

#[test]
fn a_connection_that_says_goodbye_is_replaced() {
    core(async {
        let server = server(|_, stream, _| async move {
            let service = service_fn(|_: Request<Incoming>| async {
                Ok::<_, Infallible>(Response::new(body::full("ok")))
            });
            let connection = hyper::server::conn::http2::Builder::new(Local)
                .serve_connection(TokioIo::new(stream), service);
            let mut connection = std::pin::pin!(connection);
            // GOAWAY as soon as possible: what is under way is answered.
            connection.as_mut().graceful_shutdown();
            let _ = connection.await;
        })
        .await;
        let upstream = to(
            &server,
            "protocol: http2\nretries: { attempts: 5, budget: 1.0 }",
        );
        let pools = Pools::default();
        let mut answered = 0;
        for _ in 0..5 {
            answered += usize::from(call(&upstream, &pools).whole().await.is_ok());
        }
        assert!(*server.connections.borrow() > 1 || answered == 5);
    });
}

/// An HTTP/2 server that answers the first stream, resets the second, and answers the rest.
async fn resetting(reason: h2::Reason) -> Server {
    server(move |_, stream, heads| async move {
        let mut connection = h2::server::handshake(stream).await.unwrap();
        while let Some(Ok((request, mut respond))) = connection.accept().await {
            heads.borrow_mut().push(request.uri().to_string());
            if heads.borrow().len() == 2 {
                respond.send_reset(reason);
            } else {
                let _ = respond.send_response(Response::new(()), true);
            }
        }
    })
    .await
}

#[test]
fn a_refused_stream_is_sent_again_and_a_reset_one_is_not() {
    core(async {
        for (reason, answered) in [
            (h2::Reason::REFUSED_STREAM, true),
            (h2::Reason::INTERNAL_ERROR, false),
        ] {
            let server = resetting(reason).await;
            let upstream = to(&server, "protocol: http2");
            let pools = Pools::default();
            call(&upstream, &pools).whole().await.unwrap();
            let second = call(&upstream, &pools).whole().await;
            match second {
                Ok(answer) => assert!(answered, "{answer:?}"),
                Err(failure) => {
                    assert!(!answered, "{failure}");
                    assert!(matches!(failure, Failure::Broken(_)), "{failure}");
                }
            }
            let expected = if answered { 3 } else { 2 };
            assert_eq!(server.heads.borrow().len(), expected);
        }
    });
}
