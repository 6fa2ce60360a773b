//! What a listener presents and demands: certificates by server name, client certificates by the
//! listener's own authorities.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use aws_lc_rs::digest::{Context, SHA256};
use rustls::crypto::aws_lc_rs::Ticketer;
use rustls::pki_types::CertificateDer;
use rustls::server::WebPkiClientVerifier;
use rustls::server::danger::ClientCertVerifier;
use rustls::sign::CertifiedKey;
use rustls::version::{TLS12, TLS13};
use rustls::{RootCertStore, ServerConfig, SupportedProtocolVersion};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use super::resolver::Certificates;
use super::{TlsError, pem, provider};
use crate::clock;
use crate::schema::Compile;

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

/// Certificates of clients.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct ClientCertificatesConfig {
    /// `none` does not ask for one. `optional` asks; who presents one that does not verify is
    /// turned away, not treated as anonymous. `required` turns away who presents none.
    pub mode: ClientCertificateMode,
    /// PEM files of the authorities whose certificates are believed. Never the system's.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub authorities: Vec<PathBuf>,
    /// PEM files of revocation lists. When there are any, every authority in a chain, the
    /// intermediate ones too, needs a list that has not expired and bears its signature: an unknown
    /// status is a refusal. The files are watched; a file that cannot be read does not load.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub revocation_lists: Vec<PathBuf>,
}

/// Whether clients present certificates.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum ClientCertificateMode {
    /// They are not asked.
    #[default]
    None,
    /// They may.
    Optional,
    /// They must.
    Required,
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
    source: ServerTlsConfig,
    /// Over the contents of every file, to tell whether anything changed.
    digest: [u8; 32],
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
            self.client_certificates.compile(&mut files, cx)
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
        match self.build(certificates, clients) {
            Ok(config) => Some(Arc::new(ServerTls {
                config: Arc::new(config),
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
        clients: Option<Arc<dyn ClientCertVerifier>>,
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

impl ClientCertificatesConfig {
    fn compile(&self, files: &mut Files, cx: &mut Compile) -> Option<Arc<dyn ClientCertVerifier>> {
        if self.mode == ClientCertificateMode::None {
            if !(self.authorities.is_empty() && self.revocation_lists.is_empty()) {
                cx.problem_help(
                    "authorities are named, but clients are not asked for certificates",
                    "set `mode` to `optional` or `required`",
                );
            }
            return None;
        }
        let mut roots = RootCertStore::empty();
        if self.authorities.is_empty() {
            cx.problem_help(
                "client certificates need authorities to believe",
                "name PEM files under `authorities`; the system's authorities are never used",
            );
        }
        for (index, path) in self.authorities.iter().enumerate() {
            cx.at("authorities", |cx| {
                cx.at(format!("[{index}]"), |cx| {
                    let Some(text) = files.read(path, cx) else {
                        return;
                    };
                    match pem::authorities(&[text.to_vec()]) {
                        Ok(found) => roots.roots.extend(found.roots),
                        Err(error) => cx.problem_help(
                            format!("{}: {error}", path.display()),
                            "name a PEM file with certificates of authorities",
                        ),
                    }
                });
            });
        }
        let mut lists = Vec::new();
        for (index, path) in self.revocation_lists.iter().enumerate() {
            cx.at("revocation_lists", |cx| {
                cx.at(format!("[{index}]"), |cx| {
                    let Some(text) = files.read(path, cx) else {
                        return;
                    };
                    match pem::revocation_lists(&text) {
                        Ok(found) => {
                            warn_of_expiry(path, &found, cx);
                            lists.extend(found.into_iter().map(|list| list.der));
                        }
                        Err(error) => cx.problem_help(
                            format!("{}: {error}", path.display()),
                            "name a PEM file (`X509 CRL`) with revocation lists",
                        ),
                    }
                });
            });
        }
        if roots.is_empty() {
            return None;
        }
        let builder = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider())
            .with_crls(lists)
            .enforce_revocation_expiration();
        let builder = match self.mode {
            ClientCertificateMode::Optional => builder.allow_unauthenticated(),
            ClientCertificateMode::Required | ClientCertificateMode::None => builder,
        };
        match builder.build() {
            Ok(verifier) => Some(verifier),
            Err(error) => {
                cx.problem(format!("client certificates cannot be verified: {error}"));
                None
            }
        }
    }
}

/// Warns of lists that refuse everybody. It is no problem: a gateway that does not start, or does
/// not take up anything else, protects no better than one that refuses these clients.
fn warn_of_expiry(path: &Path, lists: &[pem::RevocationList], cx: &mut Compile) {
    let now = i64::try_from(clock::unix_seconds(clock::now())).unwrap_or(i64::MAX);
    for (index, list) in lists.iter().enumerate() {
        if list.next_update.is_none_or(|end| end < now) {
            cx.warning(
                format!(
                    "{}: revocation list {} has expired",
                    path.display(),
                    index + 1
                ),
                "every certificate of its authority is refused until there is a newer one",
            );
        }
    }
}

/// Reads files and remembers what was in them by a digest.
struct Files(Context);

impl Files {
    fn read(&mut self, path: &Path, cx: &mut Compile) -> Option<Zeroizing<Vec<u8>>> {
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
