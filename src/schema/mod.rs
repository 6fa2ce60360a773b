//! The alphabet of `gateway.yaml`: durations and sizes with units, references to secrets, and the
//! context in which every room compiles its own part of the file.
//!
//! Nothing here knows what a section means. A room owns its shape (a serde struct) and its step
//! (`compile(self, cx: &mut Compile) -> Option<T>`); it reports every problem to [`Compile`] instead
//! of stopping at the first.

mod files;
mod positions;
mod share;
mod turn;

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;
use schemars::JsonSchema;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use zeroize::Zeroizing;

pub use files::{ContentDigest, MAX_FILE, digest_files};
pub use positions::{Placed, Position, Positions};
pub use share::Share;
pub use turn::Turn;

use crate::epoch::Epoch;
use crate::metrics::Metrics;

/// How many errors, and how many warnings, one load reports at most. All are counted.
pub const MAX_PROBLEMS: usize = 1_000;

/// One mistake in the configuration, or in a file it names.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Problem {
    /// How bad it is: an error keeps the file from loading, a warning does not.
    pub severity: Severity,
    /// The file with the mistake.
    pub file: PathBuf,
    /// Line, from 1, when it is known.
    pub line: Option<usize>,
    /// Column, from 1, when it is known.
    pub column: Option<usize>,
    /// Where in the document: `routes[2].authn[0]`. Empty for other files.
    pub path: String,
    /// What is wrong, in a sentence without a full stop.
    pub message: String,
    /// How to mend it.
    pub help: Option<String>,
}

impl Problem {
    /// Where it is and what is wrong, on one line.
    pub fn brief(&self) -> String {
        let mut text = self.file.display().to_string();
        for number in [self.line, self.line.and(self.column)]
            .into_iter()
            .flatten()
        {
            text.push_str(&format!(":{number}"));
        }
        text.push_str(": ");
        text.push_str(&self.message);
        text
    }

    /// Writes it to the program's own log.
    pub fn log(&self) {
        let (file, line, column) = (self.file.display(), self.line, self.column);
        let (path, help) = (&self.path, &self.help);
        match self.severity {
            Severity::Error => {
                tracing::error!(%file, line, column, %path, help, "{}", self.message);
            }
            Severity::Warning => {
                tracing::warn!(%file, line, column, %path, help, "{}", self.message);
            }
        }
    }
}

/// How bad a [`Problem`] is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// The configuration does not load.
    Error,
    /// It loads, and the operator should know.
    Warning,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.file.display())?;
        if let Some(line) = self.line {
            write!(f, ":{line}")?;
            if let Some(column) = self.column {
                write!(f, ":{column}")?;
            }
        }
        let word = match self.severity {
            Severity::Error => "error",
            Severity::Warning => "warning",
        };
        write!(f, ": {word}: ")?;
        if !self.path.is_empty() {
            write!(f, "{}: ", self.path)?;
        }
        f.write_str(&self.message)?;
        if let Some(help) = &self.help {
            write!(f, "\n    help: {help}")?;
        }
        Ok(())
    }
}

/// The context of compiling one configuration: where we are in the document, and what is wrong so far.
#[derive(Debug)]
pub struct Compile {
    /// Where compiled parts count what happens to them.
    pub metrics: Arc<Metrics>,
    /// Told by compiled parts when something changes that permissions rest on.
    pub epoch: Arc<Epoch>,
    file: PathBuf,
    base: PathBuf,
    breadcrumb: Vec<String>,
    problems: Vec<Problem>,
    errors: usize,
    warnings: usize,
    watched: BTreeMap<PathBuf, Option<ContentDigest>>,
    document: Arc<Placed>,
}

impl Compile {
    /// A context for the document in `file`; paths inside it are relative to its folder.
    pub fn new(file: &Path, metrics: Arc<Metrics>) -> Self {
        let base = match file.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent.to_path_buf(),
            _ => PathBuf::from("."),
        };
        Self {
            metrics,
            epoch: Arc::default(),
            file: file.to_path_buf(),
            base,
            breadcrumb: Vec::new(),
            problems: Vec::new(),
            errors: 0,
            warnings: 0,
            watched: BTreeMap::new(),
            document: Arc::default(),
        }
    }

    /// The same context for a process that is running already.
    pub fn with_epoch(self, epoch: Arc<Epoch>) -> Self {
        Self { epoch, ..self }
    }

    /// The same context, knowing where in the file each part of the document stands: problems get
    /// their line and column from it.
    pub fn with_positions(self, document: Arc<Placed>) -> Self {
        Self { document, ..self }
    }

    /// A context of the same place that finds problems of its own.
    pub fn apart(&self) -> Self {
        Self {
            metrics: Arc::clone(&self.metrics),
            epoch: Arc::clone(&self.epoch),
            file: self.file.clone(),
            base: self.base.clone(),
            breadcrumb: self.breadcrumb.clone(),
            problems: Vec::new(),
            errors: 0,
            warnings: 0,
            watched: BTreeMap::new(),
            document: Arc::clone(&self.document),
        }
    }

    /// Line and column of a part of the document, or of the nearest part around it.
    pub fn locate(&self, path: &str) -> Option<Position> {
        self.document.positions().locate(path)
    }

    /// Runs `step` one level deeper: `key` is a mapping key (`jwks_uri`) or an index (`[2]`).
    pub fn at<R>(&mut self, key: impl Into<String>, step: impl FnOnce(&mut Self) -> R) -> R {
        self.breadcrumb.push(key.into());
        let result = step(self);
        self.breadcrumb.pop();
        result
    }

    /// Records an error at the current place.
    pub fn problem(&mut self, message: impl Into<String>) {
        self.push(Severity::Error, message.into(), None);
    }

    /// Records an error at the current place, and how to mend it.
    pub fn problem_help(&mut self, message: impl Into<String>, help: impl Into<String>) {
        self.push(Severity::Error, message.into(), Some(help.into()));
    }

    /// Records a warning at the current place.
    pub fn warning(&mut self, message: impl Into<String>, help: impl Into<String>) {
        self.push(Severity::Warning, message.into(), Some(help.into()));
    }

    /// Records a problem as it is: one in another file, such as a policy.
    pub fn report(&mut self, problem: Problem) {
        // Counted apart: a flood of warnings must not hide the error that keeps a file from loading.
        let count = match problem.severity {
            Severity::Error => &mut self.errors,
            Severity::Warning => &mut self.warnings,
        };
        *count += 1;
        if *count <= MAX_PROBLEMS {
            self.problems.push(problem);
        }
    }

    /// Records an error about the key of the current place, rather than its value: an unknown key,
    /// a name that is none.
    pub fn key_problem(&mut self, message: impl Into<String>, help: impl Into<String>) {
        let path = self.place();
        let position = self.document.positions().locate_key(&path);
        self.report(Problem {
            severity: Severity::Error,
            file: self.file.clone(),
            line: position.map(|at| at.line),
            column: position.map(|at| at.column),
            path,
            message: message.into(),
            help: Some(help.into()),
        });
    }

    /// Resolves a path of the document that the gateway writes itself, and is not to be watched.
    pub fn place_of(&self, path: &Path) -> PathBuf {
        self.base.join(path)
    }

    /// Resolves a path of the document, and has the reloader watch it from now on.
    pub fn resolve(&mut self, path: &Path) -> PathBuf {
        let resolved = self.base.join(path);
        self.watched.entry(resolved.clone()).or_default();
        resolved
    }

    /// Resolves a path of the document that its room looks after by itself.
    pub fn unwatched(&self, path: &Path) -> PathBuf {
        self.base.join(path)
    }

    /// Reads a file named by the document; a failure is a problem at the current place. Only
    /// regular files of at most [`MAX_FILE`] bytes are read: a pipe or a device would never end.
    pub fn read(&mut self, path: &Path) -> Option<Vec<u8>> {
        let resolved = self.resolve(path);
        match files::read(&resolved) {
            Ok(bytes) => {
                // What was read now is what the revision vouches for, even if the file changes
                // before the compilation ends.
                let digest = ContentDigest::of(&bytes);
                self.watched.insert(resolved, Some(digest));
                Some(bytes)
            }
            Err(error) => {
                let mut help =
                    "paths are relative to the folder of the configuration file".to_owned();
                if let Some(near) = files::neighbour(&resolved) {
                    help = format!("did you mean `{near}`? {help}");
                }
                self.problem_help(format!("cannot read {}: {error}", resolved.display()), help);
                None
            }
        }
    }

    /// Resolves a secret reference; a failure is a problem at the current place.
    pub fn secret(&mut self, reference: &SecretRef) -> Option<Secret> {
        match reference {
            SecretRef::Env(name) => match std::env::var(name) {
                Ok(value) if !value.is_empty() => Some(Secret::new(value.into_bytes())),
                _ => {
                    self.problem(format!(
                        "the environment variable {name} is not set or is empty"
                    ));
                    None
                }
            },
            SecretRef::File(path) => {
                let mut bytes = self.read(path)?;
                while bytes.last().is_some_and(|b| matches!(b, b'\n' | b'\r')) {
                    bytes.pop();
                }
                if bytes.is_empty() {
                    self.problem(format!("the secret file {} is empty", path.display()));
                    return None;
                }
                Some(Secret::new(bytes))
            }
        }
    }

    /// How many errors there are so far.
    pub fn errors(&self) -> usize {
        self.errors
    }

    /// The place we are at, as the operator reads it: `routes[2].authn[0]`.
    pub fn place(&self) -> String {
        let mut place = String::new();
        for key in &self.breadcrumb {
            if !place.is_empty() && !key.starts_with('[') {
                place.push('.');
            }
            place.push_str(key);
        }
        place
    }

    /// Every problem so far.
    pub fn problems(&self) -> &[Problem] {
        &self.problems
    }

    /// The digest over the files named so far: what was read, and for folders and files that were
    /// only resolved, what is there now.
    pub fn digest(&self) -> ContentDigest {
        digest_files(
            self.watched
                .iter()
                .map(|(path, known)| (path.as_path(), *known)),
        )
    }

    /// The files named so far.
    pub fn watched(&self) -> impl Iterator<Item = &Path> {
        self.watched.keys().map(PathBuf::as_path)
    }

    /// Everything that was found, and the files to watch.
    pub fn finish(self) -> (Vec<Problem>, Vec<PathBuf>) {
        (self.problems, self.watched.into_keys().collect())
    }

    fn push(&mut self, severity: Severity, message: String, help: Option<String>) {
        let path = self.place();
        let position = self.locate(&path);
        self.report(Problem {
            severity,
            file: self.file.clone(),
            line: position.map(|at| at.line),
            column: position.map(|at| at.column),
            path,
            message,
            help,
        });
    }
}

/// The name among `known` that `name` was most likely meant to be.
pub fn suggest<'k>(name: &str, known: impl IntoIterator<Item = &'k str>) -> Option<&'k str> {
    /// Below this similarity (Jaro-Winkler, 0 to 1) a guess would rather confuse.
    const SIMILAR: f64 = 0.8;
    let folded = name.to_lowercase().replace('_', "-");
    known
        .into_iter()
        .map(|candidate| {
            let other = candidate.to_lowercase().replace('_', "-");
            (strsim::jaro_winkler(&folded, &other), candidate)
        })
        .filter(|(similarity, _)| *similarity >= SIMILAR)
        .max_by(|(a, _), (b, _)| a.total_cmp(b))
        .map(|(_, candidate)| candidate)
}

/// Help for an unknown name: the likely one, or all that exist.
pub fn known_names<'k>(name: &str, known: impl IntoIterator<Item = &'k str>) -> String {
    /// More names than this would be a list that nobody reads.
    const SHOWN: usize = 12;
    let known: Vec<&str> = known.into_iter().collect();
    if let Some(meant) = suggest(name, known.iter().copied()) {
        return format!("did you mean `{meant}`?");
    }
    if known.is_empty() {
        return "there are none in the file yet".to_owned();
    }
    let mut shown: Vec<String> = known
        .iter()
        .take(SHOWN)
        .map(|name| format!("`{name}`"))
        .collect();
    if known.len() > SHOWN {
        shown.push("…".to_owned());
    }
    format!("there are: {}", shown.join(", "))
}

/// A length of time with its unit: `250ms`, `30s`, `5m`, `1h`, `7d`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Span(Duration);

impl Span {
    /// A span of whole seconds, for defaults.
    pub const fn seconds(seconds: u64) -> Self {
        Self(Duration::from_secs(seconds))
    }

    /// A span of milliseconds, for defaults.
    pub const fn millis(millis: u64) -> Self {
        Self(Duration::from_millis(millis))
    }

    /// A span of this length.
    pub const fn of(length: Duration) -> Self {
        Self(length)
    }

    /// The span as the standard library's type.
    pub const fn get(self) -> Duration {
        self.0
    }

    fn parse(text: &str) -> Option<Self> {
        let split = text.find(|c: char| !c.is_ascii_digit())?;
        let (number, unit) = text.split_at(split);
        let number: u64 = number.parse().ok()?;
        let millis = match unit {
            "ms" => 1,
            "s" => 1_000,
            "m" => 60_000,
            "h" => 3_600_000,
            "d" => 86_400_000,
            _ => return None,
        };
        Some(Self(Duration::from_millis(number.checked_mul(millis)?)))
    }
}

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let millis = self.0.as_millis();
        let (size, unit) = [
            (86_400_000, "d"),
            (3_600_000, "h"),
            (60_000, "m"),
            (1_000, "s"),
        ]
        .into_iter()
        .find(|(size, _)| millis != 0 && millis.is_multiple_of(*size))
        .unwrap_or((1, "ms"));
        write!(f, "{}{unit}", millis / size)
    }
}

impl fmt::Debug for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A number of bytes with its unit: `512B`, `64KiB`, `10MiB`, `1GiB`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Size(u64);

impl Size {
    /// A size in bytes, for defaults.
    pub const fn bytes(bytes: u64) -> Self {
        Self(bytes)
    }

    /// A size in KiB, for defaults.
    pub const fn kib(kib: u64) -> Self {
        Self(kib * 1024)
    }

    /// A size in MiB, for defaults.
    pub const fn mib(mib: u64) -> Self {
        Self(mib * 1024 * 1024)
    }

    /// The number of bytes.
    pub const fn get(self) -> u64 {
        self.0
    }

    /// The number of bytes as a length in memory, saturated to what memory can hold.
    #[expect(
        clippy::len_without_is_empty,
        reason = "it is a length, not a container"
    )]
    pub fn len(self) -> usize {
        usize::try_from(self.0).unwrap_or(usize::MAX)
    }

    fn parse(text: &str) -> Option<Self> {
        let split = text.find(|c: char| !c.is_ascii_digit())?;
        let (number, unit) = text.split_at(split);
        let number: u64 = number.parse().ok()?;
        let factor: u64 = match unit {
            "B" => 1,
            "KiB" => 1 << 10,
            "MiB" => 1 << 20,
            "GiB" => 1 << 30,
            _ => return None,
        };
        Some(Self(number.checked_mul(factor)?))
    }
}

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (shift, unit) = [(30, "GiB"), (20, "MiB"), (10, "KiB")]
            .into_iter()
            .find(|(shift, _)| self.0 != 0 && self.0.is_multiple_of(1 << shift))
            .unwrap_or((0, "B"));
        write!(f, "{}{unit}", self.0 >> shift)
    }
}

impl fmt::Debug for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Where a secret is kept: `env:NAME` or `file:path`. The file never holds the secret itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SecretRef {
    /// An environment variable.
    Env(String),
    /// A file; a trailing line break is not part of the secret.
    File(PathBuf),
}

impl SecretRef {
    fn parse(text: &str) -> Option<Self> {
        match text.split_once(':')? {
            ("env", name) if !name.is_empty() => Some(Self::Env(name.to_owned())),
            ("file", path) if !path.is_empty() => Some(Self::File(PathBuf::from(path))),
            _ => None,
        }
    }
}

impl fmt::Display for SecretRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Env(name) => write!(f, "env:{name}"),
            Self::File(path) => write!(f, "file:{}", path.display()),
        }
    }
}

/// A network (`10.0.0.0/8`, `fd00::/8`) or a single address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Network(IpNet);

impl Network {
    /// The network as the library's type, without host bits.
    pub const fn get(self) -> IpNet {
        self.0
    }

    fn parse(text: &str) -> Option<Self> {
        let network = match text.parse::<IpAddr>() {
            Ok(address) => IpNet::from(address),
            Err(_) => text.parse::<IpNet>().ok()?,
        };
        Some(Self(network.trunc()))
    }
}

impl fmt::Display for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A secret in memory: never printed, never serialised, zeroed when dropped.
#[derive(Clone)]
pub struct Secret(Zeroizing<Vec<u8>>);

impl Secret {
    /// Takes over the bytes.
    pub fn new(bytes: Vec<u8>) -> Self {
        Self(Zeroizing::new(bytes))
    }

    /// The bytes, for the one call that needs them.
    pub fn expose(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(…)")
    }
}

/// Named blocks of the file, in the order of their names.
pub type Named<T> = BTreeMap<String, T>;

macro_rules! text_scalar {
    ($type:ty, $name:literal, $expected:literal, $pattern:literal) => {
        impl<'de> Deserialize<'de> for $type {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                // Any scalar is read as text first: a bare number gets the same explanation as a
                // misspelt unit, instead of "invalid type".
                let value = serde_yaml::Value::deserialize(deserializer)?;
                let shown = match &value {
                    serde_yaml::Value::String(text) => text.clone(),
                    serde_yaml::Value::Number(number) => number.to_string(),
                    _ => String::new(),
                };
                value.as_str().and_then(Self::parse).ok_or_else(|| {
                    serde::de::Error::custom(format!(concat!("`{}` is not ", $expected), shown))
                })
            }
        }

        impl Serialize for $type {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        impl JsonSchema for $type {
            fn schema_name() -> std::borrow::Cow<'static, str> {
                $name.into()
            }

            fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
                schemars::json_schema!({ "type": "string", "pattern": $pattern, "description": $expected })
            }
        }
    };
}

text_scalar!(
    Span,
    "Duration",
    "a duration with its unit, such as `250ms`, `30s`, `5m`, `1h` or `7d`",
    "^[0-9]+(ms|s|m|h|d)$"
);
text_scalar!(
    Size,
    "Size",
    "a size with its unit, such as `512B`, `64KiB`, `10MiB` or `1GiB`",
    "^[0-9]+(B|KiB|MiB|GiB)$"
);
text_scalar!(
    Share,
    "Share",
    "a share in percent, such as `0.1%`, `5%` or `100%`",
    "^[0-9]+([.][0-9]{1,4})?%$"
);
text_scalar!(
    SecretRef,
    "SecretReference",
    "a reference to a secret, `env:NAME` or `file:path`",
    "^(env|file):.+$"
);
text_scalar!(
    Network,
    "Network",
    "an address or a network, such as `10.0.0.0/8` or `2001:db8::1`",
    "^[0-9a-fA-F.:]+(/[0-9]+)?$"
);
