//! `portcullis policy replay`: what a policy would have answered to what was asked of another.
//!
//! Records hold the document that the policy saw and everything that was not deterministic, so a policy
//! can be asked again, offline. Nothing is guessed: a record that cannot be judged (no input, a masked
//! member that the policy reads, another kind of document) is counted under its cause, and shown.

mod judges;
mod sieve;
mod table;
mod tally;
mod words;
mod work;

use std::path::PathBuf;
use std::process::ExitCode;

use super::output::{Output, count};
use super::scenario::Unanswered;
use super::show::Format;
use crate::audit::read::Records;
use crate::authz::InputDocument;

use judges::Judges;
use sieve::Sieve;
use tally::Tally;

/// Most examples of each kind of change.
const MAX_EXAMPLES: u16 = 1_000;

pub(super) const EXAMPLES: &str = "\
Examples:
  portcullis policy replay --policy new/ --from audit.jsonl      new/ in the place of the policies' files
  portcullis policy replay --from /var/lib/portcullis/audit      the policies as they are now; 0 flips if nothing changed
  portcullis policy replay --config new/gateway.yaml --from audit.jsonl.1.gz audit.jsonl --fail-on losses
  zstd -dc old.zst | portcullis policy replay --policy new/ --name orders --from - --since 2h
  portcullis policy replay --policy new/ --from audit.jsonl --write-cases policies/cases/recorded.yaml

Exit codes: 0 fine, 1 what `--fail-on` names was found, 2 there is no answer: wrong usage, a policy that
does not load, or no record that could be judged.";

/// What is replayed, and against what.
#[derive(Debug, clap::Args)]
pub(super) struct ReplayArgs {
    /// Decision records, or OPA's decision logs: files, also with gzip, folders of ledgers, `-` for standard input
    #[arg(long, value_name = "RECORDS", required = true, num_args = 1..)]
    from: Vec<PathBuf>,
    /// Files and folders with modules and data, in the place of the files and bundles of the policies
    #[arg(long, value_name = "PATH", num_args = 1..)]
    policy: Vec<PathBuf>,
    /// The configuration, for its policies [default: gateway.yaml, if it is there]
    #[arg(long, short, value_name = "FILE", env = "PORTCULLIS_CONFIG")]
    config: Option<PathBuf>,
    /// Only what this policy decided
    #[arg(long, value_name = "NAME")]
    name: Option<String>,
    /// The rule that decides, in the place of the policies' own
    #[arg(long, value_name = "RULE")]
    entrypoint: Option<String>,
    /// Which document the rule takes, where no configuration says so: `portcullis` or `envoy`
    #[arg(long, value_name = "DOCUMENT", value_parser = document, requires = "entrypoint")]
    input: Option<InputDocument>,
    /// Only what came then or later: RFC 3339, or how long ago (`2h`)
    #[arg(long, value_name = "TIME", value_parser = sieve::time)]
    since: Option<u64>,
    /// Only what came before
    #[arg(long, value_name = "TIME", value_parser = sieve::time)]
    until: Option<u64>,
    /// Only this route; may be repeated
    #[arg(long, value_name = "NAME")]
    route: Vec<String>,
    /// Only this caller, by its subject; `anonymous` for those without; may be repeated
    #[arg(long, value_name = "SUBJECT")]
    caller: Vec<String>,
    /// Only what was decided so
    #[arg(long, value_enum)]
    decision: Option<sieve::Decided>,
    /// Only the first so many of those
    #[arg(long, value_name = "NUMBER")]
    limit: Option<u64>,
    /// So many examples of each kind of change
    #[arg(long, value_name = "NUMBER", default_value_t = 3, value_parser = clap::value_parser!(u16).range(0..=i64::from(MAX_EXAMPLES)))]
    examples: u16,
    /// Write the examples as a table of cases, which `portcullis policy test` runs
    #[arg(long, value_name = "FILE")]
    write_cases: Option<PathBuf>,
    /// With cases: what they expect
    #[arg(long, value_enum, default_value_t, requires = "write_cases")]
    expect: table::Expect,
    /// With cases: also examples of what stays as it was, of each route and reason
    #[arg(long, requires = "write_cases")]
    same: bool,
    /// Exit with 1 when there are such
    #[arg(long, value_enum, value_name = "WHAT")]
    fail_on: Option<FailOn>,
    /// Threads [default: one per core]
    #[arg(long, value_name = "NUMBER", value_parser = clap::value_parser!(u16).range(1..=256))]
    threads: Option<u16>,
    /// How to write the answer
    #[arg(long, value_enum, default_value_t)]
    format: Format,
}

/// What makes the exit code 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum FailOn {
    /// Somebody gains or loses access
    Flips,
    /// Somebody gains access
    Gains,
    /// Somebody loses access
    Losses,
    /// Any answer is another one, by a byte
    Changes,
    /// As `changes`, or a record could not be judged
    Doubts,
}

fn document(text: &str) -> Result<InputDocument, String> {
    let mut all = InputDocument::ALL.into_iter();
    all.find(|document| document.name() == text)
        .ok_or_else(|| "`portcullis` or `envoy`".to_owned())
}

/// Runs the command.
pub(super) fn run(args: &ReplayArgs) -> Result<ExitCode, Unanswered> {
    let mut out = Output::standard();
    let question = |text: String| Unanswered::Question(text);
    if let Some(file) = &args.write_cases {
        table::may_write(file).map_err(question)?;
    }
    // Before the policies are tried: a misspelt name should not take seconds to be told.
    let records = Records::open(&args.from).map_err(|error| question(error.to_string()))?;
    let judges = Judges::of(args)?;
    let sieve = Sieve {
        since: args.since,
        until: args.until,
        routes: args.route.clone(),
        callers: args.caller.clone(),
        decided: args.decision,
        policy: args.name.clone(),
    };
    let terms = tally::Terms {
        examples: usize::from(args.examples),
        same: args.same,
        keeps: args.write_cases.is_some(),
    };
    let tally = work::replay(records, &judges, &sieve, args, terms)?;
    let written = match &args.write_cases {
        Some(file) => Some(table::write(file, args.expect, &tally).map_err(question)?),
        None => None,
    };
    let text = match args.format {
        Format::Json => words::json(&judges, &tally, written.as_ref()),
        Format::Text => words::text(&judges, &tally, &args.from, &out),
    };
    out.say(&text);
    if let (Some(written), Format::Text) = (&written, args.format) {
        out.say(&written.sentence());
    }
    if tally.judged() == 0 {
        let why = if tally.chosen == 0 {
            "no record fits: see `--route`, `--caller`, `--since` and their kin"
        } else {
            "no record could be judged: the reasons are listed"
        };
        return Err(question(why.to_owned()));
    }
    Ok(ExitCode::from(u8::from(fails(args.fail_on, &tally))))
}

fn fails(on: Option<FailOn>, tally: &Tally) -> bool {
    let (gains, losses) = (tally.gains() > 0, tally.losses() > 0);
    let changes = tally.judged() > tally.same;
    match on {
        None => false,
        Some(FailOn::Flips) => gains || losses,
        Some(FailOn::Gains) => gains,
        Some(FailOn::Losses) => losses,
        Some(FailOn::Changes) => changes,
        Some(FailOn::Doubts) => changes || tally.left_out() > 0,
    }
}

/// `1,000,000`.
fn thousands(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::with_capacity(digits.len() + digits.len() / 3);
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// `1 record`, `2,000 records`.
fn counted(number: u64, word: &str) -> String {
    match usize::try_from(number) {
        Ok(one @ 1) => count(one, word),
        _ => format!("{} {word}s", thousands(number)),
    }
}
