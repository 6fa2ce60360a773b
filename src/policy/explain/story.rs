//! A record in words, for whoever is paged at night: what was asked, what was decided, what failed
//! where and with which values, and what would have had to be different.

use std::collections::BTreeSet;

use serde_json::Value;

use super::super::output::{Output, Tone, count};
use crate::authz::workbench::why::{Because, Condition, Kind, Way, Why};

/// Most ways that are told in full.
const MAX_WAYS: usize = 4;
/// Most sentences of what would have had to be different.
const MAX_WISHES: usize = 6;
/// Where values are put below a condition.
const WIDEST: usize = 48;

/// The text at a path of the record.
fn at<'r>(record: &'r Value, pointer: &str) -> Option<&'r str> {
    record.pointer(pointer).and_then(Value::as_str)
}

/// The whole page.
pub(super) fn told(record: &Value, why: &Result<Why, String>, place: &str, out: &Output) -> String {
    let mut text = heading(record, out);
    for (label, value) in facts(record, place) {
        let label = out.tone(Tone::Faint, &format!("  {label:<9}"));
        text.push_str(&format!("{label} {value}\n"));
    }
    text.push('\n');
    for sentence in sentences(record) {
        text.push_str(&format!("{sentence}\n"));
    }
    match why {
        Ok(why) => text.push_str(&reasons(why, out)),
        // Where no policy was asked there is no reason to be missed.
        Err(_) if record.get("decision").is_none_or(Value::is_null) => {}
        Err(why_not) => {
            let head = out.tone(Tone::Warn, "The policy's reason is not told");
            text.push_str(&format!("\n{head}: {why_not}.\n"));
            if let Some(kept) = record.get("why") {
                text.push_str(&format!("The record itself says: {kept:#}\n"));
            }
        }
    }
    text
}

fn heading(record: &Value, out: &Output) -> String {
    let refused = record.get("refusal").is_some_and(|it| !it.is_null());
    let decision = at(record, "/decision");
    let (tone, word) = match (decision, refused) {
        (Some("deny"), _) => (Tone::Bad, "DENIED"),
        (Some(_), false) => (Tone::Good, "ALLOWED"),
        (Some(_), true) => (Tone::Warn, "ALLOWED, THEN REFUSED"),
        (None, true) => (Tone::Bad, "REFUSED"),
        (None, false) => (Tone::Good, "ANSWERED"),
    };
    let status = record.get("status").and_then(Value::as_u64);
    let status = status.map_or("no answer".to_owned(), |status| status.to_string());
    let method = at(record, "/method").unwrap_or("?");
    let path = at(record, "/path").unwrap_or("?");
    let query = at(record, "/query").map_or(String::new(), |query| format!("?{query}"));
    let asked = out.tone(Tone::Strong, &format!("{method} {path}{query}"));
    let word = out.tone(tone, &format!("{word} {status}"));
    format!("{word}  {asked}  by {}\n", caller(record))
}

/// Who asked, in a few words.
fn caller(record: &Value) -> String {
    let Some(method) = at(record, "/caller/method") else {
        return "somebody who was not identified".to_owned();
    };
    if method == "anonymous" {
        return "anybody: the route asks nobody who they are".to_owned();
    }
    let subject = at(record, "/caller/subject").unwrap_or("?");
    match at(record, "/caller/client").filter(|client| *client != subject) {
        Some(client) => format!("{subject}, through {client}"),
        None => subject.to_owned(),
    }
}

fn facts(record: &Value, place: &str) -> Vec<(&'static str, String)> {
    let mut facts = Vec::new();
    let mut put = |label, value: Option<String>| {
        if let Some(value) = value {
            facts.push((label, value));
        }
    };
    let span = |name: &str| {
        let millis = record.pointer(&format!("/duration_ms/{name}"))?.as_f64()?;
        Some(format!("{millis} ms"))
    };
    let took = match (span("decision"), span("total")) {
        (Some(decision), Some(total)) => format!(", decided after {decision}, over after {total}"),
        (None, Some(total)) => format!(", over after {total}"),
        (_, None) => String::new(),
    };
    put(
        "when",
        at(record, "/time").map(|time| format!("{time}{took}")),
    );
    let listener = at(record, "/listener").unwrap_or("?");
    let client = at(record, "/client").unwrap_or("?");
    let host = at(record, "/host").unwrap_or("?");
    put(
        "where",
        Some(format!("{host} on listener {listener}, from {client}")),
    );
    put(
        "who",
        at(record, "/caller/issuer").map(|issuer| {
            let method = at(record, "/caller/method").unwrap_or("?");
            let token = at(record, "/caller/token_id");
            let token = token.map_or(String::new(), |id| format!(", token {id}"));
            format!("{method}, by {issuer}{token}")
        }),
    );
    put(
        "route",
        Some(at(record, "/route").unwrap_or("none matches").to_owned()),
    );
    put(
        "policy",
        at(record, "/policy/name").map(|name| {
            let revision = at(record, "/policy/revision").filter(|it| !it.is_empty());
            let revision = revision.map_or(String::new(), |it| format!(", revision {it}"));
            let candidate = at(record, "/policy/candidate");
            let candidate = candidate.map_or(String::new(), |it| format!(", candidate {it}"));
            let cached = record.pointer("/policy/cached").and_then(Value::as_bool);
            let cached = match cached {
                Some(true) => ", as answered to an equal question before",
                _ => "",
            };
            format!("{name}{revision}{candidate}{cached}")
        }),
    );
    put("reason", at(record, "/reason").map(str::to_owned));
    let ids = [
        ("decision", "/decision_id"),
        ("request", "/request_id"),
        ("trace", "/trace_id"),
    ];
    let ids: Vec<String> = ids
        .iter()
        .filter_map(|(name, pointer)| Some(format!("{name} {}", at(record, pointer)?)))
        .collect();
    put("ids", Some(ids.join(", ")));
    put("record", Some(format!("from {place}")));
    facts
}

/// What happened, stage by stage, as far as the record tells it.
pub(super) fn sentences(record: &Value) -> Vec<String> {
    let mut told = Vec::new();
    let code = at(record, "/refusal/code");
    let reason = at(record, "/reason").unwrap_or_default();
    let detail = at(record, "/refusal/detail").unwrap_or_default();
    let endpoint = at(record, "/endpoint");
    let upstream = at(record, "/upstream").unwrap_or("?");
    let attempts = record.get("attempts").and_then(Value::as_u64).unwrap_or(0);
    let tried = match (endpoint, attempts) {
        (Some(endpoint), 0 | 1) => format!("{upstream} ({endpoint})"),
        (Some(endpoint), many) => format!("{upstream} ({endpoint}, after {many} attempts)"),
        (None, _) => upstream.to_owned(),
    };
    match code {
        None => match at(record, "/decision") {
            Some("allow") => told.push(format!("It was let through to {tried}.")),
            Some(_) => {}
            None => told.push("The gateway answered it itself.".to_owned()),
        },
        Some("denied" | "policy_unavailable" | "body_unreadable") => {
            told.push(policy_sentence(record, reason));
        }
        Some("no_route") => told.push(format!(
            "No route takes {} {} on {}. Which there are: `portcullis policy routes`.",
            at(record, "/method").unwrap_or("?"),
            at(record, "/path").unwrap_or("?"),
            at(record, "/host").unwrap_or("this host"),
        )),
        Some("unauthenticated" | "several_credentials" | "authentication_unavailable") => {
            told.push(format!(
                "It was not known who asks: {}.",
                credential(reason)
            ));
            told.push(format!("In the gateway's words: {detail}."));
        }
        Some("rate_limited") => {
            told.push(format!("Too many requests came: {detail}."));
            told.push(match at(record, "/decision") {
                Some(_) => {
                    "The policy had allowed it; the limit is one that counts verified callers."
                        .to_owned()
                }
                None if record.get("caller").is_none_or(Value::is_null) => {
                    "Nobody was identified yet: the limit counts addresses, or failed logins."
                        .to_owned()
                }
                None => "No policy was asked.".to_owned(),
            });
        }
        Some("upstream_unreachable") => told.push(format!(
            "It was allowed, and the upstream {tried} could not be reached or broke off: {detail}."
        )),
        Some("upstream_timeout") => told.push(format!(
            "It was allowed, and the upstream {tried} did not answer in time: {detail}."
        )),
        Some("upstream_saturated") => told.push(format!(
            "It was allowed, and all connections to the upstream {tried} were busy: {detail}."
        )),
        Some("deadline") => told.push(match at(record, "/decision") {
            Some(_) => {
                format!("The deadline (`head_timeout`) passed while {tried} was waited for.")
            }
            None => "The deadline (`head_timeout`) passed before anything was decided.".to_owned(),
        }),
        Some("overloaded") => told.push(format!("The gateway had no room for it: {detail}.")),
        Some("internal") => told.push(
            "Something inside the gateway went wrong; its log at that time has more.".to_owned(),
        ),
        Some("body_too_large" | "body_timeout" | "body_broken_off") => {
            told.push(format!("The request's body could not be taken: {detail}."));
        }
        Some(_) => told.push(format!(
            "The request was turned away before anybody was asked: {detail}."
        )),
    }
    match at(record, "/outcome") {
        Some("complete") | None => {}
        Some("client_gone") => told.push("The client hung up before the answer's end.".to_owned()),
        Some("upstream_broke") => told.push(format!(
            "The answer broke off: {}.",
            at(record, "/detail").unwrap_or("the upstream ended it")
        )),
        Some("permission_ended") => told.push(format!(
            "The answer was cut, for the permission had ended: {}.",
            at(record, "/detail").unwrap_or("no reason recorded")
        )),
        Some("panic") => told.push("The gateway failed inside while it answered.".to_owned()),
        Some(how) => told.push(format!("The exchange ended with: {how}.")),
    }
    told
}

/// What a policy's no, or its failure, means.
fn policy_sentence(record: &Value, reason: &str) -> String {
    let policy = at(record, "/policy/name").unwrap_or("?");
    let detail = at(record, "/detail");
    let more = detail.map_or(String::new(), |detail| format!(" ({detail})"));
    match reason {
        "policy.undefined" => {
            format!("The policy {policy} gave no answer for this request: no rule held.")
        }
        "policy.answer" => format!("The policy {policy} gave an answer that is none{more}."),
        "policy.body" => {
            format!("The policy {policy} looks at the body, which cannot be read in one way{more}.")
        }
        "policy.error" => format!("The policy {policy} could not be evaluated{more}."),
        "policy.budget" => format!("The policy {policy} took more than it may{more}."),
        "policy.panic" => format!("The engine failed over the policy {policy}{more}."),
        "policy.unavailable" => format!("The policy {policy} is not there yet{more}."),
        _ => format!("The policy {policy} said no: {reason}."),
    }
}

/// What a code of authentication means, and what helps.
fn credential(code: &str) -> String {
    let told = match code {
        "credential.missing" => "the request carries no credential that the route takes",
        "credential.several" => "the request carries more than one credential",
        "issuer.unavailable" => {
            "the issuer's keys are not there, so nothing could be checked; `/keys` and `/ready` on \
             the admin listener say why"
        }
        "token.malformed" => "what was sent is no token",
        "token.expired" => "the token has expired: its `exp` has passed",
        "token.not_yet_valid" => {
            "the token is not valid yet: its `nbf` or `iat` lies ahead; a clock may be wrong"
        }
        "token.too_old" => "the token is older than the issuer's `max_age` here",
        "token.audience" => {
            "the token is meant for another audience (`aud`) than the issuer's block lists"
        }
        "token.issuer" => "no issuer of the route has the token's `iss`",
        "token.algorithm" => "the token's algorithm is not in the issuer's `algorithms`",
        "token.type" => "the token's `typ` is not accepted",
        "token.kind" => "the token was made for something else, such as an ID token",
        "token.claims" => "a claim that is required is missing, or is of another type",
        "token.subject" => "the token names no subject",
        "token.signature" => "the token's signature is wrong",
        "token.unknown_key" => "the issuer publishes no key of the token's `kid`",
        "token.key_distrusted" => "an operator distrusts the key that signed the token",
        "token.key_mismatch" => "the key may not be used with the token's algorithm",
        "token.confirmation" => {
            "the token is bound to a key or certificate that was not shown (`cnf`)"
        }
        "token.header" => "the token's header has a parameter that is never allowed",
        "token.size" => "the token is longer than the issuer's block allows",
        "certificate.expired" => "the client certificate has expired",
        "certificate.subject" => "the client certificate has no name of the configured kind",
        other if other.starts_with("revoked") || other.ends_with(".revoked") => {
            "the credential was revoked; `/revocations` on the admin listener lists what is"
        }
        other => return format!("the credential was refused ({other})"),
    };
    format!("{told} ({code})")
}

/// Why the policy said what it said.
fn reasons(why: &Why, out: &Output) -> String {
    let mut text = String::new();
    if !why.rules.is_empty() {
        text.push_str(&format!(
            "\n{}\n",
            out.tone(Tone::Strong, "Rules that held")
        ));
        let width = why.rules.iter().map(|held| held.rule.chars().count()).max();
        let width = width.unwrap_or(0).min(WIDEST);
        for held in &why.rules {
            let place = out.tone(Tone::Faint, &format!("{}:{}", held.file, held.line));
            text.push_str(&format!("  {:width$}  {place}\n", held.rule));
        }
    }
    if !why.ways.is_empty() {
        let title = match why.ways.len() {
            1 => "The one way to yes did not hold",
            _ => "No way to yes held; the nearest first",
        };
        text.push_str(&format!("\n{}\n", out.tone(Tone::Strong, title)));
        let mut page = Page {
            text: &mut text,
            out,
        };
        for way in why.ways.iter().take(MAX_WAYS) {
            page.way(way, 1);
        }
        let more = why.ways.len().saturating_sub(MAX_WAYS);
        if more > 0 {
            text.push_str(&format!(
                "  and {} (`--format json` has all)\n",
                count(more, "more way")
            ));
        }
        let wishes = wishes(why);
        if !wishes.is_empty() {
            let title = match wishes.len() {
                1 => "What would have had to be different",
                _ => "What would have had to be different: one of",
            };
            text.push_str(&format!("\n{}\n", out.tone(Tone::Strong, title)));
            let width = wishes.iter().map(|(wish, _)| wish.chars().count()).max();
            let width = width.unwrap_or(0).min(2 * WIDEST);
            for (wish, place) in wishes.iter().take(MAX_WISHES) {
                let place = out.tone(Tone::Faint, place);
                text.push_str(&format!("  {wish:width$}  {place}\n"));
            }
        }
    }
    for left in &why.left_out {
        text.push_str(&format!("\nNot looked at: {left}.\n"));
    }
    text
}

struct Page<'p> {
    text: &'p mut String,
    out: &'p Output,
}

impl Page<'_> {
    fn line(&mut self, depth: usize, text: &str) {
        self.text
            .push_str(&format!("{}{text}\n", "  ".repeat(depth)));
    }

    fn way(&mut self, way: &Way, depth: usize) {
        let place = format!("{}:{}", way.file, way.line);
        let place = self.out.tone(Tone::Faint, &place);
        let held = match (way.conditions, way.failed.kind) {
            (0, _) | (_, Kind::Value) => String::new(),
            (all, _) => format!("  ({} of {} held)", way.held, count(all, "condition")),
        };
        self.line(
            depth,
            &format!("{} gives {}{held}  {place}", way.rule, way.gives),
        );
        self.condition(&way.failed, depth + 1);
        for also in &way.also {
            self.condition(also, depth + 1);
        }
    }

    fn condition(&mut self, condition: &Condition, depth: usize) {
        let (tone, word) = match condition.kind {
            Kind::Failed => (Tone::Bad, "failed"),
            Kind::Error => (Tone::Bad, "error"),
            Kind::Earlier => (Tone::Warn, "answered before it"),
            Kind::Value => (Tone::Bad, "its value is no yes"),
            Kind::Held => (Tone::Good, "held"),
        };
        let word = self.out.tone(tone, word);
        let place = self.out.tone(Tone::Faint, &condition.at());
        self.line(depth, &format!("{word}  {}  {place}", condition.text));
        if let Some(error) = &condition.error {
            self.line(depth + 2, error);
        }
        let names = condition
            .values
            .iter()
            .map(|known| known.name.chars().count());
        let width = names.max().unwrap_or(0).min(WIDEST);
        for known in &condition.values {
            let masked = if known.masked {
                "  (masked in the record)"
            } else {
                ""
            };
            self.line(
                depth + 2,
                &format!("{:width$} = {}{masked}", known.name, known.value),
            );
        }
        for within in &condition.within {
            self.condition(within, depth + 1);
        }
        for because in &condition.because {
            self.because(because, depth + 1);
        }
    }

    fn because(&mut self, because: &Because, depth: usize) {
        if because.told {
            // Its value stands with the condition that asks for it.
            return;
        }
        let default = if because.default { ", its default" } else { "" };
        let (rule, value) = (&because.rule, &because.value);
        let rest = match (because.ways.is_empty(), because.held.is_empty()) {
            (true, true) => "",
            (true, false) => ", for this held:",
            (false, _) => ", for none of its bodies held:",
        };
        self.line(depth, &format!("{rule} is {value}{default}{rest}"));
        for held in &because.held {
            self.condition(held, depth + 1);
        }
        for way in &because.ways {
            self.way(way, depth + 1);
        }
        if because.more > 0 {
            self.line(
                depth + 1,
                &format!("and {} further off", count(because.more, "body")),
            );
        }
    }
}

/// Conditions that would have made the difference, with their places.
fn wishes(why: &Why) -> Vec<(String, String)> {
    let mut found = Vec::new();
    for way in why.ways.iter().take(MAX_WAYS) {
        wish_of_way(way, &mut found);
    }
    if found.is_empty()
        && let Some(nearest) = why.ways.first()
    {
        // More than one thing was in the way: this is where it begins.
        wish(&nearest.failed, &mut found);
    }
    let mut seen = BTreeSet::new();
    found.retain(|wish: &(String, String)| seen.insert(wish.clone()));
    found
}

fn wish_of_way(way: &Way, found: &mut Vec<(String, String)>) {
    // With more in the way, none of these would have been enough.
    if way.also.is_empty() && way.held + 1 >= way.conditions {
        wish(&way.failed, found);
    }
}

fn wish(condition: &Condition, found: &mut Vec<(String, String)>) {
    let negated = condition.text.starts_with("not ");
    match condition.kind {
        Kind::Earlier => {
            for within in &condition.within {
                if within.text.starts_with("not ") {
                    let before = found.len();
                    within.because.iter().for_each(|it| wish_of_rule(it, found));
                    if found.len() == before {
                        found.push((within.text.replacen("not ", "", 1), within.at()));
                    }
                }
            }
        }
        Kind::Failed if negated => {
            let what = condition.text.replacen("not ", "", 1);
            found.push((format!("not so: {what}"), condition.at()));
        }
        Kind::Failed | Kind::Value => {
            let before = found.len();
            condition
                .because
                .iter()
                .for_each(|it| wish_of_rule(it, found));
            for within in &condition.within {
                wish(within, found);
            }
            if found.len() == before {
                found.push((condition.text.clone(), condition.at()));
            }
        }
        Kind::Error | Kind::Held => {}
    }
}

fn wish_of_rule(because: &Because, found: &mut Vec<(String, String)>) {
    because.ways.iter().for_each(|way| wish_of_way(way, found));
}
