//! One of the two configurations: a file, a folder, or a git revision taken out into a folder of its own.

use std::collections::BTreeMap;
use std::env;
use std::fs::{self, DirBuilder};
use std::os::unix::fs::{DirBuilderExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use crate::authz::inspect::Vocabulary;
use crate::policy::ask::who_can::words_of;
use crate::policy::check::parameters;
use crate::policy::scenario::{Ground, Told, Unanswered, Wanted, filled};
use crate::policy::show::aside;
use crate::request::RequestId;
use crate::route::{DEFAULT_METHODS, RouteConfig};

/// The file in a folder that is named.
const FILE: &str = "gateway.yaml";
/// Most files beside the repository that a revision is completed with.
const MAX_LINKS: usize = 1_000;

/// One side.
#[derive(Debug)]
pub(super) struct Side {
    pub(super) name: String,
    pub(super) ground: Ground,
    /// By policy.
    pub(super) vocabularies: BTreeMap<String, Vocabulary>,
    _folder: Option<Folder>,
}

fn question(text: impl Into<String>) -> Unanswered {
    Unanswered::Question(text.into())
}

impl Side {
    /// A file, a folder with one, or a revision that has it.
    pub(super) fn open(name: &str, config: &Path) -> Result<Self, Unanswered> {
        let path = Path::new(name);
        if path.is_dir() {
            return Self::load(
                name,
                &path.join(config.file_name().unwrap_or(FILE.as_ref())),
                None,
            );
        }
        if path.is_file() {
            return Self::load(name, path, None);
        }
        let (folder, file) = taken_out(name, config)?;
        Self::load(name, &file, Some(folder))
    }

    pub(super) fn of_file(file: &Path) -> Result<Self, Unanswered> {
        Self::load(&file.display().to_string(), file, None)
    }

    /// A configuration as it would be with a candidate in the place of its policy.
    pub(super) fn with_candidate(file: &Path, candidate: &str) -> Result<Self, Unanswered> {
        let name = format!("{} with candidate {candidate}", file.display());
        Self::of_ground(&name, Ground::with_candidate(file, candidate)?, None)
    }

    fn load(name: &str, file: &Path, folder: Option<Folder>) -> Result<Self, Unanswered> {
        Self::of_ground(name, Ground::load(file)?, folder)
    }

    fn of_ground(name: &str, ground: Ground, folder: Option<Folder>) -> Result<Self, Unanswered> {
        aside(ground.note(name));
        let policies = ground.document.policies.keys();
        let vocabularies = policies
            .filter_map(|policy| Some((policy.clone(), words_of(&ground, policy)?)))
            .collect();
        Ok(Self {
            name: name.to_owned(),
            ground,
            vocabularies,
            _folder: folder,
        })
    }

    /// The words of the policy that answered.
    pub(super) fn vocabulary(&self, told: &Told) -> Option<&Vocabulary> {
        let (policy, _) = told.policy.as_ref()?;
        if &**policy == "public" {
            static NONE: std::sync::LazyLock<Vocabulary> =
                std::sync::LazyLock::new(Vocabulary::default);
            return Some(&NONE);
        }
        self.vocabularies.get(&**policy)
    }

    /// The words that may be values of the route's path parameters.
    pub(super) fn words(&self, route: &RouteConfig) -> Vec<String> {
        let words = route
            .policy
            .as_ref()
            .and_then(|name| self.vocabularies.get(name));
        let Some(words) = words.filter(|words| {
            reads(words, &["route", "params"]) || reads(words, &["request", "path"])
        }) else {
            return Vec::new();
        };
        // Names of things mostly have digits in them; of people and roles, seldom.
        let fits = |word: &&String| {
            !word.is_empty()
                && word.len() <= 64
                && word
                    .bytes()
                    .all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
                && word.bytes().any(|b| b.is_ascii_digit())
        };
        words.words.iter().filter(fits).cloned().collect()
    }

    /// Everything of a route that a decision can depend on.
    pub(super) fn key(&self, route: &RouteConfig) -> String {
        let policy = route.policy.as_deref().unwrap_or_default();
        let revision = self.ground.snapshot.policies.get(policy);
        let revision = revision.map(|policy| policy.revision().to_owned());
        let words = self.vocabularies.get(policy);
        let read = |path: &[&str]| words.is_some_and(|words| reads(words, path));
        let mut params: Vec<String> = parameters(&route.path).collect();
        params.sort();
        let facts = (
            (&route.authn, policy, revision, &route.methods),
            read(&["route", "labels"]).then_some(&route.labels),
            (&route.headers, &route.listeners, params),
            serde_json::to_string(&(&route.paths, &route.upgrades)).unwrap_or_default(),
            read(&["route", "name"]).then_some(&route.name),
            (read(&["request", "path"]) || read(&["request", "segments"])).then_some(&route.path),
            read(&["request", "host"]).then_some(&route.hosts),
        );
        format!("{facts:?}")
    }
}

/// Whether a policy reads this path, or something around it.
fn reads(words: &Vocabulary, path: &[&str]) -> bool {
    words.reads.iter().any(|read| {
        let shorter = read.len().min(path.len());
        read.iter().take(shorter).eq(path.iter().take(shorter))
    })
}

/// Requests that a route is made for: its methods, and a few values for its parameters.
pub(super) fn requests(
    route: &RouteConfig,
    words: &[String],
    samples: usize,
) -> Result<Vec<Wanted>, Unanswered> {
    let methods: Vec<String> = match &route.methods {
        Some(methods) => methods.clone(),
        None => DEFAULT_METHODS.iter().map(ToString::to_string).collect(),
    };
    let host = route.hosts.first().map_or("*", String::as_str);
    let host = match host.strip_prefix("*.") {
        Some(suffix) => Some(format!("any.{suffix}")),
        None if host == "*" => None,
        None => Some(host.to_owned()),
    };
    let mut values: Vec<&str> = words.iter().map(String::as_str).take(samples).collect();
    if values.is_empty() || !route.path.contains('{') {
        values = vec!["1"];
    }
    let mut requests = Vec::new();
    for method in &methods {
        for value in &values {
            let mut wanted = Wanted::of(method, &filled(&route.path, value))?;
            wanted.host.clone_from(&host);
            if let Some(listeners) = &route.listeners {
                wanted.listener = listeners.first().cloned();
            }
            for (name, value) in &route.headers {
                wanted.header(&format!("{name}: {value}"))?;
            }
            requests.push(wanted);
        }
    }
    Ok(requests)
}

/// A folder that goes when it is no longer needed.
#[derive(Debug)]
struct Folder(PathBuf);

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// Runs git; its own words are told when it fails.
fn git(folder: &Path, index: Option<&Path>, arguments: &[&str]) -> Result<Output, Unanswered> {
    let mut command = Command::new("git");
    command
        .arg("-C")
        .arg(folder)
        .args(arguments)
        .stdin(Stdio::null());
    if let Some(index) = index {
        command.env("GIT_INDEX_FILE", index);
    }
    let output = command
        .output()
        .map_err(|error| question(format!("git cannot be started: {error}")))?;
    if output.status.success() {
        Ok(output)
    } else {
        let text = String::from_utf8_lossy(&output.stderr);
        Err(question(
            text.trim().trim_start_matches("fatal: ").to_owned(),
        ))
    }
}

fn text(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}

/// Takes a revision out of the repository of the configuration, into a folder of its own: the
/// repository, its index and its working tree stay as they are. Files that git ignores, such as
/// certificates, are those of now.
fn taken_out(revision: &str, config: &Path) -> Result<(Folder, PathBuf), Unanswered> {
    let neither = |why: &Unanswered| {
        question(format!(
            "`{revision}` is neither a file, nor a folder, nor a revision: {why}"
        ))
    };
    if revision.starts_with('-') {
        return Err(question(format!("`{revision}` is no revision")));
    }
    let beside = match config.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    git(beside, None, &["rev-parse", "--git-dir"])
        .map_err(|_| neither(&question("there is no git repository here")))?;
    let commit = format!("{revision}^{{commit}}");
    let commit = git(beside, None, &["rev-parse", "--verify", "--quiet", &commit])
        .map_err(|_| neither(&question("git knows no such revision")))?;
    let top = git(beside, None, &["rev-parse", "--show-toplevel"])?;
    let prefix = git(beside, None, &["rev-parse", "--show-prefix"])?;
    let (commit, top, prefix) = (text(&commit), PathBuf::from(text(&top)), text(&prefix));
    let path = env::temp_dir().join(format!("portcullis-diff-{}", RequestId::random().as_str()));
    DirBuilder::new()
        .mode(0o700)
        .create(&path)
        .map_err(|error| question(format!("cannot make {}: {error}", path.display())))?;
    let folder = Folder(path);
    let tree = folder.0.join("tree");
    let index = folder.0.join("index");
    git(&top, Some(&index), &["read-tree", &commit])?;
    let into = format!("--prefix={}/", tree.display());
    git(
        &top,
        Some(&index),
        &["checkout-index", "--all", "--quiet", &into],
    )?;
    let ignored = git(
        &top,
        None,
        &[
            "ls-files",
            "--others",
            "--ignored",
            "--exclude-standard",
            "--directory",
            "-z",
        ],
    )?;
    let names = String::from_utf8_lossy(&ignored.stdout).into_owned();
    for name in names
        .split('\0')
        .filter(|name| !name.is_empty())
        .take(MAX_LINKS)
    {
        let name = name.trim_end_matches('/');
        let link = tree.join(name);
        if !link.exists()
            && let Some(parent) = link.parent()
            && fs::create_dir_all(parent).is_ok()
        {
            let _ = symlink(top.join(name), link);
        }
    }
    let file = config.file_name().unwrap_or(FILE.as_ref());
    let file = tree.join(prefix).join(file);
    if !file.is_file() {
        return Err(question(format!(
            "revision {revision} has no {}",
            config.display()
        )));
    }
    Ok((folder, file))
}
