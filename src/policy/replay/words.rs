//! The answer for people and for machines.

use std::path::PathBuf;

use serde_json::{Value, json};

use super::judges::Judges;
use super::table::Written;
use super::tally::{Change, Example, Group, Kind, Left, Tally};
use super::{counted, thousands};
use crate::policy::output::{Output, Tone};

/// Most kinds of one change that are shown.
const SHOWN: usize = 40;
/// Most callers that are shown of a kind.
const CALLERS: usize = 5;
/// Most callers of a kind in JSON.
const MANY_CALLERS: usize = 100;

/// For people.
pub(super) fn text(judges: &Judges, tally: &Tally, from: &[PathBuf], out: &Output) -> String {
    let mut text = String::new();
    let shown = from.iter().map(|path| match path.to_str() {
        Some("-") => "standard input".to_owned(),
        _ => path.display().to_string(),
    });
    let from: Vec<String> = shown.collect();
    text.push_str(&format!(
        "{} of {} asked again by {}\n",
        counted(tally.chosen, "record"),
        few(&from),
        judges.from
    ));
    for judge in judges.all() {
        let line = format!(
            "  policy {}: {} at {}, {}",
            judge.name,
            judge.entrypoint,
            judge.policy.revision(),
            judge.policy.engine()
        );
        text.push_str(&format!("{}\n", out.tone(Tone::Faint, &line)));
    }
    sums(tally, out, &mut text);
    for (change, title, tone) in [
        (Change::Loss, "lose access", Tone::Bad),
        (Change::Gain, "gain access", Tone::Warn),
        (Change::Reason, "get another reason", Tone::Strong),
        (Change::Answer, "get another answer", Tone::Strong),
    ] {
        kinds(tally, change, &out.tone(tone, title), out, &mut text);
    }
    causes(&tally.left, "could not be judged", out, &mut text);
    causes(&tally.unread, "could not be read", out, &mut text);
    text
}

fn sums(tally: &Tally, out: &Output, text: &mut String) {
    let flips = tally.gains() + tally.losses();
    let words = format!("{} flipped", thousands(flips));
    let tone = if flips == 0 { Tone::Good } else { Tone::Bad };
    text.push_str(&format!(
        "{} ({} gain, {} lose access), {} with another reason, {} with another answer, {} the same\n",
        out.tone(tone, &words),
        thousands(tally.gains()),
        thousands(tally.losses()),
        thousands(tally.of(Change::Reason)),
        thousands(tally.of(Change::Answer)),
        thousands(tally.same),
    ));
    text.push_str(&format!(
        "{} of {} equal byte by byte; each was evaluated, none taken from a cache\n",
        thousands(tally.equal),
        counted(tally.compared, "answer"),
    ));
    if tally.left_out() > 0 {
        let words = format!("{} not judged, see below", thousands(tally.left_out()));
        text.push_str(&format!("{}\n", out.tone(Tone::Warn, &words)));
    }
    if tally.by_candidates > 0 {
        let count = counted(tally.by_candidates, "answer");
        text.push_str(&format!("{count} came from candidates\n"));
    }
    if tally.retried > 0 {
        text.push_str(&format!(
            "{} asked more than once, for the budget was spent\n",
            counted(tally.retried, "record")
        ));
    }
}

fn kinds(tally: &Tally, change: Change, title: &str, out: &Output, text: &mut String) {
    let mut found: Vec<(&Kind, &Group)> = tally
        .kinds
        .iter()
        .filter(|(kind, _)| kind.change == change)
        .collect();
    if found.is_empty() {
        return;
    }
    found.sort_by(|a, b| b.1.records.cmp(&a.1.records).then_with(|| a.0.cmp(b.0)));
    text.push_str(&format!("\n{title}  {}\n", thousands(tally.of(change))));
    for (kind, group) in found.iter().take(SHOWN) {
        text.push_str(&format!(
            "  {:>9}  {}  {} → {}\n",
            thousands(group.records),
            plain(&kind.route),
            plain(&kind.was),
            plain(&kind.now),
        ));
        text.push_str(&format!("             {}\n", callers(group)));
        for example in &group.examples {
            let line = format!(
                "             {}  {}  {}  {}",
                example.place,
                plain(&example.request),
                plain(&example.caller),
                id(example),
            );
            text.push_str(&format!("{}\n", out.tone(Tone::Faint, &line)));
        }
    }
    let more = found.len().saturating_sub(SHOWN);
    if more > 0 {
        text.push_str(&format!(
            "             and {more} more kinds: `--format json`\n"
        ));
    }
}

/// What the record is found by.
fn id(example: &Example) -> &str {
    let id = example.decision_id.as_deref();
    id.unwrap_or(&example.request_id)
}

/// The callers of a kind, those with most records first.
fn by_records(group: &Group) -> Vec<(&str, u64)> {
    let mut all: Vec<(&str, u64)> = group
        .callers
        .iter()
        .map(|(name, records)| (name.as_str(), *records))
        .collect();
    all.sort_by(|a, b| b.1.cmp(&a.1).then_with(|| a.0.cmp(b.0)));
    all
}

fn callers(group: &Group) -> String {
    let all = by_records(group);
    let mut text = match group.others {
        0 => format!("{}: ", counted(len(all.len()), "caller")),
        _ => format!("more than {}: ", counted(len(all.len()), "caller")),
    };
    let first = all.iter().take(CALLERS);
    let shown: Vec<String> = first
        .map(|(name, records)| format!("{} {}", plain(name), thousands(*records)))
        .collect();
    text.push_str(&shown.join(", "));
    if all.len() > CALLERS {
        text.push_str(", …");
    }
    text
}

fn len(number: usize) -> u64 {
    u64::try_from(number).unwrap_or(u64::MAX)
}

fn causes(
    all: &std::collections::BTreeMap<String, Left>,
    title: &str,
    out: &Output,
    text: &mut String,
) {
    if all.is_empty() {
        return;
    }
    let sum: u64 = all.values().map(|left| left.records).sum();
    text.push_str(&format!(
        "\n{}  {}\n",
        out.tone(Tone::Warn, title),
        thousands(sum)
    ));
    let mut found: Vec<(&String, &Left)> = all.iter().collect();
    found.sort_by(|a, b| b.1.records.cmp(&a.1.records).then_with(|| a.0.cmp(b.0)));
    for (cause, left) in found {
        let first = out.tone(Tone::Faint, &format!("first {}", left.first.1));
        text.push_str(&format!(
            "  {:>9}  {}  {first}\n",
            thousands(left.records),
            plain(cause)
        ));
    }
}

/// Texts of requests and policies must not write to the terminal.
fn plain(text: &str) -> String {
    let clean = text
        .chars()
        .map(|c| if c.is_control() { '\u{fffd}' } else { c });
    clean.take(160).collect()
}

/// `a.jsonl`, or `a.jsonl and 3 more`.
fn few(names: &[String]) -> String {
    match names {
        [] => String::new(),
        [one] => one.clone(),
        [first, more @ ..] => format!("{first} and {} more", more.len()),
    }
}

/// For machines.
pub(super) fn json(judges: &Judges, tally: &Tally, written: Option<&Written>) -> String {
    let policies: Vec<Value> = judges
        .all()
        .map(|judge| {
            json!({
                "name": judge.name,
                "entrypoint": judge.entrypoint,
                "revision": judge.policy.revision(),
                "engine": judge.policy.engine(),
            })
        })
        .collect();
    let changes: Vec<Value> = tally
        .kinds
        .iter()
        .map(|(kind, group)| change(kind, group))
        .collect();
    let document = json!({
        "policies": policies,
        "records": {
            "read": tally.read,
            "chosen": tally.chosen,
            "judged": tally.judged(),
            "not_judged": tally.left_out(),
            "gains": tally.gains(),
            "losses": tally.losses(),
            "other_reason": tally.of(Change::Reason),
            "other_answer": tally.of(Change::Answer),
            "same": tally.same,
            "by_candidates": tally.by_candidates,
            "asked_again": tally.retried,
        },
        "answers": {
            "compared": tally.compared,
            "equal": tally.equal,
            "from_cache": 0,
        },
        "changes": changes,
        "not_judged": told(&tally.left),
        "not_read": told(&tally.unread),
        "cases": written.map(Written::json),
    });
    format!("{document:#}\n")
}

fn told(causes: &std::collections::BTreeMap<String, Left>) -> Vec<Value> {
    causes
        .iter()
        .map(|(cause, left)| json!({"why": cause, "records": left.records, "first": left.first.1}))
        .collect()
}

fn change(kind: &Kind, group: &Group) -> Value {
    let callers: Vec<Value> = by_records(group)
        .into_iter()
        .take(MANY_CALLERS)
        .map(|(name, records)| json!({"caller": name, "records": records}))
        .collect();
    let examples: Vec<Value> = group
        .examples
        .iter()
        .map(|example| {
            json!({
                "place": example.place,
                "time": example.time,
                "request": example.request,
                "caller": example.caller,
                "request_id": example.request_id,
                "decision_id": example.decision_id,
            })
        })
        .collect();
    json!({
        "change": kind.change.word(),
        "policy": kind.policy,
        "route": kind.route,
        "was": kind.was,
        "now": kind.now,
        "records": group.records,
        "callers": callers,
        "callers_in_all": group.callers.len(),
        "records_of_other_callers": group.others,
        "examples": examples,
    })
}
