//! The policies that are asked again.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::ReplayArgs;
use crate::authz::{KnownBundles, Policy, PolicyConfig};
use crate::config;
use crate::metrics::Metrics;
use crate::policy::files::CONFIG;
use crate::policy::scenario::Unanswered;
use crate::schema::{Compile, Named, Problem, Severity, known_names};

/// A policy that judges.
#[derive(Debug)]
pub(super) struct Judge {
    pub(super) name: String,
    /// The rule that decides.
    pub(super) entrypoint: String,
    pub(super) policy: Arc<Policy>,
}

/// Who judges what.
#[derive(Debug)]
pub(super) struct Judges {
    by_name: BTreeMap<String, Judge>,
    /// Judges what the others do not.
    any: Option<Judge>,
    /// Where the policies come from, for people.
    pub(super) from: String,
}

impl Judges {
    /// Compiles the policies; each passes the gate as if it went live.
    pub(super) fn of(args: &ReplayArgs) -> Result<Self, Unanswered> {
        let file = match &args.config {
            Some(file) => Some(file.as_path()),
            None => Some(Path::new(CONFIG)).filter(|file| file.exists()),
        };
        let mut blocks = match file {
            Some(file) => {
                config::read_document(file)
                    .map_err(|problems| Unanswered::Configuration(file.to_path_buf(), problems))?
                    .policies
            }
            None => Named::new(),
        };
        let paths = there(&args.policy, file)?;
        if let Some(name) = &args.name
            && file.is_some()
            && args.entrypoint.is_none()
        {
            if !blocks.contains_key(name) {
                let help = known_names(name, blocks.keys().map(String::as_str));
                return Err(question(format!("there is no policy `{name}`: {help}")));
            }
            blocks.retain(|other, _| other == name);
        }
        let from = if args.policy.is_empty() {
            file.map(|file| file.display().to_string())
        } else {
            let shown = args.policy.iter().map(|path| path.display().to_string());
            Some(shown.collect::<Vec<_>>().join(" "))
        };
        let mut judges = Self {
            by_name: BTreeMap::new(),
            any: None,
            from: from.unwrap_or_default(),
        };
        if let Some(rule) = &args.entrypoint {
            judges.any = Some(one_rule(args, rule, paths, &blocks, file)?);
            return Ok(judges);
        }
        let Some(file) = file else {
            let what = if paths.is_empty() {
                "which policy? `--policy PATH…`, or a configuration with `--config FILE`"
            } else {
                "which rule decides? `--entrypoint data.orders.decision`, or a configuration that says so with `--config FILE`"
            };
            return Err(question(what.to_owned()));
        };
        if blocks.is_empty() {
            let shown = file.display();
            return Err(question(format!("{shown} has no policies to be asked")));
        }
        if paths.is_empty() && blocks.values().any(|block| !block.bundles.is_empty()) {
            judges.by_name = with_bundles(file, &blocks)?;
            return Ok(judges);
        }
        if !paths.is_empty() {
            let mut made_of = blocks.values().map(|block| (&block.files, &block.bundles));
            let first = made_of.next();
            if made_of.any(|other| Some(other) != first) {
                let names: Vec<&str> = blocks.keys().map(String::as_str).collect();
                return Err(question(format!(
                    "which policy do these files stand for? `--name NAME`: {} has {}, made of different files",
                    file.display(),
                    names.join(", ")
                )));
            }
            for block in blocks.values_mut() {
                block.files.clone_from(&paths);
                block.bundles.clear();
            }
        }
        for (name, block) in blocks {
            let judge = compiled(&name, block, file)?;
            judges.by_name.insert(name, judge);
        }
        Ok(judges)
    }

    /// Who judges what this policy decided.
    pub(super) fn of_policy(&self, name: &str) -> Option<&Judge> {
        self.by_name.get(name).or(self.any.as_ref())
    }

    /// Who judges what a rule of OPA's decided: the one with this entry point, or the only one.
    pub(super) fn of_rule(&self, path: &str) -> Option<&Judge> {
        let rule = format!("data.{}", path.trim_matches('/').replace('/', "."));
        let mut all = self.all();
        let named = self.all().find(|judge| judge.entrypoint == rule);
        named.or_else(|| all.next().filter(|_| all.next().is_none()))
    }

    /// All of them.
    pub(super) fn all(&self) -> impl Iterator<Item = &Judge> {
        self.by_name.values().chain(&self.any)
    }
}

fn question(text: String) -> Unanswered {
    Unanswered::Question(text)
}

/// Paths that are there, as a configuration beside which they are not would have to name them.
fn there(paths: &[PathBuf], file: Option<&Path>) -> Result<Vec<PathBuf>, Unanswered> {
    let elsewhere = file
        .and_then(Path::parent)
        .is_some_and(|folder| !folder.as_os_str().is_empty() && folder != Path::new("."));
    let there = |path: &PathBuf| {
        let cannot = |error| question(format!("{}: {error}", path.display()));
        path.metadata().map_err(cannot)?;
        if elsewhere {
            std::path::absolute(path).map_err(cannot)
        } else {
            Ok(path.clone())
        }
    };
    paths.iter().map(there).collect()
}

/// A rule that was named. What else a block says is that of the policy that is named, if one is.
fn one_rule(
    args: &ReplayArgs,
    rule: &str,
    paths: Vec<PathBuf>,
    blocks: &Named<PolicyConfig>,
    file: Option<&Path>,
) -> Result<Judge, Unanswered> {
    let named = args.name.as_ref().and_then(|name| blocks.get(name));
    let same = || {
        let mut same = blocks.values().filter(|block| block.rule() == rule);
        same.next().filter(|_| same.next().is_none())
    };
    let mut block = match named.or_else(same) {
        Some(block) => block.clone(),
        None => serde_json::from_value(serde_json::json!({ "entrypoint": rule }))
            .map_err(|error| question(error.to_string()))?,
    };
    rule.clone_into(&mut block.entrypoint);
    if let Some(input) = args.input {
        block.input = input;
    }
    if !paths.is_empty() {
        block.files = paths;
        block.bundles.clear();
    }
    if block.files.is_empty() {
        let what = "which files is it made of? `--policy PATH…`";
        return Err(question(what.to_owned()));
    }
    let name = args.name.as_deref().unwrap_or("replayed");
    compiled(name, block, file.unwrap_or(Path::new(CONFIG)))
}

fn compiled(name: &str, block: PolicyConfig, file: &Path) -> Result<Judge, Unanswered> {
    let entrypoint = block.rule();
    let mut cx = Compile::new(file, Arc::new(Metrics::default()));
    let (compiled, names) = (&Named::new(), &BTreeSet::new());
    let known = KnownBundles {
        compiled,
        names,
        mandatory: true,
    };
    let policy = cx.at(format!("policies.{name}"), |cx| {
        block.compile_among(name, None, &known, cx)
    });
    let (problems, _) = cx.finish();
    match policy {
        Some(policy) => Ok(Judge {
            name: name.to_owned(),
            entrypoint,
            policy,
        }),
        None => Err(does_not_load(name, problems)),
    }
}

/// The policy is what does not load; the configuration may be fine.
fn does_not_load(name: &str, problems: Vec<Problem>) -> Unanswered {
    let errors = problems
        .iter()
        .filter(|problem| problem.severity == Severity::Error);
    let mut text = format!("the policy {name} would not go live, so it is not asked:");
    for problem in errors {
        text.push_str(&format!("\n{problem}"));
    }
    Unanswered::Question(text)
}

/// Policies of bundles come with the whole configuration, which knows where bundles are kept.
fn with_bundles(
    file: &Path,
    blocks: &Named<PolicyConfig>,
) -> Result<BTreeMap<String, Judge>, Unanswered> {
    let (loaded, _) = config::load_for_questions(file, &Arc::new(Metrics::default()))
        .map_err(|problems| Unanswered::Configuration(file.to_path_buf(), problems))?;
    let mut judges = BTreeMap::new();
    for (name, block) in blocks {
        let Some(policy) = loaded.snapshot.policies.get(name) else {
            continue;
        };
        let judge = Judge {
            name: name.clone(),
            entrypoint: block.rule(),
            policy: Arc::clone(policy),
        };
        judges.insert(name.clone(), judge);
    }
    Ok(judges)
}
