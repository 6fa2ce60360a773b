//! Who is supposed to ask: by name from a file, by claims, by a token, by a certificate, or nobody.

use std::collections::BTreeMap;
use std::fs;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use serde::Deserialize;

use super::Unanswered;
use crate::authn::supposed::Supposition;
use crate::document::{self, Value};
use crate::schema::known_names;
use crate::tls::{PeerCertificate, Sans};

/// The file of callers that is looked for beside the configuration.
pub(super) const CALLERS_FILE: &str = "callers.yaml";

/// Largest file of callers or claims, in bytes.
const MAX_FILE: u64 = 4 << 20;

/// Most callers in a file.
pub(super) const MAX_CALLERS: usize = 10_000;

/// How a caller is described on the command line.
#[derive(Debug, Clone, Default, clap::Args)]
#[command(group = clap::ArgGroup::new("who").multiple(false))]
pub struct CallerArgs {
    /// A caller by name, from `--callers`
    #[arg(long = "as", value_name = "NAME", group = "who")]
    pub name: Option<String>,
    /// Callers by name; by default callers.yaml beside the configuration
    #[arg(long, value_name = "FILE")]
    pub callers: Option<PathBuf>,
    /// The claims of a token: JSON, or a file with JSON or YAML
    #[arg(long, value_name = "FILE|JSON", group = "who")]
    pub claims: Option<String>,
    /// A real token; its signature is not verified
    #[arg(long, value_name = "JWT", group = "who")]
    pub token: Option<String>,
    /// Nobody: no credential
    #[arg(long, group = "who")]
    pub anonymous: bool,
    /// With claims: the issuer's block, where the route takes several
    #[arg(long, value_name = "NAME", requires = "claims")]
    pub issuer: Option<String>,
    /// A client certificate: a PEM file, or a SPIFFE id
    #[arg(long, value_name = "PEM|SPIFFE-ID")]
    pub certificate: Option<String>,
}

/// A caller that somebody asks about.
#[derive(Debug, Clone)]
pub struct Caller {
    /// What the credential says.
    pub supposition: Supposition,
    /// The client certificate.
    pub certificate: Option<Certificate>,
    /// The address it calls from.
    pub address: Option<IpAddr>,
}

impl Caller {
    /// Nobody.
    pub const fn anonymous() -> Self {
        Self {
            supposition: Supposition::Nothing,
            certificate: None,
            address: None,
        }
    }

    /// Somebody with a token that has these claims.
    pub const fn with_claims(claims: Value, issuer: Option<String>) -> Self {
        Self {
            supposition: Supposition::Claims { claims, issuer },
            certificate: None,
            address: None,
        }
    }
}

/// A client certificate as somebody describes it. Its names count, and nothing of it was verified.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Certificate {
    /// The subject's distinguished name (RFC 4514).
    pub subject: String,
    /// The issuer's.
    pub issuer: String,
    /// The serial number in hex.
    pub serial: String,
    /// SHA-256 of the certificate in hex.
    pub sha256: String,
    /// The SPIFFE id.
    pub spiffe_id: Option<String>,
    /// DNS names.
    pub dns: Vec<String>,
    /// URIs.
    pub uri: Vec<String>,
    /// Mail addresses.
    pub email: Vec<String>,
}

impl Certificate {
    /// One with this SPIFFE id.
    pub fn spiffe(id: &str) -> Self {
        Self {
            spiffe_id: Some(id.to_owned()),
            ..Self::default()
        }
    }

    fn of(peer: PeerCertificate) -> Self {
        Self {
            subject: peer.subject,
            issuer: peer.issuer,
            serial: peer.serial,
            sha256: peer.sha256,
            spiffe_id: peer.spiffe_id,
            dns: peer.sans.dns,
            uri: peer.sans.uri,
            email: peer.sans.email,
        }
    }

    /// The certificate as the connection would have it, valid around this time.
    pub(super) fn peer(&self, at: SystemTime) -> PeerCertificate {
        let some = |text: &str, other: &str| if text.is_empty() { other } else { text }.to_owned();
        let mut uri = self.uri.clone();
        if let Some(id) = self.spiffe_id.as_ref().filter(|id| !uri.contains(id)) {
            uri.push(id.clone());
        }
        let hour = Duration::from_secs(3600);
        PeerCertificate {
            subject: some(&self.subject, "CN=supposed"),
            issuer: some(&self.issuer, "CN=supposed authority"),
            serial: some(&self.serial, "01"),
            sans: Sans {
                dns: self.dns.clone(),
                uri,
                email: self.email.clone(),
                ip: Vec::new(),
            },
            spiffe_id: self.spiffe_id.clone(),
            sha256: some(&self.sha256, &self.digest()),
            not_before: at.checked_sub(hour).unwrap_or(at),
            not_after: at.checked_add(hour).unwrap_or(at),
        }
    }

    /// Another for other names: certificates are told apart by it.
    fn digest(&self) -> String {
        let text = format!("{self:?}");
        let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, text.as_bytes());
        digest
            .as_ref()
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect()
    }
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    #[serde(default)]
    claims: Option<serde_json::Map<String, serde_json::Value>>,
    #[serde(default)]
    issuer: Option<String>,
    #[serde(default)]
    certificate: Option<serde_json::Value>,
    #[serde(default)]
    address: Option<IpAddr>,
}

/// Callers by name.
#[derive(Debug, Clone, Default)]
pub struct Callers {
    /// Where they are from; none when there is no file.
    pub file: Option<PathBuf>,
    /// By name.
    pub by_name: BTreeMap<String, Caller>,
}

fn question(text: impl Into<String>) -> Unanswered {
    Unanswered::Question(text.into())
}

impl Callers {
    /// Reads a file of callers: an object of names, each with `claims` (and `issuer`), `certificate`
    /// (a PEM file, or its names) and `address`. One without any is anonymous.
    ///
    /// # Errors
    /// A sentence with the file and the place.
    pub fn read(file: &Path) -> Result<Self, Unanswered> {
        let value = document_of(file)?;
        let shown = file.display();
        let text = value
            .to_json_str()
            .map_err(|_| question(format!("{shown} holds something that is no JSON")))?;
        let entries: BTreeMap<String, serde_json::Value> = serde_json::from_str(&text)
            .map_err(|_| question(format!("{shown}: it is no object of callers by name")))?;
        if entries.len() > MAX_CALLERS {
            return Err(question(format!(
                "{shown} has more than {MAX_CALLERS} callers"
            )));
        }
        let folder = file.parent().unwrap_or(Path::new(""));
        let mut by_name = BTreeMap::new();
        for (name, entry) in entries {
            let caller = described(entry, folder)
                .map_err(|what| question(format!("{shown}: `{name}`: {what}")))?;
            by_name.insert(name, caller);
        }
        Ok(Self {
            file: Some(file.to_path_buf()),
            by_name,
        })
    }

    /// The callers of a file that is named, or of the one beside the configuration if there is one.
    ///
    /// # Errors
    /// As [`Callers::read`].
    pub fn find(named: Option<&Path>, config: &Path) -> Result<Self, Unanswered> {
        if let Some(file) = named {
            return Self::read(file);
        }
        let file = config.parent().unwrap_or(Path::new("")).join(CALLERS_FILE);
        if file.is_file() {
            Self::read(&file)
        } else {
            Ok(Self::default())
        }
    }

    /// The caller of this name.
    ///
    /// # Errors
    /// A sentence that says which there are.
    pub fn get(&self, name: &str) -> Result<&Caller, Unanswered> {
        self.by_name.get(name).ok_or_else(|| match &self.file {
            Some(file) => {
                let help = known_names(name, self.by_name.keys().map(String::as_str));
                question(format!(
                    "{} has no caller `{name}`: {help}",
                    file.display()
                ))
            }
            None => question(format!(
                "there is no file of callers to find `{name}` in: write {CALLERS_FILE} beside the configuration, or name one with `--callers`"
            )),
        })
    }
}

/// The caller that an entry describes; files that it names are relative to the folder.
pub(in crate::policy) fn described(
    entry: serde_json::Value,
    folder: &Path,
) -> Result<Caller, String> {
    let entry: Entry = serde_json::from_value(entry).map_err(|error| error.to_string())?;
    let supposition = match entry.claims {
        None if entry.issuer.is_some() => {
            return Err("an `issuer` without `claims`".to_owned());
        }
        None => Supposition::Nothing,
        Some(claims) => Supposition::Claims {
            claims: document::from_json(serde_json::Value::from(claims).to_string().as_bytes())
                .map_err(|error| error.message)?,
            issuer: entry.issuer,
        },
    };
    let certificate = match entry.certificate {
        None => None,
        Some(serde_json::Value::String(text)) => Some(certificate(&text, folder)?),
        Some(names) => Some(serde_json::from_value(names).map_err(|error| error.to_string())?),
    };
    Ok(Caller {
        supposition,
        certificate,
        address: entry.address,
    })
}

/// A SPIFFE id, or the first certificate of a PEM file.
fn certificate(text: &str, folder: &Path) -> Result<Certificate, String> {
    if text.starts_with("spiffe://") {
        return Ok(Certificate::spiffe(text));
    }
    let file = folder.join(text);
    let bytes =
        fs::read(&file).map_err(|error| format!("cannot read {}: {error}", file.display()))?;
    PeerCertificate::from_pem(&bytes)
        .map(Certificate::of)
        .map_err(|error| format!("{}: {error}", file.display()))
}

/// A document of JSON or YAML.
fn document_of(file: &Path) -> Result<Value, Unanswered> {
    let shown = file.display();
    let size = fs::metadata(file)
        .map_err(|error| question(format!("cannot read {shown}: {error}")))?
        .len();
    if size > MAX_FILE {
        return Err(question(format!(
            "{shown} is larger than {} MiB",
            MAX_FILE >> 20
        )));
    }
    let bytes =
        fs::read(file).map_err(|error| question(format!("cannot read {shown}: {error}")))?;
    let json = file.extension().is_some_and(|end| end == "json");
    let read = if json {
        document::from_json(&bytes)
    } else {
        document::from_yaml(&bytes)
    };
    read.map_err(|error| {
        let place = match (error.line, error.column) {
            (Some(line), Some(column)) => format!("{shown}:{line}:{column}"),
            _ => shown.to_string(),
        };
        question(format!("{place}: {}", error.message))
    })
}

impl CallerArgs {
    /// Reads what was said; `None` when nothing was. `config` is the configuration beside which
    /// callers are looked for.
    ///
    /// # Errors
    /// A sentence.
    pub fn read(&self, config: &Path) -> Result<Option<Caller>, Unanswered> {
        let mut caller = if let Some(name) = &self.name {
            let callers = Callers::find(self.callers.as_deref(), config)?;
            Some(callers.get(name)?.clone())
        } else if let Some(claims) = &self.claims {
            let claims = if claims.trim_start().starts_with('{') {
                document::from_json(claims.as_bytes())
                    .map_err(|error| question(format!("the claims are no JSON: {error}")))?
            } else {
                document_of(Path::new(claims))?
            };
            if claims.as_object().is_err() {
                return Err(question("the claims are no object"));
            }
            Some(Caller::with_claims(claims, self.issuer.clone()))
        } else {
            let token = self.token.clone().map(|token| Caller {
                supposition: Supposition::Token(token),
                ..Caller::anonymous()
            });
            token.or_else(|| self.anonymous.then(Caller::anonymous))
        };
        if let Some(text) = &self.certificate {
            let shown = certificate(text, Path::new("")).map_err(question)?;
            caller.get_or_insert(Caller::anonymous()).certificate = Some(shown);
        }
        Ok(caller)
    }
}
