//! The `revocation` section: its shape, its defaults, and how it compiles.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::Revocations;
use super::feeds::{Known, LogoutConfig, RedisConfig, Sections, StreamConfig};
use super::list::{List, ListConfig};
use super::plane::Plane;
use crate::schema::{Compile, Named, Span};

/// The `revocation` section.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct RevocationConfig {
    /// The most entries that are held, 1 to 100000000. One that finds no room is refused to whoever
    /// brought it. A sixteenth of them is kept for operators: feeds fill the rest only. An entry takes 50 to 90 bytes of memory. Default: 1000000.
    pub max_entries: u64,
    /// How long a token of any issuer may live. An entry that does not say when it can be forgotten is
    /// held for this long; set `max_age` of every issuer to no more. Default: `24h`.
    pub longest_life: Span,
    /// Where issuers post logout tokens to (OpenID Connect Back-Channel Logout 1.0).
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub backchannel_logout: Vec<LogoutConfig>,
    /// Streams of security events (Shared Signals, CAEP, RISC), by name.
    #[serde(skip_serializing_if = "Named::is_empty")]
    pub streams: Named<StreamConfig>,
    /// Shares revocations between replicas. Default: each has its own.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub redis: Option<RedisConfig>,
    /// A file where revocations outlive the process; each gateway needs one of its own. Takes effect
    /// at the next start. Default: none, they are in memory only.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub store: Option<PathBuf>,
    /// Signed lists that are looked for again and again, by name.
    pub lists: Named<ListConfig>,
}

impl Default for RevocationConfig {
    fn default() -> Self {
        Self {
            max_entries: 1_000_000,
            longest_life: Span::seconds(86_400),
            backchannel_logout: Vec::new(),
            streams: Named::new(),
            redis: None,
            store: None,
            lists: Named::new(),
        }
    }
}

/// The most that `max_entries` can be: 6 GB.
const MOST_ENTRIES: u64 = 100_000_000;

impl RevocationConfig {
    /// Compiles the section. What is revoked stays so from one configuration to the next.
    pub fn compile(
        self,
        previous: Option<&Arc<Revocations>>,
        known: &Known<'_>,
        cx: &mut Compile,
    ) -> Option<Arc<Revocations>> {
        let errors = cx.errors();
        let sections = Sections {
            logout: &self.backchannel_logout,
            streams: &self.streams,
            redis: self.redis.as_ref(),
        };
        let sources = sections.compile(known, previous.map(|previous| &previous.sources), cx);
        if !(1..=MOST_ENTRIES).contains(&self.max_entries) {
            cx.at("max_entries", |cx| {
                cx.problem_help("it is not within 1 to 100000000", "1000000 is the default");
            });
        }
        if self.longest_life.get().is_zero() {
            cx.at("longest_life", |cx| {
                cx.problem_help("no token could be revoked", "24h is the default");
            });
        }
        for name in self
            .streams
            .keys()
            .filter(|name| self.lists.contains_key(*name))
        {
            cx.at("streams", |cx| {
                cx.at(name.clone(), |cx| {
                    cx.key_problem("a list has this name too", "each feed needs its own");
                });
            });
        }
        if cx.errors() > errors {
            return None;
        }
        let mut resolved = self.clone();
        resolved.store = self.store.as_deref().map(|store| {
            cx.at("store", |cx| check_store(store, previous, cx));
            cx.unwatched(store)
        });
        let plane = match previous {
            Some(previous) => Arc::clone(&previous.plane),
            None => Arc::new(Plane::new(
                &resolved,
                Arc::clone(&cx.epoch),
                Arc::clone(&cx.metrics),
            )),
        };
        let room = usize::try_from(self.max_entries).unwrap_or(usize::MAX);
        let before = previous.map(|previous| previous.lists.as_slice());
        let lists: Vec<Arc<List>> = cx.at("lists", |cx| {
            let lists = self.lists.iter().filter_map(|(name, list)| {
                let before = before
                    .unwrap_or_default()
                    .iter()
                    .find(|list| **list.name() == **name);
                cx.at(name.clone(), |cx| {
                    list.clone().compile(name, before, &plane, room, cx)
                })
            });
            lists.collect()
        });
        if cx.errors() > errors {
            return None;
        }
        let sources = sources?;
        let feeds = lists.iter().map(|list| &list.feed);
        let feeds = feeds.chain(sources.freshness()).map(Arc::clone).collect();
        Some(Arc::new(Revocations::new(
            resolved, plane, lists, feeds, sources, cx,
        )))
    }
}

/// Whether a store could be there.
fn check_store(store: &Path, previous: Option<&Arc<Revocations>>, cx: &mut Compile) {
    let path = cx.unwatched(store);
    let folder = match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    };
    if !folder.is_dir() {
        cx.problem_help(
            format!("the folder {} is not there", folder.display()),
            "make it, writable for the gateway alone",
        );
    } else if path.exists() && !path.is_file() {
        cx.problem_help(
            format!("{} is not a regular file", path.display()),
            "name a file; it is made if it is not there",
        );
    }
    if previous.is_some_and(|previous| previous.config.store.as_ref() != Some(&path)) {
        cx.warning(
            "the store takes effect at the next start",
            "until then revocations stay where they are",
        );
    }
}
