//! How much. `screen` counts by address before any cost; `admit` counts verified callers.
//!
//! The only room that names governor. Limits are kept per process, in bounded memory, and survive
//! reloads: a reload must not be a way to get a fresh quota. Nothing here knows of policies or
//! statuses; what a policy asks for arrives as [`AskedLimit`](crate::authz::AskedLimit).

mod gcra;
mod limiter;
mod rate;
mod store;

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use http::{HeaderValue, header};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tokio::runtime::Handle;

pub use self::limiter::{AskedLimits, FailureLimiter, Limiter};
pub use self::rate::{By, Rate};

use self::limiter::{CallerFacts, Facts, default_failure_rate};
use self::store::Meter;
use crate::authn::Failure;
use crate::authz::Permit;
use crate::request::InboundRequest;
use crate::schema::{Compile, Named};

/// The default of [`LimitConfig::max_keys`].
const DEFAULT_MAX_KEYS: usize = 1_000_000;

/// The largest [`LimitConfig::max_keys`]; about 3 GiB.
const MOST_KEYS: usize = 100_000_000;

/// A limit is used up.
#[derive(Debug, Clone, thiserror::Error)]
#[error("limit {limit} is used up")]
pub struct Exceeded {
    /// The limit's block in the configuration, `policy` or `authentication_failures`.
    pub limit: Arc<str>,
    /// When it is worth trying again.
    pub retry_after: Duration,
    /// What to tell the client.
    pub quota: Quota,
}

/// The tightest limit that was counted, as the `RateLimit` and `RateLimit-Policy` fields tell it
/// (draft-ietf-httpapi-ratelimit-headers).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Quota {
    /// What is allowed; `None` when nothing was counted.
    pub terms: Option<Arc<Terms>>,
    /// `r`: requests left at this moment.
    pub remaining: u64,
    /// `t`: seconds until the quota is whole again.
    pub reset: u64,
}

/// What a limit allows, the same for all who are counted by it.
#[derive(Debug, PartialEq, Eq)]
pub struct Terms {
    /// The quota policy's name.
    pub name: Arc<str>,
    /// `q`: requests in the window.
    pub quota: u64,
    /// `w`: the window in seconds.
    pub window: u64,
    /// The value of `RateLimit-Policy`, which says these three; `None` if the name cannot stand in a field.
    pub policy: Option<HeaderValue>,
}

impl Terms {
    fn new(name: &str, quota: u64, window: u64) -> Self {
        Self {
            name: name.into(),
            quota,
            window,
            policy: HeaderValue::try_from(format!("\"{name}\";q={quota};w={window}")).ok(),
        }
    }
}

impl Quota {
    /// The one of two that leaves fewer requests; the one that counted, when only one did.
    #[must_use]
    pub fn tighter(self, other: Self) -> Self {
        if other.terms.is_none() || (self.terms.is_some() && self.remaining <= other.remaining) {
            self
        } else {
            other
        }
    }
}

/// One block of the `limits` section: how many requests of one kind, at what rate.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct LimitConfig {
    /// What is counted together: `address`, `route`, `subject`, `client`, `issuer` or `claim:NAME`.
    /// `address` and `route` are counted before authentication, the others after the decision.
    pub by: By,
    /// How fast the quota refills: `50/s`, `100/m`, `1000/h`, `5000/d`.
    pub rate: Rate,
    /// How many requests may come at once: 1 or more. Default: the number of the rate.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub burst: Option<u32>,
    /// How many different callers are remembered at one time, 1 to 100,000,000. Callers beyond it
    /// share one quota. A caller costs about 32 bytes.
    #[serde(default = "default_max_keys")]
    pub max_keys: usize,
    /// IPv4 addresses that share so many leading bits are one caller, 8 to 32.
    #[serde(default = "default_ipv4_prefix")]
    pub ipv4_prefix: u8,
    /// IPv6 addresses that share so many leading bits are one caller, 16 to 128. A household or a
    /// rented machine usually has a /64 to itself.
    #[serde(default = "default_ipv6_prefix")]
    pub ipv6_prefix: u8,
}

const fn default_max_keys() -> usize {
    DEFAULT_MAX_KEYS
}

const fn default_ipv4_prefix() -> u8 {
    32
}

const fn default_ipv6_prefix() -> u8 {
    64
}

/// The `authentication_failures` section: addresses that present bad credentials are slowed down.
///
/// Each refused credential costs one. When the quota is used up, requests from that address with an
/// `Authorization` header get 429 before anything is verified, unless the very token was verified
/// before. Requests without credentials are never touched.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct FailureLimitConfig {
    /// Whether addresses are slowed down. Switching it off must be said.
    pub enabled: bool,
    /// How fast an address gets further tries.
    pub rate: Rate,
    /// How many failures may come at once.
    pub burst: u32,
    /// How many addresses are remembered at one time, 1 to 100,000,000.
    pub max_keys: usize,
    /// See `limits`.
    pub ipv4_prefix: u8,
    /// See `limits`.
    pub ipv6_prefix: u8,
}

impl Default for FailureLimitConfig {
    fn default() -> Self {
        Self {
            enabled: true,
            rate: default_failure_rate(),
            burst: 20,
            max_keys: DEFAULT_MAX_KEYS,
            ipv4_prefix: default_ipv4_prefix(),
            ipv6_prefix: default_ipv6_prefix(),
        }
    }
}

impl LimitConfig {
    /// Compiles one block; takes over `previous` with its counters when nothing about it changed, so
    /// that a reload is no way to reset one's quota.
    pub fn compile(
        self,
        name: &str,
        previous: Option<&Arc<Limiter>>,
        cx: &mut Compile,
    ) -> Option<Arc<Limiter>> {
        if let Some(previous) = previous
            && previous.config == self
            && previous.name() == name
        {
            return Some(Arc::clone(previous));
        }
        let before = cx.errors();
        check_name(name, cx);
        check_burst(self.burst, cx);
        check_memory(self.max_keys, self.ipv4_prefix, self.ipv6_prefix, cx);
        if cx.errors() > before {
            return None;
        }
        let limiter = Limiter::new(name, self, Arc::clone(&cx.metrics), Meter::running());
        report_window(limiter.as_ref(), cx);
        limiter.map(Arc::new)
    }
}

impl FailureLimitConfig {
    fn compile(
        self,
        previous: Option<&Arc<FailureLimiter>>,
        cx: &mut Compile,
    ) -> Option<Option<Arc<FailureLimiter>>> {
        if !self.enabled {
            return Some(None);
        }
        if let Some(previous) = previous
            && previous.config == self
        {
            return Some(Some(Arc::clone(previous)));
        }
        let before = cx.errors();
        check_burst(Some(self.burst), cx);
        check_memory(self.max_keys, self.ipv4_prefix, self.ipv6_prefix, cx);
        if cx.errors() > before {
            return None;
        }
        let limiter = FailureLimiter::new(self, Arc::clone(&cx.metrics), Meter::running());
        report_window(limiter.as_ref(), cx);
        limiter.map(|limiter| Some(Arc::new(limiter)))
    }
}

fn report_window<T>(limiter: Option<&T>, cx: &mut Compile) {
    if limiter.is_none() {
        cx.problem_help(
            "the burst takes longer than a year to refill at this rate",
            "lower `burst` or raise `rate`",
        );
    }
}

/// The name goes out in `RateLimit` fields, as a quoted string (RFC 9651 section 3.3.3).
fn check_name(name: &str, cx: &mut Compile) {
    let legal = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.');
    if name.is_empty() || name.len() > 64 || !name.bytes().all(legal) {
        cx.problem_help(
            "the name of a limit is shown to clients and may hold only letters, digits, `-`, `_` \
             and `.`, 64 at most",
            "rename the limit",
        );
    }
    if name == AskedLimits::NAME || name == FailureLimiter::NAME {
        cx.problem_help(
            format!("`{name}` is the name of a limit of the gateway itself"),
            "rename the limit",
        );
    }
}

fn check_burst(burst: Option<u32>, cx: &mut Compile) {
    if burst == Some(0) {
        cx.at("burst", |cx| {
            cx.problem_help(
                "a burst of 0 lets nothing through",
                "write 1 or more; to close a route, let its policy deny",
            );
        });
    }
}

fn check_memory(max_keys: usize, ipv4_prefix: u8, ipv6_prefix: u8, cx: &mut Compile) {
    if !(1..=MOST_KEYS).contains(&max_keys) {
        cx.at("max_keys", |cx| {
            cx.problem_help(
                format!("{max_keys} is not between 1 and {MOST_KEYS}"),
                "a limit needs about 32 bytes a key; the default is 1000000",
            );
        });
    }
    for (key, prefix, range) in [
        ("ipv4_prefix", ipv4_prefix, 8..=32),
        ("ipv6_prefix", ipv6_prefix, 16..=128),
    ] {
        if !range.contains(&prefix) {
            cx.at(key, |cx| {
                cx.problem_help(
                    format!(
                        "{prefix} is not between {} and {}",
                        range.start(),
                        range.end()
                    ),
                    "the defaults are 32 for IPv4 and 64 for IPv6",
                );
            });
        }
    }
}

/// All limits of a configuration.
#[derive(Debug, Clone, Default)]
pub struct LimitSet {
    /// By name.
    pub limiters: Named<Arc<Limiter>>,
    /// Failed authentications by address; absent when switched off.
    pub failures: Option<Arc<FailureLimiter>>,
    /// Limits that policies ask for.
    pub asked: Arc<AskedLimits>,
}

impl LimitSet {
    /// Compiles the `limits` and `authentication_failures` sections, called at the document's root;
    /// takes over from `previous` every limit that did not change, with its counters.
    pub fn compile(
        limits: Named<LimitConfig>,
        failures: FailureLimitConfig,
        previous: Option<&Self>,
        cx: &mut Compile,
    ) -> Option<Self> {
        let before = cx.errors();
        let limiters = cx.at("limits", |cx| {
            limits
                .into_iter()
                .filter_map(|(name, config)| {
                    let previous = previous.and_then(|previous| previous.limiters.get(&name));
                    let limiter = cx.at(name.clone(), |cx| config.compile(&name, previous, cx))?;
                    Some((name, limiter))
                })
                .collect()
        });
        let known_failures = previous.and_then(|previous| previous.failures.as_ref());
        let failures = cx.at(FailureLimiter::NAME, |cx| {
            failures.compile(known_failures, cx)
        });
        let asked = match previous {
            Some(previous) => Arc::clone(&previous.asked),
            None => Arc::new(AskedLimits::new(Arc::clone(&cx.metrics), Meter::running())),
        };
        (cx.errors() == before).then_some(Self {
            limiters,
            failures: failures?,
            asked,
        })
    }

    /// Whether an address must wait because too much that it sent was refused, where no route has a
    /// say.
    pub fn slowed(&self, address: IpAddr) -> Option<Exceeded> {
        self.failures.as_ref()?.check(address).err()
    }

    /// Counts what an address sent and was refused, where no route has a say.
    pub fn failed(&self, address: IpAddr) {
        if let Some(failures) = &self.failures {
            failures.failed(address);
        }
    }

    /// Starts collecting stale keys on the control thread; safe to call again.
    pub fn activate(&self, control: &Handle) {
        self.limiters
            .values()
            .for_each(|limiter| limiter.activate(control));
        if let Some(failures) = &self.failures {
            failures.activate(control);
        }
        self.asked.activate(control);
    }
}

/// The limits of one route.
#[derive(Debug, Clone, Default)]
pub struct Limits {
    route: Arc<str>,
    before: Vec<Arc<Limiter>>,
    after: Vec<Arc<Limiter>>,
    failures: Option<Arc<FailureLimiter>>,
    asked: Arc<AskedLimits>,
}

impl Limits {
    /// Looks up a route's limits by name; an unknown name is a problem at the current place.
    /// `route` is the route's name, which limits `by: route` count.
    pub fn compile(
        route: &Arc<str>,
        names: &[String],
        set: &LimitSet,
        cx: &mut Compile,
    ) -> Option<Self> {
        let errors = cx.errors();
        let mut limits = Self {
            route: Arc::clone(route),
            before: Vec::new(),
            after: Vec::new(),
            failures: set.failures.clone(),
            asked: Arc::clone(&set.asked),
        };
        for (index, name) in names.iter().enumerate() {
            let place = format!("[{index}]");
            match set.limiters.get(name) {
                Some(_) if names.iter().take(index).any(|earlier| earlier == name) => {
                    cx.at(place, |cx| {
                        cx.problem_help(
                            format!("limit `{name}` is listed twice"),
                            "every request would be counted twice; remove one",
                        );
                    });
                }
                Some(limiter) if limiter.by().needs_no_caller() => {
                    limits.before.push(Arc::clone(limiter));
                }
                Some(limiter) => limits.after.push(Arc::clone(limiter)),
                None => cx.at(place, |cx| unknown(name, set, cx)),
            }
        }
        (cx.errors() == errors).then_some(limits)
    }

    /// The names of its limits, in the order in which they count.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        let limiters = self.before.iter().chain(&self.after);
        limiters.map(|limiter| limiter.name())
    }

    /// Counts the request against limits that need no identity.
    ///
    /// # Errors
    /// [`Exceeded`] when one is used up.
    pub fn screen(&self, request: &InboundRequest) -> Result<Quota, Exceeded> {
        count(&self.before, &self.facts(request.client, None))
    }

    /// Whether new credentials from this address must wait, because too many of its credentials
    /// were refused. One that was verified before goes on: neighbours behind the same address are
    /// not to pay for somebody who guesses.
    pub fn slowed(&self, request: &InboundRequest) -> Option<Exceeded> {
        let failures = self
            .failures
            .as_ref()
            .filter(|failures| failures.knows_any() && carries_credentials(request))?;
        failures.check(request.client).err()
    }

    /// Counts a failed authentication against the address it came from.
    pub fn failed(&self, request: &InboundRequest, failure: &Failure) {
        if let (Some(failures), Failure::Rejected { .. }) = (&self.failures, failure)
            && carries_credentials(request)
        {
            failures.failed(request.client);
        }
    }

    /// Counts an allowed request against limits by caller, and the one the policy asked for.
    ///
    /// # Errors
    /// [`Exceeded`] when one is used up.
    pub fn admit(&self, request: &InboundRequest, permit: &Permit) -> Result<Quota, Exceeded> {
        let caller = CallerFacts::of(&permit.caller);
        let mut quota = count(&self.after, &self.facts(request.client, caller))?;
        if let Some(asked) = &permit.advice.limit {
            quota = quota.tighter(self.asked.check(&permit.decided_by.policy, asked)?);
        }
        Ok(quota)
    }

    fn facts<'a>(&'a self, address: IpAddr, caller: Option<CallerFacts<'a>>) -> Facts<'a> {
        Facts {
            address,
            route: &self.route,
            caller,
        }
    }
}

fn count(limiters: &[Arc<Limiter>], facts: &Facts<'_>) -> Result<Quota, Exceeded> {
    let mut tightest = Quota::default();
    for limiter in limiters {
        tightest = tightest.tighter(limiter.check(facts)?);
    }
    Ok(tightest)
}

/// Whether the request tries a credential that can be guessed. A client certificate cannot: it was
/// verified before, and a stranger behind the same address must not lock its owner out.
fn carries_credentials(request: &InboundRequest) -> bool {
    request.headers.contains_key(header::AUTHORIZATION)
}

fn unknown(name: &str, set: &LimitSet, cx: &mut Compile) {
    let nearest = set
        .limiters
        .keys()
        .map(|known| (strsim::damerau_levenshtein(known, name), known))
        .filter(|(distance, _)| *distance <= 3)
        .min();
    let help = match nearest {
        Some((_, known)) => format!("did you mean `{known}`?"),
        None => "define it in the `limits` section".to_owned(),
    };
    cx.problem_help(format!("there is no limit `{name}`"), help);
}

#[cfg(test)]
mod tests;
