//! `portcullis tail`: decisions in the terminal, as they are made.
//!
//! From the running gateway, whose last decisions are shown first, or from files and ledgers, which
//! are shown from their beginning or followed from their end. A line is one decision; what does not
//! fit is cut, and `portcullis explain ID` has the rest.

use std::collections::VecDeque;
use std::io::{self, IsTerminal as _, Write as _};
use std::path::PathBuf;
use std::process::ExitCode;
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;

use super::output::{Output, Tone};
use super::running::{AdminArgs, Running, refused};
use super::scenario::Unanswered;
use super::show::Format;
use crate::audit::read::Records;
use crate::audit::recent::Filter;

/// How long the listener may keep a question, in seconds.
const WAIT: u64 = 20;

/// How long to wait before the next try after the first failure, and at most.
const FIRST_PAUSE: Duration = Duration::from_millis(500);
const LONGEST_PAUSE: Duration = Duration::from_secs(10);

/// How many decisions are shown first unless it is said, and at most.
const USUAL: usize = 20;
const MAX_FIRST: usize = 1000;

const EXAMPLES: &str = "\
Examples:
  portcullis tail                                  what is decided now
  portcullis tail --decision deny --route orders   denials of one route
  portcullis tail --caller alice --status 4xx --format json | jq .reason
  portcullis tail --from records.jsonl -n 50       the last of a file

Ends with Ctrl-C. Exit codes: 0 it ended, 2 wrong usage or nobody could be asked.";

/// `portcullis tail`.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct TailArgs {
    /// Only those of a route
    #[arg(long, value_name = "NAME")]
    route: Option<String>,
    /// Only those of a subject or a client
    #[arg(long, value_name = "NAME")]
    caller: Option<String>,
    /// Only `allow`, `deny`, or `none` where it did not come to a decision
    #[arg(long, value_name = "WORD", value_parser = ["allow", "deny", "none"])]
    decision: Option<String>,
    /// Only those with this code, of the refusal or as the reason
    #[arg(long, value_name = "CODE")]
    code: Option<String>,
    /// Only those with this status: `403`, `5xx`
    #[arg(long, value_name = "STATUS", value_parser = statuses)]
    status: Option<String>,
    /// Only those of a policy
    #[arg(long, value_name = "NAME")]
    policy: Option<String>,
    /// How many of the last decisions to show first, at most 1000
    #[arg(long, short = 'n', value_name = "NUMBER", default_value_t = USUAL)]
    lines: usize,
    /// End after the last decision there is now
    #[arg(long)]
    once: bool,
    /// Read files of records (also gzip), folders of ledgers or `-` instead of asking the gateway
    #[arg(long, value_name = "PATH")]
    from: Vec<PathBuf>,
    #[command(flatten)]
    admin: AdminArgs,
    /// How to write decisions: aligned for people, or the records themselves, one a line
    #[arg(long, value_enum, default_value_t)]
    format: Format,
}

fn statuses(text: &str) -> Result<String, String> {
    Filter::statuses(text)
        .map(|_| text.to_owned())
        .map_err(str::to_owned)
}

/// Runs the command.
pub(super) fn run(args: &TailArgs) -> Result<ExitCode, Unanswered> {
    let mut out = Rows::new(args.format);
    if args.from.is_empty() {
        follow(args, &mut out)
    } else {
        read(args, &mut out)
    }
}

impl TailArgs {
    fn filter(&self) -> Filter {
        Filter {
            route: self.route.clone(),
            caller: self.caller.clone(),
            decision: self.decision.clone(),
            code: self.code.clone(),
            status: self
                .status
                .as_deref()
                .and_then(|text| Filter::statuses(text).ok()),
            policy: self.policy.clone(),
        }
    }

    /// The filters as a query.
    fn query(&self) -> String {
        let mut query = form_urlencoded::Serializer::new(String::new());
        let pairs = [
            ("route", &self.route),
            ("caller", &self.caller),
            ("decision", &self.decision),
            ("code", &self.code),
            ("status", &self.status),
            ("policy", &self.policy),
        ];
        for (name, value) in pairs {
            if let Some(value) = value {
                query.append_pair(name, value);
            }
        }
        query.finish()
    }
}

fn follow(args: &TailArgs, out: &mut Rows) -> Result<ExitCode, Unanswered> {
    let running = args.admin.find()?;
    let filters = args.query();
    let first = args.lines.clamp(1, MAX_FIRST);
    let mut instance: Option<String> = None;
    let mut after: Option<u64> = None;
    let mut pause = FIRST_PAUSE;
    let mut lost: Option<Instant> = None;
    loop {
        let mut path = match after {
            None => format!("/decisions?limit={first}"),
            Some(after) if args.once => format!("/decisions?limit={MAX_FIRST}&after={after}"),
            Some(after) => format!("/decisions?limit={MAX_FIRST}&after={after}&wait={WAIT}"),
        };
        if !filters.is_empty() {
            path.push('&');
            path.push_str(&filters);
        }
        let answer = match ask(&running, &path) {
            Ok(answer) => answer,
            // The first question must be answered: most likely something is spelt wrong.
            Err(Failed { why, again }) if after.is_none() || !again => {
                return Err(Unanswered::Question(why));
            }
            Err(Failed { why, .. }) => {
                if lost.replace(Instant::now()).is_none() {
                    out.note(&format!("{why}; trying again"));
                }
                thread::park_timeout(pause);
                pause = (pause * 2).min(LONGEST_PAUSE);
                continue;
            }
        };
        if lost.take().is_some() {
            out.note("connected again");
        }
        pause = FIRST_PAUSE;
        let now = answer.get("instance").and_then(Value::as_str);
        if instance.is_some() && instance.as_deref() != now {
            out.note("the gateway was started anew; decisions in between may be missing");
            // Its numbers are others.
            instance = now.map(str::to_owned);
            after = Some(0);
            continue;
        }
        instance = now.map(str::to_owned);
        let missed = answer.get("missed").and_then(Value::as_u64).unwrap_or(0);
        if missed > 0 {
            out.note(&format!(
                "{missed} decisions came and went faster than they were asked for"
            ));
        }
        let decisions = answer.get("decisions").and_then(Value::as_array);
        let decisions = decisions.map(Vec::as_slice).unwrap_or_default();
        let skipped = if after.is_none() && args.lines == 0 {
            decisions.len()
        } else {
            0
        };
        for decision in decisions.iter().skip(skipped) {
            if let Some(record) = decision.get("record")
                && !out.row(record)
            {
                return Ok(ExitCode::SUCCESS);
            }
        }
        if args.once && (after.is_some() || decisions.len() <= first) && decisions.len() < MAX_FIRST
        {
            return Ok(ExitCode::SUCCESS);
        }
        after = answer.get("next").and_then(Value::as_u64).or(after);
    }
}

/// Why there is no answer, and whether there may be one later.
struct Failed {
    why: String,
    again: bool,
}

fn ask(running: &Running, path: &str) -> Result<Value, Failed> {
    match running.get(path) {
        Ok((200, answer)) => Ok(answer),
        Ok((status, answer)) => Err(Failed {
            why: refused(status, &answer),
            again: status == 503,
        }),
        Err(why) => Err(Failed { why, again: true }),
    }
}

/// Shows what files have: the last so many decisions.
fn read(args: &TailArgs, out: &mut Rows) -> Result<ExitCode, Unanswered> {
    let filter = args.filter();
    let mut records =
        Records::open(&args.from).map_err(|error| Unanswered::Question(error.to_string()))?;
    let most = args.lines.clamp(1, MAX_FIRST);
    // From a pipe decisions are shown as they come.
    let live = args.from.iter().any(|path| path.as_os_str() == "-");
    let mut last: VecDeque<Value> = VecDeque::new();
    while let Some(line) = records.next() {
        let record = match line {
            Ok(line) if filter.takes(line.text) => serde_json::from_slice::<Value>(line.text).ok(),
            Ok(_) => None,
            Err(broken) => {
                out.note(&broken.to_string());
                None
            }
        };
        let Some(record) = record else { continue };
        if live {
            if !out.row(&record) {
                return Ok(ExitCode::SUCCESS);
            }
            continue;
        }
        if last.len() >= most {
            last.pop_front();
        }
        last.push_back(record);
    }
    for record in &last {
        if !out.row(record) {
            break;
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// Decisions on their way to the terminal.
struct Rows {
    format: Format,
    output: Output,
    headed: bool,
    /// Of the columns whose content is not known ahead: route and caller.
    route: usize,
    caller: usize,
}

impl Rows {
    fn new(format: Format) -> Self {
        Self {
            format,
            output: Output::standard(),
            headed: false,
            route: 12,
            caller: 12,
        }
    }

    /// Writes a decision; `false` when nobody reads any more.
    fn row(&mut self, record: &Value) -> bool {
        let text = match self.format {
            Format::Json => format!("{record}\n"),
            Format::Text => self.text(record),
        };
        let mut out = io::stdout().lock();
        out.write_all(text.as_bytes())
            .and_then(|()| out.flush())
            .is_ok()
    }

    fn text(&mut self, record: &Value) -> String {
        let at = |pointer: &str| record.pointer(pointer).and_then(Value::as_str);
        let time = at("/time").unwrap_or_default();
        // The day is known to whoever looks at what happens now.
        let time = time.split('T').nth(1).unwrap_or(time).trim_end_matches('Z');
        let status = record.get("status").and_then(Value::as_u64);
        let refused = record.get("refusal").is_some_and(|it| !it.is_null());
        let (tone, word) = match (at("/decision"), refused) {
            (Some("deny"), _) => (Tone::Bad, "deny"),
            (Some(_), true) => (Tone::Warn, "failed"),
            (Some(_), false) => (Tone::Good, "allow"),
            (None, true) => (Tone::Bad, "refuse"),
            (None, false) => (Tone::Faint, "answer"),
        };
        let millis = record.pointer("/duration_ms/total").and_then(Value::as_f64);
        let route = cut(at("/route").unwrap_or("-"), 24);
        let caller = at("/caller/subject")
            .or(at("/caller/method"))
            .unwrap_or("-");
        let caller = cut(caller, 24);
        self.route = self.route.max(route.chars().count());
        self.caller = self.caller.max(caller.chars().count());
        let (wide, wider) = (self.route, self.caller);
        let method = at("/method").unwrap_or("?");
        let path = cut(at("/path").unwrap_or("?"), 60);
        let reason = at("/reason").unwrap_or_default();
        let failed = record.pointer("/why/failed/text").and_then(Value::as_str);
        let failed = failed.map_or(String::new(), |text| {
            let place = record.pointer("/why/failed/at").and_then(Value::as_str);
            let told = format!("{}  {}", cut(text, 60), place.unwrap_or_default());
            format!("  {}", self.output.tone(Tone::Faint, &told))
        });
        let id = at("/decision_id").or(at("/request_id")).unwrap_or("?");
        let mut text = String::new();
        if !std::mem::replace(&mut self.headed, true) {
            let head = format!(
                "{:<12}  {:<6}  {:<3}  {:>9}  {:wide$}  {:wider$}  {:<32}  what, and why",
                "time", "", "", "ms", "route", "caller", "decision"
            );
            text.push_str(&self.output.tone(Tone::Faint, &head));
            text.push('\n');
        }
        let status = status.map_or("-".to_owned(), |status| status.to_string());
        let millis = millis.map_or("-".to_owned(), |millis| format!("{millis:.3}"));
        let verdict = self.output.tone(tone, &format!("{word:<6}  {status:<3}"));
        let id = self.output.tone(Tone::Faint, &format!("{id:<32}"));
        text.push_str(&format!(
            "{time:<12}  {verdict}  {millis:>9}  {route:wide$}  {caller:wider$}  {id}  {method} {path}  \
             {reason}{failed}\n"
        ));
        text
    }

    /// Tells of something that is no decision; between JSON it would be in the way.
    fn note(&mut self, text: &str) {
        let plain = self.format == Format::Json || !io::stdout().is_terminal();
        if plain {
            self.output.complain(&format!("note: {text}\n"));
        } else {
            let text = self.output.tone(Tone::Warn, &format!("-- {text}"));
            self.output.complain(&format!("{text}\n"));
        }
    }
}

/// The beginning of a text, without what a terminal would take for orders.
fn cut(text: &str, most: usize) -> String {
    let clean = |c: char| if c.is_control() { '\u{fffd}' } else { c };
    if text.chars().count() <= most {
        return text.chars().map(clean).collect();
    }
    let begin: String = text.chars().take(most - 1).map(clean).collect();
    format!("{begin}…")
}
