//! The `candidates` section, and what it takes to become a [`Candidate`].

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde::{Deserialize, Deserializer, Serialize};

use super::band::Band;
use super::book::Book;
use super::cohort::Side;
use super::state::State;
use super::{Candidate, Candidates};
use crate::authz::{
    BodyConfig, BudgetConfig, BuiltinErrors, DecisionCacheConfig, InputDocument, KnownBundles,
    Policy, PolicyConfig, cache_or_false, cache_or_false_schema,
};
use crate::schema::{Compile, Named, Network, SecretRef, Share, Span, known_names};

/// Shortest and longest time over which a candidate that decides is judged.
const OVER: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));
/// Fewest and most requests after which it is judged.
const LEAST: (u32, u32) = (1, 100_000);
/// Fewest and most callers that denials must come from.
const CALLERS: (u32, u32) = (1, 16);
/// Longest list of a cohort.
const MAX_LIST: usize = 1_000;
/// Shortest key of a share.
const SHORTEST_KEY: usize = 16;

/// One block of the `candidates` section: a policy that may take the place of another one.
///
/// It is asked about the requests that its policy decides, beside it and behind the answer, and what it
/// would have decided otherwise is counted. What its block does not say is as in its policy's block.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct CandidateConfig {
    /// The block under `policies` that it is a candidate for.
    pub of: String,
    /// As in `policies`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub files: Option<Vec<PathBuf>>,
    /// As in `policies`; `[]` for none where the policy has some.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bundles: Option<Vec<String>>,
    /// As in `policies`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub entrypoint: Option<String>,
    /// The kind of document that it sees: that of its policy.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub input: Option<InputDocument>,
    /// What it sees of request bodies: what is read for its policy, as much and no other.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub body: Option<BodyConfig>,
    /// As in `policies`. It is spent beside requests: a candidate that takes long delays what comes next
    /// on its core.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub budget: Option<BudgetConfig>,
    /// As in `policies`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub builtin_errors: Option<BuiltinErrors>,
    /// As in `policies`. It keeps decisions of its own.
    #[serde(
        default,
        deserialize_with = "own_cache",
        skip_serializing_if = "Option::is_none"
    )]
    #[schemars(schema_with = "own_cache_schema")]
    pub decision_cache: Option<DecisionCacheConfig>,
    /// As in `policies`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hidden_headers: Option<Vec<String>>,
    /// How many of the requests that it does not decide it is asked about.
    #[serde(default = "everything")]
    pub sample: Share,
    /// Whose requests it decides in the place of its policy. Default: nobody's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub enforce: Option<EnforceConfig>,
    /// When it stops deciding by itself.
    #[serde(default)]
    pub rollback: RollbackConfig,
}

/// Whose requests a candidate decides: a share of all, a cohort, or a share of a cohort.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct EnforceConfig {
    /// How many. Somebody who is within a smaller share is within a larger one too.
    #[serde(default = "everything")]
    pub share: Share,
    /// What stays on one side: `subject` (and its issuer), `client` or `address` (the first 64 bits of
    /// IPv6). Who has no client counts by the subject, and who has neither by the address.
    #[serde(default)]
    pub by: By,
    /// A secret of 16 bytes or more by which sides are drawn, so that nobody can tell theirs beforehand.
    /// Replicas with the same one draw alike. Default: a random one for each process, or kept in
    /// `candidate_state`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<SecretRef>,
    /// Only of these.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cohort: Option<CohortConfig>,
}

/// What stays on one side.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum By {
    /// The issuer and the subject.
    #[default]
    Subject,
    /// The client that acts.
    Client,
    /// The client's address.
    Address,
}

/// Whose requests are meant: those that have something of each list that is given. Headers are none of
/// them, for whoever sends a request chooses its headers, and would choose by which policy they are
/// judged.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct CohortConfig {
    /// Claims of the verified caller, each with the values that count; of a list, one must be there. Dots
    /// lead into objects.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub claims: BTreeMap<String, Vec<String>>,
    /// Subjects, alone or as `issuer|subject`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub subjects: Vec<String>,
    /// Routes, by their names.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub routes: Vec<String>,
    /// Addresses and networks of clients.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub addresses: Vec<Network>,
}

/// When a candidate that decides stops, and its policy decides again: when it leaves this band against
/// what its policy says of the same requests. It stays back until somebody resumes it or its text
/// changes. `100%` for all of them lets it never go back.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct RollbackConfig {
    /// How many of the requests that it decides it may deny where its policy allows.
    pub denials: Share,
    /// How many it may allow where its policy denies.
    pub permits: Share,
    /// In how many it may fail (an error, a spent budget, no answer) where its policy answers.
    pub errors: Share,
    /// Over how long, `1s` to `1m`; as far back as it takes when there were fewer than `least`.
    pub over: Span,
    /// Fewest requests by which it is judged, 1 to 100000.
    pub least: u32,
    /// From how many callers its denials must come, 1 to 16: the band must be left even without those of
    /// one caller less, the ones that were denied most. Callers are subjects, or the addresses of who has
    /// none. Permits and errors count whoever asks.
    pub callers: u32,
}

impl Default for RollbackConfig {
    fn default() -> Self {
        Self {
            denials: Share::of_millionths(20_000),
            permits: Share::of_millionths(20_000),
            errors: Share::of_millionths(1_000),
            over: Span::seconds(10),
            least: 100,
            callers: 3,
        }
    }
}

const fn everything() -> Share {
    Share::ALL
}

fn own_cache<'de, D: Deserializer<'de>>(d: D) -> Result<Option<DecisionCacheConfig>, D::Error> {
    cache_or_false(d).map(Some)
}

fn own_cache_schema(generator: &mut SchemaGenerator) -> Schema {
    let mut schema = cache_or_false_schema(generator);
    // It is the policy's.
    schema.remove("default");
    schema
}

/// What a candidate is compiled among.
#[derive(Debug)]
pub struct Ground<'g> {
    /// The blocks of the policies that could be read.
    pub blocks: &'g Named<PolicyConfig>,
    /// Those that compiled.
    pub policies: &'g Named<Arc<Policy>>,
    /// All that the file has.
    pub names: &'g BTreeSet<String>,
    /// The routes' names, each with its policy.
    pub routes: &'g BTreeMap<String, String>,
    /// Bundles.
    pub bundles: &'g KnownBundles<'g>,
    /// The candidates before.
    pub previous: Option<&'g Candidates>,
    /// What is remembered of candidates that went back.
    pub book: &'g Arc<Book>,
}

impl CandidateConfig {
    /// The block of `policies` that it would be.
    pub fn policy(&self, of: &PolicyConfig) -> PolicyConfig {
        let own = self.clone();
        let of = of.clone();
        PolicyConfig {
            files: own.files.unwrap_or(of.files),
            bundles: own.bundles.unwrap_or(of.bundles),
            entrypoint: own.entrypoint.unwrap_or(of.entrypoint),
            input: of.input,
            body: own.body.or(of.body),
            budget: own.budget.unwrap_or(of.budget),
            builtin_errors: own.builtin_errors.or(of.builtin_errors),
            decision_cache: own.decision_cache.unwrap_or(of.decision_cache),
            hidden_headers: own.hidden_headers.unwrap_or(of.hidden_headers),
        }
    }

    /// Compiles one block; takes over what it was before when nothing of it changed, and what was
    /// counted as long as its text and that of its policy are the same. Blocks as
    /// [`PolicyConfig::compile_among`] does.
    pub fn compile(
        self,
        name: &str,
        ground: &Ground<'_>,
        cx: &mut Compile,
    ) -> Option<Arc<Candidate>> {
        let before = cx.errors();
        if ground.names.contains(name) {
            cx.key_problem(
                format!("a policy is called `{name}`, too"),
                "give the candidate another name: records and metrics tell them apart by it",
            );
        }
        let Some(block) = ground.blocks.get(&self.of) else {
            cx.at("of", |cx| self.no_policy(ground, cx));
            return None;
        };
        self.check_rollback(cx);
        if self.input.is_some_and(|input| input != block.input) {
            cx.at("input", |cx| {
                cx.problem_help(
                    format!("`{}` sees another document", self.of),
                    format!(
                        "leave it out: a candidate sees what its policy sees, `{}`",
                        block.input.name()
                    ),
                );
            });
        }
        let active = ground.policies.get(&self.of);
        let side = self
            .enforce
            .as_ref()
            .map(|enforce| cx.at("enforce", |cx| enforce.compile(name, &self.of, ground, cx)));
        let previous = ground.previous.and_then(|old| old.named.get(name));
        let block = self.policy(block);
        let policy = block.compile_among(name, previous.map(|old| &old.policy), ground.bundles, cx);
        let Some(active) = active else {
            if cx.errors() == before {
                cx.at("of", |cx| {
                    cx.problem(format!("the policy `{}` cannot be used", self.of));
                });
            }
            return None;
        };
        let policy = policy?;
        self.check_body(&policy, active, cx);
        if cx.errors() > before {
            return None;
        }
        let policy = policy.standing_for(&active.decided_by.policy);
        if policy.is_there() && policy.text() == active.text() && self.is_same_but_for_rollout() {
            cx.warning(
                format!("it is `{}` itself", self.of),
                "name what is different of it: `files`, `bundles`, `entrypoint`, …",
            );
        }
        let side = side.map_or(Some(None), |side| side.map(Some))?;
        let candidate = Candidate {
            name: name.into(),
            state: State::carried(
                name,
                &policy,
                active,
                previous.map(|old| &old.state),
                ground.book,
                cx,
            ),
            policy,
            side,
            band: self.rollback.band(),
            epoch: Arc::clone(&cx.epoch),
            config: self,
        };
        match previous {
            Some(old) if candidate.is_same(old) => Some(Arc::clone(old)),
            Some(_) | None => Some(Arc::new(candidate)),
        }
    }

    fn no_policy(&self, ground: &Ground<'_>, cx: &mut Compile) {
        let shown = self.of.escape_default();
        if self.of == "public" {
            cx.problem_help(
                "`public` allows everybody and has no candidates",
                "give the routes a policy first, one that allows everybody",
            );
        } else if ground.names.contains(&self.of) {
            cx.problem(format!("the policy `{shown}` cannot be used"));
        } else {
            let help = known_names(&self.of, ground.names.iter().map(String::as_str));
            cx.problem_help(format!("there is no policy `{shown}`"), help);
        }
    }

    /// Whether it says nothing of what the policy is.
    fn is_same_but_for_rollout(&self) -> bool {
        self.budget.is_none()
            && self.builtin_errors.is_none()
            && self.decision_cache.is_none()
            && self.hidden_headers.is_none()
            && self.files.is_none()
            && self.bundles.is_none()
    }

    /// A body is read for the policy that decides: there is no other for whoever is asked beside it.
    pub(super) fn check_body(&self, policy: &Policy, active: &Policy, cx: &mut Compile) {
        let Some(terms) = policy.body() else {
            return;
        };
        // While a bundle is missing nobody knows what its policy reads, and nobody is asked.
        if !active.is_there() {
            return;
        }
        match active.body() {
            None => cx.at("body", |cx| {
                cx.problem_help(
                    format!("the candidate reads bodies, and none is read for `{}`", self.of),
                    format!(
                        "give `{}` a `body` and a rule that looks at it first: a candidate is shown \
                         what was read for its policy",
                        self.of
                    ),
                );
            }),
            Some(read) if read != terms => cx.at("body", |cx| {
                cx.problem_help(
                    format!("`{}` is shown another part of bodies", self.of),
                    "leave `body` out: a candidate is shown what was read for its policy",
                );
            }),
            Some(_) => {}
        }
    }

    fn check_rollback(&self, cx: &mut Compile) {
        let RollbackConfig {
            over,
            least,
            callers,
            ..
        } = &self.rollback;
        cx.at("rollback", |cx| {
            if over.get() < OVER.0 || over.get() > OVER.1 {
                cx.at("over", |cx| {
                    cx.problem_help("the time is out of range", "between `1s` and `1m`");
                });
            }
            if !(LEAST.0..=LEAST.1).contains(least) {
                cx.at("least", |cx| {
                    cx.problem_help(
                        "the number of requests is out of range",
                        format!("between {} and {}", LEAST.0, LEAST.1),
                    );
                });
            }
            if !(CALLERS.0..=CALLERS.1).contains(callers) {
                cx.at("callers", |cx| {
                    cx.problem_help(
                        "the number of callers is out of range",
                        format!("between {} and {}", CALLERS.0, CALLERS.1),
                    );
                });
            }
            let cohort = self.enforce.as_ref().and_then(|it| it.cohort.as_ref());
            let subjects = cohort.map_or(0, |cohort| cohort.subjects.len());
            let few = u32::try_from(subjects).is_ok_and(|subjects| subjects < *callers);
            if subjects > 0 && few && self.rollback.denials != Share::ALL {
                cx.warning(
                    format!(
                        "it decides for {subjects} subjects, and goes back by denials of {callers} callers: \
                         it never will"
                    ),
                    "set `callers: 1`",
                );
            }
        });
    }
}

impl RollbackConfig {
    fn band(&self) -> Band {
        Band {
            denials: self.denials.millionths(),
            permits: self.permits.millionths(),
            errors: self.errors.millionths(),
            over: self.over.get().as_secs().max(1),
            least: u64::from(self.least),
            callers: usize::try_from(self.callers).unwrap_or(1),
        }
    }
}

impl EnforceConfig {
    fn compile(&self, name: &str, of: &str, ground: &Ground<'_>, cx: &mut Compile) -> Option<Side> {
        let before = cx.errors();
        let cohort = self.cohort.clone().unwrap_or_default();
        if self.cohort == Some(CohortConfig::default()) {
            cx.at("cohort", |cx| {
                cx.problem_help(
                    "the cohort says of whom it is",
                    "name `claims`, `subjects`, `routes` or `addresses`",
                );
            });
        }
        if self.cohort.is_none() && self.share == Share::ALL {
            cx.warning(
                format!("the candidate decides everything that `{of}` would"),
                format!("say a `share` or a `cohort`; when it is good, make it the policy `{of}`"),
            );
        }
        cx.at("cohort", |cx| cohort.check(of, ground, cx));
        let key = match &self.key {
            None => Some(ground.book.key()),
            Some(reference) => cx.at("key", |cx| {
                let secret = cx.secret(reference)?;
                if secret.expose().len() < SHORTEST_KEY {
                    cx.problem_help(
                        format!("the key is shorter than {SHORTEST_KEY} bytes"),
                        "make one with `openssl rand -hex 32`",
                    );
                    return None;
                }
                Some(super::book::key_of(secret.expose()))
            }),
        };
        let key = key?;
        (cx.errors() == before).then(|| Side::new(name, self.share, self.by, key, cohort))
    }
}

impl CohortConfig {
    fn check(&self, of: &str, ground: &Ground<'_>, cx: &mut Compile) {
        let mut longest = |key: &str, length: usize| {
            if length > MAX_LIST {
                cx.at(key, |cx| {
                    cx.problem_help(
                        format!("there are more than {MAX_LIST} entries"),
                        "a claim that all of them have is looked up at no cost",
                    );
                });
            }
        };
        longest("subjects", self.subjects.len());
        longest("routes", self.routes.len());
        longest("addresses", self.addresses.len());
        longest("claims", self.claims.len());
        for values in self.claims.values() {
            longest("claims", values.len());
        }
        for (claim, values) in &self.claims {
            if values.is_empty() {
                cx.at("claims", |cx| {
                    cx.at(claim.clone(), |cx| {
                        cx.problem_help(
                            "nobody is meant by no value",
                            "list the values that count",
                        );
                    });
                });
            }
        }
        for (index, route) in self.routes.iter().enumerate() {
            cx.at(format!("routes[{index}]"), |cx| {
                match ground.routes.get(route) {
                    Some(policy) if policy == of => {}
                    Some(policy) => cx.problem_help(
                        format!("the policy of the route `{route}` is `{policy}`, not `{of}`"),
                        "name routes that its policy decides",
                    ),
                    None => {
                        let help = known_names(route, ground.routes.keys().map(String::as_str));
                        let shown = route.escape_default();
                        cx.problem_help(format!("there is no route `{shown}`"), help);
                    }
                }
            });
        }
    }
}
