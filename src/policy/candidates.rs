//! `portcullis candidates`: what the candidates of the gateway that runs would change.

use std::process::ExitCode;

use serde_json::{Value, json};

use super::running::{AdminArgs, refused};
use super::show::{Format, Page, Tone, say_json};

/// Samples that are shown of each kind; the document has more.
const SHOWN: usize = 5;
/// Rows that are shown of each table.
const ROWS: usize = 10;

const EXAMPLES: &str = "\
Examples:
  portcullis candidates                         all of them, in a line each
  portcullis candidates orders-next             what one would change, by route, reason and caller
  portcullis candidates orders-next --resume    let it decide again after it went back
  portcullis explain DECISION_ID                one of its samples, with its why

Exit codes: 0 fine, 1 one went back or it could not be asked, 2 wrong usage.";

/// What to ask of the gateway.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
#[command(group = clap::ArgGroup::new("order").requires("name"))]
pub struct CandidatesArgs {
    /// One of them
    #[arg(value_name = "NAME")]
    name: Option<String>,
    /// Forget what was counted, and count from now on
    #[arg(long, group = "order")]
    reset: bool,
    /// Let it decide again after it went back
    #[arg(long, group = "order")]
    resume: bool,
    /// Let its policy decide again, now
    #[arg(long, group = "order")]
    back: bool,
    #[command(flatten)]
    admin: AdminArgs,
    /// How to write the answer
    #[arg(long, value_enum, default_value_t)]
    format: Format,
}

/// Asks the gateway that runs this configuration.
///
/// # Errors
/// When the configuration does not load, or its gateway cannot be asked.
pub fn run(args: &CandidatesArgs) -> anyhow::Result<ExitCode> {
    let running = args.admin.find()?;
    let orders = [
        ("reset", args.reset),
        ("resume", args.resume),
        ("back", args.back),
    ];
    let order = orders
        .into_iter()
        .find_map(|(word, given)| given.then_some(word));
    let (method, path) = match (&args.name, order) {
        (None, _) => ("GET", "/candidates".to_owned()),
        (Some(name), None) => ("GET", format!("/candidates/{}", plain(name)?)),
        (Some(name), Some(order)) => ("POST", format!("/candidates/{}/{order}", plain(name)?)),
    };
    let asked = match order {
        None => running.get(&path),
        Some(_) => running.send(method, &path, &Value::Null),
    };
    let (status, answer) = asked.map_err(anyhow::Error::msg)?;
    if status == 404
        && let Some(name) = &args.name
        && let Ok((200, all)) = running.get("/candidates")
    {
        let known = items(&all, "candidates").map(|one| text(one, "name"));
        let help = crate::schema::known_names(name, known);
        anyhow::bail!("there is no candidate `{name}`: {help}");
    }
    if status != 200 {
        anyhow::bail!(refused(status, &answer));
    }
    let fine = match (&args.name, order) {
        (None, _) => none_back(answer.get("candidates").and_then(Value::as_array)),
        (Some(_), _) => answer.get("standing") != Some(&json!("back")) || order == Some("back"),
    };
    match (args.format, &args.name, order) {
        (Format::Json, _, _) => say_json(&answer),
        (Format::Text, None, _) => list(&answer).show(),
        (Format::Text, Some(_), None) => one(&answer).show(),
        (Format::Text, Some(name), Some(order)) => done(name, order, &answer).show(),
    }
    Ok(ExitCode::from(u8::from(!fine)))
}

/// Names are letters, digits, `-`, `_` and `.`: anything else would be another page.
fn plain(name: &str) -> anyhow::Result<&str> {
    let fits = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.');
    anyhow::ensure!(
        name.bytes().all(fits),
        "`{}` is no name of a candidate",
        name.escape_default()
    );
    Ok(name)
}

fn none_back(candidates: Option<&Vec<Value>>) -> bool {
    let mut all = candidates.into_iter().flatten();
    all.all(|one| one.get("standing") != Some(&json!("back")))
}

fn number(value: &Value, name: &str) -> u64 {
    value.get(name).and_then(Value::as_u64).unwrap_or(0)
}

fn text<'v>(value: &'v Value, name: &str) -> &'v str {
    value.get(name).and_then(Value::as_str).unwrap_or_default()
}

/// `12,345`.
fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// `99.9%` of what was compared; never rounded up to all of it.
fn share(part: u64, all: u64) -> String {
    if all == 0 {
        return "-".to_owned();
    }
    let hundredths = u128::from(part) * 10_000 / u128::from(all);
    format!("{}.{:02}%", hundredths / 100, hundredths % 100)
}

fn rollout(one: &Value) -> String {
    let standing = text(one, "standing");
    let enforce = one.get("enforce").unwrap_or(&Value::Null);
    let what = match (enforce.get("share"), enforce.get("cohort")) {
        (Some(share), None | Some(Value::Null)) => share.as_str().unwrap_or_default().to_owned(),
        (Some(share), Some(_)) if share == "100%" => "a cohort".to_owned(),
        (Some(share), Some(_)) => format!("{} of a cohort", share.as_str().unwrap_or_default()),
        (None, _) => text(one, "sample").to_owned(),
    };
    match standing {
        "waiting" => "waits for a bundle".to_owned(),
        "back" => format!("BACK (was {what})"),
        _ => format!("{standing} {what}"),
    }
}

fn tone_of(one: &Value) -> Tone {
    match text(one, "standing") {
        "back" => Tone::Bad,
        "enforcing" => Tone::Good,
        "waiting" => Tone::Warn,
        _ => Tone::Plain,
    }
}

/// A count that should be small.
fn notable(count: u64) -> (Tone, String) {
    let tone = if count == 0 { Tone::Faint } else { Tone::Warn };
    (tone, grouped(count))
}

fn head(names: &[&str]) -> Vec<(Tone, String)> {
    names
        .iter()
        .map(|name| (Tone::Faint, (*name).to_owned()))
        .collect()
}

fn flips(one: &Value) -> Vec<(Tone, String)> {
    let compared = number(one, "compared");
    vec![
        (Tone::Plain, grouped(compared)),
        (Tone::Plain, share(number(one, "same"), compared)),
        notable(number(one, "denies")),
        notable(number(one, "permits")),
        notable(number(one, "terms")),
    ]
}

fn list(answer: &Value) -> Page {
    let mut page = Page::new();
    let none = Vec::new();
    let all = answer
        .get("candidates")
        .and_then(Value::as_array)
        .unwrap_or(&none);
    if all.is_empty() {
        page.line(&[(
            Tone::Plain,
            "there are no candidates: add a block under `candidates`",
        )]);
        return page;
    }
    let mut rows = vec![head(&[
        "CANDIDATE",
        "OF",
        "STANDING",
        "COMPARED",
        "SAME",
        "YES→NO",
        "NO→YES",
        "TERMS",
        "FAILED",
        "LEFT OUT",
    ])];
    for one in all {
        let mut row = vec![
            (Tone::Strong, text(one, "name").to_owned()),
            (Tone::Plain, text(one, "of").to_owned()),
            (tone_of(one), rollout(one)),
        ];
        row.extend(flips(one));
        row.push(notable(number(one, "failed")));
        row.push((Tone::Faint, grouped(number(one, "left_out"))));
        rows.push(row);
    }
    page.table(&rows);
    for one in all {
        why_back(&mut page, one, Some(text(one, "name")));
    }
    page
}

fn why_back(page: &mut Page, one: &Value, name: Option<&str>) {
    let Some(back) = one.get("back").filter(|back| back.is_object()) else {
        return;
    };
    let who = name.map(|name| format!("{name} ")).unwrap_or_default();
    page.line(&[
        (Tone::Bad, &format!("{who}went back ")),
        (
            Tone::Plain,
            &format!("{}: {}", text(back, "since"), text(back, "why")),
        ),
    ]);
}

fn one(one: &Value) -> Page {
    let mut page = Page::new();
    page.line(&[
        (Tone::Strong, text(one, "name")),
        (Tone::Plain, " for "),
        (Tone::Strong, text(one, "of")),
        (Tone::Plain, ": "),
        (tone_of(one), &rollout(one)),
    ]);
    why_back(&mut page, one, None);
    let compared = number(one, "compared");
    page.fact("revision", Tone::Plain, text(one, "revision"));
    page.fact("since", Tone::Plain, text(one, "since"));
    let same = share(number(one, "same"), compared);
    page.fact(
        "compared",
        Tone::Plain,
        &format!("{}, {same} the same", grouped(compared)),
    );
    for (name, label) in [
        ("denies", "yes→no"),
        ("permits", "no→yes"),
        ("terms", "other terms"),
        ("failed", "failed"),
    ] {
        let (tone, mut count) = notable(number(one, name));
        if name == "failed"
            && let Some(kinds) = one.get("failures").and_then(Value::as_object)
            && !kinds.is_empty()
        {
            let kinds: Vec<String> = kinds
                .iter()
                .map(|(kind, count)| format!("{kind} {count}"))
                .collect();
            count.push_str(&format!(" ({})", kinds.join(", ")));
        }
        page.fact(label, tone, &count);
    }
    let by = one.get("left_out_by").and_then(Value::as_object);
    let by: Vec<String> = by
        .into_iter()
        .flatten()
        .filter(|(_, count)| **count != json!(0))
        .map(|(why, count)| format!("{why} {count}"))
        .collect();
    let left_out = match by.as_slice() {
        [] => "0".to_owned(),
        by => format!("{} ({})", grouped(number(one, "left_out")), by.join(", ")),
    };
    page.fact("left out", Tone::Faint, &left_out);
    if let Some(judged) = one.pointer("/judged/now") {
        let decided = one.get("decided").unwrap_or(&Value::Null);
        let (allowed, denied) = (number(decided, "allow"), number(decided, "deny"));
        let decided = format!("{} allowed, {} denied", grouped(allowed), grouped(denied));
        page.fact("decided", Tone::Plain, &decided);
        let now = format!(
            "{} compared: {} denials, {} permits, {} errors beside its policy",
            grouped(number(judged, "compared")),
            number(judged, "denials"),
            number(judged, "permits"),
            number(judged, "errors"),
        );
        page.fact("judged by", Tone::Plain, &now);
        if let Some(held) = one.pointer("/judged/held").and_then(Value::as_str) {
            page.fact("stays", Tone::Plain, held);
        }
    }
    tables(&mut page, one);
    samples(&mut page, one);
    page
}

fn items<'v>(one: &'v Value, name: &str) -> impl Iterator<Item = &'v Value> {
    one.get(name)
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
}

/// The arrow of a kind of flip.
fn arrow(flip: &str) -> &'static str {
    match flip {
        "denies" => "yes→no",
        "permits" => "no→yes",
        "terms" => "terms",
        _ => "others",
    }
}

fn tables(page: &mut Page, one: &Value) {
    let mut rows = vec![head(&[
        "ROUTE", "COMPARED", "SAME", "YES→NO", "NO→YES", "TERMS",
    ])];
    for route in items(one, "routes").take(ROWS) {
        let mut row = vec![(Tone::Plain, text(route, "route").to_owned())];
        row.extend(flips(route));
        rows.push(row);
    }
    table(page, &rows);
    let mut rows = vec![head(&["FLIP", "COUNT", "POLICY", "CANDIDATE"])];
    for reason in items(one, "reasons").take(ROWS) {
        rows.push(vec![
            (Tone::Plain, arrow(text(reason, "flip")).to_owned()),
            (Tone::Plain, grouped(number(reason, "count"))),
            (Tone::Plain, text(reason, "from").to_owned()),
            (Tone::Plain, text(reason, "to").to_owned()),
        ]);
    }
    table(page, &rows);
    let mut rows = vec![head(&["FLIP", "SAMPLES", "RULE OF THE CANDIDATE", "AT"])];
    for rule in items(one, "rules").take(ROWS) {
        let named = |name: &str| rule.get(name).and_then(Value::as_str).unwrap_or("-");
        rows.push(vec![
            (Tone::Plain, arrow(text(rule, "flip")).to_owned()),
            (Tone::Plain, grouped(number(rule, "samples"))),
            (Tone::Plain, named("rule").to_owned()),
            (Tone::Plain, named("at").to_owned()),
        ]);
    }
    table(page, &rows);
    let mut rows = vec![head(&["CALLER", "FLIPS"])];
    for caller in items(one, "callers").take(ROWS) {
        let doubt = match number(caller, "in_doubt") {
            0 => String::new(),
            doubt => format!(", {} of them perhaps others'", grouped(doubt)),
        };
        let count = format!("{}{doubt}", grouped(number(caller, "flips")));
        rows.push(vec![
            (Tone::Plain, text(caller, "caller").to_owned()),
            (Tone::Plain, count),
        ]);
    }
    table(page, &rows);
}

fn table(page: &mut Page, rows: &[Vec<(Tone, String)>]) {
    if rows.len() > 1 {
        page.push("\n");
        page.table(rows);
    }
}

fn samples(page: &mut Page, one: &Value) {
    let mut rows = vec![head(&[
        "SAMPLE",
        "TIME",
        "REQUEST",
        "CALLER",
        "POLICY",
        "CANDIDATE",
        "DECISION ID",
    ])];
    for kind in ["denies", "permits", "terms"] {
        let of = items(one, "samples").filter(|sample| text(sample, "flip") == kind);
        for sample in of.take(SHOWN) {
            let terms: Vec<&str> = items(sample, "terms").filter_map(Value::as_str).collect();
            let mut to = text(sample, "to").to_owned();
            if !terms.is_empty() {
                to.push_str(&format!(" (other {})", terms.join(", ")));
            }
            rows.push(vec![
                (Tone::Plain, arrow(kind).to_owned()),
                (Tone::Faint, text(sample, "time").to_owned()),
                (
                    Tone::Plain,
                    format!("{} {}", text(sample, "method"), text(sample, "path")),
                ),
                (Tone::Plain, text(sample, "caller").to_owned()),
                (Tone::Plain, text(sample, "from").to_owned()),
                (Tone::Plain, to),
                (Tone::Faint, text(sample, "decision_id").to_owned()),
            ]);
        }
    }
    if rows.len() > 1 {
        page.push("\n");
        page.table(&rows);
        page.line(&[(Tone::Faint, "why: portcullis explain DECISION_ID")]);
    }
}

fn done(name: &str, order: &str, answer: &Value) -> Page {
    let mut page = Page::new();
    let changed = answer.get("changed") == Some(&json!(true));
    let said = match (order, changed) {
        ("reset", _) => "what was counted is forgotten".to_owned(),
        ("resume", true) => "it decides again".to_owned(),
        ("resume", false) => "it had not gone back".to_owned(),
        ("back", true) => "its policy decides again".to_owned(),
        _ => "it was back already".to_owned(),
    };
    page.line(&[
        (Tone::Strong, name),
        (Tone::Plain, ": "),
        (Tone::Plain, &said),
    ]);
    page
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_are_never_rounded_up_to_all_and_numbers_are_grouped() {
        assert_eq!(share(999_999, 1_000_000), "99.99%");
        assert_eq!(share(3, 3), "100.00%");
        assert_eq!(share(0, 0), "-");
        assert_eq!(grouped(1_234_567), "1,234,567");
        assert_eq!(grouped(12), "12");
    }

    #[test]
    fn a_name_cannot_lead_to_another_page() {
        assert!(plain("a/reset").is_err());
        assert!(plain("a?b").is_err());
        assert!(plain("orders-v2.1_x").is_ok());
    }
}
