//! One revocation list: what it says, until when, for which certificates, and who signed it.

use std::fmt;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use aws_lc_rs::digest::{SHA256, digest};
use webpki::BorrowedCertRevocationList;
use x509_parser::extensions::{DistributionPointName, GeneralName, ParsedExtension};
use x509_parser::prelude::{FromDer, X509Extension};

use super::chain::{Authority, Link};
use crate::tls::der::{self, Reader};
use crate::tls::signed::Signed;

/// Most revoked certificates of a list; over 16 MiB of them do not fit anyway.
const MAX_ENTRIES: usize = 2_000_000;

/// Most keys that a list is checked against. More than one authority of a name is already odd.
const MAX_KEYS: usize = 16;

/// How far the clock of who issues lists may be ahead of ours.
const AHEAD: Duration = Duration::from_secs(300);

/// Why a list cannot be used. Whose fault: that of whoever issued or serves it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ListError {
    /// It cannot be parsed, or it is of a kind that is not supported: a delta list, an indirect list,
    /// one for some reasons only, or one with a critical extension that we do not know.
    #[error("the revocation list cannot be read, or is of a kind that is not supported")]
    Unreadable,
    /// It is a delta list.
    #[error("the list is a delta list, which is not supported")]
    Delta,
    /// It has more entries than we hold.
    #[error("the revocation list has more than {MAX_ENTRIES} entries")]
    TooMany,
    /// It was issued in the future.
    #[error("the revocation list is not valid yet")]
    Early,
    /// Its `nextUpdate` has passed.
    #[error("the revocation list has expired")]
    Expired,
    /// Its number, or its date, is lower than that of the list that is held.
    #[error("the revocation list is older than the one that is held")]
    Older,
    /// The authority that it names did not sign it.
    #[error("the revocation list is not signed by the authority that it names")]
    Signature,
}

impl ListError {
    /// A stable word for metrics.
    pub const fn code(self) -> &'static str {
        match self {
            Self::Unreadable => "unreadable",
            Self::Delta => "delta",
            Self::TooMany => "too_large",
            Self::Early => "early",
            Self::Expired => "expired",
            Self::Older => "older",
            Self::Signature => "signature",
        }
    }
}

/// A revocation list that could be read. Nothing is believed of it before [`List::is_by`].
pub(crate) struct List {
    /// The issuer's name, without the outer tag.
    pub(super) issuer: Box<[u8]>,
    /// The list's number, big-endian without leading zeros.
    number: Option<Box<[u8]>>,
    this_update: i64,
    pub(super) next_update: SystemTime,
    scope: Scope,
    serials: Serials,
    pub(super) sha256: [u8; 32],
    /// What was found for keys that were tried; the bytes are let go of once one of them fits.
    tried: Mutex<Tried>,
}

#[derive(Default)]
struct Tried {
    bytes: Option<Box<[u8]>>,
    by: Option<[u8; 32]>,
    not: Vec<[u8; 32]>,
}

/// For which certificates of its issuer a list speaks (RFC 5280 section 5.2.5).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Scope {
    clients: bool,
    authorities: bool,
    /// `None`: wherever the certificate says that its list is.
    points: Option<Vec<String>>,
}

impl List {
    /// Reads a list in DER form.
    pub(crate) fn read(bytes: &[u8]) -> Result<Self, ListError> {
        // The same library that verifies certificates judges what it must not be ignorant of.
        let parsed =
            BorrowedCertRevocationList::from_der(bytes).map_err(|error| refused(&error))?;
        let serials = Serials::collect(&parsed)?;
        let head = Head::read(bytes).ok_or(ListError::Unreadable)?;
        Ok(Self {
            issuer: head.issuer.into(),
            number: head.number.map(Into::into),
            this_update: head.this_update,
            next_update: instant(head.next_update),
            scope: head.scope,
            serials,
            sha256: sha256(bytes),
            tried: Mutex::new(Tried {
                bytes: Some(bytes.into()),
                ..Tried::default()
            }),
        })
    }

    /// Whether `authority` signed it. The first time costs a signature over the whole list.
    pub(super) fn is_by(&self, authority: &Authority) -> bool {
        if !authority.signs_lists || self.issuer != authority.name {
            return false;
        }
        let mut tried = self.tried.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(by) = tried.by {
            return by == authority.id;
        }
        if tried.not.contains(&authority.id) || tried.not.len() >= MAX_KEYS {
            return false;
        }
        let signed = tried.bytes.as_deref().and_then(|bytes| {
            let mut parts = Reader(bytes).only(der::SEQUENCE)?.inside();
            let signed = Signed::read(&mut parts)?;
            Some(signed.is_by(&authority.key))
        });
        if signed == Some(true) {
            tried.by = Some(authority.id);
            tried.bytes = None;
            true
        } else {
            tried.not.push(authority.id);
            false
        }
    }

    /// Whether somebody is known to have signed it.
    pub(super) fn is_believed(&self) -> bool {
        let tried = self.tried.lock().unwrap_or_else(PoisonError::into_inner);
        tried.by.is_some()
    }

    /// Whether it speaks for this certificate, given that it is of its issuer.
    pub(super) fn covers(&self, link: &Link) -> bool {
        if (self.scope.authorities && !link.authority) || (self.scope.clients && link.authority) {
            return false;
        }
        match &self.scope.points {
            None => true,
            // It says nowhere where its list is: then each of them may be the one.
            Some(_) if link.points.is_empty() => true,
            Some(points) => points
                .iter()
                .any(|point| link.points.iter().any(|named| **named == **point)),
        }
    }

    /// Whether both are for the same certificates.
    pub(super) fn same_scope(&self, other: &Self) -> bool {
        self.issuer == other.issuer && self.scope == other.scope
    }

    /// Whether it lists this serial number.
    pub(super) fn lists(&self, serial: &[u8]) -> bool {
        self.serials.contains(serial)
    }

    /// Whether it is newer than another of the same scope: by number where both have one.
    pub(super) fn supersedes(&self, other: &Self) -> bool {
        match (&self.number, &other.number) {
            (Some(a), Some(b)) if a != b => (a.len(), a) > (b.len(), b),
            _ => self.this_update > other.this_update,
        }
    }

    /// When it was issued.
    pub(crate) fn issued(&self) -> SystemTime {
        instant(self.this_update)
    }

    /// When it stops being believed.
    pub(crate) fn ends(&self) -> SystemTime {
        self.next_update
    }

    /// How many certificates it lists.
    pub(crate) fn len(&self) -> usize {
        self.serials.index.len()
    }

    /// What speaks against it at this time.
    pub(super) fn timely(&self, now: SystemTime) -> Result<(), ListError> {
        if self.issued() > now + AHEAD {
            Err(ListError::Early)
        } else if self.next_update <= now {
            Err(ListError::Expired)
        } else {
            Ok(())
        }
    }
}

impl fmt::Debug for List {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("List")
            .field("entries", &self.len())
            .finish_non_exhaustive()
    }
}

fn refused(error: &webpki::Error) -> ListError {
    if matches!(error, webpki::Error::UnsupportedDeltaCrl) {
        ListError::Delta
    } else {
        ListError::Unreadable
    }
}

/// What a list says of itself.
struct Head<'d> {
    issuer: &'d [u8],
    number: Option<&'d [u8]>,
    this_update: i64,
    next_update: i64,
    scope: Scope,
}

impl<'d> Head<'d> {
    #[expect(
        clippy::wildcard_enum_match_arm,
        reason = "what is critical and not known here refuses the list, whatever it is"
    )]
    fn read(bytes: &'d [u8]) -> Option<Self> {
        let mut parts = Reader(bytes).only(der::SEQUENCE)?.inside();
        let mut list = parts.next(der::SEQUENCE)?.inside();
        list.next(der::INTEGER)?;
        list.next(der::SEQUENCE)?;
        let issuer = list.next(der::SEQUENCE)?.content;
        let this_update = list.any()?.time()?;
        let next_update = list.any()?.time()?;
        list.optional(der::SEQUENCE)?;
        let mut head = Self {
            issuer,
            number: None,
            this_update,
            next_update,
            scope: Scope::default(),
        };
        let Some(extensions) = list.optional(der::context(0))? else {
            return Some(head);
        };
        let mut extensions = extensions.inside().only(der::SEQUENCE)?.inside();
        while !extensions.is_empty() {
            let text = extensions.next(der::SEQUENCE)?.whole;
            let ([], extension) = X509Extension::from_der(text).ok()? else {
                return None;
            };
            match extension.parsed_extension() {
                ParsedExtension::CRLNumber(_) => {
                    let number = Reader(extension.value).only(der::INTEGER)?.content;
                    head.number = Some(trimmed(number));
                }
                ParsedExtension::IssuingDistributionPoint(point) => {
                    head.scope.clients = point.only_contains_user_certs;
                    head.scope.authorities = point.only_contains_ca_certs;
                    // Without a name there is nothing to compare; then it is for nobody.
                    head.scope.points = Some(names(point.distribution_point.as_ref()));
                }
                ParsedExtension::ParseError { .. } => return None,
                _ if extension.critical => return None,
                _ => {}
            }
        }
        Some(head)
    }
}

/// The URIs of a full name, in their order.
pub(super) fn names(point: Option<&DistributionPointName<'_>>) -> Vec<String> {
    let Some(DistributionPointName::FullName(names)) = point else {
        return Vec::new();
    };
    let mut uris = Vec::new();
    for name in names {
        if let GeneralName::URI(uri) = name {
            uris.push((*uri).to_owned());
        }
    }
    uris
}

/// Serial numbers in one piece of memory: a large list has hundreds of thousands of them.
#[derive(Default)]
struct Serials {
    bytes: Vec<u8>,
    /// Where each begins and how long it is, by their order.
    index: Vec<(u32, u8)>,
}

impl Serials {
    fn collect(list: &BorrowedCertRevocationList<'_>) -> Result<Self, ListError> {
        let mut found = Self::default();
        for entry in list {
            let entry = entry.map_err(|error| refused(&error))?;
            let serial = trimmed(entry.serial_number);
            let (Ok(start), Ok(length)) =
                (u32::try_from(found.bytes.len()), u8::try_from(serial.len()))
            else {
                return Err(ListError::TooMany);
            };
            if found.index.len() >= MAX_ENTRIES {
                return Err(ListError::TooMany);
            }
            found.bytes.extend_from_slice(serial);
            found.index.push((start, length));
        }
        let bytes = std::mem::take(&mut found.bytes);
        found
            .index
            .sort_unstable_by(|a, b| slice(&bytes, *a).cmp(slice(&bytes, *b)));
        found.bytes = bytes;
        found.bytes.shrink_to_fit();
        found.index.shrink_to_fit();
        Ok(found)
    }

    fn contains(&self, serial: &[u8]) -> bool {
        let serial = trimmed(serial);
        self.index
            .binary_search_by(|at| slice(&self.bytes, *at).cmp(serial))
            .is_ok()
    }
}

fn slice(bytes: &[u8], (start, length): (u32, u8)) -> &[u8] {
    let start = usize::try_from(start).unwrap_or(usize::MAX);
    let end = start.saturating_add(usize::from(length));
    bytes.get(start..end).unwrap_or_default()
}

/// A number without leading zeros, which some write and some do not.
pub(super) fn trimmed(number: &[u8]) -> &[u8] {
    let zeros = number.iter().take_while(|byte| **byte == 0).count();
    number.get(zeros..).unwrap_or_default()
}

pub(super) fn sha256(bytes: &[u8]) -> [u8; 32] {
    let mut out = [0; 32];
    for (to, from) in out.iter_mut().zip(digest(&SHA256, bytes).as_ref()) {
        *to = *from;
    }
    out
}

/// Times before 1970 become 1970: as an end they are long past.
pub(super) fn instant(seconds: i64) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(u64::try_from(seconds).unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use rcgen::{CertificateRevocationListParams, KeyIdMethod, RevokedCertParams, SerialNumber};

    use super::*;
    use crate::clock;
    use crate::tls::testing::Authority as Signer;

    fn list(signer: &Signer, serials: &[u64], number: u64) -> Vec<u8> {
        let at = rcgen::date_time_ymd(2020, 1, 1);
        CertificateRevocationListParams {
            this_update: at,
            next_update: rcgen::date_time_ymd(2120, 1, 1),
            crl_number: SerialNumber::from(number),
            issuing_distribution_point: None,
            revoked_certs: serials
                .iter()
                .map(|serial| RevokedCertParams {
                    serial_number: SerialNumber::from(*serial),
                    revocation_time: at,
                    reason_code: None,
                    invalidity_date: None,
                })
                .collect(),
            key_identifier_method: KeyIdMethod::Sha256,
        }
        .signed_by(&signer.issuer)
        .unwrap()
        .der()
        .to_vec()
    }

    #[test]
    fn every_serial_number_is_found_and_no_other() {
        let signer = Signer::new("ca");
        let serials: Vec<u64> = (0..500).map(|n| n * n * 7919 + 1).collect();
        let list = List::read(&list(&signer, &serials, 1)).unwrap();
        assert_eq!(list.len(), 500);
        for serial in &serials {
            assert!(list.lists(&serial.to_be_bytes()), "{serial}");
            assert!(!list.lists(&(serial + 1).to_be_bytes()), "{serial}");
        }
        assert!(!list.lists(&[]));
    }

    #[test]
    fn an_entry_takes_eight_bytes_and_its_serial_number() {
        let signer = Signer::new("ca");
        let serials: Vec<u64> = (0..20_000).map(|n| (1 << 62) + n).collect();
        let text = list(&signer, &serials, 1);
        let list = List::read(&text).unwrap();
        let held = list.serials.bytes.capacity() + list.serials.index.capacity() * 8;
        assert_eq!(size_of::<(u32, u8)>(), 8);
        assert!(held <= 20_000 * 16, "{held}");
        // The text is needed until somebody is known to have signed it.
        assert!(list.tried.lock().unwrap().bytes.is_some());
        assert!(list.is_by(&Authority::of_anchor(&pem_roots(&signer).roots[0])));
        assert!(list.tried.lock().unwrap().bytes.is_none());
    }

    #[test]
    fn numbers_are_compared_as_numbers() {
        let signer = Signer::new("ca");
        let read = |number| List::read(&list(&signer, &[], number)).unwrap();
        for (newer, older) in [(2, 1), (256, 255), (0x1_0000, 0xff)] {
            assert!(read(newer).supersedes(&read(older)));
            assert!(!read(older).supersedes(&read(newer)));
        }
        assert!(!read(5).supersedes(&read(5)));
    }

    #[test]
    fn only_the_authority_that_it_names_can_have_signed_it() {
        let (signer, impostor) = (Signer::new("ca"), Signer::new("ca"));
        let of = |signer: &Signer| {
            let roots = pem_roots(signer);
            Authority::of_anchor(&roots.roots[0])
        };
        let text = list(&signer, &[7], 1);
        let list = List::read(&text).unwrap();
        assert!(!list.is_by(&of(&impostor)));
        assert!(!list.is_believed());
        assert!(list.is_by(&of(&signer)));
        assert!(list.is_believed() && !list.is_by(&of(&impostor)));
        assert_eq!(list.timely(clock::now()), Ok(()));
        // Whatever is changed, it is another list, or none.
        for at in (0..text.len()).step_by(3) {
            let mut changed = text.clone();
            changed[at] ^= 1;
            if let Ok(changed) = List::read(&changed) {
                assert!(!changed.is_by(&of(&signer)), "byte {at}");
            }
        }
    }

    fn pem_roots(signer: &Signer) -> rustls::RootCertStore {
        crate::tls::pem::authorities(&[signer.pem().into_bytes()]).unwrap()
    }
}
