//! What an answer means for the client.

use crate::authz::answer::{self, Verdict};
use crate::authz::{Advice, StepUp};
use crate::document::Value;

/// The status of a refusal when the policy chooses none.
const FORBIDDEN: u16 = 403;

/// What an answer means, as the gateway reads it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Meaning {
    /// Whether the request goes on.
    pub allow: bool,
    /// The status of a refusal.
    pub status: Option<u16>,
    /// The code of the record.
    pub reason: Option<String>,
    /// What the client reads.
    pub message: Option<String>,
    /// A stronger login that would help.
    pub step_up: Option<StepUp>,
    /// What is wrong with the answer.
    pub detail: Option<String>,
    /// What the policy says beside yes.
    pub advice: Option<Advice>,
}

impl Meaning {
    /// Reads an answer; `None` is undefined.
    pub fn of(answer: Option<&Value>) -> Self {
        let no = |reason: &str| Self {
            status: Some(FORBIDDEN),
            reason: Some(reason.to_owned()),
            ..Self::default()
        };
        match answer.map_or(Verdict::Undefined, answer::read) {
            Verdict::Allow(advice) => Self {
                allow: true,
                reason: advice.reason.clone(),
                advice: Some(advice),
                ..Self::default()
            },
            Verdict::Deny(face) => {
                let status = match (&face.step_up, face.status) {
                    // A stronger login is asked for with 401 (RFC 9470).
                    (Some(_), _) => 401,
                    (None, Some(status)) => status.as_u16(),
                    (None, None) => FORBIDDEN,
                };
                Self {
                    status: Some(status),
                    message: face.message,
                    step_up: face.step_up,
                    ..no(face.reason.as_deref().unwrap_or("policy.denied"))
                }
            }
            Verdict::Undefined => no("policy.undefined"),
            Verdict::Broken(why) => Self {
                detail: Some(why),
                ..no("policy.answer")
            },
        }
    }
}
