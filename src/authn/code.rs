//! The stable codes of refused credentials, for records, metrics and alerts.

use std::sync::Arc;

use super::Failure;

macro_rules! codes {
    ($($(#[$doc:meta])* $name:ident = $text:literal;)*) => {
        $($(#[$doc])* pub(crate) const $name: &str = $text;)*
        /// Every code there is.
        #[cfg(test)]
        pub(crate) const ALL: &[&str] = &[$($text),*];
    };
}

codes! {
    /// Not a compact JWS of three canonical parts with strict JSON in them; JWE; no token at all.
    MALFORMED = "token.malformed";
    /// Longer than the issuer allows.
    SIZE = "token.size";
    /// A header parameter that we do not allow: `crit`, `b64`, `zip`, `jku`, `jwk`, `x5u`, `x5c`.
    HEADER = "token.header";
    /// An algorithm that is not in the issuer's list.
    ALGORITHM = "token.algorithm";
    /// A `typ` that the issuer's block does not accept.
    TYPE = "token.type";
    /// A token made for something else: an ID token, a refresh token, a security event.
    KIND = "token.kind";
    /// No issuer of the route has this `iss`.
    ISSUER = "token.issuer";
    /// Not meant for us.
    AUDIENCE = "token.audience";
    /// `exp` has passed.
    EXPIRED = "token.expired";
    /// `nbf` or `iat` lies in the future.
    NOT_YET_VALID = "token.not_yet_valid";
    /// Older than the issuer's `max_age`.
    TOO_OLD = "token.too_old";
    /// A registered claim is missing or has the wrong type.
    CLAIMS = "token.claims";
    /// No subject, or one that is no plain text.
    SUBJECT = "token.subject";
    /// No usable key of the issuer has this `kid`, or several keys fit a token without one.
    UNKNOWN_KEY = "token.unknown_key";
    /// An operator distrusts the key.
    KEY_DISTRUSTED = "token.key_distrusted";
    /// The key may not be used with this algorithm.
    KEY_MISMATCH = "token.key_mismatch";
    /// The signature is wrong.
    SIGNATURE = "token.signature";
    /// Bound to a key or certificate (`cnf`) that the request did not prove.
    CONFIRMATION = "token.confirmation";
    /// The certificate is not valid now.
    CERTIFICATE_EXPIRED = "certificate.expired";
    /// The certificate has no name of the configured kind.
    CERTIFICATE_SUBJECT = "certificate.subject";
}

/// A refusal before it knows its issuer's block.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Refused {
    pub(super) code: &'static str,
    pub(super) reason: String,
}

/// A refusal with this code; the reason is for the record.
pub(super) fn refused(code: &'static str, reason: impl Into<String>) -> Refused {
    Refused {
        code,
        reason: reason.into(),
    }
}

impl Refused {
    /// The failure, with the issuer's block when it was recognised.
    pub(super) fn from(self, issuer: Option<&Arc<str>>) -> Failure {
        Failure::Rejected {
            code: self.code,
            reason: self.reason,
            issuer: issuer.map(Arc::clone),
        }
    }
}
