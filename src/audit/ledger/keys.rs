//! The keys that seal a ledger: Ed25519 (RFC 8032), named by their thumbprints (RFC 7638, RFC 8037).

use std::fmt;

use aws_lc_rs::digest::{SHA256, digest};
use aws_lc_rs::signature::{ED25519, Ed25519KeyPair, KeyPair, UnparsedPublicKey};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD as BASE64;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{PrivateKeyDer, SubjectPublicKeyInfoDer};

/// What stands before the 32 bytes in the DER form of a public key (RFC 8410).
const PREFIX: [u8; 12] = [
    0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0x00,
];

/// A public key that seals are verified with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PublicKey([u8; 32]);

impl PublicKey {
    /// From a PEM file with a public or private key.
    pub fn from_pem(pem: &[u8]) -> Option<Self> {
        if let Ok(der) = SubjectPublicKeyInfoDer::from_pem_slice(pem) {
            let raw = der.as_ref().strip_prefix(&PREFIX)?;
            return raw.try_into().map(Self).ok();
        }
        SealingKey::from_pem(pem).map(|key| key.public)
    }

    /// From RFC 8037 `x`.
    pub(super) fn from_x(x: &str) -> Option<Self> {
        BASE64.decode(x).ok()?.try_into().map(Self).ok()
    }

    pub(super) fn x(&self) -> String {
        BASE64.encode(self.0)
    }

    /// RFC 7638.
    pub fn thumbprint(&self) -> String {
        let jwk = format!(r#"{{"crv":"Ed25519","kty":"OKP","x":"{}"}}"#, self.x());
        BASE64.encode(digest(&SHA256, jwk.as_bytes()))
    }

    pub(super) fn verifies(&self, message: &[u8], signature: &str) -> bool {
        let key = UnparsedPublicKey::new(&ED25519, self.0);
        BASE64
            .decode(signature)
            .is_ok_and(|signature| key.verify(message, &signature).is_ok())
    }
}

/// A private key that signs.
pub(super) struct SealingKey {
    pair: Ed25519KeyPair,
    pub(super) public: PublicKey,
    pub(super) kid: String,
}

impl fmt::Debug for SealingKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SealingKey")
            .field("kid", &self.kid)
            .finish_non_exhaustive()
    }
}

impl SealingKey {
    /// From PKCS#8 in PEM, as `openssl genpkey -algorithm ed25519` writes it.
    pub(super) fn from_pem(pem: &[u8]) -> Option<Self> {
        let der = PrivateKeyDer::from_pem_slice(pem).ok()?;
        let pair = Ed25519KeyPair::from_pkcs8_maybe_unchecked(der.secret_der()).ok()?;
        let public = PublicKey(pair.public_key().as_ref().try_into().ok()?);
        let kid = public.thumbprint();
        Some(Self { pair, public, kid })
    }

    pub(super) fn sign(&self, message: &[u8]) -> String {
        BASE64.encode(self.pair.sign(message))
    }
}
