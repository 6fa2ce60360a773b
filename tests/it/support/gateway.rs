//! A real gateway on free ports, from a real configuration file.

use std::net::SocketAddr;
use std::path::PathBuf;

use portcullis::run::{Options, Process};
use serde_json::{Value, json};
use tempfile::TempDir;

use super::client::{Answer, Connection, request};
use super::eventually;
use super::issuer::{AUDIENCE, Issuer, Key};
use super::upstream::Upstream;

/// What the admin listener of a test wants.
pub const ADMIN_TOKEN: &str = "the-admin-token-of-the-tests-0123456789";

/// [`ADMIN_TOKEN`] as a header's value.
pub const ADMIN: &str = "Bearer the-admin-token-of-the-tests-0123456789";

/// Allows what a token's scope allows; the smallest policy that reads the caller.
pub const POLICY: &str = r#"package gate

default allow := false

allow if "orders:read" in input.identity.scopes
"#;

/// A configuration under construction: a JSON value, since YAML takes that.
pub struct Builder {
    pub document: Value,
    pub folder: TempDir,
}

impl Builder {
    /// One plain listener, no issuer, one open route to `upstream`.
    pub fn open(upstream: &Upstream) -> Self {
        let folder = TempDir::new().unwrap();
        std::fs::write(folder.path().join("gate.rego"), POLICY).unwrap();
        std::fs::write(folder.path().join("admin-token"), ADMIN_TOKEN).unwrap();
        let document = json!({
            "workers": 1,
            "drain_timeout": "5s",
            "listeners": {"local": {"address": "127.0.0.1:0", "plaintext": true}},
            "upstreams": {"main": {"endpoints": [upstream.url()]}},
            "routes": [{
                "name": "open", "path": "/{*rest}", "authn": ["anonymous"], "policy": "public",
                "upstream": "main",
            }, {
                "name": "root", "path": "/", "authn": ["anonymous"], "policy": "public",
                "upstream": "main",
            }],
            "audit": {"sink": {"file": folder.path().join("audit.jsonl")}},
            "admin": {"address": "127.0.0.1:0", "token": "file:admin-token"},
        });
        Self { document, folder }
    }

    /// As `open`, but every route takes tokens of `issuer` and asks the policy [`POLICY`].
    pub fn guarded(upstream: &Upstream, issuer: &Issuer) -> Self {
        let mut builder = Self::open(upstream);
        builder.document["issuers"] = json!({"main": {
            "issuer": issuer.url,
            "keys": {"discovery": true},
            "audiences": [AUDIENCE],
            "algorithms": ["RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA"],
            "claims": {"subject": "sub", "client": "client_id", "scopes": "scope", "roles": "roles"},
        }});
        builder.document["policies"] =
            json!({"gate": {"files": ["gate.rego"], "entrypoint": "data.gate.allow"}});
        for route in builder.document["routes"].as_array_mut().unwrap() {
            route["authn"] = json!(["main"]);
            route["policy"] = json!("gate");
        }
        builder
    }

    /// Replaces the policy's text.
    pub fn policy(self, rego: &str) -> Self {
        std::fs::write(self.folder.path().join("gate.rego"), rego).unwrap();
        self
    }

    /// Edits the document.
    pub fn with(mut self, edit: impl FnOnce(&mut Value)) -> Self {
        edit(&mut self.document);
        self
    }

    pub fn file(&self, name: &str, contents: impl AsRef<[u8]>) -> PathBuf {
        let path = self.folder.path().join(name);
        std::fs::write(&path, contents).unwrap();
        path
    }

    #[track_caller]
    pub fn start(self) -> Gateway {
        let config = self.folder.path().join("gateway.yaml");
        std::fs::write(
            &config,
            serde_json::to_string_pretty(&self.document).unwrap(),
        )
        .unwrap();
        let process = match Process::start(Options::new(config.clone())) {
            Ok(process) => process,
            Err(error) => panic!("the gateway did not start: {error:?}"),
        };
        let gateway = Gateway {
            process,
            config,
            document: self.document,
            folder: self.folder,
        };
        if gateway.document.get("issuers").is_some() {
            eventually("readiness", || {
                (gateway.admin("GET", "/ready").status == 200).then_some(())
            });
        }
        gateway
    }
}

/// A running gateway; stops when it is dropped.
pub struct Gateway {
    pub process: Process,
    pub config: PathBuf,
    pub document: Value,
    pub folder: TempDir,
}

impl Gateway {
    pub fn address(&self) -> SocketAddr {
        self.listener("local")
    }

    pub fn listener(&self, name: &str) -> SocketAddr {
        self.process.addresses()[name]
    }

    pub fn connect(&self) -> Connection {
        Connection::plain(self.address())
    }

    /// One request on a connection of its own.
    #[track_caller]
    pub fn get(&self, path: &str, headers: &[(&str, &str)]) -> Answer {
        self.send("GET", path, headers)
    }

    #[track_caller]
    pub fn send(&self, method: &str, path: &str, headers: &[(&str, &str)]) -> Answer {
        self.connect()
            .send(request(method, path, headers))
            .answer_to(method)
            .expect("the gateway closed the connection without an answer")
    }

    /// One request with a bearer token.
    #[track_caller]
    pub fn bearer(&self, path: &str, token: &str) -> Answer {
        self.get(path, &[("authorization", &format!("Bearer {token}"))])
    }

    #[track_caller]
    pub fn admin(&self, method: &str, path: &str) -> Answer {
        let address = self.process.admin_address().expect("no admin listener");
        let host = address.to_string();
        let headers = [
            ("host", host.as_str()),
            ("authorization", ADMIN),
            ("connection", "close"),
        ];
        Connection::plain(address)
            .send(request(method, path, &headers))
            .answer()
            .expect("no admin answer")
    }

    /// Replaces a file of the configuration.
    pub fn file_in(&self, name: &str, contents: &str) {
        std::fs::write(self.folder.path().join(name), contents).unwrap();
    }

    /// Sends a JSON document to an admin page.
    #[track_caller]
    pub fn admin_post(&self, path: &str, document: &Value) -> Answer {
        let address = self.process.admin_address().expect("no admin listener");
        let body = document.to_string();
        let head = format!(
            "POST {path} HTTP/1.1\r\nhost: {address}\r\nauthorization: {ADMIN}\r\nconnection: close\r\n\
             content-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
            body.len()
        );
        Connection::plain(address)
            .send(head)
            .answer()
            .expect("no admin answer")
    }

    /// Writes an edited configuration and reloads; the admin's answer.
    #[track_caller]
    pub fn reload(&mut self, edit: impl FnOnce(&mut Value)) -> Answer {
        edit(&mut self.document);
        std::fs::write(
            &self.config,
            serde_json::to_string_pretty(&self.document).unwrap(),
        )
        .unwrap();
        self.admin("POST", "/reload")
    }

    /// All records written so far.
    pub fn records(&self) -> Vec<Value> {
        let text =
            std::fs::read_to_string(self.folder.path().join("audit.jsonl")).unwrap_or_default();
        text.lines()
            .map(|line| serde_json::from_str(line).expect("a record is one JSON line"))
            .collect()
    }

    /// The record of the request with this id, once it is written.
    #[track_caller]
    pub fn record(&self, request_id: &str) -> Value {
        eventually("the record", || {
            self.records()
                .into_iter()
                .find(|r| r["request_id"] == request_id)
        })
    }
}

/// A gateway that trusts one ES256 key of one issuer and forwards to one upstream.
pub struct World {
    pub key: Key,
    pub issuer: Issuer,
    pub upstream: Upstream,
    pub gateway: Gateway,
}

impl World {
    #[track_caller]
    pub fn start() -> Self {
        Self::with(|builder| builder)
    }

    #[track_caller]
    pub fn with(change: impl FnOnce(Builder) -> Builder) -> Self {
        let key = Key::new("k1", "ES256");
        let issuer = Issuer::start(&[&key]);
        let upstream = Upstream::start();
        let gateway = change(Builder::guarded(&upstream, &issuer)).start();
        Self {
            key,
            issuer,
            upstream,
            gateway,
        }
    }

    /// A good token of `subject`.
    pub fn token(&self, subject: &str) -> String {
        self.key.token(&self.issuer.claims(subject))
    }
}
