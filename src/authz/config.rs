//! A block of `policies` in the configuration, and what it takes to become a [`Policy`].

use std::num::NonZeroU64;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use aws_lc_rs::digest;
use http::HeaderName;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::child;
use super::gate::{Choice, Job};
use super::load::{self, Loaded};
use super::rego::{self, Limits, Program};
use super::remark::Remark;
use super::{Compiled, DecidedBy, Policy, Rules, check};
use crate::schema::{Compile, Size, Span};

/// Shortest and longest time that a decision may be given.
const TIME: (Duration, Duration) = (Duration::from_millis(1), Duration::from_secs(1));
/// Fewest and most instructions that a decision may be given.
const INSTRUCTIONS: (u32, u32) = (1_000, 10_000_000);
/// Least and most memory that a decision may be given.
const MEMORY: (Size, Size) = (Size::mib(1), Size::mib(1024));

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
        let warnings: Vec<Remark> = report
            .remarks
            .iter()
            .filter(|r| r.warning)
            .cloned()
            .collect();
        tell(report.remarks, cx);
        let choice = report.engine.filter(|_| cx.errors() == before)?;
        let program = match program(job, &loaded.data, choice, &self.budget) {
            Ok(program) => program,
            Err(remarks) => {
                tell(remarks, cx);
                return None;
            }
        };
        let compiled = Compiled {
            program: Arc::new(program),
            files: loaded.files,
            hidden_headers,
            warnings,
            metrics: Arc::clone(&cx.metrics),
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
) -> Result<Program, Vec<Remark>> {
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
    let engine = rego::parse(&live, data)?;
    let limits = Limits {
        time: budget.time.get(),
        instructions: job.instructions,
        memory: NonZeroU64::new(budget.memory.get()).unwrap_or(NonZeroU64::MIN),
    };
    match choice {
        Choice::Rvm => Program::compiled(engine, &job.entrypoint, limits),
        Choice::Interpreter => Program::interpreted(engine, &job.entrypoint, limits),
    }
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
