//! PEM files: chains, keys, authorities, revocation lists.

use rustls::RootCertStore;
use rustls::pki_types::pem::{Error, PemObject};
use rustls::pki_types::{CertificateDer, CertificateRevocationListDer, PrivateKeyDer};
use x509_parser::prelude::{FromDer, X509Certificate};
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

/// The revocation lists of a PEM file; at least one.
pub(super) fn revocation_lists(
    pem: &[u8],
) -> Result<Vec<CertificateRevocationListDer<'static>>, TlsError> {
    let lists = CertificateRevocationListDer::pem_slice_iter(pem)
        .collect::<Result<Vec<_>, _>>()
        .map_err(|_| TlsError::Pem)?;
    if lists.is_empty() {
        return Err(TlsError::NoRevocationList);
    }
    Ok(lists)
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
    parse_der(der.as_ref())
}

/// The same of its bytes.
pub(super) fn parse_der(der: &[u8]) -> Option<X509Certificate<'_>> {
    match X509Certificate::from_der(der) {
        Ok(([], certificate)) => Some(certificate),
        _ => None,
    }
}
