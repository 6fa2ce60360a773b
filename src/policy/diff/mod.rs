//! `portcullis policy diff`: who gains access and who loses it between two configurations.
//!
//! Both are compiled as the gateway would compile them. Routes that nothing has changed for are only
//! looked up; the others are asked about with callers by name, the callers of the policies' tests, and
//! the ways in that a search finds on either side (`ask::search`): what one side lets in and the other
//! does not is a change, with a request and a caller to try it with.

mod effect;
mod side;
mod words;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use serde_json::json;

use self::effect::Effect;
use self::side::Side;
use self::words::Changed;
use super::ask::search::{Fact, Proof, caller};
use super::ask::who_can::{self, ways_in};
use super::scenario::{Caller, Callers, Told, Unanswered, Wanted};
use super::show::{Format, Page, Progress, Tone, count, say_json};
use crate::authz::Policy;
use crate::document;
use crate::route::RouteConfig;

/// Evaluations for all searches together; each class of routes has its share.
const BUDGET: usize = 20_000;
/// Fewest and most evaluations for one search.
const SHARE: (usize, usize) = (200, 1_500);
/// Most callers that are taken from the tests of a policy.
const MAX_TEST_CALLERS: usize = 20;
/// Most requests that are made of one path template.
const MAX_SAMPLES: usize = 3;
/// Most ways in that other routes are asked about with.
const MAX_WAYS: usize = 200;
/// Most changes that are shown to people.
const MAX_SHOWN: usize = 40;

/// Which changes make the exit code 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum)]
enum FailOn {
    /// Every change of access or of what guards it
    #[default]
    Any,
    /// Only where somebody gains access, a guard is taken away, or a setting may let in more
    Gains,
}

/// What is asked.
#[derive(Debug, clap::Args)]
pub struct DiffArgs {
    /// A configuration file, its folder, or a git revision such as `HEAD~1`
    #[arg(value_name = "OLD", required_unless_present = "candidate")]
    old: Option<String>,
    /// The same; by default the configuration as it is now
    #[arg(value_name = "NEW")]
    new: Option<String>,
    /// The configuration file, which git revisions have under the same name
    #[arg(
        long,
        short,
        value_name = "FILE",
        default_value = "gateway.yaml",
        env = "PORTCULLIS_CONFIG"
    )]
    config: PathBuf,
    /// What would change with this candidate in the place of its policy, instead of NEW; OLD is the
    /// configuration as it is unless it is named
    #[arg(long, value_name = "NAME", conflicts_with = "new")]
    candidate: Option<String>,
    /// Callers by name; by default callers.yaml beside the new configuration
    #[arg(long, value_name = "FILE")]
    callers: Option<PathBuf>,
    /// Which changes make the exit code 1
    #[arg(long, value_enum, default_value_t)]
    fail_on: FailOn,
    /// Do not fail for what could not be searched completely
    #[arg(long)]
    allow_incomplete: bool,
    /// Show all changes, however many
    #[arg(long)]
    all: bool,
    /// How to write the answer
    #[arg(long, value_enum, default_value_t)]
    format: Format,
}

/// A caller who is treated differently.
#[derive(Debug, Clone)]
struct Change {
    gains: bool,
    /// The first route of its kind, and how many there are.
    route: String,
    path: String,
    routes: usize,
    method: String,
    /// A path to try it with.
    example: String,
    who: String,
    old: String,
    new: String,
}

/// What the comparison came to.
#[derive(Debug, Default)]
struct Compared {
    configuration: Vec<Changed>,
    /// Policies that are not what they were; who gains and loses by it is among the changes.
    policies: Vec<Changed>,
    changes: Vec<Change>,
    routes: usize,
    routes_asked: usize,
    questions: usize,
    unsure: BTreeSet<&'static str>,
    /// Ways in that were found so far, for routes that are not searched themselves.
    ways: BTreeSet<(Vec<Fact>, Proof)>,
    /// Evaluations of searches.
    searched: usize,
}

/// Compares; exit code 0 when nothing changed, 1 when something did.
///
/// # Errors
/// When one of both cannot be loaded.
pub fn run(args: &DiffArgs) -> Result<ExitCode, Unanswered> {
    let old = match &args.old {
        Some(name) => Side::open(name, &args.config)?,
        None => Side::of_file(&args.config)?,
    };
    let new = match (&args.new, &args.candidate) {
        (Some(name), _) => Side::open(name, &args.config)?,
        (None, Some(candidate)) => Side::with_candidate(&args.config, candidate)?,
        (None, None) => Side::of_file(&args.config)?,
    };
    let compared = compare(&old, &new, args.callers.as_deref())?;
    match args.format {
        Format::Json => say_json(&as_json(&old, &new, &compared)),
        Format::Text => page(&old, &new, &compared, args.all).show(),
    }
    let gains = compared.changes.iter().any(|change| change.gains)
        || compared
            .configuration
            .iter()
            .any(|change| matches!(change.effect, Effect::Opens | Effect::MayOpen));
    // What was not found may be there.
    let doubt = !args.allow_incomplete && !compared.unsure.is_empty();
    let guards = |change: &Changed| change.effect != Effect::Beside;
    let any = gains || !compared.changes.is_empty() || compared.configuration.iter().any(guards);
    let failed = match args.fail_on {
        FailOn::Any => any || doubt,
        FailOn::Gains => gains || doubt,
    };
    Ok(ExitCode::from(u8::from(failed)))
}

/// What the policies are made of, wherever their files lie: their rules, and their data.
fn revisions(side: &Side) -> BTreeMap<String, String> {
    let policies = side.ground.snapshot.policies.iter();
    let made_of = |policy: &Policy| {
        let data = policy.decided_by.data.as_deref().unwrap_or_default();
        format!("rules {}, data {data}", policy.text())
    };
    policies
        .map(|(name, policy)| (name.clone(), made_of(policy)))
        .collect()
}

/// Routes that both sides treat alike.
struct Class<'c> {
    old: Option<&'c RouteConfig>,
    new: Option<&'c RouteConfig>,
    names: Vec<&'c str>,
}

fn compare(old: &Side, new: &Side, callers: Option<&Path>) -> Result<Compared, Unanswered> {
    let mut compared = Compared {
        configuration: words::configuration(&old.ground.document, &new.ground.document),
        ..Compared::default()
    };
    let (before, after) = (revisions(old), revisions(new));
    words::policies(&before, &after, &mut compared.policies);
    if [old, new].iter().any(|side| {
        side.ground
            .document
            .policies
            .values()
            .any(|policy| !policy.bundles.is_empty())
    }) {
        compared.unsure.insert(
            "what bundles hold is not in the files: it is compared as far as it was kept here",
        );
    }
    let callers = Callers::find(callers, &new.ground.file)?;
    let alike = words::same_ground(&old.ground.document, &new.ground.document);
    let by_name = |side: &'_ Side| -> BTreeMap<String, usize> {
        let routes = side.ground.document.routes.iter().enumerate();
        routes.map(|(at, route)| (route.name.clone(), at)).collect()
    };
    let (olds, news) = (by_name(old), by_name(new));
    let names: BTreeSet<&String> = olds.keys().chain(news.keys()).collect();
    compared.routes = names.len();
    let route = |side: &'_ Side, at: Option<&usize>| -> Option<RouteConfig> {
        side.ground.document.routes.get(*at?).cloned()
    };
    let pairs: Vec<(&String, Option<RouteConfig>, Option<RouteConfig>)> = names
        .iter()
        .map(|name| {
            let pair = (route(old, olds.get(*name)), route(new, news.get(*name)));
            (*name, pair.0, pair.1)
        })
        .collect();
    let mut classes: BTreeMap<(String, String), Class<'_>> = BTreeMap::new();
    for (name, before, after) in &pairs {
        let key = |side: &Side, route: &Option<RouteConfig>| {
            route
                .as_ref()
                .map(|route| side.key(route))
                .unwrap_or_default()
        };
        let (left, right) = (key(old, before), key(new, after));
        if alike && left == right && is_taken_alike(old, new, before, after)? {
            continue;
        }
        classes
            .entry((left, right))
            .or_insert_with(|| Class {
                old: before.as_ref(),
                new: after.as_ref(),
                names: Vec::new(),
            })
            .names
            .push(name);
    }
    let share = (BUDGET / classes.len().max(1)).clamp(SHARE.0, SHARE.1);
    let mut progress = Progress::of("comparing routes");
    let all = classes.len();
    for (done, class) in classes.values().enumerate() {
        progress.at(done, all);
        compared.routes_asked += class.names.len();
        compare_class(old, new, class, &callers, share, &mut compared)?;
    }
    progress.done();
    Ok(compared)
}

/// Whether a request that is made for this route finds it on both sides: another route may have come
/// that takes it.
fn is_taken_alike(
    old: &Side,
    new: &Side,
    before: &Option<RouteConfig>,
    after: &Option<RouteConfig>,
) -> Result<bool, Unanswered> {
    if words::same_table(&old.ground.document, &new.ground.document) {
        return Ok(true);
    }
    let (Some(before), Some(after)) = (before, after) else {
        return Ok(false);
    };
    if (&before.path, &before.hosts) != (&after.path, &after.hosts) {
        return Ok(false);
    }
    let Some(wanted) = side::requests(before, &[], 1)?.into_iter().next() else {
        return Ok(true);
    };
    let nobody = Caller::anonymous();
    let (left, right) = (
        old.ground.ask(&wanted, &nobody)?,
        new.ground.ask(&wanted, &nobody)?,
    );
    Ok(left.route == right.route)
}

fn compare_class(
    old: &Side,
    new: &Side,
    class: &Class<'_>,
    callers: &Callers,
    share: usize,
    compared: &mut Compared,
) -> Result<(), Unanswered> {
    // Requests for the route as each side has it.
    let mut requests: Vec<Wanted> = Vec::new();
    for (side, route) in [(old, class.old), (new, class.new)] {
        if let Some(route) = route {
            let words = side.words(route);
            for wanted in side::requests(route, &words, MAX_SAMPLES)? {
                let known = requests.iter().any(|one| {
                    (&one.method, &one.host, &one.target)
                        == (&wanted.method, &wanted.host, &wanted.target)
                });
                if !known {
                    requests.push(wanted);
                }
            }
        }
    }
    let share = (share / requests.len().max(1)).max(SHARE.0);
    let mut told: BTreeSet<(String, String)> = BTreeSet::new();
    for wanted in &requests {
        let mut ask = |who: String, wanted: &Wanted, caller: &Caller| -> Result<(), Unanswered> {
            let (left, right) = (
                old.ground.ask(wanted, caller)?,
                new.ground.ask(wanted, caller)?,
            );
            compared.questions += 2;
            if left.allowed() == right.allowed() {
                return Ok(());
            }
            let spent = |told: &Told| told.reason.as_deref() == Some("policy.budget");
            if spent(&left) || spent(&right) {
                // That is no difference between both, or not one that is the same tomorrow.
                compared
                    .unsure
                    .insert("a policy spent its budget on some questions");
                return Ok(());
            }
            if told.insert((wanted.method.to_string(), who.clone())) {
                let shown = class.new.or(class.old);
                compared.changes.push(Change {
                    gains: right.allowed(),
                    route: class.names.first().copied().unwrap_or_default().to_owned(),
                    path: shown.map(|route| route.path.clone()).unwrap_or_default(),
                    routes: class.names.len(),
                    method: wanted.method.to_string(),
                    example: wanted.target.clone(),
                    who,
                    old: verdict(&left),
                    new: verdict(&right),
                });
            }
            Ok(())
        };
        ask(
            "everybody, without a credential".to_owned(),
            wanted,
            &Caller::anonymous(),
        )?;
        for (name, caller) in &callers.by_name {
            ask(name.clone(), wanted, caller)?;
        }
        for (side, route) in [(old, class.old), (new, class.new)] {
            if let Some(route) = route {
                for (who, caller) in test_callers(side, route) {
                    ask(who, wanted, &caller)?;
                }
            }
        }
        let mut searched: Vec<(Vec<Fact>, Proof)> = Vec::new();
        let mut questions = 0;
        let mut doubts = Vec::new();
        let spent = compared.searched > BUDGET;
        if spent {
            doubts.push("there are too many kinds of routes to search each: the rest was asked about with the callers found before");
            searched.extend(compared.ways.iter().cloned());
        }
        for side in [old, new].into_iter().filter(|_| !spent) {
            let first = side.ground.ask(wanted, &Caller::anonymous())?;
            let Some(words) = side.vocabulary(&first) else {
                continue;
            };
            let mut silent = Progress::of("");
            for found in ways_in(&side.ground, wanted, &first, words, share, &mut silent)? {
                questions += found.ways.evaluations;
                if let Some(why) = found.ways.unsure {
                    doubts.push(why);
                }
                for way in found.ways.ways {
                    searched.push((way.facts, found.proof.clone()));
                }
            }
        }
        for (facts, proof) in &searched {
            // Claims are read by the mapping of the side on which the way was found; both name issuers
            // alike.
            let borrowed: Vec<&Fact> = facts.iter().collect();
            let (caller, wanted) = caller(&borrowed, proof, &new.ground.document, wanted);
            let way = super::ask::search::Way {
                facts: facts.clone(),
                reason: None,
            };
            let who = match (facts.is_empty(), proof) {
                (false, Proof::Token(_)) => who_can::words(&way, proof),
                (false, proof) => format!("{}: {}", proof.words(), who_can::words(&way, proof)),
                (true, _) => who_can::words(&way, proof),
            };
            ask(who, &wanted, &caller)?;
        }
        compared.questions += questions;
        compared.searched += questions;
        if compared.ways.len() < MAX_WAYS {
            compared.ways.extend(searched.iter().cloned());
        }
        compared.unsure.extend(doubts);
    }
    Ok(())
}

/// The identities of a policy's tests, as callers.
fn test_callers(side: &Side, route: &RouteConfig) -> Vec<(String, Caller)> {
    let Some(vocabulary) = route
        .policy
        .as_ref()
        .and_then(|name| side.vocabularies.get(name))
    else {
        return Vec::new();
    };
    let mut callers = Vec::new();
    for input in vocabulary.tests.iter().take(MAX_TEST_CALLERS) {
        let claims =
            document::at(input, "identity.claims").filter(|claims| claims.as_object().is_ok());
        let subject = document::at(input, "identity.subject").and_then(document::text);
        if let (Some(claims), Some(subject)) = (claims, subject) {
            callers.push((
                format!("{subject}, of the tests"),
                Caller::with_claims(claims.clone(), None),
            ));
        }
    }
    callers
}

fn verdict(told: &Told) -> String {
    let word = if told.allowed() { "yes" } else { "no" };
    match &told.reason {
        Some(reason) => format!("{word} {reason}"),
        None => word.to_owned(),
    }
}

fn as_json(old: &Side, new: &Side, compared: &Compared) -> serde_json::Value {
    let changes = |gains: bool| {
        compared
            .changes
            .iter()
            .filter(|change| change.gains == gains)
            .map(|change| {
                json!({
                    "route": change.route, "routes": change.routes, "path": change.path,
                    "method": change.method, "example": change.example, "caller": change.who,
                    "old": change.old, "new": change.new,
                })
            })
            .collect::<Vec<_>>()
    };
    json!({
        "old": {"name": old.name, "revision": old.ground.snapshot.revision},
        "new": {"name": new.name, "revision": new.ground.snapshot.revision},
        "configuration": compared.configuration.iter().map(|change| json!({
            "what": change.what, "opens": change.effect == Effect::Opens,
            "may_open": matches!(change.effect, Effect::Opens | Effect::MayOpen),
            "means": change.means, "old": change.old, "new": change.new,
        })).collect::<Vec<_>>(),
        "policies": compared.policies.iter().map(|change| json!({
            "what": change.what, "means": change.means, "old": change.old, "new": change.new,
        })).collect::<Vec<_>>(),
        "complete": compared.unsure.is_empty(),
        "gains": changes(true),
        "loses": changes(false),
        "routes": compared.routes,
        "routes_asked": compared.routes_asked,
        "questions": compared.questions,
        "unsure": compared.unsure,
    })
}

fn page(old: &Side, new: &Side, compared: &Compared, all: bool) -> Page {
    let mut page = Page::new();
    page.line(&[
        (Tone::Strong, &old.name),
        (Tone::Plain, " → "),
        (Tone::Strong, &new.name),
    ]);
    for (head, settings) in [
        ("configuration", &compared.configuration),
        ("policies", &compared.policies),
    ] {
        if settings.is_empty() {
            continue;
        }
        page.line(&[(Tone::Strong, head)]);
        let rows: Vec<_> = settings
            .iter()
            .map(|change| {
                let tone = match change.effect {
                    Effect::Opens => Tone::Bad,
                    Effect::MayOpen => Tone::Warn,
                    Effect::Guards | Effect::Changes | Effect::Beside => Tone::Plain,
                };
                let mut row = vec![
                    (Tone::Plain, " ".to_owned()),
                    (tone, change.what.clone()),
                    (Tone::Faint, format!("{} → {}", change.old, change.new)),
                ];
                if !change.means.is_empty() {
                    row.push((tone, change.means.to_owned()));
                }
                row
            })
            .collect();
        page.table(&rows);
    }
    for (gains, head, tone) in [
        (true, "gains access", Tone::Bad),
        (false, "loses access", Tone::Warn),
    ] {
        let changes: Vec<&Change> = compared
            .changes
            .iter()
            .filter(|change| change.gains == gains)
            .collect();
        if changes.is_empty() {
            continue;
        }
        page.line(&[(tone, head)]);
        let shown = if all { changes.len() } else { MAX_SHOWN };
        let rows: Vec<_> = changes
            .iter()
            .take(shown)
            .map(|change| {
                let routes = match change.routes {
                    1 => change.route.clone(),
                    many => format!("{} and {} like it", change.route, many - 1),
                };
                vec![
                    (Tone::Plain, " ".to_owned()),
                    (Tone::Plain, format!("{} {}", change.method, change.path)),
                    (Tone::Faint, routes),
                    (Tone::Strong, change.who.clone()),
                    (Tone::Plain, format!("{} → {}", change.old, change.new)),
                    (Tone::Faint, format!("e.g. {}", change.example)),
                ]
            })
            .collect();
        page.table(&rows);
        if changes.len() > shown {
            let text = format!("  and {} more; `--all` shows them", changes.len() - shown);
            page.line(&[(Tone::Faint, &text)]);
        }
    }
    let gains = compared
        .changes
        .iter()
        .filter(|change| change.gains)
        .count();
    let loses = compared.changes.len() - gains;
    if compared.changes.is_empty() && compared.configuration.is_empty() {
        page.line(&[(Tone::Good, "nobody gains or loses access")]);
    } else {
        let text = format!(
            "{gains} gained, {loses} lost, {} changed",
            count(compared.configuration.len(), "setting")
        );
        page.line(&[(Tone::Plain, &text)]);
    }
    let text = format!(
        "{} of {} asked about, {}",
        compared.routes_asked,
        count(compared.routes, "route"),
        count(compared.questions, "question")
    );
    page.line(&[(Tone::Faint, &text)]);
    for why in &compared.unsure {
        page.line(&[(Tone::Warn, "not complete: "), (Tone::Plain, why)]);
    }
    page
}
