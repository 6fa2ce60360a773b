//! PEM files: chains, keys, authorities, revocation lists.

use rustls::RootCertStore;
use rustls::pki_types::pem::{Error, PemObject};
use rustls::pki_types::{CertificateDer, CertificateRevocationListDer, PrivateKeyDer};
use x509_parser::prelude::{CertificateRevocationList, FromDer, X509Certificate};
use x509_parser::public_key::PublicKey;

use super::{MINIMUM_RSA_BITS, TlsError};

/// The certificates of a PEM file, in its order; at least one, each parsed and none weak.
pub(super) fn certificates(pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let chain = CertificateDer::pem_slice_iter(pem)
        .collect::<Result<Vec<_>, _>>()
        .map_err(|_| TlsError::Pem)?;
    if chain.is_empty() {
        return Err(TlsError::NoCertificate);
    }
    for (index, der) in chain.iter().enumerate() {
        let parsed = parse(der).ok_or(TlsError::Certificate(index + 1))?;
        if let Ok(PublicKey::RSA(key)) = parsed.public_key().parsed()
            && key.key_size() < MINIMUM_RSA_BITS
        {
            return Err(TlsError::WeakKey(key.key_size()));
        }
    }
    Ok(chain)
}

/// The first private key of a PEM file.
pub(super) fn private_key(pem: &[u8]) -> Result<PrivateKeyDer<'static>, TlsError> {
    PrivateKeyDer::from_pem_slice(pem).map_err(|error| {
        if matches!(error, Error::NoItemsFound) {
            TlsError::NoKey
        } else {
            TlsError::Pem
        }
    })
}

/// A revocation list, and when it stops being believed.
pub(super) struct RevocationList {
    pub(super) der: CertificateRevocationListDer<'static>,
    /// Seconds since 1970; `None` when the list does not say, which RFC 5280 does not allow.
    pub(super) next_update: Option<i64>,
}

/// The revocation lists of a PEM file; at least one, each parsed. Their signatures are checked when
/// a chain needs them, for only the chain brings the key of an intermediate.
pub(super) fn revocation_lists(pem: &[u8]) -> Result<Vec<RevocationList>, TlsError> {
    let lists = CertificateRevocationListDer::pem_slice_iter(pem)
        .collect::<Result<Vec<_>, _>>()
        .map_err(|_| TlsError::Pem)?;
    if lists.is_empty() {
        return Err(TlsError::NoRevocationList);
    }
    let parsed = |(index, der): (usize, CertificateRevocationListDer<'static>)| {
        let next_update = match CertificateRevocationList::from_der(der.as_ref()) {
            Ok(([], list)) => list.next_update().map(|time| time.timestamp()),
            _ => return Err(TlsError::RevocationList(index + 1)),
        };
        Ok(RevocationList { der, next_update })
    };
    lists.into_iter().enumerate().map(parsed).collect()
}

/// A set of authorities from PEM files. Every certificate of every file must be usable: dropping
/// one silently would lock clients out, and an empty set must never widen into a default one.
pub(super) fn authorities(files: &[Vec<u8>]) -> Result<RootCertStore, TlsError> {
    let mut store = RootCertStore::empty();
    for pem in files {
        for certificate in certificates(pem)? {
            store.add(certificate)?;
        }
    }
    if store.is_empty() {
        return Err(TlsError::NoCertificate);
    }
    Ok(store)
}

/// Parses one certificate; trailing bytes are an error.
pub(super) fn parse<'d>(der: &'d CertificateDer<'_>) -> Option<X509Certificate<'d>> {
    match X509Certificate::from_der(der.as_ref()) {
        Ok(([], certificate)) => Some(certificate),
        _ => None,
    }
}
