//! Who tells us what is over: logout tokens, security events, and our own replicas.
//!
//! A feed turns what it hears into [`Change`](super::Change)s of the [`Plane`] and says when it was
//! heard; it knows nothing of requests and decides nothing about them. What is posted to us is taken
//! on the worker that got it; all that is asked for from here (polls, Redis) runs on the control thread.
//!
//! | feed | its name | when it counts as silent |
//! | --- | --- | --- |
//! | `backchannel_logout` | `logout:` and the issuer's block | never: issuers speak when they have to |
//! | `streams` with `poll` | that of its block | when no poll got through for `stale_after` |
//! | `streams` with `push` alone | that of its block | with `stale_after`: when nothing came for so long |
//! | `redis` | `redis` | when it was out of reach for `stale_after` |
//!
//! What is heard counts in `revocation_events` by feed and outcome: `accepted`, `noted` (understood, and
//! nothing ends), `not_understood`, `foreign` (about somebody the stream may not speak of), `replayed`,
//! `refused` (not the issuer's, or not for us), `failed` (could not be judged or kept; it may come
//! again).

mod config;
mod endpoint;
mod events;
mod logout;
mod poll;
mod redis;
mod replay;
mod stream;
mod subject;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use tokio::runtime::Handle;

pub use config::{
    LogoutConfig, PollConfig, PushConfig, RedisConfig, StreamConfig, TransmitterConfig,
};
pub use endpoint::{Delivery, Endpoint, MAX_POST, POST_TIMEOUT};

use self::endpoint::{Place, Taker};
use self::logout::Logout;
use self::poll::Poller;
use self::redis::Replica;
use self::replay::Heard;
use self::stream::Stream;
use self::subject::Naming;
use super::{Feed, Plane};
use crate::authn::jwt::Issuer;
use crate::authn::statement::{Kind, Transmitter};
use crate::request::{CanonicalPath, Host, InboundRequest};
use crate::schema::{Compile, Named, Span, known_names};

/// The shortest secret that a transmitter may show, in bytes.
const SHORTEST_SECRET: usize = 16;

/// What a stream with `poll` may be silent for unless it says so.
const POLL_STALE_AFTER: Duration = Duration::from_secs(60);

/// The parts of the document that feeds refer to.
#[derive(Debug, Clone, Copy)]
pub struct Known<'c> {
    /// The issuers that compiled.
    pub issuers: &'c Named<Arc<Issuer>>,
    /// All issuers in the file.
    pub issuer_names: &'c BTreeSet<String>,
    /// All listeners in the file.
    pub listener_names: &'c BTreeSet<String>,
}

/// What the `revocation` section says about feeds.
#[derive(Debug, Clone, Copy)]
pub(super) struct Sections<'c> {
    pub(super) logout: &'c [LogoutConfig],
    pub(super) streams: &'c Named<StreamConfig>,
    pub(super) redis: Option<&'c RedisConfig>,
}

/// The feeds of one configuration.
#[derive(Debug, Default)]
pub(super) struct Feeds {
    endpoints: Vec<Endpoint>,
    logouts: Vec<Arc<Logout>>,
    streams: Vec<Arc<Stream>>,
    /// Issuers that are known here alone.
    transmitters: Vec<Arc<Issuer>>,
    pollers: Vec<Arc<Poller>>,
    redis: Option<Arc<Replica>>,
}

impl Feeds {
    /// Starts what runs on the control thread. Safe to call again.
    pub(super) fn activate(&self, plane: &Arc<Plane>, control: &Handle) {
        for transmitter in &self.transmitters {
            transmitter.activate(control);
        }
        for poller in &self.pollers {
            poller.activate(plane, control);
        }
        if let Some(redis) = &self.redis {
            redis.activate(plane, control);
        }
    }

    /// Issuers that are known here alone.
    pub(super) fn transmitters(&self) -> &[Arc<Issuer>] {
        &self.transmitters
    }

    /// The end-point that a request is posted to.
    pub(super) fn endpoint(&self, request: &InboundRequest) -> Option<&Endpoint> {
        self.endpoints
            .iter()
            .find(|endpoint| endpoint.place.takes(request))
    }

    /// The feeds that can fall silent.
    pub(super) fn freshness(&self) -> impl Iterator<Item = &Arc<Feed>> {
        let redis = self.redis.iter().map(|redis| redis.feed());
        self.streams.iter().map(|stream| &stream.feed).chain(redis)
    }
}

impl Sections<'_> {
    /// Compiles the sections; what did not change goes on as it is.
    pub(super) fn compile(
        self,
        known: &Known<'_>,
        previous: Option<&Feeds>,
        cx: &mut Compile,
    ) -> Option<Feeds> {
        let errors = cx.errors();
        let mut feeds = Feeds::default();
        cx.at("backchannel_logout", |cx| {
            for (index, config) in self.logout.iter().enumerate() {
                cx.at(format!("[{index}]"), |cx| {
                    config.compile(known, previous, &mut feeds, cx)
                });
            }
        });
        cx.at("streams", |cx| {
            for (name, config) in self.streams {
                cx.at(name.clone(), |cx| {
                    config.compile(name, known, previous, &mut feeds, cx)
                });
            }
        });
        if let Some(config) = self.redis {
            let before = previous.and_then(|previous| previous.redis.as_ref());
            feeds.redis = cx.at("redis", |cx| config.compile(before, cx));
        }
        (cx.errors() == errors).then_some(feeds)
    }
}

impl LogoutConfig {
    fn compile(
        &self,
        known: &Known<'_>,
        previous: Option<&Feeds>,
        feeds: &mut Feeds,
        cx: &mut Compile,
    ) -> Option<()> {
        check_audiences(&self.audiences, cx);
        check_span("max_age", self.max_age, 1, 3_600, cx);
        let place = place(&self.path, &self.hosts, &self.listeners, known, feeds, cx);
        let issuer = cx.at("issuer", |cx| issuer(&self.issuer, known, cx))?;
        let name: Arc<str> = format!("logout:{}", self.issuer).into();
        let heard = previous
            .and_then(|previous| previous.logouts.iter().find(|logout| logout.name == name))
            .map(|logout| Arc::clone(&logout.heard));
        let logout = Arc::new(Logout {
            name,
            issuer,
            kind: Kind {
                token_type: "logout+jwt",
                allow_plain: self.allow_plain_type,
                audiences: self.audiences.clone(),
                max_age: self.max_age.get(),
                needs_expiry: true,
                // An ID token has one, and must not log anybody out.
                forbidden: &["nonce"],
                max_size: MAX_POST,
            },
            whole_subject: self.whole_subject,
            // As long as one can be accepted, with the leeway of clocks at both ends.
            heard: heard
                .unwrap_or_else(|| Arc::new(Heard::new(self.max_age.get() + 2 * LONGEST_LEEWAY))),
            metrics: Arc::clone(&cx.metrics),
        });
        feeds.logouts.push(Arc::clone(&logout));
        feeds.endpoints.push(Endpoint {
            place: place?,
            taker: Taker::Logout(logout),
        });
        Some(())
    }
}

/// The largest leeway that an issuer's block can have.
const LONGEST_LEEWAY: Duration = Duration::from_secs(300);

/// Longest time that an event's `jti` is remembered: one that is repeated later ends what it ended
/// before, and no more.
const LONGEST_MEMORY: Duration = Duration::from_secs(86_400);

impl StreamConfig {
    fn compile(
        &self,
        name: &str,
        known: &Known<'_>,
        previous: Option<&Feeds>,
        feeds: &mut Feeds,
        cx: &mut Compile,
    ) -> Option<()> {
        check_name(name, cx);
        check_audiences(&self.audiences, cx);
        check_span("max_age", self.max_age, 60, 90 * 86_400, cx);
        if self.push.is_none() && self.poll.is_none() {
            cx.problem_help(
                "the stream has no way to come",
                "give `push`, `poll`, or both",
            );
        }
        let before = previous
            .and_then(|previous| previous.streams.iter().find(|stream| *stream.name == *name));
        let issuer = self.issuer(name, known, previous, feeds, cx);
        let naming = self.naming(known, cx);
        let place = self.push.as_ref().and_then(|push| {
            cx.at("push", |cx| {
                let secret = cx.at("token", |cx| {
                    let secret = cx.secret(&push.token)?;
                    if secret.expose().len() < SHORTEST_SECRET {
                        cx.problem_help(
                            format!("the token is shorter than {SHORTEST_SECRET} bytes"),
                            "make one with `openssl rand -hex 32`",
                        );
                    }
                    Some(secret)
                });
                let place = place(&push.path, &push.hosts, &push.listeners, known, feeds, cx);
                Some((place?, secret?))
            })
        });
        let stale_after = self
            .stale_after
            .map(Span::get)
            .or_else(|| self.poll.as_ref().map(|_| POLL_STALE_AFTER));
        if let (Some(poll), Some(stale_after)) = (&self.poll, stale_after)
            && poll.wait
            && stale_after <= poll.timeout.get()
        {
            cx.at("stale_after", |cx| {
                cx.problem_help(
                    "it is not longer than `poll.timeout`",
                    "a transmitter that has nothing to say answers late: make `poll.timeout` shorter, \
                     or set `poll.wait: false`",
                );
            });
        }
        let stream = Arc::new(Stream {
            name: name.into(),
            issuer: issuer?,
            kind: Kind {
                token_type: "secevent+jwt",
                allow_plain: false,
                audiences: self.audiences.clone(),
                max_age: self.max_age.get(),
                // Events do not expire (RFC 8417 section 2.2).
                needs_expiry: false,
                forbidden: &[],
                max_size: MAX_POST,
            },
            naming: naming?,
            whole_subject: self.whole_subject,
            heard: before.map_or_else(
                || Arc::new(Heard::new(self.max_age.get().min(LONGEST_MEMORY))),
                |before| Arc::clone(&before.heard),
            ),
            feed: Feed::new(name, stale_after, before.map(|before| &*before.feed)),
            stopped: AtomicBool::new(before.is_some_and(|before| before.is_stopped())),
            metrics: Arc::clone(&cx.metrics),
        });
        if let Some((place, secret)) = place {
            feeds.endpoints.push(Endpoint {
                place,
                taker: Taker::Push(Arc::clone(&stream), secret),
            });
        }
        if let Some(poll) = &self.poll {
            let poller = cx.at("poll", |cx| poll.compile(Arc::clone(&stream), cx))?;
            feeds.pollers.push(Arc::new(poller));
        }
        feeds.streams.push(stream);
        Some(())
    }

    /// Who signs its events.
    fn issuer(
        &self,
        name: &str,
        known: &Known<'_>,
        previous: Option<&Feeds>,
        feeds: &mut Feeds,
        cx: &mut Compile,
    ) -> Option<Arc<Issuer>> {
        match (&self.issuer, &self.transmitter) {
            (Some(named), None) => cx.at("issuer", |cx| issuer(named, known, cx)),
            (None, Some(config)) => cx.at("transmitter", |cx| {
                let transmitter = Transmitter {
                    issuer: config.issuer.clone(),
                    keys: config.keys.clone(),
                    algorithms: config.algorithms.clone(),
                    authorities: config.authorities.clone(),
                    refresh: config.refresh.clone(),
                };
                let name = format!("stream:{name}");
                let before = previous.and_then(|previous| {
                    let mut all = previous.transmitters.iter();
                    all.find(|issuer| **issuer.name() == *name)
                });
                let issuer = transmitter.compile(&name, &self.audiences, before, cx)?;
                if !issuer.makes_statements() {
                    cx.at("algorithms", symmetric);
                    return None;
                }
                feeds.transmitters.push(Arc::clone(&issuer));
                Some(issuer)
            }),
            _ => {
                cx.problem_help(
                    "the stream does not say who signs its events",
                    "give either `issuer`, a block under `issuers`, or `transmitter`",
                );
                None
            }
        }
    }

    fn naming(&self, known: &Known<'_>, cx: &mut Compile) -> Option<Naming> {
        let mut issuers = Vec::new();
        let named: Vec<&String> = match &self.issuer {
            Some(own) if self.subjects_of.is_empty() => vec![own],
            _ => self.subjects_of.iter().collect(),
        };
        cx.at("subjects_of", |cx| {
            if named.is_empty() {
                cx.problem_help(
                    "the stream does not say whose subjects it speaks about",
                    "list blocks under `issuers` whose tokens its events may end",
                );
            }
            for (index, name) in named.iter().enumerate() {
                let found = cx.at(format!("[{index}]"), |cx| find(name, known, cx));
                issuers.extend(found.map(|issuer| issuer.issuer().to_string()));
            }
        });
        if self.email_is_subject && named.len() > 1 {
            cx.at("email_is_subject", |cx| {
                cx.problem_help(
                    "with several issuers an address does not say whose it is",
                    "list one issuer under `subjects_of`",
                );
            });
        }
        (issuers.len() == named.len() && !named.is_empty()).then_some(Naming {
            issuers,
            email_is_subject: self.email_is_subject,
        })
    }
}

/// The issuer of this name whose statements can be verified.
fn issuer(name: &str, known: &Known<'_>, cx: &mut Compile) -> Option<Arc<Issuer>> {
    let issuer = find(name, known, cx)?;
    if !issuer.makes_statements() {
        symmetric(cx);
        return None;
    }
    Some(issuer)
}

fn symmetric(cx: &mut Compile) {
    cx.problem_help(
        "it has no asymmetric algorithm",
        "with a shared secret whoever verifies could sign: use RS256, ES256, EdDSA or the like",
    );
}

fn find(name: &str, known: &Known<'_>, cx: &mut Compile) -> Option<Arc<Issuer>> {
    let found = known.issuers.get(name);
    // One that is there and did not compile has said so itself.
    if found.is_none() && !known.issuer_names.contains(name) {
        let names = known.issuer_names.iter().map(String::as_str);
        cx.problem_help(
            format!("there is no issuer `{name}`"),
            known_names(name, names),
        );
    }
    found.map(Arc::clone)
}

fn check_audiences(audiences: &[String], cx: &mut Compile) {
    if audiences.is_empty() || audiences.iter().any(String::is_empty) {
        cx.at("audiences", |cx| {
            cx.problem_help(
                "there is no audience, or an empty one",
                "name what the issuer writes into `aud` for this gateway",
            );
        });
    }
}

fn check_span(key: &str, span: Span, least: u64, most: u64, cx: &mut Compile) {
    let (least, most) = (Duration::from_secs(least), Duration::from_secs(most));
    if !(least..=most).contains(&span.get()) {
        cx.at(key, |cx| {
            let (least, most) = (Span::of(least), Span::of(most));
            cx.problem_help(
                format!("it is not within {least} to {most}"),
                "leave it out for the default",
            );
        });
    }
}

/// The name of a stream is a label of metrics and the source of entries.
fn check_name(name: &str, cx: &mut Compile) {
    let legal = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.');
    if name.is_empty() || name.len() > 64 || !name.bytes().all(legal) {
        cx.key_problem(
            "the name of a stream holds only letters, digits, `-`, `_` and `.`, 64 at most",
            "rename it",
        );
    }
    if ["admin", "redis"].contains(&name) {
        cx.key_problem(format!("the name `{name}` is reserved"), "choose another");
    }
}

fn place(
    path: &str,
    hosts: &[String],
    listeners: &[String],
    known: &Known<'_>,
    feeds: &Feeds,
    cx: &mut Compile,
) -> Option<Place> {
    let errors = cx.errors();
    cx.at("path", |cx| {
        let canonical = CanonicalPath::parse(path).is_ok_and(|parsed| parsed.as_str() == path);
        if !canonical || path == "/" {
            cx.problem_help(
                "it is not a path in its canonical form",
                "write one such as `/oidc/backchannel-logout`, without query and pattern",
            );
        }
    });
    cx.at("hosts", |cx| {
        for (index, host) in hosts.iter().enumerate() {
            let plain = Host::parse(host).is_ok_and(|parsed| parsed.name() == host);
            if !plain {
                cx.at(format!("[{index}]"), |cx| {
                    cx.problem_help("this is no host name in lower case", "leave the port out");
                });
            }
        }
    });
    cx.at("listeners", |cx| {
        for (index, listener) in listeners.iter().enumerate() {
            if !known.listener_names.contains(listener) {
                let names = known.listener_names.iter().map(String::as_str);
                let help = known_names(listener, names);
                cx.at(format!("[{index}]"), |cx| {
                    cx.problem_help(format!("there is no listener `{listener}`"), help);
                });
            }
        }
    });
    let place = Place {
        path: path.to_owned(),
        hosts: hosts.to_vec(),
        listeners: listeners.to_vec(),
    };
    if feeds
        .endpoints
        .iter()
        .any(|endpoint| endpoint.place.meets(&place))
    {
        cx.at("path", |cx| {
            cx.problem_help(
                "another end-point has this path",
                "give each its own path, or its own hosts or listeners",
            );
        });
    }
    (cx.errors() == errors).then_some(place)
}

#[cfg(test)]
mod tests;
