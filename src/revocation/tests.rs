//! Who passes and who does not.

use std::net::SocketAddr;
use std::time::Duration;

use super::*;
use crate::clock;
use crate::document;
use crate::request::TlsInfo;
use crate::tls::{PeerCertificate, Sans};

const ISSUER: &str = "https://issuer.test";
const IAT: u64 = 1_700_000_000;

fn conn(certificate: Option<PeerCertificate>) -> ConnInfo {
    let address = SocketAddr::from(([127, 0, 0, 1], 1));
    ConnInfo {
        listener: "test".into(),
        peer: address,
        local: address,
        tls: certificate.map(|certificate| TlsInfo {
            version: "TLSv1.3",
            server_name: None,
            peer_certificate: Some(Arc::new(certificate)),
            standing: None,
        }),
        ambiguous_head: None,
        forwarded: Default::default(),
    }
}

fn certificate(serial: &str) -> PeerCertificate {
    let now = clock::now();
    PeerCertificate {
        subject: "CN=orders".into(),
        issuer: "CN=Acme CA".into(),
        serial: serial.into(),
        sans: Sans {
            dns: vec![],
            uri: vec![],
            email: vec![],
            ip: vec![],
        },
        spiffe_id: None,
        sha256: "00ff".into(),
        not_before: now - Duration::from_secs(60),
        not_after: now + Duration::from_secs(60),
    }
}

/// A caller with everything that can be revoked, but for the claims that are given.
fn caller(claims: &str) -> Caller {
    let usual = format!(
        r#"{{"jti":"t1","sid":"s1","client_id":"app","kid":"k1","token_version":5,"issued_at":{IAT}}}"#
    );
    let mut usual: serde_json::Value = serde_json::from_str(&usual).unwrap();
    let given: serde_json::Value = serde_json::from_str(claims).unwrap();
    for (name, value) in given.as_object().unwrap() {
        usual[name] = value.clone();
    }
    let claims = document::from_json(usual.to_string().as_bytes()).unwrap();
    let end = clock::now() + Duration::from_secs(600);
    Caller::Known(Identity::for_tests("alice", claims, end))
}

fn at(seconds: u64) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)
}

fn entry(kind: &str, name: &str) -> Revocation {
    let mut entry = Entry {
        kind: kind.into(),
        issuer: ISSUER.into(),
        ..Entry::default()
    };
    let name = Some(name.to_owned());
    match kind {
        "token" => entry.token_id = name,
        "subject" => entry.subject = name,
        "version" => {
            entry.subject = name;
            entry.minimum = Some(6);
        }
        "session" => entry.session = name,
        "client" => entry.client = name,
        "key" => entry.key_id = name,
        "certificate" => {
            entry.issuer = "CN=Acme CA".into();
            entry.serial = name;
        }
        _ => panic!("{kind}"),
    }
    entry.revocation(&"test".into()).unwrap()
}

fn check(revocations: &Revocations, caller: &Caller) -> Result<(), What> {
    revocations
        .check(caller, &conn(None), StaleRule::Refuse, clock::now())
        .map_err(|revoked| revoked.what)
}

#[test]
fn each_kind_ends_a_caller_that_was_let_in_a_moment_ago_and_nobody_else() {
    for (kind, name, what) in [
        ("token", "t1", What::Token),
        ("subject", "alice", What::Subject),
        ("session", "s1", What::Session),
        ("client", "app", What::Client),
        ("key", "k1", What::Key),
        ("version", "alice", What::Version),
    ] {
        let revocations = Revocations::default();
        let known = caller("{}");
        assert_eq!(check(&revocations, &known), Ok(()));
        assert_eq!(check(&revocations, &known), Ok(()), "remembered");
        revocations
            .revoke(entry(kind, "other"), clock::now())
            .unwrap();
        assert_eq!(check(&revocations, &known), Ok(()), "{kind}: somebody else");
        let epoch = revocations.epoch.now();
        revocations.revoke(entry(kind, name), clock::now()).unwrap();
        assert!(revocations.epoch.now() > epoch);
        assert_eq!(check(&revocations, &known), Err(what));
        assert_eq!(check(&revocations, &known), Err(what), "again");
        assert_eq!(
            check(&revocations, &caller("{}")),
            Err(what),
            "a new caller"
        );
        let revoked = revocations.check(&known, &conn(None), StaleRule::Allow, clock::now());
        assert!(revoked.unwrap_err().bearer);
        let target = entry(kind, name).target;
        let lift = Lift {
            target,
            source: "test".into(),
            reason: None,
        };
        assert_eq!(revocations.lift(lift, clock::now()), Ok(true));
        assert_eq!(check(&revocations, &known), Ok(()), "{kind}: lifted");
    }
}

#[test]
fn who_is_known_by_another_claim_is_ended_by_sub_too() {
    for (kind, what) in [("subject", What::Subject), ("version", What::Version)] {
        let revocations = Revocations::default();
        let known = caller(r#"{"sub":"00u1"}"#);
        assert_eq!(check(&revocations, &known), Ok(()));
        revocations
            .revoke(entry(kind, "00u2"), clock::now())
            .unwrap();
        assert_eq!(check(&revocations, &known), Ok(()), "{kind}: somebody else");
        revocations
            .revoke(entry(kind, "00u1"), clock::now())
            .unwrap();
        assert_eq!(check(&revocations, &known), Err(what));
        let mapped = Revocations::default();
        mapped.revoke(entry(kind, "alice"), clock::now()).unwrap();
        assert_eq!(
            check(&mapped, &known),
            Err(what),
            "by the mapped one as before"
        );
    }
}

#[test]
fn another_issuers_subject_of_the_same_name_is_somebody_else() {
    let revocations = Revocations::default();
    let mut revocation = entry("subject", "alice");
    revocation.target = Target::Subject {
        issuer: "https://other.test".into(),
        subject: "alice".into(),
    };
    revocations.revoke(revocation, clock::now()).unwrap();
    assert_eq!(check(&revocations, &caller("{}")), Ok(()));
    assert_eq!(check(&revocations, &Caller::Anonymous), Ok(()));
}

#[test]
fn before_ends_what_was_issued_up_to_that_second_and_what_does_not_say() {
    for (kind, name) in [("subject", "alice"), ("client", "app")] {
        let revocations = Revocations::default();
        let before = at(IAT) + Duration::from_millis(900);
        let revocation = Revocation {
            before: Some(before),
            ..entry(kind, name)
        };
        revocations.revoke(revocation, clock::now()).unwrap();
        let issued = |iat: &str| check(&revocations, &caller(&format!(r#"{{"issued_at":{iat}}}"#)));
        assert!(issued(&(IAT - 1).to_string()).is_err());
        assert!(issued(&IAT.to_string()).is_err());
        assert_eq!(issued(&(IAT + 1).to_string()), Ok(()));
        assert!(issued("null").is_err(), "it does not say when");
    }
}

#[test]
fn a_least_version_ends_lower_ones_and_those_without() {
    let revocations = Revocations::default();
    revocations
        .revoke(entry("version", "alice"), clock::now())
        .unwrap();
    let of = |version: &str| {
        let claims = format!(r#"{{"token_version":{version}}}"#);
        check(&revocations, &caller(&claims))
    };
    assert_eq!(of("5"), Err(What::Version));
    assert_eq!(of("null"), Err(What::Version));
    assert_eq!(of("6"), Ok(()));
    assert_eq!(of("18446744073709551615"), Ok(()));
    // The least version only rises.
    let lower = Revocation {
        minimum: Some(2),
        ..entry("version", "alice")
    };
    revocations.revoke(lower, clock::now()).unwrap();
    assert_eq!(of("5"), Err(What::Version));
}

#[test]
fn a_revoked_certificate_ends_every_request_of_its_connections() {
    let revocations = Revocations::default();
    let (bad, good) = (conn(Some(certificate("2a"))), conn(Some(certificate("2b"))));
    let ask = |caller: &Caller, conn: &ConnInfo| {
        revocations
            .check(caller, conn, StaleRule::Refuse, clock::now())
            .map_err(|revoked| (revoked.what, revoked.bearer))
    };
    assert_eq!(ask(&Caller::Anonymous, &bad), Ok(()));
    revocations
        .revoke(entry("certificate", "00:2A"), clock::now())
        .unwrap();
    let revoked = Err((What::Certificate, false));
    // Whatever it is that authenticates the request.
    assert_eq!(ask(&Caller::Anonymous, &bad), revoked);
    assert_eq!(ask(&caller("{}"), &bad), revoked);
    assert_eq!(ask(&caller("{}"), &good), Ok(()));
}

#[test]
fn silent_feeds_mean_what_the_route_says() {
    let now = clock::now();
    let feed = Feed::new("list", Some(Duration::from_secs(60)), None);
    let revocations = Revocations {
        feeds: vec![Arc::clone(&feed)],
        ..Revocations::default()
    };
    let ask = |caller: &Caller, rule| {
        revocations
            .check(caller, &conn(None), rule, now)
            .map_err(|revoked| revoked.what)
    };
    let young = unix_seconds(now) - 30;
    let young = caller(&format!(r#"{{"issued_at":{young}}}"#));
    let minute = StaleRule::Shorten(Duration::from_secs(60));
    assert_eq!(ask(&young, StaleRule::Refuse), Err(What::Stale));
    assert_eq!(ask(&young, StaleRule::Allow), Ok(()));
    assert_eq!(ask(&young, minute), Ok(()));
    assert_eq!(ask(&caller("{}"), minute), Err(What::Old));
    let timeless = caller(r#"{"issued_at":null}"#);
    assert_eq!(ask(&timeless, minute), Err(What::Old));
    // Nobody has proven anything that could have been revoked.
    assert_eq!(ask(&Caller::Anonymous, StaleRule::Refuse), Ok(()));
    feed.heard(now);
    assert_eq!(ask(&caller("{}"), StaleRule::Refuse), Ok(()));
    assert_eq!(ask(&caller("{}"), minute), Ok(()));
    let (stale, _) = revocations.faults(now + Duration::from_secs(120));
    assert!(stale[0].contains("list"), "{stale:?}");
}

#[test]
fn an_entry_is_in_force_for_every_request_that_begins_after_it_was_taken() {
    let revocations = Revocations::default();
    let callers: Vec<Caller> = (0..50)
        .map(|number| caller(&format!(r#"{{"jti":"t-{number}"}}"#)))
        .collect();
    let taken = std::sync::atomic::AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                loop {
                    let before = taken.load(Ordering::SeqCst);
                    for (number, caller) in callers.iter().enumerate() {
                        let outcome = check(&revocations, caller);
                        assert!(number >= before || outcome == Err(What::Token), "{number}");
                    }
                    if before == callers.len() {
                        return;
                    }
                }
            });
        }
        for number in 0..callers.len() {
            let revocation = entry("token", &format!("t-{number}"));
            revocations.revoke(revocation, clock::now()).unwrap();
            taken.store(number + 1, Ordering::SeqCst);
        }
    });
}

#[test]
fn entries_are_read_strictly() {
    let read = |text: &str| {
        let entry: Entry = serde_json::from_str(text).map_err(|error| error.to_string())?;
        entry
            .revocation(&"test".into())
            .map_err(|error| error.to_string())
    };
    assert!(read(r#"{"kind":"token","issuer":"i","token_id":"t","until":1700000000}"#).is_ok());
    let dated = read(
        r#"{"kind":"subject","issuer":"i","subject":"s","before":"2023-11-14T22:13:20Z","reason":"x"}"#,
    );
    assert_eq!(dated.unwrap().before, Some(at(IAT)));
    for wrong in [
        r#"{"kind":"token","issuer":"i"}"#,
        r#"{"kind":"token","token_id":"t"}"#,
        r#"{"kind":"tokens","issuer":"i","token_id":"t"}"#,
        r#"{"kind":"token","issuer":"i","token_id":"t","subject":"s"}"#,
        r#"{"kind":"token","issuer":"i","token_id":"t","before":5}"#,
        r#"{"kind":"token","issuer":"i","token_id":"t","expires":5}"#,
        r#"{"kind":"token","issuer":"i","token_id":"t","token_id":"u"}"#,
        r#"{"kind":"token","issuer":"i","token_id":"t","until":1700000000000}"#,
        r#"{"kind":"token","issuer":"i","token_id":"t","until":"tomorrow"}"#,
        r#"{"kind":"token","issuer":"i","token_id":"t","until":-1}"#,
        r#"{"kind":"version","issuer":"i","subject":"t"}"#,
        r#"{"kind":"subject","issuer":"i","subject":"t","minimum":4}"#,
        r#"{"kind":"certificate","issuer":"CN=x","serial":"xyz"}"#,
        r#"{"kind":"token","issuer":"i","token_id":"t","reason":"a\nb"}"#,
    ] {
        assert!(read(wrong).is_err(), "{wrong}");
    }
}
