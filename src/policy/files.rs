//! Which policies a tool is about: files and folders that are named, or those of a configuration.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use crate::authz::workbench::Material;
use crate::authz::{BuiltinErrors, InputDocument};
use crate::config::{self, Document};
use crate::policy::show::aside;
use crate::schema::{Problem, Severity};

/// How a policy's modules are read.
type Reading = (BuiltinErrors, InputDocument);

/// What is made of the same files, and the candidate whose files they are.
type Files = (Reading, Vec<Named>, Option<String>);

/// The configuration, where it is not named.
pub(super) const CONFIG: &str = "gateway.yaml";

/// Policies by the files that they are made of.
#[derive(Debug)]
pub(super) struct Set {
    /// The policies of the configuration that are made of these files.
    pub(super) policies: Vec<Named>,
    /// Their files and folders, as they were named.
    pub(super) paths: Vec<PathBuf>,
    /// The folder that the paths are relative to.
    pub(super) folder: PathBuf,
    pub(super) material: Material,
    /// The candidate whose files they are, if they are no policy's.
    pub(super) candidate: Option<String>,
}

/// A policy of the configuration.
#[derive(Debug, Clone)]
pub(super) struct Named {
    pub(super) name: String,
    pub(super) entrypoint: String,
}

/// The files that were named, or else those of all policies of the configuration.
pub(super) fn chosen(paths: &[PathBuf], config: Option<&Path>) -> Result<Vec<Set>, Vec<Problem>> {
    if !paths.is_empty() {
        let material = Material::load(paths, Path::new("")).map_err(|found| named(found, paths))?;
        return Ok(vec![Set {
            policies: Vec::new(),
            paths: paths.to_vec(),
            folder: PathBuf::new(),
            material,
            candidate: None,
        }]);
    }
    let file = config.unwrap_or(Path::new(CONFIG));
    if config.is_none() && !file.exists() {
        return Err(vec![Problem {
            severity: Severity::Error,
            file: file.to_path_buf(),
            line: None,
            column: None,
            path: String::new(),
            message: "there is no such file here".to_owned(),
            help: Some(
                "name the policies' files or folders, or their configuration with `--config FILE`"
                    .to_owned(),
            ),
        }]);
    }
    of_document(config::read_document(file)?, file, WithCandidates::No)
}

/// [`chosen`], and the files of the configuration's candidates that are no policy's.
pub(super) fn with_candidates(
    paths: &[PathBuf],
    config: Option<&Path>,
) -> Result<Vec<Set>, Vec<Problem>> {
    let file = config.unwrap_or(Path::new(CONFIG));
    if !paths.is_empty() || !file.exists() {
        let mut sets = chosen(paths, config)?;
        for set in &mut sets {
            set.policies = made_of(&set.paths, file);
        }
        return Ok(sets);
    }
    of_document(config::read_document(file)?, file, WithCandidates::Yes)
}

/// The policies of a configuration that are made of these files and folders and of nothing else, however
/// those are written; none where there is no configuration to be read.
fn made_of(paths: &[PathBuf], file: &Path) -> Vec<Named> {
    let Ok(document) = config::read_document(file) else {
        return Vec::new();
    };
    let folder = file.parent().unwrap_or(Path::new(""));
    let places = |paths: &[PathBuf], folder: &Path| -> Option<BTreeSet<PathBuf>> {
        let place = |path: &PathBuf| folder.join(path).canonicalize().ok();
        paths.iter().map(place).collect()
    };
    let Some(wanted) = places(paths, Path::new("")) else {
        return Vec::new();
    };
    let policies = document.policies.into_iter();
    policies
        .filter(|(_, policy)| policy.bundles.is_empty())
        .filter(|(_, policy)| places(&policy.files, folder).as_ref() == Some(&wanted))
        .map(|(name, policy)| Named {
            entrypoint: policy.rule(),
            name,
        })
        .collect()
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum WithCandidates {
    Yes,
    No,
}

fn of_document(
    document: Document,
    file: &Path,
    which: WithCandidates,
) -> Result<Vec<Set>, Vec<Problem>> {
    let folder = file.parent().unwrap_or(Path::new("")).to_path_buf();
    let bundled = bundled(&document);
    // Policies that are read alike are tried together.
    aside(bundled.clone());
    let mut sets: BTreeMap<(Vec<PathBuf>, String), Files> = BTreeMap::new();
    let mut tried = Vec::new();
    for (name, candidate) in &document.candidates {
        if which == WithCandidates::Yes
            && let Some(of) = document.policies.get(&candidate.of)
        {
            tried.push((name.clone(), candidate.policy(of)));
        }
    }
    for (name, policy) in document.policies {
        let reading = (policy.errors(), policy.input);
        let entrypoint = policy.rule();
        let key = (policy.files, format!("{reading:?}"));
        let set = sets.entry(key).or_insert((reading, Vec::new(), None));
        set.1.push(Named { name, entrypoint });
    }
    for (name, policy) in tried {
        let reading = (policy.errors(), policy.input);
        let entrypoint = policy.rule();
        let key = (policy.files, format!("{reading:?}"));
        // Tests of files that are a policy's, or another candidate's, are run already.
        let candidate = Some(name.clone());
        sets.entry(key)
            .or_insert_with(|| (reading, vec![Named { name, entrypoint }], candidate));
    }
    let mut chosen = Vec::new();
    let mut problems = Vec::new();
    for ((paths, _), ((errors, input), policies, candidate)) in sets {
        if paths.is_empty() {
            continue;
        }
        match Material::load(&paths, &folder) {
            Ok(material) => chosen.push(Set {
                policies,
                paths,
                folder: folder.clone(),
                candidate,
                material: Material {
                    errors,
                    input,
                    ..material
                },
            }),
            Err(found) => problems.extend(found),
        }
    }
    if chosen.is_empty() && problems.is_empty() {
        problems.push(Problem {
            severity: Severity::Error,
            file: file.to_path_buf(),
            line: None,
            column: None,
            path: String::new(),
            message: match &bundled {
                None => "it has no policies".to_owned(),
                Some(_) => "its policies have no files of their own, only bundles".to_owned(),
            },
            help: Some(match &bundled {
                None => "name files or folders instead".to_owned(),
                Some(_) => "unpack a bundle and name its folder".to_owned(),
            }),
        });
    }
    if problems.is_empty() {
        Ok(chosen)
    } else {
        Err(problems)
    }
}

/// What is not looked at: modules that come in bundles.
pub(super) fn bundled(document: &Document) -> Option<String> {
    let policies = document.policies.iter();
    let bundled: Vec<String> = policies
        .filter(|(_, policy)| !policy.bundles.is_empty())
        .map(|(name, policy)| format!("{name} ({})", policy.bundles.join(", ")))
        .collect();
    (!bundled.is_empty()).then(|| {
        format!(
            "the modules of bundles are not looked at: policy {}; unpack a bundle and name its folder",
            bundled.join(", policy ")
        )
    })
}

/// The problems of paths that were named: no configuration has a part in them.
fn named(problems: Vec<Problem>, paths: &[PathBuf]) -> Vec<Problem> {
    let missing = paths.iter().find(|path| !path.exists());
    let Some(path) = missing.or(paths.first()) else {
        return problems;
    };
    problems
        .into_iter()
        .map(|problem| match problem.file == Path::new(CONFIG) {
            true => Problem {
                file: path.clone(),
                // It would speak of the configuration's folder.
                help: problem.help.filter(|_| missing.is_none()),
                ..problem
            },
            false => problem,
        })
        .collect()
}
