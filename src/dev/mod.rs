//! Everything on one machine: certificates, issuer, upstream, gateway, and the requests to try.
//!
//! The gateway here is the one that `portcullis run` starts, on the same configuration; what is
//! around it is for development alone, listens on loopback alone, and protects nothing.

mod client;
mod form;
pub mod issuer;
pub mod pki;
mod scenes;
mod service;
mod terminal;
mod token;
mod trial;
pub mod upstream;
mod websocket;
mod workspace;

use std::io;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

use clap::Args;
use tokio::runtime::Runtime;

use self::issuer::Issuer;
use self::scenes::{AdminPlace, Places, scenes};
use self::terminal::{Terminal, Tone};
pub use self::token::{Format, TokenArgs, TokenError};
use self::trial::Trial;
pub use self::trial::{Outcome, TrialError};
use self::upstream::Upstream;
pub use self::workspace::WorkspaceError;
use self::workspace::{Scratch, Workspace, certificates};
use crate::config;
use crate::metrics::Metrics;
use crate::run::{Ended, Options, Process, Signals, StartError};
use crate::schema::Problem;
use crate::telemetry::{self, LoggingFailed};

/// `portcullis dev`.
#[derive(Debug, Clone, Args)]
pub struct DevArgs {
    /// Send the requests instead of printing them, compare the answers, and end; runs on a scratch
    /// copy with free ports
    #[arg(long = "try")]
    pub attempt: bool,
    /// Make the certificates that the configuration names, and end
    #[arg(long, conflicts_with = "attempt")]
    pub certificates_only: bool,
    /// The configuration to run
    #[arg(long, default_value = "gateway.yaml")]
    pub config: PathBuf,
    /// `configured` takes the ports of the configuration, `auto` takes free ones (on a scratch copy)
    #[arg(long, value_enum, default_value_t)]
    pub ports: Ports,
    /// How the result of --try is printed
    #[arg(long, value_enum, default_value_t, requires = "attempt")]
    pub format: Format,
}

/// Which ports are taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum)]
pub enum Ports {
    /// Those of the configuration.
    #[default]
    Configured,
    /// Free ones.
    Auto,
}

/// Why the development gateway did not start or did not go on.
#[derive(Debug, thiserror::Error)]
pub enum DevError {
    /// Certificates, ports, or the scratch copy.
    #[error(transparent)]
    Workspace(#[from] WorkspaceError),
    /// A development service did not start.
    #[error("cannot start the {0}")]
    Service(&'static str, #[source] io::Error),
    /// The configuration does not load.
    #[error("the configuration does not load:\n{}", lines(.0))]
    Configuration(Vec<Problem>),
    /// The log did not begin.
    #[error(transparent)]
    Logging(#[from] LoggingFailed),
    /// The gateway did not start.
    #[error(transparent)]
    Gateway(#[from] StartError),
    /// The configuration has no listener with TLS called `public`.
    #[error("the configuration has no listener called `public`: the requests to try go there")]
    NoListener,
    /// No tokens from the development issuer.
    #[error(transparent)]
    Token(#[from] TokenError),
    /// The requests could not be tried.
    #[error(transparent)]
    Trial(#[from] TrialError),
    /// Ctrl-C.
    #[error("interrupted")]
    Interrupted,
}

fn lines(problems: &[Problem]) -> String {
    let lines: Vec<String> = problems.iter().map(Problem::to_string).collect();
    lines.join("\n")
}

/// Runs issuer, upstream and gateway until Ctrl-C, or tries the requests and ends.
///
/// The exit code is 1 when a request that was tried did not do what it says.
///
/// # Errors
/// [`DevError`] when something is in the way; each is one sentence with a way out.
pub fn run_dev(arguments: DevArgs) -> anyhow::Result<ExitCode> {
    Ok(develop(&arguments)?)
}

fn develop(arguments: &DevArgs) -> Result<ExitCode, DevError> {
    if arguments.certificates_only {
        let pki = certificates(&arguments.config)?;
        Terminal::standard().line(&pki.folder.display().to_string());
        return Ok(ExitCode::SUCCESS);
    }
    let service = |name| move |error| DevError::Service(name, error);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(service("client"))?;
    let stage = Stage::set(arguments)?;
    if arguments.attempt {
        let tried = runtime.block_on(async {
            tokio::select! {
                tried = stage.attempt(arguments.format) => tried,
                _ = tokio::signal::ctrl_c() => Err(DevError::Interrupted),
            }
        });
        stage.strike();
        return tried;
    }
    let signals = Signals::install().map_err(service("signal handlers"))?;
    stage.print(&mut Terminal::standard(), &runtime, &arguments.config)?;
    let Stage { process, .. } = stage;
    Ok(if matches!(process.wait(signals), Ended::Drained { .. }) {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// Everything that runs. Services and scratch copy go when it is dropped.
struct Stage {
    process: Process,
    places: Places,
    /// Where the configuration in force is.
    folder: PathBuf,
    upstream_url: String,
    _upstream: Upstream,
    _issuer: Issuer,
    _scratch: Option<Scratch>,
}

impl Stage {
    fn set(arguments: &DevArgs) -> Result<Self, DevError> {
        let workspace = if arguments.attempt || arguments.ports == Ports::Auto {
            Workspace::copied(&arguments.config)?
        } else {
            Workspace::in_place(&arguments.config)?
        };
        let Workspace {
            config,
            pki,
            issuer,
            upstream,
            scratch,
        } = workspace;
        let failed = |name| move |error| DevError::Service(name, error);
        let issuer = Issuer::start(issuer).map_err(failed("development issuer"))?;
        let upstream_url = upstream
            .local_addr()
            .map(|address| format!("http://{address}"))
            .map_err(failed("demo upstream"))?;
        let upstream = Upstream::start(upstream).map_err(failed("demo upstream"))?;

        let loaded = config::load(&config, None, &Arc::new(Metrics::default()))
            .map_err(DevError::Configuration)?;
        // What is tried shows its own table; logs beside it would only be in the way.
        if !arguments.attempt {
            telemetry::init_logging(&loaded.document.telemetry)?;
        }
        let folder = config.parent().map(PathBuf::from).unwrap_or_default();
        let token = loaded.admin.token.clone();
        let process = Process::start_loaded(Options::new(config), loaded)?;
        let places = Places {
            public: process
                .addresses()
                .get("public")
                .copied()
                .ok_or(DevError::NoListener)?,
            admin: process
                .admin_address()
                .zip(token)
                .map(|(address, token)| AdminPlace {
                    address,
                    token: String::from_utf8_lossy(token.expose()).into_owned(),
                }),
            issuer: issuer.url.clone(),
            pki,
        };
        Ok(Self {
            process,
            places,
            folder,
            upstream_url,
            _upstream: upstream,
            _issuer: issuer,
            _scratch: scratch,
        })
    }

    /// Tries all requests.
    async fn attempt(&self, format: Format) -> Result<ExitCode, DevError> {
        let terminal = (format == Format::Text).then(Terminal::standard);
        let outcomes = Trial::new(&self.places, &self.folder, terminal)
            .run()
            .await?;
        if format == Format::Json {
            Terminal::standard().line(&serde_json::json!(outcomes).to_string());
        }
        let fine = outcomes.iter().all(|outcome| outcome.ok);
        Ok(if fine {
            ExitCode::SUCCESS
        } else {
            ExitCode::FAILURE
        })
    }

    /// Stops the gateway, and then what is around it.
    fn strike(self) {
        self.process.shutdown();
    }

    /// Says what runs where, and which requests to try.
    fn print(
        &self,
        terminal: &mut Terminal<io::Stdout>,
        runtime: &Runtime,
        config: &Path,
    ) -> Result<(), DevError> {
        self.introduce(terminal, config);
        let scenes = runtime.block_on(scenes(&self.places))?;
        for scene in scenes.iter().filter(|scene| scene.printed) {
            let title = format!("# {}: {}", scene.title, scene.status);
            terminal.line(&terminal.tone(Tone::Strong, &title));
            terminal.line(&scene.curl(&self.places.pki));
            terminal.line("");
        }
        let hint =
            "The tokens last an hour; `portcullis token` mints more. Ctrl-C ends everything.";
        terminal.line(&terminal.tone(Tone::Faint, hint));
        Ok(())
    }

    fn introduce(&self, terminal: &mut Terminal<io::Stdout>, config: &Path) {
        let mut rows: Vec<(String, String)> = self
            .process
            .addresses()
            .iter()
            .map(|(name, address)| (format!("listener {name}"), address.to_string()))
            .collect();
        let mut row = |name: &str, place: String| rows.push((name.to_owned(), place));
        if let Some(admin) = &self.places.admin {
            row(
                "page",
                format!(
                    "{} in a browser: live decisions and why, limits, streams",
                    admin.page("/")
                ),
            );
            row(
                "admin token",
                format!("{}  (the page asks for it)", admin.token),
            );
        } else if let Some(address) = self.process.admin_address() {
            row(
                "admin",
                format!(
                    "http://{address} has no token, so its page is closed: write \
                     `token: file:certs/dev/admin.token` below `admin:`"
                ),
            );
        }
        row("development issuer", self.places.issuer.clone());
        row("demo upstream", self.upstream_url.clone());
        let made = if self.places.pki.fresh {
            "made just now"
        } else {
            "taken over"
        };
        let folder = &self.places.pki.folder;
        let folder = folder.strip_prefix(".").unwrap_or(folder).display();
        row("certificates", format!("{folder} ({made})"));
        row("configuration", config.display().to_string());
        let width = rows.iter().map(|(name, _)| name.len()).max().unwrap_or(0);
        for (name, place) in &rows {
            terminal.row(&[(Tone::Strong, name), (Tone::Plain, place)], &[width]);
        }
        terminal.line("");
    }
}

/// Gets a token from the running development issuer and prints it alone.
///
/// # Errors
/// [`TokenError`] when no issuer answers, or it refuses.
pub fn run_token(arguments: TokenArgs) -> anyhow::Result<ExitCode> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let text = runtime.block_on(token::run(&arguments))?;
    Terminal::standard().line(&text);
    Ok(ExitCode::SUCCESS)
}
