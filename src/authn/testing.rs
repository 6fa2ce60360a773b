//! Keys that sign, requests and issuers, for tests.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, SystemTime};

use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::rsa::{KeyPair as RsaKeyPair, KeySize};
use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_FIXED_SIGNING, ECDSA_P384_SHA384_FIXED_SIGNING,
    ECDSA_P521_SHA512_FIXED_SIGNING, EcdsaKeyPair, Ed25519KeyPair, KeyPair, RSA_PKCS1_SHA256,
    RSA_PKCS1_SHA384, RSA_PKCS1_SHA512, RSA_PSS_SHA256, RSA_PSS_SHA384, RSA_PSS_SHA512,
    RsaEncoding,
};
use serde_json::{Value, json};

use super::Identity;
use super::claims::{Facts, words};
use super::jws::encode;
use super::jwt::{Issuer, IssuerConfig};
use crate::clock;
use crate::document;
use crate::metrics::Metrics;
use crate::request::{ConnInfo, InboundRequest, RequestId, Rules, TlsInfo};
use crate::schema::{Compile, Problem};
use crate::tls::PeerCertificate;

pub(crate) const ISSUER: &str = "http://127.0.0.1:9400";
pub(crate) const AUDIENCE: &str = "https://api.example.test";

enum Secret {
    Rsa(&'static RsaKeyPair, &'static dyn RsaEncoding),
    Ec(EcdsaKeyPair, &'static str),
    Ed(Ed25519KeyPair),
}

/// A key that signs tokens.
pub(crate) struct Signer {
    pub(crate) kid: String,
    pub(crate) alg: &'static str,
    secret: Secret,
}

/// Making RSA keys is slow: two are enough for all tests.
fn rsa(second: bool, size: KeySize) -> &'static RsaKeyPair {
    static KEYS: [OnceLock<RsaKeyPair>; 2] = [OnceLock::new(), OnceLock::new()];
    KEYS[usize::from(second)].get_or_init(|| RsaKeyPair::generate(size).unwrap())
}

impl Signer {
    pub(crate) fn new(alg: &'static str, kid: &str) -> Self {
        let secret = match alg {
            "ES256" => Secret::Ec(
                EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING).unwrap(),
                "P-256",
            ),
            "ES384" => Secret::Ec(
                EcdsaKeyPair::generate(&ECDSA_P384_SHA384_FIXED_SIGNING).unwrap(),
                "P-384",
            ),
            "ES512" => Secret::Ec(
                EcdsaKeyPair::generate(&ECDSA_P521_SHA512_FIXED_SIGNING).unwrap(),
                "P-521",
            ),
            "EdDSA" => Secret::Ed(Ed25519KeyPair::generate().unwrap()),
            rs => Secret::Rsa(rsa(false, KeySize::Rsa2048), padding(rs)),
        };
        Self {
            kid: kid.to_owned(),
            alg,
            secret,
        }
    }

    /// Another RSA key than [`Signer::new`] gives.
    pub(crate) fn stranger(kid: &str) -> Self {
        Self {
            kid: kid.to_owned(),
            alg: "RS256",
            secret: Secret::Rsa(rsa(true, KeySize::Rsa2048), &RSA_PKCS1_SHA256),
        }
    }

    pub(crate) fn sign_bytes(&self, message: &[u8]) -> Vec<u8> {
        let random = SystemRandom::new();
        match &self.secret {
            Secret::Rsa(key, padding) => {
                let mut signature = vec![0; key.public_modulus_len()];
                key.sign(*padding, &random, message, &mut signature)
                    .unwrap();
                signature
            }
            Secret::Ec(key, _) => key.sign(&random, message).unwrap().as_ref().to_vec(),
            Secret::Ed(key) => key.sign(message).as_ref().to_vec(),
        }
    }

    /// Signs these parts as they are.
    pub(crate) fn raw(&self, header: &str, payload: &str) -> String {
        let signed = format!(
            "{}.{}",
            encode(header.as_bytes()),
            encode(payload.as_bytes())
        );
        let signature = encode(&self.sign_bytes(signed.as_bytes()));
        format!("{signed}.{signature}")
    }

    /// A token with the usual header and these claims.
    pub(crate) fn token(&self, claims: &Value) -> String {
        let header = json!({"alg": self.alg, "typ": "at+jwt", "kid": self.kid});
        self.raw(&header.to_string(), &claims.to_string())
    }

    pub(crate) fn jwk(&self) -> Value {
        let mut jwk = match &self.secret {
            Secret::Rsa(key, _) => {
                let (n, e) = rsa_parts(key.public_key().as_ref());
                json!({"kty": "RSA", "n": encode(&n), "e": encode(&e)})
            }
            Secret::Ec(key, curve) => {
                let point = &key.public_key().as_ref()[1..];
                let (x, y) = point.split_at(point.len() / 2);
                json!({"kty": "EC", "crv": curve, "x": encode(x), "y": encode(y)})
            }
            Secret::Ed(key) => {
                json!({"kty": "OKP", "crv": "Ed25519", "x": encode(key.public_key().as_ref())})
            }
        };
        jwk["kid"] = json!(self.kid);
        jwk["alg"] = json!(self.alg);
        jwk["use"] = json!("sig");
        jwk
    }
}

fn padding(alg: &str) -> &'static dyn RsaEncoding {
    match alg {
        "RS256" => &RSA_PKCS1_SHA256,
        "RS384" => &RSA_PKCS1_SHA384,
        "RS512" => &RSA_PKCS1_SHA512,
        "PS256" => &RSA_PSS_SHA256,
        "PS384" => &RSA_PSS_SHA384,
        "PS512" => &RSA_PSS_SHA512,
        other => panic!("no RSA algorithm: {other}"),
    }
}

/// Modulus and exponent of an RSAPublicKey (RFC 8017 appendix A.1.1).
fn rsa_parts(der: &[u8]) -> (Vec<u8>, Vec<u8>) {
    fn take(der: &[u8]) -> (&[u8], &[u8]) {
        let (length, start) = match der[1] {
            short if short < 0x80 => (usize::from(short), 2),
            long => {
                let count = usize::from(long & 0x7f);
                let length = der[2..2 + count]
                    .iter()
                    .fold(0, |l, b| l * 256 + usize::from(*b));
                (length, 2 + count)
            }
        };
        der[start..].split_at(length)
    }
    let (body, _) = take(der);
    let (n, rest) = take(body);
    let (e, _) = take(rest);
    let strip = |number: &[u8]| number.iter().copied().skip_while(|b| *b == 0).collect();
    (strip(n), strip(e))
}

pub(crate) fn jwks(signers: &[&Signer]) -> String {
    json!({"keys": signers.iter().map(|s| s.jwk()).collect::<Vec<_>>()}).to_string()
}

pub(crate) fn unix() -> u64 {
    clock::unix_seconds(clock::now())
}

/// Good claims.
pub(crate) fn claims() -> Value {
    json!({"iss": ISSUER, "sub": "alice", "aud": AUDIENCE, "exp": unix() + 600, "iat": unix() - 5,
           "nbf": unix() - 5, "jti": "1", "scope": "api:read  api:write", "client_id": "svc",
           "realm_access": {"roles": ["admin", "user"]}})
}

/// Good claims with changes; `null` here removes a claim.
pub(crate) fn claims_with(changes: Value) -> Value {
    let mut all = claims();
    for (name, value) in changes.as_object().unwrap() {
        if value.is_null() {
            all.as_object_mut().unwrap().remove(name);
        } else {
            all[name] = value.clone();
        }
    }
    all
}

/// Compiles a block written in YAML in `folder`.
pub(crate) fn compile(
    folder: &Path,
    yaml: &str,
    previous: Option<&Arc<Issuer>>,
) -> Result<Arc<Issuer>, Vec<Problem>> {
    let config: IssuerConfig = serde_yaml::from_str(yaml).unwrap();
    let mut cx = Compile::new(&folder.join("gateway.yaml"), Arc::<Metrics>::default());
    let issuer = config.compile("dev", previous, &mut cx);
    let problems = cx.finish().0;
    issuer.ok_or(problems)
}

/// The block that most tests use, with its keys in `jwks.json`.
pub(crate) const BLOCK: &str = r"
issuer: http://127.0.0.1:9400
keys: { file: jwks.json }
audiences: [https://api.example.test]
algorithms: [RS256, RS384, RS512, PS256, PS384, PS512, ES256, ES384, ES512, EdDSA]
claims: { roles: realm_access.roles }
";

pub(crate) fn request_with(
    headers: &[(&str, &str)],
    certificate: Option<PeerCertificate>,
    received_at: SystemTime,
) -> InboundRequest {
    let address = SocketAddr::from(([127, 0, 0, 1], 1));
    let conn = Arc::new(ConnInfo {
        listener: "test".into(),
        peer: address,
        local: address,
        tls: certificate.map(|certificate| TlsInfo {
            version: "TLSv1.3",
            server_name: None,
            peer_certificate: Some(Arc::new(certificate)),
            ..TlsInfo::default()
        }),
        ambiguous_head: None,
        forwarded: Default::default(),
    });
    let mut request = http::Request::get("/").header("host", "api.example.test");
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    InboundRequest::parse(
        &conn,
        RequestId::random(),
        request.body(()).unwrap(),
        received_at,
        &Rules::default(),
    )
    .unwrap()
    .0
}

pub(crate) fn request(token: &str) -> InboundRequest {
    request_with(
        &[("authorization", &format!("Bearer {token}"))],
        None,
        clock::now(),
    )
}

impl Identity {
    /// An identity for tests of other rooms: a token's, of issuer `https://issuer.test`. Scopes,
    /// roles and client are those of the claims `scope`, `roles` and `client_id`; `kid`, `sid`,
    /// `token_version` and `issued_at` say what they say.
    pub(crate) fn for_tests(
        subject: &str,
        claims: document::Value,
        expires_at: SystemTime,
    ) -> Arc<Self> {
        let text = |name| {
            document::member(&claims, name)
                .and_then(document::text)
                .cloned()
        };
        let number = |name| document::member(&claims, name).and_then(|it| it.as_u64().ok());
        let facts = Facts {
            method: "jwt",
            issuer: "https://issuer.test".into(),
            source: "test".into(),
            subject: subject.into(),
            client: document::member(&claims, "client_id")
                .and_then(document::text)
                .cloned(),
            scopes: words(&claims, "scope"),
            roles: words(&claims, "roles"),
            token_id: document::member(&claims, "jti")
                .and_then(document::text)
                .cloned(),
            key_id: text("kid"),
            session: text("sid"),
            version: number("token_version"),
            issued_at: number("issued_at")
                .map(|seconds| SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)),
            expires_at,
            valid_until: expires_at,
            claims,
        };
        Arc::new(facts.seal())
    }
}
