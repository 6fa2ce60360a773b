//! What becomes of keys that come, go, change and are distrusted.

use super::*;
use crate::authn::testing::{Signer, jwks};

const RETIRE: Duration = Duration::from_secs(10);

fn set(signers: &[&Signer]) -> KeySet {
    KeySet::parse(jwks(signers).as_bytes()).unwrap()
}

struct Shelf {
    book: Book,
    in_force: InForce,
    now: Instant,
    at: SystemTime,
}

impl Shelf {
    fn of(signers: &[&Signer]) -> Self {
        let mut shelf = Self {
            book: Book::default(),
            in_force: InForce::default(),
            now: Instant::now(),
            at: SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000),
        };
        shelf.publish(signers, Duration::ZERO);
        shelf
    }

    fn publish(&mut self, signers: &[&Signer], retire: Duration) -> Vec<(What, Option<Arc<str>>)> {
        let now = (self.now, self.at);
        let believed = Some(Duration::from_secs(3600));
        let changes = self
            .book
            .replace(set(signers), Origin::Network, now, believed, retire);
        self.render();
        changes.into_iter().map(|one| (one.what, one.kid)).collect()
    }

    /// Whether something that was believed is not any more.
    fn render(&mut self) -> bool {
        let after = self.book.render(&self.in_force);
        let lost = after.lacks_any_of(&self.in_force);
        self.in_force = after;
        lost
    }

    fn pass(&mut self, time: Duration) {
        self.now += time;
        self.at += time;
    }

    fn finds(&self, kid: &str) -> Sought {
        self.in_force.find(Some(kid), Algorithm::ES256, self.now)
    }

    fn distrust(&mut self, kid: Option<&str>, thumbprint: Option<&str>) -> Vec<Distrust> {
        let made = self.book.distrust(&name(kid, thumbprint), 1).unwrap();
        self.render();
        made
    }
}

fn name(kid: Option<&str>, thumbprint: Option<&str>) -> KeyName {
    KeyName {
        kid: kid.map(Into::into),
        thumbprint: thumbprint.map(Into::into),
    }
}

fn signer(kid: &str) -> Signer {
    Signer::new("ES256", kid)
}

/// The same material under another name.
fn renamed(signer: &Signer, kid: &str) -> KeySet {
    let mut jwk = signer.jwk();
    jwk["kid"] = kid.into();
    let text = serde_json::json!({ "keys": [jwk] }).to_string();
    KeySet::parse(text.as_bytes()).unwrap()
}

fn some(kid: &str) -> Option<Arc<str>> {
    Some(kid.into())
}

#[test]
fn what_changes_is_told_once_and_what_stays_keeps_its_time() {
    let (a, b, c) = (signer("a"), signer("b"), signer("c"));
    let mut shelf = Shelf::of(&[&a, &b]);
    shelf.pass(Duration::from_secs(5));
    assert_eq!(shelf.publish(&[&a, &b], Duration::ZERO), []);
    let changes = shelf.publish(&[&b, &c], Duration::ZERO);
    assert_eq!(
        changes,
        [(What::Added, some("c")), (What::Removed, some("a"))]
    );
    let seen: Vec<_> = shelf
        .book
        .published
        .iter()
        .map(|one| one.first_seen)
        .collect();
    assert_eq!(seen, [shelf.at - Duration::from_secs(5), shelf.at]);
    assert!(matches!(shelf.finds("a"), Sought::Unknown));
    assert_eq!(shelf.in_force.gone_since("a"), Some(shelf.now));
    assert_eq!(shelf.in_force.gone_since("b"), None);

    // Other material under a name, and a name for the same material.
    let other = signer("c");
    assert_eq!(
        shelf.publish(&[&b, &other], Duration::ZERO),
        [(What::Replaced, some("c"))]
    );
    let now = (shelf.now, shelf.at);
    let renamed = renamed(&b, "b2");
    let changes = shelf
        .book
        .replace(renamed, Origin::Network, now, None, Duration::ZERO);
    assert_eq!(changes[0].what, What::Renamed);
    assert_eq!(changes[0].old, changes[0].new);
}

#[test]
fn keys_that_go_or_change_are_lost_and_keys_that_come_are_not() {
    let (a, b) = (signer("a"), signer("b"));
    let mut shelf = Shelf::of(&[&a]);
    let mut lost = |signers: &[&Signer]| {
        let now = (shelf.now, shelf.at);
        shelf
            .book
            .replace(set(signers), Origin::Network, now, None, Duration::ZERO);
        shelf.render()
    };
    assert!(!lost(&[&a, &b]));
    assert!(lost(&[&b]));
    assert!(lost(&[&signer("b")]), "other material");
}

#[test]
fn a_retired_key_is_believed_for_its_grace_and_no_longer() {
    let (a, b) = (signer("a"), signer("b"));
    let mut shelf = Shelf::of(&[&a]);
    let fingerprint = shelf.book.published[0].key.fingerprint;
    shelf.publish(&[&b], RETIRE);
    assert!(matches!(shelf.finds("a"), Sought::Key(_)));
    assert!(shelf.in_force.holds(&fingerprint, shelf.now));
    assert_eq!(shelf.book.next_sweep(), Some(shelf.now + RETIRE));
    shelf.pass(RETIRE);
    // At once, whether somebody swept or not.
    assert!(matches!(shelf.finds("a"), Sought::Unknown));
    assert!(!shelf.in_force.holds(&fingerprint, shelf.now));
    assert!(
        !shelf.book.sweep(shelf.now),
        "the set itself is young enough"
    );
    assert!(shelf.render(), "streams are told");

    // Not when the name is taken by another, nor when the key is distrusted.
    let mut shelf = Shelf::of(&[&a]);
    shelf.publish(&[&signer("a")], RETIRE);
    assert!(shelf.book.leaving.is_empty());
    let mut shelf = Shelf::of(&[&a]);
    shelf.distrust(Some("a"), None);
    shelf.publish(&[&b], RETIRE);
    assert!(shelf.book.leaving.is_empty());
    let mut shelf = Shelf::of(&[&a]);
    shelf.publish(&[&b], RETIRE);
    shelf.distrust(Some("a"), None);
    assert!(matches!(shelf.finds("a"), Sought::Distrusted));
}

#[test]
fn an_issuer_that_rotates_fast_leaves_a_bounded_number_of_keys() {
    let mut shelf = Shelf::of(&[&signer("0")]);
    for number in 1..300 {
        shelf.publish(&[&signer(&number.to_string())], RETIRE);
    }
    assert!(shelf.book.leaving.len() <= super::super::keys::MAX_KEYS);
    assert!(
        matches!(shelf.finds("298"), Sought::Key(_)),
        "the latest stay"
    );
    assert!(shelf.in_force.former.len() <= MAX_FORMER);
}

#[test]
fn distrust_is_about_material_under_any_name() {
    let (a, b) = (signer("a"), signer("b"));
    let mut shelf = Shelf::of(&[&a, &b]);
    let fingerprint = shelf.book.published[0].key.fingerprint;
    let made = shelf.distrust(Some("a"), None);
    assert!(made[0].thumbprint.is_some());
    assert!(matches!(shelf.finds("a"), Sought::Distrusted));
    assert!(matches!(shelf.finds("b"), Sought::Key(_)));
    assert!(!shelf.in_force.holds(&fingerprint, shelf.now));

    // Fetched again, and under another name.
    shelf.publish(&[&a, &b], RETIRE);
    assert!(matches!(shelf.finds("a"), Sought::Distrusted));
    let now = (shelf.now, shelf.at);
    let changes = shelf
        .book
        .replace(renamed(&a, "z"), Origin::Network, now, None, RETIRE);
    shelf.render();
    assert!(changes.iter().any(|one| one.what == What::Distrusted));
    assert!(matches!(shelf.finds("z"), Sought::Distrusted));

    // Other material under its name is another key.
    shelf.publish(&[&signer("a")], RETIRE);
    assert!(matches!(shelf.finds("a"), Sought::Key(_)));

    // Lifted, it is believed when it is published.
    shelf.publish(&[&a], RETIRE);
    assert_eq!(shelf.book.trust(&name(Some("a"), None)), made);
    assert!(!shelf.render());
    assert!(matches!(shelf.finds("a"), Sought::Key(_)));
}

#[test]
fn a_name_without_a_key_is_refused_itself() {
    let mut shelf = Shelf::of(&[&signer("b")]);
    let made = shelf.distrust(Some("later"), None);
    assert_eq!(made[0].thumbprint, None);
    assert!(matches!(shelf.finds("later"), Sought::Distrusted));
    shelf.publish(&[&signer("b"), &signer("later")], Duration::ZERO);
    assert!(matches!(shelf.finds("later"), Sought::Distrusted));
    assert!(matches!(shelf.finds("b"), Sought::Key(_)));
    // A thumbprint is known before its key is, too.
    let key = signer("x");
    let thumbprint = set(&[&key]).keys[0].thumbprint().unwrap().to_string();
    shelf.distrust(None, Some(&thumbprint));
    shelf.publish(&[&key], Duration::ZERO);
    assert!(matches!(shelf.finds("x"), Sought::Distrusted));
}

#[test]
fn distrusting_twice_makes_one_entry_and_their_number_is_bounded() {
    let mut shelf = Shelf::of(&[&signer("a")]);
    let first = shelf.distrust(Some("a"), None);
    assert_eq!(shelf.distrust(Some("a"), None), first);
    assert_eq!(shelf.book.distrusted.len(), 1);
    for number in 1..MAX_DISTRUSTED {
        shelf.distrust(Some(&number.to_string()), None);
    }
    let one_more = shelf.book.distrust(&name(Some("more"), None), 1);
    assert_eq!(one_more, None);
    assert_eq!(shelf.book.distrusted.len(), MAX_DISTRUSTED);
}

#[test]
fn keys_age_whether_they_are_swept_or_not() {
    let mut shelf = Shelf::of(&[&signer("a")]);
    shelf.pass(Duration::from_secs(3600));
    assert!(matches!(shelf.finds("a"), Sought::Key(_)));
    shelf.pass(Duration::from_secs(1));
    assert!(matches!(shelf.finds("a"), Sought::Nothing));
    assert_eq!(shelf.in_force.len(shelf.now), 0);
    assert!(shelf.book.sweep(shelf.now));
    assert!(shelf.render(), "streams are told");
}
