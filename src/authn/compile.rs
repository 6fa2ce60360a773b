//! From a block of the `issuers` section to an issuer, or to all its problems.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use aws_lc_rs::digest::{Context, SHA256};

use super::cache::{Bounds, TokenCache};
use super::claims::{Mapping, Rules};
use super::config::{IssuerConfig, KeysConfig, RefreshConfig};
use super::jwks::{KeyStore, Timing};
use super::jws;
use super::jwt::{Issuer, Judge};
use super::kept::Keeping;
use super::keys::KeySet;
use super::source::Source;
use crate::fetch::{Fetcher, Target};
use crate::schema::{Compile, Named, Span};

/// Largest leeway that makes sense: clocks that differ by more are broken.
const MAX_LEEWAY: Duration = Duration::from_secs(300);

/// Longest time a request may be told to wait for keys.
const MAX_WAIT: Duration = Duration::from_secs(5);

/// Largest token that can be allowed.
const MAX_TOKEN: u64 = 64 * 1024;

/// Over everything outside the document that a block was compiled from.
pub(super) type Inputs = [u8; 32];

impl IssuerConfig {
    /// As [`IssuerConfig::compile`], out of the blocks there were before: what any of them distrusts of
    /// this issuer, a block that is new or renamed distrusts too.
    pub fn compile_among(
        self,
        name: &str,
        before: Option<&Named<Arc<Issuer>>>,
        cx: &mut Compile,
    ) -> Option<Arc<Issuer>> {
        let kin: Vec<_> = before
            .into_iter()
            .flat_map(Named::values)
            .filter(|old| **old.issuer() == *self.issuer)
            .map(|old| old.keys())
            .collect();
        self.compile_after(name, before.and_then(|old| old.get(name)), &kin, cx)
    }

    /// Compiles one block; takes over `previous` (keys and verified tokens) when nothing about it
    /// changed, and its keys when only token rules did.
    pub fn compile(
        self,
        name: &str,
        previous: Option<&Arc<Issuer>>,
        cx: &mut Compile,
    ) -> Option<Arc<Issuer>> {
        self.compile_after(name, previous, &[], cx)
    }

    fn compile_after(
        self,
        name: &str,
        previous: Option<&Arc<Issuer>>,
        kin: &[Arc<KeyStore>],
        cx: &mut Compile,
    ) -> Option<Arc<Issuer>> {
        let errors = cx.errors();
        self.check_rules(cx);
        cx.at("refresh", |cx| self.refresh.check(cx));
        cx.at("keys.last_known_good", |cx| self.check_keeping(cx));
        let mut inputs = Context::new(&SHA256);
        let authorities = self.read_authorities(&mut inputs, cx);
        let (source, initial) = cx.at("keys", |cx| {
            self.source(authorities.unwrap_or_default(), &mut inputs, cx)
        })?;
        if cx.errors() > errors {
            return None;
        }
        let mut digest = Inputs::default();
        digest.copy_from_slice(inputs.finish().as_ref());
        if let Some(previous) = previous
            && previous.is_of(&self, &digest)
        {
            return Some(Arc::clone(previous));
        }

        let name: Arc<str> = name.into();
        let issuer: Arc<str> = self.issuer.as_str().into();
        let fixed = matches!(source, Source::Fixed);
        let keys = previous
            .filter(|previous| !fixed && previous.has_keys_of(&self, &digest))
            .map(|previous| previous.keys())
            .unwrap_or_else(|| {
                let store = KeyStore::new(
                    Arc::clone(&name),
                    Arc::clone(&issuer),
                    source,
                    self.refresh.timing(),
                    initial,
                    Arc::clone(&cx.metrics),
                )
                .with(Arc::clone(&cx.epoch), self.keeping(cx));
                // Of another issuer's keys nothing is known here.
                let earlier = previous.filter(|previous| **previous.issuer() == *issuer);
                Arc::new(match earlier.filter(|_| !fixed) {
                    Some(earlier) => {
                        store.after(&earlier.keys(), earlier.has_source_of(&self, &digest))
                    }
                    None if fixed => store,
                    // A block that goes on keeps its own judgement; a new one has that of its issuer's.
                    None => store.heeding(kin),
                })
            });
        let judge = Judge {
            rules: Rules {
                source: name,
                issuer,
                audiences: self.audiences.clone(),
                leeway: self.leeway.get(),
                max_age: self.max_age.map(Span::get),
                required: self.required_claims.clone(),
                mapping: Mapping {
                    subject: self.claims.subject.clone(),
                    client: self.claims.client.clone(),
                    scopes: self.claims.scopes.clone(),
                    roles: self.claims.roles.clone(),
                    session: self.claims.session.clone(),
                    version: self.claims.version.clone(),
                },
            },
            algorithms: self.algorithms.clone(),
            token_types: self
                .token_types
                .iter()
                .map(|t| jws::media_type(t))
                .collect(),
            allow_missing_type: self.allow_missing_type,
            max_token_size: self.max_token_size.len(),
        };
        let cache = TokenCache::new(Bounds {
            entries: self.cache.entries.into(),
            memory: self.cache.memory.get(),
            lifetime: self.cache.lifetime.get(),
        });
        let metrics = Arc::clone(&cx.metrics);
        Some(Arc::new(Issuer::new(
            self, digest, judge, keys, cache, metrics,
        )))
    }

    /// Whether both blocks fetch the same keys in the same way.
    pub(super) fn same_keys(&self, other: &Self) -> bool {
        self.issuer == other.issuer
            && self.keys == other.keys
            && self.authorities == other.authorities
            && self.refresh == other.refresh
    }

    /// Whether both blocks find their keys in the same place.
    pub(super) fn same_source(&self, other: &Self) -> bool {
        let place = |keys: &KeysConfig| KeysConfig {
            last_known_good: None,
            ..keys.clone()
        };
        self.issuer == other.issuer
            && place(&self.keys) == place(&other.keys)
            && self.authorities == other.authorities
    }

    fn keeping(&self, cx: &Compile) -> Option<Keeping> {
        let kept = self.keys.last_known_good.as_ref()?;
        Some(Keeping {
            file: cx.place_of(&kept.file).into(),
            keep: kept.keep.get(),
        })
    }

    fn check_keeping(&self, cx: &mut Compile) {
        let Some(kept) = &self.keys.last_known_good else {
            return;
        };
        if self.keys.file.is_some() || self.keys.secret.is_some() {
            cx.problem_help(
                "these keys are on this machine already",
                "leave it out: it is for `discovery` and `jwks_uri`",
            );
        }
        if kept.file.file_name().is_none() {
            cx.at("file", |cx| {
                cx.problem_help(
                    "this is no file",
                    "write a path like `state/NAME-keys.json`",
                );
            });
        }
        cx.at("keep", |cx| {
            if kept.keep.get().is_zero() {
                cx.problem_help("nothing is kept for no time", "24h is the default");
            }
            if kept.keep > self.refresh.stale_limit {
                cx.problem_help(
                    "it is longer than `refresh.stale_limit`",
                    "a gateway that was restarted must not believe keys for longer than one that was \
                     not: raise `refresh.stale_limit` too",
                );
            }
        });
    }

    fn check_rules(&self, cx: &mut Compile) {
        cx.at("issuer", |cx| {
            if self.issuer.is_empty() || self.issuer.chars().any(char::is_control) {
                cx.problem_help(
                    "the issuer is empty or holds control characters",
                    "write the `iss` of its tokens, byte for byte",
                );
            }
        });
        cx.at("audiences", |cx| {
            if self.audiences.is_empty() || self.audiences.iter().any(String::is_empty) {
                cx.problem_help(
                    "there is no audience, or an empty one",
                    "name the audience that the issuer writes into tokens for this gateway; \
                     without one, tokens for any other service would open ours",
                );
            }
        });
        cx.at("algorithms", |cx| self.check_algorithms(cx));
        cx.at("token_types", |cx| {
            if self.token_types.is_empty() && !self.allow_missing_type {
                cx.problem_help("no token type is accepted", "write `[at+jwt]`");
            }
            if self.token_types.iter().any(String::is_empty) {
                cx.problem_help(
                    "a token type is empty",
                    "set `allow_missing_type: true` to accept tokens without `typ`",
                );
            }
        });
        if self.leeway.get() > MAX_LEEWAY {
            cx.at("leeway", |cx| {
                cx.problem_help("the leeway is longer than 5m", "repair the clocks instead");
            });
        }
        if self.max_age.is_some_and(|age| age.get().is_zero()) {
            cx.at("max_age", |cx| {
                cx.problem_help("no token is that young", "leave the key out for no limit");
            });
        }
        if self.max_token_size.get() == 0 || self.max_token_size.get() > MAX_TOKEN {
            cx.at("max_token_size", |cx| {
                cx.problem_help("it is not within 1B to 64KiB", "8KiB is the default");
            });
        }
        let paths = [
            Some(&self.claims.subject),
            Some(&self.claims.scopes),
            Some(&self.claims.session),
        ];
        let optional = [
            self.claims.client.as_ref(),
            self.claims.roles.as_ref(),
            self.claims.version.as_ref(),
        ];
        let required = self.required_claims.iter().map(Some);
        if paths
            .into_iter()
            .chain(optional)
            .chain(required)
            .flatten()
            .any(String::is_empty)
        {
            cx.problem_help(
                "a claim's path is empty",
                "write the name of the claim, or names with dots between",
            );
        }
    }

    fn check_algorithms(&self, cx: &mut Compile) {
        if self.algorithms.is_empty() {
            cx.problem_help(
                "no algorithm is accepted",
                "list those the issuer signs with, for example `[RS256]`",
            );
        }
        let symmetric = self
            .algorithms
            .iter()
            .filter(|alg| alg.is_symmetric())
            .count();
        if symmetric != 0 && symmetric != self.algorithms.len() {
            cx.problem_help(
                "HS* stands beside an asymmetric algorithm",
                "use two blocks: where both are accepted, a public key can be passed off as the \
                 secret",
            );
        } else if (symmetric != 0) != self.keys.secret.is_some() && !self.algorithms.is_empty() {
            cx.problem_help(
                "HS* and `keys.secret` belong together",
                "give a secret for HS*, and a key set for all other algorithms",
            );
        }
    }

    fn read_authorities(&self, inputs: &mut Context, cx: &mut Compile) -> Option<Vec<Vec<u8>>> {
        cx.at("authorities", |cx| {
            let files: Vec<_> = self.authorities.iter().map(|file| cx.read(file)).collect();
            let files: Vec<Vec<u8>> = files.into_iter().collect::<Option<_>>()?;
            files.iter().for_each(|file| mix(inputs, file));
            Some(files)
        })
    }

    fn source(
        &self,
        authorities: Vec<Vec<u8>>,
        inputs: &mut Context,
        cx: &mut Compile,
    ) -> Option<(Source, Option<KeySet>)> {
        let fetcher = |cx: &mut Compile| match Fetcher::new(&authorities) {
            Ok(fetcher) => {
                Some(fetcher.with_bounds(self.refresh.timeout.get(), self.refresh.max_size.len()))
            }
            Err(error) => {
                let cause = std::error::Error::source(&error).map(ToString::to_string);
                cx.problem_help(
                    format!("{error}: {}", cause.unwrap_or_default()),
                    "check the files under `authorities`: PEM with at least one certificate",
                );
                None
            }
        };
        let keys = &self.keys;
        match (keys.discovery, &keys.jwks_uri, &keys.file, &keys.secret) {
            (true, None, None, None) => {
                let url = format!(
                    "{}/.well-known/openid-configuration",
                    self.issuer.strip_suffix('/').unwrap_or(&self.issuer)
                );
                let target = cx.at("discovery", |cx| target(&url, cx));
                Some((Source::Discovery(fetcher(cx)?, target?), None))
            }
            (false, Some(uri), None, None) => {
                let target = cx.at("jwks_uri", |cx| target(uri, cx));
                Some((Source::Url(fetcher(cx)?, target?), None))
            }
            (false, None, Some(file), None) => cx.at("file", |cx| key_file(file, inputs, cx)),
            (false, None, None, Some(secret)) => cx.at("secret", |cx| {
                let secret = cx.secret(secret)?;
                // An HMAC is as long as its hash.
                let lengths = self
                    .algorithms
                    .iter()
                    .filter_map(|alg| alg.signature_length());
                let needed = lengths.max().unwrap_or(32);
                if secret.expose().len() < needed {
                    cx.problem_help(
                        format!("the secret is shorter than {needed} bytes"),
                        "RFC 7518 section 3.2 asks for as many bytes as the hash has",
                    );
                    return None;
                }
                mix(inputs, secret.expose());
                let set = KeySet::of_secret(&secret, &self.algorithms);
                Some((Source::Fixed, Some(set)))
            }),
            _ => {
                cx.problem_help(
                    "the keys do not come from exactly one place",
                    "give one of `discovery: true`, `jwks_uri`, `file` or `secret`",
                );
                None
            }
        }
    }
}

impl RefreshConfig {
    fn check(&self, cx: &mut Compile) {
        let mut rule = |key: &str, good: bool, message: &str, help: &str| {
            if !good {
                cx.at(key, |cx| cx.problem_help(message, help));
            }
        };
        let second = Duration::from_secs(1);
        rule(
            "minimum",
            self.minimum.get() >= second,
            "it is shorter than 1s",
            "30s is the default",
        );
        rule(
            "interval",
            self.interval >= self.minimum,
            "it is shorter than `minimum`",
            "10m is the default",
        );
        rule(
            "stale_limit",
            self.stale_limit >= self.interval,
            "it is shorter than `interval`",
            "keys must live longer than the time between two fetches",
        );
        rule(
            "wait",
            self.wait.get() <= MAX_WAIT,
            "it is longer than 5s",
            "a waiting request holds its client's connection; 500ms is the default",
        );
        rule(
            "cooldown",
            self.cooldown.get() >= Duration::from_millis(100),
            "it is shorter than 100ms",
            "500ms is the default",
        );
        rule(
            "budget",
            (1..=60).contains(&self.budget),
            "it is not within 1 to 60 a minute",
            "12 is the default",
        );
        rule(
            "retire",
            self.retire <= self.stale_limit,
            "it is longer than `stale_limit`",
            "keys that the issuer took back would be believed longer than those it publishes",
        );
        rule(
            "timeout",
            (second..=Duration::from_secs(60)).contains(&self.timeout.get()),
            "it is not within 1s to 60s",
            "10s is the default",
        );
        rule(
            "max_size",
            (1..=4 << 20).contains(&self.max_size.get()),
            "it is not within 1B to 4MiB",
            "256KiB is the default",
        );
    }

    fn timing(&self) -> Timing {
        Timing {
            interval: self.interval.get(),
            minimum: self.minimum.get(),
            stale_limit: self.stale_limit.get(),
            wait: self.wait.get(),
            cooldown: self.cooldown.get(),
            budget: self.budget,
            retire: self.retire.get(),
        }
    }
}

fn target(url: &str, cx: &mut Compile) -> Option<Target> {
    match Target::parse(url) {
        Ok(target) => Some(target),
        Err(error) => {
            cx.problem_help(
                format!("{url}: {error}"),
                "keys that anybody on the way can replace prove nothing: use https",
            );
            None
        }
    }
}

fn key_file(
    file: &Path,
    inputs: &mut Context,
    cx: &mut Compile,
) -> Option<(Source, Option<KeySet>)> {
    let bytes = cx.read(file)?;
    mix(inputs, &bytes);
    match KeySet::parse(&bytes) {
        Ok(set) => {
            for note in &set.notes {
                cx.warning(note.clone(), "the other keys of the set are used");
            }
            Some((Source::File(cx.resolve(file)), Some(set)))
        }
        Err(error) => {
            cx.problem_help(
                format!("{}: {error}", file.display()),
                "write a JWK Set (RFC 7517): {\"keys\": [...]} with public signature keys",
            );
            None
        }
    }
}

fn mix(inputs: &mut Context, bytes: &[u8]) {
    inputs.update(&u64::try_from(bytes.len()).unwrap_or(u64::MAX).to_be_bytes());
    inputs.update(bytes);
}
