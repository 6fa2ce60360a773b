//! What a verified client certificate says, in texts that are safe to compare, log and forward.

use std::fmt::Write;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::{Duration, SystemTime};

use aws_lc_rs::digest::{SHA256, digest};
use rustls::pki_types::CertificateDer;
use x509_parser::asn1_rs::Tag;
use x509_parser::extensions::{GeneralName, ParsedExtension};
use x509_parser::oid_registry::OID_X509_EXT_SUBJECT_ALT_NAME;
use x509_parser::prelude::{FromDer, X509Certificate};
use x509_parser::time::ASN1Time;
use x509_parser::x509::{AttributeTypeAndValue, X509Name};

use super::{TlsError, pem};

/// The leaf of a client's certificate chain, after the chain was verified.
///
/// The common name is part of `subject` and nothing else: name constraints of an authority do not
/// bind it, so it is never an identity.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerCertificate {
    /// The subject's distinguished name in the form of RFC 4514; bytes outside printable ASCII are
    /// escaped (`\0D`, `\C3\BC`).
    pub subject: String,
    /// The issuer's distinguished name, likewise.
    pub issuer: String,
    /// The serial number in lower-case hex, without leading zeros.
    pub serial: String,
    /// Subject alternative names by kind.
    pub sans: Sans,
    /// The SPIFFE id, when there is exactly one URI name and it is one (X509-SVID section 2).
    pub spiffe_id: Option<String>,
    /// SHA-256 of the DER form, lower-case hex.
    pub sha256: String,
    /// Start of validity.
    pub not_before: SystemTime,
    /// End of validity.
    pub not_after: SystemTime,
}

/// Subject alternative names by kind. Names with control bytes or non-ASCII bytes are left out.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Sans {
    /// DNS names.
    pub dns: Vec<String>,
    /// URIs.
    pub uri: Vec<String>,
    /// Mail addresses.
    pub email: Vec<String>,
    /// IP addresses.
    pub ip: Vec<IpAddr>,
}

impl PeerCertificate {
    /// Reads the leaf of a chain. The caller has verified the chain; nothing is verified here.
    ///
    /// # Errors
    /// [`TlsError::Certificate`] when the certificate or its alternative names cannot be parsed: a
    /// name that we cannot read must not look like a name that is not there.
    pub fn from_verified(der: &CertificateDer<'_>) -> Result<Self, TlsError> {
        let certificate = pem::parse(der).ok_or(TlsError::Certificate(1))?;
        let names = names(&certificate).ok_or(TlsError::Certificate(1))?;
        Ok(Self {
            subject: distinguished_name(certificate.subject()),
            issuer: distinguished_name(certificate.issuer()),
            serial: serial(certificate.raw_serial()),
            spiffe_id: spiffe_id(&names),
            sans: sans(&names),
            sha256: hex(digest(&SHA256, der.as_ref()).as_ref()),
            not_before: instant(certificate.validity().not_before),
            not_after: instant(certificate.validity().not_after),
        })
    }
}

impl PeerCertificate {
    /// The first certificate of a PEM file, unverified: for tools that ask what would be.
    ///
    /// # Errors
    /// [`TlsError`] when there is none that can be read.
    pub fn from_pem(text: &[u8]) -> Result<Self, TlsError> {
        let chain = pem::certificates(text)?;
        chain
            .first()
            .ok_or(TlsError::NoCertificate)
            .and_then(Self::from_verified)
    }
}

/// The general names of the alternative-name extension; `None` when it is there and unreadable.
fn names<'c>(certificate: &'c X509Certificate<'_>) -> Option<Vec<&'c GeneralName<'c>>> {
    let mut found = Vec::new();
    let mut extensions = certificate
        .iter_extensions()
        .filter(|extension| extension.oid == OID_X509_EXT_SUBJECT_ALT_NAME);
    match extensions
        .next()
        .map(|extension| extension.parsed_extension())
    {
        None => {}
        Some(ParsedExtension::SubjectAlternativeName(names)) => {
            found.extend(names.general_names.iter());
        }
        Some(_) => return None,
    }
    extensions.next().is_none().then_some(found)
}

/// The DNS names of a certificate of ours.
pub(super) fn dns_names(certificate: &X509Certificate<'_>) -> Vec<String> {
    sans(&names(certificate).unwrap_or_default()).dns
}

fn sans(names: &[&GeneralName<'_>]) -> Sans {
    let mut sans = Sans::default();
    for name in names {
        match name {
            GeneralName::DNSName(text) if printable(text) => sans.dns.push((*text).to_owned()),
            GeneralName::URI(text) if printable(text) => sans.uri.push((*text).to_owned()),
            GeneralName::RFC822Name(text) if printable(text) => {
                sans.email.push((*text).to_owned());
            }
            GeneralName::IPAddress(bytes) => sans.ip.extend(address(bytes)),
            GeneralName::DNSName(_)
            | GeneralName::URI(_)
            | GeneralName::RFC822Name(_)
            | GeneralName::OtherName(..)
            | GeneralName::X400Address(_)
            | GeneralName::DirectoryName(_)
            | GeneralName::EDIPartyName(_)
            | GeneralName::RegisteredID(_)
            | GeneralName::Invalid(..) => {}
        }
    }
    sans
}

/// Whether a name is printable ASCII without spaces. Anything else can end early in another parser
/// (NUL), forge a line (CR LF) or look like another name (bidirectional marks).
fn printable(name: &str) -> bool {
    !name.is_empty() && name.bytes().all(|b| b.is_ascii_graphic())
}

fn address(bytes: &[u8]) -> Option<IpAddr> {
    if let Ok(v4) = <[u8; 4]>::try_from(bytes) {
        return Some(Ipv4Addr::from(v4).into());
    }
    <[u8; 16]>::try_from(bytes)
        .ok()
        .map(|v6| Ipv6Addr::from(v6).into())
}

/// Tag of a URI among general names (RFC 5280 section 4.2.1.6).
const URI_TAG: u32 = 6;
/// Longest SPIFFE id (SPIFFE-ID section 2.3).
const SPIFFE_MAX: usize = 2048;
/// Longest trust domain (SPIFFE-ID section 2.1).
const TRUST_DOMAIN_MAX: usize = 255;

/// The SPIFFE id: unreadable URI names count, so that a second one cannot hide behind them.
fn spiffe_id(names: &[&GeneralName<'_>]) -> Option<String> {
    let mut uris = names.iter().filter_map(|name| match name {
        GeneralName::URI(text) => Some(Some(*text)),
        GeneralName::Invalid(Tag(URI_TAG), _) => Some(None),
        GeneralName::DNSName(_)
        | GeneralName::RFC822Name(_)
        | GeneralName::IPAddress(_)
        | GeneralName::OtherName(..)
        | GeneralName::X400Address(_)
        | GeneralName::DirectoryName(_)
        | GeneralName::EDIPartyName(_)
        | GeneralName::RegisteredID(_)
        | GeneralName::Invalid(..) => None,
    });
    let only = uris.next()??;
    (uris.next().is_none() && is_spiffe_id(only)).then(|| only.to_owned())
}

/// Whether this is the id of a workload: `spiffe://domain/path`, in the one spelling that the
/// specification allows. Without a path it would name the trust domain itself.
fn is_spiffe_id(text: &str) -> bool {
    let Some((domain, path)) = text
        .strip_prefix("spiffe://")
        .and_then(|rest| rest.split_once('/'))
    else {
        return false;
    };
    let segment = |s: &str| {
        !matches!(s, "" | "." | "..")
            && s.bytes()
                .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'_'))
    };
    text.len() <= SPIFFE_MAX
        && (1..=TRUST_DOMAIN_MAX).contains(&domain.len())
        && domain.bytes().all(|b| {
            b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'-' | b'.' | b'_')
        })
        && path.split('/').all(segment)
}

/// The text of a name without its outer tag, as the names of trusted authorities are kept.
pub(super) fn name_text(content: &[u8]) -> String {
    let whole = super::der::wrap(super::der::SEQUENCE, &[content]);
    match X509Name::from_der(&whole) {
        Ok(([], name)) => distinguished_name(&name),
        _ => String::new(),
    }
}

/// RFC 4514 section 2: the most specific part first.
fn distinguished_name(name: &X509Name<'_>) -> String {
    let parts: Vec<_> = name.iter_rdn().collect();
    let mut text = String::new();
    for part in parts.iter().rev() {
        if !text.is_empty() {
            text.push(',');
        }
        for (index, attribute) in part.iter().enumerate() {
            if index > 0 {
                text.push('+');
            }
            attribute_text(attribute, &mut text);
        }
    }
    text
}

fn attribute_text(attribute: &AttributeTypeAndValue<'_>, out: &mut String) {
    let oid = attribute.attr_type().to_id_string();
    let value = attribute.attr_value();
    let short = match oid.as_str() {
        "2.5.4.3" => Some("CN"),
        "2.5.4.7" => Some("L"),
        "2.5.4.8" => Some("ST"),
        "2.5.4.10" => Some("O"),
        "2.5.4.11" => Some("OU"),
        "2.5.4.6" => Some("C"),
        "2.5.4.9" => Some("STREET"),
        "0.9.2342.19200300.100.1.25" => Some("DC"),
        "0.9.2342.19200300.100.1.1" => Some("UID"),
        _ => None,
    };
    let text = match value.tag() {
        Tag::Utf8String
        | Tag::PrintableString
        | Tag::Ia5String
        | Tag::NumericString
        | Tag::VisibleString => std::str::from_utf8(value.data).ok().map(str::to_owned),
        Tag::BmpString => utf16(value.data),
        _ => None,
    };
    out.push_str(short.unwrap_or(&oid));
    out.push('=');
    match text {
        Some(text) => escape(&text, out),
        // Section 2.4: what is no string is given as hex. Only its content; its type is opaque.
        None => {
            out.push('#');
            out.push_str(&hex(value.data));
        }
    }
}

fn utf16(data: &[u8]) -> Option<String> {
    let (pairs, []) = data.as_chunks::<2>() else {
        return None;
    };
    char::decode_utf16(pairs.iter().map(|pair| u16::from_be_bytes(*pair)))
        .collect::<Result<_, _>>()
        .ok()
}

/// Section 2.4. Everything outside printable ASCII is escaped by its UTF-8 bytes, which the section
/// allows and `openssl -nameopt RFC2253` does: a name is then the same text in a header, a log
/// line and a policy, and cannot reorder what is printed after it.
fn escape(text: &str, out: &mut String) {
    let last = text.len().saturating_sub(1);
    for (index, byte) in text.bytes().enumerate() {
        match byte {
            b'"' | b'+' | b',' | b';' | b'<' | b'>' | b'\\' => {
                out.push('\\');
                out.push(char::from(byte));
            }
            b'#' | b' ' if index == 0 => {
                out.push('\\');
                out.push(char::from(byte));
            }
            b' ' if index == last => out.push_str("\\ "),
            0x20..0x7f => out.push(char::from(byte)),
            _ => {
                // Writing to a string cannot fail.
                let _ = write!(out, "\\{byte:02X}");
            }
        }
    }
}

fn serial(raw: &[u8]) -> String {
    let text = hex(raw);
    match text.trim_start_matches('0') {
        "" => "0".to_owned(),
        trimmed => trimmed.to_owned(),
    }
}

fn hex(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len() * 2);
    for byte in bytes {
        let _ = write!(text, "{byte:02x}");
    }
    text
}

/// Times before 1970 become 1970: as an end of validity that is long past, as a start it is too.
fn instant(time: ASN1Time) -> SystemTime {
    let seconds = u64::try_from(time.timestamp()).unwrap_or(0);
    SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)
}

#[cfg(test)]
mod tests {
    use rcgen::{CustomExtension, DnType, SanType};

    use super::*;
    use crate::tls::testing::Authority;

    fn with_sans(sans: Vec<SanType>) -> PeerCertificate {
        let der = Authority::new("ca")
            .leaf(|params| params.subject_alt_names = sans)
            .0;
        PeerCertificate::from_verified(&der).unwrap()
    }

    fn uri(text: &str) -> SanType {
        SanType::URI(text.try_into().unwrap())
    }

    #[test]
    fn names_cannot_forge_lines_or_other_attributes() {
        let der = Authority::new("ca")
            .leaf(|params| {
                params.distinguished_name = rcgen::DistinguishedName::new();
                let name = &mut params.distinguished_name;
                name.push(DnType::OrganizationName, "Acme, Inc. \"x\"");
                name.push(DnType::CommonName, " a\r\nx-user-id: admin,CN=b\u{202e}ü ");
            })
            .0;
        let peer = PeerCertificate::from_verified(&der).unwrap();
        assert_eq!(
            peer.subject,
            r#"CN=\ a\0D\0Ax-user-id: admin\,CN=b\E2\80\AE\C3\BC\ ,O=Acme\, Inc. \"x\""#
        );
        assert_eq!(peer.issuer, "CN=ca");
        assert_eq!(peer.sha256.len(), 64);
        assert!(peer.not_before < peer.not_after);
    }

    #[test]
    fn names_that_other_parsers_misread_are_left_out() {
        // NUL, CR LF and a space inside names; rcgen takes any ASCII.
        let peer = with_sans(vec![
            SanType::DnsName("good.test".try_into().unwrap()),
            SanType::DnsName("good.test\0.evil.test".try_into().unwrap()),
            SanType::DnsName("a b.test".try_into().unwrap()),
            SanType::Rfc822Name("a@ok.test\r\n".try_into().unwrap()),
            uri("https://ok.test/"),
            SanType::IpAddress("10.1.2.3".parse().unwrap()),
            SanType::IpAddress("2001:db8::1".parse().unwrap()),
        ]);
        assert_eq!(peer.sans.dns, ["good.test"]);
        assert!(peer.sans.email.is_empty());
        assert_eq!(peer.sans.uri, ["https://ok.test/"]);
        assert_eq!(peer.sans.ip.len(), 2);
        assert_eq!(peer.spiffe_id, None);
    }

    #[test]
    fn a_spiffe_id_needs_exactly_one_uri() {
        let one = with_sans(vec![uri("spiffe://corp.test/ns/a/sa/b")]);
        assert_eq!(
            one.spiffe_id.as_deref(),
            Some("spiffe://corp.test/ns/a/sa/b")
        );
        for second in ["spiffe://corp.test/admin", "https://x.test/", "a\0b"] {
            let two = with_sans(vec![uri("spiffe://corp.test/ns/a"), uri(second)]);
            assert_eq!(two.spiffe_id, None, "{second:?}");
        }
    }

    #[test]
    fn a_second_uri_that_is_no_text_counts() {
        // GeneralNames with two URIs, the second of which holds a byte outside ASCII.
        let mut names = b"\x86\x0bspiffe://a/b\x86\x01\xff".to_vec();
        names[1] = 12;
        let mut content = vec![0x30, u8::try_from(names.len()).unwrap()];
        content.extend(names);
        let extension = CustomExtension::from_oid_content(&[2, 5, 29, 17], content);
        let der = Authority::new("ca")
            .leaf(|params| params.custom_extensions = vec![extension])
            .0;
        match PeerCertificate::from_verified(&der) {
            Ok(peer) => assert_eq!(peer.spiffe_id, None),
            Err(error) => assert!(matches!(error, TlsError::Certificate(1))),
        }
    }

    #[test]
    fn unreadable_or_doubled_alternative_names_are_an_error() {
        let san =
            |content: &[u8]| CustomExtension::from_oid_content(&[2, 5, 29, 17], content.to_vec());
        let good = b"\x30\x03\x82\x01a";
        for extensions in [vec![san(b"\x30\x7f")], vec![san(good), san(good)]] {
            let der = Authority::new("ca")
                .leaf(|params| params.custom_extensions = extensions)
                .0;
            assert!(PeerCertificate::from_verified(&der).is_err());
        }
    }

    #[test]
    fn only_the_canonical_spelling_is_a_spiffe_id() {
        assert!(is_spiffe_id("spiffe://a.test/b/c_d-e.f/G9"));
        for bad in [
            "spiffe://a.test",
            "spiffe://a.test/",
            "spiffe:///b",
            "SPIFFE://a.test/b",
            "spiffe://A.test/b",
            "spiffe://a.test:1/b",
            "spiffe://u@a.test/b",
            "spiffe://a.test/b/",
            "spiffe://a.test//b",
            "spiffe://a.test/./b",
            "spiffe://a.test/../b",
            "spiffe://a.test/b?x",
            "spiffe://a.test/b#x",
            "spiffe://a.test/%62",
            "https://a.test/b",
        ] {
            assert!(!is_spiffe_id(bad), "{bad}");
        }
        assert!(!is_spiffe_id(&format!("spiffe://a/{}", "b".repeat(2048))));
        assert!(!is_spiffe_id(&format!("spiffe://{}/b", "a".repeat(256))));
    }

    #[test]
    fn serials_have_one_form() {
        assert_eq!(serial(&[0, 0x0a, 0xff]), "aff");
        assert_eq!(serial(&[0]), "0");
    }
}
