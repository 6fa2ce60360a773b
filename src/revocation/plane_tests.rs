//! What entries say, when they end, and who may take them back.

use std::path::PathBuf;

use tempfile::TempDir;

use super::*;
use crate::clock;
use crate::schema::Span;

const ISSUER: &str = "https://issuer.test";

fn plane(store: Option<PathBuf>, max_entries: u64) -> Plane {
    let config = RevocationConfig {
        max_entries,
        longest_life: Span::seconds(3600),
        store,
        ..RevocationConfig::default()
    };
    let plane = Plane::new(&config, Arc::default(), Arc::default());
    plane.open().unwrap();
    plane
}

fn token(id: &str) -> Target {
    Target::Token {
        issuer: ISSUER.into(),
        token_id: id.into(),
    }
}

fn subject() -> Target {
    Target::Subject {
        issuer: ISSUER.into(),
        subject: "alice".into(),
    }
}

fn entry(target: Target) -> Revocation {
    Revocation {
        target,
        before: None,
        minimum: None,
        until: None,
        source: "test".into(),
        reason: None,
    }
}

fn lift(target: Target) -> Change {
    Change::Lift(Lift {
        target,
        source: "test".into(),
        reason: None,
    })
}

impl Plane {
    fn one(&self, change: Change, now: SystemTime) -> Result<bool, NotTaken> {
        self.apply(vec![change], now).kept_here().remove(0)
    }

    fn holds(&self, target: &Target, now: SystemTime) -> bool {
        self.get(target.key(), unix_seconds(now)).is_some()
    }
}

#[test]
fn an_entry_holds_for_longer_than_anything_that_it_revokes() {
    let plane = plane(None, 100);
    let now = clock::now();
    let hour = Duration::from_secs(3600);
    let second = Duration::from_secs(1);
    let until = |target: Target, before: Option<SystemTime>, until: Option<SystemTime>| {
        let revocation = Revocation {
            before,
            until,
            minimum: matches!(target, Target::Version { .. }).then_some(3),
            ..entry(target)
        };
        plane.read(&revocation, now).unwrap().1.until
    };
    let seconds = |at: SystemTime| unix_seconds(at);
    // A token's own end is known, or the longest life counts; leeway both ways.
    assert!(until(token("a"), None, Some(now + hour / 2)) > seconds(now + hour / 2 + LEEWAY));
    assert!(until(token("a"), None, None) > seconds(now + hour + LEEWAY));
    // Everything that was issued up to a moment; also when that moment is ahead of our clock, and
    // never less because it lies in the past.
    assert!(until(subject(), Some(now + hour), None) > seconds(now + 2 * hour + LEEWAY));
    assert!(until(subject(), Some(now - hour), None) > seconds(now + hour + LEEWAY));
    let version = Target::Version {
        issuer: ISSUER.into(),
        subject: "alice".into(),
    };
    assert!(until(version, None, None) > seconds(now + hour + LEEWAY));
    // What can be issued again, or signed again, has no end.
    assert_eq!(until(subject(), None, None), NEVER);
    let key = Target::Key {
        issuer: ISSUER.into(),
        key_id: "k".into(),
    };
    assert_eq!(until(key.clone(), None, None), NEVER);
    assert!(until(key, None, Some(now + second)) < NEVER);
    let certificate = Target::Certificate {
        issuer: "CN=CA".into(),
        serial: "2a".into(),
    };
    assert_eq!(until(certificate, None, None), NEVER);
}

#[test]
fn what_names_nothing_or_has_ended_is_not_taken() {
    let plane = plane(None, 100);
    let now = clock::now();
    let revoke = |revocation| plane.one(Change::Revoke(revocation), now);
    let long = "x".repeat(MAX_NAME + 1);
    for id in ["", "a\nb", &long] {
        assert_eq!(revoke(entry(token(id))), Err(NotTaken::Nothing), "{id:?}");
    }
    let serial = |serial: &str| {
        revoke(entry(Target::Certificate {
            issuer: "CN=CA".into(),
            serial: serial.into(),
        }))
    };
    for wrong in ["", "2A", "02a", "2a:01", "zz"] {
        assert_eq!(serial(wrong), Err(NotTaken::Nothing), "{wrong}");
    }
    assert_eq!(serial("2a"), Ok(true));
    let version = entry(Target::Version {
        issuer: ISSUER.into(),
        subject: "alice".into(),
    });
    assert_eq!(revoke(version), Err(NotTaken::Nothing), "without a minimum");
    let past = Revocation {
        until: Some(now - LEEWAY - Duration::from_secs(2)),
        ..entry(token("a"))
    };
    assert_eq!(revoke(past), Err(NotTaken::Past));
}

#[test]
fn what_is_known_is_no_news_and_what_is_full_is_loud() {
    let plane = plane(None, 2);
    let now = clock::now();
    let revoke = |id: &str| plane.one(Change::Revoke(entry(token(id))), now);
    let version = plane.version();
    assert_eq!(revoke("a"), Ok(true));
    assert_ne!(plane.version(), version);
    let version = plane.version();
    assert_eq!(revoke("a"), Ok(false));
    assert_eq!(plane.version(), version, "nothing has to be judged again");
    assert_eq!(revoke("b"), Ok(true));
    assert_eq!(revoke("c"), Err(NotTaken::Full));
    assert!(plane.is_full());
    assert!(plane.holds(&token("a"), now) && plane.holds(&token("b"), now));
    assert_eq!(plane.one(lift(token("a")), now), Ok(true));
    assert_eq!(plane.one(lift(token("a")), now), Ok(false));
    assert_eq!(revoke("c"), Ok(true), "there is room at once");
    assert!(!plane.is_full());
    let series = plane.metrics.encode();
    for (outcome, count) in [("taken", 3), ("known", 1), ("full", 1), ("lifted", 1)] {
        let line = format!("revocations_total{{source=\"test\",outcome=\"{outcome}\"}} {count}");
        assert!(series.contains(&line), "{line}\n{series}");
    }
}

#[test]
fn what_feeds_bring_leaves_operators_room() {
    let plane = plane(None, 64);
    let now = clock::now();
    let revoke = |number: usize, source: &str| {
        let revocation = Revocation {
            source: source.into(),
            ..entry(token(&number.to_string()))
        };
        plane.one(Change::Revoke(revocation), now)
    };
    for number in 0..60 {
        assert_eq!(revoke(number, "logout"), Ok(true), "{number}");
    }
    assert_eq!(revoke(60, "logout"), Err(NotTaken::Full));
    for number in 60..64 {
        assert_eq!(revoke(number, "admin"), Ok(true), "{number}");
    }
    assert_eq!(revoke(64, "admin"), Err(NotTaken::Full));
    assert_eq!(revoke(0, "logout"), Ok(false), "known is known");
}

#[test]
fn a_list_replaces_its_own_entries_and_touches_nobody_elses() {
    let plane = plane(None, 100);
    let now = clock::now();
    let name: Arc<str> = "partner".into();
    let edition = |ids: &[&str]| {
        let index = Index::new(1);
        for id in ids {
            let (key, mark) = Plane::read_listed(&entry(token(id))).unwrap();
            index.insert(key, mark, 0, usize::MAX);
        }
        index
    };
    plane
        .one(Change::Revoke(entry(token("shared"))), now)
        .unwrap();
    let epoch = plane.epoch.now();
    let list = (&name, 7);
    assert!(!plane.set_layer(list, edition(&["old"])), "it is not heard");
    assert!(!plane.holds(&token("old"), now));
    plane.replace_lists(&[list]);
    assert!(plane.set_layer(list, edition(&["shared", "old"])));
    assert!(plane.epoch.now() > epoch);
    assert!(plane.holds(&token("old"), now));
    assert_eq!(plane.lists_with(&token("old"), now), [Arc::clone(&name)]);
    // Lifting by hand does not reach into a list.
    assert_eq!(plane.one(lift(token("old")), now), Ok(false));
    assert!(plane.holds(&token("old"), now));
    assert!(plane.set_layer(list, edition(&["new"])));
    assert!(!plane.holds(&token("old"), now) && plane.holds(&token("new"), now));
    assert!(plane.holds(&token("shared"), now), "the admin's stays");
    plane.hear_lists(Vec::new());
    assert!(
        plane.holds(&token("new"), now),
        "until the next lists are in force"
    );
    assert!(!plane.set_layer(list, edition(&["late"])));
    plane.replace_lists(&[]);
    assert!(!plane.holds(&token("new"), now));
    assert!(plane.has(Kind::Token));
}

#[test]
fn what_is_kept_on_disk_outlives_the_plane() {
    let folder = TempDir::new().unwrap();
    let store = Some(folder.path().join("revoked"));
    let now = clock::now();
    let bound = Revocation {
        before: Some(now),
        reason: Some("left the company".into()),
        ..entry(subject())
    };
    {
        let plane = plane(store.clone(), 100);
        let results = plane
            .apply(
                vec![
                    Change::Revoke(entry(token("a"))),
                    Change::Revoke(entry(token("b"))),
                    Change::Revoke(bound),
                    lift(token("a")),
                ],
                now,
            )
            .kept_here();
        assert_eq!(results, [Ok(true), Ok(true), Ok(true), Ok(true)]);
        let status = plane.store().unwrap();
        assert_eq!((status.lines, status.unsaved, status.error), (4, 0, None));
    }
    let plane = plane(store, 100);
    assert!(!plane.holds(&token("a"), now));
    assert!(plane.holds(&token("b"), now));
    assert_eq!(
        plane.get(subject().key(), unix_seconds(now)),
        Some(unix_seconds(now))
    );
    let page = plane.page(None, 10, now, |_| true).unwrap();
    assert!(page.complete && page.next.is_none());
    assert_eq!(page.entries.len(), 2);
    let subject = serde_json::to_value(&page.entries[1]).unwrap();
    assert_eq!(subject["kind"], "subject");
    assert_eq!(subject["subject"], "alice");
    assert_eq!(subject["reason"], "left the company");
    assert_eq!(subject["source"], "test");
    assert!(subject["before"].is_string() && subject["until"].is_string());
}

#[test]
fn an_entry_is_in_force_though_the_store_is_not_open_and_that_is_said() {
    let folder = TempDir::new().unwrap();
    let config = RevocationConfig {
        store: Some(folder.path().join("revoked")),
        ..RevocationConfig::default()
    };
    let plane = Plane::new(&config, Arc::default(), Arc::default());
    let now = clock::now();
    let outcome = plane.one(Change::Revoke(entry(token("a"))), now);
    assert_eq!(outcome, Err(NotTaken::Store));
    assert!(plane.holds(&token("a"), now));
}

#[test]
fn without_a_store_the_latest_entries_can_be_listed_page_by_page() {
    let plane = plane(None, 10_000);
    let now = clock::now();
    for number in 0..25 {
        let revocation = entry(token(&format!("t{number}")));
        plane.one(Change::Revoke(revocation), now).unwrap();
    }
    plane.one(lift(token("t3")), now).unwrap();
    plane.one(Change::Revoke(entry(subject())), now).unwrap();
    let tokens = |target: &Target| target.kind_name() == "token";
    let first = plane.page(None, 20, now, tokens).unwrap();
    assert_eq!(first.entries.len(), 20);
    let second = plane.page(first.next, 20, now, tokens).unwrap();
    assert_eq!(second.entries.len(), 4);
    assert_eq!(second.next, None);
    assert!(second.complete);
}
