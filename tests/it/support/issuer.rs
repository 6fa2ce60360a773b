//! An issuer whose keys, answers and faults a test controls, and tokens of any shape.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::rsa::KeySize;
use aws_lc_rs::signature::{
    self, EcdsaKeyPair, EcdsaSigningAlgorithm, Ed25519KeyPair, KeyPair, RsaKeyPair,
};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::{Value, json};

pub fn b64(bytes: impl AsRef<[u8]>) -> String {
    URL_SAFE_NO_PAD.encode(bytes)
}

/// A signing key with its `kid`.
#[derive(Clone)]
pub struct Key {
    pub kid: String,
    pub alg: &'static str,
    material: Arc<Material>,
}

enum Material {
    Rsa(RsaKeyPair),
    Ec(EcdsaKeyPair, &'static str, usize),
    Ed(Ed25519KeyPair),
}

impl Key {
    pub fn new(kid: &str, alg: &'static str) -> Self {
        let ec = |algorithm: &'static EcdsaSigningAlgorithm, curve, length| {
            Material::Ec(EcdsaKeyPair::generate(algorithm).unwrap(), curve, length)
        };
        let material = match alg {
            "ES256" => ec(&signature::ECDSA_P256_SHA256_FIXED_SIGNING, "P-256", 32),
            "ES384" => ec(&signature::ECDSA_P384_SHA384_FIXED_SIGNING, "P-384", 48),
            "ES512" => ec(&signature::ECDSA_P521_SHA512_FIXED_SIGNING, "P-521", 66),
            "EdDSA" => Material::Ed(Ed25519KeyPair::generate().unwrap()),
            _ => Material::Rsa(RsaKeyPair::generate(KeySize::Rsa2048).unwrap()),
        };
        Self {
            kid: kid.to_owned(),
            alg,
            material: Arc::new(material),
        }
    }

    pub fn jwk(&self) -> Value {
        let mut jwk = match &*self.material {
            Material::Rsa(pair) => {
                let public = pair.public_key();
                json!({"kty": "RSA",
                       "n": b64(public.modulus().big_endian_without_leading_zero()),
                       "e": b64(public.exponent().big_endian_without_leading_zero())})
            }
            Material::Ec(pair, curve, length) => {
                let point = &pair.public_key().as_ref()[1..];
                json!({"kty": "EC", "crv": curve, "x": b64(&point[..*length]), "y": b64(&point[*length..])})
            }
            Material::Ed(pair) => {
                json!({"kty": "OKP", "crv": "Ed25519", "x": b64(pair.public_key().as_ref())})
            }
        };
        jwk["kid"] = self.kid.clone().into();
        jwk["alg"] = self.alg.into();
        jwk["use"] = "sig".into();
        jwk
    }

    pub fn sign(&self, message: &[u8]) -> Vec<u8> {
        match &*self.material {
            Material::Ec(pair, ..) => pair
                .sign(&SystemRandom::new(), message)
                .unwrap()
                .as_ref()
                .to_vec(),
            Material::Ed(pair) => pair.sign(message).as_ref().to_vec(),
            Material::Rsa(pair) => {
                let padding: &'static dyn signature::RsaEncoding = match self.alg {
                    "RS256" => &signature::RSA_PKCS1_SHA256,
                    "RS384" => &signature::RSA_PKCS1_SHA384,
                    "RS512" => &signature::RSA_PKCS1_SHA512,
                    "PS256" => &signature::RSA_PSS_SHA256,
                    "PS384" => &signature::RSA_PSS_SHA384,
                    "PS512" => &signature::RSA_PSS_SHA512,
                    other => panic!("no such algorithm: {other}"),
                };
                let mut out = vec![0; pair.public_modulus_len()];
                pair.sign(padding, &SystemRandom::new(), message, &mut out)
                    .unwrap();
                out
            }
        }
    }

    /// A token of exactly this header and payload text.
    pub fn token_raw(&self, header: &str, payload: &str) -> String {
        let message = format!("{}.{}", b64(header), b64(payload));
        let signature = self.sign(message.as_bytes());
        format!("{message}.{}", b64(signature))
    }

    /// A token with the usual header.
    pub fn token(&self, claims: &Value) -> String {
        let header = json!({"alg": self.alg, "kid": self.kid, "typ": "at+jwt"});
        self.token_raw(&header.to_string(), &claims.to_string())
    }
}

pub fn now() -> u64 {
    SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap()
        .as_secs()
}

pub const AUDIENCE: &str = "https://api.example.test";

/// What the issuer does when it is asked for its keys.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Behaviour {
    Good,
    Status(u16),
    Hang,
    Body(String),
    /// The keys, said to be compressed, as this many zero bytes.
    Compressed(usize),
    /// Half of the keys, then the end.
    Torn,
    Reset,
}

/// A running issuer.
pub struct Issuer {
    pub url: String,
    state: Arc<State>,
}

struct State {
    keys: Mutex<Vec<Value>>,
    behaviour: Mutex<Behaviour>,
    fetches: AtomicUsize,
    cache_control: Mutex<String>,
    /// Where discovery says that the keys are, and whose document it is.
    discovery: Mutex<(String, String)>,
}

impl Issuer {
    pub fn start(keys: &[&Key]) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let url = format!("http://{address}");
        let state = Arc::new(State {
            keys: Mutex::new(keys.iter().map(|k| k.jwk()).collect()),
            behaviour: Mutex::new(Behaviour::Good),
            fetches: AtomicUsize::new(0),
            cache_control: Mutex::new("max-age=300".to_owned()),
            discovery: Mutex::new((format!("{url}/jwks"), url.clone())),
        });
        let shared = Arc::clone(&state);
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let state = Arc::clone(&shared);
                std::thread::spawn(move || serve(stream, &state));
            }
        });
        Self { url, state }
    }

    pub fn set_keys(&self, keys: &[&Key]) {
        *self.state.keys.lock().unwrap() = keys.iter().map(|k| k.jwk()).collect();
    }

    pub fn set_jwks(&self, keys: Vec<Value>) {
        *self.state.keys.lock().unwrap() = keys;
    }

    pub fn behave(&self, behaviour: Behaviour) {
        *self.state.behaviour.lock().unwrap() = behaviour;
    }

    pub fn cache_control(&self, value: &str) {
        *self.state.cache_control.lock().unwrap() = value.to_owned();
    }

    /// From now on discovery names this `jwks_uri` and this `issuer`; `/jwks` is no more once it is left.
    pub fn discovery(&self, jwks_uri: &str, issuer: &str) {
        *self.state.discovery.lock().unwrap() = (jwks_uri.to_owned(), issuer.to_owned());
    }

    /// How often the key set was asked for.
    pub fn fetches(&self) -> usize {
        self.state.fetches.load(Ordering::SeqCst)
    }

    /// Good claims of `subject`.
    pub fn claims(&self, subject: &str) -> Value {
        json!({
            "iss": self.url, "sub": subject, "aud": AUDIENCE, "client_id": "app",
            "iat": now() - 5, "exp": now() + 300, "jti": format!("{subject}-{}", rand::random::<u64>()),
            "scope": "orders:read orders:write", "roles": ["customer"],
        })
    }
}

fn serve(stream: TcpStream, state: &State) {
    let mut reader = BufReader::new(stream.try_clone().unwrap());
    let mut stream = stream;
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line).unwrap_or(0) == 0 {
            return;
        }
        let path = line.split(' ').nth(1).unwrap_or("").to_owned();
        let mut headers = BTreeMap::new();
        loop {
            let mut header = String::new();
            if reader.read_line(&mut header).unwrap_or(0) == 0 || header == "\r\n" {
                break;
            }
            if let Some((name, value)) = header.split_once(':') {
                headers.insert(name.to_ascii_lowercase(), value.trim().to_owned());
            }
        }
        let body = if path == "/.well-known/openid-configuration" {
            let (jwks_uri, issuer) = state.discovery.lock().unwrap().clone();
            json!({"issuer": issuer, "jwks_uri": jwks_uri}).to_string()
        } else if !state.discovery.lock().unwrap().0.ends_with(&path) {
            let _ = write!(stream, "HTTP/1.1 404 Gone\r\nContent-Length: 0\r\n\r\n");
            continue;
        } else {
            state.fetches.fetch_add(1, Ordering::SeqCst);
            let behaviour = state.behaviour.lock().unwrap().clone();
            match behaviour {
                Behaviour::Good => json!({"keys": *state.keys.lock().unwrap()}).to_string(),
                Behaviour::Body(text) => text,
                Behaviour::Reset => return,
                Behaviour::Torn => {
                    let _ = write!(
                        stream,
                        "HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n{{\"keys\":["
                    );
                    return;
                }
                Behaviour::Compressed(length) => {
                    let head = format!(
                        "HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: {length}\r\n\r\n"
                    );
                    let _ = stream.write_all(head.as_bytes());
                    let _ = stream.write_all(&vec![0; length]);
                    continue;
                }
                Behaviour::Hang => {
                    std::thread::park_timeout(Duration::from_secs(20));
                    return;
                }
                Behaviour::Status(status) => {
                    let _ = write!(stream, "HTTP/1.1 {status} No\r\nContent-Length: 0\r\n\r\n");
                    continue;
                }
            }
        };
        let cache = state.cache_control.lock().unwrap().clone();
        let answer = format!(
            "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nCache-Control: {cache}\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        );
        if stream.write_all(answer.as_bytes()).is_err() {
            return;
        }
    }
}
