//! The parts of the Envoy plugin's document that decisions are told apart by.
//!
//! What policies read most is written from the request itself. Everything else is built, as in the
//! document, and then written: slower, and equal by construction.

use std::collections::BTreeSet;

use super::document::{self, Want, header, jwt_filter, principal, segments, size, target};
use crate::authz::cache::projection::{Question, Writer};
use crate::authz::input::Unreadable;
use crate::authz::source::reads::Step;
use crate::document::Value;

/// A part that is written in one go.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(in crate::authz) enum Part {
    Identity,
    Method,
    Target,
    Path,
    Segment(usize),
    Host,
    Scheme,
    Protocol,
    Size,
    Header(String),
    /// The bearer token without its signature.
    Token,
    Principal,
    Body,
    /// Anything else, by its place in the document.
    Built(Want),
}

/// The parts that a path of the document, with all below it, is made of. `None` for what is different
/// in every request.
pub(in crate::authz) fn parts_of(path: &[Step]) -> Option<BTreeSet<Part>> {
    let mut names = Vec::new();
    let mut index = None;
    for step in path {
        match step {
            Step::Name(name) => names.push(name.as_str()),
            Step::Index(number) => {
                index = Some(*number);
                break;
            }
        }
    }
    let built = || Part::Built(Want::by([path]));
    let part = match *names.as_slice() {
        [] | ["attributes"] | ["attributes", "request"] => return None,
        ["attributes", "request", "time", ..] => return None,
        ["attributes", "request", "http", ref below @ ..] => match *below {
            [] | ["id", ..] | ["headers"] | ["headers", "x-request-id", ..] => return None,
            ["method", ..] | ["headers", ":method", ..] => Part::Method,
            ["path", ..] | ["headers", ":path", ..] => Part::Target,
            ["host", ..] | ["headers", ":authority", ..] => Part::Host,
            ["scheme", ..] | ["headers", ":scheme", ..] => Part::Scheme,
            ["protocol", ..] => Part::Protocol,
            ["size", ..] => Part::Size,
            ["headers", "authorization", ..] => Part::Token,
            ["headers", "x-envoy-auth-partial-body", ..] | ["body" | "rawBody", ..] => Part::Body,
            ["headers", name, ..] => Part::Header(name.to_owned()),
            _ => built(),
        },
        ["parsed_path"] => index.map_or(Part::Path, Part::Segment),
        ["parsed_path", ..] => Part::Path,
        ["parsed_body" | "truncated_body", ..] => Part::Body,
        ["attributes", "source", "principal", ..] => Part::Principal,
        [
            "attributes",
            "metadataContext",
            "filterMetadata",
            filter,
            ..,
        ] if filter == jwt_filter() => Part::Identity,
        [
            "attributes",
            "metadataContext",
            "filterMetadata",
            "portcullis",
            "identity",
            ..,
        ] => Part::Identity,
        // The same in every document.
        ["version", ..] => return Some(BTreeSet::new()),
        _ => built(),
    };
    Some(BTreeSet::from([part]))
}

impl Part {
    pub(in crate::authz) fn write(
        &self,
        about: &Question<'_>,
        out: &mut Writer<'_>,
    ) -> Result<(), Unreadable> {
        let request = about.request;
        match self {
            Self::Identity => out.identity(about.identity),
            Self::Method => out.text(request.method.as_str()),
            Self::Target => out.text(&target(request)),
            Self::Path => out.text(request.path.as_str()),
            Self::Segment(index) => out.option(segments(request).nth(*index).as_deref()),
            Self::Host => out.text(request.host.as_str()),
            Self::Scheme => out.text(request.scheme.as_str()),
            Self::Protocol => out.text(crate::authz::input::protocol(request.version)),
            Self::Size => out.value(&Value::from(size(request))),
            Self::Header(name) => out.option(header(about, name).as_deref()),
            Self::Token => match about.identity {
                // The token made the identity, and no other token did; to compare its text would cost
                // a kilobyte of each question.
                Some(identity) if identity.method == "jwt" => {
                    out.identity(about.identity);
                    // Whether it is shown at all.
                    out.value(&Value::from(header(about, "authorization").is_some()));
                }
                Some(_) | None => out.option(header(about, "authorization").as_deref()),
            },
            Self::Principal => out.option(principal(request)),
            Self::Body => out.body(about),
            Self::Built(want) => out.value(&document::document(about, want)?),
        }
        Ok(())
    }
}
