//! `.signatures.json`: one JWT over the hashes of all files.
//!
//! The algorithm is that of the configured key, never that of the token: a header that says another
//! one is refused, so that a public key cannot be taken for a shared secret. Every file is listed, and
//! every listed file is there. Nothing of a bundle is parsed before that is known, except
//! what must be to hash it: OPA hashes JSON by its meaning, not by its bytes.

use std::collections::BTreeMap;

use aws_lc_rs::{digest, hmac, signature};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, SubjectPublicKeyInfoDer};
use serde::{Deserialize, Serialize};

use super::archive::Files;
use super::canonical;
use super::fault::{Fault, Kind};
pub use crate::authn::jwt::SignatureAlgorithm as SigningAlgorithm;
use crate::schema::{ContentDigest, Secret};

/// The file with the signature.
pub(super) const SIGNATURES: &str = ".signatures.json";

/// Shortest shared secret, in bytes (RFC 7518 section 3.2 asks for the length of the hash).
const MIN_SECRET: usize = 32;

/// The hash of a shared secret; `None` for key pairs.
pub(super) const fn shared(algorithm: SigningAlgorithm) -> Option<hmac::Algorithm> {
    match algorithm {
        SigningAlgorithm::HS256 => Some(hmac::HMAC_SHA256),
        SigningAlgorithm::HS384 => Some(hmac::HMAC_SHA384),
        SigningAlgorithm::HS512 => Some(hmac::HMAC_SHA512),
        SigningAlgorithm::RS256
        | SigningAlgorithm::RS384
        | SigningAlgorithm::RS512
        | SigningAlgorithm::PS256
        | SigningAlgorithm::PS384
        | SigningAlgorithm::PS512
        | SigningAlgorithm::ES256
        | SigningAlgorithm::ES384
        | SigningAlgorithm::ES512
        | SigningAlgorithm::EdDSA => None,
    }
}

/// How signatures of a key pair are verified; `None` for shared secrets.
fn public(algorithm: SigningAlgorithm) -> Option<&'static dyn signature::VerificationAlgorithm> {
    Some(match algorithm {
        SigningAlgorithm::RS256 => &signature::RSA_PKCS1_2048_8192_SHA256,
        SigningAlgorithm::RS384 => &signature::RSA_PKCS1_2048_8192_SHA384,
        SigningAlgorithm::RS512 => &signature::RSA_PKCS1_2048_8192_SHA512,
        SigningAlgorithm::PS256 => &signature::RSA_PSS_2048_8192_SHA256,
        SigningAlgorithm::PS384 => &signature::RSA_PSS_2048_8192_SHA384,
        SigningAlgorithm::PS512 => &signature::RSA_PSS_2048_8192_SHA512,
        SigningAlgorithm::ES256 => &signature::ECDSA_P256_SHA256_FIXED,
        SigningAlgorithm::ES384 => &signature::ECDSA_P384_SHA384_FIXED,
        SigningAlgorithm::ES512 => &signature::ECDSA_P521_SHA512_FIXED,
        SigningAlgorithm::EdDSA => &signature::ED25519,
        SigningAlgorithm::HS256 | SigningAlgorithm::HS384 | SigningAlgorithm::HS512 => return None,
    })
}

/// A key that bundles are verified with.
#[derive(Debug)]
pub(super) struct Key {
    algorithm: SigningAlgorithm,
    /// Over the key and all that is asked of what it signs.
    mark: ContentDigest,
    material: Material,
}

#[derive(Debug)]
enum Material {
    Public(signature::ParsedPublicKey),
    Secret(Box<hmac::Key>),
}

impl Key {
    /// A key from the configuration: PEM of a public key or a certificate, or a shared secret.
    ///
    /// # Errors
    /// A sentence for the operator.
    pub(super) fn new(algorithm: SigningAlgorithm, content: &Secret) -> Result<Self, String> {
        let material = match (shared(algorithm), public(algorithm)) {
            (Some(hash), _) => {
                let secret = content.expose();
                // Somebody mixed up the algorithms: a public key is no secret.
                if secret.starts_with(b"-----BEGIN") {
                    return Err("it is a PEM file, and no shared secret".to_owned());
                }
                if secret.len() < MIN_SECRET {
                    return Err(format!("the secret is shorter than {MIN_SECRET} bytes"));
                }
                Material::Secret(Box::new(hmac::Key::new(hash, secret)))
            }
            (None, Some(public)) => {
                let der = public_key(content.expose())?;
                let key = signature::ParsedPublicKey::new(public, der)
                    .map_err(|_| format!("it is no key for {}", algorithm.name()))?;
                Material::Public(key)
            }
            (None, None) => return Err("the algorithm is unknown".to_owned()),
        };
        Ok(Self {
            algorithm,
            mark: ContentDigest::of(content.expose()),
            material,
        })
    }

    /// The key, with what tells it apart in a configuration.
    pub(super) fn marked(self, mark: ContentDigest) -> Self {
        Self { mark, ..self }
    }

    #[cfg(test)]
    pub(super) fn short_secret(algorithm: SigningAlgorithm, secret: &[u8]) -> Self {
        let hash = shared(algorithm).unwrap();
        Self {
            algorithm,
            mark: ContentDigest::of(b""),
            material: Material::Secret(Box::new(hmac::Key::new(hash, secret))),
        }
    }

    fn verifies(&self, message: &[u8], signature: &[u8]) -> bool {
        match &self.material {
            Material::Public(key) => key.verify_sig(message, signature).is_ok(),
            Material::Secret(key) => hmac::verify(key, message, signature).is_ok(),
        }
    }
}

/// The DER of a public key out of PEM.
fn public_key(pem: &[u8]) -> Result<Vec<u8>, String> {
    if let Ok(key) = SubjectPublicKeyInfoDer::from_pem_slice(pem) {
        return Ok(key.as_ref().to_vec());
    }
    if let Ok(certificate) = CertificateDer::from_pem_slice(pem) {
        return match x509_parser::parse_x509_certificate(&certificate) {
            Ok((_, certificate)) => Ok(certificate.public_key().raw.to_vec()),
            Err(_) => Err("it is no good certificate".to_owned()),
        };
    }
    Err("it holds no public key in PEM (`-----BEGIN PUBLIC KEY-----`)".to_owned())
}

/// What bundles must be signed with.
#[derive(Debug)]
pub(super) struct Verifier {
    /// By key id.
    pub(super) keys: BTreeMap<String, Key>,
    /// The one key that counts, whatever the token says.
    pub(super) keyid: Option<String>,
    /// What the token's `scope` must be; empty for none.
    pub(super) scope: String,
    /// Files that need no hash.
    pub(super) exclude: Vec<String>,
}

/// What a good signature says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Signed {
    /// The id of the key.
    pub keyid: String,
    /// Its algorithm.
    pub algorithm: &'static str,
    /// `iss`: who signed.
    pub issuer: Option<String>,
    /// `iat`: when, in seconds since 1970.
    pub issued_at: Option<i64>,
    /// `scope`.
    pub scope: Option<String>,
    /// Files that the configuration excludes from verification.
    pub unverified: Vec<String>,
    /// Of the key, to know it again.
    #[serde(skip)]
    mark: ContentDigest,
}

#[derive(Debug, Deserialize)]
struct Signatures {
    signatures: Option<Vec<String>>,
    plugin: Option<String>,
}

#[derive(Debug, Deserialize)]
struct Header {
    alg: String,
    kid: Option<String>,
    crit: Option<serde_json::Value>,
}

/// What is signed.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Payload {
    pub(super) files: Vec<Hashed>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) scope: Option<String>,
    /// Where older signers put the id of the key.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) keyid: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) iss: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) iat: Option<i64>,
}

/// One file with its hash.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Hashed {
    pub(super) name: String,
    /// Hexadecimal.
    pub(super) hash: String,
    #[serde(default)]
    pub(super) algorithm: String,
}

fn wrong(message: impl Into<String>) -> Fault {
    Fault::of(Kind::Signature, SIGNATURES, message)
}

/// Whether a bundle carries a signature at all.
pub(super) fn is_signed(files: &Files) -> bool {
    files.contains_key(SIGNATURES)
}

impl Verifier {
    /// Whether what is signed like this would be believed: by a key that counts, and that was this one
    /// when it verified.
    pub(super) fn believes(&self, signed: &Signed) -> bool {
        let counts = self
            .keyid
            .as_ref()
            .is_none_or(|keyid| *keyid == signed.keyid);
        let key = self.keys.get(&signed.keyid).filter(|_| counts);
        key.is_some_and(|key| key.mark == signed.mark)
    }

    /// Verifies the signature and the hash of every file.
    ///
    /// # Errors
    /// [`Fault`], naming the file.
    pub(super) fn verify(&self, files: &Files) -> Result<Signed, Fault> {
        let document = files.get(SIGNATURES).ok_or_else(|| {
            Fault::new(
                Kind::Signature,
                "it is not signed: there is no .signatures.json in it",
            )
            .help("sign it (`opa sign`, or `portcullis bundle build --signing-key`)")
        })?;
        let (payload, keyid, key) = self.payload(document)?;
        let mut listed: BTreeMap<&str, &Hashed> = BTreeMap::new();
        for file in &payload.files {
            let name = file.name.strip_prefix('/').unwrap_or(&file.name);
            if listed.insert(name, file).is_some() {
                return Err(wrong(format!("`{}` is listed twice", name.escape_debug())));
            }
        }
        let mut unverified = Vec::new();
        for (name, content) in files.iter().filter(|(name, _)| *name != SIGNATURES) {
            let said = listed.remove(name.as_str());
            if self.exclude.iter().any(|pattern| matches(pattern, name)) {
                unverified.push(name.clone());
                continue;
            }
            let Some(said) = said else {
                return Err(Fault::of(
                    Kind::Signature,
                    name,
                    "the signature does not list the file",
                ));
            };
            check(name, content, said)?;
        }
        if let Some(missing) = listed.keys().next() {
            return Err(Fault::of(
                Kind::Signature,
                missing,
                "the signature lists the file, and it is not there",
            ));
        }
        Ok(Signed {
            keyid,
            algorithm: key.algorithm.name(),
            issuer: payload.iss,
            issued_at: payload.iat,
            scope: payload.scope,
            unverified,
            mark: key.mark,
        })
    }

    /// What is signed, and by which key.
    pub(super) fn payload(&self, document: &[u8]) -> Result<(Payload, String, &Key), Fault> {
        let document: Signatures = serde_json::from_slice(document)
            .map_err(|error| wrong(format!("it is not what OPA writes: {error}")))?;
        if document.plugin.is_some_and(|plugin| !plugin.is_empty()) {
            return Err(wrong(
                "it was signed by a plug-in of OPA, which nobody else understands",
            ));
        }
        let tokens = document.signatures.unwrap_or_default();
        let [token] = tokens.as_slice() else {
            let count = tokens.len();
            return Err(wrong(format!(
                "it holds {count} signatures: there must be exactly one"
            )));
        };
        let mut parts = token.split('.');
        let (Some(head), Some(body), Some(tail), None) =
            (parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return Err(wrong("the signature is no JWT"));
        };
        let decoded = |part: &str| {
            URL_SAFE_NO_PAD
                .decode(part)
                .map_err(|_| wrong("the signature is no JWT: a part is no base64url"))
        };
        let header: Header = serde_json::from_slice(&decoded(head)?)
            .map_err(|_| wrong("the signature is no JWT: its header cannot be read"))?;
        let (payload, signature) = (decoded(body)?, decoded(tail)?);
        if header.crit.is_some() {
            return Err(wrong("the signature asks for extensions (`crit`)"));
        }
        // Only to learn which key is meant; nothing is believed before it has verified.
        let claimed: Payload = serde_json::from_slice(&payload)
            .map_err(|error| wrong(format!("what is signed cannot be read: {error}")))?;
        let keyid = self
            .keyid
            .clone()
            .or(header.kid)
            .or_else(|| claimed.keyid.clone())
            .ok_or_else(|| {
                wrong("the signature does not say which key verifies it")
                    .help("name the key in `signing.keyid`")
            })?;
        let key = self.keys.get(&keyid).ok_or_else(|| {
            let known: Vec<&str> = self.keys.keys().map(String::as_str).collect();
            let shown = keyid.escape_debug();
            wrong(format!("there is no key `{shown}`"))
                .help(format!("`signing.keys` has: {}", known.join(", ")))
        })?;
        let expected = key.algorithm.name();
        if header.alg != expected {
            let said = header.alg.escape_debug();
            return Err(wrong(format!(
                "it is signed with {said}, and the key `{keyid}` is for {expected}"
            )));
        }
        let message = format!("{head}.{body}");
        if !key.verifies(message.as_bytes(), &signature) {
            return Err(wrong(format!("the signature is not of the key `{keyid}`")));
        }
        if claimed.scope.as_deref().unwrap_or_default() != self.scope {
            let said = claimed.scope.as_deref().unwrap_or_default().escape_debug();
            let wanted = self.scope.escape_debug();
            return Err(
                wrong(format!("its scope is `{said}`, and must be `{wanted}`"))
                    .help("the bundle was signed for something else, or `signing.scope` is wrong"),
            );
        }
        Ok((claimed, keyid, key))
    }
}

fn check(name: &str, content: &[u8], said: &Hashed) -> Result<(), Fault> {
    let found = hash(name, content, &said.algorithm)
        .map_err(|message| Fault::of(Kind::Signature, name, message))?;
    if found.eq_ignore_ascii_case(&said.hash) {
        Ok(())
    } else {
        Err(Fault::of(
            Kind::Signature,
            name,
            "the file is not the one that was signed: its hash differs",
        ))
    }
}

/// The hash of a file as OPA computes it, in hexadecimal.
///
/// # Errors
/// A sentence: the algorithm is none that counts, or the document cannot be read.
pub(super) fn hash(name: &str, content: &[u8], algorithm: &str) -> Result<String, String> {
    let algorithm = match algorithm {
        "SHA-256" => &digest::SHA256,
        "SHA-384" => &digest::SHA384,
        "SHA-512" => &digest::SHA512,
        "SHA-512-256" => &digest::SHA512_256,
        "" => return Err("the signature does not say how the file is hashed".to_owned()),
        other => {
            let shown = other.escape_debug();
            return Err(format!(
                "the file is hashed with {shown}: it must be SHA-256, SHA-384, SHA-512 or SHA-512-256"
            ));
        }
    };
    // These names and no others: `data.yml` is hashed by its bytes.
    let canonical = match name.rsplit('/').next().unwrap_or(name) {
        "data.json" | ".manifest" => Some(canonical::json(content)?),
        "data.yaml" => Some(canonical::yaml(content)?),
        _ => None,
    };
    let digest = digest::digest(algorithm, canonical.as_deref().unwrap_or(content));
    Ok(hex(digest.as_ref()))
}

pub(super) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Whether a name matches a pattern of `exclude_files`: `*` is anything but a slash, `?` one
/// character of it.
pub(super) fn matches(pattern: &str, name: &str) -> bool {
    fn rest(pattern: &[char], name: &[char]) -> bool {
        match pattern.split_first() {
            None => name.is_empty(),
            Some(('*', after)) => {
                let reach = name.iter().take_while(|c| **c != '/').count();
                (0..=reach).any(|skip| name.get(skip..).is_some_and(|name| rest(after, name)))
            }
            Some((wanted, after)) => name.split_first().is_some_and(|(found, name)| {
                (found == wanted || (*wanted == '?' && *found != '/')) && rest(after, name)
            }),
        }
    }
    let (pattern, name): (Vec<char>, Vec<char>) =
        (pattern.chars().collect(), name.chars().collect());
    rest(&pattern, &name)
}

#[cfg(test)]
#[path = "signature_tests.rs"]
mod tests;
