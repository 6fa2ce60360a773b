//! `io.jwt.*`: tokens taken apart, verified and made, as OPA does it.
//!
//! A policy that verifies tokens itself is one that was written for OPA: here the gateway has done
//! so, more strictly, before the policy is asked. RSA keys under 2048 bits are not taken.

use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{
    self, EcdsaKeyPair, Ed25519KeyPair, RsaKeyPair, RsaPublicKeyComponents, UnparsedPublicKey,
};
use aws_lc_rs::{constant_time, hmac};
use base64::Engine as _;
use base64::alphabet::URL_SAFE;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use regorus::Value;
use x509_parser::prelude::{FromDer, SubjectPublicKeyInfo, X509Certificate};

use super::args::{object, record, short, string, text, wrong};
use super::{Answer, Failed, MOMENT};
use crate::document::member;

/// Longest token, key or set of keys, bytes.
pub(super) const MAX_TOKEN: usize = 64 * 1024;
/// How deep tokens may be nested in tokens.
pub(super) const MAX_NESTED: usize = 4;
/// Most keys that are tried.
pub(super) const MAX_KEYS: usize = 32;

/// Padding or none, and spare bits that are not zero: as Go decodes.
const LENIENT: GeneralPurpose = GeneralPurpose::new(
    &URL_SAFE,
    GeneralPurposeConfig::new()
        .with_decode_padding_mode(DecodePaddingMode::Indifferent)
        .with_decode_allow_trailing_bits(true),
);

struct Token<'t> {
    header: Value,
    header_text: &'t str,
    payload: Vec<u8>,
    payload_text: &'t str,
    signature: Vec<u8>,
}

impl<'t> Token<'t> {
    fn read(token: &'t str) -> Result<Self, Failed> {
        short(token.len(), MAX_TOKEN)?;
        let parts: Vec<&str> = token.split('.').collect();
        let [header_text, payload_text, signature] = parts.as_slice() else {
            return match parts.len() {
                1 => wrong("was given a text without a full stop in place of a token"),
                n => wrong(format!("was given a token of {n} parts")),
            };
        };
        let header = json_object(&decode(header_text, "header")?)?;
        if member(&header, "enc").is_some() {
            return wrong("was given an encrypted token, which is not supported");
        }
        Ok(Self {
            header,
            header_text,
            payload: decode(payload_text, "payload")?,
            payload_text,
            signature: decode(signature, "signature")?,
        })
    }

    fn signed(&self) -> String {
        format!("{}.{}", self.header_text, self.payload_text)
    }

    fn named(&self, name: &str) -> Option<&str> {
        match member(&self.header, name) {
            Some(Value::String(text)) => Some(text.as_ref()),
            _ => None,
        }
    }

    /// The token inside, when the payload is one.
    fn inner(&self) -> Option<String> {
        let payload = std::str::from_utf8(&self.payload).ok()?;
        (self.named("cty") == Some("JWT")).then(|| payload.trim_matches(['"', '\'']).to_owned())
    }
}

fn decode(part: &str, what: &str) -> Result<Vec<u8>, Failed> {
    let part: String = part.chars().filter(|c| !matches!(c, '\r' | '\n')).collect();
    let decoded = LENIENT.decode(part);
    decoded.or_else(|_| wrong(format!("was given a token whose {what} is no base64url")))
}

fn json_object(bytes: &[u8]) -> Result<Value, Failed> {
    let value = std::str::from_utf8(bytes)
        .ok()
        .and_then(|text| Value::from_json_str(text).ok());
    match value {
        Some(value) if value.as_object().is_ok() => Ok(value),
        _ => wrong("was given a token that holds no JSON object"),
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

pub(super) fn decoded(args: &[Value]) -> Answer {
    let mut token = text(args, 0)?.to_owned();
    for _ in 0..MAX_NESTED {
        let read = Token::read(&token)?;
        if let Some(inner) = read.inner() {
            token = inner;
            continue;
        }
        let payload = json_object(&read.payload)?;
        let signature = string(&hex(&read.signature));
        return Ok(Value::from(vec![read.header, payload, signature]));
    }
    wrong("was given a token in a token in a token")
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Hs,
    Rs,
    Ps,
    Es,
    Ed,
}

/// An algorithm of signatures: its kind, and the bits of its hash.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Algorithm(pub(super) Kind, pub(super) u16);

impl Algorithm {
    fn named(name: &str) -> Option<Self> {
        Some(match name {
            "HS256" => Self(Kind::Hs, 256),
            "HS384" => Self(Kind::Hs, 384),
            "HS512" => Self(Kind::Hs, 512),
            "RS256" => Self(Kind::Rs, 256),
            "RS384" => Self(Kind::Rs, 384),
            "RS512" => Self(Kind::Rs, 512),
            "PS256" => Self(Kind::Ps, 256),
            "PS384" => Self(Kind::Ps, 384),
            "PS512" => Self(Kind::Ps, 512),
            "ES256" => Self(Kind::Es, 256),
            "ES384" => Self(Kind::Es, 384),
            "ES512" => Self(Kind::Es, 512),
            "EdDSA" => Self(Kind::Ed, 0),
            _ => return None,
        })
    }

    fn hmac(self) -> hmac::Algorithm {
        match self.1 {
            384 => hmac::HMAC_SHA384,
            512 => hmac::HMAC_SHA512,
            _ => hmac::HMAC_SHA256,
        }
    }

    fn rsa(self) -> &'static signature::RsaParameters {
        match (self.0, self.1) {
            (Kind::Ps, 384) => &signature::RSA_PSS_2048_8192_SHA384,
            (Kind::Ps, 512) => &signature::RSA_PSS_2048_8192_SHA512,
            (Kind::Ps, _) => &signature::RSA_PSS_2048_8192_SHA256,
            (_, 384) => &signature::RSA_PKCS1_2048_8192_SHA384,
            (_, 512) => &signature::RSA_PKCS1_2048_8192_SHA512,
            _ => &signature::RSA_PKCS1_2048_8192_SHA256,
        }
    }

    /// Whether the signature is one of this message by this key. A key of another kind made none.
    fn verify(self, key: &Material, message: &[u8], signature: &[u8]) -> bool {
        match (self.0, key) {
            (Kind::Rs | Kind::Ps, Material::Rsa { n, e }) => RsaPublicKeyComponents { n, e }
                .verify(self.rsa(), message, signature)
                .is_ok(),
            (Kind::Es, Material::Ec(point)) => {
                let curve = match (self.1, point.len()) {
                    (256, 65) => &signature::ECDSA_P256_SHA256_FIXED,
                    (384, 97) => &signature::ECDSA_P384_SHA384_FIXED,
                    (512, 133) => &signature::ECDSA_P521_SHA512_FIXED,
                    _ => return false,
                };
                UnparsedPublicKey::new(curve, point)
                    .verify(message, signature)
                    .is_ok()
            }
            (Kind::Ed, Material::Ed(key)) => UnparsedPublicKey::new(&signature::ED25519, key)
                .verify(message, signature)
                .is_ok(),
            _ => false,
        }
    }

    fn authenticates(self, secret: &[u8], message: &[u8], signature: &[u8]) -> bool {
        let tag = hmac::sign(&hmac::Key::new(self.hmac(), secret), message);
        self.0 == Kind::Hs
            && constant_time::verify_slices_are_equal(tag.as_ref(), signature).is_ok()
    }
}

enum Material {
    Rsa {
        n: Vec<u8>,
        e: Vec<u8>,
    },
    /// An uncompressed point.
    Ec(Vec<u8>),
    Ed(Vec<u8>),
}

struct Key {
    id: Option<String>,
    algorithm: Option<String>,
    material: Material,
}

/// The keys in a certificate, a public key or a set of JSON web keys.
fn keys(source: &str) -> Result<Vec<Key>, Failed> {
    short(source.len(), MAX_TOKEN)?;
    if let Some(material) = pem(source)? {
        return Ok(vec![Key {
            id: None,
            algorithm: None,
            material,
        }]);
    }
    let Some(document) = Value::from_json_str(source)
        .ok()
        .filter(|document| document.as_object().is_ok())
    else {
        return wrong("takes a PEM certificate, a PEM public key or a set of JSON web keys");
    };
    let listed = match member(&document, "keys") {
        Some(Value::Array(keys)) => keys.to_vec(),
        Some(_) => return wrong("was given a set of keys that is none"),
        None => vec![document],
    };
    if listed.len() > MAX_KEYS {
        return super::args::spent(format!("was given more than {MAX_KEYS} keys"));
    }
    listed.iter().map(jwk).collect()
}

fn pem(source: &str) -> Result<Option<Material>, Failed> {
    if !source.trim_start().starts_with("-----BEGIN") {
        return Ok(None);
    }
    let Ok((rest, block)) = x509_parser::pem::parse_x509_pem(source.trim_start().as_bytes()) else {
        return wrong("was given PEM that cannot be read");
    };
    if !rest.trim_ascii().is_empty() {
        return wrong("was given more than one PEM block");
    }
    let material = match block.label.as_str() {
        "CERTIFICATE" => X509Certificate::from_der(&block.contents)
            .ok()
            .and_then(|(_, certificate)| spki(certificate.public_key())),
        "PUBLIC KEY" => SubjectPublicKeyInfo::from_der(&block.contents)
            .ok()
            .and_then(|(_, key)| spki(&key)),
        "RSA PUBLIC KEY" => rsa(&block.contents),
        _ => None,
    };
    match material {
        Some(material) => Ok(Some(material)),
        None => wrong("was given a key that cannot be read"),
    }
}

fn rsa(der: &[u8]) -> Option<Material> {
    use x509_parser::public_key::RSAPublicKey;
    let (_, key) = RSAPublicKey::from_der(der).ok()?;
    Some(Material::Rsa {
        n: without_zeros(key.modulus),
        e: without_zeros(key.exponent),
    })
}

fn without_zeros(number: &[u8]) -> Vec<u8> {
    number.iter().copied().skip_while(|b| *b == 0).collect()
}

fn spki(key: &SubjectPublicKeyInfo<'_>) -> Option<Material> {
    let bits = key.subject_public_key.data.as_ref();
    match key.algorithm.algorithm.to_id_string().as_str() {
        "1.2.840.113549.1.1.1" => rsa(bits),
        "1.2.840.10045.2.1" => Some(Material::Ec(bits.to_vec())),
        "1.3.101.112" => Some(Material::Ed(bits.to_vec())),
        _ => None,
    }
}

fn jwk(key: &Value) -> Result<Key, Failed> {
    let named = |name: &str| match member(key, name) {
        Some(Value::String(text)) => Some(text.to_string()),
        _ => None,
    };
    let bytes = |name: &str| named(name).and_then(|text| LENIENT.decode(text).ok());
    let padded = |name: &str, size: usize| {
        let bytes = bytes(name)?;
        let missing = size.checked_sub(bytes.len())?;
        Some([vec![0; missing], bytes].concat())
    };
    let material = match named("kty").as_deref() {
        Some("RSA") => bytes("n").zip(bytes("e")).map(|(n, e)| Material::Rsa {
            n: without_zeros(&n),
            e: without_zeros(&e),
        }),
        Some("EC") => match named("crv").as_deref() {
            Some("P-256") => Some(32),
            Some("P-384") => Some(48),
            Some("P-521") => Some(66),
            _ => None,
        }
        .and_then(|size| padded("x", size).zip(padded("y", size)))
        .map(|(x, y)| Material::Ec([vec![4], x, y].concat())),
        Some("OKP") => bytes("x").map(Material::Ed),
        _ => None,
    };
    match material {
        Some(material) => Ok(Key {
            id: named("kid"),
            algorithm: named("alg"),
            material,
        }),
        None => wrong("was given a key that cannot be read"),
    }
}

/// The key that the header names decides alone; else each that is for the algorithm, or for any.
fn verified(keys: &[Key], token: &Token<'_>, algorithm: Algorithm) -> bool {
    let message = token.signed();
    let holds = |key: &Key| algorithm.verify(&key.material, message.as_bytes(), &token.signature);
    if let Some(id) = token.named("kid")
        && let Some(key) = keys.iter().find(|key| key.id.as_deref() == Some(id))
    {
        return holds(key);
    }
    keys.iter()
        .filter(|key| key.algorithm.is_none() || key.algorithm.as_deref() == token.named("alg"))
        .any(holds)
}

pub(super) fn verify(args: &[Value], algorithm: Algorithm) -> Answer {
    let token = Token::read(text(args, 0)?)?;
    let key = text(args, 1)?;
    let holds = if algorithm.0 == Kind::Hs {
        algorithm.authenticates(key.as_bytes(), token.signed().as_bytes(), &token.signature)
    } else {
        verified(&keys(key)?, &token, algorithm)
    };
    Ok(Value::from(holds))
}

struct Constraints {
    keys: Option<Vec<Key>>,
    secret: Option<String>,
    algorithm: Option<String>,
    issuer: Option<String>,
    audience: Option<String>,
    /// Seconds.
    time: f64,
}

fn constraints(args: &[Value]) -> Result<Constraints, Failed> {
    let given = object(args, 1)?;
    let mut found = Constraints {
        keys: None,
        secret: None,
        algorithm: None,
        issuer: None,
        audience: None,
        time: seconds(MOMENT.get().now_ns),
    };
    for (name, value) in given.iter() {
        let Value::String(name) = name else {
            return wrong("was given a constraint whose name is no text");
        };
        if name.as_ref() == "time" {
            match float(value) {
                Some(nanoseconds) => found.time = nanoseconds / 1e9,
                None => return wrong("takes a number as `time`"),
            }
            continue;
        }
        let Value::String(text) = value else {
            return wrong(format!("takes a text as `{}`", shown(name.as_ref())));
        };
        match name.as_ref() {
            "cert" => found.keys = Some(keys(text.as_ref())?),
            "secret" => found.secret = Some(text.to_string()),
            "alg" => found.algorithm = Some(text.to_string()),
            "iss" => found.issuer = Some(text.to_string()),
            "aud" => found.audience = Some(text.to_string()),
            _ => return wrong("was given a constraint that is not known"),
        }
    }
    match (&found.keys, &found.secret) {
        (Some(_), Some(_)) => wrong("takes either `cert` or `secret`"),
        (None, None) => wrong("takes a `cert` or a `secret`"),
        _ => Ok(found),
    }
}

/// Large integers, too.
fn float(value: &Value) -> Option<f64> {
    match value {
        Value::Number(_) => value.to_json_str().ok()?.trim().parse().ok(),
        _ => None,
    }
}

fn shown(name: &str) -> &str {
    let known = ["cert", "secret", "alg", "iss", "aud"];
    known.into_iter().find(|k| *k == name).unwrap_or("…")
}

#[expect(
    clippy::as_conversions,
    clippy::cast_precision_loss,
    reason = "OPA compares seconds as a fraction, too"
)]
fn seconds(nanoseconds: u64) -> f64 {
    nanoseconds as f64 / 1e9
}

pub(super) fn decode_verify(args: &[Value]) -> Answer {
    let mut token = text(args, 0)?.to_owned();
    let constraints = constraints(args)?;
    let no = || {
        Ok(Value::from(vec![
            Value::from(false),
            Value::new_object(),
            Value::new_object(),
        ]))
    };
    for _ in 0..MAX_NESTED {
        let read = Token::read(&token)?;
        // A critical extension is one that must be understood: none is.
        let algorithm = read.named("alg").and_then(Algorithm::named);
        let Some(algorithm) = algorithm.filter(|_| member(&read.header, "crit").is_none()) else {
            return no();
        };
        let wanted = constraints.algorithm.as_deref();
        if wanted.is_some_and(|wanted| read.named("alg") != Some(wanted)) {
            return no();
        }
        let holds = match (&constraints.keys, &constraints.secret) {
            (Some(keys), _) => verified(keys, &read, algorithm),
            (None, Some(secret)) => {
                let message = read.signed();
                algorithm.authenticates(secret.as_bytes(), message.as_bytes(), &read.signature)
            }
            (None, None) => false,
        };
        if !holds {
            return no();
        }
        if let Some(inner) = read.inner() {
            token = inner;
            continue;
        }
        let payload = json_object(&read.payload)?;
        if !fits(&payload, &constraints)? {
            return no();
        }
        return Ok(Value::from(vec![Value::from(true), read.header, payload]));
    }
    wrong("was given a token in a token in a token")
}

fn fits(payload: &Value, constraints: &Constraints) -> Result<bool, Failed> {
    if let Some(issuer) = &constraints.issuer
        && member(payload, "iss") != Some(&string(issuer))
    {
        return Ok(false);
    }
    let audience = constraints.audience.as_deref().map(string);
    let for_us = match (member(payload, "aud"), &audience) {
        (None, None) => true,
        (Some(Value::Array(all)), Some(ours)) => all.contains(ours),
        (Some(one), Some(ours)) => one == ours,
        _ => false,
    };
    if !for_us {
        return Ok(false);
    }
    let moment = |name: &str| match member(payload, name) {
        None => Ok(None),
        Some(value) => match float(value) {
            Some(seconds) => Ok(Some(seconds)),
            None => wrong(format!("was given a token whose `{name}` is no number")),
        },
    };
    if moment("exp")?.is_some_and(|end| constraints.time >= end) {
        return Ok(false);
    }
    Ok(!moment("nbf")?.is_some_and(|begin| constraints.time < begin))
}

pub(super) fn encode_sign(args: &[Value]) -> Answer {
    let json = |index: usize| -> Result<String, Failed> {
        object(args, index)?;
        let value = super::args::any(args, index)?;
        super::text::printable(value)?;
        serde_json::to_string(value).or_else(|_| wrong("was given what is no JSON"))
    };
    let key = super::args::any(args, 2)?.clone();
    object(args, 2)?;
    sign(&json(0)?, &json(1)?, &key)
}

pub(super) fn encode_sign_raw(args: &[Value]) -> Answer {
    let key = text(args, 2)?;
    short(key.len(), MAX_TOKEN)?;
    let Ok(key) = Value::from_json_str(key) else {
        return wrong("was given a key that is no JSON");
    };
    sign(text(args, 0)?, text(args, 1)?, &key)
}

fn sign(header: &str, payload: &str, key: &Value) -> Answer {
    short(header.len().saturating_add(payload.len()), MAX_TOKEN)?;
    let read = json_object(header.as_bytes())?;
    let jwt = match member(&read, "typ") {
        None => true,
        Some(Value::String(kind)) => kind.as_ref() == "JWT",
        Some(_) => return wrong("was given a header whose `typ` is no text"),
    };
    if jwt && member(&read, "typ").is_some() && Value::from_json_str(payload).is_err() {
        return wrong("was given a payload that is no JSON");
    }
    let algorithm = match member(&read, "alg") {
        Some(Value::String(name)) => Algorithm::named(name),
        _ => None,
    };
    let Some(algorithm) = algorithm else {
        return wrong("was given a header without an algorithm that is known");
    };
    let message = format!(
        "{}.{}",
        BASE64_URL_SAFE_NO_PAD.encode(header),
        BASE64_URL_SAFE_NO_PAD.encode(payload)
    );
    let Some(signature) = signature_of(message.as_bytes(), algorithm, key) else {
        return wrong("was given a key that cannot sign with this algorithm");
    };
    let signature = BASE64_URL_SAFE_NO_PAD.encode(signature);
    super::args::made(format!("{message}.{signature}"))
}

fn signature_of(message: &[u8], algorithm: Algorithm, key: &Value) -> Option<Vec<u8>> {
    let bytes = |name: &str| match member(key, name) {
        Some(Value::String(text)) => LENIENT.decode(text.as_ref()).ok(),
        _ => None,
    };
    let kind = match member(key, "kty") {
        Some(Value::String(kind)) => kind.to_string(),
        _ => return None,
    };
    let random = SystemRandom::new();
    match (algorithm.0, kind.as_str()) {
        (Kind::Hs, "oct") => {
            let key = hmac::Key::new(algorithm.hmac(), &bytes("k")?);
            Some(hmac::sign(&key, message).as_ref().to_vec())
        }
        (Kind::Rs | Kind::Ps, "RSA") => {
            let numbers = ["n", "e", "d", "p", "q", "dp", "dq", "qi"];
            let numbers = numbers.into_iter().map(bytes).collect::<Option<Vec<_>>>()?;
            let pair = RsaKeyPair::from_der(&rsa_private_key(&numbers)).ok()?;
            let encoding: &'static dyn signature::RsaEncoding = match (algorithm.0, algorithm.1) {
                (Kind::Ps, 384) => &signature::RSA_PSS_SHA384,
                (Kind::Ps, 512) => &signature::RSA_PSS_SHA512,
                (Kind::Ps, _) => &signature::RSA_PSS_SHA256,
                (_, 384) => &signature::RSA_PKCS1_SHA384,
                (_, 512) => &signature::RSA_PKCS1_SHA512,
                _ => &signature::RSA_PKCS1_SHA256,
            };
            let mut signed = vec![0; pair.public_modulus_len()];
            pair.sign(encoding, &random, message, &mut signed).ok()?;
            Some(signed)
        }
        (Kind::Es, "EC") => {
            let (curve, size) = match algorithm.1 {
                256 => (&signature::ECDSA_P256_SHA256_FIXED_SIGNING, 32),
                384 => (&signature::ECDSA_P384_SHA384_FIXED_SIGNING, 48),
                _ => (&signature::ECDSA_P521_SHA512_FIXED_SIGNING, 66),
            };
            let padded = |name: &str| {
                let bytes = bytes(name)?;
                let missing = usize::checked_sub(size, bytes.len())?;
                Some([vec![0; missing], bytes].concat())
            };
            let point = [vec![4], padded("x")?, padded("y")?].concat();
            let pair =
                EcdsaKeyPair::from_private_key_and_public_key(curve, &padded("d")?, &point).ok()?;
            Some(pair.sign(&random, message).ok()?.as_ref().to_vec())
        }
        (Kind::Ed, "OKP") => {
            let pair = Ed25519KeyPair::from_seed_and_public_key(&bytes("d")?, &bytes("x")?).ok()?;
            Some(pair.sign(message).as_ref().to_vec())
        }
        _ => None,
    }
}

/// RFC 8017 appendix A.1.2.
fn rsa_private_key(numbers: &[Vec<u8>]) -> Vec<u8> {
    let mut inside = tagged(2, &[0]);
    for number in numbers {
        let mut number = without_zeros(number);
        if number.first().is_none_or(|first| *first >= 0x80) {
            number.insert(0, 0);
        }
        inside.extend(tagged(2, &number));
    }
    tagged(0x30, &inside)
}

fn tagged(tag: u8, content: &[u8]) -> Vec<u8> {
    let length = content.len().to_be_bytes();
    let length: Vec<u8> = length.iter().copied().skip_while(|b| *b == 0).collect();
    let mut out = vec![tag];
    match (content.len(), u8::try_from(length.len())) {
        (0..=0x7f, _) => out.extend(if length.is_empty() { vec![0] } else { length }),
        (_, Ok(count)) => {
            out.push(0x80 | count);
            out.extend(length);
        }
        _ => {}
    }
    out.extend_from_slice(content);
    out
}

/// What `opa.runtime()` tells: the version, and nothing of the surroundings.
pub(super) fn runtime(_: &[Value]) -> Answer {
    Ok(record([("version", string(env!("CARGO_PKG_VERSION")))]))
}
