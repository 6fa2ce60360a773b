//! The client certificate as identity.
//!
//! TLS has verified the chain; this decides who the leaf is. Never by its common name: name
//! constraints do not bind it, so a constrained authority could write anybody's name there.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use moka::sync::Cache;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::Attempt;
use super::Identity;
use super::claims::{Facts, is_name};
use super::code::{self, Refused, refused};
use crate::document::{self, Value};
use crate::request::InboundRequest;
use crate::tls::PeerCertificate;

/// Most identities kept for certificates that are in use.
const MAX_KEPT: u64 = 1024;

/// How long one is kept.
const KEPT_FOR: Duration = Duration::from_secs(600);

/// The name of the method, in routes and in identities.
pub const NAME: &str = "client_certificate";

/// How client certificates become identities.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ClientCertificateConfig {
    /// Which name of the certificate is the subject. Default: the SPIFFE id when there is one,
    /// else the distinguished name. A kind that is named here must be there exactly once.
    #[serde(default)]
    pub subject: SubjectName,
}

/// A kind of name in a certificate.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum SubjectName {
    /// The SPIFFE id when there is one, else the distinguished name.
    #[default]
    Automatic,
    /// The SPIFFE id.
    Spiffe,
    /// The one DNS name.
    Dns,
    /// The one URI.
    Uri,
    /// The one mail address.
    Email,
    /// The whole distinguished name, in the form of RFC 4514.
    SubjectDn,
}

/// Certificates as identities.
#[derive(Debug)]
pub struct ClientCertificate {
    config: ClientCertificateConfig,
    kept: Cache<String, Arc<Identity>>,
}

impl ClientCertificateConfig {
    /// Compiles the section; takes over `previous` when nothing changed.
    pub fn compile(self, previous: Option<&Arc<ClientCertificate>>) -> Arc<ClientCertificate> {
        match previous {
            Some(previous) if previous.config == self => Arc::clone(previous),
            _ => Arc::new(ClientCertificate {
                config: self,
                kept: Cache::builder()
                    .max_capacity(MAX_KEPT)
                    .time_to_live(KEPT_FOR)
                    .build(),
            }),
        }
    }
}

impl ClientCertificate {
    /// Looks for the connection's certificate.
    pub(super) fn attempt(&self, request: &InboundRequest) -> Attempt {
        let certificate = request
            .conn
            .tls
            .as_ref()
            .and_then(|tls| tls.peer_certificate.as_ref());
        match certificate {
            None => Attempt::NotPresented,
            Some(certificate) => match self.judge(certificate, request.received_at) {
                Ok(identity) => Attempt::Verified(identity),
                Err(refused) => Attempt::Refused(refused.from(Some(&Arc::from(NAME)))),
            },
        }
    }

    fn judge(
        &self,
        certificate: &PeerCertificate,
        now: SystemTime,
    ) -> Result<Arc<Identity>, Refused> {
        // The handshake may be long ago: connections outlive certificates.
        if now >= certificate.not_after || now < certificate.not_before {
            return Err(refused(
                code::CERTIFICATE_EXPIRED,
                "the certificate is not valid now",
            ));
        }
        if let Some(identity) = self.kept.get(&certificate.sha256) {
            return Ok(identity);
        }
        let subject = subject(certificate, self.config.subject)
            .filter(|name| is_name(name))
            .ok_or_else(|| {
                refused(
                    code::CERTIFICATE_SUBJECT,
                    "the certificate does not have exactly one name of the configured kind",
                )
            })?;
        let facts = Facts {
            method: NAME,
            issuer: certificate.issuer.as_str().into(),
            source: NAME.into(),
            subject: subject.into(),
            client: None,
            scopes: Vec::new(),
            roles: Vec::new(),
            claims: facts(certificate),
            token_id: Some(certificate.serial.as_str().into()),
            key_id: None,
            session: None,
            version: None,
            issued_at: Some(certificate.not_before),
            expires_at: certificate.not_after,
            valid_until: certificate.not_after,
        };
        let identity = Arc::new(facts.seal());
        self.kept
            .insert(certificate.sha256.clone(), Arc::clone(&identity));
        Ok(identity)
    }
}

fn subject(certificate: &PeerCertificate, kind: SubjectName) -> Option<&str> {
    fn only(names: &[String]) -> Option<&str> {
        match names {
            [name] => Some(name),
            _ => None,
        }
    }
    let spiffe = certificate.spiffe_id.as_deref();
    match kind {
        SubjectName::Automatic => spiffe.or(Some(&certificate.subject)),
        SubjectName::Spiffe => spiffe,
        SubjectName::Dns => only(&certificate.sans.dns),
        SubjectName::Uri => only(&certificate.sans.uri),
        SubjectName::Email => only(&certificate.sans.email),
        SubjectName::SubjectDn => Some(&certificate.subject),
    }
}

fn facts(certificate: &PeerCertificate) -> Value {
    let sans = &certificate.sans;
    let spiffe = certificate.spiffe_id.as_deref();
    document::object([
        ("subject", Value::from(certificate.subject.as_str())),
        ("issuer", Value::from(certificate.issuer.as_str())),
        ("serial", Value::from(certificate.serial.as_str())),
        ("sha256", Value::from(certificate.sha256.as_str())),
        ("spiffe_id", spiffe.map_or(Value::Null, Value::from)),
        (
            "sans",
            document::object([
                ("dns", document::strings(&sans.dns)),
                ("uri", document::strings(&sans.uri)),
                ("email", document::strings(&sans.email)),
                (
                    "ip",
                    document::strings(sans.ip.iter().map(ToString::to_string)),
                ),
            ]),
        ),
    ])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock;
    use crate::tls::Sans;

    fn certificate() -> PeerCertificate {
        let now = clock::now();
        PeerCertificate {
            subject: "CN=admin,O=Acme".into(),
            issuer: "CN=Acme CA".into(),
            serial: "2a".into(),
            sans: Sans {
                dns: vec!["a.test".into(), "b.test".into()],
                uri: vec!["spiffe://acme.test/orders".into()],
                email: vec!["orders@acme.test".into()],
                ip: vec![],
            },
            spiffe_id: Some("spiffe://acme.test/orders".into()),
            sha256: "00ff".into(),
            not_before: now - Duration::from_secs(60),
            not_after: now + Duration::from_secs(60),
        }
    }

    fn judge(subject: SubjectName, cert: &PeerCertificate) -> Result<Arc<Identity>, &'static str> {
        ClientCertificateConfig { subject }
            .compile(None)
            .judge(cert, clock::now())
            .map_err(|refused| refused.code)
    }

    #[test]
    fn the_subject_is_the_spiffe_id_or_the_whole_name_and_never_the_common_name_alone() {
        let mut cert = certificate();
        let identity = judge(SubjectName::Automatic, &cert).unwrap();
        assert_eq!(&*identity.subject, "spiffe://acme.test/orders");
        assert_eq!(&*identity.id, "CN=Acme CA|spiffe://acme.test/orders");
        assert_eq!(identity.expires_at, cert.not_after);
        assert_eq!(
            document::at(identity.document(), "claims.sans.email"),
            Some(&document::strings(["orders@acme.test"]))
        );
        cert.spiffe_id = None;
        let identity = judge(SubjectName::Automatic, &cert).unwrap();
        assert_eq!(&*identity.subject, "CN=admin,O=Acme");
        assert_eq!(
            judge(SubjectName::Spiffe, &cert).unwrap_err(),
            "certificate.subject"
        );
    }

    #[test]
    fn a_kind_of_name_that_is_there_twice_names_nobody() {
        let cert = certificate();
        assert_eq!(
            judge(SubjectName::Dns, &cert).unwrap_err(),
            "certificate.subject"
        );
        assert_eq!(
            &*judge(SubjectName::Email, &cert).unwrap().subject,
            "orders@acme.test"
        );
        assert_eq!(
            &*judge(SubjectName::Uri, &cert).unwrap().subject,
            "spiffe://acme.test/orders"
        );
        let mut nameless = certificate();
        nameless.subject = String::new();
        assert_eq!(
            judge(SubjectName::SubjectDn, &nameless).unwrap_err(),
            "certificate.subject"
        );
    }

    #[test]
    fn a_certificate_that_ended_while_its_connection_lives_is_refused() {
        let method = ClientCertificateConfig::default().compile(None);
        let cert = certificate();
        assert!(method.judge(&cert, clock::now()).is_ok());
        let refusal = method.judge(&cert, cert.not_after).unwrap_err();
        assert_eq!(refusal.code, "certificate.expired");
        assert!(
            method
                .judge(&cert, cert.not_before - Duration::from_secs(1))
                .is_err()
        );
    }
}
