//! `portcullis policy eval`: one question to a policy, with what its answer means.
//!
//! Over an input it is asked of the modules alone; over a request it goes the whole way, and the rules
//! are asked once more for what held and what was printed.

use std::fs::File;
use std::io::{self, Read};
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use serde_json::{Map, Value, json};

use super::files::{self, Set};
use super::output::{Output, Tone};
use super::scenario::{Caller, CallerArgs, Ground, RequestArgs, Told, Unanswered};
use super::show::Format;
use super::worker::{Ask, Reply, ask_all};
use crate::authz::workbench::{Meaning, Unanswered as Failed};
use crate::document;
use crate::schema::{Problem, Span};

/// Largest input, bytes.
const MAX_INPUT: u64 = 16 * 1024 * 1024;

const EXAMPLES: &str = "\
Examples:
  portcullis policy eval --rule data.orders.decision -i input.json
  portcullis policy eval -d policies 'count(data.owners)'
  portcullis policy eval --request pasted.txt --claims '{\"sub\": \"alice\", \"scope\": \"orders:read\"}'

A request is pasted as it goes over the wire: `GET /orders/7 HTTP/1.1`, headers, a line each. What
`--as` and its kin say of the caller is not verified.

Exit codes: 0 there is an answer, 1 a problem was found (with --fail: or there is none), 2 wrong usage.";

/// What is asked, and of what.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct EvalArgs {
    /// A query: `data.orders.grant`, `x := data.owners[id]; x == \"alice\"`
    #[arg(value_name = "QUERY", required_unless_present_any = ["rule", "policy", "request"])]
    query: Option<String>,
    /// A rule; its answer is read as the gateway would
    #[arg(long, value_name = "PATH", conflicts_with = "query")]
    rule: Option<String>,
    /// The entry point of a policy of the configuration
    #[arg(long, value_name = "NAME", conflicts_with_all = ["query", "rule"])]
    policy: Option<String>,
    /// The document `input`: JSON, from a file or from standard input (`-`)
    #[arg(long, short, value_name = "FILE", conflicts_with = "request")]
    input: Option<PathBuf>,
    /// Files and folders with modules and data; by default those of the configuration's policies
    #[arg(long, short, value_name = "PATH", conflicts_with = "request")]
    data: Vec<PathBuf>,
    /// The configuration
    #[arg(long, value_name = "FILE", env = "PORTCULLIS_CONFIG")]
    config: Option<PathBuf>,
    /// A request as it goes over the wire, from a file or from standard input (`-`): judged by its route's policy
    #[arg(long, value_name = "FILE", conflicts_with_all = ["query", "rule", "policy"])]
    request: Option<PathBuf>,
    /// The address the request comes from
    #[arg(long, value_name = "ADDRESS", requires = "request")]
    from: Option<IpAddr>,
    /// When it comes, in RFC 3339; by default now
    #[arg(long, value_name = "TIME", requires = "request")]
    at: Option<String>,
    #[command(flatten)]
    caller: CallerArgs,
    /// Longest time
    #[arg(long, value_name = "TIME", default_value = "5s", value_parser = super::output::span)]
    timeout: Span,
    /// Exit with 1 when the answer is undefined, or a refusal
    #[arg(long)]
    fail: bool,
    /// How to write the answer
    #[arg(long, value_enum, default_value_t)]
    format: Format,
}

/// Runs the command.
pub(super) fn run(args: &EvalArgs) -> Result<ExitCode, Unanswered> {
    let mut out = Output::standard();
    match &args.request {
        Some(file) => over_request(args, file, &mut out),
        None => over_input(args, &mut out),
    }
}

fn question(text: impl Into<String>) -> Unanswered {
    Unanswered::Question(text.into())
}

fn does_not_load(problems: Vec<Problem>) -> Unanswered {
    let file = problems.first().map(|problem| problem.file.clone());
    Unanswered::Configuration(file.unwrap_or_default(), problems)
}

fn over_input(args: &EvalArgs, out: &mut Output) -> Result<ExitCode, Unanswered> {
    let input = args.input.as_deref().map(read_input).transpose()?;
    let sets = files::chosen(&args.data, args.config.as_deref()).map_err(does_not_load)?;
    let (set, query) = asked(args, &sets)?;
    let ask = Ask {
        query,
        input,
        time: args.timeout.get(),
    };
    let mut replies = ask_all(&set.material, true, vec![ask.clone()]).map_err(does_not_load)?;
    let reply = replies
        .pop()
        .unwrap_or(Err(Failed::Budget("there is no answer".to_owned())));
    let decides = args.rule.is_some() || args.policy.is_some();
    let reply = match reply {
        Ok(reply) => reply,
        Err(error) => return Ok(broken(args, &error, decides, out)),
    };
    let value = first(&reply);
    let meaning = decides.then(|| meaning(value.as_ref()));
    let told = match args.format {
        Format::Json => document_of(&reply, meaning.as_ref()),
        Format::Text => {
            let mut text = String::new();
            values(&reply, decides, out, &mut text);
            text.push('\n');
            if let Some(meaning) = &meaning {
                means(meaning, out, &mut text);
            }
            facts(&reply, "interpreter", out, &mut text);
            text
        }
    };
    out.say(&told);
    let undefined = reply.solutions.is_empty();
    let denied = meaning.is_some_and(|meaning| !meaning.allow);
    Ok(ExitCode::from(u8::from(args.fail && (undefined || denied))))
}

/// The files that are asked, and the query.
fn asked<'s>(args: &EvalArgs, sets: &'s [Set]) -> Result<(&'s Set, String), Unanswered> {
    let nothing = || question("there is nothing to ask");
    if let Some(name) = &args.policy {
        let all = sets
            .iter()
            .flat_map(|set| set.policies.iter().map(move |policy| (set, policy)));
        let known: Vec<&str> = all
            .clone()
            .map(|(_, policy)| policy.name.as_str())
            .collect();
        let found = all.into_iter().find(|(_, policy)| policy.name == *name);
        let (set, policy) = found.ok_or_else(|| {
            let help = crate::schema::known_names(name, known);
            question(format!("there is no policy `{name}`: {help}"))
        })?;
        return Ok((set, policy.entrypoint.clone()));
    }
    let query = args.rule.clone().or_else(|| args.query.clone());
    let query = query.ok_or_else(nothing)?;
    // Of several policies, the one that has the package which is asked for.
    let set = sets
        .iter()
        .find(|set| {
            set.policies.iter().any(|policy| {
                let package = policy
                    .entrypoint
                    .rsplit_once('.')
                    .map(|(package, _)| package);
                package.is_some_and(|package| query.contains(package))
            })
        })
        .or(sets.first())
        .ok_or_else(nothing)?;
    Ok((set, query))
}

pub(super) fn read_input(file: &Path) -> Result<String, Unanswered> {
    let shown = file.display();
    let mut bytes = Vec::new();
    let read = if file.as_os_str() == "-" {
        io::stdin().take(MAX_INPUT + 1).read_to_end(&mut bytes)
    } else {
        File::open(file).and_then(|open| open.take(MAX_INPUT + 1).read_to_end(&mut bytes))
    };
    read.map_err(|error| question(format!("cannot read {shown}: {error}")))?;
    if u64::try_from(bytes.len()).unwrap_or(u64::MAX) > MAX_INPUT {
        return Err(question(format!(
            "{shown} is larger than {} MiB",
            MAX_INPUT >> 20
        )));
    }
    document::from_json(&bytes).map_err(|error| {
        let place = match (error.line, error.column) {
            (Some(line), Some(column)) => format!("{shown}:{line}:{column}"),
            _ => shown.to_string(),
        };
        question(format!("{place}: {}", error.message))
    })?;
    String::from_utf8(bytes).map_err(|_| question(format!("{shown} is not UTF-8")))
}

fn over_request(args: &EvalArgs, file: &Path, out: &mut Output) -> Result<ExitCode, Unanswered> {
    let config = args.config.as_deref().unwrap_or(Path::new(files::CONFIG));
    let wanted = RequestArgs {
        request: Some(file.to_path_buf()),
        from: args.from,
        at: args.at.clone(),
        ..RequestArgs::default()
    }
    .read()?;
    let caller = args.caller.read(config)?.unwrap_or(Caller::anonymous());
    let ground = Ground::load(config)?;
    let told = ground.ask(&wanted, &caller)?;
    let reply = asked_again(args, config, &told);
    let engine = told
        .policy
        .as_ref()
        .and_then(|(name, _)| ground.snapshot.policies.get(&**name))
        .map_or("none", |policy| policy.engine());
    let text = match args.format {
        Format::Json => {
            let mut answer = super::ask::can_i::json(&told, true);
            if let Some(members) = answer.as_object_mut() {
                members.insert("engine".to_owned(), engine.into());
                if let Some(reply) = &reply {
                    members.insert("answer".to_owned(), first(reply).unwrap_or_default());
                    members.extend(details(reply));
                }
            }
            format!("{answer:#}\n")
        }
        Format::Text => {
            let mut text = String::new();
            if let Some(reply) = &reply {
                values(reply, true, out, &mut text);
                text.push('\n');
            }
            means_told(&told, out, &mut text);
            if let Some(reply) = &reply {
                facts(reply, engine, out, &mut text);
            }
            text
        }
    };
    out.say(&text);
    Ok(ExitCode::from(u8::from(args.fail && !told.allowed())))
}

/// The rules, asked with what the policy saw; `None` where no policy was reached.
fn asked_again(args: &EvalArgs, config: &Path, told: &Told) -> Option<Reply> {
    let input = told.input.as_ref()?.to_json_str().ok()?;
    let (name, _) = told.policy.as_ref()?;
    let sets = files::chosen(&[], Some(config)).ok()?;
    let (set, entrypoint) = sets.iter().find_map(|set| {
        let policy = set.policies.iter().find(|policy| *policy.name == **name)?;
        Some((set, policy.entrypoint.clone()))
    })?;
    let ask = Ask {
        query: entrypoint,
        input: Some(input),
        time: args.timeout.get(),
    };
    ask_all(&set.material, true, vec![ask]).ok()?.pop()?.ok()
}

fn first(reply: &Reply) -> Option<Value> {
    let (_, value) = reply.solutions.first()?.expressions.first()?;
    value.clone()
}

fn meaning(value: Option<&Value>) -> Meaning {
    let value = value.and_then(|value| document::from_json(value.to_string().as_bytes()).ok());
    Meaning::of(value.as_ref())
}

/// An evaluation that failed.
fn broken(args: &EvalArgs, error: &Failed, decides: bool, out: &mut Output) -> ExitCode {
    match args.format {
        Format::Json => {
            let mut answer = json!({"errors": [{"message": error.to_string()}]});
            if decides && let Some(members) = answer.as_object_mut() {
                members.insert(
                    "meaning".to_owned(),
                    json!({"allow": false, "status": 403, "reason": code(error)}),
                );
            }
            out.say(&format!("{answer:#}\n"));
        }
        Format::Text => {
            out.complain(&format!("error: {error}\n"));
            if decides {
                out.complain(&format!("    the gateway denies: 403, {}\n", code(error)));
            }
        }
    }
    ExitCode::FAILURE
}

fn code(error: &Failed) -> &'static str {
    match error {
        Failed::Budget(_) => "policy.budget",
        Failed::Error(_) => "policy.error",
        Failed::Panic(_) => "policy.panic",
    }
}

/// The answers.
fn values(reply: &Reply, decides: bool, out: &Output, text: &mut String) {
    if reply.solutions.is_empty() {
        text.push_str(&out.tone(Tone::Warn, "undefined"));
        text.push('\n');
        return;
    }
    for solution in &reply.solutions {
        let bound = solution
            .bindings
            .as_object()
            .filter(|bound| !bound.is_empty());
        match bound {
            Some(bound) if !decides => {
                for (name, value) in bound {
                    text.push_str(&format!("{name} = {value:#}\n"));
                }
            }
            _ => {
                for (_, value) in &solution.expressions {
                    match value {
                        Some(value) => text.push_str(&format!("{value:#}\n")),
                        None => text.push_str("undefined\n"),
                    }
                }
            }
        }
    }
}

fn fact(label: &str, value: &str, out: &Output, text: &mut String) {
    let label = out.tone(Tone::Faint, &format!("{label:<9}"));
    text.push_str(&format!("{label} {value}\n"));
}

/// What the answer means for the client.
fn means(meaning: &Meaning, out: &Output, text: &mut String) {
    let reason = meaning.reason.as_deref().unwrap_or("no reason given");
    let said = if meaning.allow {
        format!("{}: {reason}", out.tone(Tone::Good, "allow"))
    } else {
        let status = meaning.status.unwrap_or(403);
        format!("{}: {status}, {reason}", out.tone(Tone::Bad, "deny"))
    };
    fact("means", &said, out, text);
    for (label, value) in [("message", &meaning.message), ("detail", &meaning.detail)] {
        if let Some(value) = value {
            fact(label, value, out, text);
        }
    }
    if let Some(step_up) = &meaning.step_up {
        fact("step up", &step_up.acr_values.join(" "), out, text);
    }
}

fn means_told(told: &Told, out: &Output, text: &mut String) {
    let reason = told.reason.as_deref().unwrap_or("no reason given");
    let said = match &told.face {
        None => format!("{}: {reason}", out.tone(Tone::Good, "allow")),
        Some(face) => format!(
            "{}: {} at the {}, {reason}",
            out.tone(Tone::Bad, "deny"),
            face.status.as_u16(),
            told.stage.word()
        ),
    };
    fact("means", &said, out, text);
    if let Some(message) = &told.message {
        fact("message", message, out, text);
    }
    if let Some(detail) = &told.detail {
        fact("detail", detail, out, text);
    }
    if let Some(route) = &told.route {
        let policy = told.policy.as_ref().map_or("none", |(name, _)| &**name);
        fact("route", &format!("{route}, policy {policy}"), out, text);
    }
    if !told.assumed.is_empty() {
        fact("assumed", &told.assumed.join(", "), out, text);
    }
    if !told.not_checked.is_empty() {
        fact("unchecked", &told.not_checked.join(", "), out, text);
    }
}

/// How it came to the answer.
fn facts(reply: &Reply, engine: &str, out: &Output, text: &mut String) {
    let time = super::report::shown_time(reply.duration);
    let time = match engine {
        "interpreter" => format!("interpreter, {time}"),
        other => format!("{other}; {time} on the interpreter, with its lines watched"),
    };
    fact("engine", &time, out, text);
    let width = reply
        .held
        .iter()
        .map(|held| held.rule.chars().count())
        .max();
    let width = width.unwrap_or(0);
    for (index, held) in reply.held.iter().enumerate() {
        let label = if index == 0 { "held" } else { "" };
        let place = out.tone(Tone::Faint, &format!("{}:{}", held.file, held.line));
        fact(label, &format!("{:width$}  {place}", held.rule), out, text);
    }
    for (index, print) in reply.prints.iter().enumerate() {
        fact(if index == 0 { "printed" } else { "" }, print, out, text);
    }
}

/// OPA's result document, and what we know beside it.
fn document_of(reply: &Reply, meaning: Option<&Meaning>) -> String {
    let result: Vec<Value> = reply
        .solutions
        .iter()
        .map(|solution| {
            let expressions: Vec<Value> = solution
                .expressions
                .iter()
                .map(|(text, value)| json!({"text": text, "value": value}))
                .collect();
            let mut one = json!({"expressions": expressions});
            let bound = solution
                .bindings
                .as_object()
                .is_some_and(|bound| !bound.is_empty());
            if let Some(members) = one.as_object_mut().filter(|_| bound) {
                members.insert("bindings".to_owned(), solution.bindings.clone());
            }
            one
        })
        .collect();
    let mut document = Map::new();
    if !result.is_empty() {
        document.insert("result".to_owned(), result.into());
    }
    if let Some(meaning) = meaning {
        let value = json!({
            "allow": meaning.allow, "status": meaning.status, "reason": meaning.reason,
            "message": meaning.message, "detail": meaning.detail,
        });
        document.insert("meaning".to_owned(), value);
    }
    document.extend(details(reply));
    format!("{:#}\n", Value::Object(document))
}

fn details(reply: &Reply) -> Map<String, Value> {
    let held: Vec<Value> = reply
        .held
        .iter()
        .map(|held| json!({"rule": held.rule, "file": held.file, "line": held.line}))
        .collect();
    let nanos = u64::try_from(reply.duration.as_nanos()).unwrap_or(u64::MAX);
    [
        ("held".to_owned(), held.into()),
        ("printed".to_owned(), reply.prints.clone().into()),
        ("duration".to_owned(), nanos.into()),
    ]
    .into_iter()
    .collect()
}
