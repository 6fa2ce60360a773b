//! Signature algorithms by their registered names (RFC 7518 section 3.1, RFC 8037 section 3.1).

use std::fmt;
use std::sync::Arc;

use aws_lc_rs::signature::{
    ECDSA_P521_SHA512_FIXED, ParsedPublicKey, RSA_PKCS1_2048_8192_SHA256,
    RSA_PKCS1_2048_8192_SHA384, RSA_PKCS1_2048_8192_SHA512, RSA_PSS_2048_8192_SHA256,
    RSA_PSS_2048_8192_SHA384, RSA_PSS_2048_8192_SHA512, RsaParameters, UnparsedPublicKey,
};
use jsonwebtoken::DecodingKey;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::jws::Jws;

/// A signature algorithm that may be listed for an issuer. `none` is not one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
pub enum Algorithm {
    /// RSASSA-PKCS1-v1_5 with SHA-256.
    RS256,
    /// RSASSA-PKCS1-v1_5 with SHA-384.
    RS384,
    /// RSASSA-PKCS1-v1_5 with SHA-512.
    RS512,
    /// RSASSA-PSS with SHA-256.
    PS256,
    /// RSASSA-PSS with SHA-384.
    PS384,
    /// RSASSA-PSS with SHA-512.
    PS512,
    /// ECDSA on P-256 with SHA-256.
    ES256,
    /// ECDSA on P-384 with SHA-384.
    ES384,
    /// ECDSA on P-521 with SHA-512.
    ES512,
    /// Ed25519.
    EdDSA,
    /// HMAC with SHA-256, for shared secrets.
    HS256,
    /// HMAC with SHA-384, for shared secrets.
    HS384,
    /// HMAC with SHA-512, for shared secrets.
    HS512,
}

/// What kind of key an algorithm takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Family {
    /// An RSA key.
    Rsa,
    /// A key on P-256.
    P256,
    /// A key on P-384.
    P384,
    /// A key on P-521.
    P521,
    /// An Ed25519 key.
    Ed25519,
    /// A shared secret.
    Secret,
}

impl Algorithm {
    /// All there are.
    pub(super) const ALL: [Self; 13] = [
        Self::RS256,
        Self::RS384,
        Self::RS512,
        Self::PS256,
        Self::PS384,
        Self::PS512,
        Self::ES256,
        Self::ES384,
        Self::ES512,
        Self::EdDSA,
        Self::HS256,
        Self::HS384,
        Self::HS512,
    ];

    /// The registered name.
    pub const fn name(self) -> &'static str {
        match self {
            Self::RS256 => "RS256",
            Self::RS384 => "RS384",
            Self::RS512 => "RS512",
            Self::PS256 => "PS256",
            Self::PS384 => "PS384",
            Self::PS512 => "PS512",
            Self::ES256 => "ES256",
            Self::ES384 => "ES384",
            Self::ES512 => "ES512",
            Self::EdDSA => "EdDSA",
            Self::HS256 => "HS256",
            Self::HS384 => "HS384",
            Self::HS512 => "HS512",
        }
    }

    /// The algorithm of this name, byte for byte: `none` has many spellings, ours have one.
    pub(super) fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|alg| alg.name() == name)
    }

    /// Whether it uses a shared secret.
    pub const fn is_symmetric(self) -> bool {
        matches!(self.family(), Family::Secret)
    }

    pub(super) const fn family(self) -> Family {
        match self {
            Self::RS256 | Self::RS384 | Self::RS512 => Family::Rsa,
            Self::PS256 | Self::PS384 | Self::PS512 => Family::Rsa,
            Self::ES256 => Family::P256,
            Self::ES384 => Family::P384,
            Self::ES512 => Family::P521,
            Self::EdDSA => Family::Ed25519,
            Self::HS256 | Self::HS384 | Self::HS512 => Family::Secret,
        }
    }

    /// The only length a signature can have, when the algorithm fixes it: ECDSA signatures are two
    /// numbers of the curve's size (RFC 7518 section 3.4), never DER, never padded.
    pub(super) const fn signature_length(self) -> Option<usize> {
        match self {
            Self::ES256 | Self::EdDSA => Some(64),
            Self::ES384 => Some(96),
            Self::ES512 => Some(132),
            Self::HS256 => Some(32),
            Self::HS384 => Some(48),
            Self::HS512 => Some(64),
            Self::RS256 | Self::RS384 | Self::RS512 | Self::PS256 | Self::PS384 | Self::PS512 => {
                None
            }
        }
    }

    const fn library(self) -> Option<jsonwebtoken::Algorithm> {
        use jsonwebtoken::Algorithm as Library;
        match self {
            Self::RS256 => Some(Library::RS256),
            Self::RS384 => Some(Library::RS384),
            Self::RS512 => Some(Library::RS512),
            Self::PS256 => Some(Library::PS256),
            Self::PS384 => Some(Library::PS384),
            Self::PS512 => Some(Library::PS512),
            Self::ES256 => Some(Library::ES256),
            Self::ES384 => Some(Library::ES384),
            // Unknown to the library.
            Self::ES512 => None,
            Self::EdDSA => Some(Library::EdDSA),
            Self::HS256 => Some(Library::HS256),
            Self::HS384 => Some(Library::HS384),
            Self::HS512 => Some(Library::HS512),
        }
    }
}

impl fmt::Display for Algorithm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Key material in the form that verifies.
#[derive(Clone)]
pub(super) enum Material {
    /// What the library verifies with.
    Library(DecodingKey),
    /// An RSA key.
    Rsa(Arc<RsaKey>),
    /// A point on P-521, uncompressed.
    P521(Vec<u8>),
}

impl fmt::Debug for Material {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Material(…)")
    }
}

/// An RSA key, taken in once. The library makes it anew from its numbers for every token, with the
/// tables for its modulus: an eighth of what a verification costs.
pub(super) struct RsaKey([(Algorithm, ParsedPublicKey); 6]);

impl RsaKey {
    /// From the modulus and the exponent, without leading zeros.
    pub(super) fn new(modulus: &[u8], exponent: &[u8]) -> Option<Self> {
        let der = pkcs1(modulus, exponent)?;
        let parsed = |algorithm, with: &'static RsaParameters| {
            let key = ParsedPublicKey::new(with, &der).ok()?;
            Some((algorithm, key))
        };
        Some(Self([
            parsed(Algorithm::RS256, &RSA_PKCS1_2048_8192_SHA256)?,
            parsed(Algorithm::RS384, &RSA_PKCS1_2048_8192_SHA384)?,
            parsed(Algorithm::RS512, &RSA_PKCS1_2048_8192_SHA512)?,
            parsed(Algorithm::PS256, &RSA_PSS_2048_8192_SHA256)?,
            parsed(Algorithm::PS384, &RSA_PSS_2048_8192_SHA384)?,
            parsed(Algorithm::PS512, &RSA_PSS_2048_8192_SHA512)?,
        ]))
    }

    fn verify(&self, algorithm: Algorithm, jws: &Jws<'_>) -> bool {
        let Self(parsed) = self;
        let key = parsed.iter().find(|(known, _)| *known == algorithm);
        let signature = super::jws::decode(jws.signature);
        let (Some((_, key)), Some(signature)) = (key, signature) else {
            return false;
        };
        key.verify_sig(jws.signed.as_bytes(), &signature).is_ok()
    }
}

/// `RSAPublicKey` of RFC 8017 appendix A.1.1, in DER.
fn pkcs1(modulus: &[u8], exponent: &[u8]) -> Option<Vec<u8>> {
    const INTEGER: u8 = 2;
    const SEQUENCE: u8 = 0x30;
    let element = |tag: u8, parts: [&[u8]; 2]| {
        let length: usize = parts.iter().map(|part| part.len()).sum();
        let mut element = vec![tag];
        match (u8::try_from(length), u16::try_from(length)) {
            (Ok(short @ ..0x80), _) => element.push(short),
            (Ok(one), _) => element.extend([0x81, one]),
            (Err(_), Ok(two)) => {
                element.push(0x82);
                element.extend(two.to_be_bytes());
            }
            (Err(_), Err(_)) => return None,
        }
        parts.iter().for_each(|part| element.extend(*part));
        Some(element)
    };
    // A number whose first bit is set would be negative without a zero before it.
    let number = |bytes: &[u8]| {
        let zero: &[u8] = match bytes.first() {
            Some(0x80..) => &[0],
            Some(_) => &[],
            None => return None,
        };
        element(INTEGER, [zero, bytes])
    };
    element(SEQUENCE, [&number(modulus)?, &number(exponent)?])
}

/// Whether the signature is right. The caller has checked that key and algorithm belong together.
pub(super) fn verify(algorithm: Algorithm, material: &Material, jws: &Jws<'_>) -> bool {
    if algorithm
        .signature_length()
        .is_some_and(|length| length != jws.signature_length)
    {
        return false;
    }
    match (material, algorithm.library()) {
        (Material::Library(key), Some(library)) => {
            jsonwebtoken::crypto::verify(jws.signature, jws.signed.as_bytes(), key, library)
                .unwrap_or(false)
        }
        (Material::Rsa(key), _) => key.verify(algorithm, jws),
        (Material::P521(point), None) => super::jws::decode(jws.signature).is_some_and(|raw| {
            UnparsedPublicKey::new(&ECDSA_P521_SHA512_FIXED, point)
                .verify(jws.signed.as_bytes(), &raw)
                .is_ok()
        }),
        (Material::Library(_), None) | (Material::P521(_), Some(_)) => false,
    }
}
