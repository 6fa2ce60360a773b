//! Keys, certificates and tokens, made anew for each rig.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::thread;
use std::time::SystemTime;

use anyhow::{Context as _, Result, anyhow};
use aws_lc_rs::encoding::AsDer as _;
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::rsa::{KeyPair as RsaKeyPair, KeySize};
use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair as _, RSA_PKCS1_SHA256,
};
use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
};
use serde_json::{Value, json};

/// The `iss` that every peer is told to believe.
const ISSUER: &str = "https://issuer.example.test";
/// The `aud` that every peer is told to expect.
const AUDIENCE: &str = "https://api.example.test";
/// The head of an RSAPublicKey with a modulus of 2048 bits (RFC 8017, A.1.1), up to the modulus.
const RSA_2048_PREFIX: usize = 9;

/// How many tokens of each kind.
#[derive(Debug, Clone, Copy, clap::Args)]
pub(crate) struct Counts {
    /// Tokens for the rotation
    #[arg(long, default_value_t = 1000)]
    rotating: usize,
    /// RS256 tokens that are used once
    #[arg(long, default_value_t = 30_000)]
    once: usize,
    /// ES256 tokens that are used once
    #[arg(long, default_value_t = 20_000)]
    once_es256: usize,
}

/// Who signs tokens.
enum Signer {
    Rs256(Box<RsaKeyPair>),
    Es256(EcdsaKeyPair),
}

impl Signer {
    fn header(&self) -> &'static str {
        match self {
            Self::Rs256(_) => r#"{"alg":"RS256","kid":"rsa","typ":"at+jwt"}"#,
            Self::Es256(_) => r#"{"alg":"ES256","kid":"ec","typ":"at+jwt"}"#,
        }
    }

    fn token(&self, claims: &Value) -> Result<String> {
        let mut token = URL_SAFE_NO_PAD.encode(self.header());
        token.push('.');
        token.push_str(&URL_SAFE_NO_PAD.encode(claims.to_string()));
        let random = SystemRandom::new();
        let signature = match self {
            Self::Rs256(key) => {
                let mut out = vec![0; key.public_modulus_len()];
                key.sign(&RSA_PKCS1_SHA256, &random, token.as_bytes(), &mut out)
                    .map_err(|_| anyhow!("cannot sign with RSA"))?;
                out
            }
            Self::Es256(key) => key
                .sign(&random, token.as_bytes())
                .map_err(|_| anyhow!("cannot sign with ECDSA"))?
                .as_ref()
                .to_vec(),
        };
        token.push('.');
        token.push_str(&URL_SAFE_NO_PAD.encode(signature));
        Ok(token)
    }
}

fn claims(number: usize, now: u64) -> Value {
    json!({
        "iss": ISSUER,
        "aud": AUDIENCE,
        "sub": format!("user-{number:08}"),
        "exp": now + 86_400,
        "iat": now,
        "jti": format!("jti-{number}"),
        "client_id": "web",
        "scope": "orders:read orders:write profile",
        "roles": ["customer", "reader"],
        "email": format!("user-{number}@example.test"),
        "tenant": "acme",
        "device": {
            "managed": true, "disk_encrypted": true, "posture_score": 85, "os": "macos-15",
        },
    })
}

/// `claims` with some of them replaced.
fn with(number: usize, now: u64, changes: Value) -> Value {
    let mut all = claims(number, now);
    if let (Some(all), Value::Object(changes)) = (all.as_object_mut(), changes) {
        all.extend(changes);
    }
    all
}

/// Tokens `from..from + count`, signed by all cores.
fn many(signer: &Signer, from: usize, count: usize, now: u64) -> Result<String> {
    let cores = thread::available_parallelism().map_or(1, usize::from);
    let share = count.div_ceil(cores).max(1);
    let parts = thread::scope(|scope| {
        let started: Vec<_> = (0..count)
            .step_by(share)
            .map(|start| {
                scope.spawn(move || -> Result<String> {
                    let mut text = String::new();
                    for number in start..(start + share).min(count) {
                        text.push_str(&signer.token(&claims(from + number, now))?);
                        text.push('\n');
                    }
                    Ok(text)
                })
            })
            .collect();
        started
            .into_iter()
            .map(|thread| {
                thread
                    .join()
                    .map_err(|_| anyhow!("a signing thread ended"))?
            })
            .collect::<Result<Vec<_>>>()
    })?;
    Ok(parts.concat())
}

fn pem(label: &str, der: &[u8]) -> String {
    let text = STANDARD.encode(der);
    let lines: Vec<_> = text
        .as_bytes()
        .chunks(64)
        .map(String::from_utf8_lossy)
        .collect();
    format!(
        "-----BEGIN {label}-----\n{}\n-----END {label}-----\n",
        lines.join("\n")
    )
}

/// Writes everything that the peers' configurations and the load name into `folder`.
pub(crate) fn make(folder: &Path, counts: Counts) -> Result<()> {
    fs::create_dir_all(folder)?;
    let write = |name: &str, text: &str| {
        fs::write(folder.join(name), text).with_context(|| format!("cannot write {name}"))
    };
    certificates(&write)?;

    let now = SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)?
        .as_secs();
    let rsa =
        RsaKeyPair::generate(KeySize::Rsa2048).map_err(|_| anyhow!("cannot make an RSA key"))?;
    let ec = EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING)
        .map_err(|_| anyhow!("cannot make an EC key"))?;
    let modulus = rsa
        .public_key()
        .as_ref()
        .get(RSA_2048_PREFIX..RSA_2048_PREFIX + 256);
    let modulus = modulus.context("an RSA key of another shape")?;
    let point = ec.public_key().as_ref();
    let (x, y) = (
        point.get(1..33).context("x")?,
        point.get(33..65).context("y")?,
    );
    let rsa_jwk = json!({
        "kty": "RSA", "kid": "rsa", "alg": "RS256", "use": "sig",
        "n": URL_SAFE_NO_PAD.encode(modulus), "e": "AQAB",
    });
    let ec_jwk = json!({
        "kty": "EC", "kid": "ec", "alg": "ES256", "use": "sig", "crv": "P-256",
        "x": URL_SAFE_NO_PAD.encode(x), "y": URL_SAFE_NO_PAD.encode(y),
    });
    write(
        "jwks.json",
        &json!({ "keys": [rsa_jwk, ec_jwk] }).to_string(),
    )?;
    write(
        "rsa.pub.pem",
        &pem("PUBLIC KEY", public(rsa.public_key().as_der())?.as_ref()),
    )?;
    write(
        "ec.pub.pem",
        &pem("PUBLIC KEY", public(ec.public_key().as_der())?.as_ref()),
    )?;

    let other =
        RsaKeyPair::generate(KeySize::Rsa2048).map_err(|_| anyhow!("cannot make an RSA key"))?;
    let (rsa, ec, other) = (
        Signer::Rs256(Box::new(rsa)),
        Signer::Es256(ec),
        Signer::Rs256(Box::new(other)),
    );
    write("tokens.rotating", &many(&rsa, 0, counts.rotating, now)?)?;
    write("tokens.once", &many(&rsa, 1_000_000, counts.once, now)?)?;
    write(
        "tokens.once-es256",
        &many(&ec, 2_000_000, counts.once_es256, now)?,
    )?;
    // A random signature fails as late as a forged one and is quick to make.
    write(
        "tokens.junk",
        &junk(counts.once, now, |_| Ok("rsa".to_owned()))?,
    )?;
    write("tokens.kids", &junk(counts.once, now, random_kid)?)?;
    let limited = 9_000_000;
    let checks = BTreeMap::from([
        ("good", rsa.token(&claims(1, now))?),
        ("limited", rsa.token(&claims(limited, now))?),
        ("not limited", rsa.token(&claims(limited + 1, now))?),
        (
            "expired",
            rsa.token(&with(
                1,
                now,
                json!({ "exp": now - 3600, "iat": now - 7200 }),
            ))?,
        ),
        ("signed by another key", other.token(&claims(1, now))?),
        (
            "of another issuer",
            rsa.token(&with(1, now, json!({ "iss": "https://other.example" })))?,
        ),
        (
            "for another audience",
            rsa.token(&with(1, now, json!({ "aud": "https://other.example" })))?,
        ),
        (
            "of another role",
            rsa.token(&with(1, now, json!({ "roles": ["supplier"] })))?,
        ),
        (
            "of another scope",
            rsa.token(&with(1, now, json!({ "scope": "profile" })))?,
        ),
        ("ES256", ec.token(&claims(1, now))?),
    ]);
    write("checks.json", &serde_json::to_string_pretty(&checks)?)?;
    write("made", &now.to_string())
}

fn public<T, E>(der: Result<T, E>) -> Result<T> {
    der.map_err(|_| anyhow!("cannot write a public key"))
}

fn random_kid(_: usize) -> Result<String> {
    let mut kid = [0; 12];
    aws_lc_rs::rand::fill(&mut kid).map_err(|_| anyhow!("no random numbers"))?;
    Ok(URL_SAFE_NO_PAD.encode(kid))
}

fn junk(count: usize, now: u64, kid: impl Fn(usize) -> Result<String>) -> Result<String> {
    let mut text = String::new();
    let mut signature = vec![0; 256];
    for number in 0..count {
        aws_lc_rs::rand::fill(&mut signature).map_err(|_| anyhow!("no random numbers"))?;
        // Below the modulus, whose first bit is set.
        if let Some(first) = signature.first_mut() {
            *first &= 0x7f;
        }
        let kid = kid(number)?;
        let header = format!(r#"{{"alg":"RS256","kid":"{kid}","typ":"at+jwt"}}"#);
        let header = URL_SAFE_NO_PAD.encode(header);
        let claims = URL_SAFE_NO_PAD.encode(claims(number, now).to_string());
        text.push_str(&format!(
            "{header}.{claims}.{}\n",
            URL_SAFE_NO_PAD.encode(&signature)
        ));
    }
    Ok(text)
}

/// One authority for the server, one for clients, and one that nobody believes.
fn certificates(write: &impl Fn(&str, &str) -> Result<()>) -> Result<()> {
    let server_ca = authority("Bench CA")?;
    let client_ca = authority("Bench client CA")?;
    let other_ca = authority("Another CA")?;
    write("ca.pem", &server_ca.0)?;
    write("client-ca.pem", &client_ca.0)?;
    let (chain, key) = leaf(
        "localhost",
        &server_ca.1,
        ExtendedKeyUsagePurpose::ServerAuth,
    )?;
    write("server.pem", &chain)?;
    write("server.key", &key)?;
    write("server.both.pem", &format!("{chain}{key}"))?;
    for (name, authority) in [("client", &client_ca.1), ("stranger", &other_ca.1)] {
        let (chain, key) = leaf(name, authority, ExtendedKeyUsagePurpose::ClientAuth)?;
        write(&format!("{name}.pem"), &chain)?;
        write(&format!("{name}.key"), &key)?;
    }
    Ok(())
}

fn authority(name: &str) -> Result<(String, Issuer<'static, KeyPair>)> {
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.distinguished_name.push(DnType::CommonName, name);
    let key = KeyPair::generate()?;
    let pem = params.self_signed(&key)?.pem();
    Ok((pem, Issuer::new(params, key)))
}

fn leaf(
    name: &str,
    issuer: &Issuer<'static, KeyPair>,
    purpose: ExtendedKeyUsagePurpose,
) -> Result<(String, String)> {
    let mut params = CertificateParams::new(vec![name.to_owned(), "127.0.0.1".to_owned()])?;
    params.distinguished_name.push(DnType::CommonName, name);
    params.extended_key_usages.push(purpose);
    let key = KeyPair::generate()?;
    Ok((params.signed_by(&key, issuer)?.pem(), key.serialize_pem()))
}
