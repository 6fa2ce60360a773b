//! OpenID Connect Back-Channel Logout 1.0: what a logout token ends.
//!
//! A token that names a session (`sid`) ends that session, with whatever tokens hold its `sid`; one
//! that names only a subject ends all of the subject's tokens that were issued up to its `iat`. With
//! `whole_subject` the subject's tokens end in either case.

use std::sync::Arc;
use std::time::SystemTime;

use super::endpoint::Unheeded;
use super::replay::Heard;
use super::stream::{Heeded, check_key, put_in_force};
use crate::authn::jwt::Issuer;
use crate::authn::statement::{Kind, Statement};
use crate::document;
use crate::metrics::Metrics;
use crate::revocation::{Change, Plane, Revocation, Target};

/// The one member that `events` must have (section 2.4).
const EVENT: &str = "http://schemas.openid.net/event/backchannel-logout";

/// Who takes the logout tokens of one issuer.
#[derive(Debug)]
pub(super) struct Logout {
    /// The feed's name.
    pub(super) name: Arc<str>,
    pub(super) issuer: Arc<Issuer>,
    pub(super) kind: Kind,
    pub(super) whole_subject: bool,
    pub(super) heard: Arc<Heard>,
    pub(super) metrics: Arc<Metrics>,
}

impl Logout {
    /// Verifies a logout token (section 2.6) and puts in force what it says.
    pub(super) async fn heed(
        &self,
        text: &str,
        plane: &Plane,
        now: SystemTime,
    ) -> Result<Heeded, Unheeded> {
        let statement = self
            .issuer
            .statement(text, &self.kind, now)
            .await
            .map_err(Unheeded::Statement)?;
        check_key(plane, &self.issuer, &statement, now)?;
        let targets = self.targets(&statement).map_err(Unheeded::Claims)?;
        if self.heard.has(&statement.token_id) {
            return Err(Unheeded::Replayed);
        }
        let detail = targets.iter().map(described).collect::<Vec<_>>().join(", ");
        let changes = targets
            .into_iter()
            .map(|target| {
                Change::Revoke(Revocation {
                    before: matches!(target, Target::Subject { .. }).then_some(statement.issued_at),
                    target,
                    minimum: None,
                    until: None,
                    source: Arc::clone(&self.name),
                    reason: Some("logged out".to_owned()),
                })
            })
            .collect();
        put_in_force(plane, changes, now).await?;
        self.heard.keep(&statement.token_id);
        self.metrics.revocation_event(&self.name, "accepted");
        Ok(Heeded {
            code: "feed.accepted",
            detail,
            is_news: true,
        })
    }

    fn targets(&self, statement: &Statement) -> Result<Vec<Target>, &'static str> {
        let claims = &statement.claims;
        let events = document::member(claims, "events");
        let only = events.is_some_and(|events| {
            document::names(events).eq([EVENT])
                && document::member(events, EVENT).is_some_and(|event| event.as_object().is_ok())
        });
        if !only {
            return Err("`events` is not that of a logout");
        }
        let named = |name: &str| match document::member(claims, name) {
            None => Ok(None),
            Some(value) => match document::text(value) {
                Some(text) if !text.is_empty() => Ok(Some(text.to_string())),
                _ => Err("`sub` or `sid` is no text"),
            },
        };
        let issuer = self.issuer.issuer();
        let session = named("sid")?.map(|session| Target::Session {
            issuer: issuer.to_string(),
            session,
        });
        let subject = named("sub")?.map(|subject| Target::Subject {
            issuer: issuer.to_string(),
            subject,
        });
        match (session, subject) {
            (None, None) => Err("there is neither `sub` nor `sid`"),
            (Some(session), None) => Ok(vec![session]),
            (None, Some(subject)) => Ok(vec![subject]),
            (Some(session), Some(subject)) if self.whole_subject => Ok(vec![session, subject]),
            (Some(session), Some(_)) => Ok(vec![session]),
        }
    }
}

/// A target in words, for records.
pub(super) fn described(target: &Target) -> String {
    format!("{} {}", target.kind_name(), target.name())
}
