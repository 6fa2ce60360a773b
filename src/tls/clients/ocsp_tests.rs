use rcgen::{KeyPair, SigningKey};

use super::*;
use crate::clock;
use crate::tls::testing::Authority as Signer;

const ECDSA_SHA256: &[u8] = &[0x2a, 0x86, 0x48, 0xce, 0x3d, 4, 3, 2];

/// What an answer says; changed by each case.
struct Said {
    status: u8,
    serial: Vec<u8>,
    this_update: i64,
    next_update: Option<i64>,
    single_status: Vec<u8>,
    extension: Option<(&'static [u8], bool, Vec<u8>)>,
    /// Of the data: the nonce.
    nonce: Option<Vec<u8>>,
    by_name: bool,
    trailing: &'static [u8],
}

fn time(seconds: i64) -> Vec<u8> {
    let at = time::OffsetDateTime::from_unix_timestamp(seconds).unwrap();
    let format =
        time::format_description::parse_borrowed::<2>("[year][month][day][hour][minute][second]Z")
            .unwrap();
    der::wrap(
        der::GENERALIZED_TIME,
        &[at.format(&format).unwrap().as_bytes()],
    )
}

fn extension(oid: &[u8], critical: bool, value: &[u8]) -> Vec<u8> {
    let critical: &[u8] = if critical { &[1, 1, 0xff] } else { &[] };
    der::wrap(
        der::SEQUENCE,
        &[
            &der::wrap(der::OID, &[oid]),
            critical,
            &der::wrap(der::OCTET_STRING, &[value]),
        ],
    )
}

struct World {
    ours: Signer,
    link: Link,
    now: SystemTime,
}

fn key_of(signer: &Signer) -> &KeyPair {
    signer.issuer.key()
}

impl World {
    fn new() -> Self {
        let ours = Signer::new("ours");
        let roots = pem::authorities(&[ours.pem().into_bytes()]).unwrap();
        let issuer = Arc::new(Authority::of_anchor(&roots.roots[0]));
        let link = Link {
            serial: vec![0x07].into(),
            issuer,
            authority: false,
            points: Box::default(),
            responders: Box::default(),
        };
        Self {
            ours,
            link,
            now: clock::now(),
        }
    }

    fn said(&self) -> Said {
        let now = i64::try_from(clock::unix_seconds(self.now)).unwrap();
        Said {
            status: 0,
            serial: vec![7],
            this_update: now - 10,
            next_update: Some(now + 600),
            single_status: vec![0x80, 0],
            extension: None,
            nonce: None,
            by_name: true,
            trailing: b"",
        }
    }

    fn answer(
        &self,
        said: &Said,
        inquiry: &Inquiry,
        by: &KeyPair,
        certificates: &[&[u8]],
    ) -> Vec<u8> {
        let algorithm = der::wrap(der::SEQUENCE, &[&der::wrap(der::OID, &[SHA1]), &[5, 0]]);
        let id = der::wrap(
            der::SEQUENCE,
            &[
                &algorithm,
                &der::wrap(der::OCTET_STRING, &[&inquiry.name_hash]),
                &der::wrap(der::OCTET_STRING, &[&inquiry.key_hash]),
                &der::wrap(der::INTEGER, &[&said.serial]),
            ],
        );
        let next = said
            .next_update
            .map(|at| der::wrap(der::context(0), &[&time(at)]))
            .unwrap_or_default();
        let extensions = said
            .extension
            .as_ref()
            .map(|(oid, critical, value)| {
                let one = extension(oid, *critical, value);
                der::wrap(der::context(1), &[&der::wrap(der::SEQUENCE, &[&one])])
            })
            .unwrap_or_default();
        let single = der::wrap(
            der::SEQUENCE,
            &[
                &id,
                &said.single_status,
                &time(said.this_update),
                &next,
                &extensions,
            ],
        );
        let responder = if said.by_name {
            let name = der::wrap(der::SEQUENCE, &[&self.link.issuer.name]);
            der::wrap(der::context(1), &[&name])
        } else {
            let (_, bits) = public_key(&self.link.issuer.key).unwrap();
            der::wrap(
                der::context(2),
                &[&der::wrap(der::OCTET_STRING, &[&sha1(bits)])],
            )
        };
        let nonce = said
            .nonce
            .as_ref()
            .map(|nonce| {
                let value = der::wrap(der::OCTET_STRING, &[nonce]);
                let one = extension(NONCE_OID, false, &value);
                der::wrap(der::context(1), &[&der::wrap(der::SEQUENCE, &[&one])])
            })
            .unwrap_or_default();
        let data = der::wrap(
            der::SEQUENCE,
            &[
                &responder,
                &time(said.this_update),
                &der::wrap(der::SEQUENCE, &[&single]),
                &nonce,
            ],
        );
        let signature = by.sign(&data).unwrap();
        let certificates = if certificates.is_empty() {
            Vec::new()
        } else {
            der::wrap(der::context(0), &[&der::wrap(der::SEQUENCE, certificates)])
        };
        let basic = der::wrap(
            der::SEQUENCE,
            &[
                &data,
                &der::wrap(der::SEQUENCE, &[&der::wrap(der::OID, &[ECDSA_SHA256])]),
                &der::wrap(der::BIT_STRING, &[&[0], &signature]),
                &certificates,
            ],
        );
        let bytes = der::wrap(
            der::SEQUENCE,
            &[
                &der::wrap(der::OID, &[BASIC]),
                &der::wrap(der::OCTET_STRING, &[&basic]),
            ],
        );
        der::wrap(
            der::SEQUENCE,
            &[
                &der::wrap(der::ENUMERATED, &[&[said.status]]),
                &der::wrap(der::context(0), &[&bytes]),
                said.trailing,
            ],
        )
    }

    fn believe(&self, inquiry: &Inquiry, body: &[u8]) -> Result<CertificateStatus, AnswerError> {
        let fresh = Freshness {
            leeway: Duration::from_secs(60),
            maximum: Duration::from_secs(3600),
        };
        inquiry
            .believe(body, self.now, fresh, |serial| trimmed(serial) == [0x66])
            .map(|answer| answer.status)
    }

    fn judged(&self, change: impl FnOnce(&mut Said)) -> Result<CertificateStatus, AnswerError> {
        let inquiry = Inquiry::about(&self.link, false).unwrap();
        let mut said = self.said();
        change(&mut said);
        let body = self.answer(&said, &inquiry, key_of(&self.ours), &[]);
        self.believe(&inquiry, &body)
    }
}

#[test]
fn an_answer_has_to_be_about_the_certificate_and_of_this_time() {
    use CertificateStatus::{Good, Revoked, Unknown};
    let world = World::new();
    let seconds = i64::try_from(clock::unix_seconds(world.now)).unwrap();
    assert_eq!(world.judged(|_| {}), Ok(Good));
    assert_eq!(world.judged(|said| said.by_name = false), Ok(Good));
    assert_eq!(world.judged(|said| said.serial = vec![0, 7]), Ok(Good));
    assert_eq!(world.judged(|said| said.next_update = None), Ok(Good));
    let revoked = der::wrap(0xa1, &[&time(seconds - 100)]);
    assert_eq!(
        world.judged(|said| said.single_status = revoked),
        Ok(Revoked)
    );
    assert_eq!(
        world.judged(|said| said.single_status = vec![0x82, 0]),
        Ok(Unknown)
    );

    type Case = (&'static str, Box<dyn FnOnce(&mut Said)>, AnswerError);
    let cases: [Case; 9] = [
        (
            "later",
            Box::new(|said| said.status = 3),
            AnswerError::Refused(3),
        ),
        (
            "another",
            Box::new(|said| said.serial = vec![8]),
            AnswerError::Other,
        ),
        (
            "ended",
            Box::new(move |said| said.next_update = Some(seconds - 61)),
            AnswerError::Stale,
        ),
        (
            "early",
            Box::new(move |said| said.this_update = seconds + 120),
            AnswerError::Stale,
        ),
        (
            "old",
            Box::new(move |said| {
                said.next_update = None;
                said.this_update = seconds - 4000;
            }),
            AnswerError::Stale,
        ),
        (
            "critical",
            Box::new(|said| said.extension = Some((&[0x2a, 3, 4], true, vec![5, 0]))),
            AnswerError::Unreadable,
        ),
        (
            "status",
            Box::new(|said| said.single_status = vec![0x83, 0]),
            AnswerError::Unreadable,
        ),
        (
            "trailing",
            Box::new(|said| said.trailing = b"\x05\x00"),
            AnswerError::Unreadable,
        ),
        (
            "time",
            Box::new(|said| said.status = 255),
            AnswerError::Refused(255),
        ),
    ];
    for (what, change, error) in cases {
        assert_eq!(world.judged(change), Err(error), "{what}");
    }
    let known = world.judged(|said| said.extension = Some((&[0x2a, 3, 4], false, vec![5, 0])));
    assert_eq!(known, Ok(Good));
}

#[test]
fn a_nonce_that_was_asked_for_has_to_come_back() {
    let world = World::new();
    let inquiry = Inquiry::about(&world.link, true).unwrap();
    let asked = inquiry.nonce.unwrap();
    for (nonce, expected) in [
        (Some(asked.to_vec()), Ok(CertificateStatus::Good)),
        (Some(vec![1; 32]), Err(AnswerError::Nonce)),
        (None, Err(AnswerError::Nonce)),
    ] {
        let mut said = world.said();
        said.nonce = nonce;
        let body = world.answer(&said, &inquiry, key_of(&world.ours), &[]);
        assert_eq!(world.believe(&inquiry, &body), expected);
    }
}

#[test]
fn no_changed_byte_of_an_answer_is_believed() {
    let world = World::new();
    let inquiry = Inquiry::about(&world.link, false).unwrap();
    let mut said = world.said();
    said.single_status = der::wrap(0xa1, &[&time(1_600_000_000)]);
    let body = world.answer(&said, &inquiry, key_of(&world.ours), &[]);
    assert_eq!(
        world.believe(&inquiry, &body),
        Ok(CertificateStatus::Revoked)
    );
    for at in 0..body.len() {
        for flip in [1, 0x80, 0xff] {
            let mut changed = body.clone();
            changed[at] ^= flip;
            let found = world.believe(&inquiry, &changed);
            assert!(found != Ok(CertificateStatus::Good), "byte {at}");
        }
        assert!(world.believe(&inquiry, &body[..at]).is_err());
    }
    // Somebody else's signature, with and without a certificate for it.
    let (der, _, key) = Signer::new("ours").leaf(|params| {
        params.extended_key_usages = vec![rcgen::ExtendedKeyUsagePurpose::OcspSigning];
    });
    let other = KeyPair::from_pem(&key).unwrap();
    for certificates in [&[][..], &[der.as_ref()][..]] {
        let body = world.answer(&world.said(), &inquiry, &other, certificates);
        assert_eq!(world.believe(&inquiry, &body), Err(AnswerError::Signature));
    }
}

#[test]
fn a_revoked_or_expired_responder_is_no_responder() {
    let world = World::new();
    let inquiry = Inquiry::about(&world.link, false).unwrap();
    for (serial, ended, expected) in [
        (0x65u64, false, Ok(CertificateStatus::Good)),
        (0x66, false, Err(AnswerError::Signature)),
        (0x65, true, Err(AnswerError::Signature)),
    ] {
        // It bears its authority's name, so that the name of the answer is its own.
        let (der, _, key) = world.ours.leaf(|params| {
            params.serial_number = Some(rcgen::SerialNumber::from(serial));
            params.distinguished_name = rcgen::DistinguishedName::new();
            params
                .distinguished_name
                .push(rcgen::DnType::CommonName, "ours");
            params.extended_key_usages = vec![rcgen::ExtendedKeyUsagePurpose::OcspSigning];
            if ended {
                params.not_after = rcgen::date_time_ymd(2020, 1, 1);
            }
        });
        let key = KeyPair::from_pem(&key).unwrap();
        let body = world.answer(&world.said(), &inquiry, &key, &[der.as_ref()]);
        assert_eq!(
            world.believe(&inquiry, &body),
            expected,
            "{serial:x} {ended}"
        );
    }
}
