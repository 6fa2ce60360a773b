//! A gateway's configuration with everything that the benches ask for, loaded as the program does,
//! and requests for it.

use std::fs;
use std::future::Future;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::Path;
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::SystemTime;

use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::rsa::KeySize;
use aws_lc_rs::signature::{self, EcdsaKeyPair, Ed25519KeyPair, KeyPair as _, RsaKeyPair};
use aws_lc_rs::{hmac, rand};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use http::Request;
use portcullis::authn::{Caller, Recent};
use portcullis::authz::{Decision, Machines, Permit, RouteFacts};
use portcullis::config;
use portcullis::metrics::Metrics;
use portcullis::request::{ConnInfo, InboundRequest, RequestId, TlsInfo};
use portcullis::route::Match;
use portcullis::schema::{Problem, Severity};
use portcullis::snapshot::Snapshot;
use serde_json::{Value, json};
use tempfile::TempDir;

/// Every way to sign that is measured.
pub(crate) const ALGORITHMS: [&str; 6] = ["RS256", "PS256", "ES256", "ES384", "EdDSA", "HS256"];
/// What tokens are meant for.
const AUDIENCE: &str = "https://api.example.test";
/// Who sends the requests: a network that `sixty.data.yaml` trusts.
const CLIENT: Ipv4Addr = Ipv4Addr::new(10, 1, 2, 3);

/// A loaded configuration and the tokens that it believes.
pub(crate) struct World {
    pub(crate) snapshot: Snapshot,
    /// One for each of [`ALGORITHMS`].
    tokens: Vec<(&'static str, String)>,
    _folder: TempDir,
}

impl World {
    /// Loads this document; `files` makes what it names.
    pub(crate) fn load(document: &Value, files: impl FnOnce(&Path)) -> Self {
        Self::try_load(document, files).unwrap_or_else(|problems| panic!("{problems:#?}"))
    }

    /// [`World::load`], or the errors of the document.
    pub(crate) fn try_load(
        document: &Value,
        files: impl FnOnce(&Path),
    ) -> Result<Self, Vec<Problem>> {
        let folder = tempfile::tempdir().unwrap();
        files(folder.path());
        let tokens = ALGORITHMS
            .map(|algorithm| (algorithm, keys(folder.path(), algorithm)))
            .to_vec();
        let mut document = document.clone();
        let defaults = json!({
            "listeners": { "local": { "address": "127.0.0.1:8080", "plaintext": true } },
            "issuers": issuers(),
            "upstreams": { "up": { "endpoints": ["http://127.0.0.1:9500"] } },
            "audit": { "sink": "none" },
        });
        for (section, value) in defaults.as_object().unwrap() {
            document
                .as_object_mut()
                .unwrap()
                .entry(section)
                .or_insert_with(|| value.clone());
        }
        let file = folder.path().join("gateway.yaml");
        // JSON is YAML.
        fs::write(&file, document.to_string()).unwrap();
        let metrics = Arc::new(Metrics::default());
        let loaded = config::load(&file, None, &metrics);
        let snapshot = match loaded {
            Ok(loaded) => loaded.snapshot,
            Err(mut problems) => {
                problems.retain(|problem| problem.severity == Severity::Error);
                return Err(problems);
            }
        };
        Ok(Self {
            snapshot,
            tokens,
            _folder: folder,
        })
    }

    /// The usual request with a token signed like this.
    pub(crate) fn request(&self, algorithm: &str, path: &str) -> InboundRequest {
        let token = self.tokens.iter().find(|(known, _)| *known == algorithm);
        self.parsed(head(path, Some(&token.unwrap().1)))
    }

    /// Reads a request as the gateway does.
    pub(crate) fn parsed(&self, head: Request<()>) -> InboundRequest {
        let id = RequestId::random();
        let rules = &self.snapshot.rules;
        InboundRequest::parse(&connection(), id, head, now(), rules)
            .unwrap()
            .0
    }

    pub(crate) fn find<'w>(&'w self, request: &InboundRequest) -> Match<'w> {
        self.snapshot.routes.find(request).unwrap()
    }

    /// Who sent this, as its route's methods say.
    pub(crate) fn caller(&self, request: &InboundRequest) -> Caller {
        let chain = &self.find(request).route.authn;
        let recent = Recent::default();
        at_once(chain.authenticate(&recent, request)).unwrap()
    }

    /// The permission of the route's policy.
    pub(crate) fn permit(&self, request: &InboundRequest) -> Permit {
        let found = self.find(request);
        let policy = &found.route.policy;
        let machines = Machines::default();
        match policy.decide(&machines, request, &facts(&found), self.caller(request)) {
            Decision::Allow(permit) => permit,
            Decision::Deny(denial) => panic!("{denial:?}"),
        }
    }
}

/// What a route tells its policy.
pub(crate) fn facts<'f>(found: &'f Match<'_>) -> RouteFacts<'f> {
    RouteFacts {
        name: &found.route.name,
        params: &found.params,
        labels: &found.route.labels,
    }
}

/// The outcome of a future that has nothing to wait for.
pub(crate) fn at_once<F: Future>(future: F) -> F::Output {
    let mut cx = Context::from_waker(Waker::noop());
    match pin!(future).poll(&mut cx) {
        Poll::Ready(outcome) => outcome,
        Poll::Pending => panic!("it waits"),
    }
}

/// The head of an ordinary request: what a browser's script or a small client sends.
pub(crate) fn head(target: &str, token: Option<&str>) -> Request<()> {
    let mut head = Request::get(target)
        .header("host", "api.example.test")
        .header("user-agent", "example-client/3.2 (linux; x86_64)")
        .header("accept", "application/json")
        .header("accept-encoding", "gzip, br")
        .header("accept-language", "en-GB,en;q=0.8")
        .header("x-tenant", "acme")
        .header("cookie", "session=0123456789abcdef; theme=dark");
    if let Some(token) = token {
        head = head.header("authorization", format!("Bearer {token}"));
    }
    head.body(()).unwrap()
}

/// A TLS connection of a client.
pub(crate) fn connection() -> Arc<ConnInfo> {
    Arc::new(ConnInfo {
        listener: "local".into(),
        peer: SocketAddr::new(IpAddr::V4(CLIENT), 40_000),
        local: SocketAddr::from(([127, 0, 0, 1], 8443)),
        tls: Some(TlsInfo {
            version: "TLSv1.3",
            server_name: Some("api.example.test".into()),
            peer_certificate: None,
            ..TlsInfo::default()
        }),
        ambiguous_head: None,
        forwarded: Default::default(),
    })
}

pub(crate) fn now() -> SystemTime {
    SystemTime::now()
}

/// One issuer for each algorithm that remembers its tokens, and one that does not.
fn issuers() -> Value {
    let mut issuers = serde_json::Map::new();
    for algorithm in ALGORITHMS {
        let keys = match algorithm {
            "HS256" => json!({ "secret": "file:HS256.secret" }),
            _ => json!({ "file": format!("{algorithm}.json") }),
        };
        let mut issuer = json!({
            "issuer": format!("https://{algorithm}.example.test"),
            "keys": keys,
            "audiences": [AUDIENCE],
            "algorithms": [algorithm],
            "claims": { "client": "client_id", "roles": "roles" },
        });
        issuers.insert(algorithm.to_owned(), issuer.clone());
        issuer["cache"] = json!({ "entries": 0 });
        issuers.insert(format!("{algorithm}-anew"), issuer);
    }
    Value::Object(issuers)
}

/// What a token says: the claims that `sixty.rego` reads among others, about 800 bytes in all.
fn claims(algorithm: &str) -> Value {
    let now = now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap()
        .as_secs();
    json!({
        "iss": format!("https://{algorithm}.example.test"),
        "aud": AUDIENCE,
        "sub": "user-00012345",
        "exp": now + 86_400,
        "iat": now,
        "auth_time_ns": now * 1_000_000_000,
        "jti": "jti-00012345",
        "client_id": "web",
        "scope": "orders:read orders:write profile",
        "roles": ["analyst", "eu-west"],
        "groups": ["on-call", "payments"],
        "amr": ["pwd", "mfa"],
        "email": "user-00012345@example.test",
        "tenant": "acme",
        "device": {
            "managed": true, "disk_encrypted": true, "posture_score": 92, "os": "macos-26",
        },
    })
}

/// Makes a key, writes its public half, and signs a token with it.
fn keys(folder: &Path, algorithm: &'static str) -> String {
    let header = json!({ "alg": algorithm, "kid": "one", "typ": "at+jwt" });
    let message = format!(
        "{}.{}",
        b64(header.to_string()),
        b64(claims(algorithm).to_string())
    );
    let (jwk, signature) = match algorithm {
        "RS256" => rsa(&signature::RSA_PKCS1_SHA256, &message),
        "PS256" => rsa(&signature::RSA_PSS_SHA256, &message),
        "ES256" => {
            let algorithm = &signature::ECDSA_P256_SHA256_FIXED_SIGNING;
            ec(algorithm, "P-256", 32, &message)
        }
        "ES384" => {
            let algorithm = &signature::ECDSA_P384_SHA384_FIXED_SIGNING;
            ec(algorithm, "P-384", 48, &message)
        }
        "EdDSA" => {
            let pair = Ed25519KeyPair::generate().unwrap();
            let x = b64(pair.public_key());
            let jwk = json!({ "kty": "OKP", "crv": "Ed25519", "x": x });
            (jwk, pair.sign(message.as_bytes()).as_ref().to_vec())
        }
        _ => {
            let mut secret = [0; 32];
            rand::fill(&mut secret).unwrap();
            // A file's last line break is not part of the secret; bytes of text are safe from that.
            let secret = b64(secret);
            fs::write(folder.join("HS256.secret"), &secret).unwrap();
            let key = hmac::Key::new(hmac::HMAC_SHA256, secret.as_bytes());
            let tag = hmac::sign(&key, message.as_bytes());
            (Value::Null, tag.as_ref().to_vec())
        }
    };
    if let Value::Object(mut jwk) = jwk {
        jwk.extend([
            ("kid".to_owned(), "one".into()),
            ("alg".to_owned(), algorithm.into()),
            ("use".to_owned(), "sig".into()),
        ]);
        let set = json!({ "keys": [jwk] });
        fs::write(folder.join(format!("{algorithm}.json")), set.to_string()).unwrap();
    }
    format!("{message}.{}", b64(signature))
}

fn rsa(padding: &'static dyn signature::RsaEncoding, message: &str) -> (Value, Vec<u8>) {
    let pair = RsaKeyPair::generate(KeySize::Rsa2048).unwrap();
    let public = pair.public_key();
    let jwk = json!({
        "kty": "RSA",
        "n": b64(public.modulus().big_endian_without_leading_zero()),
        "e": b64(public.exponent().big_endian_without_leading_zero()),
    });
    let mut signature = vec![0; pair.public_modulus_len()];
    let random = SystemRandom::new();
    pair.sign(padding, &random, message.as_bytes(), &mut signature)
        .unwrap();
    (jwk, signature)
}

fn ec(
    algorithm: &'static signature::EcdsaSigningAlgorithm,
    curve: &str,
    length: usize,
    message: &str,
) -> (Value, Vec<u8>) {
    let pair = EcdsaKeyPair::generate(algorithm).unwrap();
    let (x, y) = pair.public_key().as_ref()[1..].split_at(length);
    let jwk = json!({ "kty": "EC", "crv": curve, "x": b64(x), "y": b64(y) });
    let signature = pair.sign(&SystemRandom::new(), message.as_bytes()).unwrap();
    (jwk, signature.as_ref().to_vec())
}

fn b64(bytes: impl AsRef<[u8]>) -> String {
    URL_SAFE_NO_PAD.encode(bytes)
}
