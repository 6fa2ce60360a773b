//! `portcullis policy`: questions about policies, answered from the configuration and the policy that
//! the gateway runs, without a network and without letting anybody in.
//!
//! What others wrote is evaluated in a process of its own (`worker`), which a policy may take down.

pub mod ask;
mod bench;
pub mod candidates;
mod cases;
pub mod check;
pub mod diff;
mod eval;
mod explain;
mod files;
mod output;
mod replay;
mod report;
mod running;
pub mod scenario;
pub mod show;
mod tail;
mod test;
mod trace;
mod worker;

use std::process::ExitCode;

use clap::Subcommand;

pub use explain::ExplainArgs;
pub use tail::TailArgs;
pub use trace::TraceArgs;

use scenario::Unanswered;

/// The exit code of a question that cannot be answered.
const UNANSWERED: u8 = 2;

/// `portcullis policy …`.
#[derive(Debug, clap::Args)]
pub struct PolicyArgs {
    #[command(subcommand)]
    command: PolicyCommand,
}

#[derive(Debug, Subcommand)]
enum PolicyCommand {
    /// Find what would bite: misspelt paths, denials that vanish, rules that never hold
    ///
    /// Beyond what keeps a configuration from loading. A finding is waived by a comment on its line or
    /// the line above, `# portcullis: ignore[name]`, or by `--ignore name`.
    #[command(after_help = CHECK)]
    Check(check::CheckArgs),
    /// Run the tests and cases of policies, as `opa test` does
    Test(test::TestArgs),
    /// Ask a policy: a query over an input, or one request of one caller
    Eval(eval::EvalArgs),
    /// Count and time decisions, and fail when a change made them too slow
    Bench(bench::BenchArgs),
    /// Whether one request of one caller would be let through, and why
    ///
    /// The request goes through the code that the gateway runs: the same reading, the same route
    /// table, the same mapping of claims, the same policy. No network is used and nothing is let
    /// through; what could not be checked is said. Exit code 0 is yes, 1 is no.
    #[command(after_help = CAN_I)]
    CanI(ask::can_i::CanIArgs),
    /// Who would be let through to one path: as facts about the caller, and as names
    ///
    /// The real policy is asked about callers made of what it compares with and of its data; of those it
    /// lets through, facts are taken away until none can go.
    #[command(after_help = "Example:\n  portcullis policy who-can GET /orders/1001")]
    WhoCan(ask::who_can::WhoCanArgs),
    /// Who gains access and who loses it between two configurations
    ///
    /// OLD and NEW are configuration files, their folders, or git revisions; NEW is the configuration as
    /// it is now unless it is named. Exit code 0: nothing changed, 1: something did.
    #[command(
        after_help = "Examples:\n  portcullis policy diff HEAD~1\n  portcullis policy diff old/gateway.yaml gateway.yaml --fail-on gains\n  portcullis policy diff --candidate orders-next"
    )]
    Diff(diff::DiffArgs),
    /// Ask a policy again what was asked before, and list what would come out differently
    ///
    /// Decision records hold what the policy saw and everything that was not deterministic. Nothing is
    /// guessed: what cannot be judged is counted and shown. Works offline.
    #[command(after_help = replay::EXAMPLES)]
    Replay(Box<replay::ReplayArgs>),
    /// Every route: who may try, who may, and what is open
    #[command(after_help = "Example:\n  portcullis policy routes --unauthenticated")]
    Routes(ask::routes::RoutesArgs),
    /// Evaluate for the other commands, in a process that a policy may take down
    #[command(hide = true)]
    Worker,
}

const CHECK: &str = "\
Examples:
  portcullis policy check --strict
  portcullis policy check policies/ --entrypoint data.orders.decision

Exit codes: 0 fine, 1 an error was found (with --strict: or a warning), 2 wrong usage.";

const CAN_I: &str = "\
Examples:
  portcullis policy can-i GET /orders/1001 --as alice
  portcullis policy can-i POST /orders --claims '{\"sub\": \"bob\", \"scope\": \"orders:write\"}'
  portcullis policy can-i --request pasted.txt --token \"$TOKEN\"";

/// `portcullis explain`: what happened to one request, and why.
///
/// # Errors
/// What went wrong, for people.
pub fn explain(args: &ExplainArgs) -> anyhow::Result<ExitCode> {
    explain::run(args).or_else(|unanswered| Ok(unanswerable(&unanswered)))
}

/// `portcullis tail`: decisions as they are made.
///
/// # Errors
/// What went wrong, for people.
pub fn tail(args: &TailArgs) -> anyhow::Result<ExitCode> {
    tail::run(args).or_else(|unanswered| Ok(unanswerable(&unanswered)))
}

/// `portcullis trace`: the stages of chosen requests, as they come.
///
/// # Errors
/// What went wrong, for people.
pub fn trace(args: &TraceArgs) -> anyhow::Result<ExitCode> {
    trace::run(args).or_else(|unanswered| Ok(unanswerable(&unanswered)))
}

/// Runs one of the commands.
///
/// # Errors
/// What went wrong, for people.
pub fn run(args: &PolicyArgs) -> anyhow::Result<ExitCode> {
    let answered = match &args.command {
        PolicyCommand::Check(args) => check::run(args),
        PolicyCommand::Test(args) => return Ok(test::run(args)),
        PolicyCommand::Worker => return Ok(worker::serve()),
        PolicyCommand::Bench(args) => bench::run(args),
        PolicyCommand::Eval(args) => eval::run(args),
        PolicyCommand::CanI(args) => ask::can_i::run(args),
        PolicyCommand::WhoCan(args) => ask::who_can::run(args),
        PolicyCommand::Diff(args) => diff::run(args),
        PolicyCommand::Replay(args) => replay::run(args),
        PolicyCommand::Routes(args) => ask::routes::run(args),
    };
    answered.or_else(|unanswered| Ok(unanswerable(&unanswered)))
}

/// The JSON Schema of tables of cases, for editors.
pub fn cases_schema() -> serde_json::Value {
    cases::schema()
}

fn unanswerable(unanswered: &Unanswered) -> ExitCode {
    use std::io::Write;
    let _ = writeln!(std::io::stderr(), "error: {unanswered}");
    // Neither yes nor no, neither fine nor found: there is no answer.
    ExitCode::from(UNANSWERED)
}
