//! What a listener presents and demands: certificates by server name, client certificates by the
//! listener's own authorities.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use aws_lc_rs::digest::{Context, SHA256};
use rustls::crypto::aws_lc_rs::Ticketer;
use rustls::pki_types::CertificateDer;
use rustls::sign::CertifiedKey;
use rustls::version::{TLS12, TLS13};
use rustls::{ServerConfig, SupportedProtocolVersion};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use super::clients::ClientTrust;
use super::resolver::Certificates;
use super::{TlsError, pem, provider};
use crate::clock;
use crate::schema::Compile;

pub use super::clients::{
    ClientCertificateMode, ClientCertificatesConfig, DistributionPointsConfig, OcspConfig,
    OcspMode, UnknownStatus,
};

/// TLS on a listener.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ServerTlsConfig {
    /// What is presented. The DNS names in each certificate decide for which server names it is
    /// used (exact, or a wildcard for one label); the first one answers clients that ask for no
    /// name or for an unknown one.
    pub certificates: Vec<CertificateConfig>,
    /// Whether clients present certificates, and whom we believe about them.
    #[serde(default)]
    pub client_certificates: ClientCertificatesConfig,
    /// The lowest protocol version: `"1.2"` or `"1.3"`.
    #[serde(default)]
    pub minimum_version: MinimumVersion,
}

/// A certificate and its key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct CertificateConfig {
    /// A PEM file with the certificate, then its intermediates.
    pub chain: PathBuf,
    /// A PEM file with the private key.
    pub key: PathBuf,
}

/// The lowest protocol version of TLS.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum MinimumVersion {
    /// TLS 1.2 with forward secrecy and authenticated encryption only, and TLS 1.3.
    #[default]
    #[serde(rename = "1.2")]
    Tls12,
    /// TLS 1.3 only.
    #[serde(rename = "1.3")]
    Tls13,
}

/// A listener's compiled TLS. Sessions can only be resumed with the object that started them: the
/// keys of its tickets are its own, so a changed set of authorities accepts no older ticket.
pub struct ServerTls {
    pub(super) config: Arc<ServerConfig>,
    /// Whom it believes among clients; `None` when they are not asked.
    pub(super) clients: Option<Arc<ClientTrust>>,
    source: ServerTlsConfig,
    /// Over the contents of every file, to tell whether anything changed.
    digest: [u8; 32],
}

impl ServerTls {
    /// Whom it believes among clients; `None` when they are not asked for certificates.
    pub fn clients(&self) -> Option<&Arc<ClientTrust>> {
        self.clients.as_ref()
    }
}

impl fmt::Debug for ServerTls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ServerTls")
            .field("source", &self.source)
            .finish_non_exhaustive()
    }
}

/// Sent in tickets and offered by ALPN, the preferred one first.
const PROTOCOLS: [&[u8]; 2] = [b"h2", b"http/1.1"];

impl ServerTlsConfig {
    /// Compiles the section; takes over `previous` when neither it nor any of its files changed.
    pub fn compile(
        self,
        previous: Option<&Arc<ServerTls>>,
        cx: &mut Compile,
    ) -> Option<Arc<ServerTls>> {
        let before = cx.errors();
        let mut files = Files(Context::new(&SHA256));
        let certificates = cx.at("certificates", |cx| self.certificates(&mut files, cx));
        let clients = cx.at("client_certificates", |cx| {
            let previous = previous.and_then(|previous| previous.clients.as_ref());
            self.client_certificates.compile(previous, &mut files, cx)
        });
        if cx.errors() > before {
            return None;
        }
        let digest = files.finish();
        if let Some(previous) = previous
            && previous.source == self
            && previous.digest == digest
        {
            return Some(Arc::clone(previous));
        }
        match self.build(certificates, clients.clone()) {
            Ok(config) => Some(Arc::new(ServerTls {
                config: Arc::new(config),
                clients,
                source: self,
                digest,
            })),
            Err(error) => {
                cx.problem(format!("TLS cannot be set up: {error}"));
                None
            }
        }
    }

    fn certificates(&self, files: &mut Files, cx: &mut Compile) -> Certificates {
        if self.certificates.is_empty() {
            cx.problem_help(
                "a listener with TLS needs a certificate",
                "add `- chain: FILE` with `key: FILE`",
            );
        }
        let mut certificates = Certificates::default();
        for (index, pair) in self.certificates.iter().enumerate() {
            let key = cx.at(format!("[{index}]"), |cx| pair.load(files, cx));
            if let Some((key, names)) = key {
                if names.is_empty() && index > 0 {
                    cx.at(format!("[{index}]"), |cx| {
                        cx.problem_help(
                            "the certificate bears no DNS name, so no client would ever get it",
                            "certificates need subject alternative names; only the first may do without",
                        );
                    });
                }
                certificates.add(Arc::new(key), &names);
            }
        }
        certificates
    }

    fn build(
        &self,
        certificates: Certificates,
        clients: Option<Arc<ClientTrust>>,
    ) -> Result<ServerConfig, TlsError> {
        let versions: &[&SupportedProtocolVersion] = match self.minimum_version {
            MinimumVersion::Tls12 => &[&TLS13, &TLS12],
            MinimumVersion::Tls13 => &[&TLS13],
        };
        let builder =
            ServerConfig::builder_with_provider(provider()).with_protocol_versions(versions)?;
        let builder = match clients {
            Some(verifier) => builder.with_client_cert_verifier(verifier),
            None => builder.with_no_client_auth(),
        };
        let mut config = builder.with_cert_resolver(Arc::new(certificates));
        config.alpn_protocols = PROTOCOLS.iter().map(|p| p.to_vec()).collect();
        // Early data can be replayed by whoever saw it (RFC 8446 section 8).
        config.max_early_data_size = 0;
        // Sealed tickets keep no state here, so resumption needs no bound in memory.
        config.ticketer = Ticketer::new()?;
        Ok(config)
    }
}

impl CertificateConfig {
    fn load(&self, files: &mut Files, cx: &mut Compile) -> Option<(CertifiedKey, Vec<String>)> {
        let chain = cx.at("chain", |cx| {
            let text = files.read(&self.chain, cx)?;
            match pem::certificates(&text) {
                Ok(chain) => Some(chain),
                Err(error) => {
                    cx.problem_help(
                        format!("{}: {error}", self.chain.display()),
                        "name a PEM file with the certificate first, then its intermediates",
                    );
                    None
                }
            }
        });
        let key = cx.at("key", |cx| {
            let text = files.read(&self.key, cx)?;
            match pem::private_key(&text) {
                Ok(key) => Some(key),
                Err(error) => {
                    cx.problem_help(
                        format!("{}: {error}", self.key.display()),
                        "name a PEM file with an unencrypted private key",
                    );
                    None
                }
            }
        });
        let (chain, key) = (chain?, key?);
        let names = cx.at("chain", |cx| inspect(&self.chain, &chain, cx));
        match CertifiedKey::from_der(chain, key, &provider()) {
            Ok(certified) => Some((certified, names)),
            Err(error) => {
                cx.at("key", |cx| {
                    let error = if matches!(error, rustls::Error::InconsistentKeys(_)) {
                        TlsError::KeyMismatch
                    } else {
                        TlsError::Library(error)
                    };
                    cx.problem_help(
                        format!("{}: {error}", self.key.display()),
                        "the key must be the one that the first certificate of the chain was made for",
                    );
                });
                None
            }
        }
    }
}

/// Warns of what clients will stumble over, and gives the DNS names of the leaf.
fn inspect(path: &Path, chain: &[CertificateDer<'static>], cx: &mut Compile) -> Vec<String> {
    let parsed: Vec<_> = chain.iter().filter_map(pem::parse).collect();
    for (index, certificate) in parsed.iter().enumerate() {
        let now = i64::try_from(clock::unix_seconds(clock::now())).unwrap_or(i64::MAX);
        let validity = certificate.validity();
        let what = if validity.not_after.timestamp() < now {
            "has expired"
        } else if validity.not_before.timestamp() > now {
            "is not valid yet"
        } else {
            continue;
        };
        cx.warning(
            format!("{}: certificate {} {what}", path.display(), index + 1),
            "clients that check it will refuse to connect; renew it",
        );
    }
    for pair in parsed.windows(2) {
        if let [lower, upper] = pair
            && lower.issuer().as_raw() != upper.subject().as_raw()
        {
            cx.warning(
                format!("{}: the certificates are not in order", path.display()),
                "each certificate must be followed by the one that signed it",
            );
            break;
        }
    }
    parsed
        .first()
        .map(super::certificate::dns_names)
        .unwrap_or_default()
}

/// Reads files and remembers what was in them by a digest.
pub(super) struct Files(Context);

impl Files {
    pub(super) fn read(&mut self, path: &Path, cx: &mut Compile) -> Option<Zeroizing<Vec<u8>>> {
        let text = Zeroizing::new(cx.read(path)?);
        // With its length, so that moving bytes from one file into the next is a change.
        self.0.update(&text.len().to_be_bytes());
        self.0.update(&text);
        Some(text)
    }

    fn finish(self) -> [u8; 32] {
        let mut digest = [0; 32];
        let found = self.0.finish();
        for (to, from) in digest.iter_mut().zip(found.as_ref()) {
            *to = *from;
        }
        digest
    }
}

#[cfg(test)]
mod tests;
