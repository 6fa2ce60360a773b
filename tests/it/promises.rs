//! Promises that cut across rooms, each with a test that tries to break it.

use std::io::Write;
use std::time::{Duration, Instant};

use serde_json::json;

use crate::support::client::request;
use crate::support::gateway::{Builder, World};
use crate::support::issuer::now;
use crate::support::upstream::{Next, Upstream};

/// An upstream that streams until it is cut off.
fn endless() -> Upstream {
    Upstream::with(|_, stream| {
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n");
        while stream.write_all(b"4\r\ntick\r\n").is_ok() {
            std::thread::park_timeout(Duration::from_millis(20));
        }
        Next::Close
    })
}

/// Reads until the connection ends; how long that took.
fn until_the_end(connection: &mut crate::support::client::Connection) -> Duration {
    let start = Instant::now();
    let mut sink = [0; 4096];
    while start.elapsed() < Duration::from_secs(30) {
        match std::io::Read::read(connection, &mut sink) {
            Ok(0) | Err(_) => break,
            Ok(_) => {}
        }
    }
    start.elapsed()
}

#[test]
fn a_stream_ends_when_its_token_does() {
    let world = World::with(|builder| {
        builder.with(|document| document["issuers"]["main"]["leeway"] = json!("0s"))
    });
    let streaming = endless();
    let mut gateway = world.gateway;
    let answer = gateway.reload(|document| {
        document["upstreams"]["main"]["endpoints"] = json!([streaming.url()]);
    });
    assert_eq!(answer.status, 200, "{}", answer.text());
    let mut claims = world.issuer.claims("alice");
    claims["exp"] = json!(now() + 3);
    let bearer = format!("Bearer {}", world.key.token(&claims));
    let mut connection = gateway.connect();
    connection.send(request("GET", "/stream", &[("authorization", &bearer)]));
    let took = until_the_end(&mut connection);
    assert!(
        took < Duration::from_secs(15),
        "the stream outlived its token by {took:?}"
    );
}

#[test]
fn a_stream_is_judged_again_when_the_policy_wants_to_be_asked() {
    let end = (now() + 3) * 1_000_000_000;
    let policy = format!(
        "package gate\n\nallow := {{\"allow\": input.request.received_at_ns < {end}, \"recheck_after\": \"1s\"}}\n"
    );
    let world = World::with(|builder| builder.policy(&policy));
    let streaming = endless();
    let mut gateway = world.gateway;
    let answer = gateway.reload(|document| {
        document["upstreams"]["main"]["endpoints"] = json!([streaming.url()]);
    });
    assert_eq!(answer.status, 200, "{}", answer.text());
    let bearer = format!("Bearer {}", world.key.token(&world.issuer.claims("alice")));
    let mut connection = gateway.connect();
    connection.send(request("GET", "/stream", &[("authorization", &bearer)]));
    let took = until_the_end(&mut connection);
    let all = Duration::from_secs(15);
    // It was asked once at least while it said yes.
    assert!(
        Duration::from_millis(1500) < took && took < all,
        "it ended after {took:?}"
    );
}

#[test]
fn headers_that_name_another_path_or_method_stop_here() {
    let upstream = Upstream::start();
    for trusted in [json!([]), json!(["127.0.0.0/8"])] {
        let gateway = Builder::open(&upstream)
            .with(|document| document["trusted_proxies"] = trusted)
            .start();
        for name in [
            "x-original-url",
            "X-Rewrite-URL",
            "x-original-uri",
            "x-http-method-override",
            "X-Method-Override",
            "x-http-method",
            "x-envoy-original-path",
        ] {
            assert_eq!(gateway.get("/a", &[(name, "/admin")]).status, 200);
            assert!(
                !upstream.last().headers.iter().any(|(_, v)| v == "/admin"),
                "{name} arrived"
            );
        }
    }
}

#[test]
fn a_stranger_is_not_believed_under_any_forwarding_name() {
    let upstream = Upstream::start();
    let gateway = Builder::open(&upstream).start();
    for name in [
        "x-forwarded-user",
        "X-Forwarded-Email",
        "x-forwarded-groups",
        "x-forwarded-scheme",
        "x-forwarded-ssl",
        "x-forwarded-server",
        "x-forwarded-anything",
        "true-client-ip",
        "x-client-ip",
        "cf-connecting-ip",
        "x-cluster-client-ip",
        "client-ip",
    ] {
        assert_eq!(gateway.get("/a", &[(name, "mallory")]).status, 200);
        assert!(
            !upstream.last().headers.iter().any(|(_, v)| v == "mallory"),
            "{name} arrived"
        );
    }
}

#[test]
fn no_client_chooses_that_its_refusal_looks_like_a_success() {
    let world = World::start();
    for method in ["GET", "POST", "PUT"] {
        let answer = world.gateway.send(
            method,
            "/a",
            &[
                ("content-type", "application/grpc"),
                ("content-length", "0"),
            ],
        );
        assert_eq!(answer.status, 401, "{method}");
        assert_eq!(answer.header("cache-control"), Some("no-store"));
    }
}
