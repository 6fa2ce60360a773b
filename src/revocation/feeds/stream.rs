//! One stream of security events, however they come.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::SystemTime;

use super::endpoint::Unheeded;
use super::events::{Meaning, meanings};
use super::logout::described;
use super::replay::Heard;
use super::subject::Naming;
use crate::authn::jwt::Issuer;
use crate::authn::statement::{Kind, Statement};
use crate::clock::unix_seconds;
use crate::metrics::Metrics;
use crate::revocation::{Change, Feed, NotTaken, Plane, Revocation, Target};

/// A stream of security events.
#[derive(Debug)]
pub(super) struct Stream {
    /// The feed's name.
    pub(super) name: Arc<str>,
    pub(super) issuer: Arc<Issuer>,
    pub(super) kind: Kind,
    pub(super) naming: Naming,
    /// Whether a user's tokens end wherever a user is named.
    pub(super) whole_subject: bool,
    pub(super) heard: Arc<Heard>,
    pub(super) feed: Arc<Feed>,
    /// Whether the transmitter said that it stops sending.
    pub(super) stopped: AtomicBool,
    pub(super) metrics: Arc<Metrics>,
}

/// What was heeded.
#[derive(Debug)]
pub(super) struct Heeded {
    /// The code of the record.
    pub(super) code: &'static str,
    /// What ended, for the record.
    pub(super) detail: String,
    /// Whether it was not heard before.
    pub(super) is_news: bool,
}

impl Stream {
    /// Verifies a security event token and puts in force what it says. One that was heard before
    /// changes nothing and is no fault.
    pub(super) async fn heed(
        &self,
        text: &str,
        plane: &Plane,
        now: SystemTime,
    ) -> Result<Heeded, Unheeded> {
        let statement = self
            .issuer
            .statement(text.trim_ascii(), &self.kind, now)
            .await
            .map_err(Unheeded::Statement)?;
        check_key(plane, &self.issuer, &statement, now)?;
        if self.heard.has(&statement.token_id) {
            self.metrics.revocation_event(&self.name, "replayed");
            return Ok(Heeded {
                code: "feed.replayed",
                detail: "it was heard before".to_owned(),
                is_news: false,
            });
        }
        let (changes, outcomes) = self.meant(&statement, now);
        let ended: Vec<String> = changes.iter().map(target).map(described).collect();
        put_in_force(plane, changes, now).await?;
        for outcome in &outcomes {
            self.metrics.revocation_event(&self.name, outcome);
        }
        // Kept only now: what failed may come again.
        self.heard.keep(&statement.token_id);
        self.alive(now);
        Ok(if ended.is_empty() {
            Heeded {
                code: match outcomes.first() {
                    Some(&"noted") => "feed.noted",
                    _ => "feed.not_understood",
                },
                detail: format!("nothing ended: {}", outcomes.join(", ")),
                is_news: true,
            }
        } else {
            Heeded {
                code: "feed.accepted",
                detail: ended.join(", "),
                is_news: true,
            }
        })
    }

    /// Whether the transmitter said that it stops sending.
    pub(super) fn is_stopped(&self) -> bool {
        self.stopped.load(Ordering::Relaxed)
    }

    /// The stream was heard, and is up to date if it is not stopped.
    pub(super) fn alive(&self, now: SystemTime) {
        if self.is_stopped() {
            self.feed.failed("the transmitter has stopped the stream");
        } else {
            self.feed.heard(now);
        }
    }

    fn meant(&self, statement: &Statement, now: SystemTime) -> (Vec<Change>, Vec<&'static str>) {
        let mut changes = Vec::new();
        let mut outcomes = Vec::new();
        let said = meanings(
            &statement.claims,
            statement.issued_at,
            now,
            &self.naming,
            self.whole_subject,
        );
        for meaning in said {
            outcomes.push(match meaning {
                Meaning::Ends(targets, at) => {
                    changes.extend(targets.into_iter().map(|target| {
                        Change::Revoke(Revocation {
                            before: matches!(target, Target::Subject { .. }).then_some(at),
                            target,
                            minimum: None,
                            until: None,
                            source: Arc::clone(&self.name),
                            reason: Some("security event".to_owned()),
                        })
                    }));
                    "accepted"
                }
                Meaning::Noted => "noted",
                Meaning::Stream { enabled } => {
                    if self.stopped.swap(!enabled, Ordering::Relaxed) == enabled {
                        tracing::warn!(stream = %self.name, enabled, "the transmitter has changed the stream");
                    }
                    "noted"
                }
                Meaning::NotUnderstood => "not_understood",
                Meaning::Foreign => "foreign",
            });
        }
        (changes, outcomes)
    }
}

fn target(change: &Change) -> &Target {
    match change {
        Change::Revoke(revocation) => &revocation.target,
        Change::Lift(lift) => &lift.target,
    }
}

/// Refuses what was signed with a key of which everything was revoked.
pub(super) fn check_key(
    plane: &Plane,
    issuer: &Issuer,
    statement: &Statement,
    now: SystemTime,
) -> Result<(), Unheeded> {
    let Some(key_id) = &statement.key_id else {
        return Ok(());
    };
    let target = Target::Key {
        issuer: issuer.issuer().to_string(),
        key_id: key_id.to_string(),
    };
    match plane.get(target.key(), unix_seconds(now)) {
        None => Ok(()),
        Some(_) => Err(Unheeded::Claims("the key that signed it is revoked")),
    }
}

/// Puts changes in force and waits until they are kept.
pub(super) async fn put_in_force(
    plane: &Plane,
    changes: Vec<Change>,
    now: SystemTime,
) -> Result<(), Unheeded> {
    if changes.is_empty() {
        return Ok(());
    }
    for result in plane.apply(changes, now).kept().await {
        match result {
            // What has ended by itself needs no end.
            Ok(_) | Err(NotTaken::Past) => {}
            Err(NotTaken::Nothing) => {
                return Err(Unheeded::Claims("it names nothing that can be revoked"));
            }
            Err(why @ (NotTaken::Full | NotTaken::Store)) => {
                return Err(Unheeded::Unavailable(why.to_string()));
            }
        }
    }
    Ok(())
}
