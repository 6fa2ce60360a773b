//! The command line: arguments in, text and an exit code out. Nothing a test would want.

use std::io::{self, IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::Context as _;
use clap::{Parser, Subcommand, ValueEnum};
use portcullis::admin::Order;
use portcullis::audit::PublicKey;
use portcullis::authz::InputDocument;
use portcullis::config::{self, Document, Style};
use portcullis::dev::{DevArgs, TokenArgs};
use portcullis::metrics::Metrics;
use portcullis::policy::{self, ExplainArgs, PolicyArgs, TailArgs, TraceArgs};
use portcullis::run::{Ended, Options, Process, Signals, StartError};
use portcullis::schema::{Problem, Severity};
use portcullis::{audit, authz, dev, telemetry};

/// A reverse-proxy API gateway and zero-trust policy enforcement point.
#[derive(Debug, Parser)]
#[command(version, about, max_term_width = 100, after_help = EXAMPLES)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

const EXAMPLES: &str = "\
Examples:
  portcullis dev                            try everything on this machine
  portcullis run --config gateway.yaml      run the gateway
  portcullis check --config gateway.yaml    find every problem in a configuration
  portcullis policy test                    run the policies' own tests and cases
  portcullis tail --decision deny           denials as they happen
  portcullis explain DECISION_ID            why one of them was
  portcullis revoke --issuer main --subject alice --before now
                                            log alice out everywhere
  portcullis schema > gateway.schema.json   let an editor complete gateway.yaml

Exit codes: 0 fine, 1 a problem was found, 2 wrong usage.";

const VERIFY_EXAMPLES: &str = "\
Examples:
  portcullis audit verify /var/lib/portcullis/audit --key audit-key.pub.pem
  portcullis audit verify audit --key new.pub.pem --key old.pub.pem --format json

The key: openssl genpkey -algorithm ed25519 -out audit-key.pem
         openssl pkey -in audit-key.pem -pubout -out audit-key.pub.pem

Exit codes: 0 nothing was changed, 1 something was, or it cannot be read, 2 wrong usage.";

const REVOKE_EXAMPLES: &str = "\
Examples:
  portcullis revoke --issuer main --subject alice --before now   log alice out everywhere
  portcullis revoke --issuer main --session SID --reason stolen  end one session
  portcullis revoke --issuer main --token-id JTI --lift          take an entry back";

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the gateway
    ///
    /// SIGHUP and changes of the file or anything it names reload the configuration; a broken one
    /// changes nothing. SIGTERM and SIGINT let requests under way finish; a second one ends at once.
    #[command(after_help = "Example:\n  portcullis run --config /etc/portcullis/gateway.yaml")]
    Run {
        #[command(flatten)]
        config: ConfigArgument,
        /// Worker threads, instead of what the file says
        #[arg(long, value_name = "NUMBER", value_parser = clap::value_parser!(u16).range(1..=1024))]
        workers: Option<u16>,
    },
    /// Find every problem in a configuration
    #[command(after_help = "Example:\n  portcullis check --config gateway.yaml --format json")]
    Check {
        #[command(flatten)]
        config: ConfigArgument,
        /// How to write what was found
        #[arg(long, value_enum, default_value_t = Format::Text)]
        format: Format,
        /// Let warnings count as problems
        #[arg(long)]
        strict: bool,
        /// Write the effective configuration, defaults filled in, if there is no problem
        #[arg(long, conflicts_with = "format")]
        effective: bool,
    },
    /// Run everything on this machine: issuer, demo service, gateway, and requests to try
    Dev(DevArgs),
    /// Tell what happened to one request, and why
    Explain(ExplainArgs),
    /// Show decisions as they are made
    Tail(TailArgs),
    /// Follow chosen requests through the gateway, stage by stage
    Trace(TraceArgs),
    /// Ask and test policies, offline
    Policy(PolicyArgs),
    /// What candidate policies would change, in the gateway that runs this configuration
    ///
    /// The gateway is asked by its admin listener, with the token that the configuration names.
    Candidates(policy::candidates::CandidatesArgs),
    /// Mint a token from the development issuer
    Token(TokenArgs),
    /// End somebody's permissions at once, in the gateway that runs this configuration
    ///
    /// The gateway is told by its admin listener, with the token that the configuration names. Without
    /// `--before`, everything that the issuer issues is meant, also what it issues later.
    #[command(after_help = REVOKE_EXAMPLES)]
    Revoke(RevokeArguments),
    /// Look into a bundle in OPA's format, or make one
    #[command(subcommand)]
    Bundle(portcullis::bundle::Command),
    /// Work with the audit ledger
    #[command(subcommand)]
    Audit(AuditCommand),
    /// Write the JSON Schema of the configuration file, for editors; or of what policies see
    Schema {
        /// Of the `input` of policies: our own, or that of `input: envoy`
        #[arg(long, value_enum, value_name = "DOCUMENT")]
        input: Option<Input>,
        /// Of tables of cases (`policies/cases/*.yaml`)
        #[arg(long, conflicts_with = "input")]
        cases: bool,
    },
    /// Try a policy in a process of its own; started by the gateway itself
    #[command(hide = true)]
    PolicyGate,
}

#[derive(Debug, Subcommand)]
enum AuditCommand {
    /// Find every change that was made to a ledger
    ///
    /// Tells which record was changed, is missing, is there twice or was moved, and in which line. Works
    /// while the gateway writes.
    #[command(after_help = VERIFY_EXAMPLES)]
    Verify {
        /// The ledger's folder: `audit.sink.ledger.folder`
        #[arg(value_name = "FOLDER")]
        folder: PathBuf,
        /// A PEM file with a key that signed, public or private; may be given several times
        #[arg(long, value_name = "FILE")]
        key: Vec<PathBuf>,
        /// How to write what was found
        #[arg(long, value_enum, default_value_t = Format::Text)]
        format: Format,
    },
}

#[derive(Debug, clap::Args)]
struct ConfigArgument {
    /// The configuration file
    #[arg(
        long,
        short,
        value_name = "FILE",
        default_value = "gateway.yaml",
        env = "PORTCULLIS_CONFIG"
    )]
    config: PathBuf,
}

#[derive(Debug, clap::Args)]
#[command(group = clap::ArgGroup::new("name").required(true))]
struct RevokeArguments {
    #[command(flatten)]
    config: ConfigArgument,
    /// A block under `issuers`, an `iss`, or the distinguished name that issued a certificate
    #[arg(long, value_name = "NAME")]
    issuer: String,
    /// All tokens of a subject (`sub`)
    #[arg(long, group = "name", value_name = "SUB")]
    subject: Option<String>,
    /// One token (`jti`)
    #[arg(long, group = "name", value_name = "JTI")]
    token_id: Option<String>,
    /// One login session (`sid`)
    #[arg(long, group = "name", value_name = "SID")]
    session: Option<String>,
    /// All tokens of a client (`client_id`)
    #[arg(long, group = "name", value_name = "ID")]
    client: Option<String>,
    /// Everything that a key has signed (`kid`)
    #[arg(long, group = "name", value_name = "KID")]
    key_id: Option<String>,
    /// One certificate, by its serial number in hex
    #[arg(long, group = "name", value_name = "HEX")]
    serial: Option<String>,
    /// With a subject or a client: what was issued up to then; RFC 3339, or `now`
    #[arg(long, value_name = "TIME")]
    before: Option<String>,
    /// With a subject: its tokens with a lower version only
    #[arg(
        long,
        value_name = "VERSION",
        conflicts_with_all = ["before", "token_id", "session", "client", "key_id", "serial"]
    )]
    minimum: Option<u64>,
    /// When what is revoked ends by itself, so that the entry can be forgotten; RFC 3339
    #[arg(long, value_name = "TIME")]
    until: Option<String>,
    /// Why, for the record
    #[arg(long, value_name = "TEXT")]
    reason: Option<String>,
    /// Take the entry back instead
    #[arg(long, conflicts_with_all = ["before", "until"])]
    lift: bool,
    /// How to write the answer
    #[arg(long, value_enum, default_value_t = Format::Text)]
    format: Format,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Format {
    /// For people
    Text,
    /// For machines
    Json,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Input {
    /// What a policy sees
    Portcullis,
    /// What a policy with `input: envoy` sees
    Envoy,
}

/// The allocator asks for huge pages and keeps a heap for each thread, so that a few kilobytes of a
/// thread become 2 MiB: 37 MB instead of 18 for a gateway with two routes. Where the kernel has no
/// such pages there is nothing to switch off.
fn small_pages() {
    #[cfg(target_os = "linux")]
    let _ = rustix::thread::disable_transparent_huge_pages(true);
}

fn main() -> ExitCode {
    small_pages();
    let arguments = Arguments::parse();
    // Policies are tried in a child process that may crash instead of the gateway.
    if let Ok(program) = std::env::current_exe() {
        authz::set_gate_program(program);
    }
    let result = match arguments.command {
        Command::Run { config, workers } => run(config.config, workers.map(usize::from)),
        Command::Check {
            config,
            format,
            strict,
            effective,
        } => Ok(check(&config.config, format, strict, effective)),
        Command::Dev(arguments) => dev::run_dev(arguments),
        Command::Explain(arguments) => policy::explain(&arguments),
        Command::Tail(arguments) => policy::tail(&arguments),
        Command::Trace(arguments) => policy::trace(&arguments),
        Command::Policy(arguments) => policy::run(&arguments),
        Command::Candidates(arguments) => policy::candidates::run(&arguments),
        Command::Token(arguments) => dev::run_token(arguments),
        Command::Revoke(arguments) => revoke(arguments),
        Command::Bundle(command) => {
            let (mut out, mut err) = (io::stdout().lock(), io::stderr().lock());
            let code = portcullis::bundle::run(command, &mut out, &mut err);
            code.map(ExitCode::from).map_err(Into::into)
        }
        Command::Audit(AuditCommand::Verify {
            folder,
            key,
            format,
        }) => verify(&folder, &key, format),
        Command::Schema { input, cases } => Ok(schema(input, cases)),
        Command::PolicyGate => {
            let code = authz::gate_child(&mut io::stdin().lock(), &mut io::stdout().lock());
            return ExitCode::from(u8::try_from(code).unwrap_or(1));
        }
    };
    result.unwrap_or_else(|error| {
        say(&mut io::stderr(), &format!("error: {error:#}\n"));
        ExitCode::FAILURE
    })
}

/// Verifies an audit ledger.
fn verify(folder: &Path, keys: &[PathBuf], format: Format) -> anyhow::Result<ExitCode> {
    let keys: Vec<PublicKey> = keys
        .iter()
        .map(|file| {
            let pem = std::fs::read(file).with_context(|| file.display().to_string())?;
            PublicKey::from_pem(&pem)
                .with_context(|| format!("{}: holds no Ed25519 key in PEM", file.display()))
        })
        .collect::<anyhow::Result<_>>()?;
    let mut stderr = io::stderr();
    let shown = stderr.is_terminal();
    let mut percent = None;
    let report = audit::verify(folder, &keys, |read, total| {
        let now = read.saturating_mul(100).checked_div(total).unwrap_or(100);
        if shown && percent != Some(now) {
            percent = Some(now);
            say(&mut stderr, &format!("\rverifying … {now:3} %"));
        }
    })
    .with_context(|| folder.display().to_string())?;
    if shown {
        say(&mut io::stderr(), "\r\x1b[K");
    }
    let code = if report.sound() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    };
    let text = match format {
        Format::Json => format!("{}\n", serde_json::to_string_pretty(&report)?),
        Format::Text => report.to_string(),
    };
    say(&mut io::stdout(), &text);
    Ok(code)
}

fn run(config: PathBuf, workers: Option<usize>) -> anyhow::Result<ExitCode> {
    let signals = Signals::install()?;
    let metrics = Arc::new(Metrics::default());
    let loaded = match config::load(&config, None, &metrics) {
        Ok(loaded) => loaded,
        Err(problems) => {
            report(&problems);
            return Ok(ExitCode::FAILURE);
        }
    };
    telemetry::init_logging(&loaded.document.telemetry)?;
    let mut options = Options::new(config);
    options.workers = workers;
    let process = match Process::start_loaded(options, loaded) {
        Ok(process) => process,
        Err(StartError::Configuration(problems)) => {
            report(&problems);
            return Ok(ExitCode::FAILURE);
        }
        Err(error) => return Err(error.into()),
    };
    let mut lines = String::new();
    let snapshot = process.snapshot();
    let width = snapshot
        .listeners
        .keys()
        .map(String::len)
        .max()
        .unwrap_or(0)
        .max("admin".len());
    for (name, address) in process.addresses() {
        lines.push_str(&format!("listening  {name:width$}  {address}\n"));
    }
    if let Some(address) = process.admin_address() {
        lines.push_str(&format!("listening  {:width$}  {address}\n", "admin"));
    }
    let workers = match process.workers() {
        1 => "1 worker".to_owned(),
        many => format!("{many} workers"),
    };
    lines.push_str(&format!(
        "running    revision {}, {workers}\n",
        snapshot.revision
    ));
    drop(snapshot);
    say(&mut io::stdout(), &lines);
    Ok(match process.wait(signals) {
        Ended::Drained { .. } => ExitCode::SUCCESS,
        Ended::AtOnce | Ended::Broken => ExitCode::FAILURE,
    })
}

fn check(file: &Path, format: Format, strict: bool, effective: bool) -> ExitCode {
    let result = config::load(file, None, &Arc::new(Metrics::default()));
    let (problems, loaded) = match result {
        Ok(loaded) => (
            loaded.warnings,
            Some((loaded.snapshot.revision, loaded.snapshot.effective)),
        ),
        Err(problems) => (problems, None),
    };
    let errors = problems
        .iter()
        .filter(|problem| problem.severity == Severity::Error)
        .count();
    let warnings = problems.len() - errors;
    let fine = loaded.is_some() && !(strict && warnings > 0);
    let mut out = io::stdout();
    match (format, &loaded) {
        (Format::Json, loaded) => {
            let answer = serde_json::json!({
                "file": file,
                "ok": fine,
                "revision": loaded.as_ref().map(|(revision, _)| revision),
                "problems": problems,
            });
            say(&mut out, &format!("{answer:#}\n"));
        }
        (Format::Text, Some((_, document))) if effective => {
            say(
                &mut io::stderr(),
                &config::render(&problems, style(&io::stderr())),
            );
            match document.yaml() {
                Ok(text) => say(&mut out, &text),
                Err(error) => {
                    let text = format!("the effective document cannot be written: {error}\n");
                    say(&mut io::stderr(), &text);
                    return ExitCode::FAILURE;
                }
            }
        }
        (Format::Text, loaded) => {
            let text = config::render(&problems, style(&out));
            say(&mut out, &text);
            let count = |number: usize, word: &str| {
                format!("{number} {word}{}", if number == 1 { "" } else { "s" })
            };
            let verdict = match loaded {
                Some((revision, _)) if problems.is_empty() => {
                    format!("{}: fine, revision {revision}\n", file.display())
                }
                Some((revision, _)) => {
                    format!(
                        "{}: loads with {}, revision {revision}\n",
                        file.display(),
                        count(warnings, "warning")
                    )
                }
                None => format!(
                    "{}: does not load: {}, {}\n",
                    file.display(),
                    count(errors, "error"),
                    count(warnings, "warning")
                ),
            };
            say(&mut out, &verdict);
        }
    }
    if fine {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

fn revoke(arguments: RevokeArguments) -> anyhow::Result<ExitCode> {
    let metrics = Arc::new(Metrics::default());
    let loaded = match config::load(&arguments.config.config, None, &metrics) {
        Ok(loaded) => loaded,
        Err(problems) => {
            report(&problems);
            return Ok(ExitCode::FAILURE);
        }
    };
    let names = [
        ("subject", arguments.subject),
        ("token_id", arguments.token_id),
        ("session", arguments.session),
        ("client", arguments.client),
        ("key_id", arguments.key_id),
        ("serial", arguments.serial),
    ];
    let named = names
        .into_iter()
        .find_map(|(member, name)| Some((member, name?)));
    let order = Order {
        issuer: arguments.issuer,
        name: named.unwrap_or_default(),
        before: arguments.before,
        minimum: arguments.minimum,
        until: arguments.until,
        reason: arguments.reason,
        lift: arguments.lift,
    };
    let done = order.give(&loaded.snapshot, &loaded.admin)?;
    match arguments.format {
        Format::Json => say(&mut io::stdout(), &format!("{:#}\n", done.answer)),
        Format::Text if done.ok => say(&mut io::stdout(), &format!("{}\n", done.text)),
        Format::Text => say(&mut io::stderr(), &format!("error: {}\n", done.text)),
    }
    Ok(if done.ok {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

fn schema(input: Option<Input>, cases: bool) -> ExitCode {
    let schema = match input {
        None if cases => policy::cases_schema(),
        None => schemars::schema_for!(Document).to_value(),
        Some(Input::Portcullis) => InputDocument::Portcullis.schema().clone(),
        Some(Input::Envoy) => InputDocument::Envoy.schema().clone(),
    };
    say(&mut io::stdout(), &format!("{schema:#}\n"));
    ExitCode::SUCCESS
}

fn report(problems: &[Problem]) {
    let mut err = io::stderr();
    let text = config::render(problems, style(&err));
    say(&mut err, &text);
    say(&mut err, "error: the configuration does not load\n");
}

/// Colour on terminals only, and not where the user asked for none (<https://no-color.org>).
fn style(stream: &impl IsTerminal) -> Style {
    let plain = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
    match (stream.is_terminal(), plain) {
        (false, _) => Style::Plain,
        (true, true) => Style::Lines,
        (true, false) => Style::Colour,
    }
}

/// Writes text; a reader that went away is no error of ours.
fn say(stream: &mut impl Write, text: &str) {
    let _ = stream
        .write_all(text.as_bytes())
        .and_then(|()| stream.flush());
}
