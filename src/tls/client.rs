//! What upstreams and fetches trust, and what they are shown.

use std::path::PathBuf;
use std::sync::Arc;

use rustls::RootCertStore;
use rustls::client::WebPkiServerVerifier;
use rustls::pki_types::{CertificateDer, CertificateRevocationListDer, PrivateKeyDer, ServerName};
use rustls::sign::CertifiedKey;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::TlsConnector;
use webpki::OwnedCertRevocationList;

use super::{TlsError, pem, provider};
use crate::schema::Compile;

pub use rustls::ClientConfig;
pub use tokio_rustls::client::TlsStream;

/// Makes a TLS connection out of `stream`, to a server whose certificate must bear `name`.
///
/// # Errors
/// The handshake's; its text is for records.
pub async fn connect<S: AsyncRead + AsyncWrite + Unpin>(
    config: &Arc<ClientConfig>,
    name: ServerName<'static>,
    stream: S,
) -> std::io::Result<TlsStream<S>> {
    TlsConnector::from(Arc::clone(config))
        .connect(name, stream)
        .await
}

/// TLS towards a server.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct ClientTlsConfig {
    /// PEM files of the certificate authorities that are trusted, and no others. Default: those of
    /// the public web.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub authorities: Vec<PathBuf>,
    /// PEM files of revocation lists. When there are any, every authority in a server's chain needs one
    /// that has not expired and bears its signature; they are asked when a connection is made.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub revocation_lists: Vec<PathBuf>,
    /// The name that the server's certificate must bear, when it is not the one that is dialled.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub server_name: Option<String>,
    /// A PEM file with the certificate chain to present, leaf first. Needs `key`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub certificate: Option<PathBuf>,
    /// A PEM file with the private key of `certificate`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub key: Option<PathBuf>,
}

impl ClientTlsConfig {
    /// Compiles the section; `alpn` lists the protocols to offer, the preferred one first.
    ///
    /// `server_name` is checked here and used by whoever dials.
    pub fn compile(&self, alpn: &[&[u8]], cx: &mut Compile) -> Option<Arc<ClientConfig>> {
        let before = cx.errors();
        let mut files = Vec::new();
        for (index, path) in self.authorities.iter().enumerate() {
            cx.at("authorities", |cx| {
                cx.at(format!("[{index}]"), |cx| {
                    let Some(file) = cx.read(path) else { return };
                    if let Err(error) = pem::authorities(std::slice::from_ref(&file)) {
                        cx.problem_help(
                            format!("{}: {error}", path.display()),
                            "name a PEM file with certificates of authorities",
                        );
                    }
                    files.push(file);
                });
            });
        }
        let lists = self.lists(cx);
        if let Some(name) = &self.server_name
            && ServerName::try_from(name.as_str()).is_err()
        {
            cx.at("server_name", |cx| {
                cx.problem_help(
                    format!("`{name}` is neither a host name nor an IP address"),
                    "write it without scheme and port",
                );
            });
        }
        let identity = self.identity(cx);
        if cx.errors() > before {
            return None;
        }
        match build(&files, lists, identity, alpn) {
            Ok(config) => Some(Arc::new(config)),
            Err(error) => {
                cx.problem(format!("TLS cannot be set up: {error}"));
                None
            }
        }
    }

    fn lists(&self, cx: &mut Compile) -> Lists {
        let mut lists = Vec::new();
        for (index, path) in self.revocation_lists.iter().enumerate() {
            cx.at(format!("revocation_lists[{index}]"), |cx| {
                let Some(file) = cx.read(path) else { return };
                let found = pem::revocation_lists(&file).and_then(|found| {
                    // Whatever the library would stumble over later is told at its place.
                    let read = found
                        .iter()
                        .all(|list| OwnedCertRevocationList::from_der(list).is_ok());
                    read.then_some(found).ok_or(TlsError::RevocationList)
                });
                match found {
                    Ok(found) => lists.extend(found),
                    Err(error) => cx.problem_help(
                        format!("{}: {error}", path.display()),
                        "name a PEM file (`X509 CRL`) with revocation lists",
                    ),
                }
            });
        }
        lists
    }

    fn identity(&self, cx: &mut Compile) -> Option<Identity> {
        match (&self.certificate, &self.key) {
            (None, None) => None,
            (Some(certificate), Some(key)) => {
                let chain = cx.at("certificate", |cx| {
                    let file = cx.read(certificate)?;
                    pem::certificates(&file)
                        .map_err(|error| {
                            cx.problem(format!("{}: {error}", certificate.display()));
                        })
                        .ok()
                });
                let key = cx.at("key", |cx| {
                    let file = zeroize::Zeroizing::new(cx.read(key)?);
                    let key = pem::private_key(&file)
                        .map_err(|error| cx.problem(format!("{}: {error}", key.display())))
                        .ok()?;
                    if let Some(chain) = &chain
                        && let Err(error) =
                            CertifiedKey::from_der(chain.clone(), key.clone_key(), &provider())
                    {
                        cx.problem(format!("the key does not fit the certificate: {error}"));
                    }
                    Some(key)
                });
                Some((chain?, key?))
            }
            _ => {
                cx.problem_help(
                    "`certificate` and `key` belong together",
                    "give both, or neither",
                );
                None
            }
        }
    }
}

type Lists = Vec<CertificateRevocationListDer<'static>>;

/// What we present: a chain and its key.
type Identity = (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>);

/// TLS for fetching documents: `authorities` are PEM texts; with none, the public web's are trusted.
/// No protocol is offered by ALPN.
///
/// # Errors
/// [`TlsError`] when a text holds no usable certificate.
pub fn client_config(authorities: &[Vec<u8>]) -> Result<ClientConfig, TlsError> {
    build(authorities, Vec::new(), None, &[])
}

fn build(
    authorities: &[Vec<u8>],
    lists: Lists,
    identity: Option<Identity>,
    alpn: &[&[u8]],
) -> Result<ClientConfig, TlsError> {
    let roots = if authorities.is_empty() {
        RootCertStore {
            roots: webpki_roots::TLS_SERVER_ROOTS.to_vec(),
        }
    } else {
        pem::authorities(authorities)?
    };
    let builder =
        ClientConfig::builder_with_provider(provider()).with_safe_default_protocol_versions()?;
    let builder = if lists.is_empty() {
        builder.with_root_certificates(roots)
    } else {
        let verifier = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider())
            .with_crls(lists)
            .enforce_revocation_expiration()
            .build()?;
        builder.with_webpki_verifier(verifier)
    };
    let mut config = match identity {
        Some((chain, key)) => builder.with_client_auth_cert(chain, key)?,
        None => builder.with_no_client_auth(),
    };
    config.alpn_protocols = alpn.iter().map(|protocol| protocol.to_vec()).collect();
    Ok(config)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tls::testing::{Authority, compile};

    #[test]
    fn without_authorities_the_public_web_is_trusted() {
        assert!(client_config(&[]).is_ok());
    }

    #[test]
    fn an_unusable_authorities_file_never_becomes_the_public_web() {
        let key = rcgen::KeyPair::generate().unwrap().serialize_pem();
        for text in ["", "not pem", &key, "-----BEGIN CERTIFICATE-----\nAAAA\n"] {
            assert!(
                client_config(&[text.as_bytes().to_vec()]).is_err(),
                "{text}"
            );
        }
    }

    #[test]
    fn mistakes_are_problems_at_their_place() {
        let authority = Authority::new("one");
        let (chain, key) = authority.client("client", &[]);
        let (_, other_key) = authority.client("other", &[]);
        let files = [
            ("ca.pem", authority.pem()),
            ("empty.pem", String::new()),
            ("chain.pem", chain),
            ("key.pem", key),
            ("other.pem", other_key),
        ];
        let good = ClientTlsConfig {
            authorities: vec!["ca.pem".into()],
            revocation_lists: Vec::new(),
            server_name: Some("upstream.test".to_owned()),
            certificate: Some("chain.pem".into()),
            key: Some("key.pem".into()),
        };
        let problems = |config: &ClientTlsConfig| {
            let (made, problems) = compile(&files, |cx| config.compile(&[b"h2"], cx));
            assert_eq!(made.is_some(), problems.is_empty());
            problems
        };
        assert!(problems(&good).is_empty());
        let mut bad = good.clone();
        bad.authorities = vec!["empty.pem".into(), "missing.pem".into()];
        bad.revocation_lists = vec!["ca.pem".into()];
        bad.server_name = Some("https://x".to_owned());
        bad.key = Some("other.pem".into());
        let found = problems(&bad);
        let places: Vec<_> = found.iter().map(|p| p.path.as_str()).collect();
        assert_eq!(
            places,
            [
                "authorities[0]",
                "authorities[1]",
                "revocation_lists[0]",
                "server_name",
                "key"
            ]
        );
        let mut half = good;
        half.key = None;
        assert_eq!(problems(&half).len(), 1);
    }
}
