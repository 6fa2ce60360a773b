//! The part of a request that a policy's decision depends on, written down without the document.
//!
//! Two requests with the same bytes here are the same question. Every value is written in a form
//! that tells where it ends and of what kind it is, in an order that the policy fixes, so that the
//! bytes are equal exactly when the values are. The identity alone is written as the address of the
//! object that authentication made of the credential: the same token gives the same object, and
//! whoever keeps the bytes keeps the address from being given to another.
//!
//! What is written for a path is what [`crate::authz::input::document`] has there; a test compares them.

use std::collections::BTreeSet;
use std::io::Write;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use http::HeaderName;
use http::header::{CONTENT_ENCODING, CONTENT_TYPE};

use crate::authn::Identity;
use crate::authz::RouteFacts;
use crate::authz::envoy;
use crate::authz::input::{self, Unreadable};
use crate::authz::published::InputDocument;
use crate::authz::source::reads::{Place, Reads, Step};
use crate::authz::source::times::{Timing, Unit};
use crate::document::{Value, text};
use crate::request::InboundRequest;
use crate::tls::PeerCertificate;

/// What a policy is asked about.
#[derive(Debug, Clone, Copy)]
pub(in crate::authz) struct Question<'q> {
    pub(in crate::authz) request: &'q InboundRequest,
    pub(in crate::authz) route: &'q RouteFacts<'q>,
    pub(in crate::authz) identity: Option<&'q Arc<Identity>>,
    /// Headers that the policy's block hides.
    pub(in crate::authz) hidden: &'q [HeaderName],
    /// Whether the policy's block has `body`.
    pub(in crate::authz) reads_body: bool,
}

/// A part of the input document that is written in one go; the order is that of the bytes.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(in crate::authz) enum Part {
    Identity,
    RouteName,
    Params,
    Param(String),
    Labels,
    Label(Vec<String>),
    Method,
    Scheme,
    Host,
    Path,
    Segments,
    Segment(usize),
    Query,
    Parameter(String),
    Headers,
    Header(String),
    Protocol,
    Address,
    Port,
    Tls,
    TlsVersion,
    Sni,
    Certificate,
    CertificateText(CertificateText),
    Body,
    /// Of the Envoy plugin's document.
    Envoy(envoy::part::Part),
    /// How many whole units have passed.
    Clock(Unit),
}

/// The members of a certificate that are texts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(in crate::authz) enum CertificateText {
    Subject,
    Issuer,
    Serial,
    SpiffeId,
    Sha256,
}

/// Why a path cannot be part of a question: it is different in every request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::authz) struct Volatile {
    pub(in crate::authz) what: String,
    pub(in crate::authz) place: Place,
}

/// What is written of a request for one policy.
#[derive(Debug, Clone)]
pub(in crate::authz) struct Projection {
    parts: Vec<Part>,
    timing: Timing,
}

mod tag {
    pub(in crate::authz) const ABSENT: u8 = 0;
    pub(in crate::authz) const NULL: u8 = 1;
    pub(in crate::authz) const FALSE: u8 = 2;
    pub(in crate::authz) const TRUE: u8 = 3;
    pub(in crate::authz) const TEXT: u8 = 4;
    pub(in crate::authz) const NUMBER: u8 = 5;
    pub(in crate::authz) const ARRAY: u8 = 6;
    pub(in crate::authz) const OBJECT: u8 = 7;
    pub(in crate::authz) const IDENTITY: u8 = 8;
}

impl Projection {
    /// The parts that a policy reads.
    ///
    /// # Errors
    /// The first path, by its name, that is different in every request, or what is no function of
    /// the request.
    pub(in crate::authz) fn of_document(
        reads: &Reads,
        hidden: &[HeaderName],
        document: InputDocument,
    ) -> Result<Self, Volatile> {
        if let Some(impure) = &reads.impure {
            return Err(Volatile {
                what: impure.what.clone(),
                place: impure.place.clone(),
            });
        }
        let mut parts = BTreeSet::new();
        for (path, place) in &reads.paths {
            let read = match document {
                InputDocument::Portcullis => parts_of(path, hidden),
                InputDocument::Envoy => envoy::part::parts_of(path)
                    .map(|parts| parts.into_iter().map(Part::Envoy).collect()),
            };
            match read {
                Some(read) => parts.extend(read),
                None => {
                    let steps: String = path.iter().map(ToString::to_string).collect();
                    return Err(Volatile {
                        what: format!("`input{steps}`"),
                        place: place.clone(),
                    });
                }
            }
        }
        parts.extend(reads.timing.unit.map(Part::Clock));
        let whole = parts.clone();
        parts.retain(|part| !within(part).is_some_and(|outer| whole.contains(&outer)));
        Ok(Self {
            parts: parts.into_iter().collect(),
            timing: reads.timing.clone(),
        })
    }

    /// [`Projection::of_document`] of our own document.
    #[cfg(test)]
    pub(in crate::authz) fn of(reads: &Reads, hidden: &[HeaderName]) -> Result<Self, Volatile> {
        Self::of_document(reads, hidden, InputDocument::Portcullis)
    }

    /// Whether answers hold for a time that depends on the input and the data.
    pub(in crate::authz) fn ends(&self) -> bool {
        !self.timing.comparisons.is_empty()
    }

    /// How long an answer to this input holds, for what the policy compares the time with; `None`
    /// without end.
    pub(in crate::authz) fn holds(
        &self,
        received_at: SystemTime,
        input: &Value,
        data: &Value,
    ) -> Option<Duration> {
        if !self.ends() {
            return None;
        }
        match input::since_epoch(received_at) {
            Ok(now) => self
                .timing
                .holds(now, input, data)
                .map(Duration::from_nanos),
            Err(_) => Some(Duration::ZERO),
        }
    }

    /// Writes the question. Stops before more than `most` bytes were written, and says so.
    ///
    /// # Errors
    /// [`Unreadable`] when the part has no document.
    pub(in crate::authz) fn write(
        &self,
        question: &Question<'_>,
        most: usize,
        out: &mut Vec<u8>,
    ) -> Result<bool, Unreadable> {
        for part in &self.parts {
            part.write(question, out)?;
            if out.len() > most {
                return Ok(false);
            }
        }
        Ok(true)
    }

    #[cfg(test)]
    pub(in crate::authz) fn parts(&self) -> &[Part] {
        &self.parts
    }

    #[cfg(test)]
    pub(in crate::authz) fn without(&self, part: &Part) -> Self {
        let parts = self.parts.iter().filter(|p| *p != part).cloned().collect();
        let timing = self.timing.clone();
        Self { parts, timing }
    }

    /// As if the policy compared the time with nothing.
    #[cfg(test)]
    pub(in crate::authz) fn without_comparisons(&self) -> Self {
        let mut without = self.clone();
        without.timing.comparisons.clear();
        without
    }
}

/// A part that has all of this one in it.
fn within(part: &Part) -> Option<Part> {
    match part {
        Part::Param(_) => Some(Part::Params),
        Part::Label(_) => Some(Part::Labels),
        // The segments are made from the path alone.
        Part::Segments | Part::Segment(_) => Some(Part::Path),
        Part::Parameter(_) => Some(Part::Query),
        Part::Header(_) => Some(Part::Headers),
        Part::TlsVersion | Part::Sni | Part::Certificate | Part::CertificateText(_) => {
            Some(Part::Tls)
        }
        Part::Identity
        | Part::RouteName
        | Part::Params
        | Part::Labels
        | Part::Method
        | Part::Scheme
        | Part::Host
        | Part::Path
        | Part::Query
        | Part::Headers
        | Part::Protocol
        | Part::Address
        | Part::Port
        | Part::Tls
        | Part::Body
        | Part::Clock(_)
        | Part::Envoy(_) => None,
    }
}

/// The parts that a path of the document, with all below it, is made of. `None` for what is
/// different in every request. Names that no document has are made of nothing: they are always
/// undefined.
fn parts_of(path: &[Step], hidden: &[HeaderName]) -> Option<Vec<Part>> {
    let mut names = Vec::new();
    let mut index = None;
    for step in path {
        match step {
            Step::Name(name) => names.push(name.as_str()),
            // What follows is below this element.
            Step::Index(number) => {
                index = Some(*number);
                break;
            }
        }
    }
    let parts = match *names.as_slice() {
        [] | ["request"] | ["request", "id" | "received_at" | "received_at_ns", ..] => return None,
        ["identity", ..] => vec![Part::Identity],
        ["request", "method", ..] => vec![Part::Method],
        ["request", "scheme", ..] => vec![Part::Scheme],
        ["request", "host", ..] => vec![Part::Host],
        ["request", "path", ..] => vec![Part::Path],
        ["request", "segments"] => vec![index.map_or(Part::Segments, Part::Segment)],
        ["request", "segments", ..] => vec![Part::Segments],
        ["request", "query"] => vec![Part::Query],
        ["request", "query", name, ..] => vec![Part::Parameter(name.to_owned())],
        ["request", "headers"] => vec![Part::Headers],
        ["request", "headers", name, ..] => {
            let visible = HeaderName::from_lowercase(name.as_bytes())
                .is_ok_and(|name| input::is_visible(&name, hidden));
            visible
                .then(|| Part::Header(name.to_owned()))
                .into_iter()
                .collect()
        }
        ["request", "protocol", ..] => vec![Part::Protocol],
        ["request", "body" | "body_truncated", ..] => vec![Part::Body],
        ["source"] => vec![Part::Address, Part::Port, Part::Tls],
        ["source", "address", ..] => vec![Part::Address],
        ["source", "port", ..] => vec![Part::Port],
        ["source", "tls"] => vec![Part::Tls],
        ["source", "tls", "version", ..] => vec![Part::TlsVersion],
        ["source", "tls", "sni", ..] => vec![Part::Sni],
        ["source", "tls", "client_certificate", ref below @ ..] => {
            vec![match below {
                ["subject", ..] => Part::CertificateText(CertificateText::Subject),
                ["issuer", ..] => Part::CertificateText(CertificateText::Issuer),
                ["serial", ..] => Part::CertificateText(CertificateText::Serial),
                ["spiffe_id", ..] => Part::CertificateText(CertificateText::SpiffeId),
                ["sha256", ..] => Part::CertificateText(CertificateText::Sha256),
                _ => Part::Certificate,
            }]
        }
        ["route"] => vec![Part::RouteName, Part::Params, Part::Labels],
        ["route", "name", ..] => vec![Part::RouteName],
        ["route", "params"] => vec![Part::Params],
        ["route", "params", name, ..] => vec![Part::Param(name.to_owned())],
        ["route", "labels"] => vec![Part::Labels],
        ["route", "labels", ref below @ ..] => {
            vec![Part::Label(below.iter().map(|&n| n.to_owned()).collect())]
        }
        // `version` and `signals` are the same in every document.
        _ => Vec::new(),
    };
    Some(parts)
}

impl Part {
    fn write(&self, question: &Question<'_>, out: &mut Vec<u8>) -> Result<(), Unreadable> {
        let request = question.request;
        let tls = request.conn.tls.as_ref();
        match self {
            Self::Identity => Writer(out).identity(question.identity),
            Self::Body => Writer(out).body(question),
            Self::Envoy(part) => part.write(question, &mut Writer(out))?,
            Self::RouteName => write_text(question.route.name, out),
            Self::Params => write_value(&input::params(question.route), out),
            Self::Param(name) => {
                let params = question.route.params.iter();
                let found = params.rev().find(|(known, _)| **known == **name);
                write_option(found.map(|(_, value)| value.as_str()), out);
            }
            Self::Labels => write_value(question.route.labels, out),
            Self::Label(path) => {
                let found = path.iter().try_fold(question.route.labels, |value, name| {
                    crate::document::member(value, name)
                });
                match found {
                    None => out.push(tag::ABSENT),
                    Some(value) => write_value(value, out),
                }
            }
            Self::Method => write_text(request.method.as_str(), out),
            Self::Scheme => write_text(request.scheme.as_str(), out),
            Self::Host => write_text(request.host.name(), out),
            Self::Path => write_text(request.path.as_str(), out),
            Self::Segments => {
                counted(tag::ARRAY, out, |out| {
                    let mut count = 0;
                    for segment in request.path.segments() {
                        write_text(&segment, out);
                        count += 1;
                    }
                    count
                });
            }
            Self::Segment(index) => {
                let segment = request.path.segments().nth(*index);
                write_option(segment.as_deref(), out);
            }
            Self::Query => write_value(&input::query(request.query.as_deref().unwrap_or(""))?, out),
            Self::Parameter(name) => {
                let values = input::parameter(request.query.as_deref().unwrap_or(""), name);
                let at = out.len();
                let count = counted(tag::ARRAY, out, |out| {
                    values.fold(0, |count, value| {
                        write_text(&value, out);
                        count + 1
                    })
                });
                if count == 0 {
                    out.truncate(at);
                    out.push(tag::ABSENT);
                }
            }
            Self::Headers => write_value(&input::headers(request, question.hidden), out),
            Self::Header(name) => {
                write_option(input::header(request, name.as_str()).as_deref(), out);
            }
            Self::Clock(unit) => {
                let now = input::since_epoch(request.received_at)?;
                out.extend_from_slice(&(now / unit.nanoseconds()).to_le_bytes());
            }
            Self::Protocol => write_text(input::protocol(request.version), out),
            Self::Address => {
                framed(tag::TEXT, out, |out| {
                    // Writing to memory cannot fail.
                    let _ = write!(out, "{}", request.client);
                });
            }
            Self::Port => match input::port(request) {
                None => out.push(tag::NULL),
                Some(port) => framed(tag::NUMBER, out, |out| {
                    let _ = write!(out, "{port}");
                }),
            },
            Self::Tls => write_value(&input::tls(&request.conn)?, out),
            Self::TlsVersion => write_option(tls.map(|tls| tls.version), out),
            Self::Sni => match tls.map(|tls| tls.server_name.as_deref()) {
                None => out.push(tag::ABSENT),
                Some(None) => out.push(tag::NULL),
                Some(Some(name)) => write_text(name, out),
            },
            Self::Certificate => match tls.map(|tls| tls.peer_certificate.as_ref()) {
                None => out.push(tag::ABSENT),
                Some(None) => out.push(tag::NULL),
                Some(Some(certificate)) => write_value(&input::certificate(certificate)?, out),
            },
            Self::CertificateText(which) => {
                match tls.and_then(|tls| tls.peer_certificate.as_ref()) {
                    None => out.push(tag::ABSENT),
                    Some(certificate) => match which.of(certificate) {
                        None => out.push(tag::NULL),
                        Some(text) => write_text(text, out),
                    },
                }
            }
        }
        Ok(())
    }
}

/// Writes values one behind the other; see the module's documentation.
pub(in crate::authz) struct Writer<'o>(&'o mut Vec<u8>);

impl Writer<'_> {
    pub(in crate::authz) fn identity(&mut self, identity: Option<&Arc<Identity>>) {
        match identity {
            None => self.0.push(tag::NULL),
            Some(identity) => {
                self.0.push(tag::IDENTITY);
                let address = Arc::as_ptr(identity).addr();
                self.0.extend_from_slice(&address.to_ne_bytes());
            }
        }
    }

    pub(in crate::authz) fn text(&mut self, text: &str) {
        write_text(text, self.0);
    }

    pub(in crate::authz) fn option(&mut self, text: Option<&str>) {
        write_option(text, self.0);
    }

    pub(in crate::authz) fn value(&mut self, value: &Value) {
        write_value(value, self.0);
    }

    /// All that the members which hold the body are made of.
    pub(in crate::authz) fn body(&mut self, question: &Question<'_>) {
        let request = question.request;
        let Some(excerpt) = request.excerpt.as_deref().filter(|_| question.reads_body) else {
            return self.0.push(tag::ABSENT);
        };
        self.0
            .push(if excerpt.whole { tag::TRUE } else { tag::FALSE });
        for name in [CONTENT_TYPE, CONTENT_ENCODING] {
            counted(tag::ARRAY, self.0, |out| {
                let mut count = 0;
                for value in request.headers.get_all(&name) {
                    write_bytes(value.as_bytes(), out);
                    count += 1;
                }
                count
            });
        }
        write_bytes(&excerpt.bytes, self.0);
    }
}

impl CertificateText {
    fn of(self, certificate: &PeerCertificate) -> Option<&str> {
        match self {
            Self::Subject => Some(&certificate.subject),
            Self::Issuer => Some(&certificate.issuer),
            Self::Serial => Some(&certificate.serial),
            Self::SpiffeId => certificate.spiffe_id.as_deref(),
            Self::Sha256 => Some(&certificate.sha256),
        }
    }
}

/// A length or count in front of what is written: four bytes, saturated. What saturates is longer
/// than any key that is kept.
fn length(count: usize) -> [u8; 4] {
    u32::try_from(count).unwrap_or(u32::MAX).to_le_bytes()
}

fn write_text(text: &str, out: &mut Vec<u8>) {
    write_bytes(text.as_bytes(), out);
}

fn write_bytes(bytes: &[u8], out: &mut Vec<u8>) {
    out.push(tag::TEXT);
    out.extend_from_slice(&length(bytes.len()));
    // What is longer is no question that is kept, and need not be copied.
    let most = bytes.len().min(super::MAX_QUESTION + 1);
    out.extend_from_slice(bytes.get(..most).unwrap_or(bytes));
}

fn write_option(text: Option<&str>, out: &mut Vec<u8>) {
    match text {
        None => out.push(tag::ABSENT),
        Some(text) => write_text(text, out),
    }
}

/// Writes something whose length is known afterwards.
fn framed(tag: u8, out: &mut Vec<u8>, write: impl FnOnce(&mut Vec<u8>)) {
    counted(tag, out, |out| {
        let begin = out.len();
        write(out);
        out.len() - begin
    });
}

/// Writes several things and then their number in front of them.
fn counted(tag: u8, out: &mut Vec<u8>, write: impl FnOnce(&mut Vec<u8>) -> usize) -> usize {
    out.push(tag);
    let at = out.len();
    out.extend_from_slice(&length(0));
    let count = write(out);
    if let Some(place) = out.get_mut(at..at + 4) {
        place.copy_from_slice(&length(count));
    }
    count
}

/// Writes any value.
fn write_value(value: &Value, out: &mut Vec<u8>) {
    match value {
        Value::Undefined => out.push(tag::ABSENT),
        Value::Null => out.push(tag::NULL),
        Value::Bool(false) => out.push(tag::FALSE),
        Value::Bool(true) => out.push(tag::TRUE),
        Value::Number(number) => framed(tag::NUMBER, out, |out| {
            out.extend_from_slice(number.format_decimal().as_bytes());
        }),
        Value::String(text) => write_text(text, out),
        Value::Array(items) => {
            counted(tag::ARRAY, out, |out| {
                items.iter().for_each(|item| write_value(item, out));
                items.len()
            });
        }
        // No document has sets.
        Value::Set(items) => {
            counted(tag::ARRAY, out, |out| {
                items.iter().for_each(|item| write_value(item, out));
                items.len()
            });
        }
        Value::Object(members) => {
            counted(tag::OBJECT, out, |out| {
                for (key, value) in members.iter() {
                    match text(key) {
                        Some(key) => write_text(key, out),
                        None => write_value(key, out),
                    }
                    write_value(value, out);
                }
                members.len()
            });
        }
    }
}
