//! OCSP (RFC 6960): the question about one certificate, and what an answer must be to be believed.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use aws_lc_rs::digest::{SHA1_FOR_LEGACY_USE_ONLY, digest};
use x509_parser::prelude::{FromDer, X509Extension};

use super::chain::{Authority, Link};
use super::list::{instant, trimmed};
use crate::tls::der::{self, Element, Reader};
use crate::tls::pem;
use crate::tls::signed::{Signed, public_key};

/// Largest answer that is read.
pub const MAX_ANSWER: usize = 64 * 1024;

/// Most certificates of an answer that are tried as its signer's.
const MAX_SIGNERS: usize = 4;

/// Most single answers in an answer; we ask one question.
const MAX_SINGLE: usize = 64;

/// Length of a nonce (RFC 8954 section 2.1).
const NONCE: usize = 32;

/// `id-pkix-ocsp-basic`.
const BASIC: &[u8] = &[0x2b, 6, 1, 5, 5, 7, 0x30, 1, 1];
/// `id-pkix-ocsp-nonce`.
const NONCE_OID: &[u8] = &[0x2b, 6, 1, 5, 5, 7, 0x30, 1, 2];
/// `id-sha1`. It names the authority here and protects nothing; every responder knows it (RFC 5019
/// section 2.1.1), many know no other.
const SHA1: &[u8] = &[0x2b, 0x0e, 3, 2, 0x1a];

/// What a responder says of a certificate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CertificateStatus {
    /// It is not revoked.
    Good,
    /// It is revoked, or on hold.
    Revoked,
    /// The responder does not know it.
    Unknown,
}

impl CertificateStatus {
    /// A stable word for metrics.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Good => "good",
            Self::Revoked => "revoked",
            Self::Unknown => "unknown",
        }
    }
}

/// Why an answer is not believed. Whose fault: the responder's, or of somebody on the way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum AnswerError {
    /// It cannot be parsed, or has a critical extension that we do not know.
    #[error("the answer cannot be read")]
    Unreadable,
    /// The responder refuses (RFC 6960 section 4.2.1: 1 malformed, 2 internal, 3 later, 5 signature
    /// required, 6 unauthorized).
    #[error("the responder refuses with status {0}")]
    Refused(u8),
    /// Neither the certificate's authority nor a responder that it has appointed signed it.
    #[error("the answer is not signed by the authority or a responder of its")]
    Signature,
    /// It is about another certificate.
    #[error("the answer is about another certificate")]
    Other,
    /// It is too old, or from the future.
    #[error("the answer is not of this time")]
    Stale,
    /// It does not carry the nonce of the question.
    #[error("the answer does not carry the nonce of the question")]
    Nonce,
}

impl AnswerError {
    /// A stable word for metrics.
    pub const fn code(self) -> &'static str {
        match self {
            Self::Unreadable => "unreadable",
            Self::Refused(_) => "refused",
            Self::Signature => "signature",
            Self::Other => "other_certificate",
            Self::Stale => "stale",
            Self::Nonce => "nonce",
        }
    }
}

/// An answer that is believed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Answer {
    pub(super) status: CertificateStatus,
    /// `thisUpdate`.
    pub(super) issued: SystemTime,
    /// `nextUpdate`; without one there is always something newer.
    pub(super) ends: Option<SystemTime>,
}

/// How old answers may be.
#[derive(Debug, Clone, Copy)]
pub(super) struct Freshness {
    /// How far the responder's clock and ours may differ.
    pub(super) leeway: Duration,
    /// How old an answer without `nextUpdate` may be.
    pub(super) maximum: Duration,
}

/// A question, and what is needed to believe its answer.
#[derive(Debug)]
pub(super) struct Inquiry {
    issuer: Arc<Authority>,
    serial: Box<[u8]>,
    name_hash: [u8; 20],
    key_hash: [u8; 20],
    nonce: Option<[u8; NONCE]>,
}

impl Inquiry {
    /// A question about a certificate; `None` when its authority's key cannot be read.
    pub(super) fn about(link: &Link, with_nonce: bool) -> Option<Self> {
        let (_, bits) = public_key(&link.issuer.key)?;
        let name = der::wrap(der::SEQUENCE, &[&link.issuer.name]);
        Some(Self {
            issuer: Arc::clone(&link.issuer),
            serial: link.serial.clone(),
            name_hash: sha1(&name),
            key_hash: sha1(bits),
            nonce: with_nonce.then(rand::random),
        })
    }

    /// Who signed the certificate.
    pub(super) fn issuer(&self) -> Arc<Authority> {
        Arc::clone(&self.issuer)
    }

    /// The question in DER form (RFC 6960 section 4.1.1).
    pub(super) fn question(&self) -> Vec<u8> {
        let algorithm = der::wrap(der::SEQUENCE, &[&der::wrap(der::OID, &[SHA1]), &[5, 0]]);
        let id = der::wrap(
            der::SEQUENCE,
            &[
                &algorithm,
                &der::wrap(der::OCTET_STRING, &[&self.name_hash]),
                &der::wrap(der::OCTET_STRING, &[&self.key_hash]),
                &der::wrap(der::INTEGER, &[&self.serial]),
            ],
        );
        let list = der::wrap(der::SEQUENCE, &[&der::wrap(der::SEQUENCE, &[&id])]);
        let extensions = self.nonce.map(|nonce| {
            let value = der::wrap(
                der::OCTET_STRING,
                &[&der::wrap(der::OCTET_STRING, &[&nonce])],
            );
            let one = der::wrap(der::SEQUENCE, &[&der::wrap(der::OID, &[NONCE_OID]), &value]);
            der::wrap(der::context(2), &[&der::wrap(der::SEQUENCE, &[&one])])
        });
        let body = der::wrap(
            der::SEQUENCE,
            &[&list, extensions.as_deref().unwrap_or_default()],
        );
        der::wrap(der::SEQUENCE, &[&body])
    }

    /// Believes an answer, or says why not. `revoked` tells of serial numbers of the same authority
    /// that its lists name: an appointed responder may be among them.
    pub(super) fn believe(
        &self,
        body: &[u8],
        now: SystemTime,
        fresh: Freshness,
        revoked: impl Fn(&[u8]) -> bool,
    ) -> Result<Answer, AnswerError> {
        let mut response = Reader(body)
            .only(der::SEQUENCE)
            .ok_or(AnswerError::Unreadable)?
            .inside();
        match response.next(der::ENUMERATED).map(|status| status.content) {
            Some([0]) => {}
            Some([status]) => return Err(AnswerError::Refused(*status)),
            _ => return Err(AnswerError::Unreadable),
        }
        let basic = basic(response).ok_or(AnswerError::Unreadable)?;
        let mut parts = basic.inside();
        let signed = Signed::read(&mut parts).ok_or(AnswerError::Unreadable)?;
        let data = Data::read(signed.message).ok_or(AnswerError::Unreadable)?;
        let certificates = match parts.optional(der::context(0)) {
            Some(Some(element)) => element.inside().only(der::SEQUENCE).map(Element::inside),
            Some(None) => Some(Reader(&[])),
            None => None,
        };
        let certificates = certificates
            .filter(|_| parts.is_empty())
            .ok_or(AnswerError::Unreadable)?;
        if !self.is_signed(&signed, &data, certificates, now, revoked) {
            return Err(AnswerError::Signature);
        }
        if self.nonce.is_some_and(|nonce| data.nonce != Some(&nonce)) {
            return Err(AnswerError::Nonce);
        }
        self.single(data.singles, now, fresh)
    }

    /// Whether the authority signed, or somebody whom it has appointed (section 4.2.2.2).
    fn is_signed(
        &self,
        signed: &Signed<'_>,
        data: &Data<'_>,
        mut certificates: Reader<'_>,
        now: SystemTime,
        revoked: impl Fn(&[u8]) -> bool,
    ) -> bool {
        if data.is_from(&self.issuer.name, &self.issuer.key) && signed.is_by(&self.issuer.key) {
            return true;
        }
        for _ in 0..MAX_SIGNERS {
            let Some(certificate) = certificates.next(der::SEQUENCE) else {
                return false;
            };
            if self
                .appointed(certificate.whole, data, now, &revoked)
                .is_some_and(|key| signed.is_by(&key))
            {
                return true;
            }
        }
        false
    }

    /// The key of a certificate by which our authority appoints a responder.
    fn appointed(
        &self,
        der: &[u8],
        data: &Data<'_>,
        now: SystemTime,
        revoked: &impl Fn(&[u8]) -> bool,
    ) -> Option<Vec<u8>> {
        let certificate = pem::parse_der(der)?;
        let mut parts = Reader(der).only(der::SEQUENCE)?.inside();
        let signed = Signed::read(&mut parts).filter(|_| parts.is_empty())?;
        let issuer = Reader(certificate.issuer().as_raw()).only(der::SEQUENCE)?;
        let subject = Reader(certificate.subject().as_raw()).only(der::SEQUENCE)?;
        let key = certificate.public_key().raw;
        let from = instant(certificate.validity().not_before.timestamp());
        let until = instant(certificate.validity().not_after.timestamp());
        let appointed = certificate
            .extended_key_usage()
            .ok()?
            .is_some_and(|usage| usage.value.ocsp_signing);
        let signs = certificate
            .key_usage()
            .ok()?
            .is_none_or(|usage| usage.value.digital_signature());
        let good = *issuer.content == *self.issuer.name
            && data.is_from(subject.content, key)
            && from <= now
            && now < until
            && appointed
            && signs
            && !revoked(certificate.raw_serial())
            && signed.is_by(&self.issuer.key);
        good.then(|| key.to_vec())
    }

    /// What is said of our certificate; of several, the worst.
    fn single(
        &self,
        mut singles: Reader<'_>,
        now: SystemTime,
        fresh: Freshness,
    ) -> Result<Answer, AnswerError> {
        let mut found: Option<Answer> = None;
        for _ in 0..MAX_SINGLE {
            if singles.is_empty() {
                break;
            }
            let single = Single::read(&mut singles).ok_or(AnswerError::Unreadable)?;
            if !self.is_about(&single) {
                continue;
            }
            let issued = instant(single.this_update);
            let ends = single.next_update.map(instant);
            let oldest = now.checked_sub(fresh.maximum + fresh.leeway);
            if issued > now + fresh.leeway
                || ends.is_some_and(|ends| ends + fresh.leeway <= now)
                || (ends.is_none() && oldest.is_some_and(|oldest| issued < oldest))
            {
                return Err(AnswerError::Stale);
            }
            let answer = Answer {
                status: single.status,
                issued,
                ends,
            };
            if found.is_none() || answer.status == CertificateStatus::Revoked {
                found = Some(answer);
            }
        }
        found.ok_or(AnswerError::Other)
    }

    fn is_about(&self, single: &Single<'_>) -> bool {
        *single.algorithm == *SHA1
            && *single.name_hash == self.name_hash
            && *single.key_hash == self.key_hash
            && trimmed(single.serial) == trimmed(&self.serial)
    }
}

/// The `BasicOCSPResponse` of a response.
fn basic(response: Reader<'_>) -> Option<Element<'_>> {
    let mut bytes = response
        .only(der::context(0))?
        .inside()
        .only(der::SEQUENCE)?
        .inside();
    let kind = bytes.next(der::OID)?;
    let basic = bytes.only(der::OCTET_STRING)?;
    (kind.content == BASIC).then_some(())?;
    Reader(basic.content).only(der::SEQUENCE)
}

/// `ResponseData`.
struct Data<'d> {
    responder: Element<'d>,
    singles: Reader<'d>,
    nonce: Option<&'d [u8]>,
}

impl<'d> Data<'d> {
    fn read(message: &'d [u8]) -> Option<Self> {
        let mut parts = Reader(message).only(der::SEQUENCE)?.inside();
        if let Some(version) = parts.optional(der::context(0))? {
            let version = version.inside().only(der::INTEGER)?;
            (version.content == [0]).then_some(())?;
        }
        let responder = parts.any()?;
        parts.next(der::GENERALIZED_TIME)?.time()?;
        let singles = parts.next(der::SEQUENCE)?.inside();
        let mut nonce = None;
        if let Some(extensions) = parts.optional(der::context(1))? {
            extensions_of(extensions, |oid, value| {
                if oid == NONCE_OID {
                    nonce = Reader(value).only(der::OCTET_STRING).map(|e| e.content);
                }
                oid == NONCE_OID
            })?;
        }
        parts.is_empty().then_some(Self {
            responder,
            singles,
            nonce,
        })
    }

    /// Whether the answer says that it is from this one: by name, or by the hash of the key.
    fn is_from(&self, name: &[u8], key: &[u8]) -> bool {
        const BY_NAME: u8 = der::context(1);
        const BY_KEY: u8 = der::context(2);
        let inside = self.responder.inside();
        match self.responder.tag {
            BY_NAME => inside
                .only(der::SEQUENCE)
                .is_some_and(|said| said.content == name),
            BY_KEY => inside.only(der::OCTET_STRING).is_some_and(|said| {
                public_key(key).is_some_and(|(_, bits)| *said.content == sha1(bits))
            }),
            _ => false,
        }
    }
}

/// `SingleResponse`.
struct Single<'d> {
    algorithm: &'d [u8],
    name_hash: &'d [u8],
    key_hash: &'d [u8],
    serial: &'d [u8],
    status: CertificateStatus,
    this_update: i64,
    next_update: Option<i64>,
}

impl<'d> Single<'d> {
    fn read(from: &mut Reader<'d>) -> Option<Self> {
        const GOOD: u8 = 0x80;
        const REVOKED: u8 = 0xa1;
        const UNKNOWN: u8 = 0x82;
        let mut parts = from.next(der::SEQUENCE)?.inside();
        let mut id = parts.next(der::SEQUENCE)?.inside();
        let algorithm = id.next(der::SEQUENCE)?.inside().next(der::OID)?.content;
        let name_hash = id.next(der::OCTET_STRING)?.content;
        let key_hash = id.next(der::OCTET_STRING)?.content;
        let serial = id.only(der::INTEGER)?.content;
        let status = match parts.any()?.tag {
            GOOD => CertificateStatus::Good,
            REVOKED => CertificateStatus::Revoked,
            UNKNOWN => CertificateStatus::Unknown,
            _ => return None,
        };
        let this_update = parts.next(der::GENERALIZED_TIME)?.time()?;
        let next_update = match parts.optional(der::context(0))? {
            Some(time) => Some(time.inside().only(der::GENERALIZED_TIME)?.time()?),
            None => None,
        };
        if let Some(extensions) = parts.optional(der::context(1))? {
            extensions_of(extensions, |_, _| false)?;
        }
        parts.is_empty().then_some(Self {
            algorithm,
            name_hash,
            key_hash,
            serial,
            status,
            this_update,
            next_update,
        })
    }
}

/// Hands on each extension; `None` when one is critical that nobody knows.
fn extensions_of<'d>(
    around: Element<'d>,
    mut known: impl FnMut(&'d [u8], &'d [u8]) -> bool,
) -> Option<()> {
    let mut extensions = around.inside().only(der::SEQUENCE)?.inside();
    while !extensions.is_empty() {
        let element = extensions.next(der::SEQUENCE)?;
        let ([], parsed) = X509Extension::from_der(element.whole).ok()? else {
            return None;
        };
        let oid = element.inside().next(der::OID)?.content;
        if !known(oid, parsed.value) && parsed.critical {
            return None;
        }
    }
    Some(())
}

fn sha1(bytes: &[u8]) -> [u8; 20] {
    let mut out = [0; 20];
    for (to, from) in out
        .iter_mut()
        .zip(digest(&SHA1_FOR_LEGACY_USE_ONLY, bytes).as_ref())
    {
        *to = *from;
    }
    out
}

#[cfg(test)]
#[path = "ocsp_tests.rs"]
mod tests;
