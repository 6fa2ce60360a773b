//! `portcullis policy check`: everything that would bite, found before it does.
//!
//! What the gateway refuses or warns of at load is told first; then what the text of each policy shows
//! ([`crate::authz::inspect`]), with what the routes of the configuration say of its input.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use serde_json::json;

use super::ask::routes::Openness;
use super::files;
use super::scenario::{Ground, Unanswered};
use super::show::{ConfigArgs, Format, Page, Tone, aside, count, say_json, style};
use crate::authz::PolicyConfig;
use crate::authz::inspect::{Cost, Finding, Inspection, RouteWords, Subject, Weight, inspect};
use crate::config::{self, Document};
use crate::schema::{Problem, Severity, known_names};

/// The names of findings, which `--ignore` and comments take.
const RULES: [&str; 11] = [
    "input-path",
    "data-path",
    "compare",
    "never-holds",
    "fails-open",
    "always-allows",
    "no-default",
    "unreachable",
    "unused",
    "engine",
    "not-cached",
];

/// What is asked.
#[derive(Debug, clap::Args)]
pub struct CheckArgs {
    #[command(flatten)]
    config: ConfigArgs,
    /// Files and folders of one policy, instead of those of a configuration
    #[arg(value_name = "PATH")]
    paths: Vec<PathBuf>,
    /// With paths: the rule that decides, as in `data.orders.decision`
    #[arg(long, value_name = "RULE")]
    entrypoint: Option<String>,
    /// Findings that do not count, by name
    #[arg(long, value_name = "NAME", value_delimiter = ',')]
    ignore: Vec<String>,
    /// Let warnings count as problems
    #[arg(long)]
    strict: bool,
    /// Count what each rule costs, on generated inputs
    #[arg(long)]
    costs: bool,
    /// How to write what was found
    #[arg(long, value_enum, default_value_t)]
    format: Format,
}

/// One finding as it is told.
#[derive(Debug)]
struct Told {
    rule: &'static str,
    policy: String,
    problem: Problem,
}

/// What was looked at.
#[derive(Debug)]
struct Looked {
    name: String,
    engine: Option<&'static str>,
    cached: Option<bool>,
    inspection: Inspection,
}

/// Checks; exit code 1 when there is an error, or with `--strict` a warning.
///
/// # Errors
/// When the question makes no sense.
pub fn run(args: &CheckArgs) -> Result<ExitCode, Unanswered> {
    for name in &args.ignore {
        if !RULES.contains(&name.as_str()) {
            let help = known_names(name, RULES);
            return Err(Unanswered::Question(format!(
                "there is no finding `{name}`: {help}"
            )));
        }
    }
    let mut told = Vec::new();
    let looked = if args.paths.is_empty() {
        of_config(args, &mut told)
    } else {
        vec![of_paths(args, &mut told)]
    };
    told.retain(|one| !args.ignore.iter().any(|name| name == one.rule));
    told.sort_by(|a, b| {
        let key = |one: &Told| {
            (
                one.problem.file.clone(),
                one.problem.line,
                one.problem.column,
            )
        };
        key(a).cmp(&key(b))
    });
    told.dedup_by(|a, b| a.problem == b.problem);
    let errors = told
        .iter()
        .filter(|one| one.problem.severity == Severity::Error)
        .count();
    let warnings = told.len() - errors;
    let fine = errors == 0 && !(args.strict && warnings > 0);
    match args.format {
        Format::Json => say_json(&as_json(&told, &looked, fine)),
        Format::Text => page(args, &told, &looked, errors, warnings).show(),
    }
    Ok(ExitCode::from(u8::from(!fine)))
}

fn of_paths(args: &CheckArgs, told: &mut Vec<Told>) -> Looked {
    let subject = Subject {
        paths: args.paths.clone(),
        beside: PathBuf::from("paths"),
        entrypoints: args.entrypoint.iter().cloned().collect(),
        counts: args.costs,
        ..Subject::default()
    };
    let inspection = inspect(&subject);
    tell("", &inspection, told);
    Looked {
        name: String::new(),
        engine: None,
        cached: None,
        inspection,
    }
}

fn of_config(args: &CheckArgs, told: &mut Vec<Told>) -> Vec<Looked> {
    let file = args.config.config.as_path();
    let ground = match Ground::load(file) {
        Ok(ground) => ground,
        Err(Unanswered::Configuration(_, problems)) => {
            // Keys that are not here are no matter of policies, unless nothing else is wrong.
            let ours = |problem: &Problem| {
                ["policies", "candidates", "routes"]
                    .iter()
                    .any(|section| problem.path.starts_with(section))
            };
            let only_ours = problems
                .iter()
                .any(|problem| problem.severity == Severity::Error && ours(problem));
            let told_now = problems
                .into_iter()
                .filter(|problem| !only_ours || ours(problem));
            told.extend(told_now.map(at_load));
            return without_gate(file, told);
        }
        Err(Unanswered::Question(_)) => return Vec::new(),
    };
    aside(ground.note(&file.display().to_string()));
    let document = &ground.document;
    aside(files::bundled(document));
    let policies: BTreeSet<PathBuf> = ground
        .snapshot
        .policies
        .values()
        .chain(ground.snapshot.candidates.policies())
        .flat_map(|policy| policy.files().iter().cloned())
        .collect();
    // What the rest of the file has to say is for `portcullis check`.
    let ours = |problem: &&Problem| {
        policies.contains(&problem.file)
            || problem.path.starts_with("policies")
            || problem.path.starts_with("candidates")
    };
    told.extend(ground.warnings.iter().filter(ours).cloned().map(at_load));
    blocks(document)
        .iter()
        .map(|(name, block, document)| {
            let subject = Subject {
                counts: args.costs,
                ..subject(block, document, file)
            };
            let inspection = inspect(&subject);
            tell(name, &inspection, told);
            let candidate = ground.snapshot.candidates.named.get(name);
            let candidate = candidate.map(|candidate| &candidate.policy);
            let policy = ground.snapshot.policies.get(name).or(candidate);
            Looked {
                name: name.clone(),
                engine: policy.map(|policy| policy.engine()),
                cached: policy.map(|policy| policy.remembers()),
                inspection,
            }
        })
        .collect()
}

/// The policies, and the candidates, each as what it would be in its policy's place: name, block, and the
/// document in which it is a policy. What comes in bundles alone is not here; `portcullis bundle inspect`
/// looks into those.
fn blocks(document: &Document) -> Vec<(String, PolicyConfig, Cow<'_, Document>)> {
    let policies = document.policies.iter();
    let policies =
        policies.map(|(name, block)| (name.clone(), block.clone(), Cow::Borrowed(document)));
    let candidates = document.candidates.iter().filter_map(|(name, candidate)| {
        let document = document.with_candidate(name)?;
        let block = document.policies.get(&candidate.of)?.clone();
        Some((name.clone(), block, Cow::Owned(document)))
    });
    policies
        .chain(candidates)
        .filter(|(_, block, _)| !block.files.is_empty())
        .collect()
}

/// What the text of policies shows that do not go live.
fn without_gate(file: &Path, told: &mut Vec<Told>) -> Vec<Looked> {
    let Ok(document) = config::read_document(file) else {
        return Vec::new();
    };
    blocks(&document)
        .iter()
        .map(|(name, block, document)| {
            let subject = Subject {
                text_alone: true,
                ..subject(block, document, file)
            };
            let mut inspection = inspect(&subject);
            // The load has told them.
            inspection.problems.clear();
            tell(name, &inspection, told);
            Looked {
                name: name.clone(),
                engine: None,
                cached: None,
                inspection,
            }
        })
        .collect()
}

fn subject(block: &PolicyConfig, document: &Document, file: &Path) -> Subject {
    Subject {
        paths: block.files.clone(),
        beside: file.to_path_buf(),
        entrypoints: entrypoints(block, document),
        hidden_headers: block.hidden_headers.clone(),
        routes: route_words(&sharing(block, document), document),
        // Bundles bring data that is not here.
        data_is_whole: block.bundles.is_empty(),
        document: block.input,
        text_alone: false,
        counts: false,
    }
}

/// The policies that are made of some of the same files: what one does not ask for, another may.
fn sharing<'d>(
    block: &PolicyConfig,
    document: &'d Document,
) -> BTreeMap<&'d str, &'d PolicyConfig> {
    let shares = |other: &PolicyConfig| other.files.iter().any(|file| block.files.contains(file));
    let all = document.policies.iter();
    all.filter(|(_, other)| shares(other))
        .map(|(name, other)| (name.as_str(), other))
        .collect()
}

/// The rules that decide for any of the policies that share files, the policy's own first.
fn entrypoints(block: &PolicyConfig, document: &Document) -> Vec<String> {
    let mut all = vec![block.entrypoint.clone()];
    for other in sharing(block, document).values() {
        if !all.contains(&other.entrypoint) {
            all.push(other.entrypoint.clone());
        }
    }
    all
}

/// What the routes of these policies say of their input; none when no route asks them.
fn route_words(
    policies: &BTreeMap<&str, &PolicyConfig>,
    document: &Document,
) -> Option<RouteWords> {
    let routes: Vec<_> = document
        .routes
        .iter()
        .filter(|route| {
            let policy = route.policy.as_deref().unwrap_or_default();
            policies.contains_key(policy)
        })
        .collect();
    if routes.is_empty() {
        return None;
    }
    let mut words = RouteWords::default();
    let mut labels: BTreeMap<String, (BTreeSet<String>, usize)> = BTreeMap::new();
    let mut params: BTreeMap<String, usize> = BTreeMap::new();
    for route in &routes {
        words.names.insert(route.name.clone());
        words.anonymous |= Openness::of(route) >= Openness::AnonymousToPolicy;
        for (name, value) in &route.labels {
            let known = labels.entry(name.clone()).or_default();
            known.0.insert(value.clone());
            known.1 += 1;
        }
        for name in parameters(&route.path) {
            *params.entry(name).or_default() += 1;
        }
    }
    words.labels = labels
        .into_iter()
        .map(|(name, (values, routes_with))| (name, (values, routes_with == routes.len())))
        .collect();
    words.params = params
        .into_iter()
        .map(|(name, routes_with)| (name, routes_with == routes.len()))
        .collect();
    Some(words)
}

/// The names in a path template.
pub fn parameters(path: &str) -> impl Iterator<Item = String> + '_ {
    path.split('{').skip(1).filter_map(|rest| {
        let (name, _) = rest.split_once('}')?;
        Some(name.trim_start_matches('*').to_owned())
    })
}

fn at_load(problem: Problem) -> Told {
    let rule = if problem.message.contains("runs on the interpreter") {
        "engine"
    } else if problem.message.contains("evaluated anew") {
        "not-cached"
    } else {
        "load"
    };
    Told {
        rule,
        policy: String::new(),
        problem,
    }
}

fn tell(policy: &str, inspection: &Inspection, told: &mut Vec<Told>) {
    told.extend(inspection.problems.iter().cloned().map(at_load));
    told.extend(inspection.findings.iter().map(|finding| Told {
        rule: finding.rule,
        policy: policy.to_owned(),
        problem: problem(finding),
    }));
}

fn problem(finding: &Finding) -> Problem {
    Problem {
        severity: match finding.weight {
            Weight::Error => Severity::Error,
            Weight::Warning => Severity::Warning,
        },
        file: PathBuf::from(&finding.file),
        line: Some(finding.at.0),
        column: Some(finding.at.1),
        path: String::new(),
        message: finding.message.clone(),
        help: Some(finding.help.clone()).filter(|help| !help.is_empty()),
    }
}

fn as_json(told: &[Told], looked: &[Looked], fine: bool) -> serde_json::Value {
    json!({
        "ok": fine,
        "findings": told.iter().map(|one| json!({
            "rule": one.rule, "policy": one.policy, "severity": one.problem.severity,
            "file": one.problem.file, "line": one.problem.line, "column": one.problem.column,
            "message": one.problem.message, "help": one.problem.help,
        })).collect::<Vec<_>>(),
        "policies": looked.iter().map(|one| json!({
            "name": one.name, "engine": one.engine, "decisions_cached": one.cached,
            "modules": one.inspection.modules, "tests": one.inspection.tests,
            "rules": one.inspection.sizes.iter().map(|size| json!({
                "name": size.name, "file": size.file, "line": size.line,
                "steps": size.steps, "loops": size.loops,
            })).collect::<Vec<_>>(),
            "cost": one.inspection.cost.as_ref().map(|cost| json!({
                "mean": cost.mean, "most": cost.most,
                "rules": cost.rules.iter().map(|rule| json!({
                    "name": rule.name, "file": rule.file, "line": rule.line,
                    "evaluations": rule.evaluations, "instructions": rule.instructions,
                })).collect::<Vec<_>>(),
            })),
        })).collect::<Vec<_>>(),
    })
}

fn page(
    args: &CheckArgs,
    told: &[Told],
    looked: &[Looked],
    errors: usize,
    warnings: usize,
) -> Page {
    let mut page = Page::new();
    let shown: Vec<Problem> = told
        .iter()
        .map(|one| Problem {
            message: format!("{} [{}]", one.problem.message, one.rule),
            ..one.problem.clone()
        })
        .collect();
    page.push(&config::render(&shown, style(&io::stdout())));
    if args.costs {
        for one in looked {
            match &one.inspection.cost {
                Some(cost) => costs(&mut page, cost, &one.inspection),
                None => sizes(&mut page, &one.inspection),
            }
        }
    }
    for one in looked {
        let mut facts = Vec::new();
        match one.engine {
            Some("rvm") => facts.push("compiled".to_owned()),
            Some("interpreter") => facts.push("on the interpreter".to_owned()),
            _ => {}
        }
        match one.cached {
            Some(true) => facts.push("decisions are cached".to_owned()),
            Some(false) => facts.push("decisions are not cached".to_owned()),
            None => {}
        }
        facts.push(count(one.inspection.sizes.len(), "rule"));
        facts.push(count(one.inspection.modules, "module"));
        facts.push(count(one.inspection.tests, "test"));
        let name = if one.name.is_empty() {
            String::new()
        } else {
            format!("{}: ", one.name)
        };
        page.line(&[(Tone::Strong, &name), (Tone::Plain, &facts.join(", "))]);
    }
    let verdict = format!("{}, {}", count(errors, "error"), count(warnings, "warning"));
    let tone = match (errors, warnings) {
        (0, 0) => Tone::Good,
        (0, _) => Tone::Warn,
        _ => Tone::Bad,
    };
    page.line(&[(tone, &verdict)]);
    page
}

fn costs(page: &mut Page, cost: &Cost, inspection: &Inspection) {
    let mut rows = vec![
        ["INSTRUCTIONS", "EVALUATIONS", "RULE", "PLACE"]
            .map(|head| (Tone::Faint, head.to_owned()))
            .to_vec(),
    ];
    for rule in &cost.rules {
        let place = inspection
            .sizes
            .iter()
            .find(|size| size.name == rule.name)
            .map(|size| format!("{}:{}", size.file, size.line))
            .unwrap_or_default();
        rows.push(vec![
            (Tone::Plain, format!("{:.1}", rule.instructions)),
            (Tone::Plain, format!("{:.2}", rule.evaluations)),
            (Tone::Plain, rule.name.clone()),
            (Tone::Faint, place),
        ]);
    }
    page.table(&rows);
    let text = format!(
        "{:.1} instructions for a decision on average, {} at most, over generated inputs",
        cost.mean, cost.most
    );
    page.line(&[(Tone::Faint, &text)]);
}

/// Where it is not compiled: what the text tells.
fn sizes(page: &mut Page, inspection: &Inspection) {
    let mut sizes: Vec<_> = inspection.sizes.iter().collect();
    sizes.sort_by_key(|size| std::cmp::Reverse((size.loops, size.steps)));
    let mut rows = vec![
        ["STEPS", "LOOPS", "RULE", "PLACE"]
            .map(|head| (Tone::Faint, head.to_owned()))
            .to_vec(),
    ];
    for size in sizes {
        rows.push(vec![
            (Tone::Plain, size.steps.to_string()),
            (Tone::Plain, size.loops.to_string()),
            (Tone::Plain, size.name.clone()),
            (Tone::Faint, format!("{}:{}", size.file, size.line)),
        ]);
    }
    page.table(&rows);
}
