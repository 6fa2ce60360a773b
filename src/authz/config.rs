//! A block of `policies` in the configuration, and what it takes to become a [`Policy`].

use std::collections::BTreeSet;
use std::fmt;
use std::num::NonZeroU64;
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use aws_lc_rs::digest;
use http::HeaderName;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::value::MapAccessDeserializer;
use serde::de::{self, MapAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};

use super::body::{BodyConfig, BodyTerms, WhenLarger};
use super::cache::Bounds;
use super::cache::projection::Projection;
use super::envoy;
use super::gate::child;
use super::gate::{Choice, Job};
use super::published::InputDocument;
use super::rego::{self, Limits, Parsed, Places, Program, Reading};
use super::source::load::{self, Loaded};
use super::source::reads::{self, Reads};
use super::source::remark::Remark;
use super::{Basis, Compiled, DecidedBy, Policy, Rules, Sees};
use crate::authz::source::{check, guard};
use crate::bundle::{Bundle, Content, package};
use crate::document::{self, Value};
use crate::schema::{Compile, Named, Problem, Severity, Size, Span, known_names};

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
    /// named here fills `data` itself. Documents in folders called `cases` are no data but questions
    /// to the policy, for `portcullis policy test`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub files: Vec<PathBuf>,
    /// Blocks under `bundles` whose modules and data are the policy's, beside `files` or instead of
    /// them. What they own (`roots` of their manifests) must not overlap, and local modules and data
    /// lie outside it; local tests may lie inside. Until all of them are there, its routes answer 503.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub bundles: Vec<String>,
    /// The rule that decides: `data.orders.decision`. The spelling `orders/decision` means the same.
    pub entrypoint: String,
    /// What it sees, and what its answers are. `portcullis`: our own document. `envoy`: that of OPA's
    /// Envoy plugin, so that policies written for it run as they are. Default `portcullis`.
    #[serde(default)]
    pub input: InputDocument,
    /// What it sees of request bodies. Default: nothing, and a policy that reads them does not load.
    #[serde(default)]
    pub body: Option<BodyConfig>,
    /// What one decision may use up; more is a denial.
    #[serde(default)]
    pub budget: BudgetConfig,
    /// What becomes of a decision in which a builtin fails (`to_number("x")`, a division by zero):
    /// `deny`, or, as OPA does it, `undefined`: the expression has no value, of which a `not` or a
    /// default can make a yes. Default `deny`, and `undefined` with `input: envoy`, whose policies
    /// were written for it.
    #[serde(default)]
    pub builtin_errors: Option<BuiltinErrors>,
    /// How many decisions each worker keeps to give them again to the same question: requests that
    /// are equal in everything that the policy can read of them. `false` keeps none. Policies that
    /// read what is different in every request (`input.request.id`, the whole of `input`) are
    /// evaluated for each. The time may be read by `time.clock`, `time.date` and `time.weekday`, and
    /// compared with sums of constants, data and members of `input`: an answer is then kept as long
    /// as none of these can change.
    #[serde(default, deserialize_with = "cache_or_false")]
    #[schemars(schema_with = "cache_or_false_schema")]
    pub decision_cache: DecisionCacheConfig,
    /// Request headers that policies must not see because they carry credentials. `authorization`,
    /// `cookie`, `x-api-key` and their like are never seen.
    #[serde(default)]
    pub hidden_headers: Vec<String>,
}

/// What an error of a builtin makes of a decision.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum BuiltinErrors {
    /// A denial.
    #[default]
    Deny,
    /// The expression has no value, as in OPA.
    Undefined,
}

/// What one decision of a policy may use up.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct BudgetConfig {
    /// Time on the wall clock, `1ms` to `1s`. Looked at every 64 instructions of the bytecode
    /// machine, and at every step of the interpreter.
    pub time: Span,
    /// Instructions of the bytecode machine, 1000 to 10000000. The interpreter's work is what its time
    /// allows.
    pub instructions: u32,
    /// Memory that the decision may allocate beside its input, `1MiB` to `1GiB`; looked at after
    /// every instruction of the bytecode machine that can take some, and every few steps of the
    /// interpreter, where what the whole process allocates meanwhile counts and 64 MiB more are
    /// allowed for it.
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
pub(crate) fn cache_or_false<'de, D: Deserializer<'de>>(
    d: D,
) -> Result<DecisionCacheConfig, D::Error> {
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

pub(crate) fn cache_or_false_schema(generator: &mut SchemaGenerator) -> Schema {
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
    /// Compiles one block that uses no bundles. See [`PolicyConfig::compile_among`].
    pub fn compile(
        self,
        name: &str,
        previous: Option<&Arc<Policy>>,
        cx: &mut Compile,
    ) -> Option<Arc<Policy>> {
        let (compiled, names) = (&Named::new(), &BTreeSet::new());
        let mandatory = true;
        self.compile_among(
            name,
            previous,
            &KnownBundles {
                compiled,
                names,
                mandatory,
            },
            cx,
        )
    }

    /// Compiles one block; takes over `previous` when neither it nor any of its files changed.
    /// Blocks while the policy is judged: at most [`super::GATE_TIME`], and not at all when this
    /// process judged the same files before.
    pub fn compile_among(
        self,
        name: &str,
        previous: Option<&Arc<Policy>>,
        bundles: &KnownBundles<'_>,
        cx: &mut Compile,
    ) -> Option<Arc<Policy>> {
        let before = cx.errors();
        let mandatory = bundles.mandatory;
        if name == "public" {
            cx.problem_help(
                "the name `public` is taken by the policy that allows everybody",
                "give the policy another name",
            );
        }
        self.check(cx);
        let hidden_headers = self.hidden(cx);
        let bundles = cx.at("bundles", |cx| self.named(bundles, cx));
        let loaded = if !self.files.is_empty() && self.bundles.is_empty() {
            cx.at("files", |cx| load::load(&self.files, cx))
        } else if self.bundles.is_empty() {
            cx.at("files", |cx| {
                cx.problem_help(
                    "no files are named",
                    "name the policy's files or its folder, or `bundles`",
                );
            });
            None
        } else {
            cx.at("files", |cx| load::read(&self.files, cx))
        };
        let loaded = loaded.filter(|_| cx.errors() == before)?;
        let recipe = Arc::new(Recipe::new(self, name, loaded, hidden_headers, bundles));
        let kept: Vec<&Arc<Bundle>> = recipe
            .bundles
            .iter()
            .filter(|bundle| previous.is_none() && bundle.is_from_disk())
            .collect();
        if kept.is_empty() {
            return recipe.cook(previous, None, cx);
        }
        // What an earlier process kept must not hold up a start: a better one may be on its way.
        let mut apart = cx.apart();
        let cooked = recipe.cook(previous, None, &mut apart);
        let failed = apart.errors() > 0;
        let (problems, _) = apart.finish();
        let errors = problems
            .iter()
            .filter(|problem| problem.severity == Severity::Error);
        if let Some(first) = errors.map(Problem::brief).next() {
            if let Some(bundle) = kept.first().filter(|_| !mandatory) {
                let message = format!(
                    "it waits for a better bundle `{}` than the one that was kept on disk: {first}",
                    bundle.name
                );
                cx.warning(message, "nobody is compared until it has been downloaded");
                return Some(recipe.without(bundle));
            }
            for bundle in kept {
                bundle.give_up(&first);
                cx.warning(
                    format!(
                        "the bundle `{}` that was kept on disk is not used: {first}",
                        bundle.name
                    ),
                    "its routes answer 503 until a better one has been downloaded",
                );
            }
        }
        if failed {
            return recipe.cook(previous, None, cx);
        }
        problems.into_iter().for_each(|problem| cx.report(problem));
        cooked
    }

    /// The bundles that it names.
    fn named(&self, known: &KnownBundles<'_>, cx: &mut Compile) -> Vec<Arc<Bundle>> {
        let mut found: Vec<Arc<Bundle>> = Vec::new();
        for (index, name) in self.bundles.iter().enumerate() {
            cx.at(format!("[{index}]"), |cx| match known.compiled.get(name) {
                Some(bundle) if found.iter().any(|other| other.name == bundle.name) => {
                    cx.problem_help(format!("the bundle `{name}` is named twice"), "remove one");
                }
                Some(bundle) => found.push(Arc::clone(bundle)),
                None if known.names.contains(name) => {
                    cx.problem(format!("the bundle `{name}` cannot be used"));
                }
                None => {
                    let help = known_names(name, known.names.iter().map(String::as_str));
                    let shown = name.escape_default();
                    cx.problem_help(format!("there is no bundle `{shown}`"), help);
                }
            });
        }
        found
    }

    fn check(&self, cx: &mut Compile) {
        let fits = |part: &str| {
            !part.is_empty()
                && !part.starts_with(|c: char| c.is_ascii_digit())
                && part.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_')
        };
        if let Some(body) = &self.body {
            cx.at("body", |cx| body.check(cx));
        }
        let entrypoint = rule_path(&self.entrypoint);
        let mut parts = entrypoint.split('.');
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

    /// The rule that decides: `data.orders.decision`, however it was spelled.
    pub fn rule(&self) -> String {
        rule_path(&self.entrypoint)
    }

    /// What errors of builtins make of a decision. Policies of OPA's plugin were written for OPA's
    /// habit.
    pub fn errors(&self) -> BuiltinErrors {
        self.builtin_errors.unwrap_or(match self.input {
            InputDocument::Portcullis => BuiltinErrors::Deny,
            InputDocument::Envoy => BuiltinErrors::Undefined,
        })
    }

    /// How much of bodies is read for a policy that looks at them. One that does, and is shown none,
    /// would take every body for a harmless one.
    fn bodies(
        &self,
        reads: &Reads,
        places: &Places,
        cx: &mut Compile,
    ) -> Option<Option<BodyTerms>> {
        let read = reads.of_body(self.input);
        match (&self.body, read) {
            (None, None) => Some(None),
            (None, Some((member, place))) => {
                let remark = Remark::error(
                    &place.file,
                    Some(place.at),
                    format!("the policy reads `input.{member}`, and no body is read for it"),
                    "say how much of a body it is shown, in its block: `body: { max: 64KiB }`",
                );
                tell(vec![places.remark(remark)], cx);
                None
            }
            (Some(body), read) => {
                let whole = reads.paths.keys().any(|path| {
                    let prefix = path.iter().map_while(|step| match step {
                        reads::Step::Name(name) => Some(name.as_str()),
                        reads::Step::Index(_) => None,
                    });
                    self.input.holds_body(&prefix.collect::<Vec<_>>())
                });
                if read.is_none() && !whole {
                    cx.at("body", |cx| {
                        cx.warning(
                            "the policy never looks at a body, so none is read",
                            "leave `body` out",
                        );
                    });
                    return Some(None);
                }
                Some(Some(body.terms()))
            }
        }
    }

    /// A digest over what it does with its data.
    fn text(&self, modules: &[rego::Source]) -> String {
        let mut live: Vec<&rego::Source> = modules
            .iter()
            .filter(|(file, _)| !check::is_test_file(file))
            .collect();
        // Where they are kept does not matter to what they do.
        live.sort_by(|a, b| a.1.cmp(&b.1));
        let mut context = digest::Context::new(&digest::SHA256);
        for (_, text) in live {
            add(&mut context, text.as_bytes());
        }
        add(&mut context, self.rule().as_bytes());
        add(&mut context, self.input.name().as_bytes());
        add(&mut context, format!("{:?}", self.errors()).as_bytes());
        let mut text = hex(context.finish().as_ref());
        text.truncate(16);
        text
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

    /// SHA-256 over all that makes the policy decide as it does, each part with its length; what its
    /// bundles hold is still to come.
    fn digest(&self, name: &str, loaded: &Loaded) -> String {
        let mut context = digest::Context::new(&digest::SHA256);
        let mut part = |bytes: &[u8]| add(&mut context, bytes);
        for (path, bytes) in &loaded.contents {
            part(path.as_os_str().as_encoded_bytes());
            part(bytes);
        }
        part(name.as_bytes());
        part(self.entrypoint.as_bytes());
        part(self.input.name().as_bytes());
        if let Some(BodyConfig { max, when_larger }) = &self.body {
            part(&max.get().to_be_bytes());
            part(&[u8::from(*when_larger == WhenLarger::Truncate)]);
        }
        part(self.budget.time.to_string().as_bytes());
        part(&self.budget.instructions.to_be_bytes());
        part(&self.budget.memory.get().to_be_bytes());
        part(match self.errors() {
            BuiltinErrors::Deny => b"deny",
            BuiltinErrors::Undefined => b"undefined",
        });
        for header in &self.hidden_headers {
            part(header.as_bytes());
        }
        let cache = &self.decision_cache;
        part(cache.lifetime.to_string().as_bytes());
        part(&cache.max_bytes.get().to_be_bytes());
        part(&cache.max_entries.to_be_bytes());
        hex(context.finish().as_ref())
    }
}

/// SHA-256 over data in their canonical form.
fn digest_of(data: &Value) -> String {
    let text = crate::ascii::canonical(data);
    hex(digest::digest(&digest::SHA256, text.as_bytes()).as_ref())
}

fn add(context: &mut digest::Context, bytes: &[u8]) {
    context.update(&bytes.len().to_be_bytes());
    context.update(bytes);
}

/// The bundles of a configuration: those that compiled, and the names of all.
#[derive(Debug, Clone, Copy)]
pub struct KnownBundles<'b> {
    /// By name.
    pub compiled: &'b Named<Arc<Bundle>>,
    /// All that the file has.
    pub names: &'b BTreeSet<String>,
    /// Whether a bundle from disk with which a policy would not be good is given up for all. If not, that
    /// policy alone waits for a better one.
    pub mandatory: bool,
}

/// All that a policy is made of, but for what its bundles hold at a time. Kept by policies that use
/// bundles, to be made anew with another content.
#[derive(Debug)]
pub(super) struct Recipe {
    name: Arc<str>,
    config: PolicyConfig,
    local: Loaded,
    hidden_headers: Vec<HeaderName>,
    pub(super) bundles: Vec<Arc<Bundle>>,
    /// Over all of that.
    digest: String,
}

impl Recipe {
    fn new(
        config: PolicyConfig,
        name: &str,
        mut local: Loaded,
        hidden_headers: Vec<HeaderName>,
        bundles: Vec<Arc<Bundle>>,
    ) -> Self {
        let digest = config.digest(name, &local);
        // The digest stands for them.
        local.contents = Vec::new();
        Self {
            name: name.into(),
            config,
            local,
            hidden_headers,
            bundles,
            digest,
        }
    }

    /// Makes the policy with what its bundles hold now, or with `new` for one of them; takes over
    /// `previous` when that would be the same.
    pub(super) fn cook(
        self: &Arc<Self>,
        previous: Option<&Arc<Policy>>,
        new: Option<(&Bundle, &Arc<Content>)>,
        cx: &mut Compile,
    ) -> Option<Arc<Policy>> {
        let before = cx.errors();
        let held = |bundle: &Arc<Bundle>| match new {
            Some((other, content)) if other.name == bundle.name => Some(Arc::clone(content)),
            Some(_) | None => bundle.active(),
        };
        let kept = (!self.bundles.is_empty()).then(|| Arc::clone(self));
        let mut filled: Vec<(&Bundle, Arc<Content>)> = Vec::with_capacity(self.bundles.len());
        for bundle in &self.bundles {
            let Some(content) = held(bundle) else {
                return Some(self.without(bundle));
            };
            filled.push((bundle, content));
        }
        let mut context = digest::Context::new(&digest::SHA256);
        add(&mut context, self.digest.as_bytes());
        let mut labels = String::new();
        for (bundle, content) in &filled {
            add(&mut context, bundle.name.as_bytes());
            add(&mut context, content.digest.as_bytes());
            // It is shown with every decision.
            add(&mut context, content.label().as_bytes());
            labels.push_str(&format!(" {}@{}", bundle.name, content.label()));
        }
        let digest = if filled.is_empty() {
            self.digest.clone()
        } else {
            hex(context.finish().as_ref())
        };
        if let Some(previous) = previous
            && let Rules::Rego(compiled) = &previous.rules
            && compiled.digest == digest
        {
            tell(compiled.warnings.clone(), cx);
            let same = previous.recipe.as_ref().map_or(kept.is_none(), |recipe| {
                let pairs = recipe.bundles.iter().zip(&self.bundles);
                recipe.bundles.len() == self.bundles.len()
                    && pairs.into_iter().all(|(a, b)| Arc::ptr_eq(a, b))
            });
            if same {
                return Some(Arc::clone(previous));
            }
            // The bundles may be other objects now; what decides is the same.
            return Some(Arc::new(Policy {
                decided_by: previous.decided_by.clone(),
                rules: Rules::Rego(Arc::clone(compiled)),
                recipe: kept,
            }));
        }

        let (modules, data) = self.merged(&filled, cx);
        if cx.errors() > before {
            return None;
        }
        let text = self.config.text(&modules);
        let mut data_digest = digest_of(&data);
        data_digest.truncate(16);
        let job = Job {
            modules,
            data: data.to_json_str().ok()?,
            entrypoint: rule_path(&self.config.entrypoint),
            input: self.config.input,
            instructions: usize::try_from(self.config.budget.instructions).unwrap_or(usize::MAX),
            errors: self.config.errors(),
            seed: seed(&digest),
        };
        // Reports name files as this configuration resolves them.
        let place = self
            .local
            .files
            .first()
            .map(|file| file.display().to_string());
        let report = child::examine(&job, &format!("{digest} {}", place.unwrap_or_default()));
        let mut warnings: Vec<Remark> = report
            .remarks
            .iter()
            .filter(|r| r.warning)
            .cloned()
            .collect();
        tell(report.remarks, cx);
        let live = job.modules.iter();
        let live = live.filter(|(file, _)| !check::is_test_file(file));
        let kept_modules = Arc::new(live.cloned().collect::<Vec<_>>());
        let (entrypoint, errors) = (job.entrypoint.clone(), job.errors);
        let choice = report.engine.filter(|_| cx.errors() == before)?;
        let (program, reads, places) = match program(job, &data, choice, &self.config.budget) {
            Ok(program) => program,
            Err(remarks) => {
                tell(remarks, cx);
                return None;
            }
        };
        let body = self.config.bodies(&reads, &places, cx)?;
        let projection = Projection::of_document(&reads, &self.hidden_headers, self.config.input);
        let remembered = match (self.config.decision_cache.bounds(), projection) {
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
                let remark = places.remark(remark);
                tell(vec![remark.clone()], cx);
                warnings.push(remark);
                None
            }
        };
        let compiled = Compiled {
            program: Arc::new(program),
            files: self.local.files.clone(),
            modules: kept_modules,
            entrypoint,
            errors,
            hidden_headers: self.hidden_headers.clone(),
            reads: reads.all_paths(self.config.input),
            impure: reads.impure.is_some() || reads.timing.read,
            sees: match self.config.input {
                InputDocument::Portcullis => Sees::Portcullis(reads.wanted_with(body.is_some())),
                InputDocument::Envoy => {
                    Sees::Envoy(envoy::Want::by(reads.paths.keys().map(Vec::as_slice)))
                }
            },
            body,
            remembered,
            warnings,
            metrics: cx.metrics.policy(&self.name),
            digest,
            text,
        };
        let bundles = filled.iter();
        let bundles = bundles.map(|(bundle, content)| (Arc::clone(&bundle.name), content.label()));
        let bundles = bundles.collect();
        let mut revision = compiled.digest.get(..16).unwrap_or_default().to_owned();
        revision.push_str(&labels);
        Some(Arc::new(Policy {
            decided_by: DecidedBy(Arc::new(Basis {
                policy: Arc::clone(&self.name),
                revision: revision.into(),
                candidate: None,
                entrypoint: Some(self.config.rule().into()),
                data: Some(data_digest.into()),
                bundles,
                record: OnceLock::new(),
            })),
            rules: Rules::Rego(Arc::new(compiled)),
            recipe: kept,
        }))
    }

    /// The policy while this bundle is not there: it lets nobody in.
    pub(super) fn without(self: &Arc<Self>, bundle: &Bundle) -> Arc<Policy> {
        Arc::new(Policy {
            decided_by: DecidedBy::new(Arc::clone(&self.name), ""),
            rules: Rules::Absent(Arc::clone(&bundle.name)),
            recipe: Some(Arc::clone(self)),
        })
    }

    /// Modules and data of the files and the bundles together. Problems are reported.
    fn merged(
        &self,
        filled: &[(&Bundle, Arc<Content>)],
        cx: &mut Compile,
    ) -> (Vec<rego::Source>, Value) {
        let mut modules = self.local.modules.clone();
        let mut data = self.local.data.clone();
        for (index, (bundle, content)) in filled.iter().enumerate() {
            cx.at(format!("bundles[{index}]"), |cx| {
                for (other, theirs) in filled.get(..index).unwrap_or_default() {
                    disjoint(bundle, content, other, theirs, cx);
                }
                self.foreign(bundle, content, cx);
                for module in &content.modules {
                    let file = format!("bundle:{}/{}", bundle.name, module.path);
                    match guard::examine(&module.text) {
                        Ok(()) => modules.push((file, module.text.to_string())),
                        Err(finding) => tell(
                            vec![Remark {
                                file,
                                line: finding.line,
                                column: finding.column,
                                message: finding.message,
                                help: Some(finding.help),
                                warning: false,
                            }],
                            cx,
                        ),
                    }
                }
                if let Err(mut path) = document::merge(&mut data, &content.data) {
                    path.reverse();
                    cx.problem_help(
                        format!(
                            "`data.{}` of bundle `{}` is also given elsewhere",
                            path.join("."),
                            bundle.name
                        ),
                        "give each value once",
                    );
                }
            });
        }
        if !modules.iter().any(|(file, _)| !check::is_test_file(file)) {
            cx.problem_help(
                "the policy has no modules",
                "neither its files nor its bundles hold one that ends in `.rego` and is no test",
            );
        }
        (modules, data)
    }

    /// That local modules and data stay out of what a bundle owns. Tests never decide.
    fn foreign(&self, bundle: &Bundle, content: &Content, cx: &mut Compile) {
        let hint = || {
            let roots: Vec<String> = content.roots.iter().map(ToString::to_string).collect();
            format!(
                "the bundle owns [{}]; move it, or have the bundle's manifest name its `roots`",
                roots.join(", ")
            )
        };
        for (file, text) in &self.local.modules {
            if check::is_test_file(file) {
                continue;
            }
            if let Some(package) = package(text)
                && content.owns(&package)
            {
                let message = format!(
                    "{file}: the package `{}` belongs to the bundle `{}`",
                    package.join("."),
                    bundle.name
                );
                cx.problem_help(message, hint());
            }
        }
        for root in &content.roots {
            let here = root
                .path()
                .iter()
                .try_fold(&self.local.data, |value, key| document::member(value, key));
            if here.is_some_and(|value| {
                !root.path().is_empty() || document::names(value).next().is_some()
            }) {
                let path: Vec<&str> = std::iter::once("data")
                    .chain(root.path().iter().map(String::as_str))
                    .collect();
                let message = format!(
                    "the files give `{}`, which belongs to the bundle `{}`",
                    path.join("."),
                    bundle.name
                );
                cx.problem_help(message, hint());
            }
        }
    }
}

/// That two bundles own nothing together.
fn disjoint(
    bundle: &Bundle,
    content: &Content,
    other: &Bundle,
    theirs: &Content,
    cx: &mut Compile,
) {
    for root in &content.roots {
        if let Some(both) = theirs.roots.iter().find(|theirs| theirs.overlaps(root)) {
            cx.problem_help(
                format!(
                    "the bundles `{}` and `{}` overlap: the roots {both} and {root}",
                    other.name, bundle.name
                ),
                "each part of `data` belongs to one bundle: name disjoint `roots` in their manifests",
            );
            return;
        }
    }
}

/// `envoy/authz/allow`, as OPA's plugin writes it, is `data.envoy.authz.allow`.
pub(in crate::authz) fn rule_path(entrypoint: &str) -> String {
    if !entrypoint.contains('/') || entrypoint.contains('.') {
        return entrypoint.to_owned();
    }
    let path = entrypoint.trim_start_matches('/');
    let path = path.strip_prefix("data/").unwrap_or(path);
    format!("data.{}", path.replace('/', "."))
}

fn program(
    job: Job,
    data: &Value,
    choice: Choice,
    budget: &BudgetConfig,
) -> Result<(Program, Reads, Places), Vec<Remark>> {
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
    let reading = Reading::of(job.errors, job.input);
    let Parsed { mut engine, places } = rego::read(&live, data, reading)?;
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
    .map(|program| (program, reads, places.clone()))
    .map_err(|text| vec![places.remark(Remark::from_engine(&file, &text))])
}

fn tell(remarks: Vec<Remark>, cx: &mut Compile) {
    for remark in remarks {
        let problem = remark.into_problem(cx.place());
        cx.report(problem);
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn seed(digest: &str) -> u64 {
    digest
        .get(..16)
        .and_then(|hex| u64::from_str_radix(hex, 16).ok())
        .unwrap_or(0)
}
