//! The load, the service behind the peers, and their keys: what `benches/beside.py` measures with.
//!
//! Run without arguments it says what it can do and ends, so that `cargo bench` works.
#![allow(
    clippy::indexing_slicing,
    clippy::as_conversions,
    clippy::print_stdout,
    clippy::disallowed_methods,
    clippy::wildcard_enum_match_arm,
    missing_debug_implementations,
    reason = "a tool that may fail loudly"
)]

mod book;
mod engine;
mod fixtures;
mod h1;
mod h2;
mod huffman;
mod net;
mod pace;
mod upstream;

use std::borrow::Cow;
use std::cell::Cell;
use std::env;
use std::fs;
use std::io::{self, Write as _};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::rc::Rc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use clap::{CommandFactory as _, Parser, Subcommand};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::io::AsyncReadExt as _;
use tokio::task::{LocalSet, spawn_local};

use self::net::{Dialed, Dialer, Io, Target};
use self::pace::{Pace, Phase};

/// How long a connection waits before it tries again, and how often waits look whether they are over.
const PATIENCE: Duration = Duration::from_millis(5);
/// The longest wait for the last answers.
const LAST_ANSWERS: Duration = Duration::from_secs(20);

/// The load generator of benches/beside.py and its surroundings.
#[derive(Parser)]
#[command(name = "load")]
struct Args {
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Subcommand)]
enum Command {
    /// Make keys, certificates and tokens in a folder
    MakeFixtures {
        /// The folder
        folder: PathBuf,
        #[command(flatten)]
        counts: fixtures::Counts,
    },
    /// Serve: 1 KiB, `/large` 100 MiB, `/echo` the request's head
    Upstream {
        /// Where
        address: SocketAddr,
    },
    /// Decide for a proxy that asks by gRPC (ext_authz)
    Engine {
        /// Where
        address: SocketAddr,
        /// The policy
        policy: PathBuf,
    },
    /// Send requests and print one line of JSON
    Run(Box<Run>),
    /// Open connections, send one request on each, and hold them until standard input ends
    Idle(Box<Idle>),
}

#[derive(clap::Args)]
struct Run {
    #[command(flatten)]
    target: Target,
    /// Path and query
    #[arg(long, default_value = "/orders/tenants/42?expand=items")]
    path: String,
    /// Connections
    #[arg(long, default_value_t = 64)]
    connections: usize,
    /// Requests at a time on each HTTP/2 connection
    #[arg(long, default_value_t = 8)]
    streams: usize,
    /// Tokens, one a line, in rotation
    #[arg(long)]
    tokens: Option<PathBuf>,
    /// How many of them
    #[arg(long)]
    token_count: Option<usize>,
    /// Use each token once, and end when there are no more
    #[arg(long, requires = "tokens")]
    once: bool,
    /// One more header, `name: value`
    #[arg(long)]
    header: Vec<String>,
    /// How long requests are not counted yet
    #[arg(long, default_value_t = 0.5)]
    warm: f64,
    /// How long they are
    #[arg(long, default_value_t = 2.0)]
    seconds: f64,
    /// Requests a second; as many as possible if not given
    #[arg(long)]
    rate: Option<f64>,
    /// A connection for each request (HTTP/1.1)
    #[arg(long, conflicts_with = "http2")]
    new_connections: bool,
    /// Send a body of so many bytes (HTTP/1.1)
    #[arg(long, default_value_t = 0)]
    upload: usize,
    /// Say in X-Forwarded-For that each request comes from another network, so many of them (HTTP/1.1)
    #[arg(long, conflicts_with = "http2")]
    networks: Option<usize>,
    /// Print `ready` when warm and wait for a line; print the result and wait for another
    #[arg(long)]
    gate: bool,
}

#[derive(clap::Args)]
struct Idle {
    #[command(flatten)]
    target: Target,
    /// How many
    #[arg(long, default_value_t = 10_000)]
    connections: usize,
    /// Path and query
    #[arg(long, default_value = "/orders/tenants/42?expand=items")]
    path: String,
}

/// What all connections of a run share.
pub(crate) struct Plan {
    pub(crate) pace: Pace,
    pub(crate) dialer: Dialer,
    pub(crate) fields: h2::Fields,
    pub(crate) streams: usize,
    pub(crate) new_connections: bool,
    pub(crate) upload: usize,
    requests: Vec<Vec<u8>>,
    /// Where in the request the number of the network stands.
    network: Option<usize>,
    connected: Cell<usize>,
}

impl Plan {
    /// The bytes of a whole request with HTTP/1.1, without its body.
    pub(crate) fn request(&self, number: usize) -> Cow<'_, [u8]> {
        let request = &self.requests[number % self.requests.len()];
        let Some(at) = self.network else {
            return Cow::Borrowed(request);
        };
        let mut request = request.clone();
        let text = format!("{:04x}:{:04x}", number >> 16 & 0xffff, number & 0xffff);
        request[at..at + text.len()].copy_from_slice(text.as_bytes());
        Cow::Owned(request)
    }

    /// A new connection; errors are counted.
    pub(crate) async fn dial(&self) -> Option<Box<dyn Io>> {
        match self.dialer.dial().await {
            Ok(dialed) => {
                self.count_handshake(&dialed);
                Some(dialed.stream)
            }
            Err(error) => {
                self.pace.error(&error);
                None
            }
        }
    }

    pub(crate) fn count_handshake(&self, dialed: &Dialed) {
        let mut book = self.pace.book.borrow_mut();
        if dialed.resumed {
            book.resumed_handshakes += 1;
        } else {
            book.full_handshakes += 1;
        }
    }

    pub(crate) fn connected(&self) {
        self.connected.set(self.connected.get() + 1);
    }
}

fn main() -> Result<()> {
    // `cargo bench` says so, with whatever filter is meant for other benches.
    let asked = if env::args().any(|word| word == "--bench") {
        None
    } else {
        Args::parse().command
    };
    let Some(command) = asked else {
        Args::command().print_help()?;
        return Ok(());
    };
    raise_files();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let local = LocalSet::new();
    match command {
        Command::MakeFixtures { folder, counts } => fixtures::make(&folder, counts),
        Command::Upstream { address } => Ok(local.block_on(&runtime, upstream::serve(address))?),
        Command::Engine { address, policy } => {
            local.block_on(&runtime, engine::serve(address, &policy))
        }
        Command::Run(run) => local.block_on(&runtime, load(*run)),
        Command::Idle(idle) => local.block_on(&runtime, hold(*idle)),
    }
}

/// Ten thousand connections are ten thousand files.
fn raise_files() {
    let limit = getrlimit(Resource::Nofile);
    // Not being allowed to shows itself soon enough.
    let _kept = setrlimit(
        Resource::Nofile,
        Rlimit {
            current: limit.maximum,
            maximum: limit.maximum,
        },
    );
}

fn plan(run: &Run) -> Result<Plan> {
    let mut tokens: Vec<String> = match &run.tokens {
        None => Vec::new(),
        Some(file) => fs::read_to_string(file)
            .with_context(|| format!("cannot read {}", file.display()))?
            .lines()
            .map(str::to_owned)
            .collect(),
    };
    if let Some(count) = run.token_count {
        tokens.truncate(count);
    }
    if run.tokens.is_some() && tokens.is_empty() {
        bail!("no tokens");
    }
    let mut headers = vec![
        ("accept".to_owned(), "application/json".to_owned()),
        (
            "x-request-id".to_owned(),
            "0f8fad5b-d9cb-469f-a165-70867728950e".to_owned(),
        ),
        ("cookie".to_owned(), "sid=31d4d96e407aad42".to_owned()),
        ("accept-language".to_owned(), "en-GB,en;q=0.9".to_owned()),
        ("user-agent".to_owned(), "beside/1".to_owned()),
        (
            "traceparent".to_owned(),
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01".to_owned(),
        ),
    ];
    for header in &run.header {
        let (name, value) = header
            .split_once(": ")
            .context("a header is `name: value`")?;
        headers.push((name.to_ascii_lowercase(), value.to_owned()));
    }
    let method = if run.upload > 0 { "POST" } else { "GET" };
    let mut common = format!("{method} {} HTTP/1.1\r\nhost: localhost\r\n", run.path);
    for (name, value) in &headers {
        common.push_str(&format!("{name}: {value}\r\n"));
    }
    if run.upload > 0 {
        common.push_str(&format!("content-length: {}\r\n", run.upload));
    }
    let network = run.networks.map(|_| {
        common.push_str("x-forwarded-for: 2001:db8:");
        let at = common.len();
        common.push_str("0000:0000::1\r\n");
        at
    });
    let requests = if tokens.is_empty() {
        vec![format!("{common}\r\n").into_bytes()]
    } else {
        tokens
            .iter()
            .map(|token| format!("{common}authorization: Bearer {token}\r\n\r\n").into_bytes())
            .collect()
    };
    let last = if run.once {
        tokens.len()
    } else {
        run.networks.unwrap_or(usize::MAX)
    };
    Ok(Plan {
        pace: Pace::new(run.rate.is_some(), last),
        dialer: Dialer::new(&run.target)?,
        fields: h2::Fields::new(run.target.ca.is_some(), &run.path, &headers, &tokens),
        streams: run.streams,
        new_connections: run.new_connections,
        upload: run.upload,
        requests,
        network,
        connected: Cell::new(0),
    })
}

async fn load(run: Run) -> Result<()> {
    let plan = Rc::new(plan(&run)?);
    for _ in 0..run.connections {
        if run.target.http2 {
            spawn_local(h2::run(Rc::clone(&plan)));
        } else {
            spawn_local(h1::run(Rc::clone(&plan)));
        }
    }
    let begun = Instant::now();
    while !run.new_connections && plan.connected.get() < run.connections {
        tokio::time::sleep(PATIENCE).await;
        if begun.elapsed() > LAST_ANSWERS {
            bail!("cannot connect: {:?}", plan.pace.book.borrow().errors);
        }
    }
    if let Some(rate) = run.rate {
        let plan = Rc::clone(&plan);
        spawn_local(async move { pace::drive(&plan.pace, rate).await });
    }
    plan.pace.enter(Phase::Warm);
    tokio::time::sleep(Duration::from_secs_f64(run.warm)).await;
    plan.pace.enter(Phase::Rest);
    plan.pace.quiet(LAST_ANSWERS).await;
    if run.gate {
        say("ready")?;
        line().await?;
    }
    let begun = Instant::now();
    let end = begun + Duration::from_secs_f64(run.seconds);
    plan.pace.enter(Phase::Measure);
    if run.once || run.networks.is_some() {
        while Instant::now() < end && !plan.pace.exhausted() {
            tokio::time::sleep(PATIENCE).await;
        }
    } else {
        tokio::time::sleep_until(end.into()).await;
    }
    plan.pace.enter(Phase::Rest);
    plan.pace.quiet(LAST_ANSWERS).await;
    let seconds = plan
        .pace
        .last_answer()
        .saturating_duration_since(begun)
        .as_secs_f64();
    let report = plan.pace.book.borrow().report(seconds);
    say(&report.to_string())?;
    if run.gate {
        line().await?;
    }
    Ok(())
}

async fn hold(idle: Idle) -> Result<()> {
    let run = Run {
        target: idle.target,
        path: idle.path,
        connections: idle.connections,
        streams: 1,
        tokens: None,
        token_count: None,
        once: false,
        header: Vec::new(),
        warm: 0.0,
        seconds: 0.0,
        rate: None,
        new_connections: false,
        upload: 0,
        networks: None,
        gate: true,
    };
    let plan = Rc::new(plan(&run)?);
    let mut held = Vec::with_capacity(run.connections);
    let mut answer = vec![0; 4096];
    for _ in 0..run.connections {
        let mut stream = plan.dialer.dial().await?.stream;
        tokio::io::AsyncWriteExt::write_all(&mut stream, &plan.request(0)).await?;
        tokio::io::AsyncWriteExt::flush(&mut stream).await?;
        if stream.read(&mut answer).await? == 0 {
            bail!("closed after {} connections", held.len());
        }
        held.push(stream);
    }
    say("ready")?;
    line().await
}

fn say(text: &str) -> io::Result<()> {
    let mut out = io::stdout().lock();
    writeln!(out, "{text}")?;
    out.flush()
}

/// Waits for a line on standard input, or for its end.
async fn line() -> Result<()> {
    tokio::task::spawn_blocking(|| io::stdin().read_line(&mut String::new())).await??;
    Ok(())
}
