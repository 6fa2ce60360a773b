//! Signatures under documents that are not certificates: revocation lists and answers of responders.

use super::der::{self, Reader};
use super::provider;

/// A signed structure of the shape that X.509 has everywhere: what is signed, how, the signature.
#[derive(Debug, Clone, Copy)]
pub(super) struct Signed<'d> {
    /// The signed element, as it stands.
    pub(super) message: &'d [u8],
    /// The content of the algorithm's identifier.
    algorithm: &'d [u8],
    signature: &'d [u8],
}

impl<'d> Signed<'d> {
    /// Reads the three parts and leaves what follows to the reader.
    pub(super) fn read(from: &mut Reader<'d>) -> Option<Self> {
        Some(Self {
            message: from.next(der::SEQUENCE)?.whole,
            algorithm: from.next(der::SEQUENCE)?.content,
            signature: from.next(der::BIT_STRING)?.bits()?,
        })
    }

    /// Whether this key (a whole `SubjectPublicKeyInfo`) made the signature, by an algorithm that we
    /// believe for certificates too.
    pub(super) fn is_by(&self, key: &[u8]) -> bool {
        let Some((kind, point)) = public_key(key) else {
            return false;
        };
        provider()
            .signature_verification_algorithms
            .all
            .iter()
            .filter(|known| {
                known.public_key_alg_id().as_ref() == kind
                    && known.signature_alg_id().as_ref() == self.algorithm
            })
            .any(|known| {
                known
                    .verify_signature(point, self.message, self.signature)
                    .is_ok()
            })
    }
}

/// The algorithm and the bits of a `SubjectPublicKeyInfo`.
pub(super) fn public_key(key: &[u8]) -> Option<(&[u8], &[u8])> {
    let mut parts = Reader(key).only(der::SEQUENCE)?.inside();
    let kind = parts.next(der::SEQUENCE)?.content;
    let bits = parts.next(der::BIT_STRING)?.bits()?;
    Some((kind, bits))
}
