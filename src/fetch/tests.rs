use std::time::Instant;

use super::testing::{Behaviour, Server};
use super::*;

async fn fetch(behaviour: Behaviour) -> Result<Document, FetchError> {
    let server = Server::start(behaviour).await;
    let fetcher = Fetcher::new(&[])
        .unwrap()
        .with_bounds(Duration::from_millis(300), 10_000);
    fetcher
        .get(&Target::parse(&server.url("/doc")).unwrap())
        .await
}

#[tokio::test]
async fn a_good_document_comes_back_whole() {
    let headers = "cache-control: public, max-age=90\r\nage: 30\r\n".to_owned();
    let document = fetch(Behaviour::Serve(headers, "{}".into())).await.unwrap();
    assert_eq!(document.body, b"{}");
    assert_eq!(document.lifetime, Some(Duration::from_secs(60)));
}

#[tokio::test]
async fn every_misbehaviour_is_an_error_within_the_deadline() {
    for (behaviour, code) in [
        (Behaviour::Status(500), "status"),
        (Behaviour::Status(204), "status"),
        (Behaviour::Redirect, "status"),
        (Behaviour::Hang, "timeout"),
        (Behaviour::Drip, "too_large"),
        (Behaviour::Announce(10_001), "too_large"),
        (Behaviour::Announce(9_999), "timeout"),
        (Behaviour::Endless, "too_large"),
        (Behaviour::Truncate, "network"),
        (Behaviour::Drop, "network"),
        (
            Behaviour::Serve("content-encoding: gzip\r\n".into(), "{}".into()),
            "encoded",
        ),
        (
            Behaviour::Serve(String::new(), " ".repeat(10_001)),
            "too_large",
        ),
    ] {
        let begun = Instant::now();
        let error = fetch(behaviour.clone()).await.unwrap_err();
        assert_eq!(error.code(), code, "{behaviour:?}");
        assert!(begun.elapsed() < Duration::from_secs(3), "{behaviour:?}");
    }
}

#[tokio::test]
async fn dripping_does_not_outlast_the_deadline() {
    let server = Server::start(Behaviour::Drip).await;
    let fetcher = Fetcher::new(&[])
        .unwrap()
        .with_bounds(Duration::from_millis(200), 1 << 20);
    let target = Target::parse(&server.url("/")).unwrap();
    assert_eq!(fetcher.get(&target).await.unwrap_err().code(), "timeout");
}

#[tokio::test]
async fn redirects_are_not_followed() {
    let server = Server::start(Behaviour::Redirect).await;
    let target = Target::parse(&server.url("/")).unwrap();
    let answer = Fetcher::new(&[]).unwrap().get(&target).await;
    assert!(matches!(answer, Err(FetchError::Status(302))));
    assert_eq!(server.hits(), 1);
}

#[tokio::test]
async fn a_server_that_is_not_there_is_a_network_error_without_its_address() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    drop(listener);
    let target = Target::parse(&format!("http://{address}/secret-path")).unwrap();
    let error = Fetcher::new(&[]).unwrap().get(&target).await.unwrap_err();
    assert_eq!(error.code(), "network");
    assert!(!format!("{error:?}").contains("secret-path"));
}

#[test]
fn only_https_or_http_on_loopback_may_be_fetched() {
    for good in [
        "https://issuer.test/a",
        "http://127.0.0.1:1/",
        "http://127.9.9.9/",
        "http://[::1]:1/",
        "http://localhost/",
    ] {
        assert!(Target::parse(good).is_ok(), "{good}");
    }
    for bad in [
        "http://issuer.test/",
        "http://10.0.0.1/",
        "http://127.0.0.1.evil.test/",
        "file:///etc/passwd",
        "ftp://127.0.0.1/",
        "https://a:b@issuer.test/",
        "https://issuer.test/#x",
        "issuer.test",
        "",
        "http://0.0.0.0/",
        "data:text/plain,x",
        "http://localhost.evil.test/",
    ] {
        assert!(Target::parse(bad).is_err(), "{bad}");
    }
}

#[test]
fn cache_headers_say_how_long_a_document_stays_fresh() {
    let now = SystemTime::UNIX_EPOCH + Duration::from_secs(784_111_777);
    let read = |lines: &[(&'static str, &'static str)]| {
        let mut headers = HeaderMap::new();
        for (name, value) in lines {
            headers.append(*name, value.parse().unwrap());
        }
        lifetime(&headers, now).map(|lifetime| lifetime.as_secs())
    };
    assert_eq!(read(&[]), None);
    assert_eq!(read(&[("cache-control", "max-age=600")]), Some(600));
    assert_eq!(
        read(&[("cache-control", "Max-Age=\"600\""), ("age", "100")]),
        Some(500)
    );
    assert_eq!(
        read(&[("cache-control", "max-age=10"), ("age", "100")]),
        Some(0)
    );
    assert_eq!(read(&[("cache-control", "max-age=x")]), Some(0));
    assert_eq!(
        read(&[
            ("cache-control", "max-age=600"),
            ("cache-control", "no-store")
        ]),
        Some(0)
    );
    assert_eq!(read(&[("cache-control", "no-cache, max-age=600")]), Some(0));
    assert_eq!(
        read(&[("expires", "Sun, 06 Nov 1994 08:50:37 GMT")]),
        Some(60)
    );
    assert_eq!(
        read(&[("expires", "Sun, 06 Nov 1994 08:48:37 GMT")]),
        Some(0)
    );
    assert_eq!(read(&[("expires", "0")]), Some(0));
    assert_eq!(
        read(&[("expires", "0"), ("cache-control", "max-age=5")]),
        Some(5)
    );
}

#[tokio::test]
async fn https_is_believed_under_the_given_authorities_only() {
    use rustls_pki_types::pem::PemObject;
    use rustls_pki_types::{CertificateDer, PrivateKeyDer};
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    let ours = crate::tls::testing::Authority::new("ours");
    let other = crate::tls::testing::Authority::new("other");
    let (chain, key) = ours.server(&["localhost"]);
    let config = rustls::ServerConfig::builder_with_provider(crate::tls::provider())
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(
            vec![CertificateDer::from_pem_slice(chain.as_bytes()).unwrap()],
            PrivateKeyDer::from_pem_slice(key.as_bytes()).unwrap(),
        )
        .unwrap();
    let acceptor = tokio_rustls::TlsAcceptor::from(std::sync::Arc::new(config));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            if let Ok(mut stream) = acceptor.accept(stream).await {
                let _ = stream.read(&mut [0; 1024]).await;
                let _ = stream
                    .write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}")
                    .await;
                let _ = stream.shutdown().await;
            }
        }
    });

    let target = Target::parse(&format!("https://localhost:{port}/")).unwrap();
    let fetch =
        async |authorities: &[Vec<u8>]| Fetcher::new(authorities).unwrap().get(&target).await;
    let document = fetch(&[other.pem().into_bytes(), ours.pem().into_bytes()]).await;
    assert_eq!(document.unwrap().body, b"{}");
    for authorities in [vec![], vec![other.pem().into_bytes()]] {
        assert_eq!(fetch(&authorities).await.unwrap_err().code(), "network");
    }
    assert!(Fetcher::new(&[b"no certificate".to_vec()]).is_err());
}

#[tokio::test]
async fn a_post_brings_its_secret_and_has_the_bounds_of_a_fetch() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/poll", listener.local_addr().unwrap());
    let seen = tokio::spawn(async move {
        use tokio::io::{AsyncReadExt, AsyncWriteExt};
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut seen = Vec::new();
        while !seen.ends_with(b"{\"ack\":[]}") {
            assert_ne!(stream.read_buf(&mut seen).await.unwrap(), 0);
        }
        let answer = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}";
        stream.write_all(answer).await.unwrap();
        String::from_utf8(seen).unwrap()
    });
    let secret = Secret::new(b"a-secret".to_vec());
    let post = |secret| Post {
        content_type: "application/json",
        accept: "application/json",
        bearer: Some(secret),
        body: b"{\"ack\":[]}".to_vec(),
    };
    let fetcher = Fetcher::new(&[]).unwrap();
    let target = Target::parse(&url).unwrap();
    let document = fetcher.post(&target, post(&secret)).await.unwrap();
    assert_eq!(document.body, b"{}");
    let seen = seen.await.unwrap().to_ascii_lowercase();
    assert!(seen.starts_with("post /poll http/1.1\r\n"), "{seen}");
    assert!(
        seen.contains("authorization: bearer a-secret\r\n"),
        "{seen}"
    );
    assert!(
        seen.contains("content-type: application/json\r\n"),
        "{seen}"
    );

    let server = Server::start(Behaviour::Late(Duration::from_secs(60), String::new())).await;
    let fetcher = fetcher.with_bounds(Duration::from_millis(200), 1_000);
    let target = Target::parse(&server.url("/")).unwrap();
    let error = fetcher.post(&target, post(&secret)).await.unwrap_err();
    assert_eq!(error.code(), "timeout");
    assert!(!format!("{error:?}").contains("a-secret"));
    let broken = Secret::new(b"a\nb".to_vec());
    let error = fetcher.post(&target, post(&broken)).await.unwrap_err();
    assert_eq!(error.code(), "config");
}
