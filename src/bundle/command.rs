//! `portcullis bundle`: what a bundle holds and whether it would be believed, and how one is made.

use std::fmt::Write as _;
use std::io::{IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use aws_lc_rs::{hmac, rand, signature};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use clap::{Args, Subcommand, ValueEnum};
use rustls_pki_types::PrivateKeyDer;
use rustls_pki_types::pem::PemObject;
use serde_json::{Value, json};

use super::archive::{self, Bounds, Files};
use super::content::Content;
use super::fault::{Fault, Kind};
use super::signature::{
    self as signing, Hashed, Key, Payload, SIGNATURES, SigningAlgorithm, Verifier,
};
use crate::clock;
use crate::fetch::{Ask, Fetcher, Target};
use crate::schema::{Secret, Size};

/// How much is taken: as much as a configuration may allow.
const BOUNDS: Bounds = Bounds {
    packed: Size::mib(256).get(),
    unpacked: Size::mib(1024).get(),
};
/// Longest time for a download.
const TIMEOUT: Duration = Duration::from_secs(60);

/// Bundles in OPA's format: look into one, or make one.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Shows what is in a bundle, whether it would be taken, and why not.
    Inspect(Inspect),
    /// Makes a bundle of a folder, and signs it.
    Build(Build),
}

/// Arguments of `inspect`.
#[derive(Debug, Args)]
pub struct Inspect {
    /// A `.tar.gz`, a folder, or a URL (https, or http on a loopback address).
    bundle: String,
    /// The public key (PEM) or shared secret that must have signed it.
    #[arg(long, value_name = "FILE", requires = "signing_alg")]
    verification_key: Option<PathBuf>,
    /// The algorithm of that key, such as ES256.
    #[arg(long, value_name = "ALG", requires = "verification_key")]
    signing_alg: Option<String>,
    /// The scope that the signature must have.
    #[arg(
        long,
        value_name = "TEXT",
        default_value = "",
        hide_default_value = true
    )]
    scope: String,
    /// Environment variable that holds a token for the server.
    #[arg(long, value_name = "NAME")]
    token_env: Option<String>,
    /// How the answer is written.
    #[arg(long, value_enum, default_value_t = Format::Text)]
    format: Format,
}

/// Arguments of `build`.
#[derive(Debug, Args)]
pub struct Build {
    /// The folder with modules, `data.json` or `data.yaml` files and, if there is one, `.manifest`.
    folder: PathBuf,
    /// Where the bundle goes.
    #[arg(short, long, value_name = "FILE", default_value = "bundle.tar.gz")]
    output: PathBuf,
    /// What this revision is called; written into the manifest.
    #[arg(long, value_name = "TEXT")]
    revision: Option<String>,
    /// A private key (PEM, PKCS #8) or a shared secret to sign with.
    #[arg(long, value_name = "FILE", requires = "signing_alg")]
    signing_key: Option<PathBuf>,
    /// The algorithm of that key, such as ES256.
    #[arg(long, value_name = "ALG", requires = "signing_key")]
    signing_alg: Option<String>,
    /// The id of the key, written into the signature.
    #[arg(long, value_name = "ID", default_value = "default")]
    key_id: String,
    /// What the bundle is signed for.
    #[arg(long, value_name = "TEXT")]
    scope: Option<String>,
    /// How the answer is written.
    #[arg(long, value_enum, default_value_t = Format::Text)]
    format: Format,
}

/// How an answer is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Format {
    /// For people.
    Text,
    /// For programs.
    Json,
}

/// Runs a command; 0 when all is well, 1 when the bundle is not good, 2 when it was asked wrongly.
///
/// # Errors
/// When the answer cannot be written.
pub fn run(command: Command, out: &mut impl Write, err: &mut impl Write) -> std::io::Result<u8> {
    let (format, outcome) = match &command {
        Command::Inspect(inspect) => (inspect.format, inspect.run()),
        Command::Build(build) => (build.format, build.run()),
    };
    match (format, outcome) {
        (Format::Json, Ok(answer)) => writeln!(out, "{:#}", answer.json)?,
        (Format::Text, Ok(answer)) => write!(out, "{}", answer.text)?,
        (Format::Json, Err(fault)) => {
            let document = json!({
                "good": false,
                "reason": fault.kind.code(),
                "error": fault.to_string(),
            });
            writeln!(out, "{document:#}")?;
            return Ok(1);
        }
        (Format::Text, Err(fault)) => {
            let help = fault.help.clone();
            writeln!(
                err,
                "error: {}",
                Fault {
                    help: None,
                    ..fault
                }
            )?;
            if let Some(help) = help {
                writeln!(err, "    help: {help}")?;
            }
            return Ok(1);
        }
    }
    Ok(0)
}

/// A number of things, with the right form of their name.
fn count(number: usize, one: &str) -> String {
    format!("{number} {one}{}", if number == 1 { "" } else { "s" })
}

/// A time as people write it.
fn moment(seconds: i64) -> String {
    use time::format_description::well_known::Rfc3339;
    let at = time::OffsetDateTime::from_unix_timestamp(seconds).ok();
    at.and_then(|at| at.format(&Rfc3339).ok())
        .unwrap_or_else(|| seconds.to_string())
}

struct Answer {
    text: String,
    json: Value,
}

fn unreadable(path: &Path, error: &std::io::Error) -> Fault {
    Fault::new(
        Kind::Disk,
        format!("cannot read {}: {error}", path.display()),
    )
}

fn algorithm(name: &str) -> Result<SigningAlgorithm, Fault> {
    serde_json::from_value(json!(name)).map_err(|_| {
        Fault::new(Kind::Signature, format!("there is no algorithm `{}`", name.escape_debug()))
            .help("RS256, RS384, RS512, PS256, PS384, PS512, ES256, ES384, ES512, EdDSA, HS256, HS384, HS512")
    })
}

fn secret(path: &Path) -> Result<Secret, Fault> {
    let mut bytes = std::fs::read(path).map_err(|error| unreadable(path, &error))?;
    while bytes
        .last()
        .is_some_and(|byte| matches!(byte, b'\n' | b'\r'))
    {
        bytes.pop();
    }
    Ok(Secret::new(bytes))
}

impl Inspect {
    fn run(&self) -> Result<Answer, Fault> {
        let (files, packed) = self.files()?;
        let signed = match (&self.verification_key, &self.signing_alg) {
            (Some(path), Some(name)) => Some(self.verified(&files, path, name)?),
            (Some(_) | None, _) => None,
        };
        let verified = signed.is_some();
        let carries = signing::is_signed(&files);
        let content = Content::read(&files, packed, signed, BOUNDS.values())?;
        let modules: Vec<Value> = content
            .modules
            .iter()
            .map(|module| {
                json!({
                    "path": module.path,
                    "package": module.package.join("."),
                    "test": module.path.ends_with("_test.rego"),
                })
            })
            .collect();
        let roots: Vec<String> = content
            .roots
            .iter()
            .map(|root| root.path().join("/"))
            .collect();
        let json = json!({
            "good": true,
            "revision": content.revision,
            "digest": content.digest.to_string(),
            "roots": roots,
            "sequence": content.sequence,
            "signed": carries,
            "verified": verified,
            "signature": content.signed,
            "modules": modules,
            "documents": content.documents,
            "ignored": content.ignored,
            "size": content.packed,
            "unpacked": content.unpacked,
        });
        let mut text = String::new();
        let mut line = |name: &str, value: &str| {
            let _ = writeln!(text, "{name:<11}{value}");
        };
        let label = content.label();
        line("revision", &label);
        line("digest", &content.digest.to_string());
        let owned: Vec<String> = content.roots.iter().map(ToString::to_string).collect();
        line("roots", &owned.join(", "));
        let signature = match (&content.signed, carries) {
            (Some(signed), _) => {
                let mut said = format!("verified, {} by key `{}`", signed.algorithm, signed.keyid);
                if let Some(at) = signed.issued_at {
                    said.push_str(&format!(", {}", moment(at)));
                }
                said
            }
            (None, true) => {
                "there is one, not verified: name the key with --verification-key".to_owned()
            }
            (None, false) => "none".to_owned(),
        };
        line("signature", &signature);
        line(
            "size",
            &format!("{} bytes, {} unpacked", content.packed, content.unpacked),
        );
        let widest = content
            .modules
            .iter()
            .map(|module| module.path.chars().count());
        let width = widest
            .chain(content.documents.iter().map(|name| name.chars().count()))
            .max();
        let width = width.unwrap_or_default();
        for (at, module) in content.modules.iter().enumerate() {
            let name = if at == 0 { "modules" } else { "" };
            let test = if module.path.ends_with("_test.rego") {
                "  test, decides nothing"
            } else {
                ""
            };
            line(
                name,
                &format!(
                    "{:<width$}  {}{test}",
                    module.path,
                    module.package.join(".")
                ),
            );
        }
        for (at, document) in content.documents.iter().enumerate() {
            line(if at == 0 { "data" } else { "" }, document);
        }
        if content.ignored > 0 {
            line("ignored", &count(content.ignored, "other file"));
        }
        Ok(Answer { text, json })
    }

    fn files(&self) -> Result<(Files, usize), Fault> {
        if self.bundle.contains("://") {
            let bytes = self.download()?;
            return Ok((archive::unpack(&bytes, &BOUNDS)?, bytes.len()));
        }
        let path = Path::new(&self.bundle);
        if path.is_dir() {
            let files = archive::gather(path, &BOUNDS)?;
            let size = files.values().map(Vec::len).sum();
            return Ok((files, size));
        }
        let size = std::fs::metadata(path)
            .map_err(|error| unreadable(path, &error))?
            .len();
        if size > BOUNDS.packed {
            let message = format!("it is larger than {} bytes", BOUNDS.packed);
            return Err(Fault::new(Kind::TooLarge, message));
        }
        let bytes = std::fs::read(path).map_err(|error| unreadable(path, &error))?;
        Ok((archive::unpack(&bytes, &BOUNDS)?, bytes.len()))
    }

    fn download(&self) -> Result<Vec<u8>, Fault> {
        let failed = |message: String| Fault::new(Kind::Fetch, message);
        let target = Target::parse(&self.bundle).map_err(|error| failed(error.to_string()))?;
        let fetcher = Fetcher::new(&[]).map_err(|error| failed(error.to_string()))?;
        let fetcher = fetcher.with_bounds(
            TIMEOUT,
            usize::try_from(BOUNDS.packed).unwrap_or(usize::MAX),
        );
        let mut headers = Vec::new();
        if let Some(name) = &self.token_env {
            let token = std::env::var(name)
                .map_err(|_| failed(format!("the environment variable {name} is not set")))?;
            let mut value = http::HeaderValue::try_from(format!("Bearer {token}"))
                .map_err(|_| failed("the token cannot stand in a header".to_owned()))?;
            value.set_sensitive(true);
            headers.push((http::header::AUTHORIZATION, value));
        }
        let ask = Ask {
            accept: "*/*",
            etag: None,
            prefer: Some("modes=snapshot"),
            headers: &headers,
            total: TIMEOUT,
        };
        if std::io::stderr().is_terminal() {
            let _ = writeln!(std::io::stderr(), "downloading {} …", target.as_str());
        }
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(|error| failed(error.to_string()))?;
        let document = runtime
            .block_on(fetcher.ask(&target, ask))
            .map_err(|error| failed(error.to_string()))?;
        Ok(document.map(|document| document.body).unwrap_or_default())
    }

    fn verified(&self, files: &Files, path: &Path, name: &str) -> Result<signing::Signed, Fault> {
        // One key for whatever the signature names.
        let id = path.display().to_string();
        let key = Key::new(algorithm(name)?, &secret(path)?)
            .map_err(|why| Fault::new(Kind::Signature, format!("{id} cannot be used: {why}")))?;
        let verifier = Verifier {
            keys: [(id.clone(), key)].into(),
            keyid: Some(id),
            scope: self.scope.clone(),
            exclude: Vec::new(),
        };
        verifier.verify(files)
    }
}

impl Build {
    fn run(&self) -> Result<Answer, Fault> {
        let mut files = archive::gather(&self.folder, &BOUNDS)?;
        // An old signature is none of the new bundle's.
        files.remove(SIGNATURES);
        if let Some(revision) = &self.revision {
            let manifest = files.remove(".manifest").unwrap_or_else(|| b"{}".to_vec());
            let mut manifest: serde_json::Map<String, Value> = serde_json::from_slice(&manifest)
                .map_err(|error| Fault::of(Kind::Manifest, ".manifest", error.to_string()))?;
            manifest.insert("revision".to_owned(), json!(revision));
            files.insert(
                ".manifest".to_owned(),
                json!(manifest).to_string().into_bytes(),
            );
        }
        if let (Some(path), Some(name)) = (&self.signing_key, &self.signing_alg) {
            let signature = self.signature(&files, path, algorithm(name)?)?;
            files.insert(SIGNATURES.to_owned(), signature);
        }
        // Nobody shall publish what no gateway takes.
        let content = Content::read(&files, 0, None, BOUNDS.values())?;
        let bytes =
            archive::pack(&files).map_err(|error| Fault::new(Kind::Archive, error.to_string()))?;
        let output = &self.output;
        std::fs::write(output, &bytes).map_err(|error| {
            Fault::new(
                Kind::Disk,
                format!("cannot write {}: {error}", output.display()),
            )
        })?;
        let signed = self.signing_key.is_some();
        let label = content.label();
        let text = format!(
            "{}: {label}, {}, {}, {} bytes, {}\n",
            output.display(),
            count(content.modules.len(), "module"),
            count(content.documents.len(), "data file"),
            bytes.len(),
            if signed { "signed" } else { "not signed" },
        );
        let json = json!({
            "output": output,
            "revision": label,
            "digest": content.digest.to_string(),
            "size": bytes.len(),
            "signed": signed,
        });
        Ok(Answer { text, json })
    }

    fn signature(
        &self,
        files: &Files,
        path: &Path,
        algorithm: SigningAlgorithm,
    ) -> Result<Vec<u8>, Fault> {
        let mut hashed = Vec::with_capacity(files.len());
        for (name, content) in files {
            let hash = signing::hash(name, content, "SHA-256")
                .map_err(|message| Fault::of(Kind::Content, name, message))?;
            hashed.push(Hashed {
                name: name.clone(),
                hash,
                algorithm: "SHA-256".to_owned(),
            });
        }
        let payload = Payload {
            files: hashed,
            scope: self.scope.clone(),
            keyid: Some(self.key_id.clone()),
            iss: None,
            iat: i64::try_from(clock::unix_seconds(clock::now())).ok(),
        };
        let head = json!({ "alg": algorithm.name(), "typ": "JWT", "kid": self.key_id });
        let broken = |error: serde_json::Error| Fault::new(Kind::Signature, error.to_string());
        let payload = serde_json::to_vec(&payload).map_err(broken)?;
        let mut token = URL_SAFE_NO_PAD.encode(head.to_string());
        token.push('.');
        token.push_str(&URL_SAFE_NO_PAD.encode(payload));
        let key = secret(path)?;
        let signature = sign(algorithm, &key, token.as_bytes()).ok_or_else(|| {
            let message = format!("{} is no private key for {}", path.display(), algorithm.name());
            Fault::new(Kind::Signature, message)
                .help("give a private key in PEM (PKCS #8: `-----BEGIN PRIVATE KEY-----`), or for HS* a secret")
        })?;
        token.push('.');
        token.push_str(&URL_SAFE_NO_PAD.encode(signature));
        serde_json::to_vec_pretty(&json!({ "signatures": [token] })).map_err(broken)
    }
}

fn sign(algorithm: SigningAlgorithm, key: &Secret, message: &[u8]) -> Option<Vec<u8>> {
    use SigningAlgorithm as A;
    if let Some(hash) = signing::shared(algorithm) {
        let secret = key.expose();
        let fits = secret.len() >= 32 && !secret.starts_with(b"-----BEGIN");
        return fits.then(|| {
            let key = hmac::Key::new(hash, secret);
            hmac::sign(&key, message).as_ref().to_vec()
        });
    }
    let key = PrivateKeyDer::from_pem_slice(key.expose()).ok()?;
    let der = key.secret_der();
    let random = rand::SystemRandom::new();
    let rsa = |padding: &'static dyn signature::RsaEncoding| {
        let pair = signature::RsaKeyPair::from_pkcs8(der)
            .or_else(|_| signature::RsaKeyPair::from_der(der))
            .ok()?;
        let mut signed = vec![0; pair.public_modulus_len()];
        pair.sign(padding, &random, message, &mut signed).ok()?;
        Some(signed)
    };
    let ecdsa = |kind: &'static signature::EcdsaSigningAlgorithm| {
        let pair = signature::EcdsaKeyPair::from_private_key_der(kind, der).ok()?;
        Some(pair.sign(&random, message).ok()?.as_ref().to_vec())
    };
    match algorithm {
        A::RS256 => rsa(&signature::RSA_PKCS1_SHA256),
        A::RS384 => rsa(&signature::RSA_PKCS1_SHA384),
        A::RS512 => rsa(&signature::RSA_PKCS1_SHA512),
        A::PS256 => rsa(&signature::RSA_PSS_SHA256),
        A::PS384 => rsa(&signature::RSA_PSS_SHA384),
        A::PS512 => rsa(&signature::RSA_PSS_SHA512),
        A::ES256 => ecdsa(&signature::ECDSA_P256_SHA256_FIXED_SIGNING),
        A::ES384 => ecdsa(&signature::ECDSA_P384_SHA384_FIXED_SIGNING),
        A::ES512 => ecdsa(&signature::ECDSA_P521_SHA512_FIXED_SIGNING),
        A::EdDSA => {
            let pair = signature::Ed25519KeyPair::from_pkcs8_maybe_unchecked(der).ok()?;
            Some(pair.sign(message).as_ref().to_vec())
        }
        A::HS256 | A::HS384 | A::HS512 => None,
    }
}
