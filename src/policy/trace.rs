//! `portcullis trace`: what happens to chosen requests, stage by stage, as they come.

use std::io::{self, Write as _};
use std::process::ExitCode;
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::explain;
use super::output::{Output, Tone};
use super::running::{AdminArgs, Running, refused};
use super::scenario::Unanswered;
use super::show::Format;
use crate::schema::Span;

/// How long the listener may keep a question, in seconds.
const WAIT: u64 = 20;
/// How long a record may be in coming: it is written when the answer's last byte has left.
const RECORD: Duration = Duration::from_secs(2);
const LOOK: Duration = Duration::from_millis(50);

const EXAMPLES: &str = "\
Examples:
  portcullis trace --header                  prints a secret; requests that carry it are traced
  portcullis trace --route read-order -n 3   the next three requests of a route
  portcullis trace --caller alice --for 5m

Exit codes: 0 a request was traced, 1 none came, 2 wrong usage or the gateway could not be asked.";

/// `portcullis trace`.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
#[command(group = clap::ArgGroup::new("chosen").required(true))]
pub struct TraceArgs {
    /// Requests of a route
    #[arg(long, value_name = "NAME", group = "chosen")]
    route: Option<String>,
    /// Requests of a subject or a client
    #[arg(long, value_name = "NAME", group = "chosen")]
    caller: Option<String>,
    /// Requests that carry a secret, which is printed
    #[arg(long, group = "chosen")]
    header: bool,
    /// How many requests, at most 100
    #[arg(long, short = 'n', value_name = "NUMBER", default_value_t = 1)]
    count: usize,
    /// How long to wait for them, at most `10m`
    #[arg(long = "for", value_name = "TIME", default_value = "60s", value_parser = super::output::span)]
    time: Span,
    #[command(flatten)]
    admin: AdminArgs,
    /// How to write them; JSON is one request a line
    #[arg(long, value_enum, default_value_t)]
    format: Format,
}

/// Runs the command.
pub(super) fn run(args: &TraceArgs) -> Result<ExitCode, Unanswered> {
    let running = args.admin.find()?;
    let mut wish = json!({ "count": args.count, "for": args.time });
    let chosen = match (&args.route, &args.caller) {
        (Some(route), _) => ("route", json!(route)),
        (None, Some(caller)) => ("caller", json!(caller)),
        (None, None) => ("header", json!(true)),
    };
    if let Some(members) = wish.as_object_mut() {
        members.insert(chosen.0.to_owned(), chosen.1);
    }
    let armed = match running.send("POST", "/traces", &wish) {
        Ok((201, armed)) => armed,
        Ok((status, answer)) => return Err(Unanswered::Question(refused(status, &answer))),
        Err(why) => return Err(Unanswered::Question(why)),
    };
    let text = |name: &str| armed.get(name).and_then(Value::as_str).unwrap_or_default();
    let id = text("id").to_owned();
    let mut out = Output::standard();
    let waits = format!("waiting for {} of them, {} at most", args.count, args.time);
    match armed.get("secret") {
        Some(_) => {
            let (header, secret) = (text("header"), text("secret"));
            out.complain(&format!(
                "send the request with:  -H '{header}: {secret}'\n{waits}\n"
            ));
        }
        None => out.complain(&format!("{waits}\n")),
    }
    let mut seen = 0_usize;
    loop {
        let answer = match running.get(&format!("/traces/{id}?after={seen}&wait={WAIT}")) {
            Ok((200, answer)) => answer,
            Ok((status, answer)) => return Err(Unanswered::Question(refused(status, &answer))),
            Err(why) => return Err(Unanswered::Question(why)),
        };
        let requests = answer.get("requests").and_then(Value::as_array);
        for request in requests.into_iter().flatten() {
            seen += 1;
            let whole = completed(&running, &id, seen - 1, request);
            let text = match args.format {
                Format::Json => format!("{whole}\n"),
                Format::Text => shown(&whole, &running, &out),
            };
            let mut stdout = io::stdout().lock();
            if stdout
                .write_all(text.as_bytes())
                .and_then(|()| stdout.flush())
                .is_err()
            {
                // Nobody reads: nobody needs the trace.
                let _ = running.send("DELETE", &format!("/traces/{id}"), &Value::Null);
                return Ok(ExitCode::SUCCESS);
            }
        }
        // An answer has a few of them at a time.
        let all = answer.get("seen").and_then(Value::as_u64);
        let more = all.is_some_and(|all| usize::try_from(all).is_ok_and(|all| all > seen));
        if !more && answer.get("waits").and_then(Value::as_bool) != Some(true) {
            break;
        }
    }
    if seen == 0 {
        out.complain("no such request came\n");
        return Ok(ExitCode::FAILURE);
    }
    Ok(ExitCode::SUCCESS)
}

/// The request with its record, which may come a moment later than its answer's head.
fn completed(running: &Running, id: &str, index: usize, request: &Value) -> Value {
    let until = Instant::now() + RECORD;
    let mut request = request.clone();
    while request.get("record").is_none_or(Value::is_null) && Instant::now() < until {
        thread::park_timeout(LOOK);
        let answer = running.get(&format!("/traces/{id}?after={index}"));
        if let Ok((200, answer)) = answer
            && let Some(again) = answer.pointer("/requests/0")
        {
            request = again.clone();
        }
    }
    request
}

fn shown(request: &Value, running: &Running, out: &Output) -> String {
    let text = |name: &str| request.get(name).and_then(Value::as_str);
    let mut page = format!(
        "\n{}\n",
        out.tone(
            Tone::Strong,
            &format!("Request {}", text("request_id").unwrap_or("?"))
        )
    );
    let stages = request.get("stages").and_then(Value::as_array);
    let stages = stages.map(Vec::as_slice).unwrap_or_default();
    let mut total = 0.0;
    for stage in stages {
        let name = stage.get("stage").and_then(Value::as_str).unwrap_or("?");
        let millis = stage.get("ms").and_then(Value::as_f64).unwrap_or(0.0);
        total += millis;
        let refused = if text("refused_at") == Some(name) {
            out.tone(Tone::Bad, "  refused here")
        } else {
            String::new()
        };
        page.push_str(&format!("  {name:<13} {millis:>10.3} ms{refused}\n"));
    }
    page.push_str(&format!(
        "  {:<13} {total:>10.3} ms to the head of the answer\n\n",
        "all"
    ));
    match request.get("record").filter(|record| !record.is_null()) {
        Some(record) => {
            let why = match request.get("why") {
                Some(why) => serde_json::from_value(why.clone()).map_err(|it| it.to_string()),
                None => Err(text("why_not")
                    .unwrap_or("the gateway does not say")
                    .to_owned()),
            };
            let place = format!("the gateway at {}", running.place());
            page.push_str(&explain::page(record, &why, &place, out));
        }
        None => {
            page.push_str("Its record is not written yet: the answer goes on, or goes nowhere.\n")
        }
    }
    page
}
