//! Which connection, how often, and what happens to it afterwards.

use std::cell::RefCell;
use std::rc::Rc;

use ::http::{HeaderValue, Method};
use http_body_util::BodyExt;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpListener;
use tokio::task::spawn_local;

use super::{OK, always, bounds, call, compile, core, head, hung_up, server, to, until, upstream};
use crate::body;
use crate::schema::Span;
use crate::upstream::{Failure, Pools};

#[test]
fn connections_are_used_again_after_a_complete_exchange() {
    core(async {
        let server = always(OK).await;
        let upstream = to(&server, "");
        let pools = Pools::default();
        for _ in 0..5 {
            let answer = call(&upstream, &pools).whole().await.unwrap();
            assert_eq!(answer, (200, "ok".to_owned()));
            let posted = call(&upstream, &pools).post(body::empty());
            assert_eq!(posted.whole().await.unwrap().0, 200);
        }
        assert_eq!(*server.connections.borrow(), 1);
    });
}

#[test]
fn a_half_read_answer_closes_its_connection() {
    core(async {
        let closed = Rc::new(RefCell::new(0));
        let count = Rc::clone(&closed);
        let server = server(move |_, mut stream, heads| {
            let count = Rc::clone(&count);
            async move {
                head(&mut stream, &heads).await;
                let _ = stream
                    .write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nhalf")
                    .await;
                hung_up(&mut stream).await;
                *count.borrow_mut() += 1;
            }
        })
        .await;
        let upstream = to(&server, "");
        let pools = Pools::default();
        let mut response = call(&upstream, &pools).head().await.unwrap();
        assert!(response.body_mut().frame().await.is_some());
        drop(response);
        until(|| *closed.borrow() == 1).await;
    });
}

#[test]
fn a_client_that_hangs_up_takes_its_upstream_exchange_along() {
    core(async {
        let closed = Rc::new(RefCell::new(0));
        let count = Rc::clone(&closed);
        let server = server(move |_, mut stream, heads| {
            let count = Rc::clone(&count);
            async move {
                head(&mut stream, &heads).await;
                hung_up(&mut stream).await;
                *count.borrow_mut() += 1;
            }
        })
        .await;
        let upstream = to(&server, "");
        let pools = Rc::new(Pools::default());
        let (theirs, pool) = (upstream, Rc::clone(&pools));
        let waiting = spawn_local(async move {
            let _ = call(&theirs, &pool).head().await;
        });
        until(|| server.heads.borrow().len() == 1).await;
        waiting.abort();
        until(|| *closed.borrow() == 1).await;
    });
}

/// Answers one request a connection, then reads the next and hangs up without a word.
async fn closing() -> super::Server {
    server(|_, mut stream, heads| async move {
        head(&mut stream, &heads).await;
        let _ = stream.write_all(OK).await;
        head(&mut stream, &heads).await;
    })
    .await
}

#[test]
fn a_get_lost_on_a_closing_connection_is_sent_again() {
    core(async {
        let server = closing().await;
        let upstream = to(&server, "");
        let pools = Pools::default();
        call(&upstream, &pools).whole().await.unwrap();
        let mut second = call(&upstream, &pools);
        assert_eq!(second.head().await.unwrap().status(), 200);
        assert_eq!(second.trail.attempts, 2);
        assert_eq!(server.heads.borrow().len(), 3);
    });
}

#[test]
fn a_post_lost_on_a_closing_connection_is_not_sent_again() {
    core(async {
        let server = closing().await;
        let upstream = to(&server, "");
        let pools = Pools::default();
        call(&upstream, &pools).whole().await.unwrap();
        let mut second = call(&upstream, &pools).post(body::full("x"));
        let failure = second.head().await.err().unwrap();
        let unsent = matches!(failure, Failure::Broken(_) | Failure::Unreachable(_));
        assert!(unsent, "{failure}");
        assert_eq!(second.trail.attempts, 1);
        assert_eq!(server.heads.borrow().len(), 2);
    });
}

#[test]
fn a_put_with_a_body_is_not_sent_again() {
    core(async {
        let server = closing().await;
        let upstream = to(&server, "");
        let pools = Pools::default();
        call(&upstream, &pools).whole().await.unwrap();
        let mut second = call(&upstream, &pools).post(body::full("x"));
        second.method = Method::PUT;
        assert!(second.head().await.is_err());
        assert_eq!(server.heads.borrow().len(), 2);
    });
}

#[test]
fn a_new_connection_that_closes_without_an_answer_is_not_tried_again() {
    core(async {
        let server = server(|_, mut stream, heads| async move {
            head(&mut stream, &heads).await;
        })
        .await;
        let upstream = to(&server, "");
        let pools = Pools::default();
        let failure = call(&upstream, &pools).whole().await.unwrap_err();
        let unsent = matches!(failure, Failure::Broken(_) | Failure::Unreachable(_));
        assert!(unsent, "{failure}");
        assert_eq!(server.heads.borrow().len(), 1);
    });
}

#[test]
fn connections_closed_while_idle_cost_no_request() {
    core(async {
        let server = server(|_, mut stream, heads| async move {
            head(&mut stream, &heads).await;
            let _ = stream.write_all(OK).await;
        })
        .await;
        let upstream = to(&server, "retries: { attempts: 1 }");
        let pools = Pools::default();
        for _ in 0..20 {
            let posted = call(&upstream, &pools).post(body::full("x"));
            assert_eq!(posted.whole().await.unwrap().0, 200);
        }
    });
}

#[test]
fn bytes_nobody_asked_for_never_answer_the_next_request() {
    core(async {
        let server = server(|index, mut stream, heads| async move {
            head(&mut stream, &heads).await;
            let answer = "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";
            let more = if index == 0 {
                "HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nevil"
            } else {
                ""
            };
            let _ = stream.write_all(format!("{answer}{more}").as_bytes()).await;
            hung_up(&mut stream).await;
        })
        .await;
        let upstream = to(&server, "");
        let pools = Pools::default();
        assert_eq!(call(&upstream, &pools).whole().await.unwrap().1, "ok");
        assert_eq!(call(&upstream, &pools).whole().await.unwrap().1, "ok");
        assert_eq!(*server.connections.borrow(), 2);
    });
}

async fn refused() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    listener.local_addr().unwrap().to_string()
}

#[test]
fn an_endpoint_that_refuses_is_passed_over() {
    core(async {
        let (dead, live) = (refused().await, always(OK).await);
        let upstream = upstream(&format!(
            "endpoints: ['http://{dead}', 'http://{}']",
            live.address
        ));
        let pools = Pools::default();
        for _ in 0..50 {
            let mut posted = call(&upstream, &pools).post(body::full("x"));
            assert_eq!(posted.head().await.unwrap().status(), 200);
            assert_eq!(posted.trail.endpoint.as_deref(), Some(&*live.address));
        }
    });
}

#[test]
fn no_endpoint_means_unreachable() {
    core(async {
        let dead = refused().await;
        let upstream = upstream(&format!("endpoints: ['http://{dead}']"));
        let pools = Pools::default();
        let mut lost = call(&upstream, &pools);
        let failure = lost.head().await.err().unwrap();
        assert!(matches!(failure, Failure::Unreachable(_)), "{failure}");
        assert_eq!(lost.trail.attempts, 2);
    });
}

#[test]
fn a_slow_head_is_given_up() {
    core(async {
        let server = server(|_, mut stream, heads| async move {
            head(&mut stream, &heads).await;
            hung_up(&mut stream).await;
            heads.borrow_mut().push("closed".to_owned());
        })
        .await;
        let upstream = to(&server, "");
        let pools = Pools::default();
        let mut slow = call(&upstream, &pools);
        slow.bounds.head_timeout = Span::millis(100);
        let failure = slow.head().await.err().unwrap();
        assert!(matches!(failure, Failure::Slow(_)), "{failure}");
        until(|| server.heads.borrow().len() == 2).await;
    });
}

#[test]
fn no_free_connection_within_the_wait_means_saturated() {
    core(async {
        let server = server(|_, mut stream, heads| async move {
            head(&mut stream, &heads).await;
            hung_up(&mut stream).await;
        })
        .await;
        let upstream = to(&server, "pool: { max_connections: 1, wait: 50ms }");
        let pools = Rc::new(Pools::default());
        let (theirs, pool) = (std::sync::Arc::clone(&upstream), Rc::clone(&pools));
        let hanging = spawn_local(async move {
            let _ = call(&theirs, &pool).head().await;
        });
        until(|| server.heads.borrow().len() == 1).await;
        let failure = call(&upstream, &pools).head().await.err().unwrap();
        assert!(matches!(failure, Failure::Saturated), "{failure}");
        hanging.abort();
        until(|| hanging.is_finished()).await;
        // The place is free again.
        let mut next = call(&upstream, &pools);
        next.bounds.head_timeout = Span::millis(100);
        assert!(matches!(next.head().await, Err(Failure::Slow(_))));
    });
}

#[test]
fn what_is_no_http_is_broken() {
    core(async {
        for answer in [
            &b"SSH-2.0-OpenSSH_9.6\r\n\r\n"[..],
            b"HTTP/1.1 200 OK\r\ncontent-length: 3\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
            b"HTTP/1.1 200 OK\r\ncontent-length: 3\r\ncontent-length: 4\r\n\r\nabc",
            b"HTTP/1.1 101 Switching Protocols\r\nupgrade: x\r\nconnection: upgrade\r\n\r\n",
            b"HTTP/1.1 200 OK\r\ntransfer-encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
        ] {
            let server = always(answer).await;
            let upstream = to(&server, "");
            let pools = Pools::default();
            let failure = call(&upstream, &pools).head().await.err().unwrap();
            let shown = String::from_utf8_lossy(answer);
            assert!(matches!(failure, Failure::Broken(_)), "{shown}: {failure}");
        }
    });
}

#[test]
fn an_endless_head_is_broken() {
    core(async {
        let server = server(|_, mut stream, heads| async move {
            head(&mut stream, &heads).await;
            let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nx: ").await;
            while stream.write_all(&[b'a'; 4096]).await.is_ok() {}
        })
        .await;
        let upstream = to(&server, "");
        let pools = Pools::default();
        let failure = call(&upstream, &pools).head().await.err().unwrap();
        assert!(matches!(failure, Failure::Broken(_)), "{failure}");
    });
}

#[test]
fn hop_by_hop_fields_of_the_answer_do_not_reach_the_client() {
    core(async {
        let server = always(
            b"HTTP/1.1 200 OK\r\nconnection: close, x-hop\r\nx-hop: 1\r\nkeep-alive: timeout=5\r\n\
              proxy-authenticate: Basic\r\nupgrade: h2c\r\nx-end: 2\r\ncontent-length: 0\r\n\r\n",
        )
        .await;
        let upstream = to(&server, "");
        let pools = Pools::default();
        let response = call(&upstream, &pools).head().await.unwrap();
        let names: Vec<&str> = response
            .headers()
            .keys()
            .map(|name| name.as_str())
            .collect();
        assert_eq!(names, ["x-end", "content-length"]);
    });
}

#[test]
fn target_and_host_are_the_ones_that_were_judged() {
    core(async {
        let server = always(OK).await;
        let pools = Pools::default();
        let preserving = to(&server, "");
        let mut get = call(&preserving, &pools);
        get.target = "/a%2Fb/caf%C3%A9?q=%41&&x=[1]";
        get.head().await.unwrap();
        let own = to(&server, "host: upstream");
        call(&own, &pools).head().await.unwrap();

        let heads = server.heads.borrow();
        assert!(heads[0].starts_with("GET /a%2Fb/caf%C3%A9?q=%41&&x=[1] HTTP/1.1\r\n"));
        assert!(heads[0].contains("host: api.example.test\r\n"));
        assert!(!heads[0].contains("transfer-encoding"), "{}", heads[0]);
        assert!(!heads[0].contains("content-length"), "{}", heads[0]);
        let host = format!("host: {}\r\n", server.address);
        assert!(heads[1].contains(&host), "{}", heads[1]);
    });
}

#[test]
fn answers_without_a_body_keep_their_headers_and_their_connection() {
    core(async {
        let server = server(|_, mut stream, heads| async move {
            while let Some(request) = head(&mut stream, &heads).await {
                let answer: &[u8] = if request.starts_with("HEAD") {
                    b"HTTP/1.1 200 OK\r\ncontent-length: 1234\r\n\r\n"
                } else if request.contains("if-none-match") {
                    b"HTTP/1.1 304 Not Modified\r\netag: x\r\n\r\n"
                } else {
                    b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 204 No Content\r\n\r\n"
                };
                let _ = stream.write_all(answer).await;
            }
        })
        .await;
        let upstream = to(&server, "");
        let pools = Pools::default();
        let mut request = call(&upstream, &pools);
        request.method = Method::HEAD;
        let response = request.head().await.unwrap();
        assert_eq!(response.headers()["content-length"], "1234");
        let mut request = call(&upstream, &pools);
        let tag = HeaderValue::from_static("x");
        request.headers.insert("if-none-match", tag);
        assert_eq!(request.head().await.unwrap().status(), 304);
        assert_eq!(call(&upstream, &pools).whole().await.unwrap().0, 204);
        assert_eq!(*server.connections.borrow(), 1);
    });
}

#[test]
fn an_unchanged_upstream_keeps_its_pool_over_a_reload_and_a_changed_one_does_not() {
    core(async {
        let server = always(OK).await;
        let yaml = format!("endpoints: ['http://{}']", server.address);
        let before = compile(&yaml, None).unwrap();
        let pools = Pools::default();
        call(&before, &pools).whole().await.unwrap();
        let same = compile(&yaml, Some(&before)).unwrap();
        call(&same, &pools).whole().await.unwrap();
        assert_eq!(*server.connections.borrow(), 1);
        let other = compile(&format!("{yaml}\nconnect_timeout: 1s"), Some(&before)).unwrap();
        call(&other, &pools).whole().await.unwrap();
        assert_eq!(*server.connections.borrow(), 2);
    });
}

#[test]
fn connections_of_a_removed_upstream_are_closed() {
    core(async {
        let server = server(|_, mut stream, heads| async move {
            head(&mut stream, &heads).await;
            let _ = stream.write_all(OK).await;
            hung_up(&mut stream).await;
            heads.borrow_mut().push("closed".to_owned());
        })
        .await;
        let upstream = to(&server, "");
        let pools = Pools::default();
        call(&upstream, &pools).whole().await.unwrap();
        drop(upstream);
        until(|| server.heads.borrow().len() == 2).await;
    });
}

#[test]
fn idle_connections_are_closed_in_time() {
    core(async {
        let server = server(|_, mut stream, heads| async move {
            head(&mut stream, &heads).await;
            let _ = stream.write_all(OK).await;
            hung_up(&mut stream).await;
            heads.borrow_mut().push("closed".to_owned());
        })
        .await;
        let upstream = to(&server, "pool: { idle_timeout: 10ms }");
        let pools = Pools::default();
        call(&upstream, &pools).whole().await.unwrap();
        until(|| server.heads.borrow().len() == 2).await;
    });
}

#[test]
fn configuration_mistakes_are_problems() {
    for bad in [
        "endpoints: []",
        "endpoints: ['orders:80']",
        "endpoints: ['http://a:1', 'https://b:2']",
        "endpoints: ['http://a:1', 'http://a:1']",
        "endpoints: ['http://a:1']\nretries: { attempts: 0 }",
        "endpoints: ['http://a:1']\nretries: { budget: 2.0 }",
        "endpoints: ['http://a:1']\nconnect_timeout: 0s",
        "endpoints: ['http://a:1']\npool: { max_connections: 0 }",
        "endpoints: ['http://a:1']\ntls: { server_name: a }",
    ] {
        assert!(compile(bad, None).is_none(), "{bad}");
    }
    assert_eq!(bounds().max_body.get(), 64 * 1024);
}
