//! `portcullis policy bench`: what decisions cost, in steps and in time, and whether that grew.
//!
//! Steps are counted, not timed: they are the same on every machine, each time, so that a pipeline can
//! compare them with those of the last release and fail. Times are for people to look at.

#![expect(
    clippy::wildcard_enum_match_arm,
    reason = "of what a process tells, what was asked for counts"
)]

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::cases::{self, Court};
use super::eval::read_input;
use super::files::{self, CONFIG, Named, Set};
use super::output::{Output, Tone, count};
use super::report::quantile;
use super::scenario::{Callers, Ground, Unanswered};
use super::show::Format;
use super::worker::{Event, GRACE, Job, OPENING, Paces, Work, converse};
use crate::schema::{Problem, Severity, Span};

/// What a file of costs is called by its readers.
const VERSION: u32 = 1;
/// Most decisions of a policy.
const MAX_INPUTS: usize = 10_000;
/// How many rules are shown.
const RULES: usize = 12;

const EXAMPLES: &str = "\
Examples:
  portcullis policy bench                                     every policy, on the inputs of its cases
  portcullis policy bench --rule data.orders.decision -i input.json
  portcullis policy bench --save costs.json                   keep the counts, beside the policies
  portcullis policy bench --baseline costs.json --max-regression 20%
                                                              fail when a decision takes more steps than that

Steps are counted on the engine that the gateway would use. They do not depend on the machine.

Exit codes: 0 fine, 1 a decision got too slow or cannot be made, 2 wrong usage.";

/// What to count.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct BenchArgs {
    /// Files and folders with modules, data and cases; by default those of the configuration's policies
    #[arg(value_name = "PATH")]
    paths: Vec<PathBuf>,
    /// The configuration, for its policies and for the routes of cases
    #[arg(long, value_name = "FILE", env = "PORTCULLIS_CONFIG")]
    config: Option<PathBuf>,
    /// Only this policy of the configuration
    #[arg(long, value_name = "NAME")]
    policy: Option<String>,
    /// A rule instead of policies' entry points
    #[arg(long, value_name = "PATH", conflicts_with = "policy")]
    rule: Option<String>,
    /// An input in JSON; may be repeated. By default those of the tables of cases
    #[arg(long, short, value_name = "FILE")]
    input: Vec<PathBuf>,
    /// Time each decision so often at most
    #[arg(long, value_name = "NUMBER", default_value_t = 1_000, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    count: u32,
    /// And so long at most
    #[arg(long, value_name = "TIME", default_value = "200ms", value_parser = super::output::span)]
    time: Span,
    /// Write the counts to a file
    #[arg(long, value_name = "FILE")]
    save: Option<PathBuf>,
    /// Compare with the counts in a file
    #[arg(long, value_name = "FILE")]
    baseline: Option<PathBuf>,
    /// With a baseline: how many more steps a decision may take
    #[arg(long, value_name = "PERCENT", default_value = "20%", value_parser = percent)]
    max_regression: u64,
    /// How to write the counts
    #[arg(long, value_enum, default_value_t)]
    format: Format,
}

fn percent(text: &str) -> Result<u64, String> {
    let digits = text.strip_suffix('%').unwrap_or(text);
    digits
        .parse()
        .map_err(|_| "a whole number of percent, such as `20%`".to_owned())
}

/// The counts of policies, as they are kept.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Costs {
    version: u32,
    policies: BTreeMap<String, Counted>,
}

/// The counts of one policy.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Counted {
    engine: String,
    entrypoint: String,
    /// Steps by decision.
    decisions: BTreeMap<String, u64>,
}

/// What was asked of one policy.
struct Asked {
    name: String,
    entrypoint: String,
    inputs: Vec<(String, String)>,
    paces: Paces,
}

/// A decision that costs more than it did.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
struct Slower {
    policy: String,
    decision: String,
    before: u64,
    now: u64,
    what: String,
}

/// Runs the command.
pub(super) fn run(args: &BenchArgs) -> Result<ExitCode, Unanswered> {
    let mut out = Output::standard();
    let baseline = args.baseline.as_deref().map(read).transpose()?;
    let sets = files::chosen(&args.paths, args.config.as_deref()).map_err(refused)?;
    let asked = ask(args, &sets, &mut out)?;
    let costs = kept(&asked);
    let slower = baseline
        .as_ref()
        .map(|before| compared(before, &costs, args.max_regression))
        .unwrap_or_default();
    let failed = asked
        .iter()
        .flat_map(|asked| &asked.paces.decisions)
        .filter(|decision| decision.is_err())
        .count();
    let text = match args.format {
        Format::Json => json_of(&asked, baseline.is_some(), &slower),
        Format::Text => {
            let mut text: String = asked.iter().map(|asked| page(asked, &out)).collect();
            if baseline.is_some() {
                text.push_str(&verdict(&slower, args.max_regression, &out));
            }
            text
        }
    };
    out.say(&text);
    if let Some(file) = &args.save {
        write(file, &costs)?;
    }
    Ok(ExitCode::from(u8::from(!slower.is_empty() || failed > 0)))
}

fn question(text: impl Into<String>) -> Unanswered {
    Unanswered::Question(text.into())
}

fn refused(problems: Vec<Problem>) -> Unanswered {
    let file = problems.first().map(|problem| problem.file.clone());
    Unanswered::Configuration(file.unwrap_or_default(), problems)
}

fn read(file: &Path) -> Result<Costs, Unanswered> {
    let shown = file.display();
    let text = fs::read_to_string(file)
        .map_err(|error| question(format!("cannot read {shown}: {error}")))?;
    let costs: Costs = serde_json::from_str(&text).map_err(|error| {
        question(format!(
            "{shown}:{}:{}: {error}",
            error.line(),
            error.column()
        ))
    })?;
    if costs.version != VERSION {
        let version = costs.version;
        return Err(question(format!(
            "{shown} has the version {version}: save it anew"
        )));
    }
    Ok(costs)
}

fn write(file: &Path, costs: &Costs) -> Result<(), Unanswered> {
    let cannot = |error: String| question(format!("cannot write {}: {error}", file.display()));
    let text = serde_json::to_string_pretty(costs).map_err(|error| cannot(error.to_string()))?;
    fs::write(file, text + "\n").map_err(|error| cannot(error.to_string()))
}

fn ask(args: &BenchArgs, sets: &[Set], out: &mut Output) -> Result<Vec<Asked>, Unanswered> {
    let config = args.config.as_deref().unwrap_or(Path::new(CONFIG));
    let given = args
        .input
        .iter()
        .map(|file| Ok((file.display().to_string(), read_input(file)?)))
        .collect::<Result<Vec<_>, Unanswered>>()?;
    let mut wanted: Vec<(&Set, Named)> = Vec::new();
    for set in sets {
        let rule = args.rule.iter().map(|rule| Named {
            name: rule.clone(),
            entrypoint: rule.clone(),
        });
        let named = set.policies.iter().filter(|policy| {
            args.rule.is_none() && args.policy.as_ref().is_none_or(|name| *name == policy.name)
        });
        wanted.extend(rule.chain(named.cloned()).map(|policy| (set, policy)));
    }
    if wanted.is_empty() {
        let help = match &args.policy {
            Some(name) => format!("there is no policy `{name}`"),
            None => "say which rule: `--rule data.orders.decision`".to_owned(),
        };
        return Err(question(help));
    }
    // Requests become inputs by the configuration; what is given needs none.
    let ground = match (given.is_empty(), config.exists()) {
        (true, true) => Some(Ground::load(config)?),
        _ => None,
    };
    let callers = Callers::find(None, config)?;
    let all = wanted.len();
    let mut asked = Vec::new();
    for (done, (set, policy)) in wanted.into_iter().enumerate() {
        out.progress(done, all, &policy.name);
        let mut inputs = given.clone();
        if inputs.is_empty() {
            let court = Court {
                set,
                ground: ground.as_ref(),
                callers: &callers,
            };
            for table in cases::tables(set).map_err(refused)? {
                inputs.extend(court.inputs(&table, &policy));
            }
        }
        inputs.truncate(MAX_INPUTS);
        if inputs.is_empty() {
            out.complain(&format!(
                "{}: no inputs: write cases that it decides, or say `--input FILE`\n",
                policy.name
            ));
            continue;
        }
        let paces = paced(args, set, &policy, &inputs)?;
        asked.push(Asked {
            name: policy.name,
            entrypoint: policy.entrypoint,
            inputs,
            paces,
        });
    }
    Ok(asked)
}

fn paced(
    args: &BenchArgs,
    set: &Set,
    policy: &Named,
    inputs: &[(String, String)],
) -> Result<Paces, Unanswered> {
    let texts = inputs.iter().map(|(_, input)| input.clone()).collect();
    let times = usize::try_from(args.count).unwrap_or(usize::MAX);
    let job = Job {
        material: set.material.clone(),
        lines: false,
        work: Work::Pace(policy.entrypoint.clone(), texts, times, args.time.get()),
    };
    let each = args.time.get() + Duration::from_secs(11);
    let longest = each.saturating_mul(u32::try_from(inputs.len()).unwrap_or(u32::MAX));
    let mut problems = Vec::new();
    let mut found = None;
    let fate = converse(&job, |event| {
        match event {
            Event::Refused(refused) => problems = refused,
            Event::Paced(paced) => found = Some(paced),
            _ => {}
        }
        longest + GRACE + OPENING
    });
    if let Err(fate) = fate {
        problems.push(fate.problem(&set.material));
    }
    if !problems.is_empty() {
        return Err(refused(problems));
    }
    match found {
        Some(Ok(paces)) => Ok(paces),
        Some(Err(lines)) => Err(refused(lines.into_iter().map(problem).collect())),
        None => Err(question("the decisions were not made")),
    }
}

fn problem(line: String) -> Problem {
    Problem {
        severity: Severity::Error,
        file: PathBuf::new(),
        line: None,
        column: None,
        path: String::new(),
        message: line,
        help: None,
    }
}

fn kept(asked: &[Asked]) -> Costs {
    let policies = asked.iter().map(|asked| {
        let decisions = asked.inputs.iter().zip(&asked.paces.decisions);
        let counted = Counted {
            engine: asked.paces.engine.clone(),
            entrypoint: asked.entrypoint.clone(),
            decisions: decisions
                .filter_map(|((name, _), decision)| {
                    Some((name.clone(), decision.as_ref().ok()?.steps))
                })
                .collect(),
        };
        (asked.name.clone(), counted)
    });
    Costs {
        version: VERSION,
        policies: policies.collect(),
    }
}

/// What costs more than it may. Decisions that only one of them has are not compared.
fn compared(before: &Costs, now: &Costs, percent: u64) -> Vec<Slower> {
    let mut slower = Vec::new();
    for (name, counted) in &now.policies {
        let Some(old) = before.policies.get(name) else {
            continue;
        };
        if old.engine != counted.engine {
            // Steps of the two engines are no measure of one another.
            if old.engine == "rvm" {
                slower.push(Slower {
                    policy: name.clone(),
                    decision: String::new(),
                    before: 0,
                    now: 0,
                    what: "it was compiled and now runs on the interpreter, at about five times the cost"
                        .to_owned(),
                });
            }
            continue;
        }
        for (decision, steps) in &counted.decisions {
            let Some(was) = old.decisions.get(decision) else {
                continue;
            };
            let most = u128::from(*was) * u128::from(100 + percent) / 100;
            if u128::from(*steps) > most {
                slower.push(Slower {
                    policy: name.clone(),
                    decision: decision.clone(),
                    before: *was,
                    now: *steps,
                    what: format!("{steps} steps, before {was}"),
                });
            }
        }
    }
    slower
}

fn verdict(slower: &[Slower], percent: u64, out: &Output) -> String {
    if slower.is_empty() {
        let good = out.tone(Tone::Good, "no decision");
        return format!("{good} takes more than {percent} % more steps than before\n");
    }
    let mut text = String::new();
    for one in slower {
        let word = out.tone(Tone::Bad, "slower");
        let decision = match one.decision.as_str() {
            "" => String::new(),
            decision => format!(" {decision}:"),
        };
        text.push_str(&format!(
            "{word}: policy {}:{decision} {}\n",
            one.policy, one.what
        ));
    }
    let number = count(slower.len(), "regression");
    text.push_str(&format!("{number} of more than {percent} %\n"));
    text
}

fn page(asked: &Asked, out: &Output) -> String {
    let title = format!(
        "{} ({}, {})",
        asked.name,
        asked.paces.engine,
        count(asked.inputs.len(), "decision")
    );
    let mut text = format!("{}\n", out.tone(Tone::Strong, &title));
    let width = |names: Vec<&str>| {
        let longest = names.iter().map(|name| name.chars().count()).max();
        longest.unwrap_or(0).min(60)
    };
    let wide = width(asked.inputs.iter().map(|(name, _)| name.as_str()).collect());
    let head = format!(
        "  {:wide$}  {:>7}  {:>10}  {:>10}  {:>9}",
        "decision", "steps", "median", "p99", "memory"
    );
    text.push_str(&format!("{}\n", out.tone(Tone::Faint, &head)));
    for ((name, _), decision) in asked.inputs.iter().zip(&asked.paces.decisions) {
        match decision {
            Ok(found) => {
                let time = |percent| {
                    let nanos = quantile(&found.times, percent);
                    format!("{}.{} µs", nanos / 1000, nanos / 100 % 10)
                };
                text.push_str(&format!(
                    "  {name:wide$}  {:>7}  {:>10}  {:>10}  {:>5} KiB\n",
                    found.steps,
                    time(50),
                    time(99),
                    found.memory.div_ceil(1024)
                ));
            }
            Err(why) => {
                let word = out.tone(Tone::Bad, "fails");
                text.push_str(&format!("  {name:wide$}  {word}: {why}\n"));
            }
        }
    }
    if asked.paces.rules.is_empty() {
        text.push('\n');
        return text;
    }
    let shown = asked.paces.rules.iter().take(RULES);
    let wide = width(shown.clone().map(|rule| rule.rule.as_str()).collect());
    let head = format!("  {:wide$}  {:>7}  {:>11}", "rule", "steps", "evaluations");
    text.push_str(&format!("\n{}\n", out.tone(Tone::Faint, &head)));
    for rule in shown {
        let place = out.tone(Tone::Faint, &format!("{}:{}", rule.file, rule.line));
        text.push_str(&format!(
            "  {:wide$}  {:>7}  {:>11}  {place}\n",
            rule.rule, rule.steps, rule.evaluations
        ));
    }
    text.push('\n');
    text
}

fn json_of(asked: &[Asked], compared: bool, slower: &[Slower]) -> String {
    let policies: serde_json::Map<String, Value> = asked
        .iter()
        .map(|asked| {
            let decisions: Vec<Value> = asked
                .inputs
                .iter()
                .zip(&asked.paces.decisions)
                .map(|((name, _), decision)| match decision {
                    Ok(found) => json!({
                        "name": name, "steps": found.steps, "memory": found.memory,
                        "evaluations": found.times.len(),
                        "median_ns": quantile(&found.times, 50), "p99_ns": quantile(&found.times, 99),
                    }),
                    Err(why) => json!({"name": name, "error": why}),
                })
                .collect();
            let value = json!({
                "engine": asked.paces.engine, "entrypoint": asked.entrypoint,
                "decisions": decisions, "rules": asked.paces.rules,
            });
            (asked.name.clone(), value)
        })
        .collect();
    let mut document = json!({"version": VERSION, "policies": policies});
    if let Some(members) = document.as_object_mut().filter(|_| compared) {
        members.insert("slower".to_owned(), json!(slower));
    }
    format!("{document:#}\n")
}
