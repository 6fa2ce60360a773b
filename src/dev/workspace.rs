//! Where a development gateway runs: in the project's own folder, or in a scratch copy of it.
//!
//! The scratch copy takes free ports everywhere and may be changed (reloads are tried on it)
//! without touching the original. Addresses are read from and written to the *text* of the
//! configuration: at this point it cannot be compiled yet, because the certificates it names may
//! not have been made.

use std::fs;
use std::io;
use std::net::TcpListener;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};

use super::pki::{Pki, PkiError};
use super::service::bind;

/// Most files that a scratch copy takes along, and their size in bytes altogether.
const MAX_FILES: usize = 1_000;
const MAX_BYTES: u64 = 32 * 1024 * 1024;
/// Deepest folder that is copied.
const MAX_DEPTH: usize = 16;

/// Where a scratch copy records its requests.
pub(super) const RECORDS: &str = "audit.jsonl";

/// Where the development services are when the configuration does not say.
const DEFAULT_ISSUER_PORT: u16 = 9400;
const DEFAULT_UPSTREAM_PORT: u16 = 9500;

/// Why the gateway cannot be set up.
#[derive(Debug, thiserror::Error)]
pub enum WorkspaceError {
    /// There is no configuration.
    #[error("cannot read {}: run this in the project's folder, or name a file with --config", path.display())]
    NoConfig {
        /// The file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// A port is taken.
    #[error(
        "port {port}, wanted for the {what}, is in use: stop what uses it, change `{key}` in {}, or run with --ports auto", config.display()
    )]
    PortInUse {
        /// The port.
        port: u16,
        /// What wanted it.
        what: &'static str,
        /// The key that names it.
        key: &'static str,
        /// The configuration.
        config: PathBuf,
    },
    /// A socket could not be opened.
    #[error("cannot open a loopback socket for the {what}")]
    Socket {
        /// What wanted it.
        what: &'static str,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// The certificates could not be made.
    #[error(transparent)]
    Pki(#[from] PkiError),
    /// The scratch copy could not be made.
    #[error("cannot make a scratch copy in {}", path.display())]
    Scratch {
        /// Where.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
}

/// A place to run in, with the sockets of the development services open.
#[derive(Debug)]
pub(super) struct Workspace {
    /// The configuration to run.
    pub(super) config: PathBuf,
    /// The certificates it names.
    pub(super) pki: Pki,
    /// For the issuer.
    pub(super) issuer: TcpListener,
    /// For the demo upstream.
    pub(super) upstream: TcpListener,
    /// Removed at the end, when it is a copy.
    pub(super) scratch: Option<Scratch>,
}

impl Workspace {
    /// Runs the configuration where it is, on the ports it names.
    pub(super) fn in_place(config: &Path) -> Result<Self, WorkspaceError> {
        let text = read(config)?;
        let take = |port, what, key| {
            bind(port).map_err(|source| {
                if source.kind() == io::ErrorKind::AddrInUse {
                    let config = config.to_path_buf();
                    WorkspaceError::PortInUse {
                        port,
                        what,
                        key,
                        config,
                    }
                } else {
                    WorkspaceError::Socket { what, source }
                }
            })
        };
        let issuer = take(
            loopback_port(&text, "issuer").unwrap_or(DEFAULT_ISSUER_PORT),
            "development issuer",
            "issuers.dev.issuer",
        )?;
        // Probed and let go: the gateway's own sockets may share a port with another process of
        // this user (SO_REUSEPORT), and then every second request would go astray.
        for port in listener_ports(&text) {
            take(port, "gateway", "address")?;
        }
        let upstream = take(
            loopback_port(&text, "endpoints").unwrap_or(DEFAULT_UPSTREAM_PORT),
            "demo upstream",
            "upstreams.orders.endpoints",
        )?;
        Ok(Self {
            config: config.to_path_buf(),
            pki: certificates(config)?,
            issuer,
            upstream,
            scratch: None,
        })
    }

    /// Runs a copy of the configuration and its policies, on free ports.
    pub(super) fn copied(config: &Path) -> Result<Self, WorkspaceError> {
        let text = read(config)?;
        let socket = |what| bind(0).map_err(|source| WorkspaceError::Socket { what, source });
        let issuer = socket("development issuer")?;
        let upstream = socket("demo upstream")?;
        let scratch = Scratch::new()?;
        let text = with_free_ports(&text, port(&issuer)?, port(&upstream)?);
        let text = with_records_in(&text, &scratch.path.join(RECORDS));
        let copy = scratch.path.join("gateway.yaml");
        let fill = || {
            fs::write(&copy, text)?;
            let mut budget = (MAX_FILES, MAX_BYTES);
            let policies = folder(config).join("policies");
            if policies.is_dir() {
                copy_folder(&policies, &scratch.path.join("policies"), 0, &mut budget)?;
            }
            Ok(())
        };
        fill().map_err(|source| WorkspaceError::Scratch {
            path: scratch.path.clone(),
            source,
        })?;
        Ok(Self {
            config: copy,
            pki: Pki::ensure(&scratch.path.join("certs/dev"))?,
            issuer,
            upstream,
            scratch: Some(scratch),
        })
    }
}

/// The development certificates beside a configuration.
pub(super) fn certificates(config: &Path) -> Result<Pki, WorkspaceError> {
    Ok(Pki::ensure(&folder(config).join("certs/dev"))?)
}

fn port(listener: &TcpListener) -> Result<u16, WorkspaceError> {
    listener
        .local_addr()
        .map(|address| address.port())
        .map_err(|source| WorkspaceError::Socket {
            what: "development services",
            source,
        })
}

fn read(config: &Path) -> Result<String, WorkspaceError> {
    fs::read_to_string(config).map_err(|source| WorkspaceError::NoConfig {
        path: config.to_path_buf(),
        source,
    })
}

fn folder(config: &Path) -> &Path {
    match config.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

/// A folder in the system's place for temporary files; gone when this is dropped.
#[derive(Debug)]
pub(super) struct Scratch {
    /// The folder.
    pub(super) path: PathBuf,
}

impl Scratch {
    fn new() -> Result<Self, WorkspaceError> {
        let name = format!("portcullis-dev-{:016x}", rand::random::<u64>());
        let path = std::env::temp_dir().join(name);
        // Private keys go in here; `create` fails on anything that is there already.
        match fs::DirBuilder::new().mode(0o700).create(&path) {
            Ok(()) => Ok(Self { path }),
            Err(source) => Err(WorkspaceError::Scratch { path, source }),
        }
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // Best effort: what is left is in the temporary folder and private.
        let _ = fs::remove_dir_all(&self.path);
    }
}

fn copy_folder(from: &Path, to: &Path, depth: usize, budget: &mut (usize, u64)) -> io::Result<()> {
    if depth > MAX_DEPTH {
        return Err(io::Error::other("the policies are nested too deeply"));
    }
    fs::create_dir(to)?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let (kind, target) = (entry.file_type()?, to.join(entry.file_name()));
        if kind.is_dir() {
            copy_folder(&entry.path(), &target, depth + 1, budget)?;
        } else if kind.is_file() {
            let size = entry.metadata()?.len();
            match (budget.0.checked_sub(1), budget.1.checked_sub(size)) {
                (Some(files), Some(bytes)) => *budget = (files, bytes),
                _ => return Err(io::Error::other("the policies are too large to copy")),
            }
            fs::copy(entry.path(), target)?;
        }
    }
    Ok(())
}

/// The loopback issuer that a configuration names.
pub(super) fn issuer_url(text: &str) -> Option<String> {
    loopback_port(text, "issuer").map(|port| format!("http://127.0.0.1:{port}"))
}

/// The port of the first `http://127.0.0.1:PORT` on a line of `key`.
fn loopback_port(text: &str, key: &str) -> Option<u16> {
    text.lines().find_map(|line| {
        let (before, after) = code(line).split_once(&format!("{key}:"))?;
        if before.trim_matches([' ', '-', '{', ',']).is_empty() {
            let (_, rest) = after.split_once("http://127.0.0.1:")?;
            let end = rest
                .find(|c: char| !c.is_ascii_digit())
                .unwrap_or(rest.len());
            rest.get(..end)?.parse().ok()
        } else {
            None
        }
    })
}

/// A line without its comment.
fn code(line: &str) -> &str {
    if line.trim_start().starts_with('#') {
        return "";
    }
    line.split_once(" #").map_or(line, |(code, _)| code)
}

/// The configuration with the issuer and the upstream at other ports, and listeners at port 0.
fn with_free_ports(text: &str, issuer: u16, upstream: u16) -> String {
    let moves = [
        (
            loopback_port(text, "issuer").unwrap_or(DEFAULT_ISSUER_PORT),
            issuer,
        ),
        (
            loopback_port(text, "endpoints").unwrap_or(DEFAULT_UPSTREAM_PORT),
            upstream,
        ),
    ];
    text.lines()
        .map(|line| {
            let mut line = line.to_owned();
            for (old, new) in moves {
                let (old, new) = (
                    format!("http://127.0.0.1:{old}"),
                    format!("http://127.0.0.1:{new}"),
                );
                line = line.replace(&old, &new);
            }
            if let Some(moved) = free_address(&line) {
                line = moved;
            }
            line + "\n"
        })
        .collect()
}

/// The configuration with its records in a file instead of on standard output.
fn with_records_in(text: &str, file: &Path) -> String {
    text.lines()
        .map(|line| match code(line).trim() {
            "sink: stdout" => {
                // A JSON string is a YAML string.
                let file = serde_json::Value::from(file.to_string_lossy().as_ref());
                line.replace("stdout", &format!("{{ file: {file} }}")) + "\n"
            }
            _ => line.to_owned() + "\n",
        })
        .collect()
}

/// The ports of all loopback listeners.
fn listener_ports(text: &str) -> Vec<u16> {
    text.lines()
        .filter_map(|line| {
            let (start, end) = address_port(line)?;
            line.get(start..end)?.parse().ok()
        })
        .filter(|port| *port != 0)
        .collect()
}

/// `address: 127.0.0.1:8443` with port 0, if the line has an address.
fn free_address(line: &str) -> Option<String> {
    let (start, end) = address_port(line)?;
    Some(format!("{}0{}", line.get(..start)?, line.get(end..)?))
}

/// Where the port stands in a line with a loopback address.
fn address_port(line: &str) -> Option<(usize, usize)> {
    let code = code(line);
    let key = code.find("address:")? + "address:".len();
    let start = key + code.get(key..)?.find("127.0.0.1:")? + "127.0.0.1:".len();
    let rest = code.get(start..)?;
    let digits = rest
        .find(|c: char| !c.is_ascii_digit())
        .unwrap_or(rest.len());
    Some((start, start + digits))
}

#[cfg(test)]
mod tests {
    use super::*;

    const CONFIG: &str = r#"
# issuer: http://127.0.0.1:1
listeners:
  public:
    address: 127.0.0.1:8443   # address: 127.0.0.1:1
  local: { address: "127.0.0.1:8080", plaintext: true }
issuers:
  dev:
    issuer: http://127.0.0.1:9410
upstreams:
  orders:
    endpoints: ["http://127.0.0.1:9510"]
"#;

    #[test]
    fn addresses_are_read_from_the_text() {
        assert_eq!(issuer_url(CONFIG).as_deref(), Some("http://127.0.0.1:9410"));
        assert_eq!(loopback_port(CONFIG, "endpoints"), Some(9510));
        assert_eq!(loopback_port("issuers: {}", "issuer"), None);
        assert_eq!(listener_ports(CONFIG), [8443, 8080]);
    }

    #[test]
    fn a_copy_names_free_ports_alone() {
        let copy = with_free_ports(CONFIG, 1111, 2222);
        assert!(copy.contains("address: 127.0.0.1:0   # address: 127.0.0.1:1\n"));
        assert!(copy.contains(r#"address: "127.0.0.1:0", plaintext"#));
        assert!(copy.contains("issuer: http://127.0.0.1:1111\n"));
        assert!(copy.contains(r#"["http://127.0.0.1:2222"]"#));
        for port in ["8443", "8080", "9410", "9510"] {
            assert!(!copy.contains(port), "{port}");
        }
    }

    #[test]
    fn a_copy_keeps_its_records() {
        let copy = with_records_in(
            "audit:\n  sink: stdout # or a file\n",
            Path::new("/tmp/a.jsonl"),
        );
        assert!(
            copy.starts_with("audit:\n  sink: { file: \"/tmp/a.jsonl\" }"),
            "{copy}"
        );
    }

    #[test]
    fn a_port_in_use_is_named_with_its_key() {
        let folder = tempfile::tempdir().unwrap();
        let config = folder.path().join("gateway.yaml");
        let taken = bind(0).unwrap();
        let port = taken.local_addr().unwrap().port();
        fs::write(&config, format!("issuer: http://127.0.0.1:{port}\n")).unwrap();
        let error = Workspace::in_place(&config).unwrap_err().to_string();
        assert!(error.contains(&port.to_string()), "{error}");
        assert!(error.contains("issuers.dev.issuer"), "{error}");
    }

    #[test]
    fn a_listeners_port_in_use_is_named_too() {
        let folder = tempfile::tempdir().unwrap();
        let config = folder.path().join("gateway.yaml");
        let taken = bind(0).unwrap();
        let port = taken.local_addr().unwrap().port();
        let free = bind(0).unwrap().local_addr().unwrap().port();
        let text = format!("issuer: http://127.0.0.1:{free}\n  address: 127.0.0.1:{port}\n");
        fs::write(&config, text).unwrap();
        let error = Workspace::in_place(&config).unwrap_err().to_string();
        assert!(
            error.contains(&format!("port {port}, wanted for the gateway")),
            "{error}"
        );
        assert!(error.contains("--ports auto"), "{error}");
    }

    #[test]
    fn a_scratch_copy_is_complete_private_and_gone_at_the_end() {
        let folder = tempfile::tempdir().unwrap();
        let config = folder.path().join("gateway.yaml");
        fs::write(&config, CONFIG).unwrap();
        fs::create_dir_all(folder.path().join("policies/deep")).unwrap();
        fs::write(folder.path().join("policies/deep/a.rego"), "package a").unwrap();

        let workspace = Workspace::copied(&config).unwrap();
        let root = workspace.scratch.as_ref().unwrap().path.clone();
        assert!(root.join("policies/deep/a.rego").exists());
        assert!(workspace.pki.authority().starts_with(&root));
        drop(workspace);
        assert!(!root.exists());
        assert!(!folder.path().join("certs").exists());
    }

    #[test]
    fn a_missing_configuration_is_explained() {
        let error = Workspace::in_place(Path::new("nowhere/gateway.yaml")).unwrap_err();
        assert!(error.to_string().contains("--config"));
    }
}
