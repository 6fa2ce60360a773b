//! From a JWK Set (RFC 7517) to keys that may verify, and for which algorithms.
//!
//! One odd key never spoils the set: it is left out, with a note for the operator. What is left
//! out: unknown kinds, symmetric keys (a published secret is none), keys for something else (`use`,
//! `key_ops`, `alg`), weak keys, points off their curve, and all keys that share one `kid`, since
//! which of them is meant would be a guess.

use std::sync::Arc;

use aws_lc_rs::digest::{Context, SHA256, digest};
use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_FIXED, ECDSA_P384_SHA384_FIXED, ECDSA_P521_SHA512_FIXED, ED25519,
    ParsedPublicKey,
};
use jsonwebtoken::DecodingKey;

use super::algorithm::{Algorithm, Family, Material, RsaKey};
use super::{json, jws};
use crate::document::{self, Value};
use crate::schema::Secret;

/// Most keys a set may hold.
pub(super) const MAX_KEYS: usize = 100;

/// Smallest RSA modulus in bits (RFC 7518 section 3.3).
pub(super) const MIN_RSA_BITS: usize = 2048;

/// Largest RSA modulus in bits: verification costs grow with its square.
const MAX_RSA_BITS: usize = 8192;

/// A key that may verify.
#[derive(Debug)]
pub(super) struct Key {
    /// Its `kid`.
    pub(super) id: Option<Arc<str>>,
    /// Over its `kid`, its material and its algorithms: a cached result ends when this is gone.
    pub(super) fingerprint: [u8; 32],
    /// What it verifies with.
    pub(super) material: Material,
    /// Its public half; none for a secret.
    pub(super) public: Option<Public>,
    algorithms: Vec<Algorithm>,
}

/// The public half of a key, as it can be shown and written down.
#[derive(Debug)]
pub(super) struct Public {
    /// The members that make the key what it is, in the order of RFC 7638.
    members: Vec<(&'static str, String)>,
    /// Its thumbprint (RFC 7638) with SHA-256: the same for the same material, whatever its `kid`.
    pub(super) thumbprint: Arc<str>,
}

impl Public {
    /// `members` are in the order of their names.
    fn new(members: Vec<(&'static str, String)>) -> Self {
        // All values are of the base64url alphabet or fixed words: there is nothing to escape.
        let listed: Vec<_> = members
            .iter()
            .map(|(name, value)| format!(r#""{name}":"{value}""#))
            .collect();
        let text = format!("{{{}}}", listed.join(","));
        let thumbprint = jws::encode(digest(&SHA256, text.as_bytes()).as_ref()).into();
        Self {
            members,
            thumbprint,
        }
    }
}

impl Key {
    /// The thumbprint of its public half.
    pub(super) fn thumbprint(&self) -> Option<&Arc<str>> {
        self.public.as_ref().map(|public| &public.thumbprint)
    }

    /// The algorithms it verifies.
    pub(super) fn algorithms(&self) -> &[Algorithm] {
        &self.algorithms
    }

    /// It as a JWK that reads as the same key: public members, `kid`, and `alg` where it has but one.
    pub(super) fn jwk(&self) -> Option<serde_json::Value> {
        let mut jwk = serde_json::Map::new();
        for (name, value) in &self.public.as_ref()?.members {
            jwk.insert((*name).to_owned(), value.as_str().into());
        }
        if let Some(id) = &self.id {
            jwk.insert("kid".to_owned(), (**id).into());
        }
        if let [algorithm] = *self.algorithms {
            jwk.insert("alg".to_owned(), algorithm.name().into());
        }
        Some(jwk.into())
    }

    /// Whether it may be used with this algorithm.
    pub(super) fn fits(&self, algorithm: Algorithm) -> bool {
        self.algorithms.contains(&algorithm)
    }
}

/// What a look-up in a set finds.
#[derive(Debug)]
pub(super) enum Found<'s> {
    /// The one key.
    Key(&'s Arc<Key>),
    /// The key is there and is not for this algorithm.
    Mismatch,
    /// There is no `kid` to go by, and several keys fit.
    Ambiguous,
    /// No such key.
    Unknown,
}

/// The usable keys of one set.
#[derive(Debug, Default)]
pub(super) struct KeySet {
    pub(super) keys: Vec<Arc<Key>>,
    /// Why keys were left out, one sentence each, without key material.
    pub(super) notes: Vec<String>,
}

/// Why a document is no key set.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum BadSet {
    #[error("the document is not a strict JSON object with an array `keys`")]
    Form,
    #[error("the set holds more than {MAX_KEYS} keys")]
    TooMany,
    #[error("the set holds no usable key")]
    Empty,
}

impl KeySet {
    /// Reads a set.
    ///
    /// # Errors
    /// [`BadSet`]; a set without any usable key is one too, so that it never replaces a good one.
    pub(super) fn parse(bytes: &[u8]) -> Result<Self, BadSet> {
        let document = json::parse_object(bytes).map_err(|()| BadSet::Form)?;
        let keys = document::member(&document, "keys")
            .and_then(|keys| keys.as_array().ok())
            .ok_or(BadSet::Form)?;
        if keys.len() > MAX_KEYS {
            return Err(BadSet::TooMany);
        }
        let mut set = Self::default();
        for (index, jwk) in keys.iter().enumerate() {
            match read(jwk, &mut set.notes, index) {
                Ok(key) => set.keys.push(Arc::new(key)),
                Err(why) => set.notes.push(format!("keys[{index}] is left out: {why}")),
            }
        }
        set.drop_doubles();
        if set.keys.is_empty() {
            return Err(BadSet::Empty);
        }
        Ok(set)
    }

    /// The set of one shared secret, for HMAC algorithms only.
    pub(super) fn of_secret(secret: &Secret, algorithms: &[Algorithm]) -> Self {
        let algorithms: Vec<_> = algorithms
            .iter()
            .copied()
            .filter(|algorithm| algorithm.is_symmetric())
            .collect();
        let key = Key {
            id: None,
            fingerprint: fingerprint(None, &algorithms, &[secret.expose()]),
            material: Material::Library(DecodingKey::from_secret(secret.expose())),
            public: None,
            algorithms,
        };
        Self {
            keys: vec![Arc::new(key)],
            notes: Vec::new(),
        }
    }

    /// The set of keys that were read before.
    pub(super) const fn of(keys: Vec<Arc<Key>>) -> Self {
        Self {
            keys,
            notes: Vec::new(),
        }
    }

    /// How many keys there are.
    pub(super) fn len(&self) -> usize {
        self.keys.len()
    }

    /// The fingerprints, to tell one set from another.
    pub(super) fn fingerprints(&self) -> impl Iterator<Item = &[u8; 32]> {
        self.keys.iter().map(|key| &key.fingerprint)
    }

    /// Whether exactly this key is in the set.
    pub(super) fn holds(&self, fingerprint: &[u8; 32]) -> bool {
        self.fingerprints().any(|held| held == fingerprint)
    }

    /// The key for a token. Without `kid`, or when the set names none of its keys (RFC 7517 section
    /// 4.5 leaves that open, and a rotation may start it), exactly one key must fit its algorithm.
    pub(super) fn find(&self, id: Option<&str>, algorithm: Algorithm) -> Found<'_> {
        let named = self.keys.iter().any(|key| key.id.is_some());
        if let Some(id) = id.filter(|_| named) {
            let named = self.keys.iter().find(|key| key.id.as_deref() == Some(id));
            return match named {
                Some(key) if key.fits(algorithm) => Found::Key(key),
                Some(_) => Found::Mismatch,
                None => Found::Unknown,
            };
        }
        let mut fitting = self.keys.iter().filter(|key| key.fits(algorithm));
        match (fitting.next(), fitting.next()) {
            (Some(key), None) => Found::Key(key),
            (Some(_), Some(_)) => Found::Ambiguous,
            (None, _) => Found::Unknown,
        }
    }

    fn drop_doubles(&mut self) {
        let double: Vec<Arc<str>> = self
            .keys
            .iter()
            .filter_map(|key| key.id.clone())
            .filter(|id| {
                self.keys
                    .iter()
                    .filter(|key| key.id.as_ref() == Some(id))
                    .count()
                    > 1
            })
            .collect();
        if !double.is_empty() {
            self.keys
                .retain(|key| key.id.as_ref().is_none_or(|id| !double.contains(id)));
            self.notes.push(format!(
                "{} keys are left out: they share a `kid`",
                double.len()
            ));
        }
    }
}

fn read(jwk: &Value, notes: &mut Vec<String>, index: usize) -> Result<Key, &'static str> {
    let member = |name: &str| document::member(jwk, name);
    let text = |name: &str| member(name).and_then(document::text);
    let kind = text("kty").ok_or("it is no object with a `kty`")?;
    if &**kind == "oct" {
        return Err("it is symmetric, and a published secret is none");
    }
    if member("use").is_some() && text("use").is_none_or(|usage| &**usage != "sig") {
        return Err("its `use` is not `sig`");
    }
    if let Some(operations) = member("key_ops")
        && !operations.as_array().is_ok_and(|ops| {
            ops.iter()
                .any(|op| document::text(op).is_some_and(|op| &**op == "verify"))
        })
    {
        return Err("its `key_ops` does not hold `verify`");
    }
    let id = match member("kid") {
        None => None,
        Some(value) => match document::text(value) {
            Some(id) if !id.is_empty() && id.len() <= jws::MAX_KEY_ID => Some(Arc::clone(id)),
            _ => return Err("its `kid` is no string, empty or too long"),
        },
    };
    let bytes = |name: &str, why: &'static str| {
        text(name)
            .filter(|text| !text.is_empty())
            .and_then(|text| jws::decode(text))
            .ok_or(why)
    };
    let (family, material, parts, members) = match &**kind {
        "RSA" => {
            let modulus = bytes("n", "its modulus is not canonical base64url")?;
            let exponent = bytes("e", "its exponent is not canonical base64url")?;
            let (modulus, exponent) = (trimmed(&modulus), trimmed(&exponent));
            check_rsa(modulus, exponent)?;
            let key = RsaKey::new(modulus, exponent).ok_or("it is no RSA key")?;
            (
                Family::Rsa,
                Material::Rsa(Arc::new(key)),
                vec![modulus.to_vec(), exponent.to_vec()],
                vec![
                    ("e", jws::encode(exponent)),
                    ("kty", "RSA".to_owned()),
                    ("n", jws::encode(modulus)),
                ],
            )
        }
        "EC" => {
            let (family, size, curve) = match text("crv").map(|curve| &**curve) {
                Some("P-256") => (Family::P256, 32, "P-256"),
                Some("P-384") => (Family::P384, 48, "P-384"),
                Some("P-521") => (Family::P521, 66, "P-521"),
                _ => return Err("its curve is unknown"),
            };
            let x = bytes("x", "its point is not canonical base64url")?;
            let y = bytes("y", "its point is not canonical base64url")?;
            if x.len() != size || y.len() != size {
                return Err("its point has the wrong size");
            }
            let point = [&[4][..], &x, &y].concat();
            let material = ec_material(family, &point).ok_or("its point is not on its curve")?;
            let members = vec![
                ("crv", curve.to_owned()),
                ("kty", "EC".to_owned()),
                ("x", jws::encode(&x)),
                ("y", jws::encode(&y)),
            ];
            (family, material, vec![point], members)
        }
        "OKP" => {
            if text("crv").is_none_or(|curve| &**curve != "Ed25519") {
                return Err("its curve is unknown");
            }
            let x = bytes("x", "its point is not canonical base64url")?;
            if x.len() != 32 || ParsedPublicKey::new(&ED25519, &x).is_err() {
                return Err("its point has the wrong size");
            }
            let key = DecodingKey::from_ed_der(&x);
            let members = vec![
                ("crv", "Ed25519".to_owned()),
                ("kty", "OKP".to_owned()),
                ("x", jws::encode(&x)),
            ];
            (Family::Ed25519, Material::Library(key), vec![x], members)
        }
        _ => return Err("its `kty` is unknown"),
    };
    let algorithms = match member("alg") {
        None => Algorithm::ALL
            .into_iter()
            .filter(|algorithm| algorithm.family() == family)
            .collect(),
        Some(value) => {
            let algorithm = document::text(value)
                .and_then(|name| match &**name {
                    // RFC 9864 names the curve; our tokens still say EdDSA.
                    "Ed25519" => Some(Algorithm::EdDSA),
                    name => Algorithm::from_name(name),
                })
                .ok_or("its `alg` is not one that verifies")?;
            if algorithm.family() != family {
                return Err("its `alg` is for another kind of key");
            }
            vec![algorithm]
        }
    };
    if ["d", "p", "q", "dp", "dq", "qi", "oth", "k"]
        .iter()
        .any(|name| member(name).is_some())
    {
        notes.push(format!(
            "keys[{index}] is published with private members: whoever reads the set can sign"
        ));
    }
    let parts: Vec<&[u8]> = parts.iter().map(Vec::as_slice).collect();
    Ok(Key {
        fingerprint: fingerprint(id.as_deref(), &algorithms, &parts),
        id,
        material,
        public: Some(Public::new(members)),
        algorithms,
    })
}

fn ec_material(family: Family, point: &[u8]) -> Option<Material> {
    // Parsing checks that the point is on the curve; verification alone would do so too late to
    // tell the operator.
    let (algorithm, material) = match family {
        Family::P256 => (
            &ECDSA_P256_SHA256_FIXED,
            Material::Library(DecodingKey::from_ec_der(point)),
        ),
        Family::P384 => (
            &ECDSA_P384_SHA384_FIXED,
            Material::Library(DecodingKey::from_ec_der(point)),
        ),
        Family::P521 => (&ECDSA_P521_SHA512_FIXED, Material::P521(point.to_vec())),
        Family::Rsa | Family::Ed25519 | Family::Secret => return None,
    };
    ParsedPublicKey::new(algorithm, point).ok()?;
    Some(material)
}

fn trimmed(number: &[u8]) -> &[u8] {
    let zeros = number.iter().take_while(|byte| **byte == 0).count();
    number.get(zeros..).unwrap_or_default()
}

fn check_rsa(modulus: &[u8], exponent: &[u8]) -> Result<(), &'static str> {
    let bits = modulus.first().map_or(0, |first| {
        let unused = usize::try_from(first.leading_zeros()).unwrap_or(0);
        modulus.len() * 8 - unused
    });
    if bits < MIN_RSA_BITS {
        return Err("its modulus is shorter than 2048 bits");
    }
    if bits > MAX_RSA_BITS {
        return Err("its modulus is longer than 8192 bits");
    }
    let odd = |number: &[u8]| number.last().is_some_and(|last| last % 2 == 1);
    if !odd(modulus) || !odd(exponent) || exponent == [1] || exponent.len() > 4 {
        return Err("its exponent or modulus is unsafe");
    }
    if is_roca(modulus) {
        return Err("its modulus has the form that CVE-2017-15361 (ROCA) breaks");
    }
    Ok(())
}

/// Whether a modulus was made by the broken generator of CVE-2017-15361: modulo each of these
/// primes it is a power of 65537. For a sound key that happens by chance once in 2^27 or so.
fn is_roca(modulus: &[u8]) -> bool {
    const PRIMES: [u32; 38] = [
        3, 5, 7, 11, 13, 17, 19, 23, 29, 31, 37, 41, 43, 47, 53, 59, 61, 67, 71, 73, 79, 83, 89,
        97, 101, 103, 107, 109, 113, 127, 131, 137, 139, 149, 151, 157, 163, 167,
    ];
    PRIMES.into_iter().all(|prime| {
        let rest = modulus
            .iter()
            .fold(0u32, |rest, byte| (rest * 256 + u32::from(*byte)) % prime);
        let mut power = 1;
        for _ in 0..prime {
            if power == rest {
                return true;
            }
            power = power * (65_537 % prime) % prime;
        }
        false
    })
}

fn fingerprint(id: Option<&str>, algorithms: &[Algorithm], parts: &[&[u8]]) -> [u8; 32] {
    let mut context = Context::new(&SHA256);
    let mut part = |bytes: &[u8]| {
        // Lengths keep two parts from being read as one.
        context.update(&u64::try_from(bytes.len()).unwrap_or(u64::MAX).to_be_bytes());
        context.update(bytes);
    };
    part(id.unwrap_or_default().as_bytes());
    for algorithm in algorithms {
        part(algorithm.name().as_bytes());
    }
    for bytes in parts {
        part(bytes);
    }
    let mut fingerprint = [0; 32];
    fingerprint.copy_from_slice(context.finish().as_ref());
    fingerprint
}

#[cfg(test)]
#[path = "keys_tests.rs"]
mod tests;
