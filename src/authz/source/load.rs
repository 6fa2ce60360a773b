//! A policy's files: modules, tests and data, found and read.
//!
//! Data follows `opa run -d FOLDER`: the content of every `.json`, `.yaml` and `.yml` file is an
//! object that is merged at the path of its folder, whatever the file is called, so that
//! `policies/orders/data.json` and `policies/orders/limits.yaml` both fill `data.orders`. A file
//! that is named itself fills `data`. Unlike OPA no value may be given twice.
//!
//! What lies in a folder called [`CASES`] are questions to the policy with the answers that they
//! should get: no data. Modules in it are modules.

use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};

use crate::authz::rego::Source;
use crate::authz::source::guard;
use crate::authz::source::remark::Remark;
use crate::document::{self, Value, object};
use crate::schema::{Compile, Problem};

/// Most files of a policy.
pub(in crate::authz) const MAX_FILES: usize = 1_000;
/// Deepest nesting of folders.
pub(in crate::authz) const MAX_FOLDERS: usize = 16;
/// Most bytes of all files of a policy together.
pub(in crate::authz) const MAX_BYTES: u64 = 32 * 1024 * 1024;

/// A folder of table cases, whose documents are no data.
pub(in crate::authz) const CASES: &str = "cases";

/// Everything a policy is made of.
#[derive(Debug)]
pub(in crate::authz) struct Loaded {
    /// Modules, live ones and tests, in the order of their names.
    pub(in crate::authz) modules: Vec<Source>,
    pub(in crate::authz) data: Value,
    /// All files, in the order of their names.
    pub(in crate::authz) files: Vec<PathBuf>,
    /// The files as they are named in the configuration, with their content: for the digest.
    pub(in crate::authz) contents: Vec<(PathBuf, Vec<u8>)>,
}

struct Found {
    /// As the configuration names it.
    named: PathBuf,
    resolved: PathBuf,
    /// The folders between the named folder and the file.
    folders: Vec<String>,
}

/// Reads all files, which hold a module at least. Problems are reported; `None` when there was one.
pub(in crate::authz) fn load(paths: &[PathBuf], cx: &mut Compile) -> Option<Loaded> {
    let loaded = read(paths, cx)?;
    if loaded.modules.is_empty() {
        cx.problem_help(
            "the policy has no modules",
            "name files that end in `.rego`, or folders that hold some",
        );
        return None;
    }
    Some(loaded)
}

/// As [`load`], where modules may come from elsewhere.
pub(in crate::authz) fn read(paths: &[PathBuf], cx: &mut Compile) -> Option<Loaded> {
    let before = cx.errors();
    let mut found: Vec<Found> = Vec::new();
    for (index, path) in paths.iter().enumerate() {
        cx.at(format!("[{index}]"), |cx| {
            find(path, &[], 0, &mut found, cx)
        });
    }
    found.sort_by(|a, b| a.named.cmp(&b.named));
    found.dedup_by(|a, b| a.resolved == b.resolved);
    if found.len() > MAX_FILES {
        cx.problem_help(
            format!("the policy has more than {MAX_FILES} files"),
            "name the folders that belong to it",
        );
        return None;
    }

    let mut loaded = Loaded {
        modules: Vec::new(),
        data: Value::new_object(),
        files: Vec::new(),
        contents: Vec::new(),
    };
    let mut documents: Vec<(PathBuf, Value)> = Vec::new();
    let mut left = MAX_BYTES;
    for file in found {
        let mut bytes = Vec::new();
        let read = File::open(&file.resolved)
            .and_then(|opened| opened.take(left.saturating_add(1)).read_to_end(&mut bytes));
        if let Err(error) = read {
            report(
                cx,
                Remark::error(
                    &name(&file.resolved),
                    None,
                    format!("cannot be read: {error}"),
                    "check the file's permissions",
                ),
            );
            continue;
        }
        let size = u64::try_from(bytes.len()).unwrap_or(u64::MAX);
        let Some(rest) = left.checked_sub(size) else {
            cx.problem_help(
                format!("the policy's files hold more than {MAX_BYTES} bytes"),
                "keep large tables out of policies",
            );
            return None;
        };
        left = rest;
        if extension(&file.resolved) == "rego" {
            module(&file.resolved, &bytes, &mut loaded.modules, cx);
        } else {
            data(&file, &bytes, &mut loaded.data, &mut documents, cx);
        }
        loaded.files.push(file.resolved);
        loaded.contents.push((file.named, bytes));
    }
    (cx.errors() == before).then_some(loaded)
}

fn find(path: &Path, folders: &[String], depth: usize, found: &mut Vec<Found>, cx: &mut Compile) {
    let resolved = cx.resolve(path);
    let kind = match fs::metadata(&resolved) {
        Ok(kind) => kind,
        Err(error) => {
            cx.problem_help(
                format!("cannot read {}: {error}", resolved.display()),
                "paths are relative to the folder of the configuration file",
            );
            return;
        }
    };
    if !kind.is_dir() {
        if extension(&resolved) != "rego" && folders.iter().any(|folder| folder == CASES) {
            return;
        }
        if is_ours(&resolved) {
            found.push(Found {
                named: path.to_path_buf(),
                resolved,
                folders: folders.to_vec(),
            });
        } else if depth == 0 {
            cx.problem_help(
                format!("{} is neither a module nor data", resolved.display()),
                "name files that end in `.rego`, `.json` or `.yaml`, or folders",
            );
        }
        return;
    }
    if depth > MAX_FOLDERS || found.len() > MAX_FILES {
        cx.problem(format!(
            "{} holds more than {MAX_FOLDERS} folders one inside the other, or more than {MAX_FILES} files",
            resolved.display()
        ));
        return;
    }
    let mut names: Vec<String> = match fs::read_dir(&resolved) {
        Ok(entries) => entries
            .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
            .filter(|name| !name.starts_with('.'))
            .collect(),
        Err(error) => {
            cx.problem(format!("cannot read {}: {error}", resolved.display()));
            return;
        }
    };
    names.sort();
    for name in names {
        let below = path.join(&name);
        let is_folder = fs::metadata(resolved.join(&name)).is_ok_and(|kind| kind.is_dir());
        if is_folder || is_ours(&below) {
            // A file's own folders name its data; a folder adds itself on the way down.
            let mut inner = folders.to_vec();
            if is_folder {
                inner.push(name);
            }
            find(&below, &inner, depth + 1, found, cx);
        }
    }
}

fn extension(path: &Path) -> &str {
    path.extension().and_then(|e| e.to_str()).unwrap_or("")
}

fn is_ours(path: &Path) -> bool {
    matches!(extension(path), "rego" | "json" | "yaml" | "yml")
}

fn name(path: &Path) -> String {
    path.display().to_string()
}

fn report(cx: &mut Compile, remark: Remark) {
    let problem: Problem = remark.into_problem(cx.place());
    cx.report(problem);
}

fn module(path: &Path, bytes: &[u8], modules: &mut Vec<Source>, cx: &mut Compile) {
    let file = name(path);
    match std::str::from_utf8(bytes) {
        Ok(text) => match guard::examine(text) {
            Ok(()) => modules.push((file, text.to_owned())),
            Err(finding) => report(
                cx,
                Remark {
                    file,
                    line: finding.line,
                    column: finding.column,
                    message: finding.message,
                    help: Some(finding.help),
                    warning: false,
                },
            ),
        },
        Err(error) => {
            let good = bytes.get(..error.valid_up_to()).unwrap_or(&[]);
            let line = good.iter().filter(|b| **b == b'\n').count() + 1;
            report(
                cx,
                Remark::error(
                    &file,
                    Some((line, 1)),
                    "the module is not UTF-8",
                    "save it as UTF-8",
                ),
            );
        }
    }
}

fn data(
    file: &Found,
    bytes: &[u8],
    data: &mut Value,
    documents: &mut Vec<(PathBuf, Value)>,
    cx: &mut Compile,
) {
    let shown = name(&file.resolved);
    let parsed = if extension(&file.resolved) == "json" {
        document::from_json(bytes)
    } else {
        document::from_yaml(bytes)
    };
    let value = match parsed {
        Ok(value) => value,
        Err(error) => {
            let at = error.line.zip(error.column);
            report(
                cx,
                Remark::error(&shown, at, error.message, "mend the data file"),
            );
            return;
        }
    };
    if value.as_object().is_err() {
        report(
            cx,
            Remark::error(
                &shown,
                Some((1, 1)),
                "the data is not an object",
                "name its members: they become members of `data`",
            ),
        );
        return;
    }
    let rooted = file
        .folders
        .iter()
        .rev()
        .fold(value, |value, folder| object([(folder.as_str(), value)]));
    match document::merge(data, &rooted) {
        Ok(()) => documents.push((file.resolved.clone(), rooted)),
        Err(mut path) => {
            path.reverse();
            let other = documents
                .iter()
                .find(|(_, document)| {
                    path.iter()
                        .try_fold(document, |value, key| document::member(value, key))
                        .is_some()
                })
                .map_or_else(|| "another file".to_owned(), |(path, _)| name(path));
            report(
                cx,
                Remark::error(
                    &shown,
                    None,
                    format!("`data.{}` is also given by {other}", path.join(".")),
                    "give each value once",
                ),
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::metrics::Metrics;

    fn files(files: &[(&str, &str)]) -> (tempfile::TempDir, Compile) {
        let folder = tempfile::tempdir().unwrap();
        for (name, text) in files {
            let path = folder.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        let cx = Compile::new(
            &folder.path().join("gateway.yaml"),
            Arc::new(Metrics::default()),
        );
        (folder, cx)
    }

    fn problems(cx: Compile) -> Vec<String> {
        cx.finish().0.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn data_goes_to_the_path_of_its_folder() {
        let (_folder, mut cx) = files(&[
            ("policies/p.rego", "package p"),
            ("policies/data.json", r#"{"top": 1}"#),
            ("policies/orders/data.yaml", "limits: {read: 5}\n"),
            ("policies/orders/other.yml", "limits: {write: 6}\n"),
            ("policies/.hidden.json", "not json"),
            ("policies/README.md", "not ours"),
        ]);
        let loaded = load(&["policies".into()], &mut cx).unwrap();
        assert_eq!(
            loaded.data,
            document::from_json(br#"{"top":1,"orders":{"limits":{"read":5,"write":6}}}"#).unwrap()
        );
        assert_eq!(loaded.modules.len(), 1);
        assert_eq!(loaded.files.len(), 4);
        let (_, watched) = cx.finish();
        assert!(
            watched
                .iter()
                .any(|p| p.ends_with("policies/orders/data.yaml"))
        );
        assert!(watched.iter().any(|p| p.ends_with("policies")));
    }

    #[test]
    fn table_cases_are_no_data_and_modules_beside_them_are_modules() {
        let (_folder, mut cx) = files(&[
            ("policies/p.rego", "package p"),
            ("policies/cases/reads.yaml", "- name: a list is no data\n"),
            ("policies/orders/cases/deep/more.json", "[1]"),
            ("policies/orders/cases/deny.rego", "package q"),
            ("policies/cases.yaml", "kept: 1\n"),
        ]);
        let loaded = load(&["policies".into()], &mut cx).unwrap();
        assert_eq!(loaded.data, document::from_json(br#"{"kept":1}"#).unwrap());
        assert_eq!(loaded.modules.len(), 2);
        assert_eq!(loaded.files.len(), 3);
    }

    #[test]
    fn a_value_given_twice_names_both_files() {
        let (_folder, mut cx) = files(&[
            ("p/p.rego", "package p"),
            ("p/a/data.json", r#"{"x": {"y": 1}}"#),
            ("p/a/more.json", r#"{"x": {"y": 1}}"#),
        ]);
        assert!(load(&["p".into()], &mut cx).is_none());
        let problems = problems(cx);
        assert!(
            problems[0].contains("more.json")
                && problems[0].contains("`data.a.x.y` is also given by")
                && problems[0].contains("data.json"),
            "{problems:?}"
        );
    }

    #[test]
    fn all_files_are_read_before_the_load_fails() {
        let (_folder, mut cx) = files(&[
            (
                "p/deep.rego",
                &format!("package p\nx := {}1{}", "[".repeat(20), "]".repeat(20)),
            ),
            ("p/a.json", r#"{"k": 1, "k": 2}"#),
            ("p/b.json", "[1]"),
            ("p/c.yaml", "a: [1\n"),
        ]);
        assert!(load(&["p".into(), "missing.rego".into()], &mut cx).is_none());
        let problems = problems(cx);
        assert_eq!(problems.len(), 5, "{problems:#?}");
        assert!(
            problems
                .iter()
                .any(|p| p.contains("deep.rego:2:") && p.contains("nested deeper"))
        );
        assert!(
            problems
                .iter()
                .any(|p| p.contains("a.json:1:") && p.contains("`k` occurs twice"))
        );
        assert!(problems.iter().any(|p| p.contains("missing.rego")));
    }

    #[test]
    fn files_folders_and_bytes_are_bounded() {
        let deep = format!("p/{}x.rego", "d/".repeat(MAX_FOLDERS + 2));
        let (_folder, mut cx) = files(&[(&deep, "package p")]);
        assert!(load(&["p".into()], &mut cx).is_none());

        let (folder, mut cx) = files(&[("p/x.rego", "package p")]);
        let big = File::create(folder.path().join("p/big.json")).unwrap();
        big.set_len(MAX_BYTES + 1).unwrap();
        assert!(load(&["p".into()], &mut cx).is_none());
        assert!(problems(cx)[0].contains("more than 33554432 bytes"));
    }
}
