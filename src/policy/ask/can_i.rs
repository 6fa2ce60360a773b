//! `portcullis policy can-i`: whether one request of one caller would be let through, and why.

use std::process::ExitCode;

use serde_json::{Value, json};

use crate::policy::scenario::{CallerArgs, Ground, RequestArgs, Stage, Told, Unanswered};
use crate::policy::show::{ConfigArgs, Format, Page, Tone, aside, say_json};

/// What is asked.
#[derive(Debug, clap::Args)]
pub struct CanIArgs {
    #[command(flatten)]
    config: ConfigArgs,
    #[command(flatten)]
    request: RequestArgs,
    #[command(flatten)]
    caller: CallerArgs,
    /// Show what the policy saw of the request
    #[arg(long)]
    input: bool,
    /// How to write the answer
    #[arg(long, value_enum, default_value_t)]
    format: Format,
}

/// Answers; exit code 0 for yes, 1 for no.
///
/// # Errors
/// When the question cannot be answered.
pub fn run(args: &CanIArgs) -> Result<ExitCode, Unanswered> {
    let wanted = args.request.read()?;
    let caller = args.caller.read(&args.config.config)?;
    if caller.is_none() && wanted.token.is_none() {
        return Err(Unanswered::Question(
            "who asks? say `--as NAME`, `--claims JSON`, `--token JWT`, `--certificate PEM` or `--anonymous`"
                .to_owned(),
        ));
    }
    let caller = caller.unwrap_or(crate::policy::scenario::Caller::anonymous());
    let ground = Ground::load(&args.config.config)?;
    aside(ground.note(&args.config.config.display().to_string()));
    let told = ground.ask(&wanted, &caller)?;
    match args.format {
        Format::Json => say_json(&json(&told, args.input)),
        Format::Text => page(&ground, &told, args.input).show(),
    }
    Ok(ExitCode::from(u8::from(!told.allowed())))
}

/// The answer for machines.
pub fn json(told: &Told, input: bool) -> Value {
    let input = told
        .input
        .as_ref()
        .filter(|_| input)
        .and_then(|input| serde_json::from_str::<Value>(&input.to_json_str().ok()?).ok());
    json!({
        "allowed": told.allowed(),
        "stage": told.stage.word(),
        "request": told.seen.as_ref().map(|seen| json!({
            "method": seen.method, "scheme": seen.scheme, "host": seen.host, "path": seen.path,
            "address": seen.address, "listener": told.listener,
        })),
        "route": told.route,
        "authentication": told.needs,
        "caller": told.caller.as_ref().map(|known| json!({
            "method": known.method, "issuer": known.source, "subject": known.subject,
            "scopes": known.scopes, "roles": known.roles,
        })),
        "policy": told.policy.as_ref().map(|(name, revision)| json!({"name": name, "revision": revision})),
        "reason": told.reason,
        "detail": told.detail,
        "message": told.message,
        "client": told.face.as_ref().map(|face| json!({"status": face.status.as_u16(), "code": face.code})),
        "assumed": told.assumed,
        "not_checked": told.not_checked,
        "remarks": told.remarks,
        "input": input,
    })
}

fn page(ground: &Ground, told: &Told, input: bool) -> Page {
    let mut page = Page::new();
    let reason = told.reason.as_deref().unwrap_or_default();
    let said = match told.stage {
        Stage::Request => "the request is not taken",
        Stage::Route => "no route takes it",
        Stage::Authentication if reason == "missing" => "it needs a credential",
        Stage::Authentication => "the credential is refused",
        Stage::Policy => "the policy says no",
        Stage::Allowed => "",
    };
    match (told.allowed(), reason.is_empty()) {
        (true, true) => page.line(&[(Tone::Good, "yes")]),
        (true, false) => page.line(&[
            (Tone::Good, "yes"),
            (Tone::Plain, ": "),
            (Tone::Strong, reason),
        ]),
        (false, _) => page.line(&[
            (Tone::Bad, "no"),
            (Tone::Plain, ": "),
            (Tone::Plain, said),
            (Tone::Plain, ": "),
            (Tone::Strong, reason),
        ]),
    }
    if let Some(seen) = &told.seen {
        let text = format!(
            "{} {}://{}{} from {}, listener {}",
            seen.method, seen.scheme, seen.host, seen.path, seen.address, told.listener
        );
        page.fact("request", Tone::Plain, &text);
    }
    if let Some(route) = &told.route {
        let place = ground
            .document
            .routes
            .iter()
            .find(|config| *config.name == **route)
            .map(|config| format!("  ({})", config.path))
            .unwrap_or_default();
        page.fact("route", Tone::Plain, &format!("{route}{place}"));
        page.fact("takes", Tone::Plain, &told.needs.join(", "));
    }
    match &told.caller {
        Some(known) => {
            let mut text = format!("{}, {} of {}", known.subject, known.method, known.source);
            for (what, names) in [("scopes", &known.scopes), ("roles", &known.roles)] {
                if !names.is_empty() {
                    text.push_str(&format!("; {what}: {}", names.join(" ")));
                }
            }
            page.fact("caller", Tone::Plain, &text);
        }
        None if told.stage > Stage::Authentication => {
            page.fact("caller", Tone::Plain, "nobody in particular");
        }
        None => {}
    }
    if let Some((name, revision)) = &told.policy
        && told.stage > Stage::Authentication
    {
        let text = if revision.is_empty() {
            name.to_string()
        } else {
            format!("{name}, revision {revision}")
        };
        page.fact("policy", Tone::Plain, &text);
    }
    if let Some(detail) = &told.detail {
        page.fact("because", Tone::Plain, detail);
    }
    if let Some(face) = &told.face {
        let mut text = format!("{} {}", face.status.as_u16(), face.code);
        if let Some(message) = &told.message {
            text.push_str(&format!(": {message}"));
        }
        page.fact("client sees", Tone::Plain, &text);
    }
    if told.stage == Stage::Authentication && told.reason.as_deref() == Some("token.expired") {
        page.fact("hint", Tone::Faint, "`--at TIME` asks about another time");
    }
    for remark in &told.remarks {
        page.fact("note", Tone::Warn, remark);
    }
    if !told.assumed.is_empty() {
        page.fact("assumed", Tone::Faint, &told.assumed.join(", "));
    }
    if !told.not_checked.is_empty() {
        page.fact("not checked", Tone::Faint, &told.not_checked.join(", "));
    }
    if input
        && let Some(text) = told
            .input
            .as_ref()
            .and_then(|input| input.to_json_str().ok())
    {
        let pretty = serde_json::from_str::<Value>(&text).map(|value| format!("{value:#}\n"));
        page.line(&[(
            Tone::Faint,
            "  what the policy saw, as far as it can read it:",
        )]);
        page.push(&pretty.unwrap_or(text));
    }
    page
}
