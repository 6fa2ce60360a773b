//! `portcullis policy who-can`: who would be let through to one path.

use std::path::Path;
use std::process::ExitCode;

use serde_json::json;

use super::search::{MAX_EVALUATIONS, Proof, Universe, Way, Ways, caller, search};
use crate::authz::inspect::{Subject, Vocabulary, vocabulary};
use crate::policy::scenario::{
    Caller, Callers, Ground, RequestArgs, Stage, Told, Unanswered, Wanted, filled,
};
use crate::policy::show::{ConfigArgs, Format, Page, Progress, Tone, aside, count, say_json};

/// What is asked.
#[derive(Debug, clap::Args)]
pub struct WhoCanArgs {
    #[command(flatten)]
    config: ConfigArgs,
    #[command(flatten)]
    request: RequestArgs,
    /// Callers by name; by default callers.yaml beside the configuration
    #[arg(long, value_name = "FILE")]
    callers: Option<std::path::PathBuf>,
    /// How to write the answer
    #[arg(long, value_enum, default_value_t)]
    format: Format,
}

/// What stands for a parameter of a path template.
const SAMPLE: &str = "1";

/// The ways in with one proof.
#[derive(Debug)]
pub struct ByProof {
    /// The proof.
    pub proof: Proof,
    /// What was found.
    pub ways: Ways,
}

/// What a policy's block says, as words for the search; none for open routes.
pub fn words_of(ground: &Ground, policy: &str) -> Option<Vocabulary> {
    let block = ground.document.policies.get(policy)?;
    let words = vocabulary(&Subject {
        paths: block.files.clone(),
        beside: ground.file.clone(),
        entrypoints: vec![block.entrypoint.clone()],
        document: block.input,
        ..Subject::default()
    });
    if block.bundles.is_empty() {
        return words;
    }
    let mut words = words.unwrap_or_default();
    words.partial = true;
    Some(words)
}

/// Searches the ways in to one request, with each proof that its route takes.
///
/// # Errors
/// When the request cannot be written down.
pub fn ways_in(
    ground: &Ground,
    wanted: &Wanted,
    told: &Told,
    words: &Vocabulary,
    budget: usize,
    progress: &mut Progress,
) -> Result<Vec<ByProof>, Unanswered> {
    let mut found = Vec::new();
    for proof in Proof::of_route(&told.needs) {
        let universe = Universe::of(words, &proof, &ground.document);
        let mut failed = None;
        let mut asked = 0;
        let mut ways = search(&universe, budget, |facts| {
            asked += 1;
            progress.at(asked, budget);
            let (caller, wanted) = caller(facts, &proof, &ground.document, wanted);
            match ground.ask(&wanted, &caller) {
                Ok(told) if told.allowed() => Some(told.reason),
                Ok(_) => None,
                Err(error) => {
                    failed.get_or_insert(error);
                    None
                }
            }
        });
        if let Some(error) = failed {
            return Err(error);
        }
        ways.unsure = ways.unsure.or_else(|| words.doubt());
        found.push(ByProof { proof, ways });
    }
    Ok(found)
}

/// What became of a caller by name.
#[derive(Debug)]
struct Named {
    name: String,
    told: Told,
}

/// Answers; exit code 0 when somebody may, 1 when nobody was found.
///
/// # Errors
/// When the question cannot be answered.
pub fn run(args: &WhoCanArgs) -> Result<ExitCode, Unanswered> {
    let mut request = args.request.clone();
    // A template stands for the paths that it matches.
    request.url = request.url.map(|url| filled(&url, SAMPLE));
    let wanted = request.read()?;
    let ground = Ground::load(&args.config.config)?;
    aside(ground.note(&args.config.config.display().to_string()));
    let first = ground.ask(&wanted, &Caller::anonymous())?;
    let words = first
        .policy
        .as_ref()
        .and_then(|(name, _)| words_of(&ground, name));
    let mut progress = Progress::of("asking the policy");
    let found = match (&words, first.stage) {
        (_, Stage::Request | Stage::Route) => Vec::new(),
        (words, _) => {
            let none = Vocabulary::default();
            let words = words.as_ref().unwrap_or(&none);
            ways_in(
                &ground,
                &wanted,
                &first,
                words,
                MAX_EVALUATIONS,
                &mut progress,
            )?
        }
    };
    progress.done();
    let named = names(&ground, &wanted, args.callers.as_deref())?;
    let somebody = found.iter().any(|one| !one.ways.ways.is_empty());
    match args.format {
        Format::Json => say_json(&as_json(&first, &found, &named)),
        Format::Text => page(&ground, &first, &found, &named).show(),
    }
    Ok(ExitCode::from(u8::from(!somebody)))
}

fn names(ground: &Ground, wanted: &Wanted, file: Option<&Path>) -> Result<Vec<Named>, Unanswered> {
    let callers = Callers::find(file, &ground.file)?;
    callers
        .by_name
        .iter()
        .map(|(name, caller)| {
            let told = ground.ask(wanted, caller)?;
            Ok(Named {
                name: name.clone(),
                told,
            })
        })
        .collect()
}

/// A way in words.
pub fn words(way: &Way, proof: &Proof) -> String {
    let facts: Vec<String> = way.facts.iter().map(super::search::Fact::words).collect();
    match (facts.is_empty(), proof) {
        (true, Proof::Nothing) => "everybody, without a credential".to_owned(),
        (true, proof) => format!("everybody with a {}", proof.words()),
        (false, _) => facts.join(" + "),
    }
}

fn as_json(first: &Told, found: &[ByProof], named: &[Named]) -> serde_json::Value {
    json!({
        "request": first.seen.as_ref().map(|seen| json!({
            "method": seen.method, "host": seen.host, "path": seen.path,
        })),
        "route": first.route,
        "policy": first.policy.as_ref().map(|(name, revision)| json!({"name": name, "revision": revision})),
        "by_proof": found.iter().map(|one| json!({
            "proof": one.proof.words(),
            "ways": one.ways.ways.iter().map(|way| json!({
                "facts": way.facts.iter().map(super::search::Fact::words).collect::<Vec<_>>(),
                "reason": way.reason,
            })).collect::<Vec<_>>(),
            "evaluations": one.ways.evaluations,
            "facts_tried": one.ways.facts,
            "complete": one.ways.unsure.is_none(),
            "unsure": one.ways.unsure,
        })).collect::<Vec<_>>(),
        "callers": named.iter().map(|one| json!({
            "name": one.name, "allowed": one.told.allowed(), "reason": one.told.reason,
        })).collect::<Vec<_>>(),
    })
}

fn page(ground: &Ground, first: &Told, found: &[ByProof], named: &[Named]) -> Page {
    let mut page = Page::new();
    if let Some(seen) = &first.seen {
        let text = format!("{} {}", seen.method, seen.path);
        let route = match (&first.route, &first.policy) {
            (Some(route), Some((policy, _))) => format!("  route {route}, policy {policy}"),
            _ => String::new(),
        };
        page.line(&[(Tone::Strong, &text), (Tone::Faint, &route)]);
    }
    if first.stage <= Stage::Route {
        let detail = first.detail.as_deref().unwrap_or("it is not taken");
        page.line(&[
            (Tone::Bad, "nobody"),
            (Tone::Plain, ": "),
            (Tone::Plain, detail),
        ]);
        return page;
    }
    for one in found {
        if one.ways.ways.is_empty() {
            let head = format!("with {}: ", one.proof.words());
            page.line(&[(Tone::Plain, &head), (Tone::Bad, "nobody was found")]);
            continue;
        }
        page.line(&[(Tone::Plain, &format!("with {}:", one.proof.words()))]);
        let rows: Vec<_> = one
            .ways
            .ways
            .iter()
            .map(|way| {
                vec![
                    (Tone::Plain, " ".to_owned()),
                    (Tone::Good, words(way, &one.proof)),
                    (Tone::Faint, way.reason.clone().unwrap_or_default()),
                ]
            })
            .collect();
        page.table(&rows);
    }
    if !named.is_empty() {
        let callers = if ground.document.routes.is_empty() {
            ""
        } else {
            "callers by name:"
        };
        page.line(&[(Tone::Plain, callers)]);
        let rows: Vec<_> = named
            .iter()
            .map(|one| {
                let (tone, word) = if one.told.allowed() {
                    (Tone::Good, "yes")
                } else {
                    (Tone::Bad, "no")
                };
                vec![
                    (Tone::Plain, " ".to_owned()),
                    (Tone::Plain, one.name.clone()),
                    (tone, word.to_owned()),
                    (Tone::Faint, one.told.reason.clone().unwrap_or_default()),
                ]
            })
            .collect();
        page.table(&rows);
    }
    let evaluations: usize = found.iter().map(|one| one.ways.evaluations).sum();
    let facts: usize = found.iter().map(|one| one.ways.facts).sum();
    let text = format!(
        "asked the policy {} about {} that it or its data name",
        count(evaluations, "time"),
        count(facts, "fact")
    );
    page.line(&[(Tone::Faint, &text)]);
    let mut unsure: Vec<&str> = found.iter().filter_map(|one| one.ways.unsure).collect();
    unsure.dedup();
    if unsure.is_empty() {
        let text = "complete for callers of these facts, if more facts never take access away";
        page.line(&[(Tone::Faint, text)]);
    }
    for why in unsure {
        page.line(&[(Tone::Warn, "not complete: "), (Tone::Plain, why)]);
    }
    page
}
