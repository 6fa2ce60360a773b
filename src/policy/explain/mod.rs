//! `portcullis explain ID`: what happened to one request, and why.
//!
//! The record comes from the running gateway, or from files and ledgers; the reason from asking the
//! policy that decided again, in a process of its own. What cannot be told is said.

mod story;

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use memchr::memmem::Finder;
use serde_json::{Value, json};

use super::output::{Output, count};
use super::running::{AdminArgs, Running, refused};
use super::scenario::Unanswered;
use super::show::Format;
use super::worker;
use crate::audit::read::{Entry, Records};
use crate::audit::recent::MAX_ID;
use crate::audit::why::{Question, Untold};
use crate::audit::{SinkConfig, beside_ledger};
use crate::authz::workbench::why::{Text, Why};
use crate::config;
use crate::metrics::Metrics;

/// Longest time for the reason.
const LONGEST: Duration = Duration::from_secs(20);

/// How many lines pass between two looks at how far it is.
const STRIDE: u64 = 4096;

const EXAMPLES: &str = "\
Examples:
  portcullis explain e02c9efcf765755b6f33faed5b359ad7
  portcullis explain ID --from /var/lib/portcullis/audit        from a ledger
  portcullis explain ID --from records.jsonl --from old.gz      from files
  kubectl logs gateway | portcullis explain ID --from -

The id is the `decision_id` or the `request_id` of an answer. Without --from the running gateway is
asked, through the admin listener of the configuration, then the files that it writes.

Exit codes: 0 told, 1 there is no such decision, 2 wrong usage or nobody could be asked.";

/// `portcullis explain`.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct ExplainArgs {
    /// The decision's id, or the request's
    #[arg(value_name = "ID")]
    id: String,
    /// Where to look instead: files of records (also gzip), folders of ledgers, `-` for standard input
    #[arg(long, value_name = "PATH")]
    from: Vec<PathBuf>,
    #[command(flatten)]
    admin: AdminArgs,
    /// How to write it
    #[arg(long, value_enum, default_value_t)]
    format: Format,
}

/// What was found.
struct Found {
    /// The line of the record.
    line: String,
    /// Where it stands.
    place: String,
    /// Why, when the gateway told; or why it did not.
    why: Option<Result<Why, String>>,
    /// The ledger it is from.
    ledger: Option<PathBuf>,
}

/// Runs the command.
pub(super) fn run(args: &ExplainArgs) -> Result<ExitCode, Unanswered> {
    let id = args.id.trim();
    let word = !id.is_empty() && id.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-');
    if !word || id.len() > MAX_ID {
        return Err(Unanswered::Question(format!(
            "`{}` is no id: take the `decision_id` or the `request_id` of the answer",
            id.escape_default()
        )));
    }
    let mut out = Output::standard();
    let found = if args.from.is_empty() {
        ask(id, args, &mut out)?
    } else {
        look(id, &args.from, &mut out)?
    };
    let Some(found) = found else {
        out.complain(&format!("error: there is no decision {id}\n"));
        if args.from.is_empty() {
            out.complain("  = help: look into older records with `--from PATH`\n");
        }
        return Ok(ExitCode::FAILURE);
    };
    let why = match found.why {
        Some(why) => why,
        None => reasoned(&found.line, found.ledger.as_deref(), &args.admin.config),
    };
    let record: Value = serde_json::from_str(&found.line)
        .map_err(|error| Unanswered::Question(format!("{}: {error}", found.place)))?;
    let told = match args.format {
        Format::Json => {
            let (why, why_not) = match &why {
                Ok(why) => (Some(why), None),
                Err(why_not) => (None, Some(why_not)),
            };
            let story = story::sentences(&record);
            let answer = json!({
                "from": found.place, "story": story, "why": why, "why_not": why_not,
                "record": record,
            });
            format!("{answer:#}\n")
        }
        Format::Text => story::told(&record, &why, &found.place, &out),
    };
    out.say(&told);
    Ok(ExitCode::SUCCESS)
}

/// A record as it is told to people.
pub(super) fn page(record: &Value, why: &Result<Why, String>, place: &str, out: &Output) -> String {
    story::told(record, why, place, out)
}

/// Asks the running gateway, then looks into what it writes.
fn ask(id: &str, args: &ExplainArgs, out: &mut Output) -> Result<Option<Found>, Unanswered> {
    let running = args.admin.find()?;
    let unasked = match running.get(&format!("/decisions/{id}")) {
        Ok((200, answer)) => return Ok(Some(told(&answer, &running))),
        Ok((404, _)) => None,
        Ok((status, answer)) => Some(refused(status, &answer)),
        Err(error) => Some(error),
    };
    let written = written(&running, &args.admin.config);
    if let Some(path) = &written
        && path.exists()
    {
        let found = look(id, std::slice::from_ref(path), out)?;
        if found.is_some() {
            return Ok(found);
        }
    }
    match unasked {
        // It was not found in the files either, but nobody knows what the gateway has.
        Some(why) => Err(Unanswered::Question(why)),
        None => Ok(None),
    }
}

fn told(answer: &Value, running: &Running) -> Found {
    let record = answer.get("record").cloned().unwrap_or_default();
    let why = answer.get("why").cloned().unwrap_or_default();
    let why_not = answer.get("why_not").and_then(Value::as_str);
    let why = match serde_json::from_value::<Why>(why) {
        Ok(why) => Ok(why),
        Err(_) => Err(why_not.unwrap_or("the gateway does not say").to_owned()),
    };
    Found {
        line: record.to_string(),
        place: format!("the gateway at {}", running.place()),
        why: Some(why),
        ledger: None,
    }
}

/// Where the gateway of this configuration writes its records, if that can be read.
fn written(running: &Running, config: &Path) -> Option<PathBuf> {
    let folder = config.parent().unwrap_or(Path::new(""));
    match &running.document.as_ref()?.audit.sink {
        SinkConfig::File(path) => Some(path.clone()),
        SinkConfig::Ledger(ledger) => Some(folder.join(&ledger.folder)),
        SinkConfig::Stdout | SinkConfig::Stderr | SinkConfig::None => None,
    }
}

/// Looks for a decision in files; the last one that has the id counts.
fn look(id: &str, paths: &[PathBuf], out: &mut Output) -> Result<Option<Found>, Unanswered> {
    let cannot = |error: &dyn std::fmt::Display| Unanswered::Question(error.to_string());
    let mut records = Records::open(paths).map_err(|error| cannot(&error))?;
    let finder = Finder::new(id);
    let mut found: Option<Found> = None;
    let (mut lines, mut broken) = (0_u64, 0_usize);
    loop {
        lines += 1;
        if lines.is_multiple_of(STRIDE) {
            let progress = records.progress();
            let percent = |part: u64, all: u64| {
                usize::try_from(part.saturating_mul(100).checked_div(all).unwrap_or(100))
                    .unwrap_or(100)
            };
            if let Some(total) = progress.total {
                out.progress(percent(progress.read, total), 100, "% read");
            }
        }
        match records.next() {
            None => break,
            Some(Err(_)) => broken += 1,
            Some(Ok(line)) if finder.find(line.text).is_some() && is(id, line.text) => {
                let file = line.place.file.to_path_buf();
                let ledger = paths
                    .iter()
                    .find(|path| path.is_dir() && file.starts_with(path));
                found = Some(Found {
                    line: String::from_utf8_lossy(line.text).into_owned(),
                    place: line.place.to_string(),
                    why: None,
                    ledger: ledger.cloned(),
                });
            }
            Some(Ok(_)) => {}
        }
    }
    if found.is_none() && broken > 0 {
        out.complain(&format!(
            "warning: {} could not be read\n",
            count(broken, "line")
        ));
    }
    Ok(found)
}

/// Whether this is the record with that id, not one that mentions it.
fn is(id: &str, line: &[u8]) -> bool {
    Entry::of(line).is_ok_and(|entry| {
        [entry.decision_id(), entry.request_id()]
            .into_iter()
            .flatten()
            .any(|found| found == id)
    })
}

/// The reason, from the text of the policy that decided: kept beside the ledger, or in force in the
/// configuration still.
fn reasoned(line: &str, ledger: Option<&Path>, config: &Path) -> Result<Why, String> {
    let question = Question::of(line.as_bytes()).map_err(|untold| untold.to_string())?;
    let (policy, revision) = (&question.policy, &question.revision);
    let kept = match ledger {
        Some(ledger) => beside_ledger(ledger, policy, revision)?,
        None => None,
    };
    let text = match kept {
        Some(text) => Some(text),
        None => in_force(policy, revision, config),
    };
    let Some(text) = text else {
        let revision = revision.clone();
        return Err(format!(
            "{}; it is kept beside a ledger (`audit.sink.ledger`), and known of the policy in {} as \
             long as that is unchanged",
            Untold::NoText(revision),
            config.display()
        ));
    };
    worker::why(&text, line, LONGEST)
}

/// The policy of the configuration, if it is the one that decided.
fn in_force(policy: &str, revision: &str, config: &Path) -> Option<Text> {
    if !config.exists() {
        return None;
    }
    let (loaded, _) = config::load_for_questions(config, &Metrics::default().into()).ok()?;
    let snapshot = &loaded.snapshot;
    let mut deciders = snapshot
        .policies
        .values()
        .chain(snapshot.candidates.policies());
    let decided =
        deciders.find(|one| *one.decided_by.policy == *policy && one.revision() == revision);
    decided.and_then(|policy| policy.to_explain())
}
