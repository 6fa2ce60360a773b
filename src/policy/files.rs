//! Which policies a tool is about: files and folders that are named, or those of a configuration.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use crate::authz::workbench::Material;
use crate::authz::{BuiltinErrors, InputDocument};
use crate::config;
use crate::schema::{Problem, Severity};

/// How a policy's modules are read.
type Reading = (BuiltinErrors, InputDocument);

/// The configuration, where it is not named.
pub(super) const CONFIG: &str = "gateway.yaml";

/// Policies by the files that they are made of.
#[derive(Debug)]
pub(super) struct Set {
    /// The policies of the configuration that are made of these files; none for paths that were named.
    pub(super) policies: Vec<Named>,
    /// Their files and folders, as they were named.
    pub(super) paths: Vec<PathBuf>,
    /// The folder that the paths are relative to.
    pub(super) folder: PathBuf,
    pub(super) material: Material,
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
        let material = Material::load(paths, Path::new(""))?;
        return Ok(vec![Set {
            policies: Vec::new(),
            paths: paths.to_vec(),
            folder: PathBuf::new(),
            material,
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
    let document = config::read_document(file)?;
    let folder = file.parent().unwrap_or(Path::new("")).to_path_buf();
    // Policies that are read alike are tried together.
    let mut sets: BTreeMap<(Vec<PathBuf>, String), (Reading, Vec<Named>)> = BTreeMap::new();
    for (name, policy) in document.policies {
        let reading = (policy.errors(), policy.input);
        let entrypoint = policy.rule();
        let key = (policy.files, format!("{reading:?}"));
        let set = sets.entry(key).or_insert((reading, Vec::new()));
        set.1.push(Named { name, entrypoint });
    }
    let mut chosen = Vec::new();
    let mut problems = Vec::new();
    for ((paths, _), ((errors, input), policies)) in sets {
        if paths.is_empty() {
            continue;
        }
        match Material::load(&paths, &folder) {
            Ok(material) => chosen.push(Set {
                policies,
                paths,
                folder: folder.clone(),
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
            message: "it has no policies".to_owned(),
            help: Some("name files or folders instead".to_owned()),
        });
    }
    if problems.is_empty() {
        Ok(chosen)
    } else {
        Err(problems)
    }
}
