//! A block of `policies` in the configuration, and what it takes to become a [`Policy`].

use std::fmt;
use std::num::NonZeroU64;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use aws_lc_rs::digest;
use http::HeaderName;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::value::MapAccessDeserializer;
use serde::de::{self, MapAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};

use super::cache::Bounds;
use super::cache::projection::Projection;
use super::gate::child;
use super::gate::{Choice, Job};
use super::rego::{self, Limits, Program};
use super::source::load::{self, Loaded};
use super::source::reads::{self, Reads};
use super::source::remark::Remark;
use super::{Compiled, DecidedBy, Policy, Rules};
use crate::authz::source::check;
use crate::schema::{Compile, Size, Span};

/// Shortest and longest time that a decision may be given.
const TIME: (Duration, Duration) = (Duration::from_millis(1), Duration::from_secs(1));
/// Fewest and most instructions that a decision may be given.
const INSTRUCTIONS: (u32, u32) = (1_000, 10_000_000);
/// Least and most memory that a decision may be given.
const MEMORY: (Size, Size) = (Size::mib(1), Size::mib(1024));
/// Shortest and longest time that decisions may be kept.
const CACHE_LIFETIME: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(3600));
/// Least and most memory for decisions that are kept.
const CACHE_BYTES: (Size, Size) = (Size::kib(64), Size::mib(1024));
/// Most decisions that may be kept.
const CACHE_ENTRIES: u32 = 10_000_000;

/// One block of the `policies` section: Rego modules and data with the rule that decides.
///
/// Modules are Rego version 1. A policy goes live after its source was checked (no recursion, no
/// builtin whose work cannot be bounded), its own `test_*` rules passed, and regorus's two engines
/// gave the same answers to generated inputs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct PolicyConfig {
    /// Files and folders. Of folders, all `.rego` files are modules (those that end in `_test.rego`
    /// are tests and never decide anything), and all `.json`, `.yaml` and `.yml` files are data: an
    /// object each, merged into `data` at the path of its folder, as `opa run -d` does. A data file
    /// named here fills `data` itself.
    pub files: Vec<PathBuf>,
    /// The rule that decides: `data.orders.decision`.
    pub entrypoint: String,
    /// What one decision may use up; more is a denial.
    #[serde(default)]
    pub budget: BudgetConfig,
    /// How many decisions each worker keeps to give them again to the same question: requests that
    /// are equal in everything that the policy can read of them. `false` keeps none. Policies that
    /// read what is different in every request (`input.request.id`, the time, the whole of `input`)
    /// are evaluated for each.
    #[serde(default, deserialize_with = "cache_or_false")]
    #[schemars(schema_with = "cache_or_false_schema")]
    pub decision_cache: DecisionCacheConfig,
    /// Request headers that policies must not see because they carry credentials. `authorization`,
    /// `cookie`, `x-api-key` and their like are never seen.
    #[serde(default)]
    pub hidden_headers: Vec<String>,
}

/// What one decision of a policy may use up.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct BudgetConfig {
    /// Time on the wall clock, `1ms` to `1s`. Looked at every 64 instructions of the bytecode
    /// machine, and at every step of the interpreter.
    pub time: Span,
    /// Instructions of the bytecode machine, 1000 to 10000000. The interpreter counts time only.
    pub instructions: u32,
    /// Memory that the decision may allocate beside its input, `1MiB` to `1GiB`; looked at after
    /// every instruction of the bytecode machine. The interpreter is held by time and by the refusal
    /// of builtins that allocate without bound.
    pub memory: Size,
}

/// Which decisions of a policy are kept, on each worker.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct DecisionCacheConfig {
    /// Longest time that a decision is kept, `1s` to `1h`. It is forgotten earlier when the
    /// credential that it was made for ends, or `recheck_after` passes, and at once when the policy
    /// or its data change.
    pub lifetime: Span,
    /// Most memory for them, `64KiB` to `1GiB`.
    pub max_bytes: Size,
    /// Most decisions, 1 to 10000000; `0` keeps none.
    pub max_entries: u32,
}

impl Default for DecisionCacheConfig {
    fn default() -> Self {
        Self {
            lifetime: Span::seconds(60),
            max_bytes: Size::mib(16),
            max_entries: 10_000,
        }
    }
}

impl DecisionCacheConfig {
    /// Keeps none.
    fn off() -> Self {
        Self {
            max_entries: 0,
            ..Self::default()
        }
    }

    fn bounds(&self) -> Option<Bounds> {
        let entries = usize::try_from(self.max_entries).ok()?;
        (entries > 0).then(|| Bounds {
            entries,
            bytes: self.max_bytes.len(),
            lifetime: self.lifetime.get(),
        })
    }
}

/// `false`, or the bounds.
fn cache_or_false<'de, D: Deserializer<'de>>(d: D) -> Result<DecisionCacheConfig, D::Error> {
    struct CacheOrFalse;

    impl<'de> Visitor<'de> for CacheOrFalse {
        type Value = DecisionCacheConfig;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("`false`, or a block with `max_entries`, `max_bytes` and `lifetime`")
        }

        fn visit_bool<E: de::Error>(self, on: bool) -> Result<Self::Value, E> {
            Ok(if on {
                DecisionCacheConfig::default()
            } else {
                DecisionCacheConfig::off()
            })
        }

        fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Self::Value, A::Error> {
            Deserialize::deserialize(MapAccessDeserializer::new(map))
        }
    }
    d.deserialize_any(CacheOrFalse)
}

fn cache_or_false_schema(generator: &mut SchemaGenerator) -> Schema {
    let block = generator.subschema_for::<DecisionCacheConfig>();
    json_schema!({
        "anyOf": [{ "type": "boolean" }, block],
        "default": DecisionCacheConfig::default(),
    })
}

impl Default for BudgetConfig {
    fn default() -> Self {
        Self {
            time: Span::millis(10),
            instructions: 100_000,
            memory: Size::mib(16),
        }
    }
}

impl PolicyConfig {
    /// Compiles one block; takes over `previous` when neither it nor any of its files changed.
    /// Blocks while the policy is judged: at most [`super::GATE_TIME`], and not at all when this
    /// process judged the same files before.
    pub fn compile(
        self,
        name: &str,
        previous: Option<&Arc<Policy>>,
        cx: &mut Compile,
    ) -> Option<Arc<Policy>> {
        let before = cx.errors();
        if name == "public" {
            cx.problem_help(
                "the name `public` is taken by the policy that allows everybody",
                "give the policy another name",
            );
        }
        self.check(cx);
        let hidden_headers = self.hidden(cx);
        let loaded = if self.files.is_empty() {
            cx.at("files", |cx| {
                cx.problem_help(
                    "no files are named",
                    "name the policy's files or its folder",
                );
            });
            None
        } else {
            cx.at("files", |cx| load::load(&self.files, cx))
        };
        let loaded = loaded.filter(|_| cx.errors() == before)?;
        let digest = self.digest(name, &loaded);

        if let Some(previous) = previous
            && let Rules::Rego(compiled) = &previous.rules
            && compiled.digest == digest
        {
            tell(compiled.warnings.clone(), cx);
            return Some(Arc::clone(previous));
        }

        let job = Job {
            modules: loaded.modules,
            data: loaded.data.to_json_str().ok()?,
            entrypoint: self.entrypoint.clone(),
            instructions: usize::try_from(self.budget.instructions).unwrap_or(usize::MAX),
            seed: seed(&digest),
        };
        // Reports name files as this configuration resolves them.
        let place = loaded.files.first().map(|file| file.display().to_string());
        let report = child::examine(&job, &format!("{digest} {}", place.unwrap_or_default()));
        let mut warnings: Vec<Remark> = report
            .remarks
            .iter()
            .filter(|r| r.warning)
            .cloned()
            .collect();
        tell(report.remarks, cx);
        let choice = report.engine.filter(|_| cx.errors() == before)?;
        let (program, reads) = match program(job, &loaded.data, choice, &self.budget) {
            Ok(program) => program,
            Err(remarks) => {
                tell(remarks, cx);
                return None;
            }
        };
        let projection = Projection::of(&reads, &hidden_headers);
        let remembered = match (self.decision_cache.bounds(), projection) {
            (None, _) => None,
            (Some(bounds), Ok(projection)) => Some((projection, bounds)),
            (Some(_), Err(volatile)) => {
                let remark = Remark::warning(
                    &volatile.place.file,
                    Some(volatile.place.at),
                    format!(
                        "every request is evaluated anew: the policy reads {}, which differs from request to request",
                        volatile.what
                    ),
                    "`decision_cache: false` says that this is meant",
                );
                tell(vec![remark.clone()], cx);
                warnings.push(remark);
                None
            }
        };
        let compiled = Compiled {
            program: Arc::new(program),
            files: loaded.files,
            hidden_headers,
            wanted: reads.wanted(),
            remembered,
            warnings,
            metrics: cx.metrics.policy(name),
            digest,
        };
        let decided_by = DecidedBy {
            policy: name.into(),
            revision: compiled.digest.get(..16).unwrap_or_default().into(),
        };
        Some(Arc::new(Policy {
            decided_by,
            rules: Rules::Rego(Box::new(compiled)),
        }))
    }

    fn check(&self, cx: &mut Compile) {
        let fits = |part: &str| {
            !part.is_empty()
                && !part.starts_with(|c: char| c.is_ascii_digit())
                && part.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_')
        };
        let mut parts = self.entrypoint.split('.');
        if parts.next() != Some("data") || parts.clone().count() < 2 || !parts.all(fits) {
            cx.at("entrypoint", |cx| {
                cx.problem_help(
                    "the entry point is no path to a rule",
                    "write `data`, the package and the rule: `data.orders.decision`",
                );
            });
        }
        cx.at("budget", |cx| {
            let time = self.budget.time.get();
            if time < TIME.0 || time > TIME.1 {
                cx.at("time", |cx| {
                    cx.problem_help(
                        "the time for a decision is out of range",
                        "between `1ms` and `1s`: a decision holds up every request of its core",
                    );
                });
            }
            if !(INSTRUCTIONS.0..=INSTRUCTIONS.1).contains(&self.budget.instructions) {
                cx.at("instructions", |cx| {
                    cx.problem_help(
                        "the number of instructions for a decision is out of range",
                        format!("between {} and {}", INSTRUCTIONS.0, INSTRUCTIONS.1),
                    );
                });
            }
            if !(MEMORY.0..=MEMORY.1).contains(&self.budget.memory) {
                cx.at("memory", |cx| {
                    cx.problem_help(
                        "the memory for a decision is out of range",
                        format!("between `{}` and `{}`", MEMORY.0, MEMORY.1),
                    );
                });
            }
        });
        cx.at("decision_cache", |cx| {
            let DecisionCacheConfig {
                lifetime,
                max_bytes,
                max_entries,
            } = self.decision_cache;
            if !(CACHE_LIFETIME.0..=CACHE_LIFETIME.1).contains(&lifetime.get()) {
                cx.at("lifetime", |cx| {
                    cx.problem_help(
                        "the time that decisions are kept is out of range",
                        "between `1s` and `1h`",
                    );
                });
            }
            if !(CACHE_BYTES.0..=CACHE_BYTES.1).contains(&max_bytes) {
                cx.at("max_bytes", |cx| {
                    cx.problem_help(
                        "the memory for decisions that are kept is out of range",
                        format!("between `{}` and `{}`", CACHE_BYTES.0, CACHE_BYTES.1),
                    );
                });
            }
            if max_entries > CACHE_ENTRIES {
                cx.at("max_entries", |cx| {
                    cx.problem_help(
                        "the number of decisions that are kept is out of range",
                        format!("at most {CACHE_ENTRIES}; `0` keeps none"),
                    );
                });
            }
        });
    }

    fn hidden(&self, cx: &mut Compile) -> Vec<HeaderName> {
        let mut names = Vec::new();
        for (index, name) in self.hidden_headers.iter().enumerate() {
            match HeaderName::from_bytes(name.as_bytes()) {
                Ok(name) => names.push(name),
                Err(_) => cx.at(format!("hidden_headers[{index}]"), |cx| {
                    cx.problem_help("this is no header name", "write it as in `x-legacy-token`");
                }),
            }
        }
        names
    }

    /// SHA-256 over all that makes the policy decide as it does, each part with its length.
    fn digest(&self, name: &str, loaded: &Loaded) -> String {
        let mut context = digest::Context::new(&digest::SHA256);
        let mut part = |bytes: &[u8]| {
            context.update(&bytes.len().to_be_bytes());
            context.update(bytes);
        };
        for (path, bytes) in &loaded.contents {
            part(path.as_os_str().as_encoded_bytes());
            part(bytes);
        }
        part(name.as_bytes());
        part(self.entrypoint.as_bytes());
        part(self.budget.time.to_string().as_bytes());
        part(&self.budget.instructions.to_be_bytes());
        part(&self.budget.memory.get().to_be_bytes());
        for header in &self.hidden_headers {
            part(header.as_bytes());
        }
        let cache = &self.decision_cache;
        part(cache.lifetime.to_string().as_bytes());
        part(&cache.max_bytes.get().to_be_bytes());
        part(&cache.max_entries.to_be_bytes());
        context
            .finish()
            .as_ref()
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect()
    }
}

fn program(
    job: Job,
    data: &crate::document::Value,
    choice: Choice,
    budget: &BudgetConfig,
) -> Result<(Program, Reads), Vec<Remark>> {
    let file = job
        .modules
        .first()
        .map(|(file, _)| file.clone())
        .unwrap_or_default();
    let live: Vec<rego::Source> = job
        .modules
        .into_iter()
        .filter(|(file, _)| !check::is_test_file(file))
        .collect();
    let mut engine = rego::parse(&live, data)?;
    let reads = reads::of(engine.get_modules(), &job.entrypoint);
    let limits = Limits {
        time: budget.time.get(),
        instructions: job.instructions,
        memory: NonZeroU64::new(budget.memory.get()).unwrap_or(NonZeroU64::MIN),
    };
    match choice {
        Choice::Rvm => Program::compiled(engine, &job.entrypoint, limits),
        Choice::Interpreter => Program::interpreted(engine, &job.entrypoint, limits),
    }
    .map(|program| (program, reads))
    .map_err(|text| vec![Remark::from_engine(&file, &text)])
}

fn tell(remarks: Vec<Remark>, cx: &mut Compile) {
    for remark in remarks {
        let problem = remark.into_problem(cx.place());
        cx.report(problem);
    }
}

fn seed(digest: &str) -> u64 {
    digest
        .get(..16)
        .and_then(|hex| u64::from_str_radix(hex, 16).ok())
        .unwrap_or(0)
}
