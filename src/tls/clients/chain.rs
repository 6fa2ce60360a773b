//! A client's chain as it was verified: what has to be known of it to judge it again later, without
//! its certificates and without another signature.

use std::sync::Arc;
use std::time::SystemTime;

use rustls::pki_types::{CertificateDer, TrustAnchor};
use webpki::{Cert, VerifiedPath};
use x509_parser::extensions::{GeneralName, ParsedExtension};
use x509_parser::prelude::X509Certificate;

use super::list::{instant, names, sha256};
use crate::tls::{certificate, pem};

/// Most URLs of lists and of responders that are taken from one certificate.
const MAX_URLS: usize = 4;

/// Longest such URL.
const MAX_URL: usize = 2048;

/// Who signs certificates: a name and a key.
#[derive(Debug, PartialEq, Eq)]
pub struct Authority {
    /// The name, without the outer tag.
    pub(super) name: Box<[u8]>,
    /// The whole `SubjectPublicKeyInfo`.
    pub(super) key: Box<[u8]>,
    /// Whether it may sign revocation lists (RFC 5280 section 4.2.1.3); one that says nothing may.
    pub(super) signs_lists: bool,
    /// Over name and key.
    pub(super) id: [u8; 32],
    /// The name in words, for logs.
    pub(super) text: String,
}

impl Authority {
    fn new(name: &[u8], key: &[u8], signs_lists: bool) -> Self {
        let mut both = Vec::with_capacity(name.len() + key.len());
        both.extend_from_slice(name);
        both.extend_from_slice(key);
        Self {
            name: name.into(),
            key: key.into(),
            signs_lists,
            id: sha256(&both),
            text: certificate::name_text(name),
        }
    }

    /// A configured authority.
    pub(super) fn of_anchor(anchor: &TrustAnchor<'_>) -> Self {
        let key = crate::tls::der::wrap(
            crate::tls::der::SEQUENCE,
            &[anchor.subject_public_key_info.as_ref()],
        );
        Self::new(anchor.subject.as_ref(), &key, true)
    }
}

/// What tells one configured authority from another, its constraints included.
pub(super) fn anchor_id(anchor: &TrustAnchor<'_>) -> [u8; 32] {
    let mut text = Authority::of_anchor(anchor).id.to_vec();
    if let Some(constraints) = &anchor.name_constraints {
        text.extend_from_slice(constraints.as_ref());
    }
    sha256(&text)
}

/// One certificate of a chain, below its authority.
#[derive(Debug)]
pub struct Link {
    /// The serial number as it is encoded.
    pub(super) serial: Box<[u8]>,
    /// Who signed it.
    pub(super) issuer: Arc<Authority>,
    /// Whether it is an intermediate, not the client's own.
    pub(super) authority: bool,
    /// Where it says that its issuer's lists are.
    pub(super) points: Box<[Arc<str>]>,
    /// Where it says that its issuer's responder is.
    pub(super) responders: Box<[Arc<str>]>,
}

impl Link {
    /// Names it among all certificates.
    pub(super) fn id(&self) -> [u8; 32] {
        let mut text = self.issuer.id.to_vec();
        text.extend_from_slice(super::list::trimmed(&self.serial));
        sha256(&text)
    }

    /// Who signed it, in words.
    pub fn issuer(&self) -> &str {
        &self.issuer.text
    }
}

/// A verified chain without its root.
#[derive(Debug)]
pub struct Chain {
    /// The client's own first.
    pub(super) links: Box<[Link]>,
    /// The configured authority that it leads to.
    pub(super) anchor: [u8; 32],
    /// When the first of its certificates ends.
    pub(super) until: SystemTime,
}

impl Chain {
    /// Keeps what is needed of a path; `None` when a certificate of it cannot be parsed. `share`
    /// gives the one object for an authority that is known already.
    pub(super) fn of(
        path: &VerifiedPath<'_>,
        share: impl Fn(Authority) -> Arc<Authority>,
    ) -> Option<Self> {
        let anchor = path.anchor();
        let leaf: &Cert<'_> = path.end_entity();
        let certificates: Vec<CertificateDer<'_>> = std::iter::once(leaf.der())
            .chain(path.intermediate_certificates().map(Cert::der))
            .collect();
        let mut links = Vec::with_capacity(certificates.len());
        let mut until = None;
        for (index, der) in certificates.iter().enumerate() {
            let parsed = pem::parse(der)?;
            let issuer = match certificates.get(index + 1) {
                Some(above) => {
                    let above = pem::parse(above)?;
                    let signs_lists = above
                        .key_usage()
                        .ok()?
                        .is_none_or(|usage| usage.value.crl_sign());
                    Authority::new(
                        content(above.subject().as_raw())?,
                        above.public_key().raw,
                        signs_lists,
                    )
                }
                None => Authority::of_anchor(anchor),
            };
            let end = instant(parsed.validity().not_after.timestamp());
            until = Some(until.map_or(end, |until: SystemTime| until.min(end)));
            let (points, responders) = places(&parsed);
            links.push(Link {
                serial: parsed.raw_serial().into(),
                issuer: share(issuer),
                authority: index > 0,
                points,
                responders,
            });
        }
        Some(Self {
            links: links.into(),
            anchor: anchor_id(anchor),
            until: until?,
        })
    }

    /// The client's own certificate.
    pub(super) fn leaf(&self) -> Option<&Link> {
        self.links.first()
    }

    /// When the first of its certificates ends.
    pub fn until(&self) -> SystemTime {
        self.until
    }
}

fn content(name: &[u8]) -> Option<&[u8]> {
    let name = crate::tls::der::Reader(name).only(crate::tls::der::SEQUENCE)?;
    Some(name.content)
}

type Urls = Box<[Arc<str>]>;

/// Where a certificate says that lists and responders are. What is unreadable is left out: then
/// there is nothing to ask, and not to know is what it is.
#[expect(
    clippy::wildcard_enum_match_arm,
    reason = "of all that a certificate may say, this asks for two things"
)]
fn places(certificate: &X509Certificate<'_>) -> (Urls, Urls) {
    let mut points = Vec::new();
    let mut responders = Vec::new();
    let mut named = false;
    for extension in certificate.iter_extensions() {
        match extension.parsed_extension() {
            ParsedExtension::CRLDistributionPoints(found) => {
                named = true;
                for point in &found.points {
                    // An indirect list, or one for some reasons, is none that we could use.
                    if point.reasons.is_none() && point.crl_issuer.is_none() {
                        points.extend(names(point.distribution_point.as_ref()));
                    }
                }
            }
            ParsedExtension::AuthorityInfoAccess(found) => {
                for access in &found.accessdescs {
                    if access.access_method.to_id_string() == "1.3.6.1.5.5.7.48.1"
                        && let GeneralName::URI(uri) = &access.access_location
                    {
                        responders.push((*uri).to_owned());
                    }
                }
            }
            _ => {}
        }
    }
    let mut points = urls(points);
    if named && points.is_empty() {
        // Not the same as to say nothing: a list for some place only is not this one's.
        points = Box::new([Arc::from("")]);
    }
    (points, urls(responders))
}

fn urls(found: Vec<String>) -> Urls {
    found
        .into_iter()
        .filter(|url| url.len() <= MAX_URL)
        .take(MAX_URLS)
        .map(Arc::from)
        .collect()
}
