//! The development issuer's signing keys.

use std::fmt;
use std::str::FromStr;

use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::rsa::KeySize;
use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, Ed25519KeyPair, KeyPair as _, RSA_PKCS1_SHA256,
    RsaKeyPair,
};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::{Value, json};
use x509_parser::prelude::FromDer as _;
use x509_parser::public_key::RSAPublicKey;

/// How the development issuer signs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Algorithm {
    /// RSA PKCS#1 v1.5 with SHA-256, 2048 bits.
    Rs256,
    /// ECDSA on P-256 with SHA-256.
    #[default]
    Es256,
    /// Ed25519.
    EdDsa,
}

impl Algorithm {
    /// All of them, in the order of the key set.
    pub const ALL: [Self; 3] = [Self::Es256, Self::Rs256, Self::EdDsa];

    /// The name in a token's header.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Rs256 => "RS256",
            Self::Es256 => "ES256",
            Self::EdDsa => "EdDSA",
        }
    }
}

impl fmt::Display for Algorithm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Algorithm {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::ALL
            .into_iter()
            .find(|algorithm| algorithm.name().eq_ignore_ascii_case(text))
            .ok_or_else(|| format!("`{text}` is not one of ES256, RS256, EdDSA"))
    }
}

/// Making a key or a signature failed.
#[derive(Debug, thiserror::Error)]
#[error("the cryptographic library refused")]
pub struct KeyFault;

impl From<aws_lc_rs::error::Unspecified> for KeyFault {
    fn from(_: aws_lc_rs::error::Unspecified) -> Self {
        Self
    }
}

/// One key with its public half as a JWK.
#[derive(Debug)]
struct SigningKey {
    id: String,
    pair: Pair,
    jwk: Value,
}

#[derive(Debug)]
enum Pair {
    Rsa(RsaKeyPair),
    Ec(EcdsaKeyPair),
    Ed(Ed25519KeyPair),
}

impl SigningKey {
    fn generate(algorithm: Algorithm, generation: u64) -> Result<Self, KeyFault> {
        // The random part keeps a key id from coming back after a restart.
        let id = format!(
            "{}-{generation}-{:08x}",
            algorithm.name().to_lowercase(),
            rand::random::<u32>()
        );
        let text = |bytes: &[u8]| URL_SAFE_NO_PAD.encode(bytes);
        let (pair, mut jwk) = match algorithm {
            Algorithm::Rs256 => {
                let pair = RsaKeyPair::generate(KeySize::Rsa2048)?;
                let (_, public) =
                    RSAPublicKey::from_der(pair.public_key().as_ref()).map_err(|_| KeyFault)?;
                // DER integers carry a zero before a set top bit; RFC 7518 section 6.3.1 has none.
                let jwk = json!({
                    "kty": "RSA",
                    "n": text(without_zeros(public.modulus)),
                    "e": text(without_zeros(public.exponent)),
                });
                (Pair::Rsa(pair), jwk)
            }
            Algorithm::Es256 => {
                let pair = EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING)?;
                // 0x04, x, y: SEC 1 section 2.3.3.
                let point = pair.public_key().as_ref();
                let (x, y) = point
                    .get(1..)
                    .and_then(|point| point.split_at_checked(32))
                    .ok_or(KeyFault)?;
                let jwk = json!({ "kty": "EC", "crv": "P-256", "x": text(x), "y": text(y) });
                (Pair::Ec(pair), jwk)
            }
            Algorithm::EdDsa => {
                let pair = Ed25519KeyPair::generate()?;
                let jwk = json!({
                    "kty": "OKP", "crv": "Ed25519", "x": text(pair.public_key().as_ref()),
                });
                (Pair::Ed(pair), jwk)
            }
        };
        if let Some(members) = jwk.as_object_mut() {
            members.insert("kid".to_owned(), id.as_str().into());
            members.insert("alg".to_owned(), algorithm.name().into());
            members.insert("use".to_owned(), "sig".into());
        }
        Ok(Self { id, pair, jwk })
    }

    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, KeyFault> {
        let random = SystemRandom::new();
        Ok(match &self.pair {
            Pair::Rsa(pair) => {
                let mut signature = vec![0; pair.public_modulus_len()];
                pair.sign(&RSA_PKCS1_SHA256, &random, message, &mut signature)?;
                signature
            }
            Pair::Ec(pair) => pair.sign(&random, message)?.as_ref().to_vec(),
            Pair::Ed(pair) => pair.sign(message).as_ref().to_vec(),
        })
    }
}

fn without_zeros(bytes: &[u8]) -> &[u8] {
    let zeros = bytes.iter().take_while(|byte| **byte == 0).count();
    bytes.get(zeros..).unwrap_or_default()
}

/// One key for each algorithm.
#[derive(Debug)]
pub(super) struct KeySet {
    rs256: SigningKey,
    es256: SigningKey,
    eddsa: SigningKey,
    generation: u64,
}

impl KeySet {
    /// Makes one generation of keys. Takes a noticeable part of a second (RSA).
    pub(super) fn generate(generation: u64) -> Result<Self, KeyFault> {
        Ok(Self {
            rs256: SigningKey::generate(Algorithm::Rs256, generation)?,
            es256: SigningKey::generate(Algorithm::Es256, generation)?,
            eddsa: SigningKey::generate(Algorithm::EdDsa, generation)?,
            generation,
        })
    }

    /// Which generation this is.
    pub(super) const fn generation(&self) -> u64 {
        self.generation
    }

    fn key(&self, algorithm: Algorithm) -> &SigningKey {
        match algorithm {
            Algorithm::Rs256 => &self.rs256,
            Algorithm::Es256 => &self.es256,
            Algorithm::EdDsa => &self.eddsa,
        }
    }

    /// The public halves.
    pub(super) fn jwks(&self) -> impl Iterator<Item = &Value> {
        Algorithm::ALL
            .into_iter()
            .map(|algorithm| &self.key(algorithm).jwk)
    }

    /// Signs an access token (RFC 9068: `typ` is `at+jwt`).
    pub(super) fn access_token(
        &self,
        algorithm: Algorithm,
        claims: &Value,
    ) -> Result<String, KeyFault> {
        let key = self.key(algorithm);
        let header = json!({ "typ": "at+jwt", "alg": algorithm.name(), "kid": key.id });
        let mut token = URL_SAFE_NO_PAD.encode(header.to_string());
        token.push('.');
        URL_SAFE_NO_PAD.encode_string(claims.to_string(), &mut token);
        let signature = key.sign(token.as_bytes())?;
        token.push('.');
        URL_SAFE_NO_PAD.encode_string(signature, &mut token);
        Ok(token)
    }
}

#[cfg(test)]
mod tests {
    use jsonwebtoken::jwk::Jwk;
    use jsonwebtoken::{DecodingKey, Validation, decode};

    use super::*;

    #[test]
    fn every_algorithm_verifies_with_its_published_key() {
        let keys = KeySet::generate(1).unwrap();
        let claims = json!({ "sub": "alice", "exp": 4_102_444_800_u64 });
        for (algorithm, jwk) in Algorithm::ALL.into_iter().zip(keys.jwks()) {
            let token = keys.access_token(algorithm, &claims).unwrap();
            let jwk: Jwk = serde_json::from_value(jwk.clone()).unwrap();
            let mut validation = Validation::new(algorithm.name().parse().unwrap());
            validation.validate_aud = false;
            let decoded =
                decode::<Value>(&token, &DecodingKey::from_jwk(&jwk).unwrap(), &validation)
                    .unwrap();
            assert_eq!(decoded.claims, claims);
            assert_eq!(decoded.header.typ.as_deref(), Some("at+jwt"));
            assert_eq!(decoded.header.kid, jwk.common.key_id);
        }
    }

    #[test]
    fn key_ids_do_not_come_back() {
        let id = |keys: &KeySet| keys.es256.id.clone();
        let (one, two) = (KeySet::generate(1).unwrap(), KeySet::generate(1).unwrap());
        assert_ne!(id(&one), id(&two));
    }
}
