//! What was good once and is no longer: tokens, sessions, subjects, clients, keys, certificates.
//!
//! One plane, asked of every request between "who" and "may they". It holds claims, never tokens.
//! Whoever feeds it makes a [`Revocation`]; open permissions are judged again because
//! the [`Epoch`] moves with every change. Nothing here fetches for a request, and a
//! request never waits for anything here.
//!
//! # When an entry ends
//!
//! An entry must hold for longer than anything that it revokes. What brings it says until when that is
//! (`until`: the token's `exp`), and ten minutes are added, since clocks may differ by five at
//! most. Where it does not say, `longest_life` counts from when it was brought, or from its `before`
//! if that is later. An issuer whose tokens live longer un-revokes them: `max_age` of its block keeps
//! it from that. Entries about keys and certificates, and about subjects and clients without `before`,
//! never end by themselves, since what they name can still sign, or be issued, later.
//!
//! # What `before` means
//!
//! `iat` has whole seconds, so a token is revoked when the second in which it was issued is not later
//! than the second of `before`: one that was issued in the same second but later has to be issued
//! again. A token without `iat` counts as issued before.

mod config;
mod entry;
mod feed;
mod feeds;
mod index;
mod journal;
mod list;
mod plane;
mod recall;
mod relay;
mod tick;

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::SystemTime;

use serde::{Deserialize, Serialize};

pub use config::RevocationConfig;
pub use entry::{BadEntry, Entry, Listed, Moment};
pub use feed::{Feed, FeedStatus, RouteRevocationConfig, StaleRule, WhenStale};
pub use feeds::{
    Delivery, Endpoint, Known, LogoutConfig, MAX_POST, POST_TIMEOUT, PollConfig, PushConfig,
    RedisConfig, StreamConfig, TransmitterConfig,
};
pub use index::MAX_BYTES_PER_ENTRY;
pub use journal::StoreError;
pub use list::ListConfig;
pub use plane::{Change, Page, Pending, Place, Plane, StoreStatus};

use plane::LEEWAY as CLOCK_LEEWAY;

use crate::authn::jwt::Issuer;
use crate::authn::memo::KEYS;
use crate::authn::{Caller, Identity, client_certificate};
use crate::clock::unix_seconds;
use crate::document;
use crate::epoch::Epoch;
use crate::metrics::Metrics;
use crate::request::{ConnInfo, InboundRequest};
use crate::schema::Compile;
use feeds::Feeds;
use index::{ALTOGETHER, Key, Kind};
use list::List;

/// What is revoked. Issuers are named as in `iss`, or by the distinguished name that issued a
/// certificate: as in [`Identity::issuer`](crate::authn::Identity::issuer).
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "kind", deny_unknown_fields)]
pub enum Target {
    /// One token.
    Token {
        /// `iss`.
        issuer: String,
        /// `jti`.
        token_id: String,
    },
    /// All of a subject's tokens that were issued up to a moment.
    Subject {
        /// `iss`.
        issuer: String,
        /// `sub`.
        subject: String,
    },
    /// One login session.
    Session {
        /// `iss`.
        issuer: String,
        /// `sid`.
        session: String,
    },
    /// All tokens of a client that were issued up to a moment.
    Client {
        /// `iss`.
        issuer: String,
        /// `client_id`.
        client: String,
    },
    /// Everything that a key has signed.
    Key {
        /// `iss`.
        issuer: String,
        /// `kid`.
        key_id: String,
    },
    /// One certificate: the leaf that was shown. An authority in its chain is ended by the revocation
    /// list of who issued that, or by trusting it no longer.
    Certificate {
        /// The distinguished name of its issuer, in the form of RFC 4514.
        issuer: String,
        /// Its serial number, in lower-case hex without leading zeros.
        serial: String,
    },
    /// All of a subject's tokens whose version is lower than the entry's `minimum`.
    Version {
        /// `iss`.
        issuer: String,
        /// `sub`.
        subject: String,
    },
}

/// One entry, as it is brought.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Revocation {
    /// What is revoked.
    pub target: Target,
    /// For subjects and clients: what was issued up to then is revoked, what is issued later is not.
    /// Others are revoked altogether.
    pub before: Option<SystemTime>,
    /// For versions: the least that is still accepted.
    pub minimum: Option<u64>,
    /// When the entry may be forgotten, because what it revokes has ended by then: `exp` of a token.
    /// The leeway of clocks is added. `None`: after the longest life that the section states; never
    /// for keys, for certificates, and for subjects and clients without `before`.
    pub until: Option<SystemTime>,
    /// Who brought it: `admin`, or the name of a feed. One of few fixed words: it is a label of
    /// metrics.
    pub source: Arc<str>,
    /// Why, in words for the record.
    pub reason: Option<String>,
}

/// Why an entry was not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NotTaken {
    /// The index is full.
    #[error("the revocation index is full")]
    Full,
    /// It is in force, but could not be written down: it will be lost with the next restart.
    #[error("the revocation is in force but cannot be kept on disk")]
    Store,
    /// A name in it is empty, too long or no plain text; or it is a version without a minimum.
    #[error("the revocation names nothing that can be revoked")]
    Nothing,
    /// What it revokes has ended by itself.
    #[error("what the revocation names has ended already")]
    Past,
}

/// An entry that is taken back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lift {
    /// What is no longer revoked.
    pub target: Target,
    /// Who takes it back.
    pub source: Arc<str>,
    /// Why, in words for the record.
    pub reason: Option<String>,
}

/// What was revoked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum What {
    /// The token.
    Token,
    /// All tokens of the subject, up to a moment.
    Subject,
    /// The login session.
    Session,
    /// All tokens of the client, up to a moment.
    Client,
    /// The key that signed it.
    Key,
    /// The certificate of the connection, or of the caller.
    Certificate,
    /// The tokens of the subject below a version.
    Version,
    /// Unknown: the feeds are silent, and the route then believes nobody.
    Stale,
    /// Unknown: the feeds are silent, and the route then believes young credentials only.
    Old,
}

/// A credential that was good once.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("revoked: {}", .what.code())]
pub struct Revoked {
    /// What was revoked.
    pub what: What,
    /// Whether it was a bearer token, so that a challenge can say so.
    pub bearer: bool,
}

impl What {
    /// The stable code of the record.
    pub const fn code(self) -> &'static str {
        match self {
            Self::Token => "revoked.token",
            Self::Subject => "revoked.subject",
            Self::Session => "revoked.session",
            Self::Client => "revoked.client",
            Self::Key => "revoked.key",
            Self::Certificate => "revoked.certificate",
            Self::Version => "revoked.version",
            Self::Stale => "revoked.stale",
            Self::Old => "revoked.old",
        }
    }

    const fn of(kind: Kind) -> Self {
        match kind {
            Kind::Token => Self::Token,
            Kind::Session => Self::Session,
            Kind::Subject => Self::Subject,
            Kind::Client => Self::Client,
            Kind::Key => Self::Key,
            Kind::Version => Self::Version,
            Kind::Certificate => Self::Certificate,
        }
    }
}

impl Revoked {
    /// The stable code of the record.
    pub const fn code(&self) -> &'static str {
        self.what.code()
    }
}

/// The revocations of one configuration: the plane of the process, and who feeds it.
pub struct Revocations {
    config: RevocationConfig,
    plane: Arc<Plane>,
    lists: Vec<Arc<List>>,
    feeds: Vec<Arc<Feed>>,
    sources: Feeds,
    /// Whether a request met a silent feed on a route that believes young credentials then.
    shortens: AtomicBool,
    /// What the plane knows them by while they are in force.
    number: u64,
    epoch: Arc<Epoch>,
    metrics: Arc<Metrics>,
}

impl Default for Revocations {
    fn default() -> Self {
        let config = RevocationConfig::default();
        let (epoch, metrics) = (Arc::default(), Arc::default());
        let plane = Plane::new(&config, Arc::clone(&epoch), Arc::clone(&metrics));
        Self {
            plane: Arc::new(plane),
            lists: Vec::new(),
            feeds: Vec::new(),
            sources: Feeds::default(),
            shortens: AtomicBool::new(false),
            number: plane::fresh_version(),
            epoch,
            metrics,
            config,
        }
    }
}

impl Revocations {
    fn new(
        config: RevocationConfig,
        plane: Arc<Plane>,
        lists: Vec<Arc<List>>,
        feeds: Vec<Arc<Feed>>,
        sources: Feeds,
        cx: &Compile,
    ) -> Self {
        Self {
            config,
            plane,
            lists,
            feeds,
            sources,
            shortens: AtomicBool::new(false),
            number: plane::fresh_version(),
            epoch: Arc::clone(&cx.epoch),
            metrics: Arc::clone(&cx.metrics),
        }
    }

    /// Opens the store, where there is one, and reads lists that are files; before anybody is served
    /// under this configuration, and after everything else about it that can fail: lists that were
    /// read are in force, and those of the configuration before are no longer heard. Safe to call
    /// again.
    ///
    /// # Errors
    /// [`StoreError`]: what was revoked is not known.
    pub fn begin(&self) -> Result<(), StoreError> {
        self.plane.open()?;
        // What earlier lists find out from here on must not replace what these have read.
        self.plane
            .hear_lists(self.lists.iter().map(|list| list.id().1).collect());
        self.lists.iter().for_each(|list| list.begin());
        Ok(())
    }

    /// Starts what runs beside requests on the control thread. Safe to call again.
    pub fn activate(self: &Arc<Self>, control: &tokio::runtime::Handle) {
        if self.plane.begin_reign(self.number) {
            self.plane.configure(&self.config);
            let lists: Vec<_> = self.lists.iter().map(|list| list.id()).collect();
            self.plane.replace_lists(&lists);
            let feeds: Vec<Arc<str>> = self.feeds.iter().map(|f| Arc::clone(f.name())).collect();
            for gone in self.plane.replace_feeds(feeds) {
                self.metrics.revocation_feed_gone(&gone);
            }
            drop(control.spawn(tick::run(Arc::downgrade(self))));
        }
        for list in &self.lists {
            list.activate(control);
        }
        self.sources.activate(&self.plane, control);
    }

    /// The end-point of a feed that a request is posted to, if it is.
    pub fn endpoint(&self, request: &InboundRequest) -> Option<&Endpoint> {
        self.sources.endpoint(request)
    }

    /// Whether they are those of the configuration in force.
    fn is_in_force(&self) -> bool {
        self.plane.reigns(self.number)
    }

    /// What is revoked in this process; the same in every configuration.
    pub fn plane(&self) -> &Arc<Plane> {
        &self.plane
    }

    /// Issuers of events that are no block under `issuers`.
    pub fn transmitters(&self) -> &[Arc<Issuer>] {
        self.sources.transmitters()
    }

    /// Who feeds it, as far as they can fall silent.
    pub fn feeds(&self) -> &[Arc<Feed>] {
        &self.feeds
    }

    /// Whether this caller's credential still holds. To be asked after authentication, of every
    /// request. A known caller of whom nothing was revoked costs two reads of memory.
    ///
    /// # Errors
    /// [`Revoked`].
    pub fn check(
        &self,
        caller: &Caller,
        conn: &ConnInfo,
        rule: StaleRule,
        now: SystemTime,
    ) -> Result<(), Revoked> {
        // Before anything is looked up: what is revoked meanwhile leaves another one behind.
        let version = self.plane.version();
        self.check_certificate(conn, now)?;
        let Some(identity) = caller.identity() else {
            return Ok(());
        };
        if !identity.revocation.is_clean(version) {
            self.look_up(identity, now)?;
            identity.revocation.set_clean(version);
        }
        self.check_feeds(identity, rule, now)
    }

    /// Makes changes; see [`Plane::apply`].
    pub fn apply(&self, changes: Vec<Change>, now: SystemTime) -> Pending {
        self.plane.apply(changes, now)
    }

    /// Takes an entry: once this returns, no request passes that it is meant for, and open streams
    /// are being judged again. Waits until it is on disk: tasks use [`Revocations::apply`].
    ///
    /// # Errors
    /// [`NotTaken`]; then nothing has changed, but see [`NotTaken::Store`].
    pub fn revoke(&self, revocation: Revocation, now: SystemTime) -> Result<(), NotTaken> {
        let change = Change::Revoke(revocation);
        match self.apply(vec![change], now).kept_here().pop() {
            Some(result) => result.map(drop),
            None => Err(NotTaken::Store),
        }
    }

    /// Takes an entry back: whether there was one. Waits until that is on disk. What a list holds stays
    /// revoked until the list lets go of it.
    ///
    /// # Errors
    /// [`NotTaken::Store`]: it is lifted, and will be back after the next restart.
    pub fn lift(&self, lift: Lift, now: SystemTime) -> Result<bool, NotTaken> {
        let change = Change::Lift(lift);
        match self.apply(vec![change], now).kept_here().pop() {
            Some(result) => result,
            None => Err(NotTaken::Store),
        }
    }

    /// The certificate of the connection, whatever it is that authenticates the request.
    fn check_certificate(&self, conn: &ConnInfo, now: SystemTime) -> Result<(), Revoked> {
        let shown = conn.tls.as_ref();
        let Some(certificate) = shown.and_then(|tls| tls.peer_certificate.as_ref()) else {
            return Ok(());
        };
        if !self.plane.has(Kind::Certificate) {
            return Ok(());
        }
        let key = Key::new(Kind::Certificate, &certificate.issuer, &certificate.serial);
        match self.plane.get(key, unix_seconds(now)) {
            None => Ok(()),
            Some(_) => Err(Revoked {
                what: What::Certificate,
                bearer: false,
            }),
        }
    }

    fn look_up(&self, identity: &Identity, now: SystemTime) -> Result<(), Revoked> {
        let now = unix_seconds(now);
        for (kind, number) in IDENTITY_KINDS.into_iter().zip(identity_keys(identity)) {
            if !self.plane.has(kind) {
                continue;
            }
            let Some(mark) = Key::of_number(*number).and_then(|key| self.plane.get(key, now))
            else {
                continue;
            };
            let revoked = match kind {
                Kind::Version => identity.version.is_none_or(|version| version < mark),
                Kind::Token
                | Kind::Session
                | Kind::Subject
                | Kind::Client
                | Kind::Key
                | Kind::Certificate => {
                    mark == ALTOGETHER
                        || identity
                            .issued_at
                            .is_none_or(|issued_at| unix_seconds(issued_at) <= mark)
                }
            };
            if revoked {
                return Err(Revoked {
                    what: What::of(kind),
                    bearer: is_bearer(identity),
                });
            }
        }
        Ok(())
    }

    fn check_feeds(
        &self,
        identity: &Identity,
        rule: StaleRule,
        now: SystemTime,
    ) -> Result<(), Revoked> {
        let bearer = is_bearer(identity);
        let what = match rule {
            StaleRule::Allow => return Ok(()),
            _ if !self.feeds.iter().any(|feed| feed.is_stale(now)) => return Ok(()),
            StaleRule::Refuse => What::Stale,
            StaleRule::Shorten(to) => {
                self.shortens.store(true, Ordering::Relaxed);
                let young = identity
                    .issued_at
                    .and_then(|issued_at| issued_at.checked_add(to))
                    .is_some_and(|end| now < end);
                if young {
                    return Ok(());
                }
                What::Old
            }
        };
        Err(Revoked { what, bearer })
    }
}

/// By what an identity may be revoked, in the order of its memo's keys. The last two are for issuers
/// whose block takes the subject from another claim than `sub`: feeds name people by their `sub`.
const IDENTITY_KINDS: [Kind; KEYS] = [
    Kind::Token,
    Kind::Session,
    Kind::Subject,
    Kind::Client,
    Kind::Key,
    Kind::Version,
    Kind::Subject,
    Kind::Version,
];

/// The keys of an identity, made once; zero where it has no such name.
fn identity_keys(identity: &Identity) -> &[u128; KEYS] {
    identity.revocation.keys(|| {
        let subject = Some(&*identity.subject);
        let sub = document::member(&identity.claims, "sub")
            .and_then(document::text)
            .map(|sub| &**sub)
            .filter(|sub| Some(*sub) != subject);
        // A certificate's serial is looked up as such, for every connection.
        let token = identity.token_id.as_deref().filter(|_| is_bearer(identity));
        let names = [
            token,
            identity.session.as_deref(),
            subject,
            identity.client.as_deref(),
            identity.key_id.as_deref(),
            subject,
            sub,
            sub,
        ];
        let mut keys = [0; KEYS];
        for ((key, kind), name) in keys.iter_mut().zip(IDENTITY_KINDS).zip(names) {
            if let Some(name) = name {
                *key = Key::new(kind, &identity.issuer, name).number();
            }
        }
        keys
    })
}

fn is_bearer(identity: &Identity) -> bool {
    identity.method != client_certificate::NAME
}

impl fmt::Debug for Revocations {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Revocations")
            .field("config", &self.config)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
