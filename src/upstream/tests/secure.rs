//! Upstreams over TLS.

use std::convert::Infallible;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use ::http::Response;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use rustls::ServerConfig;
use rustls_pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};

use super::{Server, call, core, server, upstream};
use crate::body;
use crate::upstream::connect::Local;
use crate::upstream::{Failure, Pools};

/// A server with a certificate for `upstream.test` that offers `alpn`, and its authority's file.
async fn secure(folder: &Path, alpn: &[&[u8]]) -> (Server, PathBuf) {
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let authority = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
    let file = folder.join("authority.pem");
    std::fs::write(&file, authority.pem()).unwrap();
    let key = KeyPair::generate().unwrap();
    let leaf = CertificateParams::new(vec!["upstream.test".to_owned()]).unwrap();
    let leaf = leaf.signed_by(&key, &authority).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![leaf.der().clone()], key)
        .unwrap();
    config.alpn_protocols = alpn.iter().map(|name| name.to_vec()).collect();
    let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
    let server = server(move |_, stream, heads| {
        let acceptor = acceptor.clone();
        async move {
            let Ok(stream) = acceptor.accept(stream).await else {
                return;
            };
            let h2 = stream.get_ref().1.alpn_protocol() == Some(b"h2");
            let service = service_fn(move |request: ::http::Request<hyper::body::Incoming>| {
                heads.borrow_mut().push(request.uri().to_string());
                async { Ok::<_, Infallible>(Response::new(body::full("ok"))) }
            });
            if h2 {
                let _ = hyper::server::conn::http2::Builder::new(Local)
                    .serve_connection(TokioIo::new(stream), service)
                    .await;
            } else {
                let _ = hyper::server::conn::http1::Builder::new()
                    .serve_connection(TokioIo::new(stream), service)
                    .await;
            }
        }
    })
    .await;
    (server, file)
}

fn yaml(server: &Server, authority: &Path, name: &str, protocol: &str) -> String {
    format!(
        "endpoints: ['https://{}']\nprotocol: {protocol}\n\
         tls: {{ authorities: ['{}'], server_name: {name} }}",
        server.address,
        authority.display()
    )
}

#[test]
fn both_protocols_are_spoken_over_tls() {
    core(async {
        let folder = tempfile::tempdir().unwrap();
        let (server, authority) = secure(folder.path(), &[b"h2", b"http/1.1"]).await;
        for (protocol, target) in [("http1", "/"), ("http2", "https://api.example.test/")] {
            let upstream = upstream(&yaml(&server, &authority, "upstream.test", protocol));
            let pools = Pools::default();
            for _ in 0..2 {
                let answer = call(&upstream, &pools).whole().await.unwrap();
                assert_eq!(answer, (200, "ok".to_owned()));
            }
            assert_eq!(server.heads.borrow().last().unwrap(), target);
        }
        assert_eq!(*server.connections.borrow(), 2);
    });
}

#[test]
fn a_wrong_certificate_is_never_spoken_to() {
    core(async {
        let folder = tempfile::tempdir().unwrap();
        let (server, authority) = secure(folder.path(), &[b"http/1.1"]).await;
        let other = tempfile::tempdir().unwrap();
        let (_, stranger) = secure(other.path(), &[]).await;
        let cases = [
            yaml(&server, &authority, "other.test", "http1"),
            yaml(&server, &stranger, "upstream.test", "http1"),
            yaml(&server, &authority, "upstream.test", "http2"),
        ];
        for yaml in cases {
            let upstream = upstream(&yaml);
            let pools = Pools::default();
            let failure = call(&upstream, &pools).head().await.err().unwrap();
            assert!(matches!(failure, Failure::Unreachable(_)), "{failure}");
        }
        assert!(server.heads.borrow().is_empty());
    });
}

#[test]
fn a_changed_authority_file_makes_a_new_upstream() {
    core(async {
        let folder = tempfile::tempdir().unwrap();
        let (server, authority) = secure(folder.path(), &[b"http/1.1"]).await;
        let yaml = yaml(&server, &authority, "upstream.test", "http1");
        let before = super::compile(&yaml, None).unwrap();
        let same = super::compile(&yaml, Some(&before)).unwrap();
        assert!(Arc::ptr_eq(&before, &same));
        secure(folder.path(), &[]).await;
        let other = super::compile(&yaml, Some(&before)).unwrap();
        assert!(!Arc::ptr_eq(&before, &other));
    });
}
