//! On which side a request is: whether a candidate decides it, or its policy.

use std::hash::Hasher;
use std::net::IpAddr;

use siphasher::sip::SipHasher13;

use super::config::{By, CohortConfig};
use crate::authn::{Caller, Identity};
use crate::document::{self, Value};
use crate::request::InboundRequest;
use crate::schema::Share;

/// A key by which sides are drawn.
pub(super) type Key = (u64, u64);

/// Whose requests a candidate decides.
#[derive(Debug, PartialEq)]
pub(super) struct Side {
    share: Share,
    by: By,
    /// Holds the key: nobody who does not know it can tell on which side they will be.
    drawn: Drawn,
    cohort: CohortConfig,
}

/// A keyed hash that has read the candidate's name: different candidates draw different people.
struct Drawn(SipHasher13, Key);

impl std::fmt::Debug for Drawn {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Drawn(…)")
    }
}

impl PartialEq for Drawn {
    fn eq(&self, other: &Self) -> bool {
        self.1 == other.1
    }
}

impl Side {
    pub(super) fn new(name: &str, share: Share, by: By, key: Key, cohort: CohortConfig) -> Self {
        let mut hasher = SipHasher13::new_with_keys(key.0, key.1);
        hasher.write(name.as_bytes());
        hasher.write_u8(0xff);
        Self {
            share,
            by,
            drawn: Drawn(hasher, key),
            cohort,
        }
    }

    /// The same, for the same candidate with another content.
    pub(super) fn again(&self) -> Self {
        Self {
            share: self.share,
            by: self.by,
            drawn: Drawn(self.drawn.0, self.drawn.1),
            cohort: self.cohort.clone(),
        }
    }

    /// Whether the candidate decides this one. The same for all requests of whoever is drawn, as long
    /// as the share does not shrink.
    pub(super) fn has(&self, request: &InboundRequest, route: &str, caller: &Caller) -> bool {
        self.cohort
            .holds(request, route, caller.identity().map(|known| &**known))
            && (self.share == Share::ALL || self.share.takes(self.place(request, caller)))
    }

    /// Where somebody stands among all.
    fn place(&self, request: &InboundRequest, caller: &Caller) -> u64 {
        let mut hasher = self.drawn.0;
        let identity = caller.identity();
        match (self.by, identity) {
            (By::Address, _) | (By::Subject | By::Client, None) => {
                address(&mut hasher, request.client)
            }
            (By::Client, Some(identity)) if let Some(client) = &identity.client => {
                // Of this issuer: others may have clients of the same name.
                text(&mut hasher, b'c', &identity.issuer);
                text(&mut hasher, b'c', client);
            }
            (By::Subject | By::Client, Some(identity)) => text(&mut hasher, b's', &identity.id),
        }
        hasher.finish()
    }
}

fn text(hasher: &mut SipHasher13, kind: u8, text: &str) {
    hasher.write_u8(kind);
    hasher.write(text.as_bytes());
    hasher.write_u8(0xff);
}

fn address(hasher: &mut SipHasher13, address: IpAddr) {
    hasher.write_u8(b'a');
    match address.to_canonical() {
        IpAddr::V4(address) => hasher.write(&address.octets()),
        IpAddr::V6(address) => {
            // Whoever has one has all of its network, and could take the one that suits.
            let octets = address.octets();
            let (network, _) = octets.split_at(8);
            hasher.write(network);
        }
    }
}

impl CohortConfig {
    /// Whether a request has something of each list.
    fn holds(&self, request: &InboundRequest, route: &str, identity: Option<&Identity>) -> bool {
        let subject = |identity: &Identity| {
            let mut subjects = self.subjects.iter();
            subjects.any(|name| **name == *identity.subject || **name == *identity.id)
        };
        let claims = |identity: &Identity| {
            let mut claims = self.claims.iter();
            claims.all(|(claim, values)| {
                let value = document::claim(&identity.claims, claim);
                value.is_some_and(|value| counts(value, values))
            })
        };
        let client = request.client.to_canonical();
        (self.routes.is_empty() || self.routes.iter().any(|name| name == route))
            && (self.addresses.is_empty()
                || self
                    .addresses
                    .iter()
                    .any(|network| network.get().contains(&client)))
            && (self.subjects.is_empty() || identity.is_some_and(subject))
            && (self.claims.is_empty() || identity.is_some_and(claims))
    }
}

/// Whether a claim is one of the values, or a list with one of them.
fn counts(claim: &Value, values: &[String]) -> bool {
    let one = |claim: &Value| match document::text(claim) {
        Some(text) => values.iter().any(|value| **value == **text),
        None if matches!(claim, Value::Number(_) | Value::Bool(_)) => {
            let text = claim.to_json_str().unwrap_or_default();
            values.contains(&text)
        }
        None => false,
    };
    match document::items(claim) {
        Some(items) => items.iter().any(one),
        None => one(claim),
    }
}
